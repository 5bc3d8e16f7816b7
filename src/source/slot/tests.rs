//! Against a real server: each state a database may be in.

use std::time::Duration;

use tokio::task::JoinSet;

use super::*;
use crate::address::PgAddress;
use crate::config::{
    Actions, BodyForm, GroupBy, MessageForm, Numbers, PrefixPattern, RetryConfig, SuccessRule, TablePattern,
    UnchangedToast,
};
use crate::demo::cluster::roles::Role;
use crate::demo::cluster::{Cluster, ClusterOptions};
use crate::source::connection;

mod again;
mod held;
mod planning;
mod publishing;
mod slots;

/// A server, sessions of those who have to do with it, and the tasks that drive them.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    /// The owner of database and tables.
    pub(crate) client: Client,
    /// A superuser, for what only one can do.
    pub(crate) admin: Client,
    /// walhook, as its role is documented.
    pub(crate) own: Client,
    drivers: JoinSet<()>,
}

impl Stage {
    pub(crate) async fn new(settings: &[(&str, &str)], sql: &str) -> Self {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let cluster = Cluster::start(&ClusterOptions { settings, ..ClusterOptions::default() }).unwrap();
        let mut drivers = JoinSet::new();
        let client = session(&mut drivers, &cluster.url_as(Role::Owner, "postgres")).await;
        let admin = session(&mut drivers, &cluster.url_as(Role::Superuser, "postgres")).await;
        let own = session(&mut drivers, &cluster.url("postgres")).await;
        client.batch_execute(sql).await.unwrap();
        Self { cluster, client, admin, own, drivers }
    }

    /// The address of a role that may log in and is granted nothing; makes it, with further attributes.
    pub(crate) async fn guest(&self, attributes: &str) -> String {
        self.admin.batch_execute(&format!("create role guest login {attributes}")).await.unwrap();
        self.cluster.url("postgres").replace("walhook@", "guest@")
    }

    pub(crate) async fn session(&mut self, url: &str) -> Client {
        session(&mut self.drivers, url).await
    }

    pub(crate) fn source(&self) -> SourceConfig {
        SourceConfig { url: PgAddress::parse(&self.cluster.url("postgres")).unwrap(), ..SourceConfig::example() }
    }

    async fn prepare(&self, sinks: &[SinkConfig]) -> Result<Prepared, PrepareError> {
        prepare(site(&self.own, &self.source(), sinks), &|_| {}, None).await
    }

    async fn published(&self) -> Vec<String> {
        let rows =
            self.client.query("select schemaname || '.' || tablename from pg_publication_tables order by 1", &[]);
        rows.await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    async fn count(&self, sql: &str) -> i64 {
        self.admin.query_one(sql, &[]).await.unwrap().get(0)
    }
}

pub(crate) fn site<'a>(client: &'a Client, source: &'a SourceConfig, sinks: &'a [SinkConfig]) -> Site<'a> {
    Site { client, source, sinks }
}

async fn session(drivers: &mut JoinSet<()>, url: &str) -> Client {
    let (client, driver) = connection::sql(&PgAddress::parse(url).unwrap()).await.unwrap();
    drivers.spawn(async move {
        let _ended = driver.await;
    });
    // What the stages' statements make belongs where an application's would.
    client.batch_execute("RESET search_path").await.unwrap();
    client
}

pub(crate) fn sink(name: &str, tables: &[&str]) -> SinkConfig {
    let pattern = |text: &&str| {
        let (schema, table) = text.split_once('.').unwrap();
        TablePattern { schema: schema.to_owned(), table: table.to_owned() }
    };
    SinkConfig {
        name: name.to_owned(),
        source: "app".to_owned(),
        endpoint: url::Url::parse("http://127.0.0.1:9/").unwrap(),
        tls_ca: None,
        egress: crate::deliver::egress::Egress::default(),
        tables: tables.iter().map(pattern).collect(),
        messages: Vec::new(),
        actions: Actions { insert: true, update: true, delete: true, truncate: false },
        message: MessageForm::Change,
        body: BodyForm::Batch,
        batch_size: 1,
        batch_bytes: 1 << 20,
        batch_timeout: Duration::from_millis(10),
        request_timeout: Duration::from_secs(30),
        max_ack_pending: 10_000,
        max_in_flight: 32,
        success: SuccessRule::Any2xx,
        group_by: GroupBy::PrimaryKey,
        group_by_table: Vec::new(),
        headers: http::HeaderMap::new(),
        signing_secrets: Vec::new(),
        numbers: Numbers::Json,
        unchanged_toast: UnchangedToast::Omit,
        paused: false,
        retry: RetryConfig::of_waits(Duration::from_secs(1), Duration::from_secs(180)),
    }
}

fn lasting(result: Result<Prepared, PrepareError>) -> (String, String) {
    match result {
        Err(PrepareError::Lasting { what, advice }) => (what, advice),
        other => panic!("not a lasting error: {other:?}"),
    }
}

/// Waits until it holds, for half a minute at most.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    waited.unwrap_or_else(|_| panic!("waited for half a minute: {what}"));
}

const ORDERS: &str = "create table orders (id int primary key, customer_id int, note text);";

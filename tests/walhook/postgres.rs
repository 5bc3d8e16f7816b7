//! A real Postgres for one test, with the roles of docs/OPERATING.md.
//!
//! walhook connects as `walhook`, or with `create = false` as `walhook_reader`; what a test does to its tables it does as
//! their owner, `app`. The superuser is for what an administrator does to a server: a test in which walhook itself
//! connects as one says so in its name.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use walhook::demo::cluster::roles::{Role, grants};
use walhook::demo::cluster::{Cluster, ClusterOptions};

/// How long [`until`] waits. Generous: it only ends tests that fail anyway.
const DEADLINE: Duration = Duration::from_secs(60);

/// A throw-away cluster with one empty database, `postgres`.
#[derive(Debug)]
pub(crate) struct Postgres {
    /// The cluster.
    pub(crate) cluster: Cluster,
}

impl Postgres {
    /// A running server. WALHOOK_PG_BIN chooses the version.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// A running server with further settings.
    pub(crate) fn with(settings: &[(&str, &str)]) -> Self {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let options = ClusterOptions { settings, template: true, ..ClusterOptions::default() };
        Self { cluster: Cluster::start(&options).unwrap_or_else(|error| panic!("{error}")) }
    }

    /// Address of the database `postgres` as walhook's role.
    pub(crate) fn url(&self) -> String {
        self.cluster.url("postgres")
    }

    /// The same as the owner of the tables.
    pub(crate) fn owner_url(&self) -> String {
        self.cluster.url_as(Role::Owner, "postgres")
    }

    /// The same as the role for `create = false`, which owns nothing and may read no table.
    pub(crate) fn reader_url(&self) -> String {
        self.cluster.url_as(Role::Reader, "postgres")
    }

    /// The same as superuser.
    pub(crate) fn admin_url(&self) -> String {
        self.cluster.url_as(Role::Superuser, "postgres")
    }

    /// A connection of the tables' owner.
    pub(crate) async fn client(&self) -> Client {
        self.try_client().await.unwrap()
    }

    /// The same, if the server takes one.
    pub(crate) async fn try_client(&self) -> Result<Client, tokio_postgres::Error> {
        connect(&self.owner_url()).await
    }

    /// A superuser's connection.
    pub(crate) async fn admin_client(&self) -> Client {
        connect(&self.admin_url()).await.unwrap()
    }

    /// Runs statements as the tables' owner and gives all rows as text.
    pub(crate) async fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        rows(&self.client().await, sql).await
    }

    /// Runs statements as the tables' owner.
    pub(crate) async fn sql(&self, sql: &str) {
        self.rows(sql).await;
    }

    /// The first value of the first row as text; empty if there is none or it is NULL.
    pub(crate) async fn value(&self, sql: &str) -> String {
        first(self.rows(sql).await)
    }

    /// Whether the server is built with ICU, whose collations initdb takes in then; without it no collation is nondeterministic.
    /// Says so if not.
    pub(crate) async fn has_icu(&self) -> bool {
        let has = self.value("SELECT EXISTS (SELECT FROM pg_collation WHERE collname = 'und-x-icu')").await == "t";
        if !has {
            println!("skipped: this build of Postgres has no ICU");
        }
        has
    }

    /// As [`Self::rows`], as superuser.
    pub(crate) async fn admin_rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        rows(&self.admin_client().await, sql).await
    }

    /// As [`Self::sql`], as superuser.
    pub(crate) async fn admin_sql(&self, sql: &str) {
        self.admin_rows(sql).await;
    }

    /// As [`Self::value`], as superuser.
    pub(crate) async fn admin_value(&self, sql: &str) -> String {
        first(self.admin_rows(sql).await)
    }

    /// Makes another database, such as `ENCODING 'LATIN1' TEMPLATE template0`, with the same grants.
    pub(crate) async fn database(&self, name: &str, how: &str) {
        self.admin_sql(&format!("CREATE DATABASE {name} {how}")).await;
        self.admin_sql(&grants(name)).await;
    }

    /// Makes a slot, as the role for `create = false` does by docs/OPERATING.md.
    pub(crate) async fn make_slot(&self, slot: &str) {
        let client = connect(&self.reader_url()).await.unwrap();
        rows(&client, &format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
    }

    /// A connection of the owner of that database's tables.
    pub(crate) async fn client_of(&self, database: &str) -> Client {
        connect(&self.cluster.url_as(Role::Owner, database)).await.unwrap()
    }

    /// Major version of the server.
    pub(crate) async fn major(&self) -> u32 {
        self.value("SELECT current_setting('server_version_num')::int / 10000").await.parse().unwrap()
    }

    /// Bytes of WAL between the slot's confirmed position and the end.
    pub(crate) async fn lag_bytes(&self, slot: &str) -> Option<i64> {
        let sql = "SELECT pg_current_wal_lsn() - confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = ";
        self.value(&format!("{sql}'{slot}'")).await.parse().ok()
    }

    /// Process id of the session that reads the slot.
    pub(crate) async fn reader(&self, slot: &str) -> Option<i32> {
        self.value(&format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{slot}'"))
            .await
            .parse()
            .ok()
    }
}

/// A connection that ends by itself when the client is dropped.
async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn rows(client: &Client, sql: &str) -> Vec<Vec<Option<String>>> {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

fn first(rows: Vec<Vec<Option<String>>>) -> String {
    rows.into_iter().flatten().flatten().next().unwrap_or_default()
}

/// Waits for a state: asks until the answer is `Ok`, and fails with the last `Err` when the deadline has passed.
#[track_caller]
pub(crate) fn until<T, E: Debug, F: Future<Output = Result<T, E>>>(
    what: &str,
    ask: impl FnMut() -> F,
) -> impl Future<Output = T> {
    until_within(DEADLINE, what, ask)
}

/// As [`until`], with a deadline of its own.
#[track_caller]
pub(crate) fn until_within<T, E: Debug, F: Future<Output = Result<T, E>>>(
    deadline: Duration,
    what: &str,
    mut ask: impl FnMut() -> F,
) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let started = Instant::now();
        loop {
            match ask().await {
                Ok(answer) => return answer,
                Err(last) if started.elapsed() > deadline => {
                    panic!("{caller}: waited {deadline:?} for: {what}; last seen: {last:?}");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// `Ok` when `holds`, else `Err(seen)`: the form [`until`] asks for.
pub(crate) fn state<T: Debug>(holds: bool, seen: T) -> Result<(), T> {
    if holds { Ok(()) } else { Err(seen) }
}

#[tokio::test]
async fn two_clusters_from_one_template_are_apart() {
    let (one, other) = (Postgres::start(), Postgres::start());
    one.sql("CREATE TABLE t (id int); INSERT INTO t VALUES (7)").await;
    assert_eq!(one.value("SELECT id FROM t").await, "7");
    assert_eq!(other.value("SELECT to_regclass('t')").await, "");
    assert!(one.major().await >= 14);
}

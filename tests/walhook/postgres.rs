//! A real Postgres for one test.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
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

    /// Address of the database `postgres`.
    pub(crate) fn url(&self) -> String {
        self.cluster.url("postgres")
    }

    /// A connection of one's own.
    pub(crate) async fn client(&self) -> Client {
        self.try_client().await.unwrap()
    }

    /// A connection, if the server takes one.
    pub(crate) async fn try_client(&self) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(&self.url(), NoTls).await?;
        // Ends by itself when the client is dropped.
        tokio::spawn(connection);
        Ok(client)
    }

    /// Runs statements and gives all rows as text.
    pub(crate) async fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let client = self.client().await;
        let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let row = |message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
            _ => None,
        };
        messages.into_iter().filter_map(row).collect()
    }

    /// Runs statements.
    pub(crate) async fn sql(&self, sql: &str) {
        self.rows(sql).await;
    }

    /// The first value of the first row as text; empty if there is none or it is NULL.
    pub(crate) async fn value(&self, sql: &str) -> String {
        self.rows(sql).await.into_iter().flatten().flatten().next().unwrap_or_default()
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

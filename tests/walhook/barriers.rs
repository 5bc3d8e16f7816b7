//! Changes of a table that stand between all earlier and all later ones of it: while they wait, other tables go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::daemon::{Config, Daemon};
use crate::outage::wait_confirmed;
use crate::postgres::{Postgres, state, until};
use crate::receiver::{Receiver, Reply};

/// A table with two keys, one of which is primary, beside another table; an endpoint that refuses the row `a` until it is
/// opened.
struct Stage {
    postgres: Postgres,
    receiver: Receiver,
    config: Config,
    open: Arc<AtomicBool>,
}

impl Stage {
    async fn new(sink: &str) -> Self {
        let postgres = Postgres::start();
        postgres.sql("CREATE TABLE t (id int PRIMARY KEY, k int NOT NULL, v text)").await;
        postgres.sql("CREATE TABLE other (id int PRIMARY KEY, v text)").await;
        let open = Arc::new(AtomicBool::new(false));
        let is_open = Arc::clone(&open);
        let receiver = Receiver::scripted(move |request| {
            let is_refused = request.messages.iter().any(|message| message["record"]["v"] == "a");
            Reply::status(if is_refused && !is_open.load(Ordering::Relaxed) { 500 } else { 200 })
        });
        let receiver = receiver.await;
        let config = Config::one_sink(&postgres, &receiver.url(), sink);
        Self { postgres, receiver, config, open }
    }

    async fn daemon(&self) -> Daemon {
        Daemon::start(&self.config).await
    }

    async fn sql(&self, sql: &str) {
        self.postgres.sql(sql).await;
    }

    /// What came of the column `v`, acknowledged or refused, each at its first coming.
    fn seen(&self) -> Vec<String> {
        first_comings(self.receiver.messages())
    }

    /// What was acknowledged, each at its first time.
    fn acknowledged(&self) -> Vec<String> {
        first_comings(self.receiver.acknowledged())
    }

    async fn wait_seen(&self, v: &str) {
        self.receiver.wait(v, |_| self.seen().iter().any(|seen| seen == v)).await;
    }

    /// The endpoint takes everything; all of the table comes, in this order.
    async fn opens(&self, order: &[&str]) {
        let of_table =
            |seen: Vec<String>| -> Vec<String> { seen.into_iter().filter(|v| !v.starts_with("other")).collect() };
        assert_eq!(of_table(self.seen()), ["a"], "nothing of the table goes before its first change");
        assert_eq!(of_table(self.acknowledged()), [""; 0]);
        self.open.store(true, Ordering::Relaxed);
        let last = *order.last().unwrap();
        self.receiver.wait("the last to be acknowledged", |_| self.acknowledged().iter().any(|v| v == last)).await;
        assert_eq!((of_table(self.seen()), of_table(self.acknowledged())), (owned(order), owned(order)));
    }

    async fn wait_held(&self, daemon: &Daemon) {
        self.wait_held_tables(daemon, 1.0).await;
    }

    async fn wait_held_tables(&self, daemon: &Daemon, count: f64) {
        let held = || async {
            let held = daemon.metrics().await.sum("walhook_sink_held_tables", &[]);
            state(held == Some(count), held)
        };
        until("tables to be held up", held).await;
    }
}

fn first_comings(messages: Vec<Value>) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    for message in messages {
        let v = message["record"]["v"].as_str().unwrap_or_else(|| message["action"].as_str().unwrap()).to_owned();
        if !seen.contains(&v) {
            seen.push(v);
        }
    }
    seen
}

fn owned(order: &[&str]) -> Vec<String> {
    order.iter().map(|v| (*v).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_05_the_first_change_by_another_primary_key_waits_for_the_table() {
    let stage = Stage::new("").await;
    let daemon = stage.daemon().await;
    stage.sql("INSERT INTO t VALUES (1, 100, 'a')").await;
    stage.wait_seen("a").await;
    stage.sql("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (k)").await;
    stage.sql("UPDATE t SET v = 'b' WHERE k = 100; UPDATE t SET v = 'c' WHERE k = 100").await;
    stage.sql("INSERT INTO other VALUES (1, 'other 1')").await;
    stage.wait_seen("other 1").await;
    stage.wait_held(&daemon).await;
    daemon.kill9();

    let daemon = stage.daemon().await;
    stage.sql("INSERT INTO other VALUES (2, 'other 2')").await;
    stage.wait_seen("other 2").await;
    stage.wait_held(&daemon).await;
    stage.opens(&["a", "b", "c"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_05_what_waited_in_the_store_before_the_key_changed_goes_first_after_a_crash() {
    let stage = Stage::new("").await;
    let daemon = stage.daemon().await;
    stage.sql("INSERT INTO t VALUES (1, 100, 'a'); UPDATE t SET v = 'b'").await;
    stage.sql("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (k)").await;
    stage.sql("UPDATE t SET v = 'c'").await;
    // Everything is in the store: the slot moves on.
    let end = stage.postgres.value("SELECT pg_current_wal_lsn()").await;
    wait_confirmed(&stage.postgres, &end, Duration::from_secs(30)).await;
    daemon.kill9();

    let daemon = stage.daemon().await;
    stage.sql("UPDATE t SET v = 'd'; INSERT INTO other VALUES (1, 'other 1')").await;
    stage.wait_seen("other 1").await;
    stage.wait_held(&daemon).await;
    stage.opens(&["a", "b", "c", "d"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_05_what_comes_again_by_another_key_than_it_was_kept_under_follows_it() {
    let stage = Stage::new("").await;
    let daemon = stage.daemon().await;
    stage.sql("INSERT INTO t VALUES (1, 100, 'a')").await;
    stage.wait_seen("a").await;
    // Resolved, so that the change before it is known to have arrived when the process dies.
    stage.sql("UPDATE t SET v = 'b'; INSERT INTO other VALUES (1, 'other 1')").await;
    stage.wait_seen("other 1").await;
    daemon.kill9();
    // The catalogue tells only what the key is at last.
    stage.sql("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (k)").await;
    stage.sql("UPDATE t SET v = 'c'; INSERT INTO other VALUES (2, 'other 2')").await;

    let daemon = stage.daemon().await;
    stage.wait_seen("other 2").await;
    stage.wait_held(&daemon).await;
    stage.opens(&["a", "b", "c"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_05_a_renamed_table_waits_for_what_it_was() {
    let stage = Stage::new("").await;
    let daemon = stage.daemon().await;
    stage.sql("INSERT INTO t VALUES (1, 100, 'a')").await;
    stage.wait_seen("a").await;
    stage.sql("ALTER TABLE t RENAME TO t2").await;
    stage.sql("UPDATE t2 SET v = 'b'; INSERT INTO other VALUES (1, 'other 1')").await;
    stage.wait_seen("other 1").await;
    stage.wait_held_tables(&daemon, 2.0).await;
    stage.opens(&["a", "b"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_05_a_key_of_another_type_waits_for_what_it_was() {
    let stage = Stage::new("").await;
    let daemon = stage.daemon().await;
    stage.sql("INSERT INTO t VALUES (1, 100, 'a')").await;
    stage.wait_seen("a").await;
    stage.sql("ALTER TABLE t ALTER id TYPE numeric(12, 2)").await;
    stage.sql("UPDATE t SET v = 'b'; INSERT INTO other VALUES (1, 'other 1')").await;
    stage.wait_seen("other 1").await;
    stage.wait_held(&daemon).await;
    stage.opens(&["a", "b"]).await;
}

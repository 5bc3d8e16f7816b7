//! P1, P2 and P9 around standbys: one that is promoted in the place of the primary, and one that is read itself.
//!
//! Most of it needs Postgres 16 or 17; WALHOOK_PG_BIN chooses the server, and what an older one cannot do is skipped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinHandle;

use crate::daemon::{Config, Daemon, quick_retry, text_of, troubles, walhook};
use crate::order::{assert_complete, counters};
use crate::postgres::{Postgres, state, until};
use crate::receiver::{Keep, Receiver, row_of, unreliable};

const SLOT: &str = "walhook_app";

/// A primary and its standby.
pub(crate) struct Pair {
    pub(crate) primary: Postgres,
    pub(crate) standby: Postgres,
}

impl Pair {
    /// Both run, and `counters` is on both.
    async fn start(primary: &[(&str, &str)], standby: &[(&str, &str)]) -> Self {
        let primary = Postgres::with(primary);
        counters(&primary).await;
        primary.admin_sql("SELECT pg_create_physical_replication_slot('standby', true)").await;
        let standby = tokio::task::block_in_place(|| primary.cluster.standby(standby));
        let standby = Postgres { cluster: standby.unwrap_or_else(|error| panic!("{error}")) };
        let pair = Self { primary, standby };
        pair.wait_replayed().await;
        pair
    }

    /// The standby has all that the primary has.
    async fn wait_replayed(&self) {
        let end = self.primary.value("SELECT pg_current_wal_lsn()").await;
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
        until("the standby to replay", || async {
            let has = self.standby.value(&sql).await;
            state(has == "t", has)
        })
        .await;
    }

    /// The address of whichever of the two takes connections, the primary first.
    fn config(&self, endpoint: &str, source_lines: &str) -> Config {
        let (one, other) = (self.primary.cluster.port(), self.standby.cluster.port());
        let both = format!("127.0.0.1:{one},127.0.0.1:{other}");
        let text = Config::source(&self.primary).replace(&format!("127.0.0.1:{one}"), &both);
        Config::new(&format!("{text}{source_lines}\n{}", Config::sink("orders", endpoint, &quick_retry("orders"))))
    }

    /// The primary is gone for ever, and the standby takes its place.
    fn fail_over(&self) {
        tokio::task::block_in_place(|| {
            self.primary.cluster.stop("immediate").unwrap();
            self.standby.cluster.promote().unwrap();
        });
    }
}

/// The version, if it is one that has what is tested.
async fn at_least(version: u32) -> bool {
    let major = Postgres::start().major().await;
    if major < version {
        println!("skipped: this needs Postgres {version}, and WALHOOK_PG_BIN or the system has {major}");
    }
    major >= version
}

/// Raises the counters of rows 1 to 10, round after round, on the first of the servers that takes writes.
struct Rounds {
    stop: Arc<AtomicBool>,
    task: JoinHandle<i64>,
}

impl Rounds {
    fn on(urls: [String; 2]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut round = 0;
            while !stopping.load(Ordering::Relaxed) {
                round += 1;
                for row in 1..=10 {
                    let update = format!("UPDATE counters SET n = {round} WHERE id = {row} AND n < {round}");
                    while write(&urls, &update).await.is_none() {
                        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    }
                }
            }
            round
        });
        Self { stop, task }
    }

    /// Ends after the round; gives how many there were.
    async fn finish(self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// A connection for each write, so that none is left on a server that is gone.
async fn write(urls: &[String], sql: &str) -> Option<()> {
    for url in urls {
        let Ok((client, connection)) = tokio_postgres::connect(url, tokio_postgres::NoTls).await else { continue };
        tokio::spawn(connection);
        if client.batch_execute(sql).await.is_ok() {
            return Some(());
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_39_a_promoted_standby_is_read_on_and_no_change_is_lost_or_out_of_order() {
    if !at_least(17).await {
        return;
    }
    let pair = Pair::start(&[], &[("sync_replication_slots", "on")]).await;
    // What is committed is on the standby, and what walhook was sent is there too.
    let settings = "ALTER SYSTEM SET synchronous_standby_names = 'walreceiver'";
    pair.primary.admin_sql(settings).await;
    pair.primary.admin_sql("ALTER SYSTEM SET synchronized_standby_slots = 'standby'").await;
    pair.primary.admin_sql("SELECT pg_reload_conf()").await;
    pair.primary.sql("INSERT INTO counters SELECT i, 0 FROM generate_series(1, 10) i").await;
    let receiver = Receiver::with(Keep::Ledger, unreliable(7, 10, &[500, 503], 0..10), row_of).await;
    let daemon = Daemon::start(&pair.config(&receiver.url(), "failover = true")).await;
    let failover = format!("SELECT failover FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
    assert_eq!(pair.primary.value(&failover).await, "t");
    until("the standby to have its copy of the slot", || async {
        pair.primary.admin_sql("SELECT pg_log_standby_snapshot()").await;
        let sql = format!("SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
        let synced = pair.standby.value(&sql).await;
        state(synced == "t", synced)
    })
    .await;

    let rounds = Rounds::on([pair.primary.owner_url(), pair.standby.owner_url()]);
    receiver.wait("changes of the primary", |receiver| receiver.request_count() >= 100).await;
    pair.fail_over();
    daemon.wait_logged("the database was promoted").await;
    daemon.wait_ready().await;
    let before = receiver.request_count();
    receiver.wait("changes of the promoted standby", |receiver| receiver.request_count() >= before + 100).await;
    let rounds = rounds.finish().await;
    crate::crash::wait_rounds(&receiver, 10, rounds).await;
    // The rows were there before the slot was.
    let lost: Vec<(i64, i64)> = receiver.ledger(|ledger| {
        let all = (1..=10).flat_map(|row| (1..=rounds).map(move |n| (row, n)));
        all.filter(|(row, n)| !ledger.has(&format!("counters/{row}"), *n)).collect()
    });
    assert!(lost.is_empty(), "lost: {lost:?}");
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert_eq!(ledger.repeats, 0, "the daemon lives on and knows what it was sent");
    });
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_39_an_existing_slot_is_altered_and_an_older_server_is_named() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::start().await;
    let sink = Config::sink("orders", &receiver.url(), "");
    let config = Config::new(&(Config::source(&postgres) + &sink));
    let daemon = Daemon::start(&config).await;
    assert!(daemon.sigterm().await.success());
    config.rewrite(&(Config::source(&postgres) + "failover = true\n" + &sink));
    let checked = walhook(&["check", "--config", &config.path().to_string_lossy()]);
    if postgres.major().await < 17 {
        let mut daemon = Daemon::launch(&config).allow_error("failover");
        let status = daemon.wait_exit().await;
        let (printed, checked) = (daemon.printed(), text_of(&checked));
        assert_eq!(status.code(), Some(69), "{printed}");
        assert!(printed.contains("failover = true needs Postgres 17"), "{printed}");
        assert!(checked.contains("failover = true needs Postgres 17"), "{checked}");
        return;
    }
    assert_eq!(checked.status.code(), Some(0), "{}", text_of(&checked));
    let failover = format!("SELECT failover FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
    assert_eq!(postgres.value(&failover).await, "f");
    let daemon = Daemon::start(&config).await;
    assert_eq!(postgres.value(&failover).await, "t");
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait_acknowledged(1).await;
    assert!(daemon.sigterm().await.success());
    // false leaves it as it is.
    config.rewrite(&(Config::source(&postgres) + &sink));
    let daemon = Daemon::start(&config).await;
    assert_eq!(postgres.value(&failover).await, "t");
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_40_a_standby_that_lacks_what_was_read_is_not_read_on_after_its_promotion() {
    let pair = Pair::start(&[], &[]).await;
    let receiver = Receiver::start().await;
    let daemon = Daemon::start(&pair.config(&receiver.url(), "")).await.allow_error("was promoted to timeline 2");
    pair.standby.cluster.stop("fast").unwrap();
    pair.primary.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait_acknowledged(1).await;
    pair.primary.cluster.stop("immediate").unwrap();
    tokio::task::block_in_place(|| pair.standby.cluster.resume()).unwrap();
    // It is no loss of the slot that an unpromoted standby has none.
    until("readyz to say that it waits for a promotion", || async {
        let said = troubles(&daemon.wait_not_ready().await);
        state(said.contains("waiting for it, or for a promotion"), said)
    })
    .await;
    tokio::task::block_in_place(|| pair.standby.cluster.promote()).unwrap();
    until("readyz to say what the new primary lacks", || async {
        let said = troubles(&daemon.wait_not_ready().await);
        state(said.contains("left timeline 1 at") && said.contains("never happened there"), said)
    })
    .await;
    pair.standby.sql("INSERT INTO counters VALUES (2, 0)").await;
    assert_eq!(receiver.request_count(), 1, "it read from a history that it does not know");
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_39_a_standby_that_a_start_leads_to_for_a_moment_costs_no_slot() {
    if !at_least(16).await {
        return;
    }
    let pair = Pair::start(&[], &[]).await;
    let receiver = Receiver::start().await;
    let config = pair.config(&receiver.url(), "on_slot_lost = \"recreate\"");
    let daemon = Daemon::start(&config).await;
    pair.primary.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait_acknowledged(1).await;
    assert!(daemon.sigterm().await.success());
    pair.primary.sql("INSERT INTO counters VALUES (2, 0)").await;
    pair.wait_replayed().await;
    pair.primary.cluster.stop("fast").unwrap();

    let daemon = Daemon::launch(&config);
    until("readyz to say that it waits for the primary", || async {
        let said = troubles(&daemon.wait_not_ready().await);
        state(said.contains("waiting for the primary"), said)
    })
    .await;
    tokio::task::block_in_place(|| pair.primary.cluster.resume()).unwrap();
    receiver.wait_acknowledged(2).await;
    assert_eq!(daemon.metrics().await.sum("walhook_source_gaps_total", &[]), Some(0.0));
    assert_eq!(pair.standby.value("SELECT count(*) FROM pg_replication_slots").await, "0");
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_42_a_standby_is_read_and_what_its_primary_must_do_is_said() {
    if !at_least(16).await {
        return;
    }
    let pair = Pair::start(&[], &[]).await;
    let receiver = Receiver::with(Keep::Ledger, unreliable(3, 5, &[500], 0..10), row_of).await;
    let config = Config::one_sink(&pair.standby, &receiver.url(), "tables = [\"public.counters\"]");

    // The publication can only be made on the primary.
    let mut daemon = Daemon::launch(&config).allow_error("standby");
    assert_eq!(daemon.wait_exit().await.code(), Some(69));
    let printed = daemon.printed();
    let asked = "on the primary, as app, or a superuser: CREATE PUBLICATION \\\"walhook_app\\\" FOR TABLE ONLY";
    assert!(printed.contains(asked) || printed.contains(&asked.replace('\\', "")), "{printed}");
    pair.primary
        .sql("CREATE PUBLICATION walhook_app FOR TABLE counters WITH (publish = 'insert, update, delete', publish_via_partition_root)")
        .await;
    pair.wait_replayed().await;

    // The slot waits for the primary to log which transactions run.
    let daemon = Daemon::launch(&config);
    until("readyz to say what the slot waits for", || async {
        let said = troubles(&daemon.wait_not_ready().await);
        state(said.contains("on the primary: SELECT pg_log_standby_snapshot();"), said)
    })
    .await;
    let log_snapshot = async {
        let mut ticks = tokio::time::interval(std::time::Duration::from_millis(300));
        loop {
            ticks.tick().await;
            pair.primary.admin_sql("SELECT pg_log_standby_snapshot()").await;
        }
    };
    tokio::select! {
        () = log_snapshot => {}
        () = daemon.wait_ready() => {}
    }

    pair.primary.sql("INSERT INTO counters SELECT i, 0 FROM generate_series(1, 10) i").await;
    pair.primary.sql("UPDATE counters SET n = 1").await;
    receiver.wait_acknowledged(20).await;
    let emitted = "SELECT count(*) FROM pg_publication WHERE pubname = 'walhook_app'";
    assert_eq!(pair.standby.value(emitted).await, "1");
    assert!(!daemon.logged("heartbeat failed"), "a heartbeat was written to a standby");
    assert!(daemon.sigterm().await.success());

    receiver.ledger(|ledger| ledger.new_run());
    pair.primary.sql("UPDATE counters SET n = 2").await;
    let daemon = Daemon::start(&config).await;
    receiver.wait_acknowledged(30).await;
    assert_complete(&receiver, 10, 2);
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert_eq!(ledger.repeats, 0, "after a clean stop nothing is sent twice");
    });
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_42_a_slot_that_the_primary_cost_says_so() {
    if !at_least(16).await {
        return;
    }
    let pair = Pair::start(&[], &[]).await;
    pair.primary.sql("CREATE PUBLICATION walhook_app FOR TABLE counters").await;
    pair.wait_replayed().await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&pair.standby, &receiver.url(), "tables = [\"public.counters\"]");
    let daemon = Daemon::launch(&config).allow_error("given up the slot");
    let until_ready = async {
        let mut ticks = tokio::time::interval(std::time::Duration::from_millis(300));
        loop {
            ticks.tick().await;
            pair.primary.admin_sql("SELECT pg_log_standby_snapshot()").await;
        }
    };
    tokio::select! {
        () = until_ready => {}
        () = daemon.wait_ready() => {}
    }
    pair.primary.admin_sql("ALTER SYSTEM SET wal_level = replica").await;
    tokio::task::block_in_place(|| {
        pair.primary.cluster.stop("fast").unwrap();
        pair.primary.cluster.resume().unwrap();
    });
    until("the slot to be given up", || async {
        let said = daemon.ready().await.map(|(_, body)| troubles(&body)).unwrap_or_default();
        state(said.contains("has given up the slot") && said.contains("wal_level"), said)
    })
    .await;
}

//! P1 and P9 when store and slot do not belong together: no gap is passed over in silence, and what mends it is named.

mod leaving;

use walhook::demo::cluster::{Cluster, ClusterOptions};

use crate::daemon::{Config, Daemon, text_of, troubles};
use crate::order::counters;
use crate::postgres::{Postgres, state, until};
use crate::receiver::{Receiver, Reply, Request};

const SLOT: &str = "walhook_app";

struct Case {
    postgres: Postgres,
    receiver: Receiver,
    config: Config,
}

impl Case {
    async fn begin() -> Self {
        let postgres = Postgres::start();
        counters(&postgres).await;
        let receiver = Receiver::start().await;
        let config = Config::one_sink(&postgres, &receiver.url(), "");
        Self { postgres, receiver, config }
    }

    async fn insert(&self, first: i64, last: i64) {
        self.postgres.sql(&format!("INSERT INTO counters SELECT i, 0 FROM generate_series({first}, {last}) i")).await;
    }

    fn has(&self, row: i64) -> bool {
        self.receiver.ledger(|ledger| ledger.has(&format!("counters/{row}"), 0))
    }

    async fn wait_row(&self, row: i64) {
        self.receiver.wait(&format!("row {row}"), |_| self.has(row)).await;
    }

    /// Delivers rows 1 to 10, keeps row 5 in the store as failed, and stops cleanly.
    async fn deliver_all_but_row_5(&self) {
        self.receiver.script(|request| Reply::status(if holds(request, 5) { 500 } else { 200 }));
        let daemon = Daemon::start(&self.config).await;
        self.insert(1, 10).await;
        self.receiver.wait_acknowledged(9).await;
        self.receiver
            .wait("a failure of row 5", |receiver| receiver.answers().iter().any(|answer| answer.1 == 500))
            .await;
        assert!(daemon.sigterm().await.success());
        self.receiver.ledger(|ledger| ledger.new_run());
        self.receiver.script(|_| Reply::status(200));
    }

    /// The daemon refuses to start with 69, and what it prints holds these words; gives what it printed.
    async fn refused(&self, words: &[&str]) -> String {
        let mut daemon = Daemon::launch(&self.config).allow_error("");
        let status = daemon.wait_exit().await;
        let printed = daemon.printed();
        assert_eq!(status.code(), Some(69), "{printed}");
        for word in words {
            assert!(printed.contains(word), "{word:?} is not in what it printed:\n{printed}");
        }
        printed
    }

    async fn drop_slot(&self) {
        self.postgres.admin_sql(&format!("SELECT pg_drop_replication_slot('{SLOT}')")).await;
    }

    async fn create_slot(&self) {
        self.postgres.admin_sql(&format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')")).await;
    }

    async fn confirmed(&self) -> String {
        self.postgres.value("SELECT confirmed_flush_lsn FROM pg_replication_slots").await
    }

    fn accept_gap(&self) {
        let accepted = self.config.state_command(&["accept-gap"]);
        assert!(accepted.status.success(), "{}", text_of(&accepted));
    }
}

fn holds(request: &Request, row: i64) -> bool {
    request.messages.iter().any(|message| message["record"]["id"] == row)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_of_another_cluster_is_refused() {
    let case = Case::begin().await;
    case.deliver_all_but_row_5().await;
    // Made by initdb, not from the template, which has an identity of its own.
    let other = tokio::task::spawn_blocking(|| Cluster::start(&ClusterOptions::default())).await.unwrap().unwrap();
    let other = Postgres { cluster: other };
    counters(&other).await;
    let text = Config::source(&other) + &Config::sink("orders", &case.receiver.url(), "");
    case.config.rewrite(&text);
    case.refused(&["another", "walhook-state"]).await;
    assert_eq!(other.value("SELECT count(*) FROM pg_replication_slots").await, "0", "nothing was made over there");
    assert!(!case.has(5), "what the store holds was sent as if it were of the other cluster");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_of_another_database_of_the_cluster_is_refused() {
    let case = Case::begin().await;
    case.deliver_all_but_row_5().await;
    case.drop_slot().await;
    case.postgres.database("second", "").await;
    let text = Config::source(&case.postgres).replace("/postgres\"", "/second\"");
    assert!(text.contains("/second\""), "{text}");
    case.config.rewrite(&(text + &Config::sink("orders", &case.receiver.url(), "")));
    case.refused(&["second", "walhook-state"]).await;
    assert_eq!(case.postgres.value("SELECT count(*) FROM pg_replication_slots").await, "0", "nothing was made there");
    assert!(!case.has(5), "what the store holds was sent as if it were of the other database");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_store_it_goes_on_at_the_slot_with_a_warning() {
    let case = Case::begin().await;
    let daemon = Daemon::start(&case.config).await;
    case.insert(1, 10).await;
    case.receiver.wait_acknowledged(10).await;
    assert!(daemon.sigterm().await.success());
    case.config.remove_state();
    case.receiver.ledger(|ledger| ledger.new_run());

    case.insert(11, 20).await;
    let daemon = Daemon::start(&case.config).await;
    case.receiver.wait_acknowledged(20).await;
    case.receiver.ledger(|ledger| assert_eq!(ledger.repeats, 0, "the slot had moved on"));
    let warned = |line: &serde_json::Value| line["level"] == "WARN" && line.to_string().contains("store");
    assert!(daemon.logs().iter().any(warned), "no warning that the store is missing:\n{}", daemon.printed());
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_dropped_meanwhile_is_a_gap_that_only_a_person_accepts() {
    let case = Case::begin().await;
    case.deliver_all_but_row_5().await;
    let confirmed = case.confirmed().await;
    case.drop_slot().await;
    case.insert(11, 20).await;
    for _ in 0..2 {
        case.refused(&[SLOT, "walhook state accept-gap", &confirmed]).await;
        assert_eq!(case.postgres.value("SELECT count(*) FROM pg_replication_slots").await, "0", "made anew in silence");
    }

    case.accept_gap();
    let daemon = Daemon::start(&case.config).await;
    case.insert(21, 30).await;
    for row in (21..=30).chain([5]) {
        case.wait_row(row).await;
    }
    assert!(!(11..=20).any(|row| case.has(row)), "these were written while there was no slot");
    case.receiver.ledger(|ledger| ledger.assert_clean());
    assert!(daemon.sigterm().await.success());
    // Accepted once, not for ever.
    case.drop_slot().await;
    case.refused(&[SLOT, "walhook state accept-gap"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_made_anew_meanwhile_is_a_gap_that_only_a_person_accepts() {
    let case = Case::begin().await;
    case.deliver_all_but_row_5().await;
    let from = case.confirmed().await;
    case.drop_slot().await;
    case.insert(11, 20).await;
    case.create_slot().await;
    let to = case.confirmed().await;
    case.insert(21, 30).await;
    case.refused(&["walhook state accept-gap", &from, &to]).await;
    assert_eq!(case.confirmed().await, to, "the new slot was moved");
    assert!(!case.has(21), "it read the slot before it refused");

    case.accept_gap();
    let daemon = Daemon::start(&case.config).await;
    for row in (21..=30).chain([5]) {
        case.wait_row(row).await;
    }
    assert!(!(11..=20).any(|row| case.has(row)), "these lie in the gap");
    case.receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert_eq!(ledger.repeats, 0, "what was delivered before the gap came again");
    });
    assert!(daemon.sigterm().await.success());
    // A start after it has nothing to accept.
    let daemon = Daemon::start(&case.config).await;
    case.insert(31, 31).await;
    case.wait_row(31).await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_dropped_meanwhile_is_a_gap_though_every_sink_has_a_new_name() {
    let case = Case::begin().await;
    case.deliver_all_but_row_5().await;
    let confirmed = case.confirmed().await;
    case.drop_slot().await;
    case.insert(11, 20).await;
    let text = Config::source(&case.postgres) + &Config::sink("renamed", &case.receiver.url(), "");
    case.config.rewrite(&text);
    case.refused(&[SLOT, "walhook state accept-gap", &confirmed]).await;
    assert_eq!(case.postgres.value("SELECT count(*) FROM pg_replication_slots").await, "0", "made anew in silence");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_made_anew_while_it_runs_is_said_and_waited_for() {
    let case = Case::begin().await;
    let daemon = Daemon::start(&case.config).await.allow_error("slot");
    case.insert(1, 10).await;
    case.receiver.wait_acknowledged(10).await;
    case.postgres.cluster.stop("fast").unwrap();
    std::fs::remove_dir_all(case.postgres.cluster.data().join("pg_replslot").join(SLOT)).unwrap();
    case.postgres.cluster.resume().unwrap();
    case.insert(11, 20).await;
    case.create_slot().await;
    until("readyz to name the gap and what mends it", || async {
        let body = daemon.wait_not_ready().await;
        let said = troubles(&body);
        state(said.contains("walhook state accept-gap"), said)
    })
    .await;
    case.insert(21, 21).await;
    // It has asked for the slot many times by now if it did so at all.
    daemon.wait_logged("accept-gap").await;
    assert!(!case.has(21), "it went on over a gap");

    daemon.kill9();
    case.accept_gap();
    let _daemon = Daemon::start(&case.config).await;
    case.wait_row(21).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_store_is_refused() {
    let case = Case::begin().await;
    let daemon = Daemon::start(&case.config).await;
    case.refused(&["walhook-state", "another"]).await;
    case.insert(1, 10).await;
    case.receiver.wait_acknowledged(10).await;
    // What only looks may look; what changes something may not.
    let shown = case.config.state_command(&["show"]);
    assert!(shown.status.success() && text_of(&shown).contains("orders"), "{}", text_of(&shown));
    for change in [&["accept-gap"][..], &["forget", "orders"], &["resume", "orders"]] {
        let refused = case.config.state_command(change);
        assert_ne!(refused.status.code(), Some(0), "{change:?} beside a running daemon: {}", text_of(&refused));
    }
    // A lock that outlives a kill would be worse than none.
    daemon.kill9();
    let daemon = Daemon::start(&case.config).await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_hold_wal_the_slot_stays_before_what_is_not_delivered() {
    let case = Case::begin().await;
    let text = Config::source(&case.postgres)
        + "[state]\nhold = \"wal\"\n"
        + &Config::sink("orders", &case.receiver.url(), "");
    case.config.rewrite(&text);
    case.receiver.script(|request| Reply::status(if holds(request, 5) { 500 } else { 200 }));
    let daemon = Daemon::start(&case.config).await;
    case.insert(1, 10).await;
    let after = case.postgres.value("SELECT pg_current_wal_lsn()").await;
    case.receiver.wait_acknowledged(9).await;
    let attempts = |receiver: &Receiver| receiver.requests().iter().filter(|request| holds(request, 5)).count();
    // With the waits between them these take longer than a delivery may hang before it would be parked.
    case.receiver.wait("many attempts of row 5", |receiver| attempts(receiver) >= 15).await;
    let sql = format!("SELECT confirmed_flush_lsn < '{after}' FROM pg_replication_slots");
    assert_eq!(case.postgres.value(&sql).await, "t", "the slot moved past a change that only the WAL holds");
    daemon.kill9();

    case.receiver.abandoned().await;
    case.receiver.ledger(|ledger| ledger.new_run());
    case.receiver.script(|_| Reply::status(200));
    let daemon = Daemon::start(&case.config).await;
    case.wait_row(5).await;
    crate::outage::wait_confirmed(&case.postgres, &after, std::time::Duration::from_secs(10)).await;
    case.receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert_eq!(ledger.repeats, 0, "progress is kept in this mode too");
    });
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_hold_wal_a_dead_letter_lets_the_slot_go_on() {
    let case = Case::begin().await;
    let sink = "[sink.orders.retry]\ninitial = \"50ms\"\nmax = \"100ms\"\nmax_attempts = 3\n";
    let text = Config::source(&case.postgres)
        + "[state]\nhold = \"wal\"\n"
        + &Config::sink("orders", &case.receiver.url(), sink);
    case.config.rewrite(&text);
    case.receiver.script(|request| Reply::status(if holds(request, 5) { 404 } else { 200 }));
    let daemon = Daemon::start(&case.config).await;
    case.insert(1, 10).await;
    let after = case.postgres.value("SELECT pg_current_wal_lsn()").await;
    crate::outage::wait_confirmed(&case.postgres, &after, std::time::Duration::from_secs(30)).await;
    daemon.kill9();
    let sent = case.receiver.request_count();
    assert_eq!(sent, 12, "nine deliveries and three attempts of row 5");
    let daemon = Daemon::start(&case.config).await;
    case.insert(11, 11).await;
    case.wait_row(11).await;
    assert_eq!(case.receiver.request_count(), sent + 1, "the dead letter was sent again");
    assert!(daemon.sigterm().await.success());
}

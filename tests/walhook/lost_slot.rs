//! P1 and P9 when the server gives the slot up: it stops and says so, or with `on_slot_lost = "recreate"` goes on with
//! another slot behind a gap that is marked.

use walhook::demo::cluster::{Cluster, ClusterOptions};

use crate::daemon::{Config, Daemon, text_of, troubles, walhook};
use crate::order::counters;
use crate::postgres::{Postgres, state, until};
use crate::receiver::{Receiver, Reply};

const SLOT: &str = "walhook_app";

/// A server that gives a slot up quickly, once somebody tells it to.
async fn impatient() -> Postgres {
    let settings = [("min_wal_size", "2MB"), ("max_wal_size", "4MB"), ("wal_keep_size", "0")];
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let options =
        ClusterOptions { initdb_args: vec!["--wal-segsize=1".to_owned()], settings, ..ClusterOptions::default() };
    let cluster = tokio::task::block_in_place(|| Cluster::start(&options)).unwrap();
    let postgres = Postgres { cluster };
    counters(&postgres).await;
    postgres
}

/// Writes WAL until the server has given the slot up.
async fn lose_slot(postgres: &Postgres) {
    set_keep_size(postgres, "1MB").await;
    until("the server to give the slot up", || async {
        for _ in 0..4 {
            postgres.sql("CREATE TABLE junk (); DROP TABLE junk").await;
            postgres.admin_sql("SELECT pg_switch_wal()").await;
        }
        postgres.admin_sql("CHECKPOINT").await;
        let status =
            postgres.value(&format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{SLOT}'")).await;
        state(status == "lost" || status.is_empty(), status)
    })
    .await;
}

async fn set_keep_size(postgres: &Postgres, size: &str) {
    postgres.admin_sql(&format!("ALTER SYSTEM SET max_slot_wal_keep_size = '{size}'")).await;
    postgres.admin_sql("SELECT pg_reload_conf()").await;
    until("the setting to take effect", || async {
        let shown = postgres.value("SHOW max_slot_wal_keep_size").await;
        state(shown == size, shown)
    })
    .await;
}

async fn insert(postgres: &Postgres, first: i64, last: i64) {
    postgres.sql(&format!("INSERT INTO counters SELECT i, 0 FROM generate_series({first}, {last}) i")).await;
}

fn has(receiver: &Receiver, row: i64) -> bool {
    receiver.ledger(|ledger| ledger.has(&format!("counters/{row}"), 0))
}

/// A sink that can be held: its endpoint hangs while `hold` is up, so that the stream stands and the server gives up.
fn config(postgres: &Postgres, receiver: &Receiver, source_lines: &str) -> Config {
    Config::new(&(Config::source(postgres) + source_lines + "\n" + &Config::sink("orders", &receiver.url(), "")))
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_34_a_slot_that_was_given_up_stops_the_start_with_its_name_and_what_mends_it() {
    let postgres = impatient().await;
    let receiver = Receiver::start().await;
    let config = config(&postgres, &receiver, "");
    let daemon = Daemon::start(&config).await;
    insert(&postgres, 1, 10).await;
    receiver.wait_acknowledged(10).await;
    assert!(daemon.sigterm().await.success());
    lose_slot(&postgres).await;
    let mut daemon = Daemon::launch(&config).allow_error("slot");
    let status = daemon.wait_exit().await;
    let printed = daemon.printed();
    assert_eq!(status.code(), Some(69), "{printed}");
    for word in ["has given up the slot walhook_app", "wal_removed", "max_slot_wal_keep_size", "accept-gap"] {
        assert!(printed.contains(word), "{word:?} is not in\n{printed}");
    }
    let checked = walhook(&["check", "--config", &config.path().to_string_lossy()]);
    assert_eq!(checked.status.code(), Some(69));
    assert!(text_of(&checked).contains("has given up the slot walhook_app"), "{}", text_of(&checked));

    // Once a person has accepted the gap, what is lost is dropped and made anew.
    set_keep_size(&postgres, "-1").await;
    assert!(config.state_command(&["accept-gap"]).status.success());
    let daemon = Daemon::start(&config).await.allow_error("lost with the slot");
    insert(&postgres, 11, 11).await;
    receiver.wait("a row behind the gap", |receiver| has(receiver, 11)).await;
    assert!(daemon.sigterm().await.success());
}

/// A row that is written while there is no slot.
const MISSED: i64 = 1000;

/// The stream of a reader that is stopped stands still, and the server ends it when it gives the slot up.
async fn lose_slot_under(daemon: &Daemon, postgres: &Postgres) {
    daemon.signal(nix::sys::signal::Signal::SIGSTOP);
    lose_slot(postgres).await;
    set_keep_size(postgres, "-1").await;
    // Nobody keeps this for a reader.
    insert(postgres, MISSED, MISSED).await;
    daemon.signal(nix::sys::signal::Signal::SIGCONT);
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_34_a_slot_that_is_given_up_while_it_is_read_stops_the_source_and_says_so() {
    let postgres = impatient().await;
    let receiver = Receiver::start().await;
    let daemon = Daemon::start(&config(&postgres, &receiver, "")).await.allow_error("has given up the slot");
    insert(&postgres, 1, 10).await;
    receiver.wait_acknowledged(10).await;
    lose_slot_under(&daemon, &postgres).await;
    until("readyz to say that the slot is lost", || async {
        let said = troubles(&daemon.wait_not_ready().await);
        state(said.contains("has given up the slot walhook_app") && said.contains("recreate"), said)
    })
    .await;
    let metrics = daemon.metrics().await;
    assert!(metrics.sum("walhook_source_reconnects_total", &[("reason", "slot_lost")]).unwrap() >= 1.0);
    assert_eq!(metrics.sum("walhook_source_gaps_total", &[]), Some(0.0));
    insert(&postgres, 11, 11).await;
    assert!(!has(&receiver, 11), "it went on over a gap");
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_34_recreate_goes_on_behind_a_gap_that_is_marked_everywhere() {
    let postgres = impatient().await;
    let receiver = Receiver::start().await;
    let config = config(&postgres, &receiver, "on_slot_lost = \"recreate\"");
    let daemon = Daemon::start(&config).await.allow_error("lost with the slot");
    insert(&postgres, 1, 10).await;
    receiver.wait_acknowledged(10).await;
    // What was read before the gap and fails is delivered behind it.
    receiver.script(|_| Reply::status(500));
    insert(&postgres, 11, 20).await;
    let asked = receiver.request_count();
    receiver.wait("all of them to fail", |receiver| receiver.request_count() >= asked + 10).await;
    lose_slot_under(&daemon, &postgres).await;
    daemon.wait_logged("lost with the slot").await;
    daemon.wait_ready().await;
    receiver.script(|_| Reply::status(200));
    insert(&postgres, 21, 30).await;
    receiver.wait("rows of before and behind the gap", |receiver| (11..=30).all(|row| has(receiver, row))).await;
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert_eq!(ledger.repeats, 0, "what was delivered before came again");
    });

    let metrics = daemon.metrics().await;
    assert_eq!(metrics.sum("walhook_source_gaps_total", &[]), Some(1.0));
    assert!(metrics.sum("walhook_source_gap_bytes_total", &[]).unwrap() > 0.0);
    assert!(!has(&receiver, MISSED), "then there was no gap");
    let (code, body) = daemon.ready().await.unwrap();
    assert_eq!(code, 200);
    let said = troubles(&body);
    assert!(said.contains("were never read") && said.contains("\"error\""), "{said}");
    daemon.wait_logged("all that was read before the gap is resolved").await;
    assert!(daemon.sigterm().await.success());

    let shown = text_of(&config.state_command(&["show"]));
    assert!(shown.contains("gap") && shown.contains("wal_removed"), "{shown}");
    assert!(!shown.contains("a gap is accepted"), "{shown}");
    // The next start has nothing to accept.
    let daemon = Daemon::start(&config).await;
    insert(&postgres, 31, 31).await;
    receiver.wait("a row of the next life", |receiver| has(receiver, 31)).await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn recreate_at_a_start_delivers_what_the_store_holds_and_stops_after_three_times_in_an_hour() {
    let postgres = impatient().await;
    let receiver = Receiver::scripted(|_| Reply::status(500)).await;
    let config = config(&postgres, &receiver, "on_slot_lost = \"recreate\"");
    let drop_slot = format!("SELECT pg_drop_replication_slot('{SLOT}')");
    let daemon = Daemon::start(&config).await;
    insert(&postgres, 1, 5).await;
    receiver.wait("all of them to fail", |receiver| receiver.request_count() >= 5).await;
    assert!(daemon.sigterm().await.success());
    postgres.admin_sql(&drop_slot).await;
    receiver.script(|_| Reply::status(200));
    for life in 0..3 {
        insert(&postgres, 100 + life, 100 + life).await;
        let daemon = Daemon::start(&config).await.allow_error("lost with the slot");
        assert!(daemon.logged("lost with the slot"), "{}", daemon.printed());
        insert(&postgres, 200 + life, 200 + life).await;
        receiver.wait("a row behind the gap", |receiver| has(receiver, 200 + life)).await;
        receiver.wait("the rows of before", |receiver| (1..=5).all(|row| has(receiver, row))).await;
        assert!(!has(&receiver, 100 + life), "there was no slot");
        assert!(daemon.sigterm().await.success());
        postgres.admin_sql(&drop_slot).await;
    }
    let mut daemon = Daemon::launch(&config).allow_error("slot");
    let status = daemon.wait_exit().await;
    let printed = daemon.printed();
    assert_eq!(status.code(), Some(69), "{printed}");
    assert!(printed.contains("3 times within an hour"), "{printed}");
    assert_eq!(postgres.value("SELECT count(*) FROM pg_replication_slots").await, "0");
    let shown = text_of(&config.state_command(&["show", "--json"]));
    let gaps: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(gaps["sources"][0]["gaps"].as_array().map(Vec::len), Some(3), "{shown}");
    assert_eq!(gaps["sources"][0]["gaps"][0]["why"], "dropped", "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_35_an_idle_timeout_is_warned_of_and_named_when_it_cost_the_slot() {
    let postgres = Postgres::start();
    if postgres.major().await < 18 {
        println!("skipped: idle_replication_slot_timeout needs Postgres 18; WALHOOK_PG_BIN chooses another server");
        return;
    }
    counters(&postgres).await;
    postgres.admin_sql("ALTER SYSTEM SET idle_replication_slot_timeout = '1s'").await;
    postgres.admin_sql("SELECT pg_reload_conf()").await;
    let receiver = Receiver::start().await;
    let config = config(&postgres, &receiver, "");
    let daemon = Daemon::start(&config).await;
    let checked = text_of(&walhook(&["check", "--config", &config.path().to_string_lossy()]));
    assert!(checked.contains("idle_replication_slot_timeout is 1s"), "{checked}");
    let said = troubles(&daemon.ready().await.unwrap().1);
    assert!(said.contains("idle_replication_slot_timeout is 1 s"), "{said}");
    assert!(daemon.sigterm().await.success());
    until("the server to give the slot up", || async {
        postgres.admin_sql("CHECKPOINT").await;
        let why = postgres.value("SELECT invalidation_reason FROM pg_replication_slots").await;
        state(why == "idle_timeout", why)
    })
    .await;
    let mut daemon = Daemon::launch(&config).allow_error("slot");
    assert_eq!(daemon.wait_exit().await.code(), Some(69));
    assert!(daemon.printed().contains("idle_timeout"), "{}", daemon.printed());
}

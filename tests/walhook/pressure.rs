//! P4 and P6: what an endpoint owes and gets is bounded, and so is memory.

use std::time::Duration;

use crate::daemon::{Config, Daemon};
use crate::order::{assert_complete, count_up, counters};
use crate::postgres::{Postgres, state, until, until_within};
use crate::receiver::{Keep, Receiver, Reply, row_of};

/// Peak resident memory that the contract allows in a huge transaction, KiB.
pub(crate) const PEAK_KIB: u64 = 150 * 1024;

/// Full sizes by WALHOOK_TEST_FULL=1.
pub(crate) fn full() -> bool {
    std::env::var("WALHOOK_TEST_FULL").is_ok_and(|value| value == "1")
}

/// Waits until these metrics have reached these values.
async fn wait_metrics(daemon: &Daemon, expected: &[(&str, f64)]) {
    until(&format!("{:?}", expected.iter().map(|(name, _)| name).collect::<Vec<_>>()), || async {
        let metrics = daemon.metrics().await;
        let holds = expected.iter().all(|(name, least)| metrics.sum(name, &[]) >= Some(*least));
        state(holds, metrics)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_never_answers_gets_no_more_than_max_in_flight() {
    let postgres = Postgres::start();
    let client = counters(&postgres).await;
    let receiver = Receiver::scripted(|_| Reply::Never).await;
    let sink = "max_in_flight = 5\nmax_ack_pending = 1000\nrequest_timeout = \"2s\"";
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), sink)).await;

    count_up(&client, 200, 1).await;
    receiver.wait("requests to time out and come again", |receiver| receiver.request_count() >= 15).await;
    receiver.ledger(|ledger| {
        assert_eq!(ledger.concurrent_max, 5, "requests at one time");
        ledger.assert_clean();
    });
    daemon.wait_logged("timeout").await;

    receiver.script(|_| Reply::status(200));
    receiver.wait_acknowledged(400).await;
    assert_complete(&receiver, 200, 1);
    receiver.ledger(|ledger| ledger.assert_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_never_answers_gets_no_more_than_max_ack_pending() {
    let postgres = Postgres::start();
    let client = counters(&postgres).await;
    let receiver = Receiver::scripted(|_| Reply::Never).await;
    // Five requests could hold forty messages.
    let sink = "max_in_flight = 5\nbatch_size = 8\nmax_ack_pending = 20\nrequest_timeout = \"2s\"";
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), sink)).await;

    count_up(&client, 200, 1).await;
    let full = [("walhook_sink_ack_pending_messages", 20.0), ("walhook_sink_received_messages_total", 400.0)];
    wait_metrics(&daemon, &full).await;
    receiver.wait("requests to time out and come again", |receiver| receiver.request_count() >= 9).await;
    receiver.ledger(|ledger| {
        assert_eq!(ledger.unacknowledged_max, 20, "unacknowledged messages");
        ledger.assert_clean();
    });

    receiver.script(|_| Reply::status(200));
    receiver.wait_acknowledged(400).await;
    assert_complete(&receiver, 200, 1);
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert!(ledger.unacknowledged_max <= 20, "{} messages were unacknowledged", ledger.unacknowledged_max);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn distinct_unacknowledged_messages_never_pass_max_ack_pending() {
    let postgres = Postgres::start();
    let client = counters(&postgres).await;
    let receiver = Receiver::scripted(|_| Reply::status(500)).await;
    let sink = "max_in_flight = 64\nmax_ack_pending = 20\nbatch_size = 3";
    let _daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), sink)).await;

    count_up(&client, 300, 2).await;
    let is_used = |receiver: &Receiver| receiver.ledger(|ledger| ledger.unacknowledged_max >= 18);
    receiver
        .wait("many failures, and the limit used", |receiver| receiver.request_count() >= 60 && is_used(receiver))
        .await;
    receiver.ledger(|ledger| {
        assert!(ledger.unacknowledged_max <= 20, "{} messages were unacknowledged", ledger.unacknowledged_max);
        ledger.assert_clean();
    });

    receiver.script(|_| Reply::status(200));
    receiver.wait_acknowledged(900).await;
    assert_complete(&receiver, 300, 2);
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert!(ledger.unacknowledged_max <= 20);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_52_a_huge_transaction_is_delivered_in_flat_memory() {
    let rows: u64 = if full() { 1_000_000 } else { 200_000 };
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE big (id int PRIMARY KEY, body text)").await;
    let receiver = Receiver::with(Keep::Counts, |_| Reply::status(200), row_of).await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "batch_size = 100")).await;

    postgres.sql(&format!("INSERT INTO big SELECT i, repeat('x', 200) FROM generate_series(1, {rows}) i")).await;
    until_within(Duration::from_secs(400), "all rows to arrive", || async {
        state(receiver.message_count() >= rows, receiver.message_count())
    })
    .await;
    assert_eq!(receiver.message_count(), rows, "nothing is sent twice");
    assert!(receiver.request_count() < rows / 20, "batches should fill: {} requests", receiver.request_count());
    let peak = daemon.peak_kib();
    println!("peak {peak} KiB for {rows} rows");
    assert!(peak <= PEAK_KIB, "{peak} KiB resident at the peak");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_endpoint_under_a_flood_is_borne_in_flat_memory_by_the_store() {
    let (postgres, daemon, receiver) = flooded("store").await;
    // The store takes what memory does not hold, and the slot follows.
    until("the slot to follow", || async {
        let lag = postgres.lag_bytes("walhook_app").await;
        state(lag.is_some_and(|lag| lag < 1_000_000), lag)
    })
    .await;
    drained(&postgres, &daemon, &receiver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_endpoint_under_a_flood_is_borne_in_flat_memory_by_the_wal() {
    let (postgres, daemon, receiver) = flooded("wal").await;
    // Memory is full and reading is held; from here on only attempts go on.
    wait_metrics(&daemon, &[("walhook_source_held", 1.0)]).await;
    drained(&postgres, &daemon, &receiver).await;
}

/// About 100 MB of row values, three times the memory limit, for an endpoint that fails.
async fn flooded(hold: &str) -> (Postgres, Daemon, Receiver) {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE big (id int PRIMARY KEY, body text)").await;
    let receiver = Receiver::with(Keep::Counts, |_| Reply::status(500), row_of).await;
    let text = Config::source(&postgres)
        + "[limits]\nmemory_limit = \"32MiB\"\n"
        + &format!("[state]\nhold = \"{hold}\"\n")
        + &Config::sink("orders", &receiver.url(), "batch_size = 100");
    let daemon = Daemon::start(&Config::new(&text)).await;
    postgres.sql("INSERT INTO big SELECT i, repeat(md5(i::text), 64) FROM generate_series(1, 50000) i").await;
    (postgres, daemon, receiver)
}

/// The endpoint is tried on, and after it has come back everything arrives.
async fn drained(postgres: &Postgres, daemon: &Daemon, receiver: &Receiver) {
    let tried = receiver.request_count();
    receiver.wait("further attempts", |receiver| receiver.request_count() >= tried + 20).await;
    let peak = daemon.peak_kib();
    println!("peak {peak} KiB");
    assert!(peak <= PEAK_KIB, "{peak} KiB resident at the peak");
    // Statuses go on while reading is paused: the same session still holds the slot.
    assert!(postgres.reader("walhook_app").await.is_some(), "the session was lost");

    let tried = receiver.message_count();
    receiver.script(|_| Reply::status(200));
    receiver.wait("everything to arrive", |receiver| receiver.message_count() >= tried + 50_000).await;
    assert!(daemon.peak_kib() <= PEAK_KIB, "{} KiB resident while draining", daemon.peak_kib());
}

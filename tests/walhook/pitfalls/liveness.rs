//! Staying connected, and noticing when one is not.

use std::time::Duration;

use super::SLOT;
use super::relay::Relay;
use crate::daemon::{Config, Daemon, quick_retry, troubles};
use crate::order::counters;
use crate::postgres::{Postgres, state, until, until_within};
use crate::receiver::{Keep, Receiver, Reply, row_of};

/// A source whose address sets `wal_sender_timeout`.
fn impatient(source: &str, timeout: &str) -> String {
    source.replace("/postgres\"", &format!("/postgres?options=-c%20wal_sender_timeout%3D{timeout}\""))
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_29_a_reader_that_is_held_is_not_hung_up_on() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::with(Keep::Ledger, |_| Reply::Never, row_of).await;
    let text = impatient(&Config::source(&postgres), "1s")
        + "[state]\nhold = \"wal\"\n"
        + &Config::sink("orders", &receiver.url(), "max_ack_pending = 10\nrequest_timeout = \"15m\"\nbatch_size = 100");
    let daemon = Daemon::start(&Config::new(&text)).await;
    // More than the sockets between server and daemon hold.
    postgres.sql("INSERT INTO counters SELECT i, 0, repeat('x', 2000) FROM generate_series(1, 20000) i").await;
    let reader = postgres.reader(SLOT).await.expect("the slot is read");
    until("reading to be held for four times as long as the server waits", || async {
        assert_eq!(postgres.reader(SLOT).await, Some(reader), "the server hung up");
        let (_, body) = daemon.ready().await.unwrap();
        let since =
            format!("SELECT clock_timestamp() - backend_start > '6 s' FROM pg_stat_activity WHERE pid = {reader}");
        state(troubles(&body).contains("reading is held") && postgres.admin_value(&since).await == "t", body)
    })
    .await;
    receiver.script(|_| Reply::status(200));
    drop(daemon);
    receiver.abandoned().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_30_an_idle_database_beside_a_busy_neighbour_lets_the_slot_move() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    postgres.database("neighbour", "").await;
    let receiver = Receiver::start().await;
    // Without heartbeats: only what the server says of itself moves the slot.
    let text = Config::source(&postgres).replace("heartbeat = \"1s\"", "heartbeat = \"0s\"")
        + &Config::sink("orders", &receiver.url(), "");
    let daemon = Daemon::start(&Config::new(&text)).await;
    let neighbour = postgres.client_of("neighbour").await;
    neighbour.batch_execute("CREATE TABLE busy (body text)").await.unwrap();
    for _ in 0..3 {
        let write = "INSERT INTO busy SELECT repeat('x', 1000) FROM generate_series(1, 20000)";
        neighbour.batch_execute(write).await.unwrap();
        let end = postgres.value("SELECT pg_current_wal_lsn()").await;
        until("the slot to pass the neighbour's WAL", || async {
            let sql = format!("SELECT confirmed_flush_lsn >= '{end}', confirmed_flush_lsn FROM pg_replication_slots");
            let rows = postgres.rows(&sql).await;
            state(rows[0][0].as_deref() == Some("t"), rows)
        })
        .await;
    }
    assert_eq!(receiver.request_count(), 0);
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait_acknowledged(1).await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_31_a_connection_that_is_dead_without_a_sign_is_given_up() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let relay = Relay::to(&postgres).await;
    let receiver = Receiver::start().await;
    // The server's end of the dead connection must go before ours, or the slot would stay taken.
    let text = relay.source(&postgres, "?options=-c%20wal_sender_timeout%3D5s")
        + &Config::sink("orders", &receiver.url(), &quick_retry("orders"));
    let daemon = Daemon::start(&Config::new(&text)).await;
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait_acknowledged(1).await;

    relay.swallow();
    postgres.sql("INSERT INTO counters VALUES (2, 0)").await;
    until_within(Duration::from_secs(120), "the change to come over another connection", || async {
        state(receiver.ledger(|ledger| ledger.has("counters/2", 0)), daemon.ready().await)
    })
    .await;
    daemon.wait_ready().await;
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert_eq!(ledger.repeats, 0);
    });
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_22_frames_that_are_no_copy_data_inside_the_stream_disturb_nothing() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let relay = Relay::to(&postgres).await;
    let receiver = Receiver::start().await;
    let text = relay.source(&postgres, "") + &Config::sink("orders", &receiver.url(), "");
    let daemon = Daemon::start(&Config::new(&text)).await;
    let reader = postgres.reader(SLOT).await;
    for row in 1..=3 {
        relay.add_frames();
        postgres.sql(&format!("INSERT INTO counters VALUES ({row}, 0)")).await;
        receiver.wait_acknowledged(row).await;
        until("the frames to be sent", || async { state(relay.has_added(), ()) }).await;
    }
    assert!(daemon.logged("the relay says hello"), "a notice of the server is not passed on to the log");
    assert_eq!(postgres.reader(SLOT).await, reader, "the session should go on");
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_36_a_failing_endpoint_does_not_keep_the_catalogues_from_vacuum() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::scripted(|_| Reply::status(500)).await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait("failures", |receiver| receiver.request_count() >= 3).await;
    postgres.sql("DO $$ BEGIN FOR i IN 1..1000 LOOP CREATE TABLE passing (i int); DROP TABLE passing; COMMIT; END LOOP; END $$").await;
    let last: u64 = postgres.value("SELECT txid_current()").await.parse().unwrap();
    until("the slot to let go of the catalogues' rows", || async {
        // What the slot needs moves on with the records of running transactions, of which a checkpoint writes one.
        postgres.admin_sql("CHECKPOINT").await;
        let oldest = postgres.value("SELECT catalog_xmin FROM pg_replication_slots").await;
        state(oldest.parse::<u64>().unwrap() >= last, (oldest, last))
    })
    .await;
    until("the metric to say so", || async {
        let age = daemon.metrics().await.sum("walhook_source_slot_catalog_age_transactions", &[("source", "app")]);
        state(age.is_some_and(|age| age < 100.0), age)
    })
    .await;
    assert!(daemon.sigterm().await.success());
}

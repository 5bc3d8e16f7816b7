//! Where the stream goes on, and what is confirmed.

use std::time::Duration;

use super::SLOT;
use crate::daemon::{Config, Daemon};
use crate::order::counters;
use crate::outage::wait_confirmed;
use crate::postgres::Postgres;
use crate::receiver::{Receiver, Reply};

/// How many messages the slot would send if it were read from where it stands.
async fn waiting(postgres: &Postgres) -> String {
    let peek = format!(
        "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('{SLOT}', NULL, NULL,
            'proto_version', '1', 'publication_names', '{SLOT}') WHERE get_byte(data, 0) = ascii('I')"
    );
    postgres.admin_value(&peek).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_16_the_end_of_the_last_transaction_is_confirmed_not_its_commit() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::start().await;
    // Without heartbeats nothing follows the last transaction that would hide what was confirmed of it.
    let text = Config::source(&postgres).replace("heartbeat = \"1s\"", "heartbeat = \"0s\"")
        + &Config::sink("orders", &receiver.url(), "");
    let config = Config::new(&text);
    for row in 1..=3_usize {
        let daemon = Daemon::start(&config).await;
        postgres.sql(&format!("INSERT INTO counters VALUES ({row}, 0)")).await;
        receiver.wait_acknowledged(row).await;
        assert!(daemon.sigterm().await.success());
        assert_eq!(waiting(&postgres).await, "0", "the slot would send the last transaction again");
        // Nor is a transaction repeated that only the slot knows of.
        config.remove_state();
    }
    assert_eq!(receiver.message_count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_17_a_slot_that_went_back_in_a_crash_of_the_server_repeats_nothing() {
    let postgres = Postgres::with(&[("checkpoint_timeout", "1h")]);
    counters(&postgres).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "batch_size = 10");
    let daemon = Daemon::start(&config).await;
    postgres.admin_sql("CHECKPOINT").await;
    for row in 1..=50 {
        postgres.sql(&format!("INSERT INTO counters VALUES ({row}, 0)")).await;
    }
    receiver.wait_acknowledged(50).await;
    let end = postgres.value("SELECT pg_current_wal_lsn()").await;
    wait_confirmed(&postgres, &end, Duration::from_secs(30)).await;
    assert!(daemon.sigterm().await.success());
    receiver.ledger(|ledger| ledger.new_run());

    postgres.cluster.stop("immediate").unwrap();
    postgres.cluster.resume().unwrap();
    let went_back = format!("SELECT confirmed_flush_lsn < '{end}' FROM pg_replication_slots");
    assert_eq!(postgres.value(&went_back).await, "t", "this test is about a slot whose position was not saved");
    let sent_again: usize = waiting(&postgres).await.parse().unwrap();
    assert!(sent_again > 0, "and whose changes would come again");
    let daemon = Daemon::start(&config).await;
    postgres.sql("INSERT INTO counters VALUES (51, 0)").await;
    receiver.wait_acknowledged(51).await;
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert_eq!(ledger.repeats, 0);
    });
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_18_a_slot_that_was_advanced_past_unread_changes_is_a_gap_and_refused() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let daemon = Daemon::start(&config).await;
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait_acknowledged(1).await;
    assert!(daemon.sigterm().await.success());
    postgres.sql("INSERT INTO counters VALUES (2, 0)").await;
    let end = postgres
        .admin_value(&format!("SELECT end_lsn FROM pg_replication_slot_advance('{SLOT}', pg_current_wal_lsn())"))
        .await;

    let mut refused = Daemon::launch(&config).allow_error("");
    assert_eq!(refused.wait_exit().await.code(), Some(69), "{}", refused.printed());
    let printed = refused.printed();
    assert!(printed.contains(&end) && printed.contains("accept-gap"), "neither the gap nor what to do: {printed}");
    assert_eq!(receiver.message_count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_20_keys_are_the_same_when_a_slot_is_read_anew_without_a_store() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::scripted(|_| Reply::status(500)).await;
    let text = Config::source(&postgres) + "[state]\nhold = \"wal\"\n" + &Config::sink("orders", &receiver.url(), "");
    let config = Config::new(&text);
    let mut keys = Vec::new();
    for _ in 0..2 {
        let daemon = Daemon::start(&config).await;
        if keys.is_empty() {
            postgres.sql("BEGIN; INSERT INTO counters VALUES (1, 0), (2, 0), (3, 0); COMMIT").await;
        }
        let before = receiver.messages().len();
        let came = |receiver: &Receiver| {
            let messages = receiver.messages().split_off(before);
            let one = |id: i64| {
                let message = messages.iter().find(|message| message["record"]["id"] == id)?;
                Some(message["metadata"]["idempotency_key"].clone())
            };
            (1..=3).map(one).collect::<Option<Vec<_>>>()
        };
        receiver.wait("all three", |receiver| came(receiver).is_some()).await;
        keys.push(came(&receiver).unwrap());
        daemon.kill9();
        config.remove_state();
        receiver.abandoned().await;
    }
    assert_eq!(keys[0], keys[1]);
    assert!(keys[0][0] != keys[0][1] && keys[0][1] != keys[0][2] && keys[0][0] != keys[0][2], "{keys:?}");
}

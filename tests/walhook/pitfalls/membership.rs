//! What is in the publication, since when, and what else is in the stream.

use std::time::Duration;

use super::{SLOT, make_slot, managed_config};
use crate::daemon::{Config, Daemon, troubles};
use crate::order::counters;
use crate::postgres::{Postgres, state, until, until_within};
use crate::receiver::Receiver;

/// Waits until `/readyz` names a trouble with these words.
async fn wait_trouble(daemon: &Daemon, words: &[&str]) {
    until(&format!("a trouble with {words:?}"), || async {
        let seen = daemon.ready().await;
        let text = seen.as_ref().map(|(_, body)| troubles(body)).unwrap_or_default();
        state(words.iter().all(|word| text.contains(word)), seen)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_23_a_publication_younger_than_the_slot_stops_the_source_and_says_so() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    make_slot(&postgres).await;
    // Postgres looks the publication up as it was when this was written.
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    postgres.sql(&format!("CREATE PUBLICATION {SLOT} FOR TABLE counters")).await;
    let receiver = Receiver::start().await;
    let daemon = Daemon::launch(&managed_config(&postgres, &receiver, "")).allow_error("until a person acts");
    wait_trouble(&daemon, &["the publication is gone or was made anew after the slot", "accept-gap"]).await;
    assert_eq!(daemon.ready().await.unwrap().0, 503);
    assert_eq!(receiver.request_count(), 0);
    let confirmed = "SELECT confirmed_flush_lsn < pg_current_wal_lsn() FROM pg_replication_slots";
    assert_eq!(postgres.value(confirmed).await, "t", "what could not be read must not be confirmed");
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_24_a_publication_that_is_dropped_in_mid_stream_stops_the_source_and_says_so() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::start().await;
    let daemon =
        Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await.allow_error("until a person acts");
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait_acknowledged(1).await;
    postgres.admin_sql(&format!("DROP PUBLICATION {SLOT}")).await;
    postgres.sql("INSERT INTO counters VALUES (2, 0)").await;
    wait_trouble(&daemon, &["publication", "accept-gap"]).await;
    assert_eq!(daemon.ready().await.unwrap().0, 503);
    assert_eq!(
        postgres.value("SELECT count(*) FROM pg_publication").await,
        "0",
        "one made in silence would hide a gap"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_24_a_table_taken_out_of_the_publication_is_put_back_and_its_gap_is_said() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    postgres.sql("CREATE TABLE other (id int PRIMARY KEY, n bigint)").await;
    let receiver = Receiver::start().await;
    let lines = "tables = [\"public.counters\", \"public.other\"]";
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), lines)).await;
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait_acknowledged(1).await;

    postgres.admin_sql(&format!("ALTER PUBLICATION {SLOT} DROP TABLE counters")).await;
    postgres.sql("INSERT INTO counters VALUES (2, 0); INSERT INTO other VALUES (1, 0)").await;
    receiver.wait_acknowledged(2).await;
    until_within(Duration::from_secs(90), "the table to be published again", || async {
        let count = "SELECT count(*) FROM pg_publication_rel WHERE prrelid = 'counters'::regclass";
        let count = postgres.value(count).await;
        state(count == "1", count)
    })
    .await;
    wait_trouble(&daemon, &["public.counters", "were not captured"]).await;
    postgres.sql("INSERT INTO counters VALUES (3, 0)").await;
    receiver.wait_acknowledged(3).await;
    receiver.ledger(|ledger| assert!(ledger.has("counters/3", 0) && !ledger.came("counters/2", 0)));
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_28_changes_that_came_from_another_server_are_sent_like_others() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let client = postgres.admin_client().await;
    let receiver = Receiver::start().await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;
    let replicated = "SELECT pg_replication_origin_create('elsewhere');
        SELECT pg_replication_origin_session_setup('elsewhere');
        BEGIN; SELECT pg_replication_origin_xact_setup('0/1234', now()); INSERT INTO counters VALUES (1, 0); COMMIT;
        SELECT pg_replication_origin_session_reset(); INSERT INTO counters VALUES (2, 0)";
    client.batch_execute("SELECT 1").await.unwrap();
    for statement in replicated.split(';') {
        client.batch_execute(statement).await.unwrap();
    }
    receiver.wait_acknowledged(2).await;
    receiver.ledger(|ledger| assert!(ledger.has("counters/1", 0) && ledger.has("counters/2", 0)));
    assert!(daemon.sigterm().await.success());
}

//! Partitioned tables: one table to a receiver, whatever becomes of its partitions.

use std::time::Duration;

use serde_json::json;

use super::copy::wait_same;
use super::{SLOT, make_slot, managed_config};
use crate::daemon::{Config, Daemon};
use crate::outage::wait_confirmed;
use crate::postgres::{Postgres, state, until};
use crate::receiver::Receiver;

const MEASURES: &str =
    "CREATE TABLE measures (id int, day date, n int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE TABLE measures_2024 PARTITION OF measures FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
    CREATE TABLE measures_2025 PARTITION OF measures FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')";
const KEY: [&str; 2] = ["id", "day"];

async fn daemon(postgres: &Postgres, receiver: &Receiver, lines: &str) -> Daemon {
    let lines = format!("tables = [\"public.measures\"]\n{lines}");
    Daemon::start(&Config::one_sink(postgres, &receiver.url(), &lines)).await
}

/// Postgres 14 decides once a session whether and as what a table is published: there, a new session has to follow.
async fn new_session_on_14(postgres: &Postgres) {
    if postgres.major().await > 14 {
        return;
    }
    // One that reads older changes of the table again decides by these.
    let end = postgres.value("SELECT pg_current_wal_lsn()").await;
    wait_confirmed(postgres, &end, Duration::from_secs(30)).await;
    let before = postgres.reader(SLOT).await;
    postgres.admin_sql(&format!("SELECT pg_terminate_backend({})", before.unwrap())).await;
    until("another session", || async {
        let reader = postgres.reader(SLOT).await;
        state(reader.is_some() && reader != before, reader)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_08_an_update_across_partitions_is_a_delete_and_an_insert_of_one_transaction() {
    let postgres = Postgres::start();
    postgres.sql(MEASURES).await;
    let receiver = Receiver::start().await;
    let daemon = daemon(&postgres, &receiver, "group_by = \"table\"").await;
    postgres.sql("INSERT INTO measures VALUES (1, '2024-05-05', 1)").await;
    postgres.sql("UPDATE measures SET day = '2025-05-05', n = 2").await;
    let messages = receiver.wait_messages(3).await;
    let seen: Vec<_> = messages
        .iter()
        .map(|message| json!([message["action"], message["record"], message["metadata"]["table_name"]]))
        .collect();
    let expected = json!([
        ["insert", {"id": 1, "day": "2024-05-05", "n": 1}, "measures"],
        ["delete", {"id": 1, "day": "2024-05-05"}, "measures"],
        ["insert", {"id": 1, "day": "2025-05-05", "n": 2}, "measures"],
    ]);
    assert_eq!(json!(seen), expected);
    let place = |index: usize| (&messages[index]["metadata"]["commit_lsn"], &messages[index]["metadata"]["commit_idx"]);
    assert_eq!((place(1).0, place(1).1, place(2).1), (place(2).0, &json!(1), &json!(2)));
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_08_partitions_that_are_attached_and_detached_come_and_go_under_the_root() {
    let postgres = Postgres::start();
    postgres.sql(MEASURES).await;
    let receiver = Receiver::start().await;
    let daemon = daemon(&postgres, &receiver, "").await;
    postgres.sql("INSERT INTO measures VALUES (1, '2024-05-05', 1), (2, '2025-05-05', 1)").await;

    // What is in a table before it is attached is nobody's change; what happens to it afterwards is the root's.
    postgres.sql("CREATE TABLE late (LIKE measures INCLUDING ALL); INSERT INTO late VALUES (3, '2026-05-05', 0)").await;
    postgres.sql("ALTER TABLE measures ATTACH PARTITION late FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')").await;
    new_session_on_14(&postgres).await;
    postgres.sql("UPDATE measures SET n = n + 1").await;
    postgres.sql("INSERT INTO measures VALUES (4, '2026-06-06', 1)").await;
    wait_same(&postgres, &receiver, ("public", "measures"), &KEY).await;

    postgres.sql("ALTER TABLE measures DETACH PARTITION measures_2024").await;
    new_session_on_14(&postgres).await;
    let before = receiver.message_count();
    postgres.sql("UPDATE measures_2024 SET n = 100").await;
    postgres.sql("UPDATE measures SET n = n + 1").await;
    let count = usize::try_from(before).unwrap() + 3;
    receiver.wait_acknowledged(count).await;
    let messages = receiver.messages();
    assert!(messages.iter().all(|message| message["metadata"]["table_name"] == "measures"), "{messages:?}");
    assert!(messages.iter().all(|message| message["record"]["n"] != 100), "a detached table is another table");

    postgres
        .sql("ALTER TABLE measures ATTACH PARTITION measures_2024 FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')")
        .await;
    new_session_on_14(&postgres).await;
    postgres.sql("UPDATE measures SET n = n + 1").await;
    wait_same(&postgres, &receiver, ("public", "measures"), &KEY).await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_08_a_partition_of_another_shape_has_the_roots_columns() {
    let postgres = Postgres::start();
    postgres.sql(MEASURES).await;
    let receiver = Receiver::start().await;
    let daemon = daemon(&postgres, &receiver, "").await;
    // Its columns stand in another order, and one is gone.
    let odd = "CREATE TABLE odd (gone text, n int, day date NOT NULL, id int NOT NULL, PRIMARY KEY (id, day));
        ALTER TABLE odd DROP COLUMN gone;
        ALTER TABLE measures ATTACH PARTITION odd FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')";
    postgres.sql(odd).await;
    postgres.sql("INSERT INTO measures VALUES (1, '2024-05-05', 1), (2, '2026-05-05', 2)").await;
    postgres.sql("UPDATE measures SET day = '2026-07-07' WHERE id = 1").await;
    postgres.sql("UPDATE measures SET n = n + 1").await;
    postgres.sql("DELETE FROM measures WHERE id = 2").await;
    wait_same(&postgres, &receiver, ("public", "measures"), &KEY).await;
    receiver.wait_acknowledged(7).await;
    let messages = receiver.messages();
    assert!(messages.iter().all(|message| message["metadata"]["table_name"] == "measures"), "{messages:?}");
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_08_a_managed_publication_that_sends_partitions_by_their_own_names_is_refused() {
    let postgres = Postgres::start();
    postgres.sql(MEASURES).await;
    postgres.sql(&format!("CREATE PUBLICATION {SLOT} FOR TABLE measures")).await;
    make_slot(&postgres).await;
    let receiver = Receiver::start().await;
    let config = managed_config(&postgres, &receiver, "tables = [\"public.measures\"]");
    let mut refused = Daemon::launch(&config).allow_error("");
    assert_eq!(refused.wait_exit().await.code(), Some(69), "{}", refused.printed());
    let mend = "SET (publish_via_partition_root = true)";
    assert!(refused.printed().contains(mend), "{}", refused.printed());

    postgres.sql(&format!("ALTER PUBLICATION {SLOT} SET (publish_via_partition_root = true)")).await;
    let daemon = Daemon::start(&config).await;
    postgres.sql("INSERT INTO measures VALUES (1, '2024-05-05', 1)").await;
    receiver.wait_within(Duration::from_secs(60), "the row", |receiver| receiver.message_count() == 1).await;
    assert_eq!(receiver.messages()[0]["metadata"]["table_name"], "measures");
    assert!(daemon.sigterm().await.success());
}

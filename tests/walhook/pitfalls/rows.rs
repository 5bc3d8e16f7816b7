//! Row images: what a message has when Postgres sends only part of a row.

use serde_json::{Value, json};

use super::{managed, skipped};
use crate::message::captured;
use crate::postgres::Postgres;
use crate::receiver::Receiver;

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_02_a_value_that_was_not_sent_inside_an_insert_is_named() {
    let postgres = Postgres::start();
    if postgres.major().await < 15 {
        return skipped("row filters came with Postgres 15");
    }
    // The identity has the filter's column, so that an update into the filter is published as an insert.
    let setup = "CREATE TABLE docs (id int, open bool, title text, body text, PRIMARY KEY (id, open));
        ALTER TABLE docs ALTER body SET STORAGE EXTERNAL;
        INSERT INTO docs VALUES (1, false, 'a', repeat('x', 10000))";
    postgres.sql(setup).await;
    let receiver = Receiver::start().await;
    let daemon = managed(&postgres, &receiver, "FOR TABLE docs WHERE (open)", "group_by = \"table\"").await;
    postgres.sql("UPDATE docs SET open = true").await;
    postgres.sql("UPDATE docs SET title = 'b', body = 'short'").await;
    let messages = receiver.wait_messages(2).await;
    let seen = |index: usize| (&messages[index]["action"], &messages[index]["record"], &messages[index]["changes"]);
    assert_eq!(seen(0), (&json!("insert"), &json!({"id": 1, "open": true, "title": "a"}), &Value::Null));
    assert_eq!(messages[0]["metadata"]["unchanged"], json!(["body"]));
    let whole = json!({"id": 1, "open": true, "title": "b", "body": "short"});
    assert_eq!(seen(1), (&json!("update"), &whole, &Value::Null));
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_06_stored_generated_columns_come_from_18_on_and_virtual_ones_never() {
    let postgres = Postgres::start();
    let major = postgres.major().await;
    let computed = if major >= 18 { ", once int GENERATED ALWAYS AS (n * 3) VIRTUAL" } else { "" };
    let setup =
        format!("CREATE TABLE t (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED{computed})");
    drop(postgres);
    let changes = ["INSERT INTO t (id, n) VALUES (1, 1)", "UPDATE t SET n = 5", "DELETE FROM t"];
    let (_, messages, _) = captured(&setup, "", &changes, 3).await;
    let expected = match major {
        18.. => [json!({"id": 1, "n": 1, "twice": 2}), json!({"id": 1, "n": 5, "twice": 10}), json!({"id": 1})],
        _ => [json!({"id": 1, "n": 1}), json!({"id": 1, "n": 5}), json!({"id": 1})],
    };
    let records: Vec<&Value> = messages.iter().map(|message| &message["record"]).collect();
    assert_eq!(records, expected.iter().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_06_a_full_identity_over_a_stored_generated_column_breaks_no_update() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);
        ALTER TABLE t REPLICA IDENTITY FULL";
    let changes = ["INSERT INTO t (id, n) VALUES (1, 1)", "UPDATE t SET n = 5", "DELETE FROM t"];
    let (postgres, messages, _) = captured(setup, "", &changes, 3).await;
    let expected = match postgres.major().await {
        18.. => (json!({"n": 1, "twice": 2}), json!({"id": 1, "n": 5, "twice": 10})),
        _ => (json!({"n": 1}), json!({"id": 1, "n": 5})),
    };
    assert_eq!((&messages[1]["changes"], &messages[2]["record"]), (&expected.0, &expected.1));
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_07_a_row_filter_and_a_column_list_pass_what_they_say() {
    let postgres = Postgres::start();
    if postgres.major().await < 15 {
        return skipped("row filters and column lists came with Postgres 15");
    }
    postgres.sql("CREATE TABLE orders (id int PRIMARY KEY, status text, secret text)").await;
    postgres.sql("CREATE VIEW visible AS SELECT id, status FROM orders WHERE id > 100").await;
    let receiver = Receiver::start().await;
    let daemon =
        managed(&postgres, &receiver, "FOR TABLE orders (id, status) WHERE (id > 100)", "group_by = \"table\"").await;
    let (_, body) = daemon.ready().await.unwrap();
    assert!(body.to_string().contains("only some rows or columns"), "the operator is not told: {body}");

    for change in [
        "INSERT INTO orders VALUES (5, 'hidden', 'x'), (105, 'shown', 'x')",
        "UPDATE orders SET status = 'seen' WHERE id = 105",
        "UPDATE orders SET id = 6 WHERE id = 105",
        "UPDATE orders SET id = 107 WHERE id = 5",
        "UPDATE orders SET secret = 'y' WHERE id = 107",
        "UPDATE orders SET id = 108 WHERE id = 107",
    ] {
        postgres.sql(change).await;
    }
    let messages = receiver.wait_messages(6).await;
    let seen: Vec<_> = messages.iter().map(|message| json!([message["action"], message["record"]])).collect();
    let expected = json!([
        ["insert", {"id": 105, "status": "shown"}],
        ["update", {"id": 105, "status": "seen"}],
        // Out of the filter, and into it.
        ["delete", {"id": 105}],
        ["insert", {"id": 107, "status": "hidden"}],
        ["update", {"id": 107, "status": "hidden"}],
        ["update", {"id": 108, "status": "hidden"}],
    ]);
    assert_eq!(json!(seen), expected);
    assert!(messages.iter().all(|message| !message.to_string().contains("secret")), "{messages:?}");
}

//! The shape that a row had when it was written, whatever the catalogue says by the time it is read.

use serde_json::{Value, json};

use crate::daemon::{Config, Daemon};
use crate::message::captured;
use crate::postgres::Postgres;
use crate::receiver::Receiver;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, a text)";

fn records(messages: &[Value]) -> Vec<Value> {
    messages.iter().map(|message| message["record"].clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_25_each_row_has_the_columns_of_its_time() {
    let changes = [
        "INSERT INTO t VALUES (1, 'x')",
        "ALTER TABLE t ADD COLUMN b int NOT NULL DEFAULT 7",
        "UPDATE t SET a = 'y'",
        "ALTER TABLE t RENAME COLUMN a TO \"A b\"",
        "UPDATE t SET b = 8",
        "ALTER TABLE t ALTER COLUMN b TYPE numeric(10, 2)",
        "UPDATE t SET b = 8.5",
        "ALTER TABLE t DROP COLUMN \"A b\"",
        "UPDATE t SET b = 9.25",
        "ALTER TABLE t ADD COLUMN \"A b\" jsonb",
        "UPDATE t SET \"A b\" = '[1]'",
        "ALTER TABLE t ALTER COLUMN id TYPE text",
        "INSERT INTO t VALUES ('2', 1)",
    ];
    let (_, messages, _) = captured(T, "group_by = \"table\"", &changes, 7).await;
    let expected = [
        json!({"id": 1, "a": "x"}),
        json!({"id": 1, "a": "y", "b": 7}),
        json!({"id": 1, "A b": "y", "b": 8}),
        json!({"id": 1, "A b": "y", "b": 8.5}),
        json!({"id": 1, "b": 9.25}),
        json!({"id": 1, "b": 9.25, "A b": [1]}),
        json!({"id": "2", "b": 1.0, "A b": null}),
    ];
    assert_eq!(records(&messages), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_26_shapes_that_last_for_a_part_of_a_transaction_are_those_of_its_rows() {
    let transaction = "BEGIN;
        INSERT INTO t VALUES (1, 'x');
        ALTER TABLE t ADD COLUMN passing int DEFAULT 5;
        INSERT INTO t VALUES (2, 'x');
        ALTER TABLE t DROP COLUMN passing; ALTER TABLE t RENAME COLUMN a TO z;
        INSERT INTO t VALUES (3, 'x');
        ALTER TABLE t RENAME TO u;
        INSERT INTO u VALUES (4, 'x');
        SAVEPOINT s; ALTER TABLE u DROP COLUMN z; INSERT INTO u VALUES (5); ROLLBACK TO s;
        INSERT INTO u VALUES (6, 'x');
        ALTER TABLE u RENAME TO t; ALTER TABLE t RENAME COLUMN z TO a;
        INSERT INTO t VALUES (7, 'x');
        COMMIT";
    let (_, messages, _) = captured(T, "group_by = \"table\"", &[transaction], 6).await;
    let mut rows: Vec<(&Value, &Value)> =
        messages.iter().map(|message| (&message["record"], &message["metadata"]["table_name"])).collect();
    rows.sort_by_key(|(record, _)| record["id"].as_i64());
    let expected = [
        (json!({"id": 1, "a": "x"}), "t"),
        (json!({"id": 2, "a": "x", "passing": 5}), "t"),
        (json!({"id": 3, "z": "x"}), "t"),
        (json!({"id": 4, "z": "x"}), "u"),
        (json!({"id": 6, "z": "x"}), "u"),
        (json!({"id": 7, "a": "x"}), "t"),
    ];
    assert_eq!(rows.len(), expected.len());
    for ((record, table), (expected_record, expected_table)) in rows.into_iter().zip(expected) {
        assert_eq!((record, table), (&expected_record, &json!(expected_table)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_26_rows_of_tables_that_changed_or_vanished_before_they_were_read_come_as_they_were() {
    let postgres = Postgres::start();
    let setup = "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE TYPE pair AS (x int, y text);
        CREATE TABLE altered (id int PRIMARY KEY, a text, m mood);
        CREATE TABLE renamed (id int PRIMARY KEY, a text);
        CREATE TABLE dropped (id int PRIMARY KEY, m mood, p pair, l int[]);
        CREATE TABLE remade (id int PRIMARY KEY, a text); CREATE TABLE keyless (id int PRIMARY KEY, a text)";
    postgres.sql(setup).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    assert!(Daemon::start(&config).await.sigterm().await.success());

    postgres
        .sql(
            "INSERT INTO altered VALUES (1, 'x', 'sad'); INSERT INTO renamed VALUES (1, 'x');
            INSERT INTO dropped VALUES (1, 'glad', '(1,y)', '{1,2}'); UPDATE dropped SET id = 2; DELETE FROM dropped;
            INSERT INTO remade VALUES (1, 'old'); INSERT INTO keyless VALUES (1, 'x'); UPDATE keyless SET a = 'y'",
        )
        .await;
    postgres
        .sql(
            "ALTER TABLE altered DROP COLUMN a; ALTER TABLE altered RENAME COLUMN id TO key; ALTER TABLE altered ADD b int;
            ALTER TYPE mood RENAME VALUE 'sad' TO 'blue';
            ALTER TABLE renamed RENAME TO other_name; DROP TABLE dropped; DROP TYPE pair;
            DROP TABLE remade; CREATE TABLE remade (other text PRIMARY KEY); DROP TABLE keyless",
        )
        .await;
    let daemon = Daemon::start(&config).await;
    postgres.sql("INSERT INTO altered VALUES (2, 'blue', 3); INSERT INTO other_name VALUES (2, 'x')").await;
    postgres.sql("INSERT INTO remade VALUES ('new')").await;
    let messages = receiver.wait_messages(11).await;
    let of = |table: &str| {
        let of_table = messages.iter().filter(|message| message["metadata"]["table_name"] == table);
        of_table.map(|message| json!([message["action"], message["record"]])).collect::<Vec<_>>()
    };
    assert_eq!(of("renamed"), [json!(["insert", {"id": 1, "a": "x"}])]);
    assert_eq!(of("other_name"), [json!(["insert", {"id": 2, "a": "x"}])]);
    // Two tables of one name: their rows are in no order.
    let remade = of("remade");
    assert!(remade.contains(&json!(["insert", {"id": 1, "a": "old"}])), "{remade:?}");
    assert!(remade.contains(&json!(["insert", {"other": "new"}])), "{remade:?}");
    assert_eq!(of("keyless"), [json!(["insert", {"id": 1, "a": "x"}]), json!(["update", {"id": 1, "a": "y"}])]);
    let altered = of("altered");
    assert_eq!(altered[0][1]["a"], "x");
    assert_eq!(altered[0][1]["id"], 1);
    assert_eq!(altered[1], json!(["insert", {"key": 2, "m": "blue", "b": 3}]));
    let dropped = of("dropped");
    // The composite's attributes are gone with it, so it is text.
    assert_eq!(dropped[0], json!(["insert", {"id": 1, "m": "glad", "p": "(1,y)", "l": [1, 2]}]));
    assert_eq!(dropped[1][1]["id"], 2);
    assert_eq!(dropped[2], json!(["delete", {"id": 2}]));
    assert!(daemon.sigterm().await.success());
}

//! Keys and replica identities: which old values come, and what stays in order by them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::copy::wait_same;
use crate::crash::Load;
use crate::daemon::{Config, Daemon};
use crate::message::captured;
use crate::postgres::Postgres;
use crate::receiver::{Keep, Receiver, Reply, row_of, unreliable};

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_04_of_tables_without_an_identity_inserts_come_and_their_updates_work() {
    let setup = "CREATE TABLE bare (id int, n int);
        CREATE TABLE nothing (id int PRIMARY KEY, n int); ALTER TABLE nothing REPLICA IDENTITY NOTHING";
    let mut changes = Vec::new();
    for table in ["bare", "nothing"] {
        changes.push(format!("INSERT INTO {table} VALUES (1, 1)"));
        // Published, these would fail: the sink does not want them, so they are not.
        changes.push(format!("UPDATE {table} SET n = 2; DELETE FROM {table}"));
        changes.push(format!("INSERT INTO {table} VALUES (2, 1)"));
    }
    let changes: Vec<&str> = changes.iter().map(String::as_str).collect();
    let (_, messages, _) = captured(setup, "actions = [\"insert\"]", &changes, 4).await;
    assert!(messages.iter().all(|message| message["action"] == "insert"), "{messages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_04_an_index_as_identity_gives_old_values_of_its_columns() {
    let setup = "CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL UNIQUE, n int);
        ALTER TABLE t REPLICA IDENTITY USING INDEX t_code_key";
    let changes = [
        "INSERT INTO t VALUES (1, 'a', 1)",
        "UPDATE t SET n = 2",
        "UPDATE t SET code = 'b'",
        "INSERT INTO t VALUES (2, 'a', 1)",
        "DELETE FROM t WHERE id = 1",
    ];
    // The primary key is not in old rows, so the rows are grouped by what is.
    let (_, messages, _) = captured(setup, "group_by = [\"code\"]", &changes, 5).await;
    let seen: Vec<_> =
        messages.iter().map(|message| json!([message["action"], message["record"], message["changes"]])).collect();
    let expected = json!([
        ["insert", {"id": 1, "code": "a", "n": 1}, null],
        ["update", {"id": 1, "code": "a", "n": 2}, null],
        ["update", {"id": 1, "code": "b", "n": 2}, {"code": "a"}],
        ["insert", {"id": 2, "code": "a", "n": 1}, null],
        ["delete", {"code": "b"}, null],
    ]);
    assert_eq!(json!(seen), expected);
}

const KEYED: &str = "CREATE TABLE t (id int PRIMARY KEY, code int NOT NULL UNIQUE, n bigint, touched int DEFAULT 0);
    CREATE TABLE other (id int PRIMARY KEY, n bigint)";
const KEY_MOVES: &str = "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (code)";

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_05_a_primary_key_that_changes_under_load_loses_and_reorders_nothing() {
    let postgres = Arc::new(Postgres::start());
    postgres.sql(KEYED).await;
    postgres.sql("INSERT INTO t SELECT i, 100 + i, 0 FROM generate_series(1, 8) i").await;
    let receiver = Receiver::with(Keep::All, unreliable(5, 10, &[500], 0..5), row_of).await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;
    let load = Load::run(&postgres, std::time::Duration::ZERO, |round| {
        (1..=8).map(|row| format!("UPDATE t SET n = {round} WHERE id = {row} AND n < {round}")).collect()
    });
    let back = "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id)";
    let without = "ALTER TABLE t REPLICA IDENTITY FULL, DROP CONSTRAINT t_pkey";
    for change in [KEY_MOVES, back, without, "ALTER TABLE t ADD PRIMARY KEY (id), REPLICA IDENTITY DEFAULT"] {
        let count = receiver.message_count() + 50;
        receiver.wait("load", |receiver| receiver.message_count() >= count).await;
        postgres.sql(change).await;
    }
    let rounds = load.finish().await;
    wait_same(&postgres, &receiver, ("public", "t"), &["id"]).await;
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        for row in 1..=8 {
            assert!((1..=rounds).all(|n| ledger.has(&format!("t/{row}"), n)), "a change of row {row} is lost");
        }
    });
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_05_a_change_under_a_new_key_waits_for_those_under_the_old_one() {
    let postgres = Postgres::start();
    postgres.sql(KEYED).await;
    let open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&open);
    let receiver = Receiver::scripted(move |request| {
        let is_old = request.messages.iter().any(|message| message["record"]["n"] == 1);
        Reply::status(if is_old && !gate.load(Ordering::Relaxed) { 500 } else { 200 })
    })
    .await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;
    postgres.sql("INSERT INTO t VALUES (1, 101, 0)").await;
    postgres.sql("UPDATE t SET n = 1").await;
    receiver.wait("the failure", |receiver| receiver.answers().iter().any(|answer| answer.1 == 500)).await;
    // By id the row is in one group, by code in another.
    postgres.sql(KEY_MOVES).await;
    postgres.sql("UPDATE t SET n = 2").await;
    // Of another table, and committed after it: once this is there, the row's new change has been read.
    postgres.sql("INSERT INTO other VALUES (1, 7)").await;
    receiver.wait("the other table's row", |receiver| receiver.ledger(|ledger| ledger.has("other/1", 7))).await;
    let tried = receiver.request_count();
    receiver.wait("another failure", |receiver| receiver.request_count() > tried).await;
    assert!(!receiver.ledger(|ledger| ledger.came("t/1", 2)), "the new change overtook the old one");

    open.store(true, Ordering::Relaxed);
    receiver.wait("the new change", |receiver| receiver.ledger(|ledger| ledger.has("t/1", 2))).await;
    receiver.ledger(|ledger| ledger.assert_clean());
    assert!(daemon.sigterm().await.success());
}

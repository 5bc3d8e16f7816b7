//! A store that an earlier version has left: what waits in it is neither refused nor overtaken, also where keys are grouped by
//! another rule since.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::{Connection, params};
use serde_json::Value;

use crate::daemon::{Config, Daemon};
use crate::postgres::{Postgres, state, until};
use crate::receiver::{Receiver, Reply};

/// The store, as SQL.
const STORE: &str = include_str!("upgrade/keys_waiting.sql");
/// Its changes lie before this position, those of the test behind it.
const THEN: u64 = 0x200_0000;
const TABLES: [&str; 3] = ["n", "c", "plain"];

/// The server's log goes on behind [`THEN`].
async fn pass_then(postgres: &Postgres) {
    until("the log to be behind what the store has", || async {
        postgres.admin_sql("SELECT pg_logical_emit_message(false, 'test', ''), pg_switch_wal()").await;
        let is_behind = postgres.value("SELECT pg_current_wal_lsn() > '0/2000000'").await;
        state(is_behind == "t", is_behind)
    })
    .await;
}

/// Puts the store of before in the place of the one in `directory`, bound to the same slot and tables, and as far as it is.
async fn leave(directory: &Path, postgres: &Postgres) {
    let path = directory.join("state.db");
    let now = Connection::open(&path).unwrap();
    let select =
        "SELECT system_id, database, slot, timeline, resolved FROM source JOIN sink ON sink.source = source.name";
    type Binding = (String, String, String, Option<i64>, i64);
    let binding = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?));
    let (system_id, database, slot, timeline, resolved): Binding = now.query_row(select, [], binding).unwrap();
    drop(now);
    std::fs::remove_dir_all(directory).unwrap();
    std::fs::create_dir(directory).unwrap();

    let then = Connection::open(&path).unwrap();
    then.execute_batch(STORE).unwrap();
    then.execute(
        "UPDATE source SET system_id = ?1, database = ?2, slot = ?3, timeline = ?4, confirmed = ?5",
        params![system_id, database, slot, timeline, resolved],
    )
    .unwrap();
    then.execute("UPDATE sink SET resolved = ?1", [resolved]).unwrap();
    let at = "created = :at, first_attempt = :at, next_attempt = :at, last_at = :at";
    let micros = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_micros()).unwrap();
    then.execute(&format!("UPDATE delivery SET {at}"), rusqlite::named_params! { ":at": micros }).unwrap();
    for (table, n) in TABLES.into_iter().zip(0..) {
        let oid = postgres.value(&format!("SELECT '{table}'::regclass::oid")).await;
        let oids = params![oid.parse::<i64>().unwrap(), 18_700 + 7 * n];
        assert_eq!(then.execute("UPDATE grouped SET oid = ?1 WHERE oid = ?2", oids).unwrap(), 1);
    }
}

/// `delete`, or what the row's column `v` has, of a table in the order of first comings.
fn seen(messages: &[Value], table: &str) -> Vec<String> {
    let mut keys: Vec<&Value> = Vec::new();
    let mut seen = Vec::new();
    for message in messages.iter().filter(|message| message["metadata"]["table_name"] == table) {
        let key = &message["metadata"]["idempotency_key"];
        if !keys.contains(&key) {
            keys.push(key);
            seen.push(message["record"]["v"].as_str().unwrap_or("delete").to_owned());
        }
    }
    seen
}

async fn wait_held(daemon: &Daemon) {
    until("both tables to be held up", || async {
        let held = daemon.metrics().await.sum("walhook_sink_held_tables", &[]);
        state(held == Some(2.0), held)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_55_keys_that_waited_before_equal_keys_were_one_group_are_neither_refused_nor_overtaken() {
    let postgres = Postgres::start();
    postgres.admin_sql("CREATE EXTENSION citext").await;
    postgres
        .sql(
            "CREATE TABLE n (k numeric PRIMARY KEY, v text); CREATE TABLE c (k citext PRIMARY KEY, v text);
             CREATE TABLE plain (id int PRIMARY KEY, v text)",
        )
        .await;
    pass_then(&postgres).await;
    let open = Arc::new(AtomicBool::new(false));
    let is_open = Arc::clone(&open);
    let receiver = Receiver::scripted(move |request| {
        let is_old = |message: &Value| message["metadata"]["commit_lsn"].as_u64().unwrap() < THEN;
        let is_refused = request.messages.iter().any(is_old) && !is_open.load(Ordering::Relaxed);
        // A status that says nothing of the endpoint, so that the breaker stays closed.
        Reply::status(if is_refused { 409 } else { 200 })
    })
    .await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    assert!(Daemon::start(&config).await.sigterm().await.success());
    leave(&config.state(), &postgres).await;

    let daemon = Daemon::start(&config).await;
    postgres.sql("INSERT INTO n VALUES (1.00, 'new'), (7, 'other')").await;
    postgres.sql("INSERT INTO c VALUES ('A@X', 'new'), ('b@x', 'other')").await;
    postgres.sql("INSERT INTO plain VALUES (1, 'newer'), (2, 'apart')").await;
    receiver
        .wait("a row whose rule is as it was", |receiver| {
            seen(&receiver.messages(), "plain").contains(&"apart".to_owned())
        })
        .await;
    wait_held(&daemon).await;
    daemon.kill9();
    let daemon = Daemon::start(&config).await;
    wait_held(&daemon).await;
    let tried = receiver.request_count();
    receiver.wait("further refusals", |receiver| receiver.request_count() >= tried + 6).await;
    for (table, waits) in [("n", vec!["delete"]), ("c", vec!["delete"]), ("plain", vec!["delete", "apart"])] {
        assert_eq!(seen(&receiver.messages(), table), waits, "{table}");
    }

    open.store(true, Ordering::Relaxed);
    receiver
        .wait("everything", |receiver| {
            TABLES.into_iter().map(|table| seen(&receiver.acknowledged(), table).len()).sum::<usize>() == 14
        })
        .await;
    for table in ["n", "c"] {
        let order = ["delete", "again", "delete", "new", "other"];
        assert_eq!(seen(&receiver.acknowledged(), table), order, "{table}");
    }
    assert_eq!(seen(&receiver.acknowledged(), "plain"), ["apart", "delete", "again", "newer"]);
    assert!(daemon.sigterm().await.success());
}

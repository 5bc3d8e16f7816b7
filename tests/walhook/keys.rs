//! Equal keys are one group, whatever their texts; keys that differ go in parallel, where the texts tell.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::daemon::{Config, Daemon};
use crate::postgres::{Postgres, state, until};
use crate::receiver::{Receiver, Reply};

/// A table with one key, which is deleted and then inserted with another text, and another key.
struct Case {
    table: &'static str,
    key: &'static str,
    first: &'static str,
    again: &'static str,
    apart: &'static str,
    /// Whether the other key goes meanwhile.
    is_parallel: bool,
}

const fn parallel(table: &'static str, key: &'static str, texts: [&'static str; 3]) -> Case {
    let [first, again, apart] = texts;
    Case { table, key, first, again, apart, is_parallel: true }
}

const fn one_group(table: &'static str, key: &'static str, texts: [&'static str; 3]) -> Case {
    Case { is_parallel: false, ..parallel(table, key, texts) }
}

const CASES: &[Case] = &[
    parallel("numbers", "numeric", ["1.0", "1.00", "2.0"]),
    parallel("floats", "float8", ["0", "-0", "1"]),
    parallel("spans", "interval", ["1 mon", "30 days", "31 days"]),
    parallel("padded", "bpchar", ["a", "a ", "b"]),
    parallel("lists", "numeric[]", ["{1.0,2}", "{1,2.00}", "{1,3}"]),
    parallel("ranges", "numrange", ["[1.0,2)", "[1,2.0)", "[1,3)"]),
    parallel("prices", "price", ["1.5", "1.50", "1.51"]),
    parallel("texts", "text", ["a", "a", "A"]),
    one_group("caseless", "citext", ["a@x", "A@X", "b@x"]),
    one_group("collated", "text COLLATE nd", ["a@x", "A@X", "b@x"]),
    one_group("documents", "jsonb", ["1.0", "1.00", "2"]),
];

const SETUP: &str = "CREATE COLLATION nd (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    CREATE DOMAIN price AS numeric(12, 2)";

/// Table, and what became of its row: `delete`, or what the column `v` has; each at its first coming.
pub(crate) fn seen(messages: Vec<Value>) -> Vec<(String, String)> {
    let mut seen = Vec::new();
    for message in messages {
        let table = message["metadata"]["table_name"].as_str().unwrap().to_owned();
        let v = message["record"]["v"].as_str().unwrap_or("delete").to_owned();
        if !seen.contains(&(table.clone(), v.clone())) {
            seen.push((table, v));
        }
    }
    seen
}

/// An endpoint that refuses what is in `is_refused` until it is opened.
pub(crate) async fn refusing(
    is_refused: impl Fn(&Value) -> bool + Send + Sync + 'static,
) -> (Receiver, Arc<AtomicBool>) {
    let open = Arc::new(AtomicBool::new(false));
    let is_open = Arc::clone(&open);
    let receiver = Receiver::scripted(move |request| {
        let refuses = !is_open.load(Ordering::Relaxed) && request.messages.iter().any(&is_refused);
        // A status that says nothing of the endpoint, so that the breaker stays closed.
        Reply::status(if refuses { 409 } else { 200 })
    });
    (receiver.await, open)
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_55_an_equal_key_of_another_text_does_not_overtake_and_another_key_does_not_wait() {
    let postgres = Postgres::start();
    if !postgres.has_icu().await {
        return;
    }
    postgres.admin_sql("CREATE EXTENSION citext").await;
    postgres.sql(SETUP).await;
    for Case { table, key, first, .. } in CASES {
        let make =
            format!("CREATE TABLE {table} (k {key} PRIMARY KEY, v text); INSERT INTO {table} VALUES ('{first}')");
        postgres.sql(&make).await;
    }
    let (receiver, open) = refusing(|message| message["action"] == "delete").await;
    let _daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;
    for Case { table, again, apart, .. } in CASES {
        postgres.sql(&format!("DELETE FROM {table}")).await;
        postgres.sql(&format!("INSERT INTO {table} VALUES ('{again}', 'again')")).await;
        postgres.sql(&format!("INSERT INTO {table} VALUES ('{apart}', 'apart')")).await;
    }
    let came = |table: &str, v: &str| (table.to_owned(), v.to_owned());
    for Case { table, .. } in CASES.iter().filter(|case| case.is_parallel) {
        let apart = came(table, "apart");
        receiver
            .wait(&format!("the other key of {table}"), |receiver| seen(receiver.messages()).contains(&apart))
            .await;
    }
    for Case { table, .. } in CASES {
        let tries = |receiver: &Receiver| {
            let of_table =
                |message: &&Value| message["metadata"]["table_name"] == **table && message["action"] == "delete";
            receiver.messages().iter().filter(of_table).count()
        };
        receiver.wait(&format!("the delete of {table} to be refused"), |receiver| tries(receiver) >= 3).await;
    }
    let early = seen(receiver.messages());
    for Case { table, is_parallel, .. } in CASES {
        assert!(!early.contains(&came(table, "again")), "{table}: it overtook the delete of its key");
        assert_eq!(early.contains(&came(table, "apart")), *is_parallel, "{table}: the other key");
    }

    open.store(true, Ordering::Relaxed);
    receiver.wait_acknowledged(3 * CASES.len()).await;
    let order = seen(receiver.acknowledged());
    for Case { table, .. } in CASES {
        let place = |v: &str| order.iter().position(|one| *one == came(table, v)).unwrap();
        assert!(place("delete") < place("again"), "{table}: {order:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_55_a_collation_that_changes_while_changes_flow_makes_the_next_change_wait_for_those_before() {
    let postgres = Postgres::start();
    if !postgres.has_icu().await {
        return;
    }
    postgres.sql(SETUP).await;
    postgres.sql("CREATE TABLE t (k text PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY, v text)").await;
    let (receiver, open) = refusing(|message| message["record"]["v"] == "first").await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;
    let of_table = |messages: Vec<Value>| -> Vec<String> {
        seen(messages).into_iter().filter(|(table, _)| table == "t").map(|(_, v)| v).collect()
    };

    postgres.sql("INSERT INTO t VALUES ('a', 'first')").await;
    receiver.wait("the first", |receiver| receiver.message_count() > 0).await;
    postgres.sql("ALTER TABLE t ALTER k TYPE text COLLATE nd").await;
    postgres.sql("DELETE FROM t WHERE k = 'A'").await;
    postgres.sql("INSERT INTO t VALUES ('A', 'second'), ('b', 'third')").await;
    postgres.sql("INSERT INTO other VALUES (1, 'apart')").await;
    receiver.wait("the other table", |receiver| seen(receiver.messages()).iter().any(|(_, v)| v == "apart")).await;
    until("the table to be held up", || async {
        let held = daemon.metrics().await.sum("walhook_sink_held_tables", &[]);
        state(held == Some(1.0), held)
    })
    .await;
    assert_eq!(of_table(receiver.messages()), ["first"]);
    open.store(true, Ordering::Relaxed);
    receiver.wait_acknowledged(5).await;
    assert_eq!(of_table(receiver.acknowledged()), ["first", "delete", "second", "third"]);

    // And back: the first change waits, the others go in parallel again.
    receiver.script(|request| {
        let is_refused = request.messages.iter().any(|message| message["record"]["v"] == "fifth");
        Reply::status(if is_refused { 409 } else { 200 })
    });
    postgres.sql("ALTER TABLE t ALTER k TYPE text").await;
    for (k, v) in [("c", "fourth"), ("d", "fifth"), ("e", "sixth")] {
        postgres.sql(&format!("INSERT INTO t VALUES ('{k}', '{v}')")).await;
    }
    receiver.wait("another key", |receiver| of_table(receiver.messages()).contains(&"sixth".to_owned())).await;
}

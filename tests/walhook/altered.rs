//! Equal keys stay one group when what says that they are equal changes, or may not be seen.

use std::sync::atomic::Ordering;

use serde_json::Value;

use crate::daemon::{Config, Daemon, text_of, walhook};
use crate::keys::{refusing, seen};
use crate::postgres::{Postgres, state, until};
use crate::receiver::Receiver;

/// Only equality rests on these.
const BEYOND_NEED: &[&str] = &[
    "SELECT ON pg_proc",
    "SELECT ON pg_opclass",
    "SELECT ON pg_collation",
    "SELECT ON pg_am",
    "SELECT ON pg_amproc",
    "SELECT ON pg_amop",
    "SELECT ON pg_language",
    "SELECT ON pg_range",
    "SELECT ON pg_constraint",
    "EXECUTE ON FUNCTION age(xid)",
    "EXECUTE ON FUNCTION format_type(oid, int)",
];

const TABLES: &[(&str, &str)] = &[
    ("numbers", "int"),
    ("texts", "text"),
    ("moods", "mood"),
    ("pairs", "pair"),
    ("caseless", "citext"),
    ("collated", "text COLLATE nd"),
    ("spans", "span"),
];

/// A value of each key.
fn value(table: &str, n: usize) -> String {
    match table {
        "moods" => format!("(enum_range(NULL::mood))[{n}]"),
        "pairs" => format!("ROW({n}, 'x')::pair"),
        "spans" => format!("span({n}, {n}, '[]')"),
        _ => format!("'{n}'"),
    }
}

fn check(config: &Config) -> (Option<i32>, String) {
    let output = walhook(&["check", "--verbose", "--config", &config.path().to_string_lossy()]);
    (output.status.code(), text_of(&output))
}

/// What became of the rows of a table, each at its first coming.
fn of_table(messages: Vec<Value>, table: &str) -> Vec<String> {
    seen(messages).into_iter().filter(|(name, _)| name == table).map(|(_, v)| v).collect()
}

async fn wait_for(receiver: &Receiver, table: &str, v: &str) {
    let has = |receiver: &Receiver| of_table(receiver.messages(), table).contains(&v.to_owned());
    receiver.wait(&format!("{v} of {table}"), has).await;
}

async fn wait_held(daemon: &Daemon) {
    until("a table to be held up", || async {
        let held = daemon.metrics().await.sum("walhook_sink_held_tables", &[]);
        state(held == Some(1.0), held)
    })
    .await;
}

async fn further_refusals(receiver: &Receiver) {
    let tried = receiver.request_count();
    receiver.wait("further refusals", |receiver| receiver.request_count() >= tried + 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_54_what_only_equality_needs_may_be_refused_and_changes_go_on() {
    let postgres = Postgres::start();
    if !postgres.has_icu().await {
        return;
    }
    postgres.admin_sql("CREATE EXTENSION citext").await;
    let labels = (1..=40).map(|n| format!("'l{n}'")).collect::<Vec<_>>().join(", ");
    let made = format!(
        "CREATE COLLATION nd (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE TYPE mood AS ENUM ({labels}); CREATE TYPE pair AS (a int, b text);
         CREATE TYPE span AS RANGE (subtype = numeric)"
    );
    postgres.sql(&made).await;
    for (table, key) in TABLES {
        postgres.sql(&format!("CREATE TABLE {table} (k {key} PRIMARY KEY, v text)")).await;
    }
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    Daemon::start(&config).await.sigterm().await;
    let insert = |n: usize, v: String| {
        let into = |(table, _): &(&str, &str)| format!("INSERT INTO {table} VALUES ({}, '{v}'); ", value(table, n));
        TABLES.iter().map(into).collect::<String>()
    };
    for (what, n) in BEYOND_NEED.iter().zip(1..) {
        postgres.admin_sql(&format!("REVOKE {what} FROM PUBLIC")).await;
        let (code, said) = check(&config);
        assert_eq!(code, Some(0), "without {what}:\n{said}");
        let daemon = Daemon::start(&config).await;
        postgres.sql(&insert(n, format!("without {what}"))).await;
        for (table, _) in TABLES {
            wait_for(&receiver, table, &format!("without {what}")).await;
        }
        assert!(daemon.sigterm().await.success());
        postgres.admin_sql(&format!("GRANT {what} TO PUBLIC")).await;
    }

    // Without all of them nothing overtakes, and what the type alone tells goes in parallel.
    for what in BEYOND_NEED {
        postgres.admin_sql(&format!("REVOKE {what} FROM PUBLIC")).await;
    }
    let (code, said) = check(&config);
    assert_eq!(code, Some(0), "{said}");
    let unseen = "not seen: all that says which values of a column are equal";
    assert!(
        said.contains(unseen) && said.contains("GRANT SELECT ON pg_catalog.\"pg_opclass\" TO \"walhook\";"),
        "{said}"
    );
    let (receiver, open) = refusing(|message| message["record"]["v"] == "held").await;
    config.rewrite(&(Config::source(&postgres) + &Config::sink("orders", &receiver.url(), "")));
    let _daemon = Daemon::start(&config).await;
    postgres.sql(&insert(30, "held".to_owned())).await;
    postgres.sql(&insert(31, "apart".to_owned())).await;
    for table in ["numbers", "texts"] {
        wait_for(&receiver, table, "apart").await;
    }
    further_refusals(&receiver).await;
    for table in ["moods", "caseless", "collated", "spans"] {
        assert_eq!(of_table(receiver.messages(), table), ["held"], "{table} is one group");
    }
    open.store(true, Ordering::Relaxed);
    receiver.wait_acknowledged(2 * TABLES.len()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_54_what_keys_cannot_be_read_without_is_a_failure_of_check_too() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TYPE mood AS ENUM ('ok'); CREATE TABLE t (id int PRIMARY KEY, m mood)").await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    assert_eq!(check(&config).0, Some(0));
    postgres.admin_sql("REVOKE SELECT ON pg_type FROM PUBLIC").await;
    let (code, said) = check(&config);
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("GRANT SELECT ON pg_catalog.\"pg_type\" TO \"walhook\";"), "{said}");
    assert!(!said.contains("in order for each id\n"), "{said}");
}

/// A row type as a key: equal before and after an attribute comes, with other texts.
const PAIRS: &str = "CREATE TYPE pair AS (a int, b text); CREATE TABLE t (k pair PRIMARY KEY, v text);
    INSERT INTO t VALUES (ROW(1, 'x'), 'first')";

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_55_a_row_type_that_gets_an_attribute_makes_the_next_change_wait_for_those_before() {
    for is_live in [true, false] {
        let postgres = Postgres::start();
        postgres.sql(PAIRS).await;
        let (receiver, open) = refusing(|message| message["action"] == "delete").await;
        let config = Config::one_sink(&postgres, &receiver.url(), "");
        let mut daemon = Daemon::start(&config).await;
        if !is_live {
            assert!(daemon.sigterm().await.success());
            postgres.sql("DELETE FROM t").await;
            postgres.sql("ALTER TYPE pair ADD ATTRIBUTE c int").await;
            postgres.sql("INSERT INTO t VALUES (ROW(1, 'x', NULL), 'again')").await;
            daemon = Daemon::start(&config).await;
        } else {
            postgres.sql("DELETE FROM t").await;
            receiver.wait("the delete", |receiver| receiver.message_count() > 0).await;
            postgres.sql("ALTER TYPE pair ADD ATTRIBUTE c int").await;
            postgres.sql("INSERT INTO t VALUES (ROW(1, 'x', NULL), 'again')").await;
        }
        wait_held(&daemon).await;
        further_refusals(&receiver).await;
        assert_eq!(of_table(receiver.messages(), "t"), ["delete"], "live: {is_live}");
        open.store(true, Ordering::Relaxed);
        receiver.wait_acknowledged(2).await;
        assert_eq!(of_table(receiver.acknowledged(), "t"), ["delete", "again"]);
        // Afterwards keys that differ go in parallel again.
        open.store(false, Ordering::Relaxed);
        postgres.sql("DELETE FROM t; INSERT INTO t VALUES (ROW(2, 'y', 3), 'apart')").await;
        wait_for(&receiver, "t", "apart").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_55_a_collation_that_changed_while_changes_were_unread_does_not_tell_of_them() {
    let postgres = Postgres::start();
    if !postgres.has_icu().await {
        return;
    }
    postgres
        .sql(
            "CREATE COLLATION nd (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
             CREATE TABLE t (k text COLLATE nd PRIMARY KEY, v text); INSERT INTO t VALUES ('a', 'first');
             CREATE TABLE plain (k text PRIMARY KEY, v text)",
        )
        .await;
    let (receiver, open) = refusing(|message| message["action"] == "delete" || message["record"]["v"] == "held").await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    assert!(Daemon::start(&config).await.sigterm().await.success());
    postgres.sql("DELETE FROM t").await;
    postgres.sql("INSERT INTO t VALUES ('A', 'again')").await;
    postgres.sql("ALTER TABLE t ALTER k TYPE text COLLATE \"C\"").await;
    postgres.sql("INSERT INTO t VALUES ('c', 'later')").await;
    // What is altered of another column says nothing of the key.
    postgres.sql("INSERT INTO plain VALUES ('a', 'held'), ('b', 'apart')").await;
    postgres.sql("ALTER TABLE plain ADD COLUMN more int; ALTER TABLE plain ALTER v SET DEFAULT ''").await;
    let daemon = Daemon::start(&config).await;
    wait_for(&receiver, "plain", "apart").await;
    wait_held(&daemon).await;
    further_refusals(&receiver).await;
    assert_eq!(of_table(receiver.messages(), "t"), ["delete"]);
    open.store(true, Ordering::Relaxed);
    receiver.wait_acknowledged(5).await;
    assert_eq!(of_table(receiver.acknowledged(), "t"), ["delete", "again", "later"]);

    // What comes after the alteration is grouped by the collation of today.
    open.store(false, Ordering::Relaxed);
    postgres.sql("INSERT INTO t VALUES ('d', 'held')").await;
    postgres.sql("INSERT INTO t VALUES ('D', 'apart')").await;
    wait_for(&receiver, "t", "apart").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_55_a_key_without_overlaps_is_grouped_by_its_other_columns() {
    let postgres = Postgres::start();
    if postgres.major().await < 18 {
        println!("keys WITHOUT OVERLAPS are of 18 and later");
        return;
    }
    postgres.admin_sql("CREATE EXTENSION btree_gist").await;
    postgres
        .sql(
            "CREATE TABLE t (id int, at daterange, v text, PRIMARY KEY (id, at WITHOUT OVERLAPS));
             INSERT INTO t VALUES (1, '[2020-01-01,2020-02-01)', 'first')",
        )
        .await;
    let (receiver, open) = refusing(|message| message["action"] == "delete").await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let (code, said) = check(&config);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("in order for each id\n") && !said.contains("one group"), "{said}");
    let _daemon = Daemon::start(&config).await;
    postgres.sql("DELETE FROM t").await;
    postgres.sql("INSERT INTO t VALUES (1, '[2020-01-15,2020-02-15)', 'again')").await;
    postgres.sql("INSERT INTO t VALUES (2, '[2020-01-15,2020-02-15)', 'apart')").await;
    wait_for(&receiver, "t", "apart").await;
    further_refusals(&receiver).await;
    assert!(!of_table(receiver.messages(), "t").contains(&"again".to_owned()), "it overtook the delete of its row");
    open.store(true, Ordering::Relaxed);
    receiver.wait_acknowledged(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_55_a_way_out_that_a_start_would_refuse_is_refused_by_check_in_the_same_words() {
    let postgres = Postgres::start();
    postgres.admin_sql("CREATE EXTENSION citext").await;
    let table =
        "CREATE TABLE t (id int, k citext, v text, PRIMARY KEY (id, k)); INSERT INTO t VALUES (1, 'a', 'first')";
    postgres.sql(table).await;
    let (receiver, open) = refusing(|message| message["action"] == "delete").await;
    let way_out = "[sink.orders.table.\"public.t\"]\ngroup_by = [\"id\"]\n";
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let before = std::fs::read_to_string(config.path()).unwrap();
    let daemon = Daemon::start(&config).await;
    postgres.sql("DELETE FROM t").await;
    receiver.wait("refusals", |receiver| receiver.request_count() >= 2).await;
    assert!(daemon.sigterm().await.success());

    config.rewrite(&(before.clone() + way_out));
    let (code, said) = check(&config);
    let words =
        "sink orders is grouped by primary_key, public.t [\"id\"] in the config, and messages wait for it in the store";
    assert!(code == Some(69) && said.contains(words), "{code:?}: {said}");
    let mut refused = Daemon::launch(&config).allow_error("");
    assert_eq!(refused.wait_exit().await.code(), Some(69));
    assert!(refused.printed().contains(words), "{}", refused.printed());

    config.rewrite(&before);
    open.store(true, Ordering::Relaxed);
    let daemon = Daemon::start(&config).await;
    receiver.wait_acknowledged(1).await;
    assert!(daemon.sigterm().await.success());
    config.rewrite(&(before + way_out));
    assert_eq!(check(&config).0, Some(0), "nothing waits any more");
}

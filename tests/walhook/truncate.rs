//! TRUNCATE: a message of each table where a sink asks for it, counted and logged where none does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::daemon::{Config, Daemon};
use crate::postgres::{Postgres, state, until};
use crate::receiver::{Receiver, Reply, Request};

const ALL_ACTIONS: &str = "actions = [\"insert\", \"update\", \"delete\", \"truncate\"]";

/// Action and table of the messages, in order of arrival.
fn seen(receiver: &Receiver) -> Vec<String> {
    let short = |message: Value| {
        let table = message["metadata"]["table_name"].as_str().unwrap_or_default().to_owned();
        format!("{} {table}", message["action"].as_str().unwrap_or("row"))
    };
    receiver.messages().into_iter().map(short).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_09_truncate_of_several_tables_is_a_message_of_each_that_the_sink_takes() {
    let postgres = Postgres::start();
    let setup =
        "CREATE TABLE a (id int PRIMARY KEY, s serial); CREATE TABLE b (id int PRIMARY KEY, a_id int REFERENCES a);
        CREATE TABLE other (id int PRIMARY KEY); INSERT INTO a VALUES (1); INSERT INTO b VALUES (1, 1)";
    postgres.sql(setup).await;
    let (receiver, others) = (Receiver::start().await, Receiver::start().await);
    let sink = format!("tables = [\"public.a\", \"public.b\"]\nmax_in_flight = 1\n{ALL_ACTIONS}");
    let config = Config::new(
        &(Config::source(&postgres)
            + &Config::sink("orders", &receiver.url(), &sink)
            + &Config::sink("others", &others.url(), "tables = [\"public.other\"]")),
    );
    let daemon = Daemon::start(&config).await;
    // The first thing of the session: no table was described before.
    postgres.sql("TRUNCATE a RESTART IDENTITY CASCADE").await;
    postgres.sql("BEGIN; INSERT INTO a VALUES (1); TRUNCATE other, b; INSERT INTO other VALUES (1); COMMIT").await;
    let messages = receiver.wait_messages(4).await;
    assert_eq!(seen(&receiver), ["truncate a", "truncate b", "insert a", "truncate b"]);
    for message in [&messages[0], &messages[1], &messages[3]] {
        assert_eq!((&message["record"], &message["changes"]), (&Value::Null, &Value::Null));
        assert_eq!(message["metadata"]["table_schema"], "public");
    }
    let index = |message: &Value| message["metadata"]["commit_idx"].as_u64().unwrap();
    assert_eq!(messages.iter().map(index).collect::<Vec<_>>(), [1, 2, 1, 3], "other has the place before b");
    let others = others.wait_messages(1).await;
    assert_eq!((&others[0]["action"], index(&others[0])), (&json!("insert"), 4));
    let metrics = daemon.metrics().await;
    let changes = metrics.sum("walhook_source_changes_total", &[("action", "truncate")]);
    assert_eq!((changes, metrics.sum("walhook_source_ignored_truncates_total", &[])), (Some(4.0), Some(1.0)));
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_09_truncate_that_no_sink_lists_is_counted_and_logged_and_wedges_nothing() {
    let postgres = Postgres::start();
    let setup = "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)";
    postgres.sql(setup).await;
    // Only a superuser may make such a publication.
    postgres.admin_sql("CREATE PUBLICATION walhook_app FOR ALL TABLES").await;
    postgres.make_slot("walhook_app").await;
    let receiver = Receiver::start().await;
    let text = Config::reader_source(&postgres) + &Config::sink("orders", &receiver.url(), "");
    let daemon = Daemon::start(&Config::new(&text)).await;
    for round in 0..20 {
        postgres.sql(&format!("INSERT INTO t VALUES ({round}); TRUNCATE t, u; INSERT INTO u VALUES ({round})")).await;
    }
    receiver.wait_acknowledged(40).await;
    assert!(seen(&receiver).iter().all(|line| line.starts_with("insert")), "{:?}", seen(&receiver));
    let ignored = daemon.metrics().await.sum("walhook_source_ignored_truncates_total", &[]);
    assert_eq!(ignored, Some(40.0));
    let logged = daemon.printed().matches("tables were truncated and no sink takes that").count();
    assert!((1..=10).contains(&logged), "{logged} lines");
    let end = postgres.value("SELECT pg_current_wal_lsn()").await;
    until("the slot to move past it", || async {
        let sql = format!("SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots");
        let moved = postgres.value(&sql).await;
        state(moved == "t", moved)
    })
    .await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_09_truncate_is_published_only_while_a_sink_lists_it() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE t (id int PRIMARY KEY)").await;
    let receiver = Receiver::start().await;
    let without = Config::source(&postgres) + &Config::sink("orders", &receiver.url(), "");
    let with = Config::source(&postgres) + &Config::sink("orders", &receiver.url(), ALL_ACTIONS);
    let config = Config::new(&without);
    for (text, published) in [(&without, "f"), (&with, "t"), (&without, "f")] {
        config.rewrite(text);
        let daemon = Daemon::start(&config).await;
        assert_eq!(postgres.value("SELECT pubtruncate FROM pg_publication").await, published);
        let inserts = || seen(&receiver).iter().filter(|line| line.starts_with("insert")).count();
        let before = inserts();
        postgres.sql("TRUNCATE t").await;
        postgres.sql("INSERT INTO t VALUES (1)").await;
        receiver.wait("the insert", |_| inserts() > before).await;
        assert!(daemon.sigterm().await.success());
    }
    assert_eq!(seen(&receiver), ["insert t", "truncate t", "insert t", "insert t"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_09_truncates_alone_need_no_replica_identity_and_rows_alone_get_none() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE bare (v int); INSERT INTO bare VALUES (1)").await;
    let (receiver, rows) = (Receiver::start().await, Receiver::start().await);
    let config = Config::new(
        &(Config::source(&postgres)
            + &Config::sink("orders", &receiver.url(), "tables = [\"public.bare\"]\nactions = [\"truncate\"]")
            + &Config::sink("rows", &rows.url(), "message = \"row\"\nactions = [\"insert\", \"truncate\"]")),
    );
    let daemon = Daemon::start(&config).await;
    postgres.sql("UPDATE bare SET v = 2; TRUNCATE bare; INSERT INTO bare VALUES (3); TRUNCATE bare").await;
    postgres.sql("INSERT INTO bare VALUES (4)").await;
    receiver.wait_acknowledged(2).await;
    rows.wait_acknowledged(2).await;
    assert_eq!(seen(&receiver), ["truncate bare", "truncate bare"]);
    assert_eq!(rows.messages().iter().map(|message| &message["record"]["v"]).collect::<Vec<_>>(), [3, 4]);
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_09_truncate_of_partitions_comes_for_the_root_only() {
    let postgres = Postgres::start();
    let setup = "CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
        CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20)";
    postgres.sql(setup).await;
    let receiver = Receiver::start().await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), ALL_ACTIONS)).await;
    postgres.sql("INSERT INTO parts VALUES (1), (11)").await;
    receiver.wait_acknowledged(2).await;
    postgres.sql("TRUNCATE parts_1").await;
    postgres.sql("TRUNCATE parts").await;
    postgres.sql("INSERT INTO parts VALUES (2)").await;
    receiver.wait_acknowledged(4).await;
    assert_eq!(seen(&receiver)[2..], ["truncate parts", "insert parts"]);
    assert!(daemon.sigterm().await.success());
}

/// Fails what `blocks` until it is opened.
fn gate<B>(open: &Arc<AtomicBool>, blocks: B) -> impl Fn(&Request) -> Reply + use<B>
where
    B: Fn(&Value) -> bool + Send + Sync,
{
    let open = Arc::clone(open);
    move |request| {
        let blocked = !open.load(Ordering::Relaxed) && request.messages.iter().any(&blocks);
        Reply::status(if blocked { 500 } else { 200 })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_09_truncate_waits_for_the_rows_before_it_and_those_after_it_wait_for_it() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)").await;
    let open = Arc::new(AtomicBool::new(false));
    let receiver = Receiver::scripted(gate(&open, |message| message["record"]["id"] == 7)).await;
    let config = Config::one_sink(&postgres, &receiver.url(), ALL_ACTIONS);
    let mut daemon = Daemon::start(&config).await;
    postgres.sql("INSERT INTO t SELECT generate_series(1, 10)").await;
    postgres.sql("TRUNCATE t").await;
    postgres.sql("INSERT INTO t SELECT generate_series(11, 20)").await;
    for round in 0..2 {
        // Another table goes on meanwhile, also after a crash.
        postgres.sql(&format!("INSERT INTO other VALUES ({round})")).await;
        let tried = receiver.request_count();
        receiver
            .wait("the other table's row, and failures", |receiver| {
                let others = receiver.ledger(|ledger| ledger.acknowledged());
                others > 9 + round && receiver.request_count() >= tried + 3
            })
            .await;
        let early = seen(&receiver).iter().any(|line| line == "truncate t");
        assert!(!early, "it overtook a row: {:?}", seen(&receiver));
        daemon.kill9();
        daemon = Daemon::start(&config).await;
    }
    open.store(true, Ordering::Relaxed);
    receiver.wait_acknowledged(23).await;
    let messages = receiver.messages();
    let at = messages.iter().position(|message| message["action"] == "truncate").unwrap();
    let late =
        |message: &Value| message["metadata"]["table_name"] == "t" && message["record"]["id"].as_i64() > Some(10);
    let acknowledged = receiver.acknowledged();
    let truncated = acknowledged.iter().position(|message| message["action"] == "truncate").unwrap();
    let early = acknowledged[..truncated].iter().filter(|message| message["metadata"]["table_name"] == "t");
    let early: BTreeSet<i64> = early.filter_map(|message| message["record"]["id"].as_i64()).collect();
    assert!(early.iter().copied().eq(1..=10), "acknowledged before it: {early:?}");
    assert_eq!(messages[..at].iter().filter(|message| late(message)).count(), 0, "a later row overtook it");
    assert_eq!(messages[at..].iter().filter(|message| late(message)).count(), 10);
    assert!(daemon.sigterm().await.success());
}

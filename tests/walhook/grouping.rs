//! The four kinds of `group_by`, tables without a key, and changes that belong to two groups.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::daemon::{Config, Daemon, quick_retry};
use crate::outage::wait_confirmed;
use crate::postgres::Postgres;
use crate::receiver::{Keep, Receiver, Reply, Request, parallel, row_of, unreliable};

/// A gate that fails requests with a message that `blocks`, until it is opened.
fn gated<B>(open: &Arc<AtomicBool>, blocks: B) -> impl Fn(&Request) -> Reply + use<B>
where
    B: Fn(&Value) -> bool + Send + Sync,
{
    let open = Arc::clone(open);
    move |request| {
        let blocked = !open.load(Ordering::Relaxed) && request.messages.iter().any(&blocks);
        Reply::status(if blocked { 500 } else { 200 })
    }
}

/// Action and id of the messages, in order of arrival.
fn seen(receiver: &Receiver) -> Vec<(String, i64)> {
    let short = |message: Value| {
        (
            message["action"].as_str().unwrap_or_default().to_owned(),
            message["record"]["id"].as_i64().unwrap_or_default(),
        )
    };
    receiver.messages().into_iter().map(short).collect()
}

fn has(receiver: &Receiver, action: &str, id: i64) -> bool {
    seen(receiver).iter().any(|(a, i)| a == action && *i == id)
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_03_a_changed_key_blocks_both_groups() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (10, 'a'), (30, 'a')").await;
    let open = Arc::new(AtomicBool::new(false));
    let script = gated(&open, |message| message["action"] == "update" && message["record"]["id"] == 20);
    let receiver = Receiver::scripted(script).await;
    let _daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;

    postgres.sql("UPDATE t SET id = 20 WHERE id = 10").await;
    postgres.sql("INSERT INTO t VALUES (10, 'new')").await;
    postgres.sql("DELETE FROM t WHERE id = 20").await;
    postgres.sql("UPDATE t SET v = 'b' WHERE id = 30").await;
    receiver
        .wait("the other row, and some failures", |receiver| {
            has(receiver, "update", 30) && receiver.request_count() >= 5
        })
        .await;
    assert!(!has(&receiver, "insert", 10), "the old key's group went on: {:?}", seen(&receiver));
    assert!(!has(&receiver, "delete", 20), "the new key's group went on: {:?}", seen(&receiver));

    open.store(true, Ordering::Relaxed);
    receiver.wait_acknowledged(4).await;
    assert!(has(&receiver, "insert", 10) && has(&receiver, "delete", 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_03_a_changed_key_waits_for_both_groups() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (10, 'a'), (20, 'a')").await;
    let open = Arc::new(AtomicBool::new(false));
    let script = gated(&open, |message| message["action"] == "delete");
    let receiver = Receiver::scripted(script).await;
    let _daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;

    postgres.sql("DELETE FROM t WHERE id = 20").await;
    postgres.sql("UPDATE t SET id = 20 WHERE id = 10").await;
    receiver.wait("some failures", |receiver| receiver.request_count() >= 4).await;
    assert!(!has(&receiver, "update", 20), "it overtook the delete of its new key: {:?}", seen(&receiver));
    open.store(true, Ordering::Relaxed);
    receiver.wait_acknowledged(2).await;
    assert_eq!(seen(&receiver).last().unwrap().0, "update");
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_03_a_changed_key_blocks_and_waits_for_both_groups_in_the_store_too() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (10, 'a'), (20, 'a')").await;
    let open = Arc::new(AtomicBool::new(false));
    let script = gated(&open, |message| message["record"]["v"] == "refused");
    let receiver = Receiver::scripted(script).await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let mut daemon = Daemon::start(&config).await;

    // The group of 20 fails; the update of 10 to 20 waits for it, and what comes to a new 10 waits for that.
    postgres.sql("UPDATE t SET v = 'refused' WHERE id = 20").await;
    postgres.sql("DELETE FROM t WHERE id = 20").await;
    postgres.sql("UPDATE t SET id = 20 WHERE id = 10").await;
    postgres.sql("INSERT INTO t VALUES (10, 'new')").await;
    postgres.sql("UPDATE t SET v = 'newer' WHERE id = 10").await;
    for _ in 0..2 {
        let end = postgres.value("SELECT pg_current_wal_lsn()").await;
        wait_confirmed(&postgres, &end, Duration::from_secs(10)).await;
        let tried = receiver.request_count();
        receiver.wait("further failures", |receiver| receiver.request_count() >= tried + 2).await;
        daemon.kill9();
        daemon = Daemon::start(&config).await;
    }
    let refused = |message: &Value| message["record"]["v"] == "refused";
    assert!(receiver.messages().iter().all(refused), "something overtook it: {:?}", seen(&receiver));

    let before = receiver.messages().len();
    open.store(true, Ordering::Relaxed);
    receiver.wait_acknowledged(5).await;
    let order = seen(&receiver).split_off(before);
    // The refused update, as often as it came.
    let after = order.iter().skip_while(|(action, id)| (action.as_str(), *id) == ("update", 20));
    let after: Vec<(&str, i64)> = after.map(|(action, id)| (action.as_str(), *id)).collect();
    assert_eq!(after, [("delete", 20), ("update", 20), ("insert", 10), ("update", 10)], "all of {order:?}");
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn chosen_columns_keep_their_values_changes_in_order() {
    let postgres = Postgres::start();
    postgres
        .sql(
            "CREATE TABLE orders (id int PRIMARY KEY, customer_id int NOT NULL, n bigint);
             ALTER TABLE orders REPLICA IDENTITY FULL",
        )
        .await;
    let customer = |message: &Value| format!("customer {}", message["record"]["customer_id"]);
    let receiver = Receiver::with(
        Keep::Ledger,
        parallel(2, move |message| Some(customer(message)), unreliable(11, 20, &[500], 0..10)),
        customer,
    )
    .await;
    let sink = "group_by = [\"customer_id\"]\nbatch_size = 3";
    let _daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), sink)).await;
    // 5 customers with 40 orders each; n counts within the customer.
    postgres.sql("INSERT INTO orders SELECT i, i % 5, i / 5 FROM generate_series(0, 199) i").await;
    receiver.wait_acknowledged(200).await;
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert!((0..5).all(|customer| (0..40).all(|n| ledger.has(&format!("customer {customer}"), n))));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tables_rule_goes_before_the_sinks() {
    let postgres = Postgres::start();
    postgres
        .sql("CREATE TABLE serial (id int PRIMARY KEY, n bigint); CREATE TABLE apart (id int PRIMARY KEY, n bigint)")
        .await;
    let group = |message: &Value| match message["metadata"]["table_name"].as_str() {
        Some("serial") => "serial".to_owned(),
        _ => row_of(message),
    };
    // The other table's rows go in parallel, also beside the one group.
    let apart = |message: &Value| (message["metadata"]["table_name"] == "apart").then(|| row_of(message));
    let receiver = Receiver::with(Keep::Ledger, parallel(3, apart, unreliable(12, 0, &[], 5..15)), group).await;
    let sink = "[sink.orders.table.\"public.serial\"]\ngroup_by = \"table\"\n".to_owned() + &quick_retry("orders");
    let _daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), &sink)).await;
    postgres.sql("INSERT INTO serial SELECT i, i FROM generate_series(1, 50) i").await;
    postgres.sql("INSERT INTO apart SELECT i, i FROM generate_series(1, 50) i").await;
    receiver.wait_acknowledged(100).await;
    receiver.ledger(|ledger| {
        ledger.assert_clean();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn without_groups_nothing_waits_for_anything() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 0)").await;
    let receiver = Receiver::with(
        Keep::All,
        |request| {
            if request.messages.iter().any(|message| message["record"]["v"] == 1) {
                Reply::Never
            } else {
                Reply::status(200)
            }
        },
        |message| message["metadata"]["idempotency_key"].to_string(),
    )
    .await;
    let _daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "group_by = \"none\"")).await;
    for value in 1..=5 {
        postgres.sql(&format!("UPDATE t SET v = {value}")).await;
    }
    receiver.wait_acknowledged(4).await;
    receiver.ledger(|ledger| assert_eq!(ledger.unacknowledged(), 1, "the first update still hangs"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_04_a_table_without_a_primary_key_is_one_group() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE events (id int, n bigint); ALTER TABLE events REPLICA IDENTITY FULL").await;
    let receiver = Receiver::with(Keep::Ledger, unreliable(13, 20, &[500], 0..5), |_| "events".to_owned()).await;
    let _daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;
    for n in 1..=30 {
        postgres.sql(&format!("INSERT INTO events VALUES ({}, {n})", n % 3)).await;
    }
    receiver.wait_acknowledged(30).await;
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert_eq!(ledger.concurrent_max, 1);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_04_the_primary_key_groups_even_under_full_identity() {
    let postgres = Postgres::start();
    postgres
        .sql(
            "CREATE TABLE lines (a int, b text, n bigint, PRIMARY KEY (a, b));
             ALTER TABLE lines REPLICA IDENTITY FULL;
             INSERT INTO lines VALUES (1, 'x', 0), (1, 'y', 0)",
        )
        .await;
    let key = |message: &Value| format!("{}/{}", message["record"]["a"], message["record"]["b"]);
    let receiver = Receiver::with(
        Keep::Ledger,
        parallel(2, move |message| Some(key(message)), unreliable(14, 20, &[500], 0..10)),
        key,
    )
    .await;
    let _daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;
    for n in 1..=20 {
        postgres.sql(&format!("UPDATE lines SET n = {n}")).await;
    }
    receiver.wait_acknowledged(40).await;
    receiver.ledger(|ledger| ledger.assert_clean());
}

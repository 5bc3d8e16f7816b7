//! The message, the body and the headers, exactly as the contract has them.

use serde_json::{Value, json};

use crate::daemon::{Config, Daemon};
use crate::postgres::Postgres;
use crate::receiver::{Receiver, Reply, Request};

/// A database with `setup`, a daemon with the sink's lines, and what arrives until `count` messages are there.
pub(crate) async fn captured(
    setup: &str,
    sink: &str,
    changes: &[&str],
    count: u64,
) -> (Postgres, Vec<Value>, Vec<Request>) {
    let postgres = Postgres::with(&[("track_commit_timestamp", "on")]);
    postgres.sql(setup).await;
    let receiver = Receiver::start().await;
    let daemon =
        Daemon::start(&Config::one_sink(&postgres, &receiver.url(), &format!("max_in_flight = 1\n{sink}"))).await;
    for change in changes {
        postgres.sql(change).await;
    }
    let messages = receiver.wait_messages(count).await;
    let requests = receiver.requests();
    assert!(daemon.sigterm().await.success());
    assert_eq!(receiver.message_count(), count, "no more than expected");
    (postgres, messages, requests)
}

const ORDERS: &str = "CREATE TABLE orders (id int PRIMARY KEY, customer_id int, status text)";
const FULL_ORDERS: &str = "CREATE TABLE orders (id int PRIMARY KEY, customer_id int, status text);
    ALTER TABLE orders REPLICA IDENTITY FULL";
const LIFE: [&str; 4] = [
    "INSERT INTO orders VALUES (1234, 789, 'pending')",
    "UPDATE orders SET status = 'shipped' WHERE id = 1234",
    "UPDATE orders SET status = 'shipped' WHERE id = 1234",
    "DELETE FROM orders WHERE id = 1234",
];

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_identity_gives_old_rows_and_changed_values() {
    let (_, messages, _) = captured(FULL_ORDERS, "", &LIFE, 4).await;
    let pending = json!({"id": 1234, "customer_id": 789, "status": "pending"});
    let shipped = json!({"id": 1234, "customer_id": 789, "status": "shipped"});
    let expected = [
        ("insert", pending, Value::Null),
        ("update", shipped.clone(), json!({"status": "pending"})),
        ("update", shipped.clone(), json!({})),
        ("delete", shipped, Value::Null),
    ];
    for (message, (action, record, changes)) in messages.iter().zip(expected) {
        assert_eq!(keys(message), ["action", "changes", "metadata", "record"]);
        assert_eq!((&message["action"], &message["record"], &message["changes"]), (&json!(action), &record, &changes));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_identity_gives_the_key_of_old_rows_and_invents_nothing() {
    let changes = [LIFE[0], LIFE[1], "UPDATE orders SET id = 5 WHERE id = 1234", "DELETE FROM orders WHERE id = 5"];
    let (_, messages, _) = captured(ORDERS, "", &changes, 4).await;
    let of = |index: usize| (&messages[index]["action"], &messages[index]["record"], &messages[index]["changes"]);
    let shipped = json!({"id": 1234, "customer_id": 789, "status": "shipped"});
    assert_eq!(of(1), (&json!("update"), &shipped, &Value::Null));
    let moved = json!({"id": 5, "customer_id": 789, "status": "shipped"});
    assert_eq!(of(2), (&json!("update"), &moved, &json!({"id": 1234})));
    assert_eq!(of(3), (&json!("delete"), &json!({"id": 5}), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_says_where_and_when_a_change_was_committed() {
    let transaction = "BEGIN; INSERT INTO orders VALUES (1, 1, 'a'), (2, 1, 'b'); UPDATE orders SET status = 'c' WHERE id = 1; COMMIT";
    let (postgres, messages, _) =
        captured(ORDERS, "", &[transaction, "INSERT INTO orders VALUES (3, 1, 'a')"], 4).await;
    let expected = [
        "commit_idx",
        "commit_lsn",
        "commit_timestamp",
        "consumer",
        "database",
        "idempotency_key",
        "table_name",
        "table_schema",
        "transaction_annotations",
    ];
    let mut order: Vec<&Value> = messages.iter().map(|message| &message["metadata"]).collect();
    order.sort_by_key(|meta| (meta["commit_lsn"].as_u64(), meta["commit_idx"].as_u64()));
    for meta in &order {
        assert_eq!(keys(meta), expected);
        assert_eq!((&meta["table_schema"], &meta["table_name"]), (&json!("public"), &json!("orders")));
        assert_eq!(meta["database"], json!({"name": "app"}));
        assert_eq!(keys(&meta["consumer"]), ["id", "name"]);
        assert_eq!(meta["consumer"]["name"], "orders");
        let id: uuid::Uuid = meta["consumer"]["id"].as_str().unwrap().parse().unwrap();
        assert_eq!(id.get_version_num(), 5);
        assert_eq!(meta["transaction_annotations"], Value::Null);
    }
    let indexes: Vec<u64> = order.iter().map(|meta| meta["commit_idx"].as_u64().unwrap()).collect();
    assert_eq!(indexes, [1, 2, 3, 1]);
    let lsns: Vec<u64> = order.iter().map(|meta| meta["commit_lsn"].as_u64().unwrap()).collect();
    assert!(lsns[0] == lsns[2] && lsns[2] < lsns[3], "{lsns:?}");
    let end: u64 = postgres.value("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn").await.parse().unwrap();
    assert!(lsns[3] < end, "{lsns:?} of {end}");
    let mut ids: Vec<&str> = order.iter().map(|meta| meta["idempotency_key"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 4, "a key of its own for every change");
    assert!(ids.iter().all(|id| !id.is_empty() && !id.contains('.')), "{ids:?}");
    let committed =
        "SELECT to_char(pg_xact_commit_timestamp(xmin) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')
        FROM orders WHERE id = 3";
    assert_eq!(order[3]["commit_timestamp"], json!(postgres.value(committed).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_13_values_are_what_to_jsonb_gives() {
    let setup = "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE TYPE pair AS (a int, b text);
        CREATE TABLE wide (id bigint PRIMARY KEY, t text, b bool, f float8, r float4, m numeric, big numeric, d date,
            ts timestamp, tz timestamptz, tm time, i interval, u uuid, by bytea, j json, jb jsonb, ai int[], at text[][],
            ip inet, e mood, p pair, ap pair[], inf float8, nothing text, rng int4range, vc varchar(5), ch char(3))";
    let insert = r#"INSERT INTO wide VALUES (9007199254740993, E'quote " back \\ line \n tab \t é 漢 ', true, 0.1, 1.5,
        123.4500, 12345678901234567890.123456789, '2024-02-29', '2024-03-20 15:30:00.123456', '2024-03-20 15:30:00.5+09',
        '23:59:59.9', '1 year 2 mons 3 days 04:05:06', 'f47ac10b-58cc-4372-a567-0e02b2c3d479', '\x00ff',
        '{"b": 1,  "a": [1.50, null]}', '{"b": 1, "a": "\u00e9"}', '{1,NULL,3}', '{{a,"b c"},{"d,e",NULL}}', '10.0.0.0/8',
        'sad', '(1,"x, y")', '{"(1,a)","(2,)"}', 'infinity', NULL, '[1,5)', 'vc', 'c')"#;
    let (postgres, messages, _) = captured(setup, "", &[insert], 1).await;
    let oracle = postgres.value("SET TimeZone = 'UTC'; SELECT to_jsonb(wide)::text FROM wide").await;
    let oracle: Value = serde_json::from_str(&oracle).unwrap();
    for (name, expected) in oracle.as_object().unwrap() {
        assert_eq!(messages[0]["record"].get(name), Some(expected), "column {name}");
    }
    assert_eq!(keys(&messages[0]["record"]), keys(&oracle));
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_12_numbers_keep_every_digit_and_may_be_strings() {
    let setup = "CREATE TABLE t (id bigint PRIMARY KEY, m numeric, small int)";
    let insert = "INSERT INTO t VALUES (9007199254740993, 12345678901234567890.1234567890, 7)";
    let (_, _, requests) = captured(setup, "", &[insert], 1).await;
    let body = String::from_utf8(requests[0].body.clone()).unwrap();
    assert!(body.contains("9007199254740993") && body.contains("12345678901234567890.1234567890"), "{body}");
    let (_, messages, _) = captured(setup, "numbers = \"string\"", &[insert], 1).await;
    let expected = json!({"id": "9007199254740993", "m": "12345678901234567890.1234567890", "small": 7});
    assert_eq!(messages[0]["record"], expected);
}

const TOAST: &str = "CREATE TABLE docs (id int PRIMARY KEY, title text, body text);
    ALTER TABLE docs ALTER body SET STORAGE EXTERNAL;
    INSERT INTO docs VALUES (1, 'a', repeat('x', 10000))";

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_01_an_unchanged_toasted_value_is_left_out_and_named() {
    let (_, messages, _) = captured(TOAST, "", &["UPDATE docs SET title = 'b'"], 1).await;
    assert_eq!(messages[0]["record"], json!({"id": 1, "title": "b"}));
    assert_eq!(messages[0]["metadata"]["unchanged"], json!(["body"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_01_an_unchanged_toasted_value_comes_from_the_old_row_when_that_has_it() {
    let setup = format!("{TOAST}; ALTER TABLE docs REPLICA IDENTITY FULL");
    let (_, messages, _) = captured(&setup, "", &["UPDATE docs SET title = 'b'"], 1).await;
    assert_eq!(messages[0]["record"], json!({"id": 1, "title": "b", "body": "x".repeat(10_000)}));
    assert_eq!(messages[0]["changes"], json!({"title": "a"}));
    assert_eq!(messages[0]["metadata"].get("unchanged"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn row_messages_hold_rows_and_leave_deletes_out() {
    let (_, messages, _) = captured(FULL_ORDERS, "message = \"row\"", &LIFE, 3).await;
    for message in &messages {
        assert_eq!(keys(message), ["metadata", "record"]);
        assert_eq!(keys(&message["metadata"]), ["consumer", "idempotency_key", "table_name", "table_schema"]);
    }
    assert_eq!(messages[1]["record"], json!({"id": 1234, "customer_id": 789, "status": "shipped"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_actions_of_the_sink_arrive() {
    let (_, messages, _) = captured(ORDERS, "actions = [\"insert\", \"delete\"]", &LIFE, 2).await;
    assert_eq!((&messages[0]["action"], &messages[1]["action"]), (&json!("insert"), &json!("delete")));
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_have_three_forms() {
    let parse = |request: &Request| serde_json::from_slice::<Value>(&request.body).unwrap();
    let (_, messages, requests) = captured(ORDERS, "", &LIFE[..1], 1).await;
    assert_eq!(parse(&requests[0]), json!({"data": messages}), "batch is the default, also for one");
    let (_, messages, requests) = captured(ORDERS, "body = \"array\"", &LIFE[..1], 1).await;
    assert_eq!(parse(&requests[0]), json!(messages));
    let (_, messages, requests) = captured(ORDERS, "body = \"single\"", &LIFE[..1], 1).await;
    assert_eq!(parse(&requests[0]), messages[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_say_what_it_is_and_signatures_verify() {
    let (old, new) = ("whsec_b2xkIHNlY3JldCBvZiB0d2VudHkgZm91ciE=", "whsec_bmV3IHNlY3JldCBvZiB0d2VudHkgZm91ciE=");
    let sink = format!(
        "path = \"/hooks/orders\"\nheaders = {{ authorization = \"Bearer abc\", x-team = \"blue\" }}\n\
         signing_secrets = [\"{new}\", \"{old}\"]"
    );
    let (_, _, requests) = captured(ORDERS, &sink, &LIFE[..1], 1).await;
    let request = &requests[0];
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/hooks/orders"));
    let version = env!("CARGO_PKG_VERSION");
    for (name, value) in [
        ("content-type", "application/json"),
        ("user-agent", &format!("walhook/{version}")),
        ("walhook-sink", "orders"),
        ("walhook-attempt", "1"),
        ("authorization", "Bearer abc"),
        ("x-team", "blue"),
    ] {
        assert_eq!(request.header(name), value, "{name}");
    }
    assert!(request.header("webhook-id").starts_with("dlv_"), "{}", request.header("webhook-id"));
    let mut headers = http::HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        headers.insert(name, request.header(name).parse().unwrap());
    }
    for secret in [old, new] {
        standardwebhooks::Webhook::new(secret).unwrap().verify(&request.body, &headers).unwrap();
    }
    let other = "whsec_YW5vdGhlciBvbmUgYWx0b2dldGhlciE=";
    assert!(standardwebhooks::Webhook::new(other).unwrap().verify(&request.body, &headers).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_secret_there_is_no_signature() {
    let (_, _, requests) = captured(ORDERS, "", &LIFE[..1], 1).await;
    assert!(!requests[0].headers.contains_key("webhook-signature"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_08_partitions_come_under_their_roots_name() {
    let setup = "CREATE TABLE measures (id int, day date, v int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
        CREATE TABLE measures_2024 PARTITION OF measures FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
        CREATE TABLE measures_2025 PARTITION OF measures FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')";
    let inserts = ["INSERT INTO measures VALUES (1, '2024-05-05', 1), (2, '2025-05-05', 2)"];
    let (_, messages, _) = captured(setup, "tables = [\"public.measures\"]", &inserts, 2).await;
    assert!(messages.iter().all(|message| message["metadata"]["table_name"] == "measures"), "{messages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn annotations_of_the_transaction_are_passed_on() {
    let transaction = r#"BEGIN;
        INSERT INTO orders VALUES (1, 1, 'a');
        SELECT pg_logical_emit_message(true, 'walhook:transaction_annotations.set', '{"user": "ann", "n": 1.50}');
        INSERT INTO orders VALUES (2, 1, 'a');
        SELECT pg_logical_emit_message(true, 'walhook:transaction_annotations.clear', '');
        INSERT INTO orders VALUES (3, 1, 'a');
        COMMIT"#;
    let (_, messages, _) =
        captured(ORDERS, "group_by = \"table\"", &[transaction, "INSERT INTO orders VALUES (4, 1, 'a')"], 4).await;
    let annotations: Vec<&Value> =
        messages.iter().map(|message| &message["metadata"]["transaction_annotations"]).collect();
    assert_eq!(annotations, [&Value::Null, &json!({"user": "ann", "n": 1.5}), &Value::Null, &Value::Null]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_fills_up_and_never_passes_its_sizes() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE t (id int PRIMARY KEY, body text)").await;
    let receiver = Receiver::scripted(|request| Reply::status(if request.number % 3 == 0 { 500 } else { 200 })).await;
    let sink = "batch_size = 10\nbatch_bytes = \"8KiB\"\nbatch_timeout = \"50ms\"\nmax_in_flight = 4";
    let _daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), sink)).await;
    // Small rows fill by number, middling ones by bytes, large ones go alone.
    postgres.sql("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 100) i").await;
    postgres.sql("INSERT INTO t SELECT i, repeat('x', 1500) FROM generate_series(101, 140) i").await;
    postgres.sql("INSERT INTO t SELECT i, repeat('x', 20000) FROM generate_series(141, 145) i").await;
    receiver.wait_acknowledged(145).await;
    let requests = receiver.requests();
    assert!(requests.iter().all(|request| request.messages.len() <= 10));
    assert!(requests.iter().any(|request| request.messages.len() == 10), "small messages should fill batches");
    let too_big = requests.iter().filter(|request| request.messages.len() > 1 && request.body.len() > 8 * 1024);
    assert_eq!(too_big.count(), 0);
    receiver.ledger(|ledger| ledger.assert_clean());
}

//! Logical messages: an outbox without a table, and the annotations of a transaction.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::daemon::{Config, Daemon};
use crate::outage::wait_confirmed;
use crate::postgres::Postgres;
use crate::receiver::{Keep, Receiver, Reply, Request, parallel, unreliable};

/// The SQL that writes a message in its transaction.
fn emit(prefix: &str, content: &str) -> String {
    format!("SELECT pg_logical_emit_message(true, '{prefix}', '{content}');")
}

/// A configuration of one sink that has no tables.
fn outbox(postgres: &Postgres, receiver: &Receiver, lines: &str) -> Config {
    let text = Config::source(postgres) + &Config::sink("orders", &receiver.url(), &format!("{lines}\n"));
    Config::new(&text.replace("tables = [\"public.*\"]\n", ""))
}

fn prefixes(messages: &[Value]) -> Vec<&str> {
    messages.iter().map(|message| message["metadata"]["prefix"].as_str().unwrap_or("-")).collect()
}

fn body(request: &Request) -> String {
    String::from_utf8(request.body.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_committed_transactions_arrive_as_they_were_written_and_others_do_not() {
    let postgres = Postgres::start();
    let receiver = Receiver::start().await;
    let config = outbox(&postgres, &receiver, "messages = [\"outbox.*\"]\nmax_in_flight = 1\ngroup_by = \"table\"");
    let daemon = Daemon::start(&config).await;
    assert_eq!(postgres.value("SELECT count(*) FROM pg_publication_tables").await, "0");
    postgres.sql(&format!("BEGIN; {} ROLLBACK", emit("outbox.a", "{\"n\":1}"))).await;
    let kept = "{ \"n\" : 12345678901234567890.50,\n \"n\":\"\\u00e9\" }";
    let transaction = [
        "BEGIN;".to_owned(),
        emit("other", "{}"),
        "SAVEPOINT s;".to_owned(),
        emit("outbox.gone", "{}"),
        "ROLLBACK TO s;".to_owned(),
        "SELECT pg_logical_emit_message(false, 'outbox.now', '{}');".to_owned(),
        emit("walhook:other", "{}"),
        emit("outbox.a", kept),
        "SELECT pg_sleep(0); COMMIT".to_owned(),
    ];
    postgres.sql(&transaction.concat()).await;
    postgres.sql(&emit("outbox.last", "null")).await;
    let messages = receiver.wait_messages(2).await;
    assert_eq!(prefixes(&messages), ["outbox.a", "outbox.last"]);
    let requests = receiver.requests();
    assert!(body(&requests[0]).contains(&format!("{{\"record\":{kept},\"changes\":null,\"action\":\"message\"")));
    let metadata = &messages[0]["metadata"];
    assert_eq!((&metadata["table_schema"], &metadata["table_name"]), (&Value::Null, &Value::Null));
    assert_eq!((&metadata["commit_idx"], &metadata["transaction_annotations"]), (&json!(2), &Value::Null));
    assert_eq!(metadata["database"], json!({"name": "app"}));
    assert!(metadata["commit_timestamp"].is_string() && metadata["commit_lsn"].is_u64());
    assert_eq!((&messages[1]["record"], &messages[1]["metadata"]["commit_idx"]), (&Value::Null, &json!(1)));
    let counted = daemon.metrics().await.sum("walhook_source_changes_total", &[("action", "message")]);
    assert_eq!(counted, Some(2.0));
    assert!(daemon.sigterm().await.success());
    assert_eq!(receiver.message_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_is_no_json_is_a_string_and_large_or_deep_json_passes() {
    let postgres = Postgres::start();
    let receiver = Receiver::start().await;
    let config = outbox(&postgres, &receiver, "messages = [\"p\"]\nmax_in_flight = 1\nmessage = \"row\"");
    let daemon = Daemon::start(&config).await;
    postgres.sql(&emit("p", "say \"hi\"")).await;
    postgres.sql(&emit("p", "")).await;
    postgres.sql("SELECT pg_logical_emit_message(true, 'p', '\\xff61'::bytea)").await;
    postgres.sql("SELECT pg_logical_emit_message(true, 'p', '[\"' || repeat('x', 5000000) || '\"]')").await;
    postgres.sql("SELECT pg_logical_emit_message(true, 'p', repeat('[', 50000) || repeat(']', 50000))").await;
    receiver.wait("five requests", |receiver| receiver.request_count() >= 5).await;
    let requests = receiver.requests();
    let records: Vec<&Value> = requests[..4].iter().map(|request| &request.messages[0]["record"]).collect();
    assert_eq!(records[..3], [&json!("say \"hi\""), &json!(""), &json!("\u{FFFD}a")]);
    assert_eq!(records[3][0].as_str().map(str::len), Some(5_000_000));
    let deep = "[".repeat(50_000) + &"]".repeat(50_000);
    assert!(body(&requests[4]).contains(&deep));
    let metadata = requests[0].messages[0]["metadata"].as_object().unwrap();
    let keys: Vec<&str> = metadata.keys().map(String::as_str).collect();
    let expected = HashSet::from(["table_schema", "table_name", "prefix", "consumer", "idempotency_key"]);
    assert_eq!(keys.into_iter().collect::<HashSet<_>>(), expected);
    let counted = daemon.wait_shown(&postgres).await.sum("walhook_source_text_fallback_values_total", &[]);
    assert_eq!(
        counted,
        Some(0.0),
        "plain text is what a message may be, and no value of a type that was not understood"
    );
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn within_a_group_messages_keep_commit_order_over_retries_and_a_crash() {
    let postgres = Postgres::start();
    let group = |message: &Value| message["record"]["group"].to_string();
    let receiver = Receiver::with(
        Keep::Ledger,
        parallel(3, move |message| Some(group(message)), unreliable(21, 20, &[500], 0..10)),
        group,
    )
    .await;
    let config = outbox(&postgres, &receiver, "messages = [\"outbox.*\"]\nbatch_size = 3");
    let mut daemon = Daemon::start(&config).await;
    // Twelve groups, each under three prefixes in turn; n counts within the group.
    let round = |from: u32, to: u32| {
        format!(
            "DO $$ BEGIN FOR n IN {from}..{to} LOOP FOR g IN 0..11 LOOP
               PERFORM pg_logical_emit_message(true, 'outbox.' || (n % 3), json_build_object('n', n, 'group', g)::text);
               IF g = 5 THEN COMMIT; END IF;
             END LOOP; COMMIT; END LOOP; END $$"
        )
    };
    postgres.sql(&round(1, 20)).await;
    receiver.wait_acknowledged(60).await;
    daemon.kill9();
    receiver.abandoned().await;
    receiver.ledger(crate::ledger::Ledger::new_run);
    daemon = Daemon::start(&config).await;
    postgres.sql(&round(21, 40)).await;
    receiver.wait_acknowledged(480).await;
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert!((0..12).all(|group| (1..=40).all(|n| ledger.has(&group.to_string(), n))));
    });
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_group_holds_itself_under_every_prefix_and_nothing_else() {
    let postgres = Postgres::start();
    let open = Arc::new(AtomicBool::new(false));
    let opened = Arc::clone(&open);
    let receiver = Receiver::scripted(move |request| {
        let bad = request.messages.iter().any(|message| message["record"]["bad"] == true);
        Reply::status(if bad && !opened.load(Ordering::Relaxed) { 500 } else { 200 })
    })
    .await;
    let config = outbox(&postgres, &receiver, "messages = [\"outbox.*\"]");
    let mut daemon = Daemon::start(&config).await;
    postgres.sql(&emit("outbox.a", "{\"group\":\"7\",\"bad\":true}")).await;
    postgres.sql(&emit("outbox.b", "{\"group\":7,\"later\":1}")).await;
    postgres.sql(&emit("outbox.a", "{\"group\":8}")).await;
    postgres.sql(&emit("outbox.a", "no group")).await;
    receiver.wait_acknowledged(2).await;
    // What waits is kept by the store, and the slot goes on.
    let end = postgres.value("SELECT pg_current_wal_lsn()").await;
    wait_confirmed(&postgres, &end, Duration::from_secs(10)).await;
    daemon.kill9();
    daemon = Daemon::start(&config).await;
    let tried = receiver.request_count();
    receiver.wait("further failures", |receiver| receiver.request_count() >= tried + 3).await;
    let later = |receiver: &Receiver| receiver.messages().iter().any(|message| message["record"]["later"] == 1);
    assert!(!later(&receiver), "the same group under another prefix overtook it");
    open.store(true, Ordering::Relaxed);
    receiver.wait_acknowledged(4).await;
    assert_eq!(receiver.messages().last().unwrap()["record"]["later"], 1);
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_group_by_nothing_waits_and_without_a_member_the_prefix_is_the_group() {
    let postgres = Postgres::start();
    let (apart, whole) = (Receiver::scripted(|_| Reply::Never).await, Receiver::scripted(|_| Reply::Never).await);
    let text = Config::source(&postgres)
        + &Config::sink("apart", &apart.url(), "messages = [\"*\"]\ngroup_by = \"none\"")
        + &Config::sink("whole", &whole.url(), "messages = [\"*\"]");
    let _daemon = Daemon::start(&Config::new(&text)).await;
    for n in 0..6 {
        postgres.sql(&emit(&format!("p{}", n % 2), &format!("{{\"n\":{n}}}"))).await;
    }
    apart.wait("all at once", |receiver| receiver.message_count() == 6).await;
    whole.wait("one of each prefix", |receiver| receiver.message_count() == 2).await;
    assert_eq!(prefixes(&whole.messages()).into_iter().collect::<HashSet<_>>(), HashSet::from(["p0", "p1"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_prefixes_there_are_each_message_arrives() {
    let postgres = Postgres::start();
    let receiver = Receiver::start().await;
    let config = outbox(&postgres, &receiver, "messages = [\"*\"]\nbatch_size = 200");
    let daemon = Daemon::start(&config).await;
    postgres.sql("SELECT count(pg_logical_emit_message(true, 'p' || i, '{}')) FROM generate_series(1, 20000) i").await;
    postgres.sql("SELECT pg_logical_emit_message(true, repeat('x', 100000), '{}')").await;
    receiver.wait_acknowledged(20_001).await;
    let messages = receiver.messages();
    let seen: HashSet<&str> = prefixes(&messages).into_iter().collect();
    assert!((1..=20_000).all(|n| seen.contains(format!("p{n}").as_str())));
    let long = seen.iter().find(|prefix| prefix.starts_with('x')).unwrap();
    assert!(long.len() <= 255 && long.ends_with('…'), "{long}");
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_messages_share_the_places_of_a_transaction_whoever_takes_them() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE t (id int PRIMARY KEY)").await;
    let (both, rows) = (Receiver::start().await, Receiver::start().await);
    let text = Config::source(&postgres)
        + &Config::sink("both", &both.url(), "messages = [\"outbox\"]\nbatch_size = 10\nbatch_timeout = \"1s\"")
        + &Config::sink("rows", &rows.url(), "");
    let daemon = Daemon::start(&Config::new(&text)).await;
    let transaction = [
        "BEGIN; INSERT INTO t VALUES (1);".to_owned(),
        emit("outbox", "1"),
        "INSERT INTO t VALUES (2);".to_owned(),
        emit("foreign", "2"),
        emit("walhook:x", "3"),
        "INSERT INTO t VALUES (3); COMMIT".to_owned(),
    ];
    postgres.sql(&transaction.concat()).await;
    both.wait_acknowledged(4).await;
    rows.wait_acknowledged(3).await;
    let places = |receiver: &Receiver| {
        let index = |message: &Value| message["metadata"]["commit_idx"].as_u64().unwrap();
        let mut all: Vec<(u64, String)> =
            receiver.messages().iter().map(|message| (index(message), message["action"].to_string())).collect();
        all.sort();
        all.into_iter().map(|(index, _)| index).collect::<Vec<_>>()
    };
    assert_eq!(places(&both), [1, 2, 3, 5]);
    assert_eq!(places(&rows), [1, 3, 5]);
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_27_annotations_are_of_their_transaction_and_everything_else_is_passed_over() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE t (id int PRIMARY KEY)").await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(
        &postgres,
        &receiver.url(),
        "messages = [\"outbox\"]\ngroup_by = \"table\"\nmax_in_flight = 1",
    );
    let daemon = Daemon::start(&config).await;
    let (set, clear) = ("walhook:transaction_annotations.set", "walhook:transaction_annotations.clear");
    let insert = |id: u32| format!("INSERT INTO t VALUES ({id});");
    let outside = format!("SELECT pg_logical_emit_message(false, '{set}', '\"outside\"');");
    let too_large = format!("SELECT pg_logical_emit_message(true, '{set}', repeat('1', 16385));");
    let largest = format!("SELECT pg_logical_emit_message(true, '{set}', '\"' || repeat('1', 16382) || '\"');");
    let transaction = [
        "BEGIN;".to_owned(),
        outside.clone() + &emit("foreign", "\"foreign\"") + &emit("walhook:annotations.set", "1") + &insert(1),
        emit(set, "{\"by\": \"ada\"}") + &outside + &insert(2) + &emit("outbox", "{}"),
        "SAVEPOINT s;".to_owned() + &emit(set, "\"gone\"") + &insert(90) + "ROLLBACK TO s;" + &insert(3),
        "SAVEPOINT s;".to_owned() + &emit(clear, "") + "ROLLBACK TO s;" + &insert(4),
        emit(set, "not json") + &insert(5),
        too_large + &insert(6),
        largest + &insert(7),
        emit(set, "") + &insert(8),
        emit(clear, "whatever") + &insert(9),
        emit(set, "\"last\"") + "COMMIT",
    ];
    postgres.sql(&transaction.concat()).await;
    postgres.sql(&insert(10)).await;
    let messages = receiver.wait_messages(11).await;
    let annotation = |record: &Value| {
        let message = messages.iter().find(|message| message["record"] == *record).unwrap();
        message["metadata"]["transaction_annotations"].clone()
    };
    let of_row = |id: u32| annotation(&json!({ "id": id }));
    let ada = json!({"by": "ada"});
    assert_eq!([1, 2, 3, 4, 5].map(of_row), [Value::Null, ada.clone(), ada.clone(), ada.clone(), json!("not json")]);
    assert_eq!(annotation(&json!({})), ada, "a logical message carries it too");
    assert!(of_row(6).as_str().unwrap().contains("16385 bytes left out"), "{}", of_row(6));
    assert_eq!(of_row(7).as_str().map(str::len), Some(16_382));
    assert_eq!([8, 9, 10].map(of_row), [json!(""), Value::Null, Value::Null]);
    daemon.wait_logged("an annotation is left out: 16384 bytes are allowed").await;
    assert!(daemon.sigterm().await.success());
    assert_eq!(receiver.message_count(), 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_database_that_is_not_utf8_the_prefix_is_converted_and_the_content_is_as_it_was_written() {
    let postgres = Postgres::start();
    postgres.database("latin", "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0").await;
    let client = postgres.client_of("latin").await;
    let receiver = Receiver::start().await;
    let text = Config::source(&postgres).replace(&postgres.url(), &postgres.cluster.url("latin"))
        + &Config::sink("orders", &receiver.url(), "messages = [\"é.*\"]\nmax_in_flight = 1");
    let daemon = Daemon::start(&Config::new(&text)).await;
    client.batch_execute(&emit("é.a", "{\"a\":\"é\"}")).await.unwrap();
    let converted = "SELECT pg_logical_emit_message(true, 'é.a', convert_to('{\"a\":\"é\"}', 'UTF8'))";
    client.batch_execute(converted).await.unwrap();
    let messages = receiver.wait_messages(2).await;
    assert_eq!(prefixes(&messages), ["é.a", "é.a"]);
    assert_eq!([&messages[0]["record"]["a"], &messages[1]["record"]["a"]], ["\u{FFFD}", "é"]);
    assert!(daemon.sigterm().await.success());
}

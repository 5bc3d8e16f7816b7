//! P1 and P6: a change that is larger than its bound is a dead letter that says so, in bounded memory, and everything around
//! it goes on.

use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use crate::daemon::{Config, Daemon, field, message_of};
use crate::postgres::{Postgres, state, until, until_within};
use crate::pressure::full;
use crate::receiver::{Keep, Receiver, Reply, row_of};

/// Peak resident memory that is allowed with the limits below, KiB: the memory limit, and what the process takes beside it.
const PEAK_KIB: u64 = 150 * 1024;
const LIMITS: &str = "[limits]\nmemory_limit = \"32MiB\"\nmax_message = \"4MiB\"\n";
const TABLE: &str = "CREATE TABLE docs (id int PRIMARY KEY, title text, body text, extra jsonb);
    ALTER TABLE docs ALTER body SET STORAGE EXTERNAL";

/// Megabytes of the large field, and how long to wait for it.
fn sizes() -> Vec<(u64, Duration)> {
    let sizes: &[u64] = if full() { &[200, 600] } else { &[40] };
    sizes.iter().map(|megabytes| (*megabytes, Duration::from_secs(60 + megabytes))).collect()
}

struct Case {
    postgres: Postgres,
    receiver: Receiver,
    config: Config,
    daemon: Daemon,
}

async fn begin(setup: &str, state_lines: &str, sink: &str) -> Case {
    let postgres = Postgres::start();
    postgres.sql(setup).await;
    let receiver = Receiver::start().await;
    let text = Config::source(&postgres)
        + LIMITS
        + &format!("[state]\n{state_lines}\n")
        + &Config::sink("orders", &receiver.url(), sink);
    let config = Config::new(&text);
    let daemon = Daemon::start(&config).await;
    Case { postgres, receiver, config, daemon }
}

impl Case {
    /// A row of so many bytes between two small ones, all of the same transaction.
    async fn insert(&self, bytes: u64) {
        let sql = format!(
            "BEGIN;
             INSERT INTO docs VALUES (1, 'before', 'x', '{{}}');
             INSERT INTO docs VALUES (2, 'large', repeat('y', {bytes}), '{{\"a\": 1}}');
             INSERT INTO docs VALUES (3, 'after', 'z', NULL);
             COMMIT"
        );
        self.postgres.sql(&sql).await;
    }

    async fn wait_dead(&self, count: f64, deadline: Duration) {
        until_within(deadline, "dead letters", || async {
            let metrics = self.daemon.metrics().await;
            let dead = metrics.sum("walhook_sink_dead_letters_total", &[("reason", "too_large")]);
            state(dead == Some(count), (dead, self.receiver.message_count()))
        })
        .await;
    }

    /// The dead letters of the store: reason and body.
    async fn dead_letters(&self) -> Vec<(String, Value)> {
        let path = self.config.state().join("state.db");
        until("the dead letters to be in the store", || async {
            let letters = read_dead_letters(&path);
            if letters.is_empty() { Err(letters) } else { Ok(letters) }
        })
        .await
    }

    fn assert_small(&self) {
        let peak = self.daemon.peak_kib();
        println!("peak {peak} KiB");
        assert!(peak <= PEAK_KIB, "{peak} KiB resident at the peak");
    }
}

fn read_dead_letters(path: &std::path::Path) -> Vec<(String, Value)> {
    let Ok(db) = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY) else { return Vec::new() };
    let sql =
        "SELECT d.dead_reason, c.body FROM delivery d JOIN delivery_content c ON c.delivery = d.key WHERE d.state = 2";
    let mut select = db.prepare(sql).unwrap();
    let rows = select.query_map([], |row| Ok((row.get(0)?, unsealed(&row.get::<_, Vec<u8>>(1)?)))).unwrap();
    rows.map(Result::unwrap).collect()
}

/// A body as the store seals it: kind, length as a varint, 8 bytes of checksum, then the bytes, maybe in lz4.
fn unsealed(sealed: &[u8]) -> Value {
    let digits = sealed[1..].iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
    let low_first = sealed[1..=digits].iter().rev();
    let length = low_first.fold(0usize, |length, byte| length << 7 | usize::from(byte & 0x7F));
    let payload = &sealed[1 + digits + 8..];
    let body = if sealed[0] == 2 { lz4_flex::block::decompress(payload, length).unwrap() } else { payload.to_vec() };
    serde_json::from_slice(&body).unwrap()
}

/// Ids of the rows that arrived.
fn ids(receiver: &Receiver) -> Vec<i64> {
    receiver.messages().iter().map(|message| message["record"]["id"].as_i64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_51_a_huge_value_is_a_dead_letter_and_its_neighbours_arrive_in_order() {
    for (megabytes, deadline) in sizes() {
        let bytes = megabytes * 1_000_000;
        // They would all fit into one delivery by their number.
        let sink = "group_by = \"table\"\nbatch_size = 10\nbatch_timeout = \"1s\"";
        let case = begin(TABLE, "", sink).await;
        case.insert(bytes).await;
        case.receiver.wait_within(deadline, "both small rows", |receiver| receiver.message_count() >= 2).await;
        case.wait_dead(1.0, deadline).await;
        assert_eq!(ids(&case.receiver), [1, 3]);
        case.receiver.ledger(|ledger| ledger.assert_clean());

        let letters = case.dead_letters().await;
        let [(reason, body)] = &letters[..] else { panic!("{letters:?}") };
        let message = &body["data"][0];
        assert_eq!(reason, "too_large");
        assert_eq!(message["record"], json!({"id": 2, "title": "large", "extra": {"a": 1}}));
        assert_eq!(message["metadata"]["too_large"], json!({"body": bytes}));
        assert_eq!(message["metadata"].get("unchanged"), None);

        let said: Vec<Value> =
            case.daemon.logs().into_iter().filter(|line| message_of(line).contains("max_message")).collect();
        assert_eq!(said.len(), 1, "it is said once: {said:?}");
        assert_eq!(field(&said[0], "table"), Some(&json!("public.docs")));
        assert_eq!(field(&said[0], "index"), Some(&json!(2)));
        assert!(field(&said[0], "bytes").and_then(Value::as_u64) > Some(bytes), "{said:?}");
        let metrics = case.daemon.metrics().await;
        assert_eq!(metrics.sum("walhook_source_oversized_changes_total", &[]), Some(1.0));
        assert_eq!(metrics.sum("walhook_sink_attempts_total", &[("outcome", "failed")]), Some(0.0));
        case.assert_small();
        // The stream goes on, and the slot with it.
        case.postgres.sql("INSERT INTO docs VALUES (4, 'later', 'z', NULL)").await;
        case.receiver.wait_messages(3).await;
        until("the slot to follow", || async {
            let lag = case.postgres.lag_bytes("walhook_app").await;
            state(lag.is_some_and(|lag| lag < 1_000_000), lag)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_51_updates_and_deletes_with_huge_old_values_are_dead_letters_too() {
    let case = begin(&format!("{TABLE}; ALTER TABLE docs REPLICA IDENTITY FULL"), "", "").await;
    case.insert(5_000_000).await;
    case.postgres.sql("UPDATE docs SET title = 'small now', body = 'b' WHERE id = 2").await;
    case.postgres.sql("UPDATE docs SET title = 'renamed' WHERE id = 2").await;
    case.postgres.sql("UPDATE docs SET body = repeat('y', 5000000) WHERE id = 3").await;
    case.postgres.sql("DELETE FROM docs WHERE id = 3").await;
    case.postgres.sql("INSERT INTO docs VALUES (4, 'last', 'z', NULL)").await;
    case.wait_dead(4.0, Duration::from_secs(60)).await;
    case.receiver.wait("the other four", |receiver| receiver.message_count() >= 4).await;
    let mut seen = ids(&case.receiver);
    seen.sort_unstable();
    assert_eq!(seen, [1, 2, 3, 4], "the second update of 2 is small");
    for (_, body) in case.dead_letters().await {
        assert_eq!(body["data"][0]["metadata"]["too_large"], json!({"body": 5_000_000}), "{body}");
        assert_eq!(body["data"][0]["record"].get("body"), None);
        assert!(body["data"][0]["changes"].get("body").is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_just_under_the_bound_passes_whole() {
    let case = begin(TABLE, "", "").await;
    // The bound counts what stands around the values too: lengths and kinds.
    let most = 4 * 1024 * 1024 - 100;
    case.postgres.sql(&format!("INSERT INTO docs VALUES (1, 'plain', repeat('y', {most}), NULL)")).await;
    case.postgres
        .sql(&format!("INSERT INTO docs VALUES (2, 'six times as long in JSON', repeat(E'\\x01', {most}), NULL)"))
        .await;
    case.postgres.sql(&format!("INSERT INTO docs VALUES (3, 'too large', repeat('y', {most} + 100), NULL)")).await;
    case.receiver.wait_messages(2).await;
    case.wait_dead(1.0, Duration::from_secs(60)).await;
    let mut messages = case.receiver.messages();
    messages.sort_by_key(|message| message["record"]["id"].as_i64());
    for (message, letter) in messages.iter().zip(["y", "\u{1}"]) {
        assert_eq!(message["record"]["body"].as_str().map(str::len), Some(most));
        assert!(message["record"]["body"].as_str().unwrap().starts_with(letter));
    }
    case.assert_small();
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_51_a_huge_change_that_was_a_dead_letter_is_not_one_again_after_a_crash() {
    let Case { postgres, receiver, config, daemon } = begin(TABLE, "", "").await;
    receiver.script(|_| Reply::Never);
    let case = Case { postgres, receiver, config, daemon };
    case.insert(20_000_000).await;
    case.wait_dead(1.0, Duration::from_secs(60)).await;
    assert_eq!(case.dead_letters().await.len(), 1);
    case.receiver.wait("the small ones to be tried", |receiver| receiver.request_count() >= 2).await;

    let Case { postgres, receiver, config, daemon } = case;
    daemon.kill9();
    receiver.abandoned().await;
    receiver.ledger(|ledger| ledger.new_run());
    receiver.script(|_| Reply::status(200));
    let daemon = Daemon::start(&config).await;
    let case = Case { postgres, receiver, config, daemon };
    case.receiver.wait_acknowledged(2).await;
    case.postgres.sql("INSERT INTO docs VALUES (4, 'later', 'z', NULL)").await;
    case.receiver.wait_acknowledged(3).await;
    assert_eq!(case.dead_letters().await.len(), 1, "it came again, and was known");
    assert!(!ids(&case.receiver).contains(&2), "it is never sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_51_a_huge_change_that_waited_in_the_store_is_never_sent() {
    let Case { postgres, receiver, config, daemon } = begin(TABLE, "", "group_by = \"table\"\nbatch_size = 10").await;
    receiver.script(|_| Reply::status(500));
    let case = Case { postgres, receiver, config, daemon };
    postgres_first(&case).await;
    case.insert_behind().await;
    until("what waits to be in the store", || async {
        let metrics = case.daemon.metrics().await;
        let lanes = metrics.sum("walhook_sink_lane_messages", &[]).unwrap_or_default();
        let overflow = metrics.sum("walhook_sink_overflow_messages", &[]).unwrap_or_default();
        state(lanes + overflow >= 3.0, (lanes, overflow))
    })
    .await;

    let Case { postgres, receiver, config, daemon } = case;
    daemon.kill9();
    receiver.abandoned().await;
    receiver.ledger(|ledger| ledger.new_run());
    receiver.script(|_| Reply::status(200));
    let daemon = Daemon::start(&config).await;
    let case = Case { postgres, receiver, config, daemon };
    case.receiver.wait_acknowledged(3).await;
    case.wait_dead(1.0, Duration::from_secs(60)).await;
    let letters = case.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].1["data"][0]["metadata"]["too_large"], json!({"body": 5_000_000}));
    assert!(!ids(&case.receiver).contains(&11), "it is never sent");
    case.receiver.ledger(|ledger| ledger.assert_clean());
}

/// A row whose delivery fails.
async fn postgres_first(case: &Case) {
    case.postgres.sql("INSERT INTO docs VALUES (9, 'first', 'x', NULL)").await;
    case.receiver.wait("a failure", |receiver| receiver.request_count() >= 1).await;
}

impl Case {
    /// A large row between small ones, in the group of one that fails.
    async fn insert_behind(&self) {
        let sql = "INSERT INTO docs VALUES (10, 'before', 'x', NULL), (11, 'large', repeat('y', 5000000), NULL), (12, 'after', 'x', NULL)";
        self.postgres.sql(sql).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_change_blocks_its_group_where_the_sink_says_so() {
    let retry = "group_by = \"table\"\n[sink.orders.retry]\ninitial = \"50ms\"\nmax = \"200ms\"\non_exhausted = \"block_group\"";
    let case = begin(&format!("{TABLE}; CREATE TABLE other (id int PRIMARY KEY)"), "", retry).await;
    case.insert(5_000_000).await;
    case.daemon.wait_logged("its groups wait for a person").await;
    // Told of like any failure, though no request was made of it.
    case.daemon.wait_logged("delivery failed").await;
    // What comes after it in other groups arrives; by then what is behind it in its own would have.
    case.postgres.sql("INSERT INTO other VALUES (50)").await;
    case.receiver.wait("the other table's row", |receiver| ids(receiver).contains(&50)).await;
    assert_eq!(ids(&case.receiver), [1, 50]);
    let metrics = case.daemon.metrics().await;
    assert_eq!(metrics.sum("walhook_sink_dead_letters_total", &[]), Some(0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_change_is_a_dead_letter_also_where_nothing_waits_in_the_store() {
    let case = begin(TABLE, "hold = \"wal\"", "").await;
    case.insert(5_000_000).await;
    case.wait_dead(1.0, Duration::from_secs(60)).await;
    case.receiver.wait_messages(2).await;
    assert_eq!(case.dead_letters().await.len(), 1, "dead letters are kept in the store, whatever holds what waits");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_annotation_that_is_too_large_says_so_in_its_place() {
    let receiver = Receiver::with(Keep::All, |_| Reply::status(200), row_of).await;
    let postgres = Postgres::start();
    postgres.sql(TABLE).await;
    let text = Config::source(&postgres) + LIMITS + &Config::sink("orders", &receiver.url(), "");
    let daemon = Daemon::start(&Config::new(&text)).await;
    let sql = "BEGIN;
        SELECT length(pg_logical_emit_message(true, 'walhook:transaction_annotations.set', repeat('a', 20000000))::text);
        INSERT INTO docs VALUES (1, 'annotated', 'x', NULL);
        COMMIT";
    postgres.sql(sql).await;
    let messages = receiver.wait_messages(1).await;
    let said = messages[0]["metadata"]["transaction_annotations"].as_str().unwrap_or_default();
    assert!(said.contains("bytes left out"), "{said}");
    assert!(daemon.peak_kib() <= PEAK_KIB, "{} KiB", daemon.peak_kib());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logical_message_that_is_too_large_is_a_dead_letter() {
    let case = begin(TABLE, "", "messages = [\"outbox.*\"]").await;
    for content in ["repeat('a', 20000000)", "'{\"n\": 1}'"] {
        case.postgres.sql(&format!("SELECT pg_logical_emit_message(true, 'outbox.orders', {content}) IS NULL")).await;
    }
    case.wait_dead(1.0, Duration::from_secs(60)).await;
    let messages = case.receiver.wait_messages(1).await;
    assert_eq!(messages[0]["record"], json!({"n": 1}));
    let letters = case.dead_letters().await;
    let message = &letters[0].1["data"][0];
    assert_eq!((&message["record"], &message["metadata"]["prefix"]), (&Value::Null, &json!("outbox.orders")));
    assert!(message["metadata"]["too_large"]["record"].as_u64() > Some(20_000_000), "{message}");
    case.assert_small();
}

/// Needs some gigabytes of memory for the server, so it runs at full size only.
#[tokio::test(flavor = "multi_thread")]
async fn pitfall_51_what_the_server_cannot_send_is_skipped_by_a_person() {
    if !full() {
        return;
    }
    let setup = "CREATE TABLE docs (id int PRIMARY KEY, body bytea); ALTER TABLE docs ALTER body SET STORAGE EXTERNAL";
    let case = begin(setup, "", "").await;
    case.postgres.sql("INSERT INTO docs VALUES (1, 'small')").await;
    case.receiver.wait_messages(1).await;
    // As text it would have 1.2 GB, which the server does not make.
    case.postgres.sql("INSERT INTO docs VALUES (2, convert_to(repeat('y', 600000000), 'UTF8'))").await;
    case.daemon.wait_logged("invalid memory alloc request size").await;
    let said = case.daemon.wait_not_ready().await;
    println!("{said}");

    let Case { postgres, receiver, config, daemon } = case;
    assert!(daemon.sigterm().await.success());
    postgres.admin_sql("SELECT pg_replication_slot_advance('walhook_app', pg_current_wal_lsn())").await;
    let accepted = config.state_command(&["accept-gap"]);
    println!("{}", crate::daemon::text_of(&accepted));
    let daemon = Daemon::start(&config).await;
    postgres.sql("INSERT INTO docs VALUES (3, 'small')").await;
    receiver.wait_messages(2).await;
    assert_eq!(ids(&receiver), [1, 3]);
    assert!(daemon.peak_kib() <= PEAK_KIB, "{} KiB", daemon.peak_kib());
}

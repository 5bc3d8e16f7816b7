//! Faults of the store and its disk.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use rusqlite::{Connection, params};
use serde_json::Value;

use super::Fault;
use crate::daemon::{Config, Daemon, field, message_of, text_of, troubles};
use crate::order::counters;
use crate::postgres::{Postgres, state, until};
use crate::receiver::{Keep, Receiver, Reply, Request, row_of};

/// `state.db` of a daemon that does not run.
pub(super) fn state_db(directory: &Path) -> Connection {
    Connection::open(directory.join("state.db")).unwrap()
}

/// One bit of one blob changes.
fn flip(db: &Connection, table: &str, column: &str) {
    let select = format!("SELECT rowid, {column} FROM {table} ORDER BY rowid DESC LIMIT 1");
    let (row, mut blob): (i64, Vec<u8>) = db.query_row(&select, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    *blob.last_mut().unwrap() ^= 0x10;
    db.execute(&format!("UPDATE {table} SET {column} = ?2 WHERE rowid = ?1"), params![row, blob]).unwrap();
}

/// A store in which something waits everywhere: failed deliveries of several messages, lanes, the overflow.
struct Waiting {
    postgres: Postgres,
    receiver: Receiver,
    config: Config,
}

impl Waiting {
    async fn begin(sink: &str) -> Self {
        let postgres = Postgres::start();
        counters(&postgres).await;
        // A status that says nothing of the endpoint, so that the breaker stays closed.
        let is_refused = |message: &Value| message["record"]["id"] == 1;
        let script =
            move |request: &Request| Reply::status(if request.messages.iter().any(is_refused) { 409 } else { 200 });
        let receiver = Receiver::with(Keep::All, script, row_of).await;
        let config = Config::one_sink(&postgres, &receiver.url(), &format!("batch_size = 5\n{sink}"));
        let daemon = Daemon::start(&config).await;
        let held =
            async |name: &str| daemon.metrics().await.sum(&format!("walhook_sink_{name}"), &[]).unwrap_or_default();
        let raise = "UPDATE counters SET n = n + 1 WHERE id = 1";
        postgres.sql(&format!("BEGIN; INSERT INTO counters VALUES (1, 0); {}; COMMIT", [raise; 14].join("; "))).await;
        until("a delivery of several messages and those behind it to be in the store", || async {
            let held = (held("stored_deliveries").await, held("lane_messages").await);
            state(held == (1.0, 10.0), held)
        })
        .await;
        receiver.script(|_| Reply::status(503));
        until("messages to overflow", || async {
            let more = "INSERT INTO counters SELECT more + i, 0
                        FROM (SELECT max(id) AS more FROM counters) AS m, generate_series(1, 6) AS i";
            postgres.sql(more).await;
            let held = held("overflow_messages").await;
            state(held >= 20.0, held)
        })
        .await;
        assert!(daemon.sigterm().await.success());
        Self { postgres, receiver, config }
    }

    /// Every change, as row and counter.
    async fn written(&self) -> BTreeSet<(i64, i64)> {
        let rows = self.postgres.rows("SELECT id, i FROM counters, generate_series(0, n) AS i").await;
        let number = |text: &Option<String>| text.as_ref().unwrap().parse().unwrap();
        rows.iter().map(|row| (number(&row[0]), number(&row[1]))).collect()
    }

    /// The changes that were acknowledged, in the order of the answers.
    fn delivered(&self) -> Vec<(i64, i64)> {
        let change =
            |message: Value| (message["record"]["id"].as_i64().unwrap(), message["record"]["n"].as_i64().unwrap());
        self.receiver.acknowledged().into_iter().map(change).collect()
    }

    /// Waits until the daemon names so many damaged messages in `/readyz` and as a metric; their ids, as the log has them.
    async fn wait_damaged(&self, daemon: &Daemon, count: usize) -> Vec<String> {
        until("the damaged messages to be named", || async {
            let body = daemon.ready().await.map(|(_, body)| body).unwrap_or_default();
            let said = troubles(&body);
            let metric = daemon.metrics().await.sum("walhook_sink_damaged_messages", &[]);
            let is_said = said.contains(&format!("{count} messages in the store are damaged"))
                && said.contains("walhook state drop-message MSG_ID")
                && metric == Some(f64::from(u32::try_from(count).unwrap()));
            state(is_said, (said, metric))
        })
        .await;
        let lines =
            daemon.logs().into_iter().filter(|line| message_of(line).contains("a message in the store is damaged"));
        let ids = lines.map(|line| field(&line, "message_id").unwrap().as_str().unwrap().to_owned());
        let ids: Vec<String> = ids.collect();
        let (_, body) = daemon.ready().await.unwrap();
        assert!(ids.iter().all(|id| troubles(&body).contains(id)), "{ids:?}: {body}");
        ids
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_that_flips_costs_the_one_message_that_it_is_in() {
    let waiting = Waiting::begin("").await;
    let db = state_db(&waiting.config.state());
    let places = [("lane", "message"), ("page_content", "messages"), ("delivery_content", "body")];
    places.iter().for_each(|(table, column)| flip(&db, table, column));
    drop(db);
    waiting.receiver.script(|_| Reply::status(200));
    let since = Instant::now();
    let daemon = Daemon::start(&waiting.config).await.allow_error("a message in the store is damaged");
    let written = waiting.written().await;
    let ids = waiting.wait_damaged(&daemon, places.len()).await;
    Fault::ended("store: one bit of a message", since);
    assert_eq!(ids.len(), places.len(), "{ids:?}");
    waiting.receiver.wait_acknowledged(written.len() - places.len()).await;
    let delivered = waiting.delivered();
    let came: BTreeSet<(i64, i64)> = delivered.iter().copied().collect();
    assert_eq!(written.difference(&came).count(), places.len(), "all others are delivered");
    let of_one: Vec<i64> = delivered.iter().filter(|(id, _)| *id == 1).map(|(_, n)| *n).collect();
    assert!(of_one.is_sorted(), "a group keeps its order around what is lost: {of_one:?}");
    let dead = daemon.metrics().await.sum("walhook_sink_dead_letters_total", &[("reason", "damaged")]);
    assert_eq!(dead, Some(3.0));
    assert!(daemon.sigterm().await.success());

    let daemon = Daemon::start(&waiting.config).await;
    waiting.wait_damaged(&daemon, places.len()).await;
    assert!(daemon.sigterm().await.success());
    let since = Instant::now();
    for id in &ids {
        let dropped = waiting.config.state_command(&["drop-message", id]);
        assert!(dropped.status.success(), "{}", text_of(&dropped));
        assert!(text_of(&dropped).contains("a dead letter"), "{}", text_of(&dropped));
        assert_eq!(waiting.config.state_command(&["drop-message", id]).status.code(), Some(69), "it is dropped once");
    }
    let daemon = Daemon::start(&waiting.config).await;
    let (_, body) = daemon.ready().await.unwrap();
    assert!(!troubles(&body).contains("damaged"), "{body}");
    Fault::mended("store: one bit of a message", since);
    assert_eq!(daemon.metrics().await.sum("walhook_sink_damaged_messages", &[]), Some(0.0));
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_damaged_message_its_group_waits_for_a_person_where_the_sink_says_so() {
    let waiting =
        Waiting::begin("[sink.orders.retry]\ninitial = \"100ms\"\nmax = \"400ms\"\non_exhausted = \"block_group\"")
            .await;
    let db = state_db(&waiting.config.state());
    // Row 1 came before all others.
    let first: i64 = db.query_row("SELECT rowid FROM lane ORDER BY lsn, idx LIMIT 1", [], |row| row.get(0)).unwrap();
    db.execute("UPDATE lane SET message = CAST(message || x'00' AS BLOB) WHERE rowid = ?1", [first]).unwrap();
    drop(db);
    waiting.receiver.script(|_| Reply::status(200));
    let daemon = Daemon::start(&waiting.config).await.allow_error("a message in the store is damaged");
    let ids = waiting.wait_damaged(&daemon, 1).await;
    let written = waiting.written().await;
    let of_others = written.iter().filter(|(id, _)| *id != 1).count();
    until("all other groups to go on", || async {
        let others = waiting.delivered().into_iter().filter(|(id, _)| *id != 1).collect::<BTreeSet<_>>().len();
        state(others == of_others, (others, of_others))
    })
    .await;
    let before = waiting.delivered().iter().filter(|(id, _)| *id == 1).count();
    assert!(daemon.sigterm().await.success());
    let dropped = waiting.config.state_command(&["drop-message", &ids[0]]);
    assert!(text_of(&dropped).contains("a failed delivery"), "{}", text_of(&dropped));
    let daemon = Daemon::start(&waiting.config).await;
    waiting.receiver.wait_acknowledged(written.len() - 1).await;
    let of_one: Vec<i64> = waiting.delivered().iter().filter(|(id, _)| *id == 1).map(|(_, n)| *n).collect();
    assert!(of_one.len() > before && of_one.is_sorted(), "the group goes on in order: {of_one:?}");
    assert!(daemon.sigterm().await.success());
}

/// A daemon that has delivered five rows and has stopped.
async fn used() -> (Postgres, Receiver, Config) {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let daemon = Daemon::start(&config).await;
    postgres.sql("INSERT INTO counters SELECT i, 0 FROM generate_series(1, 5) AS i").await;
    receiver.wait_acknowledged(5).await;
    daemon.wait_shown(&postgres).await;
    assert!(daemon.sigterm().await.success());
    (postgres, receiver, config)
}

/// A start ends with 69, and its last words name what was found and the command that accepts it. Nothing is delivered.
async fn ends_by_damage(config: &Config, receiver: &Receiver, found: &str) {
    let before = receiver.message_count();
    let since = Instant::now();
    let mut daemon = Daemon::launch(config).allow_error("walhook ends");
    let status = daemon.wait_exit().await;
    Fault::ended(&format!("store: {found}"), since);
    let printed = daemon.printed();
    assert_eq!(status.code(), Some(69), "{printed}");
    let last = printed.lines().last().unwrap_or_default();
    assert!(last.contains(found) && last.contains("walhook state accept-loss"), "{found:?} is not in {last:?}");
    assert_eq!(receiver.message_count(), before);
    let checked = crate::daemon::walhook(&["check", "--config", &config.path().to_string_lossy()]);
    assert!(text_of(&checked).contains("accept-loss"), "{}", text_of(&checked));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_gone_emptied_or_cut_off_is_damage_until_its_loss_is_accepted() {
    let (postgres, receiver, config) = used().await;
    let path = config.state().join("state.db");
    let mut rows = 5;
    for found in ["is gone", "is empty", "is damaged"] {
        match found {
            "is gone" => std::fs::remove_file(&path).unwrap(),
            "is empty" => std::fs::write(&path, "").unwrap(),
            _ => std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096 * 6).unwrap(),
        }
        ends_by_damage(&config, &receiver, found).await;
        ends_by_damage(&config, &receiver, found).await;
        let since = Instant::now();
        let accepted = config.state_command(&["accept-loss"]);
        assert!(accepted.status.success(), "{}", text_of(&accepted));
        let daemon = Daemon::start(&config).await;
        daemon.wait_logged("the store knows nothing of this source").await;
        Fault::mended(&format!("store: {found}"), since);
        rows += 1;
        postgres.sql(&format!("INSERT INTO counters VALUES ({rows}, 0)")).await;
        receiver.wait_acknowledged(rows).await;
        daemon.wait_shown(&postgres).await;
        assert!(daemon.sigterm().await.success());
    }
    // A directory that is missing as a whole is none that was damaged.
    config.remove_state();
    let daemon = Daemon::start(&config).await;
    daemon.wait_logged("the store knows nothing of this source").await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_digit_of_progress_is_found_before_a_row_is_skipped() {
    let (postgres, receiver, config) = used().await;
    let mut rows = 5;
    for (change, found) in [
        ("UPDATE sink SET high_lsn = high_lsn + 65536", "how far sink orders of source app is"),
        ("UPDATE sink SET resolved = resolved + 1048576", "how far sink orders of source app is"),
        ("UPDATE source SET confirmed = confirmed - 1", "the binding of source app"),
        ("UPDATE source SET confirmed = confirmed + 1", "the binding of source app"),
        ("UPDATE source SET timeline = 7", "the binding of source app"),
    ] {
        postgres
            .sql(&format!("INSERT INTO counters SELECT i, 0 FROM generate_series({}, {}) AS i", rows + 1, rows + 5))
            .await;
        rows += 5;
        assert_eq!(state_db(&config.state()).execute(change, []).unwrap(), 1);
        ends_by_damage(&config, &receiver, found).await;
        let shown = config.state_command(&[]);
        assert!(text_of(&shown).contains(found), "{}", text_of(&shown));
        let accepted = config.state_command(&["accept-loss"]);
        assert!(text_of(&accepted).contains(found), "{}", text_of(&accepted));
        let since = Instant::now();
        let daemon = Daemon::start(&config).await;
        Fault::mended(&format!("store: {found}"), since);
        receiver.wait_acknowledged(rows).await;
        daemon.wait_shown(&postgres).await;
        assert!(daemon.sigterm().await.success());
    }
}

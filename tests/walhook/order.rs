//! P1 to P3: nothing lost, commit order within a group, one request at a time for a group.

use tokio_postgres::Client;

use crate::daemon::{Config, Daemon, troubles};
use crate::postgres::{Postgres, state, until};
use crate::receiver::{Keep, Receiver, Reply, parallel, row_of, unreliable};

const ROWS: i64 = 100;
const UPDATES: i64 = 20;

/// A table of counters, with a slot that is already there.
pub(crate) async fn counters(postgres: &Postgres) -> Client {
    postgres.sql("CREATE TABLE counters (id int PRIMARY KEY, n bigint NOT NULL, note text)").await;
    postgres.client().await
}

/// Inserts rows 1 to `rows` with n = 0, then raises every n `updates` times, rows taking turns.
pub(crate) async fn count_up(client: &Client, rows: i64, updates: i64) {
    let insert = format!("INSERT INTO counters SELECT i, 0, 'x' FROM generate_series(1, {rows}) i");
    client.batch_execute(&insert).await.unwrap();
    for _ in 0..updates {
        for row in 1..=rows {
            client.batch_execute(&format!("UPDATE counters SET n = n + 1 WHERE id = {row}")).await.unwrap();
        }
    }
}

/// Fails unless every counter value of every row was acknowledged.
#[track_caller]
pub(crate) fn assert_complete(receiver: &Receiver, rows: i64, updates: i64) {
    let lost: Vec<String> = receiver.ledger(|ledger| {
        let all = (1..=rows).flat_map(|row| (0..=updates).map(move |n| (format!("counters/{row}"), n)));
        all.filter(|(row, n)| !ledger.has(row, *n)).map(|(row, n)| format!("{row} n={n}")).collect()
    });
    assert!(lost.is_empty(), "{} lost: {:?}", lost.len(), lost.iter().take(20).collect::<Vec<_>>());
}

async fn failing_receiver_keeps_order(batch_size: u32) {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let postgres = Postgres::start();
    let client = counters(&postgres).await;
    // Different rows go in parallel.
    let script =
        parallel(2, |message| Some(row_of(message)), unreliable(seed, 30, &[500, 502, 503, 429, 400, 404], 0..50));
    let receiver = Receiver::with(Keep::Ledger, script, row_of).await;
    let sink = format!("batch_size = {batch_size}\nbatch_timeout = \"5ms\"\nmax_in_flight = 64");
    let config = Config::one_sink(&postgres, &receiver.url(), &sink);
    let daemon = Daemon::start(&config).await;

    count_up(&client, ROWS, UPDATES).await;
    receiver.wait_acknowledged(usize::try_from(ROWS * (UPDATES + 1)).unwrap()).await;

    assert_complete(&receiver, ROWS, UPDATES);
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert_eq!(ledger.repeats, 0, "acknowledged messages came again");
    });
    // Everything is resolved, so the slot catches up.
    until("the slot to catch up", || async {
        let lag = postgres.lag_bytes("walhook_app").await;
        state(lag.is_some_and(|lag| lag < 10_000), lag)
    })
    .await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_arrive_in_order_and_one_at_a_time_while_requests_fail() {
    failing_receiver_keeps_order(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_arrive_in_order_and_one_at_a_time_in_batches_while_requests_fail() {
    failing_receiver_keeps_order(50).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_row_delays_only_itself() {
    let postgres = Postgres::start();
    let client = counters(&postgres).await;
    let row_7_fails = |request: &crate::receiver::Request| {
        let holds_7 = request.messages.iter().any(|message| message["record"]["id"] == 7);
        Reply::status(if holds_7 { 500 } else { 200 })
    };
    let receiver = Receiver::scripted(row_7_fails).await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let daemon = Daemon::start(&config).await;

    count_up(&client, 10, 5).await;
    receiver.wait_acknowledged(9 * 6).await;
    receiver.ledger(|ledger| assert!(!ledger.has("counters/7", 0)));

    receiver.script(|_| Reply::status(200));
    receiver.wait_acknowledged(10 * 6).await;
    assert_complete(&receiver, 10, 5);
    receiver.ledger(|ledger| ledger.assert_clean());
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_sink_and_a_dead_source_delay_nobody_else() {
    let (one, other) = (Postgres::start(), Postgres::start());
    let (client, other_client) = (counters(&one).await, counters(&other).await);
    let (healthy, second, failing) = (Receiver::start().await, Receiver::start().await, Receiver::start().await);
    failing.script(|_| Reply::status(500));
    let text = Config::source(&one)
        + &format!("[source.other]\nurl = \"{}\"\n", other.url())
        + &Config::sink("healthy", &healthy.url(), "source = \"app\"")
        + &Config::sink("failing", &failing.url(), "source = \"app\"")
        + &Config::sink("refused", "http://127.0.0.1:1", "source = \"app\"")
        + &Config::sink("second", &second.url(), "source = \"other\"");
    let daemon = Daemon::start(&Config::new(&text)).await;

    count_up(&client, 10, 3).await;
    count_up(&other_client, 5, 2).await;
    healthy.wait_acknowledged(40).await;
    second.wait_acknowledged(15).await;
    failing.wait("the failing sink to have been tried", |receiver| receiver.request_count() >= 10).await;

    other.cluster.stop("immediate").unwrap();
    let body = daemon.wait_not_ready().await;
    assert!(troubles(&body).contains("source:other"), "the trouble names the source: {body}");
    assert!(!troubles(&body).contains("source:app"), "the other source is well: {body}");
    client.batch_execute("UPDATE counters SET n = n + 1").await.unwrap();
    healthy.wait_acknowledged(50).await;
    healthy.ledger(|ledger| ledger.assert_clean());

    other.cluster.resume().unwrap();
    daemon.wait_ready().await;
    other.sql("UPDATE counters SET n = n + 1").await;
    second.wait_acknowledged(20).await;
    assert_complete(&second, 5, 3);
    second.ledger(|ledger| ledger.assert_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_19_transactions_that_overlap_arrive_whole_and_in_commit_order() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE log (id int PRIMARY KEY, n bigint)").await;
    let receiver = Receiver::with(Keep::All, unreliable(7, 20, &[500], 0..5), |_| "log".to_owned()).await;
    let config = Config::one_sink(&postgres, &receiver.url(), "group_by = \"table\"\nbatch_size = 10");
    let _daemon = Daemon::start(&config).await;

    let (mut first, mut second) = (postgres.client().await, postgres.client().await);
    // The second transaction starts first and commits last: commit order is what counts.
    let late = second.transaction().await.unwrap();
    late.batch_execute("INSERT INTO log SELECT i, i FROM generate_series(101, 150) i").await.unwrap();
    let early = first.transaction().await.unwrap();
    early.batch_execute("INSERT INTO log SELECT i, i FROM generate_series(1, 100) i").await.unwrap();
    late.batch_execute("INSERT INTO log SELECT i, i FROM generate_series(151, 160) i").await.unwrap();
    early.commit().await.unwrap();
    late.commit().await.unwrap();

    receiver.wait_acknowledged(160).await;
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert_eq!(ledger.concurrent_max, 1);
        assert!((1..=160).all(|n| ledger.has("log", n)));
    });
    // The rows' own positions in the WAL interleave; the commits' do not.
    let place = |message: &serde_json::Value| {
        let metadata = &message["metadata"];
        (metadata["commit_lsn"].as_u64().unwrap(), metadata["commit_idx"].as_u64().unwrap())
    };
    let mut places: Vec<_> = crate::pitfalls::copy::acknowledged(&receiver).iter().map(place).collect();
    assert!(places.is_sorted(), "{places:?}");
    places.dedup_by_key(|place| place.0);
    assert_eq!(places.len(), 2, "one commit position a transaction");
}

/// What one read of the stream becomes for so many sinks is taken in in parts.
#[tokio::test(flavor = "multi_thread")]
async fn many_sinks_get_every_row_in_order_though_a_read_is_taken_in_in_parts_and_the_session_ends_between() {
    const SINKS: i64 = 60;
    const SLOT: &str = "walhook_app";
    let postgres = Postgres::start();
    counters(&postgres).await;
    let sink_of = |message: &serde_json::Value| message["metadata"]["consumer"]["name"].to_string();
    let group = move |message: &serde_json::Value| format!("{}/{}", sink_of(message), message["record"]["id"]);
    let receiver = Receiver::with(Keep::Ledger, |_| Reply::status(200), group).await;
    let sink = |number| Config::sink(&format!("s{number}"), &receiver.url(), "batch_size = 50");
    let text = Config::source(&postgres) + &(0..SINKS).map(sink).collect::<String>();
    let daemon = Daemon::start(&Config::new(&text)).await;
    let raise = "UPDATE counters SET n = n + 1";
    for round in 1..=3 {
        let all = format!("BEGIN; {}; COMMIT", [raise; 4].join("; "));
        let first = "INSERT INTO counters SELECT i, 0 FROM generate_series(1, 100) i";
        let text = if round == 1 { format!("{first}; {all}") } else { all };
        let came = receiver.message_count();
        postgres.sql(&text).await;
        receiver.wait("some of them", |receiver| receiver.message_count() > came).await;
        let end =
            format!("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
        postgres.admin_sql(&end).await;
    }
    let whole = usize::try_from(SINKS * 100 * 13).unwrap();
    receiver.wait("all of them", |receiver| receiver.ledger(|ledger| ledger.acknowledged()) >= whole).await;
    receiver.ledger(|ledger| {
        let all = (0..SINKS).flat_map(|sink| (1..=100).flat_map(move |id| (0..=12).map(move |n| (sink, id, n))));
        let lost: Vec<_> = all.filter(|(sink, id, n)| !ledger.has(&format!("\"s{sink}\"/{id}"), *n)).collect();
        assert!(lost.is_empty(), "{} lost: {:?}", lost.len(), lost.iter().take(20).collect::<Vec<_>>());
        ledger.assert_clean();
    });
    assert!(daemon.sigterm().await.success());
}

//! The log: whoever reads it, and whatever is in it, holds nothing up; and no row value is told in it.

use std::time::Instant;

use crate::daemon::{Config, Daemon, Reading, troubles};
use crate::faults::Fault;
use crate::postgres::{Postgres, state, until};
use crate::receiver::Receiver;
use crate::reply::Reply;

async fn table_and_config(receiver: &Receiver, lines: &str) -> (Postgres, Config) {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE t (k text PRIMARY KEY, n int)").await;
    let config = Config::one_sink(&postgres, &receiver.url(), lines);
    (postgres, config)
}

/// Inserts rows until `/readyz` has a trouble with `text`.
async fn until_told(daemon: &Daemon, postgres: &Postgres, text: &str) {
    until(&format!("/readyz to say {text:?}"), || async {
        postgres.sql("INSERT INTO t SELECT gen_random_uuid()::text, 1 FROM generate_series(1, 50)").await;
        let (_, body) = daemon.ready().await.ok_or("it does not answer")?;
        state(troubles(&body).contains(text), troubles(&body)).map_err(|_| "it does not say so")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_log_that_stands_still_holds_nothing_up_and_is_told() {
    let receiver = Receiver::start().await;
    let (postgres, config) = table_and_config(&receiver, "").await;
    let daemon = Daemon::launch_with(&config, &[("WALHOOK_LOG", "trace")]);
    daemon.wait_ready().await;
    daemon.set_reading(Reading::Stands);
    let since = Instant::now();
    until_told(&daemon, &postgres, "nobody has taken a line of the log for").await;
    Fault::ended("log reader stalled", since);
    postgres.sql("INSERT INTO t VALUES ('last', 1)").await;
    until("the last row to arrive", || async {
        let came = receiver.messages().iter().any(|message| message["record"]["k"] == "last");
        state(came, receiver.messages().len())
    })
    .await;
    assert!(daemon.get("/healthz").await.is_some_and(|(status, _)| status == 200));
    daemon.set_reading(Reading::Goes);
    let since = Instant::now();
    until("/readyz to say that the log is read", || async {
        let (_, body) = daemon.ready().await.ok_or("it does not answer".to_owned())?;
        let said = troubles(&body);
        if said.contains("the log") { Err(said) } else { Ok(()) }
    })
    .await;
    Fault::mended("log reader stalled", since);
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_stops_though_nobody_reads_its_log() {
    let receiver = Receiver::start().await;
    let (postgres, config) = table_and_config(&receiver, "").await;
    let mut daemon = Daemon::launch_with(&config, &[("WALHOOK_LOG", "trace")]);
    daemon.wait_ready().await;
    daemon.set_reading(Reading::Stands);
    until_told(&daemon, &postgres, "nobody has taken a line of the log for").await;
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(daemon.wait_exit().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_log_that_has_gone_ends_nothing_and_is_told() {
    let receiver = Receiver::start().await;
    receiver.script(|request| Reply::status(if request.header("walhook-attempt") == "1" { 500 } else { 200 }));
    let (postgres, config) = table_and_config(&receiver, "").await;
    let daemon = Daemon::launch_with(&config, &[("WALHOOK_LOG", "debug")]);
    daemon.wait_ready().await;
    daemon.set_reading(Reading::Gone);
    let since = Instant::now();
    until_told(&daemon, &postgres, "the log cannot be written").await;
    Fault::ended("log reader gone", since);
    assert!(daemon.metrics().await.sum("walhook_log_lost_lines_total", &[]) > Some(0.0));
    let sent: usize = postgres.value("SELECT count(*) FROM t").await.parse().unwrap();
    receiver.wait_acknowledged(sent).await;
    assert!(daemon.sigterm().await.success());
}

/// A value that nobody else has.
const CANARY: &str = "canary-7f3a";

#[tokio::test(flavor = "multi_thread")]
async fn no_value_of_a_row_is_in_the_log_at_any_level() {
    let receiver = Receiver::start().await;
    receiver.script(|request| Reply::status(if request.messages[0]["action"] == "insert" { 500 } else { 200 }));
    let retry =
        "unchanged_toast = \"fetch\"\n[sink.orders.retry]\ninitial = \"20ms\"\nmax = \"20ms\"\nmax_attempts = 3";
    let (postgres, config) = table_and_config(&receiver, retry).await;
    postgres.sql("ALTER TABLE t ADD COLUMN long text; ALTER TABLE t ALTER COLUMN long SET STORAGE EXTERNAL").await;
    let daemon = Daemon::launch_with(&config, &[("WALHOOK_LOG", "trace")]);
    daemon.wait_ready().await;
    let long = CANARY.repeat(1000);
    postgres.sql(&format!("INSERT INTO t VALUES ('{CANARY}', 1, '{long}')")).await;
    daemon.wait_logged("delivery is a dead letter").await;
    postgres.sql(&format!("UPDATE t SET n = 2; UPDATE t SET k = '{CANARY}-2'; DELETE FROM t")).await;
    receiver.wait_acknowledged(3).await;
    daemon.wait_logged("group_hash").await;
    let told: Vec<String> =
        daemon.logs().iter().map(ToString::to_string).filter(|line| line.contains("canary")).collect();
    assert!(told.is_empty(), "{} lines, such as {}", told.len(), told[0]);
    let answer = daemon.get("/readyz").await.unwrap().1 + &daemon.get("/metrics").await.unwrap().1;
    assert!(!answer.contains("canary"), "{answer}");
    assert!(daemon.sigterm().await.success());
}

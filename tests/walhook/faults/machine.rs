//! Faults of the machine that walhook runs on: its clock, its processor, its limits.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::Fault;
use super::endpoint::{age, begin, insert, sink};
use super::store::state_db;
use crate::clock::Clock;
use crate::daemon::{Config, Daemon};
use crate::group::Group;
use crate::order::{assert_complete, counters};
use crate::postgres::{Postgres, state, until, until_within};
use crate::receiver::{Keep, Receiver, Reply, row_of};

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_is_told_and_disturbs_nothing() {
    let (postgres, clock) = (Postgres::start(), Clock::build());
    let receiver = Receiver::with(Keep::Ledger, |_| Reply::status(503), row_of).await;
    counters(&postgres).await;
    let lines = sink("").replace("[sink.orders.retry]", "[sink.orders.retry]\nmax_age = \"1h\"");
    let daemon = Daemon::launch_with(&Config::one_sink(&postgres, &receiver.url(), &lines), &clock.environment());
    daemon.wait_ready().await;
    insert(&postgres, 1, 20).await;
    receiver.wait("a failure", |receiver| receiver.ledger(|ledger| ledger.unacknowledged()) > 0).await;
    for (days, way) in [(1, "set forward by 1 d 0 h 0 min"), (0, "set back by 1 d 0 h 0 min"), (-1, "set back by 1 d")]
    {
        let says = ["the wall clock was", way, "own_clock"];
        let fault = Fault {
            name: if days > 0 { "clock + 1 d" } else { "clock - 1 d" },
            says: &says,
            logs: way,
            metric: ("walhook_process_trouble", &[("kind", "clock_jump")], 1.0),
        };
        let since = Instant::now();
        clock.set(days * 86_400);
        fault.told(&daemon, since).await;
        fault.cleared(&daemon, Instant::now()).await;
    }
    assert!(daemon.logged("the wall clock goes on from where it was set"));
    assert!(age(&daemon).await < 3600.0, "ages go by another clock");
    receiver.script(|_| Reply::status(200));
    receiver.wait_acknowledged(20).await;
    assert_complete(&receiver, 20, 0);
    let metrics = daemon.metrics().await;
    assert_eq!(metrics.sum("walhook_sink_kept_dead_letters", &[]), Some(0.0), "max_age goes by another clock");
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleep_of_walhook_is_its_own_and_not_the_endpoints_fault() {
    let receiver = Receiver::with(Keep::Ledger, |_| Reply::Never, row_of).await;
    let lines = "request_timeout = \"5s\"\nmax_in_flight = 8\n[sink.orders.retry]\nmax_attempts = 1\n";
    let (postgres, daemon) = begin(&receiver, lines).await;
    insert(&postgres, 1, 8).await;
    receiver.wait("all requests", |receiver| receiver.visits().len() == 8).await;
    let fault = Fault {
        name: "SIGSTOP of walhook",
        says: &["walhook did not run for", "own_clock"],
        logs: "walhook did not run for",
        metric: ("walhook_process_trouble", &[("kind", "slept")], 1.0),
    };
    daemon.signal(Signal::SIGSTOP);
    receiver.script(|_| Reply::status(200));
    // Longer than request_timeout, so that all of them are late when it runs again.
    tokio::time::sleep(Duration::from_secs(7)).await;
    let since = Instant::now();
    daemon.signal(Signal::SIGCONT);
    fault.told(&daemon, since).await;
    receiver.wait_acknowledged(8).await;
    fault.cleared(&daemon, since).await;
    daemon.wait_logged("walhook runs again").await;
    assert_complete(&receiver, 8, 0);
    let metrics = daemon.metrics().await;
    let failures = |category| metrics.sum("walhook_sink_failures_total", &[("category", category)]);
    assert_eq!((failures("own_clock"), failures("timeout")), (Some(8.0), Some(0.0)));
    assert_eq!(metrics.sum("walhook_sink_kept_dead_letters", &[]), Some(0.0), "max_attempts is 1");
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_few_open_files_allowed_everything_arrives_and_the_admin_side_answers() {
    let slow = || Reply::After(Duration::from_millis(200), Box::new(Reply::status(200)));
    let receivers = [
        Receiver::with(Keep::Ledger, move |_| slow(), row_of).await,
        Receiver::with(Keep::Ledger, move |_| slow(), row_of).await,
        Receiver::with(Keep::Ledger, move |_| slow(), row_of).await,
    ];
    let postgres = Postgres::start();
    counters(&postgres).await;
    let sinks = receivers.iter().zip(["one", "two", "three"]);
    let sinks = sinks.map(|(receiver, name)| Config::sink(name, &receiver.url(), "max_in_flight = 64"));
    let config = Config::new(&(Config::source(&postgres) + &sinks.collect::<String>()));
    let daemon = Daemon::launch_under("ulimit -n 64", &config);
    daemon.wait_ready().await;
    let fault = Fault {
        name: "ulimit -n 64",
        says: &["the limit of open files is 64", "LimitNOFILE="],
        logs: "the limit of open files is 64",
        metric: ("walhook_process_trouble", &[("kind", "descriptors")], 1.0),
    };
    fault.told(&daemon, Instant::now()).await;
    insert(&postgres, 1, 300).await;
    for round in 0..2 {
        for receiver in &receivers {
            while receiver.ledger(|ledger| ledger.acknowledged()) < 300 && round == 0 {
                for path in ["/healthz", "/readyz", "/metrics"] {
                    let answer = daemon.get(path).await;
                    assert!(answer.as_ref().is_some_and(|(status, _)| *status == 200), "{path} {answer:?}");
                }
            }
            // After the load, with what idle connections keep.
            assert!(daemon.get("/metrics").await.is_some());
        }
    }
    receivers.iter().for_each(|receiver| assert_complete(receiver, 300, 0));
    let metrics = daemon.metrics().await;
    let failed: f64 = metrics.sum("walhook_sink_failures_total", &[]).unwrap_or_default();
    assert_eq!(
        failed,
        metrics.sum("walhook_sink_failures_total", &[("category", "own_resources")]).unwrap_or_default()
    );
    assert_eq!(metrics.sum("walhook_sink_breaker_open", &[]), Some(0.0));
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_by_eight_days_deletes_no_dead_letter() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::scripted(|_| Reply::status(404)).await;
    let config = Config::one_sink(&postgres, &receiver.url(), "[sink.orders.retry]\nmax_attempts = 1");
    let clock = Clock::build();
    let environment = clock.environment();
    let daemon = Daemon::launch_with(&config, &environment);
    daemon.wait_ready().await;
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    let kept = async |daemon: &Daemon, count: f64| {
        until("the dead letters to be kept", || async {
            let kept = daemon.metrics().await.sum("walhook_sink_kept_dead_letters", &[]);
            state(kept == Some(count), kept)
        })
        .await;
    };
    kept(&daemon, 1.0).await;
    let fault = Fault {
        name: "clock + 8 d",
        says: &["the wall clock was set forward by 8 d 0 h 0 min", "own_clock"],
        logs: "set forward by 8 d 0 h 0 min",
        metric: ("walhook_process_trouble", &[("kind", "clock_jump")], 1.0),
    };
    let since = Instant::now();
    clock.set(8 * 86_400);
    postgres.sql("INSERT INTO counters VALUES (2, 0)").await;
    fault.told(&daemon, since).await;
    fault.cleared(&daemon, Instant::now()).await;
    kept(&daemon, 2.0).await;
    assert!(daemon.sigterm().await.success());
    // What has expired goes at the start.
    for days in [8, 16] {
        clock.set(days * 86_400);
        let daemon = Daemon::launch_with(&config, &environment);
        daemon.wait_ready().await;
        kept(&daemon, 2.0).await;
        assert!(daemon.sigterm().await.success());
        let dead: i64 = state_db(&config.state())
            .query_row("SELECT count(*) FROM delivery WHERE state = 2", [], |row| row.get(0))
            .unwrap();
        assert_eq!(dead, 2, "after {days} days");
    }
    // Once it has run for so long they go, and the figure says so.
    state_db(&config.state()).execute("UPDATE running SET micros = micros + 700000000000", []).unwrap();
    let daemon = Daemon::launch_with(&config, &environment);
    daemon.wait_ready().await;
    kept(&daemon, 0.0).await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_group_of_128_mib_lowers_the_limit_and_ends_nothing_in_an_outage() {
    const MEMORY: u64 = 128 << 20;
    let Some(group) = Group::make(MEMORY) else { return };
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::with(Keep::Counts, |_| Reply::status(503), row_of).await;
    let config = Config::one_sink(&postgres, &receiver.url(), "batch_size = 50");
    let since = Instant::now();
    let daemon = Daemon::launch_under(&group.join(), &config);
    daemon.wait_ready().await;
    daemon.wait_logged("the control group has 128 MiB in all").await;
    let in_force = daemon.metrics().await.sum("walhook_memory_limit_bytes", &[]).unwrap();
    assert!(in_force < 64.0 * 1024.0 * 1024.0, "{in_force}");
    Fault::ended("control group of 128 MiB", since);
    let rows = 50_000;
    postgres
        .sql(&format!("INSERT INTO counters SELECT i, 0, repeat(md5(i::text), 120) FROM generate_series(1, {rows}) i"))
        .await;
    for metric in ["walhook_sink_received_messages_total", "walhook_sink_acknowledged_messages_total"] {
        until_within(Duration::from_secs(300), metric, || async {
            let count = daemon.metrics().await.sum(metric, &[]);
            state(count == Some(f64::from(rows)), count)
        })
        .await;
        receiver.script(|_| Reply::status(200));
    }
    println!("{} MiB resident at the peak", daemon.peak_kib() / 1024);
    assert!(daemon.sigterm().await.success());
}

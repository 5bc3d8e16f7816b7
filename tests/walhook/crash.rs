//! P7: what a crash and a clean stop repeat, and that neither loses or reorders anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::daemon::{Config, Daemon, troubles};
use crate::disk::Pulse;
use crate::durable::WINDOW;
use crate::order::counters;
use crate::postgres::Postgres;
use crate::pressure::full;
use crate::receiver::{Keep, Receiver, Reply, row_of, unreliable};

/// Changes that go on until it is told to stop.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicI64>,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    /// Raises all counters by one, round after round; reconnects when the server goes away. The rows exist already.
    pub(crate) fn updates(postgres: &Arc<Postgres>, rows: i64) -> Self {
        Self::run(postgres, Duration::ZERO, move |round| {
            (1..=rows).map(|row| format!("UPDATE counters SET n = {round} WHERE id = {row} AND n < {round}")).collect()
        })
    }

    /// Inserts rows, each a group of its own.
    pub(crate) fn inserts(postgres: &Arc<Postgres>) -> Self {
        Self::run(postgres, Duration::ZERO, |round| vec![format!("INSERT INTO counters VALUES ({round}, 0)")])
    }

    /// Raises all counters by one, round after round, in transactions of 50 rows, so many changes a second.
    pub(crate) fn paced(postgres: &Arc<Postgres>, rows: i64, changes_per_second: u32) -> Self {
        let slice = 50;
        let pace = Duration::from_secs(1) * u32::try_from(slice).unwrap() / changes_per_second;
        Self::run(postgres, pace, move |round| {
            let update = |first: i64| {
                let last = first + slice - 1;
                format!("UPDATE counters SET n = {round} WHERE id BETWEEN {first} AND {last} AND n < {round}")
            };
            (0..rows / slice).map(|index| update(index * slice + 1)).collect()
        })
    }

    /// The statements of round after round, each until it succeeds, with `pace` between them; reconnects when the server goes away.
    pub(crate) fn run(
        postgres: &Arc<Postgres>,
        pace: Duration,
        statements: impl Fn(i64) -> Vec<String> + Send + 'static,
    ) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
        let task = tokio::spawn({
            let (postgres, stop, rounds) = (Arc::clone(postgres), Arc::clone(&stop), Arc::clone(&rounds));
            async move {
                let mut client = postgres.client().await;
                let mut next = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    let round = rounds.load(Ordering::Relaxed) + 1;
                    for statement in statements(round) {
                        while client.batch_execute(&statement).await.is_err() {
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            if let Ok(fresh) = postgres.try_client().await {
                                client = fresh;
                            }
                        }
                        next += pace;
                        tokio::time::sleep(next.saturating_duration_since(Instant::now())).await;
                    }
                    rounds.store(round, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        });
        Self { stop, rounds, task }
    }

    /// Stops after the round; gives how many there were.
    pub(crate) async fn finish(self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        self.rounds.load(Ordering::Relaxed)
    }
}

/// Waits until every row's last counter value was acknowledged: with order kept, everything before it was, too.
pub(crate) async fn wait_rounds(receiver: &Receiver, rows: i64, rounds: i64) {
    let deadline = Duration::from_secs(if full() { 900 } else { 150 });
    receiver
        .wait_within(deadline, "the last round of every row", |receiver| {
            receiver.ledger(|ledger| (1..=rows).all(|row| ledger.has(&format!("counters/{row}"), rounds)))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_twenty_times_it_loses_nothing_and_keeps_order_and_keys() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let postgres = Arc::new(Postgres::start());
    counters(&postgres).await;
    let receiver = Receiver::with(Keep::Ledger, unreliable(seed, 10, &[500, 503], 0..20), row_of).await;
    let config = Config::one_sink(&postgres, &receiver.url(), "batch_size = 5");
    let mut daemon = Daemon::start(&config).await;
    postgres.sql("INSERT INTO counters SELECT i, 0 FROM generate_series(1, 20) i").await;
    let load = Load::updates(&postgres, 20);

    for _ in 0..20 {
        let until = receiver.request_count() + random.u64(1..60);
        receiver.wait("some more requests", |receiver| receiver.request_count() >= until).await;
        daemon.kill9();
        receiver.abandoned().await;
        receiver.ledger(|ledger| ledger.new_run());
        daemon = Daemon::launch(&config);
    }

    let rounds = load.finish().await;
    wait_rounds(&receiver, 20, rounds).await;
    crate::order::assert_complete(&receiver, 20, rounds);
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        let (repeats, arrivals) = (ledger.repeats, ledger.arrivals);
        println!("{repeats} of {arrivals} messages had been acknowledged before: {} a kill", repeats / 20);
    });
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_under_load_repeats_nothing() {
    let postgres = Arc::new(Postgres::start());
    counters(&postgres).await;
    let receiver = Receiver::with(Keep::Ledger, unreliable(1, 0, &[], 0..30), row_of).await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let mut daemon = Daemon::start(&config).await;
    let load = Load::inserts(&postgres);

    for _ in 0..3 {
        let until = receiver.request_count() + 200;
        receiver.wait("load", |receiver| receiver.request_count() >= until).await;
        let status = daemon.sigterm().await;
        assert_eq!(status.code(), Some(0));
        receiver.ledger(|ledger| assert_eq!(ledger.concurrent(), 0, "it waited for its requests"));
        receiver.ledger(|ledger| ledger.new_run());
        daemon = Daemon::start(&config).await;
    }

    let rows = load.finish().await;
    receiver.wait_acknowledged(usize::try_from(rows).unwrap()).await;
    receiver.ledger(|ledger| {
        assert_eq!(ledger.repeats, 0, "messages were sent twice");
        ledger.assert_clean();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_no_longer_than_the_grace() {
    let postgres = Postgres::start();
    let client = counters(&postgres).await;
    let receiver = Receiver::scripted(|_| Reply::Never).await;
    let text = Config::source(&postgres)
        + "[limits]\nshutdown_grace = \"1s\"\n"
        + &Config::sink("orders", &receiver.url(), "request_timeout = \"60s\"");
    let daemon = Daemon::start(&Config::new(&text)).await;
    client.batch_execute("INSERT INTO counters VALUES (1, 0)").await.unwrap();
    receiver.wait("the request", |receiver| receiver.request_count() == 1).await;
    let asked = Instant::now();
    let status = daemon.sigterm().await;
    assert_eq!(status.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(20), "took {:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_leaves_at_once() {
    let postgres = Postgres::start();
    let client = counters(&postgres).await;
    let receiver = Receiver::scripted(|_| Reply::Never).await;
    let text = Config::source(&postgres)
        + "[limits]\nshutdown_grace = \"10m\"\n"
        + &Config::sink("orders", &receiver.url(), "request_timeout = \"10m\"");
    let mut daemon = Daemon::start(&Config::new(&text)).await;
    client.batch_execute("INSERT INTO counters VALUES (1, 0)").await.unwrap();
    receiver.wait("the request", |receiver| receiver.request_count() == 1).await;
    daemon.signal(Signal::SIGTERM);
    let body = daemon.wait_not_ready().await;
    assert!(troubles(&body).contains("process"), "{body}");
    daemon.signal(Signal::SIGTERM);
    // Fails by itself after a minute, long before the grace is over.
    daemon.wait_exit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_message_keeps_its_keys_over_a_restart() {
    let postgres = Postgres::start();
    let client = counters(&postgres).await;
    let receiver = Receiver::scripted(|_| Reply::status(500)).await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let daemon = Daemon::start(&config).await;
    client.batch_execute("INSERT INTO counters VALUES (1, 0)").await.unwrap();
    receiver.wait("two attempts", |receiver| receiver.request_count() >= 2).await;
    assert!(daemon.sigterm().await.success());

    receiver.script(|_| Reply::status(200));
    let _daemon = Daemon::start(&config).await;
    receiver.wait_acknowledged(1).await;
    let requests = receiver.requests();
    assert!(requests.iter().all(|request| request.header("webhook-id") == requests[0].header("webhook-id")));
    assert!(
        requests.iter().all(|request| request.body == requests[0].body),
        "a delivery is frozen, also over a restart"
    );
    let attempts: Vec<u32> =
        requests.iter().map(|request| request.header("walhook-attempt").parse().unwrap()).collect();
    assert_eq!(attempts, (1..=u32::try_from(requests.len()).unwrap()).collect::<Vec<_>>(), "attempts are counted on");
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_52_a_restart_in_the_middle_of_a_huge_transaction_goes_on_where_it_was() {
    let rows: usize = if full() { 1_000_000 } else { 40_000 };
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::with(Keep::Ledger, |_| Reply::status(200), row_of).await;
    let config = Config::one_sink(&postgres, &receiver.url(), "batch_size = 50");
    let daemon = Daemon::start(&config).await;
    let pulse = Pulse::start();
    // Not a part of it can be confirmed before the whole is delivered.
    postgres
        .sql(&format!("INSERT INTO counters SELECT i, 0, repeat('x', 200) FROM generate_series(1, {rows}) i"))
        .await;
    let deadline = Duration::from_secs(300);
    let part = |part: usize| move |receiver: &Receiver| receiver.ledger(|ledger| ledger.acknowledged()) >= part;

    receiver.wait_within(deadline, "a quarter of it", part(rows / 4)).await;
    assert!(daemon.sigterm().await.success());
    receiver.ledger(|ledger| ledger.new_run());
    let daemon = Daemon::start(&config).await;
    receiver.wait_within(deadline, "half of it", part(rows / 2)).await;
    receiver.ledger(|ledger| assert_eq!(ledger.repeats, 0, "a clean stop in the middle repeats nothing"));
    let (died, in_flight) = (Instant::now(), receiver.ledger(|ledger| ledger.in_flight()));
    let allowed = WINDOW + pulse.slowest_before(died) * 2;
    daemon.kill9();
    receiver.abandoned().await;
    receiver.ledger(|ledger| ledger.died(died, in_flight));

    let daemon = Daemon::start(&config).await;
    receiver.wait_within(deadline, "all of it", part(rows)).await;
    crate::order::assert_complete(&receiver, i64::try_from(rows).unwrap(), 0);
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        let oldest = ledger.lives().iter().map(|life| life.oldest_repeat).max().unwrap_or_default();
        println!("{} repeats, the oldest acknowledged {oldest:?} before the crash", ledger.repeats);
        assert!(
            oldest <= allowed,
            "what was acknowledged {oldest:?} before the crash came again; allowed: {allowed:?}"
        );
    });
    assert!(daemon.sigterm().await.success());
}

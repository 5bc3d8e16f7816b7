//! P7: crash upon crash under load loses nothing, keeps order and keys, and repeats next to nothing; a clean stop nothing at
//! all; and what was confirmed to Postgres outlives the machine's power.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::crash::Load;
use crate::daemon::{Config, Daemon};
use crate::disk::{Pulse, Syncs};
use crate::order::counters;
use crate::outage::wait_confirmed;
use crate::postgres::{Postgres, state, until_within};
use crate::pressure::full;
use crate::receiver::{Keep, Receiver, Reply, Request, row_of, unreliable};

/// How late before a death an acknowledgement may be forgotten.
pub(crate) const WINDOW: Duration = Duration::from_millis(100);

/// A load, and an endpoint that makes trouble.
pub(crate) struct Weather {
    /// Of everything that is left to chance.
    pub(crate) seed: u64,
    /// Rows that take turns.
    pub(crate) rows: i64,
    /// Changes a second.
    pub(crate) rate: u32,
    /// Lines of the sink.
    pub(crate) sink: String,
    /// Whether the change of this row with this counter is refused for ever and may become a dead letter.
    pub(crate) mortal: fn(i64, i64) -> bool,
}

impl Weather {
    /// What the contract's crash tests ask for.
    fn stormy(seed: u64, sink: &str) -> Self {
        // One request for each of 5,000 messages a second is more than a debug build can make.
        let one_by_one = sink.contains("batch_size = 1\n");
        let (rows, rate) = match full() {
            true if one_by_one => (500, 1000),
            true => (1000, 5000),
            false => (200, 1000),
        };
        Self { seed, rows, rate, sink: sink.to_owned(), mortal: |_, _| false }
    }
}

/// A daemon under load, which the test kills and starts as it likes.
pub(crate) struct Storm {
    pub(crate) postgres: Arc<Postgres>,
    pub(crate) receiver: Receiver,
    pub(crate) config: Config,
    weather: Weather,
    load: Load,
    pulse: Pulse,
    /// How much longer than the window, by the pulse and the daemon's slowest commit, each death's repeats may reach back.
    allowances: Vec<Duration>,
}

impl Storm {
    /// Begins; the daemon is not started. The endpoint answers by `script`.
    pub(crate) async fn begin(weather: Weather, script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        println!("seed {}", weather.seed);
        let postgres = Arc::new(Postgres::start());
        counters(&postgres).await;
        let receiver = Receiver::with(Keep::Ledger, script, row_of).await;
        let config = Config::one_sink(&postgres, &receiver.url(), &weather.sink);
        // The slot has to be there before the rows are.
        assert!(Daemon::start(&config).await.sigterm().await.success());
        receiver.ledger(|ledger| ledger.new_run());
        postgres.sql(&format!("INSERT INTO counters SELECT i, 0 FROM generate_series(1, {}) i", weather.rows)).await;
        let load = Load::paced(&postgres, weather.rows, weather.rate);
        Self { postgres, receiver, config, weather, load, pulse: Pulse::start(), allowances: vec![Duration::ZERO] }
    }

    /// The same, with an endpoint that fails a fifth of all requests.
    async fn of(weather: Weather) -> Self {
        let script = unreliable(weather.seed, 20, &[500, 503, 400, 404], 0..20);
        Self::begin(weather, script).await
    }

    /// Waits for so many more messages.
    pub(crate) async fn some_more(&self, messages: u64) {
        let until = self.receiver.message_count() + messages;
        self.receiver.wait(&format!("{messages} more messages"), |receiver| receiver.message_count() >= until).await;
    }

    /// `kill -9`.
    pub(crate) async fn kill(&mut self, daemon: Daemon) {
        let commit = daemon.slowest_commit().await;
        let in_flight = self.receiver.ledger(|ledger| ledger.in_flight());
        let died = Instant::now();
        daemon.kill9();
        self.bury(died, in_flight).await;
        self.allow(commit);
    }

    /// Notes that the daemon died, and waits until its last requests are over.
    pub(crate) async fn bury(&mut self, died: Instant, in_flight: usize) {
        self.allowances.push(self.pulse.slowest_before(died) * 2);
        self.receiver.abandoned().await;
        self.receiver.ledger(|ledger| ledger.died(died, in_flight));
    }

    /// Repeats of the last death may reach back so much longer.
    fn allow(&mut self, longer: Duration) {
        if let Some(allowance) = self.allowances.last_mut() {
            *allowance += longer;
        }
    }

    /// Waits until everything has arrived and the slot stands at the end, then looks whether every promise was kept.
    pub(crate) async fn end(self, daemon: Daemon) {
        let Self { postgres, receiver, weather, load, allowances, .. } = self;
        let rounds = load.finish().await;
        daemon.wait_ready().await;
        wait_complete(&receiver, &weather, rounds).await;
        let end = postgres.value("SELECT pg_current_wal_lsn()").await;
        wait_confirmed(&postgres, &end, Duration::from_secs(60)).await;
        receiver.ledger(|ledger| {
            ledger.assert_clean();
            let mut late = Vec::new();
            for (life, allowance) in ledger.lives().iter().zip(&allowances).skip(1) {
                println!(
                    "a death: {} in flight; {} repeats, the oldest acknowledged {:?} before; allowed {WINDOW:?} + {allowance:?}",
                    life.in_flight, life.repeats, life.oldest_repeat
                );
                if life.oldest_repeat > WINDOW + *allowance {
                    late.push(life.clone());
                }
            }
            println!("{} repeats of {} messages in {} lives", ledger.repeats, ledger.arrivals, ledger.lives().len());
            assert!(late.is_empty(), "repeats of what was acknowledged too long before the death: {late:?}");
        });
        assert!(daemon.sigterm().await.success(), "the last daemon should stop cleanly");
    }
}

/// Waits for the last change of every row, then fails if one before was lost.
async fn wait_complete(receiver: &Receiver, weather: &Weather, rounds: i64) {
    let due = |row: i64| (0..=rounds).rev().filter(move |n| !(weather.mortal)(row, *n));
    let has = |row: i64, n: i64| receiver.ledger(|ledger| ledger.has(&format!("counters/{row}"), n));
    let deadline = Duration::from_secs(if full() { 900 } else { 150 });
    let all_have = |_: &Receiver| (1..=weather.rows).all(|row| due(row).next().is_none_or(|last| has(row, last)));
    receiver.wait_within(deadline, "the last change of every row", all_have).await;
    let all = (1..=weather.rows).flat_map(|row| due(row).map(move |n| (row, n)));
    let lost: Vec<_> = all.filter(|(row, n)| !has(*row, *n)).collect();
    let came = |(row, n): &&(i64, i64)| receiver.ledger(|ledger| ledger.came(&format!("counters/{row}"), *n));
    let (came, some) = (lost.iter().filter(came).count(), lost.iter().take(20).collect::<Vec<_>>());
    let count = lost.len();
    assert!(lost.is_empty(), "{count} changes were lost, {came} of which came, among them (row, n) {some:?}");
}

async fn killed_again_and_again(kills: u32, sink: &str) {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut storm = Storm::of(Weather::stormy(seed, sink)).await;
    for _ in 0..kills {
        let daemon = Daemon::launch(&storm.config);
        if random.u8(0..5) == 0 {
            // In the middle of a start.
            tokio::time::sleep(Duration::from_millis(random.u64(0..400))).await;
        } else {
            storm.some_more(random.u64(1..u64::from(storm.weather.rate))).await;
        }
        storm.kill(daemon).await;
    }
    let daemon = Daemon::launch(&storm.config);
    storm.end(daemon).await;
}

fn times(in_full: u32, quick: u32) -> u32 {
    if full() { in_full } else { quick }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_under_load_it_keeps_every_promise_one_by_one() {
    killed_again_and_again(times(50, 6), "batch_size = 1\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_under_load_it_keeps_every_promise_in_batches() {
    killed_again_and_again(times(50, 6), "batch_size = 20").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_under_load_it_keeps_every_promise_in_large_batches() {
    killed_again_and_again(times(50, 4), "batch_size = 100\nmax_ack_pending = 300").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_among_failures_repeats_nothing() {
    let mut storm = Storm::of(Weather::stormy(fastrand::u64(..), "batch_size = 5")).await;
    for _ in 0..times(20, 4) {
        let daemon = Daemon::start(&storm.config).await;
        storm.some_more(u64::from(storm.weather.rate) / 2).await;
        assert!(daemon.sigterm().await.success(), "a clean stop ends with 0");
        storm.bury(Instant::now(), 0).await;
    }
    let daemon = Daemon::start(&storm.config).await;
    let rounds = storm.load.finish().await;
    wait_complete(&storm.receiver, &storm.weather, rounds).await;
    storm.receiver.ledger(|ledger| {
        ledger.assert_clean();
        let by_life: Vec<_> = ledger.lives().iter().map(|life| life.repeats).collect();
        assert_eq!(
            ledger.repeats, 0,
            "messages were sent again after a clean stop: {by_life:?} of {}",
            ledger.arrivals
        );
    });
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_confirmation_that_moves_the_slot_comes_after_a_sync() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::start().await;
    let text = Config::source(&postgres).replace("heartbeat = \"1s\"", "heartbeat = \"0s\"")
        + &Config::sink("orders", &receiver.url(), "");
    let config = Config::new(&text);
    let syncs = Syncs::build();
    // So slow that a confirmation that does not wait for it is seen before it.
    let environment = syncs.environment(Duration::from_millis(150));
    let daemon = Daemon::launch_with(&config, &environment);
    daemon.wait_ready().await;
    for n in 1..=20 {
        let before = syncs.count("state.db-wal");
        postgres.sql(&format!("INSERT INTO counters VALUES ({n}, 0)")).await;
        let end = postgres.value("SELECT pg_current_wal_insert_lsn()").await;
        wait_confirmed(&postgres, &end, Duration::from_secs(30)).await;
        let after = syncs.count("state.db-wal");
        assert!(after > before, "change {n} was confirmed, and the store had not been synced since it was written");
    }
    assert!(daemon.sigterm().await.success());
}

async fn power_losses(delay: Duration) {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut storm = Storm::of(Weather::stormy(seed, "batch_size = 5")).await;
    let syncs = Syncs::build();
    let environment = syncs.environment(delay);
    // Nothing has been delivered yet, and the library has to see the store from its first byte on.
    storm.config.remove_state();
    for _ in 0..times(20, 4) {
        let daemon = Daemon::launch_with(&storm.config, &environment);
        storm.some_more(random.u64(1..u64::from(storm.weather.rate))).await;
        storm.kill(daemon).await;
        until_within(Duration::from_secs(10), "the store to have been synced once", || async {
            state(syncs.count("state.db-wal") > 0, "never")
        })
        .await;
        syncs.lose_power(&storm.config.state());
        // What the library does beside a sync delays everything after it.
        storm.allow(syncs.slowest() * 2);
    }
    let daemon = Daemon::launch(&storm.config);
    storm.end(daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_loss_every_promise_holds() {
    power_losses(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_loss_on_a_slow_disk_every_promise_holds() {
    power_losses(Duration::from_millis(100)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_nothing_fails_it_repeats_next_to_nothing() {
    // What fails is written at once and takes the progress along; this is about the progress alone.
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let script = unreliable(seed, 0, &[], 0..10);
    let mut storm = Storm::begin(Weather::stormy(seed, "batch_size = 10"), script).await;
    for _ in 0..times(50, 5) {
        let daemon = Daemon::launch(&storm.config);
        storm.some_more(u64::from(storm.weather.rate) / 2 + random.u64(1..u64::from(storm.weather.rate))).await;
        storm.kill(daemon).await;
    }
    let daemon = Daemon::launch(&storm.config);
    storm.end(daemon).await;
}

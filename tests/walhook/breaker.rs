//! An endpoint that is down is asked by one request at a time, at growing intervals, and is not run over when it is back.

use std::time::{Duration, Instant};

use crate::daemon::{Config, Daemon};
use crate::order::{assert_complete, counters};
use crate::postgres::Postgres;
use crate::pressure::full;
use crate::receiver::{Keep, Receiver, Reply, Visit, row_of};

/// Failures in a row after which an endpoint is taken for dead.
const OPENS_AFTER: usize = 5;
/// The first wait between probes, of which half is left to chance.
const PROBE_INITIAL: Duration = Duration::from_millis(100);

fn groups() -> i64 {
    if full() { 10_000 } else { 1000 }
}

async fn begin(receiver: &Receiver, lines: &str) -> (Postgres, Daemon) {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), lines)).await;
    (postgres, daemon)
}

async fn insert(postgres: &Postgres, rows: i64) {
    postgres.sql(&format!("INSERT INTO counters SELECT i, 0 FROM generate_series(1, {rows}) i")).await;
}

/// Every answer takes a while, so that what is sent at the same time is seen at the same time.
fn slow(status: u16) -> Reply {
    Reply::After(Duration::from_millis(60), Box::new(Reply::status(status)))
}

/// The visits that came one by one after the first rush: those which found nobody else there and did not follow at once on
/// the one before. A request of the rush may come so late that it is alone. A breaker that does not wait has no end of its rush.
fn probes(visits: &[Visit]) -> &[Visit] {
    let follows_at_once = |pair: &[Visit]| {
        let ended = pair[0].ended.unwrap_or(pair[1].arrived);
        pair[1].arrived.saturating_duration_since(ended) < PROBE_INITIAL.mul_f64(0.45)
    };
    let crowded = visits.iter().rposition(|visit| visit.concurrent > 1).map_or(OPENS_AFTER, |last| last + 1);
    let pursued = visits.windows(2).rposition(follows_at_once);
    visits.get(crowded.max(pursued.map_or(0, |first| first + 1))..).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_endpoint_is_probed_by_one_request_at_a_time_and_then_ramped_up() {
    let max_in_flight = 32;
    let receiver = Receiver::with(Keep::Ledger, |_| slow(503), row_of).await;
    let sink = format!("max_in_flight = {max_in_flight}\n[sink.orders.retry]\ninitial = \"100ms\"\nmax = \"1600ms\"");
    let (postgres, daemon) = begin(&receiver, &sink).await;
    insert(&postgres, groups()).await;

    receiver
        .wait("eight probes", |receiver| probes(&receiver.visits()).iter().filter(|v| v.ended.is_some()).count() >= 8)
        .await;
    let visits = receiver.visits();
    let probes = probes(&visits).to_vec();
    let rush = visits.len() - probes.len();
    assert!(rush <= OPENS_AFTER + max_in_flight, "{rush} requests before the endpoint was taken for dead");
    for (index, pair) in probes.windows(2).enumerate() {
        let waited = pair[1].arrived.saturating_duration_since(pair[0].ended.unwrap_or(pair[1].arrived));
        let least = PROBE_INITIAL * (1 << index.min(4)) / 2;
        assert!(waited >= least.mul_f64(0.9), "probe {} came after {waited:?}, not {least:?}", index + 2);
    }

    let back = Instant::now();
    receiver.script(|_| slow(200));
    receiver.wait_acknowledged(usize::try_from(groups()).unwrap()).await;
    assert_ramp(&receiver.visits(), back, max_in_flight);
    assert_complete(&receiver, groups(), 0);
    receiver.ledger(|ledger| ledger.assert_clean());
    assert!(daemon.sigterm().await.success());
}

/// After `s` successes no more than `2^s` requests are under way, and in the end as many as the sink may have.
#[track_caller]
fn assert_ramp(visits: &[Visit], back: Instant, max_in_flight: usize) {
    let after: Vec<&Visit> = visits.iter().filter(|visit| visit.arrived >= back && visit.status == 200).collect();
    let ended_before = |at: Instant| after.iter().filter(|visit| visit.ended.is_some_and(|ended| ended <= at)).count();
    let seen: Vec<(usize, usize)> =
        after.iter().take(200).map(|visit| (ended_before(visit.arrived), visit.concurrent)).collect();
    for (successes, concurrent) in &seen {
        let allowed = 1_usize << (*successes).min(20);
        assert!(*concurrent <= allowed, "{concurrent} at a time after {successes} successes: {seen:?}");
    }
    let peak = after.iter().map(|visit| visit.concurrent).max();
    assert_eq!(peak, Some(max_in_flight), "it should come back to all that the sink may have");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_messages_say_nothing_about_the_endpoint() {
    let receiver = Receiver::with(Keep::Ledger, |_| slow(400), row_of).await;
    let (postgres, _daemon) = begin(&receiver, "max_in_flight = 8").await;
    insert(&postgres, 300).await;
    receiver
        .wait("every message to have been refused", |receiver| receiver.ledger(|ledger| ledger.unacknowledged() == 300))
        .await;
    let visits = receiver.visits();
    let later = visits.iter().skip(50).map(|visit| visit.concurrent).max();
    assert_eq!(later, Some(8), "requests at a time after many refusals with 400");
    receiver.ledger(|ledger| ledger.assert_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_429_with_retry_after_holds_the_whole_sink() {
    let rate_limited = |request: &crate::receiver::Request| {
        let reply = if request.number <= 4 { Reply::with_header(429, "retry-after", "3") } else { Reply::status(200) };
        Reply::After(Duration::from_millis(300), Box::new(reply))
    };
    let receiver = Receiver::with(Keep::Ledger, rate_limited, row_of).await;
    let sink = "max_in_flight = 4\n[sink.orders.retry]\ninitial = \"10ms\"\nmax = \"20s\"";
    let (postgres, _daemon) = begin(&receiver, sink).await;
    insert(&postgres, 20).await;
    receiver.wait_acknowledged(20).await;
    let visits = receiver.visits();
    assert!(visits[..4].iter().all(|visit| visit.status == 429));
    let waited = visits[4].arrived.saturating_duration_since(visits[0].ended.unwrap());
    assert!(waited >= Duration::from_millis(2900), "the next request came {waited:?} after a 429 that asked for 3 s");
    receiver.ledger(|ledger| ledger.assert_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_that_waits_is_not_forgotten_over_a_restart() {
    let receiver = Receiver::with(Keep::Ledger, |_| slow(503), row_of).await;
    let postgres = Postgres::start();
    counters(&postgres).await;
    let config = Config::one_sink(&postgres, &receiver.url(), "max_in_flight = 16");
    let daemon = Daemon::start(&config).await;
    insert(&postgres, 200).await;
    receiver.wait("probes", |receiver| probes(&receiver.visits()).len() >= 2).await;
    assert!(daemon.sigterm().await.success());

    receiver.ledger(|ledger| ledger.new_run());
    receiver.script(|_| Reply::status(200));
    let _daemon = Daemon::start(&config).await;
    receiver.wait_acknowledged(200).await;
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert_eq!(ledger.repeats, 0);
    });
}

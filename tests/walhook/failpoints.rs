//! The process dies at every step that matters, and is started again: all promises hold.
//!
//! Each test arms a place of `src/failpoint.rs` (the debug build that tests run against has them) under a load with
//! failures, refused messages that are split off and become dead letters, and messages that wait behind others, so that the
//! daemon comes there.

use std::os::unix::process::ExitStatusExt as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::daemon::{Config, Daemon};
use crate::durable::{Storm, Weather};
use crate::order::{assert_complete, counters};
use crate::outage::wait_confirmed;
use crate::postgres::Postgres;
use crate::pressure::full;
use crate::receiver::{Keep, Receiver, Reply, Request, row_of};

const ABORTED: Option<i32> = Some(6);
/// The row of which every seventh change is refused for ever.
const POISON: i64 = 13;
/// The row of which every 25th change is answered late.
const SLOW: i64 = 17;

fn is_refused(row: i64, n: i64) -> bool {
    row == POISON && n % 7 == 0
}

/// Answers 400 to whatever holds a refused change. Of the rest a fifth fails at its first attempt, so that nothing else can
/// come to as many failures as a dead letter takes.
fn hard_to_please(seed: u64) -> impl Fn(&Request) -> Reply + Send + Sync {
    let random = Mutex::new(fastrand::Rng::with_seed(seed));
    move |request| {
        let of = |message: &serde_json::Value, name: &str| message["record"][name].as_i64().unwrap_or(-1);
        if request.messages.iter().any(|message| is_refused(of(message, "id"), of(message, "n"))) {
            return Reply::status(400);
        }
        // Longer than a delivery is waited for before the store takes it, and those behind it.
        if request.messages.iter().any(|message| of(message, "id") == SLOW && of(message, "n") % 25 == 0) {
            return Reply::After(Duration::from_millis(4500), Box::new(Reply::status(200)));
        }
        let mut random = random.lock().unwrap();
        let fails = request.header("walhook-attempt") == "1" && random.u8(0..100) < 20;
        let status = if fails { *random.choice([500, 404].iter()).unwrap_or(&500) } else { 200 };
        Reply::After(Duration::from_millis(random.u64(0..15)), Box::new(Reply::status(status)))
    }
}

async fn begin(place: &str) -> Storm {
    println!("dies at {place}");
    let seed = fastrand::u64(..);
    let sink = "batch_size = 10\n[sink.orders.retry]\ninitial = \"50ms\"\nmax = \"200ms\"\nsplit_after = 1\nmax_attempts = 3\n";
    let weather = Weather { seed, rows: 100, rate: 500, sink: sink.to_owned(), mortal: is_refused };
    let storm = Storm::begin(weather, hard_to_please(seed)).await;
    storm.receiver.ledger(|ledger| {
        for n in (0..100_000).step_by(7) {
            ledger.may_die(&format!("counters/{POISON}"), n);
        }
    });
    storm
}

/// Starts the daemon so that it dies when it comes to a place, and waits until it has.
async fn die_at(storm: &mut Storm, place: &str) {
    let daemon = Daemon::launch_with(&storm.config, &[("WALHOOK_FAILPOINT", place)]);
    wait_death(daemon, place).await;
    // What the receiver heard last; the exit is seen later.
    let last = storm.receiver.visits().last().map_or_else(Instant::now, |visit| visit.arrived);
    let in_flight = storm.receiver.ledger(|ledger| ledger.in_flight());
    storm.bury(last, in_flight).await;
}

async fn wait_death(mut daemon: Daemon, place: &str) {
    let status = daemon.wait_exit().await;
    assert_eq!(status.signal(), ABORTED, "it should die at {place}; it ended with {status}\n{}", daemon.printed());
}

async fn survives(place: &str) {
    let mut storm = begin(place).await;
    let times: &[u32] = if full() { &[1, 2, 3, 5, 8, 13] } else { &[1, 3] };
    for time in times {
        die_at(&mut storm, &format!("{place}:{time}")).await;
    }
    let daemon = Daemon::launch(&storm.config);
    storm.some_more(200).await;
    storm.end(daemon).await;
}

macro_rules! deaths {
    ($($name:ident: $place:literal,)*) => { $(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            survives($place).await;
        }
    )* };
}

deaths! {
    dead_before_the_stores_commit: "store.before_commit",
    dead_after_the_stores_commit: "store.after_commit",
    dead_while_a_failed_delivery_is_parked: "store.in_park",
    dead_while_waiting_messages_are_laid_down: "store.in_lanes",
    dead_while_a_delivery_is_split: "store.in_split",
    dead_while_a_delivery_is_given_up: "store.in_dead",
    dead_while_delivered_messages_leave_the_store: "store.in_leave",
    dead_before_a_confirmation: "source.before_confirm",
    dead_after_a_confirmation: "source.after_confirm",
    dead_after_an_answer_nobody_noted: "sink.after_answer",
    dead_before_a_batch_is_handed_over: "sink.before_submit",
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_in_the_middle_of_a_migration() {
    let mut storm = begin("store.in_migration").await;
    storm.config.remove_state();
    die_at(&mut storm, "store.in_migration:1").await;
    die_at(&mut storm, "store.in_migration:1").await;
    let daemon = Daemon::launch(&storm.config);
    storm.some_more(200).await;
    storm.end(daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_while_overflow_is_written_and_read_back() {
    let rows = 15_000;
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::with(Keep::Ledger, |_| Reply::status(503), row_of).await;
    let text = Config::source(&postgres)
        + "[limits]\nmemory_limit = \"32MiB\"\n"
        + &Config::sink("orders", &receiver.url(), "batch_size = 100");
    let config = Config::new(&text);
    let mut daemon = Daemon::launch_with(&config, &[("WALHOOK_FAILPOINT", "store.in_page:2")]);
    daemon.wait_ready().await;
    let insert = "INSERT INTO counters SELECT i, 0, repeat(md5(i::text), 60) FROM generate_series";
    postgres.sql(&format!("{insert}(1, {rows}) i")).await;
    postgres.sql("UPDATE counters SET n = 1").await;
    wait_death(daemon, "store.in_page:2").await;
    for place in ["store.in_page:4", "store.in_page:9"] {
        println!("dies at {place}");
        wait_death(Daemon::launch_with(&config, &[("WALHOOK_FAILPOINT", place)]), place).await;
    }
    // Everything that memory does not hold goes to the disk now.
    daemon = Daemon::start(&config).await;
    let end = postgres.value("SELECT pg_current_wal_lsn()").await;
    wait_confirmed(&postgres, &end, Duration::from_secs(60)).await;
    daemon.kill9();

    receiver.abandoned().await;
    receiver.script(|_| Reply::status(200));
    for place in ["store.in_leave:3", "store.in_leave:6"] {
        println!("dies at {place}");
        receiver.ledger(|ledger| ledger.new_run());
        wait_death(Daemon::launch_with(&config, &[("WALHOOK_FAILPOINT", place)]), place).await;
        receiver.abandoned().await;
    }
    receiver.ledger(|ledger| ledger.new_run());
    let daemon = Daemon::start(&config).await;
    receiver.wait_acknowledged(usize::try_from(rows * 2).unwrap()).await;
    assert_complete(&receiver, rows, 1);
    receiver.ledger(|ledger| ledger.assert_clean());
    assert!(daemon.sigterm().await.success());
}

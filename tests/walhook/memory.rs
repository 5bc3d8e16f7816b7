//! P6: resident memory keeps to the limit whatever the number of sinks, and whatever their endpoints do.

use std::time::Duration;

use crate::daemon::{Config, Daemon};
use crate::order::counters;
use crate::postgres::{Postgres, state, until_within};
use crate::pressure::full;
use crate::receiver::{Keep, Receiver, Reply, row_of};

/// MiB of `limits.memory_limit`.
const LIMIT: u64 = 64;

/// How the endpoint answers.
#[derive(Clone, Copy, Debug)]
enum Answers {
    Quick,
    Slow,
    Dead,
}

impl Answers {
    fn reply(self) -> Reply {
        match self {
            Self::Quick => Reply::status(200),
            Self::Slow => Reply::After(Duration::from_secs(2), Box::new(Reply::status(200))),
            Self::Dead => Reply::status(503),
        }
    }
}

/// While all is read and the endpoints answer so, and while it comes back from the store once they are quick.
async fn keeps_to_the_limit(sinks: usize, answers: Answers) {
    keeps_with_rows(sinks, answers, 30).await;
}

/// With rows of so many times 32 bytes.
async fn keeps_with_rows(sinks: usize, answers: Answers, times: usize) {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::with(Keep::Counts, move |_| answers.reply(), row_of).await;
    let sink = |number| Config::sink(&format!("s{number}"), &receiver.url(), "batch_size = 100");
    let text = format!("{}[limits]\nmemory_limit = \"{LIMIT}MiB\"\n", Config::source(&postgres));
    let daemon = Daemon::start(&Config::new(&(text + &(0..sinks).map(sink).collect::<String>()))).await;
    let rows = (300_000 / sinks).max(4000);
    postgres
        .sql(&format!(
            "INSERT INTO counters SELECT i, 0, repeat(md5(i::text), {times}) FROM generate_series(1, {rows}) i"
        ))
        .await;
    let within = Duration::from_secs(400);
    let all = (rows * sinks) as f64;
    let counted = async |metric: &'static str| {
        until_within(within, metric, || async {
            let count = daemon.metrics().await.sum(metric, &[]);
            state(count >= Some(all), count)
        })
        .await;
    };
    match answers {
        Answers::Quick => {}
        Answers::Slow | Answers::Dead => {
            counted("walhook_sink_received_messages_total").await;
            receiver.script(|_| Reply::status(200));
        }
    }
    counted("walhook_sink_acknowledged_messages_total").await;
    let (peak, bound) = (daemon.peak_kib(), (LIMIT + 64) * 1024 + 512 * sinks as u64);
    let held = daemon.metrics().await.sum("walhook_memory_held_bytes", &[]);
    println!("{sinks} sinks, {answers:?}: {} MiB of {} MiB; held {held:?}", peak / 1024, bound / 1024);
    assert!(peak <= bound, "{sinks} sinks, {answers:?}: {peak} KiB resident at the peak, of {bound}");
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_to_two_hundred_sinks_of_quick_endpoints_keep_to_the_limit() {
    for sinks in if full() { vec![1, 10, 50, 200] } else { vec![50] } {
        keeps_to_the_limit(sinks, Answers::Quick).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_to_two_hundred_sinks_of_slow_endpoints_keep_to_the_limit() {
    for sinks in if full() { vec![1, 10, 50, 200] } else { vec![50] } {
        keeps_to_the_limit(sinks, Answers::Slow).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_to_two_hundred_sinks_of_dead_endpoints_keep_to_the_limit() {
    for sinks in if full() { vec![1, 10, 50, 200] } else { vec![50] } {
        keeps_to_the_limit(sinks, Answers::Dead).await;
    }
}

/// A buffer of the stream has thousands of them, and each sink gets its own message of each.
#[tokio::test(flavor = "multi_thread")]
async fn tiny_rows_for_many_sinks_keep_to_the_limit() {
    keeps_with_rows(200, Answers::Quick, 0).await;
}

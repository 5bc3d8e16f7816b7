//! Faults of endpoints, and of walhook's own resources and clock.

use std::time::Duration;

use crate::daemon::{Config, Daemon, troubles};
use crate::order::{assert_complete, counters};
use crate::postgres::{Postgres, state, until};
use crate::receiver::{Keep, Receiver, Reply, row_of};

/// Where a fault of a sink is told.
struct Told {
    /// In a trouble of `/readyz`.
    ready: &'static str,
    /// A gauge that is 1 as long as it lasts.
    gauge: &'static str,
    /// In the log when it begins, and when it ends.
    log: [&'static str; 2],
}

impl Told {
    async fn begins(&self, daemon: &Daemon) {
        self.wait(daemon, true).await;
        daemon.wait_logged(self.log[0]).await;
    }

    async fn ends(&self, daemon: &Daemon) {
        self.wait(daemon, false).await;
        daemon.wait_logged(self.log[1]).await;
    }

    async fn wait(&self, daemon: &Daemon, is_told: bool) {
        let what = format!("{:?} to be told: {is_told}", self.ready);
        until(&what, || async {
            let (_, body) = daemon.ready().await.expect("the admin side answers");
            let gauge = daemon.metrics().await.sum(self.gauge, &[]).unwrap_or_default();
            let shown = (troubles(&body).contains(self.ready), gauge > 0.0);
            state(shown == (is_told, is_told), (troubles(&body), gauge))
        })
        .await;
    }
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

async fn age(daemon: &Daemon) -> f64 {
    daemon.metrics().await.sum("walhook_sink_oldest_undelivered_age_seconds", &[]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_whose_answers_are_late_is_told_with_numbers_and_what_waits_ages_wherever_it_is() {
    let late = || Reply::After(Duration::from_secs(6), Box::new(Reply::status(200)));
    let receiver = Receiver::with(Keep::Ledger, move |_| late(), row_of).await;
    let (postgres, daemon) = begin(&receiver, "max_in_flight = 4").await;
    let told = Told {
        ready: "slow: answers take",
        gauge: "walhook_sink_slow",
        log: ["endpoint is slow: it answers, but messages wait", "endpoint is slow no longer"],
    };
    insert(&postgres, 400).await;
    told.begins(&daemon).await;
    let (_, body) = daemon.ready().await.unwrap();
    assert!(troubles(&body).contains("messages wait, the oldest since"), "{body}");
    // All of them came together, so the oldest of those that are left is as old as ever: in flight, in memory, in the
    // store or read back from there.
    let mut last = 0.0;
    until("what waits to have aged by some answers", || async { state(age(&daemon).await > 14.0, ()) }).await;
    receiver.wait("some answers", |receiver| receiver.ledger(|ledger| ledger.acknowledged()) > 8).await;
    for _ in 0..20 {
        let now = age(&daemon).await;
        assert!(now >= last && now > 14.0, "{now} s after {last} s");
        last = now;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    receiver.script(|_| Reply::status(200));
    told.ends(&daemon).await;
    receiver.wait_acknowledged(400).await;
    assert_complete(&receiver, 400, 0);
    until("nothing to be left that ages", || async { state(age(&daemon).await == 0.0, ()) }).await;
    assert!(daemon.sigterm().await.success());
}

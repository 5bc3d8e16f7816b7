//! P1, P2, P6, P8: an endpoint may be away for as long as it likes. Memory stays flat, the slot moves on, and afterwards
//! everything comes in order; crashes in the middle change nothing of that.

use std::time::{Duration, Instant};

use crate::daemon::{Config, Daemon, quick_retry};
use crate::disk::Pulse;
use crate::durable::WINDOW;
use crate::endpoints::ReservedPort;
use crate::order::{assert_complete, counters};
use crate::postgres::{Postgres, state, until, until_within};
use crate::pressure::full;
use crate::receiver::{Keep, Receiver, Reply, row_of};

const SLOT: &str = "walhook_app";
/// `limits.memory_limit`, and what the contract allows beside it.
const RESIDENT_KIB_MAX: u64 = (32 + 64) * 1024;
/// How soon after the last commit the slot has to stand at its end.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(10);
/// Rows written by one statement.
const CHUNK: i64 = 5000;

/// Waits until the slot is confirmed up to `lsn`.
pub(crate) async fn wait_confirmed(postgres: &Postgres, lsn: &str, within: Duration) {
    let client = postgres.client().await;
    let sql = format!(
        "SELECT confirmed_flush_lsn >= '{lsn}', confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1"
    );
    until_within(within, &format!("the slot to be confirmed up to {lsn}"), || async {
        let row = client.query_one(&sql, &[&SLOT]).await.unwrap();
        state(row.get::<_, bool>(0), row.get::<_, String>(1))
    })
    .await;
}

/// How an endpoint is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Away {
    Refuses,
    NeverAnswers,
    Answers500,
    /// It is there, but the sink is paused.
    Paused,
}

struct Outage {
    away: Away,
    postgres: Postgres,
    receiver: Option<Receiver>,
    port: Option<ReservedPort>,
    config: Config,
    text: String,
    rows: i64,
    updates: i64,
}

impl Outage {
    /// So many changes are going to be written: rows that are inserted, then updated `updates` times.
    async fn begin(away: Away, changes: i64) -> Self {
        let updates = 4;
        let postgres = Postgres::with(&[("max_wal_size", "64MB"), ("min_wal_size", "32MB")]);
        counters(&postgres).await;
        let (mut receiver, mut port) = (None, None);
        let url = if away == Away::Refuses {
            port.insert(ReservedPort::new()).url()
        } else {
            let reply = match away {
                Away::NeverAnswers => Reply::Never,
                Away::Answers500 => Reply::status(500),
                Away::Refuses | Away::Paused => Reply::status(200),
            };
            receiver.insert(Receiver::with(Keep::Ledger, move |_| reply.clone(), row_of).await).url()
        };
        let lines = format!("batch_size = 100\nrequest_timeout = \"8s\"\npaused = {}", away == Away::Paused);
        let limits = "[limits]\nmemory_limit = \"32MiB\"\n";
        let text = Config::source(&postgres) + limits + &Config::sink("orders", &url, &lines);
        let config = Config::new(&text);
        Self { away, postgres, receiver, port, config, text, rows: changes / (updates + 1), updates }
    }

    /// Writes the rows with n = 0, or raises every n. No more is written than the daemon can follow: how fast that is, the
    /// benchmarks say.
    async fn write(&self, insert: bool) {
        for first in (1..=self.rows).step_by(usize::try_from(CHUNK).unwrap()) {
            let last = (first + CHUNK - 1).min(self.rows);
            let sql = if insert {
                format!("INSERT INTO counters SELECT i, 0, repeat('x', 200) FROM generate_series({first}, {last}) i")
            } else {
                format!("UPDATE counters SET n = n + 1 WHERE id BETWEEN {first} AND {last}")
            };
            self.postgres.sql(&sql).await;
            until("the slot to follow what is written while the endpoint is away", || async {
                let lag = self.postgres.lag_bytes(SLOT).await;
                state(lag.is_some_and(|lag| lag < 24_000_000), lag)
            })
            .await;
        }
    }

    /// Kills the daemon and starts another.
    async fn kill(&self, daemon: Daemon) -> Daemon {
        assert_resident(&daemon);
        let in_flight = self.receiver.as_ref().map_or(0, |receiver| receiver.ledger(|ledger| ledger.in_flight()));
        let died = Instant::now();
        daemon.kill9();
        if let Some(receiver) = &self.receiver {
            receiver.abandoned().await;
            receiver.ledger(|ledger| ledger.died(died, in_flight));
        }
        Daemon::start(&self.config).await
    }

    /// Writes everything while the endpoint is away, with a crash in the middle.
    async fn last(&self, mut daemon: Daemon) -> Daemon {
        self.write(true).await;
        for update in 0..self.updates {
            self.write(false).await;
            if update == self.updates / 2 {
                daemon = self.kill(daemon).await;
            }
        }
        let end = self.postgres.value("SELECT pg_current_wal_lsn()").await;
        wait_confirmed(&self.postgres, &end, CONFIRMED_WITHIN).await;
        self.retained_is_small().await;
        assert_resident(&daemon);
        daemon
    }

    /// The server keeps next to nothing for the slot.
    async fn retained_is_small(&self) {
        until("the server to be free to remove the WAL", || async {
            // The slot's restart position moves with the records of running transactions, which a checkpoint writes.
            self.postgres.admin_sql("CHECKPOINT").await;
            let kept = "SELECT pg_current_wal_lsn() - restart_lsn FROM pg_replication_slots";
            let bytes: i64 = self.postgres.value(kept).await.parse().unwrap();
            state(bytes < 1_000_000, bytes)
        })
        .await;
        let wal: i64 = self.postgres.admin_value("SELECT sum(size)::bigint FROM pg_ls_waldir()").await.parse().unwrap();
        assert!(wal <= 192 << 20, "pg_wal holds {wal} bytes");
    }

    /// The endpoint comes back, or the sink goes on.
    async fn over(&mut self, daemon: Daemon) -> Daemon {
        match self.away {
            Away::Refuses => {
                let listener = self.port.take().unwrap().listen();
                let receiver = Receiver::on(listener, Keep::Ledger, |_| Reply::status(200), row_of);
                self.receiver = Some(receiver);
                daemon
            }
            Away::NeverAnswers | Away::Answers500 => {
                self.receiver.as_ref().unwrap().script(|_| Reply::status(200));
                daemon
            }
            Away::Paused => {
                let receiver = self.receiver.as_ref().unwrap();
                assert_eq!(receiver.request_count(), 0, "a paused sink sends nothing");
                assert!(daemon.sigterm().await.success());
                self.config.rewrite(&self.text.replace("paused = true", "paused = false"));
                Daemon::start(&self.config).await
            }
        }
    }

    /// Everything arrives, in order, with a crash in the middle.
    async fn drain(&self, mut daemon: Daemon) {
        let (receiver, pulse) = (self.receiver.as_ref().unwrap(), Pulse::start());
        let all = usize::try_from(self.rows * (self.updates + 1)).unwrap();
        let deadline = Duration::from_secs(if full() { 900 } else { 150 });
        let arrived = |part: usize| move |receiver: &Receiver| receiver.ledger(|ledger| ledger.acknowledged()) >= part;
        receiver.wait_within(deadline, "a third to be delivered", arrived(all / 3)).await;
        // A backlog that leaves the store makes for large commits, and what is acknowledged during one is in the next.
        let commit = daemon.slowest_commit().await;
        let allowed = WINDOW + (pulse.slowest_before(Instant::now()) + commit) * 2;
        daemon = self.kill(daemon).await;
        receiver.wait_within(deadline, "everything to be delivered", arrived(all)).await;
        assert_complete(receiver, self.rows, self.updates);
        receiver.ledger(|ledger| {
            ledger.assert_clean();
            let lives: Vec<_> = ledger.lives().iter().map(|life| (life.repeats, life.oldest_repeat)).collect();
            println!("{} repeats of {} messages: {lives:?}; allowed {allowed:?}", ledger.repeats, ledger.arrivals);
            let oldest = lives.iter().map(|life| life.1).max().unwrap_or_default();
            assert!(
                oldest <= allowed,
                "what was acknowledged {oldest:?} before a crash came again; allowed are {allowed:?}"
            );
        });
        assert_resident(&daemon);
        let end = self.postgres.value("SELECT pg_current_wal_lsn()").await;
        wait_confirmed(&self.postgres, &end, CONFIRMED_WITHIN).await;
        assert!(daemon.sigterm().await.success());
    }
}

#[track_caller]
fn assert_resident(daemon: &Daemon) {
    let peak = daemon.peak_kib();
    println!("{peak} KiB resident at the peak");
    assert!(peak <= RESIDENT_KIB_MAX, "{peak} KiB were resident at the peak; allowed are {RESIDENT_KIB_MAX}");
}

async fn outlasted(away: Away, changes: i64) {
    let mut outage = Outage::begin(away, changes).await;
    let daemon = Daemon::start(&outage.config).await;
    let daemon = outage.last(daemon).await;
    let daemon = outage.over(daemon).await;
    outage.drain(daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_refuses_is_outlasted() {
    outlasted(Away::Refuses, if full() { 1_000_000 } else { 60_000 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_never_answers_is_outlasted() {
    outlasted(Away::NeverAnswers, if full() { 300_000 } else { 25_000 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_answers_500_is_outlasted() {
    outlasted(Away::Answers500, if full() { 300_000 } else { 25_000 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_sink_is_outlasted() {
    outlasted(Away::Paused, if full() { 300_000 } else { 25_000 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_that_is_never_acknowledged_does_not_hold_the_slot() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let script = |request: &crate::receiver::Request| {
        let is_first = request.messages.iter().any(|message| message["record"]["id"] == 1);
        if is_first { Reply::Never } else { Reply::status(200) }
    };
    let receiver = Receiver::scripted(script).await;
    let sink = "request_timeout = \"15m\"\n".to_owned() + &quick_retry("orders");
    let config = Config::one_sink(&postgres, &receiver.url(), &sink);
    let daemon = Daemon::start(&config).await;
    postgres.sql("INSERT INTO counters SELECT i, 0 FROM generate_series(1, 50) i").await;
    postgres.sql("UPDATE counters SET n = 1").await;
    let end = postgres.value("SELECT pg_current_wal_lsn()").await;
    wait_confirmed(&postgres, &end, CONFIRMED_WITHIN).await;
    receiver.ledger(|ledger| {
        assert_eq!((ledger.acknowledged(), ledger.unacknowledged()), (98, 1), "one hangs, one waits behind it");
    });
    daemon.kill9();

    receiver.abandoned().await;
    receiver.ledger(|ledger| ledger.new_run());
    receiver.script(|_| Reply::status(200));
    let _daemon = Daemon::start(&config).await;
    receiver.wait_acknowledged(100).await;
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert_eq!(ledger.repeats, 0, "what was acknowledged long before came again");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_behind_a_late_answer_go_through_the_store_and_keep_their_order() {
    let postgres = Postgres::start();
    let client = counters(&postgres).await;
    // Longer than a delivery is waited for before the store takes it, and those behind it.
    let late = |request: &crate::receiver::Request| {
        let is_first = request.messages.iter().any(|m| m["record"]["id"] == 1 && m["record"]["n"] == 0);
        Reply::After(Duration::from_millis(if is_first { 5000 } else { 5 }), Box::new(Reply::status(200)))
    };
    let receiver = Receiver::with(Keep::Ledger, late, row_of).await;
    let _daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "batch_size = 10")).await;
    postgres.sql("INSERT INTO counters SELECT i, 0 FROM generate_series(1, 10) i").await;
    let mut updates = 0;
    while !receiver.ledger(|ledger| ledger.has("counters/1", 0)) {
        client.batch_execute("UPDATE counters SET n = n + 1").await.unwrap();
        updates += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for _ in 0..20 {
        client.batch_execute("UPDATE counters SET n = n + 1").await.unwrap();
        updates += 1;
    }
    receiver
        .wait("the last change of every row", |receiver| {
            receiver.ledger(|ledger| (1..=10).all(|row| ledger.has(&format!("counters/{row}"), updates)))
        })
        .await;
    assert_complete(&receiver, 10, updates);
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert_eq!(ledger.repeats, 0);
    });
}

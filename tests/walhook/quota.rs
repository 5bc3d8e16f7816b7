//! P6 and P9 when the disk has no more room: the source is held and it is said why, nothing is lost, and it goes on by itself.

use std::time::Duration;

use serde_json::Value;

use crate::daemon::{Config, Daemon, troubles};
use crate::disk::{Peak, Tmpfs, used_bytes};
use crate::order::{assert_complete, counters};
use crate::outage::wait_confirmed;
use crate::postgres::{Postgres, state, until, until_within};
use crate::pressure::full;
use crate::receiver::{Keep, Receiver, Reply, row_of};

const SLOT: &str = "walhook_app";

/// Rows, each inserted and then updated once: several times what memory and store may hold together.
fn rows() -> i64 {
    if full() { 100_000 } else { 25_000 }
}

struct Case {
    postgres: Postgres,
    receiver: Receiver,
    config: Config,
}

impl Case {
    /// A dead endpoint, and `state` lines of the config.
    async fn begin(state: &str) -> Self {
        let postgres = Postgres::start();
        counters(&postgres).await;
        let receiver = Receiver::with(Keep::Ledger, |_| Reply::status(503), row_of).await;
        let text = Config::source(&postgres)
            + "[limits]\nmemory_limit = \"32MiB\"\n[state]\n"
            + state
            + &Config::sink("orders", &receiver.url(), "batch_size = 100");
        Self { postgres, receiver, config: Config::new(&text) }
    }

    /// Values that do not compress.
    async fn write(&self) {
        let noise = "(SELECT string_agg(md5(i::text || j::text), '') FROM generate_series(1, 32) j)";
        self.postgres
            .sql(&format!("INSERT INTO counters SELECT i, 0, {noise} FROM generate_series(1, {}) i", rows()))
            .await;
        self.postgres.sql("UPDATE counters SET n = 1").await;
    }

    /// Waits until the daemon says that it stands still, and why; gives what `/readyz` says.
    async fn wait_held(&self, daemon: &Daemon, why: &str) -> Value {
        until_within(Duration::from_secs(120), "readyz to say that the source is held for lack of room", || async {
            match daemon.ready().await {
                Some((503, body)) if body["sources"]["app"]["state"] == "held" && troubles(&body).contains(why) => {
                    Ok(body)
                }
                other => Err(other),
            }
        })
        .await
    }

    /// The endpoint is back: everything arrives, in order, once, and the slot stands at the end.
    async fn recover(&self, daemon: &Daemon) {
        self.receiver.script(|_| Reply::status(200));
        let all = usize::try_from(rows() * 2).unwrap();
        let deadline = Duration::from_secs(if full() { 600 } else { 150 });
        self.receiver
            .wait_within(deadline, "everything to be delivered", |receiver| {
                receiver.ledger(|ledger| ledger.acknowledged()) >= all
            })
            .await;
        assert_complete(&self.receiver, rows(), 1);
        self.receiver.ledger(|ledger| {
            ledger.assert_clean();
            assert_eq!(ledger.repeats, 0, "messages came again");
        });
        daemon.wait_ready().await;
        let end = self.postgres.value("SELECT pg_current_wal_lsn()").await;
        wait_confirmed(&self.postgres, &end, Duration::from_secs(30)).await;
    }
}

/// The session goes on: keepalives are answered while nothing is read.
async fn assert_same_session(postgres: &Postgres, reader: Option<i32>) {
    assert!(reader.is_some(), "nobody reads the slot");
    assert_eq!(postgres.reader(SLOT).await, reader, "the session was lost while the source was held");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_quota_the_source_is_held_and_goes_on_by_itself() {
    let case = Case::begin("max_bytes = \"8MiB\"\n").await;
    let peak = Peak::of(case.config.state());
    let daemon = Daemon::start(&case.config).await;
    let reader = case.postgres.reader(SLOT).await;
    case.write().await;

    let body = case.wait_held(&daemon, "state.max_bytes").await;
    println!("{}", troubles(&body));
    for advice in ["8.0 MiB", "raise"] {
        assert!(troubles(&body).contains(advice), "the trouble should say {advice:?}: {body}");
    }
    assert_eq!(body["store"]["state"], "full", "{body}");
    until("the metrics to say why", || async {
        let metrics = daemon.metrics().await;
        let said = ["walhook_store_full", "walhook_source_held"].map(|name| metrics.sum(name, &[]));
        state(said == [Some(1.0), Some(1.0)], said)
    })
    .await;
    let tried = case.receiver.request_count();
    case.receiver.wait("further probes", |receiver| receiver.request_count() >= tried + 10).await;
    assert_same_session(&case.postgres, reader).await;
    let lag = case.postgres.lag_bytes(SLOT).await.unwrap();
    assert!(lag > 10_000_000, "what cannot be held was confirmed nevertheless: only {lag} bytes are left in the WAL");

    case.recover(&daemon).await;
    assert_same_session(&case.postgres, reader).await;
    assert!(peak.bytes() <= 8 << 20, "the store took {} bytes of 8 MiB", peak.bytes());
    assert!(daemon.peak_kib() <= (32 + 64) * 1024, "{} KiB resident at the peak", daemon.peak_kib());
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_the_quota_changes_nothing() {
    let case = Case::begin("max_bytes = \"8MiB\"\n").await;
    let peak = Peak::of(case.config.state());
    let daemon = Daemon::start(&case.config).await;
    case.write().await;
    case.wait_held(&daemon, "state.max_bytes").await;
    daemon.kill9();
    case.receiver.abandoned().await;
    case.receiver.ledger(|ledger| ledger.new_run());

    let daemon = Daemon::launch(&case.config);
    case.wait_held(&daemon, "state.max_bytes").await;
    case.recover(&daemon).await;
    assert!(peak.bytes() <= 8 << 20, "the store took {} bytes of 8 MiB", peak.bytes());
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_holds_the_source_until_there_is_room() {
    let Some(disk) = Tmpfs::mount("16m") else { return };
    let path = disk.path().join("state");
    let case = Case::begin(&format!("path = \"{}\"\n", path.display())).await;
    let daemon = Daemon::start(&case.config).await;
    let reader = case.postgres.reader(SLOT).await;
    case.write().await;

    let body = case.wait_held(&daemon, "store").await;
    println!("{}, {} bytes used", troubles(&body), used_bytes(&path));
    assert!(troubles(&body).contains(&path.display().to_string()), "the trouble names the place: {body}");
    let metrics = daemon.metrics().await;
    assert_eq!(metrics.sum("walhook_source_held", &[]), Some(1.0));
    let said = ["walhook_store_full", "walhook_store_failing"].map(|name| metrics.sum(name, &[]));
    assert!(said.contains(&Some(1.0)), "the metrics should say why the source is held: {said:?}");
    let tried = case.receiver.request_count();
    case.receiver.wait("further probes", |receiver| receiver.request_count() >= tried + 10).await;
    assert_same_session(&case.postgres, reader).await;

    case.recover(&daemon).await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_somebody_else_fills_holds_confirmations_until_there_is_room() {
    let Some(disk) = Tmpfs::mount("16m") else { return };
    let path = disk.path().join("state");
    let case = Case::begin(&format!("path = \"{}\"\n", path.display())).await;
    let daemon = Daemon::start(&case.config).await;
    disk.fill();
    case.postgres.sql("INSERT INTO counters SELECT i, 0 FROM generate_series(1, 100) i").await;
    let end = case.postgres.value("SELECT pg_current_wal_lsn()").await;
    let body = until("readyz to say that the store cannot be written", || async {
        match daemon.ready().await {
            Some((503, body)) if body["store"]["state"] == "failing" => Ok(body),
            other => Err(other),
        }
    })
    .await;
    assert!(troubles(&body).contains(&path.display().to_string()), "the trouble names the place: {body}");
    let tried = case.receiver.request_count();
    case.receiver.wait("further probes", |receiver| receiver.request_count() >= tried + 5).await;
    let confirmed = format!("SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots");
    assert_eq!(case.postgres.value(&confirmed).await, "f", "confirmed what neither the endpoint nor the disk has");

    disk.free();
    daemon.wait_ready().await;
    wait_confirmed(&case.postgres, &end, Duration::from_secs(30)).await;
    case.receiver.script(|_| Reply::status(200));
    case.receiver.wait_acknowledged(100).await;
    case.receiver.ledger(|ledger| ledger.assert_clean());
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_at_the_start_is_said_and_waited_for() {
    let Some(disk) = Tmpfs::mount("16m") else { return };
    let path = disk.path().join("state");
    let case = Case::begin(&format!("path = \"{}\"\n", path.display())).await;
    case.receiver.script(|_| Reply::status(200));
    for is_new in [true, false] {
        disk.fill();
        let daemon = Daemon::launch(&case.config);
        let body = until("readyz to say that the store has no room", || async {
            match daemon.ready().await {
                Some((503, body)) if troubles(&body).contains(&path.display().to_string()) => Ok(body),
                other => Err(other),
            }
        })
        .await;
        println!("{}", troubles(&body));
        disk.free();
        daemon.wait_ready().await;
        let (row, so_far) = if is_new { (1, 1) } else { (2, 2) };
        case.postgres.sql(&format!("INSERT INTO counters VALUES ({row}, 0)")).await;
        case.receiver.wait_acknowledged(so_far).await;
        assert!(daemon.sigterm().await.success());
    }
    case.receiver.ledger(|ledger| assert_eq!(ledger.repeats, 0));
}

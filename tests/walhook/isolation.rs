//! P5: a dead sink fills its own share of memory, then the disk, while its neighbour gets everything.

use std::time::Duration;

use crate::daemon::{Config, Daemon};
use crate::order::{assert_complete, counters};
use crate::outage::wait_confirmed;
use crate::postgres::Postgres;
use crate::pressure::full;
use crate::receiver::{Keep, Receiver, Reply, row_of};

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_sink_overflows_on_its_own_while_others_get_everything() {
    let rows: i64 = if full() { 100_000 } else { 15_000 };
    let postgres = Postgres::start();
    counters(&postgres).await;
    let fast = Receiver::with(Keep::Ledger, |_| Reply::status(200), row_of).await;
    let dead = Receiver::with(Keep::Ledger, |_| Reply::status(503), row_of).await;
    let text = Config::source(&postgres)
        + "[limits]\nmemory_limit = \"32MiB\"\n"
        + &Config::sink("fast", &fast.url(), "batch_size = 100")
        + &Config::sink("dead", &dead.url(), "batch_size = 100");
    let daemon = Daemon::start(&Config::new(&text)).await;

    // Two or three times the memory limit for each of the two.
    let insert = "INSERT INTO counters SELECT i, 0, repeat(md5(i::text), 30) FROM generate_series";
    postgres.sql(&format!("{insert}(1, {rows}) i")).await;
    postgres.sql("UPDATE counters SET n = 1").await;
    let all = usize::try_from(rows * 2).unwrap();
    let deadline = Duration::from_secs(if full() { 600 } else { 150 });
    let everything = |receiver: &Receiver| receiver.ledger(|ledger| ledger.acknowledged()) >= all;
    fast.wait_within(deadline, "the fast sink to get everything while the other is dead", everything).await;
    dead.ledger(|ledger| assert_eq!(ledger.acknowledged(), 0, "the dead one stayed dead meanwhile"));
    let end = postgres.value("SELECT pg_current_wal_lsn()").await;
    wait_confirmed(&postgres, &end, Duration::from_secs(15)).await;
    let held = daemon.metrics().await.sum("walhook_source_held_seconds_total", &[("source", "app")]);
    assert_eq!(held, Some(0.0), "seconds for which the source was held for the dead sink's sake");

    dead.script(|_| Reply::status(200));
    dead.wait_within(deadline, "the other one's overflow to be delivered", everything).await;
    for receiver in [&fast, &dead] {
        assert_complete(receiver, rows, 1);
        receiver.ledger(|ledger| {
            ledger.assert_clean();
            assert_eq!(ledger.repeats, 0, "nothing crashed, so nothing comes again");
        });
    }
    assert!(daemon.peak_kib() <= (32 + 64) * 1024, "{} KiB resident at the peak", daemon.peak_kib());
    assert!(daemon.sigterm().await.success());
}

//! Faults of the disk that the store is on.

use std::time::Instant;

use super::Fault;
use crate::daemon::{Config, Daemon, troubles};
use crate::disk::Tmpfs;
use crate::order::counters;
use crate::postgres::{Postgres, state, until};
use crate::receiver::{Keep, Receiver, Reply, row_of};

/// A tmpfs for the store of a daemon whose endpoint is dead.
async fn on_tmpfs() -> Option<(Postgres, Receiver, Tmpfs, Config)> {
    let disk = Tmpfs::mount("16m")?;
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::with(Keep::All, |_| Reply::status(503), row_of).await;
    let state = format!("[state]\npath = \"{}/state\"\n", disk.path().display());
    let config = Config::new(&(Config::source(&postgres) + &state + &Config::sink("orders", &receiver.url(), "")));
    Some((postgres, receiver, disk, config))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_store_is_told_by_readyz_log_and_metric_and_clears() {
    let Some((postgres, receiver, disk, config)) = on_tmpfs().await else { return };
    let daemon = Daemon::start(&config).await;
    let since = Instant::now();
    disk.fill();
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    let told = async |is_told: bool| {
        until("readyz and metrics to say so, or no longer", || async {
            let said = daemon.ready().await.map(|(_, body)| troubles(&body)).unwrap_or_default();
            let metrics = daemon.metrics().await;
            let metric = ["walhook_store_full", "walhook_store_failing"].map(|name| metrics.sum(name, &[]));
            let holds = (said.contains("the disk of state.path"), metric.contains(&Some(1.0))) == (is_told, is_told);
            state(holds, (said, metric))
        })
        .await;
    };
    told(true).await;
    Fault::ended("disk of the store full", since);
    assert!(daemon.logged("the store is full") || daemon.logged("the store cannot write"), "{}", daemon.printed());
    let since = Instant::now();
    disk.free();
    told(false).await;
    Fault::mended("disk of the store full", since);
    assert!(daemon.logged("the store has room again") || daemon.logged("the store writes again"));
    receiver.script(|_| Reply::status(200));
    receiver.wait_acknowledged(1).await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_may_only_be_read_is_told_at_the_start_and_can_be_mended() {
    let Some((postgres, receiver, disk, config)) = on_tmpfs().await else { return };
    receiver.script(|_| Reply::status(200));
    assert!(Daemon::start(&config).await.sigterm().await.success());
    disk.remount("ro");
    let since = Instant::now();
    let mut daemon = Daemon::launch(&config).allow_error("walhook ends");
    let status = daemon.wait_exit().await;
    Fault::ended("state directory read-only", since);
    let printed = daemon.printed();
    assert_eq!(status.code(), Some(69), "{printed}");
    let last = printed.lines().last().unwrap_or_default();
    assert!(last.contains("Read-only file system") && last.contains("let walhook's user write"), "{last}");
    let since = Instant::now();
    disk.remount("rw");
    let daemon = Daemon::start(&config).await;
    Fault::mended("state directory read-only", since);
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait_acknowledged(1).await;
    assert!(daemon.sigterm().await.success());
}

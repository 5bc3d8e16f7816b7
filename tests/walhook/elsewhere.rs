//! P1 and P9 when the address of the database leads elsewhere: to another cluster, or to another timeline of the same.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use walhook::demo::cluster::{Cluster, ClusterOptions};

use crate::daemon::{Config, Daemon, quick_retry, troubles};
use crate::order::counters;
use crate::postgres::{Postgres, state, until};
use crate::receiver::Receiver;

/// A name for whichever server stands behind it.
struct Door {
    port: u16,
    leads_to: Arc<AtomicU16>,
    task: JoinHandle<()>,
}

impl Door {
    async fn to(port: u16) -> Self {
        let leads_to = Arc::new(AtomicU16::new(port));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = Arc::clone(&leads_to);
        let task = tokio::spawn(async move {
            loop {
                let (mut inside, _) = listener.accept().await.unwrap();
                let port = target.load(Ordering::SeqCst);
                tokio::spawn(async move {
                    if let Ok(mut outside) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
                        drop(tokio::io::copy_bidirectional(&mut inside, &mut outside).await);
                    }
                });
            }
        });
        Self { port, leads_to, task }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn end_sessions(postgres: &Postgres) {
    postgres
        .admin_sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'walhook'")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_leads_to_another_cluster_stops_the_source_until_it_leads_back() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    // Made by initdb, not from the template, which has an identity of its own.
    let other = tokio::task::spawn_blocking(|| Cluster::start(&ClusterOptions::default())).await.unwrap().unwrap();
    let door = Door::to(postgres.cluster.port()).await;
    let receiver = Receiver::start().await;
    let own = format!("127.0.0.1:{}", postgres.cluster.port());
    let config = Config::source(&postgres).replace(&own, &format!("127.0.0.1:{}", door.port))
        + &Config::sink("orders", &receiver.url(), "");
    let daemon = Daemon::start(&Config::new(&config)).await.allow_error("another database cluster");

    door.leads_to.store(other.port(), Ordering::SeqCst);
    end_sessions(&postgres).await;
    until("readyz to name the cluster", || async {
        let seen = daemon.ready().await;
        let told = seen
            .as_ref()
            .is_some_and(|(code, body)| *code == 503 && troubles(body).contains("another database cluster"));
        state(told, seen)
    })
    .await;

    door.leads_to.store(postgres.cluster.port(), Ordering::SeqCst);
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait("the row", |receiver| receiver.request_count() >= 1).await;
    daemon.wait_ready().await;
    assert!(daemon.sigterm().await.success());
}

/// Ends the timeline of a cluster as a promoted standby does: recovery, then promotion.
fn promote(postgres: &Postgres) {
    let cluster = &postgres.cluster;
    cluster.stop("fast").unwrap();
    let data = cluster.data();
    let auto = data.join("postgresql.auto.conf");
    let settings = std::fs::read_to_string(&auto).unwrap_or_default();
    // From 16 on a server in recovery keeps logical slots only if it takes connections, and walhook waits for it.
    let major: u32 = std::fs::read_to_string(data.join("PG_VERSION")).unwrap().trim().parse().unwrap();
    let closed = if major < 16 { "hot_standby = off\n" } else { "" };
    std::fs::write(&auto, settings + closed).unwrap();
    std::fs::write(data.join("standby.signal"), "").unwrap();
    // The server runs as the owner of its data, who must be able to remove the signal.
    let owner = format!("--reference={}", data.display());
    assert!(Command::new("chown").arg(&owner).arg(data.join("standby.signal")).status().unwrap().success());
    cluster.resume_without_waiting().unwrap();
    cluster.promote().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_40_it_goes_on_after_a_promotion_that_has_all_that_was_read() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::start().await;
    let text = Config::source(&postgres) + &Config::sink("orders", &receiver.url(), &quick_retry("orders"));
    let daemon = Daemon::start(&Config::new(&text)).await;
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait("the row", |receiver| receiver.request_count() >= 1).await;

    tokio::task::block_in_place(|| promote(&postgres));
    daemon.wait_logged("the database was promoted").await;
    daemon.wait_ready().await;
    postgres.sql("INSERT INTO counters VALUES (2, 0)").await;
    receiver.wait("the row of the new timeline", |receiver| receiver.request_count() >= 2).await;
    assert!(daemon.sigterm().await.success());
}

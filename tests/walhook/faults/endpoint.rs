//! Faults of endpoints and of their names.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::Fault;
use crate::certified::certified;
use crate::daemon::{Config, Daemon, quick_retry};
use crate::disk::preload;
use crate::order::{assert_complete, counters};
use crate::postgres::{Postgres, state, until};
use crate::receiver::{Keep, Receiver, Reply, row_of};

/// Its retries are quick, so that a test need not wait for one.
pub(super) fn sink(lines: &str) -> String {
    format!("{lines}\n{}", quick_retry("orders"))
}

pub(super) async fn begin(receiver: &Receiver, lines: &str) -> (Postgres, Daemon) {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), lines)).await;
    (postgres, daemon)
}

pub(super) async fn insert(postgres: &Postgres, from: i64, to: i64) {
    postgres.sql(&format!("INSERT INTO counters SELECT i, 0 FROM generate_series({from}, {to}) i")).await;
}

pub(super) async fn age(daemon: &Daemon) -> f64 {
    daemon.metrics().await.sum("walhook_sink_oldest_undelivered_age_seconds", &[]).unwrap()
}

async fn reason_to_hold(daemon: &Daemon) -> String {
    let (_, body) = daemon.ready().await.unwrap();
    body["sinks"]["orders"]["hold_reason"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_whose_answers_are_late_is_told_with_numbers_and_what_waits_ages_wherever_it_is() {
    let late = || Reply::After(Duration::from_secs(6), Box::new(Reply::status(200)));
    let receiver = Receiver::with(Keep::Ledger, move |_| late(), row_of).await;
    let (postgres, daemon) = begin(&receiver, "max_in_flight = 4").await;
    let fault = Fault {
        name: "slow answers",
        says: &["slow: answers take", "messages wait, the oldest since"],
        logs: "endpoint is slow: it answers, but messages wait",
        metric: ("walhook_sink_slow", &[], 1.0),
    };
    let since = Instant::now();
    insert(&postgres, 1, 400).await;
    fault.told(&daemon, since).await;
    // All of them came together, so the oldest of those that are left is as old as ever: in flight, in memory, in the
    // store or read back from there.
    let last = std::cell::Cell::new(0.0);
    until("what waits to have aged by some answers", || async { state(age(&daemon).await > 14.0, ()) }).await;
    receiver.wait("some answers", |receiver| receiver.ledger(|ledger| ledger.acknowledged()) > 8).await;
    until("more answers, while what is left ages", || async {
        let now = age(&daemon).await;
        let before = last.replace(now);
        assert!(now >= before && now > 14.0, "{now} s after {before} s");
        state(receiver.ledger(|ledger| ledger.acknowledged()) > 16, now)
    })
    .await;
    let since = Instant::now();
    receiver.script(|_| Reply::status(200));
    fault.cleared(&daemon, since).await;
    daemon.wait_logged("endpoint is slow no longer").await;
    receiver.wait_acknowledged(400).await;
    assert_complete(&receiver, 400, 0);
    until("nothing to be left that ages", || async { state(age(&daemon).await == 0.0, ()) }).await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_accepts_nobody_is_one_in_trouble_and_one_that_accepts_some_is_not() {
    let refused = |request: &crate::receiver::Request| {
        let is_first = request.messages.iter().any(|message| message["record"]["id"] == 1);
        Reply::status(if is_first { 403 } else { 200 })
    };
    let receiver = Receiver::with(Keep::Ledger, refused, row_of).await;
    let (postgres, daemon) = begin(&receiver, &sink("")).await;
    insert(&postgres, 1, 1).await;
    insert(&postgres, 2, 50).await;
    receiver.wait_acknowledged(49).await;
    // From here on the others are answered between any two refusals, and the breaker stays closed.
    for id in 51..80 {
        insert(&postgres, id, id).await;
        receiver.wait_acknowledged(usize::try_from(id - 1).unwrap()).await;
    }
    let fault = Fault {
        name: "401 for all",
        says: &["gets only probes", "status_unauthorized", "headers or signing_secrets"],
        logs: "endpoint fails as a whole",
        metric: ("walhook_sink_breaker_open", &[], 1.0),
    };
    let since = Instant::now();
    receiver.script(|_| Reply::status(401));
    insert(&postgres, 80, 100).await;
    fault.told(&daemon, since).await;
    until("the reason to be told", || async {
        let reason = reason_to_hold(&daemon).await;
        state(reason == "breaker_open", reason)
    })
    .await;
    let since = Instant::now();
    receiver.script(|_| Reply::status(200));
    fault.cleared(&daemon, since).await;
    receiver.wait_acknowledged(100).await;
    assert_complete(&receiver, 100, 0);
    assert!(daemon.sigterm().await.success());
}

/// What getaddrinfo(3) says in a daemon, for all names but addresses.
struct Names(TempDir);

impl Names {
    fn build() -> Self {
        let directory = tempfile::tempdir().unwrap();
        preload(directory.path(), "names", include_str!("../names.c"));
        let names = Self(directory);
        names.say("here");
        names
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.0.path().join(name).to_string_lossy().into_owned();
        vec![("LD_PRELOAD", path("names.so")), ("NAMES", path("says"))]
    }

    /// `here`: 127.0.0.1, `none`: there is no such name, `again`: nobody could be asked.
    fn say(&self, what: &str) {
        std::fs::write(self.0.path().join("new"), what).unwrap();
        std::fs::rename(self.0.path().join("new"), self.0.path().join("says")).unwrap();
    }
}

/// A receiver that closes each connection, so that the next request needs a new one.
async fn forgetful() -> Receiver {
    let reply = |_: &crate::receiver::Request| Reply::with_header(200, "connection", "close");
    Receiver::with(Keep::Ledger, reply, row_of).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_gone_is_the_endpoints_and_a_resolver_that_is_gone_is_our_own() {
    let (postgres, names, receiver) = (Postgres::start(), Names::build(), forgetful().await);
    counters(&postgres).await;
    let url = receiver.url().replace("127.0.0.1", "hooks.test");
    let lines = sink("").replace("[sink.orders.retry]", "[sink.orders.retry]\nmax_attempts = 8");
    let daemon = Daemon::launch_with(&Config::one_sink(&postgres, &url, &lines), &names.environment());
    daemon.wait_ready().await;
    insert(&postgres, 1, 1).await;
    receiver.wait_acknowledged(1).await;

    let own = Fault {
        name: "local DNS gone",
        says: &["waits for walhook's own machine", "own_dns", "hooks.test", "/etc/resolv.conf"],
        logs: "sink waits for walhook's own machine",
        metric: ("walhook_sink_own_trouble", &[], 1.0),
    };
    let since = Instant::now();
    names.say("again");
    insert(&postgres, 2, 30).await;
    own.told(&daemon, since).await;
    assert_eq!(reason_to_hold(&daemon).await, "own_trouble");
    // It was tried more often than max_attempts allows, and nothing was counted.
    until("many attempts", || async {
        let tried = daemon.metrics().await.sum("walhook_sink_failures_total", &[("category", "own_dns")]);
        state(tried > Some(8.0), tried)
    })
    .await;
    let metrics = daemon.metrics().await;
    assert_eq!(metrics.sum("walhook_sink_breaker_open", &[]), Some(0.0));
    assert_eq!(metrics.sum("walhook_sink_consecutive_failures", &[]), Some(0.0));
    let since = Instant::now();
    names.say("here");
    own.cleared(&daemon, since).await;
    daemon.wait_logged("walhook's own machine is well again").await;
    receiver.wait_acknowledged(30).await;
    assert_eq!(daemon.metrics().await.sum("walhook_sink_kept_dead_letters", &[]), Some(0.0));

    let theirs = Fault {
        name: "endpoint DNS gone",
        says: &["gets only probes", "dns_error", "hooks.test"],
        logs: "endpoint fails as a whole",
        metric: ("walhook_sink_breaker_open", &[], 1.0),
    };
    let since = Instant::now();
    names.say("none");
    insert(&postgres, 31, 60).await;
    theirs.told(&daemon, since).await;
    let since = Instant::now();
    names.say("here");
    theirs.cleared(&daemon, since).await;
    receiver.wait_acknowledged(60).await;

    // A name whose own servers fail, while the resolver answers for others.
    let before = daemon.metrics().await.sum("walhook_sink_failures_total", &[("category", "own_dns")]);
    let theirs = Fault { name: "endpoint's name servers fail", ..theirs };
    let since = Instant::now();
    names.say("broken");
    insert(&postgres, 61, 90).await;
    theirs.told(&daemon, since).await;
    let after = daemon.metrics().await.sum("walhook_sink_failures_total", &[("category", "own_dns")]);
    assert_eq!(after, before, "walhook's machine was blamed");
    let since = Instant::now();
    names.say("here");
    theirs.cleared(&daemon, since).await;
    receiver.wait_acknowledged(90).await;
    assert_complete(&receiver, 90, 0);
    assert!(daemon.sigterm().await.success());
}

/// Speaks TLS before a receiver, with a certificate that can be changed.
struct Front {
    port: u16,
    acceptor: Arc<Mutex<TlsAcceptor>>,
    cut: tokio::sync::mpsc::Sender<()>,
    _tasks: JoinSet<()>,
}

impl Front {
    async fn before(receiver: &Receiver, acceptor: TlsAcceptor) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, back) = (listener.local_addr().unwrap().port(), receiver.url().replace("http://", ""));
        let acceptor = Arc::new(Mutex::new(acceptor));
        let (cut, mut order) = tokio::sync::mpsc::channel(1);
        let mut tasks = JoinSet::new();
        let current = Arc::clone(&acceptor);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    Some(()) = order.recv() => connections.shutdown().await,
                    Ok((socket, _)) = listener.accept() => {
                        let (acceptor, back) = (current.lock().unwrap().clone(), back.clone());
                        connections.spawn(async move {
                            let Ok(mut front) = acceptor.accept(socket).await else { return };
                            let Ok(mut back) = TcpStream::connect(back).await else { return };
                            drop(tokio::io::copy_bidirectional(&mut front, &mut back).await);
                        });
                    }
                }
            }
        });
        Self { port, acceptor, cut, _tasks: tasks }
    }

    /// From the next connection on, and all that there are end.
    async fn change(&self, acceptor: TlsAcceptor) {
        *self.acceptor.lock().unwrap() = acceptor;
        self.cut.send(()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expires_is_told_and_a_new_one_mends_it() {
    let (postgres, receiver) = (Postgres::start(), Receiver::with(Keep::Ledger, |_| Reply::status(200), row_of).await);
    counters(&postgres).await;
    let good = certified(&[], |_| {});
    let expired = certified(&[], |params| {
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2001, 1, 1), rcgen::date_time_ymd(2002, 1, 1));
    });
    let front = Front::before(&receiver, good.acceptor.clone()).await;
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, good.ca.pem() + &expired.ca.pem()).unwrap();
    let lines = sink(&format!("tls = {{ ca = \"{}\" }}", ca.display()));
    let url = format!("https://localhost:{}", front.port);
    let daemon = Daemon::start(&Config::one_sink(&postgres, &url, &lines)).await;
    insert(&postgres, 1, 1).await;
    receiver.wait_acknowledged(1).await;
    let fault = Fault {
        name: "TLS expired",
        says: &["gets only probes", "tls_error", "the certificate has expired"],
        logs: "endpoint fails as a whole",
        metric: ("walhook_sink_breaker_open", &[], 1.0),
    };
    let since = Instant::now();
    front.change(expired.acceptor).await;
    insert(&postgres, 2, 30).await;
    fault.told(&daemon, since).await;
    let since = Instant::now();
    front.change(good.acceptor.clone()).await;
    fault.cleared(&daemon, since).await;
    receiver.wait_acknowledged(30).await;
    assert_complete(&receiver, 30, 0);
    assert!(daemon.sigterm().await.success());
}

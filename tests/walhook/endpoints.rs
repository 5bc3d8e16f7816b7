//! What acknowledges, what fails, under which name, and that a hostile endpoint costs no memory.

use std::time::Duration;

use crate::certified::{Certified, certified};
use crate::daemon::{Config, Daemon, troubles};
use crate::order::counters;
use crate::postgres::{Postgres, state, until};
use crate::receiver::{Receiver, Reply};

/// One row is inserted while the endpoint misbehaves by `reply` for two requests; then it answers 200.
async fn fails_as(reply: Reply, category: &str) {
    // Only where the deadline is what is tested may it be near: a loaded machine can take a while to answer.
    let request_timeout = match reply {
        Reply::Never | Reply::DripHeaders | Reply::DripBody => "500ms",
        Reply::Answer { .. }
        | Reply::After(..)
        | Reply::Meet(..)
        | Reply::Reset
        | Reply::Gigabyte(_)
        | Reply::GzipBomb(_)
        | Reply::PartialBody
        | Reply::Garbage => "10s",
    };
    println!("{reply:?} should be {category}");
    let postgres = Postgres::start();
    let client = counters(&postgres).await;
    let first = reply.clone();
    let script = move |request: &crate::receiver::Request| {
        if request.number <= 2 { first.clone() } else { Reply::status(200) }
    };
    let receiver = Receiver::scripted(script).await;
    let sink = format!("request_timeout = \"{request_timeout}\"");
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), &sink)).await;

    client.batch_execute("INSERT INTO counters VALUES (1, 0)").await.unwrap();
    receiver.wait_acknowledged(1).await;

    let requests = receiver.requests();
    assert_eq!(requests.len(), 3, "two failures and a success");
    let attempts: Vec<&str> = requests.iter().map(|request| request.header("walhook-attempt")).collect();
    assert_eq!(attempts, ["1", "2", "3"]);
    assert!(requests.iter().all(|request| request.header("webhook-id") == requests[0].header("webhook-id")));
    assert!(requests.iter().all(|request| request.body == requests[0].body), "a delivery is frozen");
    named(&daemon, category).await;
    receiver.ledger(|ledger| ledger.assert_clean());
    assert!(daemon.peak_kib() < 100 * 1024, "{} KiB resident", daemon.peak_kib());
    assert!(daemon.sigterm().await.success());
}

/// Waits until the log and the metrics name the category.
async fn named(daemon: &Daemon, category: &str) {
    daemon.wait_logged(category).await;
    until(&format!("the metrics to name {category}"), || async {
        let metrics = daemon.metrics().await;
        let failures = metrics.sum("walhook_sink_failures_total", &[("sink", "orders"), ("category", category)]);
        state(failures >= Some(1.0), metrics)
    })
    .await;
}

macro_rules! failures {
    ($($name:ident: $reply:expr => $category:literal,)*) => { $(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            fails_as($reply, $category).await;
        }
    )* };
}

failures! {
    a_301_is_not_followed: Reply::with_header(301, "location", "/elsewhere") => "status_redirect",
    a_302_is_not_followed: Reply::with_header(302, "location", "/elsewhere") => "status_redirect",
    a_307_is_not_followed: Reply::with_header(307, "location", "/elsewhere") => "status_redirect",
    a_400_fails: Reply::status(400) => "status_client_error",
    a_401_fails: Reply::status(401) => "status_unauthorized",
    a_404_fails: Reply::status(404) => "status_client_error",
    a_410_fails: Reply::status(410) => "status_gone",
    a_413_fails: Reply::status(413) => "status_payload_too_large",
    a_429_fails: Reply::status(429) => "status_rate_limited",
    a_500_fails: Reply::status(500) => "status_server_error",
    a_reset_fails: Reply::Reset => "connection_reset",
    dripping_headers_time_out: Reply::DripHeaders => "timeout",
    a_dripping_body_times_out: Reply::DripBody => "timeout",
    silence_times_out: Reply::Never => "timeout",
    a_gigabyte_of_500_fails: Reply::Gigabyte(500) => "status_server_error",
    a_gzip_bomb_of_500_fails: Reply::GzipBomb(500) => "status_server_error",
    bytes_that_are_not_http_fail: Reply::Garbage => "protocol_error",
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_is_a_failure() {
    let postgres = Postgres::start();
    let client = counters(&postgres).await;
    let receiver =
        Receiver::scripted(|request| if request.number == 1 { Reply::PartialBody } else { Reply::status(200) }).await;
    let _daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;
    client.batch_execute("INSERT INTO counters VALUES (1, 0)").await.unwrap();
    receiver.wait_acknowledged(1).await;
    assert_eq!(receiver.request_count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_2xx_acknowledges_and_big_bodies_of_it_are_cut_off() {
    let postgres = Postgres::start();
    let client = counters(&postgres).await;
    let receiver = Receiver::scripted(|request| match request.number {
        1 => Reply::status(201),
        2 => Reply::status(204),
        3 => Reply::GzipBomb(200),
        4 => Reply::Gigabyte(200),
        _ => Reply::status(200),
    })
    .await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "max_in_flight = 1")).await;
    client.batch_execute("INSERT INTO counters SELECT i, 0 FROM generate_series(1, 6) i").await.unwrap();
    receiver.wait_acknowledged(6).await;
    // What failed would be resolved too, by the store, and come again.
    let metrics = daemon.wait_shown(&postgres).await;
    let outcome = |word| metrics.sum("walhook_sink_attempts_total", &[("outcome", word)]).unwrap_or_default();
    assert_eq!((outcome("acknowledged"), outcome("failed")), (6.0, 0.0));
    assert_eq!(receiver.request_count(), 6, "no message came twice");
    assert!(daemon.peak_kib() < 100 * 1024, "{} KiB resident", daemon.peak_kib());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_2xx_outside_success_is_a_failure_that_names_the_setting() {
    let postgres = Postgres::start();
    let client = counters(&postgres).await;
    let receiver = Receiver::scripted(|request| Reply::status(if request.number == 1 { 204 } else { 200 })).await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "success = \"200\"")).await;
    client.batch_execute("INSERT INTO counters VALUES (1, 0)").await.unwrap();
    receiver.wait("the second attempt", |receiver| receiver.request_count() == 2).await;
    named(&daemon, "unexpected_success_status").await;
    let told = daemon.logs().iter().any(|line| {
        let text = line.to_string();
        text.contains("unexpected_success_status") && text.replace("unexpected_success_status", "").contains("success")
    });
    assert!(told);
}

/// A port that nobody else can take and that refuses connections until somebody listens.
pub(crate) struct ReservedPort(socket2::Socket);

impl ReservedPort {
    /// A port of the system's choice.
    pub(crate) fn new() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        Self(socket)
    }

    /// `http://127.0.0.1:PORT`
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.0.local_addr().unwrap().as_socket().unwrap())
    }

    /// From here on connections are taken.
    pub(crate) fn listen(self) -> tokio::net::TcpListener {
        self.0.listen(128).unwrap();
        self.0.set_nonblocking(true).unwrap();
        tokio::net::TcpListener::from_std(self.0.into()).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_is_retried_until_somebody_listens() {
    let postgres = Postgres::start();
    let client = counters(&postgres).await;
    let port = ReservedPort::new();
    let daemon = Daemon::start(&Config::one_sink(&postgres, &port.url(), "")).await;
    client.batch_execute("INSERT INTO counters VALUES (1, 0)").await.unwrap();
    named(&daemon, "connect_refused").await;
    until("readyz to name the failing sink", || async {
        let (status, body) = daemon.ready().await.unwrap();
        assert_eq!(status, 200, "a failing sink alone does not make the daemon unready: {body}");
        state(troubles(&body).contains("sink:orders"), body)
    })
    .await;

    let receiver = Receiver::at(port.listen());
    receiver.wait_acknowledged(1).await;
    let attempt = receiver.requests()[0].header("walhook-attempt").to_owned();
    assert!(attempt.parse::<u32>().unwrap() > 1, "refused connections count as attempts: {attempt}");
    until("readyz to be content with the sink", || async {
        let body = daemon.ready().await.unwrap().1;
        state(!troubles(&body).contains("sink:orders"), body)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_honoured_for_the_whole_sink() {
    let postgres = Postgres::start();
    let client = counters(&postgres).await;
    let receiver = Receiver::scripted(|request| {
        if request.number == 1 { Reply::with_header(429, "retry-after", "3") } else { Reply::status(200) }
    })
    .await;
    let sink = "[sink.orders.retry]\ninitial = \"10ms\"\nmax = \"20s\"";
    let _daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), sink)).await;
    client.batch_execute("INSERT INTO counters VALUES (1, 0)").await.unwrap();
    receiver.wait("the first answer", |receiver| !receiver.answers().is_empty()).await;
    client.batch_execute("INSERT INTO counters VALUES (2, 0)").await.unwrap();
    receiver.wait_acknowledged(2).await;
    let requests = receiver.requests();
    let waited = requests[1].arrived - requests[0].arrived;
    assert!(waited >= Duration::from_millis(2900), "the next request came after {waited:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_between_attempts_grow() {
    let postgres = Postgres::start();
    let client = counters(&postgres).await;
    let receiver = Receiver::scripted(|request| Reply::status(if request.number <= 4 { 500 } else { 200 })).await;
    let sink = "[sink.orders.retry]\ninitial = \"200ms\"\nmax = \"60s\"";
    let _daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), sink)).await;
    client.batch_execute("INSERT INTO counters VALUES (1, 0)").await.unwrap();
    receiver.wait_acknowledged(1).await;
    let times: Vec<_> = receiver.requests().iter().map(|request| request.arrived).collect();
    for (pair, least) in times.windows(2).zip([100, 200, 400, 800]) {
        let waited = pair[1] - pair[0];
        assert!(waited >= Duration::from_millis(least), "{waited:?} is shorter than {least} ms");
    }
}

/// A private authority's certificate as PEM, and an https endpoint on localhost in front of `receiver` for which it vouches.
async fn https(receiver: &Receiver) -> (String, String, tokio::task::JoinSet<()>) {
    let Certified { ca, acceptor } = certified(&[], |_| ());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let behind = receiver.url().replace("http://", "");
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            let (acceptor, behind) = (acceptor.clone(), behind.clone());
            connections.spawn(async move {
                let Ok(mut tls) = acceptor.accept(socket).await else { return };
                let mut plain = tokio::net::TcpStream::connect(behind).await.unwrap();
                drop(tokio::io::copy_bidirectional(&mut tls, &mut plain).await);
            });
        }
    });
    (ca.pem(), url, tasks)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_of_a_private_authority_is_reached_by_its_file_and_no_start_goes_without_the_file() {
    let postgres = Postgres::start();
    let client = counters(&postgres).await;
    let receiver = Receiver::start().await;
    let (ca, url, _tasks) = https(&receiver).await;
    let config = Config::one_sink(&postgres, &url, "tls = { ca = \"ca.pem\" }");
    let file = config.path().parent().unwrap().join("ca.pem");
    for (text, said) in [(None, "cannot be read"), (Some("words"), "has no certificate")] {
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        for command in ["check", "run"] {
            let (code, text) = crate::commands::with_config(command, &config);
            assert_eq!(code, Some(69), "{command}: {text}");
            assert!(text.contains("ca.pem") && text.contains(said) && text.contains("tls.ca"), "{command}: {text}");
        }
    }
    std::fs::write(&file, ca).unwrap();
    let (code, text) = crate::commands::with_config("check", &config);
    assert!(code == Some(0) && text.contains("reachable") && !text.contains("not reachable"), "{text}");
    let _daemon = Daemon::start(&config).await;
    client.batch_execute("INSERT INTO counters VALUES (1, 0)").await.unwrap();
    receiver.wait_acknowledged(1).await;
    assert_eq!(receiver.requests()[0].header("walhook-attempt"), "1");
}

//! How attempts end when the connection, not the answer, is the trouble.

use std::time::Duration;

use super::rig::{Rig, attempt, delivery, failure, sink};
use crate::deliver::attempt::Verdict;
use crate::deliver::endpoint::Endpoint;

const SHORT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_refused_connection_says_where() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let attempt = attempt(&sink(&format!("http://{address}/secret-path"))).await;
    assert_eq!(failure(&attempt), ("connect_refused", &*format!("connection refused ({address})")));
    assert_eq!(attempt.status, None);
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_a_dns_error() {
    let attempt = attempt(&sink("http://nonexistent.invalid/secret-path")).await;
    let (category, message) = failure(&attempt);
    assert_eq!(category, "dns_error");
    assert!(message.contains("nonexistent.invalid:80") && !message.contains("secret"), "{message}");
}

#[tokio::test]
async fn a_connection_that_ends_before_the_answer_failed() {
    let reset = Rig::start(|mut peer| async move {
        peer.request().await.unwrap();
        peer.reset();
    })
    .await;
    assert_eq!(failure(&attempt(&reset.sink()).await).0, "connection_reset");
    let closed = Rig::start(|mut peer| async move {
        peer.request().await.unwrap();
    })
    .await;
    assert_eq!(failure(&attempt(&closed.sink()).await).0, "connection_reset");
    assert_eq!((reset.arrived().len(), closed.arrived().len()), (1, 1));
}

#[tokio::test]
async fn a_2xx_whose_body_breaks_off_is_a_failure() {
    for (head, reset) in [
        ("content-length: 100", true),
        ("content-length: 100", false),
        ("transfer-encoding: chunked", true),
        ("transfer-encoding: chunked", false),
    ] {
        let rig = Rig::start(move |mut peer| async move {
            peer.request().await.unwrap();
            peer.write(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n5\r\nhello\r\n")).await;
            if reset {
                peer.reset();
            }
        })
        .await;
        let attempt = attempt(&rig.sink()).await;
        assert_eq!(failure(&attempt).0, "connection_reset", "{head} {reset}");
        assert_eq!(rig.arrived().len(), 1);
    }
}

#[tokio::test]
async fn a_2xx_whose_chunks_are_garbage_is_a_protocol_error_and_a_broken_500_stays_a_500() {
    let garbage = Rig::answering("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n").await;
    let attempt_ = attempt(&garbage.sink()).await;
    assert_eq!((failure(&attempt_).0, attempt_.status), ("protocol_error", Some(200)));
    let refused = Rig::answering("HTTP/1.1 500 Oh\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n").await;
    assert_eq!(failure(&attempt(&refused.sink()).await).0, "status_server_error");
}

#[tokio::test]
async fn what_is_not_http_is_a_protocol_error() {
    for answer in ["SSH-2.0-OpenSSH_9.2\r\n\r\n", "HTTP/1.1 abc\r\n\r\n", "HTTP/1.1 200 OK\r\nno colon\r\n\r\n"] {
        let rig = Rig::answering(answer).await;
        assert_eq!(failure(&attempt(&rig.sink()).await).0, "protocol_error", "{answer:?}");
    }
    let flood = Rig::answering(format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(1 << 20))).await;
    assert_eq!(failure(&attempt(&flood.sink()).await).0, "protocol_error");
}

#[tokio::test]
async fn no_answer_dripping_headers_and_dripping_bodies_end_at_the_deadline() {
    let drip = |start: &'static str| {
        Rig::start(move |mut peer| async move {
            peer.request().await.unwrap();
            peer.write(start).await;
            while !start.is_empty() && peer.write("x").await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            peer.until_closed().await;
        })
    };
    for (start, status, message) in [
        ("", None, "no answer within 300ms (request_timeout)"),
        ("HTTP/1.1 200 OK\r\nx: ", None, "no answer within 300ms (request_timeout)"),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n",
            Some(200),
            "200 OK, but its body did not end within 300ms (request_timeout)",
        ),
    ] {
        let rig = drip(start).await;
        let mut sink = rig.sink();
        sink.request_timeout = SHORT;
        let attempt = attempt(&sink).await;
        assert_eq!(failure(&attempt), ("timeout", message));
        assert_eq!(attempt.status, status);
        assert!(attempt.duration >= SHORT);
        assert_eq!(rig.arrived().len(), 1);
    }
}

#[tokio::test]
async fn a_handshake_that_hangs_is_a_connect_timeout() {
    let rig = Rig::start(|mut peer| async move { peer.until_closed().await }).await;
    let mut sink = sink(&format!("https://127.0.0.1:{}/", rig.port));
    sink.request_timeout = SHORT;
    let attempt = Endpoint::with_roots(&sink, rustls::RootCertStore::empty()).unwrap().attempt(&delivery(100), 1).await;
    assert_eq!(failure(&attempt).0, "connect_timeout");
}

#[tokio::test]
async fn a_pooled_connection_that_dies_under_a_request_fails_the_attempt_without_a_second_post() {
    let rig = Rig::start(|mut peer| async move {
        peer.request().await.unwrap();
        peer.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        // The second request of the connection may have been processed; its answer never comes.
        peer.request().await;
    })
    .await;
    let endpoint = Endpoint::new(&rig.sink()).unwrap();
    assert_eq!(endpoint.attempt(&delivery(100), 1).await.verdict, Verdict::Acknowledged);
    let second = endpoint.attempt(&delivery(101), 1).await;
    assert_eq!(failure(&second).0, "connection_reset");
    assert_eq!(rig.arrived().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_closed_while_idle_never_make_a_request_arrive_twice() {
    let rig = Rig::start(|mut peer| async move {
        peer.request().await.unwrap();
        peer.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        tokio::io::AsyncWriteExt::shutdown(&mut peer.socket).await.unwrap();
        // A request that crosses the closing has arrived, and is never answered.
        peer.request().await;
    })
    .await;
    let endpoint = Endpoint::new(&rig.sink()).unwrap();
    for number in 1..=300 {
        let attempt = endpoint.attempt(&delivery(100), number).await;
        if !attempt.verdict.is_acknowledged() {
            assert_eq!(failure(&attempt).0, "connection_reset");
        }
    }
    let arrived = rig.arrived();
    let numbers: std::collections::HashSet<_> = arrived.iter().map(|one| one.header("walhook-attempt")).collect();
    assert_eq!(numbers.len(), arrived.len());
}

#[test]
fn proxies_of_the_environment_are_not_used() {
    let dead = "http://127.0.0.1:9";
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "--ignored", "deliver::tests::connections::child_with_a_proxy_in_its_environment"]);
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        child.env(name, dead);
    }
    let output = child.env_remove("NO_PROXY").env_remove("no_proxy").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
#[ignore = "run by proxies_of_the_environment_are_not_used"]
async fn child_with_a_proxy_in_its_environment() {
    let rig = Rig::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let mut sink = rig.sink();
    sink.endpoint.set_host(Some("localhost")).unwrap();
    assert_eq!(attempt(&sink).await.verdict, Verdict::Acknowledged);
}

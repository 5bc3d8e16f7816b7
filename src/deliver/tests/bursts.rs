//! Many requests at once, and connections that must do while no other is to be had.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join_all;
use http::Response;
use rustls::RootCertStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::http2::{Connection, Http2Rig, serve, server};
use super::rig::{Rig, delivery, failure, sink};
use crate::deliver::attempt::Verdict;
use crate::deliver::connection::clock::Pace;
use crate::deliver::endpoint::{Endpoint, Ways};

const FINE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn the_first_burst_to_an_https_endpoint_without_http2_connects_side_by_side() {
    let (acceptor, roots) = server(b"http/1.1");
    let (connections, all) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let rig = Rig::start(move |peer| {
        let (acceptor, all) = (acceptor.clone(), Arc::clone(&all));
        let number = connections.fetch_add(1, Ordering::SeqCst) + 1;
        let connections = Arc::clone(&connections);
        async move {
            // All but the first are kept waiting until eight are there.
            while number > 1 && connections.load(Ordering::SeqCst) < 8 {
                all.notified().await;
            }
            all.notify_waiters();
            let Some(mut peer) = peer.under_tls(&acceptor).await else { return };
            while peer.request().await.is_some() && peer.write(FINE).await {}
        }
    })
    .await;
    let mut sink = sink(&format!("https://localhost:{}/", rig.port));
    sink.request_timeout = Duration::from_secs(10);
    let endpoint = Endpoint::with_roots(&sink, roots).unwrap();
    let body = delivery(100);
    for attempt in join_all((1..=32).map(|number| endpoint.attempt(&body, number))).await {
        assert_eq!((attempt.verdict, attempt.resent), (Verdict::Acknowledged, 0));
    }
    assert_eq!(rig.arrived().len(), 32);
}

/// Takes four requests at a time, and refuses what comes beyond.
async fn four_at_a_time(_: usize, mut connection: Connection, taken: Arc<AtomicUsize>) {
    let mut open = JoinSet::new();
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        taken.fetch_add(1, Ordering::SeqCst);
        open.spawn(async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            drop(respond.send_response(Response::new(()), true).unwrap());
        });
    }
}

#[tokio::test]
async fn a_burst_beyond_the_streams_that_an_endpoint_takes_waits_and_none_is_refused() {
    let rig = Http2Rig::limited(4, four_at_a_time).await;
    let endpoint = rig.endpoint();
    let body = delivery(100);
    for attempt in join_all((1..=32).map(|number| endpoint.attempt(&body, number))).await {
        assert_eq!((&attempt.verdict, attempt.resent), (&Verdict::Acknowledged, 0), "{attempt:?}");
    }
    assert_eq!(rig.counts(), (1, 32));
}

/// Takes one request at a time on each connection, and answers when it is told to.
async fn one_at_a_time(mut connection: Connection, taken: &AtomicUsize, go_on: &Notify) {
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        taken.fetch_add(1, Ordering::SeqCst);
        tokio::select! {
            _ = connection.accept() => return,
            () = go_on.notified() => drop(respond.send_response(Response::new(()), true).unwrap()),
        }
    }
}

#[tokio::test]
async fn requests_that_wait_long_for_a_stream_get_further_connections_and_not_many() {
    let go_on = Arc::new(Notify::new());
    let rig = Http2Rig::limited(1, {
        let go_on = Arc::clone(&go_on);
        move |_, connection, taken| {
            let go_on = Arc::clone(&go_on);
            async move { one_at_a_time(connection, &taken, &go_on).await }
        }
    })
    .await;
    let pace = Pace { patience: Duration::from_millis(20), ..Pace::default() };
    let endpoint = rig.endpoint_by(Ways { pace, ..Ways::default() });
    let body = delivery(100);
    let all = join_all((1..=20).map(|number| endpoint.attempt(&body, number)));
    let rest = async {
        while rig.counts().1 < 4 {
            tokio::task::yield_now().await;
        }
        // Each answer makes room for one more.
        for answered in 1..=20 {
            while rig.counts().1 < (answered + 3).min(20) {
                tokio::task::yield_now().await;
            }
            go_on.notify_one();
        }
    };
    let (attempts, ()) = tokio::join!(all, rest);
    for attempt in attempts {
        assert_eq!((&attempt.verdict, attempt.resent), (&Verdict::Acknowledged, 0), "{attempt:?}");
    }
    assert_eq!(rig.counts(), (4, 20));
}

#[tokio::test]
async fn those_who_wait_for_a_connection_that_cannot_be_made_fail_with_it_and_make_none_of_their_own() {
    let connections = Arc::new(AtomicUsize::new(0));
    let (acceptor, _) = server(b"h2");
    let rig = Rig::start({
        let connections = Arc::clone(&connections);
        move |peer| {
            let acceptor = acceptor.clone();
            connections.fetch_add(1, Ordering::SeqCst);
            async move { drop(peer.under_tls(&acceptor).await) }
        }
    })
    .await;
    let sink = sink(&format!("https://localhost:{}/", rig.port));
    let endpoint = Endpoint::with_roots(&sink, RootCertStore::empty()).unwrap();
    let body = delivery(100);
    for attempt in join_all((1..=32).map(|number| endpoint.attempt(&body, number))).await {
        assert_eq!(failure(&attempt).0, "tls_error");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn one_stream_refused_leaves_the_connection_to_the_others() {
    let rig = Http2Rig::start(|_, mut connection, taken| async move {
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            if taken.fetch_add(1, Ordering::SeqCst) == 0 {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
            } else {
                drop(respond.send_response(Response::new(()), true).unwrap());
            }
        }
    })
    .await;
    let endpoint = rig.endpoint();
    let attempt = endpoint.attempt(&delivery(100), 1).await;
    assert_eq!((&attempt.verdict, attempt.resent), (&Verdict::Acknowledged, 1), "{attempt:?}");
    assert_eq!(rig.counts(), (1, 2));
}

#[tokio::test]
async fn a_request_that_never_got_a_stream_says_so_and_leaves_the_connection_as_it_is() {
    let go_on = Arc::new(Notify::new());
    let rig = Http2Rig::limited(1, {
        let go_on = Arc::clone(&go_on);
        move |_, mut connection, taken| {
            let go_on = Arc::clone(&go_on);
            async move {
                let (_, mut respond) = connection.accept().await.unwrap().unwrap();
                taken.fetch_add(1, Ordering::SeqCst);
                tokio::select! {
                    _ = connection.accept() => panic!("beyond the limit"),
                    () = go_on.notified() => drop(respond.send_response(Response::new(()), true).unwrap()),
                }
                serve(connection, &taken).await;
            }
        }
    })
    .await;
    let patient = rig.endpoint();
    let hasty = {
        let mut sink = rig.sink();
        sink.request_timeout = Duration::from_millis(500);
        patient.with_request_timeout(sink.request_timeout)
    };
    let body = delivery(100);
    let rest = async {
        while rig.counts().1 < 1 {
            tokio::task::yield_now().await;
        }
        let queued = hasty.attempt(&body, 2).await;
        let (category, message) = failure(&queued);
        assert!(category == "timeout" && message.starts_with("not sent within 500ms"), "{message}");
        go_on.notify_one();
    };
    let (first, ()) = tokio::join!(patient.attempt(&body, 1), rest);
    assert_eq!((first.verdict, first.resent), (Verdict::Acknowledged, 0));
    assert_eq!(patient.attempt(&body, 3).await.verdict, Verdict::Acknowledged);
    assert_eq!(rig.counts(), (1, 2), "the connection goes on");
}

#[tokio::test]
async fn requests_that_wait_for_a_stream_go_elsewhere_when_the_connection_breaks() {
    let broken = Arc::new(Notify::new());
    let rig = Http2Rig::limited(1, {
        let broken = Arc::clone(&broken);
        move |number, mut connection, taken| {
            let broken = Arc::clone(&broken);
            async move {
                if number > 1 {
                    return serve(connection, &taken).await;
                }
                let _held = connection.accept().await.unwrap().unwrap();
                taken.fetch_add(1, Ordering::SeqCst);
                tokio::select! {
                    _ = connection.accept() => panic!("beyond the limit"),
                    () = broken.notified() => {}
                }
            }
        }
    })
    .await;
    let endpoint = rig.endpoint();
    let body = delivery(100);
    let rest = async {
        while rig.counts().1 < 1 {
            tokio::task::yield_now().await;
        }
        let mut waiting = Box::pin(join_all((2..=5).map(|number| endpoint.attempt(&body, number))));
        let polled = std::future::poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending()));
        assert!(polled.await, "they wait");
        broken.notify_one();
        for attempt in waiting.await {
            assert_eq!((&attempt.verdict, attempt.resent), (&Verdict::Acknowledged, 1), "{attempt:?}");
        }
    };
    let (first, ()) = tokio::join!(endpoint.attempt(&body, 1), rest);
    assert_eq!(failure(&first).0, "connection_reset");
    assert_eq!(rig.counts(), (2, 5), "what was taken is not repeated, and all else came once");
}

/// A name that is found as long as `found` is true.
fn now_and_then(port: u16, found: &Arc<AtomicBool>) -> Ways {
    let found = Arc::clone(found);
    let lookup = move |_: String, _: u16| -> futures_util::future::BoxFuture<'static, _> {
        let answer = match found.load(Ordering::SeqCst) {
            true => Ok(vec![std::net::SocketAddr::from(([127, 0, 0, 1], port))]),
            false => Err(io::Error::other("the resolver is away")),
        };
        Box::pin(async move { answer })
    };
    Ways { lookup: Arc::new(lookup), age: Duration::ZERO..=Duration::ZERO, ..Ways::default() }
}

#[tokio::test]
async fn a_connection_that_is_due_goes_on_while_the_name_is_not_found() {
    let found = Arc::new(AtomicBool::new(true));
    let rig = Rig::answering(FINE).await;
    let endpoint =
        Endpoint::with_ways(&sink("http://away.test/"), RootCertStore::empty(), now_and_then(rig.port, &found))
            .unwrap();
    let http2 = Http2Rig::start(|_, connection, taken| async move { serve(connection, &taken).await }).await;
    let ways = now_and_then(http2.rig.port, &found);
    let shared = Endpoint::with_ways(&sink("https://localhost/"), http2.roots.clone(), ways).unwrap();
    for endpoint in [&endpoint, &shared] {
        found.store(true, Ordering::SeqCst);
        assert_eq!(endpoint.attempt(&delivery(100), 1).await.verdict, Verdict::Acknowledged);
        found.store(false, Ordering::SeqCst);
        for number in 2..=20 {
            assert_eq!(endpoint.attempt(&delivery(100), number).await.verdict, Verdict::Acknowledged);
        }
    }
    assert_eq!(http2.counts(), (1, 20));
    found.store(true, Ordering::SeqCst);
    let fresh = Endpoint::with_ways(&sink("http://away.test/"), RootCertStore::empty(), now_and_then(rig.port, &found));
    found.store(false, Ordering::SeqCst);
    assert_eq!(failure(&fresh.unwrap().attempt(&delivery(100), 1).await).0, "dns_error");
}

#[tokio::test]
async fn a_connection_that_http2_has_given_up_is_not_handed_out_again() {
    // The first connection's second answer is no HTTP/2 at all.
    let rig = Http2Rig::raw(|number, mut tls, taken| async move {
        if number > 1 {
            return serve(h2::server::handshake(tls).await.unwrap(), &taken).await;
        }
        tls.read_exact(&mut [0; 24]).await.unwrap();
        tls.write_all(b"this is not a frame of HTTP/2 at all").await.unwrap();
        while tls.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
    })
    .await;
    let endpoint = rig.endpoint();
    let first = endpoint.attempt(&delivery(100), 1).await;
    if !first.verdict.is_acknowledged() {
        assert_eq!(failure(&first).0, "protocol_error");
    }
    let second = endpoint.attempt(&delivery(100), 2).await;
    assert_eq!((&second.verdict, second.resent), (&Verdict::Acknowledged, 0), "{second:?}");
    assert_eq!(rig.connections.load(Ordering::SeqCst), 2);
}

//! Connections that are kept: how long, and what they are not used for.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use rustls::RootCertStore;
use tokio::sync::{Barrier, Notify, mpsc};

use super::http2::{Http2Rig, hold, serve};
use super::rig::{Rig, delivery, failure, sink};
use crate::deliver::attempt::Verdict;
use crate::deliver::connection::clock::Clock;
use crate::deliver::connection::life::AGE;
use crate::deliver::endpoint::{Endpoint, Ways};

const FINE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// Answers everything with `answer` and counts connections.
async fn counting(answer: &'static str) -> (Rig, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let rig = Rig::start({
        let connections = Arc::clone(&connections);
        move |mut peer| {
            connections.fetch_add(1, Ordering::SeqCst);
            async move { while peer.request().await.is_some() && peer.write(answer).await {} }
        }
    })
    .await;
    (rig, connections)
}

/// Names lead to the addresses in here.
type Book = Arc<Mutex<Vec<SocketAddr>>>;

fn book(port: u16) -> Book {
    Arc::new(Mutex::new(vec![SocketAddr::from(([127, 0, 0, 1], port))]))
}

fn ways(book: &Book) -> Ways {
    let book = Arc::clone(book);
    let lookup = move |_: String, _: u16| -> futures_util::future::BoxFuture<'static, _> {
        let found = book.lock().unwrap().clone();
        Box::pin(async move { Ok(found) })
    };
    Ways { lookup: Arc::new(lookup), clock: Clock::standing(), seed: 7, ..Ways::default() }
}

#[tokio::test]
async fn pitfall_66_a_name_that_moves_is_followed_under_steady_traffic_and_no_request_fails_or_comes_twice() {
    let ((old, _), (new, _)) = (counting(FINE).await, counting(FINE).await);
    let book = book(old.port);
    let ways = ways(&book);
    let clock = ways.clock.clone();
    let endpoint = Endpoint::with_ways(&sink("http://moving.test/"), RootCertStore::empty(), ways).unwrap();
    // Traffic never stops: two at a time, each second.
    for second in 0..180 {
        if second == 60 {
            *book.lock().unwrap() = vec![SocketAddr::from(([127, 0, 0, 1], new.port))];
        }
        let old_had = old.arrived().len();
        let body = delivery(100 + second);
        for attempt in join_all((1..=2).map(|number| endpoint.attempt(&body, number))).await {
            assert_eq!((attempt.verdict, attempt.resent), (Verdict::Acknowledged, 0));
        }
        assert_eq!(old.arrived().len() + new.arrived().len(), (second + 1) * 2, "each request arrived once");
        assert!(second >= 60 || new.arrived().is_empty());
        assert!(second < 120 || old.arrived().len() == old_had, "the old address had a request in second {second}");
        clock.advance(Duration::from_secs(1));
    }
}

#[tokio::test]
async fn an_http2_name_is_followed_too_and_requests_on_the_old_connection_end_there() {
    let go_on = Arc::new(Notify::new());
    let old = Http2Rig::start({
        let go_on = Arc::clone(&go_on);
        move |_, connection, taken| {
            let go_on = Arc::clone(&go_on);
            async move { hold("1", connection, &taken, &go_on).await }
        }
    })
    .await;
    let new = Http2Rig::start(|_, connection, taken| async move { serve(connection, &taken).await }).await;
    let book = book(old.rig.port);
    let mut roots = old.roots.clone();
    roots.extend(new.roots.roots.iter().cloned());
    let ways = ways(&book);
    let clock = ways.clock.clone();
    let endpoint = Endpoint::with_ways(&sink("https://localhost/"), roots, ways).unwrap();
    let body = delivery(100);
    let rest = async {
        while old.counts().1 < 1 {
            tokio::task::yield_now().await;
        }
        *book.lock().unwrap() = vec![SocketAddr::from(([127, 0, 0, 1], new.rig.port))];
        for number in 2..=9 {
            clock.advance(*AGE.end());
            assert_eq!(endpoint.attempt(&body, number).await.verdict, Verdict::Acknowledged);
        }
        assert_eq!((old.counts(), new.counts()), ((1, 1), (8, 8)));
        go_on.notify_one();
    };
    let (first, ()) = tokio::join!(endpoint.attempt(&body, 1), rest);
    assert_eq!((first.verdict, first.resent), (Verdict::Acknowledged, 0));
}

#[tokio::test]
async fn connections_that_were_made_together_end_one_after_another_and_never_outnumber_requests() {
    // Sixteen requests at a time: none is answered before all are there.
    let (rig, connections) = together(16).await;
    let mut sink = rig.sink();
    sink.max_in_flight = 16;
    let ways = ways(&book(rig.port));
    let clock = ways.clock.clone();
    let endpoint = Endpoint::with_ways(&sink, RootCertStore::empty(), ways).unwrap();
    let (body, mut had, mut most) = (delivery(100), 16, 0);
    for half_second in 0..=100 {
        for attempt in join_all((1..=16).map(|number| endpoint.attempt(&body, number))).await {
            assert_eq!((attempt.verdict, attempt.resent), (Verdict::Acknowledged, 0));
        }
        let made = connections.load(Ordering::SeqCst);
        assert!(half_second >= 80 || made == 16, "{made} before the first is due");
        (had, most) = (made, most.max(made - had));
        clock.advance(Duration::from_millis(500));
    }
    assert_eq!(had, 32, "each was replaced once");
    assert!(most < 6, "{most} of 16 ended together");
}

/// Answers when `count` requests have come, on as many connections as there are, which it counts.
async fn together(count: usize) -> (Rig, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let all = Arc::new(Barrier::new(count));
    let rig = Rig::start({
        let connections = Arc::clone(&connections);
        move |mut peer| {
            connections.fetch_add(1, Ordering::SeqCst);
            let all = Arc::clone(&all);
            async move {
                while peer.request().await.is_some() {
                    all.wait().await;
                    peer.write(FINE).await;
                }
            }
        }
    })
    .await;
    (rig, connections)
}

#[tokio::test]
async fn an_idle_connection_is_left_before_the_endpoints_keep_alive_ends() {
    for (head, kept) in [
        ("", true),
        ("keep-alive: timeout=5\r\n", true),
        ("Keep-Alive: timeout=2, max=100\r\n", false),
        ("keep-alive: timeout=1\r\n", false),
        ("keep-alive: timeout=0\r\n", false),
        ("keep-alive: timeout=60, max=0\r\n", false),
        ("connection: close\r\n", false),
        ("Connection: Close, foo\r\n", false),
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\n{head}content-length: 0\r\n\r\n").leak();
        let (rig, connections) = counting(answer).await;
        let ways = ways(&book(rig.port));
        let clock = ways.clock.clone();
        let endpoint = Endpoint::with_ways(&rig.sink(), RootCertStore::empty(), ways).unwrap();
        assert_eq!(endpoint.attempt(&delivery(100), 1).await.verdict, Verdict::Acknowledged);
        clock.advance(Duration::from_millis(1050));
        let second = endpoint.attempt(&delivery(100), 2).await;
        assert_eq!((second.verdict, second.resent), (Verdict::Acknowledged, 0), "{head:?}");
        assert_eq!(connections.load(Ordering::SeqCst), if kept { 1 } else { 2 }, "{head:?}");
    }
}

#[tokio::test]
async fn a_connection_carries_as_many_requests_as_the_endpoint_says() {
    let (rig, connections) =
        counting("HTTP/1.1 200 OK\r\nkeep-alive: timeout=9, max=2\r\ncontent-length: 0\r\n\r\n").await;
    let endpoint = Endpoint::new(&rig.sink()).unwrap();
    for number in 1..=9 {
        assert_eq!(endpoint.attempt(&delivery(100), number).await.verdict, Verdict::Acknowledged);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn an_endpoint_that_ends_its_connections_without_a_word_gets_each_request_once() {
    // Each connection is closed as soon as its first answer is out.
    let (told, mut closed) = mpsc::channel(1);
    let rig = Rig::start(move |mut peer| {
        let told = told.clone();
        async move {
            peer.request().await.unwrap();
            peer.write(FINE).await;
            drop(peer);
            told.send(()).await.unwrap();
        }
    })
    .await;
    let endpoint = Endpoint::new(&rig.sink()).unwrap();
    for number in 1..=20 {
        let attempt = endpoint.attempt(&delivery(100), number).await;
        assert_eq!(attempt.verdict, Verdict::Acknowledged, "{number}");
        // The close is there before the next request.
        closed.recv().await.unwrap();
    }
    assert_eq!(rig.arrived().len(), 20);
}

#[tokio::test]
async fn closed_connections_are_let_go_although_nothing_is_sent() {
    let (told, gone) = tokio::sync::oneshot::channel();
    let (told, close) = (Mutex::new(Some(told)), Arc::new(Notify::new()));
    let rig = Rig::start({
        let close = Arc::clone(&close);
        move |mut peer| {
            let (told, close) = (told.lock().unwrap().take(), Arc::clone(&close));
            async move {
                peer.request().await.unwrap();
                peer.write(FINE).await;
                close.notified().await;
                tokio::io::AsyncWriteExt::shutdown(&mut peer.socket).await.unwrap();
                peer.until_closed().await;
                told.unwrap().send(()).unwrap();
            }
        }
    })
    .await;
    let endpoint = Endpoint::new(&rig.sink()).unwrap();
    assert_eq!(endpoint.attempt(&delivery(100), 1).await.verdict, Verdict::Acknowledged);
    // It lies idle by now.
    close.notify_one();
    tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap().unwrap();
}

#[tokio::test]
async fn after_a_timeout_idle_connections_that_have_not_answered_since_are_not_used() {
    // Two connections answer; then the way is dead for both, and only a third answers.
    let (numbers, both) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(2)));
    let rig = Rig::start({
        let numbers = Arc::clone(&numbers);
        move |mut peer| {
            let (number, both) = (numbers.fetch_add(1, Ordering::SeqCst) + 1, Arc::clone(&both));
            async move {
                while peer.request().await.is_some() {
                    if number <= 2 {
                        both.wait().await;
                        peer.write(FINE).await;
                        return peer.until_closed().await;
                    }
                    peer.write(FINE).await;
                }
            }
        }
    })
    .await;
    let mut sink = rig.sink();
    sink.request_timeout = Duration::from_millis(500);
    let endpoint = Endpoint::new(&sink).unwrap();
    let body = delivery(100);
    for attempt in join_all((1..=2).map(|number| endpoint.attempt(&body, number))).await {
        assert_eq!(attempt.verdict, Verdict::Acknowledged);
    }
    assert_eq!(numbers.load(Ordering::SeqCst), 2);
    assert_eq!(failure(&endpoint.attempt(&body, 3).await).0, "timeout");
    assert_eq!(endpoint.attempt(&body, 4).await.verdict, Verdict::Acknowledged);
    assert_eq!(numbers.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn the_next_address_of_a_name_is_tried_when_one_does_not_answer() {
    let (rig, _) = counting(FINE).await;
    let book = book(rig.port);
    // Nobody listens at the first.
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    book.lock().unwrap().insert(0, dead);
    let mut sink = sink("http://several.test/");
    sink.request_timeout = Duration::from_secs(20);
    let endpoint = Endpoint::with_ways(&sink, RootCertStore::empty(), ways(&book)).unwrap();
    assert_eq!(endpoint.attempt(&delivery(100), 1).await.verdict, Verdict::Acknowledged);
    assert_eq!(rig.arrived()[0].header("host"), Some("several.test"));
    book.lock().unwrap().truncate(1);
    let endpoint = Endpoint::with_ways(&sink, RootCertStore::empty(), ways(&book)).unwrap();
    assert_eq!(failure(&endpoint.attempt(&delivery(100), 1).await).0, "connect_refused");
    book.lock().unwrap().clear();
    assert_eq!(failure(&endpoint.attempt(&delivery(100), 1).await).0, "connect_refused");
}

#[tokio::test]
async fn of_many_that_lie_idle_those_that_were_closed_are_let_go_and_the_others_keep_their_order() {
    let (told, mut closed) = mpsc::channel(40);
    let (all, close) = (Arc::new(Barrier::new(40)), Arc::new(Notify::new()));
    let numbers = AtomicUsize::new(0);
    let rig = Rig::start({
        let close = Arc::clone(&close);
        move |mut peer| {
            let number = numbers.fetch_add(1, Ordering::SeqCst);
            let (told, all, close) = (told.clone(), Arc::clone(&all), Arc::clone(&close));
            async move {
                peer.request().await.unwrap();
                all.wait().await;
                peer.write(FINE).await;
                if number.is_multiple_of(2) {
                    close.notified().await;
                    drop(peer);
                    return told.send(()).await.unwrap();
                }
                while peer.request().await.is_some() && peer.write(FINE).await {}
            }
        }
    })
    .await;
    let mut sink = rig.sink();
    sink.max_in_flight = 40;
    let ways = ways(&book(rig.port));
    let clock = ways.clock.clone();
    let endpoint = Endpoint::with_ways(&sink, RootCertStore::empty(), ways).unwrap();
    let body = delivery(100);
    for attempt in join_all((1..=40).map(|number| endpoint.attempt(&body, number))).await {
        assert_eq!(attempt.verdict, Verdict::Acknowledged);
    }
    let pool = endpoint.pool();
    let before = pool.idle();
    close.notify_waiters();
    for _ in 0..20 {
        closed.recv().await.unwrap();
    }
    assert!(pool.tidy(pool.now()));
    assert_eq!(pool.idle(), before, "in use a moment ago: the next request finds out");
    clock.advance(Duration::from_secs(2));
    assert!(pool.tidy(pool.now()));
    let after = pool.idle();
    assert_eq!((before.len(), after.len()), (40, 20));
    assert!(before.iter().filter(|one| after.contains(one)).eq(&after), "in their order");
    for number in 1..=9 {
        assert_eq!(endpoint.attempt(&body, number).await.verdict, Verdict::Acknowledged);
    }
    clock.advance(*AGE.end() + Duration::from_secs(10));
    assert!(!pool.tidy(pool.now()), "all have had their day");
}

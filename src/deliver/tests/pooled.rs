//! Connections that are kept: how long, and what they are not used for.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rustls::RootCertStore;
use tokio::sync::Notify;

use super::http2::{Http2Rig, hold, serve};
use super::rig::{Rig, delivery, failure, sink};
use crate::deliver::attempt::Verdict;
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

fn ways(book: &Book, age: RangeInclusive<Duration>) -> Ways {
    let book = Arc::clone(book);
    let lookup = move |_: String, _: u16| -> futures_util::future::BoxFuture<'static, _> {
        let found = book.lock().unwrap().clone();
        Box::pin(async move { Ok(found) })
    };
    Ways { lookup: Arc::new(lookup), age }
}

const YOUNG: RangeInclusive<Duration> = Duration::from_millis(200)..=Duration::from_millis(300);

#[tokio::test]
async fn pitfall_66_a_name_that_moves_is_followed_under_steady_traffic_and_no_request_fails_or_comes_twice() {
    let ((old, _), (new, _)) = (counting(FINE).await, counting(FINE).await);
    let book = book(old.port);
    let endpoint =
        Endpoint::with_ways(&sink("http://moving.test/"), RootCertStore::empty(), ways(&book, YOUNG)).unwrap();
    let (mut sent, mut since_moved) = (0, 0);
    // Traffic never stops: two at a time, as fast as they are answered.
    while since_moved < 200 {
        let body = delivery(100 + sent);
        for attempt in join_all((1..=2).map(|number| endpoint.attempt(&body, number))).await {
            assert_eq!((attempt.verdict, attempt.resent), (Verdict::Acknowledged, 0));
        }
        sent += 1;
        if sent == 50 {
            *book.lock().unwrap() = vec![SocketAddr::from(([127, 0, 0, 1], new.port))];
        }
        since_moved += usize::from(!new.arrived().is_empty());
    }
    let (before, after) = (old.arrived().len(), new.arrived().len());
    assert_eq!(before + after, sent * 2, "each request arrived once");
    assert_eq!(endpoint.attempt(&delivery(1), 1).await.verdict, Verdict::Acknowledged);
    tokio::time::sleep(*YOUNG.end()).await;
    for number in 1..=20 {
        assert_eq!(endpoint.attempt(&delivery(1), number).await.verdict, Verdict::Acknowledged);
    }
    assert!(old.arrived().len() <= before + 1, "past the age nothing goes to the old address");
    assert!(new.arrived().len() >= after + 20);
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
    let endpoint = Endpoint::with_ways(&sink("https://localhost/"), roots, ways(&book, YOUNG)).unwrap();
    let body = delivery(100);
    let rest = async {
        while old.counts().1 < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        *book.lock().unwrap() = vec![SocketAddr::from(([127, 0, 0, 1], new.rig.port))];
        for number in 2..=9 {
            tokio::time::sleep(*YOUNG.end()).await;
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
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let made = Arc::new(Mutex::new(Vec::new()));
    let rig = Rig::start({
        let (open, most, made) = (Arc::clone(&open), Arc::clone(&most), Arc::clone(&made));
        move |mut peer| {
            let (open, most) = (Arc::clone(&open), Arc::clone(&most));
            made.lock().unwrap().push(Instant::now());
            async move {
                most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                while peer.request().await.is_some() && peer.write(FINE).await {}
                open.fetch_sub(1, Ordering::SeqCst);
            }
        }
    })
    .await;
    let mut sink = rig.sink();
    sink.max_in_flight = 16;
    let age = Duration::from_millis(500)..=Duration::from_millis(1500);
    let endpoint = Endpoint::with_ways(&sink, RootCertStore::empty(), ways(&book(rig.port), age)).unwrap();
    let body = delivery(100);
    let began = Instant::now();
    join_all((1..=16).map(|number| {
        let (endpoint, body) = (&endpoint, &body);
        async move {
            while began.elapsed() < Duration::from_millis(1600) {
                assert_eq!(endpoint.attempt(body, number).await.verdict, Verdict::Acknowledged);
            }
        }
    }))
    .await;
    let later: Vec<Duration> = made.lock().unwrap().iter().skip(16).map(|at| *at - began).collect();
    assert!(later.len() >= 16, "all were replaced: {later:?}");
    let busiest =
        later.iter().map(|one| later.iter().filter(|at| (**at).abs_diff(*one).as_millis() < 50).count()).max();
    assert!(busiest < Some(12), "they ended together: {later:?}");
    // One that is closed may still be open on the other side when the next is there.
    assert!(most.load(Ordering::SeqCst) <= 16 + 4, "{most:?}");
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
        let endpoint = Endpoint::new(&rig.sink()).unwrap();
        assert_eq!(endpoint.attempt(&delivery(100), 1).await.verdict, Verdict::Acknowledged);
        tokio::time::sleep(Duration::from_millis(1050)).await;
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
    let rig = Rig::start(|mut peer| async move {
        peer.request().await.unwrap();
        peer.write(FINE).await;
    })
    .await;
    let endpoint = Endpoint::new(&rig.sink()).unwrap();
    for number in 1..=20 {
        let attempt = endpoint.attempt(&delivery(100), number).await;
        assert_eq!(attempt.verdict, Verdict::Acknowledged, "{number}");
        // The close is there before the next request.
        tokio::time::sleep(Duration::from_millis(10)).await;
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
    let numbers = Arc::new(AtomicUsize::new(0));
    let rig = Rig::start({
        let numbers = Arc::clone(&numbers);
        move |mut peer| {
            let number = numbers.fetch_add(1, Ordering::SeqCst) + 1;
            async move {
                let mut answered = 0;
                while peer.request().await.is_some() {
                    if number <= 2 && answered == 1 {
                        peer.until_closed().await;
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    peer.write(FINE).await;
                    answered += 1;
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
    let endpoint = Endpoint::with_ways(&sink, RootCertStore::empty(), ways(&book, YOUNG)).unwrap();
    assert_eq!(endpoint.attempt(&delivery(100), 1).await.verdict, Verdict::Acknowledged);
    assert_eq!(rig.arrived()[0].header("host"), Some("several.test"));
    book.lock().unwrap().truncate(1);
    let endpoint = Endpoint::with_ways(&sink, RootCertStore::empty(), ways(&book, YOUNG)).unwrap();
    assert_eq!(failure(&endpoint.attempt(&delivery(100), 1).await).0, "connect_refused");
    book.lock().unwrap().clear();
    assert_eq!(failure(&endpoint.attempt(&delivery(100), 1).await).0, "connect_refused");
}

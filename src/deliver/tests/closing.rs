//! How connections and requests are given up, by either side.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, oneshot};

use super::goaway::Frames;
use super::http2::{Http2Rig, serve, server};
use super::rig::{Arrived, Rig, delivery, failure, sink};
use crate::deliver::attempt::Verdict;
use crate::deliver::connection::clock::Pace;
use crate::deliver::endpoint::{Endpoint, Ways};

const FINE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const LARGE: usize = 32 << 20;

#[tokio::test]
async fn an_answer_before_the_request_was_sent_is_no_acknowledgement_and_its_connection_is_not_used_again() {
    let connections = Arc::new(AtomicUsize::new(0));
    let rig = Rig::start({
        let connections = Arc::clone(&connections);
        move |mut peer| {
            connections.fetch_add(1, Ordering::SeqCst);
            async move {
                while let Some(head) = peer.head().await {
                    peer.write(FINE).await;
                    // It reads on, so that the connection would be as good as any.
                    let length = Arrived { head, body: Vec::new() }.header("content-length").unwrap().parse().unwrap();
                    tokio::io::copy(&mut (&mut peer.socket).take(length), &mut tokio::io::sink()).await.unwrap();
                }
            }
        }
    })
    .await;
    let endpoint = Endpoint::new(&rig.sink()).unwrap();
    let early = endpoint.attempt(&delivery(LARGE), 1).await;
    let (category, said) = failure(&early);
    assert_eq!((category, early.status), ("protocol_error", Some(200)));
    assert!(said.starts_with("200 OK was whole before all of the request had been sent"), "{said}");
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    // A small one is out before anybody can answer.
    assert_eq!(endpoint.attempt(&delivery(100), 2).await.verdict, Verdict::Acknowledged);
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn over_http2_an_early_answer_is_none_and_one_that_ends_when_the_request_does_is() {
    let rig = Http2Rig::start(|number, mut connection, taken| async move {
        if number > 2 {
            return serve(connection, &taken).await;
        }
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        taken.fetch_add(1, Ordering::SeqCst);
        let mut answer = respond.send_response(Response::new(()), number == 1).unwrap();
        let mut body = request.into_body();
        let read = async {
            if number == 1 {
                // The first never reads; nor does it close.
                std::future::pending::<()>().await;
            }
            while let Some(Ok(chunk)) = body.data().await {
                body.flow_control().release_capacity(chunk.len()).unwrap();
            }
            answer.send_data(Bytes::from_static(b"hi"), true).unwrap();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = read => {}
            _ = connection.accept() => {}
        }
    })
    .await;
    let endpoint = rig.endpoint();
    let early = endpoint.attempt(&delivery(LARGE), 1).await;
    let (category, said) = failure(&early);
    assert!(category == "protocol_error" && said.contains("before all of the request had been sent"), "{said}");
    let whole = endpoint.attempt(&delivery(LARGE), 2).await;
    assert_eq!((&whole.verdict, &whole.response.body[..]), (&Verdict::Acknowledged, &b"hi"[..]), "{whole:?}");
    assert_eq!(rig.counts(), (2, 2), "the connection of the early answer is used no more");
}

#[tokio::test]
async fn an_attempt_that_is_dropped_resets_its_stream_and_nothing_else() {
    let (come, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (told, reset) = oneshot::channel();
    let told = Arc::new(std::sync::Mutex::new(Some(told)));
    let rig = Http2Rig::start({
        let (come, go_on) = (Arc::clone(&come), Arc::clone(&go_on));
        move |_, mut connection, taken| {
            let (come, go_on, told) = (Arc::clone(&come), Arc::clone(&go_on), Arc::clone(&told));
            async move {
                let mut held = Vec::new();
                while held.len() < 2 {
                    let (request, respond) = connection.accept().await.unwrap().unwrap();
                    held.push((request.headers()["walhook-attempt"] == "1", respond));
                    taken.fetch_add(1, Ordering::SeqCst);
                }
                come.notify_one();
                let mut dropped = held.remove(held.iter().position(|(is_first, _)| *is_first).unwrap()).1;
                let (_, mut other) = held.pop().unwrap();
                let ended = async {
                    let reason = std::future::poll_fn(|cx| dropped.poll_reset(cx)).await.unwrap();
                    told.lock().unwrap().take().unwrap().send(reason).unwrap();
                    go_on.notified().await;
                };
                tokio::select! {
                    () = ended => drop(other.send_response(Response::new(()), true).unwrap()),
                    _ = connection.accept() => panic!("closed, or a third request"),
                }
                serve(connection, &taken).await;
            }
        }
    })
    .await;
    let endpoint = rig.endpoint();
    let body = delivery(100);
    let rest = async {
        let dropped = endpoint.attempt(&body, 1);
        tokio::select! {
            attempt = dropped => panic!("{attempt:?}"),
            () = come.notified() => {}
        }
        assert_eq!(reset.await.unwrap(), h2::Reason::CANCEL);
        go_on.notify_one();
    };
    let (other, ()) = tokio::join!(endpoint.attempt(&body, 2), rest);
    assert_eq!((&other.verdict, other.resent), (&Verdict::Acknowledged, 0), "{other:?}");
    assert_eq!(rig.counts(), (1, 2));
}

#[tokio::test]
async fn an_attempt_that_is_dropped_closes_its_http1_connection() {
    let come = Arc::new(Notify::new());
    let (told, closed) = oneshot::channel();
    let told = std::sync::Mutex::new(Some(told));
    let rig = Rig::start({
        let come = Arc::clone(&come);
        move |mut peer| {
            let (come, told) = (Arc::clone(&come), told.lock().unwrap().take());
            async move {
                peer.request().await.unwrap();
                come.notify_one();
                peer.until_closed().await;
                told.unwrap().send(()).unwrap();
            }
        }
    })
    .await;
    let endpoint = Endpoint::new(&rig.sink()).unwrap();
    let body = delivery(100);
    tokio::select! {
        attempt = endpoint.attempt(&body, 1) => panic!("{attempt:?}"),
        () = come.notified() => {}
    }
    closed.await.unwrap();
}

#[tokio::test]
async fn a_driver_ends_although_the_endpoint_reads_nothing_when_nobody_holds_its_connection() {
    let rig = Http2Rig::raw(|_, tls, taken| async move {
        let mut frames = Frames::start(tls).await;
        // It lets the client send as much as it likes.
        frames.0.write_all(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x3f, 0, 0, 0]).await.unwrap();
        frames.0.write_all(&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0x3f, 0, 0, 0]).await.unwrap();
        frames.0.flush().await.unwrap();
        taken.fetch_add(1, Ordering::SeqCst);
        // It holds the socket, and what has come lies there.
        std::future::pending::<()>().await;
    })
    .await;
    let pace = Pace { farewell: Duration::from_millis(100), ..Pace::default() };
    let ways = Ways { pace, ..Ways::default() };
    let endpoint = rig.endpoint_by(ways).with_request_timeout(Duration::from_millis(500));
    assert_eq!(failure(&endpoint.attempt(&delivery(LARGE), 1).await).0, "timeout");
    assert!(endpoint.pool().tasks() > 0, "the driver has bytes that it cannot send");
    let ended = async {
        while endpoint.pool().tasks() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("a driver goes on for nobody");
}

#[tokio::test]
async fn an_http2_connection_on_which_a_ping_is_not_answered_is_given_up_before_the_deadline() {
    let rig = Http2Rig::raw(|number, tls, taken| async move {
        if number > 1 {
            return serve(h2::server::handshake(tls).await.unwrap(), &taken).await;
        }
        let mut frames = Frames::start(tls).await;
        frames.request().await;
        taken.fetch_add(1, Ordering::SeqCst);
        // It reads on, and says nothing.
        frames.until_closed().await;
    })
    .await;
    let pace = Pace { ping: Duration::from_millis(50), ..Pace::default() };
    let endpoint = rig.endpoint_by(Ways { pace, ..Ways::default() });
    let silent = endpoint.attempt(&delivery(100), 1).await;
    let (category, said) = failure(&silent);
    assert!(category == "timeout" && said.contains("ping"), "{category}: {said}");
    assert_eq!(endpoint.attempt(&delivery(100), 2).await.verdict, Verdict::Acknowledged);
    assert_eq!(rig.counts(), (2, 2));
}

#[tokio::test]
async fn an_endpoint_that_is_closed_says_goodbye_on_idle_connections() {
    // HTTP/1.1 under TLS ends with a word of TLS: without it, reading is an error and not an end.
    let (acceptor, roots) = server(b"http/1.1");
    let (told, ended) = oneshot::channel();
    let told = std::sync::Mutex::new(Some(told));
    let rig = Rig::start(move |peer| {
        let (acceptor, told) = (acceptor.clone(), told.lock().unwrap().take());
        async move {
            let mut peer = peer.under_tls(&acceptor).await.unwrap();
            peer.request().await.unwrap();
            peer.write(FINE).await;
            let read = peer.socket.read(&mut [0; 16]).await.map_err(|error| error.kind());
            told.unwrap().send(read).unwrap();
        }
    })
    .await;
    let endpoint = Endpoint::with_roots(&sink(&format!("https://localhost:{}/", rig.port)), roots).unwrap();
    assert_eq!(endpoint.attempt(&delivery(100), 1).await.verdict, Verdict::Acknowledged);
    endpoint.close().await;
    assert_eq!(ended.await.unwrap(), Ok(0));

    let (told, ended) = oneshot::channel();
    let told = Arc::new(std::sync::Mutex::new(Some(told)));
    let rig = Http2Rig::raw(move |_, tls, taken| {
        let told = Arc::clone(&told);
        async move {
            let mut frames = Frames::start(tls).await;
            let stream = frames.request().await;
            taken.fetch_add(1, Ordering::SeqCst);
            frames.answer(stream).await;
            frames.0.flush().await.unwrap();
            let mut rest = Vec::new();
            let read = frames.0.read_to_end(&mut rest).await.map_err(|error| error.kind());
            told.lock().unwrap().take().unwrap().send((read.is_ok(), rest)).unwrap();
        }
    })
    .await;
    let endpoint = rig.endpoint();
    assert_eq!(endpoint.attempt(&delivery(100), 1).await.verdict, Verdict::Acknowledged);
    endpoint.close().await;
    let (is_whole, rest) = ended.await.unwrap();
    let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert!(is_whole && rest.ends_with(&goaway), "{is_whole} {rest:?}");
}

//! Endpoints that send on and on, and nothing that is an answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::AsyncWriteExt as _;

use super::goaway::Frames;
use super::http2::{Http2Rig, Tls};
use super::rig::{Rig, delivery, failure};
use crate::deliver::attempt::Verdict;
use crate::deliver::endpoint::Endpoint;

const INTERIM: &[u8] = b"HTTP/1.1 102 Processing\r\n\r\n";
const FINE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn a_thousand_interim_answers_are_passed_over_and_one_more_ends_the_attempt_and_its_connection() {
    for (count, is_fine) in [(1000, true), (1001, false)] {
        let rig = Rig::start(move |mut peer| async move {
            while peer.request().await.is_some() && peer.write(INTERIM.repeat(count)).await && peer.write(FINE).await {}
        })
        .await;
        let endpoint = Endpoint::new(&rig.sink()).unwrap();
        // They are counted for each request anew.
        for number in 1..=3 {
            let attempt = endpoint.attempt(&delivery(100), number).await;
            if is_fine {
                assert_eq!((&attempt.verdict, attempt.resent), (&Verdict::Acknowledged, 0));
                continue;
            }
            let (category, said) = failure(&attempt);
            assert_eq!((category, attempt.status), ("protocol_error", None));
            assert!(said.contains("sends more than 1000 interim answers (1xx) in a row, and no answer"), "{said}");
        }
    }
}

#[tokio::test]
async fn interim_answers_without_an_end_do_not_last_until_the_deadline() {
    let rig = Rig::start(|mut peer| async move {
        peer.request().await.unwrap();
        while peer.write(INTERIM.repeat(1000)).await {}
    })
    .await;
    assert_eq!(failure(&Endpoint::new(&rig.sink()).unwrap().attempt(&delivery(100), 1).await).0, "protocol_error");
}

/// A head with `:status: 103`, a ping, settings, a window of one byte more, for the first stream or the connection.
const QUIET: [&[u8]; 4] = [
    &[0, 0, 5, 1, 4, 0, 0, 0, 1, 8, 3, b'1', b'0', b'3'],
    &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8],
    &[0, 0, 0, 4, 0, 0, 0, 0, 0],
    &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1],
];

#[tokio::test]
async fn an_http2_connection_that_brings_a_thousand_frames_and_nothing_of_an_answer_is_ended() {
    for frame in QUIET {
        let rig = Http2Rig::raw(move |number, tls: Tls, taken: Arc<AtomicUsize>| async move {
            let mut frames = Frames::start(tls).await;
            let stream = frames.request().await;
            taken.fetch_add(1, Ordering::SeqCst);
            if number > 1 {
                frames.0.write_all(&frame.repeat(500)).await.unwrap();
                frames.answer(stream).await;
                frames.0.flush().await.unwrap();
                return frames.until_closed().await;
            }
            while frames.0.write_all(&frame.repeat(100)).await.is_ok() && frames.0.flush().await.is_ok() {}
        })
        .await;
        let endpoint = rig.endpoint();
        let flood = endpoint.attempt(&delivery(100), 1).await;
        let (category, said) = failure(&flood);
        assert_eq!((category, flood.resent), ("protocol_error", 0), "{said}");
        assert!(said.contains("sends more than 1000 frames"), "{said}");
        assert_eq!(endpoint.attempt(&delivery(100), 2).await.verdict, Verdict::Acknowledged);
        assert_eq!(rig.counts(), (2, 2));
    }
}

#[tokio::test]
async fn a_large_body_that_is_acknowledged_byte_by_byte_is_no_flood() {
    let rig = Http2Rig::start(|_, mut connection, taken| async move {
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            taken.fetch_add(1, Ordering::SeqCst);
            let mut body = request.into_body();
            let answer = async move {
                while let Some(Ok(chunk)) = body.data().await {
                    // As small as they can be told apart: the library sends a window for each that it has sent the last of.
                    body.flow_control().release_capacity(chunk.len()).unwrap();
                }
                drop(respond.send_response(http::Response::new(()), true).unwrap());
            };
            tokio::select! {
                () = answer => {}
                _ = connection.accept() => return,
            }
        }
    })
    .await;
    let attempt = rig.endpoint().attempt(&delivery(64 << 20), 1).await;
    assert_eq!(attempt.verdict, Verdict::Acknowledged, "{attempt:?}");
}

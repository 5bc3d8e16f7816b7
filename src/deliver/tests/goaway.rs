//! GOAWAY: what the endpoint has not taken is sent again at once, and nothing else is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::http2::{Http2Rig, Tls, serve};
use super::rig::{delivery, failure};
use crate::deliver::attempt::Verdict;

/// Frames by hand, since h2's own server names every stream that has come in as taken.
pub(super) struct Frames(pub(super) Tls);

impl Frames {
    /// Says hello.
    pub(super) async fn start(mut tls: Tls) -> Self {
        tls.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        tls.read_exact(&mut [0; 24]).await.unwrap();
        Self(tls)
    }

    /// The number of the next stream whose request is whole; requests are small.
    pub(super) async fn request(&mut self) -> u8 {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            self.0.read_exact(&mut payload).await.unwrap();
            if head[3] <= 1 && head[4] & 1 == 1 {
                return head[8];
            }
        }
    }

    /// `:status: 200` and no body.
    pub(super) async fn answer(&mut self, stream: u8) {
        self.0.write_all(&[0, 0, 1, 1, 5, 0, 0, 0, stream, 0x88]).await.unwrap();
    }

    async fn go_away(&mut self, last: u32, reason: u8) {
        let last = last.to_be_bytes();
        self.0.write_all(&[&[0, 0, 8, 7, 0, 0, 0, 0, 0][..], &last, &[0, 0, 0, reason]].concat()).await.unwrap();
        self.0.flush().await.unwrap();
    }

    pub(super) async fn until_closed(&mut self) {
        let mut rest = [0; 1024];
        while self.0.read(&mut rest).await.is_ok_and(|read| read > 0) {}
    }
}

/// Ten requests; each connection takes three, as nginx does after `keepalive_requests`: it waits until all that are
/// left have come, so that its GOAWAY crosses them, and looks at none behind the third.
async fn takes_three(number: usize, tls: Tls, taken: Arc<AtomicUsize>) {
    let mut frames = Frames::start(tls).await;
    // From the third connection on a request is alone.
    let come = if number <= 2 { 10 - taken.load(Ordering::SeqCst) } else { 1 };
    let mut streams = Vec::new();
    while streams.len() < come {
        streams.push(frames.request().await);
    }
    streams.truncate(3);
    for stream in &streams {
        taken.fetch_add(1, Ordering::SeqCst);
        frames.answer(*stream).await;
    }
    frames.go_away((*streams.last().unwrap()).into(), 0).await;
    frames.until_closed().await;
}

#[tokio::test]
async fn requests_behind_a_goaway_go_out_again_and_none_arrives_twice() {
    let rig = Http2Rig::raw(takes_three).await;
    let endpoint = rig.endpoint();
    let body = delivery(100);
    let attempts = join_all((1..=10).map(|number| endpoint.attempt(&body, number))).await;
    for attempt in &attempts {
        assert_eq!(attempt.verdict, Verdict::Acknowledged, "{attempt:?}");
    }
    let resent: u32 = attempts.iter().map(|attempt| attempt.resent).sum();
    assert_eq!(resent, 7 + 4, "seven were refused, and then four of them");
    assert_eq!(rig.counts(), (2 + 4, 10), "each was taken once");
}

/// The first connection takes one of two requests, says so, and breaks.
async fn taken_and_dropped(number: usize, tls: Tls, taken: Arc<AtomicUsize>) {
    if number > 1 {
        return serve(h2::server::handshake(tls).await.unwrap(), &taken).await;
    }
    let mut frames = Frames::start(tls).await;
    let first = frames.request().await.min(frames.request().await);
    taken.fetch_add(1, Ordering::SeqCst);
    frames.go_away(first.into(), 0).await;
    frames.0.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_request_that_goaway_names_as_taken_fails_with_the_connection_and_is_not_repeated() {
    let rig = Http2Rig::raw(taken_and_dropped).await;
    let endpoint = rig.endpoint();
    let body = delivery(100);
    let attempts = join_all((1..=2).map(|number| endpoint.attempt(&body, number))).await;
    let failed: Vec<_> = attempts.iter().filter(|attempt| !attempt.verdict.is_acknowledged()).collect();
    assert_eq!(failed.len(), 1, "{attempts:?}");
    assert_eq!((failure(failed[0]).0, failed[0].resent), ("connection_reset", 0));
    let acknowledged = attempts.iter().find(|attempt| attempt.verdict.is_acknowledged()).unwrap();
    assert_eq!(acknowledged.resent, 1);
    assert_eq!(rig.counts(), (2, 2));
}

/// A GOAWAY that only warns, as servers do that leave in peace: the last stream follows when it is known.
async fn warns_first(number: usize, tls: Tls, taken: Arc<AtomicUsize>) {
    if number > 1 {
        return serve(h2::server::handshake(tls).await.unwrap(), &taken).await;
    }
    let mut frames = Frames::start(tls).await;
    let (one, other) = (frames.request().await, frames.request().await);
    frames.go_away(0x7fff_ffff, 0).await;
    let first = one.min(other);
    frames.go_away(first.into(), 0).await;
    taken.fetch_add(1, Ordering::SeqCst);
    frames.answer(first).await;
    frames.0.flush().await.unwrap();
    frames.until_closed().await;
}

#[tokio::test]
async fn a_goaway_that_warns_and_the_one_that_names_the_last_stream_are_one() {
    let rig = Http2Rig::raw(warns_first).await;
    let endpoint = rig.endpoint();
    let body = delivery(100);
    let attempts = join_all((1..=2).map(|number| endpoint.attempt(&body, number))).await;
    assert!(attempts.iter().all(|attempt| attempt.verdict.is_acknowledged()), "{attempts:?}");
    let mut resent: Vec<u32> = attempts.iter().map(|attempt| attempt.resent).collect();
    resent.sort_unstable();
    assert_eq!((resent, rig.counts()), (vec![0, 1], (2, 2)));
}

/// The first `angry` connections leave with an error (ENHANCE_YOUR_CALM) before they have taken anything.
async fn leaves_in_anger(angry: usize, number: usize, tls: Tls, taken: Arc<AtomicUsize>) {
    if number > angry {
        return serve(h2::server::handshake(tls).await.unwrap(), &taken).await;
    }
    let mut frames = Frames::start(tls).await;
    frames.request().await;
    frames.go_away(0, 11).await;
    frames.until_closed().await;
}

#[tokio::test]
async fn a_request_that_a_goaway_with_an_error_left_untaken_goes_out_once_more_and_then_fails_with_the_reason() {
    let rig = Http2Rig::raw(|number, tls, taken| leaves_in_anger(1, number, tls, taken)).await;
    let attempt = rig.endpoint().attempt(&delivery(100), 1).await;
    assert_eq!((&attempt.verdict, attempt.resent), (&Verdict::Acknowledged, 1), "{attempt:?}");
    assert_eq!(rig.counts(), (2, 1));

    let rig = Http2Rig::raw(|number, tls, taken| leaves_in_anger(9, number, tls, taken)).await;
    let attempt = rig.endpoint().attempt(&delivery(100), 1).await;
    let (category, said) = failure(&attempt);
    assert_eq!((category, attempt.resent, rig.counts()), ("connection_reset", 1, (2, 0)), "{said}");
    let told = "the endpoint did not take the request, 2 times in a row: ";
    assert!(said.starts_with(told) && said.contains("excessive load"), "{said}");
}

#[tokio::test]
async fn an_endpoint_that_hangs_up_before_it_has_said_a_word_is_tried_twice_by_those_who_wait() {
    let rig = Http2Rig::raw(|_, tls, _| async move { drop(tls) }).await;
    let endpoint = rig.endpoint();
    let body = delivery(100);
    let attempts = join_all((1..=16).map(|number| endpoint.attempt(&body, number))).await;
    for attempt in &attempts {
        assert_eq!(failure(attempt).0, "connection_reset");
        assert!(attempt.resent <= 1, "{attempt:?}");
    }
    assert!(attempts.iter().any(|attempt| attempt.resent == 1), "all but the first wait");
}

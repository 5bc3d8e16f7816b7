//! HTTP/2: one connection for all, and what the endpoint refuses stream by stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Response;
use rustls::RootCertStore;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::certified::certified;
use super::rig::{Rig, delivery, failure, sink};
use crate::config::SinkConfig;
use crate::deliver::attempt::Verdict;
use crate::deliver::endpoint::{Endpoint, Ways};

pub(super) type Tls = tokio_rustls::server::TlsStream<TcpStream>;
pub(super) type Connection = h2::server::Connection<Tls, Bytes>;

/// An https endpoint on localhost that speaks HTTP/2.
pub(super) struct Http2Rig {
    pub(super) rig: Rig,
    pub(super) roots: RootCertStore,
    /// Connections so far.
    pub(super) connections: Arc<AtomicUsize>,
    /// Requests that the endpoint took.
    pub(super) taken: Arc<AtomicUsize>,
}

/// A server on localhost that speaks `protocol`, and whom one has to trust for it.
pub(super) fn server(protocol: &[u8]) -> (TlsAcceptor, RootCertStore) {
    let server = certified(&[protocol], |_| ());
    let mut roots = RootCertStore::empty();
    roots.add(server.ca.der().clone()).unwrap();
    (server.acceptor, roots)
}

impl Http2Rig {
    /// Runs `script` for each connection after its TLS handshake, with the connection's number from 1 and the count of
    /// requests taken.
    pub(super) async fn raw<F, R>(script: F) -> Self
    where
        F: Fn(usize, Tls, Arc<AtomicUsize>) -> R + Send + Sync + Clone + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let (acceptor, roots) = server(b"h2");
        let (connections, taken) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let rig = Rig::start({
            let (connections, taken) = (Arc::clone(&connections), Arc::clone(&taken));
            move |peer| {
                let (acceptor, script, taken) = (acceptor.clone(), script.clone(), Arc::clone(&taken));
                let number = connections.fetch_add(1, Ordering::SeqCst) + 1;
                async move {
                    let Ok(tls) = acceptor.accept(peer.socket).await else { return };
                    script(number, tls, taken).await;
                }
            }
        })
        .await;
        Self { rig, roots, connections, taken }
    }

    /// As [`Self::raw`], with HTTP/2 under the script.
    pub(super) async fn start<F, R>(script: F) -> Self
    where
        F: Fn(usize, Connection, Arc<AtomicUsize>) -> R + Send + Sync + Clone + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        Self::limited(100, script).await
    }

    /// The same, for an endpoint that takes `streams` requests at a time.
    pub(super) async fn limited<F, R>(streams: u32, script: F) -> Self
    where
        F: Fn(usize, Connection, Arc<AtomicUsize>) -> R + Send + Sync + Clone + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        Self::raw(move |number, tls, taken| {
            let script = script.clone();
            async move {
                let connection = h2::server::Builder::new().max_concurrent_streams(streams).handshake(tls).await;
                script(number, connection.unwrap(), taken).await;
            }
        })
        .await
    }

    pub(super) fn sink(&self) -> SinkConfig {
        sink(&format!("https://localhost:{}/hooks", self.rig.port))
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint::with_roots(&self.sink(), self.roots.clone()).unwrap()
    }

    /// The same endpoint by other ways.
    pub(super) fn endpoint_by(&self, ways: Ways) -> Endpoint {
        Endpoint::with_ways(&self.sink(), self.roots.clone(), ways).unwrap()
    }

    pub(super) fn counts(&self) -> (usize, usize) {
        (self.connections.load(Ordering::SeqCst), self.taken.load(Ordering::SeqCst))
    }
}

fn ok() -> Response<()> {
    Response::new(())
}

/// Answers nothing on `connection` but the request of attempt `number`, and that when it is told to.
pub(super) async fn hold(number: &str, mut connection: Connection, taken: &AtomicUsize, go_on: &Notify) {
    let mut held = Vec::new();
    let mut wanted = None;
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(Ok((request, respond))) = accepted else { return };
                taken.fetch_add(1, Ordering::SeqCst);
                if request.headers()["walhook-attempt"] == number {
                    wanted = Some(respond);
                } else {
                    held.push(respond);
                }
            }
            () = go_on.notified() => drop(wanted.take().unwrap().send_response(ok(), true).unwrap()),
        }
    }
}

/// Answers everything on `connection`, each request when it is there as a whole.
pub(super) async fn serve(mut connection: Connection, taken: &AtomicUsize) {
    let mut open = JoinSet::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        taken.fetch_add(1, Ordering::SeqCst);
        open.spawn(async move {
            let mut body = request.into_body();
            while let Some(Ok(chunk)) = body.data().await {
                body.flow_control().release_capacity(chunk.len()).unwrap();
            }
            drop(respond.send_response(ok(), true));
        });
    }
}

#[tokio::test]
async fn a_stranger_is_refused_and_requests_share_one_connection() {
    let rig = Http2Rig::start(|_, connection, taken| async move { serve(connection, &taken).await }).await;
    let stranger = Endpoint::with_roots(&rig.sink(), RootCertStore::empty()).unwrap().attempt(&delivery(9), 1).await;
    assert_eq!(failure(&stranger).0, "tls_error");
    assert_eq!(rig.counts().1, 0);
    let endpoint = rig.endpoint();
    let body = delivery(300_000);
    for attempt in join_all((1..=20).map(|number| endpoint.attempt(&body, number))).await {
        assert_eq!((attempt.verdict, attempt.resent), (Verdict::Acknowledged, 0));
    }
    assert_eq!(rig.counts(), (2, 20), "the stranger's connection and one for all");
}

#[tokio::test]
async fn what_the_endpoint_refused_goes_out_again_at_once_and_every_other_reset_is_a_failure() {
    let seen = Arc::new(AtomicUsize::new(0));
    let rig = Http2Rig::start(move |_, mut connection, taken| {
        let seen = Arc::clone(&seen);
        async move {
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                match seen.fetch_add(1, Ordering::SeqCst) {
                    0 | 1 => respond.send_reset(h2::Reason::REFUSED_STREAM),
                    3 => respond.send_reset(h2::Reason::CANCEL),
                    4 => respond.send_reset(h2::Reason::PROTOCOL_ERROR),
                    5 => respond.send_reset(h2::Reason::INTERNAL_ERROR),
                    // The stream is one that the GOAWAY names as taken.
                    6 => connection.abrupt_shutdown(h2::Reason::NO_ERROR),
                    _ => {
                        taken.fetch_add(1, Ordering::SeqCst);
                        drop(respond.send_response(ok(), true).unwrap());
                    }
                }
            }
        }
    })
    .await;
    let endpoint = rig.endpoint();
    let refused = endpoint.attempt(&delivery(100), 1).await;
    assert_eq!((&refused.verdict, refused.resent), (&Verdict::Acknowledged, 2), "{refused:?}");
    for category in ["connection_reset", "protocol_error", "connection_reset", "connection_reset"] {
        let failed = endpoint.attempt(&delivery(100), 1).await;
        assert_eq!((failure(&failed).0, failed.resent), (category, 0), "{failed:?}");
    }
    assert_eq!(endpoint.attempt(&delivery(100), 2).await.verdict, Verdict::Acknowledged);
    assert_eq!(rig.counts().1, 2);
}

#[tokio::test]
async fn an_endpoint_that_refuses_for_ever_is_a_failed_attempt_after_five_tries() {
    let rig = Http2Rig::start(|_, mut connection, taken| async move {
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            taken.fetch_add(1, Ordering::SeqCst);
            respond.send_reset(h2::Reason::REFUSED_STREAM);
        }
    })
    .await;
    let attempt = rig.endpoint().attempt(&delivery(100), 1).await;
    let (category, said) = failure(&attempt);
    assert_eq!((category, attempt.resent), ("connection_reset", 4));
    let told = "the endpoint did not take the request, 5 times in a row: ";
    assert!(said.starts_with(told) && said.contains("refused stream"), "{said}");
    assert_eq!(rig.counts(), (4, 5), "one connection for two tries, and one for each of three");
}

#[tokio::test]
async fn after_a_timeout_the_next_attempt_has_a_new_connection_and_requests_on_the_old_one_go_on() {
    // The first connection answers nothing but the seventh attempt, and that when it is told to.
    let go_on = Arc::new(Notify::new());
    let rig = Http2Rig::start({
        let go_on = Arc::clone(&go_on);
        move |number, connection, taken| {
            let go_on = Arc::clone(&go_on);
            async move {
                if number == 1 { hold("7", connection, &taken, &go_on).await } else { serve(connection, &taken).await }
            }
        }
    })
    .await;
    let patient = rig.endpoint();
    let hasty = patient.with_request_timeout(Duration::from_millis(500));
    let body = delivery(100);
    let rest = async {
        while rig.counts().1 < 1 {
            tokio::task::yield_now().await;
        }
        let late = hasty.attempt(&body, 1).await;
        assert_eq!(failure(&late), ("timeout", "no answer within 500ms (request_timeout)"));
        assert_eq!(rig.counts(), (1, 2));
        assert_eq!(patient.attempt(&body, 2).await.verdict, Verdict::Acknowledged);
        assert_eq!(rig.counts(), (2, 3));
        go_on.notify_one();
    };
    let (slow, ()) = tokio::join!(patient.attempt(&body, 7), rest);
    assert_eq!((slow.verdict, slow.resent), (Verdict::Acknowledged, 0));
}

#[tokio::test]
async fn interim_answers_are_passed_over() {
    let rig = Http2Rig::start(|_, mut connection, taken| async move {
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            taken.fetch_add(1, Ordering::SeqCst);
            let early = Response::builder().status(103).body(()).unwrap();
            respond.send_informational(early).unwrap();
            let mut body = respond.send_response(ok(), false).unwrap();
            body.send_data(Bytes::from_static(b"hi"), false).unwrap();
            body.send_trailers(http::HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())])).unwrap();
        }
    })
    .await;
    let attempt = rig.endpoint().attempt(&delivery(100), 1).await;
    assert_eq!((&attempt.verdict, &attempt.response.body[..]), (&Verdict::Acknowledged, &b"hi"[..]), "{attempt:?}");
}

//! One HTTP/1.1 connection: one request at a time.
//!
//! The connection has no task of its own. Whoever sends a request drives it meanwhile, which saves two wake-ups a
//! request; while it lies idle the pool looks now and then whether the endpoint has closed it.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;

use super::error::SendError;
use super::life::Life;
use super::reach::{Socket, Wire};
use super::tally::{INTERIM_MAX, Tallied, Tally};
use super::{Failed, Outgoing};
use crate::deliver::answer::Answer;

/// How long saying goodbye may take: TLS has a word for it.
const FAREWELL: Duration = Duration::from_secs(1);

type Body = Full<bytes::Bytes>;
type Driver = http1::Connection<TokioIo<Tallied<Socket>>, Body>;

/// One connection; whoever holds it may send.
pub(in crate::deliver) struct Http1 {
    sender: SendRequest<Body>,
    /// `None` when the connection has ended.
    driver: Option<Driver>,
    tally: Arc<Tally>,
    is_plain: bool,
    /// It has carried a request to its answer.
    is_proven: bool,
    pub(super) life: Life,
}

impl Http1 {
    pub(super) async fn new(socket: Socket, life: Life) -> Result<Self, SendError> {
        let is_plain = matches!(socket.wire, Wire::Plain(_));
        let tally = Arc::new(Tally::default());
        let (sender, driver) = http1::Builder::new()
            // Old forms that receivers still send and that have one meaning only (RFC 9112, 5.1 and 5.2).
            .allow_obsolete_multiline_headers_in_responses(true)
            .allow_spaces_after_header_name_in_responses(true)
            .handshake(TokioIo::new(Tallied::new(socket, Arc::clone(&tally))))
            .await
            .map_err(SendError::Http1)?;
        Ok(Self { sender, driver: Some(driver), tally, is_plain, is_proven: false, life })
    }

    /// Sends one request and reads its answer. Whether the connection can be used again, [`Self::settle`] tells.
    pub(super) async fn exchange(
        &mut self,
        (uri, host): (Uri, HeaderValue),
        outgoing: Outgoing,
        answer: &mut Answer,
    ) -> Result<(), Failed> {
        self.tally.begin(outgoing.body.len());
        let mut request = Request::new(Full::new(outgoing.body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.headers_mut() = outgoing.headers;
        request.headers_mut().insert(header::HOST, host);
        let Self { sender, driver, life, .. } = self;
        let exchanged = drive(driver, async {
            let response = sender.try_send_request(request).await.map_err(|mut error| {
                // With the message comes the word that none of it was written.
                (error.take_message().is_some(), error.into_error())
            })?;
            life.read(response.headers());
            answer.begin(response.status(), response.headers());
            let mut body = response.into_body();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| (false, error))?;
                if frame.data_ref().is_some_and(|chunk| !answer.take(chunk)) {
                    break;
                }
            }
            Ok(())
        })
        .await;
        match exchanged {
            Ok(()) => {
                self.is_proven = true;
                answer.is_early = !self.tally.is_sent();
                Ok(())
            }
            Err((is_untaken, error)) => Err(self.judge(is_untaken, error)),
        }
    }

    fn judge(&self, is_untaken: bool, error: hyper::Error) -> Failed {
        let error = if self.tally.is_flood() {
            SendError::Flood { what: "interim answers (1xx)", most: INTERIM_MAX }
        } else if self.is_plain && self.tally.is_tls() {
            SendError::SpeaksTls
        } else {
            SendError::Http1(error)
        };
        match (is_untaken, self.is_proven) {
            // It may have been closed while it lay idle, as any endpoint does.
            (true, true) => Failed::Untaken(error),
            (true, false) => Failed::Unwelcome(error),
            (false, _) => Failed::Broken(error),
        }
    }

    /// Whether the connection is open, and ready for another request.
    pub(super) fn settle(&mut self) -> bool {
        let Some(driver) = &mut self.driver else { return false };
        // Nobody waits: it is looked at again before it is used, and by the pool.
        if Pin::new(driver).poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            self.driver = None;
        }
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Closes it as the endpoint may expect it.
    pub(super) async fn close(self) {
        let Self { sender, driver, .. } = self;
        drop(sender);
        if let Some(driver) = driver {
            // It is closed in any case.
            drop(tokio::time::timeout(FAREWELL, driver).await);
        }
    }
}

/// Runs `work`, which talks through the connection, and the connection under it.
async fn drive<T>(driver: &mut Option<Driver>, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(done);
        }
        if let Some(running) = driver {
            // How it ended, the request is told.
            if Pin::new(running).poll(cx).is_ready() {
                *driver = None;
            }
            return work.as_mut().poll(cx);
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use http::HeaderMap;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::super::life::AGE;
    use super::*;

    const FINE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (ours, listener.accept().await.unwrap().0)
    }

    async fn on(socket: TcpStream) -> Http1 {
        Http1::new(Wire::Plain(socket).into(), Life::new(Instant::now(), &AGE, 0.0)).await.unwrap()
    }

    async fn exchange(connection: &mut Http1) -> (Result<(), Failed>, Answer) {
        let address = (Uri::from_static("/"), HeaderValue::from_static("hooks.test"));
        let outgoing = Outgoing { headers: HeaderMap::new(), body: "{}".into() };
        let mut answer = Answer::default();
        (connection.exchange(address, outgoing, &mut answer).await, answer)
    }

    #[tokio::test]
    async fn a_new_connection_that_ends_or_speaks_before_it_is_asked_is_no_ordinary_close() {
        for said in [&b""[..], FINE] {
            let (ours, mut peer) = pair().await;
            peer.write_all(said).await.unwrap();
            drop(peer);
            ours.readable().await.unwrap();
            let mut connection = on(ours).await;
            let (sent, answer) = exchange(&mut connection).await;
            assert!(matches!(sent, Err(Failed::Unwelcome(_))), "{sent:?}");
            assert_eq!(answer.status, None, "what is said before a question is no answer");
            assert!(!connection.settle());
        }
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_while_it_lay_idle_has_not_taken_the_request() {
        let (ours, mut peer) = pair().await;
        let mut connection = on(ours).await;
        let answering = async {
            let read = peer.read(&mut [0; 1024]).await.unwrap();
            peer.write_all(FINE).await.unwrap();
            read
        };
        let ((sent, answer), read) = tokio::join!(exchange(&mut connection), answering);
        assert!(sent.is_ok() && read > 0 && !answer.is_early && connection.settle());
        drop(peer);
        while connection.settle() {
            tokio::task::yield_now().await;
        }
        let (sent, _) = exchange(&mut connection).await;
        assert!(matches!(sent, Err(Failed::Untaken(_))), "{sent:?}");
    }
}

//! One HTTP/1.1 connection: one request at a time.
//!
//! The connection has no task of its own. Whoever sends a request drives it meanwhile, which saves two wake-ups a
//! request; while it lies idle the pool looks now and then whether the endpoint has closed it.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;

use super::error::SendError;
use super::life::Life;
use super::reach::Socket;
use super::{Failed, Outgoing};
use crate::deliver::answer::Answer;

/// How long saying goodbye may take: TLS has a word for it.
const FAREWELL: Duration = Duration::from_secs(1);

type Body = Full<bytes::Bytes>;
type Driver = http1::Connection<TokioIo<Socket>, Body>;

/// One connection; whoever holds it may send.
pub(in crate::deliver) struct Http1 {
    sender: SendRequest<Body>,
    /// `None` when the connection has ended.
    driver: Option<Driver>,
    pub(super) life: Life,
}

impl Http1 {
    pub(super) async fn new(socket: Socket, life: Life) -> Result<Self, SendError> {
        let (sender, driver) = http1::Builder::new()
            // Old forms that receivers still send and that have one meaning only (RFC 9112, 5.1 and 5.2).
            .allow_obsolete_multiline_headers_in_responses(true)
            .allow_spaces_after_header_name_in_responses(true)
            .handshake(TokioIo::new(socket))
            .await
            .map_err(SendError::Http1)?;
        Ok(Self { sender, driver: Some(driver), life })
    }

    /// Sends one request and reads its answer. Whether the connection can be used again, [`Self::settle`] tells.
    pub(super) async fn exchange(
        &mut self,
        (uri, host): (Uri, HeaderValue),
        outgoing: Outgoing,
        answer: &mut Answer,
    ) -> Result<(), Failed> {
        let mut request = Request::new(Full::new(outgoing.body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.headers_mut() = outgoing.headers;
        request.headers_mut().insert(header::HOST, host);
        let Self { sender, driver, life } = self;
        drive(driver, async {
            let response = sender.try_send_request(request).await.map_err(|mut error| {
                // With the message comes the word that none of it was written.
                let untaken = error.take_message().is_some();
                let error = SendError::Http1(error.into_error());
                if untaken { Failed::Untaken(error) } else { Failed::Broken(error) }
            })?;
            life.hear(Instant::now());
            life.read(response.headers());
            answer.begin(response.status(), response.headers());
            let mut body = response.into_body();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| Failed::Broken(SendError::Http1(error)))?;
                if frame.data_ref().is_some_and(|chunk| !answer.take(chunk)) {
                    break;
                }
            }
            life.hear(Instant::now());
            Ok(())
        })
        .await
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

//! One HTTP/2 connection, which all requests share.
//!
//! A task of the pool drives it. It ends when nobody holds the connection any more and the last stream is over, when
//! the endpoint closes it, or when a ping is not answered while a request waits.

mod driver;
mod upload;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use http::{HeaderValue, Method, Request, Uri, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

pub(super) use driver::Driver;

use super::error::SendError;
use super::frames::{Heard, QUIET_MAX, Watched};
use super::life::Life;
use super::reach::Socket;
use super::{Failed, Outgoing};
use crate::deliver::answer::Answer;
use upload::Upload;

/// Answers are read up to 64 KiB; a stream must not hold more, nor all of them together much more.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const HEADER_LIST_MAX: u32 = 16 * 1024;
/// Before the endpoint has said how many requests it takes at a time, it gets one.
const STREAMS_AT_FIRST: usize = 1;

/// What requests and the task that drives the connection know of it.
struct State {
    heard: Arc<Heard>,
    /// No new requests.
    retired: AtomicBool,
    /// The task has ended because a ping was not answered.
    silent: AtomicBool,
    /// Requests under way.
    active: AtomicUsize,
    /// One permit a stream that the endpoint takes at a time; closed when it takes no more. Requests wait here and not in
    /// the library, as here they have certainly not been sent.
    streams: Arc<Semaphore>,
}

impl State {
    fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.streams.close();
    }
}

/// One connection. It is held by the pool while it takes new requests, and by each request on it.
pub(in crate::deliver) struct Http2 {
    sender: SendRequest<Bytes>,
    state: Arc<State>,
    pub(super) life: Life,
    /// Its end tells the driver that nobody holds the connection any more.
    _held: oneshot::Sender<()>,
}

/// Permission to send one request, for as long as it is under way.
pub(in crate::deliver) type Stream = OwnedSemaphorePermit;

impl Http2 {
    pub(super) async fn new(socket: Socket, life: Life) -> Result<(Self, Driver), SendError> {
        let heard = Arc::new(Heard::new());
        let (sender, connection) = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEADER_LIST_MAX)
            .initial_max_send_streams(STREAMS_AT_FIRST)
            .handshake(Watched::new(socket, Arc::clone(&heard)))
            .await
            .map_err(SendError::Http2)?;
        let (retired, silent, active) = Default::default();
        let streams = Arc::new(Semaphore::new(STREAMS_AT_FIRST));
        let state = Arc::new(State { heard, retired, silent, active, streams });
        let (held, let_go) = oneshot::channel();
        let driver = Driver::new(connection, Arc::clone(&state), let_go);
        Ok((Self { sender, state, life, _held: held }, driver))
    }

    /// Whether new requests may go out on it, its age apart.
    pub(super) fn is_open(&self) -> bool {
        !self.state.retired.load(Ordering::Acquire) && !self.state.heard.has_left()
    }

    /// It takes no new requests; those on it go on.
    pub(super) fn retire(&self) {
        self.state.retire();
    }

    /// Whether the endpoint takes another request by now.
    pub(super) fn has_room(&self) -> bool {
        self.state.streams.available_permits() > 0
    }

    /// Whether requests wait because of what the endpoint takes at a time, and not because it has not said yet.
    pub(super) fn is_crowded(&self) -> bool {
        self.state.heard.has_settings() && !self.has_room()
    }

    /// A stream, if there is one at once.
    pub(super) fn stream_now(&self) -> Option<Stream> {
        Arc::clone(&self.state.streams).try_acquire_owned().ok().filter(|_| self.is_open())
    }

    /// Waits until the endpoint takes another request.
    pub(super) async fn stream(&self) -> Result<Stream, Failed> {
        let stream = Arc::clone(&self.state.streams).acquire_owned().await;
        stream.ok().filter(|_| self.is_open()).ok_or_else(|| {
            let reason = self.state.heard.trouble();
            self.not_taken(reason.map_or(SendError::Retired, SendError::Left))
        })
    }

    /// Sends one request and reads its answer. Dropped before its end, it tells the endpoint that nobody waits.
    pub(super) async fn exchange(&self, uri: Uri, outgoing: Outgoing, answer: &mut Answer) -> Result<(), Failed> {
        let _active = Active::new(&self.state);
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.headers_mut() = outgoing.headers;
        request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(outgoing.body.len()));
        // Nothing was sent as long as there is no stream.
        let mut sender = self.sender.clone().ready().await.map_err(|error| self.unsent(error))?;
        let (mut response, stream) =
            sender.send_request(request, outgoing.body.is_empty()).map_err(|error| self.unsent(error))?;
        drop(sender);
        let number = response.stream_id().as_u32();
        let mut upload = Upload::new(stream, outgoing.body);
        let response = upload.beside(|cx| std::pin::Pin::new(&mut response).poll(cx)).await;
        let response = response.map_err(|error| self.judge(number, error))?;
        answer.begin(response.status(), response.headers());
        let mut body = response.into_body();
        // Some answer early, and end their answer when they have the rest.
        while let Some(chunk) = upload.beside(|cx| body.poll_data(cx)).await {
            let chunk = chunk.map_err(|error| Failed::Broken(self.why(error)))?;
            if !answer.take(&chunk) {
                break;
            }
            body.flow_control().release_capacity(chunk.len()).map_err(|error| Failed::Broken(self.why(error)))?;
        }
        answer.is_early = !upload.is_over();
        Ok(())
    }

    /// Whether the endpoint has said that it did not take the request of stream `number` (RFC 9113, 8.7).
    fn judge(&self, number: u32, error: h2::Error) -> Failed {
        let refused = error.is_remote() && error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
        // One stream refused says nothing of the connection: there may have been too many.
        if refused || self.state.heard.excludes(number) {
            return self.not_taken(self.why(error));
        }
        Failed::Broken(self.why(error))
    }

    /// There is no stream to be had: the connection is of no use to others either.
    fn unsent(&self, error: h2::Error) -> Failed {
        self.retire();
        self.not_taken(self.why(error))
    }

    /// The endpoint does as it may, unless it names an error, or has left without a word.
    fn not_taken(&self, error: SendError) -> Failed {
        let heard = &self.state.heard;
        if heard.has_settings() && heard.trouble().is_none() {
            return Failed::Untaken(error);
        }
        Failed::Unwelcome(error)
    }

    fn why(&self, error: h2::Error) -> SendError {
        if self.state.silent.load(Ordering::Acquire) {
            return SendError::Silent;
        }
        if self.state.heard.is_flood() {
            return SendError::Flood { what: "frames (interim answers, pings, settings)", most: QUIET_MAX };
        }
        SendError::Http2(error)
    }
}

/// One request under way.
struct Active<'a>(&'a State);

impl<'a> Active<'a> {
    fn new(state: &'a State) -> Self {
        state.active.fetch_add(1, Ordering::AcqRel);
        Self(state)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::AcqRel);
    }
}

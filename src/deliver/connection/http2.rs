//! One HTTP/2 connection, which all requests share.
//!
//! A task of the pool drives it. It ends when nobody holds the connection any more and the last stream is over, when
//! the endpoint closes it, or when a ping is not answered while a request waits.

use std::future::Future as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use h2::{Ping, PingPong, Reason, SendStream};
use http::{HeaderValue, Method, Request, Uri, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::SendError;
use super::goaway::{LastStream, Watched};
use super::life::Life;
use super::reach::Socket;
use super::{Failed, Outgoing};
use crate::deliver::answer::Answer;

/// One connection carries all requests, so a dead one must be noticed also where `request_timeout` is long.
const PING_EVERY: Duration = Duration::from_secs(15);
const PONG_WITHIN: Duration = Duration::from_secs(15);
/// Answers are read up to 64 KiB; a stream must not hold more, nor all of them together much more.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const HEADER_LIST_MAX: u32 = 16 * 1024;
/// Before the endpoint has said how many requests it takes at a time, it gets one.
const STREAMS_AT_FIRST: usize = 1;
/// More at a time are never needed.
const STREAMS_MAX: usize = 64 * 1024;

/// What requests and the task that drives the connection know of it.
struct State {
    last_stream: Arc<LastStream>,
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
}

/// What drives a connection to its end.
pub(super) struct Driver {
    connection: Connection<Watched<Socket>, Bytes>,
    state: Arc<State>,
}

impl Http2 {
    pub(super) async fn new(socket: Socket, life: Life) -> Result<(Self, Driver), SendError> {
        let last_stream = Arc::new(LastStream::new());
        let (sender, connection) = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEADER_LIST_MAX)
            .initial_max_send_streams(STREAMS_AT_FIRST)
            .handshake(Watched::new(socket, Arc::clone(&last_stream)))
            .await
            .map_err(SendError::Http2)?;
        let (retired, silent, active) = Default::default();
        let streams = Arc::new(Semaphore::new(STREAMS_AT_FIRST));
        let state = Arc::new(State { last_stream, retired, silent, active, streams });
        let driver = Driver { connection, state: Arc::clone(&state) };
        Ok((Self { sender, state, life }, driver))
    }

    /// Whether new requests may go out on it, its age apart.
    pub(super) fn is_open(&self) -> bool {
        !self.state.retired.load(Ordering::Acquire) && !self.state.last_stream.is_said()
    }

    /// It takes no new requests; those on it go on.
    pub(super) fn retire(&self) {
        self.state.retire();
    }

    /// Waits until the endpoint takes another request; the permit is for as long as that is under way.
    pub(in crate::deliver) async fn stream(&self) -> Result<OwnedSemaphorePermit, Failed> {
        let permit = Arc::clone(&self.state.streams).acquire_owned().await;
        permit.ok().filter(|_| self.is_open()).ok_or(Failed::Untaken(SendError::Retired))
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
        let (response, stream) =
            sender.send_request(request, outgoing.body.is_empty()).map_err(|error| self.unsent(error))?;
        drop(sender);
        let number = response.stream_id().as_u32();
        let response = upload(response, stream, outgoing.body).await.map_err(|error| self.judge(number, error))?;
        answer.begin(response.status(), response.headers());
        let mut body = response.into_body();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.map_err(|error| Failed::Broken(self.why(error)))?;
            if !answer.take(&chunk) {
                break;
            }
            body.flow_control().release_capacity(chunk.len()).map_err(|error| Failed::Broken(self.why(error)))?;
        }
        Ok(())
    }

    /// Whether the endpoint has said that it did not take the request of stream `number` (RFC 9113, 8.7).
    fn judge(&self, number: u32, error: h2::Error) -> Failed {
        let refused = error.is_remote() && error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
        // One stream refused says nothing of the connection: there may have been too many.
        if refused || self.state.last_stream.excludes(number) {
            return Failed::Untaken(self.why(error));
        }
        Failed::Broken(self.why(error))
    }

    /// There is no stream to be had: the connection is of no use to others either.
    fn unsent(&self, error: h2::Error) -> Failed {
        self.retire();
        Failed::Untaken(self.why(error))
    }

    fn why(&self, error: h2::Error) -> SendError {
        if self.state.silent.load(Ordering::Acquire) {
            return SendError::Silent { waited: PONG_WITHIN };
        }
        SendError::Http2(error)
    }
}

/// Sends the body as far as the endpoint lets it, until the head of the answer is there: some answer early.
async fn upload(
    mut response: h2::client::ResponseFuture,
    mut stream: SendStream<Bytes>,
    mut body: Bytes,
) -> Result<http::Response<h2::RecvStream>, h2::Error> {
    stream.reserve_capacity(body.len());
    std::future::poll_fn(|cx| {
        if let Poll::Ready(ready) = std::pin::Pin::new(&mut response).poll(cx) {
            return Poll::Ready(ready);
        }
        while !body.is_empty() {
            match stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(0))) => {}
                Poll::Ready(Some(Ok(capacity))) => {
                    let part = body.split_to(capacity.min(body.len()));
                    let last = body.is_empty();
                    if stream.send_data(part, last).is_err() {
                        body.clear();
                    }
                }
                // The stream is over; the answer says how.
                Poll::Ready(Some(Err(_)) | None) => body.clear(),
                Poll::Pending => break,
            }
        }
        Poll::Pending
    })
    .await
}

impl Driver {
    /// Drives the connection until it ends.
    pub(super) async fn run(self) {
        let Self { mut connection, state } = self;
        let state = Ended(state);
        let pings = connection.ping_pong();
        let mut size = STREAMS_AT_FIRST;
        let connection = std::future::poll_fn(|cx| {
            let polled = std::pin::Pin::new(&mut connection).poll(cx);
            fit(&state.streams, &mut size, connection.max_concurrent_send_streams());
            if state.last_stream.is_said() {
                state.streams.close();
            }
            polled
        });
        tokio::select! {
            biased;
            // First, as it is what everything waits for. How it ended, the streams are told.
            _ = connection => {}
            () = silence(pings, &state) => state.silent.store(true, Ordering::Release),
        }
    }
}

/// The driver's hold: whatever ends it, a panic too, nobody takes the connection for an open one.
struct Ended(Arc<State>);

impl std::ops::Deref for Ended {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.retire();
    }
}

/// Brings the permits of `streams`, `size` so far, to what the endpoint takes; those that are out come off as they return.
fn fit(streams: &Semaphore, size: &mut usize, limit: usize) {
    let limit = limit.min(STREAMS_MAX);
    if limit > *size {
        streams.add_permits(limit - *size);
        *size = limit;
    } else if limit < *size {
        *size -= streams.forget_permits(*size - limit);
    }
}

/// Comes back when a ping is not answered in time while a request waits.
async fn silence(pings: Option<PingPong>, state: &State) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        tokio::time::sleep(PING_EVERY).await;
        if state.active.load(Ordering::Acquire) == 0 {
            continue;
        }
        match tokio::time::timeout(PONG_WITHIN, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection has ended, and its driver is told so as well.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_follow_what_the_endpoint_takes_and_those_that_are_out_come_off_as_they_return() {
        let streams = Arc::new(Semaphore::new(STREAMS_AT_FIRST));
        let mut size = STREAMS_AT_FIRST;
        for (limit, free) in [(1, 1), (100, 100), (4, 4), (0, 0), (usize::MAX, STREAMS_MAX), (8, 8)] {
            fit(&streams, &mut size, limit);
            assert_eq!((streams.available_permits(), size), (free, free), "{limit}");
        }
        let out = Arc::clone(&streams).try_acquire_many_owned(6).unwrap();
        fit(&streams, &mut size, 3);
        assert_eq!((streams.available_permits(), size), (0, 6));
        drop(out);
        fit(&streams, &mut size, 3);
        assert_eq!((streams.available_permits(), size), (3, 3));
    }
}

//! The task that drives an HTTP/2 connection to its end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use h2::client::Connection;
use h2::{Ping, PingPong};
use tokio::sync::{Semaphore, oneshot};

use super::{STREAMS_AT_FIRST, State};
use crate::deliver::connection::clock::Pace;
use crate::deliver::connection::frames::Watched;
use crate::deliver::connection::reach::Socket;

/// More requests at a time are never needed.
const STREAMS_MAX: usize = 64 * 1024;
/// What drives a connection.
pub(in crate::deliver::connection) struct Driver {
    connection: Connection<Watched<Socket>, Bytes>,
    state: Arc<State>,
    /// Ends when nobody holds the connection any more.
    let_go: oneshot::Receiver<()>,
}

impl Driver {
    pub(super) fn new(
        connection: Connection<Watched<Socket>, Bytes>,
        state: Arc<State>,
        let_go: oneshot::Receiver<()>,
    ) -> Self {
        Self { connection, state, let_go }
    }

    /// Drives the connection until it ends.
    pub(in crate::deliver::connection) async fn run(self, pace: Pace) {
        let Self { mut connection, state, let_go } = self;
        let state = Ended(state);
        let pings = connection.ping_pong();
        let mut size = STREAMS_AT_FIRST;
        let connection = std::future::poll_fn(|cx| {
            let polled = Pin::new(&mut connection).poll(cx);
            fit(&state.streams, &mut size, connection.max_concurrent_send_streams());
            if state.heard.has_left() {
                state.streams.close();
            }
            polled
        });
        tokio::select! {
            biased;
            // First, as it is what everything waits for. How it ended, the streams are told.
            _ = connection => {}
            () = silence(pings, &state, pace.ping) => state.silent.store(true, Ordering::Release),
            () = farewell(let_go, pace.farewell) => {}
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
async fn silence(pings: Option<PingPong>, state: &State, length: Duration) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        tokio::time::sleep(length).await;
        if state.active.load(Ordering::Acquire) == 0 {
            continue;
        }
        match tokio::time::timeout(length, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection has ended, and its driver is told so as well.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}

/// Comes back when the connection has had its time to end by itself.
async fn farewell(let_go: oneshot::Receiver<()>, length: Duration) {
    // Nothing is ever sent: its end is the word.
    drop(let_go.await);
    tokio::time::sleep(length).await;
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

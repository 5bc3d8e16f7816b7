//! A request's body on its way, beside the answer that comes in.

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::SendStream;

/// What of a body is still to be sent, and where.
pub(super) struct Upload {
    stream: SendStream<Bytes>,
    rest: Bytes,
    /// The endpoint takes no more of it.
    is_refused: bool,
}

impl Upload {
    pub(super) fn new(mut stream: SendStream<Bytes>, body: Bytes) -> Self {
        stream.reserve_capacity(body.len());
        Self { stream, rest: body, is_refused: false }
    }

    /// Whether all of it has gone out.
    pub(super) fn is_over(&self) -> bool {
        self.rest.is_empty() && !self.is_refused
    }

    /// Sends as much as the endpoint takes, until `answer` is ready.
    pub(super) async fn beside<T>(&mut self, mut answer: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
        poll_fn(|cx| {
            if let Poll::Ready(ready) = answer(cx) {
                return Poll::Ready(ready);
            }
            self.go_on(cx);
            Poll::Pending
        })
        .await
    }

    fn go_on(&mut self, cx: &mut Context<'_>) {
        while !self.rest.is_empty() && !self.is_refused {
            match self.stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(0))) => {}
                Poll::Ready(Some(Ok(capacity))) => {
                    let part = self.rest.split_to(capacity.min(self.rest.len()));
                    let is_last = self.rest.is_empty();
                    self.is_refused = self.stream.send_data(part, is_last).is_err();
                }
                // The stream is over; the answer says how.
                Poll::Ready(Some(Err(_)) | None) => self.is_refused = true,
                Poll::Pending => return,
            }
        }
    }
}

//! What is seen of an answer while it comes in.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};

use super::retry_after::retry_after;

/// Most that is read of an answer's body; then the answer counts as whole, and its connection is used no more.
pub(super) const RESPONSE_READ_BYTES_MAX: usize = 64 * 1024;
/// Most that is kept of it.
pub(super) const RESPONSE_KEPT_BYTES_MAX: usize = 16 * 1024;

/// Filled as far as the exchange gets, in whichever way it ends.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) status: Option<StatusCode>,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Vec<u8>,
    pub(super) truncated: bool,
    /// It was whole before all of the request had gone out.
    pub(super) is_early: bool,
    read: usize,
}

impl Answer {
    /// The head has come.
    pub(super) fn begin(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.status = Some(status);
        self.retry_after = retry_after(status, headers, SystemTime::now());
    }

    /// A part of the body has come; false when that is as much as is read.
    pub(super) fn take(&mut self, chunk: &[u8]) -> bool {
        self.read += chunk.len();
        let room = RESPONSE_KEPT_BYTES_MAX.saturating_sub(self.body.len());
        let (kept, rest) = chunk.split_at_checked(room).unwrap_or((chunk, &[]));
        self.body.extend_from_slice(kept);
        self.truncated |= !rest.is_empty();
        self.read <= RESPONSE_READ_BYTES_MAX
    }
}

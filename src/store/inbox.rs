//! What waits for the writer: batches, calls, and rows of the log.
//!
//! All three are bounded. Each sink has one batch here at most, so a sender finds room; one that does not waits. A row of
//! the log that finds none is lost and counted.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::batch::Batch;
use super::log::LogRow;

/// Rows of the log that wait at most.
const LOG_ROWS_MAX: usize = 8192;
/// Their bytes at most.
const LOG_BYTES_MAX: usize = 8 << 20;
/// Calls come from starting code only, one at a time.
const CALLS_MAX: usize = 64;

/// A batch and whoever waits for it.
#[derive(Debug)]
pub(super) struct Submitted {
    pub(super) batch: Batch,
    pub(super) done: oneshot::Sender<()>,
}

/// Something to be done with the connection that writes.
pub(super) type Call = Box<dyn FnOnce(&mut Connection) + Send>;

/// See the module.
#[derive(Debug)]
pub(super) struct Inbox {
    batches_max: usize,
    queues: Mutex<Queues>,
    /// For the writer: something came.
    came: Condvar,
    /// For senders: there is room.
    room: Condvar,
}

#[derive(Default)]
struct Queues {
    batches: VecDeque<Submitted>,
    calls: VecDeque<Call>,
    log: VecDeque<LogRow>,
    log_bytes: usize,
    closed: bool,
    /// Nobody takes anything any more.
    gone: bool,
}

impl std::fmt::Debug for Queues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { batches, calls, log, closed, .. } = self;
        write!(f, "Queues({} batches, {} calls, {} log rows, closed: {closed})", batches.len(), calls.len(), log.len())
    }
}

/// What the writer takes.
pub(super) struct Taken {
    pub(super) batches: VecDeque<Submitted>,
    pub(super) calls: VecDeque<Call>,
    /// Rows of the log wait.
    pub(super) log_waits: bool,
    /// Nothing more comes.
    pub(super) closed: bool,
}

/// What the writer knows already, and is not woken for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) log_waits: bool,
    pub(super) closed: bool,
}

impl Inbox {
    /// For batches of `sinks` sinks.
    pub(super) fn new(sinks: usize) -> Self {
        let batches_max = sinks.max(1);
        Self { batches_max, queues: Mutex::default(), came: Condvar::new(), room: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a batch in, unless the store is closed: then whoever waits for it hears that it will never be durable.
    pub(super) fn submit(&self, submitted: Submitted) {
        let mut queues = self.lock();
        while queues.batches.len() >= self.batches_max && !queues.closed {
            queues = self.room.wait(queues).unwrap_or_else(PoisonError::into_inner);
        }
        if !queues.closed {
            queues.batches.push_back(submitted);
            self.came.notify_one();
        }
    }

    /// Puts a call in. False: the store is closed.
    pub(super) fn call(&self, call: Call) -> bool {
        let mut queues = self.lock();
        while queues.calls.len() >= CALLS_MAX && !queues.closed {
            queues = self.room.wait(queues).unwrap_or_else(PoisonError::into_inner);
        }
        let open = !queues.closed;
        if open {
            queues.calls.push_back(call);
            self.came.notify_one();
        }
        open
    }

    /// Puts a row of the log in. False: it is lost.
    pub(super) fn log(&self, row: LogRow) -> bool {
        let bytes = row_bytes(&row);
        let mut queues = self.lock();
        if queues.gone || queues.log.len() >= LOG_ROWS_MAX || queues.log_bytes + bytes > LOG_BYTES_MAX {
            return false;
        }
        queues.log_bytes += bytes;
        queues.log.push_back(row);
        if queues.log.len() == 1 {
            self.came.notify_one();
        }
        true
    }

    /// Lets nothing more in but rows of the log.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.came.notify_one();
        self.room.notify_all();
    }

    /// The writer leaves. Everything that waits is dropped, so that whoever waits for it hears of it.
    pub(super) fn leave(&self) -> usize {
        let mut queues = self.lock();
        (queues.closed, queues.gone) = (true, true);
        queues.batches.clear();
        queues.calls.clear();
        let lost = queues.log.len();
        queues.log.clear();
        self.room.notify_all();
        lost
    }

    /// Waits until something comes that the writer does not know of, or until the time given.
    pub(super) fn take(&self, until: Instant, known: Known) -> Taken {
        let mut queues = self.lock();
        loop {
            let news = !queues.batches.is_empty()
                || !queues.calls.is_empty()
                || (queues.closed && !known.closed)
                || (!queues.log.is_empty() && !known.log_waits);
            let left = until.saturating_duration_since(Instant::now());
            if news || left.is_zero() {
                break;
            }
            (queues, _) = self.came.wait_timeout(queues, left).unwrap_or_else(PoisonError::into_inner);
        }
        self.room.notify_all();
        Taken {
            batches: std::mem::take(&mut queues.batches),
            calls: std::mem::take(&mut queues.calls),
            log_waits: !queues.log.is_empty(),
            closed: queues.closed,
        }
    }

    /// Whether a batch or a call waits.
    pub(super) fn is_waiting(&self) -> bool {
        let queues = self.lock();
        !queues.batches.is_empty() || !queues.calls.is_empty()
    }

    /// The oldest rows of the log, at most so many and so many bytes, at least one if there is one.
    pub(super) fn take_log(&self, rows_max: usize, bytes_max: usize) -> Vec<LogRow> {
        let mut queues = self.lock();
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while rows.len() < rows_max
            && let Some(row) = queues.log.front()
        {
            let row_bytes = row_bytes(row);
            if !rows.is_empty() && bytes + row_bytes > bytes_max {
                break;
            }
            bytes += row_bytes;
            queues.log_bytes = queues.log_bytes.saturating_sub(row_bytes);
            rows.extend(queues.log.pop_front());
        }
        rows
    }
}

/// About what a row takes in the file.
fn row_bytes(row: &LogRow) -> usize {
    let texts = |texts: &[std::sync::Arc<str>]| texts.iter().map(|text| text.len()).sum::<usize>();
    match row {
        LogRow::Delivery(row) => 256 + texts(&row.events) + texts(&row.groups),
        LogRow::Attempt(row) => 256 + row.error.as_ref().map_or(0, String::len) + row.response.len(),
    }
}

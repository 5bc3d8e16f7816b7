//! What the stations show of themselves: read-only views for the admin side, written by their owners only.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::SystemTime;

use dashmap::DashMap;

use crate::change::Lsn;

/// All views of a running daemon, shared by reference count.
#[derive(Debug, Default)]
pub struct Views {
    /// By source name.
    pub sources: DashMap<String, SourceView>,
    /// By sink name.
    pub sinks: DashMap<String, SinkView>,
    /// The daemon has been asked to stop.
    pub stopping: AtomicBool,
    /// Bytes held in memory and the limit, over all sources.
    pub memory_held: AtomicU64,
}

/// A source as it is now.
#[derive(Debug, Clone)]
pub struct SourceView {
    /// What it is doing.
    pub state: SourceState,
    /// Since when.
    pub since: SystemTime,
    /// Tables that a pattern names but that cannot be published, and other lasting faults that do not stop the stream.
    pub troubles: Vec<Trouble>,
}

/// What a source is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceState {
    /// First connection of this run is being made.
    Connecting,
    /// The last session failed; tried again at the time given.
    Waiting {
        /// Why, for a person.
        error: String,
        /// When the next try starts.
        retry_at: SystemTime,
    },
    /// Another session reads the slot.
    SlotBusy {
        /// The holder's backend process id, if the server said.
        pid: Option<i32>,
        /// When the next try starts.
        retry_at: SystemTime,
    },
    /// Changes are read as they come.
    Streaming,
    /// Connected, but not reading: memory is full of undelivered changes.
    Held,
    /// Cannot go on without a person.
    Stopped {
        /// Why.
        error: String,
        /// What mends it.
        advice: String,
    },
}

/// A sink as it is now.
#[derive(Debug, Clone, Default)]
pub struct SinkView {
    /// Its source.
    pub source: String,
    /// Paused by config or a person.
    pub paused: bool,
    /// Requests under way.
    pub in_flight: usize,
    /// Unacknowledged messages: in flight, or failed and waiting.
    pub ack_pending: usize,
    /// Limit of the former.
    pub max_ack_pending: usize,
    /// Messages not yet in a delivery.
    pub waiting: usize,
    /// Deliveries that failed and wait for their next attempt.
    pub retrying: usize,
    /// When the oldest unresolved message was received.
    pub oldest_received_at: Option<SystemTime>,
    /// Attempts failed in a row, over the sink.
    pub failures_in_a_row: u64,
    /// The last failure, cleared by a success.
    pub last_failure: Option<LastFailure>,
    /// Everything up to here is resolved.
    pub resolved: Lsn,
}

/// A sink's last failed attempt.
#[derive(Debug, Clone)]
pub struct LastFailure {
    /// When.
    pub at: SystemTime,
    /// Category of API.md 2.5.
    pub category: &'static str,
    /// For a person.
    pub message: String,
    /// When the delivery is tried next.
    pub next_attempt_at: Option<SystemTime>,
}

/// Something wrong that a person should mend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What is wrong.
    pub what: String,
    /// What mends it.
    pub advice: String,
}

/// Views are handed around like this.
pub type SharedViews = Arc<Views>;

//! What the stations show of themselves: read-only views for the admin side, written by their owners only.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use dashmap::DashMap;

use crate::change::Lsn;
use crate::logging::Health;
use crate::store::DamagedMessage;

/// All views of a running daemon, shared by reference count.
#[derive(Debug, Default)]
pub struct Views {
    /// By source name.
    pub sources: DashMap<String, SourceView>,
    /// By sink name.
    pub sinks: DashMap<String, SinkView>,
    /// The daemon has been asked to stop.
    pub stopping: AtomicBool,
    /// Bytes held in memory, over all sources.
    pub memory_held: AtomicU64,
    /// The limit of the former.
    pub memory_limit: AtomicU64,
    /// Whether the lines of the log are read.
    pub log: Arc<Health>,
    /// How each way in and out is protected; told once, at the start.
    pub links: OnceLock<BTreeMap<String, String>>,
    store: Mutex<StoreView>,
    unread: Mutex<Vec<(String, Trouble)>>,
    own: Mutex<BTreeMap<OwnKind, Trouble>>,
}

impl Views {
    /// Of a process whose log fares like this.
    pub fn new(log: Arc<Health>) -> Self {
        Self { log, ..Self::default() }
    }

    /// The store as it was last looked at.
    pub fn store(&self) -> StoreView {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Troubles of sources that are not read, because the config does not have them or no sink of theirs; by source name.
    pub fn unread(&self) -> Vec<(String, Trouble)> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Shows troubles of a source that is not read.
    pub fn show_unread(&self, source: &str, troubles: Vec<Trouble>) {
        let troubles = troubles.into_iter().map(|trouble| (source.to_owned(), trouble));
        self.unread.lock().unwrap_or_else(PoisonError::into_inner).extend(troubles);
    }

    /// What of the machine troubles the process.
    pub fn own(&self) -> BTreeMap<OwnKind, Trouble> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Shows such a trouble, or that it is over.
    pub fn show_own(&self, kind: OwnKind, trouble: Option<Trouble>) {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        match trouble {
            Some(trouble) => drop(own.insert(kind, trouble)),
            None => drop(own.remove(&kind)),
        }
    }

    /// Shows the store.
    pub fn show_store(&self, view: StoreView) {
        *self.store.lock().unwrap_or_else(PoisonError::into_inner) = view;
    }
}

/// The store as it is now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreView {
    /// `state.path`.
    pub path: PathBuf,
    /// Bytes of disk it takes.
    pub used_bytes: u64,
    /// Bytes of them in its WAL.
    pub wal_bytes: u64,
    /// `state.max_bytes`.
    pub max_bytes: u64,
    /// Bytes that can be put in before it is full.
    pub room_bytes: u64,
    /// It takes in nothing more but progress and ends of deliveries.
    pub is_full: bool,
    /// It cannot be opened, or writes to it fail.
    pub is_failing: bool,
    /// What is wrong: why it fails, else why it is full.
    pub trouble: Option<Trouble>,
    /// Rows of the log that were lost under pressure, since the start.
    pub log_rows_lost: u64,
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
    /// Tables of which changes are lost or stand still, while the others stream.
    pub errors: Vec<Trouble>,
    /// Tables whose own UPDATE and DELETE fail because they are published: as long as there is one, it is not ready.
    pub harms: Vec<Trouble>,
    /// What the stream needs and lacks, though it may not notice yet: as long as there is one, it is not ready.
    pub alarms: Vec<Alarm>,
    /// The server does not answer, and for how long; not ready either.
    pub silence: Option<Trouble>,
    /// When both of its connections were last heard, or were not waited for.
    pub heard_at: Option<Instant>,
    /// A session reads the slot, as far as the server says.
    pub slot_is_read: bool,
    /// What the store notes of single tables, so that it lasts over restarts.
    pub notes: NotesView,
    /// Sinks that left the config while the store holds something for them.
    pub absent: Vec<Trouble>,
    /// Changes that were lost with a slot in this life, newest last.
    pub gaps: Vec<Trouble>,
    /// Its slot, as the server has it.
    pub slot: SlotView,
    /// How far it has come. Written at every change of state and at least once a second.
    pub progress: WalProgress,
}

impl SourceView {
    /// A source in `state` since `now`, without troubles or progress.
    pub fn new(state: SourceState, now: SystemTime) -> Self {
        let [troubles, errors, harms, absent, gaps] = [const { Vec::new() }; 5];
        let (notes, slot, progress) = (NotesView::default(), SlotView::default(), WalProgress::default());
        let (alarms, silence, heard_at, slot_is_read) = (Vec::new(), None, None, true);
        Self {
            state,
            since: now,
            troubles,
            errors,
            harms,
            alarms,
            silence,
            heard_at,
            slot_is_read,
            notes,
            absent,
            gaps,
            slot,
            progress,
        }
    }

    /// Enters `state`; `since` stays while the kind of state does (a second failed try is still the same outage).
    pub fn enter(&mut self, state: SourceState, now: SystemTime) {
        if std::mem::discriminant(&self.state) != std::mem::discriminant(&state) {
            self.since = now;
        }
        self.state = state;
    }
}

/// What a stream needs beside its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vital {
    /// Its publication.
    Publication,
    /// Its slot.
    Slot,
    /// What its role may do.
    Role,
}

impl Vital {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Publication, Self::Slot, Self::Role];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Publication => "publication",
            Self::Slot => "slot",
            Self::Role => "role",
        }
    }
}

/// Something that a stream needs is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// What.
    pub vital: Vital,
    /// In words.
    pub trouble: Trouble,
}

/// What the store notes of single tables of a source and no person has accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NotesView {
    /// Gaps: changes of a table that were not captured and never will be.
    pub errors: Vec<Trouble>,
    /// The rest.
    pub warnings: Vec<Trouble>,
    /// How many there are of each kind.
    pub counts: Vec<(&'static str, u64)>,
}

/// A slot as the server last showed it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SlotView {
    /// Bytes of WAL that the server keeps for it.
    pub retained_bytes: u64,
    /// Bytes of WAL that may be written before it is in danger; `None`: no bound.
    pub safe_bytes: Option<u64>,
    /// Transactions since the oldest one whose deleted catalogue rows are kept for it.
    pub catalog_age: u32,
}

/// How far a source has come in the write-ahead log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WalProgress {
    /// Everything up to here has been read, by row changes or by a keepalive.
    pub received: Lsn,
    /// Everything up to here is resolved by every sink and confirmed to the slot.
    pub confirmed: Lsn,
    /// End of the server's log, as the server last said when it was asked. What was received since may be beyond.
    pub server: Lsn,
    /// Commit time of the last transaction read.
    pub last_commit_at: Option<SystemTime>,
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
        /// What mends it, or that it passes.
        advice: String,
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
    /// Connected, but reading nothing for a while in which nothing was acknowledged either.
    Held {
        /// Why, for a person.
        why: String,
        /// What mends it.
        advice: String,
    },
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
    /// Deliveries that have failed and are not acknowledged: they wait for their next attempt, or it is under way.
    pub retrying: usize,
    /// Groups in which messages wait behind a delivery that failed.
    pub groups_held: usize,
    /// Tables that are held up: a TRUNCATE, or the first change by another key or under another name, waits for all earlier
    /// changes of its table.
    pub tables_held: usize,
    /// Since when the first of these has been, in this process.
    pub tables_held_since: Option<SystemTime>,
    /// Messages that are not delivered, in memory or in the store.
    pub undelivered: u64,
    /// When the oldest of these was received; by a process before this one: committed.
    pub oldest_received_at: Option<SystemTime>,
    /// What of walhook's own machine keeps it waiting.
    pub own_trouble: Option<OwnTroubleView>,
    /// What answers take, while the endpoint is slow: it answers, but messages wait.
    pub slow: Option<Duration>,
    /// Attempts failed in a row, over the sink.
    pub failures_in_a_row: u64,
    /// When the first of these failed.
    pub failing_since: Option<SystemTime>,
    /// The last failure; cleared when no failed delivery is left.
    pub last_failure: Option<LastFailure>,
    /// Everything up to here is resolved.
    pub resolved: Lsn,
    /// Why it is paused, where walhook paused it (`retry.on_exhausted = "pause_sink"`).
    pub paused_why: Option<String>,
    /// Whether the endpoint is tried at all.
    pub breaker: BreakerView,
    /// Deliveries that the store keeps: they failed or hang, and are not acknowledged.
    pub stored_deliveries: u64,
    /// Messages that wait in the store behind others of their groups, or longer than the slot should.
    pub lane_messages: u64,
    /// Messages that overflowed to the store, because the sink cannot keep up.
    pub overflow_messages: u64,
    /// Deliveries that were given up and whose groups wait for a person (`retry.on_exhausted = "block_group"`).
    pub blocked_deliveries: u64,
    /// Dead letters that the store keeps.
    pub dead_letters: u64,
    /// Messages that were damaged in the store: dead letters, or their groups wait for a person.
    pub damaged: Vec<DamagedMessage>,
    /// How many there are, of which those above are the newest.
    pub damaged_count: u64,
}

/// A sink's breaker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BreakerView {
    /// Deliveries start freely.
    #[default]
    Closed,
    /// The endpoint as a whole fails: none start but one probe at a time.
    Open {
        /// When the next probe starts.
        until: SystemTime,
        /// Failures of the endpoint in a row.
        failures: u64,
    },
    /// It has answered again, and gets more and more at a time.
    RampUp {
        /// Requests at a time.
        limit: usize,
    },
}

/// Why a sink waits whose `hold_reason` this is.
pub const OWN_TROUBLE: &str = "own_trouble";

/// A trouble of walhook's own machine, as a sink has met it.
#[derive(Debug, Clone)]
pub struct OwnTroubleView {
    /// Its category.
    pub category: &'static str,
    /// For a person.
    pub message: String,
    /// Since when.
    pub since: SystemTime,
}

/// What of the machine troubles the whole process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnKind {
    /// The process has not run for a while.
    Slept,
    /// The wall clock was set.
    ClockJump,
    /// Fewer files may be open than the sinks may need.
    Descriptors,
}

impl OwnKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Slept, Self::ClockJump, Self::Descriptors];

    /// The label of the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Slept => "slept",
            Self::ClockJump => "clock_jump",
            Self::Descriptors => "descriptors",
        }
    }
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

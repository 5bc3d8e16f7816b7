//! What goes into the store: batches, each written as a whole or not at all, in the order in which they were submitted.
//!
//! A sink sends one [`Batch`] at a time. It holds everything that happened to the sink since the batch before, with the
//! progress that is true after it, so that the store never knows of a message without knowing of those before it in its
//! group.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::change::{Lsn, Position};
use crate::deliver::frozen::DeliveryId;
use crate::record::message::MessageId;
use crate::schedule::StoredScope;
use crate::ties::{Barrier, GroupId, Groups, ScopeId, Tied, Ties};

/// Names a sink in the store, for as long as the store keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SinkKey(pub i64);

/// The lane of the messages that belong to no group. A group may by chance have the same hash, and shares the lane then.
pub const UNGROUPED: GroupId = GroupId(0);

/// What is known of a message beside its JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageFacts {
    /// Its id.
    pub id: MessageId,
    /// Where it stands in the order of commits.
    pub position: Position,
    /// Its groups.
    pub groups: Groups,
    /// Its table's: [`ScopeId::of_event`] of `event`, or unknown for what an earlier version put into a lane.
    pub scope: ScopeId,
    /// What it is to the others of its table.
    pub barrier: Barrier,
    /// Commit time, microseconds since 1970-01-01 UTC.
    pub commit_micros: i64,
    /// `schema.table.action`.
    pub event: Arc<str>,
    /// Its group's name for people.
    pub group: Option<Arc<str>>,
}

impl MessageFacts {
    /// What ties it to others.
    pub fn ties(&self) -> Ties {
        Ties { groups: self.groups, scope: self.scope, barrier: self.barrier }
    }

    /// The same with where it stands.
    pub fn tied(&self) -> Tied {
        Tied { position: self.position, ties: self.ties() }
    }
}

/// A message that waits in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptMessage {
    /// What is known of it.
    pub facts: MessageFacts,
    /// Its JSON, byte for byte as it is sent.
    pub json: Bytes,
}

/// Where a waiting message stands in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Home {
    /// In the lanes of its groups.
    Lane(Position),
    /// In a page of the overflow.
    Page {
        /// Which page.
        page: u64,
        /// Which of its messages, from 0.
        index: u32,
    },
}

/// One message of a delivery that the store keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What is known of it.
    pub facts: MessageFacts,
    /// Where its JSON stands in the delivery's body.
    pub bytes: Range<usize>,
}

/// How far a delivery has come.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Tries {
    /// Attempts that count.
    pub attempts: u32,
    /// Failures, ours included.
    pub failures: u32,
    /// When the first attempt began, microseconds since 1970-01-01 UTC.
    pub first_attempt_micros: Option<i64>,
    /// When it is tried next; `None`: not by itself.
    pub next_attempt_micros: Option<i64>,
    /// Its last failure.
    pub last: Option<LastFailure>,
}

/// How an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastFailure {
    /// When, microseconds since 1970-01-01 UTC.
    pub at_micros: i64,
    /// The status, if an answer began.
    pub status: Option<u16>,
    /// `Category::as_str`.
    pub category: Arc<str>,
    /// For a person.
    pub message: String,
}

/// A delivery that the store keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptDelivery {
    /// Its id.
    pub id: DeliveryId,
    /// The delivery that was split into this one and others.
    pub parent: Option<DeliveryId>,
    /// When it was formed, microseconds since 1970-01-01 UTC.
    pub created_micros: i64,
    /// Its messages in order.
    pub members: Vec<Member>,
    /// How far it has come.
    pub tries: Tries,
    /// Given up, but its groups wait for a person (`retry.on_exhausted = "block_group"`).
    pub blocked: bool,
}

/// Why a delivery was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadReason {
    /// `retry.max_attempts`.
    MaxAttempts,
    /// `retry.max_age`.
    MaxAge,
    /// `limits.max_message`: nothing was sent.
    TooLarge,
    /// What the store has of it is not what was written: nothing was sent.
    Damaged,
}

impl DeadReason {
    /// The word used in the store, logs, metrics and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MaxAttempts => "max_attempts",
            Self::MaxAge => "max_age",
            Self::TooLarge => "too_large",
            Self::Damaged => "damaged",
        }
    }
}

/// One thing that happened to a sink.
#[derive(Clone, Debug)]
pub enum Op {
    /// A delivery that failed or hangs: from here on the store has it.
    Park {
        /// What it is.
        delivery: KeptDelivery,
        /// What is sent.
        body: Bytes,
    },
    /// A parked delivery failed again, or is blocked.
    Tried {
        /// Which.
        id: DeliveryId,
        /// How far it has come.
        tries: Tries,
        /// See [`KeptDelivery::blocked`].
        blocked: bool,
    },
    /// A parked delivery was acknowledged.
    Delivered(DeliveryId),
    /// A parked delivery was given up. It is kept, with its body, for `state.dead_letter_retention`.
    Dead {
        /// Which.
        id: DeliveryId,
        /// When, microseconds since 1970-01-01 UTC.
        at_micros: i64,
        /// Why.
        reason: DeadReason,
        /// How far it had come.
        tries: Tries,
    },
    /// A parked delivery became these, in their order.
    Split {
        /// Which.
        parent: DeliveryId,
        /// Its parts with their bodies.
        parts: Vec<(KeptDelivery, Bytes)>,
    },
    /// Messages that wait behind others of their groups, or longer than the slot should. Each comes after all that its lanes
    /// hold, except where its position says otherwise.
    Lanes(Vec<KeptMessage>),
    /// The newest messages of a sink that cannot keep up, after all pages before.
    Page {
        /// Its number: one more than the page before.
        page: u64,
        /// At least one.
        messages: Vec<KeptMessage>,
    },
    /// Messages that were delivered, or are kept otherwise from here on.
    Leave(Vec<Home>),
    /// The sink was paused by `retry.on_exhausted = "pause_sink"`.
    Paused {
        /// Why, for a person.
        why: String,
    },
    /// A table's changes are grouped so.
    Grouped {
        /// How, and from which on.
        grouped: Grouped,
        /// Table and `since` of what need not be known any more.
        forgotten: Vec<(u32, Position)>,
    },
}

/// What a table's changes are grouped by, from one of them on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grouped {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Its name's then.
    pub scope: ScopeId,
    /// The same text for the same grouping.
    pub rule: Arc<str>,
    /// The first change.
    pub since: Position,
    /// What that one is.
    pub barrier: Barrier,
}

/// How far a sink is: what must not come again after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct KeptProgress {
    /// Everything up to here is resolved: what may be confirmed.
    pub resolved: Lsn,
    /// Everything up to this position is resolved, except `unresolved`.
    pub high: Option<Position>,
    /// Ascending, all before `high`.
    pub unresolved: Vec<Position>,
}

/// Everything that happened to a sink since its last batch.
#[derive(Debug)]
pub struct Batch {
    /// Which sink.
    pub sink: SinkKey,
    /// In the order in which it happened.
    pub ops: Vec<Op>,
    /// What is true after it.
    pub progress: Option<KeptProgress>,
}

/// Messages of one group in the lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneSummary {
    /// Which group.
    pub group: GroupId,
    /// The first one's table, if the store knows.
    pub scope: Option<ScopeId>,
    /// How many.
    pub messages: u64,
    /// The first one's position.
    pub first: Position,
    /// The last one's position.
    pub last: Position,
}

/// The overflow of a sink.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct OverflowSummary {
    /// Messages in it.
    pub messages: u64,
    /// The number of its first page, if there is one.
    pub first_page: Option<u64>,
    /// The number of the next page to be written: higher than any that was.
    pub next_page: u64,
    /// Of each page, in order: when its first message was committed, and how many are left.
    pub pages: Vec<(i64, u64)>,
}

/// Messages in lanes, neighbours in the order of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneSpan {
    /// The first.
    pub first: Position,
    /// The last.
    pub last: Position,
    /// How many.
    pub messages: u64,
    /// When the first was committed, microseconds since 1970-01-01 UTC; `None`: it is damaged.
    pub committed_micros: Option<i64>,
}

/// What the store has of a sink when the daemon starts: no bodies, no messages.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Unless the sink is new.
    pub progress: Option<KeptProgress>,
    /// Why it is paused, if `retry.on_exhausted = "pause_sink"` did that.
    pub paused: Option<String>,
    /// Deliveries that are not dead (blocked ones are among them).
    pub deliveries: Vec<KeptDelivery>,
    /// By group.
    pub lanes: Vec<LaneSummary>,
    /// When what is in the lanes was committed, in order; roughly, where there is much.
    pub lane_spans: Vec<LaneSpan>,
    /// Barriers in the lanes, in order.
    pub barriers: Vec<Tied>,
    /// The other messages in the lanes that have groups, by table and in order.
    pub scopes: Vec<StoredScope>,
    /// What its tables are grouped by, by table and in order.
    pub tables: Vec<Grouped>,
    /// What overflowed.
    pub overflow: OverflowSummary,
    /// Dead letters.
    pub dead_letters: u64,
    /// Messages that were found to be damaged, as far as the store still has them.
    pub damaged: Vec<DamagedMessage>,
    /// How many there are, of which those above are the newest, the last one last.
    pub damaged_count: u64,
    /// Deliveries of which nobody knows the messages any more.
    pub unreadable: Vec<(DeliveryId, Tries)>,
}

/// What is read from one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneWant {
    /// Which group.
    pub group: GroupId,
    /// Only messages after this.
    pub after: Option<Position>,
}

/// The next messages of one lane, in order.
#[derive(Clone, Debug)]
pub struct LaneRead {
    /// Which group.
    pub group: GroupId,
    /// At most as many as were asked for.
    pub messages: Vec<KeptMessage>,
}

/// The body of a delivery as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptBody {
    /// As it was frozen, but where a message is damaged spaces stand; empty: none of it can be read.
    pub bytes: Bytes,
    /// Indexes of the damaged messages, where the rest can be read.
    pub damaged: Vec<usize>,
}

/// A message that was damaged in the store, and is a dead letter or waits for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedMessage {
    /// The delivery that the store has for it.
    pub delivery: Option<DeliveryId>,
    /// `msg_…`; or `dlv_…` of a delivery whose messages cannot be told.
    pub id: String,
    /// Where it stood, if that is known.
    pub position: Option<Position>,
    /// Its group, if that is known.
    pub group: Option<GroupId>,
    /// Its group waits for a person.
    pub blocked: bool,
}

/// A page of the overflow.
#[derive(Clone, Debug)]
pub struct Page {
    /// Its number.
    pub page: u64,
    /// Those of its messages that have not left, in order, each with its index in the page.
    pub messages: Vec<(u32, KeptMessage)>,
}

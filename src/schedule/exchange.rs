//! What goes into a scheduler and what comes out.

use std::time::{Duration, Instant};

use super::breaker::BreakerState;
use super::retry::{Exhausted, Limits, RetryRule};
use crate::change::{Lsn, Position};
use crate::ties::{Barrier, GroupId, Groups, ScopeId, Tied, Ties};

/// A sink's rules, as the scheduler needs them.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Messages in a delivery at most; at least 1.
    pub batch_size: usize,
    /// Bytes in a delivery of several messages at most.
    pub batch_bytes: usize,
    /// How long a delivery that is not full waits for more.
    pub batch_timeout: Duration,
    /// Unacknowledged messages at most; at least 1.
    pub max_ack_pending: usize,
    /// Attempts under way at most; at least 1.
    pub max_in_flight: usize,
    /// Waits between attempts.
    pub retry: RetryRule,
    /// When a delivery is given up.
    pub limits: Limits,
    /// What becomes of the rest then.
    pub on_exhausted: OnExhausted,
    /// The refusal from which on a delivery of several messages is split; at least 1.
    pub split_after: u32,
    /// Whether what cannot be delivered soon goes to the store (`state.hold = "store"`).
    pub keeps: bool,
    /// Deliverable messages and their bytes beyond which nothing more is read back from the store.
    pub enough: (usize, usize),
    /// Bytes of messages that are written at once at most, but for a larger message alone.
    pub write_bytes: usize,
}

/// A message for the scheduler: `payload` is carried through untouched.
#[derive(Clone, Copy, Debug)]
pub struct Message<P> {
    /// Its groups.
    pub groups: Groups,
    /// Its table's.
    pub scope: ScopeId,
    /// What it is to the others of its table.
    pub barrier: Barrier,
    /// Bytes it adds to a body.
    pub bytes: usize,
    /// Where it stands in the order of commits.
    pub position: Position,
    /// What the deliverer needs.
    pub payload: P,
}

impl<P> Message<P> {
    /// What ties it to others.
    pub fn ties(&self) -> Ties {
        Ties { groups: self.groups, scope: self.scope, barrier: self.barrier }
    }
}

/// Names a delivery within one life of a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeliveryKey(pub u64);

/// Names what a scheduler wants written, until it is told that it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WriteId(pub u64);

/// What is to be done now.
#[derive(Debug)]
pub enum Command<P> {
    /// Make a delivery of these messages, in this order, and start its first attempt.
    Form {
        /// Its name.
        delivery: DeliveryKey,
        /// At least one.
        messages: Vec<P>,
    },
    /// Start another attempt of a delivery.
    Attempt {
        /// Which.
        delivery: DeliveryKey,
        /// 2, 3, …; again 1 if the first failed for reasons of ours.
        number: u32,
    },
    /// Write the delivery, which failed or hangs, to the store; or say [`super::Scheduler::not_written`].
    Park {
        /// Which.
        delivery: DeliveryKey,
        /// To be told when it is durable.
        write: WriteId,
    },
    /// Write these waiting messages to the lanes of their groups.
    Spill {
        /// To be told when they are durable.
        write: WriteId,
        /// In an order in which no message comes before an older one of its groups.
        messages: Vec<Message<P>>,
    },
    /// Write these messages, the newest of the sink, as the next page of its overflow.
    Overflow {
        /// To be told when they are durable.
        write: WriteId,
        /// In the order of arrival.
        messages: Vec<Message<P>>,
    },
    /// Read the next messages of these lanes.
    ReadLanes(Vec<Want>),
    /// Read the next pages of the overflow.
    ReadOverflow,
}

/// The next messages of a group, as they stand in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// Which group.
    pub group: GroupId,
    /// Only those after this.
    pub after: Option<Position>,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged: its messages are resolved.
    Acknowledged,
    /// Failed as a whole.
    Failed(Failure),
}

/// Why an attempt failed, as far as the scheduler cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Failure {
    /// A failure of ours (could not render, stopping, …): it does not count as an attempt.
    pub ours: bool,
    /// A trouble of walhook's own machine: the sink waits as a whole, and nothing counts for the delivery.
    pub own: bool,
    /// It speaks of the endpoint, not of this delivery: it counts for the breaker.
    pub trouble: bool,
    /// It may come from one message of the delivery (400, 413, 422): splitting may help.
    pub refused: bool,
    /// Its message is too large to be sent, which no further attempt will change: it is given up.
    pub too_large: bool,
    /// A message of it is damaged: it parts from the others at once, and is given up when it stands alone.
    pub damaged: bool,
    /// The endpoint asked everyone to wait so long (`Retry-After` of a 429 or 503).
    pub retry_after: Option<Duration>,
}

/// What became of a delivery by an [`Outcome`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Resolved.
    Done,
    /// Tried again at this time, or later when the sink is held.
    Retry(Instant),
    /// It is no more: these deliveries have its messages.
    Split {
        /// Name and indexes of members, in the order of the whole.
        parts: [(DeliveryKey, Vec<usize>); 2],
        /// They are to be written to the store, in the place of the whole if that is there.
        write: Option<WriteId>,
    },
    /// Given up: a dead letter. Its groups go on.
    Dead {
        /// Why.
        why: Exhausted,
        /// The sink is paused for it.
        paused: bool,
    },
    /// Given up, and its groups wait for a person.
    Blocked(Exhausted),
}

/// What becomes of the rest when a delivery is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExhausted {
    /// Its groups go on.
    Continue,
    /// Its groups wait for a person.
    BlockGroup,
    /// Its groups go on, and the sink is paused.
    PauseSink,
}

/// What surrounds a sink at a moment, as far as the scheduler goes by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// How much of it there is.
    pub memory: Pressure,
    /// Whether the store takes what waits.
    pub store: StoreRoom,
    /// Messages of a life before are still to come again: until they have, nothing is read back, since an older message of
    /// its group may be among them.
    pub is_replaying: bool,
    /// How long the process has not run since it began: that counts for no delivery's age.
    pub slept: Duration,
}

impl World {
    /// Nothing is in the way.
    pub const EASY: Self = Self {
        memory: Pressure { is_share_full: false, is_short: false },
        store: StoreRoom::Open,
        is_replaying: false,
        slept: Duration::ZERO,
    };
}

/// Why no attempt starts now, in the admin API's words for `hold_reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotNow {
    /// `sink_paused`: by a person, the configuration, or a delivery that was given up.
    Paused,
    /// `store_stalled`: what is delivered could not be noted.
    StoreStalled,
    /// `memory`: it is short, and one attempt at a time is under way.
    Memory,
    /// `max_in_flight`: as many attempts as may be are under way.
    MaxInFlight,
    /// `retry_after`: the endpoint said when it wants to hear again.
    RetryAfter,
    /// `breaker_open`: the endpoint fails as a whole, or has only begun to answer again.
    BreakerOpen,
    /// `own_trouble`: walhook's own machine is in trouble.
    OwnTrouble,
}

/// How short memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// The sink's share is full, or the source falls behind because of it: new messages go to the store.
    pub is_share_full: bool,
    /// All of it is: one delivery at a time, and no page is read while something waits.
    pub is_short: bool,
}

/// Whether the store takes what waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreRoom {
    /// It does.
    Open,
    /// Not for a moment: enough is on its way.
    Busy,
    /// It is full, or cannot be written: what waits stays in memory, and nothing is given up.
    Shut,
    /// It has not taken anything for long: no attempt starts, since what is delivered could not be noted and would come
    /// again after a crash.
    Stalled,
}

impl StoreRoom {
    /// Whether what has to be kept can be, now or in a moment.
    pub(super) fn takes_more(self) -> bool {
        match self {
            Self::Open | Self::Busy => true,
            Self::Shut | Self::Stalled => false,
        }
    }
}

/// A delivery of a life before, as the store has it.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Of its messages, in order.
    pub members: Vec<Tied>,
    /// The first message's position: deliveries with a group in common go in this order.
    pub position: Position,
    /// Attempts that count.
    pub attempts: u32,
    /// Failures, ours included.
    pub failures: u32,
    /// Failures with a status of which splitting may help.
    pub refusals: u32,
    /// When its first attempt began.
    pub first_attempt: Option<Instant>,
    /// When it is due; `None`: it is blocked.
    pub due: Option<Instant>,
    /// It was split off another.
    pub is_part: bool,
}

/// Messages of one table in the store's lanes, of a life before, between a position and the next that is told. Every barrier in
/// the store, but for those in its pages, and every unresolved message has such a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredScope {
    /// Which table; unknown: of all that do not say.
    pub scope: ScopeId,
    /// They come after this; `None`: from the first on.
    pub after: Option<Position>,
    /// How many: those without a group are none of them.
    pub messages: usize,
}

/// How far a sink is: what must not come again after a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Everything up to here is resolved.
    pub resolved: Lsn,
    /// Everything up to this position is resolved, except `unresolved`.
    pub high: Option<Position>,
    /// Ascending, all before `high`.
    pub unresolved: Vec<Position>,
}

/// Figures for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Attempts under way.
    pub in_flight: usize,
    /// Messages in deliveries that are not acknowledged.
    pub ack_pending: usize,
    /// Messages in memory that are not in a delivery.
    pub waiting: usize,
    /// Bytes they add to bodies.
    pub waiting_bytes: usize,
    /// Of these, deliverable as far as their groups go.
    pub ready: usize,
    /// Bytes of the ready ones.
    pub ready_bytes: usize,
    /// Deliveries that have failed and are not acknowledged: they wait for their next attempt, or it is under way.
    pub failed: usize,
    /// Groups of these deliveries: their later messages wait.
    pub groups_held: usize,
    /// Messages that are not resolved.
    pub unresolved: usize,
    /// Messages that are not delivered, wherever they are.
    pub undelivered: usize,
    /// Deliveries that the store has.
    pub parked: usize,
    /// Deliveries that were given up and wait for a person.
    pub blocked: usize,
    /// Messages in the store's lanes that are not in memory. One that belongs to two groups counts twice.
    pub lane_messages: usize,
    /// Messages in the store's overflow that are not in memory.
    pub overflow_messages: usize,
    /// Tables of which a barrier is pending.
    pub barriers_pending: usize,
    /// The endpoint's health.
    pub breaker: BreakerState,
}

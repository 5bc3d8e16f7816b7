//! What goes into a scheduler and what comes out.

use std::time::{Duration, Instant};

use super::retry::RetryRule;

/// A group: a hash of the table and the group's values. Two groups with the same hash are served as one, which costs
/// parallelism and breaks nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u64);

/// The groups a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Groups {
    /// None: it has no order.
    None,
    /// One.
    One(GroupId),
    /// An update that moved the row from one group to another: it waits for both and blocks both.
    Two(GroupId, GroupId),
}

impl Groups {
    /// Both groups of a moved row, which may be the same.
    pub fn moved(old: GroupId, new: GroupId) -> Self {
        if old == new { Self::One(new) } else { Self::Two(old, new) }
    }

    /// The groups.
    pub fn iter(self) -> impl Iterator<Item = GroupId> {
        let (first, second) = match self {
            Self::None => (None, None),
            Self::One(group) => (Some(group), None),
            Self::Two(old, new) => (Some(old), Some(new)),
        };
        first.into_iter().chain(second)
    }

    /// Which of a message's two queue links belongs to `group`.
    pub(super) fn side(self, group: GroupId) -> usize {
        match self {
            Self::Two(_, new) if new == group => 1,
            Self::None | Self::One(_) | Self::Two(..) => 0,
        }
    }
}

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
}

/// A message for the scheduler: `payload` is carried through untouched.
#[derive(Clone, Copy, Debug)]
pub struct Message<P> {
    /// Its groups.
    pub groups: Groups,
    /// Bytes it adds to a body.
    pub bytes: usize,
    /// What the deliverer needs.
    pub payload: P,
}

/// Names a delivery within one life of a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeliveryKey(pub u64);

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
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged: its messages are resolved.
    Acknowledged,
    /// Failed as a whole: it is tried again.
    Failed(Failure),
}

/// Why an attempt failed, as far as the scheduler cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Failure {
    /// A failure of ours (could not render, stopping): it does not count as an attempt.
    pub ours: bool,
    /// The endpoint asked everyone to wait so long (`Retry-After` of a 429 or 503).
    pub retry_after: Option<Duration>,
}

/// What became of a delivery by an [`Outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Resolved.
    Done,
    /// Tried again at this time, or later when the sink is held.
    Retry(Instant),
}

/// Figures for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Attempts under way.
    pub in_flight: usize,
    /// Messages in deliveries that are not acknowledged.
    pub ack_pending: usize,
    /// Messages not in a delivery.
    pub waiting: usize,
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
}

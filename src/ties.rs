//! What ties a change to others: the groups that keep its order, its table, and whether it is a barrier there.
//!
//! The source finds it out, the schedule goes by it, and the store keeps it.

use std::fmt;

use crate::change::Position;

/// A group: a hash of the table and the group's values. Two groups with the same hash are served as one, which costs
/// parallelism and breaks nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u64);

/// As logs name it: its text may be a person's, and as long as a column may be.
impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

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
    pub(crate) fn side(self, group: GroupId) -> usize {
        match self {
            Self::Two(_, new) if new == group => 1,
            Self::None | Self::One(_) | Self::Two(..) => 0,
        }
    }
}

/// A table, as far as barriers go: a hash of its name. Two tables with the same hash share their barriers, which costs
/// parallelism and breaks nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScopeId(pub u64);

impl ScopeId {
    /// The table is not known: every barrier waits for such a message.
    pub const UNKNOWN: Self = Self(0);

    /// Of the table of an event type `schema.table.action`: what stands before the last dot.
    pub fn of_event(event: &str) -> Self {
        let table = event.rsplit_once('.').map_or(event, |(table, _)| table);
        Self(xxhash_rust::xxh3::xxh3_64(table.as_bytes()).max(1))
    }
}

/// What a message is to the others of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// Nothing: its groups say all.
    None,
    /// It waits until all earlier messages of its scope are delivered, dead or discarded, and later ones wait until it is: a
    /// TRUNCATE, or the first message of a table whose rows are grouped by another rule from there on.
    Scope,
    /// The same, and it waits likewise for, and holds up, those of the scope that the table had before it was renamed.
    Scopes(ScopeId),
}

/// What ties a message to others: what it waits for, and what waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ties {
    /// Its groups.
    pub groups: Groups,
    /// Its table's.
    pub scope: ScopeId,
    /// What it is to the others of its table.
    pub barrier: Barrier,
}

/// A message that the store has, of a life before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tied {
    /// Where it stands in the order of commits.
    pub position: Position,
    /// What ties it to others.
    pub ties: Ties,
}

//! The door between a source and its sinks: changes and marks one way, progress and appetite the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::change::{Change, Lsn};
use crate::memory::Charge;
use crate::ties::{Groups, ScopeId};

/// One thing a source tells a sink, in stream order.
#[derive(Debug)]
pub enum Feed {
    /// Comes first: which cluster the changes are of.
    Database {
        /// What `IDENTIFY_SYSTEM` calls `systemid`.
        system_id: u64,
    },
    /// A table was described. Comes before the first change of each table of a session, and again when its name or its rule
    /// is another.
    Table {
        /// Its name's.
        scope: ScopeId,
        /// `pg_class.oid`, which stays when a table is renamed.
        oid: u32,
        /// By which columns its rows are grouped from here on, as one text that is the same for the same grouping.
        rule: Arc<str>,
    },
    /// A change for the sink.
    Change {
        /// The change.
        change: Change,
        /// Its groups under the sink's rule.
        groups: Groups,
        /// Its table's.
        scope: ScopeId,
        /// It is a barrier by itself: a TRUNCATE where rows of the table have groups of their own.
        barrier: bool,
    },
    /// Once all that was fed before is resolved, everything up to here is.
    Mark(Lsn),
    /// What the batch itself weighs, until it is taken in: the list of changes, not what is in them.
    Weight(Charge),
}

/// What a sink tells its source. Shared by both, written by the sink only.
#[derive(Debug)]
pub struct Progress {
    resolved: AtomicU64,
    saturated: AtomicBool,
    acknowledged: AtomicU64,
    /// The source may read no more for this sink: it has no room, neither in memory nor in the store.
    holds: AtomicBool,
    /// The source cannot keep up with the server because of this sink: it should overflow to the store.
    overdue: AtomicBool,
    /// Told when the sink, having had enough, wants more.
    appetite: Arc<Notify>,
}

impl Progress {
    /// A hungry sink that has resolved nothing. `appetite` is shared by all sinks of a source.
    pub fn new(appetite: Arc<Notify>) -> Self {
        let (resolved, acknowledged) = (AtomicU64::new(0), AtomicU64::new(0));
        let [saturated, holds, overdue] = [false; 3].map(AtomicBool::new);
        Self { resolved, saturated, acknowledged, holds, overdue, appetite }
    }

    /// Everything up to here is resolved for this sink; [`Lsn::ZERO`] until its first mark.
    pub fn resolved(&self) -> Lsn {
        Lsn(self.resolved.load(Ordering::Acquire))
    }

    /// Whether more changes would not let the sink deliver more at once.
    pub fn is_saturated(&self) -> bool {
        self.saturated.load(Ordering::Acquire)
    }

    /// Whether the source must stop reading for this sink's sake.
    pub fn holds(&self) -> bool {
        self.holds.load(Ordering::Acquire)
    }

    /// For the source: see [`Self::is_overdue`].
    pub fn set_overdue(&self, overdue: bool) {
        self.overdue.store(overdue, Ordering::Release);
    }

    /// Whether the source falls behind the server while this sink is saturated.
    pub fn is_overdue(&self) -> bool {
        self.overdue.load(Ordering::Acquire)
    }

    /// Deliveries acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// For the sink.
    pub(super) fn acknowledge(&self) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
    }

    /// For the sink: everything up to `lsn` is resolved. Only grows.
    pub(super) fn resolve(&self, lsn: Lsn) {
        let before = self.resolved.swap(lsn.0, Ordering::AcqRel);
        assert!(before <= lsn.0, "progress went back from {} to {lsn}", Lsn(before));
    }

    /// For the sink: see [`Self::holds`].
    pub(super) fn set_holds(&self, holds: bool) {
        if self.holds.swap(holds, Ordering::AcqRel) && !holds {
            self.appetite.notify_one();
        }
    }

    /// For the sink.
    pub(super) fn set_saturated(&self, saturated: bool) {
        if self.saturated.swap(saturated, Ordering::AcqRel) && !saturated {
            self.appetite.notify_one();
        }
    }
}

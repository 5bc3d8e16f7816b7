//! What a life before has left in the store besides deliveries: how far it had come, lanes, barriers, and how much overflow.

use std::time::Instant;

use super::{GroupId, Lsn, Position, Scheduler, ScopeId, StoredScope, StoredSpan, Tied, Watermark};

impl<P> Scheduler<P> {
    /// The store has messages of these groups from a life before. Comes before anything else but [`Self::restore`].
    pub fn restore_waiting(&mut self, lanes: impl IntoIterator<Item = (GroupId, usize, Position)>, overflow: usize) {
        for (group, messages, last) in lanes {
            self.backlog.restore_lane(group, messages, last);
        }
        self.overflow.restore(overflow);
        if overflow > 0 {
            self.backlog.barriers.nothing_has_come_back();
        }
    }

    /// Where lanes begin that are of one table. Comes after [`Self::restore_waiting`].
    pub fn restore_beginnings(&mut self, lanes: impl IntoIterator<Item = (GroupId, ScopeId, Position)>) {
        lanes.into_iter().for_each(|(group, scope, first)| self.backlog.restore_beginning(group, scope, first));
    }

    /// The barriers in the lanes, and how many messages of each table stand between them. Comes between [`Self::restore`] and
    /// [`Self::restore_waiting`].
    pub fn restore_scopes(
        &mut self,
        now: Instant,
        barriers: impl IntoIterator<Item = Tied>,
        scopes: impl IntoIterator<Item = StoredScope>,
    ) {
        for Tied { position, ties } in barriers {
            self.backlog.barriers.admit(now, &ties, position);
        }
        scopes.into_iter().for_each(|scope| self.backlog.barriers.restore_left(&scope));
    }

    /// When what the store has arrived, as far as that is known: what is in deliveries and lanes, in no order, and by pages
    /// what has overflowed.
    pub fn restore_arrivals(&mut self, stored: Vec<StoredSpan>, pages: impl IntoIterator<Item = (Instant, usize)>) {
        self.undelivered.restore(stored);
        self.undelivered.restore_pages(pages);
    }

    /// How far it had come in the life before. Comes before anything else.
    pub fn restore_progress(&mut self, resolved: Lsn, high: Option<Position>) {
        self.watermark = Watermark::resumed(resolved, high);
    }
}

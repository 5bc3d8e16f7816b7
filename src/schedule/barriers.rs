//! Messages of a table that stand between all its earlier and all its later ones, whatever their groups.
//!
//! Of each table ([`ScopeId`]) it is counted how many messages are admitted and not delivered: in memory, in a lane, or in a
//! delivery that is not acknowledged. Pending barriers part this count into segments. A barrier may go when it is the first
//! of its tables and nothing is left before it; any other message when no pending barrier stands before it. So whatever is
//! in a delivery is in the first segment, or is the first barrier, except after a restart: what comes again as a barrier may
//! be older than messages in the store's deliveries. It does not wait for these, nor they for it.
//!
//! A group whose first message may not go sleeps until it can: behind the last barrier before the message, or, if the message
//! is a barrier, with it. Messages without a group have no order; they are neither counted nor held up.
//!
//! Without pending barriers all this costs one look-up for a message that is admitted and one for a message that is resolved.
//!
//! After a restart the lanes hold messages of which only the positions between which they stand are known. That is enough,
//! since a barrier that comes after them is at one of these positions. Messages of the overflow count when they are admitted,
//! whichever life they are of; a barrier in a lane waits until those before it have come back ([`Barriers::come_back_to`]).

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::hash::BuildHasherDefault;
use std::time::Instant;

use hashbrown::HashMap;

use super::queue::IdentityHasher;
use super::{Barrier, DeliveryKey, GroupId, Groups, ScopeId, StoredScope, Ties};
use crate::change::Position;

/// Where a pending barrier is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// In this slot of the backlog, and in no lane.
    Memory(u32),
    /// In a delivery, or in a part of one, that this one's key holds the groups of.
    Held(DeliveryKey),
    /// In a lane, or it was in a delivery of the store when the process began.
    Store,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Barriers {
    scopes: HashMap<ScopeId, Scope, BuildHasherDefault<IdentityHasher>>,
    /// Tables with pending barriers.
    held: usize,
    /// Messages that are not delivered and of which the table is not known: all barriers wait for them.
    unknown: usize,
    /// Some table knows what a life before has left.
    has_left: bool,
    /// The store has lost messages that were counted: counts are at most what they should be.
    has_lost: bool,
    /// How far the overflow has come back, while there is something in it of a life before.
    come_back_to: Option<Position>,
    /// Groups whose sleep has ended.
    woken: Vec<GroupId>,
}

/// One table.
#[derive(Debug, Default)]
struct Scope {
    /// Messages before the first pending barrier; all, if there is none.
    first: usize,
    /// In the order of positions.
    pending: VecDeque<Pending>,
    /// Messages in lanes that a life before has left: how many stand between this position and the next.
    left: Vec<(Position, usize)>,
    /// Messages of deliveries that a life before has left, while barriers may come that are older.
    members: BTreeSet<Position>,
}

#[derive(Debug)]
struct Pending {
    position: Position,
    since: Instant,
    whereabouts: Whereabouts,
    /// Messages between it and the next.
    behind: usize,
    /// Its own groups, if it was their turn.
    own: Vec<GroupId>,
    /// Groups whose next message is between it and the next.
    sleeping: HashSet<GroupId, BuildHasherDefault<IdentityHasher>>,
}

impl Ties {
    fn is_counted(&self) -> bool {
        self.groups != Groups::None || self.scope == ScopeId::UNKNOWN
    }

    /// Its tables, if it is a barrier.
    fn barred(&self) -> impl Iterator<Item = ScopeId> + use<> {
        let (one, other) = match self.barrier {
            Barrier::None => (None, None),
            Barrier::Scope => (Some(self.scope), None),
            Barrier::Scopes(old) => (Some(self.scope), Some(old).filter(|old| *old != self.scope)),
        };
        let is_grouped = self.groups != Groups::None;
        one.into_iter().chain(other).filter(move |_| is_grouped)
    }

    fn is_barrier(&self) -> bool {
        self.barred().next().is_some()
    }
}

impl Barriers {
    /// Whether no barrier is pending.
    pub(super) fn is_idle(&self) -> bool {
        self.held == 0
    }

    /// Tables with pending barriers.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Since when the oldest pending barrier has been pending. Looks through all tables.
    pub(super) fn oldest(&self) -> Option<Instant> {
        if self.is_idle() {
            return None;
        }
        self.scopes.values().filter_map(|scope| scope.pending.front()).map(|pending| pending.since).min()
    }

    /// Whether anything of the table is not delivered, as far as it was admitted.
    pub(super) fn is_waiting(&self, scope: ScopeId) -> bool {
        self.unknown > 0 || self.scopes.contains_key(&scope)
    }

    /// A message is admitted.
    pub(super) fn admit(&mut self, now: Instant, ties: &Ties, position: Position) {
        if ties.is_barrier() {
            ties.barred().for_each(|scope| self.insert(now, scope, position));
        } else if ties.scope == ScopeId::UNKNOWN {
            self.unknown += 1;
        } else if ties.is_counted() {
            *self.scopes.entry(ties.scope).or_default().segment(position) += 1;
        }
    }

    fn insert(&mut self, now: Instant, scope: ScopeId, position: Position) {
        let scope = self.scopes.entry(scope).or_default();
        self.held += usize::from(scope.pending.is_empty());
        scope.insert(Pending {
            position,
            since: now,
            whereabouts: Whereabouts::Store,
            behind: 0,
            own: Vec::new(),
            sleeping: HashSet::default(),
        });
    }

    /// A pending barrier is somewhere else.
    pub(super) fn moved(&mut self, ties: &Ties, position: Position, whereabouts: Whereabouts) {
        for scope in ties.barred() {
            if let Some(pending) = self.scopes.get_mut(&scope).and_then(|scope| scope.find(position)) {
                pending.whereabouts = whereabouts;
            }
        }
    }

    /// Whether the message may be taken into a delivery, as far as barriers go.
    pub(super) fn lets_go(&self, ties: &Ties, position: Position) -> bool {
        if self.is_idle() || ties.groups == Groups::None {
            return true;
        }
        if !ties.is_barrier() {
            let first = self.scopes.get(&ties.scope).and_then(|scope| scope.pending.front());
            return first.is_none_or(|first| position < first.position);
        }
        let is_first = |scope: ScopeId| {
            let scope = self.scopes.get(&scope);
            scope.is_some_and(|scope| {
                scope.first == 0 && scope.pending.front().is_some_and(|one| one.position == position)
            })
        };
        let has_come_back = self.come_back_to.is_none_or(|to| position <= to);
        self.unknown == 0 && has_come_back && ties.barred().all(is_first)
    }

    /// Whether a pending barrier of the table holds up whatever comes after a position.
    pub(super) fn holds_all_after(&self, scope: ScopeId, after: Position) -> bool {
        let first = || self.scopes.get(&scope).and_then(|scope| scope.pending.front());
        !self.is_idle() && first().is_some_and(|first| first.position <= after)
    }

    /// The group's next message comes after a position and may not go: the group is told when what comes there may.
    pub(super) fn sleep_after(&mut self, group: GroupId, scope: ScopeId, after: Position) {
        if let Some(scope) = self.scopes.get_mut(&scope)
            && let Some(last) = scope.after(after).checked_sub(1)
            && let Some(pending) = scope.pending.get_mut(last)
        {
            pending.sleeping.insert(group);
        }
    }

    /// The group's next message may not go: the group is told when it may.
    pub(super) fn sleep(&mut self, group: GroupId, ties: &Ties, position: Position) {
        if ties.is_barrier() {
            for scope in ties.barred() {
                if let Some(pending) = self.scopes.get_mut(&scope).and_then(|scope| scope.find(position))
                    && !pending.own.contains(&group)
                {
                    pending.own.push(group);
                }
            }
        } else {
            self.sleep_after(group, ties.scope, position);
        }
    }

    /// Groups to be looked at again.
    pub(super) fn woken(&mut self) -> Vec<GroupId> {
        std::mem::take(&mut self.woken)
    }

    /// A message is delivered, dead or discarded.
    pub(super) fn resolve(&mut self, ties: &Ties, position: Position) {
        if ties.is_barrier() {
            ties.barred().for_each(|scope| self.end(scope, position));
        } else if ties.scope == ScopeId::UNKNOWN {
            self.count_off_unknown(1);
        } else if ties.is_counted()
            && let Some(scope) = self.scopes.get_mut(&ties.scope)
        {
            scope.members.remove(&position);
            let count = scope.segment(position);
            debug_assert!(*count > 0 || self.has_lost, "what is in a delivery was counted");
            *count = count.saturating_sub(1);
            if scope.first == 0 {
                self.is_first_free(ties.scope);
            }
        }
    }

    fn count_off_unknown(&mut self, messages: usize) {
        self.unknown = self.unknown.saturating_sub(messages);
        if self.unknown == 0 {
            self.wake_first(|_| true);
        }
    }

    /// The store has lost so many messages of one group, the first of which came after this: nothing waits for them. Of which
    /// of them a barrier stands before the next is not known, nor which had two groups and are lost twice.
    pub(super) fn lose(&mut self, id: ScopeId, after: Option<Position>, messages: usize) {
        self.has_lost = true;
        if id == ScopeId::UNKNOWN {
            return self.count_off_unknown(messages);
        }
        let Some(scope) = self.scopes.get_mut(&id) else { return };
        let mut left = messages;
        for barriers in after.map_or(0, |after| scope.after(after))..=scope.pending.len() {
            let count = scope.segment_of(barriers);
            let off = left.min(*count);
            (*count, left) = (*count - off, left - off);
        }
        if scope.first == 0 {
            self.is_first_free(id);
        }
    }

    /// A barrier of a table is resolved: the first one, but for those of a life before.
    fn end(&mut self, id: ScopeId, position: Position) {
        let Some(scope) = self.scopes.get_mut(&id) else { return };
        let place = scope.before(position);
        if scope.pending.get(place).is_none_or(|pending| pending.position != position) {
            return;
        }
        let Some(ended) = scope.pending.remove(place) else { return };
        *scope.segment_of(place) += ended.behind;
        match place.checked_sub(1).and_then(|last| scope.pending.get_mut(last)) {
            Some(last) => last.sleeping.extend(ended.sleeping),
            None => self.woken.extend(ended.sleeping),
        }
        self.held -= usize::from(scope.pending.is_empty());
        if scope.first == 0 {
            self.is_first_free(id);
        }
    }

    /// Nothing is left before the first barrier of a table, or nothing is left at all.
    fn is_first_free(&mut self, id: ScopeId) {
        let Some(scope) = self.scopes.get_mut(&id) else { return };
        match scope.pending.front_mut() {
            Some(first) => self.woken.append(&mut first.own),
            None => drop(self.scopes.remove(&id)),
        }
    }

    /// The barriers before which nothing of their tables is left are looked at again.
    fn wake_first(&mut self, is_one: impl Fn(Position) -> bool) {
        if !self.is_idle() {
            let scopes = self.scopes.values_mut().filter(|scope| scope.first == 0);
            let firsts = scopes.filter_map(|scope| scope.pending.front_mut()).filter(|first| is_one(first.position));
            firsts.for_each(|first| self.woken.append(&mut first.own));
        }
    }

    /// Where the last barrier before a message is, in each of its tables: it must not be left to memory when the message goes
    /// into the store.
    pub(super) fn last_before(&self, ties: &Ties, position: Position) -> impl Iterator<Item = Whereabouts> {
        let own = (!self.is_idle() && ties.groups != Groups::None).then_some(ties.scope);
        let other = ties.barred().filter(|scope| *scope != ties.scope);
        own.into_iter().chain(other).filter_map(move |scope| {
            let scope = self.scopes.get(&scope)?;
            let last = scope.before(position).checked_sub(1)?;
            scope.pending.get(last).map(|pending| pending.whereabouts)
        })
    }

    /// The store has a delivery with this message.
    pub(super) fn restore_member(&mut self, now: Instant, ties: &Ties, position: Position) {
        self.admit(now, ties, position);
        if ties.is_counted() && !ties.is_barrier() && ties.scope != ScopeId::UNKNOWN {
            self.scopes.entry(ties.scope).or_default().members.insert(position);
            self.has_left = true;
        }
    }

    /// The lanes hold so many messages of a table between a position and the next that is told. Its barriers are known.
    pub(super) fn restore_left(&mut self, left: &StoredScope) {
        if left.scope == ScopeId::UNKNOWN {
            self.unknown += left.messages;
            return;
        }
        let scope = self.scopes.entry(left.scope).or_default();
        let barriers = left.after.map_or(0, |after| scope.after(after));
        *scope.segment_of(barriers) += left.messages;
        if let Some(after) = left.after {
            scope.left.push((after, left.messages));
            self.has_left = true;
        }
    }

    /// Nothing that was there before the restart comes again any more.
    pub(super) fn forget_left(&mut self) {
        if std::mem::take(&mut self.has_left) {
            self.scopes.values_mut().for_each(|scope| (scope.left, scope.members) = Default::default());
        }
    }

    /// The overflow holds messages of a life before: none of them has come back.
    pub(super) fn nothing_has_come_back(&mut self) {
        self.come_back_to = Some(Position { commit_lsn: crate::change::Lsn::ZERO, index: 0 });
    }

    /// The overflow has come back to here, or to its end.
    pub(super) fn come_back_to(&mut self, position: Option<Position>) {
        if let Some(before) = self.come_back_to {
            self.come_back_to = position.map(|to| to.max(before));
            self.wake_first(|first| first > before && position.is_none_or(|to| first <= to));
        }
    }
}

impl Scope {
    /// How many barriers stand before a position.
    fn before(&self, position: Position) -> usize {
        if self.pending.is_empty() { 0 } else { self.pending.partition_point(|pending| pending.position < position) }
    }

    /// The same with the one at the position.
    fn after(&self, position: Position) -> usize {
        if self.pending.is_empty() { 0 } else { self.pending.partition_point(|pending| pending.position <= position) }
    }

    fn find(&mut self, position: Position) -> Option<&mut Pending> {
        let place = self.before(position);
        self.pending.get_mut(place).filter(|pending| pending.position == position)
    }

    /// The count that a message there belongs to.
    fn segment(&mut self, position: Position) -> &mut usize {
        let barriers = self.before(position);
        self.segment_of(barriers)
    }

    /// The count behind so many barriers.
    fn segment_of(&mut self, barriers: usize) -> &mut usize {
        match barriers.checked_sub(1).and_then(|last| self.pending.get_mut(last)) {
            Some(pending) => &mut pending.behind,
            None => &mut self.first,
        }
    }

    fn insert(&mut self, pending: Pending) {
        let (place, position) = (self.before(pending.position), pending.position);
        let next = self.pending.get(place).map(|next| next.position);
        let is_behind = |after: Position| after >= position && next.is_none_or(|next| after < next);
        let left = self.left.iter().filter(|(after, _)| is_behind(*after)).map(|(_, messages)| messages);
        let members = match next {
            Some(next) => self.members.range(position..next).count(),
            None => self.members.range(position..).count(),
        };
        let behind = members + left.sum::<usize>();
        let split = self.segment_of(place);
        debug_assert!(*split >= behind, "what is behind was counted");
        *split = split.saturating_sub(behind);
        self.pending.insert(place, Pending { behind, ..pending });
    }
}

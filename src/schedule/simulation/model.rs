//! What is true of every message, and what the receiver has seen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::*;

/// A message that was committed.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) position: Position,
    pub(super) groups: Groups,
    pub(super) bytes: usize,
    pub(super) scope: ScopeId,
    pub(super) barrier: Barrier,
    /// The endpoint refuses it.
    pub(super) is_poison: bool,
    /// What the store has of it is not what was written.
    pub(super) is_damaged: bool,
    /// Acknowledged or dead, as far as this life knows.
    pub(super) done: bool,
    /// The same, durably.
    pub(super) for_ever: bool,
    /// Done, or the store was said to have it, or it was skipped.
    pub(super) resolved: bool,
    /// When this life got it from the WAL.
    pub(super) arrived: Option<Instant>,
    pub(super) committed: Instant,
    /// Its age counts from here, once this life knows of it.
    pub(super) since: Option<Instant>,
}

impl Item {
    pub(super) fn tied(&self) -> Tied {
        let Self { position, groups, scope, barrier, .. } = *self;
        Tied { position, ties: Ties { groups, scope, barrier } }
    }

    /// The tables that it is a barrier of.
    fn barred(&self) -> Vec<ScopeId> {
        match self.barrier {
            _ if self.groups == Groups::None => Vec::new(),
            Barrier::None => Vec::new(),
            Barrier::Scope => vec![self.scope],
            Barrier::Scopes(old) => vec![self.scope, old],
        }
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Model {
    pub(super) items: Vec<Item>,
    /// By group: its messages in order.
    groups: BTreeMap<GroupId, Vec<usize>>,
    /// By table: its messages that have groups, in order, its barriers among them.
    scopes: BTreeMap<ScopeId, Vec<usize>>,
    barriers: BTreeMap<ScopeId, Vec<usize>>,
    /// Done, or in a delivery of the store, when older messages were made barriers: these follow it.
    before_barriers: BTreeSet<usize>,
    /// By group: the last message that was seen.
    last: BTreeMap<GroupId, usize>,
    /// By table: the last barrier before that.
    last_barrier: BTreeMap<ScopeId, Option<usize>>,
    /// Where the source began to read in this life.
    pub(super) base: Lsn,
    /// Marks of this life: how many items were before it.
    pub(super) marks: Vec<(usize, Lsn)>,
}

impl Model {
    pub(super) fn add(&mut self, committed: Instant, tied: Tied, bytes: usize, is_poison: bool) {
        let Tied { position, ties: Ties { groups, scope, barrier } } = tied;
        let (done, for_ever, resolved, arrived, since) = (false, false, false, None, None);
        let is_damaged = false;
        self.items.push(Item {
            position,
            groups,
            scope,
            barrier,
            bytes,
            is_poison,
            is_damaged,
            done,
            for_ever,
            resolved,
            arrived,
            committed,
            since,
        });
        self.list(self.items.len() - 1);
    }

    fn list(&mut self, index: usize) {
        let item = &self.items[index];
        item.groups.iter().for_each(|group| self.groups.entry(group).or_default().push(index));
        if item.groups != Groups::None {
            let mut scopes = BTreeSet::from_iter(item.barred());
            scopes.iter().for_each(|scope| self.barriers.entry(*scope).or_default().push(index));
            scopes.insert(item.scope);
            scopes.iter().for_each(|scope| self.scopes.entry(*scope).or_default().push(index));
        }
    }

    /// These come again under other groups, some as barriers. What is done, or in a delivery of the store, need not wait for
    /// them.
    pub(super) fn regroup(
        &mut self,
        items: &[(usize, bool)],
        parked: impl Iterator<Item = usize>,
        groups: impl Fn(GroupId) -> GroupId,
    ) {
        let done = self.items.iter().enumerate().filter(|(_, item)| item.for_ever).map(|(index, _)| index);
        self.before_barriers.extend(parked.chain(done));
        for (index, is_barrier) in items {
            let item = &mut self.items[*index];
            item.groups = match item.groups {
                Groups::None => Groups::None,
                Groups::One(group) => Groups::One(groups(group)),
                Groups::Two(old, new) => Groups::Two(groups(old), groups(new)),
            };
            if *is_barrier && item.barrier == Barrier::None {
                item.barrier = Barrier::Scope;
            }
        }
        (self.groups, self.scopes, self.barriers) = Default::default();
        (0..self.items.len()).for_each(|index| self.list(index));
    }

    fn before_in<I: Ord + Copy>(
        lists: &BTreeMap<I, Vec<usize>>,
        id: I,
        index: usize,
    ) -> impl Iterator<Item = usize> + use<'_, I> {
        lists.get(&id).into_iter().flatten().copied().take_while(move |earlier| *earlier < index)
    }

    /// Earlier messages that are not done and that `index` has to follow: those of its groups, the barriers of its table; for a
    /// barrier all of its tables.
    pub(super) fn before(&self, index: usize) -> impl Iterator<Item = usize> + '_ {
        let in_groups =
            self.items[index].groups.iter().flat_map(move |group| Self::before_in(&self.groups, group, index));
        in_groups.chain(self.across(index)).filter(|earlier| !self.items[*earlier].done)
    }

    /// Of these, those of its table.
    pub(super) fn across(&self, index: usize) -> impl Iterator<Item = usize> + '_ {
        let item = &self.items[index];
        let in_tables = item.barred().into_iter().flat_map(move |scope| Self::before_in(&self.scopes, scope, index));
        let own = (item.groups != Groups::None).then_some(item.scope);
        let own = own.filter(|_| !self.before_barriers.contains(&index));
        let barriers = own.into_iter().flat_map(move |scope| Self::before_in(&self.barriers, scope, index));
        in_tables.chain(barriers).filter(|earlier| !self.items[*earlier].done)
    }

    /// The barrier before a message in each of its tables.
    fn barriers_before(&self, index: usize) -> Vec<(ScopeId, Option<usize>)> {
        let item = &self.items[index];
        let mut scopes = BTreeSet::from_iter(item.barred());
        scopes.extend((item.groups != Groups::None).then_some(item.scope));
        scopes.into_iter().map(|scope| (scope, Self::before_in(&self.barriers, scope, index).last())).collect()
    }

    /// The receiver got it, or it was given up: either ends its turn.
    pub(super) fn seen(&mut self, index: usize) -> Check {
        let item = &self.items[index];
        require(!item.for_ever, "repeat: what was durably done came again")?;
        require(!item.done, "repeat: what was done in this life came again")?;
        for group in item.groups.iter() {
            let before = Self::before_in(&self.groups, group, index).last();
            let is_next = before <= self.last.insert(group, index);
            require(is_next, "ordered: the receiver saw a message before an earlier one")?;
        }
        let is_barrier = !item.barred().is_empty();
        let is_free = self.before_barriers.contains(&index);
        for (scope, before) in self.barriers_before(index) {
            let passed = self.last_barrier.entry(scope).or_default();
            let may_come = is_free || before <= *passed;
            require(may_come, "barrier: the receiver saw a message before one that stands between")?;
            match (is_barrier, is_free) {
                (true, _) => *passed = Some(index),
                (false, true) => {}
                (false, false) => *passed = before,
            }
        }
        Ok(())
    }

    /// In the end each group has been seen to its end.
    pub(super) fn has_seen_all_of(&self, index: usize) -> bool {
        let barriers = if self.before_barriers.contains(&index) { Vec::new() } else { self.barriers_before(index) };
        let mut passed = barriers.into_iter();
        self.items[index].groups.iter().all(|group| self.last.get(&group) >= Some(&index))
            && passed.all(|(scope, before)| self.last_barrier.get(&scope).is_some_and(|passed| before <= *passed))
    }

    pub(super) fn fed(&self) -> impl Iterator<Item = (usize, &Item)> {
        self.items.iter().enumerate().filter(|(_, item)| item.arrived.is_some())
    }

    /// What may be confirmed if these are resolved.
    fn resolved_if(&self, resolved: impl Fn(usize, &Item) -> bool) -> Lsn {
        let open = self.items.iter().enumerate().position(|(index, item)| !resolved(index, item));
        let open = open.unwrap_or(self.items.len());
        let marks = self.marks.iter().filter(|(before, _)| *before <= open);
        marks.map(|(_, lsn)| *lsn).max().unwrap_or(Lsn::ZERO).max(self.base)
    }

    pub(super) fn check_watermark(&self, scheduler: Lsn) -> Check {
        let expected = self.resolved_if(|_, item| item.resolved);
        require(scheduler == expected, &format!("watermark: {scheduler} is not the naive {expected}"))
    }

    /// `written`: what becomes durable with this progress.
    pub(super) fn check_progress(&self, progress: &Progress, written: &BTreeSet<usize>) -> Check {
        let soon = |index: usize, item: &Item| item.resolved || written.contains(&index);
        require(progress.unresolved.is_sorted(), "progress: its exceptions are in order")?;
        require(progress.resolved == self.resolved_if(soon), "progress: as far as all is resolved")?;
        for (index, item) in self.items.iter().enumerate() {
            let told = Some(item.position) <= progress.high && !progress.unresolved.contains(&item.position);
            require(told == soon(index, item), &format!("progress: {index} resolved: {told} is not true"))?;
        }
        Ok(())
    }

    /// No message is unresolved for long, of those that the store could have had since `open_since`.
    pub(super) fn check_kind(&self, now: Instant, open_since: Instant) -> Check {
        for (index, item) in self.fed().filter(|(_, item)| !item.resolved) {
            let since = item.arrived.map_or(open_since, |arrived| arrived.max(open_since));
            require(now - since <= KIND, &format!("kind: {index} is unresolved for {:?}", now - since))?;
        }
        Ok(())
    }

    /// The oldest message that is known and not done is told to be as old as it is.
    pub(super) fn check_age(&self, now: Instant, (told, messages): (Option<Instant>, usize)) -> Check {
        let known = self.items.iter().filter(|item| !item.done && item.since.is_some());
        require(known.clone().count() == messages, &format!("age: {messages} are said to be undelivered"))?;
        let Some(oldest) = known.filter_map(|item| item.since).min() else {
            return require(told.is_none(), "age: there is none without messages");
        };
        let (age, told) = (now - oldest, told.map(|told| now - told));
        let is_true = told.is_some_and(|told| told >= age && told - age <= GRAIN + age / SHARE);
        require(is_true, &format!("age: {told:?} is told, and it is {age:?}"))
    }

    /// After a crash: what is not durable is not so. `skips` says which do not come again.
    pub(super) fn restart(&mut self, base: Lsn, skips: impl Fn(Position) -> bool) {
        self.base = base;
        self.marks.clear();
        for item in &mut self.items {
            item.done = item.for_ever;
            item.resolved = item.position.commit_lsn <= base || skips(item.position);
            (item.arrived, item.since) = (None, None);
        }
    }
}

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
    /// Its number in each of its groups.
    ordinals: Vec<(GroupId, usize)>,
    /// The endpoint refuses it.
    pub(super) is_poison: bool,
    /// Acknowledged or dead, as far as this life knows.
    pub(super) done: bool,
    /// The same, durably.
    pub(super) for_ever: bool,
    /// Done, or the store was said to have it, or it was skipped.
    pub(super) resolved: bool,
    /// When this life got it from the WAL.
    pub(super) arrived: Option<Instant>,
}

impl Item {
    pub(super) fn tied(&self) -> Tied {
        let ties = Ties { groups: self.groups, scope: ScopeId(1), barrier: Barrier::None };
        Tied { position: self.position, ties }
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Model {
    pub(super) items: Vec<Item>,
    /// By group: its messages in order.
    groups: BTreeMap<GroupId, Vec<usize>>,
    /// By group: the number of the message that may come next, at most.
    next: BTreeMap<GroupId, usize>,
    /// Where the source began to read in this life.
    pub(super) base: Lsn,
    /// Marks of this life: how many items were before it.
    pub(super) marks: Vec<(usize, Lsn)>,
}

impl Model {
    pub(super) fn add(&mut self, position: Position, groups: Groups, bytes: usize, is_poison: bool) {
        let index = self.items.len();
        let mut ordinals = Vec::new();
        for group in groups.iter() {
            let members = self.groups.entry(group).or_default();
            ordinals.push((group, members.len()));
            members.push(index);
        }
        let (done, for_ever, resolved, arrived) = (false, false, false, None);
        let item = Item { position, groups, bytes, ordinals, is_poison, done, for_ever, resolved, arrived };
        self.items.push(item);
    }

    /// Earlier messages of the groups of `index` that are not done.
    pub(super) fn before(&self, index: usize) -> impl Iterator<Item = usize> + '_ {
        self.items[index].ordinals.iter().flat_map(move |(group, ordinal)| {
            self.groups[group][..*ordinal].iter().copied().filter(|earlier| !self.items[*earlier].done)
        })
    }

    /// The receiver got it, or it was given up: either ends its turn.
    pub(super) fn seen(&mut self, index: usize) -> Check {
        let item = &self.items[index];
        require(!item.for_ever, "repeat: what was durably done came again")?;
        require(!item.done, "repeat: what was done in this life came again")?;
        for (group, ordinal) in &item.ordinals {
            let next = self.next.entry(*group).or_default();
            require(ordinal <= next, "ordered: the receiver saw a message before an earlier one")?;
            *next = ordinal + 1;
        }
        Ok(())
    }

    /// In the end each group has been seen to its end.
    pub(super) fn has_seen_all_of(&self, index: usize) -> bool {
        self.items[index]
            .ordinals
            .iter()
            .all(|(group, ordinal)| self.next.get(group).is_some_and(|next| next > ordinal))
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

    /// After a crash: what is not durable is not so. `skips` says which do not come again.
    pub(super) fn restart(&mut self, base: Lsn, skips: impl Fn(Position) -> bool) {
        self.base = base;
        self.marks.clear();
        for item in &mut self.items {
            item.done = item.for_ever;
            item.resolved = item.position.commit_lsn <= base || skips(item.position);
            item.arrived = None;
        }
    }
}

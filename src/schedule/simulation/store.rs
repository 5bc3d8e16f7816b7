//! A store of which only what is durable outlives a crash. Batches become durable one after another, each as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::*;

/// Where a message stands in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Home {
    Lane,
    Page(u64),
}

/// What a scheduler carries for a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) item: usize,
    pub(super) home: Option<Home>,
    /// It was read back, and is not what was written.
    pub(super) is_damaged: bool,
}

/// A delivery in the store; times as the process had them.
#[derive(Clone, Debug)]
pub(super) struct Parked {
    pub(super) members: Vec<usize>,
    pub(super) attempts: u32,
    pub(super) failures: u32,
    pub(super) refusals: u32,
    pub(super) first: Option<Instant>,
    pub(super) due: Option<Instant>,
    pub(super) is_part: bool,
}

#[derive(Debug)]
pub(super) enum Op {
    /// A delivery is kept, or is kept otherwise than before.
    Put(u64, Parked),
    /// A delivery is no more.
    Gone(u64),
    Lanes(Vec<(usize, Groups)>),
    Page(u64, Vec<usize>),
    Leave(Vec<(usize, Home)>),
    /// For the model: these are acknowledged or dead.
    Done(Vec<usize>),
}

#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) ops: Vec<Op>,
    pub(super) progress: Option<Progress>,
    pub(super) writes: Vec<WriteId>,
}

impl Batch {
    /// What the store has once it is durable and had not before.
    pub(super) fn puts(&self) -> BTreeSet<usize> {
        self.puts_of(|_| true)
    }

    /// The same, but only these deliveries.
    pub(super) fn puts_of(&self, is_one: impl Fn(u64) -> bool) -> BTreeSet<usize> {
        let items = self.ops.iter().flat_map(|op| match op {
            Op::Put(id, _) if !is_one(*id) => Vec::new(),
            Op::Put(_, parked) => parked.members.clone(),
            Op::Lanes(messages) => messages.iter().map(|(item, _)| *item).collect(),
            Op::Page(_, items) => items.clone(),
            Op::Gone(_) | Op::Leave(_) | Op::Done(_) => Vec::new(),
        });
        items.collect()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Durable {
    pub(super) deliveries: BTreeMap<u64, Parked>,
    /// By item, that is, by position.
    pub(super) lanes: BTreeMap<usize, Groups>,
    pub(super) pages: BTreeMap<u64, Vec<usize>>,
    pub(super) next_page: u64,
    pub(super) progress: Option<Progress>,
}

impl Durable {
    /// Returns what is done for ever.
    pub(super) fn apply(&mut self, batch: &Batch, fault: Fault) -> Vec<usize> {
        let mut done = Vec::new();
        for op in &batch.ops {
            match op {
                Op::Put(..) if fault == Fault::ParkNothing => {}
                Op::Put(id, parked) => {
                    self.deliveries.insert(*id, parked.clone());
                }
                Op::Gone(id) => {
                    self.deliveries.remove(id);
                }
                Op::Lanes(messages) => self.lanes.extend(messages.iter().copied()),
                Op::Page(number, items) => {
                    self.pages.insert(*number, items.clone());
                    self.next_page = number + 1;
                }
                Op::Leave(homes) => homes.iter().for_each(|(item, home)| self.leave(*item, *home, fault)),
                Op::Done(items) => done.extend(items),
            }
        }
        self.progress = batch.progress.clone().or(self.progress.take());
        done
    }

    fn leave(&mut self, item: usize, home: Home, fault: Fault) {
        if fault == Fault::LeaveNothing {
            return;
        }
        match home {
            Home::Lane => {
                self.lanes.remove(&item);
            }
            Home::Page(number) => {
                if let Some(items) = self.pages.get_mut(&number) {
                    items.retain(|other| *other != item);
                }
                self.pages.retain(|_, items| !items.is_empty());
            }
        }
    }

    /// By group: how many, and the last.
    pub(super) fn lane_summary(&self) -> BTreeMap<GroupId, (usize, usize)> {
        let mut summary = BTreeMap::new();
        for (item, groups) in &self.lanes {
            for group in groups.iter() {
                let lane: &mut (usize, usize) = summary.entry(group).or_default();
                *lane = (lane.0 + 1, *item);
            }
        }
        summary
    }

    pub(super) fn items(&self) -> impl Iterator<Item = usize> + '_ {
        let deliveries = self.deliveries.values().flat_map(|parked| parked.members.iter());
        deliveries.chain(self.lanes.keys()).chain(self.pages.values().flatten()).copied()
    }
}

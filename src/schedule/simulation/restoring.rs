//! What a new scheduler is told of a life before: what the store has that is durable.

use std::collections::{BTreeMap, BTreeSet};

use super::life::{Flight, Life};
use super::model::Item;
use super::store::Load;
use super::*;

impl Life {
    pub(super) fn restore(&mut self) {
        let parked: Vec<_> = self.durable.deliveries.iter().map(|(id, parked)| (*id, parked.clone())).collect();
        let restored = parked.iter().map(|(_, parked)| Restored {
            members: parked.members.iter().map(|item| self.model.items[*item].tied()).collect(),
            position: self.model.items[parked.members[0]].position,
            attempts: parked.attempts,
            failures: parked.failures,
            refusals: parked.refusals,
            first_attempt: parked.first,
            due: parked.due,
            is_part: parked.is_part,
        });
        let mut restored: Vec<Restored> = restored.collect();
        if self.fault == Fault::ForgetParkedTable {
            let members = restored.iter_mut().flat_map(|one| one.members.iter_mut());
            members.for_each(|member| member.ties.scope = ScopeId(1000));
        }
        let keys = self.scheduler.restore(self.now, restored);
        for (key, (id, parked)) in keys.into_iter().zip(parked) {
            let members =
                parked.members.iter().map(|item| Load { item: *item, home: None, is_damaged: false }).collect();
            let flight = Flight {
                attempts: parked.attempts,
                failures: parked.failures,
                refusals: parked.refusals,
                first: parked.first,
                not_before: parked.due.unwrap_or(self.now),
                is_kept: true,
                is_told: true,
                is_part: parked.is_part,
                has_failed: true,
                is_blocked: parked.due.is_none(),
                ..Flight::new(id, members)
            };
            self.flights.insert(key, flight);
        }
        let (barriers, scopes) = self.stored_scopes();
        self.scheduler.restore_scopes(self.now, barriers, scopes);
        let lanes = self.durable.lane_summary();
        let lanes = lanes.into_iter().map(|(group, (count, last))| (group, count, self.model.items[last].position));
        let overflow = self.durable.pages.values().map(Vec::len).sum();
        self.scheduler.restore_waiting(lanes, overflow);
        self.scheduler.restore_beginnings(self.durable.lanes.keys().rev().flat_map(|item| {
            let Tied { position, ties } = self.model.items[*item].tied();
            ties.groups.iter().map(move |group| (group, ties.scope, position))
        }));
        self.next_page_read = 0;
        self.restored = self.durable.items().collect();
        self.next_page_written = self.durable.next_page;
    }

    /// When what the store has arrived: it knows when each was committed, and of a page only that of its first message.
    pub(super) fn restore_arrivals(&mut self) {
        for item in self.durable.items() {
            let item = &mut self.model.items[item];
            item.since = (!item.for_ever).then_some(item.committed);
        }
        let parked = self.durable.deliveries.values().flat_map(|parked| parked.members.iter());
        let is_left = |item: &&usize| !self.model.items[**item].for_ever;
        let spans = parked.chain(self.durable.lanes.keys()).filter(is_left).map(|item| {
            let Item { position, committed, .. } = self.model.items[*item];
            StoredSpan { first: position, last: position, arrived: committed, messages: 1 }
        });
        let page = |items: &Vec<usize>| {
            Some((self.model.items[*items.first()?].committed, items.iter().filter(is_left).count()))
        };
        let pages: Vec<_> = self.durable.pages.values().filter_map(page).collect();
        let spans = if self.fault == Fault::ForgetStoredAge { Vec::new() } else { spans.collect() };
        self.scheduler.restore_arrivals(spans, pages);
    }

    /// The barriers in the lanes, and the lanes' messages of each table between the positions that matter.
    fn stored_scopes(&self) -> (Vec<Tied>, Vec<StoredScope>) {
        let tied = |item: &usize| self.model.items[*item].tied();
        let lanes: Vec<Tied> =
            self.durable.lanes.keys().map(tied).filter(|tied| tied.ties.groups != Groups::None).collect();
        let is_barrier = |tied: &Tied| tied.ties.barrier != Barrier::None;
        let mut barriers: Vec<Tied> = lanes.iter().copied().filter(is_barrier).collect();
        let parked = self.durable.deliveries.values().flat_map(|parked| parked.members.iter().map(tied));
        let mut cuts: BTreeSet<Position> =
            barriers.iter().copied().chain(parked.filter(is_barrier)).map(|tied| tied.position).collect();
        cuts.extend(self.durable.progress.iter().flat_map(|progress| progress.unresolved.iter().copied()));
        let mut counts = BTreeMap::new();
        for tied in lanes.iter().filter(|tied| !is_barrier(tied)) {
            let after = cuts.range(..tied.position).next_back().copied();
            *counts.entry((tied.ties.scope, after)).or_insert(0) += 1;
        }
        if self.fault == Fault::ForgetLanes {
            counts.clear();
        }
        if self.fault == Fault::ForgetStoredBarrier {
            barriers.clear();
        }
        if self.fault == Fault::CountTwice {
            counts.values_mut().for_each(|count| *count *= 2);
        }
        let scopes = counts.into_iter().map(|((scope, after), messages)| StoredScope { scope, after, messages });
        (barriers, scopes.collect())
    }
}

//! A delivery's life between attempts: retried, split, given up; and those of a life before.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::gate::Flight;
use super::watermark::{Place, Token};
use super::{
    Command, DeliveryKey, Exhausted, Failure, GroupId, Groups, OnExhausted, Outcome, Restored, Scheduler, Tied, Ties,
    Verdict, World, retry, split,
};
use crate::change::Position;

/// Whether the store has a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    No,
    /// It is to be written.
    Asked,
    /// It is on its way.
    Writing,
    Yes,
}

/// What a delivery that is not in flight waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Its time.
    Time,
    /// An older part of the same whole, with a group in common.
    Elder,
    /// A person.
    Person,
}

/// A message in a delivery.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    /// If only the WAL has it.
    pub(super) token: Option<Token>,
    pub(super) position: Position,
    pub(super) ties: Ties,
}

#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) members: Vec<Member>,
    attempts: u32,
    failures: u32,
    refusals: u32,
    first_attempt: Option<Instant>,
    pub(super) kept: Kept,
    /// The attempt under way.
    flight: Option<Flight>,
    /// What had been spent in troubles of our own when its first attempt began.
    spent_before: Duration,
    rest: Rest,
    /// It has failed, or is what is left of one that has.
    has_failed: bool,
    is_part: bool,
    /// Groups it holds, counted at its first failure.
    groups: usize,
    /// Holds its groups: itself, or the whole that it is a part of.
    root: DeliveryKey,
}

impl Delivery {
    pub(super) fn new(key: DeliveryKey, members: Vec<Member>) -> Self {
        Self {
            members,
            attempts: 0,
            failures: 0,
            refusals: 0,
            first_attempt: None,
            kept: Kept::No,
            flight: None,
            spent_before: Duration::ZERO,
            rest: Rest::Time,
            has_failed: false,
            is_part: false,
            groups: 0,
            root: key,
        }
    }

    fn is_in_store(&self) -> bool {
        match self.kept {
            Kept::Yes | Kept::Writing => true,
            Kept::No | Kept::Asked => false,
        }
    }

    fn groups(&self) -> BTreeSet<GroupId> {
        self.members.iter().flat_map(|member| member.ties.groups.iter()).collect()
    }
}

impl<P> Scheduler<P> {
    /// An attempt that [`Self::poll`] asked for has ended. `None` if no such attempt is known.
    pub fn outcome(&mut self, now: Instant, world: &World, key: DeliveryKey, outcome: Outcome) -> Option<Verdict> {
        self.gate.slept(world.slept);
        let flight = self.deliveries.get_mut(&key)?.flight.take()?;
        self.gate.ended(now, &mut self.rng, flight, outcome);
        match outcome {
            Outcome::Acknowledged => {
                self.resolve(now, key);
                Some(Verdict::Done)
            }
            Outcome::Failed(failure) => self.failed(now, world, key, failure),
        }
    }

    /// What ties a delivery's messages to others, in their order.
    pub fn members(&self, key: DeliveryKey) -> impl Iterator<Item = Ties> {
        let members = self.deliveries.get(&key).map(|delivery| delivery.members.as_slice()).unwrap_or_default();
        members.iter().map(|member| member.ties)
    }

    /// An attempt of the delivery starts.
    pub(super) fn started(&mut self, now: Instant, key: DeliveryKey) -> u32 {
        let Some(delivery) = self.deliveries.get_mut(&key) else { return 0 };
        delivery.attempts += 1;
        if delivery.first_attempt.is_none() {
            (delivery.first_attempt, delivery.spent_before) = (Some(now), self.gate.spent(now));
        }
        delivery.flight = Some(self.gate.started());
        delivery.attempts
    }

    fn failed(&mut self, now: Instant, world: &World, key: DeliveryKey, failure: Failure) -> Option<Verdict> {
        if failure.own {
            return self.own_failed(key);
        }
        let new = self.deliveries.get(&key).filter(|delivery| !delivery.has_failed);
        let held = new.map(Delivery::groups).unwrap_or_default();
        let verdict = self.judge(now, world, key, failure)?;
        match verdict {
            Verdict::Retry(_) | Verdict::Split { .. } | Verdict::Blocked(_) => {
                held.into_iter().for_each(|id| self.backlog.unload(id));
            }
            Verdict::Done | Verdict::Dead { .. } => {}
        }
        Some(verdict)
    }

    /// As if it had not been tried.
    fn own_failed(&mut self, key: DeliveryKey) -> Option<Verdict> {
        let delivery = self.deliveries.get_mut(&key)?;
        delivery.attempts -= 1;
        if delivery.attempts == 0 {
            delivery.first_attempt = None;
        }
        delivery.rest = Rest::Time;
        Some(Verdict::Retry(self.gate.retry_after_own(key)))
    }

    /// When a delivery's age began, as far as it counts.
    fn aged_from(&self, delivery: &Delivery, now: Instant) -> Option<Instant> {
        let spent = self.gate.spent(now).saturating_sub(delivery.spent_before);
        delivery.first_attempt.map(|first| first + spent)
    }

    fn judge(&mut self, now: Instant, world: &World, key: DeliveryKey, failure: Failure) -> Option<Verdict> {
        let delivery = self.deliveries.get_mut(&key)?;
        delivery.failures = delivery.failures.saturating_add(1);
        delivery.attempts -= u32::from(failure.ours);
        delivery.refusals += u32::from(failure.refused);
        if !delivery.has_failed {
            delivery.has_failed = true;
            delivery.groups = delivery.groups().len();
            self.groups_held += delivery.groups;
            self.failed += 1;
        }
        if let Some(asked) = failure.retry_after {
            self.gate.hold_until(now + asked.min(self.rules.retry.max));
        }
        // Without room for a dead letter it is not given up.
        let can_die = delivery.is_in_store() || world.store.takes_more();
        if failure.damaged && delivery.members.len() > 1 {
            return self.split(now, world, key);
        }
        let hopeless = [(failure.too_large, Exhausted::TooLarge), (failure.damaged, Exhausted::Damaged)];
        if let Some((_, why)) = hopeless.into_iter().find(|(holds, _)| *holds && can_die) {
            return self.exhaust(now, key, why);
        }
        if !failure.ours {
            let attempts = delivery.attempts;
            let enough = if delivery.is_part { 1 } else { self.rules.split_after };
            if failure.refused && delivery.refusals >= enough && delivery.members.len() > 1 {
                return self.split(now, world, key);
            }
            let from = self.deliveries.get(&key).and_then(|delivery| self.aged_from(delivery, now));
            if let Some(why) = retry::exhausted(self.rules.limits, attempts, from, now).filter(|_| can_die) {
                return self.exhaust(now, key, why);
            }
        }
        self.retry_later(now, key)
    }

    fn retry_later(&mut self, now: Instant, key: DeliveryKey) -> Option<Verdict> {
        let from = self.deliveries.get(&key).and_then(|delivery| self.aged_from(delivery, now));
        let delivery = self.deliveries.get_mut(&key)?;
        let due = now + retry::wait_after(self.rules.retry, delivery.failures, &mut self.rng);
        let due = retry::due_at(self.rules.limits, from, now, due);
        delivery.rest = Rest::Time;
        let due = self.gate.retry_at(now, due, key);
        self.want_parked(key);
        Some(Verdict::Retry(due))
    }

    /// Whether the delivery has failed and is not resolved.
    pub(super) fn has_failed(&self, key: DeliveryKey) -> bool {
        self.deliveries.get(&key).is_some_and(|delivery| delivery.has_failed)
    }

    fn want_parked(&mut self, key: DeliveryKey) {
        if let Some(delivery) = self.deliveries.get_mut(&key)
            && self.rules.keeps
            && delivery.kept == Kept::No
        {
            delivery.kept = Kept::Asked;
            self.to_park.push_back(key);
        }
    }

    fn exhaust(&mut self, now: Instant, key: DeliveryKey, why: Exhausted) -> Option<Verdict> {
        let paused = match self.rules.on_exhausted {
            OnExhausted::BlockGroup => {
                self.deliveries.get_mut(&key)?.rest = Rest::Person;
                self.blocked += 1;
                self.want_parked(key);
                return Some(Verdict::Blocked(why));
            }
            OnExhausted::Continue => false,
            OnExhausted::PauseSink => true,
        };
        if paused {
            self.gate.set_paused(true);
        }
        self.resolve(now, key);
        Some(Verdict::Dead { why, paused })
    }

    /// A delivery has come to its end.
    fn resolve(&mut self, now: Instant, key: DeliveryKey) {
        let Some(delivery) = self.deliveries.remove(&key) else { return };
        self.ack_pending -= delivery.members.len();
        self.forget(&delivery);
        for token in delivery.members.iter().filter_map(|member| member.token) {
            self.watermark.resolve(token);
        }
        for member in &delivery.members {
            self.backlog.barriers.resolve(&member.ties, member.position);
        }
        self.undelivered.leave(delivery.members.iter().map(|member| member.position));
        self.let_go(now, key, &delivery);
        self.backlog.awaken(now);
        if self.deliveries.is_empty() && self.is_empty() {
            self.undelivered.clear();
        }
    }

    /// Whether no message waits to be delivered.
    fn is_empty(&self) -> bool {
        self.backlog.len() == 0 && self.backlog.lanes.is_empty() && !self.overflow.is_active()
    }

    /// Takes a delivery out of the figures.
    fn forget(&mut self, delivery: &Delivery) {
        self.failed -= usize::from(delivery.has_failed);
        self.groups_held -= delivery.groups;
        self.parked -= usize::from(delivery.kept == Kept::Yes);
    }

    /// Gives back the groups that no other part of the same whole needs.
    fn let_go(&mut self, now: Instant, key: DeliveryKey, delivery: &Delivery) {
        let root = delivery.root;
        if let Some(family) = self.families.get_mut(&root) {
            family.retain(|member| *member != key);
            let needed: BTreeSet<GroupId> =
                family.iter().filter_map(|member| self.deliveries.get(member)).flat_map(Delivery::groups).collect();
            if family.is_empty() {
                self.families.remove(&root);
            }
            for id in delivery.groups().difference(&needed) {
                self.backlog.release(now, root, Groups::One(*id));
            }
            self.order_family(now, root);
        } else {
            for member in &delivery.members {
                self.backlog.release(now, root, member.ties.groups);
            }
        }
    }

    /// Of the parts of a whole each may go that has no group in common with an older one.
    fn order_family(&mut self, now: Instant, root: DeliveryKey) {
        let Some(family) = self.families.get(&root) else { return };
        let mut taken = BTreeSet::new();
        for key in family {
            let Some(delivery) = self.deliveries.get_mut(key) else { continue };
            let groups = delivery.groups();
            let waits = !taken.is_disjoint(&groups);
            taken.extend(groups);
            if !waits && delivery.rest == Rest::Elder {
                delivery.rest = Rest::Time;
                self.gate.due_now(now, *key);
            }
        }
    }

    fn split(&mut self, now: Instant, world: &World, key: DeliveryKey) -> Option<Verdict> {
        let whole = self.deliveries.get(&key)?;
        let groups: Vec<Groups> = whole.members.iter().map(|member| member.ties.groups).collect();
        let Some((first, second)) = split::halves(&groups) else { return self.retry_later(now, key) };
        let whole = self.deliveries.remove(&key)?;
        self.forget(&whole);
        let keys = [self.part(&whole, &first), self.part(&whole, &second)];
        let family = self.families.entry(whole.root).or_insert_with(|| vec![key]);
        if let Some(place) = family.iter().position(|member| *member == key) {
            family.splice(place..=place, keys);
        }
        self.order_family(now, whole.root);
        // A whole that is in the store is replaced there; one that is not goes in as its parts.
        let goes_there = self.rules.keeps && world.store.takes_more();
        let write = (whole.is_in_store() || goes_there).then(|| self.write_of(&keys));
        if write.is_none() {
            keys.iter().for_each(|key| self.want_parked(*key));
        }
        let [one, other] = keys;
        Some(Verdict::Split { parts: [(one, first), (other, second)], write })
    }

    fn part(&mut self, whole: &Delivery, indexes: &[usize]) -> DeliveryKey {
        let key = DeliveryKey(self.next_key);
        self.next_key += 1;
        let members: Vec<_> = indexes.iter().filter_map(|&index| whole.members.get(index).copied()).collect();
        for token in members.iter().filter_map(|member| member.token) {
            self.watermark.moved(token, Place::In(key));
        }
        let mut part = Delivery { is_part: true, has_failed: true, ..Delivery::new(whole.root, members) };
        part.rest = Rest::Elder;
        part.groups = part.groups().len();
        self.groups_held += part.groups;
        self.failed += 1;
        self.deliveries.insert(key, part);
        key
    }

    /// The next attempt of a delivery that is due.
    pub(super) fn retry_next(&mut self, now: Instant) -> Option<Command<P>> {
        let key = self.gate.next_due()?;
        let number = self.started(now, key);
        Some(Command::Attempt { delivery: key, number })
    }

    /// The next attempt of the delivery that is due first, now or later.
    pub(super) fn retry_early(&mut self, now: Instant) -> Option<Command<P>> {
        let key = self.gate.next_early()?;
        let number = self.started(now, key);
        Some(Command::Attempt { delivery: key, number })
    }

    /// Deliveries of a life before; their names, in the same order. Comes before anything else.
    pub fn restore(&mut self, now: Instant, restored: Vec<Restored>) -> Vec<DeliveryKey> {
        let mut order: Vec<usize> = (0..restored.len()).collect();
        order.sort_by_key(|&index| restored.get(index).map(|delivery| delivery.position));
        let mut keys = vec![DeliveryKey(0); restored.len()];
        let mut roots: BTreeMap<DeliveryKey, Vec<DeliveryKey>> = BTreeMap::new();
        let mut restored: Vec<Option<Restored>> = restored.into_iter().map(Some).collect();
        for index in order {
            let Some(one) = restored.get_mut(index).and_then(Option::take) else { continue };
            let key = self.restore_one(now, one, &mut roots);
            if let Some(place) = keys.get_mut(index) {
                *place = key;
            }
        }
        for (root, family) in roots {
            let alone = family.len() == 1;
            for key in &family {
                let Some(delivery) = self.deliveries.get_mut(key) else { continue };
                delivery.root = root;
                for id in delivery.groups() {
                    self.backlog.hold(root, id);
                }
            }
            if !alone {
                self.families.insert(root, family);
                self.order_family(now, root);
            }
        }
        keys
    }

    /// Groups in common make a family: `roots` has them by what will hold their groups.
    fn restore_one(
        &mut self,
        now: Instant,
        one: Restored,
        roots: &mut BTreeMap<DeliveryKey, Vec<DeliveryKey>>,
    ) -> DeliveryKey {
        let key = DeliveryKey(self.next_key);
        self.next_key += 1;
        for Tied { position, ties } in &one.members {
            self.backlog.barriers.restore_member(now, ties, *position);
        }
        let members = one.members.into_iter().map(|Tied { position, ties }| Member { token: None, position, ties });
        let members = members.collect();
        let mut delivery = Delivery::new(key, members);
        let groups = delivery.groups();
        let mut elders: Vec<DeliveryKey> = groups.iter().filter_map(|id| self.backlog.holder(*id)).collect();
        elders.sort_unstable();
        elders.dedup();
        let root = elders.first().copied().unwrap_or(key);
        let mut family = Vec::new();
        for elder in &elders {
            family.extend(roots.remove(elder).unwrap_or_default());
        }
        family.sort_unstable();
        for id in family.iter().filter_map(|member| self.deliveries.get(member)).flat_map(Delivery::groups) {
            self.backlog.hold(root, id);
        }
        for id in &groups {
            self.backlog.hold(root, *id);
        }
        family.push(key);
        roots.insert(root, family);
        self.ack_pending += delivery.members.len();
        self.failed += 1;
        self.parked += 1;
        self.groups_held += groups.len();
        delivery.groups = groups.len();
        delivery.kept = Kept::Yes;
        delivery.has_failed = true;
        delivery.is_part = one.is_part;
        (delivery.attempts, delivery.failures, delivery.refusals) = (one.attempts, one.failures, one.refusals);
        delivery.first_attempt = one.first_attempt;
        match one.due {
            None => {
                delivery.rest = Rest::Person;
                self.blocked += 1;
            }
            Some(_) if !elders.is_empty() => delivery.rest = Rest::Elder,
            Some(due) => self.gate.due_at(due, key),
        }
        self.deliveries.insert(key, delivery);
        key
    }
}

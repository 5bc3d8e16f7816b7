//! Messages in memory that are not in a delivery yet, by group, and which groups may be served.
//!
//! Every group is a queue threaded through one slab, so that a group of one message costs one map entry and no
//! allocation. A group is in one of three states:
//!
//! - *ready*: its first message may go; it stands in the ready queue, once. (An entry whose group has left the state is
//!   stale and skipped.)
//! - *busy*: a delivery holds messages of it; new ones queue up behind.
//! - *blocked*: its first message belongs to a second group too (a key change) and has to wait for that one, or it is held
//!   up by a barrier ([`super::barriers`]), which wakes it. Whichever
//!   group reaches a message of two last takes it for both, so nobody needs to be woken for that. Messages stand in both queues in
//!   the order of arrival, so two such messages never wait for each other.
//!
//! A group without messages and without a delivery does not exist. A group of which messages wait in the store has a
//! lane ([`super::lanes`]): the queue here is before what the store has of it, and the lane has a second queue for what
//! comes after that.

use std::collections::VecDeque;
use std::time::Instant;

use hashbrown::hash_map::Entry as MapEntry;

use super::barriers::{Barriers, Whereabouts};
use super::lanes::Lane;
use super::queue::{ByGroup, Group, NONE, Queue, ReadyItem, Slot, State, Waiting, place};
use super::{Barrier, DeliveryKey, GroupId, Groups, PLACES_KEPT};
use crate::change::Position;

/// See the module.
#[derive(Debug)]
pub(super) struct Backlog<P> {
    pub(super) slots: Vec<Slot<P>>,
    pub(super) free: Vec<u32>,
    pub(super) groups: ByGroup<Group>,
    pub(super) lanes: ByGroup<Lane>,
    /// Lanes that may be read, once.
    pub(super) lanes_free: VecDeque<GroupId>,
    /// Lanes that may be at their end.
    pub(super) lanes_over: Vec<GroupId>,
    pub(super) lane_messages: usize,
    pub(super) barriers: Barriers,
    pub(super) ready: VecDeque<(ReadyItem, Instant)>,
    /// Slots of messages without a group that left otherwise than by being taken: kept until the ready queue passes them.
    pub(super) gone: usize,
    pub(super) ready_messages: usize,
    pub(super) ready_bytes: usize,
    pub(super) bytes: usize,
    /// Places that stay when all are empty.
    pub(super) kept: usize,
}

impl<P> Backlog<P> {
    /// A message alone in its group.
    pub(super) const MESSAGE_BYTES: usize = size_of::<Slot<P>>()
        + size_of::<(GroupId, Group)>()
        + size_of::<(ReadyItem, Instant)>()
        + 2 * size_of::<GroupId>();
    /// A group that has a lane.
    pub(super) const LANE_BYTES: usize = size_of::<(GroupId, Lane)>() + 2 * size_of::<GroupId>();

    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            groups: ByGroup::default(),
            lanes: ByGroup::default(),
            lanes_free: VecDeque::new(),
            lanes_over: Vec::new(),
            lane_messages: 0,
            barriers: Barriers::default(),
            ready: VecDeque::new(),
            gone: 0,
            ready_messages: 0,
            ready_bytes: 0,
            bytes: 0,
            kept: PLACES_KEPT,
        }
    }

    /// Messages waiting, whatever their groups' states.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len() - self.gone
    }

    /// Their bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Messages of ready groups. One that belongs to two ready groups counts twice.
    pub(super) fn ready_messages(&self) -> usize {
        self.ready_messages
    }

    /// Their bytes.
    pub(super) fn ready_bytes(&self) -> usize {
        self.ready_bytes
    }

    /// Since when the first deliverable message is deliverable. Clears stale entries on the way.
    pub(super) fn ready_since(&mut self) -> Option<Instant> {
        while let Some((item, since)) = self.ready.front().copied() {
            if self.is_live(item) {
                return Some(since);
            }
            self.pass(item);
            self.ready.pop_front();
        }
        None
    }

    fn is_live(&self, item: ReadyItem) -> bool {
        match item {
            ReadyItem::Single(index) => self.message(index).is_some(),
            ReadyItem::Group(id) => self.groups.get(&id).is_some_and(|group| group.state == State::Ready),
        }
    }

    /// A stale entry leaves the ready queue.
    pub(super) fn pass(&mut self, item: ReadyItem) {
        if let ReadyItem::Single(index) = item {
            self.free.push(index);
            self.gone -= 1;
        }
    }

    /// Stale entries pile up when nothing is taken for long while messages leave for the store.
    pub(super) fn sweep_ready(&mut self) {
        if self.ready.len() > 1024 + 2 * (self.groups.len() + self.len()) {
            for _ in 0..self.ready.len() {
                let Some((item, since)) = self.ready.pop_front() else { break };
                if self.is_live(item) { self.ready.push_back((item, since)) } else { self.pass(item) }
            }
        }
    }

    /// The same for one that was not in the store's lanes: from here on it counts for the barriers of its table.
    pub(super) fn admit(&mut self, now: Instant, message: Waiting<P>) -> (u32, bool) {
        let (ties, position) = (message.ties(), message.position);
        self.barriers.admit(now, &ties, position);
        let (index, ready) = self.push(now, message);
        if ties.barrier != Barrier::None {
            self.barriers.moved(&ties, position, Whereabouts::Memory(index));
        }
        (index, ready)
    }

    /// Adds a message behind all others of its groups, and says where it is and whether it is deliverable now, as far as its
    /// groups go.
    pub(super) fn push(&mut self, now: Instant, message: Waiting<P>) -> (u32, bool) {
        let (groups, bytes, position) = (message.groups, message.bytes, message.position);
        let index = self.enter(message);
        let ready = match groups {
            Groups::None => {
                self.ready.push_back((ReadyItem::Single(index), now));
                self.ready_messages += 1;
                self.ready_bytes += bytes;
                true
            }
            Groups::One(id) => self.join(now, id, (index, bytes, position)),
            Groups::Two(first, second) => {
                let first = self.join(now, first, (index, bytes, position));
                self.join(now, second, (index, bytes, position)) && first
            }
        };
        (index, ready)
    }

    /// Behind what the store has of the group, or before it.
    fn join(&mut self, now: Instant, id: GroupId, (index, bytes, position): (u32, usize, Position)) -> bool {
        if !self.lanes.is_empty() && self.lanes.get(&id).is_some_and(|lane| position > lane.last) {
            self.append_behind(id, index, bytes);
            return false;
        }
        self.append(now, id, index, bytes)
    }

    /// `delivery` holds its groups no longer: those with messages are ready, the others are gone, or their lanes are next.
    pub(super) fn release(&mut self, now: Instant, delivery: DeliveryKey, groups: Groups) {
        for id in groups.iter() {
            let MapEntry::Occupied(mut entry) = self.groups.entry(id) else { continue };
            let group = entry.get_mut();
            if group.state != State::Busy(delivery) {
                continue;
            }
            if group.queue.head == NONE {
                entry.remove();
                self.lane_is_next(id);
            } else {
                group.state = State::Ready;
                self.ready_messages += group.queue.messages;
                self.ready_bytes += group.queue.bytes;
                self.ready.push_back((ReadyItem::Group(id), now));
            }
        }
        self.shrink_when_empty();
    }

    /// Whether barriers hold up the first message of a group; then it sleeps until they do not.
    pub(super) fn falls_asleep(&mut self, id: GroupId, index: u32) -> bool {
        let Some(message) = self.slots.get(place(index)).and_then(|slot| slot.message.as_ref()) else { return false };
        let (ties, position) = (message.ties(), message.position);
        let is_held_up = !self.barriers.lets_go(&ties, position);
        if is_held_up {
            self.barriers.sleep(id, &ties, position);
        }
        is_held_up
    }

    /// Groups that slept are looked at again.
    pub(super) fn awaken(&mut self, now: Instant) {
        for id in self.barriers.woken() {
            if let Some(group) = self.groups.get_mut(&id)
                && group.state == State::Blocked
                && group.queue.head != NONE
            {
                group.state = State::Ready;
                self.ready_messages += group.queue.messages;
                self.ready_bytes += group.queue.bytes;
                self.ready.push_back((ReadyItem::Group(id), now));
            }
            if let Some(lane) = self.lanes.get_mut(&id) {
                lane.held_up_at = None;
            }
            self.lane_is_next(id);
        }
    }

    /// `delivery`, of a life before, holds the group.
    pub(super) fn hold(&mut self, delivery: DeliveryKey, id: GroupId) {
        let group = self.groups.entry(id).or_insert(Group { queue: Queue::EMPTY, state: State::Ready });
        group.state = State::Busy(delivery);
    }

    /// Who holds the group.
    pub(super) fn holder(&self, id: GroupId) -> Option<DeliveryKey> {
        match self.groups.get(&id)?.state {
            State::Busy(delivery) => Some(delivery),
            State::Ready | State::Blocked => None,
        }
    }

    /// Puts a message at the end of a group's queue; true if the group is ready.
    pub(super) fn append(&mut self, now: Instant, id: GroupId, index: u32, bytes: usize) -> bool {
        let group = match self.groups.entry(id) {
            MapEntry::Occupied(entry) => entry.into_mut(),
            MapEntry::Vacant(entry) => {
                self.ready.push_back((ReadyItem::Group(id), now));
                entry.insert(Group { queue: Queue::EMPTY, state: State::Ready })
            }
        };
        let behind = if group.queue.head == NONE { NONE } else { group.queue.tail };
        group.queue.push(index, bytes);
        let ready = group.state == State::Ready;
        if ready {
            self.ready_messages += 1;
            self.ready_bytes += bytes;
        }
        self.link(id, behind, index);
        ready
    }

    /// The same for a lane's second queue.
    fn append_behind(&mut self, id: GroupId, index: u32, bytes: usize) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let behind = if lane.behind.head == NONE { NONE } else { lane.behind.tail };
        lane.behind.push(index, bytes);
        self.link(id, behind, index);
    }

    /// In the group's queue `next` follows `behind`.
    pub(super) fn link(&mut self, id: GroupId, behind: u32, next: u32) {
        if let Some(slot) = self.slots.get_mut(place(behind))
            && let Some(message) = &slot.message
        {
            let side = message.groups.side(id);
            slot.next[side] = next;
        }
    }

    /// Takes the head off a group's queue. The group is not ready.
    pub(super) fn pop(&mut self, id: GroupId, index: u32) {
        let Some(message) = self.message(index) else { return };
        let (side, bytes) = (message.groups.side(id), message.bytes);
        let next = self.slots.get(place(index)).map_or(NONE, |slot| slot.next[side]);
        if let Some(group) = self.groups.get_mut(&id) {
            debug_assert_eq!(group.queue.head, index, "only a group's first message is taken");
            group.queue.pop(next, bytes);
        }
    }

    pub(super) fn leave_ready(&mut self, id: GroupId, state: State) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.state == State::Ready {
            self.ready_messages -= group.queue.messages;
            self.ready_bytes -= group.queue.bytes;
        }
        group.state = state;
    }

    pub(super) fn message(&self, index: u32) -> Option<&Waiting<P>> {
        self.slots.get(place(index))?.message.as_ref()
    }

    fn place(&mut self, slot: Slot<P>) -> u32 {
        self.bytes += slot.message.as_ref().map_or(0, |message| message.bytes);
        if let Some(index) = self.free.pop() {
            if let Some(free) = self.slots.get_mut(place(index)) {
                *free = slot;
            }
            return index;
        }
        self.slots.push(slot);
        u32::try_from(self.slots.len() - 1).expect("four thousand million messages do not fit in memory")
    }

    /// Gives a message a slot; its groups' queues do not know it yet.
    pub(super) fn enter(&mut self, message: Waiting<P>) -> u32 {
        self.place(Slot { message: Some(message), next: [NONE; 2] })
    }

    pub(super) fn remove(&mut self, index: u32) -> Option<Waiting<P>> {
        let message = self.slots.get_mut(place(index))?.message.take();
        self.free.push(index);
        message
    }

    /// Takes a message out of the slab that leaves for the store. A slot that the ready queue names stays until it is
    /// passed there.
    pub(super) fn depart(&mut self, index: u32) -> Option<Waiting<P>> {
        let message = self.slots.get_mut(place(index))?.message.take()?;
        self.bytes -= message.bytes;
        match message.groups {
            Groups::None => {
                self.gone += 1;
                self.ready_messages -= 1;
                self.ready_bytes -= message.bytes;
            }
            Groups::One(_) | Groups::Two(..) => self.free.push(index),
        }
        Some(message)
    }

    /// Gives back the memory of a past crowd.
    fn shrink_when_empty(&mut self) {
        let kept = self.kept;
        if self.free.len() == self.slots.len() && self.slots.capacity() > kept {
            self.slots.clear();
            self.free.clear();
            self.slots.shrink_to(kept);
            self.free.shrink_to(kept);
            self.ready.shrink_to(kept);
            self.groups.shrink_to(kept);
            self.lanes.shrink_to(kept);
        }
    }
}

//! Messages in memory that are not in a delivery yet, by group, and which groups may be served.
//!
//! Every group is a queue threaded through one slab, so that a group of one message costs one map entry and no
//! allocation. A group is in one of three states:
//!
//! - *ready*: its first message may go; it stands in the ready queue, once. (An entry whose group has left the state is
//!   stale and skipped.)
//! - *busy*: a delivery holds messages of it; new ones queue up behind.
//! - *blocked*: its first message belongs to a second group too (a key change) and has to wait for that one. Whichever
//!   group reaches the message last takes it for both, so nobody needs to be woken. Messages stand in both queues in
//!   the order of arrival, so two such messages never wait for each other.
//!
//! A group without messages and without a delivery does not exist. A group of which messages wait in the store has a
//! lane ([`super::lanes`]): the queue here is before what the store has of it, and the lane has a second queue for what
//! comes after that.

use std::collections::VecDeque;
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Instant;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry as MapEntry;

use super::lanes::Lane;
use super::watermark::Token;
use super::{DeliveryKey, GroupId, Groups};
use crate::change::Position;

pub(super) const NONE: u32 = u32::MAX;

/// What stands for a message until it is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backing {
    /// The WAL: it is not resolved.
    Wal(Token),
    /// A page of the store's overflow; the token is of the list of such messages in memory.
    Page(Token),
    /// A lane of the store.
    Lane,
}

/// A message that waits to be taken into a delivery.
#[derive(Debug)]
pub(super) struct Waiting<P> {
    pub(super) groups: Groups,
    pub(super) bytes: usize,
    pub(super) position: Position,
    pub(super) backing: Backing,
    pub(super) payload: P,
}

#[derive(Debug)]
pub(super) struct Slot<P> {
    pub(super) message: Option<Waiting<P>>,
    /// The next message of the first and of the second group.
    pub(super) next: [u32; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    Busy(DeliveryKey),
    Blocked,
}

/// Messages of one group, threaded through the slab.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queue {
    pub(super) head: u32,
    pub(super) tail: u32,
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

impl Queue {
    pub(super) const EMPTY: Self = Self { head: NONE, tail: NONE, messages: 0, bytes: 0 };

    /// Takes the first message off; `next` is the one behind it.
    pub(super) fn pop(&mut self, next: u32, bytes: usize) {
        self.head = next;
        self.messages -= 1;
        self.bytes -= bytes;
        if self.head == NONE {
            *self = Self::EMPTY;
        }
    }

    pub(super) fn push(&mut self, index: u32, bytes: usize) {
        if self.head == NONE {
            self.head = index;
        }
        self.tail = index;
        self.messages += 1;
        self.bytes += bytes;
    }
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) queue: Queue,
    pub(super) state: State,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum ReadyItem {
    Group(GroupId),
    /// A message without a group.
    Single(u32),
}

/// A group's id is a hash already.
#[derive(Default)]
pub(super) struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// A map by group.
pub(super) type ByGroup<V> = HashMap<GroupId, V, BuildHasherDefault<IdentityHasher>>;

/// Bounds of one delivery.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Backlog<P> {
    pub(super) slots: Vec<Slot<P>>,
    free: Vec<u32>,
    pub(super) groups: ByGroup<Group>,
    pub(super) lanes: ByGroup<Lane>,
    /// Lanes that may be read, once.
    pub(super) lanes_free: VecDeque<GroupId>,
    /// Lanes that may be at their end.
    pub(super) lanes_over: Vec<GroupId>,
    pub(super) lane_messages: usize,
    pub(super) ready: VecDeque<(ReadyItem, Instant)>,
    /// Slots of messages without a group that left otherwise than by being taken: kept until the ready queue passes them.
    pub(super) gone: usize,
    pub(super) ready_messages: usize,
    pub(super) ready_bytes: usize,
    bytes: usize,
}

impl<P> Backlog<P> {
    /// A message alone in its group.
    pub(super) const MESSAGE_BYTES: usize =
        size_of::<Slot<P>>() + size_of::<(GroupId, Group)>() + size_of::<(ReadyItem, Instant)>() + size_of::<u64>();
    /// A group that has a lane.
    pub(super) const LANE_BYTES: usize = size_of::<(GroupId, Lane)>() + size_of::<GroupId>();

    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            groups: ByGroup::default(),
            lanes: ByGroup::default(),
            lanes_free: VecDeque::new(),
            lanes_over: Vec::new(),
            lane_messages: 0,
            ready: VecDeque::new(),
            gone: 0,
            ready_messages: 0,
            ready_bytes: 0,
            bytes: 0,
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
    fn pass(&mut self, item: ReadyItem) {
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

    /// Takes what the next delivery holds: from the front of the ready queue, each group's messages in order, as many as the
    /// bounds allow; the first message always goes. The groups are `delivery`'s until [`Self::release`].
    pub(super) fn take(&mut self, delivery: DeliveryKey, bounds: Bounds) -> Vec<Waiting<P>> {
        let messages = Vec::with_capacity(bounds.messages.min(self.ready_messages));
        let mut taken = Taken { messages, bytes: 0, bounds };
        while taken.has_room() {
            let Some((item, _)) = self.ready.front().copied() else { break };
            let fits = match item {
                ReadyItem::Single(index) => self.take_single(index, &mut taken),
                ReadyItem::Group(id) => self.take_group(id, delivery, &mut taken),
            };
            if !fits {
                // It stays first in the queue, for the next delivery.
                break;
            }
            self.ready.pop_front();
        }
        self.bytes -= taken.bytes;
        taken.messages
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

    fn take_single(&mut self, index: u32, taken: &mut Taken<P>) -> bool {
        let Some(bytes) = self.message(index).map(|message| message.bytes) else {
            self.pass(ReadyItem::Single(index));
            return true;
        };
        if !taken.fits(bytes) {
            return false;
        }
        self.ready_messages -= 1;
        self.ready_bytes -= bytes;
        taken.add(self.remove(index));
        true
    }

    /// Takes from the front of a group while there is room. False: nothing was taken for want of room, and the group is
    /// still ready.
    fn take_group(&mut self, id: GroupId, delivery: DeliveryKey, taken: &mut Taken<P>) -> bool {
        let Some(group) = self.groups.get_mut(&id) else { return true };
        if group.state != State::Ready {
            return true;
        }
        let queue = &mut group.queue;
        let first = self.slots.get(place(queue.head)).and_then(|slot| slot.message.as_ref());
        if first.is_some_and(|message| !taken.fits(message.bytes)) {
            return false;
        }
        self.ready_messages -= queue.messages;
        self.ready_bytes -= queue.bytes;
        // It stays so only if its first message belongs to another group too.
        group.state = State::Blocked;
        // Messages of this group alone, which is nearly all there is, need no other look-up.
        while taken.has_room()
            && let Some(slot) = self.slots.get_mut(place(queue.head))
            && let Some(message) =
                slot.message.take_if(|message| matches!(message.groups, Groups::One(_)) && taken.fits(message.bytes))
        {
            self.free.push(queue.head);
            queue.pop(slot.next[0], message.bytes);
            group.state = State::Busy(delivery);
            taken.add(Some(message));
        }
        if queue.head != NONE && taken.has_room() {
            self.take_shared(id, delivery, taken);
        }
        true
    }

    /// The same from the first message on that belongs to two groups.
    fn take_shared(&mut self, id: GroupId, delivery: DeliveryKey, taken: &mut Taken<P>) {
        while let Some(head) = self.groups.get(&id).map(|group| group.queue.head)
            && let Some(message) = self.message(head)
        {
            let groups = message.groups;
            if !taken.has_room() || !taken.fits(message.bytes) || !self.partner_agrees(id, groups, head, delivery) {
                break;
            }
            for member in groups.iter() {
                self.leave_ready(member, State::Busy(delivery));
                self.pop(member, head);
            }
            taken.add(self.remove(head));
        }
    }

    /// Whether the message's other group, if it has one, has reached the message and is free for `delivery`.
    fn partner_agrees(&self, id: GroupId, groups: Groups, index: u32, delivery: DeliveryKey) -> bool {
        groups.iter().filter(|other| *other != id).all(|other| {
            self.groups.get(&other).is_some_and(|group| {
                let free = match group.state {
                    State::Busy(holder) => holder == delivery,
                    State::Ready | State::Blocked => true,
                };
                free && group.queue.head == index
            })
        })
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

    fn remove(&mut self, index: u32) -> Option<Waiting<P>> {
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
        const KEPT: usize = 4096;
        if self.free.len() == self.slots.len() && self.slots.capacity() > KEPT {
            self.slots.clear();
            self.free.clear();
            self.slots.shrink_to(KEPT);
            self.free.shrink_to(KEPT);
            self.ready.shrink_to(KEPT);
            self.groups.shrink_to(KEPT);
            self.lanes.shrink_to(KEPT);
        }
    }
}

/// A delivery being filled.
struct Taken<P> {
    messages: Vec<Waiting<P>>,
    bytes: usize,
    bounds: Bounds,
}

impl<P> Taken<P> {
    fn has_room(&self) -> bool {
        self.messages.len() < self.bounds.messages && (self.messages.is_empty() || self.bytes < self.bounds.bytes)
    }

    fn fits(&self, bytes: usize) -> bool {
        self.messages.is_empty() || self.bytes + bytes <= self.bounds.bytes
    }

    fn add(&mut self, message: Option<Waiting<P>>) {
        if let Some(message) = message {
            self.bytes += message.bytes;
            self.messages.push(message);
        }
    }
}

pub(super) fn place(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

//! Messages that are not in a delivery yet, by group, and which groups may be served.
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
//! A group without messages and without a delivery does not exist.

use std::collections::VecDeque;
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Instant;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry as MapEntry;

use super::watermark::Token;
use super::{DeliveryKey, GroupId, Groups};

const NONE: u32 = u32::MAX;

/// A message that waits to be taken into a delivery.
#[derive(Debug)]
pub(super) struct Waiting<P> {
    pub(super) groups: Groups,
    pub(super) bytes: usize,
    pub(super) token: Token,
    pub(super) payload: P,
}

#[derive(Debug)]
struct Slot<P> {
    message: Option<Waiting<P>>,
    /// The next message of the first and of the second group.
    next: [u32; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Busy(DeliveryKey),
    Blocked,
}

#[derive(Debug)]
struct Group {
    head: u32,
    tail: u32,
    messages: usize,
    bytes: usize,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum ReadyItem {
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

/// Bounds of one delivery.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Backlog<P> {
    slots: Vec<Slot<P>>,
    free: Vec<u32>,
    groups: HashMap<GroupId, Group, BuildHasherDefault<IdentityHasher>>,
    ready: VecDeque<(ReadyItem, Instant)>,
    ready_messages: usize,
    ready_bytes: usize,
}

impl<P> Backlog<P> {
    /// A message alone in its group.
    pub(super) const MESSAGE_BYTES: usize =
        size_of::<Slot<P>>() + size_of::<(GroupId, Group)>() + size_of::<(ReadyItem, Instant)>() + size_of::<u64>();

    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            groups: HashMap::default(),
            ready: VecDeque::new(),
            ready_messages: 0,
            ready_bytes: 0,
        }
    }

    /// Messages waiting, whatever their groups' states.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
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
            let live = match item {
                ReadyItem::Single(_) => true,
                ReadyItem::Group(id) => self.groups.get(&id).is_some_and(|group| group.state == State::Ready),
            };
            if live {
                return Some(since);
            }
            self.ready.pop_front();
        }
        None
    }

    /// Adds a message behind all others of its groups. Says whether it is deliverable now, as far as its groups go.
    pub(super) fn push(&mut self, now: Instant, message: Waiting<P>) -> bool {
        let (groups, bytes) = (message.groups, message.bytes);
        let index = self.place(Slot { message: Some(message), next: [NONE; 2] });
        match groups {
            Groups::None => {
                self.ready.push_back((ReadyItem::Single(index), now));
                self.ready_messages += 1;
                self.ready_bytes += bytes;
                true
            }
            Groups::One(id) => self.append(now, id, index, bytes),
            Groups::Two(first, second) => {
                let first = self.append(now, first, index, bytes);
                self.append(now, second, index, bytes) && first
            }
        }
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
        taken.messages
    }

    /// `delivery` holds its groups no longer: those with messages are ready, the others are gone.
    pub(super) fn release(&mut self, now: Instant, delivery: DeliveryKey, groups: Groups) {
        for id in groups.iter() {
            let MapEntry::Occupied(mut entry) = self.groups.entry(id) else { continue };
            let group = entry.get_mut();
            if group.state != State::Busy(delivery) {
                continue;
            }
            if group.head == NONE {
                entry.remove();
            } else {
                group.state = State::Ready;
                self.ready_messages += group.messages;
                self.ready_bytes += group.bytes;
                self.ready.push_back((ReadyItem::Group(id), now));
            }
        }
        self.shrink_when_empty();
    }

    /// Puts a message at the end of a group's queue; true if the group is ready.
    fn append(&mut self, now: Instant, id: GroupId, index: u32, bytes: usize) -> bool {
        let group = match self.groups.entry(id) {
            MapEntry::Occupied(entry) => entry.into_mut(),
            MapEntry::Vacant(entry) => {
                self.ready.push_back((ReadyItem::Group(id), now));
                entry.insert(Group { head: NONE, tail: NONE, messages: 0, bytes: 0, state: State::Ready })
            }
        };
        // A busy group may have an empty queue; its tail then names a slot that is no longer its own.
        let behind = if group.head == NONE { NONE } else { group.tail };
        if behind == NONE {
            group.head = index;
        }
        group.tail = index;
        group.messages += 1;
        group.bytes += bytes;
        let ready = group.state == State::Ready;
        if ready {
            self.ready_messages += 1;
            self.ready_bytes += bytes;
        }
        if let Some(slot) = self.slots.get_mut(place(behind))
            && let Some(message) = &slot.message
        {
            let side = message.groups.side(id);
            slot.next[side] = index;
        }
        ready
    }

    fn take_single(&mut self, index: u32, taken: &mut Taken<P>) -> bool {
        let bytes = self.message(index).map_or(0, |message| message.bytes);
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
        let first = self.slots.get(place(group.head)).and_then(|slot| slot.message.as_ref());
        if first.is_some_and(|message| !taken.fits(message.bytes)) {
            return false;
        }
        self.ready_messages -= group.messages;
        self.ready_bytes -= group.bytes;
        // It stays so only if its first message belongs to another group too.
        group.state = State::Blocked;
        // Messages of this group alone, which is nearly all there is, need no other look-up.
        while taken.has_room()
            && let Some(slot) = self.slots.get_mut(place(group.head))
            && let Some(message) =
                slot.message.take_if(|message| matches!(message.groups, Groups::One(_)) && taken.fits(message.bytes))
        {
            self.free.push(group.head);
            group.head = slot.next[0];
            group.messages -= 1;
            group.bytes -= message.bytes;
            group.state = State::Busy(delivery);
            taken.add(Some(message));
        }
        if group.head != NONE && taken.has_room() {
            self.take_shared(id, delivery, taken);
        }
        true
    }

    /// The same from the first message on that belongs to two groups.
    fn take_shared(&mut self, id: GroupId, delivery: DeliveryKey, taken: &mut Taken<P>) {
        while let Some(head) = self.groups.get(&id).map(|group| group.head)
            && let Some(message) = self.message(head)
        {
            let groups = message.groups;
            if !taken.has_room() || !taken.fits(message.bytes) || !self.partner_agrees(id, groups, head, delivery) {
                break;
            }
            for member in groups.iter() {
                self.pop(member, head, delivery);
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
                free && group.head == index
            })
        })
    }

    /// Takes the head off a group's queue and gives the group to `delivery`.
    fn pop(&mut self, id: GroupId, index: u32, delivery: DeliveryKey) {
        self.leave_ready(id, State::Busy(delivery));
        let Some(message) = self.message(index) else { return };
        let (side, bytes) = (message.groups.side(id), message.bytes);
        let next = self.slots.get(place(index)).map_or(NONE, |slot| slot.next[side]);
        if let Some(group) = self.groups.get_mut(&id) {
            debug_assert_eq!(group.head, index, "only a group's first message is taken");
            group.head = next;
            group.messages -= 1;
            group.bytes -= bytes;
        }
    }

    fn leave_ready(&mut self, id: GroupId, state: State) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.state == State::Ready {
            self.ready_messages -= group.messages;
            self.ready_bytes -= group.bytes;
        }
        group.state = state;
    }

    fn message(&self, index: u32) -> Option<&Waiting<P>> {
        self.slots.get(place(index))?.message.as_ref()
    }

    fn place(&mut self, slot: Slot<P>) -> u32 {
        if let Some(index) = self.free.pop() {
            if let Some(free) = self.slots.get_mut(place(index)) {
                *free = slot;
            }
            return index;
        }
        self.slots.push(slot);
        u32::try_from(self.slots.len() - 1).expect("four thousand million messages do not fit in memory")
    }

    fn remove(&mut self, index: u32) -> Option<Waiting<P>> {
        let message = self.slots.get_mut(place(index))?.message.take();
        self.free.push(index);
        message
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

fn place(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

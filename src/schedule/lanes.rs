//! Groups of which messages wait in the store.
//!
//! A message that has waited too long leaves memory for the *lane* of its group. The order of such a group is: the
//! delivery that holds it, its queue in memory (read back, or come again after a restart), what the store has of it, and
//! at last the lane's second queue, of messages that arrived after those. When the group is free and its queue in
//! memory empty, the next messages are read back. When the store has nothing more, the second queue becomes the queue.
//!
//! A message of two groups stands in both lanes, and comes back when both have come to it: the one that comes there first
//! waits for the other. Waiting goes from younger to older messages only, so it never goes in a circle.

use std::time::Instant;

use hashbrown::hash_map::Entry as MapEntry;

use super::backlog::{Backing, Backlog, Group, NONE, Queue, ReadyItem, State, Waiting, place};
use super::{GroupId, Groups, Message, Want};
use crate::change::{Lsn, Position};

/// See the module.
#[derive(Debug)]
pub(super) struct Lane {
    /// Messages in the store that are not in memory, those on their way into it included.
    pub(super) stored: usize,
    /// Those on their way.
    pub(super) writing: usize,
    /// The last message that went into the store.
    pub(super) last: Position,
    /// The last one that came back.
    after: Option<Position>,
    /// Messages in memory that come after all these.
    pub(super) behind: Queue,
    is_read: bool,
    is_next: bool,
    /// The next message also belongs to a group that has not come to it.
    waits_at: Option<Position>,
}

impl Lane {
    fn new(last: Position) -> Self {
        let behind = Queue::EMPTY;
        Self { stored: 0, writing: 0, last, after: None, behind, is_read: false, is_next: false, waits_at: None }
    }

    fn add(&mut self, position: Position) {
        self.stored += 1;
        self.writing += 1;
        self.last = self.last.max(position);
        let before = before(position);
        self.after = Some(self.after.map_or(before, |after| after.min(before)));
    }
}

/// The place just before a message's: indexes count from 1, a backfill's too.
fn before(position: Position) -> Position {
    match position.index.checked_sub(1) {
        Some(index) => Position { index, ..position },
        None => Position { commit_lsn: Lsn(position.commit_lsn.0.saturating_sub(1)), index: u64::MAX },
    }
}

/// The lane of a message without a group: its own.
fn own_lane(position: Position) -> GroupId {
    let mut bytes = [0; 16];
    let parts = [position.commit_lsn.0, position.index].map(u64::to_le_bytes);
    bytes.iter_mut().zip(parts.iter().flatten()).for_each(|(place, byte)| *place = *byte);
    GroupId(xxhash_rust::xxh3::xxh3_64_with_seed(&bytes, 0x6C61_6E65))
}

impl<P> Backlog<P> {
    /// The store has messages of this group from a life before.
    pub(super) fn restore_lane(&mut self, id: GroupId, messages: usize, last: Position) {
        self.lanes.insert(id, Lane { stored: messages, ..Lane::new(last) });
        self.lane_messages += messages;
        self.lane_is_next(id);
    }

    /// Takes a waiting message, and whatever stands before it in its groups' queues, out of memory, oldest first: they are
    /// to be written.
    pub(super) fn spill(&mut self, index: u32, out: &mut Vec<Waiting<P>>) {
        let mut stack = vec![index];
        while let Some(&top) = stack.last() {
            let groups = self.message(top).map(|message| message.groups);
            let Some(groups) = groups else {
                stack.pop();
                continue;
            };
            if let Some(older) = groups.iter().find_map(|id| self.ahead_of(id, top)) {
                stack.push(older);
                continue;
            }
            stack.pop();
            for id in groups.iter() {
                self.leave_queue(id, top, &mut stack);
            }
            let Some(mut message) = self.depart(top) else { continue };
            if groups == Groups::None {
                let own = own_lane(message.position);
                message.groups = Groups::One(own);
                self.lanes.entry(own).or_insert_with(|| Lane::new(message.position)).add(message.position);
            }
            self.lane_messages += 1;
            out.push(message);
        }
        self.sweep_ready();
    }

    /// The first message of the queue in which `index` stands for the group, if it is another.
    fn ahead_of(&self, id: GroupId, index: u32) -> Option<u32> {
        let position = self.message(index)?.position;
        let queue = match self.lanes.get(&id) {
            Some(lane) if position > lane.last => &lane.behind,
            Some(_) | None => &self.groups.get(&id)?.queue,
        };
        (queue.head != index && queue.head != NONE).then_some(queue.head)
    }

    /// The first message of a queue goes into the store. A queue before the lane goes there as a whole: what is left of it
    /// is put on the stack.
    fn leave_queue(&mut self, id: GroupId, index: u32, stack: &mut Vec<u32>) {
        let Some(message) = self.message(index) else { return };
        let (position, bytes, side) = (message.position, message.bytes, message.groups.side(id));
        let next = self.slots.get(place(index)).map_or(NONE, |slot| slot.next[side]);
        if let Some(lane) = self.lanes.get_mut(&id)
            && position > lane.last
        {
            lane.behind.pop(next, bytes);
            lane.add(position);
            return;
        }
        if self.groups.get(&id).is_some_and(|group| group.state == State::Ready) {
            self.leave_ready(id, State::Blocked);
        }
        self.pop(id, index);
        match self.lanes.entry(id) {
            MapEntry::Occupied(mut lane) => {
                lane.get_mut().add(position);
                let rest = self.groups.get(&id).map_or(NONE, |group| group.queue.head);
                if rest != NONE {
                    stack.push(rest);
                    return;
                }
            }
            MapEntry::Vacant(entry) => {
                let lane = entry.insert(Lane::new(position));
                lane.add(position);
                if let Some(group) = self.groups.get_mut(&id) {
                    lane.behind = std::mem::replace(&mut group.queue, Queue::EMPTY);
                }
            }
        }
        if self.groups.get(&id).is_some_and(|group| !matches!(group.state, State::Busy(_))) {
            self.groups.remove(&id);
        }
    }

    /// Messages of these groups are durable.
    pub(super) fn lanes_written(&mut self, groups: impl IntoIterator<Item = GroupId>) {
        for id in groups {
            if let Some(lane) = self.lanes.get_mut(&id) {
                lane.writing = lane.writing.saturating_sub(1);
            }
            self.lane_is_next(id);
        }
    }

    /// If nobody holds the group, its lane may be read.
    pub(super) fn lane_is_next(&mut self, id: GroupId) {
        if let Some(lane) = self.lanes.get_mut(&id)
            && !lane.is_next
            && !self.groups.contains_key(&id)
        {
            lane.is_next = true;
            self.lanes_free.push_back(id);
        }
    }

    /// Lanes to be read.
    pub(super) fn wants(&mut self, lanes_max: usize) -> Vec<Want> {
        let mut wants = Vec::new();
        while wants.len() < lanes_max
            && let Some(id) = self.lanes_free.pop_front()
        {
            let is_held = self.groups.contains_key(&id);
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            lane.is_next = false;
            if is_held || lane.is_read || lane.waits_at.is_some() || lane.stored == lane.writing {
                continue;
            }
            lane.is_read = true;
            wants.push(Want { group: id, after: lane.after });
        }
        wants
    }

    /// The lane could not be read; it is wanted again.
    pub(super) fn lane_unread(&mut self, id: GroupId) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.is_read = false;
        }
        self.lane_is_next(id);
    }

    /// What was read from a lane, from its first message on. Returns how many messages the store should have had and has
    /// not.
    pub(super) fn lane_read(&mut self, now: Instant, id: GroupId, messages: Vec<Message<P>>) -> usize {
        let is_empty = messages.is_empty();
        for message in messages {
            let position = message.position;
            let late = message.groups.iter().find(|other| {
                *other != id && self.lanes.get(other).is_some_and(|lane| lane.waits_at != Some(position))
            });
            if late.is_some() {
                if let Some(lane) = self.lanes.get_mut(&id) {
                    lane.waits_at = Some(position);
                }
                break;
            }
            for member in message.groups.iter() {
                if let Some(lane) = self.lanes.get_mut(&member) {
                    lane.stored = lane.stored.saturating_sub(1);
                    lane.after = Some(position);
                    lane.waits_at = None;
                }
            }
            self.lane_messages = self.lane_messages.saturating_sub(1);
            self.push_back(now, message);
        }
        let missing = match self.lanes.get_mut(&id) {
            Some(lane) => {
                lane.is_read = false;
                let missing = if is_empty { lane.stored - lane.writing } else { 0 };
                lane.stored -= missing;
                missing
            }
            None => 0,
        };
        self.settle(now, id);
        self.lane_is_next(id);
        missing
    }

    /// A message comes back: behind the others of its groups in memory, before what the store has.
    fn push_back(&mut self, now: Instant, message: Message<P>) {
        let Message { groups, bytes, position, payload } = message;
        let waiting = Waiting { groups, bytes, position, backing: Backing::Lane, payload };
        let index = self.enter(waiting);
        for id in groups.iter() {
            self.append(now, id, index, bytes);
        }
        for id in groups.iter() {
            self.settle(now, id);
        }
    }

    /// A lane of which the store has nothing more is no more: what waited behind it follows.
    fn settle(&mut self, now: Instant, id: GroupId) {
        if self.lanes.get(&id).is_none_or(|lane| lane.stored > 0 || lane.is_read) {
            return;
        }
        let Some(lane) = self.lanes.remove(&id) else { return };
        let behind = lane.behind;
        if behind.head == NONE {
            return;
        }
        let group = match self.groups.entry(id) {
            MapEntry::Occupied(entry) => entry.into_mut(),
            MapEntry::Vacant(entry) => {
                self.ready.push_back((ReadyItem::Group(id), now));
                entry.insert(Group { queue: Queue::EMPTY, state: State::Ready })
            }
        };
        let tail = group.queue.tail;
        if group.queue.head == NONE {
            group.queue = behind;
        } else {
            group.queue.tail = behind.tail;
            group.queue.messages += behind.messages;
            group.queue.bytes += behind.bytes;
        }
        if group.state == State::Ready {
            self.ready_messages += behind.messages;
            self.ready_bytes += behind.bytes;
        }
        self.link(id, tail, behind.head);
    }
}

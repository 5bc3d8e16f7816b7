//! Groups of which messages wait in the store.
//!
//! A message that has waited too long leaves memory for the *lane* of its group. The order of such a group is: the
//! delivery that holds it, its queue in memory (read back, or come again after a restart), what the store has of it, and
//! at last the lane's second queue, of messages that arrived after those. When the group is free and its queue in
//! memory empty, the next messages are read back. When the store has nothing more, the second queue becomes the queue.
//!
//! A message of two groups stands in both lanes, and comes back when both have come to it: the one that comes there first
//! waits for the other. Waiting goes from younger to older messages only, so it never goes in a circle.

use std::collections::BTreeMap;
use std::time::Instant;

use hashbrown::hash_map::Entry as MapEntry;

use super::backlog::Backlog;
use super::queue::{Backing, Group, NONE, Queue, ReadyItem, State, Waiting, place};
use super::{DeliveryKey, GroupId, Groups, Message, Want};
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
    /// The last one that came back; `None`: none of those of a life before.
    after: Option<Position>,
    /// Messages in memory that come after all these.
    pub(super) behind: Queue,
    /// One older than others in it is on its way.
    is_disordered: bool,
    is_read: bool,
    /// How many the store was sure to have when it was asked.
    asked: usize,
    is_next: bool,
    /// The next message also belongs to a group that has not come to it.
    waits_at: Option<Position>,
}

impl Lane {
    fn new(last: Position) -> Self {
        let behind = Queue::EMPTY;
        Self {
            stored: 0,
            writing: 0,
            last,
            after: None,
            behind,
            is_disordered: false,
            is_read: false,
            asked: 0,
            is_next: false,
            waits_at: None,
        }
    }

    /// One of which this is the first message.
    fn begin(first: Position) -> Self {
        Self { after: Some(before(first)), ..Self::new(first) }
    }

    fn add(&mut self, position: Position) {
        self.stored += 1;
        self.writing += 1;
        self.is_disordered |= position < self.last;
        self.last = self.last.max(position);
        self.after = self.after.map(|after| after.min(before(position)));
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

    /// Takes a waiting message, and whatever has to go before it or with it, out of memory, oldest first: they are to be
    /// written. `Err`: it has to wait for the delivery that holds one of the groups, since that is not `kept`. If it did
    /// not wait, a crash could leave the delivery's messages to a page or the WAL, to come back behind this one.
    pub(super) fn spill(
        &mut self,
        index: u32,
        kept: impl Fn(DeliveryKey) -> bool,
        out: &mut Vec<Waiting<P>>,
    ) -> Result<(), DeliveryKey> {
        for index in self.goes_along(index, kept)? {
            let Some(groups) = self.message(index).map(|message| message.groups) else { continue };
            for id in groups.iter() {
                self.leave_queue(id, index);
            }
            let Some(mut message) = self.depart(index) else { continue };
            if groups == Groups::None {
                let own = own_lane(message.position);
                message.groups = Groups::One(own);
                self.lanes.entry(own).or_insert_with(|| Lane::begin(message.position)).add(message.position);
                self.lane_messages += 1;
            }
            out.push(message);
        }
        self.sweep_ready();
        Ok(())
    }

    /// A message and all that go into the store with it, oldest first: those before it in its groups' queues, those before
    /// these in theirs. What has come back from a lane is still there, and may stay in memory; only of a queue before a
    /// lane all go, since that is read from the first of them on.
    fn goes_along(&self, index: u32, kept: impl Fn(DeliveryKey) -> bool) -> Result<Vec<u32>, DeliveryKey> {
        let mut going = BTreeMap::new();
        // How far the groups' queues, and their lanes' second ones, have been walked along.
        let mut walked = BTreeMap::new();
        let mut stack = vec![index];
        while let Some(index) = stack.pop() {
            let Some(message) = self.message(index) else { continue };
            let (position, groups) = (message.position, message.groups);
            if going.insert(position, index).is_some() {
                continue;
            }
            for id in groups.iter() {
                if let Some(holder) = self.holder(id).filter(|holder| !kept(*holder)) {
                    return Err(holder);
                }
                let queue = self.groups.get(&id).map_or(NONE, |group| group.queue.head);
                let (is_behind, is_new, queue, to) = match self.lanes.get(&id) {
                    Some(lane) if position > lane.last => (true, false, lane.behind.head, position),
                    Some(lane) => (false, false, queue, lane.last),
                    None => (false, true, queue, position),
                };
                let next = walked.entry((id, is_behind)).or_insert(queue);
                while let Some(message) = self.message(*next)
                    && message.position <= to
                    && let Some(slot) = self.slots.get(place(*next))
                {
                    if !(is_new && message.backing == Backing::Lane) {
                        stack.push(*next);
                    }
                    *next = slot.next[message.groups.side(id)];
                }
            }
        }
        Ok(going.into_values().collect())
    }

    /// A message goes into the store that is the first of its queue, but for those that are there.
    fn leave_queue(&mut self, id: GroupId, index: u32) {
        let Some(message) = self.message(index) else { return };
        let (position, bytes, side) = (message.position, message.bytes, message.groups.side(id));
        let next = self.slots.get(place(index)).map_or(NONE, |slot| slot.next[side]);
        let is_before = self.lanes.get(&id).is_some_and(|lane| position <= lane.last);
        if is_before {
            if self.groups.get(&id).is_some_and(|group| group.state == State::Ready) {
                self.leave_ready(id, State::Blocked);
            }
            self.pop(id, index);
        } else if !self.lanes.contains_key(&id) {
            self.begin_lane(id, index, position);
        }
        self.lane_messages += 1;
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        lane.add(position);
        if !is_before {
            lane.behind.pop(next, bytes);
        }
        self.end_group(id);
    }

    /// A group without messages that nobody holds is none.
    fn end_group(&mut self, id: GroupId) {
        let is_over = |group: &Group| group.queue.head == NONE && !matches!(group.state, State::Busy(_));
        if self.groups.get(&id).is_some_and(is_over) {
            self.leave_ready(id, State::Blocked);
            self.groups.remove(&id);
        }
    }

    /// The group's queue from this message on becomes what is behind its lane; those before it are in the store already.
    fn begin_lane(&mut self, id: GroupId, index: u32, position: Position) {
        let mut lane = Lane::begin(position);
        let mut kept = Queue::EMPTY;
        let mut next = self.groups.get(&id).map_or(NONE, |group| group.queue.head);
        while next != index
            && let Some(message) = self.message(next)
        {
            let (bytes, side) = (message.bytes, message.groups.side(id));
            kept.push(next, bytes);
            next = self.slots.get(place(next)).map_or(NONE, |slot| slot.next[side]);
        }
        self.link(id, kept.tail, NONE);
        if let Some(group) = self.groups.get_mut(&id) {
            let whole = std::mem::replace(&mut group.queue, kept);
            let (messages, bytes) = (whole.messages - kept.messages, whole.bytes - kept.bytes);
            lane.behind = Queue { head: index, tail: whole.tail, messages, bytes };
            if group.state == State::Ready {
                self.ready_messages -= messages;
                self.ready_bytes -= bytes;
            }
        }
        self.lanes.insert(id, lane);
    }

    /// Messages of these groups are durable. A lane may have been read to its end already.
    pub(super) fn lanes_written(&mut self, groups: impl IntoIterator<Item = GroupId>) {
        for id in groups {
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            lane.writing = lane.writing.saturating_sub(1);
            if lane.stored == 0 && lane.writing == 0 {
                self.lanes_over.push(id);
            } else {
                self.lane_is_next(id);
            }
        }
    }

    /// Ends the lanes that had been read to their end before it was said that they are written.
    pub(super) fn end_lanes(&mut self, now: Instant) {
        for id in std::mem::take(&mut self.lanes_over) {
            self.settle(now, id);
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

    /// Lanes to be read. What is on its way into a lane becomes durable in the order of positions, but for the odd one that
    /// is older than others there: then all are waited for.
    pub(super) fn wants(&mut self, lanes_max: usize) -> Vec<Want> {
        let mut wants = Vec::new();
        while wants.len() < lanes_max
            && let Some(id) = self.lanes_free.pop_front()
        {
            let is_held = self.groups.contains_key(&id);
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            lane.is_next = false;
            lane.is_disordered &= lane.writing > 0;
            lane.asked = lane.stored.saturating_sub(lane.writing);
            if is_held || lane.is_read || lane.waits_at.is_some() || lane.is_disordered || lane.asked == 0 {
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
                    self.lane_messages -= usize::from(lane.stored > 0);
                    lane.stored = lane.stored.saturating_sub(1);
                    lane.after = Some(position);
                    lane.waits_at = None;
                }
            }
            self.push_back(now, message);
        }
        let missing = match self.lanes.get_mut(&id) {
            Some(lane) => {
                lane.is_read = false;
                let missing = if is_empty { lane.asked.min(lane.stored) } else { 0 };
                lane.stored -= missing;
                self.lane_messages -= missing;
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
        if groups == Groups::One(own_lane(position)) {
            self.push(now, Waiting { groups: Groups::None, bytes, position, backing: Backing::Lane, payload });
            return;
        }
        let waiting = Waiting { groups, bytes, position, backing: Backing::Lane, payload };
        let index = self.enter(waiting);
        for id in groups.iter() {
            self.append(now, id, index, bytes);
        }
        for id in groups.iter() {
            self.settle(now, id);
        }
    }

    /// A lane of which the store has nothing more, and gets nothing more, is no more: what waited behind it follows.
    fn settle(&mut self, now: Instant, id: GroupId) {
        if self.lanes.get(&id).is_none_or(|lane| lane.stored > 0 || lane.writing > 0 || lane.is_read) {
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

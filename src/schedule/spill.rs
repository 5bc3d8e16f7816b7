//! Messages that leave memory for the lanes of their groups, or go back there.

use std::collections::{BTreeMap, BTreeSet};

use super::backlog::Backlog;
use super::barriers::Whereabouts;
use super::lanes::{Lane, own_lane};
use super::queue::{Backing, Group, NONE, Queue, State, Waiting, place};
use super::{Barrier, DeliveryKey, GroupId, Groups, ScopeId};
use crate::change::Position;

impl<P> Backlog<P> {
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
            if message.barrier != Barrier::None {
                self.barriers.moved(&message.ties(), message.position, Whereabouts::Store);
            }
            if groups == Groups::None {
                let own = own_lane(message.position);
                message.groups = Groups::One(own);
                self.lanes.entry(own).or_insert_with(|| Lane::begin(message.position, None)).add(message.position);
                self.lane_messages += 1;
            }
            out.push(message);
        }
        self.sweep_ready();
        Ok(())
    }

    /// A message and all that go into the store with it, oldest first: those before it in its groups' queues, those before
    /// these in theirs, the last barriers before any of them. What has come back from a lane is still there, and may stay in
    /// memory; only of a queue before a lane all go, since that is read from the first of them on.
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
            for barrier in self.barriers.last_before(&message.ties(), position) {
                match barrier {
                    Whereabouts::Memory(index) => stack.push(index),
                    Whereabouts::Held(root) if !kept(root) => return Err(root),
                    Whereabouts::Held(_) | Whereabouts::Store => {}
                }
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
        let (position, scope, bytes, side) = (message.position, message.scope, message.bytes, message.groups.side(id));
        let next = self.slots.get(place(index)).map_or(NONE, |slot| slot.next[side]);
        let is_before = self.lanes.get(&id).is_some_and(|lane| position <= lane.last);
        if is_before {
            if self.groups.get(&id).is_some_and(|group| group.state == State::Ready) {
                self.leave_ready(id, State::Blocked);
            }
            self.pop(id, index);
        } else if !self.lanes.contains_key(&id) {
            self.begin_lane(id, index, (position, scope));
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
    fn begin_lane(&mut self, id: GroupId, index: u32, (position, scope): (Position, ScopeId)) {
        let mut lane = Lane::begin(position, Some(scope));
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

    /// The group waits for a delivery that has failed: what has come back of its lane is forgotten in memory, since the
    /// store has it still, and so is what comes after that in other groups.
    pub(super) fn unload(&mut self, id: GroupId) {
        let mut gone = BTreeSet::new();
        let mut cuts = vec![(id, None)];
        while let Some((id, from)) = cuts.pop() {
            for index in self.cut(id, from) {
                let Some(message) = self.message(index) else { continue };
                let from = Some(message.position);
                cuts.extend(message.groups.iter().filter(|other| *other != id).map(|other| (other, from)));
                gone.insert(index);
            }
        }
        gone.into_iter().for_each(|index| drop(self.depart(index)));
        self.sweep_ready();
    }

    /// Of a group's queue from a position on, what the store's lane has leaves it and is returned; the rest stands behind
    /// the lane.
    fn cut(&mut self, id: GroupId, from: Option<Position>) -> Vec<u32> {
        let Some(whole) = self.groups.get(&id).map(|group| group.queue) else { return Vec::new() };
        let (mut kept, mut gone, mut positions, mut scope) = (Queue::EMPTY, Vec::new(), Vec::new(), None);
        let (mut next, mut bytes) = (whole.head, 0);
        while let Some(message) = self.message(next)
            && message.backing == Backing::Lane
        {
            let is_kept = Some(message.position) < from;
            if is_kept {
                kept.push(next, message.bytes);
            } else {
                scope = scope.or(Some(message.scope));
                gone.push(next);
                positions.push(message.position);
                bytes += message.bytes;
            }
            next = self.slots.get(place(next)).map_or(NONE, |slot| slot.next[message.groups.side(id)]);
        }
        let Some(first) = positions.first() else { return gone };
        let lane = self.lanes.entry(id).or_insert_with(|| Lane::begin(*first, scope));
        positions.iter().for_each(|position| lane.take_back(*position, scope));
        self.lane_messages += gone.len();
        let messages = whole.messages - kept.messages;
        let behind = lane.behind;
        if next != NONE {
            let tail = if behind.head == NONE { whole.tail } else { behind.tail };
            let (messages, bytes) =
                (messages - gone.len() + behind.messages, whole.bytes - kept.bytes - bytes + behind.bytes);
            lane.behind = Queue { head: next, tail, messages, bytes };
            self.link(id, whole.tail, behind.head);
        }
        self.link(id, kept.tail, NONE);
        if let Some(group) = self.groups.get_mut(&id) {
            group.queue = kept;
            if group.state == State::Ready {
                self.ready_messages -= messages;
                self.ready_bytes -= whole.bytes - kept.bytes;
            }
        }
        self.end_group(id);
        self.lane_is_next(id);
        gone
    }
}

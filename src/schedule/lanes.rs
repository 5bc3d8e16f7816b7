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

use super::backlog::Backlog;
use super::queue::{Backing, Group, NONE, Queue, ReadyItem, State, Waiting};
use super::{GroupId, Groups, Message, ScopeId, Want};
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
    /// The next message comes after this: the last one that came back. `None`: the first is next, and its place is not known.
    after: Option<Position>,
    /// The table of its messages, if it is known and they have a group.
    scope: Option<ScopeId>,
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
    /// A barrier holds up the next message.
    pub(super) held_up_at: Option<Position>,
}

impl Lane {
    fn new(last: Position) -> Self {
        let behind = Queue::EMPTY;
        Self {
            stored: 0,
            writing: 0,
            last,
            after: None,
            scope: None,
            behind,
            is_disordered: false,
            is_read: false,
            asked: 0,
            is_next: false,
            waits_at: None,
            held_up_at: None,
        }
    }

    /// One of which this is the first message, of this table if it has a group.
    pub(super) fn begin(first: Position, scope: Option<ScopeId>) -> Self {
        Self { after: Some(before(first)), scope, ..Self::new(first) }
    }

    pub(super) fn add(&mut self, position: Position) {
        self.stored += 1;
        self.writing += 1;
        self.is_disordered |= position < self.last;
        self.last = self.last.max(position);
        self.step_back(position);
    }

    /// A message that came back is in memory no longer.
    pub(super) fn take_back(&mut self, position: Position, scope: Option<ScopeId>) {
        // Messages of no known table are held up by nothing.
        self.scope = self.scope.filter(|own| Some(*own) == scope);
        self.stored += 1;
        self.last = self.last.max(position);
        self.step_back(position);
    }

    /// Its next message is not after this one.
    fn step_back(&mut self, position: Position) {
        self.after = self.after.map(|after| after.min(before(position)));
        self.waits_at = self.waits_at.filter(|at| *at < position);
        self.held_up_at = self.held_up_at.filter(|at| *at < position);
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
pub fn own_lane(position: Position) -> GroupId {
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

    /// Where a lane of a life before begins, and its table: so that it need not be read to know that a barrier holds it up.
    pub(super) fn restore_beginning(&mut self, id: GroupId, scope: ScopeId, first: Position) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            (lane.after, lane.scope) = (Some(before(first)), Some(scope));
        }
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

    /// Lanes to be read, but for those of which it is known that a barrier holds them up. What is on its way into a lane
    /// becomes durable in the order of positions, but for the odd one that is older than others there: then all are waited
    /// for.
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
            let waits = lane.waits_at.is_some() || lane.held_up_at.is_some();
            if is_held || lane.is_read || waits || lane.is_disordered || lane.asked == 0 {
                continue;
            }
            if let (Some(scope), Some(after)) = (lane.scope, lane.after)
                && self.barriers.holds_all_after(scope, after)
            {
                self.barriers.sleep_after(id, scope, after);
                lane.held_up_at = Some(after);
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
            let (ties, is_single) = (message.ties(), message.groups == Groups::One(own_lane(position)));
            if !is_single && !self.barriers.lets_go(&ties, position) {
                self.barriers.sleep(id, &ties, position);
                if let Some(lane) = self.lanes.get_mut(&id) {
                    lane.held_up_at = Some(position);
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
        let missing = self.is_read(id, is_empty);
        self.settle(now, id);
        self.lane_is_next(id);
        self.awaken(now);
        missing
    }

    /// The store's messages of a lane come after one position and up to another.
    pub(super) fn lane_range(&self, id: GroupId) -> Option<(Option<Position>, Position)> {
        self.lanes.get(&id).map(|lane| (lane.after, lane.last))
    }

    /// Counts off what the store should have had and has not.
    fn is_read(&mut self, id: GroupId, is_empty: bool) -> usize {
        let Some(lane) = self.lanes.get_mut(&id) else { return 0 };
        lane.is_read = false;
        let missing = if is_empty { lane.asked.min(lane.stored) } else { 0 };
        lane.stored -= missing;
        self.lane_messages -= missing;
        if let Some(scope) = lane.scope
            && missing > 0
        {
            self.barriers.lose(scope, lane.after, missing);
        }
        missing
    }

    /// A message comes back: behind the others of its groups in memory, before what the store has.
    fn push_back(&mut self, now: Instant, message: Message<P>) {
        let waiting = Waiting::new(message, Backing::Lane);
        let (groups, bytes) = (waiting.groups, waiting.bytes);
        if groups == Groups::One(own_lane(waiting.position)) {
            self.push(now, Waiting { groups: Groups::None, ..waiting });
            return;
        }
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

//! How new deliveries are formed: when, and of what.

use std::time::Instant;

use super::backlog::Backlog;
use super::barriers::Whereabouts;
use super::deliveries::{Delivery, Member};
use super::queue::{Backing, NONE, ReadyItem, State, Waiting, place};
use super::watermark::{Place, Token};
use super::{Barrier, Command, DeliveryKey, GroupId, Groups, Scheduler};

/// Bounds of one delivery.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

impl<P> Scheduler<P> {
    /// When a new delivery may be formed, as far as messages and `max_ack_pending` go.
    pub(super) fn fresh_at(&mut self) -> Option<Instant> {
        let room = self.rules.max_ack_pending.saturating_sub(self.ack_pending);
        if room == 0 {
            return None;
        }
        let since = self.backlog.ready_since()?;
        let full = self.backlog.ready_messages() >= self.rules.batch_size.min(room)
            || self.backlog.ready_bytes() >= self.rules.batch_bytes;
        Some(if full { since } else { since + self.rules.batch_timeout })
    }

    /// The next new delivery, if one may be formed.
    pub(super) fn form_next(&mut self, now: Instant) -> Option<Command<P>> {
        if self.fresh_at().is_none_or(|at| at > now) {
            return None;
        }
        let key = DeliveryKey(self.next_key);
        let room = self.rules.max_ack_pending - self.ack_pending;
        let bounds = Bounds { messages: self.rules.batch_size.min(room), bytes: self.rules.batch_bytes };
        let mut taken = self.backlog.take(key, bounds);
        // Parts of a split delivery that share a group then follow each other by their first messages, which is how their
        // order is found again after a restart.
        taken.sort_unstable_by_key(|message| message.position);
        if taken.is_empty() {
            // All that looked ready waits for its second group, and is no longer in the ready queue.
            return None;
        }
        self.next_key += 1;
        self.ack_pending += taken.len();
        self.gate.fresh_has_turn();
        let (mut members, mut messages) = (Vec::with_capacity(taken.len()), Vec::with_capacity(taken.len()));
        for message in taken {
            let token = self.leave_backlog((message.backing, message.bytes), Place::In(key));
            let ties = message.ties();
            if ties.barrier != Barrier::None {
                self.backlog.barriers.moved(&ties, message.position, Whereabouts::Held(key));
            }
            members.push(Member { token, position: message.position, ties });
            messages.push(message.payload);
        }
        self.deliveries.insert(key, Delivery::new(key, members));
        self.started(now, key);
        Some(Command::Form { delivery: key, messages })
    }

    /// A message leaves memory's queues. Its token, if only the WAL has it.
    pub(super) fn leave_backlog(&mut self, (backing, bytes): (Backing, usize), place: Place) -> Option<Token> {
        match backing {
            Backing::Wal(token) => {
                self.watermark.moved(token, place);
                Some(token)
            }
            Backing::Page(token) => {
                self.loaded.resolve(token);
                self.loaded_bytes -= bytes;
                None
            }
            Backing::Lane => None,
        }
    }
}

impl<P> Backlog<P> {
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
        let is_idle = self.barriers.is_idle();
        if !is_idle
            && let Some(head) =
                self.groups.get(&id).filter(|group| group.state == State::Ready).map(|group| group.queue.head)
            && self.falls_asleep(id, head)
        {
            self.leave_ready(id, State::Blocked);
            return true;
        }
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
            && let Some(message) = slot.message.take_if(|message| {
                matches!(message.groups, Groups::One(_))
                    && taken.fits(message.bytes)
                    && (is_idle || self.barriers.lets_go(&message.ties(), message.position))
            })
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
            let may_go = self.barriers.lets_go(&message.ties(), message.position);
            let fits = taken.has_room() && taken.fits(message.bytes);
            if !may_go || !fits || !self.partner_agrees(id, groups, head, delivery) {
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

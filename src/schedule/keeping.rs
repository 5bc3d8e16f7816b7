//! What goes into the store, and when it comes back.

use std::time::{Duration, Instant};

use super::deliveries::Kept;
use super::queue::{Backing, Waiting};
use super::watermark::{Place, Token};
use super::{
    BEHIND_AFTER, BreakerState, Command, DeliveryKey, GroupId, KEEP_AFTER, Message, Position, Scheduler, StoreRoom,
    World, WriteId,
};

/// How often messages are looked through for their age.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A message read back from the overflow that waits so long behind a delivery that failed goes into its group's lane.
const STUCK_AFTER: Duration = Duration::from_millis(250);
/// Messages that leave for the lanes at once, and their bytes.
const SPILL_MESSAGES: usize = 2000;
const SPILL_BYTES: usize = 1 << 20;
/// A page of the overflow is written when it has so many bytes.
const PAGE_BYTES: usize = 256 << 10;
/// Lanes that are read at once.
const LANES_AT_ONCE: usize = 64;
/// How long to wait when the store could not be read.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What is on its way into the store.
#[derive(Debug, Default)]
pub(super) struct Write {
    tokens: Vec<Token>,
    lanes: Vec<GroupId>,
    page_messages: usize,
    deliveries: Vec<DeliveryKey>,
}

impl<P> Scheduler<P> {
    /// What a [`Command`] or [`super::Verdict`] wanted written is durable: the store has it from here on.
    pub fn written(&mut self, write: WriteId) {
        let Some(write) = self.writes.remove(&write) else { return };
        for token in write.tokens {
            self.watermark.resolve(token);
        }
        self.backlog.lanes_written(write.lanes);
        self.overflow.written(write.page_messages);
        for key in write.deliveries {
            let Some(delivery) = self.deliveries.get_mut(&key) else { continue };
            delivery.kept = Kept::Yes;
            self.parked += 1;
            for member in &mut delivery.members {
                if let Some(token) = member.token.take() {
                    self.watermark.resolve(token);
                }
            }
        }
    }

    /// A [`Command::Park`] cannot be carried out yet: it is asked for again.
    pub fn not_written(&mut self, write: WriteId) {
        let Some(write) = self.writes.remove(&write) else { return };
        for key in write.deliveries {
            let Some(delivery) = self.deliveries.get_mut(&key) else { continue };
            delivery.kept = Kept::No;
            for token in delivery.members.iter().filter_map(|member| member.token) {
                self.watermark.moved(token, Place::In(key));
            }
        }
    }

    pub(super) fn write_of(&mut self, deliveries: &[DeliveryKey]) -> WriteId {
        for key in deliveries {
            let Some(delivery) = self.deliveries.get_mut(key) else { continue };
            delivery.kept = Kept::Writing;
            for token in delivery.members.iter().filter_map(|member| member.token) {
                self.watermark.moved(token, Place::Leaving);
            }
        }
        self.begin(Write { deliveries: deliveries.to_vec(), ..Write::default() })
    }

    fn spill_bytes(&self) -> usize {
        SPILL_BYTES.min(self.rules.write_bytes)
    }

    fn page_bytes(&self) -> usize {
        PAGE_BYTES.min(self.rules.write_bytes)
    }

    fn begin(&mut self, write: Write) -> WriteId {
        let id = WriteId(self.next_write);
        self.next_write += 1;
        self.writes.insert(id, write);
        id
    }

    /// Whether new messages have to go to the store: they could not be delivered soon.
    pub(super) fn must_overflow(&mut self, now: Instant, world: &World) -> bool {
        if !self.rules.keeps || world.store == StoreRoom::Shut || self.gate.is_stopping() {
            return false;
        }
        self.gate.is_paused()
            || world.memory.is_share_full
            || self.gate.is_breaker_open()
            || self
                .backlog
                .ready_since()
                .is_some_and(|since| now.saturating_duration_since(since) >= BEHIND_AFTER + self.rules.batch_timeout)
    }

    /// What is to be written now.
    pub(super) fn keep(&mut self, now: Instant, world: &World) -> Option<Command<P>> {
        self.take_back(now);
        if !self.rules.keeps || world.store != StoreRoom::Open {
            return None;
        }
        // First, since what waits behind a delivery goes after it.
        if let Some(command) = self.park_next() {
            return Some(command);
        }
        if self.look_at.is_none_or(|at| at <= now) {
            self.look_at = Some(now + LOOK_EVERY);
            if let Some(command) = self.look_for_age(now).or_else(|| self.park_next()) {
                return Some(command);
            }
        }
        if self.gate.is_stopping() || self.overflow.page_at(self.page_bytes()).is_none_or(|at| at > now) {
            return None;
        }
        let (tokens, messages) = self.overflow.take_page(self.page_bytes());
        tokens.iter().for_each(|token| self.watermark.moved(*token, Place::Leaving));
        let write = self.begin(Write { tokens, page_messages: messages.len(), ..Write::default() });
        Some(Command::Overflow { write, messages })
    }

    fn park_next(&mut self) -> Option<Command<P>> {
        while let Some(key) = self.to_park.pop_front() {
            if self.deliveries.get(&key).is_some_and(|delivery| delivery.kept == Kept::Asked) {
                let write = self.write_of(&[key]);
                return Some(Command::Park { delivery: key, write });
            }
        }
        None
    }

    /// New messages that were to go to the store, and need not any more.
    fn take_back(&mut self, now: Instant) {
        if self.overflows || self.gate.is_stopping() {
            return;
        }
        while let Some((token, message)) = self.overflow.take_back() {
            self.admit(now, token, message);
        }
    }

    /// Deliveries that hang, and messages that have waited too long.
    fn look_for_age(&mut self, now: Instant) -> Option<Command<P>> {
        let mut leaving = Vec::new();
        let mut bytes = 0;
        let mut last = None;
        while let Some(limit) = now.checked_sub(KEEP_AFTER)
            && let Some((token, place)) = self.watermark.next_aged(last, limit)
        {
            last = Some(token);
            match place {
                Place::In(key) => self.park_aged(key),
                Place::Waiting(index) if !self.gate.is_stopping() => self.spill(index, &mut leaving, &mut bytes),
                Place::Waiting(_) | Place::Buffered | Place::Leaving => {}
            }
            if leaving.len() >= SPILL_MESSAGES || bytes >= self.spill_bytes() {
                break;
            }
        }
        if leaving.len() < SPILL_MESSAGES && bytes < self.spill_bytes() && !self.gate.is_stopping() {
            self.spill_stuck(now, &mut leaving, &mut bytes);
        }
        if leaving.is_empty() {
            return None;
        }
        // There may be more.
        self.look_at = None;
        Some(self.spill_command(leaving))
    }

    fn park_aged(&mut self, key: DeliveryKey) {
        if let Some(delivery) = self.deliveries.get_mut(&key)
            && delivery.kept == Kept::No
        {
            delivery.kept = Kept::Asked;
            self.to_park.push_back(key);
        }
    }

    fn spill(&mut self, index: u32, leaving: &mut Vec<(Option<Token>, Waiting<P>)>, bytes: &mut usize) {
        let (mut spilled, deliveries, families) = (Vec::new(), &self.deliveries, &self.families);
        let is_kept = |key: &DeliveryKey| {
            deliveries.get(key).is_none_or(|delivery| match delivery.kept {
                Kept::No | Kept::Asked => false,
                Kept::Writing | Kept::Yes => true,
            })
        };
        let kept = |root| families.get(&root).map_or_else(|| is_kept(&root), |family| family.iter().all(is_kept));
        if let Err(root) = self.backlog.spill(index, kept, &mut spilled) {
            // It follows when these are on their way.
            let family = self.families.get(&root).cloned().unwrap_or_else(|| vec![root]);
            family.into_iter().for_each(|key| self.park_aged(key));
        }
        for message in spilled {
            *bytes += message.bytes;
            let token = self.leave_backlog((message.backing, message.bytes), Place::Leaving);
            leaving.push((token, message));
        }
    }

    /// What came back from the overflow and waits behind a delivery that failed, or behind a lane, would fill memory.
    fn spill_stuck(&mut self, now: Instant, leaving: &mut Vec<(Option<Token>, Waiting<P>)>, bytes: &mut usize) {
        let Some(limit) = now.checked_sub(STUCK_AFTER) else { return };
        let (mut stuck, mut last) = (Vec::new(), None);
        while let Some((token, place)) = self.loaded.next_aged(last, limit)
            && stuck.len() < SPILL_MESSAGES
        {
            last = Some(token);
            if let Place::Waiting(index) = place
                && let Some(position) = self.backlog.message(index).map(|message| message.position)
                && self.is_stuck(index)
            {
                stuck.push((index, position));
            }
        }
        for (index, position) in stuck {
            // It may have gone with another.
            let is_there = self.backlog.message(index).is_some_and(|message| message.position == position);
            if is_there && leaving.len() < SPILL_MESSAGES && *bytes < self.spill_bytes() {
                self.spill(index, leaving, bytes);
            }
        }
    }

    fn is_stuck(&self, index: u32) -> bool {
        let Some(message) = self.backlog.message(index) else { return false };
        let is_held_up = !self.backlog.barriers.lets_go(&message.ties(), message.position);
        is_held_up
            || message.groups.iter().any(|id| {
                let behind_lane = self.backlog.lanes.get(&id).is_some_and(|lane| message.position > lane.last);
                let held_by_failed = self
                    .backlog
                    .holder(id)
                    .is_some_and(|root| self.families.contains_key(&root) || self.has_failed(root));
                behind_lane || held_by_failed
            })
    }

    fn spill_command(&mut self, leaving: Vec<(Option<Token>, Waiting<P>)>) -> Command<P> {
        let (mut write, mut messages) = (Write::default(), Vec::with_capacity(leaving.len()));
        for (token, message) in leaving {
            write.tokens.extend(token);
            write.lanes.extend(message.groups.iter());
            messages.push(message.into_message());
        }
        let write = self.begin(write);
        Command::Spill { write, messages }
    }

    /// When something is to be written, if nothing else happens before.
    pub(super) fn keep_at(&mut self, world: &World) -> Option<Instant> {
        if !self.rules.keeps || world.store != StoreRoom::Open {
            return None;
        }
        let page = self.overflow.page_at(self.page_bytes()).filter(|_| !self.gate.is_stopping());
        let aged = self.watermark.oldest_arrival().map(|at| at + KEEP_AFTER);
        let stuck = self.loaded.oldest_arrival().map(|at| at + STUCK_AFTER);
        let look = [aged, stuck].into_iter().flatten().min().map(|at| self.look_at.map_or(at, |look| look.max(at)));
        let park = if self.to_park.is_empty() { None } else { self.look_at };
        [page, look, park].into_iter().flatten().min()
    }

    /// What is to be read now: no more than can be delivered at once.
    pub(super) fn read_back(&mut self, now: Instant, world: &World) -> Option<Command<P>> {
        if self.gate.is_stopping() || world.is_replaying || self.read_again_at.is_some_and(|at| at > now) {
            return None;
        }
        if !self.overflow.has_again() {
            if !self.gate.may_read(now) || !self.has_appetite() {
                return None;
            }
            if !self.is_lane_read {
                let wants = self.backlog.wants(LANES_AT_ONCE);
                if !wants.is_empty() {
                    self.is_lane_read = true;
                    self.backlog.barriers.forget_left();
                    return Some(Command::ReadLanes(wants));
                }
            }
        }
        if !self.wants_page(world) {
            return None;
        }
        self.overflow.start_reading();
        Some(Command::ReadOverflow)
    }

    /// Whether there is little enough in memory for more to be read.
    fn has_appetite(&self) -> bool {
        let (messages, bytes) = self.rules.enough;
        !self.gate.is_paused() && self.backlog.ready_messages() < messages && self.backlog.ready_bytes() < bytes
    }

    /// Pages are read while little has come back that is not in a delivery, be it deliverable or behind others.
    fn wants_page(&self, world: &World) -> bool {
        let (messages, bytes) = self.rules.enough;
        let is_short = world.memory.is_short && self.backlog.len() > 0;
        let has_room = self.loaded.unresolved() < messages && self.loaded_bytes < bytes.saturating_mul(2) && !is_short;
        (self.overflow.has_again() || has_room) && self.overflow.can_be_read()
    }

    /// When something is to be read, if nothing else happens before.
    pub(super) fn read_at(&self, world: &World) -> Option<Instant> {
        if self.gate.is_stopping() || world.is_replaying {
            return None;
        }
        if self.overflow.has_again() {
            return self.read_again_at.filter(|_| self.wants_page(world));
        }
        let wants_lane = !self.is_lane_read && !self.backlog.lanes_free.is_empty();
        if !self.has_appetite() || !(wants_lane || self.wants_page(world)) {
            return None;
        }
        self.gate.reads_at(self.read_again_at)
    }

    /// What a [`Command::ReadLanes`] brought, for each lane it named. Returns how many messages the store should have had
    /// and has not.
    pub fn lanes_read(&mut self, now: Instant, lanes: Vec<(GroupId, Vec<Message<P>>)>) -> usize {
        self.is_lane_read = false;
        let mut missing = 0;
        for (group, messages) in lanes {
            let range = self.backlog.lane_range(group);
            let lost = self.backlog.lane_read(now, group, messages);
            if let Some((after, last)) = range.filter(|_| lost > 0) {
                self.undelivered.lose(after, Some(last), lost);
            }
            missing += lost;
        }
        missing
    }

    /// These lanes were not read: they are asked for again.
    pub fn lanes_unread(&mut self, lanes: impl IntoIterator<Item = GroupId>) {
        self.is_lane_read = false;
        lanes.into_iter().for_each(|group| self.backlog.lane_unread(group));
    }

    /// Where the messages stand that a [`Command::ReadOverflow`] brought, and when they arrived as far as that is known.
    /// Comes before [`Self::overflow_read`].
    pub fn pages_came_back(&mut self, messages: impl IntoIterator<Item = (Position, Instant)>) {
        messages.into_iter().for_each(|(position, arrived)| self.undelivered.page_came_back(arrived, position));
    }

    /// What a [`Command::ReadOverflow`] brought: the messages of the next pages, in order; none: there are no more. Returns
    /// how many the store should have had and has not.
    pub fn overflow_read(&mut self, now: Instant, messages: Vec<Message<P>>) -> usize {
        let missing = self.overflow.read(Some(messages.len()));
        if missing > 0 {
            self.undelivered.lose_of_pages(missing);
        }
        let last = messages.last().map(|message| message.position);
        for message in messages {
            self.admit_again(now, Some(message.position));
            let token = self.loaded.arrive(now, message.position, Place::Buffered);
            self.loaded_bytes += message.bytes;
            let (index, _) = self.backlog.admit(now, Waiting::new(message, Backing::Page(token)));
            self.loaded.moved(token, Place::Waiting(index));
        }
        if !self.overflow.has_stored() {
            self.admit_again(now, None);
        }
        self.backlog.barriers.come_back_to(last.filter(|_| self.overflow.has_stored()));
        self.backlog.awaken(now);
        missing
    }

    fn admit_again(&mut self, now: Instant, before: Option<Position>) {
        while let Some((token, message)) = self.overflow.take_again(before) {
            self.admit(now, token, message);
        }
    }

    /// The overflow was not read: it is asked for again.
    pub fn overflow_unread(&mut self) {
        self.overflow.read(None);
    }

    /// The store could not be read: nothing is asked of it for a moment.
    pub fn unreadable(&mut self, now: Instant) {
        self.read_again_at = Some(now + READ_AGAIN_AFTER);
    }

    /// The endpoint's health.
    pub fn breaker(&self) -> BreakerState {
        self.gate.breaker()
    }
}

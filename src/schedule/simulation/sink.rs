//! A sink that carries out a scheduler's commands, and its side of the store: what happened is collected into a batch,
//! one batch is on its way at a time, and reads see what is durable at some moment.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::life::{Flight, Life};
use super::model::Item;
use super::store::{Batch, Home, Load, Op, Parked};
use super::*;

const MS: Duration = Duration::from_millis(1);

/// A batch on its way.
#[derive(Debug)]
pub(super) struct Sent {
    batch: Batch,
    durable_at: Instant,
    is_durable: bool,
    told_at: Instant,
}

/// A read on its way: it sees the store of one moment and comes back at another.
#[derive(Debug)]
pub(super) struct Reading<W, A> {
    wanted: W,
    look_at: Instant,
    seen: Option<A>,
    back_at: Instant,
    fails: bool,
}

pub(super) type LaneReading = Reading<Vec<Want>, Vec<(GroupId, Vec<Message<Load>>)>>;
pub(super) type PageReading = Reading<u64, (u64, Vec<Message<Load>>)>;

impl Life {
    pub(super) fn carry_out(&mut self, command: Command<Load>) -> Check {
        match command {
            Command::Form { delivery, messages } => self.formed(delivery, messages),
            Command::Attempt { delivery, number } => self.attempted(delivery, number),
            Command::Park { delivery, write } => self.park(delivery, write),
            Command::Spill { write, messages } => self.spill(write, messages),
            Command::Overflow { write, messages } => {
                self.may_write()?;
                let number = self.next_page_written;
                self.next_page_written += 1;
                let items = messages.iter().map(|message| message.payload.item).collect();
                self.collecting.ops.push(Op::Page(number, items));
                self.collecting.writes.push(write);
                Ok(())
            }
            Command::ReadLanes(wants) => {
                self.may_read()?;
                require(self.lane_read.is_none(), "one reading of lanes at a time")?;
                self.lane_read = Some(self.reading(wants));
                Ok(())
            }
            Command::ReadOverflow => {
                require(self.page_read.is_none(), "one reading of pages at a time")?;
                require(!self.is_replaying(), "ordered: nothing is read back while replaying")?;
                self.page_read = Some(self.reading(self.next_page_read));
                Ok(())
            }
        }
    }

    fn may_write(&self) -> Check {
        require(self.rules.keeps && self.room == StoreRoom::Open, "room: nothing is written where there is none")
    }

    fn may_read(&self) -> Check {
        require(!self.paused, "nothing is read back in a pause")?;
        require(!self.is_replaying(), "ordered: nothing is read back while replaying")
    }

    fn reading<W, A>(&mut self, wanted: W) -> Reading<W, A> {
        let span = if self.is_prompt { 20 } else { 500 };
        let look_at = self.now + MS * self.rng.u32(0..span);
        let back_at = look_at + MS * self.rng.u32(0..span);
        let fails = self.rng.u8(0..20) == 0 && !self.is_ending;
        if fails {
            self.open_since = None;
        }
        Reading { wanted, look_at, seen: None, back_at, fails }
    }

    fn park(&mut self, key: DeliveryKey, write: WriteId) -> Check {
        self.may_write()?;
        let is_early = self.rng.u8(0..10) == 0;
        let flight = self.flights.get_mut(&key).ok_or("known")?;
        require(!flight.is_kept, "a delivery is parked once")?;
        if is_early && flight.in_flight && !self.is_ending {
            self.scheduler.not_written(write);
            self.open_since = None;
            return Ok(());
        }
        self.put(key);
        self.collecting.writes.push(write);
        Ok(())
    }

    /// The store has the delivery from the next batch on.
    fn put(&mut self, key: DeliveryKey) {
        let Some(flight) = self.flights.get_mut(&key) else { return };
        flight.is_kept = true;
        let parked = Parked {
            members: flight.members.iter().map(|load| load.item).collect(),
            attempts: flight.attempts - u32::from(flight.in_flight),
            failures: flight.failures,
            refusals: flight.refusals,
            first: flight.first,
            due: (!flight.is_blocked).then_some(flight.not_before),
            is_part: flight.is_part,
        };
        self.collecting.ops.push(Op::Put(flight.id, parked));
        let homes = flight.members.iter_mut().filter_map(|load| Some((load.item, load.home.take()?))).collect();
        self.leave(homes);
    }

    fn leave(&mut self, homes: Vec<(usize, Home)>) {
        if !homes.is_empty() {
            self.collecting.ops.push(Op::Leave(homes));
        }
    }

    fn spill(&mut self, write: WriteId, messages: Vec<Message<Load>>) -> Check {
        self.may_write()?;
        let mut last = BTreeSet::new();
        let (mut homes, mut lanes) = (Vec::new(), Vec::new());
        for Message { groups, payload, .. } in messages {
            let later = last.range(payload.item..).any(|other: &usize| {
                self.model.items[*other].groups.iter().any(|one| groups.iter().any(|group| group == one))
            });
            require(!later, "ordered: a message is spilled before an older one")?;
            last.insert(payload.item);
            lanes.push((payload.item, groups));
            if let Some(home @ Home::Page(_)) = payload.home {
                homes.push((payload.item, home));
            }
        }
        self.collecting.ops.push(Op::Lanes(lanes));
        self.collecting.writes.push(write);
        self.leave(homes);
        Ok(())
    }

    /// It is acknowledged, or dead.
    pub(super) fn ended(&mut self, flight: Flight) {
        let items: Vec<usize> = flight.members.iter().map(|load| load.item).collect();
        // What was read back before it was said to be durable is resolved when that is said.
        let is_early = |op: &Op| match op {
            Op::Page(_, items) => items.clone(),
            Op::Lanes(messages) => messages.iter().map(|(item, _)| *item).collect(),
            Op::Put(..) | Op::Gone(_) | Op::Leave(_) | Op::Done(_) => Vec::new(),
        };
        let early: BTreeSet<usize> =
            self.sent.iter().flat_map(|sent| sent.batch.ops.iter().flat_map(is_early)).collect();
        if items.iter().any(|item| self.model.items[*item].barrier != Barrier::None) {
            self.vain_reads.clear();
        }
        for item in &items {
            self.model.items[*item].done = true;
            self.model.items[*item].resolved |= !early.contains(item);
        }
        if flight.is_kept {
            self.collecting.ops.push(Op::Gone(flight.id));
        } else {
            self.leave(flight.members.iter().filter_map(|load| Some((load.item, load.home?))).collect());
        }
        self.collecting.ops.push(Op::Done(items));
    }

    /// It failed, and is tried again.
    pub(super) fn failed_again(&mut self, key: DeliveryKey) {
        if self.flights.get(&key).is_some_and(|flight| flight.is_kept) {
            self.put(key);
        }
    }

    pub(super) fn split(
        &mut self,
        whole: Flight,
        parts: [(DeliveryKey, Vec<usize>); 2],
        write: Option<WriteId>,
    ) -> Check {
        require(write.is_some() || !whole.is_kept, "a whole that is in the store is parted there")?;
        let mut indexes: Vec<usize> = parts.iter().flat_map(|(_, indexes)| indexes.clone()).collect();
        require(parts.iter().all(|(_, indexes)| !indexes.is_empty() && indexes.is_sorted()), "parts have an order")?;
        indexes.sort_unstable();
        require(indexes.iter().copied().eq(0..whole.members.len()), "the parts are the whole")?;
        if whole.is_kept {
            self.collecting.ops.push(Op::Gone(whole.id));
        }
        let keys: Vec<DeliveryKey> = parts.iter().map(|(key, _)| *key).collect();
        for (key, indexes) in parts {
            let members = indexes.iter().map(|index| whole.members[*index]).collect();
            let part = Flight {
                is_part: true,
                has_failed: true,
                not_before: self.now,
                ..Flight::new(self.delivery_id(key), members)
            };
            require(self.flights.insert(key, part).is_none(), "a delivery's name is used once")?;
        }
        if let Some(write) = write {
            keys.into_iter().for_each(|key| self.put(key));
            self.collecting.writes.push(write);
        }
        if self.fault == Fault::SwapParts {
            self.swap_parts();
        }
        Ok(())
    }

    fn swap_parts(&mut self) {
        let last: Vec<DeliveryKey> = self.flights.keys().rev().take(2).copied().collect();
        let mut loads: Vec<Vec<Load>> = last.iter().map(|key| self.flights[key].members.clone()).collect();
        loads.reverse();
        for (key, members) in last.into_iter().zip(loads) {
            self.flights.get_mut(&key).unwrap().members = members;
        }
    }

    /// What is in the batch on its way.
    pub(super) fn sent_items(&self) -> BTreeSet<usize> {
        self.sent.as_ref().map(|sent| sent.batch.puts()).unwrap_or_default()
    }

    /// What the store's side does next by itself.
    pub(super) fn next_io(&self) -> Option<Instant> {
        let sent = self.sent.as_ref().map(|sent| if sent.is_durable { sent.told_at } else { sent.durable_at });
        fn of<W, A>(reading: &Option<Reading<W, A>>) -> Option<Instant> {
            reading.as_ref().map(|reading| if reading.seen.is_some() { reading.back_at } else { reading.look_at })
        }
        [sent, of(&self.lane_read), of(&self.page_read), self.submit_at()].into_iter().flatten().min()
    }

    fn submit_at(&self) -> Option<Instant> {
        (self.sent.is_none() && !self.collecting.ops.is_empty()).then_some(self.submit_not_before)
    }

    pub(super) fn io(&mut self) -> Check {
        if self.fault == Fault::ForgetHeldUp {
            let lanes: Vec<GroupId> = self.scheduler.backlog.lanes.keys().copied().collect();
            self.scheduler.backlog.lanes.values_mut().for_each(|lane| lane.held_up_at = None);
            lanes.into_iter().for_each(|group| self.scheduler.backlog.lane_is_next(group));
        }
        if self.submit_at().is_some_and(|at| at <= self.now) {
            self.submit()?;
        }
        self.go_on_writing()?;
        self.go_on_reading_lanes()?;
        self.go_on_reading_pages()
    }

    fn submit(&mut self) -> Check {
        let mut batch = std::mem::take(&mut self.collecting);
        let mut progress = self.progress();
        let mut puts = batch.puts();
        puts.retain(|item| self.model.items[*item].arrived.is_some());
        if self.fault == Fault::ProgressBefore {
            progress = self.progress_before(progress, &puts);
        }
        if self.fault == Fault::ProgressWhole {
            progress.unresolved.clear();
        }
        self.model.check_progress(&progress, &puts)?;
        batch.progress = Some(progress);
        self.note(|_| format!("submit {batch:?}"));
        if self.fault == Fault::TellEarly {
            self.tell(&batch);
        }
        let span = if self.is_prompt && self.fault != Fault::SlowStore { 50 } else { 3000 };
        let durable_at = self.now + MS * self.rng.u32(0..span);
        let told_at = durable_at + MS * self.rng.u32(0..if self.is_prompt { 20 } else { 1000 });
        self.sent = Some(Sent { batch, durable_at, is_durable: false, told_at });
        Ok(())
    }

    /// What the scheduler says, and what has not come again since the restart.
    fn progress(&self) -> Progress {
        let mut progress = self.scheduler.progress(self.resume.as_ref().map(|resume| resume.high()));
        progress.unresolved.extend(self.resume.iter().flat_map(|resume| resume.unresolved()));
        progress.unresolved.sort_unstable();
        progress
    }

    fn progress_before(&self, progress: Progress, puts: &BTreeSet<usize>) -> Progress {
        let mut unresolved = progress.unresolved;
        let open = puts.iter().filter(|item| !self.model.items[**item].resolved);
        unresolved.extend(open.map(|item| self.model.items[*item].position));
        unresolved.sort_unstable();
        Progress { resolved: self.scheduler.resolved(), unresolved, ..progress }
    }

    fn go_on_writing(&mut self) -> Check {
        let now = self.now;
        let Some(sent) = &mut self.sent else { return Ok(()) };
        if !sent.is_durable && sent.durable_at <= now {
            sent.is_durable = true;
            for item in self.durable.apply(&sent.batch, self.fault) {
                self.model.items[item].for_ever = true;
            }
        }
        if sent.is_durable && sent.told_at <= now {
            let Some(sent) = self.sent.take() else { return Ok(()) };
            self.submit_not_before = now + MS * self.rng.u32(0..20);
            // What was parted while it was written is resolved with its parts.
            for item in sent.batch.puts_of(|id| self.flights.values().any(|flight| flight.id == id)) {
                self.model.items[item].resolved = true;
            }
            self.note(|_| "durable".to_owned());
            self.tell(&sent.batch);
            self.model.check_watermark(self.scheduler.resolved())?;
        }
        Ok(())
    }

    fn tell(&mut self, batch: &Batch) {
        batch.writes.iter().for_each(|write| self.scheduler.written(*write));
        let kept: BTreeSet<u64> =
            batch.ops.iter().filter_map(|op| if let Op::Put(id, _) = op { Some(*id) } else { None }).collect();
        self.flights.values_mut().filter(|flight| kept.contains(&flight.id)).for_each(|flight| flight.is_told = true);
    }

    fn load(&self, item: usize, groups: Groups, home: Home) -> Message<Load> {
        let Item { bytes, position, is_damaged, .. } = self.model.items[item];
        let (scope, barrier) = (self.model.items[item].scope, self.model.items[item].barrier);
        let is_lost = self.fault == Fault::ForgetPageBarrier && matches!(home, Home::Page(_));
        let barrier = if is_lost { Barrier::None } else { barrier };
        Message { groups, scope, barrier, bytes, position, payload: Load { item, home: Some(home), is_damaged } }
    }

    fn go_on_reading_lanes(&mut self) -> Check {
        let Some(mut reading) = self.lane_read.take() else { return Ok(()) };
        if reading.seen.is_none() && reading.look_at <= self.now {
            let lanes = reading.wanted.iter().map(|want| (want.group, self.look_into_lane(want)));
            reading.seen = Some(lanes.collect());
        }
        let Some(lanes) = reading.seen.take_if(|_| reading.back_at <= self.now) else {
            self.lane_read = Some(reading);
            return Ok(());
        };
        let is_whole = lanes.iter().flat_map(|(_, messages)| messages).all(|message| !message.payload.is_damaged);
        if reading.fails || self.fault == Fault::FailWhole && !is_whole {
            self.scheduler.lanes_unread(reading.wanted.iter().map(|want| want.group));
            self.scheduler.unreadable(self.now);
            return Ok(());
        }
        self.note(|_| format!("lanes read {lanes:?}"));
        self.count_vain_reads(&lanes)?;
        let missing = self.scheduler.lanes_read(self.now, lanes);
        require(missing == 0, "complete: the store has fewer in its lanes than it should")
    }

    /// A lane whose next message is held up by a barrier is read once, and once more for what is put before it.
    fn count_vain_reads(&mut self, lanes: &[(GroupId, Vec<Message<Load>>)]) -> Check {
        for (group, messages) in lanes {
            let Some(item) = messages.first().map(|message| message.payload.item) else { continue };
            if self.model.across(item).next().is_some() {
                let reads = self.vain_reads.entry((*group, item)).or_default();
                *reads += 1;
                require(*reads <= 2, "churn: a lane is read again and again while a barrier holds it up")?;
            }
        }
        Ok(())
    }

    fn look_into_lane(&self, want: &Want) -> Vec<Message<Load>> {
        let after = if self.fault == Fault::IgnoreAfter { None } else { want.after };
        let members = self.durable.lanes.iter().filter(|(item, groups)| {
            groups.iter().any(|group| group == want.group) && Some(self.model.items[**item].position) > after
        });
        members.take(self.lane_read_max).map(|(item, groups)| self.load(*item, *groups, Home::Lane)).collect()
    }

    fn go_on_reading_pages(&mut self) -> Check {
        let Some(mut reading) = self.page_read.take() else { return Ok(()) };
        if reading.seen.is_none() && reading.look_at <= self.now {
            reading.seen = Some(self.look_into_pages(reading.wanted));
        }
        let Some((next, messages)) = reading.seen.take_if(|_| reading.back_at <= self.now) else {
            self.page_read = Some(reading);
            return Ok(());
        };
        let is_whole = messages.iter().all(|message| !message.payload.is_damaged);
        if reading.fails || self.fault == Fault::FailWhole && !is_whole {
            self.scheduler.overflow_unread();
            self.scheduler.unreadable(self.now);
            return Ok(());
        }
        if self.fault == Fault::PageGone {
            self.durable.pages.retain(|number, _| *number >= next);
        }
        self.next_page_read = if self.fault == Fault::PageTwice { reading.wanted } else { next };
        self.note(|_| format!("page read {messages:?}"));
        let arrived = |message: &Message<Load>| (message.position, self.model.items[message.payload.item].committed);
        self.scheduler.pages_came_back(messages.iter().map(arrived));
        let missing = self.scheduler.overflow_read(self.now, messages);
        require(missing == 0, "complete: the store has fewer in its pages than it should")
    }

    fn look_into_pages(&self, from: u64) -> (u64, Vec<Message<Load>>) {
        let mut next = from;
        let mut messages = Vec::new();
        for (number, items) in self.durable.pages.range(from..).take(2) {
            messages
                .extend(items.iter().map(|item| self.load(*item, self.model.items[*item].groups, Home::Page(*number))));
            next = number + 1;
        }
        (next, messages)
    }
}

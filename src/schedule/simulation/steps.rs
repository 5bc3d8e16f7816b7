//! What happens by chance in a life, and what is looked at after everything that happens.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::life::{Flight, Life};
use super::*;

const MS: Duration = Duration::from_millis(1);

impl Flight {
    pub(super) fn has(&self, item: usize) -> bool {
        self.members.iter().any(|load| load.item == item)
    }
}

impl Life {
    pub(super) fn step(&mut self) -> Check {
        match self.rng.u8(0..100) {
            0..20 if self.model.items.len() < self.planned => self.commit(),
            20..50 => self.answer(20)?,
            50 => self.pause(),
            51 => self.cramp(),
            52 => {
                self.world.memory.is_share_full = self.rng.bool();
            }
            53 | 54 => self.change_room(),
            55 => self.is_prompt = self.rng.bool(),
            56 | 57 => self.is_down = self.rng.u8(0..3) == 0,
            58 | 59 => self.crash()?,
            70 => self.damage(),
            60 | 61 => self.advance(6000)?,
            62 => self.sleep(),
            63..70 => self.advance(1000)?,
            _ => self.advance(50)?,
        }
        for _ in 0..self.rng.u8(0..3) {
            self.read_wal();
        }
        self.run_commands()
    }

    /// A bit flips in a message that the store has.
    fn damage(&mut self) {
        let stored: Vec<usize> = self.durable.items().collect();
        if let Some(item) = stored.get(self.rng.usize(0..stored.len().max(1))) {
            self.model.items[*item].is_damaged = true;
        }
    }

    /// The process does not run for a while, and finds that out.
    fn sleep(&mut self) {
        let slept = MS * self.rng.u32(2000..60_000);
        self.note(|_| format!("sleeps for {slept:?}"));
        self.now += slept;
        self.open_since = None;
        // While a trouble of our own lasts its time counts for nobody anyway.
        self.own.spent += slept;
        if self.fault != Fault::HideSleep {
            self.slept += slept;
            self.world.slept = self.slept;
        }
    }

    fn pause(&mut self) {
        self.paused = self.rng.bool();
        if self.paused { self.scheduler.pause() } else { self.scheduler.resume() }
    }

    fn cramp(&mut self) {
        self.cramped = self.rng.bool();
        self.world.memory.is_short = self.cramped;
    }

    fn change_room(&mut self) {
        self.room = [StoreRoom::Open, StoreRoom::Open, StoreRoom::Busy, StoreRoom::Shut][self.rng.usize(0..4)];
        self.world.store = if self.fault == Fault::HideRoom { StoreRoom::Open } else { self.room };
    }

    /// Time passes, and what is due in it happens.
    fn advance(&mut self, millis_max: u32) -> Check {
        let end = self.now + MS * self.rng.u32(0..millis_max);
        for _ in 0..10_000 {
            let Some(next) = self.next_event().filter(|next| *next <= end) else {
                self.now = end;
                self.io()?;
                return self.run_commands();
            };
            self.now = self.now.max(next);
            self.io()?;
            self.run_commands()?;
        }
        Err("it wakes for ever".to_owned())
    }

    fn next_event(&mut self) -> Option<Instant> {
        self.scheduler.poll_timeout(&self.world).into_iter().chain(self.next_io()).min()
    }

    /// Everything that was committed is delivered or dead in the end, unless it waits for a person.
    pub(super) fn finish(&mut self) -> Check {
        self.is_ending = true;
        (self.is_down, self.room, self.is_prompt) = (false, StoreRoom::Open, true);
        (self.paused, self.cramped) = (false, false);
        self.scheduler.resume();
        self.world = World { slept: self.world.slept, is_replaying: self.world.is_replaying, ..World::EASY };
        while self.read < self.wal.len() {
            self.read_wal();
        }
        self.run_commands()?;
        for _ in 0..10_000 {
            let blocked = self.waits_for_a_person();
            let mut left = (0..self.model.items.len()).filter(|index| !blocked.contains(index));
            if left.all(|index| self.model.items[index].done) {
                let mut all = (0..self.model.items.len()).filter(|index| !blocked.contains(index));
                return require(all.all(|index| self.model.has_seen_all_of(index)), "complete: not all came again");
            }
            self.answer(0)?;
            self.run_commands()?;
            if self.under_way().is_empty() {
                let next = self.next_event().ok_or("complete: it stands still with messages left")?;
                self.now = self.now.max(next);
                self.io()?;
                self.run_commands()?;
                require(!self.paused, "nothing pauses it")?;
            }
        }
        Err("complete: it never ends".to_owned())
    }

    /// What is blocked, and what waits for that.
    fn waits_for_a_person(&self) -> BTreeSet<usize> {
        let mut blocked = BTreeSet::new();
        for flight in self.flights.values().filter(|flight| flight.is_blocked) {
            blocked.extend(flight.members.iter().map(|load| load.item));
        }
        loop {
            let before = blocked.len();
            for index in 0..self.model.items.len() {
                let waits = self.model.before(index).any(|earlier| blocked.contains(&earlier));
                if !self.model.items[index].done && waits {
                    blocked.insert(index);
                }
            }
            for flight in self.flights.values() {
                if flight.members.iter().any(|load| blocked.contains(&load.item)) {
                    blocked.extend(flight.members.iter().map(|load| load.item));
                }
            }
            let waits = |flight: &Flight| flight.members.iter().all(|load| blocked.contains(&load.item));
            if self.scheduler.counts().ack_pending >= self.rules.max_ack_pending && self.flights.values().all(waits) {
                blocked.extend(0..self.model.items.len());
            }
            if blocked.len() == before {
                return blocked;
            }
        }
    }

    /// Messages that the scheduler knows of, and that are not done.
    fn known(&self) -> impl Iterator<Item = usize> + '_ {
        let items = self.model.items.iter().enumerate();
        items
            .filter(|(index, item)| !item.done && (item.arrived.is_some() || self.restored.contains(index)))
            .map(|(i, _)| i)
    }

    pub(super) fn check_figures(&self) -> Check {
        let counts = self.scheduler.counts();
        let pending: usize = self.flights.values().map(|flight| flight.members.len()).sum();
        let unresolved = self.model.fed().filter(|(_, item)| !item.resolved).count();
        let shown = (counts.ack_pending, counts.in_flight, counts.unresolved);
        let counted = (pending, self.under_way().len(), unresolved);
        require(shown == counted, &format!("the figures shown are true: {shown:?} is {counted:?}"))?;
        let count = |is: fn(&Flight) -> bool| self.flights.values().filter(|flight| is(flight)).count();
        let shown = (counts.failed, counts.parked, counts.blocked, counts.groups_held);
        let groups = |flight: &Flight| {
            let groups = flight.members.iter().flat_map(|load| self.model.items[load.item].groups.iter());
            groups.collect::<BTreeSet<_>>().len()
        };
        let held = self.flights.values().filter(|flight| flight.has_failed).map(groups).sum();
        let counted = (count(|one| one.has_failed), count(|one| one.is_told), count(|one| one.is_blocked), held);
        require(shown == counted, &format!("the figures of failures shown are true: {shown:?} is {counted:?}"))?;
        let shown = counts.waiting + counts.ack_pending + counts.lane_messages + counts.overflow_messages;
        let known = self.known().count();
        let of_two = self.known().filter(|index| matches!(self.model.items[*index].groups, Groups::Two(..))).count();
        let is_true = (known..=known + of_two).contains(&shown);
        require(is_true, &format!("the figures of what waits are true: {shown} of {known}, {of_two} twice"))
    }

    /// After all commands ran: what could go by the naive rules has gone, or has a time.
    pub(super) fn check_idle(&mut self) -> Check {
        let timeout = self.scheduler.poll_timeout(&self.world);
        require(timeout.is_none_or(|at| at > self.now), "what is due is not left lying")?;
        let held = self.held_until.is_some_and(|held| held > self.now);
        if timeout.is_some() || self.paused || held || self.waits_for_replay() {
            return Ok(());
        }
        let (in_flight, counts) = (self.under_way().len(), self.scheduler.counts());
        if self.room == StoreRoom::Open && in_flight == 0 && self.next_io().is_none() {
            let blocked = self.waits_for_a_person();
            let left = self.known().find(|index| !blocked.contains(index));
            require(left.is_none(), &format!("it stands still, and nobody will wake it: {left:?}"))?;
        }
        let waits = counts.breaker != BreakerState::Closed || self.own.lasts.is_some();
        if in_flight >= self.rules.max_in_flight || waits {
            return Ok(());
        }
        let has_room = counts.ack_pending < self.rules.max_ack_pending && !(self.cramped && in_flight > 0);
        let is_free = |index: usize| {
            self.model.before(index).next().is_none() && !self.is_taken(index) && !self.waits_for_more(index)
        };
        if has_room && counts.waiting > 0 && !self.scheduler.is_overflowing() {
            let stored = self.stored();
            let mut waiting = self.known().filter(|index| !stored.contains(index) && is_free(*index));
            require(waiting.next().is_none(), "what can go later has a time")?;
        }
        let is_writing = self.sent.is_some() || !self.collecting.ops.is_empty();
        if counts.ready == 0 && self.lane_read.is_none() && !is_writing {
            let mut waiting = self.durable.lanes.keys().filter(|index| is_free(**index) && !self.is_loaded(**index));
            let left = waiting.next();
            require(left.is_none(), &format!("what can be read back is read back: {left:?}"))?;
        }
        Ok(())
    }

    fn is_taken(&self, index: usize) -> bool {
        self.flights.values().any(|flight| flight.has(index))
    }

    /// A barrier waits for more than it has to: until what was before it in a life before has come back.
    fn waits_for_more(&self, index: usize) -> bool {
        let is_barrier = self.model.items[index].barrier != Barrier::None;
        is_barrier && self.scheduler.overflow.has_stored()
    }

    /// The scheduler has a message of the store in memory.
    fn is_loaded(&self, index: usize) -> bool {
        let mut slots = self.scheduler.backlog.slots.iter().filter_map(|slot| slot.message.as_ref());
        slots.any(|message| message.payload.item == index)
    }

    /// What is in the store, or on its way.
    fn stored(&self) -> BTreeSet<usize> {
        self.durable.items().chain(self.collecting.puts()).chain(self.sent_items()).collect()
    }
}

pub(super) fn told(rules: Rules, fault: Fault) -> Rules {
    let (mut max_ack_pending, mut max_in_flight) = (rules.max_ack_pending, rules.max_in_flight);
    max_ack_pending *= if fault == Fault::DoubleAckPending { 2 } else { 1 };
    max_in_flight *= if fault == Fault::DoubleInFlight { 2 } else { 1 };
    Rules { max_ack_pending, max_in_flight, ..rules }
}

pub(super) fn any_rules(rng: &mut fastrand::Rng) -> Rules {
    let initial = MS * rng.u32(10..2000);
    Rules {
        batch_size: if rng.bool() { 1 } else { rng.usize(1..20) },
        batch_bytes: rng.usize(50..2000),
        batch_timeout: MS * rng.u32(0..20),
        max_ack_pending: rng.usize(1..60),
        max_in_flight: rng.usize(1..10),
        retry: RetryRule { initial, max: initial * rng.u32(1..50) },
        limits: Limits {
            max_attempts: rng.bool().then(|| rng.u32(1..8)),
            max_age: (rng.u8(0..4) == 0).then(|| MS * rng.u32(100..20_000)),
        },
        on_exhausted: [OnExhausted::Continue, OnExhausted::BlockGroup, OnExhausted::PauseSink][rng.usize(0..3)],
        split_after: rng.u32(1..4),
        keeps: rng.u8(0..10) > 0,
        enough: (rng.usize(1..30), rng.usize(100..5000)),
        write_bytes: rng.usize(100..2000),
    }
}

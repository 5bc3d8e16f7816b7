//! Whole lives of a scheduler, from a seed, beside a naive model that checks every step.
//!
//! The model keeps all messages in one list and looks through it anew for every question; it shares no code with the
//! scheduler. A life has hot and cold groups, key changes, failures, slow answers, `Retry-After`, pauses and restarts
//! (a new scheduler is fed again from what was resolved). Planted faults show that the model would notice.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::*;

/// What is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// Order: a delivery's messages are reversed.
    ReverseDelivery,
    /// Exclusivity: the scheduler is not told the groups.
    ForgetGroups,
    /// Exclusivity: it is not told the old group of a key change.
    ForgetOldKey,
    /// Back-pressure: it allows twice the messages.
    DoubleAckPending,
    /// Back-pressure: it allows twice the requests.
    DoubleInFlight,
    /// Watermark: a mark is set before the messages it covers arrived.
    MarkEarly,
    /// Watermark: a failed delivery counts as resolved.
    FailureResolves,
    /// Completeness: a message never arrives.
    LoseOne,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Waiting,
    In(DeliveryKey),
    Done,
}

#[derive(Clone, Debug)]
struct Item {
    groups: Groups,
    bytes: usize,
    fate: Fate,
    /// LSN to which everything is resolved once this and all before are.
    mark: Option<Lsn>,
}

struct Flight {
    members: Vec<usize>,
    attempts: u32,
    failures: u32,
    in_flight: bool,
    not_before: Instant,
}

struct Life {
    rng: fastrand::Rng,
    fault: Fault,
    rules: Rules,
    now: Instant,
    scheduler: Scheduler<usize>,
    items: Vec<Item>,
    planned: usize,
    /// How many of `items` this scheduler was given; the rest came before it.
    first: usize,
    flights: BTreeMap<DeliveryKey, Flight>,
    confirmed: Lsn,
    held_until: Option<Instant>,
    paused: bool,
}

type Check = Result<(), String>;

fn require(holds: bool, rule: &str) -> Check {
    if holds { Ok(()) } else { Err(rule.to_owned()) }
}

impl Life {
    fn new(seed: u64, fault: Fault) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let batch_size = if rng.bool() { 1 } else { rng.usize(1..20) };
        let initial = Duration::from_millis(rng.u64(10..2000));
        let rules = Rules {
            batch_size,
            batch_bytes: rng.usize(50..2000),
            batch_timeout: Duration::from_millis(rng.u64(0..20)),
            max_ack_pending: rng.usize(1..60),
            max_in_flight: rng.usize(1..10),
            retry: RetryRule { initial, max: initial * rng.u32(1..50) },
        };
        let scheduler = Scheduler::new(told(rules, fault), rng.u64(..));
        let planned = rng.usize(1..80);
        let now = Instant::now();
        let flights = BTreeMap::new();
        let (items, confirmed) = (Vec::new(), Lsn::ZERO);
        Self {
            rng,
            fault,
            rules,
            now,
            scheduler,
            items,
            planned,
            first: 0,
            flights,
            confirmed,
            held_until: None,
            paused: false,
        }
    }

    fn groups(&mut self) -> Groups {
        let mut group = || if self.rng.bool() { self.rng.u64(0..3) } else { self.rng.u64(3..40) };
        let (old, new) = (GroupId(group()), GroupId(group()));
        match self.rng.u8(0..10) {
            0 => Groups::None,
            1 | 2 => Groups::moved(old, new),
            _ => Groups::One(new),
        }
    }

    fn arrive(&mut self) {
        let (groups, bytes) = (self.groups(), self.rng.usize(1..300));
        let index = self.items.len();
        let mark = self.rng.bool().then_some(Lsn(index as u64 + 1));
        self.items.push(Item { groups, bytes, fate: Fate::Waiting, mark });
        self.feed(index);
    }

    /// Gives message `index` to the scheduler, as broken as the fault wants it.
    fn feed(&mut self, index: usize) {
        let item = self.items[index].clone();
        let groups = match (self.fault, item.groups) {
            (Fault::ForgetGroups, _) => Groups::None,
            (Fault::ForgetOldKey, Groups::Two(_, new)) => Groups::One(new),
            (_, groups) => groups,
        };
        if let (Fault::MarkEarly, Some(lsn)) = (self.fault, item.mark) {
            self.scheduler.mark(lsn);
        }
        if self.fault != Fault::LoseOne || index != 3 {
            self.scheduler.push(self.now, Message { groups, bytes: item.bytes, payload: index });
        }
        if let Some(lsn) = item.mark {
            self.scheduler.mark(lsn);
        }
    }

    fn restart(&mut self) {
        self.flights.clear();
        self.held_until = None;
        self.paused = false;
        self.scheduler = Scheduler::new(told(self.rules, self.fault), self.rng.u64(..));
        self.first = usize::try_from(self.confirmed.0).unwrap();
        for index in self.first..self.items.len() {
            self.items[index].fate = Fate::Waiting;
            self.feed(index);
        }
    }

    fn run_commands(&mut self) -> Check {
        while let Some(command) = self.scheduler.poll(self.now) {
            require(!self.paused, "nothing starts in a pause")?;
            require(self.held_until.is_none_or(|held| held <= self.now), "nothing starts before Retry-After")?;
            match command {
                Command::Form { delivery, mut messages } => {
                    if self.fault == Fault::ReverseDelivery {
                        messages.reverse();
                    }
                    self.formed(delivery, messages)?;
                }
                Command::Attempt { delivery, number } => self.attempted(delivery, number)?,
            }
            let pending: usize = self.flights.values().map(|flight| flight.members.len()).sum();
            require(pending <= self.rules.max_ack_pending, "max_ack_pending")?;
            require(self.under_way().len() <= self.rules.max_in_flight, "max_in_flight")?;
        }
        self.check_figures()?;
        self.check_idle()
    }

    fn formed(&mut self, key: DeliveryKey, messages: Vec<usize>) -> Check {
        require(!messages.is_empty() && messages.len() <= self.rules.batch_size, "batch_size")?;
        let bytes: usize = messages.iter().map(|&index| self.items[index].bytes).sum();
        require(messages.len() == 1 || bytes <= self.rules.batch_bytes, "batch_bytes")?;
        for &index in &messages {
            require(self.items[index].fate == Fate::Waiting, "a message is taken once")?;
            for group in self.items[index].groups.iter() {
                // All earlier ones of the group are done or in this very delivery, before it.
                let earlier = (self.first..index).filter(|&i| self.items[i].groups.iter().any(|g| g == group));
                for earlier in earlier {
                    match self.items[earlier].fate {
                        Fate::Done => {}
                        Fate::In(other) if other == key => {}
                        Fate::In(_) => return Err("exclusive: a group is in one delivery".to_owned()),
                        Fate::Waiting => return Err("ordered: a message overtook one of its group".to_owned()),
                    }
                }
            }
            self.items[index].fate = Fate::In(key);
        }
        let flight = Flight { members: messages, attempts: 1, failures: 0, in_flight: true, not_before: self.now };
        require(self.flights.insert(key, flight).is_none(), "a delivery's name is used once")
    }

    fn attempted(&mut self, key: DeliveryKey, number: u32) -> Check {
        let now = self.now;
        let flight = self.flights.get_mut(&key).ok_or("only known deliveries are tried again")?;
        require(!flight.in_flight, "one attempt of a delivery at a time")?;
        require(now >= flight.not_before, "no attempt before its time")?;
        flight.attempts += 1;
        flight.in_flight = true;
        require(number == flight.attempts, "attempts are numbered 1, 2, …")
    }

    fn under_way(&self) -> Vec<DeliveryKey> {
        self.flights.iter().filter(|(_, flight)| flight.in_flight).map(|(key, _)| *key).collect()
    }

    fn answer(&mut self, fail_percent: u8) -> Check {
        let under_way = self.under_way();
        let Some(&key) = under_way.get(self.rng.usize(0..under_way.len().max(1))) else { return Ok(()) };
        if self.rng.u8(0..100) < fail_percent {
            self.fail(key)?
        } else {
            self.acknowledge(key)?
        }
        self.check_watermark()
    }

    fn acknowledge(&mut self, key: DeliveryKey) -> Check {
        let flight = self.flights.remove(&key).ok_or("known")?;
        for index in flight.members {
            self.items[index].fate = Fate::Done;
        }
        let verdict = self.scheduler.outcome(self.now, key, Outcome::Acknowledged);
        require(verdict == Some(Verdict::Done), "acknowledged is done")
    }

    fn fail(&mut self, key: DeliveryKey) -> Check {
        if self.fault == Fault::FailureResolves {
            self.scheduler.outcome(self.now, key, Outcome::Acknowledged);
            self.flights.get_mut(&key).ok_or("known")?.in_flight = false;
            return Ok(());
        }
        let retry_after = (self.rng.u8(0..10) == 0).then(|| Duration::from_millis(self.rng.u64(0..5000)));
        let failure = Failure { ours: self.rng.u8(0..10) == 0, retry_after };
        let verdict = self.scheduler.outcome(self.now, key, Outcome::Failed(failure));
        let Some(Verdict::Retry(at)) = verdict else { return Err("a failed delivery is tried again".to_owned()) };
        let flight = self.flights.get_mut(&key).ok_or("known")?;
        flight.in_flight = false;
        flight.failures += 1;
        flight.attempts -= u32::from(failure.ours);
        let doublings = (flight.failures - 1).min(20);
        let full = (self.rules.retry.initial * (1 << doublings)).min(self.rules.retry.max);
        let held = retry_after.map(|asked| self.now + asked.min(self.rules.retry.max));
        self.held_until = self.held_until.max(held);
        flight.not_before = (self.now + full / 2 - Duration::from_nanos(1)).max(held.unwrap_or(self.now));
        let latest = (self.now + full).max(held.unwrap_or(self.now));
        require(at >= flight.not_before && at <= latest, "the wait is U(0.5, 1) of the doubled one")
    }

    fn check_watermark(&mut self) -> Check {
        let done = self.items.iter().take_while(|item| item.fate == Fate::Done).count();
        let expected = self.items[..done].iter().rev().find_map(|item| item.mark).unwrap_or(Lsn::ZERO);
        let resolved = self.scheduler.resolved().max(self.confirmed);
        require(resolved == expected.max(self.confirmed), "watermark: confirmed is exactly what is resolved")?;
        self.confirmed = resolved;
        Ok(())
    }

    fn check_figures(&self) -> Check {
        let counts = self.scheduler.counts();
        let waiting = self.items.iter().filter(|item| item.fate == Fate::Waiting).count();
        let pending: usize = self.flights.values().map(|flight| flight.members.len()).sum();
        let shown = (counts.waiting, counts.ack_pending, counts.in_flight, counts.unresolved);
        let counted = (waiting, pending, self.under_way().len(), waiting + pending);
        require(shown == counted, "the figures shown are true")
    }

    /// After all commands ran: what could go by the naive rules has gone.
    fn check_idle(&mut self) -> Check {
        let pending: usize = self.flights.values().map(|flight| flight.members.len()).sum();
        let held = self.held_until.is_some_and(|held| held > self.now);
        if self.paused || held || self.under_way().len() >= self.rules.max_in_flight {
            return Ok(());
        }
        let timeout = self.scheduler.poll_timeout();
        require(timeout.is_none_or(|at| at > self.now), "what is due is not left lying")?;
        if timeout.is_some() {
            return Ok(());
        }
        let has_room = pending < self.rules.max_ack_pending;
        let deliverable = has_room && (self.first..self.items.len()).any(|index| self.is_deliverable(index));
        let must_wake = deliverable || self.flights.values().any(|flight| !flight.in_flight);
        require(!must_wake, "what can go later has a time")
    }

    fn is_deliverable(&self, index: usize) -> bool {
        let item = &self.items[index];
        item.fate == Fate::Waiting
            && item.groups.iter().all(|group| {
                let mut earlier = self.items[self.first..index].iter().filter(|i| i.groups.iter().any(|g| g == group));
                earlier.all(|earlier| earlier.fate == Fate::Done)
            })
    }

    fn step(&mut self) -> Check {
        match self.rng.u8(0..20) {
            0..8 if self.items.len() < self.planned => self.arrive(),
            8..14 => self.answer(30)?,
            14 => {
                self.paused = self.rng.bool();
                if self.paused { self.scheduler.pause() } else { self.scheduler.resume() }
            }
            15 if self.rng.u8(0..10) == 0 => self.restart(),
            _ => self.now += Duration::from_millis(self.rng.u64(0..50)),
        }
        self.run_commands()
    }

    /// Everything that arrived is delivered in the end.
    fn finish(&mut self) -> Check {
        self.paused = false;
        self.scheduler.resume();
        self.run_commands()?;
        for _ in 0..10_000 {
            if self.items.iter().all(|item| item.fate == Fate::Done) {
                return Ok(());
            }
            if self.under_way().is_empty() {
                let next = self.scheduler.poll_timeout().ok_or("complete: it stands still with messages left")?;
                self.now = self.now.max(next);
            }
            self.answer(0)?;
            self.run_commands()?;
        }
        Err("complete: it never ends".to_owned())
    }
}

fn told(rules: Rules, fault: Fault) -> Rules {
    let (mut max_ack_pending, mut max_in_flight) = (rules.max_ack_pending, rules.max_in_flight);
    max_ack_pending *= if fault == Fault::DoubleAckPending { 2 } else { 1 };
    max_in_flight *= if fault == Fault::DoubleInFlight { 2 } else { 1 };
    Rules { max_ack_pending, max_in_flight, ..rules }
}

fn live(seed: u64, fault: Fault) -> Check {
    let mut life = Life::new(seed, fault);
    for _ in 0..300 {
        life.step()?;
    }
    life.finish()
}

#[test]
fn ten_thousand_lives_agree_with_the_naive_model() {
    for seed in 0..10_000 {
        if let Err(broken) = live(seed, Fault::Nothing) {
            panic!("seed {seed}: {broken}");
        }
    }
}

#[test]
fn planted_bugs_are_caught() {
    let faults = [
        (Fault::ReverseDelivery, "ordered"),
        (Fault::ForgetGroups, "exclusive"),
        (Fault::ForgetOldKey, "exclusive"),
        (Fault::DoubleAckPending, "max_ack_pending"),
        (Fault::DoubleInFlight, "max_in_flight"),
        (Fault::MarkEarly, "watermark"),
        (Fault::FailureResolves, "watermark"),
        (Fault::LoseOne, "figures"),
    ];
    for (fault, rule) in faults {
        let caught: Vec<String> = (0..300).filter_map(|seed| live(seed, fault).err()).collect();
        assert!(caught.iter().any(|found| found.contains(rule)), "{fault:?} was not caught as {rule}: {caught:?}");
    }
}

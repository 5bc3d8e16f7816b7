//! Attempts: which may start, and how they end.

use std::time::Duration;

use super::life::{Flight, Life};
use super::store::Load;
use super::*;

const MS: Duration = Duration::from_millis(1);

impl Life {
    pub(super) fn may_start(&self, breaker: BreakerState) -> Check {
        require(!self.paused, "nothing starts in a pause")?;
        require(self.held_until.is_none_or(|held| held <= self.now), "nothing starts before Retry-After")?;
        if let Some((_, until)) = self.own.lasts {
            require(until <= self.now, "own: nothing starts before its time")?;
            let tried = self.flights.values().filter(|one| one.in_flight && one.own_before == self.own.count);
            require(tried.count() == 0, "own: one attempt at a time")?;
        }
        let is_closed = breaker == BreakerState::Closed;
        require(!is_closed || self.troubles < 5, "breaker: it opens at five troubles in a row")?;
        match breaker {
            BreakerState::Open { until, .. } => require(until <= self.now, "breaker: no probe before its time"),
            BreakerState::Probing { .. } => Err("breaker: one probe at a time".to_owned()),
            BreakerState::Closed | BreakerState::RampUp { .. } => Ok(()),
        }
    }

    pub(super) fn formed(&mut self, key: DeliveryKey, mut messages: Vec<Load>) -> Check {
        if self.fault == Fault::ReverseDelivery {
            messages.reverse();
        }
        require(!messages.is_empty() && messages.len() <= self.rules.batch_size, "batch_size")?;
        let bytes: usize = messages.iter().map(|load| self.model.items[load.item].bytes).sum();
        require(messages.len() == 1 || bytes <= self.rules.batch_bytes, "batch_bytes")?;
        let is_taken = |load: &Load| self.flights.values().any(|flight| flight.has(load.item));
        require(!messages.iter().any(is_taken), "repeat: a message is taken once")?;
        let flight = Flight::new(self.delivery_id(key), messages);
        require(self.flights.insert(key, flight).is_none(), "a delivery's name is used once")?;
        self.attempt_starts(key)
    }

    pub(super) fn attempted(&mut self, key: DeliveryKey, number: u32) -> Check {
        let is_probe = self.scheduler.breaker() != BreakerState::Closed;
        let flight = self.flights.get_mut(&key).ok_or("only known deliveries are tried again")?;
        require(!flight.in_flight, "one attempt of a delivery at a time")?;
        require(!flight.is_blocked, "what waits for a person is not tried")?;
        require(is_probe || self.now >= flight.not_before, "no attempt before its time")?;
        require(number == flight.attempts + 1, "attempts are numbered 1, 2, …")?;
        self.attempt_starts(key)
    }

    fn attempt_starts(&mut self, key: DeliveryKey) -> Check {
        let flight = self.flights.get_mut(&key).ok_or("known")?;
        flight.in_flight = true;
        flight.attempts += 1;
        if flight.first.is_none() {
            (flight.first, flight.spent_before) = (Some(self.now), self.own.spent(self.now));
        }
        flight.own_before = self.own.count;
        flight.openings = self.openings;
        let members: Vec<usize> = flight.members.iter().map(|load| load.item).collect();
        for (place, item) in members.iter().enumerate() {
            require(!self.model.items[*item].done, "repeat: what is done is not sent again")?;
            let across = self.model.across(*item).next();
            require(across.is_none(), &format!("barrier: {item} does not wait for {across:?}"))?;
            for earlier in self.model.before(*item) {
                let other = self.flights.iter().find(|(_, flight)| flight.has(earlier));
                let is_away = other.is_some_and(|(other, flight)| *other != key && flight.in_flight);
                require(!is_away, "exclusive: a group is in one delivery under way")?;
                require(members[..place].contains(&earlier), "ordered: a message overtook one of its group")?;
            }
        }
        Ok(())
    }

    pub(super) fn under_way(&self) -> Vec<DeliveryKey> {
        self.flights.iter().filter(|(_, flight)| flight.in_flight).map(|(key, _)| *key).collect()
    }

    /// An attempt ends as the endpoint is.
    pub(super) fn answer(&mut self, fail_percent: u8) -> Check {
        let under_way = self.under_way();
        let Some(&key) = under_way.get(self.rng.usize(0..under_way.len().max(1))) else { return Ok(()) };
        let flight = &self.flights[&key];
        let is_poison = flight.members.iter().any(|load| self.model.items[load.item].is_poison) && !self.is_ending;
        let fails = self.is_down || self.rng.u8(0..100) < fail_percent;
        if flight.members.iter().any(|load| load.is_damaged || flight.is_told && self.model.items[load.item].is_damaged)
        {
            return self.find_damaged(key);
        }
        if fails && self.rng.u8(0..6) == 0 && !self.is_ending {
            return self.fail_for_own_reasons(key);
        }
        let failure = Failure {
            own: false,
            too_large: false,
            damaged: false,
            ours: fails && !self.is_down && self.rng.u8(0..5) == 0,
            trouble: fails && (self.is_down || self.rng.bool()),
            refused: is_poison && !fails,
            retry_after: (fails && self.rng.u8(0..10) == 0).then(|| MS * self.rng.u32(0..5000)),
        };
        if !failure.refused && (!fails || self.rng.u8(0..5) == 0) {
            flight.members.clone().iter().try_for_each(|load| self.model.seen(load.item))?;
        }
        if fails || is_poison {
            self.fail(key, failure)?
        } else {
            self.acknowledge(key)?
        }
        self.model.check_watermark(self.scheduler.resolved())
    }

    /// No request was made: what the store has of a message is not what was written.
    fn find_damaged(&mut self, key: DeliveryKey) -> Check {
        let flight = self.flights.get_mut(&key).ok_or("known")?;
        // What says so goes with it wherever it goes.
        flight.members.iter_mut().for_each(|load| load.is_damaged |= self.model.items[load.item].is_damaged);
        let (is_alone, can_die) = (flight.members.len() == 1, flight.is_kept || self.room != StoreRoom::Shut);
        self.fail(key, Failure { ours: true, damaged: true, ..Failure::default() })?;
        let (is_known, is_blocked) = self.flights.get(&key).map_or((false, false), |flight| (true, flight.is_blocked));
        let blocks = self.rules.on_exhausted == OnExhausted::BlockGroup;
        let pauses = self.rules.on_exhausted == OnExhausted::PauseSink;
        match (is_alone, can_die) {
            (false, _) => require(!is_known, "damaged: it parts from the others at once")?,
            (true, true) => {
                require(is_known == blocks && is_blocked == blocks, "damaged: its group goes on or waits")?;
                require(self.paused || !pauses, "damaged: the sink goes on or is paused")?;
            }
            (true, false) => require(is_known && !is_blocked, "damaged: nothing is given up without room")?,
        }
        if self.is_ending && std::mem::take(&mut self.paused) {
            self.scheduler.resume();
        }
        self.model.check_watermark(self.scheduler.resolved())
    }

    fn fail_for_own_reasons(&mut self, key: DeliveryKey) -> Check {
        let is_fresh = self.flights[&key].own_before == self.own.count;
        let trouble = self.fault == Fault::BlameEndpoint;
        let is_hidden = trouble || self.fault == Fault::BlameDelivery;
        let failure = Failure { ours: !is_hidden, own: !is_hidden, trouble, ..Failure::default() };
        let verdict = self.scheduler.outcome(self.now, &self.world, key, Outcome::Failed(failure)).ok_or("known")?;
        self.note(|_| format!("{key:?} own {verdict:?}"));
        let Verdict::Retry(at) = verdict else { return Err("own: nothing comes of it but another attempt".to_owned()) };
        if is_fresh {
            let since = self.own.lasts.map_or(self.now, |(since, _)| since);
            (self.own.count, self.own.lasts) = (self.own.count + 1, Some((since, at)));
        }
        let flight = self.flights.get_mut(&key).ok_or("known")?;
        flight.in_flight = false;
        flight.attempts -= 1;
        if flight.attempts == 0 {
            flight.first = None;
        }
        flight.not_before = at;
        self.failed_again(key);
        Ok(())
    }

    /// An attempt ended otherwise: our own machine is well.
    fn is_well(&mut self, key: DeliveryKey) {
        if self.flights[&key].own_before == self.own.count
            && let Some((since, _)) = self.own.lasts.take()
        {
            self.own.spent += self.now - since;
        }
    }

    fn acknowledge(&mut self, key: DeliveryKey) -> Check {
        self.troubles = 0;
        self.is_well(key);
        let verdict = self.scheduler.outcome(self.now, &self.world, key, Outcome::Acknowledged);
        self.note(|_| format!("{key:?} acked"));
        require(verdict == Some(Verdict::Done), "acknowledged is done")?;
        let flight = self.flights.remove(&key).ok_or("known")?;
        self.ended(flight);
        Ok(())
    }

    /// What the breaker should have heard.
    fn hear(&mut self, key: DeliveryKey, failure: Failure) {
        let is_fresh = self.flights[&key].openings == self.openings;
        if !failure.ours && !failure.trouble {
            self.troubles = 0;
        } else if !failure.ours && is_fresh {
            self.troubles += 1;
        }
    }

    fn fail(&mut self, key: DeliveryKey, failure: Failure) -> Check {
        self.hear(key, failure);
        if !failure.ours {
            self.is_well(key);
        }
        let is_hidden = self.fault == Fault::HideTrouble;
        let shown = Failure { trouble: failure.trouble && !is_hidden, ..failure };
        let is_resolved = self.fault == Fault::FailureResolves;
        let outcome = if is_resolved { Outcome::Acknowledged } else { Outcome::Failed(shown) };
        let before = self.scheduler.breaker();
        let verdict = self.scheduler.outcome(self.now, &self.world, key, outcome).ok_or("known")?;
        self.note(|_| format!("{key:?} {failure:?} {verdict:?}"));
        if let BreakerState::Open { .. } = self.scheduler.breaker()
            && self.scheduler.breaker() != before
            && failure.trouble
        {
            self.openings += 1;
            self.troubles = 0;
        }
        let flight = self.flights.get_mut(&key).ok_or("known")?;
        flight.in_flight = false;
        flight.has_failed = true;
        flight.failures += 1;
        flight.attempts -= u32::from(failure.ours);
        flight.refusals += u32::from(failure.refused);
        let held = failure.retry_after.map(|asked| self.now + asked.min(self.rules.retry.max));
        self.held_until = self.held_until.max(held);
        self.judge(key, verdict)
    }

    fn judge(&mut self, key: DeliveryKey, verdict: Verdict) -> Check {
        let flight = self.flights.get_mut(&key).ok_or("known")?;
        match verdict {
            Verdict::Done => Ok(()),
            Verdict::Retry(at) => {
                let full = (self.rules.retry.initial * (1 << (flight.failures - 1).min(20))).min(self.rules.retry.max);
                let spent = self.own.spent(self.now).saturating_sub(flight.spent_before);
                let aged = self.rules.limits.max_age.zip(flight.first).map(|(age, first)| first + age + spent);
                let earliest = self.now + full / 2 - Duration::from_nanos(1);
                let held = self.held_until.unwrap_or(self.now);
                let is_early = at < aged.map_or(earliest, |aged| earliest.min(aged)).max(held);
                require(!is_early && at <= (self.now + full).max(held), "the wait is U(0.5, 1) of the doubled one")?;
                flight.not_before = at;
                self.failed_again(key);
                Ok(())
            }
            Verdict::Split { parts, write } => {
                let whole = self.flights.remove(&key).ok_or("known")?;
                self.split(whole, parts, write)
            }
            Verdict::Dead { paused, why } => {
                let spent = self.own.spent(self.now).saturating_sub(flight.spent_before);
                let age = flight.first.map(|first| (self.now - first).saturating_sub(spent));
                let is_aged = why != Exhausted::Age || age >= self.rules.limits.max_age;
                require(is_aged, &format!("own: given up at the age of {age:?}, of which {spent:?} do not count"))?;
                self.paused |= paused;
                let flight = self.flights.remove(&key).ok_or("known")?;
                flight.members.iter().try_for_each(|load| self.model.seen(load.item))?;
                self.ended(flight);
                Ok(())
            }
            Verdict::Blocked(_) => {
                flight.is_blocked = true;
                self.failed_again(key);
                Ok(())
            }
        }
    }
}

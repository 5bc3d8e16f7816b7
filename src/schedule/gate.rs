//! Whether an attempt may start, and which delivery that failed is tried next.
//!
//! Everything that keeps a sink as a whole from sending stands here: a person's pause, the endpoint's health ([`super::breaker`])
//! and its `Retry-After`, troubles of walhook's own machine ([`super::own`]), and how many attempts are under way. What is to be
//! sent stands elsewhere.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use super::breaker::{Breaker, Heard, Started};
use super::own::{Began, Own};
use super::{BreakerState, DeliveryKey, Failure, NotNow, Outcome, Rules, StoreRoom, World};

/// An attempt under way, to be handed back when it ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight(Started, Began);

/// See the module.
#[derive(Debug)]
pub(super) struct Gate {
    max_in_flight: usize,
    is_paused: bool,
    /// Nothing new is written or read back.
    is_stopping: bool,
    breaker: Breaker,
    own: Own,
    in_flight: usize,
    /// No attempt starts before: the endpoint said `Retry-After`.
    held_until: Option<Instant>,
    /// Deliveries that failed, and when they are due.
    timers: BinaryHeap<Reverse<(Instant, DeliveryKey)>>,
    /// Deliveries that failed and are due, oldest first.
    due: VecDeque<(Instant, DeliveryKey)>,
    /// New deliveries and those that failed take turns.
    retry_had_last_turn: bool,
}

impl Gate {
    pub(super) fn new(rules: &Rules) -> Self {
        Self {
            max_in_flight: rules.max_in_flight,
            is_paused: false,
            is_stopping: false,
            breaker: Breaker::new(rules.retry, rules.max_in_flight),
            own: Own::new(),
            in_flight: 0,
            held_until: None,
            timers: BinaryHeap::new(),
            due: VecDeque::new(),
            retry_had_last_turn: false,
        }
    }

    pub(super) fn set_paused(&mut self, is_paused: bool) {
        self.is_paused = is_paused;
    }

    pub(super) fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// The end: no attempt starts any more.
    pub(super) fn stop(&mut self) {
        (self.is_paused, self.is_stopping) = (true, true);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn breaker(&self) -> BreakerState {
        self.breaker.state()
    }

    pub(super) fn is_breaker_open(&self) -> bool {
        self.breaker.is_open()
    }

    /// Since when a trouble of walhook's own machine keeps the sink waiting.
    pub(super) fn own_trouble(&self) -> Option<Instant> {
        self.own.since()
    }

    /// The time that counts for no delivery's age.
    pub(super) fn spent(&self, now: Instant) -> Duration {
        self.own.spent(now)
    }

    /// How long the process has not run since it began.
    pub(super) fn slept(&mut self, all: Duration) {
        self.own.slept(all);
    }

    /// Moves what has become due.
    pub(super) fn wake(&mut self, now: Instant) {
        if self.held_until.is_some_and(|held| held <= now) {
            self.held_until = None;
        }
        while let Some(Reverse((at, key))) = self.timers.peek().copied()
            && at <= now
        {
            self.timers.pop();
            self.due.push_back((at, key));
        }
    }

    /// Whether an attempt may start; if not, why. Comes after [`Self::wake`].
    pub(super) fn may_start(&self, now: Instant, world: &World) -> Result<(), NotNow> {
        self.may_ever(world)?;
        if self.held_until.is_some() {
            return Err(NotNow::RetryAfter);
        }
        if self.breaker.allowance(now, self.in_flight) == 0 {
            return Err(NotNow::BreakerOpen);
        }
        if !self.own.may_start(now) {
            return Err(NotNow::OwnTrouble);
        }
        Ok(())
    }

    /// Whether an attempt may start if only time goes by. While memory is short one goes at a time, since its body needs
    /// room, be it rendered or fetched.
    fn may_ever(&self, world: &World) -> Result<(), NotNow> {
        let reasons = [
            (self.is_paused, NotNow::Paused),
            (world.store == StoreRoom::Stalled, NotNow::StoreStalled),
            (world.memory.is_short && self.in_flight > 0, NotNow::Memory),
            (self.in_flight >= self.max_in_flight, NotNow::MaxInFlight),
        ];
        reasons.into_iter().find(|(holds, _)| *holds).map_or(Ok(()), |(_, why)| Err(why))
    }

    /// When an attempt may start, if nothing else happens before: of a delivery that failed, or of a new one, for which there
    /// are messages from `fresh` on.
    pub(super) fn opens_at(&self, world: &World, fresh: Option<Instant>) -> Option<Instant> {
        if self.may_ever(world).is_err() || self.own.is_tried() {
            return None;
        }
        let held_until = self.held_until.max(self.own.wake_at());
        let due = self.due.front().map(|(at, _)| *at);
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        let retry = due.into_iter().chain(timer).min();
        if self.breaker.is_open() {
            // A probe need not be due.
            let probe = self.breaker.wake_at()?;
            let next = if retry.is_some() { probe } else { probe.max(fresh?) };
            return Some(next).max(held_until);
        }
        let next = Some(retry.into_iter().chain(fresh).min()?).max(held_until)?;
        // In a ramp-up that is used up, an outcome comes first.
        let is_free = self.breaker.allowance(next, self.in_flight) > 0;
        is_free.then_some(next)
    }

    /// Whether what the store has would be sent soon if it were read now. A probe may have to come out of it.
    pub(super) fn may_read(&self, now: Instant) -> bool {
        let is_shut = self.breaker.is_open() && self.breaker.allowance(now, self.in_flight) == 0;
        self.held_until.is_none() && !is_shut && self.own.may_start(now)
    }

    /// When it would, not before `earliest`; `None`: at once, or once something has happened.
    pub(super) fn reads_at(&self, earliest: Option<Instant>) -> Option<Instant> {
        let is_open = self.breaker.is_open();
        let waits_for_outcome = is_open && (self.in_flight >= self.max_in_flight || self.breaker.wake_at().is_none());
        if waits_for_outcome || self.own.is_tried() {
            return None;
        }
        earliest.max(self.held_until).max(self.breaker.wake_at()).max(self.own.wake_at())
    }

    /// An attempt starts.
    pub(super) fn started(&mut self) -> Flight {
        self.in_flight += 1;
        Flight(self.breaker.started(), self.own.started())
    }

    /// An attempt ended; to be called once for each [`Self::started`].
    pub(super) fn ended(&mut self, now: Instant, rng: &mut fastrand::Rng, flight: Flight, outcome: Outcome) {
        let Flight(started, began) = flight;
        self.in_flight -= 1;
        let is_own = match outcome {
            Outcome::Failed(Failure { own: true, .. }) => Some(true),
            // No request was made, so nothing was found out.
            Outcome::Failed(Failure { ours: true, .. }) => None,
            Outcome::Acknowledged | Outcome::Failed(_) => Some(false),
        };
        self.own.ended(now, began, is_own);
        let heard = match outcome {
            Outcome::Failed(Failure { ours: true, .. }) => Heard::Nothing,
            Outcome::Failed(Failure { trouble: true, .. }) => Heard::Trouble,
            Outcome::Acknowledged | Outcome::Failed(_) => Heard::Life,
        };
        self.breaker.ended(now, rng, started, heard);
    }

    /// No attempt starts before: the endpoint said so.
    pub(super) fn hold_until(&mut self, at: Instant) {
        self.held_until = self.held_until.max(Some(at));
    }

    /// A delivery failed, and is due then, but not before the endpoint wants to hear of anybody. When that is.
    pub(super) fn retry_at(&mut self, now: Instant, due: Instant, key: DeliveryKey) -> Instant {
        let due = due.max(self.held_until.unwrap_or(now));
        self.timers.push(Reverse((due, key)));
        due
    }

    /// A delivery failed by a trouble of our own: it is due when the next may find out. When that is.
    pub(super) fn retry_after_own(&mut self, key: DeliveryKey) -> Instant {
        let due = self.own.until();
        self.timers.push(Reverse((due, key)));
        due
    }

    /// A delivery that had failed before is due then, whatever the endpoint said since.
    pub(super) fn due_at(&mut self, due: Instant, key: DeliveryKey) {
        self.timers.push(Reverse((due, key)));
    }

    /// A delivery is due now.
    pub(super) fn due_now(&mut self, now: Instant, key: DeliveryKey) {
        self.due.push_back((now, key));
    }

    /// The next delivery that is due; it has its turn.
    pub(super) fn next_due(&mut self) -> Option<DeliveryKey> {
        let (_, key) = self.due.pop_front()?;
        self.retry_had_last_turn = true;
        Some(key)
    }

    /// The next delivery that is due, or else will be; it has its turn.
    pub(super) fn next_early(&mut self) -> Option<DeliveryKey> {
        if self.due.is_empty() {
            let Reverse(next) = self.timers.pop()?;
            self.due.push_back(next);
        }
        self.next_due()
    }

    /// A new delivery has its turn.
    pub(super) fn fresh_has_turn(&mut self) {
        self.retry_had_last_turn = false;
    }

    /// Whether a new delivery goes before one that failed.
    pub(super) fn is_fresh_ones_turn(&self) -> bool {
        self.retry_had_last_turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::{Limits, OnExhausted, Pressure, RetryRule};

    const SECOND: Duration = Duration::from_secs(1);

    fn gate() -> Gate {
        Gate::new(&Rules {
            batch_size: 1,
            batch_bytes: 1,
            batch_timeout: SECOND,
            max_ack_pending: 9,
            max_in_flight: 2,
            retry: RetryRule { initial: SECOND, max: 9 * SECOND },
            limits: Limits::default(),
            on_exhausted: OnExhausted::Continue,
            split_after: 1,
            keeps: true,
            enough: (1, 1),
            write_bytes: 1,
        })
    }

    #[test]
    fn whatever_keeps_the_sink_from_sending_has_its_name_and_ends() {
        let (now, mut rng, mut gate) = (Instant::now(), fastrand::Rng::with_seed(1), gate());
        let easy = World::EASY;
        assert_eq!(gate.may_start(now, &easy), Ok(()));
        let stalled = World { store: StoreRoom::Stalled, ..easy };
        assert_eq!(gate.may_start(now, &stalled), Err(NotNow::StoreStalled));
        for store in [StoreRoom::Open, StoreRoom::Busy, StoreRoom::Shut] {
            assert_eq!(gate.may_start(now, &World { store, ..easy }), Ok(()), "{store:?}");
        }
        let short = World { memory: Pressure { is_short: true, is_share_full: true }, ..easy };
        assert_eq!(gate.may_start(now, &short), Ok(()), "one goes at a time");
        let first = gate.started();
        assert_eq!((gate.may_start(now, &short), gate.may_start(now, &easy)), (Err(NotNow::Memory), Ok(())));
        let second = gate.started();
        assert_eq!((gate.may_start(now, &easy), gate.in_flight()), (Err(NotNow::MaxInFlight), 2));
        gate.set_paused(true);
        assert_eq!(gate.may_start(now, &stalled), Err(NotNow::Paused), "a person first");
        gate.set_paused(false);
        gate.ended(now, &mut rng, first, Outcome::Failed(Failure { own: true, ours: true, ..Failure::default() }));
        assert_eq!(gate.may_start(now, &easy), Err(NotNow::OwnTrouble));
        assert!(gate.may_start(now + SECOND, &easy).is_ok(), "one finds out");
        let probe = gate.started();
        gate.ended(now, &mut rng, probe, Outcome::Acknowledged);
        gate.ended(now, &mut rng, second, Outcome::Acknowledged);
        gate.hold_until(now + SECOND);
        assert_eq!((gate.may_start(now, &easy), gate.may_read(now)), (Err(NotNow::RetryAfter), false));
        gate.wake(now + SECOND);
        assert_eq!((gate.may_start(now, &easy), gate.may_read(now)), (Ok(()), true));
        while !gate.is_breaker_open() {
            let flight = gate.started();
            gate.ended(now, &mut rng, flight, Outcome::Failed(Failure { trouble: true, ..Failure::default() }));
        }
        assert_eq!((gate.may_start(now, &easy), gate.may_read(now)), (Err(NotNow::BreakerOpen), false));
        gate.stop();
        assert_eq!(gate.may_start(now, &easy), Err(NotNow::Paused));
        assert_eq!(gate.opens_at(&easy, Some(now)), None);
    }
}

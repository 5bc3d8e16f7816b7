//! STATION 2: the brain of a sink, without IO.
//!
//! Messages, outcomes and orders go in together with `now`; [`Command`]s come out of [`Scheduler::poll`], and
//! [`Scheduler::poll_timeout`] says when to ask again. Decided here and nowhere else: which messages form a delivery, that a
//! group's deliveries follow commit order one at a time, how many messages and requests may be under way, when a failed
//! delivery is tried again, and how far everything is resolved.
//!
//! The rules:
//!
//! 1. A group is held by at most one delivery. Later messages of it queue behind, in the order of arrival.
//! 2. A delivery's messages never change. It holds its groups until it is acknowledged.
//! 3. Messages in deliveries (in flight, or failed and waiting) never exceed `max_ack_pending`; attempts under way never
//!    exceed `max_in_flight`.
//! 4. While memory is short, a new delivery is formed only when none is in flight: each needs room for its body.
//! 5. Due retries and new deliveries take turns when both could go, so that neither starves the other.
//!
//! All operations cost amortised constant time in the number of messages and groups that wait (retries cost the
//! logarithm of the number of failed deliveries). Chance comes from a seed, so a whole life can be repeated.
//!
//! Not promised here: that anything outlives the process, or bounds on bytes (the source stops reading for those).

mod backlog;
#[cfg_attr(not(test), expect(dead_code, reason = "the scheduler is about to use it"))]
mod breaker;
mod exchange;
#[cfg_attr(not(test), expect(dead_code, reason = "the scheduler is about to use it"))]
mod retry;
#[cfg(test)]
mod simulation;
#[cfg_attr(not(test), expect(dead_code, reason = "the scheduler is about to use it"))]
mod split;
#[cfg(test)]
mod tests;
mod watermark;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::time::Instant;

use self::backlog::{Backlog, Bounds, Waiting};
pub use self::breaker::BreakerState;
pub use self::exchange::{Command, Counts, DeliveryKey, Failure, GroupId, Groups, Message, Outcome, Rules, Verdict};
pub use self::retry::{Exhausted, Limits, RetryRule};
use self::watermark::{Token, Watermark};
use crate::change::Lsn;

#[derive(Debug)]
struct Delivery {
    members: Vec<(Token, Groups)>,
    attempts: u32,
    failures: u32,
    /// Groups it holds, counted at its first failure.
    groups: usize,
}

/// See the module. `P` is what a message carries.
#[derive(Debug)]
pub struct Scheduler<P> {
    rules: Rules,
    rng: fastrand::Rng,
    watermark: Watermark,
    backlog: Backlog<P>,
    deliveries: HashMap<DeliveryKey, Delivery>,
    next_key: u64,
    /// Failed deliveries and when they are due.
    timers: BinaryHeap<Reverse<(Instant, DeliveryKey)>>,
    /// Failed deliveries that are due, oldest first.
    due: VecDeque<(Instant, DeliveryKey)>,
    retry_had_last_turn: bool,
    in_flight: usize,
    ack_pending: usize,
    failed: usize,
    groups_held: usize,
    paused: bool,
    /// Memory is short: no new delivery while another is in flight.
    cramped: bool,
    /// No attempt starts before: the endpoint said `Retry-After`.
    held_until: Option<Instant>,
}

impl<P> Scheduler<P> {
    /// Bytes that a waiting message takes in here, itself included; growing containers hold up to twice as much.
    pub const MESSAGE_BYTES: usize = Backlog::<P>::MESSAGE_BYTES + Watermark::MESSAGE_BYTES;

    /// A scheduler without messages. Numbers of `rules` below 1 count as 1.
    pub fn new(rules: Rules, seed: u64) -> Self {
        let rules = Rules {
            batch_size: rules.batch_size.max(1),
            max_ack_pending: rules.max_ack_pending.max(1),
            max_in_flight: rules.max_in_flight.max(1),
            ..rules
        };
        Self {
            rules,
            rng: fastrand::Rng::with_seed(seed),
            watermark: Watermark::new(),
            backlog: Backlog::new(),
            deliveries: HashMap::new(),
            next_key: 0,
            timers: BinaryHeap::new(),
            due: VecDeque::new(),
            retry_had_last_turn: false,
            in_flight: 0,
            ack_pending: 0,
            failed: 0,
            groups_held: 0,
            paused: false,
            cramped: false,
            held_until: None,
        }
    }

    /// A message arrived; it comes after all that arrived before. False: it has to wait for another message of its groups.
    pub fn push(&mut self, now: Instant, message: Message<P>) -> bool {
        let token = self.watermark.arrive(now);
        let Message { groups, bytes, payload } = message;
        self.backlog.push(now, Waiting { groups, bytes, token, payload })
    }

    /// Once all that has arrived is resolved, everything up to `lsn` is.
    pub fn mark(&mut self, lsn: Lsn) {
        self.watermark.mark(lsn);
    }

    /// Everything up to here is resolved. Only grows.
    pub fn resolved(&self) -> Lsn {
        self.watermark.resolved()
    }

    /// When the oldest unresolved message arrived.
    pub fn oldest_arrival(&self) -> Option<Instant> {
        self.watermark.oldest_arrival()
    }

    /// Starts no attempt until [`Self::resume`]; attempts under way go on.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Ends a pause.
    pub fn resume(&mut self) {
        self.paused = false;
    }

    /// Memory is short, or no longer: see the rules.
    pub fn set_cramped(&mut self, cramped: bool) {
        self.cramped = cramped;
    }

    /// Whether it is paused.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// An attempt that [`Self::poll`] asked for has ended. `None` if no such attempt is known.
    pub fn outcome(&mut self, now: Instant, key: DeliveryKey, outcome: Outcome) -> Option<Verdict> {
        match outcome {
            Outcome::Acknowledged => {
                let delivery = self.deliveries.remove(&key)?;
                self.in_flight -= 1;
                self.ack_pending -= delivery.members.len();
                self.failed -= usize::from(delivery.failures > 0);
                self.groups_held -= delivery.groups;
                for (token, groups) in delivery.members {
                    self.watermark.resolve(token);
                    self.backlog.release(now, key, groups);
                }
                Some(Verdict::Done)
            }
            Outcome::Failed(failure) => self.failed(now, key, failure),
        }
    }

    fn failed(&mut self, now: Instant, key: DeliveryKey, failure: Failure) -> Option<Verdict> {
        let delivery = self.deliveries.get_mut(&key)?;
        self.in_flight -= 1;
        delivery.failures = delivery.failures.saturating_add(1);
        if delivery.failures == 1 {
            let groups: HashSet<GroupId> = delivery.members.iter().flat_map(|(_, groups)| groups.iter()).collect();
            delivery.groups = groups.len();
            self.groups_held += groups.len();
            self.failed += 1;
        }
        if failure.ours {
            delivery.attempts -= 1;
        }
        let mut due = now + retry::wait_after(self.rules.retry, delivery.failures, &mut self.rng);
        if let Some(asked) = failure.retry_after {
            let held = now + asked.min(self.rules.retry.max);
            self.held_until = self.held_until.max(Some(held));
            due = due.max(held);
        }
        self.timers.push(Reverse((due, key)));
        Some(Verdict::Retry(due))
    }

    /// What is to be done now; ask until `None`.
    pub fn poll(&mut self, now: Instant) -> Option<Command<P>> {
        self.wake(now);
        if self.paused || self.held_until.is_some() || self.in_flight >= self.rules.max_in_flight {
            return None;
        }
        if self.retry_had_last_turn {
            self.form_next(now).or_else(|| self.retry_next())
        } else {
            self.retry_next().or_else(|| self.form_next(now))
        }
    }

    /// When [`Self::poll`], having said `None`, has something to do if nothing else happens before.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        if self.paused || self.in_flight >= self.rules.max_in_flight {
            return None;
        }
        let due = self.due.front().map(|(at, _)| *at);
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        let next = [due, timer, self.fresh_at()].into_iter().flatten().min()?;
        Some(self.held_until.map_or(next, |held| next.max(held)))
    }

    /// Figures for people.
    pub fn counts(&self) -> Counts {
        Counts {
            in_flight: self.in_flight,
            ack_pending: self.ack_pending,
            waiting: self.backlog.len(),
            ready: self.backlog.ready_messages(),
            ready_bytes: self.backlog.ready_bytes(),
            failed: self.failed,
            groups_held: self.groups_held,
            unresolved: self.watermark.unresolved(),
        }
    }

    /// Moves what has become due.
    fn wake(&mut self, now: Instant) {
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

    /// When a new delivery may be formed, as far as messages and `max_ack_pending` go.
    fn fresh_at(&mut self) -> Option<Instant> {
        let room = self.rules.max_ack_pending - self.ack_pending;
        if room == 0 || (self.cramped && self.in_flight > 0) {
            return None;
        }
        let since = self.backlog.ready_since()?;
        let full = self.backlog.ready_messages() >= self.rules.batch_size.min(room)
            || self.backlog.ready_bytes() >= self.rules.batch_bytes;
        Some(if full { since } else { since + self.rules.batch_timeout })
    }

    /// The next new delivery, if one may be formed.
    fn form_next(&mut self, now: Instant) -> Option<Command<P>> {
        if self.fresh_at().is_none_or(|at| at > now) {
            return None;
        }
        let key = DeliveryKey(self.next_key);
        let room = self.rules.max_ack_pending - self.ack_pending;
        let bounds = Bounds { messages: self.rules.batch_size.min(room), bytes: self.rules.batch_bytes };
        let taken = self.backlog.take(key, bounds);
        if taken.is_empty() {
            // All that looked ready waits for its second group, and is no longer in the ready queue.
            return None;
        }
        self.next_key += 1;
        self.in_flight += 1;
        self.ack_pending += taken.len();
        self.retry_had_last_turn = false;
        let (mut members, mut messages) = (Vec::with_capacity(taken.len()), Vec::with_capacity(taken.len()));
        for message in taken {
            members.push((message.token, message.groups));
            messages.push(message.payload);
        }
        self.deliveries.insert(key, Delivery { members, attempts: 1, failures: 0, groups: 0 });
        Some(Command::Form { delivery: key, messages })
    }

    /// The next attempt of a delivery that is due.
    fn retry_next(&mut self) -> Option<Command<P>> {
        let (_, key) = self.due.pop_front()?;
        let delivery = self.deliveries.get_mut(&key)?;
        delivery.attempts += 1;
        self.in_flight += 1;
        self.retry_had_last_turn = true;
        Some(Command::Attempt { delivery: key, number: delivery.attempts })
    }
}

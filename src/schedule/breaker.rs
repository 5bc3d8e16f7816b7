//! The endpoint's health: whether attempts may start at all, and how many at a time.
//!
//! ```text
//!             5 troubles in a row          until              trouble: a longer wait
//!  Closed ────────────────────────▶ Open ───────▶ Probing ───────────────────────────▶ Open
//!    ▲                               │               │
//!    │ limit reaches max_in_flight   │ life          │ life
//!    └─────────────── RampUp ◀───────┴───────────────┘
//!                       └── trouble: Open, a longer wait
//! ```
//!
//! It hears how each attempt ended: the endpoint lives (a success, or an answer that only dislikes the delivery), is in
//! trouble, or nothing can be said (a failure of ours). The n-th opening, counted since it was last closed and with failed
//! probes counted too, waits as a delivery waits after its n-th failure. In the ramp-up 1, then 2, 4, 8, … attempts may be
//! in flight; each step takes as many signs of life as its limit.
//!
//! An attempt is judged by the time at which it started, which [`Started`] remembers. One from before the last opening may
//! still end that opening by a sign of life; otherwise it says nothing: its failure neither lengthens the wait nor fails
//! the probe nor disturbs the ramp-up, and it takes no place in the ramp-up's limit.
//!
//! A probe of which nothing can be said ends, and the next may start after the first wait: the endpoint has not asked for a
//! longer one, and what failed on our side should not be tried in a circle.

use std::time::Instant;

use super::retry::{self, RetryRule};

/// Troubles in a row that open it.
const TROUBLES_MAX: u32 = 5;

/// What an attempt said of the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It answered, be it with a refusal of this delivery.
    Life,
    /// It cannot serve anyone: connect, TLS, timeout, 429, 5xx.
    Trouble,
    /// A failure of ours.
    Nothing,
}

/// When an attempt started, in openings; handed back when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Started(u64);

/// What people see of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Attempts start as they like.
    Closed,
    /// No attempt starts before `until`; then one does.
    Open {
        /// When a probe may start.
        until: Instant,
        /// Openings and failed probes since it was last closed.
        failures: u32,
    },
    /// One attempt is under way to find out.
    Probing {
        /// As above.
        failures: u32,
    },
    /// The endpoint lives again; so many attempts may be in flight.
    RampUp {
        /// 1, 2, 4, …, below `max_in_flight`.
        limit: usize,
    },
}

#[derive(Debug)]
enum Phase {
    Closed { troubles: u32 },
    Open { until: Instant },
    Probing,
    RampUp { limit: usize, lives: usize },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Breaker {
    rule: RetryRule,
    max_in_flight: usize,
    phase: Phase,
    /// Openings and failed probes since it was last closed.
    failures: u32,
    /// The same, ever.
    openings: u64,
    /// Attempts under way that started since the last of these.
    fresh: usize,
}

impl Breaker {
    /// A closed one. Its waits follow `rule`; the ramp-up ends at `max_in_flight`.
    pub(super) fn new(rule: RetryRule, max_in_flight: usize) -> Self {
        Self { rule, max_in_flight, phase: Phase::Closed { troubles: 0 }, failures: 0, openings: 0, fresh: 0 }
    }

    /// An attempt starts. While it is open this attempt is the probe.
    pub(super) fn started(&mut self) -> Started {
        self.fresh += 1;
        if let Phase::Open { .. } = self.phase {
            self.phase = Phase::Probing;
        }
        Started(self.openings)
    }

    /// An attempt ended. To be called once for each [`Self::started`].
    pub(super) fn ended(&mut self, now: Instant, rng: &mut fastrand::Rng, started: Started, heard: Heard) {
        let is_fresh = started.0 == self.openings;
        self.fresh -= usize::from(is_fresh);
        match heard {
            Heard::Life if is_fresh || self.is_open() => self.life(),
            Heard::Trouble if is_fresh => self.trouble(now, rng),
            Heard::Nothing if is_fresh && matches!(self.phase, Phase::Probing) => {
                self.phase = Phase::Open { until: now + self.rule.initial };
            }
            Heard::Life | Heard::Trouble | Heard::Nothing => {}
        }
    }

    /// How many more attempts may start while `in_flight` are under way.
    pub(super) fn allowance(&self, now: Instant, in_flight: usize) -> usize {
        let room = self.max_in_flight.saturating_sub(in_flight);
        match self.phase {
            Phase::Closed { .. } => room,
            Phase::Open { until } => room.min(usize::from(until <= now)),
            Phase::Probing => 0,
            Phase::RampUp { limit, .. } => room.min(limit.saturating_sub(self.fresh)),
        }
    }

    /// When the allowance grows by time alone. A time that has passed: it has grown.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Open { until } => Some(until),
            Phase::Closed { .. } | Phase::Probing | Phase::RampUp { .. } => None,
        }
    }

    /// For views.
    pub(super) fn state(&self) -> BreakerState {
        match self.phase {
            Phase::Closed { .. } => BreakerState::Closed,
            Phase::Open { until } => BreakerState::Open { until, failures: self.failures },
            Phase::Probing => BreakerState::Probing { failures: self.failures },
            Phase::RampUp { limit, .. } => BreakerState::RampUp { limit },
        }
    }

    /// Open or probing: nothing has been heard of a living endpoint since it opened.
    pub(super) fn is_open(&self) -> bool {
        match self.phase {
            Phase::Open { .. } | Phase::Probing => true,
            Phase::Closed { .. } | Phase::RampUp { .. } => false,
        }
    }

    fn life(&mut self) {
        match &mut self.phase {
            Phase::Closed { troubles } => *troubles = 0,
            Phase::Open { .. } | Phase::Probing => self.ramp_up(1),
            Phase::RampUp { limit, lives } => {
                *lives += 1;
                if lives >= limit {
                    let limit = limit.saturating_mul(2);
                    self.ramp_up(limit);
                }
            }
        }
    }

    fn ramp_up(&mut self, limit: usize) {
        if limit < self.max_in_flight {
            self.phase = Phase::RampUp { limit, lives: 0 };
        } else {
            self.phase = Phase::Closed { troubles: 0 };
            self.failures = 0;
        }
    }

    fn trouble(&mut self, now: Instant, rng: &mut fastrand::Rng) {
        if let Phase::Closed { troubles } = &mut self.phase {
            *troubles += 1;
            if *troubles < TROUBLES_MAX {
                return;
            }
        }
        self.failures = self.failures.saturating_add(1);
        self.openings += 1;
        self.fresh = 0;
        self.phase = Phase::Open { until: now + retry::wait_after(self.rule, self.failures, rng) };
    }
}

#[cfg(test)]
mod tests;

//! Troubles of walhook's own machine: no file descriptor, no resolver, a process that was asleep.
//!
//! They say nothing of the endpoint and nothing of a delivery, so the sink waits as a whole: one attempt at a time finds out
//! whether it goes on, after a wait that doubles. Neither attempts nor the time until then count for a delivery.

use std::time::{Duration, Instant};

/// The first wait; it doubles up to the longest.
const WAIT: Duration = Duration::from_millis(500);
const WAIT_MAX: Duration = Duration::from_secs(4);

/// Tells whether an attempt began before the last trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Began(u64);

/// See the module.
#[derive(Debug)]
pub(super) struct Own {
    /// How often one was heard of, not counting attempts that began before the last.
    troubles: u64,
    since: Option<Instant>,
    /// No attempt starts before; then one does.
    until: Instant,
    waits: u32,
    is_tried: bool,
    /// The time spent so, without the one that lasts.
    spent: Duration,
    /// How long the process has not run at all.
    slept: Duration,
}

impl Own {
    pub(super) fn new() -> Self {
        let (spent, slept) = (Duration::ZERO, Duration::ZERO);
        Self { troubles: 0, since: None, until: Instant::now(), waits: 0, is_tried: false, spent, slept }
    }

    /// An attempt starts.
    pub(super) fn started(&mut self) -> Began {
        self.is_tried |= self.since.is_some();
        Began(self.troubles)
    }

    /// An attempt ended, by our own trouble or not; `None`: it says nothing of that. To be called once for each
    /// [`Self::started`].
    pub(super) fn ended(&mut self, now: Instant, began: Began, is_own: Option<bool>) {
        if began.0 != self.troubles {
            return;
        }
        match is_own {
            Some(true) => {
                self.until = now + (WAIT * (1 << self.waits.min(8))).min(WAIT_MAX);
                self.troubles += 1;
                self.waits += 1;
                self.since.get_or_insert(now);
            }
            Some(false) => {
                if let Some(since) = self.since.take() {
                    self.spent += now.saturating_duration_since(since);
                    self.waits = 0;
                }
            }
            None => {}
        }
        self.is_tried = false;
    }

    /// The process has not run for so long, since it began.
    pub(super) fn slept(&mut self, all: Duration) {
        self.slept = self.slept.max(all);
    }

    /// Whether an attempt may start.
    pub(super) fn may_start(&self, now: Instant) -> bool {
        self.since.is_none() || (!self.is_tried && self.until <= now)
    }

    /// When one may; `None`: once the one that is under way has ended, or there is no trouble.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.since.filter(|_| !self.is_tried).map(|_| self.until)
    }

    /// When the next attempt of a delivery may start that failed so.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// Since when it lasts.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// One attempt finds out how it is.
    pub(super) fn is_tried(&self) -> bool {
        self.is_tried
    }

    /// The time that counts for no delivery.
    pub(super) fn spent(&self, now: Instant) -> Duration {
        let lasts = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.spent + self.slept + lasts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn one_attempt_at_a_time_finds_out_and_the_time_until_then_is_spent_by_nobody() {
        let mut now = Instant::now();
        let mut own = Own::new();
        let begun = [own.started(), own.started(), own.started()];
        assert!(own.may_start(now) && own.wake_at().is_none());
        // All of one rush are one trouble.
        own.ended(now, begun[0], Some(true));
        own.ended(now, begun[1], Some(true));
        let mut waits = Vec::new();
        for _ in 0..6 {
            let until = own.wake_at().expect("a time");
            waits.push((until - now).as_millis());
            assert!(!own.may_start(until - MS) && own.may_start(until));
            let began = own.started();
            assert!(!own.may_start(until) && own.wake_at().is_none(), "one at a time");
            now = until + MS * 100;
            own.ended(now, began, Some(true));
        }
        assert_eq!(waits, [500, 1000, 2000, 4000, 4000, 4000]);
        own.ended(now, begun[2], Some(false));
        assert!(own.since().is_some(), "it began before");
        now = own.until();
        // One that made no request found nothing out.
        let began = own.started();
        own.ended(now, began, None);
        assert!(own.since().is_some() && own.may_start(now), "the next one may find out");
        let began = own.started();
        own.ended(now + MS * 100, began, Some(false));
        assert!(own.may_start(now));
        assert_eq!(own.spent(now + MS * 5000), MS * (500 + 1000 + 2000 + 4 * 4000 + 7 * 100));
        own.slept(MS * 30);
        own.slept(MS * 30);
        assert_eq!(own.spent(now), MS * (19_500 + 700 + 30));
    }
}

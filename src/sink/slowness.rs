//! Whether an endpoint is slow, by what its answers take: pure.
//!
//! An endpoint that answers everything, but late, fails nothing and opens no breaker; what waits for it only grows. What its
//! answers take is known from those that came and from requests that wait for one. Those that began after the last one that
//! was answered speak of the endpoint as it is; the others of how it was.

use std::time::{Duration, Instant};

/// Answers that take so long are slow, if messages wait as long.
const SLOW: Duration = Duration::from_secs(5);
/// Messages that wait so long say it alone: then it is the number of answers that is too small.
const OLD: Duration = Duration::from_secs(60);
/// Requests that began so long before one that was answered say nothing of the endpoint as it is.
const PAST: Duration = Duration::from_secs(1);

/// What of a sink says how it gets on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts {
    /// The age of the oldest message that is not delivered.
    pub(super) oldest: Option<Duration>,
    /// Nothing is sent, or single probes only: that is another trouble.
    pub(super) is_held: bool,
}

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It is slow.
    Begins,
    /// It is slow no longer.
    Ends,
}

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slowness {
    /// What answers have taken, the last ones more than those before.
    answers: Duration,
    /// When the last of them to begin began.
    last_began: Option<Instant>,
    is_slow: bool,
}

impl Slowness {
    /// A request that began then was answered after so long.
    pub(super) fn answered(&mut self, began: Instant, took: Duration) {
        if self.last_began.is_some_and(|last| began + PAST < last) {
            return;
        }
        self.answers = match self.last_began {
            Some(_) => (self.answers * 3 + took) / 4,
            None => took,
        };
        self.last_began = self.last_began.max(Some(began));
    }

    /// What answers take: at least what the requests that began at these times have waited.
    pub(super) fn answers(&self, now: Instant, under_way: impl Iterator<Item = Instant>) -> Duration {
        let first = under_way.filter(|began| Some(*began) > self.last_began).min();
        self.answers.max(first.map_or(Duration::ZERO, |first| now.saturating_duration_since(first)))
    }

    /// Looks at it, `answers` being what answers take.
    pub(super) fn look(&mut self, answers: Duration, facts: Facts) -> Option<Change> {
        let Facts { oldest, is_held } = facts;
        // It ends only well below of where it began, so that it does not come and go.
        let (slow, old) = if self.is_slow { (SLOW / 2, OLD / 2) } else { (SLOW, OLD) };
        let waits = |least| oldest.is_some_and(|oldest| oldest >= least);
        let is_slow = !is_held && ((answers >= slow && waits(slow)) || waits(old));
        let before = std::mem::replace(&mut self.is_slow, is_slow);
        match (before, is_slow) {
            (false, true) => Some(Change::Begins),
            (true, false) => Some(Change::Ends),
            (false, false) | (true, true) => None,
        }
    }

    /// Whether it is slow.
    pub(super) fn is_slow(&self) -> bool {
        self.is_slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn waits(seconds: u32) -> Facts {
        Facts { oldest: Some(SECOND * seconds), is_held: false }
    }

    #[test]
    fn it_begins_when_answers_and_messages_are_late_and_ends_when_they_are_not() {
        let mut slowness = Slowness::default();
        for (answers, facts, change) in [
            (4, waits(40), None),
            (29, waits(4), None),
            (29, Facts::default(), None),
            (29, Facts { is_held: true, ..waits(98) }, None),
            (29, waits(98), Some(Change::Begins)),
            (29, waits(110), None),
            (3, waits(3), None),
            (2, waits(29), Some(Change::Ends)),
            // Quick answers, and too few of them.
            (0, waits(59), None),
            (0, waits(60), Some(Change::Begins)),
            (0, waits(31), None),
            (0, Facts::default(), Some(Change::Ends)),
        ] {
            assert_eq!(slowness.look(SECOND * answers, facts), change, "{answers} s, {facts:?}");
        }
    }

    #[test]
    fn requests_that_wait_tell_it_before_an_answer_does_and_old_ones_keep_nobody_from_hearing_of_the_end() {
        let began = Instant::now();
        let mut slowness = Slowness::default();
        let at = |seconds: u32| began + SECOND * seconds;
        assert_eq!(slowness.answers(at(7), [at(3), at(1), at(6)].into_iter()), SECOND * 6);
        slowness.answered(at(1), SECOND * 29);
        assert_eq!(slowness.answers(at(30), [at(3)].into_iter()), SECOND * 29);
        // From there on it is quick, and what hangs is answered in the end.
        for second in 40..55 {
            slowness.answered(at(second), SECOND / 10);
        }
        assert!(slowness.answers(at(55), [at(3)].into_iter()) < SECOND);
        slowness.answered(at(3), SECOND * 60);
        assert!(slowness.answers(at(63), std::iter::empty()) < SECOND);
    }
}

//! How long a failed delivery waits, and when it is given up: pure functions of the rule, what happened, and chance.

use std::time::{Duration, Instant};

/// `[sink.NAME.retry]`.
#[derive(Clone, Copy, Debug)]
pub struct RetryRule {
    /// First wait.
    pub initial: Duration,
    /// Longest wait.
    pub max: Duration,
}

/// The wait after the `failures`-th failure (from 1): `U(0.5, 1) × min(max, initial × 2^(failures - 1))`.
pub(super) fn wait_after(rule: RetryRule, failures: u32, rng: &mut fastrand::Rng) -> Duration {
    let doublings = failures.saturating_sub(1).min(31);
    let full = rule.initial.saturating_mul(1 << doublings).min(rule.max);
    full.mul_f64(0.5 + rng.f64() / 2.0)
}

/// `retry.max_attempts` and `retry.max_age`: how long a delivery is tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Attempts; `None`: for ever.
    pub max_attempts: Option<u32>,
    /// Age, counted from the first attempt; `None`: for ever.
    pub max_age: Option<Duration>,
}

/// Why a delivery is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exhausted {
    /// [`Limits::max_attempts`].
    Attempts,
    /// [`Limits::max_age`].
    Age,
    /// Its message is too large to be sent.
    TooLarge,
    /// Its message is damaged.
    Damaged,
}

impl Limits {
    /// When a delivery reaches its age; `None`: never, or so late that no clock shows it.
    fn aged_at(self, first_attempt: Option<Instant>) -> Option<Instant> {
        first_attempt?.checked_add(self.max_age?)
    }
}

/// Whether a delivery is given up whose `attempts`-th attempt has just failed, not counting those that failed for reasons
/// of ours.
pub(super) fn exhausted(
    limits: Limits,
    attempts: u32,
    first_attempt: Option<Instant>,
    now: Instant,
) -> Option<Exhausted> {
    if limits.max_attempts.is_some_and(|max| attempts >= max) {
        return Some(Exhausted::Attempts);
    }
    limits.aged_at(first_attempt).is_some_and(|at| at <= now).then_some(Exhausted::Age)
}

/// When the next attempt is due that would be due at `due`: not after the age limit if that is ahead, so that the last
/// attempt happens then and not a wait later.
pub(super) fn due_at(limits: Limits, first_attempt: Option<Instant>, now: Instant, due: Instant) -> Instant {
    limits.aged_at(first_attempt).filter(|at| *at > now).map_or(due, |at| due.min(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEC: Duration = Duration::from_secs(1);

    #[test]
    fn waits_double_up_to_the_maximum_and_are_spread_over_their_upper_half() {
        let rule = RetryRule { initial: Duration::from_secs(1), max: Duration::from_secs(180) };
        let mut rng = fastrand::Rng::with_seed(1);
        for (failures, full) in [(1, 1), (2, 2), (3, 4), (8, 128), (9, 180), (1000, 180), (u32::MAX, 180)] {
            let waits: Vec<f64> = (0..1000).map(|_| wait_after(rule, failures, &mut rng).as_secs_f64()).collect();
            let full = f64::from(full);
            assert!(waits.iter().all(|wait| (full * 0.5..=full).contains(wait)), "{failures}");
            assert!(waits.iter().any(|wait| *wait < full * 0.55) && waits.iter().any(|wait| *wait > full * 0.95));
        }
    }

    #[test]
    fn without_limits_nothing_is_given_up() {
        let now = Instant::now();
        assert_eq!(exhausted(Limits::default(), u32::MAX, Some(now), now + 1_000_000 * SEC), None);
        assert_eq!(due_at(Limits::default(), Some(now), now, now + 180 * SEC), now + 180 * SEC);
    }

    #[test]
    fn the_last_of_max_attempts_gives_up() {
        let (limits, now) = (Limits { max_attempts: Some(5), max_age: None }, Instant::now());
        assert_eq!(exhausted(limits, 4, Some(now), now), None);
        assert_eq!(exhausted(limits, 5, Some(now), now), Some(Exhausted::Attempts));
        assert_eq!(exhausted(limits, 6, Some(now), now), Some(Exhausted::Attempts), "the limit was lowered");
    }

    #[test]
    fn the_last_attempt_is_due_at_the_age_limit_and_its_failure_gives_up() {
        let (limits, first) = (Limits { max_attempts: None, max_age: Some(60 * SEC) }, Instant::now());
        let now = first + 50 * SEC;
        assert_eq!(exhausted(limits, 7, Some(first), now), None);
        assert_eq!(due_at(limits, Some(first), now, now + 5 * SEC), now + 5 * SEC);
        let last = due_at(limits, Some(first), now, now + 32 * SEC);
        assert_eq!(last, first + 60 * SEC);
        assert_eq!(exhausted(limits, 8, Some(first), last), Some(Exhausted::Age));
    }

    #[test]
    fn past_the_age_limit_an_attempt_that_failed_for_reasons_of_ours_waits_as_ever() {
        let (limits, first) = (Limits { max_attempts: None, max_age: Some(60 * SEC) }, Instant::now());
        let now = first + 60 * SEC;
        assert_eq!(due_at(limits, Some(first), now, now + 5 * SEC), now + 5 * SEC);
    }

    #[test]
    fn age_counts_from_the_first_attempt_and_no_age_is_too_great() {
        let (limits, now) = (Limits { max_attempts: None, max_age: Some(Duration::MAX) }, Instant::now());
        assert_eq!(exhausted(limits, 3, None, now), None);
        assert_eq!(exhausted(limits, 3, Some(now), now + SEC), None);
        assert_eq!(due_at(limits, Some(now), now, now + SEC), now + SEC);
    }
}

//! How long a failed delivery waits: a pure function of the rule, the number of failures and chance.

use std::time::Duration;

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

#[cfg(test)]
mod tests {
    use super::*;

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
}

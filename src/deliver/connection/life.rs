//! How long a connection may be used: pure, by `now`.
//!
//! Three things end it. Its age, so that a name that moves to another address is followed under steady traffic as well;
//! chance spreads the age, so that connections made together do not end together. What an HTTP/1.1 answer says in
//! `Keep-Alive`: after that many idle seconds the endpoint closes, and a request that crosses the closing is lost. And
//! answers that never came: a connection that has not answered since is not trusted.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, header};

/// A connection takes its last request within this age; with the slowest of them a name is followed within 60 s.
pub(in crate::deliver) const AGE: RangeInclusive<Duration> = Duration::from_secs(40)..=Duration::from_secs(50);
/// How long it may go on after that where no other can be had; with it too a name is followed within 60 s.
const LINGERS: Duration = Duration::from_secs(10);
/// How long before the endpoint's own limit an idle connection is left, if that is not most of it: a request takes so
/// long to get there.
const MARGIN: Duration = Duration::from_secs(1);

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// One connection's.
#[derive(Clone, Debug)]
pub(super) struct Life {
    ends: Instant,
    /// When it last answered, or was made.
    heard: Instant,
    /// The longest it may stand idle.
    idle_max: Duration,
    /// Requests that it may still carry, if the endpoint has said.
    left: Option<u32>,
}

impl Life {
    /// Made at `now`; `chance` from 0 to 1 chooses its age.
    pub(super) fn new(now: Instant, age: &RangeInclusive<Duration>, chance: f64) -> Self {
        let spread = age.end().saturating_sub(*age.start()).mul_f64(chance.clamp(0.0, 1.0));
        Self { ends: now + *age.start() + spread, heard: now, idle_max: Duration::MAX, left: None }
    }

    /// Whether it may take another request.
    pub(super) fn takes(&self, now: Instant) -> bool {
        now < self.ends && self.is_fit(now)
    }

    /// Whether it may take one where no other connection is to be had: only its age is against it, and not much.
    pub(super) fn lingers(&self, now: Instant) -> bool {
        now < self.ends + LINGERS && self.is_fit(now)
    }

    fn is_fit(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard) < self.idle_max && self.left != Some(0)
    }

    /// It has answered.
    pub(super) fn hear(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Whether it has answered nothing for so long.
    pub(super) fn is_idle(&self, now: Instant, length: Duration) -> bool {
        now.saturating_duration_since(self.heard) >= length
    }

    /// Whether it has answered since `moment`.
    pub(super) fn heard_since(&self, moment: Instant) -> bool {
        self.heard >= moment
    }

    /// The head of an HTTP/1.1 answer.
    pub(super) fn read(&mut self, headers: &HeaderMap) {
        // Two framings in one answer: whoever sent it, the next answer is not to be looked for behind it.
        if headers.contains_key(header::TRANSFER_ENCODING) && headers.contains_key(header::CONTENT_LENGTH) {
            self.left = Some(0);
            return;
        }
        self.left = self.left.map(|left| left.saturating_sub(1));
        for value in headers.get_all(KEEP_ALIVE) {
            let Ok(text) = value.to_str() else { continue };
            for (name, number) in text.split([',', ';']).filter_map(|parameter| parameter.split_once('=')) {
                let Some(number) = whole(number) else { continue };
                if name.trim().eq_ignore_ascii_case("timeout") {
                    let timeout = Duration::from_secs(number.into());
                    self.idle_max = timeout.saturating_sub(MARGIN.min(timeout / 2));
                } else if name.trim().eq_ignore_ascii_case("max") {
                    self.left = Some(self.left.map_or(number, |left| left.min(number)));
                }
            }
        }
    }
}

/// Decimal digits, perhaps quoted; what is too large for the type is the largest.
fn whole(text: &str) -> Option<u32> {
    let digits = text.trim().trim_matches('"');
    let good = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    good.then(|| digits.parse().unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(values: &[&str]) -> (Life, Instant) {
        let now = Instant::now();
        let mut life = Life::new(now, &AGE, 0.5);
        for value in values {
            life.read(&HeaderMap::from_iter([(KEEP_ALIVE, value.parse().unwrap())]));
        }
        (life, now)
    }

    /// The whole seconds of idleness after which it takes nothing.
    fn idle(values: &[&str]) -> u64 {
        let (life, now) = told(values);
        (0..).find(|secs| !life.takes(now + Duration::from_secs(*secs))).unwrap()
    }

    #[test]
    fn a_connection_is_left_a_second_before_the_endpoint_closes_it() {
        for (value, secs) in [
            ("timeout=5", 4),
            ("timeout=5, max=100", 4),
            ("max=100, Timeout = 5", 4),
            ("timeout=\"5\"", 4),
            ("timeout=2", 1),
            ("timeout=1", 1),
            ("timeout=0", 0),
            ("timeout=5;max=3", 4),
            // Only age ends these.
            ("timeout=99999999999999", 45),
            ("timeout=3600", 45),
            ("timeout=-1", 45),
            ("timeout=soon", 45),
            ("timeout", 45),
            ("timeout=", 45),
            ("timeout=1.5", 45),
            ("", 45),
            ("max=0", 0),
            ("timeout=5, max=0", 0),
        ] {
            assert_eq!(idle(&[value]), secs, "{value:?}");
        }
        assert_eq!(idle(&[]), 45);
        let (life, now) = told(&["timeout=1"]);
        assert!(life.takes(now + Duration::from_millis(499)) && !life.takes(now + Duration::from_millis(500)));
        assert_eq!(idle(&["timeout=5", "timeout=9"]), 8, "the last word counts");
        let (mut life, now) = told(&["timeout=5"]);
        life.hear(now + Duration::from_secs(3));
        assert!(life.takes(now + Duration::from_secs(6)), "idleness is counted from the last answer");
        assert!(!life.takes(now + Duration::from_secs(7)));
    }

    #[test]
    fn requests_are_counted_down_from_what_the_endpoint_says_whether_it_counts_itself_or_not() {
        for values in [&["max=3", "max=3", "max=3", "max=3"][..], &["max=3", "max=2", "max=1", "max=0"]] {
            for said in 1..values.len() {
                let (life, now) = told(&values[..said]);
                assert!(life.takes(now), "{values:?} after {said}");
            }
            assert!(!told(values).0.takes(Instant::now()), "{values:?}");
        }
    }

    #[test]
    fn ages_are_spread_and_never_reach_a_minute() {
        let now = Instant::now();
        for (chance, secs) in [(0.0, 40), (0.5, 45), (1.0, 50)] {
            let life = Life::new(now, &AGE, chance);
            assert!(life.takes(now + Duration::from_millis(secs * 1000 - 1)), "{chance}");
            assert!(!life.takes(now + Duration::from_secs(secs)), "{chance}");
            assert!(life.lingers(now + Duration::from_secs(secs + 9)), "{chance}");
            assert!(!life.lingers(now + Duration::from_secs(secs + 10)), "{chance}");
        }
    }

    #[test]
    fn two_framings_in_one_answer_are_the_connections_last() {
        let (mut life, now) = told(&[]);
        assert!(life.lingers(now));
        let both = [(header::TRANSFER_ENCODING, "chunked"), (header::CONTENT_LENGTH, "5")];
        life.read(&both.into_iter().map(|(name, value)| (name, value.parse().unwrap())).collect());
        assert!(!life.takes(now) && !life.lingers(now));
    }
}

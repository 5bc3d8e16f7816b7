//! When the reader waits a moment for more: pure, by `now`.
//!
//! A walsender sends every change by itself, and each time it finds the reader asleep it pays for the waking, as the
//! reader pays for a read of a few rows. In a flood both have better things to do: after so many bytes without a break
//! the reader stays away until the timer's next tick, while the socket gathers what comes. A stream that trickles is
//! read at once.

use std::time::{Duration, Instant};

/// After so many bytes without a break a moment is waited. Less would cost more ticks than it saves reads.
const FLOOD: usize = 100_000;
/// A break: nothing came for so long.
const BREAK: Duration = Duration::from_millis(1);
/// How long is waited: the runtime's timer makes it its next tick, which is a millisecond away at most. That is longer
/// than the socket's buffer takes to fill only at rates that no walsender reaches.
pub(super) const MOMENT: Duration = Duration::from_micros(1);

/// How much has come since the last break or wait.
#[derive(Debug)]
pub(super) struct Pace {
    last: Instant,
    bytes: usize,
    /// The last read has left something behind it.
    is_behind: bool,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { last: now, bytes: 0, is_behind: false }
    }

    /// A read gave so many bytes at `now`; whether it filled its buffer.
    pub(super) fn took(&mut self, now: Instant, bytes: usize, filled: bool) {
        if now.saturating_duration_since(self.last) >= BREAK {
            self.bytes = 0;
        }
        self.last = now;
        self.is_behind = filled;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Whether the next read should wait for more.
    pub(super) fn is_flood(&self) -> bool {
        self.bytes >= FLOOD && !self.is_behind
    }

    /// It has waited.
    pub(super) fn waited(&mut self) {
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: usize = 10_000;

    /// After how many reads of [`READ`] bytes, so far apart, it wants a moment; `None` within a thousand.
    fn reads_before_a_wait(apart: Duration) -> Option<usize> {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        (1..1000).find(|_| {
            now += apart;
            pace.took(now, READ, false);
            pace.is_flood()
        })
    }

    #[test]
    fn a_flood_waits_and_a_trickle_does_not() {
        assert_eq!(reads_before_a_wait(Duration::from_micros(80)), Some(10));
        assert_eq!(reads_before_a_wait(BREAK - Duration::from_nanos(1)), Some(10));
        assert_eq!(reads_before_a_wait(BREAK), None);
    }

    #[test]
    fn one_wait_is_for_so_many_bytes() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.took(now, FLOOD - 1, false);
        assert!(!pace.is_flood());
        pace.took(now, 1, false);
        assert!(pace.is_flood());
        pace.waited();
        assert!(!pace.is_flood());
        pace.took(now, usize::MAX, false);
        pace.took(now, usize::MAX, true);
        assert!(!pace.is_flood(), "what waits already is read at once");
        pace.took(now, 1, false);
        assert!(pace.is_flood());
    }
}

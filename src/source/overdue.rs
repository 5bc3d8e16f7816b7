//! When a source counts as overdue: pure.
//!
//! A source that is not read for a moment, because its sinks have enough, is ordinary. One that is mostly not read and does
//! not come nearer to the end of the server's log makes the slot keep more and more: its saturated sinks should take in
//! what they cannot deliver soon, and overflow to the store. They do until the source has caught up.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::change::Lsn;

/// How far back it looks.
const WINDOW: Duration = Duration::from_secs(5);
/// A window with less than this between its first and last look says nothing.
const WINDOW_LEAST: Duration = Duration::from_secs(4);
/// Within this distance a source has caught up.
const NEAR_BYTES: u64 = 1 << 20;
/// Looks that are kept at most; with more of them the window is shorter.
const LOOKS_MAX: usize = 128;

/// A source at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// When.
    pub(super) at: Instant,
    /// It was not read, because every sink has enough.
    pub(super) is_sated: bool,
    /// End of the server's log, as last heard.
    pub(super) server: Lsn,
    /// Everything up to here has been read.
    pub(super) received: Lsn,
    /// Where the last change that was read stands: in a transaction that was open for long, before `received`.
    pub(super) last_read: Lsn,
}

impl Look {
    /// How far what was read is from the server's end.
    fn distance(&self) -> u64 {
        self.server.bytes_since(self.received.max(self.last_read))
    }

    /// The same, from the last change: what an old transaction is read by.
    fn distance_of_change(&self) -> u64 {
        self.server.bytes_since(self.last_read)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Overdue {
    looks: VecDeque<Look>,
    is_overdue: bool,
}

impl Overdue {
    /// Takes a look; whether the source is overdue from here on.
    pub(super) fn observe(&mut self, look: Look) -> bool {
        while self.looks.front().is_some_and(|first| look.at.duration_since(first.at) >= WINDOW)
            || self.looks.len() >= LOOKS_MAX
        {
            self.looks.pop_front();
        }
        self.looks.push_back(look);
        if look.distance() <= NEAR_BYTES {
            self.is_overdue = false;
        } else if !self.is_overdue {
            self.is_overdue = self.falls_behind(look);
        }
        self.is_overdue
    }

    fn falls_behind(&self, last: Look) -> bool {
        let Some(first) = self.looks.front() else { return false };
        let sated = self.looks.iter().filter(|look| look.is_sated).count();
        let comes_nearer = last.distance() < first.distance() || last.distance_of_change() < first.distance_of_change();
        last.at.duration_since(first.at) >= WINDOW_LEAST && sated * 2 > self.looks.len() && !comes_nearer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A source that is looked at every 100 ms.
    struct Play {
        overdue: Overdue,
        start: Instant,
        tenths: u64,
        server: u64,
        received: u64,
        last_read: u64,
    }

    impl Play {
        fn at(server: u64, read: u64) -> Self {
            let (overdue, start) = (Overdue::default(), Instant::now());
            Self { overdue, start, tenths: 0, server, received: read, last_read: read }
        }

        /// For so many tenths of a second; whether it is overdue in the end.
        fn go(&mut self, tenths: u64, sated: impl Fn(u64) -> bool, mut step: impl FnMut(&mut Self)) -> bool {
            let mut is_overdue = false;
            for _ in 0..tenths {
                self.tenths += 1;
                step(self);
                let look = Look {
                    at: self.start + Duration::from_millis(100 * self.tenths),
                    is_sated: sated(self.tenths),
                    server: Lsn(self.server),
                    received: Lsn(self.received),
                    last_read: Lsn(self.last_read),
                };
                is_overdue = self.overdue.observe(look);
            }
            is_overdue
        }

        fn read(&mut self, bytes: u64) {
            self.received += bytes;
            self.last_read = self.received;
        }
    }

    #[test]
    fn a_source_that_stands_still_before_much_is_overdue_after_some_seconds_until_it_has_caught_up() {
        let mut play = Play::at(100 * MIB, 10 * MIB);
        assert!(!play.go(40, |_| true, |_| {}), "too early to tell");
        assert!(play.go(10, |_| true, |_| {}));
        assert!(play.go(88, |_| false, |play| play.read(MIB)), "not there yet, though it is read");
        assert!(!play.go(1, |_| false, |play| play.read(MIB)));
        assert!(!play.go(100, |_| true, |_| {}), "within a MiB nothing is overdue");
    }

    #[test]
    fn a_source_that_comes_nearer_or_is_mostly_read_is_not() {
        let mut slow = Play::at(1000 * MIB, 0);
        assert!(!slow.go(200, |tenth| tenth % 10 != 0, |play| play.read(MIB / 2)), "it comes nearer");
        let mut busy = Play::at(1000 * MIB, 0);
        let writes = |play: &mut Play| {
            play.server += 2 * MIB;
            play.read(MIB);
        };
        assert!(!busy.go(200, |tenth| tenth % 3 == 0, writes), "the sinks are not what keeps it");
        assert!(busy.go(60, |tenth| tenth % 3 != 0, writes), "here they are");
    }

    #[test]
    fn a_large_transaction_that_is_read_quickly_is_not_overdue() {
        // It began before much that has been read, and is nothing but itself: `received` stands still.
        let mut play = Play::at(1000 * MIB, 500 * MIB);
        play.last_read = MIB;
        assert!(!play.go(200, |tenth| tenth % 10 != 0, |play| play.last_read += MIB));
        assert!(play.go(60, |_| true, |_| {}), "and here it stands still");
    }
}

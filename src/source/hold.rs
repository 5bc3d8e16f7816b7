//! When a source counts as held: pure.
//!
//! Not reading for a moment is ordinary back-pressure: the sinks have enough, or memory is full, and an acknowledgement
//! later it goes on. Held is a source that has not read for a while in which no sink acknowledged anything: changes stand
//! still, and people are told.

use std::time::{Duration, Instant};

/// Without reading and without an acknowledgement for so long, a source is held.
pub(super) const HELD_AFTER: Duration = Duration::from_secs(3);

/// What an observation changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing.
    None,
    /// The source is held from now on.
    Began,
    /// It is no longer, after so long.
    Ended(Duration),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Hold {
    acknowledged: u64,
    moved_at: Instant,
    began_at: Option<Instant>,
}

impl Hold {
    /// A source that moves.
    pub(super) fn new(now: Instant) -> Self {
        Self { acknowledged: 0, moved_at: now, began_at: None }
    }

    /// Looks at the source: whether it reads, and how many messages its sinks have acknowledged so far.
    pub(super) fn observe(&mut self, now: Instant, reads: bool, acknowledged: u64) -> Turn {
        if reads || acknowledged != self.acknowledged {
            self.acknowledged = acknowledged;
            self.moved_at = now;
            return self.began_at.take().map_or(Turn::None, |began| Turn::Ended(now - began));
        }
        if self.began_at.is_some() || now.duration_since(self.moved_at) < HELD_AFTER {
            return Turn::None;
        }
        self.began_at = Some(now);
        Turn::Began
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_held_when_it_neither_reads_nor_is_anything_acknowledged() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut hold = Hold::new(start);
        assert_eq!(hold.observe(at(2), false, 0), Turn::None);
        assert_eq!(hold.observe(at(4), false, 7), Turn::None, "something was acknowledged");
        assert_eq!(hold.observe(at(6), false, 7), Turn::None);
        assert_eq!(hold.observe(at(7), false, 7), Turn::Began);
        assert_eq!(hold.observe(at(8), false, 7), Turn::None, "told once");
        assert_eq!(hold.observe(at(9), true, 7), Turn::Ended(Duration::from_secs(2)));
        assert_eq!(hold.observe(at(10), false, 7), Turn::None);
    }
}

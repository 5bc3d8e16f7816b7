//! What a restarted sink makes of changes that the server sends again: pure.

use std::collections::VecDeque;

use crate::change::Position;

/// What to do with a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It was resolved before the restart.
    Skip,
    /// It arrived before the restart and was not resolved.
    Again,
    /// It is new.
    New,
}

/// Where a sink stood when its process ended. Changes are shown to it in the order of positions.
#[derive(Debug)]
pub struct Resume {
    high: Position,
    unresolved: VecDeque<Position>,
}

impl Resume {
    /// Everything up to `high` is resolved but `unresolved` (ascending).
    pub fn new(high: Position, unresolved: Vec<Position>) -> Self {
        Self { high, unresolved: unresolved.into() }
    }

    /// Whether the change at `position` is new, comes again, or is done.
    pub fn admit(&mut self, position: Position) -> Admission {
        if position > self.high {
            self.unresolved.clear();
            return Admission::New;
        }
        // Those before will not come: their table left the publication, or the slot begins later.
        while self.unresolved.front().is_some_and(|first| *first < position) {
            self.unresolved.pop_front();
        }
        if self.unresolved.front() == Some(&position) {
            self.unresolved.pop_front();
            return Admission::Again;
        }
        Admission::Skip
    }

    /// Everything up to here has been read: what has not come by now does not come.
    pub fn passed(&mut self, commit_lsn_below: crate::change::Lsn) {
        while self.unresolved.front().is_some_and(|first| first.commit_lsn < commit_lsn_below) {
            self.unresolved.pop_front();
        }
    }

    /// Whether unresolved changes are still to come again. Until then nothing that waits in the store may go: an older
    /// message of its group may be among them.
    pub fn is_replaying(&self) -> bool {
        !self.unresolved.is_empty()
    }

    /// The newest position that was resolved.
    pub fn high(&self) -> Position {
        self.high
    }

    /// The unresolved positions that have not come again.
    pub fn unresolved(&self) -> impl Iterator<Item = Position> {
        self.unresolved.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Lsn;

    fn at(lsn: u64, index: u64) -> Position {
        Position { commit_lsn: Lsn(lsn), index }
    }

    #[test]
    fn in_the_middle_of_a_transaction_only_what_was_open_comes_again() {
        let mut resume = Resume::new(at(20, 3), vec![at(10, 2), at(20, 1)]);
        let shown = [at(10, 1), at(10, 2), at(10, 3), at(20, 1), at(20, 2), at(20, 3)];
        let told: Vec<Admission> = shown.into_iter().map(|position| resume.admit(position)).collect();
        use Admission::{Again, Skip};
        assert_eq!(told, [Skip, Again, Skip, Again, Skip, Skip]);
        assert!(!resume.is_replaying());
        assert_eq!(resume.admit(at(20, 4)), Admission::New);
    }

    #[test]
    fn what_never_comes_again_does_not_hold_the_rest_for_ever() {
        let mut resume = Resume::new(at(20, 3), vec![at(10, 2), at(20, 1)]);
        resume.passed(Lsn(11));
        assert_eq!(resume.unresolved().collect::<Vec<_>>(), [at(20, 1)]);
        assert_eq!(resume.admit(at(30, 1)), Admission::New);
        assert!(!resume.is_replaying());
    }
}

//! Pure: in which portions many tables are added to a publication or taken out, so that one table holds up only itself.
//!
//! ALTER PUBLICATION locks every table it names, and fails as a whole: for a table that somebody else has locked, that has gone
//! meanwhile or that an event trigger refuses, and for more locks than the server has room for. So a portion that fails is cut
//! until the table at fault stands alone, and one that is too much is cut for the whole turn. What is known or suspected to be
//! at fault is tried last. A turn is bounded: by its failures, by what it waits for locks, and by its end.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::change::TableName;

/// Tables in a statement at first, and at most: the locks of as many leave others some room in the smallest lock table.
const PORTION_MAX: usize = 256;
/// Statements of one turn that may fail.
const FAILURES_MAX: usize = 48;
/// How long a portion waits for a lock.
const WAIT_TOGETHER: Duration = Duration::from_millis(250);
/// How long a table alone does, where it is not known when an autovacuum makes way.
const WAIT_ALONE: Duration = Duration::from_millis(1500);

/// What one turn may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// No statement begins after so long.
    pub(crate) total: Duration,
    /// For all waits for locks together.
    pub(crate) waits: Duration,
    /// For the lock of a table that stands alone.
    pub(crate) alone: Duration,
}

impl Budget {
    /// Before a stream: what is published only later is not captured until then.
    pub(crate) const BEFORE_STREAM: Self =
        Self { total: Duration::from_secs(60), waits: Duration::from_secs(5), alone: WAIT_ALONE };
    /// Beside one: heartbeats wait for it.
    pub(crate) const BESIDE_STREAM: Self =
        Self { total: Duration::from_secs(4), waits: Duration::from_secs(3), alone: WAIT_ALONE };

    /// With time for one such wait at least.
    pub(crate) fn with_wait(self, alone: Duration) -> Self {
        Self { alone, waits: self.waits.max(alone), total: self.total.max(alone) }
    }
}

/// What is remembered of a publication from turn to turn.
#[derive(Debug, Clone)]
pub struct Learnt {
    /// The largest portion that the server has room for.
    portion_max: usize,
    /// Tables that failed alone; the next turn tries them last, each alone.
    suspects: HashSet<TableName>,
    /// Turns so far: each begins with another suspect.
    turns: usize,
    /// Tables that a start could not take out of the publication, which later turns try again.
    leftover: HashSet<TableName>,
    /// Tables of the plan that were not published after the last turn.
    waiting: HashSet<TableName>,
}

impl Default for Learnt {
    fn default() -> Self {
        Self {
            portion_max: PORTION_MAX,
            suspects: HashSet::new(),
            turns: 0,
            leftover: HashSet::new(),
            waiting: HashSet::new(),
        }
    }
}

impl Learnt {
    /// Whether a start should have taken the table out.
    pub(crate) fn is_leftover(&self, table: &TableName) -> bool {
        self.leftover.contains(table)
    }

    /// What is left to be taken out.
    pub(crate) fn leave_over(&mut self, tables: HashSet<TableName>) {
        self.leftover = tables;
    }

    /// Whether the table was to be published before, and could not be.
    pub(crate) fn has_waited(&self, table: &TableName) -> bool {
        self.waiting.contains(table)
    }

    /// What waits from now on.
    pub(crate) fn let_wait(&mut self, tables: HashSet<TableName>) {
        self.waiting = tables;
    }
}

/// Why a portion failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Somebody holds a lock on these of its tables; on none that is known, if empty.
    Locked(HashSet<TableName>),
    /// The server has no room for so many locks.
    Memory,
    /// Something about one of its tables.
    Refused,
}

/// A statement to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Portion {
    pub(crate) tables: Vec<TableName>,
    /// Its `lock_timeout`.
    pub(crate) wait: Duration,
}

/// One turn.
#[derive(Debug)]
pub(crate) struct Portions<'a> {
    learnt: &'a mut Learnt,
    /// Not tried yet.
    fresh: VecDeque<TableName>,
    /// Parts of portions that failed.
    parts: Vec<Vec<TableName>>,
    /// To be tried alone, at the end.
    alone: VecDeque<TableName>,
    size: usize,
    failures: usize,
    waits: Duration,
    alone_wait: Duration,
    until: Instant,
    is_full: bool,
}

impl<'a> Portions<'a> {
    /// `locked`: tables on which others hold or want a lock that a statement would wait for.
    pub(crate) fn new(
        tables: Vec<TableName>,
        locked: &HashSet<TableName>,
        learnt: &'a mut Learnt,
        budget: Budget,
        now: Instant,
    ) -> Self {
        let is_late = |table: &TableName| locked.contains(table) || learnt.suspects.contains(table);
        let (mut alone, fresh): (VecDeque<_>, VecDeque<_>) = tables.into_iter().partition(is_late);
        if !alone.is_empty() {
            // Each of them comes first at some turn, however few a turn has time for.
            let first = learnt.turns % alone.len();
            alone.rotate_left(first);
        }
        learnt.turns = learnt.turns.wrapping_add(1);
        let size = learnt.portion_max;
        let (waits, alone_wait, until) = (budget.waits, budget.alone, now + budget.total);
        Self { learnt, fresh, parts: Vec::new(), alone, size, failures: 0, waits, alone_wait, until, is_full: false }
    }

    /// The next statement, until all is tried or the turn is over.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Portion> {
        if now >= self.until || self.is_full || self.failures >= FAILURES_MAX || self.waits.is_zero() {
            return None;
        }
        let tables = match self.parts.pop() {
            Some(part) => part,
            None if !self.fresh.is_empty() => self.fresh.drain(..self.size.min(self.fresh.len())).collect(),
            None => vec![self.alone.pop_front()?],
        };
        let wait = if tables.len() == 1 { self.alone_wait } else { WAIT_TOGETHER };
        Some(Portion { tables, wait: wait.min(self.waits) })
    }

    /// A statement succeeded.
    pub(crate) fn done(&mut self, portion: &Portion) {
        for table in &portion.tables {
            self.learnt.suspects.remove(table);
        }
    }

    /// A statement failed. The table that is at fault, if it was alone.
    pub(crate) fn failed(&mut self, portion: Portion, failure: Failure) -> Option<TableName> {
        self.failures = self.failures.saturating_add(1);
        let Portion { mut tables, wait } = portion;
        match failure {
            Failure::Memory => {
                self.is_full = tables.len() == 1;
                self.size = self.size.min((tables.len() / 2).max(1));
                self.learnt.portion_max = self.size;
                // What was to come is cut too.
                for table in tables.into_iter().rev() {
                    self.fresh.push_front(table);
                }
                return None;
            }
            Failure::Locked(by_whom) => {
                self.waits = self.waits.saturating_sub(wait);
                if tables.len() > 1 && !by_whom.is_empty() {
                    let (locked, free): (Vec<_>, Vec<_>) = tables.into_iter().partition(|it| by_whom.contains(it));
                    self.alone.extend(locked);
                    self.parts.extend((!free.is_empty()).then_some(free));
                    return None;
                }
            }
            Failure::Refused => {}
        }
        if tables.len() > 1 {
            let second = tables.split_off(tables.len() / 2);
            self.parts.extend([second, tables]);
            return None;
        }
        let table = tables.pop()?;
        self.learnt.suspects.insert(table.clone());
        Some(table)
    }

    /// What was not tried, and whether the server's want of room is why.
    pub(crate) fn rest(self) -> (Vec<TableName>, bool) {
        let parts = self.parts.into_iter().flatten();
        (self.fresh.into_iter().chain(parts).chain(self.alone).collect(), self.is_full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<TableName> {
        (0..count).map(name).collect()
    }

    fn name(number: usize) -> TableName {
        TableName { schema: "public".to_owned(), table: format!("t{number}") }
    }

    /// A server on which some statements fail.
    struct Play {
        now: Instant,
        locked: HashSet<TableName>,
        /// Whether pg_locks tells of them.
        tells: bool,
        refused: HashSet<TableName>,
        locks_max: usize,
        done: Vec<TableName>,
        failed: Vec<TableName>,
        statements: usize,
        waited: Duration,
    }

    impl Play {
        fn new() -> Self {
            Self {
                now: Instant::now(),
                locked: HashSet::new(),
                tells: true,
                refused: HashSet::new(),
                locks_max: usize::MAX,
                done: Vec::new(),
                failed: Vec::new(),
                statements: 0,
                waited: Duration::ZERO,
            }
        }

        /// A turn; what is left.
        fn turn(&mut self, tables: Vec<TableName>, learnt: &mut Learnt, budget: Budget) -> (Vec<TableName>, bool) {
            let known = if self.tells { self.locked.clone() } else { HashSet::new() };
            let mut portions = Portions::new(tables, &known, learnt, budget, self.now);
            while let Some(portion) = portions.next(self.now) {
                self.statements += 1;
                let among = |set: &HashSet<TableName>| -> HashSet<TableName> {
                    portion.tables.iter().filter(|table| set.contains(table)).cloned().collect()
                };
                let locked = among(&self.locked);
                let failure = if portion.tables.len() > self.locks_max {
                    Failure::Memory
                } else if !locked.is_empty() {
                    self.now += portion.wait;
                    self.waited += portion.wait;
                    Failure::Locked(if self.tells { locked } else { HashSet::new() })
                } else if !among(&self.refused).is_empty() {
                    Failure::Refused
                } else {
                    self.done.extend(portion.tables.clone());
                    portions.done(&portion);
                    continue;
                };
                self.failed.extend(portions.failed(portion, failure));
            }
            portions.rest()
        }
    }

    #[test]
    fn thousands_are_done_in_portions() {
        let mut play = Play::new();
        let rest = play.turn(names(6000), &mut Learnt::default(), Budget::BESIDE_STREAM);
        assert_eq!((rest, play.done.len(), play.statements), ((Vec::new(), false), 6000, 24));
    }

    #[test]
    fn a_table_that_fails_stands_alone_and_is_tried_last_at_the_next_turn() {
        let mut learnt = Learnt::default();
        let mut play = Play::new();
        play.refused = HashSet::from([name(17)]);
        let rest = play.turn(names(100), &mut learnt, Budget::BESIDE_STREAM);
        assert_eq!((rest.0.len(), play.done.len(), play.failed.as_slice()), (0, 99, [name(17)].as_slice()));
        assert!(learnt.suspects == HashSet::from([name(17)]));
        let mut next = Play { refused: play.refused, ..Play::new() };
        next.turn(vec![name(17), name(200), name(201)], &mut learnt, Budget::BESIDE_STREAM);
        assert_eq!((next.done.len(), next.statements), (2, 2));
        // Mended, it is no suspect any more.
        Play::new().turn(vec![name(17)], &mut learnt, Budget::BESIDE_STREAM);
        assert!(learnt.suspects.is_empty());
    }

    #[test]
    fn where_all_fail_a_turn_ends_and_the_next_ones_come_to_the_others() {
        let mut learnt = Learnt::default();
        let mut play = Play::new();
        play.refused = names(300).into_iter().collect();
        let rest = play.turn(names(300), &mut learnt, Budget::BESIDE_STREAM);
        assert_eq!((play.statements, play.done.len(), rest.0.len() + play.failed.len()), (FAILURES_MAX, 0, 300));
        let mut firsts = HashSet::new();
        for _ in 0..20 {
            let mut next = Play { refused: names(300).into_iter().collect(), ..Play::new() };
            next.turn(play.failed.clone(), &mut learnt, Budget::BESIDE_STREAM);
            firsts.extend(next.failed.first().cloned());
        }
        assert!(firsts.len() > 10, "{firsts:?}");
    }

    #[test]
    fn pitfall_59_many_locked_tables_cost_a_bounded_time_and_the_others_none() {
        for tells in [true, false] {
            let mut play = Play { tells, ..Play::new() };
            play.locked = names(900).into_iter().collect();
            let rest = play.turn(names(1000), &mut Learnt::default(), Budget::BESIDE_STREAM);
            assert!(play.waited <= Budget::BESIDE_STREAM.waits, "{:?}", play.waited);
            assert_eq!(rest.0.len() + play.failed.len() + play.done.len(), 1000);
            assert!(!tells || play.done.len() == 100, "{}", play.done.len());
        }
    }

    #[test]
    fn pitfall_59_a_server_without_room_gets_smaller_portions_and_the_size_is_kept() {
        let mut learnt = Learnt::default();
        let mut play = Play { locks_max: 20, ..Play::new() };
        let rest = play.turn(names(1000), &mut learnt, Budget::BESIDE_STREAM);
        assert_eq!((rest, play.done.len()), ((Vec::new(), false), 1000));
        // Sixteen at a time, from the first statement on.
        let mut next = Play { locks_max: 20, ..Play::new() };
        next.turn(names(160), &mut learnt, Budget::BESIDE_STREAM);
        assert_eq!((next.done.len(), next.statements), (160, 10));
        // One at a time where it must be; where even that is too much, the turn is over.
        let mut one = Play { locks_max: 1, ..Play::new() };
        assert_eq!(one.turn(names(10), &mut Learnt::default(), Budget::BESIDE_STREAM).0.len(), 0);
        let mut none = Play { locks_max: 0, ..Play::new() };
        let (rest, is_full) = none.turn(names(10), &mut Learnt::default(), Budget::BESIDE_STREAM);
        assert_eq!((rest.len(), is_full), (10, true));
    }

    #[test]
    fn a_table_alone_is_waited_for_as_long_as_an_autovacuum_takes_to_make_way() {
        let long = Duration::from_millis(5500);
        for (wait, expected) in [(WAIT_ALONE, WAIT_ALONE), (long, long)] {
            let budget = Budget::BESIDE_STREAM.with_wait(wait);
            let mut learnt = Learnt::default();
            let mut portions = Portions::new(names(1), &HashSet::new(), &mut learnt, budget, Instant::now());
            assert_eq!(portions.next(Instant::now()).unwrap().wait, expected);
        }
    }

    #[test]
    fn a_turn_ends_in_time() {
        let mut learnt = Learnt::default();
        let start = Instant::now();
        let mut portions = Portions::new(names(600), &HashSet::new(), &mut learnt, Budget::BESIDE_STREAM, start);
        let first = portions.next(start).unwrap();
        assert_eq!(first.tables.len(), PORTION_MAX);
        portions.done(&first);
        assert_eq!(portions.next(start + Budget::BESIDE_STREAM.total), None);
        assert_eq!(portions.rest().0.len(), 600 - PORTION_MAX);
    }
}

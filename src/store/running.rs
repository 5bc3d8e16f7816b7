//! The clock that retention goes by: it runs while walhook does.
//!
//! The wall clock may jump, and what is kept for a week must not be gone because somebody has set it. So this one began as the wall
//! clock when the store was made, goes on with the time that the machine counts, and from one life to the next goes on where
//! it was: what a store is kept for while nobody runs is not counted.

use std::time::{Duration, Instant, SystemTime};

use rusqlite::{Connection, OptionalExtension as _};

use super::ledger::micros;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunningClock {
    base_micros: i64,
    /// What the wall clock said when this life began.
    wall_micros: i64,
    since: Instant,
}

impl RunningClock {
    /// Goes on where the life before has left it; the first begins at `wall`.
    pub(super) fn resume(db: &Connection, wall: SystemTime, now: Instant) -> rusqlite::Result<Self> {
        let before: Option<i64> = db.query_row("SELECT micros FROM running", [], |row| row.get(0)).optional()?;
        let wall_micros = micros(wall);
        let clock = Self { base_micros: before.unwrap_or(wall_micros), wall_micros, since: now };
        if before.is_none() {
            db.execute("INSERT INTO running (micros) VALUES (?1)", [clock.base_micros])?;
        }
        Ok(clock)
    }

    /// What it says, microseconds.
    pub(super) fn at(&self, now: Instant) -> i64 {
        let ran = now.saturating_duration_since(self.since).as_micros();
        self.base_micros.saturating_add(i64::try_from(ran).unwrap_or(i64::MAX))
    }

    /// What the wall clock would say if it had not jumped in this life.
    pub(super) fn wall_at(&self, now: Instant) -> i64 {
        self.at(now).saturating_sub(self.base_micros).saturating_add(self.wall_micros)
    }

    /// The next life goes on from here.
    pub(super) fn keep(&self, db: &Connection, now: Instant) -> rusqlite::Result<()> {
        db.prepare_cached("UPDATE running SET micros = ?1 WHERE micros < ?1")?.execute([self.at(now)]).map(drop)
    }

    /// What is kept for so long from now on goes then.
    pub(super) fn after(&self, now: Instant, retention: Duration) -> i64 {
        self.at(now).saturating_add(i64::try_from(retention.as_micros()).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::store::schema::{STATE, migrate};

    #[test]
    fn it_begins_at_the_wall_clock_and_then_runs_by_itself_over_all_lives() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, Path::new("state.db"), &STATE).unwrap();
        let (wall, now) = (SystemTime::UNIX_EPOCH + Duration::from_secs(1000), Instant::now());
        let second = Duration::from_secs(1);
        let clock = RunningClock::resume(&db, wall, now).unwrap();
        assert_eq!((clock.at(now), clock.at(now + 5 * second)), (1_000_000_000, 1_005_000_000));
        assert_eq!(clock.after(now + second, 9 * second), 1_010_000_000);
        clock.keep(&db, now + 5 * second).unwrap();
        clock.keep(&db, now + 4 * second).unwrap();
        for days in [8, 0] {
            let jumped = wall + days * 86_400 * second;
            let again = RunningClock::resume(&db, jumped, now + 60 * second).unwrap();
            assert_eq!(again.at(now + 61 * second), 1_006_000_000, "a jump of {days} days, and a minute off");
            assert_eq!(again.wall_at(now + 61 * second), micros(jumped + second));
        }
    }
}

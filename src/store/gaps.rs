//! Gaps: changes of a source that were never read, because its slot was lost.

use rusqlite::{Connection, OptionalExtension as _, Row, TransactionBehavior, named_params};

use super::apply::lsn_of;
use super::error::StoreError;
use super::loading::AcceptedBy;
use super::seals;
use crate::change::Lsn;

/// Gaps of a source that are kept, the newest.
const KEPT_MAX: u32 = 100;

/// Changes that were never read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Everything before was read; `None`: nobody knows.
    pub from: Option<Lsn>,
    /// Everything from here on is read.
    pub to: Lsn,
    /// When the new slot was found or made, microseconds since 1970.
    pub at_micros: i64,
    /// Why the slot was lost: `wal_removed`, `idle_timeout`, `dropped`, …, or `accepted` by a person.
    pub why: String,
}

impl Gap {
    /// WAL between its ends, of all databases of the server.
    pub fn bytes(&self) -> u64 {
        self.from.map_or(0, |from| self.to.bytes_since(from))
    }
}

/// A server whose end lay before what was read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WentBack {
    /// All that was read lies before this.
    pub seen: Lsn,
    /// The server's end when that was found.
    pub end: Lsn,
}

/// See [`super::Store::accept_gap`].
pub(super) fn accept(db: &Connection, source: &str, by: Option<AcceptedBy>) -> Result<(), StoreError> {
    let failed = StoreError::write("whether a gap is accepted");
    let transaction = db.unchecked_transaction().map_err(&failed)?;
    let code = AcceptedBy::code(by);
    transaction.execute("UPDATE source SET gap_accepted = ?2 WHERE name = ?1", (source, code)).map_err(&failed)?;
    seals::seal_source(&transaction, source).map_err(&failed)?;
    if by == Some(AcceptedBy::Person) {
        transaction.execute("DELETE FROM source_went_back WHERE source = ?1", [source]).map_err(&failed)?;
    }
    transaction.commit().map_err(failed)
}

/// See [`super::Store::note_went_back`].
pub(super) fn note_went_back(db: &Connection, source: &str, went_back: WentBack) -> Result<(), StoreError> {
    let (seen, end) = (went_back.seen.0.cast_signed(), went_back.end.0.cast_signed());
    let note = "INSERT INTO source_went_back (source, seen, end_lsn) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
    db.execute(note, (source, seen, end)).map(drop).map_err(StoreError::write("that a server went back"))
}

/// What is noted of that, and no person has answered; a store of an older version has no place for it.
pub(super) fn went_back(db: &Connection, source: &str) -> rusqlite::Result<Option<WentBack>> {
    let place = "SELECT count(*) FROM sqlite_schema WHERE name = 'source_went_back'";
    if db.query_row(place, [], |row| row.get::<_, i64>(0))? == 0 {
        return Ok(None);
    }
    let noted = "SELECT seen, end_lsn FROM source_went_back WHERE source = ?1";
    let of_row = |row: &Row<'_>| Ok(WentBack { seen: lsn_of(row.get(0)?), end: lsn_of(row.get(1)?) });
    db.query_row(noted, [source], of_row).optional()
}

/// See [`super::Store::note_gap`].
pub(super) fn note(db: &mut Connection, source: &str, gap: &Gap) -> Result<(), StoreError> {
    note_in_transaction(db, source, gap).map_err(StoreError::write("a gap of a source"))
}

fn note_in_transaction(db: &mut Connection, source: &str, gap: &Gap) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // After a crash the same gap is noted again, and then begins where the store is.
    transaction.execute(
        "INSERT INTO source_gap (source, from_lsn, to_lsn, at, why) VALUES (:source, :from, :to, :at, :why)
         ON CONFLICT (source, to_lsn) DO UPDATE SET from_lsn = min(from_lsn, :from)",
        named_params! {
            ":source": source,
            ":from": gap.from.map(|from| from.0.cast_signed()),
            ":to": gap.to.0.cast_signed(),
            ":at": gap.at_micros,
            ":why": gap.why,
        },
    )?;
    transaction.execute(
        "DELETE FROM source_gap WHERE source = ?1 AND to_lsn NOT IN
             (SELECT to_lsn FROM source_gap WHERE source = ?1 ORDER BY at DESC, to_lsn DESC LIMIT ?2)",
        (source, KEPT_MAX),
    )?;
    transaction.commit()
}

/// The gaps of a source, the newest first.
pub(super) fn read(db: &Connection, source: &str) -> Result<Vec<Gap>, StoreError> {
    let gap = |row: &Row<'_>| {
        let from = row.get::<_, Option<i64>>(0)?.map(lsn_of);
        Ok(Gap { from, to: lsn_of(row.get(1)?), at_micros: row.get(2)?, why: row.get(3)? })
    };
    let select = || -> rusqlite::Result<Vec<Gap>> {
        let order = "SELECT from_lsn, to_lsn, at, why FROM source_gap WHERE source = ?1 ORDER BY at DESC, to_lsn DESC";
        db.prepare_cached(order)?.query_map([source], gap)?.collect()
    };
    select().map_err(StoreError::read("the gaps of a source"))
}

#[cfg(test)]
mod tests {
    use super::super::schema::{STATE, migrate};
    use super::*;

    fn gap(from: Option<u64>, to: u64, at_micros: i64) -> Gap {
        Gap { from: from.map(Lsn), to: Lsn(to), at_micros, why: "dropped".to_owned() }
    }

    #[test]
    fn the_newest_gaps_are_kept_and_one_that_is_noted_again_begins_earlier() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, std::path::Path::new("state.db"), &STATE).unwrap();
        note(&mut db, "app", &gap(Some(0x100), 0x200, 1)).unwrap();
        note(&mut db, "app", &gap(Some(0x80), 0x200, 2)).unwrap();
        note(&mut db, "other", &gap(None, 0x200, 3)).unwrap();
        assert_eq!(read(&db, "app").unwrap(), [gap(Some(0x80), 0x200, 1)]);
        assert_eq!(read(&db, "app").unwrap()[0].bytes(), 0x180);
        assert_eq!(read(&db, "other").unwrap(), [gap(None, 0x200, 3)]);
        for n in 0..i64::from(KEPT_MAX) {
            note(&mut db, "app", &gap(Some(1), 0x300 + n.cast_unsigned(), 10 + n)).unwrap();
        }
        let all = read(&db, "app").unwrap();
        assert_eq!(all.len(), usize::try_from(KEPT_MAX).unwrap());
        assert_eq!((all[0].at_micros, all[99].at_micros), (109, 10), "the oldest is gone");
        assert_eq!(read(&db, "other").unwrap().len(), 1);
    }

    #[test]
    fn a_server_that_went_back_is_noted_until_a_person_accepts() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, std::path::Path::new("state.db"), &STATE).unwrap();
        let first = WentBack { seen: Lsn(9), end: Lsn(7) };
        note_went_back(&db, "app", first).unwrap();
        note_went_back(&db, "app", WentBack { seen: Lsn(9), end: Lsn(8) }).unwrap();
        assert_eq!(went_back(&db, "app").unwrap(), Some(first), "as it was found");
        for by in [None, Some(AcceptedBy::Setting)] {
            accept(&db, "app", by).unwrap();
            assert_eq!(went_back(&db, "app").unwrap(), Some(first));
        }
        assert_eq!(went_back(&db, "other").unwrap(), None);
        accept(&db, "app", Some(AcceptedBy::Person)).unwrap();
        assert_eq!(went_back(&db, "app").unwrap(), None);
    }
}

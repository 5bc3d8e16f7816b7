//! Seals of what decides which changes are passed over: what a source is bound to, how far each sink is, and what tables were
//! grouped by. A digit that changes there would skip rows in silence, so nothing of it is believed whose seal is broken.
//!
//! A seal is a checksum of the row's columns, written with them. All are looked at once, when the store is opened, before anything
//! is written. `walhook state accept-loss` forgets what is broken.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row, params};

use super::apply::lsn_of;
use super::batch::{KeptProgress, SinkKey};
use super::encoding::{positions_to_bytes, put_bytes, put_zigzag, sum_of};

/// Columns of a source that are sealed, in their order.
const SOURCE: &str = "name, system_id, timeline, database, slot, gap_accepted, confirmed";
/// Columns of a sink that are.
const SINK: &str = "key, resolved, high_lsn, high_idx, unresolved";
/// Columns of what a table was grouped by.
const GROUPED: &str = "sink, oid, since_lsn, since_idx, scope, rule, barrier";

/// A row that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BrokenRow {
    /// The binding of the source of this name.
    Source(String),
    /// The progress of a sink.
    Sink {
        key: SinkKey,
        source: String,
        name: String,
        /// What it says.
        resolved: Option<i64>,
    },
    /// What a table of a sink was grouped by.
    Grouped { rowid: [i64; 4], source: String, name: String },
}

impl BrokenRow {
    /// For a person.
    pub(super) fn what(&self) -> String {
        match self {
            Self::Source(name) => format!("the binding of source {name} is not what was written"),
            Self::Sink { source, name, resolved, .. } => {
                let said = resolved.map_or_else(|| "nothing".to_owned(), |resolved| lsn_of(resolved).to_string());
                format!("how far sink {name} of source {source} is, is not what was written (it says {said})")
            }
            Self::Grouped { source, name, .. } => {
                format!("what a table of sink {name} of source {source} is grouped by is not what was written")
            }
        }
    }
}

/// The bytes under a seal.
#[derive(Default)]
struct Sealed(Vec<u8>);

impl Sealed {
    fn null(&mut self) {
        self.0.push(0);
    }

    fn number(&mut self, number: Option<i64>) {
        let Some(number) = number else { return self.null() };
        self.0.push(1);
        put_zigzag(&mut self.0, number);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.push(2);
        put_bytes(&mut self.0, bytes);
    }

    fn seal(&self) -> i64 {
        sum_of(&self.0).cast_signed()
    }

    /// Of the first so many columns of a row.
    fn of_row(row: &Row<'_>, columns: usize) -> rusqlite::Result<i64> {
        let mut sealed = Self::default();
        for column in 0..columns {
            match row.get_ref(column)? {
                ValueRef::Null => sealed.null(),
                ValueRef::Integer(number) => sealed.number(Some(number)),
                // None of ours is; what stands there then is not what was sealed.
                ValueRef::Real(number) => sealed.number(Some(number.to_bits().cast_signed())),
                ValueRef::Text(bytes) | ValueRef::Blob(bytes) => sealed.bytes(bytes),
            }
        }
        Ok(sealed.seal())
    }
}

/// The seal of a sink's progress, and its unresolved positions as they are kept.
pub(super) fn of_progress(sink: SinkKey, progress: &KeptProgress) -> (i64, Vec<u8>) {
    let KeptProgress { resolved, high, unresolved } = progress;
    let unresolved = positions_to_bytes(unresolved);
    let mut sealed = Sealed::default();
    sealed.number(Some(sink.0));
    sealed.number(Some(resolved.0.cast_signed()));
    sealed.number(high.map(|high| high.commit_lsn.0.cast_signed()));
    sealed.number(high.map(|high| high.index.cast_signed()));
    sealed.bytes(&unresolved);
    (sealed.seal(), unresolved)
}

fn columns(list: &str) -> usize {
    list.split(", ").count()
}

/// Seals the rows of a source anew.
pub(super) fn seal_source(db: &Connection, name: &str) -> rusqlite::Result<()> {
    let count = columns(SOURCE);
    let sql = format!("SELECT {SOURCE} FROM source WHERE name = ?1");
    let seals: Vec<i64> = db
        .prepare_cached(&sql)?
        .query_map([name], |row| Sealed::of_row(row, count))?
        .collect::<rusqlite::Result<_>>()?;
    for seal in seals {
        db.prepare_cached("UPDATE source SET seal = ?2 WHERE name = ?1")?.execute((name, seal))?;
    }
    Ok(())
}

/// Seals the progress of all sinks of a source anew.
pub(super) fn seal_sinks(db: &Connection, source: &str) -> rusqlite::Result<()> {
    let count = columns(SINK);
    let sql = format!("SELECT {SINK} FROM sink WHERE source = ?1");
    let seals: Vec<(i64, i64)> = db
        .prepare_cached(&sql)?
        .query_map([source], |row| Ok((row.get(0)?, Sealed::of_row(row, count)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for seal in seals {
        db.prepare_cached("UPDATE sink SET seal = ?2 WHERE key = ?1")?.execute(seal)?;
    }
    Ok(())
}

/// Seals one row of what tables are grouped by.
pub(super) fn seal_grouped(db: &Connection, row: [i64; 4]) -> rusqlite::Result<()> {
    let count = columns(GROUPED);
    let which = "sink = ?1 AND oid = ?2 AND since_lsn = ?3 AND since_idx = ?4";
    let seal: i64 = db
        .prepare_cached(&format!("SELECT {GROUPED} FROM grouped WHERE {which}"))?
        .query_row(row, |row| Sealed::of_row(row, count))?;
    let [sink, oid, lsn, index] = row;
    db.prepare_cached(&format!("UPDATE grouped SET seal = ?5 WHERE {which}"))?
        .execute(params![sink, oid, lsn, index, seal])
        .map(drop)
}

/// Seals everything: what is there when seals come, is believed.
pub(super) fn seal_all(db: &Connection) -> rusqlite::Result<()> {
    let names = |sql| -> rusqlite::Result<Vec<String>> { db.prepare(sql)?.query_map([], |row| row.get(0))?.collect() };
    names("SELECT name FROM source")?.iter().try_for_each(|name| seal_source(db, name))?;
    names("SELECT DISTINCT source FROM sink")?.iter().try_for_each(|name| seal_sinks(db, name))?;
    let mut select = db.prepare("SELECT sink, oid, since_lsn, since_idx FROM grouped")?;
    let grouped: Vec<[i64; 4]> = select.query_map([], grouped_key)?.collect::<rusqlite::Result<_>>()?;
    grouped.into_iter().try_for_each(|row| seal_grouped(db, row))
}

fn grouped_key(row: &Row<'_>) -> rusqlite::Result<[i64; 4]> {
    Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?])
}

/// What is not what was written. Sinks that are being forgotten do not count.
pub(super) fn broken(db: &Connection) -> rusqlite::Result<Vec<BrokenRow>> {
    let mut all = Vec::new();
    let count = columns(SOURCE);
    let mut select = db.prepare(&format!("SELECT {SOURCE}, seal FROM source ORDER BY name"))?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        if row.get::<_, Option<i64>>(count)? != Some(Sealed::of_row(row, count)?) {
            all.push(BrokenRow::Source(row.get(0)?));
        }
    }
    let count = columns(SINK);
    let sql = format!("SELECT {SINK}, seal, source, name FROM sink WHERE source <> '' ORDER BY source, name");
    let mut select = db.prepare(&sql)?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let seal: Option<i64> = row.get(count)?;
        // A sink that has never told how far it is has no seal.
        let is_new = seal.is_none() && (1..count).all(|column| matches!(row.get_ref(column), Ok(ValueRef::Null)));
        if !is_new && seal != Some(Sealed::of_row(row, count)?) {
            let (key, resolved) = (SinkKey(row.get(0)?), row.get(1).unwrap_or_default());
            all.push(BrokenRow::Sink { key, source: row.get(count + 1)?, name: row.get(count + 2)?, resolved });
        }
    }
    let count = columns(GROUPED);
    let qualified = GROUPED.split(", ").map(|column| format!("grouped.{column}")).collect::<Vec<_>>().join(", ");
    let sql = format!(
        "SELECT {qualified}, grouped.seal, sink.source, sink.name FROM grouped JOIN sink ON sink.key = grouped.sink
         WHERE sink.source <> ''"
    );
    let mut select = db.prepare(&sql)?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        if row.get::<_, Option<i64>>(count)? != Some(Sealed::of_row(row, count)?) {
            let (source, name) = (row.get(count + 1)?, row.get(count + 2)?);
            all.push(BrokenRow::Grouped { rowid: grouped_key(row)?, source, name });
        }
    }
    Ok(all)
}

/// Forgets what is broken: a source is bound anew where its slot is, a sink begins there, and what it holds stays.
pub(super) fn forget(db: &Connection, rows: &[BrokenRow]) -> rusqlite::Result<()> {
    for row in rows {
        match row {
            BrokenRow::Source(name) => db.execute("DELETE FROM source WHERE name = ?1", [name])?,
            BrokenRow::Sink { key, .. } => db.execute(
                "UPDATE sink SET resolved = NULL, high_lsn = NULL, high_idx = NULL, unresolved = NULL, seal = NULL
                 WHERE key = ?1",
                [key.0],
            )?,
            BrokenRow::Grouped { rowid, .. } => db.execute(
                "DELETE FROM grouped WHERE sink = ?1 AND oid = ?2 AND since_lsn = ?3 AND since_idx = ?4",
                *rowid,
            )?,
        };
    }
    Ok(())
}

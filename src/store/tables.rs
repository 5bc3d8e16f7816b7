//! What the tables of a sink were grouped by, and from which change on.
//!
//! A row is written with the batch that may let the first message under it be resolved, so that a change that comes again after
//! a crash is found to be grouped as it was, or to be a barrier.

use rusqlite::{Connection, Row, named_params};

use super::apply::lsn_of;
use super::batch::{Grouped, SinkKey};
use super::seals;
use crate::change::Position;
use crate::ties::{Barrier, ScopeId};

/// Notes one, and forgets those that are needed no more.
pub(super) fn write(
    db: &Connection,
    sink: SinkKey,
    grouped: &Grouped,
    forgotten: &[(u32, Position)],
) -> rusqlite::Result<()> {
    let mut delete = db.prepare_cached(
        "DELETE FROM grouped WHERE sink = :sink AND oid = :oid AND since_lsn = :since_lsn AND since_idx = :since_idx",
    )?;
    for (oid, since) in forgotten {
        delete.execute(named_params! {
            ":sink": sink.0,
            ":oid": oid,
            ":since_lsn": since.commit_lsn.0.cast_signed(),
            ":since_idx": since.index.cast_signed(),
        })?;
    }
    let Grouped { oid, scope, rule, since, barrier } = grouped;
    db.prepare_cached(
        "INSERT OR REPLACE INTO grouped (sink, oid, since_lsn, since_idx, scope, rule, barrier)
         VALUES (:sink, :oid, :since_lsn, :since_idx, :scope, :rule, :barrier)",
    )?
    .execute(named_params! {
        ":sink": sink.0,
        ":oid": oid,
        ":since_lsn": since.commit_lsn.0.cast_signed(),
        ":since_idx": since.index.cast_signed(),
        ":scope": scope.0.cast_signed(),
        ":rule": rule,
        ":barrier": barrier_column(*barrier),
    })?;
    seals::seal_grouped(db, [sink.0, i64::from(*oid), since.commit_lsn.0.cast_signed(), since.index.cast_signed()])
}

/// All of a sink.
pub(super) fn load(db: &Connection, sink: SinkKey) -> rusqlite::Result<Vec<Grouped>> {
    let mut select = db.prepare_cached(
        "SELECT oid, since_lsn, since_idx, scope, rule, barrier FROM grouped WHERE sink = :sink
         ORDER BY oid, since_lsn, since_idx",
    )?;
    let grouped = |row: &Row<'_>| {
        Ok(Grouped {
            oid: row.get(0)?,
            since: Position { commit_lsn: lsn_of(row.get(1)?), index: row.get::<_, i64>(2)?.cast_unsigned() },
            scope: ScopeId(row.get::<_, i64>(3)?.cast_unsigned()),
            rule: row.get::<_, String>(4)?.into(),
            barrier: barrier_of(row.get(5)?),
        })
    };
    select.query_map(named_params! { ":sink": sink.0 }, grouped)?.collect()
}

/// NULL: none; 0: of its own table; else the scope of the other one.
pub(super) fn barrier_column(barrier: Barrier) -> Option<i64> {
    match barrier {
        Barrier::None => None,
        Barrier::Scope => Some(0),
        Barrier::Scopes(old) => Some(old.0.cast_signed()),
    }
}

/// See [`barrier_column`].
pub(super) fn barrier_of(column: Option<i64>) -> Barrier {
    match column {
        None => Barrier::None,
        Some(0) => Barrier::Scope,
        Some(old) => Barrier::Scopes(ScopeId(old.cast_unsigned())),
    }
}

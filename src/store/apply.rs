//! One batch, carried out inside the writer's transaction.
//!
//! What a batch names and the store does not have (a delivery that is no longer there, a message that has left) is passed
//! over: after a crash a sink may say again what it had said. What would lose something is refused: progress that goes
//! back, a page that was written before.

mod delivery;
mod waiting;

use rusqlite::{Connection, OptionalExtension as _, named_params};

pub(super) use self::delivery::{BLOCKED, RETRYING, id_column, remove_key};
pub(super) use self::waiting::leave;
use super::batch::{Batch, KeptProgress, Op, SinkKey};
use super::pages::Pages;
use super::seals;
use super::tables;
use crate::change::{Lsn, Position};
use crate::failpoint;

/// Why a batch is never written: a fault of walhook's own.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the store has no such sink")]
    UnknownSink,
    #[error("resolved would go back from {from} to {to}")]
    ResolvedGoesBack { from: Lsn, to: Lsn },
    #[error("the high position would go back from {from:?} to {to:?}")]
    HighGoesBack { from: Position, to: Option<Position> },
    #[error("page {page} comes after page {next} was due")]
    PageAgain { page: u64, next: u64 },
}

/// What does not change from batch to batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keeping {
    /// When a dead letter of this batch expires, by the clock that retention goes by.
    pub(super) expires_micros: i64,
}

/// What the store has of a sink that a batch must not take back.
#[derive(Debug)]
struct Standing {
    resolved: Option<Lsn>,
    high: Option<Position>,
    next_page: u64,
}

/// Whether the batch may be written.
pub(super) fn check(db: &Connection, batch: &Batch) -> rusqlite::Result<Result<(), Refusal>> {
    let Some(standing) = standing(db, batch.sink)? else { return Ok(Err(Refusal::UnknownSink)) };
    Ok(check_progress(&standing, batch.progress.as_ref()).and_then(|()| check_pages(&standing, &batch.ops)))
}

fn check_progress(standing: &Standing, progress: Option<&KeptProgress>) -> Result<(), Refusal> {
    let Some(progress) = progress else { return Ok(()) };
    match (standing.resolved, standing.high) {
        (Some(from), _) if progress.resolved < from => Err(Refusal::ResolvedGoesBack { from, to: progress.resolved }),
        (_, Some(from)) if progress.high < Some(from) => Err(Refusal::HighGoesBack { from, to: progress.high }),
        (Some(_) | None, Some(_) | None) => Ok(()),
    }
}

fn check_pages(standing: &Standing, ops: &[Op]) -> Result<(), Refusal> {
    let mut next = standing.next_page;
    for op in ops {
        if let Op::Page { page, .. } = op {
            if *page < next {
                return Err(Refusal::PageAgain { page: *page, next });
            }
            next = page.saturating_add(1);
        }
    }
    Ok(())
}

fn standing(db: &Connection, sink: SinkKey) -> rusqlite::Result<Option<Standing>> {
    let mut select = db.prepare_cached("SELECT resolved, high_lsn, high_idx, next_page FROM sink WHERE key = :sink")?;
    let row = |row: &rusqlite::Row<'_>| {
        Ok(Standing {
            resolved: row.get::<_, Option<i64>>(0)?.map(lsn_of),
            high: position_of(row.get(1)?, row.get(2)?),
            next_page: row.get::<_, i64>(3)?.cast_unsigned(),
        })
    };
    select.query_row(named_params! { ":sink": sink.0 }, row).optional()
}

/// Writes the batch. After an error the transaction must be rolled back and `pages` must forget.
pub(super) fn apply(db: &Connection, pages: &mut Pages, keeping: &Keeping, batch: &Batch) -> rusqlite::Result<()> {
    for op in &batch.ops {
        apply_op(db, pages, keeping, batch.sink, op)?;
    }
    pages.write(db)?;
    match &batch.progress {
        Some(progress) => write_progress(db, batch.sink, progress),
        None => Ok(()),
    }
}

fn apply_op(db: &Connection, pages: &mut Pages, keeping: &Keeping, sink: SinkKey, op: &Op) -> rusqlite::Result<()> {
    match op {
        Op::Park { delivery, body } => {
            delivery::park(db, sink, delivery, body)?;
            failpoint::hit("store.in_park");
            Ok(())
        }
        Op::Tried { id, tries, blocked } => delivery::tried(db, sink, *id, tries, *blocked),
        Op::Delivered(id) => delivery::delivered(db, sink, *id),
        Op::Dead { id, at_micros, reason, tries } => {
            delivery::tried(db, sink, *id, tries, false)?;
            failpoint::hit("store.in_dead");
            delivery::dead(db, sink, *id, *at_micros, *reason, keeping.expires_micros)
        }
        Op::Split { parent, parts } => delivery::split(db, sink, *parent, parts),
        Op::Lanes(messages) => waiting::lanes(db, sink, messages),
        Op::Page { page, messages } => waiting::page(db, sink, *page, messages),
        Op::Leave(homes) => waiting::leave(db, pages, sink, homes),
        Op::Paused { why } => pause(db, sink, why),
        Op::Grouped { grouped, forgotten } => tables::write(db, sink, grouped, forgotten),
    }
}

fn pause(db: &Connection, sink: SinkKey, why: &str) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE sink SET paused = :why WHERE key = :sink")?
        .execute(named_params! { ":sink": sink.0, ":why": why })
        .map(drop)
}

/// Raises what is confirmed of each source to what all its active sinks have resolved. While one of them has no progress it
/// stays, as the slot does: that sink begins there.
pub(super) fn raise_confirmed(db: &Connection) -> rusqlite::Result<()> {
    let raised: Vec<String> = db
        .prepare_cached(
            "UPDATE source SET confirmed = lowest.resolved
             FROM (SELECT source, min(resolved) AS resolved FROM sink
                   WHERE active GROUP BY source HAVING count(resolved) = count(*)) AS lowest
             WHERE source.name = lowest.source AND ifnull(source.confirmed, 0) < lowest.resolved
             RETURNING source.name",
        )?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    raised.iter().try_for_each(|source| seals::seal_source(db, source))
}

/// Sets how far the sink is, whatever it was.
pub(super) fn write_progress(db: &Connection, sink: SinkKey, progress: &KeptProgress) -> rusqlite::Result<()> {
    let KeptProgress { resolved, high, .. } = progress;
    let (seal, unresolved) = seals::of_progress(sink, progress);
    db.prepare_cached(
        "UPDATE sink SET resolved = :resolved, high_lsn = :high_lsn, high_idx = :high_idx, unresolved = :unresolved,
             seal = :seal
         WHERE key = :sink",
    )?
    .execute(named_params! {
        ":sink": sink.0,
        ":resolved": resolved.0.cast_signed(),
        ":high_lsn": high.map(|high| high.commit_lsn.0.cast_signed()),
        ":high_idx": high.map(|high| high.index.cast_signed()),
        ":unresolved": unresolved,
        ":seal": seal,
    })
    .map(drop)
}

pub(super) fn lsn_of(column: i64) -> Lsn {
    Lsn(column.cast_unsigned())
}

pub(super) fn position_of(lsn: Option<i64>, index: Option<i64>) -> Option<Position> {
    Some(Position { commit_lsn: lsn_of(lsn?), index: index?.cast_unsigned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(lsn: u64, index: u64) -> Position {
        Position { commit_lsn: Lsn(lsn), index }
    }

    fn progress(resolved: u64, high: Option<Position>) -> KeptProgress {
        KeptProgress { resolved: Lsn(resolved), high, unresolved: Vec::new() }
    }

    #[test]
    fn progress_only_grows() {
        let standing = Standing { resolved: Some(Lsn(5)), high: Some(at(7, 2)), next_page: 0 };
        let check = |resolved, high| check_progress(&standing, Some(&progress(resolved, high)));
        assert_eq!(check(5, Some(at(7, 2))), Ok(()));
        assert_eq!(check(6, Some(at(7, 3))), Ok(()));
        assert_eq!(check(4, Some(at(8, 1))), Err(Refusal::ResolvedGoesBack { from: Lsn(5), to: Lsn(4) }));
        assert_eq!(check(5, Some(at(7, 1))), Err(Refusal::HighGoesBack { from: at(7, 2), to: Some(at(7, 1)) }));
        assert_eq!(check(5, None), Err(Refusal::HighGoesBack { from: at(7, 2), to: None }));
        assert_eq!(check_progress(&standing, None), Ok(()));
        let new = Standing { resolved: None, high: None, next_page: 0 };
        assert_eq!(check_progress(&new, Some(&progress(0, None))), Ok(()));
    }

    #[test]
    fn a_page_is_written_once() {
        let standing = Standing { resolved: None, high: None, next_page: 3 };
        let page = |page| Op::Page { page, messages: Vec::new() };
        assert_eq!(check_pages(&standing, &[page(3), page(4), page(9)]), Ok(()));
        assert_eq!(check_pages(&standing, &[page(2)]), Err(Refusal::PageAgain { page: 2, next: 3 }));
        assert_eq!(check_pages(&standing, &[page(3), page(3)]), Err(Refusal::PageAgain { page: 3, next: 4 }));
    }
}

//! What goes by itself, a few rows at a time: dead letters that have expired, and whatever forgotten sinks held.

use rusqlite::{Connection, OptionalExtension as _, Row, TransactionBehavior};

use super::apply::remove_key;
use super::batch::SinkKey;
use crate::deliver::frozen::DeliveryId;

/// Rows with large contents removed in one step.
const LARGE_MAX: i64 = 64;
/// Rows with small contents removed in one step.
const SMALL_MAX: i64 = 512;

/// Tables of small rows, and their keys.
const LISTS: [(&str, &str); 3] =
    [("lane", "sink, lsn, idx"), ("lane_group", "sink, grp, lsn, idx"), ("grouped", "sink, oid, since_lsn, since_idx")];

/// A dead letter that has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone {
    pub(super) sink: SinkKey,
    pub(super) delivery: DeliveryId,
    pub(super) is_damaged: bool,
}

/// Removes dead letters that have expired by the clock that retention goes by. Where some went there may be more.
pub(super) fn expired(db: &mut Connection, now_micros: i64) -> rusqlite::Result<Vec<Gone>> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let sql = "SELECT key, sink, id, ifnull(dead_reason = 'damaged', 0) FROM delivery
               WHERE state = 2 AND expires_at <= ?1 LIMIT ?2";
    let of_row = |row: &Row<'_>| {
        let delivery = DeliveryId(u128::from_be_bytes(row.get(2)?));
        Ok((row.get(0)?, Gone { sink: SinkKey(row.get(1)?), delivery, is_damaged: row.get(3)? }))
    };
    let found: Vec<(i64, Gone)> = transaction
        .prepare_cached(sql)?
        .query_map([now_micros, LARGE_MAX], of_row)?
        .collect::<rusqlite::Result<_>>()?;
    for (key, _) in &found {
        remove_key(&transaction, *key)?;
    }
    transaction.commit()?;
    Ok(found.into_iter().map(|(_, gone)| gone).collect())
}

/// Takes the sink its name away: it is gone for everybody, and what it held goes in time.
pub(super) fn forget(db: &Connection, key: i64) -> rusqlite::Result<()> {
    db.execute("UPDATE sink SET source = '', name = key, active = 0 WHERE key = ?1", [key]).map(drop)
}

/// Removes what forgotten sinks held. True: there may be more.
pub(super) fn forgotten(db: &mut Connection) -> rusqlite::Result<bool> {
    let sink: Option<i64> =
        db.query_row("SELECT key FROM sink WHERE source = '' LIMIT 1", [], |row| row.get(0)).optional()?;
    let Some(sink) = sink else { return Ok(false) };
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut more = remove_deliveries(&transaction, "SELECT key FROM delivery WHERE sink = ?1 LIMIT ?2", sink)?;
    more |= remove_pages(&transaction, sink)?;
    for (table, key) in LISTS {
        let sql = format!("DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE sink = ?1 LIMIT ?2)");
        more |= transaction.execute(&sql, [sink, SMALL_MAX])? > 0;
    }
    if !more {
        transaction.execute("DELETE FROM sink WHERE key = ?1", [sink])?;
    }
    transaction.commit()?;
    Ok(true)
}

/// Removes deliveries whose keys `select` finds. True: there may be more.
fn remove_deliveries(db: &Connection, select: &str, parameter: i64) -> rusqlite::Result<bool> {
    let keys = keys(db, select, parameter)?;
    for key in &keys {
        remove_key(db, *key)?;
    }
    Ok(!keys.is_empty())
}

fn remove_pages(db: &Connection, sink: i64) -> rusqlite::Result<bool> {
    let keys = keys(db, "SELECT key FROM page WHERE sink = ?1 LIMIT ?2", sink)?;
    for key in &keys {
        db.execute("DELETE FROM page_content WHERE page = ?1", [key])?;
        db.execute("DELETE FROM page WHERE key = ?1", [key])?;
    }
    Ok(!keys.is_empty())
}

fn keys(db: &Connection, select: &str, parameter: i64) -> rusqlite::Result<Vec<i64>> {
    db.prepare_cached(select)?.query_map([parameter, LARGE_MAX], |row| row.get(0))?.collect()
}

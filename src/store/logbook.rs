//! `log.db` in the writer's hands: rows go in many at a time, and old ones go.

mod trim;

use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior, named_params};

use super::apply::id_column;
use super::files::{self, LOG_BUSY_LIMIT, Paths};
use super::ledger::pragma_count;
use super::log::{AttemptRow, DeliveryRow, LogRow};
use super::quota::{Budget, PAGE_BYTES};
use crate::config::StateConfig;
use crate::deliver::frozen::DeliveryId;

/// Attempts kept of one delivery: the last.
const ATTEMPTS_OF_DELIVERY_MAX: u32 = 100;
/// Attempts kept for each delivery that may be kept: a log of many failures is bounded too.
const ATTEMPTS_PER_ROW_MAX: u64 = 8;

/// Tells whether the store still keeps a delivery: then its failures stay.
pub(super) type Keeps<'a> = &'a dyn Fn(DeliveryId) -> bool;

/// See the module.
#[derive(Debug)]
pub(super) struct Logbook {
    db: Connection,
    paths: Paths,
    retention: Duration,
    rows_max: u64,
    bytes_max: u64,
    wal_bytes: u64,
    /// Attempts up to here have been looked at since the last round of trimming began, and stay.
    scanned: i64,
}

impl Logbook {
    pub(super) fn new(db: Connection, paths: Paths, config: &StateConfig, budget: &Budget) -> Self {
        let Budget { log_bytes: bytes_max, log_wal_bytes: wal_bytes, .. } = *budget;
        let StateConfig { log_retention: retention, log_max_rows: rows_max, .. } = *config;
        Self { db, paths, retention, rows_max, bytes_max, wal_bytes, scanned: 0 }
    }

    /// Bytes of rows that one transaction may hold.
    pub(super) fn turn_bytes(&self) -> usize {
        usize::try_from(self.wal_bytes / 2).unwrap_or(usize::MAX)
    }

    /// Writes rows, all or none.
    pub(super) fn write(&mut self, rows: &[LogRow]) -> rusqlite::Result<()> {
        self.keep_wal_short()?;
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for row in rows {
            match row {
                LogRow::Delivery(row) => insert_delivery(&transaction, row)?,
                LogRow::Attempt(row) => insert_attempt(&transaction, row)?,
            }
        }
        transaction.commit()
    }

    /// Moves the WAL into the database when it has become long.
    pub(super) fn keep_wal_short(&mut self) -> rusqlite::Result<()> {
        if self.paths.log_wal_bytes() > self.wal_bytes { self.checkpoint() } else { Ok(()) }
    }

    /// Moves the WAL into the database, as far as nobody reads it.
    pub(super) fn checkpoint(&mut self) -> rusqlite::Result<()> {
        files::empty_wal(&self.db, LOG_BUSY_LIMIT).map(drop)
    }

    /// Whether the WAL has no room for more, because somebody reads it and it cannot be emptied.
    pub(super) fn is_choked(&mut self) -> bool {
        let is_long = |logbook: &Self| logbook.paths.log_wal_bytes() > 2 * logbook.wal_bytes;
        is_long(self) && (self.checkpoint().is_err() || is_long(self))
    }

    /// Bytes of the database that hold something.
    fn used_bytes(&self) -> rusqlite::Result<u64> {
        let free = pragma_count(&self.db, "freelist_count")?;
        Ok(pragma_count(&self.db, "page_count")?.saturating_sub(free) * PAGE_BYTES)
    }
}

fn insert_delivery(db: &Transaction<'_>, row: &DeliveryRow) -> rusqlite::Result<()> {
    let (first, last) = row.positions;
    db.prepare_cached(
        "INSERT INTO delivery (id, sink, parent, state, messages, events, groups, first_lsn, first_idx, last_lsn,
            last_idx, body_bytes, attempts, created, finished, last_status)
         VALUES (:id, :sink, :parent, :state, :messages, :events, :groups, :first_lsn, :first_idx, :last_lsn,
            :last_idx, :body_bytes, :attempts, :created, :finished, :last_status)",
    )?
    .execute(named_params! {
        ":id": id_column(row.id),
        ":sink": &*row.sink,
        ":parent": row.parent.map(id_column),
        ":state": row.state,
        ":messages": row.messages,
        ":events": json_array(&row.events),
        ":groups": json_array(&row.groups),
        ":first_lsn": first.commit_lsn.0.cast_signed(),
        ":first_idx": first.index.cast_signed(),
        ":last_lsn": last.commit_lsn.0.cast_signed(),
        ":last_idx": last.index.cast_signed(),
        ":body_bytes": row.body_bytes.cast_signed(),
        ":attempts": row.attempts,
        ":created": row.created_micros,
        ":finished": row.finished_micros,
        ":last_status": row.last_status,
    })
    .map(drop)
}

fn insert_attempt(db: &Transaction<'_>, row: &AttemptRow) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO attempt (delivery, sink, number, started, duration, status, category, error, response,
            response_truncated)
         VALUES (:delivery, :sink, :number, :started, :duration, :status, :category, :error, :response, :truncated)",
    )?
    .execute(named_params! {
        ":delivery": id_column(row.delivery),
        ":sink": &*row.sink,
        ":number": row.number,
        ":started": row.started_micros,
        ":duration": row.duration_micros.cast_signed(),
        ":status": row.status,
        ":category": row.category,
        ":error": row.error,
        ":response": (!row.response.is_empty()).then_some(&*row.response),
        ":truncated": row.response_truncated,
    })?;
    let Some(old) = row.number.checked_sub(ATTEMPTS_OF_DELIVERY_MAX) else { return Ok(()) };
    db.prepare_cached("DELETE FROM attempt WHERE delivery = ?1 AND number <= ?2")?
        .execute((id_column(row.delivery), old))
        .map(drop)
}

fn json_array(texts: &[std::sync::Arc<str>]) -> String {
    serde_json::Value::from_iter(texts.iter().map(|text| &**text)).to_string()
}

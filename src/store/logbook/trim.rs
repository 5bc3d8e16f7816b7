//! Old rows of the log go, a few at a time: those past `log_retention`, those beyond `log_max_rows`, and the oldest when
//! the log has used its share of the disk.
//!
//! Attempts go with their delivery. Failures of a delivery that the store still keeps stay, unless room is short.

use rusqlite::{Transaction, TransactionBehavior};

use super::{ATTEMPTS_PER_ROW_MAX, Keeps, Logbook};
use crate::deliver::frozen::DeliveryId;
use crate::store::apply::id_column;
use crate::store::ledger::shrink;

/// Rows looked at in one step.
const STEP_ROWS: usize = 1024;
/// Rows of each table dropped in one step to make room, at most; and no more than an eighth of it.
const OLDEST_ROWS: i64 = 256;

/// Why rows go.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Deliveries that ended before, and attempts that began before, go.
    before: i64,
    /// So many of the oldest deliveries go.
    deliveries: u64,
    /// So many of the oldest attempts go.
    attempts: u64,
}

impl Logbook {
    /// One step of trimming. True: there is more to be done now.
    pub(in crate::store) fn trim(&mut self, now_micros: i64, keeps: Keeps<'_>) -> rusqlite::Result<bool> {
        self.keep_wal_short()?;
        // Between seven and eight eighths of its share the oldest rows make room.
        if self.used_bytes()? > self.bytes_max / 8 * 7 {
            self.drop_oldest()?;
            return Ok(self.used_bytes()? > self.bytes_max / 8 * 6);
        }
        let limits = self.limits(now_micros)?;
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let deliveries = trim_deliveries(&transaction, &limits, keeps)?;
        let attempts = trim_attempts(&transaction, &limits, self.scanned, keeps)?;
        transaction.commit()?;
        self.scanned = attempts.unwrap_or(0);
        Ok(deliveries || attempts.is_some() || shrink(&self.db, self.wal_bytes)?)
    }

    fn limits(&self, now_micros: i64) -> rusqlite::Result<Limits> {
        let before = now_micros.saturating_sub(i64::try_from(self.retention.as_micros()).unwrap_or(i64::MAX));
        // Rows go at the lower end only (but for attempts that stay), so this is how many there are at most.
        let rows = |table: &str| -> rusqlite::Result<u64> {
            let sql = format!("SELECT ifnull(max(seq) - min(seq) + 1, 0) FROM {table}");
            self.db.prepare_cached(&sql)?.query_row([], |row| row.get::<_, i64>(0)).map(i64::cast_unsigned)
        };
        Ok(Limits {
            before,
            deliveries: rows("delivery")?.saturating_sub(self.rows_max),
            attempts: rows("attempt")?.saturating_sub(self.rows_max.saturating_mul(ATTEMPTS_PER_ROW_MAX)),
        })
    }

    /// Makes room whoever needs the rows.
    pub(in crate::store) fn drop_oldest(&mut self) -> rusqlite::Result<()> {
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for table in ["attempt", "delivery"] {
            let sql = format!(
                "DELETE FROM {table} WHERE seq <=
                     (SELECT min(seq) + min((max(seq) - min(seq)) / 8, ?1 - 1) FROM {table})"
            );
            transaction.prepare_cached(&sql)?.execute([OLDEST_ROWS])?;
        }
        transaction.commit()?;
        self.scanned = 0;
        shrink(&self.db, self.wal_bytes).map(drop)
    }
}

/// True: there may be more.
fn trim_deliveries(db: &Transaction<'_>, limits: &Limits, keeps: Keeps<'_>) -> rusqlite::Result<bool> {
    let going = old_deliveries(db, limits)?;
    for (seq, id) in &going {
        let gone_with_it = if keeps(*id) {
            "DELETE FROM attempt WHERE delivery = ?1 AND category IS NULL"
        } else {
            "DELETE FROM attempt WHERE delivery = ?1"
        };
        db.prepare_cached(gone_with_it)?.execute([id_column(*id)])?;
        db.prepare_cached("DELETE FROM delivery WHERE seq = ?1")?.execute([seq])?;
    }
    Ok(going.len() == STEP_ROWS)
}

fn old_deliveries(db: &Transaction<'_>, limits: &Limits) -> rusqlite::Result<Vec<(i64, DeliveryId)>> {
    let mut select = db.prepare_cached("SELECT seq, id, finished FROM delivery ORDER BY seq")?;
    let mut rows = select.query([])?;
    let mut old = Vec::new();
    while old.len() < STEP_ROWS
        && let Some(row) = rows.next()?
    {
        let is_surplus = (old.len() as u64) < limits.deliveries;
        if !is_surplus && row.get::<_, i64>(2)? >= limits.before {
            break;
        }
        old.push((row.get(0)?, delivery_id(row.get(1)?)));
    }
    Ok(old)
}

/// Where to go on, if there is more.
fn trim_attempts(db: &Transaction<'_>, limits: &Limits, after: i64, keeps: Keeps<'_>) -> rusqlite::Result<Option<i64>> {
    let old = old_attempts(db, limits, after)?;
    for (seq, id, failed) in &old {
        if !(*failed && keeps(*id)) {
            db.prepare_cached("DELETE FROM attempt WHERE seq = ?1")?.execute([seq])?;
        }
    }
    Ok(old.last().filter(|_| old.len() == STEP_ROWS).map(|(seq, ..)| *seq))
}

fn old_attempts(db: &Transaction<'_>, limits: &Limits, after: i64) -> rusqlite::Result<Vec<(i64, DeliveryId, bool)>> {
    let lowest: i64 = db.query_row("SELECT ifnull(min(seq), 0) FROM attempt", [], |row| row.get(0))?;
    let surplus_below = lowest.saturating_add_unsigned(limits.attempts);
    let mut select = db.prepare_cached(
        "SELECT seq, delivery, category IS NOT NULL, started FROM attempt WHERE seq > ?1 ORDER BY seq",
    )?;
    let mut rows = select.query([after])?;
    let mut old = Vec::new();
    while old.len() < STEP_ROWS
        && let Some(row) = rows.next()?
    {
        let seq = row.get(0)?;
        if seq >= surplus_below && row.get::<_, i64>(3)? >= limits.before {
            break;
        }
        old.push((seq, delivery_id(row.get(1)?), row.get(2)?));
    }
    Ok(old)
}

fn delivery_id(column: [u8; 16]) -> DeliveryId {
    DeliveryId(u128::from_be_bytes(column))
}

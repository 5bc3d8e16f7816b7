//! Deliveries that failed: parked, tried, delivered, split, dead.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, named_params};
use tracing::debug;

use crate::deliver::frozen::DeliveryId;
use crate::failpoint;
use crate::store::batch::{DeadReason, KeptDelivery, SinkKey, Tries};
use crate::store::encoding::{body_to_bytes, members_to_bytes, twice_sealed};

/// Waits for its next attempt.
pub(in crate::store) const RETRYING: i64 = 0;
/// Waits for a person.
pub(in crate::store) const BLOCKED: i64 = 1;

pub(super) fn park(db: &Connection, sink: SinkKey, delivery: &KeptDelivery, body: &Bytes) -> rusqlite::Result<()> {
    if remove(db, sink, delivery.id)? {
        debug!(sink = sink.0, delivery = %delivery.id, "a delivery is parked that was parked before");
    }
    insert(db, sink, delivery, body)?;
    db.prepare_cached("INSERT INTO delivery_content (delivery, members, body) VALUES (:delivery, :members, :body)")?
        .execute(named_params! {
            ":delivery": db.last_insert_rowid(),
            ":members": twice_sealed(&members_to_bytes(&delivery.members)),
            ":body": body_to_bytes(body, &delivery.members),
        })
        .map(drop)
}

fn insert(db: &Connection, sink: SinkKey, delivery: &KeptDelivery, body: &Bytes) -> rusqlite::Result<()> {
    let tries = &delivery.tries;
    let last = tries.last.as_ref();
    db.prepare_cached(
        "INSERT INTO delivery (sink, id, state, parent, created, body_bytes, attempts, failures, first_attempt,
            next_attempt, last_at, last_status, last_category, last_message)
         VALUES (:sink, :id, :state, :parent, :created, :body_bytes, :attempts, :failures, :first_attempt,
            :next_attempt, :last_at, :last_status, :last_category, :last_message)",
    )?
    .execute(named_params! {
        ":sink": sink.0,
        ":id": id_column(delivery.id),
        ":state": if delivery.blocked { BLOCKED } else { RETRYING },
        ":parent": delivery.parent.map(id_column),
        ":created": delivery.created_micros,
        ":body_bytes": i64::try_from(body.len()).unwrap_or(i64::MAX),
        ":attempts": tries.attempts,
        ":failures": tries.failures,
        ":first_attempt": tries.first_attempt_micros,
        ":next_attempt": tries.next_attempt_micros,
        ":last_at": last.map(|last| last.at_micros),
        ":last_status": last.map(|last| last.status),
        ":last_category": last.map(|last| &*last.category),
        ":last_message": last.map(|last| &last.message),
    })
    .map(drop)
}

pub(super) fn tried(
    db: &Connection,
    sink: SinkKey,
    id: DeliveryId,
    tries: &Tries,
    blocked: bool,
) -> rusqlite::Result<()> {
    let last = tries.last.as_ref();
    let changed = db
        .prepare_cached(
            "UPDATE delivery SET state = :state, attempts = :attempts, failures = :failures,
                first_attempt = :first_attempt, next_attempt = :next_attempt, last_at = :last_at,
                last_status = :last_status, last_category = :last_category, last_message = :last_message
             WHERE id = :id AND sink = :sink AND state <> 2",
        )?
        .execute(named_params! {
            ":sink": sink.0,
            ":id": id_column(id),
            ":state": if blocked { BLOCKED } else { RETRYING },
            ":attempts": tries.attempts,
            ":failures": tries.failures,
            ":first_attempt": tries.first_attempt_micros,
            ":next_attempt": tries.next_attempt_micros,
            ":last_at": last.map(|last| last.at_micros),
            ":last_status": last.map(|last| last.status),
            ":last_category": last.map(|last| &*last.category),
            ":last_message": last.map(|last| &last.message),
        })?;
    if changed == 0 {
        debug!(sink = sink.0, delivery = %id, "an attempt of a delivery that is not kept");
    }
    Ok(())
}

pub(super) fn delivered(db: &Connection, sink: SinkKey, id: DeliveryId) -> rusqlite::Result<()> {
    if !remove(db, sink, id)? {
        debug!(sink = sink.0, delivery = %id, "a delivery was acknowledged that is not kept");
    }
    Ok(())
}

pub(super) fn dead(
    db: &Connection,
    sink: SinkKey,
    id: DeliveryId,
    at_micros: i64,
    reason: DeadReason,
    expires_micros: i64,
) -> rusqlite::Result<()> {
    db.prepare_cached(
        "UPDATE delivery SET state = 2, next_attempt = NULL, dead_at = :at, dead_reason = :reason, expires_at = :expires
         WHERE id = :id AND sink = :sink AND state <> 2",
    )?
    .execute(named_params! {
        ":sink": sink.0,
        ":id": id_column(id),
        ":at": at_micros,
        ":reason": reason.as_str(),
        ":expires": expires_micros,
    })
    .map(drop)
}

/// The parts hold messages that nobody else has, so they are kept even if the parent was not.
pub(super) fn split(
    db: &Connection,
    sink: SinkKey,
    parent: DeliveryId,
    parts: &[(KeptDelivery, Bytes)],
) -> rusqlite::Result<()> {
    if !remove(db, sink, parent)? {
        debug!(sink = sink.0, delivery = %parent, "a delivery was split that is not kept");
    }
    for (part, body) in parts {
        park(db, sink, part, body)?;
        failpoint::hit("store.in_split");
    }
    Ok(())
}

/// False: there was none.
fn remove(db: &Connection, sink: SinkKey, id: DeliveryId) -> rusqlite::Result<bool> {
    let key: Option<i64> = db
        .prepare_cached("SELECT key FROM delivery WHERE id = :id AND sink = :sink")?
        .query_row(named_params! { ":sink": sink.0, ":id": id_column(id) }, |row| row.get(0))
        .optional()?;
    let Some(key) = key else { return Ok(false) };
    remove_key(db, key)?;
    Ok(true)
}

/// Removes a delivery with all it holds.
pub(in crate::store) fn remove_key(db: &Connection, key: i64) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM delivery_content WHERE delivery = ?1")?.execute([key])?;
    db.prepare_cached("DELETE FROM delivery WHERE key = ?1")?.execute([key]).map(drop)
}

/// An id as it stands in both databases.
pub(in crate::store) fn id_column(id: DeliveryId) -> [u8; 16] {
    id.0.to_be_bytes()
}

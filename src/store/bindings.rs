//! Which databases and sinks the store is of.

use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, named_params};
use tracing::info;

use super::apply::lsn_of;
use super::batch::SinkKey;
use super::error::StoreError;
use super::holdings::{Holdings, holdings};
use crate::change::Lsn;

/// What the store is to be bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBinding {
    /// The source.
    pub name: String,
    /// What `IDENTIFY_SYSTEM` calls `systemid`.
    pub system_id: u64,
    /// The timeline that is read from here on.
    pub timeline: u32,
    /// The database.
    pub database: String,
    /// The slot.
    pub slot: String,
    /// Where it begins, or goes on after an accepted gap: it is confirmed up to here, no sink of it is behind any more, and
    /// the acceptance is used up.
    pub from: Option<Lsn>,
}

/// A sink that the config no longer has, and that the store still holds something for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbsentSink {
    /// Its name.
    pub name: String,
    /// What the store holds.
    pub holds: Holdings,
}

/// See [`super::Store::bind`].
pub(super) fn bind(db: &mut Connection, binding: &NewBinding) -> Result<(), StoreError> {
    bind_in_transaction(db, binding).map_err(StoreError::write("the binding of a source"))
}

fn bind_in_transaction(db: &mut Connection, binding: &NewBinding) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute(
        "INSERT INTO source (name, system_id, timeline, database, slot, gap_accepted)
         VALUES (:name, :system_id, :timeline, :database, :slot, 0)
         ON CONFLICT DO UPDATE
             SET system_id = :system_id, timeline = :timeline, database = :database, slot = :slot",
        named_params! {
            ":name": binding.name,
            ":system_id": binding.system_id.to_string(),
            ":timeline": binding.timeline,
            ":database": binding.database,
            ":slot": binding.slot,
        },
    )?;
    if let Some(from) = binding.from {
        // What the store holds of later positions is not to come again, so `high` stays.
        let forward = "UPDATE sink SET resolved = max(resolved, ?2) WHERE source = ?1 AND resolved IS NOT NULL";
        let confirm = "UPDATE source SET gap_accepted = 0, confirmed = max(ifnull(confirmed, 0), ?2) WHERE name = ?1";
        for statement in [confirm, forward] {
            transaction.execute(statement, (&binding.name, from.0.cast_signed()))?;
        }
    }
    transaction.commit()
}

/// See [`super::Store::register`].
pub(super) fn register(db: &mut Connection, source: &str, sinks: &[String]) -> Result<Vec<AbsentSink>, StoreError> {
    register_in_transaction(db, source, sinks).map_err(StoreError::write("the sinks of a source"))?;
    absent(db, source)
}

fn register_in_transaction(db: &mut Connection, source: &str, sinks: &[String]) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for sink in sinks {
        transaction.execute(
            "INSERT INTO sink (source, name, active, next_page) VALUES (?1, ?2, 1, 0) ON CONFLICT DO NOTHING",
            [source, sink],
        )?;
    }
    bring_forward(&transaction, source, sinks)?;
    transaction.execute("UPDATE sink SET active = 0 WHERE source = ?1", [source])?;
    for sink in sinks {
        transaction.execute("UPDATE sink SET active = 1 WHERE source = ?1 AND name = ?2", [source, sink])?;
    }
    transaction.commit()
}

/// While a sink was absent the slot went on with the others. It takes up where the source is, as a new one would.
fn bring_forward(db: &Transaction<'_>, source: &str, sinks: &[String]) -> rusqlite::Result<()> {
    let confirmed: Option<Option<i64>> =
        db.query_row("SELECT confirmed FROM source WHERE name = ?1", [source], |row| row.get(0)).optional()?;
    let Some(confirmed) = confirmed.flatten() else { return Ok(()) };
    for sink in sinks {
        let moved = db.execute(
            "UPDATE sink SET resolved = ?3 WHERE source = ?1 AND name = ?2 AND NOT active AND resolved < ?3",
            (source, sink, confirmed),
        )?;
        if moved > 0 {
            info!(source, sink, from = %lsn_of(confirmed), "a sink that was absent from the config is back");
        }
    }
    Ok(())
}

fn absent(db: &Connection, source: &str) -> Result<Vec<AbsentSink>, StoreError> {
    let select = || -> rusqlite::Result<Vec<(SinkKey, String)>> {
        let mut select = db.prepare("SELECT key, name FROM sink WHERE source = ?1 AND NOT active ORDER BY name")?;
        select.query_map([source], |row| Ok((SinkKey(row.get(0)?), row.get(1)?)))?.collect()
    };
    let mut names = select().map_err(StoreError::read("absent sinks"))?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let held = holdings(db)?;
    names.sort_by(|one, other| one.1.cmp(&other.1));
    Ok(names
        .into_iter()
        .filter_map(|(key, name)| held.get(&key).map(|holds| AbsentSink { name, holds: *holds }))
        .filter(|sink| !sink.holds.is_empty())
        .collect())
}

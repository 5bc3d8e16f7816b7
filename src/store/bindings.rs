//! Which databases and sinks the store is of.

use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, named_params};
use tracing::warn;

use super::apply::lsn_of;
use super::batch::SinkKey;
use super::error::StoreError;
use super::holdings::{Holdings, holdings};
use super::seals;
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
    /// Its source, which the config may not have either.
    pub source: String,
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
        seals::seal_sinks(&transaction, &binding.name)?;
    }
    seals::seal_source(&transaction, &binding.name)?;
    transaction.commit()
}

/// See [`super::Store::register`].
pub(super) fn register(db: &mut Connection, source: &str, sinks: &[String]) -> Result<Vec<AbsentSink>, StoreError> {
    register_in_transaction(db, source, sinks).map_err(StoreError::write("the sinks of a source"))?;
    absent(db, |its| its == source)
}

/// See [`super::Store::leave_out`].
pub(super) fn leave_out(db: &mut Connection, sources: &[String]) -> Result<Vec<AbsentSink>, StoreError> {
    let is_out = |source: &str| !sources.iter().any(|known| known == source);
    leave_out_in_transaction(db, is_out).map_err(StoreError::write("the sinks of sources that are gone"))?;
    absent(db, is_out)
}

fn leave_out_in_transaction(db: &mut Connection, is_out: impl Fn(&str) -> bool) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let sources: Vec<String> = transaction
        .prepare("SELECT DISTINCT source FROM sink WHERE active")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for source in sources.iter().filter(|source| is_out(source)) {
        transaction.execute("UPDATE sink SET active = 0 WHERE source = ?1", [source])?;
    }
    transaction.commit()
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
    let before = active(&transaction, source)?;
    transaction.execute("UPDATE sink SET active = 0 WHERE source = ?1", [source])?;
    for sink in sinks {
        transaction.execute("UPDATE sink SET active = 1 WHERE source = ?1 AND name = ?2", [source, sink])?;
    }
    let after = active(&transaction, source)?;
    transaction.commit()?;
    tell_of_leaving(source, &before, &after);
    Ok(())
}

/// The sinks of the config, and how far each is.
fn active(db: &Connection, source: &str) -> rusqlite::Result<Vec<(String, Option<i64>)>> {
    db.prepare("SELECT name, resolved FROM sink WHERE source = ?1 AND active")?
        .query_map([source], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

/// What a sink had only in memory, or in the WAL behind what the others have resolved, goes by when the slot goes on.
fn tell_of_leaving(source: &str, before: &[(String, Option<i64>)], after: &[(String, Option<i64>)]) {
    let Some(others) = after.iter().filter_map(|(_, resolved)| *resolved).min() else { return };
    for (sink, resolved) in before.iter().filter(|(name, _)| !after.iter().any(|(stays, _)| stays == name)) {
        let Some(resolved) = resolved.filter(|resolved| *resolved < others) else { continue };
        warn!(
            source, sink, from = %lsn_of(resolved), to = %lsn_of(others),
            "a sink left the config that is behind the others: its changes between these positions that the store does not \
             hold will not be delivered, for the slot goes on"
        );
    }
}

/// While a sink was absent the slot went on with the others. It takes up where the source is, as a new one would.
fn bring_forward(db: &Transaction<'_>, source: &str, sinks: &[String]) -> rusqlite::Result<()> {
    let confirmed: Option<Option<i64>> =
        db.query_row("SELECT confirmed FROM source WHERE name = ?1", [source], |row| row.get(0)).optional()?;
    let Some(confirmed) = confirmed.flatten() else { return Ok(()) };
    for sink in sinks {
        let behind: Option<i64> = db
            .query_row(
                "SELECT resolved FROM sink WHERE source = ?1 AND name = ?2 AND NOT active AND resolved < ?3",
                (source, sink, confirmed),
                |row| row.get(0),
            )
            .optional()?;
        let Some(from) = behind else { continue };
        db.execute("UPDATE sink SET resolved = ?3 WHERE source = ?1 AND name = ?2", (source, sink, confirmed))?;
        seals::seal_sinks(db, source)?;
        warn!(
            source, sink, from = %lsn_of(from), to = %lsn_of(confirmed),
            "a sink is back that was absent from the config: of the changes between these positions it gets only what the \
             store holds"
        );
    }
    Ok(())
}

/// The absent sinks of these sources that still hold something.
fn absent(db: &Connection, of: impl Fn(&str) -> bool) -> Result<Vec<AbsentSink>, StoreError> {
    let select = || -> rusqlite::Result<Vec<(SinkKey, AbsentSink)>> {
        let mut select =
            db.prepare("SELECT key, source, name FROM sink WHERE source <> '' AND NOT active ORDER BY source, name")?;
        let sink = |row: &Row<'_>| {
            let holds = Holdings::default();
            Ok((SinkKey(row.get(0)?), AbsentSink { source: row.get(1)?, name: row.get(2)?, holds }))
        };
        select.query_map([], sink)?.collect()
    };
    let mut sinks = select().map_err(StoreError::read("absent sinks"))?;
    sinks.retain(|(_, sink)| of(&sink.source));
    if sinks.is_empty() {
        return Ok(Vec::new());
    }
    let held = holdings(db)?;
    let holding = |(key, sink)| held.get(&key).map(|holds| AbsentSink { holds: *holds, ..sink });
    Ok(sinks.into_iter().filter_map(holding).filter(|sink| !sink.holds.is_empty()).collect())
}

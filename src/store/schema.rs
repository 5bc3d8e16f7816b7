//! The tables of both databases, version by version.
//!
//! `PRAGMA user_version` says which steps a file has been through, `PRAGMA application_id` that it is ours. Each step is one
//! transaction. LSNs, numbers and hashes of 64 bits are stored as SQLite's signed ones with the same bits; Postgres is far
//! from the LSN at which their order would break. Times are microseconds since 1970-01-01 UTC.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::error::StoreError;
use super::seals;
use crate::failpoint;

/// A database of the store.
#[derive(Debug)]
pub(super) struct Schema {
    /// `application_id`.
    pub(super) application: i64,
    /// The statements that bring a file from the version that is their index to the next.
    pub(super) steps: &'static [&'static str],
    /// What SQL cannot do of the step to a version, in the same transaction.
    pub(super) finish: fn(&Connection, i64) -> rusqlite::Result<()>,
}

/// `state.db`.
pub(super) const STATE: Schema = Schema {
    application: 0x7761_6C68,
    steps: &[STATE_1, STATE_2, STATE_3, STATE_4, STATE_5, STATE_6, STATE_7, STATE_8, STATE_9, STATE_10],
    finish: |db, version| if version == SEALS_FROM { seals::seal_all(db) } else { Ok(()) },
};

/// `log.db`.
pub(super) const LOG: Schema = Schema { application: 0x7761_6C6C, steps: &[LOG_1], finish: |_, _| Ok(()) };

/// Deliveries are kept apart from their members and body, and pages from their messages, so that a failed attempt or a
/// message that leaves does not write these anew.
const STATE_1: &str = "
    CREATE TABLE source (
        name TEXT PRIMARY KEY,
        system_id TEXT NOT NULL,          -- as IDENTIFY_SYSTEM has it, decimal
        database TEXT NOT NULL,
        slot TEXT NOT NULL,
        gap_accepted INTEGER NOT NULL     -- 0 no, 1 by a person, 2 by on_slot_lost
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE sink (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        source TEXT NOT NULL,
        name TEXT NOT NULL,
        active INTEGER NOT NULL,          -- the config has it
        resolved INTEGER,                 -- LSN; NULL: no progress yet
        high_lsn INTEGER,
        high_idx INTEGER,
        unresolved BLOB,                  -- positions before high, see encoding
        next_page INTEGER NOT NULL,       -- number of the next page of its overflow
        paused TEXT,                      -- why
        UNIQUE (source, name)
    ) STRICT;

    CREATE TABLE delivery (
        key INTEGER PRIMARY KEY,
        sink INTEGER NOT NULL,
        id BLOB NOT NULL,                 -- 16 bytes
        state INTEGER NOT NULL,           -- 0 retrying, 1 blocked, 2 dead
        parent BLOB,
        created INTEGER NOT NULL,
        body_bytes INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        failures INTEGER NOT NULL,
        first_attempt INTEGER,
        next_attempt INTEGER,
        last_at INTEGER,
        last_status INTEGER,
        last_category TEXT,
        last_message TEXT,
        dead_at INTEGER,
        dead_reason TEXT,
        expires_at INTEGER,
        UNIQUE (id, sink)
    ) STRICT;
    CREATE INDEX delivery_expires ON delivery (expires_at) WHERE state = 2;

    CREATE TABLE delivery_content (
        delivery INTEGER PRIMARY KEY,
        members BLOB NOT NULL,            -- sealed, see encoding
        body BLOB NOT NULL                -- sealed
    ) STRICT;

    CREATE TABLE lane (
        sink INTEGER NOT NULL,
        lsn INTEGER NOT NULL,
        idx INTEGER NOT NULL,
        grp INTEGER NOT NULL,
        grp2 INTEGER,                     -- a message of two groups has two rows in lane_group
        message BLOB NOT NULL,            -- sealed
        PRIMARY KEY (sink, lsn, idx)
    ) STRICT;

    CREATE TABLE lane_group (
        sink INTEGER NOT NULL,
        grp INTEGER NOT NULL,
        lsn INTEGER NOT NULL,
        idx INTEGER NOT NULL,
        PRIMARY KEY (sink, grp, lsn, idx)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE page (
        key INTEGER PRIMARY KEY,
        sink INTEGER NOT NULL,
        no INTEGER NOT NULL,
        messages INTEGER NOT NULL,
        gone INTEGER NOT NULL,            -- how many of them have left
        gone_bits BLOB NOT NULL,          -- which: bit n of byte n / 8
        bytes INTEGER NOT NULL,           -- of its JSON, before packing
        oldest INTEGER NOT NULL,          -- commit time of its first message
        UNIQUE (sink, no)
    ) STRICT;

    CREATE TABLE page_content (
        page INTEGER PRIMARY KEY,
        messages BLOB NOT NULL            -- sealed
    ) STRICT;
";

/// NULL: bound before timelines were kept.
const STATE_2: &str = "
    ALTER TABLE source ADD COLUMN timeline INTEGER;
";

/// `confirmed` outlives the sinks it was taken from.
const STATE_3: &str = "
    ALTER TABLE source ADD COLUMN confirmed INTEGER;  -- LSN; the slot is never confirmed beyond
    UPDATE source SET confirmed = (SELECT min(resolved) FROM sink WHERE sink.source = source.name AND active);
";

/// NULL: kept before rules were.
const STATE_4: &str = "
    ALTER TABLE sink ADD COLUMN grouping TEXT;
";

/// Changes that were never read, because the slot was lost.
const STATE_5: &str = "
    CREATE TABLE source_gap (
        source TEXT NOT NULL,
        from_lsn INTEGER,                 -- NULL: not known
        to_lsn INTEGER NOT NULL,
        at INTEGER NOT NULL,
        why TEXT NOT NULL,
        PRIMARY KEY (source, to_lsn)
    ) STRICT, WITHOUT ROWID;
";

/// What is NULL or 0 was kept before tables and barriers were.
const STATE_6: &str = "
    ALTER TABLE lane ADD COLUMN scope INTEGER NOT NULL DEFAULT 0;  -- hash of the table's name; 0: not known
    ALTER TABLE lane ADD COLUMN barrier INTEGER;  -- NULL: none; 0: of its own table; else the scope of another one too
    CREATE INDEX lane_unknown ON lane (sink) WHERE scope = 0;
    CREATE INDEX lane_barrier ON lane (sink, lsn, idx) WHERE barrier IS NOT NULL;
    ALTER TABLE lane_group ADD COLUMN scope INTEGER;  -- where the message counts: one row of those that have a group

    CREATE TABLE grouped (
        sink INTEGER NOT NULL,
        oid INTEGER NOT NULL,
        since_lsn INTEGER NOT NULL,       -- the first change that was grouped so
        since_idx INTEGER NOT NULL,
        scope INTEGER NOT NULL,           -- hash of the table's name then
        rule TEXT NOT NULL,
        barrier INTEGER,                  -- what that change was, as in lane
        PRIMARY KEY (sink, oid, since_lsn, since_idx)
    ) STRICT, WITHOUT ROWID;
";

/// What is not captured of single tables, and what the sinks of a source asked for when it was last prepared.
const STATE_7: &str = "
    CREATE TABLE source_note (
        source TEXT NOT NULL,
        kind TEXT NOT NULL,
        table_schema TEXT NOT NULL,
        table_name TEXT NOT NULL,
        other_schema TEXT NOT NULL,       -- a second table that it speaks of; empty: none
        other_name TEXT NOT NULL,
        at INTEGER NOT NULL,
        from_lsn INTEGER,
        to_lsn INTEGER,
        accepted INTEGER NOT NULL,
        PRIMARY KEY (source, kind, table_schema, table_name, other_schema, other_name)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE source_watch (
        source TEXT PRIMARY KEY,
        patterns TEXT NOT NULL            -- a JSON array
    ) STRICT, WITHOUT ROWID;
";

/// Which relation a note speaks of, whatever its name.
const STATE_8: &str = "ALTER TABLE source_note ADD COLUMN oid INTEGER;";

/// Seals of what decides which changes are passed over, what the marker beside the file calls it, and a clock that does not jump.
const STATE_9: &str = "
    ALTER TABLE source ADD COLUMN seal INTEGER;
    ALTER TABLE sink ADD COLUMN seal INTEGER;     -- of how far it is; NULL: it has never told
    ALTER TABLE grouped ADD COLUMN seal INTEGER;

    CREATE TABLE store_id (
        id BLOB NOT NULL                  -- 16 bytes, in one row
    ) STRICT;

    CREATE TABLE running (
        micros INTEGER NOT NULL           -- what the clock says that retention goes by, in one row
    ) STRICT;
";
const SEALS_FROM: i64 = 9;

/// Servers that were not where they should be by their own word.
const STATE_10: &str = "
    CREATE TABLE source_went_back (
        source TEXT PRIMARY KEY,
        seen INTEGER NOT NULL,            -- LSN; all that was read lies before
        end_lsn INTEGER NOT NULL          -- of the server, when it was found
    ) STRICT, WITHOUT ROWID;
";

const LOG_1: &str = "
    CREATE TABLE delivery (
        seq INTEGER PRIMARY KEY,
        id BLOB NOT NULL,                 -- 16 bytes
        sink TEXT NOT NULL,
        parent BLOB,
        state TEXT NOT NULL,              -- delivered, dead, split
        messages INTEGER NOT NULL,
        events TEXT NOT NULL,             -- a JSON array
        groups TEXT NOT NULL,             -- a JSON array
        first_lsn INTEGER NOT NULL,
        first_idx INTEGER NOT NULL,
        last_lsn INTEGER NOT NULL,
        last_idx INTEGER NOT NULL,
        body_bytes INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        created INTEGER NOT NULL,
        finished INTEGER NOT NULL,
        last_status INTEGER
    ) STRICT;
    CREATE INDEX delivery_of_id ON delivery (id);

    CREATE TABLE attempt (
        seq INTEGER PRIMARY KEY,
        delivery BLOB NOT NULL,           -- its id
        sink TEXT NOT NULL,
        number INTEGER NOT NULL,
        started INTEGER NOT NULL,
        duration INTEGER NOT NULL,        -- microseconds
        status INTEGER,
        category TEXT,                    -- NULL: acknowledged
        error TEXT,
        response BLOB,
        response_truncated INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX attempt_of_delivery ON attempt (delivery, number);
";

/// Checks that the file is ours and of a version that is known, and brings it to the newest.
pub(super) fn migrate(db: &mut Connection, path: &Path, schema: &Schema) -> Result<(), StoreError> {
    let version = checked_version(db, path, schema)?;
    for (step, version) in schema.steps.iter().zip(1..).skip(usize::try_from(version).unwrap_or(usize::MAX)) {
        let migrated = migrate_to(db, schema, step, version);
        migrated.map_err(|source| StoreError::Migrate { path: path.to_owned(), version, source })?;
    }
    Ok(())
}

/// The file's version; 0 for an empty one.
pub(super) fn checked_version(db: &Connection, path: &Path, schema: &Schema) -> Result<i64, StoreError> {
    let (application, found, tables) =
        identity(db).map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
    let known = i64::try_from(schema.steps.len()).unwrap_or(i64::MAX);
    match application == schema.application {
        true if found > known => Err(StoreError::Newer { path: path.to_owned(), found, known }),
        true if found >= 0 => Ok(found),
        false if application == 0 && found == 0 && tables == 0 => Ok(0),
        true | false => Err(StoreError::Foreign { path: path.to_owned() }),
    }
}

fn identity(db: &Connection) -> rusqlite::Result<(i64, i64, i64)> {
    Ok((
        db.pragma_query_value(None, "application_id", |row| row.get(0))?,
        db.pragma_query_value(None, "user_version", |row| row.get(0))?,
        db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?,
    ))
}

fn migrate_to(db: &mut Connection, schema: &Schema, step: &str, version: i64) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(step)?;
    (schema.finish)(&transaction, version)?;
    failpoint::hit("store.in_migration");
    transaction.pragma_update(None, "application_id", schema.application)?;
    transaction.pragma_update(None, "user_version", version)?;
    transaction.commit()
}

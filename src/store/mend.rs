//! What `walhook state` does with the files: show, forget, accept a gap or a loss, drop a message, resume.
//!
//! Showing reads only, and works beside a running daemon. The others take the lock, so no daemon may run.

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use rusqlite::{Connection, Row, TransactionBehavior};

use super::apply::{BLOCKED, RETRYING, lsn_of};
use super::batch::SinkKey;
use super::dropping;
pub use super::dropping::Dropped;
use super::error::StoreError;
use super::files::{self, DirectoryLock, Paths};
use super::gaps::{self, Gap};
use super::grouping;
use super::holdings::{Holdings, holdings};
use super::ledger::Ledger;
use super::loading::{AcceptedBy, SourceBinding, binding};
use super::marker;
use super::notes::{self, Note, NoteKind};
use super::quota::{Budget, disk};
use super::schema::{STATE, checked_version};
use super::seals::{self, BrokenRow};
use super::sweep;
use crate::change::Lsn;
use crate::config::StateConfig;

/// What is in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateSummary {
    /// Its sources by name.
    pub sources: Vec<(String, SourceBinding)>,
    /// Changes of theirs that were never read, the newest first, by the name of the source.
    pub gaps: Vec<(String, Vec<Gap>)>,
    /// What is noted of single tables of theirs, by the name of the source.
    pub notes: Vec<(String, Vec<Note>)>,
    /// Its sinks, by source and name.
    pub sinks: Vec<SinkSummary>,
    /// What is not what was written, so that nothing would be read.
    pub damage: Vec<String>,
    /// Bytes of its files.
    pub used_bytes: u64,
    /// `state.max_bytes`.
    pub max_bytes: u64,
}

/// A sink in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkSummary {
    /// Its source.
    pub source: String,
    /// Its name.
    pub name: String,
    /// The config had it when a daemon started the last time.
    pub active: bool,
    /// Everything up to here is resolved; `None`: it has never got anything.
    pub resolved: Option<Lsn>,
    /// Why it is paused, if `retry.on_exhausted = "pause_sink"` did that.
    pub paused: Option<String>,
    /// What the store holds for it.
    pub holds: Holdings,
}

/// Reads what is in the store, beside a daemon or without one. Blocks.
///
/// # Errors
/// When there is no store, or it cannot be read.
pub fn open_to_show(config: &StateConfig) -> Result<StateSummary, StoreError> {
    let paths = Paths::of(&config.path);
    paths.require()?;
    let db = files::open_to_read(&paths.state, &STATE).map_err(|error| error.of_ruin(paths.marker.exists()))?;
    require_tables(&db, &paths)?;
    let view = db.unchecked_transaction().map_err(StoreError::read("state.db"))?;
    let (mut sources, mut gaps, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    for name in names(&view).map_err(StoreError::read("the sources"))? {
        if let Some(binding) = binding(&view, &name)? {
            gaps.push((name.clone(), gaps::read(&view, &name)?));
            notes.push((name.clone(), notes::read(&view, &name)?));
            sources.push((name, binding));
        }
    }
    let sinks = sinks(&view, None)?.into_iter().map(|(_, sink)| sink).collect();
    let damage = seals::broken(&view).map_err(StoreError::read("the seals"))?.iter().map(BrokenRow::what).collect();
    Ok(StateSummary { sources, gaps, notes, sinks, damage, used_bytes: paths.all_bytes(), max_bytes: config.max_bytes })
}

/// Of these sinks, each with its source and the rule that it groups by, those that a start would refuse because messages wait that
/// were grouped by another; looks only.
///
/// # Errors
/// When there is no store, or it cannot be read.
pub fn regrouped(
    config: &StateConfig,
    sinks: &[(&str, &str, String)],
) -> Result<Vec<(String, StoreError)>, StoreError> {
    let paths = Paths::of(&config.path);
    paths.require()?;
    let db = files::open_to_read(&paths.state, &STATE)?;
    require_tables(&db, &paths)?;
    let refusal = |(source, sink, rule): &(&str, &str, String)| {
        grouping::refusal(&db, source, sink, rule).map(|refusal| Some(((*sink).to_owned(), refusal?))).transpose()
    };
    sinks.iter().filter_map(refusal).collect()
}

/// A file that a daemon made and could not fill is no store yet, and one of an earlier version is brought to this one by
/// whoever may write it.
fn require_tables(db: &Connection, paths: &Paths) -> Result<(), StoreError> {
    let known = i64::try_from(STATE.steps.len()).unwrap_or(i64::MAX);
    match checked_version(db, &paths.state, &STATE)? {
        0 => Err(paths.absent("empty")),
        found if found < known => Err(StoreError::Older { path: paths.state.clone(), found, known }),
        _ => Ok(()),
    }
}

fn names(db: &Connection) -> rusqlite::Result<Vec<String>> {
    db.prepare("SELECT name FROM source ORDER BY name")?.query_map([], |row| row.get(0))?.collect()
}

fn sinks(db: &Connection, name: Option<&str>) -> Result<Vec<(SinkKey, SinkSummary)>, StoreError> {
    let select = || -> rusqlite::Result<Vec<(SinkKey, SinkSummary)>> {
        db.prepare(
            "SELECT key, source, name, active, resolved, paused FROM sink
             WHERE source <> '' AND name = ifnull(?1, name) ORDER BY source, name",
        )?
        .query_map([name], sink)?
        .collect()
    };
    let mut sinks = select().map_err(StoreError::read("the sinks"))?;
    let held = holdings(db)?;
    for (key, sink) in &mut sinks {
        sink.holds = held.get(key).copied().unwrap_or_default();
    }
    Ok(sinks)
}

fn sink(row: &Row<'_>) -> rusqlite::Result<(SinkKey, SinkSummary)> {
    let summary = SinkSummary {
        source: row.get(1)?,
        name: row.get(2)?,
        active: row.get(3)?,
        resolved: row.get::<_, Option<i64>>(4)?.map(lsn_of),
        paused: row.get(5)?,
        holds: Holdings::default(),
    };
    Ok((SinkKey(row.get(0)?), summary))
}

/// Forgets a sink and everything that the store holds for it: what it had not delivered is gone for ever. The answer is
/// what it was. The source may be left out where only one has a sink of that name. Blocks.
///
/// # Errors
/// When the store knows no such sink or several, a daemon runs, or it cannot be written.
pub fn forget(config: &StateConfig, source: Option<&str>, sink: &str) -> Result<SinkSummary, StoreError> {
    let mut files = Files::open_anyway(config)?;
    let (key, found) = only(sinks(files.ledger.db(), Some(sink))?, source, sink)?;
    let failed = StoreError::write("that a sink is forgotten");
    sweep::forget(files.ledger.db(), key.0).map_err(&failed)?;
    while sweep::forgotten(files.ledger.db()).map_err(&failed)? {
        files.ledger.keep_wal_short().map_err(&failed)?;
    }
    while files.ledger.shrink().map_err(&failed)? {}
    files.close()?;
    Ok(found)
}

/// The one that is meant of the sinks of a name.
fn only(
    mut found: Vec<(SinkKey, SinkSummary)>,
    source: Option<&str>,
    name: &str,
) -> Result<(SinkKey, SinkSummary), StoreError> {
    found.retain(|(_, sink)| source.is_none_or(|source| sink.source == source));
    if found.len() > 1 {
        let sources: Vec<&str> = found.iter().map(|(_, sink)| sink.source.as_str()).collect();
        return Err(StoreError::SeveralSinks { name: name.to_owned(), sources: sources.join(", ") });
    }
    found.pop().ok_or_else(|| StoreError::UnknownSink { name: name.to_owned() })
}

/// Notes that what lies between the store's progress and the slot of a source may be missing. The next daemon goes on from
/// the slot. Blocks.
///
/// # Errors
/// When the store knows no such source, a daemon runs, or it cannot be written.
pub fn accept_gap(config: &StateConfig, source: &str) -> Result<(), StoreError> {
    let mut files = Files::open(config)?;
    let db = files.ledger.db();
    if binding(db, source)?.is_none() {
        return Err(StoreError::UnknownSource { name: source.to_owned() });
    }
    gaps::accept(db, source, Some(AcceptedBy::Person))?;
    files.close()
}

/// Notes that a person knows of the gap of a table, whose note goes. Blocks.
///
/// # Errors
/// When nothing of the sort is noted, the table is still published, a daemon runs, or it cannot be written.
pub fn accept_table_gap(config: &StateConfig, source: &str, table: &str) -> Result<Vec<Note>, StoreError> {
    accept_notes(config, Some(source), table, |kind| kind == NoteKind::Identity)
}

/// Notes that a person knows of everything else that is not captured of a table, or of one that belongs to it. The source may
/// be left out. Blocks.
///
/// # Errors
/// When nothing of the sort is noted, a daemon runs, or it cannot be written.
pub fn accept_missed(config: &StateConfig, source: Option<&str>, table: &str) -> Result<Vec<Note>, StoreError> {
    accept_notes(config, source, table, |kind| kind != NoteKind::Identity)
}

fn accept_notes(
    config: &StateConfig,
    source: Option<&str>,
    table: &str,
    of: impl Fn(NoteKind) -> bool,
) -> Result<Vec<Note>, StoreError> {
    let mut files = Files::open(config)?;
    let db = files.ledger.db();
    let sources = match source {
        Some(source) => vec![source.to_owned()],
        None => names(db).map_err(StoreError::read("the sources"))?,
    };
    let mut accepted = Vec::new();
    for source in &sources {
        for note in notes::read(db, source)?.into_iter().filter(|note| of(note.key.kind) && note.key.names(table)) {
            // What is accepted of an open gap is that nobody waits for its end: the table may never come back.
            if note.key.kind == NoteKind::Identity && note.from.is_none() {
                return Err(StoreError::NoGap { name: table.to_owned() });
            }
            match note.key.kind.is_standing() {
                true => notes::put(db, source, &Note { is_accepted: true, ..note.clone() })?,
                false => notes::remove(db, source, &note.key)?,
            }
            accepted.push(note);
        }
    }
    files.close()?;
    if accepted.is_empty() { Err(StoreError::UnknownNote { name: table.to_owned() }) } else { Ok(accepted) }
}

/// Drops one message, which is not delivered then: `id` is what `/readyz` and the log call it. Blocks.
///
/// # Errors
/// When the store has no such message or has it among others of a delivery, a daemon runs, or it cannot be written.
pub fn drop_message(config: &StateConfig, id: &str) -> Result<Dropped, StoreError> {
    let mut files = Files::open_anyway(config)?;
    let known = sinks(files.ledger.db(), None)?;
    let known: Vec<_> = known.into_iter().map(|(key, sink)| (key, sink.source, sink.name)).collect();
    let dropped = dropping::drop_message(files.ledger.db(), &known, id)?;
    files.close()?;
    Ok(dropped)
}

/// What [`accept_loss`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// There is nothing to be accepted.
    Nothing,
    /// The store is gone, or was damaged as a whole and is called so from here on: the next start makes a new one.
    SetAside(Option<PathBuf>),
    /// These rows are forgotten.
    Forgotten {
        /// What they were.
        rows: Vec<String>,
        /// Positions are among them: the next start goes on from the slot's there.
        moves: bool,
    },
    /// The store that is there is the store from here on.
    Adopted,
}

/// Accepts that what a damaged store held is lost: it is set aside, or what is damaged of it is forgotten. Blocks.
///
/// # Errors
/// When there never was a store, a daemon runs, or it cannot be read or written.
pub fn accept_loss(config: &StateConfig) -> Result<Accepted, StoreError> {
    let paths = Paths::of(&config.path);
    if !paths.state.exists() && !paths.marker.exists() {
        return Err(StoreError::Missing { path: paths.directory });
    }
    let lock = paths.lock()?;
    let budget = Budget::new(config.max_bytes, u64::MAX);
    let opened = files::open_state(&paths, &budget).and_then(|db| files::require_whole(&db, &paths.state));
    match opened.map_err(|error| error.of_ruin_in(&paths.state)) {
        Ok(()) => Ok(Accepted::Nothing),
        Err(StoreError::Tampered { .. }) => {
            let mut db = files::open_state_anyway(&paths, &budget)?;
            forget_broken(&mut db)
        }
        Err(StoreError::Another { .. }) => {
            let db = files::open_to_read(&paths.state, &STATE)?;
            let id = files::identity(&db).map_err(StoreError::read("the identity of the store"))?;
            drop(db);
            let failed = |source| StoreError::File { path: paths.marker.clone(), source };
            id.map_or(Ok(()), |id| marker::write(&paths.marker, id)).map_err(failed)?;
            Ok(Accepted::Adopted)
        }
        Err(StoreError::Lost { .. } | StoreError::Ruined { .. }) => {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let end = format!(".damaged-{}", since.as_secs());
            let aside = paths.state.exists().then(|| files::set_aside(&paths.state, &end)).transpose()?;
            match std::fs::remove_file(&paths.marker) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::File { path: paths.marker, source });
                }
                Ok(()) | Err(_) => {}
            }
            drop(lock);
            Ok(Accepted::SetAside(aside))
        }
        Err(error) => Err(error),
    }
}

fn forget_broken(db: &mut Connection) -> Result<Accepted, StoreError> {
    let failed = StoreError::write("that what is damaged is forgotten");
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
    let broken = seals::broken(&transaction).map_err(StoreError::read("the seals"))?;
    seals::forget(&transaction, &broken).map_err(&failed)?;
    transaction.commit().map_err(failed)?;
    let moves = broken.iter().any(|row| !matches!(row, BrokenRow::Grouped { .. }));
    Ok(Accepted::Forgotten { rows: broken.iter().map(BrokenRow::what).collect(), moves })
}

/// What [`resume`] changed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Resumed {
    /// Why the sink was paused, if it was.
    pub paused: Option<String>,
    /// Deliveries that were blocked.
    pub unblocked: usize,
}

/// Ends the pause of a sink, and lets its blocked deliveries be tried once more. The source may be left out where only one
/// has a sink of that name. Blocks.
///
/// # Errors
/// When the store knows no such sink or several, a daemon runs, or it cannot be written.
pub fn resume(config: &StateConfig, source: Option<&str>, sink: &str) -> Result<Resumed, StoreError> {
    let mut files = Files::open(config)?;
    let (key, found) = only(sinks(files.ledger.db(), Some(sink))?, source, sink)?;
    let failed = StoreError::write("that a sink goes on");
    let db = files.ledger.db();
    // Blocked first: a pause that stays can be ended again.
    let freed = "UPDATE delivery SET state = ?2, next_attempt = NULL WHERE sink = ?1 AND state = ?3";
    let unblocked = db.execute(freed, (key.0, RETRYING, BLOCKED)).map_err(&failed)?;
    db.execute("UPDATE sink SET paused = NULL WHERE key = ?1", [key.0]).map_err(&failed)?;
    files.close()?;
    Ok(Resumed { paused: found.paused, unblocked })
}

/// The files of a store that exists, locked.
struct Files {
    ledger: Ledger,
    _lock: DirectoryLock,
}

impl Files {
    fn open(config: &StateConfig) -> Result<Self, StoreError> {
        Self::open_by(config, files::open_state)
    }

    /// Whatever the seals say: for what neither trusts them nor seals anything anew.
    fn open_anyway(config: &StateConfig) -> Result<Self, StoreError> {
        Self::open_by(config, files::open_state_anyway)
    }

    fn open_by(
        config: &StateConfig,
        open: impl FnOnce(&Paths, &Budget) -> Result<Connection, StoreError>,
    ) -> Result<Self, StoreError> {
        let paths = Paths::of(&config.path);
        paths.require()?;
        let lock = paths.lock()?;
        let disk_bytes = disk(&paths.directory).map_or(u64::MAX, |(all, _)| all);
        let budget = Budget::new(config.max_bytes, disk_bytes);
        let db = open(&paths, &budget)?;
        let ledger = Ledger::new(db, config.dead_letter_retention, paths, budget);
        let ledger = ledger.map_err(StoreError::write("the time that walhook has run"))?;
        Ok(Self { ledger, _lock: lock })
    }

    fn close(mut self) -> Result<(), StoreError> {
        self.ledger.checkpoint().map_err(StoreError::write("state.db"))
    }
}

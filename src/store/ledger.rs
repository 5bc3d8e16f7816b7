//! `state.db` in the writer's hands: transactions, the length of the WAL, what has expired, what is free.

use std::time::{Duration, Instant, SystemTime};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use tracing::{info, warn};

use super::apply::{self, Keeping, Refusal};
use super::batch::{Batch, Home, Op};
use super::error::is_lasting_sqlite;
use super::files::{self, BUSY_LIMIT, Paths};
use super::health::{disk_trouble, lasting_trouble, quota_trouble};
use super::pages::Pages;
use super::quota::{self, Budget, PAGE_BYTES, Usage};
use super::running::RunningClock;
use super::sweep::{self, Gone};
use crate::deliver::frozen::DeliveryId;
use crate::failpoint;
use crate::view::Trouble;

/// Free pages given back to the system in one step at most. Fewer stay for what comes.
const FREED_MAX: u64 = 256;
/// How often it is written what the running clock says.
const CLOCK_KEPT_EVERY: Duration = Duration::from_secs(600);
/// A disk with less than this is called full.
const DISK_FULL_BYTES: u64 = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Ledger {
    db: Connection,
    pages: Pages,
    retention: Duration,
    clock: RunningClock,
    clock_kept_at: Instant,
    paths: Paths,
    budget: Budget,
    /// The WAL is to be emptied when it is longer.
    wal_mark: u64,
    /// It is longer than its part of the budget, and that was said.
    wal_is_beyond: bool,
}

/// What became of each batch of a transaction.
pub(super) type Written = Vec<Result<(), Refusal>>;

impl Ledger {
    /// `retention`: how long dead letters are kept.
    pub(super) fn new(db: Connection, retention: Duration, paths: Paths, budget: Budget) -> rusqlite::Result<Self> {
        let wal_mark = budget.wal_bytes;
        let now = Instant::now();
        let clock = RunningClock::resume(&db, SystemTime::now(), now)?;
        let (pages, wal_is_beyond) = (Pages::default(), false);
        Ok(Self { db, pages, retention, clock, clock_kept_at: now, paths, budget, wal_mark, wal_is_beyond })
    }

    pub(super) fn db(&mut self) -> &mut Connection {
        &mut self.db
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Writes batches in one transaction. When it returns they are on the disk; after an error nothing of them is.
    pub(super) fn commit<'a>(&mut self, batches: impl Iterator<Item = &'a Batch>) -> rusqlite::Result<Written> {
        let done = self.keep_wal_short().and_then(|()| self.transact(batches));
        if done.is_err() {
            self.pages.forget();
        }
        done
    }

    fn transact<'a>(&mut self, batches: impl Iterator<Item = &'a Batch>) -> rusqlite::Result<Written> {
        let keeping = Keeping { expires_micros: self.clock.after(Instant::now(), self.retention) };
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut written = Vec::new();
        let mut has_progress = false;
        for batch in batches {
            has_progress |= batch.progress.is_some();
            let checked = apply::check(&transaction, batch)?;
            if checked.is_ok() {
                apply::apply(&transaction, &mut self.pages, &keeping, batch)?;
            }
            written.push(checked);
        }
        if has_progress {
            apply::raise_confirmed(&transaction)?;
        }
        failpoint::hit("store.before_commit");
        transaction.commit()?;
        failpoint::hit("store.after_commit");
        Ok(written)
    }

    /// Moves the WAL into the database when it has become long. While somebody reads it, that is tried again only when it
    /// has grown, and with [`Ledger::checkpoint`] from time to time: a commit waits for no reader.
    pub(super) fn keep_wal_short(&mut self) -> rusqlite::Result<()> {
        if self.paths.wal_bytes() > self.wal_mark { self.checkpoint() } else { Ok(()) }
    }

    /// Whether the WAL is longer than it should be, because somebody reads it.
    pub(super) fn wal_is_stuck(&self) -> bool {
        self.wal_mark > self.budget.wal_bytes
    }

    /// Moves the WAL into the database, as far as nobody reads it.
    pub(super) fn checkpoint(&mut self) -> rusqlite::Result<()> {
        let is_empty = files::empty_wal(&self.db, BUSY_LIMIT)?;
        let left = self.paths.wal_bytes();
        let is_stuck = !is_empty && left > self.budget.wal_bytes;
        self.wal_mark = if is_stuck { left + self.budget.wal_bytes / 4 } else { self.budget.wal_bytes };
        self.tell_of_wal(left);
        Ok(())
    }

    fn tell_of_wal(&mut self, bytes: u64) {
        let is_beyond = bytes > self.budget.wal_bytes + self.budget.slack_bytes;
        match (self.wal_is_beyond, is_beyond) {
            (false, true) => warn!(
                wal_bytes = bytes,
                "the WAL of the store grows, because another process reads state.db in one long transaction: end that process"
            ),
            (true, false) => info!(wal_bytes = bytes, "the WAL of the store is short again"),
            (false, false) | (true, true) => (),
        }
        self.wal_is_beyond = is_beyond;
    }

    /// What the files use.
    pub(super) fn usage(&self) -> Usage {
        let pages = self.page_count().and_then(|count| Ok(count.saturating_sub(self.free_pages()?)));
        let disk = quota::disk(&self.paths.directory);
        Usage {
            // A database that does not say is not full for that.
            state: pages.unwrap_or_default() * PAGE_BYTES,
            wal: self.paths.wal_bytes(),
            log: self.paths.log_bytes(),
            disk_free: disk.map(|(_, free)| free),
        }
    }

    /// In words, why a write failed.
    pub(super) fn trouble(&self, error: &rusqlite::Error) -> Trouble {
        let usage = self.usage();
        let code = error.sqlite_error_code();
        let for_room = [Some(ErrorCode::DiskFull), Some(ErrorCode::SystemIoFailure)].contains(&code);
        if for_room && usage.disk_free.is_some_and(|free| free < DISK_FULL_BYTES) {
            return disk_trouble();
        }
        if code == Some(ErrorCode::DiskFull) {
            return quota_trouble(&self.budget, &usage);
        }
        if is_lasting_sqlite(error) {
            return lasting_trouble(error);
        }
        Trouble {
            what: format!("the store cannot write: {error}"),
            advice: "look at the disk of state.path; it is tried again until it works".to_owned(),
        }
    }

    /// Removes a few rows of what goes by itself. The dead letters among them, and whether there may be more.
    pub(super) fn sweep(&mut self, now: Instant) -> rusqlite::Result<(Vec<Gone>, bool)> {
        self.keep_wal_short()?;
        // What a crash loses of the clock keeps dead letters longer, and no write is worth it more often.
        if now.saturating_duration_since(self.clock_kept_at) >= CLOCK_KEPT_EVERY {
            self.clock.keep(&self.db, now)?;
            self.clock_kept_at = now;
        }
        let gone = sweep::expired(&mut self.db, self.clock.at(now))?;
        let more = !gone.is_empty() || sweep::forgotten(&mut self.db)?;
        Ok((gone, more))
    }

    /// Notes how long it has run.
    pub(super) fn keep_clock(&mut self) -> rusqlite::Result<()> {
        self.clock.keep(&self.db, Instant::now())
    }

    /// What the wall clock would say if it had not jumped in this life.
    pub(super) fn wall_micros(&self, now: Instant) -> i64 {
        self.clock.wall_at(now)
    }

    /// Gives free pages back to the system. True: there are more.
    pub(super) fn shrink(&mut self) -> rusqlite::Result<bool> {
        self.keep_wal_short()?;
        shrink(&self.db, self.budget.wal_bytes)
    }

    /// Whether the delivery is kept here.
    pub(super) fn keeps(&self, id: DeliveryId) -> bool {
        let known = self
            .db
            .prepare_cached("SELECT 1 FROM delivery WHERE id = ?1")
            .and_then(|mut select| select.exists([apply::id_column(id)]));
        known.unwrap_or_else(|error| {
            warn!(%error, "the store could not be asked for a delivery");
            true
        })
    }

    fn page_count(&self) -> rusqlite::Result<u64> {
        pragma_count(&self.db, "page_count")
    }

    fn free_pages(&self) -> rusqlite::Result<u64> {
        pragma_count(&self.db, "freelist_count")
    }
}

/// Gives free pages of a database back to the system, adding no more than half of `wal_bytes` to its WAL. True: there are
/// more.
pub(super) fn shrink(db: &Connection, wal_bytes: u64) -> rusqlite::Result<bool> {
    if pragma_count(db, "freelist_count")? < FREED_MAX {
        return Ok(false);
    }
    let step = FREED_MAX.min(wal_bytes / PAGE_BYTES / 2).max(1);
    db.execute_batch(&format!("PRAGMA incremental_vacuum({step})"))?;
    Ok(pragma_count(db, "freelist_count")? >= FREED_MAX)
}

/// A count that SQLite knows of a database.
pub(super) fn pragma_count(db: &Connection, name: &str) -> rusqlite::Result<u64> {
    db.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map(i64::cast_unsigned)
}

/// As times stand in the store.
pub(super) fn micros(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// About how much a batch adds to the WAL: what it holds, and a page for each row it touches.
pub(super) fn weight(batch: &Batch) -> u64 {
    let bytes: usize = batch
        .ops
        .iter()
        .map(|op| match op {
            Op::Park { delivery, body } => body.len() + delivery.members.len() * 128,
            Op::Split { parts, .. } => {
                parts.iter().map(|(part, body)| body.len() + part.members.len() * 128).sum::<usize>()
            }
            Op::Lanes(messages) => messages.iter().map(|message| message.json.len() + 4096).sum(),
            Op::Page { messages, .. } => messages.iter().map(|message| message.json.len() + 128).sum(),
            Op::Leave(homes) => homes.iter().map(leave_weight).sum(),
            Op::Tried { .. } | Op::Delivered(_) | Op::Dead { .. } | Op::Paused { .. } | Op::Grouped { .. } => 4096,
        })
        .sum();
    let unresolved = batch.progress.as_ref().map_or(0, |progress| progress.unresolved.len());
    (bytes + unresolved * 4) as u64 + 4096
}

fn leave_weight(home: &Home) -> usize {
    match home {
        Home::Lane(_) => 4096,
        Home::Page { .. } => 16,
    }
}

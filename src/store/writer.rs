//! The thread that writes: everything that waits goes into one transaction, and only then is anybody told.
//!
//! A write that fails is rolled back and tried again, for ever; what waits meanwhile stays where it is. When batches of
//! several sinks fail together each is tried alone, so that one that finds no room does not keep others from leaving.
//! The log and the upkeep of the files have their turn when no batch waits, or when they have waited for long.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use super::batch::Batch;
use super::files::DirectoryLock;
use super::health::{HealthCell, dead_trouble};
use super::inbox::{Inbox, Known, Submitted};
use super::ledger::{Ledger, weight};
use super::log::LogRow;
use super::logbook::Logbook;
use super::quota::{Shortage, shortage};
use crate::metrics::StoreMetrics;

/// First wait after a write that failed.
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// Longest wait.
const RETRY_LONGEST: Duration = Duration::from_secs(2);
/// How long a writer that is closed tries to write what it has.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// How often rows of the log are written, and how many at a time at most: more a second than this are lost, so that the
/// log never takes a core for itself.
const LOG_EVERY: Duration = Duration::from_millis(50);
const LOG_ROWS_MAX: usize = 256;
/// How often the files are tended.
const UPKEEP_EVERY: Duration = Duration::from_secs(60);
/// Under a load that never ends, they are tended a step at a time when that is due for so long, and the log is written.
const UPKEEP_OVERDUE: Duration = Duration::from_secs(10);
const LOG_OVERDUE: Duration = Duration::from_secs(1);
/// How often the room is measured when nothing is written, and when there was none.
const ROOM_EVERY: Duration = Duration::from_secs(5);
const ROOM_EVERY_WHEN_SHORT: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug)]
pub(super) struct Writer {
    inbox: Arc<Inbox>,
    health: Arc<HealthCell>,
    metrics: StoreMetrics,
    ledger: Ledger,
    logbook: Logbook,
    waiting: VecDeque<Submitted>,
    retry: Option<Retry>,
    shortage: Option<Shortage>,
    /// Rows of the log wait, and may be written from here on.
    log_at: Option<Instant>,
    upkeep_at: Instant,
    room_at: Instant,
    closed_at: Option<Instant>,
    /// Held until the thread ends.
    _lock: DirectoryLock,
}

/// Writes fail.
#[derive(Clone, Copy, Debug)]
struct Retry {
    at: Instant,
    wait: Duration,
}

impl Writer {
    pub(super) fn new(
        inbox: Arc<Inbox>,
        health: Arc<HealthCell>,
        ledger: Ledger,
        logbook: Logbook,
        lock: DirectoryLock,
    ) -> Self {
        let now = Instant::now();
        let mut writer = Self {
            inbox,
            health,
            metrics: StoreMetrics::new(),
            ledger,
            logbook,
            waiting: VecDeque::new(),
            retry: None,
            shortage: None,
            log_at: None,
            upkeep_at: now,
            room_at: now,
            closed_at: None,
            _lock: lock,
        };
        writer.measure(now);
        writer
    }

    /// Writes until the store is closed and everything is written, or cannot be.
    pub(super) fn run(mut self) {
        while !self.turn() {}
        if !self.waiting.is_empty() {
            warn!(batches = self.waiting.len(), "closed with batches that could not be written");
        }
        if let Err(error) = self.ledger.keep_clock() {
            debug!(%error, "the time that walhook has run could not be noted");
        }
        let checkpoints = [self.ledger.checkpoint(), self.logbook.checkpoint()];
        for error in checkpoints.into_iter().filter_map(Result::err) {
            warn!(%error, "the store was closed without emptying its WAL; nothing is lost by that");
        }
    }

    /// True: it was the last.
    fn turn(&mut self) -> bool {
        let known = Known { log_waits: self.log_at.is_some(), closed: self.closed_at.is_some() };
        let taken = self.inbox.take(self.next_at(), known);
        let now = Instant::now();
        let news = !taken.batches.is_empty();
        self.waiting.extend(taken.batches);
        for call in taken.calls {
            call(self.ledger.db());
        }
        if taken.log_waits && self.log_at.is_none() {
            self.log_at = Some(now + LOG_EVERY);
        }
        if taken.closed && self.closed_at.is_none() {
            self.closed_at = Some(now);
        }
        if news || self.retry.is_some_and(|retry| retry.at <= now) {
            self.write(now);
        }
        if let Some(closed) = self.closed_at {
            return self.finish(closed);
        }
        self.spare_time(now);
        false
    }

    fn next_at(&self) -> Instant {
        if let Some(closed) = self.closed_at {
            return self.retry.map_or(closed, |retry| retry.at);
        }
        let upkeep = self.upkeep_at.min(self.room_at);
        [self.retry.map(|retry| retry.at), self.log_at].into_iter().flatten().fold(upkeep, Instant::min)
    }

    /// Writes what waits, as much in one transaction as its bound allows.
    fn write(&mut self, now: Instant) {
        let mut left = std::mem::take(&mut self.waiting);
        let mut failure = None;
        while !left.is_empty() {
            let group: Vec<Submitted> = left.drain(..self.group_len(&left)).collect();
            for failed in self.write_group(group, &mut failure) {
                self.waiting.push_back(failed);
            }
        }
        match failure {
            Some(error) => self.failed(now, &error),
            None => self.recovered(),
        }
        if let Err(error) = self.ledger.keep_wal_short() {
            debug!(%error, "the WAL of the store could not be emptied");
        }
        self.measure(Instant::now());
    }

    fn group_len(&self, left: &VecDeque<Submitted>) -> usize {
        let weight_max = self.ledger.budget().slack_bytes / 2;
        let mut sum = 0u64;
        let fits = left.iter().take_while(|submitted| {
            sum = sum.saturating_add(weight(&submitted.batch));
            sum <= weight_max
        });
        fits.count().max(1)
    }

    /// Those that could not be written.
    fn write_group(&mut self, group: Vec<Submitted>, failure: &mut Option<rusqlite::Error>) -> Vec<Submitted> {
        let began = Instant::now();
        match self.ledger.commit(group.iter().map(|submitted| &submitted.batch)) {
            Ok(written) => {
                self.metrics.commit.record(began.elapsed());
                for (submitted, outcome) in group.into_iter().zip(written) {
                    tell(submitted, outcome.map_err(|refusal| refusal.to_string()));
                }
                Vec::new()
            }
            Err(error) if group.len() == 1 => {
                *failure = Some(error);
                group
            }
            Err(error) => {
                debug!(%error, batches = group.len(), "a transaction failed; its batches are tried one by one");
                group.into_iter().flat_map(|one| self.write_group(vec![one], failure)).collect()
            }
        }
    }

    fn failed(&mut self, now: Instant, error: &rusqlite::Error) {
        let trouble = self.ledger.trouble(error);
        let wait = self.retry.map_or(RETRY_FIRST, |retry| (retry.wait * 2).min(RETRY_LONGEST));
        if self.retry.is_none() {
            warn!(%error, what = trouble.what, "the store cannot write; it tries again until it can");
        }
        self.metrics.write_errors.increment(1);
        self.health.set_writing(Some(trouble));
        self.retry = Some(Retry { at: now + wait, wait });
    }

    fn recovered(&mut self) {
        if self.retry.take().is_some() {
            info!("the store writes again");
            self.health.set_writing(None);
        }
    }

    /// Measures how much is used, and says whether there is room.
    fn measure(&mut self, now: Instant) {
        let usage = self.ledger.usage();
        let short = shortage(self.ledger.budget(), &usage, self.shortage);
        if short != self.shortage {
            match short {
                Some(_) => warn!(used_bytes = usage.total(), "the store is full: sinks put nothing more in"),
                None => info!(used_bytes = usage.total(), "the store has room again"),
            }
        }
        self.shortage = short;
        self.health.set_room(self.ledger.budget(), &usage, short);
        let is_short = short.is_some() || self.retry.is_some();
        self.room_at = now + if is_short { ROOM_EVERY_WHEN_SHORT } else { ROOM_EVERY };
    }

    fn spare_time(&mut self, now: Instant) {
        if self.room_at <= now {
            if self.ledger.wal_is_stuck() {
                self.empty_wal();
            }
            self.measure(now);
        }
        let is_busy = self.inbox.is_waiting();
        if self.log_at.is_some_and(|at| is_due(at, now, LOG_OVERDUE, is_busy)) {
            self.write_log();
            // Whether more waits is known when it is looked for the next time.
            self.log_at = None;
        }
        if is_due(self.upkeep_at, now, UPKEEP_OVERDUE, self.inbox.is_waiting()) {
            let more = self.upkeep();
            self.upkeep_at = if more { now } else { now + UPKEEP_EVERY };
        }
    }

    /// At least one transaction of rows.
    fn write_log(&mut self) {
        let mut left = LOG_ROWS_MAX;
        while left > 0 {
            let rows = self.inbox.take_log(left, self.logbook.turn_bytes());
            if rows.is_empty() {
                return;
            }
            left -= rows.len();
            self.write_rows(&rows);
            if self.inbox.is_waiting() {
                return;
            }
        }
    }

    fn write_rows(&mut self, rows: &[LogRow]) {
        if self.logbook.is_choked() {
            debug!(rows = rows.len(), "rows of the log are lost: somebody reads it and its WAL grows");
            return self.health.lose_log_rows(rows.len());
        }
        let written = self.logbook.write(rows).or_else(|_| {
            // Most likely its share of the disk is used up.
            self.logbook.drop_oldest()?;
            self.logbook.write(rows)
        });
        if let Err(error) = written {
            debug!(%error, rows = rows.len(), "rows of the log are lost");
            return self.health.lose_log_rows(rows.len());
        }
        match self.trim_log() {
            Ok(true) => self.upkeep_at = Instant::now(),
            Ok(false) => (),
            Err(error) => debug!(%error, "the log could not be trimmed"),
        }
    }

    fn trim_log(&mut self) -> rusqlite::Result<bool> {
        let Self { ledger, logbook, .. } = self;
        logbook.trim(ledger.wall_micros(Instant::now()), &|id| ledger.keeps(id))
    }

    /// One step of it. True: there is more to be done now.
    fn upkeep(&mut self) -> bool {
        let swept = self.ledger.sweep(Instant::now()).map(|(gone, more)| {
            self.health.expire(&gone);
            more
        });
        let steps = [swept, self.trim_log(), self.ledger.shrink()];
        let mut more = false;
        for step in steps {
            match step {
                Ok(unfinished) => more |= unfinished,
                Err(error) => {
                    debug!(%error, "the files of the store could not be tended");
                    return false;
                }
            }
        }
        if !more {
            self.empty_wal();
            if let Err(error) = self.logbook.checkpoint() {
                debug!(%error, "the WAL of the log could not be emptied");
            }
            self.measure(Instant::now());
        }
        more
    }

    fn empty_wal(&mut self) {
        if let Err(error) = self.ledger.checkpoint() {
            debug!(%error, "the WAL of the store could not be emptied");
        }
    }

    /// Whether nothing is left to be written before it closes.
    fn finish(&mut self, closed: Instant) -> bool {
        if !self.waiting.is_empty() {
            return closed.elapsed() >= CLOSE_LIMIT;
        }
        while closed.elapsed() < CLOSE_LIMIT {
            let rows = self.inbox.take_log(LOG_ROWS_MAX, self.logbook.turn_bytes());
            if rows.is_empty() {
                break;
            }
            if self.logbook.write(&rows).is_err() {
                self.health.lose_log_rows(rows.len());
            }
        }
        true
    }
}

/// Whether it is the turn of something that gives way to batches, but not for ever.
fn is_due(at: Instant, now: Instant, overdue: Duration, is_busy: bool) -> bool {
    at <= now && (!is_busy || at + overdue <= now)
}

/// However it ends, nobody waits for it for ever.
impl Drop for Writer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.health.set_writing(Some(dead_trouble()));
        }
        let lost = self.inbox.leave();
        self.health.lose_log_rows(lost);
    }
}

/// Tells whoever waits that the batch is durable; or, by silence, that it never will be.
fn tell(Submitted { batch, done }: Submitted, outcome: Result<(), String>) {
    let Batch { sink, .. } = batch;
    match outcome {
        Ok(()) if done.send(()).is_err() => debug!(sink = sink.0, "nobody waited for a batch"),
        Ok(()) => (),
        Err(refusal) => error!(sink = sink.0, refusal, "a batch was refused: a fault of walhook, please report it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gives_way_to_batches_has_its_turn_when_it_is_overdue() {
        let at = Instant::now();
        let after = |secs| at + Duration::from_secs(secs);
        let due = |now, is_busy| is_due(after(5), now, Duration::from_secs(10), is_busy);
        assert!(!due(after(4), false));
        assert!(due(after(5), false));
        assert!(!due(after(14), true));
        assert!(due(after(15), true));
    }
}

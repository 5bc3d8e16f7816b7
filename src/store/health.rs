//! How the store is, as its writer sees it and everybody may ask.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::batch::SinkKey;
use super::error::StoreError;
use super::quota::{Budget, Shortage, Usage, until_full};
use super::sweep::Gone;
use crate::deliver::frozen::DeliveryId;
use crate::fault::chain;
use crate::view::Trouble;

/// How the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Nothing more should be put in: what is left is for progress, acknowledgements and dead marks.
    pub is_full: bool,
    /// Nothing more can be put in for now: it is full, or writes fail. What cannot be read closes nothing.
    pub is_shut: bool,
    /// Writes or reads fail, and are tried again.
    pub is_failing: bool,
    /// What is wrong: writes that fail, or no room.
    pub trouble: Option<Trouble>,
    /// Bytes in use, without those free inside the files.
    pub used_bytes: u64,
    /// Bytes of them in the WAL of `state.db`.
    pub wal_bytes: u64,
    /// `state.max_bytes`.
    pub max_bytes: u64,
    /// Bytes that can be put in before the reserve for progress and acknowledgements is touched; never more than a value in
    /// the store may have.
    pub room_bytes: u64,
    /// Bytes that can be put in before [`Health::is_full`]; 0 while it is.
    pub until_full_bytes: u64,
    /// Rows of the log that were lost because there was no time or no room to write them.
    pub log_rows_lost: u64,
}

/// Written by the writer, read by everybody.
#[derive(Debug)]
pub(super) struct HealthCell {
    max_bytes: u64,
    used_bytes: AtomicU64,
    wal_bytes: AtomicU64,
    room_bytes: AtomicU64,
    until_full_bytes: AtomicU64,
    is_full: AtomicBool,
    log_rows_lost: AtomicU64,
    troubles: Mutex<Troubles>,
    expired: Mutex<HashMap<SinkKey, Expired>>,
}

#[derive(Debug, Default)]
struct Troubles {
    writing: Option<Trouble>,
    /// By the sink, and what of it is read: that one thing can be read says nothing of another.
    reading: BTreeMap<(SinkKey, &'static str), Trouble>,
    room: Option<Trouble>,
}

/// Dead letters of a sink that went because they had expired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// All of them.
    pub letters: u64,
    /// Those that were damaged.
    pub damaged: Vec<DeliveryId>,
}

impl HealthCell {
    pub(super) fn new(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            used_bytes: AtomicU64::new(0),
            wal_bytes: AtomicU64::new(0),
            room_bytes: AtomicU64::new(0),
            until_full_bytes: AtomicU64::new(0),
            is_full: AtomicBool::new(false),
            log_rows_lost: AtomicU64::new(0),
            troubles: Mutex::default(),
            expired: Mutex::default(),
        }
    }

    /// From here on it is noted what of the sink expires: its dead letters were counted just now, on the thread that sweeps.
    pub(super) fn watch_expiry(&self, sink: SinkKey) {
        self.expired.lock().unwrap_or_else(PoisonError::into_inner).insert(sink, Expired::default());
    }

    /// These have gone. Of sinks that nobody watches nothing is noted.
    pub(super) fn expire(&self, gone: &[Gone]) {
        let mut all = self.expired.lock().unwrap_or_else(PoisonError::into_inner);
        for Gone { sink, delivery, is_damaged } in gone {
            if let Some(expired) = all.get_mut(sink) {
                expired.letters += 1;
                expired.damaged.extend(is_damaged.then_some(*delivery));
            }
        }
    }

    /// What has expired since the last call.
    pub(super) fn take_expired(&self, sink: SinkKey) -> Expired {
        let mut all = self.expired.lock().unwrap_or_else(PoisonError::into_inner);
        all.get_mut(&sink).map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn show(&self) -> Health {
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = self.is_full.load(Ordering::Acquire);
        let reading = troubles.reading.values().next();
        Health {
            is_full,
            is_shut: is_full || troubles.writing.is_some() || troubles.room.is_some(),
            is_failing: troubles.writing.is_some() || reading.is_some(),
            trouble: troubles.writing.iter().chain(reading).chain(&troubles.room).next().cloned(),
            used_bytes: self.used_bytes.load(Ordering::Relaxed),
            wal_bytes: self.wal_bytes.load(Ordering::Relaxed),
            max_bytes: self.max_bytes,
            room_bytes: self.room_bytes.load(Ordering::Relaxed),
            until_full_bytes: self.until_full_bytes.load(Ordering::Relaxed),
            log_rows_lost: self.log_rows_lost.load(Ordering::Relaxed),
        }
    }

    pub(super) fn lose_log_rows(&self, rows: usize) {
        self.log_rows_lost.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// Shows why writes fail, or that they do no longer.
    pub(super) fn set_writing(&self, trouble: Option<Trouble>) {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).writing = trouble;
    }

    /// Shows why `what` of a sink cannot be read, or that it can be again.
    pub(super) fn set_reading(&self, sink: SinkKey, what: &'static str, trouble: Option<Trouble>) {
        let reading = &mut self.troubles.lock().unwrap_or_else(PoisonError::into_inner).reading;
        match trouble {
            Some(trouble) => drop(reading.insert((sink, what), trouble)),
            None => drop(reading.remove(&(sink, what))),
        }
    }

    /// Shows how much is used and whether there is room.
    pub(super) fn set_room(&self, budget: &Budget, usage: &Usage, shortage: Option<Shortage>) {
        self.used_bytes.store(usage.total(), Ordering::Relaxed);
        self.wal_bytes.store(usage.wal, Ordering::Relaxed);
        self.room_bytes.store(room(budget, usage), Ordering::Relaxed);
        self.until_full_bytes.store(until_full(budget, usage, shortage), Ordering::Relaxed);
        let trouble = shortage.map(|shortage| room_trouble(budget, usage, shortage));
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).room = trouble;
        self.is_full.store(shortage.is_some(), Ordering::Release);
    }
}

/// SQLite takes no value of more than 1e9 bytes (`SQLITE_MAX_LENGTH`); what is put in comes with some words around it.
const ROOM_BYTES_MAX: u64 = 900_000_000;

/// The last eighth of the state's part is never for what is put in.
fn room(budget: &Budget, usage: &Usage) -> u64 {
    let state = (budget.state_bytes / 8 * 7).saturating_sub(usage.state).min(ROOM_BYTES_MAX);
    usage.disk_free.map_or(state, |free| state.min(free.saturating_sub(budget.disk_reserve / 2)))
}

fn room_trouble(budget: &Budget, usage: &Usage, shortage: Shortage) -> Trouble {
    match shortage {
        Shortage::Quota => quota_trouble(budget, usage),
        Shortage::Disk => Trouble {
            what: format!(
                "the disk of state.path is nearly full: {} are left, and the store leaves {} to others",
                size(usage.disk_free.unwrap_or_default()),
                size(budget.disk_reserve)
            ),
            advice: "free space there, or move state.path to a larger disk".to_owned(),
        },
    }
}

/// The store has used what it may.
pub(super) fn quota_trouble(budget: &Budget, usage: &Usage) -> Trouble {
    let (limit, mending) = if budget.total_bytes < budget.max_bytes {
        (
            format!("the {} that the disk of state.path has", size(budget.total_bytes)),
            "move state.path to a larger disk",
        )
    } else {
        (format!("state.max_bytes = {}", size(budget.max_bytes)), "raise state.max_bytes")
    };
    Trouble {
        what: format!(
            "the store is full: it uses {} of {limit}, and keeps the rest for progress, acknowledgements, its WAL and the log",
            size(usage.total())
        ),
        advice: format!("mend the failing endpoints so that what waits is delivered, or {mending}"),
    }
}

/// The disk has nothing left.
pub(super) fn disk_trouble() -> Trouble {
    Trouble {
        what: "the disk of state.path is full: nothing can be written to the store".to_owned(),
        advice: "free space there; it goes on by itself".to_owned(),
    }
}

/// A write fails, and will not succeed by itself.
pub(super) fn lasting_trouble(error: &rusqlite::Error) -> Trouble {
    Trouble {
        what: format!("the store cannot write, and waiting does not mend it: {error}"),
        advice: "stop walhook and keep a copy of state.path; check its state.db with `PRAGMA integrity_check`, and please report \
                 it with the log"
            .to_owned(),
    }
}

/// What is kept cannot be read.
pub(super) fn reading_trouble(error: &StoreError) -> Trouble {
    let is_damage = matches!(error, StoreError::Ruined { .. });
    let advice = if is_damage {
        "stop walhook, keep a copy of state.path, and put a whole copy back or let sqlite3's `.recover` save what can be saved; if \
         nothing can, `walhook state accept-loss` sets the file aside, and the next start begins with an empty store"
    } else {
        "look at the disk of state.path; it is tried again every second"
    };
    Trouble {
        what: format!("the store cannot be read, and what waits in it stands still: {}", chain(error)),
        advice: advice.to_owned(),
    }
}

/// The thread that writes has died of a fault of its own.
pub(super) fn dead_trouble() -> Trouble {
    Trouble {
        what: "the thread that writes the store has panicked: nothing is written any more".to_owned(),
        advice: "restart walhook, and please report it with the log".to_owned(),
    }
}

/// Bytes for people.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.into_iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => {
            let tenths = (bytes >> (shift - 10)) * 10 / 1024;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(1023), "1023 bytes");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(8 << 20), "8.0 MiB");
        assert_eq!(size((10 << 30) + (1 << 29)), "10.5 GiB");
        assert_eq!(size(u64::MAX), "17179869183.9 GiB");
    }

    #[test]
    fn no_room_is_larger_than_the_longest_value() {
        let budget = Budget::new(1 << 40, u64::MAX);
        assert_eq!(room(&budget, &Usage::default()), ROOM_BYTES_MAX);
        assert_eq!(room(&budget, &Usage { disk_free: Some(budget.disk_reserve), ..Usage::default() }), 32 << 20);
    }

    #[test]
    fn a_write_that_fails_is_shown_before_a_lack_of_room() {
        let cell = HealthCell::new(8 << 20);
        let budget = Budget::new(8 << 20, u64::MAX);
        cell.set_room(&budget, &Usage { state: 7 << 20, ..Usage::default() }, Some(Shortage::Quota));
        let health = cell.show();
        assert!(health.is_full);
        assert_eq!(health.used_bytes, 7 << 20);
        assert!(health.trouble.unwrap().what.contains("7.0 MiB of state.max_bytes = 8.0 MiB"));
        let small_disk = quota_trouble(&Budget::new(8 << 20, 4 << 20), &Usage::default());
        assert!(small_disk.what.contains("0 bytes of the 4.0 MiB that the disk"), "{small_disk:?}");
        cell.set_writing(Some(disk_trouble()));
        assert_eq!(cell.show().trouble, Some(disk_trouble()));
        cell.set_writing(None);
        cell.set_room(&budget, &Usage::default(), None);
        assert_eq!((cell.show().is_full, cell.show().trouble), (false, None));
    }

    #[test]
    fn what_cannot_be_read_closes_nothing_and_is_over_only_when_the_same_can_be_read() {
        let cell = HealthCell::new(1 << 20);
        let (bad, good) = (SinkKey(1), SinkKey(2));
        let trouble = |what: &str| Some(Trouble { what: what.to_owned(), advice: String::new() });
        cell.set_reading(bad, "lanes", trouble("lanes"));
        cell.set_reading(bad, "body", None);
        cell.set_reading(good, "lanes", None);
        let health = cell.show();
        assert_eq!((health.is_failing, health.is_shut), (true, false));
        cell.set_writing(trouble("writes"));
        assert_eq!((cell.show().is_shut, cell.show().trouble), (true, trouble("writes")));
        cell.set_writing(None);
        cell.set_reading(bad, "lanes", None);
        assert_eq!((cell.show().is_failing, cell.show().trouble), (false, None));
    }

    #[test]
    fn what_expires_is_noted_of_sinks_that_are_watched_and_told_once() {
        let cell = HealthCell::new(1 << 20);
        let gone = |sink, id, is_damaged| Gone { sink: SinkKey(sink), delivery: DeliveryId(id), is_damaged };
        cell.watch_expiry(SinkKey(1));
        cell.expire(&[gone(1, 7, false), gone(1, 8, true), gone(2, 9, true)]);
        assert_eq!(cell.take_expired(SinkKey(1)), Expired { letters: 2, damaged: vec![DeliveryId(8)] });
        assert_eq!(cell.take_expired(SinkKey(1)), Expired::default());
        assert_eq!(cell.take_expired(SinkKey(2)), Expired::default());
    }
}

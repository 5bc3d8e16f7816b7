//! How much of the disk the store may use, and whether there is room: pure, but for one question to the file system.
//!
//! `state.max_bytes`, or the size of the disk if that is smaller, is divided:
//!
//! | part | of what | why |
//! | --- | --- | --- |
//! | log | an eighth | `log.db` and its WAL |
//! | wal | a sixteenth, at most 16 MiB | `state.db-wal`: checkpointed when it is longer |
//! | slack | a third of the rest, at most 64 MiB | what one transaction may add to the WAL beyond that |
//! | state | the rest | `state.db`; a hard stop (`max_page_count`) |
//!
//! From three quarters of the state's part on the store is full: nothing more is put in, and the last quarter is for
//! progress, acknowledgements and dead marks. The same when the disk itself has little left.

use std::path::Path;

/// SQLite's default, which no file of ours changes.
pub(super) const PAGE_BYTES: u64 = 4096;

const MIB: u64 = 1 << 20;

/// The bytes of a batch are never bounded to less: a delivery of usual size fits.
const BATCH_BYTES_LEAST: u64 = 16 * 1024;

/// The smallest `state.max_bytes` in whole MiB with which the batches of so many sinks fit when the store has just become
/// full: then each can put in what it has gathered, and nobody's acknowledgements wait behind what finds no room.
pub fn least_max_bytes(sinks: usize) -> u64 {
    let sinks = u64::try_from(sinks).unwrap_or(u64::MAX);
    let fits = |bytes: &u64| Budget::new(*bytes, u64::MAX).share_of(sinks) >= BATCH_BYTES_LEAST;
    (8..=u64::MAX / MIB).map(|mib| mib * MIB).find(fits).unwrap_or(u64::MAX)
}

/// How the bytes are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// `state.max_bytes`.
    pub(super) max_bytes: u64,
    /// The same, or the size of the disk if that is smaller.
    pub(super) total_bytes: u64,
    /// `state.db` at most.
    pub(super) state_bytes: u64,
    /// Its WAL is checkpointed when it is longer.
    pub(super) wal_bytes: u64,
    /// What a transaction may add to the WAL.
    pub(super) slack_bytes: u64,
    /// `log.db` at most.
    pub(super) log_bytes: u64,
    /// Its WAL is checkpointed when it is longer.
    pub(super) log_wal_bytes: u64,
    /// What is left to others on the disk.
    pub(super) disk_reserve: u64,
}

impl Budget {
    /// For `max_bytes` on a disk of `disk_bytes`.
    pub(super) fn new(max_bytes: u64, disk_bytes: u64) -> Self {
        let total = max_bytes.min(disk_bytes);
        let log_part = total / 8;
        let log_wal_bytes = (log_part / 8).min(4 * MIB);
        let wal_bytes = (total / 16).min(16 * MIB);
        let rest = total - log_part - wal_bytes;
        let slack_bytes = (rest / 3).min(64 * MIB);
        Self {
            max_bytes,
            total_bytes: total,
            state_bytes: rest - slack_bytes,
            wal_bytes,
            slack_bytes,
            // Its transactions are bounded by the size of its WAL, which may so be twice as long.
            log_bytes: log_part - 3 * log_wal_bytes,
            log_wal_bytes,
            disk_reserve: (total / 4).min(64 * MIB),
        }
    }

    pub(super) fn state_pages_max(&self) -> u64 {
        self.state_bytes / PAGE_BYTES
    }

    pub(super) fn log_pages_max(&self) -> u64 {
        self.log_bytes / PAGE_BYTES
    }

    /// Bytes that a batch of one of `sinks` should hold at most, so that all of them together fit when the store has just
    /// become full.
    pub(super) fn batch_bytes_max(&self, sinks: usize) -> usize {
        let share = self.share_of(u64::try_from(sinks).unwrap_or(u64::MAX)).clamp(BATCH_BYTES_LEAST, 4 * MIB);
        usize::try_from(share).unwrap_or(usize::MAX)
    }

    /// A quarter of the reserve for all: rows may take twice their bytes, and half of it stays for acknowledgements.
    fn share_of(&self, sinks: u64) -> u64 {
        self.state_bytes / 16 / sinks.max(1)
    }
}

/// What the files use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Usage {
    /// Pages of `state.db` that hold something, in bytes.
    pub(super) state: u64,
    /// Its WAL.
    pub(super) wal: u64,
    /// The log's files.
    pub(super) log: u64,
    /// What the disk has left; `None`: unknown.
    pub(super) disk_free: Option<u64>,
}

impl Usage {
    pub(super) fn total(&self) -> u64 {
        self.state + self.wal + self.log
    }
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shortage {
    /// `state.max_bytes`.
    Quota,
    /// The disk.
    Disk,
}

/// Whether there is room; `before` is the last answer, which stays until there is clearly more.
pub(super) fn shortage(budget: &Budget, usage: &Usage, before: Option<Shortage>) -> Option<Shortage> {
    // The marks: three quarters, and five eighths when it was full before.
    let eighths = if before == Some(Shortage::Quota) { 5 } else { 6 };
    let reaches = |bytes: u64, of: u64| bytes >= of / 8 * eighths;
    if reaches(usage.state, budget.state_bytes) || reaches(usage.total(), budget.total_bytes) {
        return Some(Shortage::Quota);
    }
    let reserve = if before == Some(Shortage::Disk) {
        budget.disk_reserve + budget.disk_reserve / 2
    } else {
        budget.disk_reserve
    };
    usage.disk_free.filter(|free| *free < reserve).map(|_| Shortage::Disk)
}

/// Bytes until there is no room any more; 0 while there is none.
pub(super) fn until_full(budget: &Budget, usage: &Usage, shortage: Option<Shortage>) -> u64 {
    if shortage.is_some() {
        return 0;
    }
    let left = |bytes: u64, of: u64| (of / 8 * 6).saturating_sub(bytes);
    let quota = left(usage.state, budget.state_bytes).min(left(usage.total(), budget.total_bytes));
    usage.disk_free.map_or(quota, |free| quota.min(free.saturating_sub(budget.disk_reserve)))
}

/// Bytes of the file system of `path`: all, and those free for us. `None` when it does not say.
pub(super) fn disk(path: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.checked_mul(stat.f_frsize);
    Some((bytes(stat.f_blocks)?, bytes(stat.f_bavail)?)).filter(|(all, _)| *all > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_never_pass_the_whole() {
        for max in [8 * MIB, 9 * MIB, 64 * MIB, 1 << 30, 10 << 30, 1 << 50] {
            let budget = Budget::new(max, u64::MAX);
            let state = budget.state_bytes + budget.wal_bytes + budget.slack_bytes;
            assert!(state + budget.log_bytes + 3 * budget.log_wal_bytes <= max, "{budget:?}");
            assert!(budget.state_bytes >= max / 2, "{budget:?}");
            assert!(budget.batch_bytes_max(3) as u64 * 3 <= budget.state_bytes / 4, "{budget:?}");
        }
        assert_eq!(Budget::new(1 << 40, 16 * MIB), Budget { max_bytes: 1 << 40, ..Budget::new(16 * MIB, u64::MAX) });
    }

    #[test]
    fn the_batches_of_all_sinks_fit_in_a_quarter_of_the_reserve() {
        for sinks in [1, 3, 17, 100, 1000] {
            let least = least_max_bytes(sinks);
            let budget = Budget::new(least, u64::MAX);
            assert!((budget.batch_bytes_max(sinks) * sinks) as u64 <= budget.state_bytes / 16, "{sinks}: {budget:?}");
            let smaller = Budget::new(least - MIB, u64::MAX);
            let is_too_small = (smaller.batch_bytes_max(sinks) * sinks) as u64 > smaller.state_bytes / 16;
            assert!(least == 8 * MIB || is_too_small, "{sinks} sinks would do with less");
        }
        assert_eq!((least_max_bytes(0), least_max_bytes(17), least_max_bytes(40)), (8 * MIB, 8 * MIB, 19 * MIB));
    }

    #[test]
    fn full_at_three_quarters_and_not_again_before_five_eighths() {
        let budget = Budget::new(64 * MIB, u64::MAX);
        let at = |state| Usage { state, ..Usage::default() };
        let eighth = budget.state_bytes / 8;
        assert_eq!(shortage(&budget, &at(eighth * 6 - 1), None), None);
        assert_eq!(shortage(&budget, &at(eighth * 6), None), Some(Shortage::Quota));
        assert_eq!(shortage(&budget, &at(eighth * 5), Some(Shortage::Quota)), Some(Shortage::Quota));
        assert_eq!(shortage(&budget, &at(eighth * 5 - 1), Some(Shortage::Quota)), None);
        let wide = Usage { state: 0, wal: 40 * MIB, log: 8 * MIB, disk_free: None };
        assert_eq!(shortage(&budget, &wide, None), Some(Shortage::Quota), "the whole counts too");
    }

    #[test]
    fn what_is_left_until_it_is_full_is_told() {
        let budget = Budget::new(64 * MIB, u64::MAX);
        let mark = budget.state_bytes / 8 * 6;
        let at = |state| Usage { state, ..Usage::default() };
        assert_eq!(until_full(&budget, &at(0), None), mark);
        assert_eq!(until_full(&budget, &at(mark - 1), None), 1);
        assert_eq!(until_full(&budget, &at(mark - MIB), Some(Shortage::Quota)), 0, "not before there is clearly more");
        let little = Usage { disk_free: Some(budget.disk_reserve + 7), ..at(0) };
        assert_eq!(until_full(&budget, &little, None), 7);
        let wide = Usage { wal: 40 * MIB, log: 7 * MIB, ..at(0) };
        assert_eq!(until_full(&budget, &wide, None), MIB, "the whole counts too");
    }

    #[test]
    fn a_disk_with_little_left_is_full_whatever_the_quota() {
        let budget = Budget::new(1 << 40, 16 * MIB);
        let free = |mib: u64| Usage { disk_free: Some(mib * MIB), ..Usage::default() };
        assert_eq!(shortage(&budget, &free(4), None), None);
        assert_eq!(shortage(&budget, &free(3), None), Some(Shortage::Disk));
        assert_eq!(shortage(&budget, &free(5), Some(Shortage::Disk)), Some(Shortage::Disk));
        assert_eq!(shortage(&budget, &free(6), Some(Shortage::Disk)), None);
    }

    #[test]
    fn a_disk_says_how_much_it_has() {
        let (all, free) = disk(Path::new("/")).unwrap();
        assert!(free <= all);
    }
}

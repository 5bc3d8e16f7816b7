//! The wall clock of a daemon, which a test moves: `CLOCK_REALTIME` alone, as somebody who sets the clock does it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use crate::disk::preload;

/// A library, loaded before all others, that adds to what the wall clock says. It says what is so until it is moved.
pub(crate) struct Clock {
    directory: TempDir,
    offset: File,
}

impl Clock {
    /// Compiles it.
    pub(crate) fn build() -> Self {
        let directory = tempfile::tempdir().unwrap();
        preload(directory.path(), "clock", include_str!("clock.c"));
        let offset = File::create(directory.path().join("offset")).unwrap();
        let clock = Self { directory, offset };
        clock.set(0);
        clock
    }

    /// What a daemon's environment needs, for [`crate::daemon::Daemon::launch_with`].
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.directory.path().join(name).to_string_lossy().into_owned();
        vec![("LD_PRELOAD", path("clock.so")), ("CLOCK_OFFSET", path("offset"))]
    }

    /// From here on it is so many seconds ahead of the machine's, or behind it.
    pub(crate) fn set(&self, seconds: i64) {
        // At once for whoever looks: eight bytes in one page that both share.
        self.offset.write_all_at(&(seconds * 1_000_000).to_ne_bytes(), 0).unwrap();
    }
}

#[test]
fn the_wall_clock_of_a_process_is_moved_and_no_other_clock() {
    let clock = Clock::build();
    let seconds = |clock: &Clock| {
        let said = Command::new("date").arg("+%s").envs(clock.environment()).output().unwrap();
        String::from_utf8_lossy(&said.stdout).trim().parse::<u64>().unwrap()
    };
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let before = now();
    assert!((before..=now()).contains(&seconds(&clock)));
    for days in [8, -1] {
        clock.set(days * 86_400);
        let before = now().saturating_add_signed(days * 86_400);
        let said = seconds(&clock);
        assert!((before..=now().saturating_add_signed(days * 86_400)).contains(&said), "{said} is not near {before}");
    }
}

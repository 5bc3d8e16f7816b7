//! The disk under the store: how much of it is used, how slow it is, how it fills up, what it remembers after a power loss.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Bytes of all files under a directory; what vanishes meanwhile counts nothing.
pub(crate) fn used_bytes(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(facts) if facts.is_dir() => used_bytes(&entry.path()),
            Ok(facts) => facts.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Looks at something every 5 ms in a thread of its own, until it is dropped.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(mut look: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !asked.load(Ordering::Relaxed) {
                look();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// The most that a directory ever held.
pub(crate) struct Peak {
    bytes: Arc<AtomicU64>,
    _watch: Watch,
}

impl Peak {
    /// Watches from here on.
    pub(crate) fn of(directory: PathBuf) -> Self {
        let bytes = Arc::new(AtomicU64::new(0));
        let most = Arc::clone(&bytes);
        let watch = Watch::start(move || {
            most.fetch_max(used_bytes(&directory), Ordering::Relaxed);
        });
        Self { bytes, _watch: watch }
    }

    /// Bytes at the most.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// How long this machine takes at this time to write a page to the disk and to wake a thread: what a promise in
/// milliseconds has to be allowed on a machine that is busy.
pub(crate) struct Pulse {
    beats: Arc<Mutex<Vec<(Instant, Duration)>>>,
    _watch: Watch,
    _directory: TempDir,
}

impl Pulse {
    /// Beats from here on.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut file = std::fs::File::create(directory.path().join("pulse")).unwrap();
        let beats = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&beats);
        let mut last = Instant::now();
        let watch = Watch::start(move || {
            std::io::Write::write_all(&mut file, &[0; 4096]).unwrap();
            std::io::Seek::rewind(&mut file).unwrap();
            file.sync_data().unwrap();
            // The watch's own 5 ms are in it: they err on the side of a slow machine by no more than that.
            kept.lock().unwrap().push((Instant::now(), last.elapsed()));
            last = Instant::now();
        });
        Self { beats, _watch: watch, _directory: directory }
    }

    /// The slowest beat of the second before `at`.
    pub(crate) fn slowest_before(&self, at: Instant) -> Duration {
        let beats = self.beats.lock().unwrap();
        let recent = |beat: &&(Instant, Duration)| beat.0 + Duration::from_secs(1) > at && beat.0 <= at + beat.1;
        beats.iter().filter(recent).map(|beat| beat.1).max().unwrap_or_default()
    }
}

/// A file system of a few megabytes, unmounted when dropped.
pub(crate) struct Tmpfs {
    directory: TempDir,
}

impl Tmpfs {
    /// Mounts one; none, said, where that is not allowed.
    pub(crate) fn mount(size: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let output =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(directory.path()).output();
        match output {
            Ok(output) if output.status.success() => Some(Self { directory }),
            Ok(output) => {
                println!("skipped: a tmpfs cannot be mounted: {}", String::from_utf8_lossy(&output.stderr));
                None
            }
            Err(error) => {
                println!("skipped: there is no mount: {error}");
                None
            }
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A file that takes all the room that is left.
    pub(crate) fn fill(&self) {
        let mut file = std::fs::File::create(self.path().join("filler")).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    }

    /// It may be written (`rw`), or only read (`ro`), by whoever has no file open in it.
    pub(crate) fn remount(&self, how: &str) {
        let options = format!("remount,{how}");
        let output = Command::new("mount").args(["-o", &options]).arg(self.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// The file goes away.
    pub(crate) fn free(&self) {
        std::fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a daemon that a failing test leaves behind may still hold a file in it.
        drop(Command::new("umount").arg("-l").arg(self.path()).status());
    }
}

/// Compiles a library that is to be loaded before all others, as `NAME.so` in the directory.
pub(crate) fn preload(directory: &Path, name: &str, text: &str) {
    let [source, library] = ["c", "so"].map(|kind| directory.join(name).with_extension(kind));
    std::fs::write(&source, text).unwrap();
    let output = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).output();
    let output = output.expect("the tests need a C compiler, as the build does");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A library, loaded before all others, that keeps of each file under the store what was synced last: what would be left
/// of it after a power loss.
pub(crate) struct Syncs {
    directory: TempDir,
}

impl Syncs {
    /// Compiles it.
    pub(crate) fn build() -> Self {
        let directory = tempfile::tempdir().unwrap();
        preload(directory.path(), "syncs", include_str!("syncs.c"));
        std::fs::create_dir(directory.path().join("kept")).unwrap();
        Self { directory }
    }

    /// What a daemon's environment needs; every sync takes `delay` longer.
    pub(crate) fn environment(&self, delay: Duration) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.directory.path().join(name).to_string_lossy().into_owned();
        let delay = delay.as_millis().to_string();
        vec![
            ("LD_PRELOAD", path("syncs.so")),
            ("SYNCS_LOG", path("log")),
            ("SYNCS_KEEP", path("kept")),
            ("SYNCS_DELAY_MS", delay),
        ]
    }

    /// How often a file of this name was synced.
    pub(crate) fn count(&self, name: &str) -> usize {
        self.log().iter().filter(|(synced, _)| synced == name).count()
    }

    /// How long the slowest took, with what the library does beside it.
    pub(crate) fn slowest(&self) -> Duration {
        self.log().iter().map(|(_, took)| *took).max().unwrap_or_default()
    }

    fn log(&self) -> Vec<(String, Duration)> {
        let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let entry = |line: &str| {
            let (name, micros) = line.split_once(' ')?;
            Some((name.to_owned(), Duration::from_micros(micros.parse().ok()?)))
        };
        log.lines().filter_map(entry).collect()
    }

    /// Leaves in `state` only what was synced.
    pub(crate) fn lose_power(&self, state: &Path) {
        std::fs::remove_dir_all(state).unwrap();
        std::fs::create_dir(state).unwrap();
        for entry in std::fs::read_dir(self.directory.path().join("kept")).unwrap().flatten() {
            // A dot marks a copy that a kill cut short.
            if !entry.file_name().to_string_lossy().starts_with('.') {
                std::fs::copy(entry.path(), state.join(entry.file_name())).unwrap();
            }
        }
    }
}

#[test]
fn what_was_not_synced_is_lost() {
    let syncs = Syncs::build();
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join("state.db-wal");
    let script = "import os,sys\nf=open(sys.argv[1],'wb',0)\nf.write(b'a')\nos.fsync(f.fileno())\nf.write(b'b')\n\
                  os.fdatasync(f.fileno())\nf.write(b'c')\n\
                  g=open(sys.argv[1]+'2','wb',0)\nos.fsync(g.fileno())\nos.unlink(sys.argv[1]+'2')\n";
    let mut python = Command::new("python3");
    let Ok(status) = python.envs(syncs.environment(Duration::ZERO)).args(["-c", script]).arg(&path).status() else {
        println!("skipped: python3 is not installed");
        return;
    };
    assert!(status.success());
    assert_eq!(std::fs::read(&path).unwrap(), b"abc");
    assert_eq!(syncs.count("state.db-wal"), 2);
    syncs.lose_power(state.path());
    assert_eq!(std::fs::read(&path).unwrap(), b"ab");
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 1, "what was removed stays removed");
}

//! A control group of its own for a process of a test, with less memory than the machine has.

use std::path::{Path, PathBuf};

/// Removed when dropped, once its processes have ended.
pub(crate) struct Group {
    directory: PathBuf,
}

impl Group {
    /// One whose processes may have so many bytes together, of version 2 or 1, and no swap, which would hide that they take
    /// more; none, said, where that is not allowed.
    pub(crate) fn make(bytes: u64) -> Option<Self> {
        let name = format!("walhook-test-{}-{:016x}", std::process::id(), fastrand::u64(..));
        let bytes = bytes.to_string();
        for (root, limits) in [
            ("/sys/fs/cgroup", [("memory.max", bytes.as_str()), ("memory.swap.max", "0")]),
            ("/sys/fs/cgroup/memory", [("memory.limit_in_bytes", &bytes), ("memory.memsw.limit_in_bytes", &bytes)]),
        ] {
            // Only what is a control group has this file.
            if !Path::new(root).join("cgroup.procs").exists() {
                continue;
            }
            let group = Self { directory: Path::new(root).join(&name) };
            let write = |(file, value): (&str, &str)| std::fs::write(group.directory.join(file), value);
            let made = std::fs::create_dir(&group.directory).and_then(|()| limits.into_iter().try_for_each(write));
            match made {
                Ok(()) => return Some(group),
                Err(error) => println!("no control group in {root}: {error}"),
            }
        }
        println!("skipped: a control group with a limit of memory cannot be made");
        None
    }

    /// What a shell does to enter it, for [`crate::daemon::Daemon::launch_under`].
    pub(crate) fn join(&self) -> String {
        format!("echo $$ > {}/cgroup.procs", self.directory.display())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        drop(std::fs::remove_dir(&self.directory));
    }
}

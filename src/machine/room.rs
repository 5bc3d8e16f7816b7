//! How much memory the machine leaves the process: the least limit of the control groups that it is in.
//!
//! A container of 128 MiB ends a process that takes more. What walhook holds of changes is bounded by
//! `limits.memory_limit`, whose default is for a machine of its own; where the control group has less, the limit in force is
//! lowered until all fits: [`BESIDE`] is what the process takes beside it, and each sink takes [`SINK`].

use std::path::{Path, PathBuf};

/// What the process takes beside the changes it holds, with some to spare.
const BESIDE: u64 = 64 << 20;
/// What each sink takes.
const SINK: u64 = 512 << 10;
/// The limit in force, however small the machine: what the configuration allows.
const LEAST: usize = 32 << 20;

/// What mends a limit that does not fit.
pub const ADVICE: &str =
    "give the container or service more memory (--memory, MemoryMax=), or set limits.memory_limit to what fits";

/// Where control groups are to be found.
#[derive(Debug)]
pub struct Places {
    /// What groups this process is in: `/proc/self/cgroup`.
    pub own: PathBuf,
    /// The groups' files: `/sys/fs/cgroup`.
    pub root: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self { own: "/proc/self/cgroup".into(), root: "/sys/fs/cgroup".into() }
    }
}

/// The least limit of the groups that the process is in; `None`: there is none.
pub fn limit(places: &Places) -> Option<u64> {
    let own = std::fs::read_to_string(&places.own).unwrap_or_default();
    let (mut files, mut groups) = (Vec::new(), own.lines().filter_map(of_memory).collect::<Vec<_>>());
    // Inside a container its own group is the root of what is seen, whatever its path is called outside.
    groups.extend([("", "memory.max", "/"), ("memory", "memory.limit_in_bytes", "/")]);
    for (under, file, group) in groups {
        let root = places.root.join(under);
        let group = root.join(group.trim_start_matches('/'));
        files.extend(group.ancestors().take_while(|above| above.starts_with(&root)).map(|above| above.join(file)));
    }
    files.iter().filter_map(|file| read(file)).min()
}

/// A line of `/proc/self/cgroup`: `0::/group` of version 2, `4:memory:/group` of version 1.
fn of_memory(line: &str) -> Option<(&'static str, &'static str, &str)> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, group) = (parts.next()?, parts.next()?, parts.next()?);
    if group.split('/').any(|part| part == "..") {
        return None;
    }
    if controllers.is_empty() {
        return Some(("", "memory.max", group));
    }
    controllers.split(',').any(|one| one == "memory").then_some(("memory", "memory.limit_in_bytes", group))
}

/// `max`, and the number that version 1 has for it, are no limits.
fn read(file: &Path) -> Option<u64> {
    const NONE: u64 = 1 << 60;
    std::fs::read_to_string(file).ok()?.trim().parse().ok().filter(|bytes| *bytes < NONE)
}

/// The memory limit in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InForce {
    /// Bytes.
    pub bytes: usize,
    /// The machine's limit, if that is why.
    pub lowered_for: Option<u64>,
}

impl InForce {
    /// Of a limit that is set, for so many sinks, where the machine leaves so much.
    pub fn of(set: usize, sinks: usize, machine: Option<u64>) -> Self {
        let beside = BESIDE.saturating_add(SINK.saturating_mul(u64::try_from(sinks).unwrap_or(u64::MAX)));
        let fits = machine.map(|machine| usize::try_from(machine.saturating_sub(beside)).unwrap_or(usize::MAX));
        match fits.map(|fits| fits.max(LEAST)).filter(|fits| *fits < set) {
            Some(bytes) => Self { bytes, lowered_for: machine },
            None => Self { bytes: set, lowered_for: None },
        }
    }

    /// What is said of it if it is not the one that is set.
    pub fn said(&self, set: usize) -> Option<String> {
        let mib = |bytes: u64| bytes >> 20;
        let number = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
        self.lowered_for.map(|machine| {
            format!(
                "limits.memory_limit is {} MiB, and the control group has {} MiB in all: {} MiB are in force, and a change has {} MiB \
                 at most (max_message)",
                mib(number(set)),
                mib(machine),
                mib(number(self.bytes)),
                mib(number(self.bytes / 4))
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn places(own: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Places) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("cgroup");
        for (name, text) in files {
            let file = root.join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        let of_process = directory.path().join("own");
        std::fs::write(&of_process, own).unwrap();
        (directory, Places { own: of_process, root })
    }

    #[test]
    fn the_least_limit_of_all_groups_above_counts_in_both_versions() {
        let old = "4:cpu,cpuacct:/x\n9:memory:/docker/abc\n0::/docker/abc\n";
        for (own, files, limit) in [
            // Version 2, seen from the host and from inside a container.
            ("0::/a/b\n", &[("a/b/memory.max", "max\n"), ("a/memory.max", "134217728\n")][..], Some(128 * MIB)),
            ("0::/\n", &[("memory.max", "134217728\n")], Some(128 * MIB)),
            ("0::/unseen/outside\n", &[("memory.max", "134217728\n")], Some(128 * MIB)),
            ("0::/a\n", &[("a/memory.max", "max\n"), ("other/memory.max", "1000\n")], None),
            // Version 1.
            (old, &[("memory/docker/abc/memory.limit_in_bytes", "268435456\n")], Some(256 * MIB)),
            (old, &[("memory/memory.limit_in_bytes", "268435456\n")], Some(256 * MIB)),
            (old, &[("memory/docker/abc/memory.limit_in_bytes", "9223372036854771712\n")], None),
            // Nothing, and nonsense.
            ("", &[], None),
            ("0::/../../etc\nfoo\n", &[("memory.max", "many\n")], None),
        ] {
            let (_directory, places) = places(own, files);
            assert_eq!(super::limit(&places), limit, "{own:?} {files:?}");
        }
    }

    #[test]
    fn the_limit_in_force_fits_into_the_machine_with_what_comes_beside_it() {
        let mib = |bytes: usize| u64::try_from(bytes).unwrap() / MIB;
        for (set, sinks, machine, in_force) in [
            (256, 1, None, 256),
            (256, 1, Some(1024), 256),
            (256, 1, Some(128), 63),
            (256, 64, Some(256), 160),
            (64, 1, Some(512), 64),
            // The least that may be set; with less the machine is too small, which is told.
            (256, 1, Some(64), 32),
        ] {
            let found = InForce::of(set << 20, sinks, machine.map(|machine| machine * MIB));
            assert_eq!(mib(found.bytes), in_force, "{set} {sinks} {machine:?}");
            assert_eq!(found.said(set << 20).is_some(), in_force < set as u64, "{found:?}");
        }
        let said = InForce::of(256 << 20, 1, Some(128 * MIB)).said(256 << 20).unwrap();
        assert_eq!(
            said,
            "limits.memory_limit is 256 MiB, and the control group has 128 MiB in all: 63 MiB are in force, \
             and a change has 15 MiB at most (max_message)"
        );
    }
}

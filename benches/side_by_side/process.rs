//! Children that die with us, and what /proc says of a process.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// A tick of the CPU times in /proc: `USER_HZ` is 100 on every Linux.
const TICK: Duration = Duration::from_millis(10);
/// How long a child may take to end when asked.
const END: Duration = Duration::from_secs(20);

/// A child that is killed when dropped.
#[derive(Debug)]
pub(crate) struct Watched {
    name: &'static str,
    pub(crate) child: Child,
    pid: u32,
}

impl Watched {
    /// Starts it.
    pub(crate) fn spawn(name: &'static str, command: &mut Command) -> anyhow::Result<Self> {
        let child = command.kill_on_drop(true).spawn().with_context(|| format!("could not start {name}"))?;
        let pid = child.id().with_context(|| format!("{name} has no pid"))?;
        Ok(Self { name, child, pid })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has ended; its CPU time can be read even so, until it is waited for.
    pub(crate) fn has_ended(&self) -> bool {
        stat(self.pid).is_none_or(|stat| stat.state == 'Z')
    }

    /// User and system time so far.
    pub(crate) fn cpu(&self) -> Duration {
        cpu(self.pid).unwrap_or_default()
    }

    /// Waits for its end; an unhappy one is an error.
    pub(crate) async fn finish(mut self) -> anyhow::Result<()> {
        let waited = tokio::time::timeout(END, self.child.wait()).await;
        let status = waited.with_context(|| format!("{} did not end within {END:?}", self.name))??;
        if !status.success() {
            bail!("{} ended with {status}", self.name);
        }
        Ok(())
    }

    /// Asks it to stop, and waits for its end.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        kill(Pid::from_raw(i32::try_from(self.pid)?), Signal::SIGTERM)?;
        self.finish().await
    }
}

#[derive(Debug)]
struct Stat {
    state: char,
    cpu: Duration,
}

/// User and system time of a process; none if it is gone.
pub(crate) fn cpu(pid: u32) -> Option<Duration> {
    stat(pid).map(|stat| stat.cpu)
}

/// The most memory it ever had resident, in bytes; none if it is gone or a zombie.
pub(crate) fn peak_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmHWM:")
}

/// Its resident memory, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmRSS:")
}

/// Number of cores and load.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cores} cores · load average at the start: {}", load_average())
}

/// One, five and fifteen minutes.
pub(crate) fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Fails when a part takes too long, with what was being waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    started: Instant,
    limit: Duration,
}

impl Deadline {
    /// A minute, and as long as a very slow reader would take for so many messages.
    pub(crate) fn for_messages(messages: u32) -> Self {
        Self { started: Instant::now(), limit: Duration::from_secs(60) + messages * Duration::from_micros(200) }
    }

    /// Fails when it has passed.
    pub(crate) fn check(&self, what: &str) -> anyhow::Result<()> {
        if self.started.elapsed() > self.limit {
            bail!("gave up after {:?} of waiting for {what}", self.limit);
        }
        Ok(())
    }
}

/// The last lines of a log.
pub(crate) fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let skip = lines.len().saturating_sub(20);
    lines.into_iter().skip(skip).collect::<Vec<_>>().join("\n")
}

fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields after it count from 3 in proc(5).
    let (_, fields) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = |number: usize| fields.get(number - 3)?.parse::<u32>().ok();
    let state = fields.first()?.chars().next()?;
    Some(Stat { state, cpu: (ticks(14)? + ticks(15)?) * TICK })
}

fn status_bytes(pid: u32, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}

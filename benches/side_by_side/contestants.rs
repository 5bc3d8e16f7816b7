//! The two programs: `pg_recvlogical`, and walhook with its receiver.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{ChildStdout, Command};
use walhook::demo::cluster::roles::Role;

use crate::ground::{Ground, PUBLICATION};
use crate::process::{Deadline, Watched, tail};
use crate::receiver::{Away, Counted};

/// `pg_recvlogical` on a slot, to `output`, until `end` or for ever.
pub(crate) fn reader(ground: &Ground, slot: &str, end: Option<&str>, output: Stdio) -> anyhow::Result<Watched> {
    let mut command = Command::new(ground.cluster.bin().join("pg_recvlogical"));
    command.args([
        "-h",
        "127.0.0.1",
        "-p",
        &ground.cluster.port().to_string(),
        "-U",
        "walhook_reader",
        "-d",
        "postgres",
    ]);
    command.args(["--start", "--no-loop", "-F", "0", "-s", "1", "-S", slot, "-o", "proto_version=1"]);
    command.arg("-o").arg(format!("publication_names={PUBLICATION}"));
    match end {
        Some(end) => command.args(["-f", "/dev/null", "--endpos", end]),
        // Without an end it is interrupted, and complains.
        None => command.args(["-f", "-"]).stderr(Stdio::null()),
    };
    Watched::spawn("pg_recvlogical", command.stdin(Stdio::null()).stdout(output))
}

/// What walhook is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task<'a> {
    /// Another build of walhook.
    pub(crate) program: Option<&'a Path>,
    pub(crate) slot: &'a str,
    pub(crate) table: &'a str,
    pub(crate) batch_size: u32,
    pub(crate) messages: u32,
    pub(crate) latency: bool,
    /// The endpoint is away at first, and looks at the order of what comes then.
    pub(crate) away: Option<Away>,
}

/// walhook between a slot and its receiver.
pub(crate) struct Delivering {
    pub(crate) daemon: Watched,
    pub(crate) receiver: Watched,
    pub(crate) started: Duration,
    lines: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
    expected: u32,
    directory: TempDir,
}

impl Delivering {
    /// Starts the receiver, then walhook.
    pub(crate) async fn start(ground: &Ground, task: Task<'_>) -> anyhow::Result<Self> {
        if task.program.is_some() {
            // Builds of before want to read settings that the role may not see on the newest minor releases.
            ground.value("grant pg_read_all_settings to walhook_reader").await?;
        }
        let (receiver, mut lines) = receiver(task)?;
        let port: u16 = lines.next_line().await?.context("the receiver does not listen")?.parse()?;
        let directory = tempfile::tempdir()?;
        let (config, log) = (directory.path().join("walhook.toml"), directory.path().join("log"));
        std::fs::write(&config, config_text(ground, task, port))?;
        let (out, err) = (File::create(&log)?, File::options().append(true).open(&log)?);
        let mut command = Command::new(task.program.unwrap_or(Path::new(env!("CARGO_BIN_EXE_walhook"))));
        command.arg("run").arg("--config").arg(&config).current_dir(directory.path());
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let started = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let daemon = Watched::spawn("walhook", &mut command)?;
        Ok(Self { daemon, receiver, started, lines, log, expected: task.messages, directory })
    }

    /// Lets the endpoint be there.
    pub(crate) async fn come_back(&mut self) -> anyhow::Result<()> {
        let stdin = self.receiver.child.stdin.as_mut().context("the receiver has no input")?;
        stdin.write_all(b"be there\n").await?;
        Ok(stdin.flush().await?)
    }

    /// Bytes of the store's files.
    pub(crate) fn state_bytes(&self) -> anyhow::Result<u64> {
        let files = std::fs::read_dir(self.directory.path().join("walhook-state"))?;
        files.map(|file| Ok(file?.metadata()?.len())).sum()
    }

    /// Fails when walhook has ended.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if self.daemon.has_ended() {
            bail!("walhook has ended; its log:\n{}", tail(&self.log));
        }
        Ok(())
    }

    /// Waits a little for the receiver to have all; none: not yet. Fails when walhook has ended or time is up.
    pub(crate) async fn counted(&mut self, deadline: Deadline) -> anyhow::Result<Option<Counted>> {
        let told = tokio::time::timeout(Duration::from_millis(20), self.lines.next_line()).await;
        match told {
            Ok(line) => Ok(Some(serde_json::from_str(&line?.context("the receiver has ended")?)?)),
            Err(_) => {
                self.check()?;
                let what = "the receiver to count all messages";
                deadline.check(what).with_context(|| format!("the log of walhook:\n{}", tail(&self.log)))?;
                Ok(None)
            }
        }
    }

    /// Stops both; what came must be what was expected, once each.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.daemon.stop().await.with_context(|| format!("the log of walhook:\n{}", tail(&self.log)))?;
        drop(self.receiver.child.stdin.take());
        let total: u32 = self.lines.next_line().await?.context("the receiver did not say its total")?.parse()?;
        if total != self.expected {
            bail!("the receiver got {total} messages for {} changes", self.expected);
        }
        self.receiver.finish().await
    }
}

fn receiver(task: Task<'_>) -> anyhow::Result<(Watched, Lines<BufReader<ChildStdout>>)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["receive", "--expect", &task.messages.to_string()]);
    if task.latency {
        command.arg("--latency");
    }
    match task.away {
        Some(Away::Refuses) => command.args(["--order", "--away", "refuses"]),
        Some(Away::Unavailable) => command.args(["--order", "--away", "unavailable"]),
        None => &mut command,
    };
    let mut receiver = Watched::spawn("the receiver", command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
    let stdout = receiver.child.stdout.take().context("the receiver has no output")?;
    Ok((receiver, BufReader::new(stdout).lines()))
}

/// Defaults but for what the task names.
fn config_text(ground: &Ground, task: Task<'_>, port: u16) -> String {
    let (url, Task { slot, table, batch_size, .. }) = (ground.cluster.url_as(Role::Reader, "postgres"), task);
    let grouping = if task.away.is_some() { "group_by = [\"customer_id\"]\n" } else { "" };
    format!(
        "[source.app]\nurl = \"{url}\"\nslot = \"{slot}\"\npublication = \"{PUBLICATION}\"\ncreate = false\n\
         [sink.bench]\nurl = \"http://127.0.0.1:{port}/hook\"\ntables = [\"public.{table}\"]\nbatch_size = {batch_size}\n{grouping}\
         [admin]\nlisten = \"127.0.0.1:0\"\n"
    )
}

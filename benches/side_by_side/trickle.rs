//! How long a commit takes to reach the receiver when the machine has time, and what an idle walhook costs.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow};
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;
use tokio_postgres::NoTls;
use walhook::demo::cluster::roles::Role;
use walhook::source::wire::{Cursor, WireError};

use crate::contestants::{self, Delivering, Task};
use crate::figures::{Latencies, mebibytes, median, table, thousands};
use crate::ground::Ground;
use crate::process::{self, Deadline};

const TABLE: &str = "trickle";
const A_SECOND: u32 = 1000;
/// What the clock of Postgres starts at, since 1970.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);
/// Before an idle walhook is watched.
const SETTLE: Duration = Duration::from_secs(2);

/// One part.
#[derive(Debug)]
pub(crate) struct Trickle {
    seconds: u32,
    idle: Duration,
    runs: u32,
}

/// What one build of walhook did.
#[derive(Debug, Default)]
struct Runs {
    latencies: Vec<Latencies>,
    /// CPU time of the daemon for each message, seconds.
    cpu: Vec<f64>,
    /// What it costs when idle: bytes resident, and the share of a core.
    resident: Vec<f64>,
    idle: Vec<f64>,
}

impl Trickle {
    /// As published.
    pub(crate) fn new(runs: u32) -> Self {
        Self { seconds: 20, idle: Duration::from_secs(10), runs }
    }

    /// To see that it works.
    pub(crate) fn quick() -> Self {
        Self { seconds: 3, idle: Duration::from_secs(3), runs: 1 }
    }

    /// All in turns, each under a load of its own.
    pub(crate) async fn run(&self, ground: &Ground, against: Option<&Path>) -> anyhow::Result<String> {
        let (mut reader, mut walhook, mut other) = (Vec::new(), Runs::default(), Runs::default());
        for number in 1..=self.runs {
            let slot = format!("trickle_reader_{number}");
            ground.create_slot(&slot).await?;
            reader.push(self.reader(ground, &slot).await?);
            ground.drop_slot(&slot).await?;
            let mut builds = vec![(None, &mut walhook)];
            builds.extend(against.map(|program| (Some(program), &mut other)));
            if number % 2 == 0 {
                builds.reverse();
            }
            for (turn, (program, runs)) in builds.into_iter().enumerate() {
                let slot = format!("trickle_walhook_{number}_{turn}");
                ground.create_slot(&slot).await?;
                self.walhook(ground, &slot, program, runs).await?;
                ground.drop_slot(&slot).await?;
            }
        }
        Ok(self.report(&reader, &walhook, &other))
    }

    fn messages(&self) -> u32 {
        self.seconds * A_SECOND
    }

    async fn reader(&self, ground: &Ground, slot: &str) -> anyhow::Result<Latencies> {
        let deadline = Deadline::for_messages(self.messages());
        let mut reader = contestants::reader(ground, slot, None, Stdio::piped())?;
        let mut output = reader.child.stdout.take().context("pg_recvlogical has no output")?;
        await_walsender(ground, slot, deadline).await?;
        let load = Writer::start(ground, self.messages());
        let (mut latencies, mut buffer, mut commit) = (Vec::new(), Vec::new(), Duration::ZERO);
        while latencies.len() < usize::try_from(self.messages())? {
            deadline.check("pg_recvlogical to print all rows")?;
            let read = tokio::time::timeout(Duration::from_secs(1), output.read_buf(&mut buffer)).await;
            let Ok(read) = read else { continue };
            anyhow::ensure!(read? > 0, "pg_recvlogical has ended");
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            let mut cursor = Cursor::new(&buffer);
            let mut used = 0;
            loop {
                match printed(&mut cursor) {
                    Ok(Printed::Begin(at)) => commit = at,
                    Ok(Printed::Row) => latencies.push(now.saturating_sub(commit)),
                    Ok(Printed::Other) => {}
                    Err(Unread::Half) => break,
                    Err(Unread::Strange(kind)) => return Err(anyhow!("pg_recvlogical printed a message {kind:?}")),
                }
                used = cursor.offset();
            }
            buffer.drain(..used);
        }
        load.join()?;
        // It ends well when told to.
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(i32::try_from(reader.pid())?),
            nix::sys::signal::Signal::SIGINT,
        )?;
        reader.finish().await?;
        Ok(Latencies::of(latencies))
    }

    async fn walhook(
        &self,
        ground: &Ground,
        slot: &str,
        program: Option<&Path>,
        runs: &mut Runs,
    ) -> anyhow::Result<()> {
        let deadline = Deadline::for_messages(self.messages());
        let task =
            Task { program, slot, table: TABLE, batch_size: 1, messages: self.messages(), latency: true, away: None };
        let mut delivering = Delivering::start(ground, task).await?;
        await_walsender(ground, slot, deadline).await?;
        let load = Writer::start(ground, self.messages());
        let before = delivering.daemon.cpu();
        let counted = loop {
            if let Some(counted) = delivering.counted(deadline).await? {
                break counted;
            }
        };
        runs.latencies.push(counted.latencies);
        runs.cpu.push((delivering.daemon.cpu().saturating_sub(before)).as_secs_f64() / f64::from(self.messages()));
        load.join()?;
        tokio::time::sleep(SETTLE).await;
        let before = delivering.daemon.cpu();
        tokio::time::sleep(self.idle).await;
        runs.idle.push((delivering.daemon.cpu().saturating_sub(before)).as_secs_f64() / self.idle.as_secs_f64());
        let resident = process::resident_bytes(delivering.daemon.pid()).unwrap_or_default();
        runs.resident.push(f64::from(u32::try_from(resident / 1024)?) * 1024.0);
        delivering.stop().await
    }

    fn report(&self, reader: &[Latencies], walhook: &Runs, other: &Runs) -> String {
        let of = |runs: &[Latencies], figure: fn(&Latencies) -> Duration| {
            median(runs.iter().map(|run| figure(run).as_secs_f64()).collect())
        };
        let figures: [fn(&Latencies) -> Duration; 3] = [|run| run.p50, |run| run.p99, |run| run.max];
        let line = |name: &str, cpu: &[f64], text: &dyn Fn(fn(&Latencies) -> Duration) -> String| {
            let cpu = if cpu.is_empty() { String::new() } else { format!("{:.1}", median(cpu.to_vec()) * 1e6) };
            std::iter::once(name.to_owned()).chain(figures.map(text)).chain([cpu]).collect::<Vec<_>>()
        };
        let millis = |runs| move |figure| format!("{:.3}", of(runs, figure) * 1e3);
        let mut rows = vec![
            ["commit to receiver, ms", "p50", "p99", "max", "CPU µs/msg"].map(str::to_owned).to_vec(),
            line("pg_recvlogical", &[], &millis(reader)),
            line("walhook", &walhook.cpu, &millis(&walhook.latencies)),
            line("ratio", &[], &|figure| format!("{:.2}", of(&walhook.latencies, figure) / of(reader, figure))),
        ];
        let mut idle = format!("walhook {}", walhook.when_idle());
        if !other.latencies.is_empty() {
            rows.push(line("walhook, the other build", &other.cpu, &millis(&other.latencies)));
            idle += &format!("; the other build {}", other.when_idle());
        }
        let (a_second, seconds, runs) = (thousands(f64::from(A_SECOND)), self.seconds, self.runs);
        format!(
            "## Trickle: one-row transactions at {a_second}/s for {seconds} s, batch_size 1, medians of {runs}\n\n{}\n\
             idle, over {:?}: {idle} · load average: {}\n",
            table(&rows),
            self.idle,
            process::load_average(),
        )
    }
}

impl Runs {
    fn when_idle(&self) -> String {
        let (resident, share) = (median(self.resident.clone()), median(self.idle.clone()));
        format!("{} MiB resident, {:.2} % of a core", mebibytes(resident), share * 100.0)
    }
}

/// Waits until the slot is read, and a little longer.
pub(crate) async fn await_walsender(ground: &Ground, slot: &str, deadline: Deadline) -> anyhow::Result<()> {
    while ground.walsender(slot).await?.is_none() {
        deadline.check("the stream to start")?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The stream is there; what else a daemon does at its start is not to be measured.
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(())
}

/// Writes one row a transaction, on a thread of its own so that nobody else's work delays it.
struct Writer {
    thread: Option<JoinHandle<anyhow::Result<()>>>,
    stop: Arc<AtomicBool>,
}

impl Writer {
    fn start(ground: &Ground, rows: u32) -> Self {
        let (url, stop) = (ground.cluster.url_as(Role::Owner, "postgres"), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(write(&url, rows, &stopped))
        });
        Self { thread: Some(thread), stop }
    }

    fn join(mut self) -> anyhow::Result<()> {
        let thread = self.thread.take().context("joined twice")?;
        thread.join().map_err(|_| anyhow!("the writer panicked"))?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

async fn write(url: &str, rows: u32, stop: &AtomicBool) -> anyhow::Result<()> {
    let (client, driver) = tokio_postgres::connect(url, NoTls).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(driver.await) });
    client.batch_execute("truncate trickle").await?;
    let sql = "insert into trickle values ($1, $2, $3, now(), 12.34, true)";
    let insert = client.prepare(sql).await?;
    let note = "a note of about a hundred and twenty letters, as one finds them in a table of orders in many a shop";
    let started = Instant::now();
    for row in 0..rows {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Sleeps the thread: the timers of the runtime are a millisecond coarse.
        std::thread::sleep(
            (started + row * Duration::from_secs(1) / A_SECOND).saturating_duration_since(Instant::now()),
        );
        let customer = i32::try_from(row % 1000)?;
        client.execute(&insert, &[&i64::from(row), &customer, &note]).await?;
    }
    Ok(())
}

/// What `pg_recvlogical` printed: a message of pgoutput, and a line feed.
enum Printed {
    /// A transaction that was committed then, since 1970.
    Begin(Duration),
    Row,
    Other,
}

enum Unread {
    /// The rest is to come.
    Half,
    Strange(char),
}

impl From<WireError> for Unread {
    fn from(_: WireError) -> Self {
        Self::Half
    }
}

fn printed(cursor: &mut Cursor<'_>) -> Result<Printed, Unread> {
    let kind = cursor.u8()?;
    let printed = match kind {
        b'B' => {
            cursor.u64()?;
            let micros = u64::try_from(cursor.i64()?).unwrap_or_default();
            cursor.u32()?;
            Printed::Begin(POSTGRES_EPOCH + Duration::from_micros(micros))
        }
        b'C' => cursor.take(25).map(|_| Printed::Other)?,
        b'R' => relation(cursor).map(|()| Printed::Other)?,
        b'I' => row(cursor).map(|()| Printed::Row)?,
        // TRUNCATE of one table.
        b'T' => cursor.take(4 + 1 + 4).map(|_| Printed::Other)?,
        other => return Err(Unread::Strange(char::from(other))),
    };
    cursor.u8()?;
    Ok(printed)
}

fn relation(cursor: &mut Cursor<'_>) -> Result<(), WireError> {
    cursor.u32()?;
    cursor.cstr()?;
    cursor.cstr()?;
    cursor.u8()?;
    for _ in 0..cursor.u16()? {
        cursor.u8()?;
        cursor.cstr()?;
        cursor.take(8)?;
    }
    Ok(())
}

fn row(cursor: &mut Cursor<'_>) -> Result<(), WireError> {
    cursor.take(5)?;
    for _ in 0..cursor.u16()? {
        if cursor.u8()? == b't' {
            let length = cursor.length()?;
            cursor.take(length)?;
        }
    }
    Ok(())
}

//! How fast changes go into the store while the endpoint is away, and how fast they come back when it is there again.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::ensure;

use crate::contestants::{Delivering, Task};
use crate::figures::{mebibytes, median, table, thousands};
use crate::ground::{Ground, Load};
use crate::process::{self, Deadline};
use crate::receiver::{Away, Counted};
use crate::trickle::await_walsender;

/// Between two looks at the slot.
const LOOK: Duration = Duration::from_millis(10);

/// One part.
#[derive(Debug)]
pub(crate) struct Outage {
    pub(crate) away: Away,
    pub(crate) rows: u32,
    pub(crate) runs: u32,
}

/// What one run took.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// From the first row to the last commit.
    written_seconds: f64,
    /// From the first row until the slot was confirmed to the end.
    stored_seconds: f64,
    /// From the last commit until then.
    confirm_seconds: f64,
    /// walhook's, until then.
    cpu_seconds: f64,
    state_bytes: f64,
    peak_bytes: f64,
    /// From the endpoint's return to the first message.
    return_seconds: f64,
    /// From the first message until 99 of 100 were there.
    most_seconds: f64,
    /// From the first message to the last.
    back_seconds: f64,
    /// walhook's, from the endpoint's return.
    back_cpu_seconds: f64,
    refused: f64,
}

impl Outage {
    /// As often as there are runs.
    pub(crate) async fn run(&self, ground: &Ground) -> anyhow::Result<String> {
        let mut runs = Vec::new();
        for number in 1..=self.runs {
            ground.value("truncate outage").await?;
            ground.value("checkpoint").await?;
            let slot = format!("outage_{number}");
            ground.create_slot(&slot).await?;
            runs.push(self.once(ground, &slot).await?);
            ground.drop_slot(&slot).await?;
        }
        Ok(self.report(&runs))
    }

    async fn once(&self, ground: &Ground, slot: &str) -> anyhow::Result<Run> {
        let (table, messages, away) = (Load::Customers.table(), self.rows, Some(self.away));
        let task = Task { program: None, slot, table, batch_size: 100, messages, latency: false, away };
        let mut delivering = Delivering::start(ground, task).await?;
        await_walsender(ground, slot, Deadline::for_messages(self.rows)).await?;
        let mut run = self.fill(ground, slot, &delivering).await?;
        let back = self.back(&mut delivering).await?;
        run.peak_bytes = kibibytes(process::peak_bytes(delivering.daemon.pid()).unwrap_or_default());
        delivering.stop().await?;
        run.take(back);
        Ok(run)
    }

    async fn fill(&self, ground: &Ground, slot: &str, delivering: &Delivering) -> anyhow::Result<Run> {
        let deadline = Deadline::for_messages(self.rows);
        let (began, cpu) = (Instant::now(), delivering.daemon.cpu());
        let (end, committed) = ground.write(Load::Customers, self.rows).await?;
        while !ground.is_confirmed(slot, &end).await? {
            deadline.check("the slot to be confirmed")?;
            delivering.check()?;
            tokio::time::sleep(LOOK).await;
        }
        let confirmed = Instant::now();
        Ok(Run {
            written_seconds: (committed - began).as_secs_f64(),
            stored_seconds: (confirmed - began).as_secs_f64(),
            confirm_seconds: (confirmed - committed).as_secs_f64(),
            cpu_seconds: (delivering.daemon.cpu() - cpu).as_secs_f64(),
            state_bytes: kibibytes(delivering.state_bytes()?),
            peak_bytes: 0.0,
            return_seconds: 0.0,
            most_seconds: 0.0,
            back_seconds: 0.0,
            back_cpu_seconds: 0.0,
            refused: 0.0,
        })
    }

    async fn back(&self, delivering: &mut Delivering) -> anyhow::Result<Back> {
        let (deadline, cpu) = (Deadline::for_messages(self.rows), delivering.daemon.cpu());
        let returned = SystemTime::now().duration_since(UNIX_EPOCH)?;
        delivering.come_back().await?;
        let counted = loop {
            if let Some(counted) = delivering.counted(deadline).await? {
                break counted;
            }
        };
        ensure!(counted.out_of_order == 0, "{} messages came out of order", counted.out_of_order);
        Ok(Back { returned, counted, cpu: delivering.daemon.cpu() - cpu })
    }

    fn report(&self, runs: &[Run]) -> String {
        let rows = f64::from(self.rows);
        let of = |figure: fn(&Run) -> f64| median(runs.iter().map(figure).collect());
        let line = |what: &str, (rows, seconds): (f64, f64), cpu: Option<f64>| {
            let cpu = cpu.map_or_else(String::new, |cpu| format!("{:.2}", cpu / rows * 1e6));
            vec![what.to_owned(), format!("{seconds:.2}"), thousands(rows / seconds), cpu]
        };
        let (into_cpu, back_cpu) = (of(|run| run.cpu_seconds), of(|run| run.back_cpu_seconds));
        let lines = [
            ["", "seconds", "messages/s", "CPU µs/msg"].map(str::to_owned).to_vec(),
            line("written to Postgres", (rows, of(|run| run.written_seconds)), None),
            line("into the store, slot confirmed to the end", (rows, of(|run| run.stored_seconds)), Some(into_cpu)),
            line("back, first message to 99 of 100", (rows * 0.99, of(|run| run.most_seconds)), None),
            line("back, first message to last", (rows, of(|run| run.back_seconds)), Some(back_cpu)),
        ];
        let all = |figure: fn(&Run) -> f64| {
            runs.iter().map(|run| format!("{:.2}", figure(run))).collect::<Vec<_>>().join(", ")
        };
        let how = match self.away {
            Away::Refuses => "refuses connections",
            Away::Unavailable => "answers 503",
        };
        format!(
            "## Outage: the endpoint {how} while {} rows are written in transactions of 1,000, medians of {}\n\n{}\n\
             confirmed {:.2} s after the last commit · {} MiB of state, {} MiB resident at the peak · {:.0} requests refused · \
             first message {:.2} s after the endpoint was back · load average: {}\n\
             runs: into the store {}; back {} s\n",
            thousands(rows),
            self.runs,
            table(&lines),
            of(|run| run.confirm_seconds),
            mebibytes(of(|run| run.state_bytes)),
            mebibytes(of(|run| run.peak_bytes)),
            of(|run| run.refused),
            of(|run| run.return_seconds),
            process::load_average(),
            all(|run| run.stored_seconds),
            all(|run| run.back_seconds),
        )
    }
}

/// How a run went after the endpoint's return.
struct Back {
    returned: Duration,
    counted: Counted,
    cpu: Duration,
}

impl Run {
    fn take(&mut self, back: Back) {
        let Back { returned, counted, cpu } = back;
        let seconds = |from: Duration, to: Duration| to.saturating_sub(from).as_secs_f64();
        self.return_seconds = seconds(returned, counted.first);
        self.most_seconds = seconds(counted.first, counted.most);
        self.back_seconds = seconds(counted.first, counted.last);
        self.back_cpu_seconds = cpu.as_secs_f64();
        self.refused = f64::from(u32::try_from(counted.refused).unwrap_or(u32::MAX));
    }
}

fn kibibytes(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes / 1024).unwrap_or(u32::MAX)) * 1024.0
}

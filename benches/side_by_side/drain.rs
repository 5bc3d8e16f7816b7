//! How fast a backlog is drained, and what it costs.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::contestants::{self, Delivering, Task};
use crate::figures::{mebibytes, median, table, thousands};
use crate::ground::{Ground, Load};
use crate::process::{self, Deadline};

/// One part.
#[derive(Debug)]
pub(crate) struct Drain {
    pub(crate) title: &'static str,
    pub(crate) load: Load,
    pub(crate) rows: u32,
    pub(crate) batch_size: u32,
    pub(crate) runs: u32,
}

/// What one run took.
#[derive(Clone, Debug, Default)]
struct Run {
    /// From the start of the process to the end.
    seconds: f64,
    /// From the first request to the last.
    delivering_seconds: f64,
    consumer_cpu: f64,
    walsender_cpu: f64,
    receiver_cpu: f64,
    peak_bytes: f64,
    requests: f64,
}

impl Drain {
    /// Writes the load, then lets all drain it in turns.
    pub(crate) async fn run(&self, ground: &Ground, against: Option<&Path>) -> anyhow::Result<String> {
        let end = ground.load(self.load, self.rows).await?;
        let (mut reader, mut walhook, mut other) = (Vec::new(), Vec::new(), Vec::new());
        for number in 1..=self.runs {
            let slot = format!("reader_{number}");
            ground.copy_slot(&slot).await?;
            reader.push(self.reader(ground, &slot, &end).await?);
            ground.drop_slot(&slot).await?;
            // Who comes right after pg_recvlogical is slower by some per cent. Where builds are compared, a run that does not
            // count takes that place.
            let mut uncounted = Vec::new();
            let mut builds = vec![(None, &mut walhook)];
            if let Some(program) = against {
                builds.push((Some(program), &mut other));
                if number % 2 == 0 {
                    builds.reverse();
                }
                builds.insert(0, (None, &mut uncounted));
            }
            for (turn, (program, runs)) in builds.into_iter().enumerate() {
                let slot = format!("walhook_{number}_{turn}");
                ground.copy_slot(&slot).await?;
                runs.push(self.walhook(ground, &slot, program).await?);
                ground.drop_slot(&slot).await?;
            }
        }
        ground.drop_base().await?;
        Ok(self.report(&reader, &walhook, &other))
    }

    async fn reader(&self, ground: &Ground, slot: &str, end: &str) -> anyhow::Result<Run> {
        let deadline = Deadline::for_messages(self.rows);
        let started = Instant::now();
        let reader = contestants::reader(ground, slot, Some(end), Stdio::null())?;
        let mut run = Run::default();
        let mut walsender = None;
        while !reader.has_ended() {
            deadline.check("pg_recvlogical to reach the end")?;
            run.see(ground, slot, &mut walsender, reader.pid()).await?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        run.seconds = started.elapsed().as_secs_f64();
        run.consumer_cpu = reader.cpu().as_secs_f64();
        reader.finish().await?;
        Ok(run)
    }

    async fn walhook(&self, ground: &Ground, slot: &str, program: Option<&Path>) -> anyhow::Result<Run> {
        let (table, batch_size, messages) = (self.load.table(), self.batch_size, self.rows);
        let task = Task { program, slot, table, batch_size, messages, latency: false, away: None };
        let deadline = Deadline::for_messages(self.rows);
        let mut delivering = Delivering::start(ground, task).await?;
        let mut run = Run::default();
        let mut walsender = None;
        let counted = loop {
            if let Some(counted) = delivering.counted(deadline).await? {
                break counted;
            }
            run.see(ground, slot, &mut walsender, delivering.daemon.pid()).await?;
        };
        run.see(ground, slot, &mut walsender, delivering.daemon.pid()).await?;
        run.consumer_cpu = delivering.daemon.cpu().as_secs_f64();
        run.receiver_cpu = delivering.receiver.cpu().as_secs_f64();
        run.seconds = counted.last.saturating_sub(delivering.started).as_secs_f64();
        run.delivering_seconds = counted.last.saturating_sub(counted.first).as_secs_f64();
        run.requests = f64::from(u32::try_from(counted.requests)?);
        delivering.stop().await?;
        Ok(run)
    }

    fn report(&self, reader: &[Run], walhook: &[Run], other: &[Run]) -> String {
        let rows = f64::from(self.rows);
        let of = |runs: &[Run], figure: fn(&Run) -> f64| median(runs.iter().map(figure).collect());
        let base = of(reader, |run| run.seconds);
        let micros = |seconds: f64| format!("{:.2}", seconds / rows * 1e6);
        let line = |name: &str, runs: &[Run], seconds: f64| {
            let cpu = |figure| micros(of(runs, figure));
            let (consumer, walsender) = (cpu(|run| run.consumer_cpu), cpu(|run| run.walsender_cpu));
            let peak = mebibytes(of(runs, |run| run.peak_bytes));
            let receiver = cpu(|run| run.receiver_cpu);
            let (time, rate, ratio) =
                (format!("{seconds:.2}"), thousands(rows / seconds), format!("{:.2}", base / seconds));
            vec![name.to_owned(), time, rate, ratio, consumer, walsender, receiver, peak]
        };
        let seconds = |runs: &[Run]| of(runs, |run| run.seconds);
        let heads = ["", "seconds", "messages/s", "ratio", "CPU µs/msg", "walsender", "receiver", "peak MiB"];
        let mut rows = vec![
            heads.map(str::to_owned).to_vec(),
            line("pg_recvlogical", reader, seconds(reader)),
            line("walhook", walhook, seconds(walhook)),
            line("walhook, first to last request", walhook, of(walhook, |run| run.delivering_seconds)),
        ];
        if !other.is_empty() {
            rows.push(line("walhook, the other build", other, seconds(other)));
        }
        format!("{}\n{}\n{}\n", self.heading(), table(&rows), self.remarks(reader, walhook))
    }

    fn heading(&self) -> String {
        let Self { title, load, rows, batch_size, runs } = self;
        let what = match load {
            Load::Rows => "rows inserted in transactions of 1,000",
            Load::HotKeys => "updates of 10 rows in transactions of 1,000",
            Load::OneTransaction => "rows inserted in one transaction",
            Load::Documents => "rows with jsonb of 500 bytes inserted in transactions of 1,000",
            Load::Numbers => "rows of 8 numbers and 8 times inserted in transactions of 1,000",
            Load::Customers => "rows of 100,000 customers inserted in transactions of 1,000",
        };
        let rows = thousands(f64::from(*rows));
        format!("## {title}: {rows} {what}, batch_size {batch_size}, medians of {runs}\n")
    }

    /// Every run, and how busy everyone was: what is near 100 % of a core bounds the rest.
    fn remarks(&self, reader: &[Run], walhook: &[Run]) -> String {
        let times = |runs: &[Run]| runs.iter().map(|run| format!("{:.2}", run.seconds)).collect::<Vec<_>>().join(", ");
        let share =
            |figure: fn(&Run) -> f64| 100.0 * median(walhook.iter().map(|run| figure(run) / run.seconds).collect());
        let requests = median(walhook.iter().map(|run| run.requests / run.delivering_seconds).collect());
        let per_request = median(walhook.iter().map(|run| f64::from(self.rows) / run.requests).collect());
        format!(
            "runs: pg_recvlogical {}; walhook {} s · walhook's requests: {} a second, {per_request:.1} messages each\n\
             shares of a core while walhook ran: walsender {:.0} %, walhook {:.0} %, receiver {:.0} % · load average: {}",
            times(reader),
            times(walhook),
            thousands(requests),
            share(|run| run.walsender_cpu),
            share(|run| run.consumer_cpu),
            share(|run| run.receiver_cpu),
            process::load_average(),
        )
    }
}

impl Run {
    /// Takes down what cannot be read any more when the run has ended.
    async fn see(
        &mut self,
        ground: &Ground,
        slot: &str,
        walsender: &mut Option<u32>,
        consumer: u32,
    ) -> anyhow::Result<()> {
        if walsender.is_none() {
            *walsender = ground.walsender(slot).await?;
        }
        if let Some(cpu) = walsender.and_then(process::cpu) {
            self.walsender_cpu = cpu.as_secs_f64();
        }
        if let Some(peak) = process::peak_bytes(consumer) {
            self.peak_bytes = f64::from(u32::try_from(peak / 1024)?) * 1024.0;
        }
        Ok(())
    }
}

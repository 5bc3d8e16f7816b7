//! walhook beside `pg_recvlogical`: both read the same WAL of the same throw-away Postgres, one after the other, in turns.
//!
//! `pg_recvlogical` writes what it reads to /dev/null and delivers nothing: its time is the price of logical decoding and
//! of a plain reader. walhook has to deliver the same changes to a receiver on the same machine until the receiver has
//! counted them all. docs/BENCHMARKS.md says what each part measures and keeps figures.
//!
//! `ground` is the database, its tables and loads; `contestants` are the two programs with the receiver; `receiver` is
//! what this binary does when it is run again as the endpoint, and `order` what it looks at; `drain`, `trickle` and
//! `outage` are the parts; `process` reads CPU time and memory; `figures` makes medians and tables.

#[path = "side_by_side/contestants.rs"]
mod contestants;
#[path = "side_by_side/drain.rs"]
mod drain;
#[path = "side_by_side/figures.rs"]
mod figures;
#[path = "side_by_side/ground.rs"]
mod ground;
#[path = "side_by_side/order.rs"]
mod order;
#[path = "side_by_side/outage.rs"]
mod outage;
#[path = "side_by_side/process.rs"]
mod process;
#[path = "side_by_side/receiver.rs"]
mod receiver;
#[path = "side_by_side/trickle.rs"]
mod trickle;

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::drain::Drain;
use crate::ground::{Ground, Load};
use crate::outage::Outage;
use crate::receiver::Away;

/// walhook beside pg_recvlogical on a throw-away Postgres.
#[derive(Debug, Parser)]
struct Args {
    /// Rows of a drain.
    #[arg(long, default_value_t = 1_000_000)]
    rows: u32,
    /// Runs of each contestant in each part; the median counts.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// A tenth of the rows, one run, a short trickle: to see that it works.
    #[arg(long)]
    quick: bool,
    /// Another build of walhook that drains and trickles in turns with this one, such as that of the version before.
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,
    /// What cargo passes.
    #[arg(long, hide = true, global = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Many rows in transactions of 1,000, batches of 100.
    Drain,
    /// As many updates of 10 rows.
    Hot,
    /// As many rows in one transaction.
    Bigtx,
    /// A third of the rows, each with documents of about 500 bytes in jsonb.
    Jsonb,
    /// As many rows as the drain, each with 8 numbers and 8 times.
    Numbers,
    /// One-row transactions at 1,000 a second, batches of 1: latency.
    Trickle,
    /// A fifth of the rows, one message a request.
    Single,
    /// The rows while the endpoint is away, once refusing connections, once answering 503: into the store and back.
    Outage,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// The endpoint, which counts.
    #[command(hide = true)]
    Receive(receiver::Receive),
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(Role::Receive(options)) = &args.role {
        return receiver::serve(options);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        // Whatever ends it, the children and the cluster go with the future.
        tokio::select! {
            done = Box::pin(run(&args)) => done,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })
}

async fn run(args: &Args) -> anyhow::Result<()> {
    let rows = if args.quick { args.rows / 10 } else { args.rows }.max(1000);
    let runs = if args.quick { 1 } else { args.runs.max(1) };
    let ground = Ground::start().await.context("could not start a throw-away Postgres")?;
    say(&format!("# {} · {}\n", ground.version().await?, process::machine()))?;
    let has = |part| args.only.is_empty() || args.only.contains(&part);
    // Whole transactions of 1,000.
    let a_third = (rows / 3000).max(1) * 1000;
    let drains = [
        (Part::Drain, Drain { title: "Drain", load: Load::Rows, rows, batch_size: 100, runs }),
        (Part::Hot, Drain { title: "Hot keys", load: Load::HotKeys, rows, batch_size: 100, runs }),
        (Part::Bigtx, Drain { title: "One transaction", load: Load::OneTransaction, rows, batch_size: 100, runs }),
        (Part::Jsonb, Drain { title: "Documents", load: Load::Documents, rows: a_third, batch_size: 100, runs }),
        (Part::Numbers, Drain { title: "Numbers and times", load: Load::Numbers, rows, batch_size: 100, runs }),
        (Part::Single, Drain { title: "Single messages", load: Load::Rows, rows: rows / 5, batch_size: 1, runs }),
    ];
    for (_, drain) in drains.iter().filter(|(part, _)| has(*part)) {
        say(&drain.run(&ground, args.against.as_deref()).await.with_context(|| format!("{} failed", drain.title))?)?;
    }
    if has(Part::Trickle) {
        let trickle = if args.quick { trickle::Trickle::quick() } else { trickle::Trickle::new(runs) };
        say(&trickle.run(&ground, args.against.as_deref()).await.context("Trickle failed")?)?;
    }
    if has(Part::Outage) {
        for away in [Away::Unavailable, Away::Refuses] {
            let outage = Outage { away, rows, runs };
            say(&outage.run(&ground).await.context("Outage failed")?)?;
        }
    }
    say(&format!("load average at the end: {}", process::load_average()))
}

/// Prints at once: a part takes minutes.
fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

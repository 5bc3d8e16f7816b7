//! How many messages a second go into the store, come back, and leave it: the store alone, on real files with real syncs.
//!
//! The messages are rendered from rows of about 200 bytes. A batch is handed over when the one before is durable, as a
//! sink does it, so every batch costs one sync of the disk; how long such a sync takes is printed, because it bounds the
//! rest. Reading goes over what was just written, which the machine still has in memory.

#[path = "side_by_side/figures.rs"]
#[expect(dead_code, reason = "the side-by-side bench shares its tables, and has more to say")]
mod figures;

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use clap::Parser;
use tokio::runtime::Runtime;
use walhook::change::{
    Change, Column, Datum, Equality, Lsn, ReplicaIdentity, Row, Table, TableName, Transaction, Tuple,
};
use walhook::config::{Hold, MessageForm, Numbers, StateConfig};
use walhook::record::{Kind, Rendering, RenderingSettings};
use walhook::store::{Batch, Home, KeptMessage, LaneWant, MessageFacts, Op, SinkKey, Store};
use walhook::ties::{Barrier, GroupId, Groups, ScopeId};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::figures::{median, table, thousands};

/// Changes of a transaction of the load.
const TRANSACTION: u64 = 1000;
/// Bytes of JSON that are read at once, as a sink does it.
const READ_BYTES: usize = 1 << 20;
/// Messages that are read from a lane at once: twice a batch of 100.
const LANE_MESSAGES: usize = 200;
/// Lanes that are read at once.
const LANES: usize = 100;
/// Messages that leave in one batch.
const LEAVE: usize = 2000;

/// The store on its own: messages a second in, back, out.
#[derive(Debug, Parser)]
struct Args {
    /// Messages of a part.
    #[arg(long, default_value_t = 200_000)]
    messages: u64,
    /// Runs of each part; the median counts.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// The disk: a directory in which a throw-away one is made.
    #[arg(long)]
    on: Option<PathBuf>,
    /// What cargo passes.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is written and read.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// Pages of so many messages, so many pages a batch.
    Pages { messages: usize, per_batch: usize },
    /// So many messages a batch, each in a lane of its own.
    DistinctLanes { per_batch: usize },
    /// So many messages a batch, all in one lane.
    HotLane { per_batch: usize },
}

/// A page of a sink holds about 1 MiB; one of 500 messages is the smaller half of what comes in life.
const PARTS: [Part; 5] = [
    Part::Pages { messages: 500, per_batch: 1 },
    Part::Pages { messages: 500, per_batch: 4 },
    Part::Pages { messages: 2000, per_batch: 1 },
    Part::DistinctLanes { per_batch: 2000 },
    Part::HotLane { per_batch: 2000 },
];

/// Messages a second, and what they took.
#[derive(Clone, Copy, Debug)]
struct Rates {
    write: f64,
    read: f64,
    leave: f64,
    bytes_a_message: f64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let messages = rendered(args.messages.max(TRANSACTION))?;
    let bytes: usize = messages.iter().map(|message| message.json.len()).sum();
    let disk = temporary(&args)?;
    let sync = sync_time(disk.path())?;
    say(&format!(
        "## Store: {} messages of {} bytes of JSON, medians of {} · 1 MiB written and synced takes {:.1} ms here\n",
        thousands(number(messages.len())?),
        bytes / messages.len(),
        args.runs,
        sync.as_secs_f64() * 1e3,
    ))?;
    let heads = ["messages/s", "write", "read back", "leave", "bytes of disk a message"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for part in PARTS {
        let runs = (0..args.runs.max(1)).map(|_| part.run(&runtime, &args, &messages));
        let runs = runs.collect::<anyhow::Result<Vec<_>>>().with_context(|| format!("{} failed", part.name()))?;
        let of = |figure: fn(&Rates) -> f64| thousands(median(runs.iter().map(figure).collect()));
        let figures = [of(|run| run.write), of(|run| run.read), of(|run| run.leave), of(|run| run.bytes_a_message)];
        rows.push(std::iter::once(part.name()).chain(figures).collect());
    }
    say(&table(&rows))
}

impl Part {
    fn name(self) -> String {
        match self {
            Self::Pages { messages, per_batch: 1 } => format!("overflow, pages of {messages}"),
            Self::Pages { messages, per_batch } => format!("overflow, pages of {messages}, {per_batch} a batch"),
            Self::DistinctLanes { per_batch } => format!("lanes, each message its own, {per_batch} a batch"),
            Self::HotLane { per_batch } => format!("lanes, all in one, {per_batch} a batch"),
        }
    }

    /// Once, in a store of its own.
    fn run(self, runtime: &Runtime, args: &Args, messages: &[KeptMessage]) -> anyhow::Result<Rates> {
        let directory = temporary(args)?;
        let rig = Rig::open(runtime, directory.path())?;
        let count = number(messages.len())?;
        let rates = match self {
            Self::Pages { messages: each, per_batch } => rig.pages(messages, each, per_batch)?,
            Self::DistinctLanes { per_batch } => {
                let wants: Vec<_> = messages.iter().map(|message| vec![group_of(message)]).collect();
                rig.lanes(messages, per_batch, &wants.concat())?
            }
            Self::HotLane { per_batch } => {
                let one = GroupId(7);
                let in_one: Vec<_> = messages.iter().map(|message| in_group(message, one)).collect();
                rig.lanes(&in_one, per_batch, &[one])?
            }
        };
        rig.store.close();
        let per_second = |took: Duration| count / took.as_secs_f64();
        let Took { write, read, leave, bytes } = rates;
        Ok(Rates {
            write: per_second(write),
            read: per_second(read),
            leave: per_second(leave),
            bytes_a_message: bytes / count,
        })
    }
}

/// A store with one sink.
struct Rig<'a> {
    runtime: &'a Runtime,
    store: Store,
    sink: SinkKey,
}

/// What a part took, and the bytes of the files when all was in.
struct Took {
    write: Duration,
    read: Duration,
    leave: Duration,
    bytes: f64,
}

impl<'a> Rig<'a> {
    fn open(runtime: &'a Runtime, directory: &Path) -> anyhow::Result<Self> {
        let config = StateConfig {
            path: directory.join("state"),
            hold: Hold::Store,
            max_bytes: 10 << 30,
            dead_letter_retention: Duration::from_secs(7 * 86_400),
            log_retention: Duration::from_secs(86_400),
            log_max_rows: 100_000,
        };
        let store = Store::open(&config, 1)?;
        store.register("app", &["bench"])?;
        let (sink, _) = store.load("app", "bench")?;
        Ok(Self { runtime, store, sink })
    }

    /// Hands over one batch and waits until it is durable.
    fn write(&self, ops: Vec<Op>) -> anyhow::Result<()> {
        let durable = self.store.submit(Batch { sink: self.sink, ops, progress: None });
        self.runtime.block_on(durable).context("the store refused a batch")
    }

    fn pages(&self, messages: &[KeptMessage], each: usize, per_batch: usize) -> anyhow::Result<Took> {
        let pages: Vec<Vec<KeptMessage>> = messages.chunks(each).map(<[_]>::to_vec).collect();
        let sizes: Vec<usize> = pages.iter().map(Vec::len).collect();
        let mut ops = (0..).zip(pages).map(|(page, messages)| Op::Page { page, messages });
        let began = Instant::now();
        loop {
            let batch: Vec<Op> = ops.by_ref().take(per_batch).collect();
            if batch.is_empty() {
                break;
            }
            self.write(batch)?;
        }
        let write = began.elapsed();
        let bytes = self.used_bytes()?;

        let (began, mut from, mut came) = (Instant::now(), 0, 0);
        loop {
            let pages = self.runtime.block_on(self.store.pages(self.sink, from, READ_BYTES))?;
            let Some(last) = pages.last() else { break };
            from = last.page + 1;
            came += pages.iter().map(|page| page.messages.len()).sum::<usize>();
        }
        let read = began.elapsed();
        ensure!(came == messages.len(), "{came} messages came back of {}", messages.len());

        let mut homes = (0..)
            .zip(&sizes)
            .flat_map(|(page, messages)| (0..).take(*messages).map(move |index| Home::Page { page, index }));
        let leave = self.leave(&mut homes)?;
        Ok(Took { write, read, leave, bytes })
    }

    fn lanes(&self, messages: &[KeptMessage], per_batch: usize, groups: &[GroupId]) -> anyhow::Result<Took> {
        let batches: Vec<Vec<KeptMessage>> = messages.chunks(per_batch).map(<[_]>::to_vec).collect();
        let began = Instant::now();
        for messages in batches {
            self.write(vec![Op::Lanes(messages)])?;
        }
        let write = began.elapsed();
        let bytes = self.used_bytes()?;

        let began = Instant::now();
        let came = groups.chunks(LANES).map(|groups| self.lanes_back(groups)).sum::<anyhow::Result<usize>>()?;
        let read = began.elapsed();
        ensure!(came == messages.len(), "{came} messages came back of {}", messages.len());

        let mut homes = messages.iter().map(|message| Home::Lane(message.facts.position));
        let leave = self.leave(&mut homes)?;
        Ok(Took { write, read, leave, bytes })
    }

    /// Reads lanes to their ends.
    fn lanes_back(&self, groups: &[GroupId]) -> anyhow::Result<usize> {
        let mut wants: Vec<LaneWant> = groups.iter().map(|group| LaneWant { group: *group, after: None }).collect();
        let mut came = 0;
        while !wants.is_empty() {
            let read = self.store.lanes(self.sink, wants.clone(), LANE_MESSAGES, READ_BYTES);
            for lane in self.runtime.block_on(read)? {
                came += lane.messages.len();
                let last = lane.messages.last().map(|message| message.facts.position);
                let is_whole = lane.messages.len() < LANE_MESSAGES && groups.len() > 1;
                wants.retain_mut(|want| {
                    let is_it = want.group == lane.group;
                    if is_it {
                        want.after = last.or(want.after);
                    }
                    !is_it || (last.is_some() && !is_whole)
                });
            }
        }
        Ok(came)
    }

    fn leave(&self, homes: &mut dyn Iterator<Item = Home>) -> anyhow::Result<Duration> {
        let began = Instant::now();
        loop {
            let batch: Vec<Home> = homes.take(LEAVE).collect();
            if batch.is_empty() {
                return Ok(began.elapsed());
            }
            self.write(vec![Op::Leave(batch)])?;
        }
    }

    fn used_bytes(&self) -> anyhow::Result<f64> {
        Ok(f64::from(u32::try_from(self.store.health().used_bytes / 1024)?) * 1024.0)
    }
}

/// Messages of inserts, as a sink renders them, each of a group of its own.
fn rendered(count: u64) -> anyhow::Result<Vec<KeptMessage>> {
    let (form, numbers) = (MessageForm::Change, Numbers::Json);
    let rendering = Rendering::new(&RenderingSettings { source: "app", sink: "bench", form, numbers, system_id: 7 });
    let items = items();
    let mut out = Vec::new();
    let mut messages = Vec::with_capacity(usize::try_from(count)?);
    for row in 0..count {
        let change = insert(&items, row)?;
        out.clear();
        rendering.append(&change, &mut out);
        let facts = MessageFacts {
            id: rendering.message_id(change.position()),
            position: change.position(),
            groups: Groups::One(GroupId(xxh3_64(&row.to_le_bytes()))),
            scope: ScopeId::of_event(items.event(change.action())),
            barrier: Barrier::None,
            commit_micros: change.transaction.commit_micros,
            event: Arc::clone(items.event(change.action())),
            group: Some(row.to_string().into()),
        };
        messages.push(KeptMessage { facts, json: Bytes::copy_from_slice(&out) });
    }
    Ok(messages)
}

/// The table of the side-by-side bench.
fn items() -> Arc<Table> {
    let columns = [
        ("id", Kind::BigInt),
        ("customer_id", Kind::Int),
        ("note", Kind::Text),
        ("created_at", Kind::TimestampTz),
        ("amount", Kind::Numeric),
        ("is_open", Kind::Bool),
    ];
    let columns = columns.into_iter().map(|(name, kind)| Column {
        name: name.to_owned(),
        type_oid: 0,
        type_modifier: -1,
        in_identity: name == "id",
        kind,
        equality: Equality::Text,
        shape: 0,
        altered: None,
    });
    let name = TableName { schema: "public".to_owned(), table: "items".to_owned() };
    Arc::new(Table::new(1, name, ReplicaIdentity::Default, columns.collect(), vec![0]))
}

fn insert(items: &Arc<Table>, row: u64) -> anyhow::Result<Change> {
    // Letters that hardly repeat, so that what lz4 makes of a page is no better than in life.
    let note = (0..4).map(|part| format!("{:032x}", xxh3_128(&(row * 4 + part).to_le_bytes()))).collect::<String>();
    let texts = [
        row.to_string(),
        (row % 100_000).to_string(),
        note,
        format!("2024-03-20 15:30:{:02}.{:06}+00", row / 1000 % 60, row % 1_000_000),
        format!("{}.25", row % 1000),
        if row.is_multiple_of(2) { "t" } else { "f" }.to_owned(),
    ];
    let values: Vec<_> = texts.iter().map(|text| Datum::Text(text.as_bytes())).collect();
    let transaction = Transaction {
        commit_lsn: Lsn(123_456_789 + row / TRANSACTION * 250_000),
        commit_micros: 1_710_948_600_123_456 + i64::try_from(row)?,
        xid: 7,
    };
    Ok(Change {
        transaction: Arc::new(transaction),
        index: row % TRANSACTION + 1,
        table: Arc::clone(items),
        row: Row::Insert { new: Tuple::from_values(&values) },
        annotations: None,
        oversize: None,
        received_at: Instant::now(),
    })
}

fn in_group(message: &KeptMessage, group: GroupId) -> KeptMessage {
    let mut message = message.clone();
    message.facts.groups = Groups::One(group);
    message
}

fn group_of(message: &KeptMessage) -> GroupId {
    match message.facts.groups {
        Groups::One(group) | Groups::Two(group, _) => group,
        Groups::None => walhook::store::UNGROUPED,
    }
}

fn temporary(args: &Args) -> anyhow::Result<tempfile::TempDir> {
    let made = args.on.as_ref().map_or_else(tempfile::tempdir, tempfile::tempdir_in);
    made.context("could not make a directory")
}

/// The median time of a write of 1 MiB with its sync: the least that a batch costs on this disk.
fn sync_time(directory: &Path) -> anyhow::Result<Duration> {
    let mut file = File::create(directory.join("sync"))?;
    let piece = vec![7; 1 << 20];
    let mut times = Vec::new();
    for _ in 0..21 {
        let began = Instant::now();
        file.write_all(&piece)?;
        file.sync_data()?;
        times.push(began.elapsed().as_secs_f64());
    }
    Ok(Duration::from_secs_f64(median(times)))
}

fn number(count: usize) -> anyhow::Result<f64> {
    Ok(f64::from(u32::try_from(count)?))
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

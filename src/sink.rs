//! The task that owns a sink's [`Scheduler`] and carries out its commands.
//!
//! Changes and marks come in from the source; deliveries go out as attempts, each in a task of its own; outcomes come
//! back. What is decided, the scheduler decides. What is here: the payloads of deliveries (messages until the first attempt
//! has rendered them, the frozen body from then on, nothing but the id once the store has it), the attempts' tasks, the
//! clock, the [`ledger`] of what the store must know, and telling others: the source how far all is resolved and durable,
//! people what goes wrong.
//!
//! Bounds: attempts under way by `max_in_flight`; the channel from the source by [`FEED_BATCHES_MAX`] batches (full: the
//! source waits, and goes on answering the server); what waits in memory by the sink's share of the source's gauge (full:
//! new messages go to the store; if that takes none either, the source is held); what is on its way into the store by
//! one batch and the one that gathers.

mod arrivals;
mod attempts;
mod content;
pub mod fetch;
mod history;
mod keeping;
mod leaving;
mod ledger;
mod report;
mod restore;
mod rules;
mod slowness;
mod stored;
mod tables;
mod unsendable;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use self::attempts::Ended;
use self::content::{Content, Delivery, Payload};
use self::fetch::Fetching;
use self::keeping::Read;
use self::ledger::{Ledger, Lost};
use self::report::Report;
use self::tables::Tables;
use crate::change::Lsn;
use crate::config::{Hold, SinkConfig};
use crate::deliver::endpoint::Endpoint;
use crate::feed::{Feed, Progress};
use crate::machine::clock;
use crate::memory::{Charge, Memory};
use crate::metrics::SinkMetrics;
use crate::record::Rendering;
use crate::schedule::resume::Resume;
use crate::schedule::{self, Command, DeliveryKey, Pressure, Scheduler, StoreRoom, World, WriteId};
use crate::store::{KeptProgress, Loaded, SinkKey, Store};
use crate::view::SharedViews;

/// Batches of changes in the channel from the source.
pub const FEED_BATCHES_MAX: usize = 4;
/// Deliverable messages beyond which a sink wants no more, once every request slot could be filled twice.
const READY_MESSAGES_ENOUGH: usize = 8192;
/// The same in bytes.
const READY_BYTES_ENOUGH: usize = 4 << 20;
/// What a sink gathers for the store, writes or reads back at once is a sixteenth of the memory for all sinks together, and
/// at least this for one.
const AT_ONCE_PARTS: usize = 16;
const AT_ONCE_LEAST: usize = 32 << 10;
/// What an unresolved message costs beside its row values: its places in the scheduler's queues, the message in them, and
/// the slack of containers that grow by doubling.
const MESSAGE_OVERHEAD_BYTES: usize = Scheduler::<Payload>::MESSAGE_BYTES * 3 / 2;
/// What a message in a delivery of the store costs: what is known of it.
const MEMBER_BYTES: usize = 512;
/// How often the view and the gauges are brought up to date.
const VIEW_EVERY: Duration = Duration::from_millis(250);

/// What a sink is made of.
pub struct Sink {
    /// Its rules.
    pub config: Arc<SinkConfig>,
    /// Where what cannot be delivered soon waits.
    pub hold: Hold,
    /// Where they go.
    pub endpoint: Endpoint,
    /// The source's gauge.
    pub memory: Memory,
    /// Sinks that share the gauge, this one included.
    pub sharers: usize,
    /// Its metrics.
    pub metrics: SinkMetrics,
    /// The source's counter of values that were passed as text for want of better.
    pub text_fallback_values: metrics::Counter,
    /// Where it shows itself.
    pub views: SharedViews,
    /// From the source. Its end is the order to stop.
    pub feed: mpsc::Receiver<Vec<Feed>>,
    /// To the source.
    pub progress: Arc<Progress>,
    /// Reads values that were left out, if the sink wants that.
    pub fetching: Option<Fetching>,
    /// What must outlive the process.
    pub store: Store,
    /// Its name there.
    pub key: SinkKey,
    /// What the store has of it.
    pub loaded: Loaded,
    /// Seed of the jitter.
    pub seed: u64,
}

/// When a sink stops.
#[derive(Clone, Debug)]
pub struct Stopping {
    /// Start nothing more.
    pub stop: CancellationToken,
    /// How long attempts under way may go on after that.
    pub grace: Duration,
}

/// What a task needs of a [`Sink`] all the time.
struct Parts {
    config: Arc<SinkConfig>,
    endpoint: Endpoint,
    memory: Memory,
    sharers: usize,
    metrics: SinkMetrics,
    text_fallback_values: metrics::Counter,
    views: SharedViews,
    progress: Arc<Progress>,
    fetching: Option<Fetching>,
    keeps: bool,
}

struct Task {
    sink: Parts,
    feed: mpsc::Receiver<Vec<Feed>>,
    scheduler: Scheduler<Payload>,
    /// What surrounds it, as it was last looked at.
    world: World,
    deliveries: HashMap<DeliveryKey, Delivery>,
    attempts: JoinSet<Ended>,
    ledger: Ledger,
    reads: JoinSet<Read>,
    /// Deliveries on their way into the store.
    parked: HashMap<WriteId, Vec<DeliveryKey>>,
    resume: Option<Resume>,
    tables: Tables,
    /// The next page to be written and to be read.
    pages: (u64, u64),
    report: Report,
    overhead: Charge,
    /// Known from the first feed on.
    rendering: Option<Arc<Rendering>>,
    fallbacks_counted: u64,
    /// Row bytes of the largest message since none waited.
    largest_bytes: usize,
    log_name: Arc<str>,
    /// Acknowledged deliveries that are logged until the clock is looked at again.
    log_rows_left: u32,
}

impl Sink {
    /// Runs until `stopping` says so, all attempts under way have ended or their grace has, and the store has the rest.
    pub async fn run(self, stopping: Stopping) {
        let mut task = Task::new(self);
        if task.serve(&stopping.stop).await.is_ok() {
            task.drain(stopping.grace).await;
        }
        task.sink.endpoint.close().await;
    }
}

impl Task {
    fn new(sink: Sink) -> Self {
        let Sink { store, key, loaded, feed, hold, seed, .. } = sink;
        let sink = Parts {
            config: sink.config,
            endpoint: sink.endpoint,
            memory: sink.memory,
            sharers: sink.sharers.max(1),
            metrics: sink.metrics,
            text_fallback_values: sink.text_fallback_values,
            views: sink.views,
            progress: sink.progress,
            fetching: sink.fetching,
            keeps: hold == Hold::Store,
        };
        let at_once = sink.memory.share(AT_ONCE_PARTS, sink.sharers, AT_ONCE_LEAST).min(store.batch_bytes_max() / 2);
        let ready = sink.memory.share(AT_ONCE_PARTS / 2, sink.sharers, 2 * AT_ONCE_LEAST).min(READY_BYTES_ENOUGH);
        let mut task = Self {
            feed,
            scheduler: Scheduler::new(rules::rules(&sink.config, sink.keeps, (at_once, ready)), seed),
            world: World::EASY,
            deliveries: HashMap::new(),
            attempts: JoinSet::new(),
            ledger: Ledger::new(store, key, at_once),
            reads: JoinSet::new(),
            parked: HashMap::new(),
            resume: None,
            tables: Tables::default(),
            pages: (0, 0),
            report: Report::new(&sink.config),
            overhead: sink.memory.charge(0),
            rendering: None,
            fallbacks_counted: 0,
            largest_bytes: 0,
            log_name: sink.config.name.as_str().into(),
            log_rows_left: history::ROWS_A_TICK,
            sink,
        };
        task.restore(loaded);
        task.scheduler.keep_places(task.sink.sharers);
        task
    }

    async fn serve(&mut self, stop: &CancellationToken) -> Result<(), Lost> {
        let mut tick = interval(VIEW_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // What the store holds may be another database's until the source has said which one it is.
            let may_begin = self.rendering.is_some();
            if may_begin {
                self.carry_out();
                self.tell_store();
            }
            self.tell_source();
            let wake = [self.scheduler.poll_timeout(&self.world), self.ledger.due_at()].into_iter().flatten().min();
            let wake = wake.filter(|_| may_begin);
            let is_short = self.world.memory.is_short;
            tokio::select! {
                biased;
                // 1. A stop goes before work.
                () = stop.cancelled() => return Ok(()),
                // 2. Outcomes free slots and groups; they go before new changes.
                Some(ended) = self.attempts.join_next() => {
                    self.ended(ended);
                    while let Some(ended) = self.attempts.try_join_next() {
                        self.ended(ended);
                    }
                }
                // 3. What is durable may be confirmed, and what it lets go may go.
                durable = self.ledger.durable() => match durable {
                    Ok(durable) => self.durable(durable),
                    Err(Lost) => return Err(self.lost()),
                },
                // 4. What was read back can be delivered.
                Some(read) = self.reads.join_next() => self.read(read),
                // 5. Time: retries, batches that wait for more, what has waited too long.
                () = sleep_until(wake.unwrap_or_else(Instant::now).into()), if wake.is_some() => {}
                // 6. Room for another body, where it was short.
                () = self.sink.memory.relieved(), if is_short => {}
                // 7. News for people, so that a busy source cannot silence it.
                _ = tick.tick() => self.show(),
                // 8. Changes. The source ends first only at a stop.
                fed = self.feed.recv() => match fed {
                    Some(fed) => self.take_in(fed),
                    None => return Ok(()),
                },
            }
        }
    }

    /// Carries out what the scheduler wants done.
    fn carry_out(&mut self) {
        let now = Instant::now();
        self.world = World {
            memory: Pressure {
                is_share_full: self.is_over_share() || self.sink.progress.is_overdue(),
                is_short: self.sink.memory.is_exhausted(),
            },
            store: self.room(now),
            is_replaying: self.resume.as_ref().is_some_and(Resume::is_replaying),
            slept: clock::slept(),
        };
        while let Some(command) = self.scheduler.poll(now, &self.world) {
            match command {
                Command::Form { delivery, messages } => self.form(delivery, messages),
                Command::Attempt { delivery, number } => self.start(delivery, number),
                Command::Park { delivery, write } => self.park(delivery, write),
                Command::Spill { write, messages } => self.spill(write, messages),
                Command::Overflow { write, messages } => self.overflow(write, messages),
                Command::ReadLanes(wants) => self.read_lanes(wants),
                Command::ReadOverflow => self.read_overflow(),
            }
            self.world.store = self.room(now);
            // Each body that is begun is charged at once, so that many at a time cannot overlook each other.
            self.world.memory.is_short = self.sink.memory.is_exhausted();
        }
    }

    /// Whether the store takes more. A message that it may have no room for keeps everything in memory until it is delivered;
    /// as JSON it may be several times as long as its row.
    fn room(&self, now: Instant) -> StoreRoom {
        if self.ledger.is_stalled(now) {
            return StoreRoom::Stalled;
        }
        self.ledger.room(self.largest_bytes.saturating_mul(3))
    }

    /// Sends the next batch, if one is due.
    fn tell_store(&mut self) {
        let now = Instant::now();
        if self.ledger.is_due(now) {
            self.submit(now);
        }
    }

    fn submit(&mut self, now: Instant) {
        let high = self.resume.as_ref().map(Resume::high);
        let schedule::Progress { resolved, high, mut unresolved } = self.scheduler.progress(high);
        if let Some(resume) = &self.resume {
            unresolved.extend(resume.unresolved());
        }
        // Before the first mark, of a sink that is new or beyond an accepted gap, nothing is known.
        let progress = (resolved > Lsn::ZERO).then_some(KeptProgress { resolved, high, unresolved });
        self.ledger.submit(now, progress);
    }

    fn durable(&mut self, durable: ledger::Durable) {
        for write in durable.writes {
            self.scheduler.written(write);
            self.ledger.touch();
            for key in self.parked.remove(&write).unwrap_or_default() {
                // Its next attempt fetches the body.
                if let Some(delivery) = self.deliveries.get_mut(&key)
                    && let Some(id) = delivery.stored
                {
                    delivery.content = Content::Stored(id);
                }
            }
        }
        self.sink.progress.resolve(durable.resolved);
    }

    /// Whether what waits in memory takes more than the sink's share.
    fn is_over_share(&self) -> bool {
        let counts = self.scheduler.counts();
        let held = counts.waiting_bytes + counts.waiting * MESSAGE_OVERHEAD_BYTES + self.ledger.bytes();
        held > self.sink.memory.limit() / 2 / self.sink.sharers
    }

    /// Lets the source know whether more is wanted.
    fn tell_source(&mut self) {
        let counts = self.scheduler.counts();
        let config = &self.sink.config;
        let slots_twice = config.max_in_flight.saturating_mul(config.batch_size).saturating_mul(2);
        let enough = counts.ready >= slots_twice
            && (counts.ready >= READY_MESSAGES_ENOUGH || counts.ready_bytes >= READY_BYTES_ENOUGH);
        if counts.waiting == 0 {
            self.largest_bytes = 0;
        }
        let overflows = self.scheduler.is_overflowing();
        self.sink.progress.set_saturated(enough && !overflows);
        let is_replaying = self.resume.as_ref().is_some_and(Resume::is_replaying);
        let is_held = match self.room(Instant::now()) {
            StoreRoom::Open => false,
            StoreRoom::Busy | StoreRoom::Shut => self.sink.keeps && self.is_over_share(),
            StoreRoom::Stalled => true,
        };
        self.sink.progress.set_holds(!is_replaying && is_held);
        let waiting = (counts.unresolved + counts.waiting).saturating_sub(counts.ack_pending);
        let lanes = self.scheduler.lanes() * Scheduler::<Payload>::LANE_BYTES * 2;
        let places =
            (waiting * MESSAGE_OVERHEAD_BYTES).max(self.scheduler.places() * Scheduler::<Payload>::MESSAGE_BYTES);
        self.overhead.set(places + counts.ack_pending * MEMBER_BYTES + lanes);
    }

    fn show(&mut self) {
        self.log_rows_left = history::ROWS_A_TICK;
        if let Some(rendering) = &self.rendering {
            let fallbacks = rendering.fallbacks();
            self.sink.text_fallback_values.increment(fallbacks.saturating_sub(self.fallbacks_counted));
            self.fallbacks_counted = fallbacks;
        }
        let now = Instant::now();
        let under_way = self.deliveries.values().filter_map(|delivery| delivery.under_way);
        self.report.expired(&self.ledger.take_expired());
        let view = self.report.view(&self.sink, &self.scheduler, (now, under_way));
        self.sink.views.sinks.insert(self.sink.config.name.clone(), view);
    }
}

//! The task that owns a sink's [`Scheduler`] and carries out its commands.
//!
//! Changes and marks come in from the source; deliveries go out as attempts, each in a task of its own; outcomes come
//! back. What is decided, the scheduler decides. What is here: the payloads of deliveries (changes until the first attempt
//! has rendered them, the frozen body from then on), the attempts' tasks, the clock, and telling others: the source how
//! far all is resolved, people what goes wrong.
//!
//! Bounds: attempts under way by `max_in_flight`; the channel from the source by [`FEED_BATCHES_MAX`] batches (full: the
//! source waits, and goes on answering the server); bytes by the source's memory gauge (full: the source stops reading).

mod content;
pub mod feed;
mod report;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use self::content::{Content, Delivery, Facts, detached, freeze};
use self::feed::{Feed, Progress};
use self::report::Report;
use crate::change::Change;
use crate::config::SinkConfig;
use crate::deliver::attempt::{Attempt, Verdict};
use crate::deliver::category::Category;
use crate::deliver::endpoint::Endpoint;
use crate::deliver::frozen::Frozen;
use crate::memory::{Charge, Memory};
use crate::metrics::SinkMetrics;
use crate::record::{Rendering, RenderingSettings};
use crate::schedule::{Command, DeliveryKey, Failure, Message, Outcome, RetryRule, Rules, Scheduler};
use crate::view::SharedViews;

/// Batches of changes in the channel from the source.
pub const FEED_BATCHES_MAX: usize = 4;
/// Deliverable messages beyond which a sink wants no more, once every request slot could be filled twice.
const READY_MESSAGES_ENOUGH: usize = 8192;
/// The same in bytes.
const READY_BYTES_ENOUGH: usize = 4 << 20;
/// What an unresolved message costs beside its row values: its places in the scheduler's queues, the change in them, and
/// the slack of containers that grow by doubling.
const MESSAGE_OVERHEAD_BYTES: usize = Scheduler::<Change>::MESSAGE_BYTES * 3 / 2;
/// The most that stands around the messages of a body: `{"data":[]}`.
const BODY_FRAME_BYTES: usize = 11;
/// How often the view and the gauges are brought up to date.
const VIEW_EVERY: Duration = Duration::from_millis(250);

/// What a sink is made of.
pub struct Sink {
    /// Its rules.
    pub config: Arc<SinkConfig>,
    /// Where they go.
    pub endpoint: Endpoint,
    /// The source's gauge.
    pub memory: Memory,
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

/// An attempt that ended.
struct Ended {
    key: DeliveryKey,
    number: u32,
    frozen: Option<Frozen>,
    attempt: Attempt,
}

struct Task {
    sink: Sink,
    scheduler: Scheduler<Change>,
    deliveries: HashMap<DeliveryKey, Delivery>,
    attempts: JoinSet<Ended>,
    report: Report,
    overhead: Charge,
    /// Known from the first feed on.
    rendering: Option<Arc<Rendering>>,
    fallbacks_counted: u64,
}

impl Sink {
    /// Runs until `stopping` says so and all attempts under way have ended or their grace has.
    pub async fn run(self, stopping: Stopping) {
        let mut task = Task::new(self);
        task.serve(&stopping.stop).await;
        task.drain(stopping.grace).await;
    }
}

impl Task {
    fn new(sink: Sink) -> Self {
        let config = &sink.config;
        let rules = Rules {
            batch_size: config.batch_size,
            batch_bytes: config.batch_bytes.saturating_sub(BODY_FRAME_BYTES),
            batch_timeout: config.batch_timeout,
            max_ack_pending: config.max_ack_pending,
            max_in_flight: config.max_in_flight,
            retry: RetryRule { initial: config.retry.initial, max: config.retry.max },
            limits: crate::schedule::Limits::default(),
            on_exhausted: crate::schedule::OnExhausted::Continue,
            split_after: u32::MAX,
            keeps: false,
            enough: (READY_MESSAGES_ENOUGH, READY_BYTES_ENOUGH),
        };
        let mut scheduler = Scheduler::new(rules, sink.seed);
        if config.paused {
            scheduler.pause();
            info!(sink = %config.name, "sink is paused by its configuration: its changes wait");
        }
        let report = Report::new(config);
        let overhead = sink.memory.charge(0);
        let (deliveries, attempts) = (HashMap::new(), JoinSet::new());
        Self { sink, scheduler, deliveries, attempts, report, overhead, rendering: None, fallbacks_counted: 0 }
    }

    async fn serve(&mut self, stop: &CancellationToken) {
        let mut tick = interval(VIEW_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let cramped = self.sink.memory.is_exhausted();
            self.scheduler.set_cramped(cramped);
            self.carry_out();
            self.tell_source();
            let wake = self.scheduler.poll_timeout();
            tokio::select! {
                biased;
                // 1. A stop goes before work.
                () = stop.cancelled() => return,
                // 2. Outcomes free slots and groups; they go before new changes.
                Some(ended) = self.attempts.join_next() => {
                    self.ended(ended);
                    while let Some(ended) = self.attempts.try_join_next() {
                        self.ended(ended);
                    }
                }
                // 3. Time: retries, batches that wait for more.
                () = sleep_until(wake.unwrap_or_else(Instant::now).into()), if wake.is_some() => {}
                // 4. Room for another body, where it was short.
                () = self.sink.memory.relieved(), if cramped => {}
                // 5. News for people, so that a busy source cannot silence it.
                _ = tick.tick() => self.show(),
                // 6. Changes. The source ends first only at a stop.
                fed = self.sink.feed.recv() => match fed {
                    Some(fed) => self.take_in(fed),
                    None => return,
                },
            }
        }
    }

    /// Starts nothing, and waits for attempts under way. What the source still has to say, it says: marks for changes that
    /// are acknowledged already must reach the watermark, or those changes would come again.
    async fn drain(&mut self, grace: Duration) {
        self.scheduler.pause();
        let deadline = tokio::time::Instant::now() + grace;
        let mut fed_all = false;
        while !fed_all || !self.attempts.is_empty() {
            tokio::select! {
                () = sleep_until(deadline) => break,
                fed = self.sink.feed.recv(), if !fed_all => match fed {
                    Some(fed) => self.take_in(fed),
                    None => fed_all = true,
                },
                Some(ended) = self.attempts.join_next() => self.ended(ended),
            }
            self.tell_source();
        }
        if !self.attempts.is_empty() {
            let (sink, left) = (&self.sink.config.name, self.attempts.len());
            info!(sink, requests = left, "requests did not end within shutdown_grace; their messages come again");
            self.attempts.shutdown().await;
        }
        self.show();
    }

    fn take_in(&mut self, fed: Vec<Feed>) {
        let now = Instant::now();
        let mut messages = 0;
        for item in fed {
            match item {
                Feed::Database { system_id } => self.rendering = Some(self.rendering(system_id)),
                Feed::Change { change, groups } => {
                    messages += 1;
                    let bytes = self.body_bytes(&change);
                    let change = if self.is_crowded() { detached(change, &self.sink.memory) } else { change };
                    let position = change.position();
                    self.scheduler.push(now, Message { groups, bytes, position, payload: change });
                }
                Feed::Mark(lsn) => self.scheduler.mark(lsn),
            }
        }
        self.sink.metrics.received_messages.increment(messages);
    }

    fn rendering(&self, system_id: u64) -> Arc<Rendering> {
        let config = &self.sink.config;
        Arc::new(Rendering::new(&RenderingSettings {
            source: &config.source,
            sink: &config.name,
            form: config.message,
            numbers: config.numbers,
            system_id,
        }))
    }

    /// Bytes the change adds to a body at most; it matters only where several share one.
    fn body_bytes(&self, change: &Change) -> usize {
        let config = &self.sink.config;
        match &self.rendering {
            Some(rendering) if config.batch_size > 1 => {
                rendering.body_bytes_max(change, config.batch_bytes / config.batch_size)
            }
            Some(_) | None => change.len_bytes(),
        }
    }

    /// A change that waits long keeps the whole buffer it was read into; above a quarter of the limit it takes only its
    /// own bytes along.
    fn is_crowded(&self) -> bool {
        self.sink.memory.held() > self.sink.memory.limit() / 4
    }

    fn carry_out(&mut self) {
        let now = Instant::now();
        while let Some(command) = self.scheduler.poll(now) {
            match command {
                Command::Form { delivery, messages } => self.form(delivery, messages),
                Command::Attempt { delivery, number } => self.start(delivery, number),
                _ => {}
            }
        }
    }

    fn form(&mut self, key: DeliveryKey, messages: Vec<Change>) {
        let facts = Facts::of(&messages);
        self.sink.metrics.received_to_first_attempt.record(facts.oldest_received.elapsed());
        let content = Content::Changes(Arc::new(messages));
        self.deliveries.insert(key, Delivery { content, facts });
        self.start(key, 1);
    }

    /// Starts an attempt in a task of its own; the first one renders the body there.
    fn start(&mut self, key: DeliveryKey, number: u32) {
        let Some(delivery) = self.deliveries.get(&key) else { return };
        let content = delivery.content.clone();
        let Some(rendering) = self.rendering.clone() else { return };
        let (endpoint, memory) = (self.sink.endpoint.clone(), self.sink.memory.clone());
        let config = Arc::clone(&self.sink.config);
        self.attempts.spawn(async move {
            let started_at = SystemTime::now();
            let work = AssertUnwindSafe(async {
                let frozen = match content {
                    Content::Frozen(frozen) => frozen,
                    Content::Changes(changes) => freeze(&config, &rendering, &memory, &changes),
                };
                let attempt = endpoint.attempt(&frozen, number).await;
                (frozen, attempt)
            });
            // A panic is a failure of ours: the delivery stays, and comes again.
            match work.catch_unwind().await {
                Ok((frozen, attempt)) => Ended { key, number, frozen: Some(frozen), attempt },
                Err(_) => {
                    let attempt = Attempt::unbuildable(started_at, "the attempt panicked");
                    Ended { key, number, frozen: None, attempt }
                }
            }
        });
    }

    fn ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let ended = match ended {
            Ok(ended) => ended,
            Err(join) => {
                // Attempts catch their panics and are aborted only when the sink is.
                error!(sink = %self.sink.config.name, error = %join, "an attempt's task was lost");
                return;
            }
        };
        let Ended { key, number, frozen, attempt } = ended;
        self.sink.metrics.attempted(attempt.verdict.is_acknowledged(), attempt.status);
        self.sink.metrics.attempt_duration.record(attempt.duration);
        match &attempt.verdict {
            Verdict::Acknowledged => self.acknowledged(key, frozen),
            Verdict::Failed { category, message } => self.failed((key, number), frozen, &attempt, *category, message),
        }
    }

    fn acknowledged(&mut self, key: DeliveryKey, frozen: Option<Frozen>) {
        let Some(Delivery { facts, .. }) = self.deliveries.remove(&key) else { return };
        self.scheduler.outcome(Instant::now(), key, Outcome::Acknowledged);
        let metrics = &self.sink.metrics;
        metrics.acknowledged_deliveries.increment(1);
        metrics.acknowledged_messages.increment(u64::try_from(facts.messages).unwrap_or(u64::MAX));
        metrics.delivery_messages.record(f64::from(u32::try_from(facts.messages).unwrap_or(u32::MAX)));
        if let Some(frozen) = frozen {
            metrics.body_bytes.record(f64::from(u32::try_from(frozen.body.len()).unwrap_or(u32::MAX)));
        }
        if let Ok(taken) = SystemTime::now().duration_since(facts.oldest_commit) {
            metrics.commit_to_acknowledged.record(taken);
        }
        self.sink.progress.acknowledge();
        self.report.acknowledged(key, &facts);
    }

    fn failed(
        &mut self,
        (key, number): (DeliveryKey, u32),
        frozen: Option<Frozen>,
        attempt: &Attempt,
        category: Category,
        message: &str,
    ) {
        let failure = Failure { ours: category.is_ours(), trouble: false, refused: false, retry_after: attempt.retry_after };
        let now = Instant::now();
        let verdict = self.scheduler.outcome(now, key, Outcome::Failed(failure));
        self.sink.metrics.failed(category.as_str());
        let Some(delivery) = self.deliveries.get_mut(&key) else { return };
        if let (Content::Changes(changes), Some(frozen)) = (&delivery.content, &frozen) {
            // From here on the body is what is kept; the name of the group goes with the changes.
            delivery.facts.group =
                changes.first().and_then(|change| crate::source::route::group_text(change, &self.sink.config));
            delivery.content = Content::Frozen(frozen.clone());
        }
        let failed = report::Failed { number, attempt, category, message, verdict, id: frozen.map(|frozen| frozen.id) };
        self.report.failed(&failed, &delivery.facts);
    }

    /// Lets the source know how far all is resolved and whether more is wanted.
    fn tell_source(&mut self) {
        self.sink.progress.resolve(self.scheduler.resolved());
        let counts = self.scheduler.counts();
        let config = &self.sink.config;
        let slots_twice = config.max_in_flight.saturating_mul(config.batch_size).saturating_mul(2);
        let enough = counts.ready >= slots_twice
            && (counts.ready >= READY_MESSAGES_ENOUGH || counts.ready_bytes >= READY_BYTES_ENOUGH);
        self.sink.progress.set_saturated(enough);
        self.overhead.set(counts.unresolved * MESSAGE_OVERHEAD_BYTES);
    }

    fn show(&mut self) {
        if let Some(rendering) = &self.rendering {
            let fallbacks = rendering.fallbacks();
            self.sink.text_fallback_values.increment(fallbacks - self.fallbacks_counted);
            self.fallbacks_counted = fallbacks;
        }
        let view = self.report.view(&self.sink, &self.scheduler);
        self.sink.views.sinks.insert(self.sink.config.name.clone(), view);
    }
}

//! STATION 1: one database, read through one slot.
//!
//! A [`Source`] keeps a session with the database: it makes slot and publication ready, reads the stream, feeds the sinks
//! and confirms what all of them have resolved. When a session ends it waits and begins another, with what the sinks
//! still hold in memory intact; what was fed already is not fed again.
//!
//! Before the first stream it compares slot and store, and goes on only where nothing is lost.
//!
//! Not promised here: that a sink delivers, or that anything outlives the process. What is not confirmed, the server
//! sends again.

pub(crate) mod advice;
pub(crate) mod ahead;
pub mod connection;
mod end;
pub mod equality;
pub mod fetch;
mod gap;
mod hold;
mod housekeeping;
mod identity;
pub mod intake;
mod liveness;
pub(crate) mod notes;
mod opening;
mod overdue;
pub mod pgoutput;
mod problem;
pub mod relation;
pub mod route;
mod session;
pub mod slot;
pub(crate) mod standing;
mod vitals;
pub mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::connection::SystemIdentity;
use self::gap::TakingBack;
use self::intake::Intake;
use self::overdue::Overdue;
use self::problem::Problem;
pub use self::problem::SourceError;
use self::slot::LostSlot;
use self::slot::by_hand::Whose;
use crate::address::PgAddress;
use crate::change::Lsn;
use crate::config::{SinkConfig, SourceConfig};
use crate::fault::chain;
use crate::feed::{Feed, Progress};
use crate::memory::Memory;
use crate::metrics::SourceMetrics;
use crate::store::{AcceptedBy, Store, WentBack};
use crate::view::{SharedViews, SourceState, SourceView, Trouble};

/// Waits between sessions: doubled from the first to the last, each spread over its upper half.
const RECONNECT_INITIAL: Duration = Duration::from_millis(250);
const RECONNECT_MAX: Duration = Duration::from_secs(8);
/// How often a source that needs a person looks whether one has been, and whether the application's own writes fail meanwhile.
const STOPPED_RECHECK: Duration = Duration::from_secs(5);

/// A sink as its source sees it.
#[derive(Debug)]
pub struct Consumer {
    /// Its rules.
    pub config: SinkConfig,
    /// Where its changes go; gone once the source has said all in a stop.
    pub feed: Option<mpsc::Sender<Vec<Feed>>>,
    /// How far it is.
    pub progress: Arc<Progress>,
}

/// The two steps of a stop.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Read nothing more; the connection stays and statuses go on.
    pub reading: CancellationToken,
    /// The sinks have ended: confirm and leave.
    pub session: CancellationToken,
}

/// What a source is made of.
pub struct SourceParts {
    /// Its rules.
    pub config: SourceConfig,
    /// Its sinks, at least one.
    pub consumers: Vec<Consumer>,
    /// Told by sinks that want more; shared with their [`Progress`].
    pub appetite: Arc<Notify>,
    /// What it and its sinks hold.
    pub memory: Memory,
    /// Where it shows itself.
    pub views: SharedViews,
    /// Its metrics.
    pub metrics: SourceMetrics,
    /// What outlives the process.
    pub store: Store,
    /// Where that is.
    pub store_path: PathBuf,
    /// Sinks that left the config and still hold something.
    pub absent: Vec<Trouble>,
    /// Seed of the jitter.
    pub seed: u64,
}

/// See the module.
pub struct Source {
    config: SourceConfig,
    consumers: Vec<Consumer>,
    appetite: Arc<Notify>,
    memory: Memory,
    views: SharedViews,
    metrics: SourceMetrics,
    store: Store,
    store_path: PathBuf,
    rng: fastrand::Rng,
    intake: Intake,
    /// Of the addresses of the config, the server of the session: all its connections lead to that one, so that what one
    /// of them sees of the slot is true for the others.
    server: PgAddress,
    /// The cluster and timeline of the last session.
    known: Option<SystemIdentity>,
    /// The timeline that the store is bound to.
    bound_timeline: Option<u32>,
    /// What was confirmed of the source when the process started, if the store goes on with the slot.
    resolved_before: Option<Lsn>,
    /// From where changes are lost, if a person has accepted that.
    lost_from: Option<Lsn>,
    /// The last session was with a standby.
    on_standby: bool,
    /// The slot that is lost and is to be replaced, once that is decided.
    lost: Option<LostSlot>,
    /// Where the slot began that replaced a lost one in this life; what the sinks resolve below is not its concern.
    past_gap: Lsn,
    /// Until the sinks are so far the store holds a gap accepted.
    accepted_until: Option<Lsn>,
    taking_back: TakingBack,
    /// Who had accepted the gap that the start found, if it did.
    accepted_by: Option<AcceptedBy>,
    /// The sinks were told which database it is.
    has_begun: bool,
    /// The farthest LSN that was confirmed to the slot.
    confirmed: Lsn,
    /// Where the last change that was read stands.
    last_read: Lsn,
    overdue: Overdue,
    /// The server was not where it should be; no session begins any more.
    went_back: Option<WentBack>,
    /// A session of this run has streamed: faults from here on are waited out, not fatal.
    has_streamed: bool,
    failures: u32,
}

impl Source {
    /// A source that has not connected yet.
    pub fn new(parts: SourceParts) -> Self {
        let SourceParts { config, consumers, appetite, memory, views, metrics, store, store_path, absent, seed } =
            parts;
        let view = SourceView { absent, ..SourceView::new(SourceState::Connecting, SystemTime::now()) };
        views.sources.insert(config.name.clone(), view);
        let intake = Intake::new(consumers.iter().map(|consumer| consumer.config.clone()).collect());
        let server = config.url.clone();
        Self {
            config,
            consumers,
            appetite,
            memory,
            views,
            metrics,
            store,
            store_path,
            rng: fastrand::Rng::with_seed(seed),
            intake,
            server,
            known: None,
            bound_timeline: None,
            resolved_before: None,
            lost_from: None,
            on_standby: false,
            lost: None,
            past_gap: Lsn::ZERO,
            accepted_until: None,
            taking_back: TakingBack::default(),
            accepted_by: None,
            has_begun: false,
            confirmed: Lsn::ZERO,
            last_read: Lsn::ZERO,
            overdue: Overdue::default(),
            went_back: None,
            has_streamed: false,
            failures: 0,
        }
    }

    /// Runs sessions until it is stopped.
    ///
    /// # Errors
    /// Before its first stream, when a person has to change something; after that such a source waits, and says so.
    pub async fn run(mut self, stop: Stop) -> Result<(), SourceError> {
        loop {
            let Err(mut problem) = self.session(&stop).await else { return Ok(()) };
            if let Err(stopped) = self.stay_stopped().await {
                problem = stopped;
            }
            let problem = self.with_advice(problem).await;
            if stop.reading.is_cancelled() {
                let source = &self.config.name;
                info!(source, error = %chain(&problem), "session ended during the stop; what was not confirmed comes again");
                return Ok(());
            }
            let reason = problem.reason();
            let problem = match self.replace_lost(problem).await {
                Ok(()) => {
                    self.metrics.reconnected(reason);
                    continue;
                }
                Err(problem) => problem,
            };
            if let Some(fatal) = problem.fatal_at_start().filter(|_| !self.has_streamed) {
                return Err(fatal);
            }
            let wait = self.wait_for(&problem);
            self.metrics.reconnected(problem.reason());
            self.say(&problem, wait);
            self.let_sinks_begin().await;
            if timeout(wait, stop.reading.cancelled()).await.is_ok() {
                return Ok(());
            }
        }
    }

    /// What a person can do, where that depends on whether the slot is the one that the store goes on with.
    async fn with_advice(&self, problem: Problem) -> Problem {
        if !problem.asks_whose() {
            return problem;
        }
        let name = self.config.name.clone();
        let bound = self.ask_store(move |store| store.source(&name)).await.ok().flatten();
        let is_ours = bound.zip(self.known.as_ref()).is_some_and(|(bound, known)| {
            (&bound.slot, bound.system_id, &bound.database) == (&self.config.slot, known.system_id, &known.dbname)
        });
        problem.of(&self.config, if is_ours { &Whose::Ours } else { &Whose::Unknown })
    }

    fn wait_for(&mut self, problem: &Problem) -> Duration {
        self.failures = self.failures.saturating_add(1);
        if problem.fatal_at_start().is_some() {
            return STOPPED_RECHECK;
        }
        let doublings = self.failures.saturating_sub(1).min(10);
        let full = RECONNECT_INITIAL.saturating_mul(1 << doublings).min(RECONNECT_MAX);
        full.mul_f64(0.5 + self.rng.f64() / 2.0)
    }

    /// Logs a problem and shows it.
    fn say(&self, problem: &Problem, wait: Duration) {
        let (source, retry_at) = (&self.config.name, SystemTime::now() + wait);
        let retry_in_secs = wait.as_secs_f64();
        let text = chain(problem);
        match problem {
            Problem::Busy { pid, .. } => {
                warn!(source, pid, slot = %self.config.slot, retry_in_secs, "slot is read by another session: {text}");
                self.enter(SourceState::SlotBusy { pid: *pid, retry_at });
            }
            Problem::Lasting { .. } | Problem::Lost(_) => {
                let advice = problem.advice();
                error!(source, error = %text, advice, retry_in_secs, "source stands still until a person acts");
                self.enter(SourceState::Stopped { error: text, advice });
            }
            Problem::Connect(_)
            | Problem::Stream(_)
            | Problem::Store(_)
            | Problem::Prepare(_)
            | Problem::Unreadable { .. }
            | Problem::Broken { .. } => {
                let advice = problem.advice();
                warn!(source, error = %text, advice, retry_in_secs, "session with the database ended or could not begin");
                self.enter(SourceState::Waiting { error: text, advice, retry_at });
            }
        }
    }

    fn enter(&self, state: SourceState) {
        if let Some(mut view) = self.views.sources.get_mut(&self.config.name) {
            view.enter(state, SystemTime::now());
        }
    }

    /// How far every sink has resolved everything; `None` while one has not said.
    fn resolved(&self) -> Option<Lsn> {
        let lowest = self.consumers.iter().map(|consumer| consumer.progress.resolved()).min()?;
        (lowest > Lsn::ZERO).then_some(lowest)
    }

    /// Whether no sink could deliver more at once if it had more.
    fn is_sated(&self) -> bool {
        self.consumers.iter().all(|consumer| consumer.progress.is_saturated())
    }

    /// Whether a sink has no room for more, neither in memory nor in the store.
    fn is_held_by_a_sink(&self) -> bool {
        self.consumers.iter().any(|consumer| consumer.progress.holds())
    }

    /// After the last batch of a stop: the sinks learn that there is no more.
    fn end_feeds(&mut self) {
        for consumer in &mut self.consumers {
            consumer.feed = None;
        }
    }

    /// Hands over what is waiting for sinks; the index of the first whose channel is full.
    fn hand_over(&mut self) -> Option<usize> {
        let mut full = None;
        for (index, consumer) in self.consumers.iter().enumerate() {
            let Some(batch) = self.intake.batch(index) else { continue };
            let Some(feed) = &consumer.feed else {
                batch.clear();
                continue;
            };
            match feed.try_reserve() {
                Ok(permit) => {
                    let charge = self.memory.charge(batch.capacity() * size_of::<Feed>());
                    batch.push(Feed::Weight(charge));
                    permit.send(std::mem::take(batch));
                }
                // A sink that has ended takes nothing; that happens only in a stop.
                Err(mpsc::error::TrySendError::Closed(())) => batch.clear(),
                Err(mpsc::error::TrySendError::Full(())) => full = full.or(Some(index)),
            }
        }
        full
    }
}

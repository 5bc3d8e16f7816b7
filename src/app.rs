//! Builds the stations, joins them, and owns their tasks and the order of stopping.
//!
//! First the store is opened and every sink gets what it has of it; only then anything is read. The order of stopping:
//! sources stop reading and sinks start nothing more; requests under way end, within `shutdown_grace`, and what became of
//! them is made durable; sources confirm what was resolved and leave; the store is closed; the admin side goes last, so that
//! `/readyz` tells of the stop.

mod opening;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::opening::Opened;
use crate::admin::{self, AdminError, AdminState, AdminThread};
use crate::config::{Config, LimitsConfig, SinkConfig, SourceConfig, StateConfig, UnchangedToast};
use crate::deliver::endpoint::{Endpoint, EndpointError};
use crate::feed::Progress;
use crate::logging;
use crate::machine::clock;
use crate::machine::descriptors::{self, Allowance, Descriptors};
use crate::machine::room::{self, InForce};
use crate::memory::Memory;
use crate::metrics::{self, MetricsError, SinkMetrics, SourceMetrics};
use crate::protection;
use crate::sink::fetch::Fetching;
use crate::sink::{FEED_BATCHES_MAX, Sink, Stopping};
use crate::source::fetch::{Fetcher, Worker};
use crate::source::{Consumer, Source, SourceError, SourceParts, Stop};
use crate::store::{Store, StoreError};
use crate::view::{OwnKind, SharedViews, Trouble, Views};

/// How long a source may take to confirm and leave.
const LEAVE_LIMIT: Duration = Duration::from_secs(8);
/// How long a stop takes at most beyond `limits.shutdown_grace`, with everything in it. A service manager that waits for some
/// seconds more (`TimeoutStopSec` in docs/OPERATING.md) never has to kill.
const STOP_MARGIN: Duration = Duration::from_secs(10);
/// How often the memory held and the store are shown.
const SHOW_EVERY: Duration = Duration::from_millis(250);

/// Why the daemon could not start or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The admin side.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A sink's client.
    #[error("sink {sink}: the client for its endpoint cannot be built")]
    Endpoint {
        /// Which sink.
        sink: String,
        /// Why.
        source: EndpointError,
    },
    /// A source that cannot begin before a person has changed something.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The store, for a reason that waiting does not mend.
    #[error("the store cannot be used")]
    Store(#[source] StoreError),
    /// A task ended that should not have.
    #[error("a task of walhook ended unexpectedly; nothing that was not acknowledged was confirmed")]
    Task(#[source] Option<tokio::task::JoinError>),
}

/// The orders a running daemon takes.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    /// Stop cleanly.
    pub stop: CancellationToken,
    /// Leave at once.
    pub abort: CancellationToken,
}

struct Running {
    sources: JoinSet<Result<(), SourceError>>,
    sinks: JoinSet<()>,
    /// Read values for the sinks, as long as there are any.
    fetchers: JoinSet<()>,
    source_stop: Stop,
    sink_stop: CancellationToken,
    grace: Duration,
}

/// Runs the daemon of `config` until it is ordered to stop.
///
/// # Errors
/// When it cannot start, or cannot go on.
pub async fn run(config: Config, orders: Orders) -> Result<(), AppError> {
    let prometheus = metrics::install()?;
    let views: SharedViews = Arc::new(Views::new(logging::health()));
    show_protection(&config, &views);
    let grace = config.limits.shutdown_grace;
    let admin_stop = CancellationToken::new();
    let state = AdminState::new(&config.admin, Arc::clone(&views), prometheus, SystemTime::now());
    let admin = admin::spawn(&config.admin, state, admin_stop.clone())?;
    let result = tokio::select! {
        biased;
        () = orders.abort.cancelled() => {
            warn!("left at once: requests under way were cut off, and their messages come again");
            Ok(())
        }
        () = overdue(&orders.stop, grace.saturating_add(STOP_MARGIN)) => {
            warn!("the stop took too long: left at once; what was not written or confirmed comes again");
            orders.abort.cancel();
            Ok(())
        }
        result = serve(config, &views, &orders.stop) => result,
    };
    admin_stop.cancel();
    end(admin, &orders).await;
    result
}

/// Ends when a stop has taken longer than `limit`.
async fn overdue(stop: &CancellationToken, limit: Duration) {
    stop.cancelled().await;
    tokio::time::sleep(limit).await;
}

async fn serve(config: Config, views: &SharedViews, stop: &CancellationToken) -> Result<(), AppError> {
    // What is found out by a beat concerns the process, so it begins before anything else does.
    let mut beat = JoinSet::new();
    beat.spawn(clock::beat(Arc::clone(views)));
    let opened = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        opened = opening::open(&config, views) => opened.map_err(AppError::Store)?,
    };
    let (store, state_path) = (opened.store.clone(), config.state.path.clone());
    let (mut running, memories) = start(config, opened, views)?;
    let mut tick = interval(SHOW_EVERY);
    let ended = loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break Ok(()),
            Some(ended) = running.sources.join_next() => break Err(ended),
            Some(ended) = running.sinks.join_next() => break Err(ended.map(Ok)),
            _ = tick.tick() => show(views, &memories, (&state_path, &store)),
        }
    };
    views.stopping.store(true, Ordering::Relaxed);
    // A source that ends takes its sinks along, so its reason is asked for first, whoever was seen first.
    let told = running.stop(store).await;
    match ended {
        Ok(()) => told,
        Err(Ok(Err(source))) => Err(AppError::Source(source)),
        Err(Ok(Ok(()))) => told.and(Err(AppError::Task(None))),
        Err(Err(join)) => told.and(Err(AppError::Task(Some(join)))),
    }
}

/// Says once how each link is protected, and what is open.
fn show_protection(config: &Config, views: &Views) {
    let links = views.links.get_or_init(|| protection::links(config));
    info!(links = protection::in_one_line(links), "how each link is protected");
    for (key, Trouble { what, advice }) in protection::warnings(config) {
        warn!(key, advice, "{what}");
    }
}

fn start(config: Config, mut opened: Opened, views: &SharedViews) -> Result<(Running, Vec<Memory>), AppError> {
    let Config { sources, sinks, mut limits, state, .. } = config;
    let asked = limits.message_bytes_max;
    limits.memory_limit = memory_in_force(limits.memory_limit, sinks.len());
    limits.message_bytes_max = asked.min(limits.memory_limit / 4);
    let descriptors = descriptors(&sources, &sinks, views);
    let mut running = Running {
        sources: JoinSet::new(),
        sinks: JoinSet::new(),
        fetchers: JoinSet::new(),
        source_stop: Stop::default(),
        sink_stop: CancellationToken::new(),
        grace: limits.shutdown_grace,
    };
    views.memory_limit.store(u64::try_from(limits.memory_limit).unwrap_or(u64::MAX), Ordering::Relaxed);
    let mut memories = Vec::new();
    let is_read = |source: &&SourceConfig| sinks.iter().any(|sink| sink.source == source.name);
    let shares = sources.iter().filter(is_read).count().max(1);
    for source in &sources {
        let own: Vec<&SinkConfig> = sinks.iter().filter(|sink| sink.source == source.name).collect();
        let absent = opened.absent(&source.name);
        if own.is_empty() {
            warn!(source = %source.name, "source has no sink: it is not read");
            views.show_unread(&source.name, absent);
            continue;
        }
        // A share for each, so that one source's dead sinks do not hold another.
        let memory = share(&limits, shares);
        if memory.message_bytes_max() < asked {
            let (source, bytes) = (&source.name, memory.message_bytes_max());
            let what = "limits.max_message is a quarter of the source's share of the memory limit in force";
            let advice = "larger changes become dead letters (too_large): give the container or service more memory";
            match limits.message_bytes_max < asked {
                true => warn!(source, bytes, advice, "{what}"),
                false => info!(source, bytes, "{what}"),
            }
        }
        let start = Start {
            config: source,
            state: &state,
            sinks: &own,
            memory: &memory,
            views,
            descriptors: &descriptors,
            absent,
        };
        running.start_source(start, &mut opened)?;
        memories.push(memory);
    }
    for (source, troubles) in opened.strangers() {
        views.show_unread(&source, troubles);
    }
    Ok((running, memories))
}

/// The connections to endpoints that the limit of open files leaves; told if they may not suffice.
fn descriptors(sources: &[SourceConfig], sinks: &[SinkConfig], views: &Views) -> Descriptors {
    let max_in_flight = sinks.iter().map(|sink| sink.max_in_flight);
    let allowance = Allowance::of(descriptors::raise_limit(), sources.len(), max_in_flight);
    if let Some(trouble) = allowance.trouble() {
        warn!(advice = trouble.advice, "{}", trouble.what);
        views.show_own(OwnKind::Descriptors, Some(trouble));
    }
    Descriptors::new(allowance.connections, sinks.len())
}

/// `limits.memory_limit`, or what of it fits into the control group.
fn memory_in_force(set: usize, sinks: usize) -> usize {
    let in_force = InForce::of(set, sinks, room::limit(&room::Places::default()));
    if let Some(said) = in_force.said(set) {
        warn!(advice = room::ADVICE, "{said}");
    }
    in_force.bytes
}

/// Batches on their way to each of so many sinks: all together they are no more than of a few.
fn feed_batches(sinks: usize) -> usize {
    FEED_BATCHES_MAX.min(8 * FEED_BATCHES_MAX / sinks.max(1)).max(1)
}

/// The memory of one of so many sources. Two large changes and their bodies have to fit into it beside each other.
fn share(limits: &LimitsConfig, shares: usize) -> Memory {
    let limit = limits.memory_limit / shares;
    Memory::with_message_bound(limit, limits.message_bytes_max.min(limit / 4))
}

/// A source and its sinks, to be started.
struct Start<'a> {
    config: &'a SourceConfig,
    state: &'a StateConfig,
    sinks: &'a [&'a SinkConfig],
    memory: &'a Memory,
    views: &'a SharedViews,
    descriptors: &'a Descriptors,
    absent: Vec<Trouble>,
}

impl Running {
    fn start_source(&mut self, start: Start<'_>, opened: &mut Opened) -> Result<(), AppError> {
        let Start { config, state, sinks, memory, views, descriptors, absent } = start;
        let (appetite, metrics) = (Arc::new(Notify::new()), SourceMetrics::new(&config.name));
        let fetcher = self.start_fetcher(config, sinks, memory);
        let mut consumers = Vec::new();
        for sink in sinks {
            let (feed, fed) = mpsc::channel(feed_batches(sinks.len()));
            let progress = Arc::new(Progress::new(Arc::clone(&appetite)));
            let endpoint = Endpoint::within(sink, descriptors)
                .map_err(|source| AppError::Endpoint { sink: sink.name.clone(), source })?;
            // Opening loads what every sink of the config has.
            let Some((key, loaded)) = opened.take(&sink.name) else { continue };
            let task = Sink {
                config: Arc::new((*sink).clone()),
                endpoint,
                memory: memory.clone(),
                metrics: SinkMetrics::new(&config.name, &sink.name),
                text_fallback_values: metrics.text_fallback_values.clone(),
                views: Arc::clone(views),
                feed: fed,
                progress: Arc::clone(&progress),
                fetching: fetcher
                    .clone()
                    .filter(|_| sink.unchanged_toast == UnchangedToast::Fetch)
                    .map(|fetcher| Fetching::new(sink, fetcher)),
                store: opened.store.clone(),
                key,
                loaded,
                hold: state.hold,
                sharers: sinks.len(),
                seed: seed(),
            };
            let stopping = Stopping { stop: self.sink_stop.clone(), grace: self.grace };
            self.sinks.spawn(task.run(stopping));
            consumers.push(Consumer { config: (*sink).clone(), feed: Some(feed), progress });
        }
        let source = Source::new(SourceParts {
            config: config.clone(),
            consumers,
            appetite,
            memory: memory.clone(),
            views: Arc::clone(views),
            metrics,
            store: opened.store.clone(),
            store_path: state.path.clone(),
            absent,
            seed: seed(),
        });
        self.sources.spawn(source.run(self.source_stop.clone()));
        Ok(())
    }

    /// What reads values for the sinks of a source that want it.
    fn start_fetcher(&mut self, source: &SourceConfig, sinks: &[&SinkConfig], memory: &Memory) -> Option<Fetcher> {
        if !sinks.iter().any(|sink| sink.unchanged_toast == UnchangedToast::Fetch) {
            return None;
        }
        let (worker, fetcher) = Worker::new(&source.name, source.url.clone(), memory);
        self.fetchers.spawn(worker.run());
        Some(fetcher)
    }

    /// See the module for the order. The error is the first that a source ended with.
    async fn stop(mut self, store: Store) -> Result<(), AppError> {
        let began = Instant::now();
        info!(grace_secs = self.grace.as_secs_f64(), "stopping: waiting for requests under way");
        self.source_stop.reading.cancel();
        self.sink_stop.cancel();
        while self.sinks.join_next().await.is_some() {}
        let drained = Instant::now();
        self.source_stop.session.cancel();
        let mut told = Ok(());
        let leave = async {
            while let Some(left) = self.sources.join_next().await {
                if let Ok(Err(error)) = left {
                    told = std::mem::replace(&mut told, Ok(())).and(Err(AppError::Source(error)));
                }
            }
        };
        if timeout(LEAVE_LIMIT, leave).await.is_err() {
            warn!("a source did not confirm in time; what it had not confirmed comes again");
        }
        let left = Instant::now();
        opening::close(store).await;
        info!(
            drain_secs = drained.duration_since(began).as_secs_f64(),
            leave_secs = left.duration_since(drained).as_secs_f64(),
            close_secs = left.elapsed().as_secs_f64(),
            "stopped"
        );
        told
    }
}

/// Waits for the admin side's thread, unless told to leave at once.
async fn end(admin: AdminThread, orders: &Orders) {
    let joined = tokio::task::spawn_blocking(move || admin.join.join());
    tokio::select! {
        biased;
        () = orders.abort.cancelled() => {}
        // A panic there has been logged, and everything else has ended.
        ended = joined => drop(ended),
    }
}

fn show(views: &Views, memories: &[Memory], (state_path, store): (&Path, &Store)) {
    let held: usize = memories.iter().map(Memory::held).sum();
    views.memory_held.store(u64::try_from(held).unwrap_or(u64::MAX), Ordering::Relaxed);
    views.show_store(opening::view_of(state_path, store.health()));
}

/// The clock's fine digits: jitter needs nothing better, and a log of them would repeat a life.
fn seed() -> u64 {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    u64::try_from(nanos & u128::from(u64::MAX)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stop_has_one_deadline_for_all_that_is_in_it() {
        let stop = CancellationToken::new();
        let mut ended = Box::pin(overdue(&stop, Duration::ZERO));
        assert!(timeout(Duration::from_millis(50), &mut ended).await.is_err(), "nobody has asked for a stop");
        stop.cancel();
        ended.await;
    }

    #[test]
    fn the_unit_of_the_docs_waits_longer_than_a_stop_takes() {
        let unit = include_str!("../docs/OPERATING.md").lines().find_map(|line| line.strip_prefix("TimeoutStopSec="));
        let unit = Duration::from_secs(unit.unwrap().parse().unwrap());
        let grace = Duration::from_secs(30);
        assert!(include_str!("../config.example.toml").contains("shutdown_grace = \"30s\""));
        assert!(grace + STOP_MARGIN < unit);
    }

    #[test]
    fn pitfall_51_the_bound_on_a_change_is_divided_with_the_memory() {
        let limits =
            LimitsConfig { memory_limit: 256 << 20, message_bytes_max: 32 << 20, shutdown_grace: Duration::ZERO };
        let bounds = |shares| (share(&limits, shares).limit() >> 20, share(&limits, shares).message_bytes_max() >> 20);
        assert_eq!([1, 2, 4].map(bounds), [(256, 32), (128, 32), (64, 16)]);
    }
}

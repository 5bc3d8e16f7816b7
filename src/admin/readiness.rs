//! Whether changes flow, and what is wrong, in words for the person who must mend it. Pure: views and `now` go in.
//!
//! Ready means: the daemon is not stopping, every source streams, no table's own writes fail because it is published, and the
//! store takes writes. A source that is held is not ready: changes stand still. A store that is full is a warning until it holds a source. A failing or paused sink is named
//! but does not make the daemon unready, for a restart or another instance would not mend it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::answer::timestamp;
use super::sink_health;
use crate::logging::Health;
use crate::view::{BreakerView, SinkView, SourceState, SourceView, StoreView, Trouble, Views};

/// WAL kept by a slot from which on it is worth a word.
const SLOT_KEEPS_BYTES: u64 = 1 << 30;

/// A line of the log that nobody has taken for so long is worth a word.
const LOG_WAITS: Duration = Duration::from_secs(5);

/// Tables whose own writes fail that are named one by one.
const HARMS_MAX: usize = 10;

/// The answer of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Whether every source streams, lacks nothing for it and harms no table, and the store takes writes.
    pub ready: bool,
    /// What is wrong: the process, the store, then sources, then sinks, by name.
    pub troubles: Vec<TroubleReport>,
    /// The store.
    pub store: StoreReport,
    /// Every source.
    pub sources: BTreeMap<String, SourceReport>,
    /// Every sink.
    pub sinks: BTreeMap<String, SinkReport>,
    /// How the way to each source (`source.NAME`) and sink (`sink.NAME`), and to the admin side, is protected.
    pub links: BTreeMap<String, String>,
}

/// How bad a trouble is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Changes of the scope stand still, or were lost.
    Error,
    /// They flow, or stand still on purpose, but someone should look.
    Warning,
}

/// Something wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TroubleReport {
    /// `process`, `store`, `source:NAME` or `sink:NAME`.
    pub scope: String,
    /// How bad.
    pub severity: Severity,
    /// What is wrong, with figures.
    pub what: String,
    /// What mends it.
    pub advice: String,
}

/// The store in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoreReport {
    /// `ok`, `full` or `failing`.
    pub state: &'static str,
    /// Bytes of disk it takes.
    pub used_bytes: u64,
    /// `state.max_bytes`.
    pub max_bytes: u64,
}

/// A source in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceReport {
    /// `connecting`, `waiting`, `slot_busy`, `streaming`, `held` or `stopped`.
    pub state: &'static str,
    /// Since when, RFC 3339.
    pub since: String,
    /// Everything up to here has been read.
    pub received_lsn: String,
    /// Everything up to here is resolved and confirmed.
    pub confirmed_lsn: String,
    /// End of the server's WAL.
    pub server_lsn: String,
    /// WAL that the slot makes the server keep.
    pub lag_bytes: u64,
}

/// A sink in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SinkReport {
    /// Its source.
    pub source: String,
    /// `paused`, `failing`, `delivering` or `idle`.
    pub state: &'static str,
    /// Requests under way.
    pub in_flight: usize,
    /// Unacknowledged messages.
    pub ack_pending: usize,
    /// Messages not yet in a delivery.
    pub waiting: usize,
    /// Deliveries that failed and wait for their next attempt.
    pub retrying: usize,
    /// `closed`, `open` (only probes are sent) or `ramp_up`.
    pub breaker: &'static str,
    /// Deliveries that the store keeps.
    pub stored_deliveries: u64,
    /// Messages that wait in the store: behind others of their groups, or as overflow.
    pub stored_messages: u64,
    /// Deliveries that were given up and whose groups wait for a person.
    pub blocked_deliveries: u64,
    /// Dead letters that the store keeps.
    pub dead_letters: u64,
    /// Why the sink as a whole sends nothing: `sink_paused`, `own_trouble`, `breaker_open`.
    pub hold_reason: Option<&'static str>,
    /// Seconds since the oldest undelivered message was received.
    pub oldest_undelivered_age_seconds: Option<u64>,
    /// Everything up to here is resolved.
    pub resolved_lsn: String,
}

impl Readiness {
    /// The same for someone who may see only these sinks.
    pub fn only_sinks(mut self, sinks: &[String]) -> Self {
        self.sinks.retain(|name, _| sinks.contains(name));
        self.links.retain(|key, _| key.strip_prefix("sink.").is_none_or(|name| sinks.iter().any(|s| s == name)));
        self.troubles.retain(|t| t.scope.strip_prefix("sink:").is_none_or(|name| sinks.iter().any(|s| s == name)));
        self
    }
}

/// What the views say at `now`.
pub fn readiness(views: &Views, now: SystemTime) -> Readiness {
    let sources: BTreeMap<String, SourceView> =
        views.sources.iter().map(|view| (view.key().clone(), view.value().clone())).collect();
    let sinks: BTreeMap<String, SinkView> =
        views.sinks.iter().map(|view| (view.key().clone(), view.value().clone())).collect();
    let stopping = views.stopping.load(Ordering::Relaxed);
    let is_sound = |view: &SourceView| {
        let is_quiet = view.harms.is_empty() && view.alarms.is_empty() && view.silence.is_none();
        view.state == SourceState::Streaming && is_quiet
    };
    let streaming = !sources.is_empty() && sources.values().all(is_sound);
    let store = views.store();
    let mut troubles = Vec::new();
    troubles.extend(process_trouble(stopping, sources.is_empty() && store.trouble.is_none()));
    troubles.extend(log_trouble(&views.log, now));
    troubles.extend(views.own().into_values().map(|Trouble { what, advice }| TroubleReport {
        scope: "process".into(),
        severity: Severity::Warning,
        what,
        advice,
    }));
    troubles.extend(store_trouble(&store, &sources));
    for (name, view) in &sources {
        troubles.extend(source_troubles(name, view, now));
    }
    troubles.extend(views.unread().into_iter().map(|(source, Trouble { what, advice })| TroubleReport {
        scope: format!("source:{source}"),
        severity: Severity::Warning,
        what,
        advice,
    }));
    for (name, view) in &sinks {
        troubles.extend(sink_health::troubles(name, view, now));
    }
    Readiness {
        ready: streaming && !stopping && !store.is_failing,
        troubles,
        store: store_report(&store),
        sources: sources.into_iter().map(|(name, view)| (name, source_report(&view))).collect(),
        sinks: sinks.into_iter().map(|(name, view)| (name, sink_report(view, now))).collect(),
        links: views.links.get().cloned().unwrap_or_default(),
    }
}

fn process_trouble(stopping: bool, no_sources: bool) -> Option<TroubleReport> {
    let trouble = |what: &str, advice: &str| TroubleReport {
        scope: "process".into(),
        severity: Severity::Error,
        what: what.into(),
        advice: advice.into(),
    };
    if stopping {
        let advice = "it waits for requests under way, limits.shutdown_grace at most; start it again to go on";
        Some(trouble("walhook is stopping: nothing new is read or sent", advice))
    } else if no_sources {
        Some(trouble("walhook is starting: no source has reported yet", "wait; if it lasts, read the log"))
    } else {
        None
    }
}

/// Nobody reads the log, or not fast enough.
fn log_trouble(log: &Health, now: SystemTime) -> Option<TroubleReport> {
    let (lost, waits) = (log.lost(), log.waits(now));
    let what = if waits >= LOG_WAITS {
        format!("nobody has taken a line of the log for {}; {lost} lines are lost", in_words(waits))
    } else if log.is_losing() {
        format!("the log cannot be written: {lost} lines are lost")
    } else {
        return None;
    };
    let advice = "see to what reads walhook's standard error (journald, the container's log driver, a pipe), or to the \
                  disk that it writes to; walhook goes on without";
    Some(TroubleReport { scope: "process".into(), severity: Severity::Warning, what, advice: advice.into() })
}

fn store_trouble(store: &StoreView, sources: &BTreeMap<String, SourceView>) -> Option<TroubleReport> {
    let holds = sources.values().any(|view| matches!(view.state, SourceState::Held { .. }));
    let severity = if store.is_failing || holds { Severity::Error } else { Severity::Warning };
    let full = || Trouble {
        what: format!(
            "it is full: {} of state.max_bytes, {}, are used, and the rest is kept for progress",
            bytes_in_words(store.used_bytes),
            bytes_in_words(store.max_bytes)
        ),
        advice: "mend the endpoints that fail, or raise state.max_bytes and restart walhook; changes stay in the \
                 database's WAL meanwhile"
            .into(),
    };
    let Trouble { what, advice } = store.trouble.clone().or_else(|| store.is_full.then(full))?;
    let what = format!("the store in {}: {what}", store.path.display());
    Some(TroubleReport { scope: "store".into(), severity, what, advice })
}

fn store_report(store: &StoreView) -> StoreReport {
    let state = if store.is_failing {
        "failing"
    } else if store.is_full {
        "full"
    } else {
        "ok"
    };
    StoreReport { state, used_bytes: store.used_bytes, max_bytes: store.max_bytes }
}

fn source_troubles(name: &str, view: &SourceView, now: SystemTime) -> Vec<TroubleReport> {
    let report = |severity, what: String, advice: String| TroubleReport {
        scope: format!("source:{name}"),
        severity,
        what,
        advice,
    };
    let mut troubles = Vec::new();
    if let Some((what, advice)) = standstill(view, now) {
        troubles.push(report(Severity::Error, what, advice));
    }
    let more = view.harms.len().saturating_sub(HARMS_MAX);
    let more = (more > 0).then(|| Trouble {
        what: format!("{more} more published tables fail their own UPDATE and DELETE"),
        advice: "`walhook check` lists them".to_owned(),
    });
    let harms = view.harms.iter().take(HARMS_MAX).chain(&more);
    let alarms = view.silence.iter().chain(view.alarms.iter().map(|alarm| &alarm.trouble));
    let errors = alarms.chain(harms).chain(&view.errors).chain(&view.notes.errors).chain(&view.gaps);
    for Trouble { what, advice } in errors {
        troubles.push(report(Severity::Error, what.clone(), advice.clone()));
    }
    for trouble in view.troubles.iter().chain(&view.notes.warnings).chain(&view.absent) {
        troubles.push(report(Severity::Warning, trouble.what.clone(), trouble.advice.clone()));
    }
    let kept = view.progress.server.bytes_since(view.progress.confirmed);
    if kept >= SLOT_KEEPS_BYTES {
        let what = format!("the slot makes the server keep {} of WAL that is not delivered", bytes_in_words(kept));
        let advice = "mend the sinks that fail or are paused; watch the server's disk, and see max_slot_wal_keep_size";
        troubles.push(report(Severity::Warning, what, advice.into()));
    }
    troubles
}

/// Why changes of the source stand still, and what to do; `None` while it streams.
fn standstill(view: &SourceView, now: SystemTime) -> Option<(String, String)> {
    let lasted = in_words(now.duration_since(view.since).unwrap_or_default());
    let next = |at: &SystemTime| in_words(at.duration_since(now).unwrap_or_default());
    let told = match &view.state {
        SourceState::Streaming => return None,
        SourceState::Connecting => (
            format!("connecting to the database for {lasted}"),
            "wait; if it lasts, check that the server runs and is reachable from here".into(),
        ),
        SourceState::Waiting { error, advice, retry_at } => (
            format!("the database cannot be read for {lasted}: {error}; next try in {}", next(retry_at)),
            format!("{advice}; changes stay in the database's WAL meanwhile"),
        ),
        SourceState::SlotBusy { pid, retry_at } => {
            let holder = pid.map_or_else(|| "another session".into(), |pid| format!("the backend with pid {pid}"));
            let what = format!("the slot is read by {holder} for {lasted}; next try in {}", next(retry_at));
            (
                what,
                "stop the other reader, probably another walhook with the same slot, or give this source its own"
                    .into(),
            )
        }
        SourceState::Held { why, advice } => (format!("reading is held for {lasted}: {why}"), advice.clone()),
        SourceState::Stopped { error, advice } => (format!("stopped for {lasted}: {error}"), advice.clone()),
    };
    Some(told)
}

fn source_report(view: &SourceView) -> SourceReport {
    let progress = &view.progress;
    SourceReport {
        state: match view.state {
            SourceState::Connecting => "connecting",
            SourceState::Waiting { .. } => "waiting",
            SourceState::SlotBusy { .. } => "slot_busy",
            SourceState::Streaming => "streaming",
            SourceState::Held { .. } => "held",
            SourceState::Stopped { .. } => "stopped",
        },
        since: timestamp(view.since),
        received_lsn: progress.received.to_string(),
        confirmed_lsn: progress.confirmed.to_string(),
        server_lsn: progress.server.to_string(),
        lag_bytes: progress.server.bytes_since(progress.confirmed),
    }
}

fn sink_report(view: SinkView, now: SystemTime) -> SinkReport {
    SinkReport {
        state: sink_health::state(&view),
        in_flight: view.in_flight,
        ack_pending: view.ack_pending,
        waiting: view.waiting,
        retrying: view.retrying,
        breaker: match view.breaker {
            BreakerView::Closed => "closed",
            BreakerView::Open { .. } => "open",
            BreakerView::RampUp { .. } => "ramp_up",
        },
        stored_deliveries: view.stored_deliveries,
        stored_messages: view.lane_messages.saturating_add(view.overflow_messages),
        blocked_deliveries: view.blocked_deliveries,
        dead_letters: view.dead_letters,
        oldest_undelivered_age_seconds: sink_health::oldest_age(&view, now).map(|age| age.as_secs()),
        resolved_lsn: view.resolved.to_string(),
        hold_reason: sink_health::hold_reason(&view),
        source: view.source,
    }
}

/// A time span for a person: its two largest units.
pub(super) fn in_words(span: Duration) -> String {
    let seconds = span.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// A size for a person, in MiB or GiB.
pub(crate) fn bytes_in_words(bytes: u64) -> String {
    let tenths = |unit: u64| bytes.saturating_mul(10) / unit;
    let (gib, mib) = (tenths(1 << 30), tenths(1 << 20));
    if gib >= 10 { format!("{}.{} GiB", gib / 10, gib % 10) } else { format!("{}.{} MiB", mib / 10, mib % 10) }
}

#[cfg(test)]
#[path = "readiness_tests.rs"]
mod tests;

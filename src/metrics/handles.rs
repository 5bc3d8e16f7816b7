//! What the stations hold to count with: each handle is made once and is an atomic from then on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Label};

use super::{Metric, MetricKind};
use crate::change::Action;
use crate::source::fetch::Missing;
use crate::store::DeadReason;

/// Why a session with the database ended or could not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReconnectReason {
    /// No connection: address, network, nothing listening.
    Connect,
    /// The server refused: password, privileges, limits, starting up.
    Refused,
    /// Another session reads the slot.
    SlotBusy,
    /// The slot is lost.
    SlotLost,
    /// The server ended the session: restart, failover, `pg_terminate_backend`.
    ServerClosed,
    /// The connection broke.
    ConnectionLost,
    /// Nothing was heard for too long.
    Timeout,
    /// What the server sent made no sense.
    Protocol,
    /// The store could not be asked.
    Store,
    /// A task of walhook's own beside the stream ended unexpectedly.
    Internal,
}

impl ReconnectReason {
    const ALL: [Self; 10] = [
        Self::Connect,
        Self::Refused,
        Self::SlotBusy,
        Self::SlotLost,
        Self::ServerClosed,
        Self::ConnectionLost,
        Self::Timeout,
        Self::Protocol,
        Self::Store,
        Self::Internal,
    ];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Refused => "refused",
            Self::SlotBusy => "slot_busy",
            Self::SlotLost => "slot_lost",
            Self::ServerClosed => "server_closed",
            Self::ConnectionLost => "connection_lost",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol",
            Self::Store => "store",
            Self::Internal => "internal",
        }
    }
}

/// Values of the label `category`; `unknown` takes whatever is not one of the others.
pub const CATEGORIES: [&str; 24] = [
    "dns_error",
    "blocked_address",
    "connect_refused",
    "connect_timeout",
    "connection_reset",
    "tls_error",
    "proxy_error",
    "timeout",
    "protocol_error",
    "status_redirect",
    "status_client_error",
    "status_unauthorized",
    "status_gone",
    "status_payload_too_large",
    "status_rate_limited",
    "status_server_error",
    "unexpected_success_status",
    "aborted_by_receiver",
    "own_resources",
    "own_clock",
    "own_dns",
    "unbuildable",
    "shutdown",
    "unknown",
];

/// What a source counts. Clones share the counts.
#[derive(Clone)]
pub struct SourceMetrics {
    /// Inserts read.
    pub inserts: Counter,
    /// Updates read.
    pub updates: Counter,
    /// Deletes read.
    pub deletes: Counter,
    /// Rows read by a backfill.
    pub reads: Counter,
    /// Tables truncated.
    pub truncates: Counter,
    /// Logical messages for sinks.
    pub messages: Counter,
    /// Transactions read to their commit.
    pub transactions: Counter,
    /// Bytes read from the replication connection.
    pub received_bytes: Counter,
    /// Keepalives from the server.
    pub keepalives: Counter,
    /// Questions to the catalogue.
    pub catalogue_lookups: Counter,
    /// Tables named by TRUNCATE.
    pub ignored_truncates: Counter,
    /// Values passed on as text.
    pub text_fallback_values: Counter,
    /// Changes out of which values were left because they are too large.
    pub oversized_changes: Counter,
    /// Time for which reading was held.
    pub held: SecondsTotal,
    /// Gaps: slots that were lost and made anew.
    pub gaps: Counter,
    /// Bytes of WAL in these.
    pub gap_bytes: Counter,
    /// Seconds from commit to first byte, once a transaction.
    pub commit_to_received: Histogram,
    reconnects: Vec<(ReconnectReason, Counter)>,
}

impl SourceMetrics {
    /// The handles of the source of that name.
    pub fn new(source: &str) -> Self {
        let changes = |action: Action| counter(&super::SOURCE_CHANGES, &[source, action.as_str()]);
        let count = |metric| counter(metric, &[source]);
        let reconnects = |reason: ReconnectReason| counter(&super::SOURCE_RECONNECTS, &[source, reason.as_str()]);
        Self {
            inserts: changes(Action::Insert),
            updates: changes(Action::Update),
            deletes: changes(Action::Delete),
            reads: changes(Action::Read),
            truncates: changes(Action::Truncate),
            messages: changes(Action::Message),
            transactions: count(&super::SOURCE_TRANSACTIONS),
            received_bytes: count(&super::SOURCE_RECEIVED_BYTES),
            keepalives: count(&super::SOURCE_KEEPALIVES),
            catalogue_lookups: count(&super::SOURCE_CATALOGUE_LOOKUPS),
            ignored_truncates: count(&super::SOURCE_TRUNCATES),
            text_fallback_values: count(&super::SOURCE_TEXT_FALLBACK),
            oversized_changes: count(&super::SOURCE_OVERSIZED),
            held: SecondsTotal::new(count(&super::SOURCE_HELD_SECONDS)),
            gaps: count(&super::SOURCE_GAPS),
            gap_bytes: count(&super::SOURCE_GAP_BYTES),
            commit_to_received: histogram(&super::SOURCE_COMMIT_TO_RECEIVED, &[source]),
            reconnects: ReconnectReason::ALL.map(|reason| (reason, reconnects(reason))).into(),
        }
    }

    /// The counter of changes of that action.
    pub fn changes(&self, action: Action) -> &Counter {
        match action {
            Action::Insert => &self.inserts,
            Action::Update => &self.updates,
            Action::Delete => &self.deletes,
            Action::Read => &self.reads,
            Action::Truncate => &self.truncates,
            Action::Message => &self.messages,
        }
    }

    /// Counts a session that will be tried again.
    pub fn reconnected(&self, reason: ReconnectReason) {
        if let Some((_, counter)) = self.reconnects.iter().find(|(known, _)| *known == reason) {
            counter.increment(1);
        }
    }
}

/// What a sink and its deliveries count. Clones share the counts.
#[derive(Clone)]
pub struct SinkMetrics {
    /// Messages made for the sink.
    pub received_messages: Counter,
    /// Messages acknowledged.
    pub acknowledged_messages: Counter,
    /// Deliveries acknowledged.
    pub acknowledged_deliveries: Counter,
    /// Requests sent again at once within their attempt.
    pub resent_requests: Counter,
    /// Seconds from reading the first message to the first attempt, once a delivery.
    pub received_to_first_attempt: Histogram,
    /// Seconds an attempt took.
    pub attempt_duration: Histogram,
    /// Seconds from commit of the first message to acknowledgement, once a delivery.
    pub commit_to_acknowledged: Histogram,
    /// Messages in a delivery.
    pub delivery_messages: Histogram,
    /// Bytes of a body.
    pub body_bytes: Histogram,
    /// Deliveries that were split.
    pub split: Counter,
    dead_of_attempts: Counter,
    dead_of_age: Counter,
    dead_of_size: Counter,
    dead_of_damage: Counter,
    attempts_acknowledged: Counter,
    attempts_failed: ByStatusClass,
    failures: Vec<(&'static str, Counter)>,
}

/// What a sink counts that fetches values which were left out.
#[derive(Clone)]
pub struct FetchMetrics {
    /// Messages that lack nothing any more.
    pub filled: Counter,
    /// Messages for which some values had no room.
    pub too_large: Counter,
    missing: [(Missing, Counter); 8],
}

impl FetchMetrics {
    /// The handles of a sink of that source.
    pub fn new(source: &str, sink: &str) -> Self {
        let count = |result| counter(&super::SINK_FETCHES, &[source, sink, result]);
        let missing = Missing::ALL.map(|missing| (missing, count(missing.as_str())));
        Self { filled: count("filled"), too_large: count("too_large"), missing }
    }

    /// Counts a message that still lacks what it lacked.
    pub fn missing(&self, why: Missing) {
        if let Some((_, counter)) = self.missing.iter().find(|(known, _)| *known == why) {
            counter.increment(1);
        }
    }
}

#[derive(Clone)]
struct ByStatusClass {
    success: Counter,
    redirect: Counter,
    client_error: Counter,
    server_error: Counter,
    other: Counter,
    none: Counter,
}

impl SinkMetrics {
    /// The handles of `sink`, which takes from `source`.
    pub fn new(source: &str, sink: &str) -> Self {
        let count = |metric| counter(metric, &[source, sink]);
        let measure = |metric| histogram(metric, &[source, sink]);
        let attempts = |outcome, class| counter(&super::SINK_ATTEMPTS, &[source, sink, outcome, class]);
        let failures = |category| counter(&super::SINK_FAILURES, &[source, sink, category]);
        let dead = |reason: DeadReason| counter(&super::SINK_DEAD, &[source, sink, reason.as_str()]);
        Self {
            received_messages: count(&super::SINK_RECEIVED),
            acknowledged_messages: count(&super::SINK_ACKNOWLEDGED),
            acknowledged_deliveries: count(&super::SINK_DELIVERIES),
            resent_requests: count(&super::SINK_RESENT),
            received_to_first_attempt: measure(&super::SINK_RECEIVED_TO_ATTEMPT),
            attempt_duration: measure(&super::SINK_ATTEMPT_DURATION),
            commit_to_acknowledged: measure(&super::SINK_COMMIT_TO_ACKNOWLEDGED),
            delivery_messages: measure(&super::SINK_DELIVERY_MESSAGES),
            body_bytes: measure(&super::SINK_BODY_BYTES),
            split: count(&super::SINK_SPLITS),
            dead_of_attempts: dead(DeadReason::MaxAttempts),
            dead_of_age: dead(DeadReason::MaxAge),
            dead_of_size: dead(DeadReason::TooLarge),
            dead_of_damage: dead(DeadReason::Damaged),
            attempts_acknowledged: attempts("acknowledged", "2xx"),
            attempts_failed: ByStatusClass {
                success: attempts("failed", "2xx"),
                redirect: attempts("failed", "3xx"),
                client_error: attempts("failed", "4xx"),
                server_error: attempts("failed", "5xx"),
                other: attempts("failed", "other"),
                none: attempts("failed", "none"),
            },
            failures: CATEGORIES.map(|category| (category, failures(category))).into(),
        }
    }

    /// Counts an attempt that ended; `status` is what the endpoint answered, if it did.
    pub fn attempted(&self, acknowledged: bool, status: Option<u16>) {
        let failed = &self.attempts_failed;
        let counter = match status {
            _ if acknowledged => &self.attempts_acknowledged,
            Some(200..300) => &failed.success,
            Some(300..400) => &failed.redirect,
            Some(400..500) => &failed.client_error,
            Some(500..600) => &failed.server_error,
            Some(_) => &failed.other,
            None => &failed.none,
        };
        counter.increment(1);
    }

    /// Counts a delivery that was given up.
    pub fn dead_lettered(&self, reason: DeadReason) {
        let counter = match reason {
            DeadReason::MaxAttempts => &self.dead_of_attempts,
            DeadReason::MaxAge => &self.dead_of_age,
            DeadReason::TooLarge => &self.dead_of_size,
            DeadReason::Damaged => &self.dead_of_damage,
        };
        counter.increment(1);
    }

    /// Counts a failed attempt under its category of [`CATEGORIES`].
    pub fn failed(&self, category: &str) {
        let known = self.failures.iter().find(|(known, _)| *known == category);
        if let Some((_, counter)) = known.or(self.failures.last()) {
            counter.increment(1);
        }
    }
}

/// What the store counts.
#[derive(Clone, Debug)]
pub struct StoreMetrics {
    /// Writes that failed.
    pub write_errors: Counter,
    /// Seconds from the start of a transaction to the moment at which it is durable.
    pub commit: Histogram,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl StoreMetrics {
    /// The handles of the process's store.
    pub fn new() -> Self {
        Self { write_errors: counter(&super::STORE_WRITE_ERRORS, &[]), commit: histogram(&super::STORE_COMMIT, &[]) }
    }
}

/// A counter of whole seconds to which parts of seconds are added: the exporter's counters are integers.
#[derive(Clone)]
pub struct SecondsTotal {
    counter: Counter,
    micros: Arc<AtomicU64>,
}

impl SecondsTotal {
    fn new(counter: Counter) -> Self {
        Self { counter, micros: Arc::default() }
    }

    /// Adds `time`.
    pub fn add(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let before = self.micros.fetch_add(micros, Ordering::Relaxed);
        self.counter.absolute(before.saturating_add(micros) / 1_000_000);
    }
}

pub(super) fn counter(metric: &Metric, values: &[&str]) -> Counter {
    debug_assert_eq!(metric.kind, MetricKind::Counter, "{}", metric.name);
    metrics::counter!(metric.name, labels(metric, values))
}

pub(super) fn gauge(metric: &Metric, values: &[&str]) -> Gauge {
    debug_assert_eq!(metric.kind, MetricKind::Gauge, "{}", metric.name);
    metrics::gauge!(metric.name, labels(metric, values))
}

fn histogram(metric: &Metric, values: &[&str]) -> Histogram {
    debug_assert_eq!(metric.kind, MetricKind::Histogram, "{}", metric.name);
    metrics::histogram!(metric.name, labels(metric, values))
}

fn labels(metric: &Metric, values: &[&str]) -> Vec<Label> {
    debug_assert_eq!(metric.labels.len(), values.len(), "{}", metric.name);
    metric.labels.iter().zip(values).map(|(name, value)| Label::new(*name, (*value).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::recorder;

    fn shown(count: impl FnOnce(&SourceMetrics, &SinkMetrics)) -> String {
        let recorder = recorder().unwrap();
        metrics::with_local_recorder(&recorder, || {
            count(&SourceMetrics::new("app"), &SinkMetrics::new("app", "orders"))
        });
        recorder.handle().render()
    }

    #[test]
    fn parts_of_seconds_add_up_to_seconds() {
        let text = shown(|source, _| (0..5).for_each(|_| source.held.add(Duration::from_millis(700))));
        assert!(text.contains("walhook_source_held_seconds_total{source=\"app\"} 3\n"), "{text}");
    }

    #[test]
    fn every_status_has_one_class() {
        for (acknowledged, status, outcome, class) in [
            (true, Some(204), "acknowledged", "2xx"),
            (false, Some(204), "failed", "2xx"),
            (false, Some(302), "failed", "3xx"),
            (false, Some(429), "failed", "4xx"),
            (false, Some(599), "failed", "5xx"),
            (false, Some(600), "failed", "other"),
            (false, None, "failed", "none"),
        ] {
            let text = shown(|_, sink| sink.attempted(acknowledged, status));
            let ones: Vec<_> = text.lines().filter(|l| l.contains("attempts_total{") && l.ends_with(" 1")).collect();
            let labels = format!("outcome=\"{outcome}\",status_class=\"{class}\"");
            assert!(matches!(ones.as_slice(), [line] if line.contains(&labels)), "{status:?}: {ones:?}");
        }
    }

    #[test]
    fn changes_are_counted_by_action() {
        let text = shown(|source, _| source.changes(Action::Delete).increment(7));
        assert!(text.contains("walhook_source_changes_total{source=\"app\",action=\"delete\"} 7\n"), "{text}");
    }
}

//! Every metric that walhook shows: one table of names, kinds, labels and help texts, and the recorder behind `/metrics`.
//!
//! The stations count through handles made once ([`SourceMetrics`], [`SinkMetrics`], [`StoreMetrics`]), so that the hot path looks nothing
//! up. Gauges are not written by the stations: [`publish()`] derives them from the views, at every scrape and every second.
//! Labels come from small closed sets (a source, a sink, an outcome, …), never from a group, a key or an endpoint.
//! docs/OPERATING.md repeats the table for the operator; a test holds the two together.

use std::time::{Duration, SystemTime};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tokio_util::sync::CancellationToken;

mod handles;
mod publish;

pub use handles::{CATEGORIES, FetchMetrics, ReconnectReason, SecondsTotal, SinkMetrics, SourceMetrics, StoreMetrics};
pub use publish::publish;

/// How often recorded histogram samples are folded into their buckets; until then each takes 16 bytes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// What a metric is to Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts in fixed buckets.
    Histogram,
}

impl MetricKind {
    /// The word of the text exposition and of docs/OPERATING.md.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric as the table has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// `walhook_<thing>_<unit>[_total]`.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricKind,
    /// The unit that ends the name, before `_total`; empty for a yes or no.
    pub unit: &'static str,
    /// Its labels, in order.
    pub labels: &'static [&'static str],
    /// For the operator.
    pub help: &'static str,
}

const NONE: &[&str] = &[];
const SOURCE: &[&str] = &["source"];
const SINK: &[&str] = &["source", "sink"];

macro_rules! table {
    ($($id:ident = $kind:ident $name:literal [$unit:literal] $labels:expr, $help:literal;)*) => {
        $(const $id: Metric =
            Metric { name: $name, kind: MetricKind::$kind, unit: $unit, labels: $labels, help: $help };)*
        /// Every metric, in the order of docs/OPERATING.md.
        pub const ALL: &[Metric] = &[$($id),*];
    };
}

table! {
    READY = Gauge "walhook_ready" [""] NONE,
        "1 while /readyz answers 200, else 0.";
    START_TIME = Gauge "walhook_start_time_seconds" ["seconds"] NONE,
        "Unix time at which the process started.";
    BUILD_INFO = Gauge "walhook_build_info" [""] &["version"],
        "Always 1; the label says which version runs.";
    MEMORY_HELD = Gauge "walhook_memory_held_bytes" ["bytes"] NONE,
        "Bytes of changes and bodies held in memory, over all sources.";
    MEMORY_LIMIT = Gauge "walhook_memory_limit_bytes" ["bytes"] NONE,
        "limits.memory_limit, or what of it fits into the control group; each source that has sinks gets an equal share, and is not read while its own is full.";
    RESIDENT_MEMORY = Gauge "walhook_resident_memory_bytes" ["bytes"] NONE,
        "Resident memory of the process; Linux only.";
    OWN_TROUBLES = Gauge "walhook_process_trouble" [""] &["kind"],
        "1 while walhook's machine troubles it, by kind: slept (it did not run), clock_jump (the wall clock was set), descriptors (too few files may be open for what the sinks may send at a time), else 0.";
    LOG_LOST = Counter "walhook_log_lost_lines_total" ["lines"] NONE,
        "Lines of the log on standard error that were lost, because whoever reads them was too slow or had gone.";

    STORE_USED = Gauge "walhook_store_used_bytes" ["bytes"] NONE,
        "Bytes of disk that the files of the store take.";
    STORE_WAL = Gauge "walhook_store_wal_bytes" ["bytes"] NONE,
        "Bytes of them in the WAL of state.db; it grows without bound only while another process reads state.db in one long transaction.";
    STORE_MAX = Gauge "walhook_store_max_bytes" ["bytes"] NONE,
        "state.max_bytes.";
    STORE_ROOM = Gauge "walhook_store_room_bytes" ["bytes"] NONE,
        "Bytes that can be put into the store before it is full, 0 while it is; the rest of state.max_bytes is for progress, acknowledgements, the WAL and the log.";
    STORE_FULL = Gauge "walhook_store_full" [""] NONE,
        "1 while the store takes in nothing more, because what it may use of the disk is used, else 0.";
    STORE_FAILING = Gauge "walhook_store_failing" [""] NONE,
        "1 while the store cannot be opened or written, else 0.";
    STORE_WRITE_ERRORS = Counter "walhook_store_write_errors_total" ["errors"] NONE,
        "Writes to the store that failed; each is tried again.";
    STORE_COMMIT = Histogram "walhook_store_commit_seconds" ["seconds"] NONE,
        "From the start of a transaction in the store to the moment at which it is durable.";
    STORE_LOG_LOST = Counter "walhook_store_lost_log_rows_total" ["rows"] NONE,
        "Rows of the log of deliveries and attempts that were left out under pressure; no change is lost by it.";

    SOURCE_STREAMING = Gauge "walhook_source_streaming" [""] SOURCE,
        "1 while the source reads changes as they come, else 0.";
    SOURCE_HELD = Gauge "walhook_source_held" [""] SOURCE,
        "1 while the source is held, with nothing read and nothing acknowledged for some seconds, else 0.";
    SOURCE_RECEIVED_LSN = Gauge "walhook_source_received_lsn_bytes" ["bytes"] SOURCE,
        "WAL position up to which everything has been read.";
    SOURCE_CONFIRMED_LSN = Gauge "walhook_source_confirmed_lsn_bytes" ["bytes"] SOURCE,
        "WAL position confirmed to the slot: everything up to it is resolved by every sink.";
    SOURCE_SERVER_LSN = Gauge "walhook_source_server_lsn_bytes" ["bytes"] SOURCE,
        "End of the server's WAL, as last asked or heard.";
    SOURCE_LAG_BYTES = Gauge "walhook_source_lag_bytes" ["bytes"] SOURCE,
        "WAL between the confirmed position and the end of the server's WAL: what the slot makes the server keep.";
    SOURCE_LAG_SECONDS = Gauge "walhook_source_lag_seconds" ["seconds"] SOURCE,
        "Seconds since the commit of the last transaction read, while the server's WAL has more; else seconds since the server was last heard, if it is silent or not connected; 0 when all is read.";
    SOURCE_SILENT = Gauge "walhook_source_silent" [""] SOURCE,
        "1 while the server has sent nothing for 8 s or not answered over SQL for 4 s, else 0.";
    SOURCE_LACKS = Gauge "walhook_source_lacks" [""] &["source", "what"],
        "1 while the source lacks what it needs to go on (publication, slot, role), though the stream may not have noticed yet, else 0.";
    SOURCE_CHANGES = Counter "walhook_source_changes_total" ["changes"] &["source", "action"],
        "Changes read, by action (insert, update, delete, read, truncate, message); messages are those that a sink takes.";
    SOURCE_TRANSACTIONS = Counter "walhook_source_transactions_total" ["transactions"] SOURCE,
        "Transactions read to their commit.";
    SOURCE_RECEIVED_BYTES = Counter "walhook_source_received_bytes_total" ["bytes"] SOURCE,
        "Bytes read from the replication connection.";
    SOURCE_KEEPALIVES = Counter "walhook_source_keepalives_total" ["keepalives"] SOURCE,
        "Keepalives received from the server.";
    SOURCE_CATALOGUE_LOOKUPS = Counter "walhook_source_catalogue_lookups_total" ["lookups"] SOURCE,
        "Questions to the catalogue for the keys and types of a table.";
    SOURCE_TRUNCATES = Counter "walhook_source_ignored_truncates_total" ["truncates"] SOURCE,
        "Tables named by TRUNCATE that no sink takes as such; no message is made of them.";
    SOURCE_TEXT_FALLBACK = Counter "walhook_source_text_fallback_values_total" ["values"] SOURCE,
        "Values passed on as Postgres's text because their type has no mapping to JSON.";
    SOURCE_OVERSIZED = Counter "walhook_source_oversized_changes_total" ["changes"] SOURCE,
        "Changes that a sink takes and that are larger than limits.max_message: their large values are left out, and for each sink that takes them they are dead letters.";
    SOURCE_RECONNECTS = Counter "walhook_source_reconnects_total" ["reconnects"] &["source", "reason"],
        "Sessions that ended or could not begin and were tried again, by reason (connect, refused, slot_busy, slot_lost, server_closed, connection_lost, timeout, protocol, store, internal).";
    SOURCE_HELD_SECONDS = Counter "walhook_source_held_seconds_total" ["seconds"] SOURCE,
        "Whole seconds for which the source was held.";
    SOURCE_GAPS = Counter "walhook_source_gaps_total" ["gaps"] SOURCE,
        "Gaps since the start: slots that were lost and made anew, with changes that were never read.";
    SOURCE_GAP_BYTES = Counter "walhook_source_gap_bytes_total" ["bytes"] SOURCE,
        "Bytes of WAL between the two ends of these gaps, of all databases of the server.";
    SOURCE_NOTES = Gauge "walhook_source_table_notes" ["notes"] &["source", "kind"],
        "Tables of which not everything is captured, as /readyz and walhook state tell, until the cause is gone or a person accepts it, by kind (identity, made_anew, early_rows, attached_rows, renamed_away, unlogged_partition, foreign_partition, child, interrupted).";
    SOURCE_HARMED = Gauge "walhook_source_harmed_tables" ["tables"] SOURCE,
        "Tables whose own UPDATE and DELETE fail because they are published without a replica identity; /readyz answers 503 while there is one.";
    SOURCE_SLOT_RETAINED = Gauge "walhook_source_slot_retained_bytes" ["bytes"] SOURCE,
        "Bytes of WAL that the server keeps for the slot, as last asked.";
    SOURCE_SLOT_SAFE = Gauge "walhook_source_slot_safe_bytes" ["bytes"] SOURCE,
        "Bytes of WAL that may be written before the slot is in danger of being given up; -1 where max_slot_wal_keep_size sets no bound.";
    SOURCE_CATALOG_AGE = Gauge "walhook_source_slot_catalog_age_transactions" ["transactions"] SOURCE,
        "Transactions since the oldest one whose deleted catalogue rows the server keeps for the slot; it grows while the slot does not move.";
    SOURCE_COMMIT_TO_RECEIVED = Histogram "walhook_source_commit_to_received_seconds" ["seconds"] SOURCE,
        "From a transaction's commit to its first byte read, by the two machines' clocks; one sample a transaction.";

    SINK_RECEIVED = Counter "walhook_sink_received_messages_total" ["messages"] SINK,
        "Messages made for the sink.";
    SINK_ACKNOWLEDGED = Counter "walhook_sink_acknowledged_messages_total" ["messages"] SINK,
        "Messages that the endpoint acknowledged.";
    SINK_DELIVERIES = Counter "walhook_sink_acknowledged_deliveries_total" ["deliveries"] SINK,
        "Deliveries that the endpoint acknowledged.";
    SINK_ATTEMPTS = Counter "walhook_sink_attempts_total" ["attempts"] &["source", "sink", "outcome", "status_class"],
        "HTTP requests that ended, by outcome (acknowledged, failed) and class of status (2xx, 3xx, 4xx, 5xx, other, none).";
    SINK_FAILURES = Counter "walhook_sink_failures_total" ["failures"] &["source", "sink", "category"],
        "Failed attempts by category.";
    SINK_RESENT = Counter "walhook_sink_resent_requests_total" ["requests"] SINK,
        "Requests sent again at once within their attempt, as the endpoint had closed the connection to them before it took them.";
    SINK_IN_FLIGHT = Gauge "walhook_sink_in_flight_requests" ["requests"] SINK,
        "Requests under way.";
    SINK_ACK_PENDING = Gauge "walhook_sink_ack_pending_messages" ["messages"] SINK,
        "Unacknowledged messages: in flight, or failed and waiting for their next attempt.";
    SINK_MAX_ACK_PENDING = Gauge "walhook_sink_max_ack_pending_messages" ["messages"] SINK,
        "max_ack_pending: at this many unacknowledged messages nothing new is sent.";
    SINK_WAITING = Gauge "walhook_sink_waiting_messages" ["messages"] SINK,
        "Messages not yet in a delivery.";
    SINK_RETRYING = Gauge "walhook_sink_retrying_deliveries" ["deliveries"] SINK,
        "Deliveries that failed and are not acknowledged yet.";
    SINK_HELD_GROUPS = Gauge "walhook_sink_held_groups" ["groups"] SINK,
        "Groups in which messages wait behind a delivery that failed.";
    SINK_HELD_TABLES = Gauge "walhook_sink_held_tables" ["tables"] SINK,
        "Tables of which a barrier (TRUNCATE, the first change by another key or under another name) waits for earlier changes.";
    SINK_OLDEST_AGE = Gauge "walhook_sink_oldest_undelivered_age_seconds" ["seconds"] SINK,
        "Age of the oldest message received and not delivered, in memory or in the store; 0 when there is none.";
    SINK_UNDELIVERED = Gauge "walhook_sink_undelivered_messages" ["messages"] SINK,
        "Messages received and not delivered, in memory or in the store.";
    SINK_SLOW = Gauge "walhook_sink_slow" [""] SINK,
        "1 while the endpoint answers so late, or so seldom, that messages wait for it, else 0.";
    SINK_OWN_TROUBLE = Gauge "walhook_sink_own_trouble" [""] SINK,
        "1 while the sink waits for walhook's own machine (own_resources, own_clock, own_dns), else 0.";
    SINK_FAILING = Gauge "walhook_sink_consecutive_failures" ["failures"] SINK,
        "Attempts failed in a row, over the sink; 0 after a success.";
    SINK_PAUSED = Gauge "walhook_sink_paused" [""] SINK,
        "1 while the sink is paused, else 0.";
    SINK_RESOLVED_LSN = Gauge "walhook_sink_resolved_lsn_bytes" ["bytes"] SINK,
        "WAL position up to which everything is resolved for the sink.";
    SINK_STORED = Gauge "walhook_sink_stored_deliveries" ["deliveries"] SINK,
        "Deliveries that failed or hang and that the store keeps until they are acknowledged or given up.";
    SINK_LANES = Gauge "walhook_sink_lane_messages" ["messages"] SINK,
        "Messages that wait in the store behind others of their groups, or longer than the slot should.";
    SINK_OVERFLOW = Gauge "walhook_sink_overflow_messages" ["messages"] SINK,
        "Messages that overflowed to the store because the sink cannot keep up.";
    SINK_KEPT_DEAD = Gauge "walhook_sink_kept_dead_letters" ["letters"] SINK,
        "Dead letters that the store keeps.";
    SINK_DEAD = Counter "walhook_sink_dead_letters_total" ["letters"] &["source", "sink", "reason"],
        "Deliveries that were given up, by reason (max_attempts, max_age, too_large, damaged).";
    SINK_DAMAGED = Gauge "walhook_sink_damaged_messages" ["messages"] SINK,
        "Messages that were found to be damaged in the store, and are not delivered.";
    SINK_SPLITS = Counter "walhook_sink_splits_total" ["splits"] SINK,
        "Deliveries that were split in two to find the message that the endpoint refuses.";
    SINK_FETCHES = Counter "walhook_sink_toast_fetches_total" ["fetches"] &["source", "sink", "result"],
        "Messages whose left-out values were asked for (unchanged_toast = \"fetch\"), by result: filled, or why some are still left out (row_gone, table_gone, no_key, denied, too_large, timeout, unavailable, own_code, failed).";
    SINK_BREAKER_OPEN = Gauge "walhook_sink_breaker_open" [""] SINK,
        "1 while the endpoint as a whole fails and only probes are sent, one at a time, else 0.";
    SINK_RECEIVED_TO_ATTEMPT = Histogram "walhook_sink_received_to_first_attempt_seconds" ["seconds"] SINK,
        "From the reading of a delivery's first message to the start of its first attempt; one sample a delivery.";
    SINK_ATTEMPT_DURATION = Histogram "walhook_sink_attempt_duration_seconds" ["seconds"] SINK,
        "From the start of an attempt to its outcome.";
    SINK_COMMIT_TO_ACKNOWLEDGED = Histogram "walhook_sink_commit_to_acknowledged_seconds" ["seconds"] SINK,
        "From the commit of a delivery's first message to its acknowledgement, by the two machines' clocks; one sample a delivery.";
    SINK_DELIVERY_MESSAGES = Histogram "walhook_sink_delivery_messages" ["messages"] SINK,
        "Messages in a delivery.";
    SINK_BODY_BYTES = Histogram "walhook_sink_body_bytes" ["bytes"] SINK,
        "Bytes of a delivery's body.";
}

/// The recorder could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The exporter refused the buckets.
    #[error("cannot build the metrics recorder")]
    Build(#[source] BuildError),
    /// Another recorder is in place.
    #[error("cannot install the metrics recorder, another one is installed")]
    Install(#[source] metrics::SetRecorderError<PrometheusRecorder>),
}

/// Makes the process's recorder and the handle that renders it. Call it once, before the first handle is made.
pub fn install() -> Result<PrometheusHandle, MetricsError> {
    let recorder = recorder().map_err(MetricsError::Build)?;
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(MetricsError::Install)?;
    describe(SystemTime::now());
    Ok(handle)
}

/// Folds samples into buckets every second until `stop`; without it histograms grow between scrapes.
pub async fn upkeep(handle: PrometheusHandle, stop: CancellationToken) {
    let mut tick = tokio::time::interval(UPKEEP_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        handle.run_upkeep();
    }
}

fn recorder() -> Result<PrometheusRecorder, BuildError> {
    let histograms = ALL.iter().filter(|metric| metric.kind == MetricKind::Histogram);
    let builder = histograms.into_iter().try_fold(PrometheusBuilder::new(), |builder, metric| {
        builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets(metric.unit))
    })?;
    Ok(builder.build_recorder())
}

fn buckets(unit: &str) -> &'static [f64] {
    match unit {
        "seconds" => &[
            0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
            30.0, 60.0, 120.0, 300.0,
        ],
        "bytes" => &[256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0],
        _ => &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0],
    }
}

/// Hands over the help texts and the two facts that never change.
fn describe(started_at: SystemTime) {
    for metric in ALL {
        match metric.kind {
            MetricKind::Counter => metrics::describe_counter!(metric.name, metric.help),
            MetricKind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            MetricKind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
    let started = started_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    handles::gauge(&START_TIME, &[]).set(started.as_secs_f64());
    handles::gauge(&BUILD_INFO, &[env!("CARGO_PKG_VERSION")]).set(1.0);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::store::DeadReason;
    use crate::view::{SinkView, SourceState, SourceView, Views};

    /// What a daemon with one source and one sink shows.
    fn shown() -> String {
        let recorder = recorder().unwrap();
        metrics::with_local_recorder(&recorder, || {
            describe(SystemTime::now());
            let source = SourceMetrics::new("app");
            source.reconnected(ReconnectReason::SlotBusy);
            let sink = SinkMetrics::new("app", "orders");
            sink.attempted(false, Some(503));
            sink.failed("status_server_error");
            sink.failed("a category nobody has heard of");
            sink.attempt_duration.record(0.25);
            sink.dead_lettered(DeadReason::MaxAge);
            StoreMetrics::new().commit.record(0.002);
            FetchMetrics::new("app", "orders").filled.increment(1);
            let views = Views::default();
            views.sources.insert("app".into(), SourceView::new(SourceState::Streaming, SystemTime::now()));
            views.sinks.insert("orders".into(), SinkView { source: "app".into(), ..SinkView::default() });
            publish(&views, SystemTime::now());
        });
        recorder.handle().render()
    }

    #[test]
    fn what_is_shown_is_the_table_and_the_table_is_shown() {
        let shown = shown();
        let types: BTreeSet<_> = shown.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let table: Vec<_> = ALL.iter().map(|metric| format!("{} {}", metric.name, metric.kind.as_str())).collect();
        assert_eq!(types, table.iter().map(String::as_str).collect());
        for metric in ALL {
            assert!(shown.contains(&format!("# HELP {} {}\n", metric.name, metric.help)), "{}", metric.name);
        }
    }

    #[test]
    fn labels_on_the_wire_are_those_of_the_table() {
        let shown = shown();
        for metric in ALL {
            let line = shown.lines().find(|line| {
                let rest = line.strip_prefix(metric.name).map(|rest| rest.trim_start_matches("_bucket"));
                rest.is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
            });
            let line = line.unwrap_or_else(|| panic!("{} is not shown", metric.name));
            let labels =
                line.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(labels, _)| labels);
            let names: BTreeSet<_> =
                labels.split(',').filter_map(|l| l.split_once('=')).map(|(name, _)| name).collect();
            let expected: BTreeSet<_> = metric.labels.iter().copied().collect();
            assert_eq!(
                names.iter().filter(|name| **name != "le").copied().collect::<BTreeSet<_>>(),
                expected,
                "{line}"
            );
        }
    }

    #[test]
    fn names_end_with_their_unit_and_counters_with_total() {
        for metric in ALL {
            let stem = metric.name.strip_suffix("_total");
            assert_eq!(stem.is_some(), metric.kind == MetricKind::Counter, "{}", metric.name);
            assert!(metric.name.starts_with("walhook_"), "{}", metric.name);
            assert!(stem.unwrap_or(metric.name).ends_with(metric.unit), "{}", metric.name);
            assert!(metric.help.ends_with('.') && !metric.help.contains('|'), "{}", metric.name);
        }
    }

    #[test]
    fn samples_fall_into_the_buckets_and_counts_under_their_labels() {
        let shown = shown();
        let sink = r#"source="app",sink="orders""#;
        for line in [
            format!(r#"walhook_sink_attempt_duration_seconds_bucket{{{sink},le="0.1"}} 0"#),
            format!(r#"walhook_sink_attempt_duration_seconds_bucket{{{sink},le="0.25"}} 1"#),
            format!(r#"walhook_sink_attempts_total{{{sink},outcome="failed",status_class="5xx"}} 1"#),
            format!(r#"walhook_sink_attempts_total{{{sink},outcome="acknowledged",status_class="2xx"}} 0"#),
            format!(r#"walhook_sink_failures_total{{{sink},category="status_server_error"}} 1"#),
            format!(r#"walhook_sink_failures_total{{{sink},category="unknown"}} 1"#),
            format!(r#"walhook_sink_dead_letters_total{{{sink},reason="max_age"}} 1"#),
            format!(r#"walhook_sink_dead_letters_total{{{sink},reason="max_attempts"}} 0"#),
            r#"walhook_source_reconnects_total{source="app",reason="slot_busy"} 1"#.to_owned(),
            r#"walhook_source_streaming{source="app"} 1"#.to_owned(),
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line}\nis not in\n{shown}");
        }
    }

    #[test]
    fn operating_md_has_the_table_word_for_word() {
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/OPERATING.md"));
        let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| `walhook_")).collect();
        let table: Vec<_> = ALL
            .iter()
            .map(|m| format!("| `{}` | {} | {} | {} |", m.name, m.kind.as_str(), m.labels.join(", "), m.help))
            .collect();
        assert_eq!(rows, table, "the table should be:\n{}", table.join("\n"));
    }

    #[test]
    fn alerts_of_operating_md_ask_for_metrics_that_exist() {
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/OPERATING.md"));
        let blocks: Vec<_> = page.split("```promql").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        let words = blocks.iter().flat_map(|block| block.split(|c: char| !c.is_ascii_lowercase() && c != '_'));
        let names: BTreeSet<_> = words.filter(|word| word.starts_with("walhook_")).collect();
        assert!(names.len() > 5);
        for name in names {
            let name = name.trim_end_matches("_bucket");
            assert!(ALL.iter().any(|metric| metric.name == name), "{name}");
        }
    }

    #[tokio::test]
    async fn upkeep_ends_with_the_stop() {
        let stop = CancellationToken::new();
        let upkeep = upkeep(recorder().unwrap().handle(), stop.clone());
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(60), upkeep).await.unwrap();
    }
}

//! Gauges, derived from the views: at a scrape and every second, never by the stations.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use super::handles::{counter, gauge};
use super::{Metric, READY};
use crate::admin::readiness;
use crate::store::NoteKind;
use crate::view::{BreakerView, OwnKind, SinkView, SourceState, SourceView, StoreView, Views, Vital};

/// Sets every gauge to what `views` say at `now`.
pub fn publish(views: &Views, now: SystemTime) {
    gauge(&READY, &[]).set(yes(readiness(views, now).ready));
    gauge(&super::MEMORY_HELD, &[]).set(number(views.memory_held.load(Ordering::Relaxed)));
    gauge(&super::MEMORY_LIMIT, &[]).set(number(views.memory_limit.load(Ordering::Relaxed)));
    gauge(&super::RESIDENT_MEMORY, &[]).set(number(resident_bytes().unwrap_or_default()));
    counter(&super::LOG_LOST, &[]).absolute(views.log.lost());
    let own = views.own();
    for kind in OwnKind::ALL {
        gauge(&super::OWN_TROUBLES, &[kind.as_str()]).set(yes(own.contains_key(&kind)));
    }
    publish_store(&views.store());
    for source in &views.sources {
        publish_source(source.key(), source.value(), now);
    }
    for sink in &views.sinks {
        publish_sink(sink.key(), sink.value(), now);
    }
}

fn publish_store(view: &StoreView) {
    let set = |metric: &Metric, value: f64| gauge(metric, &[]).set(value);
    set(&super::STORE_USED, number(view.used_bytes));
    set(&super::STORE_WAL, number(view.wal_bytes));
    set(&super::STORE_MAX, number(view.max_bytes));
    set(&super::STORE_ROOM, number(view.room_bytes));
    set(&super::STORE_FULL, yes(view.is_full));
    set(&super::STORE_FAILING, yes(view.is_failing));
    counter(&super::STORE_LOG_LOST, &[]).absolute(view.log_rows_lost);
}

/// Silence of a server from which on it counts as lag: beyond the wait for a sign of life that it is asked for.
const QUIET: Duration = Duration::from_secs(6);

fn publish_source(name: &str, view: &SourceView, now: SystemTime) {
    let set = |metric: &Metric, value: f64| gauge(metric, &[name]).set(value);
    let progress = &view.progress;
    set(&super::SOURCE_STREAMING, yes(view.state == SourceState::Streaming));
    set(&super::SOURCE_HELD, yes(matches!(view.state, SourceState::Held { .. })));
    set(&super::SOURCE_RECEIVED_LSN, number(progress.received.0));
    set(&super::SOURCE_CONFIRMED_LSN, number(progress.confirmed.0));
    set(&super::SOURCE_SERVER_LSN, number(progress.server.0));
    set(&super::SOURCE_LAG_BYTES, number(progress.server.bytes_since(progress.confirmed)));
    set(&super::SOURCE_HARMED, count(view.harms.len()));
    set(&super::SOURCE_SILENT, yes(view.silence.is_some()));
    for vital in Vital::ALL {
        let lacks = view.alarms.iter().any(|alarm| alarm.vital == vital);
        gauge(&super::SOURCE_LACKS, &[name, vital.as_str()]).set(yes(lacks));
    }
    for kind in NoteKind::ALL.map(NoteKind::as_str) {
        let open = view.notes.counts.iter().find(|(label, _)| *label == kind).map_or(0, |(_, open)| *open);
        gauge(&super::SOURCE_NOTES, &[name, kind]).set(number(open));
    }
    let slot = &view.slot;
    set(&super::SOURCE_SLOT_RETAINED, number(slot.retained_bytes));
    set(&super::SOURCE_SLOT_SAFE, slot.safe_bytes.map_or(-1.0, number));
    set(&super::SOURCE_CATALOG_AGE, f64::from(slot.catalog_age));
    let behind = progress.server > progress.received;
    let behind = age(progress.last_commit_at.filter(|_| behind), now);
    set(&super::SOURCE_LAG_SECONDS, if behind > 0.0 { behind } else { unheard(view) });
}

/// Seconds for which nothing was heard of the server, which may have written since; a moment is ordinary.
fn unheard(view: &SourceView) -> f64 {
    let quiet = view.heard_at.map_or(Duration::ZERO, |heard_at| heard_at.elapsed());
    if quiet >= QUIET { quiet.as_secs_f64() } else { 0.0 }
}

fn publish_sink(name: &str, view: &SinkView, now: SystemTime) {
    let set = |metric: &Metric, value: f64| gauge(metric, &[&view.source, name]).set(value);
    set(&super::SINK_IN_FLIGHT, count(view.in_flight));
    set(&super::SINK_ACK_PENDING, count(view.ack_pending));
    set(&super::SINK_MAX_ACK_PENDING, count(view.max_ack_pending));
    set(&super::SINK_WAITING, count(view.waiting));
    set(&super::SINK_RETRYING, count(view.retrying));
    set(&super::SINK_HELD_GROUPS, count(view.groups_held));
    set(&super::SINK_HELD_TABLES, count(view.tables_held));
    set(&super::SINK_OLDEST_AGE, age(view.oldest_received_at, now));
    set(&super::SINK_UNDELIVERED, number(view.undelivered));
    set(&super::SINK_SLOW, yes(view.slow.is_some()));
    set(&super::SINK_OWN_TROUBLE, yes(view.own_trouble.is_some()));
    set(&super::SINK_FAILING, number(view.failures_in_a_row));
    set(&super::SINK_PAUSED, yes(view.paused));
    set(&super::SINK_RESOLVED_LSN, number(view.resolved.0));
    set(&super::SINK_STORED, number(view.stored_deliveries));
    set(&super::SINK_LANES, number(view.lane_messages));
    set(&super::SINK_OVERFLOW, number(view.overflow_messages));
    set(&super::SINK_KEPT_DEAD, number(view.dead_letters));
    set(&super::SINK_DAMAGED, number(view.damaged_count));
    set(&super::SINK_BREAKER_OPEN, yes(matches!(view.breaker, BreakerView::Open { .. })));
}

/// Prometheus has no other numbers; integers are exact up to 2^53, an LSN of eight petabytes.
fn number(value: u64) -> f64 {
    value as f64
}

fn count(value: usize) -> f64 {
    value as f64
}

fn yes(value: bool) -> f64 {
    f64::from(u8::from(value))
}

/// A clock that was set back gives 0, not a fault.
fn age(since: Option<SystemTime>, now: SystemTime) -> f64 {
    since.and_then(|since| now.duration_since(since).ok()).unwrap_or_default().as_secs_f64()
}

/// `VmRSS` of proc_pid_status(5), in kB there.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::change::Lsn;
    use crate::metrics::recorder;
    use crate::view::WalProgress;

    fn shown(views: &Views, now: SystemTime) -> String {
        let recorder = recorder().unwrap();
        metrics::with_local_recorder(&recorder, || publish(views, now));
        recorder.handle().render()
    }

    #[test]
    fn lag_is_what_the_slot_keeps_and_how_old_the_last_commit_is_while_there_is_more() {
        let now = SystemTime::now();
        let mut view = SourceView::new(SourceState::Held { why: String::new(), advice: String::new() }, now);
        view.progress = WalProgress {
            received: Lsn(700),
            confirmed: Lsn(400),
            server: Lsn(1000),
            last_commit_at: Some(now - Duration::from_secs(9)),
        };
        let views = Views::default();
        views.sources.insert("app".into(), view);
        let text = shown(&views, now);
        for line in ["lag_bytes{source=\"app\"} 600", "lag_seconds{source=\"app\"} 9", "held{source=\"app\"} 1"] {
            assert!(text.contains(&format!("walhook_source_{line}\n")), "{line}\n{text}");
        }
        if let Some(mut view) = views.sources.get_mut("app") {
            view.progress.received = Lsn(1000);
        }
        assert!(shown(&views, now).contains("walhook_source_lag_seconds{source=\"app\"} 0\n"));
    }

    #[test]
    fn the_store_and_what_it_keeps_of_a_sink_are_shown() {
        let now = SystemTime::now();
        let views = Views::default();
        views.show_store(StoreView {
            used_bytes: 7,
            max_bytes: 9,
            is_full: true,
            log_rows_lost: 3,
            ..StoreView::default()
        });
        let breaker = BreakerView::Open { until: now, failures: 5 };
        let view = SinkView { source: "app".into(), overflow_messages: 12, breaker, ..SinkView::default() };
        views.sinks.insert("orders".into(), view);
        let text = shown(&views, now);
        let labels = "{source=\"app\",sink=\"orders\"}";
        for line in [
            "store_used_bytes 7",
            "store_full 1",
            "store_failing 0",
            "store_lost_log_rows_total 3",
            &format!("sink_overflow_messages{labels} 12"),
            &format!("sink_breaker_open{labels} 1"),
        ] {
            assert!(text.contains(&format!("walhook_{line}\n")), "{line}\n{text}");
        }
    }

    #[test]
    fn the_oldest_message_ages_with_the_clock_and_never_below_zero() {
        let then = SystemTime::now();
        let views = Views::default();
        let view = SinkView { source: "app".into(), oldest_received_at: Some(then), ..SinkView::default() };
        views.sinks.insert("orders".into(), view);
        let name = "walhook_sink_oldest_undelivered_age_seconds{source=\"app\",sink=\"orders\"}";
        assert!(shown(&views, then + Duration::from_secs(90)).contains(&format!("{name} 90\n")));
        assert!(shown(&views, then - Duration::from_secs(90)).contains(&format!("{name} 0\n")));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn resident_memory_is_read() {
        assert!(resident_bytes().unwrap() > 1 << 20);
    }
}

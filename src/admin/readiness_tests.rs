//! Readiness as a table of states.

use super::*;
use crate::change::Lsn;
use crate::view::{LastFailure, Trouble, WalProgress};

const EPOCH: SystemTime = SystemTime::UNIX_EPOCH;

fn now() -> SystemTime {
    EPOCH + Duration::from_secs(1_000_000)
}

fn ago(seconds: u64) -> SystemTime {
    now() - Duration::from_secs(seconds)
}

fn ahead(seconds: u64) -> SystemTime {
    now() + Duration::from_secs(seconds)
}

fn views(state: SourceState, sink: SinkView) -> Views {
    let views = Views::default();
    views.memory_limit.store(256 << 20, Ordering::Relaxed);
    views.sources.insert("app".into(), SourceView::new(state, ago(125)));
    views.sinks.insert("orders".into(), SinkView { source: "app".into(), ..sink });
    views
}

fn failure(category: &'static str) -> LastFailure {
    let next_attempt_at = Some(ahead(12));
    LastFailure { at: ago(3), category, message: "503 Service Unavailable".into(), next_attempt_at }
}

/// Severity and text of the only trouble.
fn only(readiness: &Readiness) -> (&str, Severity, &str, &str) {
    match readiness.troubles.as_slice() {
        [t] => (&t.scope, t.severity, &t.what, &t.advice),
        other => panic!("one trouble expected: {other:#?}"),
    }
}

#[test]
fn ready_while_streaming_and_nothing_to_say() {
    let readiness = readiness(&views(SourceState::Streaming, SinkView::default()), now());
    assert!(readiness.ready);
    assert_eq!(readiness.troubles, []);
    assert_eq!(readiness.sources["app"].state, "streaming");
    assert_eq!(readiness.sinks["orders"].state, "idle");
}

#[test]
fn a_log_that_is_not_read_is_a_warning_and_leaves_it_ready() {
    let views = views(SourceState::Streaming, SinkView::default());
    views.log.begin(ago(4));
    assert_eq!(readiness(&views, now()).troubles, []);
    views.log.begin(ago(72));
    let waits = readiness(&views, now());
    let (scope, severity, what, advice) = only(&waits);
    assert_eq!((scope, severity, waits.ready), ("process", Severity::Warning, true));
    assert_eq!(what, "nobody has taken a line of the log for 1 min 12 s; 0 lines are lost");
    assert!(advice.contains("standard error"), "{advice}");
    views.log.begin(now());
    views.log.lose();
    let lost = readiness(&views, now());
    let (_, _, what, _) = only(&lost);
    assert_eq!(what, "the log cannot be written: 1 lines are lost");
}

#[test]
fn a_source_that_does_not_stream_makes_it_unready_and_says_why() {
    let stopped = SourceState::Stopped { error: "the slot is lost".into(), advice: "create it anew".into() };
    for (state, word, parts) in [
        (SourceState::Connecting, "connecting", &["connecting to the database for 2 min 5 s"][..]),
        (
            SourceState::Waiting {
                error: "connection refused".into(),
                advice: "start the server".into(),
                retry_at: ahead(7),
            },
            "waiting",
            &["for 2 min 5 s: connection refused", "next try in 7 s", "start the server; ", "WAL"],
        ),
        (SourceState::SlotBusy { pid: Some(4711), retry_at: ahead(1) }, "slot_busy", &["pid 4711", "next try in 1 s"]),
        (SourceState::SlotBusy { pid: None, retry_at: ago(1) }, "slot_busy", &["another session", "next try in 0 s"]),
        (
            SourceState::Held { why: "256 MiB are full".into(), advice: "raise limits.memory_limit".into() },
            "held",
            &["held for 2 min 5 s", "256 MiB are full", "memory_limit"],
        ),
        (stopped, "stopped", &["stopped for 2 min 5 s: the slot is lost", "create it anew"]),
    ] {
        let readiness = readiness(&views(state, SinkView::default()), now());
        assert!(!readiness.ready, "{word}");
        assert_eq!(readiness.sources["app"].state, word);
        let (scope, severity, what, advice) = only(&readiness);
        assert_eq!((scope, severity), ("source:app", Severity::Error));
        for part in parts {
            assert!(what.contains(part) || advice.contains(part), "{part:?} is not in {what:?} {advice:?}");
        }
    }
}

#[test]
fn one_source_of_two_is_enough_to_be_unready() {
    let views = views(SourceState::Streaming, SinkView::default());
    views.sources.insert(
        "billing".into(),
        SourceView::new(SourceState::Held { why: String::new(), advice: String::new() }, now()),
    );
    let readiness = readiness(&views, now());
    assert!(!readiness.ready);
    assert_eq!(only(&readiness).0, "source:billing");
}

#[test]
fn before_the_first_source_reports_and_while_stopping_it_is_not_ready() {
    let starting = readiness(&Views::default(), now());
    assert!(!starting.ready && only(&starting).2.contains("starting"));
    let views = views(SourceState::Streaming, SinkView::default());
    views.stopping.store(true, Ordering::Relaxed);
    let stopping = readiness(&views, now());
    assert!(!stopping.ready && only(&stopping).2.contains("stopping"));
}

#[test]
fn lasting_faults_and_a_slot_that_keeps_much_are_warnings() {
    let views = views(SourceState::Streaming, SinkView::default());
    let fault = Trouble { what: "public.log cannot be published".into(), advice: "ALTER TABLE …".into() };
    if let Some(mut view) = views.sources.get_mut("app") {
        view.troubles.push(fault);
        view.progress = WalProgress { server: Lsn(3 << 30), confirmed: Lsn(3 << 29), ..WalProgress::default() };
    }
    let readiness = readiness(&views, now());
    assert!(readiness.ready);
    assert!(readiness.troubles.iter().all(|t| t.severity == Severity::Warning), "{readiness:#?}");
    let whats: Vec<_> = readiness.troubles.iter().map(|t| t.what.as_str()).collect();
    assert!(
        matches!(whats[..], [fault, kept] if fault.contains("public.log") && kept.contains("1.5 GiB")),
        "{whats:?}"
    );
    assert_eq!(readiness.sources["app"].lag_bytes, 3 << 29);
}

#[test]
fn sinks_in_trouble_are_named_with_figures_and_stay_ready() {
    let failing = |failures_in_a_row, category| SinkView {
        ack_pending: 40,
        waiting: 7,
        retrying: 2,
        failures_in_a_row,
        failing_since: Some(ago(7500)),
        oldest_received_at: Some(ago(7600)),
        last_failure: Some(failure(category)),
        ..SinkView::default()
    };
    let refused = SinkView { retrying: 1, groups_held: 3, ..SinkView::default() };
    let held_since = Some(ago(70));
    let held = SinkView { tables_held: 2, tables_held_since: held_since, ack_pending: 1, ..SinkView::default() };
    let answers = Some(Duration::from_secs(29));
    let slow = SinkView {
        undelivered: 9,
        waiting: 3,
        slow: answers,
        oldest_received_at: Some(ago(61)),
        ..SinkView::default()
    };
    let full = SinkView { ack_pending: 10, max_ack_pending: 10, ..SinkView::default() };
    for (sink, state, severity, parts) in [
        (
            failing(5, "connect_refused"),
            "failing",
            Severity::Error,
            &["for 2 h 5 min, 5 attempts", "next attempt in 12 s", "oldest since 2 h 6 min", "start the endpoint"][..],
        ),
        (failing(4, "status_server_error"), "failing", Severity::Warning, &["40 messages unack", "7 waiting"]),
        (SinkView { paused: true, waiting: 3, ..refused.clone() }, "paused", Severity::Warning, &["3 messages wait"]),
        (refused, "failing", Severity::Warning, &["1 deliveries have failed", "3 groups wait"]),
        (held, "delivering", Severity::Warning, &["2 tables wait for 1 min 10 s: a TRUNCATE"]),
        (slow, "delivering", Severity::Warning, &["answers take 29 s; 9 messages wait, the oldest since 1 min 1 s"]),
        (full, "delivering", Severity::Warning, &["10 messages are unacknowledged"]),
    ] {
        let readiness = readiness(&views(SourceState::Streaming, sink), now());
        assert!(readiness.ready, "{state}");
        assert_eq!(readiness.sinks["orders"].state, state);
        let (scope, found, what, advice) = only(&readiness);
        assert_eq!((scope, found), ("sink:orders", severity), "{what}");
        for part in parts {
            assert!(what.contains(part) || advice.contains(part), "{part:?} is not in {what:?} {advice:?}");
        }
    }
}

#[test]
fn a_store_that_cannot_be_written_makes_it_unready_and_a_full_one_warns_until_a_source_is_held() {
    let views = views(SourceState::Streaming, SinkView::default());
    let trouble = Trouble { what: "the disk is full".into(), advice: "free some of it".into() };
    let path = "/var/lib/walhook".into();
    views.show_store(StoreView { path, is_failing: true, trouble: Some(trouble), ..StoreView::default() });
    let failing = readiness(&views, now());
    assert!(!failing.ready);
    let what = "the store in /var/lib/walhook: the disk is full";
    assert_eq!(only(&failing), ("store", Severity::Error, what, "free some of it"));
    assert_eq!(failing.store.state, "failing");

    views.show_store(StoreView { used_bytes: 6 << 20, max_bytes: 8 << 20, is_full: true, ..StoreView::default() });
    let full = readiness(&views, now());
    assert!(full.ready);
    let (scope, severity, what, advice) = only(&full);
    assert_eq!((scope, severity, full.store.state), ("store", Severity::Warning, "full"));
    assert!(what.contains("6.0 MiB") && what.contains("8.0 MiB") && advice.contains("state.max_bytes"), "{what}");

    let held = SourceState::Held { why: "sink orders: the store is full".into(), advice: "mend it".into() };
    views.sources.insert("app".into(), SourceView::new(held, now()));
    let held = readiness(&views, now());
    assert!(!held.ready);
    assert!(held.troubles.iter().all(|trouble| trouble.severity == Severity::Error), "{held:?}");
}

#[test]
fn a_store_that_cannot_be_opened_is_named_before_any_source_reports() {
    let views = Views::default();
    let trouble = Trouble { what: "the store cannot be opened".into(), advice: "free some disk".into() };
    views.show_store(StoreView { is_failing: true, trouble: Some(trouble), ..StoreView::default() });
    let readiness = readiness(&views, now());
    assert!(!readiness.ready);
    assert_eq!(only(&readiness).0, "store");
}

#[test]
fn open_breakers_dead_letters_and_pauses_by_walhook_are_named_and_stay_ready() {
    let open = SinkView {
        breaker: BreakerView::Open { until: ahead(7), failures: 9 },
        failing_since: Some(ago(7500)),
        last_failure: Some(failure("connect_refused")),
        overflow_messages: 5000,
        lane_messages: 11,
        ..SinkView::default()
    };
    let paused = SinkView {
        paused: true,
        paused_why: Some("dlv_1 was given up".into()),
        waiting: 2,
        overflow_messages: 3,
        ..SinkView::default()
    };
    let blocked = SinkView { blocked_deliveries: 2, retrying: 2, ..SinkView::default() };
    let dead = SinkView { dead_letters: 4, ..SinkView::default() };
    for (sink, state, severity, parts) in [
        (
            open,
            "failing",
            Severity::Error,
            &["for 2 h 5 min, 9 times in a row", "the next in 7 s", "5011 in the store", "start the endpoint"][..],
        ),
        (
            paused,
            "paused",
            Severity::Error,
            &["paused by walhook: dlv_1 was given up", "5 messages wait", "walhook state resume orders"],
        ),
        (blocked, "failing", Severity::Error, &["2 deliveries were given up", "block_group"]),
        (dead, "idle", Severity::Warning, &["4 dead letters"]),
    ] {
        let readiness = readiness(&views(SourceState::Streaming, sink), now());
        assert!(readiness.ready, "{state}");
        assert_eq!(readiness.sinks["orders"].state, state);
        let (scope, found, what, advice) = only(&readiness);
        assert_eq!((scope, found), ("sink:orders", severity), "{what}");
        for part in parts {
            assert!(what.contains(part) || advice.contains(part), "{part:?} is not in {what:?} {advice:?}");
        }
    }
}

#[test]
fn a_sink_that_works_is_no_trouble() {
    let working = SinkView {
        ack_pending: 9,
        max_ack_pending: 10,
        waiting: 100,
        oldest_received_at: Some(ago(59)),
        ..SinkView::default()
    };
    assert_eq!(readiness(&views(SourceState::Streaming, working), now()).troubles, []);
}

#[test]
fn every_category_has_its_advice() {
    for category in crate::metrics::CATEGORIES.into_iter().filter(|category| *category != "unknown") {
        let sink = SinkView { failures_in_a_row: 1, last_failure: Some(failure(category)), ..SinkView::default() };
        let readiness = readiness(&views(SourceState::Streaming, sink), now());
        assert_ne!(only(&readiness).3, "the log has the details", "{category}");
    }
}

#[test]
fn who_may_see_some_sinks_sees_no_others() {
    let views = views(SourceState::Streaming, SinkView { paused: true, ..SinkView::default() });
    views.sinks.insert("mails".into(), SinkView { paused: true, ..SinkView::default() });
    let readiness = readiness(&views, now()).only_sinks(&["mails".into()]);
    assert_eq!(readiness.sinks.keys().collect::<Vec<_>>(), ["mails"]);
    assert_eq!(only(&readiness).0, "sink:mails");
    assert_eq!(readiness.sources.len(), 1);
}

#[test]
fn a_table_whose_own_writes_fail_makes_it_unready_and_what_is_lost_of_one_is_an_error() {
    let views = views(SourceState::Streaming, SinkView::default());
    let trouble = |what: &str| Trouble { what: what.into(), advice: "do".into() };
    if let Some(mut view) = views.sources.get_mut("app") {
        view.errors.push(trouble("a table is missing"));
        view.notes.errors.push(trouble("a gap"));
        view.notes.warnings.push(trouble("a child"));
    }
    let seen = |readiness: &Readiness| -> Vec<(Severity, String)> {
        readiness.troubles.iter().map(|trouble| (trouble.severity, trouble.what.clone())).collect()
    };
    let calm = readiness(&views, now());
    assert!(calm.ready);
    let [missing, gap] = ["a table is missing", "a gap"].map(|what| (Severity::Error, what.to_owned()));
    let child = (Severity::Warning, "a child".to_owned());
    assert_eq!(seen(&calm), [missing, gap, child]);
    if let Some(mut view) = views.sources.get_mut("app") {
        view.harms = (0..12).map(|n| trouble(&format!("table {n} fails"))).collect();
    }
    let harmed = readiness(&views, now());
    assert!(!harmed.ready);
    let first = seen(&harmed);
    assert_eq!(first[0], (Severity::Error, "table 0 fails".to_owned()));
    assert!(first[10].1.starts_with("2 more published tables"), "{first:?}");
}

//! What is wrong with a sink. Pure.

use std::time::{Duration, SystemTime};

use super::readiness::{Severity, TroubleReport, in_words};
use crate::store::DamagedMessage;
use crate::view::{BreakerView, LastFailure, OWN_TROUBLE, OwnTroubleView, SinkView};

/// So many failures in a row speak of the endpoint as a whole, not of one delivery.
const FAILURES_OF_ENDPOINT: u64 = 5;
/// Damaged messages that are named one by one.
const DAMAGED_NAMED: usize = 10;
/// So is a table that is held up for so long.
const HELD_LONG: Duration = Duration::from_secs(10);

/// The state in one word.
pub(super) fn state(view: &SinkView) -> &'static str {
    if view.paused {
        "paused"
    } else if view.last_failure.is_some() || view.retrying > 0 || is_open(view) {
        "failing"
    } else if view.ack_pending > 0 || view.waiting > 0 || stored_messages(view) > 0 {
        "delivering"
    } else {
        "idle"
    }
}

/// How long the oldest unresolved message has been here.
pub(super) fn oldest_age(view: &SinkView, now: SystemTime) -> Option<Duration> {
    view.oldest_received_at.map(|at| now.duration_since(at).unwrap_or_default())
}

fn is_open(view: &SinkView) -> bool {
    matches!(view.breaker, BreakerView::Open { .. })
}

fn stored_messages(view: &SinkView) -> u64 {
    view.lane_messages.saturating_add(view.overflow_messages)
}

/// Everything wrong with the sink: one cause, and beside it the full window, tables held up, blocked groups and dead letters if there are
/// any.
pub(super) fn troubles(name: &str, view: &SinkView, now: SystemTime) -> Vec<TroubleReport> {
    let report = |(severity, what, advice): (Severity, String, &str)| TroubleReport {
        scope: format!("sink:{name}"),
        severity,
        what,
        advice: advice.replace("NAME", name),
    };
    let beside = full_window(view)
        .into_iter()
        .chain(tables_held(view, now))
        .chain(blocked(view))
        .chain(damaged(view))
        .chain(dead_letters(view));
    cause(view, now).into_iter().chain(beside).map(report).collect()
}

fn cause(view: &SinkView, now: SystemTime) -> Option<(Severity, String, &'static str)> {
    let oldest = oldest(view, now);
    if view.paused {
        Some(paused(view, &oldest))
    } else if let Some(own) = &view.own_trouble {
        Some(own_trouble(view, own, now))
    } else if let BreakerView::Open { until, failures } = view.breaker {
        Some(open(view, (until, failures), now))
    } else if let Some(failure) = view.last_failure.as_ref().filter(|_| view.failures_in_a_row > 0) {
        let endpoint = view.failures_in_a_row >= FAILURES_OF_ENDPOINT;
        let severity = if endpoint { Severity::Error } else { Severity::Warning };
        Some((severity, failing(view, failure, now), advice(failure.category)))
    } else if retried(view) > 0 {
        let last = view.last_failure.as_ref();
        let last =
            last.map_or_else(String::new, |last| format!("; the last one: {} ({})", last.message, last.category));
        let what = format!(
            "{} deliveries have failed and are tried again, and {} groups wait behind them{oldest}; others are \
             acknowledged{last}",
            retried(view),
            view.groups_held
        );
        let advice = "the endpoint refuses single deliveries: the log has their categories";
        Some((Severity::Warning, what, advice))
    } else if let Some(answers) = view.slow {
        let (answers, waiting) = (in_words(answers), view.undelivered);
        let what = format!("slow: answers take {answers}; {waiting} messages wait{oldest}");
        let advice = "the endpoint answers, but not fast enough: make it faster, or raise batch_size or max_in_flight";
        Some((Severity::Warning, what, advice))
    } else {
        None
    }
}

fn paused(view: &SinkView, oldest: &str) -> (Severity, String, &'static str) {
    let waiting = u64::try_from(view.waiting).unwrap_or(u64::MAX).saturating_add(stored_messages(view));
    match &view.paused_why {
        Some(why) => (
            Severity::Error,
            format!("paused by walhook: {why}; {waiting} messages wait{oldest}"),
            "mend the endpoint, stop walhook, then `walhook state resume NAME`, and start it again",
        ),
        None => (
            Severity::Warning,
            format!("paused; {waiting} messages wait{oldest}"),
            "set paused = false on the sink and restart walhook when the endpoint is ready",
        ),
    }
}

fn own_trouble(view: &SinkView, own: &OwnTroubleView, now: SystemTime) -> (Severity, String, &'static str) {
    let what = format!(
        "waits for walhook's own machine for {}, the endpoint has no part in it: {} ({}); {} messages wait{}",
        in_words(now.duration_since(own.since).unwrap_or_default()),
        own.message,
        own.category,
        view.undelivered,
        oldest(view, now),
    );
    (Severity::Error, what, advice(own.category))
}

/// Why the sink as a whole sends nothing.
pub(super) fn hold_reason(view: &SinkView) -> Option<&'static str> {
    if view.paused {
        Some("sink_paused")
    } else if view.own_trouble.is_some() {
        Some(OWN_TROUBLE)
    } else {
        is_open(view).then_some("breaker_open")
    }
}

fn open(view: &SinkView, (until, failures): (SystemTime, u64), now: SystemTime) -> (Severity, String, &'static str) {
    let next = in_words(until.duration_since(now).unwrap_or_default());
    let lasted = view
        .failing_since
        .map_or_else(String::new, |since| format!(" for {}", in_words(now.duration_since(since).unwrap_or_default())));
    let last = view
        .last_failure
        .as_ref()
        .map_or_else(String::new, |last| format!("; the last one: {} ({})", last.message, last.category));
    let what = format!(
        "the endpoint fails{lasted}, {failures} times in a row, and gets only probes, the next in {next}{last}; {} \
         messages unacknowledged, {} waiting in memory, {} in the store{}",
        view.ack_pending,
        view.waiting,
        stored_messages(view),
        oldest(view, now),
    );
    let mend = view.last_failure.as_ref().map_or("mend the endpoint", |last| advice(last.category));
    (Severity::Error, what, mend)
}

/// Deliveries that have failed and are tried again by themselves.
fn retried(view: &SinkView) -> u64 {
    u64::try_from(view.retrying).unwrap_or(u64::MAX).saturating_sub(view.blocked_deliveries)
}

fn blocked(view: &SinkView) -> Option<(Severity, String, &'static str)> {
    let blocked = view.blocked_deliveries;
    (blocked > 0).then(|| {
        let what = format!(
            "{blocked} deliveries were given up, and their groups wait for a person (retry.on_exhausted = \"block_group\")"
        );
        let advice = "mend the endpoint, stop walhook, then `walhook state resume NAME`, and start it again: they are tried once more";
        (Severity::Error, what, advice)
    })
}

fn tables_held(view: &SinkView, now: SystemTime) -> Option<(Severity, String, &'static str)> {
    let lasted = now.duration_since(view.tables_held_since?).unwrap_or_default();
    (lasted >= HELD_LONG).then(|| {
        let what = format!(
            "{} tables wait for {}: a TRUNCATE, or the first change by another key or under another name, goes when all \
             earlier changes of its table are acknowledged",
            view.tables_held,
            in_words(lasted)
        );
        let advice = "other tables go on; earlier changes of these tables fail or wait: the log has their categories";
        (Severity::Warning, what, advice)
    })
}

/// Messages that are damaged, the newest named.
fn damaged(view: &SinkView) -> Option<(Severity, String, &'static str)> {
    let all = &view.damaged;
    let named: Vec<String> = all.iter().rev().take(DAMAGED_NAMED).map(damaged_message).collect();
    let more = view.damaged_count.saturating_sub(u64::try_from(named.len()).unwrap_or(u64::MAX));
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (view.damaged_count > 0).then(|| {
        let what = format!(
            "{} messages in the store are damaged, and are not delivered: {}{more}",
            view.damaged_count,
            named.join("; ")
        );
        let advice = "keep a copy of state.path and look at its disk and memory; read the rows from the tables and bring the receiver up \
                      to date by hand. Then stop walhook, drop each of them with `walhook state drop-message MSG_ID`, and start it again";
        (Severity::Error, what, advice)
    })
}

fn damaged_message(message: &DamagedMessage) -> String {
    let DamagedMessage { id, position, group, blocked, .. } = message;
    let place = position.map_or_else(
        || "its place is not known".to_owned(),
        |position| format!("commit_lsn {}, commit_idx {}", position.commit_lsn.0, position.index),
    );
    let group = group.map_or_else(String::new, |group| format!(", group_hash {group}"));
    let waits = if *blocked { ", whose later messages wait" } else { "" };
    format!("{id} ({place}{group}{waits})")
}

fn dead_letters(view: &SinkView) -> Option<(Severity, String, &'static str)> {
    let kept = view.dead_letters;
    (kept > 0).then(|| {
        let what =
            format!("{kept} dead letters: deliveries that were given up, as retry.max_attempts and retry.max_age say or since nothing of them could be sent");
        let advice = "the log says which and why; the store keeps them for state.dead_letter_retention";
        (Severity::Warning, what, advice)
    })
}

fn full_window(view: &SinkView) -> Option<(Severity, String, &'static str)> {
    let full = view.max_ack_pending > 0 && view.ack_pending >= view.max_ack_pending;
    full.then(|| {
        let pending = view.ack_pending;
        let what = format!("{pending} messages are unacknowledged, which is max_ack_pending: nothing new is sent");
        let advice = "the endpoint must acknowledge or be mended; raise max_ack_pending if it can take more at a time";
        // A window that is full while all goes well only says that the endpoint is slower than the database.
        let severity = if view.failures_in_a_row > 0 { Severity::Error } else { Severity::Warning };
        (severity, what, advice)
    })
}

fn failing(view: &SinkView, failure: &LastFailure, now: SystemTime) -> String {
    let since = view.failing_since.unwrap_or(failure.at);
    let lasted = in_words(now.duration_since(since).unwrap_or_default());
    let next = failure.next_attempt_at.map_or_else(String::new, |at| {
        format!("; next attempt in {}", in_words(at.duration_since(now).unwrap_or_default()))
    });
    format!(
        "failing for {lasted}, {} attempts in a row: {} ({}); {} messages unacknowledged, {} waiting{}{next}",
        view.failures_in_a_row,
        failure.message,
        failure.category,
        view.ack_pending,
        view.waiting,
        oldest(view, now),
    )
}

fn oldest(view: &SinkView, now: SystemTime) -> String {
    oldest_age(view, now).map_or_else(String::new, |age| format!(", the oldest since {}", in_words(age)))
}

/// What mends a failure of that category.
fn advice(category: &str) -> &'static str {
    match category {
        "dns_error" => "correct the host in the sink's url, or mend name resolution on this machine",
        "blocked_address" => "the url leads to an address that walhook must not reach: correct it",
        "connect_refused" => "start the endpoint, or correct the host and port in the sink's url",
        "connect_timeout" => {
            "the endpoint's machine does not answer: check that it runs and that no firewall is between"
        }
        "connection_reset" => {
            "the endpoint or a proxy before it cut the connection: look into their logs; a port that speaks TLS does so too where the \
             sink's url has http"
        }
        "tls_error" => "mend what the failure names: the endpoint's certificate or its TLS, or the sink's url and tls",
        "proxy_error" => "the proxy fails, not the endpoint: look into its log",
        "timeout" => "the endpoint takes longer than request_timeout: make it faster, or raise the limit",
        "protocol_error" => {
            "what answers does not speak HTTP correctly: check the port in the sink's url, and its scheme: a port that speaks TLS needs \
             https"
        }
        "status_redirect" => "redirects are not followed: set the sink's url to where the endpoint really is",
        "status_unauthorized" => "correct the sink's headers or signing_secrets: the endpoint does not accept them",
        "status_gone" => "the endpoint is gone for good: remove the sink, or correct its url",
        "status_payload_too_large" => "lower batch_size or batch_bytes, or let the endpoint take larger bodies",
        "status_rate_limited" => "lower max_in_flight, or raise the endpoint's limit",
        "status_client_error" => {
            "the endpoint refuses the request: check the sink's url (https where its port speaks TLS), path and headers"
        }
        "status_server_error" => "the endpoint fails: look into its log",
        "unexpected_success_status" => "the status is not in the sink's success: add it there if it means acknowledged",
        "aborted_by_receiver" => "the endpoint asked not to be sent this delivery again",
        "too_large" => {
            "a change is larger than limits.max_message and cannot become a dead letter before the store has room"
        }
        "damaged" => "a message in the store is damaged and cannot become a dead letter before the store has room",
        "own_resources" => {
            "this machine has nothing left to make a connection with: raise walhook's limit of open files (ulimit -n, or LimitNOFILE= of \
             its service), or lower max_in_flight"
        }
        "own_clock" => {
            "if nobody stopped walhook or set the clock, give it more of a processor, and keep its clock right"
        }
        "own_dns" => "mend name resolution on this machine: /etc/resolv.conf, and the resolvers it names",
        "unbuildable" => "walhook could not build the request: the log says why, and it is a fault of walhook",
        "shutdown" => "the attempt was cut off by a stop and will be repeated",
        _ => "the log has the details",
    }
}

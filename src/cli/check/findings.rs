//! Pure: what `check` says about what it saw.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;

use serde::Serialize;
use tokio_postgres::error::SqlState;

use super::columns::Looked;
use super::tables;
use crate::change::TableName;
use crate::config::{Fault, Place, SinkConfig, SourceConfig};
use crate::source::advice::Statement;
use crate::source::slot::plan::Naming;
use crate::source::slot::rooms::{Room, SESSIONS};
use crate::source::slot::server::ServerLimits;
use crate::source::slot::takes::Takes;
use crate::source::slot::unseen::grant;
use crate::source::slot::{Held, Hold, PlanFault, Survey, folded};
use crate::view::Trouble;

/// Tables or columns named in one line at most.
const NAMED_MAX: usize = 8;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// Works, but look at it.
    Warn,
    /// Keeps walhook from running.
    Fail,
}

impl Level {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What sort of thing a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Sort {
    Table,
    Sink,
    Endpoint,
    Other,
}

impl Sort {
    /// Of things that there may be many of: their name together.
    pub(super) fn word(self) -> Option<&'static str> {
        match self {
            Self::Table => Some("tables"),
            Self::Sink => Some("sinks"),
            Self::Endpoint => Some("endpoints"),
            Self::Other => None,
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    /// A key of the configuration, a table, an endpoint.
    pub(crate) subject: String,
    pub(crate) what: String,
    /// What mends it, SQL where SQL does.
    pub(crate) mend: Option<String>,
    /// A failure of the configuration and not of the database.
    #[serde(skip)]
    pub(crate) is_config: bool,
    #[serde(skip)]
    pub(crate) sort: Sort,
}

impl Finding {
    pub(crate) fn ok(subject: impl Display, what: impl Into<String>) -> Self {
        let (subject, what) = (subject.to_string(), what.into());
        Self { level: Level::Ok, subject, what, mend: None, is_config: false, sort: Sort::Other }
    }

    pub(crate) fn warn(subject: impl Display, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { level: Level::Warn, mend: Some(mend.into()), ..Self::ok(subject, what) }
    }

    pub(crate) fn fail(subject: impl Display, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { level: Level::Fail, mend: Some(mend.into()), ..Self::ok(subject, what) }
    }
}

/// A fault of the configuration file.
pub(crate) fn of_fault(fault: &Fault) -> Finding {
    let value = fault.value.as_ref().map_or_else(String::new, |value| format!("{value} "));
    let place = match &fault.place {
        Some(Place::Line(line)) => format!(" (line {line})"),
        Some(Place::Variable(name)) => format!(" (from {name})"),
        None => String::new(),
    };
    // The place ends the sentence; an excerpt of the file stands on lines of its own below.
    let (sentence, excerpt) = fault.reason.split_once('\n').unwrap_or((&fault.reason, ""));
    let below = if excerpt.is_empty() { "" } else { "\n" };
    let mend = fault.suggestion.as_ref().map(|meant| format!("did you mean {meant}?"));
    let what = format!("{value}{sentence}{place}{below}{excerpt}");
    Finding { level: Level::Fail, mend, is_config: !fault.is_outside, ..Finding::ok(&fault.key, what) }
}

/// The catalogue said nothing of the columns.
pub(super) fn of_silence(subject: String, error: &anyhow::Error, role: &str) -> Finding {
    let what = format!("the columns of the tables could not be looked at, so nothing is said of them: {error:#}");
    let server = error.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::as_db_error);
    let mend = match server.filter(|server| *server.code() == SqlState::INSUFFICIENT_PRIVILEGE) {
        Some(server) => grant(server.message(), role),
        None => "try again; if it goes on, see the server's log".to_owned(),
    };
    Finding::warn(subject, what, mend)
}

/// Nothing is known of keys, which `run` cannot do without.
pub(super) fn of_unknown_keys(subject: String, error: &anyhow::Error, role: &str) -> Finding {
    let Finding { mend, .. } = of_silence(subject.clone(), error, role);
    let what = format!("the keys of the tables could not be looked at, and nothing is delivered without: {error:#}");
    Finding { mend, ..Finding::fail(subject, what, "") }
}

/// Everything about the server and the role.
pub(crate) fn of_database(source: &SourceConfig, survey: &Survey, limits: &ServerLimits) -> Vec<Finding> {
    let subject = format!("source.{}", source.name);
    let mut all = of_server(&subject, survey, limits);
    all.extend(of_unseen(&subject, survey, limits));
    all.extend(of_failover(&subject, source, survey, limits));
    all.extend(of_limits(&subject, survey, limits));
    all
}

/// Everything about the tables and what the sinks get of them.
pub(crate) fn of_tables(source: &SourceConfig, sinks: &[SinkConfig], survey: &Survey, looked: &Looked) -> Vec<Finding> {
    let subject = format!("source.{}", source.name);
    let mut all = of_faults(&survey.plan.faults);
    all.extend(of_held(&subject, &survey.steps.held));
    let warned = |Trouble { what, advice }: Trouble| Finding::warn(&subject, what, advice);
    all.extend(survey.server.commits_wait(&source.url.application_name).map(warned));
    // What the limits have said, in other words.
    let said = survey.server.impatience();
    all.extend(survey.troubles(source).into_iter().filter(|trouble| said.as_ref() != Some(trouble)).map(warned));
    for (sink, pattern) in &survey.plan.unmatched {
        let mend = "make the table, or mend the pattern; a table made later is picked up within 60 s";
        all.push(Finding::warn(format!("sink.{sink}.tables"), format!("no table matches {pattern}"), mend));
    }
    let takes = Takes::all(sinks);
    for (table, _) in &survey.plan.publish {
        let takers = takes.iter().filter(|takes| takes.takes(&table.name)).map(|takes| takes.sink).collect::<Vec<_>>();
        let found = tables::of_table(table, &takers, looked.of(table.oid), &survey.server);
        all.extend(found.into_iter().map(|finding| Finding { sort: Sort::Table, ..finding }));
    }
    all.extend(takes.iter().map(|takes| Finding { sort: Sort::Sink, ..of_sink(takes, survey) }));
    all
}

/// Each once, with every place that it is a fault of.
fn of_faults(faults: &[PlanFault]) -> Vec<Finding> {
    let mut all: Vec<Finding> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for PlanFault { place, reason, sql } in faults {
        if let Some(known) = places.get(reason.as_str()).and_then(|at| all.get_mut(*at)) {
            known.what += &format!("; also {place}");
            continue;
        }
        places.insert(reason, all.len());
        let fault = Finding { level: Level::Fail, ..Finding::ok(place, reason) };
        all.push(Finding { mend: sql.clone(), ..fault });
    }
    all
}

/// What the role may not see, each once, and what would let it once for all that it shows. Nothing has to be done about it.
fn of_unseen(subject: &str, survey: &Survey, limits: &ServerLimits) -> Vec<Finding> {
    let mut all: Vec<Finding> = Vec::new();
    for unseen in survey.unseen().chain(&limits.unseen) {
        let mend = unseen.mend(&survey.server.role);
        match all.iter_mut().find(|finding| finding.mend.is_some() && finding.mend == mend) {
            Some(known) if known.what.contains(unseen.leaves_open) => {}
            Some(known) => known.what += &format!("; nor {}", unseen.leaves_open),
            None => {
                let finding = Finding { mend, ..Finding::ok(subject, unseen.what()) };
                if !all.contains(&finding) {
                    all.push(finding);
                }
            }
        }
    }
    all
}

fn of_server(subject: &str, survey: &Survey, limits: &ServerLimits) -> Vec<Finding> {
    let server = &survey.server;
    let obstacles: Vec<Finding> =
        server.obstacles().into_iter().map(|(what, mend)| Finding::fail(subject, what, mend)).collect();
    let standing = if server.in_recovery { ", a standby" } else { "" };
    let reached =
        format!("Postgres {}{standing}, database {}, role {}", server.version_text(), server.database, server.role);
    let mut all = vec![Finding::ok(subject, reached)];
    if obstacles.is_empty() {
        let effective = match &server.wal_level {
            Some(level) if limits.wal_level != server.wal_level => format!(" (effective_wal_level {level})"),
            Some(_) | None => String::new(),
        };
        let plugins = match &server.output_plugins {
            Some(_) => ", output_plugin_libraries allows pgoutput",
            None => "",
        };
        let level = format!("wal_level {}{effective}{plugins}", shown(limits.wal_level.as_ref()));
        all.push(Finding::ok(subject, format!("{level}, and the role may use replication slots")));
    }
    all.extend(obstacles);
    all.extend(match (survey.fetches_as_superuser(), server.is_overpowered()) {
        (Some(Trouble { what, advice }), _) => Some(Finding::fail(subject, what, advice)),
        (None, Some(Trouble { what, advice })) => Some(Finding::warn(subject, what, advice)),
        (None, None) => None,
    });
    all
}

/// Whether standbys can keep a copy of the slot, where they are to.
fn of_failover(subject: &str, source: &SourceConfig, survey: &Survey, limits: &ServerLimits) -> Option<Finding> {
    if !source.failover {
        return None;
    }
    let is_ahead = limits.synchronized_standbys.as_ref().is_some_and(String::is_empty);
    Some(match (survey.server.keeps_copies(), &survey.slot) {
        (Err(error), _) => {
            let Trouble { what, advice } = error.into_trouble();
            Finding::fail(subject, what, advice)
        }
        (Ok(()), _) if is_ahead => {
            let what = "failover, but synchronized_standby_slots is empty: walhook may be sent changes that a standby does \
                        not have yet, and is not read on after the promotion of one that lacks some";
            let mend = "with the physical slots of the standbys that may be promoted in the place of …";
            Finding::warn(subject, what, format!("{mend}, {}", Statement::standby_slots()))
        }
        (Ok(()), Some(slot)) if !slot.is_failover && source.create => {
            Finding::ok(subject, "failover: the slot is altered at the next start, so that standbys keep a copy of it")
        }
        (Ok(()), _) => Finding::ok(subject, "failover: standbys with sync_replication_slots keep a copy of the slot"),
    })
}

fn of_limits(subject: &str, survey: &Survey, limits: &ServerLimits) -> Vec<Finding> {
    let count = |used: Option<i64>, max: Option<i64>| match (used, max) {
        (Some(used), Some(max)) => format!("{} of {max} free", max.saturating_sub(used)),
        (None, max) | (max, None) => format!("unknown of {}", shown(max)),
    };
    let are_taken = |used: Option<i64>, max: Option<i64>| max.filter(|max| used.is_some_and(|used| used >= *max));
    let mut all = vec![Finding::ok(
        subject,
        format!(
            "slots: {}; WAL senders: {}; max_slot_wal_keep_size {}{}",
            count(limits.slots_used, limits.slots_max),
            count(limits.senders_used, limits.senders_max),
            shown(limits.keep_size.as_ref()),
            limits.idle_timeout.as_ref().map_or_else(String::new, |it| format!(", idle_replication_slot_timeout {it}")),
        ),
    )];
    if survey.slot.is_none()
        && let Some(max) = are_taken(limits.slots_used, limits.slots_max)
    {
        let what = format!("all {max} replication slots are in use");
        let mend = "raise max_replication_slots and restart the server, which ends every session. A slot that nobody reads may \
                    be of a reader that is only stopped: drop none before its owner agrees";
        all.push(Finding::fail(subject, what, mend));
    }
    let reading = survey.slot.as_ref().is_some_and(|slot| slot.active_pid.is_some());
    if !reading && let Some(max) = are_taken(limits.senders_used, limits.senders_max) {
        let what = format!("all {max} WAL senders are in use");
        all.push(Finding::fail(
            subject,
            what,
            "raise max_wal_senders and restart the server, which ends every session",
        ));
    }
    // While walhook runs its own sessions are among those that are counted.
    if survey.slot.as_ref().is_none_or(|slot| slot.active_pid.is_none()) {
        all.extend(limits.rooms.iter().filter_map(|room| of_room(subject, room)));
    }
    if limits.keep_size.as_deref() == Some("-1") {
        let what = "max_slot_wal_keep_size is -1: while walhook does not run, WAL may fill the server's disk";
        let mend = "with what the disk can spare, more than the longest outage writes, in the place of …";
        all.push(Finding::warn(subject, what, format!("{mend}, {}", Statement::keep_size())));
    }
    if let Some(timeout) = limits.idle_timeout.as_ref().filter(|timeout| *timeout != "0") {
        let what = format!("idle_replication_slot_timeout is {timeout}: a longer stop of walhook loses the slot");
        all.push(Finding::warn(subject, what, "set it above the longest outage you plan for"));
    }
    if limits.sender_timeout.as_deref() == Some("0") {
        let what = "wal_sender_timeout is 0: the server holds the slot for a walhook that is gone until TCP notices";
        let mend = Statement::sender_timeout(&survey.server.role).to_string();
        all.push(Finding::warn(subject, what, mend));
    }
    all
}

/// Too few sessions are left for walhook.
fn of_room(subject: &str, room: &Room) -> Option<Finding> {
    let free = room.free.filter(|free| *free < SESSIONS)?;
    let what = format!(
        "{} leaves room for {} sessions, and walhook has up to {SESSIONS} for each source: it would wait for one",
        room.of,
        free.max(0)
    );
    Some(Finding::fail(subject, what, room.mend))
}

/// Tables that walhook cannot publish as things are: a failure where a sink names one, though the others stream.
fn of_held(subject: &str, held: &[Held]) -> Vec<Finding> {
    // What one word to the owner mends is said of the publication.
    let is_said = |held: &&Held| held.is_named_by(Hold::Owner) || held.is_named_by(Hold::Publication);
    let (named, others): (Vec<&Held>, Vec<&Held>) =
        held.iter().filter(|held| !is_said(held)).partition(|held| held.naming == Naming::Exact);
    let told = |held: Vec<&Held>| folded(held.into_iter().map(|held| held.trouble.clone()).collect());
    let named = told(named).into_iter().map(|Trouble { what, advice }| Finding::fail(subject, what, advice));
    named.chain(told(others).into_iter().map(|Trouble { what, advice }| Finding::warn(subject, what, advice))).collect()
}

fn of_sink(takes: &Takes<'_>, survey: &Survey) -> Finding {
    let sink = takes.sink;
    let held: HashSet<&TableName> = survey.steps.held.iter().map(|held| &held.table).collect();
    let subject = format!("sink.{}", sink.name);
    let tables = survey.plan.publish.iter().map(|(table, _)| &table.name);
    let tables = tables.filter(|name| takes.takes(name) && !held.contains(name));
    let names: Vec<String> = tables.map(ToString::to_string).collect();
    let prefixes: Vec<&str> = sink.messages.iter().map(|pattern| pattern.0.as_str()).collect();
    let heard = format!("logical messages of {}", prefixes.join(", "));
    if sink.tables.is_empty() {
        return Finding::ok(subject, format!("gets {heard}"));
    }
    if names.is_empty() && !prefixes.is_empty() {
        let what = format!("gets {heard} only: none of its tables can be published");
        return Finding::warn(subject, what, "see its tables above");
    }
    if names.is_empty() {
        return Finding::warn(subject, "gets nothing: none of its tables can be published", "see its tables above");
    }
    let also = if prefixes.is_empty() { String::new() } else { format!(", and {heard}") };
    Finding::ok(subject, format!("gets {} of {}{also}", tables::actions(sink), listed(&names)))
}

fn shown(value: Option<impl Display>) -> String {
    value.map_or_else(|| "unknown".to_owned(), |value| value.to_string())
}

/// The first of these, and how many more there are.
pub(super) fn listed(names: &[String]) -> String {
    let shown = names.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

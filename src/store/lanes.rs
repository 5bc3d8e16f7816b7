//! What a starting daemon reads of the lanes: how long they are, and what of each table stands between which barriers.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row, named_params};

use super::apply::lsn_of;
use super::batch::{KeptDelivery, KeptProgress, LaneSpan, LaneSummary, SinkKey};
use super::error::StoreError;
use super::reading::committed_micros;
use super::tables::barrier_of;
use crate::change::Position;
use crate::schedule::StoredScope;
use crate::ties::{Barrier, GroupId, Groups, ScopeId, Tied, Ties};

/// The lanes of a sink.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// By group.
    pub(super) summaries: Vec<LaneSummary>,
    /// In order.
    pub(super) barriers: Vec<Tied>,
    /// By table, in order.
    pub(super) scopes: Vec<StoredScope>,
}

pub(super) fn load(
    db: &Connection,
    sink: SinkKey,
    progress: Option<&KeptProgress>,
    deliveries: &[KeptDelivery],
) -> rusqlite::Result<Lanes> {
    let barriers = barriers(db, sink)?;
    let members = deliveries.iter().flat_map(|delivery| &delivery.members).map(|member| member.facts.tied());
    let parked = members.filter(|tied| tied.ties.barrier != Barrier::None);
    let mut cuts: Vec<Position> = barriers.iter().copied().chain(parked).map(|tied| tied.position).collect();
    cuts.extend(progress.into_iter().flat_map(|progress| progress.unresolved.iter().copied()));
    cuts.sort_unstable();
    let mut counts: BTreeMap<(ScopeId, Option<Position>), usize> = BTreeMap::new();
    let summaries = summaries(db, sink, |scope, position| {
        let before = cuts.partition_point(|cut| *cut < position);
        let after = before.checked_sub(1).and_then(|last| cuts.get(last)).copied();
        *counts.entry((scope, after)).or_default() += 1;
    })?;
    let unknown = unknown(db, sink)?;
    if unknown > 0 {
        counts.insert((ScopeId::UNKNOWN, None), unknown);
    }
    let scope = |((scope, after), messages)| StoredScope { scope, after, messages };
    Ok(Lanes { summaries, barriers, scopes: counts.into_iter().map(scope).collect() })
}

fn barriers(db: &Connection, sink: SinkKey) -> rusqlite::Result<Vec<Tied>> {
    let mut select = db.prepare_cached(
        "SELECT lsn, idx, grp, grp2, scope, barrier FROM lane WHERE sink = :sink AND barrier IS NOT NULL
         ORDER BY lsn, idx",
    )?;
    let tied = |row: &Row<'_>| {
        let group = |column: i64| GroupId(column.cast_unsigned());
        let first = group(row.get(2)?);
        let groups = match row.get::<_, Option<i64>>(3)?.map(group) {
            None => Groups::One(first),
            Some(second) => Groups::Two(first, second),
        };
        let (scope, barrier) = (ScopeId(row.get::<_, i64>(4)?.cast_unsigned()), barrier_of(row.get(5)?));
        Ok(Tied { position: position(row, 0)?, ties: Ties { groups, scope, barrier } })
    };
    select.query_map(named_params! { ":sink": sink.0 }, tied)?.collect()
}

/// Summed up here: SQLite would look up each group's last row anew. `count` is told the table and position of each message
/// that counts, once.
fn summaries(
    db: &Connection,
    sink: SinkKey,
    mut count: impl FnMut(ScopeId, Position),
) -> rusqlite::Result<Vec<LaneSummary>> {
    let mut select =
        db.prepare_cached("SELECT grp, lsn, idx, scope FROM lane_group WHERE sink = :sink ORDER BY grp, lsn, idx")?;
    let mut rows = select.query(named_params! { ":sink": sink.0 })?;
    let mut lanes: Vec<LaneSummary> = Vec::new();
    while let Some(row) = rows.next()? {
        let group = GroupId(row.get::<_, i64>(0)?.cast_unsigned());
        let last = position(row, 1)?;
        let scope = row.get::<_, Option<i64>>(3)?.map(|scope| ScopeId(scope.cast_unsigned()));
        if let Some(scope) = scope {
            count(scope, last);
        }
        match lanes.last_mut() {
            Some(lane) if lane.group == group => (lane.messages, lane.last) = (lane.messages + 1, last),
            Some(_) | None => lanes.push(LaneSummary { group, scope, messages: 1, first: last, last }),
        }
    }
    Ok(lanes)
}

/// Spans of a sink's lanes whose times are read: each costs the reading of a message.
const SPANS_MAX: u64 = 2048;

/// When what is in the lanes was committed.
pub(super) fn spans(db: &Connection, sink: SinkKey) -> Result<Vec<LaneSpan>, StoreError> {
    let mut spans = positions(db, sink).map_err(StoreError::read("the lanes of a sink"))?;
    for span in &mut spans {
        span.committed_micros = committed_micros(db, sink, Some(span.first))?;
    }
    Ok(spans)
}

/// The lanes' positions, in spans of the same number of messages.
fn positions(db: &Connection, sink: SinkKey) -> rusqlite::Result<Vec<LaneSpan>> {
    let sink = named_params! { ":sink": sink.0 };
    let count = |row: &Row<'_>| row.get::<_, i64>(0).map(i64::cast_unsigned);
    let all = db.prepare_cached("SELECT count(*) FROM lane WHERE sink = :sink")?.query_row(sink, count)?;
    let each = all.div_ceil(SPANS_MAX);
    let mut select = db.prepare_cached("SELECT lsn, idx FROM lane WHERE sink = :sink ORDER BY lsn, idx")?;
    let mut rows = select.query(sink)?;
    let mut spans: Vec<LaneSpan> = Vec::new();
    while let Some(row) = rows.next()? {
        let last = position(row, 0)?;
        match spans.last_mut().filter(|span| span.messages < each) {
            Some(span) => (span.last, span.messages) = (last, span.messages + 1),
            None => spans.push(LaneSpan { first: last, last, messages: 1, committed_micros: None }),
        }
    }
    Ok(spans)
}

/// Messages that an earlier version put there.
fn unknown(db: &Connection, sink: SinkKey) -> rusqlite::Result<usize> {
    db.prepare_cached("SELECT count(*) FROM lane WHERE sink = :sink AND scope = 0")?
        .query_row(named_params! { ":sink": sink.0 }, |row| row.get::<_, i64>(0))
        .map(|count| usize::try_from(count).unwrap_or_default())
}

/// From two columns, the first of which is this one.
fn position(row: &Row<'_>, first: usize) -> rusqlite::Result<Position> {
    Ok(Position { commit_lsn: lsn_of(row.get(first)?), index: row.get::<_, i64>(first + 1)?.cast_unsigned() })
}

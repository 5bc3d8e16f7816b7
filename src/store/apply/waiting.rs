//! Messages that wait: in the lanes of their groups, or in pages of the overflow.

use rusqlite::{Connection, OptionalExtension as _, named_params, params};
use tracing::debug;

use crate::change::Position;
use crate::failpoint;
use crate::schedule::own_lane;
use crate::store::batch::{Home, KeptMessage, MessageFacts, SinkKey, UNGROUPED};
use crate::store::encoding::{Packing, message_to_bytes, page_to_bytes, seal};
use crate::store::pages::{Pages, bits_bytes};
use crate::store::tables::barrier_column;
use crate::ties::{Barrier, GroupId, Groups};

/// A row of `lane_group`. In the order of its key each page of the index is looked up once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct GroupRow {
    group: i64,
    lsn: i64,
    index: i64,
    /// The table that the message counts for, in one of its rows.
    scope: Option<i64>,
}

pub(super) fn lanes(db: &Connection, sink: SinkKey, messages: &[KeptMessage]) -> rusqlite::Result<()> {
    let mut insert = db.prepare_cached(
        "INSERT INTO lane (sink, lsn, idx, grp, grp2, scope, barrier, message) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT DO NOTHING",
    )?;
    let mut rows = Vec::with_capacity(messages.len());
    for message in messages {
        let position = message.facts.position;
        let (lsn, index) = columns(position);
        let (first, second) = lanes_of(message.facts.groups);
        let sealed = seal(&message_to_bytes(message), Packing::Plain);
        let (scope, barrier) = (message.facts.scope.0.cast_signed(), barrier_column(message.facts.barrier));
        let values = params![sink.0, lsn, index, first, second, scope, barrier, sealed];
        if insert.execute(values)? == 0 {
            debug!(sink = sink.0, ?position, "a message comes again to its lane");
            rows.retain(|row: &GroupRow| (row.lsn, row.index) != (lsn, index));
            leave_lanes(db, sink, &[position])?;
            insert.execute(values)?;
        }
        let counts = message.facts.barrier == Barrier::None && !is_own_lane(&message.facts);
        rows.push(GroupRow { group: first, lsn, index, scope: counts.then_some(scope) });
        rows.extend(second.map(|group| GroupRow { group, lsn, index, scope: None }));
        failpoint::hit("store.in_lanes");
    }
    rows.sort_unstable();
    let mut insert =
        db.prepare_cached("INSERT INTO lane_group (sink, grp, lsn, idx, scope) VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for GroupRow { group, lsn, index, scope } in rows {
        insert.execute(params![sink.0, group, lsn, index, scope])?;
    }
    Ok(())
}

/// A message without a group has a lane to itself, and no order.
fn is_own_lane(facts: &MessageFacts) -> bool {
    facts.groups == Groups::None || facts.groups == Groups::One(own_lane(facts.position))
}

fn columns(position: Position) -> (i64, i64) {
    (position.commit_lsn.0.cast_signed(), position.index.cast_signed())
}

fn lanes_of(groups: Groups) -> (i64, Option<i64>) {
    let column = |group: GroupId| group.0.cast_signed();
    match groups {
        Groups::None => (column(UNGROUPED), None),
        Groups::One(group) => (column(group), None),
        Groups::Two(old, new) if old == new => (column(new), None),
        Groups::Two(old, new) => (column(old), Some(column(new))),
    }
}

pub(super) fn page(db: &Connection, sink: SinkKey, page: u64, messages: &[KeptMessage]) -> rusqlite::Result<()> {
    debug_assert!(!messages.is_empty(), "a page without messages would never leave");
    let count = u32::try_from(messages.len()).unwrap_or(u32::MAX);
    let bytes: usize = messages.iter().map(|message| message.json.len()).sum();
    db.prepare_cached(
        "INSERT INTO page (sink, no, messages, gone, gone_bits, bytes, oldest)
         VALUES (:sink, :no, :messages, 0, zeroblob(:bits), :bytes, :oldest)",
    )?
    .execute(named_params! {
        ":sink": sink.0,
        ":no": page.cast_signed(),
        ":messages": count,
        ":bits": i64::try_from(bits_bytes(count)).unwrap_or(i64::MAX),
        ":bytes": i64::try_from(bytes).unwrap_or(i64::MAX),
        ":oldest": messages.first().map_or(0, |message| message.facts.commit_micros),
    })?;
    let key = db.last_insert_rowid();
    failpoint::hit("store.in_page");
    db.prepare_cached("INSERT INTO page_content (page, messages) VALUES (:page, :messages)")?
        .execute(named_params! { ":page": key, ":messages": page_to_bytes(messages) })?;
    db.prepare_cached("UPDATE sink SET next_page = :next WHERE key = :sink")?
        .execute(named_params! { ":sink": sink.0, ":next": page.wrapping_add(1).cast_signed() })
        .map(drop)
}

pub(in crate::store) fn leave(
    db: &Connection,
    pages: &mut Pages,
    sink: SinkKey,
    homes: &[Home],
) -> rusqlite::Result<()> {
    let mut from_lanes = Vec::new();
    for home in homes {
        match home {
            Home::Lane(position) => from_lanes.push(*position),
            Home::Page { page, index } => pages.leave(db, sink, *page, *index)?,
        }
    }
    leave_lanes(db, sink, &from_lanes)
}

fn leave_lanes(db: &Connection, sink: SinkKey, positions: &[Position]) -> rusqlite::Result<()> {
    let mut delete =
        db.prepare_cached("DELETE FROM lane WHERE sink = ?1 AND lsn = ?2 AND idx = ?3 RETURNING grp, grp2")?;
    let mut rows = Vec::with_capacity(positions.len());
    for position in positions {
        let (lsn, index) = columns(*position);
        let groups: Option<(i64, Option<i64>)> =
            delete.query_row((sink.0, lsn, index), |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let Some((first, second)) = groups else {
            debug!(sink = sink.0, ?position, "a message left a lane in which it was not");
            continue;
        };
        rows.extend([Some(first), second].into_iter().flatten().map(|group| [sink.0, group, lsn, index]));
        failpoint::hit("store.in_leave");
    }
    rows.sort_unstable();
    let mut delete =
        db.prepare_cached("DELETE FROM lane_group WHERE sink = ?1 AND grp = ?2 AND lsn = ?3 AND idx = ?4")?;
    for row in rows {
        delete.execute(row)?;
    }
    Ok(())
}

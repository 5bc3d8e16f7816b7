//! Messages that wait: in the lanes of their groups, or in pages of the overflow.

use rusqlite::{Connection, OptionalExtension as _, named_params};
use tracing::debug;

use crate::change::Position;
use crate::failpoint;
use crate::schedule::{GroupId, Groups};
use crate::store::batch::{Home, KeptMessage, SinkKey, UNGROUPED};
use crate::store::encoding::{Packing, message_to_bytes, page_to_bytes, seal};
use crate::store::pages::{Pages, bits_bytes};

pub(super) fn lanes(db: &Connection, sink: SinkKey, messages: &[KeptMessage]) -> rusqlite::Result<()> {
    for message in messages {
        if !insert_lane(db, sink, message)? {
            debug!(sink = sink.0, position = ?message.facts.position, "a message comes again to its lane");
            leave_lane(db, sink, message.facts.position)?;
            insert_lane(db, sink, message)?;
        }
        failpoint::hit("store.in_lanes");
    }
    Ok(())
}

/// False: it is there.
fn insert_lane(db: &Connection, sink: SinkKey, message: &KeptMessage) -> rusqlite::Result<bool> {
    let position = message.facts.position;
    let (lsn, index) = (position.commit_lsn.0.cast_signed(), position.index.cast_signed());
    let (first, second) = lanes_of(message.facts.groups);
    let inserted = db
        .prepare_cached(
            "INSERT INTO lane (sink, lsn, idx, grp, grp2, message)
             VALUES (:sink, :lsn, :idx, :grp, :grp2, :message) ON CONFLICT DO NOTHING",
        )?
        .execute(named_params! {
            ":sink": sink.0,
            ":lsn": lsn,
            ":idx": index,
            ":grp": first.0.cast_signed(),
            ":grp2": second.map(|group| group.0.cast_signed()),
            ":message": seal(&message_to_bytes(message), Packing::Plain),
        })?;
    if inserted == 0 {
        return Ok(false);
    }
    let mut insert =
        db.prepare_cached("INSERT INTO lane_group (sink, grp, lsn, idx) VALUES (:sink, :grp, :lsn, :idx)")?;
    for group in [Some(first), second].into_iter().flatten() {
        insert.execute(named_params! { ":sink": sink.0, ":grp": group.0.cast_signed(), ":lsn": lsn, ":idx": index })?;
    }
    Ok(true)
}

fn lanes_of(groups: Groups) -> (GroupId, Option<GroupId>) {
    match groups {
        Groups::None => (UNGROUPED, None),
        Groups::One(group) => (group, None),
        Groups::Two(old, new) if old == new => (new, None),
        Groups::Two(old, new) => (old, Some(new)),
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
        .execute(named_params! { ":page": key, ":messages": seal(&page_to_bytes(messages), Packing::Lz4) })?;
    db.prepare_cached("UPDATE sink SET next_page = :next WHERE key = :sink")?
        .execute(named_params! { ":sink": sink.0, ":next": page.wrapping_add(1).cast_signed() })
        .map(drop)
}

pub(super) fn leave(db: &Connection, pages: &mut Pages, sink: SinkKey, homes: &[Home]) -> rusqlite::Result<()> {
    for home in homes {
        match home {
            Home::Lane(position) => leave_lane(db, sink, *position)?,
            Home::Page { page, index } => pages.leave(db, sink, *page, *index)?,
        }
        failpoint::hit("store.in_leave");
    }
    Ok(())
}

fn leave_lane(db: &Connection, sink: SinkKey, position: Position) -> rusqlite::Result<()> {
    let (lsn, index) = (position.commit_lsn.0.cast_signed(), position.index.cast_signed());
    let groups: Option<(i64, Option<i64>)> = db
        .prepare_cached("DELETE FROM lane WHERE sink = :sink AND lsn = :lsn AND idx = :idx RETURNING grp, grp2")?
        .query_row(named_params! { ":sink": sink.0, ":lsn": lsn, ":idx": index }, |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((first, second)) = groups else {
        debug!(sink = sink.0, ?position, "a message left a lane in which it was not");
        return Ok(());
    };
    let mut delete =
        db.prepare_cached("DELETE FROM lane_group WHERE sink = :sink AND grp = :grp AND lsn = :lsn AND idx = :idx")?;
    for group in [Some(first), second].into_iter().flatten() {
        delete.execute(named_params! { ":sink": sink.0, ":grp": group, ":lsn": lsn, ":idx": index })?;
    }
    Ok(())
}

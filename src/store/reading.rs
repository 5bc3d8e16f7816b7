//! What is read back: bodies, lanes, pages.

use std::time::SystemTime;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, Row, named_params};
use tracing::warn;

use super::apply::{id_column, lsn_of};
use super::batch::{KeptBody, KeptMessage, LaneRead, LaneWant, Page, SinkKey, UNGROUPED};
use super::damaged::{Broken, Owner, nowhere};
use super::encoding::{
    Corrupt, PageEntry, Words, body_from_bytes, is_pack, message_from_bytes, old_places, page_from_bytes, unseal,
};
use super::error::StoreError;
use super::ledger::micros;
use super::pages::{is_gone, true_bits};
use super::tables::barrier_of;
use crate::change::Position;
use crate::deliver::frozen::DeliveryId;
use crate::record::message::MessageId;
use crate::ties::{GroupId, Groups, ScopeId, Tied, Ties};

/// The body of a delivery, dead ones included.
pub(super) fn body(db: &Connection, sink: SinkKey, id: DeliveryId) -> Result<Option<KeptBody>, StoreError> {
    let select = || -> rusqlite::Result<Option<Option<Vec<u8>>>> {
        db.prepare_cached(
            "SELECT content.body FROM delivery LEFT JOIN delivery_content AS content ON content.delivery = delivery.key
             WHERE delivery.id = :id AND delivery.sink = :sink",
        )?
        .query_row(named_params! { ":id": id_column(id), ":sink": sink.0 }, |row| row.get(0))
        .optional()
    };
    let Some(sealed) = select().map_err(StoreError::read("the body of a delivery"))? else { return Ok(None) };
    let body = sealed.ok_or(Corrupt::Short).and_then(body_from_bytes);
    Ok(Some(match body {
        Ok((bytes, damaged)) => KeptBody { bytes, damaged },
        Err(_) => KeptBody { bytes: Bytes::new(), damaged: Vec::new() },
    }))
}

/// Says of damage whose it is.
pub(super) fn of_sink<T>(db: &Connection, sink: SinkKey, read: Result<T, StoreError>) -> Result<T, StoreError> {
    read.map_err(|error| {
        let names = db.query_row("SELECT source, name FROM sink WHERE key = ?1", [sink.0], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        });
        match names {
            Ok((source, name)) => error.of_sink(&source, &name),
            Err(_) => error,
        }
    })
}

/// See [`super::Store::lanes`].
pub(super) fn lanes(
    db: &Connection,
    sink: SinkKey,
    wants: &[LaneWant],
    messages_max: usize,
    bytes_max: usize,
) -> Result<Vec<LaneRead>, StoreError> {
    let mut words = Words::default();
    let mut owner = None;
    let mut reads = Vec::with_capacity(wants.len());
    let mut left = Left { bytes: bytes_max, is_first: true };
    for want in wants {
        let mut messages = Vec::new();
        let is_whole = lane(db, sink, want, messages_max, &mut |LaneRow { tied, sealed }| {
            let read = unseal(sealed).and_then(|bytes| message_from_bytes(&bytes, &mut words));
            let mut message = match read.and_then(|message| in_its_place(message, want.group, &tied)) {
                Ok(message) => message,
                Err(why) => known(&mut owner, db, sink)?.stand_in(Broken { tied, why }, micros(SystemTime::now())),
            };
            // As it was counted when the sink was loaded.
            message.facts.scope = tied.ties.scope;
            Ok(left.admits(message.json.len()).then(|| messages.push(message)).is_some())
        })?;
        if is_whole || !messages.is_empty() {
            reads.push(LaneRead { group: want.group, messages });
        }
        if !is_whole {
            break;
        }
    }
    Ok(reads)
}

/// Looked up when it is needed.
fn known<'a>(owner: &'a mut Option<Owner>, db: &Connection, sink: SinkKey) -> Result<&'a Owner, StoreError> {
    if owner.is_none() {
        *owner = Some(Owner::of(db, sink)?);
    }
    owner.as_ref().ok_or(StoreError::Closed)
}

/// What a message says of itself is under its seal; the columns beside it, by which it is found, are not.
fn in_its_place(message: KeptMessage, lane: GroupId, columns: &Tied) -> Result<KeptMessage, Corrupt> {
    let facts = &message.facts;
    let is_of_lane = match facts.groups {
        Groups::None => lane == UNGROUPED,
        Groups::One(_) | Groups::Two(..) => facts.groups.iter().any(|group| group == lane),
    };
    if is_of_lane && facts.position == columns.position && facts.barrier == columns.ties.barrier {
        Ok(message)
    } else {
        Err(Corrupt::Place)
    }
}

/// A message in a lane, and its place as the columns say.
pub(super) struct LaneRow {
    pub(super) tied: Tied,
    pub(super) sealed: Vec<u8>,
}

impl LaneRow {
    pub(super) fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        let group = |column: i64| GroupId(column.cast_unsigned());
        let groups = match (group(row.get(4)?), row.get::<_, Option<i64>>(5)?.map(group)) {
            (UNGROUPED, None) => Groups::None,
            (one, None) => Groups::One(one),
            (old, Some(new)) => Groups::Two(old, new),
        };
        let scope = ScopeId(row.get::<_, i64>(1)?.cast_unsigned());
        let position = Position { commit_lsn: lsn_of(row.get(2)?), index: row.get::<_, i64>(3)?.cast_unsigned() };
        let ties = Ties { groups, scope, barrier: barrier_of(row.get(6)?) };
        Ok(Self { tied: Tied { position, ties }, sealed: row.get(0)? })
    }
}

/// Bytes that may still be read.
struct Left {
    bytes: usize,
    is_first: bool,
}

impl Left {
    /// The first message is admitted whatever its size.
    fn admits(&mut self, bytes: usize) -> bool {
        let admitted = std::mem::take(&mut self.is_first) || bytes <= self.bytes;
        self.bytes = self.bytes.saturating_sub(bytes);
        admitted
    }
}

/// Hands each of the lane's next messages to `take`, until that says false: then the answer is false too.
fn lane(
    db: &Connection,
    sink: SinkKey,
    want: &LaneWant,
    messages_max: usize,
    take: &mut dyn FnMut(LaneRow) -> Result<bool, StoreError>,
) -> Result<bool, StoreError> {
    let failed = StoreError::read("waiting messages");
    let (lsn, index) =
        want.after.map_or((i64::MIN, i64::MIN), |after| (after.commit_lsn.0.cast_signed(), after.index.cast_signed()));
    let mut select = db
        .prepare_cached(
            "SELECT lane.message, lane.scope, lane.lsn, lane.idx, lane.grp, lane.grp2, lane.barrier FROM lane_group CROSS JOIN lane
                 ON lane.sink = lane_group.sink AND lane.lsn = lane_group.lsn AND lane.idx = lane_group.idx
             WHERE lane_group.sink = :sink AND lane_group.grp = :grp AND (lane_group.lsn, lane_group.idx) > (:lsn, :idx)
             ORDER BY lane_group.lsn, lane_group.idx LIMIT :limit",
        )
        .map_err(&failed)?;
    let parameters = named_params! {
        ":sink": sink.0,
        ":grp": want.group.0.cast_signed(),
        ":lsn": lsn,
        ":idx": index,
        ":limit": i64::try_from(messages_max).unwrap_or(i64::MAX),
    };
    let mut rows = select.query(parameters).map_err(&failed)?;
    while let Some(row) = rows.next().map_err(&failed)? {
        if !take(LaneRow::of(row).map_err(&failed)?)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// See [`super::Store::pages`].
pub(super) fn pages(db: &Connection, sink: SinkKey, from: u64, bytes_max: usize) -> Result<Vec<Page>, StoreError> {
    let failed = StoreError::read("a page of the overflow");
    let mut select = db
        .prepare_cached(
            "SELECT page.no, page.messages, page.gone, page.gone_bits, page.bytes, page.oldest, content.messages
             FROM page LEFT JOIN page_content AS content ON content.page = page.key
             WHERE page.sink = :sink AND page.no >= :from ORDER BY page.no",
        )
        .map_err(&failed)?;
    let mut rows = select.query(named_params! { ":sink": sink.0, ":from": from.cast_signed() }).map_err(&failed)?;
    let (mut pages, mut bytes): (Vec<Page>, usize) = (Vec::new(), 0);
    let mut owner = None;
    while let Some(row) = rows.next().map_err(&failed)? {
        let of_page: i64 = row.get(4).map_err(&failed)?;
        bytes = bytes.saturating_add(usize::try_from(of_page).unwrap_or(usize::MAX));
        if !pages.is_empty() && bytes > bytes_max {
            break;
        }
        let row = PageRow::of(row).map_err(&failed)?;
        let (page, oldest) = (row.page, row.oldest_micros);
        let mut messages = Vec::new();
        for (index, message) in row.messages(|position| Ok(known(&mut owner, db, sink)?.id_at(position)))? {
            let message = match message {
                Ok(message) => message,
                Err(broken) => known(&mut owner, db, sink)?.stand_in(broken, oldest),
            };
            messages.push((index, message));
        }
        pages.push(Page { page, messages });
    }
    Ok(pages)
}

struct PageRow {
    page: u64,
    count: u32,
    gone: Vec<u8>,
    oldest_micros: i64,
    content: Option<Vec<u8>>,
}

impl PageRow {
    fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        let count = row.get(1)?;
        Ok(Self {
            page: row.get::<_, i64>(0)?.cast_unsigned(),
            count,
            gone: true_bits(count, row.get(2)?, row.get(3)?),
            oldest_micros: row.get(5)?,
            content: row.get(6)?,
        })
    }

    /// Its messages that have not left.
    fn messages(
        self,
        id_at: impl FnMut(Position) -> Result<MessageId, StoreError>,
    ) -> Result<Vec<PageEntry>, StoreError> {
        let Self { page, count, gone, content, .. } = self;
        let is_wanted = |index: u32| !is_gone(&gone, index);
        let content = content.unwrap_or_default();
        // Once more only if it is needed: a page may be large.
        let old = if is_pack(&content) { Vec::new() } else { content.clone() };
        match page_from_bytes(content, is_wanted) {
            Ok((messages, is_scratched)) => {
                if is_scratched {
                    warn!(page, "a page of the overflow is damaged where it is kept twice: nothing is lost");
                }
                Ok(messages)
            }
            Err(why) => {
                let mut places = old_places(&old, id_at)?;
                let after = places.last().map(|tied| tied.position);
                let known = u32::try_from(places.len()).unwrap_or(u32::MAX);
                places.extend((known..count).map(|index| nowhere(after, page, index)));
                let broken = |(index, tied)| (index, Err(Broken { tied, why }));
                Ok((0..count).zip(places).filter(|(index, _)| is_wanted(*index)).map(broken).collect())
            }
        }
    }
}

/// When the first message in the lanes of a sink was committed.
pub(super) fn oldest_in_lanes(db: &Connection, sink: SinkKey) -> Result<Option<i64>, StoreError> {
    committed_micros(db, sink, None)
}

/// When the first message in the lanes of a sink from this position on was committed; `None` also when that message is
/// damaged, for whoever wants to read it hears of that.
pub(super) fn committed_micros(
    db: &Connection,
    sink: SinkKey,
    from: Option<Position>,
) -> Result<Option<i64>, StoreError> {
    let (lsn, index) =
        from.map_or((i64::MIN, i64::MIN), |from| (from.commit_lsn.0.cast_signed(), from.index.cast_signed()));
    let select = || -> rusqlite::Result<Option<Vec<u8>>> {
        db.prepare_cached(
            "SELECT message FROM lane WHERE sink = :sink AND (lsn, idx) >= (:lsn, :idx) ORDER BY lsn, idx LIMIT 1",
        )?
        .query_row(named_params! { ":sink": sink.0, ":lsn": lsn, ":idx": index }, |row| row.get(0))
        .optional()
    };
    let Some(sealed) = select().map_err(StoreError::read("waiting messages"))? else { return Ok(None) };
    let message = unseal(sealed).and_then(|bytes| message_from_bytes(&bytes, &mut Words::default()));
    Ok(message.ok().map(|message| message.facts.commit_micros))
}

//! What is read back: bodies, lanes, pages.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, named_params};

use super::apply::id_column;
use super::batch::{KeptMessage, LaneRead, LaneWant, Page, SinkKey};
use super::encoding::{Words, message_from_bytes, page_from_bytes, unseal};
use super::error::StoreError;
use super::pages::is_gone;
use crate::deliver::frozen::DeliveryId;
use crate::schedule::ScopeId;

/// The body of a delivery, dead ones included.
pub(super) fn body(db: &Connection, sink: SinkKey, id: DeliveryId) -> Result<Option<Bytes>, StoreError> {
    let select = || -> rusqlite::Result<Option<Vec<u8>>> {
        db.prepare_cached(
            "SELECT content.body FROM delivery JOIN delivery_content AS content ON content.delivery = delivery.key
             WHERE delivery.id = :id AND delivery.sink = :sink",
        )?
        .query_row(named_params! { ":id": id_column(id), ":sink": sink.0 }, |row| row.get(0))
        .optional()
    };
    let sealed = select().map_err(StoreError::read("the body of a delivery"))?;
    sealed.map(unseal).transpose().map_err(StoreError::damaged(format!("the body of delivery {id}")))
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
    let mut reads = Vec::with_capacity(wants.len());
    let mut left = Left { bytes: bytes_max, is_first: true };
    for want in wants {
        let mut messages = Vec::new();
        let is_whole = lane(db, sink, want, messages_max, &mut |(sealed, scope)| {
            let bytes = unseal(sealed).map_err(StoreError::damaged("a waiting message"))?;
            let mut message =
                message_from_bytes(&bytes, &mut words).map_err(StoreError::damaged("a waiting message"))?;
            // As it was counted when the sink was loaded.
            message.facts.scope = scope;
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
    take: &mut dyn FnMut((Vec<u8>, ScopeId)) -> Result<bool, StoreError>,
) -> Result<bool, StoreError> {
    let failed = StoreError::read("waiting messages");
    let (lsn, index) =
        want.after.map_or((i64::MIN, i64::MIN), |after| (after.commit_lsn.0.cast_signed(), after.index.cast_signed()));
    let mut select = db
        .prepare_cached(
            "SELECT lane.message, lane.scope FROM lane_group CROSS JOIN lane
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
        let columns = row.get(0).and_then(|sealed| Ok((sealed, row.get::<_, i64>(1)?)));
        let (sealed, scope) = columns.map_err(&failed)?;
        if !take((sealed, ScopeId(scope.cast_unsigned())))? {
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
            "SELECT page.no, page.gone_bits, page.bytes, content.messages
             FROM page CROSS JOIN page_content AS content ON content.page = page.key
             WHERE page.sink = :sink AND page.no >= :from ORDER BY page.no",
        )
        .map_err(&failed)?;
    let mut rows = select.query(named_params! { ":sink": sink.0, ":from": from.cast_signed() }).map_err(&failed)?;
    let (mut pages, mut bytes): (Vec<Page>, usize) = (Vec::new(), 0);
    while let Some(row) = rows.next().map_err(&failed)? {
        let of_page: i64 = row.get(2).map_err(&failed)?;
        bytes = bytes.saturating_add(usize::try_from(of_page).unwrap_or(usize::MAX));
        if !pages.is_empty() && bytes > bytes_max {
            break;
        }
        let (number, gone, sealed) = page_columns(row).map_err(&failed)?;
        pages.push(Page { page: number, messages: page_messages(number, &gone, sealed)? });
    }
    Ok(pages)
}

fn page_columns(row: &rusqlite::Row<'_>) -> rusqlite::Result<(u64, Vec<u8>, Vec<u8>)> {
    Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?, row.get(3)?))
}

fn page_messages(page: u64, gone: &[u8], sealed: Vec<u8>) -> Result<Vec<(u32, KeptMessage)>, StoreError> {
    let damaged = StoreError::damaged(format!("page {page} of the overflow"));
    let bytes = unseal(sealed).map_err(&damaged)?;
    page_from_bytes(&bytes, |index| !is_gone(gone, index)).map_err(&damaged)
}

/// When the first message in the lanes of a sink was committed; `None` also when that message is damaged, for whoever wants
/// to read it hears of that.
pub(super) fn oldest_in_lanes(db: &Connection, sink: SinkKey) -> Result<Option<i64>, StoreError> {
    let select = || -> rusqlite::Result<Option<Vec<u8>>> {
        db.prepare_cached("SELECT message FROM lane WHERE sink = :sink ORDER BY lsn, idx LIMIT 1")?
            .query_row(named_params! { ":sink": sink.0 }, |row| row.get(0))
            .optional()
    };
    let Some(sealed) = select().map_err(StoreError::read("waiting messages"))? else { return Ok(None) };
    let message = unseal(sealed).and_then(|bytes| message_from_bytes(&bytes, &mut Words::default()));
    Ok(message.ok().map(|message| message.facts.commit_micros))
}

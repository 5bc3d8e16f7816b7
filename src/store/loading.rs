//! What a starting daemon reads: bindings, and of each sink everything but bodies and messages.

use rusqlite::{Connection, OptionalExtension as _, Row, named_params};

use super::apply::{BLOCKED, lsn_of, position_of};
use super::batch::{
    DamagedMessage, KeptDelivery, KeptProgress, LastFailure, Loaded, Member, OverflowSummary, SinkKey, Tries,
};
use super::damaged::is_somewhere;
use super::encoding::{Corrupt, members_from_bytes, positions_from_bytes, twice_unsealed};
use super::error::StoreError;
use super::gaps::{self, WentBack};
use super::pages::true_bits;
use super::{lanes, tables};
use crate::change::{Lsn, Position};
use crate::deliver::frozen::DeliveryId;

/// What the store is bound to for a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceBinding {
    /// What `IDENTIFY_SYSTEM` calls `systemid`.
    pub system_id: u64,
    /// The timeline that was read last; `None`: not known, for it was bound by a walhook that did not keep it.
    pub timeline: Option<u32>,
    /// The database.
    pub database: String,
    /// The slot.
    pub slot: String,
    /// Everything up to here was resolved by every sink that was active then, and the slot is confirmed no farther; only
    /// grows, whatever becomes of the sinks. `None`: nothing is confirmed yet.
    pub confirmed: Option<Lsn>,
    /// Everything that any of its sinks knows, absent ones too, lies before; `None`: none knows anything.
    pub seen: Option<Lsn>,
    /// What lies between here and the slot may be missing, as somebody has said.
    pub gap_accepted: Option<AcceptedBy>,
    /// The server was not where it should be; nothing is read before a person has looked, wherever it is now.
    pub went_back: Option<WentBack>,
}

/// Who has accepted a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptedBy {
    /// A person, with `walhook state accept-gap`.
    Person,
    /// `on_slot_lost = "recreate"`, for as long as it says so.
    Setting,
}

impl AcceptedBy {
    /// As it is kept; 0 is nobody.
    pub(super) fn code(by: Option<Self>) -> i64 {
        match by {
            None => 0,
            Some(Self::Person) => 1,
            Some(Self::Setting) => 2,
        }
    }

    fn of_code(code: i64) -> Option<Self> {
        match code {
            0 => None,
            2 => Some(Self::Setting),
            _ => Some(Self::Person),
        }
    }
}

/// The binding of a source; `None`: the store knows none of that name.
pub(super) fn binding(db: &Connection, name: &str) -> Result<Option<SourceBinding>, StoreError> {
    let select = || -> rusqlite::Result<Option<(String, SourceBinding)>> {
        db.prepare_cached(
            "SELECT system_id, database, slot, gap_accepted, confirmed, timeline,
                 max(ifnull(confirmed, 0), ifnull((SELECT max(max(ifnull(resolved, 0), ifnull(high_lsn + 1, 0)))
                                                   FROM sink WHERE sink.source = source.name), 0))
             FROM source WHERE name = :name",
        )?
        .query_row(named_params! { ":name": name }, |row| {
            let confirmed = row.get::<_, Option<i64>>(4)?.map(lsn_of);
            let (database, slot, gap_accepted) = (row.get(1)?, row.get(2)?, AcceptedBy::of_code(row.get(3)?));
            let seen = Some(lsn_of(row.get(6)?));
            let (timeline, seen) = (row.get(5)?, seen.filter(|seen| *seen > Lsn::ZERO));
            let went_back = gaps::went_back(db, name)?;
            let (system_id, text) = (0, row.get(0)?);
            let binding =
                SourceBinding { system_id, timeline, database, slot, confirmed, seen, gap_accepted, went_back };
            Ok((text, binding))
        })
        .optional()
    };
    let found = select().map_err(StoreError::read("the binding of a source"))?;
    let Some((text, binding)) = found else { return Ok(None) };
    let damaged = StoreError::damaged(format!("the binding of source {name}"));
    let system_id = text.parse().map_err(|_| damaged(super::encoding::Corrupt::Number))?;
    Ok(Some(SourceBinding { system_id, ..binding }))
}

/// What the store has of a sink.
pub(super) fn load(db: &Connection, source: &str, name: &str) -> Result<(SinkKey, Loaded), StoreError> {
    let row = sink_row(db, source, name).map_err(StoreError::read("a sink"))?;
    let row = row.ok_or_else(|| StoreError::UnknownSink { name: name.to_owned() })?;
    let sink = row.key;
    let progress = row.progress()?;
    let Deliveries { kept: deliveries, unreadable } = deliveries(db, sink)?;
    let lanes = lanes::load(db, sink, progress.as_ref(), &deliveries);
    let lanes = lanes.map_err(StoreError::read("the lanes of a sink"))?;
    let loaded = Loaded {
        progress,
        paused: row.paused,
        deliveries,
        lanes: lanes.summaries,
        lane_spans: lanes::spans(db, sink)?,
        barriers: lanes.barriers,
        scopes: lanes.scopes,
        tables: tables::load(db, sink).map_err(StoreError::read("what a sink's tables are grouped by"))?,
        overflow: overflow(db, sink, row.next_page).map_err(StoreError::read("the overflow of a sink"))?,
        dead_letters: dead_letters(db, sink).map_err(StoreError::read("dead letters"))?,
        damaged: damaged_messages(db, sink).map_err(StoreError::read("damaged messages"))?,
        damaged_count: damaged_count(db, sink).map_err(StoreError::read("damaged messages"))?,
        unreadable,
    };
    Ok((sink, loaded))
}

struct SinkRow {
    key: SinkKey,
    resolved: Option<i64>,
    high: Option<Position>,
    unresolved: Option<Vec<u8>>,
    next_page: u64,
    paused: Option<String>,
}

impl SinkRow {
    fn progress(&self) -> Result<Option<KeptProgress>, StoreError> {
        let Some(resolved) = self.resolved else { return Ok(None) };
        let unresolved = self.unresolved.as_deref().map_or(Ok(Vec::new()), positions_from_bytes);
        let unresolved = unresolved.map_err(StoreError::damaged("the progress"))?;
        Ok(Some(KeptProgress { resolved: lsn_of(resolved), high: self.high, unresolved }))
    }
}

fn sink_row(db: &Connection, source: &str, name: &str) -> rusqlite::Result<Option<SinkRow>> {
    db.prepare_cached(
        "SELECT key, resolved, high_lsn, high_idx, unresolved, next_page, paused FROM sink
         WHERE source = :source AND name = :name",
    )?
    .query_row(named_params! { ":source": source, ":name": name }, |row| {
        Ok(SinkRow {
            key: SinkKey(row.get(0)?),
            resolved: row.get(1)?,
            high: position_of(row.get(2)?, row.get(3)?),
            unresolved: row.get(4)?,
            next_page: row.get::<_, i64>(5)?.cast_unsigned(),
            paused: row.get(6)?,
        })
    })
    .optional()
}

/// Those of a sink that are not dead.
struct Deliveries {
    kept: Vec<KeptDelivery>,
    /// Without their messages.
    unreadable: Vec<(DeliveryId, Tries)>,
}

fn deliveries(db: &Connection, sink: SinkKey) -> Result<Deliveries, StoreError> {
    let failed = StoreError::read("the deliveries of a sink");
    let mut select = db
        .prepare_cached(
            "SELECT delivery.*, content.members FROM delivery
                 LEFT JOIN delivery_content AS content ON content.delivery = delivery.key
             WHERE delivery.sink = :sink AND delivery.state <> 2 ORDER BY delivery.key",
        )
        .map_err(&failed)?;
    let mut rows = select.query(named_params! { ":sink": sink.0 }).map_err(&failed)?;
    let mut deliveries = Deliveries { kept: Vec::new(), unreadable: Vec::new() };
    while let Some(row) = rows.next().map_err(&failed)? {
        let (mut delivery, body_bytes, sealed) = delivery(row).map_err(&failed)?;
        match members(sealed, body_bytes) {
            Ok(members) => {
                delivery.members = members;
                deliveries.kept.push(delivery);
            }
            Err(_) => deliveries.unreadable.push((delivery.id, delivery.tries)),
        }
    }
    Ok(deliveries)
}

fn members(sealed: Option<Vec<u8>>, body_bytes: usize) -> Result<Vec<Member>, Corrupt> {
    let members = members_from_bytes(&twice_unsealed(sealed.ok_or(Corrupt::Short)?)?, body_bytes)?;
    // A delivery without messages was never one.
    if members.is_empty() { Err(Corrupt::Short) } else { Ok(members) }
}

/// The newest of those that are named one by one.
pub(crate) const DAMAGED_MAX: u32 = 100;

fn damaged_messages(db: &Connection, sink: SinkKey) -> rusqlite::Result<Vec<DamagedMessage>> {
    let mut select = db.prepare_cached(&format!(
        "SELECT delivery.id, delivery.body_bytes, delivery.state, content.members FROM delivery
             LEFT JOIN delivery_content AS content ON content.delivery = delivery.key
         WHERE {OF_DAMAGED} ORDER BY delivery.key DESC LIMIT :limit"
    ))?;
    let damaged = |row: &Row<'_>| {
        let id = DeliveryId(u128::from_be_bytes(row.get(0)?));
        let body_bytes = usize::try_from(row.get::<_, i64>(1)?).unwrap_or_default();
        let members = members(row.get(3)?, body_bytes).unwrap_or_default();
        let facts = members.first().map(|member| &member.facts);
        Ok(DamagedMessage {
            delivery: Some(id),
            id: facts.map_or_else(|| id.to_string(), |facts| format!("msg_{}", facts.id)),
            position: facts.map(|facts| facts.position).filter(|position| is_somewhere(*position)),
            group: facts.and_then(|facts| facts.groups.iter().last()),
            blocked: row.get::<_, i64>(2)? == BLOCKED,
        })
    };
    let newest_first = select.query_map(named_params! { ":sink": sink.0, ":limit": DAMAGED_MAX }, damaged)?;
    let mut found = newest_first.collect::<rusqlite::Result<Vec<_>>>()?;
    found.reverse();
    Ok(found)
}

/// Deliveries of one damaged message that have ended, or wait for a person.
const OF_DAMAGED: &str = "delivery.sink = :sink
    AND (delivery.state = 2 AND dead_reason = 'damaged' OR delivery.state = 1 AND last_category = 'damaged')";

fn damaged_count(db: &Connection, sink: SinkKey) -> rusqlite::Result<u64> {
    db.prepare_cached(&format!("SELECT count(*) FROM delivery WHERE {OF_DAMAGED}"))?
        .query_row(named_params! { ":sink": sink.0 }, |row| row.get::<_, i64>(0))
        .map(i64::cast_unsigned)
}

/// A delivery without its members, the length of its body, and its members as they are kept.
fn delivery(row: &Row<'_>) -> rusqlite::Result<(KeptDelivery, usize, Option<Vec<u8>>)> {
    let body_bytes = usize::try_from(row.get::<_, i64>("body_bytes")?).unwrap_or_default();
    let last = match row.get("last_at")? {
        None => None,
        Some(at_micros) => Some(LastFailure {
            at_micros,
            status: row.get("last_status")?,
            category: row.get::<_, Option<String>>("last_category")?.unwrap_or_default().into(),
            message: row.get::<_, Option<String>>("last_message")?.unwrap_or_default(),
        }),
    };
    let tries = Tries {
        attempts: row.get("attempts")?,
        failures: row.get("failures")?,
        first_attempt_micros: row.get("first_attempt")?,
        next_attempt_micros: row.get("next_attempt")?,
        last,
    };
    let delivery = KeptDelivery {
        id: DeliveryId(u128::from_be_bytes(row.get("id")?)),
        parent: row.get::<_, Option<[u8; 16]>>("parent")?.map(|id| DeliveryId(u128::from_be_bytes(id))),
        created_micros: row.get("created")?,
        members: Vec::new(),
        tries,
        blocked: row.get::<_, i64>("state")? == BLOCKED,
    };
    Ok((delivery, body_bytes, row.get("members")?))
}

fn overflow(db: &Connection, sink: SinkKey, next_page: u64) -> rusqlite::Result<OverflowSummary> {
    let mut select =
        db.prepare_cached("SELECT no, messages, gone, gone_bits, oldest FROM page WHERE sink = :sink ORDER BY no")?;
    let mut rows = select.query(named_params! { ":sink": sink.0 })?;
    let mut summary = OverflowSummary { next_page, ..OverflowSummary::default() };
    while let Some(row) = rows.next()? {
        let messages: u32 = row.get(1)?;
        let bits = true_bits(messages, row.get(2)?, row.get(3)?);
        let gone: u32 = bits.iter().map(|byte| byte.count_ones()).sum();
        let left = u64::from(messages.saturating_sub(gone));
        summary.messages += left;
        let no = row.get::<_, i64>(0)?.cast_unsigned();
        summary.first_page.get_or_insert(no);
        // A page that is there is not put in once more, whatever the number of the next one has become.
        summary.next_page = summary.next_page.max(no.saturating_add(1));
        summary.pages.push((row.get(4)?, left));
    }
    Ok(summary)
}

fn dead_letters(db: &Connection, sink: SinkKey) -> rusqlite::Result<u64> {
    db.prepare_cached("SELECT count(*) FROM delivery WHERE sink = :sink AND state = 2")?
        .query_row(named_params! { ":sink": sink.0 }, |row| row.get::<_, i64>(0))
        .map(i64::cast_unsigned)
}

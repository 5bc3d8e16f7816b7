//! One message dropped for a person who knows what becomes of the receiver without it, wherever the store has it.

use rusqlite::{Connection, Row, TransactionBehavior};

use super::apply::{leave, remove_key};
use super::batch::{Home, SinkKey};
use super::damaged::Owner;
use super::encoding::{Words, members_from_bytes, message_from_bytes, twice_unsealed, unseal};
use super::error::StoreError;
use super::pages::Pages;
use super::reading::{self, LaneRow};
use crate::deliver::frozen::DeliveryId;
use crate::record::message::MessageId;

/// What was dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Of which source.
    pub source: String,
    /// Of which sink.
    pub sink: String,
    /// Where it was: a dead letter, a delivery, a lane, the overflow.
    pub place: &'static str,
}

/// What a person names: a message, or a delivery whose messages cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Message(MessageId),
    Delivery(DeliveryId),
}

impl Named {
    fn of(text: &str) -> Option<Self> {
        let number = |hex: &str| (hex.len() == 32).then(|| u128::from_str_radix(hex, 16).ok()).flatten();
        match (text.strip_prefix("msg_"), text.strip_prefix("dlv_")) {
            (Some(hex), _) => number(hex).map(|id| Self::Message(MessageId(id))),
            (None, Some(hex)) => number(hex).map(|id| Self::Delivery(DeliveryId(id))),
            (None, None) => number(text).map(|id| Self::Message(MessageId(id))),
        }
    }
}

/// Where a message was found.
enum Found {
    Delivery { key: i64, is_dead: bool, is_alone: bool, id: DeliveryId },
    Waiting(Home),
}

/// Drops it, durably. `sinks` are those of the store.
pub(super) fn drop_message(
    db: &mut Connection,
    sinks: &[(SinkKey, String, String)],
    text: &str,
) -> Result<Dropped, StoreError> {
    let unknown = || StoreError::UnknownMessage { id: text.to_owned() };
    let named = Named::of(text).ok_or_else(unknown)?;
    let failed = StoreError::write("that a message is dropped");
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
    for (key, source, sink) in sinks {
        let Some(found) = find(&transaction, *key, named)? else { continue };
        let place = match found {
            Found::Delivery { is_alone: false, id, .. } => {
                return Err(StoreError::AmongOthers { id: text.to_owned(), delivery: id.to_string() });
            }
            Found::Delivery { key, is_dead, .. } => {
                remove_key(&transaction, key).map_err(&failed)?;
                if is_dead { "a dead letter" } else { "a failed delivery" }
            }
            Found::Waiting(home) => {
                let mut pages = Pages::default();
                leave(&transaction, &mut pages, *key, &[home]).map_err(&failed)?;
                pages.write(&transaction).map_err(&failed)?;
                match home {
                    Home::Lane(_) => "a message that waits for its group",
                    Home::Page { .. } => "a message of the overflow",
                }
            }
        };
        transaction.commit().map_err(&failed)?;
        return Ok(Dropped { source: source.clone(), sink: sink.clone(), place });
    }
    Err(unknown())
}

fn find(db: &Connection, sink: SinkKey, named: Named) -> Result<Option<Found>, StoreError> {
    if let Some(found) = in_deliveries(db, sink, named)? {
        return Ok(Some(found));
    }
    let Named::Message(id) = named else { return Ok(None) };
    match in_lanes(db, sink, id)? {
        Some(found) => Ok(Some(found)),
        None => in_pages(db, sink, id),
    }
}

fn in_deliveries(db: &Connection, sink: SinkKey, named: Named) -> Result<Option<Found>, StoreError> {
    let failed = StoreError::read("deliveries");
    let mut select = db
        .prepare(
            "SELECT delivery.key, delivery.id, delivery.state, delivery.body_bytes, content.members FROM delivery
                 LEFT JOIN delivery_content AS content ON content.delivery = delivery.key
             WHERE delivery.sink = ?1",
        )
        .map_err(&failed)?;
    let mut rows = select.query([sink.0]).map_err(&failed)?;
    while let Some(row) = rows.next().map_err(&failed)? {
        let (key, id, is_dead, members) = delivery_of(row).map_err(&failed)?;
        let is_it = match named {
            // Only what has no other name goes by that of its delivery.
            Named::Delivery(wanted) => id == wanted && members.is_empty(),
            Named::Message(wanted) => members.contains(&wanted),
        };
        if is_it {
            return Ok(Some(Found::Delivery { key, is_dead, is_alone: members.len() <= 1, id }));
        }
    }
    Ok(None)
}

fn delivery_of(row: &Row<'_>) -> rusqlite::Result<(i64, DeliveryId, bool, Vec<MessageId>)> {
    let body_bytes = usize::try_from(row.get::<_, i64>(3)?).unwrap_or_default();
    let sealed: Option<Vec<u8>> = row.get(4)?;
    let members = sealed.and_then(|sealed| twice_unsealed(sealed).ok());
    let members = members.and_then(|bytes| members_from_bytes(&bytes, body_bytes).ok()).unwrap_or_default();
    let ids = members.into_iter().map(|member| member.facts.id).collect();
    Ok((row.get(0)?, DeliveryId(u128::from_be_bytes(row.get(1)?)), row.get::<_, i64>(2)? == 2, ids))
}

fn in_lanes(db: &Connection, sink: SinkKey, wanted: MessageId) -> Result<Option<Found>, StoreError> {
    let failed = StoreError::read("waiting messages");
    let owner = Owner::of(db, sink)?;
    let mut select =
        db.prepare("SELECT message, scope, lsn, idx, grp, grp2, barrier FROM lane WHERE sink = ?1").map_err(&failed)?;
    let mut rows = select.query([sink.0]).map_err(&failed)?;
    let mut words = Words::default();
    while let Some(row) = rows.next().map_err(&failed)? {
        let LaneRow { tied, sealed } = LaneRow::of(row).map_err(&failed)?;
        let message = unseal(sealed).and_then(|bytes| message_from_bytes(&bytes, &mut words));
        let id = message.map_or_else(|_| owner.id_at(tied.position), |message| message.facts.id);
        if id == wanted {
            return Ok(Some(Found::Waiting(Home::Lane(tied.position))));
        }
    }
    Ok(None)
}

fn in_pages(db: &Connection, sink: SinkKey, wanted: MessageId) -> Result<Option<Found>, StoreError> {
    let mut from = 0;
    loop {
        let pages = reading::pages(db, sink, from, 0)?;
        let Some(page) = pages.into_iter().next() else { return Ok(None) };
        if let Some((index, _)) = page.messages.iter().find(|(_, message)| message.facts.id == wanted) {
            return Ok(Some(Found::Waiting(Home::Page { page: page.page, index: *index })));
        }
        from = page.page.saturating_add(1);
    }
}

//! A message in the store that is not what was written: what stands in its place.
//!
//! Damage is local. Where a message stood, and what ties it to others, is known beside its content, so that a message takes
//! its place that says what is lost. It is never sent: the delivery that it is in parts from it and gives it up as a dead letter
//! (`damaged`), and its groups go on or wait as `retry.on_exhausted` says.

use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _};

use super::batch::{KeptMessage, MessageFacts, SinkKey};
use super::encoding::Corrupt;
use super::error::StoreError;
use crate::change::{Lsn, Position};
use crate::record::message::MessageId;
use crate::ties::{Barrier, Groups, ScopeId, Tied, Ties};

/// The event type of a message whose own cannot be read.
pub(super) const EVENT: &str = "damaged";

/// Ends a message that stands for a damaged one, and no other: a record stands first, and texts end with a quotation mark.
const END: &[u8] = b",\"damaged\":true}}";

/// Indexes of messages of which not even the place is known begin here; no transaction has so many.
const NOWHERE: u64 = 1 << 62;

/// A message whose content cannot be read, and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) tied: Tied,
    pub(super) why: Corrupt,
}

/// Whether a message stands for one that is damaged.
pub fn is_damaged(message: &[u8]) -> bool {
    message.ends_with(END)
}

/// Whether the place of a message is known; if not, it stands somewhere after the LSN.
pub fn is_somewhere(position: Position) -> bool {
    position.index < NOWHERE
}

/// The place of a message of which only the page and its index there are known, and where something before it stands.
pub(super) fn nowhere(after: Option<Position>, page: u64, index: u32) -> Tied {
    let index = NOWHERE | (page & 0x3FFF_FFFF) << 32 | u64::from(index);
    let position = Position { commit_lsn: after.map_or(Lsn::ZERO, |after| after.commit_lsn), index };
    Tied { position, ties: Ties { groups: Groups::None, scope: ScopeId::UNKNOWN, barrier: Barrier::None } }
}

/// Whose messages they are, as far as it takes to name them.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    system_id: u64,
    sink: String,
}

impl Owner {
    /// Of a sink's messages.
    pub(super) fn of(db: &Connection, sink: SinkKey) -> Result<Self, StoreError> {
        let row = db
            .query_row(
                "SELECT source.system_id, sink.name FROM sink LEFT JOIN source ON source.name = sink.source WHERE sink.key = ?1",
                [sink.0],
                |row| Ok((row.get::<_, Option<String>>(0)?, row.get(1)?)),
            )
            .optional()
            .map_err(StoreError::read("a sink"))?;
        let (system_id, sink) = row.unwrap_or_default();
        Ok(Self { system_id: system_id.and_then(|id| id.parse().ok()).unwrap_or_default(), sink })
    }

    /// The id of the message at this place, which is hashed from where it stands.
    pub(super) fn id_at(&self, position: Position) -> MessageId {
        MessageId::of(self.system_id, &self.sink, position)
    }

    /// What stands for a message; `content` is what can be read of it, for a person.
    pub(super) fn stand_in(&self, broken: Broken, commit_micros: i64) -> KeptMessage {
        let Broken { tied: Tied { position, ties: Ties { groups, scope, barrier } }, .. } = broken;
        let id = self.id_at(position);
        let event = Arc::from(EVENT);
        let facts = MessageFacts { id, position, groups, scope, barrier, commit_micros, event, group: None };
        KeptMessage { facts, json: stand_in(&self.sink, id, Some(position)) }
    }
}

/// The JSON of a message that stands for a damaged one of this id.
pub fn stand_in(sink: &str, id: MessageId, position: Option<Position>) -> Bytes {
    let position = position.filter(|position| is_somewhere(*position));
    let number = |number: Option<u64>| number.map_or_else(|| "null".to_owned(), |number| number.to_string());
    let lsn = number(position.map(|position| position.commit_lsn.0));
    let index = number(position.map(|position| position.index));
    let sink = serde_json::Value::from(sink);
    let mut text = format!(
        r#"{{"record":null,"changes":null,"action":null,"metadata":{{"commit_lsn":{lsn},"commit_idx":{index},"idempotency_key":"{id}","consumer":{{"name":{sink}}}"#
    )
    .into_bytes();
    text.extend_from_slice(END);
    Bytes::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stand_in_is_json_that_says_what_it_stands_for_and_is_told_from_every_other_message() {
        let position = Position { commit_lsn: Lsn(7), index: 3 };
        let stand_in = stand_in("or\"ders", MessageId(9), Some(position));
        let json: serde_json::Value = serde_json::from_slice(&stand_in).unwrap();
        assert_eq!((&json["metadata"]["commit_lsn"], &json["metadata"]["commit_idx"]), (&7.into(), &3.into()));
        assert_eq!(json["metadata"]["idempotency_key"], format!("{:032x}", 9));
        assert_eq!(
            (json["metadata"]["consumer"]["name"].as_str(), &json["record"]),
            (Some("or\"ders"), &json["changes"])
        );
        assert!(is_damaged(&stand_in));
        for whole in [
            r#"{"record":{"a":{"b":1,"damaged":true}},"metadata":{"transaction_annotations":null}}"#,
            r#"{"record":null,"metadata":{"transaction_annotations":{"a":1,"damaged":true}}}"#,
            r#"{"record":null,"metadata":{"transaction_annotations":",\"damaged\":true"}}"#,
        ] {
            assert!(!is_damaged(whole.as_bytes()), "{whole}");
        }
        let lost = nowhere(Some(position), 5, 6).position;
        assert!(!is_somewhere(lost) && lost > position && lost != nowhere(Some(position), 5, 7).position);
    }
}

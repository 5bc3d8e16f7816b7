//! Messages, members, pages and positions as bytes.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::{Corrupt, Reader, put_bytes, put_varint, put_zigzag};
use crate::change::{Lsn, Position};
use crate::record::message::MessageId;
use crate::store::batch::{KeptMessage, Member, MessageFacts};
use crate::store::damaged;
use crate::ties::{Barrier, GroupId, Groups, ScopeId, Tied};

/// The least that the facts of a message take: an id, two numbers of a byte, a kind, a time, two lengths.
const FACTS_BYTES_MIN: usize = 22;

/// In the byte of [`put_ties`]: how many groups.
const GROUPS: u8 = 0x0F;
/// A barrier of its scope.
const BARRIER: u8 = 0x10;
/// A barrier of two scopes, of which the other is named.
const BARRIER_OF_TWO: u8 = 0x20;

/// Texts that come again and again are read once. At most so many are remembered.
const WORDS_MAX: usize = 32;

/// Shares equal texts among what is read together.
#[derive(Debug, Default)]
pub(in crate::store) struct Words(Vec<Arc<str>>);

impl Words {
    fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.iter().find(|known| ***known == *text) {
            return Arc::clone(known);
        }
        let word: Arc<str> = text.into();
        if self.0.len() < WORDS_MAX {
            self.0.push(Arc::clone(&word));
        }
        word
    }
}

/// One message: its facts, then its JSON to the end.
pub(in crate::store) fn message_to_bytes(message: &KeptMessage) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.json.len().saturating_add(128));
    put_facts(&mut out, &message.facts);
    out.extend_from_slice(&message.json);
    out
}

/// See [`message_to_bytes`]. The JSON is a slice of `bytes`.
pub(in crate::store) fn message_from_bytes(bytes: &Bytes, words: &mut Words) -> Result<KeptMessage, Corrupt> {
    let mut reader = Reader::new(bytes);
    let facts = facts(&mut reader, words)?;
    Ok(KeptMessage { facts, json: bytes.slice(reader.offset()..) })
}

/// The same as an earlier version wrote it: how many messages, then each with the length of its JSON.
#[cfg(test)]
pub(in crate::store) fn old_page_to_bytes(messages: &[KeptMessage]) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, messages.len() as u64);
    for message in messages {
        put_facts(&mut out, &message.facts);
        put_bytes(&mut out, &message.json);
    }
    out
}

/// The messages that `wanted` names of a page as an earlier version wrote it, all under one seal; each with its index. Their JSON
/// is slices of `bytes`.
pub(super) fn old_page_from_bytes(
    bytes: &Bytes,
    wanted: impl Fn(u32) -> bool,
) -> Result<Vec<(u32, KeptMessage)>, Corrupt> {
    let mut reader = Reader::new(bytes);
    let mut words = Words::default();
    let count = reader.length()?;
    if count > reader.left().checked_div(FACTS_BYTES_MIN).unwrap_or_default() {
        return Err(Corrupt::Number);
    }
    let mut messages = Vec::with_capacity(count);
    for index in 0..count {
        let index = u32::try_from(index).map_err(|_| Corrupt::Number)?;
        let facts = facts(&mut reader, &mut words)?;
        let length = reader.bytes()?.len();
        let end = reader.offset();
        if wanted(index) {
            messages.push((index, KeptMessage { facts, json: bytes.slice(end.saturating_sub(length)..end) }));
        }
    }
    reader.end()?;
    Ok(messages)
}

/// The places of the messages of such a page whose seal is broken, from the first on. A place is believed if the message's id
/// belongs to it. Nothing else that the message says is believed.
pub(super) fn places_of_old_page<E>(
    bytes: &[u8],
    mut id_at: impl FnMut(Position) -> Result<MessageId, E>,
) -> Result<Vec<Tied>, E> {
    let mut reader = Reader::new(bytes);
    let mut words = Words::default();
    let mut next = |reader: &mut Reader<'_>| {
        let facts = facts(reader, &mut words)?;
        reader.bytes()?;
        Ok::<_, Corrupt>(facts)
    };
    let mut places = Vec::new();
    let Ok(count) = reader.length() else { return Ok(places) };
    while places.len() < count
        && let Ok(facts) = next(&mut reader)
        && facts.id == id_at(facts.position)?
    {
        places.push(facts.tied());
    }
    Ok(places)
}

/// The messages of a delivery and where each stands in its body.
pub(in crate::store) fn members_to_bytes(members: &[Member]) -> Vec<u8> {
    let mut out = Vec::with_capacity(members.len().saturating_mul(64).saturating_add(4));
    put_varint(&mut out, members.len() as u64);
    for member in members {
        put_facts(&mut out, &member.facts);
        put_varint(&mut out, member.bytes.start as u64);
        put_varint(&mut out, member.bytes.len() as u64);
    }
    out
}

/// See [`members_to_bytes`]. `body_bytes` is the length of the body: no member goes past it.
pub(in crate::store) fn members_from_bytes(bytes: &[u8], body_bytes: usize) -> Result<Vec<Member>, Corrupt> {
    let mut reader = Reader::new(bytes);
    let mut words = Words::default();
    let count = reader.length()?;
    if count > reader.left().checked_div(FACTS_BYTES_MIN).unwrap_or_default() {
        return Err(Corrupt::Number);
    }
    let mut members = Vec::with_capacity(count);
    for _ in 0..count {
        let facts = facts(&mut reader, &mut words)?;
        members.push(Member { facts, bytes: range(&mut reader, body_bytes)? });
    }
    reader.end()?;
    Ok(members)
}

fn range(reader: &mut Reader<'_>, body_bytes: usize) -> Result<Range<usize>, Corrupt> {
    let (start, length) = (reader.length()?, reader.length()?);
    let end = start.checked_add(length).filter(|end| *end <= body_bytes).ok_or(Corrupt::Number)?;
    Ok(start..end)
}

/// Ascending positions, each as its distance from the one before.
pub(in crate::store) fn positions_to_bytes(positions: &[Position]) -> Vec<u8> {
    let mut out = Vec::with_capacity(positions.len().saturating_mul(3).saturating_add(4));
    put_varint(&mut out, positions.len() as u64);
    let (mut lsn, mut index) = (0u64, 0u64);
    for position in positions {
        let forward = position.commit_lsn.0.wrapping_sub(lsn);
        put_varint(&mut out, forward);
        let base = if forward == 0 { index } else { 0 };
        put_varint(&mut out, position.index.wrapping_sub(base));
        (lsn, index) = (position.commit_lsn.0, position.index);
    }
    out
}

/// See [`positions_to_bytes`].
pub(in crate::store) fn positions_from_bytes(bytes: &[u8]) -> Result<Vec<Position>, Corrupt> {
    let mut reader = Reader::new(bytes);
    let count = reader.length()?;
    if count > reader.left() >> 1 {
        return Err(Corrupt::Number);
    }
    let mut positions: Vec<Position> = Vec::with_capacity(count);
    let (mut lsn, mut index) = (0u64, 0u64);
    for _ in 0..count {
        let forward = reader.varint()?;
        let base = if forward == 0 { index } else { 0 };
        lsn = lsn.checked_add(forward).ok_or(Corrupt::Number)?;
        index = base.checked_add(reader.varint()?).ok_or(Corrupt::Number)?;
        positions.push(Position { commit_lsn: Lsn(lsn), index });
    }
    reader.end()?;
    Ok(positions)
}

fn put_facts(out: &mut Vec<u8>, facts: &MessageFacts) {
    put_id(out, facts);
    put_varint(out, facts.position.commit_lsn.0);
    put_varint(out, facts.position.index);
    put_ties(out, facts.groups, facts.barrier);
    put_words(out, facts);
}

/// The facts without those that are a message's place in the order.
pub(super) fn put_said(out: &mut Vec<u8>, facts: &MessageFacts) {
    put_id(out, facts);
    put_words(out, facts);
}

fn put_id(out: &mut Vec<u8>, facts: &MessageFacts) {
    out.extend_from_slice(&facts.id.0.to_be_bytes());
}

fn put_words(out: &mut Vec<u8>, facts: &MessageFacts) {
    put_zigzag(out, facts.commit_micros);
    put_bytes(out, facts.event.as_bytes());
    match &facts.group {
        None => out.push(0),
        Some(name) => {
            out.push(1);
            put_bytes(out, name.as_bytes());
        }
    }
}

/// One byte says how many groups and what kind of barrier; their hashes follow.
pub(super) fn put_ties(out: &mut Vec<u8>, groups: Groups, barrier: Barrier) {
    let count = match groups {
        Groups::None => 0,
        Groups::One(_) => 1,
        Groups::Two(..) => 2,
    };
    let (kind, old) = match barrier {
        Barrier::None => (0, None),
        Barrier::Scope => (BARRIER, None),
        Barrier::Scopes(old) => (BARRIER_OF_TWO, Some(old)),
    };
    out.push(kind | count);
    let groups = groups.iter().map(|group| group.0);
    groups.chain(old.map(|old| old.0)).for_each(|hash| out.extend_from_slice(&hash.to_le_bytes()));
}

/// See [`put_ties`].
pub(super) fn ties(reader: &mut Reader<'_>) -> Result<(Groups, Barrier), Corrupt> {
    let kind = reader.u8()?;
    let mut hash = || reader.array().map(u64::from_le_bytes);
    let groups = match kind & GROUPS {
        0 => Groups::None,
        1 => Groups::One(GroupId(hash()?)),
        2 => Groups::Two(GroupId(hash()?), GroupId(hash()?)),
        _ => return Err(Corrupt::Kind),
    };
    let barrier = match kind & !GROUPS {
        0 => Barrier::None,
        BARRIER => Barrier::Scope,
        BARRIER_OF_TWO => Barrier::Scopes(ScopeId(hash()?)),
        _ => return Err(Corrupt::Kind),
    };
    Ok((groups, barrier))
}

fn facts(reader: &mut Reader<'_>, words: &mut Words) -> Result<MessageFacts, Corrupt> {
    let id = id(reader)?;
    let position = Position { commit_lsn: Lsn(reader.varint()?), index: reader.varint()? };
    let (groups, barrier) = ties(reader)?;
    with_words(reader, id, (position, groups, barrier), words)
}

/// See [`put_said`].
pub(super) fn said(
    reader: &mut Reader<'_>,
    place: (Position, Groups, Barrier),
    words: &mut Words,
) -> Result<MessageFacts, Corrupt> {
    let id = id(reader)?;
    with_words(reader, id, place, words)
}

fn id(reader: &mut Reader<'_>) -> Result<MessageId, Corrupt> {
    Ok(MessageId(u128::from_be_bytes(reader.array()?)))
}

fn with_words(
    reader: &mut Reader<'_>,
    id: MessageId,
    (position, groups, barrier): (Position, Groups, Barrier),
    words: &mut Words,
) -> Result<MessageFacts, Corrupt> {
    let commit_micros = reader.zigzag()?;
    let event = words.share(reader.text()?);
    let group = match reader.u8()? {
        0 => None,
        1 => Some(reader.text()?.into()),
        _ => return Err(Corrupt::Kind),
    };
    // The table of a message that could not be read is not in its event type.
    let scope = if &*event == damaged::EVENT { ScopeId::UNKNOWN } else { ScopeId::of_event(&event) };
    Ok(MessageFacts { id, position, groups, scope, barrier, commit_micros, event, group })
}

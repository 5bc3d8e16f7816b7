//! Pages, and the bodies and members of deliveries: what holds many messages. Each message has a seal of its own, and what is
//! needed to find it, and to keep its place in the order, is there twice.

use bytes::Bytes;

use super::message::{Words, put_said, put_ties, said, ties};
use super::pack::{Unpacked, is_pack, pack, unpack};
use super::{Corrupt, Packing, Reader, put_varint, seal, unseal};
use crate::change::{Lsn, Position};
use crate::record::message::MessageId;
use crate::store::batch::{KeptMessage, Member};
use crate::store::damaged::Broken;
use crate::ties::{ScopeId, Tied, Ties};

/// The least that the place of a message takes: two numbers, a kind, a table.
const PLACE_BYTES_MIN: usize = 4;

/// What a page is kept as: the places of its messages before, and each message for itself.
pub(in crate::store) fn page_to_bytes(messages: &[KeptMessage]) -> Vec<u8> {
    let mut front = Vec::with_capacity(messages.len().saturating_mul(16));
    put_places(&mut front, messages);
    let size = |message: &KeptMessage| message.json.len().saturating_add(128);
    let mut buffer = Vec::with_capacity(messages.iter().map(size).sum());
    let mut ends = Vec::with_capacity(messages.len());
    for message in messages {
        put_said(&mut buffer, &message.facts);
        buffer.extend_from_slice(&message.json);
        ends.push(buffer.len());
    }
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let contents: Vec<&[u8]> =
        starts.zip(&ends).map(|(start, end)| buffer.get(start..*end).unwrap_or_default()).collect();
    pack(&front, &contents)
}

/// How many, then the tables, then of each message where it stands and what ties it to others.
fn put_places(out: &mut Vec<u8>, messages: &[KeptMessage]) {
    let mut scopes: Vec<ScopeId> = Vec::new();
    let mut places = Vec::with_capacity(messages.len().saturating_mul(16));
    let mut lsn = 0u64;
    for message in messages {
        let Ties { groups, scope, barrier } = message.facts.ties();
        let place = scopes.iter().position(|known| *known == scope).unwrap_or_else(|| {
            scopes.push(scope);
            scopes.len().saturating_sub(1)
        });
        let position = message.facts.position;
        // What does not ascend wraps around, there and back.
        put_varint(&mut places, position.commit_lsn.0.wrapping_sub(lsn));
        lsn = position.commit_lsn.0;
        put_varint(&mut places, position.index);
        put_ties(&mut places, groups, barrier);
        put_varint(&mut places, place as u64);
    }
    put_varint(out, messages.len() as u64);
    put_varint(out, scopes.len() as u64);
    scopes.iter().for_each(|scope| out.extend_from_slice(&scope.0.to_le_bytes()));
    out.extend_from_slice(&places);
}

fn places(bytes: &[u8]) -> Result<Vec<Tied>, Corrupt> {
    let mut reader = Reader::new(bytes);
    let (count, scopes_count) = (reader.length()?, reader.length()?);
    if count > reader.left() / PLACE_BYTES_MIN || scopes_count > reader.left() >> 3 {
        return Err(Corrupt::Number);
    }
    let mut scopes = Vec::with_capacity(scopes_count);
    for _ in 0..scopes_count {
        scopes.push(ScopeId(u64::from_le_bytes(reader.array()?)));
    }
    let (mut all, mut lsn) = (Vec::with_capacity(count), 0u64);
    for _ in 0..count {
        lsn = lsn.wrapping_add(reader.varint()?);
        let position = Position { commit_lsn: Lsn(lsn), index: reader.varint()? };
        let (groups, barrier) = ties(&mut reader)?;
        let scope = *scopes.get(reader.length()?).ok_or(Corrupt::Number)?;
        all.push(Tied { position, ties: Ties { groups, scope, barrier } });
    }
    reader.end()?;
    Ok(all)
}

/// A message of a page by its index, or what is left of it.
pub(in crate::store) type PageEntry = (u32, Result<KeptMessage, Broken>);

/// The messages of a page that `wanted` names, and whether a part of it is damaged that is there twice.
///
/// # Errors
/// When not even the places of its messages can be read.
pub(in crate::store) fn page_from_bytes(
    blob: Vec<u8>,
    wanted: impl Fn(u32) -> bool,
) -> Result<(Vec<PageEntry>, bool), Corrupt> {
    if !is_pack(&blob) {
        let whole = |(index, message)| (index, Ok(message));
        let messages = super::message::old_page_from_bytes(&unseal(blob)?, wanted)?;
        return Ok((messages.into_iter().map(whole).collect(), false));
    }
    let index_of = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
    let Unpacked { front, contents, lengths, is_scratched } = unpack(&blob, |index| wanted(index_of(index)))?;
    let places = places(&front)?;
    if places.len() != lengths.len() {
        return Err(Corrupt::Number);
    }
    let mut words = Words::default();
    let mut messages = Vec::with_capacity(contents.len());
    for (index, content) in contents {
        let tied = *places.get(index).ok_or(Corrupt::Number)?;
        let message = content.and_then(|content| message_of(&content, tied, &mut words));
        messages.push((index_of(index), message.map_err(|why| Broken { tied, why })));
    }
    Ok((messages, is_scratched))
}

/// Where the messages of a page stood that an earlier version wrote, as far as that can be believed of one that is damaged.
pub(in crate::store) fn old_places<E>(
    blob: &[u8],
    id_at: impl FnMut(Position) -> Result<MessageId, E>,
) -> Result<Vec<Tied>, E> {
    super::message::places_of_old_page(&super::salvaged(blob), id_at)
}

fn message_of(content: &Bytes, tied: Tied, words: &mut Words) -> Result<KeptMessage, Corrupt> {
    let mut reader = Reader::new(content);
    let facts = said(&mut reader, (tied.position, tied.ties.groups, tied.ties.barrier), words)?;
    Ok(KeptMessage { facts, json: content.slice(reader.offset()..) })
}

/// A body: what stands between its messages before, and each message for itself; a body of one message is a whole.
pub(in crate::store) fn body_to_bytes(body: &[u8], members: &[Member]) -> Vec<u8> {
    if members.len() < 2 {
        return seal(body, Packing::Lz4);
    }
    let mut front = Vec::new();
    let (mut contents, mut end) = (Vec::with_capacity(members.len()), 0usize);
    put_varint(&mut front, members.len() as u64);
    for member in members {
        let (Some(between), Some(content)) = (body.get(end..member.bytes.start), body.get(member.bytes.clone())) else {
            return seal(body, Packing::Lz4);
        };
        super::put_bytes(&mut front, between);
        contents.push(content);
        end = member.bytes.end;
    }
    super::put_bytes(&mut front, body.get(end..).unwrap_or_default());
    pack(&front, &contents)
}

/// A body, and which of its messages are damaged: in their places stand spaces.
///
/// # Errors
/// When nothing of it can be read.
pub(in crate::store) fn body_from_bytes(blob: Vec<u8>) -> Result<(Bytes, Vec<usize>), Corrupt> {
    if !is_pack(&blob) {
        return Ok((unseal(blob)?, Vec::new()));
    }
    let Unpacked { front, contents, lengths, .. } = unpack(&blob, |_| true)?;
    let mut reader = Reader::new(&front);
    if reader.length()? != contents.len() {
        return Err(Corrupt::Number);
    }
    let whole = contents.iter().map(|(_, content)| content.as_ref().map_or(0, Bytes::len)).sum::<usize>();
    let mut body = Vec::with_capacity(whole.saturating_add(front.len()));
    let mut damaged = Vec::new();
    for (index, content) in contents {
        body.extend_from_slice(reader.bytes()?);
        match content {
            Ok(content) => body.extend_from_slice(&content),
            Err(_) => {
                let length = lengths.get(index).copied().unwrap_or_default();
                body.resize(body.len().saturating_add(length), b' ');
                damaged.push(index);
            }
        }
    }
    body.extend_from_slice(reader.bytes()?);
    reader.end()?;
    Ok((Bytes::from(body), damaged))
}

/// Kept twice: without them nobody knows which groups a delivery holds.
pub(in crate::store) fn twice_sealed(bytes: &[u8]) -> Vec<u8> {
    pack(bytes, &[])
}

/// See [`twice_sealed`]; what an earlier version sealed once is read too.
pub(in crate::store) fn twice_unsealed(blob: Vec<u8>) -> Result<Bytes, Corrupt> {
    if is_pack(&blob) { unpack(&blob, |_| false).map(|unpacked| unpacked.front) } else { unseal(blob) }
}

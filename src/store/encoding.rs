//! The bytes of the store: what is kept in blobs, written and read by hand.
//!
//! Numbers are varints of seven bits a byte, the low ones first; signed ones are zigzagged. What is large or precious is
//! sealed ([`seal`]): a checksum guards it, and lz4 makes it small. Reading trusts nothing: every length is checked against
//! what is left, every allocation against what the bytes could hold, and bytes that are left over are an error.
//!
//! What holds many messages is no sealed whole but a [`pack`], in which each message has a seal of its own.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod dictionary;
mod message;
mod pack;
mod page;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub(super) use self::message::{
    Words, members_from_bytes, members_to_bytes, message_from_bytes, message_to_bytes, positions_from_bytes,
    positions_to_bytes,
};
pub(super) use self::pack::is_pack;
pub(super) use self::page::{
    PageEntry, body_from_bytes, body_to_bytes, old_places, page_from_bytes, page_to_bytes, twice_sealed, twice_unsealed,
};

/// What is wrong with bytes that the store kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// They end before the value does.
    #[error("the bytes end early")]
    Short,
    /// They go on after the last value.
    #[error("bytes are left over")]
    LeftOver,
    /// A number does not fit.
    #[error("a number is out of its range")]
    Number,
    /// A text is not UTF-8.
    #[error("a text is not UTF-8")]
    Text,
    /// A kind that this version does not know.
    #[error("a kind is unknown")]
    Kind,
    /// They are not what was written.
    #[error("the checksum does not match")]
    Checksum,
    /// They are not where they belong.
    #[error("it stands in the place of another")]
    Place,
    /// They are not lz4.
    #[error("the bytes do not decompress")]
    Compression,
}

/// Appends a number.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let low = value.to_le_bytes()[0] & 0x7F;
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

/// Appends a signed number.
pub(super) fn put_zigzag(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

/// Appends bytes with their length.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads values one after another; it cannot panic.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    length: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, length: bytes.len() }
    }

    /// Bytes read so far.
    pub(super) fn offset(&self) -> usize {
        self.length.saturating_sub(self.rest.len())
    }

    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Corrupt> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Corrupt::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Corrupt> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Corrupt::Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Corrupt> {
        self.array::<1>().map(u8::from_le_bytes)
    }

    pub(super) fn varint(&mut self) -> Result<u64, Corrupt> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                return Err(Corrupt::Number);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Corrupt::Number)
    }

    pub(super) fn zigzag(&mut self) -> Result<i64, Corrupt> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ (value & 1).cast_signed().wrapping_neg())
    }

    /// A varint that must fit in memory.
    pub(super) fn length(&mut self) -> Result<usize, Corrupt> {
        usize::try_from(self.varint()?).map_err(|_| Corrupt::Number)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Corrupt> {
        let length = self.length()?;
        self.take(length)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Corrupt> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Corrupt::Text)
    }

    pub(super) fn end(&self) -> Result<(), Corrupt> {
        if self.rest.is_empty() { Ok(()) } else { Err(Corrupt::LeftOver) }
    }
}

const PLAIN: u8 = 1;
const LZ4: u8 = 2;
/// Less is not worth compressing.
const COMPRESSED_FROM: usize = 256;
/// One byte of lz4 yields at most so many.
const LZ4_FACTOR_MAX: usize = 256;

/// How [`seal`] keeps bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// As they are.
    Plain,
    /// With lz4, where that saves an eighth.
    Lz4,
}

/// `kind, length before packing, checksum, bytes`.
pub(super) fn seal(bytes: &[u8], packing: Packing) -> Vec<u8> {
    let packed = match packing {
        Packing::Lz4 if bytes.len() >= COMPRESSED_FROM => Some(lz4_flex::block::compress(bytes)),
        Packing::Lz4 | Packing::Plain => None,
    };
    let worth = |packed: &Vec<u8>| packed.len() < bytes.len().saturating_sub(bytes.len() >> 3);
    let (kind, payload) = match packed.filter(worth) {
        Some(packed) => (LZ4, Cow::Owned(packed)),
        None => (PLAIN, Cow::Borrowed(bytes)),
    };
    let mut out = Vec::with_capacity(payload.len().saturating_add(19));
    out.push(kind);
    put_varint(&mut out, bytes.len() as u64);
    out.extend_from_slice(&checksum(kind, bytes.len(), &payload).to_le_bytes());
    out.extend_from_slice(&payload);
    out
}

/// What [`seal`] was given.
pub(super) fn unseal(sealed: Vec<u8>) -> Result<Bytes, Corrupt> {
    let mut reader = Reader::new(&sealed);
    let (kind, length) = (reader.u8()?, reader.length()?);
    let sum = u64::from_le_bytes(reader.array()?);
    let start = reader.offset();
    let payload = reader.take(reader.left())?;
    if checksum(kind, length, payload) != sum {
        return Err(Corrupt::Checksum);
    }
    match kind {
        PLAIN if payload.len() == length => Ok(Bytes::from(sealed).slice(start..)),
        PLAIN => Err(Corrupt::Number),
        LZ4 => unpack(payload, length),
        _ => Err(Corrupt::Kind),
    }
}

/// What can be unpacked of sealed bytes whose seal is broken: nobody knows how much of it is as it was.
fn salvaged(sealed: &[u8]) -> Vec<u8> {
    let mut reader = Reader::new(sealed);
    let mut parts = || Ok::<_, Corrupt>((reader.u8()?, reader.length()?, reader.array::<8>()?));
    let Ok((kind, length, _)) = parts() else { return Vec::new() };
    let payload = sealed.get(reader.offset()..).unwrap_or_default();
    if kind == PLAIN || length > payload.len().saturating_mul(LZ4_FACTOR_MAX) {
        return payload.to_vec();
    }
    let mut bytes = vec![0; length];
    // As far as it goes.
    let unpacked = lz4_flex::block::decompress_into(payload, &mut bytes);
    bytes.truncate(unpacked.unwrap_or(length));
    bytes
}

/// Whether these bytes are what [`seal`] made.
fn is_sealed(sealed: &[u8]) -> bool {
    let mut reader = Reader::new(sealed);
    let mut parts = || Ok::<_, Corrupt>((reader.u8()?, reader.length()?, u64::from_le_bytes(reader.array()?)));
    let Ok((kind, length, sum)) = parts() else { return false };
    let payload = sealed.get(reader.offset()..).unwrap_or_default();
    [PLAIN, LZ4].contains(&kind) && checksum(kind, length, payload) == sum
}

fn unpack(payload: &[u8], length: usize) -> Result<Bytes, Corrupt> {
    if length > payload.len().saturating_mul(LZ4_FACTOR_MAX) {
        return Err(Corrupt::Number);
    }
    let mut bytes = vec![0; length];
    match lz4_flex::block::decompress_into(payload, &mut bytes) {
        Ok(written) if written == length => Ok(Bytes::from(bytes)),
        Ok(_) | Err(_) => Err(Corrupt::Compression),
    }
}

/// A checksum of bytes that are kept elsewhere.
pub(super) fn sum_of(bytes: &[u8]) -> u64 {
    checksum(0, bytes.len(), bytes)
}

fn checksum(kind: u8, length: usize, payload: &[u8]) -> u64 {
    xxh3_64_with_seed(payload, u64::from(kind) << 56 ^ length as u64)
}

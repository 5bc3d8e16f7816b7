//! A content written as what it has in common with another, the dictionary, and the rest.
//!
//! lz4 would look through the dictionary anew for every content; here that is done once for all contents of a pack.
//!
//! ```text
//!  bytes of its own (with their length), length of what follows from the dictionary, its place there │ again …
//! ```

use super::{Corrupt, Reader, put_bytes, put_varint};

/// Shorter pieces are not worth naming.
const PIECE_MIN: usize = 6;
/// Bytes that are looked up.
const LOOKED_UP: usize = 4;
const PLACES: usize = 1 << 12;

/// See the module.
#[derive(Debug)]
pub(super) struct Dictionary<'a> {
    bytes: &'a [u8],
    /// Where four bytes with this hash begin, plus one; 0: nowhere.
    places: Vec<u16>,
}

impl<'a> Dictionary<'a> {
    /// Of at most 65,534 bytes.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let mut places = vec![0; PLACES];
        for (four, place) in bytes.windows(LOOKED_UP).zip(1u16..u16::MAX) {
            if let Some(entry) = places.get_mut(hash(four)) {
                *entry = place;
            }
        }
        Self { bytes, places }
    }

    /// The dictionary's bytes that the content goes on with, and their place.
    fn piece(&self, content: &[u8]) -> Option<(usize, usize)> {
        let four = content.get(..LOOKED_UP)?;
        let place = usize::from(*self.places.get(hash(four))?).checked_sub(1)?;
        let there = self.bytes.get(place..)?;
        let length = there.iter().zip(content).take_while(|(one, other)| one == other).count();
        (length >= PIECE_MIN).then_some((place, length))
    }

    pub(super) fn write(&self, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(content.len() >> 1);
        let (mut own, mut at) = (0usize, 0usize);
        while let Some(rest) = content.get(at..).filter(|rest| rest.len() >= LOOKED_UP) {
            let Some((place, length)) = self.piece(rest) else {
                at = at.saturating_add(1);
                continue;
            };
            put_bytes(&mut out, content.get(own..at).unwrap_or_default());
            put_varint(&mut out, length as u64);
            put_varint(&mut out, place as u64);
            at = at.saturating_add(length);
            own = at;
        }
        put_bytes(&mut out, content.get(own..).unwrap_or_default());
        out
    }
}

/// A content of `length` bytes that was written with this dictionary.
pub(super) fn read(written: &[u8], dictionary: &[u8], length: usize) -> Result<Vec<u8>, Corrupt> {
    let mut reader = Reader::new(written);
    let mut out = Vec::with_capacity(length.min(written.len().saturating_mul(64)));
    loop {
        out.extend_from_slice(reader.bytes()?);
        if reader.left() == 0 {
            break;
        }
        let (count, place) = (reader.length()?, reader.length()?);
        let end = place.checked_add(count).ok_or(Corrupt::Number)?;
        out.extend_from_slice(dictionary.get(place..end).ok_or(Corrupt::Compression)?);
        if out.len() > length {
            return Err(Corrupt::Number);
        }
    }
    if out.len() == length { Ok(out) } else { Err(Corrupt::Number) }
}

fn hash(four: &[u8]) -> usize {
    let number = four.first_chunk::<4>().map_or(0, |four| u32::from_le_bytes(*four));
    usize::try_from(number.wrapping_mul(2_654_435_761) >> 20).unwrap_or_default()
}

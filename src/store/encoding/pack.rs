//! Many contents in one blob, each under a seal of its own: a bit that flips costs the one content that it is in.
//!
//! ```text
//!  kind, length of the head │ the same again │ seal, head │ the same again │ content │ content │ …
//! ```
//!
//! The head says where each content stands and how it is packed; it is there twice, since without it nothing could be found.
//! Contents repeat each other, so many are packed with the same dictionary, the start of the first one, which is in the head
//! too: each can be unpacked without the others.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::dictionary::{self, Dictionary};
use super::{Corrupt, Reader, put_bytes, put_varint};

/// Follows [`super::PLAIN`] and [`super::LZ4`].
const PACK: u8 = 3;
/// A kind and a length.
const MARK_BYTES: usize = 5;
const SEAL_BYTES: usize = 8;
/// The part of the first content that the others are packed with.
const DICTIONARY_MAX: usize = 2048;
/// Fewer contents do not repay a dictionary that is there twice.
const DICTIONARY_FROM: usize = 16;
/// Less is not worth compressing by itself.
const COMPRESSED_FROM: usize = 256;

/// What [`pack`] was given, as far as it is whole.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::store) struct Unpacked {
    /// What its writer put before the contents.
    pub(in crate::store) front: Bytes,
    /// Those that were wanted, each with its index.
    pub(in crate::store) contents: Vec<(usize, Result<Bytes, Corrupt>)>,
    /// Bytes of every content before packing, whether or not it is whole.
    pub(in crate::store) lengths: Vec<usize>,
    /// One of the two heads is damaged.
    pub(in crate::store) is_scratched: bool,
}

/// How one content is kept.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Before packing.
    length: usize,
    /// In the blob; as many as before packing: it is as it was.
    kept: usize,
    seal: u32,
}

/// `front` is kept twice.
pub(in crate::store) fn pack(front: &[u8], contents: &[&[u8]]) -> Vec<u8> {
    let dictionary = contents
        .first()
        .filter(|_| contents.len() >= DICTIONARY_FROM)
        .map_or(&[][..], |first| first.get(..DICTIONARY_MAX).unwrap_or(first));
    let index = (!dictionary.is_empty()).then(|| Dictionary::new(dictionary));
    let mut packed = Vec::with_capacity(contents.iter().map(|content| content.len()).sum::<usize>() >> 1);
    let mut head = Vec::with_capacity(front.len().saturating_add(contents.len().saturating_mul(8)).saturating_add(64));
    put_bytes(&mut head, front);
    put_bytes(&mut head, dictionary);
    put_varint(&mut head, contents.len() as u64);
    for content in contents {
        let start = packed.len();
        match compressed(content, index.as_ref()) {
            Some(bytes) => packed.extend_from_slice(&bytes),
            None => packed.extend_from_slice(content),
        }
        let kept = packed.get(start..).unwrap_or_default();
        put_varint(&mut head, content.len() as u64);
        put_varint(&mut head, kept.len() as u64);
        head.extend_from_slice(&seal_of(content.len(), kept).to_le_bytes());
    }
    let mut out = Vec::with_capacity(packed.len().saturating_add(head.len() << 1).saturating_add(32));
    let length = u32::try_from(head.len()).unwrap_or(u32::MAX);
    for _ in 0..2 {
        out.push(PACK);
        out.extend_from_slice(&length.to_le_bytes());
    }
    let seal = xxh3_64_with_seed(&head, u64::from(PACK)).to_le_bytes();
    for _ in 0..2 {
        out.extend_from_slice(&seal);
        out.extend_from_slice(&head);
    }
    out.extend_from_slice(&packed);
    out
}

/// `None`: it is no smaller.
fn compressed(content: &[u8], dictionary: Option<&Dictionary<'_>>) -> Option<Vec<u8>> {
    let packed = match dictionary {
        None => (content.len() >= COMPRESSED_FROM).then(|| lz4_flex::block::compress(content)),
        Some(dictionary) => Some(dictionary.write(content)),
    };
    packed.filter(|packed| packed.len() < content.len())
}

/// Whether it is one, as far as that can be seen; nothing that [`super::seal`] writes is.
pub(in crate::store) fn is_pack(blob: &[u8]) -> bool {
    let marks = [blob.first(), blob.get(MARK_BYTES)];
    marks.contains(&Some(&PACK)) && !(marks[0] != Some(&PACK) && super::is_sealed(blob))
}

/// See [`pack`]. Contents that are not `wanted` are not looked at.
///
/// # Errors
/// When neither head can be read: then nothing can.
pub(in crate::store) fn unpack(blob: &[u8], wanted: impl Fn(usize) -> bool) -> Result<Unpacked, Corrupt> {
    let (head, start, is_scratched) = head(blob)?;
    let mut reader = Reader::new(head);
    let (front, dictionary) = (reader.bytes()?, reader.bytes()?);
    let count = reader.length()?;
    if count > reader.left() / 6 {
        return Err(Corrupt::Number);
    }
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let (length, kept) = (reader.length()?, reader.length()?);
        entries.push(Entry { length, kept, seal: u32::from_le_bytes(reader.array()?) });
    }
    reader.end()?;
    let mut rest = Reader::new(blob.get(start..).unwrap_or_default());
    let (mut contents, mut is_cut) = (Vec::new(), false);
    for (index, entry) in entries.iter().enumerate() {
        let kept = if is_cut { Err(Corrupt::Short) } else { rest.take(entry.kept) };
        is_cut |= kept.is_err();
        if wanted(index) {
            contents.push((index, kept.and_then(|kept| content(entry, kept, dictionary))));
        }
    }
    let lengths = entries.iter().map(|entry| entry.length).collect();
    Ok(Unpacked { front: Bytes::copy_from_slice(front), contents, lengths, is_scratched })
}

/// A head that is whole, where the contents begin, and whether anything before them is damaged.
fn head(blob: &[u8]) -> Result<(&[u8], usize, bool), Corrupt> {
    let mut marks = Reader::new(blob);
    let mut mark = || Ok::<_, Corrupt>((marks.u8()?, u32::from_le_bytes(marks.array()?)));
    let marks = [mark()?, mark()?];
    let mut found = Err(Corrupt::Checksum);
    let mut are_whole = marks.iter().all(|mark| *mark == marks[0] && mark.0 == PACK);
    for (_, length) in marks {
        let length = usize::try_from(length).map_err(|_| Corrupt::Number)?;
        let Some(second) = length.checked_add(MARK_BYTES * 2 + SEAL_BYTES) else { continue };
        for start in [MARK_BYTES * 2, second] {
            match sealed_head(blob, start, length) {
                Ok(head) if found.is_err() => {
                    found = Ok((head, second.saturating_add(length).saturating_add(SEAL_BYTES)));
                }
                Ok(_) => {}
                Err(_) => are_whole = false,
            }
        }
    }
    found.map(|(head, start)| (head, start, !are_whole))
}

fn sealed_head(blob: &[u8], start: usize, length: usize) -> Result<&[u8], Corrupt> {
    let mut reader = Reader::new(blob.get(start..).ok_or(Corrupt::Short)?);
    let seal = u64::from_le_bytes(reader.array()?);
    let head = reader.take(length)?;
    if xxh3_64_with_seed(head, u64::from(PACK)) == seal { Ok(head) } else { Err(Corrupt::Checksum) }
}

fn content(entry: &Entry, kept: &[u8], dictionary: &[u8]) -> Result<Bytes, Corrupt> {
    let Entry { length, seal, .. } = *entry;
    if seal_of(length, kept) != seal {
        return Err(Corrupt::Checksum);
    }
    if kept.len() == length {
        return Ok(Bytes::copy_from_slice(kept));
    }
    if !dictionary.is_empty() {
        return dictionary::read(kept, dictionary, length).map(Bytes::from);
    }
    super::unpack(kept, length)
}

fn seal_of(length: usize, kept: &[u8]) -> u32 {
    let [one, two, three, four, ..] = xxh3_64_with_seed(kept, length as u64).to_le_bytes();
    u32::from_le_bytes([one, two, three, four])
}

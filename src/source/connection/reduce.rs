//! Pure: one change that is larger than its bound, reduced while it streams by.
//!
//! A [`Reducer`] is fed the bytes of one frame, however they are cut, and makes a smaller frame of it: the same headers and
//! the same columns, but a value of more than [`VALUE_KEPT`] bytes, or for which no room is left, becomes a
//! [`Datum::TooLarge`](crate::change::Datum::TooLarge) with its length, and a logical message loses its content. What it
//! holds stays within the bound and a few bytes for each column, whatever the lengths in the frame claim: they are
//! checked against what is left of it, and allocate nothing.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::error::StreamError;
use crate::change::TOO_LARGE;

/// A value of more bytes is left out.
const VALUE_KEPT: usize = 64 << 10;
/// Bytes of a logical message's prefix that are kept.
const PREFIX_KEPT: usize = 64 << 10;
/// Tag, length and the header of XLogData.
pub(super) const ENVELOPE: usize = 30;

/// Whether a message that begins with this byte can be reduced: Insert, Update, Delete, Message.
pub(super) fn is_reducible(kind: u8) -> bool {
    matches!(kind, b'I' | b'U' | b'D' | b'M')
}

/// See the module.
#[derive(Debug)]
pub(super) struct Reducer {
    /// The reduced frame, as far as it is known.
    out: Vec<u8>,
    /// Bytes of `out` at which values are no longer kept.
    bound: usize,
    /// Bytes of the frame, and those of them that are to come.
    total: usize,
    left: usize,
    step: Step,
    /// A number whose bytes have not all come.
    number: Vec<u8>,
    /// What follows the tuple that is read.
    next: Next,
    /// Values of that tuple that are to come.
    columns: u32,
}

/// What is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// So many bytes that are kept as they are, then the message's own part.
    Head(usize),
    Mark,
    Count,
    Kind,
    Length,
    Value {
        left: usize,
        kept: bool,
    },
    Prefix {
        kept: usize,
    },
    ContentLength,
    Content(usize),
    End,
}

/// Which tuple is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The new row, and that is all.
    New,
    /// The new row, or an old one before it.
    OldOrNew,
    /// An old row, and that is all.
    Old,
    Nothing,
}

impl Reducer {
    /// For a frame of `total` bytes with a message of this kind, which [`is_reducible`]. Of the message about `bound` bytes
    /// are kept.
    pub(super) fn new(total: usize, kind: u8, bound: usize) -> Self {
        // A relation's OID; or the flags and the LSN of a logical message.
        let (fixed, next) = match kind {
            b'M' => (9, Next::Nothing),
            b'U' => (4, Next::OldOrNew),
            b'D' => (4, Next::Old),
            _ => (4, Next::New),
        };
        Self {
            out: Vec::new(),
            bound: bound.saturating_add(ENVELOPE),
            total,
            left: total,
            step: Step::Head(ENVELOPE.saturating_add(1).saturating_add(fixed)),
            number: Vec::with_capacity(4),
            next,
            columns: 0,
        }
    }

    /// Bytes of the frame that were not fed.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// Bytes of the message as it was sent.
    pub(super) fn message_bytes(&self) -> usize {
        self.total.saturating_sub(ENVELOPE)
    }

    /// Takes as many of `bytes` as belong to the frame; how many that were.
    ///
    /// # Errors
    /// When this is no message of its kind.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<usize, StreamError> {
        let mut rest = bytes;
        while self.step != Step::End {
            if self.left == 0 {
                return Err(malformed("a large message that ends early"));
            }
            if rest.is_empty() {
                return Ok(bytes.len());
            }
            self.advance(&mut rest)?;
        }
        if self.left > 0 {
            return Err(malformed("a large message with bytes left over"));
        }
        Ok(bytes.len().saturating_sub(rest.len()))
    }

    /// The reduced frame, once all of it was fed.
    pub(super) fn finish(&mut self) -> Option<Vec<u8>> {
        if self.step != Step::End {
            return None;
        }
        let mut frame = std::mem::take(&mut self.out);
        let length = u32::try_from(frame.len().saturating_sub(1)).unwrap_or(u32::MAX).to_be_bytes();
        frame.iter_mut().skip(1).zip(length).for_each(|(place, byte)| *place = byte);
        frame.shrink_to_fit();
        Some(frame)
    }

    fn advance(&mut self, rest: &mut &[u8]) -> Result<(), StreamError> {
        match self.step {
            Step::Head(wanted) => {
                let taken = self.take(rest, wanted)?;
                self.out.extend_from_slice(taken);
                self.step = match wanted.saturating_sub(taken.len()) {
                    0 if self.next == Next::Nothing => Step::Prefix { kept: 0 },
                    0 => Step::Mark,
                    wanted => Step::Head(wanted),
                };
            }
            Step::Mark => self.mark(rest)?,
            Step::Count => {
                if let Some(count) = self.number(rest, 2)? {
                    self.columns = count;
                    self.column_or_end();
                }
            }
            Step::Kind => self.kind(rest)?,
            Step::Length => {
                if let Some(length) = self.number(rest, 4)? {
                    self.value(length)?;
                }
            }
            Step::Value { left, kept } => {
                let taken = self.take(rest, left)?;
                if kept {
                    self.out.extend_from_slice(taken);
                }
                match left.saturating_sub(taken.len()) {
                    0 => self.column_or_end(),
                    left => self.step = Step::Value { left, kept },
                }
            }
            Step::Prefix { kept } => self.prefix(rest, kept)?,
            Step::ContentLength => {
                if let Some(length) = self.number(rest, 4)? {
                    // The content is what is left out.
                    let place = self.out.len().saturating_sub(4);
                    self.out.iter_mut().skip(place).for_each(|byte| *byte = 0);
                    let length = usize::try_from(length).unwrap_or(usize::MAX);
                    self.step = if length == 0 { Step::End } else { Step::Content(length) };
                }
            }
            Step::Content(wanted) => {
                let taken = self.take(rest, wanted)?;
                self.step = match wanted.saturating_sub(taken.len()) {
                    0 => Step::End,
                    wanted => Step::Content(wanted),
                };
            }
            Step::End => {}
        }
        Ok(())
    }

    /// The mark of a row.
    fn mark(&mut self, rest: &mut &[u8]) -> Result<(), StreamError> {
        let mark = self.byte(rest)?;
        self.next = match (mark, self.next) {
            (b'N', Next::New | Next::OldOrNew) => Next::Nothing,
            (b'K' | b'O', Next::OldOrNew) => Next::New,
            (b'K' | b'O', Next::Old) => Next::Nothing,
            _ => return Err(malformed("a large message without the row that was due")),
        };
        self.out.push(mark);
        self.step = Step::Count;
        Ok(())
    }

    fn kind(&mut self, rest: &mut &[u8]) -> Result<(), StreamError> {
        match self.byte(rest)? {
            kind @ (b'n' | b'u') => {
                self.out.push(kind);
                self.column_or_end();
            }
            b't' => {
                self.out.push(b't');
                self.step = Step::Length;
            }
            _ => return Err(malformed("a large message with a value of a kind that was not asked for")),
        }
        Ok(())
    }

    /// A value of this length comes; its kind and its length stand in `out`.
    fn value(&mut self, length: u32) -> Result<(), StreamError> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > self.left {
            return Err(malformed("a large message with a value longer than itself"));
        }
        let kept = length <= VALUE_KEPT && length <= self.bound.saturating_sub(self.out.len());
        if !kept {
            let place = self.out.len().saturating_sub(5);
            self.out.iter_mut().skip(place).take(1).for_each(|kind| *kind = TOO_LARGE);
        }
        self.step = Step::Value { left: length, kept };
        if length == 0 {
            self.column_or_end();
        }
        Ok(())
    }

    fn column_or_end(&mut self) {
        self.step = match (self.columns.checked_sub(1), self.next) {
            (Some(left), _) => {
                self.columns = left;
                Step::Kind
            }
            (None, Next::Nothing) => Step::End,
            (None, Next::New | Next::OldOrNew | Next::Old) => Step::Mark,
        };
    }

    /// What is beyond [`PREFIX_KEPT`] is skipped.
    fn prefix(&mut self, rest: &mut &[u8], kept: usize) -> Result<(), StreamError> {
        let end = memchr::memchr(0, rest);
        let taken = self.take(rest, end.unwrap_or(rest.len()))?;
        let keeps = taken.get(..PREFIX_KEPT.saturating_sub(kept)).unwrap_or(taken);
        self.out.extend_from_slice(keeps);
        self.step = Step::Prefix { kept: kept.saturating_add(keeps.len()) };
        if end.is_some() {
            let end = self.byte(rest)?;
            self.out.push(end);
            self.step = Step::ContentLength;
        }
        Ok(())
    }

    /// A number of `size` bytes, which are kept; `None`: there is more of it to come.
    fn number(&mut self, rest: &mut &[u8], size: usize) -> Result<Option<u32>, StreamError> {
        let taken = self.take(rest, size.saturating_sub(self.number.len()))?;
        self.number.extend_from_slice(taken);
        if self.number.len() < size {
            return Ok(None);
        }
        let number = self.number.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte));
        self.out.append(&mut self.number);
        Ok(Some(number))
    }

    fn byte(&mut self, rest: &mut &[u8]) -> Result<u8, StreamError> {
        self.take(rest, 1)?.first().copied().ok_or(malformed("a large message that ends early"))
    }

    /// Up to `wanted` bytes of the frame, which has to have so many.
    fn take<'b>(&mut self, rest: &mut &'b [u8], wanted: usize) -> Result<&'b [u8], StreamError> {
        if wanted > self.left {
            return Err(malformed("a large message that ends early"));
        }
        let (taken, after) = rest.split_at_checked(wanted).unwrap_or((rest, &[]));
        *rest = after;
        self.left = self.left.saturating_sub(taken.len());
        Ok(taken)
    }
}

#[cold]
fn malformed(what: &'static str) -> StreamError {
    StreamError::Malformed { what }
}

#[cfg(test)]
mod tests;

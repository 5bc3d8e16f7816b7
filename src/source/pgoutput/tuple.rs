//! The row messages: relation, row images, and the check that lets a [`Tuple`] be trusted afterwards.

use std::ops::Range;

use bytes::Bytes;

use super::DecodeError;
use crate::change::{OldRow, TOO_LARGE, Tuple};
use crate::source::wire::Cursor;

/// Which old image a tuple is.
#[derive(Clone, Copy)]
pub(super) enum OldImage {
    Key,
    Full,
}

impl OldImage {
    /// The old row in `bytes`, which were checked.
    pub(super) fn row(self, bytes: Bytes) -> OldRow {
        match self {
            Self::Key => OldRow::Key(Tuple(bytes)),
            Self::Full => OldRow::Full(Tuple(bytes)),
        }
    }
}

/// Walks through one Insert, Update or Delete.
pub(super) struct RowReader<'a> {
    message: &'static str,
    /// Whether values may have been left out.
    reduced: bool,
    cursor: Cursor<'a>,
    relation: u32,
}

impl<'a> RowReader<'a> {
    pub(super) fn new(message: &'static str, frame: &'a [u8], reduced: bool) -> Result<Self, DecodeError> {
        let mut cursor = Cursor::new(frame);
        let relation = cursor.u8().and_then(|_| cursor.u32()).map_err(|error| DecodeError::wire(message, error))?;
        Ok(Self { message, reduced, cursor, relation })
    }

    pub(super) fn relation(&self) -> u32 {
        self.relation
    }

    /// Reads the mark of a new row.
    pub(super) fn expect_new(&mut self) -> Result<(), DecodeError> {
        match self.mark()? {
            b'N' => Ok(()),
            _ => Err(self.malformed("a new row was due")),
        }
    }

    /// Reads the mark of an old row.
    pub(super) fn expect_old(&mut self) -> Result<OldImage, DecodeError> {
        match self.mark()? {
            b'K' => Ok(OldImage::Key),
            b'O' => Ok(OldImage::Full),
            _ => Err(self.malformed("an old row was due")),
        }
    }

    /// Reads the old row, if one comes, and the mark of the new one.
    pub(super) fn old_or_new(&mut self) -> Result<Option<(OldImage, Range<usize>)>, DecodeError> {
        let image = match self.mark()? {
            b'N' => return Ok(None),
            b'K' => OldImage::Key,
            b'O' => OldImage::Full,
            _ => return Err(self.malformed("a row was due")),
        };
        let range = self.tuple()?;
        self.expect_new()?;
        Ok(Some((image, range)))
    }

    /// Where the tuple lies that ends the message.
    pub(super) fn last_tuple(mut self) -> Result<Range<usize>, DecodeError> {
        let range = self.tuple()?;
        self.cursor.end().map_err(|error| DecodeError::wire(self.message, error))?;
        Ok(range)
    }

    /// Checks one tuple: the count, the kind of each value, the length of each text.
    fn tuple(&mut self) -> Result<Range<usize>, DecodeError> {
        let start = self.cursor.offset();
        let wire = |error| DecodeError::wire(self.message, error);
        let count = self.cursor.u16().map_err(wire)?;
        for _ in 0..count {
            match self.cursor.u8().map_err(wire)? {
                b't' => {
                    let length = self.cursor.length().map_err(wire)?;
                    self.cursor.take(length).map_err(wire)?;
                }
                b'n' | b'u' => {}
                TOO_LARGE if self.reduced => drop(self.cursor.u32().map_err(wire)?),
                b'b' => return Err(self.binary()),
                _ => return Err(self.malformed("unknown kind of value")),
            }
        }
        Ok(start..self.cursor.offset())
    }

    fn mark(&mut self) -> Result<u8, DecodeError> {
        self.cursor.u8().map_err(|error| DecodeError::wire(self.message, error))
    }

    #[cold]
    fn malformed(&self, what: &'static str) -> DecodeError {
        DecodeError::Malformed { message: self.message, offset: self.cursor.offset().saturating_sub(1), what }
    }

    #[cold]
    fn binary(&self) -> DecodeError {
        let offset = self.cursor.offset().saturating_sub(1);
        DecodeError::Unsupported { message: self.message, offset, what: "binary values were not asked for" }
    }
}

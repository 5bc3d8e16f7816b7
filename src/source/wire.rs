//! A bounded cursor over bytes from outside: it cannot panic, and it allocates nothing.
//!
//! Every read checks what is left first. A failed read leaves the cursor where it was and says at which byte of the
//! message it stood, so that a decoder can name the place. Numbers are big-endian, strings end in a zero byte (manual
//! page "Message Data Types").
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

/// Why a read failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes end before the value does.
    #[error("the bytes end early: at byte {offset}, {needed} more were due")]
    Incomplete {
        /// Where the value starts or its bytes run out, from the start of the message.
        offset: usize,
        /// At least so many bytes are missing.
        needed: usize,
    },
    /// The message goes on after its last value.
    #[error("{left} bytes are left over at byte {offset}")]
    LeftOver {
        /// Where the message should have ended.
        offset: usize,
        /// How many bytes follow.
        left: usize,
    },
}

/// Reads values one after another.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
    length: usize,
}

impl<'a> Cursor<'a> {
    /// A cursor at the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, length: bytes.len() }
    }

    /// Bytes read so far.
    pub fn offset(&self) -> usize {
        self.length.saturating_sub(self.rest.len())
    }

    /// The bytes not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return Err(self.incomplete(count));
        };
        self.rest = rest;
        Ok(taken)
    }

    /// The next byte.
    ///
    /// # Errors
    /// At the end.
    pub fn u8(&mut self) -> Result<u8, WireError> {
        self.array::<1>().map(u8::from_be_bytes)
    }

    /// A number of two bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_be_bytes)
    }

    /// A number of four bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    /// A signed number of four bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn i32(&mut self) -> Result<i32, WireError> {
        self.array().map(i32::from_be_bytes)
    }

    /// A number of eight bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A signed number of eight bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn i64(&mut self) -> Result<i64, WireError> {
        self.array().map(i64::from_be_bytes)
    }

    /// A number of four bytes as a length.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn length(&mut self) -> Result<usize, WireError> {
        self.u32().map(|length| usize::try_from(length).unwrap_or(usize::MAX))
    }

    /// The bytes up to the next zero byte, which is read and left out.
    ///
    /// # Errors
    /// When there is no zero byte.
    pub fn cstr(&mut self) -> Result<&'a [u8], WireError> {
        let Some(end) = memchr::memchr(0, self.rest) else {
            return Err(WireError::Incomplete { offset: self.length, needed: 1 });
        };
        let text = self.take(end)?;
        self.u8()?;
        Ok(text)
    }

    /// Refuses bytes after the last value.
    ///
    /// # Errors
    /// When bytes are left.
    pub fn end(&self) -> Result<(), WireError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(WireError::LeftOver { offset: self.offset(), left }),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let Some((taken, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(self.incomplete(N));
        };
        self.rest = rest;
        Ok(*taken)
    }

    #[cold]
    fn incomplete(&self, wanted: usize) -> WireError {
        WireError::Incomplete { offset: self.offset(), needed: wanted.saturating_sub(self.rest.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_in_order_and_the_end_is_checked() {
        let mut cursor = Cursor::new(b"\x01\0\x02\0\0\0\x03ab\0\xff\xff\xff\xff\xff\xff\xff\xfex");
        assert_eq!((cursor.u8(), cursor.u16(), cursor.u32()), (Ok(1), Ok(2), Ok(3)));
        assert_eq!((cursor.cstr(), cursor.i64()), (Ok(&b"ab"[..]), Ok(-2)));
        assert_eq!(cursor.end(), Err(WireError::LeftOver { offset: 18, left: 1 }));
        assert_eq!(cursor.take(1), Ok(&b"x"[..]));
        assert_eq!(cursor.end(), Ok(()));
    }

    #[test]
    fn a_short_read_names_the_place_and_moves_nothing() {
        let mut cursor = Cursor::new(b"abc");
        assert_eq!(cursor.u8(), Ok(b'a'));
        assert_eq!(cursor.u32(), Err(WireError::Incomplete { offset: 1, needed: 2 }));
        assert_eq!(cursor.take(usize::MAX), Err(WireError::Incomplete { offset: 1, needed: usize::MAX - 2 }));
        assert_eq!(cursor.cstr(), Err(WireError::Incomplete { offset: 3, needed: 1 }));
        assert_eq!(cursor.rest(), b"bc");
    }
}

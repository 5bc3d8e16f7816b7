//! The values of a row, in the bytes in which they came.

use bytes::Bytes;

/// The values of one row, as validated pgoutput TupleData bytes (2 bytes count, then per column a kind byte and, for
/// text, 4 bytes length and the text; for a value that was too large to be taken in, its length alone). Made by
/// `source::pgoutput` only.
#[derive(Clone, Debug)]
pub struct Tuple(pub(crate) Bytes);

/// One column's value in a [`Tuple`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datum<'a> {
    /// SQL NULL.
    Null,
    /// An unchanged TOASTed value that was not sent.
    Unchanged,
    /// A value that was not taken in because the change is larger than `limits.max_message`: bytes of its text.
    TooLarge(u32),
    /// The value's text.
    Text(&'a [u8]),
}

/// The kind byte of [`Datum::TooLarge`], followed by 4 bytes length. It is walhook's own: never taken from the wire.
pub(crate) const TOO_LARGE: u8 = b'x';

impl Tuple {
    /// A tuple of these values: rows that do not come from the stream, such as a backfill's.
    ///
    /// # Panics
    /// If there are more than 65,535 values or one has 4 GiB; Postgres allows 1,600 columns and values of 1 GiB.
    pub fn from_values(values: &[Datum<'_>]) -> Self {
        let count = u16::try_from(values.len()).expect("a Postgres table has at most 1,600 columns");
        let mut bytes = count.to_be_bytes().to_vec();
        for value in values {
            match value {
                Datum::Null => bytes.push(b'n'),
                Datum::Unchanged => bytes.push(b'u'),
                Datum::TooLarge(length) => {
                    bytes.push(TOO_LARGE);
                    bytes.extend_from_slice(&length.to_be_bytes());
                }
                Datum::Text(text) => {
                    let length = u32::try_from(text.len()).expect("a Postgres value has at most 1 GiB");
                    bytes.push(b't');
                    bytes.extend_from_slice(&length.to_be_bytes());
                    bytes.extend_from_slice(text);
                }
            }
        }
        Self(Bytes::from(bytes))
    }

    /// The values in column order. The bytes were validated when the tuple was made, so this cannot fail; it yields as
    /// many items as the tuple has columns.
    pub fn values(&self) -> Values<'_> {
        Values { rest: self.0.get(2..).unwrap_or(&[]) }
    }

    /// The value of column `index`, if the tuple has so many.
    pub fn value(&self, index: usize) -> Option<Datum<'_>> {
        self.values().nth(index)
    }

    /// How many columns it has values for.
    pub fn columns(&self) -> usize {
        self.0.first_chunk::<2>().map_or(0, |count| usize::from(u16::from_be_bytes(*count)))
    }

    /// Size on the wire, bytes.
    pub fn len_bytes(&self) -> usize {
        self.0.len()
    }
}

/// See [`Tuple::values`].
#[derive(Clone, Debug)]
pub struct Values<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Values<'a> {
    type Item = Datum<'a>;

    fn next(&mut self) -> Option<Datum<'a>> {
        let (&kind, rest) = self.rest.split_first()?;
        self.rest = rest;
        match kind {
            b'n' => Some(Datum::Null),
            b'u' => Some(Datum::Unchanged),
            TOO_LARGE => {
                let (length, rest) = self.rest.split_first_chunk::<4>()?;
                self.rest = rest;
                Some(Datum::TooLarge(u32::from_be_bytes(*length)))
            }
            _ => {
                let (length, rest) = self.rest.split_first_chunk::<4>()?;
                let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
                let (text, rest) = rest.split_at_checked(length)?;
                self.rest = rest;
                Some(Datum::Text(text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_yields_its_values_in_order() {
        let tuple = Tuple(Bytes::from_static(b"\0\x03nut\0\0\0\x02hi"));
        let values: Vec<_> = tuple.values().collect();
        assert_eq!(values, [Datum::Null, Datum::Unchanged, Datum::Text(b"hi")]);
    }
}

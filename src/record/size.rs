//! How large a message may become, known without rendering it, so that a body keeps its bound.
//!
//! A bound from the length of the row's values alone is enough for most rows. Where it does not fit, the values are looked
//! through for what makes JSON longer than text: characters to escape, and the member names of row types.

use super::Rendering;
use super::kind::Kind;
use crate::change::{Change, Column, Datum, Row, Tuple};

/// Brackets, names of members, numbers, ids and times of a message, with something to spare.
const FRAME_BYTES: usize = 448;
/// A byte of text becomes at most `\u0000`, and a boolean's letter at most `false`.
const BYTES_A_BYTE: usize = 6;
/// Quotes, a comma, `null`, the offset of a time, a boolean's word.
pub(super) const BYTES_A_VALUE: usize = 12;

impl Rendering {
    /// Bytes that the message of `change` takes in a body at most, its comma included. A bound of up to `enough` is not
    /// made any tighter.
    pub fn body_bytes_max(&self, change: &Change, enough: usize) -> usize {
        let table = &change.table;
        let keys: usize = table.keys.columns.iter().map(|key| key.len() + BYTES_A_VALUE).sum();
        let annotations = change.annotations.as_ref().map_or(0, |text| text.len());
        // The old image fills unchanged values of the record as well as `changes`; names may stand in `unchanged` too.
        let names = keys.saturating_mul(3) + table.keys.metadata.len() + self.fixed_bytes();
        let content = match &change.row {
            Row::Message { content } => value_bytes_max(&Kind::Json, content),
            Row::Insert { .. } | Row::Update { .. } | Row::Delete { .. } | Row::Read { .. } | Row::Truncate => 0,
        };
        let fixed = FRAME_BYTES + names + annotations + content;
        let images = || change.new_tuple().into_iter().chain(change.old_row().map(|old| old.tuple()));
        let values: usize = images().map(Tuple::len_bytes).sum();
        let loose = fixed.saturating_add(values.saturating_mul(2 * BYTES_A_BYTE));
        if loose <= enough && !table.columns.iter().any(|column| column.kind.member_name_bytes() > 0) {
            return loose;
        }
        let tight: usize = images().map(|tuple| tuple_bytes(tuple, &table.columns)).sum();
        fixed.saturating_add(tight.saturating_mul(2))
    }
}

fn tuple_bytes(tuple: &Tuple, columns: &[Column]) -> usize {
    let values = tuple.values().zip(columns);
    values.fold(0, |sum: usize, (value, column)| sum.saturating_add(value_bytes(value, &column.kind)))
}

fn value_bytes(value: Datum<'_>, kind: &Kind) -> usize {
    match value {
        Datum::Null | Datum::Unchanged | Datum::TooLarge(_) => 0,
        Datum::Text(text) => text_bytes(text, kind),
    }
}

/// Bytes that the JSON of `text`, a value of `kind`, takes at most.
pub fn value_bytes_max(kind: &Kind, text: &[u8]) -> usize {
    text_bytes(text, kind).saturating_add(BYTES_A_VALUE)
}

fn text_bytes(text: &[u8], kind: &Kind) -> usize {
    match kind {
        Kind::Bool | Kind::Int | Kind::BigInt | Kind::Float | Kind::Numeric | Kind::Json => escaped_bytes(text),
        Kind::Timestamp | Kind::TimestampTz | Kind::Text => escaped_bytes(text),
        // Elements gain quotes, letters become words, and text is escaped at most once more than it was.
        Kind::IntVector | Kind::OidVector | Kind::Array(_) | Kind::Hstore | Kind::Composite(_) => {
            let opened = text.iter().filter(|byte| **byte == b'(').count();
            let names = kind.member_name_bytes().saturating_mul(opened);
            text.len().saturating_mul(BYTES_A_BYTE).saturating_add(names)
        }
    }
}

/// Length as a JSON string. Bytes outside of ASCII may be invalid and become U+FFFD, three bytes each.
fn escaped_bytes(text: &[u8]) -> usize {
    let extra = |byte: &u8| match byte {
        0..0x20 => 5,
        b'"' | b'\\' => 1,
        0x80.. => 2,
        _ => 0,
    };
    text.len() + text.iter().map(extra).sum::<usize>()
}

impl Kind {
    /// Bytes of all member names that one value of a row type may spell out, nested ones included; 0 for other kinds.
    pub(super) fn member_name_bytes(&self) -> usize {
        match self {
            Self::Composite(composite) => composite.name_bytes,
            Self::Array(array) => array.element.member_name_bytes(),
            Self::Text | Self::Bool | Self::Int | Self::BigInt | Self::Float | Self::Numeric | Self::Json => 0,
            Self::Timestamp | Self::TimestampTz | Self::IntVector | Self::OidVector | Self::Hstore => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_counted_as_they_are_written() {
        for text in ["", "plain", "quote \" and \\", "\n\t\u{1}", "ümläut"] {
            let mut out = Vec::new();
            crate::record::append_value(&mut out, &Kind::Text, text.as_bytes(), crate::config::Numbers::Json);
            assert!(out.len() <= escaped_bytes(text.as_bytes()) + 2, "{text:?}");
        }
    }
}

//! How large a message may become, known before it is rendered, so that a body keeps its bound.

use super::Rendering;
use super::kind::Kind;
use crate::change::{Change, Tuple};

/// Brackets, names of members, numbers, ids and times of a message, with something to spare.
const FRAME_BYTES: usize = 512;
/// A byte of text becomes at most `\u0000`, and a boolean's letter at most `false`.
const BYTES_A_BYTE: usize = 6;
/// Quotes, a comma, `null`, the offset of a time.
const BYTES_A_VALUE: usize = 12;

impl Rendering {
    /// Bytes that the message of `change` takes in a body, its comma included: an upper bound if `enough` such messages fit
    /// below it, else the exact number, for which it is rendered once into `scratch`.
    pub fn body_bytes(&self, change: &Change, fits: usize, scratch: &mut Vec<u8>) -> usize {
        if let Some(bound) = self.bound(change).filter(|bound| *bound <= fits) {
            return bound;
        }
        scratch.clear();
        self.append(change, scratch);
        scratch.len() + 1
    }

    /// `None` where the text says too little: a row type names its members in every value.
    fn bound(&self, change: &Change) -> Option<usize> {
        let table = &change.table;
        if table.columns.iter().any(|column| names_members(&column.kind)) {
            return None;
        }
        let keys: usize = table.keys.columns.iter().map(|key| key.len() + BYTES_A_VALUE).sum();
        // The record, `changes`, and the names of unchanged columns.
        let names = keys.saturating_mul(3) + table.keys.metadata.len() + self.fixed_bytes();
        let images = change.new_tuple().map_or(0, Tuple::len_bytes).saturating_mul(2)
            + change.old_row().map_or(0, |old| old.tuple().len_bytes()).saturating_mul(2);
        let annotations = change.annotations.as_ref().map_or(0, |text| text.len());
        Some(FRAME_BYTES + names + images.saturating_mul(BYTES_A_BYTE) + annotations)
    }
}

fn names_members(kind: &Kind) -> bool {
    match kind {
        Kind::Composite(_) => true,
        Kind::Array(array) => names_members(&array.element),
        Kind::Text | Kind::Bool | Kind::Int | Kind::BigInt | Kind::Float | Kind::Numeric | Kind::Json => false,
        Kind::Timestamp | Kind::TimestampTz | Kind::IntVector | Kind::OidVector | Kind::Hstore => false,
    }
}

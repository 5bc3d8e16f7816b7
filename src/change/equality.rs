//! When two values of a column are one value to Postgres, as far as their texts tell.

use super::canonical::Form;

/// What the texts of two values of a column say about whether Postgres calls the values equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Equality {
    /// Equal values have the same text.
    Text,
    /// Equal values have the same canonical form, and differing values have different ones.
    Canonical(Form),
    /// Nothing: equal values may have any texts.
    Unknown,
    /// Nothing that counts: the key is WITHOUT OVERLAPS, and its last column tells apart only rows whose other columns are equal.
    /// These are what groups are made of.
    Overlap,
}

impl Equality {
    /// The equality of arrays and ranges of such values, which compare element by element or bound by bound.
    pub fn within(self) -> Self {
        match self {
            Self::Text => Self::Text,
            Self::Canonical(form) => form.within().map_or(Self::Unknown, Self::Canonical),
            Self::Unknown | Self::Overlap => Self::Unknown,
        }
    }
}

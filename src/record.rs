//! Postgres text to JSON as `to_jsonb` gives it, and the message.
pub mod message;

/// How a column's text becomes JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A JSON string of the text.
    Text,
}

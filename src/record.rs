//! Postgres text to JSON as `to_jsonb` gives it, and the message.
//!
//! In flows the text of a value as the session's settings shape it (`DateStyle=ISO`, `TimeZone=UTC`,
//! `IntervalStyle=postgres`, `extra_float_digits=3`, `bytea_output=hex`) with the [`Kind`] of its column; out flows JSON,
//! appended to the body's buffer with no tree of values in between. A [`Rendering`] puts a whole change into the form that
//! its sink sends.
//!
//! Nothing here fails: text that a kind does not understand becomes a JSON string of that text, and is counted.
//! Floats keep the exponent of their text (`1e+300`), where jsonb writes the same number out in full.

mod builtin;
mod datetime;
mod escape;
mod keys;
mod kind;
pub mod message;
mod nested;
#[cfg(test)]
mod oracle;
mod size;
mod value;

pub use builtin::array_element;
pub use keys::TableKeys;
pub use kind::{ArrayKind, CompositeKind, Field, Kind, TypeFacts};
pub use message::{MessageId, Rendering, RenderingSettings};
pub use size::value_bytes_max;
pub use value::append_value;

//! Logical messages of walhook's own: what annotates the rest of a transaction.

use std::sync::Arc;

/// `prefix` of a message whose JSON content annotates the rest of its transaction.
const SET: &[u8] = b"walhook:transaction_annotations.set";
/// `prefix` of one that ends the annotation.
const CLEAR: &[u8] = b"walhook:transaction_annotations.clear";

/// Bytes of an annotation at most; every message of the transaction carries it.
pub(super) const BYTES_MAX: usize = 16 << 10;

/// What such a message says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// This JSON annotates what follows.
    Set(Arc<str>),
    /// The annotation is too large; a JSON string that says so stands in its place.
    SetTooLarge {
        /// That string.
        text: Arc<str>,
        /// Of the annotation.
        bytes: usize,
    },
    /// What follows has no annotation.
    Clear,
    /// Nothing that concerns annotations.
    Other,
}

/// Reads a message. `reduced_from` is its size where its content was left out as too large.
pub(super) fn read(prefix: &[u8], content: &[u8], reduced_from: Option<usize>) -> Word {
    if prefix == CLEAR {
        return Word::Clear;
    }
    if prefix != SET {
        return Word::Other;
    }
    let bytes = reduced_from.unwrap_or(content.len());
    if bytes > BYTES_MAX {
        let said = format!("annotation of {bytes} bytes left out: {BYTES_MAX} are allowed");
        return Word::SetTooLarge { text: serde_json::Value::String(said).to_string().into(), bytes };
    }
    Word::Set(json(content))
}

/// The content if it is JSON, else a JSON string of it.
fn json(content: &[u8]) -> Arc<str> {
    let text = String::from_utf8_lossy(content);
    if serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok() {
        return text.into();
    }
    serde_json::Value::String(text.into_owned()).to_string().into()
}

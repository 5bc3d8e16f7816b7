//! Pure: what a rendered message says was left out of it. That stands at the end of its `metadata`, so that a look at the
//! last bytes is enough for messages of which nothing was.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The columns that were too large, and the bytes of their text; `None`: the message is whole. Such a message is a dead letter from
/// the beginning, wherever it comes from.
pub fn too_large(message: &[u8]) -> Option<BTreeMap<String, u64>> {
    #[derive(Deserialize)]
    struct Message {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        too_large: Option<BTreeMap<String, u64>>,
    }
    if !message.ends_with(b"}}}") {
        return None;
    }
    memchr::memmem::rfind(message, b",\"too_large\":{")?;
    // A message that cannot be read is none of ours; it is sent as it is.
    serde_json::from_slice::<Message>(message).ok()?.metadata.too_large
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_metadata_itself_says_counts() {
        let says = |message: &str| too_large(message.as_bytes());
        assert_eq!(says(r#"{"record":{"id":1},"metadata":{"a":null,"too_large":{}}}"#), Some(BTreeMap::new()));
        let two = says(r#"{"record":{},"metadata":{"a":null,"too_large":{"b":70000,"a \"":4294967295}}}"#).unwrap();
        assert_eq!(two, BTreeMap::from([("a \"".to_owned(), 4_294_967_295), ("b".to_owned(), 70_000)]));
        for whole in [
            r#"{"record":{"id":1},"metadata":{"a":null}}"#,
            r#"{"record":{"id":1},"metadata":{"transaction_annotations":{"a":1}}}"#,
            r#"{"record":{"id":1},"metadata":{"transaction_annotations":{"a":1,"too_large":{"b":1}}}}"#,
            r#"{"record":{"id":{"a":1,"too_large":{"b":1}}},"metadata":{"transaction_annotations":{}}}"#,
            r#"{"metadata":{},"record":{"a":{"b":1,"too_large":{}}}}"#,
            "",
            "}}}",
        ] {
            assert_eq!(says(whole), None, "{whole}");
        }
    }
}

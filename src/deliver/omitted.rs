//! Pure: what a rendered message says was left out of it. That stands at the end of its `metadata`, so that a look at the
//! last bytes is enough for messages of which nothing was.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::change::TableName;

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

/// What is known of a message out of which unchanged values were left.
#[derive(Debug, PartialEq, Eq)]
pub struct Unchanged {
    /// Its table.
    pub table: TableName,
    /// Where its record stands: a JSON object.
    pub record: Range<usize>,
    /// Names of the columns; at least one.
    pub columns: Vec<String>,
    /// Where their names begin to be said, the comma before it included.
    said_at: usize,
}

const RECORD: &[u8] = b"{\"record\":";
const UNCHANGED: &[u8] = b",\"unchanged\":";
/// The ends of `metadata` and of the message.
const ENDS: usize = 2;

/// What was left out of a message because it is unchanged, if anything was.
pub fn unchanged(message: &[u8]) -> Option<Unchanged> {
    #[derive(Deserialize)]
    struct Message<'m> {
        #[serde(borrow)]
        record: &'m RawValue,
        #[serde(borrow)]
        metadata: Metadata<'m>,
    }
    #[derive(Deserialize)]
    struct Metadata<'m> {
        table_schema: Option<String>,
        table_name: Option<String>,
        #[serde(borrow)]
        unchanged: Option<&'m RawValue>,
    }
    if !message.ends_with(b"]}}") {
        return None;
    }
    memchr::memmem::rfind(message, UNCHANGED)?;
    let Message { record, metadata } = serde_json::from_slice(message).ok()?;
    let said = metadata.unchanged?.get();
    let columns: Vec<String> = serde_json::from_str(said).ok()?;
    let said_at = message.len().checked_sub(ENDS + said.len() + UNCHANGED.len())?;
    let record = RECORD.len()..RECORD.len() + record.get().len();
    // The places follow from the way in which messages are written.
    let is_ours = message.starts_with(RECORD) && message.get(said_at..)?.starts_with(UNCHANGED);
    let is_object = message.get(record.clone())?.starts_with(b"{") && message.get(record.end - 1) == Some(&b'}');
    let table = TableName { schema: metadata.table_schema?, table: metadata.table_name? };
    (is_ours && is_object && !columns.is_empty()).then_some(Unchanged { table, record, columns, said_at })
}

impl Unchanged {
    /// How many bytes more a message has at most with this value of this column.
    pub fn bytes_more(&self, column: &str, json: &[u8]) -> usize {
        // The name stands before the value and once more among those that were fetched, whose list may have to be opened.
        let name = serde_json::Value::from(column).to_string().len();
        json.len() + 2 * (name + 2) + b",\"fetched\":[]".len()
    }

    /// Appends the message with these values, one for each of the columns: JSON, or `None` for one that stays away. The columns
    /// that come are named in `metadata.fetched`.
    pub fn append_filled(&self, message: &[u8], values: &[Option<Bytes>], out: &mut Vec<u8>) {
        let part = |range: Range<usize>| message.get(range).unwrap_or_default();
        let columns = || self.columns.iter().zip(values);
        out.extend_from_slice(part(0..self.record.end - 1));
        let mut mark: &[u8] = if self.record.len() == 2 { b"" } else { b"," };
        for (column, value) in columns() {
            if let Some(value) = value {
                out.extend_from_slice(mark);
                mark = b",";
                append_name(out, column);
                out.push(b':');
                out.extend_from_slice(value);
            }
        }
        out.extend_from_slice(part(self.record.end - 1..self.said_at));
        append_names(out, ",\"fetched\":", columns().filter(|(_, value)| value.is_some()).map(|(column, _)| column));
        append_names(out, ",\"unchanged\":", columns().filter(|(_, value)| value.is_none()).map(|(column, _)| column));
        out.extend_from_slice(b"}}");
    }
}

/// Nothing, if there are no names.
fn append_names<'a>(out: &mut Vec<u8>, key: &str, names: impl Iterator<Item = &'a String>) {
    let mut mark = b'[';
    for name in names {
        if mark == b'[' {
            out.extend_from_slice(key.as_bytes());
        }
        out.push(mark);
        mark = b',';
        append_name(out, name);
    }
    if mark == b',' {
        out.push(b']');
    }
}

fn append_name(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(serde_json::Value::from(name).to_string().as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(record: &str, unchanged: &str) -> String {
        format!(
            r#"{{"record":{record},"changes":null,"action":"update","metadata":{{"table_schema":"public","table_name":"docs","transaction_annotations":[1]{unchanged}}}}}"#
        )
    }

    fn filled(record: &str, unchanged: &str, values: &[Option<&'static str>]) -> String {
        let message = message(record, unchanged);
        let lacks = super::unchanged(message.as_bytes()).unwrap();
        assert_eq!(message.get(lacks.record.clone()), Some(record));
        let values: Vec<Option<Bytes>> =
            values.iter().map(|value| value.map(|value| Bytes::from_static(value.as_bytes()))).collect();
        let mut out = Vec::new();
        lacks.append_filled(message.as_bytes(), &values, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn fetched_values_stand_in_the_record_and_are_named() {
        let one = r#","unchanged":["bo \"dy"]"#;
        assert_eq!(
            filled(r#"{"id":1}"#, one, &[Some("[1]")]),
            message(r#"{"id":1,"bo \"dy":[1]}"#, r#","fetched":["bo \"dy"]"#)
        );
        assert_eq!(filled("{}", one, &[Some("null")]), message(r#"{"bo \"dy":null}"#, r#","fetched":["bo \"dy"]"#));
        assert_eq!(filled(r#"{"id":1}"#, one, &[None]), message(r#"{"id":1}"#, one));
        let two = r#","unchanged":["a","b"]"#;
        let half = r#","fetched":["b"],"unchanged":["a"]"#;
        assert_eq!(filled(r#"{"id":1}"#, two, &[None, Some("2")]), message(r#"{"id":1,"b":2}"#, half));
        let both = r#","fetched":["a","b"]"#;
        assert_eq!(filled(r#"{"id":1}"#, two, &[Some("1"), Some("2")]), message(r#"{"id":1,"a":1,"b":2}"#, both));
    }

    #[test]
    fn what_lacks_nothing_is_left_alone() {
        for (record, end) in [
            (r#"{"id":1}"#, ""),
            (r#"{"id":{"a":1,"unchanged":["x"]}}"#, ""),
            ("null", r#","unchanged":["a"]"#),
            ("{}", r#","unchanged":[]"#),
            ("{}", r#","unchanged":["a"],"too_large":{"b":1}"#),
        ] {
            assert_eq!(unchanged(message(record, end).as_bytes()), None, "{record} {end}");
        }
        for broken in ["", "]}}", r#"{"metadata":{"table_schema":"a","table_name":"b","unchanged":["a"]}}"#] {
            assert_eq!(unchanged(broken.as_bytes()), None, "{broken}");
        }
    }

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

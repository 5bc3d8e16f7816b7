//! What a request's body holds, as far as a line about it needs; values stay the bytes that were sent.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// One message of a body. What it lacks is `None`.
#[derive(Debug, serde::Deserialize)]
pub struct Message<'a> {
    /// insert, update, delete, read, truncate, message; a sink with `message = "row"` sends none.
    #[serde(borrow, default)]
    pub action: Option<Cow<'a, str>>,
    /// The row, or the content of a logical message; `None` of a truncate.
    #[serde(borrow, default)]
    pub record: Option<&'a RawValue>,
    /// Previous values of what changed.
    #[serde(borrow, default)]
    pub changes: Option<Columns<'a>>,
    /// Where it comes from.
    #[serde(borrow, default)]
    pub metadata: Option<Metadata<'a>>,
}

/// A part of a message's `metadata`.
#[derive(Debug, serde::Deserialize)]
pub struct Metadata<'a> {
    /// Schema.
    #[serde(borrow, default)]
    pub table_schema: Option<Cow<'a, str>>,
    /// Table.
    #[serde(borrow, default)]
    pub table_name: Option<Cow<'a, str>>,
    /// Prefix of a logical message, which has no table.
    #[serde(borrow, default)]
    pub prefix: Option<Cow<'a, str>>,
}

impl Metadata<'_> {
    /// `schema.table`, or a logical message's prefix.
    pub fn table(&self) -> String {
        if let Some(prefix) = &self.prefix {
            return prefix.clone().into_owned();
        }
        let schema = self.table_schema.as_deref().unwrap_or_default();
        format!("{schema}.{}", self.table_name.as_deref().unwrap_or_default())
    }
}

/// Columns in the order in which they were sent.
#[derive(Debug)]
pub struct Columns<'a>(pub Vec<(String, &'a RawValue)>);

impl<'a> Columns<'a> {
    /// The members of an object; `None` if it is something else.
    pub fn of(value: &'a RawValue) -> Option<Self> {
        serde_json::from_str(value.get()).ok()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Columns<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ordered;
        impl<'de> Visitor<'de> for Ordered {
            type Value = Columns<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of columns")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut columns = Vec::new();
                while let Some(column) = map.next_entry()? {
                    columns.push(column);
                }
                Ok(Columns(columns))
            }
        }
        deserializer.deserialize_map(Ordered)
    }
}

#[derive(serde::Deserialize)]
struct Batch<'a> {
    #[serde(borrow)]
    data: Vec<&'a RawValue>,
}

/// The messages of a body in one of its three forms; an error if it is not JSON. What is JSON but no body of ours is
/// one message.
pub fn messages(body: &[u8]) -> Result<Vec<&RawValue>, serde_json::Error> {
    if let Ok(batch) = serde_json::from_slice::<Batch<'_>>(body) {
        return Ok(batch.data);
    }
    if let Ok(array) = serde_json::from_slice::<Vec<&RawValue>>(body) {
        return Ok(array);
    }
    serde_json::from_slice::<IgnoredAny>(body)?;
    Ok(vec![serde_json::from_slice(body)?])
}

/// A message read, as far as it is one.
pub fn read(raw: &RawValue) -> Option<Message<'_>> {
    serde_json::from_str(raw.get()).ok()
}

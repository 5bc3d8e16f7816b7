//! The parts of a message that are the same for every change of a table.

use super::escape::append_string;
use crate::change::{Column, TableName};

/// A table's names as JSON, made once when the table is.
#[derive(Clone, Debug)]
pub struct TableKeys {
    /// `"name":` of each column, in their order.
    pub(super) columns: Vec<Box<[u8]>>,
    /// `{"table_schema":"…","table_name":"…"`, the beginning of `metadata`.
    pub(super) metadata: Box<[u8]>,
}

impl TableKeys {
    /// Of a table with this name and these columns.
    pub fn new(name: &TableName, columns: &[Column]) -> Self {
        let mut metadata = b"{\"table_schema\":".to_vec();
        append_string(&mut metadata, name.schema.as_bytes());
        metadata.extend_from_slice(b",\"table_name\":");
        append_string(&mut metadata, name.table.as_bytes());
        let columns = columns.iter().map(|column| json_key(&column.name)).collect();
        Self { columns, metadata: metadata.into() }
    }

    /// Of logical messages with this prefix, which have no table.
    pub fn of_messages(prefix: &str) -> Self {
        let mut metadata = b"{\"table_schema\":null,\"table_name\":null,\"prefix\":".to_vec();
        append_string(&mut metadata, prefix.as_bytes());
        Self { columns: Vec::new(), metadata: metadata.into() }
    }
}

/// `"name":`, escaped.
pub(super) fn json_key(name: &str) -> Box<[u8]> {
    let mut key = Vec::with_capacity(name.len() + 3);
    append_string(&mut key, name.as_bytes());
    key.push(b':');
    key.into()
}

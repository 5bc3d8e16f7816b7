//! What flows through walhook: one committed row change and the facts needed to route and render it.
//!
//! The source builds a [`Change`] from one pgoutput frame; sinks clone it (a handful of reference counts), group it,
//! and render it in the delivery's own task. Row values stay the bytes Postgres sent, sliced from what was read.

mod canonical;
mod equality;
mod tuple;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

pub use self::canonical::Form;
pub use self::equality::Equality;
pub(crate) use self::tuple::TOO_LARGE;
pub use self::tuple::{Datum, Tuple, Values};
use crate::record::{Kind, TableKeys};

/// A position in the write-ahead log, in bytes since the cluster was made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The LSN before everything; Postgres never writes a record there.
    pub const ZERO: Self = Self(0);

    /// Bytes of WAL from `earlier` to `self`; zero if `earlier` is not earlier.
    pub fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The form of `pg_lsn`: two hexadecimal halves, `16/B374D848`.
impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text was not an LSN of the form `16/B374D848`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an LSN of the form 16/B374D848")]
pub struct ParseLsnError(String);

impl std::str::FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseLsnError(text.to_owned());
        let (high, low) = text.split_once('/').ok_or_else(bad)?;
        let half = |digits: &str| match digits.len() {
            1..=8 if digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
                u64::from_str_radix(digits, 16).map_err(|_| bad())
            }
            _ => Err(bad()),
        };
        Ok(Self(half(high)? << 32 | half(low)?))
    }
}

/// Where a change stands in the order of commits: the transaction's commit LSN, then the change's place in it from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// LSN of the commit record (`final_lsn` of BEGIN), the same at every replay.
    pub commit_lsn: Lsn,
    /// 1 for the transaction's first row change, then 2, 3, ….
    pub index: u64,
}

/// What a person calls the kind of change, and the `action` of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A new row.
    Insert,
    /// A changed row.
    Update,
    /// A removed row.
    Delete,
    /// A row that already existed, read by a backfill.
    Read,
    /// A table was emptied.
    Truncate,
    /// What `pg_logical_emit_message` wrote in a transaction: an event without a table.
    Message,
}

impl Action {
    /// The word used in messages, config and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Read => "read",
            Self::Truncate => "truncate",
            Self::Message => "message",
        }
    }
}

/// All actions, in the order of [`Table::events`].
const ACTIONS: [Action; 6] =
    [Action::Insert, Action::Update, Action::Delete, Action::Read, Action::Truncate, Action::Message];

/// `schema.table`, both as the catalogue has them (no quotes, case kept).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// Schema.
    pub schema: String,
    /// Table.
    pub table: String,
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

/// What Postgres logs of the old row (`ALTER TABLE … REPLICA IDENTITY`, manual page "ALTER TABLE").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplicaIdentity {
    /// `d`: the primary key's columns, when they changed.
    Default,
    /// `n`: nothing.
    Nothing,
    /// `f`: the whole old row.
    Full,
    /// `i`: the columns of a chosen unique index.
    Index,
}

/// One column of a [`Table`].
#[derive(Clone, Debug)]
pub struct Column {
    /// As the catalogue has it.
    pub name: String,
    /// `pg_type.oid`; from 16384 on it differs between clusters.
    pub type_oid: u32,
    /// `atttypmod`, or -1.
    pub type_modifier: i32,
    /// Flag 1 of the Relation message: part of the replica identity (of every column under FULL).
    pub in_identity: bool,
    /// How its text becomes JSON.
    pub kind: Kind,
    /// What its texts say about equal values.
    pub equality: Equality,
    /// What the texts rest on beside the type (attributes of row types, the locale of money), the same for the same; 0 for
    /// nothing.
    pub shape: u64,
    /// The transaction that altered last what the catalogue says of equal values: of rows of before that is not known.
    pub altered: Option<u32>,
}

/// A relation as one Relation message and the catalogue described it, valid until the next Relation message for it.
#[derive(Clone, Debug)]
pub struct Table {
    /// `pg_class.oid` of the relation under whose name changes are published (the root for partitions).
    pub oid: u32,
    /// Name.
    pub name: TableName,
    /// Replica identity.
    pub identity: ReplicaIdentity,
    /// In the order of the Relation message, which is the order of values in tuples.
    pub columns: Vec<Column>,
    /// Indexes into `columns` of the catalogue's primary key, in key order; empty if there is none.
    pub primary_key: Vec<usize>,
    /// Its names as JSON, computed from `name` and `columns` by [`Table::new`].
    pub keys: TableKeys,
    /// `schema.table.action` of every action, computed from `name` by [`Table::new`].
    pub events: [Arc<str>; 6],
}

impl Table {
    /// A table with all that is computed once for it.
    pub fn new(
        oid: u32,
        name: TableName,
        identity: ReplicaIdentity,
        columns: Vec<Column>,
        primary_key: Vec<usize>,
    ) -> Self {
        let keys = TableKeys::new(&name, &columns);
        let events = ACTIONS.map(|action| format!("{name}.{}", action.as_str()).into());
        Self { oid, name, identity, columns, primary_key, keys, events }
    }

    /// What stands in a table's place for logical messages with this prefix: no schema, no columns, the prefix as its name.
    /// Its event type is `PREFIX.message`.
    pub fn of_messages(prefix: &str) -> Self {
        let name = TableName { schema: String::new(), table: prefix.to_owned() };
        let keys = TableKeys::of_messages(prefix);
        let event: Arc<str> = format!("{prefix}.{}", Action::Message.as_str()).into();
        let events = ACTIONS.map(|_| Arc::clone(&event));
        let (columns, primary_key) = (Vec::new(), Vec::new());
        Self { oid: 0, name, identity: ReplicaIdentity::Nothing, columns, primary_key, keys, events }
    }

    /// The event type of such a change: `schema.table.action`.
    pub fn event(&self, action: Action) -> &Arc<str> {
        let [insert, update, delete, read, truncate, message] = &self.events;
        match action {
            Action::Insert => insert,
            Action::Update => update,
            Action::Delete => delete,
            Action::Read => read,
            Action::Truncate => truncate,
            Action::Message => message,
        }
    }
}

/// A committed transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// LSN of its commit record.
    pub commit_lsn: Lsn,
    /// Commit time, microseconds since 1970-01-01 UTC.
    pub commit_micros: i64,
    /// Transaction id on the server.
    pub xid: u32,
}

/// What Postgres sent of the row before the change.
#[derive(Clone, Debug)]
pub enum OldRow {
    /// `K`: the identity's columns; the others are NULL in the tuple and mean nothing.
    Key(Tuple),
    /// `O`: the whole row (REPLICA IDENTITY FULL).
    Full(Tuple),
}

impl OldRow {
    /// The tuple, whichever it is.
    pub fn tuple(&self) -> &Tuple {
        match self {
            Self::Key(tuple) | Self::Full(tuple) => tuple,
        }
    }
}

/// The row images of a change.
#[derive(Clone, Debug)]
pub enum Row {
    /// A new row.
    Insert {
        /// Its values.
        new: Tuple,
    },
    /// A changed row.
    Update {
        /// Before, if Postgres sent it.
        old: Option<OldRow>,
        /// After.
        new: Tuple,
    },
    /// A removed row.
    Delete {
        /// Before.
        old: OldRow,
    },
    /// A row read by a backfill.
    Read {
        /// Its values.
        new: Tuple,
    },
    /// All rows went at once.
    Truncate,
    /// A logical message.
    Message {
        /// What was written; it should be JSON.
        content: Bytes,
    },
}

/// One committed row change.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its transaction.
    pub transaction: Arc<Transaction>,
    /// Its place in the transaction, from 1.
    pub index: u64,
    /// Its table, as it was when the row was written.
    pub table: Arc<Table>,
    /// Its row images.
    pub row: Row,
    /// JSON of `walhook:transaction_annotations.set`, validated.
    pub annotations: Option<Arc<str>>,
    /// Bytes of the change as Postgres sent it, if that is more than `limits.max_message`: values are left out of it, and the
    /// content of a logical message, so that it cannot be delivered.
    pub oversize: Option<usize>,
    /// When walhook read it.
    pub received_at: Instant,
}

impl Change {
    /// Where it stands in the order of commits.
    pub fn position(&self) -> Position {
        Position { commit_lsn: self.transaction.commit_lsn, index: self.index }
    }

    /// Its action.
    pub fn action(&self) -> Action {
        match self.row {
            Row::Insert { .. } => Action::Insert,
            Row::Update { .. } => Action::Update,
            Row::Delete { .. } => Action::Delete,
            Row::Read { .. } => Action::Read,
            Row::Truncate => Action::Truncate,
            Row::Message { .. } => Action::Message,
        }
    }

    /// The row after the change, if there is one.
    pub fn new_tuple(&self) -> Option<&Tuple> {
        match &self.row {
            Row::Insert { new } | Row::Update { new, .. } | Row::Read { new } => Some(new),
            Row::Delete { .. } | Row::Truncate | Row::Message { .. } => None,
        }
    }

    /// The row before the change, as far as Postgres sent it.
    pub fn old_row(&self) -> Option<&OldRow> {
        match &self.row {
            Row::Update { old, .. } => old.as_ref(),
            Row::Delete { old } => Some(old),
            Row::Insert { .. } | Row::Read { .. } | Row::Truncate | Row::Message { .. } => None,
        }
    }

    /// Bytes of row values, or of a logical message, that it holds on to.
    pub fn len_bytes(&self) -> usize {
        if let Row::Message { content } = &self.row {
            return content.len();
        }
        self.new_tuple().map_or(0, Tuple::len_bytes) + self.old_row().map_or(0, |old| old.tuple().len_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_reads_and_prints_as_pg_lsn_does() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF", "0/16B3748"] {
            assert_eq!(text.parse::<Lsn>().unwrap().to_string(), text);
        }
        for text in ["", "/", "1", "1/", "/1", "1/123456789", "g/0", "+1/0", "1/0/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }
}

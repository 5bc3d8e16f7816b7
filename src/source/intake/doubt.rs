//! Row types that change in mid-stream. Adding an attribute to a type, or dropping one, makes the server send no Relation
//! message for the tables that have columns of it, so a value that its kind does not understand is what tells: the table
//! is looked up anew, at most once a second, before its row goes on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::change::{Datum, Table, Tuple};
use crate::config::Numbers;
use crate::record::append_value;
use crate::source::pgoutput::Message;

/// A value may be odd for good; then looking up again does not help.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// The tables whose columns hold row types.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    tables: HashMap<u32, Doubt>,
}

#[derive(Debug)]
struct Doubt {
    table: Arc<Table>,
    /// Places of the columns that hold row types.
    columns: Vec<usize>,
    asked: Option<Instant>,
}

impl Doubts {
    /// A new connection.
    pub(super) fn clear(&mut self) {
        self.tables.clear();
    }

    /// A table was described.
    pub(super) fn learn(&mut self, table: &Arc<Table>) {
        let places = table.columns.iter().enumerate().filter(|(_, column)| column.kind.holds_row_type());
        let columns: Vec<usize> = places.map(|(place, _)| place).collect();
        if columns.is_empty() {
            self.tables.remove(&table.oid);
            return;
        }
        let asked = self.tables.get(&table.oid).and_then(|doubt| doubt.asked);
        self.tables.insert(table.oid, Doubt { table: Arc::clone(table), columns, asked });
    }

    /// The table of the row, if the row does not fit its types and it was not asked about just now.
    pub(super) fn about(&mut self, message: &Message, now: Instant) -> Option<&Arc<Table>> {
        if self.tables.is_empty() {
            return None;
        }
        let (relation, tuple) = row(message)?;
        let doubt = self.tables.get_mut(&relation)?;
        let recently = doubt.asked.is_some_and(|asked| now.saturating_duration_since(asked) < ASK_EVERY);
        if recently || doubt.fits(tuple) {
            return None;
        }
        doubt.asked = Some(now);
        Some(&doubt.table)
    }
}

impl Doubt {
    fn fits(&self, tuple: &Tuple) -> bool {
        self.columns.iter().all(|place| match (tuple.value(*place), self.table.columns.get(*place)) {
            (Some(Datum::Text(text)), Some(column)) => {
                append_value(&mut Vec::new(), &column.kind, text, Numbers::Json) == 0
            }
            (Some(Datum::Null | Datum::Unchanged | Datum::TooLarge(_)) | None, _) | (_, None) => true,
        })
    }
}

/// Relation and values of a row: the new ones, where there are any.
fn row(message: &Message) -> Option<(u32, &Tuple)> {
    match message {
        Message::Insert { relation, new } | Message::Update { relation, new, .. } => Some((*relation, new)),
        Message::Delete { relation, old } => Some((*relation, old.tuple())),
        Message::Begin(_) | Message::Commit { .. } | Message::Origin { .. } | Message::Relation(_) => None,
        Message::Type(_) | Message::Truncate { .. } | Message::Logical { .. } => None,
    }
}

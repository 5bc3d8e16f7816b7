//! Tables that are to be looked up anew, before a row of theirs goes on.
//!
//! Row types change in mid-stream: adding an attribute to a type, or dropping one, makes the server send no Relation
//! message for the tables that have columns of it, so a value that its kind does not understand is what tells. Where the
//! look-up changes nothing the value is odd, and the next look-up comes a second later at the earliest.
//!
//! And the catalogue may be newer than the rows: a column was altered while changes were unread. What it says of equal values is
//! not believed of rows of before, and asked for again when a row comes that is not from before.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::change::{Datum, Equality, Table, Tuple};
use crate::config::Numbers;
use crate::record::append_value;
use crate::source::equality::shape::is_after;
use crate::source::pgoutput::Message;

/// A value may be odd for good; then looking up again does not help.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Takes back what the table's columns say of equal values where that was altered by the transaction that is read, or a later
/// one. Numbers of transactions follow their beginnings: of one that began before the alteration and came to the table
/// after it nothing is believed either; one that began after it and came to the table before it is not told.
pub(super) fn believe(table: &mut Table, reading: u32) {
    for column in &mut table.columns {
        column.altered = column.altered.filter(|altered| !is_after(reading, *altered));
        if column.altered.is_some() {
            column.equality = Equality::Unknown;
        }
    }
}

/// The tables whose columns hold row types, or were altered after their rows.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    tables: HashMap<u32, Doubt>,
}

#[derive(Debug)]
struct Doubt {
    table: Arc<Table>,
    /// Places of the columns that hold row types.
    columns: Vec<usize>,
    /// Transactions that altered columns, and of whose alterations the rows are from before.
    altered: Vec<u32>,
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
        let altered: Vec<u32> = table.columns.iter().filter_map(|column| column.altered).collect();
        if columns.is_empty() && altered.is_empty() {
            self.tables.remove(&table.oid);
            return;
        }
        let before = self.tables.get(&table.oid).filter(|before| before.is_the_same(table));
        let asked = before.and_then(|doubt| doubt.asked);
        self.tables.insert(table.oid, Doubt { table: Arc::clone(table), columns, altered, asked });
    }

    /// The table of the row, which the transaction `reading` wrote: if it is not from before an alteration any more, or does not
    /// fit its types and it was not asked about just now.
    pub(super) fn about(&mut self, message: &Message, reading: Option<u32>, now: Instant) -> Option<&Arc<Table>> {
        if self.tables.is_empty() {
            return None;
        }
        let (relation, tuple) = row(message)?;
        let doubt = self.tables.get_mut(&relation)?;
        if reading.is_some_and(|reading| doubt.altered.iter().any(|altered| is_after(reading, *altered))) {
            return Some(&doubt.table);
        }
        let recently = doubt.asked.is_some_and(|asked| now.saturating_duration_since(asked) < ASK_EVERY);
        if recently || doubt.fits(tuple) {
            return None;
        }
        doubt.asked = Some(now);
        Some(&doubt.table)
    }
}

impl Doubt {
    fn is_the_same(&self, table: &Table) -> bool {
        let kinds = |table: &Table| table.columns.iter().map(|column| column.kind.clone()).collect::<Vec<_>>();
        kinds(&self.table) == kinds(table)
    }

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

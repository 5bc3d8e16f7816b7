//! What a sink groups a table's rows by.

use crate::change::{Datum, Equality, Form, Table};
use crate::config::{GroupBy, SinkConfig};
use crate::ties::GroupId;

use super::{actions, append, table_hash};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Grouping {
    /// No order.
    None,
    /// The table is one group.
    Table(GroupId),
    /// These columns' texts, under the table's own seed.
    Columns { seed: u64, columns: Vec<Plain> },
    /// These columns' texts, some of them in their canonical form. Apart from the others so that a table whose equal values have
    /// equal texts pays nothing for it.
    Canonical { seed: u64, columns: Vec<Formed> },
    /// Logical messages: by the group that each names, or else all of their prefix.
    Messages(GroupId),
}

/// A column of a group: how its values become part of the group's key.
pub(super) trait Member {
    /// Its place in the rows.
    fn place(&self) -> usize;
    /// Appends the text that all equal values share, its length first.
    fn append(&self, key: &mut Vec<u8>, text: &[u8]);
}

/// A column whose equal values have the same text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plain(pub(super) usize);

impl Member for Plain {
    fn place(&self) -> usize {
        self.0
    }

    fn append(&self, key: &mut Vec<u8>, text: &[u8]) {
        append(key, text);
    }
}

/// A column, with the form in which equal values have the same text, unless they have it anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Formed {
    place: usize,
    form: Option<Form>,
}

impl Member for Formed {
    fn place(&self) -> usize {
        self.place
    }

    fn append(&self, key: &mut Vec<u8>, text: &[u8]) {
        let Some(form) = self.form else { return append(key, text) };
        let start = key.len();
        key.extend_from_slice(&[0; size_of::<u64>()]);
        form.append(key, text);
        let bytes = u64::try_from(key.len() - start - size_of::<u64>()).unwrap_or(u64::MAX);
        if let Some(length) = key.get_mut(start..start + size_of::<u64>()) {
            length.copy_from_slice(&bytes.to_le_bytes());
        }
    }
}

impl Grouping {
    /// What the sink's configuration makes of the table.
    ///
    /// Where old rows do not carry the group's columns, or the table has lost one, nothing finer than the whole table keeps the
    /// order. Starting with such a table is refused; this is for one that changes while it is read. The same where the text of a
    /// column does not tell which values are equal: two changes of one row might be in two groups.
    pub(super) fn of(table: &Table, sink: &SinkConfig) -> Self {
        let whole = || Self::Table(GroupId(table_hash(table)));
        match sink.group_rule(&table.name) {
            GroupBy::None => Self::None,
            GroupBy::Table => whole(),
            GroupBy::PrimaryKey if table.primary_key.is_empty() => whole(),
            GroupBy::PrimaryKey => Self::by(table, sink, &table.primary_key).unwrap_or_else(whole),
            GroupBy::Columns(names) => {
                let columns: Vec<usize> = names.iter().filter_map(|name| column_index(table, name)).collect();
                let all = (columns.len() == names.len()).then_some(columns);
                all.and_then(|columns| Self::by(table, sink, &columns)).unwrap_or_else(whole)
            }
        }
    }

    /// By these columns, if that keeps the order. One that a key compares by overlapping counts for nothing, unless there is no other.
    fn by(table: &Table, sink: &SinkConfig, places: &[usize]) -> Option<Self> {
        let taken = actions(sink);
        let overlaps = |place: &usize| table.columns.get(*place).is_some_and(|one| one.equality == Equality::Overlap);
        let places: Vec<usize> = places.iter().copied().filter(|place| !overlaps(place)).collect();
        if places.is_empty() {
            return None;
        }
        let columns = places.iter().map(|place| table.columns.get(*place)).collect::<Option<Vec<_>>>()?;
        if (taken.update || taken.delete) && !columns.iter().all(|column| column.in_identity) {
            return None;
        }
        let formed = |(place, equality)| match equality {
            Equality::Text => Some(Formed { place, form: None }),
            Equality::Canonical(form) => Some(Formed { place, form: Some(form) }),
            Equality::Unknown | Equality::Overlap => None,
        };
        let equalities = columns.iter().map(|column| column.equality);
        let columns: Vec<Formed> = places.iter().copied().zip(equalities).map(formed).collect::<Option<_>>()?;
        let seed = table_hash(table);
        if columns.iter().all(|column| column.form.is_none()) {
            return Some(Self::Columns { seed, columns: places.iter().copied().map(Plain).collect() });
        }
        Some(Self::Canonical { seed, columns })
    }

    /// The rule, the same text for the same grouping. The types of the columns belong to it: as another type a column's values
    /// have other texts, and thereby other groups. So do their forms.
    pub(super) fn text(&self, table: &Table) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::Table(_) => "table".to_owned(),
            Self::Messages(_) => "messages".to_owned(),
            Self::Columns { columns, .. } => texts(table, columns.iter().map(|column| (column.place(), None))),
            Self::Canonical { columns, .. } => texts(table, columns.iter().map(|column| (column.place, column.form))),
        }
    }

    /// The columns by which rows are grouped, and the form of each; `None` where rows have no groups of their own.
    pub(super) fn columns(&self) -> Option<Vec<(usize, Option<Form>)>> {
        match self {
            Self::None | Self::Table(_) | Self::Messages(_) => None,
            Self::Columns { columns, .. } => Some(columns.iter().map(|column| (column.place(), None)).collect()),
            Self::Canonical { columns, .. } => Some(columns.iter().map(|one| (one.place, one.form)).collect()),
        }
    }
}

fn texts(table: &Table, columns: impl Iterator<Item = (usize, Option<Form>)>) -> String {
    let typed = columns.filter_map(|(place, form)| {
        let column = table.columns.get(place)?;
        let form = form.map(|form| format!(":{}", form.word())).unwrap_or_default();
        let shape = if column.shape == 0 { String::new() } else { format!(":{:x}", column.shape) };
        Some(format!("{}:{}:{}{form}{shape}", column.name, column.type_oid, column.type_modifier))
    });
    format!("{:?}", typed.collect::<Vec<_>>())
}

fn column_index(table: &Table, name: &str) -> Option<usize> {
    table.columns.iter().position(|column| column.name == name)
}

/// A value's text for people, as it counts for the group.
pub(super) fn text(value: Option<Datum<'_>>, form: Option<Form>) -> Option<String> {
    match (value?, form) {
        (Datum::Text(text), Some(form)) => Some(form.text(text)),
        (Datum::Text(text), None) => Some(String::from_utf8_lossy(text).into_owned()),
        (Datum::Null | Datum::Unchanged | Datum::TooLarge(_), _) => None,
    }
}

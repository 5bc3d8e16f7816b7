//! Which sinks a table's changes go to, and in which groups.
//!
//! A [`Route`] is made once for a table and a sink when the table's Relation message comes; routing a row is then a loop
//! over the table's routes and a hash of the group's columns. What stands in a table's place for the logical messages of
//! a prefix has routes likewise; their group is in their content.

mod grouping;
mod member;

use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use self::grouping::{Grouping, Member, text};
use self::member::group_member;
use crate::change::{Action, Change, Datum, OldRow, Row, Table, Tuple};
use crate::config::{Actions, GroupBy, MessageForm, SinkConfig};
use crate::ties::{GroupId, Groups, ScopeId};

/// The seed of the groups that logical messages name themselves. No table's seed, but by a chance of one in 2^64.
const MESSAGES_SEED: u64 = 0x6D73_675F_6772_6F75;

/// Characters that are shown of a group which a logical message names.
const GROUP_CHARS_MAX: usize = 256;

/// How one sink takes one table's changes.
#[derive(Clone, Debug)]
pub struct Route {
    /// Index of the sink among the source's sinks.
    pub sink: usize,
    /// Of the table's name.
    pub scope: ScopeId,
    /// How rows are grouped, the same text for the same grouping.
    pub rule: Arc<str>,
    /// The group of the table as a whole.
    whole: GroupId,
    actions: Actions,
    grouping: Grouping,
}

/// The routes of a table, one for each sink that takes it.
pub fn routes(table: &Table, sinks: &[SinkConfig]) -> Vec<Route> {
    let takers = sinks.iter().enumerate().filter(|(_, sink)| sink.takes_table(&table.name));
    let scope = ScopeId::of_event(table.event(Action::Truncate));
    let whole = GroupId(table_hash(table));
    takers
        .map(|(index, sink)| {
            let grouping = Grouping::of(table, sink);
            let rule = grouping.text(table).into();
            Route { sink: index, scope, rule, whole, actions: actions(sink), grouping }
        })
        .collect()
}

/// The routes of a prefix's logical messages, one for each sink that takes them; `table` is [`Table::of_messages`].
pub fn message_routes(table: &Table, prefix: &str, sinks: &[SinkConfig]) -> Vec<Route> {
    let takers = sinks.iter().enumerate().filter(|(_, sink)| sink.takes_prefix(prefix));
    let scope = ScopeId::of_event(table.event(Action::Message));
    let whole = GroupId(table_hash(table));
    takers
        .map(|(index, sink)| {
            let grouping = match sink.group_by {
                GroupBy::None => Grouping::None,
                GroupBy::PrimaryKey | GroupBy::Columns(_) | GroupBy::Table => Grouping::Messages(whole),
            };
            let rule = grouping.text(table).into();
            Route { sink: index, scope, rule, whole, actions: actions(sink), grouping }
        })
        .collect()
}

/// A sink of bare rows takes neither deletes nor truncates: they have no row.
fn actions(sink: &SinkConfig) -> Actions {
    match sink.message {
        MessageForm::Change => sink.actions,
        MessageForm::Row => Actions { delete: false, truncate: false, ..sink.actions },
    }
}

/// Stable over restarts and over a re-created table; different for different tables.
fn table_hash(table: &Table) -> u64 {
    let mut key = Vec::new();
    append(&mut key, table.name.schema.as_bytes());
    append(&mut key, table.name.table.as_bytes());
    xxh3_64(&key)
}

/// Length first, so that no two lists of values read alike.
fn append(key: &mut Vec<u8>, bytes: &[u8]) {
    key.extend_from_slice(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
    key.extend_from_slice(bytes);
}

impl Route {
    /// Whether the sink takes changes of this kind.
    pub fn takes(&self, action: Action) -> bool {
        match action {
            Action::Insert => self.actions.insert,
            Action::Update => self.actions.update,
            Action::Delete => self.actions.delete,
            Action::Truncate => self.actions.truncate,
            Action::Read | Action::Message => true,
        }
    }

    /// Whether the change stands between all earlier and all later ones of the table, whatever their groups.
    pub fn is_barrier(&self, change: &Change) -> bool {
        let is_one = |lacks: bool| matches!(change.row, Row::Truncate) || lacks;
        match &self.grouping {
            Grouping::Columns { columns, .. } => is_one(lacks_group(change, columns)),
            Grouping::Canonical { columns, .. } => is_one(lacks_group(change, columns)),
            Grouping::None | Grouping::Table(_) | Grouping::Messages(_) => false,
        }
    }

    /// The groups of a change of the route's table. `scratch` is room to write in, whatever is in it.
    pub fn groups(&self, change: &Change, scratch: &mut Vec<u8>) -> Groups {
        match &self.grouping {
            Grouping::None => Groups::None,
            Grouping::Table(group) => Groups::One(*group),
            Grouping::Messages(of_prefix) => Groups::One(message_group(change).unwrap_or(*of_prefix)),
            Grouping::Columns { seed, columns } => self.groups_by(*seed, columns, change, scratch),
            Grouping::Canonical { seed, columns } => self.groups_by(*seed, columns, change, scratch),
        }
    }

    fn groups_by(&self, seed: u64, columns: &[impl Member], change: &Change, scratch: &mut Vec<u8>) -> Groups {
        if lacks_group(change, columns) {
            return Groups::One(self.whole);
        }
        match &change.row {
            Row::Truncate | Row::Message { .. } => Groups::One(self.whole),
            Row::Insert { new } | Row::Read { new } => Groups::One(group(seed, columns, new, None, scratch)),
            Row::Delete { old } => Groups::One(group(seed, columns, old.tuple(), None, scratch)),
            Row::Update { old: None, new } => Groups::One(group(seed, columns, new, None, scratch)),
            Row::Update { old: Some(old), new } => moved(seed, columns, (&change.table, old, new), scratch),
        }
    }
}

/// An update whose old row is known: both groups, if they differ. A `K` tuple says nothing of columns outside the replica
/// identity; those are taken as unchanged.
fn moved(
    seed: u64,
    columns: &[impl Member],
    (table, old, new): (&Table, &OldRow, &Tuple),
    scratch: &mut Vec<u8>,
) -> Groups {
    let known = |column: &_| match old {
        OldRow::Full(_) => true,
        OldRow::Key(_) => table.columns.get(Member::place(column)).is_some_and(|column| column.in_identity),
    };
    let after = group(seed, columns, new, Some(old.tuple()), scratch);
    if !columns.iter().all(known) {
        return Groups::One(after);
    }
    Groups::moved(group(seed, columns, old.tuple(), None, scratch), after)
}

/// Whether a column of the group is among the values that were left out of a change that is too large: then it may be of any
/// group.
fn lacks_group(change: &Change, columns: &[impl Member]) -> bool {
    let lacks =
        |row: &Tuple| columns.iter().any(|column| matches!(row.value(column.place()), Some(Datum::TooLarge(_))));
    change.oversize.is_some()
        && (change.new_tuple().is_some_and(lacks) || change.old_row().map(OldRow::tuple).is_some_and(lacks))
}

/// The group of a row. A value that was not sent because it did not change is taken from the old row.
fn group(seed: u64, columns: &[impl Member], row: &Tuple, old: Option<&Tuple>, scratch: &mut Vec<u8>) -> GroupId {
    scratch.clear();
    for column in columns {
        let value = match (row.value(column.place()), old) {
            (Some(Datum::Unchanged), Some(old)) => old.value(column.place()),
            (value, _) => value,
        };
        match value {
            Some(Datum::Text(text)) => column.append(scratch, text),
            // No value is as long as this.
            Some(Datum::Null) => scratch.extend_from_slice(&u64::MAX.to_le_bytes()),
            Some(Datum::Unchanged | Datum::TooLarge(_)) | None => {
                scratch.extend_from_slice(&(u64::MAX - 1).to_le_bytes())
            }
        }
    }
    GroupId(xxh3_64_with_seed(scratch, seed))
}

/// The group that a logical message names, the same whatever its prefix.
fn message_group(change: &Change) -> Option<GroupId> {
    let Row::Message { content } = &change.row else { return None };
    let member = group_member(content)?;
    Some(GroupId(xxh3_64_with_seed(member.as_bytes(), MESSAGES_SEED)))
}

/// A group's name for people: the column's text, or for several a JSON array of the texts, each in its canonical form; for a table its name; for a
/// logical message the group that it names, at most 256 characters of it, or its prefix; `None` without a group. Taken from
/// the new row, or the old one of a delete.
pub fn group_text(change: &Change, sink: &SinkConfig) -> Option<String> {
    if let Row::Message { content } = &change.row {
        return message_text(content, &change.table, sink);
    }
    let grouping = Grouping::of(&change.table, sink);
    if grouping == Grouping::None {
        return None;
    }
    let Some(columns) = grouping.columns() else { return Some(change.table.name.to_string()) };
    if matches!(change.row, Row::Truncate) {
        return Some(change.table.name.to_string());
    }
    let old = change.old_row().map(OldRow::tuple);
    let row = change.new_tuple().or(old)?;
    let texts: Vec<Option<String>> = columns
        .iter()
        .map(|&(place, form)| match (row.value(place), old) {
            (Some(Datum::Unchanged), Some(old)) => text(old.value(place), form),
            (value, _) => text(value, form),
        })
        .collect();
    match &texts[..] {
        [one] => one.clone(),
        several => serde_json::to_string(several).ok(),
    }
}

fn message_text(content: &[u8], table: &Table, sink: &SinkConfig) -> Option<String> {
    match sink.group_by {
        GroupBy::None => None,
        GroupBy::PrimaryKey | GroupBy::Columns(_) | GroupBy::Table => {
            Some(group_member(content).map_or_else(|| table.name.table.clone(), shortened))
        }
    }
}

fn shortened(text: String) -> String {
    match text.char_indices().nth(GROUP_CHARS_MAX) {
        None => text,
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests;

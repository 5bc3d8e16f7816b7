//! Pure: what `check` says where equal values have different texts, so that a table is one group.

use super::columns::Equal;
use super::findings::{Finding, listed};
use crate::change::Equality;
use crate::config::{GroupBy, SinkConfig, written};
use crate::source::slot::TableFacts;

/// Of the columns that a table is grouped by those that count: the last of a key WITHOUT OVERLAPS does not.
pub(super) fn counting<'a>(equals: &[Equal], columns: &'a [String]) -> Vec<&'a str> {
    let overlaps = |name: &str| equals.iter().any(|one| one.name == name && one.equality == Equality::Overlap);
    columns.iter().map(String::as_str).filter(|name| !overlaps(name)).collect()
}

/// Whether a table that is grouped by these columns is one group.
pub(super) fn is_whole(equals: &[Equal], columns: &[String]) -> bool {
    counting(equals, columns).is_empty() || !untold(equals, columns).is_empty()
}

/// The columns whose texts do not tell which values are equal.
fn untold<'a>(equals: &'a [Equal], columns: &[String]) -> Vec<&'a Equal> {
    let is_one = |one: &&Equal| match one.equality {
        Equality::Unknown => columns.contains(&one.name),
        // Alone it makes no group.
        Equality::Overlap => *columns == [one.name.as_str()],
        Equality::Text | Equality::Canonical(_) => false,
    };
    equals.iter().filter(is_one).collect()
}

/// That the table is one group for the sink, and the way out.
pub(super) fn of_group(table: &TableFacts, sink: &SinkConfig, equals: &[Equal]) -> Option<Finding> {
    let columns = match sink.group_rule(&table.name) {
        GroupBy::Table | GroupBy::None => return None,
        GroupBy::PrimaryKey => &table.primary_key,
        GroupBy::Columns(names) => names,
    };
    let untold = untold(equals, columns);
    if untold.is_empty() {
        return None;
    }
    let named: Vec<String> = untold.iter().map(|equal| named(equal)).collect();
    let what = format!(
        "sink {}: equal values of {} may have different texts, so all changes of the table are one group, delivered one \
         after another",
        sink.name,
        listed(&named)
    );
    Some(Finding::warn(&table.name, what, way_out(table, sink, equals)))
}

fn named(equal: &Equal) -> String {
    let Equal { name, type_name, .. } = equal;
    match (equal.is_deterministic, equal.is_compared_otherwise) {
        (_, true) => format!("{name} ({type_name}, its key's index compares by another operator than =)"),
        (false, false) => format!("{name} ({type_name}, its collation is not deterministic)"),
        (true, false) => format!("{name} ({type_name})"),
    }
}

/// The columns of the key that do, whole rows or not: a row keeps its order with any part of its key. No other column is named:
/// by it changes of one row are in two groups once its value is another.
fn way_out(table: &TableFacts, sink: &SinkConfig, equals: &[Equal]) -> String {
    let carried = table.carried();
    // Not every server sends generated columns.
    let is_generated =
        |name: &str| table.columns.iter().any(|column| column.name == name && (column.is_stored || column.is_virtual));
    let does = |one: &&Equal| match one.equality {
        Equality::Text | Equality::Canonical(_) => {
            one.is_key && carried.contains(one.name.as_str()) && !is_generated(&one.name)
        }
        Equality::Unknown | Equality::Overlap => false,
    };
    let columns: Vec<String> = equals.iter().filter(does).map(|one| written::value(&one.name)).collect();
    let place = written::section(&sink.name, &table.name);
    let when = "when nothing waits for the sink any more (`walhook state`; a start is refused before)";
    if !columns.is_empty() {
        return format!("for more in parallel, {when}: {place} group_by = [{}]", columns.join(", "));
    }
    format!(
        "if it is right so: {place} group_by = \"table\". For more in parallel group_by may name a column of another type or \
         collation that old rows carry (REPLICA IDENTITY FULL) and that never differs between changes of one row, {when}; \
         where it differs, such changes overtake each other"
    )
}

//! Pure: what `check` says where equal values have different texts, so that a table is one group.

use super::columns::{Columns, Equal};
use super::findings::{Finding, listed};
use crate::change::Equality;
use crate::config::{GroupBy, SinkConfig};
use crate::source::slot::TableFacts;

/// The columns that the sink groups the table by and whose texts do not tell which values are equal.
pub(super) fn untold<'a>(table: &TableFacts, sink: &SinkConfig, columns: &'a Columns) -> Vec<&'a Equal> {
    let names = match sink.group_rule(&table.name) {
        GroupBy::Table | GroupBy::None => return Vec::new(),
        GroupBy::PrimaryKey => &table.primary_key,
        GroupBy::Columns(names) => names,
    };
    let is_one = |equal: &&Equal| equal.equality == Equality::Unknown && names.contains(&equal.name);
    columns.equals.iter().filter(is_one).collect()
}

/// That the table is one group for the sink, and the way out.
pub(super) fn of_group(table: &TableFacts, sink: &SinkConfig, columns: &Columns) -> Option<Finding> {
    let untold = untold(table, sink, columns);
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
    Some(Finding::warn(&table.name, what, way_out(table, sink, columns)))
}

fn named(equal: &Equal) -> String {
    let Equal { name, type_name, .. } = equal;
    match (equal.is_deterministic, equal.is_compared_otherwise) {
        (false, _) => format!("{name} ({type_name}, its collation is not deterministic)"),
        (true, true) => format!("{name} ({type_name}, its key's index compares by another operator than =)"),
        (true, false) => format!("{name} ({type_name})"),
    }
}

/// A column that would do, if old rows carry one.
fn way_out(table: &TableFacts, sink: &SinkConfig, columns: &Columns) -> String {
    let carried = table.carried();
    let does = |equal: &&Equal| equal.equality != Equality::Unknown && carried.contains(equal.name.as_str());
    let place = format!("[sink.{}.table.\"{}\"]", sink.name, table.name);
    match columns.equals.iter().find(does) {
        Some(equal) => {
            format!("for more in parallel, where that order is enough: {place} group_by = [\"{}\"]", equal.name)
        }
        None => format!(
            "for more in parallel: {place} group_by = [\"a_column\"], one of another type or collation, which old rows must \
             carry (REPLICA IDENTITY FULL); if it is right so: group_by = \"table\""
        ),
    }
}

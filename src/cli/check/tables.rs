//! Pure: what `check` says of each table, its lines together: key and old rows, columns that come otherwise than one might
//! think, and what each sink will and will not see.

use super::columns::{Columns, Equal, Known};
use super::equal;
use super::findings::{Finding, listed};
use crate::change::ReplicaIdentity;
use crate::config::{GroupBy, MessageForm, SinkConfig, UnchangedToast};
use crate::source::advice::{self, Statement};
use crate::source::slot::TableFacts;
use crate::source::slot::plan::taken;
use crate::source::slot::server::ServerFacts;

/// Everything about one table. `known` is what the catalogue says of its columns, as far as it answered.
pub(super) fn of_table(
    table: &TableFacts,
    takers: &[&SinkConfig],
    known: Known<'_>,
    server: &ServerFacts,
) -> Vec<Finding> {
    let mut all = vec![of_key(table, takers)];
    all.extend(of_old_rows(table, takers));
    if let Some(columns) = known.columns {
        all.extend(of_columns(table, columns, server.version));
        all.extend(takers.iter().filter_map(|sink| of_fetching(table, sink, columns, server)));
    }
    if let Some(equals) = known.equals {
        all.extend(takers.iter().filter_map(|sink| equal::of_group(table, sink, equals)));
    }
    all.extend(takers.iter().map(|sink| of_taker(table, sink, known.equals)));
    all
}

fn of_key(table: &TableFacts, takers: &[&SinkConfig]) -> Finding {
    let subject = &table.name;
    let old = match table.identity.setting {
        _ if table.is_full() => "whole (REPLICA IDENTITY FULL)".to_owned(),
        ReplicaIdentity::Default => "the primary key only".to_owned(),
        ReplicaIdentity::Index => {
            format!(
                "the columns of its identity index only ({})",
                table.identity.columns.iter().flatten().cloned().collect::<Vec<_>>().join(", ")
            )
        }
        ReplicaIdentity::Nothing => "nothing".to_owned(),
        ReplicaIdentity::Full => "the key only in some partitions".to_owned(),
    };
    let by_key = takers.iter().any(|sink| *sink.group_rule(&table.name) == GroupBy::PrimaryKey);
    if table.primary_key.is_empty() && by_key {
        let what =
            format!("no primary key: all its changes are one group, delivered one after another; old rows: {old}");
        return Finding::warn(subject, what, "add a primary key, or set group_by for the table");
    }
    let key = if table.primary_key.is_empty() { "none".to_owned() } else { table.primary_key.join(", ") };
    Finding::ok(subject, format!("primary key {key}; old rows: {old}"))
}

/// What receivers miss of old rows without REPLICA IDENTITY FULL.
fn of_old_rows(table: &TableFacts, takers: &[&SinkConfig]) -> Option<Finding> {
    let takes = |wanted: fn(&SinkConfig) -> bool| takers.iter().any(|sink| wanted(sink));
    if table.is_full() || !takes(|sink| taken(sink).update || taken(sink).delete) {
        return None;
    }
    let mut what = Vec::new();
    if takes(|sink| taken(sink).update && sink.message == MessageForm::Change) {
        what.push("changes of an update is null unless its key changed".to_owned());
    }
    if takes(|sink| taken(sink).delete) {
        what.push("a delete has the old row's columns named above".to_owned());
    }
    let long: Vec<String> =
        table.columns.iter().filter(|column| column.is_toastable).map(|column| column.name.clone()).collect();
    if !long.is_empty() && takes(|sink| taken(sink).update) {
        what.push(format!("long values that an update leaves as they are are not sent: {}", listed(&long)));
    }
    let mend = table.breaks_in_full().is_none().then(|| format!("for whole old rows, {}", table.make_full()));
    (!what.is_empty()).then(|| Finding { mend, ..Finding::ok(&table.name, what.join("; ")) })
}

fn of_columns(table: &TableFacts, columns: &Columns, version: u32) -> Vec<Finding> {
    let mut all = Vec::new();
    if !columns.cast.is_empty() {
        let what = format!("as Postgres's text, where to_jsonb would use a cast to json: {}", listed(&columns.cast));
        let mend = "receivers parse the text; or add a generated column of type jsonb with the cast's result";
        all.push(Finding::warn(&table.name, what, mend));
    }
    if !columns.text.is_empty() {
        let what = format!("types that JSON has no form for, as Postgres's text: {}", listed(&columns.text));
        all.push(Finding::ok(&table.name, what));
    }
    if !columns.stored.is_empty() && version < 180_000 {
        let what =
            format!("generated columns are not sent by this server (18 and later do): {}", listed(&columns.stored));
        all.push(Finding::ok(&table.name, what));
    }
    if !columns.computed.is_empty() {
        let what = format!("virtual generated columns are never sent: {}", listed(&columns.computed));
        all.push(Finding::ok(&table.name, what));
    }
    all
}

/// Whether the role may read what a sink wants re-read.
fn of_fetching(table: &TableFacts, sink: &SinkConfig, columns: &Columns, server: &ServerFacts) -> Option<Finding> {
    let fetches = sink.unchanged_toast == UnchangedToast::Fetch && taken(sink).update;
    let cannot = |why: &str, mend: String| {
        let what = format!("sink {} cannot fetch unchanged long values: {why}", sink.name);
        Some(Finding::warn(&table.name, what, mend))
    };
    if fetches && !columns.may_read {
        let mend = advice::text(&Statement::read_table(&table.name, &table.owner.name, &server.role));
        return cannot("the role may not read them and the key", mend);
    }
    if fetches && columns.is_guarded {
        let join = Statement::join_owner(&table.owner.name, &server.role, server.version);
        let mend = match (table.is_owned, &table.owner.hindrance) {
            (false, None) => format!("unless the table forces it on its owner too, {join}"),
            (true, _) | (false, Some(_)) => match table.breaks_in_full() {
                None => format!("have whole old rows sent, {}", table.make_full()),
                Some(_) => "set unchanged_toast = \"omit\" for the sink".to_owned(),
            },
        };
        return cannot("row level security of the table applies to the role", mend);
    }
    None
}

/// What one sink sees of the table, and in which order.
fn of_taker(table: &TableFacts, sink: &SinkConfig, equals: Option<&[Equal]>) -> Finding {
    let mut what = format!("sink {}: {}; {}", sink.name, actions(sink), order(table, sink, equals));
    let gone = |left_out: &str| format!("; not {left_out}: message = \"row\" has nothing to say of one");
    match (sink.message, sink.actions.delete, sink.actions.truncate) {
        (MessageForm::Change, _, _) | (MessageForm::Row, false, false) => {}
        (MessageForm::Row, true, false) => what += &gone("delete"),
        (MessageForm::Row, false, true) => what += &gone("truncate"),
        (MessageForm::Row, true, true) => what += &gone("delete and truncate"),
    }
    Finding::ok(&table.name, what)
}

/// The actions of which a sink sends messages, as words.
pub(super) fn actions(sink: &SinkConfig) -> String {
    let actions = taken(sink);
    let words = [
        (actions.insert, "insert"),
        (actions.update, "update"),
        (actions.delete, "delete"),
        (actions.truncate, "truncate"),
    ];
    words.into_iter().filter(|(on, _)| *on).map(|(_, word)| word).collect::<Vec<_>>().join(", ")
}

fn order(table: &TableFacts, sink: &SinkConfig, equals: Option<&[Equal]>) -> String {
    let columns = match sink.group_rule(&table.name) {
        GroupBy::PrimaryKey if table.primary_key.is_empty() => {
            return "in order as a whole, for it has no primary key".to_owned();
        }
        GroupBy::PrimaryKey => &table.primary_key,
        GroupBy::Columns(columns) => columns,
        GroupBy::Table => return "in order as a whole".to_owned(),
        GroupBy::None => return "in no order".to_owned(),
    };
    match equals {
        None => format!("in order for each {}, if it is seen which of them are equal: not seen", columns.join(", ")),
        Some(equals) if equal::is_whole(equals, columns) => "in order as a whole".to_owned(),
        Some(equals) => format!("in order for each {}", equal::counting(equals, columns).join(", ")),
    }
}

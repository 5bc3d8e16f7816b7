//! Grouping as the contract has it, on tables made by hand.

use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::change::{Column, Equality, Form, Lsn, ReplicaIdentity, TableName, Transaction};
use crate::config;
use crate::record::Kind;

/// A table with columns (name, in the identity), the first of which is the primary key.
fn table(name: &str, identity: ReplicaIdentity, columns: &[(&str, bool)]) -> Table {
    let columns = columns
        .iter()
        .map(|(name, in_identity)| Column {
            name: (*name).to_owned(),
            type_oid: 25,
            type_modifier: -1,
            in_identity: *in_identity,
            kind: Kind::Text,
            equality: Equality::Text,
            shape: 0,
            altered: None,
        })
        .collect();
    Table::new(1, TableName { schema: "public".to_owned(), table: name.to_owned() }, identity, columns, vec![0])
}

fn orders() -> Table {
    table("orders", ReplicaIdentity::Default, &[("id", true), ("customer", false)])
}

fn orders_full() -> Table {
    table("orders", ReplicaIdentity::Full, &[("id", true), ("customer", true)])
}

fn sink(lines: &str) -> SinkConfig {
    let text = format!(
        "[source.app]\nurl = \"postgres://u@localhost/app\"\n[sink.s]\nurl = \"http://localhost/\"\n\
         tables = [\"public.*\"]\n{lines}\n"
    );
    config::parse(&text, std::path::Path::new("t.toml"), &|_| None, &[]).unwrap().sinks.remove(0)
}

fn tuple(values: &[Option<&str>]) -> Tuple {
    let values: Vec<Datum<'_>> =
        values.iter().map(|value| value.map_or(Datum::Null, |text| Datum::Text(text.as_bytes()))).collect();
    Tuple::from_values(&values)
}

fn change(table: &Table, row: Row) -> Change {
    Change {
        transaction: Arc::new(Transaction { commit_lsn: Lsn(1), commit_micros: 0, xid: 1 }),
        index: 1,
        table: Arc::new(table.clone()),
        row,
        annotations: None,
        oversize: None,
        received_at: Instant::now(),
    }
}

fn groups(table: &Table, sink: &SinkConfig, row: Row) -> Groups {
    let routes = routes(table, std::slice::from_ref(sink));
    routes[0].groups(&change(table, row), &mut vec![1, 2, 3])
}

fn insert(id: &str, customer: &str) -> Row {
    Row::Insert { new: tuple(&[Some(id), Some(customer)]) }
}

#[test]
fn the_primary_key_groups_by_default_and_a_delete_finds_its_group_by_the_old_key() {
    let sink = sink("");
    let one = groups(&orders(), &sink, insert("1", "a"));
    assert_eq!(groups(&orders(), &sink, insert("1", "b")), one);
    assert_ne!(groups(&orders(), &sink, insert("2", "a")), one);
    let delete = Row::Delete { old: OldRow::Key(tuple(&[Some("1"), None])) };
    assert_eq!(groups(&orders(), &sink, delete), one);
    let update = Row::Update { old: None, new: tuple(&[Some("1"), Some("c")]) };
    assert_eq!(groups(&orders(), &sink, update), one);
}

#[test]
fn pitfall_03_key_change_holds_both_groups() {
    let sink = sink("");
    let (Groups::One(old), Groups::One(new)) =
        (groups(&orders(), &sink, insert("1", "a")), groups(&orders(), &sink, insert("2", "a")))
    else {
        panic!("one group each")
    };
    let moved = Row::Update { old: Some(OldRow::Key(tuple(&[Some("1"), None]))), new: tuple(&[Some("2"), Some("a")]) };
    assert_eq!(groups(&orders(), &sink, moved), Groups::Two(old, new));
}

#[test]
fn under_full_a_group_column_that_changes_holds_both_groups_and_another_does_not() {
    let sink = sink("group_by = [\"customer\"]");
    let update = |from: &str, to: &str| Row::Update {
        old: Some(OldRow::Full(tuple(&[Some("1"), Some(from)]))),
        new: tuple(&[Some("9"), Some(to)]),
    };
    assert!(matches!(groups(&orders_full(), &sink, update("a", "b")), Groups::Two(..)));
    assert_eq!(groups(&orders_full(), &sink, update("a", "a")), groups(&orders_full(), &sink, insert("5", "a")));
}

#[test]
fn a_value_that_was_not_sent_as_unchanged_groups_by_the_old_row() {
    let sink = sink("group_by = [\"customer\"]");
    let new = Tuple::from_values(&[Datum::Text(b"1"), Datum::Unchanged]);
    let update = Row::Update { old: Some(OldRow::Full(tuple(&[Some("1"), Some("a")]))), new };
    assert_eq!(groups(&orders_full(), &sink, update), groups(&orders_full(), &sink, insert("1", "a")));
}

#[test]
fn two_tables_with_equal_values_are_two_groups() {
    let other = table("invoices", ReplicaIdentity::Default, &[("id", true), ("customer", false)]);
    let sink = sink("");
    assert_ne!(groups(&orders(), &sink, insert("1", "a")), groups(&other, &sink, insert("1", "a")));
}

#[test]
fn values_do_not_run_together_and_null_is_not_empty() {
    let sink = sink("group_by = [\"id\", \"customer\"]");
    let by = |id: Option<&str>, customer: Option<&str>| {
        groups(&orders_full(), &sink, Row::Insert { new: tuple(&[id, customer]) })
    };
    assert_ne!(by(Some("ab"), Some("c")), by(Some("a"), Some("bc")));
    assert_ne!(by(None, Some("c")), by(Some(""), Some("c")));
}

#[test]
fn table_and_none_group_as_they_say() {
    assert_eq!(
        groups(&orders(), &sink("group_by = \"table\""), insert("1", "a")),
        groups(&orders(), &sink("group_by = \"table\""), insert("2", "b"))
    );
    assert_eq!(groups(&orders(), &sink("group_by = \"none\""), insert("1", "a")), Groups::None);
}

#[test]
fn without_a_key_or_with_columns_that_old_rows_do_not_carry_the_whole_table_is_the_group() {
    let keyless = Table { primary_key: Vec::new(), ..orders_full() };
    assert_eq!(groups(&keyless, &sink(""), insert("1", "a")), groups(&keyless, &sink(""), insert("2", "b")));
    let by_customer = sink("group_by = [\"customer\"]");
    assert_eq!(groups(&orders(), &by_customer, insert("1", "a")), groups(&orders(), &by_customer, insert("2", "b")));
    let inserts_only = sink("group_by = [\"customer\"]\nactions = [\"insert\"]");
    assert_ne!(groups(&orders(), &inserts_only, insert("1", "a")), groups(&orders(), &inserts_only, insert("2", "b")));
    let lost = sink("group_by = [\"gone\"]");
    assert_eq!(groups(&orders_full(), &lost, insert("1", "a")), groups(&orders_full(), &lost, insert("2", "b")));
}

#[test]
fn pitfall_05_a_key_of_another_type_is_another_rule() {
    let sinks = [sink("")];
    let rule = |table: &Table| routes(table, &sinks)[0].rule.clone();
    let before = rule(&orders());
    let mut retyped = orders();
    retyped.columns[1].type_oid = 1700;
    assert_eq!(rule(&retyped), before, "it is not of the key");
    retyped.columns[0].type_modifier = 786_438;
    let rescaled = rule(&retyped);
    retyped.columns[0].type_oid = 1700;
    assert!(rescaled != before && rule(&retyped) != rescaled && rule(&retyped) != before);
}

#[test]
fn a_table_may_have_a_rule_of_its_own() {
    let sink = sink("[sink.s.table.\"public.orders\"]\ngroup_by = \"none\"");
    assert_eq!(groups(&orders(), &sink, insert("1", "a")), Groups::None);
    let other = table("invoices", ReplicaIdentity::Default, &[("id", true), ("customer", false)]);
    assert!(matches!(groups(&other, &sink, insert("1", "a")), Groups::One(_)));
}

#[test]
fn a_group_has_a_name_for_people() {
    let insert = |table: &Table| change(table, insert("1", "a\""));
    assert_eq!(group_text(&insert(&orders()), &sink("")).as_deref(), Some("1"));
    assert_eq!(
        group_text(&insert(&orders_full()), &sink("group_by = [\"id\", \"customer\"]")).as_deref(),
        Some(r#"["1","a\""]"#)
    );
    assert_eq!(group_text(&insert(&orders()), &sink("group_by = \"table\"")).as_deref(), Some("public.orders"));
    assert_eq!(group_text(&insert(&orders()), &sink("group_by = \"none\"")), None);
}

#[test]
fn pitfall_09_a_truncate_is_of_the_table_as_a_whole_and_a_barrier_where_rows_have_groups() {
    let truncate = || change(&orders(), Row::Truncate);
    for (lines, is_barrier, text) in [
        ("", true, Some("public.orders")),
        ("group_by = \"table\"", false, Some("public.orders")),
        ("group_by = \"none\"", false, None),
    ] {
        let sink = sink(lines);
        let route = routes(&orders(), std::slice::from_ref(&sink)).remove(0);
        assert_eq!(route.is_barrier(&truncate()), is_barrier, "{lines}");
        assert!(!route.is_barrier(&change(&orders(), insert("1", "a"))), "{lines}");
        assert_eq!(group_text(&truncate(), &sink).as_deref(), text, "{lines}");
    }
}

#[test]
fn a_change_whose_group_was_too_large_to_take_in_is_a_barrier_of_its_table() {
    let sink = sink("group_by = [\"customer\"]");
    let table = orders_full();
    let route = routes(&table, std::slice::from_ref(&sink)).remove(0);
    let row = |group| Tuple::from_values(&[Datum::Text(b"1"), group]);
    let whole = route.groups(&change(&table, Row::Truncate), &mut Vec::new());
    let lacks = || row(Datum::TooLarge(70_000));
    for row in [
        Row::Insert { new: lacks() },
        Row::Update { old: Some(OldRow::Full(lacks())), new: row(Datum::Text(b"7")) },
        Row::Delete { old: OldRow::Full(lacks()) },
    ] {
        let change = Change { oversize: Some(80_000), ..change(&table, row) };
        assert!(route.is_barrier(&change), "{change:?}");
        assert_eq!(route.groups(&change, &mut Vec::new()), whole);
    }
    let known = Change { oversize: Some(80_000), ..change(&table, insert("1", "7")) };
    assert!(!route.is_barrier(&known), "another column was too large");
}

/// Groups and the group's text of a message with this prefix and content.
fn said(prefix: &str, content: &str, lines: &str) -> (Groups, Option<String>) {
    let sink = sink(&format!("messages = [\"*\"]\n{lines}"));
    let table = Table::of_messages(prefix);
    let route = message_routes(&table, prefix, std::slice::from_ref(&sink)).remove(0);
    let message = change(&table, Row::Message { content: bytes::Bytes::copy_from_slice(content.as_bytes()) });
    assert!(route.takes(Action::Message) && !route.is_barrier(&message));
    (route.groups(&message, &mut Vec::new()), group_text(&message, &sink))
}

#[test]
fn a_message_is_in_the_group_that_it_names_whatever_its_prefix_or_else_in_that_of_its_prefix() {
    let (named, text) = said("a", r#"{"group":"7"}"#, "");
    assert!(matches!(named, Groups::One(_)));
    assert_eq!(text.as_deref(), Some("7"));
    assert_eq!(said("b", r#"{"n":1,"group":7}"#, "group_by = [\"id\"]").0, named);
    assert_ne!(said("a", r#"{"group":"8"}"#, "").0, named);
    let (of_prefix, text) = said("a", "not json", "group_by = \"table\"");
    assert_eq!(text.as_deref(), Some("a"));
    assert_eq!(said("a", "{}", "").0, of_prefix);
    assert_ne!(said("b", "{}", "").0, of_prefix);
    // A message that names a prefix as its group is not in the prefix's.
    assert_ne!(said("a", r#"{"group":"a"}"#, "").0, of_prefix);
    assert_eq!(said("a", r#"{"group":"7"}"#, "group_by = \"none\""), (Groups::None, None));
}

#[test]
fn a_long_name_of_a_group_is_shown_in_part_and_counts_as_a_whole() {
    let named = |last: &str| said("a", &format!("{{\"group\":\"{}{last}\"}}", "é".repeat(5000)), "");
    let ((one, text), (other, _)) = (named("1"), named("2"));
    assert_ne!(one, other);
    assert_eq!(text.unwrap(), format!("{}…", "é".repeat(256)));
}

#[test]
fn a_sink_of_rows_takes_no_deletes() {
    let rows = routes(&orders(), &[sink("message = \"row\"")]);
    assert!(rows[0].takes(Action::Insert) && rows[0].takes(Action::Update) && !rows[0].takes(Action::Delete));
    let all = "message = \"row\"\nactions = [\"insert\", \"delete\", \"truncate\"]";
    let rows = routes(&orders(), &[sink(all)]);
    assert!(!rows[0].takes(Action::Delete) && !rows[0].takes(Action::Truncate));
    let inserts = routes(&orders(), &[sink("actions = [\"insert\"]")]);
    assert!(inserts[0].takes(Action::Insert) && !inserts[0].takes(Action::Update));
}

/// A table with two columns of these equalities, both the primary key.
fn equal_by(one: Equality, other: Equality) -> Table {
    let mut table = orders_full();
    table.columns[0].equality = one;
    table.columns[1].equality = other;
    Table { primary_key: vec![0, 1], ..table }
}

#[test]
fn pitfall_55_values_with_one_canonical_form_are_one_group_and_others_are_not() {
    let table = equal_by(Equality::Canonical(Form::Numeric), Equality::Text);
    let of = |id, customer| groups(&table, &sink(""), insert(id, customer));
    assert_eq!(of("1.0", "a"), of("1.00", "a"));
    assert_eq!(of("1", "a"), of("1.00", "a"));
    assert_ne!(of("1.0", "a"), of("1.01", "a"));
    assert_ne!(of("1.0", "a"), of("1.00", "a0"));
    // The length counts that of the form.
    assert_ne!(of("1.0", "0a"), of("1.00", "a"));
    let null = groups(&table, &sink(""), Row::Insert { new: tuple(&[None, Some("a")]) });
    assert_ne!(null, of("", "a"));
    let delete = Row::Delete { old: OldRow::Full(tuple(&[Some("1.000"), Some("a")])) };
    assert_eq!(groups(&table, &sink(""), delete), of("1", "a"));
    let update = |from: &str, to: &str| Row::Update {
        old: Some(OldRow::Full(tuple(&[Some(from), Some("a")]))),
        new: tuple(&[Some(to), Some("a")]),
    };
    assert_eq!(
        groups(&table, &sink(""), update("1.0", "1.00")),
        of("1", "a"),
        "the key is the same, only written otherwise"
    );
    assert!(matches!(groups(&table, &sink(""), update("1.0", "2.0")), Groups::Two(..)));
    let text = |id| group_text(&change(&table, insert(id, "a")), &sink(""));
    assert_eq!(text("1.00").as_deref(), Some(r#"["1","a"]"#));
    assert_eq!(text("1.0"), text("1"));
}

#[test]
fn pitfall_55_a_table_whose_texts_do_not_tell_what_is_equal_is_one_group() {
    let table = equal_by(Equality::Text, Equality::Unknown);
    let of = |lines: &str, row| groups(&table, &sink(lines), row);
    assert_eq!(of("", insert("1", "a")), of("", insert("2", "b")));
    assert_eq!(of("", insert("1", "a")), of("group_by = \"table\"", insert("3", "c")));
    assert_eq!(group_text(&change(&table, insert("1", "a")), &sink("")).as_deref(), Some("public.orders"));
    // Columns outside the group do not count.
    assert_ne!(of("group_by = [\"id\"]", insert("1", "a")), of("group_by = [\"id\"]", insert("2", "a")));
    assert_eq!(of("group_by = [\"customer\"]", insert("1", "a")), of("group_by = [\"customer\"]", insert("2", "b")));
    assert_eq!(of("group_by = \"none\"", insert("1", "a")), Groups::None);
}

#[test]
fn pitfall_55_the_rule_is_another_exactly_where_the_grouping_is() {
    let sinks = [sink("")];
    let rule = |one, other| routes(&equal_by(one, other), &sinks)[0].rule.to_string();
    let (numeric, float) = (Equality::Canonical(Form::Numeric), Equality::Canonical(Form::Float));
    assert_eq!(rule(Equality::Text, Equality::Text), r#"["id:25:-1", "customer:25:-1"]"#, "as it was before forms");
    assert_eq!(rule(numeric, Equality::Text), r#"["id:25:-1:numeric", "customer:25:-1"]"#);
    assert_eq!(rule(float, Equality::Text), r#"["id:25:-1:float", "customer:25:-1"]"#);
    assert_eq!(rule(numeric, Equality::Unknown), "table");
    let mut shaped = equal_by(Equality::Text, Equality::Text);
    shaped.columns[0].shape = 0xAB;
    assert_eq!(
        &*routes(&shaped, &sinks)[0].rule,
        r#"["id:25:-1:ab", "customer:25:-1"]"#,
        "other attributes or another locale"
    );
}

#[test]
fn pitfall_55_the_last_column_of_a_key_without_overlaps_tells_no_groups_apart() {
    let by = |sink: &SinkConfig, other| {
        let table = equal_by(Equality::Text, other);
        [("1", "[1,5)"), ("1", "[2,6)"), ("2", "[1,5)")].map(|(id, at)| groups(&table, sink, insert(id, at)))
    };
    let [one, overlapping, other] = by(&sink(""), Equality::Overlap);
    assert_eq!(one, overlapping);
    assert_ne!(one, other);
    assert_eq!(by(&sink("group_by = [\"customer\", \"id\"]"), Equality::Overlap)[0], one);
    let [one, _, other] = by(&sink("group_by = [\"customer\"]"), Equality::Overlap);
    assert_eq!(one, other, "alone it makes no groups");
}

#[test]
fn a_group_of_plain_texts_has_the_hash_it_always_had() {
    // What waits in a store was hashed so.
    let lone = table("orders", ReplicaIdentity::Default, &[("id", true), ("customer", false)]);
    assert_eq!(groups(&lone, &sink(""), insert("1", "a")), Groups::One(GroupId(7_768_786_067_511_506_013)));
}

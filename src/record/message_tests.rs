//! Tests of the message as text.
use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::change::{Equality, Lsn, ReplicaIdentity, Row, Table, TableName, Transaction};
use crate::record::Kind;

const LEFT_OUT: &str = "\u{0}unchanged";

fn tuple<const N: usize>(values: [Option<&str>; N]) -> Tuple {
    Tuple::from_values(&values.map(|value| match value {
        None => Datum::Null,
        Some(LEFT_OUT) => Datum::Unchanged,
        Some(text) => Datum::Text(text.as_bytes()),
    }))
}

/// `id` is the identity's only column, unless the identity is FULL.
fn table(identity: ReplicaIdentity) -> Arc<Table> {
    let column = |name: &str, kind| Column {
        name: name.to_owned(),
        type_oid: 0,
        type_modifier: -1,
        in_identity: name == "id" || identity == ReplicaIdentity::Full,
        kind,
        equality: Equality::Text,
        shape: 0,
        altered: None,
    };
    let columns = vec![column("id", Kind::BigInt), column("status", Kind::Text), column("big \"doc\"", Kind::Json)];
    let name = TableName { schema: "public".to_owned(), table: "orders".to_owned() };
    Arc::new(Table::new(1, name, identity, columns, vec![0]))
}

fn change(identity: ReplicaIdentity, row: Row) -> Change {
    let transaction = Transaction { commit_lsn: Lsn(123_456_789), commit_micros: 1_710_948_600_123_456, xid: 7 };
    Change {
        transaction: Arc::new(transaction),
        index: 1,
        table: table(identity),
        row,
        annotations: None,
        oversize: None,
        received_at: Instant::now(),
    }
}

fn rendering(form: MessageForm) -> Rendering {
    let numbers = Numbers::Json;
    Rendering::new(&RenderingSettings {
        source: "app",
        sink: "orders",
        form,
        numbers,
        system_id: 7_311_908_114_223_344_556,
    })
}

fn rendered(form: MessageForm, change: &Change) -> String {
    let mut out = Vec::new();
    rendering(form).append(change, &mut out);
    serde_json::from_slice::<serde_json::Value>(&out).unwrap();
    String::from_utf8(out).unwrap()
}

/// The message up to `action`, then `unchanged` if there is one.
fn short(identity: ReplicaIdentity, row: Row) -> String {
    let text = rendered(MessageForm::Change, &change(identity, row));
    let (head, metadata) = text.split_once(",\"metadata\":").unwrap();
    let unchanged = metadata.split_once(",\"unchanged\":").map_or("", |(_, names)| names.trim_end_matches('}'));
    format!("{head}}} {unchanged}").trim_end().to_owned()
}

const FULL: ReplicaIdentity = ReplicaIdentity::Full;
const DEFAULT: ReplicaIdentity = ReplicaIdentity::Default;

#[test]
fn the_whole_message_in_both_forms() {
    let mut change = change(DEFAULT, Row::Insert { new: tuple([Some("1"), None, Some("{ }")]) });
    change.annotations = Some(Arc::from("{\"by\":\"me\"}"));
    assert_eq!(
        rendered(MessageForm::Change, &change),
        "{\"record\":{\"id\":1,\"status\":null,\"big \\\"doc\\\"\":{ }},\"changes\":null,\"action\":\"insert\",\"metadata\":\
         {\"table_schema\":\"public\",\"table_name\":\"orders\",\"commit_timestamp\":\"2024-03-20T15:30:00.123456Z\",\
         \"commit_lsn\":123456789,\"commit_idx\":1,\"idempotency_key\":\"bd9fd0e46c646014157e7ef5a1229ab4\",\"consumer\":{\"id\":\
         \"a43cb11b-c916-53db-a1d9-2a07a8e3e939\",\"name\":\"orders\"},\"database\":{\"name\":\"app\"},\
         \"transaction_annotations\":{\"by\":\"me\"}}}"
    );
    assert_eq!(
        rendered(MessageForm::Row, &change),
        "{\"record\":{\"id\":1,\"status\":null,\"big \\\"doc\\\"\":{ }},\"metadata\":{\"table_schema\":\"public\",\
         \"table_name\":\"orders\",\"consumer\":{\"id\":\"a43cb11b-c916-53db-a1d9-2a07a8e3e939\",\"name\":\"orders\"},\
         \"idempotency_key\":\"bd9fd0e46c646014157e7ef5a1229ab4\"}}"
    );
}

/// A logical message with this prefix and content.
fn logical(prefix: &str, content: &[u8]) -> Change {
    let content = bytes::Bytes::copy_from_slice(content);
    Change { table: Arc::new(Table::of_messages(prefix)), ..change(DEFAULT, Row::Message { content }) }
}

#[test]
fn a_logical_message_in_both_forms() {
    let mut change = logical("outbox.\"x\"", b"{ \"a\": 1.50,\n \"a\":12345678901234567890}");
    change.annotations = Some(Arc::from("7"));
    let consumer = "{\"id\":\"a43cb11b-c916-53db-a1d9-2a07a8e3e939\",\"name\":\"orders\"}";
    assert_eq!(
        rendered(MessageForm::Change, &change),
        format!(
            "{{\"record\":{{ \"a\": 1.50,\n \"a\":12345678901234567890}},\"changes\":null,\"action\":\"message\",\"metadata\":\
             {{\"table_schema\":null,\"table_name\":null,\"prefix\":\"outbox.\\\"x\\\"\",\
             \"commit_timestamp\":\"2024-03-20T15:30:00.123456Z\",\"commit_lsn\":123456789,\"commit_idx\":1,\
             \"idempotency_key\":\"bd9fd0e46c646014157e7ef5a1229ab4\",\"consumer\":{consumer},\"database\":{{\"name\":\"app\"}},\
             \"transaction_annotations\":7}}}}"
        )
    );
    assert_eq!(
        rendered(MessageForm::Row, &change),
        format!(
            "{{\"record\":{{ \"a\": 1.50,\n \"a\":12345678901234567890}},\"metadata\":{{\"table_schema\":null,\"table_name\":null,\
             \"prefix\":\"outbox.\\\"x\\\"\",\"consumer\":{consumer},\
             \"idempotency_key\":\"bd9fd0e46c646014157e7ef5a1229ab4\"}}}}"
        )
    );
    assert_eq!(&**change.table.event(change.action()), "outbox.\"x\".message");
}

#[test]
fn content_that_is_no_json_is_a_string_of_its_text_and_no_value_without_a_mapping() {
    for (content, record) in [
        (&b"hello \"you\""[..], "\"hello \\\"you\\\"\""),
        (b"", "\"\""),
        (b"\xFFx", "\"\u{FFFD}x\""),
        (b"[\"\xFF\"]", "[\"\u{FFFD}\"]"),
        (b"null", "null"),
    ] {
        let (rendering, mut out) = (rendering(MessageForm::Row), Vec::new());
        rendering.append(&logical("p", content), &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with(&format!("{{\"record\":{record},\"metadata\":")), "{text}");
        assert_eq!(rendering.fallbacks(), 0, "{record}");
    }
}

#[test]
fn pitfall_09_a_truncate_has_no_record_and_all_metadata() {
    assert_eq!(short(DEFAULT, Row::Truncate), "{\"record\":null,\"changes\":null,\"action\":\"truncate\"}");
    let change = change(DEFAULT, Row::Truncate);
    assert!(rendered(MessageForm::Change, &change).contains("\"table_name\":\"orders\",\"commit_timestamp\""));
    assert_eq!(&**change.table.event(change.action()), "public.orders.truncate");
}

#[test]
fn a_bare_row_names_what_was_left_out_too() {
    let row = |values| {
        let text = rendered(MessageForm::Row, &change(DEFAULT, Row::Insert { new: tuple(values) }));
        text.split_once("\"idempotency_key\":").unwrap().1.to_owned()
    };
    let left_out = row([Some("1"), Some(LEFT_OUT), Some(LEFT_OUT)]);
    assert!(left_out.ends_with(",\"unchanged\":[\"status\",\"big \\\"doc\\\"\"]}}"), "{left_out}");
    assert!(!row([Some("1"), None, Some("{}")]).contains("unchanged"));
}

#[test]
fn the_idempotency_key_never_changes() {
    let id = |index| rendering(MessageForm::Change).message_id(Position { commit_lsn: Lsn(123_456_789), index });
    assert_eq!(id(1).to_string(), "bd9fd0e46c646014157e7ef5a1229ab4");
    assert_ne!(id(1), id(2));
    assert_eq!(MessageId(1).to_string(), "00000000000000000000000000000001");
}

#[test]
fn changes_under_full_are_the_previous_values_of_what_differs() {
    let update = |old, new| short(FULL, Row::Update { old: Some(OldRow::Full(tuple(old))), new: tuple(new) });
    assert_eq!(
        update([Some("1"), Some("a"), None], [Some("1"), Some("b"), None]),
        "{\"record\":{\"id\":1,\"status\":\"b\",\"big \\\"doc\\\"\":null},\"changes\":{\"status\":\"a\"},\"action\":\"update\"}"
    );
    assert_eq!(
        update([Some("1"), Some("a"), Some("[1]")], [Some("1"), Some("a"), Some(LEFT_OUT)]),
        "{\"record\":{\"id\":1,\"status\":\"a\",\"big \\\"doc\\\"\":[1]},\"changes\":{},\"action\":\"update\"}"
    );
    assert_eq!(
        update([Some("1"), None, Some("[1]")], [Some("1"), Some("a"), None]),
        "{\"record\":{\"id\":1,\"status\":\"a\",\"big \\\"doc\\\"\":null},\
         \"changes\":{\"status\":null,\"big \\\"doc\\\"\":[1]},\"action\":\"update\"}"
    );
}

#[test]
fn changes_are_null_without_an_old_row_and_the_old_key_with_one() {
    let new = || tuple([Some("2"), Some("a"), Some(LEFT_OUT)]);
    assert_eq!(
        short(DEFAULT, Row::Update { old: None, new: new() }),
        "{\"record\":{\"id\":2,\"status\":\"a\"},\"changes\":null,\"action\":\"update\"} [\"big \\\"doc\\\"\"]"
    );
    assert_eq!(
        short(DEFAULT, Row::Update { old: Some(OldRow::Key(tuple([Some("1"), None, None]))), new: new() }),
        "{\"record\":{\"id\":2,\"status\":\"a\"},\"changes\":{\"id\":1},\"action\":\"update\"} [\"big \\\"doc\\\"\"]"
    );
    let kept = Row::Update {
        old: Some(OldRow::Key(tuple([Some("1"), None, None]))),
        new: tuple([Some(LEFT_OUT), Some("a"), None]),
    };
    assert_eq!(
        short(DEFAULT, kept),
        "{\"record\":{\"id\":1,\"status\":\"a\",\"big \\\"doc\\\"\":null},\"changes\":{},\"action\":\"update\"}"
    );
}

#[test]
fn an_insert_can_lack_what_a_row_filter_made_an_insert_of() {
    let new = tuple([Some("1"), Some(LEFT_OUT), Some(LEFT_OUT)]);
    assert_eq!(
        short(DEFAULT, Row::Insert { new }),
        "{\"record\":{\"id\":1},\"changes\":null,\"action\":\"insert\"} [\"status\",\"big \\\"doc\\\"\"]"
    );
}

#[test]
fn a_delete_has_what_postgres_gave_and_nothing_invented() {
    assert_eq!(
        short(DEFAULT, Row::Delete { old: OldRow::Key(tuple([Some("1"), None, None])) }),
        "{\"record\":{\"id\":1},\"changes\":null,\"action\":\"delete\"}"
    );
    assert_eq!(
        short(FULL, Row::Delete { old: OldRow::Full(tuple([Some("1"), None, Some("{}")])) }),
        "{\"record\":{\"id\":1,\"status\":null,\"big \\\"doc\\\"\":{}},\"changes\":null,\"action\":\"delete\"}"
    );
}

#[test]
fn values_passed_as_text_are_counted() {
    let rendering = rendering(MessageForm::Change);
    rendering.append(&change(DEFAULT, Row::Read { new: tuple([Some("odd"), None, Some("{")]) }), &mut Vec::new());
    assert_eq!(rendering.fallbacks(), 2);
}

#[test]
fn a_message_is_never_larger_than_it_was_thought_to_be() {
    let long = "\u{1}\"".repeat(300);
    let big = format!("{{\"a\":\"{}\"}}", "x".repeat(2000));
    let old = || OldRow::Full(tuple([Some("1"), Some(&long), Some(&big)]));
    for change in [
        Row::Insert { new: tuple([Some("1"), None, None]) },
        Row::Insert { new: tuple([Some("1"), Some(&long), Some(&big)]) },
        Row::Update { old: Some(old()), new: tuple([Some("2"), Some("x"), Some(LEFT_OUT)]) },
        Row::Delete { old: old() },
        Row::Truncate,
    ]
    .map(|row| change(FULL, row))
    .into_iter()
    .chain([&b"\x01\x02\xFF"[..], b"", big.as_bytes()].map(|content| logical("p\u{1}", &content.repeat(500))))
    {
        for form in [MessageForm::Change, MessageForm::Row] {
            let message = rendered(form, &change);
            for enough in [0, usize::MAX] {
                let bound = rendering(form).body_bytes_max(&change, enough);
                assert!(message.len() < bound, "{} bytes, thought to be {bound}", message.len());
            }
        }
    }
}

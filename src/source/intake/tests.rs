//! Plays: these messages come, exactly this is fed.

use bytes::Bytes;

use super::*;
use crate::change::{Column, ReplicaIdentity, TableName, Tuple};
use crate::config;
use crate::record::Kind;

fn sinks(count: usize) -> Vec<SinkConfig> {
    let mut text = "[source.app]\nurl = \"postgres://u@localhost/app\"\n".to_owned();
    for index in 0..count {
        text +=
            &format!("[sink.s{index}]\nurl = \"http://localhost/\"\ntables = [\"public.t{index}\", \"public.all\"]\n");
    }
    config::parse(&text, std::path::Path::new("t.toml"), &|_| None, &[]).unwrap().sinks
}

fn table(oid: u32, name: &str) -> Table {
    let name = TableName { schema: "public".to_owned(), table: name.to_owned() };
    let kind = Kind::Int;
    let id = Column { name: "id".to_owned(), type_oid: 23, type_modifier: -1, in_identity: true, kind };
    Table::new(oid, name, ReplicaIdentity::Default, vec![id], vec![0])
}

fn begin(commit_lsn: u64) -> Message {
    Message::Begin(Transaction { commit_lsn: Lsn(commit_lsn), commit_micros: 5, xid: 7 })
}

fn insert(relation: u32, id: &str) -> Message {
    Message::Insert { relation, new: Tuple::from_values(&[crate::change::Datum::Text(id.as_bytes())]) }
}

fn commit(end_lsn: u64) -> Message {
    Message::Commit { commit_lsn: Lsn(end_lsn - 1), end_lsn: Lsn(end_lsn), commit_micros: 5 }
}

fn annotate(prefix: &'static str, content: &'static str) -> Message {
    let (prefix, content) = (Bytes::from_static(prefix.as_bytes()), Bytes::from_static(content.as_bytes()));
    Message::Logical { transactional: true, lsn: Lsn(1), prefix, content }
}

/// An intake for two sinks: tables 0 and 1 are theirs, 9 is both's, 5 is nobody's.
fn intake() -> Intake {
    let mut intake = Intake::new(sinks(2));
    for (oid, name) in [(0, "t0"), (1, "t1"), (9, "all"), (5, "nobody")] {
        intake.learn(table(oid, name));
    }
    intake
}

fn take(intake: &mut Intake, messages: Vec<Message>) {
    for message in messages {
        intake.take(message, Instant::now()).unwrap();
    }
}

/// What a sink was fed, as text: `commit.index`, or `=lsn` for a mark.
fn fed(intake: &mut Intake, sink: usize) -> String {
    let items = intake.batch(sink).map(std::mem::take).unwrap_or_default();
    let words: Vec<String> = items
        .iter()
        .map(|item| match item {
            Feed::Database { system_id } => format!("db{system_id}"),
            Feed::Table { rule, .. } => format!("by{rule}"),
            Feed::Change { change, .. } => format!("{}.{}", change.transaction.commit_lsn.0, change.index),
            Feed::Mark(lsn) => format!("={}", lsn.0),
        })
        .collect();
    words.join(" ")
}

#[test]
fn each_sink_gets_its_tables_and_every_commit_as_a_mark() {
    let mut intake = intake();
    take(&mut intake, vec![begin(10), insert(0, "1"), insert(9, "1"), insert(1, "1"), insert(5, "1"), commit(11)]);
    assert_eq!(fed(&mut intake, 0), "10.1 10.2 =11");
    assert_eq!(fed(&mut intake, 1), "10.2 10.3 =11");
    assert_eq!(intake.received(), Lsn(11));
    let tally = intake.tally();
    assert_eq!((tally.inserts, tally.transactions, tally.last_commit_micros), (4, 1, Some(5)));
}

#[test]
fn marks_without_changes_between_them_are_one() {
    let mut intake = intake();
    take(&mut intake, vec![begin(10), insert(0, "1"), commit(11), begin(20), insert(0, "1"), commit(21)]);
    assert_eq!(fed(&mut intake, 0), "10.1 =11 20.1 =21");
    assert_eq!(fed(&mut intake, 1), "=21");
}

#[test]
fn a_keepalive_is_a_mark_outside_of_transactions_only() {
    let mut intake = intake();
    take(&mut intake, vec![begin(10)]);
    intake.keepalive(Lsn(99));
    assert_eq!(fed(&mut intake, 0), "");
    take(&mut intake, vec![commit(11)]);
    intake.keepalive(Lsn(99));
    assert_eq!(fed(&mut intake, 0), "=99");
}

#[test]
fn after_a_reconnect_what_was_fed_is_skipped_also_in_the_middle_of_a_transaction() {
    let mut intake = intake();
    take(&mut intake, vec![begin(10), insert(0, "1"), commit(11), begin(20), insert(0, "2"), insert(1, "2")]);
    assert_eq!(fed(&mut intake, 0), "10.1 =11 20.1");
    assert_eq!(fed(&mut intake, 1), "=11 20.2");
    intake.reconnected(Lsn(5));
    assert_eq!(intake.take(insert(0, "1"), Instant::now()).unwrap_err(), IntakeError::UnknownRelation(0));
    intake.learn(table(0, "t0"));
    intake.learn(table(1, "t1"));
    assert_eq!(intake.take(insert(0, "1"), Instant::now()).unwrap_err(), IntakeError::NoTransaction);
    take(&mut intake, vec![begin(10), insert(0, "1"), commit(11)]);
    take(&mut intake, vec![begin(20), insert(0, "2"), insert(1, "2"), insert(0, "3"), commit(21)]);
    assert_eq!(fed(&mut intake, 0), "=11 20.3 =21");
    assert_eq!(fed(&mut intake, 1), "=21");
}

#[test]
fn annotations_stay_until_cleared_or_committed() {
    let mut intake = intake();
    let set = |content| annotate("walhook:transaction_annotations.set", content);
    take(
        &mut intake,
        vec![begin(10), insert(0, "1"), set(r#"{"by":"ada"}"#), insert(0, "2"), set("not json"), insert(0, "3")],
    );
    take(&mut intake, vec![annotate("other", "{}"), insert(0, "4")]);
    take(&mut intake, vec![annotate("walhook:transaction_annotations.clear", ""), insert(0, "5"), commit(11)]);
    take(&mut intake, vec![begin(20), insert(0, "6"), commit(21)]);
    let items = intake.batch(0).map(std::mem::take).unwrap();
    let annotations: Vec<Option<String>> = items
        .iter()
        .filter_map(|item| match item {
            Feed::Change { change, .. } => Some(change.annotations.as_deref().map(str::to_owned)),
            Feed::Mark(_) | Feed::Database { .. } | Feed::Table { .. } => None,
        })
        .collect();
    let annotations: Vec<Option<&str>> = annotations.iter().map(Option::as_deref).collect();
    let ada = Some(r#"{"by":"ada"}"#);
    assert_eq!(annotations, [None, ada, Some(r#""not json""#), Some(r#""not json""#), None, None]);
}

#[test]
fn pitfall_09_a_truncate_takes_its_places_in_the_transaction_and_wedges_nothing() {
    let mut intake = intake();
    let truncate = Message::Truncate { relations: vec![0, 1], cascade: true, restart_identity: true };
    take(&mut intake, vec![begin(10), truncate, insert(0, "1"), commit(11)]);
    assert_eq!(fed(&mut intake, 0), "10.3 =11");
    assert_eq!(intake.tally().truncates, 1);
}

#[test]
fn a_row_of_another_shape_than_its_table_is_refused() {
    let mut intake = intake();
    take(&mut intake, vec![begin(10)]);
    let new = Tuple::from_values(&[crate::change::Datum::Null, crate::change::Datum::Null]);
    let error = intake.take(Message::Insert { relation: 0, new }, Instant::now());
    assert!(matches!(error, Err(IntakeError::Shape { values: 2, columns: 1, .. })), "{error:?}");
}

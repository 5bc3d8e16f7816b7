//! Plays: these messages come, exactly this is fed.

use bytes::Bytes;

use super::*;
use crate::change::{Column, Equality, ReplicaIdentity, TableName, Tuple};
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
    let (name_of_key, kind, equality) = ("id".to_owned(), Kind::Int, Equality::Text);
    let id = Column {
        name: name_of_key,
        type_oid: 23,
        type_modifier: -1,
        in_identity: true,
        kind,
        equality,
        shape: 0,
        altered: None,
    };
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

fn logical(prefix: &'static str, content: &'static str) -> Message {
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

/// What a sink was fed, as text: `commit.index`, or `=lsn` for a mark. Descriptions of tables are left out.
fn fed(intake: &mut Intake, sink: usize) -> String {
    let items = intake.batch(sink).map(std::mem::take).unwrap_or_default();
    let words: Vec<String> = items
        .iter()
        .filter_map(|item| match item {
            Feed::Database { system_id } => Some(format!("db{system_id}")),
            Feed::Table { .. } | Feed::Weight(_) => None,
            Feed::Change { change, .. } => Some(format!("{}.{}", change.transaction.commit_lsn.0, change.index)),
            Feed::Mark(lsn) => Some(format!("={}", lsn.0)),
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
fn a_table_is_announced_when_it_is_described_and_again_when_its_name_or_its_rule_is_another() {
    let mut intake = Intake::new(sinks(2));
    let mut announced = |table: Table| {
        intake.learn(table);
        let of = |batch: Option<&mut Vec<Feed>>| batch.map(std::mem::take).map_or(0, |items| items.len());
        (of(intake.batch(0)), of(intake.batch(1)))
    };
    assert_eq!(announced(table(0, "t0")), (1, 0));
    assert_eq!(announced(table(0, "t0")), (0, 0));
    assert_eq!(announced(Table { primary_key: Vec::new(), ..table(0, "t0") }), (1, 0));
    assert_eq!(announced(Table { primary_key: Vec::new(), ..table(0, "all") }), (1, 1));
}

#[test]
fn pitfall_55_what_was_altered_after_the_rows_is_not_believed_and_asked_for_again_behind_it() {
    let mut intake = Intake::new(sinks(1));
    let altered = |by: u32| {
        let mut altered = table(0, "t0");
        altered.columns[0].altered = Some(by);
        altered
    };
    let begin = |xid: u32| Message::Begin(Transaction { commit_lsn: Lsn(10), commit_micros: 5, xid });
    let rule = |intake: &mut Intake| {
        let items = intake.batch(0).map(std::mem::take).unwrap_or_default();
        let rules = items.into_iter().filter_map(|item| match item {
            Feed::Table { rule, .. } => Some(rule.to_string()),
            Feed::Database { .. } | Feed::Change { .. } | Feed::Mark(_) | Feed::Weight(_) => None,
        });
        rules.collect::<Vec<_>>()
    };
    // Numbers of transactions go round.
    for (before, by, behind) in [(7, 8, 9), (8, 8, 9), (u32::MAX, 3, 4)] {
        take(&mut intake, vec![begin(before)]);
        intake.learn(altered(by));
        assert_eq!(rule(&mut intake), ["table"], "{before}");
        assert_eq!(intake.doubted(&insert(0, "1"), Instant::now()), None);
        take(&mut intake, vec![insert(0, "1"), commit(11), begin(behind)]);
        let again = intake.doubted(&insert(0, "1"), Instant::now()).unwrap();
        assert_eq!(again.oid, 0);
        intake.learn(altered(by));
        assert_eq!(rule(&mut intake), [r#"["id:23:-1"]"#], "{behind}");
        assert_eq!(intake.doubted(&insert(0, "1"), Instant::now()), None);
    }
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
    assert_eq!(fed(&mut intake, 0), "=5 =11 20.3 =21");
    assert_eq!(fed(&mut intake, 1), "=5 =21");
}

#[test]
fn what_was_read_of_a_transaction_without_its_commit_counts_as_seen_for_a_promotion() {
    let mut intake = intake();
    take(&mut intake, vec![begin(10), insert(0, "1"), commit(12), begin(30), insert(5, "1")]);
    assert_eq!((intake.received(), intake.seen()), (Lsn(12), Lsn(31)));
    // A server that left the timeline between these two has another change at the position that is skipped as known.
    intake.reconnected(Lsn(12));
    assert_eq!(intake.seen(), Lsn(31));
    for (left, keeps) in [(Some(Lsn(12)), false), (Some(Lsn(30)), false), (None, false), (Some(Lsn(31)), true)] {
        let promotion = crate::source::standing::Promotion { before: 1, now: 2, left };
        let trouble = crate::source::standing::promoted_without(promotion, intake.seen());
        assert_eq!(trouble.is_none(), keeps, "{left:?}: {trouble:?}");
    }
    intake.learn(table(5, "nobody"));
    take(&mut intake, vec![begin(30), insert(5, "1"), commit(40)]);
    assert_eq!(intake.seen(), Lsn(40));
}

#[test]
fn annotations_stay_until_cleared_or_committed() {
    let mut intake = intake();
    let set = |content| logical("walhook:transaction_annotations.set", content);
    take(
        &mut intake,
        vec![begin(10), insert(0, "1"), set(r#"{"by":"ada"}"#), insert(0, "2"), set("not json"), insert(0, "3")],
    );
    take(&mut intake, vec![logical("other", "{}"), insert(0, "4")]);
    take(&mut intake, vec![logical("walhook:transaction_annotations.clear", ""), insert(0, "5"), commit(11)]);
    take(&mut intake, vec![begin(20), insert(0, "6"), commit(21)]);
    let items = intake.batch(0).map(std::mem::take).unwrap();
    let annotations: Vec<Option<String>> = items
        .iter()
        .filter_map(|item| match item {
            Feed::Change { change, .. } => Some(change.annotations.as_deref().map(str::to_owned)),
            Feed::Mark(_) | Feed::Database { .. } | Feed::Table { .. } | Feed::Weight(_) => None,
        })
        .collect();
    let annotations: Vec<Option<&str>> = annotations.iter().map(Option::as_deref).collect();
    let ada = Some(r#"{"by":"ada"}"#);
    assert_eq!(annotations, [None, ada, Some(r#""not json""#), Some(r#""not json""#), None, None]);
}

fn truncate(relations: &[u32]) -> Message {
    Message::Truncate { relations: relations.to_vec(), cascade: true, restart_identity: true }
}

#[test]
fn pitfall_09_a_truncate_takes_its_places_in_the_transaction_and_wedges_nothing() {
    let mut intake = intake();
    take(&mut intake, vec![begin(10), truncate(&[0, 1, 5]), insert(0, "1"), commit(11)]);
    assert_eq!(fed(&mut intake, 0), "10.4 =11");
    let tally = intake.tally();
    assert_eq!((tally.truncates, tally.ignored_truncates), (3, 3));
}

/// Two sinks that list truncate and one that does not, all on the same tables.
fn truncating() -> Intake {
    let sink = |name: &str, lines: &str| {
        format!("[sink.{name}]\nurl = \"http://localhost/\"\ntables = [\"public.t0\", \"public.all\"]\n{lines}\n")
    };
    let text = "[source.app]\nurl = \"postgres://u@localhost/app\"\n".to_owned()
        + &sink("rows", "actions = [\"insert\", \"truncate\"]")
        + &sink("whole", "actions = [\"truncate\"]\ngroup_by = \"table\"")
        + &sink("deaf", "");
    let sinks = config::parse(&text, std::path::Path::new("t.toml"), &|_| None, &[]).unwrap().sinks;
    let mut intake = Intake::new(sinks);
    for (oid, name) in [(0, "t0"), (9, "all"), (5, "nobody")] {
        intake.learn(table(oid, name));
    }
    intake
}

#[test]
fn pitfall_09_a_truncate_is_a_change_of_each_table_in_the_lists_order_and_a_barrier_among_rows() {
    let mut intake = truncating();
    take(&mut intake, vec![begin(10), insert(0, "1"), truncate(&[9, 5, 0]), insert(0, "2"), commit(11)]);
    let items = intake.batch(0).map(std::mem::take).unwrap();
    let seen: Vec<(u64, &str, bool)> = items
        .iter()
        .filter_map(|item| match item {
            Feed::Change { change, barrier, .. } => {
                Some((change.index, &**change.table.event(change.action()), *barrier))
            }
            Feed::Mark(_) | Feed::Database { .. } | Feed::Table { .. } | Feed::Weight(_) => None,
        })
        .collect();
    let expected = [
        (1, "public.t0.insert", false),
        (2, "public.all.truncate", true),
        (4, "public.t0.truncate", true),
        (5, "public.t0.insert", false),
    ];
    assert_eq!(seen, expected);
    let is_barrier = |item: &Feed| matches!(item, Feed::Change { barrier: true, .. });
    let whole = intake.batch(1).unwrap();
    assert!(!whole.iter().any(is_barrier), "where the table is one group, its order is enough");
    assert_eq!(fed(&mut intake, 1), "10.2 10.4 =11");
    assert_eq!(fed(&mut intake, 2), "10.1 10.5 =11");
    let tally = intake.tally();
    assert_eq!((tally.truncates, tally.ignored_truncates), (3, 1));
}

#[test]
fn pitfall_09_a_truncate_comes_once_over_a_reconnect_and_needs_its_tables_described() {
    let mut intake = truncating();
    take(&mut intake, vec![begin(10), truncate(&[9, 0])]);
    assert_eq!(fed(&mut intake, 1), "10.1 10.2");
    intake.reconnected(Lsn(5));
    intake.learn(table(9, "all"));
    take(&mut intake, vec![begin(10)]);
    assert_eq!(intake.take(truncate(&[9, 0]), Instant::now()).unwrap_err(), IntakeError::UnknownRelation(0));
    intake.reconnected(Lsn(5));
    intake.learn(table(9, "all"));
    intake.learn(table(0, "t0"));
    assert_eq!(intake.take(truncate(&[9]), Instant::now()).unwrap_err(), IntakeError::NoTransaction);
    take(&mut intake, vec![begin(10), truncate(&[9, 0]), commit(11)]);
    assert_eq!(fed(&mut intake, 1), "=5 =5 =11");
    assert_eq!(intake.tally().ignored_truncates, 0);
}

/// Sink 0 takes outbox.*, sink 1 everything, sink 2 a table.
fn listening() -> Intake {
    let text = "[source.app]\nurl = \"postgres://u@localhost/app\"\n\
        [sink.outbox]\nurl = \"http://localhost/\"\nmessages = [\"outbox.*\"]\n\
        [sink.all]\nurl = \"http://localhost/\"\nmessages = [\"*\"]\ntables = [\"public.t0\"]\n\
        [sink.table]\nurl = \"http://localhost/\"\ntables = [\"public.t0\"]\n";
    let sinks = config::parse(text, std::path::Path::new("t.toml"), &|_| None, &[]).unwrap().sinks;
    let mut intake = Intake::new(sinks);
    intake.learn(table(0, "t0"));
    intake
}

/// A transaction with messages of several prefixes, one of them walhook's own, among rows.
fn with_messages() -> Vec<Message> {
    let outside = Message::Logical {
        transactional: false,
        lsn: Lsn(1),
        prefix: Bytes::from_static(b"outbox.orders"),
        content: Bytes::from_static(b"{}"),
    };
    vec![
        outside,
        begin(10),
        logical("outbox.orders", "{}"),
        insert(0, "1"),
        logical("walhook:transaction_annotations.set", "7"),
        logical("other", "{}"),
        logical("walhook:watermark", "x"),
        logical("outbox.bills", "{}"),
        insert(0, "2"),
        commit(11),
    ]
}

#[test]
fn messages_go_to_whom_their_prefix_fits_and_every_one_but_walhooks_own_has_a_place() {
    let mut intake = listening();
    take(&mut intake, with_messages());
    assert_eq!(fed(&mut intake, 0), "10.1 10.4 =11");
    assert_eq!(fed(&mut intake, 1), "10.1 10.2 10.3 10.4 10.5 =11");
    assert_eq!(fed(&mut intake, 2), "10.2 10.5 =11");
    assert_eq!(intake.tally().messages, 3);
    // A source of which no sink takes messages has the same places.
    let mut deaf = self::intake();
    take(&mut deaf, with_messages());
    assert_eq!(fed(&mut deaf, 0), "10.2 10.5 =11");
    assert_eq!(deaf.tally().messages, 0);
}

#[test]
fn messages_carry_the_annotation_come_once_over_a_reconnect_and_belong_to_a_transaction() {
    let mut intake = listening();
    take(&mut intake, with_messages());
    let items = intake.batch(0).map(std::mem::take).unwrap();
    let annotations: Vec<Option<&str>> = items
        .iter()
        .filter_map(|item| match item {
            Feed::Change { change, barrier, .. } => {
                assert!(!barrier);
                Some(change.annotations.as_deref())
            }
            Feed::Mark(_) | Feed::Database { .. } | Feed::Table { .. } | Feed::Weight(_) => None,
        })
        .collect();
    assert_eq!(annotations, [None, Some("7")]);
    intake.reconnected(Lsn(5));
    intake.learn(table(0, "t0"));
    take(&mut intake, with_messages());
    assert_eq!(fed(&mut intake, 0), "=11");
    let error = intake.take(logical("outbox.orders", "{}"), Instant::now());
    assert_eq!(error.unwrap_err(), IntakeError::NoTransaction);
}

#[test]
fn a_row_of_another_shape_than_its_table_is_refused() {
    let mut intake = intake();
    take(&mut intake, vec![begin(10)]);
    let new = Tuple::from_values(&[crate::change::Datum::Null, crate::change::Datum::Null]);
    let error = intake.take(Message::Insert { relation: 0, new }, Instant::now());
    assert!(matches!(error, Err(IntakeError::Shape { values: 2, columns: 1, .. })), "{error:?}");
}

#[test]
fn of_changes_that_are_too_large_those_count_that_a_sink_takes() {
    let mut intake = intake();
    take(&mut intake, vec![begin(10)]);
    for message in [insert(0, "1"), insert(5, "1"), insert(9, "1"), logical("nobody's", "text")] {
        intake.take_reduced(message, 80_000, Instant::now()).unwrap();
    }
    assert_eq!(intake.tally().oversized, 2);
}

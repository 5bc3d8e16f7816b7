//! Messages as the manual lays them out, and bytes that are none.
#![expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]

use proptest::prelude::*;

use super::*;
use crate::change::Datum;

fn frame(parts: &[&[u8]]) -> Bytes {
    Bytes::from(parts.concat())
}

fn tuple(values: &[Option<&str>]) -> Vec<u8> {
    let mut bytes = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
    for value in values {
        match value {
            None => bytes.push(b'n'),
            Some(text) => {
                bytes.push(b't');
                bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                bytes.extend(text.as_bytes());
            }
        }
    }
    bytes
}

fn texts(tuple: &Tuple) -> Vec<Option<String>> {
    let text = |datum| match datum {
        Datum::Null => None,
        Datum::Unchanged => Some("(unchanged)".to_owned()),
        Datum::TooLarge(bytes) => Some(format!("({bytes} bytes)")),
        Datum::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
    };
    tuple.values().map(text).collect()
}

/// One valid frame of each kind.
fn samples() -> Vec<Bytes> {
    let (lsn, micros, id) = (&7u64.to_be_bytes()[..], &1_000_000i64.to_be_bytes()[..], &9u32.to_be_bytes()[..]);
    let (one, two) = (tuple(&[Some("1"), None]), tuple(&[Some("2"), Some("hello")]));
    vec![
        frame(&[b"B", lsn, micros, id]),
        frame(&[b"C\0", lsn, lsn, micros]),
        frame(&[b"O", lsn, b"elsewhere\0"]),
        frame(&[
            b"R",
            id,
            b"public\0orders\0d\0\x02",
            b"\x01id\0\0\0\0\x14\xff\xff\xff\xff\0note\0\0\0\0\x19\xff\xff\xff\xff",
        ]),
        frame(&[b"Y", id, b"public\0mood\0"]),
        frame(&[b"I", id, b"N", &two]),
        frame(&[b"U", id, b"N", &two]),
        frame(&[b"U", id, b"K", &one, b"N", &two]),
        frame(&[b"U", id, b"O", &one, b"N", &two]),
        frame(&[b"D", id, b"K", &one]),
        frame(&[b"D", id, b"O", &two]),
        frame(&[b"T\0\0\0\x02\x03", id, id]),
        frame(&[b"M\x01", lsn, b"mine\0\0\0\0\x03abc"]),
    ]
}

#[test]
fn a_transaction_is_known_at_its_begin_and_ends_after_its_commit_record() {
    let Message::Begin(begin) = decode(samples()[0].clone()).unwrap() else { panic!() };
    assert_eq!(begin, Transaction { commit_lsn: Lsn(7), commit_micros: POSTGRES_EPOCH_MICROS + 1_000_000, xid: 9 });
    let Message::Commit { commit_lsn, end_lsn, commit_micros } = decode(samples()[1].clone()).unwrap() else {
        panic!()
    };
    assert_eq!((commit_lsn, end_lsn, commit_micros), (Lsn(7), Lsn(7), begin.commit_micros));
}

#[test]
fn a_relation_comes_with_its_columns() {
    let Message::Relation(relation) = decode(samples()[3].clone()).unwrap() else { panic!() };
    assert_eq!((relation.oid, &*relation.namespace, &*relation.name), (9, "public", "orders"));
    assert_eq!(relation.identity, ReplicaIdentity::Default);
    let id = RelationColumn { name: "id".into(), in_identity: true, type_oid: 20, type_modifier: -1 };
    let note = RelationColumn { name: "note".into(), in_identity: false, type_oid: 25, type_modifier: -1 };
    assert_eq!(relation.columns, [id, note]);
}

#[test]
fn rows_are_slices_of_the_frame() {
    let frame = samples()[8].clone();
    let Message::Update { relation: 9, old: Some(OldRow::Full(old)), new } = decode(frame.clone()).unwrap() else {
        panic!()
    };
    assert_eq!(texts(&old), [Some("1".into()), None]);
    assert_eq!(texts(&new), [Some("2".into()), Some("hello".into())]);
    assert!(frame.as_ptr_range().contains(&old.0.as_ptr()) && frame.as_ptr_range().contains(&new.0.as_ptr()));
    assert_eq!(new.0.as_ptr_range().end, frame.as_ptr_range().end);
}

#[test]
fn an_unchanged_value_is_accepted_even_in_an_insert() {
    let Message::Insert { new, .. } = decode(Bytes::from_static(b"I\0\0\0\x01N\0\x01u")).unwrap() else { panic!() };
    assert_eq!(new.value(0), Some(Datum::Unchanged));
}

#[test]
fn truncate_and_messages_carry_their_flags() {
    let Message::Truncate { relations, cascade, restart_identity } = decode(samples()[11].clone()).unwrap() else {
        panic!()
    };
    assert_eq!((relations, cascade, restart_identity), (vec![9, 9], true, true));
    let Message::Logical { transactional, lsn, prefix, content } = decode(samples()[12].clone()).unwrap() else {
        panic!()
    };
    assert_eq!((transactional, lsn, &prefix[..], &content[..]), (true, Lsn(7), &b"mine"[..], &b"abc"[..]));
}

#[test]
fn errors_keep_cut_short_contradicting_and_not_asked_for_apart() {
    let kind = |bytes: &'static [u8]| decode(Bytes::from_static(bytes)).unwrap_err();
    assert_eq!(
        kind(b"I\0\0\0\x01N\0\x01t\0\0\0\x05ab"),
        DecodeError::Incomplete { message: "Insert", offset: 13, needed: 3 }
    );
    assert!(matches!(kind(b"I\0\0\0\x01N\0\x01z"), DecodeError::Malformed { offset: 8, .. }));
    assert!(matches!(kind(b"I\0\0\0\x01K\0\0"), DecodeError::Malformed { offset: 5, .. }));
    assert!(matches!(kind(b"I\0\0\0\x01N\0\x01b\0\0\0\x01a"), DecodeError::Unsupported { offset: 8, .. }));
    assert!(matches!(kind(b"S"), DecodeError::Unsupported { message: "Stream", .. }));
    assert!(matches!(kind(b""), DecodeError::Incomplete { .. }));
}

#[test]
fn a_count_alone_allocates_nothing() {
    let error = decode(Bytes::from_static(b"T\xff\xff\xff\xff\0\0\0\0\x01")).unwrap_err();
    assert!(matches!(error, DecodeError::Incomplete { message: "Truncate", .. }));
}

#[test]
fn every_shorter_frame_is_incomplete_and_every_longer_one_malformed() {
    for sample in samples() {
        decode(sample.clone()).unwrap();
        for end in 0..sample.len() {
            let error = decode(sample.slice(..end)).unwrap_err();
            assert!(matches!(error, DecodeError::Incomplete { .. }), "{end} of {sample:?}: {error}");
        }
        let error = decode(frame(&[&sample, b"x"])).unwrap_err();
        assert!(matches!(error, DecodeError::Malformed { .. }), "{error}");
    }
}

/// A tuple that was let through yields as many values as it counts, and they cover it exactly.
fn check(message: &Message) {
    let tuples = match message {
        Message::Insert { new, .. } => vec![new],
        Message::Update { old, new, .. } => old.iter().map(OldRow::tuple).chain([new]).collect(),
        Message::Delete { old, .. } => vec![old.tuple()],
        Message::Begin(_) | Message::Commit { .. } | Message::Origin { .. } | Message::Relation(_) => vec![],
        Message::Type(_) | Message::Truncate { .. } | Message::Logical { .. } => vec![],
    };
    for tuple in tuples {
        assert_eq!(tuple.values().count(), usize::from(u16::from_be_bytes([tuple.0[0], tuple.0[1]])));
        let bytes = |datum| if let Datum::Text(text) = datum { 5 + text.len() } else { 1 };
        assert_eq!(2 + tuple.values().map(bytes).sum::<usize>(), tuple.len_bytes());
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(message) = decode(Bytes::from(bytes)) {
            check(&message);
        }
    }

    #[test]
    fn mutated_frames_never_panic(
        sample in 0..samples().len(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut bytes = samples()[sample].to_vec();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(message) = decode(Bytes::from(bytes)) {
            check(&message);
        }
    }
}

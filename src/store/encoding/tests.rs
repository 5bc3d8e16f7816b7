//! What is written reads the same, and damaged bytes are refused.

#![expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::message::old_page_to_bytes;
use super::*;
use crate::change::{Lsn, Position};
use crate::record::message::MessageId;
use crate::store::batch::{KeptMessage, Member, MessageFacts};
use crate::ties::{Barrier, GroupId, Groups, ScopeId};

fn positions() -> impl Strategy<Value = Position> {
    (any::<u64>(), any::<u64>()).prop_map(|(lsn, index)| Position { commit_lsn: Lsn(lsn), index })
}

fn groups() -> impl Strategy<Value = Groups> {
    let group = || any::<u64>().prop_map(GroupId);
    prop_oneof![
        Just(Groups::None),
        group().prop_map(Groups::One),
        (group(), group()).prop_map(|(old, new)| Groups::Two(old, new))
    ]
}

fn barriers() -> impl Strategy<Value = Barrier> {
    let of_two = any::<u64>().prop_map(|old| Barrier::Scopes(ScopeId(old)));
    prop_oneof![Just(Barrier::None), Just(Barrier::Scope), of_two]
}

prop_compose! {
    fn facts()(
        id in any::<u128>(), position in positions(), groups in groups(), barrier in barriers(), commit_micros in any::<i64>(),
        event in "[a-c]{0,3}\\.é?", group in proptest::option::of(".{0,9}"),
    ) -> MessageFacts {
        let event: Arc<str> = event.into();
        MessageFacts { id: MessageId(id), position, groups, scope: ScopeId::of_event(&event), barrier, commit_micros, event, group: group.map(Arc::from) }
    }
}

prop_compose! {
    fn messages()(facts in facts(), json in vec(any::<u8>(), 0..300)) -> KeptMessage {
        KeptMessage { facts, json: Bytes::from(json) }
    }
}

proptest! {
    #[test]
    fn numbers_come_back(value in any::<u64>(), signed in any::<i64>()) {
        let mut out = Vec::new();
        put_varint(&mut out, value);
        put_zigzag(&mut out, signed);
        let mut reader = Reader::new(&out);
        prop_assert_eq!((reader.varint(), reader.zigzag(), reader.end()), (Ok(value), Ok(signed), Ok(())));
    }

    #[test]
    fn a_message_comes_back(message in messages()) {
        let bytes = Bytes::from(message_to_bytes(&message));
        prop_assert_eq!(message_from_bytes(&bytes, &mut Words::default()), Ok(message));
    }

    #[test]
    fn a_page_comes_back_with_those_wanted(messages in vec(messages(), 0..20), wanted in any::<u32>()) {
        let is_wanted = |index: u32| wanted >> index & 1 == 1;
        let expected = (0..).zip(&messages).filter(|(index, _)| is_wanted(*index));
        let expected: Vec<_> = expected.map(|(index, message)| (index, Ok(message.clone()))).collect();
        for page in [page_to_bytes(&messages), seal(&old_page_to_bytes(&messages), Packing::Lz4)] {
            prop_assert_eq!(page_from_bytes(page, is_wanted), Ok((expected.clone(), false)));
        }
    }

    #[test]
    fn a_changed_byte_costs_a_page_one_message_at_most(
        messages in vec(messages(), 1..20), at in any::<prop::sample::Index>(), by in 1u8..
    ) {
        let mut page = page_to_bytes(&messages);
        let at = at.index(page.len());
        page[at] ^= by;
        let (read, is_scratched) = page_from_bytes(page, |_| true).unwrap();
        prop_assert_eq!(read.len(), messages.len());
        let mut broken = 0;
        for ((index, read), (expected, message)) in read.into_iter().zip((0..).zip(&messages)) {
            prop_assert_eq!(index, expected);
            match read {
                Ok(read) => prop_assert_eq!(&read, message),
                Err(lost) => {
                    broken += 1;
                    prop_assert_eq!(lost.tied, message.facts.tied());
                }
            }
        }
        prop_assert_eq!(broken, usize::from(!is_scratched), "either a message is lost, or what is there twice was hit");
    }

    #[test]
    fn a_changed_byte_costs_a_body_one_message_at_most(
        parts in vec((vec(0u8..4, 0..300), 0usize..3), 2..40), at in any::<prop::sample::Index>(), by in 1u8..
    ) {
        let (body, members) = body_of(&parts);
        let mut kept = body_to_bytes(&body, &members);
        prop_assert_eq!(body_from_bytes(kept.clone()), Ok((Bytes::from(body.clone()), Vec::new())));
        let at = at.index(kept.len());
        kept[at] ^= by;
        let (read, damaged) = body_from_bytes(kept).unwrap();
        prop_assert!(damaged.len() <= 1 && read.len() == body.len());
        let mut expected = body;
        for index in damaged {
            expected[members[index].bytes.clone()].fill(b' ');
        }
        prop_assert_eq!(&read[..], &expected[..]);
    }

    #[test]
    fn members_stand_a_changed_byte(bytes in vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>(), by in 1u8..) {
        let mut kept = twice_sealed(&bytes);
        prop_assert_eq!(twice_unsealed(seal(&bytes, Packing::Plain)), Ok(Bytes::from(bytes.clone())), "as before");
        let at = at.index(kept.len());
        kept[at] ^= by;
        prop_assert_eq!(twice_unsealed(kept), Ok(Bytes::from(bytes)));
    }

    #[test]
    fn what_an_earlier_version_sealed_is_no_pack(bytes in vec(0u8..4, 0..600)) {
        for packing in [Packing::Plain, Packing::Lz4] {
            prop_assert!(!is_pack(&seal(&bytes, packing)));
        }
    }

    #[test]
    fn members_come_back(parts in vec((facts(), 0usize..1000, 0usize..1000), 0..20)) {
        let member = |(facts, start, length)| Member { facts, bytes: start..start + length };
        let members: Vec<Member> = parts.into_iter().map(member).collect();
        let body_bytes = members.iter().map(|member| member.bytes.end).max().unwrap_or(0);
        let bytes = members_to_bytes(&members);
        if body_bytes > 0 {
            prop_assert_eq!(members_from_bytes(&bytes, body_bytes - 1), Err(Corrupt::Number));
        }
        prop_assert_eq!(members_from_bytes(&bytes, body_bytes), Ok(members));
    }

    #[test]
    fn positions_come_back(mut positions in vec(positions(), 0..50), indexes in vec(0u64..100, 0..50)) {
        positions.extend(indexes.into_iter().map(|index| Position { commit_lsn: Lsn(5), index }));
        positions.sort();
        prop_assert_eq!(positions_from_bytes(&positions_to_bytes(&positions)), Ok(positions));
    }

    #[test]
    fn what_is_sealed_comes_back(bytes in vec(0u8..4, 0..2000)) {
        for packing in [Packing::Plain, Packing::Lz4] {
            prop_assert_eq!(unseal(seal(&bytes, packing)).unwrap(), &bytes[..]);
        }
    }

    #[test]
    fn a_changed_byte_is_noticed(bytes in vec(0u8..4, 0..600), at in any::<prop::sample::Index>(), by in 1u8..) {
        for packing in [Packing::Plain, Packing::Lz4] {
            let mut sealed = seal(&bytes, packing);
            let at = at.index(sealed.len());
            sealed[at] ^= by;
            prop_assert!(unseal(sealed).is_err());
        }
    }

    #[test]
    fn bytes_of_anybody_are_an_error_and_no_panic(bytes in vec(any::<u8>(), 0..200)) {
        let shared = Bytes::from(bytes.clone());
        // Whatever is read from them, it is no more than they could hold.
        let (page, _) = page_from_bytes(bytes.clone(), |_| true).unwrap_or_default();
        prop_assert!(page.len() < bytes.len().max(1));
        prop_assert!(body_from_bytes(bytes.clone()).is_err());
        prop_assert!(twice_unsealed(bytes.clone()).is_err());
        let sealed = [&[LZ4, 90, 0, 0, 0, 0, 0, 0, 0, 0], &bytes[..]].concat();
        for old in [&bytes, &sealed] {
            drop(old_places(old, |position| Ok::<_, Corrupt>(MessageId(u128::from(position.index)))).unwrap());
        }
        prop_assert!(members_from_bytes(&bytes, 10).unwrap_or_default().len() < bytes.len().max(1));
        prop_assert!(positions_from_bytes(&bytes).unwrap_or_default().len() < bytes.len().max(1));
        prop_assert!(unseal(bytes).is_err());
        drop(message_from_bytes(&shared, &mut Words::default()));
    }
}

/// A body of these members, each with so many bytes before it.
fn body_of(parts: &[(Vec<u8>, usize)]) -> (Vec<u8>, Vec<Member>) {
    let (mut body, mut members) = (Vec::new(), Vec::new());
    for (bytes, between) in parts {
        body.resize(body.len() + between, b',');
        let start = body.len();
        body.extend_from_slice(bytes);
        let position = Position { commit_lsn: Lsn(1), index: 1 };
        let facts = crate::store::tests::facts(position, Groups::None);
        members.push(Member { facts, bytes: start..body.len() });
    }
    body.push(b']');
    (body, members)
}

#[test]
fn members_that_do_not_ascend_are_kept_with_their_body_all_the_same() {
    let (body, mut members) = body_of(&[(vec![1; 9], 2), (vec![2; 9], 2)]);
    members.reverse();
    assert_eq!(body_from_bytes(body_to_bytes(&body, &members)), Ok((Bytes::from(body), Vec::new())));
}

#[test]
fn of_an_old_page_that_is_damaged_places_are_believed_as_far_as_the_ids_belong_to_them() {
    let message = |index: u64| {
        let mut message = crate::store::tests::message_of(Position { commit_lsn: Lsn(70), index }, Groups::None);
        message.facts.id = MessageId(u128::from(index) * 7);
        message
    };
    let messages: Vec<KeptMessage> = (1..9).map(message).collect();
    for packing in [Packing::Plain, Packing::Lz4] {
        let mut sealed = seal(&old_page_to_bytes(&messages), packing);
        let places = |sealed: &[u8]| {
            old_places(sealed, |position| Ok::<_, Corrupt>(MessageId(u128::from(position.index) * 7))).unwrap()
        };
        *sealed.last_mut().unwrap() ^= 1;
        assert!(page_from_bytes(sealed.clone(), |_| true).is_err());
        assert_eq!(places(&sealed).len(), 8, "its last byte is in its JSON");
        let half = sealed.len() / 2;
        sealed.truncate(half);
        let some = places(&sealed);
        assert!((1..8).contains(&some.len()) && some[0] == messages[0].facts.tied(), "{some:?}");
    }
}

#[test]
fn a_page_is_packed() {
    let messages: Vec<KeptMessage> = (1..500)
        .map(|index| {
            let mut message = crate::store::tests::message_of(Position { commit_lsn: Lsn(70), index }, Groups::None);
            message.json = Bytes::from([&message.json[..], &[b'x'; 400]].concat());
            message
        })
        .collect();
    let bytes: usize = messages.iter().map(|message| message.json.len()).sum();
    let packed = page_to_bytes(&messages).len();
    assert!(packed < bytes / 4, "{packed} of {bytes}");
}

#[test]
fn a_length_that_no_bytes_could_have_allocates_nothing() {
    let mut sealed = vec![LZ4];
    put_varint(&mut sealed, u64::MAX >> 1);
    let length = usize::MAX >> 1;
    sealed.extend_from_slice(&checksum(LZ4, length, b"abc").to_le_bytes());
    sealed.extend_from_slice(b"abc");
    assert_eq!(unseal(sealed), Err(Corrupt::Number));
}

#[test]
fn json_is_packed_and_noise_is_not() {
    let json = br#"{"record":{"id":1,"status":"pending"}},"#.repeat(50);
    assert!(seal(&json, Packing::Lz4).len() < json.len() / 10);
    let mut rng = fastrand::Rng::with_seed(1);
    let noise: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(1000).collect();
    assert_eq!(seal(&noise, Packing::Lz4).len(), noise.len() + 11);
}

/// Byte by byte, so that what stores hold stays readable: without a group, of one, of two.
#[test]
fn messages_of_before_there_were_barriers_read_as_they_were_written() {
    let hashes: &[u8] = b"\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0";
    let kinds = [Groups::None, Groups::One(GroupId(1)), Groups::Two(GroupId(1), GroupId(2))];
    for (count, groups) in kinds.into_iter().enumerate() {
        let kind = [u8::try_from(count).unwrap()];
        let bytes: [&[u8]; 4] = [
            b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x09\xAC\x02\x03",
            &kind,
            &hashes[..8 * count],
            b"\x0E\x04t.up\x01\x01g{\"record\":{}}",
        ];
        let bytes = bytes.concat();
        let event: Arc<str> = "t.up".into();
        let facts = MessageFacts {
            id: MessageId(9),
            position: Position { commit_lsn: Lsn(300), index: 3 },
            groups,
            scope: ScopeId::of_event(&event),
            barrier: Barrier::None,
            commit_micros: 7,
            event,
            group: Some("g".into()),
        };
        let message = KeptMessage { facts, json: Bytes::from_static(b"{\"record\":{}}") };
        assert_eq!(message_to_bytes(&message), bytes);
        assert_eq!(message_from_bytes(&Bytes::from(bytes), &mut Words::default()), Ok(message));
    }
}

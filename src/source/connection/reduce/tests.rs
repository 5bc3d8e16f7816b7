//! Frames cut at every place, beside a decoder that knows nothing of bounds.
#![expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::change::{Datum, OldRow, Tuple};
use crate::source::pgoutput::{self, Message};

/// A value of a generated row.
#[derive(Clone, Debug)]
enum Value {
    Null,
    Unchanged,
    Text(usize),
}

fn tuple(values: &[Value]) -> Vec<u8> {
    let texts: Vec<Vec<u8>> =
        values.iter().map(|value| if let Value::Text(n) = value { vec![b'v'; *n] } else { vec![] }).collect();
    let datum = |(value, text): (&Value, &Vec<u8>)| match value {
        Value::Null => vec![b'n'],
        Value::Unchanged => vec![b'u'],
        Value::Text(_) => [&b"t"[..], &u32::try_from(text.len()).unwrap().to_be_bytes(), text].concat(),
    };
    let count = u16::try_from(values.len()).unwrap().to_be_bytes();
    [count.to_vec(), values.iter().zip(&texts).flat_map(datum).collect()].concat()
}

fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len() + ENVELOPE - 1).unwrap().to_be_bytes();
    [&b"d"[..], &length, b"w", &[0; 24], message].concat()
}

/// Feeds a frame in pieces of these lengths, over and over, with bytes of the next frame behind it.
fn reduced(frame: &[u8], pieces: &[usize], bound: usize) -> Result<Vec<u8>, StreamError> {
    let mut reducer = Reducer::new(frame.len(), frame[ENVELOPE], bound);
    let stream = [frame, b"dnext"].concat();
    let (mut at, mut pieces) = (0, pieces.iter().copied().cycle());
    loop {
        let end = stream.len().min(at + pieces.next().unwrap_or(1));
        let fed = reducer.feed(&stream[at..end])?;
        // What is held is bounded at every moment: the bound, doubled by growing, and what stands in a value's place.
        let most = 2 * (bound + ENVELOPE + PREFIX_KEPT + 5 * 500);
        assert!(reducer.out.capacity() <= most, "{}", reducer.out.capacity());
        if let Some(out) = reducer.finish() {
            assert_eq!(at + fed, frame.len(), "exactly the frame is taken");
            return Ok(out);
        }
        assert_eq!(fed, end - at);
        assert!(end < stream.len(), "it never ends");
        at = end;
    }
}

fn message_of(frame: Vec<u8>) -> Message {
    assert_eq!(usize::try_from(u32::from_be_bytes(*frame[1..].first_chunk().unwrap())).unwrap() + 1, frame.len());
    pgoutput::decode_reduced(Bytes::from(frame).slice(ENVELOPE..)).unwrap()
}

fn tuples(message: &Message) -> Vec<&Tuple> {
    if let Message::Insert { new, .. } = message {
        return vec![new];
    }
    if let Message::Update { old, new, .. } = message {
        return old.iter().map(OldRow::tuple).chain([new]).collect();
    }
    let Message::Delete { old, .. } = message else { panic!("{message:?}") };
    vec![old.tuple()]
}

#[test]
fn a_large_value_goes_and_everything_around_it_stays() {
    let row = [Value::Text(3), Value::Text(VALUE_KEPT + 1), Value::Null, Value::Unchanged, Value::Text(VALUE_KEPT)];
    let bytes = frame(&[&b"I\0\0\0\x09N"[..], &tuple(&row)].concat());
    for pieces in [&[1][..], &[7], &[1_000_000]] {
        let message = message_of(reduced(&bytes, pieces, 1 << 20).unwrap());
        let kept = vec![b'v'; VALUE_KEPT];
        let values: Vec<Datum<'_>> = tuples(&message)[0].values().collect();
        let large = Datum::TooLarge(u32::try_from(VALUE_KEPT + 1).unwrap());
        assert_eq!(values, [Datum::Text(b"vvv"), large, Datum::Null, Datum::Unchanged, Datum::Text(&kept)]);
        let Message::Insert { relation: 9, .. } = message else { panic!("{message:?}") };
    }
}

#[test]
fn what_was_left_out_is_refused_from_the_wire() {
    let bytes = frame(b"I\0\0\0\x09N\0\x01x\0\0\0\x05");
    assert!(pgoutput::decode(Bytes::from(bytes.clone()).slice(ENVELOPE..)).is_err());
    assert!(reduced(&bytes, &[100], 0).is_err());
    assert!(pgoutput::decode_reduced(Bytes::from(bytes).slice(ENVELOPE..)).is_ok());
}

#[test]
fn a_logical_message_keeps_its_prefix_and_loses_its_content() {
    let content = vec![b'c'; 5000];
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    let bytes = frame(&[&b"M\x01\0\0\0\0\0\0\0\x07mine\0"[..], &length, &content].concat());
    for pieces in [&[1][..], &[3, 50], &[1_000_000]] {
        let message = message_of(reduced(&bytes, pieces, 100).unwrap());
        let Message::Logical { transactional: true, lsn, prefix, content } = message else { panic!("{message:?}") };
        assert_eq!((lsn.0, &prefix[..], content.len()), (7, &b"mine"[..], 0));
    }
    let long = [&b"M\x01\0\0\0\0\0\0\0\x07"[..], &vec![b'p'; 3 * PREFIX_KEPT], b"\0\0\0\0\0"].concat();
    for pieces in [1, 1000, 1_000_000] {
        let Message::Logical { prefix, .. } = message_of(reduced(&frame(&long), &[pieces], 100).unwrap()) else {
            panic!()
        };
        assert_eq!(prefix.len(), PREFIX_KEPT);
    }
}

#[test]
fn lengths_that_lie_are_found_out_and_allocate_nothing() {
    for message in [
        &b"I\0\0\0\x09N\0\x02t\xff\xff\xff\xffab"[..],
        b"I\0\0\0\x09N\xff\xffnnn",
        b"I\0\0\0\x09N\0\x01nn",
        b"I\0\0\0\x09K\0\x01n",
        b"I\0\0\0\x09N\0\x01b\0\0\0\x01a",
        b"U\0\0\0\x09K\0\x01nK\0\x01n",
        b"U\0\0\0\x09K\0\x01n",
        b"D\0\0\0\x09N\0\x01n",
        b"M\x01\0\0\0\0\0\0\0\x07mine",
        b"M\x01\0\0\0\0\0\0\0\x07mine\0\xff\xff\xff\xffab",
        b"M\x01\0\0\0\0\0\0\0\x07mine\0\0\0\0\x01ab",
        b"I\0",
    ] {
        for pieces in [1, 1000] {
            assert!(reduced(&frame(message), &[pieces], 10).is_err(), "{message:?}");
        }
    }
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        Just(Value::Unchanged),
        (0..300usize).prop_map(Value::Text),
        (0..3 * VALUE_KEPT).prop_map(Value::Text),
    ]
}

fn row() -> impl Strategy<Value = Vec<Value>> {
    proptest::collection::vec(value(), 0..12)
}

/// A message of rows, and its bytes.
fn message() -> impl Strategy<Value = Vec<u8>> {
    (0..5usize, row(), row()).prop_map(|(form, old, new)| {
        let (old, new) = (tuple(&old), tuple(&new));
        match form {
            0 => [&b"I\0\0\0\x09N"[..], &new].concat(),
            1 => [&b"U\0\0\0\x09N"[..], &new].concat(),
            2 => [&b"U\0\0\0\x09K"[..], &old, b"N", &new].concat(),
            3 => [&b"U\0\0\0\x09O"[..], &old, b"N", &new].concat(),
            _ => [&b"D\0\0\0\x09O"[..], &old].concat(),
        }
    })
}

proptest! {
    #[test]
    fn only_values_that_are_large_or_find_no_room_differ(
        message in message(),
        pieces in proptest::collection::vec(1..100_000usize, 1..5),
        bound in 0..400_000usize,
    ) {
        let whole = pgoutput::decode(Bytes::from(message.clone())).unwrap();
        let out = reduced(&frame(&message), &pieces, bound).unwrap();
        let mut used = out.len() - ENVELOPE;
        let reduced = message_of(out);
        prop_assert_eq!(tuples(&whole).len(), tuples(&reduced).len());
        let mut left_out = 0;
        for (whole, reduced) in tuples(&whole).into_iter().zip(tuples(&reduced)) {
            prop_assert_eq!(whole.columns(), reduced.columns());
            for (whole, reduced) in whole.values().zip(reduced.values()) {
                match (whole, reduced) {
                    (Datum::Text(text), Datum::TooLarge(bytes)) => {
                        prop_assert_eq!(text.len(), usize::try_from(bytes).unwrap());
                        prop_assert!(text.len() > VALUE_KEPT || message.len() > bound);
                        left_out += 1;
                    }
                    (whole, reduced) => prop_assert_eq!(whole, reduced),
                }
            }
        }
        if message.len() <= bound && left_out == 0 {
            prop_assert_eq!(used, message.len());
        }
        used -= used.min(5 * 24 + 64);
        prop_assert!(used <= bound, "{} bytes are kept", used);
    }

    #[test]
    fn broken_frames_never_panic_and_are_refused_as_the_decoder_does(
        message in message(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        piece in 1..5000usize,
    ) {
        let mut bytes = message;
        for (at, byte) in edits {
            // The kind of the message is known before it is reduced.
            let at = at.index(bytes.len().min(200)).max(1).min(bytes.len() - 1);
            bytes[at] = byte;
        }
        let whole = pgoutput::decode(Bytes::from(bytes.clone())).is_ok();
        prop_assert_eq!(reduced(&frame(&bytes), &[piece], 1 << 30).is_ok(), whole);
    }
}

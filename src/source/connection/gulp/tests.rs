//! Frames cut at every place.
use std::collections::VecDeque;

use proptest::prelude::*;
use tokio::io::ReadBuf;

use super::*;

/// Gives its pieces one a poll, with a Pending after each.
struct Pieces {
    pieces: VecDeque<Vec<u8>>,
    pause: bool,
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        self.pause = !self.pause;
        if self.pause {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Some(mut piece) = self.pieces.pop_front() else { return Poll::Ready(Ok(())) };
        let rest = piece.split_off(piece.len().min(into.remaining()));
        into.put_slice(&piece);
        if !rest.is_empty() {
            self.pieces.push_front(rest);
        }
        Poll::Ready(Ok(()))
    }
}

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag][..], &length, body].concat()
}

fn data(payload: &[u8]) -> Vec<u8> {
    frame(b'd', &[&[b'w'][..], &[0; 24], payload].concat())
}

fn pieces(bytes: &[u8], size: usize) -> Pieces {
    Pieces { pieces: bytes.chunks(size).map(<[u8]>::to_vec).collect(), pause: false }
}

/// Every payload, reading with a future that is dropped at each Pending, and how the reading ended.
fn read_all(mut socket: Pieces, memory: &Memory) -> (Vec<Bytes>, StreamError) {
    let mut inlet = Inlet::new();
    let mut payloads = Vec::new();
    let mut cx = Context::from_waker(std::task::Waker::noop());
    loop {
        let Poll::Ready(read) = pin!(inlet.gulp(&mut socket, memory)).poll(&mut cx) else { continue };
        let gulp = match read {
            Ok(gulp) => gulp,
            Err(error) => return (payloads, error),
        };
        for frame in gulp {
            if let Frame::XLogData { payload, .. } = frame {
                payloads.push(payload);
            }
        }
    }
}

#[test]
fn what_is_neither_row_nor_keepalive_is_skipped() {
    let notice = frame(b'N', b"VWARNING\0C01000\0Mcollation version mismatch\0\0");
    let bytes =
        [data(b"one"), notice, frame(b'S', b"TimeZone\0UTC\0"), data(b"two"), frame(b'C', b"COPY 0\0")].concat();
    let (payloads, end) = read_all(pieces(&bytes, 7), &Memory::new(1 << 20));
    assert_eq!(payloads, ["one", "two"]);
    assert!(matches!(end, StreamError::Closed), "{end}");
}

#[test]
fn an_error_comes_after_the_rows_before_it() {
    let error = frame(b'E', b"VFATAL\0C57P01\0Mterminating\0\0");
    let (payloads, end) = read_all(pieces(&[data(b"one"), error].concat(), 1000), &Memory::new(1 << 20));
    assert_eq!(payloads, ["one"]);
    assert_eq!(end.sqlstate(), Some("57P01"));
}

#[test]
fn nothing_is_handed_out_behind_a_publication_that_is_skipped() {
    let notice = frame(b'N', b"SWARNUNG\0VWARNING\0C55000\0Mskipped loading publication \"p\"\0\0");
    for size in [7, 1000] {
        let bytes = [data(b"one"), notice.clone(), data(b"two")].concat();
        let (payloads, end) = read_all(pieces(&bytes, size), &Memory::new(1 << 20));
        assert_eq!(payloads, ["one"]);
        assert!(matches!(&end, StreamError::PublicationSkipped { message } if message.contains("\"p\"")), "{end}");
    }
}

#[test]
fn an_error_behind_what_is_skipped_is_not_lost_when_the_server_closes() {
    let notice = frame(b'N', b"VWARNING\0C01000\0Mrestarting\0\0");
    let error = frame(b'E', b"VFATAL\0C57P01\0Mterminating\0\0");
    let bytes = [notice, frame(b'S', b"TimeZone\0UTC\0"), error].concat();
    let (payloads, end) = read_all(pieces(&bytes, 1000), &Memory::new(1 << 20));
    assert!(payloads.is_empty());
    assert_eq!(end.sqlstate(), Some("57P01"), "{end}");

    let mut inlet = Inlet::new();
    let mut socket = pieces(&bytes, 1000);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let drained = loop {
        if let Poll::Ready(drained) = pin!(inlet.drain(&mut socket)).poll(&mut cx) {
            break drained;
        }
    };
    assert_eq!(drained.unwrap_err().sqlstate(), Some("57P01"));
}

#[test]
fn a_trickle_holds_no_large_buffer_and_a_flood_is_read_in_big_gulps() {
    let memory = Memory::new(1 << 30);
    let (payloads, _) = read_all(pieces(&data(b"small"), 1 << 20), &memory);
    assert!(memory.held() < 170, "{}", memory.held());
    drop(payloads);
    assert_eq!(memory.held(), 0);
    let flood: Vec<u8> = (0..40_000).flat_map(|_| data(&[7; 100])).collect();
    let (payloads, _) = read_all(pieces(&flood, 1 << 20), &memory);
    assert_eq!(payloads.len(), 40_000);
    assert!(memory.held() < flood.len() * 5 / 4, "{} of {}", memory.held(), flood.len());
}

#[test]
fn a_header_alone_allocates_nothing() {
    let mut inlet = Inlet::new();
    let mut socket = pieces(b"d\x40\0\0\0w", 6);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let memory = Memory::new(1 << 20);
    while pin!(inlet.gulp(&mut socket, &memory)).poll(&mut cx).is_pending() {}
    assert_eq!(inlet.buffer.len(), 6);
    assert!(inlet.buffer.capacity() <= BUFFER_MIN, "{}", inlet.buffer.capacity());
}

#[test]
fn nonsense_is_malformed() {
    for bytes in
        [&b"d\xff\xff\xff\xff"[..], b"d\0\0\0\x03", b"?\0\0\0\x04", b"d\0\0\0\x05x", b"d\0\0\0\x04", b"d\0\0\0\x05w"]
    {
        let (payloads, end) = read_all(pieces(bytes, 100), &Memory::new(1 << 20));
        assert!(payloads.is_empty() && matches!(end, StreamError::Malformed { .. }), "{bytes:?}: {end}");
    }
}

/// An insert of one value of so many bytes.
fn insert(bytes: usize) -> Vec<u8> {
    let length = u32::try_from(bytes).unwrap().to_be_bytes();
    data(&[&b"I\0\0\0\x09N\0\x01t"[..], &length, &vec![b'v'; bytes]].concat())
}

#[test]
fn a_change_that_is_too_large_is_reduced_between_others_and_memory_stays_small() {
    let bytes = [insert(5), insert(50 << 20), insert(6), insert(3 << 20), insert(1 << 20), insert(7)].concat();
    for size in [9_999, 1 << 20] {
        let memory = Memory::with_message_bound(64 << 20, (1 << 20) + 100);
        let (mut inlet, mut socket) = (Inlet::new(), pieces(&bytes, size));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut came = Vec::new();
        let end = loop {
            // What is read but not handed out is charged to nobody, so it has to be little.
            let held = inlet.buffer.capacity() + memory.held();
            assert!(held <= 4 << 20, "{held}");
            match pin!(inlet.gulp(&mut socket, &memory)).poll(&mut cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(gulp)) => came.extend(gulp.map(|frame| match frame {
                    Frame::XLogData { payload, oversize, .. } => (payload.len(), oversize),
                    other @ (Frame::Keepalive { .. } | Frame::CopyDone) => panic!("{other:?}"),
                })),
                Poll::Ready(Err(end)) => break end,
            }
        };
        assert!(matches!(end, StreamError::Closed), "{end}");
        let large = |bytes: usize| (13, Some(13 + bytes));
        let whole = |bytes: usize| (13 + bytes, None);
        assert_eq!(came, [whole(5), large(50 << 20), whole(6), large(3 << 20), whole(1 << 20), whole(7)]);
    }
}

#[test]
fn what_cannot_be_reduced_is_not_gathered_without_end() {
    for bytes in [&b"d\x40\0\0\0k"[..], b"S\x40\0\0\0", b"d\x40\0\0\0wR"] {
        let bytes = [bytes, &[b'R'; 100]].concat();
        let (_, end) = read_all(pieces(&bytes, 50), &Memory::with_message_bound(64 << 20, 1 << 20));
        assert!(matches!(end, StreamError::Malformed { .. }), "{end}");
    }
}

#[test]
fn the_rest_of_a_large_change_is_thrown_away_at_the_end() {
    let bytes = [insert(5), insert(30 << 20), insert(20 << 20), frame(b'Z', b"I")].concat();
    let memory = Memory::with_message_bound(64 << 20, 1 << 20);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    for read_before in [0, 1000] {
        let (mut inlet, mut socket) = (Inlet::new(), pieces(&bytes, 99_999));
        for _ in 0..read_before {
            drop(pin!(inlet.gulp(&mut socket, &memory)).poll(&mut cx));
        }
        let drained = loop {
            if let Poll::Ready(drained) = pin!(inlet.drain(&mut socket)).poll(&mut cx) {
                break drained;
            }
            assert!(inlet.buffer.capacity() <= 1 << 20, "{}", inlet.buffer.capacity());
        };
        assert!(drained.is_ok() && inlet.ready, "{drained:?}");
    }
}

proptest! {
    #[test]
    fn no_cut_and_no_cancelling_loses_a_byte(lengths in prop::collection::vec(0..60_000usize, 1..20), size in 1..100_000usize) {
        let payload = |(index, length): (usize, &usize)| vec![u8::try_from(index).unwrap(); *length];
        let sent: Vec<Vec<u8>> = lengths.iter().enumerate().map(payload).collect();
        let bytes: Vec<u8> = sent.iter().flat_map(|payload| data(payload)).collect();
        let memory = Memory::new(1 << 30);
        let (payloads, end) = read_all(pieces(&bytes, size.max(bytes.len() / 5000)), &memory);
        prop_assert_eq!(&payloads, &sent);
        prop_assert!(matches!(end, StreamError::Closed));
        drop(payloads);
        prop_assert_eq!(memory.held(), 0);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), tags in prop::collection::vec((0..8usize, 0..40u8), 0..8)) {
        // Headers that are likely enough to be taken, between random bytes.
        let likely = tags.iter().flat_map(|(tag, length)| [b"dcENSZCA"[*tag], 0, 0, 0, *length]);
        let bytes: Vec<u8> = likely.chain(bytes).collect();
        read_all(pieces(&bytes, 50), &Memory::new(1 << 20));
    }
}

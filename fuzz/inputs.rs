//! What is done with one fuzzed input: the fuzz targets and the test that keeps the corpus green share these functions.
//!
//! Each takes bytes as they come, panics where a promise is broken, and otherwise does nothing. `frames`, `value` and
//! `message` draw what they need from the front of the input and use the rest as text.
#![allow(dead_code, reason = "each fuzz target uses one of these functions")]

use std::collections::{HashMap, VecDeque};
use std::future::Future as _;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use serde::de::IgnoredAny;
use tokio::io::{AsyncRead, ReadBuf};
use walhook::change::{
    Change, Column, Datum, Equality, Lsn, OldRow, ReplicaIdentity, Row, Table, TableName, Transaction, Tuple,
};
use walhook::config::{MessageForm, Numbers};
use walhook::memory::Memory;
use walhook::record::{
    ArrayKind, CompositeKind, Field, Kind, Rendering, RenderingSettings, TypeFacts, append_value, value_bytes_max,
};
use walhook::source::connection::{Frame, read_frames};
use walhook::source::pgoutput::{Message, decode, decode_reduced};

/// The payload of an XLogData frame: decoded, and every value of its rows looked at.
pub(crate) fn decoder(input: &[u8]) {
    let Ok(message) = decode(Bytes::copy_from_slice(input)) else { return };
    match message {
        Message::Insert { new, .. } => walk(&new, input),
        Message::Update { old, new, .. } => {
            walk(&new, input);
            if let Some(old) = old {
                walk(old.tuple(), input);
            }
        }
        Message::Delete { old, .. } => walk(old.tuple(), input),
        Message::Relation(relation) => {
            assert!(relation.columns.len() <= input.len());
            assert_eq!(relation.columns.capacity(), relation.columns.len(), "the count allocates what is there");
        }
        Message::Truncate { relations, .. } => assert!(relations.len() <= input.len()),
        Message::Logical { prefix, content, .. } => assert!(prefix.len() + content.len() <= input.len()),
        Message::Begin(_) | Message::Commit { .. } | Message::Origin { .. } | Message::Type(_) => {}
    }
}

/// A tuple has as many values as it says, all of them slices of the input.
fn walk(tuple: &Tuple, input: &[u8]) {
    let mut bytes = 0;
    let mut count = 0;
    for value in tuple.values() {
        count += 1;
        bytes += if let Datum::Text(text) = value { text.len() } else { 0 };
    }
    assert_eq!(count, tuple.columns());
    assert_eq!(tuple.value(count), None);
    assert!(bytes <= input.len());
}

/// A stream as a server might write it: the first byte says how it is cut into reads and from which size on a change is
/// reduced, the rest are its bytes.
pub(crate) fn frames(input: &[u8]) {
    let Some((&size, stream)) = input.split_first() else { return };
    let bound = if size & 1 == 0 { usize::MAX } else { 8 * usize::from(size) };
    let memory = Memory::with_message_bound(64 << 20, bound);
    let pieces = stream.chunks(usize::from(size) + 1).map(<[u8]>::to_vec).collect();
    let mut payloads = Vec::new();
    read_to_its_end(Pieces { pieces, pause: false }, &memory, 4 * (stream.len() + 4), |frame| {
        if let Frame::XLogData { payload, oversize, .. } = frame {
            drop(if oversize.is_some() { decode_reduced(payload.clone()) } else { decode(payload.clone()) });
            payloads.push(payload);
        }
    });
    // A value that is left out takes five bytes where it took six or more, an empty logical message no more than it did.
    assert!(payloads.iter().map(Bytes::len).sum::<usize>() <= stream.len());
    // Payloads share the buffers they came in, which are at most half empty, and each has been held for a reason.
    assert!(memory.held() <= 4 * stream.len() + (1 << 20), "{} bytes held for {}", memory.held(), stream.len());
    drop(payloads);
    assert_eq!(memory.held(), 0, "what nobody holds is given back");
}

/// Each piece is one read and one pause; reading that does not move on takes more polls.
fn read_to_its_end(socket: Pieces, memory: &Memory, polls: usize, see: impl FnMut(Frame)) {
    let mut reading = pin!(read_frames(socket, memory, see));
    let mut context = Context::from_waker(Waker::noop());
    assert!((0..polls).any(|_| reading.as_mut().poll(&mut context).is_ready()), "reading did not end");
}

/// Gives a piece at every other poll.
struct Pieces {
    pieces: VecDeque<Vec<u8>>,
    pause: bool,
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        self.pause = !self.pause;
        if self.pause {
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

/// A value of any kind: one well-formed JSON value comes out, no longer than was said.
pub(crate) fn value(input: &[u8]) {
    let mut drawer = Drawer { rest: input };
    let numbers = drawer.numbers();
    let kind = drawer.kind(5);
    let text = drawer.rest;
    let mut out = Vec::new();
    append_value(&mut out, &kind, text, numbers);
    well_formed(&out);
    let bound = value_bytes_max(&kind, text);
    assert!(out.len() <= bound, "{} bytes, said to be {bound} at most: {kind:?}", out.len());
    assert!(out.capacity() <= 2 * bound + 64, "{} bytes allocated for {bound}", out.capacity());
}

/// A change of any table, its rows taken through the decoder: one well-formed message comes out, no longer than was said.
pub(crate) fn message(input: &[u8]) {
    let mut drawer = Drawer { rest: input };
    let (form, numbers) =
        (if drawer.byte() & 1 == 0 { MessageForm::Change } else { MessageForm::Row }, drawer.numbers());
    let table = drawer.table();
    let Some(change) = drawer.change(Arc::new(table)) else { return };
    let rendering = Rendering::new(&RenderingSettings { source: "app", sink: "orders", form, numbers, system_id: 7 });
    let mut out = Vec::new();
    rendering.append(&change, &mut out);
    well_formed(&out);
    for enough in [0, 4096, usize::MAX] {
        let bound = rendering.body_bytes_max(&change, enough);
        assert!(out.len() < bound, "{} bytes and a comma, said to be {bound} at most", out.len());
    }
}

fn well_formed(json: &[u8]) {
    assert!(std::str::from_utf8(json).is_ok(), "not UTF-8");
    let read = serde_json::from_slice::<IgnoredAny>(json);
    assert!(read.is_ok(), "{:?}: {}", read, String::from_utf8_lossy(json));
}

/// Draws from the front of an input. Where it is used up there are zeros.
struct Drawer<'a> {
    rest: &'a [u8],
}

impl<'a> Drawer<'a> {
    fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        byte
    }

    /// Up to 255 bytes, or more where the length says 255.
    fn bytes(&mut self) -> &'a [u8] {
        let length = match self.byte() {
            255 => 255 + 256 * usize::from(self.byte()),
            length => usize::from(length),
        };
        let (taken, rest) = self.rest.split_at(length.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    fn name(&mut self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }

    fn numbers(&mut self) -> Numbers {
        if self.byte() & 1 == 0 { Numbers::Json } else { Numbers::String }
    }

    fn kind(&mut self, depth: u8) -> Kind {
        let inner = depth.saturating_sub(1);
        match self.byte() % 17 {
            0 => Kind::Text,
            1 => Kind::Bool,
            2 => Kind::Int,
            3 => Kind::BigInt,
            4 => Kind::Float,
            5 => Kind::Numeric,
            6 => Kind::Json,
            7 => Kind::Timestamp,
            8 => Kind::TimestampTz,
            9 => Kind::IntVector,
            10 => Kind::OidVector,
            11 => Kind::Hstore,
            12..=13 if depth > 0 => Kind::Array(ArrayKind::new(self.kind(inner), b',')),
            14 if depth > 0 => Kind::Array(ArrayKind::new(self.kind(inner), b';')),
            15..=16 if depth > 0 => {
                let fields = (0..self.byte() % 5).map(|_| Field::new(&self.name(), self.kind(inner))).collect();
                Kind::Composite(CompositeKind::new(fields))
            }
            _ => Kind::Text,
        }
    }

    fn table(&mut self) -> Table {
        let facts = self.facts();
        let columns = (0..self.byte() % 9).map(|_| {
            let (name, flags) = (self.name(), self.byte());
            // Some kinds come from the catalogue's words, some from nowhere.
            let type_oid = if flags & 2 == 0 { 0 } else { u32::from(self.byte()) * 3 + 16 };
            let kind = if flags & 2 == 0 { self.kind(3) } else { Kind::resolve(type_oid, &facts) };
            let (in_identity, equality) = (flags & 1 == 1, Equality::Text);
            Column { name, type_oid, type_modifier: -1, in_identity, kind, equality, shape: 0, altered: None }
        });
        let columns: Vec<Column> = columns.collect();
        let name = TableName { schema: self.name(), table: self.name() };
        Table::new(1, name, ReplicaIdentity::Full, columns, vec![0])
    }

    /// Types that refer to each other in any way.
    fn facts(&mut self) -> HashMap<u32, TypeFacts> {
        let count = self.byte() % 6;
        let fact = |drawer: &mut Self| TypeFacts {
            oid: u32::from(drawer.byte()) * 3 + 16,
            name: if drawer.byte() & 1 == 0 { "hstore".to_owned() } else { drawer.name() },
            namespace: "public".to_owned(),
            typtype: b"bcder"[usize::from(drawer.byte() % 5)],
            elem: u32::from(drawer.byte()) * 3 + 16,
            base: u32::from(drawer.byte()) * 3 + 16,
            relid: 0,
            delimiter: b",;"[usize::from(drawer.byte() % 2)],
            attributes: (0..drawer.byte() % 4).map(|_| (drawer.name(), u32::from(drawer.byte()) * 3 + 16)).collect(),
        };
        (0..count).map(|_| fact(self)).map(|facts| (facts.oid, facts)).collect()
    }

    fn change(&mut self, table: Arc<Table>) -> Option<Change> {
        let row = match self.byte() % 9 {
            0 => Row::Insert { new: self.tuple(&table)? },
            1 => Row::Update { old: None, new: self.tuple(&table)? },
            2..=3 => Row::Update { old: Some(OldRow::Full(self.tuple(&table)?)), new: self.tuple(&table)? },
            4 => Row::Update { old: Some(OldRow::Key(self.tuple(&table)?)), new: self.tuple(&table)? },
            5 => Row::Delete { old: OldRow::Key(self.tuple(&table)?) },
            6 => Row::Read { new: self.tuple(&table)? },
            7 => Row::Truncate,
            _ => Row::Message { content: Bytes::copy_from_slice(self.bytes()) },
        };
        let annotations = (self.byte() & 1 == 1).then(|| Arc::from("{\"by\":[1,2]}"));
        let commit_micros = i64::from_le_bytes(std::array::from_fn(|_| self.byte()));
        let transaction = Arc::new(Transaction { commit_lsn: Lsn(u64::MAX), commit_micros, xid: 7 });
        Some(Change {
            transaction,
            index: u64::MAX,
            table,
            row,
            annotations,
            oversize: None,
            received_at: Instant::now(),
        })
    }

    /// A row as it goes over the wire and comes out of the decoder.
    fn tuple(&mut self, table: &Table) -> Option<Tuple> {
        let values: Vec<Datum<'_>> = (0..table.columns.len())
            .map(|_| match self.byte() % 8 {
                0 => Datum::Null,
                1 => Datum::Unchanged,
                2 => Datum::TooLarge(u32::from(self.byte()) << 20),
                _ => Datum::Text(self.bytes()),
            })
            .collect();
        let mut frame = b"I\0\0\0\x01N".to_vec();
        frame.extend(u16::try_from(values.len()).ok()?.to_be_bytes());
        for value in &values {
            match value {
                Datum::Null => frame.push(b'n'),
                Datum::Unchanged => frame.push(b'u'),
                Datum::TooLarge(length) => {
                    frame.push(b'x');
                    frame.extend(length.to_be_bytes());
                }
                Datum::Text(text) => {
                    frame.push(b't');
                    frame.extend(u32::try_from(text.len()).ok()?.to_be_bytes());
                    frame.extend_from_slice(text);
                }
            }
        }
        let Ok(Message::Insert { new, .. }) = decode_reduced(frame.into()) else { panic!("a row of a known form") };
        assert!(new.values().eq(values.iter().copied()));
        Some(new)
    }
}

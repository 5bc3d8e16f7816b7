//! The message: one change as one sink sends it (the receiver's side of it is in docs/DELIVERY.md).

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use super::datetime::append_rfc3339;
use super::escape::{append_string, hex_digit};
use super::kind::Kind;
use super::value::append_value;
use crate::change::{Action, Change, Column, Datum, OldRow, Position, Row, Tuple, Values};
use crate::config::{MessageForm, Numbers};

/// Names a change for one sink for ever; as text it is the message's `idempotency_key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub u128);

impl MessageId {
    /// The id of the change at `position` for the sink of this name: see [`Rendering::message_id`].
    pub fn of(system_id: u64, sink: &str, position: Position) -> Self {
        Self::hashed(system_id, xxh3_128(sink.as_bytes()), position)
    }

    fn hashed(system_id: u64, sink_hash: u128, position: Position) -> Self {
        let mut input = [0; 40];
        let (place, sink) = input.split_at_mut(24);
        place.copy_from_slice([system_id, position.commit_lsn.0, position.index].map(u64::to_le_bytes).as_flattened());
        sink.copy_from_slice(&sink_hash.to_le_bytes());
        Self(xxh3_128(&input))
    }

    /// Its text without a formatter.
    fn hex(self) -> [u8; 32] {
        let mut digits = [0; 32];
        let (pairs, _) = digits.as_chunks_mut::<2>();
        for (pair, byte) in pairs.iter_mut().zip(self.0.to_be_bytes()) {
            *pair = [byte >> 4, byte & 0xF].map(hex_digit);
        }
        digits
    }
}

/// 32 hexadecimal digits, lower case.
impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What a [`Rendering`] is made of.
#[derive(Clone, Debug)]
pub struct RenderingSettings<'a> {
    /// Name of the source: `database.name`.
    pub source: &'a str,
    /// Name of the sink: `consumer.name`.
    pub sink: &'a str,
    /// The sink's `message`.
    pub form: MessageForm,
    /// The sink's `numbers`.
    pub numbers: Numbers,
    /// What `IDENTIFY_SYSTEM` calls `systemid`.
    pub system_id: u64,
}

/// How one sink's messages are written. Built once per sink and shared by its deliveries.
#[derive(Debug)]
pub struct Rendering {
    form: MessageForm,
    numbers: Numbers,
    system_id: u64,
    sink_hash: u128,
    consumer_id: Uuid,
    /// `{"id":"…","name":"…"}`
    consumer: Box<[u8]>,
    /// `{"name":"…"}`
    database: Box<[u8]>,
    fallbacks: AtomicU64,
}

/// The namespace of consumer ids. Fixed for ever.
const CONSUMERS: Uuid = Uuid::from_u128(0xC3EF_FA4D_453A_4D0A_99FE_AE05_898C_C1DF);

impl Rendering {
    /// For one sink of one database.
    pub fn new(settings: &RenderingSettings<'_>) -> Self {
        let name = format!("{}/{}", settings.source, settings.sink);
        let consumer_id = Uuid::new_v5(&CONSUMERS, name.as_bytes());
        let mut consumer = format!("{{\"id\":\"{consumer_id}\",\"name\":").into_bytes();
        append_string(&mut consumer, settings.sink.as_bytes());
        consumer.push(b'}');
        let mut database = b"{\"name\":".to_vec();
        append_string(&mut database, settings.source.as_bytes());
        database.push(b'}');
        Self {
            form: settings.form,
            numbers: settings.numbers,
            system_id: settings.system_id,
            sink_hash: xxh3_128(settings.sink.as_bytes()),
            consumer_id,
            consumer: consumer.into(),
            database: database.into(),
            fallbacks: AtomicU64::new(0),
        }
    }

    /// `consumer.id`.
    pub fn consumer_id(&self) -> Uuid {
        self.consumer_id
    }

    /// Values passed so far as strings of their text because their kind did not understand it.
    pub fn fallbacks(&self) -> u64 {
        self.fallbacks.load(Ordering::Relaxed)
    }

    /// The id of the change at `position`: XXH3 (128 bits, no seed) of system identifier, commit LSN, index, each 8 bytes
    /// little-endian, and the 16 bytes little-endian of the same hash of the sink's name. This layout never changes.
    pub fn message_id(&self, position: Position) -> MessageId {
        MessageId::hashed(self.system_id, self.sink_hash, position)
    }

    /// Bytes of the names that stand in every message.
    pub(super) fn fixed_bytes(&self) -> usize {
        self.consumer.len() + self.database.len()
    }

    /// Appends the message of `change`.
    pub fn append(&self, change: &Change, out: &mut Vec<u8>) {
        self.append_as(self.message_id(change.position()), change, out);
    }

    /// The same with the change's id, which the caller has computed already.
    pub fn append_as(&self, id: MessageId, change: &Change, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"record\":");
        self.append_record(change, out);
        match self.form {
            MessageForm::Change => {
                out.extend_from_slice(b",\"changes\":");
                self.append_changes(change, out);
                out.extend_from_slice(b",\"action\":\"");
                out.extend_from_slice(change.action().as_str().as_bytes());
                out.extend_from_slice(b"\",\"metadata\":");
                self.append_metadata(id, change, out);
            }
            MessageForm::Row => {
                out.extend_from_slice(b",\"metadata\":");
                out.extend_from_slice(&change.table.keys.metadata);
                out.extend_from_slice(b",\"consumer\":");
                out.extend_from_slice(&self.consumer);
                append_key(id, out);
                append_unchanged(change, out);
                append_too_large(change, out);
                out.push(b'}');
            }
        }
        out.push(b'}');
    }

    fn append_record(&self, change: &Change, out: &mut Vec<u8>) {
        match &change.row {
            Row::Insert { .. } | Row::Update { .. } | Row::Delete { .. } | Row::Read { .. } => {
                let record =
                    cells(change).filter_map(|cell| Some((cell.key, cell.column, cell.after.or(cell.before)?)));
                self.append_object(record, out);
            }
            Row::Truncate => out.extend_from_slice(b"null"),
            Row::Message { .. } if change.oversize.is_some() => out.extend_from_slice(b"null"),
            Row::Message { content } => {
                // Plain text is as good a content as JSON: no value of a type without a mapping.
                append_value(out, &Kind::Json, content, self.numbers);
            }
        }
    }

    fn count(&self, fallbacks: u64) {
        if fallbacks > 0 {
            self.fallbacks.fetch_add(fallbacks, Ordering::Relaxed);
        }
    }

    /// Previous values of what changed; null where there is no old row to compare with.
    fn append_changes(&self, change: &Change, out: &mut Vec<u8>) {
        match (change.action(), change.old_row()) {
            (Action::Update, Some(_)) => {
                let changed = cells(change).filter_map(|cell| match (cell.before, cell.after) {
                    (Some(before), Some(after)) if before != after => Some((cell.key, cell.column, before)),
                    (Some(_) | None, Some(_) | None) => None,
                });
                self.append_object(changed, out);
            }
            (
                Action::Insert | Action::Update | Action::Delete | Action::Read | Action::Truncate | Action::Message,
                _,
            ) => out.extend_from_slice(b"null"),
        }
    }

    fn append_object<'a>(&self, members: impl Iterator<Item = (&'a [u8], &'a Column, Datum<'a>)>, out: &mut Vec<u8>) {
        let mut mark = b'{';
        for (key, column, value) in members {
            out.push(mark);
            mark = b',';
            out.extend_from_slice(key);
            match value {
                Datum::Text(text) => {
                    self.count(append_value(out, &column.kind, text, self.numbers));
                }
                Datum::Null | Datum::Unchanged | Datum::TooLarge(_) => out.extend_from_slice(b"null"),
            }
        }
        if mark == b'{' {
            out.push(mark);
        }
        out.push(b'}');
    }

    fn append_metadata(&self, id: MessageId, change: &Change, out: &mut Vec<u8>) {
        let mut number = itoa::Buffer::new();
        out.extend_from_slice(&change.table.keys.metadata);
        out.extend_from_slice(b",\"commit_timestamp\":\"");
        append_rfc3339(out, change.transaction.commit_micros);
        out.extend_from_slice(b"\",\"commit_lsn\":");
        out.extend_from_slice(number.format(change.transaction.commit_lsn.0).as_bytes());
        out.extend_from_slice(b",\"commit_idx\":");
        out.extend_from_slice(number.format(change.index).as_bytes());
        append_key(id, out);
        out.extend_from_slice(b",\"consumer\":");
        out.extend_from_slice(&self.consumer);
        out.extend_from_slice(b",\"database\":");
        out.extend_from_slice(&self.database);
        out.extend_from_slice(b",\"transaction_annotations\":");
        out.extend_from_slice(change.annotations.as_deref().unwrap_or("null").as_bytes());
        append_unchanged(change, out);
        append_too_large(change, out);
        out.push(b'}');
    }
}

fn append_key(id: MessageId, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"idempotency_key\":\"");
    out.extend_from_slice(&id.hex());
    out.push(b'"');
}

/// Names the columns of which neither image has the value.
fn append_unchanged(change: &Change, out: &mut Vec<u8>) {
    let mut mark: &[u8] = b",\"unchanged\":[";
    for cell in cells(change).filter(|cell| cell.unchanged && cell.before.is_none()) {
        out.extend_from_slice(mark);
        mark = b",";
        append_string(out, cell.column.name.as_bytes());
    }
    if mark == b"," {
        out.push(b']');
    }
}

/// Names what was left out of a change that is too large, with the bytes of its text. It ends a message that is not to be
/// sent, however many values that are.
fn append_too_large(change: &Change, out: &mut Vec<u8>) {
    let Some(bytes) = change.oversize else { return };
    let mut number = itoa::Buffer::new();
    out.extend_from_slice(b",\"too_large\":{");
    let mut mark: &[u8] = b"";
    for (key, bytes) in cells(change).filter_map(|cell| Some((cell.key, cell.too_large?))) {
        out.extend_from_slice(mark);
        mark = b",";
        out.extend_from_slice(key);
        out.extend_from_slice(number.format(bytes).as_bytes());
    }
    if matches!(change.row, Row::Message { .. }) {
        out.extend_from_slice(b"\"record\":");
        out.extend_from_slice(number.format(bytes).as_bytes());
    }
    out.push(b'}');
}

/// One column of a change.
struct Cell<'a> {
    /// `"name":`
    key: &'a [u8],
    column: &'a Column,
    /// Its value before, where Postgres sent it; never [`Datum::Unchanged`] or [`Datum::TooLarge`].
    before: Option<Datum<'a>>,
    /// Its value after, likewise.
    after: Option<Datum<'a>>,
    /// Left out of the row's own image as unchanged TOAST.
    unchanged: bool,
    /// Bytes of its text where that is too large; then neither image counts.
    too_large: Option<u32>,
}

/// The columns of a change in the table's order.
fn cells(change: &Change) -> impl Iterator<Item = Cell<'_>> {
    let (mut new, old) = (change.new_tuple().map(Tuple::values), change.old_row());
    let only_key = matches!(old, Some(OldRow::Key(_)));
    let mut old = old.map(|old| old.tuple().values());
    let table = &change.table;
    let deleted = new.is_none();
    table.keys.columns.iter().zip(&table.columns).map(move |(key, column)| {
        let (before, after) = (advance(&mut old), advance(&mut new));
        let image = if deleted { before } else { after };
        let before = before.filter(|_| !only_key || column.in_identity);
        let too_large = too_large(after).or(too_large(before));
        let value = |datum| known(datum).filter(|_| too_large.is_none());
        Cell {
            key,
            column,
            before: value(before),
            after: value(after),
            unchanged: image == Some(Datum::Unchanged) && too_large.is_none(),
            too_large,
        }
    })
}

fn advance<'a>(values: &mut Option<Values<'a>>) -> Option<Datum<'a>> {
    values.as_mut().and_then(Iterator::next)
}

fn known(datum: Option<Datum<'_>>) -> Option<Datum<'_>> {
    datum.filter(|datum| match datum {
        Datum::Null | Datum::Text(_) => true,
        Datum::Unchanged | Datum::TooLarge(_) => false,
    })
}

fn too_large(datum: Option<Datum<'_>>) -> Option<u32> {
    match datum? {
        Datum::TooLarge(bytes) => Some(bytes),
        Datum::Null | Datum::Unchanged | Datum::Text(_) => None,
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;

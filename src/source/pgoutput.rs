//! Pure: the payload of one XLogData frame becomes one [`Message`] of pgoutput, protocol version 1, values as text.
//!
//! Rows are not copied: a [`Tuple`] is a slice of the frame, checked here once and trusted afterwards. What is cut short
//! ([`DecodeError::Incomplete`]), what contradicts the protocol ([`DecodeError::Malformed`]) and what we never asked
//! for ([`DecodeError::Unsupported`]: binary values, streamed and two-phase transactions) stay apart, since the first
//! two mean a broken peer and the last a wrong option. Layouts: manual page "Logical Replication Message Formats".
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::{Buf as _, Bytes};

use super::wire::{Cursor, WireError};
use crate::change::{Lsn, OldRow, ReplicaIdentity, Transaction, Tuple};

mod tuple;

#[cfg(test)]
mod tests;

/// Microseconds from 1970-01-01 to 2000-01-01, the epoch of Postgres.
pub const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// One message of the stream.
#[derive(Clone, Debug)]
pub enum Message {
    /// A transaction starts; its commit LSN and time are known already.
    Begin(Transaction),
    /// The transaction is over.
    Commit {
        /// LSN of the commit record, as in Begin.
        commit_lsn: Lsn,
        /// LSN after the commit record: confirming it means this transaction is not sent again.
        end_lsn: Lsn,
        /// Commit time, microseconds since 1970-01-01 UTC.
        commit_micros: i64,
    },
    /// The transaction was replicated from elsewhere.
    Origin {
        /// Commit LSN on the origin.
        lsn: Lsn,
        /// Its name.
        name: String,
    },
    /// What a relation looks like from here on.
    Relation(Relation),
    /// A type that is not built in, ahead of the Relation that uses it.
    Type(TypeInfo),
    /// A new row.
    Insert {
        /// `pg_class.oid`.
        relation: u32,
        /// Its values.
        new: Tuple,
    },
    /// A changed row.
    Update {
        /// `pg_class.oid`.
        relation: u32,
        /// Before, if Postgres sent it.
        old: Option<OldRow>,
        /// After.
        new: Tuple,
    },
    /// A removed row.
    Delete {
        /// `pg_class.oid`.
        relation: u32,
        /// Before.
        old: OldRow,
    },
    /// Emptied tables.
    Truncate {
        /// `pg_class.oid` of each.
        relations: Vec<u32>,
        /// TRUNCATE … CASCADE.
        cascade: bool,
        /// TRUNCATE … RESTART IDENTITY.
        restart_identity: bool,
    },
    /// From `pg_logical_emit_message`.
    Logical {
        /// Belongs to the transaction around it; otherwise it comes outside of Begin and Commit.
        transactional: bool,
        /// Where it stands in the WAL.
        lsn: Lsn,
        /// Whose it is.
        prefix: Bytes,
        /// What it says.
        content: Bytes,
    },
}

/// A relation, as announced before its first change and after each of its changes of shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Schema; empty means `pg_catalog`.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// What is logged of old rows.
    pub identity: ReplicaIdentity,
    /// In the order of values in tuples.
    pub columns: Vec<RelationColumn>,
}

/// A column of a [`Relation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationColumn {
    /// Name.
    pub name: String,
    /// Part of the replica identity; true for every column under FULL.
    pub in_identity: bool,
    /// `pg_type.oid`.
    pub type_oid: u32,
    /// `atttypmod`, or -1.
    pub type_modifier: i32,
}

/// A type that is not built in. A domain comes with its own OID, but its base type's name and an empty namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeInfo {
    /// `pg_type.oid`.
    pub oid: u32,
    /// Schema; empty means `pg_catalog`.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// Why a frame was refused. Offsets count from the start of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The frame ends before the message does.
    #[error("{message} message ends early: at byte {offset}, {needed} more bytes were due")]
    Incomplete {
        /// Kind of message.
        message: &'static str,
        /// Where.
        offset: usize,
        /// At least so many bytes are missing.
        needed: usize,
    },
    /// The frame contradicts the protocol.
    #[error("{message} message is malformed at byte {offset}: {what}")]
    Malformed {
        /// Kind of message.
        message: &'static str,
        /// Where.
        offset: usize,
        /// How.
        what: &'static str,
    },
    /// The frame uses a feature that was not asked for.
    #[error("{message} message at byte {offset}: {what}")]
    Unsupported {
        /// Kind of message.
        message: &'static str,
        /// Where.
        offset: usize,
        /// Which feature.
        what: &'static str,
    },
}

impl DecodeError {
    /// Names the message in which a read failed.
    fn wire(message: &'static str, error: WireError) -> Self {
        match error {
            WireError::Incomplete { offset, needed } => Self::Incomplete { message, offset, needed },
            WireError::LeftOver { offset, .. } => Self::Malformed { message, offset, what: "bytes are left over" },
        }
    }
}

/// Decodes the payload of one XLogData frame.
///
/// # Errors
/// When it is not exactly one message of protocol version 1 with text values.
pub fn decode(frame: Bytes) -> Result<Message, DecodeError> {
    decode_as(frame, false)
}

/// The same of a message that was reduced while it was read: values that are too large are left out.
///
/// # Errors
/// As [`decode`].
pub fn decode_reduced(frame: Bytes) -> Result<Message, DecodeError> {
    decode_as(frame, true)
}

fn decode_as(frame: Bytes, reduced: bool) -> Result<Message, DecodeError> {
    match frame.first() {
        Some(b'I') => insert(frame, reduced),
        Some(b'U') => update(frame, reduced),
        Some(b'D') => delete(frame, reduced),
        Some(b'B') => whole(&frame, "Begin", begin),
        Some(b'C') => whole(&frame, "Commit", commit),
        Some(b'O') => whole(&frame, "Origin", origin),
        Some(b'R') => whole(&frame, "Relation", relation),
        Some(b'Y') => whole(&frame, "Type", type_info),
        Some(b'T') => whole(&frame, "Truncate", truncate),
        Some(b'M') => whole(&frame, "Message", |fields| logical(&frame, fields)),
        Some(&tag) => Err(unknown(tag)),
        None => Err(DecodeError::Incomplete { message: "an empty", offset: 0, needed: 1 }),
    }
}

/// Reads the values of one message, and knows its name when one is wrong.
struct Fields<'a> {
    message: &'static str,
    cursor: Cursor<'a>,
}

impl<'a> Fields<'a> {
    fn read<T>(&mut self, read: impl FnOnce(&mut Cursor<'a>) -> Result<T, WireError>) -> Result<T, DecodeError> {
        read(&mut self.cursor).map_err(|error| DecodeError::wire(self.message, error))
    }

    fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        self.read(Cursor::u64).map(Lsn)
    }

    fn micros(&mut self) -> Result<i64, DecodeError> {
        Ok(self.read(Cursor::i64)?.saturating_add(POSTGRES_EPOCH_MICROS))
    }

    fn name(&mut self) -> Result<String, DecodeError> {
        self.read(|cursor| cursor.cstr().map(|name| String::from_utf8_lossy(name).into_owned()))
    }

    fn flags(&mut self, known: u8, what: &'static str) -> Result<u8, DecodeError> {
        let flags = self.read(Cursor::u8)?;
        if flags & !known == 0 { Ok(flags) } else { Err(self.malformed(what)) }
    }

    /// Refuses what was read last.
    fn malformed(&self, what: &'static str) -> DecodeError {
        DecodeError::Malformed { message: self.message, offset: self.cursor.offset().saturating_sub(1), what }
    }
}

fn whole<'a>(
    frame: &'a [u8],
    message: &'static str,
    read: impl FnOnce(&mut Fields<'a>) -> Result<Message, DecodeError>,
) -> Result<Message, DecodeError> {
    let mut fields = Fields { message, cursor: Cursor::new(frame) };
    fields.read(Cursor::u8)?;
    let decoded = read(&mut fields)?;
    fields.read(|cursor| cursor.end())?;
    Ok(decoded)
}

fn begin(fields: &mut Fields<'_>) -> Result<Message, DecodeError> {
    let commit_lsn = fields.lsn()?;
    let commit_micros = fields.micros()?;
    Ok(Message::Begin(Transaction { commit_lsn, commit_micros, xid: fields.read(Cursor::u32)? }))
}

fn commit(fields: &mut Fields<'_>) -> Result<Message, DecodeError> {
    fields.flags(0, "unknown flags")?;
    Ok(Message::Commit { commit_lsn: fields.lsn()?, end_lsn: fields.lsn()?, commit_micros: fields.micros()? })
}

fn origin(fields: &mut Fields<'_>) -> Result<Message, DecodeError> {
    Ok(Message::Origin { lsn: fields.lsn()?, name: fields.name()? })
}

fn relation(fields: &mut Fields<'_>) -> Result<Message, DecodeError> {
    let (oid, namespace, name) = (fields.read(Cursor::u32)?, fields.name()?, fields.name()?);
    let identity = match fields.read(Cursor::u8)? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        _ => return Err(fields.malformed("unknown replica identity")),
    };
    let count = usize::from(fields.read(Cursor::u16)?);
    // A column takes ten bytes at least, so the count alone cannot make us allocate.
    let mut columns = Vec::with_capacity(count.min(fields.cursor.rest().len() / 10));
    for _ in 0..count {
        columns.push(RelationColumn {
            in_identity: fields.flags(1, "unknown column flags")? == 1,
            name: fields.name()?,
            type_oid: fields.read(Cursor::u32)?,
            type_modifier: fields.read(Cursor::i32)?,
        });
    }
    Ok(Message::Relation(Relation { oid, namespace, name, identity, columns }))
}

fn type_info(fields: &mut Fields<'_>) -> Result<Message, DecodeError> {
    let oid = fields.read(Cursor::u32)?;
    Ok(Message::Type(TypeInfo { oid, namespace: fields.name()?, name: fields.name()? }))
}

fn truncate(fields: &mut Fields<'_>) -> Result<Message, DecodeError> {
    let count = fields.read(Cursor::length)?;
    let flags = fields.flags(3, "unknown flags")?;
    let mut relations = Vec::with_capacity(count.min(fields.cursor.rest().len() / 4));
    for _ in 0..count {
        relations.push(fields.read(Cursor::u32)?);
    }
    Ok(Message::Truncate { relations, cascade: flags & 1 != 0, restart_identity: flags & 2 != 0 })
}

fn logical(frame: &Bytes, fields: &mut Fields<'_>) -> Result<Message, DecodeError> {
    let transactional = fields.flags(1, "unknown flags")? == 1;
    let lsn = fields.lsn()?;
    let prefix = fields.read(|cursor| cursor.cstr().map(|prefix| frame.slice_ref(prefix)))?;
    let content = fields.read(|cursor| {
        let length = cursor.length()?;
        cursor.take(length).map(|content| frame.slice_ref(content))
    })?;
    Ok(Message::Logical { transactional, lsn, prefix, content })
}

fn insert(mut frame: Bytes, reduced: bool) -> Result<Message, DecodeError> {
    let (relation, new) = {
        let mut row = tuple::RowReader::new("Insert", &frame, reduced)?;
        row.expect_new()?;
        (row.relation(), row.last_tuple()?)
    };
    frame.advance(new.start);
    Ok(Message::Insert { relation, new: Tuple(frame) })
}

fn update(mut frame: Bytes, reduced: bool) -> Result<Message, DecodeError> {
    let (relation, old, new) = {
        let mut row = tuple::RowReader::new("Update", &frame, reduced)?;
        let old = row.old_or_new()?;
        (row.relation(), old, row.last_tuple()?)
    };
    let old = old.map(|(image, range)| image.row(frame.slice(range)));
    frame.advance(new.start);
    Ok(Message::Update { relation, old, new: Tuple(frame) })
}

fn delete(mut frame: Bytes, reduced: bool) -> Result<Message, DecodeError> {
    let (relation, image, old) = {
        let mut row = tuple::RowReader::new("Delete", &frame, reduced)?;
        (row.relation(), row.expect_old()?, row.last_tuple()?)
    };
    frame.advance(old.start);
    Ok(Message::Delete { relation, old: image.row(frame) })
}

#[cold]
fn unknown(tag: u8) -> DecodeError {
    let (message, what) = match tag {
        b'S' | b'E' | b'c' | b'A' => ("Stream", "streaming of open transactions was not asked for"),
        b'b' | b'P' | b'K' | b'r' | b'p' => ("Prepare", "two-phase commit was not asked for"),
        _ => ("an unknown", "no message of protocol version 1 starts like this"),
    };
    DecodeError::Unsupported { message, offset: 0, what }
}

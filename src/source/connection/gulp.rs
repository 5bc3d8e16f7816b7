//! Reading: as many frames at a time as have come, in one buffer that every slice of them shares.
//!
//! The buffer grows while reads fill it, because a walsender that is read in big pieces makes half as many system calls,
//! and shrinks when changes trickle, so that a single row does not keep a large buffer alive. A frame larger than the
//! buffer makes it grow by doubling as its bytes really arrive; the length in a header alone allocates nothing. A change
//! larger than the gauge's [`Memory::message_bytes_max`] is not gathered but reduced as it comes ([`super::reduce`]),
//! and is a gulp of its own.

use std::future::{Future as _, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::error::{ServerError, StreamError};
use super::reduce::{ENVELOPE, Reducer, is_reducible};
use crate::change::Lsn;
use crate::logging::NOTICES;
use crate::memory::Memory;
use crate::source::pgoutput::POSTGRES_EPOCH_MICROS;
use crate::source::wire::{Cursor, WireError};

/// Smallest and largest buffer, bytes; only a larger frame makes it larger.
const BUFFER_MIN: usize = 16 << 10;
const BUFFER_MAX: usize = 256 << 10;
/// Largest frame, bytes: Postgres makes no message of more than 1 GiB, and the frame adds its header.
const FRAME_MAX: usize = 1_181_116_006;
/// Largest frame of what cannot be reduced, if changes are bounded to less: 4 million tables in a TRUNCATE, a million columns.
const FRAME_OTHER_MAX: usize = 16 << 20;
/// SQLSTATE of the warning about a publication that is missing (`object_not_in_prerequisite_state`).
const PUBLICATION_SKIPPED: &str = "55000";
/// Tag and length.
const HEADER: usize = 5;

/// One frame of the stream.
#[derive(Clone, Debug)]
pub enum Frame {
    /// A message of the output plugin.
    XLogData {
        /// Where its record starts; zero for Relation and Type.
        start: Lsn,
        /// How far the server has got.
        server_end: Lsn,
        /// When it was sent, microseconds since 1970-01-01 UTC by the server's clock.
        sent_micros: i64,
        /// Bytes of the message as it was sent, if it was too large and values are left out of it.
        oversize: Option<usize>,
        /// The message.
        payload: Bytes,
    },
    /// A sign of life.
    Keepalive {
        /// How far the server has got.
        server_end: Lsn,
        /// The server wants a status at once.
        reply_requested: bool,
    },
    /// The server will send no more.
    CopyDone,
}

/// The complete frames that one read gave, in order.
#[derive(Debug)]
pub struct Gulp {
    bytes: Bytes,
    /// What its buffer takes, whatever is left in it.
    held_bytes: usize,
    wire_bytes: usize,
    filled_buffer: bool,
    received_at: Instant,
    oversize: Option<usize>,
}

impl Gulp {
    /// Bytes of these frames on the wire.
    pub fn wire_bytes(&self) -> usize {
        self.wire_bytes
    }

    /// The same; 0 from then on.
    pub fn take_wire_bytes(&mut self) -> usize {
        std::mem::take(&mut self.wire_bytes)
    }

    /// Whether no frame is left.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes that memory is charged with for the buffer of these frames.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Whether the read filled its buffer: more is waiting, so the reader is behind.
    pub fn filled_buffer(&self) -> bool {
        self.filled_buffer
    }

    /// When the last of these bytes came.
    pub fn received_at(&self) -> Instant {
        self.received_at
    }
}

impl Iterator for Gulp {
    type Item = Frame;

    fn next(&mut self) -> Option<Frame> {
        loop {
            // The frames were checked when they were read, so nothing fails here but at the end.
            let (tag, total) = header(&self.bytes)?;
            if total > self.bytes.len() {
                return None;
            }
            let mut frame = self.bytes.split_to(total);
            match tag {
                b'd' => {
                    frame.advance(HEADER);
                    return copy_data(frame, self.oversize).ok();
                }
                b'c' => return Some(Frame::CopyDone),
                _ => {}
            }
        }
    }
}

/// Reads the content of CopyData: XLogData or a keepalive.
fn copy_data(mut content: Bytes, oversize: Option<usize>) -> Result<Frame, StreamError> {
    let mut cursor = Cursor::new(&content);
    match cursor.u8()? {
        b'w' => {
            let (start, server_end) = (Lsn(cursor.u64()?), Lsn(cursor.u64()?));
            let sent_micros = cursor.i64()?.saturating_add(POSTGRES_EPOCH_MICROS);
            content.advance(cursor.offset());
            Ok(Frame::XLogData { start, server_end, sent_micros, oversize, payload: content })
        }
        b'k' => {
            let server_end = Lsn(cursor.u64()?);
            cursor.i64()?;
            let reply_requested = cursor.u8()? != 0;
            cursor.end()?;
            Ok(Frame::Keepalive { server_end, reply_requested })
        }
        _ => Err(StreamError::Malformed { what: "copy data of an unknown kind" }),
    }
}

/// Tag and total length of the frame at the start of `bytes`, once the header is there.
fn header(bytes: &[u8]) -> Option<(u8, usize)> {
    let mut cursor = Cursor::new(bytes);
    let (tag, length) = (cursor.u8().ok()?, cursor.length().ok()?);
    Some((tag, length.saturating_add(1)))
}

/// Reads a stream to its end or to its first fault, which is returned; every frame goes to `see`. For tests of hostile
/// bytes, which want no session around the reading.
pub async fn read_frames<S: AsyncRead + Unpin>(
    mut socket: S,
    memory: &Memory,
    mut see: impl FnMut(Frame),
) -> StreamError {
    let mut inlet = Inlet::new();
    loop {
        match inlet.gulp(&mut socket, memory).await {
            Ok(gulp) => gulp.for_each(&mut see),
            Err(error) => return error,
        }
    }
}

/// The reading half: bytes that came and are not handed out yet.
#[derive(Debug)]
pub(super) struct Inlet {
    buffer: Vec<u8>,
    /// End of the frames in `buffer` that are complete and checked.
    complete: usize,
    /// Whether one of them is to be handed out.
    wanted: bool,
    /// Capacity that suits the present rate.
    capacity: usize,
    filled: bool,
    ready: bool,
    received_at: Instant,
    /// Takes in a change that is too large.
    reducer: Option<Reducer>,
    /// Bytes of a frame that are to be thrown away.
    unwanted: usize,
}

impl Inlet {
    pub(super) fn new() -> Self {
        Self {
            buffer: Vec::new(),
            complete: 0,
            wanted: false,
            capacity: BUFFER_MIN,
            filled: false,
            ready: false,
            received_at: Instant::now(),
            reducer: None,
            unwanted: 0,
        }
    }

    pub(super) fn received_at(&self) -> Instant {
        self.received_at
    }

    /// All complete frames that came, at least one. Dropped at an await it loses nothing.
    pub(super) async fn gulp<S: AsyncRead + Unpin>(
        &mut self,
        socket: &mut S,
        memory: &Memory,
    ) -> Result<Gulp, StreamError> {
        let bound = memory.message_bytes_max();
        loop {
            if self.reducer.is_some() {
                if let Some(gulp) = self.reduce(memory)? {
                    return Ok(gulp);
                }
                self.fill(socket).await?;
                continue;
            }
            self.scan(bound)?;
            if self.wanted {
                let (wire_bytes, received_at, filled_buffer) = (self.complete, self.received_at, self.filled);
                let buffer = self.hand_out();
                let held_bytes = buffer.capacity();
                let bytes = memory.hold(buffer);
                return Ok(Gulp { bytes, held_bytes, wire_bytes, filled_buffer, received_at, oversize: None });
            }
            // What ended the scan behind frames that nobody wants shows when it stands first, before anything is read.
            if self.complete > 0 {
                self.discard();
                continue;
            }
            self.reducer = self.oversized(bound);
            if self.reducer.is_none() {
                self.fill(socket).await?;
            }
        }
    }

    /// The next frame of a login or a query: tag and body of at most `max` bytes.
    pub(super) async fn frame<S: AsyncRead + Unpin>(
        &mut self,
        socket: &mut S,
        max: usize,
    ) -> Result<(u8, Vec<u8>), StreamError> {
        loop {
            if let Some((tag, total)) = header(&self.buffer) {
                if total < HEADER || total > max {
                    return Err(StreamError::Malformed { what: "a frame of an impossible length" });
                }
                if total <= self.buffer.len() {
                    let body = self.buffer.drain(..total).skip(HEADER).collect();
                    return Ok((tag, body));
                }
            }
            self.fill(socket).await?;
        }
    }

    /// Throws away what comes until the server is ready for a command or gone.
    pub(super) async fn drain<S: AsyncRead + Unpin>(&mut self, socket: &mut S) -> Result<(), StreamError> {
        if let Some(reducer) = self.reducer.take() {
            self.unwanted = reducer.left();
        }
        loop {
            self.unwanted -= self.skip(self.unwanted);
            if self.unwanted == 0 {
                self.scan(usize::MAX)?;
                if self.ready {
                    return Ok(());
                }
                if self.complete > 0 {
                    self.discard();
                    continue;
                }
                // Nobody wants the rest of a change, which may be long.
                if let Some((b'd', total)) = header(&self.buffer) {
                    self.unwanted = total;
                    continue;
                }
            }
            match self.fill(socket).await {
                Ok(()) => {}
                Err(StreamError::Closed) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Goes on with a change that is too large.
    fn reduce(&mut self, memory: &Memory) -> Result<Option<Gulp>, StreamError> {
        let Some(reducer) = &mut self.reducer else { return Ok(None) };
        let fed = reducer.feed(&self.buffer)?;
        let reduced = reducer.finish();
        let (oversize, filled_buffer) = (Some(reducer.message_bytes()), self.filled);
        self.skip(fed);
        let Some(frame) = reduced else {
            if self.filled && self.buffer.is_empty() && self.buffer.capacity() < BUFFER_MAX {
                self.capacity = BUFFER_MAX;
                self.buffer = Vec::new();
            }
            return Ok(None);
        };
        let wire_bytes = oversize.map_or(0, |bytes| bytes + ENVELOPE);
        self.reducer = None;
        let (held_bytes, received_at) = (frame.capacity(), self.received_at);
        let bytes = memory.hold(frame);
        Ok(Some(Gulp { bytes, held_bytes, wire_bytes, filled_buffer, received_at, oversize }))
    }

    /// What takes in the frame at the start of the buffer, if that is a change whose message has more than `bound` bytes.
    fn oversized(&self, bound: usize) -> Option<Reducer> {
        let (tag, total) = header(&self.buffer)?;
        let kind = reducible(&self.buffer, tag)?;
        (total > bound.saturating_add(ENVELOPE)).then(|| Reducer::new(total, kind, bound))
    }

    /// Throws up to `count` bytes away; how many.
    fn skip(&mut self, count: usize) -> usize {
        let count = count.min(self.buffer.len());
        self.buffer.drain(..count);
        count
    }

    /// Checks the frames that came. An error waits until the frames before it are handed out.
    fn scan(&mut self, bound: usize) -> Result<(), StreamError> {
        while let Some((tag, total)) = self.buffer.get(self.complete..).and_then(header) {
            match self.check(tag, total, bound) {
                Ok(true) => self.complete += total,
                Ok(false) => break,
                Err(error) if self.complete == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Whether the frame after the complete ones is complete too. One that is to be reduced is not.
    fn check(&mut self, tag: u8, total: usize, bound: usize) -> Result<bool, StreamError> {
        if !(HEADER..=FRAME_MAX).contains(&total) {
            return Err(StreamError::Malformed { what: "a frame of an impossible length" });
        }
        if total > bound.saturating_add(ENVELOPE) {
            let frame = self.buffer.get(self.complete..).unwrap_or_default();
            if frame.len() <= ENVELOPE || reducible(frame, tag).is_some() {
                return Ok(false);
            }
            if total > FRAME_OTHER_MAX {
                return Err(StreamError::Malformed { what: "a frame of an impossible length" });
            }
        }
        let Some(body) = self.buffer.get(self.complete + HEADER..self.complete + total) else { return Ok(false) };
        match tag {
            b'd' => {
                check_copy_data(body)?;
                self.wanted = true;
            }
            b'c' => self.wanted = true,
            b'E' => return Err(StreamError::Server(Box::new(ServerError::parse(body)?))),
            b'N' => stream_notice(body)?,
            b'Z' => self.ready = true,
            // ParameterStatus after a reload, CommandComplete, NotificationResponse.
            b'S' | b'C' | b'A' => {}
            _ => return Err(StreamError::Malformed { what: "a frame of an unknown kind" }),
        }
        Ok(true)
    }

    /// Forgets the complete frames.
    fn discard(&mut self) {
        self.buffer.drain(..self.complete);
        self.complete = 0;
        self.wanted = false;
    }

    /// Takes the complete frames out, in a buffer they fill at least to half, and adapts the next one.
    fn hand_out(&mut self) -> Vec<u8> {
        let end = self.complete;
        if self.filled {
            self.capacity = (self.capacity * 2).min(BUFFER_MAX);
        } else if end < self.capacity / 4 {
            self.capacity = (self.capacity / 2).max(BUFFER_MIN);
        }
        let tail = self.buffer.get(end..).unwrap_or(&[]);
        if end < self.buffer.capacity() / 2 {
            let frames = self.buffer.get(..end).unwrap_or(&[]).to_vec();
            self.discard();
            if self.buffer.capacity() > self.capacity * 2 {
                self.buffer.shrink_to(self.capacity);
            }
            return frames;
        }
        let mut next = Vec::new();
        if !tail.is_empty() {
            next.reserve_exact(self.capacity.max(tail.len()));
            next.extend_from_slice(tail);
        }
        let mut frames = std::mem::replace(&mut self.buffer, next);
        frames.truncate(end);
        self.complete = 0;
        self.wanted = false;
        frames
    }

    /// Waits for bytes and takes as many as are there and fit.
    async fn fill<S: AsyncRead + Unpin>(&mut self, socket: &mut S) -> Result<(), StreamError> {
        self.make_room();
        self.filled = false;
        match poll_fn(|cx| poll_fill(Pin::new(&mut *socket), cx, &mut self.buffer)).await {
            Ok(0) => Err(StreamError::Closed),
            Ok(_) => {
                self.filled = self.buffer.len() == self.buffer.capacity();
                self.received_at = Instant::now();
                Ok(())
            }
            Err(error) => Err(StreamError::Io(error)),
        }
    }

    /// Makes room for at least a byte: up to the capacity, or for a larger frame up to double of what came of it.
    fn make_room(&mut self) {
        let length = self.buffer.len();
        if length < self.buffer.capacity() {
            return;
        }
        let frame = header(&self.buffer).map_or(0, |(_, total)| total.min(FRAME_MAX));
        let wanted = frame.min(length.saturating_mul(2)).max(self.capacity).max(length + HEADER);
        self.buffer.reserve_exact(wanted - length);
    }
}

/// Reads until the buffer is full or nothing is left, and waits only if nothing came at all. An end or an error after
/// some bytes shows again at the next read.
fn poll_fill<S: AsyncRead + Unpin>(
    mut socket: Pin<&mut S>,
    cx: &mut Context<'_>,
    buffer: &mut Vec<u8>,
) -> Poll<std::io::Result<usize>> {
    let before = buffer.len();
    while buffer.len() < buffer.capacity() {
        let polled = pin!(socket.read_buf(buffer)).poll(cx);
        let read = buffer.len() - before;
        if let Poll::Ready(Ok(1..)) = polled {
            continue;
        }
        return if read > 0 { Poll::Ready(Ok(read)) } else { polled };
    }
    Poll::Ready(Ok(buffer.len() - before))
}

/// The kind of the message in the frame that begins with `bytes`, if it is one that can be reduced.
fn reducible(bytes: &[u8], tag: u8) -> Option<u8> {
    let kind = *bytes.get(ENVELOPE)?;
    (tag == b'd' && bytes.get(HEADER) == Some(&b'w') && is_reducible(kind)).then_some(kind)
}

fn check_copy_data(body: &[u8]) -> Result<(), StreamError> {
    match (body.first(), body.len()) {
        (Some(b'w'), 25..) | (Some(b'k'), 18) => Ok(()),
        (Some(b'w' | b'k'), _) => Err(StreamError::Malformed { what: "copy data of an impossible length" }),
        _ => Err(StreamError::Malformed { what: "copy data of an unknown kind" }),
    }
}

/// A notice amid the stream. With the one of a publication that is missing (SQLSTATE 55000, in whatever language) the
/// server of 18 and later leaves out the changes that follow, and goes on as if nothing were wrong.
fn stream_notice(body: &[u8]) -> Result<(), StreamError> {
    let said = ServerError::parse(body)?;
    if said.severity == "WARNING" && said.code == PUBLICATION_SKIPPED {
        return Err(StreamError::PublicationSkipped { message: said.message });
    }
    Ok(notice(body)?)
}

/// Logs what the server wants to be known.
pub(super) fn notice(body: &[u8]) -> Result<(), WireError> {
    let notice = ServerError::parse(body)?;
    tracing::warn!(target: NOTICES, notice = %notice, "the server gives notice");
    Ok(())
}

#[cfg(test)]
mod tests;

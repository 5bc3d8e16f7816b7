//! Watches the frames that an endpoint sends on an HTTP/2 connection (RFC 9113, 4.1).
//!
//! GOAWAY (6.8) names the last stream that the endpoint has taken or may take; every later one it has not looked at, so
//! that its request may be sent again. [`h2`] fails those streams, but does not tell them from earlier ones that fail
//! when the connection ends after a GOAWAY, and which the endpoint may well have acted on. And the library keeps what
//! comes before an answer: interim answers, as many as are sent. So the frames are looked at as they come in: nine
//! bytes of each, and eight more of a GOAWAY.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};

use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A frame's head: three bytes of length, type, flags, four of stream.
const HEAD: usize = 9;
/// What of a GOAWAY is of interest: the last stream, and why.
const GOAWAY_HEAD: usize = 8;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const STREAM_BITS: u32 = 0x7fff_ffff;

/// Frames in a row that bring nothing of an answer, beside one for so many bytes that we have sent meanwhile: whoever
/// takes a large body says so often.
pub(super) const QUIET_MAX: u32 = 1000;
const SENT_A_FRAME: u32 = 256;

/// What the endpoint has said.
#[derive(Debug)]
pub(super) struct Heard {
    /// The last stream that it will have taken; the highest number as long as it has not said.
    last_stream: AtomicU32,
    /// Why it leaves.
    reason: AtomicU32,
    /// It has said how many requests it takes at a time.
    settings: AtomicBool,
    /// It has said too much that is of no use.
    flood: AtomicBool,
}

impl Heard {
    pub(super) fn new() -> Self {
        let (settings, flood) = Default::default();
        Self { last_stream: AtomicU32::new(u32::MAX), reason: AtomicU32::new(0), settings, flood }
    }

    /// Whether it has said that it takes no more requests.
    pub(super) fn has_left(&self) -> bool {
        self.last_stream.load(Ordering::Acquire) != u32::MAX
    }

    /// Why, if that is an error.
    pub(super) fn trouble(&self) -> Option<Reason> {
        let reason = Reason::from(self.reason.load(Ordering::Acquire));
        (self.has_left() && reason != Reason::NO_ERROR).then_some(reason)
    }

    /// Whether it has said that it did not take `stream`.
    pub(super) fn excludes(&self, stream: u32) -> bool {
        stream > self.last_stream.load(Ordering::Acquire)
    }

    pub(super) fn has_settings(&self) -> bool {
        self.settings.load(Ordering::Acquire)
    }

    pub(super) fn is_flood(&self) -> bool {
        self.flood.load(Ordering::Acquire)
    }

    /// A later GOAWAY may only name an earlier stream.
    fn leave(&self, last_stream: u32, reason: u32) {
        self.reason.store(reason, Ordering::Release);
        self.last_stream.fetch_min(last_stream & STREAM_BITS, Ordering::AcqRel);
    }
}

/// Where in the sequence of frames the incoming bytes stand.
#[derive(Debug, Default)]
struct Frames {
    /// Bytes of a payload that are of no interest.
    skip: usize,
    kept: [u8; HEAD + GOAWAY_HEAD],
    filled: usize,
    /// Frames since the last that brought something of an answer.
    quiet: u32,
    /// Bytes that we have sent since.
    sent: u32,
}

impl Frames {
    /// Takes the next bytes, cut anywhere.
    fn feed(&mut self, mut bytes: &[u8], heard: &Heard) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let wanted = if self.filled >= HEAD { HEAD + GOAWAY_HEAD } else { HEAD };
            let taken = (wanted - self.filled).min(bytes.len());
            let (now, later) = bytes.split_at(taken);
            if let Some(room) = self.kept.get_mut(self.filled..self.filled + taken) {
                room.copy_from_slice(now);
            }
            self.filled += taken;
            bytes = later;
            if self.filled == wanted && taken > 0 {
                self.complete(heard);
            }
        }
    }

    /// A head is there, or the start of a GOAWAY's payload.
    fn complete(&mut self, heard: &Heard) {
        let [a, b, c, kind, flags, _, _, _, _, s0, s1, s2, s3, r0, r1, r2, r3] = self.kept;
        let length = u32::from_be_bytes([0, a, b, c]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if self.filled > HEAD {
            heard.leave(u32::from_be_bytes([s0, s1, s2, s3]), u32::from_be_bytes([r0, r1, r2, r3]));
            self.skip = length - GOAWAY_HEAD;
            self.filled = 0;
            return;
        }
        self.count(kind, flags, length);
        if kind == SETTINGS && flags & ACK == 0 {
            heard.settings.store(true, Ordering::Release);
        }
        if kind == GOAWAY && length >= GOAWAY_HEAD {
            return;
        }
        self.skip = length;
        self.filled = 0;
    }

    /// An interim answer never ends its stream.
    fn count(&mut self, kind: u8, flags: u8, length: usize) {
        if (kind == DATA && length > 0) || (kind == HEADERS && flags & END_STREAM != 0) {
            (self.quiet, self.sent) = (0, 0);
        } else {
            self.quiet = self.quiet.saturating_add(1);
        }
    }

    fn send(&mut self, bytes: usize) {
        self.sent = self.sent.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    fn is_flood(&self) -> bool {
        self.quiet > QUIET_MAX.saturating_add(self.sent / SENT_A_FRAME)
    }
}

/// A socket whose incoming frames are watched.
pub(super) struct Watched<S> {
    socket: S,
    frames: Frames,
    heard: Arc<Heard>,
}

impl<S> Watched<S> {
    pub(super) fn new(socket: S, heard: Arc<Heard>) -> Self {
        Self { socket, frames: Frames::default(), heard }
    }

    fn note(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.frames.send(bytes);
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.socket).poll_read(cx, buffer);
        this.frames.feed(buffer.filled().get(before..).unwrap_or_default(), &this.heard);
        if this.frames.is_flood() {
            // The library keeps no more of an error than its kind; what it was is asked of `heard`.
            this.heard.flood.store(true, Ordering::Release);
            buffer.set_filled(before);
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write(cx, bytes);
        this.note(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write_vectored(cx, slices);
        this.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    #[test]
    fn goaway_is_found_among_frames_however_the_bytes_are_cut() {
        let goaway = [&0x8000_0009u32.to_be_bytes()[..], &11u32.to_be_bytes(), b"debug"].concat();
        let frames = [(4, 0, &[][..]), (0, 0, &[7; 300]), (8, 0, &[0; 4]), (GOAWAY, 0, &goaway), (7, 0, &[1])];
        let mut bytes: Vec<u8> =
            frames.iter().flat_map(|(kind, flags, payload)| frame(*kind, *flags, payload)).collect();
        bytes.extend(frame(1, 0, b"x"));
        for step in 1..=bytes.len() {
            let (mut frames, heard) = (Frames::default(), Heard::new());
            assert!(!heard.has_left() && !heard.excludes(u32::MAX) && !heard.has_settings());
            for part in bytes.chunks(step) {
                frames.feed(part, &heard);
            }
            assert!(heard.has_left() && heard.excludes(11) && !heard.excludes(9), "{step}");
            assert_eq!(heard.trouble(), Some(Reason::ENHANCE_YOUR_CALM), "{step}");
            assert!(heard.has_settings() && !heard.is_flood());
            assert_eq!((frames.skip, frames.filled, frames.quiet), (0, 0, 4), "{step}");
        }
    }

    #[test]
    fn a_later_goaway_only_lowers_the_last_stream() {
        let heard = Heard::new();
        for (said, excluded) in [(STREAM_BITS, 0), (9, 11), (5, 7), (9, 7)] {
            heard.leave(said, 0);
            assert_eq!(heard.excludes(excluded), excluded > 0, "{said}");
            assert_eq!(heard.trouble(), None);
        }
        assert!(!heard.excludes(5));
    }

    #[test]
    fn frames_without_an_answer_are_counted_from_the_last_that_had_one() {
        let heard = Heard::new();
        let many =
            |kind, flags, payload: &[u8]| frame(kind, flags, payload).repeat(usize::try_from(QUIET_MAX).unwrap());
        for (quiet, answer) in [
            // Interim answers, pings, settings and their acknowledgements, windows, empty pieces of a body, what nobody knows.
            (many(HEADERS, 4, b"x"), frame(DATA, 0, b"x")),
            (many(6, 0, &[0; 8]), frame(HEADERS, 4 | END_STREAM, b"x")),
            (many(SETTINGS, 0, &[]), frame(DATA, END_STREAM, b"x")),
            (many(SETTINGS, ACK, &[]), frame(DATA, 0, b"x")),
            (many(8, 0, &[0; 4]), frame(DATA, 0, b"x")),
            (many(DATA, 0, &[]), frame(DATA, 0, b"x")),
            (many(200, 0, b"x"), frame(DATA, 0, b"x")),
        ] {
            let mut frames = Frames::default();
            frames.feed(&quiet, &heard);
            assert!(!frames.is_flood());
            frames.feed(&answer, &heard);
            frames.feed(&quiet, &heard);
            assert!(!frames.is_flood(), "an answer has come in between");
            frames.feed(&frame(6, 0, &[0; 8]), &heard);
            assert!(frames.is_flood(), "{:?}", quiet.get(..9));
            // Acknowledgements of a body that is on its way are as many as that is long.
            frames.send(256);
            assert!(!frames.is_flood());
        }
    }
}

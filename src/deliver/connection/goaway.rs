//! Listens for HTTP/2's GOAWAY on what an endpoint sends (RFC 9113, 6.8).
//!
//! GOAWAY names the last stream that the endpoint has taken or may take; every later one it has not looked at, so that
//! its request may be sent again at once. [`h2`] fails those streams, but does not tell them from earlier ones that
//! fail when the connection ends after a GOAWAY, and which the endpoint may well have acted on. So the frames are
//! looked at as they come in: nine bytes of each, and four more of a GOAWAY.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A frame's head: three bytes of length, type, flags, four of stream.
const HEAD: usize = 9;
const GOAWAY: u8 = 7;
const STREAM_BITS: u32 = 0x7fff_ffff;

/// The last stream that the endpoint will have taken; the highest number as long as it has not said.
#[derive(Debug)]
pub(super) struct LastStream(AtomicU32);

impl LastStream {
    pub(super) fn new() -> Self {
        Self(AtomicU32::new(u32::MAX))
    }

    /// Whether the endpoint has said that it takes no more requests.
    pub(super) fn is_said(&self) -> bool {
        self.0.load(Ordering::Acquire) != u32::MAX
    }

    /// Whether the endpoint has said that it did not take `stream`.
    pub(super) fn excludes(&self, stream: u32) -> bool {
        stream > self.0.load(Ordering::Acquire)
    }

    /// A later GOAWAY may only name an earlier stream.
    fn say(&self, stream: u32) {
        self.0.fetch_min(stream & STREAM_BITS, Ordering::AcqRel);
    }
}

/// Where in the sequence of frames the incoming bytes stand.
#[derive(Debug, Default)]
struct Frames {
    /// Bytes of a payload that are of no interest.
    skip: usize,
    kept: [u8; HEAD + 4],
    filled: usize,
}

impl Frames {
    /// Takes the next bytes, cut anywhere; gives the last stream of the latest GOAWAY among them.
    fn feed(&mut self, mut bytes: &[u8]) -> Option<u32> {
        let mut said = None;
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let wanted = if self.filled >= HEAD { HEAD + 4 } else { HEAD };
            let taken = (wanted - self.filled).min(bytes.len());
            let (now, later) = bytes.split_at(taken);
            if let Some(room) = self.kept.get_mut(self.filled..self.filled + taken) {
                room.copy_from_slice(now);
            }
            self.filled += taken;
            bytes = later;
            if self.filled == wanted && taken > 0 {
                said = self.complete().or(said);
            }
        }
        said
    }

    /// A head is there, or the start of a GOAWAY's payload.
    fn complete(&mut self) -> Option<u32> {
        let [a, b, c, kind, _, _, _, _, _, s0, s1, s2, s3] = self.kept;
        let length = u32::from_be_bytes([0, a, b, c]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let said = if self.filled > HEAD {
            self.skip = length - 4;
            Some(u32::from_be_bytes([s0, s1, s2, s3]))
        } else if kind == GOAWAY && length >= 4 {
            return None;
        } else {
            self.skip = length;
            None
        };
        self.filled = 0;
        said
    }
}

/// A socket whose incoming frames are watched.
pub(super) struct Watched<S> {
    socket: S,
    frames: Frames,
    last_stream: Arc<LastStream>,
}

impl<S> Watched<S> {
    pub(super) fn new(socket: S, last_stream: Arc<LastStream>) -> Self {
        Self { socket, frames: Frames::default(), last_stream }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.socket).poll_read(cx, buffer);
        if let Some(stream) = this.frames.feed(buffer.filled().get(before..).unwrap_or_default()) {
            this.last_stream.say(stream);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(cx, slices)
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

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, 0, 0, 0, 0, 1], payload].concat()
    }

    #[test]
    fn goaway_is_found_among_frames_however_the_bytes_are_cut() {
        let goaway = frame(GOAWAY, &[&0x8000_0009u32.to_be_bytes()[..], &[0; 4], b"debug"].concat());
        let bytes =
            [frame(4, &[]), frame(0, &[7; 300]), frame(8, &[0; 4]), goaway, frame(7, &[1]), frame(1, b"x")].concat();
        for step in 1..=bytes.len() {
            let (mut frames, last) = (Frames::default(), LastStream::new());
            assert!(!last.is_said() && !last.excludes(u32::MAX));
            for part in bytes.chunks(step) {
                if let Some(stream) = frames.feed(part) {
                    last.say(stream);
                }
            }
            assert!(last.is_said() && last.excludes(11) && !last.excludes(9), "{step}");
            assert_eq!((frames.skip, frames.filled), (0, 0), "{step}");
        }
    }

    #[test]
    fn a_later_goaway_only_lowers_the_last_stream() {
        let last = LastStream::new();
        for (said, excluded) in [(STREAM_BITS, 0), (9, 11), (5, 7), (9, 7)] {
            last.say(said);
            assert_eq!(last.excludes(excluded), excluded > 0, "{said}");
        }
        assert!(!last.excludes(5));
    }
}

//! What goes over an HTTP/1.1 connection for one request, counted: what of the request has gone out, and what comes
//! before its answer.
//!
//! The library passes over interim answers (1xx), as many as are sent, and hands out an answer that has not waited for
//! its request. So the bytes are looked at as they pass: of each head the first ten, and all of an interim one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Interim answers to one request.
pub(super) const INTERIM_MAX: u32 = 1000;
/// The status begins at the tenth byte: `HTTP/1.1 200 OK`.
const STATUS_AT: usize = 9;
/// Content types of TLS records that a server may begin with: alert, handshake.
const TLS_RECORDS: [u8; 2] = [21, 22];

/// One request's. Whoever sends it drives the connection as well, so nothing here is in a hurry.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// No byte of the answer has been looked at.
    is_new: AtomicBool,
    request_bytes: AtomicUsize,
    sent_bytes: AtomicUsize,
    interim: AtomicU32,
    is_tls: AtomicBool,
}

impl Tally {
    /// A request begins that is at least as long as its body.
    pub(super) fn begin(&self, body_bytes: usize) {
        self.request_bytes.store(body_bytes, Ordering::Relaxed);
        self.sent_bytes.store(0, Ordering::Relaxed);
        self.interim.store(0, Ordering::Relaxed);
        self.is_new.store(true, Ordering::Relaxed);
    }

    /// Whether all of the request has gone out.
    pub(super) fn is_sent(&self) -> bool {
        self.sent_bytes.load(Ordering::Relaxed) >= self.request_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn is_flood(&self) -> bool {
        self.interim.load(Ordering::Relaxed) > INTERIM_MAX
    }

    /// Whether what came for an answer was a record of TLS.
    pub(super) fn is_tls(&self) -> bool {
        self.is_tls.load(Ordering::Relaxed)
    }

    /// Bytes that were offered are the whole request, if they are the first: the library has it ready at once.
    fn write(&self, offered: usize, written: Option<usize>) {
        let sent = self.sent_bytes.load(Ordering::Relaxed);
        if sent == 0 {
            self.request_bytes.fetch_max(offered, Ordering::Relaxed);
        }
        if let Some(written) = written {
            self.sent_bytes.store(sent + written, Ordering::Relaxed);
        }
    }
}

/// Where in the heads before an answer the incoming bytes stand.
#[derive(Debug, Default)]
enum Place {
    /// So many bytes into a status line.
    Status(usize),
    /// In the head of an interim answer, in a line that is empty so far or not.
    Interim { is_empty: bool },
    /// In the answer, or in bytes that are not HTTP.
    #[default]
    Answer,
}

impl Place {
    fn feed(&mut self, bytes: &[u8], tally: &Tally) {
        for byte in bytes {
            *self = match (&*self, byte) {
                (Self::Answer, _) => return,
                // Empty lines before a head are passed over.
                (Self::Status(0), b'\r' | b'\n') => Self::Status(0),
                (Self::Status(0), byte) if TLS_RECORDS.contains(byte) => {
                    tally.is_tls.store(true, Ordering::Relaxed);
                    Self::Answer
                }
                (Self::Status(STATUS_AT), b'1') => {
                    tally.interim.fetch_add(1, Ordering::Relaxed);
                    Self::Interim { is_empty: false }
                }
                (Self::Status(STATUS_AT), _) => Self::Answer,
                (Self::Status(at), _) => Self::Status(at + 1),
                (Self::Interim { is_empty: true }, b'\n') => Self::Status(0),
                (Self::Interim { is_empty: false }, b'\n') => Self::Interim { is_empty: true },
                (Self::Interim { is_empty }, b'\r') => Self::Interim { is_empty: *is_empty },
                (Self::Interim { .. }, _) => Self::Interim { is_empty: false },
            };
        }
    }
}

/// A socket of which the tally is kept.
pub(super) struct Tallied<S> {
    socket: S,
    place: Place,
    tally: Arc<Tally>,
}

impl<S> Tallied<S> {
    pub(super) fn new(socket: S, tally: Arc<Tally>) -> Self {
        Self { socket, place: Place::default(), tally }
    }

    fn note(&self, offered: usize, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(bytes)) => self.tally.write(offered, Some(*bytes)),
            Poll::Ready(Err(_)) | Poll::Pending => self.tally.write(offered, None),
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tallied<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.socket).poll_read(cx, buffer);
        let read = buffer.filled().get(before..).unwrap_or_default();
        if !read.is_empty() && this.tally.is_new.load(Ordering::Relaxed) {
            this.tally.is_new.store(false, Ordering::Relaxed);
            this.place = Place::Status(0);
        }
        this.place.feed(read, &this.tally);
        if this.tally.is_flood() {
            buffer.set_filled(before);
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tallied<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write(cx, bytes);
        this.note(bytes.len(), written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write_vectored(cx, slices);
        this.note(slices.iter().map(|slice| slice.len()).sum(), written)
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

    /// Interim answers, and whether TLS, in an answer that begins with `bytes`, however they are cut.
    fn tallied(bytes: &[u8]) -> (u32, bool) {
        let mut found = Vec::new();
        for step in 1..=bytes.len() {
            let (mut place, tally) = (Place::Status(0), Tally::default());
            for part in bytes.chunks(step) {
                place.feed(part, &tally);
            }
            found.push((tally.interim.load(Ordering::Relaxed), tally.is_tls()));
        }
        found.dedup();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0]
    }

    #[test]
    fn interim_answers_are_counted_up_to_the_answer_and_nothing_in_that_is_one() {
        for (bytes, count) in [
            (&b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"[..], 0),
            (b"HTTP/1.1 100 Continue\r\n\r\n", 1),
            (b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 102 P\r\n\r\nHTTP/1.1 200 OK\r\n\r\nHTTP/1.1 100 C\r\n\r\n", 2),
            (b"HTTP/1.0 100 Continue\n\nHTTP/1.1 100\n\n\r\n\nHTTP/1.1 199 x\r\n\r\n", 3),
            (b"\r\n\r\nHTTP/1.1 102 P\r\n\r\n\r\nHTTP/1.1 102 P\r\n\r\n", 2),
            (b"HTTP/1.1 103 E\r\nHTTP/1.1 100: x\r\n\r\n", 1),
            (b"SSH-2.0-OpenSSH_9.2\r\n\r\nHTTP/1.1 100 C\r\n\r\n", 0),
        ] {
            assert_eq!(tallied(bytes), (count, false), "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_record_of_tls_is_known_by_its_first_byte() {
        assert_eq!(tallied(&[21, 3, 1, 0, 2, 2, 70]), (0, true));
        assert_eq!(tallied(&[22, 3, 3, 0, 2, 2, 70]), (0, true));
        assert_eq!(tallied(b"HTTP/1.1 200 \x15\x16\r\n\r\n\x15"), (0, false));
    }

    #[test]
    fn a_request_is_sent_when_head_and_body_are() {
        let tally = Tally::default();
        tally.begin(100);
        tally.write(150, None);
        assert!(!tally.is_sent());
        for (offered, written, is_sent) in [(150, 120, false), (30, 29, false), (1, 1, true)] {
            tally.write(offered, Some(written));
            assert_eq!(tally.is_sent(), is_sent);
        }
        tally.begin(100);
        // Only the head at first: the body counts all the same.
        tally.write(50, Some(50));
        assert!(!tally.is_sent());
    }
}

//! Pure: how much a server may send on a session for SQL. The client gathers a frame before it looks at it, keeps every row of
//! an answer until it is asked for them, and every parameter that is reported, so a server that is broken, or somebody else's,
//! could fill the memory. What comes is counted before the client sees it.
//!
//! Frames are a tag, a length and a body (manual page "Message Formats").

use std::error::Error as _;
use std::io;

/// The bounds of an ordinary session.
pub(super) const ORDINARY: Limits = Limits { frame_bytes: 16 << 20, answer_bytes: 128 << 20 };
/// Bytes of all ParameterStatus of a session: a server reports some twenty short ones, and what of them changes.
const PARAMETER_BYTES_MAX: usize = 4 << 20;
/// Tag and length.
const HEAD: usize = 5;

/// How much is borne.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of one frame.
    pub frame_bytes: usize,
    /// Of all up to ReadyForQuery, which ends an answer.
    pub answer_bytes: usize,
}

impl Limits {
    /// For a session that reads values of up to so many bytes in all.
    pub fn of_values(bytes: usize) -> Self {
        let ordinary = ORDINARY;
        Self {
            frame_bytes: ordinary.frame_bytes.saturating_add(bytes),
            answer_bytes: ordinary.answer_bytes.saturating_add(bytes),
        }
    }
}

/// The server sent more than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Excess {
    #[error("the server announces a frame of {0} bytes, which none of its answers has")]
    Frame(usize),
    #[error("the server sends more than {0} bytes in one answer")]
    Answer(usize),
    #[error("the server reports more than {PARAMETER_BYTES_MAX} bytes of parameters")]
    Parameters,
}

/// Whether a session ended for that reason.
pub(crate) fn excess(error: &tokio_postgres::Error) -> Option<Excess> {
    error.source()?.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref().copied()
}

/// Looks at the frames of a session.
#[derive(Debug)]
pub(super) struct Bounds {
    limits: Limits,
    head: Vec<u8>,
    /// Bytes of the frame that are still to come.
    rest: usize,
    answer: usize,
    parameters: usize,
}

impl Bounds {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, head: Vec::with_capacity(HEAD), rest: 0, answer: 0, parameters: 0 }
    }

    /// Looks at the next bytes.
    pub(super) fn look(&mut self, mut bytes: &[u8]) -> Result<(), Excess> {
        while !bytes.is_empty() {
            let skipped = self.rest.min(bytes.len());
            self.rest -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let missing = HEAD - self.head.len();
            let (more, after) = bytes.split_at(missing.min(bytes.len()));
            self.head.extend_from_slice(more);
            bytes = after;
            if let [tag, a, b, c, d] = *self.head.as_slice() {
                self.head.clear();
                self.begin(tag, u32::from_be_bytes([a, b, c, d]))?;
            }
        }
        Ok(())
    }

    /// The length counts itself; one that is too short the client refuses.
    fn begin(&mut self, tag: u8, length: u32) -> Result<(), Excess> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > self.limits.frame_bytes {
            return Err(Excess::Frame(length));
        }
        self.rest = length.saturating_sub(4);
        match tag {
            b'Z' => self.answer = 0,
            b'S' => {
                self.parameters = self.parameters.saturating_add(length);
                if self.parameters > PARAMETER_BYTES_MAX {
                    return Err(Excess::Parameters);
                }
            }
            _ => {
                self.answer = self.answer.saturating_add(length);
                if self.answer > self.limits.answer_bytes {
                    return Err(Excess::Answer(self.limits.answer_bytes));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { frame_bytes: 1000, answer_bytes: 5000 };

    fn frame(tag: u8, body: usize) -> Vec<u8> {
        let length = u32::try_from(body + 4).unwrap();
        [&[tag][..], &length.to_be_bytes(), &vec![0; body]].concat()
    }

    /// The same whatever the pieces are.
    fn look(bytes: &[u8]) -> Result<(), Excess> {
        let whole = Bounds::new(LIMITS).look(bytes);
        for size in [1, 3, 7] {
            let mut bounds = Bounds::new(LIMITS);
            assert_eq!(bytes.chunks(size).try_for_each(|piece| bounds.look(piece)), whole, "in pieces of {size}");
        }
        whole
    }

    #[test]
    fn a_frame_is_refused_by_its_length_alone() {
        assert_eq!(look(b"D\x7f\xff\xff\xff"), Err(Excess::Frame(0x7fff_ffff)));
        assert_eq!(look(b"E\xff\xff\xff\xff"), Err(Excess::Frame(0xffff_ffff)));
        assert_eq!(look(&frame(b'D', 996)), Ok(()));
        assert_eq!(look(&frame(b'D', 997)), Err(Excess::Frame(1001)));
        assert_eq!(look(b"R\0\0\0\0R\0\0\0\x03"), Ok(()));
    }

    #[test]
    fn an_answer_ends_when_the_server_is_ready() {
        let rows = |count: usize| frame(b'D', 496).repeat(count);
        assert_eq!(look(&[rows(10), frame(b'Z', 1), rows(10)].concat()), Ok(()));
        assert_eq!(look(&rows(11)), Err(Excess::Answer(5000)));
    }

    #[test]
    fn parameters_are_counted_over_the_whole_session() {
        let mut bounds = Bounds::new(LIMITS);
        let some = [frame(b'S', 900), frame(b'Z', 1)].concat();
        let borne = (0..PARAMETER_BYTES_MAX).position(|_| bounds.look(&some) == Err(Excess::Parameters));
        assert_eq!(borne, Some(PARAMETER_BYTES_MAX / 904));
    }
}

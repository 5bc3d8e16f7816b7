//! Pure: `require_auth`. What the server asks for is looked at before the client sees it, whichever client that is, so that a
//! password does not go out by a method that the address does not allow.
//!
//! Frames are a tag, a length and a body (manual page "Message Formats"). Of those up to AuthenticationOk only the tag and the
//! first four bytes of an Authentication message matter; they may come in pieces.

use crate::address::{AuthMethod, AuthMethods};

/// The server asked for this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("require_auth does not allow {0}")]
pub(super) struct Unwanted(pub(super) &'static str);

/// How far the login is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watched {
    Entering,
    /// The server lets us in: nothing is to be looked at any more.
    Entered,
}

/// Bytes of a frame that are kept: tag, length, and the kind of an Authentication message.
const HEAD: usize = 9;

/// Looks at the frames of a server that has not let us in yet.
#[derive(Debug)]
pub(super) struct Guard {
    allowed: AuthMethods,
    /// Something was asked for, and is allowed.
    asked: bool,
    head: Vec<u8>,
    /// Bytes of the frame that are still to come and are passed over.
    rest: usize,
}

impl Guard {
    pub(super) fn new(allowed: AuthMethods) -> Self {
        Self { allowed, asked: false, head: Vec::with_capacity(HEAD), rest: 0 }
    }

    /// Looks at the next bytes.
    pub(super) fn look(&mut self, mut bytes: &[u8]) -> Result<Watched, Unwanted> {
        while !bytes.is_empty() {
            let skipped = self.rest.min(bytes.len());
            self.rest -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let Some((byte, after)) = bytes.split_first() else { break };
            self.head.push(*byte);
            bytes = after;
            if self.head_frame()? == Watched::Entered {
                return Ok(Watched::Entered);
            }
        }
        Ok(Watched::Entering)
    }

    /// Reads the head as soon as it is whole.
    fn head_frame(&mut self) -> Result<Watched, Unwanted> {
        let [tag, a, b, c, d, body @ ..] = self.head.as_slice() else { return Ok(Watched::Entering) };
        let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX);
        // The length counts itself.
        let body_len = length.saturating_sub(4);
        let is_authentication = *tag == b'R';
        if is_authentication && body_len >= 4 && body.len() < 4 {
            return Ok(Watched::Entering);
        }
        let kind = body.first_chunk().map(|kind| u32::from_be_bytes(*kind)).filter(|_| is_authentication);
        self.rest = body_len.saturating_sub(body.len());
        self.head.clear();
        kind.map_or(Ok(Watched::Entering), |kind| self.judge(kind))
    }

    fn judge(&mut self, kind: u32) -> Result<Watched, Unwanted> {
        let (method, name) = match kind {
            0 if self.asked => return Ok(Watched::Entered),
            0 => (AuthMethod::None, "no proof at all (none)"),
            2 => (AuthMethod::Gss, "Kerberos"),
            3 => (AuthMethod::Password, "the password in clear (password)"),
            5 => (AuthMethod::Md5, "md5"),
            7 => (AuthMethod::Gss, "GSSAPI (gss)"),
            9 => (AuthMethod::Sspi, "SSPI (sspi)"),
            // Of SASL the clients know SCRAM only, and refuse everything else.
            10 => (AuthMethod::ScramSha256, "scram-sha-256"),
            // What goes on with a method that was allowed.
            8 | 11 | 12 if self.asked => return Ok(Watched::Entering),
            _ => return Err(Unwanted("a method that is not known")),
        };
        if !self.allowed.has(method) {
            return Err(Unwanted(name));
        }
        self.asked = true;
        Ok(if kind == 0 { Watched::Entered } else { Watched::Entering })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[tag][..], &length.to_be_bytes(), body].concat()
    }

    fn asks(kind: u32, more: &[u8]) -> Vec<u8> {
        frame(b'R', &[&kind.to_be_bytes()[..], more].concat())
    }

    /// The same whatever the pieces are.
    fn look(require: &str, bytes: &[u8]) -> Result<Watched, Unwanted> {
        let allowed = AuthMethods::parse(require).unwrap();
        let whole = Guard::new(allowed).look(bytes);
        let mut guard = Guard::new(allowed);
        let mut single = Ok(Watched::Entering);
        for byte in bytes {
            single = guard.look(&[*byte]);
            if single != Ok(Watched::Entering) {
                break;
            }
        }
        assert_eq!(whole, single, "{require}: {bytes:?}");
        whole
    }

    #[test]
    fn only_what_is_allowed_is_answered() {
        let scram = [asks(10, b"SCRAM-SHA-256\0\0"), asks(11, b"r=1"), asks(12, b"v=1"), asks(0, b"")].concat();
        let clear = asks(3, b"");
        let noticed = [frame(b'N', b"SNOTICE\0\0"), frame(b'S', b"a\0b\0"), asks(3, b"")].concat();
        for (require, bytes, expected) in [
            ("scram-sha-256", &scram, Ok(Watched::Entered)),
            ("!password,!md5", &scram, Ok(Watched::Entered)),
            ("md5", &scram, Err(Unwanted("scram-sha-256"))),
            ("scram-sha-256", &clear, Err(Unwanted("the password in clear (password)"))),
            ("!password", &noticed, Err(Unwanted("the password in clear (password)"))),
            ("password,md5", &noticed, Ok(Watched::Entering)),
            ("scram-sha-256", &asks(5, b"salt"), Err(Unwanted("md5"))),
            // A server that lets everybody in has proved nothing.
            ("scram-sha-256", &asks(0, b""), Err(Unwanted("no proof at all (none)"))),
            ("scram-sha-256,none", &asks(0, b""), Ok(Watched::Entered)),
            ("!none", &asks(0, b""), Err(Unwanted("no proof at all (none)"))),
            ("none", &asks(0, b""), Ok(Watched::Entered)),
            ("none", &scram, Err(Unwanted("scram-sha-256"))),
            ("scram-sha-256", &asks(99, b""), Err(Unwanted("a method that is not known"))),
            ("scram-sha-256", &asks(12, b"v=1"), Err(Unwanted("a method that is not known"))),
        ] {
            assert_eq!(look(require, bytes), expected, "{require}: {bytes:?}");
        }
        assert_eq!(look("gss", &asks(7, b"")), Ok(Watched::Entering));
        assert_eq!(look("!gss", &asks(7, b"")), Err(Unwanted("GSSAPI (gss)")));
        assert_eq!(look("sspi", &asks(9, b"")), Ok(Watched::Entering));
    }

    #[test]
    fn lengths_that_are_none_break_nothing() {
        for bytes in [&b"R\0\0\0\0"[..], b"R\0\0\0\x05x", b"R\xff\xff\xff\xff\0\0\0\x0a", b"", b"S\xff\xff\xff\xff"] {
            assert_eq!(look("scram-sha-256", bytes), Ok(Watched::Entering), "{bytes:?}");
        }
    }
}

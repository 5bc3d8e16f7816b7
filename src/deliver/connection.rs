//! Connections to one endpoint: how they are made, what each may still be used for, and what one request on one of
//! them comes to.
//!
//! [`pool`] keeps them and hands them out; [`reach`] makes them; [`http1`] and [`http2`] carry a request; [`life`] says
//! when a connection has had its day; [`tally`] and [`frames`] look at the bytes that pass, for what the libraries do not
//! tell. A client library in between would do most of this, but it does not tell what
//! only the connection knows: HTTP/2's GOAWAY names the last request that the endpoint has taken, and with it which
//! may be sent again without a doubt; an answer's `Keep-Alive` speaks of the one connection it came by; a request
//! that was not answered says that its own connection is suspect, and no other.

pub(super) mod clock;
pub(super) mod error;
mod frames;
pub(super) mod http1;
pub(super) mod http2;
pub(super) mod life;
pub(super) mod lookup;
pub(super) mod pool;
pub(super) mod reach;
mod tally;

use bytes::Bytes;
use http::HeaderMap;

use error::SendError;

/// What a request carries that differs between attempts.
pub(super) struct Outgoing {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// How an exchange failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// The endpoint has certainly not taken the request, as happens between two that do no wrong: another connection may
    /// carry it at once.
    Untaken(SendError),
    /// It has not taken it either, yet something is wrong with it or with us: it gets the request once more, in case this
    /// was a matter of the one connection.
    Unwelcome(SendError),
    /// It may have.
    Broken(SendError),
}

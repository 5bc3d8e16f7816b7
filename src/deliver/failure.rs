//! Sorts the client's errors into categories by their types, and words them for a person.
//!
//! Text is never looked at: libraries reword it. What is looked at: at which step a [`SendError`] came up, and
//! [`rustls::Error`], [`io::ErrorKind`], [`hyper::Error`] and [`h2::Error`] wherever in the chain they stand.

use std::error::Error as StdError;
use std::io;

use super::category::Category;
use super::connection::error::SendError;
use crate::tls_fault::{Peer, TlsFault};

/// The category of a failed exchange.
pub(super) fn classify(error: &SendError) -> Category {
    if find::<rustls::Error>(error).is_some() {
        return Category::TlsError;
    }
    let kind = find::<io::Error>(error).map(io::Error::kind);
    // Step by step, as the same kind of trouble means another thing at another.
    match error {
        SendError::Lookup(_) => Category::DnsError,
        SendError::ConnectTimeout => Category::ConnectTimeout,
        SendError::Connect(_) | SendError::Tls(_) => of_connect(kind),
        SendError::Silent { .. } => Category::Timeout,
        SendError::NeverTaken { .. } => Category::ConnectionReset,
        SendError::Http1(error) => kind.map_or_else(|| of_hyper(error), of_io),
        SendError::Http2(error) => kind.map_or_else(|| of_h2(error), of_io),
    }
}

/// What failed, for a person: never the URL, only `peer` (host and port).
pub(super) fn describe(error: &SendError, category: Category, peer: &str) -> String {
    if let SendError::NeverTaken { .. } | SendError::Silent { .. } = error {
        return error.to_string();
    }
    match category {
        Category::ConnectRefused if find::<io::Error>(error).is_some_and(is_refused) => {
            format!("connection refused ({peer})")
        }
        Category::ConnectTimeout => format!("no connection in time ({peer})"),
        Category::ConnectRefused => format!("cannot connect ({peer}): {}", innermost(error)),
        Category::DnsError => format!("cannot look up the host ({peer}): {}", innermost(error)),
        Category::TlsError => {
            let fault = TlsFault::of(error).unwrap_or(TlsFault::Other);
            let (what, mend) = (fault.what(), fault.advice(Peer::Endpoint));
            format!("TLS failed ({peer}): {what}: {}; {mend}", innermost(error))
        }
        Category::ConnectionReset if matches!(error, SendError::Tls(_)) => format!(
            "the connection was closed in the middle of the TLS handshake ({peer}): {}; a proxy or load balancer without a server \
             behind it does this, and a port without TLS",
            innermost(error)
        ),
        Category::ConnectionReset => {
            format!("the connection broke before the whole answer was there: {}", innermost(error))
        }
        Category::ProtocolError => format!("the answer is not valid HTTP: {}", innermost(error)),
        Category::Unbuildable => format!("no request can be made: {}", innermost(error)),
        Category::Timeout => format!("the connection timed out: {}", innermost(error)),
        Category::BlockedAddress
        | Category::ProxyError
        | Category::StatusRedirect
        | Category::StatusClientError
        | Category::StatusUnauthorized
        | Category::StatusGone
        | Category::StatusPayloadTooLarge
        | Category::StatusRateLimited
        | Category::StatusServerError
        | Category::UnexpectedSuccessStatus
        | Category::AbortedByReceiver
        | Category::TooLarge
        | Category::Shutdown => innermost(error),
    }
}

fn of_connect(kind: Option<io::ErrorKind>) -> Category {
    match kind {
        Some(io::ErrorKind::TimedOut) => Category::ConnectTimeout,
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe) => {
            Category::ConnectionReset
        }
        // Hung up in the middle of the TLS handshake.
        Some(io::ErrorKind::UnexpectedEof) => Category::ConnectionReset,
        // Refused, unreachable, no local port left: there is no connection to be had.
        Some(_) | None => Category::ConnectRefused,
    }
}

fn of_io(kind: io::ErrorKind) -> Category {
    if kind == io::ErrorKind::TimedOut {
        Category::Timeout
    } else if kind == io::ErrorKind::InvalidData || kind == io::ErrorKind::InvalidInput {
        // hyper's decoders report broken chunks so.
        Category::ProtocolError
    } else {
        Category::ConnectionReset
    }
}

/// A receiver that leaves (GOAWAY), or drops a stream for a reason that is no fault of form, has broken the connection off;
/// what the library itself objects to is not valid HTTP/2.
fn of_h2(error: &h2::Error) -> Category {
    let left = matches!(
        error.reason(),
        Some(h2::Reason::NO_ERROR | h2::Reason::REFUSED_STREAM | h2::Reason::CANCEL | h2::Reason::INTERNAL_ERROR)
    );
    if error.is_io() || left || (error.is_go_away() && error.is_remote()) {
        Category::ConnectionReset
    } else {
        Category::ProtocolError
    }
}

fn of_hyper(error: &hyper::Error) -> Category {
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() || error.is_body_write_aborted() {
        Category::ConnectionReset
    } else {
        Category::ProtocolError
    }
}

fn is_refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

/// The first error of type `E` in the chain. An `io::Error` hides what it wraps from `source`, so that is asked too.
fn find<'a, E: StdError + 'static>(error: &'a SendError) -> Option<&'a E> {
    let mut next: Option<&'a (dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = inner(error);
    }
    None
}

fn innermost(error: &SendError) -> String {
    let mut last: &(dyn StdError + 'static) = error;
    while let Some(next) = inner(last) {
        last = next;
    }
    last.to_string()
}

fn inner<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

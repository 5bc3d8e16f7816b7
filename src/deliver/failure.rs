//! Sorts the client's errors into categories by their types, and words them for a person.
//!
//! Text is never looked at: libraries reword it. What is looked at: reqwest's own questions (`is_dns`, `is_connect`,
//! `is_timeout`), [`rustls::Error`], [`io::ErrorKind`], [`hyper::Error`] and [`h2::Error`] wherever in the chain they stand.

use std::error::Error as StdError;
use std::io;

use super::category::Category;

/// The category of an error of the client.
pub(super) fn classify(error: &reqwest::Error) -> Category {
    if error.is_builder() {
        return Category::Unbuildable;
    }
    if error.is_dns() {
        return Category::DnsError;
    }
    if find::<rustls::Error>(error).is_some() {
        return Category::TlsError;
    }
    let kind = find::<io::Error>(error).map(io::Error::kind);
    if error.is_connect() {
        return of_connect(error.is_timeout(), kind);
    }
    if error.is_timeout() {
        return Category::Timeout;
    }
    if let Some(kind) = kind {
        return of_io(kind);
    }
    if let Some(error) = find::<h2::Error>(error) {
        return of_h2(error);
    }
    find::<hyper::Error>(error).map_or(Category::ProtocolError, of_hyper)
}

/// What failed, for a person: never the URL, only `peer` (host and port).
pub(super) fn describe(error: &reqwest::Error, category: Category, peer: &str) -> String {
    match category {
        Category::ConnectRefused if find::<io::Error>(error).is_some_and(is_refused) => {
            format!("connection refused ({peer})")
        }
        Category::ConnectTimeout => format!("no connection in time ({peer})"),
        Category::ConnectRefused => format!("cannot connect ({peer}): {}", innermost(error)),
        Category::DnsError => format!("cannot look up the host ({peer}): {}", innermost(error)),
        Category::TlsError => format!("TLS failed ({peer}): {}", innermost(error)),
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

fn of_connect(timed_out: bool, kind: Option<io::ErrorKind>) -> Category {
    match kind {
        _ if timed_out => Category::ConnectTimeout,
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
fn find<'a, E: StdError + 'static>(error: &'a reqwest::Error) -> Option<&'a E> {
    let mut next: Option<&'a (dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = inner(error);
    }
    None
}

fn innermost(error: &reqwest::Error) -> String {
    let mut last: &(dyn StdError + 'static) = error;
    while let Some(next) = inner(last) {
        last = next;
    }
    // An error of reqwest itself may print the URL.
    last.downcast_ref::<reqwest::Error>().map_or_else(|| last.to_string(), |_| "the request failed".to_owned())
}

fn inner<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

//! Sorts the client's errors into categories by their types, and words them for a person.
//!
//! Text is never looked at: libraries reword it. What is looked at: at which step a [`SendError`] came up, and
//! [`rustls::Error`], [`io::ErrorKind`], [`hyper::Error`] and [`h2::Error`] wherever in the chain they stand.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use super::category::Category;
use super::connection::error::SendError;
use super::connection::lookup::Unasked;
use crate::tls_fault::{Peer, TlsFault};

/// Characters of what others say that stand in a failure's text.
const TEXT_MAX: usize = 200;
/// How the limit of open files is raised.
const LIMIT: &str = "LimitNOFILE= of its service, or ulimit -n";

/// The category of a failed exchange.
pub(super) fn classify(error: &SendError) -> Category {
    if find::<rustls::Error>(error).is_some() {
        return Category::TlsError;
    }
    let io_error = find::<io::Error>(error);
    let kind = io_error.map(io::Error::kind);
    // Step by step, as the same kind of trouble means another thing at another.
    match error {
        SendError::Lookup(_) | SendError::Connect(_) if io_error.is_some_and(is_of_this_machine) => {
            Category::OwnResources
        }
        SendError::NoDescriptor => Category::OwnResources,
        SendError::Lookup(_) if find::<Unasked>(error).is_some() => Category::OwnDns,
        SendError::Lookup(_) => Category::DnsError,
        SendError::Denied(_) => Category::BlockedAddress,
        SendError::ConnectTimeout => Category::ConnectTimeout,
        SendError::Connect(_) | SendError::Tls(_) => of_connect(kind),
        SendError::Silent => Category::Timeout,
        SendError::NeverTaken { .. } | SendError::Retired | SendError::Left(_) => Category::ConnectionReset,
        SendError::Flood { .. } | SendError::SpeaksTls => Category::ProtocolError,
        SendError::Http1(error) => kind.map_or_else(|| of_hyper(error), of_io),
        SendError::Http2(error) => kind.map_or_else(|| of_h2(error), of_io),
    }
}

/// What failed, for a person: never the URL, only `peer` (host and port).
pub(super) fn describe(error: &SendError, category: Category, peer: &str) -> String {
    match error {
        SendError::Silent => return error.to_string(),
        SendError::Denied(_) => {
            return format!("{error} ({peer}): correct the sink's url, or leave the network out of egress.deny");
        }
        SendError::Flood { .. } => return format!("the endpoint ({peer}) sends {error}"),
        SendError::SpeaksTls => {
            return format!("the port speaks TLS ({peer}), and the sink's url says http://: write https://");
        }
        SendError::NeverTaken { .. } => return format!("{error}: {}", innermost(error)),
        SendError::NoDescriptor => {
            return format!("{error}; raise walhook's limit of open files: {LIMIT}, or lower max_in_flight");
        }
        SendError::Lookup(_)
        | SendError::Connect(_)
        | SendError::ConnectTimeout
        | SendError::Tls(_)
        | SendError::Http1(_)
        | SendError::Http2(_)
        | SendError::Retired
        | SendError::Left(_) => {}
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
        Category::OwnResources => format!(
            "this machine has no file descriptor, port or memory left for a connection ({peer}): {}; raise walhook's limit of open \
             files: {LIMIT}, or lower max_in_flight",
            innermost(error)
        ),
        Category::OwnDns => format!(
            "nobody could be asked for the host's name ({peer}): {}; this machine's resolver does not answer for any name, or cannot ask others",
            innermost(error)
        ),
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
        | Category::OwnClock
        | Category::TooLarge
        | Category::Damaged
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
        // Refused or unreachable: there is no connection to be had.
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

/// Too many open files, of the process or the machine, no local port, no memory: the endpoint has no part in it.
fn is_of_this_machine(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let ours = [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|raw| ours.iter().any(|errno| errno.raw_os_error() == raw))
}

fn is_refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

/// The first error of type `E` in the chain. An `io::Error` hides what it wraps from `source`, and an `Arc` itself, so
/// these are asked too.
pub(super) fn find<'a, E: StdError + 'static>(error: &'a SendError) -> Option<&'a E> {
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
    cut(&last.to_string())
}

/// A peer may have written it, at any length.
fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some(_) => text.chars().take(TEXT_MAX).chain(['…']).collect(),
        None => text.to_owned(),
    }
}

fn inner<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    if let Some(shared) = error.downcast_ref::<Arc<io::Error>>() {
        return Some(&**shared);
    }
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_machine_lacks_is_not_the_endpoints_fault() {
        // Too many open files (the process, the machine), no port, no buffers, no memory.
        for raw in [24, 23, 99, 105, 12] {
            let error = || io::Error::from_raw_os_error(raw);
            for error in [SendError::Lookup(Arc::new(error())), SendError::Connect(error())] {
                let category = classify(&error);
                assert_eq!(category, Category::OwnResources, "{error:?}");
                assert!(category.is_ours() && !category.is_endpoint_trouble());
                let said = describe(&error, category, "hooks.example:443");
                assert!(said.contains("hooks.example:443") && said.contains("LimitNOFILE"), "{said}");
            }
        }
        // Refused, no way to the network, and too many open files of a connection that stood.
        assert_eq!(classify(&SendError::Connect(io::Error::from_raw_os_error(111))), Category::ConnectRefused);
        assert_eq!(classify(&SendError::Connect(io::Error::from_raw_os_error(101))), Category::ConnectRefused);
        assert_eq!(classify(&SendError::Lookup(Arc::new(io::Error::other("no such name")))), Category::DnsError);
        assert_eq!(classify(&SendError::NoDescriptor), Category::OwnResources);
        let unasked = SendError::Lookup(Arc::new(io::Error::other(Unasked("temporary failure".to_owned()))));
        assert_eq!(classify(&unasked), Category::OwnDns);
        let said = describe(&unasked, Category::OwnDns, "hooks.example:443");
        assert!(said.contains("(hooks.example:443): temporary failure; this machine's resolver"), "{said}");
    }

    #[test]
    fn what_a_peer_says_is_cut_and_stands_in_what_is_said_of_a_request_that_was_never_taken() {
        let long = "ö".repeat(5000);
        let source = Box::new(SendError::Connect(io::Error::other(long)));
        let error = SendError::NeverTaken { tries: 5, source };
        let said = describe(&error, classify(&error), "hooks.example:443");
        let told = format!("the endpoint did not take the request, 5 times in a row: {}…", "ö".repeat(200));
        assert_eq!(said, told);
        assert_eq!(cut("short"), "short");
        assert_eq!(cut(&"x".repeat(200)), "x".repeat(200));
    }
}

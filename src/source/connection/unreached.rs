//! What it means that a server cannot be reached, or goes away before anybody is logged in, and what to do. Pure.

use std::io;

use super::error::{ConnectError, StreamError};

/// Something took the connection and had nothing to say.
pub(super) const CLOSED: &str = "a proxy or load balancer without a server behind it does this, and the port of another service, and a server that is \
                                 just starting or stopping: look there; if it is Postgres, its log says why";

/// What to do about an error of the operating system.
pub(super) fn advice(error: &io::Error) -> &'static str {
    use io::ErrorKind as Kind;
    // Too many open files, of the process (EMFILE) and of the machine (ENFILE).
    if matches!(error.raw_os_error(), Some(23 | 24)) {
        return "walhook may open no more files: raise its limit (LimitNOFILE of the service, ulimit -n)";
    }
    let kind = error.kind();
    if kind == Kind::ConnectionRefused {
        "nobody listens there: start the server, or correct host and port in the source's url; a server that others are to reach needs \
         listen_addresses"
    } else if kind == Kind::NotFound {
        "there is no socket in that directory: start the server, or correct host (its unix_socket_directories) and port in the source's \
         url"
    } else if kind == Kind::PermissionDenied {
        "walhook's user may not use the socket (unix_socket_permissions, unix_socket_group), or a firewall on this machine forbids the \
         connection"
    } else if kind == Kind::NetworkUnreachable || kind == Kind::HostUnreachable || kind == Kind::AddrNotAvailable {
        "no way leads there from this machine: check the route; a name that has only an IPv6 address needs IPv6 here"
    } else if kind == Kind::TimedOut {
        "nobody answered: look whether the server runs and whether a firewall on the way drops packets"
    } else if kind == Kind::InvalidInput {
        "the directory in host is too long for a unix socket, or no place for one"
    } else if is_closed(kind) {
        CLOSED
    } else {
        "check host and port in the source's url, and the network between"
    }
}

/// Whether the other side hung up.
pub(super) fn is_closed(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
    )
}

/// What the first byte of an answer tells of who answers, if it is not Postgres.
pub(super) fn speaks(first: u8) -> &'static str {
    match first {
        // `HTTP/1.1 400 Bad Request`
        b'H' => "HTTP",
        // A record of TLS: an alert, or a handshake.
        0x15 | 0x16 => "TLS from the first byte on",
        _ => "something else",
    }
}

/// An error of the SQL client before the session began. It has no names for its kinds but their words, to which tests hold it.
pub(super) fn of_client(error: tokio_postgres::Error) -> ConnectError {
    let kind = error.to_string();
    if kind.starts_with("unexpected message from server") || kind.starts_with("error parsing response from server") {
        return ConnectError::Broken(StreamError::Malformed {
            what: "the answer to the login is no message of Postgres",
        });
    }
    let is_io = std::error::Error::source(&error).is_some_and(|source| source.is::<io::Error>());
    if !is_io || !kind.starts_with("error communicating with the server") {
        return ConnectError::Sql(error);
    }
    match error.into_source().and_then(|source| source.downcast::<io::Error>().ok()) {
        Some(source) if is_closed(source.kind()) && crate::tls_fault::TlsFault::of(&source).is_none() => {
            ConnectError::Broken(StreamError::Closed)
        }
        Some(source) => ConnectError::Broken(StreamError::Io(*source)),
        None => ConnectError::Broken(StreamError::Closed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_the_system_has_its_own_advice() {
        let mut said = std::collections::HashSet::new();
        for (error, expected) in [
            (io::Error::from(io::ErrorKind::ConnectionRefused), "nobody listens"),
            (io::ErrorKind::NotFound.into(), "no socket"),
            (io::ErrorKind::PermissionDenied.into(), "unix_socket_permissions"),
            (io::ErrorKind::NetworkUnreachable.into(), "IPv6"),
            (io::ErrorKind::TimedOut.into(), "firewall"),
            (io::ErrorKind::UnexpectedEof.into(), "load balancer"),
            (io::Error::from_raw_os_error(24), "LimitNOFILE"),
            (io::ErrorKind::InvalidInput.into(), "too long"),
            (io::Error::other("whatever"), "network between"),
        ] {
            let told = advice(&error);
            assert!(told.contains(expected) && said.insert(told), "{error:?}: {told}");
            assert!(!told.contains("password") && !told.contains("role"), "{told}");
        }
        for kind in [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionAborted] {
            assert_eq!(advice(&kind.into()), CLOSED);
        }
    }
}

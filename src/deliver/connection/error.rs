//! Why no request could be sent, or no whole answer came.

use std::io;
use std::time::Duration;

/// One exchange that failed. The texts are for the chain of sources; what a person reads is made of it by
/// [`describe`](crate::deliver::failure::describe).
#[derive(Debug, thiserror::Error)]
pub(in crate::deliver) enum SendError {
    /// The host's name leads nowhere.
    #[error("the lookup failed")]
    Lookup(#[source] io::Error),
    /// No TCP connection.
    #[error("connecting failed")]
    Connect(#[source] io::Error),
    /// No connection, TLS included, in time.
    #[error("no connection in time")]
    ConnectTimeout,
    /// The TLS handshake failed.
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    /// HTTP/1.1 failed.
    #[error("HTTP/1.1 failed")]
    Http1(#[source] hyper::Error),
    /// HTTP/2 failed.
    #[error("HTTP/2 failed")]
    Http2(#[source] h2::Error),
    /// The other side of an HTTP/2 connection has gone without a word.
    #[error("no answer to a ping within {} s on an HTTP/2 connection", .waited.as_secs())]
    Silent {
        /// How long a ping waited.
        waited: Duration,
    },
    /// Each of so many connections was closed to the request before the endpoint took it.
    #[error("the endpoint closed {connections} connections in a row before it took the request")]
    NeverTaken {
        /// How many.
        connections: u32,
        /// What the last of them said.
        source: Box<SendError>,
    },
}

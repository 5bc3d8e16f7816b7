//! Why no request could be sent, or no whole answer came.

use std::io;
use std::sync::Arc;

use crate::deliver::egress::Denied;

/// One exchange that failed. The texts are for the chain of sources; what a person reads is made of it by
/// [`describe`](crate::deliver::failure::describe).
#[derive(Debug, thiserror::Error)]
pub(in crate::deliver) enum SendError {
    /// The host's name leads nowhere, or nobody could be asked. One answer for all that have waited for it.
    #[error("the lookup failed")]
    Lookup(#[source] Arc<io::Error>),
    /// It may not be connected to.
    #[error(transparent)]
    Denied(Denied),
    /// All connections that the limit of open files leaves are in use.
    #[error("all connections that the limit of open files leaves are in use")]
    NoDescriptor,
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
    #[error("a ping on the HTTP/2 connection was not answered")]
    Silent,
    /// A connection that takes no more requests, while this one waited for a stream of it.
    #[error("the HTTP/2 connection takes no more requests")]
    Retired,
    /// The endpoint takes no more requests on a connection, and says why.
    #[error("the endpoint ended the HTTP/2 connection: {0}")]
    Left(h2::Reason),
    /// The endpoint sends on and on, and no answer is in it.
    #[error("more than {most} {what} in a row, and no answer")]
    Flood {
        /// What it sends.
        what: &'static str,
        /// How much of it is borne.
        most: u32,
    },
    /// What answers to plain HTTP is a record of TLS.
    #[error("what answers speaks TLS")]
    SpeaksTls,
    /// The request was sent so many times, and the endpoint has taken it none of them.
    #[error("the endpoint did not take the request, {tries} times in a row")]
    NeverTaken {
        /// How many.
        tries: u32,
        /// What was said the last time.
        source: Box<SendError>,
    },
}

impl SendError {
    /// Whether nobody was reached, so that a connection that is open is better than a new one.
    pub(super) fn is_of_the_way(&self) -> bool {
        match self {
            Self::Lookup(_) | Self::Denied(_) | Self::NoDescriptor | Self::Connect(_) | Self::ConnectTimeout => true,
            Self::Tls(_)
            | Self::Http1(_)
            | Self::Http2(_)
            | Self::Silent
            | Self::Retired
            | Self::Left(_)
            | Self::Flood { .. }
            | Self::SpeaksTls
            | Self::NeverTaken { .. } => false,
        }
    }
}

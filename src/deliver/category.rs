//! Why an attempt failed, as a closed set of words for logs, metrics and the API.

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Category {
    /// The host's name could not be looked up.
    DnsError,
    /// The address is one that walhook may not speak to.
    BlockedAddress,
    /// Nobody accepts connections there, or there is no way there.
    ConnectRefused,
    /// No connection (TLS included) in time.
    ConnectTimeout,
    /// The connection ended before the whole answer was there.
    ConnectionReset,
    /// Certificates or the TLS handshake.
    TlsError,
    /// A proxy of ours failed.
    ProxyError,
    /// Connected, but no whole answer within `request_timeout`.
    Timeout,
    /// What came back is not HTTP as RFC 9112 and RFC 9113 have it.
    ProtocolError,
    /// 3xx: walhook follows none.
    StatusRedirect,
    /// 4xx without a category of its own.
    StatusClientError,
    /// 401 and 403.
    StatusUnauthorized,
    /// 410.
    StatusGone,
    /// 413.
    StatusPayloadTooLarge,
    /// 429.
    StatusRateLimited,
    /// 5xx.
    StatusServerError,
    /// A 2xx that the sink's `success` does not name.
    UnexpectedSuccessStatus,
    /// The receiver asked that the delivery be given up.
    AbortedByReceiver,
    /// walhook's machine has no file descriptor, port or memory left for a connection.
    OwnResources,
    /// walhook did not run while the request was under way, or its wall clock was set.
    OwnClock,
    /// Nobody could be asked for the host's name: this machine's resolver does not answer.
    OwnDns,
    /// No request could be made of the delivery.
    Unbuildable,
    /// The change is larger than `limits.max_message`: no request is made of it.
    TooLarge,
    /// What the store has of it is not what was written: no request is made of it.
    Damaged,
    /// walhook stopped while the request was under way.
    Shutdown,
}

impl Category {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 25] = [
        Self::DnsError,
        Self::BlockedAddress,
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::ConnectionReset,
        Self::TlsError,
        Self::ProxyError,
        Self::Timeout,
        Self::ProtocolError,
        Self::StatusRedirect,
        Self::StatusClientError,
        Self::StatusUnauthorized,
        Self::StatusGone,
        Self::StatusPayloadTooLarge,
        Self::StatusRateLimited,
        Self::StatusServerError,
        Self::UnexpectedSuccessStatus,
        Self::AbortedByReceiver,
        Self::OwnResources,
        Self::OwnClock,
        Self::OwnDns,
        Self::Unbuildable,
        Self::TooLarge,
        Self::Damaged,
        Self::Shutdown,
    ];

    /// The word used in logs, metrics and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DnsError => "dns_error",
            Self::BlockedAddress => "blocked_address",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::ConnectionReset => "connection_reset",
            Self::TlsError => "tls_error",
            Self::ProxyError => "proxy_error",
            Self::Timeout => "timeout",
            Self::ProtocolError => "protocol_error",
            Self::StatusRedirect => "status_redirect",
            Self::StatusClientError => "status_client_error",
            Self::StatusUnauthorized => "status_unauthorized",
            Self::StatusGone => "status_gone",
            Self::StatusPayloadTooLarge => "status_payload_too_large",
            Self::StatusRateLimited => "status_rate_limited",
            Self::StatusServerError => "status_server_error",
            Self::UnexpectedSuccessStatus => "unexpected_success_status",
            Self::AbortedByReceiver => "aborted_by_receiver",
            Self::OwnResources => "own_resources",
            Self::OwnClock => "own_clock",
            Self::OwnDns => "own_dns",
            Self::Unbuildable => "unbuildable",
            Self::TooLarge => "too_large",
            Self::Damaged => "damaged",
            Self::Shutdown => "shutdown",
        }
    }

    /// Whether it says that the endpoint is in trouble, not that it dislikes this delivery: these count for the breaker.
    pub fn is_endpoint_trouble(self) -> bool {
        match self {
            Self::DnsError
            | Self::BlockedAddress
            | Self::ConnectRefused
            | Self::ConnectTimeout
            | Self::ConnectionReset
            | Self::TlsError
            | Self::Timeout
            | Self::ProtocolError
            | Self::StatusUnauthorized
            | Self::StatusRateLimited
            | Self::StatusServerError => true,
            Self::ProxyError
            | Self::StatusRedirect
            | Self::StatusClientError
            | Self::StatusGone
            | Self::StatusPayloadTooLarge
            | Self::UnexpectedSuccessStatus
            | Self::AbortedByReceiver
            | Self::OwnResources
            | Self::OwnClock
            | Self::OwnDns
            | Self::Unbuildable
            | Self::TooLarge
            | Self::Damaged
            | Self::Shutdown => false,
        }
    }

    /// Whether the fault is on walhook's side: it never counts against the endpoint.
    pub fn is_ours(self) -> bool {
        self.is_own_trouble()
            || matches!(self, Self::ProxyError | Self::Unbuildable | Self::TooLarge | Self::Damaged | Self::Shutdown)
    }

    /// Whether it says that walhook's own machine is in trouble, whatever the delivery and whoever the endpoint: the sink
    /// waits as a whole, and nothing counts for the delivery.
    pub fn is_own_trouble(self) -> bool {
        matches!(self, Self::OwnResources | Self::OwnClock | Self::OwnDns)
    }
}

/// Whether a failure with this status may come from one message of a delivery, so that splitting it can help.
pub fn is_splittable_status(status: u16) -> bool {
    matches!(status, 400 | 413 | 422)
}

/// The same of a failure that is sorted: what the endpoint would say to every request is not about a message of this one.
pub fn is_splittable(status: Option<u16>, category: Category) -> bool {
    status.is_some_and(is_splittable_status) && !category.is_ours() && !category.is_endpoint_trouble()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_of_a_delivery_splits_it() {
        for (status, category, is_split) in [
            (Some(400), Category::StatusClientError, true),
            (Some(413), Category::StatusPayloadTooLarge, true),
            (Some(422), Category::StatusClientError, true),
            (Some(404), Category::StatusClientError, false),
            // http:// spoken to a port with TLS.
            (Some(400), Category::ProtocolError, false),
            (Some(400), Category::Shutdown, false),
            (None, Category::Timeout, false),
        ] {
            assert_eq!(is_splittable(status, category), is_split, "{status:?} {category:?}");
        }
    }

    #[test]
    fn ours_never_counts_against_the_endpoint_and_words_are_unique() {
        let words: std::collections::HashSet<_> = Category::ALL.iter().map(|category| category.as_str()).collect();
        assert_eq!(words.len(), Category::ALL.len());
        assert!(!Category::ALL.iter().any(|category| category.is_ours() && category.is_endpoint_trouble()));
    }
}

//! Pure: what there is to say of the ways of encrypting that `sslmode` allows, when all of them have failed at one place.

use super::error::{ConnectError, ServerError};
use super::refusal::{self, Encrypted};

impl ConnectError {
    /// Of two ways of encrypting that failed at one place, what there is to say. The later one alone would advise the way that
    /// the earlier one has tried.
    pub(super) fn after(self, before: Option<Self>) -> Self {
        let of_rules = |error: &Self| {
            if let Self::Server { source } = error { refusal::is_of_rules(source) } else { None }
        };
        match (before, of_rules(&self), self) {
            (Some(before @ Self::NoEntry { .. }), Some(_), _) => before,
            // Only without TLS there is no entry, and with it something else is in the way.
            (
                Some(before @ (Self::Tls { .. } | Self::TlsIssuer { .. } | Self::TlsName { .. } | Self::Closed { .. })),
                Some(Encrypted::No),
                _,
            ) => before,
            (Some(before), Some(Encrypted::No), Self::Server { source })
                if of_rules(&before) == Some(Encrypted::Yes) =>
            {
                Self::NoEntry { source, has_tls: true }
            }
            (Some(Self::Server { source }), _, Self::TlsRefused { .. }) if refusal::is_of_rules(&source).is_some() => {
                Self::NoEntry { source, has_tls: false }
            }
            (_, _, now) => now,
        }
    }

    /// The same in the light of whether the server offers TLS, if it was asked.
    pub(super) fn where_tls(self, offered: Option<bool>) -> Self {
        let is_so =
            |source: &ServerError| offered == Some(false) && refusal::is_of_rules(source) == Some(Encrypted::No);
        if let Self::Server { source } = self {
            return if is_so(&source) { Self::NoEntry { source, has_tls: false } } else { Self::Server { source } };
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_entry(how: &str) -> ConnectError {
        let message = format!("no pg_hba.conf entry for host \"::1\", user \"w\", database \"app\", {how}");
        let source = ServerError { code: "28000".to_owned(), message, ..ServerError::default() };
        ConnectError::Server { source: Box::new(source) }
    }

    fn closed() -> ConnectError {
        ConnectError::Closed { host: "h".to_owned(), when: "in the middle of the TLS handshake" }
    }

    fn no_tls() -> ConnectError {
        ConnectError::TlsRefused { host: "h".to_owned() }
    }

    #[test]
    fn the_last_try_is_not_told_as_if_the_one_before_had_not_been() {
        let (plain, tls) = (|| no_entry("no encryption"), || no_entry("SSL encryption"));
        // sslmode=prefer, with and without TLS.
        assert!(matches!(plain().after(Some(tls())), ConnectError::NoEntry { has_tls: true, .. }));
        let without = plain().where_tls(Some(false)).after(None);
        assert!(matches!(without, ConnectError::NoEntry { has_tls: false, .. }));
        assert!(matches!(plain().after(Some(without)), ConnectError::NoEntry { has_tls: false, .. }));
        // sslmode=allow.
        assert!(matches!(no_tls().after(Some(plain())), ConnectError::NoEntry { has_tls: false, .. }));
        assert!(matches!(tls().after(Some(plain())), ConnectError::Server { .. }));
        // Only TLS is let in, and does not come about.
        assert!(matches!(plain().after(Some(closed())), ConnectError::Closed { .. }));
        // Nobody asked for TLS.
        assert!(matches!(plain().where_tls(None).after(None), ConnectError::Server { .. }));
        assert!(matches!(plain().where_tls(Some(true)), ConnectError::Server { .. }));
        assert!(matches!(closed().after(Some(plain())), ConnectError::Closed { .. }));
    }
}

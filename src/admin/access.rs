//! Who may ask: bearer tokens, and the host a request must name.

use http::header::{AUTHORIZATION, HOST};
use http::uri::Authority;
use http::{HeaderMap, Uri};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::config::AdminConfig;

/// The rules of one admin side.
pub(super) struct Access {
    tokens: Vec<Token>,
}

struct Token {
    secret: SecretString,
    sinks: Option<Vec<String>>,
}

/// What a request may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grant<'a> {
    /// Everything.
    All,
    /// Sources, and these sinks.
    Sinks(&'a [String]),
    /// Nothing: a token is needed, and this one is missing or wrong.
    Refused,
}

impl Access {
    pub(super) fn new(config: &AdminConfig) -> Self {
        let token = |t: &crate::config::AdminToken| Token { secret: t.token.clone(), sinks: t.sinks.clone() };
        Self { tokens: config.tokens.iter().map(token).collect() }
    }

    /// What the request's bearer token grants; everything if no tokens are set. All tokens are compared, each in a time
    /// that does not depend on where it differs.
    pub(super) fn grant(&self, headers: &HeaderMap) -> Grant<'_> {
        if self.tokens.is_empty() {
            return Grant::All;
        }
        let Some(given) = bearer(headers) else { return Grant::Refused };
        let given = Sha256::digest(given);
        self.tokens.iter().fold(Grant::Refused, |grant, token| {
            match (same(&given, &Sha256::digest(token.secret.expose_secret())), &token.sinks) {
                (true, None) => Grant::All,
                (true, Some(sinks)) => Grant::Sinks(sinks),
                (false, _) => grant,
            }
        })
    }

    /// Whether the host that the request names is one under which this side may be reached. Without tokens, which is on
    /// loopback, only loopback's own names count: a browser sends the name it resolved, and a page may have made its name
    /// resolve to loopback. A page has no token, and a proxy on this machine may pass on the name it was asked for.
    pub(super) fn knows_host(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        !self.tokens.is_empty()
            || (uri.authority().is_none_or(is_loopback)
                && headers.get_all(HOST).iter().all(|host| {
                    host.to_str().is_ok_and(|host| host.parse().is_ok_and(|authority| is_loopback(&authority)))
                }))
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

/// Digests are compared, so that neither length nor content of a token shows in the time taken.
fn same(left: &[u8], right: &[u8]) -> bool {
    let differing = left.iter().zip(right).fold(0, |differing, (l, r)| differing | (l ^ r));
    left.len() == right.len() && std::hint::black_box(differing) == 0
}

fn is_loopback(authority: &Authority) -> bool {
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AdminToken;

    fn access(listen: &str, tokens: &[(&str, Option<&str>)]) -> Access {
        let token = |(token, sink): &(&str, Option<&str>)| AdminToken {
            token: (*token).into(),
            operate: false,
            sinks: sink.map(|sink| vec![sink.to_owned()]),
        };
        Access::new(&AdminConfig { listen: listen.parse().unwrap(), tokens: tokens.iter().map(token).collect() })
    }

    fn headers(name: http::HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_token_grants_what_its_config_says() {
        let access = access("0.0.0.0:1", &[("all-of-it", None), ("orders-only", Some("orders"))]);
        let orders = ["orders".to_owned()];
        for (authorization, grant) in [
            ("Bearer all-of-it", Grant::All),
            ("bearer all-of-it ", Grant::All),
            ("Bearer orders-only", Grant::Sinks(&orders)),
            ("Bearer all-of-i", Grant::Refused),
            ("Bearer all-of-it2", Grant::Refused),
            ("Bearer ", Grant::Refused),
            ("all-of-it", Grant::Refused),
            ("Basic all-of-it", Grant::Refused),
        ] {
            assert_eq!(access.grant(&headers(AUTHORIZATION, &[authorization])), grant, "{authorization}");
        }
        assert_eq!(access.grant(&HeaderMap::new()), Grant::Refused);
    }

    #[test]
    fn without_tokens_everything_is_granted() {
        assert_eq!(access("127.0.0.1:1", &[]).grant(&HeaderMap::new()), Grant::All);
    }

    #[test]
    fn without_tokens_only_the_names_of_loopback_are_hosts() {
        let access = access("127.0.0.1:1", &[]);
        let path = Uri::from_static("/readyz");
        for (hosts, known) in [
            (&["localhost:8377"][..], true),
            (&["LocalHost"], true),
            (&["127.0.0.1:8377"], true),
            (&["127.9.9.9"], true),
            (&["[::1]:8377"], true),
            (&[], true),
            (&["evil.example:8377"], false),
            (&["localhost.evil.example"], false),
            (&["127.0.0.1.evil.example"], false),
            (&["192.0.2.1"], false),
            (&["localhost", "evil.example"], false),
            (&[""], false),
        ] {
            assert_eq!(access.knows_host(&path, &headers(HOST, hosts)), known, "{hosts:?}");
        }
        assert!(!access.knows_host(&Uri::from_static("http://evil.example/readyz"), &HeaderMap::new()));
    }

    #[test]
    fn with_tokens_every_host_is_known_on_loopback_too() {
        for listen in ["0.0.0.0:1", "127.0.0.1:1"] {
            let access = access(listen, &[("t", None)]);
            assert!(access.knows_host(&Uri::from_static("/"), &headers(HOST, &["a.example"])), "{listen}");
        }
    }
}

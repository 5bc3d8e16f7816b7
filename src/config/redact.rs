//! What of a value may be shown in a fault.

use figment::value::{Num, Value};

use crate::address::name_fault;

/// How much of a value a fault shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    /// All of it.
    All,
    /// Of an address only scheme, host and port.
    Host,
    /// Nothing.
    Nothing,
}

/// Characters of a value that are shown at most.
const SHOWN_CHARS_MAX: usize = 80;

/// `value` as a fault shows it.
pub(super) fn shown(value: &Value, show: Show) -> String {
    match (value, show) {
        (Value::Dict(..), _) => "{…}".to_owned(),
        (Value::Array(..), _) => "[…]".to_owned(),
        (_, Show::Nothing) => "\"***\"".to_owned(),
        // An address shows no more where none belongs.
        (Value::String(_, text), Show::All) if text.contains("://") => format!("{:?}", host_of(text)),
        (Value::String(_, text), Show::All) if may_be_secret(text) => "\"***\"".to_owned(),
        (Value::String(_, text), Show::Host) => format!("{:?}", host_of(text)),
        (Value::String(_, text), Show::All) => cut(&format!("{text:?}")),
        (Value::Char(_, c), _) => format!("{:?}", c.to_string()),
        (Value::Bool(_, value), _) => value.to_string(),
        (Value::Num(_, number), _) => match (whole(*number), number.to_f64()) {
            (Some(whole), _) => whole.to_string(),
            (None, Some(float)) => float.to_string(),
            (None, None) => "a number".to_owned(),
        },
        (Value::Empty(..), _) => "a date or time".to_owned(),
    }
}

/// A key as a fault shows it: an address or a secret that stands where a name belongs is left out.
pub(super) fn shown_key(key: &str) -> String {
    let parts = key.split('"').enumerate().map(|(index, part)| match index % 2 == 1 && may_be_secret(part) {
        true => "***",
        false => part,
    });
    parts.collect::<Vec<_>>().join("\"")
}

/// Whether a text that stands where none belongs bears marks of an address, a key, a token or a list of settings.
pub(super) fn may_be_secret(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    // `LS0tLS1CRUdJTi` is `-----BEGIN` in base64.
    let marks = ["://", "@", "whsec_", "password", "passwd", "bearer ", "-----begin", "ls0tls1crudjti"];
    marks.iter().any(|mark| lower.contains(mark)) || is_pairs(&lower)
}

/// `host=db user=u`
fn is_pairs(text: &str) -> bool {
    let keys = ["host", "user", "dbname", "pwd", "pass", "key", "port", "server", "database"];
    text.split([' ', ';', '&', '"', '\'']).filter_map(|pair| pair.split_once('=')).any(|(key, _)| keys.contains(&key))
}

/// A number without a fraction. `Num::to_i128` knows only the signed ones.
pub(super) fn whole(number: Num) -> Option<i128> {
    number.to_i128().or_else(|| i128::try_from(number.to_u128()?).ok())
}

fn cut(text: &str) -> String {
    if text.chars().count() <= SHOWN_CHARS_MAX {
        return text.to_owned();
    }
    text.chars().take(SHOWN_CHARS_MAX).chain(['…']).collect()
}

/// Scheme, host and port of an address; whatever else it holds, or whatever is not an address, is left out.
fn host_of(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return "***".to_owned() };
    if scheme.is_empty() || !scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+') {
        return "***".to_owned();
    }
    let (authority, more) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
    // With an @ of its own, or cut off before the @ that ends it, a piece of a password stands where the host belongs.
    if authority.matches('@').count() > 1 || more.contains('@') {
        return format!("{scheme}://***");
    }
    let (user, hosts) = authority.split_once('@').map_or(("", authority), |(_, hosts)| ("***@", hosts));
    let mut hosts: Vec<String> = hosts.split(',').map(host_and_port).collect();
    // The address of a database that lacks the @ has its password where a port belongs.
    if let ([only], "", false) = (hosts.as_mut_slice(), user, scheme.starts_with("http"))
        && let Some((host, _)) = only.rsplit_once(':').filter(|_| !only.ends_with([']', '*']))
    {
        *only = format!("{host}:***");
    }
    cut(&format!("{scheme}://{user}{}{}", hosts.join(","), if more.is_empty() { "" } else { "/…" }))
}

/// `host:port`, with `***` where a port is none, as in `user:password` without `@`, or a host is none.
fn host_and_port(text: &str) -> String {
    let is_port = |port: &str| port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if is_port(port) => (host, Some(port)),
        Some(_) | None => (text, None),
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host =
        bare.map_or_else(|| name_fault(host).is_none() && !host.contains(':'), |bare| name_fault(bare).is_none());
    match port {
        _ if !is_host && !host.is_empty() => "***".to_owned(),
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_key_an_address_is_left_out() {
        for (key, seen) in [
            ("sink.a.table.\"public.orders\".group_by", "sink.a.table.\"public.orders\".group_by"),
            ("source.\"postgres://u:hunter2@db\".url", "source.\"***\".url"),
            ("sink.\"whsec_hunter2\"", "sink.\"***\""),
            ("sink.\"host=db pwd=hunter2\"", "sink.\"***\""),
            ("sink.\"-----BEGIN EC PRIVATE KEY-----\"", "sink.\"***\""),
        ] {
            assert_eq!(shown_key(key), seen);
        }
    }

    #[test]
    fn a_value_that_bears_the_marks_of_a_secret_is_not_shown() {
        let of = |text: &str| shown(&Value::from(text), Show::All);
        for text in [
            "host=db user=u password=hunter2",
            "Host=db;Pwd=hunter2",
            "u:hunter2@db",
            "whsec_hunter2",
            "Bearer hunter2",
            "-----BEGIN EC PRIVATE KEY-----\nhunter2",
            "LS0tLS1CRUdJTiBFQyBQUklWQVRFIEtFWQhunter2",
        ] {
            assert_eq!(of(text), "\"***\"", "{text}");
        }
        for text in ["walhook_app", "public.orders", "a = b", "My Shop.x"] {
            assert_eq!(of(text), format!("{text:?}"));
        }
    }

    #[test]
    fn of_an_address_only_scheme_host_and_port_are_shown() {
        for (text, seen) in [
            ("postgres://app:hunter2@db:5432/app", "postgres://***@db:5432/…"),
            ("postgres://app:hun@ter/2@db", "postgres://***"),
            ("postgres://app:hun@ter2@db", "postgres://***"),
            ("postgres://app:12/ter2@db", "postgres://***"),
            ("postgres://u@db?password=a@ter2", "postgres://***"),
            ("postgres://app:12345/db", "postgres://app:***/…"),
            ("postgres://app@db:5432", "postgres://***@db:5432"),
            ("postgres://app@hun$ter2/db", "postgres://***@***/…"),
            ("https://hun:12/ter2@example.com", "https://***"),
            ("https://example.com:8443/hunter2", "https://example.com:8443/…"),
            ("http:///hunter2", "http:///…"),
            ("http://:8080/hunter2", "http://:8080/…"),
            ("postgres://app:hunter2", "postgres://***"),
            ("postgres://db/app?password=hunter2", "postgres://db/…"),
            ("postgres://[::1]:5432,b:1/app", "postgres://[::1]:5432,b:1/…"),
            ("host=db password=hunter2", "***"),
            ("https://example.com/hunter2", "https://example.com/…"),
            ("htps:/hunter2", "***"),
        ] {
            assert_eq!(host_of(text), seen);
        }
    }
}

//! What of a value may be shown in a fault.

use figment::value::{Num, Value};

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
    let (user, hosts) = match rest.rsplit_once('@') {
        Some((_, hosts)) => ("***@", hosts),
        None => ("", rest),
    };
    let (authority, more) = match hosts.find(['/', '?', '#', '\\']) {
        Some(end) => (hosts.get(..end).unwrap_or_default(), "/…"),
        None => (hosts, ""),
    };
    let hosts: Vec<String> = authority.split(',').map(host_and_port).collect();
    cut(&format!("{scheme}://{user}{}{more}", hosts.join(",")))
}

/// `host:port`, with `***` for a port that is none: `user:password` without `@` looks like that.
fn host_and_port(text: &str) -> String {
    match text.rsplit_once(':') {
        Some((host, port)) if port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit()) => {
            if host.contains(':') && !host.starts_with('[') { "***".to_owned() } else { format!("{host}:{port}") }
        }
        Some(_) if text.starts_with('[') && text.ends_with(']') => text.to_owned(),
        Some(_) => "***".to_owned(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_address_only_scheme_host_and_port_are_shown() {
        for (text, seen) in [
            ("postgres://app:hunter2@db:5432/app", "postgres://***@db:5432/…"),
            ("postgres://app:hun@ter/2@db", "postgres://***@db"),
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

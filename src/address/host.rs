//! Which names a host may have. Pure.

use std::net::{IpAddr, Ipv6Addr};

/// The longest name and the longest of its parts (RFC 1035).
const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// Why `name` is not the name or the address of a host, as the end of a sentence about it; `None` if it may be one. Nothing
/// of it is repeated: a piece of a password that was not encoded lands where a host belongs.
pub(crate) fn name_fault(name: &str) -> Option<&'static str> {
    if is_address(name) {
        return None;
    }
    let labels = || name.strip_suffix('.').unwrap_or(name).split('.');
    if name.is_empty() {
        Some("is empty")
    } else if name.contains('$') {
        Some("has a $ in it: a variable is written ${NAME}")
    } else if !name.is_ascii() {
        Some("has letters beyond ASCII in it: write it as DNS has it, xn--…")
    } else if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)) {
        Some("has characters in it that no host's name has")
    } else if labels().any(|label| label.is_empty() || label.starts_with('-') || label.ends_with('-')) {
        Some("has an empty part, as a variable leaves it that is set to nothing")
    } else if name.ends_with('.') && labels().count() == 1 {
        Some("ends with a dot, as a variable leaves it that is set to nothing")
    } else if name.len() > NAME_BYTES_MAX || labels().any(|label| label.len() > LABEL_BYTES_MAX) {
        Some("is longer than a host's name can be")
    } else if labels().next_back().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit())) {
        Some("is a number and not a whole IPv4 address")
    } else {
        None
    }
}

/// An IP address, IPv6 also with its zone.
fn is_address(name: &str) -> bool {
    let with_zone = name.split_once('%').filter(|(_, zone)| !zone.is_empty());
    let zone_is_plain = |zone: &str| zone.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    name.parse::<IpAddr>().is_ok()
        || with_zone.is_some_and(|(address, zone)| address.parse::<Ipv6Addr>().is_ok() && zone_is_plain(zone))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_name_is_told_from_a_piece_of_something_else() {
        for name in [
            "db",
            "db.example",
            "db.example.",
            "db_1",
            "a--b",
            "1password.com",
            "10.0.0.7",
            "::1",
            "fe80::1%eth0",
            "xn--bcher-kva.example",
            "DB.Example",
        ] {
            assert_eq!(name_fault(name), None, "{name}");
        }
        let long = "a".repeat(64);
        for (name, expected) in [
            ("", "is empty"),
            ("$HOST", "${NAME}"),
            ("db.$DOMAIN", "${NAME}"),
            ("bücher.example", "xn--"),
            ("db;password=s3", "characters"),
            ("s3@db", "characters"),
            ("pa ss", "characters"),
            ("{host}", "characters"),
            ("db\n", "characters"),
            ("a:b", "characters"),
            (".example.com", "empty part"),
            ("api..example.com", "empty part"),
            ("api-.example.com", "empty part"),
            ("-db", "empty part"),
            ("api.", "ends with a dot"),
            ("5432", "number"),
            ("1.2.3", "number"),
            (&long, "longer"),
        ] {
            let fault = name_fault(name).unwrap_or_else(|| panic!("{name:?} is taken"));
            assert!(fault.contains(expected), "{name:?}: {fault}");
        }
    }
}

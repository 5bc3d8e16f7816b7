//! Durations such as `"30s"` and sizes such as `"64MiB"`, read and written.

use std::time::Duration;

/// What stands in place of a duration or a size.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotQuantity {
    pub(super) reason: String,
    pub(super) suggestion: Option<String>,
}

/// Milliseconds in each unit of time, largest first.
const TIME_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Bytes in each unit of size, largest first.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
];

const TIME_REASON: &str = "must be a duration: a whole number and one of ms, s, m, h, d";
const SIZE_REASON: &str = "must be a size: a whole number and one of B, KB, KiB, MB, MiB, GB, GiB, TB, TiB";

/// `"30s"`, `"10ms"`, `"3m"`, `"24h"`, `"7d"`.
pub(super) fn duration(text: &str) -> Result<Duration, NotQuantity> {
    quantity(text, &TIME_UNITS, TIME_REASON, "s").map(Duration::from_millis)
}

/// `"64MiB"`, `"1MB"`, `"512KiB"`, in bytes.
pub(super) fn size(text: &str) -> Result<u64, NotQuantity> {
    quantity(text, &SIZE_UNITS, SIZE_REASON, "B")
}

/// A duration as it is written, in the largest unit that fits.
pub(super) fn show_duration(duration: Duration) -> String {
    show(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), &TIME_UNITS, "0s")
}

/// A size as it is written, in the largest unit that fits.
pub(super) fn show_size(bytes: u64) -> String {
    show(bytes, &SIZE_UNITS, "0B")
}

fn show(amount: u64, units: &[(&str, u64)], zero: &str) -> String {
    let fits = units.iter().find(|(_, scale)| amount != 0 && amount.is_multiple_of(*scale));
    fits.map_or_else(|| zero.to_owned(), |(unit, scale)| format!("{}{unit}", amount / scale))
}

fn quantity(text: &str, units: &[(&str, u64)], reason: &str, usual: &str) -> Result<u64, NotQuantity> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let bad = |suggestion: Option<String>| NotQuantity { reason: reason.to_owned(), suggestion };
    if digits.is_empty() {
        return Err(bad(None));
    }
    if unit.is_empty() {
        return Err(bad(Some(format!("\"{digits}{usual}\""))));
    }
    let Some((_, scale)) = units.iter().find(|(name, _)| *name == unit) else {
        let meant = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim()));
        return Err(bad(meant.map(|(name, _)| format!("\"{digits}{name}\""))));
    };
    let too_large = || NotQuantity { reason: "is too large".to_owned(), suggestion: None };
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(*scale)).ok_or_else(too_large)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_and_written_alike() {
        for text in ["0s", "10ms", "30s", "3m", "24h", "7d", "1500ms"] {
            let read = duration(text).unwrap();
            assert_eq!(duration(&show_duration(read)).unwrap(), read, "{text}");
        }
        for (text, bytes) in [("64MiB", 64 << 20), ("1MB", 1_000_000), ("512KiB", 512 << 10), ("7B", 7)] {
            assert_eq!(size(text).unwrap(), bytes);
            assert_eq!(show_size(bytes), text);
        }
    }

    #[test]
    fn a_unit_that_is_missing_or_miswritten_is_suggested() {
        assert_eq!(duration("30").unwrap_err().suggestion.as_deref(), Some("\"30s\""));
        assert_eq!(size("64mib").unwrap_err().suggestion.as_deref(), Some("\"64MiB\""));
        for text in ["", "s", "-1s", "1.5s", "1 week", "é", "٣s"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(duration("99999999999999999999d").unwrap_err().reason, "is too large");
        assert_eq!(size("99999999999TiB").unwrap_err().reason, "is too large");
    }
}

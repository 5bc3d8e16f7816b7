//! Timestamps: from Postgres's ISO text to the ISO 8601 that `to_jsonb` gives, and the commit's from microseconds.

use memchr::memchr;

const MICROS_A_DAY: i64 = 86_400_000_000;

/// Appends a timestamp: `2024-03-20 15:30:00.5` becomes `"2024-03-20T15:30:00.5"`; ` BC` and infinities stay.
pub(super) fn append_timestamp(out: &mut Vec<u8>, text: &[u8]) -> bool {
    if is_infinite(text) {
        append_quoted(out, &[text]);
        return true;
    }
    let Some((date, time)) = parts(text) else { return false };
    append_quoted(out, &[date, b"T", time]);
    true
}

/// Appends a timestamptz: the same, and the offset `+00` becomes `+00:00`.
pub(super) fn append_timestamptz(out: &mut Vec<u8>, text: &[u8]) -> bool {
    if is_infinite(text) {
        append_quoted(out, &[text]);
        return true;
    }
    let Some((date, time)) = parts(text) else { return false };
    let (time, era) = time.strip_suffix(b" BC").map_or((time, &b""[..]), |time| (time, b" BC"));
    let Some(offset) = time.iter().rposition(|byte| matches!(byte, b'+' | b'-')) else { return false };
    let minutes: &[u8] = if time.len() - offset == 3 { b":00" } else { b"" };
    append_quoted(out, &[date, b"T", time, minutes, era]);
    true
}

fn is_infinite(text: &[u8]) -> bool {
    matches!(text, b"infinity" | b"-infinity")
}

/// Date and time, if they hold nothing that a JSON string would have to escape.
fn parts(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let (date, time) = text.split_at_checked(memchr(b' ', text)?)?;
    let time = time.get(1..)?;
    let known = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b':' | b'.' | b' ' | b'B' | b'C');
    (!time.is_empty() && text.iter().all(known)).then_some((date, time))
}

fn append_quoted(out: &mut Vec<u8>, parts: &[&[u8]]) {
    out.push(b'"');
    for part in parts {
        out.extend_from_slice(part);
    }
    out.push(b'"');
}

/// Appends microseconds since 1970 as `2024-03-20T15:30:00.123456Z` (RFC 3339). A year outside 0–9999, which no clock
/// gives, is written with a sign and six digits (ISO 8601, expanded).
pub(super) fn append_rfc3339(out: &mut Vec<u8>, micros: i64) {
    let (year, month, day) = civil(micros.div_euclid(MICROS_A_DAY));
    let time = micros.rem_euclid(MICROS_A_DAY);
    let (seconds, fraction) = (time / 1_000_000, time % 1_000_000);
    if (0..=9999).contains(&year) {
        append_padded(out, year, 4);
    } else {
        out.push(if year < 0 { b'-' } else { b'+' });
        append_padded(out, year.saturating_abs(), 6);
    }
    for (mark, number, width) in [
        (b'-', month, 2),
        (b'-', day, 2),
        (b'T', seconds / 3600, 2),
        (b':', seconds / 60 % 60, 2),
        (b':', seconds % 60, 2),
        (b'.', fraction, 6),
    ] {
        out.push(mark);
        append_padded(out, number, width);
    }
    out.push(b'Z');
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Years begin in March here, so that
/// the leap day is the last of its year; 400 of them have 146,097 days.
fn civil(days: i64) -> (i64, i64, i64) {
    let from_march_0000 = days + 719_468;
    let (era, day_of_era) = (from_march_0000.div_euclid(146_097), from_march_0000.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let (month, next) = if month_from_march < 10 { (month_from_march + 3, 0) } else { (month_from_march - 9, 1) };
    (era * 400 + year_of_era + next, month, day)
}

/// Appends the last `width` digits of a number that is not negative; `width` is at most 6.
fn append_padded(out: &mut Vec<u8>, number: i64, width: usize) {
    let mut digits = [b'0'; 6];
    let mut rest = u32::try_from(number).unwrap_or_default();
    for place in digits.iter_mut().rev() {
        *place = b'0' + u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
    }
    out.extend_from_slice(digits.get(6 - width..).unwrap_or(&digits));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rfc3339(micros: i64) -> String {
        let mut out = Vec::new();
        append_rfc3339(&mut out, micros);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn commit_times_have_six_digits_and_extremes_do_not_panic() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(rfc3339(1_710_948_600_123_456), "2024-03-20T15:30:00.123456Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59.999999Z");
        assert_eq!(rfc3339(i64::MAX), "+294247-01-10T04:00:54.775807Z");
        assert_eq!(rfc3339(i64::MIN), "-290308-12-21T19:59:05.224192Z");
    }

    proptest! {
        #[test]
        fn commit_times_agree_with_jiff(micros in -62_167_219_200_000_000_i64..253_402_207_200_000_000) {
            let oracle = jiff::Timestamp::from_microsecond(micros).unwrap();
            prop_assert_eq!(rfc3339(micros), format!("{oracle:.6}"));
        }
    }
}

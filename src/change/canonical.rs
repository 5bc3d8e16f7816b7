//! Pure: one text for all texts of values that Postgres calls equal.
//!
//! Each form is that of texts as Postgres writes them in our sessions (`IntervalStyle = postgres`). A text in
//! any other form is its own canonical form.

use std::io::Write as _;

/// How a column's text is made canonical.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// numeric without a fixed scale: without zeros at the end of its fraction.
    Numeric,
    /// float4 and float8: without the sign of zero.
    Float,
    /// interval: in days of 24 hours, as `interval_cmp` counts a month as 30 days.
    Interval,
    /// bpchar without a fixed length: without blanks at its end.
    Blanks,
    /// Arrays, ranges and multiranges of [`Form::Numeric`].
    Numerics,
    /// Arrays, ranges and multiranges of [`Form::Float`].
    Floats,
    /// Arrays, ranges and multiranges of [`Form::Interval`].
    Intervals,
}

impl Form {
    /// Its word in the rule that a table is grouped by.
    pub fn word(self) -> &'static str {
        match self {
            Self::Numeric => "numeric",
            Self::Float => "float",
            Self::Interval => "interval",
            Self::Blanks => "blanks",
            Self::Numerics => "numerics",
            Self::Floats => "floats",
            Self::Intervals => "intervals",
        }
    }

    /// The form of arrays and ranges of such values, if there is one: where no value has characters that need quotes or escapes
    /// within them, except for blanks.
    pub fn within(self) -> Option<Self> {
        match self {
            Self::Numeric | Self::Numerics => Some(Self::Numerics),
            Self::Float | Self::Floats => Some(Self::Floats),
            Self::Interval | Self::Intervals => Some(Self::Intervals),
            Self::Blanks => None,
        }
    }

    /// Appends the canonical form of `text`.
    pub fn append(self, out: &mut Vec<u8>, text: &[u8]) {
        match self {
            Self::Numeric => out.extend_from_slice(numeric(text)),
            Self::Float => out.extend_from_slice(float(text)),
            Self::Interval => append_interval(out, text),
            Self::Blanks => out.extend_from_slice(blanks(text)),
            Self::Numerics => append_parts(out, text, |out, part| out.extend_from_slice(numeric(part))),
            Self::Floats => append_parts(out, text, |out, part| out.extend_from_slice(float(part))),
            Self::Intervals => append_parts(out, text, append_interval),
        }
    }

    /// The canonical form of a text, for people.
    pub fn text(self, text: &[u8]) -> String {
        let mut out = Vec::with_capacity(text.len());
        self.append(&mut out, text);
        String::from_utf8_lossy(&out).into_owned()
    }
}

/// `numeric_out` writes neither an exponent, nor a sign of zero, nor zeros in front; NaN and the infinities are words.
fn numeric(text: &[u8]) -> &[u8] {
    if !text.contains(&b'.') {
        return text;
    }
    let zeros = text.iter().rev().take_while(|byte| **byte == b'0').count();
    let (digits, _) = text.split_at(text.len() - zeros);
    digits.strip_suffix(b".").unwrap_or(digits)
}

/// All other equal floats have the same, shortest text; NaN is equal to itself as a key.
fn float(text: &[u8]) -> &[u8] {
    if text == b"-0" { b"0" } else { text }
}

fn blanks(text: &[u8]) -> &[u8] {
    let blanks = text.iter().rev().take_while(|byte| **byte == b' ').count();
    text.split_at(text.len() - blanks).0
}

const MICROS_A_DAY: i128 = 86_400_000_000;

/// `-1 days -02:00:00.5`, as the server would write the interval in days of 24 hours. No interval of Postgres is out of bounds
/// here: 2^31 months and days, 2^63 microseconds.
fn append_interval(out: &mut Vec<u8>, text: &[u8]) {
    let Some(micros) = std::str::from_utf8(text).ok().and_then(interval_micros) else {
        return out.extend_from_slice(text);
    };
    let (days, rest) = (micros / MICROS_A_DAY, micros % MICROS_A_DAY);
    let sign = if rest < 0 { "-" } else { "" };
    let rest = rest.unsigned_abs();
    let (seconds, micros) = (rest / 1_000_000, rest % 1_000_000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    // Writing into a Vec does not fail.
    if days != 0 {
        write!(out, "{days} days").ok();
    }
    if rest != 0 || days == 0 {
        let blank = if days != 0 { " " } else { "" };
        write!(out, "{blank}{sign}{hours:02}:{minutes:02}:{seconds:02}").ok();
    }
    if micros != 0 {
        write!(out, ".{micros:06}").ok();
    }
}

/// The span that `interval_cmp_value` compares, of `-1 years -2 mons +3 days -04:05:06.789`; nothing for the infinities.
fn interval_micros(text: &str) -> Option<i128> {
    let mut micros = 0_i128;
    let mut words = text.split_ascii_whitespace();
    while let Some(word) = words.next() {
        let span = if word.contains(':') {
            time_micros(word)?
        } else {
            let days = match words.next()? {
                "year" | "years" => 360,
                "mon" | "mons" => 30,
                "day" | "days" => 1,
                _ => return None,
            };
            i128::from(word.parse::<i64>().ok()?) * days * MICROS_A_DAY
        };
        micros = micros.checked_add(span)?;
    }
    (!text.is_empty()).then_some(micros)
}

/// Of `-04:05:06.789`; a bound of an array's dimension, `0:1`, is no time.
fn time_micros(word: &str) -> Option<i128> {
    let (is_negative, word) = match word.strip_prefix('-') {
        Some(word) => (true, word),
        None => (false, word.strip_prefix('+').unwrap_or(word)),
    };
    let mut parts = word.splitn(3, ':');
    let (hours, minutes, seconds) = (parts.next()?, parts.next()?, parts.next()?);
    let (seconds, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
    let number = |text: &str| text.parse::<u64>().ok().map(i128::from);
    let places = u32::try_from(fraction.len()).ok().and_then(|places| 6_u32.checked_sub(places))?;
    let fraction = if fraction.is_empty() { 0 } else { number(fraction)? * i128::from(10_u32.pow(places)) };
    let seconds = number(hours)?.checked_mul(3600)? + number(minutes)? * 60 + number(seconds)?;
    let micros = seconds * 1_000_000 + fraction;
    Some(if is_negative { -micros } else { micros })
}

/// Numbers and intervals within arrays, ranges and multiranges of any depth, each made canonical. What stands around them is
/// kept, except for quotes and escapes, which depend on whether a text has blanks. The bounds of an array's dimensions are no
/// numbers and stay: `[0:1]={1.0,2}`.
fn append_parts(out: &mut Vec<u8>, text: &[u8], append: impl Fn(&mut Vec<u8>, &[u8])) {
    let parts = text.split_inclusive(|byte| b"{}[](),\"\\".contains(byte));
    for part in parts {
        match part.split_last() {
            Some((last @ (b'{' | b'}' | b'[' | b']' | b'(' | b')' | b','), part)) => {
                append(out, part);
                out.push(*last);
            }
            Some((b'"' | b'\\', part)) => append(out, part),
            Some(_) | None => append(out, part),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_are(form: Form, canonical: &str, texts: &[&str]) {
        for text in texts {
            assert_eq!(form.text(text.as_bytes()), canonical, "{form:?} {text}");
        }
        assert_eq!(form.text(canonical.as_bytes()), canonical, "{form:?}: it is its own canonical form");
    }

    #[test]
    fn numbers_lose_the_zeros_at_the_end_of_a_fraction_and_no_others() {
        all_are(Form::Numeric, "1", &["1", "1.0", "1.00", "1.0000000000000000000000"]);
        all_are(Form::Numeric, "0", &["0", "0.0", "0.000"]);
        all_are(Form::Numeric, "100", &["100", "100.0"]);
        all_are(Form::Numeric, "-0.5", &["-0.5", "-0.50"]);
        all_are(Form::Numeric, "10.01", &["10.01", "10.0100"]);
        for word in ["NaN", "Infinity", "-Infinity", "", "-10", "0.1"] {
            all_are(Form::Numeric, word, &[]);
        }
    }

    #[test]
    fn floats_lose_the_sign_of_zero() {
        all_are(Form::Float, "0", &["0", "-0"]);
        for text in ["-0.1", "1e-300", "NaN", "Infinity", "-Infinity", "-1", ""] {
            all_are(Form::Float, text, &[]);
        }
    }

    #[test]
    fn blanks_at_the_end_go_and_others_stay() {
        all_are(Form::Blanks, "a", &["a", "a ", "a    "]);
        all_are(Form::Blanks, "", &["", "   "]);
        all_are(Form::Blanks, "  a b", &["  a b "]);
        all_are(Form::Blanks, "a\t", &["a\t "]);
    }

    #[test]
    fn intervals_are_days_of_24_hours_and_months_of_30_days() {
        all_are(
            Form::Interval,
            "30 days",
            &["1 mon", "30 days", "29 days 24:00:00", "720:00:00", "1 mon -1 days +24:00:00"],
        );
        all_are(Form::Interval, "360 days", &["1 year", "12 mons", "1 year", "360 days"]);
        all_are(Form::Interval, "00:00:00", &["00:00:00", "1 day -24:00:00", "1 mon -30 days", "-1 mons +30 days"]);
        all_are(Form::Interval, "-1 days", &["-1 days", "-24:00:00", "-1 mons +29 days"]);
        all_are(Form::Interval, "-417 days -04:05:06.789000", &["-1 years -2 mons +3 days -04:05:06.789"]);
        all_are(Form::Interval, "23:59:59.500000", &["1 day -00:00:00.5", "23:59:59.5"]);
        all_are(Form::Interval, "-00:00:00.000001", &["-00:00:00.000001"]);
        all_are(Form::Interval, "106751991 days 04:00:54.775807", &["2562047788:00:54.775807"]);
        all_are(Form::Interval, "64080000000 days", &["178000000 years"]);
        for text in
            ["infinity", "-infinity", "", "P1D", "1 fortnight", "1:2", "1:2:3.1234567", "99999999999999999999 days"]
        {
            all_are(Form::Interval, text, &[]);
        }
    }

    #[test]
    fn the_parts_of_arrays_and_ranges_are_made_canonical() {
        all_are(Form::Numerics, "{1,NULL,2.5}", &["{1.0,NULL,2.50}", "{1,NULL,2.5}"]);
        all_are(Form::Numerics, "[0:1]={1,2}", &["[0:1]={1.0,2}"]);
        all_are(Form::Numerics, "[10:11][-1:0]={{1,2},{3,4}}", &["[10:11][-1:0]={{1.0,2},{3,4.0}}"]);
        all_are(Form::Numerics, "[1,2.5)", &["[1.0,2.50)"]);
        all_are(Form::Numerics, "(,10]", &["(,10.0]"]);
        all_are(Form::Numerics, "{[1,2),[3,)}", &["{[1.0,2),[3,)}", r#"{"[1.0,2)","[3,)"}"#]);
        all_are(Form::Numerics, "empty", &[]);
        all_are(Form::Floats, "{0,-0.5}", &["{-0,-0.5}"]);
        all_are(Form::Intervals, "{1 days,NULL}", &[r#"{"1 day",NULL}"#, "{24:00:00,NULL}"]);
        all_are(Form::Intervals, "[0:1]={1 days,00:00:00}", &[r#"[0:1]={"1 day",00:00:00}"#]);
        all_are(Form::Intervals, "{[1 days,2 days)}", &[r#"{"[\"1 day\",48:00:00)"}"#]);
    }

    #[test]
    fn a_form_has_one_word_and_one_form_for_what_holds_it() {
        use Form::{Blanks, Float, Floats, Interval, Intervals, Numeric, Numerics};
        let all = [Numeric, Float, Interval, Blanks, Numerics, Floats, Intervals];
        let words: std::collections::HashSet<_> = all.iter().map(|form| form.word()).collect();
        assert_eq!(words.len(), all.len());
        assert_eq!([Numerics, Floats, Intervals].map(Form::within), [Some(Numerics), Some(Floats), Some(Intervals)]);
        assert_eq!(Blanks.within(), None, "its elements may hold anything");
    }
}

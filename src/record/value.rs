//! One value: its text appended as JSON.

use serde::de::IgnoredAny;

use super::datetime;
use super::escape::append_string;
use super::kind::Kind;
use crate::config::Numbers;

/// Appends the JSON of `text`, a value of `kind`. Always appends one well-formed JSON value, whatever the bytes.
///
/// Returns how many values, this or some inside it, were passed as strings of their text because the kind did not
/// understand it. json and jsonb are appended byte for byte after a check that they are well-formed, which costs about a
/// nanosecond a byte and keeps one odd value from spoiling the body of a whole delivery.
pub fn append_value(out: &mut Vec<u8>, kind: &Kind, text: &[u8], numbers: Numbers) -> u64 {
    let mut writer = ValueWriter { out, numbers, fallbacks: 0 };
    writer.value(kind, text);
    writer.fallbacks
}

/// Where values go.
pub(super) struct ValueWriter<'o> {
    pub(super) out: &'o mut Vec<u8>,
    numbers: Numbers,
    fallbacks: u64,
}

impl ValueWriter<'_> {
    /// Appends a value, or its text as a string.
    pub(super) fn value(&mut self, kind: &Kind, text: &[u8]) {
        let (start, fallbacks) = (self.out.len(), self.fallbacks);
        if !self.understood(kind, text) {
            self.out.truncate(start);
            self.fallbacks = fallbacks.saturating_add(1);
            append_string(self.out, text);
        }
    }

    /// Appends a value if the kind understands the text; otherwise what was appended means nothing.
    fn understood(&mut self, kind: &Kind, text: &[u8]) -> bool {
        match kind {
            Kind::Text => {
                append_string(self.out, text);
                true
            }
            Kind::Bool => self.bool(text),
            Kind::Int => is_integer(text) && self.number(text, Numbers::Json),
            Kind::BigInt => is_integer(text) && self.number(text, self.numbers),
            Kind::Float if text == b"-0" => self.number(b"0", Numbers::Json),
            Kind::Float => self.decimal(text, Numbers::Json),
            Kind::Numeric => self.decimal(text, self.numbers),
            Kind::Json => self.json(text),
            Kind::Timestamp => datetime::append_timestamp(self.out, text),
            Kind::TimestampTz => datetime::append_timestamptz(self.out, text),
            Kind::IntVector => self.vector(&Kind::Int, text),
            Kind::OidVector => self.vector(&Kind::Text, text),
            Kind::Array(array) => self.array(array, text),
            Kind::Composite(composite) => self.composite(composite, text),
            Kind::Hstore => self.hstore(text),
        }
    }

    fn bool(&mut self, text: &[u8]) -> bool {
        let word: &[u8] = match text {
            b"t" => b"true",
            b"f" => b"false",
            _ => return false,
        };
        self.out.extend_from_slice(word);
        true
    }

    fn decimal(&mut self, text: &[u8], numbers: Numbers) -> bool {
        match text {
            b"NaN" | b"Infinity" | b"-Infinity" => self.number(text, Numbers::String),
            _ => is_number(text) && self.number(text, numbers),
        }
    }

    /// Appends text known to hold nothing that must be escaped.
    fn number(&mut self, text: &[u8], numbers: Numbers) -> bool {
        match numbers {
            Numbers::Json => self.out.extend_from_slice(text),
            Numbers::String => {
                self.out.push(b'"');
                self.out.extend_from_slice(text);
                self.out.push(b'"');
            }
        }
        true
    }

    fn json(&mut self, text: &[u8]) -> bool {
        if std::str::from_utf8(text).is_err() {
            // Only a database in SQL_ASCII can hold such a value; JSON has letters outside ASCII in strings only.
            let text = String::from_utf8_lossy(text);
            return self.well_formed(text.as_bytes());
        }
        self.well_formed(text)
    }

    fn well_formed(&mut self, text: &[u8]) -> bool {
        // Does not recurse, so depth is no danger.
        let parsed = serde_json::from_slice::<IgnoredAny>(text).is_ok();
        if parsed {
            self.out.extend_from_slice(text);
        }
        parsed
    }
}

/// `-?(0|[1-9][0-9]*)`
fn is_integer(text: &[u8]) -> bool {
    whole_part(text).is_some_and(<[u8]>::is_empty)
}

/// A number of RFC 8259, section 6.
fn is_number(text: &[u8]) -> bool {
    let Some(mut rest) = whole_part(text) else { return false };
    if let Some(fraction) = rest.strip_prefix(b".") {
        let Some(after) = digits(fraction) else { return false };
        rest = after;
    }
    let [b'e' | b'E', exponent @ ..] = rest else { return rest.is_empty() };
    let exponent = exponent.strip_prefix(b"+").or_else(|| exponent.strip_prefix(b"-")).unwrap_or(exponent);
    digits(exponent).is_some_and(<[u8]>::is_empty)
}

/// What follows an integer, if there is one and it has no needless zero in front.
fn whole_part(text: &[u8]) -> Option<&[u8]> {
    let text = text.strip_prefix(b"-").unwrap_or(text);
    match text {
        [b'0', b'0'..=b'9', ..] => None,
        _ => digits(text),
    }
}

/// What follows at least one digit.
fn digits(text: &[u8]) -> Option<&[u8]> {
    let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if count == 0 { None } else { text.get(count..) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::kind::{ArrayKind, CompositeKind, Field};
    use super::super::size::value_bytes_max;
    use super::*;

    fn rendered(kind: &Kind, text: &str) -> (String, u64) {
        let mut out = Vec::new();
        let fallbacks = append_value(&mut out, kind, text.as_bytes(), Numbers::Json);
        (String::from_utf8(out).unwrap(), fallbacks)
    }

    #[test]
    fn text_that_a_kind_does_not_understand_becomes_a_string_and_is_counted() {
        let array = Kind::Array(ArrayKind::new(Kind::Int, b','));
        for (kind, text, json, fallbacks) in [
            (&Kind::Int, "12", "12", 0),
            (&Kind::Int, "012", "\"012\"", 1),
            (&Kind::Int, "", "\"\"", 1),
            (&Kind::Int, "-", "\"-\"", 1),
            (&Kind::Float, "1e+300", "1e+300", 0),
            (&Kind::Float, "-0", "0", 0),
            (&Kind::Float, "1.", "\"1.\"", 1),
            (&Kind::Float, "1e", "\"1e\"", 1),
            (&Kind::Numeric, "NaN", "\"NaN\"", 0),
            (&Kind::Bool, "true", "\"true\"", 1),
            (&Kind::Json, "{\"a\": 1,\n \"a\":1e999}", "{\"a\": 1,\n \"a\":1e999}", 0),
            (&Kind::Json, "{\"a\"", "\"{\\\"a\\\"\"", 1),
            (&Kind::Json, "1 2", "\"1 2\"", 1),
            (&array, "{1,x,NULL}", "[1,\"x\",null]", 1),
            (&array, "{1,x,NULL", "\"{1,x,NULL\"", 1),
        ] {
            assert_eq!(rendered(kind, text), (json.to_owned(), fallbacks), "{kind:?} {text}");
        }
    }

    #[test]
    fn big_numbers_become_strings_where_the_sink_asks_for_it() {
        let array = Kind::Array(ArrayKind::new(Kind::Numeric, b','));
        for (kind, text, json) in [
            (&Kind::Int, "1", "1"),
            (&Kind::BigInt, "1", "\"1\""),
            (&Kind::Numeric, "1.50", "\"1.50\""),
            (&Kind::Float, "1.5", "1.5"),
            (&array, "{1,NaN}", "[\"1\",\"NaN\"]"),
        ] {
            let mut out = Vec::new();
            append_value(&mut out, kind, text.as_bytes(), Numbers::String);
            assert_eq!(String::from_utf8(out).unwrap(), json);
        }
    }

    #[test]
    fn json_of_any_depth_passes() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert_eq!(rendered(&Kind::Json, &deep), (deep, 0));
    }

    #[test]
    fn invalid_utf8_inside_json_is_replaced() {
        let mut out = Vec::new();
        append_value(&mut out, &Kind::Json, b"[\"\xE9\"]", Numbers::Json);
        assert_eq!(out, "[\"\u{FFFD}\"]".as_bytes());
    }

    fn any_kind() -> impl Strategy<Value = Kind> {
        use Kind::*;
        let flat =
            [Text, Bool, Int, BigInt, Float, Numeric, Json, Timestamp, TimestampTz, IntVector, OidVector, Hstore];
        proptest::sample::select(flat.to_vec()).prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                (inner.clone(), prop_oneof![Just(b','), Just(b';')])
                    .prop_map(|(element, delimiter)| Array(ArrayKind::new(element, delimiter))),
                proptest::collection::vec(inner, 0..4).prop_map(|kinds| {
                    let fields = kinds.into_iter().map(|kind| Field::new("k\"", kind)).collect();
                    Composite(CompositeKind::new(fields))
                }),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_of_any_kind_become_one_well_formed_value(
            kind in any_kind(),
            text in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..40),
                proptest::collection::vec(proptest::sample::select(b"{}{}()(),,;\"\"\\ 019.-+eENULtf:=>[]T\xC3\xA9".to_vec()), 0..40),
            ],
            numbers in prop_oneof![Just(Numbers::Json), Just(Numbers::String)],
        ) {
            let mut out = Vec::new();
            append_value(&mut out, &kind, &text, numbers);
            prop_assert!(std::str::from_utf8(&out).is_ok());
            prop_assert!(serde_json::from_slice::<IgnoredAny>(&out).is_ok(), "{}", String::from_utf8_lossy(&out));
            let bound = value_bytes_max(&kind, &text);
            prop_assert!(out.len() <= bound, "{} bytes, thought to be {bound} at most", out.len());
        }
    }
}

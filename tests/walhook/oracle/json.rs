//! JSON read for comparing: every digit of a number counts, the order of members and how a string is escaped do not.

use std::collections::BTreeMap;

/// A JSON value that keeps every digit of its numbers. Of members with the same name the last one stays, as in jsonb.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// Without exponent.
    Number(String),
    /// Without escapes.
    String(String),
    /// In order.
    Array(Vec<Json>),
    /// By name.
    Object(BTreeMap<String, Json>),
}

impl Json {
    /// The one value that `text` is.
    pub(crate) fn read(text: &str) -> Self {
        let mut rest = text;
        let value = Self::next(&mut rest);
        assert_eq!(rest.trim(), "", "{text}");
        value
    }

    /// The member `name` of an object.
    #[allow(dead_code, reason = "for the test of whole messages")]
    pub(crate) fn at(&self, name: &str) -> &Self {
        let Self::Object(members) = self else { panic!("not an object: {self:?}") };
        members.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", members.keys()))
    }

    fn next(rest: &mut &str) -> Self {
        *rest = rest.trim_start();
        for (word, value) in [("null", Self::Null), ("true", Self::Bool(true)), ("false", Self::Bool(false))] {
            if let Some(after) = rest.strip_prefix(word) {
                *rest = after;
                return value;
            }
        }
        match rest.as_bytes()[0] {
            b'"' => Self::String(Self::string(rest)),
            b'[' => Self::Array(Self::items(rest, ']', Self::next)),
            b'{' => Self::Object(
                Self::items(rest, '}', |rest| {
                    let key = Self::string(rest);
                    *rest = rest.trim_start().strip_prefix(':').unwrap();
                    (key, Self::next(rest))
                })
                .into_iter()
                .collect(),
            ),
            _ => {
                let end = rest.find(|c: char| !"+-.eE0123456789".contains(c)).unwrap_or(rest.len());
                let (number, after) = rest.split_at(end);
                *rest = after;
                Self::Number(written_out(number))
            }
        }
    }

    fn items<T>(rest: &mut &str, close: char, item: impl Fn(&mut &str) -> T) -> Vec<T> {
        let mut items = Vec::new();
        *rest = rest.split_at(1).1.trim_start();
        while !rest.starts_with(close) {
            items.push(item(rest));
            *rest = rest.trim_start();
            *rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
        }
        *rest = rest.split_at(1).1;
        items
    }

    fn string(rest: &mut &str) -> String {
        let mut strings = serde_json::Deserializer::from_str(rest).into_iter::<String>();
        let string = strings.next().unwrap().unwrap();
        *rest = rest.split_at(strings.byte_offset()).1;
        string
    }
}

/// A number without exponent, as the numeric type reads it: there is no negative zero.
fn written_out(number: &str) -> String {
    let (digits, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |digits| ("-", digits));
    let sign = if digits.contains(|digit: char| ('1'..='9').contains(&digit)) { sign } else { "" };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let point = i64::try_from(whole.len()).unwrap() + exponent.parse::<i64>().unwrap();
    let mut all = format!("{whole}{fraction}");
    if point <= 0 {
        all = "0".repeat(usize::try_from(1 - point).unwrap()) + &all;
    }
    let point = usize::try_from(point.max(1)).unwrap();
    all += &"0".repeat(point.saturating_sub(all.len()));
    let (whole, fraction) = all.split_at(point);
    let zeros = whole.bytes().take_while(|digit| *digit == b'0').count().min(whole.len() - 1);
    let (_, whole) = whole.split_at(zeros);
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{whole}{point}{fraction}")
}

#[test]
fn numbers_are_written_out_with_every_digit() {
    for (number, out) in [
        ("1.50", "1.50"),
        ("-0", "0"),
        ("-0.0", "0.0"),
        ("1e3", "1000"),
        ("-1.25e-2", "-0.0125"),
        ("12.50E+1", "125.0"),
        ("0e5", "0"),
        ("0.5e3", "500"),
    ] {
        assert_eq!(Json::read(number), Json::Number(out.to_owned()), "{number}");
    }
}

//! Values that hold values: arrays, row types, hstore (manual pages "Arrays", "Composite Types", "hstore").
//!
//! Each function reads what the server's output function writes, no more, and gives up with `false` on anything else.

use std::borrow::Cow;

use memchr::{memchr2, memchr3};

use super::escape::append_string;
use super::kind::{ArrayKind, CompositeKind, Kind};
use super::value::ValueWriter;

/// `MAXDIM` of the server.
const DIMENSIONS_MAX: usize = 6;

/// Where the reader of an array stands.
#[derive(Clone, Copy)]
enum Place {
    /// Behind `{`.
    Open,
    /// Where a value must follow.
    Before,
    /// Behind a value or `}`.
    After,
}

impl ValueWriter<'_> {
    /// `{1,2}`, `{{a,"b c"},{NULL,d}}`, `[0:1]={1,2}`.
    pub(super) fn array(&mut self, kind: &ArrayKind, text: &[u8]) -> bool {
        let Some(mut rest) = after_bounds(text) else { return false };
        let (mut depth, mut place) = (0_usize, Place::Before);
        while let Some((&byte, after)) = rest.split_first() {
            match (place, byte) {
                (Place::Open | Place::Before, b'{') if depth < DIMENSIONS_MAX => {
                    self.out.push(b'[');
                    (depth, place, rest) = (depth + 1, Place::Open, after);
                }
                (Place::Open | Place::After, b'}') => {
                    self.out.push(b']');
                    (depth, place, rest) = (depth.saturating_sub(1), Place::After, after);
                    if depth == 0 {
                        return rest.is_empty();
                    }
                }
                (Place::After, _) if byte == kind.delimiter => {
                    self.out.push(b',');
                    (place, rest) = (Place::Before, after);
                }
                (Place::Open | Place::Before, _) if depth > 0 => {
                    let Some(after) = self.element(kind, rest) else { return false };
                    (place, rest) = (Place::After, after);
                }
                (Place::Open | Place::Before | Place::After, _) => return false,
            }
        }
        false
    }

    /// Appends one element and returns what follows it.
    fn element<'a>(&mut self, kind: &ArrayKind, text: &'a [u8]) -> Option<&'a [u8]> {
        if let Some(quoted) = text.strip_prefix(b"\"") {
            let (value, rest) = unquote(quoted, false)?;
            self.value(&kind.element, &value);
            return Some(rest);
        }
        let (value, rest) = text.split_at_checked(memchr2(kind.delimiter, b'}', text)?)?;
        if value.is_empty() || memchr3(b'{', b'"', b'\\', value).is_some() {
            return None;
        }
        if value == b"NULL" {
            self.out.extend_from_slice(b"null");
        } else {
            self.value(&kind.element, value);
        }
        Some(rest)
    }

    /// `1 2 3`, without braces.
    pub(super) fn vector(&mut self, element: &Kind, text: &[u8]) -> bool {
        self.out.push(b'[');
        let items = text.split(|byte| *byte == b' ').filter(|_| !text.is_empty());
        for (place, item) in items.enumerate() {
            if item.is_empty() {
                return false;
            }
            self.comma(place);
            self.value(element, item);
        }
        self.out.push(b']');
        true
    }

    /// `(1,"a b",,t)`: an empty field is NULL, an empty string is quoted.
    pub(super) fn composite(&mut self, kind: &CompositeKind, text: &[u8]) -> bool {
        let Some(mut rest) = text.strip_prefix(b"(") else { return false };
        self.out.push(b'{');
        for (place, field) in kind.fields.iter().enumerate() {
            if place > 0 {
                let Some(after) = rest.strip_prefix(b",") else { return false };
                rest = after;
            }
            self.comma(place);
            self.out.extend_from_slice(&field.key);
            let Some(after) = self.field(&field.kind, rest) else { return false };
            rest = after;
        }
        self.out.push(b'}');
        rest == b")"
    }

    /// Appends one field and returns what follows it.
    fn field<'a>(&mut self, kind: &Kind, text: &'a [u8]) -> Option<&'a [u8]> {
        if let Some(quoted) = text.strip_prefix(b"\"") {
            let (value, rest) = unquote(quoted, true)?;
            self.value(kind, &value);
            return Some(rest);
        }
        let (value, rest) = text.split_at_checked(memchr2(b',', b')', text)?)?;
        if memchr3(b'(', b'"', b'\\', value).is_some() {
            return None;
        }
        if value.is_empty() {
            self.out.extend_from_slice(b"null");
        } else {
            self.value(kind, value);
        }
        Some(rest)
    }

    /// `"a"=>"1", "b"=>NULL`
    pub(super) fn hstore(&mut self, text: &[u8]) -> bool {
        self.out.push(b'{');
        let mut rest = text;
        for place in 0_usize.. {
            if rest.is_empty() && place == 0 {
                break;
            }
            self.comma(place);
            let Some(after) = self.pair(rest) else { return false };
            if after.is_empty() {
                break;
            }
            let Some(after) = after.strip_prefix(b", ") else { return false };
            rest = after;
        }
        self.out.push(b'}');
        true
    }

    /// Appends one pair of an hstore and returns what follows it.
    fn pair<'a>(&mut self, text: &'a [u8]) -> Option<&'a [u8]> {
        let (key, rest) = unquote(text.strip_prefix(b"\"")?, false)?;
        append_string(self.out, &key);
        self.out.push(b':');
        let rest = rest.strip_prefix(b"=>")?;
        if let Some(rest) = rest.strip_prefix(b"NULL") {
            self.out.extend_from_slice(b"null");
            return Some(rest);
        }
        let (value, rest) = unquote(rest.strip_prefix(b"\"")?, false)?;
        append_string(self.out, &value);
        Some(rest)
    }

    fn comma(&mut self, place: usize) {
        if place > 0 {
            self.out.push(b',');
        }
    }
}

/// The array behind its bounds, `[0:1][1:2]=`, if it has any.
fn after_bounds(text: &[u8]) -> Option<&[u8]> {
    if text.first() != Some(&b'[') {
        return Some(text);
    }
    let (bounds, rest) = text.split_at_checked(memchr::memchr(b'=', text)?)?;
    let known = bounds.iter().all(|byte| matches!(byte, b'0'..=b'9' | b':' | b'-' | b'[' | b']'));
    if known { rest.get(1..) } else { None }
}

/// The text up to the closing quote, and what follows that quote. A backslash takes the next byte as it is; in row types
/// (`doubled`) a quote may be doubled.
fn unquote(text: &[u8], doubled: bool) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let mut value = Cow::Borrowed(&b""[..]);
    let mut rest = text;
    loop {
        let (run, after) = rest.split_at_checked(memchr2(b'"', b'\\', rest)?)?;
        if value.is_empty() {
            value = Cow::Borrowed(run);
        } else {
            value.to_mut().extend_from_slice(run);
        }
        rest = match after {
            [b'"', b'"', after @ ..] if doubled => {
                value.to_mut().push(b'"');
                after
            }
            [b'\\', byte, after @ ..] => {
                value.to_mut().push(*byte);
                after
            }
            [b'"', after @ ..] => return Some((value, after)),
            _ => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::super::kind::Field;
    use super::super::value::append_value;
    use super::*;
    use crate::config::Numbers;

    fn check(kind: &Kind, text: &str, json: &str) {
        let mut out = Vec::new();
        append_value(&mut out, kind, text.as_bytes(), Numbers::Json);
        assert_eq!(String::from_utf8(out).unwrap(), json, "{text}");
    }

    #[test]
    fn arrays_nest_keep_nulls_and_lose_their_bounds() {
        let texts = Kind::Array(ArrayKind::new(Kind::Text, b','));
        check(&texts, "{}", "[]");
        check(&texts, r#"{a,"NULL",NULL,"","b\"\\ c"}"#, r#"["a","NULL",null,"","b\"\\ c"]"#);
        check(&texts, "[0:1][-1:0]={{a,b},{c,d}}", r#"[["a","b"],["c","d"]]"#);
        check(&texts, "{{{{{{{a}}}}}}}", r#""{{{{{{{a}}}}}}}""#);
        check(&texts, "{a,}", r#""{a,}""#);
        let boxes = Kind::Array(ArrayKind::new(Kind::Text, b';'));
        check(&boxes, "{(1,2),(0,0);NULL}", r#"["(1,2),(0,0)",null]"#);
    }

    #[test]
    fn row_types_nest_and_an_empty_field_is_null() {
        let fields = vec![Field::new("a", Kind::Int), Field::new("b\"", Kind::Text)];
        let pair = Kind::Composite(CompositeKind::new(fields));
        check(&pair, r#"(1,"a ""b"" \\")"#, r#"{"a":1,"b\"":"a \"b\" \\"}"#);
        check(&pair, r#"(,"")"#, r#"{"a":null,"b\"":""}"#);
        check(&pair, "(1)", r#""(1)""#);
        check(&pair, "(1,2,3)", r#""(1,2,3)""#);
        let pairs = Kind::Array(ArrayKind::new(pair, b','));
        check(&pairs, r#"{"(1,\"x \"\"y\"\"\")",NULL}"#, r#"[{"a":1,"b\"":"x \"y\""},null]"#);
        check(&Kind::Composite(CompositeKind::new(Vec::new())), "()", "{}");
    }

    #[test]
    fn hstore_is_an_object_of_strings() {
        check(&Kind::Hstore, "", "{}");
        check(&Kind::Hstore, r#""a"=>"1", "b"=>NULL, "c d"=>"q\"\\""#, r#"{"a":"1","b":null,"c d":"q\"\\"}"#);
        check(&Kind::Hstore, r#""a"=>"1","#, r#""\"a\"=>\"1\",""#);
    }
}

//! Pure: the group that a logical message names in its content.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The text of the member `group` of a JSON object, if that is a string or a number; of several the last, as in jsonb.
///
/// Everything else is passed over without a tree and without recursion, so neither size nor depth is a danger. Bytes that
/// are not UTF-8 are read as U+FFFD, as they are when the message is written.
pub(super) fn group_member(content: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(content);
    let member = serde_json::from_str::<Member<'_>>(&text).ok()?.0?;
    match member.get().as_bytes().first()? {
        b'"' => serde_json::from_str(member.get()).ok(),
        b'-' | b'0'..=b'9' => Some(member.get().to_owned()),
        _ => None,
    }
}

/// The value of `group` in an object, unread.
struct Member<'a>(Option<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Member<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Last)
    }
}

struct Last;

impl<'de> Visitor<'de> for Last {
    type Value = Member<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut found = None;
        while let Some(Name(name)) = map.next_key()? {
            if name == "group" {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Member(found))
    }
}

/// A member's name, borrowed where nothing in it is escaped.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    fn member(content: &str) -> Option<String> {
        group_member(content.as_bytes())
    }

    #[test]
    fn a_string_or_a_number_is_a_group_and_nothing_else_is() {
        for (content, group) in [
            (r#"{"group":"a"}"#, Some("a")),
            (r#" { "x" : [1,{"group":"inner"}], "group" : "a\u00e9\n" , "y":null } "#, Some("aé\n")),
            (r#"{"gr\u006fup":"a"}"#, Some("a")),
            (r#"{"group":12.50}"#, Some("12.50")),
            (r#"{"group":-1e400}"#, Some("-1e400")),
            (r#"{"group":""}"#, Some("")),
            (r#"{"group":"a","group":"b"}"#, Some("b")),
            (r#"{"group":"a","group":null}"#, None),
            (r#"{"group":true}"#, None),
            (r#"{"group":{"id":1}}"#, None),
            (r#"{"group":["a"]}"#, None),
            (r#"{"Group":"a"}"#, None),
            (r#"{"group":"a"} x"#, None),
            (r#"{"group":"a""#, None),
            (r#"{"group":01}"#, None),
            (r#"[{"group":"a"}]"#, None),
            (r#""group""#, None),
            ("not json", None),
            ("", None),
        ] {
            assert_eq!(member(content).as_deref(), group, "{content}");
        }
    }

    #[test]
    fn neither_depth_nor_bytes_that_are_no_text_are_a_danger() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert_eq!(member(&format!("{{\"deep\":{deep},\"group\":7}}")).as_deref(), Some("7"));
        assert_eq!(member(&format!("{{\"group\":{deep}}}")), None);
        assert_eq!(member(&deep), None);
        assert_eq!(group_member(b"{\"a\":\"\xE9\",\"group\":\"\xE9\"}").as_deref(), Some("\u{FFFD}"));
    }

    proptest::proptest! {
        #[test]
        fn it_agrees_with_a_parser_that_builds_a_tree(
            content in proptest::collection::vec(
                proptest::sample::select(vec!["{", "}", "\"group\"", ":", ",", "\"a\"", "1", "null", "[", "]", " "]), 0..14,
            ),
        ) {
            let text = content.concat();
            let tree = serde_json::from_str::<serde_json::Value>(&text).ok();
            let expected = match tree.as_ref().and_then(|tree| tree.as_object()?.get("group")) {
                Some(serde_json::Value::String(text)) => Some(text.clone()),
                Some(serde_json::Value::Number(number)) => Some(number.to_string()),
                _ => None,
            };
            proptest::prop_assert_eq!(member(&text), expected, "{}", text);
        }
    }
}

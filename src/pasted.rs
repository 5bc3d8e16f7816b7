//! What happens to a secret or an address on its way from a dashboard, a file or a variable into the configuration. Pure.
//!
//! Nothing of the text is repeated, so that what is said here may be printed.

use std::fmt;

/// What a text bears that its source did not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blemish {
    /// Nothing is left of it.
    Empty,
    /// A line break at its end, as `echo`, editors and secret stores add it.
    LineBreakAtEnd,
    /// A line break, or another control character.
    Control,
    /// A space before or after it.
    SpaceAround,
    /// A character that shows as nothing.
    Invisible(char),
    /// Quotes around it.
    Quoted,
}

impl fmt::Display for Blemish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("is empty, as a variable is that is set to nothing: set it"),
            Self::LineBreakAtEnd => f.write_str(
                "ends with a line break, as a value does that was made by echo or read from a file: take it off \
                 (printf '%s' instead of echo, or tr -d '\\r\\n')",
            ),
            Self::Control => f.write_str("has a line break or another control character in it: take it out"),
            Self::SpaceAround => f.write_str("begins or ends with a space: take it off"),
            Self::Invisible(c) => {
                let code = u32::from(*c);
                write!(f, "has an invisible character in it (U+{code:04X}), as a copied text may: type it anew")
            }
            Self::Quoted => f.write_str("stands in quotes, which are part of it then: leave them out"),
        }
    }
}

/// The first blemish of `text`, if it has one.
pub(crate) fn blemish(text: &str) -> Option<Blemish> {
    let quoted = |quote: char| text.len() > 1 && text.starts_with(quote) && text.ends_with(quote);
    if text.is_empty() {
        Some(Blemish::Empty)
    } else if text.ends_with(['\n', '\r']) {
        Some(Blemish::LineBreakAtEnd)
    } else if let Some(invisible) = text.chars().find(|c| is_invisible(*c)) {
        Some(Blemish::Invisible(invisible))
    } else if text.contains(char::is_control) {
        Some(Blemish::Control)
    } else if text.trim() != text {
        Some(Blemish::SpaceAround)
    } else if quoted('"') || quoted('\'') {
        Some(Blemish::Quoted)
    } else {
        None
    }
}

/// The spaces that do not look like one or do not show, the marks of direction, and the mark at the beginning of a file.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{a0}' | '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202f}' | '\u{2060}'..='\u{2064}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clings_to_a_copied_text_is_named() {
        for (text, expected) in [
            ("", Some(Blemish::Empty)),
            ("s3cret\n", Some(Blemish::LineBreakAtEnd)),
            ("s3cret\r\n", Some(Blemish::LineBreakAtEnd)),
            ("s3cret\r", Some(Blemish::LineBreakAtEnd)),
            ("\n", Some(Blemish::LineBreakAtEnd)),
            ("s3\ncret", Some(Blemish::Control)),
            ("s3\tcret", Some(Blemish::Control)),
            ("s3\0cret", Some(Blemish::Control)),
            (" s3cret", Some(Blemish::SpaceAround)),
            ("s3cret ", Some(Blemish::SpaceAround)),
            ("s3cret\u{a0}", Some(Blemish::Invisible('\u{a0}'))),
            ("\u{feff}s3cret", Some(Blemish::Invisible('\u{feff}'))),
            ("s3\u{200b}cret", Some(Blemish::Invisible('\u{200b}'))),
            ("\"s3cret\"", Some(Blemish::Quoted)),
            ("'s3cret'", Some(Blemish::Quoted)),
            ("s3 cret", None),
            ("s3cr'et", None),
            ("\"", None),
        ] {
            let found = blemish(text);
            assert_eq!(found, expected, "{text:?}");
            assert!(found.is_none_or(|found| !found.to_string().contains("s3")), "{text:?}");
        }
    }
}

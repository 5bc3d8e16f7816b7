//! Names as SQL has them, and as the catalogue gives them.

use std::error::Error;

use tokio_postgres::types::{FromSql, Type, accepts};

use crate::change::TableName;

/// The encoding in which to ask for names as bytes: `convert_to(relname::text, …)`. A database in SQL_ASCII may have names
/// that are no UTF-8; asked for as text, one of them would fail the whole query.
pub(crate) const ENCODING: &str =
    "case pg_catalog.getdatabaseencoding() when 'SQL_ASCII' then 'SQL_ASCII' else 'UTF8' end";

/// A name that came as bytes, with U+FFFD for what is no UTF-8, as in the stream.
#[derive(Debug)]
pub(crate) struct Name(pub(crate) String);

impl<'a> FromSql<'a> for Name {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(String::from_utf8_lossy(raw).into_owned()))
    }

    accepts!(BYTEA);
}

/// Their texts.
pub(crate) fn strings(names: Vec<Name>) -> Vec<String> {
    names.into_iter().map(|Name(name)| name).collect()
}

/// Whether a name came with bytes that are no UTF-8, so that nobody can name it to the server.
pub(crate) fn is_nameless(name: &TableName) -> bool {
    name.schema.contains(char::REPLACEMENT_CHARACTER) || name.table.contains(char::REPLACEMENT_CHARACTER)
}

/// An identifier in double quotes, whatever is in it. What is printed stays on its line, and moves no cursor: a name with a
/// line break would be a line of SQL of its own.
pub(crate) fn quoted(name: &str) -> String {
    match name.contains(char::is_control) {
        true => format!("U&\"{}\"", escaped(&name.replace('"', "\"\""))),
        false => format!("\"{}\"", name.replace('"', "\"\"")),
    }
}

/// A string constant in single quotes. Backslashes are safe under `standard_conforming_strings`, which is on since 9.1.
pub(crate) fn literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    match text.contains(char::is_control) {
        true => format!("U&'{}'", escaped(&doubled)),
        false => format!("'{doubled}'"),
    }
}

/// As `U&"…"` and `U&'…'` have it (manual page "Lexical Structure"); control characters have four digits at most.
fn escaped(text: &str) -> String {
    let mut all = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => all.push_str("\\\\"),
            c if c.is_control() => all.push_str(&format!("\\{:04X}", u32::from(c))),
            c => all.push(c),
        }
    }
    all
}

/// `"schema"."table"`
pub(crate) fn quoted_table(name: &TableName) -> String {
    format!("{}.{}", quoted(&name.schema), quoted(&name.table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_inside_names_are_doubled() {
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
    }

    #[test]
    fn a_name_with_a_line_break_stays_on_its_line() {
        let name = TableName { schema: "s".to_owned(), table: "evil\nDROP \"x\" \\; --\u{1b}[31m".to_owned() };
        assert_eq!(quoted_table(&name), "\"s\".U&\"evil\\000ADROP \"\"x\"\" \\\\; --\\001B[31m\"");
        assert_eq!(literal("a'\n\\b"), "U&'a''\\000A\\\\b'");
        assert_eq!(quoted("a\\b"), "\"a\\b\"");
    }
}

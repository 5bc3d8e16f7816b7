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

/// An identifier in double quotes, whatever is in it.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string constant in single quotes. Backslashes are safe under `standard_conforming_strings`, which is on since 9.1.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
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
}

//! `schema.table` as it is written in `tables` and in `[sink.NAME.table."schema.table"]`.

use super::checked::TablePattern;
use super::entry::Entry;
use crate::change::TableName;

/// The longest identifier of Postgres, in bytes.
const IDENTIFIER_BYTES_MAX: usize = 63;

/// `tables`: at least one, each once.
pub(super) fn patterns(entry: &Entry<'_>) -> Option<Vec<TablePattern>> {
    let items = entry.list()?;
    if items.is_empty() {
        entry.fault("is empty; at least one schema.table is needed");
        return None;
    }
    let mut patterns: Vec<TablePattern> = Vec::new();
    let mut good = true;
    for item in &items {
        match item.text().and_then(|text| pattern(&text, item)) {
            Some(pattern) if patterns.contains(&pattern) => item.fault("stands twice"),
            Some(pattern) => patterns.push(pattern),
            None => good = false,
        }
    }
    good.then_some(patterns)
}

/// The name of exactly one table.
pub(super) fn exact(text: &str, entry: &Entry<'_>) -> Option<TableName> {
    let pattern = pattern(text, entry)?;
    if !pattern.is_exact() {
        entry.fault("must name one table, without *");
        return None;
    }
    Some(TableName { schema: pattern.schema, table: pattern.table })
}

fn pattern(text: &str, entry: &Entry<'_>) -> Option<TablePattern> {
    let parts = match parts(text) {
        Ok(parts) => parts,
        Err(reason) => {
            entry.fault(reason);
            return None;
        }
    };
    match <[String; 2]>::try_from(parts) {
        Ok([schema, table]) => Some(TablePattern { schema, table }),
        Err(parts) => {
            let near = (parts.len() == 1).then(|| format!("\"public.{text}\""));
            entry.fault_with("must be schema.table", near);
            None
        }
    }
}

/// The identifiers between the dots, without their quotes.
fn parts(text: &str) -> Result<Vec<String>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let (part, after) = match rest.strip_prefix('"') {
            Some(inside) => quoted(inside)?,
            None => bare(rest)?,
        };
        if part.is_empty() {
            return Err("must be schema.table, neither of them empty".to_owned());
        }
        if part.len() > IDENTIFIER_BYTES_MAX {
            return Err(format!("has a name longer than the {IDENTIFIER_BYTES_MAX} bytes of Postgres"));
        }
        parts.push(part);
        if after.is_empty() {
            return Ok(parts);
        }
        rest = after.strip_prefix('.').ok_or_else(|| "has something between a closing \" and the dot".to_owned())?;
    }
}

fn bare(text: &str) -> Result<(String, &str), String> {
    let (part, after) = text.split_at(text.find('.').unwrap_or(text.len()));
    if part.contains(|c: char| c == '"' || c.is_whitespace() || c.is_control()) {
        return Err("has a name with spaces or quotes, which must be put in double quotes as a whole".to_owned());
    }
    Ok((part.to_owned(), after))
}

/// Up to the closing quote; `""` stands for one quote.
fn quoted(inside: &str) -> Result<(String, &str), String> {
    let mut part = String::new();
    let mut rest = inside;
    loop {
        let (before, after) = rest.split_once('"').ok_or_else(|| "has a \" that is not closed".to_owned())?;
        part.push_str(before);
        match after.strip_prefix('"') {
            Some(more) => {
                part.push('"');
                rest = more;
            }
            None if part.contains('*') => {
                return Err("has * in quotes, which no pattern can tell from any other".to_owned());
            }
            None => return Ok((part, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_split_at_dots_outside_quotes() {
        for (text, expected) in [
            ("public.orders", vec!["public", "orders"]),
            ("Public.Orders", vec!["Public", "Orders"]),
            ("\"weird name\".x", vec!["weird name", "x"]),
            ("a.\"b.c\"\"d\"", vec!["a", "b.c\"d"]),
            ("billing.*", vec!["billing", "*"]),
            ("orders", vec!["orders"]),
            ("a.b.c", vec!["a", "b", "c"]),
        ] {
            assert_eq!(parts(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_identifier_is_refused() {
        let long = format!("public.{}", "x".repeat(64));
        for text in ["", ".", "a.", ".b", "a b.c", "\"a.b", "\"a\"b.c", "\"\".a", "a.\"*\"", "a\"b.c", long.as_str()] {
            assert!(parts(text).is_err(), "{text}");
        }
    }
}

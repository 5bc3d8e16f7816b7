//! Names as the file has them, for advice and drafts that are pasted into it.

use std::fmt::Write as _;

use crate::change::TableName;

/// A table as `tables` has it: its parts in quotes where they are not plain.
pub(crate) fn table(name: &TableName) -> String {
    let plain = |part: &str| part.chars().all(|c| c.is_alphanumeric() || c == '_');
    let part = |part: &str| if plain(part) { part.to_owned() } else { format!("\"{}\"", part.replace('"', "\"\"")) };
    format!("{}.{}", part(&name.schema), part(&name.table))
}

/// The name of the section in which a sink has rules for the table.
pub(crate) fn section(sink: &str, name: &TableName) -> String {
    format!("[sink.{sink}.table.{}]", basic(&table(name)))
}

/// A string value, in which `$` stands for itself.
pub(crate) fn value(text: &str) -> String {
    basic(&text.replace('$', "$$"))
}

/// A basic string of TOML, which a key may be too.
fn basic(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _infallible = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn what_is_pasted_into_the_file_is_read_as_it_was_meant() {
        for (table, column) in [
            ("orders", "id"),
            ("we\"ird", "c\"o"),
            ("a.b", "a\\b"),
            ("Über all", "x\ty"),
            ("a$$b", "${A}$$"),
            ("a'b", "'"),
        ] {
            let name = TableName { schema: "public".to_owned(), table: table.to_owned() };
            let text = format!(
                "[source.app]\nurl = \"postgres://u@localhost/app\"\n[sink.s]\nurl = \"http://localhost/\"\n\
                 tables = [{}]\n{}\ngroup_by = [{}]\n",
                value(&super::table(&name)),
                section("s", &name),
                value(column)
            );
            let read = config::parse(&text, std::path::Path::new("t.toml"), &|_| None, &[]).unwrap().sinks.remove(0);
            let rule = config::GroupBy::Columns(vec![column.to_owned()]);
            assert_eq!(read.group_by_table, [(name, rule)], "{text}");
        }
    }
}

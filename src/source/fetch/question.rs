//! Pure: the query for values of some rows of one table, and what their keys are in a record.
//!
//! It is sent as one simple query, because only then every value comes as the text of its type's output function, as in
//! the stream. So keys stand in it as literals, written such that they mean the same under every setting of the server.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde_json::value::RawValue;

use crate::change::TableName;

/// A column of a primary key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyColumn {
    /// Its name.
    pub(super) name: String,
    /// Its type, as it is written in a cast.
    pub(super) sql_type: String,
    /// The key's own operator for equality, as it is written after `OPERATOR`; `None` is that of `pg_catalog`.
    pub(super) equals: Option<String>,
}

/// Which values are wanted.
#[derive(Debug)]
pub(super) struct Question<'a> {
    pub(super) table: &'a TableName,
    /// A partitioned table has its rows in others; of any other one those that inherit from it are not meant.
    pub(super) is_partitioned: bool,
    pub(super) key: &'a [KeyColumn],
    pub(super) columns: &'a [String],
    /// Bytes of all values together at most: those of the rows beyond are left out, and any single one that is larger.
    pub(super) bytes_max: usize,
}

impl Question<'_> {
    /// The query for rows with these keys. Its rows: the number of the key, then of each column the length of its text, NULL
    /// if the value is, the value, NULL also where it is left out, and the OID of its type at the time of the query.
    ///
    /// Every function and operator that it calls is either named with its schema or has an exact match in `pg_catalog`, so
    /// that none of another schema is called in its place.
    pub(super) fn sql(&self, keys: &[Vec<String>]) -> String {
        let length = |column: &String| format!("pg_catalog.octet_length(t.{}::pg_catalog.text)", identifier(column));
        let lengths: Vec<String> = self.columns.iter().map(length).collect();
        let mut sql = String::from("SELECT n");
        for index in 0..self.columns.len() {
            let most = self.bytes_max;
            append(
                &mut sql,
                format_args!(
                    ", l{index}, CASE WHEN l{index} <= {most} AND total <= {most} THEN v{index} END, y{index}"
                ),
            );
        }
        sql.push_str(" FROM (SELECT k.n");
        for (index, (column, length)) in self.columns.iter().zip(&lengths).enumerate() {
            let column = identifier(column);
            append(
                &mut sql,
                format_args!(
                    ", t.{column} AS v{index}, {length} AS l{index}, pg_catalog.pg_typeof(t.{column})::pg_catalog.oid AS y{index}"
                ),
            );
        }
        let counted = |length: &String| format!("CASE WHEN {length} <= {} THEN {length} ELSE 0 END", self.bytes_max);
        let all: Vec<String> = lengths.iter().map(counted).collect();
        append(
            &mut sql,
            format_args!(", pg_catalog.sum({}) OVER (ORDER BY k.n) AS total FROM (VALUES ", all.join(" + ")),
        );
        for (number, key) in keys.iter().enumerate() {
            append(&mut sql, format_args!("{}({number}", if number > 0 { ", " } else { "" }));
            for value in key {
                append(&mut sql, format_args!(", {}", literal(value)));
            }
            sql.push(')');
        }
        sql.push_str(") AS k (n");
        for index in 0..self.key.len() {
            append(&mut sql, format_args!(", k{index}"));
        }
        let only = if self.is_partitioned { "" } else { "ONLY " };
        let (schema, table) = (identifier(&self.table.schema), identifier(&self.table.table));
        append(&mut sql, format_args!(") JOIN {only}{schema}.{table} AS t ON "));
        for (index, KeyColumn { name, sql_type, equals }) in self.key.iter().enumerate() {
            let and = if index > 0 { " AND " } else { "" };
            let equals = equals.as_deref().unwrap_or("pg_catalog.=");
            append(&mut sql, format_args!("{and}t.{} OPERATOR({equals}) k.k{index}::{sql_type}", identifier(name)));
        }
        sql.push_str(") AS found");
        sql
    }
}

fn append(sql: &mut String, text: std::fmt::Arguments<'_>) {
    sql.write_fmt(text).expect("a String takes whatever is written");
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Means the same whether or not standard_conforming_strings is on.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// The texts of the key in a rendered record; `None` if one of them is missing, NULL, or an array or an object, whose text
/// the JSON does not give.
pub(super) fn key_of(record: &[u8], key: &[KeyColumn]) -> Option<Vec<String>> {
    let members: HashMap<String, &RawValue> = serde_json::from_slice(record).ok()?;
    key.iter().map(|column| text_of(members.get(&column.name)?.get())).collect()
}

fn text_of(json: &str) -> Option<String> {
    match json.as_bytes().first()? {
        b'"' => serde_json::from_str(json).ok(),
        b'{' | b'[' | b'n' => None,
        // Numbers keep the digits that they have.
        _ => Some(json.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(names: &[&str]) -> Vec<KeyColumn> {
        let column = |name: &&str| KeyColumn { name: (*name).to_owned(), sql_type: "int8".to_owned(), equals: None };
        names.iter().map(column).collect()
    }

    #[test]
    fn names_and_keys_cannot_break_out_of_their_quotes() {
        let table = TableName { schema: "we\"ird".into(), table: "Ta ble".into() };
        let (key, columns) = (key(&["i\"d"]), ["b\"ody".to_owned()]);
        let question = Question { table: &table, is_partitioned: false, key: &key, columns: &columns, bytes_max: 9 };
        let sql = question.sql(&[vec!["7".into()], vec!["'; DROP \\' --".into()]]);
        assert!(
            sql.contains(r#"JOIN ONLY "we""ird"."Ta ble" AS t ON t."i""d" OPERATOR(pg_catalog.=) k.k0::int8"#),
            "{sql}"
        );
        assert!(sql.contains(r"(VALUES (0, E'7'), (1, E'''; DROP \\'' --'))"), "{sql}");
        assert!(sql.contains(r#"t."b""ody" AS v0"#), "{sql}");
    }

    #[test]
    fn keys_are_the_texts_of_the_record() {
        let record = br#"{"a":9007199254740993,"b":"x \"\u00e9\"","c":null,"d":true,"e":[1],"f":{"g":1},"h":"8"}"#;
        let texts = |names: &[&str]| key_of(record, &key(names));
        assert_eq!(texts(&["b", "a"]), Some(vec!["x \"é\"".to_owned(), "9007199254740993".to_owned()]));
        assert_eq!(texts(&["d", "h"]), Some(vec!["true".to_owned(), "8".to_owned()]));
        for without in ["c", "e", "f", "missing"] {
            assert_eq!(texts(&["a", without]), None, "{without}");
        }
        assert_eq!(key_of(b"null", &key(&["a"])), None);
    }
}

//! Pure: the query for values of some rows of one table, and what their keys are in a record.
//!
//! Whoever owns the table decides what it is when the query runs, and may have made casts, operators, domains and views that
//! would then run as walhook's role. So nothing of theirs is called:
//!
//! - Values become text by the output function of their type, as in the stream: `concat` calls nothing else, where a cast to
//!   text would be the owner's.
//! - Keys stand as literals of the type that they are compared as, which its input function reads; from a text they would be
//!   cast.
//! - Operators are named with their schema, and both sides have exactly the type that they are for.
//! - All that holds only while the types are those that were described. So they are among what the query gives, as arrays that
//!   are always NULL: the server says what they are before it runs the query, and refuses to run it with others.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde_json::value::RawValue;

use crate::change::TableName;

/// A column of a primary key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyColumn {
    /// Its name.
    pub(super) name: String,
    /// Schema and name of the type that it is compared as.
    pub(super) compared_as: (String, String),
    /// Schema and name of the operator that says which of these are equal.
    pub(super) equals: (String, String),
    /// The array types of the column's own type and of the one that it is compared as.
    pub(super) arrays: (u32, u32),
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
    /// if the value is, the value, NULL also where it is left out, and the OID of its type at the time of the query; then
    /// what [`Self::has_types`] looks at.
    pub(super) fn sql(&self, keys: &[Vec<String>]) -> String {
        let length = |column: &String| {
            let column = identifier(column);
            let bytes = format!("pg_catalog.octet_length(pg_catalog.concat(t.{column}))");
            format!("CASE WHEN pg_catalog.num_nulls(t.{column}) OPERATOR(pg_catalog.=) 0 THEN {bytes} END")
        };
        let lengths: Vec<String> = self.columns.iter().map(length).collect();
        let most = self.bytes_max;
        let fits = |what: &str| format!("{what} OPERATOR(pg_catalog.<=) {most}");
        let mut sql = String::from("SELECT n");
        for index in 0..self.columns.len() {
            let (alone, all) = (fits(&format!("l{index}")), fits("total"));
            append(
                &mut sql,
                format_args!(", l{index}, CASE WHEN {alone} AND {all} THEN pg_catalog.concat(v{index}) END, y{index}"),
            );
        }
        for index in 0..self.key.len() {
            append(&mut sql, format_args!(", o{index}, c{index}, k{index}"));
        }
        sql.push_str(" FROM (SELECT k.n");
        for (index, (column, length)) in self.columns.iter().zip(&lengths).enumerate() {
            let column = identifier(column);
            let type_oid = format!("pg_catalog.pg_typeof(t.{column})::pg_catalog.oid");
            append(&mut sql, format_args!(", t.{column} AS v{index}, {length} AS l{index}, {type_oid} AS y{index}"));
        }
        for (index, column) in self.key.iter().enumerate() {
            let (name, compared_as) = (identifier(&column.name), column.compared_as());
            for (what, of) in
                [("o", format!("t.{name}")), ("c", format!("t.{name}::{compared_as}")), ("k", format!("k.k{index}"))]
            {
                append(&mut sql, format_args!(", CASE WHEN false THEN ARRAY[{of}] END AS {what}{index}"));
            }
        }
        let counted = |length: &String| format!("CASE WHEN {} THEN {length} ELSE 0 END", fits(&format!("({length})")));
        let all: Vec<String> = lengths.iter().map(counted).collect();
        append(
            &mut sql,
            format_args!(
                ", pg_catalog.sum({}) OVER (ORDER BY k.n) AS total FROM (VALUES ",
                all.join(" OPERATOR(pg_catalog.+) ")
            ),
        );
        for (number, key) in keys.iter().enumerate() {
            append(&mut sql, format_args!("{}({number}", if number > 0 { ", " } else { "" }));
            for (value, column) in key.iter().zip(self.key) {
                append(&mut sql, format_args!(", {}::{}", literal(value), column.compared_as()));
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
        for (index, column) in self.key.iter().enumerate() {
            let and = if index > 0 { " AND " } else { "" };
            let (name, compared_as) = (identifier(&column.name), column.compared_as());
            let (schema, operator) = (identifier(&column.equals.0), &column.equals.1);
            append(&mut sql, format_args!("{and}t.{name}::{compared_as} OPERATOR({schema}.{operator}) k.k{index}"));
        }
        sql.push_str(") AS found");
        sql
    }

    /// Whether the columns of the answer are of the types that the key was described with, given their OIDs.
    pub(super) fn has_types(&self, oids: &[u32]) -> bool {
        let described = self.key.iter().flat_map(|column| [column.arrays.0, column.arrays.1, column.arrays.1]);
        let said = oids.get(self.types_from()..).unwrap_or_default();
        described.eq(said.iter().copied())
    }

    /// Where in the answer these columns begin.
    fn types_from(&self) -> usize {
        1 + 3 * self.columns.len()
    }
}

impl KeyColumn {
    fn compared_as(&self) -> String {
        let (schema, name) = &self.compared_as;
        format!("{}.{}", identifier(schema), identifier(name))
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
        let of_server = |name: &str| ("pg_catalog".to_owned(), name.to_owned());
        let (compared_as, equals) = (of_server("int8"), of_server("="));
        let column = |name: &&str| KeyColumn {
            name: (*name).to_owned(),
            compared_as: compared_as.clone(),
            equals: equals.clone(),
            arrays: (1007, 1016),
        };
        names.iter().map(column).collect()
    }

    #[test]
    fn names_and_keys_cannot_break_out_of_their_quotes() {
        let table = TableName { schema: "we\"ird".into(), table: "Ta ble".into() };
        let (key, columns) = (key(&["i\"d"]), ["b\"ody".to_owned()]);
        let question = Question { table: &table, is_partitioned: false, key: &key, columns: &columns, bytes_max: 9 };
        let sql = question.sql(&[vec!["7".into()], vec!["'; DROP \\' --".into()]]);
        assert!(
            sql.ends_with(
                r#"JOIN ONLY "we""ird"."Ta ble" AS t ON t."i""d"::"pg_catalog"."int8" OPERATOR("pg_catalog".=) k.k0) AS found"#
            ),
            "{sql}"
        );
        let values = r#"(VALUES (0, E'7'::"pg_catalog"."int8"), (1, E'''; DROP \\'' --'::"pg_catalog"."int8"))"#;
        assert!(sql.contains(values), "{sql}");
        assert!(sql.contains(r#"t."b""ody" AS v0"#), "{sql}");
    }

    #[test]
    fn a_column_of_another_type_than_was_described_is_noticed() {
        let table = TableName { schema: "s".into(), table: "t".into() };
        let (key, columns) = (key(&["a", "b"]), ["c".to_owned()]);
        let question = Question { table: &table, is_partitioned: false, key: &key, columns: &columns, bytes_max: 9 };
        let answer = [23, 23, 25, 26];
        let with = |types: &[u32]| question.has_types(&[&answer[..], types].concat());
        assert!(with(&[1007, 1016, 1016, 1007, 1016, 1016]));
        assert!(!with(&[1007, 1016, 1016, 1007, 1016, 99_999]), "the literal");
        assert!(!with(&[1007, 1016, 1016, 99_999, 1016, 1016]), "the column");
        assert!(!with(&[1007, 99_999, 1016, 1007, 1016, 1016]), "what it is compared as");
        assert!(!with(&[1007, 1016, 1016]) && !question.has_types(&[]));
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

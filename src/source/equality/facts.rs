//! What the catalogue says of columns, as far as it decides which of their values are equal.
//!
//! Tables, columns and indexes must be readable, or nothing is known of a key. Collations, operator classes and constraints
//! may be refused: what rests on them is not known then.

use std::collections::HashMap;

use tokio_postgres::{Client, Row};

use super::Typed;
use super::asking::{Ways, ask};
use crate::source::slot::names::{ENCODING, Name};

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ColumnFacts {
    pub(crate) name: String,
    pub(crate) typed: Typed,
    /// Its type as a person writes it.
    pub(crate) type_name: String,
    /// If it is in the primary key.
    pub(crate) key: Option<KeyFacts>,
    /// The transaction that altered the column, if that was not the one that made its table.
    pub(crate) altered: Option<u32>,
}

/// A column of a primary key, and how the key's index compares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyFacts {
    /// Its place in the key.
    pub(crate) place: i64,
    pub(crate) comparison: Comparison,
}

/// How the index of a primary key compares a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// By the type's own `=`.
    Equal,
    /// By the `=` of an operator class that did not come with the server and was made for this type.
    Own(u32),
    /// By overlapping: the last column of a key WITHOUT OVERLAPS (18).
    Overlap,
    /// By nothing that is known.
    Unknown,
}

/// A column's type, for people only. Where the server refuses that function, the bare name does.
const TYPE_NAME: Ways = &[
    "pg_catalog.format_type(a.atttypid, a.atttypmod)",
    "coalesce((SELECT t.typname::pg_catalog.text FROM pg_catalog.pg_type t WHERE t.oid = a.atttypid), '')",
    "''",
];

/// Whether the collation is deterministic. Those that come with the server are.
pub(super) const DETERMINISTIC: Ways = &[
    "coalesce((SELECT o.collisdeterministic FROM pg_catalog.pg_collation o WHERE o.oid = a.attcollation), a.attcollation = 0)",
    "a.attcollation < 16384",
];

/// The type that an operator class of users or extensions was made for; 0 where that is not known or it is not its type's
/// default. Those of the server that a key may have compare by the type's own `=`.
const OWN_CLASS: Ways = &[
    "CASE WHEN k.class >= 16384 THEN coalesce(
        (SELECT oc.opcintype FROM pg_catalog.pg_opclass oc WHERE oc.oid = k.class AND oc.opcdefault), 0) END",
    "CASE WHEN k.class >= 16384 THEN '0'::pg_catalog.oid END",
];

/// Whether the column of a key WITHOUT OVERLAPS is compared by a `=` that came with the server for B-trees (access method 403).
const SCALAR: Ways = &[
    "EXISTS (SELECT FROM pg_catalog.pg_constraint x
        JOIN pg_catalog.pg_amop o ON o.amopopr = x.conexclop[k.place] AND o.amopmethod = 403 AND o.amopstrategy = 3
        WHERE x.conindid = i.indexrelid AND x.contype = 'p' AND o.amopopr < 16384)",
    "false",
];

/// Columns are made with their table's system columns, which nothing alters. A negative age is that of a transaction of 2^31 or more
/// before, whose number has come up again.
const ALTERED: Ways = &[
    "(SELECT a.xmin::pg_catalog.text FROM pg_catalog.pg_attribute made WHERE made.attrelid = a.attrelid AND made.attnum = -1
        AND made.xmin <> a.xmin AND pg_catalog.age(a.xmin) >= 0)",
    "NULL::pg_catalog.text",
];

/// The columns of the relations with these OIDs; one row of NULLs for a relation without any.
fn columns(ways: &[&str]) -> String {
    let [type_name, deterministic, own_class, scalar, altered] = ways else { return String::new() };
    format!(
        "\
SELECT c.oid, pg_catalog.convert_to(a.attname::pg_catalog.text, {ENCODING}), a.atttypid, a.atttypmod, {deterministic},
    pg_catalog.convert_to({type_name}, {ENCODING}), k.place,
    i.indisexclusion AND k.place = i.indnkeyatts, i.indisexclusion AND NOT {scalar},
    CASE WHEN NOT i.indisexclusion THEN {own_class} END, {altered}
FROM pg_catalog.pg_class c
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisprimary
LEFT JOIN LATERAL ROWS FROM (
    pg_catalog.unnest(i.indkey::pg_catalog.int2[]), pg_catalog.unnest(i.indclass::pg_catalog.oid[])
) WITH ORDINALITY k (attnum, class, place) ON k.attnum = a.attnum AND k.place <= i.indnkeyatts
WHERE c.oid = ANY ($1)
ORDER BY c.oid, a.attnum"
    )
}

/// The columns of each relation that exists, and the server's words about what it refused to tell of them. That the name of a type
/// was refused is not among these words.
///
/// # Errors
/// When the query fails.
pub(crate) async fn read_columns(
    client: &Client,
    relations: &[u32],
) -> Result<(HashMap<u32, Vec<ColumnFacts>>, Vec<String>), tokio_postgres::Error> {
    let parts = [TYPE_NAME, DETERMINISTIC, OWN_CLASS, SCALAR, ALTERED];
    let (rows, refused) = ask(client, columns, &parts, relations).await?;
    let refused = refused.into_iter().filter(|(part, _)| *part > 0).map(|(_, words)| words).collect();
    let mut all: HashMap<u32, Vec<ColumnFacts>> = HashMap::new();
    for row in rows {
        let columns = all.entry(row.try_get(0)?).or_default();
        columns.extend(column(&row)?);
    }
    Ok((all, refused))
}

fn column(row: &Row) -> Result<Option<ColumnFacts>, tokio_postgres::Error> {
    let Some(Name(name)) = row.try_get(1)? else { return Ok(None) };
    let typed = Typed { oid: row.try_get(2)?, modifier: row.try_get(3)?, is_deterministic: row.try_get(4)? };
    let Name(type_name) = row.try_get(5)?;
    let key = match row.try_get(6)? {
        Some(place) => Some(KeyFacts { place, comparison: comparison(row)? }),
        None => None,
    };
    Ok(Some(ColumnFacts { name, typed, type_name, key, altered: transaction(row.try_get(10)?) }))
}

fn comparison(row: &Row) -> Result<Comparison, tokio_postgres::Error> {
    Ok(match (row.try_get(7)?, row.try_get(8)?, row.try_get(9)?) {
        (true, _, _) => Comparison::Overlap,
        (false, true, _) | (false, false, Some(0)) => Comparison::Unknown,
        (false, false, Some(made_for)) => Comparison::Own(made_for),
        (false, false, None) => Comparison::Equal,
    })
}

/// A transaction's number, which Postgres gives as text.
pub(super) fn transaction(text: Option<&str>) -> Option<u32> {
    text?.parse().ok()
}

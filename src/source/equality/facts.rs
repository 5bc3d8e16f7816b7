//! What the catalogue says of columns and types, as far as it decides which of their values are equal.

use std::collections::HashMap;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use super::Typed;
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
}

/// A column of a primary key, and how the key's index compares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyFacts {
    /// Its place in the key.
    pub(crate) place: i64,
    /// By the default operator class of a B-tree, which is the type's own `=`. A key WITHOUT OVERLAPS (18) is of another index.
    pub(crate) is_default: bool,
    /// The type that the operator class was made for, if it did not come with the server.
    pub(crate) own_class_of: Option<u32>,
}

/// What the default B-tree operator class that was made for a type says of equal values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// They have the same image.
    SameImage,
    /// They have, under a deterministic collation.
    SameImageIfDeterministic,
    /// It does not say so.
    Other,
}

/// A type that is not among the built-in ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TypeFacts {
    pub(crate) oid: u32,
    /// `pg_type.typtype`.
    pub(crate) typtype: u8,
    /// `typelem` of a true array, else 0.
    pub(crate) element: u32,
    /// Of a domain what it is made from; of a range its subtype, of a multirange its range. The OID is 0 if there is none, or
    /// the range compares its bounds by an operator class that is not the subtype's default.
    pub(crate) base: Typed,
    /// Its own operator class.
    pub(crate) class: Option<Class>,
    /// Of a row type, dropped ones left out.
    pub(crate) attributes: Vec<Typed>,
}

/// A column's type, for people only. Where the server refuses that function, the bare name does.
const WRITTEN_TYPE: &str = "pg_catalog.format_type(a.atttypid, a.atttypmod)";
const BARE_TYPE: &str = "(SELECT t.typname::pg_catalog.text FROM pg_catalog.pg_type t WHERE t.oid = a.atttypid)";

/// The columns of the relations with these OIDs; one row of NULLs for a relation without any.
fn columns(type_name: &str) -> String {
    format!(
        "\
SELECT c.oid, pg_catalog.convert_to(a.attname::pg_catalog.text, {ENCODING}), a.atttypid, a.atttypmod,
    coalesce(o.collisdeterministic, a.attcollation = 0),
    pg_catalog.convert_to({type_name}, {ENCODING}),
    k.place, coalesce(am.amname = 'btree' AND oc.opcdefault, false), CASE WHEN oc.oid >= 16384 THEN oc.opcintype END
FROM pg_catalog.pg_class c
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_collation o ON o.oid = a.attcollation
LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisprimary
LEFT JOIN LATERAL ROWS FROM (
    pg_catalog.unnest(i.indkey::pg_catalog.int2[]), pg_catalog.unnest(i.indclass::pg_catalog.oid[])
) WITH ORDINALITY k (attnum, class, place) ON k.attnum = a.attnum AND k.place <= i.indnkeyatts
LEFT JOIN pg_catalog.pg_opclass oc ON oc.oid = k.class
LEFT JOIN pg_catalog.pg_am am ON am.oid = oc.opcmethod
WHERE c.oid = ANY ($1)
ORDER BY c.oid, a.attnum"
    )
}

/// The columns of each relation that there is.
///
/// # Errors
/// When the query fails.
pub(crate) async fn read_columns(
    client: &Client,
    relations: &[u32],
) -> Result<HashMap<u32, Vec<ColumnFacts>>, tokio_postgres::Error> {
    let mut all: HashMap<u32, Vec<ColumnFacts>> = HashMap::new();
    let asked = client.query_typed(&columns(WRITTEN_TYPE), &[(&relations, Type::OID_ARRAY)]).await;
    let rows = match asked {
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            client.query_typed(&columns(BARE_TYPE), &[(&relations, Type::OID_ARRAY)]).await?
        }
        asked => asked?,
    };
    for row in rows {
        let columns = all.entry(row.try_get(0)?).or_default();
        columns.extend(column(&row)?);
    }
    Ok(all)
}

fn column(row: &Row) -> Result<Option<ColumnFacts>, tokio_postgres::Error> {
    let Some(Name(name)) = row.try_get(1)? else { return Ok(None) };
    let typed = Typed { oid: row.try_get(2)?, modifier: row.try_get(3)?, is_deterministic: row.try_get(4)? };
    let Name(type_name) = row.try_get(5)?;
    let (is_default, own_class_of) = (row.try_get(7)?, row.try_get(8)?);
    let place: Option<i64> = row.try_get(6)?;
    let key = place.map(|place| KeyFacts { place, is_default, own_class_of });
    Ok(Some(ColumnFacts { name, typed, type_name, key }))
}

/// The types with these OIDs and all within them. The types of isn compare as int8 does, and ltree and hstore byte by byte: they
/// say nothing with a support function, so their comparisons are known here. Where the text depends on more than the value
/// (a STABLE output function), the same image says nothing of texts.
const TYPES: &str = "\
WITH RECURSIVE wanted (oid) AS (
    SELECT w.oid FROM pg_catalog.unnest($1) w (oid)
    UNION
    SELECT part.oid
    FROM wanted w
    JOIN pg_catalog.pg_type t ON t.oid = w.oid
    CROSS JOIN LATERAL (
        SELECT t.typelem WHERE t.typsubscript = 'pg_catalog.array_subscript_handler'::pg_catalog.regproc
        UNION ALL SELECT t.typbasetype WHERE t.typtype = 'd'
        UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid
        UNION ALL SELECT r.rngtypid FROM pg_catalog.pg_range r WHERE r.rngmultitypid = t.oid
        UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) part (oid)
)
SELECT t.oid, t.typtype,
    CASE WHEN t.typsubscript = 'pg_catalog.array_subscript_handler'::pg_catalog.regproc THEN t.typelem ELSE 0 END,
    coalesce(r.rngsubtype, m.rngtypid, t.typbasetype), CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE -1 END,
    coalesce(rc.collisdeterministic, r.rngcollation = 0, true), own.class, at.oids, at.modifiers, at.deterministic
FROM wanted w
JOIN pg_catalog.pg_type t ON t.oid = w.oid
LEFT JOIN (
    SELECT r.rngtypid, r.rngcollation, CASE WHEN oc.opcdefault THEN r.rngsubtype ELSE 0 END AS rngsubtype
    FROM pg_catalog.pg_range r JOIN pg_catalog.pg_opclass oc ON oc.oid = r.rngsubopc
) r ON r.rngtypid = t.oid
LEFT JOIN pg_catalog.pg_range m ON m.rngmultitypid = t.oid
LEFT JOIN pg_catalog.pg_collation rc ON rc.oid = r.rngcollation
LEFT JOIN LATERAL (
    SELECT CASE
        WHEN out.provolatile <> 'i' THEN 'o'
        WHEN image.amproc = 'pg_catalog.btequalimage'::pg_catalog.regproc THEN 'i'
        WHEN image.amproc = 'pg_catalog.btvarstrequalimage'::pg_catalog.regproc THEN 's'
        WHEN l.lanname = 'internal' AND p.prosrc IN ('btint2cmp', 'btint4cmp', 'btint8cmp', 'byteacmp', 'uuid_cmp') THEN 'i'
        WHEN (p.probin, p.prosrc) IN (('$libdir/ltree', 'ltree_cmp'), ('$libdir/hstore', 'hstore_cmp')) THEN 'i'
        ELSE 'o' END AS class
    FROM pg_catalog.pg_opclass oc
    JOIN pg_catalog.pg_am am ON am.oid = oc.opcmethod AND am.amname = 'btree'
    JOIN pg_catalog.pg_amproc c ON c.amprocfamily = oc.opcfamily AND c.amproclefttype = oc.opcintype
        AND c.amprocrighttype = oc.opcintype AND c.amprocnum = 1
    JOIN pg_catalog.pg_proc p ON p.oid = c.amproc
    JOIN pg_catalog.pg_language l ON l.oid = p.prolang
    JOIN pg_catalog.pg_proc out ON out.oid = t.typoutput
    LEFT JOIN pg_catalog.pg_amproc image ON image.amprocfamily = oc.opcfamily AND image.amproclefttype = oc.opcintype
        AND image.amprocrighttype = oc.opcintype AND image.amprocnum = 4
    WHERE oc.opcintype = t.oid AND oc.opcdefault
) own ON true
CROSS JOIN LATERAL (
    SELECT pg_catalog.array_agg(a.atttypid ORDER BY a.attnum), pg_catalog.array_agg(a.atttypmod ORDER BY a.attnum),
        pg_catalog.array_agg(coalesce(o.collisdeterministic, a.attcollation = 0) ORDER BY a.attnum)
    FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_collation o ON o.oid = a.attcollation
    WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
) at (oids, modifiers, deterministic)";

/// The types with these OIDs that there are, and all within them.
///
/// # Errors
/// When the query fails.
pub(crate) async fn read_types(
    client: &Client,
    wanted: &[u32],
) -> Result<HashMap<u32, TypeFacts>, tokio_postgres::Error> {
    if wanted.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = client.query_typed(TYPES, &[(&wanted, Type::OID_ARRAY)]).await?;
    rows.iter().map(|row| type_facts(row).map(|facts| (facts.oid, facts))).collect()
}

fn type_facts(row: &Row) -> Result<TypeFacts, tokio_postgres::Error> {
    let class = row.try_get::<_, Option<&str>>(6)?.map(|class| match class {
        "i" => Class::SameImage,
        "s" => Class::SameImageIfDeterministic,
        _ => Class::Other,
    });
    let oids = row.try_get::<_, Option<Vec<u32>>>(7)?.unwrap_or_default();
    let modifiers = row.try_get::<_, Option<Vec<i32>>>(8)?.unwrap_or_default();
    let deterministic = row.try_get::<_, Option<Vec<bool>>>(9)?.unwrap_or_default();
    let attributes = oids.into_iter().zip(modifiers).zip(deterministic);
    let typed = |((oid, modifier), is_deterministic)| Typed { oid, modifier, is_deterministic };
    Ok(TypeFacts {
        oid: row.try_get(0)?,
        typtype: row.try_get::<_, i8>(1)?.cast_unsigned(),
        element: row.try_get(2)?,
        base: Typed { oid: row.try_get(3)?, modifier: row.try_get(4)?, is_deterministic: row.try_get(5)? },
        class,
        attributes: attributes.map(typed).collect(),
    })
}

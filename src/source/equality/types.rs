//! What the catalogue says of types that are not built in, as far as it decides which of their values are equal.
//!
//! Types and the attributes of row types must be readable; values could not be written as JSON without. Operator classes,
//! their functions, ranges and collations may be refused.

use std::collections::HashMap;

use tokio_postgres::{Client, Row};

use super::Typed;
use super::asking::{Ways, ask};
use super::facts::{DETERMINISTIC, transaction};

/// What the default B-tree operator class that was made for a type says of equal values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// They have the same image.
    SameImage,
    /// They have, under a deterministic collation.
    SameImageIfDeterministic,
    /// It does not say so, or nobody may see what it says.
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
    pub(crate) attributes: Vec<Attribute>,
    /// The transaction that altered a row type last.
    pub(crate) altered: Option<u32>,
}

/// An attribute of a row type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attribute {
    /// `attnum`, which no other attribute of the type ever had.
    pub(crate) number: i16,
    pub(crate) typed: Typed,
}

/// The types of isn compare as int8 does, and ltree and hstore byte by byte: they say nothing with a support function, so their
/// comparisons are known here. Where the text depends on more than the value (a STABLE output function), the same image says
/// nothing of texts. Access method 403 is the B-tree.
const CLASS: Ways = &[
    "(SELECT CASE
        WHEN out.provolatile <> 'i' THEN 'o'
        WHEN image.amproc = 'pg_catalog.btequalimage'::pg_catalog.regproc THEN 'i'
        WHEN image.amproc = 'pg_catalog.btvarstrequalimage'::pg_catalog.regproc THEN 's'
        WHEN l.lanname = 'internal' AND p.prosrc IN ('btint2cmp', 'btint4cmp', 'btint8cmp', 'byteacmp', 'uuid_cmp') THEN 'i'
        WHEN (p.probin, p.prosrc) IN (('$libdir/ltree', 'ltree_cmp'), ('$libdir/hstore', 'hstore_cmp')) THEN 'i'
        ELSE 'o' END
    FROM pg_catalog.pg_opclass oc
    JOIN pg_catalog.pg_amproc c ON c.amprocfamily = oc.opcfamily AND c.amproclefttype = oc.opcintype
        AND c.amprocrighttype = oc.opcintype AND c.amprocnum = 1
    JOIN pg_catalog.pg_proc p ON p.oid = c.amproc
    JOIN pg_catalog.pg_language l ON l.oid = p.prolang
    JOIN pg_catalog.pg_proc out ON out.oid = t.typoutput
    LEFT JOIN pg_catalog.pg_amproc image ON image.amprocfamily = oc.opcfamily AND image.amproclefttype = oc.opcintype
        AND image.amprocrighttype = oc.opcintype AND image.amprocnum = 4
    WHERE oc.opcintype = t.oid AND oc.opcdefault AND oc.opcmethod = 403 LIMIT 1)",
    "(SELECT 'o' FROM pg_catalog.pg_opclass oc
    WHERE oc.opcintype = t.oid AND oc.opcdefault AND oc.opcmethod = 403 LIMIT 1)",
    "'o'",
];

/// Range, multirange, subtype and whether its collation is deterministic.
const RANGES: Ways = &[
    "SELECT r.rngtypid, r.rngmultitypid, r.rngsubtype, CASE WHEN oc.opcdefault THEN r.rngsubtype ELSE 0 END,
        coalesce(o.collisdeterministic, r.rngcollation = 0)
    FROM pg_catalog.pg_range r JOIN pg_catalog.pg_opclass oc ON oc.oid = r.rngsubopc
    LEFT JOIN pg_catalog.pg_collation o ON o.oid = r.rngcollation",
    "SELECT r.rngtypid, r.rngmultitypid, r.rngsubtype, '0'::pg_catalog.oid, false FROM pg_catalog.pg_range r",
    "SELECT z.oid, z.oid, z.oid, z.oid, false FROM (VALUES ('0'::pg_catalog.oid)) z (oid) WHERE false",
];

/// Of the attributes, those of today and of before, the transaction that altered them last; nothing as long as all are as they were
/// made. Of a negative age see the columns of tables.
const ALTERED: Ways = &[
    "(SELECT CASE WHEN pg_catalog.count(DISTINCT a.xmin::pg_catalog.text) > 1 THEN (pg_catalog.array_agg(a.xmin::pg_catalog.text
        ORDER BY pg_catalog.age(a.xmin)) FILTER (WHERE pg_catalog.age(a.xmin) >= 0))[1] END
    FROM pg_catalog.pg_attribute a WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0)",
    "NULL::pg_catalog.text",
];

/// The types with these OIDs and all within them.
fn types(ways: &[&str]) -> String {
    let [class, ranges, deterministic, altered] = ways else { return String::new() };
    format!(
        "\
WITH RECURSIVE ranges (range, multirange, subtype, compared, deterministic) AS ({ranges}),
wanted (oid) AS (
    SELECT w.oid FROM pg_catalog.unnest($1) w (oid)
    UNION
    SELECT part.oid
    FROM wanted w
    JOIN pg_catalog.pg_type t ON t.oid = w.oid
    CROSS JOIN LATERAL (
        SELECT t.typelem WHERE t.typsubscript = 'pg_catalog.array_subscript_handler'::pg_catalog.regproc
        UNION ALL SELECT t.typbasetype WHERE t.typtype = 'd'
        UNION ALL SELECT r.subtype FROM ranges r WHERE r.range = t.oid
        UNION ALL SELECT r.range FROM ranges r WHERE r.multirange = t.oid
        UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) part (oid)
)
SELECT t.oid, t.typtype,
    CASE WHEN t.typsubscript = 'pg_catalog.array_subscript_handler'::pg_catalog.regproc THEN t.typelem ELSE 0 END,
    coalesce(r.compared, m.range, t.typbasetype), CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE -1 END,
    coalesce(r.deterministic, true), {class}, at.oids, at.modifiers, at.deterministic, at.numbers, {altered}
FROM wanted w
JOIN pg_catalog.pg_type t ON t.oid = w.oid
LEFT JOIN ranges r ON r.range = t.oid
LEFT JOIN ranges m ON m.multirange = t.oid
CROSS JOIN LATERAL (
    SELECT pg_catalog.array_agg(a.atttypid ORDER BY a.attnum), pg_catalog.array_agg(a.atttypmod ORDER BY a.attnum),
        pg_catalog.array_agg({deterministic} ORDER BY a.attnum), pg_catalog.array_agg(a.attnum ORDER BY a.attnum)
    FROM pg_catalog.pg_attribute a
    WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
) at (oids, modifiers, deterministic, numbers)"
    )
}

/// The types with these OIDs that there are, and all within them; and what was refused of them.
///
/// # Errors
/// When the query fails.
pub(crate) async fn read_types(
    client: &Client,
    wanted: &[u32],
) -> Result<(HashMap<u32, TypeFacts>, Vec<String>), tokio_postgres::Error> {
    if wanted.is_empty() {
        return Ok((HashMap::new(), Vec::new()));
    }
    let (rows, refused) = ask(client, types, &[CLASS, RANGES, DETERMINISTIC, ALTERED], wanted).await?;
    let types = rows.iter().map(|row| type_facts(row).map(|facts| (facts.oid, facts)));
    Ok((types.collect::<Result<_, _>>()?, refused.into_iter().map(|(_, words)| words).collect()))
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
    let numbers = row.try_get::<_, Option<Vec<i16>>>(10)?.unwrap_or_default();
    let attributes = oids.into_iter().zip(modifiers).zip(deterministic).zip(numbers);
    let attribute = |(((oid, modifier), is_deterministic), number)| Attribute {
        number,
        typed: Typed { oid, modifier, is_deterministic },
    };
    Ok(TypeFacts {
        oid: row.try_get(0)?,
        typtype: row.try_get::<_, i8>(1)?.cast_unsigned(),
        element: row.try_get(2)?,
        base: Typed { oid: row.try_get(3)?, modifier: row.try_get(4)?, is_deterministic: row.try_get(5)? },
        class,
        attributes: attributes.map(attribute).collect(),
        altered: transaction(row.try_get(11)?),
    })
}

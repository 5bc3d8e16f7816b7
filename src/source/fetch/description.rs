//! What the catalogue says of a table whose rows are asked for, at the time they are.

use std::collections::HashMap;
use std::time::Instant;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::question::KeyColumn;
use crate::change::{Column, ReplicaIdentity, TableName};
use crate::record::Kind;
use crate::source::pgoutput::{Relation, RelationColumn};
use crate::source::relation::{Catalogue, CatalogueError};
use crate::source::slot::names::{ENCODING, Name};

/// OIDs below this one are of what came with the server.
const FIRST_OWN_OID: u32 = 16_384;

/// See the module.
#[derive(Debug)]
pub(super) struct Description {
    pub(super) oid: u32,
    pub(super) is_partitioned: bool,
    /// The primary key; empty if there is none, or none that can be asked by.
    pub(super) key: Vec<KeyColumn>,
    pub(super) columns: HashMap<String, Described>,
    pub(super) read_at: Instant,
    /// The key is made of what came with the server, whose names nobody else can take over.
    is_plain: bool,
}

/// A column.
#[derive(Debug)]
pub(super) struct Described {
    pub(super) type_oid: u32,
    /// How its text becomes JSON.
    pub(super) kind: Kind,
}

impl Description {
    /// Whether it can be asked for these columns a while after it was read: a query says when a type is another by then,
    /// but not when a type of the database's own means something else.
    pub(super) fn keeps(&self, columns: &[String]) -> bool {
        let is_plain = |name: &String| self.columns.get(name).is_some_and(|it| !Kind::needs_facts(it.type_oid));
        self.is_plain && columns.iter().all(is_plain)
    }
}

/// Why a table could not be described.
#[derive(Debug, thiserror::Error)]
pub(super) enum DescribeError {
    #[error("could not read its columns from the catalogue")]
    Columns(#[from] tokio_postgres::Error),
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
}

/// What a row of [`columns`] says of the key.
enum Part {
    /// The column is not in it.
    None,
    /// It is, and nothing of anybody else's has to be called to compare it.
    Usable(KeyColumn, bool),
    Unusable,
}

/// Asks the catalogue. `None`: there is no such table, or it is not the same one any more when the second question is
/// answered.
pub(super) async fn describe(client: &Client, name: &TableName) -> Result<Option<Description>, DescribeError> {
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&name.schema, Type::TEXT), (&name.table, Type::TEXT)];
    let rows = client.query_typed(&columns(), &parameters).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let (oid, is_partitioned) = (first.try_get(0)?, first.try_get(1)?);
    let (mut columns, mut parts) = (Vec::new(), Vec::new());
    for row in &rows {
        let Name(name) = row.try_get(2)?;
        parts.push(part(row, &name)?);
        let (type_oid, type_modifier) = (row.try_get(3)?, row.try_get(4)?);
        columns.push(RelationColumn { name, in_identity: false, type_oid, type_modifier });
    }
    let has_key = parts.iter().any(|part| !matches!(part, Part::None));
    let (namespace, table) = (name.schema.clone(), name.table.clone());
    let relation = Relation { oid, namespace, name: table, identity: ReplicaIdentity::Nothing, columns };
    let table = Catalogue::new().table(client, &relation).await?;
    // The first look saw a key and the second none: the table was dropped, or made anew, between the two.
    if table.primary_key.is_empty() && has_key {
        return Ok(None);
    }
    let mut usable: HashMap<usize, (KeyColumn, bool)> = HashMap::new();
    for (place, part) in parts.into_iter().enumerate() {
        if let Part::Usable(column, is_plain) = part {
            usable.insert(place, (column, is_plain));
        }
    }
    let key: Option<Vec<_>> = table.primary_key.iter().map(|place| usable.remove(place)).collect();
    let (key, plain): (Vec<KeyColumn>, Vec<bool>) = key.unwrap_or_default().into_iter().unzip();
    let described = |column: Column| (column.name, Described { type_oid: column.type_oid, kind: column.kind });
    let columns = table.columns.into_iter().map(described).collect();
    let is_plain = plain.into_iter().all(|is_plain| is_plain);
    Ok(Some(Description { oid, is_partitioned, key, columns, read_at: Instant::now(), is_plain }))
}

fn part(row: &Row, name: &str) -> Result<Part, tokio_postgres::Error> {
    if !row.try_get::<_, bool>(5)? {
        return Ok(Part::None);
    }
    let text = |at: usize| row.try_get::<_, Option<Name>>(at).map(|name| name.map(|Name(name)| name));
    let (schema, type_name, operators, equals) = (text(6)?, text(7)?, text(8)?, text(9)?);
    let oid = |at: usize| row.try_get::<_, Option<u32>>(at);
    let (Some(schema), Some(type_name), Some(own_array), Some(array), Some(newest)) =
        (schema, type_name, oid(10)?, oid(11)?, oid(12)?)
    else {
        return Ok(Part::Unusable);
    };
    let equals = operators.zip(equals).unwrap_or_else(|| ("pg_catalog".to_owned(), "=".to_owned()));
    let column =
        KeyColumn { name: name.to_owned(), compared_as: (schema, type_name), equals, arrays: (own_array, array) };
    Ok(Part::Usable(column, newest < FIRST_OWN_OID))
}

/// The columns of a table; none if it is gone, or is no table.
///
/// Of those of the key: the type that they are compared as, by schema and name, and its operator; the array types of the
/// column's own type and of that one; and the highest OID of these. What is equal is what the key's index takes for it, which
/// for a type of an extension no operator of `pg_catalog` says.
///
/// A domain is compared as what it is made from: its own input would call what its CHECK calls. So would that of a type with a
/// domain in it, so a key is asked by base types, enums, and ranges of these. An operator class for a whole kind of types
/// (enums, ranges) is for no single one; then the type is the column's own. No ordinary role can make an operator class or a
/// base type, or bring either to take one type for another.
fn columns() -> String {
    format!(
        "\
SELECT c.oid, c.relkind = 'p', pg_catalog.convert_to(a.attname::pg_catalog.text, {ENCODING}), a.atttypid, a.atttypmod,
    k.attnum IS NOT NULL, pg_catalog.convert_to(e.schema, {ENCODING}), pg_catalog.convert_to(e.name, {ENCODING}),
    pg_catalog.convert_to(e.operators, {ENCODING}), pg_catalog.convert_to(e.equals, {ENCODING}), own.typarray, e.typarray,
    GREATEST(e.oid, e.operator)
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_catalog.pg_type own ON own.oid = a.atttypid
LEFT JOIN LATERAL (
    SELECT k.attnum, k.class
    FROM pg_catalog.pg_index i
    CROSS JOIN ROWS FROM (
        pg_catalog.unnest(i.indkey::pg_catalog.int2[]), pg_catalog.unnest(i.indclass::pg_catalog.oid[])
    ) WITH ORDINALITY k (attnum, class, place)
    WHERE i.indrelid = c.oid AND i.indisprimary AND k.attnum = a.attnum AND k.place <= i.indnkeyatts
    LIMIT 1
) k ON true
LEFT JOIN LATERAL (
    WITH RECURSIVE made (oid) AS (
        SELECT a.atttypid UNION ALL
        SELECT t.typbasetype FROM made m JOIN pg_catalog.pg_type t ON t.oid = m.oid WHERE t.typtype = 'd'
    )
    SELECT t.oid, s.nspname::pg_catalog.text AS schema, t.typname::pg_catalog.text AS name, t.typarray,
        os.nspname::pg_catalog.text AS operators, o.oprname::pg_catalog.text AS equals, o.oid AS operator
    FROM made m
    JOIN pg_catalog.pg_type base ON base.oid = m.oid AND base.typtype <> 'd'
    LEFT JOIN pg_catalog.pg_opclass oc ON oc.oid = k.class
        AND oc.opcmethod = (SELECT am.oid FROM pg_catalog.pg_am am WHERE am.amname = 'btree')
    LEFT JOIN pg_catalog.pg_type taken ON taken.oid = oc.opcintype AND taken.typtype <> 'p'
    JOIN pg_catalog.pg_type t ON t.oid = coalesce(taken.oid, base.oid)
    JOIN pg_catalog.pg_namespace s ON s.oid = t.typnamespace
    LEFT JOIN pg_catalog.pg_amop ao ON ao.amopfamily = oc.opcfamily AND ao.amopstrategy = 3
        AND ao.amoplefttype = oc.opcintype AND ao.amoprighttype = oc.opcintype
    LEFT JOIN pg_catalog.pg_operator o ON o.oid = ao.amopopr
    LEFT JOIN pg_catalog.pg_namespace os ON os.oid = o.oprnamespace
    LEFT JOIN pg_catalog.pg_range r ON t.oid IN (r.rngtypid, r.rngmultitypid)
    LEFT JOIN pg_catalog.pg_type sub ON sub.oid = r.rngsubtype
    WHERE t.typsubscript <> 'pg_catalog.array_subscript_handler'::pg_catalog.regproc
        AND (t.typtype IN ('b', 'e')
            OR t.typtype IN ('r', 'm') AND sub.typtype IN ('b', 'e')
                AND sub.typsubscript <> 'pg_catalog.array_subscript_handler'::pg_catalog.regproc)
    LIMIT 1
) e ON k.attnum IS NOT NULL
WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')
ORDER BY a.attnum"
    )
}

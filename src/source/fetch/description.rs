//! What the catalogue says of a table whose rows are asked for, at the time they are.

use std::collections::HashMap;
use std::time::Instant;

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::question::KeyColumn;
use crate::change::{Column, ReplicaIdentity, TableName};
use crate::record::Kind;
use crate::source::pgoutput::{Relation, RelationColumn};
use crate::source::relation::{Catalogue, CatalogueError};
use crate::source::slot::names::{ENCODING, Name};

/// See the module.
#[derive(Debug)]
pub(super) struct Description {
    pub(super) is_partitioned: bool,
    /// The primary key; empty if there is none.
    pub(super) key: Vec<KeyColumn>,
    pub(super) columns: HashMap<String, Described>,
    pub(super) read_at: Instant,
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
        columns.iter().all(|name| self.columns.get(name).is_some_and(|column| !Kind::needs_facts(column.type_oid)))
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

/// Asks the catalogue. `None`: there is no such table, or it is not the same one any more when the second question is
/// answered.
pub(super) async fn describe(client: &Client, name: &TableName) -> Result<Option<Description>, DescribeError> {
    let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
        [(&name.schema, Type::TEXT), (&name.table, Type::TEXT)];
    let rows = client.query_typed(&columns(), &parameters).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let (oid, is_partitioned) = (first.try_get(0)?, first.try_get(1)?);
    let (mut columns, mut types) = (Vec::new(), Vec::new());
    for row in &rows {
        let Name(name) = row.try_get(2)?;
        let column =
            RelationColumn { name, in_identity: false, type_oid: row.try_get(3)?, type_modifier: row.try_get(4)? };
        columns.push(column);
        types.push((row.try_get::<_, String>(5)?, row.try_get::<_, Option<String>>(6)?));
    }
    let (namespace, table) = (name.schema.clone(), name.table.clone());
    let relation = Relation { oid, namespace, name: table, identity: ReplicaIdentity::Nothing, columns };
    let table = Catalogue::new().table(client, &relation).await?;
    let key = table.primary_key.iter().filter_map(|index| {
        let (column, (sql_type, equals)) = (table.columns.get(*index)?, types.get(*index)?);
        Some(KeyColumn { name: column.name.clone(), sql_type: sql_type.clone(), equals: equals.clone() })
    });
    let key: Vec<KeyColumn> = key.collect();
    // The first look saw a key and the second none: the table was dropped, or made anew, between the two.
    if key.is_empty() && types.iter().any(|(_, equals)| equals.is_some()) {
        return Ok(None);
    }
    let described = |column: Column| (column.name, Described { type_oid: column.type_oid, kind: column.kind });
    let columns = table.columns.into_iter().map(described).collect();
    Ok(Some(Description { is_partitioned, key, columns, read_at: Instant::now() }))
}

/// The columns of a table; none if it is gone, or is no table. A cast takes the type without its modifier, which would cut
/// values short. What is equal is what the key's index takes for it, which for a type of an extension no operator of
/// `pg_catalog` says.
fn columns() -> String {
    format!(
        "\
SELECT c.oid, c.relkind = 'p', pg_catalog.convert_to(a.attname::pg_catalog.text, {ENCODING}), a.atttypid, a.atttypmod,
    pg_catalog.format_type(a.atttypid, -1), e.equals
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN LATERAL (
    SELECT pg_catalog.format('%I.%s', s.nspname, o.oprname) AS equals
    FROM pg_catalog.pg_index i
    CROSS JOIN ROWS FROM (
        pg_catalog.unnest(i.indkey::pg_catalog.int2[]), pg_catalog.unnest(i.indclass::pg_catalog.oid[])
    ) k (attnum, class)
    JOIN pg_catalog.pg_opclass oc ON oc.oid = k.class
    JOIN pg_catalog.pg_amop ao ON ao.amopfamily = oc.opcfamily AND ao.amopstrategy = 3
        AND ao.amoplefttype = oc.opcintype AND ao.amoprighttype = oc.opcintype
    JOIN pg_catalog.pg_am am ON am.oid = ao.amopmethod AND am.amname = 'btree'
    JOIN pg_catalog.pg_operator o ON o.oid = ao.amopopr
    JOIN pg_catalog.pg_namespace s ON s.oid = o.oprnamespace
    WHERE i.indrelid = c.oid AND i.indisprimary AND k.attnum = a.attnum
    LIMIT 1
) e ON true
WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')
ORDER BY a.attnum"
    )
}

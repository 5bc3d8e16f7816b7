//! What the catalogue says of a table whose rows are asked for, at the time they are.

use std::collections::HashMap;
use std::time::Instant;

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::question::KeyColumn;
use crate::change::{ReplicaIdentity, TableName};
use crate::record::Kind;
use crate::source::pgoutput::{Relation, RelationColumn};
use crate::source::relation::{Catalogue, CatalogueError};

/// The columns of a table; none if it is gone, or is no table. A cast takes the type without its modifier, which would cut
/// values short.
const COLUMNS: &str = "\
SELECT c.oid, c.relkind = 'p', a.attname::pg_catalog.text, a.atttypid, a.atttypmod, pg_catalog.format_type(a.atttypid, -1)
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')
ORDER BY a.attnum";

/// See the module.
#[derive(Debug)]
pub(super) struct Description {
    pub(super) is_partitioned: bool,
    /// The primary key; empty if there is none.
    pub(super) key: Vec<KeyColumn>,
    /// How each column's text becomes JSON.
    pub(super) kinds: HashMap<String, Kind>,
    pub(super) read_at: Instant,
}

/// Why a table could not be described.
#[derive(Debug, thiserror::Error)]
pub(super) enum DescribeError {
    #[error("could not read its columns from the catalogue")]
    Columns(#[from] tokio_postgres::Error),
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
}

/// Asks the catalogue. `None`: there is no such table.
pub(super) async fn describe(client: &Client, name: &TableName) -> Result<Option<Description>, DescribeError> {
    let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
        [(&name.schema, Type::TEXT), (&name.table, Type::TEXT)];
    let rows = client.query_typed(COLUMNS, &parameters).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let (oid, is_partitioned) = (first.try_get(0)?, first.try_get(1)?);
    let (mut columns, mut types) = (Vec::new(), Vec::new());
    for row in &rows {
        let column = RelationColumn {
            name: row.try_get(2)?,
            in_identity: false,
            type_oid: row.try_get(3)?,
            type_modifier: row.try_get(4)?,
        };
        columns.push(column);
        types.push(row.try_get::<_, String>(5)?);
    }
    let (namespace, table) = (name.schema.clone(), name.table.clone());
    let relation = Relation { oid, namespace, name: table, identity: ReplicaIdentity::Nothing, columns };
    let table = Catalogue::new().table(client, &relation).await?;
    let key = table.primary_key.iter().filter_map(|index| {
        let (column, sql_type) = (table.columns.get(*index)?, types.get(*index)?);
        Some(KeyColumn { name: column.name.clone(), sql_type: sql_type.clone() })
    });
    let key = key.collect();
    let kinds = table.columns.into_iter().map(|column| (column.name, column.kind)).collect();
    Ok(Some(Description { is_partitioned, key, kinds, read_at: Instant::now() }))
}

//! What the catalogue adds to a Relation message: the primary key, the types behind its columns' OIDs, and which of their
//! values are equal.
//!
//! The Relation message is the truth about the rows that follow it: their columns, their order, their types. The catalogue
//! is read later and may be newer (a column renamed, the table dropped); it only adds to what the message says, by name,
//! and what it no longer knows is done without. OIDs from 16384 on belong to one database of one cluster, so a
//! [`Catalogue`] lives as long as a connection.

use std::collections::HashMap;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use super::equality::facts::{self, ColumnFacts};
use super::equality::{of_column, types as equality_types};
use super::pgoutput::{Relation, RelationColumn};
use super::slot::names::{ENCODING, Name, strings};
use crate::change::{Column, ReplicaIdentity, Table, TableName};
use crate::record::{Kind, TypeFacts};

/// The catalogue could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The query for the columns and the primary key failed.
    #[error("could not read the primary key of {table} from the catalogue")]
    PrimaryKey {
        /// The relation.
        table: TableName,
        /// Why.
        source: tokio_postgres::Error,
    },
    /// The query for the types failed.
    #[error("could not read the column types of {table} from the catalogue")]
    Types {
        /// The relation.
        table: TableName,
        /// Why.
        source: tokio_postgres::Error,
    },
}

impl CatalogueError {
    /// The server's words, where it refused for want of a privilege.
    pub(super) fn refusal(&self) -> Option<&str> {
        let (Self::PrimaryKey { source, .. } | Self::Types { source, .. }) = self;
        let server = source.as_db_error().filter(|server| *server.code() == SqlState::INSUFFICIENT_PRIVILEGE)?;
        Some(server.message())
    }
}

/// Facts about types, by OID, as last read. They serve only when a type is gone from the catalogue; otherwise each Relation
/// message has them read anew, since composite types can change.
#[derive(Debug, Default)]
pub struct Catalogue {
    types: HashMap<u32, TypeFacts>,
}

/// Types remembered at most; when there are more, all are forgotten and read again with the next Relation message.
const TYPES_MAX: usize = 10_000;

/// The types with these OIDs and all within them. `typelem` counts where subscripting is that of arrays: name and point
/// have one too.
fn types() -> String {
    format!(
        "\
WITH RECURSIVE wanted (oid) AS (
    SELECT w.oid FROM pg_catalog.unnest($1) w (oid)
    UNION
    SELECT part.oid
    FROM wanted w
    JOIN pg_catalog.pg_type t ON t.oid = w.oid
    CROSS JOIN LATERAL (
        SELECT t.typelem WHERE t.typsubscript = 'pg_catalog.array_subscript_handler'::pg_catalog.regproc
        UNION ALL SELECT t.typbasetype WHERE t.typtype = 'd'
        UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) part (oid)
)
SELECT t.oid, pg_catalog.convert_to(t.typname::pg_catalog.text, {ENCODING}),
    pg_catalog.convert_to(n.nspname::pg_catalog.text, {ENCODING}), t.typtype, t.typbasetype, t.typrelid, t.typdelim,
    CASE WHEN t.typsubscript = 'pg_catalog.array_subscript_handler'::pg_catalog.regproc THEN t.typelem ELSE 0 END,
    at.names, at.oids
FROM wanted w
JOIN pg_catalog.pg_type t ON t.oid = w.oid
JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
CROSS JOIN LATERAL (
    SELECT pg_catalog.array_agg(pg_catalog.convert_to(a.attname::pg_catalog.text, {ENCODING}) ORDER BY a.attnum),
        pg_catalog.array_agg(a.atttypid ORDER BY a.attnum)
    FROM pg_catalog.pg_attribute a
    WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
) at (names, oids)"
    )
}

impl Catalogue {
    /// With nothing known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The table that `relation` announces, in one round trip.
    ///
    /// # Errors
    /// When a query fails. A table or type that is gone by now is not an error.
    pub async fn table(&mut self, client: &Client, relation: &Relation) -> Result<Table, CatalogueError> {
        let name = TableName { schema: relation.namespace.clone(), table: relation.name.clone() };
        let wanted: Vec<u32> =
            relation.columns.iter().map(|column| column.type_oid).filter(|oid| Kind::needs_facts(*oid)).collect();
        // All are sent before any is answered.
        let (facts, types, within) = tokio::join!(
            facts::read_columns(client, std::slice::from_ref(&relation.oid)),
            read_types(client, &wanted),
            equality_types::read_types(client, &wanted),
        );
        // What of both is refused is not known, and those are one group.
        let (facts, _) = facts.map_err(|source| CatalogueError::PrimaryKey { table: name.clone(), source })?;
        let facts = facts.get(&relation.oid).map(Vec::as_slice);
        let types = types.map_err(|source| CatalogueError::Types { table: name.clone(), source })?;
        let (within, _) = within.map_err(|source| CatalogueError::Types { table: name.clone(), source })?;
        if self.types.len() + types.len() > TYPES_MAX {
            self.types.clear();
        }
        self.types.extend(types.into_iter().map(|facts| (facts.oid, facts)));
        let columns = relation.columns.iter().map(|column| {
            let facts = facts.unwrap_or_default().iter().find(|facts| facts.name == column.name);
            let told = of_column((column.type_oid, column.type_modifier), facts, &within);
            Column {
                name: column.name.clone(),
                type_oid: column.type_oid,
                type_modifier: column.type_modifier,
                in_identity: column.in_identity,
                kind: Kind::resolve(column.type_oid, &self.types),
                equality: told.equality,
                shape: told.shape,
                altered: told.altered,
            }
        });
        let key = facts.map(primary_key);
        Ok(Table::new(relation.oid, name, relation.identity, columns.collect(), key_places(relation, key.as_deref())))
    }
}

/// The message that announced a table, as far as it is known.
pub fn announced(table: &Table) -> Relation {
    let column = |column: &Column| RelationColumn {
        name: column.name.clone(),
        in_identity: column.in_identity,
        type_oid: column.type_oid,
        type_modifier: column.type_modifier,
    };
    Relation {
        oid: table.oid,
        namespace: table.name.schema.clone(),
        name: table.name.table.clone(),
        identity: table.identity,
        columns: table.columns.iter().map(column).collect(),
    }
}

/// Names of the primary key's columns, in the key's order.
fn primary_key(columns: &[ColumnFacts]) -> Vec<String> {
    let mut places: Vec<(i64, &String)> =
        columns.iter().filter_map(|column| Some((column.key.as_ref()?.place, &column.name))).collect();
    places.sort_unstable();
    places.into_iter().map(|(_, name)| name.clone()).collect()
}

async fn read_types(client: &Client, wanted: &[u32]) -> Result<Vec<TypeFacts>, tokio_postgres::Error> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    client.query_typed(&types(), &[(&wanted, Type::OID_ARRAY)]).await?.iter().map(type_facts).collect()
}

fn type_facts(row: &Row) -> Result<TypeFacts, tokio_postgres::Error> {
    let (Name(name), Name(namespace)) = (row.try_get(1)?, row.try_get(2)?);
    let names = strings(row.try_get::<_, Option<Vec<Name>>>(8)?.unwrap_or_default());
    let oids = row.try_get::<_, Option<Vec<u32>>>(9)?.unwrap_or_default();
    Ok(TypeFacts {
        oid: row.try_get(0)?,
        name,
        namespace,
        typtype: row.try_get::<_, i8>(3)?.cast_unsigned(),
        base: row.try_get(4)?,
        relid: row.try_get(5)?,
        delimiter: row.try_get::<_, i8>(6)?.cast_unsigned(),
        elem: row.try_get(7)?,
        attributes: names.into_iter().zip(oids).collect(),
    })
}

/// Where the key's columns stand in the message. If the catalogue has no such table or a name of the key is not in the
/// message, the catalogue is newer than the rows: then the flagged columns are the key where the identity is an index's,
/// and otherwise what is left of it.
fn key_places(relation: &Relation, key: Option<&[String]>) -> Vec<usize> {
    let names = key.unwrap_or_default();
    let place = |name: &String| relation.columns.iter().position(|column| column.name == *name);
    let places: Vec<usize> = names.iter().filter_map(place).collect();
    if key.is_some() && places.len() == names.len() {
        return places;
    }
    match relation.identity {
        ReplicaIdentity::Default | ReplicaIdentity::Index => {
            let flagged = relation.columns.iter().enumerate().filter(|(_, column)| column.in_identity);
            flagged.map(|(place, _)| place).collect()
        }
        ReplicaIdentity::Nothing | ReplicaIdentity::Full => places,
    }
}

#[cfg(test)]
mod tests {
    use tokio_postgres::NoTls;

    use super::*;
    use crate::demo::cluster::roles::Role;
    use crate::demo::cluster::{Cluster, ClusterOptions};

    fn relation(oid: u32, identity: ReplicaIdentity, columns: &[(&str, bool, u32)]) -> Relation {
        let column = |&(name, in_identity, type_oid): &(&str, bool, u32)| RelationColumn {
            name: name.to_owned(),
            in_identity,
            type_oid,
            type_modifier: -1,
        };
        let (namespace, name) = ("public".to_owned(), "orders".to_owned());
        Relation { oid, namespace, name, identity, columns: columns.iter().map(column).collect() }
    }

    #[test]
    fn a_catalogue_newer_than_the_rows_breaks_no_key() {
        use ReplicaIdentity::{Default, Full, Index};
        let columns = [("a", true, 23), ("b", false, 23), ("c", true, 23)];
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for (identity, key, places) in [
            (Default, Some(names(&["c", "a"])), vec![2, 0]),
            (Full, Some(names(&["b"])), vec![1]),
            (Index, Some(names(&[])), vec![]),
            (Default, Some(names(&["c", "renamed"])), vec![0, 2]),
            (Full, Some(names(&["c", "renamed"])), vec![2]),
            (Default, None, vec![0, 2]),
            (Full, None, vec![]),
        ] {
            assert_eq!(key_places(&relation(1, identity, &columns), key.as_deref()), places, "{identity:?} {key:?}");
        }
    }

    #[tokio::test]
    async fn keys_and_types_come_from_the_catalogue() {
        let cluster = Cluster::start(&ClusterOptions::default()).unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        let mut sessions = Vec::new();
        for role in [Role::Owner, Role::Walhook] {
            let (client, connection) = tokio_postgres::connect(&cluster.url_as(role, "postgres"), NoTls).await.unwrap();
            tasks.spawn(connection);
            sessions.push(client);
        }
        let [client, own] = &sessions[..] else { panic!("two sessions") };
        let sql =
            "CREATE TYPE mood AS ENUM ('ok'); CREATE DOMAIN small AS int8; CREATE TYPE pair AS (a small, b mood[]);
            ALTER TYPE pair ADD ATTRIBUTE gone text; ALTER TYPE pair DROP ATTRIBUTE gone;
            CREATE TABLE orders (a int, p pair[], c text, extra int, PRIMARY KEY (c, a) INCLUDE (extra));";
        client.batch_execute(sql).await.unwrap();
        let row = client.query_one("SELECT 'orders'::regclass::oid, 'pair[]'::regtype::oid", &[]).await.unwrap();
        let columns = [("a", true, 23), ("p", false, row.get(1)), ("c", true, 25), ("extra", false, 23)];
        let announced = relation(row.get(0), ReplicaIdentity::Default, &columns);
        let mut catalogue = Catalogue::new();

        let table = catalogue.table(own, &announced).await.unwrap();
        assert_eq!(table.primary_key, [2, 0]);
        let kinds: Vec<_> = table.columns.iter().map(|column| column.kind.clone()).collect();
        let mut json = Vec::new();
        crate::record::append_value(&mut json, &kinds[1], br#"{"(7,\"{ok}\")"}"#, crate::config::Numbers::Json);
        assert_eq!(String::from_utf8(json).unwrap(), r#"[{"a":7,"b":["ok"]}]"#);

        client.batch_execute("DROP TABLE orders; DROP TYPE pair").await.unwrap();
        let after = catalogue.table(own, &announced).await.unwrap();
        assert_eq!(after.primary_key, [0, 2], "the flagged columns, for want of the catalogue's");
        assert_eq!(after.columns[1].kind, kinds[1], "what was known of a type outlives it");
        let unknown = Catalogue::new().table(own, &announced).await.unwrap();
        assert_eq!(unknown.columns[1].kind, Kind::Text);
    }
}

//! What the server would call of somebody's own if a query read a table.
//!
//! A plain SELECT calls more than it names: while it is planned, the expressions of the table's indexes, statistics and
//! partition keys are simplified, and a function without a column in its arguments is called for that
//! (`eval_const_expressions`). Policies of row level security, views and foreign tables are kept out by the session's settings.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

/// Of the table with this OID, and of its partitions: what these expressions call, or check by a domain, that is not a
/// superuser's. CHECK constraints are not looked at, since the session has `constraint_exclusion` off.
const OWN_CODE: &str = "\
WITH RECURSIVE tree (oid) AS (
    SELECT $1::pg_catalog.oid
    UNION
    SELECT i.inhrelid FROM tree t
    JOIN pg_catalog.pg_class c ON c.oid = t.oid AND c.relkind = 'p'
    JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
),
part (class, oid) AS (
    SELECT 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid, t.oid FROM tree t
    UNION ALL
    SELECT 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid, i.indexrelid
    FROM tree t JOIN pg_catalog.pg_index i ON i.indrelid = t.oid
    WHERE i.indexprs IS NOT NULL OR i.indpred IS NOT NULL
    UNION ALL
    SELECT 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass::pg_catalog.oid, s.oid
    FROM tree t JOIN pg_catalog.pg_statistic_ext s ON s.stxrelid = t.oid
)
SELECT p.class = 'pg_catalog.pg_class'::pg_catalog.regclass AND p.oid NOT IN (SELECT t.oid FROM tree t), owners.is_operator
FROM part p
JOIN pg_catalog.pg_depend d ON d.classid = p.class AND d.objid = p.oid AND d.objsubid = 0
CROSS JOIN LATERAL (
    SELECT f.proowner, false FROM pg_catalog.pg_proc f
    WHERE d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND f.oid = d.refobjid
    UNION ALL
    SELECT o.oprowner, true FROM pg_catalog.pg_operator o
    WHERE d.refclassid = 'pg_catalog.pg_operator'::pg_catalog.regclass AND o.oid = d.refobjid
    UNION ALL
    SELECT t.typowner, false FROM pg_catalog.pg_type t
    WHERE d.refclassid = 'pg_catalog.pg_type'::pg_catalog.regclass AND t.oid = d.refobjid AND t.typtype = 'd'
) owners (oid, is_operator)
JOIN pg_catalog.pg_roles r ON r.oid = owners.oid AND NOT r.rolsuper
LIMIT 1";

/// What it is, in words; `None`: nothing.
pub(super) async fn own_code(client: &Client, table: u32) -> Result<Option<String>, tokio_postgres::Error> {
    let rows = client.query_typed(OWN_CODE, &[(&table, Type::OID)]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let whose =
        if row.try_get(0)? { "an index of the table" } else { "a partition key or the statistics of the table" };
    let what = if row.try_get(1)? { "an operator" } else { "a function or a domain" };
    Ok(Some(format!("{whose} uses {what} that no superuser owns, which reading the table would call")))
}

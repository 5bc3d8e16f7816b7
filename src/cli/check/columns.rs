//! What the catalogue says of the columns of the tables that are published, as far as receivers see it.

use std::collections::HashMap;

use tokio::time::timeout;
use tokio_postgres::{Client, Row};

use super::LIMIT;
use super::findings::{self, Finding};
use crate::change::Equality;
use crate::record::Kind;
use crate::source::equality::facts::{ColumnFacts, Comparison, read_columns};
use crate::source::equality::of_column;
use crate::source::equality::types::read_types;
use crate::source::slot::names::{ENCODING, Name};
use crate::source::slot::unseen::Unseen;

/// What was seen of the columns of all tables, by OID, and what could not be.
#[derive(Debug, Default)]
pub(super) struct Looked {
    columns: HashMap<u32, Columns>,
    equals: HashMap<u32, Vec<Equal>>,
    pub(super) unseen: Vec<Finding>,
}

/// What was seen of those of one table.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) columns: Option<&'a Columns>,
    /// All columns, with what their texts say about equal values.
    pub(super) equals: Option<&'a [Equal]>,
}

impl Looked {
    pub(super) fn of(&self, table: u32) -> Known<'_> {
        Known { columns: self.columns.get(&table), equals: self.equals.get(&table).map(Vec::as_slice) }
    }
}

/// The columns of one table that are worth a word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Columns {
    /// With their types: within them is a type that has a cast to json, which `to_jsonb` would use.
    pub(super) cast: Vec<String>,
    /// With their types: within them is a type of an extension or of the user's that has no form in JSON but text.
    pub(super) text: Vec<String>,
    /// Generated and stored.
    pub(super) stored: Vec<String>,
    /// Generated when read (18).
    pub(super) computed: Vec<String>,
    /// The role may read the key and the columns of long values, which `unchanged_toast = "fetch"` needs.
    pub(super) may_read: bool,
    /// Row level security hides rows from the role.
    pub(super) is_guarded: bool,
}

/// A column that a table may be grouped by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Equal {
    pub(super) name: String,
    pub(super) type_name: String,
    pub(super) equality: Equality,
    /// Its collation is, or it has none.
    pub(super) is_deterministic: bool,
    /// It is in the primary key.
    pub(super) is_key: bool,
    /// The key's index does not compare it by the type's default operators.
    pub(super) is_compared_otherwise: bool,
}

/// Every column of the tables with these OIDs, and the types that its values are made of in the end: elements of arrays,
/// attributes of row types, what domains are made from. `to_jsonb` (`json_categorize_type`) asks for a cast to json where a
/// type is none of these and no built-in one; hstore is taken through its cast.
fn columns() -> String {
    format!(
        "
with recursive part (rel, attnum, oid) as (
  select a.attrelid, a.attnum, a.atttypid from pg_catalog.pg_attribute a
   where a.attrelid = any ($1) and a.attnum > 0 and not a.attisdropped
  union
  select p.rel, p.attnum, inner_type.oid
    from part p join pg_catalog.pg_type t on t.oid = p.oid
   cross join lateral (
     select t.typelem where t.typsubscript = 'pg_catalog.array_subscript_handler'::pg_catalog.regproc
     union all select t.typbasetype where t.typtype = 'd'
     union all select a.atttypid from pg_catalog.pg_attribute a
       where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
   ) inner_type (oid)),
leaf as (
  select p.rel, p.attnum,
         exists (select from pg_catalog.pg_cast c where c.castsource = t.oid and c.castmethod = 'f'
                   and c.casttarget = 'pg_catalog.json'::pg_catalog.regtype) as has_cast,
         t.typtype = 'b' as is_base
    from part p join pg_catalog.pg_type t on t.oid = p.oid
   where t.oid >= 16384 and t.typname <> 'hstore' and t.typtype not in ('c', 'd')
     and t.typsubscript <> 'pg_catalog.array_subscript_handler'::pg_catalog.regproc)
select a.attrelid, pg_catalog.convert_to(a.attname::text, {ENCODING}),
       pg_catalog.convert_to(pg_catalog.format_type(a.atttypid, a.atttypmod), {ENCODING}), a.attgenerated::text,
       coalesce(bool_or(l.has_cast), false), coalesce(bool_or(l.is_base), false),
       pg_catalog.has_schema_privilege(
         (select c.relnamespace from pg_catalog.pg_class c where c.oid = a.attrelid), 'USAGE')
       and (pg_catalog.has_column_privilege(a.attrelid, a.attnum, 'SELECT')
            or a.attstorage = 'p' and not exists (
              select from pg_catalog.pg_index i where i.indrelid = a.attrelid and i.indisprimary
                 and a.attnum = any (i.indkey::pg_catalog.int2[]))),
       pg_catalog.row_security_active(a.attrelid)
  from pg_catalog.pg_attribute a left join leaf l on l.rel = a.attrelid and l.attnum = a.attnum
 where a.attrelid = any ($1) and a.attnum > 0 and not a.attisdropped
 group by a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attgenerated, a.attstorage
 order by a.attrelid, a.attnum"
    )
}

/// The columns of these tables. Each of the two questions stands without the other.
pub(super) async fn look(client: &Client, oids: &[u32], subject: &str, role: &str) -> Looked {
    let mut looked = Looked::default();
    match read(client, oids).await {
        Ok(columns) => looked.columns = columns,
        Err(error) => looked.unseen.push(findings::of_silence(subject.to_owned(), &error, role)),
    }
    match read_equals(client, oids).await {
        Ok((equals, refused)) => {
            looked.equals = equals;
            looked.unseen.extend(refused.into_iter().map(|words| of_refused(subject, words, role)));
        }
        Err(error) => looked.unseen.push(findings::of_unknown_keys(subject.to_owned(), &error, role)),
    }
    looked
}

/// What walhook does without.
fn of_refused(subject: &str, words: String, role: &str) -> Finding {
    let unseen = Unseen {
        about: "all that says which values of a column are equal",
        leaves_open: "of some columns; a table that is grouped by such a one is one group",
        why: words,
        is_refused: true,
    };
    Finding { mend: unseen.mend(role), ..Finding::ok(subject, unseen.what()) }
}

/// # Errors
/// When the catalogue does not answer, or not in time: then nothing is known of them.
async fn read(client: &Client, oids: &[u32]) -> anyhow::Result<HashMap<u32, Columns>> {
    let mut tables: HashMap<u32, Columns> = HashMap::new();
    for row in &timeout(LIMIT, client.query(&columns(), &[&oids])).await?? {
        let table = tables.entry(row.try_get(0)?);
        table.or_insert_with(|| Columns { may_read: true, ..Columns::default() }).take(row)?;
    }
    Ok(tables)
}

/// As `run` reads them.
async fn read_equals(client: &Client, oids: &[u32]) -> anyhow::Result<(HashMap<u32, Vec<Equal>>, Vec<String>)> {
    let (tables, mut refused) = timeout(LIMIT, read_columns(client, oids)).await??;
    let mut wanted: Vec<u32> = tables.values().flatten().map(|column| column.typed.oid).collect();
    wanted.retain(|oid| Kind::needs_facts(*oid));
    let (types, refused_of_types) = timeout(LIMIT, read_types(client, &wanted)).await??;
    refused.extend(refused_of_types);
    refused.sort_unstable();
    refused.dedup();
    let comparison = |column: &ColumnFacts| column.key.as_ref().map(|key| key.comparison);
    let equal = |column: ColumnFacts| Equal {
        equality: of_column((column.typed.oid, column.typed.modifier), Some(&column), &types).equality,
        is_deterministic: column.typed.is_deterministic,
        is_key: column.key.is_some(),
        is_compared_otherwise: matches!(comparison(&column), Some(Comparison::Overlap | Comparison::Unknown)),
        name: column.name,
        type_name: column.type_name,
    };
    let equals = tables.into_iter().map(|(oid, columns)| (oid, columns.into_iter().map(equal).collect()));
    Ok((equals.collect(), refused))
}

impl Columns {
    fn take(&mut self, row: &Row) -> Result<(), tokio_postgres::Error> {
        let (Name(name), Name(type_name)) = (row.try_get(1)?, row.try_get(2)?);
        let typed = format!("{name} ({type_name})");
        match (row.try_get(4)?, row.try_get(5)?) {
            (true, _) => self.cast.push(typed),
            (false, true) => self.text.push(typed),
            (false, false) => {}
        }
        match row.try_get::<_, &str>(3)? {
            "s" => self.stored.push(name),
            "v" => self.computed.push(name),
            _ => {}
        }
        self.may_read &= row.try_get::<_, bool>(6)?;
        self.is_guarded |= row.try_get::<_, bool>(7)?;
        Ok(())
    }
}

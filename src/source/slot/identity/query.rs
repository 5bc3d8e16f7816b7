//! Asks the catalogue which published relations have no identity that the server can use.

use std::collections::HashMap;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use super::{Bare, Fault, Look};
use crate::change::TableName;
use crate::config::SourceConfig;
use crate::source::slot::error::{Passing, PrepareError, bounded, misread};
use crate::source::slot::names::{ENCODING, Name};
use crate::source::slot::neighbours::{self, Neighbours, Ties};
use crate::source::slot::publication;
use crate::source::slot::unseen::{Question, ask};

/// Relations that one look names at most. When there are more, the next look names further ones once these are mended.
const BARE_MAX: usize = 500;

const PUBLICATION: &str = "
select pg_is_in_recovery(), p.pubupdate, p.pubdelete, current_setting('server_version_num')::int, p.oid,
       (select concat_ws('/', count(*), sum(r.oid::int8)) from pg_publication_rel r where r.prpubid = p.oid)
  from pg_publication p where p.pubname = $1";

/// Asked apart: a role that may not see it gets gaps without a beginning, and its tables are looked after all the same.
const END: &str = "case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end";

/// `$1` is the publication; `$2` and `$3` are schemas and names of tables that are out of it, to be asked as if they were in. They
/// are looked up by a join: `to_regclass` raises for a schema that the role may not use, and then nothing of any table is known.
fn bare(version: i32) -> String {
    let has_lists = version >= 150_000;
    let (filter, list, in_schema) = match has_lists {
        true => (
            "r.prqual::text",
            "r.prattrs::int2[]",
            "or exists (select from pg_publication_namespace s where s.pnpubid = pub.oid and s.pnnspid = c.relnamespace)",
        ),
        false => ("null::text", "null::int2[]", ""),
    };
    let excluded = match version {
        190_000.. => "and coalesce((to_jsonb(r) ->> 'prexcept')::bool, false) = false",
        _ => "",
    };
    let columns = if has_lists { BY_COLUMNS } else { "" };
    let (generated, lacks_generated) =
        if version >= 180_000 { (BY_GENERATED, "p.pubgencols <> 's'") } else { ("", "false") };
    format!(
        "
with recursive pub as (
  select p.oid, p.puballtables, p.pubviaroot, {lacks_generated} as lacks_generated
    from pg_publication p where p.pubname = $1 and (p.pubupdate or p.pubdelete)),
top (oid, place, is_candidate, filter, list) as (
  select r.prrelid, r.oid, false, {filter}, {list}
    from pub join pg_publication_rel r on r.prpubid = pub.oid {excluded}
  union all
  select c.oid, 0::oid, false, null, null
    from pub join pg_class c on c.relkind in ('r', 'p') and c.oid >= 16384 and not c.relispartition
    join pg_namespace n on n.oid = c.relnamespace and n.nspname !~ '^pg_'
   where pub.puballtables {in_schema}
  union all
  select c.oid, 0::oid, true, null, null
    from pub cross join unnest($2::text[], $3::text[]) t (schema, name)
    join pg_namespace n on n.nspname = t.schema::name
    join pg_class c on c.relnamespace = n.oid and c.relname = t.name::name),
tree (oid, top) as (
  select oid, oid from top
  union
  select i.inhrelid, t.top
    from tree t join pg_class c on c.oid = t.oid and c.relkind = 'p' join pg_inherits i on i.inhparent = t.oid)
select convert_to(tn.nspname::text, {ENCODING}), convert_to(tc.relname::text, {ENCODING}), top.place,
       convert_to(n.nspname::text, {ENCODING}), convert_to(c.relname::text, {ENCODING}), why.fault, top.is_candidate,
       tc.oid, top.filter is not null or top.list is not null,
       array(select t.oid union select a.relid::oid from pg_partition_ancestors(t.oid) a),
       (select convert_to(a.attname::text, {ENCODING}) from pg_attribute a
         where a.attrelid = c.oid and not a.attisdropped and a.attgenerated = 'v' order by a.attnum limit 1),
       exists (select from pg_attribute a where a.attrelid = c.oid and not a.attisdropped and a.attgenerated = 's')
  from pub cross join tree t join top on top.oid = t.top
  join pg_class c on c.oid = t.oid and c.relkind = 'r' and c.relpersistence = 'p' and c.oid >= 16384
  join pg_namespace n on n.oid = c.relnamespace
  join pg_class tc on tc.oid = t.top
  join pg_namespace tn on tn.oid = tc.relnamespace
  left join pg_index x on x.indrelid = c.oid and x.indisvalid and x.indisunique and x.indimmediate and x.indpred is null
       and (c.relreplident = 'd' and x.indisprimary or c.relreplident = 'i' and x.indisreplident)
 cross join lateral (select case when not pub.pubviaroot then t.oid = t.top else not exists (
   select from tree above join top a on a.oid = above.top and not a.is_candidate
    where above.oid = t.top and above.top <> t.top) end) rule (governs)
 cross join lateral (select case
   when c.relreplident = 'n' then 'nothing'
   when c.relreplident = 'i' and x.indexrelid is null then 'index'
   when c.relreplident = 'd' and x.indexrelid is null then coalesce(
     (select case when k.indimmediate then 'invalid' else 'deferrable' end
        from pg_index k where k.indrelid = c.oid and k.indisprimary), 'key')
   {columns} {generated} end) why (fault)
 where why.fault is not null
 order by tn.nspname, tc.relname, n.nspname, c.relname
 limit {limit}",
        limit = BARE_MAX + 1
    )
}

/// Where the publication passes changes on under the root's name, the list and the filter of the topmost table that it names hold;
/// else those of the relation itself. Columns of a partition are those of the table with the same names.
const BY_COLUMNS: &str = "
   when top.list is not null and rule.governs and (c.relreplident = 'f' or exists (
     select from unnest(x.indkey::int2[]) with ordinality k (attnum, n)
       join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
       join pg_attribute ta on ta.attrelid = t.top and ta.attname = a.attname
      where k.n <= x.indnkeyatts and ta.attnum <> all (top.list))) then 'list'
   when top.filter is not null and rule.governs and c.relreplident <> 'f' and exists (
     select from regexp_matches(top.filter, ':varattno ([0-9]+)', 'g') v (found)
       join pg_attribute ta on ta.attrelid = t.top and ta.attnum = v.found[1]::int2
      where not exists (
        select from unnest(x.indkey::int2[]) with ordinality k (attnum, n)
          join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
         where k.n <= x.indnkeyatts and a.attname = ta.attname)) then 'filter'";

const BY_GENERATED: &str = "
   when c.relreplident = 'f' and exists (
     select from pg_attribute a where a.attrelid = c.oid and not a.attisdropped and a.attgenerated = 'v') then 'virtual'
   when pub.lacks_generated and top.list is null and (rule.governs or not pub.pubviaroot) and exists (
     select from pg_attribute a
      where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = 's'
        and (c.relreplident = 'f' or a.attnum = any ((x.indkey::int2[])[0:x.indnkeyatts - 1]))) then 'generated'";

/// Looks. `candidates` are tables that are out of the publication and may be put back. `None`: there is no publication.
///
/// # Errors
/// When the server cannot be asked.
pub(crate) async fn look(
    client: &Client,
    source: &SourceConfig,
    candidates: &[&TableName],
) -> Result<Option<Look>, PrepareError> {
    let (doing, name) = ("look at the replica identities of what is published", &source.publication);
    let found = bounded(doing, client.query_opt(PUBLICATION, &[name])).await?;
    let Some(row) = found else { return Ok(None) };
    let end = [Question::new("the end of the WAL", END, "where gaps of single tables begin")];
    let end = ask(client, doing, &end).await?.text();
    let schemas: Vec<&str> = candidates.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = candidates.iter().map(|table| table.table.as_str()).collect();
    let head = Head::of_row(&row).map_err(misread(doing))?;
    let rows = bounded(doing, client.query(&bare(head.version), &[name, &schemas, &names])).await?;
    let neighbours = if rows.is_empty() { Neighbours::default() } else { neighbours::read(client).await? };
    let bare: Result<Option<Vec<Bare>>, _> =
        rows.iter().map(|row| of_row(row, &neighbours).transpose()).map(Option::transpose).collect();
    let mut bare = bare.map_err(misread(doing))?.ok_or(Passing::Answer { doing })?;
    let is_cut = bare.len() > BARE_MAX;
    bare.truncate(BARE_MAX);
    let (is_ours, is_owned) = match bare.is_empty() {
        true => (false, false),
        false => publication::standing(client, source).await?,
    };
    Ok(Some(Look {
        is_ours,
        is_owned,
        in_recovery: head.in_recovery,
        version: u32::try_from(head.version).unwrap_or(0),
        publication: head.publication,
        members: head.members,
        updates: head.updates,
        deletes: head.deletes,
        end: end.and_then(|text| text.parse().ok()),
        bare,
        is_cut,
    }))
}

/// Of server and publication.
struct Head {
    in_recovery: bool,
    updates: bool,
    deletes: bool,
    version: i32,
    publication: u32,
    members: String,
}

impl Head {
    fn of_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            in_recovery: row.try_get(0)?,
            updates: row.try_get(1)?,
            deletes: row.try_get(2)?,
            version: row.try_get(3)?,
            publication: row.try_get(4)?,
            members: row.try_get(5)?,
        })
    }
}

/// `None`: a fault that is not known here.
fn of_row(row: &Row, neighbours: &Neighbours) -> Result<Option<Bare>, tokio_postgres::Error> {
    let name = |schema: usize| -> Result<TableName, tokio_postgres::Error> {
        let (Name(schema), Name(table)) = (row.try_get(schema)?, row.try_get(schema + 1)?);
        Ok(TableName { schema, table })
    };
    let fault = match row.try_get::<_, &str>(5)? {
        "nothing" => Fault::Nothing,
        "index" => Fault::Index,
        "key" => Fault::NoKey,
        "deferrable" => Fault::Deferrable,
        "invalid" => Fault::InvalidIndex,
        "virtual" => Fault::Virtual,
        "generated" => Fault::Generated,
        "list" => Fault::ColumnList,
        "filter" => Fault::RowFilter,
        _ => return Ok(None),
    };
    let mut ties = Ties::default();
    for relation in row.try_get::<_, Vec<u32>>(9)? {
        ties.join(&neighbours.of(relation));
    }
    let virtual_column = row.try_get::<_, Option<Name>>(10)?.map(|Name(name)| name);
    let place: u32 = row.try_get(2)?;
    Ok(Some(Bare {
        table: name(0)?,
        oid: row.try_get(7)?,
        relation: name(3)?,
        fault,
        is_member: place != 0,
        is_partial: row.try_get(8)?,
        place,
        is_candidate: row.try_get(6)?,
        breaks_in_full: ties.break_full(virtual_column.as_deref(), row.try_get(11)?),
    }))
}

/// Whether there is a relation of this name.
///
/// # Errors
/// When the server cannot be asked.
pub(crate) async fn exists(client: &Client, table: &TableName) -> Result<bool, PrepareError> {
    let names = [&table.schema, &table.table].map(|name| name as &(dyn ToSql + Sync));
    let doing = "ask for a table";
    bounded(doing, client.query_one(EXISTS, &names)).await?.try_get(0).map_err(misread(doing))
}

/// As [`bare`] looks up its candidates.
const EXISTS: &str = "
select exists (select from pg_namespace n join pg_class c on c.relnamespace = n.oid
                where n.nspname = $1::text::name and c.relname = $2::text::name)";

/// The places of these tables in the publication, for those that it names: see [`Bare::place`].
///
/// # Errors
/// When the server cannot be asked.
pub(crate) async fn places(
    client: &Client,
    source: &SourceConfig,
    tables: &[TableName],
) -> Result<HashMap<TableName, u32>, PrepareError> {
    let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|table| table.table.as_str()).collect();
    let sql = PLACES.replace("{ENCODING}", ENCODING);
    let doing = "read the publication";
    let rows = bounded(doing, client.query(&sql, &[&source.publication, &schemas, &names])).await?;
    let place = |row: &Row| {
        let (Name(schema), Name(table)) = (row.try_get(0)?, row.try_get(1)?);
        Ok((TableName { schema, table }, row.try_get(2)?))
    };
    rows.iter().map(place).collect::<Result<_, _>>().map_err(misread(doing))
}

const PLACES: &str = "
select convert_to(n.nspname::text, {ENCODING}), convert_to(c.relname::text, {ENCODING}), r.oid
  from unnest($2::text[], $3::text[]) t (schema, name)
  join pg_namespace n on n.nspname = t.schema::name
  join pg_class c on c.relnamespace = n.oid and c.relname = t.name::name
  join pg_publication_rel r on r.prrelid = c.oid
  join pg_publication p on p.oid = r.prpubid and p.pubname = $1";

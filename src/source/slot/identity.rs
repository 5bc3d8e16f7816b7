//! Published relations whose own UPDATE and DELETE fail, because the server finds no replica identity that it can use.
//!
//! The server asks this at each UPDATE and DELETE (`CheckCmdReplicaIdentity`), of the partition that has the row and of every
//! publication that covers it. Here the same is asked of one publication, for all that it covers, in one query that takes no lock
//! on any of the tables.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row};

use super::error::{Passing, PrepareError, bounded};
use super::names::{ENCODING, Name, quoted, quoted_table};
use super::publication;
use crate::change::{Lsn, TableName};
use crate::config::SourceConfig;
use crate::source::advice::Statement;
use crate::view::Trouble;

/// Relations that one look names at most. When there are more, the next look names further ones once these are mended.
const BARE_MAX: usize = 500;
/// How long taking a table out of the publication waits for a lock: shorter than anybody minds who waits behind it.
const LOCK_WAIT: &str = "1s";

/// Why the server finds no identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    Index,
    NoKey,
    Deferrable,
    InvalidIndex,
    /// 18: under FULL, a column that is computed when it is read.
    Virtual,
    /// 18: a stored generated column of the identity that the publication does not pass on.
    Generated,
    /// 15: a column list that lacks a column of the identity; under FULL any.
    ColumnList,
    /// 15: a row filter with a column that is not of the identity.
    RowFilter,
}

/// A relation that is published and has no identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bare {
    /// What the publication names: the relation itself, or a table that it is a partition of.
    pub(crate) table: TableName,
    /// The relation whose UPDATE and DELETE fail.
    pub(crate) relation: TableName,
    pub(crate) fault: Fault,
    /// The publication names the table itself, so that it can be taken out; not by `FOR ALL TABLES` or a schema.
    pub(crate) is_member: bool,
    /// Not in the publication, but asked for: its writes would fail if it was.
    pub(crate) is_candidate: bool,
}

/// What a look has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Look {
    /// The publication was made by walhook for this slot; this and the next are asked only where something is bare.
    pub(crate) is_ours: bool,
    /// The role may change it.
    pub(crate) is_owned: bool,
    pub(crate) in_recovery: bool,
    /// `server_version_num`.
    pub(crate) version: u32,
    /// Which of UPDATE and DELETE it passes on.
    pub(crate) updates: bool,
    pub(crate) deletes: bool,
    /// End of the server's WAL before the look; none on a standby.
    pub(crate) end: Option<Lsn>,
    pub(crate) bare: Vec<Bare>,
    /// There are more.
    pub(crate) is_cut: bool,
}

const PUBLICATION: &str = "
select pg_is_in_recovery(), p.pubupdate, p.pubdelete, case when not pg_is_in_recovery() then pg_current_wal_lsn()::text end,
       current_setting('server_version_num')::int
  from pg_publication p where p.pubname = $1";

/// `$1` is the publication; `$2` names tables that are out of it, to be asked as if they were in.
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
top (oid, is_member, is_candidate, filter, list) as (
  select r.prrelid, true, false, {filter}, {list}
    from pub join pg_publication_rel r on r.prpubid = pub.oid {excluded}
  union all
  select c.oid, false, false, null, null
    from pub join pg_class c on c.relkind in ('r', 'p') and c.oid >= 16384 and not c.relispartition
    join pg_namespace n on n.oid = c.relnamespace and n.nspname !~ '^pg_'
   where pub.puballtables {in_schema}
  union all
  select to_regclass(t.name)::oid, false, true, null, null from pub, unnest($2::text[]) t (name)),
tree (oid, top) as (
  select oid, oid from top
  union
  select i.inhrelid, t.top
    from tree t join pg_class c on c.oid = t.oid and c.relkind = 'p' join pg_inherits i on i.inhparent = t.oid)
select convert_to(tn.nspname::text, {ENCODING}), convert_to(tc.relname::text, {ENCODING}), top.is_member,
       convert_to(n.nspname::text, {ENCODING}), convert_to(c.relname::text, {ENCODING}), why.fault, top.is_candidate
  from pub cross join tree t join top on top.oid = t.top
  join pg_class c on c.oid = t.oid and c.relkind = 'r' and c.relpersistence = 'p' and c.oid >= 16384
  join pg_namespace n on n.oid = c.relnamespace
  join pg_class tc on tc.oid = t.top
  join pg_namespace tn on tn.oid = tc.relnamespace
  left join pg_index x on x.indrelid = c.oid and x.indisvalid and x.indisunique and x.indimmediate and x.indpred is null
       and (c.relreplident = 'd' and x.indisprimary or c.relreplident = 'i' and x.indisreplident)
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

/// Columns of a partition are those of the table with the same names.
const BY_COLUMNS: &str = "
   when top.list is not null and (pub.pubviaroot or t.oid = t.top) and (c.relreplident = 'f' or exists (
     select from unnest(x.indkey::int2[]) with ordinality k (attnum, n)
       join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
       join pg_attribute ta on ta.attrelid = t.top and ta.attname = a.attname
      where k.n <= x.indnkeyatts and ta.attnum <> all (top.list))) then 'list'
   when top.filter is not null and (pub.pubviaroot or t.oid = t.top) and c.relreplident <> 'f' and exists (
     select from regexp_matches(top.filter, ':varattno ([0-9]+)', 'g') v (found)
       join pg_attribute ta on ta.attrelid = t.top and ta.attnum = v.found[1]::int2
      where not exists (
        select from unnest(x.indkey::int2[]) with ordinality k (attnum, n)
          join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
         where k.n <= x.indnkeyatts and a.attname = ta.attname)) then 'filter'";

const BY_GENERATED: &str = "
   when c.relreplident = 'f' and exists (
     select from pg_attribute a where a.attrelid = c.oid and not a.attisdropped and a.attgenerated = 'v') then 'virtual'
   when pub.lacks_generated and top.list is null and exists (
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
    let candidates: Vec<String> = candidates.iter().map(|table| quoted_table(table)).collect();
    let mut bare: Vec<Bare> = bounded(doing, client.query(&bare(row.get(4)), &[name, &candidates]))
        .await?
        .iter()
        .map(of_row)
        .collect::<Option<_>>()
        .ok_or(Passing::Answer { doing })?;
    let is_cut = bare.len() > BARE_MAX;
    bare.truncate(BARE_MAX);
    let (is_ours, is_owned) = match bare.is_empty() {
        true => (false, false),
        false => publication::standing(client, source).await?,
    };
    Ok(Some(Look {
        is_ours,
        is_owned,
        in_recovery: row.get(0),
        version: u32::try_from(row.get::<_, i32>(4)).unwrap_or(0),
        updates: row.get(1),
        deletes: row.get(2),
        end: row.get::<_, Option<&str>>(3).and_then(|text| text.parse().ok()),
        bare,
        is_cut,
    }))
}

fn of_row(row: &Row) -> Option<Bare> {
    let name = |schema: usize| {
        let (Name(schema), Name(table)) = (row.get(schema), row.get(schema + 1));
        TableName { schema, table }
    };
    let fault = match row.get::<_, &str>(5) {
        "nothing" => Fault::Nothing,
        "index" => Fault::Index,
        "key" => Fault::NoKey,
        "deferrable" => Fault::Deferrable,
        "invalid" => Fault::InvalidIndex,
        "virtual" => Fault::Virtual,
        "generated" => Fault::Generated,
        "list" => Fault::ColumnList,
        "filter" => Fault::RowFilter,
        _ => return None,
    };
    Some(Bare { table: name(0), is_member: row.get(2), relation: name(3), fault, is_candidate: row.get(6) })
}

/// End of the server's WAL: everything that is visible now was committed before.
///
/// # Errors
/// When the server cannot be asked.
pub(crate) async fn end_of_wal(client: &Client) -> Result<Lsn, PrepareError> {
    let doing = "ask for the end of the WAL";
    let row = bounded(doing, client.query_one("select pg_current_wal_insert_lsn()::text", &[])).await?;
    row.get::<_, &str>(0).parse().map_err(|_| Passing::Answer { doing }.into())
}

/// Whether there is a table of this name.
///
/// # Errors
/// When the server cannot be asked.
pub(crate) async fn exists(client: &Client, table: &TableName) -> Result<bool, PrepareError> {
    let name = quoted_table(table);
    let asked = bounded("ask for a table", client.query_one("select to_regclass($1) is not null", &[&name])).await?;
    Ok(asked.get(0))
}

/// What became of taking a table out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TakenOut {
    Done,
    /// The server said no, so it is as it was.
    Refused(String),
}

/// Takes a table out of the publication.
///
/// # Errors
/// When nobody knows whether it was done.
pub(crate) async fn take_out(
    client: &Client,
    source: &SourceConfig,
    table: &TableName,
) -> Result<TakenOut, PrepareError> {
    let batch = format!(
        "SET LOCAL lock_timeout = '{LOCK_WAIT}'; SET LOCAL search_path = \"$user\", public; {}",
        out_sql(source, table)
    );
    let doing = "take a table out of the publication";
    match tokio::time::timeout(super::error::STATEMENT_LIMIT, client.batch_execute(&batch)).await {
        Ok(Ok(())) => Ok(TakenOut::Done),
        Ok(Err(error)) => match error.as_db_error() {
            // Somebody was quicker.
            Some(server) if *server.code() == SqlState::UNDEFINED_OBJECT => Ok(TakenOut::Done),
            Some(server) => Ok(TakenOut::Refused(server.message().to_owned())),
            None => Err(Passing::Query { doing, source: error }.into()),
        },
        Err(_) => Err(Passing::Timeout { doing }.into()),
    }
}

/// Without ONLY the tables that inherit from it would have to be in the publication too.
fn out_sql(source: &SourceConfig, table: &TableName) -> String {
    format!("ALTER PUBLICATION {} DROP TABLE ONLY {};", quoted(&source.publication), quoted_table(table))
}

impl Look {
    /// Why the table cannot be taken out of the publication by walhook, whatever else happens.
    pub(crate) fn hindrance(&self, source: &SourceConfig, bare: &Bare) -> Option<&'static str> {
        if !bare.is_member {
            Some("the publication holds all tables, or all of the schema")
        } else if !source.create {
            Some("walhook changes no publication with create = false")
        } else if self.in_recovery {
            Some("the server is a standby")
        } else if !self.is_ours {
            Some("walhook did not make the publication for this slot")
        } else if !self.is_owned {
            Some("the publication belongs to another role")
        } else {
            None
        }
    }

    /// What a person sees of it. `since` is when it was first seen, `hindrance` why the table is still published.
    pub(crate) fn harm(&self, source: &SourceConfig, bare: &Bare, since: Option<&str>, hindrance: &str) -> Trouble {
        let Bare { table, relation, fault, .. } = bare;
        let fails = match (self.updates, self.deletes) {
            (true, false) => "UPDATE fails",
            (false, true) => "DELETE fails",
            (true, true) | (false, false) => "UPDATE and DELETE fail",
        };
        let (why, since) = (fault.why(), since.map(|since| format!(" since {since}")).unwrap_or_default());
        let reason = if relation == table { format!("it {why}") } else { format!("its partition {relation} {why}") };
        Trouble {
            what: format!(
                "{table} is published and its own {fails}{since}: {reason}; it is not taken out of the publication: \
                 {hindrance}"
            ),
            advice: format!("{}\nor {}", fault.mend(source, relation), bare.way_out(source)),
        }
    }
}

impl Bare {
    /// What a person does who would rather not give it an identity.
    fn way_out(&self, source: &SourceConfig) -> String {
        match self.is_member {
            true => {
                let leave = Statement::leave_publication(&out_sql(source, &self.table));
                format!("let nothing of it be captured any more, {leave}")
            }
            false => format!(
                "read a publication that names its tables one by one, without {}: one FOR ALL TABLES or of a schema cannot \
                 leave out a table",
                self.table
            ),
        }
    }
}

impl Fault {
    fn why(self) -> &'static str {
        match self {
            Self::Nothing => "has REPLICA IDENTITY NOTHING",
            Self::Index => "has lost the index of its replica identity",
            Self::NoKey => "has no primary key and no replica identity",
            Self::Deferrable => "has a deferrable primary key, which is no replica identity",
            Self::InvalidIndex => "has a primary key whose index is invalid",
            Self::Virtual => "has REPLICA IDENTITY FULL and a virtual generated column",
            Self::Generated => "has a generated column in its replica identity that the publication does not pass on",
            Self::ColumnList => "has a replica identity that the publication's column list does not cover",
            Self::RowFilter => "is filtered in the publication by a column that is not of its replica identity",
        }
    }

    /// The way out that keeps the table's changes coming.
    fn mend(self, source: &SourceConfig, relation: &TableName) -> String {
        let publication = &source.publication;
        let (full, default) = (Statement::identity_full(relation, ""), Statement::identity_default(relation, ""));
        let keyed = "where there is a primary key that is not deferrable,";
        match self {
            Self::Nothing => format!("give it an identity, {full}\n{keyed} {default}"),
            Self::Index | Self::NoKey | Self::Deferrable | Self::InvalidIndex | Self::RowFilter => {
                format!("give it an identity, {full}")
            }
            Self::Virtual => {
                format!("give it an identity, {keyed} {default}")
            }
            Self::Generated => {
                format!("pass the column on, {}", Statement::pass_generated(publication))
            }
            Self::ColumnList => format!(
                "put the columns of its identity into the list of the publication {publication}\nor, {keyed} {default}"
            ),
        }
    }
}

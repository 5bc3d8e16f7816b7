//! The publication as the catalogue has it.

use std::collections::HashSet;

use tokio_postgres::{Client, Row};

use super::error::{PrepareError, bounded, misread};
use super::names::{ENCODING, Name, literal, strings};
use super::owners::{self, Owner};
use super::plan::Operations;
use super::unseen::{Question, Unseen, ask};
use crate::change::TableName;
use crate::config::SourceConfig;

/// The comment by which walhook knows a publication that it made for this slot, and from which it may take things away.
/// A publication may serve several slots; one that was made for another is only ever widened.
pub(super) fn mark(source: &SourceConfig) -> String {
    format!("made and maintained by walhook for the slot {}", source.slot)
}

/// A publication as it is.
#[derive(Debug, Clone)]
pub(crate) struct PublicationState {
    pub(crate) oid: u32,
    pub(crate) all_tables: bool,
    pub(crate) schemas: Vec<String>,
    pub(crate) operations: Operations,
    pub(crate) via_root: bool,
    /// It leaves out stored generated columns, which it could pass on (18).
    pub(crate) lacks_generated: bool,
    /// Made by walhook for this slot, by its comment.
    pub(crate) is_ours: bool,
    /// The role may change it.
    pub(crate) is_owned: bool,
    pub(crate) owner: Owner,
    /// Tables named one by one.
    pub(crate) members: Vec<TableName>,
    /// Tables of which only some rows or columns come.
    pub(crate) partial: Vec<TableName>,
    /// What of these could not be seen.
    pub(crate) unseen: Vec<Unseen>,
}

fn publication(version: u32) -> String {
    let lacks_generated = if version >= 180_000 { "p.pubgencols = 'n'" } else { "false" };
    format!(
        "
select p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot, p.pubowner, p.oid,
       {lacks_generated}
  from pg_publication p where p.pubname = $1"
    )
}

/// What only decides about changes to it.
fn questions(name: &str, mark: &str) -> [Question; 2] {
    let of_it = |what: &str| format!("select {what} from pg_publication where pubname = {}", literal(name));
    let comment = format!("coalesce(obj_description(oid, 'pg_publication') = {}, false)", literal(mark));
    [
        Question::new(
            "the publication's comment",
            of_it(&comment),
            "whether walhook made it; what no sink needs is not taken out of it",
        ),
        Question::new(
            "pg_has_role",
            of_it("pg_has_role(pubowner, 'USAGE')"),
            "whether the role may change the publication",
        ),
    ]
}

fn members(version: u32) -> String {
    let partial = if version >= 150_000 { "r.prqual is not null or r.prattrs is not null" } else { "false" };
    // Tables that are left out of FOR ALL TABLES, in versions to come.
    let excepted = match version {
        190_000.. => "coalesce((to_jsonb(r) ->> 'prexcept')::bool, false)",
        _ => "false",
    };
    format!(
        "
select convert_to(n.nspname::text, {ENCODING}), convert_to(c.relname::text, {ENCODING}),
       {partial}
  from pg_publication p
  join pg_publication_rel r on r.prpubid = p.oid and not {excepted}
  join pg_class c on c.oid = r.prrelid
  join pg_namespace n on n.oid = c.relnamespace
 where p.pubname = $1"
    )
}

fn schemas() -> String {
    format!(
        "
select convert_to(n.nspname::text, {ENCODING}) from pg_publication p join pg_publication_namespace s on s.pnpubid = p.oid
  join pg_namespace n on n.oid = s.pnnspid where p.pubname = $1"
    )
}

/// Reads the publication, if there is one of this name.
pub(crate) async fn read(
    client: &Client,
    source: &SourceConfig,
    version: u32,
) -> Result<Option<PublicationState>, PrepareError> {
    let (doing, name) = ("read the publication", &source.publication);
    let found = bounded(doing, client.query_opt(&publication(version), &[name])).await?;
    let Some(row) = found else { return Ok(None) };
    let mut answers = ask(client, doing, &questions(name, &mark(source))).await?;
    let members = bounded(doing, client.query(&members(version), &[name])).await?;
    let owner = owners::read(client).await?.owner(row.try_get(6).map_err(misread(doing))?);
    let schemas = match version {
        150_000.. => bounded(doing, client.query(&schemas(), &[name])).await?,
        _ => Vec::new(),
    };
    let whole = PublicationState {
        is_ours: answers.truth() == Some(true),
        // Where it is not known it is tried.
        is_owned: answers.truth() != Some(false),
        unseen: answers.unseen,
        owner,
        ..PublicationState::of_rows(&row, &schemas, &members).map_err(misread(doing))?
    };
    Ok(Some(whole))
}

impl PublicationState {
    /// As far as the catalogue's rows say.
    fn of_rows(row: &Row, schemas: &[Row], members: &[Row]) -> Result<Self, tokio_postgres::Error> {
        let schemas = schemas.iter().map(|row| row.try_get(0)).collect::<Result<Vec<Name>, _>>()?;
        let mut all = Self {
            all_tables: row.try_get(0)?,
            schemas: strings(schemas),
            operations: Operations {
                insert: row.try_get(1)?,
                update: row.try_get(2)?,
                delete: row.try_get(3)?,
                truncate: row.try_get(4)?,
            },
            via_root: row.try_get(5)?,
            oid: row.try_get(7)?,
            lacks_generated: row.try_get(8)?,
            is_ours: false,
            is_owned: false,
            unseen: Vec::new(),
            owner: Owner { name: String::new(), hindrance: None, may_create: true },
            members: Vec::new(),
            partial: Vec::new(),
        };
        for row in members {
            let (Name(schema), Name(table)) = (row.try_get(0)?, row.try_get(1)?);
            let table = TableName { schema, table };
            if row.try_get(2)? {
                all.partial.push(table.clone());
            }
            all.members.push(table);
        }
        Ok(all)
    }
}

/// Whether walhook made the publication for this slot, and whether the role may change it. What is not known of the second is
/// tried.
pub(super) async fn standing(client: &Client, source: &SourceConfig) -> Result<(bool, bool), PrepareError> {
    let questions = questions(&source.publication, &mark(source));
    let mut answers = ask(client, "read the publication", &questions).await?;
    Ok((answers.truth() == Some(true), answers.truth() != Some(false)))
}

impl PublicationState {
    /// Whether changes of the table come under its own name.
    pub(crate) fn covers(&self, table: &TableName) -> bool {
        // Not asked of pg_publication_tables, which waits for every table that is locked.
        self.members.contains(table) || self.is_of(table)
    }

    /// The same for many tables.
    pub(crate) fn coverage(&self) -> Coverage<'_> {
        Coverage { state: self, members: self.members.iter().collect() }
    }

    /// Whether it holds the table with its whole schema, or with everything.
    fn is_of(&self, table: &TableName) -> bool {
        self.all_tables || self.schemas.contains(&table.schema)
    }
}

/// What a publication holds, to be asked for thousands of tables.
pub(crate) struct Coverage<'a> {
    state: &'a PublicationState,
    members: HashSet<&'a TableName>,
}

impl Coverage<'_> {
    /// As [`PublicationState::covers`].
    pub(crate) fn has(&self, table: &TableName) -> bool {
        self.members.contains(table) || self.state.is_of(table)
    }
}

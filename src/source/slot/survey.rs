//! The tables of a database, with what decides whether and how their changes can be published.

use std::collections::{HashMap, HashSet};

use tokio_postgres::{Client, Row};

use super::error::{PrepareError, bounded, misread};
use super::names::{ENCODING, Name, is_nameless, strings};
use super::neighbours::{self, Ties};
use super::owners::{self, Owner};
use crate::change::{ReplicaIdentity, TableName};
use crate::source::advice::{self, Statement};
use crate::view::Trouble;

/// What a relation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelationKind {
    /// An ordinary table.
    Table,
    /// The root of partitions.
    Partitioned,
    /// A view or materialized view.
    View,
    /// A foreign table.
    Foreign,
}

/// One column, as far as publishing cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnFacts {
    /// Name.
    pub name: String,
    /// Computed when read (PG18), so never in the WAL.
    pub is_virtual: bool,
    /// Computed when written.
    pub is_stored: bool,
    /// Long values are kept out of line and not sent when unchanged.
    pub is_toastable: bool,
}

/// What a relation logs of old rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFacts {
    /// As set.
    pub setting: ReplicaIdentity,
    /// The columns old rows carry; `None` where there are none and UPDATE and DELETE fail once published.
    pub columns: Option<Vec<String>>,
}

/// One relation of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableFacts {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Name.
    pub name: TableName,
    /// What it is.
    pub kind: RelationKind,
    /// In the WAL: neither temporary nor unlogged.
    pub is_logged: bool,
    /// The role owns it, which adding it to a publication needs.
    pub is_owned: bool,
    /// Who owns it.
    pub owner: Owner,
    /// What publications ask of its identity, and of its partitions'.
    pub ties: Ties,
    /// The role may use its schema, which naming it needs.
    pub is_reachable: bool,
    /// Its own replica identity.
    pub identity: IdentityFacts,
    /// Columns of the primary key, in key order.
    pub primary_key: Vec<String>,
    /// Columns, in order.
    pub columns: Vec<ColumnFacts>,
    /// For a partition: the root under whose name its changes come.
    pub root: Option<TableName>,
    /// For a root: the partitions whose rows are in the WAL, each with an identity of its own.
    pub leaves: Vec<(TableName, IdentityFacts)>,
    /// For a root: the partitions whose rows are not, because they are unlogged or foreign.
    pub silent: Vec<TableName>,
    /// Tables that it inherits from, but for the one that it is a partition of.
    pub parents: Vec<TableName>,
}

/// Whether the role owns a relation, and may use its schema. Where the server does not say, it is taken to: what it may not do
/// is refused then.
const OWNED: [&str; 2] = ["pg_has_role(c.relowner, 'USAGE')", "has_schema_privilege(n.oid, 'USAGE')"];

/// Relations of all schemas but the system's and the sessions' own.
fn tables([owned, reachable]: [&str; 2]) -> String {
    format!(
        "
select c.oid, convert_to(n.nspname::text, {ENCODING}), convert_to(c.relname::text, {ENCODING}), c.relkind::text, c.relpersistence = 'p', c.relreplident::text,
       {owned},
       case when c.relispartition then pg_partition_root(c.oid)::oid end,
       coalesce(p.columns, '{{}}'), i.columns,
       coalesce(a.names, '{{}}'), coalesce(a.generated, '{{}}'), coalesce(a.toastable, '{{}}'),
       case when not c.relispartition then array(select h.inhparent from pg_inherits h where h.inhrelid = c.oid) else '{{}}' end,
       c.relowner, {reachable}
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  left join lateral (
    select array_agg(convert_to(a.attname::text, {ENCODING}) order by k.n) as columns
      from pg_index x, unnest(x.indkey) with ordinality k(attnum, n), pg_attribute a
     where x.indrelid = c.oid and x.indisprimary and k.n <= x.indnkeyatts
       and a.attrelid = c.oid and a.attnum = k.attnum) p on true
  left join lateral (
    select array_agg(convert_to(a.attname::text, {ENCODING}) order by k.n) as columns
      from pg_index x, unnest(x.indkey) with ordinality k(attnum, n), pg_attribute a
     where x.indrelid = c.oid and x.indisvalid and x.indisunique and x.indimmediate and x.indpred is null
       and k.n <= x.indnkeyatts and a.attrelid = c.oid and a.attnum = k.attnum
       and ((c.relreplident = 'd' and x.indisprimary) or (c.relreplident = 'i' and x.indisreplident))
    ) i on true
  left join lateral (
    select array_agg(convert_to(a.attname::text, {ENCODING}) order by a.attnum) as names,
           array_agg(a.attgenerated::text order by a.attnum) as generated,
           array_agg(a.attstorage <> 'p' order by a.attnum) as toastable
      from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) a on true
 where c.relkind in ('r', 'p', 'v', 'm', 'f')
   and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
 order by n.nspname, c.relname"
    )
}

/// Reads every relation.
pub(crate) async fn read(client: &Client) -> Result<Vec<TableFacts>, PrepareError> {
    let doing = "read the tables of the catalogue";
    let rows = match bounded(doing, client.query(&tables(OWNED), &[])).await {
        Err(error) if error.is_refusal() => bounded(doing, client.query(&tables(["true"; 2]), &[])).await?,
        rows => rows?,
    };
    let (roles, neighbours) = (owners::read(client).await?, neighbours::read(client).await?);
    let known = rows.iter().map(|row| Known::of_row(row, &roles, &neighbours)).collect::<Result<Vec<_>, _>>();
    Ok(related(known.map_err(misread(doing))?))
}

/// A table, and the OIDs of what it belongs to.
struct Known {
    table: TableFacts,
    root: Option<u32>,
    parents: Vec<u32>,
}

impl Known {
    fn of_row(
        row: &Row,
        roles: &owners::Roles,
        neighbours: &neighbours::Neighbours,
    ) -> Result<Self, tokio_postgres::Error> {
        let (owner, ties) = (roles.owner(row.try_get(14)?), neighbours.of(row.try_get(0)?));
        Ok(Self { table: TableFacts { owner, ties, ..table(row)? }, root: row.try_get(7)?, parents: row.try_get(13)? })
    }
}

/// Roots learn of their partitions, and children of their parents.
fn related(known: Vec<Known>) -> Vec<TableFacts> {
    let roots: Vec<Option<u32>> = known.iter().map(|known| known.root).collect();
    let (mut tables, mut all_parents) = (Vec::new(), Vec::new());
    for Known { table, parents, .. } in known {
        tables.push(table);
        all_parents.push(parents);
    }
    let by_oid: HashMap<u32, usize> = tables.iter().enumerate().map(|(at, table)| (table.oid, at)).collect();
    for (at, root) in roots.into_iter().enumerate() {
        let Some(root_at) = root.and_then(|root| by_oid.get(&root).copied()) else { continue };
        let root_name = tables.get(root_at).map(|root| root.name.clone());
        let Some(leaf) = tables.get_mut(at) else { continue };
        leaf.root = root_name;
        let (name, identity) = (leaf.name.clone(), leaf.identity.clone());
        let ties = leaf.ties.clone();
        let (is_silent, is_leaf) = (leaf.is_silent(), leaf.kind == RelationKind::Table);
        if let Some(root) = tables.get_mut(root_at) {
            root.silent.extend(is_silent.then(|| name.clone()));
            root.ties.join(&ties);
            root.leaves.extend((is_leaf && !is_silent).then_some((name, identity)));
        }
    }
    for (at, parents) in all_parents.into_iter().enumerate() {
        let names = parents.iter().filter_map(|parent| Some(tables.get(*by_oid.get(parent)?)?.name.clone())).collect();
        if let Some(child) = tables.get_mut(at) {
            child.parents = names;
        }
    }
    tables
}

fn table(row: &Row) -> Result<TableFacts, tokio_postgres::Error> {
    let names = strings(row.try_get(10)?);
    let generated: Vec<&str> = row.try_get(11)?;
    let toastable: Vec<bool> = row.try_get(12)?;
    let setting = match row.try_get::<_, &str>(5)? {
        "f" => ReplicaIdentity::Full,
        "n" => ReplicaIdentity::Nothing,
        "i" => ReplicaIdentity::Index,
        _ => ReplicaIdentity::Default,
    };
    let columns = match setting {
        ReplicaIdentity::Full => Some(names.clone()),
        ReplicaIdentity::Nothing => None,
        ReplicaIdentity::Default | ReplicaIdentity::Index => row.try_get::<_, Option<Vec<Name>>>(9)?.map(strings),
    };
    let (Name(schema), Name(table)) = (row.try_get(1)?, row.try_get(2)?);
    let flags = generated.into_iter().map(|how| (how == "v", how == "s")).zip(toastable);
    Ok(TableFacts {
        oid: row.try_get(0)?,
        name: TableName { schema, table },
        kind: match row.try_get::<_, &str>(3)? {
            "r" => RelationKind::Table,
            "p" => RelationKind::Partitioned,
            "f" => RelationKind::Foreign,
            _ => RelationKind::View,
        },
        is_logged: row.try_get(4)?,
        is_owned: row.try_get(6)?,
        owner: Owner { name: String::new(), hindrance: None, may_create: true },
        ties: Ties::default(),
        is_reachable: row.try_get(15)?,
        identity: IdentityFacts { setting, columns },
        primary_key: strings(row.try_get(8)?),
        columns: names
            .into_iter()
            .zip(flags)
            .map(|(name, ((is_virtual, is_stored), is_toastable))| ColumnFacts {
                name,
                is_virtual,
                is_stored,
                is_toastable,
            })
            .collect(),
        root: None,
        leaves: Vec::new(),
        silent: Vec::new(),
        parents: Vec::new(),
    })
}

/// Why a table cannot be published as it is, and what mends it: SQL with the role that may run it, as a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: String,
    pub(crate) sql: Option<String>,
}

impl Refusal {
    /// As it is told of a table for which nothing else is said.
    pub(crate) fn trouble(&self) -> Trouble {
        let advice = self.sql.clone().unwrap_or_else(|| "mend the database or the configuration".to_owned());
        Trouble { what: self.reason.clone(), advice }
    }
}

impl TableFacts {
    /// Holds rows that are not in the WAL.
    fn is_silent(&self) -> bool {
        self.kind == RelationKind::Foreign || (self.kind == RelationKind::Table && !self.is_logged)
    }

    /// Why a relation of this kind is never published by its own name.
    pub(crate) fn kind_refusal(&self) -> Option<Refusal> {
        let because = |reason: String| Some(Refusal { reason, sql: None });
        if let Some(root) = &self.root {
            return because(format!("{} is a partition; its changes come as {root}, so name that", self.name));
        }
        if is_nameless(&self.name) {
            return because(format!(
                "{} has a name that is no UTF-8 and cannot be named to the server; rename it",
                self.name
            ));
        }
        match self.kind {
            RelationKind::View => because(format!("{} is a view; only tables have changes in the WAL", self.name)),
            RelationKind::Foreign => because(format!("{} is a foreign table; read the server that has it", self.name)),
            RelationKind::Table | RelationKind::Partitioned if self.is_logged => None,
            RelationKind::Table => Some(Refusal {
                reason: format!("{} is unlogged, so its changes are not in the WAL", self.name),
                sql: Some(Statement::set_logged(&self.name, &self.owner.name).to_string()),
            }),
            // SET LOGGED does nothing to a partitioned table, up to 17 without a word.
            RelationKind::Partitioned => Some(Refusal {
                reason: format!(
                    "{} is a partitioned table made as UNLOGGED, which Postgres does not publish",
                    self.name
                ),
                sql: Some(
                    "make the partitioned table anew without UNLOGGED, and attach its partitions to it".to_owned(),
                ),
            }),
        }
    }

    /// Why UPDATE or DELETE on the table would start to fail once it is published with these actions.
    pub(crate) fn identity_refusal(&self) -> Option<Refusal> {
        // The server looks at the partitions' identities, not at the root's.
        let bare: Vec<&TableName> = match self.leaves.is_empty() && self.silent.is_empty() {
            true => self.identity.columns.is_none().then_some(&self.name).into_iter().collect(),
            false => {
                let without = self.leaves.iter().filter(|(_, identity)| identity.columns.is_none());
                without.map(|(name, _)| name).collect()
            }
        };
        if !bare.is_empty() {
            return Some(self.no_identity(&bare));
        }
        let is_full = |identity: &IdentityFacts| identity.setting == ReplicaIdentity::Full;
        let full = match self.leaves.is_empty() && self.silent.is_empty() {
            true => is_full(&self.identity),
            false => self.leaves.iter().any(|(_, identity)| is_full(identity)),
        };
        let computed = self.columns.iter().find(|column| full && column.is_virtual)?;
        Some(Refusal {
            reason: format!(
                "{} has REPLICA IDENTITY FULL and the virtual generated column {}: once it is published, its own UPDATE and \
                 DELETE fail",
                self.name, computed.name
            ),
            sql: Some(self.make_default()),
        })
    }

    fn no_identity(&self, bare: &[&TableName]) -> Refusal {
        let which = match self.identity.setting {
            ReplicaIdentity::Nothing => "has REPLICA IDENTITY NOTHING",
            ReplicaIdentity::Index => "has lost the index of its replica identity",
            ReplicaIdentity::Default if self.primary_key.is_empty() => "has no primary key and no replica identity",
            ReplicaIdentity::Default if self.leaves.is_empty() => {
                "has a deferrable primary key, which is no replica identity"
            }
            ReplicaIdentity::Default | ReplicaIdentity::Full => "has partitions without a replica identity",
        };
        Refusal {
            reason: format!("{} {which}: once it is published, its own UPDATE and DELETE fail", self.name),
            sql: Some(self.in_full(bare)),
        }
    }

    /// The columns that the old row of every delete carries, whichever partition it was in.
    pub(crate) fn carried(&self) -> HashSet<&str> {
        let own = self.identity.columns.iter().flatten().map(String::as_str);
        let in_leaves = |column: &&str| {
            let mut identities = self.leaves.iter().map(|(_, identity)| identity.columns.iter().flatten());
            identities.all(|mut columns| columns.any(|name| name == column))
        };
        own.filter(in_leaves).collect()
    }

    /// Whether the whole old row comes with every update and delete.
    pub(crate) fn is_full(&self) -> bool {
        let full = |identity: &IdentityFacts| identity.setting == ReplicaIdentity::Full;
        full(&self.identity) && self.leaves.iter().all(|(_, identity)| full(identity))
    }

    /// What makes old rows whole, in the partitions too.
    pub(crate) fn make_full(&self) -> String {
        let names: Vec<&TableName> =
            std::iter::once(&self.name).chain(self.leaves.iter().map(|(name, _)| name)).collect();
        self.in_full(&names)
    }

    /// The statements that make these tables' old rows whole, or what is better where whole rows break UPDATE and DELETE.
    fn in_full(&self, tables: &[&TableName]) -> String {
        if let Some(why) = self.breaks_in_full() {
            let key = Statement::primary_key(&self.name, &self.owner.name);
            return match self.primary_key.is_empty() {
                true => format!("not REPLICA IDENTITY FULL: {why}. Give it a primary key, {key}"),
                false => format!("not REPLICA IDENTITY FULL: {why}"),
            };
        }
        let alter = |name: &&TableName| Statement::identity_full(name, &self.owner.name);
        advice::text(&tables.iter().map(alter).collect::<Vec<_>>())
    }

    /// What makes the primary key the identity, or why that would not do.
    pub(crate) fn make_default(&self) -> String {
        if self.primary_key.is_empty() {
            let key = Statement::primary_key(&self.name, &self.owner.name);
            return format!("give it a primary key, {key}\nthen {}", self.identity_default());
        }
        match self.ties.filters.first() {
            Some(filter) => {
                let why = "old rows must have the columns of its row filter, or the table's own UPDATE and DELETE fail";
                format!("not REPLICA IDENTITY DEFAULT while the publication {filter} has the table: {why}")
            }
            None => self.identity_default().to_string(),
        }
    }

    fn identity_default(&self) -> Statement {
        Statement::identity_default(&self.name, &self.owner.name)
    }

    /// Why the table's own UPDATE and DELETE would fail with REPLICA IDENTITY FULL, now or once it is published.
    pub(crate) fn breaks_in_full(&self) -> Option<String> {
        let virtual_column = self.columns.iter().find(|column| column.is_virtual).map(|column| column.name.as_str());
        self.ties.break_full(virtual_column, self.columns.iter().any(|column| column.is_stored))
    }
}

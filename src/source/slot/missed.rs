//! What of the tables is not captured, as far as surveys show it. The decisions are pure.

use std::collections::{HashMap, HashSet};

use tokio_postgres::{Client, Row};
use tracing::{debug, warn};

use super::error::{PrepareError, bounded, misread};
use super::plan::Naming;
use super::portions::Learnt;
use super::publication::PublicationState;
use super::survey::{RelationKind, TableFacts};
use super::{Hold, Survey, Turn};
use crate::change::TableName;
use crate::fault::chain;
use crate::store::{NoteKey, NoteKind};
use crate::view::Trouble;

/// What of single tables is not captured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missed {
    /// Tables that are published only now.
    pub late: Late,
    /// What is not captured as long as it is as it is.
    pub standing: Vec<NoteKey>,
    /// Every table and partition, to be compared with those of the next look.
    pub relations: Vec<Relation>,
    /// Why tables that sinks take are not published by walhook as they are, by table; one that only waits its turn is not here.
    pub unfit: HashMap<TableName, Trouble>,
}

/// Tables that are published later than they should have been.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Late {
    /// Tables that a sink names, when the source has streamed: a name that was made anew, or taken over by another table.
    pub made_anew: Vec<TableName>,
    /// Tables that had been written to before.
    pub early: Vec<TableName>,
}

/// A relation, as far as it matters where its changes come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Name.
    pub name: TableName,
    /// The root that it is a partition of.
    pub root: Option<TableName>,
    /// It is published itself and a sink takes it; of a partition: its root.
    pub is_captured: bool,
    /// A sink takes it, and it had been written to before this look, at which it was not published.
    pub was_written: bool,
}

/// What a look learns from the one before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Moves {
    /// Captured tables that have another name now, which no sink takes.
    pub away: Vec<NoteKey>,
    /// Partitions of captured tables that were not captured before, with their OIDs.
    pub joined: Vec<(u32, NoteKey)>,
    /// Relations that were captured, then not, and are again.
    pub again: Vec<NoteKey>,
    /// Tables that are captured now and had been written to when they were not, as when their owner publishes them.
    pub early: Vec<NoteKey>,
}

impl Missed {
    /// Of a survey, when the publication was brought to the plan. `written` are tables that were not published before and had been
    /// written to.
    pub(super) fn new(survey: &Survey, turn: Turn, learnt: &Learnt, written: &[TableName]) -> Self {
        let names: HashSet<&TableName> = survey.streaming().map(|table| &table.name).collect();
        Self {
            late: survey.late(turn, learnt, written),
            standing: standing(&survey.tables, &names),
            relations: relations(&survey.tables, &names, written),
            unfit: survey.unfit(),
        }
    }
}

impl Survey {
    /// What of the tables that the steps add is late.
    pub(super) fn late(&self, turn: Turn, learnt: &Learnt, written: &[TableName]) -> Late {
        let added: HashSet<&TableName> = self.steps.added.iter().collect();
        let exact = self.plan.publish.iter().filter(|(_, naming)| *naming == Naming::Exact);
        let exact: HashSet<&TableName> = exact.map(|(table, _)| &table.name).collect();
        // One that was missing, or could not be published, from the start on has missed nothing but what is in it.
        let is_anew = |table: &&TableName| !turn.is_first() && exact.contains(table) && !learnt.has_waited(table);
        Late {
            made_anew: self.steps.added.iter().filter(is_anew).cloned().collect(),
            early: written.iter().filter(|table| added.contains(table) && !is_anew(table)).cloned().collect(),
        }
    }

    /// See [`Missed::unfit`].
    pub(crate) fn unfit(&self) -> HashMap<TableName, Trouble> {
        let refused = self.plan.refused.iter().map(|(table, refusal)| (table.clone(), refusal.trouble()));
        let held = self.steps.held.iter().filter(|held| held.hold != Hold::Table);
        refused.chain(held.map(|held| (held.table.clone(), held.trouble.clone()))).collect()
    }
}

/// Partitions and children of captured tables whose rows are not captured.
pub(crate) fn standing(tables: &[TableFacts], captured: &HashSet<&TableName>) -> Vec<NoteKey> {
    let by_name: HashMap<&TableName, &TableFacts> = tables.iter().map(|table| (&table.name, table)).collect();
    let note = |kind, table: &TableName, other: &TableName| NoteKey {
        other: Some(other.clone()),
        ..NoteKey::new(kind, table.clone())
    };
    let mut notes = Vec::new();
    for root in tables.iter().filter(|table| captured.contains(&table.name)) {
        for leaf in &root.silent {
            let is_foreign = by_name.get(leaf).is_some_and(|leaf| leaf.kind == RelationKind::Foreign);
            let kind = if is_foreign { NoteKind::ForeignPartition } else { NoteKind::UnloggedPartition };
            notes.push(note(kind, &root.name, leaf));
        }
    }
    for child in tables.iter().filter(|table| !table.parents.is_empty() && !captured.contains(&table.name)) {
        if let Some(ancestor) = captured_ancestor(child, &by_name, captured) {
            notes.push(note(NoteKind::Child, ancestor, &child.name));
        }
    }
    notes
}

/// The nearest captured table that it inherits from.
fn captured_ancestor<'a>(
    child: &'a TableFacts,
    by_name: &HashMap<&'a TableName, &'a TableFacts>,
    captured: &HashSet<&TableName>,
) -> Option<&'a TableName> {
    let mut seen: HashSet<&TableName> = HashSet::new();
    let mut next: Vec<&TableName> = child.parents.iter().collect();
    while !next.is_empty() {
        if let Some(found) = next.iter().find(|name| captured.contains(*name)) {
            return Some(*found);
        }
        seen.extend(&next);
        let above = next.iter().filter_map(|name| by_name.get(name)).flat_map(|table| &table.parents);
        next = above.filter(|name| !seen.contains(name)).collect();
    }
    None
}

fn relations(tables: &[TableFacts], captured: &HashSet<&TableName>, written: &[TableName]) -> Vec<Relation> {
    let written: HashSet<&TableName> = written.iter().collect();
    let has_rows = |table: &&TableFacts| matches!(table.kind, RelationKind::Table | RelationKind::Partitioned);
    let relation = |table: &TableFacts| Relation {
        oid: table.oid,
        name: table.name.clone(),
        root: table.root.clone(),
        is_captured: captured.contains(table.root.as_ref().unwrap_or(&table.name)),
        was_written: written.contains(&table.name) && !captured.contains(&table.name),
    };
    tables.iter().filter(has_rows).map(relation).collect()
}

/// Compares two looks. `captured` are the OIDs of what was captured at any look before; `takes` tells whether a sink takes a
/// table of that name.
pub(crate) fn moves(
    before: &[Relation],
    now: &[Relation],
    captured: &HashSet<u32>,
    takes: impl Fn(&TableName) -> bool,
) -> Moves {
    let by_oid: HashMap<u32, &Relation> = before.iter().map(|relation| (relation.oid, relation)).collect();
    // A look that a rename overtakes has the table by its old name, and the publication by the new one.
    let was_captured = |known: &Relation| known.is_captured || (captured.contains(&known.oid) && takes(&known.name));
    let mut moves = Moves::default();
    for relation in now {
        let known = by_oid.get(&relation.oid);
        let is_late = relation.is_captured && !known.is_some_and(|known| known.is_captured);
        // A root may have been renamed, or out for a while, and its partitions with it.
        let stayed = relation.root.is_some() && known.is_some_and(|known| known.root.is_some());
        match (&relation.root, known) {
            _ if stayed => {}
            _ if is_late && captured.contains(&relation.oid) => {
                moves.again.push(NoteKey::new(NoteKind::Interrupted, relation.name.clone()));
            }
            (None, Some(known)) if is_late && known.was_written => {
                moves.early.push(NoteKey::new(NoteKind::EarlyRows, relation.name.clone()));
            }
            (None, Some(known)) if was_captured(known) && known.root.is_none() && !takes(&relation.name) => {
                let key = NoteKey::new(NoteKind::RenamedAway, known.name.clone());
                moves.away.push(NoteKey { other: Some(relation.name.clone()), ..key });
            }
            (Some(root), _) if is_late => {
                let key = NoteKey::new(NoteKind::AttachedRows, root.clone());
                moves.joined.push((relation.oid, NoteKey { other: Some(relation.name.clone()), ..key }));
            }
            (None | Some(_), _) => {}
        }
    }
    moves
}

/// Of these relations the ones that have rows and became partitions later than they were made: by another transaction than the
/// one that made the relation's system columns, which no ALTER touches, or by ATTACH PARTITION in the same one. ATTACH writes
/// the table's columns anew by the command that makes it a partition, while CREATE TABLE … PARTITION OF writes them by an
/// earlier one (`CreateInheritance`, `DefineRelation` of 14 to 18). Its size asks for a lock, so what is locked against all is
/// left out.
const ATTACHED: &str = "
select c.oid
  from pg_class c
  join pg_inherits i on i.inhrelid = c.oid
  join pg_attribute a on a.attrelid = c.oid and a.attname = 'tableoid' and a.attnum < 0
 where c.oid = any ($1) and c.relkind = 'r'
   and (i.xmin <> a.xmin
        or exists (select from pg_attribute u
                    where u.attrelid = c.oid and u.attnum > 0 and u.xmin = i.xmin and u.cmin::text = i.cmin::text))
   and case when exists (select from pg_locks l where l.relation = c.oid and l.mode = 'AccessExclusiveLock')
        then false else pg_relation_size(c.oid) > 0 end";

/// Which of these partitions were attached with rows.
///
/// # Errors
/// When the server cannot be asked.
pub(crate) async fn attached_with_rows(client: &Client, oids: &[u32]) -> Result<HashSet<u32>, PrepareError> {
    let doing = "look at new partitions";
    numbers(doing, &bounded(doing, client.query(ATTACHED, &[&oids])).await?)
}

/// Of these relations, and of the partitions of them that are in the WAL, the ones that have pages, and so have had rows.
const WRITTEN: &str = "
with recursive tree (oid, top) as (
  select t.oid, t.oid from unnest($1::oid[]) t (oid)
  union
  select i.inhrelid, t.top
    from tree t join pg_class c on c.oid = t.oid and c.relkind = 'p' join pg_inherits i on i.inhparent = t.oid)
select distinct t.top
  from tree t join pg_class c on c.oid = t.oid and c.relkind = 'r' and c.relpersistence = 'p'
 where case when exists (select from pg_locks l where l.relation = c.oid and l.mode = 'AccessExclusiveLock')
        then false else pg_relation_size(c.oid) > 0 end";

impl Survey {
    /// Tables of the plan that are not published and have been written to: asked right before they are. Where that cannot be
    /// asked, all of them may have.
    pub(super) async fn written(&self, client: &Client) -> Vec<TableName> {
        let covered = self.publication.as_ref().map(PublicationState::coverage);
        let is_new = |table: &&TableFacts| covered.as_ref().is_none_or(|covered| !covered.has(&table.name));
        let new: Vec<&TableFacts> = self.plan.publish.iter().map(|(table, _)| table).filter(is_new).collect();
        let oids: Vec<u32> = new.iter().map(|table| table.oid).collect();
        let written = written(client, &oids).await.unwrap_or_else(|error| {
            warn!(error = %chain(&error), "it cannot be asked which of the tables to be published have rows");
            oids.iter().copied().collect()
        });
        new.into_iter().filter(|table| written.contains(&table.oid)).map(|table| table.name.clone()).collect()
    }

    /// Of tables that were published just now, those to which a transaction may have written before that still runs: what it
    /// wrote then does not come. Publishing waits for no writer.
    pub(super) async fn being_written(&self, client: &Client, added: &[TableName]) -> Vec<TableName> {
        let oid = |table: &TableName| self.oids.get(table).copied();
        let oids: Vec<u32> = added.iter().filter_map(oid).collect();
        if oids.is_empty() {
            return Vec::new();
        }
        let doing = "ask who writes to new tables";
        let asked = bounded(doing, client.query(BEING_WRITTEN, &[&oids])).await;
        let written = asked.and_then(|rows| numbers(doing, &rows)).unwrap_or_else(|error| {
            debug!(error = %chain(&error), "it cannot be asked who writes to new tables");
            HashSet::new()
        });
        added.iter().filter(|table| oid(table).is_some_and(|oid| written.contains(&oid))).cloned().collect()
    }
}

/// Of these relations the ones, with their partitions, that a transaction which runs has opened to write.
const BEING_WRITTEN: &str = "
with recursive tree (oid, top) as (
  select t.oid, t.oid from unnest($1::oid[]) t (oid)
  union
  select i.inhrelid, t.top
    from tree t join pg_class c on c.oid = t.oid and c.relkind = 'p' join pg_inherits i on i.inhparent = t.oid)
select distinct t.top
  from tree t join pg_locks l on l.relation = t.oid
 where l.locktype = 'relation' and l.mode = 'RowExclusiveLock' and l.granted
   and l.database = (select d.oid from pg_database d where d.datname = current_database())
   and l.pid is distinct from pg_backend_pid()";

/// The OIDs that are the first column.
fn numbers(doing: &'static str, rows: &[Row]) -> Result<HashSet<u32>, PrepareError> {
    rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(misread(doing))
}

/// Which of these tables have been written to. Needs no privilege on them.
///
/// # Errors
/// When the server cannot be asked.
async fn written(client: &Client, oids: &[u32]) -> Result<HashSet<u32>, PrepareError> {
    if oids.is_empty() {
        return Ok(HashSet::new());
    }
    let doing = "look at new tables";
    match bounded(doing, client.query(WRITTEN, &[&oids])).await {
        Ok(rows) => numbers(doing, &rows),
        // Not known is not none: what may have been missed is said.
        Err(error) if error.is_refusal() => Ok(oids.iter().copied().collect()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::ReplicaIdentity;
    use crate::source::slot::{IdentityFacts, Owner, Ties};

    fn named(table: &str) -> TableName {
        TableName { schema: "public".to_owned(), table: table.to_owned() }
    }

    fn facts(table: &str, parents: &[&str]) -> TableFacts {
        TableFacts {
            oid: 1,
            name: named(table),
            kind: RelationKind::Table,
            is_logged: true,
            is_owned: true,
            owner: Owner { name: "app".to_owned(), hindrance: None, may_create: true },
            ties: Ties::default(),
            is_reachable: true,
            identity: IdentityFacts { setting: ReplicaIdentity::Default, columns: None },
            primary_key: Vec::new(),
            columns: Vec::new(),
            root: None,
            leaves: Vec::new(),
            silent: Vec::new(),
            parents: parents.iter().map(|parent| named(parent)).collect(),
        }
    }

    #[test]
    fn silent_partitions_and_children_are_noted_of_the_captured_table_that_they_belong_to() {
        let root = TableFacts { silent: vec![named("leaf"), named("abroad")], ..facts("root", &[]) };
        let abroad = TableFacts { kind: RelationKind::Foreign, ..facts("abroad", &[]) };
        let other = TableFacts { silent: vec![named("x")], ..facts("other", &[]) };
        let tables = [
            root,
            facts("leaf", &[]),
            abroad,
            other,
            facts("parent", &[]),
            facts("child", &["parent"]),
            facts("grandchild", &["child", "unknown"]),
            facts("named", &["parent"]),
            facts("elsewhere", &["other"]),
        ];
        let [root, parent, child] = ["root", "parent", "named"].map(named);
        let captured = HashSet::from([&root, &parent, &child]);
        let seen: Vec<_> = standing(&tables, &captured)
            .into_iter()
            .map(|key| (key.kind, key.table.table, key.other.unwrap().table))
            .collect();
        let expected = [
            (NoteKind::UnloggedPartition, "root", "leaf"),
            (NoteKind::ForeignPartition, "root", "abroad"),
            (NoteKind::Child, "parent", "child"),
            (NoteKind::Child, "parent", "grandchild"),
        ];
        assert_eq!(seen, expected.map(|(kind, table, other)| (kind, table.to_owned(), other.to_owned())));
    }

    #[test]
    fn a_circle_of_parents_ends() {
        let tables = [facts("a", &["b"]), facts("b", &["a"])];
        assert_eq!(standing(&tables, &HashSet::new()), []);
    }

    fn relation(oid: u32, name: &str, root: Option<&str>, is_captured: bool) -> Relation {
        Relation { oid, name: named(name), root: root.map(named), is_captured, was_written: false }
    }

    #[test]
    fn a_captured_table_under_a_name_that_no_sink_takes_is_away_and_a_new_partition_has_joined() {
        let before = [
            relation(1, "orders", None, true),
            relation(2, "log", None, true),
            relation(3, "free", None, false),
            relation(4, "old_leaf", Some("root"), true),
            relation(5, "alone", None, true),
            relation(6, "dropped", None, true),
            Relation { was_written: true, ..relation(9, "owners", None, false) },
            Relation { was_written: true, ..relation(10, "still", None, false) },
            relation(11, "back", None, false),
            relation(12, "given_back", None, false),
            relation(13, "filled", None, false),
            relation(14, "log3", None, false),
            relation(15, "detached", None, false),
        ];
        let now = [
            relation(1, "orders_old", None, false),
            relation(2, "log2", None, true),
            relation(3, "free_old", None, false),
            relation(4, "old_leaf", Some("renamed_root"), true),
            relation(5, "alone", Some("root"), true),
            relation(7, "new_leaf", Some("root"), true),
            relation(8, "leaf_of_none", Some("other"), false),
            relation(9, "owners", None, true),
            relation(10, "still", None, false),
            relation(11, "back", Some("root"), true),
            relation(12, "given_back", None, true),
            relation(13, "filled", Some("root"), true),
            relation(14, "log_old", None, false),
            relation(15, "detached_old", None, false),
        ];
        let captured = HashSet::from([1, 2, 4, 5, 6, 11, 12, 14, 15]);
        let Moves { away, joined, early, again } =
            moves(&before, &now, &captured, |name| ["log2", "log3"].contains(&name.table.as_str()));
        let names = |key: &NoteKey| (key.table.table.clone(), key.other.clone().unwrap().table);
        assert_eq!(
            away.iter().map(names).collect::<Vec<_>>(),
            [("orders".into(), "orders_old".into()), ("log3".into(), "log_old".into())]
        );
        assert_eq!(early, [NoteKey::new(NoteKind::EarlyRows, named("owners"))]);
        let joined: Vec<_> = joined.iter().map(|(oid, key)| (*oid, names(key))).collect();
        let leaf = |name: &str| ("root".to_owned(), name.to_owned());
        // What was captured up to the last look under its own name has missed nothing.
        assert_eq!(joined, [(7, leaf("new_leaf")), (13, leaf("filled"))]);
        let interrupted = ["back", "given_back"].map(|table| NoteKey::new(NoteKind::Interrupted, named(table)));
        assert_eq!(again, interrupted);
    }
}

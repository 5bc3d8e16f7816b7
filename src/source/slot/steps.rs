//! Pure: what brings a publication to the plan, who does it, and which tables are left out meanwhile.

use std::collections::HashSet;

use super::by_hand::more_than_an_owner;
use super::names::{literal, quoted, quoted_table};
use super::plan::{Naming, Operations, Plan};
use super::publication::{PublicationState, mark};
use super::server::ServerFacts;
use super::survey::{RelationKind, TableFacts};
use super::takes::Takes;
use crate::change::TableName;
use crate::config::{SinkConfig, SourceConfig};
use crate::source::advice::{self, Statement};
use crate::view::Trouble;

/// Tables in one statement for a person to run: thousands at once may exhaust the server's table of locks.
const BY_HAND_MAX: usize = 500;
/// Tables that are named where a statement is only shown.
const SHOWN_MAX: usize = 8;

/// What holds a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// It, or the publication, belongs to another role.
    Owner,
    /// The publication is not walhook's to change.
    Publication,
    /// Something about the table.
    Table,
}

/// A table of the plan that is not published, although everything else may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) table: TableName,
    pub(crate) naming: Naming,
    pub(crate) hold: Hold,
    pub(crate) trouble: Trouble,
}

impl Held {
    /// Whether a sink names the table, and this is what holds it.
    pub(crate) fn is_named_by(&self, hold: Hold) -> bool {
        self.naming == Naming::Exact && self.hold == hold
    }
}

/// What brings a publication to the plan.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    /// Statements that make the publication, empty, or widen what it passes on. They run before any table is added.
    pub(crate) own: Vec<String>,
    /// Tables to add, those that a sink names first.
    pub(crate) added: Vec<TableName>,
    /// Members whose own UPDATE and DELETE would fail from the moment at which `own` is done: they are taken out before.
    pub(crate) endangered: Vec<TableName>,
    /// Statements by which the publication passes on less. Only a start runs them, and only a start takes out `removed`: while
    /// a stream runs, a table that no sink names may be one that a migration has renamed for a moment.
    pub(crate) narrowing: Vec<String>,
    /// Members that no sink names.
    pub(crate) removed: Vec<TableName>,
    /// Statements that a person has to run, because walhook may not change this publication, and nothing is read before.
    pub(crate) refused: Vec<String>,
    /// Tables that walhook cannot add, each for a reason of its own.
    pub(crate) held: Vec<Held>,
    /// Everything at once, for a person who would rather do it by hand.
    pub(crate) by_hand: Vec<String>,
    pub(crate) troubles: Vec<Trouble>,
}

/// What the steps are made of.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) tables: &'a [TableFacts],
    pub(crate) source: &'a SourceConfig,
    pub(crate) sinks: &'a [SinkConfig],
    pub(crate) server: &'a ServerFacts,
}

impl Steps {
    /// What is missing between `state` and the plan.
    pub(crate) fn new(state: Option<&PublicationState>, wanted: Wanted<'_>) -> Self {
        let mut steps = Self::default();
        match state {
            None => steps.create(wanted),
            Some(state) => steps.alter(state, wanted),
        }
        steps.place_tables(state, wanted);
        steps
    }

    fn create(&mut self, wanted: Wanted<'_>) {
        let Wanted { plan, source, server, .. } = wanted;
        // Generated columns are part of a row; without them REPLICA IDENTITY FULL would refuse updates (PG18).
        let generated = if server.version >= 180_000 { ", publish_generated_columns = stored" } else { "" };
        let (name, operations) = (quoted(&source.publication), plan.operations.parameter());
        let with = format!("WITH (publish = '{operations}', publish_via_partition_root = true{generated});");
        let comment = format!("COMMENT ON PUBLICATION {name} IS {};", literal(&mark(source)));
        let tables: Vec<TableName> = plan.publish.iter().map(|(table, _)| table.name.clone()).collect();
        let mut portions = tables.chunks(BY_HAND_MAX);
        let first = portions.next().map_or_else(String::new, |first| format!(" FOR TABLE {}", listed(first)));
        // One that a person makes stays the person's: walhook never takes anything out of it.
        self.by_hand = vec![format!("CREATE PUBLICATION {name}{first} {with}")];
        self.by_hand.extend(portions.map(|portion| add(source, portion)));
        match source.create {
            true => self.own = vec![format!("CREATE PUBLICATION {name} {with}"), comment],
            false => self.refused.clone_from(&self.by_hand),
        }
    }

    fn alter(&mut self, state: &PublicationState, wanted: Wanted<'_>) {
        let Wanted { plan, source, .. } = wanted;
        let name = quoted(&source.publication);
        let operations = state.operations.with(plan.operations);
        let mut parameters = Vec::new();
        if lacks_root(state, plan) {
            parameters.push("publish_via_partition_root = true".to_owned());
        }
        if operations != state.operations {
            parameters.push(format!("publish = '{}'", operations.parameter()));
        }
        // One that walhook made before the server was upgraded: under REPLICA IDENTITY FULL it would refuse updates.
        if state.lacks_generated && state.is_ours {
            parameters.push("publish_generated_columns = stored".to_owned());
        }
        if !parameters.is_empty() {
            self.own.push(format!("ALTER PUBLICATION {name} SET ({});", parameters.join(", ")));
        }
        self.by_hand.clone_from(&self.own);
        self.spare(state, operations, wanted);
        if may_change(state, wanted).is_err() {
            // Roots alone are held for themselves, as long as there is anything else to read.
            let is_of_roots = operations == state.operations && plan.publish.iter().any(|(table, _)| !is_root(table));
            let own = std::mem::take(&mut self.own).into_iter().filter(|_| !is_of_roots);
            self.refused = own.collect();
            self.endangered.clear();
        }
        if state.is_ours && may_change(state, wanted).is_ok() {
            self.narrow(state, wanted);
        }
        let named: HashSet<&TableName> = plan.publish.iter().map(|(facts, _)| &facts.name).collect();
        for table in state.partial.iter().filter(|table| named.contains(table)) {
            let what = format!("the publication {} passes on only some rows or columns of {table}", source.publication);
            let advice = "this is as its row filter or column list says; nothing else of the table can be delivered";
            self.troubles.push(Trouble { what, advice: advice.to_owned() });
        }
    }

    /// Members of the publication without an identity, where it is to pass on updates or deletes from now on.
    fn spare(&mut self, state: &PublicationState, operations: Operations, wanted: Wanted<'_>) {
        if state.operations.needs_identity() || !operations.needs_identity() {
            return;
        }
        let members: HashSet<&TableName> = state.members.iter().collect();
        let bare =
            wanted.tables.iter().filter(|table| members.contains(&table.name) && table.identity_refusal().is_some());
        self.endangered = bare.map(|table| table.name.clone()).collect();
        // A list or a filter that a person gave a table goes with it.
        let is_partial = self.endangered.iter().any(|table| state.partial.contains(table));
        if self.endangered.is_empty() || (state.is_ours && wanted.source.create && !is_partial) {
            return;
        }
        let publication = &wanted.source.publication;
        let what = format!(
            "the publication {publication} does not pass on updates and deletes, and is not made to: it holds {}, without an \
             identity for old rows, whose own UPDATE and DELETE would fail",
            shown(&self.endangered)
        );
        let sql = wanted.tables.iter().filter(|table| self.endangered.contains(&table.name));
        let sql: Vec<String> = sql.filter_map(|table| table.identity_refusal()?.sql).collect();
        self.troubles.push(Trouble { what, advice: sql.join("\n") });
        self.endangered.clear();
        self.own.clear();
    }

    /// Takes away what no sink of the source needs.
    fn narrow(&mut self, state: &PublicationState, wanted: Wanted<'_>) {
        let Wanted { plan, source, sinks, .. } = wanted;
        if state.operations.with(plan.operations) != plan.operations {
            let (name, less) = (quoted(&source.publication), plan.operations.parameter());
            self.narrowing.push(format!("ALTER PUBLICATION {name} SET (publish = '{less}');"));
        }
        let takes = Takes::all(sinks);
        let unnamed = |table: &&TableName| !takes.iter().any(|sink| sink.takes(table));
        // Once a sink named it again, a table that was taken out would come back without the list or filter that a person gave it.
        let is_whole = |table: &&TableName| !state.partial.contains(table);
        self.removed = state.members.iter().filter(unnamed).filter(is_whole).cloned().collect();
    }

    /// Sorts the tables of the plan that are not published into those that walhook adds and those that it cannot.
    fn place_tables(&mut self, state: Option<&PublicationState>, wanted: Wanted<'_>) {
        let Wanted { plan, source, .. } = wanted;
        if state.is_none() && !source.create {
            // By hand, all of them.
            return;
        }
        let covered = state.map(PublicationState::coverage);
        let (mut missing, mut uncovered) = (Vec::new(), Vec::new());
        for (table, naming) in &plan.publish {
            let is_covered = covered.as_ref().is_some_and(|covered| covered.has(&table.name));
            if is_covered && !(is_root(table) && state.is_some_and(|state| !state.via_root) && self.own.is_empty()) {
                continue;
            }
            uncovered.extend((!is_covered).then(|| table.name.clone()));
            match obstacle(table, state, wanted) {
                None if is_covered => {}
                None => missing.push((*naming, table.name.clone())),
                Some((hold, why, advice)) => {
                    let trouble = Trouble { what: format!("left out: {why}"), advice };
                    self.held.push(Held { table: table.name.clone(), naming: *naming, hold, trouble });
                }
            }
        }
        missing.sort_by_key(|(naming, _)| *naming == Naming::Pattern);
        self.added = missing.into_iter().map(|(_, table)| table).collect();
        if state.is_some() {
            self.by_hand.extend(uncovered.chunks(BY_HAND_MAX).map(|portion| add(source, portion)));
        }
    }

    /// Whether the publication holds what the sinks need, and nothing else.
    pub(crate) fn is_done(&self) -> bool {
        let lists = [&self.added, &self.removed, &self.endangered];
        lists.iter().all(|list| list.is_empty())
            && [&self.own, &self.narrowing, &self.refused].iter().all(|list| list.is_empty())
            && self.held.is_empty()
    }

    /// The statements that walhook runs, for a person to see, with the first few of the tables.
    pub(crate) fn announced(&self, source: &SourceConfig) -> String {
        let mut all = self.own.clone();
        all.extend(self.narrowing.iter().cloned());
        let name = quoted(&source.publication);
        let tables = [("ADD", &self.added), ("DROP", &self.removed)];
        let told = tables.iter().filter(|(_, tables)| !tables.is_empty());
        all.extend(told.map(|(verb, tables)| {
            let first = listed(tables.get(..SHOWN_MAX).unwrap_or(tables));
            match tables.len().saturating_sub(SHOWN_MAX) {
                0 => format!("ALTER PUBLICATION {name} {verb} TABLE {first};"),
                more => format!("ALTER PUBLICATION {name} {verb} TABLE {first} and {more} more;"),
            }
        }));
        all.join(" ")
    }
}

/// Why walhook does not change a publication that exists.
fn may_change(state: &PublicationState, wanted: Wanted<'_>) -> Result<(), (Hold, &'static str)> {
    if !wanted.source.create {
        return Err((Hold::Publication, "is not in the publication"));
    }
    if state.all_tables || !state.schemas.is_empty() {
        // Tables cannot be added beside FOR ALL TABLES, and a publication of schemas is a person's choice.
        return Err((Hold::Publication, "is not in the publication, which a person has made for whole schemas"));
    }
    if !state.is_owned {
        let why = "is not in the publication, which belongs to another role, so walhook cannot add it";
        return Err((Hold::Owner, why));
    }
    if wanted.server.in_recovery {
        return Err((Hold::Publication, "is not in the publication, which can be changed on the primary only"));
    }
    Ok(())
}

/// Why walhook cannot publish this one table, and what mends it.
fn obstacle(
    table: &TableFacts,
    state: Option<&PublicationState>,
    wanted: Wanted<'_>,
) -> Option<(Hold, String, String)> {
    let Wanted { plan, source, server, .. } = wanted;
    if let Some(state) = state {
        if let Err((hold, why)) = may_change(state, wanted) {
            if state.covers(&table.name) {
                let why = format!("{} would come under its partitions' names in the publication", table.name);
                return Some((hold, why, by_owner(source, "SET (publish_via_partition_root = true)")));
            }
            return Some((hold, format!("{} {why}", table.name), add_by_hand(table, source)));
        }
        let operations = state.operations.with(plan.operations);
        if let Some(refusal) = table.identity_refusal().filter(|_| operations.needs_identity()) {
            return Some((Hold::Table, refusal.reason, refusal.sql.unwrap_or_default()));
        }
    }
    if !table.is_owned {
        let why = "belongs to another role, so walhook cannot publish it";
        return Some((Hold::Owner, format!("{} {why}", table.name), let_publish(table, source, server)));
    }
    if !table.is_reachable {
        let (schema, role) = (&table.name.schema, &server.role);
        let why = format!("{} is in the schema {schema}, which the role {role} may not use", table.name);
        let grant = format!("GRANT USAGE ON SCHEMA {} TO {};", quoted(schema), quoted(role));
        return Some((Hold::Table, why, format!("as the owner of the schema, or a superuser: {grant}")));
    }
    None
}

/// What lets walhook publish a table that is not its role's.
fn let_publish(table: &TableFacts, source: &SourceConfig, server: &ServerFacts) -> String {
    match more_than_an_owner(&table.owner, &server.role) {
        Some(why) => format!("{why}. Instead, once the publication is there, {}", add_by_hand(table, source)),
        None => {
            let join = Statement::join_owner(&table.owner.name, &server.role, server.version);
            let inherit = Statement::inherit(&server.role, server.version).filter(|_| !server.inherits);
            advice::text(&std::iter::once(join).chain(inherit).collect::<Vec<_>>())
        }
    }
}

/// Takes the owner of the table and of the publication.
fn add_by_hand(table: &TableFacts, source: &SourceConfig) -> String {
    by_owner(source, &format!("ADD TABLE {}", listed(std::slice::from_ref(&table.name))))
}

fn by_owner(source: &SourceConfig, change: &str) -> String {
    let sql = format!("ALTER PUBLICATION {} {change};", quoted(&source.publication));
    Statement::change_publication("a superuser, or the owner of both", &sql).to_string()
}

fn is_root(table: &TableFacts) -> bool {
    table.kind == RelationKind::Partitioned
}

/// Whether a partitioned table of the plan would come under its partitions' names.
fn lacks_root(state: &PublicationState, plan: &Plan) -> bool {
    !state.via_root && plan.publish.iter().any(|(table, _)| is_root(table))
}

/// `ALTER PUBLICATION … ADD TABLE …;`
pub(crate) fn add(source: &SourceConfig, tables: &[TableName]) -> String {
    format!("ALTER PUBLICATION {} ADD TABLE {};", quoted(&source.publication), listed(tables))
}

/// `ALTER PUBLICATION … DROP TABLE …;`
pub(crate) fn drop(source: &SourceConfig, tables: &[TableName]) -> String {
    format!("ALTER PUBLICATION {} DROP TABLE {};", quoted(&source.publication), listed(tables))
}

fn listed(tables: &[TableName]) -> String {
    // ONLY, so that tables which inherit from one are published when a sink names them, not as a side effect.
    tables.iter().map(|table| format!("ONLY {}", quoted_table(table))).collect::<Vec<_>>().join(", ")
}

/// The first of these, and how many more there are.
pub(crate) fn shown(tables: &[TableName]) -> String {
    let first: Vec<String> = tables.iter().take(SHOWN_MAX).map(TableName::to_string).collect();
    match tables.len().saturating_sub(SHOWN_MAX) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

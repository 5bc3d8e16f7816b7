//! The publication: what it holds, and the SQL that makes it hold what the plan asks for.

use tokio_postgres::Client;

use super::by_hand::more_than_an_owner;
use super::error::{PrepareError, bounded};
use super::names::{ENCODING, Name, literal, quoted, quoted_table, strings};
use super::owners::{self, Owner};
use super::plan::{Naming, Operations, Plan};
use super::server::ServerFacts;
use super::survey::{RelationKind, TableFacts};
use super::unseen::{Question, Unseen, ask};
use crate::change::TableName;
use crate::config::{SinkConfig, SourceConfig};
use crate::source::advice::{self, Statement};
use crate::view::Trouble;

/// The comment by which walhook knows a publication that it made for this slot, and from which it may take things away.
/// A publication may serve several slots; one that was made for another is only ever widened.
pub(super) fn mark(source: &SourceConfig) -> String {
    format!("made and maintained by walhook for the slot {}", source.slot)
}

/// A publication as it is.
#[derive(Debug, Clone)]
pub(crate) struct PublicationState {
    pub(crate) all_tables: bool,
    pub(crate) schemas: Vec<String>,
    pub(crate) operations: Operations,
    pub(crate) via_root: bool,
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

/// What brings a publication to the plan.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    /// Statements that make or widen it, to run as one transaction.
    pub(crate) sql: Vec<String>,
    /// Statements that take away what no sink needs. Only a start runs them: while a stream runs, a table that no sink
    /// names may be one that a migration has renamed for a moment.
    pub(crate) narrowing: Vec<String>,
    pub(crate) added: Vec<TableName>,
    pub(crate) removed: Vec<TableName>,
    /// What needs a person, as SQL, because walhook may not change this publication.
    pub(crate) refused: Vec<String>,
    pub(crate) troubles: Vec<Trouble>,
}

const PUBLICATION: &str = "
select p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot, p.pubowner
  from pg_publication p where p.pubname = $1";

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
    let found = bounded(doing, client.query_opt(PUBLICATION, &[name])).await?;
    let Some(row) = found else { return Ok(None) };
    let mut answers = ask(client, doing, &questions(name, &mark(source))).await?;
    let members = bounded(doing, client.query(&members(version), &[name])).await?;
    let owner = owners::read(client).await?.owner(row.get(6));
    let schemas = match version {
        150_000.. => bounded(doing, client.query(&schemas(), &[name])).await?,
        _ => Vec::new(),
    };
    let table = |row: &tokio_postgres::Row| {
        let (Name(schema), Name(table)) = (row.get(0), row.get(1));
        TableName { schema, table }
    };
    Ok(Some(PublicationState {
        all_tables: row.get(0),
        schemas: strings(schemas.iter().map(|row| row.get(0)).collect()),
        operations: Operations { insert: row.get(1), update: row.get(2), delete: row.get(3), truncate: row.get(4) },
        via_root: row.get(5),
        is_ours: answers.truth() == Some(true),
        // Where it is not known it is tried.
        is_owned: answers.truth() != Some(false),
        unseen: answers.unseen,
        owner,
        members: members.iter().map(table).collect(),
        partial: members.iter().filter(|row| row.get(2)).map(table).collect(),
    }))
}

/// Runs the statements as one transaction. Waits for locks 5 s at most.
pub(crate) async fn apply(client: &Client, sql: &[&str]) -> Result<(), PrepareError> {
    // Several statements in one simple query are one transaction, rolled back as a whole. All they name has its schema;
    // the path is for event triggers of others that run with them.
    let batch = format!("SET LOCAL lock_timeout = '5s'; SET LOCAL search_path = \"$user\", public; {}", sql.join(" "));
    bounded("make or change the publication", client.batch_execute(&batch)).await
}

impl Steps {
    /// What is missing between `state` and `plan`.
    pub(crate) fn new(
        state: Option<&PublicationState>,
        plan: &Plan,
        source: &SourceConfig,
        sinks: &[SinkConfig],
        server: &ServerFacts,
    ) -> Self {
        match state {
            None => Self::create(plan, source, server),
            Some(state) => Self::alter(state, plan, source, sinks, server),
        }
    }

    fn create(plan: &Plan, source: &SourceConfig, server: &ServerFacts) -> Self {
        let mut steps = Self::default();
        // SQL for a person to run names every table; only what walhook does itself leaves out what it may not touch.
        let tables = match source.create {
            true => steps.addable(plan, source, server, |_| false),
            false => plan.publish.iter().map(|(table, _)| table.name.clone()).collect(),
        };
        let list = if tables.is_empty() { String::new() } else { format!(" FOR TABLE {}", listed(&tables)) };
        // Generated columns are part of a row; without them REPLICA IDENTITY FULL would refuse updates (PG18).
        let generated = if server.version >= 180_000 { ", publish_generated_columns = stored" } else { "" };
        let name = quoted(&source.publication);
        steps.sql = vec![format!(
            "CREATE PUBLICATION {name}{list} WITH (publish = '{}', publish_via_partition_root = true{generated});",
            plan.operations.parameter()
        )];
        if source.create {
            // One that a person makes stays the person's: walhook never takes anything out of it.
            steps.sql.push(format!("COMMENT ON PUBLICATION {name} IS {};", literal(&mark(source))));
        }
        steps.added = tables;
        steps.settle(source);
        steps
    }

    fn alter(
        state: &PublicationState,
        plan: &Plan,
        source: &SourceConfig,
        sinks: &[SinkConfig],
        server: &ServerFacts,
    ) -> Self {
        let mut steps = Self::default();
        let name = quoted(&source.publication);
        steps.added = steps.addable(plan, source, server, |table| state.covers(table));
        let mut parameters = Vec::new();
        if needs_root(state, plan) {
            parameters.push("publish_via_partition_root = true".to_owned());
        }
        let operations = state.operations.with(plan.operations);
        if operations != state.operations {
            parameters.push(format!("publish = '{}'", operations.parameter()));
        }
        if !parameters.is_empty() {
            steps.sql.push(format!("ALTER PUBLICATION {name} SET ({});", parameters.join(", ")));
        }
        if !steps.added.is_empty() {
            steps.sql.push(format!("ALTER PUBLICATION {name} ADD TABLE {};", listed(&steps.added)));
        }
        if state.is_ours && source.create {
            steps.narrow(state, plan, source, sinks);
        }
        for table in state.partial.iter().filter(|table| plan.publish.iter().any(|(facts, _)| facts.name == **table)) {
            let what = format!("the publication {} passes on only some rows or columns of {table}", source.publication);
            let advice = "this is as its row filter or column list says; nothing else of the table can be delivered";
            steps.troubles.push(Trouble { what, advice: advice.to_owned() });
        }
        if state.all_tables || !state.schemas.is_empty() {
            // Tables cannot be added beside FOR ALL TABLES, and a publication of schemas is a person's choice.
            steps.refuse();
        }
        steps.settle(source);
        steps
    }

    /// Takes away what no sink of the source needs.
    fn narrow(&mut self, state: &PublicationState, plan: &Plan, source: &SourceConfig, sinks: &[SinkConfig]) {
        let name = quoted(&source.publication);
        if state.operations.with(plan.operations) != plan.operations {
            self.narrowing.push(format!("ALTER PUBLICATION {name} SET (publish = '{}');", plan.operations.parameter()));
        }
        let unnamed = |table: &&TableName| !sinks.iter().any(|sink| sink.takes_table(table));
        self.removed = state.members.iter().filter(unnamed).cloned().collect();
        if !self.removed.is_empty() {
            self.narrowing.push(format!("ALTER PUBLICATION {name} DROP TABLE {};", listed(&self.removed)));
        }
    }

    /// Tables of the plan that are not published and may be added; the others become troubles or refusals.
    fn addable(
        &mut self,
        plan: &Plan,
        source: &SourceConfig,
        server: &ServerFacts,
        covered: impl Fn(&TableName) -> bool,
    ) -> Vec<TableName> {
        let mut tables = Vec::new();
        for (table, naming) in plan.publish.iter().filter(|(table, _)| !covered(&table.name)) {
            let (why, advice) = match (naming, source.create, table.is_owned) {
                (Naming::Exact, _, _) | (Naming::Pattern, true, true) => {
                    tables.push(table.name.clone());
                    continue;
                }
                (Naming::Pattern, true, false) => {
                    ("belongs to another role, so walhook cannot publish it", let_publish(table, source, server))
                }
                (Naming::Pattern, false, _) => ("is not in the publication", add_by_hand(table, source)),
            };
            self.troubles.push(Trouble { what: format!("left out: {} {why}", table.name), advice });
        }
        tables
    }

    /// Hands the statements to a person when the source only checks.
    fn settle(&mut self, source: &SourceConfig) {
        if !source.create {
            self.refuse();
        }
    }

    fn refuse(&mut self) {
        self.refused.append(&mut self.sql);
        self.narrowing.clear();
        self.added.clear();
        self.removed.clear();
    }
}

impl PublicationState {
    /// Whether changes of the table come under its own name.
    pub(crate) fn covers(&self, table: &TableName) -> bool {
        // Not asked of pg_publication_tables, which waits for every table that is locked.
        self.members.contains(table) || self.all_tables || self.schemas.contains(&table.schema)
    }
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
    let sql = format!("ALTER PUBLICATION {} ADD TABLE {};", quoted(&source.publication), only(&table.name));
    Statement::change_publication("a superuser, or the owner of both", &sql).to_string()
}

/// Whether a partitioned table of the plan would come under its partitions' names.
fn needs_root(state: &PublicationState, plan: &Plan) -> bool {
    !state.via_root && plan.publish.iter().any(|(table, _)| table.kind == RelationKind::Partitioned)
}

fn listed(tables: &[TableName]) -> String {
    // ONLY, so that tables which inherit from one are published when a sink names them, not as a side effect.
    tables.iter().map(only).collect::<Vec<_>>().join(", ")
}

fn only(table: &TableName) -> String {
    format!("ONLY {}", quoted_table(table))
}

//! Pure: which tables a source publishes for its sinks, and why the others are not.

use std::collections::{HashMap, HashSet};

use super::error::PlanFault;
use super::publication::{Coverage, PublicationState};
use super::survey::{ColumnFacts, Refusal, RelationKind, TableFacts};
use super::takes::Takes;
use crate::change::{ReplicaIdentity, TableName};
use crate::config::{Actions, GroupBy, MessageForm, SinkConfig, written};
use crate::source::advice::Statement;
use crate::view::Trouble;

/// Missing tables for which a similar name is looked for among all others.
const HINTS_MAX: usize = 20;

/// Kinds of change a publication passes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Operations {
    pub(crate) insert: bool,
    pub(crate) update: bool,
    pub(crate) delete: bool,
    pub(crate) truncate: bool,
}

impl Operations {
    /// What the sinks take of tables together; nothing if none has tables.
    pub(crate) fn of(sinks: &[SinkConfig]) -> Self {
        sinks.iter().filter(|sink| !sink.tables.is_empty()).map(taken).fold(Self::default(), |all, sink| Self {
            insert: all.insert || sink.insert,
            update: all.update || sink.update,
            delete: all.delete || sink.delete,
            truncate: all.truncate || sink.truncate,
        })
    }

    /// Both together.
    pub(crate) fn with(self, other: Self) -> Self {
        Self {
            insert: self.insert || other.insert,
            update: self.update || other.update,
            delete: self.delete || other.delete,
            truncate: self.truncate || other.truncate,
        }
    }

    /// The value of the publication's parameter `publish`.
    pub(crate) fn parameter(self) -> String {
        let words =
            [(self.insert, "insert"), (self.update, "update"), (self.delete, "delete"), (self.truncate, "truncate")];
        words.iter().filter(|(on, _)| *on).map(|(_, word)| *word).collect::<Vec<_>>().join(", ")
    }

    /// Whether old rows matter, so that every table needs a replica identity.
    pub(crate) fn needs_identity(self) -> bool {
        self.update || self.delete
    }
}

/// The actions of which a sink sends messages: a row message has nothing to say about a delete or a truncate.
pub(crate) fn taken(sink: &SinkConfig) -> Actions {
    let speaks = sink.message == MessageForm::Change;
    let Actions { delete, truncate, .. } = sink.actions;
    Actions { delete: delete && speaks, truncate: truncate && speaks, ..sink.actions }
}

/// What is to be published.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    /// Tables to publish, with whether a sink names them without a pattern.
    pub(crate) publish: Vec<(TableFacts, Naming)>,
    /// Kinds of change.
    pub(crate) operations: Operations,
    /// What a sink names and does not get.
    pub(crate) faults: Vec<PlanFault>,
    /// Why tables that sinks take are not published, by table.
    pub(crate) refused: HashMap<TableName, Refusal>,
    /// Tables that sinks name and the database does not have.
    pub(crate) missing: Vec<TableName>,
    /// Tables left out, and other things that do not stop the rest.
    pub(crate) troubles: Vec<Trouble>,
    /// Patterns that name no table, with their sinks.
    pub(crate) unmatched: Vec<(String, String)>,
    /// Which columns come at all.
    pub(crate) sent: Sent,
}

/// Which of the generated columns come with a row. Those that are computed when read never do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Sent {
    /// Those that are stored.
    #[default]
    Stored,
    /// None: the server is older than 18.
    NotYet,
    /// None: the publication leaves them out.
    LeftOut,
}

impl Sent {
    /// As the publication has it, or will have once it is made or altered.
    pub(crate) fn of(version: u32, publication: Option<&PublicationState>) -> Self {
        match publication {
            _ if version < 180_000 => Self::NotYet,
            Some(state) if state.lacks_generated && !state.is_ours => Self::LeftOut,
            Some(_) | None => Self::Stored,
        }
    }

    /// Why the column does not come.
    fn refusal(self, column: &ColumnFacts) -> Option<&'static str> {
        match self {
            _ if column.is_virtual => Some("virtual generated columns are never sent"),
            Self::NotYet if column.is_stored => Some("generated columns are not sent by this server (18 and later do)"),
            Self::LeftOut if column.is_stored => Some("the publication leaves out generated columns"),
            Self::Stored | Self::NotYet | Self::LeftOut => None,
        }
    }
}

/// How a table came into the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    /// A sink names exactly it.
    Exact,
    /// A pattern.
    Pattern,
}

impl Plan {
    /// Weighs every table against every sink. Of a table that is published without an identity nothing is said here: that its own
    /// writes fail is told by whoever looks at the publication (`identity`).
    pub(crate) fn new(tables: &[TableFacts], sinks: &[SinkConfig], covered: Option<&Coverage<'_>>, sent: Sent) -> Self {
        let mut plan = Self { operations: Operations::of(sinks), sent, ..Self::default() };
        let all = Takes::all(sinks);
        plan.look_up(&all, tables);
        let roots: HashMap<&TableName, bool> = tables
            .iter()
            .filter_map(|table| table.root.as_ref())
            .map(|root| (root, all.iter().any(|sink| sink.takes(root))))
            .collect();
        for table in tables {
            let takers: Vec<&Takes<'_>> = all.iter().filter(|sink| sink.takes(&table.name)).collect();
            if takers.is_empty() {
                continue;
            }
            match table.kind_refusal() {
                None if plan.is_harmed(table, covered) => {}
                None => plan.weigh(table, &takers),
                Some(refusal) => plan.other_kind(table, &takers, refusal, &roots),
            }
        }
        plan
    }

    /// Names written out in `tables` that the database does not have, and patterns without a table.
    fn look_up(&mut self, sinks: &[Takes<'_>], tables: &[TableFacts]) {
        let known: HashSet<&TableName> = tables.iter().map(|table| &table.name).collect();
        for sink in sinks {
            self.look_up_of(sink, tables, &known);
        }
    }

    fn look_up_of(&mut self, takes: &Takes<'_>, tables: &[TableFacts], known: &HashSet<&TableName>) {
        let sink = takes.sink;
        for pattern in &sink.tables {
            let name = TableName { schema: pattern.schema.clone(), table: pattern.table.clone() };
            if !pattern.is_exact() {
                if !tables.iter().any(|table| pattern.matches(&table.name)) {
                    self.unmatched.push((sink.name.clone(), name.to_string()));
                }
                continue;
            }
            if known.contains(&name) {
                continue;
            }
            let near = if self.faults.len() < HINTS_MAX { nearest(&name, tables) } else { None };
            let hint = near.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
            let reason = format!("the database has no table {name}{hint}");
            self.missing.push(name);
            self.faults.push(PlanFault { place: format!("sink.{}.tables", sink.name), reason, sql: None });
        }
        for (name, _) in &sink.group_by_table {
            if !takes.takes(name) {
                let reason = format!("the sink does not take {name}, so its group_by does nothing");
                let advice = format!("remove {}", written::section(&sink.name, name));
                self.troubles.push(Trouble { what: reason, advice });
            }
        }
    }

    fn is_harmed(&self, table: &TableFacts, covered: Option<&Coverage<'_>>) -> bool {
        self.operations.needs_identity()
            && covered.is_some_and(|covered| covered.has(&table.name))
            && table.identity_refusal().is_some()
    }

    /// Publishes the table, or says why not.
    fn weigh(&mut self, table: &TableFacts, takers: &[&Takes<'_>]) {
        let identity = table.identity_refusal().filter(|_| self.operations.needs_identity());
        let sent = self.sent;
        let group =
            |takes: &&Takes<'_>| Some((takes.sink.name.clone(), "group_by", group_refusal(table, takes.sink, sent)?));
        let mut refusals: Vec<(String, &str, Refusal)> = takers.iter().filter_map(group).collect();
        if let Some(refusal) = identity {
            // The identity comes first, and once: it is the table's fault, whoever takes it.
            let place = takers.iter().find(|takes| takes.names(&table.name)).or(takers.first());
            refusals = place.map(|takes| (takes.sink.name.clone(), "tables", refusal)).into_iter().collect();
        }
        let is_named = takers.iter().any(|takes| takes.names(&table.name));
        let naming = if is_named { Naming::Exact } else { Naming::Pattern };
        if refusals.is_empty() {
            self.publish.push((table.clone(), naming));
        }
        self.refused.extend(refusals.first().map(|(_, _, refusal)| (table.name.clone(), refusal.clone())));
        for (sink, key, refusal) in refusals {
            match naming {
                Naming::Exact => self.fault(&sink, key, refusal),
                Naming::Pattern => self.leave_out(refusal),
            }
        }
        if !table.leaves.is_empty() && table.primary_key.is_empty() && self.operations.needs_identity() {
            self.troubles.push(Trouble {
                what: format!(
                    "{} has no primary key: UPDATE and DELETE on partitions made from now on will fail",
                    table.name
                ),
                advice: Statement::primary_key(&table.name, &table.owner.name).to_string(),
            });
        }
    }

    fn other_kind(
        &mut self,
        table: &TableFacts,
        takers: &[&Takes<'_>],
        refusal: Refusal,
        roots: &HashMap<&TableName, bool>,
    ) {
        self.refused.insert(table.name.clone(), refusal.clone());
        let named: Vec<&&Takes<'_>> = takers.iter().filter(|takes| takes.names(&table.name)).collect();
        for takes in &named {
            self.fault(&takes.sink.name, "tables", refusal.clone());
        }
        let orphan = table.root.as_ref().is_some_and(|root| roots.get(root) == Some(&false));
        let silent = matches!(table.kind, RelationKind::View | RelationKind::Foreign);
        if named.is_empty() && (orphan || (table.root.is_none() && !silent)) {
            self.leave_out(refusal);
        }
    }

    fn fault(&mut self, sink: &str, key: &str, refusal: Refusal) {
        let place = format!("sink.{sink}.{key}");
        self.faults.push(PlanFault { place, reason: refusal.reason, sql: refusal.sql });
    }

    fn leave_out(&mut self, refusal: Refusal) {
        let advice = refusal.sql.unwrap_or_else(|| "name other tables in the sink's tables".to_owned());
        self.troubles.push(Trouble { what: format!("left out: {}", refusal.reason), advice });
    }
}

/// Why the sink cannot group the table's changes.
fn group_refusal(table: &TableFacts, sink: &SinkConfig, sent: Sent) -> Option<Refusal> {
    let (columns, of_key): (Vec<&str>, bool) = match sink.group_rule(&table.name) {
        GroupBy::Table | GroupBy::None => return None,
        GroupBy::PrimaryKey => (table.primary_key.iter().map(String::as_str).collect(), true),
        GroupBy::Columns(columns) => (columns.iter().map(String::as_str).collect(), false),
    };
    let has = |name: &&&str| table.columns.iter().any(|column| column.name == **name);
    if let Some(missing) = columns.iter().find(|name| !has(name)) {
        let reason = format!("{} has no column {missing} to group by", table.name);
        return Some(Refusal { reason, sql: None });
    }
    // Of a key that has such a column the others are what rows are grouped by.
    let of_group = table.columns.iter().filter(|column| !of_key && columns.contains(&column.name.as_str()));
    if let Some((column, why)) = of_group.filter_map(|column| Some((column, sent.refusal(column)?))).next() {
        let reason = format!("{} cannot be grouped by {}: {why}", table.name, column.name);
        return Some(Refusal { reason, sql: None });
    }
    let actions = taken(sink);
    let carried = table.carried();
    let lost: Vec<&str> = columns.into_iter().filter(|name| !carried.contains(name)).collect();
    if lost.is_empty() || !(actions.update || actions.delete) {
        return None;
    }
    let sql = match (of_key, table.identity.setting) {
        (true, ReplicaIdentity::Index) if table.leaves.is_empty() => table.make_default(),
        _ => table.make_full(),
    };
    let what = if of_key { "its primary key's" } else { "group_by" };
    Some(Refusal {
        reason: format!(
            "the old rows of {}'s updates and deletes do not carry {what} {}, so their group would be unknown",
            table.name,
            lost.join(", ")
        ),
        sql: Some(sql),
    })
}

/// The existing table whose name is nearest, if it is near.
fn nearest<'a>(wanted: &TableName, tables: &'a [TableFacts]) -> Option<&'a TableName> {
    let text = wanted.to_string().to_lowercase();
    let distance = |table: &TableFacts| {
        let whole = strsim::damerau_levenshtein(&table.name.to_string().to_lowercase(), &text);
        let same_table = table.name.table.eq_ignore_ascii_case(&wanted.table);
        if same_table { whole.min(1) } else { whole }
    };
    let near = tables.iter().map(|table| (distance(table), &table.name)).min_by_key(|(distance, _)| *distance)?;
    (near.0 <= 1 + text.len() / 6).then_some(near.1)
}

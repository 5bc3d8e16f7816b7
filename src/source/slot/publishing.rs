//! Brings the publication to the plan, table by table where it must be: what keeps one table from it keeps no other.

use std::collections::HashMap;
use std::time::Instant;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tracing::{info, warn};

use super::error::{Passing, PrepareError, STATEMENT_LIMIT, bounded};
use super::lockers::{Locker, Lockers};
use super::plan::Naming;
use super::portions::{Budget, Failure, Learnt, Portion, Portions};
use super::steps::{self, Held, Hold};
use super::{Survey, Turn};
use crate::change::TableName;
use crate::config::SourceConfig;
use crate::fault::chain;
use crate::view::Trouble;

/// What was done, and what was not.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// Tables that are published from now on.
    pub(super) added: Vec<TableName>,
    /// Tables to be added that had been written to before.
    pub(super) written: Vec<TableName>,
    /// Tables of the plan that are not published.
    pub(super) held: Vec<Held>,
    /// What keeps the publication as a whole from the plan.
    pub(super) faults: Vec<Trouble>,
    /// Tables that could not be taken out.
    pub(super) troubles: Vec<Trouble>,
    /// There was more to do than a turn has time for.
    pub(super) is_unfinished: bool,
}

/// A publication to change.
#[derive(Clone, Copy)]
pub(super) struct Publishing<'a> {
    pub(super) client: &'a Client,
    pub(super) source: &'a SourceConfig,
    pub(super) survey: &'a Survey,
    pub(super) turn: Turn,
    pub(super) budget: Budget,
}

/// What is done with a table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Add,
    Drop,
}

impl Publishing<'_> {
    /// Makes the publication, or changes what it passes on; whether anything was to be done.
    pub(super) async fn settle(&self, learnt: &mut Learnt) -> Result<bool, PrepareError> {
        let (source, steps) = (self.source, &self.survey.steps);
        if !steps.refused.is_empty() {
            let what = format!("the publication {} does not hold what the sinks need", source.publication);
            let advice = self.survey.refused(source);
            let before = if self.survey.server.in_recovery { "on the primary, " } else { "" };
            return Err(PrepareError::lasting(what, format!("{before}{advice}")));
        }
        let narrowing = steps.narrowing.iter().filter(|_| self.turn.is_first());
        let sql: Vec<&str> = steps.own.iter().chain(narrowing).map(String::as_str).collect();
        if sql.is_empty() {
            return Ok(false);
        }
        if self.survey.server.in_recovery {
            let what = format!(
                "the publication {} has to be made or changed, but the server is a standby",
                source.publication
            );
            let by_hand = self.survey.by_hand(source, &steps.by_hand);
            return Err(PrepareError::lasting(what, format!("on the primary, {by_hand}")));
        }
        let spared = self.change(Verb::Drop, &steps.endangered, learnt).await?;
        if let Some((table, trouble)) = spared.failed.first().cloned().or_else(|| spared.rest.first().cloned()) {
            let what = format!(
                "the publication {} does not pass on updates and deletes yet: {table}, whose own would fail, is to be taken \
                 out first: {}",
                source.publication, trouble.what
            );
            return Err(PrepareError::lasting(what, trouble.advice));
        }
        // Several statements in one simple query are one transaction, rolled back as a whole.
        let batch = format!("{} {}", local_settings("5s"), sql.join(" "));
        bounded("make or change the publication", self.client.batch_execute(&batch)).await?;
        info!(source = source.name, publication = source.publication, "publication made or changed: {}", sql.join(" "));
        Ok(true)
    }

    /// Adds and takes out tables, as far as that goes.
    pub(super) async fn fill(&self, learnt: &mut Learnt) -> Result<Published, PrepareError> {
        let steps = &self.survey.steps;
        let mut published = Published::default();
        let added = self.change(Verb::Add, &steps.added, learnt).await?;
        published.take_added(added, &self.namings());
        let removed: Vec<TableName> = match self.turn.is_first() {
            true => steps.removed.clone(),
            false => steps.removed.iter().filter(|table| learnt.is_leftover(table)).cloned().collect(),
        };
        let removed = self.change(Verb::Drop, &removed, learnt).await?;
        learnt.leave_over(removed.failed.iter().chain(&removed.rest).map(|(table, _)| table.clone()).collect());
        published.take_removed(removed);
        Ok(published)
    }

    fn namings(&self) -> HashMap<&TableName, Naming> {
        self.survey.plan.publish.iter().map(|(table, naming)| (&table.name, *naming)).collect()
    }

    /// A turn with all these tables.
    async fn change(&self, verb: Verb, tables: &[TableName], learnt: &mut Learnt) -> Result<Changed, PrepareError> {
        let mut changed = Changed::default();
        if tables.is_empty() {
            return Ok(changed);
        }
        let budget = self.budget.with_wait(self.survey.server.lock_wait);
        let mut lockers = self.lockers(tables).await;
        let locked = tables.iter().filter(|table| self.locker(&lockers, table).is_some()).cloned().collect();
        let mut portions = Portions::new(tables.to_vec(), &locked, learnt, budget, Instant::now());
        while let Some(portion) = portions.next(Instant::now()) {
            let Err(error) = self.try_portion(verb, &portion).await? else {
                portions.done(&portion);
                changed.done.extend(portion.tables);
                continue;
            };
            let failure = match verdict(&error) {
                Verdict::Whole => return Err(Passing::Query { doing: verb.doing(), source: error }.into()),
                Verdict::Memory => Failure::Memory,
                Verdict::Table => Failure::Refused,
                Verdict::Locked => {
                    lockers = self.lockers(tables).await;
                    if let Some(locker) = &lockers.publication {
                        changed.fault = Some(self.publication_locked(locker));
                        break;
                    }
                    let is_locked = |table: &&TableName| self.locker(&lockers, table).is_some();
                    Failure::Locked(portion.tables.iter().filter(is_locked).cloned().collect())
                }
            };
            let is_gone = is_gone(verb, &error);
            if let Some(table) = portions.failed(portion, failure).filter(|_| !is_gone) {
                let trouble = self.trouble(verb, &table, &lockers, Some(&error));
                changed.failed.push((table, trouble));
            }
        }
        let (rest, is_full) = portions.rest();
        changed.is_full = is_full;
        changed.rest = rest
            .into_iter()
            .map(|table| {
                let trouble = match is_full {
                    true => without_room(verb, &table),
                    false => self.trouble(verb, &table, &lockers, None),
                };
                (table, trouble)
            })
            .collect();
        self.log(verb, &changed.done);
        Ok(changed)
    }

    fn log(&self, verb: Verb, tables: &[TableName]) {
        let SourceConfig { name, publication, .. } = self.source;
        let shown = steps::shown(tables);
        match verb {
            _ if tables.is_empty() => {}
            Verb::Add => info!(source = name, publication, tables = tables.len(), "published: {shown}"),
            Verb::Drop => {
                warn!(
                    source = name,
                    publication,
                    tables = tables.len(),
                    "no longer published, for no sink takes it as it is: {shown}"
                );
            }
        }
    }

    async fn try_portion(
        &self,
        verb: Verb,
        portion: &Portion,
    ) -> Result<Result<(), tokio_postgres::Error>, PrepareError> {
        let statement = match verb {
            Verb::Add => steps::add(self.source, &portion.tables),
            Verb::Drop => steps::drop(self.source, &portion.tables),
        };
        let batch = format!("{} {statement}", local_settings(&format!("{}ms", portion.wait.as_millis().max(1))));
        match tokio::time::timeout(STATEMENT_LIMIT, self.client.batch_execute(&batch)).await {
            Ok(done) => Ok(done),
            Err(_) => Err(Passing::Timeout { doing: verb.doing() }.into()),
        }
    }

    async fn lockers(&self, tables: &[TableName]) -> Lockers {
        let oids: Vec<u32> = tables.iter().filter_map(|table| self.survey.oids.get(table).copied()).collect();
        let publication = self.survey.publication.as_ref().map_or(0, |state| state.oid);
        Lockers::ask(self.client, &oids, publication).await
    }

    fn locker<'a>(&self, lockers: &'a Lockers, table: &TableName) -> Option<&'a Locker> {
        lockers.of(*self.survey.oids.get(table)?)
    }

    fn publication_locked(&self, locker: &Locker) -> Trouble {
        Trouble {
            what: format!("the publication {} cannot be changed: {locker} has locked it", self.source.publication),
            advice: "it is tried again by itself, and changed once that transaction has ended".to_owned(),
        }
    }

    /// Why it stays as it is.
    fn trouble(
        &self,
        verb: Verb,
        table: &TableName,
        lockers: &Lockers,
        error: Option<&tokio_postgres::Error>,
    ) -> Trouble {
        let state = verb.state();
        if let Some(locker) = self.locker(lockers, table) {
            return Trouble {
                what: format!("{table} {state}: {locker} has locked it"),
                advice: format!("it is {} by itself, some seconds after that transaction has ended", verb.done()),
            };
        }
        let advice = "it is tried again by itself".to_owned();
        match error.and_then(tokio_postgres::Error::as_db_error) {
            Some(server) => {
                let hint = server.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
                Trouble { what: format!("{table} {state}: {}{hint}", server.message()), advice }
            }
            None => Trouble { what: format!("{table} {state}: there are more than one look has time for"), advice },
        }
    }
}

/// What became of the tables of one turn.
#[derive(Debug, Default)]
struct Changed {
    done: Vec<TableName>,
    failed: Vec<(TableName, Trouble)>,
    rest: Vec<(TableName, Trouble)>,
    fault: Option<Trouble>,
    is_full: bool,
}

impl Published {
    /// Nothing could be done.
    pub(super) fn of_fault(fault: Trouble) -> Self {
        Self { faults: vec![fault], ..Self::default() }
    }

    fn take_added(&mut self, changed: Changed, namings: &HashMap<&TableName, Naming>) {
        let held = |(table, trouble): (TableName, Trouble)| {
            let naming = namings.get(&table).copied().unwrap_or(Naming::Pattern);
            Held { table, naming, hold: Hold::Table, trouble }
        };
        self.is_unfinished = !changed.rest.is_empty() && !changed.is_full && !changed.done.is_empty();
        self.added = changed.done;
        // Where the publication itself is locked, one word says it.
        let rest = changed.rest.into_iter().filter(|_| changed.fault.is_none());
        self.held = changed.failed.into_iter().chain(rest).map(held).collect();
        self.faults.extend(changed.fault);
    }

    fn take_removed(&mut self, changed: Changed) {
        let rest = changed.rest.into_iter().filter(|_| changed.fault.is_none());
        self.troubles.extend(changed.failed.into_iter().chain(rest).map(|(_, trouble)| trouble));
        self.troubles.extend(changed.fault.filter(|fault| !self.faults.contains(fault)));
    }
}

impl Verb {
    fn doing(self) -> &'static str {
        match self {
            Self::Add => "add tables to the publication",
            Self::Drop => "take tables out of the publication",
        }
    }

    fn state(self) -> &'static str {
        match self {
            Self::Add => "is not published yet",
            Self::Drop => "is still published",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Add => "published",
            Self::Drop => "taken out",
        }
    }
}

/// All that the statements name has its schema; the path is for event triggers of others that run with them.
fn local_settings(lock_timeout: &str) -> String {
    format!("SET LOCAL lock_timeout = '{lock_timeout}'; SET LOCAL search_path = \"$user\", public;")
}

fn without_room(verb: Verb, table: &TableName) -> Trouble {
    Trouble {
        what: format!("{table} {}: the server has no room for one more lock (out of shared memory)", verb.state()),
        advice: "it is tried again by itself; if that lasts, raise max_locks_per_transaction, which needs a restart of the server"
            .to_owned(),
    }
}

/// What a server's error says of a portion.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// A lock was not to be had.
    Locked,
    /// It was too much at once.
    Memory,
    /// Something about one of its tables.
    Table,
    /// Nothing can be done with any.
    Whole,
}

fn verdict(error: &tokio_postgres::Error) -> Verdict {
    let Some(code) = error.code() else { return Verdict::Whole };
    if *code == SqlState::LOCK_NOT_AVAILABLE || *code == SqlState::T_R_DEADLOCK_DETECTED {
        Verdict::Locked
    } else if *code == SqlState::OUT_OF_MEMORY {
        Verdict::Memory
    } else if is_of_all(code) {
        Verdict::Whole
    } else {
        Verdict::Table
    }
}

/// Whether the error is of the session or the server, so that the next table would meet it too; or whether somebody else has
/// just added a table, so that it is better to look anew. Any other may come from an event trigger that minds one table.
fn is_of_all(code: &SqlState) -> bool {
    let of_all = [SqlState::READ_ONLY_SQL_TRANSACTION, SqlState::DUPLICATE_OBJECT];
    of_all.contains(code) || ["08", "57P", "58"].iter().any(|class| code.code().starts_with(class))
}

/// Whether another session made or changed the same thing at the same time.
pub(super) fn is_race(error: &PrepareError) -> bool {
    let PrepareError::Passing(Passing::Query { source: error, .. }) = error else { return false };
    let Some(server) = error.as_db_error() else { return false };
    let code = server.code();
    *code == SqlState::DUPLICATE_OBJECT
        || *code == SqlState::UNIQUE_VIOLATION
        || (*code == SqlState::INTERNAL_ERROR && server.message().starts_with("tuple concurrently"))
}

/// The table is not there any more, or not in the publication; the next look finds what is.
fn is_gone(verb: Verb, error: &tokio_postgres::Error) -> bool {
    let is_out = verb == Verb::Drop && error.code() == Some(&SqlState::UNDEFINED_OBJECT);
    let gone = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];
    is_out || error.code().is_some_and(|code| gone.contains(code))
}

/// For whom the whole publication waits, where that is why it could not be changed.
pub(super) async fn whole_fault(publishing: &Publishing<'_>, error: PrepareError) -> Trouble {
    let is_locked = matches!(&error, PrepareError::Passing(Passing::Query { source, .. })
        if source.code() == Some(&SqlState::LOCK_NOT_AVAILABLE));
    if is_locked && let Some(locker) = publishing.lockers(&[]).await.publication {
        return publishing.publication_locked(&locker);
    }
    let error = publishing.survey.with_grants(error, publishing.source);
    warn!(source = publishing.source.name, error = %chain(&error), "the publication could not be changed");
    error.into_trouble()
}

//! Slot and publication: looked at, made, maintained.
//!
//! [`prepare`] brings a database to where it can be read: it finds the tables the sinks name, refuses what would hurt
//! (above all a table whose own UPDATE would start to fail once published), brings the publication to the plan and makes
//! the slot after it, because a publication younger than the slot can never be read. [`maintain`] adds tables that are
//! made later, and takes none away: only [`prepare`] does. [`inspect`] says how far the slot is and whether the server still has it.
//!
//! Nothing here reads the stream, and nothing drops a slot that was ever complete. A caller that has progress of its own
//! asks [`inspect`] before [`prepare`], because `prepare` makes a slot that is missing.

mod creation;
mod error;
pub(crate) mod names;
pub(crate) mod plan;
pub(crate) mod publication;
pub(crate) mod server;
mod state;
pub(crate) mod survey;
#[cfg(test)]
pub(crate) mod tests;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tracing::{info, warn};

pub use self::error::{Passing, PlanFault, PrepareError};
pub use self::state::{SlotFacts, inspect};
pub use self::survey::{ColumnFacts, IdentityFacts, RelationKind, TableFacts};

use self::error::bounded;
use self::plan::Plan;
use self::publication::{PublicationState, Steps};
use self::server::ServerFacts;
use self::state::{create_sql, drop_sql};
use crate::change::{Lsn, TableName};
use crate::config::{SinkConfig, SourceConfig};
use crate::view::Trouble;

/// How often a step is tried again when another session made or changed the same thing at the same time.
const RACES_MAX: usize = 3;

/// A source that can be read.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Where the slot goes on.
    pub confirmed: Lsn,
    /// From where the server keeps WAL.
    pub restart: Lsn,
    /// `server_version_num`: 150018 is 15.18.
    pub server_version: u32,
    /// The tables whose changes will come.
    pub tables: Vec<TableFacts>,
    /// What does not stop the stream.
    pub troubles: Vec<Trouble>,
    /// The slot was made just now.
    pub created: bool,
}

/// What [`maintain`] did and found.
#[derive(Debug, Clone, Default)]
pub struct Maintained {
    /// Tables that a pattern matches and that are published from now on.
    pub added: Vec<TableName>,
    /// All that is wrong now and does not stop the stream; those of before are void.
    pub troubles: Vec<Trouble>,
}

/// Everything read of a database for one source, and what it would take to prepare it. Changes nothing.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) server: ServerFacts,
    pub(crate) plan: Plan,
    pub(crate) publication: Option<PublicationState>,
    pub(crate) steps: Steps,
    pub(crate) slot: Option<SlotFacts>,
}

/// Reads what [`prepare`] decides by.
pub(crate) async fn survey(
    client: &Client,
    source: &SourceConfig,
    sinks: &[SinkConfig],
) -> Result<Survey, PrepareError> {
    let server = server::read(client).await?;
    let tables = survey::read(client).await?;
    let plan = Plan::new(&tables, sinks);
    let publication = publication::read(client, source, server.version).await?;
    let steps = Steps::new(publication.as_ref(), &plan, source, sinks, server.version);
    let slot = inspect(client, &source.slot).await?;
    Ok(Survey { server, plan, publication, steps, slot })
}

/// Makes publication and slot ready, or with `create = false` checks that they are. `sinks` are those of this source.
///
/// Every statement but the making of the slot is given up after 30 s; that one waits for the transactions that run, says
/// for which every 10 s, and may be given up by dropping the future.
///
/// # Errors
/// Sorted by who has to act, see [`PrepareError`].
pub async fn prepare(client: &Client, source: &SourceConfig, sinks: &[SinkConfig]) -> Result<Prepared, PrepareError> {
    make_ready(client, source, sinks, Turn::First).await
}

/// The same for a source that has streamed from the slot before: a slot that is missing now has lost changes and is not
/// made anew; what of the configuration no longer fits the database, or cannot be published now, is a trouble, not the end.
///
/// # Errors
/// As [`prepare`], without [`PrepareError::Config`].
pub async fn prepare_again(
    client: &Client,
    source: &SourceConfig,
    sinks: &[SinkConfig],
) -> Result<Prepared, PrepareError> {
    make_ready(client, source, sinks, Turn::Again).await
}

/// Bounds every later statement of a session on the server too: one that is only given up on this side would go on there,
/// and the session with it, for as long as somebody locks what it needs.
///
/// # Errors
/// When the server cannot be asked.
pub async fn limit_statements(client: &Client) -> Result<(), PrepareError> {
    // Shorter than [`bounded`], so that the server is first.
    let limits = "SET statement_timeout = '25s'; SET lock_timeout = '5s'";
    bounded("limit the time of statements", client.batch_execute(limits)).await
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    First,
    Again,
}

async fn make_ready(
    client: &Client,
    source: &SourceConfig,
    sinks: &[SinkConfig],
    turn: Turn,
) -> Result<Prepared, PrepareError> {
    limit_statements(client).await?;
    let (survey, unpublished) = publish_all(client, source, sinks, turn).await?;
    let mut created = false;
    if survey.slot.as_ref().is_none_or(SlotFacts::is_half_made) {
        created = make_slot(client, source, &survey).await.map_err(|error| survey.with_grants(error, source))?;
    }
    let slot = inspect(client, &source.slot).await?;
    let gone = || PrepareError::lasting(format!("the slot {} is gone again", source.slot), "find out who drops it");
    let slot = slot.ok_or_else(gone)?;
    let (Some(confirmed), Some(restart)) = (slot.confirmed, slot.restart) else {
        return Err(busy(&slot));
    };
    let troubles = survey.troubles(source).into_iter().chain(unpublished).collect();
    let tables = survey.published();
    Ok(Prepared { confirmed, restart, server_version: survey.server.version, tables, troubles, created })
}

/// Surveys and publishes, again where another session was quicker. A source that streamed before streams on with what is
/// published already; what keeps the rest from it is its trouble.
async fn publish_all(
    client: &Client,
    source: &SourceConfig,
    sinks: &[SinkConfig],
    turn: Turn,
) -> Result<(Survey, Option<Trouble>), PrepareError> {
    let mut races = 0;
    loop {
        let mut survey = survey(client, source, sinks).await?;
        survey.fit(source, turn)?;
        match publish(client, source, &survey, turn).await {
            Ok(()) => return Ok((survey, None)),
            Err(error) if is_race(&error) && races < RACES_MAX => races += 1,
            Err(error) if turn == Turn::First => return Err(survey.with_grants(error, source)),
            Err(error) => {
                survey.steps.added.clear();
                let trouble = survey.with_grants(error, source).into_trouble();
                return Ok((survey, Some(trouble)));
            }
        }
    }
}

/// Adds tables that patterns match and that can be published; run it from time to time. With `create = false` it only
/// says which are missing. What keeps them from the publication is a trouble.
///
/// # Errors
/// When the server cannot be asked, or the publication is gone.
pub async fn maintain(
    client: &Client,
    source: &SourceConfig,
    sinks: &[SinkConfig],
) -> Result<Maintained, PrepareError> {
    let mut survey = survey(client, source, sinks).await?;
    if survey.publication.is_none() {
        return Err(publication_gone(source));
    }
    let mut troubles = survey.troubles(source);
    if let Err(error) = publish(client, source, &survey, Turn::Again).await {
        survey.steps.added.clear();
        // Whoever was quicker made what was to be made.
        if !is_race(&error) {
            troubles.push(survey.with_grants(error, source).into_trouble());
        }
    }
    Ok(Maintained { added: survey.steps.added, troubles })
}

/// Writes a record that nobody reads, so that an idle database's slot can move on. Does nothing on a standby.
///
/// # Errors
/// When the server cannot be asked.
pub async fn heartbeat(client: &Client) -> Result<(), PrepareError> {
    let statement = "select case when not pg_is_in_recovery() \
                     then pg_logical_emit_message(false, 'walhook:heartbeat', '')::text end";
    bounded("write a heartbeat", client.query_one(statement, &[])).await.map(drop)
}

/// Brings the publication to the plan; what is in it beyond that goes only before the first stream.
async fn publish(client: &Client, source: &SourceConfig, survey: &Survey, turn: Turn) -> Result<(), PrepareError> {
    let steps = &survey.steps;
    let narrowing = steps.narrowing.iter().filter(|_| turn == Turn::First);
    let sql: Vec<&str> = steps.sql.iter().chain(narrowing).map(String::as_str).collect();
    if !steps.refused.is_empty() {
        return Err(PrepareError::lasting(
            format!("the publication {} does not hold what the sinks need", source.publication),
            steps.refused.join("\n"),
        ));
    }
    if sql.is_empty() {
        return Ok(());
    }
    if survey.server.in_recovery {
        let what =
            format!("the publication {} has to be made or changed, but the server is a standby", source.publication);
        return Err(PrepareError::lasting(what, format!("on the primary: {}", sql.join("\n"))));
    }
    publication::apply(client, &sql).await?;
    for table in &steps.added {
        info!(source = source.name, publication = source.publication, %table, "table published");
    }
    for table in steps.removed.iter().filter(|_| turn == Turn::First) {
        warn!(source = source.name, publication = source.publication, %table, "table no longer published: no sink names it");
    }
    Ok(())
}

async fn make_slot(client: &Client, source: &SourceConfig, survey: &Survey) -> Result<bool, PrepareError> {
    if !source.create {
        let what = format!("the slot {} does not exist, and create = false", source.slot);
        return Err(PrepareError::lasting(what, create_sql(&source.slot)));
    }
    if survey.slot.as_ref().is_some_and(SlotFacts::is_half_made) {
        warn!(source = source.name, slot = source.slot, "dropping a slot whose making was given up");
        bounded("drop a half-made slot", client.batch_execute(&drop_sql(&source.slot))).await?;
    }
    creation::create(client, source, survey.server.in_recovery).await
}

impl Survey {
    /// Whether database and configuration fit, before anything is changed.
    fn fit(&self, source: &SourceConfig, turn: Turn) -> Result<(), PrepareError> {
        self.server.usable()?;
        if turn == Turn::First && !self.plan.faults.is_empty() {
            return Err(PrepareError::Config(self.plan.faults.clone()));
        }
        let slot = match &self.slot {
            Some(slot) => slot,
            None if turn == Turn::Again => return Err(slot_gone(source)),
            None => return Ok(()),
        };
        if let Some(Trouble { what, advice }) = slot.obstacle(&source.slot, &self.server.database) {
            return Err(PrepareError::Lasting { what, advice });
        }
        if turn == Turn::Again && slot.is_half_made() {
            return Err(slot_gone(source));
        }
        if slot.active_pid.is_some() {
            return Err(busy(slot));
        }
        if self.publication.is_none() && !slot.is_half_made() {
            return Err(publication_gone(source));
        }
        Ok(())
    }

    /// Everything that does not stop the stream.
    pub(crate) fn troubles(&self, source: &SourceConfig) -> Vec<Trouble> {
        let slot = self.slot.as_ref().and_then(|slot| slot.warning(&source.slot));
        let fault = |fault: &PlanFault| Trouble {
            what: format!("{}: {}", fault.place, fault.reason),
            advice: fault.sql.clone().unwrap_or_else(|| "mend the configuration".to_owned()),
        };
        let faults = self.plan.faults.iter().map(fault);
        self.plan.troubles.iter().chain(&self.steps.troubles).cloned().chain(faults).chain(slot).collect()
    }

    /// The tables of the plan that are, or with its steps will be, published.
    fn published(&self) -> Vec<TableFacts> {
        let left_out = |table: &&TableFacts| {
            let covered = self.publication.as_ref().is_some_and(|state| state.covers(&table.name));
            covered || self.steps.added.contains(&table.name)
        };
        self.plan.publish.iter().map(|(table, _)| table).filter(left_out).cloned().collect()
    }

    /// Says which grants are missing, where the error is a missing privilege.
    fn with_grants(&self, error: PrepareError, source: &SourceConfig) -> PrepareError {
        let PrepareError::Passing(Passing::Query { doing, source: cause }) = &error else { return error };
        match cause.as_db_error() {
            Some(server) if *server.code() == SqlState::INSUFFICIENT_PRIVILEGE => {
                PrepareError::lasting(format!("could not {doing}: {}", server.message()), self.grants(source))
            }
            Some(_) | None => error,
        }
    }

    /// SQL, for an owner or superuser, that lets the role do what the steps need.
    pub(crate) fn grants(&self, source: &SourceConfig) -> String {
        let role = names::quoted(&self.server.role);
        let mut grants = Vec::new();
        if !self.server.may_replicate {
            grants.push(self.server.grant_replication());
        }
        if self.publication.is_none() && !self.server.may_create {
            grants.push(self.server.grant_create());
        }
        if self.publication.as_ref().is_some_and(|state| !state.is_owned) {
            grants.push(format!("ALTER PUBLICATION {} OWNER TO {role};", names::quoted(&source.publication)));
        }
        let foreign =
            self.plan.publish.iter().filter(|(table, _)| !table.is_owned && self.steps.added.contains(&table.name));
        grants.extend(
            foreign.map(|(table, _)| format!("ALTER TABLE {} OWNER TO {role};", names::quoted_table(&table.name))),
        );
        let by_hand = self.steps.sql.join("\n");
        let or = format!("or, as their owner, make the publication by hand and set create = false:\n{by_hand}");
        grants.push(or);
        grants.join("\n")
    }
}

fn busy(slot: &SlotFacts) -> PrepareError {
    PrepareError::Busy { pid: slot.active_pid, application_name: slot.active_application.clone() }
}

fn slot_gone(source: &SourceConfig) -> PrepareError {
    PrepareError::lasting(
        format!("the slot {} is gone: the changes since its last confirmation can no longer be read", source.slot),
        "find out who dropped it; restarting walhook makes a new one that begins then: compare the receivers' data with \
         the tables",
    )
}

fn publication_gone(source: &SourceConfig) -> PrepareError {
    PrepareError::lasting(
        format!(
            "the slot {} exists but the publication {} does not; a publication made now is younger than the slot, which \
             could then never be read past the changes in between",
            source.slot, source.publication
        ),
        format!(
            "{} then start walhook again, which makes both anew; changes that are not delivered yet are lost, so backfill \
             the tables",
            drop_sql(&source.slot)
        ),
    )
}

/// Whether another session made or changed the same thing at the same time.
fn is_race(error: &PrepareError) -> bool {
    let PrepareError::Passing(Passing::Query { source, .. }) = error else { return false };
    let code = source.code();
    code == Some(&SqlState::DUPLICATE_OBJECT) || code == Some(&SqlState::UNIQUE_VIOLATION)
}

//! Slot and publication: looked at, made, maintained.
//!
//! [`prepare`] brings a database to where it can be read: it finds the tables the sinks name, refuses what would hurt
//! (above all a table whose own UPDATE would start to fail once published), brings the publication to the plan and makes
//! the slot after it, because a publication younger than the slot can never be read. [`maintain`] adds tables that are
//! made later, and takes none away: only [`prepare`] does. [`inspect`] says how far the slot is and whether the server still has it.
//!
//! Nothing here reads the stream, and nothing drops a slot that can still be read. A caller that has progress of its own
//! asks [`look`] before [`prepare`], because `prepare` makes a slot that is missing.

pub(crate) mod by_hand;
pub(crate) mod creation;
mod error;
pub(crate) mod identity;
mod lockers;
pub(crate) mod missed;
pub(crate) mod names;
pub(crate) mod neighbours;
pub(crate) mod owners;
pub(crate) mod plan;
pub(crate) mod portions;
pub(crate) mod publication;
mod publishing;
pub(crate) mod rooms;
pub(crate) mod running;
pub(crate) mod server;
mod state;
mod steps;
pub(crate) mod survey;
mod synchronous;
pub(crate) mod takes;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod unseen;
mod verdict;

use std::collections::HashMap;

use tokio_postgres::Client;

pub use self::error::{LostSlot, Passing, PlanFault, PrepareError};
pub use self::missed::Missed;
pub use self::neighbours::Ties;
pub use self::owners::Owner;
pub use self::state::{SlotFacts, inspect};
pub use self::survey::{ColumnFacts, IdentityFacts, RelationKind, TableFacts};

use self::error::{bounded, misread};
use self::plan::{Plan, Sent};
use self::portions::Budget;
pub use self::portions::Learnt;
use self::publication::PublicationState;
use self::publishing::{Published, Publishing, is_race, whole_fault};
use self::server::ServerFacts;
pub(crate) use self::server::whose;
pub(crate) use self::steps::{Held, Hold};
use self::steps::{Steps, Wanted};
use self::unseen::{Question, ask};
pub(crate) use self::verdict::folded;
use self::verdict::{Outcome, busy, publication_went};
use crate::change::{Lsn, TableName};
use crate::config::{SinkConfig, SourceConfig, UnchangedToast};
use crate::source::ahead::Ahead;
use crate::view::Trouble;

/// How often a database is surveyed in one turn: after the publication was made or changed, and when another session made or
/// changed the same thing at the same time.
const ROUNDS_MAX: usize = 5;

/// Told while [`prepare`] waits for transactions before it can make the slot, and `None` when that is over.
pub type Report<'a> = &'a (dyn Fn(Option<Trouble>) + Sync);

/// A source, and a session with its database.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site<'a> {
    pub(crate) client: &'a Client,
    pub(crate) source: &'a SourceConfig,
    /// Of this source.
    pub(crate) sinks: &'a [SinkConfig],
}

/// A source that can be read.
#[derive(Debug, Clone, Default)]
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
    /// The same where changes of a table stand still or are lost.
    pub errors: Vec<Trouble>,
    /// What of single tables is not captured.
    pub missed: Missed,
    /// The slot was made just now.
    pub created: bool,
    /// The server is a standby.
    pub in_recovery: bool,
    /// Standbys are to keep a copy of the slot, and do not: `ALTER_REPLICATION_SLOT` makes them.
    pub wants_copies: bool,
    /// The role may do more than it should, which is said once, at the start.
    pub overpowered: Option<Trouble>,
    /// For [`maintain`].
    pub learnt: Learnt,
}

/// What [`maintain`] did and found.
#[derive(Debug, Clone, Default)]
pub struct Maintained {
    /// Tables that a pattern matches and that are published from now on.
    pub added: Vec<TableName>,
    /// All that is wrong now and does not stop the stream; those of before are void.
    pub troubles: Vec<Trouble>,
    /// As in [`Prepared`].
    pub errors: Vec<Trouble>,
    /// As in [`Prepared`].
    pub missed: Missed,
    /// A table that a sink names is not published, or one could not be, so that the next look should come soon.
    pub is_incomplete: bool,
    /// There were more tables than one look has time for.
    pub is_unfinished: bool,
}

/// Everything read of a database for one source, and what it would take to prepare it. Changes nothing.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) server: ServerFacts,
    pub(crate) tables: Vec<TableFacts>,
    pub(crate) plan: Plan,
    pub(crate) publication: Option<PublicationState>,
    pub(crate) steps: Steps,
    pub(crate) slot: Option<SlotFacts>,
    /// A sink takes logical messages, which need no table.
    pub(crate) hears: bool,
    /// Sinks that read tables again (`unchanged_toast = "fetch"`).
    pub(crate) fetching: Vec<String>,
    /// Of every relation.
    pub(crate) oids: HashMap<TableName, u32>,
}

/// Reads what [`prepare`] decides by.
pub(crate) async fn survey(
    client: &Client,
    source: &SourceConfig,
    sinks: &[SinkConfig],
) -> Result<Survey, PrepareError> {
    let read = async {
        let server = server::read(client).await?;
        let tables = survey::read(client).await?;
        let publication = publication::read(client, source, server.version).await?;
        let covered = publication.as_ref().map(PublicationState::coverage);
        let sent = Sent::of(server.version, publication.as_ref());
        let plan = Plan::new(&tables, sinks, covered.as_ref(), sent);
        let wanted = Wanted { plan: &plan, tables: &tables, source, sinks, server: &server };
        let steps = Steps::new(publication.as_ref(), wanted);
        let slot = inspect(client, &source.slot).await?;
        let oids = tables.iter().map(|table| (table.name.clone(), table.oid)).collect();
        let hears = sinks.iter().any(|sink| !sink.messages.is_empty());
        let fetches = |sink: &&SinkConfig| sink.unchanged_toast == UnchangedToast::Fetch;
        let fetching = sinks.iter().filter(fetches).map(|sink| sink.name.clone()).collect();
        Ok(Survey { server, tables, plan, publication, steps, slot, hears, fetching, oids })
    };
    // Without any of these nothing can be read.
    read.await.map_err(|error: PrepareError| error.with_grant(&source.url.user))
}

/// The slot as it is, once [`prepare`] would not refuse what it finds. Changes nothing.
///
/// # Errors
/// As [`prepare`].
pub async fn look(
    client: &Client,
    source: &SourceConfig,
    sinks: &[SinkConfig],
) -> Result<Option<SlotFacts>, PrepareError> {
    limit_statements(client).await?;
    let survey = survey(client, source, sinks).await?;
    survey.fit(source, Turn::First { replaces: false })?;
    Ok(survey.slot)
}

/// Makes publication and slot ready, or with `create = false` checks that they are. `ahead` notes what will have been missed of
/// the tables that are published.
///
/// Every statement but the making of the slot is given up after 30 s; that one waits for the transactions that run, tells
/// `report` for which after 2 s and then every 10 s, and may be given up by dropping the future.
///
/// # Errors
/// Sorted by who has to act, see [`PrepareError`].
pub(crate) async fn prepare(
    site: Site<'_>,
    report: Report<'_>,
    ahead: Option<&mut Ahead<'_>>,
) -> Result<Prepared, PrepareError> {
    prepare_in(Turn::First { replaces: false }, site, report, ahead).await
}

/// As [`prepare`], in the place of a slot that is lost: what the server has given up is dropped, and a new slot is made.
/// With `has_streamed` the rest is as in [`prepare_again`].
///
/// # Errors
/// As there.
pub(crate) async fn prepare_anew(
    site: Site<'_>,
    has_streamed: bool,
    report: Report<'_>,
    ahead: Option<&mut Ahead<'_>>,
) -> Result<Prepared, PrepareError> {
    let turn = if has_streamed { Turn::Anew } else { Turn::First { replaces: true } };
    prepare_in(turn, site, report, ahead).await
}

async fn prepare_in(
    turn: Turn,
    site: Site<'_>,
    report: Report<'_>,
    ahead: Option<&mut Ahead<'_>>,
) -> Result<Prepared, PrepareError> {
    let Site { client, source, .. } = site;
    let mut learnt = Learnt::default();
    let (mut survey, published) = publish_all(site, turn, &mut learnt, ahead).await?;
    let mut created = false;
    if survey.wants_slot() {
        let made = creation::make_slot(client, source, &survey, report).await;
        created = made.map_err(|error| survey.with_grants(error, source))?;
    }
    let Outcome { troubles, errors, missed } = survey.outcome(published, turn, &mut learnt, source);
    ready(client, source, &survey, Prepared { troubles, errors, missed, created, learnt, ..Prepared::default() }).await
}

/// The same for a source that has streamed from the slot before: a slot that is missing now has lost changes and is not
/// made anew; what of the configuration no longer fits the database, or cannot be published now, is a trouble, not the end.
///
/// # Errors
/// As [`prepare`].
pub(crate) async fn prepare_again(site: Site<'_>, ahead: Option<&mut Ahead<'_>>) -> Result<Prepared, PrepareError> {
    let Site { client, source, .. } = site;
    let mut learnt = Learnt::default();
    let (mut survey, published) = publish_all(site, Turn::Again, &mut learnt, ahead).await?;
    let Outcome { troubles, errors, missed } = survey.outcome(published, Turn::Again, &mut learnt, source);
    ready(client, source, &survey, Prepared { troubles, errors, missed, learnt, ..Prepared::default() }).await
}

/// Lets later statements of a session find nothing but what Postgres itself has: a function or an operator of somebody
/// else's, named like one of ours and nearer to its arguments' types, would run as our role.
///
/// # Errors
/// When the server cannot be asked.
pub async fn trust_the_catalogue(client: &Client) -> Result<(), PrepareError> {
    bounded("set the search path", client.batch_execute(CATALOGUE_ONLY)).await
}

/// See [`trust_the_catalogue`].
const CATALOGUE_ONLY: &str = "SET search_path = pg_catalog";

/// Bounds every later statement of a session on the server too: one that is only given up on this side would go on there,
/// and the session with it, for as long as somebody locks what it needs. And [`trust_the_catalogue`].
///
/// # Errors
/// When the server cannot be asked.
pub async fn limit_statements(client: &Client) -> Result<(), PrepareError> {
    // Shorter than [`bounded`], so that the server is first.
    let limits = "SET statement_timeout = '25s'; SET lock_timeout = '5s'; SET jit = off";
    bounded("limit the time of statements", client.batch_execute(limits)).await?;
    trust_the_catalogue(client).await
}

/// When a source is made ready.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Before its first stream; a slot that is lost may be replaced.
    First { replaces: bool },
    /// After it has streamed.
    Again,
    /// The same, with another slot in the place of the lost one.
    Anew,
}

impl Turn {
    fn is_first(self) -> bool {
        matches!(self, Self::First { .. })
    }

    fn replaces(self) -> bool {
        matches!(self, Self::First { replaces: true } | Self::Anew)
    }
}

/// Completes what is `prepared` with the slot as it is at the end.
async fn ready(
    client: &Client,
    source: &SourceConfig,
    survey: &Survey,
    prepared: Prepared,
) -> Result<Prepared, PrepareError> {
    let slot = inspect(client, &source.slot).await?;
    let gone = || PrepareError::lasting(format!("the slot {} is gone again", source.slot), "find out who drops it");
    let slot = slot.ok_or_else(gone)?;
    let (Some(confirmed), Some(restart)) = (slot.confirmed, slot.restart) else {
        return Err(busy(&slot));
    };
    let server_version = survey.server.version;
    let in_recovery = survey.server.in_recovery;
    let wants_copies = source.failover && source.create && !slot.is_failover;
    Ok(Prepared {
        confirmed,
        restart,
        server_version,
        tables: survey.published(),
        in_recovery,
        wants_copies,
        overpowered: survey.server.is_overpowered(),
        ..prepared
    })
}

/// Surveys and publishes. What cannot be published keeps nothing else back: it is a trouble, and tried again by [`maintain`].
/// Only without a publication nothing can be streamed, nor a slot be made.
async fn publish_all(
    Site { client, source, sinks }: Site<'_>,
    turn: Turn,
    learnt: &mut Learnt,
    mut ahead: Option<&mut Ahead<'_>>,
) -> Result<(Survey, Published), PrepareError> {
    limit_statements(client).await?;
    let mut rounds = 0;
    loop {
        let survey = survey(client, source, sinks).await?;
        survey.fit(source, turn)?;
        let budget = if turn.is_first() { Budget::BEFORE_STREAM } else { Budget::BESIDE_STREAM };
        let publishing = Publishing { client, source, survey: &survey, turn, budget };
        rounds += 1;
        let is_last = rounds >= ROUNDS_MAX;
        let fault = match publishing.settle(learnt).await {
            // What it holds of tables is read anew.
            Ok(true) if !is_last => continue,
            Ok(_) => None,
            Err(error) if is_race(&error) && !is_last => continue,
            // A slot that is older than its publication can never be read.
            Err(error) if survey.publication.is_none() => return Err(survey.with_grants(error, source)),
            Err(error) if turn.is_first() && !survey.steps.refused.is_empty() => return Err(error),
            Err(error) => Some(whole_fault(&publishing, error).await),
        };
        let written = survey.written(client).await;
        // What is older than the slot is missed by nobody.
        if let Some(ahead) = ahead.as_deref_mut().filter(|_| !(turn.is_first() && survey.wants_slot())) {
            ahead.note(&survey.late(turn, learnt, &written), &survey.oids).await;
            crate::failpoint::hit("publication.noted");
        }
        match publishing.fill(learnt).await {
            Ok(mut published) => {
                crate::failpoint::hit("publication.filled");
                published.written = written;
                published.written.extend(survey.being_written(client, &published.added).await);
                published.faults.splice(..0, fault);
                return Ok((survey, published));
            }
            Err(error) if is_race(&error) && !is_last => {}
            Err(error) => {
                let mut published = Published::of_fault(whole_fault(&publishing, error).await);
                published.faults.splice(..0, fault);
                return Ok((survey, published));
            }
        }
    }
}

/// Adds tables that patterns match and that can be published; run it from time to time. With `create = false` it only
/// says which are missing. What keeps them from the publication is a trouble. `learnt` is what the turns before have.
///
/// # Errors
/// When the server cannot be asked, or the publication is gone.
pub(crate) async fn maintain(
    Site { client, source, sinks }: Site<'_>,
    learnt: &mut Learnt,
    ahead: Option<&mut Ahead<'_>>,
) -> Result<Maintained, PrepareError> {
    let mut survey = survey(client, source, sinks).await?;
    if survey.publication.is_none() {
        return Err(publication_went(source));
    }
    let publishing = Publishing { client, source, survey: &survey, turn: Turn::Again, budget: Budget::BESIDE_STREAM };
    let mut fault = None;
    if let Err(error) = publishing.settle(learnt).await
        // Whoever was quicker made what was to be made.
        && !is_race(&error)
    {
        fault = Some(whole_fault(&publishing, error).await);
    }
    let written = survey.written(client).await;
    if let Some(ahead) = ahead {
        ahead.note(&survey.late(Turn::Again, learnt, &written), &survey.oids).await;
    }
    let mut published = match publishing.fill(learnt).await {
        Ok(published) => {
            let meanwhile = survey.being_written(client, &published.added).await;
            Published { written: written.into_iter().chain(meanwhile).collect(), ..published }
        }
        Err(error) if is_race(&error) => Published::default(),
        Err(error) => Published::of_fault(whole_fault(&publishing, error).await),
    };
    published.faults.splice(..0, fault);
    let (is_unfinished, waits) = (published.is_unfinished, !published.held.is_empty());
    let Outcome { troubles, errors, missed } = survey.outcome(published, Turn::Again, learnt, source);
    let is_incomplete = waits || survey.lacks_named(sinks);
    Ok(Maintained { added: survey.steps.added, troubles, errors, missed, is_incomplete, is_unfinished })
}

/// What it means that the publication of a slot that streams is gone.
pub(crate) fn publication_trouble(source: &SourceConfig) -> Trouble {
    publication_went(source).into_trouble()
}

/// Whether commits of others wait for the session that reads the slot; `None` where that is not known.
///
/// # Errors
/// When the server cannot be asked.
pub async fn commits_wait(client: &Client, source: &SourceConfig) -> Result<Option<Trouble>, PrepareError> {
    let asked = [Question::setting("synchronous_standby_names", "whether commits wait for walhook")];
    let setting = ask(client, "ask which standbys commits wait for", &asked).await?.text();
    Ok(setting.and_then(|setting| synchronous::trouble(&setting, &source.url.application_name)))
}

/// Whether the server is a standby.
///
/// # Errors
/// When the server cannot be asked.
pub async fn is_standby(client: &Client) -> Result<bool, PrepareError> {
    let doing = "ask whether the server is a standby";
    let row = bounded(doing, client.query_one("select pg_is_in_recovery()", &[])).await?;
    row.try_get(0).map_err(misread(doing))
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

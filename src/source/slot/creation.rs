//! Makes the slot. The server first waits for every transaction that was running, which may take long and must be seen.
//!
//! It happens on a connection of its own, so that the wait can be watched from the other one, and so that giving it up
//! (dropping the future) closes that connection: the server notices within a second, ends the waiting backend and, since
//! a slot is ephemeral until it is complete, leaves nothing behind.

use std::fmt;
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, interval_at};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row};
use tracing::{info, warn};

use super::error::{Passing, PrepareError, bounded, classify, no_place};
use super::names::literal;
use super::unseen::{Question, ask};
use super::{Report, Survey};
use crate::config::SourceConfig;
use crate::fault::chain;
use crate::source::advice::{self, Statement};
use crate::source::connection;
use crate::view::Trouble;

/// When it is first said what the server waits for, and how often then.
const REPORT_FIRST: Duration = Duration::from_secs(2);
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// Most transactions that are named.
const HOLDERS_MAX: usize = 5;

/// Whom backend `$1` waits for. Prepared transactions have no backend (pid 0) and are listed by their name.
const HOLDERS: &str = "
select b.pid, coalesce(a.application_name, ''), a.state, extract(epoch from now() - a.xact_start)::int8,
       array(select gid from pg_prepared_xacts where b.pid = 0 order by prepared limit 5)
  from unnest(pg_blocking_pids($1)) b(pid) left join pg_stat_activity a on a.pid = b.pid";

/// SQL that makes the slot.
pub(crate) fn create_sql(source: &SourceConfig) -> String {
    let failover = if source.failover { ", failover => true" } else { "" };
    format!("SELECT pg_create_logical_replication_slot({}, 'pgoutput'{failover});", literal(&source.slot))
}

/// Makes the slot, in the place of one that is of no use; false if someone else made it meanwhile.
pub(super) async fn make_slot(
    client: &Client,
    source: &SourceConfig,
    survey: &Survey,
    report: Report<'_>,
) -> Result<bool, PrepareError> {
    if !source.create {
        return Err(survey.slot_by_hand(source));
    }
    if let Some(slot) = &survey.slot {
        let why = if slot.is_lost() { "that the server has given up" } else { "whose making was given up" };
        let dropped =
            bounded("drop a useless slot", client.query_opt(&drop_useless(survey.server.version), &[&source.slot]))
                .await?;
        if dropped.is_none() {
            return Err(Passing::Changed("the slot is another than a moment ago").into());
        }
        warn!(source = source.name, slot = source.slot, "dropped a slot {why}");
    }
    create(client, source, survey.server.in_recovery, report).await
}

/// Drops the slot if it is of no use at that moment: between the survey and here somebody may have made another.
fn drop_useless(version: u32) -> String {
    let invalid = match version {
        170_000.. => "s.invalidation_reason is not null or s.conflicting and pg_is_in_recovery()",
        160_000.. => "s.conflicting and pg_is_in_recovery()",
        _ => "false",
    };
    format!(
        "
select pg_drop_replication_slot(s.slot_name) is null from pg_replication_slots s
 where s.slot_name = $1 and not s.active
   and (s.wal_status = 'lost' or s.confirmed_flush_lsn is null or {invalid})"
    )
}

/// What it waits for is told to `report`.
async fn create(
    client: &Client,
    source: &SourceConfig,
    in_recovery: bool,
    report: Report<'_>,
) -> Result<bool, PrepareError> {
    let (maker, driver) = connection::sql(&source.url).await.map_err(Passing::Connect)?;
    let mut driver = pin!(driver);
    let watch = Watch { client, source, in_recovery, report };
    let mut work = pin!(make(&maker, &watch));
    let made = tokio::select! {
        // 1. The work itself, so that a finished one is seen even if the connection ends with it.
        done = &mut work => done,
        // 2. The connection; when it ends, the statement fails at once and says why.
        _ = &mut driver => work.await,
    };
    report(None);
    made
}

/// Says from another connection what the making waits for.
struct Watch<'a> {
    client: &'a Client,
    source: &'a SourceConfig,
    in_recovery: bool,
    report: Report<'a>,
}

async fn make(maker: &Client, watch: &Watch<'_>) -> Result<bool, PrepareError> {
    let source = watch.source;
    // Not every system has the check; without it an abandoned wait ends with the transactions it waits for.
    if let Err(error) = maker.batch_execute("SET client_connection_check_interval = '1s'").await {
        warn!(source = source.name, %error, "the server cannot notice a client that leaves while it waits");
    }
    let setup = "SET statement_timeout = 0; SET lock_timeout = 0; SET search_path = pg_catalog";
    bounded("set up the session that makes the slot", maker.batch_execute(setup)).await?;
    let asked = [Question::new("pg_backend_pid", "pg_backend_pid()", "what the new slot waits for")];
    let pid = ask(maker, "ask for a backend's id", &asked).await?.number();
    info!(source = source.name, slot = source.slot, "making the replication slot");
    let statement = create_sql(source);
    let mut creation = pin!(maker.batch_execute(&statement));
    let mut ticks = interval_at(Instant::now() + REPORT_FIRST, REPORT_EVERY);
    loop {
        tokio::select! {
            // 1. The statement.
            done = &mut creation => return finished(done, watch.in_recovery),
            // 2. What it waits for.
            _ = ticks.tick(), if pid.is_some() => watch.look(pid.unwrap_or_default()).await,
        }
    }
}

fn finished(done: Result<(), tokio_postgres::Error>, in_recovery: bool) -> Result<bool, PrepareError> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if in_recovery && error.code() == Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE) => {
            let said = error.as_db_error().map_or("", |error| error.message());
            let advice = "set wal_level = logical on the primary too, and restart it";
            Err(PrepareError::lasting(format!("could not make the replication slot on the standby: {said}"), advice))
        }
        Err(error) if error.code() == Some(&SqlState::DUPLICATE_OBJECT) => Ok(false),
        Err(error) => Err(no_place(&error).unwrap_or_else(|| classify("make the replication slot", error))),
    }
}

impl Watch<'_> {
    /// A failure is no reason to give up a wait that may have lasted for hours.
    async fn look(&self, pid: i64) {
        let (name, slot) = (&self.source.name, &self.source.slot);
        match bounded(
            "ask what the new slot waits for",
            self.client.query(HOLDERS, &[&i32::try_from(pid).unwrap_or_default()]),
        )
        .await
        {
            Ok(rows) => {
                let holders: Vec<Holder> = rows.iter().filter_map(|row| Holder::read(row).ok()).collect();
                let Trouble { what, advice } = self.trouble(&holders);
                warn!(source = name, slot, advice, "{what}");
                (self.report)(Some(Trouble { what, advice }));
            }
            Err(error) => {
                warn!(source = name, slot, error = %chain(&error), "could not ask what the new slot waits for");
            }
        }
    }

    /// Whose transactions these are is for a person to find out: they are never walhook's to end.
    fn trouble(&self, holders: &[Holder]) -> Trouble {
        let slot = &self.source.slot;
        if holders.is_empty() {
            let advice = match self.in_recovery {
                true => Statement::log_snapshot().to_string(),
                false => "the server has not said for which".to_owned(),
            };
            let what = match self.in_recovery {
                true => {
                    format!("the new slot {slot} on the standby waits for the primary to log which transactions run")
                }
                false => format!("the new slot {slot} waits for running transactions"),
            };
            return Trouble { what, advice };
        }
        let shown = holders.iter().take(HOLDERS_MAX);
        let whom: Vec<String> = shown.map(Holder::to_string).collect();
        let pids: Vec<i32> = holders.iter().map(|holder| holder.pid).filter(|pid| *pid != 0).collect();
        let mut looks = Vec::new();
        if !pids.is_empty() {
            looks.push(Statement::look_at_sessions(&pids));
        }
        if pids.len() < holders.len() {
            looks.push(Statement::look_at_prepared());
        }
        let more = match holders.len().saturating_sub(HOLDERS_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Trouble {
            what: format!("the new slot {slot} waits for {}{more} to end", whom.join(", ")),
            advice: format!(
                "it goes on by itself when they end. Ending one from outside undoes its work, and a prepared one may be part of \
                 more than this database: only whoever runs it can say. Whose they are, {}",
                advice::text(&looks)
            ),
        }
    }
}

/// A transaction that the making waits for.
struct Holder {
    pid: i32,
    application: String,
    /// Hidden from a role that is no member of the other's.
    state: Option<String>,
    age_secs: Option<i64>,
    /// Prepared transactions, where there is no backend.
    prepared: Vec<String>,
}

impl Holder {
    fn read(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            pid: row.try_get(0)?,
            application: row.try_get(1)?,
            state: row.try_get(2)?,
            age_secs: row.try_get(3)?,
            prepared: row.try_get(4)?,
        })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, application, state, age_secs, prepared } = self;
        if *pid == 0 {
            return write!(f, "prepared transactions, among them {}", prepared.join(", "));
        }
        let (Some(state), Some(age_secs)) = (state, age_secs) else {
            return write!(
                f,
                "the transaction of backend {pid} (application {application:?}; pg_read_all_stats shows more)"
            );
        };
        write!(f, "the transaction of backend {pid} (application {application:?}, {state}, {age_secs} s old)")
    }
}

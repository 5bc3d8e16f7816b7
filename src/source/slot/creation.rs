//! Makes the slot. The server first waits for every transaction that was running, which may take long and must be seen.
//!
//! It happens on a connection of its own, so that the wait can be watched from the other one, and so that giving it up
//! (dropping the future) closes that connection: the server notices within a second, ends the waiting backend and, since
//! a slot is ephemeral until it is complete, leaves nothing behind.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, interval_at};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tracing::{info, warn};

use super::error::{Passing, PrepareError, bounded, classify};
use super::state::create_sql;
use crate::config::SourceConfig;
use crate::source::connection;

/// How often the log says what the server waits for.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Whom backend `$1` waits for. Prepared transactions have no backend (pid 0) and are listed by their name.
const HOLDERS: &str = "
select b.pid, coalesce(a.application_name, ''), coalesce(a.state, ''),
       coalesce(extract(epoch from now() - a.xact_start), 0)::int8,
       coalesce((select string_agg(gid, ', ') from pg_prepared_xacts where b.pid = 0), '')
  from unnest(pg_blocking_pids($1)) b(pid) left join pg_stat_activity a on a.pid = b.pid";

/// Makes the slot; false if someone else made it meanwhile.
pub(super) async fn create(client: &Client, source: &SourceConfig, in_recovery: bool) -> Result<bool, PrepareError> {
    let (maker, driver) = connection::sql(&source.url).await.map_err(Passing::Connect)?;
    let mut driver = pin!(driver);
    let mut work = pin!(make(&maker, client, source, in_recovery));
    tokio::select! {
        // 1. The work itself, so that a finished one is seen even if the connection ends with it.
        done = &mut work => done,
        // 2. The connection; when it ends, the statement fails at once and says why.
        _ = &mut driver => work.await,
    }
}

async fn make(
    maker: &Client,
    watcher: &Client,
    source: &SourceConfig,
    in_recovery: bool,
) -> Result<bool, PrepareError> {
    // Not every system has the check; without it an abandoned wait ends with the transactions it waits for.
    if let Err(error) = maker.batch_execute("SET client_connection_check_interval = '1s'").await {
        warn!(source = source.name, %error, "the server cannot notice a client that leaves while it waits");
    }
    let setup = "SET statement_timeout = 0; SET lock_timeout = 0";
    bounded("set up the session that makes the slot", maker.batch_execute(setup)).await?;
    let pid: i32 = bounded("ask for a backend's id", maker.query_one("select pg_backend_pid()", &[])).await?.get(0);
    info!(source = source.name, slot = source.slot, "making the replication slot");
    let statement = create_sql(&source.slot);
    let mut creation = pin!(maker.batch_execute(&statement));
    let mut ticks = interval_at(Instant::now() + REPORT_EVERY, REPORT_EVERY);
    loop {
        tokio::select! {
            // 1. The statement.
            done = &mut creation => return finished(done),
            // 2. What it waits for.
            _ = ticks.tick() => report(watcher, source, pid, in_recovery).await?,
        }
    }
}

fn finished(done: Result<(), tokio_postgres::Error>) -> Result<bool, PrepareError> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if error.code() == Some(&SqlState::DUPLICATE_OBJECT) => Ok(false),
        Err(error) => Err(classify("make the replication slot", error)),
    }
}

async fn report(watcher: &Client, source: &SourceConfig, pid: i32, in_recovery: bool) -> Result<(), PrepareError> {
    let slot = source.slot.as_str();
    let holders = bounded("ask what the new slot waits for", watcher.query(HOLDERS, &[&pid])).await?;
    if holders.is_empty() {
        let advice = match in_recovery {
            true => "on the primary: SELECT pg_log_standby_snapshot();",
            false => "the server has not said for whom",
        };
        warn!(source = source.name, slot, advice, "the new slot waits for running transactions");
    }
    for row in holders {
        let (holder, age_secs): (i32, i64) = (row.get(0), row.get(3));
        let (application, state, prepared): (String, String, String) = (row.get(1), row.get(2), row.get(4));
        warn!(
            source = source.name,
            slot, holder, application, state, age_secs, prepared, "the new slot waits for a transaction to end"
        );
    }
    Ok(())
}

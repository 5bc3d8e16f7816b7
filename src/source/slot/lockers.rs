//! Who holds the locks that a change of a publication waits for, and how long it waits.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use tokio_postgres::{Client, Row};
use tracing::debug;

use super::error::{PrepareError, bounded};
use super::unseen::{Question, ask};
use crate::fault::chain;

/// How much longer than `deadlock_timeout` a statement waits for the lock of one table. When that has passed a waiting statement
/// ends an autovacuum that is in its way; one that gives up at the same moment never does.
const PAST_DEADLOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest wait, whatever `deadlock_timeout` is: other work of the session stands still meanwhile.
const PATIENCE_MAX: Duration = Duration::from_secs(10);

/// Everybody but us who holds or wants one of the locks that conflict with those of ALTER PUBLICATION: SHARE UPDATE EXCLUSIVE
/// on each table `$1`, and ACCESS EXCLUSIVE on the publication `$2`, here under the OID 0. Who only wants one is before us.
const LOCKERS: &str = "
select case l.locktype when 'object' then 0::oid else l.relation end, l.pid, l.granted,
       a.application_name, a.state, to_char(a.xact_start at time zone 'UTC', 'HH24:MI:SS'),
       (select x.gid from pg_prepared_xacts x where l.pid is null and l.virtualtransaction = '-1/' || x.transaction),
       a.pid is not null and a.usesysid is null
  from pg_locks l left join pg_stat_activity a on a.pid = l.pid
 where l.database = (select d.oid from pg_database d where d.datname = current_database())
   and l.pid is distinct from pg_backend_pid()
   and (l.locktype = 'relation' and l.relation = any ($1)
          and l.mode in ('ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                         'AccessExclusiveLock')
        or l.locktype = 'object' and l.classid = 'pg_publication'::regclass and l.objid = $2)
 order by not l.granted, a.xact_start";

/// Whoever stands before us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Locker {
    /// None for a transaction that is prepared for a two-phase commit.
    pid: Option<i32>,
    /// It has the lock, and does not only wait for it itself.
    has_it: bool,
    application: Option<String>,
    state: Option<String>,
    /// Time of day in UTC, where we may see it.
    since: Option<String>,
    prepared: Option<String>,
    /// A session without a role that holds such locks is an autovacuum.
    is_autovacuum: bool,
}

/// By the table's OID, the first one.
#[derive(Debug, Default)]
pub(super) struct Lockers {
    tables: HashMap<u32, Locker>,
    /// Of the publication itself.
    pub(super) publication: Option<Locker>,
}

impl Lockers {
    /// Asks. What cannot be asked is not known: then nobody is named.
    pub(super) async fn ask(client: &Client, tables: &[u32], publication: u32) -> Self {
        let asked = bounded("ask who holds locks", client.query(LOCKERS, &[&tables, &publication])).await;
        let rows = asked.unwrap_or_else(|error| {
            debug!(error = %chain(&error), "it cannot be asked who holds locks");
            Vec::new()
        });
        let mut lockers = Self::default();
        // A row that cannot be read names nobody.
        for (oid, locker) in rows.iter().filter_map(|row| Locker::read(row).ok()) {
            match oid {
                0 => lockers.publication.get_or_insert(locker),
                oid => lockers.tables.entry(oid).or_insert(locker),
            };
        }
        lockers
    }

    /// Who holds the table.
    pub(super) fn of(&self, table: u32) -> Option<&Locker> {
        self.tables.get(&table)
    }
}

/// How long a statement waits for the lock of one table.
///
/// # Errors
/// When the connection is lost.
pub(super) async fn patience(client: &Client) -> Result<Duration, PrepareError> {
    let mut answers = ask(client, "ask how long to wait for locks", &[deadlock_timeout()]).await?;
    Ok(past(answers.number()))
}

/// `deadlock_timeout` in milliseconds.
pub(super) fn deadlock_timeout() -> Question {
    let sql = "select setting from pg_settings where name = 'deadlock_timeout'";
    Question::new("deadlock_timeout", sql, "how long an autovacuum has to be waited for")
}

/// Pure: the wait for a `deadlock_timeout` in milliseconds; where that is not known, for the usual second.
pub(super) fn past(deadlock_timeout: Option<i64>) -> Duration {
    let timeout = deadlock_timeout.and_then(|millis| u64::try_from(millis).ok()).unwrap_or(1000);
    Duration::from_millis(timeout).saturating_add(PAST_DEADLOCK_TIMEOUT).min(PATIENCE_MAX)
}

impl Locker {
    /// With the OID of what it holds.
    fn read(row: &Row) -> Result<(u32, Self), tokio_postgres::Error> {
        let locker = Self {
            pid: row.try_get(1)?,
            has_it: row.try_get(2)?,
            application: row.try_get::<_, Option<String>>(3)?.filter(|name| !name.is_empty()),
            state: row.try_get(4)?,
            since: row.try_get(5)?,
            prepared: row.try_get(6)?,
            is_autovacuum: row.try_get(7)?,
        };
        Ok((row.try_get(0)?, locker))
    }
}

impl fmt::Display for Locker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pid, &self.prepared) {
            (Some(pid), _) if self.is_autovacuum => write!(f, "an autovacuum, backend {pid}")?,
            (Some(pid), _) => write!(f, "backend {pid}")?,
            (None, Some(gid)) => write!(f, "the prepared transaction {gid:?}")?,
            (None, None) => write!(f, "a prepared transaction")?,
        }
        let application = self.application.as_ref().map(|name| format!("application {name:?}"));
        let since = self.since.as_ref().map(|since| format!("since {since} UTC"));
        let waits = (!self.has_it).then(|| "which waits for the lock too".to_owned());
        let known: Vec<String> = application.into_iter().chain(self.state.clone()).chain(since).chain(waits).collect();
        if known.is_empty() { Ok(()) } else { write!(f, " ({})", known.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_outwaits_the_deadlock_timeout_up_to_a_bound() {
        let waits = [None, Some(1000), Some(10), Some(5000), Some(3_600_000)].map(|timeout| past(timeout).as_millis());
        assert_eq!(waits, [1500, 1500, 510, 5500, 10_000]);
    }

    #[test]
    fn what_may_not_be_seen_is_left_out() {
        let all = Locker {
            pid: Some(12),
            has_it: true,
            application: Some("migrate".to_owned()),
            state: Some("idle in transaction".to_owned()),
            since: Some("14:02:07".to_owned()),
            prepared: None,
            is_autovacuum: false,
        };
        let text = "backend 12 (application \"migrate\", idle in transaction, since 14:02:07 UTC)";
        assert_eq!(all.to_string(), text);
        let hidden = Locker { application: None, state: None, since: None, ..all.clone() };
        assert_eq!(hidden.to_string(), "backend 12");
        assert_eq!(Locker { is_autovacuum: true, ..hidden.clone() }.to_string(), "an autovacuum, backend 12");
        assert_eq!(Locker { has_it: false, ..hidden }.to_string(), "backend 12 (which waits for the lock too)");
        let prepared =
            Locker { pid: None, prepared: Some("gx".to_owned()), application: None, state: None, since: None, ..all };
        assert_eq!(prepared.to_string(), "the prepared transaction \"gx\"");
    }
}

//! Transactions that may have written before something was seen, so that what they wrote was decoded by the catalogue of before.

use std::collections::BTreeMap;

use tokio_postgres::{Client, Row};
use tracing::debug;

use super::error::{PrepareError, bounded, misread};
use crate::fault::chain;

/// Transactions that are named at most.
const SHOWN_MAX: usize = 3;

/// Transactions of this database that have an id, and so may have written. What autovacuums write is nobody's row.
const RUNNING: &str = "
select l.virtualtransaction, l.pid, max(a.application_name), max(to_char(a.xact_start at time zone 'UTC', 'HH24:MI:SS')), max(x.gid)
  from pg_locks l
  left join pg_stat_activity a on a.pid = l.pid
  left join pg_prepared_xacts x on l.pid is null and l.virtualtransaction = '-1/' || x.transaction
 where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted and l.pid is distinct from pg_backend_pid()
   and (a.datname = current_database() and a.usesysid is not null or x.database = current_database())
 group by l.virtualtransaction, l.pid
 order by 4";

/// Transactions, by their virtual ids, each in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Running(BTreeMap<String, String>);

impl Running {
    /// Those that run. Where that may not be asked, none is known.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub(crate) async fn ask(client: &Client) -> Result<Self, PrepareError> {
        let doing = "ask which transactions run";
        match bounded(doing, client.query(RUNNING, &[])).await {
            Ok(rows) => rows.iter().map(described).collect::<Result<_, _>>().map(Self).map_err(misread(doing)),
            Err(error) if error.is_refusal() => {
                debug!(error = %chain(&error), "it may not be asked which transactions run");
                Ok(Self::default())
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Of these the ones that are among those that run `now`.
    pub(crate) fn still(&mut self, now: &Self) {
        self.0.retain(|id, _| now.0.contains_key(id));
    }

    /// The first of them in words.
    pub(crate) fn shown(&self) -> String {
        let first: Vec<&str> = self.0.values().take(SHOWN_MAX).map(String::as_str).collect();
        match self.0.len().saturating_sub(SHOWN_MAX) {
            0 => first.join(", "),
            more => format!("{} and {more} more", first.join(", ")),
        }
    }
}

/// Its virtual id, and it in words.
fn described(row: &Row) -> Result<(String, String), tokio_postgres::Error> {
    let (pid, gid): (Option<i32>, Option<String>) = (row.try_get(1)?, row.try_get(4)?);
    let who = match (pid, gid) {
        (Some(pid), _) => format!("backend {pid}"),
        (None, Some(gid)) => format!("the prepared transaction {gid:?}"),
        (None, None) => "a prepared transaction".to_owned(),
    };
    let application: Option<String> = row.try_get(2)?;
    let application = application.filter(|name| !name.is_empty()).map(|name| format!("application {name:?}"));
    let since = row.try_get::<_, Option<String>>(3)?.map(|since| format!("since {since} UTC"));
    let known: Vec<String> = application.into_iter().chain(since).collect();
    let words = if known.is_empty() { who } else { format!("{who} ({})", known.join(", ")) };
    Ok((row.try_get(0)?, words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(ids: &[&str]) -> Running {
        Running(ids.iter().map(|id| ((*id).to_owned(), format!("backend {id}"))).collect())
    }

    #[test]
    fn only_those_of_before_are_waited_for_and_the_first_are_named() {
        let mut before = running(&["1", "2", "3", "4", "5"]);
        assert_eq!(before.shown(), "backend 1, backend 2, backend 3 and 2 more");
        before.still(&running(&["2", "9"]));
        assert_eq!(before, running(&["2"]));
        before.still(&running(&["9"]));
        assert!(before.is_empty());
    }
}

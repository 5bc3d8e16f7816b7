//! Takes tables out of the publication: one by one, so that a table that somebody has locked keeps no other in it.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::Look;
use crate::change::{Lsn, TableName};
use crate::config::SourceConfig;
use crate::source::slot::error::{Passing, PrepareError, STATEMENT_LIMIT, bounded, misread};
use crate::source::slot::lockers::{Lockers, patience};
use crate::source::slot::names::{quoted, quoted_table};

/// What became of taking a table out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TakenOut {
    Done,
    /// The server said no, so it is as it was.
    Refused(String),
}

/// The taking out of one look.
#[derive(Debug)]
pub(crate) struct Taking<'a> {
    client: &'a Client,
    source: &'a SourceConfig,
    look: &'a Look,
    lockers: Lockers,
    /// How long a statement waits for the lock of its table.
    wait: Duration,
}

impl<'a> Taking<'a> {
    /// Asks who is in the way.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(crate) async fn begin(
        client: &'a Client,
        source: &'a SourceConfig,
        look: &'a Look,
    ) -> Result<Self, PrepareError> {
        let wait = patience(client).await?;
        let mut taking = Self { client, source, look, lockers: Lockers::default(), wait };
        taking.ask().await;
        Ok(taking)
    }

    async fn ask(&mut self) {
        let oids: Vec<u32> = self.look.bare.iter().map(|bare| bare.oid).collect();
        self.lockers = Lockers::ask(self.client, &oids, self.look.publication).await;
    }

    /// Who has locked the table or the publication, as far as is known.
    pub(crate) fn locked(&self, table: u32) -> Option<String> {
        let of_all = self.lockers.publication.as_ref().map(|locker| format!("{locker} has locked the publication"));
        of_all.or_else(|| Some(format!("{} has locked it", self.lockers.of(table)?)))
    }

    /// Takes a table out. An autovacuum of it makes way for the statement; others are waited for, for a moment.
    ///
    /// # Errors
    /// When nobody knows whether it was done.
    pub(crate) async fn take_out(&mut self, table: &TableName, oid: u32) -> Result<TakenOut, PrepareError> {
        let batch = format!(
            "SET LOCAL lock_timeout = '{}ms'; SET LOCAL search_path = \"$user\", public; {}",
            self.wait.as_millis(),
            out_sql(self.source, table)
        );
        let doing = "take a table out of the publication";
        match tokio::time::timeout(STATEMENT_LIMIT, self.client.batch_execute(&batch)).await {
            Ok(Ok(())) => Ok(TakenOut::Done),
            Ok(Err(error)) => match error.as_db_error() {
                // Somebody was quicker.
                Some(server) if *server.code() == SqlState::UNDEFINED_OBJECT => Ok(TakenOut::Done),
                Some(server) if *server.code() == SqlState::LOCK_NOT_AVAILABLE => {
                    self.ask().await;
                    Ok(TakenOut::Refused(self.locked(oid).unwrap_or_else(|| server.message().to_owned())))
                }
                Some(server) => Ok(TakenOut::Refused(server.message().to_owned())),
                None => Err(Passing::Query { doing, source: error }.into()),
            },
            Err(_) => Err(Passing::Timeout { doing }.into()),
        }
    }
}

/// Without ONLY the tables that inherit from it would have to be in the publication too.
pub(super) fn out_sql(source: &SourceConfig, table: &TableName) -> String {
    format!("ALTER PUBLICATION {} DROP TABLE ONLY {};", quoted(&source.publication), quoted_table(table))
}

/// End of the server's WAL: everything that is visible now was committed before. Where the role may not ask for it, the position
/// of a record that it writes says the same.
///
/// # Errors
/// When the server cannot be asked.
pub(crate) async fn end_of_wal(client: &Client) -> Result<Lsn, PrepareError> {
    match position(client, END).await {
        Err(error) if error.is_refusal() => position(client, WRITTEN).await,
        asked => asked,
    }
}

async fn position(client: &Client, sql: &str) -> Result<Lsn, PrepareError> {
    let doing = "ask for the end of the WAL";
    let row = bounded(doing, client.query_one(sql, &[])).await?;
    let text: Option<&str> = row.try_get(0).map_err(misread(doing))?;
    text.and_then(|text| text.parse().ok()).ok_or_else(|| Passing::Answer { doing }.into())
}

/// As a heartbeat is written.
const WRITTEN: &str = "select pg_logical_emit_message(false, 'walhook:heartbeat', '')::text";

const END: &str =
    "select (case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end)::text";

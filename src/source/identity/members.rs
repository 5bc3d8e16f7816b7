//! Tables that another hand has taken out before anything was noted of them, as a source does that shares the publication.

use std::collections::HashSet;

use tokio_postgres::Client;
use tracing::warn;

use super::{Watch, key};
use crate::change::{Lsn, TableName};
use crate::source::notes::{Notes, now, told};
use crate::source::slot::PrepareError;
use crate::source::slot::identity::{self, Look};
use crate::source::slot::publication;
use crate::store::Note;

/// What a publication names.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// As in [`Look`].
    mark: String,
    tables: HashSet<TableName>,
    /// End of the server's WAL before the last look at which it named them.
    end: Option<Lsn>,
}

impl Watch {
    /// Notes the gap of tables that were in the publication at the look before, are not any more, and have no identity. Those that
    /// have one are put back by the look for tables, which says what was missed.
    pub(super) async fn miss(&mut self, client: &Client, look: &Look, notes: &mut Notes) -> Result<(), PrepareError> {
        if let Some(before) = self.members.as_mut().filter(|before| before.mark == look.members) {
            before.end = look.end.or(before.end);
            return Ok(());
        }
        let Some(state) = publication::read(client, &self.source, look.version).await? else { return Ok(()) };
        let tables: HashSet<TableName> = state.members.into_iter().collect();
        let before = self.members.take().unwrap_or_default();
        let is_missed = |table: &&TableName| {
            !tables.contains(*table)
                && self.sinks.iter().any(|sink| sink.takes_table(table))
                && notes.get(&key(table)).is_none_or(|note| !note.is_open())
        };
        let missed: Vec<&TableName> = before.tables.iter().filter(is_missed).collect();
        let from = before.end.or(look.end);
        for table in self.without_identity(client, &missed).await? {
            let known = notes.get(&key(&table)).cloned();
            let from = known.as_ref().and_then(|note| note.from).or(from);
            let note = Note { from, to: None, ..known.unwrap_or_else(|| Note::new(key(&table), now())) };
            let trouble = told(&self.source.name, &note).trouble;
            warn!(source = self.source.name, advice = trouble.advice, "{}", trouble.what);
            if let Err(error) = notes.put(note).await {
                notes.say_unwritten(&error);
            }
        }
        self.members = Some(Members { mark: look.members.clone(), tables, end: look.end });
        Ok(())
    }

    async fn without_identity(&self, client: &Client, tables: &[&TableName]) -> Result<Vec<TableName>, PrepareError> {
        if tables.is_empty() {
            return Ok(Vec::new());
        }
        let look = identity::look(client, &self.source, tables).await?;
        let bare = look.into_iter().flat_map(|look| look.bare).filter(|bare| bare.is_candidate);
        let bare: HashSet<TableName> = bare.map(|bare| bare.table).collect();
        Ok(bare.into_iter().filter(|table| tables.contains(&table)).collect())
    }
}

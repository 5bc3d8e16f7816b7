//! What is done about single tables when a session begins.

use std::collections::HashSet;

use tokio_postgres::Client;
use tracing::warn;

use super::Server;
use crate::change::TableName;
use crate::fault::chain;
use crate::source::Source;
use crate::source::ahead::Ahead;
use crate::source::identity::Watch;
use crate::source::notes::Notes;
use crate::source::problem::Problem;
use crate::source::slot::{self, Prepared};
use crate::view::Trouble;

/// Why a table is left in a publication for the moment.
const UNKNOWN_DATABASE: &str = "it is not known yet whether this is the database that the store is of";

impl Source {
    /// Before anything else that may last or fail: the application's own writes may fail. What is still published, and shown.
    /// As long as it is not known to be the store's database, nothing is done there.
    pub(super) async fn tend(
        &self,
        client: &Client,
        watch: &mut Watch,
        notes: &mut Notes,
        is_known: bool,
    ) -> Vec<Trouble> {
        let tended = match slot::limit_statements(client).await {
            Ok(()) if is_known => Ok(watch.tend(client, notes).await),
            Ok(()) => watch.see(client, UNKNOWN_DATABASE).await,
            Err(error) => Err(error),
        };
        let Some(mut view) = self.views.sources.get_mut(&self.config.name) else { return Vec::new() };
        match tended {
            Ok(tended) => view.harms = tended.harms,
            // Whatever keeps the server from answering ends the session too, or is told by the next look.
            Err(error) => {
                warn!(source = %self.config.name, error = %chain(&error), "could not look at replica identities");
            }
        }
        view.notes = notes.view(watch.outlook());
        view.harms.clone()
    }

    /// Whether it is certainly the database that the store is bound to. Asked over SQL: a connection for replication may not be
    /// had, and the slot may be another's, while the application's own writes fail.
    pub(super) async fn is_known(&self, client: &Client) -> bool {
        let name = self.config.name.clone();
        let Ok(Some(bound)) = self.ask_store(move |store| store.source(&name)).await else { return false };
        match slot::whose(client).await {
            Ok((system_id, database)) => system_id == Some(bound.system_id) && database == bound.database,
            Err(error) => {
                warn!(source = %self.config.name, error = %chain(&error), "could not ask which database it is");
                false
            }
        }
    }

    /// Slot and publication, with what was missed of tables that are published only now noted before they are.
    ///
    /// Before the first stream only those were missed that the sinks asked for when the source ran before. One that the
    /// configuration asks for from now on begins now, as it should.
    pub(super) async fn publish(
        &self,
        client: &Client,
        notes: &mut Notes,
        server: &Server,
    ) -> Result<Prepared, Problem> {
        let name = self.config.name.clone();
        let captured = HashSet::new();
        let mut ahead = Ahead::new(notes, &captured);
        let mut before = None;
        if !self.has_streamed {
            let asked = name.clone();
            let patterns = self.ask_store(move |store| store.watched(&asked)).await?;
            ahead = ahead.first(patterns.clone());
            before = Some(patterns);
        }
        let mut prepared = self.prepare(client, &mut ahead, server).await?;
        if let Some(before) = before {
            let is_new_here = |table: &TableName| before.iter().any(|pattern| pattern.matches(table));
            prepared.missed.late.early.retain(|table| !prepared.created && is_new_here(table));
        }
        ahead.settle(&prepared.missed.late).await;
        let patterns: Vec<_> = self.intake.sinks().iter().flat_map(|sink| sink.tables.clone()).collect();
        self.ask_store(move |store| store.watch(&name, &patterns)).await?;
        Ok(prepared)
    }
}

//! What is done about single tables when a session begins.

use tokio_postgres::Client;
use tracing::warn;

use crate::change::TableName;
use crate::source::Source;
use crate::source::identity::Watch;
use crate::source::notes::Notes;
use crate::source::problem::{Problem, chain};
use crate::source::slot::{self, Prepared};
use crate::view::Trouble;

impl Source {
    /// Before anything else that may last: the application's own writes may fail. What is still published, and shown.
    pub(super) async fn tend(&self, client: &Client, watch: &mut Watch, notes: &mut Notes) -> Vec<Trouble> {
        let tended = match slot::limit_statements(client).await {
            Ok(()) => watch.tend(client, notes).await,
            Err(error) => Err(error),
        };
        let harms = match tended {
            Ok(tended) => tended.harms,
            // Whatever keeps the server from answering ends the session too, or is told by the next look.
            Err(error) => {
                warn!(source = %self.config.name, error = %chain(&error), "could not look at replica identities");
                return Vec::new();
            }
        };
        if let Some(mut view) = self.views.sources.get_mut(&self.config.name) {
            view.harms.clone_from(&harms);
            view.notes = notes.view(watch.outlook());
        }
        harms
    }

    /// Before the first stream: of tables that are new to the publication only those were missed that the sinks asked for when
    /// the source ran before. One that the configuration asks for from now on begins now, as it should.
    pub(super) async fn weigh_new(&self, prepared: &mut Prepared) -> Result<(), Problem> {
        let name = self.config.name.clone();
        if !self.has_streamed {
            let asked = name.clone();
            let before = self.ask_store(move |store| store.watched(&asked)).await?;
            let is_new_here = |table: &TableName| before.iter().any(|pattern| pattern.matches(table));
            prepared.missed.early.retain(|table| !prepared.created && is_new_here(table));
        }
        let patterns: Vec<_> = self.intake.sinks().iter().flat_map(|sink| sink.tables.clone()).collect();
        self.ask_store(move |store| store.watch(&name, &patterns)).await
    }
}

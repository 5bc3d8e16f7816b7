//! Ends the gaps of tables that are back, and finds the tables that have left by another hand.

use tokio_postgres::Client;
use tracing::{info, warn};

use super::deciding::{Fate, Now, fate};
use super::{Seen, Watch, key};
use crate::change::{Lsn, TableName};
use crate::source::notes::{Notes, told};
use crate::source::slot::PrepareError;
use crate::source::slot::identity::{self, Look};
use crate::source::slot::publication::{self, PublicationState};
use crate::source::slot::running::Running;
use crate::store::Note;
use crate::view::Trouble;

impl Watch {
    /// Why the writes of tables do not fail any more: they have an identity again, or have left the publication. The latter ones.
    pub(super) async fn judge(
        &mut self,
        client: &Client,
        look: &Look,
        tables: Vec<TableName>,
        notes: &mut Notes,
    ) -> Result<Vec<TableName>, PrepareError> {
        let mut left = Vec::new();
        if tables.is_empty() {
            return Ok(left);
        }
        let state = publication::read(client, &self.source, look.version).await?;
        let places = identity::places(client, &self.source, &tables).await?;
        for table in tables {
            let now = Now {
                is_covered: state.as_ref().is_some_and(|state| state.covers(&table)),
                place: places.get(&table).copied().unwrap_or_default(),
                is_wanted: self.takes(&table) && identity::exists(client, &table).await?,
            };
            let seen = self.seen.get(&table).copied();
            match fate(seen, now) {
                Fate::Mended => {
                    info!(source = self.source.name, %table, "the table has a replica identity again, and is published");
                    self.forget(&table, notes).await;
                }
                Fate::Gone => {
                    info!(source = self.source.name, %table, "the table is not published any more, nor wanted");
                    self.forget(&table, notes).await;
                }
                Fate::Left => {
                    self.open(&table, seen, look.end, notes).await;
                    left.push(table);
                }
            }
        }
        Ok(left)
    }

    /// Drops the note of a table that was never out; a gap of before stays.
    async fn forget(&self, table: &TableName, notes: &mut Notes) {
        if notes.get(&key(table)).is_none_or(|note| note.from.is_some()) {
            return;
        }
        if let Err(error) = notes.remove(&key(table)).await {
            notes.say_unwritten(&error);
        }
    }

    /// Notes the gap of a table that somebody else has taken out, from where it was last seen in the publication.
    async fn open(&self, table: &TableName, seen: Option<Seen>, end: Option<Lsn>, notes: &mut Notes) {
        let Some(note) = notes.get(&key(table)).cloned() else { return };
        let last_seen = seen.and_then(|seen| seen.end).or(note.to).or(end).unwrap_or(Lsn::ZERO);
        let note = Note { from: Some(note.from.unwrap_or(last_seen)), to: None, ..note };
        let trouble = told(&self.source.name, &note).trouble;
        warn!(source = self.source.name, advice = trouble.advice, "{}", trouble.what);
        if let Err(error) = notes.put(note).await {
            notes.say_unwritten(&error);
        }
    }

    fn takes(&self, table: &TableName) -> bool {
        self.sinks.iter().any(|sink| sink.takes_table(table))
    }

    /// Ends the gaps of tables that have their identity again: those that are published, and those that are never going to
    /// be. Whether one is left that walhook can put back.
    pub(super) async fn close(
        &mut self,
        client: &Client,
        version: u32,
        tables: &[TableName],
        notes: &mut Notes,
    ) -> Result<bool, PrepareError> {
        self.ending.retain(|table, _| tables.contains(table));
        if tables.is_empty() {
            return Ok(false);
        }
        let Some(state) = publication::read(client, &self.source, version).await? else { return Ok(true) };
        // After they were seen in the publication.
        let running = Running::ask(client).await?;
        let mut wants_back = false;
        for table in tables {
            if !state.covers(table) && self.outlook.is_kept(table) {
                continue;
            } else if self.is_awaited(client, &state, table).await? {
                wants_back |= self.source.create;
            } else if self.waits_for(table, &running, notes) {
                continue;
            } else {
                self.end(client, table, notes).await?;
            }
        }
        Ok(wants_back)
    }

    /// Whether it is out, and is going to be back.
    async fn is_awaited(
        &self,
        client: &Client,
        state: &PublicationState,
        table: &TableName,
    ) -> Result<bool, PrepareError> {
        Ok(!state.covers(table) && self.takes(table) && identity::exists(client, table).await?)
    }

    /// Whether a transaction of before the table was back still runs. What it wrote before is decoded by the catalogue of that
    /// time and does not come, so that the gap ends behind it.
    fn waits_for(&mut self, table: &TableName, running: &Running, notes: &mut Notes) -> bool {
        let before = self.ending.entry(table.clone()).or_insert_with(|| running.clone());
        before.still(running);
        let waits = !before.is_empty();
        notes.tell_instead(&key(table), waits.then(|| still_open(table, before)));
        if !waits {
            self.ending.remove(table);
        }
        waits
    }

    async fn end(&self, client: &Client, table: &TableName, notes: &mut Notes) -> Result<(), PrepareError> {
        let to = identity::end_of_wal(client).await?;
        let Some(note) = notes.get(&key(table)).cloned() else { return Ok(()) };
        let closed = Note { to: Some(to), ..note };
        let trouble = told(&self.source.name, &closed).trouble;
        warn!(source = self.source.name, advice = trouble.advice, "{}", trouble.what);
        if let Err(error) = notes.put(closed).await {
            notes.say_unwritten(&error);
        }
        Ok(())
    }
}

/// Of a table that is back, as long as transactions of before run.
fn still_open(table: &TableName, running: &Running) -> Trouble {
    Trouble {
        what: format!(
            "{table} was out of the publication and is back: what transactions that began before then wrote to it is not \
             captured, so the gap ends when the last one has ended: {}",
            running.shown()
        ),
        advice: "wait for them; then the gap is named with both its ends".to_owned(),
    }
}

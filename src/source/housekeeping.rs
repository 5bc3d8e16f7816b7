//! What goes on beside the stream on the session's SQL connection: heartbeats, new tables for patterns, the state of the
//! slot. Nothing here touches the stream; a failure is logged, shown and tried again at its next turn.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_postgres::Client;
use tracing::{info, warn};

use super::notes::Notes;
use super::problem::chain;
use super::slot::{self, Missed};
use crate::config::{SinkConfig, SourceConfig};
use crate::store::{NoteKey, NoteKind};
use crate::view::{SharedViews, Trouble};

/// How often patterns are looked through for new tables.
const MAINTAIN_EVERY: Duration = Duration::from_secs(30);
/// The same while a table that a sink names is missing: what happens to it before it is published is not captured.
const MAINTAIN_MISSING_EVERY: Duration = Duration::from_secs(5);
/// How often the slot is looked at.
const INSPECT_EVERY: Duration = Duration::from_secs(5);

/// What housekeeping needs.
pub(super) struct Housekeeping {
    pub(super) client: Arc<Client>,
    pub(super) source: SourceConfig,
    pub(super) sinks: Vec<SinkConfig>,
    pub(super) views: SharedViews,
    /// What is noted of single tables.
    pub(super) notes: Notes,
    /// From making the slot ready.
    pub(super) troubles: Vec<Trouble>,
    /// From there too.
    pub(super) errors: Vec<Trouble>,
    /// From there too.
    pub(super) missed: Missed,
}

/// What is wrong, each part as it was last found.
struct Found {
    /// With the tables and the publication.
    troubles: Vec<Trouble>,
    /// With tables of which changes are lost or stand still.
    errors: Vec<Trouble>,
    /// Why they could not be looked at.
    fault: Option<Trouble>,
    /// With the slot.
    slot: Option<Trouble>,
}

impl Housekeeping {
    /// Runs until dropped or until the connection is gone.
    pub(super) async fn run(mut self) {
        if let Err(error) = slot::limit_statements(&self.client).await {
            warn!(source = %self.source.name, error = %chain(&error), "statements of the housekeeping have no limit");
        }
        let (troubles, errors) = (std::mem::take(&mut self.troubles), std::mem::take(&mut self.errors));
        let mut found = Found { troubles, errors, fault: None, slot: None };
        let missed = std::mem::take(&mut self.missed);
        self.keep(missed).await;
        let mut heartbeat = self.source.heartbeat.map(calm_interval);
        let mut maintain = calm_interval(MAINTAIN_EVERY);
        let mut inspect = calm_interval(INSPECT_EVERY);
        while !self.client.is_closed() {
            tokio::select! {
                _ = tick(&mut heartbeat) => self.heartbeat().await,
                _ = inspect.tick() => self.inspect(&mut found).await,
                _ = maintain.tick() => {
                    let next = self.maintain(&mut found).await;
                    maintain.reset_after(next);
                }
            }
        }
    }

    async fn heartbeat(&self) {
        if let Err(error) = slot::heartbeat(&self.client).await {
            warn!(source = %self.source.name, error = %chain(&error), "heartbeat failed");
        }
    }

    async fn inspect(&self, found: &mut Found) {
        match slot::inspect(&self.client, &self.source.slot).await {
            Ok(Some(facts)) => {
                found.slot = facts.warning(&self.source.slot);
                if let Some(mut view) = self.views.sources.get_mut(&self.source.name) {
                    view.progress.server = view.progress.server.max(facts.server_lsn);
                    view.slot = facts.view();
                }
            }
            // The stream notices a lost slot by itself.
            Ok(None) => {}
            Err(error) => warn!(source = %self.source.name, error = %chain(&error), "could not look at the slot"),
        }
        self.show(found);
    }

    /// Gives the time to the next turn.
    async fn maintain(&mut self, found: &mut Found) -> Duration {
        let mut next = MAINTAIN_EVERY;
        match slot::maintain(&self.client, &self.source, &self.sinks).await {
            Ok(done) => {
                for table in &done.added {
                    info!(source = %self.source.name, %table, "table added to the publication");
                }
                let before = found.troubles.iter().chain(&found.errors).cloned().collect::<Vec<_>>();
                for trouble in done.troubles.iter().chain(&done.errors).filter(|trouble| !before.contains(trouble)) {
                    warn!(source = %self.source.name, advice = trouble.advice, "{}", trouble.what);
                }
                self.keep(done.missed).await;
                if done.is_incomplete {
                    next = MAINTAIN_MISSING_EVERY;
                }
                (found.troubles, found.errors, found.fault) = (done.troubles, done.errors, None);
            }
            Err(error) => {
                warn!(source = %self.source.name, error = %chain(&error), "could not look for new tables");
                found.fault = Some(error.into_trouble());
            }
        }
        self.show(found);
        next
    }

    /// Notes what stays true over sessions and restarts.
    async fn keep(&mut self, missed: Missed) {
        for table in missed.made_anew {
            if !self.notes.is_out(&table) {
                self.notes.happened(NoteKey::new(NoteKind::MadeAnew, table)).await;
            }
        }
    }

    /// Shows everything that is wrong.
    fn show(&self, found: &Found) {
        let all = found.troubles.iter().chain(&found.fault).chain(&found.slot);
        if let Some(mut view) = self.views.sources.get_mut(&self.source.name) {
            view.troubles = all.cloned().collect();
            view.errors.clone_from(&found.errors);
            view.notes = self.notes.view();
        }
    }
}

fn calm_interval(every: Duration) -> Interval {
    let mut interval = interval(every);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Never, without an interval.
async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;

//! What goes on beside the stream on the session's SQL connection: heartbeats, new tables for patterns, the state of the
//! slot. Nothing here touches the stream; a failure is logged, shown and tried again at its next turn.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_postgres::Client;
use tracing::{info, warn};

use super::problem::chain;
use super::slot;
use crate::config::{SinkConfig, SourceConfig};
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
    /// From making the slot ready.
    pub(super) troubles: Vec<Trouble>,
    /// From there too: tables that were published too late.
    pub(super) uncaptured: Vec<Trouble>,
}

/// What is wrong, each part as it was last found.
struct Found {
    /// With the tables and the publication.
    troubles: Vec<Trouble>,
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
        let mut found = Found { troubles: std::mem::take(&mut self.troubles), fault: None, slot: None };
        let uncaptured = std::mem::take(&mut self.uncaptured);
        self.keep(uncaptured);
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
    async fn maintain(&self, found: &mut Found) -> Duration {
        let mut next = MAINTAIN_EVERY;
        match slot::maintain(&self.client, &self.source, &self.sinks).await {
            Ok(done) => {
                for table in &done.added {
                    info!(source = %self.source.name, %table, "table added to the publication");
                }
                for trouble in done.troubles.iter().filter(|trouble| !found.troubles.contains(trouble)) {
                    warn!(source = %self.source.name, advice = trouble.advice, "{}", trouble.what);
                }
                for trouble in &done.uncaptured {
                    warn!(source = %self.source.name, advice = trouble.advice, "{}", trouble.what);
                }
                self.keep(done.uncaptured);
                if done.is_incomplete {
                    next = MAINTAIN_MISSING_EVERY;
                }
                found.troubles = done.troubles;
                found.fault = None;
            }
            Err(error) => {
                warn!(source = %self.source.name, error = %chain(&error), "could not look for new tables");
                found.fault = Some(error.into_trouble());
            }
        }
        self.show(found);
        next
    }

    /// Adds to what stays true while the process runs, over sessions.
    fn keep(&self, uncaptured: Vec<Trouble>) {
        if let Some(mut view) = self.views.sources.get_mut(&self.source.name) {
            for trouble in uncaptured {
                // One a named table, at most.
                if !view.uncaptured.contains(&trouble) {
                    view.uncaptured.push(trouble);
                }
            }
        }
    }

    /// Shows everything that is wrong.
    fn show(&self, found: &Found) {
        let all = found.troubles.iter().chain(&found.fault).chain(&found.slot);
        if let Some(mut view) = self.views.sources.get_mut(&self.source.name) {
            let all = all.chain(&view.uncaptured).cloned().collect();
            view.troubles = all;
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

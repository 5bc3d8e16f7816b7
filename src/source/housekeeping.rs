//! What goes on beside the stream on the session's SQL connection: heartbeats, new tables for patterns, the state of the
//! slot. Nothing here touches the stream; a failure is logged, shown and tried again at its next turn.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tokio_postgres::Client;
use tracing::warn;

use super::ahead::Ahead;
use super::identity::{Tended, Watch};
use super::notes::Notes;
use super::slot::missed::{self, Moves, Relation};
use super::slot::{self, Learnt, Missed, PrepareError, Site};
use crate::change::TableName;
use crate::config::{SinkConfig, SourceConfig};
use crate::fault::chain;
use crate::view::{SharedViews, Trouble};

/// How often patterns are looked through for new tables.
const MAINTAIN_EVERY: Duration = Duration::from_secs(30);
/// The same while a table that a sink names is missing, for what happens to it before it is published is not captured, and while
/// a look fails.
const MAINTAIN_MISSING_EVERY: Duration = Duration::from_secs(5);
/// Longest wait for that. In between, a look takes one part in so many of the time: with thousands of tables it is no small thing
/// for the server.
const MAINTAIN_MISSING_MAX: Duration = Duration::from_secs(10);
const MAINTAIN_SHARE: u32 = 20;
/// The same while there are more tables to publish than one look has time for: heartbeats go between two looks.
const MAINTAIN_UNFINISHED_EVERY: Duration = Duration::from_millis(500);
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
    /// Looks after the replica identities of what is published.
    pub(super) watch: Watch,
    /// From making the slot ready.
    pub(super) troubles: Vec<Trouble>,
    /// From there too.
    pub(super) errors: Vec<Trouble>,
    /// From there too.
    pub(super) harms: Vec<Trouble>,
    /// From there too.
    pub(super) missed: Missed,
    /// What making it ready has learnt of the publication.
    pub(super) learnt: Learnt,
}

/// What is wrong, each part as it was last found.
#[derive(Default)]
struct Found {
    /// With the tables and the publication.
    troubles: Vec<Trouble>,
    /// With tables of which changes are lost or stand still.
    errors: Vec<Trouble>,
    /// Why they could not be looked at.
    fault: Option<Trouble>,
    /// With the slot.
    slot: Option<Trouble>,
    /// Why replica identities could not be looked at.
    unwatched: Option<Trouble>,
    /// Tables whose own writes fail.
    harms: Vec<Trouble>,
    /// Every relation.
    relations: Vec<Relation>,
    /// Those of them that were captured at any look.
    captured: HashSet<u32>,
    /// Heartbeats are refused.
    heartbeat: Option<Trouble>,
    /// Commits of others wait for us.
    commits: Option<Trouble>,
}

impl Housekeeping {
    /// Runs until dropped or until the connection is gone.
    pub(super) async fn run(mut self) {
        if let Err(error) = slot::limit_statements(&self.client).await {
            warn!(source = %self.source.name, error = %chain(&error), "statements of the housekeeping have no limit");
        }
        let (troubles, errors) = (std::mem::take(&mut self.troubles), std::mem::take(&mut self.errors));
        let harms = std::mem::take(&mut self.harms);
        let mut found = Found { troubles, errors, harms, ..Found::default() };
        let missed = std::mem::take(&mut self.missed);
        self.keep(missed, &mut found).await;
        let mut heartbeat = self.source.heartbeat.map(calm_interval);
        let mut maintain = calm_interval(MAINTAIN_EVERY);
        let mut inspect = calm_interval(INSPECT_EVERY);
        while !self.client.is_closed() {
            tokio::select! {
                _ = tick(&mut heartbeat) => self.heartbeat(&mut found).await,
                _ = inspect.tick() => {
                    self.inspect(&mut found).await;
                    if self.tend(&mut found).await {
                        maintain.reset_immediately();
                    }
                }
                _ = maintain.tick() => {
                    let next = self.maintain(&mut found).await;
                    self.tend(&mut found).await;
                    maintain.reset_after(next);
                }
            }
        }
    }

    async fn heartbeat(&self, found: &mut Found) {
        let missed = slot::heartbeat(&self.client).await.err();
        if let Some(error) = missed.as_ref().filter(|_| found.heartbeat.is_none()) {
            warn!(source = %self.source.name, error = %chain(error), "heartbeat failed");
        }
        // The stream goes on without; other failures pass.
        let refused = missed.filter(PrepareError::is_refusal).map(|error| error.with_grant(&self.source.url.user));
        let refused = refused.map(|error| {
            let Trouble { what, advice } = error.into_trouble();
            let what = format!("{what}; without heartbeats the slot stands still while the database is idle");
            Trouble { what, advice: format!("{advice} or set heartbeat = \"0s\" on the source") }
        });
        if refused != found.heartbeat {
            found.heartbeat = refused;
            self.show(found);
        }
    }

    async fn inspect(&self, found: &mut Found) {
        crate::failpoint::hit("housekeeping.look");
        match slot::inspect(&self.client, &self.source.slot).await {
            Ok(Some(facts)) => {
                found.slot = facts.warning(&self.source.slot);
                if let Some(mut view) = self.views.sources.get_mut(&self.source.name) {
                    view.slot = facts.view();
                }
            }
            // The stream notices a lost slot by itself.
            Ok(None) => {}
            Err(error) => warn!(source = %self.source.name, error = %chain(&error), "could not look at the slot"),
        }
        // A failure passes, or has been said of the slot.
        if let Ok(waits) = slot::commits_wait(&self.client, &self.source).await {
            for trouble in waits.iter().filter(|trouble| found.commits.as_ref() != Some(*trouble)) {
                warn!(source = %self.source.name, advice = trouble.advice, "{}", trouble.what);
            }
            found.commits = waits;
        }
    }

    /// Looks at the replica identities; whether a table waits to be put back.
    async fn tend(&mut self, found: &mut Found) -> bool {
        let Tended { harms, wants_back, fault } = self.watch.tend(&self.client, &mut self.notes).await;
        (found.harms, found.unwatched) = (harms, fault);
        self.show(found);
        wants_back
    }

    /// Gives the time to the next turn.
    async fn maintain(&mut self, found: &mut Found) -> Duration {
        let (mut next, began) = (MAINTAIN_EVERY, Instant::now());
        let site = Site { client: &self.client, source: &self.source, sinks: &self.sinks };
        let mut ahead = Ahead::new(&mut self.notes, &found.captured);
        match slot::maintain(site, &mut self.learnt, Some(&mut ahead)).await {
            Ok(done) => {
                ahead.settle(&done.missed.late).await;
                let before = found.troubles.iter().chain(&found.errors).cloned().collect::<Vec<_>>();
                for trouble in done.troubles.iter().chain(&done.errors).filter(|trouble| !before.contains(trouble)) {
                    warn!(source = %self.source.name, advice = trouble.advice, "{}", trouble.what);
                }
                self.keep(done.missed, found).await;
                if done.is_incomplete {
                    let gentle = began.elapsed().saturating_mul(MAINTAIN_SHARE);
                    next = gentle.clamp(MAINTAIN_MISSING_EVERY, MAINTAIN_MISSING_MAX);
                }
                if done.is_unfinished {
                    next = MAINTAIN_UNFINISHED_EVERY;
                }
                (found.troubles, found.errors, found.fault) = (done.troubles, done.errors, None);
            }
            Err(error) => {
                warn!(source = %self.source.name, error = %chain(&error), "could not look for new tables");
                found.fault = Some(error.into_trouble());
                next = MAINTAIN_MISSING_EVERY;
            }
        }
        self.show(found);
        next
    }

    /// Notes what stays true over sessions and restarts.
    async fn keep(&mut self, missed: Missed, found: &mut Found) {
        let Missed { late, standing, relations, unfit } = missed;
        self.watch.learn(&unfit);
        // First, for what is noted below may be of the next table of the same name.
        self.notes.follow(&relations, |table| takes(&self.sinks, table)).await;
        let oids = by_name(&relations);
        for (key, oid) in late.keys(|table| oids.get(table).copied(), &found.captured) {
            // The gap of a table that comes back says the same, with its ends.
            if !self.notes.is_out(&key.table) {
                self.notes.happened(key, oid).await;
            }
        }
        self.notes.settle(standing).await;
        if !found.relations.is_empty() {
            self.note_moves(found, &relations, &oids).await;
        }
        found.see(relations);
    }

    /// Notes what has become of tables since the look before.
    async fn note_moves(&mut self, found: &Found, now: &[Relation], oids: &HashMap<TableName, u32>) {
        let takes = |table: &TableName| takes(&self.sinks, table);
        let Moves { away, joined, early, again } = missed::moves(&found.relations, now, &found.captured, takes);
        for key in away.into_iter().chain(early).chain(again) {
            if !self.notes.is_out(&key.table) {
                let oid = oids.get(key.other.as_ref().unwrap_or(&key.table)).copied();
                self.notes.happened(key, oid).await;
            }
        }
        if joined.is_empty() {
            return;
        }
        let oids: Vec<u32> = joined.iter().map(|(oid, _)| *oid).collect();
        match missed::attached_with_rows(&self.client, &oids).await {
            Ok(with_rows) => {
                for (oid, key) in joined.into_iter().filter(|(oid, _)| with_rows.contains(oid)) {
                    self.notes.happened(key, Some(oid)).await;
                }
            }
            Err(error) => {
                warn!(source = %self.source.name, error = %chain(&error), "could not look at new partitions");
            }
        }
    }

    /// Shows everything that is wrong.
    fn show(&self, found: &Found) {
        let all = found.troubles.iter().chain(&found.fault).chain(&found.slot).chain(&found.unwatched);
        let all = all.chain(&found.heartbeat).chain(&found.commits);
        if let Some(mut view) = self.views.sources.get_mut(&self.source.name) {
            view.troubles = all.cloned().collect();
            view.errors.clone_from(&found.errors);
            view.harms.clone_from(&found.harms);
            view.notes = self.notes.view(self.watch.outlook());
        }
    }
}

impl Found {
    /// Remembers a look at all relations.
    fn see(&mut self, relations: Vec<Relation>) {
        let there: HashSet<u32> = relations.iter().map(|relation| relation.oid).collect();
        self.captured.retain(|oid| there.contains(oid));
        self.captured.extend(relations.iter().filter(|relation| relation.is_captured).map(|relation| relation.oid));
        self.relations = relations;
    }
}

fn takes(sinks: &[SinkConfig], table: &TableName) -> bool {
    sinks.iter().any(|sink| sink.takes_table(table))
}

fn by_name(relations: &[Relation]) -> HashMap<TableName, u32> {
    relations.iter().map(|relation| (relation.name.clone(), relation.oid)).collect()
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

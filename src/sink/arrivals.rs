//! What comes in from the source: changes, and marks of how far it has come.

use std::sync::Arc;
use std::time::Instant;

use super::Task;
use super::content::{Payload, detached};
use super::restore::arrival;
use super::tables::Arrival;
use crate::change::{Change, Lsn};
use crate::config::SinkConfig;
use crate::feed::Feed;
use crate::record::{Rendering, RenderingSettings};
use crate::schedule::Message;
use crate::schedule::resume::Admission;
use crate::ties::{Barrier, Groups, Ties};

/// As many bytes as no delivery of several messages has.
pub(super) fn alone(config: &SinkConfig) -> usize {
    config.batch_bytes.saturating_add(1)
}

impl Task {
    pub(super) fn take_in(&mut self, fed: Vec<Feed>) {
        let now = Instant::now();
        let mut messages = 0;
        let resolved = self.scheduler.resolved();
        for item in fed {
            match item {
                Feed::Database { system_id } => self.rendering = Some(self.rendering(system_id)),
                Feed::Table { scope, oid, rule } => self.tables.describe(oid, scope, rule),
                Feed::Change { change, groups, scope, barrier } => {
                    messages += 1;
                    let barrier = if barrier { Barrier::Scope } else { Barrier::None };
                    self.admit(now, change, Ties { groups, scope, barrier });
                }
                Feed::Weight(charge) => drop(charge),
                Feed::Mark(lsn) => {
                    self.scheduler.mark(lsn);
                    self.passed(lsn);
                }
            }
        }
        if self.scheduler.resolved() > resolved {
            self.ledger.touch();
        }
        self.sink.metrics.received_messages.increment(messages);
    }

    fn admit(&mut self, now: Instant, change: Change, ties: Ties) {
        let position = change.position();
        let admission = self.resume.as_mut().map_or(Admission::New, |resume| resume.admit(position));
        if admission == Admission::Skip {
            return;
        }
        let barrier = self.barrier(&change, ties, admission == Admission::New);
        let bytes = self.body_bytes(&change);
        self.largest_bytes = self.largest_bytes.max(change.len_bytes());
        let change = if self.is_tight() { detached(change, &self.sink.memory) } else { change };
        let Ties { groups, scope, .. } = ties;
        let commit_micros = change.transaction.commit_micros;
        let message = Message { groups, scope, barrier, bytes, position, payload: Payload::Change(change) };
        match admission {
            Admission::Again => self.scheduler.push_again(now, message, arrival(commit_micros, now)),
            Admission::New | Admission::Skip => {
                self.resume = None;
                self.scheduler.push(now, message)
            }
        };
    }

    /// What the change is to the others of its table: by itself, or because it is grouped by another rule than those before.
    fn barrier(&mut self, change: &Change, ties: Ties, is_new: bool) -> Barrier {
        let (oid, position, resolved) = (change.table.oid, change.position(), self.scheduler.resolved());
        let (by_rule, op) =
            self.tables.arrive(Arrival { oid, position, is_new, resolved }, |scope| self.scheduler.is_waiting(scope));
        if let Some(op) = op {
            self.ledger.note(op, 0);
        }
        match (ties.groups, ties.barrier, by_rule) {
            // What has no order waits for nothing.
            (Groups::None, _, _) => Barrier::None,
            (Groups::One(_) | Groups::Two(..), by_itself, Barrier::None) => by_itself,
            (Groups::One(_) | Groups::Two(..), _, by_rule) => by_rule,
        }
    }

    /// Everything up to here has been fed.
    fn passed(&mut self, lsn: Lsn) {
        if let Some(resume) = &mut self.resume {
            resume.passed(lsn);
        }
    }

    pub(super) fn rendering(&self, system_id: u64) -> Arc<Rendering> {
        let config = &self.sink.config;
        Arc::new(Rendering::new(&RenderingSettings {
            source: &config.source,
            sink: &config.name,
            form: config.message,
            numbers: config.numbers,
            system_id,
        }))
    }

    /// Bytes the change adds to a body at most; it matters only where several share one.
    fn body_bytes(&self, change: &Change) -> usize {
        let config = &self.sink.config;
        if change.oversize.is_some() {
            return alone(config);
        }
        match &self.rendering {
            Some(rendering) if config.batch_size > 1 => {
                rendering.body_bytes_max(change, config.batch_bytes / config.batch_size)
            }
            Some(_) | None => change.len_bytes(),
        }
    }

    /// A change that waits long keeps the whole buffer it was read into; above a quarter of the limit it takes only its
    /// own bytes along.
    fn is_tight(&self) -> bool {
        self.sink.memory.held() > self.sink.memory.limit() / 4
    }
}

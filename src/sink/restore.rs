//! What the store has of a sink from a life before: names and numbers, no bodies.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tracing::{info, warn};

use super::Task;
use super::content::{Content, Delivery, Facts, instant_of, micros_of, time_of};
use super::tables::Tables;
use crate::change::{Lsn, Position};
use crate::config::OnExhausted;
use crate::deliver::category::is_splittable_status;
use crate::deliver::frozen::DeliveryId;
use crate::schedule::resume::Resume;
use crate::schedule::{Restored, StoredSpan};
use crate::store::{DeadReason, KeptDelivery, Loaded, Op, Tries};

impl Task {
    pub(super) fn restore(&mut self, loaded: Loaded) {
        let now = Instant::now();
        let (damaged, damaged_count) = (loaded.damaged.clone(), loaded.damaged_count);
        let unreadable = loaded.unreadable.clone();
        let arrivals = arrivals(&loaded, now);
        let Loaded { progress, paused, deliveries, lanes, barriers, scopes, tables, overflow, dead_letters, .. } =
            loaded;
        if let Some(progress) = progress {
            self.scheduler.restore_progress(progress.resolved, progress.high);
            self.sink.progress.resolve(progress.resolved);
            self.resume = progress.high.map(|high| Resume::new(high, progress.unresolved));
        }
        self.pages = (overflow.next_page, overflow.first_page.unwrap_or(overflow.next_page));
        let (count, lane_count) = (deliveries.len(), lanes.len());
        let restored = deliveries.iter().map(|delivery| restored(delivery, now, self.sink.config.retry.max)).collect();
        let keys = self.scheduler.restore(now, restored);
        for (key, kept) in keys.into_iter().zip(deliveries) {
            self.deliveries.insert(key, delivery(kept, now));
        }
        self.scheduler.restore_scopes(now, barriers, scopes);
        self.tables = Tables::new(tables);
        let beginnings: Vec<_> = lanes.iter().filter_map(|lane| Some((lane.group, lane.scope?, lane.first))).collect();
        let lanes = lanes.into_iter().map(|lane| (lane.group, count_of(lane.messages), lane.last));
        self.scheduler.restore_waiting(lanes, count_of(overflow.messages));
        self.scheduler.restore_beginnings(beginnings);
        let pages = overflow.pages.iter().map(|(micros, messages)| (arrival(*micros, now), count_of(*messages)));
        self.scheduler.restore_arrivals(arrivals, pages);
        let config = &self.sink.config;
        if config.paused {
            self.scheduler.pause();
            info!(sink = %config.name, "sink is paused by its configuration: its changes wait");
        }
        if let Some(why) = paused {
            self.scheduler.pause();
            warn!(sink = %config.name, "sink is still paused: {why}; `walhook state resume {}` ends that", config.name);
            self.report.paused(why);
        }
        self.report.dead_letters(dead_letters);
        self.report.known_damaged(damaged, damaged_count);
        if count + lane_count > 0 || overflow.messages > 0 {
            info!(
                sink = %config.name,
                deliveries = count,
                groups_waiting = lane_count,
                overflow_messages = overflow.messages,
                "goes on with what the store holds"
            );
        }
        self.give_up_unreadable(unreadable);
    }
}

impl Task {
    /// Deliveries of which nobody knows the messages, so the groups neither, are given up. Where a group would have to wait for a
    /// person, the sink does.
    fn give_up_unreadable(&mut self, unreadable: Vec<(DeliveryId, Tries)>) {
        for (id, tries) in unreadable {
            let at_micros = micros_of(SystemTime::now());
            self.ledger.note(Op::Dead { id, at_micros, reason: DeadReason::Damaged, tries }, 0);
            self.ledger.touch();
            self.sink.metrics.dead_lettered(DeadReason::Damaged);
            self.report.lost(id);
            match self.sink.config.retry.on_exhausted {
                OnExhausted::Continue => {}
                OnExhausted::BlockGroup | OnExhausted::PauseSink => {
                    let why =
                        format!("delivery {id} is damaged, and nobody knows which groups would have to wait for it");
                    warn!(sink = %self.sink.config.name, "sink is paused: {why}");
                    self.scheduler.pause();
                    self.report.paused(why.clone());
                    self.ledger.note(Op::Paused { why }, 0);
                }
            }
        }
    }
}

/// Times come from the wall clock, which may have jumped: nothing waits longer than the longest wait, or began later than now.
fn restored(kept: &KeptDelivery, now: Instant, wait_max: Duration) -> Restored {
    let tries = &kept.tries;
    let was_refused = tries.last.as_ref().and_then(|last| last.status).is_some_and(is_splittable_status);
    let due = tries.next_attempt_micros.map_or(now, |micros| instant_of(micros, now)).min(now + wait_max);
    let first = kept.members.first().map(|member| member.facts.position);
    Restored {
        members: kept.members.iter().map(|member| member.facts.tied()).collect(),
        position: first.unwrap_or(Position { commit_lsn: Lsn::ZERO, index: 0 }),
        attempts: tries.attempts,
        failures: tries.failures,
        refusals: if was_refused { tries.attempts } else { 0 },
        first_attempt: tries.first_attempt_micros.map(|micros| instant_of(micros, now).min(now)),
        due: (!kept.blocked).then_some(due),
        is_part: kept.parent.is_some(),
    }
}

/// When a message arrived that was committed at this time: this process has not seen that.
pub(super) fn arrival(commit_micros: i64, now: Instant) -> Instant {
    instant_of(commit_micros, now).min(now)
}

/// Of the messages in deliveries and lanes.
fn arrivals(loaded: &Loaded, now: Instant) -> Vec<StoredSpan> {
    let members = loaded.deliveries.iter().flat_map(|delivery| &delivery.members).map(|member| {
        let position = member.facts.position;
        let arrived = arrival(member.facts.commit_micros, now);
        StoredSpan { first: position, last: position, arrived, messages: 1 }
    });
    let lanes = loaded.lane_spans.iter().map(|span| StoredSpan {
        first: span.first,
        last: span.last,
        arrived: span.committed_micros.map_or(now, |micros| arrival(micros, now)),
        messages: count_of(span.messages),
    });
    members.chain(lanes).collect()
}

fn delivery(kept: KeptDelivery, now: Instant) -> Delivery {
    let KeptDelivery { id, parent, created_micros, members, tries, blocked } = kept;
    Delivery {
        content: Content::Stored(id),
        facts: Facts::of_members(&members, now),
        members: Arc::new(members),
        homes: Vec::new(),
        stored: Some(id),
        parent,
        created_at: time_of(created_micros),
        tries,
        blocked,
        under_way: None,
    }
}

fn count_of(messages: u64) -> usize {
    usize::try_from(messages).unwrap_or(usize::MAX)
}

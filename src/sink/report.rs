//! What a sink tells people: log lines that do not flood, and its view.

use std::time::{Duration, Instant, SystemTime};

use tracing::{debug, error, field, info, warn};

use super::Parts;
use super::content::{Facts, Payload};
use super::slowness::{self, Change, Slowness};
use crate::config::SinkConfig;
use crate::deliver::attempt::Attempt;
use crate::deliver::category::Category;
use crate::deliver::frozen::DeliveryId;
use crate::schedule::{BreakerState, DeliveryKey, Scheduler, Verdict};
use crate::store::{DamagedMessage, DeadReason, Expired};
use crate::view::{BreakerView, LastFailure, OWN_TROUBLE, OwnTroubleView, SinkView};

/// Warnings of one sink in one second; the rest is counted and told with the next.
const WARNINGS_A_SECOND: u32 = 5;
/// Damaged messages that are kept to be named; as many as are loaded.
const DAMAGED_MAX: usize = 100;

/// A failed attempt.
pub(super) struct Failed<'a> {
    pub(super) number: u32,
    pub(super) attempt: &'a Attempt,
    pub(super) category: Category,
    pub(super) message: &'a str,
    pub(super) verdict: &'a Verdict,
    pub(super) id: Option<DeliveryId>,
}

/// See the module.
pub(super) struct Report {
    sink: String,
    failures_in_a_row: u64,
    failing_since: Option<SystemTime>,
    last_failure: Option<LastFailure>,
    second_began: Instant,
    warned: u32,
    unsaid: u64,
    paused_why: Option<String>,
    dead_letters: u64,
    /// The newest damaged messages, the last one last, and how many there are in all.
    damaged: Vec<DamagedMessage>,
    damaged_count: u64,
    breaker_was_open: bool,
    slowness: Slowness,
    own: Option<OwnTroubleView>,
}

impl Report {
    pub(super) fn new(config: &SinkConfig) -> Self {
        Self {
            sink: config.name.clone(),
            failures_in_a_row: 0,
            failing_since: None,
            last_failure: None,
            second_began: Instant::now(),
            warned: 0,
            unsaid: 0,
            paused_why: None,
            dead_letters: 0,
            damaged: Vec::new(),
            damaged_count: 0,
            breaker_was_open: false,
            slowness: Slowness::default(),
            own: None,
        }
    }

    pub(super) fn acknowledged(&mut self, key: DeliveryKey, facts: &Facts) {
        debug!(sink = %self.sink, delivery = key.0, messages = facts.messages, "delivered");
        self.failures_in_a_row = 0;
        self.failing_since = None;
    }

    pub(super) fn failed(&mut self, failed: &Failed<'_>, facts: &Facts) {
        self.failures_in_a_row += 1;
        let wait = match failed.verdict {
            Verdict::Retry(at) => Some(at.saturating_duration_since(Instant::now())),
            Verdict::Split { .. } => Some(Duration::ZERO),
            Verdict::Done | Verdict::Dead { .. } | Verdict::Blocked(_) => None,
        };
        let now = SystemTime::now();
        self.failing_since.get_or_insert(now);
        let category = failed.category.as_str();
        let (at, message, next_attempt_at) = (now, failed.message.to_owned(), wait.map(|wait| now + wait));
        self.last_failure = Some(LastFailure { at, category, message, next_attempt_at });
        self.warn(failed, facts, wait);
    }

    fn warn(&mut self, failed: &Failed<'_>, facts: &Facts, wait: Option<Duration>) {
        if self.second_began.elapsed() >= Duration::from_secs(1) {
            self.second_began = Instant::now();
            self.warned = 0;
        }
        if self.warned >= WARNINGS_A_SECOND {
            self.unsaid += 1;
            return;
        }
        self.warned += 1;
        let delivery = failed.id.map(|id| id.to_string());
        warn!(
            sink = %self.sink,
            group_hash = facts.group.map(field::display),
            delivery,
            messages = facts.messages,
            attempt = failed.number,
            category = failed.category.as_str(),
            status = failed.attempt.status,
            error = failed.message,
            retry_in_secs = wait.map(|wait| wait.as_secs_f64()),
            suppressed = self.unsaid,
            "delivery failed"
        );
        self.unsaid = 0;
    }

    /// A delivery was given up.
    pub(super) fn dead(&mut self, facts: &Facts, id: DeliveryId, reason: DeadReason, attempts: u32) {
        self.dead_letters += 1;
        let (sink, reason, group_hash) = (&self.sink, reason.as_str(), facts.group.map(field::display));
        warn!(sink, delivery = %id, group_hash, messages = facts.messages, attempts, reason, "delivery is a dead letter");
    }

    /// So many dead letters are in the store from before.
    pub(super) fn dead_letters(&mut self, dead_letters: u64) {
        self.dead_letters = dead_letters;
    }

    /// A message was found to be damaged, and is given up.
    pub(super) fn damaged(&mut self, message: DamagedMessage) {
        let DamagedMessage { id, position, group, blocked, .. } = &message;
        let position = position.map(|position| format!("{} {}", position.commit_lsn, position.index));
        let (sink, group_hash, group_waits) = (&self.sink, group.map(field::display), *blocked);
        error!(
            sink,
            message_id = id,
            position,
            group_hash,
            group_waits,
            "a message in the store is damaged: its content is lost to walhook, and it is not delivered"
        );
        // One that was let go on is found once more.
        let known = self.damaged.iter().position(|known| known.id == message.id);
        match known {
            Some(at) => drop(self.damaged.remove(at)),
            None => self.damaged_count += 1,
        }
        if self.damaged.len() >= DAMAGED_MAX {
            self.damaged.remove(0);
        }
        self.damaged.push(message);
    }

    /// The same of a delivery whose messages cannot be told: it is a dead letter.
    pub(super) fn lost(&mut self, id: DeliveryId) {
        self.dead_letters += 1;
        let (delivery, id) = (Some(id), id.to_string());
        self.damaged(DamagedMessage { delivery, id, position: None, group: None, blocked: false });
    }

    /// So many are in the store from before; these are the newest, the last one last.
    pub(super) fn known_damaged(&mut self, newest: Vec<DamagedMessage>, count: u64) {
        self.damaged = newest;
        self.damaged_count = count;
    }

    /// What has expired is not there any more.
    pub(super) fn expired(&mut self, Expired { letters, damaged }: &Expired) {
        self.dead_letters = self.dead_letters.saturating_sub(*letters);
        self.damaged_count = self.damaged_count.saturating_sub(u64::try_from(damaged.len()).unwrap_or(u64::MAX));
        self.damaged.retain(|known| known.delivery.is_none_or(|delivery| !damaged.contains(&delivery)));
    }

    /// The sink was paused by `retry.on_exhausted`.
    pub(super) fn paused(&mut self, why: String) {
        self.paused_why = Some(why);
    }

    /// walhook's own machine is in trouble: the sink waits as a whole.
    pub(super) fn own_trouble(&mut self, category: Category, message: String) {
        let (sink, category) = (&self.sink, category.as_str());
        let since = match &self.own {
            Some(own) if own.category == category => own.since,
            Some(_) | None => {
                warn!(
                    sink,
                    category,
                    error = message,
                    hold_reason = OWN_TROUBLE,
                    "sink waits for walhook's own machine"
                );
                SystemTime::now()
            }
        };
        self.own = Some(OwnTroubleView { category, message, since });
    }

    /// It is over once attempts end otherwise.
    fn own(&mut self, lasts: bool) -> Option<OwnTroubleView> {
        if !lasts && let Some(own) = self.own.take() {
            info!(sink = %self.sink, category = own.category, "sink goes on: walhook's own machine is well again");
        }
        self.own.clone()
    }

    /// The endpoint answered, whatever it said.
    pub(super) fn answered(&mut self, began: Instant, took: Duration) {
        self.slowness.answered(began, took);
    }

    /// What answers take, while the endpoint is slow.
    fn slow(&mut self, answers: Duration, facts: slowness::Facts, waiting: usize) -> Option<Duration> {
        let sink = &self.sink;
        let (answers_secs, oldest_secs) = (answers.as_secs(), facts.oldest.unwrap_or_default().as_secs());
        match self.slowness.look(answers, facts) {
            Some(Change::Begins) => {
                warn!(sink, answers_secs, waiting, oldest_secs, "endpoint is slow: it answers, but messages wait")
            }
            Some(Change::Ends) => info!(sink, answers_secs, waiting, oldest_secs, "endpoint is slow no longer"),
            None => {}
        }
        self.slowness.is_slow().then_some(answers)
    }

    fn breaker(&mut self, state: BreakerState) -> BreakerView {
        let view = match state {
            BreakerState::Closed => BreakerView::Closed,
            BreakerState::Open { until, failures } => {
                let until = SystemTime::now() + until.saturating_duration_since(Instant::now());
                BreakerView::Open { until, failures: failures.into() }
            }
            BreakerState::Probing { failures } => {
                BreakerView::Open { until: SystemTime::now(), failures: failures.into() }
            }
            BreakerState::RampUp { limit } => BreakerView::RampUp { limit },
        };
        let is_open = matches!(view, BreakerView::Open { .. });
        match (self.breaker_was_open, is_open) {
            (false, true) => {
                warn!(sink = %self.sink, "endpoint fails as a whole: one probe at a time until it answers")
            }
            (true, false) => info!(sink = %self.sink, "endpoint answers again"),
            (true, true) | (false, false) => {}
        }
        self.breaker_was_open = is_open;
        view
    }

    /// The sink as it is now.
    pub(super) fn view(
        &mut self,
        sink: &Parts,
        scheduler: &Scheduler<Payload>,
        (now, under_way): (Instant, impl Iterator<Item = Instant>),
    ) -> SinkView {
        let counts = scheduler.counts();
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        if counts.failed == 0 && self.last_failure.take().is_some() {
            info!(sink = %self.sink, "all failed deliveries have been acknowledged");
        }
        let wall = |at: Instant| SystemTime::now().checked_sub(at.elapsed());
        let oldest = scheduler.oldest_undelivered();
        let breaker = self.breaker(counts.breaker);
        let is_held = scheduler.is_paused() || matches!(breaker, BreakerView::Open { .. });
        let facts = slowness::Facts { oldest: oldest.map(|at| now.saturating_duration_since(at)), is_held };
        let slow = self.slow(self.slowness.answers(now, under_way), facts, counts.undelivered);
        SinkView {
            source: sink.config.source.clone(),
            paused: scheduler.is_paused(),
            in_flight: counts.in_flight,
            ack_pending: counts.ack_pending,
            max_ack_pending: sink.config.max_ack_pending,
            waiting: counts.waiting,
            retrying: counts.failed,
            groups_held: counts.groups_held,
            tables_held: counts.barriers_pending,
            tables_held_since: scheduler.oldest_barrier().and_then(wall),
            oldest_received_at: oldest.and_then(wall),
            slow,
            own_trouble: self.own(scheduler.own_trouble().is_some()),
            undelivered: count(counts.undelivered),
            failures_in_a_row: self.failures_in_a_row,
            failing_since: self.failing_since,
            last_failure: self.last_failure.clone(),
            resolved: sink.progress.resolved(),
            paused_why: self.paused_why.clone().filter(|_| scheduler.is_paused()),
            breaker,
            stored_deliveries: count(counts.parked),
            lane_messages: count(counts.lane_messages),
            overflow_messages: count(counts.overflow_messages),
            blocked_deliveries: count(counts.blocked),
            dead_letters: self.dead_letters,
            damaged: self.damaged.clone(),
            damaged_count: self.damaged_count,
        }
    }
}

//! Attempts: their tasks, and what becomes of a delivery when one has ended.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use futures_util::FutureExt as _;
use tracing::{debug, error, field, info, warn};

use super::content::{Content, Delivery, Facts, Payload, freeze, group_of, homes, micros_of};
use super::stored::fetch;
use super::unsendable::{DAMAGED, Unsendable, damaged_message, unsendable};
use super::{Task, report};
use crate::deliver::attempt::{Attempt, Verdict};
use crate::deliver::category::{Category, is_splittable};
use crate::deliver::frozen::Frozen;
use crate::failpoint;
use crate::schedule::{self, DeliveryKey, Exhausted, Failure, Outcome, WriteId};
use crate::store::{DeadReason, LastFailure, Member, Op, Tries};

/// What a request under way takes beside its body: its task, its connection's buffers.
const REQUEST_BYTES: usize = 16 << 10;

/// An attempt that ended.
pub(super) struct Ended {
    key: DeliveryKey,
    number: u32,
    frozen: Option<Frozen>,
    attempt: Attempt,
}

/// How an attempt failed.
struct Failed {
    number: u32,
    attempt: Attempt,
    category: Category,
    message: String,
}

impl Task {
    pub(super) fn form(&mut self, key: DeliveryKey, messages: Vec<Payload>) {
        let facts = Facts::of(&messages);
        self.sink.metrics.received_to_first_attempt.record(facts.oldest_received.elapsed());
        let homes = homes(&messages);
        let created_at = SystemTime::now();
        let delivery = Delivery {
            content: Content::Messages(Arc::new(messages), Arc::new(OnceLock::new())),
            facts,
            members: Arc::default(),
            homes,
            stored: None,
            parent: None,
            created_at,
            tries: Tries { first_attempt_micros: Some(micros_of(created_at)), ..Tries::default() },
            blocked: false,
            under_way: None,
        };
        self.deliveries.insert(key, delivery);
        self.start(key, 1);
    }

    /// Starts an attempt in a task of its own; the first one renders the body there, later ones may have to fetch it.
    pub(super) fn start(&mut self, key: DeliveryKey, number: u32) {
        let Some(delivery) = self.deliveries.get_mut(&key) else { return };
        let Some(rendering) = self.rendering.clone() else { return };
        // One that is parked while it hangs has used up this attempt.
        delivery.tries.attempts = number;
        delivery.under_way = Some(Instant::now());
        delivery.tries.first_attempt_micros.get_or_insert_with(|| micros_of(SystemTime::now()));
        let (content, members) = (delivery.content.clone(), Arc::clone(&delivery.members));
        let (endpoint, memory) = (self.sink.endpoint.clone(), self.sink.memory.clone());
        let (config, fetching) = (Arc::clone(&self.sink.config), self.sink.fetching.clone());
        let place = (self.ledger.store().clone(), self.ledger.key());
        let mut charge = memory.charge(REQUEST_BYTES + content.bytes_to_come(&members));
        self.attempts.spawn(async move {
            let started_at = SystemTime::now();
            let work = AssertUnwindSafe(async {
                let frozen = match content {
                    Content::Frozen(frozen) => frozen,
                    Content::Messages(messages, early) => match early.get() {
                        Some(frozen) => frozen.clone(),
                        None => {
                            let frozen = freeze(&config, &rendering, &memory, &messages);
                            let frozen = match &fetching {
                                Some(fetching) => fetching.fill(&config, &memory, frozen).await,
                                None => frozen,
                            };
                            early.get_or_init(|| frozen).clone()
                        }
                    },
                    Content::Stored(id) => match fetch(&place, &config, id, &members, &memory).await {
                        Ok(frozen) => frozen,
                        Err(why) => return (None, Attempt::unbuildable(started_at, &why)),
                    },
                };
                // The body is charged for itself by here.
                charge.set(REQUEST_BYTES);
                let attempt = match unsendable(&frozen) {
                    Some(Unsendable::TooLarge(why)) => Attempt::too_large(started_at, &why),
                    Some(Unsendable::Damaged) => Attempt::damaged(started_at, DAMAGED),
                    None => endpoint.attempt(&frozen, number).await,
                };
                drop(charge);
                (Some(frozen), attempt)
            });
            // A panic is a failure of ours: the delivery stays, and comes again.
            let (frozen, attempt) = work
                .catch_unwind()
                .await
                .unwrap_or_else(|_| (None, Attempt::unbuildable(started_at, "the attempt panicked")));
            Ended { key, number, frozen, attempt }
        });
    }

    pub(super) fn ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let ended = match ended {
            Ok(ended) => ended,
            Err(join) => {
                // Attempts catch their panics and are aborted only when the sink is.
                error!(sink = %self.sink.config.name, error = %join, "an attempt's task was lost");
                return;
            }
        };
        let Ended { key, number, frozen, attempt } = ended;
        let began = self.deliveries.get_mut(&key).and_then(|delivery| delivery.under_way.take());
        if let Some(began) = began.filter(|_| attempt.status.is_some()) {
            self.report.answered(began, attempt.duration);
        }
        failpoint::hit("sink.after_answer");
        let verdict = attempt.verdict.clone();
        if let Verdict::Failed { category: category @ (Category::TooLarge | Category::Damaged), message } = verdict {
            return self.not_sent(key, frozen, Failed { number, attempt, category, message });
        }
        self.sink.metrics.attempted(attempt.verdict.is_acknowledged(), attempt.status);
        self.sink.metrics.attempt_duration.record(attempt.duration);
        if attempt.resent > 0 {
            let (sink, times) = (&self.sink.config.name, attempt.resent);
            debug!(
                sink,
                times, "sent again at once: the endpoint had closed the connection before it took the request"
            );
            self.sink.metrics.resent_requests.increment(times.into());
        }
        match verdict {
            Verdict::Acknowledged => self.acknowledged(key, number, frozen, &attempt),
            Verdict::Failed { category, message } => {
                self.failed(key, frozen, Failed { number, attempt, category, message });
            }
        }
    }

    /// A delivery of which no request is made, as no request would help: it is given up, or as long as the store has no
    /// room for it, looked at again later.
    fn not_sent(&mut self, key: DeliveryKey, frozen: Option<Frozen>, failed: Failed) {
        let damaged = failed.category == Category::Damaged;
        let failure = Failure { ours: true, too_large: !damaged, damaged, ..Failure::default() };
        let Some(verdict) = self.judged(key, frozen.as_ref(), &failed, failure) else { return };
        match verdict {
            // Said when it is a dead letter.
            schedule::Verdict::Done | schedule::Verdict::Split { .. } | schedule::Verdict::Dead { .. } => {}
            schedule::Verdict::Retry(_) | schedule::Verdict::Blocked(_) => {
                self.say_failed(key, frozen.as_ref(), &failed, &verdict);
            }
        }
        self.settle_failed(key, frozen, verdict);
    }

    fn acknowledged(&mut self, key: DeliveryKey, number: u32, frozen: Option<Frozen>, attempt: &Attempt) {
        let Some(mut delivery) = self.deliveries.remove(&key) else { return };
        self.scheduler.outcome(Instant::now(), &self.world, key, Outcome::Acknowledged);
        self.ledger.touch();
        if let Some(id) = delivery.stored {
            self.ledger.note(Op::Delivered(id), 0);
        } else if !delivery.homes.is_empty() {
            self.ledger.note(Op::Leave(delivery.leaves()), 0);
        }
        let (metrics, facts) = (&self.sink.metrics, &delivery.facts);
        metrics.acknowledged_deliveries.increment(1);
        metrics.acknowledged_messages.increment(u64::try_from(facts.messages).unwrap_or(u64::MAX));
        metrics.delivery_messages.record(f64::from(u32::try_from(facts.messages).unwrap_or(u32::MAX)));
        if let Some(frozen) = &frozen {
            metrics.body_bytes.record(f64::from(u32::try_from(frozen.body.len()).unwrap_or(u32::MAX)));
        }
        if let Ok(taken) = SystemTime::now().duration_since(facts.oldest_commit) {
            metrics.commit_to_acknowledged.record(taken);
        }
        self.sink.progress.acknowledge();
        self.report.acknowledged(key, facts);
        self.log_delivered(&delivery, number, frozen.as_ref(), attempt);
    }

    fn failed(&mut self, key: DeliveryKey, frozen: Option<Frozen>, failed: Failed) {
        let category = failed.category;
        let failure = Failure {
            ours: category.is_ours(),
            own: category.is_own_trouble(),
            trouble: category.is_endpoint_trouble(),
            refused: is_splittable(failed.attempt.status, category),
            too_large: false,
            damaged: false,
            retry_after: failed.attempt.retry_after,
        };
        self.sink.metrics.failed(category.as_str());
        let Some(verdict) = self.judged(key, frozen.as_ref(), &failed, failure) else { return };
        if category.is_own_trouble() {
            self.report.own_trouble(category, failed.message);
            return self.settle_failed(key, frozen, verdict);
        }
        self.say_failed(key, frozen.as_ref(), &failed, &verdict);
        self.settle_failed(key, frozen, verdict);
    }

    fn say_failed(&mut self, key: DeliveryKey, frozen: Option<&Frozen>, failed: &Failed, verdict: &schedule::Verdict) {
        let Some(delivery) = self.deliveries.get(&key) else { return };
        let id = frozen.map(|frozen| frozen.id).or(delivery.stored);
        let Failed { number, attempt, category, message } = failed;
        self.log_failed(delivery, id, (*number, attempt), (*category, message));
        let told = report::Failed { number: *number, attempt, category: *category, message, verdict, id };
        self.report.failed(&told, &delivery.facts);
    }

    /// What the scheduler makes of a failure.
    fn judged(
        &mut self,
        key: DeliveryKey,
        frozen: Option<&Frozen>,
        failed: &Failed,
        failure: Failure,
    ) -> Option<schedule::Verdict> {
        self.describe(key, frozen);
        let has_room = self.deliveries.get(&key).is_some_and(|delivery| {
            let body = frozen.or(delivery.content.frozen());
            delivery.stored.is_some() || body.is_none_or(|frozen| self.ledger.takes(frozen.body.len()))
        });
        // What becomes of it depends on whether the store can have it.
        let now = Instant::now();
        let store = if has_room { self.room(now) } else { schedule::StoreRoom::Shut };
        let world = schedule::World { store, ..self.world };
        let verdict = self.scheduler.outcome(now, &world, key, Outcome::Failed(failure))?;
        self.note_failure(key, failed, &verdict);
        Some(verdict)
    }

    fn settle_failed(&mut self, key: DeliveryKey, frozen: Option<Frozen>, verdict: schedule::Verdict) {
        match verdict {
            schedule::Verdict::Done => {}
            schedule::Verdict::Retry(_) | schedule::Verdict::Blocked(_) => self.tried(key),
            schedule::Verdict::Split { parts, write } => self.split(key, frozen, parts, write),
            schedule::Verdict::Dead { why, paused } => self.dead(key, frozen, why, paused),
        }
    }

    /// From the first failure on what is kept is the body and what is known of its messages, not their rows.
    pub(super) fn describe(&mut self, key: DeliveryKey, frozen: Option<&Frozen>) {
        let Some(rendering) = &self.rendering else { return };
        let (Some(delivery), Some(frozen)) = (self.deliveries.get_mut(&key), frozen) else { return };
        if let Content::Messages(messages, _) = &delivery.content {
            let config = &self.sink.config;
            let members = self.scheduler.members(key).zip(messages.iter()).zip(&frozen.members);
            let members: Vec<Member> = members
                .map(|((ties, payload), member)| Member {
                    facts: payload.facts(ties, config, rendering),
                    bytes: member.bytes.clone(),
                })
                .collect();
            delivery.facts.group = group_of(&members);
            delivery.members = Arc::new(members);
            delivery.content = Content::Frozen(frozen.clone());
        }
    }

    fn note_failure(&mut self, key: DeliveryKey, failed: &Failed, verdict: &schedule::Verdict) {
        let Some(delivery) = self.deliveries.get_mut(&key) else { return };
        let now = (Instant::now(), SystemTime::now());
        let tries = &mut delivery.tries;
        tries.attempts = failed.number - u32::from(failed.category.is_ours());
        if failed.category.is_own_trouble() {
            // As if it had not been tried.
            tries.first_attempt_micros = tries.first_attempt_micros.filter(|_| tries.attempts > 0);
            return;
        }
        tries.failures = tries.failures.saturating_add(1);
        tries.next_attempt_micros = match verdict {
            schedule::Verdict::Retry(at) => Some(micros_of(now.1 + at.saturating_duration_since(now.0))),
            schedule::Verdict::Done
            | schedule::Verdict::Split { .. }
            | schedule::Verdict::Dead { .. }
            | schedule::Verdict::Blocked(_) => None,
        };
        tries.last = Some(LastFailure {
            at_micros: micros_of(failed.attempt.started_at + failed.attempt.duration),
            status: failed.attempt.status,
            category: failed.category.as_str().into(),
            message: failed.message.clone(),
        });
        delivery.blocked = matches!(verdict, schedule::Verdict::Blocked(_));
    }

    /// A delivery that the store has failed again.
    fn tried(&mut self, key: DeliveryKey) {
        let Some(delivery) = self.deliveries.get(&key) else { return };
        if delivery.blocked {
            let (sink, group_hash) = (&self.sink.config.name, delivery.facts.group.map(field::display));
            warn!(sink, group_hash, "delivery is given up; its groups wait for a person (retry.on_exhausted)");
            if delivery.tries.last.as_ref().is_some_and(|last| &*last.category == Category::Damaged.as_str()) {
                self.report.damaged(damaged_message(delivery));
            }
        }
        if let Some(id) = delivery.stored {
            let (tries, blocked) = (delivery.tries.clone(), delivery.blocked);
            self.ledger.note(Op::Tried { id, tries, blocked }, 0);
        }
    }

    fn dead(&mut self, key: DeliveryKey, frozen: Option<Frozen>, why: Exhausted, paused: bool) {
        let Some(mut delivery) = self.deliveries.remove(&key) else { return };
        let reason = match why {
            Exhausted::Attempts => DeadReason::MaxAttempts,
            Exhausted::Age => DeadReason::MaxAge,
            Exhausted::TooLarge => DeadReason::TooLarge,
            Exhausted::Damaged => DeadReason::Damaged,
        };
        let id = match (delivery.stored, frozen.as_ref().or(delivery.content.frozen()).cloned()) {
            // What can be read from here on is what says that it is damaged.
            (Some(_), Some(frozen)) if reason == DeadReason::Damaged => {
                let facts = delivery.members.iter().map(|member| member.facts.clone()).zip(&frozen.members);
                let members = facts.map(|(facts, member)| Member { facts, bytes: member.bytes.clone() }).collect();
                delivery.members = Arc::new(members);
                self.put(&mut delivery, &frozen)
            }
            (Some(id), _) => id,
            (None, Some(frozen)) => self.put(&mut delivery, &frozen),
            // An attempt without a body is a failure of ours, and those exhaust nothing.
            (None, None) => return,
        };
        let at_micros = micros_of(SystemTime::now());
        self.ledger.note(Op::Dead { id, at_micros, reason, tries: delivery.tries.clone() }, 0);
        self.ledger.touch();
        self.sink.metrics.dead_lettered(reason);
        self.report.dead(&delivery.facts, id, reason, delivery.tries.attempts);
        if reason == DeadReason::Damaged {
            self.report.damaged(damaged_message(&delivery));
        }
        self.log_ended(&delivery, id, "dead");
        if paused {
            let why = format!("delivery {id} was given up ({}) and retry.on_exhausted is pause_sink", reason.as_str());
            warn!(sink = %self.sink.config.name, "sink is paused: {why}");
            self.report.paused(why.clone());
            self.ledger.note(Op::Paused { why }, 0);
        }
    }

    fn split(
        &mut self,
        key: DeliveryKey,
        frozen: Option<Frozen>,
        parts: [(DeliveryKey, Vec<usize>); 2],
        write: Option<WriteId>,
    ) {
        let Some(whole) = self.deliveries.remove(&key) else { return };
        let Some(body) = frozen.as_ref().or(whole.content.frozen()) else { return };
        self.sink.metrics.split.increment(1);
        let sizes: Vec<usize> = parts.iter().map(|(_, indexes)| indexes.len()).collect();
        info!(sink = %self.sink.config.name, delivery = %body.id, ?sizes, "delivery cannot go as a whole: split");
        let mut kept = Vec::new();
        if let Some(write) = write {
            self.ledger.answers(write);
            self.parked.insert(write, parts.iter().map(|(part, _)| *part).collect());
        }
        for (part, indexes) in parts {
            let (mut delivery, frozen) = self.part(&whole, body, &indexes);
            if write.is_some() {
                match whole.stored {
                    Some(_) => {
                        delivery.stored = Some(frozen.id);
                        kept.push((delivery.kept(frozen.id), frozen.body.clone()));
                    }
                    None => drop(self.put(&mut delivery, &frozen)),
                }
            }
            self.deliveries.insert(part, delivery);
        }
        if let Some(parent) = whole.stored {
            self.ledger.note(Op::Split { parent, parts: kept }, body.body.len());
        }
        self.log_ended(&whole, body.id, "split");
    }

    fn part(&self, whole: &Delivery, body: &Frozen, indexes: &[usize]) -> (Delivery, Frozen) {
        let config = &self.sink.config;
        let frozen = body.part(&self.sink.memory, &config.name, config.body, indexes);
        let facts = indexes.iter().filter_map(|&index| whole.members.get(index)).map(|member| member.facts.clone());
        let members: Vec<Member> =
            facts.zip(&frozen.members).map(|(facts, member)| Member { facts, bytes: member.bytes.clone() }).collect();
        let delivery = Delivery {
            facts: Facts::of_members(&members, whole.facts.oldest_received),
            content: Content::Frozen(frozen.clone()),
            members: Arc::new(members),
            homes: indexes.iter().filter_map(|&index| whole.homes.get(index).copied()).collect(),
            stored: None,
            parent: Some(body.id),
            created_at: SystemTime::now(),
            tries: Tries::default(),
            blocked: false,
            under_way: None,
        };
        (delivery, frozen)
    }
}

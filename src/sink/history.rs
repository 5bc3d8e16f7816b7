//! Rows for the store's log of deliveries and attempts.
//!
//! The log is for people, and never in the way of a delivery: beyond [`ROWS_A_TICK`] acknowledged deliveries in a quarter
//! of a second their rows are dropped and counted. Failures are always told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use super::Task;
use super::content::{Content, Delivery, Payload, micros_of};
use crate::change::Position;
use crate::deliver::attempt::Attempt;
use crate::deliver::category::Category;
use crate::deliver::frozen::{DeliveryId, Frozen};
use crate::source::route::group_text;
use crate::store::log::{AttemptRow, DeliveryRow, LogRow};

/// Acknowledged deliveries that are logged between two looks at the clock.
pub(super) const ROWS_A_TICK: u32 = 250;
/// Event types and groups that a row names.
const NAMES_MAX: usize = 8;

/// What is told of a delivery's messages.
struct Contents {
    events: Vec<Arc<str>>,
    groups: Vec<Arc<str>>,
    positions: (Position, Position),
    bytes: usize,
}

impl Task {
    pub(super) fn log_delivered(
        &mut self,
        delivery: &Delivery,
        number: u32,
        frozen: Option<&Frozen>,
        attempt: &Attempt,
    ) {
        let Some(frozen) = frozen else { return };
        if self.log_rows_left == 0 {
            self.ledger.store().log_lost(2);
            return;
        }
        self.log_rows_left -= 1;
        self.log_attempt(frozen.id, number, attempt, None);
        let contents = self.contents(delivery, frozen.body.len());
        self.log_delivery(delivery, frozen.id, "delivered", contents, (number, attempt.status));
    }

    pub(super) fn log_failed(
        &self,
        delivery: &Delivery,
        id: Option<DeliveryId>,
        (number, attempt): (u32, &Attempt),
        failure: (Category, &str),
    ) {
        if let Some(id) = id.or(delivery.stored) {
            self.log_attempt(id, number, attempt, Some(failure));
        }
    }

    /// A delivery that ended otherwise than by an acknowledgement.
    pub(super) fn log_ended(&self, delivery: &Delivery, id: DeliveryId, state: &'static str) {
        let bytes = delivery.members.last().map_or(0, |member| member.bytes.end);
        let contents = self.contents(delivery, bytes);
        let status = delivery.tries.last.as_ref().and_then(|last| last.status);
        self.log_delivery(delivery, id, state, contents, (delivery.tries.attempts, status));
    }

    fn log_attempt(&self, delivery: DeliveryId, number: u32, attempt: &Attempt, failure: Option<(Category, &str)>) {
        let (category, error) = failure.unzip();
        let kept = if failure.is_some() { attempt.response.body.clone() } else { bytes::Bytes::new() };
        self.ledger.store().log(LogRow::Attempt(Box::new(AttemptRow {
            delivery,
            sink: Arc::clone(&self.log_name),
            number,
            started_micros: micros_of(attempt.started_at),
            duration_micros: u64::try_from(attempt.duration.as_micros()).unwrap_or(u64::MAX),
            status: attempt.status,
            category: category.map(Category::as_str),
            error: error.map(str::to_owned),
            response: kept,
            response_truncated: failure.is_some() && attempt.response.truncated,
        })));
    }

    fn log_delivery(
        &self,
        delivery: &Delivery,
        id: DeliveryId,
        state: &'static str,
        contents: Option<Contents>,
        (attempts, last_status): (u32, Option<u16>),
    ) {
        let Some(Contents { events, groups, positions, bytes }) = contents else { return };
        self.ledger.store().log(LogRow::Delivery(Box::new(DeliveryRow {
            id,
            sink: Arc::clone(&self.log_name),
            parent: delivery.parent,
            state,
            messages: u32::try_from(delivery.facts.messages).unwrap_or(u32::MAX),
            events,
            groups,
            positions,
            body_bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
            attempts,
            created_micros: micros_of(delivery.created_at),
            finished_micros: micros_of(SystemTime::now()),
            last_status,
        })));
    }

    fn contents(&self, delivery: &Delivery, bytes: usize) -> Option<Contents> {
        if let Content::Messages(messages, _) = &delivery.content {
            let positions = (messages.first()?.position(), messages.last()?.position());
            let first = messages.iter().take(NAMES_MAX);
            let events = distinct(first.clone().map(Payload::event));
            let groups = distinct(first.filter_map(|payload| match payload {
                Payload::Change(change) => group_text(change, &self.sink.config).map(Into::into),
                Payload::Kept(kept) => kept.message.facts.group.clone(),
            }));
            return Some(Contents { events, groups, positions, bytes });
        }
        let members = &delivery.members;
        let positions = (members.first()?.facts.position, members.last()?.facts.position);
        let events = distinct(members.iter().map(|member| Arc::clone(&member.facts.event)));
        let groups = distinct(members.iter().filter_map(|member| member.facts.group.clone()));
        Some(Contents { events, groups, positions, bytes })
    }
}

/// The first few different names.
fn distinct(names: impl Iterator<Item = Arc<str>>) -> Vec<Arc<str>> {
    let mut seen = BTreeSet::new();
    names.filter(|name| seen.insert(Arc::clone(name))).take(NAMES_MAX).collect()
}

//! The scheduler's wishes to the store carried out: what is written goes into the ledger, what is read back comes from a
//! task of its own.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use tracing::error;

use super::arrivals::alone;
use super::content::{Delivery, Payload, ReadBack, keep};
use super::restore::arrival;
use super::{AT_ONCE_LEAST, AT_ONCE_PARTS, Task};
use crate::deliver::frozen::{DeliveryId, Frozen};
use crate::deliver::omitted;
use crate::fault::chain;
use crate::schedule::{DeliveryKey, Message, Want, WriteId};
use crate::store::damaged::is_damaged;
use crate::store::{Home, KeptMessage, LaneRead, LaneWant, Op, Page, StoreError};
use crate::ties::{GroupId, Ties};

/// Bytes of messages that are read back at once, at most.
const READ_BYTES_MAX: usize = 1 << 20;

/// What was read back.
pub(super) enum Read {
    Lanes(Vec<GroupId>, Result<Vec<LaneRead>, StoreError>),
    Pages(Result<Vec<Page>, StoreError>),
}

/// Bytes of a lane's message in the store: its row, its JSON, its places in two indexes.
const LANE_ROW_BYTES: usize = 512;

impl Task {
    /// A delivery goes into the store.
    pub(super) fn park(&mut self, key: DeliveryKey, write: WriteId) {
        let frozen = self.deliveries.get(&key).and_then(|delivery| delivery.content.frozen().cloned());
        // One that hangs before its body is rendered has no body to be kept; one may be too large.
        let Some(frozen) = frozen.filter(|frozen| self.ledger.takes(frozen.body.len())) else {
            return self.scheduler.not_written(write);
        };
        self.describe(key, Some(&frozen));
        let Some(mut delivery) = self.deliveries.remove(&key) else { return };
        self.put(&mut delivery, &frozen);
        self.deliveries.insert(key, delivery);
        self.ledger.answers(write);
        self.parked.insert(write, vec![key]);
    }

    /// The next batch has the delivery, in the place of its messages.
    pub(super) fn put(&mut self, delivery: &mut Delivery, frozen: &Frozen) -> DeliveryId {
        let leaves = delivery.leaves();
        if !leaves.is_empty() {
            self.ledger.note(Op::Leave(leaves), 0);
        }
        delivery.stored = Some(frozen.id);
        let (delivery, body) = (delivery.kept(frozen.id), frozen.body.clone());
        let bytes = body.len();
        self.ledger.note(Op::Park { delivery, body }, bytes);
        frozen.id
    }

    /// Waiting messages go into the lanes of their groups. Those that came back from a lane are still there.
    pub(super) fn spill(&mut self, write: WriteId, messages: Vec<Message<Payload>>) {
        let Some(rendering) = self.rendering.clone() else { return };
        let messages: Vec<(Ties, Payload)> = messages
            .into_iter()
            .filter(|message| !matches!(message.payload.home(), Some(Home::Lane(_))))
            .map(|message| (message.ties(), message.payload))
            .collect();
        let leaves: Vec<Home> = messages.iter().filter_map(|(_, payload)| payload.home()).collect();
        let kept = keep((&self.sink.config, &self.sink.memory), &rendering, &messages);
        if !leaves.is_empty() {
            self.ledger.note(Op::Leave(leaves), 0);
        }
        if !kept.is_empty() {
            let bytes = bytes_of(&kept) + kept.len() * LANE_ROW_BYTES;
            self.ledger.note(Op::Lanes(kept), bytes);
        }
        self.ledger.answers(write);
    }

    /// The newest messages become a page of the overflow.
    pub(super) fn overflow(&mut self, write: WriteId, messages: Vec<Message<Payload>>) {
        let Some(rendering) = self.rendering.clone() else { return };
        let messages: Vec<(Ties, Payload)> =
            messages.into_iter().map(|message| (message.ties(), message.payload)).collect();
        let kept = keep((&self.sink.config, &self.sink.memory), &rendering, &messages);
        let (bytes, page) = (bytes_of(&kept), self.pages.0);
        self.pages.0 += 1;
        self.ledger.note(Op::Page { page, messages: kept }, bytes);
        self.ledger.answers(write);
    }

    fn read_bytes(&self) -> usize {
        self.sink.memory.share(AT_ONCE_PARTS, self.sink.sharers, AT_ONCE_LEAST).min(READ_BYTES_MAX)
    }

    pub(super) fn read_lanes(&mut self, wants: Vec<Want>) {
        let (store, key) = (self.ledger.store().clone(), self.ledger.key());
        // No more than a delivery takes: what is left of a lane when its group's delivery fails stays in memory.
        let (each, bytes) = (self.sink.config.batch_size.max(2), self.read_bytes());
        self.reads.spawn(async move {
            let groups = wants.iter().map(|want| want.group).collect();
            let wants = wants.into_iter().map(|Want { group, after }| LaneWant { group, after }).collect();
            Read::Lanes(groups, store.lanes(key, wants, each, bytes).await)
        });
    }

    pub(super) fn read_overflow(&mut self) {
        let (store, key, from) = (self.ledger.store().clone(), self.ledger.key(), self.pages.1);
        let bytes = self.read_bytes();
        self.reads.spawn(async move { Read::Pages(store.pages(key, from, bytes).await) });
    }

    pub(super) fn read(&mut self, read: Result<Read, tokio::task::JoinError>) {
        let now = Instant::now();
        let sink = Arc::clone(&self.sink.config);
        let missing = match read {
            Ok(Read::Lanes(groups, Ok(lanes))) => {
                let lanes = self.come_back(now, lanes);
                // Those for which no bytes were left did not come.
                let came: HashSet<GroupId> = lanes.iter().map(|(group, _)| *group).collect();
                let missing = self.scheduler.lanes_read(now, lanes);
                self.scheduler.lanes_unread(groups.into_iter().filter(|group| !came.contains(group)));
                missing
            }
            Ok(Read::Pages(Ok(pages))) => {
                let messages = self.pages_come_back(now, pages);
                let arrived =
                    |message: &Message<Payload>| (message.position, arrival(message.payload.commit_micros(), now));
                self.scheduler.pages_came_back(messages.iter().map(arrived));
                self.scheduler.overflow_read(now, messages)
            }
            Ok(Read::Lanes(groups, Err(failed))) => {
                error!(sink = %sink.name, error = %chain(&failed), "the store cannot be read; tried again");
                self.scheduler.lanes_unread(groups);
                self.scheduler.unreadable(now);
                0
            }
            Ok(Read::Pages(Err(failed))) => {
                error!(sink = %sink.name, error = %chain(&failed), "the store cannot be read; tried again");
                self.scheduler.overflow_unread();
                self.scheduler.unreadable(now);
                0
            }
            Err(join) => {
                error!(sink = %sink.name, error = %join, "a reader of the store was lost");
                0
            }
        };
        if missing > 0 {
            error!(sink = %sink.name, messages = missing, "the store does not have what it was given: its files were changed");
        }
    }

    fn come_back(&self, now: Instant, lanes: Vec<LaneRead>) -> Vec<(GroupId, Vec<Message<Payload>>)> {
        let back = |kept: KeptMessage| {
            let home = Home::Lane(kept.facts.position);
            self.message_of(kept, home, now)
        };
        lanes.into_iter().map(|lane| (lane.group, lane.messages.into_iter().map(back).collect())).collect()
    }

    fn pages_come_back(&mut self, now: Instant, pages: Vec<Page>) -> Vec<Message<Payload>> {
        let mut messages = Vec::new();
        for Page { page, messages: kept } in pages {
            self.pages.1 = page + 1;
            let back = |(index, kept)| self.message_of(kept, Home::Page { page, index }, now);
            messages.extend(kept.into_iter().map(back));
        }
        messages
    }

    /// The message with bytes of its own: one that waits long must not keep all that was read with it.
    fn message_of(&self, message: KeptMessage, home: Home, read_at: Instant) -> Message<Payload> {
        let KeptMessage { facts, json } = message;
        let json = self.sink.memory.hold(json.to_vec());
        let (Ties { groups, scope, barrier }, position) = (facts.ties(), facts.position);
        let is_unsendable = omitted::too_large(&json).is_some() || is_damaged(&json);
        let bytes = if is_unsendable { alone(&self.sink.config) } else { json.len() + 1 };
        let kept = ReadBack { message: KeptMessage { facts, json }, home, read_at };
        Message { groups, scope, barrier, bytes, position, payload: Payload::Kept(Arc::new(kept)) }
    }
}

fn bytes_of(messages: &[KeptMessage]) -> usize {
    messages.iter().map(|message| message.json.len() + 64).sum()
}

//! What a sink has to tell the store: gathered until the batch before is durable, then sent as one.
//!
//! One batch is on its way at a time. While it is, the next gathers what happens, so that a slow disk makes larger
//! batches and not a queue of them. A batch that only says how far the sink is goes at most every [`PROGRESS_EVERY`],
//! which with the time of a sync stays within the 100 ms of promise P7.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::change::Lsn;
use crate::deliver::frozen::DeliveryId;
use crate::failpoint;
use crate::schedule::{StoreRoom, WriteId};
use crate::store::{Batch, Expired, KeptProgress, Op, SinkKey, Store};

/// What an op takes at least: its row.
const OP_BYTES: usize = 128;
/// A batch that is on its way for so long says that the store cannot write: deliveries whose end cannot be noted would
/// come again after a crash, however long ago that was.
const STALLED_AFTER: Duration = Duration::from_secs(3);
/// How often progress alone is written, and how seldom at most when there is much to be said of it.
const PROGRESS_EVERY: Duration = Duration::from_millis(25);
const PROGRESS_AT_LEAST_EVERY: Duration = Duration::from_millis(90);
/// A list of unresolved positions that is longer makes it seldom.
const POSITIONS_MANY: usize = 4096;

/// See the module.
pub(super) struct Ledger {
    store: Store,
    key: SinkKey,
    /// What the next batch says. While none can be written nothing new is started after [`STALLED_AFTER`], so that it grows
    /// by what was under way then.
    ops: Vec<Op>,
    /// Where it says how a delivery was tried.
    tried: HashMap<DeliveryId, usize>,
    bytes: usize,
    /// Gathered bytes beyond which the scheduler is to wait.
    batch_bytes: usize,
    writes: Vec<WriteId>,
    is_dirty: bool,
    sent_at: Option<Instant>,
    progress_every: Duration,
    on_its_way: Option<OnItsWay>,
}

struct OnItsWay {
    durable: oneshot::Receiver<()>,
    writes: Vec<WriteId>,
    resolved: Lsn,
    bytes: usize,
}

/// A batch that is durable.
pub(super) struct Durable {
    pub(super) writes: Vec<WriteId>,
    pub(super) resolved: Lsn,
}

/// The store will not write what it was given.
#[derive(Debug)]
pub(super) struct Lost;

impl Ledger {
    /// Of a sink that gathers about so many bytes at a time.
    pub(super) fn new(store: Store, key: SinkKey, batch_bytes: usize) -> Self {
        let (ops, writes) = (Vec::new(), Vec::new());
        let tried = HashMap::new();
        Self {
            store,
            key,
            ops,
            tried,
            bytes: 0,
            batch_bytes,
            writes,
            is_dirty: false,
            sent_at: None,
            progress_every: PROGRESS_EVERY,
            on_its_way: None,
        }
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn key(&self) -> SinkKey {
        self.key
    }

    /// Dead letters that expired since the last call.
    pub(super) fn take_expired(&self) -> Expired {
        self.store.take_expired(self.key)
    }

    /// Something happened; `bytes` is about what it takes in the store beside a row.
    pub(super) fn note(&mut self, op: Op, bytes: usize) {
        self.bytes += bytes + OP_BYTES;
        // Of what is tried again and again while nothing can be written, the last time counts.
        if let Op::Tried { id, .. } = &op {
            match self.tried.entry(*id) {
                Entry::Occupied(place) => {
                    if let Some(before) = self.ops.get_mut(*place.get()) {
                        *before = op;
                        return;
                    }
                }
                Entry::Vacant(place) => drop(place.insert(self.ops.len())),
            }
        }
        self.ops.push(op);
    }

    /// The next batch carries out this wish of the scheduler.
    pub(super) fn answers(&mut self, write: WriteId) {
        self.writes.push(write);
    }

    /// Progress has changed.
    pub(super) fn touch(&mut self) {
        self.is_dirty = true;
    }

    /// Whether the store takes more now, the next thing being of so many bytes.
    pub(super) fn room(&self, next_bytes: usize) -> StoreRoom {
        let health = self.store.health();
        if health.is_shut || !fits(self.bytes() + next_bytes, health.room_bytes) {
            return StoreRoom::Shut;
        }
        if self.bytes >= self.batch_bytes { StoreRoom::Busy } else { StoreRoom::Open }
    }

    /// Whether there is room for so many bytes.
    pub(super) fn takes(&self, bytes: usize) -> bool {
        fits(self.bytes() + bytes, self.store.health().room_bytes)
    }

    /// Whether the store has not taken a batch for long.
    pub(super) fn is_stalled(&self, now: Instant) -> bool {
        let sent_at = self.sent_at.filter(|_| self.on_its_way.is_some());
        sent_at.is_some_and(|at| now.saturating_duration_since(at) >= STALLED_AFTER)
    }

    /// Bytes that wait to be written, or are being written.
    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.on_its_way.as_ref().map_or(0, |batch| batch.bytes)
    }

    /// When the next batch goes; `None`: there is nothing to tell, or one is on its way.
    pub(super) fn due_at(&self) -> Option<Instant> {
        if self.on_its_way.is_some() || (self.ops.is_empty() && !self.is_dirty) {
            return None;
        }
        let sent_at = self.sent_at?;
        Some(if self.writes.is_empty() { sent_at + self.progress_every } else { sent_at })
    }

    /// Whether a batch should go now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let has_news = self.is_dirty || !self.ops.is_empty();
        has_news && self.on_its_way.is_none() && self.due_at().is_none_or(|at| at <= now)
    }

    /// Whether everything that was told is durable.
    pub(super) fn is_empty(&self) -> bool {
        self.on_its_way.is_none() && self.ops.is_empty() && !self.is_dirty
    }

    /// Sends what was gathered; `progress` is what is true with it.
    pub(super) fn submit(&mut self, now: Instant, progress: Option<KeptProgress>) {
        failpoint::hit("sink.before_submit");
        let resolved = progress.as_ref().map_or(Lsn::ZERO, |progress| progress.resolved);
        let positions = progress.as_ref().map_or(0, |progress| progress.unresolved.len());
        self.progress_every = if positions > POSITIONS_MANY { PROGRESS_AT_LEAST_EVERY } else { PROGRESS_EVERY };
        self.tried.clear();
        let batch = Batch { sink: self.key, ops: std::mem::take(&mut self.ops), progress };
        let (writes, bytes) = (std::mem::take(&mut self.writes), std::mem::take(&mut self.bytes));
        let durable = self.store.submit(batch);
        self.on_its_way = Some(OnItsWay { durable, writes, resolved, bytes });
        self.is_dirty = false;
        self.sent_at = Some(now);
    }

    /// Resolves when the batch on its way is durable; never without one.
    ///
    /// # Errors
    /// When the store refused it or has ended: nothing can be confirmed any more.
    pub(super) async fn durable(&mut self) -> Result<Durable, Lost> {
        let Some(batch) = &mut self.on_its_way else { return std::future::pending().await };
        (&mut batch.durable).await.map_err(|_| Lost)?;
        let (writes, resolved) = (std::mem::take(&mut batch.writes), batch.resolved);
        self.on_its_way = None;
        Ok(Durable { writes, resolved })
    }
}

fn fits(bytes: usize, room_bytes: u64) -> bool {
    u64::try_from(bytes).is_ok_and(|bytes| bytes <= room_bytes)
}

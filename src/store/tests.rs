//! The store on real files.

mod damage;
mod full;
mod life;
mod logging;
mod ops;
mod random;
mod seals;
mod speed;
mod tables;
mod wal;

use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::change::{Lsn, Position};
use crate::config::Hold;
use crate::record::message::MessageId;
use crate::ties::{Barrier, GroupId, Groups, ScopeId};

/// A directory and what a store in it is made of.
pub(super) struct Rig {
    pub(super) directory: TempDir,
    pub(super) config: StateConfig,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::of_bytes(1 << 30)
    }

    pub(super) fn of_bytes(max_bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = StateConfig {
            path: directory.path().join("state"),
            hold: Hold::Store,
            max_bytes,
            dead_letter_retention: Duration::from_secs(7 * 86400),
            log_retention: Duration::from_secs(86400),
            log_max_rows: 1000,
        };
        Self { directory, config }
    }

    /// A store with these sinks of the source `app`.
    pub(super) fn open(&self, sinks: &[&str]) -> (Store, Vec<SinkKey>) {
        let store = Store::open(&self.config, sinks.len()).unwrap();
        store.register("app", sinks).unwrap();
        let keys = sinks.iter().map(|sink| store.load("app", sink).unwrap().0).collect();
        (store, keys)
    }

    pub(super) fn one(&self) -> (Store, SinkKey) {
        let (store, keys) = self.open(&["orders"]);
        (store, keys[0])
    }
}

pub(super) fn loaded(store: &Store) -> Loaded {
    store.load("app", "orders").unwrap().1
}

pub(super) fn at(lsn: u64, index: u64) -> Position {
    Position { commit_lsn: Lsn(lsn), index }
}

pub(super) fn facts(position: Position, groups: Groups) -> MessageFacts {
    MessageFacts {
        id: MessageId(u128::from(position.commit_lsn.0) << 64 | u128::from(position.index)),
        position,
        groups,
        scope: ScopeId::of_event("public.orders.insert"),
        barrier: Barrier::None,
        commit_micros: 1_700_000_000_000_000 + position.commit_lsn.0.cast_signed(),
        event: "public.orders.insert".into(),
        group: Some(format!("{position:?}").into()),
    }
}

pub(super) fn message(lsn: u64, group: u64) -> KeptMessage {
    message_of(at(lsn, 1), Groups::One(GroupId(group)))
}

pub(super) fn message_of(position: Position, groups: Groups) -> KeptMessage {
    let json = format!(r#"{{"record":{{"lsn":{},"index":{}}}}}"#, position.commit_lsn.0, position.index);
    KeptMessage { facts: facts(position, groups), json: Bytes::from(json) }
}

/// A delivery of one message.
pub(super) fn delivery(id: u128) -> (KeptDelivery, Bytes) {
    let position = at(u64::try_from(id).unwrap(), 1);
    let member = Member { facts: facts(position, Groups::One(GroupId(7))), bytes: 1..9 };
    let tries = Tries {
        attempts: 1,
        failures: 1,
        first_attempt_micros: Some(5),
        next_attempt_micros: Some(9),
        last: Some(failure(503)),
    };
    let id = DeliveryId(id);
    let delivery = KeptDelivery { id, parent: None, created_micros: 4, members: vec![member], tries, blocked: false };
    (delivery, Bytes::from(format!("[\"body of {id}\"]")))
}

pub(super) fn failure(status: u16) -> LastFailure {
    LastFailure { at_micros: 8, status: Some(status), category: "status_server_error".into(), message: "no".into() }
}

pub(super) fn park(id: u128) -> Op {
    let (delivery, body) = delivery(id);
    Op::Park { delivery, body }
}

pub(super) fn progress(resolved: u64, high: Option<Position>, unresolved: &[Position]) -> KeptProgress {
    KeptProgress { resolved: Lsn(resolved), high, unresolved: unresolved.to_vec() }
}

/// Hands over a batch and waits until it is durable.
pub(super) fn write(store: &Store, sink: SinkKey, ops: Vec<Op>) {
    write_with(store, sink, ops, None);
}

pub(super) fn write_with(store: &Store, sink: SinkKey, ops: Vec<Op>, progress: Option<KeptProgress>) {
    store.submit(Batch { sink, ops, progress }).blocking_recv().unwrap();
}

/// Runs what the runtime would.
pub(super) fn now<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

pub(super) fn body(store: &Store, sink: SinkKey, id: u128) -> Option<Bytes> {
    now(store.body(sink, DeliveryId(id))).unwrap().map(|body| body.bytes)
}

/// All messages of a lane.
pub(super) fn lane(store: &Store, sink: SinkKey, group: u64) -> Vec<KeptMessage> {
    let want = LaneWant { group: GroupId(group), after: None };
    let mut reads = now(store.lanes(sink, vec![want], usize::MAX, usize::MAX)).unwrap();
    assert_eq!(reads.len(), 1);
    reads.remove(0).messages
}

/// Waits for a state of the store's.
pub(super) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never came to be: {what}");
}

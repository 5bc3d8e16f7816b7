//! What queues of waiting messages are made of.

use std::hash::{BuildHasherDefault, Hasher};

use hashbrown::HashMap;

use super::watermark::Token;
use super::{Barrier, DeliveryKey, GroupId, Groups, Message, ScopeId, Ties};
use crate::change::Position;

pub(super) const NONE: u32 = u32::MAX;

/// What stands for a message until it is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backing {
    /// The WAL: it is not resolved.
    Wal(Token),
    /// A page of the store's overflow; the token is of the list of such messages in memory.
    Page(Token),
    /// A lane of the store.
    Lane,
}

/// A message that waits to be taken into a delivery.
#[derive(Debug)]
pub(super) struct Waiting<P> {
    pub(super) groups: Groups,
    pub(super) scope: ScopeId,
    pub(super) barrier: Barrier,
    pub(super) bytes: usize,
    pub(super) position: Position,
    pub(super) backing: Backing,
    pub(super) payload: P,
}

impl<P> Waiting<P> {
    pub(super) fn new(message: Message<P>, backing: Backing) -> Self {
        let Message { groups, scope, barrier, bytes, position, payload } = message;
        Self { groups, scope, barrier, bytes, position, backing, payload }
    }

    pub(super) fn into_message(self) -> Message<P> {
        let Self { groups, scope, barrier, bytes, position, backing: _, payload } = self;
        Message { groups, scope, barrier, bytes, position, payload }
    }

    /// What ties it to others.
    pub(super) fn ties(&self) -> Ties {
        Ties { groups: self.groups, scope: self.scope, barrier: self.barrier }
    }
}

#[derive(Debug)]
pub(super) struct Slot<P> {
    pub(super) message: Option<Waiting<P>>,
    /// The next message of the first and of the second group.
    pub(super) next: [u32; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    Busy(DeliveryKey),
    Blocked,
}

/// Messages of one group, threaded through the slab.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queue {
    pub(super) head: u32,
    pub(super) tail: u32,
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

impl Queue {
    pub(super) const EMPTY: Self = Self { head: NONE, tail: NONE, messages: 0, bytes: 0 };

    /// Takes the first message off; `next` is the one behind it.
    pub(super) fn pop(&mut self, next: u32, bytes: usize) {
        self.head = next;
        self.messages -= 1;
        self.bytes -= bytes;
        if self.head == NONE {
            *self = Self::EMPTY;
        }
    }

    pub(super) fn push(&mut self, index: u32, bytes: usize) {
        if self.head == NONE {
            self.head = index;
        }
        self.tail = index;
        self.messages += 1;
        self.bytes += bytes;
    }
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) queue: Queue,
    pub(super) state: State,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum ReadyItem {
    Group(GroupId),
    /// A message without a group.
    Single(u32),
}

/// Ids are hashes already.
#[derive(Default)]
pub(super) struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// A map by group.
pub(super) type ByGroup<V> = HashMap<GroupId, V, BuildHasherDefault<IdentityHasher>>;

pub(super) fn place(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

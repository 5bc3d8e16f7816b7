//! How much of what was found may be held before it stands in bodies.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use crate::memory::{Charge, Memory};

/// How long room is waited for: bodies are made in less, and deliveries that end may free some.
const WAIT: Duration = Duration::from_millis(250);

/// An eighth of the source's memory, and no more than is left of all of it.
pub(super) struct Room {
    memory: Memory,
    own: Memory,
}

impl Room {
    pub(super) fn new(memory: &Memory) -> Self {
        Self { memory: memory.clone(), own: Memory::new(memory.limit() / 8) }
    }

    /// Bytes of values that are ever asked for at a time.
    pub(super) fn bytes_max(&self) -> usize {
        self.memory.message_bytes_max().min(1 << 30)
    }

    /// Bytes of values that may be asked for.
    pub(super) async fn wait(&self) -> usize {
        let room = async {
            self.own.room().await;
            self.memory.relieved().await;
        };
        // Whoever waited in vain gets what there is.
        drop(timeout(WAIT, room).await);
        // Lengths in a query are 32 bits wide.
        self.left().min(self.memory.message_bytes_max()).min(1 << 30)
    }

    /// The value, charged until its last slice is gone; `None` if there is no room for it.
    pub(super) fn hold(&self, json: Vec<u8>) -> Option<Bytes> {
        let bytes = json.capacity();
        if bytes > self.left() {
            return None;
        }
        Some(Bytes::from_owner(Held { json, _charges: [self.memory.charge(bytes), self.own.charge(bytes)] }))
    }

    fn left(&self) -> usize {
        let left = |memory: &Memory| memory.limit().saturating_sub(memory.held());
        left(&self.own).min(left(&self.memory))
    }
}

struct Held {
    json: Vec<u8>,
    _charges: [Charge; 2],
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_found_is_bounded_until_it_is_given_back() {
        let memory = Memory::with_message_bound(8000, 800);
        let room = Room::new(&memory);
        assert_eq!(room.wait().await, 800, "no more than a message may have");
        let first = room.hold(vec![0; 700]).expect("room for the first");
        assert_eq!((memory.held(), room.wait().await), (700, 300));
        assert_eq!(room.hold(vec![0; 301]), None);
        let second = room.hold(vec![0; 300]).expect("room for the second");
        assert_eq!(room.wait().await, 0);
        drop((first, second));
        assert_eq!((memory.held(), room.wait().await), (0, 800));
        let _all_but_a_little = memory.charge(7990);
        assert_eq!(room.wait().await, 10, "no more than is left of the source's memory");
    }
}

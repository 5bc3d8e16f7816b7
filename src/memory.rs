//! The bound on memory: a gauge of bytes held in changes and bodies, charged by what really stays allocated.
//!
//! Every read buffer and every frozen body is charged while it lives, whoever holds a slice of it. The source stops
//! reading at half of the limit, so that the bodies of deliveries find room beside it; at five eighths sinks make new bodies
//! one at a time. The rest is what an allocator takes beside what it was asked for: sizes are rounded up, and
//! what was freed stays for a while. Whoever waits is told when bytes were given back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::Notify;

/// Bytes held, against a limit. Cheap to clone; clones share the gauge.
#[derive(Clone, Debug)]
pub struct Memory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    held: AtomicUsize,
    /// From here on reading waits.
    full: usize,
    /// From here on bodies are made one at a time.
    short: usize,
    limit: usize,
    message_bytes_max: usize,
    freed: Notify,
    relieved: Notify,
}

/// What the box around shared bytes takes beside them.
const SHARED_BYTES: usize = 64;

impl Memory {
    /// A gauge for `limit` bytes, under which one message may have any size.
    pub fn new(limit: usize) -> Self {
        Self::with_message_bound(limit, usize::MAX)
    }

    /// A gauge for `limit` bytes; of a change that has more than `message_bytes_max` on the wire not all is taken in.
    pub fn with_message_bound(limit: usize, message_bytes_max: usize) -> Self {
        let (held, full, short) = (AtomicUsize::new(0), limit / 2, limit / 8 * 5);
        let (freed, relieved) = (Notify::new(), Notify::new());
        Self { inner: Arc::new(Inner { held, full, short, limit, message_bytes_max, freed, relieved }) }
    }

    /// Bytes of one change, as the server sends it, beyond which not all of it is taken in.
    pub fn message_bytes_max(&self) -> usize {
        self.inner.message_bytes_max
    }

    /// Bytes held.
    pub fn held(&self) -> usize {
        self.inner.held.load(Ordering::Relaxed)
    }

    /// The limit in bytes.
    pub fn limit(&self) -> usize {
        self.inner.limit
    }

    /// What one of so many may have of a part of the limit, the part being one in `parts`; never less than `least`, with
    /// which one can live.
    pub fn share(&self, parts: usize, sharers: usize, least: usize) -> usize {
        (self.inner.limit / parts.max(1) / sharers.max(1)).max(least)
    }

    /// Whether reading must wait. One read buffer may go past the mark, so that a row larger than the limit passes.
    pub fn is_full(&self) -> bool {
        self.held() >= self.inner.full
    }

    /// The same without so many bytes of what is held, which only go once reading goes on.
    pub fn is_full_beside(&self, bytes: usize) -> bool {
        self.held().saturating_sub(bytes) >= self.inner.full
    }

    /// Whether even bodies must be made one at a time.
    pub fn is_exhausted(&self) -> bool {
        self.held() >= self.inner.short
    }

    /// Resolves at once if there is room to read, else when there is again.
    pub async fn room(&self) {
        until(&self.inner.freed, || !self.is_full()).await;
    }

    /// Resolves at once if bodies may be made freely, else when they may again.
    pub async fn relieved(&self) {
        until(&self.inner.relieved, || !self.is_exhausted()).await;
    }

    /// Charges `bytes` until the guard is dropped.
    pub fn charge(&self, bytes: usize) -> Charge {
        self.inner.held.fetch_add(bytes, Ordering::Relaxed);
        Charge { memory: self.clone(), bytes }
    }

    /// `bytes` as shared slices that are charged, by the capacity they really hold, until the last slice is gone.
    pub fn hold(&self, bytes: Vec<u8>) -> Bytes {
        let charge = self.charge(bytes.capacity() + SHARED_BYTES);
        Bytes::from_owner(Held { bytes, _charge: charge })
    }
}

/// Bytes charged to a [`Memory`] until dropped.
#[derive(Debug)]
pub struct Charge {
    memory: Memory,
    bytes: usize,
}

impl Charge {
    /// Changes what is charged.
    pub fn set(&mut self, bytes: usize) {
        let held = &self.memory.inner.held;
        if bytes >= self.bytes {
            held.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else {
            give_back(&self.memory.inner, self.bytes - bytes);
        }
        self.bytes = bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        give_back(&self.memory.inner, self.bytes);
    }
}

/// Waits for a state; whoever makes it so notifies after doing so.
async fn until(notify: &Notify, holds: impl Fn() -> bool) {
    loop {
        let notified = notify.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if holds() {
            return;
        }
        notified.await;
    }
}

fn give_back(inner: &Inner, bytes: usize) {
    let before = inner.held.fetch_sub(bytes, Ordering::Relaxed);
    let after = before.saturating_sub(bytes);
    for (mark, notify) in [(inner.full, &inner.freed), (inner.short, &inner.relieved)] {
        if before >= mark && after < mark {
            notify.notify_waiters();
        }
    }
}

struct Held {
    bytes: Vec<u8>,
    _charge: Charge,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn slices_keep_the_whole_buffer_charged_and_the_last_one_makes_room() {
        let memory = Memory::new(100);
        let buffer = memory.hold(vec![0; 100]);
        assert!(memory.is_full());
        assert!(memory.is_full_beside(SHARED_BYTES) && !memory.is_full_beside(100 + SHARED_BYTES));
        let slice = buffer.slice(10..20);
        drop(buffer);
        assert_eq!(memory.held(), 100 + SHARED_BYTES);
        let mut waiting = Box::pin(memory.room());
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(slice);
        waiting.await;
        assert_eq!(memory.held(), 0);
    }
}

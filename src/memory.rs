//! The bound on memory: a gauge of bytes held in changes and bodies, charged by what really stays allocated.
//!
//! Every read buffer and every frozen body is charged while it lives, whoever holds a slice of it. The source stops
//! reading while a gauge is full and goes on when it is told that bytes were given back.

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
    limit: usize,
    freed: Notify,
}

impl Memory {
    /// A gauge for `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { inner: Arc::new(Inner { held: AtomicUsize::new(0), limit, freed: Notify::new() }) }
    }

    /// Bytes held.
    pub fn held(&self) -> usize {
        self.inner.held.load(Ordering::Relaxed)
    }

    /// The limit in bytes.
    pub fn limit(&self) -> usize {
        self.inner.limit
    }

    /// Whether reading must wait. One read buffer may go past the limit, so that a row larger than the limit passes.
    pub fn is_full(&self) -> bool {
        self.held() >= self.inner.limit
    }

    /// Resolves at once if there is room, else when there is again.
    pub async fn room(&self) {
        loop {
            let freed = self.inner.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if !self.is_full() {
                return;
            }
            freed.await;
        }
    }

    /// Charges `bytes` until the guard is dropped.
    pub fn charge(&self, bytes: usize) -> Charge {
        self.inner.held.fetch_add(bytes, Ordering::Relaxed);
        Charge { memory: self.clone(), bytes }
    }

    /// `bytes` as shared slices that are charged, by the capacity they really hold, until the last slice is gone.
    pub fn hold(&self, bytes: Vec<u8>) -> Bytes {
        let charge = self.charge(bytes.capacity());
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

fn give_back(inner: &Inner, bytes: usize) {
    let before = inner.held.fetch_sub(bytes, Ordering::Relaxed);
    if before >= inner.limit && before.saturating_sub(bytes) < inner.limit {
        inner.freed.notify_waiters();
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
    use super::*;

    #[tokio::test]
    async fn slices_keep_the_whole_buffer_charged_and_the_last_one_makes_room() {
        let memory = Memory::new(100);
        let buffer = memory.hold(vec![0; 100]);
        assert!(memory.is_full());
        let slice = buffer.slice(10..20);
        drop(buffer);
        assert_eq!(memory.held(), 100);
        let waiting = tokio::spawn({
            let memory = memory.clone();
            async move { memory.room().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(slice);
        waiting.await.unwrap();
        assert_eq!(memory.held(), 0);
    }
}

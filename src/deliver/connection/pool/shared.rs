//! The HTTP/2 connections that requests share: one, and a few more while it has no room.

use std::sync::Arc;
use std::time::Instant;

use crate::deliver::connection::http2::{Http2, Stream};

/// Connections at a time. An endpoint that takes few requests a connection has reasons, so there are not many.
pub(super) const SHARED_MAX: usize = 4;

#[derive(Default)]
pub(super) struct Shared(Vec<Arc<Http2>>);

impl Shared {
    /// The connection for a request: one with room, else the first that takes requests. One that is due, but not for long,
    /// only if `due_too`.
    pub(super) fn pick(&mut self, now: Instant, due_too: bool) -> Option<Arc<Http2>> {
        self.0.retain(|one| one.is_open());
        let mut good = self.0.iter().filter(|one| one.life.takes(now));
        let first = good.next();
        let roomy = first.filter(|first| first.has_room()).or_else(|| good.find(|one| one.has_room()));
        let due = || self.0.iter().find(|one| due_too && one.life.lingers(now));
        roomy.or(first).or_else(due).cloned()
    }

    /// A stream on another connection than `crowded`, if one has room.
    pub(super) fn stream_beside(&self, crowded: &Arc<Http2>, now: Instant) -> Option<(Arc<Http2>, Stream)> {
        let others = self.0.iter().filter(|one| !Arc::ptr_eq(one, crowded) && one.is_open() && one.life.takes(now));
        others.map(|one| (one, one.stream_now())).find_map(|(one, stream)| Some((Arc::clone(one), stream?)))
    }

    /// Whether one more would be of use: all have as many requests under way as the endpoint takes on them.
    pub(super) fn wants_another(&self, now: Instant) -> bool {
        let good: Vec<_> = self.0.iter().filter(|one| one.is_open() && one.life.takes(now)).collect();
        !good.is_empty() && good.len() < SHARED_MAX && good.iter().all(|one| one.is_crowded())
    }

    /// There is another: those that are due go.
    pub(super) fn put(&mut self, connection: Arc<Http2>, now: Instant) {
        self.0.retain(|one| one.is_open() && one.life.takes(now));
        self.0.push(connection);
    }

    /// Lets go of those that are of no use any more.
    pub(super) fn tidy(&mut self, now: Instant) {
        self.0.retain(|one| one.is_open() && one.life.lingers(now));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

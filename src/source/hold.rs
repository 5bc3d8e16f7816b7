//! When a source counts as held: pure.
//!
//! Not reading for a moment is ordinary back-pressure: the sinks have enough, or memory is full, and an acknowledgement
//! later it goes on. Held is a source that has not read for a while in which no sink acknowledged anything, or in which a
//! sink had no room for more, neither in memory nor in the store: changes stand still, and people are told.

use std::time::{Duration, Instant};

use crate::change::Lsn;
use crate::view::{StoreView, Trouble};

/// Without reading and without an acknowledgement for so long, a source is held.
pub(super) const HELD_AFTER: Duration = Duration::from_secs(3);

/// What an observation changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing.
    None,
    /// The source is held from now on.
    Began,
    /// It is no longer, after so long.
    Ended(Duration),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Hold {
    acknowledged: u64,
    resolved: Lsn,
    moved_at: Instant,
    began_at: Option<Instant>,
}

impl Hold {
    /// A source that moves.
    pub(super) fn new(now: Instant) -> Self {
        Self { acknowledged: 0, resolved: Lsn::ZERO, moved_at: now, began_at: None }
    }

    /// Looks at the source: whether it reads, whether a sink keeps it from that, whatever others do, how many messages its
    /// sinks have acknowledged so far, and how far all of them have resolved everything: while that moves, a sink
    /// without room gets rid of what it has, be it into a slow store.
    pub(super) fn observe(
        &mut self,
        now: Instant,
        reads: bool,
        stuck: bool,
        (acknowledged, resolved): (u64, Lsn),
    ) -> Turn {
        if reads || resolved != self.resolved || (!stuck && acknowledged != self.acknowledged) {
            self.acknowledged = acknowledged;
            self.resolved = resolved;
            self.moved_at = now;
            return self.began_at.take().map_or(Turn::None, |began| Turn::Ended(now - began));
        }
        if self.began_at.is_some() || now.duration_since(self.moved_at) < HELD_AFTER {
            return Turn::None;
        }
        self.began_at = Some(now);
        Turn::Began
    }
}

/// Why reading is held, and what mends it. `memory` is held, limit, and whether it is full; `holding` are the sinks without
/// room, of `all`.
pub(super) fn why_held(
    (held, limit, is_full): (usize, usize, bool),
    store: &StoreView,
    holding: &[&str],
    all: &[&str],
) -> Trouble {
    let mib = |bytes: usize| bytes >> 20;
    let trouble = |what: String, advice: &str| Trouble { what, advice: advice.to_owned() };
    if !holding.is_empty() {
        return no_room(store, &holding.join(", "));
    }
    if is_full {
        return trouble(
            format!("undelivered changes fill the source's share of memory_limit, {} MiB", mib(limit)),
            "mend or resume the sinks that fail or are paused, or raise limits.memory_limit and restart walhook; changes \
             stay in the database's WAL meanwhile",
        );
    }
    trouble(
        format!(
            "no sink takes more ({}): each has more deliverable changes than it can send, {} MiB in memory, and nothing \
             was acknowledged for {} s",
            all.join(", "),
            mib(held),
            HELD_AFTER.as_secs()
        ),
        "mend or resume the sinks named here; changes stay in the database's WAL meanwhile",
    )
}

/// What a sink says of itself that has no room in memory and may not or cannot put anything into the store.
fn no_room(store: &StoreView, sinks: &str) -> Trouble {
    let trouble = |what: String, advice: &str| Trouble { what, advice: advice.to_owned() };
    let path = store.path.display();
    match &store.trouble {
        Some(Trouble { what, advice }) => trouble(
            format!("sink {sinks} has no room in memory, and the store in {path} takes no more: {what}"),
            &format!("{advice}; changes stay in the database's WAL meanwhile"),
        ),
        None if store.is_full => trouble(
            format!("sink {sinks} has no room in memory, and the store in {path} is full (state.max_bytes)"),
            "mend the endpoint, or raise state.max_bytes and restart walhook; changes stay in the database's WAL \
             meanwhile",
        ),
        None => trouble(
            format!("sink {sinks} has no room for more, and nothing of it goes to the store"),
            "mend or resume the sink, or raise limits.memory_limit and restart walhook; with state.hold = \"store\" what \
             cannot be delivered soon waits on disk",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_held_when_it_neither_reads_nor_is_anything_acknowledged() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut hold = Hold::new(start);
        assert_eq!(hold.observe(at(1), true, false, (0, Lsn(1))), Turn::None);
        assert_eq!(hold.observe(at(4), false, false, (7, Lsn(1))), Turn::None, "something was acknowledged");
        assert_eq!(hold.observe(at(6), false, false, (7, Lsn(1))), Turn::None);
        assert_eq!(hold.observe(at(7), false, false, (7, Lsn(1))), Turn::Began);
        assert_eq!(hold.observe(at(8), false, false, (7, Lsn(1))), Turn::None, "told once");
        assert_eq!(hold.observe(at(9), true, false, (7, Lsn(1))), Turn::Ended(Duration::from_secs(2)));
        assert_eq!(hold.observe(at(10), false, false, (7, Lsn(1))), Turn::None);
    }
    #[test]
    fn a_sink_without_room_holds_its_source_whatever_the_others_acknowledge() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut hold = Hold::new(start);
        assert_eq!(hold.observe(at(2), false, true, (5, Lsn(1))), Turn::None);
        assert_eq!(hold.observe(at(4), false, true, (5, Lsn(2))), Turn::None, "the store takes it, if slowly");
        assert_eq!(hold.observe(at(7), false, true, (9, Lsn(2))), Turn::Began);
        assert_eq!(hold.observe(at(8), true, false, (9, Lsn(2))), Turn::Ended(Duration::from_secs(1)));
    }

    #[test]
    fn what_holds_is_named_with_what_mends_it() {
        let full = StoreView { is_full: true, ..StoreView::default() };
        let told = why_held((9, 9, true), &full, &["orders"], &["orders", "mails"]);
        assert!(told.what.contains("sink orders") && told.what.contains("is full (state.max_bytes)"), "{}", told.what);
        assert!(told.advice.contains("state.max_bytes") && told.advice.contains("endpoint"), "{}", told.advice);

        let trouble = Some(Trouble { what: "disk full".into(), advice: "free some".into() });
        let told = why_held((9, 9, true), &StoreView { trouble, ..StoreView::default() }, &["orders"], &["orders"]);
        assert!(told.what.contains("disk full") && told.advice.starts_with("free some"), "{told:?}");

        let told = why_held((9, 9 << 20, true), &StoreView::default(), &[], &["orders"]);
        assert!(told.what.contains("memory_limit, 9 MiB"), "{}", told.what);
        let told = why_held((9, 9, false), &StoreView::default(), &[], &["orders", "mails"]);
        assert!(told.what.contains("no sink takes more (orders, mails)"), "{}", told.what);
    }
}

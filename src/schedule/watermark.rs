//! How far everything is resolved; only grows.
//!
//! Also what must be known to skip after a restart: the newest position that is resolved, and the unresolved ones before it.
//!
//! Messages arrive in commit order and are resolved in any order. Unresolved ones stand in a doubly linked list in a slab,
//! so that resolving one costs the same whatever else waits, and memory follows what is unresolved, not what has passed
//! behind a message that waits for days. A mark says: once all that arrived before is resolved, everything up to this LSN
//! is. A mark rests on the youngest unresolved message before it and moves to the next older one when that is resolved.

use std::time::Instant;

use super::{DeliveryKey, PLACES_KEPT, Progress};
use crate::change::{Lsn, Position};

const NONE: u32 = u32::MAX;

/// Names an unresolved message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token(u32);

/// Where an unresolved message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In this slot of the backlog.
    Waiting(u32),
    /// In a delivery.
    In(DeliveryKey),
    /// Held for the next page of the overflow.
    Buffered,
    /// Asked to be written: the store has it once that is durable.
    Leaving,
}

#[derive(Debug)]
struct Node {
    older: u32,
    newer: u32,
    mark: Lsn,
    arrived: Instant,
    position: Position,
    place: Place,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Watermark {
    nodes: Vec<Node>,
    free: Vec<u32>,
    oldest: u32,
    youngest: u32,
    resolved: Lsn,
    high: Option<Position>,
    /// The newest that ever left for the store.
    leaving_high: Option<Position>,
    /// Places that stay when all are empty.
    kept: usize,
}

impl Watermark {
    /// A message's place in the list.
    pub(super) const MESSAGE_BYTES: usize = size_of::<Node>() + size_of::<u32>();

    pub(super) fn new() -> Self {
        Self::resumed(Lsn::ZERO, None)
    }

    /// After a restart: everything up to `resolved` is resolved, and `high` is the newest position that is.
    pub(super) fn resumed(resolved: Lsn, high: Option<Position>) -> Self {
        let (nodes, free, kept) = (Vec::new(), Vec::new(), PLACES_KEPT);
        Self { nodes, free, oldest: NONE, youngest: NONE, resolved, high, leaving_high: high, kept }
    }

    /// So many places stay when all are empty.
    pub(super) fn keep_places(&mut self, kept: usize) {
        self.kept = kept;
    }

    /// Places that it has, in use or not.
    pub(super) fn places(&self) -> usize {
        self.nodes.capacity()
    }

    /// A message arrived, younger than all before.
    pub(super) fn arrive(&mut self, now: Instant, position: Position, place: Place) -> Token {
        let node = Node { older: self.youngest, newer: NONE, mark: Lsn::ZERO, arrived: now, position, place };
        let index = self.place(node);
        match self.node(self.youngest) {
            Some(youngest) => youngest.newer = index,
            None => self.oldest = index,
        }
        self.youngest = index;
        Token(index)
    }

    /// Once all that has arrived is resolved, everything up to `lsn` is.
    pub(super) fn mark(&mut self, lsn: Lsn) {
        match self.node(self.youngest) {
            Some(youngest) => youngest.mark = youngest.mark.max(lsn),
            None => self.advance(lsn),
        }
    }

    /// The message is delivered, dead, discarded, or durable elsewhere. A token is given once and used once.
    pub(super) fn resolve(&mut self, token: Token) {
        let Some(node) = self.node(token.0) else { return };
        let (older, newer, mark, position) = (node.older, node.newer, node.mark, node.position);
        self.high = self.high.max(Some(position));
        match self.node(newer) {
            Some(node) => node.older = older,
            None => self.youngest = older,
        }
        if let Some(node) = self.node(older) {
            node.newer = newer;
            node.mark = node.mark.max(mark);
        } else {
            self.oldest = newer;
            self.advance(mark);
        }
        self.free.push(token.0);
        self.shrink_when_empty();
    }

    /// The message is somewhere else.
    pub(super) fn moved(&mut self, token: Token, place: Place) {
        let Some(node) = self.node(token.0) else { return };
        node.place = place;
        if place == Place::Leaving {
            let position = node.position;
            self.leaving_high = self.leaving_high.max(Some(position));
        }
    }

    /// Of the messages that arrived not after `limit`, the oldest, or the next younger than `after`.
    pub(super) fn next_aged(&self, after: Option<Token>, limit: Instant) -> Option<(Token, Place)> {
        let index = after.map_or(Some(self.oldest), |token| Some(self.nodes.get(slot(token.0))?.newer))?;
        let node = self.nodes.get(slot(index)).filter(|node| node.arrived <= limit)?;
        Some((Token(index), node.place))
    }

    /// How far everything will be once what leaves for the store is durable.
    pub(super) fn outlook(&self) -> Progress {
        let (mut resolved, mut unresolved) = (self.resolved, Vec::new());
        let high = self.high.max(self.leaving_high);
        let mut next = self.nodes.get(slot(self.oldest));
        while let Some(node) = next.filter(|node| Some(node.position) <= high) {
            match node.place {
                Place::Leaving if unresolved.is_empty() => resolved = resolved.max(node.mark),
                Place::Leaving => {}
                Place::Waiting(_) | Place::In(_) | Place::Buffered => unresolved.push(node.position),
            }
            next = self.nodes.get(slot(node.newer));
        }
        Progress { resolved, high, unresolved }
    }

    /// Everything up to here is resolved.
    pub(super) fn resolved(&self) -> Lsn {
        self.resolved
    }

    /// When the oldest unresolved message arrived.
    pub(super) fn oldest_arrival(&self) -> Option<Instant> {
        self.nodes.get(slot(self.oldest)).map(|node| node.arrived)
    }

    /// How many messages are unresolved.
    pub(super) fn unresolved(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    fn advance(&mut self, lsn: Lsn) {
        self.resolved = self.resolved.max(lsn);
    }

    fn node(&mut self, index: u32) -> Option<&mut Node> {
        self.nodes.get_mut(slot(index))
    }

    fn place(&mut self, node: Node) -> u32 {
        if let Some(index) = self.free.pop() {
            if let Some(free) = self.node(index) {
                *free = node;
            }
            return index;
        }
        self.nodes.push(node);
        u32::try_from(self.nodes.len() - 1).expect("four thousand million messages do not fit in memory")
    }

    fn shrink_when_empty(&mut self) {
        if self.oldest == NONE {
            self.nodes.clear();
            self.free.clear();
            if self.nodes.capacity() > self.kept {
                self.nodes.shrink_to(self.kept);
                self.free.shrink_to(self.kept);
            }
        }
    }
}

/// The place of an index in the slab; `NONE` is past every slab.
fn slot(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64) -> Position {
        Position { commit_lsn: Lsn(1), index }
    }

    fn arrive(watermark: &mut Watermark, now: Instant, index: u64) -> Token {
        watermark.arrive(now, at(index), Place::Waiting(0))
    }

    #[test]
    fn what_is_resolved_is_told_as_the_newest_and_the_exceptions_before_it() {
        let now = Instant::now();
        let mut watermark = Watermark::new();
        let tokens: Vec<Token> = (1..=5).map(|index| arrive(&mut watermark, now, index)).collect();
        assert_eq!(watermark.outlook().high, None);
        watermark.resolve(tokens[1]);
        watermark.resolve(tokens[3]);
        assert_eq!(watermark.outlook().high, Some(at(4)));
        assert_eq!(watermark.outlook().unresolved, [at(1), at(3)]);
    }

    #[test]
    fn what_leaves_for_the_store_counts_as_resolved_in_the_outlook_and_nowhere_else() {
        let now = Instant::now();
        let mut watermark = Watermark::new();
        let tokens: Vec<Token> = (1..=4).map(|index| arrive(&mut watermark, now, index)).collect();
        watermark.mark(Lsn(40));
        watermark.moved(tokens[1], Place::Leaving);
        watermark.moved(tokens[3], Place::Leaving);
        let progress = Progress { resolved: Lsn::ZERO, high: Some(at(4)), unresolved: vec![at(1), at(3)] };
        assert_eq!(watermark.outlook(), progress);
        watermark.resolve(tokens[0]);
        watermark.moved(tokens[2], Place::Leaving);
        assert_eq!(watermark.outlook(), Progress { resolved: Lsn(40), high: Some(at(4)), unresolved: vec![] });
        assert_eq!(watermark.resolved(), Lsn::ZERO);
        // The last one could not be written.
        watermark.moved(tokens[3], Place::Waiting(0));
        assert_eq!(watermark.outlook(), Progress { resolved: Lsn::ZERO, high: Some(at(4)), unresolved: vec![at(4)] });
    }

    #[test]
    fn it_waits_for_the_oldest_and_then_jumps() {
        let now = Instant::now();
        let mut watermark = Watermark::new();
        let first = arrive(&mut watermark, now, 1);
        watermark.mark(Lsn(10));
        let second = arrive(&mut watermark, now, 2);
        let third = arrive(&mut watermark, now, 3);
        watermark.mark(Lsn(20));
        watermark.resolve(third);
        assert_eq!(watermark.resolved(), Lsn::ZERO);
        watermark.resolve(first);
        assert_eq!(watermark.resolved(), Lsn(10));
        watermark.resolve(second);
        assert_eq!(watermark.resolved(), Lsn(20));
        watermark.mark(Lsn(30));
        assert_eq!(watermark.resolved(), Lsn(30));
        assert_eq!(watermark.unresolved(), 0);
    }

    #[test]
    fn it_agrees_with_a_naive_model() {
        let now = Instant::now();
        let mut rng = fastrand::Rng::with_seed(7);
        let mut watermark = Watermark::new();
        // The model: (token, resolved?) of messages and the marks between them, in order.
        let mut messages: Vec<(Token, bool)> = Vec::new();
        let mut marks: Vec<(usize, Lsn)> = Vec::new();
        for step in 1..20_000u64 {
            match rng.u8(0..3) {
                0 => messages.push((arrive(&mut watermark, now, step), false)),
                1 => {
                    watermark.mark(Lsn(step));
                    marks.push((messages.len(), Lsn(step)));
                }
                _ => {
                    let open: Vec<usize> = (0..messages.len()).filter(|&i| !messages[i].1).collect();
                    if let Some(&pick) = open.get(rng.usize(0..open.len().max(1))) {
                        watermark.resolve(messages[pick].0);
                        messages[pick].1 = true;
                    }
                }
            }
            let done = messages.iter().take_while(|message| message.1).count();
            let expected = marks.iter().rev().find(|mark| mark.0 <= done).map_or(Lsn::ZERO, |mark| mark.1);
            assert_eq!(watermark.resolved(), expected, "step {step}");
            // Keep the model small: forget what both agree is past.
            messages.drain(..done);
            marks.iter_mut().for_each(|mark| mark.0 = mark.0.saturating_sub(done));
            let past = marks.iter().rposition(|mark| mark.0 == 0).unwrap_or(0);
            marks.drain(..past);
        }
    }
}

//! How far everything is resolved; only grows.
//!
//! Messages arrive in commit order and are resolved in any order. Unresolved ones stand in a doubly linked list in a slab,
//! so that resolving one costs the same whatever else waits, and memory follows what is unresolved, not what has passed
//! behind a message that waits for days. A mark says: once all that arrived before is resolved, everything up to this LSN
//! is. A mark rests on the youngest unresolved message before it and moves to the next older one when that is resolved.

use std::time::Instant;

use crate::change::Lsn;

const NONE: u32 = u32::MAX;

/// Names an unresolved message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token(u32);

#[derive(Debug)]
struct Node {
    older: u32,
    newer: u32,
    mark: Lsn,
    arrived: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Watermark {
    nodes: Vec<Node>,
    free: Vec<u32>,
    oldest: u32,
    youngest: u32,
    resolved: Lsn,
}

impl Watermark {
    /// A message's place in the list.
    pub(super) const MESSAGE_BYTES: usize = size_of::<Node>() + size_of::<u32>();

    pub(super) fn new() -> Self {
        Self { nodes: Vec::new(), free: Vec::new(), oldest: NONE, youngest: NONE, resolved: Lsn::ZERO }
    }

    /// A message arrived, younger than all before.
    pub(super) fn arrive(&mut self, now: Instant) -> Token {
        let node = Node { older: self.youngest, newer: NONE, mark: Lsn::ZERO, arrived: now };
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
        let (older, newer, mark) = (node.older, node.newer, node.mark);
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
            if self.nodes.capacity() > 4096 {
                self.nodes.shrink_to(4096);
                self.free.shrink_to(4096);
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

    #[test]
    fn it_waits_for_the_oldest_and_then_jumps() {
        let now = Instant::now();
        let mut watermark = Watermark::new();
        let first = watermark.arrive(now);
        watermark.mark(Lsn(10));
        let second = watermark.arrive(now);
        let third = watermark.arrive(now);
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
                0 => messages.push((watermark.arrive(now), false)),
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

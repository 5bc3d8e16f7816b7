//! The one list of what is not delivered, whatever backs it: memory, a delivery, a lane, a page, or a person's decision.
//!
//! A message enters once, when it arrives (or when the store says that it has it from a life before), and leaves once,
//! when it is acknowledged or dead. Between the two it may move as it likes: the list is not told. So how old the
//! oldest one is follows from this list alone.
//!
//! Messages arrive in the order of their positions, so the list is kept by *spans*: positions next to each other that
//! arrived at about the same time, and how many of them are left. A span tells the time of its first message; it is at
//! most [`GRAIN`] long, or a [`SHARE`]th of its age where the list would grow too long. Arriving costs constant time, leaving
//! the logarithm of the number of spans, and memory follows the age of the oldest message, not how many there are.
//!
//! Pages of a life before are known by their time and number of messages only: these get their positions when they come
//! back, which happens in order.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::change::Position;

/// Messages that arrived within so long count as one moment.
pub const GRAIN: Duration = Duration::from_millis(100);
/// The length of an old span, as a part of its age.
pub const SHARE: u32 = 64;
/// Spans that are not looked through for those that may go together.
const SPANS_FEW: usize = 64;

/// Messages of a life before that the store has: neighbours in the order of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredSpan {
    /// The first of them.
    pub first: Position,
    /// The last of them; no other span lies between.
    pub last: Position,
    /// When the first of them arrived, as far as that is known.
    pub arrived: Instant,
    /// How many are left.
    pub messages: usize,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    first: Position,
    last: Position,
    arrived: Instant,
    /// When the last one arrived.
    until: Instant,
    messages: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Undelivered {
    /// By position; so by time, too. The first one is not empty.
    spans: VecDeque<Span>,
    /// Pages of a life before that have not come back: time and number of messages, in order.
    pages: VecDeque<(Instant, usize)>,
    messages: usize,
    /// With so many spans they are looked through.
    tidy_at: usize,
    /// The newest position that came back from a page.
    page_read: Option<Position>,
}

impl Undelivered {
    pub(super) fn new() -> Self {
        Self { spans: VecDeque::new(), pages: VecDeque::new(), messages: 0, tidy_at: SPANS_FEW, page_read: None }
    }

    /// When the oldest message arrived.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let span = self.spans.front().map(|span| span.arrived);
        let page = self.pages.front().map(|(arrived, _)| *arrived);
        span.into_iter().chain(page).min()
    }

    /// How many there are.
    pub(super) fn messages(&self) -> usize {
        self.messages
    }

    /// A message arrived, younger than all before.
    pub(super) fn arrive(&mut self, now: Instant, position: Position) {
        self.messages += 1;
        if let Some(span) = self.spans.back_mut()
            && (position <= span.last || now.saturating_duration_since(span.arrived) < GRAIN)
        {
            span.last = span.last.max(position);
            span.until = span.until.max(now);
            span.messages += 1;
            return;
        }
        if self.spans.len() >= self.tidy_at {
            self.tidy(now);
        }
        self.spans.push_back(Span { first: position, last: position, arrived: now, until: now, messages: 1 });
    }

    /// A message of a life before has come, from the WAL or a page. It arrived at `arrived`.
    pub(super) fn come(&mut self, arrived: Instant, position: Position) {
        self.messages += 1;
        let at = self.spans.partition_point(|span| span.last < position);
        if let Some(span) = self.spans.get_mut(at).filter(|span| span.first <= position) {
            span.messages += 1;
            return;
        }
        // Positions and times have the same order; where clocks differ, the position decides.
        let before = at.checked_sub(1).and_then(|before| self.spans.get_mut(before));
        let earliest = before.as_ref().map(|span| span.until);
        let arrived = earliest.map_or(arrived, |earliest| arrived.max(earliest));
        if let Some(span) = before.filter(|span| arrived.saturating_duration_since(span.arrived) < GRAIN) {
            span.last = position;
            span.until = arrived;
            span.messages += 1;
            return;
        }
        let latest = self.spans.get(at).map(|span| span.arrived);
        let arrived = latest.map_or(arrived, |latest| arrived.min(latest));
        self.spans.insert(at, Span { first: position, last: position, arrived, until: arrived, messages: 1 });
    }

    /// Messages are acknowledged, dead or discarded. One that is not known changes nothing.
    pub(super) fn leave(&mut self, positions: impl IntoIterator<Item = Position>) {
        // Messages of one delivery are mostly of one span, and mostly of the oldest.
        let mut at = 0;
        for position in positions {
            let holds = |span: &Span| span.first <= position && position <= span.last;
            if !self.spans.get(at).is_some_and(holds) {
                at = self.spans.partition_point(|span| span.last < position);
            }
            if let Some(span) = self.spans.get_mut(at).filter(|span| holds(span) && span.messages > 0) {
                span.messages -= 1;
                self.messages -= 1;
            }
        }
        self.drop_empty();
    }

    /// Nothing is left, whatever was counted: what the store has lost stays in nobody's way.
    pub(super) fn clear(&mut self) {
        if self.messages > 0 {
            *self = Self { page_read: self.page_read, ..Self::new() };
        }
    }

    /// What the store has of a life before, in no order, without its pages.
    pub(super) fn restore(&mut self, mut stored: Vec<StoredSpan>) {
        stored.sort_unstable_by_key(|span| span.first);
        // Positions and times have the same order; where clocks differ, or a time is not known, the position decides.
        let mut earliest = None;
        for span in stored.iter_mut().rev() {
            span.arrived = earliest.map_or(span.arrived, |earliest: Instant| earliest.min(span.arrived));
            earliest = Some(span.arrived);
        }
        for StoredSpan { first, last, arrived, messages } in stored {
            self.messages += messages;
            match self.spans.back_mut() {
                Some(span) if first <= span.last || arrived.saturating_duration_since(span.arrived) < GRAIN => {
                    span.last = span.last.max(last);
                    span.until = span.until.max(arrived);
                    span.messages += messages;
                }
                Some(_) | None => {
                    self.spans.push_back(Span { first, last, arrived, until: arrived, messages });
                }
            }
        }
        self.drop_empty();
    }

    /// The pages that the store has of a life before, in order.
    pub(super) fn restore_pages(&mut self, pages: impl IntoIterator<Item = (Instant, usize)>) {
        self.pages.extend(pages.into_iter().filter(|(_, messages)| *messages > 0));
        self.messages += self.pages.iter().map(|(_, messages)| messages).sum::<usize>();
    }

    /// A message came back from a page.
    pub(super) fn page_came_back(&mut self, arrived: Instant, position: Position) {
        self.page_read = self.page_read.max(Some(position));
        let Some((_, left)) = self.pages.front_mut() else { return };
        *left -= 1;
        if *left == 0 {
            self.pages.pop_front();
        }
        self.messages -= 1;
        self.come(arrived, position);
    }

    /// The store has lost so many messages of its pages: the next ones.
    pub(super) fn lose_of_pages(&mut self, mut lost: usize) {
        while let Some((_, messages)) = self.pages.front_mut() {
            let gone = lost.min(*messages);
            (*messages, lost, self.messages) = (*messages - gone, lost - gone, self.messages - gone);
            if *messages > 0 {
                return;
            }
            self.pages.pop_front();
        }
        self.lose(self.page_read, None, lost);
    }

    /// The store has lost so many messages after one position and up to another.
    pub(super) fn lose(&mut self, after: Option<Position>, to: Option<Position>, mut lost: usize) {
        let spans = self.spans.iter_mut();
        for span in spans.filter(|span| Some(span.last) > after && to.is_none_or(|to| span.first <= to)) {
            let gone = lost.min(span.messages);
            span.messages -= gone;
            self.messages -= gone;
            lost -= gone;
        }
        self.drop_empty();
    }

    fn drop_empty(&mut self) {
        while self.spans.front().is_some_and(|span| span.messages == 0) {
            self.spans.pop_front();
        }
        if self.spans.is_empty() && self.spans.capacity() > 2 * SPANS_FEW {
            self.spans.shrink_to(SPANS_FEW);
            self.tidy_at = SPANS_FEW;
        }
    }

    /// Spans of which nothing is left go; old ones that are short for their age go together.
    fn tidy(&mut self, now: Instant) {
        let mut tidied: VecDeque<Span> = VecDeque::with_capacity(self.spans.len() / 2);
        for span in self.spans.drain(..).filter(|span| span.messages > 0) {
            let share = |until: Instant| now.saturating_duration_since(until) / SHARE;
            match tidied.back_mut() {
                Some(last) if span.until.saturating_duration_since(last.arrived) < share(span.until).max(GRAIN) => {
                    (last.last, last.until) = (span.last, span.until);
                    last.messages += span.messages;
                }
                Some(_) | None => tidied.push_back(span),
            }
        }
        self.tidy_at = SPANS_FEW.max(2 * tidied.len());
        self.spans = tidied;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Lsn;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(index: u64) -> Position {
        Position { commit_lsn: Lsn(1), index }
    }

    #[test]
    fn it_agrees_with_a_naive_list_and_stays_short() {
        let mut rng = fastrand::Rng::with_seed(11);
        let (mut now, mut list, mut next) = (Instant::now(), Undelivered::new(), 1);
        let mut left: Vec<(u64, Instant)> = Vec::new();
        for step in 0..200_000 {
            now += Duration::from_millis(rng.u64(0..60));
            match rng.u8(0..2) {
                0 => {
                    list.arrive(now, at(next));
                    left.push((next, now));
                    next += 1;
                }
                // The first stays for long now and then.
                _ if left.len() > 1 => {
                    let first = usize::from(rng.u16(..) > 0);
                    let (gone, _) = left.swap_remove(rng.usize(first..left.len()));
                    list.leave([at(gone)]);
                }
                _ => {}
            }
            let oldest = left.iter().map(|(_, at)| *at).min();
            let age = now - oldest.unwrap_or(now);
            let told = now - list.oldest().unwrap_or(now);
            assert!(told >= age && told - age <= GRAIN + age / SHARE, "step {step}: {told:?} is {age:?}");
            assert_eq!(list.messages(), left.len(), "step {step}");
            assert!(list.spans.len() <= 2 * (left.len() + SPANS_FEW), "step {step}: {}", list.spans.len());
        }
    }

    #[test]
    fn a_long_outage_costs_little_memory() {
        let (mut now, mut list) = (Instant::now(), Undelivered::new());
        let began = now;
        for index in 0..2_000_000 {
            list.arrive(now, at(index));
            now += SECOND;
        }
        assert!(list.spans.len() < 4000, "{}", list.spans.len());
        (0..2_000_000).for_each(|index| list.leave([at(index)]));
        assert_eq!((list.messages(), list.oldest()), (0, None));
        assert!(now - began > SECOND);
    }

    #[test]
    fn what_a_life_before_left_is_as_old_as_it_was_and_comes_back_in_any_way() {
        let now = Instant::now() + 1000 * SECOND;
        let mut list = Undelivered::new();
        let span = |first, last, ago: u32, messages| StoredSpan {
            first: at(first),
            last: at(last),
            arrived: now - ago * SECOND,
            messages,
        };
        list.restore(vec![span(20, 29, 50, 10), span(3, 3, 90, 1)]);
        list.restore_pages([(now - 40 * SECOND, 2), (now - 30 * SECOND, 1)]);
        // One comes again that is older than all, one between, one of the WAL that is new.
        list.come(now - 95 * SECOND, at(1));
        list.come(now - 60 * SECOND, at(10));
        list.arrive(now, at(50));
        assert_eq!(list.messages(), 17);
        let mut ages = Vec::new();
        let mut goes = |list: &mut Undelivered, index| {
            list.leave([at(index)]);
            ages.push(list.oldest().map(|oldest| (now - oldest).as_secs()));
        };
        goes(&mut list, 1);
        goes(&mut list, 3);
        goes(&mut list, 10);
        list.leave((20..30).map(at));
        list.page_came_back(now - 40 * SECOND, at(40));
        goes(&mut list, 40);
        list.page_came_back(now - 40 * SECOND, at(41));
        list.page_came_back(now - 30 * SECOND, at(42));
        goes(&mut list, 41);
        goes(&mut list, 42);
        goes(&mut list, 50);
        assert_eq!(ages, [Some(90), Some(60), Some(50), Some(40), Some(30), Some(0), None]);
    }

    #[test]
    fn what_the_store_has_lost_is_waited_for_by_nobody() {
        let now = Instant::now();
        let mut list = Undelivered::new();
        list.restore_pages([(now, 3)]);
        (10..14).for_each(|index| list.arrive(now + u32::try_from(index).unwrap() * SECOND, at(index)));
        list.lose_of_pages(3);
        assert_eq!((list.messages(), list.oldest()), (4, Some(now + 10 * SECOND)));
        list.lose(Some(at(9)), Some(at(11)), 2);
        assert_eq!((list.messages(), list.oldest()), (2, Some(now + 12 * SECOND)));
        list.clear();
        assert_eq!((list.messages(), list.oldest()), (0, None));
    }
}

//! A long random life beside a model that keeps everything in plain maps.

use std::collections::BTreeMap;

use super::*;

const SINKS: [&str; 3] = ["orders", "other", "third"];

/// What the store should have of a sink.
#[derive(Debug, Default)]
struct Model {
    deliveries: BTreeMap<u128, (KeptDelivery, Bytes, bool)>,
    lanes: BTreeMap<Position, KeptMessage>,
    pages: BTreeMap<u64, Vec<Option<KeptMessage>>>,
    next_page: u64,
    progress: Option<KeptProgress>,
    paused: Option<String>,
}

struct Play {
    rng: fastrand::Rng,
    models: [Model; SINKS.len()],
    clock: u64,
}

impl Play {
    fn of_seed(seed: u64) -> Self {
        Self { rng: fastrand::Rng::with_seed(seed), models: Default::default(), clock: 0 }
    }

    fn message(&mut self) -> KeptMessage {
        self.clock += self.rng.u64(0..3);
        let group = |rng: &mut fastrand::Rng| GroupId(rng.u64(1..6));
        let groups = match self.rng.u8(0..6) {
            0 => Groups::None,
            1 => Groups::moved(group(&mut self.rng), group(&mut self.rng)),
            _ => Groups::One(group(&mut self.rng)),
        };
        let mut message = message_of(at(self.clock, self.rng.u64(1..1000)), groups);
        if self.rng.u8(0..20) == 0 {
            message.json = Bytes::from(vec![b'j'; self.rng.usize(0..20_000)]);
        }
        message
    }

    fn tries(&mut self) -> Tries {
        let mut maybe = |value| self.rng.bool().then_some(value);
        let (first_attempt_micros, next_attempt_micros, last) = (maybe(3), maybe(-4), maybe(5));
        let last = last.map(|at_micros| LastFailure { at_micros, ..failure(500) });
        Tries {
            attempts: self.rng.u32(..),
            failures: self.rng.u32(..),
            first_attempt_micros,
            next_attempt_micros,
            last,
        }
    }

    fn delivery(&mut self) -> (KeptDelivery, Bytes) {
        let id = self.rng.u128(1..20);
        let (mut delivery, _) = delivery(id);
        delivery.members = (0..self.rng.usize(1..5))
            .map(|n| Member { facts: self.message().facts, bytes: n * 10..n * 10 + 9 })
            .collect();
        (delivery.tries, delivery.blocked) = (self.tries(), self.rng.bool());
        (delivery, Bytes::from(vec![b'b'; self.rng.usize(50..9000)]))
    }

    /// A random operation, which the model has seen already.
    fn op(&mut self, sink: usize) -> Op {
        let id = DeliveryId(self.rng.u128(1..20));
        match self.rng.u8(0..10) {
            0 | 1 => {
                let (delivery, body) = self.delivery();
                self.models[sink].park(&delivery, &body);
                Op::Park { delivery, body }
            }
            2 => {
                let (tries, blocked) = (self.tries(), self.rng.bool());
                self.models[sink].tried(id, &tries, blocked);
                Op::Tried { id, tries, blocked }
            }
            3 => {
                self.models[sink].deliveries.remove(&id.0);
                Op::Delivered(id)
            }
            4 => {
                let tries = self.tries();
                self.models[sink].dead(id, &tries);
                Op::Dead { id, at_micros: i64::MAX / 2, reason: DeadReason::MaxAge, tries }
            }
            5 => {
                let parts = vec![self.delivery(), self.delivery()];
                self.models[sink].deliveries.remove(&id.0);
                parts.iter().for_each(|(part, body)| self.models[sink].park(part, body));
                Op::Split { parent: id, parts }
            }
            6 => self.lanes(sink),
            7 => self.page(sink),
            8 => self.leave(sink),
            _ => {
                let why = format!("paused at {}", self.clock);
                self.models[sink].paused = Some(why.clone());
                Op::Paused { why }
            }
        }
    }

    fn lanes(&mut self, sink: usize) -> Op {
        let messages: Vec<_> = (0..self.rng.usize(0..8)).map(|_| self.message()).collect();
        let lanes = &mut self.models[sink].lanes;
        lanes.extend(messages.iter().map(|message| (message.facts.position, message.clone())));
        Op::Lanes(messages)
    }

    fn page(&mut self, sink: usize) -> Op {
        let messages: Vec<_> = (0..self.rng.usize(1..30)).map(|_| self.message()).collect();
        let model = &mut self.models[sink];
        let page = model.next_page + self.rng.u64(0..2);
        model.next_page = page + 1;
        model.pages.insert(page, messages.iter().cloned().map(Some).collect());
        Op::Page { page, messages }
    }

    fn leave(&mut self, sink: usize) -> Op {
        let most = self.rng.u8(1..=4);
        let rng = &mut self.rng;
        let model = &mut self.models[sink];
        let mut homes: Vec<Home> = model.lanes.keys().map(|position| Home::Lane(*position)).collect();
        for (page, messages) in &model.pages {
            let indexes = 0..u32::try_from(messages.len()).unwrap();
            homes.extend(indexes.map(|index| Home::Page { page: *page, index }));
        }
        homes.retain(|_| rng.u8(0..4) < most);
        rng.shuffle(&mut homes);
        homes.iter().for_each(|home| model.leave(*home));
        Op::Leave(homes)
    }

    fn progress(&mut self, sink: usize) -> Option<KeptProgress> {
        if self.rng.bool() {
            return None;
        }
        let old = self.models[sink].progress.clone().unwrap_or_default();
        let high = old.high.max(self.rng.bool().then(|| at(self.clock, 5)));
        let unresolved = (0..self.rng.u64(0..5)).map(|n| at(self.clock, n)).collect();
        let resolved = Lsn(old.resolved.0 + self.rng.u64(0..3));
        self.models[sink].progress = Some(KeptProgress { resolved, high, unresolved });
        self.models[sink].progress.clone()
    }

    fn batch(&mut self, sink: usize, key: SinkKey) -> Batch {
        let ops = (0..self.rng.usize(0..6)).map(|_| self.op(sink)).collect();
        Batch { sink: key, ops, progress: self.progress(sink) }
    }
}

impl Model {
    fn park(&mut self, delivery: &KeptDelivery, body: &Bytes) {
        self.deliveries.insert(delivery.id.0, (delivery.clone(), body.clone(), false));
    }

    fn tried(&mut self, id: DeliveryId, tries: &Tries, blocked: bool) {
        if let Some((delivery, _, false)) = self.deliveries.get_mut(&id.0) {
            (delivery.tries, delivery.blocked) = (tries.clone(), blocked);
        }
    }

    fn dead(&mut self, id: DeliveryId, tries: &Tries) {
        self.tried(id, tries, false);
        if let Some((_, _, dead)) = self.deliveries.get_mut(&id.0) {
            *dead = true;
        }
    }

    fn leave(&mut self, home: Home) {
        match home {
            Home::Lane(position) => drop(self.lanes.remove(&position)),
            Home::Page { page, index } => {
                let Some(messages) = self.pages.get_mut(&page) else { return };
                messages[usize::try_from(index).unwrap()] = None;
                if messages.iter().all(Option::is_none) {
                    self.pages.remove(&page);
                }
            }
        }
    }

    fn lane(&self, group: u64) -> Vec<KeptMessage> {
        let is_of = |message: &&KeptMessage| match message.facts.groups {
            Groups::None => group == UNGROUPED.0,
            groups @ (Groups::One(_) | Groups::Two(..)) => groups.iter().any(|of| of.0 == group),
        };
        self.lanes.values().filter(is_of).cloned().collect()
    }

    fn assert_kept(&self, store: &Store, name: &str) {
        let (sink, loaded) = store.load("app", name).unwrap();
        let mut kept = loaded.deliveries;
        kept.sort_by_key(|delivery| delivery.id);
        let living = self.deliveries.values().filter(|(_, _, dead)| !dead);
        assert_eq!(kept, living.map(|(delivery, _, _)| delivery.clone()).collect::<Vec<_>>());
        assert_eq!(loaded.dead_letters, self.deliveries.values().filter(|(_, _, dead)| *dead).count() as u64);
        for (id, (_, bytes, _)) in &self.deliveries {
            assert_eq!(body(store, sink, *id).as_ref(), Some(bytes));
        }
        assert_eq!((loaded.progress, loaded.paused), (self.progress.clone(), self.paused.clone()));
        for group in 0..6 {
            let messages = self.lane(group);
            assert_eq!(lane(store, sink, group), messages);
            let summary = loaded.lanes.iter().find(|lane| lane.group.0 == group);
            assert_eq!(summary.map(|lane| lane.last), messages.last().map(|last| last.facts.position));
            assert_eq!(summary.map_or(0, |lane| lane.messages), messages.len() as u64);
        }
        let spans = loaded.lane_spans.iter().map(|span| (span.first, span.last, span.messages, span.committed_micros));
        let one = |(at, message): (&Position, &KeptMessage)| (*at, *at, 1, Some(message.facts.commit_micros));
        assert!(spans.eq(self.lanes.iter().map(one)), "{:?}", loaded.lane_spans);
        self.assert_pages(&now(store.pages(sink, 0, usize::MAX)).unwrap(), loaded.overflow);
    }

    fn assert_pages(&self, pages: &[Page], overflow: OverflowSummary) {
        let messages = self.pages.values().flatten().flatten().count() as u64;
        let first_page = self.pages.keys().next().copied();
        let left = self.pages.values().map(|page| page.iter().flatten().count() as u64);
        assert!(overflow.pages.iter().map(|(_, messages)| *messages).eq(left), "{overflow:?}");
        let (next_page, of_pages) = (self.next_page, overflow.pages.clone());
        assert_eq!(overflow, OverflowSummary { messages, first_page, next_page, pages: of_pages });
        let expected = self.pages.iter().map(|(page, messages)| {
            let left = (0..).zip(messages).filter_map(|(index, message)| Some((index, message.clone()?)));
            (*page, left.collect::<Vec<_>>())
        });
        let found = pages.iter().map(|page| (page.page, page.messages.clone()));
        assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }
}

fn play(seed: u64) {
    println!("seed {seed}");
    let rig = Rig::new();
    let mut play = Play::of_seed(seed);
    let (mut store, mut keys) = rig.open(&SINKS);
    for _ in 0..150 {
        let batches: Vec<_> = (0..SINKS.len()).map(|sink| play.batch(sink, keys[sink])).collect();
        let answers: Vec<_> = batches.into_iter().map(|batch| store.submit(batch)).collect();
        if play.rng.u8(0..12) == 0 {
            // What was handed over is written, waited for or not.
            store.close();
            (store, keys) = rig.open(&SINKS);
        } else {
            answers.into_iter().for_each(|answer| answer.blocking_recv().unwrap());
        }
        if play.rng.u8(0..8) == 0 {
            play.models.iter().zip(SINKS).for_each(|(model, name)| model.assert_kept(&store, name));
        }
    }
    store.close();
    let (store, _) = rig.open(&SINKS);
    play.models.iter().zip(SINKS).for_each(|(model, name)| model.assert_kept(&store, name));
}

#[test]
fn a_random_life_leaves_what_the_model_has() {
    (1..=4).for_each(play);
}

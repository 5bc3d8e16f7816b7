//! One life: what happens, when, and what must be true after it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::model::Model;
use super::resume::{Admission, Resume};
use super::sink::{LaneReading, PageReading, Sent};
use super::steps::{any_rules, told};
use super::store::{Batch, Durable, Load};
use super::*;

const TABLES: u64 = 3;
/// Between the groups of a table before and after a regrouping.
const REGROUPED: u64 = 1000;

#[derive(Debug)]
pub(super) struct Flight {
    /// Its name in the store.
    pub(super) id: u64,
    pub(super) members: Vec<Load>,
    pub(super) attempts: u32,
    pub(super) failures: u32,
    pub(super) refusals: u32,
    pub(super) first: Option<Instant>,
    pub(super) in_flight: bool,
    pub(super) not_before: Instant,
    /// The store has it, once what was submitted is durable.
    pub(super) is_kept: bool,
    /// The scheduler knows that.
    pub(super) is_told: bool,
    pub(super) is_part: bool,
    /// What of its age does not count: the time spent in our own troubles when it was first tried.
    pub(super) spent_before: Duration,
    pub(super) has_failed: bool,
    /// How many troubles of our own there had been when its attempt began.
    pub(super) own_before: u32,
    pub(super) is_blocked: bool,
    /// How often the breaker had opened when its attempt began.
    pub(super) openings: u32,
}

impl Flight {
    pub(super) fn new(id: u64, members: Vec<Load>) -> Self {
        Self {
            id,
            members,
            attempts: 0,
            failures: 0,
            refusals: 0,
            first: None,
            in_flight: false,
            not_before: Instant::now(),
            is_kept: false,
            is_told: false,
            is_part: false,
            spent_before: Duration::ZERO,
            has_failed: false,
            own_before: 0,
            is_blocked: false,
            openings: 0,
        }
    }
}

/// What the source reads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Entry {
    Item(usize),
    Mark(Lsn),
}

/// What is true of troubles of walhook's own machine.
#[derive(Default)]
pub(super) struct OwnTrouble {
    /// How many there were.
    pub(super) count: u32,
    /// Since when one lasts, and before when no attempt starts.
    pub(super) lasts: Option<(Instant, Instant)>,
    /// The time that counts for nobody.
    pub(super) spent: Duration,
}

impl OwnTrouble {
    pub(super) fn spent(&self, now: Instant) -> Duration {
        self.spent + self.lasts.map_or(Duration::ZERO, |(since, _)| now - since)
    }
}

/// See the module.
pub(super) struct Life {
    pub(super) rng: fastrand::Rng,
    pub(super) fault: Fault,
    pub(super) rules: Rules,
    pub(super) now: Instant,
    pub(super) scheduler: Scheduler<Load>,
    /// What the scheduler is told of its surroundings.
    pub(super) world: World,
    pub(super) model: Model,
    pub(super) wal: Vec<Entry>,
    /// What of it has been read.
    pub(super) read: usize,
    lsn: u64,
    pub(super) planned: usize,
    lives: u64,
    has_barriers: bool,
    /// How often each table was grouped anew.
    groupings: BTreeMap<u64, u64>,
    /// How often the next message of a lane came back for nothing since a barrier last ended.
    pub(super) vain_reads: BTreeMap<(GroupId, usize), u32>,
    pub(super) flights: BTreeMap<DeliveryKey, Flight>,
    pub(super) resume: Option<Resume>,
    pub(super) durable: Durable,
    /// What the store had when this process began.
    pub(super) restored: Vec<usize>,
    pub(super) collecting: Batch,
    pub(super) submit_not_before: Instant,
    pub(super) sent: Option<Sent>,
    pub(super) lane_read: Option<LaneReading>,
    pub(super) lane_read_max: usize,
    pub(super) page_read: Option<PageReading>,
    pub(super) next_page_read: u64,
    pub(super) next_page_written: u64,
    pub(super) room: StoreRoom,
    /// The store answers soon.
    pub(super) is_prompt: bool,
    /// Since when the store has been open and prompt.
    pub(super) open_since: Option<Instant>,
    pub(super) paused: bool,
    pub(super) cramped: bool,
    pub(super) held_until: Option<Instant>,
    pub(super) is_down: bool,
    pub(super) troubles: u32,
    pub(super) openings: u32,
    pub(super) own: OwnTrouble,
    pub(super) slept: Duration,
    pub(super) is_ending: bool,
    /// What happened, if that is to be told.
    story: Option<Vec<String>>,
    born: Instant,
}

impl Life {
    pub(super) fn new(seed: u64, fault: Fault) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let rules = any_rules(&mut rng);
        let now = Instant::now();
        Self {
            fault,
            rules,
            now,
            scheduler: Scheduler::new(told(rules, fault), rng.u64(..)),
            world: World::EASY,
            model: Model::default(),
            wal: Vec::new(),
            read: 0,
            lsn: 10,
            planned: rng.usize(1..60),
            has_barriers: rng.bool(),
            groupings: BTreeMap::new(),
            vain_reads: BTreeMap::new(),
            lives: 0,
            flights: BTreeMap::new(),
            resume: None,
            durable: Durable::default(),
            restored: Vec::new(),
            collecting: Batch::default(),
            submit_not_before: now,
            sent: None,
            lane_read: None,
            lane_read_max: rng.usize(1..6),
            page_read: None,
            next_page_read: 0,
            next_page_written: 0,
            room: StoreRoom::Open,
            is_prompt: true,
            open_since: Some(now),
            paused: false,
            cramped: false,
            held_until: None,
            is_down: false,
            troubles: 0,
            openings: 0,
            own: OwnTrouble::default(),
            slept: Duration::ZERO,
            is_ending: false,
            story: None,
            born: now,
            rng,
        }
    }

    /// Keeps its story.
    pub(super) fn told(mut self) -> Self {
        self.story = Some(Vec::new());
        self
    }

    pub(super) fn story(&self) -> String {
        self.story.iter().flatten().cloned().collect::<Vec<_>>().join("\n")
    }

    pub(super) fn note(&mut self, told: impl FnOnce(&Self) -> String) {
        if self.story.is_some() {
            let line = format!("{:?} {}", self.now - self.born, told(self));
            self.story.iter_mut().for_each(|story| story.push(line.clone()));
        }
    }

    pub(super) fn delivery_id(&self, key: DeliveryKey) -> u64 {
        (self.lives << 32) | key.0
    }

    pub(super) fn is_replaying(&self) -> bool {
        self.resume.as_ref().is_some_and(Resume::is_replaying)
    }

    /// Groups of a table, which has others from each regrouping on.
    fn groups(&mut self, table: u64) -> Groups {
        let base = self.groupings.get(&table).unwrap_or(&0) * REGROUPED + table * 100;
        let mut group = || GroupId(base + if self.rng.bool() { self.rng.u64(0..3) } else { self.rng.u64(3..30) });
        let (old, new) = (group(), group());
        match self.rng.u8(0..10) {
            0 => Groups::None,
            1 | 2 => Groups::moved(old, new),
            _ => Groups::One(new),
        }
    }

    /// The next message of a table: a row's, or a TRUNCATE, or the first one by another rule or under another name.
    fn next_ties(&mut self) -> Ties {
        let table = self.rng.u64(0..TABLES);
        let scope = ScopeId(table + 1);
        let (groups, barrier) = match self.rng.u8(0..30) {
            0 if self.has_barriers => (Groups::One(GroupId(table * 100 + 99)), Barrier::Scope),
            1 if self.has_barriers => {
                *self.groupings.entry(table).or_default() += 1;
                (self.groups(table), Barrier::Scope)
            }
            2 if self.has_barriers => {
                *self.groupings.entry(table).or_default() += 1;
                (self.groups(table), Barrier::Scopes(ScopeId(self.rng.u64(0..TABLES) + 1)))
            }
            _ => (self.groups(table), Barrier::None),
        };
        Ties { groups, scope, barrier }
    }

    /// A transaction is committed.
    pub(super) fn commit(&mut self) {
        self.lsn += 10;
        for index in 1..=self.rng.u64(1..4) {
            let (ties, bytes, is_poison) = (self.next_ties(), self.rng.usize(1..300), self.rng.u8(0..15) == 0);
            self.wal.push(Entry::Item(self.model.items.len()));
            let position = Position { commit_lsn: Lsn(self.lsn), index };
            self.model.add(self.now, Tied { position, ties }, bytes, is_poison);
        }
        if self.rng.bool() {
            self.wal.push(Entry::Mark(Lsn(self.lsn + self.rng.u64(0..10))));
        }
    }

    /// The source reads on.
    pub(super) fn read_wal(&mut self) {
        let Some(entry) = self.wal.get(self.read).copied() else { return };
        self.read += 1;
        match entry {
            Entry::Item(index) => self.feed(index),
            Entry::Mark(lsn) => {
                self.model.marks.push((self.items_read(), lsn));
                self.scheduler.mark(lsn);
                if let Some(resume) = &mut self.resume {
                    resume.passed(lsn);
                }
            }
        }
        self.world.is_replaying = self.is_replaying() && self.fault != Fault::HideReplay;
    }

    fn items_read(&self) -> usize {
        self.wal[..self.read].iter().filter(|entry| matches!(entry, Entry::Item(_))).count()
    }

    /// Gives message `index` to the scheduler, as broken as the fault wants it.
    fn feed(&mut self, index: usize) {
        let item = &mut self.model.items[index];
        let admission = self.resume.as_mut().map_or(Admission::New, |resume| resume.admit(item.position));
        if admission == Admission::Skip && self.fault != Fault::SkipNothing {
            return;
        }
        item.arrived = Some(self.now);
        item.since = Some(if admission == Admission::Again { item.committed } else { self.now });
        let Tied { ties: Ties { groups, scope, barrier }, .. } = item.tied();
        let groups = match (self.fault, groups) {
            (Fault::ForgetGroups, _) => Groups::None,
            (Fault::ForgetOldKey, Groups::Two(_, new)) => Groups::One(new),
            (_, groups) => groups,
        };
        let barrier = match (self.fault, barrier) {
            (Fault::ForgetBarrier, _) => Barrier::None,
            (Fault::ForgetOldName, Barrier::Scopes(_)) => Barrier::Scope,
            (_, barrier) => barrier,
        };
        let mut position = item.position;
        match (self.fault, self.wal.get(self.read)) {
            (Fault::MarkEarly, Some(Entry::Mark(lsn))) => self.scheduler.mark(*lsn),
            (Fault::OldPosition, _) => position.commit_lsn = Lsn(0),
            (Fault::LoseOne, _) if index == 3 => return,
            _ => {}
        }
        let (bytes, arrived) = (item.bytes, item.committed);
        self.note(|life| format!("feed {index} {admission:?} {:?}", life.model.items[index]));
        let message = Message {
            groups,
            scope,
            barrier,
            bytes,
            position,
            payload: Load { item: index, home: None, is_damaged: false },
        };
        match admission {
            Admission::Again => self.scheduler.push_again(self.now, message, arrived),
            Admission::New | Admission::Skip => self.scheduler.push(self.now, message),
        };
    }

    /// The process dies, and another one takes up what the store has.
    pub(super) fn crash(&mut self) -> Check {
        for flight in std::mem::take(&mut self.flights).into_values().filter(|flight| flight.in_flight) {
            if self.rng.bool() {
                flight.members.iter().try_for_each(|load| self.model.seen(load.item))?;
            }
        }
        self.lives += 1;
        self.note(|life| format!("CRASH {:?}", life.durable));
        (self.sent, self.lane_read, self.page_read) = (None, None, None);
        self.collecting = Batch::default();
        (self.paused, self.cramped, self.held_until) = (false, false, None);
        (self.troubles, self.openings) = (0, 0);
        (self.own, self.slept) = (OwnTrouble::default(), Duration::ZERO);
        self.vain_reads.clear();
        (self.room, self.is_prompt) = (StoreRoom::Open, true);
        self.scheduler = Scheduler::new(told(self.rules, self.fault), self.rng.u64(..));
        self.world = World::EASY;
        let progress = self.durable.progress.clone();
        let progress = progress.unwrap_or(Progress { resolved: Lsn::ZERO, high: None, unresolved: Vec::new() });
        self.scheduler.restore_progress(progress.resolved, progress.high);
        self.restore();
        self.resume = progress.high.map(|high| Resume::new(high, progress.unresolved.clone()));
        let skips = |position| Some(position) <= progress.high && !progress.unresolved.contains(&position);
        self.model.restart(progress.resolved, skips);
        self.restore_arrivals();
        if self.has_barriers && self.rng.bool() {
            self.regroup(progress.high, skips);
        }
        let is_left = |entry: &Entry| match entry {
            Entry::Item(index) => self.model.items[*index].position.commit_lsn > progress.resolved,
            Entry::Mark(_) => false,
        };
        self.read = self.wal.iter().position(is_left).unwrap_or(self.wal.len());
        self.world.is_replaying = self.is_replaying() && self.fault != Fault::HideReplay;
        Ok(())
    }

    /// What comes again of a table is grouped by another rule than it was: each message that had arrived is a barrier, and so is
    /// the first that is new.
    fn regroup(&mut self, high: Option<Position>, skips: impl Fn(Position) -> bool) {
        let table = self.rng.u64(0..TABLES);
        *self.groupings.entry(table).or_default() += 1;
        let (mut items, mut is_first) = (Vec::new(), true);
        for (index, item) in self.model.items.iter().enumerate() {
            let comes = item.scope == ScopeId(table + 1) && !item.for_ever && !skips(item.position);
            if comes && item.groups != Groups::None {
                let is_new = Some(item.position) > high;
                items.push((index, !is_new || is_first));
                is_first &= !is_new;
            }
        }
        self.note(|_| format!("regrouped {table}: {items:?}"));
        let parked = self.durable.deliveries.values().flat_map(|parked| parked.members.iter().copied());
        self.model.regroup(&items, parked, |group| GroupId(group.0 + REGROUPED));
    }

    pub(super) fn run_commands(&mut self) -> Check {
        loop {
            let before = self.scheduler.breaker();
            let Some(command) = self.scheduler.poll(self.now, &self.world) else { break };
            if let Command::Form { .. } | Command::Attempt { .. } = command {
                self.may_start(before)?;
            }
            self.note(|_| format!("{command:?}"));
            self.carry_out(command)?;
            let pending: usize = self.flights.values().map(|flight| flight.members.len()).sum();
            require(pending <= self.rules.max_ack_pending, "max_ack_pending")?;
            require(self.under_way().len() <= self.rules.max_in_flight, "max_in_flight")?;
        }
        self.model.check_watermark(self.scheduler.resolved())?;
        self.check_figures()?;
        self.model.check_age(self.now, self.told_age())?;
        self.check_idle()?;
        let is_kind = self.room == StoreRoom::Open && self.is_prompt && self.rules.keeps && !self.waits_for_replay();
        self.open_since = self.open_since.or(Some(self.now)).filter(|_| is_kind);
        self.open_since.map_or(Ok(()), |since| self.model.check_kind(self.now, since))
    }

    /// What is told of the age; as it was when it came from the messages that only the WAL has, if the fault wants it so.
    fn told_age(&self) -> (Option<Instant>, usize) {
        let counts = self.scheduler.counts();
        let is_of_one_list = self.fault == Fault::AgeOfOneList;
        let of_one_list = || self.scheduler.watermark.oldest_arrival();
        let oldest = if is_of_one_list { of_one_list() } else { self.scheduler.oldest_undelivered() };
        (oldest, counts.undelivered)
    }

    pub(super) fn waits_for_replay(&self) -> bool {
        self.is_replaying() || self.scheduler.overflow.has_again()
    }
}

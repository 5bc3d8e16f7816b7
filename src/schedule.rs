//! STATION 2: the brain of a sink, without IO.
//!
//! Messages, outcomes and orders go in together with `now`; [`Command`]s come out of [`Scheduler::poll`], and
//! [`Scheduler::poll_timeout`] says when to ask again. Decided here and nowhere else: which messages form a delivery, that a
//! group's deliveries follow commit order one at a time, how many messages and requests may be under way, when a failed
//! delivery is tried again, split or given up, when the endpoint is left alone, what goes into the store and comes back,
//! and how far everything is resolved.
//!
//! The rules:
//!
//! 1. A group is held by at most one delivery. Later messages of it queue behind, in the order of arrival.
//! 2. A delivery's messages never change. It holds its groups until it is acknowledged.
//! 3. Messages in deliveries (in flight, or failed and waiting) never exceed `max_ack_pending`; attempts under way never
//!    exceed `max_in_flight`.
//! 4. While memory is short, a new delivery is formed only when none is in flight: each needs room for its body.
//! 5. Due retries and new deliveries take turns when both could go, so that neither starves the other.
//! 6. A delivery that has failed, or has been under way for [`KEEP_AFTER`], goes into the store; so does a message that has
//!    waited as long ([`lanes`]), and every new message while the sink cannot keep up ([`overflow`]).
//! 7. A message that is a barrier of its table goes when all earlier ones of the table are resolved, and later ones go when it
//!    is ([`barriers`]).
//! 8. While walhook's own machine is in trouble the sink waits as a whole, and that counts for no delivery ([`own`]).
//! 9. The parts of a split delivery hold the groups of the whole; of parts with a group in common the older goes first.
//!
//! All operations cost amortised constant time in the number of messages and groups that wait (retries cost the
//! logarithm of the number of failed deliveries). Chance comes from a seed, so a whole life can be repeated.
//!
//! Not promised here: that what is to be written is written (the owner says when it is), or bounds on bytes (the source
//! stops reading for those).

mod backlog;
mod barriers;
mod breaker;
mod deliveries;
mod exchange;
mod gate;
mod keeping;
mod lanes;
mod overflow;
mod own;
mod queue;
mod restoring;
pub mod resume;
mod retry;
#[cfg(test)]
mod simulation;
mod spill;
mod split;
mod taking;
#[cfg(test)]
mod tests;
mod undelivered;
mod watermark;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use self::backlog::Backlog;
pub use self::breaker::BreakerState;
use self::deliveries::Delivery;
pub use self::exchange::{
    Command, Counts, DeliveryKey, Failure, Message, NotNow, OnExhausted, Outcome, Pressure, Progress, Restored, Rules,
    StoreRoom, StoredScope, Verdict, Want, World, WriteId,
};
use self::gate::Gate;
use self::keeping::Write;
pub use self::lanes::own_lane;
use self::overflow::Overflow;
use self::queue::{Backing, Waiting};
pub use self::retry::{Exhausted, Limits, RetryRule};
use self::undelivered::Undelivered;
pub use self::undelivered::{GRAIN, SHARE, StoredSpan};
use self::watermark::{Place, Token, Watermark};
use crate::change::{Lsn, Position};
use crate::ties::{Barrier, GroupId, Groups, ScopeId, Tied, Ties};

/// How long a message may wait, or a delivery be under way, before the store has to have it: promise P8 gives 5 s from its
/// arrival until it is resolved.
pub const KEEP_AFTER: Duration = Duration::from_secs(3);
/// A sink whose deliverable messages wait so long cannot keep up: new ones go to the store.
const BEHIND_AFTER: Duration = Duration::from_millis(1500);

/// Places for messages that stay when all are empty: who fills them again and again need not ask for them each time.
const PLACES_KEPT: usize = 4096;

/// See the module. `P` is what a message carries.
#[derive(Debug)]
pub struct Scheduler<P> {
    rules: Rules,
    rng: fastrand::Rng,
    watermark: Watermark,
    undelivered: Undelivered,
    backlog: Backlog<P>,
    overflow: Overflow<P>,
    /// Messages read back from the overflow that are not in a delivery, in the order in which they came back.
    loaded: Watermark,
    loaded_bytes: usize,
    gate: Gate,
    deliveries: HashMap<DeliveryKey, Delivery>,
    /// Parts of split deliveries by the key that holds their groups, in the order of the whole.
    families: HashMap<DeliveryKey, Vec<DeliveryKey>>,
    next_key: u64,
    ack_pending: usize,
    failed: usize,
    parked: usize,
    blocked: usize,
    groups_held: usize,
    /// New messages go to the store.
    overflows: bool,
    /// Deliveries to be written.
    to_park: VecDeque<DeliveryKey>,
    writes: HashMap<WriteId, Write>,
    next_write: u64,
    /// When messages are next looked through for their age.
    look_at: Option<Instant>,
    is_lane_read: bool,
    /// The store could not be read: not before this.
    read_again_at: Option<Instant>,
}

impl<P> Scheduler<P> {
    /// Bytes that a waiting message takes in here, itself included; growing containers hold up to twice as much.
    pub const MESSAGE_BYTES: usize = Backlog::<P>::MESSAGE_BYTES + Watermark::MESSAGE_BYTES;
    /// Bytes that a group takes of which messages wait in the store.
    pub const LANE_BYTES: usize = Backlog::<P>::LANE_BYTES;

    /// A scheduler without messages. Numbers of `rules` below 1 count as 1.
    pub fn new(rules: Rules, seed: u64) -> Self {
        let rules = Rules {
            batch_size: rules.batch_size.max(1),
            max_ack_pending: rules.max_ack_pending.max(1),
            max_in_flight: rules.max_in_flight.max(1),
            split_after: rules.split_after.max(1),
            ..rules
        };
        Self {
            rules,
            rng: fastrand::Rng::with_seed(seed),
            watermark: Watermark::new(),
            undelivered: Undelivered::new(),
            backlog: Backlog::new(),
            overflow: Overflow::new(),
            loaded: Watermark::new(),
            loaded_bytes: 0,
            gate: Gate::new(&rules),
            deliveries: HashMap::new(),
            families: HashMap::new(),
            next_key: 0,
            ack_pending: 0,
            failed: 0,
            parked: 0,
            blocked: 0,
            groups_held: 0,
            overflows: false,
            to_park: VecDeque::new(),
            writes: HashMap::new(),
            next_write: 0,
            look_at: None,
            is_lane_read: false,
            read_again_at: None,
        }
    }

    /// Of many schedulers each keeps fewer places for messages when all are empty.
    pub fn keep_places(&mut self, of: usize) {
        let kept = (PLACES_KEPT / of.max(1)).max(64);
        self.backlog.kept = kept;
        [&mut self.watermark, &mut self.loaded].into_iter().for_each(|list| list.keep_places(kept));
    }

    /// Places for messages that it has, in use or not.
    pub fn places(&self) -> usize {
        self.backlog.slots.capacity().max(self.watermark.places())
    }

    /// A message arrived; it comes after all that arrived before. False: it has to wait for another message of its groups.
    pub fn push(&mut self, now: Instant, message: Message<P>) -> bool {
        let token = self.watermark.arrive(now, message.position, Place::Buffered);
        self.undelivered.arrive(now, message.position);
        if self.overflows || self.overflow.is_active() {
            self.overflow.push(now, token, message);
            return false;
        }
        self.admit(now, token, message)
    }

    /// A message that had arrived before the restart, at `arrived` as far as that is known, and was not resolved, came
    /// again: all of these before the first new one, in order.
    pub fn push_again(&mut self, now: Instant, message: Message<P>, arrived: Instant) -> bool {
        let token = self.watermark.arrive(now, message.position, Place::Buffered);
        self.undelivered.come(arrived, message.position);
        match self.overflow.push_again(token, message) {
            Some((token, message)) => self.admit(now, token, message),
            None => false,
        }
    }

    fn admit(&mut self, now: Instant, token: Token, message: Message<P>) -> bool {
        let (index, ready) = self.backlog.admit(now, Waiting::new(message, Backing::Wal(token)));
        self.watermark.moved(token, Place::Waiting(index));
        ready
    }

    /// Once all that has arrived is resolved, everything up to `lsn` is.
    pub fn mark(&mut self, lsn: Lsn) {
        self.watermark.mark(lsn);
    }

    /// Everything up to here is resolved. Only grows.
    pub fn resolved(&self) -> Lsn {
        self.watermark.resolved()
    }

    /// How far it will be once everything that [`Self::poll`] and [`Self::outcome`] have asked for is written: what belongs
    /// into the same batch as the last of that. `high` is the newest position that was resolved before the restart.
    pub fn progress(&self, high: Option<Position>) -> Progress {
        let progress = self.watermark.outlook();
        Progress { high: progress.high.max(high), ..progress }
    }

    /// When the oldest message arrived that is not delivered, wherever it is; of one of a life before, as far as that is
    /// known.
    pub fn oldest_undelivered(&self) -> Option<Instant> {
        self.undelivered.oldest()
    }

    /// Starts no attempt until [`Self::resume`]; attempts under way go on.
    pub fn pause(&mut self) {
        self.gate.set_paused(true);
    }

    /// Ends a pause.
    pub fn resume(&mut self) {
        self.gate.set_paused(false);
    }

    /// The end: no attempt starts, and nothing is written or read but deliveries that fail.
    pub fn stop(&mut self) {
        self.gate.stop();
    }

    /// Whether it is paused.
    pub fn is_paused(&self) -> bool {
        self.gate.is_paused()
    }

    /// Since when a trouble of walhook's own machine keeps the sink waiting.
    pub fn own_trouble(&self) -> Option<Instant> {
        self.gate.own_trouble()
    }

    /// Whether new messages go to the store.
    pub fn is_overflowing(&self) -> bool {
        self.overflows || self.overflow.is_active()
    }

    /// What is to be done now; ask until `None`.
    pub fn poll(&mut self, now: Instant, world: &World) -> Option<Command<P>> {
        self.wake(now, world);
        if let Some(command) = self.keep(now, world) {
            return Some(command);
        }
        if let Some(command) = self.start(now, world) {
            return Some(command);
        }
        self.read_back(now, world)
    }

    fn start(&mut self, now: Instant, world: &World) -> Option<Command<P>> {
        self.gate.may_start(now, world).ok()?;
        let fresh_first = self.gate.is_fresh_ones_turn();
        if self.gate.is_breaker_open() {
            // A probe need not be due; new deliveries have their turn too, in case those that failed cannot be sent at all.
            let fresh = if fresh_first { self.form_next(now) } else { None };
            return fresh.or_else(|| self.retry_early(now)).or_else(|| self.form_next(now));
        }
        if fresh_first {
            self.form_next(now).or_else(|| self.retry_next(now))
        } else {
            self.retry_next(now).or_else(|| self.form_next(now))
        }
    }

    /// When [`Self::poll`], having said `None`, has something to do if nothing else happens before.
    pub fn poll_timeout(&mut self, world: &World) -> Option<Instant> {
        let (start, keep, read) = (self.start_at(world), self.keep_at(world), self.read_at(world));
        [start, keep, read].into_iter().flatten().min()
    }

    fn start_at(&mut self, world: &World) -> Option<Instant> {
        let fresh = self.fresh_at();
        self.gate.opens_at(world, fresh)
    }

    /// Figures for people.
    pub fn counts(&self) -> Counts {
        let (buffered, buffered_bytes) = self.overflow.buffered();
        Counts {
            in_flight: self.gate.in_flight(),
            ack_pending: self.ack_pending,
            waiting: self.backlog.len() + buffered,
            waiting_bytes: self.backlog.bytes() + buffered_bytes,
            ready: self.backlog.ready_messages(),
            ready_bytes: self.backlog.ready_bytes(),
            failed: self.failed,
            groups_held: self.groups_held,
            unresolved: self.watermark.unresolved(),
            undelivered: self.undelivered.messages(),
            parked: self.parked,
            blocked: self.blocked,
            lane_messages: self.backlog.lane_messages,
            overflow_messages: self.overflow.stored(),
            barriers_pending: self.backlog.barriers.held(),
            breaker: self.gate.breaker(),
        }
    }

    /// Since when the oldest pending barrier has been pending, in this process. Looks through all tables.
    pub fn oldest_barrier(&self) -> Option<Instant> {
        self.backlog.barriers.oldest()
    }

    /// Whether messages of the table are not delivered.
    pub fn is_waiting(&self, scope: ScopeId) -> bool {
        self.overflow.is_active() || self.backlog.barriers.is_waiting(scope)
    }

    /// Groups of which messages wait in the store: each takes [`Self::LANE_BYTES`].
    pub fn lanes(&self) -> usize {
        self.backlog.lanes.len()
    }

    /// Moves what has become due.
    fn wake(&mut self, now: Instant, world: &World) {
        self.gate.slept(world.slept);
        self.gate.wake(now);
        if self.read_again_at.is_some_and(|at| at <= now) {
            self.read_again_at = None;
        }
        self.backlog.end_lanes(now);
        self.overflows = self.must_overflow(now, world);
    }
}

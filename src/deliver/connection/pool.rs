//! The connections of one endpoint: which of them a request takes, and what becomes of it afterwards.
//!
//! HTTP/1.1: a request takes the idle connection that was used last, or makes one; so there are hardly more than
//! requests at a time. HTTP/2: all requests share one. A connection that has had its day (see [`life`](super::life))
//! takes no new request, and what is under way on it ends there; where no new one can be made it goes on a little.
//! While a shared connection is made, requests wait for it instead of making their own, or go on with the one it is to
//! replace.

mod idle;
mod making;
mod shared;

use std::future::Future;
use std::ops::RangeInclusive;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use http::{HeaderValue, Uri};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use super::clock::{Clock, Pace};
use super::error::SendError;
use super::http1::Http1;
use super::http2::{Http2, Stream};
use super::reach::{Place, Speaks};
use super::{Failed, Outgoing};
use crate::deliver::answer::Answer;
use crate::machine::descriptors::{Descriptors, Idle as Lender};
use idle::Idle;
use shared::Shared;

/// How often idle connections are looked at: closed ones go, and those that have had their day.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// So long connections that are due are gone on with after another could not be made.
const HOLD: Duration = Duration::from_secs(1);
/// Connections for one request alone that are made at a time.
const LONE_MAX: usize = 4;
/// How long all connections have to say goodbye when the endpoint is closed.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a pool is made of.
pub(in crate::deliver) struct Parts {
    pub(in crate::deliver) place: Place,
    /// The whole address, for HTTP/2, and what HTTP/1.1 has of it.
    pub(in crate::deliver) uri: Uri,
    pub(in crate::deliver) path: Uri,
    pub(in crate::deliver) host: HeaderValue,
    /// For making a connection, TLS included.
    pub(in crate::deliver) connect_timeout: Duration,
    pub(in crate::deliver) age: RangeInclusive<Duration>,
    pub(in crate::deliver) idle_max: usize,
    /// Of which each connection takes one.
    pub(in crate::deliver) descriptors: Descriptors,
    pub(in crate::deliver) clock: Clock,
    pub(in crate::deliver) pace: Pace,
    /// Of the connections' ages, and of pauses.
    pub(in crate::deliver) seed: u64,
}

/// One endpoint's connections.
pub(in crate::deliver) struct Pool {
    parts: Parts,
    state: Mutex<State>,
    /// The permit to make a connection that others wait for.
    making: Semaphore,
    /// The permits to make one for a request alone.
    lone: Semaphore,
    /// An answer has come, by whichever connection.
    is_answered: AtomicBool,
    /// For tasks, which must not keep the pool alive.
    this: Weak<Self>,
}

struct State {
    idle: Idle,
    shared: Shared,
    /// What the endpoint spoke when it was last connected to.
    speaks: Option<Speaks>,
    /// The last connection that could not be made: those who waited for it have failed as well.
    failure: Option<(Instant, Arc<SendError>)>,
    /// Until then connections that are due are as good as others: there was no way to a new one.
    holds_until: Option<Instant>,
    /// The task that looks at what lies idle.
    look: Option<AbortHandle>,
    chance: fastrand::Rng,
    tasks: JoinSet<()>,
}

/// A connection that a request has to itself, or shares.
pub(in crate::deliver) enum Taken {
    Own(Box<Http1>),
    Shared(Arc<Http2>),
}

/// Where a request was when it was given up.
#[derive(Default)]
pub(in crate::deliver) enum Under {
    /// Not on a connection.
    #[default]
    Way,
    /// Waiting for a stream of an HTTP/2 connection: nothing was sent.
    Queue,
    Http1,
    Http2(Arc<Http2>),
}

impl Pool {
    pub(in crate::deliver) fn new(parts: Parts) -> Arc<Self> {
        let (idle, shared, tasks) = Default::default();
        let (speaks, failure, holds_until, look) = Default::default();
        let chance = fastrand::Rng::with_seed(parts.seed);
        let state = Mutex::new(State { idle, shared, speaks, failure, holds_until, look, chance, tasks });
        let (making, lone) = (Semaphore::new(1), Semaphore::new(LONE_MAX));
        let is_answered = AtomicBool::new(false);
        let pool = Arc::new_cyclic(|this| Self { parts, state, making, lone, is_answered, this: Weak::clone(this) });
        let lender: Weak<Self> = Arc::downgrade(&pool);
        pool.parts.descriptors.lends(lender);
        pool
    }

    /// A connection for a request; one that nobody else uses if `alone`.
    pub(in crate::deliver) async fn take(&self, alone: bool) -> Result<Taken, Arc<SendError>> {
        let is_being_made = self.making.available_permits() == 0;
        if !alone && let Some(taken) = self.at_hand(self.now(), is_being_made) {
            return Ok(taken);
        }
        let speaks = self.lock().speaks;
        let made = async {
            match speaks {
                _ if alone => {
                    let _permit = self.lone.acquire().await;
                    self.make(true).await.map_err(Arc::new)
                }
                Some(Speaks::Http1) => self.make(false).await.map_err(Arc::new),
                None if self.parts.place.tls.is_none() => self.make(false).await.map_err(Arc::new),
                None | Some(Speaks::Http2) => self.make_for_all().await,
            }
        };
        // On the heap, as it is rare and large.
        let made = tokio::time::timeout(self.parts.connect_timeout, Box::pin(made)).await;
        let error = match made.unwrap_or_else(|_| Err(Arc::new(SendError::ConnectTimeout))) {
            Ok(taken) => return Ok(taken),
            Err(error) => error,
        };
        if alone || !error.is_of_the_way() {
            return Err(error);
        }
        // Age alone is no reason to fail while there is an open connection.
        let now = self.now();
        self.lock().holds_until = Some(now + HOLD);
        self.at_hand(now, false).ok_or(error)
    }

    /// Sends a request on `taken` and reads its answer.
    pub(in crate::deliver) async fn exchange(
        &self,
        taken: Taken,
        outgoing: Outgoing,
        (under, answer): (&mut Under, &mut Answer),
    ) -> Result<(), Failed> {
        match taken {
            Taken::Own(mut connection) => {
                *under = Under::Http1;
                let address = (self.parts.path.clone(), self.parts.host.clone());
                connection.exchange(address, outgoing, answer).await?;
                self.put_back(connection, answer.is_early);
            }
            Taken::Shared(connection) => {
                *under = Under::Queue;
                let (connection, stream) = match connection.stream_now() {
                    Some(stream) => (connection, stream),
                    None => Box::pin(self.stream(connection)).await?,
                };
                *under = Under::Http2(Arc::clone(&connection));
                connection.exchange(self.parts.uri.clone(), outgoing, answer).await?;
                drop(stream);
                if answer.is_early && answer.status.is_some_and(|status| status.is_success()) {
                    connection.retire();
                }
            }
        }
        if !self.is_answered() {
            self.is_answered.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// A request that began at `since` was given up without a sign of an answer. Its connection takes no more of them,
    /// and the way of idle ones that have not answered since may be as dead.
    pub(in crate::deliver) fn unanswered(&self, under: Under, since: Instant) {
        match under {
            Under::Way | Under::Queue => {}
            Under::Http1 => {
                let gone = self.lock().idle.part_with(|life| life.heard_since(since));
                drop(gone);
            }
            Under::Http2(connection) => connection.retire(),
        }
    }

    /// Whether the endpoint has ever answered.
    pub(in crate::deliver) fn is_answered(&self) -> bool {
        self.is_answered.load(Ordering::Relaxed)
    }

    /// A moment within `millis`, by chance.
    pub(in crate::deliver) fn pause(&self, millis: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.lock().chance.u64(millis))
    }

    pub(in crate::deliver) fn now(&self) -> Instant {
        self.parts.clock.now()
    }

    /// Says goodbye on all connections that no request is on, as far as that is quick.
    pub(in crate::deliver) async fn close(&self) {
        let mut tasks = {
            let mut state = self.lock();
            state.shared.clear();
            if let Some(look) = state.look.take() {
                look.abort();
            }
            let idle = state.idle.part_with(|_| false);
            state.close(idle);
            std::mem::take(&mut state.tasks)
        };
        // Those that are not done by then end with their set.
        let all = async { while tasks.join_next().await.is_some() {} };
        drop(tokio::time::timeout(FAREWELL, all).await);
    }

    /// What drives connections, closes them or makes them, but not what looks after idle ones.
    #[cfg(test)]
    pub(in crate::deliver) fn tasks(&self) -> usize {
        let mut state = self.lock();
        while state.tasks.try_join_next().is_some() {}
        let looks = state.look.as_ref().is_some_and(|look| !look.is_finished());
        state.tasks.len() - usize::from(looks)
    }

    /// The idle connections, each by where it lies.
    #[cfg(test)]
    pub(in crate::deliver) fn idle(&self) -> Vec<usize> {
        self.lock().idle.places()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An open connection, one that is due only while there is no way to a new one, or, if all share it, another is
    /// being made.
    fn at_hand(&self, now: Instant, is_being_made: bool) -> Option<Taken> {
        let mut state = self.lock();
        let holds = state.holds_until.is_some_and(|until| now < until);
        if let Some(shared) = state.shared.pick(now, holds || is_being_made) {
            return Some(Taken::Shared(shared));
        }
        state.idle.take(|life| life.takes(now) || (holds && life.lingers(now))).map(Taken::Own)
    }

    /// Waits for a stream of `crowded`, or of another connection that has room sooner. Where the wait is long, another is
    /// made, up to a few.
    async fn stream(&self, crowded: Arc<Http2>) -> Result<(Arc<Http2>, Stream), Failed> {
        let mut wait = pin!(crowded.stream());
        loop {
            if let Ok(done) = tokio::time::timeout(self.parts.pace.patience, &mut wait).await {
                return done.map(|stream| (Arc::clone(&crowded), stream));
            }
            if let Some(found) = self.beside(&crowded) {
                return Ok(found);
            }
        }
    }

    fn beside(&self, crowded: &Arc<Http2>) -> Option<(Arc<Http2>, Stream)> {
        let now = self.now();
        let mut state = self.lock();
        let found = state.shared.stream_beside(crowded, now);
        if found.is_none() && state.shared.wants_another(now) && self.making.available_permits() > 0 {
            state.spawn(making::another(Weak::clone(&self.this)));
        }
        found
    }

    fn put_back(&self, mut connection: Box<Http1>, is_spoilt: bool) {
        if is_spoilt || !connection.settle() {
            return;
        }
        let now = self.now();
        connection.life.hear(now);
        let mut state = self.lock();
        // One that is due stays until the next is made.
        let is_wanted = self.parts.descriptors.is_wanted();
        if !connection.life.lingers(now) || state.idle.len() >= self.parts.idle_max || is_wanted {
            return state.close([connection]);
        }
        state.idle.put(connection);
        self.look_after(&mut state);
    }

    fn look_after(&self, state: &mut State) {
        if state.look.as_ref().is_none_or(AbortHandle::is_finished) {
            state.look = Some(state.spawn(look(Weak::clone(&self.this))));
        }
    }

    /// Drops idle connections that are closed or have had their day; false when none is left. They are asked, and
    /// closed, while requests can go on.
    pub(in crate::deliver) fn tidy(&self, now: Instant) -> bool {
        {
            let mut state = self.lock();
            let due = state.idle.part_with(|life| life.lingers(now));
            state.close(due);
        }
        let mut at = 0;
        loop {
            let mut lent = self.lock().idle.lend(at, now, LOOK_EVERY);
            if lent.is_empty() {
                break;
            }
            lent.retain_mut(|connection| connection.settle());
            let open = lent.len();
            self.lock().idle.give_back(at, lent);
            at += open;
        }
        let mut state = self.lock();
        state.shared.tidy(now);
        let goes_on = !state.idle.is_empty() || !state.shared.is_empty();
        if !goes_on {
            state.look = None;
        }
        goes_on
    }
}

impl Lender for Pool {
    fn give_way(&self) -> bool {
        let mut state = self.lock();
        let Some(connection) = state.idle.take_oldest() else { return false };
        state.close([connection]);
        true
    }
}

impl State {
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a connection's task panicked: a fault of walhook"
                );
            }
        }
        self.tasks.spawn(task)
    }

    /// There is a new connection: those that it replaces go.
    fn made(&mut self, speaks: Speaks, now: Instant) {
        self.speaks = Some(speaks);
        self.holds_until = None;
        let gone = self.idle.part_with(|life| life.takes(now));
        self.close(gone);
    }

    fn close(&mut self, connections: impl IntoIterator<Item = Box<Http1>>) {
        for connection in connections {
            self.spawn(connection.close());
        }
    }
}

async fn look(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(pool) = pool.upgrade() else { return };
        if !pool.tidy(pool.now()) {
            return;
        }
    }
}

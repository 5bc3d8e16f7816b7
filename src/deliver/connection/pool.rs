//! The connections of one endpoint: which of them a request takes, and what becomes of it afterwards.
//!
//! HTTP/1.1: a request takes the idle connection that was used last, or makes one; so there are hardly more than
//! requests at a time. HTTP/2: all requests share one. A connection that has had its day (see [`life`](super::life))
//! takes no new request, and what is under way on it ends there; where no new one can be made it goes on a little.
//! While a shared connection is made, requests wait for it instead of making their own, or go on with the one it is to
//! replace.

use std::future::Future;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use http::{HeaderValue, Uri};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::error::SendError;
use super::http1::Http1;
use super::http2::Http2;
use super::life::Life;
use super::reach::{Place, Socket, Speaks};
use super::{Failed, Outgoing};
use crate::deliver::answer::Answer;

/// How often idle connections are looked at: closed ones go, and those that have had their day.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// So long connections that are due are gone on with after another could not be made.
const HOLD: Duration = Duration::from_secs(1);
/// Connections for one request alone that are made at a time.
const LONE_MAX: usize = 4;

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
}

/// One endpoint's connections.
pub(in crate::deliver) struct Pool {
    parts: Parts,
    state: Mutex<State>,
    /// The permit to make a connection that others wait for.
    making: Semaphore,
    /// The permits to make one for a request alone.
    lone: Semaphore,
    /// For the task that looks at idle connections, which must not keep them alive.
    this: Weak<Self>,
}

#[derive(Default)]
struct State {
    /// The one used last stands at the end.
    #[expect(clippy::vec_box, reason = "an exchange holds its connection in a box, which goes in and out as it is")]
    idle: Vec<Box<Http1>>,
    shared: Option<Arc<Http2>>,
    /// What the endpoint spoke when it was last connected to.
    speaks: Option<Speaks>,
    /// The last connection that could not be made: those who waited for it have failed as well.
    failure: Option<(Instant, Arc<SendError>)>,
    /// Until then connections that are due are as good as others: there was no way to a new one.
    holds_until: Option<Instant>,
    looking: bool,
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
        let state = Mutex::default();
        let (making, lone) = (Semaphore::new(1), Semaphore::new(LONE_MAX));
        Arc::new_cyclic(|this| Self { parts, state, making, lone, this: Weak::clone(this) })
    }

    /// A connection for a request; one that nobody else uses if `alone`.
    pub(in crate::deliver) async fn take(&self, alone: bool) -> Result<Taken, Arc<SendError>> {
        let is_being_made = self.making.available_permits() == 0;
        if !alone && let Some(taken) = self.at_hand(Instant::now(), is_being_made) {
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
        let now = Instant::now();
        self.lock().holds_until = Some(now + HOLD);
        self.at_hand(now, false).ok_or(error)
    }

    /// Sends a request on `taken` and reads its answer.
    pub(in crate::deliver) async fn exchange(
        &self,
        taken: Taken,
        outgoing: Outgoing,
        answer: &mut Answer,
    ) -> Result<(), Failed> {
        match taken {
            Taken::Own(mut connection) => {
                let address = (self.parts.path.clone(), self.parts.host.clone());
                connection.exchange(address, outgoing, answer).await?;
                self.put_back(connection);
                Ok(())
            }
            Taken::Shared(connection) => connection.exchange(self.parts.uri.clone(), outgoing, answer).await,
        }
    }

    /// A request that began at `since` was given up without a sign of an answer. Its connection takes no more of them,
    /// and the way of idle ones that have not answered since may be as dead.
    pub(in crate::deliver) fn unanswered(&self, under: Under, since: Instant) {
        match under {
            Under::Way | Under::Queue => {}
            Under::Http1 => self.lock().idle.retain(|idle| idle.life.heard_since(since)),
            Under::Http2(connection) => connection.retire(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An open connection, one that is due only while there is no way to a new one, or, if all share it, another is
    /// being made.
    fn at_hand(&self, now: Instant, is_being_made: bool) -> Option<Taken> {
        let mut state = self.lock();
        let holds = state.holds_until.is_some_and(|until| now < until);
        if state.shared.as_ref().is_some_and(|shared| !shared.is_open()) {
            state.shared = None;
        }
        if let Some(shared) = &state.shared
            && (shared.life.takes(now) || (shared.life.lingers(now) && (holds || is_being_made)))
        {
            return Some(Taken::Shared(Arc::clone(shared)));
        }
        let fits = |life: &Life| life.takes(now) || (holds && life.lingers(now));
        let at = state.idle.iter().rposition(|one| fits(&one.life))?;
        Some(Taken::Own(state.idle.remove(at)))
    }

    /// Makes the connection that all may share, one request for all that wait.
    async fn make_for_all(&self) -> Result<Taken, Arc<SendError>> {
        let came = Instant::now();
        let permit = self.making.acquire().await;
        if let Some((at, error)) = &self.lock().failure
            && *at >= came
        {
            return Err(Arc::clone(error));
        }
        if let Some(taken) = self.at_hand(Instant::now(), false) {
            return Ok(taken);
        }
        if self.lock().speaks == Some(Speaks::Http1) {
            // What was learnt meanwhile: there is nothing to share, so nobody has to wait.
            drop(permit);
            return self.make(false).await.map_err(Arc::new);
        }
        self.make(false).await.map_err(|error| {
            let error = Arc::new(error);
            self.lock().failure = Some((Instant::now(), Arc::clone(&error)));
            error
        })
    }

    async fn make(&self, alone: bool) -> Result<Taken, SendError> {
        let (socket, speaks) = self.parts.place.connect().await?;
        let life = Life::new(Instant::now(), &self.parts.age, fastrand::f64());
        let made = match speaks {
            Speaks::Http1 => Taken::Own(Box::new(Http1::new(socket, life).await?)),
            Speaks::Http2 => Taken::Shared(self.share(socket, life, alone).await?),
        };
        self.lock().made(speaks, Instant::now());
        Ok(made)
    }

    async fn share(&self, socket: Socket, life: Life, alone: bool) -> Result<Arc<Http2>, SendError> {
        let (connection, driver) = Http2::new(socket, life).await?;
        let connection = Arc::new(connection);
        let mut state = self.lock();
        state.spawn(driver.run());
        if !alone {
            state.shared = Some(Arc::clone(&connection));
            self.look_after(&mut state);
        }
        Ok(connection)
    }

    fn put_back(&self, mut connection: Box<Http1>) {
        if !connection.settle() {
            return;
        }
        let mut state = self.lock();
        // One that is due stays until the next is made.
        if !connection.life.lingers(Instant::now()) || state.idle.len() >= self.parts.idle_max {
            return state.close(connection);
        }
        state.idle.push(connection);
        self.look_after(&mut state);
    }

    fn look_after(&self, state: &mut State) {
        if !state.looking {
            state.looking = true;
            state.spawn(look(Weak::clone(&self.this)));
        }
    }

    /// Drops idle connections that are closed or have had their day; false when none is left.
    fn tidy(&self, now: Instant) -> bool {
        let mut state = self.lock();
        let (idle, gone): (Vec<_>, Vec<_>) =
            std::mem::take(&mut state.idle).into_iter().partition(|one| one.life.lingers(now));
        state.idle = idle;
        state.idle.retain_mut(|connection| connection.settle());
        for connection in gone {
            state.close(connection);
        }
        if state.shared.as_ref().is_some_and(|shared| !shared.is_open() || !shared.life.lingers(now)) {
            state.shared = None;
        }
        state.looking = !state.idle.is_empty() || state.shared.is_some();
        state.looking
    }
}

impl State {
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
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
        self.tasks.spawn(task);
    }

    /// There is a new connection: those that it replaces go.
    fn made(&mut self, speaks: Speaks, now: Instant) {
        self.speaks = Some(speaks);
        self.holds_until = None;
        let (idle, gone): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.idle).into_iter().partition(|one| one.life.takes(now));
        self.idle = idle;
        for connection in gone {
            self.close(connection);
        }
    }

    fn close(&mut self, connection: Box<Http1>) {
        self.spawn(connection.close());
    }
}

async fn look(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if !pool.upgrade().is_some_and(|pool| pool.tidy(Instant::now())) {
            return;
        }
    }
}

//! How many files and connections the process may have open (RLIMIT_NOFILE), and who gets them.
//!
//! Connections to endpoints are the only thing of which there are many, so they are bounded: they take what the limit leaves
//! when the store, the sources and the admin side have theirs. A connection that is wanted and finds none left makes an idle
//! one give way, whosever it is, and else waits for one that ends or has nothing to do. So `/healthz` answers whatever the endpoints do.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::view::Trouble;

/// Files that a process has open whatever it does: the store's with its readers, the log, signals, the runtime, and some for
/// what lasts a moment.
const PROCESS: u64 = 28;
/// Those of a source: its connections, and what they need while they are made.
const SOURCE: u64 = 4;
/// Clients of the admin side, which are served whatever the endpoints do.
const ADMIN: u64 = 12;
/// Connections to endpoints, however low the limit is.
const ENDPOINTS_MIN: u64 = 4;
/// Connections that lie idle, all together: each keeps its buffers.
const IDLE_MAX: usize = 1024;
/// Those of one endpoint, however many there are.
const IDLE_EACH: usize = 4;
/// As many as no limit.
const ENDPOINTS_MAX: u64 = 1 << 20;

/// Something that has connections lying idle.
pub trait Idle: Send + Sync {
    /// Gives up one of them, the one used longest ago. False: there is none.
    fn give_way(&self) -> bool;
}

/// The connections to endpoints, all together. Clones are the same.
#[derive(Clone)]
pub struct Descriptors {
    inner: Arc<Inner>,
}

struct Inner {
    places: Arc<Semaphore>,
    endpoints: usize,
    idle: Mutex<Vec<Weak<dyn Idle>>>,
    /// How many wait for a place.
    waiting: AtomicUsize,
}

impl Default for Descriptors {
    fn default() -> Self {
        Self::new(ENDPOINTS_MAX, 1)
    }
}

impl Descriptors {
    /// So many connections, to so many endpoints.
    pub fn new(connections: u64, endpoints: usize) -> Self {
        let places = usize::try_from(connections.min(ENDPOINTS_MAX)).unwrap_or(Semaphore::MAX_PERMITS);
        let (places, idle) = (Arc::new(Semaphore::new(places)), Mutex::default());
        Self { inner: Arc::new(Inner { places, endpoints, idle, waiting: AtomicUsize::new(0) }) }
    }

    /// How many connections of one endpoint may lie idle, of so many that it may have.
    pub fn idle_max(&self, connections: usize) -> usize {
        connections.min((IDLE_MAX / self.inner.endpoints.max(1)).max(IDLE_EACH))
    }

    /// Makes known whose idle connections may give way.
    pub fn lends(&self, idle: Weak<dyn Idle>) {
        let mut all = self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| one.strong_count() > 0);
        all.push(idle);
    }

    /// A place for a connection, for as long as it is kept. `None`: there was none for `patience`.
    pub async fn place(&self, patience: Duration) -> Option<OwnedSemaphorePermit> {
        let places = &self.inner.places;
        if let Ok(place) = Arc::clone(places).try_acquire_owned() {
            return Some(place);
        }
        self.inner.waiting.fetch_add(1, Ordering::Relaxed);
        let _waits = Waits(&self.inner.waiting);
        self.give_way();
        let place = tokio::time::timeout(patience, Arc::clone(places).acquire_owned()).await;
        place.ok().and_then(Result::ok)
    }

    /// Somebody waits for a place: a connection that nobody needs at once gives its own up.
    pub fn is_wanted(&self) -> bool {
        self.inner.waiting.load(Ordering::Relaxed) > 0
    }

    /// One idle connection goes, of whoever has one.
    fn give_way(&self) {
        let mut all = self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let at = all.iter().position(|one| one.upgrade().is_some_and(|one| one.give_way()));
        // The next one is another's.
        if let Some(at) = at {
            all.rotate_left(at + 1);
        }
    }
}

/// One that waits, until it has a place or gives up.
struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the process may have open, as it is when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// RLIMIT_NOFILE.
    pub limit: u64,
    /// Connections to endpoints, of these.
    pub connections: u64,
    /// What the sinks' `max_in_flight` come to.
    pub wanted: u64,
}

impl Allowance {
    /// Of so many sources and of sinks that may have so many requests under way, under this limit.
    pub fn of(limit: u64, sources: usize, max_in_flight: impl Iterator<Item = usize>) -> Self {
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let reserve = PROCESS + ADMIN + SOURCE.saturating_mul(number(sources));
        let connections = limit.saturating_sub(reserve).clamp(ENDPOINTS_MIN, ENDPOINTS_MAX);
        let wanted = max_in_flight.map(number).fold(0, u64::saturating_add);
        Self { limit, connections, wanted }
    }

    /// What is wrong if it does not suffice.
    pub fn trouble(&self) -> Option<Trouble> {
        let Self { limit, connections, wanted } = self;
        (wanted > connections).then(|| Trouble {
            what: format!(
                "the limit of open files is {limit}, which leaves {connections} connections to endpoints, and the sinks' max_in_flight \
                 come to {wanted}: requests wait for each other"
            ),
            advice: format!(
                "raise walhook's limit of open files to {} or more (LimitNOFILE= of its service, --ulimit nofile= of its container, \
                 ulimit -n), or lower max_in_flight",
                limit + wanted - connections
            ),
        })
    }
}

/// Raises the limit as far as it may be raised, and says what it is then.
pub fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let is_raised = current != maximum && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    limit_of(if is_raised { maximum } else { current })
}

/// As it is after [`raise_limit`], for whoever only looks.
pub fn limit() -> u64 {
    limit_of(getrlimit(Resource::Nofile).maximum)
}

/// No limit is a very high one.
fn limit_of(limit: Option<u64>) -> u64 {
    limit.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Lends(Mutex<Vec<OwnedSemaphorePermit>>);

    impl Idle for Lends {
        fn give_way(&self) -> bool {
            self.0.lock().unwrap().pop().is_some()
        }
    }

    #[tokio::test]
    async fn idle_connections_give_way_and_else_one_waits_for_another() {
        let descriptors = Descriptors::new(2, 1);
        let lends = Arc::new(Lends(Mutex::default()));
        let idle: Weak<dyn Idle> = Arc::downgrade(&(Arc::clone(&lends) as Arc<dyn Idle>));
        descriptors.lends(idle);
        let patience = Duration::from_millis(200);
        let busy = descriptors.place(patience).await.unwrap();
        let idle = descriptors.place(patience).await.unwrap();
        lends.0.lock().unwrap().push(idle);
        let third = descriptors.place(patience).await.expect("the idle one gives way");
        assert!(descriptors.place(patience).await.is_none(), "all are in use");
        assert!(!descriptors.is_wanted(), "nobody waits any more");
        let (fourth, ()) = tokio::join!(descriptors.place(patience), async {
            assert!(descriptors.is_wanted(), "so that one that becomes idle is given up");
            drop(busy);
        });
        assert!(fourth.is_some() && !descriptors.is_wanted());
        drop(third);
    }

    #[test]
    fn many_endpoints_keep_few_connections_each() {
        let kept = [1, 10, 50, 200, 1000].map(|endpoints| Descriptors::new(1 << 20, endpoints).idle_max(32));
        assert_eq!(kept, [32, 32, 20, 5, 4]);
    }

    #[test]
    fn what_the_limit_leaves_is_told_if_it_does_not_suffice() {
        for (limit, sources, wanted, connections, is_told) in [
            (64, 1, 32, 20, true),
            (64, 1, 20, 20, false),
            (1024, 2, 960, 976, false),
            (10, 1, 32, 4, true),
            (u64::MAX, 1, 1 << 19, 1 << 20, false),
        ] {
            let allowance = Allowance::of(limit, sources, [wanted].into_iter());
            assert_eq!(allowance.connections, connections, "{limit}");
            assert_eq!(allowance.trouble().is_some(), is_told, "{allowance:?}");
        }
        let trouble = Allowance::of(64, 1, [32, 64].into_iter()).trouble().unwrap();
        assert!(trouble.what.contains("64, which leaves 20 connections"), "{trouble:?}");
        assert!(trouble.advice.contains("to 140 or more"), "{trouble:?}");
    }
}

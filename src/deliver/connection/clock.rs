//! The time by which connections live, and how long they may take for things. A test has a clock that stands until it
//! is moved, and is in a hurry.

use std::time::{Duration, Instant};

/// Tells the time. Clones tell the same.
#[derive(Clone, Debug, Default)]
pub(in crate::deliver) struct Clock {
    #[cfg(test)]
    stands: Option<std::sync::Arc<std::sync::Mutex<Instant>>>,
}

impl Clock {
    #[cfg(not(test))]
    pub(super) fn now(&self) -> Instant {
        Instant::now()
    }

    #[cfg(test)]
    pub(super) fn now(&self) -> Instant {
        self.stands.as_ref().map_or_else(Instant::now, |stands| *stands.lock().unwrap())
    }

    #[cfg(test)]
    pub(in crate::deliver) fn standing() -> Self {
        Self { stands: Some(std::sync::Arc::new(std::sync::Mutex::new(Instant::now()))) }
    }

    #[cfg(test)]
    pub(in crate::deliver) fn advance(&self, by: Duration) {
        *self.stands.as_ref().expect("a clock that stands").lock().unwrap() += by;
    }
}

/// How long a pool and its connections wait for others.
#[derive(Clone, Copy, Debug)]
pub(in crate::deliver) struct Pace {
    /// For a stream of one HTTP/2 connection, before a request looks for another connection.
    pub(in crate::deliver) patience: Duration,
    /// Between pings of an HTTP/2 connection while a request waits, and for the answer to one.
    pub(in crate::deliver) ping: Duration,
    /// For an HTTP/2 connection to end by itself once nobody holds it: an endpoint that reads nothing does not let it.
    pub(in crate::deliver) farewell: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(1),
            // One connection carries all requests, so a dead one must be noticed also where `request_timeout` is long.
            ping: Duration::from_secs(15),
            farewell: Duration::from_secs(2),
        }
    }
}

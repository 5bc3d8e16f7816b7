//! What others make us log: libraries, and a server's notices.
//!
//! Below INFO the libraries print queries and headers, in which are keys of rows and secrets: of them that is never
//! logged, whatever `log.level` says. And a server may send notices without end: what others make us log has a rate.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// The target of lines that hold a server's own words.
pub const NOTICES: &str = "walhook::notice";
/// Lines of others in one second; further ones are left out and counted.
const LINES_A_SECOND: u32 = 20;

/// Keeps the lines of others few, and those below INFO out.
pub(super) struct Foreign<F> {
    rate: Mutex<Rate>,
    /// Says how many lines were left out.
    told: F,
}

impl<F: Fn(u64)> Foreign<F> {
    pub(super) fn new(told: F) -> Self {
        Self { rate: Mutex::new(Rate::new(Instant::now())), told }
    }
}

/// How many lines came in this second.
#[derive(Debug)]
struct Rate {
    began: Instant,
    lines: u32,
    left_out: u64,
}

impl Rate {
    fn new(now: Instant) -> Self {
        Self { began: now, lines: 0, left_out: 0 }
    }

    /// Whether a line may go out at `now`, and how many were left out of the seconds before.
    fn takes(&mut self, now: Instant) -> (bool, u64) {
        let mut before = 0;
        if now.saturating_duration_since(self.began) >= Duration::from_secs(1) {
            before = self.left_out;
            *self = Self::new(now);
        }
        self.lines = self.lines.saturating_add(1);
        let takes = self.lines <= LINES_A_SECOND;
        self.left_out += u64::from(!takes);
        (takes, before)
    }
}

fn is_foreign(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    target == NOTICES || !(target == "walhook" || target.starts_with("walhook::"))
}

impl<S: Subscriber, F: Fn(u64) + 'static> Layer<S> for Foreign<F> {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        !is_foreign(metadata) || *metadata.level() <= Level::INFO
    }

    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        if !is_foreign(event.metadata()) {
            return true;
        }
        let (takes, before) = self.rate.lock().unwrap_or_else(PoisonError::into_inner).takes(Instant::now());
        if before > 0 {
            (self.told)(before);
        }
        takes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_a_rate_and_what_was_left_out_is_told_with_the_next_line() {
        let began = Instant::now();
        let mut rate = Rate::new(began);
        let taken = (0..1000).filter(|_| rate.takes(began).0).count();
        assert_eq!(taken, usize::try_from(LINES_A_SECOND).unwrap());
        assert_eq!(rate.takes(began + Duration::from_millis(999)), (false, 0));
        assert_eq!(rate.takes(began + Duration::from_secs(1)), (true, 981));
        assert_eq!(rate.takes(began + Duration::from_secs(2)), (true, 0));
    }
}

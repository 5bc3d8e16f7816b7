//! Whether the process has run, and whether the wall clock was set: found out by a beat.
//!
//! A beat looks at two clocks: one that nobody sets and that goes on while the machine sleeps (CLOCK_BOOTTIME), and the wall
//! clock. If more than [`SLEPT`] lies between two beats, no task of walhook ran: it was stopped (SIGSTOP), its machine was
//! asleep, or there was no processor for it. What failed meanwhile failed for that. If the wall clock went another way than
//! the other one by [`JUMPED`] or more, somebody has set it. Timers go by a clock that nobody sets; the wall clock is for
//! people, signatures and certificates.
//!
//! One for the process, since that is what sleeps.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::view::{OwnKind, SharedViews, Trouble};

/// Between two beats.
const BEAT: Duration = Duration::from_millis(250);
/// So long without a beat is sleep.
const SLEPT: Duration = Duration::from_secs(2);
/// So far the wall clock goes astray only if it is set.
const JUMPED: Duration = Duration::from_secs(5);
/// So long each is told, so that whoever looks now and then sees it.
const TOLD: Duration = Duration::from_secs(8);

/// What the beats have found, in milliseconds by the clock that nobody sets. 0: nothing yet.
struct Found {
    beat: AtomicU64,
    woke: AtomicU64,
    slept: AtomicU64,
    /// How far the wall clock was set since the beginning, taken together.
    astray: AtomicI64,
}

static FOUND: Found =
    Found { beat: AtomicU64::new(0), woke: AtomicU64::new(0), slept: AtomicU64::new(0), astray: AtomicI64::new(0) };

/// The clock that nobody sets, and that goes on while the machine sleeps.
#[cfg(any(target_os = "linux", target_os = "android"))]
const STEADY: ClockId = ClockId::Boottime;
/// On macOS this one does.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const STEADY: ClockId = ClockId::Monotonic;

/// A moment by the clock that nobody sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// Now.
    pub fn now() -> Self {
        let now = clock_gettime(STEADY);
        let (seconds, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
        Self(seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000))
    }

    /// Whether the process has slept since, as far as is known now. Without a beat, in commands other than `run`, it never
    /// has.
    pub fn was_slept_through(self) -> bool {
        let (beat, woke) = (FOUND.beat.load(Ordering::Relaxed), FOUND.woke.load(Ordering::Relaxed));
        slept_since(self.0, Self::now().0, (beat, woke))
    }
}

/// Whoever asks may run before the beat that notices.
fn slept_since(began: u64, now: u64, (beat, woke): (u64, u64)) -> bool {
    beat > 0 && (woke > began || now.saturating_sub(beat) > millis(SLEPT))
}

/// How long the process has not run, since it began.
pub fn slept() -> Duration {
    Duration::from_millis(FOUND.slept.load(Ordering::Relaxed))
}

/// How far the wall clock was set since the process began, in seconds, forward or back; 0 where it was not.
pub fn astray_secs() -> i64 {
    let millis_astray = FOUND.astray.load(Ordering::Relaxed);
    if millis_astray.unsigned_abs() >= millis(JUMPED) { millis_astray / 1000 } else { 0 }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// What both clocks said at a beat.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    steady: u64,
    wall: i64,
}

impl Clocks {
    fn look() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { steady: Moment::now().0, wall: i64::try_from(wall.as_millis()).unwrap_or(i64::MAX) }
    }

    /// How long the process had not run, and how far the wall clock was set, since the beat before.
    fn since(self, before: Self) -> (Option<Duration>, Option<i64>) {
        let passed = self.steady.saturating_sub(before.steady);
        let slept = (passed > millis(SLEPT)).then(|| Duration::from_millis(passed).saturating_sub(BEAT));
        let by = self.wall.saturating_sub(before.wall).saturating_sub_unsigned(passed);
        (slept, (by.unsigned_abs() >= millis(JUMPED)).then_some(by))
    }
}

/// Beats for ever, and tells what it finds.
pub async fn beat(views: SharedViews) {
    let mut tick = interval(BEAT);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = Clocks::look();
    let mut told: Vec<(OwnKind, Moment)> = Vec::new();
    FOUND.beat.store(before.steady, Ordering::Relaxed);
    loop {
        tick.tick().await;
        let now = Clocks::look();
        let (slept, jumped) = now.since(before);
        let found = [
            slept.map(|slept| (OwnKind::Slept, trouble_of_sleep(slept))),
            jumped.map(|by| (OwnKind::ClockJump, trouble_of_jump(by))),
        ];
        if let Some(slept) = slept {
            FOUND.slept.fetch_add(millis(slept), Ordering::Relaxed);
            FOUND.woke.store(now.steady, Ordering::Relaxed);
        }
        FOUND.astray.fetch_add(jumped.unwrap_or_default(), Ordering::Relaxed);
        FOUND.beat.store(now.steady, Ordering::Relaxed);
        for (kind, trouble) in found.into_iter().flatten() {
            warn!(category = "own_clock", advice = trouble.advice, "{}", trouble.what);
            views.show_own(kind, Some(trouble));
            told.retain(|(other, _)| *other != kind);
            told.push((kind, Moment(now.steady)));
        }
        told.retain(|(kind, since)| {
            let lasts = now.steady.saturating_sub(since.0) < millis(TOLD);
            if !lasts {
                info!("{}", end_of(*kind));
                views.show_own(*kind, None);
            }
            lasts
        });
        before = now;
    }
}

fn trouble_of_sleep(slept: Duration) -> Trouble {
    Trouble {
        what: format!(
            "walhook did not run for {} s (own_clock): it was stopped, its machine was asleep, or it got no processor; requests \
             that failed meanwhile are tried again and count for nothing",
            slept.as_secs()
        ),
        advice: "if nobody stopped it (SIGSTOP, a paused container or machine), give it more of a processor".to_owned(),
    }
}

fn trouble_of_jump(by_millis: i64) -> Trouble {
    // Two clocks are not read in the same millisecond.
    let seconds = by_millis.unsigned_abs().saturating_add(500) / 1000;
    let way = if by_millis > 0 { "forward" } else { "back" };
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    Trouble {
        what: format!(
            "the wall clock was set {way} by {days} d {hours} h {minutes} min {} s (own_clock): waits, retries and retention go \
             by another clock, signatures and certificates by this one",
            seconds % 60
        ),
        advice: "check that the clock is right and that something keeps it so (chronyd, systemd-timesyncd)".to_owned(),
    }
}

fn end_of(kind: OwnKind) -> &'static str {
    match kind {
        OwnKind::Slept => "walhook runs again",
        OwnKind::ClockJump => "the wall clock goes on from where it was set",
        OwnKind::Descriptors => "as many files may be open as the sinks may need",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_tells_sleep_from_a_clock_that_was_set() {
        const DAY: i64 = 86_400_000;
        let before = Clocks { steady: 1000, wall: 5_000_000 };
        for (steady, wall, slept, jumped) in [
            (250, 250, None, None),
            (2000, 2000, None, None),
            // Slewed, as NTP does it.
            (250, 350, None, None),
            (30_250, 30_250, Some(30_000), None),
            (250, DAY, None, Some(DAY - 250)),
            (250, -DAY, None, Some(-DAY - 250)),
            (10_250, 10_250 + 8 * DAY, Some(10_000), Some(8 * DAY)),
            (250, 4000, None, None),
        ] {
            let now = Clocks { steady: before.steady + steady, wall: before.wall + wall };
            let expected = (slept.map(Duration::from_millis), jumped);
            assert_eq!(now.since(before), expected, "{steady} {wall}");
        }
    }

    #[test]
    fn who_wakes_before_the_beat_knows_that_there_was_sleep() {
        // Began, now, the last beat, the last end of a sleep.
        for (began, now, beat, woke, slept) in [
            (1000, 2000, 1900, 0, false),
            (1000, 40_000, 1900, 0, true),
            (1000, 40_200, 40_100, 40_100, true),
            (40_150, 40_200, 40_100, 40_100, false),
            (1000, 90_000, 0, 0, false),
        ] {
            assert_eq!(slept_since(began, now, (beat, woke)), slept, "{began} {now} {beat} {woke}");
        }
    }

    #[test]
    fn a_jump_is_told_with_its_way_and_length() {
        assert!(trouble_of_jump(-93_784_000).what.contains("set back by 1 d 2 h 3 min 4 s"));
        assert!(trouble_of_jump(-86_399_999).what.contains("set back by 1 d 0 h 0 min 0 s"));
        assert!(trouble_of_jump(8 * 86_400_000).what.contains("set forward by 8 d 0 h 0 min 0 s"));
    }
}

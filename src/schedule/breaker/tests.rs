//! Plays, and whole lives of an endpoint beside a naive observer.

use std::time::Duration;

use super::*;

const MS: Duration = Duration::from_millis(1);
const RULE: RetryRule = RetryRule { initial: Duration::from_secs(1), max: Duration::from_secs(10) };

struct Play {
    now: Instant,
    rng: fastrand::Rng,
    breaker: Breaker,
    in_flight: usize,
}

impl Play {
    fn new(max_in_flight: usize) -> Self {
        let rng = fastrand::Rng::with_seed(1);
        Self { now: Instant::now(), rng, breaker: Breaker::new(RULE, max_in_flight), in_flight: 0 }
    }

    fn allowance(&self) -> usize {
        self.breaker.allowance(self.now, self.in_flight)
    }

    fn start(&mut self) -> Started {
        assert!(self.allowance() > 0, "{:?}", self.breaker);
        self.in_flight += 1;
        self.breaker.started()
    }

    fn end(&mut self, started: Started, heard: Heard) {
        self.in_flight -= 1;
        self.breaker.ended(self.now, &mut self.rng, started, heard);
    }

    fn attempt(&mut self, heard: Heard) {
        let started = self.start();
        self.end(started, heard);
    }

    /// Opens it; gives the end of the wait.
    fn open(&mut self) -> Instant {
        for _ in 0..TROUBLES_MAX {
            self.attempt(Heard::Trouble);
        }
        self.wait_of(1)
    }

    /// It is open since this moment for the `failures`-th time, until when it says.
    fn wait_of(&self, failures: u32) -> Instant {
        let BreakerState::Open { until, failures: seen } = self.breaker.state() else { panic!("{:?}", self.breaker) };
        assert_eq!(seen, failures);
        assert_eq!(self.breaker.wake_at(), Some(until));
        let full = RULE.max.min(RULE.initial * 2u32.pow(failures - 1));
        let wait = until - self.now;
        assert!(wait >= full / 2 && wait <= full, "{failures}: {wait:?}");
        until
    }
}

#[test]
fn five_troubles_in_a_row_open_it_and_a_sign_of_life_between_them_does_not() {
    let mut play = Play::new(8);
    for heard in [Heard::Trouble, Heard::Trouble, Heard::Trouble, Heard::Trouble, Heard::Life] {
        play.attempt(heard);
    }
    for heard in [Heard::Trouble, Heard::Trouble, Heard::Nothing, Heard::Trouble, Heard::Trouble] {
        play.attempt(heard);
    }
    assert_eq!((play.breaker.state(), play.allowance(), play.breaker.wake_at()), (BreakerState::Closed, 8, None));
    play.attempt(Heard::Trouble);
    assert!(play.breaker.is_open(), "a failure of ours neither counts nor parts them");
    assert_eq!(play.allowance(), 0);
}

#[test]
fn one_probe_at_a_time_and_the_wait_grows_with_each_that_fails() {
    let mut play = Play::new(8);
    let mut until = play.open();
    for failures in 2..8 {
        play.now = until - MS;
        assert_eq!(play.allowance(), 0);
        play.now += MS;
        assert_eq!(play.allowance(), 1);
        let probe = play.start();
        assert_eq!(play.breaker.state(), BreakerState::Probing { failures: failures - 1 });
        play.now += 100 * RULE.max;
        assert_eq!((play.allowance(), play.breaker.wake_at()), (0, None), "while it is under way");
        play.end(probe, Heard::Trouble);
        until = play.wait_of(failures);
    }
}

#[test]
fn after_a_probe_that_lives_it_ramps_up_and_forgets_its_failures_when_closed() {
    let mut play = Play::new(12);
    play.now = play.open();
    play.attempt(Heard::Trouble);
    play.now = play.wait_of(2);
    play.attempt(Heard::Life);
    for limit in [1, 2, 4, 8] {
        assert_eq!((play.breaker.state(), play.allowance()), (BreakerState::RampUp { limit }, limit));
        let started: Vec<Started> = (0..limit).map(|_| play.start()).collect();
        assert_eq!(play.allowance(), 0);
        for started in started {
            assert_eq!(play.breaker.state(), BreakerState::RampUp { limit });
            play.end(started, Heard::Life);
        }
    }
    assert_eq!((play.breaker.state(), play.allowance()), (BreakerState::Closed, 12));
    play.open();
}

#[test]
fn trouble_in_the_ramp_up_opens_it_again_for_longer() {
    let mut play = Play::new(8);
    play.now = play.open();
    play.attempt(Heard::Life);
    play.attempt(Heard::Life);
    let (one, other) = (play.start(), play.start());
    play.end(one, Heard::Trouble);
    let until = play.wait_of(2);
    play.end(other, Heard::Trouble);
    assert_eq!(play.wait_of(2), until, "the other is from before this opening");
}

#[test]
fn what_was_under_way_when_it_opened_says_nothing_by_failing() {
    let mut play = Play::new(20);
    let old: [Started; 6] = std::array::from_fn(|_| play.start());
    let until = play.open();
    play.end(old[0], Heard::Trouble);
    assert_eq!(play.wait_of(1), until);
    play.now = until;
    let probe = play.start();
    play.end(old[1], Heard::Trouble);
    play.end(old[2], Heard::Nothing);
    assert_eq!((play.breaker.state(), play.allowance()), (BreakerState::Probing { failures: 1 }, 0));
    play.end(probe, Heard::Life);
    play.end(old[3], Heard::Trouble);
    play.end(old[4], Heard::Life);
    assert_eq!(play.breaker.state(), BreakerState::RampUp { limit: 1 });
    assert_eq!(play.allowance(), 1, "what hangs since before takes no place");
    let next = play.start();
    play.end(old[5], Heard::Trouble);
    assert_eq!((play.breaker.state(), play.allowance()), (BreakerState::RampUp { limit: 1 }, 0));
    play.end(next, Heard::Life);
    assert_eq!(play.allowance(), 2);
}

#[test]
fn what_was_under_way_when_it_opened_ends_that_by_a_sign_of_life() {
    let mut play = Play::new(20);
    let old = play.start();
    play.open();
    play.end(old, Heard::Life);
    assert_eq!((play.breaker.state(), play.allowance()), (BreakerState::RampUp { limit: 1 }, 1));

    let mut play = Play::new(20);
    let old = play.start();
    play.now = play.open();
    let probe = play.start();
    play.end(old, Heard::Life);
    assert_eq!((play.breaker.state(), play.allowance()), (BreakerState::RampUp { limit: 1 }, 0), "the probe's place");
    play.end(probe, Heard::Trouble);
    play.wait_of(2);
}

#[test]
fn a_failure_of_ours_ends_the_probe_and_the_next_may_start_after_the_first_wait() {
    let mut play = Play::new(8);
    play.now = play.open();
    play.attempt(Heard::Nothing);
    assert_eq!(play.breaker.state(), BreakerState::Open { until: play.now + RULE.initial, failures: 1 });
    assert_eq!(play.allowance(), 0);
    play.now += RULE.initial;
    assert_eq!(play.allowance(), 1);
}

#[test]
fn with_one_attempt_at_a_time_a_sign_of_life_closes_it() {
    let mut play = Play::new(1);
    play.now = play.open();
    assert_eq!(play.allowance(), 1);
    play.attempt(Heard::Life);
    assert_eq!((play.breaker.state(), play.allowance()), (BreakerState::Closed, 1));
}

/// What is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// Attempts start as if it were closed.
    IgnoreAllowance,
    /// Every attempt is told as one of this moment.
    ForgetStart,
}

struct Attempt {
    started: Started,
    at: Instant,
    ends: Instant,
    heard: Heard,
}

/// Starts and ends attempts at an endpoint that is dead or alive for spans of time, and notes what it would expect.
struct Life {
    rng: fastrand::Rng,
    fault: Fault,
    now: Instant,
    breaker: Breaker,
    max_in_flight: usize,
    under_way: Vec<Attempt>,
    alive: bool,
    /// The observer's: when it opened last, and troubles in a row.
    opened: Option<Instant>,
    row: u32,
    failures: u32,
}

impl Life {
    fn new(seed: u64, fault: Fault) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let max_in_flight = rng.usize(1..40);
        let breaker = Breaker::new(RULE, max_in_flight);
        let (now, under_way) = (Instant::now(), Vec::new());
        Self { rng, fault, now, breaker, max_in_flight, under_way, alive: true, opened: None, row: 0, failures: 0 }
    }

    fn heard(&mut self) -> Heard {
        match self.rng.u8(0..20) {
            0 => Heard::Nothing,
            1 => Heard::Trouble,
            _ if self.alive => Heard::Life,
            _ => Heard::Trouble,
        }
    }

    /// Attempts under way that started since it opened last.
    fn fresh(&self) -> usize {
        self.under_way.iter().filter(|attempt| self.opened.is_none_or(|opened| attempt.at >= opened)).count()
    }

    fn start_some(&mut self) -> Result<(), String> {
        for _ in 0..self.rng.usize(0..8) {
            let may = self.breaker.allowance(self.now, self.under_way.len()) > 0;
            if !may && self.fault != Fault::IgnoreAllowance {
                return Ok(());
            }
            if let BreakerState::Open { until, .. } = self.breaker.state()
                && until > self.now
            {
                return Err("an attempt started before the wait was over".to_owned());
            }
            let was_open = self.breaker.is_open();
            let (started, heard) = (self.breaker.started(), self.heard());
            let longest = if self.rng.bool() { 50 } else { 30_000 };
            let ends = self.now + Duration::from_millis(self.rng.u64(1..longest));
            self.under_way.push(Attempt { started, at: self.now, ends, heard });
            // Two things at one time would be one moment to the observer.
            self.now += Duration::from_nanos(1);
            let bound = match self.breaker.state() {
                BreakerState::Closed => self.max_in_flight,
                BreakerState::RampUp { limit } => limit,
                BreakerState::Open { .. } | BreakerState::Probing { .. } => 1,
            };
            let fresh = self.fresh();
            if self.under_way.len() > self.max_in_flight || fresh > bound || (was_open && fresh != 1) {
                return Err(format!("{fresh} attempts under way where {bound} may be"));
            }
        }
        Ok(())
    }

    fn end_one(&mut self) -> Result<(), String> {
        let due = self.under_way.iter().position(|attempt| attempt.ends <= self.now);
        let Some(attempt) = due.map(|due| self.under_way.swap_remove(due)) else { return Ok(()) };
        let is_fresh = self.opened.is_none_or(|opened| attempt.at >= opened);
        let before = self.breaker.state();
        let told = if self.fault == Fault::ForgetStart { Started(self.breaker.openings) } else { attempt.started };
        if self.fault == Fault::ForgetStart {
            self.breaker.fresh += usize::from(attempt.started != told);
        }
        self.breaker.ended(self.now, &mut self.rng, told, attempt.heard);
        match (before, attempt.heard) {
            (BreakerState::Closed, Heard::Life) if is_fresh => self.row = 0,
            (BreakerState::Closed, Heard::Trouble) if is_fresh => self.row += 1,
            _ => {}
        }
        let opens =
            is_fresh && attempt.heard == Heard::Trouble && (before != BreakerState::Closed || self.row == TROUBLES_MAX);
        self.compare(before, opens)?;
        self.now += Duration::from_nanos(1);
        Ok(())
    }

    /// What came of an end, as the observer sees it.
    fn compare(&mut self, before: BreakerState, opens: bool) -> Result<(), String> {
        let after = self.breaker.state();
        if opens {
            (self.row, self.failures) = (0, self.failures + 1);
            self.opened = Some(self.now);
            let full = RULE.max.min(RULE.initial * 2u32.pow((self.failures - 1).min(10)));
            let fits = matches!(after, BreakerState::Open { until, failures }
                if failures == self.failures && (full / 2..=full).contains(&(until - self.now)));
            let wrong = || format!("{before:?} should have opened, failures {}, is {after:?}", self.failures);
            return fits.then_some(()).ok_or_else(wrong);
        }
        if after == BreakerState::Closed {
            (self.row, self.failures) = (if before == after { self.row } else { 0 }, 0);
        }
        match (before, after) {
            (BreakerState::Open { until: a, .. }, BreakerState::Open { until: b, .. }) if a != b => {
                Err("the wait changed".to_owned())
            }
            (
                BreakerState::Closed | BreakerState::RampUp { .. },
                BreakerState::Open { .. } | BreakerState::Probing { .. },
            ) => Err(format!("{before:?} should not have opened")),
            _ => Ok(()),
        }
    }

    fn run(mut self) -> Result<Self, String> {
        for step in 0..2000 {
            if step % 100 == 0 {
                self.alive = self.rng.bool();
            }
            self.start_some()?;
            for _ in 0..self.rng.usize(0..8) {
                self.end_one()?;
            }
            self.now += Duration::from_millis(self.rng.u64(0..500));
        }
        Ok(self)
    }

    /// The endpoint lives for good: it closes.
    fn close(mut self) -> Result<(), String> {
        for attempt in &mut self.under_way {
            attempt.heard = Heard::Life;
        }
        for _ in 0..10_000 {
            if self.breaker.state() == BreakerState::Closed && self.under_way.is_empty() {
                return Ok(());
            }
            if self.breaker.state() != BreakerState::Closed
                && self.breaker.allowance(self.now, self.under_way.len()) > 0
            {
                let started = self.breaker.started();
                let ends = self.now + 20 * MS;
                self.under_way.push(Attempt { started, at: self.now, ends, heard: Heard::Life });
            }
            self.now += 10 * MS;
            self.end_one()?;
        }
        Err(format!("still {:?}", self.breaker))
    }
}

#[test]
fn a_hundred_lives_keep_the_rules_and_end_closed() {
    for seed in 0..100 {
        let life = Life::new(seed, Fault::Nothing).run().and_then(Life::close);
        assert_eq!(life, Ok(()), "seed {seed}");
    }
}

#[test]
fn the_observer_notices_planted_faults() {
    for fault in [Fault::IgnoreAllowance, Fault::ForgetStart] {
        let noticed = (0..20).filter(|seed| Life::new(*seed, fault).run().is_err()).count();
        assert!(noticed > 10, "{fault:?}: {noticed}");
    }
}

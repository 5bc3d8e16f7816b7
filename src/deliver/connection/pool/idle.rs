//! The HTTP/1.1 connections that lie idle.

use std::time::{Duration, Instant};

use crate::deliver::connection::http1::Http1;
use crate::deliver::connection::life::Life;

/// Connections that are looked at in one go; meanwhile no request finds them.
const LENT_MAX: usize = 16;

/// The one used last stands at the end, and is the next to be used.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "an exchange holds its connection in a box, which goes in and out as it is")]
pub(super) struct Idle(Vec<Box<Http1>>);

/// Connections on their way out of the list; closing them takes system calls, for which nobody should wait.
pub(super) type Gone = Vec<Box<Http1>>;

impl Idle {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(test)]
    pub(super) fn places(&self) -> Vec<usize> {
        self.0.iter().map(|one| std::ptr::from_ref::<Http1>(one).addr()).collect()
    }

    pub(super) fn put(&mut self, connection: Box<Http1>) {
        self.0.push(connection);
    }

    /// The one used last of those that fit.
    pub(super) fn take(&mut self, fits: impl Fn(&Life) -> bool) -> Option<Box<Http1>> {
        let at = self.0.iter().rposition(|one| fits(&one.life))?;
        Some(self.0.remove(at))
    }

    /// The one used longest ago.
    pub(super) fn take_oldest(&mut self) -> Option<Box<Http1>> {
        if self.0.is_empty() { None } else { Some(self.0.remove(0)) }
    }

    /// Takes out those that do not fit.
    pub(super) fn part_with(&mut self, fits: impl Fn(&Life) -> bool) -> Gone {
        self.0.extract_if(.., |one| !fits(&one.life)).collect()
    }

    /// A few from `at` on, used longest ago first, that have answered nothing for `length`: what is in use now shows by
    /// itself what has become of it.
    pub(super) fn lend(&mut self, at: usize, now: Instant, length: Duration) -> Gone {
        let quiet = self.0.iter().skip(at).take(LENT_MAX).take_while(|one| one.life.is_idle(now, length)).count();
        let at = at.min(self.0.len());
        self.0.drain(at..at + quiet).collect()
    }

    /// Takes back, to `at`, what is left of those that were lent.
    pub(super) fn give_back(&mut self, at: usize, lent: Gone) {
        let at = at.min(self.0.len());
        self.0.splice(at..at, lent);
    }
}

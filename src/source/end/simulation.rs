//! Seeded lives of a reader and of a server whose end may go back, whose stream may lie, and whose slot may fall behind in a crash.
//! The server knows what happened in which of its histories; that it does is what the reader cannot see, and must not get wrong.

use std::path::Path;

use super::*;
use crate::source::standing::{Facts, Life, SlotFound, Standing, Step, Streamed, decide};

/// What is left out of the reader, and must be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// A session begins without a look at the server's end.
    NoLook,
    /// A keepalive is believed whatever the server says when it is asked.
    Credulous,
    /// What is confirmed is not kept within the server's end.
    Unbounded,
    /// A change is skipped without a look at the server's end.
    SkipsBlindly,
}

/// What went wrong.
#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    /// A row of a history that the reader never saw was taken for known.
    Skipped,
    /// The slot is confirmed beyond the server's end.
    ConfirmedBeyond,
}

/// Rows by where they stand, and the number of the history in which they were written.
#[derive(Clone, Debug, Default)]
struct Server {
    end: u64,
    slot: u64,
    history: u32,
    rows: Vec<(u64, u32)>,
}

#[derive(Debug)]
struct Reader {
    seen: u64,
    confirmed: u64,
    taken: Vec<(u64, u32)>,
    end: End,
}

struct Play {
    rng: fastrand::Rng,
    planted: Planted,
    server: Server,
    kept: Server,
    reader: Reader,
}

impl Play {
    fn new(seed: u64, planted: Planted) -> Self {
        let server = Server { end: 100, slot: 100, ..Server::default() };
        let end = End::new(Said::End { at: Lsn(100), in_recovery: false }, Instant::now());
        let reader = Reader { seen: 100, confirmed: 100, taken: Vec::new(), end };
        Self { rng: fastrand::Rng::with_seed(seed), planted, kept: server.clone(), server, reader }
    }

    /// One life, until the reader stops or so many steps have gone by.
    fn run(mut self) -> Result<(), Wrong> {
        for _ in 0..200 {
            let goes_on = match self.rng.u32(..100) {
                0..40 => self.write(),
                40..70 => self.read()?,
                70..80 => self.keepalive(self.server.end),
                80..82 => {
                    let beyond = 1 + self.rng.u64(..1000);
                    self.keepalive(self.server.end + beyond)
                }
                82..92 => self.confirm()?,
                92..94 => self.keep(),
                94..96 => self.forge(),
                96..98 => self.reconnect(),
                _ => self.put_back(),
            };
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    fn write(&mut self) -> bool {
        self.server.end += 1 + self.rng.u64(..50);
        self.server.rows.push((self.server.end, self.server.history));
        true
    }

    /// The next row behind the slot that was not sent in this session; what is seen already is skipped.
    fn read(&mut self) -> Result<bool, Wrong> {
        let next =
            self.server.rows.iter().copied().find(|row| !self.reader.taken.contains(row) && row.0 > self.server.slot);
        let Some((at, history)) = next else { return Ok(true) };
        if at <= self.reader.seen {
            // A server that has come so far since is not to be told from one that was there before by its positions.
            let is_told = self.planted != Planted::SkipsBlindly && !self.ask();
            return if is_told || self.server.end >= self.reader.seen { Ok(false) } else { Err(Wrong::Skipped) };
        }
        self.reader.taken.push((at, history));
        self.reader.seen = at;
        Ok(true)
    }

    /// A row that never happened, a little ahead of what did.
    fn forge(&mut self) -> bool {
        self.reader.seen = self.reader.seen.max(self.server.end + 1 + self.rng.u64(..100));
        true
    }

    fn keepalive(&mut self, claimed: u64) -> bool {
        // One that is true comes behind all rows.
        if self.server.rows.iter().any(|row| !self.reader.taken.contains(row) && row.0 > self.server.slot) {
            return true;
        }
        if self.reader.end.claim(Lsn(claimed)) || self.planted == Planted::Credulous {
            self.reader.seen = self.reader.seen.max(claimed);
            return true;
        }
        self.ask()
    }

    /// Whether the reader goes on with the answer.
    fn ask(&mut self) -> bool {
        let (claimed, end) = (self.reader.end.claimed, self.server.end);
        let (reached, now) = (Lsn(self.reader.seen).max(claimed), Instant::now());
        let said = Said::End { at: Lsn(end), in_recovery: false };
        let answer = self.reader.end.learn(said, reached, claimed, now);
        if answer.verdict == Verdict::Within {
            self.reader.seen = self.reader.seen.max(answer.claimed.0);
        }
        answer.verdict == Verdict::Within
    }

    fn confirm(&mut self) -> Result<bool, Wrong> {
        if self.rng.bool() && !self.ask() && self.planted != Planted::Credulous {
            return Ok(false);
        }
        let bound = match self.planted {
            Planted::Unbounded | Planted::Credulous => Lsn(self.reader.seen),
            Planted::Nothing | Planted::NoLook | Planted::SkipsBlindly => self.reader.end.bound(Lsn(self.reader.seen)),
        };
        self.reader.confirmed = self.reader.confirmed.max(bound.0);
        self.server.slot = self.server.slot.max(self.reader.confirmed);
        if self.server.slot > self.server.end { Err(Wrong::ConfirmedBeyond) } else { Ok(true) }
    }

    /// A snapshot of the disk.
    fn keep(&mut self) -> bool {
        self.kept = self.server.clone();
        true
    }

    /// It is put back, which breaks the connection; somebody writes, or not, before the reader is back.
    fn put_back(&mut self) -> bool {
        let history = self.server.history + 1;
        self.server = Server { history, ..self.kept.clone() };
        while self.rng.bool() {
            self.write();
        }
        // A server that has written as much since is not to be told from the one of before by its positions.
        self.server.end < self.reader.seen && self.reconnect()
    }

    /// Whether another session begins.
    fn reconnect(&mut self) -> bool {
        let life = Streamed {
            system_id: 7,
            seen: Lsn(self.reader.seen),
            confirmed: Lsn(self.reader.confirmed),
            replaces_slot: false,
        };
        let end = if self.planted == Planted::NoLook { u64::MAX } else { self.server.end };
        let facts = Facts {
            source: "app",
            store: Path::new("walhook-state"),
            system_id: 7,
            database: "app",
            server_end: Lsn(end),
            in_recovery: false,
            promotion: None,
            slot: "walhook_app",
            found: SlotFound::At(Lsn(self.server.slot)),
        };
        let step = decide(&Standing { life: Life::Streamed(life), on_standby: false }, &facts);
        self.reader.end = End::new(Said::End { at: Lsn(self.server.end), in_recovery: false }, Instant::now());
        self.server.slot = self.server.slot.max(self.reader.confirmed);
        step == Step::GoOn
    }
}

fn lives(planted: Planted) -> Vec<Wrong> {
    (0..3000).filter_map(|seed| Play::new(seed, planted).run().err()).collect()
}

#[test]
fn pitfall_62_whatever_the_server_does_nothing_is_skipped_and_nothing_confirmed_beyond_its_end() {
    assert_eq!(lives(Planted::Nothing), []);
}

#[test]
fn planted_faults_are_found() {
    for planted in [Planted::NoLook, Planted::Credulous, Planted::Unbounded, Planted::SkipsBlindly] {
        assert!(!lives(planted).is_empty(), "{planted:?} goes unnoticed");
    }
}

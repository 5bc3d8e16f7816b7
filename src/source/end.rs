//! The end of the server's WAL, as the server says when it is asked over SQL: nothing that was read may lie beyond it.
//!
//! What the stream says of positions is believed only as far as this goes: a keepalive that is beyond is held back until the
//! server was asked, what is confirmed to the slot never passes it, and changes may be ahead of the last answer by
//! [`AHEAD_MAX`], so that a trickle does not wait for a question. Where the role may not ask, the stream is all there is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::slot::{Passing, PrepareError};
use crate::change::Lsn;

/// How often the server is asked at least.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// The same while the stream is silent: whether SQL answers tells what is wrong.
const ASK_EVERY_IN_SILENCE: Duration = Duration::from_secs(1);
/// How far changes may be ahead of the server's last answer before it is asked again, and the stream waits: a WAL segment.
const AHEAD_MAX: u64 = 16 << 20;
/// Longest wait for one answer; a server that is silent is asked again.
const LIMIT: Duration = Duration::from_secs(30);

const DOING: &str = "ask for the end of the WAL";

/// Reserved on a primary, replayed on a standby: a walsender reads nothing beyond. What is written is no measure: a record that
/// switches to another WAL file is read as if it went to the file's end, a moment before the server has written so far.
const END: &str = "select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end, \
                   pg_is_in_recovery()";
/// Asked in its place where the role may not: a refusal is a line in the server's log each time.
const MAY_ASK: &str = "select has_function_privilege('pg_catalog.pg_current_wal_insert_lsn()', 'EXECUTE') \
                       and has_function_privilege('pg_catalog.pg_last_wal_replay_lsn()', 'EXECUTE')";

/// What the server says of its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// It is there.
    End {
        /// The position.
        at: Lsn,
        /// The server is a standby.
        in_recovery: bool,
    },
    /// The role may not ask, or the server has no such function.
    Hidden,
    /// Nothing that helps; it is asked again.
    Nothing,
}

impl Said {
    /// The position, if it was said.
    pub(super) fn end(self) -> Option<Lsn> {
        match self {
            Self::End { at, .. } => Some(at),
            Self::Hidden | Self::Nothing => None,
        }
    }
}

/// Asks for the end. `was_hidden`: it was refused before, and may be still.
///
/// # Errors
/// When the connection is lost.
pub(super) async fn ask(client: &Client, was_hidden: bool) -> Result<Said, PrepareError> {
    if was_hidden {
        let may = row(client, MAY_ASK).await?;
        if may.is_ok_and(|row| row.first().is_some_and(|may| may.as_deref() != Some("t"))) {
            return Ok(Said::Hidden);
        }
    }
    let answer = match row(client, END).await? {
        Ok(answer) => answer,
        Err(code) => {
            let hidden =
                [SqlState::INSUFFICIENT_PRIVILEGE, SqlState::UNDEFINED_FUNCTION, SqlState::FEATURE_NOT_SUPPORTED];
            return Ok(if hidden.contains(&code) { Said::Hidden } else { Said::Nothing });
        }
    };
    let field = |at: usize| answer.get(at).and_then(Option::as_deref);
    let end = field(0).and_then(|text| text.parse().ok());
    Ok(end.map_or(Said::Nothing, |at| Said::End { at, in_recovery: field(1) == Some("t") }))
}

/// The texts of the first row, or the server's error.
async fn row(client: &Client, sql: &str) -> Result<Result<Vec<Option<String>>, SqlState>, PrepareError> {
    let answer = match timeout(LIMIT, client.simple_query(sql)).await {
        Err(_) => return Err(Passing::Timeout { doing: DOING }.into()),
        Ok(answer) => answer,
    };
    match answer {
        Ok(messages) => {
            let row =
                messages.iter().find_map(|it| if let SimpleQueryMessage::Row(row) = it { Some(row) } else { None });
            let field = |at| row.and_then(|row| row.try_get(at).ok().flatten()).map(str::to_owned);
            Ok(Ok((0..row.map_or(0, tokio_postgres::SimpleQueryRow::len)).map(field).collect()))
        }
        Err(error) => match error.as_db_error() {
            Some(said) => Ok(Err(said.code().clone())),
            None => Err(Passing::Query { doing: DOING, source: error }.into()),
        },
    }
}

/// What the last answer leaves open of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// They were there when the server was asked.
    Within,
    /// It is not known.
    Open,
    /// They are not.
    Beyond {
        /// All that was read or claimed lies before this.
        reached: Lsn,
        /// The server's end.
        end: Lsn,
        /// The server is a standby.
        in_recovery: bool,
    },
}

/// See the module.
#[derive(Debug)]
pub(super) struct End {
    /// The last answer.
    said: Said,
    answered_at: Instant,
    /// The first question since then.
    waits_since: Option<Instant>,
    question: Option<Asked>,
    /// The one that asks.
    asking: JoinSet<Result<Said, PrepareError>>,
    /// A keepalive beyond what is known.
    claimed: Lsn,
}

/// A question that is open.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// All that was read or claimed when it was asked lies before this.
    reached: Lsn,
    /// What keepalives had claimed.
    claimed: Lsn,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) verdict: Verdict,
    /// What keepalives had claimed, and is true now.
    pub(super) claimed: Lsn,
}

impl End {
    /// Of a session that begins with what the server `said`.
    pub(super) fn new(said: Said, now: Instant) -> Self {
        let (claimed, asking) = (Lsn::ZERO, JoinSet::new());
        Self { said, answered_at: now, waits_since: None, question: None, asking, claimed }
    }

    /// The server's end as it last said; `None`: the role may not ask.
    pub(super) fn known(&self) -> Option<Lsn> {
        self.said.end()
    }

    /// `at`, but not beyond the server's end.
    pub(super) fn bound(&self, at: Lsn) -> Lsn {
        self.known().map_or(at, |known| at.min(known))
    }

    /// Takes a keepalive's word; whether it may be believed at once.
    pub(super) fn claim(&mut self, server_end: Lsn) -> bool {
        let is_within = self.known().is_none_or(|known| server_end <= known);
        if !is_within {
            self.claimed = self.claimed.max(server_end);
        }
        is_within
    }

    /// Whether what was read up to `seen` is so far ahead of the last answer that nothing goes on before the next: before a
    /// change counts as known, it must not be ahead at all.
    pub(super) fn is_far_behind(&self, seen: Lsn, has_skipped: bool) -> bool {
        let ahead_max = if has_skipped { 0 } else { AHEAD_MAX };
        self.known().is_some_and(|known| seen.bytes_since(known) > ahead_max)
    }

    /// Asks unless a question is open: when there is something beyond the last answer, or that is old, and more often while
    /// the stream is silent.
    pub(super) fn ask_on_tick(&mut self, client: &Arc<Client>, seen: Lsn, is_silent: bool) {
        let now = Instant::now();
        if is_silent && now.duration_since(self.answered_at) >= ASK_EVERY_IN_SILENCE {
            self.ask_now(client, seen, now);
        } else {
            self.ask(client, seen, now);
        }
    }

    /// Asks, unless a question is open: when there is something beyond the last answer, or that is old.
    pub(super) fn ask(&mut self, client: &Arc<Client>, seen: Lsn, now: Instant) {
        let beyond = self.known().is_some_and(|known| seen.max(self.claimed) > known);
        if beyond || now.duration_since(self.answered_at) >= ASK_EVERY {
            self.ask_now(client, seen, now);
        }
    }

    /// Asks, unless a question is open.
    pub(super) fn ask_now(&mut self, client: &Arc<Client>, seen: Lsn, now: Instant) {
        if self.question.is_some() {
            return;
        }
        let (client, was_hidden) = (Arc::clone(client), self.said == Said::Hidden);
        self.asking.spawn(async move { ask(&client, was_hidden).await });
        self.waits_since = self.waits_since.or(Some(now));
        self.question = Some(Asked { reached: seen.max(self.claimed), claimed: self.claimed });
    }

    /// For how long the server has not answered.
    pub(super) fn silence(&self, now: Instant) -> Duration {
        self.waits_since.map_or(Duration::ZERO, |since| now.duration_since(since))
    }

    /// After a time in which nobody listened: silence counts from `now` on.
    pub(super) fn forgive(&mut self, now: Instant) {
        self.waits_since = self.waits_since.map(|_| now);
    }

    /// The answer to the open question; waits for ever without one. May be given up at any await.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(super) async fn answer(&mut self) -> Result<Answer, PrepareError> {
        let Some(Asked { reached, claimed }) = self.question else { return std::future::pending().await };
        let answer = self.asking.join_next().await;
        self.question = None;
        match answer {
            Some(Ok(Ok(said))) => Ok(self.learn(said, reached, claimed, Instant::now())),
            Some(Ok(Err(PrepareError::Passing(Passing::Timeout { .. })))) => Ok(Answer::open()),
            Some(Ok(Err(error))) => Err(error),
            // One that was lost with its task is asked again, but not at once.
            Some(Err(_)) | None => {
                self.answered_at = Instant::now();
                Ok(Answer::open())
            }
        }
    }

    /// Waits until no question is open.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub(super) async fn open_answer(&mut self) -> Result<Option<Answer>, PrepareError> {
        if self.question.is_none() { Ok(None) } else { self.answer().await.map(Some) }
    }

    fn learn(&mut self, said: Said, reached: Lsn, claimed: Lsn, now: Instant) -> Answer {
        self.answered_at = now;
        self.waits_since = None;
        let Said::End { at, in_recovery } = said else {
            // What nobody stands by is forgotten; where the role may not ask any more the next keepalive is believed.
            self.claimed = Lsn::ZERO;
            self.said = if said == Said::Hidden { said } else { self.said };
            return Answer::open();
        };
        self.said = said;
        if reached > at {
            return Answer { verdict: Verdict::Beyond { reached, end: at, in_recovery }, claimed: Lsn::ZERO };
        }
        if self.claimed <= claimed {
            self.claimed = Lsn::ZERO;
        }
        Answer { verdict: Verdict::Within, claimed }
    }
}

impl Answer {
    fn open() -> Self {
        Self { verdict: Verdict::Open, claimed: Lsn::ZERO }
    }
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(end: u64) -> Said {
        Said::End { at: Lsn(end), in_recovery: false }
    }

    fn end(known: u64) -> End {
        End::new(at(known), Instant::now())
    }

    #[test]
    fn a_keepalive_beyond_the_last_answer_is_held_back_until_the_server_has_been_asked() {
        let mut end = end(100);
        assert!(end.claim(Lsn(100)));
        assert!(!end.claim(Lsn(101)));
        let answer = end.learn(at(120), Lsn(101), Lsn(101), Instant::now());
        assert_eq!((answer.verdict, answer.claimed), (Verdict::Within, Lsn(101)));
        assert!(end.claim(Lsn(120)) && !end.claim(Lsn(121)));
    }

    #[test]
    fn a_keepalive_that_the_server_does_not_stand_by_is_told_with_both_positions() {
        let mut end = end(100);
        assert!(!end.claim(Lsn(u64::MAX)));
        let answer = end.learn(at(120), Lsn(u64::MAX), Lsn(u64::MAX), Instant::now());
        let beyond = Verdict::Beyond { reached: Lsn(u64::MAX), end: Lsn(120), in_recovery: false };
        assert_eq!((answer.verdict, answer.claimed), (beyond, Lsn::ZERO), "it is not believed");
    }

    #[test]
    fn a_server_that_says_nothing_leaves_it_open_and_one_that_hides_its_end_is_not_held_to_it() {
        let mut end = end(100);
        assert!(!end.claim(Lsn(128)));
        let answer = end.learn(Said::Nothing, Lsn(128), Lsn(128), Instant::now());
        assert_eq!((answer.verdict, answer.claimed, end.known()), (Verdict::Open, Lsn::ZERO, Some(Lsn(100))));
        let answer = end.learn(Said::Hidden, Lsn(128), Lsn(128), Instant::now());
        assert_eq!((answer.verdict, answer.claimed, end.known()), (Verdict::Open, Lsn::ZERO, None));
        assert!(end.claim(Lsn(129)));
    }

    #[test]
    fn a_claim_of_after_the_question_waits_for_the_next() {
        let mut end = end(100);
        assert!(!end.claim(Lsn(101)));
        assert!(!end.claim(Lsn(130)));
        let answer = end.learn(at(120), Lsn(101), Lsn(101), Instant::now());
        assert_eq!((answer.verdict, answer.claimed), (Verdict::Within, Lsn(101)));
        assert_eq!(end.claimed, Lsn(130));
    }

    #[test]
    fn what_is_confirmed_stays_within_and_changes_may_be_ahead_by_a_segment() {
        let end = end(100);
        assert_eq!((end.bound(Lsn(99)), end.bound(Lsn(101))), (Lsn(99), Lsn(100)));
        assert!(!end.is_far_behind(Lsn(100 + AHEAD_MAX), false));
        assert!(end.is_far_behind(Lsn(101 + AHEAD_MAX), false));
        assert!(!end.is_far_behind(Lsn(100), true) && end.is_far_behind(Lsn(101), true));
        let hidden = End::new(Said::Hidden, Instant::now());
        assert_eq!(hidden.bound(Lsn(101)), Lsn(101));
        assert!(!hidden.is_far_behind(Lsn(u64::MAX), true));
    }
}

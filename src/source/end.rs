//! The end of the server's WAL, as the server says when it is asked over SQL: nothing that was read may lie beyond it.
//!
//! What the stream says of positions is believed only as far as this goes: a keepalive that is beyond is held back until the
//! server was asked, what is confirmed to the slot never passes it, and changes may be ahead of the last answer by
//! [`AHEAD_MAX`], so that a trickle does not wait for a question. Where the role may not ask, the stream is all there is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::slot::unseen::{self, Question};
use super::slot::{Passing, PrepareError};
use crate::change::Lsn;

/// How often the server is asked at least.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// The same while the stream is silent: whether SQL answers tells what is wrong.
const ASK_EVERY_IN_SILENCE: Duration = Duration::from_secs(1);
/// How far changes may be ahead of the server's last answer before it is asked again, and the stream waits: a WAL segment.
const AHEAD_MAX: u64 = 16 << 20;

const DOING: &str = "ask for the end of the WAL";

/// A position beyond the server's end is asked for once more before it counts: right after a switch to another WAL file the stream
/// may be at the file's end a moment before the server says so.
const SURE_AFTER: Duration = Duration::from_secs(1);

/// Written on a primary, replayed on a standby: a walsender sends nothing beyond.
const END: &str = "case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end";

/// The end now; `None` where the role may not ask.
///
/// # Errors
/// When the server cannot be asked.
pub(super) async fn ask(client: &Client) -> Result<Option<Lsn>, PrepareError> {
    let question = Question::new("the end of the WAL", END, "whether the server has all that was read");
    let mut answers = unseen::ask(client, DOING, &[question]).await?;
    match (answers.text().and_then(|text| text.parse().ok()), answers.unseen.first()) {
        (Some(end), _) => Ok(Some(end)),
        (None, Some(unseen)) if unseen.is_refused => Ok(None),
        (None, _) => Err(Passing::Answer { doing: DOING }.into()),
    }
}

/// What the last answer leaves open of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// They were there when the server was asked.
    Within,
    /// Not all of them, or there was no answer; it is asked again soon.
    Open,
    /// They are not: all of the first, the server's end is the second.
    Beyond(Lsn, Lsn),
}

/// See the module.
#[derive(Debug)]
pub(super) struct End {
    /// The last answer; `None`: the role may not ask.
    known: Option<Lsn>,
    answered_at: Instant,
    /// The first question since then.
    waits_since: Option<Instant>,
    question: Option<Asked>,
    /// Since when the server has not been where it should.
    doubted_since: Option<Instant>,
    /// A keepalive beyond what is known.
    claimed: Lsn,
}

/// A question that is open.
#[derive(Debug)]
struct Asked {
    /// All that was read or claimed when it was asked lies before this.
    reached: Lsn,
    /// What keepalives had claimed.
    claimed: Lsn,
    answer: JoinHandle<Result<Option<Lsn>, PrepareError>>,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) verdict: Verdict,
    /// What keepalives had claimed, and is true now.
    pub(super) claimed: Lsn,
}

impl End {
    /// Of a session that begins with the server at `known`.
    pub(super) fn new(known: Option<Lsn>, now: Instant) -> Self {
        Self { known, answered_at: now, waits_since: None, question: None, doubted_since: None, claimed: Lsn::ZERO }
    }

    /// The server's end as it last said.
    pub(super) fn known(&self) -> Option<Lsn> {
        self.known
    }

    /// `at`, but not beyond the server's end.
    pub(super) fn bound(&self, at: Lsn) -> Lsn {
        self.known.map_or(at, |known| at.min(known))
    }

    /// Takes a keepalive's word; whether it may be believed at once.
    pub(super) fn claim(&mut self, server_end: Lsn) -> bool {
        let is_within = self.known.is_none_or(|known| server_end <= known);
        if !is_within {
            self.claimed = self.claimed.max(server_end);
        }
        is_within
    }

    /// Whether what was read up to `seen` is so far ahead of the last answer that the stream waits for the next: before a
    /// change counts as known, it must not be ahead at all.
    pub(super) fn is_far_behind(&self, seen: Lsn, has_skipped: bool) -> bool {
        let ahead_max = if has_skipped { 0 } else { AHEAD_MAX };
        self.known.is_some_and(|known| seen.bytes_since(known) > ahead_max)
    }

    /// As [`Self::ask`], more often while the stream is silent.
    pub(super) fn ask_on_tick(&mut self, client: &Arc<Client>, seen: Lsn, is_silent: bool) {
        let now = Instant::now();
        if is_silent && now.duration_since(self.answered_at) >= ASK_EVERY_IN_SILENCE {
            self.ask_now(client, seen.max(self.claimed), now);
        } else {
            self.ask(client, seen, now);
        }
    }

    /// Asks, unless a question is open: when there is something beyond the last answer, or that is old.
    pub(super) fn ask(&mut self, client: &Arc<Client>, seen: Lsn, now: Instant) {
        let reached = seen.max(self.claimed);
        let beyond = self.known.is_some_and(|known| reached > known);
        let doubted = self.doubted_since.is_some() && now.duration_since(self.answered_at) < SURE_AFTER / 4;
        let is_due = (beyond && !doubted) || now.duration_since(self.answered_at) >= ASK_EVERY;
        if is_due {
            self.ask_now(client, reached, now);
        }
    }

    fn ask_now(&mut self, client: &Arc<Client>, reached: Lsn, now: Instant) {
        if self.question.is_some() {
            return;
        }
        let client = Arc::clone(client);
        let answer = tokio::spawn(async move { ask(&client).await });
        self.waits_since = self.waits_since.or(Some(now));
        self.question = Some(Asked { reached, claimed: self.claimed, answer });
    }

    /// For how long the server has not answered.
    pub(super) fn silence(&self, now: Instant) -> Duration {
        self.waits_since.map_or(Duration::ZERO, |since| now.duration_since(since))
    }

    /// The answer to the open question; waits for ever without one. May be given up at any await.
    ///
    /// # Errors
    /// When the server could not be asked.
    pub(super) async fn answer(&mut self) -> Result<Answer, PrepareError> {
        let Some(asked) = &mut self.question else { return std::future::pending().await };
        let answer = (&mut asked.answer).await;
        let (reached, claimed) = (asked.reached, asked.claimed);
        self.question = None;
        match answer {
            Ok(Ok(known)) => Ok(self.learn(known, reached, claimed, Instant::now())),
            // A server that is silent is asked again, and so is one whose answer was lost with its task.
            Ok(Err(PrepareError::Passing(Passing::Timeout { .. }))) | Err(_) => {
                Ok(Answer { verdict: Verdict::Open, claimed: Lsn::ZERO })
            }
            Ok(Err(error)) => Err(error),
        }
    }

    /// The answer to a question that is open, if one is.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub(super) async fn open_answer(&mut self) -> Result<(), PrepareError> {
        if self.question.is_none() { Ok(()) } else { self.answer().await.map(drop) }
    }

    fn learn(&mut self, known: Option<Lsn>, reached: Lsn, claimed: Lsn, now: Instant) -> Answer {
        self.answered_at = now;
        self.waits_since = None;
        self.known = known;
        if let Some(end) = known.filter(|end| reached > *end) {
            let since = *self.doubted_since.get_or_insert(now);
            let is_sure = now.duration_since(since) >= SURE_AFTER;
            let verdict = if is_sure { Verdict::Beyond(reached, end) } else { Verdict::Open };
            return Answer { verdict, claimed: Lsn::ZERO };
        }
        self.doubted_since = None;
        if self.claimed <= claimed {
            self.claimed = Lsn::ZERO;
        }
        Answer { verdict: Verdict::Within, claimed }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(asked) = &self.question {
            asked.answer.abort();
        }
    }
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;

    fn end(known: u64) -> End {
        End::new(Some(Lsn(known)), Instant::now())
    }

    #[test]
    fn a_keepalive_beyond_the_last_answer_is_held_back_until_the_server_has_been_asked() {
        let mut end = end(100);
        assert!(end.claim(Lsn(100)));
        assert!(!end.claim(Lsn(101)));
        let answer = end.learn(Some(Lsn(120)), Lsn(101), Lsn(101), Instant::now());
        assert_eq!((answer.verdict, answer.claimed), (Verdict::Within, Lsn(101)));
        assert!(end.claim(Lsn(120)) && !end.claim(Lsn(121)));
    }

    #[test]
    fn a_keepalive_that_the_server_does_not_stand_by_is_told_with_both_positions() {
        let mut end = end(100);
        assert!(!end.claim(Lsn(u64::MAX)));
        let start = Instant::now();
        let answer = end.learn(Some(Lsn(120)), Lsn(u64::MAX), Lsn(u64::MAX), start);
        assert_eq!((answer.verdict, answer.claimed), (Verdict::Open, Lsn::ZERO), "it is not believed meanwhile");
        let answer = end.learn(Some(Lsn(130)), Lsn(u64::MAX), Lsn(u64::MAX), start + SURE_AFTER);
        assert_eq!(answer.verdict, Verdict::Beyond(Lsn(u64::MAX), Lsn(130)));
    }

    #[test]
    fn a_server_that_is_there_a_moment_later_was_only_slow_to_say_so() {
        let (mut end, start) = (end(100), Instant::now());
        assert!(!end.claim(Lsn(128)));
        assert_eq!(end.learn(Some(Lsn(120)), Lsn(128), Lsn(128), start).verdict, Verdict::Open);
        let answer = end.learn(Some(Lsn(128)), Lsn(128), Lsn(128), start + SURE_AFTER / 2);
        assert_eq!((answer.verdict, answer.claimed), (Verdict::Within, Lsn(128)));
        let later = start + SURE_AFTER * 3;
        assert_eq!(end.learn(Some(Lsn(130)), Lsn(140), Lsn(140), later).verdict, Verdict::Open, "it begins anew");
    }

    #[test]
    fn a_claim_of_after_the_question_waits_for_the_next() {
        let mut end = end(100);
        assert!(!end.claim(Lsn(101)));
        assert!(!end.claim(Lsn(130)));
        let answer = end.learn(Some(Lsn(120)), Lsn(101), Lsn(101), Instant::now());
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
        let hidden = End::new(None, Instant::now());
        assert_eq!(hidden.bound(Lsn(101)), Lsn(101));
        assert!(!hidden.is_far_behind(Lsn(u64::MAX), true));
    }
}

//! A slot that is lost, and what follows with `on_slot_lost = "recreate"`: another slot, and a gap that is marked.
//!
//! The order makes a crash at any point leave a gap that the next start finds: first the store notes that a gap is
//! accepted, then the lost slot is dropped and another made, then the gap is noted with both ends, and only when every sink
//! has resolved what was read before it, so that the store is past the gap too, is the acceptance taken back.

use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt as _;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use super::Source;
use super::problem::Problem;
use super::slot::{LostSlot, Prepared};
use super::standing::Step;
use crate::change::Lsn;
use crate::config::OnSlotLost;
use crate::fault::chain;
use crate::store::{AcceptedBy, Gap, NewBinding, Store, StoreError};
use crate::view::Trouble;

/// Slots that are made anew within [`PERIOD`] at most.
const RECREATIONS_MAX: usize = 3;
const PERIOD: Duration = Duration::from_secs(3600);
/// Gaps that are shown at most.
const SHOWN_MAX: usize = 10;
/// How long after a failure the store is asked again to take back an acceptance.
const STORE_AGAIN: Duration = Duration::from_secs(5);

impl Source {
    /// Whether the problem is a lost slot that may be replaced; the problem that is left, if not.
    pub(super) async fn replace_lost(&mut self, problem: Problem) -> Result<(), Problem> {
        let Problem::Lost(lost) = problem else { return Err(problem) };
        let (name, slot) = (self.config.name.clone(), &self.config.slot);
        if self.config.on_slot_lost == OnSlotLost::Stop {
            return Err(Problem::Lost(lost));
        }
        let of = name.clone();
        let gaps = self.ask_store(move |store| store.gaps(&of)).await?;
        let since = now_micros().saturating_sub(i64::try_from(PERIOD.as_micros()).unwrap_or(i64::MAX));
        if gaps.iter().filter(|gap| gap.at_micros > since && gap.why != ACCEPTED).count() >= RECREATIONS_MAX {
            return Err(too_often(&lost));
        }
        // A question that was asked before is not to take this back.
        self.taking_back.settle().await;
        let of = name.clone();
        self.ask_store(move |store| store.accept_gap(&of, Some(AcceptedBy::Setting))).await?;
        self.accepted_by = Some(AcceptedBy::Setting);
        warn!(source = name, slot, why = lost.why, "slot lost, another is made: {}", lost.trouble.what);
        self.lost = Some(*lost);
        Ok(())
    }

    /// Marks the gap before the slot that was made ready, if there is one: in the store, the log, the metrics and the view.
    pub(super) async fn mark_gap(&mut self, step: &Step, prepared: &Prepared) -> Result<(), Problem> {
        let to = prepared.confirmed;
        if !prepared.created && self.lost.is_some() && self.reaches(to) {
            return self.take_loss_back().await;
        }
        let (why, from) = match (&self.lost, step) {
            (Some(lost), _) if self.has_streamed => (lost.why.clone(), Some(self.intake.received())),
            (Some(lost), _) => (lost.why.clone(), self.lost_from.or(lost.confirmed)),
            (None, Step::AcceptGap) if self.lost_from.is_some_and(|from| from >= to) => return Ok(()),
            (None, Step::AcceptGap) => (self.why_accepted().to_owned(), self.lost_from),
            (None, _) => return Ok(()),
        };
        let from = from.map(|from| from.min(to));
        let gap = Gap { from, to, at_micros: now_micros(), why };
        let (name, noted) = (self.config.name.clone(), gap.clone());
        self.ask_store(move |store| store.note_gap(&name, &noted)).await?;
        self.show_gap(&gap);
        if self.lost.take().is_some() && self.has_streamed {
            self.past_gap = to;
            self.accepted_until = Some(to);
        }
        Ok(())
    }

    /// Whether a slot that goes on at `at` misses nothing.
    fn reaches(&self, at: Lsn) -> bool {
        let until = match self.has_streamed {
            true => Some(self.confirmed),
            false => self.lost_from.or(self.lost.as_ref().and_then(|lost| lost.confirmed)),
        };
        until.is_some_and(|until| at <= until)
    }

    /// The slot was not lost after all, as when it was looked for where it is not.
    async fn take_loss_back(&mut self) -> Result<(), Problem> {
        info!(source = %self.config.name, slot = %self.config.slot, "the slot is there and misses nothing: it goes on with it");
        // What an earlier gap still needs is taken back behind that one, and before the first stream with the binding.
        if self.has_streamed && self.accepted_until.is_none() {
            let name = self.config.name.clone();
            self.ask_store(move |store| store.accept_gap(&name, None)).await?;
        }
        self.lost = None;
        Ok(())
    }

    /// An acceptance that was found in the store: a person's, or our own before a crash.
    fn why_accepted(&self) -> &'static str {
        match self.accepted_by {
            Some(AcceptedBy::Person) | None => ACCEPTED,
            Some(AcceptedBy::Setting) => "lost",
        }
    }

    fn show_gap(&self, gap: &Gap) {
        let (source, slot, why, bytes) = (&self.config.name, &self.config.slot, &gap.why, gap.bytes());
        self.metrics.gaps.increment(1);
        self.metrics.gap_bytes.increment(bytes);
        let from = gap.from.map_or_else(|| "an unknown position".to_owned(), |from| from.to_string());
        let to = gap.to;
        if gap.why == ACCEPTED {
            warn!(source, slot, from, %to, bytes, "a gap was accepted: changes between these positions are not delivered");
            return;
        }
        error!(source, slot, from, %to, bytes, why, "changes between these positions are lost with the slot; another was made");
        let what = format!(
            "the slot {slot} was lost ({why}) and made anew: changes from {from} to {to} ({bytes} bytes of WAL) were never read"
        );
        let advice = "compare the receivers' data with the tables; `walhook state` lists the gap, and this line goes with \
                      the next start";
        if let Some(mut view) = self.views.sources.get_mut(source) {
            let surplus = (view.gaps.len() + 1).saturating_sub(SHOWN_MAX);
            view.gaps.drain(..surplus);
            view.gaps.push(Trouble { what, advice: advice.to_owned() });
        }
    }

    /// Takes the acceptance back once the sinks have resolved all that was read before the gap. Waits for nothing: statuses
    /// go out whether or not the store answers.
    pub(super) fn leave_gap_behind(&mut self) {
        let name = &self.config.name;
        match self.taking_back.answer() {
            Some(Ok(from)) => {
                info!(source = %name, %from, "all that was read before the gap is resolved");
                self.accepted_until = self.accepted_until.filter(|until| *until > from);
            }
            Some(Err(error)) => warn!(source = %name, error = %chain(&error), "a gap is still accepted"),
            None => {}
        }
        let Some(from) = self.accepted_until.filter(|to| self.resolved().is_some_and(|resolved| resolved >= *to))
        else {
            return;
        };
        let Some(identity) = &self.known else { return };
        let binding = NewBinding {
            name: self.config.name.clone(),
            system_id: identity.system_id,
            timeline: identity.timeline,
            database: identity.dbname.clone(),
            slot: self.config.slot.clone(),
            from: Some(from),
        };
        self.taking_back.ask(&self.store, binding, from);
    }

    /// Everything before is confirmed to the slot of old or lost with it, whatever the sinks still have.
    pub(super) fn at_least_past_gap(&self, resolved: Lsn) -> Lsn {
        resolved.max(self.past_gap)
    }
}

/// The one question to the store that takes an acceptance back.
#[derive(Debug, Default)]
pub(super) struct TakingBack {
    asked: Option<(Lsn, JoinHandle<Result<(), StoreError>>)>,
    /// After one that failed.
    not_before: Option<Instant>,
    /// A failure is said once, until one succeeds.
    has_failed: bool,
}

impl TakingBack {
    /// Asks, unless a question is open or one failed a moment ago.
    fn ask(&mut self, store: &Store, binding: NewBinding, from: Lsn) {
        if self.asked.is_some() || self.not_before.is_some_and(|time| Instant::now() < time) {
            return;
        }
        let store = store.clone();
        self.asked = Some((from, tokio::task::spawn_blocking(move || store.bind(&binding))));
    }

    /// The answer, if it has come: until where, or a failure that is worth a word.
    fn answer(&mut self) -> Option<Result<Lsn, StoreError>> {
        let (from, asked) = self.asked.take_if(|(_, asked)| asked.is_finished())?;
        // What is finished is there at once; a question that was lost is asked again.
        let done = asked.now_or_never()?.ok()?;
        let has_failed = std::mem::replace(&mut self.has_failed, done.is_err());
        match done {
            Ok(()) => Some(Ok(from)),
            Err(error) => {
                self.not_before = Some(Instant::now() + STORE_AGAIN);
                (!has_failed).then_some(Err(error))
            }
        }
    }

    /// Waits until no question is open.
    async fn settle(&mut self) {
        if let Some((_, asked)) = self.asked.take() {
            drop(asked.await);
        }
    }
}

/// Why a gap was passed over that a person has accepted.
const ACCEPTED: &str = "accepted";

fn too_often(lost: &LostSlot) -> Problem {
    let Trouble { what, advice } = &lost.trouble;
    let what = format!("{what}; it was made anew {RECREATIONS_MAX} times within an hour, and is not once more");
    Problem::lasting(what, format!("find out why it is lost so often. {advice}"))
}

fn now_micros() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

//! How a source stands to its slot, its store and its server, and what follows: pure.
//!
//! One decision for the first start, for each reconnect and for `walhook check`. The slot is confirmed only up to what the store
//! has, so a slot that is behind the store is ordinary: what comes again is known. One that is missing or ahead of the store has
//! lost changes, and nothing is lost in silence: a person accepts the gap by a named command, or mends it. A store of another
//! database or slot is not touched. And nothing that was read lies beyond the server's own end: a server that went back would
//! have its new changes taken for known ones, and skipped.

use std::path::Path;

use crate::change::Lsn;
use crate::store::{AcceptedBy, SourceBinding, WentBack};
use crate::view::Trouble;

/// What is known on this side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing<'a> {
    /// What was read before.
    pub(crate) life: Life<'a>,
    /// The last session of this life was with a standby.
    pub(crate) on_standby: bool,
}

/// What a source has behind it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Life<'a> {
    /// It has not streamed in this life; what the store knows of the lives before, if anything.
    First(Option<&'a SourceBinding>),
    /// It has streamed.
    Streamed(Streamed),
}

/// A source that has streamed in this life.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streamed {
    /// The cluster that was read.
    pub(crate) system_id: u64,
    /// All that was read lies before this.
    pub(crate) seen: Lsn,
    /// The farthest LSN that was confirmed to the slot.
    pub(crate) confirmed: Lsn,
    /// The slot is lost, and it is decided that another takes its place.
    pub(crate) replaces_slot: bool,
}

/// What was found in the database.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    /// The source's name.
    pub(crate) source: &'a str,
    /// `state.path`.
    pub(crate) store: &'a Path,
    pub(crate) system_id: u64,
    pub(crate) database: &'a str,
    /// End of the server's log, as the server says when it is asked, not as its stream says.
    pub(crate) server_end: Lsn,
    /// The server is a standby.
    pub(crate) in_recovery: bool,
    /// If the server's timeline is another than the one that was read: how they are related.
    pub(crate) promotion: Option<Promotion>,
    /// The slot's name in the configuration.
    pub(crate) slot: &'a str,
    /// The slot.
    pub(crate) found: SlotFound,
}

/// The slot, as far as it decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotFound {
    /// It was not looked at yet.
    Unknown,
    /// There is none, or none that was ever complete, or the server has given it up.
    Missing,
    /// Everything before is confirmed to it.
    At(Lsn),
}

/// A server that is on another timeline than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Promotion {
    /// The timeline of before.
    pub(crate) before: u32,
    /// The server's.
    pub(crate) now: u32,
    /// Where the server's history left the one of before; `None`: that is not part of it.
    pub(crate) left: Option<Lsn>,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The store knows nothing of the source, which begins with the slot as it is or will be made.
    Begin {
        /// The slot existed already: an earlier store may hold failed deliveries that this one does not know.
        slot_existed: bool,
    },
    /// It goes on.
    GoOn,
    /// Changes are lost, and that is accepted: it goes on from the slot's position.
    AcceptGap,
    /// The slot is not there, and changes are lost with it; nothing may be read before that is accepted.
    Lost(Trouble),
    /// The server is a standby, which is not where the source reads, or not yet where it was: wait for another.
    Wait(&'static str),
    /// The server is not where it should be: nothing is read before a person has acted, wherever it is later.
    WentBack(WentBack),
    /// Nothing may be read before a person has acted.
    Stop(Trouble),
}

/// What a standby without the slot means: as a rule that the address leads there for a moment only.
const NO_SLOT_HERE: &str = "the slot of this source is not there, which says nothing about the primary's: waiting for the \
                            primary. If the source is read from this standby, and the slot is gone, `walhook state accept-gap` \
                            makes another";
/// What it has of slots says nothing.
const NOT_THE_PRIMARY: &str = "changes were read from the primary: waiting for it, or for a promotion";
/// One that was started anew takes connections before it is where it was.
const NOT_REPLAYED: &str = "it has not replayed yet what was read before: waiting until it has";

/// See the module.
pub(crate) fn decide(standing: &Standing<'_>, facts: &Facts<'_>) -> Step {
    match standing.life {
        Life::First(None) => Step::Begin { slot_existed: matches!(facts.found, SlotFound::At(_)) },
        Life::First(Some(bound)) => first(bound, standing.on_standby, facts),
        Life::Streamed(life) => again(life, standing.on_standby, facts),
    }
}

/// A start with a store of an earlier life.
fn first(bound: &SourceBinding, on_standby: bool, facts: &Facts<'_>) -> Step {
    if let Some(trouble) = other_database(bound, facts) {
        return Step::Stop(trouble);
    }
    // One that has written on since would be taken for the one that was read.
    if let Some(noted) = bound.went_back {
        return Step::WentBack(noted);
    }
    let seen = bound.seen.unwrap_or(Lsn::ZERO);
    if let Some(trouble) = facts.promotion.and_then(|promotion| promoted_without(promotion, seen)) {
        return Step::Stop(trouble);
    }
    if seen > facts.server_end {
        return not_there(seen, facts.server_end, facts.in_recovery);
    }
    // A standby that the address leads to for a moment does not decide that changes are given up.
    let waits = facts.in_recovery && !on_standby && facts.found == SlotFound::Missing;
    match bound.gap_accepted {
        Some(AcceptedBy::Setting) if waits => return Step::Wait(NO_SLOT_HERE),
        Some(AcceptedBy::Setting | AcceptedBy::Person) => return Step::AcceptGap,
        None if bound.slot != facts.slot => return Step::Stop(other_slot(bound, facts)),
        None => {}
    }
    // A source of which nothing was ever confirmed can miss nothing.
    let known = progress(bound);
    match (facts.found, known) {
        (SlotFound::At(slot), _) => at_slot(slot, known, facts),
        (SlotFound::Unknown, _) | (SlotFound::Missing, None) => Step::GoOn,
        (SlotFound::Missing, Some(_)) if waits => Step::Wait(NO_SLOT_HERE),
        (SlotFound::Missing, Some(known)) => Step::Lost(gap(facts.source, facts.slot, known, None)),
    }
}

/// A session after others of this life.
fn again(life: Streamed, on_standby: bool, facts: &Facts<'_>) -> Step {
    if life.system_id != facts.system_id {
        return Step::Stop(moved(life.system_id, facts.system_id));
    }
    let seen = life.seen.max(life.confirmed);
    if let Some(trouble) = facts.promotion.and_then(|promotion| promoted_without(promotion, seen)) {
        return Step::Stop(trouble);
    }
    if facts.in_recovery && !on_standby {
        return Step::Wait(NOT_THE_PRIMARY);
    }
    if seen > facts.server_end {
        return not_there(seen, facts.server_end, facts.in_recovery);
    }
    match facts.found {
        _ if life.replaces_slot => Step::GoOn,
        SlotFound::Unknown => Step::GoOn,
        SlotFound::At(slot) => at_slot(slot, Some(life.confirmed), facts),
        SlotFound::Missing => Step::Lost(gap(facts.source, facts.slot, life.confirmed, None)),
    }
}

/// What follows where changes up to `seen` were read, and the server's end lies before.
pub(crate) fn not_there(seen: Lsn, end: Lsn, in_recovery: bool) -> Step {
    if in_recovery { Step::Wait(NOT_REPLAYED) } else { Step::WentBack(WentBack { seen, end }) }
}

/// What follows where the slot is at `at`, which is confirmed no farther than to `known`, if that is known.
fn at_slot(at: Lsn, known: Option<Lsn>, facts: &Facts<'_>) -> Step {
    if let Some(known) = known.filter(|known| at > *known) {
        return Step::Stop(gap(facts.source, facts.slot, known, Some(at)));
    }
    match at > facts.server_end {
        true => not_there(at, facts.server_end, facts.in_recovery),
        false => Step::GoOn,
    }
}

/// Where the slot may be at most, if it was ever confirmed.
pub(crate) fn progress(bound: &SourceBinding) -> Option<Lsn> {
    bound.confirmed.filter(|lsn| *lsn > Lsn::ZERO)
}

/// Changes from `known` on are lost, to `slot` if there is a slot that goes on there.
pub(crate) fn gap(source: &str, slot_name: &str, known: Lsn, slot: Option<Lsn>) -> Trouble {
    let what = match slot {
        Some(slot) => format!(
            "the slot {slot_name} goes on at {slot}, but changes from {known} on are not delivered yet: it was made anew or \
             moved, and the changes from {known} to {slot} cannot be read from it"
        ),
        None => format!(
            "the slot {slot_name} is gone: changes from {known} on are not delivered yet, and cannot be read any more"
        ),
    };
    Trouble { what, advice: accept_gap(source) }
}

/// What a person does who cannot get lost changes back.
pub(crate) fn accept_gap(source: &str) -> String {
    format!(
        "find out who dropped, made or moved the slot. To go on without these changes, stop walhook, run `walhook state \
         accept-gap {source}` and start it again: it goes on from the slot's position, making a slot if there is none. Then \
         compare the receivers' data with the tables"
    )
}

fn other_database(bound: &SourceBinding, facts: &Facts<'_>) -> Option<Trouble> {
    let path = facts.store.display();
    let (theirs, ours) = if bound.system_id != facts.system_id {
        (format!("cluster {}", bound.system_id), format!("cluster {}", facts.system_id))
    } else if bound.database != facts.database {
        (format!("database {}", bound.database), format!("database {}", facts.database))
    } else {
        return None;
    };
    Some(Trouble {
        what: format!(
            "the store in {path} belongs to {theirs} for source {}, but its url leads to {ours}",
            facts.source
        ),
        advice: format!(
            "point the source's url back, or point state.path to another directory to begin with {ours} there; what the store \
             in {path} holds stays in it until walhook runs with it again"
        ),
    })
}

/// A server that was restored from a backup, or promoted without all that was read from the one before, or that says more on
/// its stream than when it is asked.
pub(crate) fn beyond(source: &str, WentBack { seen, end }: WentBack) -> Trouble {
    Trouble {
        what: format!(
            "the server's log ends at {end}, but changes of source {source} up to {seen} were read: some of them never happened \
             there, as after a restore or the promotion of a standby that lacked them"
        ),
        advice: format!(
            "to begin with this server as it is, stop walhook, point state.path to another directory and start it again, and compare \
             the receivers' data with the tables. If the source's url led elsewhere and leads to the server with all changes again, stop \
             walhook, run `walhook state accept-gap {source}` and start it again"
        ),
    }
}

/// An address that leads elsewhere than before.
fn moved(from: u64, to: u64) -> Trouble {
    Trouble {
        what: format!("the address now leads to another database cluster ({to}, not {from})"),
        advice:
            "point the source's url back to its database; to begin with the new one, stop walhook, point state.path to \
                 another directory and start it again"
                .to_owned(),
    }
}

/// After a promotion, or a restore: what was read, all of it before `seen`, must be part of the history of the server's
/// timeline. What is not never happened there, and what happened there at the same positions would be taken for known.
pub(crate) fn promoted_without(promotion: Promotion, seen: Lsn) -> Option<Trouble> {
    let Promotion { before, now, left } = promotion;
    if left.is_some_and(|left| left >= seen) {
        return None;
    }
    let left = left.map_or_else(|| "an unknown position".to_owned(), |left| left.to_string());
    Some(Trouble {
        what: format!(
            "the database was promoted to timeline {now}, which left timeline {before} at {left}, but changes up to \
             {seen} were read: some of them never happened there"
        ),
        advice: "point the source's url to the server with all changes; to begin with this one as it is, stop walhook, point \
                 state.path to another directory and start it again, and compare the receivers' data with the tables"
            .to_owned(),
    })
}

fn other_slot(bound: &SourceBinding, facts: &Facts<'_>) -> Trouble {
    let (ours, theirs, source) = (facts.slot, &bound.slot, facts.source);
    Trouble {
        what: format!(
            "the store in {} belongs to slot {theirs} for source {source}, but the configuration names {ours}: what was not read \
             from {theirs} is not in {ours}",
            facts.store.display()
        ),
        advice: format!(
            "set slot = {theirs:?} on the source again. To go on with {ours} from its own position, stop walhook, run `walhook \
             state accept-gap {source}` and start it again; {theirs} keeps WAL until its owner drops it, and what was not read from it yet \
             is then lost to walhook"
        ),
    }
}

#[cfg(test)]
mod tests;

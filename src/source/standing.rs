//! How a source stands to its slot, its store and its server, and what follows: pure.
//!
//! One decision for the first start, for each reconnect and for `walhook check`. The slot is confirmed only up to what the store
//! has, so a slot that is behind the store is ordinary: what comes again is known. One that is missing or ahead of the store has
//! lost changes, and nothing is lost in silence: a person accepts the gap by a named command, or mends it. A store of another
//! database or slot is not touched. And nothing that was read lies beyond the server's own end: a server that went back would
//! have its new changes taken for known ones, and skipped.

use std::path::Path;

use crate::change::Lsn;
use crate::store::{AcceptedBy, SourceBinding};
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
    let seen = bound.seen.unwrap_or(Lsn::ZERO);
    if let Some(trouble) = facts.promotion.and_then(|promotion| promoted_without(promotion, seen)) {
        return Step::Stop(trouble);
    }
    if let Some(step) = not_there(seen, facts) {
        return step;
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
    if let Some(step) = not_there(seen, facts) {
        return step;
    }
    match facts.found {
        _ if life.replaces_slot => Step::GoOn,
        SlotFound::Unknown => Step::GoOn,
        SlotFound::At(slot) => at_slot(slot, Some(life.confirmed), facts),
        SlotFound::Missing => Step::Lost(gap(facts.source, facts.slot, life.confirmed, None)),
    }
}

/// What follows where changes up to `seen` were read, and the server does not have all of them.
fn not_there(seen: Lsn, facts: &Facts<'_>) -> Option<Step> {
    match seen > facts.server_end {
        true if facts.in_recovery => Some(Step::Wait(NOT_REPLAYED)),
        true => Some(Step::Stop(beyond(facts.source, seen, facts.server_end))),
        false => None,
    }
}

/// What follows where the slot is at `at`, which is confirmed no farther than to `known`, if that is known.
fn at_slot(at: Lsn, known: Option<Lsn>, facts: &Facts<'_>) -> Step {
    if let Some(known) = known.filter(|known| at > *known) {
        return Step::Stop(gap(facts.source, facts.slot, known, Some(at)));
    }
    match at > facts.server_end {
        true if facts.in_recovery => Step::Wait(NOT_REPLAYED),
        true => Step::Stop(beyond(facts.source, at, facts.server_end)),
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
pub(crate) fn beyond(source: &str, seen: Lsn, end: Lsn) -> Trouble {
    Trouble {
        what: format!(
            "the server's log ends at {end}, but changes of source {source} up to {seen} were read: some of them never happened \
             there, as after a restore or the promotion of a standby that lacked them"
        ),
        advice:
            "point the source's url to the server with all changes; to begin with this one as it is, stop walhook, point \
             state.path to another directory and start it again, and compare the receivers' data with the tables"
                .to_owned(),
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
mod tests {
    use super::*;

    const KNOWN: Lsn = Lsn(0x500);

    fn bound() -> SourceBinding {
        let (database, slot) = ("app".to_owned(), "walhook_app".to_owned());
        let seen = Some(Lsn(0x600));
        SourceBinding {
            system_id: 7,
            timeline: Some(1),
            database,
            slot,
            confirmed: Some(KNOWN),
            seen,
            gap_accepted: None,
        }
    }

    fn found(confirmed: Option<Lsn>) -> Facts<'static> {
        Facts {
            source: "app",
            store: Path::new("walhook-state"),
            system_id: 7,
            database: "app",
            server_end: Lsn(0x9000),
            in_recovery: false,
            promotion: None,
            slot: "walhook_app",
            found: confirmed.map_or(SlotFound::Missing, SlotFound::At),
        }
    }

    fn start(bound: Option<&SourceBinding>, facts: &Facts<'_>) -> Step {
        decide(&Standing { life: Life::First(bound), on_standby: false }, facts)
    }

    fn refused(bound: &SourceBinding, facts: &Facts<'_>) -> Trouble {
        match start(Some(bound), facts) {
            Step::Stop(trouble) | Step::Lost(trouble) => trouble,
            other @ (Step::Begin { .. } | Step::GoOn | Step::AcceptGap | Step::Wait(_)) => {
                panic!("should be refused: {other:?}")
            }
        }
    }

    #[test]
    fn a_slot_at_or_behind_the_store_goes_on() {
        for slot in [Lsn(1), KNOWN] {
            assert_eq!(start(Some(&bound()), &found(Some(slot))), Step::GoOn);
        }
        let nothing_yet = SourceBinding { confirmed: None, ..bound() };
        assert_eq!(start(Some(&nothing_yet), &found(None)), Step::GoOn);
        assert_eq!(start(Some(&nothing_yet), &found(Some(Lsn(0x600)))), Step::GoOn);
    }

    #[test]
    fn a_slot_ahead_of_the_store_or_missing_is_a_gap_with_its_ends_and_the_command() {
        let ahead = refused(&bound(), &found(Some(Lsn(0x501))));
        assert!(ahead.what.contains("from 0/500 to 0/501"), "{}", ahead.what);
        let gone = refused(&bound(), &found(None));
        assert!(gone.what.contains("is gone") && gone.what.contains("0/500"), "{}", gone.what);
        for trouble in [ahead, gone] {
            assert!(trouble.advice.contains("walhook state accept-gap app"), "{}", trouble.advice);
        }
    }

    #[test]
    fn pitfall_62_a_server_whose_end_went_back_behind_what_was_read_is_refused_with_both_positions() {
        for behind in [found(Some(Lsn(0x400))), found(None)] {
            let Trouble { what, advice } = refused(&bound(), &Facts { server_end: Lsn(0x499), ..behind });
            assert!(what.contains("ends at 0/499") && what.contains("up to 0/600 were read"), "{what}");
            assert!(advice.contains("state.path"), "{advice}");
        }
        let at_the_end = Facts { server_end: Lsn(0x600), ..found(Some(KNOWN)) };
        assert_eq!(start(Some(&bound()), &at_the_end), Step::GoOn);
    }

    #[test]
    fn an_accepted_gap_goes_on_with_another_slot_too_but_never_with_another_database() {
        let accepted = SourceBinding { gap_accepted: Some(AcceptedBy::Person), ..bound() };
        for slot in [None, Some(Lsn(0x900))] {
            let other = Facts { slot: "walhook_two", ..found(slot) };
            assert_eq!(start(Some(&accepted), &other), Step::AcceptGap);
        }
        let cluster = refused(&accepted, &Facts { system_id: 8, ..found(Some(KNOWN)) });
        assert!(
            cluster.what.contains("belongs to cluster 7") && cluster.what.contains("cluster 8"),
            "{}",
            cluster.what
        );
        let database = refused(&accepted, &Facts { database: "two", ..found(Some(KNOWN)) });
        assert!(database.what.contains("belongs to database app"), "{}", database.what);
        assert!(database.advice.contains("state.path"), "{}", database.advice);
        let restored = refused(&accepted, &Facts { server_end: Lsn(0x4ff), ..found(None) });
        assert!(restored.what.contains("ends at 0/4FF"), "{}", restored.what);
    }

    #[test]
    fn after_a_promotion_all_that_was_read_must_be_part_of_the_new_history() {
        let promoted = |left| Facts { promotion: Some(Promotion { before: 1, now: 2, left }), ..found(Some(KNOWN)) };
        for kept in [Lsn(0x600), Lsn(0x700)] {
            assert_eq!(start(Some(&bound()), &promoted(Some(kept))), Step::GoOn);
        }
        // Also when every sink had resolved what came before, and when a person has accepted a gap.
        let accepted = SourceBinding { gap_accepted: Some(AcceptedBy::Person), ..bound() };
        for (bound, left) in [(bound(), Some(Lsn(0x5ff))), (bound(), None), (accepted, Some(Lsn(0x400)))] {
            let trouble = refused(&bound, &promoted(left));
            assert!(trouble.what.contains("timeline 2") && trouble.what.contains("0/600"), "{}", trouble.what);
            assert!(trouble.advice.contains("state.path"), "{}", trouble.advice);
        }
        let nothing_read = SourceBinding { confirmed: None, seen: None, ..bound() };
        assert_eq!(start(Some(&nothing_read), &promoted(Some(Lsn(1)))), Step::GoOn);
    }

    #[test]
    fn another_slot_is_refused_with_both_names() {
        let trouble = refused(&bound(), &Facts { slot: "walhook_two", ..found(Some(KNOWN)) });
        assert!(trouble.what.contains("slot walhook_app") && trouble.what.contains("walhook_two"), "{}", trouble.what);
        assert!(trouble.advice.contains("accept-gap app"), "{}", trouble.advice);
    }

    #[test]
    fn a_store_that_knows_nothing_begins_and_says_so_beside_a_slot_that_was_there() {
        assert_eq!(start(None, &found(None)), Step::Begin { slot_existed: false });
        assert_eq!(start(None, &found(Some(KNOWN))), Step::Begin { slot_existed: true });
    }

    /// Every combination of what can be found, with what is known on this side.
    fn every(mut judge: impl FnMut(&Standing<'_>, &Facts<'_>)) {
        let both = [false, true];
        let mut lives: Vec<Option<SourceBinding>> = vec![None];
        for gap_accepted in [None, Some(AcceptedBy::Person), Some(AcceptedBy::Setting)] {
            for (confirmed, seen) in [(Some(KNOWN), Some(Lsn(0x600))), (None, Some(Lsn(0x600))), (None, None)] {
                lives.push(Some(SourceBinding { confirmed, seen, gap_accepted, ..bound() }));
            }
        }
        let found_at = [SlotFound::Unknown, SlotFound::Missing, SlotFound::At(Lsn(0x400)), SlotFound::At(Lsn(0x501))];
        let left = [Some(Lsn(0x5ff)), Some(Lsn(0x600)), None].map(|left| Some(Promotion { before: 1, now: 2, left }));
        let promotions = [None].into_iter().chain(left);
        for (on_standby, in_recovery) in both.into_iter().flat_map(|a| both.map(|b| (a, b))) {
            for (promotion, found_here) in promotions.clone().flat_map(|a| found_at.map(|b| (a, b))) {
                for (server_end, system_id) in [Lsn(0x4ff), Lsn(0x600)].into_iter().flat_map(|a| [7, 8].map(|b| (a, b)))
                {
                    for (database, slot) in
                        ["app", "two"].into_iter().flat_map(|a| ["walhook_app", "walhook_two"].map(|b| (a, b)))
                    {
                        let facts = Facts {
                            system_id,
                            database,
                            server_end,
                            in_recovery,
                            promotion,
                            slot,
                            found: found_here,
                            ..found(None)
                        };
                        for bound in &lives {
                            judge(&Standing { life: Life::First(bound.as_ref()), on_standby }, &facts);
                        }
                        for replaces_slot in both {
                            let life = Streamed { system_id: 7, seen: Lsn(0x600), confirmed: KNOWN, replaces_slot };
                            judge(&Standing { life: Life::Streamed(life), on_standby }, &facts);
                        }
                    }
                }
            }
        }
    }

    /// What is known of the life before: cluster, all that was read, what is confirmed, whether a gap is accepted.
    fn known(standing: &Standing<'_>) -> Option<(u64, Lsn, Option<Lsn>, bool)> {
        match standing.life {
            Life::First(None) => None,
            Life::First(Some(bound)) => {
                let seen = bound.seen.unwrap_or(Lsn::ZERO);
                Some((bound.system_id, seen, bound.confirmed, bound.gap_accepted.is_some()))
            }
            Life::Streamed(life) => Some((life.system_id, life.seen, Some(life.confirmed), life.replaces_slot)),
        }
    }

    #[test]
    fn over_all_facts_nothing_is_read_where_something_would_be_lost_or_taken_for_known() {
        let mut cases = 0;
        every(|standing, facts| {
            cases += 1;
            let step = decide(standing, facts);
            let context = format!("{standing:?} {facts:?}: {step:?}");
            let Some((system_id, seen, confirmed, accepted)) = known(standing) else {
                let slot_existed = matches!(facts.found, SlotFound::At(_));
                assert_eq!(step, Step::Begin { slot_existed }, "{context}");
                return;
            };
            let reads = matches!(step, Step::GoOn | Step::AcceptGap);
            assert!(!matches!(step, Step::Begin { .. }), "what the store knows is forgotten: {context}");
            // What forbids reading, whatever a person has accepted.
            let elsewhere = system_id != facts.system_id;
            let went_back = seen > facts.server_end;
            let lost_history = facts.promotion.is_some_and(|promotion| promotion.left.is_none_or(|left| left < seen));
            if elsewhere || went_back || lost_history {
                assert!(!reads, "{context}");
                assert!(!matches!(step, Step::Lost(_)), "a gap is no way out of it: {context}");
            }
            // A missing slot, or one that is ahead, is passed over only where that is accepted.
            let ahead = matches!((facts.found, confirmed), (SlotFound::At(slot), Some(known)) if slot > known);
            let gone = facts.found == SlotFound::Missing && confirmed.is_some();
            if (ahead || gone) && !accepted {
                assert!(!reads, "{context}");
            }
            let waits_for_nothing = matches!(step, Step::Wait(_)) && !facts.in_recovery;
            assert!(!waits_for_nothing, "only a standby is waited for: {context}");
            // And the other way round: where nothing is wrong, it goes on.
            let streams_here = matches!(standing.life, Life::First(_)) || !facts.in_recovery || standing.on_standby;
            let same = !elsewhere && facts.database == "app" && facts.slot == "walhook_app";
            let beyond = matches!(facts.found, SlotFound::At(slot) if slot > facts.server_end);
            if same && !went_back && !lost_history && !ahead && !gone && !beyond && !accepted && streams_here {
                assert_eq!(step, Step::GoOn, "{context}");
            }
        });
        assert!(cases > 10_000, "{cases}");
    }
}

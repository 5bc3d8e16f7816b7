//! Whether store and slot agree, before anything is read: pure.
//!
//! The slot is confirmed only up to what the store has, so a slot that is behind the store is ordinary: what comes again is
//! known. One that is missing or ahead of the store has lost changes, and nothing is lost in silence: a person accepts
//! the gap by a named command, or mends it. A store of another database or slot is not touched.

use std::path::Path;

use crate::change::Lsn;
use crate::store::SourceBinding;
use crate::view::Trouble;

/// What was found in the database.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'a> {
    /// The source's name.
    pub(crate) source: &'a str,
    /// `state.path`.
    pub(crate) store: &'a Path,
    pub(crate) system_id: u64,
    pub(crate) database: &'a str,
    /// End of the server's log.
    pub(crate) server_end: Lsn,
    /// If the server's timeline is another than the store's: how they are related.
    pub(crate) promotion: Option<Promotion>,
    /// Its name in the configuration.
    pub(crate) slot: &'a str,
    /// What is confirmed to it; `None`: there is no such slot, or none that was ever complete.
    pub(crate) confirmed: Option<Lsn>,
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
pub(crate) enum Agreement {
    /// The store knows nothing of the source, which begins with the slot as it is or will be made.
    Begins {
        /// To be told when the slot existed before: what the store of before knew is not known.
        slot_existed: bool,
    },
    /// It goes on.
    GoesOn,
    /// Changes are lost, and a person has accepted it: it goes on from the slot's position.
    GapAccepted,
    /// The slot is not there, and changes are lost with it; nothing may be read before that is accepted.
    Lost(Trouble),
    /// Nothing may be read before a person has acted.
    Refused(Trouble),
}

/// Compares. `bound` is what the store knows of the source.
pub(crate) fn compare(bound: Option<&SourceBinding>, found: &Found<'_>) -> Agreement {
    let Some(bound) = bound else { return Agreement::Begins { slot_existed: found.confirmed.is_some() } };
    if let Some(trouble) = other_database(bound, found)
        .or_else(|| went_back(bound, found))
        .or_else(|| promoted_without(found.promotion?, bound.seen.unwrap_or(Lsn::ZERO)))
    {
        return Agreement::Refused(trouble);
    }
    if bound.gap_accepted.is_some() {
        return Agreement::GapAccepted;
    }
    if bound.slot != found.slot {
        return Agreement::Refused(other_slot(bound, found));
    }
    // A source of which nothing was ever confirmed can miss nothing.
    let Some(known) = progress(bound) else { return Agreement::GoesOn };
    match found.confirmed {
        Some(slot) if slot <= known => Agreement::GoesOn,
        Some(slot) => Agreement::Refused(gap(found.source, found.slot, known, Some(slot))),
        None => Agreement::Lost(gap(found.source, found.slot, known, None)),
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

fn other_database(bound: &SourceBinding, found: &Found<'_>) -> Option<Trouble> {
    let path = found.store.display();
    let (theirs, ours) = if bound.system_id != found.system_id {
        (format!("cluster {}", bound.system_id), format!("cluster {}", found.system_id))
    } else if bound.database != found.database {
        (format!("database {}", bound.database), format!("database {}", found.database))
    } else {
        return None;
    };
    Some(Trouble {
        what: format!(
            "the store in {path} belongs to {theirs} for source {}, but its url leads to {ours}",
            found.source
        ),
        advice: format!(
            "point the source's url back, or point state.path to another directory to begin with {ours} there; what the store \
             in {path} holds stays in it until walhook runs with it again"
        ),
    })
}

/// A server that was restored from a backup, or promoted without all that was read from the one before.
fn went_back(bound: &SourceBinding, found: &Found<'_>) -> Option<Trouble> {
    let known = progress(bound).filter(|known| *known > found.server_end)?;
    let end = found.server_end;
    Some(Trouble {
        what: format!(
            "the server's log ends at {end}, but changes of source {} up to {known} were read: some of them never happened \
             there, as after a restore or the promotion of a standby that lacked them",
            found.source
        ),
        advice:
            "point the source's url to the server with all changes, or point state.path to another directory to begin \
                 with this one as it is; then compare the receivers' data with the tables"
                .to_owned(),
    })
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

fn other_slot(bound: &SourceBinding, found: &Found<'_>) -> Trouble {
    let (ours, theirs, source) = (found.slot, &bound.slot, found.source);
    Trouble {
        what: format!(
            "the store in {} belongs to slot {theirs} for source {source}, but the configuration names {ours}: what was not read \
             from {theirs} is not in {ours}",
            found.store.display()
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
    use crate::store::AcceptedBy;

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

    fn found(confirmed: Option<Lsn>) -> Found<'static> {
        Found {
            source: "app",
            store: Path::new("walhook-state"),
            system_id: 7,
            database: "app",
            server_end: Lsn(0x9000),
            promotion: None,
            slot: "walhook_app",
            confirmed,
        }
    }

    fn refused(bound: &SourceBinding, found: &Found<'_>) -> Trouble {
        match compare(Some(bound), found) {
            Agreement::Refused(trouble) | Agreement::Lost(trouble) => trouble,
            other @ (Agreement::Begins { .. } | Agreement::GoesOn | Agreement::GapAccepted) => {
                panic!("should be refused: {other:?}")
            }
        }
    }

    #[test]
    fn a_slot_at_or_behind_the_store_goes_on() {
        for slot in [Lsn(1), KNOWN] {
            assert_eq!(compare(Some(&bound()), &found(Some(slot))), Agreement::GoesOn);
        }
        let nothing_yet = SourceBinding { confirmed: None, ..bound() };
        assert_eq!(compare(Some(&nothing_yet), &found(None)), Agreement::GoesOn);
        assert_eq!(compare(Some(&nothing_yet), &found(Some(Lsn(0x600)))), Agreement::GoesOn);
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
            let Trouble { what, advice } = refused(&bound(), &Found { server_end: Lsn(0x499), ..behind });
            assert!(what.contains("ends at 0/499") && what.contains("up to 0/500 were read"), "{what}");
            assert!(advice.contains("state.path"), "{advice}");
        }
        let at_the_end = Found { server_end: KNOWN, ..found(Some(KNOWN)) };
        assert_eq!(compare(Some(&bound()), &at_the_end), Agreement::GoesOn);
    }

    #[test]
    fn an_accepted_gap_goes_on_with_another_slot_too_but_never_with_another_database() {
        let accepted = SourceBinding { gap_accepted: Some(AcceptedBy::Person), ..bound() };
        for slot in [None, Some(Lsn(0x900))] {
            let other = Found { slot: "walhook_two", ..found(slot) };
            assert_eq!(compare(Some(&accepted), &other), Agreement::GapAccepted);
        }
        let cluster = refused(&accepted, &Found { system_id: 8, ..found(Some(KNOWN)) });
        assert!(
            cluster.what.contains("belongs to cluster 7") && cluster.what.contains("cluster 8"),
            "{}",
            cluster.what
        );
        let database = refused(&accepted, &Found { database: "two", ..found(Some(KNOWN)) });
        assert!(database.what.contains("belongs to database app"), "{}", database.what);
        assert!(database.advice.contains("state.path"), "{}", database.advice);
        let restored = refused(&accepted, &Found { server_end: Lsn(0x4ff), ..found(None) });
        assert!(restored.what.contains("ends at 0/4FF"), "{}", restored.what);
    }

    #[test]
    fn after_a_promotion_all_that_was_read_must_be_part_of_the_new_history() {
        let promoted = |left| Found { promotion: Some(Promotion { before: 1, now: 2, left }), ..found(Some(KNOWN)) };
        for kept in [Lsn(0x600), Lsn(0x700)] {
            assert_eq!(compare(Some(&bound()), &promoted(Some(kept))), Agreement::GoesOn);
        }
        // Also when every sink had resolved what came before, and when a person has accepted a gap.
        let accepted = SourceBinding { gap_accepted: Some(AcceptedBy::Person), ..bound() };
        for (bound, left) in [(bound(), Some(Lsn(0x5ff))), (bound(), None), (accepted, Some(Lsn(0x400)))] {
            let trouble = refused(&bound, &promoted(left));
            assert!(trouble.what.contains("timeline 2") && trouble.what.contains("0/600"), "{}", trouble.what);
            assert!(trouble.advice.contains("state.path"), "{}", trouble.advice);
        }
        let nothing_read = SourceBinding { confirmed: None, seen: None, ..bound() };
        assert_eq!(compare(Some(&nothing_read), &promoted(Some(Lsn(1)))), Agreement::GoesOn);
    }

    #[test]
    fn another_slot_is_refused_with_both_names() {
        let trouble = refused(&bound(), &Found { slot: "walhook_two", ..found(Some(KNOWN)) });
        assert!(trouble.what.contains("slot walhook_app") && trouble.what.contains("walhook_two"), "{}", trouble.what);
        assert!(trouble.advice.contains("accept-gap app"), "{}", trouble.advice);
    }

    #[test]
    fn a_store_that_knows_nothing_begins_and_says_so_beside_a_slot_that_was_there() {
        assert_eq!(compare(None, &found(None)), Agreement::Begins { slot_existed: false });
        assert_eq!(compare(None, &found(Some(KNOWN))), Agreement::Begins { slot_existed: true });
    }
}

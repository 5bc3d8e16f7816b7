//! Every combination of what is known and what is found, and the cases that have names.

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
        went_back: None,
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
        Step::WentBack(went_back) => beyond("app", went_back),
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
    assert!(cluster.what.contains("belongs to cluster 7") && cluster.what.contains("cluster 8"), "{}", cluster.what);
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
fn pitfall_62_a_server_that_went_back_is_not_read_though_it_has_written_on_since_and_a_gap_is_accepted() {
    let noted = WentBack { seen: Lsn(0x600), end: Lsn(0x499) };
    for gap_accepted in [None, Some(AcceptedBy::Setting)] {
        let bound = SourceBinding { went_back: Some(noted), gap_accepted, ..bound() };
        let trouble = refused(&bound, &found(Some(KNOWN)));
        assert!(trouble.what.contains("ends at 0/499") && trouble.what.contains("up to 0/600"), "{}", trouble.what);
        assert!(trouble.advice.contains("accept-gap app"), "{}", trouble.advice);
    }
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
            for (server_end, system_id) in [Lsn(0x4ff), Lsn(0x600)].into_iter().flat_map(|a| [7, 8].map(|b| (a, b))) {
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

//! Pure: what follows from a look and from what is noted.

use std::collections::BTreeMap;

use super::Seen;
use crate::change::{Lsn, TableName};
use crate::config::SourceConfig;
use crate::source::slot::identity::{Bare, Look};
use crate::store::Note;

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Decided {
    /// Tables that nothing is noted of yet.
    pub(super) begin: Vec<TableName>,
    /// Tables to take out.
    pub(super) take_out: Vec<Bare>,
    /// Tables that were published when their writes failed, which do not any more.
    pub(super) mended: Vec<TableName>,
    /// Tables that are out, as far as is noted, and have their identity again.
    pub(super) whole: Vec<TableName>,
}

/// `was_seen` tells of which tables the writes failed at the look before.
pub(super) fn decide(
    source: &SourceConfig,
    look: &Look,
    bare: &BTreeMap<TableName, Bare>,
    noted: &[&Note],
    was_seen: impl Fn(&TableName) -> bool,
) -> Decided {
    let note = |table: &TableName| noted.iter().find(|note| note.key.table == *table);
    let is_bare = |table: &TableName| look.bare.iter().any(|bare| bare.table == *table);
    let tables = |of: &dyn Fn(&Note) -> bool| -> Vec<TableName> {
        let mended = noted.iter().filter(|note| !look.is_cut && !is_bare(&note.key.table) && of(note));
        mended.map(|note| note.key.table.clone()).collect()
    };
    let takeable = bare.values().filter(|bare| look.hindrance(source, bare).is_none());
    Decided {
        begin: bare.keys().filter(|table| note(table).is_none()).cloned().collect(),
        take_out: takeable.cloned().collect(),
        mended: tables(&|note| !note.is_open() && (note.from.is_none() || was_seen(&note.key.table))),
        whole: tables(&Note::is_open),
    }
}

/// The tables of a look that are published, each with the first of its relations.
pub(super) fn published(look: &Look) -> BTreeMap<TableName, Bare> {
    let mut tables = BTreeMap::new();
    for bare in look.bare.iter().filter(|bare| !bare.is_candidate) {
        tables.entry(bare.table.clone()).or_insert_with(|| bare.clone());
    }
    tables
}

/// In which order tables are taken out: those that somebody has locked last, each of these first at some turn.
pub(super) fn in_turn(tables: &[Bare], is_locked: impl Fn(&Bare) -> bool, turn: usize) -> Vec<&Bare> {
    let (mut locked, mut order): (Vec<&Bare>, Vec<&Bare>) = tables.iter().partition(|bare| is_locked(bare));
    if !locked.is_empty() {
        let first = turn % locked.len();
        locked.rotate_left(first);
    }
    order.extend(locked);
    order
}

/// A table whose writes failed at a look and do not at the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Now {
    /// The publication has it.
    pub(super) is_covered: bool,
    /// As in [`Bare`].
    pub(super) place: u32,
    /// It is there, and a sink takes it.
    pub(super) is_wanted: bool,
}

/// What has become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It has an identity, and was never out, as far as is known.
    Mended,
    /// Somebody has taken it out, and perhaps put it back: what was committed meanwhile is not captured.
    Left,
    /// Nobody misses it.
    Gone,
}

/// `seen`: as it was at the look before, if walhook ran then.
pub(super) fn fate(seen: Option<Seen>, now: Now) -> Fate {
    let is_the_same = |seen: Seen| seen.place == 0 || seen.place == now.place;
    match now {
        Now { is_covered: true, .. } if seen.is_none_or(is_the_same) => Fate::Mended,
        Now { is_wanted: true, .. } => Fate::Left,
        Now { .. } => Fate::Gone,
    }
}

/// The note of a table that is about to be taken out. One gap joins the next: what lies between is not told apart any more.
pub(super) fn begun(before: &Note, end: Lsn) -> Note {
    Note { from: Some(before.from.unwrap_or(end)), to: None, ..before.clone() }
}

#[cfg(test)]
mod tests {
    use super::super::key;
    use super::*;
    use crate::source::slot::identity::Fault;

    fn named(table: &str) -> TableName {
        TableName { schema: "public".to_owned(), table: table.to_owned() }
    }

    fn bare_of(table: &str) -> Bare {
        let (table, fault) = (named(table), Fault::NoKey);
        let (is_member, is_partial, is_candidate) = (true, false, false);
        let (oid, place, breaks_in_full) = (1, 7, None);
        Bare { relation: table.clone(), table, fault, oid, is_member, is_partial, place, is_candidate, breaks_in_full }
    }

    fn look(bare: Vec<Bare>) -> Look {
        Look {
            is_ours: true,
            is_owned: true,
            in_recovery: false,
            version: 150_020,
            publication: 2,
            members: String::new(),
            updates: true,
            deletes: true,
            end: Some(Lsn(0x500)),
            bare,
            is_cut: false,
        }
    }

    fn note(table: &str, from: Option<u64>, to: Option<u64>) -> Note {
        Note { from: from.map(Lsn), to: to.map(Lsn), ..Note::new(key(&named(table)), 0) }
    }

    fn decided(source: &SourceConfig, look: &Look, noted: &[Note]) -> Decided {
        decide(source, look, &published(look), &noted.iter().collect::<Vec<_>>(), |table| table.table == "other_hand")
    }

    #[test]
    fn what_is_bare_goes_out_and_what_is_mended_is_forgotten_or_looked_for() {
        let out = Bare { is_candidate: true, is_member: false, ..bare_of("still_out") };
        let found = look(vec![bare_of("new"), bare_of("seen"), bare_of("again"), out]);
        let noted = [
            note("seen", None, None),
            note("again", Some(1), Some(2)),
            note("still_out", Some(1), None),
            note("never_out", None, None),
            note("back", Some(1), None),
            note("closed", Some(1), Some(2)),
            note("other_hand", Some(1), Some(2)),
        ];
        let names = |tables: &[&str]| tables.iter().map(|table| named(table)).collect::<Vec<_>>();
        let expected = Decided {
            begin: names(&["new"]),
            take_out: ["again", "new", "seen"].map(bare_of).to_vec(),
            mended: names(&["never_out", "other_hand"]),
            whole: names(&["back"]),
        };
        assert_eq!(decided(&SourceConfig::example(), &found, &noted), expected);
        // Of tables that a look did not reach nothing is known.
        let cut = decided(&SourceConfig::example(), &Look { is_cut: true, ..found }, &noted);
        assert_eq!((cut.mended, cut.whole), (Vec::new(), Vec::new()));
    }

    #[test]
    fn only_a_member_of_a_publication_of_our_own_is_taken_out() {
        let ours = look(vec![bare_of("t")]);
        assert_eq!(decided(&SourceConfig::example(), &ours, &[]).take_out, [bare_of("t")]);
        let whole = Bare { is_member: false, ..bare_of("t") };
        let partial = Bare { is_partial: true, ..bare_of("t") };
        for (looks, source) in [
            (Look { is_ours: false, ..ours.clone() }, SourceConfig::example()),
            (Look { is_owned: false, ..ours.clone() }, SourceConfig::example()),
            (Look { in_recovery: true, ..ours.clone() }, SourceConfig::example()),
            (look(vec![whole]), SourceConfig::example()),
            (look(vec![partial]), SourceConfig::example()),
            (ours, SourceConfig { create: false, ..SourceConfig::example() }),
        ] {
            let found = decided(&source, &looks, &[]);
            assert_eq!((found.begin, found.take_out), (vec![named("t")], Vec::new()), "{looks:?}");
        }
    }

    #[test]
    fn what_nobody_has_locked_goes_first_and_each_that_is_locked_at_some_turn() {
        let tables = ["a", "b", "c", "d"].map(bare_of);
        let order = |turn| {
            let order = in_turn(&tables, |bare| bare.table.table != "d", turn);
            order.iter().map(|bare| bare.table.table.as_str()).collect::<String>()
        };
        assert_eq!([0, 1, 2, 3].map(order), ["dabc", "dbca", "dcab", "dabc"]);
    }

    #[test]
    fn a_table_whose_writes_work_again_is_mended_or_has_left_or_is_missed_by_nobody() {
        let seen = Seen { since: 0, end: None, place: 7 };
        let now = Now { is_covered: true, place: 7, is_wanted: true };
        for (seen, now, expected) in [
            (Some(seen), now, Fate::Mended),
            // Of a schema, or of all tables.
            (Some(Seen { place: 0, ..seen }), Now { place: 0, ..now }, Fate::Mended),
            (None, now, Fate::Mended),
            (Some(seen), Now { place: 8, ..now }, Fate::Left),
            (Some(seen), Now { is_covered: false, place: 0, ..now }, Fate::Left),
            (None, Now { is_covered: false, place: 0, ..now }, Fate::Left),
            (Some(seen), Now { is_covered: false, place: 0, is_wanted: false }, Fate::Gone),
        ] {
            assert_eq!(fate(seen, now), expected, "{seen:?} {now:?}");
        }
    }

    #[test]
    fn a_gap_that_opens_again_joins_the_one_before() {
        assert_eq!(begun(&note("t", None, None), Lsn(7)), note("t", Some(7), None));
        assert_eq!(begun(&note("t", Some(3), Some(5)), Lsn(7)), note("t", Some(3), None));
        assert_eq!(begun(&note("t", Some(3), None), Lsn(7)), note("t", Some(3), None));
    }

    #[test]
    fn a_harm_says_since_when_why_and_both_ways_out() {
        let found = look(Vec::new());
        let leaf = Bare { relation: named("leaf"), ..bare_of("t") };
        let trouble = found.harm(&SourceConfig::example(), &leaf, Some("noon"), "it is locked");
        let what = "public.t is published and its own UPDATE and DELETE fail since noon: its partition public.leaf has no \
                    primary key and no replica identity; it is not taken out of the publication: it is locked";
        assert_eq!(trouble.what, what);
        let (mend, out) = trouble.advice.split_once('\n').unwrap();
        assert!(mend.contains("ALTER TABLE \"public\".\"leaf\" REPLICA IDENTITY FULL;"), "{mend}");
        assert!(out.contains("ALTER PUBLICATION \"walhook_app\" DROP TABLE ONLY \"public\".\"t\";"), "{out}");
        let partial = Bare { is_partial: true, ..leaf };
        let trouble = found.harm(
            &SourceConfig::example(),
            &partial,
            None,
            found.hindrance(&SourceConfig::example(), &partial).unwrap(),
        );
        assert!(trouble.what.ends_with("the column list or row filter that a person gave it there would be lost"));
        assert!(trouble.advice.contains("take it out of the tables of every sink"), "{}", trouble.advice);
        let only = Look { deletes: false, ..look(Vec::new()) };
        let all = Bare { is_member: false, fault: Fault::Nothing, ..bare_of("t") };
        let trouble = only.harm(&SourceConfig::example(), &all, None, "no");
        assert!(
            trouble.what.starts_with("public.t is published and its own UPDATE fails: it has REPLICA IDENTITY NOTHING")
        );
        assert!(trouble.advice.contains("REPLICA IDENTITY DEFAULT") && trouble.advice.contains("without public.t"));
    }
}

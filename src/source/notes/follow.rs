//! Pure: what becomes of a note with the relation that it speaks of. It follows the relation to another name, and goes with it.

use std::collections::HashMap;

use crate::change::TableName;
use crate::source::slot::missed::Relation;
use crate::store::{Note, NoteKey, NoteKind};

/// The relations of one look.
#[derive(Debug)]
pub(super) struct Present<'a> {
    by_oid: HashMap<u32, &'a Relation>,
    by_name: HashMap<&'a TableName, &'a Relation>,
}

/// What becomes of a note.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Stays,
    Goes,
    Becomes(Note),
}

impl<'a> Present<'a> {
    pub(super) fn new(relations: &'a [Relation]) -> Self {
        Self {
            by_oid: relations.iter().map(|relation| (relation.oid, relation)).collect(),
            by_name: relations.iter().map(|relation| (&relation.name, relation)).collect(),
        }
    }

    /// `takes` tells whether a sink takes a table of that name.
    pub(super) fn fate(&self, note: &Note, now: i64, takes: impl Fn(&TableName) -> bool) -> Fate {
        let Some(name) = followed(&note.key) else { return Fate::Stays };
        let known = match note.oid {
            Some(oid) => self.by_oid.get(&oid),
            // Of an earlier version; a renamed table may be under either name by now.
            None if note.key.kind == NoteKind::RenamedAway => {
                self.by_name.get(name).or_else(|| self.by_name.get(&note.key.table))
            }
            None => self.by_name.get(name),
        };
        let Some(relation) = known else {
            // True whatever becomes of the table.
            return if note.key.kind == NoteKind::MadeAnew { Fate::Stays } else { Fate::Goes };
        };
        let becomes = if note.key.kind == NoteKind::RenamedAway && takes(&relation.name) {
            // It is back. What was done to it meanwhile was not captured.
            Note::new(NoteKey::new(NoteKind::Interrupted, relation.name.clone()), now)
        } else {
            Note { key: moved(&note.key, relation), ..note.clone() }
        };
        let becomes = Note { oid: Some(relation.oid), ..becomes };
        if becomes == *note { Fate::Stays } else { Fate::Becomes(becomes) }
    }
}

/// The name of the relation that a note follows. Gaps are told by the name under which receivers know the table; what is
/// looked for each time needs no following.
pub(super) fn followed(key: &NoteKey) -> Option<&TableName> {
    match key.kind {
        NoteKind::EarlyRows | NoteKind::MadeAnew | NoteKind::Interrupted => Some(&key.table),
        NoteKind::AttachedRows | NoteKind::RenamedAway => key.other.as_ref(),
        NoteKind::Identity | NoteKind::UnloggedPartition | NoteKind::ForeignPartition | NoteKind::Child => None,
    }
}

fn moved(key: &NoteKey, relation: &Relation) -> NoteKey {
    let name = relation.name.clone();
    match key.kind {
        NoteKind::EarlyRows | NoteKind::MadeAnew | NoteKind::Interrupted => NoteKey::new(key.kind, name),
        NoteKind::AttachedRows => {
            let table = relation.root.clone().unwrap_or_else(|| key.table.clone());
            NoteKey { other: Some(name), ..NoteKey::new(key.kind, table) }
        }
        NoteKind::RenamedAway => NoteKey { other: Some(name), ..key.clone() },
        NoteKind::Identity | NoteKind::UnloggedPartition | NoteKind::ForeignPartition | NoteKind::Child => key.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(table: &str) -> TableName {
        TableName { schema: "public".to_owned(), table: table.to_owned() }
    }

    fn relation(oid: u32, name: &str, root: Option<&str>) -> Relation {
        Relation { oid, name: named(name), root: root.map(named), is_captured: true, was_written: false }
    }

    fn note(kind: NoteKind, oid: Option<u32>, table: &str, other: Option<&str>) -> Note {
        Note { oid, ..Note::new(NoteKey { other: other.map(named), ..NoteKey::new(kind, named(table)) }, 0) }
    }

    #[test]
    fn a_note_follows_its_relation_to_another_name_and_goes_with_it() {
        use NoteKind::{AttachedRows, EarlyRows, Identity, Interrupted, MadeAnew, RenamedAway};
        let relations = [
            relation(1, "new", None),
            relation(2, "leaf", Some("root")),
            relation(3, "old", None),
            relation(4, "x", None),
        ];
        let present = Present::new(&relations);
        let becomes = |kind, oid, table, other| Fate::Becomes(note(kind, Some(oid), table, other));
        let cases = [
            (note(EarlyRows, Some(1), "new", None), Fate::Stays),
            (note(EarlyRows, Some(1), "before", None), becomes(EarlyRows, 1, "new", None)),
            (note(MadeAnew, Some(1), "before", None), becomes(MadeAnew, 1, "new", None)),
            (note(Interrupted, Some(1), "before", None), becomes(Interrupted, 1, "new", None)),
            // Another table has the name.
            (note(EarlyRows, Some(9), "new", None), Fate::Goes),
            (note(MadeAnew, Some(9), "gone", None), Fate::Stays),
            (note(AttachedRows, Some(2), "r", Some("l")), becomes(AttachedRows, 2, "root", Some("leaf"))),
            (note(AttachedRows, Some(9), "root", Some("leaf")), Fate::Goes),
            // Of an earlier version.
            (note(EarlyRows, None, "new", None), becomes(EarlyRows, 1, "new", None)),
            (note(EarlyRows, None, "gone", None), Fate::Goes),
            (note(RenamedAway, Some(3), "orders", Some("old")), Fate::Stays),
            (note(RenamedAway, Some(4), "orders", Some("old")), becomes(RenamedAway, 4, "orders", Some("x"))),
            (note(RenamedAway, Some(9), "orders", Some("old")), Fate::Goes),
            // The name of before, or another that a sink takes.
            (note(RenamedAway, Some(1), "new", Some("old")), becomes(Interrupted, 1, "new", None)),
            (note(RenamedAway, None, "new", Some("away")), becomes(Interrupted, 1, "new", None)),
            (note(Identity, None, "gone", None), Fate::Stays),
        ];
        for (note, expected) in cases {
            assert_eq!(present.fate(&note, 0, |name| name.table == "new"), expected, "{note:?}");
        }
    }
}

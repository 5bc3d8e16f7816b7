//! What will have been missed of tables is noted before they are published, so that neither a crash nor a session that fails
//! right after it loses the notice; and taken back of those that could not be published.

use std::collections::{HashMap, HashSet};

use super::notes::{Notes, now};
use super::slot::missed::Late;
use crate::change::TableName;
use crate::config::TablePattern;
use crate::store::{Note, NoteKey, NoteKind};

impl Late {
    /// What is noted of them. `captured` are relations that were captured before, under whatever name.
    pub(super) fn keys<'a>(
        &'a self,
        oid: impl Fn(&TableName) -> Option<u32> + 'a,
        captured: &'a HashSet<u32>,
    ) -> impl Iterator<Item = (NoteKey, Option<u32>)> + 'a {
        let anew = self.made_anew.iter().map(|table| (NoteKind::MadeAnew, table));
        let early = self.early.iter().map(|table| (NoteKind::EarlyRows, table));
        anew.chain(early).map(move |(kind, table)| {
            let oid = oid(table);
            let was_captured = oid.is_some_and(|oid| captured.contains(&oid));
            let kind = if was_captured { NoteKind::Interrupted } else { kind };
            (NoteKey::new(kind, table.clone()), oid)
        })
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Ahead<'a> {
    notes: &'a mut Notes,
    captured: &'a HashSet<u32>,
    /// What the sinks asked for when the source ran before; what they ask for only now begins now.
    asked: Option<Vec<TablePattern>>,
    noted: Vec<NoteKey>,
}

impl<'a> Ahead<'a> {
    pub(super) fn new(notes: &'a mut Notes, captured: &'a HashSet<u32>) -> Self {
        Self { notes, captured, asked: None, noted: Vec::new() }
    }

    /// Before the first stream of a run.
    pub(super) fn first(self, asked: Vec<TablePattern>) -> Self {
        Self { asked: Some(asked), ..self }
    }

    /// Durable when it returns, if the store takes it.
    pub(crate) async fn note(&mut self, late: &Late, oids: &HashMap<TableName, u32>) {
        let notes: Vec<Note> = late
            .keys(|table| oids.get(table).copied(), self.captured)
            .filter(|(key, _)| self.is_worth(key))
            .map(|(key, oid)| Note { oid, ..Note::new(key, now()) })
            .collect();
        let keys: Vec<NoteKey> = notes.iter().map(|note| note.key.clone()).collect();
        match self.notes.change(&[], notes).await {
            Ok(()) => self.noted.extend(keys),
            Err(error) => self.notes.say_unwritten(&error),
        }
    }

    /// Whether it is to be noted, and is not yet.
    fn is_worth(&self, key: &NoteKey) -> bool {
        let is_asked_anew = |asked: &Vec<TablePattern>| !asked.iter().any(|pattern| pattern.matches(&key.table));
        // The gap of a table that comes back says the same, with its ends.
        !self.asked.as_ref().is_some_and(is_asked_anew)
            && !self.notes.is_out(&key.table)
            && self.notes.get(key).is_none()
    }

    /// These were published: says what was missed of them, and takes back what was noted of others.
    pub(super) async fn settle(self, published: &Late) {
        let published: HashSet<&TableName> = published.made_anew.iter().chain(&published.early).collect();
        let (kept, gone): (Vec<_>, Vec<_>) = self.noted.into_iter().partition(|key| published.contains(&key.table));
        for note in kept.iter().filter_map(|key| self.notes.get(key)) {
            self.notes.log(note);
        }
        if let Err(error) = self.notes.change(&gone, Vec::new()).await {
            self.notes.say_unwritten(&error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_was_captured_before_was_interrupted_and_is_neither_new_nor_has_early_rows() {
        let named = |table: &str| TableName { schema: "public".to_owned(), table: table.to_owned() };
        let late = Late {
            made_anew: vec![named("anew"), named("detached")],
            early: vec![named("known"), named("new"), named("unseen")],
        };
        let oids = HashMap::from([(named("anew"), 1), (named("detached"), 4), (named("known"), 2), (named("new"), 3)]);
        let captured = HashSet::from([2, 4]);
        let seen: Vec<_> = late
            .keys(|table| oids.get(table).copied(), &captured)
            .map(|(key, oid)| (key.kind, key.table.table, oid))
            .collect();
        let expected = [
            (NoteKind::MadeAnew, "anew", Some(1)),
            (NoteKind::Interrupted, "detached", Some(4)),
            (NoteKind::Interrupted, "known", Some(2)),
            (NoteKind::EarlyRows, "new", Some(3)),
            (NoteKind::EarlyRows, "unseen", None),
        ];
        assert_eq!(seen, expected.map(|(kind, table, oid)| (kind, table.to_owned(), oid)));
    }
}

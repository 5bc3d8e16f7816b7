//! Pure: what becomes of tables that are out of the publication, beside what is noted of them.

use std::collections::HashMap;

use super::wording::{accept, give_identity};
use super::{Word, told};
use crate::change::{Lsn, TableName};
use crate::config::SourceConfig;
use crate::source::notes::at;
use crate::store::{Note, NoteKind};
use crate::view::Trouble;

/// What becomes of a table that is out and has a replica identity again.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Prospect {
    /// It is put back by the next look for tables, as far as is known.
    Returns,
    /// Something else keeps it out, as when it is a view by now.
    Kept(Trouble),
}

/// What becomes of the tables of a source that are out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outlook {
    /// walhook changes no publication: `create = false`.
    is_by_hand: bool,
    /// Of those that have an identity; the others wait for one.
    whole: HashMap<TableName, Prospect>,
}

impl Outlook {
    pub(crate) fn new(source: &SourceConfig) -> Self {
        Self { is_by_hand: !source.create, whole: HashMap::new() }
    }

    /// These have an identity again. What was learnt of one stays until the next look for tables.
    pub(crate) fn see_whole(&mut self, tables: &[TableName]) {
        self.whole.retain(|table, _| tables.contains(table));
        for table in tables {
            self.whole.entry(table.clone()).or_insert(Prospect::Returns);
        }
    }

    /// A look for tables has found why these cannot be published.
    pub(crate) fn learn(&mut self, unfit: &HashMap<TableName, Trouble>) {
        for (table, prospect) in &mut self.whole {
            *prospect = unfit.get(table).cloned().map_or(Prospect::Returns, Prospect::Kept);
        }
    }

    /// Whether nothing but a change of the table, or of the configuration, brings it back.
    pub(crate) fn is_kept(&self, table: &TableName) -> bool {
        matches!(self.whole.get(table), Some(Prospect::Kept(_)))
    }

    /// Whether it comes back without anybody's doing.
    pub(crate) fn returns(&self, table: &TableName) -> bool {
        !self.is_by_hand && self.whole.get(table) == Some(&Prospect::Returns)
    }

    /// What the note of a source says, in this light.
    pub(crate) fn told(&self, source: &str, note: &Note) -> Word {
        let word = told(source, note);
        let Some(from) = note.from.filter(|_| note.key.kind == NoteKind::Identity && note.is_open()) else {
            return word;
        };
        let table = &note.key.table;
        let trouble = match self.whole.get(table) {
            Some(Prospect::Kept(why)) => kept(source, note, from, why),
            Some(Prospect::Returns) if self.is_by_hand => Trouble {
                advice: format!(
                    "it has one again: add it to the publication, which walhook does not do with create = false; or {}",
                    accept(source, note)
                ),
                ..word.trouble
            },
            Some(Prospect::Returns) => Trouble {
                advice: "it has one again: walhook puts it back by itself, and then this gap ends".to_owned(),
                ..word.trouble
            },
            None if self.is_by_hand => Trouble {
                advice: format!(
                    "{}\nthen add it to the publication, which walhook does not do with create = false; or {}",
                    give_identity(table),
                    accept(source, note)
                ),
                ..word.trouble
            },
            None => word.trouble,
        };
        Word { trouble, ..word }
    }
}

fn kept(source: &str, note: &Note, from: Lsn, why: &Trouble) -> Trouble {
    Trouble {
        what: format!(
            "{} was taken out of the publication at {} for want of a replica identity, and is not put back: {}; changes \
             committed from {from} on are not captured",
            note.key.table,
            at(note.at_micros),
            why.what
        ),
        advice: format!("{}\nthen it is put back by itself within 60 s; or {}", why.advice, accept(source, note)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::NoteKey;

    fn named(table: &str) -> TableName {
        TableName { schema: "public".to_owned(), table: table.to_owned() }
    }

    fn open(table: &str) -> Note {
        Note { from: Some(Lsn(0x100)), ..Note::new(NoteKey::new(NoteKind::Identity, named(table)), 0) }
    }

    #[test]
    fn a_table_that_is_out_is_told_by_what_brings_it_back() {
        let mut outlook = Outlook::default();
        let advice = |outlook: &Outlook, table: &str| outlook.told("app", &open(table)).trouble.advice;
        assert!(advice(&outlook, "bare").ends_with("put back by itself within 10 s"));
        outlook.see_whole(&[named("seen"), named("back")]);
        assert!(advice(&outlook, "seen").contains("has one again") && !outlook.is_kept(&named("seen")));
        let why = Trouble { what: "public.seen is a view".to_owned(), advice: "rename it".to_owned() };
        outlook.learn(&HashMap::from([(named("seen"), why.clone()), (named("bare"), why)]));
        let Trouble { what, advice: mend } = outlook.told("app", &open("seen")).trouble;
        assert!(what.contains("is not put back: public.seen is a view; changes committed from 0/100 on"), "{what}");
        assert!(mend.starts_with("rename it\n") && mend.contains("accept-gap app --table public.seen"), "{mend}");
        assert!(outlook.is_kept(&named("seen")) && outlook.returns(&named("back")));
        assert!(!outlook.is_kept(&named("bare")) && !outlook.returns(&named("bare")), "it still waits for an identity");
        // Without an identity again, it waits for one whatever was learnt.
        outlook.see_whole(&[]);
        assert!(advice(&outlook, "seen").contains("REPLICA IDENTITY FULL"));
        let by_hand = Outlook { is_by_hand: true, ..Outlook::default() };
        let mend = advice(&by_hand, "bare");
        assert!(mend.contains("create = false") && !mend.contains("by itself"), "{mend}");
        let closed = Note { to: Some(Lsn(0x200)), ..open("seen") };
        assert_eq!(outlook.told("app", &closed), told("app", &closed));
    }
}

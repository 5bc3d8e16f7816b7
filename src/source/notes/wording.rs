//! Pure: what a note says to a person, and what mends it.

use super::at;
use crate::change::{Lsn, TableName};
use crate::source::advice::Statement;
use crate::store::{Note, NoteKind};
use crate::view::Trouble;

/// A note in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Word {
    /// Changes are lost or stand still.
    pub(crate) is_error: bool,
    pub(crate) trouble: Trouble,
}

/// What sends rows that are already there.
const TOUCH: &str = "touch the rows that are missing there, in portions and as the owner of the table (UPDATE … SET id = id WHERE …): each \
                     is written anew and locked until the commit, and the table's triggers fire";

/// What the note of a source says.
pub(crate) fn told(source: &str, note: &Note) -> Word {
    let table = &note.key.table;
    if note.key.kind == NoteKind::Identity {
        return Word { is_error: true, trouble: of_identity(source, note) };
    }
    // The kinds below it speak of a second table.
    let other = note.key.other.as_ref().unwrap_or(table);
    let since = at(note.at_micros);
    let (what, mend) = match note.key.kind {
        NoteKind::Identity | NoteKind::MadeAnew => (
            format!("{table} was made or renamed while the source ran: changes made to it before {since} were not captured"),
            "in a migration, add the new table to the publication before it takes over the name; compare the receivers' data \
             with the table"
                .to_owned(),
        ),
        NoteKind::EarlyRows => (
            format!("{table} had been written to before it was published at {since}: rows of before are not delivered"),
            format!("compare the receivers' data with the table, or {TOUCH}"),
        ),
        NoteKind::AttachedRows => (
            format!("{other} had rows when it became a partition of {table}, found at {since}: they are not delivered"),
            format!("compare the receivers' data with {other}, or {TOUCH}"),
        ),
        NoteKind::RenamedAway => (
            format!("{table} is now {other}, found at {since}, which no sink takes: changes made under that name are not delivered"),
            format!("name {other} in a sink's tables, or rename it back; compare the receivers' data with the table"),
        ),
        NoteKind::UnloggedPartition => (
            format!(
                "{other} is an unlogged partition of {table}: its changes are not captured, and a row that moves into it \
                 arrives as a delete although it lives"
            ),
            Statement::set_logged(other, "").to_string(),
        ),
        NoteKind::ForeignPartition => (
            format!(
                "{other} is a foreign partition of {table}: its changes are not captured, and a row that moves into it \
                 arrives as a delete although it lives"
            ),
            "read the server that has it with a source of its own".to_owned(),
        ),
        NoteKind::Interrupted => (
            format!(
                "{table} was captured, then not, and is again since {since}, as one that was detached or taken out of the \
                 publication: changes made to it in between were not captured"
            ),
            format!("compare the receivers' data with {table}"),
        ),
        NoteKind::Child => (
            format!("{other} inherits from {table}: its changes are not captured, though SELECT from {table} shows its rows"),
            format!("name {other} in the tables of a sink"),
        ),
    };
    let advice = format!("{mend}; {}", accept(source, note));
    Word { is_error: false, trouble: Trouble { what, advice } }
}

fn of_identity(source: &str, note: &Note) -> Trouble {
    let table = &note.key.table;
    let since = at(note.at_micros);
    match (note.from, note.to) {
        (None, _) => Trouble {
            what: format!(
                "{table} is published without a replica identity: its own UPDATE and DELETE fail since {since}"
            ),
            advice: give_identity(table),
        },
        (Some(from), None) => Trouble {
            what: format!(
                "{table} lost its replica identity at {since} and is out of the publication, so that its own UPDATE and \
                 DELETE work: changes committed from {from} on are not captured"
            ),
            advice: format!("{}; then it is put back by itself within 10 s", give_identity(table)),
        },
        (Some(from), Some(to)) => Trouble {
            what: gap(table, from, to),
            advice: format!("compare the receivers' data with the table; {}", accept(source, note)),
        },
    }
}

fn gap(table: &TableName, from: Lsn, to: Lsn) -> String {
    format!(
        "{table} was out of the publication for want of a replica identity: changes committed from {from} to {to} were not \
         captured"
    )
}

/// The ways in which a table gets an identity.
pub(crate) fn give_identity(table: &TableName) -> String {
    // What is in the way of whole old rows the note does not know.
    let full = Statement::identity_full(table, "");
    format!("{}\nor, if `walhook check` has nothing against it, {full}", Statement::primary_key(table, ""))
}

/// The command with which a person says that it is known.
pub(super) fn accept(source: &str, note: &Note) -> String {
    let table = shell_word(&note.key.other.as_ref().unwrap_or(&note.key.table).to_string());
    let command = match note.key.kind {
        NoteKind::Identity => format!("walhook state accept-gap {} --table {table}", shell_word(source)),
        NoteKind::MadeAnew
        | NoteKind::EarlyRows
        | NoteKind::AttachedRows
        | NoteKind::RenamedAway
        | NoteKind::UnloggedPartition
        | NoteKind::ForeignPartition
        | NoteKind::Child
        | NoteKind::Interrupted => format!("walhook state accept-missed {table} --source {}", shell_word(source)),
    };
    format!("with walhook stopped, `{command}` ends this notice")
}

/// As a shell takes it for one word.
fn shell_word(text: &str) -> String {
    let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if is_plain { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Of those that are not shown one by one.
pub(super) fn more(kind: &str, count: u64) -> Trouble {
    Trouble {
        what: format!("{count} more tables of which not everything is captured ({kind})"),
        advice: "`walhook state` lists them".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::NoteKey;

    fn named(table: &str) -> TableName {
        TableName { schema: "public".to_owned(), table: table.to_owned() }
    }

    #[test]
    fn each_note_names_its_tables_what_is_missing_and_the_command_that_ends_it() {
        for kind in NoteKind::ALL.into_iter().filter(|kind| *kind != NoteKind::Identity) {
            let key = NoteKey { other: Some(named("b c")), ..NoteKey::new(kind, named("a")) };
            let Word { is_error, trouble } = told("app", &Note::new(key, 0));
            assert!(!is_error && trouble.what.contains("public.a"), "{trouble:?}");
            assert!(trouble.what.contains("captured") || trouble.what.contains("delivered"), "{trouble:?}");
            assert!(trouble.advice.contains("`walhook state accept-missed 'public.b c' --source app`"), "{trouble:?}");
        }
    }

    #[test]
    fn an_identity_that_is_gone_is_told_by_what_has_become_of_the_table() {
        let note = Note::new(NoteKey::new(NoteKind::Identity, named("a")), 0);
        let published = told("app", &note).trouble;
        assert!(published.what.contains("its own UPDATE and DELETE fail since 1970-01-01"), "{published:?}");
        assert!(published.advice.contains("ADD PRIMARY KEY") && published.advice.contains("REPLICA IDENTITY FULL"));
        let note = Note { from: Some(Lsn(0x100)), ..note };
        let out = told("app", &note).trouble;
        assert!(out.what.contains("from 0/100 on are not captured") && out.advice.contains("put back"), "{out:?}");
        let closed = told("app", &Note { to: Some(Lsn(0x200)), ..note }).trouble;
        assert!(closed.what.contains("from 0/100 to 0/200 were not captured"), "{closed:?}");
        assert!(closed.advice.contains("`walhook state accept-gap app --table public.a`"), "{closed:?}");
    }

    #[test]
    fn a_shell_takes_any_name_for_one_word() {
        assert_eq!((shell_word("public.a_b-1"), shell_word("it's")), ("public.a_b-1".into(), r"'it'\''s'".into()));
    }
}

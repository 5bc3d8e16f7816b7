//! What of the tables is not captured, and whether the application's own writes fail, as the database has it now and as the store
//! has noted it.

use std::collections::HashSet;

use tokio_postgres::Client;

use super::findings::Finding;
use crate::change::TableName;
use crate::config::{SourceConfig, StateConfig};
use crate::source::notes::{Word, now, told};
use crate::source::slot::Survey;
use crate::source::slot::identity::{self, Look};
use crate::source::slot::missed::standing;
use crate::store::{Note, NoteKey, NoteKind, mend};
use crate::view::Trouble;

/// Everything of one source.
pub(super) async fn look(client: &Client, state: &StateConfig, source: &SourceConfig, survey: &Survey) -> Vec<Finding> {
    let mut all = match identity::look(client, source, &[]).await {
        Ok(found) => found.map(|look| of_look(source, &look)).unwrap_or_default(),
        Err(error) => {
            let Trouble { what, advice } = error.with_grant(&source.url.user).into_trouble();
            let what = format!("the replica identities of what is published could not be looked at: {what}");
            vec![Finding::warn(format!("source.{}", source.name), what, advice)]
        }
    };
    let noted = mend::open_to_show(state).ok().and_then(|summary| {
        let of_source = summary.notes.into_iter().find(|(name, _)| *name == source.name);
        of_source.map(|(_, notes)| notes)
    });
    let planned: HashSet<&TableName> = survey.plan.publish.iter().map(|(table, _)| &table.name).collect();
    let found = standing(&survey.tables, &planned);
    all.extend(of_notes(&source.name, found, &noted.unwrap_or_default()));
    all
}

/// Tables whose own writes fail now.
fn of_look(source: &SourceConfig, look: &Look) -> Vec<Finding> {
    let finding = |bare: &identity::Bare| {
        let hindrance = look.hindrance(source, bare).unwrap_or("walhook does that while it runs");
        let Trouble { what, advice } = look.harm(source, bare, None, hindrance);
        Finding::fail(&bare.table, what, advice)
    };
    look.bare.iter().map(finding).collect()
}

/// Pure: what stands, unless a person has accepted it, and what the store has noted once.
fn of_notes(source: &str, standing: Vec<NoteKey>, noted: &[Note]) -> Vec<Finding> {
    let known = |key: &NoteKey| noted.iter().find(|note| note.key == *key);
    let standing = standing.into_iter().map(|key| known(&key).cloned().unwrap_or_else(|| Note::new(key, now())));
    let once = noted.iter().filter(|note| !note.key.kind.is_standing()).cloned();
    // What is published without an identity is said as it is now.
    let is_told = |note: &Note| !note.is_accepted && (note.key.kind != NoteKind::Identity || note.from.is_some());
    let finding = |note: Note| {
        let Word { trouble: Trouble { what, advice }, .. } = told(source, &note);
        match note.is_open() {
            true => Finding::fail(&note.key.table, what, advice),
            false => Finding::warn(&note.key.table, what, advice),
        }
    };
    standing.chain(once).filter(is_told).map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Lsn;
    use crate::cli::check::findings::Level;

    #[test]
    fn what_is_accepted_is_not_told_and_only_a_gap_without_an_end_fails() {
        let named = |table: &str| TableName { schema: "public".to_owned(), table: table.to_owned() };
        let leaf = |table: &str| NoteKey {
            other: Some(named("leaf")),
            ..NoteKey::new(NoteKind::UnloggedPartition, named(table))
        };
        let gap = |table: &str, to| Note {
            from: Some(Lsn(1)),
            to,
            ..Note::new(NoteKey::new(NoteKind::Identity, named(table)), 0)
        };
        let noted = [
            Note { is_accepted: true, ..Note::new(leaf("known"), 0) },
            Note::new(leaf("gone"), 0),
            gap("open", None),
            gap("closed", Some(Lsn(2))),
            Note::new(NoteKey::new(NoteKind::Identity, named("published")), 0),
            Note::new(NoteKey::new(NoteKind::EarlyRows, named("early")), 0),
        ];
        let found = of_notes("app", vec![leaf("known"), leaf("new")], &noted);
        let seen: Vec<_> = found.iter().map(|finding| (finding.subject.as_str(), finding.level)).collect();
        let expected = [
            ("public.new", Level::Warn),
            ("public.open", Level::Fail),
            ("public.closed", Level::Warn),
            ("public.early", Level::Warn),
        ];
        assert_eq!(seen, expected);
    }
}

//! What of the tables is not captured, and whether the application's own writes fail, as the database has it now and as the store
//! has noted it.

use std::collections::HashSet;

use tokio_postgres::Client;

use super::findings::Finding;
use crate::change::TableName;
use crate::config::{SinkConfig, SourceConfig, StateConfig};
use crate::source::notes::{Outlook, Word, now};
use crate::source::slot::Survey;
use crate::source::slot::identity::{self, Look};
use crate::source::slot::missed::standing;
use crate::source::slot::takes::Takes;
use crate::store::{Note, NoteKey, NoteKind, mend};
use crate::view::Trouble;

/// Everything of one source.
pub(super) async fn look(
    client: &Client,
    state: &StateConfig,
    (source, sinks): (&SourceConfig, &[SinkConfig]),
    survey: &Survey,
) -> Vec<Finding> {
    let noted = mend::open_to_show(state).ok().and_then(|summary| {
        let of_source = summary.notes.into_iter().find(|(name, _)| *name == source.name);
        of_source.map(|(_, notes)| notes)
    });
    let noted = noted.unwrap_or_default();
    let is_out = |note: &&Note| note.key.kind == NoteKind::Identity && note.is_open();
    let out: Vec<&TableName> = noted.iter().filter(is_out).map(|note| &note.key.table).collect();
    let mut outlook = Outlook::new(source);
    let mut all = match identity::look(client, source, &out).await {
        Ok(None) => Vec::new(),
        Ok(Some(look)) => {
            outlook.see_whole(&whole(&look, &out));
            outlook.learn(&survey.unfit());
            // One that runs takes them out, if nothing keeps it from that.
            let is_down = survey.slot.as_ref().is_none_or(|slot| slot.active_pid.is_none());
            of_look(source, &look, |table| is_down && !Takes::all(sinks).iter().any(|takes| takes.names(table)))
        }
        Err(error) => {
            let Trouble { what, advice } = error.with_grant(&source.url.user).into_trouble();
            let what = format!("the replica identities of what is published could not be looked at: {what}");
            vec![Finding::warn(format!("source.{}", source.name), what, advice)]
        }
    };
    let planned: HashSet<&TableName> = survey.plan.publish.iter().map(|(table, _)| &table.name).collect();
    let found = standing(&survey.tables, &planned);
    all.extend(of_notes((&source.name, &outlook), found, &noted));
    all
}

/// Those of the tables that are out that have an identity again.
fn whole(look: &Look, out: &[&TableName]) -> Vec<TableName> {
    let waits = |table: &TableName| look.bare.iter().any(|bare| bare.table == *table);
    out.iter().filter(|table| !look.is_cut && !waits(table)).map(|table| (*table).clone()).collect()
}

/// Tables whose own writes fail now. What the next start ends by itself, `ends_at_start`, is no reason not to start.
fn of_look(source: &SourceConfig, look: &Look, ends_at_start: impl Fn(&TableName) -> bool) -> Vec<Finding> {
    let finding = |bare: &identity::Bare| {
        let hindrance = look.hindrance(source, bare);
        let is_fault = hindrance.is_some() || !ends_at_start(&bare.table);
        let Trouble { what, advice } =
            look.harm(source, bare, None, hindrance.unwrap_or("walhook does that while it runs"));
        match is_fault {
            true => Finding::fail(&bare.table, what, advice),
            false => Finding::warn(&bare.table, what, advice),
        }
    };
    look.bare.iter().filter(|bare| !bare.is_candidate).map(finding).collect()
}

/// Pure: what stands, unless a person has accepted it, and what the store has noted once.
fn of_notes((source, outlook): (&str, &Outlook), standing: Vec<NoteKey>, noted: &[Note]) -> Vec<Finding> {
    let known = |key: &NoteKey| noted.iter().find(|note| note.key == *key);
    let standing = standing.into_iter().map(|key| known(&key).cloned().unwrap_or_else(|| Note::new(key, now())));
    let once = noted.iter().filter(|note| !note.key.kind.is_standing()).cloned();
    // What is published without an identity is said as it is now.
    let is_told = |note: &Note| !note.is_accepted && (note.key.kind != NoteKind::Identity || note.from.is_some());
    let finding = |note: Note| {
        let Word { trouble: Trouble { what, advice }, .. } = outlook.told(source, &note);
        match note.is_open() && !outlook.returns(&note.key.table) {
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
    fn what_is_accepted_is_not_told_and_only_a_gap_that_the_next_start_does_not_end_fails() {
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
            gap("back", None),
            gap("open", None),
            gap("closed", Some(Lsn(2))),
            Note::new(NoteKey::new(NoteKind::Identity, named("published")), 0),
            Note::new(NoteKey::new(NoteKind::EarlyRows, named("early")), 0),
        ];
        let mut outlook = Outlook::default();
        outlook.see_whole(&[named("back")]);
        let found = of_notes(("app", &outlook), vec![leaf("known"), leaf("new")], &noted);
        let seen: Vec<_> = found.iter().map(|finding| (finding.subject.as_str(), finding.level)).collect();
        let expected = [
            ("public.new", Level::Warn),
            ("public.back", Level::Warn),
            ("public.open", Level::Fail),
            ("public.closed", Level::Warn),
            ("public.early", Level::Warn),
        ];
        assert_eq!(seen, expected);
    }
}

//! What the store notes of single tables of a source: kept at hand beside the stream, written before anything rests on it, and
//! shown. What a note says to a person is in [`wording`].

mod follow;
mod outlook;
mod wording;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use tracing::warn;

use self::follow::{Fate, Present};
pub(crate) use self::outlook::Outlook;
pub(crate) use self::wording::{Word, told};
use super::slot::missed::Relation;
use crate::change::TableName;
use crate::fault::chain;
use crate::store::{Note, NoteKey, NoteKind, Store, StoreError};
use crate::view::{NotesView, Trouble};

/// Notes of a kind that are shown at most; `walhook state` lists the others.
const SHOWN_MAX: usize = 10;

/// The notes of one source. Nobody else changes them while a daemon runs.
#[derive(Debug)]
pub(super) struct Notes {
    source: String,
    store: Store,
    by_key: BTreeMap<NoteKey, Note>,
    /// What is shown in the place of a note, for as long as it says more than the note can.
    instead: BTreeMap<NoteKey, Trouble>,
}

impl Notes {
    /// Reads them.
    pub(super) async fn load(store: &Store, source: &str) -> Result<Self, StoreError> {
        let (asked, name) = (store.clone(), source.to_owned());
        let notes = ask(move || asked.notes(&name)).await?;
        let by_key = notes.into_iter().map(|note| (note.key.clone(), note)).collect();
        Ok(Self { source: source.to_owned(), store: store.clone(), by_key, instead: BTreeMap::new() })
    }

    pub(super) fn get(&self, key: &NoteKey) -> Option<&Note> {
        self.by_key.get(key)
    }

    /// Of one kind.
    pub(super) fn of(&self, kind: NoteKind) -> impl Iterator<Item = &Note> {
        self.by_key.values().filter(move |note| note.key.kind == kind)
    }

    /// Whether changes of the table are not captured because it is out of the publication.
    pub(super) fn is_out(&self, table: &TableName) -> bool {
        self.of(NoteKind::Identity).any(|note| note.is_open() && note.key.table == *table)
    }

    /// Durable when it returns.
    pub(super) async fn put(&mut self, note: Note) -> Result<(), StoreError> {
        let (store, source, written) = (self.store.clone(), self.source.clone(), note.clone());
        ask(move || store.put_note(&source, &written)).await?;
        self.by_key.insert(note.key.clone(), note);
        Ok(())
    }

    pub(super) async fn remove(&mut self, key: &NoteKey) -> Result<(), StoreError> {
        let (store, source, gone) = (self.store.clone(), self.source.clone(), key.clone());
        ask(move || store.remove_note(&source, &gone)).await?;
        self.by_key.remove(key);
        Ok(())
    }

    /// Notes what happened once; the first of its kind and table stays. Logged in any case, so that a store which cannot be
    /// written, or is full of notes, hides nothing.
    pub(super) async fn happened(&mut self, key: NoteKey, oid: Option<u32>) {
        if self.by_key.contains_key(&key) {
            return;
        }
        let note = Note { oid, ..Note::new(key, now()) };
        self.log(&note);
        if let Err(error) = self.put(note).await {
            self.say_unwritten(&error);
        }
    }

    pub(super) fn log(&self, note: &Note) {
        let Word { trouble, .. } = told(&self.source, note);
        warn!(source = %self.source, advice = trouble.advice, "{}", trouble.what);
    }

    /// Brings the standing notes of these kinds to what was found.
    pub(super) async fn settle(&mut self, found: Vec<NoteKey>) {
        let gone: Vec<NoteKey> =
            self.by_key.keys().filter(|key| key.kind.is_standing() && !found.contains(key)).cloned().collect();
        for key in gone {
            if let Err(error) = self.remove(&key).await {
                self.say_unwritten(&error);
            }
        }
        for key in found {
            self.happened(key, None).await;
        }
    }

    /// Lets notes follow their relations to other names, and drops those of relations that are not there any more. A gap stays:
    /// receivers may still have what was there.
    pub(super) async fn follow(&mut self, relations: &[Relation], takes: impl Fn(&TableName) -> bool) {
        let present = Present::new(relations);
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        for note in self.by_key.values() {
            match present.fate(note, now(), &takes) {
                Fate::Stays => {}
                Fate::Goes => gone.push(note.key.clone()),
                Fate::Becomes(note_now) => {
                    gone.push(note.key.clone());
                    if note_now.key.kind != note.key.kind {
                        self.log(&note_now);
                    }
                    new.push(note_now);
                }
            }
        }
        if let Err(error) = self.change(&gone, new).await {
            self.say_unwritten(&error);
        }
    }

    /// Removes some and writes others, all or none. Durable when it returns.
    pub(super) async fn change(&mut self, gone: &[NoteKey], new: Vec<Note>) -> Result<(), StoreError> {
        if gone.is_empty() && new.is_empty() {
            return Ok(());
        }
        let (store, source, keys, notes) = (self.store.clone(), self.source.clone(), gone.to_vec(), new.clone());
        ask(move || store.replace_notes(&source, &keys, &notes)).await?;
        for key in gone {
            self.by_key.remove(key);
        }
        self.by_key.extend(new.into_iter().map(|note| (note.key.clone(), note)));
        Ok(())
    }

    /// Shows something else than the note says, or the note again. Logged once.
    pub(super) fn tell_instead(&mut self, key: &NoteKey, trouble: Option<Trouble>) {
        let before = self.instead.remove(key);
        let Some(trouble) = trouble else { return };
        if before.as_ref() != Some(&trouble) {
            warn!(source = %self.source, advice = trouble.advice, "{}", trouble.what);
        }
        self.instead.insert(key.clone(), trouble);
    }

    pub(super) fn say_unwritten(&self, error: &StoreError) {
        warn!(source = %self.source, error = %chain(error), "a note about a table could not be written");
    }

    /// What is shown of them.
    pub(super) fn view(&self, outlook: &Outlook) -> NotesView {
        let told = |note: &Note| match self.instead.get(&note.key) {
            Some(trouble) => Word { is_error: true, trouble: trouble.clone() },
            None => outlook.told(&self.source, note),
        };
        view(told, self.by_key.values())
    }
}

/// Pure: what is shown of notes that come by kind.
fn view<'a>(told: impl Fn(&Note) -> Word, notes: impl Iterator<Item = &'a Note>) -> NotesView {
    let mut view = NotesView { counts: NoteKind::ALL.map(|kind| (kind.as_str(), 0)).to_vec(), ..NotesView::default() };
    for note in notes.filter(|note| !note.is_accepted) {
        let Some((_, count)) = view.counts.iter_mut().find(|(kind, _)| *kind == note.key.kind.as_str()) else {
            continue;
        };
        *count += 1;
        let Word { is_error, trouble } = told(note);
        // A table that is still published is a harm, which is shown as it was last looked at.
        if *count > SHOWN_MAX as u64 || (note.key.kind == NoteKind::Identity && note.from.is_none()) {
            continue;
        }
        let shown = if is_error { &mut view.errors } else { &mut view.warnings };
        shown.push(trouble);
    }
    let more: Vec<_> = view.counts.iter().filter(|(_, count)| *count > SHOWN_MAX as u64).collect();
    let more = more.into_iter().map(|(kind, count)| wording::more(kind, *count - SHOWN_MAX as u64)).collect::<Vec<_>>();
    view.warnings.extend(more);
    view
}

/// Asks the store, which may have to wait for the disk.
async fn ask<T: Send + 'static>(
    question: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    // The store's thread answers or is gone.
    tokio::task::spawn_blocking(question).await.unwrap_or(Err(StoreError::Closed))
}

/// Microseconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// RFC 3339.
pub(crate) fn at(micros: i64) -> String {
    let since = Duration::from_micros(u64::try_from(micros).unwrap_or_default());
    crate::admin::timestamp(SystemTime::UNIX_EPOCH + since)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Lsn;

    fn note(kind: NoteKind, table: &str) -> Note {
        Note::new(NoteKey::new(kind, TableName { schema: "public".to_owned(), table: table.to_owned() }), 0)
    }

    #[test]
    fn gaps_are_errors_the_rest_warnings_and_what_is_accepted_or_still_published_is_not_shown() {
        let gap = Note { from: Some(Lsn(1)), to: Some(Lsn(2)), ..note(NoteKind::Identity, "a") };
        let harm = note(NoteKind::Identity, "b");
        let accepted = Note { is_accepted: true, ..note(NoteKind::Child, "c") };
        let early = note(NoteKind::EarlyRows, "d");
        let shown = view(|note| told("app", note), [gap, harm, early, accepted].iter());
        assert_eq!((shown.errors.len(), shown.warnings.len()), (1, 1), "{shown:?}");
        assert!(shown.errors[0].what.contains("public.a") && shown.warnings[0].what.contains("public.d"), "{shown:?}");
        let count = |kind: &str| shown.counts.iter().find(|(label, _)| *label == kind).unwrap().1;
        assert_eq!((count("identity"), count("early_rows"), count("child")), (2, 1, 0));
    }

    #[test]
    fn of_many_notes_of_a_kind_the_first_are_shown_and_the_rest_counted() {
        let notes: Vec<Note> = (0..13).map(|n| note(NoteKind::EarlyRows, &format!("t{n:02}"))).collect();
        let shown = view(|note| told("app", note), notes.iter());
        assert_eq!(shown.warnings.len(), SHOWN_MAX + 1);
        let last = &shown.warnings[SHOWN_MAX];
        assert!(last.what.starts_with("3 more tables") && last.advice.contains("walhook state"), "{last:?}");
        assert!(shown.counts.contains(&("early_rows", 13)));
    }
}

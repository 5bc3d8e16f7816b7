//! Keeps the application's own writes working: a published table that has lost its replica identity is taken out of the
//! publication, where that is walhook's, and put back when it has one again.
//!
//! What is committed in between is a gap. The order makes a crash at any point leave it noted: first the store notes where the
//! gap begins, with an open end; then the table is taken out; it is put back by the usual look for tables; and only then the gap
//! gets its end, read after that was committed. A gap may begin a little early and end a little late, never the other way round.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tracing::{info, warn};

use super::notes::{Notes, Outlook, at, now, told};
use super::slot::identity::{self, Bare, Look, TakenOut};
use super::slot::{PrepareError, publication};
use crate::change::{Lsn, TableName};
use crate::config::{SinkConfig, SourceConfig};
use crate::store::{Note, NoteKey, NoteKind};
use crate::view::Trouble;

/// How long one look takes tables out; the rest waits for the next.
const TAKE_OUT_LIMIT: Duration = Duration::from_secs(4);

/// Tables that one look logs one by one.
const LOGGED_MAX: usize = 10;

/// What was found and is not mended.
#[derive(Debug, Default)]
pub(super) struct Tended {
    /// Tables that are still published while their own writes fail.
    pub(super) harms: Vec<Trouble>,
    /// A table that is out has an identity again: it is time to put it back.
    pub(super) wants_back: bool,
}

/// Looks after the tables of one source.
#[derive(Debug)]
pub(super) struct Watch {
    source: SourceConfig,
    sinks: Vec<SinkConfig>,
    /// Since when writes of a table fail, by the table's name.
    since: HashMap<TableName, i64>,
    /// Tables of which it was logged that their writes fail.
    harmed: HashSet<TableName>,
    /// What becomes of tables that are out.
    outlook: Outlook,
}

/// What follows from a look and what is noted. Pure.
#[derive(Debug, Default, PartialEq, Eq)]
struct Decided {
    /// Tables that nothing is noted of yet.
    begin: Vec<TableName>,
    /// Tables to take out.
    take_out: Vec<TableName>,
    /// Tables that have their identity again and were never out.
    forget: Vec<TableName>,
    /// Tables that are out, as far as is noted, and have their identity again.
    whole: Vec<TableName>,
}

fn decide(source: &SourceConfig, look: &Look, bare: &BTreeMap<TableName, Bare>, noted: &[&Note]) -> Decided {
    let note = |table: &TableName| noted.iter().find(|note| note.key.table == *table);
    let is_bare = |table: &TableName| look.bare.iter().any(|bare| bare.table == *table);
    let tables = |of: &dyn Fn(&Note) -> bool| -> Vec<TableName> {
        let mended = noted.iter().filter(|note| !look.is_cut && !is_bare(&note.key.table) && of(note));
        mended.map(|note| note.key.table.clone()).collect()
    };
    let takeable = bare.values().filter(|bare| look.hindrance(source, bare).is_none());
    Decided {
        begin: bare.keys().filter(|table| note(table).is_none()).cloned().collect(),
        take_out: takeable.map(|bare| bare.table.clone()).collect(),
        forget: tables(&|note| note.from.is_none()),
        whole: tables(&Note::is_open),
    }
}

/// The tables of a look that are published, each with the first of its relations.
fn published(look: &Look) -> BTreeMap<TableName, Bare> {
    let mut tables = BTreeMap::new();
    for bare in look.bare.iter().filter(|bare| !bare.is_candidate) {
        tables.entry(bare.table.clone()).or_insert_with(|| bare.clone());
    }
    tables
}

impl Watch {
    pub(super) fn new(source: SourceConfig, sinks: Vec<SinkConfig>) -> Self {
        let outlook = Outlook::new(&source);
        Self { source, sinks, since: HashMap::new(), harmed: HashSet::new(), outlook }
    }

    /// What becomes of tables that are out.
    pub(super) fn outlook(&self) -> &Outlook {
        &self.outlook
    }

    /// A look for tables has found why these cannot be published.
    pub(super) fn learn(&mut self, unfit: &HashMap<TableName, Trouble>) {
        self.outlook.learn(unfit);
    }

    /// Looks, and does what can be done.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub(super) async fn tend(&mut self, client: &Client, notes: &mut Notes) -> Result<Tended, PrepareError> {
        let out: Vec<TableName> =
            notes.of(NoteKind::Identity).filter(|note| note.is_open()).map(|note| note.key.table.clone()).collect();
        let candidates: Vec<&TableName> = out.iter().collect();
        let Some(look) = identity::look(client, &self.source, &candidates).await? else {
            return Ok(Tended::default());
        };
        let bare = published(&look);
        let noted: Vec<&Note> = notes.of(NoteKind::Identity).collect();
        let decided = decide(&self.source, &look, &bare, &noted);
        self.begin(&decided.begin, &bare, notes).await;
        let mut hindered = self.take_out(client, &look, &decided.take_out, notes).await?;
        for table in &decided.forget {
            info!(source = self.source.name, %table, "the table has a replica identity again, and was published all the time");
            if let Err(error) = notes.remove(&key(table)).await {
                notes.say_unwritten(&error);
            }
        }
        self.outlook.see_whole(&decided.whole);
        let wants_back = self.close(client, look.version, &decided.whole, notes).await?;
        let mut harms = BTreeMap::new();
        for (table, bare) in &bare {
            let hindrance = match look.hindrance(&self.source, bare) {
                Some(hindrance) => hindrance.to_owned(),
                None => match hindered.remove(table) {
                    Some(hindrance) => hindrance,
                    None => continue,
                },
            };
            let since = self.since.get(table).copied().unwrap_or_else(now);
            harms.insert(table, look.harm(&self.source, bare, Some(&at(since)), &hindrance));
        }
        self.log(&harms);
        Ok(Tended { harms: harms.into_values().collect(), wants_back })
    }

    /// Logs each table once for as long as its writes fail.
    fn log(&mut self, harms: &BTreeMap<&TableName, Trouble>) {
        let new: Vec<_> = harms.iter().filter(|(table, _)| !self.harmed.contains(**table)).collect();
        for (_, trouble) in new.iter().take(LOGGED_MAX) {
            warn!(source = self.source.name, advice = trouble.advice, "{}", trouble.what);
        }
        if let Some(more) = new.len().checked_sub(LOGGED_MAX).filter(|more| *more > 0) {
            warn!(
                source = self.source.name,
                "{more} more tables are published while their own writes fail; /readyz has all"
            );
        }
        self.harmed = harms.keys().map(|table| (*table).clone()).collect();
    }

    /// Notes since when.
    async fn begin(&mut self, tables: &[TableName], bare: &BTreeMap<TableName, Bare>, notes: &mut Notes) {
        for table in tables {
            let note = Note::new(key(table), now());
            let trouble = told(&self.source.name, &note).trouble;
            warn!(source = self.source.name, advice = trouble.advice, "{}", trouble.what);
            if let Err(error) = notes.put(note).await {
                notes.say_unwritten(&error);
            }
        }
        self.since.retain(|table, _| bare.contains_key(table));
        for table in bare.keys() {
            let noted = notes.get(&key(table)).filter(|note| note.to.is_none()).map(|note| note.at_micros);
            self.since.entry(table.clone()).or_insert_with(|| noted.unwrap_or_else(now));
        }
    }

    /// Takes tables out; why not, by table, of those that it could not.
    async fn take_out(
        &self,
        client: &Client,
        look: &Look,
        tables: &[TableName],
        notes: &mut Notes,
    ) -> Result<HashMap<TableName, String>, PrepareError> {
        let began = Instant::now();
        let mut hindered = HashMap::new();
        for table in tables {
            let not_now = |why: &str| (table.clone(), format!("{why}; it is tried again by itself"));
            let Some(end) = look.end.filter(|_| began.elapsed() < TAKE_OUT_LIMIT) else {
                hindered.extend([not_now("there are more than one look has time for")]);
                continue;
            };
            let Some(before) = notes.get(&key(table)).cloned() else {
                hindered.extend([not_now("the store could not note it")]);
                continue;
            };
            if let Err(error) = notes.put(begun(&before, end)).await {
                notes.say_unwritten(&error);
                hindered.extend([not_now("the store could not note it")]);
                continue;
            }
            crate::failpoint::hit("identity.noted");
            match identity::take_out(client, &self.source, table).await? {
                TakenOut::Done => {
                    crate::failpoint::hit("identity.taken_out");
                    let (source, publication) = (&self.source.name, &self.source.publication);
                    warn!(source, publication, %table, from = %end, "taken out of the publication, so that its own writes work");
                }
                TakenOut::Refused(why) => {
                    hindered.extend([not_now(&why)]);
                    if let Err(error) = notes.put(before).await {
                        notes.say_unwritten(&error);
                    }
                }
            }
        }
        Ok(hindered)
    }

    /// Ends the gaps of tables that have their identity again: those that are published, and those that are never going to
    /// be. Whether one is left that can be put back.
    async fn close(
        &self,
        client: &Client,
        version: u32,
        tables: &[TableName],
        notes: &mut Notes,
    ) -> Result<bool, PrepareError> {
        if tables.is_empty() {
            return Ok(false);
        }
        let Some(state) = publication::read(client, &self.source, version).await? else { return Ok(true) };
        let mut wants_back = false;
        for table in tables {
            let is_wanted = self.sinks.iter().any(|sink| sink.takes_table(table));
            if !state.covers(table) && self.outlook.is_kept(table) {
                continue;
            }
            if !state.covers(table) && is_wanted && identity::exists(client, table).await? {
                wants_back = true;
                continue;
            }
            // After it was seen in the publication.
            let to = identity::end_of_wal(client).await?;
            let Some(note) = notes.get(&key(table)).cloned() else { continue };
            let closed = Note { to: Some(to), ..note };
            let trouble = told(&self.source.name, &closed).trouble;
            warn!(source = self.source.name, advice = trouble.advice, "{}", trouble.what);
            if let Err(error) = notes.put(closed).await {
                notes.say_unwritten(&error);
            }
        }
        Ok(wants_back)
    }
}

fn key(table: &TableName) -> NoteKey {
    NoteKey::new(NoteKind::Identity, table.clone())
}

/// The note of a table that is about to be taken out. One gap joins the next: what lies between is not told apart any more.
fn begun(before: &Note, end: Lsn) -> Note {
    Note { from: Some(before.from.unwrap_or(end)), to: None, ..before.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OnSlotLost;
    use crate::source::address::PgAddress;
    use crate::source::slot::identity::Fault;

    fn config() -> SourceConfig {
        SourceConfig {
            name: "app".to_owned(),
            url: PgAddress::parse("postgres://u@h/app").unwrap(),
            slot: "walhook_app".to_owned(),
            publication: "walhook_app".to_owned(),
            create: true,
            heartbeat: None,
            failover: false,
            on_slot_lost: OnSlotLost::Stop,
        }
    }

    fn named(table: &str) -> TableName {
        TableName { schema: "public".to_owned(), table: table.to_owned() }
    }

    fn bare_of(table: &str) -> Bare {
        let (table, fault) = (named(table), Fault::NoKey);
        Bare { relation: table.clone(), table, fault, is_member: true, is_candidate: false }
    }

    fn look(bare: Vec<Bare>) -> Look {
        Look {
            is_ours: true,
            is_owned: true,
            in_recovery: false,
            version: 150_020,
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
        decide(source, look, &published(look), &noted.iter().collect::<Vec<_>>())
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
        ];
        let names = |tables: &[&str]| tables.iter().map(|table| named(table)).collect::<Vec<_>>();
        let expected = Decided {
            begin: names(&["new"]),
            take_out: names(&["again", "new", "seen"]),
            forget: names(&["never_out"]),
            whole: names(&["back"]),
        };
        assert_eq!(decided(&config(), &found, &noted), expected);
        // Of tables that a look did not reach nothing is known.
        let cut = decided(&config(), &Look { is_cut: true, ..found }, &noted);
        assert_eq!((cut.forget, cut.whole), (Vec::new(), Vec::new()));
    }

    #[test]
    fn only_a_member_of_a_publication_of_our_own_is_taken_out() {
        let ours = look(vec![bare_of("t")]);
        assert_eq!(decided(&config(), &ours, &[]).take_out, [named("t")]);
        let whole = Bare { is_member: false, ..bare_of("t") };
        for (looks, source) in [
            (Look { is_ours: false, ..ours.clone() }, config()),
            (Look { is_owned: false, ..ours.clone() }, config()),
            (Look { in_recovery: true, ..ours.clone() }, config()),
            (look(vec![whole]), config()),
            (ours, SourceConfig { create: false, ..config() }),
        ] {
            let found = decided(&source, &looks, &[]);
            assert_eq!((found.begin, found.take_out), (vec![named("t")], Vec::new()), "{looks:?}");
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
        let trouble = found.harm(&config(), &leaf, Some("noon"), "it is locked");
        let what = "public.t is published and its own UPDATE and DELETE fail since noon: its partition public.leaf has no \
                    primary key and no replica identity; it is not taken out of the publication: it is locked";
        assert_eq!(trouble.what, what);
        let (mend, out) = trouble.advice.split_once('\n').unwrap();
        assert!(mend.contains("ALTER TABLE \"public\".\"leaf\" REPLICA IDENTITY FULL;"), "{mend}");
        assert!(out.contains("ALTER PUBLICATION \"walhook_app\" DROP TABLE ONLY \"public\".\"t\";"), "{out}");
        let only = Look { deletes: false, ..look(Vec::new()) };
        let all = Bare { is_member: false, fault: Fault::Nothing, ..bare_of("t") };
        let trouble = only.harm(&config(), &all, None, "no");
        assert!(
            trouble.what.starts_with("public.t is published and its own UPDATE fails: it has REPLICA IDENTITY NOTHING")
        );
        assert!(trouble.advice.contains("REPLICA IDENTITY DEFAULT") && trouble.advice.contains("without public.t"));
    }
}

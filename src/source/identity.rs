//! Keeps the application's own writes working: a published table that has lost its replica identity is taken out of the
//! publication, where that is walhook's, and put back when it has one again.
//!
//! What is committed in between is a gap. The order makes a crash at any point leave it noted: first the store notes where the
//! gap begins, with an open end; then the table is taken out; it is put back by the usual look for tables; and only then the gap
//! gets its end, read after that was committed and after every transaction of before has ended. A gap may begin a little early
//! and end a little late, never the other way round.
//!
//! A table without an identity may also leave the publication by another hand: a person's, or that of another source that shares
//! the publication. That is the same gap, from the look before on.

mod deciding;
mod leaving;
mod members;
mod returning;

use std::collections::{BTreeMap, HashMap, HashSet};

use tokio_postgres::Client;
use tracing::warn;

use self::deciding::{Decided, decide, published};
use self::members::Members;
use super::notes::{Notes, Outlook, at, now, told};
use super::slot::PrepareError;
use super::slot::identity::{self, Bare, Look};
use super::slot::running::Running;
use crate::change::{Lsn, TableName};
use crate::config::{SinkConfig, SourceConfig};
use crate::fault::chain;
use crate::store::{Note, NoteKey, NoteKind};
use crate::view::Trouble;

/// Looks that may fail one after another before it counts as a harm that nothing is known: within 10 s, as any other.
const BLIND_MAX: u32 = 2;
/// Tables that one look logs one by one.
const LOGGED_MAX: usize = 10;

/// What was found and is not mended.
#[derive(Debug, Default)]
pub(super) struct Tended {
    /// Tables that are still published while their own writes fail, as far as is known.
    pub(super) harms: Vec<Trouble>,
    /// A table that is out has an identity again: it is time to put it back.
    pub(super) wants_back: bool,
    /// Why not everything could be looked at or done, as long as that is no harm.
    pub(super) fault: Option<Trouble>,
}

/// A table whose writes fail, as it was last seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    /// Since when, microseconds since 1970.
    since: i64,
    /// End of the server's WAL before the last look at which it was published.
    end: Option<Lsn>,
    /// As in [`Bare`].
    place: u32,
}

/// Looks after the tables of one source.
#[derive(Debug)]
pub(super) struct Watch {
    source: SourceConfig,
    sinks: Vec<SinkConfig>,
    /// Tables that are published while their writes fail.
    seen: HashMap<TableName, Seen>,
    /// Tables that are back, with the transactions that wrote before, as long as one runs.
    ending: HashMap<TableName, Running>,
    /// What the publication named at the look before.
    members: Option<Members>,
    /// Tables of which it was logged that their writes fail.
    harmed: HashSet<TableName>,
    /// What becomes of tables that are out.
    outlook: Outlook,
    /// What the last look that succeeded has found.
    harms: Vec<Trouble>,
    /// Looks that failed since then.
    blind: u32,
    /// Looks so far: each begins with another one of the tables that are locked.
    turn: usize,
}

impl Watch {
    pub(super) fn new(source: SourceConfig, sinks: Vec<SinkConfig>) -> Self {
        let (seen, ending, harmed, outlook) = (HashMap::new(), HashMap::new(), HashSet::new(), Outlook::new(&source));
        Self { source, sinks, seen, ending, members: None, harmed, outlook, harms: Vec::new(), blind: 0, turn: 0 }
    }

    /// What becomes of tables that are out.
    pub(super) fn outlook(&self) -> &Outlook {
        &self.outlook
    }

    /// A look for tables has found why these cannot be published.
    pub(super) fn learn(&mut self, unfit: &HashMap<TableName, Trouble>) {
        self.outlook.learn(unfit);
    }

    /// Looks, and does what can be done. Where the server cannot be asked, what was found before still holds.
    pub(super) async fn tend(&mut self, client: &Client, notes: &mut Notes) -> Tended {
        let mut tended = Tended::default();
        let done = self.look_and_mend(client, notes, &mut tended).await;
        self.blind = done.as_ref().map_or_else(|_| self.blind.saturating_add(1), |()| 0);
        tended.harms.clone_from(&self.harms);
        if let Err(error) = done {
            // What the role may not see stays unknown until somebody lets it: nothing that another start would mend.
            let is_refused = error.is_refusal();
            let fault = error.with_grant(&self.source.url.user).into_trouble();
            if self.blind == 1 {
                let (source, advice) = (&self.source.name, &fault.advice);
                warn!(source, advice, error = fault.what, "could not look at replica identities");
            }
            match self.blind >= BLIND_MAX && !is_refused {
                true => tended.harms.push(unknown(fault)),
                false => tended.fault = Some(fault),
            }
        }
        tended
    }

    /// Only looks. `why` nothing is done.
    pub(super) async fn see(&mut self, client: &Client, why: &str) -> Result<Tended, PrepareError> {
        if let Some(look) = identity::look(client, &self.source, &[]).await? {
            let bare = published(&look);
            for table in bare.keys() {
                self.first_seen(table);
            }
            let hindered = bare.keys().map(|table| (table.clone(), why.to_owned())).collect();
            self.show(&look, &bare, hindered);
        }
        Ok(Tended { harms: self.harms.clone(), ..Tended::default() })
    }

    async fn look_and_mend(
        &mut self,
        client: &Client,
        notes: &mut Notes,
        tended: &mut Tended,
    ) -> Result<(), PrepareError> {
        let out: Vec<TableName> =
            notes.of(NoteKind::Identity).filter(|note| note.is_open()).map(|note| note.key.table.clone()).collect();
        let candidates: Vec<&TableName> = out.iter().collect();
        let Some(look) = identity::look(client, &self.source, &candidates).await? else {
            self.harms.clear();
            return Ok(());
        };
        self.turn = self.turn.wrapping_add(1);
        let bare = published(&look);
        let noted: Vec<&Note> = notes.of(NoteKind::Identity).collect();
        let decided = decide(&self.source, &look, &bare, &noted, |table| self.seen.contains_key(table));
        let Decided { begin, take_out, mended, mut whole } = decided;
        self.begin(&begin, &look, &bare, notes).await;
        let hindered = self.take_out(client, &look, &take_out, notes).await;
        // What cannot be taken out is said, whatever else fails.
        let (hindered, fault) = match hindered {
            Ok(hindered) => (hindered, None),
            Err(error) => {
                let why = chain(&error);
                (take_out.iter().map(|bare| (bare.table.clone(), why.clone())).collect(), Some(error))
            }
        };
        self.show(&look, &bare, hindered);
        if let Some(fault) = fault {
            return Err(fault);
        }
        whole.extend(self.judge(client, &look, mended, notes).await?);
        self.remember(&look, &bare);
        self.miss(client, &look, notes).await?;
        self.outlook.see_whole(&whole);
        tended.wants_back = self.close(client, look.version, &whole, notes).await?;
        Ok(())
    }

    /// Notes since when.
    async fn begin(&mut self, tables: &[TableName], look: &Look, bare: &BTreeMap<TableName, Bare>, notes: &mut Notes) {
        for table in tables {
            let note = Note { to: look.end, ..Note::new(key(table), now()) };
            let trouble = told(&self.source.name, &note).trouble;
            warn!(source = self.source.name, advice = trouble.advice, "{}", trouble.what);
            if let Err(error) = notes.put(note).await {
                notes.say_unwritten(&error);
            }
        }
        for table in bare.keys() {
            let noted = notes.get(&key(table)).filter(|note| note.from.is_none()).map(|note| note.at_micros);
            let seen = self.first_seen(table);
            seen.since = noted.unwrap_or(seen.since);
        }
    }

    fn first_seen(&mut self, table: &TableName) -> &mut Seen {
        self.seen.entry(table.clone()).or_insert_with(|| Seen { since: now(), ..Seen::default() })
    }

    /// What is published now, and where that was seen.
    fn remember(&mut self, look: &Look, bare: &BTreeMap<TableName, Bare>) {
        self.seen.retain(|table, _| look.is_cut || bare.contains_key(table));
        for (table, bare) in bare {
            let seen = self.seen.entry(table.clone()).or_default();
            (seen.end, seen.place) = (look.end.or(seen.end), bare.place);
        }
    }

    /// Tables that are still published, each with why.
    fn show(&mut self, look: &Look, bare: &BTreeMap<TableName, Bare>, mut hindered: HashMap<TableName, String>) {
        let told = |(table, bare): (&TableName, &Bare)| {
            let hindrance = look.hindrance(&self.source, bare).map(str::to_owned);
            let hindrance = hindrance.or_else(|| hindered.remove(table))?;
            let since = self.seen.get(table).map(|seen| at(seen.since));
            Some((table.clone(), look.harm(&self.source, bare, since.as_deref(), &hindrance)))
        };
        let harms: BTreeMap<TableName, Trouble> = bare.iter().filter_map(told).collect();
        self.log(&harms);
        self.harms = harms.into_values().collect();
    }

    /// Logs each table once for as long as its writes fail.
    fn log(&mut self, harms: &BTreeMap<TableName, Trouble>) {
        let new: Vec<_> = harms.iter().filter(|(table, _)| !self.harmed.contains(*table)).collect();
        for (_, trouble) in new.iter().take(LOGGED_MAX) {
            warn!(source = self.source.name, advice = trouble.advice, "{}", trouble.what);
        }
        if let Some(more) = new.len().checked_sub(LOGGED_MAX).filter(|more| *more > 0) {
            warn!(
                source = self.source.name,
                "{more} more tables are published while their own writes fail; /readyz has all"
            );
        }
        self.harmed = harms.keys().cloned().collect();
    }
}

/// Nothing is known of any table.
fn unknown(fault: Trouble) -> Trouble {
    let what = format!("it is not known whether the published tables' own UPDATE and DELETE work: {}", fault.what);
    Trouble { what, ..fault }
}

fn key(table: &TableName) -> NoteKey {
    NoteKey::new(NoteKind::Identity, table.clone())
}

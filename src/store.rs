//! What must outlive the process: an embedded SQLite database with one writer.
//!
//! Into it goes only what must outlive the WAL: deliveries that failed, what has waited too long, the overflow of a sink
//! that cannot keep up, how far each sink is, dead letters; and, less carefully, the log of deliveries and attempts.
//! A sink [`Store::submit`]s a [`Batch`] and is told when it is durable; only then may anything that rests on it be
//! confirmed to Postgres.
//!
//! One directory holds it all, for one process at a time (`lock`):
//!
//! | file | what | a commit |
//! | --- | --- | --- |
//! | `state.db` | bindings, progress, deliveries, lanes, pages | is on the disk before anybody is told |
//! | `log.db` | the log of deliveries and attempts | may be lost by a crash of the machine |
//!
//! The tables of both are in `schema`, what stands in their blobs in `encoding`.
//!
//! ```text
//!  sinks ──Batch──▶ inbox ──▶ writer ──▶ ledger ──apply──▶ state.db ◀── readers ◀── body, lanes, pages
//!        ──LogRow─▶       one thread └──▶ logbook ───────▶ log.db
//! ```
//!
//! Not promised: that a write succeeds soon. A disk that is full or fails is tried again for ever, and [`Store::health`]
//! says so. `state.max_bytes` bounds all files together; how is in `quota`.

mod apply;
pub mod batch;
mod bindings;
pub mod damaged;
mod dropping;
mod encoding;
mod error;
mod files;
mod gaps;
mod grouping;
mod health;
mod holdings;
mod inbox;
mod lanes;
mod ledger;
mod loading;
pub mod log;
mod logbook;
mod marker;
pub mod mend;
mod notes;
mod pages;
mod quota;
mod readers;
mod reading;
mod running;
mod schema;
mod seals;
mod sweep;
mod tables;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::oneshot;

pub use self::batch::*;
pub use self::bindings::{AbsentSink, NewBinding};
pub use self::encoding::Corrupt;
pub use self::error::StoreError;
use self::files::Paths;
pub use self::gaps::{Gap, WentBack};
use self::health::HealthCell;
pub use self::health::{Expired, Health};
pub use self::holdings::Holdings;
use self::inbox::{Inbox, Submitted};
use self::ledger::Ledger;
pub use self::loading::{AcceptedBy, SourceBinding};
use self::log::LogRow;
use self::logbook::Logbook;
pub use self::notes::{Note, NoteKey, NoteKind};
use self::quota::Budget;
pub use self::quota::least_max_bytes;
use self::readers::Readers;
use self::writer::Writer;
use crate::config::{Hold, StateConfig, TablePattern};
use crate::deliver::frozen::DeliveryId;

/// A handle of the store; clones are handles of the same one. When the last is dropped the store closes as by
/// [`Store::close`].
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    inbox: Arc<Inbox>,
    health: Arc<HealthCell>,
    readers: Arc<Readers>,
    writer: Mutex<Option<JoinHandle<()>>>,
    batch_bytes_max: usize,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("inbox", &self.shared.inbox).finish_non_exhaustive()
    }
}

impl Store {
    /// Makes the directory, locks it, opens both databases and brings them to this version, and starts the thread that
    /// writes. `sinks` bounds the batches that wait. Blocks: not for the runtime's threads.
    ///
    /// # Errors
    /// When any of it fails; [`StoreError::is_lasting`] tells whether trying again may help.
    pub fn open(config: &StateConfig, sinks: usize) -> Result<Self, StoreError> {
        require_room(config, sinks)?;
        let paths = Paths::of(&config.path);
        paths.make_directory()?;
        let lock = paths.lock()?;
        let disk_bytes = quota::disk(&paths.directory).map_or(u64::MAX, |(all, _)| all);
        let budget = Budget::new(config.max_bytes, disk_bytes);
        let state = files::open_state(&paths, &budget)?;
        let log = files::open_log(&paths, &budget)?;

        let inbox = Arc::new(Inbox::new(sinks));
        let health = Arc::new(HealthCell::new(config.max_bytes));
        let readers = Arc::new(Readers::new(&paths.state));
        let logbook = Logbook::new(log, paths.clone(), config, &budget);
        let ledger = Ledger::new(state, config.dead_letter_retention, paths, budget);
        let ledger = ledger.map_err(StoreError::write("the time that walhook has run"))?;
        let writer = Writer::new(Arc::clone(&inbox), Arc::clone(&health), ledger, logbook, lock);
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || writer.run());
        let writer = Mutex::new(Some(thread.map_err(StoreError::Thread)?));
        let batch_bytes_max = budget.batch_bytes_max(sinks);
        Ok(Self { shared: Arc::new(Shared { inbox, health, readers, writer, batch_bytes_max }) })
    }

    /// What the store is bound to for a source; `None` if it knows none of that name. Blocks.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn source(&self, name: &str) -> Result<Option<SourceBinding>, StoreError> {
        self.shared.readers.read_here(|db| loading::binding(db, name))
    }

    /// Binds a source, or binds it anew. Durable when it returns. Blocks.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn bind(&self, binding: &NewBinding) -> Result<(), StoreError> {
        let binding = binding.clone();
        self.call(move |db| bindings::bind(db, &binding))
    }

    /// Notes who says that what lies between the store's progress and the slot of a source may be missing, or that nobody
    /// does any more; [`mend::accept_gap`] says it for a person, and a [`Store::bind`] with a position takes it back.
    /// Durable when it returns. Blocks.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn accept_gap(&self, source: &str, by: Option<AcceptedBy>) -> Result<(), StoreError> {
        let source = source.to_owned();
        self.call(move |db| gaps::accept(db, &source, by))
    }

    /// Notes that the server of a source was not where it should be, until a person accepts a gap. Durable when it returns. Blocks.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note_went_back(&self, source: &str, went_back: WentBack) -> Result<(), StoreError> {
        let source = source.to_owned();
        self.call(move |db| gaps::note_went_back(db, &source, went_back))
    }

    /// Notes changes that were never read. Durable when it returns; only the newest hundred of a source are kept. Blocks.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note_gap(&self, source: &str, gap: &Gap) -> Result<(), StoreError> {
        let (source, gap) = (source.to_owned(), gap.clone());
        self.call(move |db| gaps::note(db, &source, &gap))
    }

    /// The gaps of a source, the newest first. Blocks.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn gaps(&self, source: &str) -> Result<Vec<Gap>, StoreError> {
        self.shared.readers.read_here(|db| gaps::read(db, source))
    }

    /// The notes about single tables of a source, by kind and table. Blocks.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn notes(&self, source: &str) -> Result<Vec<Note>, StoreError> {
        self.shared.readers.read_here(|db| notes::read(db, source))
    }

    /// Writes a note in the place of the one of the same kind and tables. Durable when it returns. Blocks.
    ///
    /// # Errors
    /// When there are too many of the source ([`StoreError::NotesFull`]), or it cannot be written.
    pub fn put_note(&self, source: &str, note: &Note) -> Result<(), StoreError> {
        let (source, note) = (source.to_owned(), note.clone());
        self.call(move |db| notes::put(db, &source, &note))
    }

    /// Removes some notes and writes others, all or none of it. Durable when it returns. Blocks.
    ///
    /// # Errors
    /// As [`Self::put_note`].
    pub fn replace_notes(&self, source: &str, gone: &[NoteKey], new: &[Note]) -> Result<(), StoreError> {
        let (source, gone, new) = (source.to_owned(), gone.to_vec(), new.to_vec());
        self.call(move |db| notes::replace(db, &source, &gone, &new))
    }

    /// Removes a note, if it is there. Blocks.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn remove_note(&self, source: &str, key: &NoteKey) -> Result<(), StoreError> {
        let (source, key) = (source.to_owned(), key.clone());
        self.call(move |db| notes::remove(db, &source, &key))
    }

    /// What the sinks of a source asked for when it was last prepared; empty if it never was. Blocks.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn watched(&self, source: &str) -> Result<Vec<TablePattern>, StoreError> {
        self.shared.readers.read_here(|db| notes::watched(db, source))
    }

    /// Notes what the sinks of a source ask for. Blocks.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn watch(&self, source: &str, patterns: &[TablePattern]) -> Result<(), StoreError> {
        let (source, patterns) = (source.to_owned(), patterns.to_vec());
        self.call(move |db| notes::watch(db, &source, &patterns))
    }

    /// Tells which sinks of a source the config has: these are active, all others of the source are absent. A sink that was
    /// absent before takes up where the source is. The answer is the absent ones that still hold something. Blocks.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn register(&self, source: &str, sinks: &[&str]) -> Result<Vec<AbsentSink>, StoreError> {
        let source = source.to_owned();
        let sinks: Vec<String> = sinks.iter().map(|sink| (*sink).to_owned()).collect();
        self.call(move |db| bindings::register(db, &source, &sinks))
    }

    /// Tells which sources the config has: the sinks of all others are absent. The answer is those of them that still hold
    /// something. Blocks.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn leave_out(&self, sources: &[&str]) -> Result<Vec<AbsentSink>, StoreError> {
        let sources: Vec<String> = sources.iter().map(|source| (*source).to_owned()).collect();
        self.call(move |db| bindings::leave_out(db, &sources))
    }

    /// Notes the rule by which a sink's messages are grouped. Blocks.
    ///
    /// # Errors
    /// When messages wait that were grouped by another ([`StoreError::Regrouped`]), or it cannot be written.
    pub fn agree_on_grouping(&self, source: &str, sink: &str, rule: &str) -> Result<(), StoreError> {
        let [source, sink, rule] = [source, sink, rule].map(str::to_owned);
        self.call(move |db| grouping::agree(db, &source, &sink, &rule))
    }

    /// What the store has of a sink that was registered. Blocks.
    ///
    /// # Errors
    /// When it cannot be read, or the sink is not known.
    pub fn load(&self, source: &str, sink: &str) -> Result<(SinkKey, Loaded), StoreError> {
        let (source, sink) = (source.to_owned(), sink.to_owned());
        let health = Arc::clone(&self.shared.health);
        // By the thread that sweeps, so that no dead letter is counted that has expired, nor one left out.
        self.shared.readers.told(self.call(move |db| {
            let loaded = loading::load(db, &source, &sink).map_err(|error| error.of_sink(&source, &sink))?;
            health.watch_expiry(loaded.0);
            Ok(loaded)
        }))
    }

    /// Dead letters of the sink that expired since the last call, or since it was loaded.
    pub fn take_expired(&self, sink: SinkKey) -> Expired {
        self.shared.health.take_expired(sink)
    }

    /// Hands over a batch. The answer comes when it is durable, and never before; its sender is dropped when that will not
    /// be: the store was closed first, or the batch contradicts what is durable (which is logged as an error). A sink
    /// hands over its next batch after that.
    pub fn submit(&self, batch: Batch) -> oneshot::Receiver<()> {
        let (done, answer) = oneshot::channel();
        self.shared.inbox.submit(Submitted { batch, done });
        answer
    }

    /// Bytes of bodies and messages that a batch should put in at most. A larger one may find no room just when the store
    /// becomes full, and then waits until others have left.
    pub fn batch_bytes_max(&self) -> usize {
        self.shared.batch_bytes_max
    }

    /// The body of a delivery, dead ones included; `None` if it is not kept.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn body(&self, sink: SinkKey, delivery: DeliveryId) -> Result<Option<KeptBody>, StoreError> {
        let read =
            self.shared.readers.read(move |db| reading::of_sink(db, sink, reading::body(db, sink, delivery))).await;
        self.shared.told(sink, "body", read)
    }

    /// The next messages of lanes: of each at most `messages_max`, of all at most `bytes_max` bytes of JSON, but at least
    /// one message. A lane that is empty comes with no messages; those for which no bytes were left do not come at all.
    /// A message of two groups comes in both lanes. For a message that is damaged one comes that says so ([`damaged`]).
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn lanes(
        &self,
        sink: SinkKey,
        wants: Vec<LaneWant>,
        messages_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<LaneRead>, StoreError> {
        let read = self
            .shared
            .readers
            .read(move |db| reading::of_sink(db, sink, reading::lanes(db, sink, &wants, messages_max, bytes_max)))
            .await;
        self.shared.told(sink, "lanes", read)
    }

    /// The pages of the overflow from number `from` on, in order: at most `bytes_max` bytes of JSON before any left, but at
    /// least one page if there is one. Messages that have left are left out. For a message that is damaged one comes that says so
    /// ([`damaged`]).
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn pages(&self, sink: SinkKey, from: u64, bytes_max: usize) -> Result<Vec<Page>, StoreError> {
        let read = self
            .shared
            .readers
            .read(move |db| reading::of_sink(db, sink, reading::pages(db, sink, from, bytes_max)))
            .await;
        self.shared.told(sink, "pages", read)
    }

    /// Hands over a row of the log. One for which there is no room is lost, and counted in [`Health::log_rows_lost`].
    pub fn log(&self, row: LogRow) {
        if !self.shared.inbox.log(row) {
            self.shared.health.lose_log_rows(1);
        }
    }

    /// Rows that were not even made, for want of time.
    pub fn log_lost(&self, rows: usize) {
        self.shared.health.lose_log_rows(rows);
    }

    /// How the store is.
    pub fn health(&self) -> Health {
        self.shared.health.show()
    }

    /// Writes what was handed over, within some seconds, and gives the directory free. Other handles find it closed.
    /// Blocks.
    pub fn close(self) {
        self.shared.close();
    }

    fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = mpsc::sync_channel(1);
        // Nobody waits for an answer any more only if the caller has panicked.
        let taken = self.shared.inbox.call(Box::new(move |db| answer.send(call(db)).unwrap_or_default()));
        if !taken {
            return Err(StoreError::Closed);
        }
        answered.recv().map_err(|_| StoreError::Closed)?
    }
}

/// Where failed deliveries wait in the WAL, sinks put in nothing that must find room.
fn require_room(config: &StateConfig, sinks: usize) -> Result<(), StoreError> {
    let StateConfig { max_bytes, hold, .. } = *config;
    let least_bytes = least_max_bytes(sinks);
    match hold {
        Hold::Store if max_bytes < least_bytes => Err(StoreError::TooSmall { max_bytes, sinks, least_bytes }),
        Hold::Store | Hold::Wal => Ok(()),
    }
}

impl Shared {
    /// Shows whether `what` of a sink can be read.
    fn told<T>(&self, sink: SinkKey, what: &'static str, read: Result<T, StoreError>) -> Result<T, StoreError> {
        match &read {
            Ok(_) => self.health.set_reading(sink, what, None),
            Err(StoreError::Closed) => {}
            Err(error) => self.health.set_reading(sink, what, Some(health::reading_trouble(error))),
        }
        read
    }

    fn close(&self) {
        self.inbox.close();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the thread that writes the store panicked");
        }
        self.readers.close();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}

//! From decoded messages to what each sink is fed: transactions, positions, routing. No IO.
//!
//! Every change gets its [`Position`]: a row, each table of a TRUNCATE, a logical message in a transaction. Its place does
//! not depend on what sinks take, so that a changed configuration changes no idempotency key; only walhook's own messages
//! have none. A table's changes go to the sinks that take them; a commit or a keepalive becomes a mark for every sink.
//! Logical messages outside of transactions come before their commit order is known, and go to nobody. The intake outlives
//! connections: after a reconnect the server sends again what is not confirmed, and everything up to the last position
//! that was fed is skipped.

mod annotations;
mod doubt;
mod prefixes;
mod unheard;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use self::annotations::Word;
use self::doubt::Doubts;
use self::prefixes::Prefixes;
use self::unheard::{Lines, Unheard};
use crate::change::{Change, Lsn, Position, Row, Table, Transaction};
use crate::config::{PrefixPattern, SinkConfig};
use crate::feed::Feed;
use crate::source::pgoutput::{Message, Relation};
use crate::source::relation::announced;
use crate::source::route::{Route, routes};

/// The stream does not hang together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntakeError {
    /// A row before its relation.
    #[error("a change of relation {0} came before the relation was described")]
    UnknownRelation(u32),
    /// A row outside of Begin and Commit.
    #[error("a change came outside of a transaction")]
    NoTransaction,
    /// More or fewer values than columns.
    #[error("a row of {table} has {values} values for {columns} columns")]
    Shape {
        /// Its table.
        table: String,
        /// In the row.
        values: usize,
        /// In the relation.
        columns: usize,
    },
}

/// What came in, to be counted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Inserts.
    pub inserts: u64,
    /// Updates.
    pub updates: u64,
    /// Deletes.
    pub deletes: u64,
    /// Committed transactions.
    pub transactions: u64,
    /// Tables named by TRUNCATEs.
    pub truncates: u64,
    /// Those of them that no sink takes.
    pub ignored_truncates: u64,
    /// Logical messages that a sink takes.
    pub messages: u64,
    /// Changes and logical messages that a sink takes and that are larger than they may be.
    pub oversized: u64,
    /// Commit time of the last transaction, microseconds since 1970-01-01 UTC.
    pub last_commit_micros: Option<i64>,
}

#[derive(Debug)]
struct Known {
    table: Arc<Table>,
    routes: Vec<Route>,
}

#[derive(Debug)]
struct Open {
    transaction: Arc<Transaction>,
    index: u64,
    annotations: Option<Arc<str>>,
}

impl Open {
    /// The transaction's next change.
    fn change(&mut self, table: Arc<Table>, row: Row, oversize: Option<usize>, now: Instant) -> Change {
        self.index += 1;
        Change {
            transaction: Arc::clone(&self.transaction),
            index: self.index,
            table,
            row,
            annotations: self.annotations.clone(),
            oversize,
            received_at: now,
        }
    }
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fed {
    /// It is on its way to at least one sink.
    Taken,
    /// No sink takes it.
    Ignored,
    /// It came before.
    Before,
}

/// See the module.
#[derive(Debug)]
pub struct Intake {
    sinks: Vec<SinkConfig>,
    tables: HashMap<u32, Known>,
    doubts: Doubts,
    open: Option<Open>,
    fed: Option<Position>,
    /// See [`Self::has_skipped`].
    has_skipped: bool,
    /// See [`Self::gathered`].
    gathered: usize,
    received: Lsn,
    batches: Vec<Vec<Feed>>,
    tally: Tally,
    /// Whether a sink takes logical messages.
    hears: bool,
    prefixes: Prefixes,
    unheard: Unheard,
    /// Of the log of changes that are too large, and of annotations that are.
    oversizes: Lines,
    long_annotations: Lines,
    scratch: Vec<u8>,
    /// See [`Change::oversize`].
    oversize: Option<usize>,
}

impl Intake {
    /// An intake for these sinks, in this order.
    pub fn new(sinks: Vec<SinkConfig>) -> Self {
        let batches = sinks.iter().map(|_| Vec::new()).collect();
        let hears = sinks.iter().any(|sink| !sink.messages.is_empty());
        Self {
            sinks,
            tables: HashMap::new(),
            doubts: Doubts::default(),
            open: None,
            fed: None,
            has_skipped: false,
            gathered: 0,
            received: Lsn::ZERO,
            batches,
            tally: Tally::default(),
            hears,
            prefixes: Prefixes::default(),
            unheard: Unheard::default(),
            oversizes: Lines::default(),
            long_annotations: Lines::default(),
            scratch: Vec::new(),
            oversize: None,
        }
    }

    /// A new connection starts at `confirmed`: relations will be described anew, and an open transaction starts over.
    pub fn reconnected(&mut self, confirmed: Lsn) {
        self.tables.clear();
        self.doubts.clear();
        self.open = None;
        self.mark(confirmed);
    }

    /// Tells every sink something before anything else.
    pub fn begin(&mut self, feed: impl Fn() -> Feed) {
        for batch in &mut self.batches {
            batch.push(feed());
        }
    }

    /// The rules of all sinks.
    pub fn sinks(&self) -> &[SinkConfig] {
        &self.sinks
    }

    /// A table was described; its next changes have this shape.
    pub fn learn(&mut self, mut table: Table) {
        if let Some(reading) = self.reading() {
            doubt::believe(&mut table, reading);
        }
        let routes = routes(&table, &self.sinks);
        let known = self.tables.get(&table.oid).map_or(&[][..], |known| &known.routes);
        for route in &routes {
            let is_same =
                |known: &Route| (known.sink, known.scope, &known.rule) == (route.sink, route.scope, &route.rule);
            if !known.iter().any(is_same)
                && let Some(batch) = self.batches.get_mut(route.sink)
            {
                batch.push(Feed::Table { scope: route.scope, oid: table.oid, rule: Arc::clone(&route.rule) });
            }
        }
        let table = Arc::new(table);
        self.doubts.learn(&table);
        self.tables.insert(table.oid, Known { table, routes });
    }

    /// The relation of a row that does not fit what is known of its table, to be looked up and [`Self::learn`]ed before the row
    /// is taken.
    pub fn doubted(&mut self, message: &Message, now: Instant) -> Option<Relation> {
        let reading = self.reading();
        self.doubts.about(message, reading, now).map(|table| announced(table))
    }

    /// The transaction that is open.
    fn reading(&self) -> Option<u32> {
        self.open.as_ref().map(|open| open.transaction.xid)
    }

    /// Takes in one message. A relation comes back, to be looked up and [`Self::learn`]ed before the next message.
    ///
    /// # Errors
    /// When the stream does not hang together; the connection is of no use then.
    pub fn take(&mut self, message: Message, now: Instant) -> Result<Option<Relation>, IntakeError> {
        match message {
            Message::Begin(transaction) => {
                self.open = Some(Open { transaction: Arc::new(transaction), index: 0, annotations: None });
            }
            Message::Commit { end_lsn, commit_micros, .. } => self.commit(end_lsn, commit_micros),
            Message::Insert { relation, new } => {
                self.tally.inserts += 1;
                self.row(relation, Row::Insert { new }, now)?;
            }
            Message::Update { relation, old, new } => {
                self.tally.updates += 1;
                self.row(relation, Row::Update { old, new }, now)?;
            }
            Message::Delete { relation, old } => {
                self.tally.deletes += 1;
                self.row(relation, Row::Delete { old }, now)?;
            }
            Message::Truncate { relations, .. } => self.truncate(&relations, now)?,
            Message::Logical { transactional: true, prefix, content, .. } => self.logical(&prefix, content, now)?,
            Message::Logical { transactional: false, .. } => {}
            Message::Relation(relation) => return Ok(Some(relation)),
            Message::Type(_) | Message::Origin { .. } => {}
        }
        Ok(None)
    }

    /// Takes in a message of `bytes` as it was sent, out of which values were left because it is too large.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_reduced(
        &mut self,
        message: Message,
        bytes: usize,
        now: Instant,
    ) -> Result<Option<Relation>, IntakeError> {
        self.oversize = Some(bytes);
        let taken = self.take(message, now);
        self.oversize = None;
        taken
    }

    /// The server has nothing up to `server_end` that was not sent. Inside a transaction that says nothing new.
    pub fn keepalive(&mut self, server_end: Lsn) {
        if self.open.is_none() {
            self.mark(server_end);
        }
    }

    /// Everything up to here has been read.
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// Everything that was read, also of a transaction whose end did not come yet, lies before this.
    pub fn seen(&self) -> Lsn {
        // A transaction is kept by a promotion if its commit record, which begins at this LSN, is.
        let behind_fed = self.fed.map_or(Lsn::ZERO, |fed| Lsn(fed.commit_lsn.0.saturating_add(1)));
        self.received.max(behind_fed)
    }

    /// Whether a change was skipped, because it was fed before, and nobody has forgotten it.
    pub fn has_skipped(&self) -> bool {
        self.has_skipped
    }

    /// It was fed before indeed.
    pub fn forget_skipped(&mut self) {
        self.has_skipped = false;
    }

    /// Messages for all sinks together that were made since the beginning; it wraps around.
    pub fn gathered(&self) -> usize {
        self.gathered
    }

    /// What came in since the last call.
    pub fn tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// What sink `index` is to be fed; taking it empties it.
    pub fn batch(&mut self, index: usize) -> Option<&mut Vec<Feed>> {
        self.batches.get_mut(index).filter(|batch| !batch.is_empty())
    }

    fn commit(&mut self, end_lsn: Lsn, commit_micros: i64) {
        self.open = None;
        self.tally.transactions += 1;
        self.tally.last_commit_micros = Some(commit_micros);
        self.mark(end_lsn);
    }

    fn mark(&mut self, lsn: Lsn) {
        self.received = self.received.max(lsn);
        for batch in &mut self.batches {
            match batch.last_mut() {
                Some(Feed::Mark(last)) => *last = lsn.max(*last),
                _ => batch.push(Feed::Mark(lsn)),
            }
        }
    }

    fn row(&mut self, relation: u32, row: Row, now: Instant) -> Result<Fed, IntakeError> {
        let known = self.tables.get(&relation).ok_or(IntakeError::UnknownRelation(relation))?;
        let open = self.open.as_mut().ok_or(IntakeError::NoTransaction)?;
        let change = open.change(Arc::clone(&known.table), row, self.oversize, now);
        if self.fed.is_some_and(|fed| change.position() <= fed) {
            self.has_skipped = true;
            return Ok(Fed::Before);
        }
        check_shape(&change)?;
        self.fed = Some(change.position());
        self.gathered = self.gathered.wrapping_add(known.routes.len());
        let fed = feed(&known.routes, change, &mut self.batches, &mut self.scratch, &mut self.oversizes);
        self.tally.oversized += u64::from(fed == Fed::Taken && self.oversize.is_some());
        Ok(fed)
    }

    /// Each table is a change of its own, in the server's order, which is that of the statement and what it cascades to.
    fn truncate(&mut self, relations: &[u32], now: Instant) -> Result<(), IntakeError> {
        let mut unheard = Vec::new();
        for relation in relations {
            self.tally.truncates += 1;
            if self.row(*relation, Row::Truncate, now)? == Fed::Ignored {
                self.tally.ignored_truncates += 1;
                unheard.extend(self.tables.get(relation).map(|known| known.table.name.to_string()));
            }
        }
        if let Some((tables, unlogged)) = self.unheard.line(&unheard, now) {
            tracing::info!(tables, unlogged, "tables were truncated and no sink takes that");
        }
        Ok(())
    }

    /// A logical message of a transaction.
    fn logical(&mut self, prefix: &[u8], content: Bytes, now: Instant) -> Result<(), IntakeError> {
        if prefix.starts_with(PrefixPattern::OWN.as_bytes()) {
            self.annotate(prefix, &content, now);
            return Ok(());
        }
        let open = self.open.as_mut().ok_or(IntakeError::NoTransaction)?;
        if !self.hears {
            open.index += 1;
            return Ok(());
        }
        let known = self.prefixes.of(prefix, &self.sinks);
        let change = open.change(Arc::clone(&known.table), Row::Message { content }, self.oversize, now);
        self.tally.messages += u64::from(!known.routes.is_empty());
        if self.fed.is_some_and(|fed| change.position() <= fed) {
            self.has_skipped = true;
            return Ok(());
        }
        self.fed = Some(change.position());
        self.gathered = self.gathered.wrapping_add(known.routes.len());
        let fed = feed(&known.routes, change, &mut self.batches, &mut self.scratch, &mut self.oversizes);
        self.tally.oversized += u64::from(fed == Fed::Taken && self.oversize.is_some());
        Ok(())
    }

    fn annotate(&mut self, prefix: &[u8], content: &[u8], now: Instant) {
        let Some(open) = &mut self.open else { return };
        match annotations::read(prefix, content, self.oversize) {
            Word::Set(text) => open.annotations = Some(text),
            Word::SetTooLarge { text, bytes } => {
                open.annotations = Some(text);
                if let Some(unlogged) = self.long_annotations.one(now) {
                    tracing::warn!(
                        bytes,
                        unlogged,
                        "an annotation is left out: {} bytes are allowed",
                        annotations::BYTES_MAX
                    );
                }
            }
            Word::Clear => open.annotations = None,
            Word::Other => {}
        }
    }
}

/// Puts the change into the batches of the sinks that take it.
fn feed(
    routes: &[Route],
    change: Change,
    batches: &mut [Vec<Feed>],
    scratch: &mut Vec<u8>,
    oversizes: &mut Lines,
) -> Fed {
    let action = change.action();
    let mut takers = routes.iter().filter(|route| route.takes(action)).peekable();
    if takers.peek().is_none() {
        return Fed::Ignored;
    }
    if let Some(bytes) = change.oversize
        && let Some(unlogged) = oversizes.one(change.received_at)
    {
        say_oversize(&change, bytes, unlogged);
    }
    while let Some(route) = takers.next() {
        let (groups, scope) = (route.groups(&change, scratch), route.scope);
        let barrier = route.is_barrier(&change);
        let Some(batch) = batches.get_mut(route.sink) else { continue };
        if takers.peek().is_none() {
            batch.push(Feed::Change { change, groups, scope, barrier });
            break;
        }
        batch.push(Feed::Change { change: change.clone(), groups, scope, barrier });
    }
    Fed::Taken
}

/// A change that cannot be delivered is said to be one; each of them is a dead letter, also those beyond the log's bound.
fn say_oversize(change: &Change, bytes: usize, unlogged: u64) {
    let (table, action) = (&change.table.name, change.action().as_str());
    let Position { commit_lsn, index } = change.position();
    tracing::warn!(
        %table,
        action,
        %commit_lsn,
        index,
        bytes,
        unlogged,
        "a change is larger than limits.max_message: its large values are left out, and it becomes a dead letter"
    );
}

/// A tuple has as many values as its table has columns; everything behind here relies on it.
fn check_shape(change: &Change) -> Result<(), IntakeError> {
    let columns = change.table.columns.len();
    let tuples = change.new_tuple().into_iter().chain(change.old_row().map(crate::change::OldRow::tuple));
    match tuples.map(crate::change::Tuple::columns).find(|values| *values != columns) {
        None => Ok(()),
        Some(values) => Err(IntakeError::Shape { table: change.table.name.to_string(), values, columns }),
    }
}

#[cfg(test)]
mod tests;

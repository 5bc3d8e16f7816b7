//! From decoded messages to what each sink is fed: transactions, positions, routing. No IO.
//!
//! Every row change gets its [`Position`]; a table's changes go to the sinks that take them; a commit or a keepalive becomes a
//! mark for every sink. The intake outlives connections: after a reconnect the server sends again what is not
//! confirmed, and everything up to the last position that was fed is skipped.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::change::{Change, Lsn, Position, Row, Table, Transaction};
use crate::config::SinkConfig;
use crate::sink::feed::Feed;
use crate::source::pgoutput::{Message, Relation};
use crate::source::route::{Route, routes};

/// `prefix` of a transactional logical message whose JSON content annotates the rest of the transaction.
const ANNOTATE: &[u8] = b"walhook:transaction_annotations.set";
/// `prefix` that ends an annotation.
const ANNOTATE_NO_MORE: &[u8] = b"walhook:transaction_annotations.clear";

/// Bytes of an annotation at most; every message of the transaction carries it.
const ANNOTATION_BYTES_MAX: usize = 16 << 10;

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
    /// TRUNCATEs, which go to no sink.
    pub truncates: u64,
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

/// See the module.
#[derive(Debug)]
pub struct Intake {
    sinks: Vec<SinkConfig>,
    tables: HashMap<u32, Known>,
    open: Option<Open>,
    fed: Option<Position>,
    received: Lsn,
    batches: Vec<Vec<Feed>>,
    tally: Tally,
    scratch: Vec<u8>,
    /// See [`Change::oversize`].
    oversize: Option<usize>,
}

impl Intake {
    /// An intake for these sinks, in this order.
    pub fn new(sinks: Vec<SinkConfig>) -> Self {
        let batches = sinks.iter().map(|_| Vec::new()).collect();
        Self {
            sinks,
            tables: HashMap::new(),
            open: None,
            fed: None,
            received: Lsn::ZERO,
            batches,
            tally: Tally::default(),
            scratch: Vec::new(),
            oversize: None,
        }
    }

    /// A new connection starts at `confirmed`: relations will be described anew, and an open transaction starts over.
    pub fn reconnected(&mut self, confirmed: Lsn) {
        self.tables.clear();
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
    pub fn learn(&mut self, table: Table) {
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
        self.tables.insert(table.oid, Known { table: Arc::new(table), routes });
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
            Message::Truncate { relations, .. } => self.truncate(&relations),
            Message::Logical { transactional: true, prefix, content, .. } => self.annotate(&prefix, &content),
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

    fn row(&mut self, relation: u32, row: Row, now: Instant) -> Result<(), IntakeError> {
        let known = self.tables.get(&relation).ok_or(IntakeError::UnknownRelation(relation))?;
        let open = self.open.as_mut().ok_or(IntakeError::NoTransaction)?;
        open.index += 1;
        let change = Change {
            transaction: Arc::clone(&open.transaction),
            index: open.index,
            table: Arc::clone(&known.table),
            row,
            annotations: open.annotations.clone(),
            oversize: self.oversize,
            received_at: now,
        };
        let position = change.position();
        if self.fed.is_some_and(|fed| position <= fed) {
            return Ok(());
        }
        check_shape(&change)?;
        let mut takers = known.routes.iter().filter(|route| route.takes(change.action())).peekable();
        if let (Some(bytes), Some(_)) = (change.oversize, takers.peek()) {
            say_oversize(&change, bytes);
        }
        while let Some(route) = takers.next() {
            let (groups, scope) = (route.groups(&change, &mut self.scratch), route.scope);
            let barrier = route.is_barrier(&change);
            let Some(batch) = self.batches.get_mut(route.sink) else { continue };
            if takers.peek().is_none() {
                batch.push(Feed::Change { change, groups, scope, barrier });
                break;
            }
            batch.push(Feed::Change { change: change.clone(), groups, scope, barrier });
        }
        self.fed = Some(position);
        Ok(())
    }

    fn truncate(&mut self, relations: &[u32]) {
        self.tally.truncates += 1;
        if let Some(open) = &mut self.open {
            open.index += u64::try_from(relations.len()).unwrap_or_default();
        }
        for relation in relations {
            if let Some(known) = self.tables.get(relation) {
                tracing::info!(table = %known.table.name, "table was truncated: no sink is told");
            }
        }
    }

    fn annotate(&mut self, prefix: &[u8], content: &[u8]) {
        let Some(open) = &mut self.open else { return };
        if prefix == ANNOTATE_NO_MORE {
            open.annotations = None;
        } else if prefix == ANNOTATE {
            open.annotations = Some(annotation(content, self.oversize));
        }
    }
}

/// A change that cannot be delivered is said to be one, each time: it takes long enough to be read.
fn say_oversize(change: &Change, bytes: usize) {
    let (table, action) = (&change.table.name, change.action().as_str());
    let Position { commit_lsn, index } = change.position();
    tracing::warn!(
        %table,
        action,
        %commit_lsn,
        index,
        bytes,
        "a change is larger than limits.max_message: its large values are left out, and it becomes a dead letter"
    );
}

/// The content if it is JSON, else a JSON string of it; of one that is too large, a string that says so.
fn annotation(content: &[u8], oversize: Option<usize>) -> Arc<str> {
    let bytes = oversize.unwrap_or(content.len());
    if bytes > ANNOTATION_BYTES_MAX {
        let said = format!("annotation of {bytes} bytes left out: {ANNOTATION_BYTES_MAX} are allowed");
        tracing::warn!("{said}");
        return serde_json::Value::String(said).to_string().into();
    }
    let text = String::from_utf8_lossy(content);
    if serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok() {
        return text.into();
    }
    serde_json::Value::String(text.into_owned()).to_string().into()
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

//! Answers what is asked for: gathers what waits, asks one query for each table and choice of columns, and leaves alone what
//! makes it wait.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};
use tracing::{debug, warn};

use super::description::{DescribeError, Description, describe};
use super::question::{Question, key_of};
use super::request::{Open, Place, complete};
use super::{Fetcher, Found, LIMIT, Missing, QUEUE_MAX, Request, Wanted};
use crate::change::TableName;
use crate::config::Numbers;
use crate::memory::Memory;
use crate::record::append_value;
use crate::source::address::PgAddress;
use crate::source::{chain, connection};

/// How long the server lets a query run, and how much of that it lets it wait for a lock.
const SESSION: &str =
    "SET statement_timeout = '1500ms'; SET lock_timeout = '1s'; SET default_transaction_read_only = on";
/// How long a table is left alone on which a query had to wait or that may not be read, and a server that let nobody in.
const LEFT_ALONE: Duration = Duration::from_secs(5);
/// Rows that are asked for together, unless one delivery has more.
const ROWS_AT_ONCE: usize = 1000;
/// How long the connection is kept without a question.
const IDLE: Duration = Duration::from_secs(60);
/// How long a description of a table is believed; an error ends that sooner.
const DESCRIBED_FOR: Duration = Duration::from_secs(60);
/// Tables that are remembered.
const TABLES_MAX: usize = 1000;
/// How often the same reason is said.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// See the module.
pub struct Worker {
    source: String,
    address: PgAddress,
    memory: Memory,
    requests: mpsc::Receiver<Request>,
    session: Option<Session>,
    tables: HashMap<TableName, Description>,
    left_alone: HashMap<TableName, (Instant, Missing)>,
    /// No connection before.
    connect_at: Option<Instant>,
    said: HashMap<Missing, Instant>,
}

struct Session {
    client: Client,
    /// The connection's driver, which ends with it.
    _driver: JoinSet<()>,
}

/// Rows of one table, wanted with the same columns in the same form.
#[derive(PartialEq, Eq, Hash)]
struct Kin {
    table: TableName,
    columns: Vec<String>,
    as_strings: bool,
}

impl Worker {
    /// A worker for the database at `address`, and how it is asked. What it holds is charged to `memory`.
    pub fn new(source: &str, address: PgAddress, memory: &Memory) -> (Self, Fetcher) {
        let (sender, requests) = mpsc::channel(QUEUE_MAX);
        let worker = Self {
            source: source.to_owned(),
            address,
            memory: memory.clone(),
            requests,
            session: None,
            tables: HashMap::new(),
            left_alone: HashMap::new(),
            connect_at: None,
            said: HashMap::new(),
        };
        (worker, Fetcher { requests: sender })
    }

    /// Answers until nobody can ask any more.
    pub async fn run(mut self) {
        loop {
            let next = if self.session.is_some() {
                let Ok(next) = timeout(IDLE, self.requests.recv()).await else {
                    self.session = None;
                    continue;
                };
                next
            } else {
                self.requests.recv().await
            };
            let Some(first) = next else { return };
            let requests = self.gather(first);
            self.answer(requests).await;
        }
    }

    /// What else waits. Who has given up waiting is passed over.
    fn gather(&mut self, first: Request) -> Vec<Request> {
        let mut rows = first.rows.len();
        let mut requests = vec![first];
        while rows < ROWS_AT_ONCE
            && let Ok(request) = self.requests.try_recv()
        {
            rows += request.rows.len();
            requests.push(request);
        }
        requests.retain(|request| !request.answer.is_closed());
        requests
    }

    async fn answer(&mut self, requests: Vec<Request>) {
        let mut kin: Vec<(Kin, Vec<Place>)> = Vec::new();
        let mut places: HashMap<Kin, usize> = HashMap::new();
        for (request, Request { rows, numbers, .. }) in requests.iter().enumerate() {
            for (row, Wanted { table, columns, .. }) in rows.iter().enumerate() {
                let as_strings = *numbers == Numbers::String;
                let one = || Kin { table: table.clone(), columns: columns.clone(), as_strings };
                let place = *places.entry(one()).or_insert_with(|| {
                    kin.push((one(), Vec::new()));
                    kin.len() - 1
                });
                if let Some((_, places)) = kin.get_mut(place) {
                    places.push((request, row));
                }
            }
        }
        let mut open: Vec<Open> = requests.into_iter().map(Open::new).collect();
        for (kin, mut places) in kin {
            while !places.is_empty() {
                let rows: Vec<&Wanted> = places.iter().filter_map(|(at, row)| open.get(*at)?.rows.get(*row)).collect();
                let found = self.ask(&kin, &rows).await;
                let rest = places.split_off(complete(&places, &found));
                for ((at, row), found) in std::mem::replace(&mut places, rest).into_iter().zip(found) {
                    if let Some(open) = open.get_mut(at) {
                        open.set(row, found);
                    }
                }
            }
        }
    }

    /// Asks for rows of one table; an answer for each.
    async fn ask(&mut self, kin: &Kin, rows: &[&Wanted]) -> Vec<Result<Found, Missing>> {
        let now = Instant::now();
        if let Some((until, missing)) = self.left_alone.get(&kin.table)
            && *until > now
        {
            return vec![Err(*missing); rows.len()];
        }
        let asked = timeout(LIMIT, self.try_to_ask(kin, rows)).await.unwrap_or_else(|_| {
            // Whoever does not answer may do so later, to another question.
            self.session = None;
            Err(Trouble { missing: Missing::Timeout, error: "no answer within 2 s".to_owned() })
        });
        match asked {
            Ok(found) => {
                for missing in found.iter().filter_map(|found| found.as_ref().err()) {
                    self.say(&kin.table, *missing, "");
                }
                found
            }
            Err(Trouble { missing, error }) => {
                if matches!(missing, Missing::Timeout | Missing::Denied) {
                    if self.left_alone.len() >= TABLES_MAX {
                        self.left_alone.clear();
                    }
                    self.left_alone.insert(kin.table.clone(), (Instant::now() + LEFT_ALONE, missing));
                }
                self.say(&kin.table, missing, &error);
                vec![Err(missing); rows.len()]
            }
        }
    }

    async fn try_to_ask(&mut self, kin: &Kin, rows: &[&Wanted]) -> Result<Vec<Result<Found, Missing>>, Trouble> {
        let was_connected = self.session.is_some();
        self.connect().await?;
        let is_known = self.tables.get(&kin.table).is_some_and(|table| {
            table.read_at.elapsed() < DESCRIBED_FOR && kin.columns.iter().all(|column| table.kinds.contains_key(column))
        });
        if !is_known {
            self.describe(&kin.table).await?;
        }
        match self.query(kin, rows).await {
            // The connection may have been lost long ago, and the table may be another by now.
            Err(Trouble { missing: Missing::Unavailable, .. }) if was_connected => {}
            Err(Trouble { missing: Missing::Table | Missing::Failed, .. }) if is_known => {}
            asked => return asked,
        }
        self.connect().await?;
        self.describe(&kin.table).await?;
        self.query(kin, rows).await
    }

    async fn connect(&mut self) -> Result<(), Trouble> {
        if self.session.as_ref().is_some_and(|session| !session.client.is_closed()) {
            return Ok(());
        }
        self.session = None;
        let now = Instant::now();
        let unavailable = |error: String| Trouble { missing: Missing::Unavailable, error };
        if self.connect_at.is_some_and(|at| at > now) {
            return Err(unavailable("the database let nobody in some seconds ago".to_owned()));
        }
        // Also where it takes longer than anybody waits.
        self.connect_at = Some(now + LEFT_ALONE);
        let (client, connection) = connection::sql(&self.address).await.map_err(|error| unavailable(chain(&error)))?;
        let mut driver = JoinSet::new();
        // How it ends shows in the client.
        driver.spawn(async move { drop(connection.await) });
        client.batch_execute(SESSION).await.map_err(|error| unavailable(chain(&error)))?;
        self.connect_at = None;
        self.tables.clear();
        self.session = Some(Session { client, _driver: driver });
        Ok(())
    }

    async fn describe(&mut self, name: &TableName) -> Result<(), Trouble> {
        let Some(session) = &self.session else { return Ok(()) };
        self.tables.remove(name);
        let described = describe(&session.client, name).await.map_err(|error| Trouble {
            missing: match &error {
                DescribeError::Columns(error) => missing_of(error),
                DescribeError::Catalogue(_) => Missing::Failed,
            },
            error: match &error {
                DescribeError::Columns(error) => said(error),
                DescribeError::Catalogue(error) => chain(error),
            },
        })?;
        let Some(description) = described else {
            return Err(Trouble { missing: Missing::Table, error: String::new() });
        };
        if self.tables.len() >= TABLES_MAX {
            self.tables.clear();
        }
        self.tables.insert(name.clone(), description);
        Ok(())
    }

    async fn query(&self, kin: &Kin, rows: &[&Wanted]) -> Result<Vec<Result<Found, Missing>>, Trouble> {
        let (Some(session), Some(table)) = (&self.session, self.tables.get(&kin.table)) else {
            return Ok(vec![Err(Missing::Unavailable); rows.len()]);
        };
        if !kin.columns.iter().all(|column| table.kinds.contains_key(column)) {
            return Ok(vec![Err(Missing::Table); rows.len()]);
        }
        let (mut found, mut asked, mut keys) = (Vec::with_capacity(rows.len()), Vec::new(), Vec::new());
        for row in rows {
            let key = if table.key.is_empty() { None } else { key_of(&row.record, &table.key) };
            found.push(Err(if key.is_some() { Missing::Row } else { Missing::Key }));
            if let Some(key) = key {
                asked.push(found.len() - 1);
                keys.push(key);
            }
        }
        if keys.is_empty() {
            return Ok(found);
        }
        let question = Question {
            table: &kin.table,
            is_partitioned: table.is_partitioned,
            key: &table.key,
            columns: &kin.columns,
            bytes_max: self.memory.message_bytes_max().min(1 << 30),
        };
        let trouble = |error: tokio_postgres::Error| Trouble { missing: missing_of(&error), error: said(&error) };
        for message in session.client.simple_query(&question.sql(&keys)).await.map_err(trouble)? {
            if let SimpleQueryMessage::Row(row) = message {
                let number = row.try_get(0).map_err(trouble)?.and_then(|number| number.parse::<usize>().ok());
                let place = number.and_then(|number| found.get_mut(*asked.get(number)?));
                if let Some(place) = place {
                    *place = Ok(self.values(&row, kin, table).map_err(trouble)?);
                }
            }
        }
        Ok(found)
    }

    /// The values of one row of the answer.
    fn values(&self, row: &SimpleQueryRow, kin: &Kin, table: &Description) -> Result<Found, tokio_postgres::Error> {
        let numbers = if kin.as_strings { Numbers::String } else { Numbers::Json };
        let mut found = Vec::with_capacity(kin.columns.len());
        for (index, column) in kin.columns.iter().enumerate() {
            let (length, text) = (row.try_get(2 * index + 1)?, row.try_get(2 * index + 2)?);
            let json = match (length, text, table.kinds.get(column)) {
                (None, _, _) => Some(Bytes::from_static(b"null")),
                (Some(_), Some(text), Some(kind)) => {
                    let mut json = Vec::with_capacity(text.len() + 2);
                    append_value(&mut json, kind, text.as_bytes(), numbers);
                    Some(self.memory.hold(json))
                }
                (Some(_), _, _) => None,
            };
            found.push(json);
        }
        Ok(found)
    }

    /// Says why values are missing, once a minute for each reason.
    fn say(&mut self, table: &TableName, missing: Missing, error: &str) {
        let source = &self.source;
        let (reason, now) = (missing.as_str(), Instant::now());
        let Some(advice) = missing.advice() else {
            debug!(source, %table, reason, "values that were left out could not be read");
            return;
        };
        if self.said.get(&missing).is_some_and(|at| now.saturating_duration_since(*at) < SAY_EVERY) {
            return;
        }
        self.said.insert(missing, now);
        warn!(source, %table, reason, error, advice, "values that were left out could not be read; messages go without them");
    }
}

/// Why a question has no answer at all.
struct Trouble {
    missing: Missing,
    error: String,
}

/// An error of a query without its text, in which a key may stand.
fn said(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(|| chain(error), |code| format!("SQLSTATE {}", code.code()))
}

fn missing_of(error: &tokio_postgres::Error) -> Missing {
    match error.code() {
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => Missing::Denied,
        Some(code) if *code == SqlState::UNDEFINED_TABLE || *code == SqlState::UNDEFINED_COLUMN => Missing::Table,
        Some(code) if *code == SqlState::LOCK_NOT_AVAILABLE || *code == SqlState::QUERY_CANCELED => Missing::Timeout,
        Some(_) => Missing::Failed,
        None => Missing::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn nobody_waits_for_a_worker_that_is_gone_or_has_too_much_to_do() {
        let row = Wanted {
            table: TableName { schema: "public".into(), table: "t".into() },
            record: Bytes::from_static(b"{}"),
            columns: vec!["c".into()],
        };
        let address = PgAddress::parse("postgres://nobody@127.0.0.1:1/none").unwrap();
        let (worker, fetcher) = Worker::new("app", address.clone(), &Memory::new(1 << 20));
        drop(worker);
        let found = fetcher.fetch(vec![row.clone(), row.clone()], Numbers::Json).await;
        assert_eq!(found, [Err(Missing::Unavailable), Err(Missing::Unavailable)]);

        let (mut worker, fetcher) = Worker::new("app", address, &Memory::new(1 << 20));
        for _ in 0..QUEUE_MAX {
            let request = Request { rows: vec![row.clone()], numbers: Numbers::Json, answer: oneshot::channel().0 };
            fetcher.requests.try_send(request).unwrap();
        }
        let found = fetcher.fetch(vec![row], Numbers::Json).await;
        assert_eq!(found, [Err(Missing::Unavailable)]);
        let first = worker.requests.recv().await.unwrap();
        assert!(worker.gather(first).is_empty(), "nobody waits for these any more");
    }
}

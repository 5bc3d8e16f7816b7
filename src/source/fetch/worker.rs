//! Answers what is asked for: gathers what waits, asks one query for each table and choice of columns, and leaves alone what
//! makes it wait.
//!
//! One question is asked at a time, so a table that is locked could hold those of all others. So tables that are known to
//! answer go first and those that made a question wait go last; after the first such wait the others are short; nothing is
//! asked for whoever has left; and whoever comes meanwhile is looked at twice a second.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::Client;
use tracing::{debug, warn};

use super::description::{DescribeError, Description, describe};
use super::query::{Kin, Trouble, query};
use super::request::{Open, Place, complete};
use super::room::Room;
use super::{Fetcher, Found, LIMIT, Missing, QUEUE_MAX, Request, Wanted};
use crate::address::PgAddress;
use crate::change::TableName;
use crate::config::Numbers;
use crate::fault::chain;
use crate::memory::Memory;
use crate::source::connection;
use crate::source::connection::Limits;

/// How long the server lets a query run, and what it keeps out of it. A policy of row level security that hides rows would look
/// as if they were gone, and runs what its table's owner has made; with it off such a query is an error. Of
/// `constraint_exclusion` see [`super::own_code`].
const SESSION: &str = "SET statement_timeout = '1500ms'; SET default_transaction_read_only = on; SET row_security = off; \
    SET constraint_exclusion = off; SET jit = off";
/// Keeps views and foreign tables from being read in the place of a table, whatever the table becomes. 14.13, 15.8, 16.4 and
/// later have it.
const TABLES_ONLY: &str = "\
SELECT (SELECT pg_catalog.set_config(s.name, 'view, foreign-table', false) FROM pg_catalog.pg_settings s
        WHERE s.name = 'restrict_nonsystem_relation_kind') IS NOT NULL,
    EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname IN (CURRENT_USER, SESSION_USER) AND r.rolsuper)";
/// How many milliseconds of that a query may wait for a lock, and how many while some table is known to be locked.
const LOCK_MILLIS: (u32, u32) = (1000, 100);
/// How long a table is left alone on which a query had to wait or that may not be read, and a server that let nobody in.
const LEFT_ALONE: Duration = Duration::from_secs(5);
/// How long it is at most, when it makes queries wait again and again.
const LEFT_ALONE_MAX: Duration = Duration::from_secs(60);
/// Rows that are asked for together, unless one delivery has more.
const ROWS_AT_ONCE: usize = 1000;
/// Rows that are asked for one by one when one of several makes their query fail.
const ROWS_ALONE: usize = 50;
/// After so long of asking, who came meanwhile is looked at.
const TURN: Duration = Duration::from_millis(500);
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
    room: Room,
    requests: mpsc::Receiver<Request>,
    session: Option<Session>,
    tables: HashMap<TableName, Description>,
    left_alone: HashMap<TableName, LeftAlone>,
    /// No connection before.
    connect_at: Option<Instant>,
    said: HashMap<Missing, Instant>,
}

struct Session {
    client: Client,
    /// The connection's driver, which ends with it.
    _driver: JoinSet<()>,
}

/// A table that gave trouble when it was last asked.
struct LeftAlone {
    until: Instant,
    lasts: Duration,
    missing: Missing,
}

impl Worker {
    /// A worker for the database at `address`, and how it is asked. What it holds is charged to `memory`.
    pub fn new(source: &str, address: PgAddress, memory: &Memory) -> (Self, Fetcher) {
        let (sender, requests) = mpsc::channel(QUEUE_MAX);
        let worker = Self {
            source: source.to_owned(),
            address,
            room: Room::new(memory),
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
        let mut open = Vec::new();
        loop {
            open.retain(Open::is_awaited);
            if open.is_empty() {
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
                open.push(Open::new(first));
            }
            self.gather(&mut open);
            self.turn(&mut open).await;
        }
    }

    /// What else waits. Who has given up waiting is passed over.
    fn gather(&mut self, open: &mut Vec<Open>) {
        let mut rows: usize = open.iter().map(|open| open.rows.len()).sum();
        while rows < ROWS_AT_ONCE
            && let Ok(request) = self.requests.try_recv()
        {
            rows += request.rows.len();
            open.push(Open::new(request));
        }
        open.retain(Open::is_awaited);
    }

    /// Asks for what is open, until there is nothing or the turn is over.
    async fn turn(&mut self, open: &mut [Open]) {
        let end = Instant::now() + TURN;
        let mut agenda = agenda(open);
        agenda.sort_by_key(|(kin, _)| self.wariness(&kin.table));
        for (kin, mut places) in agenda {
            loop {
                places.retain(|(at, _)| open.get(*at).is_some_and(Open::is_awaited));
                if places.is_empty() {
                    break;
                }
                if Instant::now() >= end {
                    return;
                }
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

    /// Lower for tables that are likelier to answer at once.
    fn wariness(&self, table: &TableName) -> u8 {
        match (self.left_alone.contains_key(table), self.tables.contains_key(table)) {
            (true, _) => 2,
            (false, false) => 1,
            (false, true) => 0,
        }
    }

    /// Asks for rows of one table; an answer for each.
    async fn ask(&mut self, kin: &Kin, rows: &[&Wanted]) -> Vec<Result<Found, Missing>> {
        let now = Instant::now();
        if let Some(LeftAlone { until, missing, .. }) = self.left_alone.get(&kin.table)
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
                self.left_alone.remove(&kin.table);
                for missing in found.iter().filter_map(|found| found.as_ref().err()) {
                    self.say(&kin.table, *missing, "");
                }
                found
            }
            Err(Trouble { missing, error }) => {
                self.leave_alone(&kin.table, missing, rows.len());
                self.say(&kin.table, missing, &error);
                vec![Err(missing); rows.len()]
            }
        }
    }

    fn leave_alone(&mut self, table: &TableName, missing: Missing, rows: usize) {
        let lasts = match missing {
            Missing::Timeout => {
                let before = self.left_alone.get(table).filter(|left| left.missing == Missing::Timeout);
                before.map_or(LEFT_ALONE, |left| (left.lasts * 2).min(LEFT_ALONE_MAX))
            }
            Missing::Denied | Missing::OwnCode => LEFT_ALONE,
            // One row that cannot be read says nothing of others.
            Missing::Failed if rows > 1 => LEFT_ALONE,
            Missing::Failed | Missing::Row | Missing::Table | Missing::Key | Missing::Unavailable => return,
        };
        if self.left_alone.len() >= TABLES_MAX {
            self.left_alone.clear();
        }
        self.left_alone.insert(table.clone(), LeftAlone { until: Instant::now() + lasts, lasts, missing });
    }

    async fn try_to_ask(&mut self, kin: &Kin, rows: &[&Wanted]) -> Result<Vec<Result<Found, Missing>>, Trouble> {
        let was_connected = self.session.is_some();
        self.connect().await?;
        let is_known = self
            .tables
            .get(&kin.table)
            .is_some_and(|table| table.read_at.elapsed() < DESCRIBED_FOR && table.keeps(&kin.columns));
        if !is_known {
            self.describe(&kin.table).await?;
        }
        let mut asked = self.query(kin, rows).await;
        let is_worth_another = match &asked {
            // The connection may have been lost long ago, and the table may be another by now.
            Err(Trouble { missing: Missing::Unavailable, .. }) => was_connected,
            Err(Trouble { missing: Missing::Table | Missing::Failed, .. }) => is_known,
            Ok(_) | Err(_) => false,
        };
        if is_worth_another {
            self.connect().await?;
            self.describe(&kin.table).await?;
            asked = self.query(kin, rows).await;
        }
        match asked {
            Err(Trouble { missing: Missing::Failed, .. }) if rows.len() > 1 => self.one_by_one(kin, rows).await,
            asked => asked,
        }
    }

    /// So that a row which cannot be read does not take others along.
    async fn one_by_one(&mut self, kin: &Kin, rows: &[&Wanted]) -> Result<Vec<Result<Found, Missing>>, Trouble> {
        let (mut all, mut why) = (Vec::with_capacity(rows.len()), String::new());
        for row in rows.iter().take(ROWS_ALONE) {
            match self.query(kin, &[*row]).await {
                Ok(found) => all.extend(found),
                Err(Trouble { missing: Missing::Failed, error }) => {
                    all.push(Err(Missing::Failed));
                    why = error;
                }
                Err(trouble) => return Err(trouble),
            }
        }
        if all.iter().all(|found| *found == Err(Missing::Failed)) {
            return Err(Trouble { missing: Missing::Failed, error: why });
        }
        if !why.is_empty() {
            self.say(&kin.table, Missing::Failed, &why);
        }
        all.resize(rows.len(), Err(Missing::Failed));
        Ok(all)
    }

    async fn query(&self, kin: &Kin, rows: &[&Wanted]) -> Result<Vec<Result<Found, Missing>>, Trouble> {
        let (Some(session), Some(table)) = (&self.session, self.tables.get(&kin.table)) else {
            return Ok(vec![Err(Missing::Unavailable); rows.len()]);
        };
        let now = Instant::now();
        let is_lately = |left: &LeftAlone| left.missing == Missing::Timeout && now < left.until + LEFT_ALONE_MAX;
        let is_locked = self.left_alone.values().any(is_lately);
        let lock_millis = if is_locked { LOCK_MILLIS.1 } else { LOCK_MILLIS.0 };
        let trouble = |error: tokio_postgres::Error| Trouble::of(&error);
        session.client.batch_execute(&format!("SET lock_timeout = {lock_millis}")).await.map_err(trouble)?;
        query(&session.client, (kin, table), rows, &self.room).await
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
        let (client, connection) = connection::sql_within(&self.address, Limits::of_values(self.room.bytes_max()))
            .await
            .map_err(|error| unavailable(format!("{}; {}", chain(&error), error.advice())))?;
        let mut driver = JoinSet::new();
        // How it ends shows in the client.
        driver.spawn(async move { drop(connection.await) });
        client.batch_execute(SESSION).await.map_err(|error| unavailable(chain(&error)))?;
        keep_apart(&client).await?;
        self.connect_at = None;
        self.tables.clear();
        self.session = Some(Session { client, _driver: driver });
        Ok(())
    }

    async fn describe(&mut self, name: &TableName) -> Result<(), Trouble> {
        let Some(session) = &self.session else { return Ok(()) };
        self.tables.remove(name);
        let described = describe(&session.client, name).await.map_err(|error| match &error {
            DescribeError::Columns(error) => Trouble::of(error),
            DescribeError::Catalogue(error) => Trouble { missing: Missing::Failed, error: chain(error) },
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

/// Keeps what owners of tables have made from being run by this session; an error where that cannot be.
async fn keep_apart(client: &Client) -> Result<(), Trouble> {
    let row = client.query_one(TABLES_ONLY, &[]).await.map_err(|error| Trouble::of(&error))?;
    let own_code = |error: &str| Err(Trouble { missing: Missing::OwnCode, error: error.to_owned() });
    let fact = |at: usize| row.try_get::<_, bool>(at).map_err(|error| Trouble::of(&error));
    if fact(1)? {
        return own_code("the role of the source's url is a superuser: name another one, which only reads");
    }
    if !fact(0)? {
        return own_code(
            "this server cannot be kept from reading a view in a table's place: upgrade it to 14.13, 15.8, 16.4 or later",
        );
    }
    Ok(())
}

/// What has no answer, by the query that asks for it.
fn agenda(open: &[Open]) -> Vec<(Kin, Vec<Place>)> {
    let mut agenda: Vec<(Kin, Vec<Place>)> = Vec::new();
    let mut places: HashMap<Kin, usize> = HashMap::new();
    for (request, open) in open.iter().enumerate() {
        for (row, Wanted { table, columns, .. }) in open.unanswered() {
            let as_strings = open.numbers == Numbers::String;
            let kin = Kin { table: table.clone(), columns: columns.clone(), as_strings };
            let place = *places.entry(kin).or_insert_with_key(|kin| {
                agenda.push((kin.clone(), Vec::new()));
                agenda.len() - 1
            });
            if let Some((_, places)) = agenda.get_mut(place) {
                places.push((request, row));
            }
        }
    }
    agenda
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
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
        let mut open = vec![Open::new(worker.requests.recv().await.unwrap())];
        worker.gather(&mut open);
        assert!(open.is_empty(), "nobody waits for these any more");
    }
}

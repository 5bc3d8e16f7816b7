//! Values that Postgres left out of a change as unchanged TOAST, read from their tables by primary key.
//!
//! One [`Worker`] a source answers the [`Fetcher`]s of its sinks, on a connection of its own that is made when it is needed and
//! given up when it is not. What comes back is the row's present value, as JSON like that of the stream.
//!
//! What owners of tables have made (casts, operators, functions, policies, views in a table's place) is never called, see
//! `question` and `own_code`; where that cannot be told, the value is missing.
//!
//! Nothing here may hold up a delivery for long: an answer takes at most [`LIMIT`], and the queue has [`QUEUE_MAX`] places;
//! who finds none goes without. Every reason for going without is a [`Missing`], never an error.

mod description;
mod own_code;
mod query;
mod question;
mod request;
mod room;
mod worker;

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

pub use self::worker::Worker;
use crate::change::TableName;
use crate::config::Numbers;

/// How long a delivery waits for its values.
pub const LIMIT: Duration = Duration::from_secs(2);
/// Requests that wait; one more goes without.
const QUEUE_MAX: usize = 256;

/// A row of which values are wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its table.
    pub table: TableName,
    /// The record of its message, a JSON object, in which the key is.
    pub record: Bytes,
    /// Which columns, at least one.
    pub columns: Vec<String>,
}

/// What was found of a row: of each wanted column its JSON, `None` if it is too large or there was no room for it.
pub type Found = Vec<Option<Bytes>>;

/// Why nothing was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Missing {
    /// There is no row with that key: it was deleted, or has another key.
    Row,
    /// There is no such table or column.
    Table,
    /// The table has no primary key, or the message does not have its values.
    Key,
    /// The role may not read the table, or not all of its rows.
    Denied,
    /// No answer in time.
    Timeout,
    /// No connection, or too much to do.
    Unavailable,
    /// Reading would call a function of somebody else's, or it cannot be kept from that.
    OwnCode,
    /// The query failed otherwise.
    Failed,
}

impl Missing {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Row,
        Self::Table,
        Self::Key,
        Self::Denied,
        Self::Timeout,
        Self::Unavailable,
        Self::OwnCode,
        Self::Failed,
    ];

    /// The word used in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Row => "row_gone",
            Self::Table => "table_gone",
            Self::Key => "no_key",
            Self::Denied => "denied",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::OwnCode => "own_code",
            Self::Failed => "failed",
        }
    }

    /// What a person can do, if it should not be so.
    fn advice(self) -> Option<&'static str> {
        match self {
            Self::Row | Self::Table => None,
            Self::Key => Some("give the table a primary key of plain types, or REPLICA IDENTITY FULL"),
            Self::Denied => Some(
                "let the role of the source's url read the table (`walhook check` prints the SQL); a table with row level security \
                 is read by a member of its owner's role, as far as it is not forced, or not at all",
            ),
            Self::Timeout => Some("see who locks the table, or why a look-up by its primary key is slow"),
            Self::Unavailable => Some("see whether the database takes connections"),
            Self::OwnCode => Some(
                "walhook calls nothing that a table's owner has made: have whole old rows sent (REPLICA IDENTITY FULL), or do \
                 what the error says",
            ),
            Self::Failed => Some("the error says what the database objects to"),
        }
    }
}

/// Asks a source's [`Worker`]. Clones ask the same.
#[derive(Clone, Debug)]
pub struct Fetcher {
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
struct Request {
    rows: Vec<Wanted>,
    numbers: Numbers,
    answer: oneshot::Sender<Vec<Result<Found, Missing>>>,
}

impl Fetcher {
    /// What is found of each of these rows, after [`LIMIT`] at the latest.
    pub async fn fetch(&self, rows: Vec<Wanted>, numbers: Numbers) -> Vec<Result<Found, Missing>> {
        let count = rows.len();
        let without = |why| vec![Err(why); count];
        let (answer, answered) = oneshot::channel();
        if self.requests.try_send(Request { rows, numbers, answer }).is_err() {
            return without(Missing::Unavailable);
        }
        match timeout(LIMIT, answered).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) => without(Missing::Unavailable),
            Err(_) => without(Missing::Timeout),
        }
    }
}

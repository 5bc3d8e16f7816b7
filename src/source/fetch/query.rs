//! One question to the server, and what its answer says of each row.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use super::description::{Described, Description};
use super::question::{Question, key_of};
use super::room::Room;
use super::{Found, Missing, Wanted};
use crate::change::TableName;
use crate::config::Numbers;
use crate::record::append_value;
use crate::source::chain;

/// Rows of one table, wanted with the same columns in the same form.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Kin {
    pub(super) table: TableName,
    pub(super) columns: Vec<String>,
    pub(super) as_strings: bool,
}

/// Why a question has no answer at all.
pub(super) struct Trouble {
    pub(super) missing: Missing,
    pub(super) error: String,
}

impl Trouble {
    pub(super) fn of(error: &tokio_postgres::Error) -> Self {
        Self { missing: missing_of(error), error: said(error) }
    }
}

/// Asks for these rows of the table that is described; an answer for each. A lock is waited for so many milliseconds.
pub(super) async fn query(
    client: &Client,
    (kin, table): (&Kin, &Description),
    rows: &[&Wanted],
    room: &Room,
    lock_millis: u32,
) -> Result<Vec<Result<Found, Missing>>, Trouble> {
    let columns: Vec<&Described> = kin.columns.iter().filter_map(|name| table.columns.get(name)).collect();
    if columns.len() < kin.columns.len() {
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
        bytes_max: room.wait().await,
    };
    let sql = format!("SET lock_timeout = {lock_millis}; {}", question.sql(&keys));
    let trouble = |error: tokio_postgres::Error| Trouble::of(&error);
    for message in client.simple_query(&sql).await.map_err(trouble)? {
        if let SimpleQueryMessage::Row(row) = message {
            let number = row.try_get(0).map_err(trouble)?.and_then(|number| number.parse::<usize>().ok());
            let place = number.and_then(|number| found.get_mut(*asked.get(number)?));
            if let Some(place) = place {
                let Some(values) = values(&row, kin, &columns, room).map_err(trouble)? else {
                    let error = "a column has another type by now".to_owned();
                    return Err(Trouble { missing: Missing::Table, error });
                };
                *place = Ok(values);
            }
        }
    }
    Ok(found)
}

/// The values of one row of the answer; `None` if a column is not of the type that was described.
fn values(
    row: &SimpleQueryRow,
    kin: &Kin,
    columns: &[&Described],
    room: &Room,
) -> Result<Option<Found>, tokio_postgres::Error> {
    let numbers = if kin.as_strings { Numbers::String } else { Numbers::Json };
    let mut found = Vec::with_capacity(columns.len());
    for (index, column) in columns.iter().enumerate() {
        let (length, text) = (row.try_get(3 * index + 1)?, row.try_get(3 * index + 2)?);
        let type_oid: Option<u32> = row.try_get(3 * index + 3)?.and_then(|oid| oid.parse().ok());
        if type_oid != Some(column.type_oid) {
            return Ok(None);
        }
        found.push(match (length, text) {
            (None, _) => Some(bytes::Bytes::from_static(b"null")),
            (Some(_), Some(text)) => {
                let mut json = Vec::with_capacity(text.len() + 2);
                append_value(&mut json, &column.kind, text.as_bytes(), numbers);
                room.hold(json)
            }
            (Some(_), None) => None,
        });
    }
    Ok(Some(found))
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

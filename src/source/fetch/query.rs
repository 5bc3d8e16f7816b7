//! One question to the server, and what its answer says of each row.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row};

use super::description::{Described, Description};
use super::own_code::own_code;
use super::question::{Question, key_of};
use super::room::Room;
use super::{Found, Missing, Wanted};
use crate::change::TableName;
use crate::config::Numbers;
use crate::fault::chain;
use crate::record::append_value;

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

    fn other_type() -> Self {
        Self { missing: Missing::Table, error: "a column has another type by now".to_owned() }
    }
}

/// Asks for these rows of the table that is described; an answer for each.
pub(super) async fn query(
    client: &Client,
    (kin, table): (&Kin, &Description),
    rows: &[&Wanted],
    room: &Room,
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
    for row in ask(client, &question, table.oid, &keys).await? {
        let number = row.try_get::<_, i32>(0).map_err(|error| Trouble::of(&error))?;
        let place = usize::try_from(number).ok().and_then(|number| found.get_mut(*asked.get(number)?));
        if let Some(place) = place {
            let values = values(&row, kin, &columns, room).map_err(|error| Trouble::of(&error))?;
            *place = Ok(values.ok_or_else(Trouble::other_type)?);
        }
    }
    Ok(found)
}

/// Asks in three steps: what the query would give, whether running it would call what is somebody's own, and the query itself.
/// Only the last one runs anything of the table's.
async fn ask(client: &Client, question: &Question<'_>, table: u32, keys: &[Vec<String>]) -> Result<Vec<Row>, Trouble> {
    let trouble = |error: tokio_postgres::Error| Trouble::of(&error);
    let statement = client.prepare_typed(&question.sql(keys), &[]).await.map_err(trouble)?;
    let types: Vec<u32> = statement.columns().iter().map(|column| column.type_().oid()).collect();
    if !question.has_types(&types) {
        return Err(Trouble::other_type());
    }
    if let Some(what) = own_code(client, table).await.map_err(trouble)? {
        return Err(Trouble { missing: Missing::OwnCode, error: what });
    }
    client.query(&statement, &[]).await.map_err(trouble)
}

/// The values of one row of the answer; `None` if a column is not of the type that was described.
fn values(row: &Row, kin: &Kin, columns: &[&Described], room: &Room) -> Result<Option<Found>, tokio_postgres::Error> {
    let numbers = if kin.as_strings { Numbers::String } else { Numbers::Json };
    let mut found = Vec::with_capacity(columns.len());
    for (index, column) in columns.iter().enumerate() {
        let length: Option<i32> = row.try_get(3 * index + 1)?;
        let text: Option<&str> = row.try_get(3 * index + 2)?;
        if row.try_get::<_, Option<u32>>(3 * index + 3)? != Some(column.type_oid) {
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

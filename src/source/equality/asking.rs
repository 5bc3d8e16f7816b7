//! Queries of which some parts may be refused: only equality needs them, and then it is not known.

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

/// Ways to ask for one thing, the one that tells most first. The last reads nothing but what nobody can do without.
pub(super) type Ways = &'static [&'static str];

/// The rows, and the server's words about what it refused, with the place of the part.
pub(super) type Answer = (Vec<Row>, Vec<(usize, String)>);

/// Asks for all; where the server refuses, part by part, and then by the best way that it lets pass. `sql` is given a way for
/// each part.
///
/// # Errors
/// When the query fails, also where the server refuses what it cannot do without.
pub(super) async fn ask(
    client: &Client,
    sql: impl Fn(&[&str]) -> String,
    parts: &[Ways],
    oids: &[u32],
) -> Result<Answer, tokio_postgres::Error> {
    let mut ways: Vec<&str> = parts.iter().filter_map(|ways| ways.first().copied()).collect();
    match query(client, &sql(&ways), oids).await {
        Err(error) if refusal(&error).is_some() => {}
        asked => return Ok((asked?, Vec::new())),
    }
    let bare: Vec<&str> = parts.iter().filter_map(|ways| ways.last().copied()).collect();
    let mut refused = Vec::new();
    for (place, part) in parts.iter().enumerate() {
        for way in *part {
            let mut alone = bare.clone();
            if let (Some(alone), Some(chosen)) = (alone.get_mut(place), ways.get_mut(place)) {
                (*alone, *chosen) = (*way, *way);
            }
            match query(client, &sql(&alone), oids).await {
                Ok(_) => break,
                Err(error) => refused.push((place, refusal(&error).ok_or(error)?)),
            }
        }
    }
    let rows = query(client, &sql(&ways), oids).await?;
    Ok((rows, refused))
}

async fn query(client: &Client, sql: &str, oids: &[u32]) -> Result<Vec<Row>, tokio_postgres::Error> {
    client.query_typed(sql, &[(&oids, Type::OID_ARRAY)]).await
}

/// The server's words, where it refused for want of a privilege.
fn refusal(error: &tokio_postgres::Error) -> Option<String> {
    let server = error.as_db_error().filter(|server| *server.code() == SqlState::INSUFFICIENT_PRIVILEGE)?;
    Some(server.message().to_owned())
}

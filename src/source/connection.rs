//! Stand-in for SQL connections, replaced on merge.
use std::future::Future;

use super::address::PgAddress;

/// The database could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No session.
    #[error("could not connect to the database")]
    Connect(#[from] tokio_postgres::Error),
}

/// A SQL session and the future that drives it.
///
/// # Errors
/// When no session can be made.
pub async fn sql(
    address: &PgAddress,
) -> Result<
    (tokio_postgres::Client, impl Future<Output = Result<(), tokio_postgres::Error>> + Send + use<>),
    ConnectError,
> {
    let (client, connection) = tokio_postgres::connect(&address.0, tokio_postgres::NoTls).await?;
    Ok((client, connection))
}

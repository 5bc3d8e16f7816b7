//! Where a database is: the addresses libpq understands.

/// A database's address.
#[derive(Clone, Debug)]
pub struct PgAddress;

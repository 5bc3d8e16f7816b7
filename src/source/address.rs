//! Where a database is: the addresses libpq understands.

/// A database's address.
#[derive(Clone, Debug)]
pub struct PgAddress;

/// The text is no address.
#[derive(Debug, thiserror::Error)]
#[error("must begin with postgres://")]
pub struct AddressError;

impl PgAddress {
    /// Reads `postgres://…`.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        text.starts_with("postgres").then_some(Self).ok_or(AddressError)
    }
}

//! Everything on one machine: a throw-away Postgres, a receiver, a little shop, and walhook between them.
pub mod cluster;

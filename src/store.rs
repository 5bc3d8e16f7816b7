//! What must outlive the process: an embedded SQLite database with one writer.
//!
//! Into it goes only what must outlive the WAL: deliveries that failed, what has waited too long, the overflow of a sink
//! that cannot keep up, how far each sink is, dead letters; and, less carefully, the log of deliveries and attempts.
//! A sink [`Store::submit`]s a [`Batch`] and is told when it is durable; only then may anything that rests on it be
//! confirmed to Postgres.

pub mod batch;
pub mod log;

pub use self::batch::*;

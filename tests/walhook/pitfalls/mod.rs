//! What Postgres does to those who read its WAL, one test or more for each number of docs/POSTGRES.md.
//!
//! Every chapter of that page has a room here; tests that were there before under the promise they protect stand in other files of
//! tests/walhook and carry their number too. `index` holds the page and the tests together. `copy` is a receiver's copy
//! of the tables, built from nothing but the messages; `relay` is a network between the daemon and the server that fails on cue.

pub(crate) mod copy;
pub(crate) mod relay;

mod apart;
mod big;
mod harm;
mod held;
mod identity;
mod index;
mod liveness;
mod membership;
mod missed;
mod motion;
mod names;
mod partitions;
mod positions;
mod renamed;
mod rows;
mod settings;
mod shapes;

use crate::daemon::{Config, Daemon};
use crate::postgres::Postgres;
use crate::receiver::Receiver;

/// The slot of [`Config::source`]'s source, and its publication.
const SLOT: &str = "walhook_app";

/// A daemon with `create = false` on a publication that a person made for `what`, and a slot made after it.
async fn managed(postgres: &Postgres, receiver: &Receiver, what: &str, sink_lines: &str) -> Daemon {
    postgres.sql(&format!("CREATE PUBLICATION {SLOT} {what}")).await;
    make_slot(postgres).await;
    Daemon::start(&managed_config(postgres, receiver, sink_lines)).await
}

/// A source with `create = false` and one sink.
fn managed_config(postgres: &Postgres, receiver: &Receiver, sink_lines: &str) -> Config {
    Config::new(&(Config::reader_source(postgres) + &Config::sink("orders", &receiver.url(), sink_lines)))
}

async fn make_slot(postgres: &Postgres) {
    postgres.make_slot(SLOT).await;
}

/// Says that a test is left out, and why.
fn skipped(why: &str) {
    println!("skipped: {why}");
}

//! The whole, from outside: the binary between a real Postgres and a receiver that misbehaves on cue.
//!
//! `postgres`, `receiver`, `ledger`, `daemon`, `disk`, `clock` and `certified` are the harness; every other file is about one promise of the contract
//! and its tests are named after the rules they protect. `tidy` looks at the repository itself.
#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    clippy::disallowed_methods,
    clippy::large_futures,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on panics, and its tasks end with it"
)]

#[path = "../src/deliver/tests/certified.rs"]
mod certified;
#[path = "walhook/clock.rs"]
mod clock;
#[path = "walhook/daemon.rs"]
mod daemon;
#[path = "walhook/disk.rs"]
mod disk;
#[path = "walhook/ledger.rs"]
mod ledger;
#[path = "walhook/postgres.rs"]
mod postgres;
#[path = "walhook/receiver.rs"]
mod receiver;
#[path = "walhook/reply.rs"]
mod reply;
#[path = "walhook/request.rs"]
mod request;

#[path = "walhook/addresses.rs"]
mod addresses;
#[path = "walhook/advice.rs"]
mod advice;
#[path = "walhook/altered.rs"]
mod altered;
#[path = "walhook/barriers.rs"]
mod barriers;
#[path = "walhook/breaker.rs"]
mod breaker;
#[path = "walhook/check.rs"]
mod check;
#[path = "walhook/commands.rs"]
mod commands;
#[path = "walhook/corpus.rs"]
mod corpus;
#[path = "walhook/crash.rs"]
mod crash;
#[path = "walhook/database.rs"]
mod database;
#[path = "walhook/durable.rs"]
mod durable;
#[path = "walhook/elsewhere.rs"]
mod elsewhere;
#[path = "walhook/encodings.rs"]
mod encodings;
#[path = "walhook/endpoints.rs"]
mod endpoints;
#[path = "walhook/failover.rs"]
mod failover;
#[path = "walhook/failpoints.rs"]
mod failpoints;
#[path = "walhook/faults/mod.rs"]
mod faults;
#[path = "walhook/group.rs"]
mod group;
#[path = "walhook/grouping.rs"]
mod grouping;
#[path = "walhook/huge.rs"]
mod huge;
#[path = "walhook/isolation.rs"]
mod isolation;
#[path = "walhook/keys.rs"]
mod keys;
#[path = "walhook/logs.rs"]
mod logs;
#[path = "walhook/lost_slot.rs"]
mod lost_slot;
#[path = "walhook/memory.rs"]
mod memory;
#[path = "walhook/message.rs"]
mod message;
#[path = "walhook/mismatch.rs"]
mod mismatch;
#[path = "walhook/nobodys_code.rs"]
mod nobodys_code;
#[path = "walhook/oracle.rs"]
mod oracle;
#[path = "walhook/order.rs"]
mod order;
#[path = "walhook/outage.rs"]
mod outage;
#[path = "walhook/outbox.rs"]
mod outbox;
#[path = "walhook/pgbench.rs"]
mod pgbench;
#[path = "walhook/pitfalls/mod.rs"]
mod pitfalls;
#[path = "walhook/poison.rs"]
mod poison;
#[path = "walhook/pressure.rs"]
mod pressure;
#[path = "walhook/publishing.rs"]
mod publishing;
#[path = "walhook/quota.rs"]
mod quota;
#[path = "walhook/refused.rs"]
mod refused;
#[path = "walhook/roles.rs"]
mod roles;
#[path = "walhook/tidy.rs"]
mod tidy;
#[path = "walhook/toast.rs"]
mod toast;
#[path = "walhook/truncate.rs"]
mod truncate;
#[path = "walhook/upgrade.rs"]
mod upgrade;
#[path = "walhook/values.rs"]
mod values;

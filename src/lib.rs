//! walhook, room by room, in the order in which a change walks through it.
//!
//! ```text
//!  Postgres ═▶ source ──feed──▶ sink ──delivery──▶ deliver ═▶ endpoint
//!                ▲               │ owns its schedule   │
//!                └── progress ◀──┤───── outcome ◀──────┘
//!                                ▼
//!                              store (what must outlive the process)
//! ```

#![cfg_attr(rustfmt, rustfmt_skip)]

// What flows, and the bound on how much of it.
pub mod change;
pub mod ties;
pub mod feed;
pub mod memory;
pub mod machine;

// The way of a change.
pub mod source;
pub mod schedule;
pub mod sink;
pub mod record;
pub mod deliver;
pub mod store;

// What all rooms speak of.
pub mod address;
mod fault;

// What people set and see.
pub mod config;
mod pasted;
mod protection;
mod tls_fault;
mod trust;
pub mod view;
pub mod metrics;
pub mod logging;
pub mod admin;

// What holds it together.
pub mod failpoint;
pub mod app;
pub mod cli;
pub mod demo;

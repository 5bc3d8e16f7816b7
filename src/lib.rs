//! walhook, room by room, in the order in which a change walks through it.
pub mod admin;
pub mod app;
pub mod change;
pub mod cli;
pub mod config;
pub mod deliver;
pub mod demo;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod record;
pub mod schedule;
pub mod sink;
pub mod source;
pub mod view;

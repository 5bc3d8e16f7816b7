//! walhook, room by room, in the order in which a change walks through it.
pub mod change;
pub mod cli;
pub mod config;
pub mod deliver;
pub mod demo;
pub mod memory;
pub mod record;
pub mod source;
pub mod view;

//! The commands.
pub mod config_schema;

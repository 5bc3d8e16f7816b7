//! The commands.
pub mod check;
pub mod config_schema;
pub mod init;
pub mod listen;

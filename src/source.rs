//! STATION 1: reads the stream.
pub mod address;
pub mod connection;
pub mod slot;

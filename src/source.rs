//! STATION 1: reads the stream.
pub mod address;

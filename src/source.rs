//! STATION 1: reads the stream.
pub mod address;
pub mod pgoutput;
pub mod wire;

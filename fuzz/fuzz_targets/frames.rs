//! Fuzzes what a server writes into a CopyBoth stream.
#![no_main]

#[path = "../inputs.rs"]
mod inputs;

libfuzzer_sys::fuzz_target!(|input: &[u8]| inputs::frames(input));

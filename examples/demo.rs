//! What `make demo` runs: the command `walhook demo`, with its own arguments.
//!
//! An example is built like the tests, with the features that the dev-dependencies switch on in packages, and the
//! binary alone is not. So the build of `make demo` serves `make test`, and the other way round.

use clap::Parser as _;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    let command = ["walhook", "demo"].map(std::ffi::OsString::from);
    walhook::cli::run(walhook::cli::Cli::parse_from(command.into_iter().chain(std::env::args_os().skip(1))))
}

//! walhook: Postgres changes to HTTP endpoints.

use clap::Parser as _;

/// Gives memory back after a burst, which the C library's allocator does not.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    walhook::cli::run(walhook::cli::Cli::parse())
}

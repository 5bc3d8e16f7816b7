//! walhook: Postgres changes to HTTP endpoints.

/// Gives memory back after a burst, which the C library's allocator does not.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    match walhook::cli::arguments(std::env::args_os().collect()) {
        Ok(cli) => walhook::cli::run(cli),
        Err(code) => code,
    }
}

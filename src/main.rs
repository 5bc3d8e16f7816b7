//! walhook: Postgres changes to HTTP endpoints.
fn main() {}

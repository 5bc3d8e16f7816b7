//! `walhook check`.
/// Arguments.
#[derive(clap::Args, Clone, Debug)]
pub struct CheckArgs {}
/// Checks.
pub async fn check(_: CheckArgs) -> u8 { 1 }

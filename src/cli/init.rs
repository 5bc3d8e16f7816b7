//! `walhook init`.
/// Arguments.
#[derive(clap::Args, Clone, Debug)]
pub struct InitArgs {}
/// Inits.
pub async fn init(_: InitArgs) -> u8 { 1 }

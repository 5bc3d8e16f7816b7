//! The commands: what `walhook` understands, and the exit codes.
//!
//! 0: done. 1: failed while running. 2: a bad command line, which clap refuses. 69: what a restart may mend, because something
//! outside the file is missing or not ready. 78: what nothing but an edit of the configuration mends: a service manager does not
//! restart on it.

pub mod check;
pub mod config_schema;
pub mod init;
pub mod listen;
pub(crate) mod signals;
pub mod state;

use std::convert::Infallible;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tokio::runtime::Runtime;
use tracing::error;

use crate::app::{self, AppError};
use crate::config::{self, Config, Faults};
use crate::deliver::endpoint::EndpointError;
use crate::fault::chain;
use crate::source::SourceError;
use crate::store::StoreError;
use crate::{demo, logging};

/// Failed while running.
pub const FAILED: u8 = 1;
/// Database or prerequisite missing (EX_UNAVAILABLE of sysexits.h).
pub const UNAVAILABLE: u8 = 69;
/// Bad configuration (EX_CONFIG of sysexits.h).
pub const BAD_CONFIG: u8 = 78;

/// Postgres changes to HTTP endpoints: in order, at least once, from one binary.
#[derive(Parser, Debug)]
#[command(name = "walhook", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the daemon
    Run(RunArgs),
    /// Check the config, the database and the endpoints, and change nothing
    Check(check::CheckArgs),
    /// Write a commented config from a live database
    Init(init::InitArgs),
    /// Show everything on this machine: a throw-away Postgres, a shop, a receiver, walhook
    Demo(demo::DemoArgs),
    /// Receive messages and print them
    Listen(listen::ListenArgs),
    /// Show what the store on disk holds, and mend it
    State(state::StateArgs),
    /// About the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Subcommand, Debug)]
enum ConfigCommand {
    /// Print the JSON Schema of the TOML
    Schema,
}

/// Arguments of `walhook run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The configuration
    #[arg(long, short, value_name = "FILE", env = "WALHOOK_CONFIG", default_value = "walhook.toml")]
    config: PathBuf,
    /// Log directives instead of log.level, such as debug or walhook::sink=debug,info
    #[arg(long, value_name = "DIRECTIVES", env = "WALHOOK_LOG")]
    log: Option<String>,
}

/// What `args` ask for, or the code to exit with after clap has said why not or has helped. What it prints of an argument that is
/// refused may be an address with its password, or a secret: of these nothing is printed.
pub fn arguments(args: Vec<OsString>) -> Result<Cli, ExitCode> {
    let texts: Vec<String> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    Cli::try_parse_from(args).map_err(|error| {
        let code = u8::try_from(error.exit_code()).unwrap_or(FAILED);
        let hidden = secrets(&texts);
        if hidden.is_empty() || !error.use_stderr() {
            return error.print().map_or(ExitCode::from(FAILED), |()| ExitCode::from(code));
        }
        let text = hidden.iter().fold(error.render().to_string(), |text, secret| text.replace(secret, "***"));
        say(text.trim_end());
        ExitCode::from(code)
    })
}

/// The arguments that are or may hold a secret.
fn secrets(args: &[String]) -> Vec<&str> {
    let named = ["--secret", "--url"];
    let value = |arg: &'_ str| named.iter().find_map(|name| arg.strip_prefix(name)?.strip_prefix('=').map(str::len));
    let is_secret = |text: &str| ["://", "whsec_", "password"].iter().any(|mark| text.contains(mark));
    let of_pair = args.windows(2).filter(|pair| named.contains(&&*pair[0])).map(|pair| &*pair[1]);
    let with_equals = args.iter().filter_map(|arg| arg.get(arg.len().checked_sub(value(arg)?)?..));
    let others = args.iter().map(|arg| &**arg).filter(|arg| is_secret(arg));
    of_pair.chain(with_equals).chain(others).filter(|secret| !secret.is_empty()).collect()
}

/// Runs a command; the code to exit with.
pub fn run(cli: Cli) -> ExitCode {
    let code = match cli.command {
        Command::Run(args) => daemon(&args),
        Command::Check(args) => with_runtime(|runtime| runtime.block_on(check::check(args))),
        Command::Init(args) => with_runtime(|runtime| runtime.block_on(init::init(args))),
        Command::Demo(args) => with_runtime(|runtime| runtime.block_on(demo::demo(args))),
        Command::Listen(args) => with_runtime(|runtime| runtime.block_on(listening(args))),
        Command::State(args) => state::state(&args),
        Command::Config(ConfigCommand::Schema) => schema(),
    };
    logging::flush();
    ExitCode::from(code)
}

fn daemon(args: &RunArgs) -> u8 {
    let config = match config::load(&args.config) {
        Ok(config) => config,
        Err(faults) => {
            say(&faults.to_string());
            return of_faults(&faults);
        }
    };
    if let Some(text) = args.log.as_deref().filter(|text| config::level_words(text).is_err()) {
        say(&format!("error: --log {text:?} (or WALHOOK_LOG) {}", config::LEVEL_FORM));
        // No edit of the file mends it.
        return UNAVAILABLE;
    }
    let level = args.log.as_deref().unwrap_or(&config.log.level);
    if let Err(error) = logging::init(config.log.format, level) {
        say(&format!("error: {:#}", anyhow::Error::from(error)));
        return BAD_CONFIG;
    }
    logging::speak_of_panics();
    with_runtime(|runtime| runtime.block_on(run_daemon(config)))
}

/// The exit code for a configuration that cannot be taken.
pub(crate) fn of_faults(faults: &Faults) -> u8 {
    if faults.need_an_edit() { BAD_CONFIG } else { UNAVAILABLE }
}

async fn run_daemon(config: Config) -> u8 {
    let orders = app::Orders::default();
    let Some(signals) = heed(&orders) else { return FAILED };
    let result = tokio::select! {
        result = app::run(config, orders.clone()) => result,
        never = signals => match never {},
    };
    match result {
        // A second signal cuts off what the first one waited for.
        Ok(()) if orders.abort.is_cancelled() => FAILED,
        Ok(()) => 0,
        Err(error) => {
            error!(error = %chain(&error), "walhook ends");
            explain(error)
        }
    }
}

/// Prints why the daemon ended; the exit code.
pub(crate) fn explain(error: AppError) -> u8 {
    match error {
        AppError::Source(SourceError::Prerequisite { what, advice }) => {
            say(&format!("error: {what}\n  {}", advice.replace('\n', "\n  ")));
            UNAVAILABLE
        }
        // Nothing but an edit of the file makes a start succeed.
        AppError::Store(StoreError::TooSmall { .. }) => {
            say(&format!("error: {:#}", anyhow::Error::from(error)));
            BAD_CONFIG
        }
        AppError::Endpoint { source: EndpointError::NoRoots { .. } | EndpointError::CaFile { .. }, .. }
        | AppError::Admin(_)
        | AppError::Store(_) => {
            say(&format!("error: {:#}", anyhow::Error::from(error)));
            UNAVAILABLE
        }
        AppError::Endpoint { .. } => {
            say(&format!("error: {:#}", anyhow::Error::from(error)));
            BAD_CONFIG
        }
        AppError::Metrics(_) | AppError::Task(_) => {
            say(&format!("error: {:#}", anyhow::Error::from(error)));
            FAILED
        }
    }
}

async fn listening(args: listen::ListenArgs) -> u8 {
    let orders = app::Orders::default();
    let Some(signals) = heed(&orders) else { return FAILED };
    let done = tokio::select! {
        done = listen::listen(args, orders.stop.clone(), std::io::stdout()) => done,
        never = signals => match never {},
        () = orders.abort.cancelled() => return FAILED,
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            say(&format!("error: {error:#}"));
            FAILED
        }
    }
}

/// Signals become orders for as long as the future is polled; `None`, said, if they cannot be had.
fn heed(orders: &app::Orders) -> Option<impl Future<Output = Infallible> + use<>> {
    match signals::listen(orders.clone()) {
        Ok(signals) => Some(signals),
        Err(error) => {
            say(&format!("error: cannot listen for signals: {error}"));
            None
        }
    }
}

fn schema() -> u8 {
    let text = serde_json::to_string_pretty(&config_schema::schema()).unwrap_or_default();
    match writeln!(std::io::stdout().lock(), "{text}") {
        Ok(()) => 0,
        Err(_) => FAILED,
    }
}

fn with_runtime(work: impl FnOnce(&Runtime) -> u8) -> u8 {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let code = work(&runtime);
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            say(&format!("error: cannot start the runtime: {error}"));
            FAILED
        }
    }
}

/// To a person at the terminal; when nobody can read it, nothing is left to do.
pub(crate) fn say(text: &str) {
    logging::last_words(text.trim_end());
}

//! `walhook state`: what the store on disk holds, and the few things that a person must decide about it.
//!
//! Showing works beside a running daemon. The others change files that are a daemon's while it runs, so they are refused then.

mod show;

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{FAILED, UNAVAILABLE, of_faults, say};
use crate::config::{self, Config};
use crate::fault::chain;
use crate::source::notes;
use crate::store::mend::{self, Accepted, Dropped, Resumed, SinkSummary};
use crate::store::{Note, StoreError};

/// Arguments of `walhook state`.
#[derive(Args, Clone, Debug)]
pub struct StateArgs {
    #[command(subcommand)]
    command: Option<StateCommand>,
    /// The configuration
    #[arg(long, short, global = true, value_name = "FILE", env = "WALHOOK_CONFIG", default_value = "walhook.toml")]
    config: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand, Clone, Debug)]
enum StateCommand {
    /// Show what it holds, which is done without a command too
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Drop all that it holds for a sink, such as one that left the configuration
    Forget {
        #[command(flatten)]
        sink: SinkName,
    },
    /// Go on from the slot's position at the next start, although changes before it are lost
    AcceptGap {
        /// The source; may be left out when there is only one
        #[arg(value_name = "SOURCE")]
        source: Option<String>,
        /// The gap of this table only, which was out of the publication for a while: its notice ends
        #[arg(long, value_name = "SCHEMA.TABLE")]
        table: Option<String>,
    },
    /// End the notice that something of a table is not captured
    AcceptMissed {
        /// The table, or the partition or child that is spoken of
        #[arg(value_name = "SCHEMA.TABLE")]
        table: String,
        /// Its source; may be left out, then it is that of every source
        #[arg(long, value_name = "SOURCE")]
        source: Option<String>,
    },
    /// Begin anew where the store was lost or is damaged, although what it held is lost
    AcceptLoss,
    /// Drop one message that is damaged in the store, or that is not to be delivered
    DropMessage {
        /// As /readyz and the log name it: msg_…, or dlv_… of a delivery whose messages cannot be told
        #[arg(value_name = "MSG_ID")]
        id: String,
    },
    /// Let a sink go on that retry.on_exhausted has paused, or whose groups it has blocked
    Resume {
        #[command(flatten)]
        sink: SinkName,
    },
}

/// Which sink.
#[derive(Args, Clone, Debug)]
struct SinkName {
    /// The sink
    #[arg(value_name = "SINK")]
    name: String,
    /// Its source; may be left out when the store knows the sink of one source only
    #[arg(long, value_name = "SOURCE")]
    source: Option<String>,
}

/// Why it was not done.
#[derive(Debug)]
enum Refusal {
    /// A name that does not fit the configuration.
    Name(String),
    /// The store.
    Store(StoreError),
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Does it; the exit code.
pub fn state(args: &StateArgs) -> u8 {
    let config = match config::load(&args.config) {
        Ok(config) => config,
        Err(faults) => {
            say(&faults.to_string());
            return of_faults(&faults);
        }
    };
    match carry_out(args, &config) {
        Ok(text) => match std::io::stdout().lock().write_all(text.as_bytes()) {
            Ok(()) => 0,
            Err(_) => FAILED,
        },
        Err(refusal) => {
            let (text, code) = told(refusal, &config);
            say(&text);
            code
        }
    }
}

/// What is printed.
fn carry_out(args: &StateArgs, config: &Config) -> Result<String, Refusal> {
    let state = &config.state;
    let command = args.command.clone().unwrap_or(StateCommand::Show { json: false });
    Ok(match command {
        StateCommand::Show { json } => {
            let summary = mend::open_to_show(state)?;
            if json || args.json { show::as_json(&state.path, &summary) } else { show::as_text(&state.path, &summary) }
        }
        StateCommand::Forget { sink } => {
            let forgotten = mend::forget(state, sink.source.as_deref(), &sink.name)?;
            let SinkSummary { source, name, holds, .. } = &forgotten;
            let text = format!("forgot sink {name} of source {source}: {holds}\n");
            if config.sinks.iter().any(|known| (&known.source, &known.name) == (source, name)) {
                text + "it is still in the configuration: at the next start it begins anew where the slot is\n"
            } else {
                text
            }
        }
        StateCommand::AcceptGap { source, table: Some(table) } => {
            let source = named_source(source, config)?;
            accepted(&source, &mend::accept_table_gap(state, &source, &table)?)
        }
        StateCommand::AcceptMissed { table, source } => {
            let notes = mend::accept_missed(state, source.as_deref(), &table)?;
            accepted(source.as_deref().unwrap_or_default(), &notes)
        }
        StateCommand::AcceptGap { source, table: None } => {
            let source = named_source(source, config)?;
            mend::accept_gap(state, &source)?;
            format!(
                "accepted: at its next start walhook goes on with source {source} from the slot's position, making a slot if \
                 there is none. Changes between are not delivered: compare the receivers' data with the tables\n"
            )
        }
        StateCommand::AcceptLoss => accepted_loss(&mend::accept_loss(state)?),
        StateCommand::DropMessage { id } => {
            let Dropped { source, sink, place } = mend::drop_message(state, &id)?;
            format!(
                "dropped {id} of sink {sink} of source {source}: it was {place}; its group goes on at the next start\n"
            )
        }
        StateCommand::Resume { sink } => resumed(&sink.name, &mend::resume(state, sink.source.as_deref(), &sink.name)?),
    })
}

fn accepted(source: &str, found: &[Note]) -> String {
    found.iter().map(|note| format!("accepted: {}\n", notes::told(source, note).trouble.what)).collect()
}

fn accepted_loss(accepted: &Accepted) -> String {
    let compare = "compare the receivers' data with the tables: what the store held is not delivered";
    match accepted {
        Accepted::Nothing => "the store is whole; nothing is changed\n".to_owned(),
        Accepted::SetAside(None) => {
            format!("accepted: the next start makes a new store and goes on from the slots' positions; {compare}\n")
        }
        Accepted::SetAside(Some(aside)) => format!(
            "accepted: what was there is called {} from here on; the next start makes a new store and goes on from the slots' \
             positions; {compare}\n",
            aside.display()
        ),
        Accepted::Forgotten { rows, moves } => {
            let forgotten: String = rows.iter().map(|what| format!("forgot: {what}\n")).collect();
            let then = match moves {
                true => {
                    "the next start goes on from the slot's position there; changes that were delivered may come again\n"
                }
                false => "the first change of the table waits for all of it that is in the store\n",
            };
            forgotten + then
        }
        Accepted::Adopted => format!("accepted: the store that is there is used from here on; {compare}\n"),
    }
}

fn resumed(sink: &str, Resumed { paused, unblocked }: &Resumed) -> String {
    let mut text = String::new();
    if let Some(why) = paused {
        text += &format!("sink {sink} goes on at the next start; it was paused: {why}\n");
    }
    if *unblocked > 0 {
        text += &format!("{unblocked} blocked deliveries of sink {sink} are tried once more at the next start\n");
    }
    if text.is_empty() {
        text += &format!("sink {sink} was neither paused nor blocked by walhook; nothing is changed\n");
    }
    text
}

fn named_source(source: Option<String>, config: &Config) -> Result<String, Refusal> {
    let names: Vec<&str> = config.sources.iter().map(|source| source.name.as_str()).collect();
    match (source, names.as_slice()) {
        (Some(source), _) => Ok(source),
        (None, [only]) => Ok((*only).to_owned()),
        (None, _) => Err(Refusal::Name(format!("there are several sources: name one of {}", names.join(", ")))),
    }
}

/// What a person reads, and the exit code.
fn told(refusal: Refusal, config: &Config) -> (String, u8) {
    match refusal {
        Refusal::Name(text) => (format!("error: {text}"), FAILED),
        Refusal::Store(error) => {
            let advice = match &error {
                StoreError::Locked { .. } => {
                    "\n  a walhook that runs keeps its files to itself: stop it, then try again"
                }
                StoreError::Missing { .. } => {
                    "\n  walhook makes it at its first start; if there should be one, check state.path"
                }
                StoreError::SeveralSinks { .. } => "\n  say which with --source SOURCE",
                StoreError::UnknownSink { .. } | StoreError::UnknownSource { .. } | StoreError::UnknownNote { .. } => {
                    "\n  `walhook state` shows what it knows"
                }
                StoreError::UnknownMessage { .. } => {
                    "\n  /readyz and the log name messages that are damaged, as msg_ with 32 digits"
                }
                StoreError::NoGap { .. } => {
                    "\n  give the table a replica identity, or let walhook run: it takes the table out where it may"
                }
                StoreError::Directory { .. }
                | StoreError::Lost { .. }
                | StoreError::Ruined { .. }
                | StoreError::Tampered { .. }
                | StoreError::Another { .. }
                | StoreError::Regrouped { .. }
                | StoreError::TooSmall { .. }
                | StoreError::File { .. }
                | StoreError::Open { .. }
                | StoreError::Foreign { .. }
                | StoreError::Newer { .. }
                | StoreError::Older { .. }
                | StoreError::Migrate { .. }
                | StoreError::Thread(_)
                | StoreError::Read { .. }
                | StoreError::Write { .. }
                | StoreError::Damaged { .. }
                | StoreError::DamagedSink { .. }
                | StoreError::NotesFull { .. }
                | StoreError::AmongOthers { .. }
                | StoreError::Closed => "",
            };
            let code = if error.is_lasting() { UNAVAILABLE } else { FAILED };
            let path = config.state.path.display();
            (format!("error: {} (state.path is {path}){advice}", chain(&error)), code)
        }
    }
}

#[cfg(test)]
mod tests;

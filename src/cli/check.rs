//! `walhook check`: the configuration, the databases and the endpoints, looked at without changing anything.
//!
//! Findings are made by [`findings`] and [`tables`] (pure), [`state`] (the store) and [`endpoint`] (a connection without a request); this
//! file asks, prints and decides the exit code.

mod columns;
mod endpoint;
mod equal;
mod findings;
mod missed;
mod print;
mod reading;
mod state;
mod tables;
#[cfg(test)]
mod tests;
mod younger;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinSet;

pub(crate) use self::findings::{Finding, Level};
use self::print::as_text;

use crate::config::{self, Config, SinkConfig, SourceConfig};
use crate::machine::descriptors::{self, Allowance};
use crate::machine::room::{self, InForce};
use crate::protection;
use crate::source::connection;
use crate::source::slot::by_hand::Whose;
use crate::source::slot::{self, server};
use crate::view::Trouble;

/// Longest wait for a server's answer to what is only worth a word.
const LIMIT: Duration = Duration::from_secs(10);

/// Arguments of `walhook check`.
#[derive(clap::Args, Clone, Debug)]
pub struct CheckArgs {
    /// The configuration
    #[arg(long, short, value_name = "FILE", env = "WALHOOK_CONFIG", default_value = "walhook.toml")]
    pub config: PathBuf,
    /// Print a JSON array
    #[arg(long)]
    pub json: bool,
    /// Name everything that is as it should be, however much of it there is
    #[arg(long, short)]
    pub verbose: bool,
    /// Look at the configuration only, at no database and no endpoint
    #[arg(long)]
    pub offline: bool,
}

/// Looks and prints; the exit code: 0 all ok or warn, 78 the configuration is bad, 69 the database or a prerequisite is missing.
pub async fn check(args: CheckArgs) -> u8 {
    let findings = look(&args.config, args.offline).await;
    let text = match (args.json, args.verbose) {
        (true, _) => as_json(&findings),
        (false, true) => as_text(&findings),
        (false, false) => print::folded(&findings),
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => exit_code(&findings),
        Err(_) => 1,
    }
}

/// All findings.
pub(crate) async fn look(file: &Path, offline: bool) -> Vec<Finding> {
    let config = match config::load(file) {
        Ok(config) => config,
        Err(faults) => return faults.0.iter().map(findings::of_fault).collect(),
    };
    let counted = format!("{} sources, {} sinks", config.sources.len(), config.sinks.len());
    let mut all = vec![Finding::ok(file.display(), format!("the configuration is valid: {counted}"))];
    all.push(Finding::ok("links", protection::in_one_line(&protection::links(&config))));
    let warned = protection::warnings(&config).into_iter();
    all.extend(warned.map(|(key, Trouble { what, advice })| Finding::warn(key, what, advice)));
    all.extend(of_machine(&config));
    if offline {
        return all;
    }
    all.extend(state::look(&config.state, config.sinks.len()));
    all.extend(state::look_at_grouping(&config.state, &config.sinks));
    for source in &config.sources {
        all.extend(look_at_source(&config, source).await);
    }
    all.extend(endpoint::look(&config.sinks).await);
    all
}

/// Whether the machine leaves the process what it may want: open files and memory.
fn of_machine(config: &Config) -> Vec<Finding> {
    let max_in_flight = config.sinks.iter().map(|sink| sink.max_in_flight);
    let files = Allowance::of(descriptors::limit(), config.sources.len(), max_in_flight).trouble();
    let files = files.map(|Trouble { what, advice }| Finding::warn("limit of open files", what, advice));
    let set = config.limits.memory_limit;
    let memory = InForce::of(set, config.sinks.len(), room::limit(&room::Places::default())).said(set);
    let memory = memory.map(|what| Finding::warn("limits.memory_limit", what, room::ADVICE));
    files.into_iter().chain(memory).collect()
}

fn sinks_of(config: &Config, source: &SourceConfig) -> Vec<SinkConfig> {
    config.sinks.iter().filter(|sink| sink.source == source.name).cloned().collect()
}

async fn look_at_source(config: &Config, source: &SourceConfig) -> Vec<Finding> {
    let sinks = sinks_of(config, source);
    let subject = format!("source.{}", source.name);
    let (client, driver) = match connection::sql(&source.url).await {
        Ok(session) => session,
        Err(error) => {
            let mend = error.advice();
            return vec![Finding::fail(subject, format!("{:#}", anyhow::Error::from(error)), mend)];
        }
    };
    // The driver ends with this function.
    let mut drivers = JoinSet::new();
    drivers.spawn(async move { driver.await.is_ok() });
    let asked = async {
        slot::trust_the_catalogue(&client).await?;
        let limits = server::limits(&client).await?;
        Ok::<_, slot::PrepareError>((slot::survey(&client, source, &sinks).await?, limits))
    };
    match asked.await {
        Ok((survey, limits)) => {
            let oids: Vec<u32> = survey.plan.publish.iter().map(|(table, _)| table.oid).collect();
            let mut looked = columns::look(&client, &oids, &subject, &survey.server.role).await;
            // After the slot was looked at, so that a daemon that goes on meanwhile is not taken for one that is behind.
            let bound = state::binding(&config.state, source);
            let is_same = match &bound {
                Some(bound) => state::is_of(&client, bound).await,
                None => false,
            };
            let whose = Whose::of(source, &survey, bound.as_ref().filter(|_| is_same));
            let mut all = findings::of_database(source, &survey, &limits);
            all.extend(reading::of_reading(source, &survey, &whose));
            all.extend(findings::of_tables(source, &sinks, &survey, &looked));
            all.append(&mut looked.unseen);
            all.extend(missed::look(&client, &config.state, (source, &sinks), &survey).await);
            all.extend(younger::look(&client, source, &survey, &whose).await);
            all.extend(state::look_at_binding(&client, &config.state, source, &survey, bound.as_ref()).await);
            all
        }
        Err(slot::PrepareError::Lasting { what, advice } | slot::PrepareError::Unpublished { what, advice }) => {
            vec![Finding::fail(subject, what, advice)]
        }
        Err(error) => {
            let mend = "try again; if it goes on, see the server's log";
            vec![Finding::fail(subject, format!("{:#}", anyhow::Error::from(error)), mend)]
        }
    }
}

/// 78 before 69: a bad configuration is mended first.
pub(crate) fn exit_code(findings: &[Finding]) -> u8 {
    let failed = |is_config| findings.iter().any(|it| it.level == Level::Fail && it.is_config == is_config);
    match (failed(true), failed(false)) {
        (true, _) => 78,
        (false, true) => 69,
        (false, false) => 0,
    }
}

fn as_json(findings: &[Finding]) -> String {
    serde_json::to_string_pretty(findings).unwrap_or_default() + "\n"
}

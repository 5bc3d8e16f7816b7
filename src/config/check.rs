//! The whole, the sources, and the sections that are not sinks: values to checked values.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use url::Url;

use super::checked::{
    AdminConfig, AdminToken, Config, Hold, LimitsConfig, LogConfig, LogFormat, OnSlotLost, SourceConfig, StateConfig,
};
use super::entry::{Entry, Reading, Table};
use super::fault::nearest;
use super::quantity::show_size;
use super::redact::Show;
use super::sink;
use crate::address::PgAddress;
use crate::deliver::egress::{Egress, Network, NetworkError};
use crate::pasted::blemish;

/// Sinks at most.
const SINKS_MAX: usize = 1000;

/// The longest name of a slot or publication, and of sources and sinks.
const NAME_BYTES_MAX: usize = 63;

pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// The names that sinks and tokens refer to, of faulty tables too.
pub(super) struct Names {
    pub(super) sources: Vec<String>,
    pub(super) sinks: Vec<String>,
}

/// Checks everything. Faults are noted in `reading`; `None` comes only with at least one.
pub(super) fn config(reading: &Reading, file: &Path) -> Option<Config> {
    let mut root = reading.root();
    let source_entries = named(reading, root.take("source"), "source");
    let sink_entries = named(reading, root.take("sink"), "sink");
    let of = |entries: &[(String, Entry<'_>)]| entries.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let names = Names { sources: of(&source_entries), sinks: of(&sink_entries) };
    if names.sinks.len() > SINKS_MAX {
        reading.fault("sink", format!("has {} sinks; at most {SINKS_MAX} are possible", names.sinks.len()));
    }
    let sources = sources(source_entries);
    let egress = root.take("egress").table().and_then(egress);
    let terms = (file, &egress.clone().unwrap_or_default());
    let sinks =
        sink_entries.into_iter().map(|(name, entry)| sink::check(name, &entry, &names, terms)).collect::<Vec<_>>();
    let state = root.take("state").table().and_then(|table| state(table, file));
    let admin = root.take("admin").table().and_then(|table| admin(table, &names));
    let limits = root.take("limits").table().and_then(limits);
    let log = root.take("log").table().and_then(log);
    root.finish();
    egress?;
    Some(Config {
        file: file.to_owned(),
        sources: sources?,
        sinks: sinks.into_iter().collect::<Option<_>>()?,
        state: state?,
        admin: admin?,
        limits: limits?,
        log: log?,
    })
}

/// `[source.NAME]` or `[sink.NAME]` tables, of which there must be one.
fn named<'r>(reading: &Reading, entry: Entry<'r>, section: &str) -> Vec<(String, Entry<'r>)> {
    let Some(mut table) = entry.table_or(&not_named(section)) else {
        if !entry.is_given() {
            reading.fault(section, format!("is missing: at least one [{section}.NAME] is needed"));
        }
        return Vec::new();
    };
    let entries = table.take_all();
    if entries.is_empty() {
        table.fault(format!("is missing: at least one [{section}.NAME] is needed"));
    }
    for (name, entry) in &entries {
        let letters = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        if !letters || name.len() > NAME_BYTES_MAX || !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            reading.fault(&entry.key, "must have a name of 1 to 63 letters, digits, _ and -, beginning with a letter");
        }
    }
    entries
}

/// What is said of a key that stands where a name belongs: most likely the name was forgotten.
pub(super) fn not_named(section: &str) -> String {
    format!("must be a table: write [{section}.NAME], with a name of your choice, above its keys")
}

fn sources(entries: Vec<(String, Entry<'_>)>) -> Option<Vec<SourceConfig>> {
    let mut slots: Vec<(String, String, String)> = Vec::new();
    let mut sources = Vec::new();
    for (name, entry) in entries {
        let Some(mut table) = entry.table_or(&not_named("source")) else {
            sources.push(None);
            continue;
        };
        let url = table.take("url").required().showing(Show::Host);
        let slot = slot(&mut table, &name);
        if let (Some(text), Some(slot)) = (url.text(), &slot) {
            let server = server_of(&text);
            match slots.iter().find(|(known, at, _)| known == slot && *at == server) {
                Some((_, _, other)) => entry_fault(&table, slot, other),
                None => slots.push((slot.clone(), server, name.clone())),
            }
        }
        let url = url.text().and_then(|text| address(&url, &text));
        sources.push(source(name, url, slot, table));
    }
    sources.into_iter().collect()
}

/// The address, or a fault for each thing that is wrong with it.
fn address(entry: &Entry<'_>, text: &str) -> Option<PgAddress> {
    let wrong = match PgAddress::parse(text) {
        Ok(address) => return Some(address),
        Err(wrong) => wrong,
    };
    for error in wrong.each() {
        entry.fault(error.to_string());
    }
    None
}

fn entry_fault(table: &Table<'_>, slot: &str, other: &str) {
    table.fault_of(
        "slot",
        format!("is {slot:?}, which source {other} of the same server has too: a slot has one reader"),
    );
}

fn source(name: String, url: Option<PgAddress>, slot: Option<String>, mut table: Table<'_>) -> Option<SourceConfig> {
    let publication = publication(&mut table, &name);
    let create = table.take("create").boolean();
    let heartbeat = heartbeat(&table.take("heartbeat"));
    let failover = table.take("failover").boolean();
    let losses = [("stop", OnSlotLost::Stop), ("recreate", OnSlotLost::Recreate)];
    let lost = table.take("on_slot_lost");
    let on_slot_lost = lost.choice(&losses);
    if create == Some(false) && on_slot_lost == Some(OnSlotLost::Recreate) {
        lost.fault("cannot be \"recreate\" with create = false, which makes no slot");
    }
    table.finish();
    Some(SourceConfig {
        name,
        url: url?,
        slot: slot?,
        publication: publication?,
        create: create?,
        heartbeat: heartbeat?,
        failover: failover?,
        on_slot_lost: on_slot_lost?,
    })
}

/// Host and port, by which two sources are of the same server; the whole text if it is no URL.
fn server_of(text: &str) -> String {
    match Url::parse(text) {
        Ok(url) if url.has_host() => {
            format!("{}:{}", url.host_str().unwrap_or_default().to_lowercase(), url.port().unwrap_or(5432))
        }
        Ok(_) | Err(_) => text.to_owned(),
    }
}

/// `walhook_<name>` in lower case, `_` for `-`.
fn default_name(name: &str) -> String {
    format!("walhook_{}", name.to_ascii_lowercase().replace('-', "_"))
}

fn slot(table: &mut Table<'_>, name: &str) -> Option<String> {
    let entry = table.take("slot");
    let slot = if entry.is_given() { entry.text()? } else { default_name(name) };
    let letters = slot.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if slot.len() > NAME_BYTES_MAX && !entry.is_given() {
        entry.fault("must be set, since walhook_NAME is longer than the 63 characters of a slot's name");
        return None;
    }
    if slot.is_empty() || slot.len() > NAME_BYTES_MAX || !letters {
        let near: String = slot.to_ascii_lowercase().replace(['-', '.', ' '], "_");
        let good = !near.is_empty() && near.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        let near = (good && near.len() <= NAME_BYTES_MAX).then(|| format!("{near:?}"));
        entry.fault_with("must be 1 to 63 of a-z, 0-9 and _", near);
        return None;
    }
    Some(slot)
}

fn publication(table: &mut Table<'_>, name: &str) -> Option<String> {
    let entry = table.take("publication");
    let publication = if entry.is_given() { entry.text()? } else { default_name(name) };
    if publication.len() > NAME_BYTES_MAX && !entry.is_given() {
        entry.fault("must be set, since walhook_NAME is longer than the 63 bytes of a publication's name");
        return None;
    }
    if publication.is_empty() || publication.len() > NAME_BYTES_MAX || publication.contains(char::is_control) {
        entry.fault("must be 1 to 63 bytes without control characters");
        return None;
    }
    Some(publication)
}

/// The inner `None` is `"0s"`: off.
fn heartbeat(entry: &Entry<'_>) -> Option<Option<Duration>> {
    let heartbeat = entry.duration(Duration::ZERO..=DAY)?;
    if heartbeat.is_zero() {
        return Some(None);
    }
    if heartbeat < Duration::from_secs(1) {
        entry.fault("must be \"0s\", which turns it off, or from 1s to 24h");
        return None;
    }
    Some(Some(heartbeat))
}

fn state(mut table: Table<'_>, file: &Path) -> Option<StateConfig> {
    let retention = MINUTE..=3650 * DAY;
    let path = table.take("path");
    let path = path.text().and_then(|text| {
        let good = !text.is_empty() && !text.contains('\0');
        if !good {
            path.fault("must be the path of a directory");
        }
        good.then(|| file.parent().unwrap_or(Path::new("")).join(PathBuf::from(text)))
    });
    let hold = table.take("hold").choice(&[("store", Hold::Store), ("wal", Hold::Wal)]);
    let max_bytes = table.take("max_bytes").size(8 << 20..=u64::MAX);
    let dead_letter_retention = table.take("dead_letter_retention").duration(retention.clone());
    let log_retention = table.take("log_retention").duration(retention);
    let log_max_rows = table.take("log_max_rows").integer(1..=100_000_000);
    table.finish();
    Some(StateConfig {
        path: path?,
        hold: hold?,
        max_bytes: max_bytes?,
        dead_letter_retention: dead_letter_retention?,
        log_retention: log_retention?,
        log_max_rows: log_max_rows?,
    })
}

fn admin(mut table: Table<'_>, names: &Names) -> Option<AdminConfig> {
    let listen_entry = table.take("listen");
    let listen = listen(&listen_entry);
    let tokens_entry = table.take("tokens").showing(Show::Nothing);
    let tokens = tokens_entry.list();
    if let (Some(address), Some([])) = (listen, tokens.as_deref())
        && !address.ip().is_loopback()
    {
        let reason = "is not a loopback address, which needs admin.tokens; without them listen on 127.0.0.1 or [::1]";
        listen_entry.fault_with(reason, Some(format!("\"127.0.0.1:{}\"", address.port())));
    }
    table.finish();
    let tokens = tokens?.iter().map(|entry| token(entry, names)).collect::<Vec<_>>();
    Some(AdminConfig { listen: listen?, tokens: tokens.into_iter().collect::<Option<_>>()? })
}

fn listen(entry: &Entry<'_>) -> Option<SocketAddr> {
    let text = entry.text()?;
    let address = text.parse().ok();
    if address.is_none() {
        let port = text.rsplit(':').next().filter(|port| port.parse::<u16>().is_ok());
        let local = text.starts_with(':') || text.starts_with("localhost") || !text.contains(':');
        let near = port.filter(|_| local).map(|port| format!("\"127.0.0.1:{port}\""));
        entry.fault_with("must be an IP address and a port, such as 127.0.0.1:8377 or [::1]:8377", near);
    }
    address
}

fn token(entry: &Entry<'_>, names: &Names) -> Option<AdminToken> {
    let mut table = entry.table()?;
    let token = table.take("token").showing(Show::Nothing).required();
    let text = token.text();
    let good = text.as_ref().is_some_and(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()));
    if text.is_some() && !good {
        let named = text.as_deref().and_then(blemish).map(|blemish| blemish.to_string());
        token.fault(named.unwrap_or_else(|| "must be one or more visible ASCII characters without spaces".to_owned()));
    }
    let role = table.take("role");
    let operate = if role.is_given() { role.choice(&[("read", false), ("operate", true)]) } else { Some(false) };
    let sinks = token_sinks(&table.take("sinks"), names);
    table.finish();
    Some(AdminToken { token: text.filter(|_| good)?.into(), operate: operate?, sinks: sinks? })
}

/// The inner `None` is a token for all sinks.
fn token_sinks(entry: &Entry<'_>, names: &Names) -> Option<Option<Vec<String>>> {
    if !entry.is_given() {
        return Some(None);
    }
    let items = entry.list()?;
    if items.is_empty() {
        entry.fault("is empty; left out, the token is for all sinks");
    }
    let known = |item: &Entry<'_>| {
        let name = item.text()?;
        if !names.sinks.contains(&name) {
            item.fault_with("is not a sink of this file", near_name(&name, &names.sinks));
        }
        Some(name)
    };
    Some(Some(items.iter().map(known).collect::<Option<_>>()?))
}

/// The nearest of `names`, as it is written.
pub(super) fn near_name(name: &str, names: &[String]) -> Option<String> {
    nearest(name, names.iter().map(String::as_str)).map(|name| format!("{name:?}"))
}

/// Networks where no endpoint may be.
fn egress(mut table: Table<'_>) -> Option<Egress> {
    let items = table.take("deny").list();
    table.finish();
    let network = |item: &Entry<'_>| match item.text()?.parse::<Network>() {
        Ok(network) => Some(network),
        Err(error @ NetworkError::Form) => {
            item.fault(error.to_string());
            None
        }
        Err(NetworkError::Host(network)) => {
            item.fault_with(NetworkError::Host(network).to_string(), Some(format!("\"{network}\"")));
            None
        }
    };
    let networks: Vec<Option<Network>> = items?.iter().map(network).collect();
    Some(Egress::denying(networks.into_iter().collect::<Option<Vec<_>>>()?))
}

fn limits(mut table: Table<'_>) -> Option<LimitsConfig> {
    let memory_limit = table.take("memory_limit").size(32 << 20..=u64::MAX);
    let message_bytes_max = memory_limit.and_then(|limit| max_message(&table.take("max_message"), limit));
    let shutdown_grace = table.take("shutdown_grace").duration(Duration::ZERO..=15 * MINUTE);
    table.finish();
    Some(LimitsConfig {
        memory_limit: usize::try_from(memory_limit?).ok()?,
        message_bytes_max: usize::try_from(message_bytes_max?).ok()?,
        shutdown_grace: shutdown_grace?,
    })
}

/// Two large changes and their bodies have to fit beside each other.
fn max_message(entry: &Entry<'_>, memory_limit: u64) -> Option<u64> {
    if !entry.is_given() {
        return Some(memory_limit / 8);
    }
    let bytes = entry.size(1 << 20..=u64::MAX)?;
    if bytes > memory_limit / 4 {
        let most = show_size((memory_limit / 4) & !((1 << 20) - 1));
        entry.fault_with("must be at most a quarter of limits.memory_limit; raise that too", Some(format!("{most:?}")));
        return None;
    }
    Some(bytes)
}

fn log(mut table: Table<'_>) -> Option<LogConfig> {
    let formats = [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
    let format = table.take("format").choice(&formats);
    let level = table.take("level");
    let text = level.text();
    if let Some(text) = &text {
        check_level(&level, text);
    }
    table.finish();
    Some(LogConfig { format: format?, level: text? })
}

/// `EnvFilter` takes a bare word that is no level for a module's name, so that a slip of the pen would log nothing.
fn check_level(entry: &Entry<'_>, text: &str) {
    if let Err(bare) = level_words(text) {
        let near = nearest(bare, LEVELS).map(|level| format!("{level:?}"));
        entry.fault_with(LEVEL_FORM, near);
    } else if let Err(error) = EnvFilter::builder().parse(text) {
        entry.fault(format!("is not a list of levels: {error}"));
    }
}

/// What a list of levels looks like, as the end of a sentence.
pub(crate) const LEVEL_FORM: &str =
    "must be error, warn, info, debug, trace or off, also as module=level, with commas between";

/// Whether every bare word of a list of levels is a level, which a mere parser would take for a module; the word that is none.
pub(crate) fn level_words(text: &str) -> Result<(), &str> {
    let is_level = |word: &str| LEVELS.contains(&word.to_ascii_lowercase().as_str());
    let bare = text.split(',').map(str::trim).find(|word| !word.contains(['=', ':', '[']) && !is_level(word));
    bare.map_or(Ok(()), Err)
}

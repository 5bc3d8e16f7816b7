//! The configuration: the TOML as a person writes it, checked into values that cannot be wrong.
//!
//! [`load`] reads a file and the environment; [`parse`] does the rest and touches nothing. Three layers are laid over
//! one another: the defaults ([`raw`]), the file with its `${NAME}` filled in ([`document`]), and `WALHOOK_…__…` variables
//! ([`overrides`]). The result is read key by key ([`entry`]) and gives either a [`Config`] in which every value holds
//! what its type says, or all the [`Faults`] at once, each with key, value, reason and, where there is one, a suggestion.
//! Nothing here touches the database or the network.

mod check;
mod checked;
mod document;
mod endpoint;
mod entry;
mod excerpt;
mod fault;
mod overrides;
mod quantity;
pub(crate) mod raw;
mod redact;
mod sink;
mod substitute;
mod tables;
pub(crate) mod written;

use std::io::Read;
use std::path::Path;

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

pub(crate) use check::{LEVEL_FORM, level_words};
pub use checked::*;
pub use fault::{Fault, Faults, Place};

/// Bytes of a configuration file at most; a larger one is refused.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Reads and checks `file`, with `${NAME}` and `WALHOOK_…__…` from the environment.
pub fn load(file: &Path) -> Result<Config, Faults> {
    let text = read_file(file).map_err(|Unread { reason, is_outside }| {
        let key = file.display().to_string();
        Faults(vec![Fault { key, value: None, reason, suggestion: None, place: None, is_outside }])
    })?;
    let overrides: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
        .filter(|(name, _)| overrides::is_override(name))
        .collect();
    parse(&text, file, &variable, &overrides)
}

/// Checks `text`, which stands in `file`. `environment` gives the variables of `${NAME}`, `overrides` the names and
/// values of `WALHOOK_…__…` variables; names of another form are passed over.
pub fn parse(
    text: &str,
    file: &Path,
    environment: &dyn Fn(&str) -> Option<String>,
    overrides: &[(String, String)],
) -> Result<Config, Faults> {
    let mut document = document::read(text, environment)?;
    let mut faults = std::mem::take(&mut document.faults);
    let layers = overrides::layers(&document.root, overrides, &mut faults);
    let mut figment = Figment::from(Layer { name: "defaults".to_owned(), root: defaults(&document.root) });
    figment = figment.merge(Layer { name: "file".to_owned(), root: document.root });
    for (variable, root) in layers {
        figment = figment.merge(Layer { name: variable, root });
    }
    let reading = entry::Reading::new(figment, document.places, faults);
    let config = check::config(&reading, file);
    let faults = reading.into_faults();
    match config {
        Some(config) if faults.0.is_empty() => Ok(config),
        Some(_) | None => Err(faults),
    }
}

/// Why the file cannot be read.
struct Unread {
    reason: String,
    /// It is not there yet, or not ours to read: nothing in it is wrong.
    is_outside: bool,
}

fn read_file(file: &Path) -> Result<String, Unread> {
    let failed = |error: std::io::Error| Unread { reason: format!("could not be read: {error}"), is_outside: true };
    let wrong = |reason: String| Unread { reason, is_outside: false };
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(failed)?;
    opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > FILE_BYTES_MAX) {
        return Err(wrong("is larger than 4 MiB".to_owned()));
    }
    let no_text = |valid: usize| wrong(format!("is not UTF-8 after byte {valid}"));
    String::from_utf8(bytes).map_err(|error| no_text(error.utf8_error().valid_up_to()))
}

#[expect(clippy::disallowed_methods, reason = "this is the one place where settings come from the environment")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The defaults of every key, with a table for each source and sink of the file.
fn defaults(root: &Dict) -> Dict {
    let names = |section: &str| -> Vec<String> {
        root.get(section).and_then(Value::as_dict).map(|named| named.keys().cloned().collect()).unwrap_or_default()
    };
    let raw = raw::RawConfig::defaults(names("source"), names("sink"));
    let value = Value::serialize(raw).expect("the defaults are strings, numbers, bools, lists and tables");
    value.into_dict().unwrap_or_default()
}

/// One layer of values, named after where it comes from.
struct Layer {
    name: String,
    root: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.root.clone()))
    }
}

#[cfg(test)]
mod tests;

//! `WALHOOK_SOURCE__APP__URL`: variables that lay a value over a key of the file.
//!
//! The parts between `__` are the parts of the key, in any case. The names of sources and sinks, of tables and of
//! headers are matched with what is in the file by letters and digits alone, everything else counting as `_`.

use figment::value::{Dict, Tag, Value};

use super::document::join_key;
use super::fault::{Fault, Place, nearest};

const PREFIX: &str = "WALHOOK_";

/// Whether a variable is meant for the configuration: those without `__` are for the commands.
pub(super) fn is_override(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|rest| rest.contains("__"))
}

/// Each override as a layer under its variable's name; those that match nothing become faults.
pub(super) fn layers(root: &Dict, overrides: &[(String, String)], faults: &mut Vec<Fault>) -> Vec<(String, Dict)> {
    let mut layers = Vec::new();
    let mut seen: Vec<(String, Vec<String>)> = Vec::new();
    for (variable, value) in overrides.iter().filter(|(name, _)| is_override(name)) {
        let rest = variable.strip_prefix(PREFIX).unwrap_or_default();
        let path = match resolve(root, rest) {
            Ok(path) => path,
            Err(unknown) => {
                faults.push(unknown.fault(variable));
                continue;
            }
        };
        if let Some((other, _)) = seen.iter().find(|(_, known)| *known == path) {
            let key = path.iter().fold(String::new(), |key, part| join_key(&key, part));
            let unknown = Unknown { key, reason: format!("is also set by {other}"), suggestion: None };
            faults.push(unknown.fault(variable));
            continue;
        }
        layers.push((variable.clone(), nested(&path, value)));
        seen.push((variable.clone(), path));
    }
    layers
}

/// A variable that names nothing in the file.
struct Unknown {
    key: String,
    reason: String,
    suggestion: Option<String>,
}

impl Unknown {
    fn fault(self, variable: &str) -> Fault {
        let place = Some(Place::Variable(variable.to_owned()));
        let Self { key, reason, suggestion } = self;
        Fault { key, value: None, reason, suggestion, place, is_outside: true }
    }
}

fn resolve(root: &Dict, rest: &str) -> Result<Vec<String>, Unknown> {
    let parts: Vec<String> = rest.split("__").map(str::to_lowercase).collect();
    let mut path: Vec<String> = Vec::new();
    for part in parts {
        let above: Vec<&str> = path.iter().map(String::as_str).collect();
        let name = match above.as_slice() {
            ["source" | "sink"] | ["sink", _, "table"] => named(root, &path, &part)?,
            ["sink", _, "headers"] => named(root, &path, &part).unwrap_or_else(|_| part.replace('_', "-")),
            _ => part,
        };
        path.push(name);
    }
    Ok(path)
}

/// The one key of the table at `path` that `part` names.
fn named(root: &Dict, path: &[String], part: &str) -> Result<String, Unknown> {
    let mut table = Some(root);
    for name in path {
        table = table.and_then(|table| table.get(name)).and_then(Value::as_dict);
    }
    let names: Vec<&str> = table.map(|table| table.keys().map(String::as_str).collect()).unwrap_or_default();
    let parent = path.iter().fold(String::new(), |key, part| join_key(&key, part));
    let unknown =
        |reason: &str, suggestion| Unknown { key: join_key(&parent, part), reason: reason.to_owned(), suggestion };
    let matching: Vec<&str> = names.iter().copied().filter(|name| folded(name) == folded(part)).collect();
    match matching.as_slice() {
        [name] => Ok((*name).to_owned()),
        [] => {
            let near = nearest(part, names).map(|name| join_key(&parent, name));
            Err(unknown("is not in the file; a variable overrides keys of what the file names", near))
        }
        [_, ..] => Err(unknown("names more than one table of the file", None)),
    }
}

fn folded(name: &str) -> String {
    name.chars().map(|c| if c.is_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect()
}

fn nested(path: &[String], value: &str) -> Dict {
    let mut value = Value::String(Tag::Default, value.to_owned());
    let mut parts = path.iter().rev();
    let last = parts.next().cloned().unwrap_or_default();
    let mut dict = Dict::from([(last, value)]);
    for part in parts {
        value = Value::Dict(Tag::Default, dict);
        dict = Dict::from([(part.clone(), value)]);
    }
    dict
}

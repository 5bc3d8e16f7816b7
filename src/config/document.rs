//! The file: TOML text to values, with the line of each key and the variables in strings filled in.

use std::collections::{HashMap, HashSet};

use figment::value::{Dict, Empty, Num, Tag, Value};
use toml::de::{DeTable, DeValue};

use super::excerpt::syntax_fault;
use super::fault::{Fault, Faults, Place};
use super::substitute::{Unfilled, substitute};

/// Syntax errors reported at most; more are the echo of the first.
const SYNTAX_FAULTS_MAX: usize = 10;

/// A file that is TOML.
#[derive(Debug)]
pub(super) struct Document {
    /// Its values. A string that could not be filled in is `Empty::None`, a date or time `Empty::Unit`.
    pub(super) root: Dict,
    /// Where its keys stand.
    pub(super) places: Places,
    /// Variables that are missing.
    pub(super) faults: Vec<Fault>,
}

/// Where keys stand in the file.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Byte offset of each dotted path.
    offsets: HashMap<String, usize>,
    /// Offsets at which lines begin.
    lines: Vec<usize>,
    /// Paths whose strings came from variables, in whole or in part.
    filled: HashSet<String>,
}

impl Places {
    /// Offset of `key` in the file, by which keys are put in the order of the file; keys from elsewhere come last.
    pub(super) fn order(&self, key: &str) -> usize {
        self.offsets.get(key).copied().unwrap_or(usize::MAX)
    }

    /// Line of `key`, or of the nearest table around it.
    pub(super) fn line(&self, key: &str) -> Option<usize> {
        let mut key = key;
        loop {
            if let Some(offset) = self.offsets.get(key) {
                return Some(self.line_at(*offset));
            }
            key = key.rsplit_once(['.', '['])?.0;
        }
    }

    /// Whether a variable is part of the value of `key`.
    pub(super) fn has_variable(&self, key: &str) -> bool {
        self.filled.contains(key)
    }

    fn line_at(&self, offset: usize) -> usize {
        self.lines.partition_point(|start| *start <= offset)
    }
}

/// `parent.name`, the name in quotes if it is not a bare key.
pub(super) fn join_key(parent: &str, name: &str) -> String {
    let bare = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    let name = if bare { name.to_owned() } else { format!("{name:?}") };
    if parent.is_empty() { name } else { format!("{parent}.{name}") }
}

/// Reads `text`; the error is what is wrong with its syntax.
pub(super) fn read(text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<Document, Faults> {
    let lines: Vec<usize> = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let (table, mut errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        errors.sort_by_key(|error| error.span().map_or(0, |span| span.start));
        return Err(Faults(errors.iter().take(SYNTAX_FAULTS_MAX).map(|error| syntax_fault(error, text)).collect()));
    }
    let places = Places { lines, ..Places::default() };
    let mut reader = Reader { environment, places, faults: Vec::new() };
    let root = reader.table(table.get_ref(), "");
    Ok(Document { root, places: reader.places, faults: reader.faults })
}

/// A value written in an environment variable as TOML: `["a", "b"]`, `{ a = "b" }`.
pub(super) fn read_value(text: &str, tag: Tag) -> Option<Value> {
    let value = DeValue::parse(text).ok()?;
    let mut reader = Reader { environment: &|_| None, places: Places::default(), faults: Vec::new() };
    Some(reader.plain(value.get_ref(), "", tag, &|_, _, text| Value::String(tag, text.to_owned())))
}

struct Reader<'e> {
    environment: &'e dyn Fn(&str) -> Option<String>,
    places: Places,
    faults: Vec<Fault>,
}

/// What becomes of a string at a path.
type OfString<'s> = &'s dyn Fn(&mut Reader<'_>, &str, &str) -> Value;

impl Reader<'_> {
    fn table(&mut self, table: &DeTable<'_>, key: &str) -> Dict {
        self.dict(table, key, Tag::Default, &|reader, key, text| reader.string(text, key))
    }

    fn dict(&mut self, table: &DeTable<'_>, key: &str, tag: Tag, of_string: OfString<'_>) -> Dict {
        let mut dict = Dict::new();
        for (name, value) in table {
            let key = join_key(key, name.get_ref());
            self.places.offsets.insert(key.clone(), name.span().start);
            let value = self.plain(value.get_ref(), &key, tag, of_string);
            dict.insert(name.get_ref().to_string(), value);
        }
        dict
    }

    fn plain(&mut self, value: &DeValue<'_>, key: &str, tag: Tag, of_string: OfString<'_>) -> Value {
        match value {
            DeValue::String(text) => of_string(self, key, text),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Value::Num(tag, Num::I64(number)),
                Err(_) => Value::Num(tag, Num::F64(f64::INFINITY)),
            },
            DeValue::Float(number) => Value::Num(tag, Num::F64(number.as_str().parse().unwrap_or(f64::NAN))),
            DeValue::Boolean(value) => Value::Bool(tag, *value),
            DeValue::Datetime(_) => Value::Empty(tag, Empty::Unit),
            DeValue::Array(items) => {
                let mut list = Vec::with_capacity(items.len());
                for (index, item) in items.iter().enumerate() {
                    let key = format!("{key}[{index}]");
                    self.places.offsets.insert(key.clone(), item.span().start);
                    list.push(self.plain(item.get_ref(), &key, tag, of_string));
                }
                Value::Array(tag, list)
            }
            DeValue::Table(table) => Value::Dict(tag, self.dict(table, key, tag, of_string)),
        }
    }

    fn string(&mut self, text: &str, key: &str) -> Value {
        match substitute(text, self.environment) {
            Ok(filled) => {
                if filled.has_variable {
                    self.places.filled.insert(key.to_owned());
                }
                Value::String(Tag::Default, filled.text)
            }
            Err(Unfilled { reason, is_unset }) => {
                let place = self.places.line(key).map(Place::Line);
                let key = key.to_owned();
                self.faults.push(Fault { key, value: None, reason, suggestion: None, place, is_outside: is_unset });
                Value::Empty(Tag::Default, Empty::None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<Fault> {
        read(text, &|_| None).map(|_| ()).unwrap_err().0
    }

    #[test]
    fn a_syntax_error_names_line_and_column_and_shows_the_line() {
        let fault = faults("[sink.orders]\nbatch_size = = 5\n").remove(0);
        assert_eq!(fault.place, Some(Place::Line(2)));
        assert!(fault.reason.starts_with("column "), "{fault}");
        assert!(fault.reason.contains("2 | batch_size = = 5"), "{fault}");
    }

    #[test]
    fn the_line_of_a_syntax_error_shows_no_secret() {
        for text in [
            "url = \"postgres://app:hunter2@db/app",
            "url = postgres://app:hunter2@db/app",
            "signing_secrets = [\n  \"whsec_hunter2\n]",
            "headers = { authorization = \"Bearer hunter2\" x }",
            "[sink.\"hunter2\nurl=\"",
            "source = { url = \"postgres://u:hunter2@db\", x }",
            "path = \"/hook?token=hunter2",
            "[sink.a]\nretry = {\n max = \"1s\", token = \"hunter2\" x\n}",
        ] {
            for fault in faults(text) {
                assert!(!fault.to_string().contains("hunter2"), "{fault}");
                assert!(!format!("{fault:?}").contains("hunter2"), "{fault:?}");
            }
        }
    }

    #[test]
    fn every_key_knows_its_line_and_a_missing_one_that_of_its_table() {
        let text = "[log]\nlevel = \"info\"\n[sink.a]\ntables = [\n \"x.y\",\n \"x.z\"]\n[sink.b.\"c.d\"]\ne = 1\n";
        let places = read(text, &|_| None).unwrap().places;
        assert_eq!(places.line("log.level"), Some(2));
        assert_eq!(places.line("sink.a.tables[1]"), Some(6));
        assert_eq!(places.line("sink.a.url"), Some(3));
        assert_eq!(places.line("sink.b.\"c.d\".e"), Some(8));
        assert_eq!(places.line("state.path"), None);
    }
}

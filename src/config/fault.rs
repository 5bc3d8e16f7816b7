//! Faults: what is wrong with a configuration, all of it in one go.

use std::fmt;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Dotted path such as `sink.orders.retry.initial`; `TOML` when the text cannot be read at all.
    pub key: String,
    /// The value as written, without what is secret in it; `None` when there is none to show.
    pub value: Option<String>,
    /// What is wrong, as the end of a sentence that begins with the key.
    pub reason: String,
    /// What may have been meant, to be written in its place.
    pub suggestion: Option<String>,
    /// Where it was written, if that is known.
    pub place: Option<Place>,
    /// The environment mends it, and no edit of the file has to: a variable that is not set, or one that overrides a key.
    pub is_outside: bool,
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Line of the file, from 1.
    Line(usize),
    /// Environment variable.
    Variable(String),
}

/// Everything that is wrong, in the order of the file; never empty. Displays as one block a fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    /// Whether nothing but an edit of the file makes it right.
    pub fn need_an_edit(&self) -> bool {
        self.0.iter().any(|fault| !fault.is_outside)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            fmt::Display::fmt(fault, f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        match &self.place {
            Some(Place::Line(line)) => write!(f, " (line {line})")?,
            Some(Place::Variable(name)) => write!(f, " (from {name})")?,
            None => {}
        }
        write!(f, "\n  {}", self.reason)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, "\n  did you mean {suggestion}?"),
            None => Ok(()),
        }
    }
}

/// The one of `known` that `word` may have been meant to be.
pub(super) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let word = word.to_lowercase();
    let far = |name: &str| strsim::damerau_levenshtein(&word, &name.to_lowercase());
    let (distance, name) = known.into_iter().map(|name| (far(name), name)).min()?;
    (distance <= (name.chars().count().max(word.chars().count()) / 3).max(1)).then_some(name)
}

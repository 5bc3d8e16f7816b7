//! Reading the merged values key by key: every reader gives the value or notes a fault and gives nothing, so that
//! checking goes on and all faults come out together.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::time::Duration;

use figment::Figment;
use figment::value::{Dict, Empty, Tag, Value};

use super::document::{Places, join_key, read_value};
use super::fault::{Fault, Faults, Place, nearest};
use super::quantity::{self, NotQuantity};
use super::redact::{Show, shown, shown_key, whole};

/// What is being read, and what was found wrong with it.
pub(super) struct Reading {
    figment: Figment,
    places: Places,
    faults: RefCell<Vec<Fault>>,
}

impl Reading {
    pub(super) fn new(figment: Figment, places: Places, faults: Vec<Fault>) -> Self {
        Self { figment, places, faults: RefCell::new(faults) }
    }

    /// The whole as a table.
    pub(super) fn root(&self) -> Table<'_> {
        let entries = self.figment.find_value("").ok().and_then(Value::into_dict).unwrap_or_default();
        Table { reading: self, key: String::new(), tag: Tag::Default, entries, asked: Vec::new() }
    }

    /// The faults in the order of the file.
    pub(super) fn into_faults(self) -> Faults {
        let mut faults = self.faults.into_inner();
        for fault in &mut faults {
            fault.key = shown_key(&fault.key);
            fault.suggestion = fault.suggestion.as_deref().map(shown_key);
        }
        faults.sort_by_key(|fault| fault.place.clone().map_or((1, None), |place| (0, Some(place))));
        Faults(faults)
    }

    /// Notes a fault of `key`.
    pub(super) fn fault(&self, key: &str, reason: impl Into<String>) {
        self.note(key, Tag::Default, None, reason.into(), None);
    }

    /// Of a value. One that has a variable in it may be put right outside the file.
    fn note(&self, key: &str, tag: Tag, value: Option<String>, reason: String, suggestion: Option<String>) {
        self.push(key, tag, value, reason, suggestion, self.places.has_variable(key));
    }

    /// Of a key that nobody knows, whatever its value.
    fn note_key(&self, key: &str, tag: Tag, suggestion: Option<String>) {
        self.push(key, tag, None, "is not a known key".to_owned(), suggestion, false);
    }

    fn push(
        &self,
        key: &str,
        tag: Tag,
        value: Option<String>,
        reason: String,
        suggestion: Option<String>,
        has_variable: bool,
    ) {
        let place = self.variable(tag).map(Place::Variable).or_else(|| self.places.line(key).map(Place::Line));
        let is_outside = has_variable || matches!(place, Some(Place::Variable(_)));
        self.faults.borrow_mut().push(Fault { key: key.to_owned(), value, reason, suggestion, place, is_outside });
    }

    /// The variable that a value came from.
    fn variable(&self, tag: Tag) -> Option<String> {
        let name = &self.figment.get_metadata(tag)?.name;
        name.starts_with("WALHOOK_").then(|| name.to_string())
    }
}

/// A table whose keys are taken one after another; what is left in the end is unknown.
pub(super) struct Table<'r> {
    reading: &'r Reading,
    pub(super) key: String,
    tag: Tag,
    entries: Dict,
    asked: Vec<&'static str>,
}

impl<'r> Table<'r> {
    /// The value of `name`.
    pub(super) fn take(&mut self, name: &'static str) -> Entry<'r> {
        self.asked.push(name);
        self.take_silently(name)
    }

    /// All values with their names, in the order of the file.
    pub(super) fn take_all(&mut self) -> Vec<(String, Entry<'r>)> {
        let reading = self.reading;
        let of_name = |(name, value): (String, Value)| {
            let key = join_key(&self.key, &name);
            (name, Entry { reading, key, value: Some(value), show: Show::All })
        };
        let mut all: Vec<(String, Entry<'r>)> = std::mem::take(&mut self.entries).into_iter().map(of_name).collect();
        all.sort_by_key(|(_, entry)| reading.places.order(&entry.key));
        all
    }

    /// As [`Self::take`], for a key that is not suggested to anyone.
    pub(super) fn take_silently(&mut self, name: &'static str) -> Entry<'r> {
        let (value, key) = (self.entries.remove(name), join_key(&self.key, name));
        Entry { reading: self.reading, key, value, show: Show::All }
    }

    /// Notes a fault of the key `name`, which was taken before.
    pub(super) fn fault_of(&self, name: &str, reason: impl Into<String>) {
        self.reading.fault(&join_key(&self.key, name), reason);
    }

    /// Notes a fault of the table itself.
    pub(super) fn fault(&self, reason: impl Into<String>) {
        self.reading.note(&self.key, self.tag, None, reason.into(), None);
    }

    /// Notes every key that nobody asked for.
    pub(super) fn finish(self) {
        for (name, value) in &self.entries {
            let near = nearest(name, self.asked.iter().copied()).map(|near| join_key(&self.key, near));
            let key = join_key(&self.key, name);
            self.reading.note_key(&key, innermost_tag(value), near);
        }
    }
}

/// The tag of what a variable set, however many tables stand around it.
fn innermost_tag(value: &Value) -> Tag {
    match value.as_dict().and_then(|dict| dict.values().next()) {
        Some(inner) => innermost_tag(inner),
        None => value.tag(),
    }
}

/// The value of a key, or that there is none.
pub(super) struct Entry<'r> {
    reading: &'r Reading,
    pub(super) key: String,
    value: Option<Value>,
    show: Show,
}

impl<'r> Entry<'r> {
    /// Shows only `show` of the value in faults.
    pub(super) fn showing(self, show: Show) -> Self {
        Self { show, ..self }
    }

    /// Notes a fault if there is no value.
    pub(super) fn required(self) -> Self {
        if self.value.is_none() {
            self.fault("is missing");
        }
        self
    }

    /// Whether there is a value, even one that is faulty.
    pub(super) fn is_given(&self) -> bool {
        self.value.is_some()
    }

    /// Whether the value, or a part of it, came from a variable.
    pub(super) fn has_variable(&self) -> bool {
        self.value.as_ref().is_some_and(|value| self.reading.variable(value.tag()).is_some())
            || self.reading.places.has_variable(&self.key)
    }

    /// Notes a fault of this value.
    pub(super) fn fault(&self, reason: impl Into<String>) {
        self.fault_with(reason, None);
    }

    /// Notes a fault of this value and what may have been meant.
    pub(super) fn fault_with(&self, reason: impl Into<String>, suggestion: Option<String>) {
        let tag = self.value.as_ref().map_or(Tag::Default, Value::tag);
        let value = self.value.as_ref().map(|value| shown(value, self.show));
        self.reading.note(&self.key, tag, value, reason.into(), suggestion);
    }

    /// A string.
    pub(super) fn text(&self) -> Option<String> {
        let Some(text) = self.usable()?.as_str() else { return self.wrong_type("must be a string") };
        Some(text.to_owned())
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self) -> Option<bool> {
        match (self.usable()?, self.loose_text()) {
            (Value::Bool(_, value), _) => Some(*value),
            (_, Some("true")) => Some(true),
            (_, Some("false")) => Some(false),
            _ => self.wrong_type("must be true or false"),
        }
    }

    /// A whole number within `range`.
    pub(super) fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let number = match (self.usable()?, self.loose_text()) {
            (Value::Num(_, number), _) => whole(*number),
            (_, Some(text)) => text.parse().ok(),
            _ => None,
        };
        let Some(number) = number else { return self.wrong_type("must be a whole number") };
        let inside = u64::try_from(number).ok().filter(|number| range.contains(number));
        if inside.is_none() {
            self.fault(format!("must be from {} to {}", range.start(), range.end()));
        }
        inside
    }

    /// As [`Self::integer`], for things counted in memory.
    pub(super) fn count(&self, range: RangeInclusive<u64>) -> Option<usize> {
        self.integer(range).and_then(|number| usize::try_from(number).ok())
    }

    /// A duration within `range`.
    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let duration = self.quantity(quantity::duration)?;
        if range.contains(&duration) {
            return Some(duration);
        }
        let (least, most) = (quantity::show_duration(*range.start()), quantity::show_duration(*range.end()));
        self.fault(format!("must be from {least} to {most}"));
        None
    }

    /// A size within `range`, in bytes.
    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let bytes = self.quantity(quantity::size)?;
        if range.contains(&bytes) {
            return Some(bytes);
        }
        let least = quantity::show_size(*range.start());
        self.fault(match *range.end() {
            u64::MAX => format!("must be at least {least}"),
            most => format!("must be from {least} to {}", quantity::show_size(most)),
        });
        None
    }

    fn quantity<T>(&self, read: impl Fn(&str) -> Result<T, NotQuantity>) -> Option<T> {
        let value = self.usable()?;
        let number = value.to_num().and_then(whole).map(|number| number.to_string());
        let text = value.as_str().map(str::to_owned).or(number).unwrap_or_default();
        match read(&text) {
            Ok(quantity) => Some(quantity),
            Err(NotQuantity { reason, suggestion }) => {
                self.fault_with(reason, suggestion);
                None
            }
        }
    }

    /// One of `known`.
    pub(super) fn choice<T: Copy>(&self, known: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = known.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<String> = known.iter().map(|(name, _)| format!("{name:?}")).collect();
            let near = nearest(&text, known.iter().map(|(name, _)| *name)).map(|name| format!("{name:?}"));
            self.fault_with(format!("must be {}", names.join(" or ")), near);
        }
        found
    }

    /// A list. In a variable it is TOML, `["a", "b"]`, or words with commas between them.
    pub(super) fn list(&self) -> Option<Vec<Entry<'r>>> {
        let items = match (self.usable()?, self.loose_text()) {
            (Value::Array(_, items), _) => items.clone(),
            (_, Some(text)) => match self.loose_list(text) {
                Some(items) => items,
                None => return self.wrong_type("must be a list, such as [\"a\", \"b\"]"),
            },
            _ => return self.wrong_type("must be a list"),
        };
        let of_item = |(index, value)| {
            let key = format!("{}[{index}]", self.key);
            Entry { reading: self.reading, key, value: Some(value), show: self.show }
        };
        Some(items.into_iter().enumerate().map(of_item).collect())
    }

    /// Whether the value is a list, or a variable that holds one.
    pub(super) fn is_list(&self) -> bool {
        matches!(self.value, Some(Value::Array(..)))
            || self.loose_text().is_some_and(|text| text.trim().starts_with('['))
    }

    /// A table.
    pub(super) fn table(&self) -> Option<Table<'r>> {
        self.table_or("must be a table")
    }

    /// A table; `reason` if it is something else, of which nothing is shown: it may be what belongs into the table.
    pub(super) fn table_or(&self, reason: &str) -> Option<Table<'r>> {
        let value = self.usable()?;
        let loose = self.loose_text().and_then(|text| read_value(text, value.tag()));
        let value = loose.as_ref().unwrap_or(value);
        let Some(entries) = value.as_dict().cloned() else {
            let hidden = Some(shown(value, Show::Nothing));
            self.reading.note(&self.key, value.tag(), hidden, reason.to_owned(), None);
            return None;
        };
        Some(Table { reading: self.reading, key: self.key.clone(), tag: value.tag(), entries, asked: Vec::new() })
    }

    /// The value, unless there is none or its fault is already noted.
    fn usable(&self) -> Option<&Value> {
        self.value.as_ref().filter(|value| !matches!(value, Value::Empty(_, Empty::None)))
    }

    /// The text of a value that came from a variable, which knows no types but strings.
    fn loose_text(&self) -> Option<&str> {
        self.value.as_ref()?.as_str().filter(|_| self.has_variable())
    }

    fn loose_list(&self, text: &str) -> Option<Vec<Value>> {
        let tag = self.value.as_ref().map_or(Tag::Default, Value::tag);
        if text.trim().starts_with('[') {
            return read_value(text.trim(), tag)?.into_array();
        }
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        Some(words.map(|word| Value::String(tag, word.to_owned())).collect())
    }

    fn wrong_type<T>(&self, reason: &str) -> Option<T> {
        self.fault(reason);
        None
    }
}

//! The two forms of a log line.
//!
//! What others make us log may be long: a value of a field is cut at [`VALUE_MAX`], the message too.

use std::fmt;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// Bytes of one value in a JSON line, before escapes; the rest is cut off and counted.
const VALUE_MAX: usize = 4 << 10;
/// Bytes of the fields of a line of text.
const TEXT_MAX: usize = 16 << 10;

/// The time as RFC 3339 in UTC with microseconds.
fn timestamp() -> String {
    format!("{:.6}", jiff::Timestamp::now())
}

/// `source::wire` for `walhook::source::wire`; other crates keep their names.
fn short_target(target: &str) -> &str {
    target.strip_prefix("walhook::").unwrap_or(target)
}

/// `2026-05-01T10:00:00.000000Z  WARN deliver: delivery failed sink="orders" attempt=3`
pub(super) struct TextLine;

impl<S, N> FormatEvent<S, N> for TextLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let (dim, colour, plain) =
            if writer.has_ansi_escapes() { ("\x1b[2m", colour(metadata.level()), "\x1b[0m") } else { ("", "", "") };
        let (time, level, target) = (timestamp(), metadata.level(), short_target(metadata.target()));
        write!(writer, "{dim}{time}{plain} {colour}{level:>5}{plain} {dim}{target}:{plain} ")?;
        let mut text = String::new();
        ctx.format_fields(Writer::new(&mut text), event)?;
        write!(writer, "{}", Cut(&text, TEXT_MAX))?;
        for span in ctx.event_scope().into_iter().flatten() {
            let extensions = span.extensions();
            if let Some(fields) = extensions.get::<FormattedFields<N>>().filter(|fields| !fields.is_empty()) {
                write!(writer, " {fields}")?;
            }
        }
        writeln!(writer)
    }
}

fn colour(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[35m",
    }
}

/// A line that no event has made, in the form of the others.
pub(super) fn line(json: bool, level: Level, target: &str, message: &str, count: (&str, u64)) -> String {
    let (time, (name, count)) = (timestamp(), count);
    if json {
        let message = Value::String(message.to_owned());
        return format!(
            "{{\"timestamp\":\"{time}\",\"level\":\"{level}\",\"target\":\"{target}\",\"message\":{message},\"{name}\":{count}}}\n"
        );
    }
    format!("{time} {level:>5} {target}: {message} {name}={count}\n")
}

/// `{"timestamp":…,"level":"WARN","target":"deliver","message":…,"sink":"orders","attempt":3}`
pub(super) struct JsonLine;

impl<S> FormatEvent<S, JsonFields> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields { message, mut others } = fields;
        for span in ctx.event_scope().into_iter().flatten() {
            for (name, value) in span_fields(&span) {
                others.entry(name).or_insert(value);
            }
        }
        let metadata = event.metadata();
        let (time, level, target) = (timestamp(), metadata.level(), short_target(metadata.target()));
        let message = Value::String(message);
        write!(writer, r#"{{"timestamp":"{time}","level":"{level}","target":"{target}","message":{message}"#)?;
        for (name, value) in others.iter().filter(|(name, _)| !RESERVED.contains(&name.as_str())) {
            write!(writer, ",{}:{value}", Value::String(name.clone()))?;
        }
        writeln!(writer, "}}")
    }
}

const RESERVED: [&str; 4] = ["timestamp", "level", "target", "message"];

fn span_fields<S: for<'a> LookupSpan<'a>>(span: &tracing_subscriber::registry::SpanRef<'_, S>) -> Map<String, Value> {
    let extensions = span.extensions();
    let fields = extensions.get::<FormattedFields<JsonFields>>();
    fields.and_then(|fields| serde_json::from_str(fields).ok()).unwrap_or_default()
}

/// The fields of an event as JSON values.
#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.others.insert(field.name().to_owned(), value.into());
    }

    fn put_text(&mut self, field: &Field, text: &str) {
        let text = Cut(text, VALUE_MAX).to_string();
        if field.name() == "message" {
            self.message = text;
        } else {
            self.put(field, text);
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put_text(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put_text(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
}

/// A text of at most so many bytes; of a longer one the beginning, and how much is left out.
struct Cut<'a>(&'a str, usize);

impl fmt::Display for Cut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(text, max) = *self;
        if text.len() <= max {
            return f.write_str(text);
        }
        let end = (0..=max).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        write!(f, "{}… ({} bytes left out)", text.get(..end).unwrap_or_default(), text.len() - end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters_and_says_how_much_is_left_out() {
        assert_eq!(Cut("äöü", 6).to_string(), "äöü");
        assert_eq!(Cut("äöü", 5).to_string(), "äö… (2 bytes left out)");
        assert_eq!(Cut("äöü", 0).to_string(), "… (6 bytes left out)");
    }
}

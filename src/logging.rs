//! Logs: lines of text for a person at a terminal, lines of JSON for everything else, always on standard error.
//!
//! Both forms have the time in UTC with microseconds, the level, the module without the crate's name, the message, and
//! the fields of the event and of the spans around it. In JSON all of them are keys of one flat object; an event's field
//! comes before a span's of the same name, and a field cannot take the place of `timestamp`, `level`, `target` or
//! `message`.

use std::fmt;
use std::io::{self, IsTerminal};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::format::{DefaultFields, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::LogFormat;

/// Logs could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// `log.level` or WALHOOK_LOG is not a list of directives.
    #[error("cannot read {level:?} as a log level, for example \"info\" or \"info,walhook::source=debug\"")]
    Level {
        /// What was given.
        level: String,
        /// What is wrong with it.
        #[source]
        source: ParseError,
    },
    /// The process has a logger already; it stays.
    #[error("cannot start the logs, they are started already")]
    Started(#[source] tracing_subscriber::util::TryInitError),
}

/// Starts the logs of the process. `level` is a directive list: WALHOOK_LOG if the caller has it, else `log.level`.
pub fn init(format: LogFormat, level: &str) -> Result<(), LoggingError> {
    let terminal = io::stderr().is_terminal();
    let logger = logger(is_json(format, terminal), terminal, level, io::stderr)?;
    logger.try_init().map_err(LoggingError::Started)
}

fn is_json(format: LogFormat, terminal: bool) -> bool {
    match format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    }
}

fn logger<W>(json: bool, colours: bool, level: &str, writer: W) -> Result<tracing::Dispatch, LoggingError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(level).map_err(|source| LoggingError::Level { level: level.to_owned(), source })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(colours);
    Ok(if json {
        builder.fmt_fields(JsonFields::new()).event_format(JsonLine).finish().into()
    } else {
        builder.fmt_fields(DefaultFields::new()).event_format(TextLine).finish().into()
    })
}

/// The time as RFC 3339 in UTC with microseconds.
fn timestamp() -> String {
    format!("{:.6}", jiff::Timestamp::now())
}

/// `source::wire` for `walhook::source::wire`; other crates keep their names.
fn short_target(target: &str) -> &str {
    target.strip_prefix("walhook::").unwrap_or(target)
}

/// `2026-05-01T10:00:00.000000Z  WARN deliver: delivery failed sink="orders" attempt=3`
struct TextLine;

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
        ctx.format_fields(writer.by_ref(), event)?;
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

/// `{"timestamp":…,"level":"WARN","target":"deliver","message":…,"sink":"orders","attempt":3}`
struct JsonLine;

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
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.put(field, format!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.put(field, value);
        }
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool, level: &str, log: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let logger = logger(json, false, level, move || writer.clone()).unwrap();
        tracing::dispatcher::with_default(&logger, log);
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn fail() {
        let span = tracing::info_span!("delivery", sink = "orders", attempt = 1, level = "forged");
        let _entered = span.enter();
        tracing::warn!(target: "walhook::deliver", attempt = 3, error = %"broken \"pipe\"", "delivery failed");
    }

    #[test]
    fn json_lines_are_flat_and_the_event_comes_before_its_span() {
        let text = logged(true, "info", fail);
        let line: Value = serde_json::from_str(&text).unwrap();
        let time = line["timestamp"].as_str().unwrap();
        assert!(time.len() == 27 && time.ends_with('Z') && time.parse::<jiff::Timestamp>().is_ok(), "{time}");
        let expected = serde_json::json!({
            "timestamp": time, "level": "WARN", "target": "deliver", "message": "delivery failed",
            "sink": "orders", "attempt": 3, "error": "broken \"pipe\"",
        });
        assert_eq!(line, expected);
        assert_eq!(text.matches('\n').count(), 1);
    }

    #[test]
    fn text_lines_read_from_time_to_fields() {
        let text = logged(false, "info", fail);
        let (_, rest) = text.split_once("Z  WARN deliver: ").unwrap_or_else(|| panic!("{text}"));
        assert!(rest.starts_with("delivery failed attempt=3 error=broken \"pipe\" sink=\"orders\""), "{rest}");
        assert_eq!(text.matches('\n').count(), 1);
    }

    #[test]
    fn the_level_filters_by_module() {
        let log = || {
            tracing::debug!(target: "walhook::source", "one");
            tracing::debug!(target: "walhook::sink", "two");
            tracing::info!(target: "walhook::sink", "three");
        };
        let text = logged(true, "info,walhook::source=debug", log);
        assert!(text.contains("one") && !text.contains("two") && text.contains("three"), "{text}");
    }

    #[test]
    fn a_wrong_level_is_refused_with_an_example() {
        let error = logger(true, false, "info,walhook=loud", io::sink).unwrap_err();
        assert!(error.to_string().contains("info,walhook=loud"), "{error}");
    }

    #[test]
    fn json_unless_a_person_is_there_or_wants_it() {
        use LogFormat::{Auto, Json, Text};
        let cases = [(Auto, true), (Auto, false), (Text, true), (Text, false), (Json, true), (Json, false)];
        assert_eq!(cases.map(|(format, terminal)| is_json(format, terminal)), [false, true, false, false, true, true]);
    }

    #[test]
    fn a_second_start_is_an_error_and_not_a_panic() {
        let starts = [init(LogFormat::Json, "off"), init(LogFormat::Text, "off")];
        assert!(matches!(starts[1], Err(LoggingError::Started(_))));
    }
}

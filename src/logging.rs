//! Logs: lines of text for a person at a terminal, lines of JSON for everything else, always on standard error.
//!
//! Both forms have the time in UTC with microseconds, the level, the module without the crate's name, the message, and
//! the fields of the event and of the spans around it. In JSON all of them are keys of one flat object; an event's field
//! comes before a span's of the same name, and a field cannot take the place of `timestamp`, `level`, `target` or
//! `message`.

mod foreign;
mod lines;
mod outlet;

use std::io::{self, IsTerminal};
use std::panic::PanicHookInfo;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing::{Level, error};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{DefaultFields, JsonFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt;

use self::foreign::Foreign;
pub use self::foreign::NOTICES;
use self::lines::{JsonLine, TextLine};
pub use self::outlet::Health;
use self::outlet::Outlet;
use crate::config::LogFormat;

/// How long the end of the process waits for whoever reads the log.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The way out of the process, once [`init`] has opened it.
static OUTLET: OnceLock<Outlet> = OnceLock::new();

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
    /// The system gives no thread.
    #[error("cannot start the thread that writes the logs")]
    Thread(#[source] io::Error),
}

/// Starts the logs of the process. `level` is a directive list: WALHOOK_LOG if the caller has it, else `log.level`.
pub fn init(format: LogFormat, level: &str) -> Result<(), LoggingError> {
    let terminal = io::stderr().is_terminal();
    let json = is_json(format, terminal);
    let told = move |lost| lines::line(json, Level::WARN, "logging", LOST, ("lines", lost));
    let outlet = Outlet::start(io::stderr(), told).map_err(LoggingError::Thread)?;
    let way = outlet.clone();
    let left_out = move |count| {
        way.put(lines::line(json, Level::WARN, "logging", LEFT_OUT, ("lines", count)).as_bytes());
    };
    logger(json, terminal, level, outlet.clone(), left_out)?.try_init().map_err(LoggingError::Started)?;
    // Whoever was first has started the logger too.
    drop(OUTLET.set(outlet));
    Ok(())
}

/// What is said of lines that were lost, once one can be written again.
const LOST: &str = "log lines were lost: whoever reads standard error was too slow, or was gone";

/// What is said of lines that others make, beyond their rate.
const LEFT_OUT: &str = "lines of libraries or notices of a server were left out: more came than are logged in a second";

/// How the lines of the log fare.
pub fn health() -> Arc<Health> {
    OUTLET.get().map_or_else(Arc::default, Outlet::health)
}

/// Says why the process ends, behind all lines of the log, and waits a second at most until that can be read.
pub fn last_words(text: &str) {
    match OUTLET.get() {
        Some(outlet) => {
            outlet.put(format!("{text}\n").as_bytes());
            outlet.flush(LAST_WORDS);
        }
        // Nobody is there to hear that it cannot be said.
        None => drop(io::Write::write_all(&mut io::stderr(), format!("{text}\n").as_bytes())),
    }
}

/// Waits a second at most until all lines are written.
pub fn flush() {
    if let Some(outlet) = OUTLET.get() {
        outlet.flush(LAST_WORDS);
    }
}

/// A panic is a line of the log like any other from here on.
pub fn speak_of_panics() {
    std::panic::set_hook(Box::new(|info: &PanicHookInfo<'_>| {
        let (payload, unreadable) = (info.payload(), "nothing that can be read");
        let text = payload.downcast_ref::<&str>().copied();
        let said = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or(unreadable);
        let place = info.location().map(ToString::to_string);
        let thread = std::thread::current().name().map(str::to_owned);
        error!(place, thread, "a part of walhook has panicked, which is a bug: {said}");
    }));
}

fn is_json(format: LogFormat, terminal: bool) -> bool {
    match format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    }
}

fn logger<W>(
    json: bool,
    colours: bool,
    level: &str,
    writer: W,
    left_out: impl Fn(u64) + Send + Sync + 'static,
) -> Result<tracing::Dispatch, LoggingError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(level).map_err(|source| LoggingError::Level { level: level.to_owned(), source })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(colours)
        // It would be said on standard error, which is what fails.
        .log_internal_errors(false);
    Ok(if json {
        builder.fmt_fields(JsonFields::new()).event_format(JsonLine).finish().with(Foreign::new(left_out)).into()
    } else {
        builder.fmt_fields(DefaultFields::new()).event_format(TextLine).finish().with(Foreign::new(left_out)).into()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::Value;

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
        let logger = logger(json, false, level, move || writer.clone(), drop).unwrap();
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
    fn what_libraries_say_below_info_is_never_logged() {
        let log = || {
            tracing::debug!(target: "tokio_postgres::query", "one");
            tracing::info!(target: "tokio_postgres::connection", "two");
            tracing::debug!(target: "walhook::sink", "three");
        };
        let text = logged(true, "trace", log);
        assert!(!text.contains("one") && text.contains("two") && text.contains("three"), "{text}");
    }

    #[test]
    fn a_wrong_level_is_refused_with_an_example() {
        let error = logger(true, false, "info,walhook=loud", io::sink, drop).unwrap_err();
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

//! The binary under test, driven as an operator would: a config file, signals, its logs, its admin address.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::postgres::{Postgres, state, until};

/// A config file in a directory of its own, which the store is in too.
pub(crate) struct Config {
    directory: Arc<TempDir>,
}

impl Config {
    /// Writes `text` as walhook.toml.
    pub(crate) fn new(text: &str) -> Self {
        let config = Self { directory: Arc::new(tempfile::tempdir().unwrap()) };
        config.rewrite(text);
        config
    }

    /// One source `app` on `postgres` and one sink `orders` to `endpoint`, with further lines of the sink. Retries are quick.
    pub(crate) fn one_sink(postgres: &Postgres, endpoint: &str, sink_lines: &str) -> Self {
        Self::new(&(Self::source(postgres) + &Self::sink("orders", endpoint, sink_lines)))
    }

    /// `[source.app]`, and the admin side on a port of the system's choice.
    pub(crate) fn source(postgres: &Postgres) -> String {
        Self::source_at(&postgres.url())
    }

    /// The same with `create = false`, as the role that may only read the stream.
    pub(crate) fn reader_source(postgres: &Postgres) -> String {
        Self::source_at(&postgres.reader_url()) + "create = false\n"
    }

    fn source_at(url: &str) -> String {
        format!(
            "[admin]\nlisten = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n[source.app]\nurl = \"{url}\"\nheartbeat = \"1s\"\n"
        )
    }

    /// A sink on `public.*` unless the lines name tables.
    pub(crate) fn sink(name: &str, endpoint: &str, lines: &str) -> String {
        let tables = if lines.contains("tables =") { "" } else { "tables = [\"public.*\"]\n" };
        let retry = if lines.contains("[sink.") { String::new() } else { quick_retry(name) };
        format!("\n[sink.{name}]\nurl = \"{endpoint}\"\n{tables}{lines}\n{retry}")
    }

    /// Changes the file.
    pub(crate) fn rewrite(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
    }

    /// The file.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("walhook.toml")
    }

    /// The directory of the store, unless the config names another.
    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("walhook-state")
    }

    /// The store is gone.
    pub(crate) fn remove_state(&self) {
        std::fs::remove_dir_all(self.state()).expect("the daemon made a store");
    }

    /// Runs `walhook state …` on it.
    pub(crate) fn state_command(&self, arguments: &[&str]) -> Output {
        walhook(&[&["state"], arguments, &["--config", &self.path().to_string_lossy()]].concat())
    }
}

/// Waits of 50 to 400 ms between attempts.
pub(crate) fn quick_retry(sink: &str) -> String {
    format!("[sink.{sink}.retry]\ninitial = \"100ms\"\nmax = \"400ms\"\n")
}

/// Runs a command to its end.
pub(crate) fn walhook(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_walhook")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// What a command printed, both streams.
pub(crate) fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), b"\n", output.stderr.as_slice()].concat()).into_owned()
}

/// What whoever reads its output does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Takes line after line.
    #[default]
    Goes,
    /// Takes nothing for now.
    Stands,
    /// Has closed its end.
    Gone,
}

/// Lines it logged, in order, and lines that were not JSON.
#[derive(Debug, Default)]
struct Lines {
    json: Vec<Value>,
    other: Vec<String>,
    reading: Reading,
}

/// A running `walhook run`. Killed when dropped; a test fails by an ERROR line it did not allow.
pub(crate) struct Daemon {
    child: Child,
    lines: Arc<Mutex<Lines>>,
    readers: Vec<std::thread::JoinHandle<()>>,
    allowed_errors: Vec<String>,
    exited: Option<ExitStatus>,
    /// Stays for as long as the daemon does.
    _directory: Arc<TempDir>,
}

impl Daemon {
    /// Starts it and comes back at once.
    pub(crate) fn launch(config: &Config) -> Self {
        Self::launch_with::<&str>(config, &[])
    }

    /// As [`Self::launch`], with further variables in its environment.
    pub(crate) fn launch_with<V: AsRef<OsStr>>(config: &Config, environment: &[(&str, V)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_walhook"));
        Self::spawn(command.envs(environment.iter().map(|(name, value)| (name, value))), config)
    }

    /// As [`Self::launch`], after `before` in the shell that becomes it: a limit, say.
    pub(crate) fn launch_under(before: &str, config: &Config) -> Self {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("{before} && exec \"$0\" \"$@\"")).arg(env!("CARGO_BIN_EXE_walhook"));
        Self::spawn(&mut shell, config)
    }

    fn spawn(command: &mut Command, config: &Config) -> Self {
        let path = config.path();
        command.arg("run").arg("--config").arg(&path).current_dir(path.parent().unwrap());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = Arc::new(Mutex::new(Lines::default()));
        let readers = vec![
            collect(child.stdout.take().unwrap(), Arc::clone(&lines)),
            collect(child.stderr.take().unwrap(), Arc::clone(&lines)),
        ];
        let directory = Arc::clone(&config.directory);
        Self { child, lines, readers, allowed_errors: Vec::new(), exited: None, _directory: directory }
    }

    /// Starts it and waits until it is ready.
    pub(crate) async fn start(config: &Config) -> Self {
        let daemon = Self::launch(config);
        daemon.wait_ready().await;
        daemon
    }

    /// Its output is read like that from here on, at the latest after the next line.
    pub(crate) fn set_reading(&self, reading: Reading) {
        self.lines.lock().unwrap().reading = reading;
    }

    /// ERROR lines that contain `text` are expected.
    pub(crate) fn allow_error(mut self, text: &str) -> Self {
        self.allowed_errors.push(text.to_owned());
        self
    }

    /// Waits until `/readyz` says 200.
    pub(crate) async fn wait_ready(&self) {
        until("the daemon to be ready", || async {
            let answer = self.ready().await;
            state(answer.as_ref().is_some_and(|(status, _)| *status == 200), (answer, self.tail(5)))
        })
        .await;
    }

    /// Waits until `/readyz` says 503; gives its body.
    pub(crate) async fn wait_not_ready(&self) -> Value {
        until("the daemon to say that it is not ready", || async {
            match self.ready().await {
                Some((503, body)) => Ok(body),
                other => Err(other),
            }
        })
        .await
    }

    /// Status and body of `/readyz`; none while nothing listens.
    pub(crate) async fn ready(&self) -> Option<(u16, Value)> {
        let (status, body) = self.get("/readyz").await?;
        Some((status, serde_json::from_str(&body).unwrap_or(Value::String(body))))
    }

    /// Status and body of a path of the admin side; none while nothing listens.
    pub(crate) async fn get(&self, path: &str) -> Option<(u16, String)> {
        let address = self.admin_address()?;
        let mut socket = tokio::net::TcpStream::connect(&address).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut answer)).await.ok()?.ok()?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// Where the admin side listens, as the log says.
    pub(crate) fn admin_address(&self) -> Option<String> {
        let lines = self.lines.lock().unwrap();
        let line = lines.json.iter().find(|line| message_of(line) == "admin listening")?;
        field(line, "addr")?.as_str().map(str::to_owned)
    }

    /// All samples of `/metrics`.
    pub(crate) async fn metrics(&self) -> Metrics {
        let (status, text) = self.get("/metrics").await.expect("the admin side listens");
        assert_eq!(status, 200);
        Metrics::parse(&text)
    }

    /// The metrics once all that is in the WAL is resolved and shown.
    pub(crate) async fn wait_shown(&self, postgres: &Postgres) -> Metrics {
        let end: f64 = postgres.value("SELECT pg_current_wal_lsn() - '0/0'").await.parse().unwrap();
        until("everything to be resolved", || async {
            let metrics = self.metrics().await;
            let resolved = metrics.sum("walhook_sink_resolved_lsn_bytes", &[]);
            if resolved >= Some(end) { Ok(metrics) } else { Err(resolved) }
        })
        .await
    }

    /// A bound of the time that its slowest commit to the store took so far; zero if it cannot be asked yet.
    pub(crate) async fn slowest_commit(&self) -> Duration {
        match self.get("/metrics").await {
            Some((200, text)) => Metrics::parse(&text).slowest("walhook_store_commit_seconds"),
            Some(_) | None => Duration::ZERO,
        }
    }

    /// The log so far.
    pub(crate) fn logs(&self) -> Vec<Value> {
        self.lines.lock().unwrap().json.clone()
    }

    /// Everything it printed, whether or not it was JSON.
    pub(crate) fn printed(&self) -> String {
        let lines = self.lines.lock().unwrap();
        lines.json.iter().map(Value::to_string).chain(lines.other.iter().cloned()).collect::<Vec<_>>().join("\n")
    }

    /// Whether a line of the log holds `text` anywhere.
    pub(crate) fn logged(&self, text: &str) -> bool {
        self.lines.lock().unwrap().json.iter().any(|line| line.to_string().contains(text))
    }

    /// Waits until a line of the log holds `text`.
    pub(crate) async fn wait_logged(&self, text: &str) {
        until(&format!("the log to say {text:?}"), || async { state(self.logged(text), self.tail(5)) }).await;
    }

    /// Process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory at its highest, KiB.
    pub(crate) fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse().unwrap()
    }

    /// Asks it to stop.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }

    /// SIGTERM, then its exit.
    pub(crate) async fn sigterm(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_exit().await
    }

    /// `kill -9`.
    pub(crate) fn kill9(mut self) {
        self.child.kill().unwrap();
        self.exited = Some(self.child.wait().unwrap());
    }

    /// Waits for its exit.
    pub(crate) async fn wait_exit(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.exited = Some(status);
                self.read_on();
                self.readers.drain(..).for_each(|reader| reader.join().unwrap());
                return status;
            }
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "the daemon did not end within a minute of being asked"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A reader that stands still goes on to the end.
    fn read_on(&self) {
        if let Ok(mut lines) = self.lines.lock()
            && lines.reading == Reading::Stands
        {
            lines.reading = Reading::Goes;
        }
    }

    fn tail(&self, count: usize) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        let skip = lines.json.len().saturating_sub(count);
        let json = lines.json.iter().skip(skip).map(Value::to_string);
        json.chain(lines.other.iter().take(20).cloned()).collect()
    }

    fn unexpected_errors(&self) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        let errors = lines.json.iter().filter(|line| line["level"] == "ERROR").map(Value::to_string);
        let panics = lines.other.iter().filter(|line| line.contains("panicked at")).cloned();
        errors.chain(panics).filter(|line| !self.allowed_errors.iter().any(|text| line.contains(text))).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.exited.is_none() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
        self.read_on();
        for reader in self.readers.drain(..) {
            drop(reader.join());
        }
        if std::thread::panicking() {
            eprintln!("the daemon's last lines:\n{}", self.tail(40).join("\n"));
            return;
        }
        let errors = self.unexpected_errors();
        assert!(errors.is_empty(), "the daemon logged errors that the test did not expect:\n{}", errors.join("\n"));
    }
}

fn collect(stream: impl Read + Send + 'static, shared: Arc<Mutex<Lines>>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let mut lines = shared.lock().unwrap();
            match serde_json::from_str::<Value>(&line) {
                Ok(value) if value.is_object() => lines.json.push(value),
                _ => lines.other.push(line),
            }
            while lines.reading == Reading::Stands {
                drop(lines);
                std::thread::sleep(Duration::from_millis(5));
                lines = shared.lock().unwrap();
            }
            if lines.reading == Reading::Gone {
                return;
            }
        }
    })
}

/// A field of a log line, flattened or not.
pub(crate) fn field<'a>(line: &'a Value, name: &str) -> Option<&'a Value> {
    line["fields"].get(name).or_else(|| line.get(name))
}

/// The message of a log line.
pub(crate) fn message_of(line: &Value) -> &str {
    field(line, "message").and_then(Value::as_str).unwrap_or_default()
}

/// Samples in the Prometheus text format.
#[derive(Debug)]
pub(crate) struct Metrics {
    samples: Vec<(String, HashMap<String, String>, f64)>,
}

impl Metrics {
    fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = name.split_once('{').unwrap_or((name, ""));
            let labels = labels.trim_end_matches('}').split("\",").filter_map(|label| label.split_once("=\""));
            let labels = labels.map(|(key, value)| (key.to_owned(), value.trim_end_matches('"').to_owned())).collect();
            (name.to_owned(), labels, value.parse().unwrap())
        });
        Self { samples: samples.collect() }
    }

    /// Sum of the samples of this name whose labels include these; none if there is no such sample.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let fits = |have: &HashMap<String, String>| {
            labels.iter().all(|(key, value)| have.get(*key).is_some_and(|have| have == value))
        };
        let mut values = self.samples.iter().filter(|(have, with, _)| have == name && fits(with)).peekable();
        values.peek()?;
        Some(values.map(|(_, _, value)| value).sum())
    }
}

impl Metrics {
    /// The bound under which all samples of a histogram of seconds lie; zero if there are none.
    pub(crate) fn slowest(&self, name: &str) -> Duration {
        let all = self.sum(&format!("{name}_count"), &[]).unwrap_or_default();
        if all == 0.0 {
            return Duration::ZERO;
        }
        let bucket = format!("{name}_bucket");
        let bounds = self.samples.iter().filter(|(have, _, count)| *have == bucket && *count >= all);
        let bounds = bounds.filter_map(|(_, labels, _)| labels["le"].parse::<f64>().ok());
        Duration::from_secs_f64(bounds.fold(300.0, f64::min))
    }
}

/// What `/readyz` calls wrong, as text; the names of all sources and sinks stand elsewhere in its body.
pub(crate) fn troubles(body: &Value) -> String {
    body["troubles"].to_string()
}

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn metrics_are_read_with_labels() {
    let metrics = Metrics::parse("# TYPE a counter\na{x=\"1\",y=\"b c\"} 2\na{x=\"2\"} 3\nb 1e3\n");
    assert_eq!(metrics.sum("a", &[]), Some(5.0));
    assert_eq!(metrics.sum("a", &[("y", "b c")]), Some(2.0));
    assert_eq!(metrics.sum("b", &[]), Some(1000.0));
    assert_eq!(metrics.sum("c", &[]), None);
    let buckets = "h_bucket{le=\"0.1\"} 2\nh_bucket{le=\"0.5\"} 3\nh_bucket{le=\"+Inf\"} 3\nh_count 3\n";
    assert_eq!(Metrics::parse(buckets).slowest("h"), Duration::from_millis(500));
}

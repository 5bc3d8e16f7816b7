//! Faults against the real binary: each is injected, must be told by `/readyz`, the log and the metrics, and must clear once it
//! is mended. Here they wait for these states; how long that takes is printed, and judged by `make faults`, which runs alone.

mod disk;
mod endpoint;
mod link;
mod machine;
mod source;
mod store;

use std::time::{Duration, Instant};

use crate::daemon::{Daemon, troubles};
use crate::postgres::{state, until_within};

/// Longest wait for a state, on a machine that does much else.
const DEADLINE: Duration = Duration::from_secs(120);

/// A fault, and how it is told.
pub(crate) struct Fault<'a> {
    /// For the table that `make faults` prints.
    pub(crate) name: &'static str,
    /// All of these stand in the troubles of `/readyz`.
    pub(crate) says: &'a [&'a str],
    /// A line of the log has this.
    pub(crate) logs: &'a str,
    /// A metric, its labels, and its value while the fault lasts.
    pub(crate) metric: (&'a str, &'a [(&'a str, &'a str)], f64),
}

impl Fault<'_> {
    /// Waits until the fault that was injected at `since` is told everywhere.
    pub(crate) async fn told(&self, daemon: &Daemon, since: Instant) {
        until_within(DEADLINE, &format!("readyz to tell of: {}", self.name), || async {
            let body = daemon.ready().await.map(|(_, body)| troubles(&body)).unwrap_or_default();
            state(self.says.iter().all(|part| body.contains(part)), body)
        })
        .await;
        let (metric, labels, value) = self.metric;
        until_within(DEADLINE, &format!("{metric} to tell of: {}", self.name), || async {
            let found = daemon.metrics().await.sum(metric, labels);
            state(found == Some(value), found)
        })
        .await;
        until_within(DEADLINE, &format!("the log to tell of: {}", self.name), || async {
            state(daemon.logged(self.logs), daemon.printed())
        })
        .await;
        Self::ended(self.name, since);
    }

    /// Waits until the fault that was mended at `since` is told no more, and everything is ready.
    pub(crate) async fn cleared(&self, daemon: &Daemon, since: Instant) {
        let (metric, labels, value) = self.metric;
        until_within(DEADLINE, &format!("it to be over: {}", self.name), || async {
            let Some((code, body)) = daemon.ready().await else { return Err("nothing listens".to_owned()) };
            let found = daemon.metrics().await.sum(metric, labels);
            let says = troubles(&body);
            let is_told = self.says.iter().all(|part| says.contains(part)) || found == Some(value);
            state(code == 200 && !is_told, format!("{code} {found:?} {says}"))
        })
        .await;
        Self::mended(self.name, since);
    }

    /// What ends a start is told by the exit code and the last line.
    pub(crate) fn ended(name: &str, since: Instant) {
        println!("fault: {name}: told after {:.1} s", since.elapsed().as_secs_f64());
    }

    /// It was mended at `since`, and a test has seen that nothing is told of it any more.
    pub(crate) fn mended(name: &str, since: Instant) {
        println!("fault: {name}: cleared after {:.1} s", since.elapsed().as_secs_f64());
    }
}

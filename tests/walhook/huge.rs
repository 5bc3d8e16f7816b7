//! P1 and P6: a change that is larger than its bound is a dead letter that says so, in bounded memory, and everything around
//! it goes on.

use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use crate::daemon::{Config, Daemon, field, message_of};
use crate::postgres::{Postgres, state, until, until_within};
use crate::pressure::full;
use crate::receiver::{Keep, Receiver, Reply, row_of};

/// Peak resident memory that is allowed with the limits below, KiB: the memory limit, and what the process takes beside it.
const PEAK_KIB: u64 = 150 * 1024;
const LIMITS: &str = "[limits]\nmemory_limit = \"32MiB\"\nmax_message = \"4MiB\"\n";
const TABLE: &str = "CREATE TABLE docs (id int PRIMARY KEY, title text, body text, extra jsonb);
    ALTER TABLE docs ALTER body SET STORAGE EXTERNAL";

/// Megabytes of the large field, and how long to wait for it.
fn sizes() -> Vec<(u64, Duration)> {
    let sizes: &[u64] = if full() { &[200, 600] } else { &[40] };
    sizes.iter().map(|megabytes| (*megabytes, Duration::from_secs(60 + megabytes))).collect()
}

struct Case {
    postgres: Postgres,
    receiver: Receiver,
    config: Config,
    daemon: Daemon,
}

async fn begin(setup: &str, state_lines: &str, sink: &str) -> Case {
    let postgres = Postgres::start();
    postgres.sql(setup).await;
    let receiver = Receiver::start().await;
    let text = Config::source(&postgres)
        + LIMITS
        + &format!("[state]\n{state_lines}\n")
        + &Config::sink("orders", &receiver.url(), sink);
    let config = Config::new(&text);
    let daemon = Daemon::start(&config).await;
    Case { postgres, receiver, config, daemon }
}

impl Case {
    /// A row of so many bytes between two small ones, all of the same transaction.
    async fn insert(&self, bytes: u64) {
        let sql = format!(
            "BEGIN;
             INSERT INTO docs VALUES (1, 'before', 'x', '{{}}');
             INSERT INTO docs VALUES (2, 'large', repeat('y', {bytes}), '{{\"a\": 1}}');
             INSERT INTO docs VALUES (3, 'after', 'z', NULL);
             COMMIT"
        );
        self.postgres.sql(&sql).await;
    }

    async fn wait_dead(&self, count: f64, deadline: Duration) {
        until_within(deadline, "dead letters", || async {
            let metrics = self.daemon.metrics().await;
            let dead = metrics.sum("walhook_sink_dead_letters_total", &[("reason", "too_large")]);
            state(dead == Some(count), (dead, self.receiver.message_count()))
        })
        .await;
    }

    /// The dead letters of the store: reason and body.
    async fn dead_letters(&self) -> Vec<(String, Value)> {
        let path = self.config.state().join("state.db");
        until("the dead letters to be in the store", || async {
            let letters = read_dead_letters(&path);
            if letters.is_empty() { Err(letters) } else { Ok(letters) }
        })
        .await
    }

    fn assert_small(&self) {
        let peak = self.daemon.peak_kib();
        println!("peak {peak} KiB");
        assert!(peak <= PEAK_KIB, "{peak} KiB resident at the peak");
    }
}

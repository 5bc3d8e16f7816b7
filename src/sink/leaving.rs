//! The end of a sink: what it waits for, and for how long.

use std::time::{Duration, Instant};

use tokio::time::sleep_until;
use tracing::{error, info, warn};

use super::Task;
use super::ledger::Lost;

/// How long a stop waits for the store, once the attempts have ended.
const STORE_LIMIT: Duration = Duration::from_secs(10);

impl Task {
    /// Starts nothing, and waits for attempts under way. What the source still has to say, it says: marks for changes that
    /// are acknowledged already must reach the watermark, or those changes would come again. Last, the store learns
    /// the rest.
    pub(super) async fn drain(&mut self, grace: Duration) {
        self.scheduler.stop();
        let deadline = tokio::time::Instant::now() + grace;
        let mut fed_all = false;
        while !fed_all || !self.attempts.is_empty() {
            let due = self.ledger.due_at();
            tokio::select! {
                () = sleep_until(deadline) => break,
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
                fed = self.feed.recv(), if !fed_all => match fed {
                    Some(fed) => self.take_in(fed),
                    None => fed_all = true,
                },
                Some(ended) = self.attempts.join_next() => self.ended(ended),
                durable = self.ledger.durable() => match durable {
                    Ok(durable) => self.durable(durable),
                    Err(Lost) => {
                        self.lost();
                        return;
                    }
                },
            }
            self.carry_out();
            self.tell_store();
            self.tell_source();
        }
        if !self.attempts.is_empty() {
            let (sink, left) = (&self.sink.config.name, self.attempts.len());
            info!(sink, requests = left, "requests did not end within shutdown_grace; their messages come again");
            self.attempts.shutdown().await;
        }
        if tokio::time::timeout(STORE_LIMIT, self.settle()).await.is_err() {
            let sink = &self.sink.config.name;
            warn!(sink, "the store did not take the last progress in time; what it covers comes again");
        }
        self.show();
    }

    /// Until the store has everything that happened.
    async fn settle(&mut self) {
        self.ledger.touch();
        loop {
            // A delivery that failed last is parked yet, once the batch before has made room.
            self.carry_out();
            if self.ledger.is_empty() {
                break;
            }
            self.tell_store();
            let due = self.ledger.due_at();
            tokio::select! {
                durable = self.ledger.durable() => match durable {
                    Ok(durable) => self.durable(durable),
                    Err(Lost) => {
                        self.lost();
                        return;
                    }
                },
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
            }
        }
        self.tell_source();
    }

    /// The store has said why. Without it nothing can be confirmed: the daemon ends.
    pub(super) fn lost(&self) -> Lost {
        error!(sink = %self.sink.config.name, "the store does not take the sink's batches: sink stops");
        Lost
    }
}

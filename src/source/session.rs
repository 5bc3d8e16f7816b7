//! One session with the database: from connecting to the end of the stream.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::Client;
use tracing::{debug, info, warn};

use super::connection::{self, Frame, Gulp, Replication, StreamError, SystemIdentity};
use super::hold::{HELD_AFTER, Hold, Turn};
use super::housekeeping::Housekeeping;
use super::pgoutput::{self, Message};
use super::problem::Problem;
use super::relation::Catalogue;
use super::slot::{self, Prepared};
use super::{Source, Stop};
use crate::change::Lsn;
use crate::metrics::ReconnectReason;
use crate::sink::feed::Feed;
use crate::view::{SourceState, Trouble, WalProgress};

/// How often progress is looked at and, when it moved, confirmed.
const STATUS_EVERY: Duration = Duration::from_millis(100);
/// A status goes out at least so often, which is well within any sensible `wal_sender_timeout`.
const STATUS_AT_LEAST_EVERY: Duration = Duration::from_secs(1);
/// After so long without a byte the server is asked for a sign of life.
const SILENCE_ASK: Duration = Duration::from_secs(15);
/// After so long the connection is given up.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// Longest look-up of a table in the catalogue.
const CATALOGUE_LIMIT: Duration = Duration::from_secs(20);

/// A stream and what belongs to its session.
struct Stream {
    replication: Replication,
    client: Arc<Client>,
    catalogue: Catalogue,
    /// The SQL connection's driver and housekeeping; they end with the session.
    _tasks: JoinSet<()>,
    last_status: Instant,
    last_asked: Instant,
    /// What the slot was last told.
    flushed: Lsn,
    hold: Hold,
    /// Since when the source has been listening: silence counts from here.
    listening_since: Instant,
}

impl Source {
    /// A session: `Ok` when it was stopped.
    pub(super) async fn session(&mut self, stop: &Stop) -> Result<(), Problem> {
        let opened = tokio::select! {
            biased;
            () = stop.reading.cancelled() => return Ok(()),
            opened = self.open() => opened?,
        };
        self.failures = 0;
        self.has_streamed = true;
        self.stream(opened, stop).await
    }

    /// Connects, makes slot and publication ready, starts the stream.
    async fn open(&mut self) -> Result<Stream, Problem> {
        let mut tasks = JoinSet::new();
        let (client, driver) = connection::sql(&self.config.url).await.map_err(Problem::Connect)?;
        let source = self.config.name.clone();
        tasks.spawn(async move {
            if let Err(error) = driver.await {
                debug!(source, %error, "sql connection ended");
            }
        });
        let client = Arc::new(client);
        let prepared = self.prepare(&client).await?;
        let mut replication = Replication::connect(&self.config.url, &self.memory).await.map_err(Problem::Connect)?;
        let identity = replication.identify_system().await?;
        self.check_identity(&identity)?;
        self.start(&mut replication, prepared.confirmed).await?;
        self.announce(&identity, &prepared);
        let housekeeping = Housekeeping {
            client: Arc::clone(&client),
            source: self.config.clone(),
            sinks: self.intake.sinks().to_vec(),
            views: Arc::clone(&self.views),
            troubles: prepared.troubles,
            uncaptured: prepared.uncaptured,
        };
        tasks.spawn(housekeeping.run());
        let now = Instant::now();
        Ok(Stream {
            replication,
            client,
            catalogue: Catalogue::new(),
            _tasks: tasks,
            last_status: now,
            last_asked: now,
            flushed: Lsn::ZERO,
            hold: Hold::new(now),
            listening_since: now,
        })
    }

    /// Slot and publication. Once a session of this run has streamed nothing is created any more: a slot that is missing
    /// then has lost changes.
    async fn prepare(&self, client: &Client) -> Result<Prepared, Problem> {
        let (config, sinks) = (&self.config, self.intake.sinks());
        if !self.has_streamed {
            return Ok(slot::prepare(client, config, sinks, &|_| {}).await?);
        }
        let prepared = slot::prepare_again(client, config, sinks).await?;
        if prepared.confirmed > self.confirmed {
            let (slot, from, to) = (&config.slot, self.confirmed, prepared.confirmed);
            return Err(Problem::lasting(
                format!(
                    "slot {slot} begins at {to}, but changes from {from} on are not confirmed: it was made anew or moved"
                ),
                "restart walhook to go on from the slot's position; the changes between are not in it: compare the \
                 receivers' data with the tables",
            ));
        }
        Ok(prepared)
    }

    fn check_identity(&mut self, identity: &SystemIdentity) -> Result<(), Problem> {
        match self.system_id {
            Some(known) if known != identity.system_id => Err(Problem::lasting(
                format!("the address now leads to another database cluster ({}, not {known})", identity.system_id),
                "point the source's url back to its database, or restart walhook to begin with the new one",
            )),
            Some(_) => Ok(()),
            None => {
                self.system_id = Some(identity.system_id);
                let system_id = identity.system_id;
                self.intake.begin(|| Feed::Database { system_id });
                Ok(())
            }
        }
    }

    async fn start(&mut self, replication: &mut Replication, confirmed: Lsn) -> Result<(), Problem> {
        let from = confirmed.max(self.confirmed);
        if let Err(error) = replication.start(&self.config.slot, &self.config.publication, from).await {
            return Err(if error.sqlstate() == Some("55006") {
                Problem::Busy { pid: None, application: None }
            } else {
                error.into()
            });
        }
        self.confirmed = from;
        self.intake.reconnected(from);
        Ok(())
    }

    fn announce(&self, identity: &SystemIdentity, prepared: &Prepared) {
        info!(
            source = %self.config.name,
            database = %identity.dbname,
            server_version = prepared.server_version,
            slot = %self.config.slot,
            slot_created = prepared.created,
            publication = %self.config.publication,
            tables = prepared.tables.len(),
            from = %self.confirmed,
            "streaming"
        );
        for Trouble { what, advice } in &prepared.troubles {
            warn!(source = %self.config.name, advice, "{what}");
        }
        if let Some(mut view) = self.views.sources.get_mut(&self.config.name) {
            view.troubles.clone_from(&prepared.troubles);
            view.progress.confirmed = self.confirmed;
        }
        self.enter(SourceState::Streaming);
    }

    async fn stream(&mut self, mut stream: Stream, stop: &Stop) -> Result<(), Problem> {
        let mut tick = interval(STATUS_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let full_sink = self.hand_over();
            let is_stopping = stop.reading.is_cancelled();
            let is_full = self.memory.is_full();
            let is_sated = self.is_sated();
            let reads = !is_stopping && full_sink.is_none() && !is_full && !is_sated;
            if !reads {
                stream.listening_since = Instant::now();
            }
            tokio::select! {
                biased;
                // 1. The end: the sinks are done.
                () = stop.session.cancelled() => return self.leave(stream).await,
                // 2. The order to read no more only has to interrupt the waiting below.
                () = stop.reading.cancelled(), if !is_stopping => {}
                // 3. Statuses go out whether or not anything is read, or the server would give us up.
                _ = tick.tick() => self.on_tick(&mut stream, reads || is_stopping).await?,
                // 4. What keeps reading from going on.
                () = reserved(self, full_sink), if full_sink.is_some() => {}
                () = self.memory.room(), if is_full => {}
                () = self.appetite.notified(), if is_sated => {}
                // 5. Changes.
                gulp = stream.replication.read(), if reads => self.take_in(&mut stream, gulp?).await?,
            }
        }
    }

    async fn take_in(&mut self, stream: &mut Stream, gulp: Gulp) -> Result<(), Problem> {
        self.metrics.received_bytes.increment(u64::try_from(gulp.wire_bytes()).unwrap_or_default());
        let now = gulp.received_at();
        for frame in gulp {
            match frame {
                Frame::XLogData { payload, .. } => match pgoutput::decode(payload)? {
                    Message::Relation(relation) => self.look_up(stream, relation).await?,
                    message => self.intake.take(message, now)?,
                },
                Frame::Keepalive { server_end, reply_requested } => {
                    self.metrics.keepalives.increment(1);
                    self.intake.keepalive(server_end);
                    if reply_requested {
                        self.hand_over();
                        self.status(stream, false).await?;
                    }
                }
                Frame::CopyDone => return Err(StreamError::Closed.into()),
            }
        }
        self.count();
        Ok(())
    }

    async fn look_up(&mut self, stream: &mut Stream, relation: pgoutput::Relation) -> Result<(), Problem> {
        self.metrics.catalogue_lookups.increment(1);
        let table = timeout(CATALOGUE_LIMIT, stream.catalogue.table(&stream.client, &relation)).await;
        let slow = |_| Problem::Broken {
            what: "a look-up in the catalogue took longer than 20 s",
            reason: ReconnectReason::Timeout,
            source: None,
        };
        let table = table.map_err(slow)??;
        debug!(source = %self.config.name, table = %table.name, columns = table.columns.len(), "relation described");
        self.intake.learn(table);
        Ok(())
    }

    fn count(&mut self) {
        let tally = self.intake.tally();
        let metrics = &self.metrics;
        metrics.inserts.increment(tally.inserts);
        metrics.updates.increment(tally.updates);
        metrics.deletes.increment(tally.deletes);
        metrics.transactions.increment(tally.transactions);
        metrics.ignored_truncates.increment(tally.truncates);
        let Some(micros) = tally.last_commit_micros.and_then(|micros| u64::try_from(micros).ok()) else { return };
        let committed = SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
        if let Ok(taken) = SystemTime::now().duration_since(committed) {
            metrics.commit_to_received.record(taken);
        }
        if let Some(mut view) = self.views.sources.get_mut(&self.config.name) {
            view.progress.last_commit_at = Some(committed);
        }
    }

    async fn on_tick(&mut self, stream: &mut Stream, reads: bool) -> Result<(), Problem> {
        self.show_hold(stream, reads);
        if stream.client.is_closed() {
            let what = "the sql connection beside the stream is gone";
            return Err(Problem::Broken { what, reason: ReconnectReason::ConnectionLost, source: None });
        }
        let heard = stream.replication.received_at().max(stream.listening_since);
        if heard.elapsed() > SILENCE_MAX {
            return Err(Problem::silent());
        }
        let ask = heard.elapsed() > SILENCE_ASK && stream.last_asked.elapsed() > SILENCE_ASK;
        let moved = self.resolved().is_some_and(|resolved| resolved > stream.flushed);
        if ask || moved || stream.last_status.elapsed() >= STATUS_AT_LEAST_EVERY {
            self.status(stream, ask).await?;
        }
        self.show_progress();
        Ok(())
    }

    /// A source that stands still says so when that begins and when it ends.
    fn show_hold(&self, stream: &mut Stream, reads: bool) {
        let source = &self.config.name;
        let acknowledged = self.consumers.iter().map(|consumer| consumer.progress.acknowledged()).sum();
        match stream.hold.observe(Instant::now(), reads, acknowledged) {
            Turn::None => {}
            Turn::Began => {
                let why = self.why_held();
                warn!(source, "reading is held: {why}");
                self.enter(SourceState::Held { why });
            }
            Turn::Ended(held) => {
                self.metrics.held.add(held);
                info!(source, held_secs = held.as_secs_f64(), "reading goes on");
                self.enter(SourceState::Streaming);
            }
        }
    }

    fn why_held(&self) -> String {
        let mib = |bytes: usize| bytes >> 20;
        let (held, limit) = (mib(self.memory.held()), mib(self.memory.limit()));
        if self.memory.is_full() {
            return format!("undelivered changes fill the source's share of memory_limit, {limit} MiB");
        }
        let sinks: Vec<&str> = self.consumers.iter().map(|consumer| consumer.config.name.as_str()).collect();
        format!(
            "no sink takes more ({}): each has more deliverable changes than it can send, {held} MiB in memory, and \
             nothing was acknowledged for {} s",
            sinks.join(", "),
            HELD_AFTER.as_secs()
        )
    }

    /// Confirms what all sinks have resolved.
    async fn status(&mut self, stream: &mut Stream, ask: bool) -> Result<(), Problem> {
        let flushed = self.resolved().unwrap_or(Lsn::ZERO).max(stream.flushed);
        // Nothing that is resolved lies beyond what was received.
        let received = self.intake.received().max(flushed);
        stream.replication.status(received, flushed, ask).await?;
        stream.flushed = flushed;
        stream.last_status = Instant::now();
        if ask {
            stream.last_asked = Instant::now();
        }
        self.confirmed = self.confirmed.max(flushed);
        Ok(())
    }

    fn show_progress(&self) {
        if let Some(mut view) = self.views.sources.get_mut(&self.config.name) {
            let received = self.intake.received();
            let server = view.progress.server.max(received);
            view.progress = WalProgress { received, confirmed: self.confirmed, server, ..view.progress };
        }
    }

    async fn leave(&mut self, stream: Stream) -> Result<(), Problem> {
        let flushed = self.resolved().unwrap_or(Lsn::ZERO).max(stream.flushed);
        let received = self.intake.received().max(flushed);
        stream.replication.finish(received, flushed).await?;
        info!(source = %self.config.name, confirmed = %flushed.max(self.confirmed), "session closed");
        Ok(())
    }
}

/// Resolves when the channel of the sink has room, or the sink has ended.
async fn reserved(source: &Source, sink: Option<usize>) {
    if let Some(consumer) = sink.and_then(|index| source.consumers.get(index)) {
        // The permit is given back at once; the next turn of the loop takes it.
        drop(consumer.feed.reserve().await);
    }
}

//! One session with the database: from connecting to the end of the stream.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::task::{JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval, interval_at, timeout};
use tokio_postgres::Client;
use tracing::{debug, info, warn};

use super::connection::{Frame, Gulp, Replication, StreamError};
use super::end::{Answer, End, Verdict};
use super::hold::{Hold, Turn, why_held};
use super::liveness::{ASK_AFTER, Side, Silence};
use super::overdue::Look;
use super::pgoutput;
use super::problem::Problem;
use super::relation::Catalogue;
use super::slot::PrepareError;
use super::slot::unseen::grant;
use super::{Consumer, Source, Stop, standing};
use crate::change::Lsn;
use crate::failpoint;
use crate::fault::chain;
use crate::feed::Progress;
use crate::metrics::ReconnectReason;
use crate::view::{SourceState, Trouble, WalProgress};

/// How often progress is looked at and, when it moved, confirmed.
const STATUS_EVERY: Duration = Duration::from_millis(100);
/// A status goes out at least so often, which is well within any sensible `wal_sender_timeout`, one second among them.
const STATUS_AT_LEAST_EVERY: Duration = Duration::from_millis(400);
/// A session that has lasted so long is a good one: the waits between sessions begin anew.
const SETTLED_AFTER: Duration = Duration::from_secs(15);
/// The stream is looked at every [`STATUS_EVERY`]; after a longer while without, nothing could be heard.
const DEAF_FOR: Duration = Duration::from_secs(2);
/// Messages for all sinks together that are made before it is looked whether there is room for more: those of a gulp of tiny
/// rows for hundreds of sinks would weigh more than the limit of memory. One TRUNCATE of many tables may make more.
const MESSAGES_AT_ONCE: usize = 4096;
/// Longest wait for the server's end before the last confirmation.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);
/// Longest look-up of a table in the catalogue.
const CATALOGUE_LIMIT: Duration = Duration::from_secs(20);

/// A stream and what belongs to its session.
pub(super) struct Stream {
    pub(super) replication: Replication,
    /// What has been read, and not been taken in.
    pub(super) rest: Option<Gulp>,
    /// For look-ups of the stream and questions for the server's end alone, so that nothing slow is ahead of them.
    pub(super) client: Arc<Client>,
    pub(super) catalogue: Catalogue,
    /// For heartbeats, new tables and the state of the slot.
    pub(super) housekeeper: Arc<Client>,
    /// What the server says of its end.
    pub(super) end: End,
    /// Which side does not answer, as was told.
    pub(super) silent: Option<Side>,
    /// The drivers of the SQL connections and housekeeping; they end with the session, and it with each of them.
    pub(super) tasks: JoinSet<()>,
    pub(super) last_status: Instant,
    pub(super) last_asked: Instant,
    /// What the slot was last told.
    pub(super) flushed: Lsn,
    pub(super) hold: Hold,
    /// Since when the source has been listening: silence counts from here.
    pub(super) listening_since: Instant,
    /// When the loop last turned.
    pub(super) turned_at: Instant,
    pub(super) began: Instant,
}

/// The next frames: the rest of those that were read, or what comes. May be given up at any await.
async fn next_gulp(rest: &mut Option<Gulp>, replication: &mut Replication) -> Result<Gulp, StreamError> {
    match rest.take() {
        Some(rest) => Ok(rest),
        None => replication.read().await,
    }
}

impl Source {
    /// A session: `Ok` when it was stopped.
    pub(super) async fn session(&mut self, stop: &Stop) -> Result<(), Problem> {
        self.stay_stopped().await?;
        let opened = tokio::select! {
            biased;
            () = stop.reading.cancelled() => return Ok(()),
            opened = self.open() => opened?,
        };
        self.has_streamed = true;
        let ended = self.stream(opened, stop).await;
        // What was seen in the session says nothing about the next.
        if let Some(mut view) = self.views.sources.get_mut(&self.config.name) {
            view.alarms.clear();
            view.silence = None;
            view.slot_is_read = true;
        }
        ended
    }

    async fn stream(&mut self, mut stream: Stream, stop: &Stop) -> Result<(), Problem> {
        let mut tick = interval(STATUS_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.mind_the_gap_in_time(&mut stream);
            // Nothing goes on that the server does not stand by.
            let waits_for_end = self.waits_for_end(&mut stream);
            let full_sink = if waits_for_end { None } else { self.hand_over() };
            let is_stopping = stop.reading.is_cancelled();
            if is_stopping && full_sink.is_none() {
                self.end_feeds();
            }
            // What is left of a gulp takes no room from itself. Should memory tell of room later than that, the tick notices.
            let is_full = self.memory.is_full_beside(stream.rest.as_ref().map_or(0, Gulp::held_bytes));
            // Sinks that have enough, or one that has no room at all; each tells when that is over.
            let is_sated = self.is_sated();
            let waits_for_sinks = is_sated || self.is_held_by_a_sink();
            let reads = !is_stopping && full_sink.is_none() && !is_full && !waits_for_sinks && !waits_for_end;
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
                _ = tick.tick() => {
                    self.mind_the_distance(is_sated && !is_stopping);
                    // A server that does not say its end is told as silent; nobody holds the source then.
                    self.on_tick(&mut stream, reads || is_stopping || waits_for_end).await?;
                }
                // 4. What keeps reading from going on.
                () = reserved(self, full_sink), if full_sink.is_some() => {}
                () = self.memory.room(), if is_full => {}
                () = self.appetite.notified(), if waits_for_sinks => {}
                // 5. How far the server is, and whether what goes on beside the stream still does.
                answer = stream.end.answer() => self.learn_end(&mut stream, answer).await?,
                Some(ended) = stream.tasks.join_next() => return Err(beside_ended(ended)),
                // 6. Changes.
                gulp = next_gulp(&mut stream.rest, &mut stream.replication), if reads => {
                    self.take_in(&mut stream, gulp?).await?;
                }
            }
        }
    }

    /// Takes in frames until there are none, or enough for now: the rest comes again.
    async fn take_in(&mut self, stream: &mut Stream, mut gulp: Gulp) -> Result<(), Problem> {
        self.metrics.received_bytes.increment(u64::try_from(gulp.take_wire_bytes()).unwrap_or_default());
        let (now, before) = (gulp.received_at(), self.intake.gathered());
        while let Some(frame) = gulp.next() {
            match frame {
                Frame::XLogData { payload, start, oversize, .. } => {
                    if start > Lsn::ZERO {
                        self.last_read = start;
                    }
                    let relation = match oversize {
                        None => {
                            let message = pgoutput::decode(payload)?;
                            if let Some(relation) = self.intake.doubted(&message, now) {
                                self.look_up(stream, relation).await?;
                            }
                            self.intake.take(message, now)?
                        }
                        Some(bytes) => self.intake.take_reduced(pgoutput::decode_reduced(payload)?, bytes, now)?,
                    };
                    if let Some(relation) = relation {
                        self.look_up(stream, relation).await?;
                    }
                }
                Frame::Keepalive { server_end, reply_requested } => {
                    self.metrics.keepalives.increment(1);
                    // One that is beyond what is known waits for the tick's question: a server that has caught up sends one
                    // behind each transaction.
                    if stream.end.claim(server_end) {
                        self.intake.keepalive(server_end);
                    }
                    if reply_requested {
                        if !self.waits_for_end(stream) {
                            self.hand_over();
                        }
                        self.status(stream, false).await?;
                    }
                }
                Frame::CopyDone => return Err(StreamError::Closed.into()),
            }
            if self.intake.gathered().wrapping_sub(before) >= MESSAGES_AT_ONCE {
                stream.rest = (!gulp.is_empty()).then_some(gulp);
                break;
            }
        }
        self.count();
        Ok(())
    }

    /// Whether the server has to say first how far it is: what was read is far ahead of its last word, or ahead at all while a
    /// change was skipped as known.
    fn waits_for_end(&mut self, stream: &mut Stream) -> bool {
        let seen = self.intake.seen();
        if !stream.end.is_far_behind(seen, self.intake.has_skipped()) {
            self.intake.forget_skipped();
            return false;
        }
        stream.end.ask(&stream.client, seen, Instant::now());
        true
    }

    /// A look-up, or walhook's own sleep, is no silence of the server's.
    fn mind_the_gap_in_time(&mut self, stream: &mut Stream) {
        let now = Instant::now();
        if now.duration_since(stream.turned_at) > DEAF_FOR {
            stream.listening_since = now;
            stream.end.forgive(now);
        }
        stream.turned_at = now;
    }

    /// The server is not where it should be by its own word.
    fn is_beyond(&mut self, reached: Lsn, end: Lsn, in_recovery: bool) -> Problem {
        let step = standing::not_there(reached, end, in_recovery);
        self.heed(&step).err().unwrap_or_else(Problem::silent)
    }

    /// What was read lies within the server's own end, or nothing goes on.
    async fn learn_end(&mut self, stream: &mut Stream, answer: Result<Answer, PrepareError>) -> Result<(), Problem> {
        let Answer { verdict, claimed } = answer?;
        match verdict {
            Verdict::Beyond { reached, end, in_recovery } => return Err(self.is_beyond(reached, end, in_recovery)),
            Verdict::Open => return Ok(()),
            Verdict::Within => {}
        }
        if let Some(mut view) = self.views.sources.get_mut(&self.config.name) {
            view.progress.server = stream.end.known().unwrap_or(view.progress.server);
        }
        // Rows that came since say more by themselves.
        if claimed > self.intake.received() {
            self.intake.keepalive(claimed);
        }
        if self.resolved().is_some_and(|resolved| stream.end.bound(resolved) > stream.flushed) {
            self.status(stream, false).await?;
        }
        Ok(())
    }

    /// Asks the catalogue what a relation is; statuses go out meanwhile.
    async fn look_up(&mut self, stream: &mut Stream, relation: pgoutput::Relation) -> Result<(), Problem> {
        self.metrics.catalogue_lookups.increment(1);
        let (received, flushed) = self.positions(stream);
        self.may_be_confirmed(stream, flushed);
        let mut tick = interval_at(tokio::time::Instant::now() + STATUS_AT_LEAST_EVERY, STATUS_AT_LEAST_EVERY);
        let mut looked_up = pin!(timeout(CATALOGUE_LIMIT, stream.catalogue.table(&stream.client, &relation)));
        let table = loop {
            tokio::select! {
                biased;
                table = &mut looked_up => break table,
                _ = tick.tick() => stream.replication.status(received, flushed, false).await?,
            }
        };
        let table = table.map_err(|_| Problem::slow("a look-up in the catalogue took longer than 20 s"))?;
        let table = table.map_err(|error| match error.refusal() {
            Some(said) => Problem::lasting(chain(&error), grant(said, &self.config.url.user)),
            None => error.into(),
        })?;
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
        metrics.truncates.increment(tally.truncates);
        metrics.ignored_truncates.increment(tally.ignored_truncates);
        metrics.messages.increment(tally.messages);
        metrics.oversized_changes.increment(tally.oversized);
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
        if stream.began.elapsed() > SETTLED_AFTER {
            self.failures = 0;
        }
        if stream.client.is_closed() || stream.housekeeper.is_closed() {
            return Err(gone());
        }
        self.listen(stream)?;
        self.leave_gap_behind();
        let heard = stream.replication.received_at().max(stream.listening_since);
        stream.end.ask_on_tick(&stream.client, self.intake.seen(), heard.elapsed() > ASK_AFTER);
        let ask = heard.elapsed() > ASK_AFTER && stream.last_asked.elapsed() > ASK_AFTER;
        let moved = self.resolved().is_some_and(|resolved| stream.end.bound(resolved) > stream.flushed);
        if ask || moved || stream.last_status.elapsed() >= STATUS_AT_LEAST_EVERY {
            self.status(stream, ask).await?;
        }
        self.show_progress(stream);
        Ok(())
    }

    /// A server that does not answer is told, and given up in the end.
    fn listen(&mut self, stream: &mut Stream) -> Result<(), Problem> {
        let now = Instant::now();
        let heard = stream.replication.received_at().max(stream.listening_since);
        let silence = Silence { stream: now.duration_since(heard), sql: stream.end.silence(now) };
        let source = &self.config.name;
        let mut slot_is_read = true;
        if let Some(mut view) = self.views.sources.get_mut(source) {
            slot_is_read = view.slot_is_read;
            view.heard_at = now.checked_sub(silence.stream.max(silence.sql));
            view.silence = silence.trouble();
            let told = std::mem::replace(&mut stream.silent, silence.side());
            match &view.silence {
                Some(Trouble { what, advice }) if told != stream.silent => warn!(source, advice, "{what}"),
                None if told.is_some() => info!(source, "the database answers again"),
                Some(_) | None => {}
            }
        }
        if silence.is_over(slot_is_read) { Err(Problem::silent()) } else { Ok(()) }
    }

    /// A source that stands still says so when that begins and when it ends.
    fn show_hold(&self, stream: &mut Stream, reads: bool) {
        let source = &self.config.name;
        let acknowledged = self.consumers.iter().map(|consumer| consumer.progress.acknowledged()).sum();
        let stuck = self.is_held_by_a_sink();
        let moves = (acknowledged, self.resolved().unwrap_or(Lsn::ZERO));
        match stream.hold.observe(Instant::now(), reads, stuck, moves) {
            Turn::None => {}
            Turn::Began => {
                let Trouble { what, advice } = self.why_held();
                warn!(source, advice, "reading is held: {what}");
                self.enter(SourceState::Held { why: what, advice });
            }
            Turn::Ended(held) => {
                self.metrics.held.add(held);
                info!(source, held_secs = held.as_secs_f64(), "reading goes on");
                self.enter(SourceState::Streaming);
            }
        }
    }

    fn why_held(&self) -> Trouble {
        let sinks = |which: fn(&Progress) -> bool| -> Vec<&str> {
            let consumers = self.consumers.iter().filter(|consumer| which(&consumer.progress));
            consumers.map(|consumer| consumer.config.name.as_str()).collect()
        };
        let memory = (self.memory.held(), self.memory.limit(), self.memory.is_full());
        why_held(memory, &self.views.store(), &sinks(Progress::holds), &sinks(|_| true))
    }

    /// Tells saturated sinks when the source falls behind because of them.
    fn mind_the_distance(&mut self, is_sated: bool) {
        let server = self.views.sources.get(&self.config.name).map_or(Lsn::ZERO, |view| view.progress.server);
        let (at, received, last_read) = (Instant::now(), self.intake.received(), self.last_read);
        let is_overdue = self.overdue.observe(Look { at, is_sated, server, received, last_read });
        for Consumer { progress, .. } in &self.consumers {
            progress.set_overdue(is_overdue && (progress.is_saturated() || progress.is_overdue()));
        }
    }

    /// What has been received, and what all sinks have resolved, neither beyond the server's end as it last said.
    fn positions(&self, stream: &Stream) -> (Lsn, Lsn) {
        let resolved = self.at_least_past_gap(self.resolved().unwrap_or(stream.flushed));
        assert!(resolved >= stream.flushed, "what is confirmed went back from {} to {resolved}", stream.flushed);
        let flushed = stream.end.bound(resolved).max(stream.flushed);
        // Nothing that is resolved lies beyond what was received.
        (stream.end.bound(self.intake.received()).max(flushed), flushed)
    }

    /// Confirms what all sinks have resolved.
    async fn status(&mut self, stream: &mut Stream, ask: bool) -> Result<(), Problem> {
        let (received, flushed) = self.positions(stream);
        let moves = flushed > stream.flushed;
        if moves {
            failpoint::hit("source.before_confirm");
        }
        self.may_be_confirmed(stream, flushed);
        stream.replication.status(received, flushed, ask).await?;
        if moves {
            failpoint::hit("source.after_confirm");
        }
        stream.last_status = Instant::now();
        if ask {
            stream.last_asked = Instant::now();
        }
        Ok(())
    }

    /// Before a status leaves: once it has, the server may have taken it whatever becomes of the session.
    fn may_be_confirmed(&mut self, stream: &mut Stream, flushed: Lsn) {
        stream.flushed = flushed;
        self.confirmed = self.confirmed.max(flushed);
    }

    fn show_progress(&self, stream: &Stream) {
        if let Some(mut view) = self.views.sources.get_mut(&self.config.name) {
            let received = self.intake.received();
            // Where the role may not ask for it, the stream is all there is.
            let server = stream.end.known().unwrap_or_else(|| view.progress.server.max(received));
            view.progress = WalProgress { received, confirmed: self.confirmed, server, ..view.progress };
        }
    }

    /// So that the last confirmation says all that is resolved. Without an answer the rest comes again, and is known.
    async fn ask_once_more(&mut self, stream: &mut Stream) -> Result<(), Problem> {
        let resolved = self.resolved().unwrap_or_default();
        let answered = async {
            // An open question may be of before the last change.
            let open = stream.end.open_answer().await?;
            if let Some(answer) = open.filter(|_| stream.end.bound(resolved) == resolved) {
                return Ok(answer);
            }
            stream.end.ask_now(&stream.client, self.intake.seen(), Instant::now());
            stream.end.answer().await
        };
        match timeout(LEAVE_LIMIT, answered).await {
            Ok(Ok(Answer { verdict: Verdict::Beyond { reached, end, in_recovery }, .. })) => {
                Err(self.is_beyond(reached, end, in_recovery))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    async fn leave(&mut self, mut stream: Stream) -> Result<(), Problem> {
        if self.resolved().is_some_and(|resolved| stream.end.bound(resolved) < resolved) {
            self.ask_once_more(&mut stream).await?;
        }
        let (received, flushed) = self.positions(&stream);
        stream.replication.finish(received, flushed).await?;
        info!(source = %self.config.name, confirmed = %flushed.max(self.confirmed), "session closed");
        Ok(())
    }
}

/// An SQL connection has ended.
fn gone() -> Problem {
    let what = "an sql connection beside the stream is gone";
    Problem::Broken { what, reason: ReconnectReason::ConnectionLost, source: None }
}

/// Of the drivers and housekeeping the first has ended: the session begins anew, with all of them.
fn beside_ended(ended: Result<(), JoinError>) -> Problem {
    match ended {
        Ok(()) => gone(),
        Err(error) => {
            let what = "what goes on beside the stream (heartbeats, new tables, the state of the slot) ended unexpectedly; it \
                        begins anew";
            Problem::Broken { what, reason: ReconnectReason::Internal, source: Some(Box::new(error)) }
        }
    }
}

/// Resolves when the channel of the sink has room, or the sink has ended.
async fn reserved(source: &Source, sink: Option<usize>) {
    if let Some(feed) = sink.and_then(|index| source.consumers.get(index)?.feed.as_ref()) {
        // The permit is given back at once; the next turn of the loop takes it.
        drop(feed.reserve().await);
    }
}

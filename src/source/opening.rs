//! How a session begins: connections, the cluster's identity, slot and publication, the start of the stream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::Client;
use tracing::{debug, info, warn};

use super::Source;
use super::ahead::Ahead;
use super::connection::{self, Replication, SystemIdentity};
use super::end::{self, End, Said};
use super::hold::Hold;
use super::housekeeping::Housekeeping;
use super::identity::Watch;
use super::notes::Notes;
use super::problem::Problem;
use super::relation::Catalogue;
use super::session::Stream;
use super::slot::by_hand::lost_to_others;
use super::slot::{self, LostSlot, Passing, PrepareError, Prepared, Site};
use super::standing::{self, Facts, Life, Promotion, SlotFound, Standing, Step, Streamed, decide};
use super::vitals::Vitals;
use crate::change::Lsn;
use crate::config::{OnSlotLost, SourceConfig};
use crate::feed::Feed;
use crate::metrics::ReconnectReason;
use crate::store::{AcceptedBy, NewBinding, SourceBinding, Store, StoreError};
use crate::view::{SourceState, Trouble};

/// Longest start of a stream once the connection stands.
const START_LIMIT: Duration = Duration::from_secs(30);

/// The server of a session, as it was when the session began.
#[derive(Debug)]
pub(super) struct Server {
    identity: SystemIdentity,
    /// What it says of its end.
    said: Said,
    in_recovery: bool,
}

impl Server {
    /// Where it does not say over SQL, the replication connection has told it, before it streams.
    fn end(&self) -> Lsn {
        self.said.end().unwrap_or(self.identity.xlogpos)
    }
}

impl Source {
    /// Connects, compares store and slot, makes slot and publication ready, starts the stream.
    pub(super) async fn open(&mut self) -> Result<Stream, Problem> {
        let mut tasks = JoinSet::new();
        self.server = self.config.url.clone();
        let housekeeper = Arc::new(self.connect_sql(&mut tasks).await?);
        let mut notes = Notes::load(&self.store, &self.config.name).await.map_err(Problem::Store)?;
        let mut watch = Watch::new(self.config.clone(), self.intake.sinks().to_vec());
        // Whatever keeps the stream from going on.
        let is_known = self.is_known(&housekeeper).await;
        let mut harms = self.tend(&housekeeper, &mut watch, &mut notes, is_known).await;
        // Before a slot is made or anything is read it is known to be the same database, and nothing to be lost.
        let (mut replication, server, step) = if self.has_streamed {
            let (replication, server) = self.connect(&housekeeper).await?;
            (replication, server, Step::GoOn)
        } else {
            self.agree(&housekeeper).await?
        };
        if !is_known {
            harms = self.tend(&housekeeper, &mut watch, &mut notes, true).await;
        }
        let prepared = self.publish(&housekeeper, &mut notes, &server).await?;
        self.mark_gap(&step, &prepared).await?;
        self.settle(&step, &prepared).await?;
        if prepared.created {
            // That may have taken hours, in which an idle connection may be forgotten on the way.
            replication = self.connect(&housekeeper).await?.0;
        }
        self.on_standby = prepared.in_recovery;
        if prepared.wants_copies {
            let altered = timeout(START_LIMIT, replication.keep_copies(&self.config.slot)).await;
            altered.map_err(|_| Problem::slow("the slot was not altered for a failover within 30 s"))??;
            info!(source = %self.config.name, slot = %self.config.slot, "standbys keep a copy of the slot from here on");
        }
        let client = Arc::new(self.connect_sql(&mut tasks).await?);
        let started = timeout(START_LIMIT, self.start(&mut replication, prepared.confirmed)).await;
        started.map_err(|_| Problem::slow("the stream did not start within 30 s"))??;
        self.announce(&prepared);
        let housekeeping = Housekeeping {
            client: Arc::clone(&housekeeper),
            source: self.config.clone(),
            sinks: self.intake.sinks().to_vec(),
            views: Arc::clone(&self.views),
            notes,
            watch,
            troubles: prepared.troubles,
            errors: prepared.errors,
            harms,
            missed: prepared.missed,
            learnt: prepared.learnt,
        };
        tasks.spawn(housekeeping.run());
        let vitals =
            Vitals { client: Arc::clone(&client), source: self.config.clone(), views: Arc::clone(&self.views) };
        tasks.spawn(vitals.run());
        let now = Instant::now();
        Ok(Stream {
            replication,
            rest: None,
            client,
            catalogue: Catalogue::new(),
            housekeeper,
            end: End::new(server.said, now),
            silent: None,
            tasks,
            last_status: now,
            last_asked: now,
            flushed: Lsn::ZERO,
            hold: Hold::new(now),
            listening_since: now,
            turned_at: now,
            began: now,
        })
    }

    /// Before the first stream: a connection, and what store, slot and server mean together.
    async fn agree(&mut self, client: &Client) -> Result<(Replication, Server, Step), Problem> {
        let (slot, lost) = match slot::look(client, &self.config, self.intake.sinks()).await {
            Err(PrepareError::Lost(lost)) => (None, Some(lost)),
            // What is to be done depends on whether it is the store's database.
            Err(error @ PrepareError::Unpublished { .. }) => {
                self.connect(client).await?;
                return Err(error.into());
            }
            slot => (slot?, None),
        };
        let (mut replication, server) = self.connect(client).await?;
        let bound = self.bound().await?;
        self.accepted_by = bound.as_ref().and_then(|bound| bound.gap_accepted);
        self.bound_timeline = bound.as_ref().and_then(|bound| bound.timeline);
        let identity = &server.identity;
        // A server of another cluster is refused, whatever its timeline.
        let same = bound.as_ref().is_some_and(|bound| bound.system_id == identity.system_id);
        let promotion = promotion(&mut replication, self.bound_timeline.filter(|_| same), identity).await?;
        // One that is given up on a standby is where it belongs.
        self.on_standby = if lost.is_some() { server.in_recovery } else { self.on_standby };
        let found = slot.and_then(|slot| slot.confirmed).map_or(SlotFound::Missing, SlotFound::At);
        let standing = Standing { life: Life::First(bound.as_ref()), on_standby: self.on_standby };
        let step = decide(&standing, &Facts { promotion, ..self.facts(&server, found) });
        let progress = bound.as_ref().and_then(standing::progress);
        match &step {
            Step::Stop(_) | Step::Wait(_) | Step::WentBack(_) => self.heed(&step)?,
            Step::Lost(trouble) => {
                let dropped = || LostSlot::dropped(progress, trouble.clone());
                return Err(Problem::Lost(lost.unwrap_or_else(|| Box::new(dropped()))));
            }
            Step::Begin { .. } | Step::GoOn => {
                match lost.filter(|_| self.lost.is_none()) {
                    // Nobody said that it was read for this store: it is not walhook's to replace.
                    Some(lost) if bound.is_none() => return Err(lost_to_others(&lost.trouble.what).into()),
                    Some(lost) => return Err(Problem::Lost(lost)),
                    None => {}
                }
                self.resolved_before = progress;
            }
            Step::AcceptGap => {
                self.lost_from = progress;
                self.lost = self.lost.take().or(lost.map(|lost| *lost));
            }
        }
        if step == Step::GoOn {
            self.begin(server.identity.system_id, None);
        }
        Ok((replication, server, step))
    }

    /// What the store knows of the source.
    async fn bound(&self) -> Result<Option<SourceBinding>, Problem> {
        let name = self.config.name.clone();
        let mut bound = self.ask_store(move |store| store.source(&name)).await?;
        if let Some(bound) = &mut bound {
            // What the setting has accepted, and not done yet, is void once it says otherwise.
            let stops = self.config.on_slot_lost == OnSlotLost::Stop;
            bound.gap_accepted = bound.gap_accepted.filter(|by| !(stops && *by == AcceptedBy::Setting));
        }
        Ok(bound)
    }

    /// What is found in the database, of a server on the timeline that was read.
    fn facts<'a>(&'a self, server: &'a Server, found: SlotFound) -> Facts<'a> {
        Facts {
            source: &self.config.name,
            store: &self.store_path,
            system_id: server.identity.system_id,
            database: &server.identity.dbname,
            server_end: server.end(),
            in_recovery: server.in_recovery,
            promotion: None,
            slot: &self.config.slot,
            found,
        }
    }

    /// How a source that has streamed stands; `known` is the server of its last session.
    fn streamed(&self, known: &SystemIdentity) -> Standing<'static> {
        let life = Streamed {
            system_id: known.system_id,
            seen: self.intake.seen(),
            confirmed: self.confirmed,
            replaces_slot: self.lost.is_some(),
        };
        Standing { life: Life::Streamed(life), on_standby: self.on_standby }
    }

    /// The sinks do nothing before they know the database, so that nothing is sent that belongs elsewhere. From then on they
    /// deliver what the store holds, though the slot may be busy or is being made for hours. A source that is bound anew `at`
    /// a position tells them that one with it: what they say of their progress may not be behind the store's.
    fn begin(&mut self, system_id: u64, at: Option<Lsn>) {
        if std::mem::replace(&mut self.has_begun, true) {
            return;
        }
        self.intake.begin(|| Feed::Database { system_id });
        if let Some(at) = at {
            self.intake.reconnected(at);
        }
        self.hand_over();
    }

    /// While the database cannot be asked whether it is the store's, the sinks go on with what the store holds of it; after
    /// an accepted gap they wait, for the store is going to be bound farther on than they are.
    pub(super) async fn let_sinks_begin(&mut self) {
        if self.has_begun {
            return;
        }
        let name = self.config.name.clone();
        match self.ask_store(move |store| store.source(&name)).await {
            Ok(Some(bound)) if bound.gap_accepted.is_none() => self.begin(bound.system_id, None),
            Ok(_) => {}
            Err(problem) => {
                warn!(source = %self.config.name, error = %crate::fault::chain(&problem), "the store could not be asked what it is of");
            }
        }
    }

    /// Binds the store to slot and timeline as they are, where it is not yet.
    async fn settle(&mut self, step: &Step, prepared: &Prepared) -> Result<(), Problem> {
        let (source, slot, at) = (&self.config.name, &self.config.slot, prepared.confirmed);
        let from = match step {
            Step::GoOn | Step::Lost(_) | Step::Wait(_) | Step::WentBack(_) | Step::Stop(_) => {
                if let Some(known) = self.resolved_before.filter(|known| *known < at && !self.has_streamed) {
                    return Err(standing::gap(source, slot, known, Some(at)).into());
                }
                // Before anything of the new timeline is read: what follows is compared with it.
                if self.known.as_ref().map(|identity| identity.timeline) == self.bound_timeline {
                    return Ok(());
                }
                None
            }
            Step::Begin { slot_existed: true } => {
                warn!(
                    source, slot, from = %at,
                    "the store knows nothing of this source, but its slot is there: it goes on from the slot's position; what \
                     another store keeps of it (failed deliveries, overflow, dead letters) is not known here"
                );
                Some(at)
            }
            Step::Begin { slot_existed: false } => Some(at),
            Step::AcceptGap => Some(at.max(self.lost_from.unwrap_or(at))),
        };
        let Some(identity) = &self.known else { return Ok(()) };
        let binding = NewBinding {
            name: source.clone(),
            system_id: identity.system_id,
            timeline: identity.timeline,
            database: identity.dbname.clone(),
            slot: slot.clone(),
            from,
        };
        let (system_id, timeline) = (binding.system_id, binding.timeline);
        self.ask_store(move |store| store.bind(&binding)).await?;
        self.bound_timeline = Some(timeline);
        self.resolved_before = self.resolved_before.max(from);
        self.begin(system_id, from);
        Ok(())
    }

    /// Asks the store, which may have to wait for the disk.
    pub(super) async fn ask_store<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Problem> {
        let store = self.store.clone();
        match tokio::task::spawn_blocking(move || question(&store)).await {
            Ok(answer) => answer.map_err(Problem::Store),
            Err(lost) => Err(Problem::Broken {
                what: "the question to the store was lost",
                reason: ReconnectReason::Store,
                source: Some(Box::new(lost)),
            }),
        }
    }

    /// A connection for SQL; the first of a session decides with which server it is.
    async fn connect_sql(&mut self, tasks: &mut JoinSet<()>) -> Result<Client, Problem> {
        let (client, driver, server) = connection::sql_somewhere(&self.server).await.map_err(Problem::Connect)?;
        self.server = server;
        let source = self.config.name.clone();
        tasks.spawn(async move {
            if let Err(error) = driver.await {
                match connection::excess(&error) {
                    Some(excess) => {
                        warn!(source, %excess, "a session was given up: the server sends what it should not")
                    }
                    None => debug!(source, %error, "sql connection ended"),
                }
            }
        });
        slot::trust_the_catalogue(&client).await?;
        Ok(client)
    }

    /// A replication connection to the cluster of the sessions before, and what its server is.
    async fn connect(&mut self, client: &Client) -> Result<(Replication, Server), Problem> {
        let mut replication = Replication::connect(&self.server, &self.memory).await.map_err(Problem::Connect)?;
        let checked = timeout(START_LIMIT, self.check_server(&mut replication, client)).await;
        let server = checked.map_err(|_| Problem::slow("the server did not identify itself within 30 s"))??;
        Ok((replication, server))
    }

    /// Slot and publication. Once a session of this run has streamed no slot is made any more but in the place of one that
    /// is lost: one that is missing then has lost changes.
    async fn prepare(&self, client: &Client, ahead: &mut Ahead<'_>, server: &Server) -> Result<Prepared, Problem> {
        let config = &SourceConfig { url: self.server.clone(), ..self.config.clone() };
        let site = Site { client, source: config, sinks: self.intake.sinks() };
        // The making of a slot may wait for hours; whom for, people should see.
        let show = |waits: Option<Trouble>| {
            if let Some(mut view) = self.views.sources.get_mut(&config.name) {
                view.troubles = waits.into_iter().collect();
            }
        };
        if self.lost.is_some() {
            return Ok(slot::prepare_anew(site, self.has_streamed, &show, Some(ahead)).await?);
        }
        if !self.has_streamed {
            return Ok(slot::prepare(site, &show, Some(ahead)).await?);
        }
        let prepared = slot::prepare_again(site, Some(ahead)).await?;
        let found = SlotFound::At(prepared.confirmed);
        self.hindrance(&decide(&self.streamed(&server.identity), &self.facts(server, found)))?;
        Ok(prepared)
    }

    /// Who the server is. Once the source has streamed it must be the same cluster, and have all that was read.
    async fn check_server(&mut self, replication: &mut Replication, client: &Client) -> Result<Server, Problem> {
        let identity = replication.identify_system().await?;
        let in_recovery = slot::is_standby(client).await?;
        let said = end::ask(client, false).await?;
        let server = Server { identity, said, in_recovery };
        if let Some(known) = &self.known {
            let same = known.system_id == server.identity.system_id;
            let before = Some(known.timeline).filter(|_| same && self.has_streamed);
            let promotion = promotion(replication, before, &server.identity).await?;
            let mut standing = self.streamed(known);
            // Before the first stream, that is decided by what the store knows.
            standing.on_standby |= !self.has_streamed;
            let step = decide(&standing, &Facts { promotion, ..self.facts(&server, SlotFound::Unknown) });
            self.heed(&step)?;
        }
        self.known = Some(server.identity.clone());
        if let Some(mut view) = self.views.sources.get_mut(&self.config.name) {
            view.progress.server = server.end();
        }
        Ok(server)
    }

    /// As [`Self::hindrance`]; that a server went back is never forgotten.
    pub(super) fn heed(&mut self, step: &Step) -> Result<(), Problem> {
        if let Step::WentBack(went_back) = step {
            self.went_back = Some(*went_back);
        }
        self.hindrance(step)
    }

    /// Why nothing may be read now, if that is the step.
    fn hindrance(&self, step: &Step) -> Result<(), Problem> {
        match step {
            Step::Begin { .. } | Step::GoOn | Step::AcceptGap => Ok(()),
            Step::Wait(why) => Err(PrepareError::from(Passing::Standby(why)).into()),
            Step::WentBack(went_back) => Err(standing::beyond(&self.config.name, *went_back).into()),
            Step::Lost(trouble) | Step::Stop(trouble) => Err(trouble.clone().into()),
        }
    }

    /// Once a server went back, no session begins, so that what it writes since is not taken for what was read: the store has
    /// it, or gets it now.
    pub(super) async fn stay_stopped(&self) -> Result<(), Problem> {
        let Some(went_back) = self.went_back else { return Ok(()) };
        let name = self.config.name.clone();
        self.ask_store(move |store| store.note_went_back(&name, went_back)).await?;
        self.hindrance(&Step::WentBack(went_back))
    }

    async fn start(&mut self, replication: &mut Replication, confirmed: Lsn) -> Result<(), Problem> {
        let from = confirmed.max(self.confirmed).max(self.resolved_before.unwrap_or(Lsn::ZERO));
        if let Err(error) = replication.start(&self.config.slot, &self.config.publication, from).await {
            return Err(match error.sqlstate() {
                Some("55006") => Problem::Busy { pid: None, application: None },
                // The slot has vanished a moment ago; the next session finds that out.
                Some("42704") => Problem::Stream(error),
                Some(_) | None => error.into(),
            });
        }
        self.confirmed = from;
        self.intake.reconnected(from);
        Ok(())
    }

    fn announce(&self, prepared: &Prepared) {
        let known = self.known.as_ref();
        info!(
            source = %self.config.name,
            database = known.map(|known| known.dbname.as_str()),
            timeline = known.map(|known| known.timeline),
            server_version = prepared.server_version,
            slot = %self.config.slot,
            slot_created = prepared.created,
            publication = %self.config.publication,
            tables = prepared.tables.len(),
            from = %self.confirmed,
            "streaming"
        );
        // No fault of the moment: said once, and shown by `check`.
        let once = prepared.overpowered.iter().filter(|_| !self.has_streamed);
        for Trouble { what, advice } in prepared.errors.iter().chain(&prepared.troubles).chain(once) {
            warn!(source = %self.config.name, advice, "{what}");
        }
        if let Some(mut view) = self.views.sources.get_mut(&self.config.name) {
            view.troubles.clone_from(&prepared.troubles);
            view.errors.clone_from(&prepared.errors);
            view.progress.confirmed = self.confirmed;
        }
        self.enter(SourceState::Streaming);
    }
}

/// How the server's timeline is related to the one of before, if that is known and another.
async fn promotion(
    replication: &mut Replication,
    before: Option<u32>,
    identity: &SystemIdentity,
) -> Result<Option<Promotion>, Problem> {
    let now = identity.timeline;
    let Some(before) = before.filter(|before| *before != now) else { return Ok(None) };
    let asked = timeout(START_LIMIT, replication.switch_point(now, before)).await;
    let left = asked.map_err(|_| Problem::slow("the server did not tell its history within 30 s"))??;
    info!(timeline = now, before, left = left.map(|left| left.to_string()), "the database was promoted");
    Ok(Some(Promotion { before, now, left }))
}

mod tables;
#[cfg(test)]
mod tests;

//! How a session begins: connections, the cluster's identity, slot and publication, the start of the stream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::Client;
use tracing::{debug, info, warn};

use super::Source;
use super::agreement::{self, Agreement, Found, Promotion};
use super::ahead::Ahead;
use super::connection::{self, Replication, SystemIdentity};
use super::hold::Hold;
use super::housekeeping::Housekeeping;
use super::identity::Watch;
use super::notes::Notes;
use super::problem::Problem;
use super::relation::Catalogue;
use super::session::Stream;
use super::slot::by_hand::lost_to_others;
use super::slot::{self, LostSlot, PrepareError, Prepared, Site};
use crate::change::Lsn;
use crate::config::{OnSlotLost, SourceConfig};
use crate::metrics::ReconnectReason;
use crate::sink::feed::Feed;
use crate::store::{AcceptedBy, NewBinding, Store, StoreError};
use crate::view::{SourceState, Trouble};

/// Longest start of a stream once the connection stands.
const START_LIMIT: Duration = Duration::from_secs(30);

/// What a standby without the slot means: as a rule that the address leads there for a moment only.
const NO_SLOT_HERE: &str = "the slot of this source is not there, which says nothing about the primary's: waiting for the \
                            primary. If the source is read from this standby, and the slot is gone, `walhook state accept-gap` \
                            makes another";

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
        let (mut replication, agreement) = if self.has_streamed {
            (self.connect().await?, Agreement::GoesOn)
        } else {
            self.agree(&housekeeper).await?
        };
        if !is_known {
            harms = self.tend(&housekeeper, &mut watch, &mut notes, true).await;
        }
        let prepared = self.publish(&housekeeper, &mut notes).await?;
        self.mark_gap(&agreement, &prepared).await?;
        self.settle(&agreement, &prepared).await?;
        if prepared.created {
            // That may have taken hours, in which an idle connection may be forgotten on the way.
            replication = self.connect().await?;
        }
        self.on_standby = prepared.in_recovery;
        if prepared.wants_copies {
            let altered = timeout(START_LIMIT, replication.keep_copies(&self.config.slot)).await;
            altered.map_err(|_| Problem::slow("the slot was not altered for a failover within 30 s"))??;
            info!(source = %self.config.name, slot = %self.config.slot, "standbys keep a copy of the slot from here on");
        }
        let client = self.connect_sql(&mut tasks).await?;
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
        let now = Instant::now();
        Ok(Stream {
            replication,
            client,
            catalogue: Catalogue::new(),
            housekeeper,
            _tasks: tasks,
            last_status: now,
            last_asked: now,
            flushed: Lsn::ZERO,
            hold: Hold::new(now),
            listening_since: now,
            began: now,
        })
    }

    /// A connection, once store and slot agree.
    async fn agree(&mut self, client: &Client) -> Result<(Replication, Agreement), Problem> {
        let (slot, lost) = match slot::look(client, &self.config, self.intake.sinks()).await {
            Err(PrepareError::Lost(lost)) => (None, Some(lost)),
            // What is to be done depends on whether it is the store's database.
            Err(error @ PrepareError::Unpublished { .. }) => {
                self.connect().await?;
                return Err(error.into());
            }
            slot => (slot?, None),
        };
        let mut replication = self.connect().await?;
        let name = self.config.name.clone();
        let mut bound = self.ask_store(move |store| store.source(&name)).await?;
        if let Some(bound) = &mut bound {
            // What the setting has accepted, and not done yet, is void once it says otherwise.
            let stops = self.config.on_slot_lost == OnSlotLost::Stop;
            bound.gap_accepted = bound.gap_accepted.filter(|by| !(stops && *by == AcceptedBy::Setting));
            self.accepted_by = bound.gap_accepted;
        }
        let Some(identity) = &self.known else { return Err(Problem::silent()) };
        self.bound_timeline = bound.as_ref().and_then(|bound| bound.timeline);
        // What is of another cluster is refused for that.
        let same = bound.as_ref().is_some_and(|bound| bound.system_id == identity.system_id);
        let promotion = promotion(&mut replication, self.bound_timeline.filter(|_| same), identity).await?;
        let found = Found {
            source: &self.config.name,
            store: &self.store_path,
            system_id: identity.system_id,
            database: &identity.dbname,
            server_end: identity.xlogpos,
            promotion,
            slot: &self.config.slot,
            confirmed: slot.and_then(|slot| slot.confirmed),
        };
        let agreement = agreement::compare(bound.as_ref(), &found);
        if lost.is_some() {
            // Its slot is there, whatever became of it; if that is on a standby, it is where it belongs.
            self.on_standby = slot::is_standby(client).await?;
        } else if found.confirmed.is_none() && self.gives_up_changes(&agreement) && slot::is_standby(client).await? {
            return Err(PrepareError::from(slot::Passing::Standby(NO_SLOT_HERE)).into());
        }
        let progress = bound.as_ref().and_then(agreement::progress);
        match &agreement {
            Agreement::Refused(Trouble { what, advice }) => return Err(Problem::lasting(what, advice)),
            Agreement::Lost(trouble) => {
                let dropped = || LostSlot::dropped(progress, trouble.clone());
                return Err(Problem::Lost(lost.unwrap_or_else(|| Box::new(dropped()))));
            }
            Agreement::Begins { .. } | Agreement::GoesOn => {
                match lost.filter(|_| self.lost.is_none()) {
                    // Nobody said that it was read for this store: it is not walhook's to replace.
                    Some(lost) if bound.is_none() => return Err(lost_to_others(&lost.trouble.what).into()),
                    Some(lost) => return Err(Problem::Lost(lost)),
                    None => {}
                }
                self.resolved_before = progress;
            }
            Agreement::GapAccepted => {
                self.lost_from = progress;
                self.lost = self.lost.take().or(lost.map(|lost| *lost));
            }
        }
        let system_id = identity.system_id;
        if agreement == Agreement::GoesOn {
            self.begin(system_id, None);
        }
        Ok((replication, agreement))
    }

    /// Whether a slot that is missing would be written off, or has been, without a person's word for it.
    fn gives_up_changes(&self, agreement: &Agreement) -> bool {
        match agreement {
            Agreement::Lost(_) => !self.on_standby,
            Agreement::GapAccepted => !self.on_standby && self.accepted_by == Some(AcceptedBy::Setting),
            Agreement::Begins { .. } | Agreement::GoesOn | Agreement::Refused(_) => false,
        }
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
                warn!(source = %self.config.name, error = %super::chain(&problem), "the store could not be asked what it is of");
            }
        }
    }

    /// Binds the store to slot and timeline as they are, where it is not yet.
    async fn settle(&mut self, agreement: &Agreement, prepared: &Prepared) -> Result<(), Problem> {
        let (source, slot, at) = (&self.config.name, &self.config.slot, prepared.confirmed);
        let from = match agreement {
            Agreement::GoesOn | Agreement::Lost(_) | Agreement::Refused(_) => {
                if let Some(known) = self.resolved_before.filter(|known| *known < at && !self.has_streamed) {
                    return Err(agreement::gap(source, slot, known, Some(at)).into());
                }
                // Before anything of the new timeline is read: what follows is compared with it.
                if self.known.as_ref().map(|identity| identity.timeline) == self.bound_timeline {
                    return Ok(());
                }
                None
            }
            Agreement::Begins { slot_existed: true } => {
                warn!(
                    source, slot, from = %at,
                    "the store knows nothing of this source, but its slot is there: it goes on from the slot's position; what \
                     another store keeps of it (failed deliveries, overflow, dead letters) is not known here"
                );
                Some(at)
            }
            Agreement::Begins { slot_existed: false } => Some(at),
            Agreement::GapAccepted => Some(at.max(self.lost_from.unwrap_or(at))),
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
                debug!(source, %error, "sql connection ended");
            }
        });
        slot::trust_the_catalogue(&client).await?;
        Ok(client)
    }

    /// A replication connection to the cluster of the sessions before.
    async fn connect(&mut self) -> Result<Replication, Problem> {
        let mut replication = Replication::connect(&self.server, &self.memory).await.map_err(Problem::Connect)?;
        let checked = timeout(START_LIMIT, self.check_identity(&mut replication)).await;
        checked.map_err(|_| Problem::slow("the server did not identify itself within 30 s"))??;
        Ok(replication)
    }

    /// Slot and publication. Once a session of this run has streamed no slot is made any more but in the place of one that
    /// is lost: one that is missing then has lost changes.
    async fn prepare(&self, client: &Client, ahead: &mut Ahead<'_>) -> Result<Prepared, Problem> {
        let config = &SourceConfig { url: self.server.clone(), ..self.config.clone() };
        let site = Site { client, source: config, sinks: self.intake.sinks() };
        // The making of a slot may wait for hours; whom for, people should see.
        let show = |waits: Option<Trouble>| {
            if let Some(mut view) = self.views.sources.get_mut(&config.name) {
                view.troubles = waits.into_iter().collect();
            }
        };
        // A standby that is to be promoted, or that the address leads to for a moment: what it has of slots says nothing.
        if self.has_streamed && !self.on_standby && slot::is_standby(client).await? {
            let why = slot::Passing::Standby("changes were read from the primary: waiting for it, or for a promotion");
            return Err(PrepareError::from(why).into());
        }
        if self.lost.is_some() {
            return Ok(slot::prepare_anew(site, self.has_streamed, &show, Some(ahead)).await?);
        }
        if !self.has_streamed {
            return Ok(slot::prepare(site, &show, Some(ahead)).await?);
        }
        let prepared = slot::prepare_again(site, Some(ahead)).await?;
        if prepared.confirmed > self.confirmed {
            return Err(agreement::gap(&config.name, &config.slot, self.confirmed, Some(prepared.confirmed)).into());
        }
        Ok(prepared)
    }

    async fn check_identity(&mut self, replication: &mut Replication) -> Result<(), Problem> {
        let identity = replication.identify_system().await?;
        match &self.known {
            Some(known) if known.system_id != identity.system_id => {
                let (from, to) = (known.system_id, identity.system_id);
                return Err(Problem::lasting(
                    format!("the address now leads to another database cluster ({to}, not {from})"),
                    "point the source's url back to its database; to begin with the new one, stop walhook, point state.path to \
                     another directory and start it again",
                ));
            }
            Some(known) => {
                let seen = self.intake.seen().max(self.confirmed);
                let promotion = promotion(replication, Some(known.timeline), &identity).await?;
                if let Some(trouble) = promotion.and_then(|promotion| agreement::promoted_without(promotion, seen)) {
                    return Err(trouble.into());
                }
            }
            None => {}
        }
        self.known = Some(identity);
        Ok(())
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
        for Trouble { what, advice } in prepared.errors.iter().chain(&prepared.troubles) {
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

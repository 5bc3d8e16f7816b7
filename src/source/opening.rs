//! How a session begins: connections, the cluster's identity, slot and publication, the start of the stream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::Client;
use tracing::{debug, info, warn};

use super::Source;
use super::connection::{self, Replication, SystemIdentity};
use super::hold::Hold;
use super::housekeeping::Housekeeping;
use super::problem::Problem;
use super::relation::Catalogue;
use super::session::Stream;
use super::slot::{self, Prepared};
use crate::change::Lsn;
use crate::sink::feed::Feed;
use crate::view::{SourceState, Trouble};

/// Longest start of a stream once the connection stands.
const START_LIMIT: Duration = Duration::from_secs(30);

impl Source {
    /// Connects, makes slot and publication ready, starts the stream.
    pub(super) async fn open(&mut self) -> Result<Stream, Problem> {
        let mut tasks = JoinSet::new();
        let housekeeper = Arc::new(self.connect_sql(&mut tasks).await?);
        // From the second session on, nothing is looked at before it is known to be the same database.
        let early = if self.has_streamed { Some(self.connect().await?) } else { None };
        let prepared = self.prepare(&housekeeper).await?;
        let mut replication = match early {
            Some(replication) => replication,
            None => self.connect().await?,
        };
        let client = self.connect_sql(&mut tasks).await?;
        let started = timeout(START_LIMIT, self.start(&mut replication, prepared.confirmed)).await;
        started.map_err(|_| Problem::slow("the stream did not start within 30 s"))??;
        self.announce(&prepared);
        let housekeeping = Housekeeping {
            client: Arc::clone(&housekeeper),
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

    async fn connect_sql(&self, tasks: &mut JoinSet<()>) -> Result<Client, Problem> {
        let (client, driver) = connection::sql(&self.config.url).await.map_err(Problem::Connect)?;
        let source = self.config.name.clone();
        tasks.spawn(async move {
            if let Err(error) = driver.await {
                debug!(source, %error, "sql connection ended");
            }
        });
        Ok(client)
    }

    /// A replication connection to the cluster of the sessions before.
    async fn connect(&mut self) -> Result<Replication, Problem> {
        let mut replication = Replication::connect(&self.config.url, &self.memory).await.map_err(Problem::Connect)?;
        let checked = timeout(START_LIMIT, self.check_identity(&mut replication)).await;
        checked.map_err(|_| Problem::slow("the server did not identify itself within 30 s"))??;
        Ok(replication)
    }

    /// Slot and publication. Once a session of this run has streamed no slot is made any more: one that is missing then
    /// has lost changes.
    async fn prepare(&self, client: &Client) -> Result<Prepared, Problem> {
        let (config, sinks) = (&self.config, self.intake.sinks());
        if !self.has_streamed {
            // The making of a slot may wait for hours; whom for, people should see.
            let show = |waits: Option<Trouble>| {
                if let Some(mut view) = self.views.sources.get_mut(&config.name) {
                    view.troubles = waits.into_iter().collect();
                }
            };
            return Ok(slot::prepare(client, config, sinks, &show).await?);
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

    async fn check_identity(&mut self, replication: &mut Replication) -> Result<(), Problem> {
        let identity = replication.identify_system().await?;
        match &self.known {
            Some(known) if known.system_id != identity.system_id => {
                let (from, to) = (known.system_id, identity.system_id);
                return Err(Problem::lasting(
                    format!("the address now leads to another database cluster ({to}, not {from})"),
                    "point the source's url back to its database, or restart walhook to begin with the new one",
                ));
            }
            Some(known) if known.timeline != identity.timeline => {
                let timeline = known.timeline;
                self.check_timeline(replication, timeline, &identity).await?;
            }
            Some(_) => {}
            None => {
                let system_id = identity.system_id;
                self.intake.begin(|| Feed::Database { system_id });
            }
        }
        self.known = Some(identity);
        Ok(())
    }

    /// After a promotion: what was read and confirmed must be part of the new timeline's history.
    async fn check_timeline(
        &self,
        replication: &mut Replication,
        before: u32,
        identity: &SystemIdentity,
    ) -> Result<(), Problem> {
        let (now, seen) = (identity.timeline, self.intake.received().max(self.confirmed));
        let left = replication.switch_point(now, before).await?;
        if let Some(left) = left.filter(|left| *left >= seen) {
            info!(source = %self.config.name, timeline = now, %left, "the database was promoted; nothing that was read is missing in it");
            return Ok(());
        }
        let left = left.map_or_else(|| "an unknown position".to_owned(), |left| left.to_string());
        Err(Problem::lasting(
            format!(
                "the database was promoted to timeline {now}, which left timeline {before} at {left}, but changes up to \
                 {seen} were read: some of them never happened there"
            ),
            "point the source's url to the server with all changes, or restart walhook to go on from the slot's position \
             and compare the receivers' data with the tables",
        ))
    }

    async fn start(&mut self, replication: &mut Replication, confirmed: Lsn) -> Result<(), Problem> {
        let from = confirmed.max(self.confirmed);
        if let Err(error) = replication.start(&self.config.slot, &self.config.publication, from).await {
            let busy = error.sqlstate() == Some("55006");
            return Err(if busy { Problem::Busy { pid: None, application: None } } else { error.into() });
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
        for Trouble { what, advice } in &prepared.troubles {
            warn!(source = %self.config.name, advice, "{what}");
        }
        if let Some(mut view) = self.views.sources.get_mut(&self.config.name) {
            view.troubles.clone_from(&prepared.troubles);
            view.progress.confirmed = self.confirmed;
        }
        self.enter(SourceState::Streaming);
    }
}

//! What a survey means: whether the source can be read, what is wrong with it, who has to grant what.

use std::collections::HashSet;

use tokio_postgres::error::{DbError, SqlState};

use super::by_hand::{self, Whose};
use super::error::{LostSlot, Passing, PlanFault, PrepareError};
use super::plan::Naming;
use super::portions::Learnt;
use super::publication::PublicationState;
use super::publishing::Published;
use super::state::SlotFacts;
use super::steps::{Held, Hold};
use super::survey::{RelationKind, TableFacts};
use super::takes::Takes;
use super::unseen::{Unseen, grant};
use super::{Missed, Survey, Turn};
use crate::change::TableName;
use crate::config::{SinkConfig, SourceConfig};
use crate::source::advice::Statement;
use crate::source::standing;
use crate::view::Trouble;

/// Troubles of one kind that are told one by one.
const SHOWN_MAX: usize = 8;

/// What is wrong once the publication was brought to the plan.
pub(super) struct Outcome {
    pub(super) troubles: Vec<Trouble>,
    /// Tables that sinks name do not stream.
    pub(super) errors: Vec<Trouble>,
    pub(super) missed: Missed,
}

impl Survey {
    /// Whether database and configuration fit, before anything is changed.
    pub(super) fn fit(&self, source: &SourceConfig, turn: Turn) -> Result<(), PrepareError> {
        self.server.usable()?;
        if let Some(Trouble { what, advice }) = self.fetches_as_superuser() {
            return Err(PrepareError::lasting(what, advice));
        }
        if source.failover {
            self.server.keeps_copies()?;
        }
        if turn.is_first() {
            self.any_readable(source)?;
        }
        let slot = match &self.slot {
            Some(slot) => slot,
            None if turn == Turn::Again => return Err(slot_gone(source)),
            None => return Ok(()),
        };
        if slot.is_synced {
            return Err(
                Passing::Standby("its slot a copy for a failover: it is read once the server is promoted").into()
            );
        }
        if let Some(Trouble { what, advice }) = slot.foreign(&source.slot, &self.server.database) {
            return Err(PrepareError::Lasting { what, advice });
        }
        match slot.lost(&source.slot) {
            Some(_) if turn.replaces() => return Ok(()),
            Some(lost) => return Err(PrepareError::Lost(Box::new(lost))),
            None if turn == Turn::Again && slot.is_half_made() => return Err(slot_gone(source)),
            None => {}
        }
        if slot.active_pid.is_some() {
            return Err(busy(slot));
        }
        if self.publication.is_none() && !slot.is_half_made() {
            return Err(publication_gone(source));
        }
        Ok(())
    }

    /// A table that is read calls what only its owner should run: a superuser may not.
    pub(crate) fn fetches_as_superuser(&self) -> Option<Trouble> {
        let Trouble { what, advice } = self.server.is_overpowered().filter(|_| !self.fetching.is_empty())?;
        let sinks = self.fetching.join(", ");
        let what = format!(
            "{what}; sink {sinks} (unchanged_toast = \"fetch\") reads tables, which walhook does not do as a superuser"
        );
        Some(Trouble { what, advice })
    }

    /// Minor releases that cannot be kept from reading a view in a table's place: nothing is fetched there.
    fn fetches_nothing(&self) -> Option<Trouble> {
        (!self.fetching.is_empty() && !self.server.keeps_views_apart()).then(|| Trouble {
            what: format!(
                "sink {} (unchanged_toast = \"fetch\") gets no values from this server, {}: it cannot be kept from reading a view in \
                 a table's place",
                self.fetching.join(", "),
                self.server.version_text()
            ),
            advice: "upgrade the server to 14.13, 15.8, 16.4 or later".to_owned(),
        })
    }

    /// Whether there is anything that the role may publish, or that is published, where sinks take tables at all.
    fn any_readable(&self, source: &SourceConfig) -> Result<(), PrepareError> {
        let held = &self.steps.held;
        if !self.steps.refused.is_empty()
            || self.plan.publish.is_empty()
            || held.len() < self.plan.publish.len()
            || self.hears
        {
            return Ok(());
        }
        let what: Vec<String> = held.iter().take(SHOWN_MAX).map(|held| held.trouble.what.clone()).collect();
        let what = format!("no table can be read: {}", what.join("; "));
        let is_foreign = self.plan.publish.iter().any(|(table, _)| !table.is_owned);
        let advice = match (source.create, is_foreign) {
            (true, true) => self.grants(source),
            (true, false) => {
                held.iter().take(SHOWN_MAX).map(|held| held.trouble.advice.clone()).collect::<Vec<_>>().join("\n")
            }
            (false, _) => self.by_hand(source, &self.steps.by_hand),
        };
        Err(PrepareError::lasting(what, advice))
    }

    /// What of the server and the tables does not stop the stream, and is not about one named table.
    pub(crate) fn troubles(&self, source: &SourceConfig) -> Vec<Trouble> {
        let slot = self.slot.as_ref().and_then(|slot| slot.warning(&source.slot));
        let without_copy = self.slot.as_ref().filter(|slot| source.failover && !source.create && !slot.is_failover);
        let slot = slot.into_iter().chain(without_copy.map(|_| no_copy(source))).chain(self.server.impatience());
        let slot = slot.chain(self.fetches_nothing());
        self.plan.troubles.iter().chain(&self.steps.troubles).cloned().chain(slot).collect()
    }

    /// What is said after the publication was brought to the plan as far as it went. From here on the steps hold what was done.
    pub(super) fn outcome(
        &mut self,
        published: Published,
        turn: Turn,
        learnt: &mut Learnt,
        source: &SourceConfig,
    ) -> Outcome {
        let Published { added, written, held, faults, troubles, .. } = published;
        if !faults.is_empty() {
            self.hold_roots();
        }
        self.steps.added = added;
        self.steps.held.extend(held);
        let missed = Missed::new(self, turn, learnt, &written);
        let missing = self.plan.missing.iter().filter(|table| turn.is_first() || learnt.has_waited(table));
        learnt.let_wait(self.unpublished().chain(missing.cloned()).collect());
        let (named, others): (Vec<&Held>, Vec<&Held>) =
            self.steps.held.iter().partition(|held| held.naming == Naming::Exact);
        let errors = self.plan.faults.iter().map(PlanFault::trouble).chain(faults);
        let errors = folded(errors.chain(named.into_iter().map(|held| held.trouble.clone())).collect());
        let others = folded(others.into_iter().map(|held| held.trouble.clone()).collect());
        let troubles = self.troubles(source).into_iter().chain(others).chain(folded(troubles)).collect();
        Outcome { troubles, errors, missed }
    }

    /// While the publication sends partitions under their own names, what it has of their roots is of no use.
    fn hold_roots(&mut self) {
        if self.publication.as_ref().is_none_or(|state| state.via_root) {
            return;
        }
        for (table, naming) in &self.plan.publish {
            if table.kind == RelationKind::Partitioned && !self.steps.held.iter().any(|held| held.table == table.name) {
                let trouble = Trouble {
                    what: format!(
                        "{} would come under its partitions' names, so nothing of it is captured",
                        table.name
                    ),
                    advice: "the publication is changed as soon as that can be done".to_owned(),
                };
                self.steps.held.push(Held { table: table.name.clone(), naming: *naming, hold: Hold::Table, trouble });
            }
        }
    }

    /// Tables of the plan that are not published.
    fn unpublished(&self) -> impl Iterator<Item = TableName> {
        let published: HashSet<&TableName> = self.streaming().map(|table| &table.name).collect();
        let names = self.plan.publish.iter().map(|(table, _)| &table.name);
        names.filter(move |name| !published.contains(name)).cloned()
    }

    /// Whether there is no slot that can be read.
    pub(super) fn wants_slot(&self) -> bool {
        self.slot.as_ref().is_none_or(|slot| slot.is_half_made() || slot.is_lost())
    }

    /// What could not be seen of all this.
    pub(crate) fn unseen(&self) -> impl Iterator<Item = &Unseen> {
        let publication = self.publication.iter().flat_map(|state| &state.unseen);
        self.server.unseen.iter().chain(publication).chain(self.slot.iter().flat_map(|slot| &slot.unseen))
    }

    /// The tables of the plan that are, or with its steps will be, published.
    pub(super) fn published(&self) -> Vec<TableFacts> {
        self.streaming().cloned().collect()
    }

    pub(super) fn streaming(&self) -> impl Iterator<Item = &TableFacts> {
        let covered = self.publication.as_ref().map(PublicationState::coverage);
        let added: HashSet<&TableName> = self.steps.added.iter().collect();
        let held: HashSet<&TableName> = self.steps.held.iter().map(|held| &held.table).collect();
        let streams = move |table: &&TableFacts| {
            let name = &table.name;
            !held.contains(name) && (added.contains(name) || covered.as_ref().is_some_and(|covered| covered.has(name)))
        };
        self.plan.publish.iter().map(|(table, _)| table).filter(streams)
    }

    /// Whether a table that a sink names without a pattern is not published.
    pub(super) fn lacks_named(&self, sinks: &[SinkConfig]) -> bool {
        let covered = self.publication.as_ref().map(PublicationState::coverage);
        let added: HashSet<&TableName> = self.steps.added.iter().collect();
        let lacks =
            |name: &TableName| !added.contains(name) && covered.as_ref().is_none_or(|covered| !covered.has(name));
        Takes::all(sinks).iter().any(|takes| takes.exact().any(|name| lacks(&name)))
    }

    /// Says which grants are missing, where the error is a missing privilege.
    pub(super) fn with_grants(&self, error: PrepareError, source: &SourceConfig) -> PrepareError {
        let PrepareError::Passing(Passing::Query { doing, source: cause }) = &error else { return error };
        match cause.as_db_error() {
            // Taken from everybody: no owner has it to give.
            Some(server) if is_of_server(server) => {
                let advice = grant(server.message(), &self.server.role);
                PrepareError::lasting(format!("could not {doing}: {}", server.message()), advice)
            }
            Some(server) if *server.code() == SqlState::INSUFFICIENT_PRIVILEGE => {
                PrepareError::lasting(format!("could not {doing}: {}", server.message()), self.grants(source))
            }
            Some(_) | None => error,
        }
    }
}

/// Whether what was refused is a function or a schema, and not a table or the publication.
fn is_of_server(error: &DbError) -> bool {
    let of = ["permission denied for function ", "permission denied for schema "];
    *error.code() == SqlState::INSUFFICIENT_PRIVILEGE && of.iter().any(|start| error.message().starts_with(start))
}

/// The first of these, and how many more there are.
pub(crate) fn folded(mut troubles: Vec<Trouble>) -> Vec<Trouble> {
    let more = troubles.len().saturating_sub(SHOWN_MAX);
    if more > 1 {
        troubles.truncate(SHOWN_MAX);
        let what = format!("{more} more tables are in the same case, or one like it");
        troubles.push(Trouble {
            what,
            advice: "`walhook check` says of every table whether it can be published".to_owned(),
        });
    }
    troubles
}

pub(super) fn busy(slot: &SlotFacts) -> PrepareError {
    PrepareError::Busy { pid: slot.active_pid, application_name: slot.active_application.clone() }
}

pub(super) fn slot_gone(source: &SourceConfig) -> PrepareError {
    let trouble = Trouble {
        what: format!(
            "the slot {} is gone: the changes since its last confirmation can no longer be read",
            source.slot
        ),
        advice: standing::accept_gap(&source.name),
    };
    PrepareError::Lost(Box::new(LostSlot::dropped(None, trouble)))
}

fn no_copy(source: &SourceConfig) -> Trouble {
    Trouble {
        what: format!("failover = true, but standbys keep no copy of the slot {}", source.slot),
        advice: Statement::keep_copies(&source.slot).to_string(),
    }
}

fn publication_gone(source: &SourceConfig) -> PrepareError {
    let advice = by_hand::anew(source, &Whose::Unknown);
    PrepareError::Unpublished { what: no_publication(source), advice }
}

/// The same of a slot that streams.
pub(super) fn publication_went(source: &SourceConfig) -> PrepareError {
    PrepareError::lasting(no_publication(source), by_hand::anew(source, &Whose::Ours))
}

fn no_publication(source: &SourceConfig) -> String {
    format!(
        "the slot {} exists but the publication {} does not; a publication made now is younger than the slot, which could then \
         never be read past the changes in between",
        source.slot, source.publication
    )
}

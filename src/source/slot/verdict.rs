//! What a survey means: whether the source can be read, what is wrong with it, who has to grant what.

use tokio_postgres::error::{DbError, SqlState};

use super::by_hand;
use super::error::{LostSlot, Passing, PlanFault, PrepareError};
use super::state::SlotFacts;
use super::survey::TableFacts;
use super::unseen::{Unseen, grant};
use super::{Survey, Turn};
use crate::change::TableName;
use crate::config::{SinkConfig, SourceConfig};
use crate::source::advice::Statement;
use crate::source::agreement;
use crate::view::Trouble;

impl Survey {
    /// Whether database and configuration fit, before anything is changed.
    pub(super) fn fit(&self, source: &SourceConfig, turn: Turn) -> Result<(), PrepareError> {
        self.server.usable()?;
        if turn.is_first() && !self.plan.faults.is_empty() {
            return Err(PrepareError::Config(self.plan.faults.clone()));
        }
        if source.failover {
            self.server.keeps_copies()?;
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

    /// Everything that does not stop the stream.
    pub(crate) fn troubles(&self, source: &SourceConfig) -> Vec<Trouble> {
        let slot = self.slot.as_ref().and_then(|slot| slot.warning(&source.slot));
        let without_copy = self.slot.as_ref().filter(|slot| source.failover && !source.create && !slot.is_failover);
        let slot = slot.into_iter().chain(without_copy.map(|_| no_copy(source))).chain(self.server.impatience());
        let fault = |fault: &PlanFault| Trouble {
            what: format!("{}: {}", fault.place, fault.reason),
            advice: fault.sql.clone().unwrap_or_else(|| "mend the configuration".to_owned()),
        };
        let faults = self.plan.faults.iter().map(fault);
        self.plan.troubles.iter().chain(&self.steps.troubles).cloned().chain(faults).chain(slot).collect()
    }

    /// What could not be seen of all this.
    pub(crate) fn unseen(&self) -> impl Iterator<Item = &Unseen> {
        let publication = self.publication.iter().flat_map(|state| &state.unseen);
        self.server.unseen.iter().chain(publication).chain(self.slot.iter().flat_map(|slot| &slot.unseen))
    }

    /// The tables of the plan that are, or with its steps will be, published.
    pub(super) fn published(&self) -> Vec<TableFacts> {
        let left_out = |table: &&TableFacts| {
            let covered = self.publication.as_ref().is_some_and(|state| state.covers(&table.name));
            covered || self.steps.added.contains(&table.name)
        };
        self.plan.publish.iter().map(|(table, _)| table).filter(left_out).cloned().collect()
    }

    /// Whether a table that a sink names without a pattern is not published.
    pub(super) fn lacks_named(&self, sinks: &[SinkConfig]) -> bool {
        let exact = sinks.iter().flat_map(|sink| &sink.tables).filter(|pattern| pattern.is_exact());
        let mut names = exact.map(|pattern| TableName { schema: pattern.schema.clone(), table: pattern.table.clone() });
        names.any(|name| {
            let covered = self.publication.as_ref().is_some_and(|state| state.covers(&name));
            !covered && !self.steps.added.contains(&name)
        })
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

pub(super) fn busy(slot: &SlotFacts) -> PrepareError {
    PrepareError::Busy { pid: slot.active_pid, application_name: slot.active_application.clone() }
}

pub(super) fn slot_gone(source: &SourceConfig) -> PrepareError {
    let trouble = Trouble {
        what: format!(
            "the slot {} is gone: the changes since its last confirmation can no longer be read",
            source.slot
        ),
        advice: agreement::accept_gap(&source.name),
    };
    PrepareError::Lost(Box::new(LostSlot::dropped(None, trouble)))
}

fn no_copy(source: &SourceConfig) -> Trouble {
    Trouble {
        what: format!("failover = true, but standbys keep no copy of the slot {}", source.slot),
        advice: Statement::keep_copies(&source.slot).to_string(),
    }
}

pub(super) fn publication_gone(source: &SourceConfig) -> PrepareError {
    PrepareError::lasting(
        format!(
            "the slot {} exists but the publication {} does not; a publication made now is younger than the slot, which \
             could then never be read past the changes in between",
            source.slot, source.publication
        ),
        by_hand::anew(source),
    )
}

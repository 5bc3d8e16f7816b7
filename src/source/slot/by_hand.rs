//! Pure: what others have to do before a source can be read, as statements with whom they are for.
//!
//! walhook's role gets what it lacks where that hands out no more than it needs: it becomes a member of the tables' owners,
//! and owns none of their tables. Where it should not be a member ([`super::owners`]) the publication is the owners' to
//! make, with `create = false`.

use super::Survey;
use super::error::PrepareError;
use super::owners::Owner;
use crate::config::SourceConfig;
use crate::source::advice::{self, Statement};

impl Survey {
    /// Lets the role do what the steps need.
    pub(crate) fn grants(&self, source: &SourceConfig) -> String {
        let server = &self.server;
        let mut grants = Vec::new();
        if !server.may_replicate {
            grants.push(Statement::use_slots(&server.role, server.is_rds));
        }
        if self.publication.is_none() && !server.may_create {
            grants.push(Statement::create_on_database(&server.database, &server.role));
        }
        let owners = self.foreign_owners();
        let hindrances: Vec<String> =
            owners.iter().filter_map(|owner| more_than_an_owner(owner, &server.role)).collect();
        let by_hand = format!("set create = false on the source, and {}", self.by_hand(source, &self.steps.by_hand));
        if !hindrances.is_empty() {
            return format!("{}. Instead {by_hand}", hindrances.join("; "));
        }
        let join = |owner: &&Owner| Statement::join_owner(&owner.name, &server.role, server.version);
        grants.extend(owners.iter().map(join));
        if !server.inherits && !owners.is_empty() {
            grants.extend(Statement::inherit(&server.role, server.version));
        }
        match grants.is_empty() {
            true => by_hand,
            false => format!("{}\nor {by_hand}", advice::text(&grants)),
        }
    }

    /// The owners of the publication and of the tables that the steps add, each once, without the role itself.
    fn foreign_owners(&self) -> Vec<&Owner> {
        let publication = self.publication.as_ref().filter(|state| !state.is_owned).map(|state| &state.owner);
        let added = self.plan.publish.iter().filter(|(table, _)| !table.is_owned);
        let mut owners: Vec<&Owner> = publication.into_iter().chain(added.map(|(table, _)| &table.owner)).collect();
        let mut seen = std::collections::HashSet::new();
        owners.retain(|owner| seen.insert(owner.name.as_str()));
        owners
    }

    /// The steps as statements for whoever may run them, and after them the slot, if there is none.
    pub(crate) fn by_hand<S: AsRef<str>>(&self, source: &SourceConfig, sql: &[S]) -> String {
        let whom = self.publisher();
        let statement = |sql: &S| match self.publication {
            None => Statement::make_publication(&whom, sql.as_ref()),
            Some(_) => Statement::change_publication(&whom, sql.as_ref()),
        };
        let mut statements: Vec<Statement> = sql.iter().map(statement).collect();
        if self.slot.is_none() {
            statements.push(Statement::make_slot(source, &self.server.role));
        }
        advice::text(&statements)
    }

    /// The steps that walhook may not take itself.
    pub(crate) fn refused(&self, source: &SourceConfig) -> String {
        self.by_hand(source, &self.steps.refused)
    }

    /// Who may make or change the publication with all its tables.
    fn publisher(&self) -> String {
        let tables = self.plan.publish.iter().map(|(table, _)| &table.owner.name);
        let publication = self.publication.iter().map(|state| &state.owner.name);
        let mut owners: Vec<&String> = publication.chain(tables).collect();
        owners.sort();
        owners.dedup();
        match owners.as_slice() {
            [] => self.server.role.clone(),
            [one] => format!("{one}, or a superuser"),
            _ => "a superuser, or a role with the privileges of every owner of these tables".to_owned(),
        }
    }

    /// With `create = false` the slot is a person's to make, after the publication.
    pub(crate) fn slot_by_hand(&self, source: &SourceConfig) -> PrepareError {
        let make = Statement::make_slot(source, &self.server.role);
        if self.slot.is_some() {
            let what = format!("the slot {} is of no use any more, and create = false", source.slot);
            return PrepareError::lasting(what, advice::text(&[Statement::drop_slot(&source.slot), make]));
        }
        let what = format!("the slot {} does not exist, and create = false", source.slot);
        let first = if self.publication.is_none() { "once the publication is there, " } else { "" };
        PrepareError::lasting(what, format!("{first}{make}"))
    }
}

/// Why a role should not become a member of another, if so.
pub(super) fn more_than_an_owner(owner: &Owner, role: &str) -> Option<String> {
    let why = owner.hindrance.as_ref()?;
    Some(format!("do not make {role} a member of {}: it {why}", owner.name))
}

/// What is left to do where the slot is there, but its publication is gone or was made after it.
pub(crate) fn anew(source: &SourceConfig) -> String {
    let name = &source.name;
    let made = match source.create {
        true => "walhook makes publication and slot anew",
        false => "make the publication, and the slot after it; `walhook check` prints both",
    };
    format!(
        "if `publication` is misspelt, or the publication was renamed, put that right: then nothing is lost. Else changes from \
         before the publication cannot be read, whatever is done. To go on without all that was not read yet, stop walhook, run \
         `walhook state accept-gap {name}`, then {} and start walhook again: {made}. Compare the receivers' data with the tables \
         afterwards, or backfill them",
        Statement::drop_slot(&source.slot)
    )
}

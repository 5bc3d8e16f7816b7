//! Pure: what others have to do before a source can be read, as statements with whom they are for.
//!
//! walhook's role gets what it lacks where that hands out no more than it needs: it becomes a member of the tables' owners,
//! and owns none of their tables. Where it should not be a member ([`super::owners`]) the publication is the owners' to
//! make, with `create = false`.

use super::Survey;
use super::error::PrepareError;
use super::names::quoted;
use super::owners::Owner;
use crate::config::SourceConfig;
use crate::source::advice::{self, Statement};
use crate::store::SourceBinding;
use crate::view::Trouble;

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
        let tables = self.plan.publish.iter().map(|(table, _)| &table.owner);
        let publication = self.publication.iter().map(|state| &state.owner);
        let mut owners: Vec<&Owner> = publication.chain(tables).collect();
        owners.sort_by_key(|owner| &owner.name);
        owners.dedup_by_key(|owner| &owner.name);
        match owners.as_slice() {
            [] => self.server.role.clone(),
            // To make one takes a privilege on the database too, which owners of tables alone do not have.
            [one] if self.publication.is_none() && !one.may_create => {
                let grant =
                    format!("GRANT CREATE ON DATABASE {} TO {}", quoted(&self.server.database), quoted(&one.name));
                format!("a superuser, or {} after {grant}", one.name)
            }
            [one] => format!("{}, or a superuser", one.name),
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

/// Whose a slot is that has the name of the source's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whose {
    /// The store goes on with it, and nobody reads it now.
    Ours,
    /// The store knows nothing of it, or cannot be read: it may be another reader's that is only stopped.
    Unknown,
    /// Somebody reads it now: pid and application.
    Read(String),
}

impl Whose {
    /// `bound` is what the store knows of the source.
    pub(crate) fn of(source: &SourceConfig, survey: &Survey, bound: Option<&SourceBinding>) -> Self {
        let reader = survey.slot.as_ref().and_then(|slot| Some((slot.active_pid?, slot.active_application.as_deref())));
        if let Some((pid, application)) = reader {
            return Self::Read(format!("pid {pid} ({})", application.unwrap_or("unknown application")));
        }
        let goes_on = |bound: &SourceBinding| bound.slot == source.slot && bound.database == survey.server.database;
        if bound.is_some_and(goes_on) { Self::Ours } else { Self::Unknown }
    }
}

/// What is left to do where the slot is there, but its publication is gone or was made after it. A slot that is, or may be,
/// another reader's is not dropped: what that has not read yet would be lost to it.
pub(crate) fn anew(source: &SourceConfig, whose: &Whose) -> String {
    let name = &source.name;
    let made = match source.create {
        true => "walhook makes publication and slot anew",
        false => "make the publication, and the slot after it; `walhook check` prints both",
    };
    let left = match whose {
        Whose::Ours => format!(
            "Else changes from before the publication cannot be read, whatever is done. To go on without all that was not read \
             yet, stop walhook, run `walhook state accept-gap {name}`, then {} and start walhook again: {made}. Compare the \
             receivers' data with the tables afterwards, or backfill them",
            Statement::drop_slot(&source.slot)
        ),
        Whose::Unknown => format!(
            "Else leave the slot as it is: the store does not know it, so it may be another reader's that is only stopped. Give the \
             source another `slot`, and {made}; or point state.path to the store that read this one"
        ),
        Whose::Read(reader) => format!(
            "Else leave the slot as it is while {reader} reads it: if that is no walhook of this source, give the source another \
             `slot`, and {made}; if it is, its log and /readyz say whether it gets on"
        ),
    };
    format!(
        "if `publication` is misspelt, or the publication was renamed, put that right: then nothing is lost. {left}"
    )
}

/// Of a slot that the server has given up, which the store knows nothing of.
pub(crate) fn lost_to_others(what: &str) -> Trouble {
    Trouble {
        what: what.to_owned(),
        advice: "leave the slot as it is: the store does not know it, so it may be another reader's, whose loss this is. Give the \
                 source another `slot`, or point state.path to the store that read this one"
            .to_owned(),
    }
}

//! Why a session could not begin or did not last, sorted by who has to act.

use std::error::Error;

use super::connection::{ConnectError, ServerError, StreamError};
use super::intake::IntakeError;
use super::pgoutput::DecodeError;
use super::relation::CatalogueError;
use super::slot::by_hand::{self, Whose};
use super::slot::{LostSlot, PrepareError};
use crate::config::SourceConfig;
use crate::fault::chain;
use crate::metrics::ReconnectReason;
use crate::store::StoreError;
use crate::view::Trouble;

/// A source cannot begin before a person has changed something.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Something in the database, its settings or its rules.
    #[error("{what}")]
    Prerequisite {
        /// What is wrong.
        what: String,
        /// What mends it.
        advice: String,
    },
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("could not connect to the database")]
    Connect(#[source] ConnectError),
    #[error("the stream ended")]
    Stream(#[source] StreamError),
    #[error("could not ask the store")]
    Store(#[source] StoreError),
    #[error("could not make the slot and publication ready")]
    Prepare(#[source] Box<dyn Error + Send + Sync>),
    /// The session is of no use any more.
    #[error("{what}")]
    Broken {
        what: &'static str,
        reason: ReconnectReason,
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    #[error("slot is active{}", .pid.map_or_else(String::new, |pid| format!(" for backend {pid}")))]
    Busy { pid: Option<i32>, application: Option<String> },
    #[error("{}", .0.trouble.what)]
    Lost(Box<LostSlot>),
    #[error("{what}")]
    Lasting { what: String, advice: String },
    /// The slot is older than its publication, or that is gone.
    #[error("{what}")]
    Unreadable { what: String },
}

impl Problem {
    pub(super) fn lasting(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Lasting { what: what.into(), advice: advice.into() }
    }

    /// Whether what is to be done depends on whose the slot is.
    pub(super) fn asks_whose(&self) -> bool {
        matches!(self, Self::Unreadable { .. })
    }

    /// With the advice that takes the names of the source's own.
    pub(super) fn of(self, config: &SourceConfig, whose: &Whose) -> Self {
        match self {
            Self::Unreadable { what } => Self::lasting(what, by_hand::anew(config, whose)),
            Self::Connect(_)
            | Self::Stream(_)
            | Self::Store(_)
            | Self::Prepare(_)
            | Self::Broken { .. }
            | Self::Busy { .. }
            | Self::Lost(_)
            | Self::Lasting { .. } => self,
        }
    }

    pub(super) fn slow(what: &'static str) -> Self {
        Self::Broken { what, reason: ReconnectReason::Timeout, source: None }
    }

    pub(super) fn silent() -> Self {
        Self::Broken {
            what: "the server has said nothing for too long",
            reason: ReconnectReason::Timeout,
            source: None,
        }
    }

    /// The error to end with if no session of this run has streamed yet.
    pub(super) fn fatal_at_start(&self) -> Option<SourceError> {
        match self {
            Self::Lasting { what, advice } => {
                Some(SourceError::Prerequisite { what: what.clone(), advice: advice.clone() })
            }
            Self::Lost(lost) => {
                let Trouble { what, advice } = lost.trouble.clone();
                Some(SourceError::Prerequisite { what, advice })
            }
            Self::Connect(error) if error.needs_a_person() => {
                Some(SourceError::Prerequisite { what: chain(self), advice: self.advice() })
            }
            Self::Store(error) if error.is_lasting() => {
                Some(SourceError::Prerequisite { what: chain(self), advice: self.advice() })
            }
            Self::Connect(_)
            | Self::Stream(_)
            | Self::Store(_)
            | Self::Prepare(_)
            | Self::Broken { .. }
            | Self::Unreadable { .. }
            | Self::Busy { .. } => None,
        }
    }

    /// What mends it.
    pub(super) fn advice(&self) -> String {
        match self {
            Self::Lasting { advice, .. } => advice.clone(),
            Self::Lost(lost) => lost.trouble.advice.clone(),
            Self::Connect(error) => error.advice(),
            Self::Store(error) if error.is_lasting() => "look at the directory that state.path names".to_owned(),
            Self::Prepare(error) => advice_of(&**error).unwrap_or_else(|| AGAIN.to_owned()),
            Self::Stream(error) => advice_of(error).unwrap_or_else(|| AGAIN.to_owned()),
            Self::Store(_) | Self::Broken { .. } | Self::Unreadable { .. } | Self::Busy { .. } => AGAIN.to_owned(),
        }
    }

    /// The class under which the reconnect is counted.
    pub(super) fn reason(&self) -> ReconnectReason {
        match self {
            Self::Connect(error) if error.sqlstate().is_some() => ReconnectReason::Refused,
            Self::Connect(_) => ReconnectReason::Connect,
            Self::Stream(StreamError::Server(_) | StreamError::Closed) => ReconnectReason::ServerClosed,
            Self::Stream(StreamError::Io(_)) => ReconnectReason::ConnectionLost,
            Self::Stream(StreamError::Malformed { .. } | StreamError::PublicationSkipped { .. }) => {
                ReconnectReason::Protocol
            }
            Self::Stream(StreamError::NotFinished) => ReconnectReason::Timeout,
            Self::Store(_) => ReconnectReason::Store,
            Self::Prepare(_) | Self::Lasting { .. } | Self::Unreadable { .. } => ReconnectReason::Refused,
            Self::Lost(_) => ReconnectReason::SlotLost,
            Self::Broken { reason, .. } => *reason,
            Self::Busy { .. } => ReconnectReason::SlotBusy,
        }
    }
}

/// What is to be done about what passes by itself.
const AGAIN: &str = "it is tried again by itself; if it goes on, the server's log says more";

/// What mends the cause of `error`, if that is one of the connection's or the server's that has its own advice.
fn advice_of(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(connect) = error.downcast_ref::<ConnectError>() {
            return Some(connect.advice());
        }
        let said = match error.downcast_ref::<tokio_postgres::Error>() {
            Some(client) => client.as_db_error().map(ServerError::from),
            // As a source it stands in the box it is kept in.
            None => {
                let boxed = error.downcast_ref::<Box<ServerError>>().map(|boxed| &**boxed);
                error.downcast_ref::<ServerError>().or(boxed).cloned()
            }
        };
        if let Some(said) = said {
            return said.advice().map(str::to_owned);
        }
        next = error.source();
    }
    None
}

impl From<Trouble> for Problem {
    fn from(Trouble { what, advice }: Trouble) -> Self {
        Self::Lasting { what, advice }
    }
}

impl From<PrepareError> for Problem {
    fn from(error: PrepareError) -> Self {
        match error {
            PrepareError::Lasting { what, advice } => Self::Lasting { what, advice },
            PrepareError::Unpublished { what, .. } => Self::Unreadable { what },
            PrepareError::Lost(lost) => Self::Lost(lost),
            PrepareError::Busy { pid, application_name } => Self::Busy { pid, application: application_name },
            PrepareError::Passing(passing) => Self::Prepare(Box::new(passing)),
        }
    }
}

impl From<StreamError> for Problem {
    fn from(error: StreamError) -> Self {
        // The publication is gone, or younger than a change that is to be decoded: Postgres looks it up as it was then. Up
        // to 17 that is error 42704; from 18 on a notice, with the changes left out. No later try gets past that change.
        if error.sqlstate() == Some("42704") || matches!(error, StreamError::PublicationSkipped { .. }) {
            let what = "the publication is gone or was made anew after the slot, which cannot be read past that";
            return Self::Unreadable { what: format!("{what}: {}", chain(&error)) };
        }
        Self::Stream(error)
    }
}

impl From<DecodeError> for Problem {
    fn from(error: DecodeError) -> Self {
        let what = "could not decode the stream";
        Self::Broken { what, reason: ReconnectReason::Protocol, source: Some(Box::new(error)) }
    }
}

impl From<IntakeError> for Problem {
    fn from(error: IntakeError) -> Self {
        let what = "the stream does not hang together";
        Self::Broken { what, reason: ReconnectReason::Protocol, source: Some(Box::new(error)) }
    }
}

impl From<CatalogueError> for Problem {
    fn from(error: CatalogueError) -> Self {
        let what = "could not look up a table in the catalogue";
        Self::Broken { what, reason: ReconnectReason::ConnectionLost, source: Some(Box::new(error)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::slot::Passing;

    fn said(code: &str) -> ServerError {
        ServerError { code: code.to_owned(), ..ServerError::default() }
    }

    #[test]
    fn advice_follows_the_error_however_deep_it_is() {
        let connect = || ConnectError::from(StreamError::Server(Box::new(said("28P01"))));
        for (problem, expected) in [
            (Problem::Connect(connect()), "password"),
            (Problem::Prepare(Box::new(PrepareError::Passing(Passing::Connect(connect())))), "password"),
            (Problem::Prepare(Box::new(said("25006"))), "primary"),
            (Problem::Stream(StreamError::Server(Box::new(said("53400")))), "max_replication_slots"),
            (Problem::Stream(StreamError::Server(Box::new(said("XX000")))), AGAIN),
            (Problem::Stream(StreamError::Closed), AGAIN),
            (Problem::silent(), AGAIN),
        ] {
            let advice = problem.advice();
            assert!(advice.contains(expected), "{problem:?}: {advice}");
            assert_eq!(advice.contains("password"), expected == "password", "{problem:?}: {advice}");
        }
    }
}

//! Why a source's slot or publication is not ready, sorted by who has to act.

use std::fmt;
use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::unseen::grant;
use crate::change::Lsn;
use crate::fault::chain;
use crate::source::connection::ConnectError;
use crate::view::Trouble;

/// How long a statement may take before it is given up.
pub(super) const STATEMENT_LIMIT: Duration = Duration::from_secs(30);

/// A fault of the configuration that only the database could show. The database may come to fit, while walhook runs too: a
/// table is made, gets a key, a column or an identity, or takes its name back from a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanFault {
    /// Key in the configuration, `sink.orders.tables`.
    pub place: String,
    /// What is wrong with it, and what to do.
    pub reason: String,
    /// SQL that mends it, if SQL does.
    pub sql: Option<String>,
}

impl PlanFault {
    /// What a person sees of it while it holds up the one table and nothing else.
    pub(crate) fn trouble(&self) -> Trouble {
        let advice = self.sql.clone().unwrap_or_else(|| "mend the database or the configuration".to_owned());
        let what = format!("{}: {}; until that is mended nothing of it is captured", self.place, self.reason);
        Trouble { what, advice }
    }
}

impl fmt::Display for PlanFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)?;
        self.sql.as_ref().map_or(Ok(()), |sql| write!(f, ": {sql}"))
    }
}

/// A slot that can never be read on: the server has given it up, or it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostSlot {
    /// Everything before was confirmed to it; `None`: nobody knows, for it is gone.
    pub confirmed: Option<Lsn>,
    /// `wal_removed`, `rows_removed`, `wal_level_insufficient` or `idle_timeout` as the server has it, or `dropped`.
    pub why: String,
    /// What a person sees of it.
    pub trouble: Trouble,
}

impl LostSlot {
    /// One that is gone.
    pub fn dropped(confirmed: Option<Lsn>, trouble: Trouble) -> Self {
        Self { confirmed, why: "dropped".to_owned(), trouble }
    }
}

/// A publication and slot could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A person has to change something in the database or its settings first.
    #[error("{what}")]
    Lasting {
        /// What is wrong.
        what: String,
        /// What mends it, SQL where SQL does.
        advice: String,
    },
    /// The slot is there and its publication is not. What is to be done depends on whose it is, which the store knows.
    #[error("{what}")]
    Unpublished {
        /// What is wrong.
        what: String,
        /// What mends it where the slot may be another reader's.
        advice: String,
    },
    /// The slot is lost, and changes with it.
    #[error("{}", .0.trouble.what)]
    Lost(Box<LostSlot>),
    /// Another session reads the slot.
    #[error("the slot is being read by another session (pid {}, application {})", shown(.pid), shown(.application_name))]
    Busy {
        /// Its backend, if the server says.
        pid: Option<i32>,
        /// Its `application_name`, if it has one we may see.
        application_name: Option<String>,
    },
    /// Worth another try.
    #[error(transparent)]
    Passing(#[from] Passing),
}

/// What may be gone at the next try.
#[derive(Debug, thiserror::Error)]
pub enum Passing {
    /// A statement failed.
    #[error("could not {doing}")]
    Query {
        /// Which, in words.
        doing: &'static str,
        /// The server's or the connection's error.
        source: tokio_postgres::Error,
    },
    /// A statement took too long.
    #[error("could not {doing} within {} s", STATEMENT_LIMIT.as_secs())]
    Timeout {
        /// Which, in words.
        doing: &'static str,
    },
    /// The server is a standby, and the slot is read where writes are made.
    #[error("the server is a standby, and {0}")]
    Standby(&'static str),
    /// What was found before is true no more.
    #[error("{0}; it is looked at again")]
    Changed(&'static str),
    /// The connection for making the slot could not be opened.
    #[error("could not open a second connection for making the slot")]
    Connect(#[source] ConnectError),
    /// The server's answer was not of the shape asked for.
    #[error("could not understand the server's answer to {doing}")]
    Answer {
        /// The question.
        doing: &'static str,
    },
}

impl PrepareError {
    /// What a person sees of it where it does not end the stream.
    pub(crate) fn into_trouble(self) -> Trouble {
        let advice = "it is tried again by itself; what locks a table is in pg_locks";
        match self {
            Self::Lasting { what, advice } | Self::Unpublished { what, advice } => Trouble { what, advice },
            Self::Lost(lost) => lost.trouble,
            Self::Busy { .. } | Self::Passing(_) => Trouble { what: chain(&self), advice: advice.to_owned() },
        }
    }

    /// The server refused a statement for want of a privilege.
    pub(crate) fn is_refusal(&self) -> bool {
        self.refusal().is_some()
    }

    pub(super) fn refusal(&self) -> Option<(&'static str, &str)> {
        let Self::Passing(Passing::Query { doing, source }) = self else { return None };
        let server = source.as_db_error().filter(|server| *server.code() == SqlState::INSUFFICIENT_PRIVILEGE)?;
        Some((doing, server.message()))
    }

    /// Names the missing grant, for a read that walhook cannot do without.
    pub(crate) fn with_grant(self, role: &str) -> Self {
        match self.refusal() {
            Some((doing, said)) => Self::lasting(format!("could not {doing}: {said}"), grant(said, role)),
            None => self,
        }
    }

    pub(super) fn lasting(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Lasting { what: what.into(), advice: advice.into() }
    }
}

/// Waits for a statement, but not for ever, and sorts its failure.
pub(super) async fn bounded<T>(
    doing: &'static str,
    statement: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, PrepareError> {
    match tokio::time::timeout(STATEMENT_LIMIT, statement).await {
        Ok(done) => done.map_err(|error| classify(doing, error)),
        Err(_) => Err(Passing::Timeout { doing }.into()),
    }
}

/// A row that does not have the shape that was asked for, as a pooler, a fork or a newer server may answer.
pub(super) fn misread(doing: &'static str) -> impl Fn(tokio_postgres::Error) -> PrepareError {
    move |source| Passing::Query { doing, source }.into()
}

/// Sorts a server's error by its SQLSTATE. A missing privilege stays [`Passing::Query`]: only the caller knows the grants.
pub(super) fn classify(doing: &'static str, error: tokio_postgres::Error) -> PrepareError {
    let Some(server) = error.as_db_error() else { return Passing::Query { doing, source: error }.into() };
    let code = server.code();
    if *code == SqlState::OBJECT_IN_USE {
        return PrepareError::Busy { pid: None, application_name: None };
    }
    Passing::Query { doing, source: error }.into()
}

/// Why the server makes no slot, if it has no place for one; 55000 where the limit is 0.
pub(super) fn no_place(error: &tokio_postgres::Error) -> Option<PrepareError> {
    let server = error.as_db_error()?;
    let limits = [SqlState::CONFIGURATION_LIMIT_EXCEEDED, SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE];
    limits.contains(server.code()).then(|| {
        let what = format!("could not make the replication slot: {}", server.message());
        let advice = "raise max_replication_slots and restart the server, which ends every session. A slot that nobody reads \
                      may be of a reader that is only stopped: drop none before its owner agrees";
        PrepareError::lasting(what, advice)
    })
}

fn shown<T: fmt::Display>(value: &Option<T>) -> String {
    value.as_ref().map_or_else(|| "unknown".to_owned(), T::to_string)
}

//! Why a connection could not be made, or ended: what the server said, what a person can do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::refusal;
use super::unreached;
use crate::address::TargetSession;
use crate::source::wire::{Cursor, WireError};
use crate::tls_fault::{Peer, TlsFault};

/// What the server said in an ErrorResponse or NoticeResponse.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("{severity}: {message} (SQLSTATE {code}){}{}", labelled("; detail: ", .detail), labelled("; hint: ", .hint))]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `PANIC`, `WARNING`, …, never translated.
    pub severity: String,
    /// SQLSTATE, five characters.
    pub code: String,
    /// The message, in the server's language.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What the server suggests.
    pub hint: Option<String>,
    /// The function of the server that raised it, which no language translates.
    pub routine: Option<String>,
}

fn labelled(label: &str, text: &Option<String>) -> String {
    text.as_ref().map_or_else(String::new, |text| format!("{label}{text}"))
}

impl ServerError {
    /// Reads the fields of an ErrorResponse or NoticeResponse (manual page "Error and Notice Message Fields").
    pub(super) fn parse(body: &[u8]) -> Result<Self, WireError> {
        let mut cursor = Cursor::new(body);
        let mut error = Self::default();
        loop {
            let field = cursor.u8()?;
            if field == 0 {
                return Ok(error);
            }
            let text = String::from_utf8_lossy(cursor.cstr()?).into_owned();
            match field {
                b'S' if error.severity.is_empty() => error.severity = text,
                b'V' => error.severity = text,
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                b'R' => error.routine = Some(text),
                _ => {}
            }
        }
    }

    /// What to do about it where it ends a statement and not a login, if that has its own advice.
    pub fn advice(&self) -> Option<&'static str> {
        refusal::of_statement(self).map(|meaning| meaning.advice)
    }

    pub(super) fn is_raised_by(&self, routine: &str) -> bool {
        self.routine.as_deref() == Some(routine)
    }

    /// Whether `words` stand in the message or the detail.
    pub(super) fn says(&self, words: &str) -> bool {
        self.message.contains(words) || self.detail.as_deref().is_some_and(|detail| detail.contains(words))
    }
}

impl From<&tokio_postgres::error::DbError> for ServerError {
    fn from(error: &tokio_postgres::error::DbError) -> Self {
        Self {
            severity: error.severity().to_owned(),
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
            routine: error.routine().map(str::to_owned),
        }
    }
}

/// Why a session could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No address for the name.
    #[error("could not find the address of {host}")]
    Resolve {
        /// Name.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// No connection.
    #[error("could not reach {host}")]
    Reach {
        /// Server.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// Neither yes nor no.
    #[error("{host} did not let us in within {} s (connect_timeout)", .limit.as_secs())]
    Timeout {
        /// Server.
        host: String,
        /// The bound.
        limit: Duration,
    },
    /// No TLS there, and `sslmode` insists on it.
    #[error("{host} does not offer TLS, on which sslmode insists")]
    TlsRefused {
        /// Server.
        host: String,
    },
    /// It took the connection and closed it before anybody was logged in.
    #[error("{host} took the connection and closed it {when}")]
    Closed {
        /// Server.
        host: String,
        /// At which step, as the end of a sentence.
        when: &'static str,
    },
    /// Another service listens there.
    #[error("what answers at {host} is not Postgres: it speaks {speaks}")]
    NotPostgres {
        /// Server.
        host: String,
        /// What it speaks, as far as that can be told.
        speaks: &'static str,
    },
    /// A certificate or key file is of no use.
    #[error("could not use {path} for TLS")]
    TlsFile {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The TLS settings do not fit together.
    #[error("the TLS settings of the address cannot be used")]
    TlsSettings {
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The certificate is someone else's.
    #[error("the server's certificate is not for {host}")]
    TlsName {
        /// Server.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// Nobody we trust vouches for the certificate.
    #[error("no authority in sslrootcert vouches for the certificate of {host}")]
    TlsIssuer {
        /// Server.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// TLS failed otherwise.
    #[error("the TLS handshake with {host} failed: {}", .fault.what())]
    Tls {
        /// Server.
        host: String,
        /// In what way.
        fault: TlsFault,
        /// Why.
        source: io::Error,
    },
    /// The server said no.
    #[error("{}", refusal::meaning(.source).what)]
    Server {
        /// What it said.
        source: Box<ServerError>,
    },
    /// pg_hba.conf lets nobody in who comes like this, and TLS is no way out: it was tried, or the server has none.
    #[error("{}", refusal::HBA.what)]
    NoEntry {
        /// What it said.
        source: Box<ServerError>,
        /// The server offers TLS.
        has_tls: bool,
    },
    /// `require_auth` is not met.
    #[error("require_auth does not allow what the server asks for: {asked}")]
    RequireAuth {
        /// The method, or that there is none.
        asked: &'static str,
    },
    /// What would be sent could be read, or taken by somebody else, on the way.
    #[error("{host} asks for {asked}, and the way there is neither on this machine nor verified")]
    OpenLink {
        /// Server.
        host: String,
        /// The method.
        asked: &'static str,
    },
    /// The server wants a password.
    #[error("the server asks for a password and the address has none")]
    PasswordMissing,
    /// The server wants something else.
    #[error("the server asks for {method}, which is not supported")]
    Method {
        /// What.
        method: &'static str,
    },
    /// The exchange of proofs failed.
    #[error("the server could not prove that it knows the password too")]
    Scram {
        /// Why.
        source: io::Error,
    },
    /// `channel_binding=require` cannot be met.
    #[error("channel_binding=require, but {0}")]
    ChannelBinding(&'static str),
    /// A session option did not take.
    #[error("the session has {name} = {found:?} where {wanted:?} was asked for")]
    SessionOption {
        /// Which.
        name: &'static str,
        /// What it must be.
        wanted: &'static str,
        /// What it is.
        found: String,
    },
    /// `target_session_attrs` is not met.
    #[error("the server does not meet target_session_attrs={}", match .0 {
        TargetSession::Any => "any",
        TargetSession::ReadWrite => "read-write: it is read-only",
        TargetSession::Primary => "primary: it is a standby",
    })]
    Unsuitable(TargetSession),
    /// The connection broke while entering.
    #[error("the connection broke during login")]
    Broken(#[source] StreamError),
    /// The SQL client failed.
    #[error("the SQL session could not be opened")]
    Sql(#[source] tokio_postgres::Error),
}

impl From<StreamError> for ConnectError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Server(source) => Self::Server { source },
            StreamError::Closed
            | StreamError::Io(_)
            | StreamError::Malformed { .. }
            | StreamError::PublicationSkipped { .. }
            | StreamError::NotFinished => Self::Broken(error),
        }
    }
}

impl From<tokio_postgres::Error> for ConnectError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(db) => StreamError::Server(Box::new(ServerError::from(db))).into(),
            // The client has no name for this; a test holds it to the text.
            None if std::error::Error::source(&error).is_some_and(|why| why.to_string() == "password missing") => {
                Self::PasswordMissing
            }
            None if error.is_closed() => Self::Broken(StreamError::Closed),
            None => unreached::of_client(error),
        }
    }
}

impl ConnectError {
    /// What the server gave as SQLSTATE.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server { source, .. } | Self::NoEntry { source, .. } => Some(&source.code),
            Self::Broken(error) => error.sqlstate(),
            Self::Sql(error) => error.code().map(tokio_postgres::error::SqlState::code),
            Self::Resolve { .. } | Self::Reach { .. } | Self::Timeout { .. } | Self::TlsRefused { .. } => None,
            Self::TlsFile { .. } | Self::TlsSettings { .. } | Self::TlsName { .. } | Self::TlsIssuer { .. } => None,
            Self::Tls { .. } | Self::PasswordMissing | Self::Method { .. } | Self::Scram { .. } => None,
            Self::RequireAuth { .. } | Self::OpenLink { .. } => None,
            Self::ChannelBinding(_) | Self::SessionOption { .. } | Self::Unsuitable(_) => None,
            Self::Closed { .. } | Self::NotPostgres { .. } => None,
        }
    }

    /// What to do about it, which follows from what it is.
    pub fn advice(&self) -> String {
        let said = match self {
            Self::Server { source } => refusal::meaning(source).advice,
            Self::NoEntry { has_tls: true, .. } => refusal::HBA.advice,
            Self::NoEntry { has_tls: false, .. } => refusal::HBA_WITHOUT_TLS,
            Self::RequireAuth { .. } => {
                "have an entry of pg_hba.conf for this role with a method that require_auth names (scram-sha-256), with the role's password \
                 set under password_encryption = 'scram-sha-256'; a server that asks otherwise of a sudden may be somebody else's"
            }
            Self::OpenLink { .. } => {
                "verify the server (sslmode=verify-full with sslrootcert=FILE or sslrootcert=system), or have it ask for scram-sha-256, \
                 which gives nothing away; on a network that you trust, require_auth=md5 or require_auth=password in the source's url \
                 allows it"
            }
            Self::Resolve { .. } => {
                "correct the host in the source's url, or mend name resolution on this machine (getent hosts NAME)"
            }
            Self::Reach { source, .. } => unreached::advice(source),
            Self::Timeout { .. } => {
                "look whether the server runs and whether a firewall on the way drops packets; a server that is only slow may get a \
                 larger connect_timeout"
            }
            Self::Closed { .. } | Self::Broken(StreamError::Closed) => unreached::CLOSED,
            Self::Broken(StreamError::Io(source)) => of_broken(source),
            Self::Broken(StreamError::Malformed { .. }) | Self::NotPostgres { .. } => {
                "correct host and port in the source's url: Postgres mostly listens at port 5432"
            }
            Self::Broken(StreamError::Server(source)) => refusal::meaning(source).advice,
            Self::TlsRefused { .. } => {
                "turn ssl on in the server (ssl_cert_file, ssl_key_file, ssl = on, then SELECT pg_reload_conf()); if nobody can listen on \
                 the way there, sslmode=prefer in the source's url goes without"
            }
            Self::TlsFile { .. } => {
                "correct sslrootcert, sslcert or sslkey in the source's url, or put the file there: PEM, readable for walhook's user, the \
                 key not encrypted"
            }
            Self::TlsSettings { .. } => {
                "correct sslcert and sslkey in the source's url: the key must be the certificate's"
            }
            Self::TlsName { .. } => {
                "put the name that is in the certificate into host (and the IP address into hostaddr if that name leads elsewhere), or \
                 reissue the certificate with this host among its subject alternative names; sslmode=verify-ca does not look at names"
            }
            Self::TlsIssuer { source, .. } => TlsFault::of(source).unwrap_or(TlsFault::Other).advice(Peer::Database),
            Self::Tls { fault, .. } => fault.advice(Peer::Database),
            Self::PasswordMissing => {
                "write the password into the source's url, as ${NAME} from the environment: postgres://USER:${NAME}@HOST/DATABASE; if it \
                 is there, the variable is set to nothing"
            }
            Self::Method { .. } => {
                "have an entry of pg_hba.conf for this role with the method scram-sha-256, or cert with sslcert and sslkey in the \
                 source's url"
            }
            Self::Scram { .. } => {
                "somebody may stand between walhook and the server: do not send the password elsewhere before it is clear who answers; \
                 sslmode=verify-full in the source's url tells the server from others"
            }
            Self::ChannelBinding(_) => {
                "set password_encryption = 'scram-sha-256' on the server, set the role's password anew and use TLS; channel_binding=prefer \
                 in the source's url goes without where it must"
            }
            Self::SessionOption { .. } => {
                "a pooler in between drops startup options, or options in the source's url set it otherwise: take it out of options, and \
                 write the database's own host and port into the url, as its provider calls the direct address"
            }
            Self::Unsuitable(_) => {
                "write the primary's host into the source's url, several with commas between them, of which the first that suits is \
                 taken; or take target_session_attrs out"
            }
            Self::Broken(StreamError::PublicationSkipped { .. } | StreamError::NotFinished) | Self::Sql(_) => {
                "the server's log says more"
            }
        };
        said.to_owned()
    }

    /// Whether trying again is of no use before a person has changed the address, the role or the server's rules.
    pub fn needs_a_person(&self) -> bool {
        match self {
            Self::Server { source, .. } => refusal::meaning(source).lasts,
            Self::Tls { fault, .. } => fault.is_lasting(),
            Self::TlsRefused { .. } | Self::TlsFile { .. } | Self::TlsSettings { .. } | Self::TlsName { .. } => true,
            Self::TlsIssuer { .. } | Self::PasswordMissing | Self::Method { .. } | Self::Scram { .. } => true,
            Self::NoEntry { .. } | Self::RequireAuth { .. } | Self::OpenLink { .. } => true,
            Self::ChannelBinding(_) | Self::SessionOption { .. } => true,
            Self::Resolve { .. } | Self::Reach { .. } | Self::Timeout { .. } => false,
            Self::Closed { .. } | Self::NotPostgres { .. } => false,
            Self::Unsuitable(_) | Self::Broken(_) | Self::Sql(_) => false,
        }
    }

    /// Whether the same server may let us in with, or without, TLS.
    pub(super) fn other_encryption_may_help(&self) -> bool {
        matches!(self, Self::Tls { .. } | Self::TlsIssuer { .. } | Self::TlsName { .. } | Self::Closed { .. })
            || self.sqlstate() == Some("28000")
    }

    /// Whether another server of the list would not do better: it knows the same users and databases.
    pub(super) fn ends_the_search(&self) -> bool {
        match self {
            // Starting up or shutting down, or too many connections.
            Self::Server { source, .. } => !source.code.starts_with("57P") && source.code != "53300",
            Self::PasswordMissing | Self::TlsFile { .. } | Self::TlsSettings { .. } | Self::NoEntry { .. } => true,
            Self::Resolve { .. } | Self::Reach { .. } | Self::Timeout { .. } | Self::TlsRefused { .. } => false,
            Self::TlsName { .. } | Self::TlsIssuer { .. } | Self::Tls { .. } | Self::Method { .. } => false,
            Self::Closed { .. } | Self::NotPostgres { .. } => false,
            Self::Scram { .. } | Self::ChannelBinding(_) | Self::SessionOption { .. } => false,
            Self::RequireAuth { .. } | Self::OpenLink { .. } => false,
            Self::Unsuitable(_) | Self::Broken(_) | Self::Sql(_) => false,
        }
    }
}

/// The connection broke during login: the other side may have had something against our certificate.
fn of_broken(source: &io::Error) -> &'static str {
    TlsFault::of(source).map_or_else(|| unreached::advice(source), |fault| fault.advice(Peer::Database))
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The server said so.
    #[error("the server ended the command")]
    Server(#[source] Box<ServerError>),
    /// The connection was closed without a word, as a server does that heard nothing for `wal_sender_timeout`.
    #[error("the server closed the connection")]
    Closed,
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[source] io::Error),
    /// Bytes that are not the protocol's.
    #[error("the server sent something that is not the replication protocol: {what}")]
    Malformed {
        /// What.
        what: &'static str,
    },
    /// The server does not find the publication, and from here on leaves out changes (18 and later; before, it is an
    /// error). Nothing that came after the notice is handed out.
    #[error("the server leaves out changes, because it does not find the publication: {message}")]
    PublicationSkipped {
        /// The server's notice.
        message: String,
    },
    /// The server did not end the stream in time.
    #[error("the server did not end the stream within 5 s")]
    NotFinished,
}

impl StreamError {
    /// What the server gave as SQLSTATE.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server(error) => Some(&error.code),
            Self::Closed | Self::Io(_) | Self::Malformed { .. } => None,
            Self::PublicationSkipped { .. } | Self::NotFinished => None,
        }
    }

    /// Whether trying again is of no use before a person has changed the address, the role or the server's rules.
    pub fn needs_a_person(&self) -> bool {
        self.sqlstate().is_some_and(is_for_a_person)
    }
}

impl From<WireError> for StreamError {
    fn from(_: WireError) -> Self {
        Self::Malformed { what: "a message that ends early" }
    }
}

/// Wrong password, no entry in pg_hba.conf, no such database, no privilege.
fn is_for_a_person(sqlstate: &str) -> bool {
    matches!(sqlstate, "28P01" | "28000" | "3D000" | "42501" | "08P01" | "0A000")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_read_field_by_field_and_unknown_fields_are_skipped() {
        let error = ServerError::parse(b"SFEHLER\0VERROR\0C42704\0Mno such slot\0Hmake one\0Zwhat\0\0").unwrap();
        assert_eq!(error.to_string(), "ERROR: no such slot (SQLSTATE 42704); hint: make one");
        assert!(ServerError::parse(b"SERROR\0C42704").is_err());
    }
}

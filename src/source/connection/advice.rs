//! What to do about a connection that could not be had, which follows from why. Pure.

use std::io;

use super::error::{ConnectError, StreamError};
use super::{refusal, unreached};
use crate::tls_fault::{CertificateFault, Peer, TlsFault};

/// What is said where nothing is known.
const LOG: &str = "the server's log says more";

const RESOLVE: &str =
    "correct the host in the source's url, or mend name resolution on this machine (getent hosts NAME)";
const TIMEOUT: &str = "look whether the server runs and whether a firewall on the way drops packets; a server that is only slow may get a \
     larger connect_timeout";
const ANOTHER_SERVICE: &str = "correct host and port in the source's url: Postgres mostly listens at port 5432";
const SESSION_OPTION: &str = "a pooler in between drops startup options, or options in the source's url set it otherwise: take it out of options, and \
     write the database's own host and port into the url, as its provider calls the direct address";
const UNSUITABLE: &str = "write the primary's host into the source's url, several with commas between them, of which the first that suits is \
     taken; or take target_session_attrs out";
const NO_TLS: &str = "turn ssl on in the server (ssl_cert_file, ssl_key_file, ssl = on, then SELECT pg_reload_conf()); if nobody can listen on \
     the way there, sslmode=prefer in the source's url goes without";
const TLS_FILE: &str = "correct sslrootcert, sslcert or sslkey in the source's url, or put the file there: PEM, readable for walhook's user, the \
     key not encrypted";
const TLS_SETTINGS: &str = "correct sslcert and sslkey in the source's url: the key must be the certificate's";
const TLS_NAME: &str = "put the name that is in the certificate into host (and the IP address into hostaddr if that name leads elsewhere), or \
     reissue the certificate with this host among its subject alternative names; sslmode=verify-ca does not look at names";
const NO_PASSWORD: &str = "write the password into the source's url, as ${NAME} from the environment: postgres://USER:${NAME}@HOST/DATABASE; if it \
     is there, the variable is set to nothing";
const METHOD: &str = "have an entry of pg_hba.conf for this role with the method scram-sha-256, or cert with sslcert and sslkey in the \
     source's url";
const SCRAM: &str = "somebody may stand between walhook and the server: do not send the password elsewhere before it is clear who answers; \
     sslmode=verify-full in the source's url tells the server from others";
const CHANNEL_BINDING: &str = "set password_encryption = 'scram-sha-256' on the server, set the role's password anew and use TLS; channel_binding=prefer \
     in the source's url goes without where it must";

impl ConnectError {
    /// What to do about it, which follows from what it is.
    pub fn advice(&self) -> String {
        let said = match self {
            Self::Server { source } | Self::Broken(StreamError::Server(source)) => refusal::meaning(source).advice,
            Self::Resolve { .. } => RESOLVE,
            Self::Reach { source, .. } => unreached::advice(source),
            Self::Timeout { .. } => TIMEOUT,
            Self::Closed { .. } | Self::Broken(StreamError::Closed) => unreached::CLOSED,
            Self::Broken(StreamError::Io(source)) => of_broken(source),
            Self::Broken(StreamError::Malformed { .. }) | Self::NotPostgres { .. } => ANOTHER_SERVICE,
            Self::TlsRefused { .. } => NO_TLS,
            Self::TlsFile { .. } => TLS_FILE,
            Self::TlsSettings { .. } => TLS_SETTINGS,
            Self::TlsName { .. } => TLS_NAME,
            Self::TlsIssuer { .. } => TlsFault::Certificate(CertificateFault::Issuer).advice(Peer::Database),
            Self::Tls { fault, .. } => fault.advice(Peer::Database),
            Self::PasswordMissing => NO_PASSWORD,
            Self::Method { .. } => METHOD,
            Self::Scram { .. } => SCRAM,
            Self::ChannelBinding(_) => CHANNEL_BINDING,
            Self::SessionOption { .. } => SESSION_OPTION,
            Self::Unsuitable(_) => UNSUITABLE,
            Self::Broken(StreamError::PublicationSkipped { .. } | StreamError::NotFinished) | Self::Sql(_) => LOG,
        };
        said.to_owned()
    }
}

/// The connection broke during login: the other side may have had something against our certificate.
fn of_broken(source: &io::Error) -> &'static str {
    TlsFault::of(source).map_or_else(|| unreached::advice(source), |fault| fault.advice(Peer::Database))
}

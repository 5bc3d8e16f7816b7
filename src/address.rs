//! Where a database is and as whom to speak: the addresses libpq understands.
//!
//! [`PgAddress::parse`] takes a URI (`postgres://user@host:5432/app?sslmode=verify-full`) or a string of `key=value` pairs,
//! with the meanings of the manual page "Database Connection Control Functions". It reads neither the environment nor any
//! file, so that what the configuration says is all there is; what libpq would look up there is asked for. A setting
//! that is not supported is refused, never ignored. Passwords appear in no output and no error.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use crate::pasted::{Blemish, blemish};

mod auth;
mod foreign;
mod host;
mod link;
mod settings;
#[cfg(test)]
mod tests;
mod text;

pub(crate) use auth::AuthMethod;
pub use auth::AuthMethods;
pub(crate) use host::name_fault;
pub(crate) use link::is_loopback;

/// A database's address.
#[derive(Clone, Debug)]
pub struct PgAddress {
    /// Servers, tried in order; at least one.
    pub hosts: Vec<Host>,
    /// Role.
    pub user: String,
    /// Its password.
    pub password: Option<SecretString>,
    /// Database; the user's name if none was given.
    pub dbname: String,
    /// How far the connection is protected.
    pub sslmode: SslMode,
    /// Whose certificates to trust.
    pub sslrootcert: Option<RootCert>,
    /// The client's certificate chain and key, PEM files.
    pub client_cert: Option<ClientCert>,
    /// Whether the password exchange is tied to the TLS session.
    pub channel_binding: ChannelBinding,
    /// By which methods the server may have us prove who we are; `None`: by any that walhook knows.
    pub require_auth: Option<AuthMethods>,
    /// `application_name`, as `pg_stat_activity` shows it.
    pub application_name: String,
    /// Bound on reaching and entering one server.
    pub connect_timeout: Duration,
    /// Further command line options of the session, such as `-c work_mem=64MB`.
    pub options: Option<String>,
    /// Which servers are good enough.
    pub target_session_attrs: TargetSession,
    /// When TCP gives up on a silent peer.
    pub keepalive: Keepalive,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// By TCP.
    Tcp {
        /// Name, as certificates have it, or IP address.
        name: String,
        /// IP address that is used without asking for the name's.
        address: Option<std::net::IpAddr>,
        /// Port.
        port: u16,
    },
    /// By the socket `.s.PGSQL.PORT` in a directory.
    Unix {
        /// The directory.
        directory: PathBuf,
        /// The number in the socket's name.
        port: u16,
    },
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { name, port, .. } if name.contains(':') => write!(f, "[{name}]:{port}"),
            Self::Tcp { name, port, .. } => write!(f, "{name}:{port}"),
            Self::Unix { directory, port } => write!(f, "{}/.s.PGSQL.{port}", directory.display()),
        }
    }
}

/// `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS only if the server refuses without.
    Allow,
    /// TLS if the server has it.
    Prefer,
    /// TLS; whoever answers is trusted, unless `sslrootcert` is given.
    Require,
    /// TLS with a certificate from a trusted authority.
    VerifyCa,
    /// That, and the certificate is for this host.
    VerifyFull,
}

/// `sslrootcert`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootCert {
    /// The machine's.
    System,
    /// A PEM file.
    File(PathBuf),
}

/// `sslcert` and `sslkey`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCert {
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key, not encrypted.
    pub key: PathBuf,
}

/// `channel_binding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// When both sides can.
    Prefer,
    /// Always; without it the connection fails.
    Require,
}

/// `target_session_attrs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSession {
    /// Any server.
    Any,
    /// One whose transactions may write.
    ReadWrite,
    /// One that is not in recovery.
    Primary,
}

/// `keepalives…` and `tcp_user_timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Whether to ask a silent peer for a sign of life.
    pub on: bool,
    /// After so much silence.
    pub idle: Duration,
    /// Again after so long.
    pub interval: Duration,
    /// So many times.
    pub count: u32,
    /// How long sent bytes may stay unacknowledged; `None` = as the system has it.
    pub user_timeout: Option<Duration>,
}

/// Why a text is not an address. Neither text nor values are repeated where they could hold a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The form is wrong.
    #[error("{0}")]
    Syntax(&'static str),
    /// It was copied with a character that does not show.
    #[error("the address {}", Blemish::Invisible(*.0))]
    Invisible(char),
    /// No such setting.
    #[error("{key} is not a connection setting{}", did_you_mean(.suggestion))]
    UnknownKey {
        /// As written.
        key: String,
        /// The nearest known one.
        suggestion: Option<&'static str>,
    },
    /// Another tool knows the setting.
    #[error("{key} is a setting of {whose} and not of the connection: {what}")]
    Foreign {
        /// As written.
        key: String,
        /// Whose.
        whose: &'static str,
        /// What to do.
        what: &'static str,
    },
    /// What stands where a host belongs is none; it is not repeated, since it may be a piece of the password.
    #[error("a host in the address {0} (in a URI, a password with : / ? # [ ] @ % must be percent-encoded)")]
    Host(&'static str),
    /// libpq knows the setting, walhook does not support it.
    #[error("the connection setting {key} is not supported: {why}")]
    Unsupported {
        /// Which.
        key: String,
        /// What to do.
        why: &'static str,
    },
    /// A value is not one of those allowed.
    #[error("{key} must be {expected}{}", not_this(.value))]
    Value {
        /// Which setting.
        key: &'static str,
        /// What it was.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// A setting is missing or contradicts another.
    #[error("{0}")]
    Conflict(&'static str),
    /// More than one of these.
    #[error("{}", joined(.0))]
    Several(Vec<Self>),
}

impl AddressError {
    /// Each by itself.
    pub fn each(&self) -> &[Self] {
        match self {
            Self::Several(all) => all,
            Self::Syntax(_)
            | Self::Invisible(_)
            | Self::UnknownKey { .. }
            | Self::Foreign { .. }
            | Self::Host(_)
            | Self::Unsupported { .. }
            | Self::Value { .. }
            | Self::Conflict(_) => std::slice::from_ref(self),
        }
    }
}

fn joined(all: &[AddressError]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The value, if it is a word: anything else may be settings run into one another, a password among them.
fn not_this(value: &str) -> String {
    let is_word = value.len() <= 20 && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if is_word { format!(", not {value:?}") } else { String::new() }
}

fn did_you_mean(suggestion: &Option<&'static str>) -> String {
    suggestion.map_or_else(String::new, |known| format!("; did you mean {known}?"))
}

/// An address without its password.
#[derive(Debug, PartialEq, Eq)]
pub enum Hidden {
    /// It has none.
    Nothing,
    /// A URI, in which a value is percent-encoded.
    InUri(String),
    /// `key=value` pairs, the placeholder in single quotes, between which `'` and `\` bear a `\`.
    InKeywords(String),
}

impl PgAddress {
    /// The address `text` with `placeholder` for its password, all else as it is written.
    ///
    /// # Errors
    /// As [`Self::parse`] for a wrong form.
    pub fn hide_password(text: &str, placeholder: &str) -> Result<Hidden, AddressError> {
        let text = text.trim();
        for scheme in ["postgres://", "postgresql://"] {
            let Some(rest) = text.strip_prefix(scheme) else { continue };
            let hidden = text::uri_without_password(rest, placeholder)?;
            return Ok(hidden.map_or(Hidden::Nothing, |rest| Hidden::InUri(format!("{scheme}{rest}"))));
        }
        Ok(text::keywords_without_password(text, placeholder)?.map_or(Hidden::Nothing, Hidden::InKeywords))
    }

    /// Reads a URI or `key=value` pairs.
    ///
    /// # Errors
    /// Says which setting is wrong and what it may be, without repeating secrets.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(AddressError::Syntax(
                "the address is empty, as a variable leaves it that is set to nothing: set it",
            ));
        }
        if let Some(Blemish::Invisible(c)) = blemish(text) {
            return Err(AddressError::Invisible(c));
        }
        let uri = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
        let pairs = match (uri, foreign::beginning(text)) {
            (Some(rest), _) => text::uri_pairs(rest)?,
            (None, Some(said)) => return Err(AddressError::Syntax(said)),
            (None, None) => text::keyword_pairs(text)?,
        };
        settings::address(&pairs)
    }

    /// A short form for logs and errors: user, hosts, database and sslmode, never a password.
    pub fn redacted(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for PgAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        write!(f, "postgres://{}@{}/{}?sslmode={}", self.user, hosts.join(","), self.dbname, self.sslmode.as_str())
    }
}

impl SslMode {
    /// As written in an address.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

//! What every session is set to, so that Postgres writes values the same way whatever the database's own settings are.

use super::error::ConnectError;
use crate::address::{PgAddress, TargetSession};

/// Option, what it is set to, and how the server shows it then. The formats are what `to_jsonb` gives with built-in
/// defaults; `extra_float_digits` above 0 gives the shortest text that reads back as the same number.
const OPTIONS: &[(&str, &str, &str)] = &[
    ("DateStyle", "ISO", "ISO"),
    ("IntervalStyle", "postgres", "postgres"),
    ("TimeZone", "UTC", "UTC"),
    ("extra_float_digits", "3", "3"),
    ("bytea_output", "hex", "hex"),
    // Names of relations and types are values too (regclass, regtype).
    ("search_path", "\"$user\",public", "\"$user\""),
    ("quote_all_identifiers", "off", "off"),
    // Names and comments in our own statements are constants in which a backslash is a backslash.
    ("standard_conforming_strings", "on", "on"),
    ("statement_timeout", "0", "0"),
    ("idle_in_transaction_session_timeout", "0", "0"),
    ("idle_session_timeout", "0", "0"),
    ("lock_timeout", "0", "0"),
    // Of a publication that is gone only a warning tells (18 and later).
    ("client_min_messages", "warning", "warning"),
];

/// Defaults of role, database or server that our own statements cannot live with. They are set by statements, because some
/// poolers leave startup options out. Before the first query: on a standby none runs as serializable.
const BEFORE: &[&str] = &[
    "SET default_transaction_isolation = 'read committed'",
    // Such a transaction waits until it is safe from all that run.
    "SET default_transaction_deferrable = off",
    // Where the reader of the slot is taken for a synchronous standby, our own commits would wait for ourselves.
    "SET synchronous_commit = local",
    "SET row_security = on",
    // Money is written by it, `$1.00` or `1,00 €`. Not an option of the startup message, which poolers leave out: databases
    // often have another default.
    "SET lc_monetary = 'C'",
    // A question that may be refused would end the session.
    "SET exit_on_error = off",
];
/// The attributes of the role that logs in are those that slots are used with.
const OWN_ROLE: &str = "SET ROLE NONE";

/// The `SET`s that come before the question.
pub(super) fn before(address: &PgAddress) -> Vec<&'static str> {
    let names_role = address.options.as_ref().is_some_and(|theirs| theirs.contains("role="));
    BEFORE.iter().copied().chain((!names_role).then_some(OWN_ROLE)).collect()
}

/// Those that come after it: whether the session may write by default is one of its answers, and the last limit is one of
/// 17 and later. It would end the stream in the midst of a large transaction, too.
pub(super) fn after(version: u32) -> Vec<&'static str> {
    let has_limit = version >= 170_000;
    let limit = has_limit.then_some("SET transaction_timeout = 0");
    std::iter::once("SET default_transaction_read_only = off").chain(limit).collect()
}

/// Lets the statements of a SQL session find nothing but what Postgres itself has: a function or an operator of somebody
/// else's, named like one of ours and nearer to its arguments' types, would run as our role. The session of the stream
/// keeps the path that its values are written by.
pub(super) const CATALOGUE_ONLY: &str = "SET search_path = pg_catalog";

/// A walsender that never gives up, or does so late, would not send the sign of life in time by which the source tells
/// a silent server from an idle one. Unlike the others this one is the address's to override.
const SENDER_TIMEOUT: &str = "-c wal_sender_timeout=60s";

/// The `options` of the startup message: ours, then the address's own.
pub(super) fn options(address: &PgAddress) -> String {
    with_theirs(address, set())
}

/// The same for the session of the stream.
pub(super) fn stream_options(address: &PgAddress) -> String {
    with_theirs(address, format!("{} {SENDER_TIMEOUT}", set()))
}

/// The options that every session of ours asks for.
pub(super) fn ours() -> impl Iterator<Item = &'static str> {
    OPTIONS.iter().map(|(name, ..)| *name).chain(std::iter::once("wal_sender_timeout"))
}

fn set() -> String {
    OPTIONS.iter().map(|(name, value, _)| format!("-c {name}={value}")).collect::<Vec<_>>().join(" ")
}

fn with_theirs(address: &PgAddress, ours: String) -> String {
    match &address.options {
        Some(theirs) => format!("{ours} {theirs}"),
        None => ours,
    }
}

/// A query for what [`check`] wants to know, one row.
pub(super) fn question() -> String {
    let settings: Vec<String> =
        OPTIONS.iter().map(|(name, ..)| format!("pg_catalog.current_setting('{name}')")).collect();
    format!(
        "SELECT {}, pg_catalog.current_setting('transaction_read_only'), pg_catalog.pg_is_in_recovery()::pg_catalog.text, \
         pg_catalog.current_setting('server_version_num')",
        settings.join(", ")
    )
}

/// Whether the options took, as they do not behind some poolers, and whether the server is one we look for; its version.
pub(super) fn check<'a>(
    address: &PgAddress,
    mut answer: impl Iterator<Item = Option<&'a str>>,
) -> Result<u32, ConnectError> {
    for (name, _, wanted) in OPTIONS {
        let found = answer.next().flatten().unwrap_or_default();
        // DateStyle is followed by the order in which input is read: `ISO, MDY`. A path is a list too.
        if found.split(',').next() != Some(wanted) {
            return Err(ConnectError::SessionOption { name, wanted, found: found.to_owned() });
        }
    }
    let read_only = answer.next().flatten() == Some("on");
    let standby = answer.next().flatten() == Some("true");
    let suits = match address.target_session_attrs {
        TargetSession::Any => true,
        TargetSession::ReadWrite => !read_only && !standby,
        TargetSession::Primary => !standby,
    };
    let version = answer.next().flatten().and_then(|version| version.parse().ok()).unwrap_or_default();
    if suits { Ok(version) } else { Err(ConnectError::Unsuitable(address.target_session_attrs)) }
}

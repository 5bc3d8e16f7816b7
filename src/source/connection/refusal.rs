//! What it means that a server, or a pooler before it, does not let us in, and what to do. Pure.
//!
//! Told apart by SQLSTATE. Where one code has several causes, by what no `lc_messages` translates: the function of the server
//! that raised it, and names of files and settings in the message; by the English words only where nothing else is left, and
//! then what is said of the rest of the code is true as well. Poolers speak English only.

use super::error::ServerError;

/// What a refusal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meaning {
    /// What is wrong.
    pub(super) what: &'static str,
    /// What to do.
    pub(super) advice: &'static str,
    /// Whether waiting is of no use: a person must change the address, the role or the server's rules.
    pub(super) lasts: bool,
}

const fn lasting(what: &'static str, advice: &'static str) -> Meaning {
    Meaning { what, advice, lasts: true }
}

const fn passing(what: &'static str, advice: &'static str) -> Meaning {
    Meaning { what, advice, lasts: false }
}

const POOLER: Meaning = lasting(
    "a pooler answers that does not pass on what replication needs",
    "write the database's own host and port into the source's url, as its provider calls the direct address (Postgres itself mostly \
     has port 5432, poolers have 6432 or 6543)",
);
const TENANT: Meaning = lasting(
    "a pooler of many databases answers, and does not know this user",
    "write the database's own host and port into the source's url, as its provider calls the direct address; there the user is \
     the role's name alone",
);
const POOLER_IS_FULL: Meaning = passing(
    "a pooler answers, and has no connection left",
    "write the database's own host and port into the source's url: replication through a pooler takes one of its connections for ever",
);
const BEHIND_POOLER: Meaning = passing(
    "a pooler answers, and cannot reach the database behind it",
    "look at the pooler's log, or write the database's own host and port into the source's url",
);
const POOLER_KNOWS_NOT: Meaning = lasting(
    "a pooler answers, and does not know this user or database",
    "write the database's own host and port into the source's url, or make user and database known to the pooler",
);
const PASSWORD: Meaning = lasting(
    "the server does not accept the password, or has no such role: it does not say which",
    "check user and password in the source's url; there the characters @ : / ? # [ ] % of a password are percent-encoded. A password whose time is over is \
     refused alike (VALID UNTIL: SELECT rolname, rolvaliduntil FROM pg_roles)",
);
const HBA_PLAIN: Meaning = lasting(
    "pg_hba.conf has no entry that lets this role into this database from here without TLS",
    "write sslmode=require into the source's url (better verify-full with sslrootcert)",
);
pub(super) const HBA: Meaning = lasting(
    "pg_hba.conf has no entry that lets this role into this database from here, or one that rejects it",
    "add a line above those that reject, with the database's own name (`replication` and physical replication are another thing): \
     hostssl DATABASE ROLE ADDRESS scram-sha-256, then SELECT pg_reload_conf()",
);
/// The same where a line for TLS alone would let in nobody.
pub(super) const HBA_WITHOUT_TLS: &str = "add a line above those that reject, with the database's own name (`replication` and physical replication are another thing): \
     host DATABASE ROLE ADDRESS scram-sha-256, then SELECT pg_reload_conf(). The server has no TLS (ssl is off), so a line of hostssl \
     does not count, and sslmode=require in the source's url would not do";
const REJECTED_PLAIN: Meaning = lasting(
    "pg_hba.conf has an entry that rejects this role here without TLS",
    "write sslmode=require into the source's url, if the entry is one for connections without TLS (hostnossl); else add a line above \
     it: hostssl DATABASE ROLE ADDRESS scram-sha-256, then SELECT pg_reload_conf()",
);
const NO_ROLE: Meaning = lasting(
    "the server has no such role",
    "check user in the source's url, or make the role: CREATE ROLE … LOGIN REPLICATION PASSWORD …",
);
const NO_LOGIN: Meaning = lasting("the role may not log in", "ALTER ROLE … LOGIN, for the role in the source's url");
const ROLE: Meaning = lasting(
    "the server has no such role, or it may not log in",
    "check user in the source's url; the role needs LOGIN and REPLICATION",
);
const CERTIFICATE: Meaning = lasting(
    "the server wants a certificate of the role's, and does not accept this one or got none",
    "write sslcert and sslkey into the source's url, a certificate whose common name is the role's name, of an authority in the \
     server's ssl_ca_file",
);
const PEER: Meaning = lasting(
    "the server lets in only the user of the operating system who has the role's name",
    "write host=localhost into the source's url and give a password, or have an entry of pg_hba.conf for the role with the method \
     scram-sha-256",
);
const NOT_LET_IN: Meaning = lasting(
    "the server does not let this user in from here",
    "pg_hba.conf needs an entry for user, database and address, the role needs LOGIN, or sslmode in the source's url must be \
     another: the server's log says which",
);
const NO_DATABASE: Meaning = lasting(
    "the server has no such database",
    "check the database's name in the source's url; without one it is the role's name",
);
const NO_CONNECT: Meaning =
    lasting("the role may not connect to this database", "GRANT CONNECT ON DATABASE … TO the role in the source's url");
const NO_REPLICATION: Meaning = lasting(
    "the role may not replicate",
    "ALTER ROLE … REPLICATION, for the role in the source's url (some providers have a role of their own to be granted for it)",
);
const PRIVILEGE: Meaning = lasting(
    "the role lacks a privilege",
    "the role in the source's url needs REPLICATION (ALTER ROLE … REPLICATION, or the provider's own grant of it) and CONNECT on the \
     database",
);
const OPTION: Meaning = lasting(
    "the server does not take an option of the address",
    "correct or take out what is named from options in the source's url",
);
const TOO_OLD: Meaning = lasting(
    "the server does not know a setting that Postgres has since 14",
    "walhook reads Postgres 14 and later: upgrade the server. Redshift, CockroachDB and YugabyteDB speak the same protocol and are another \
     thing",
);
const PRELOAD: Meaning = lasting(
    "the server cannot load a library that it is to load for new sessions",
    "have it installed, or take it out of session_preload_libraries and local_preload_libraries, of the role and the database too \
     (SELECT setdatabase, setrole, setconfig FROM pg_db_role_setting shows where it is set)",
);
const LOGIN_TRIGGER: Meaning = lasting(
    "a login trigger of the database does not let this session begin",
    "have its owner let walhook's role pass: SELECT evtname, evtfoid::regproc FROM pg_event_trigger WHERE evtevent = 'login' names it",
);
const WALSENDERS: Meaning = passing(
    "all of max_wal_senders are in use",
    "raise max_wal_senders (needs a restart of the server), or end a replication that nobody needs: \
     SELECT pid, application_name, state FROM pg_stat_replication",
);
const ROLE_LIMIT: Meaning = passing(
    "the role's CONNECTION LIMIT is used up",
    "raise it above what it is (SELECT rolname, rolconnlimit FROM pg_roles), ALTER ROLE … CONNECTION LIMIT …, or -1 for none: walhook has \
     up to four sessions for each source; another walhook of the same role counts too",
);
const DATABASE_LIMIT: Meaning = passing(
    "the database's CONNECTION LIMIT is used up",
    "raise it above what it is (SELECT datname, datconnlimit FROM pg_database), ALTER DATABASE … CONNECTION LIMIT …, or let applications hold fewer connections",
);
const RESERVED: Meaning = passing(
    "what is left of max_connections is reserved for others",
    "let applications hold fewer connections, or raise max_connections (needs a restart of the server)",
);
const FULL: Meaning = passing(
    "all of max_connections are in use",
    "let applications hold fewer connections, or raise max_connections (needs a restart of the server)",
);
const NO_ROOM: Meaning = passing(
    "the server has no connection left",
    "let applications hold fewer connections, or raise what the server names",
);
const NOT_YET: Meaning = passing(
    "the server is starting, stopping or recovering, and takes no connections yet",
    "nothing is to be done if it is on its way: walhook goes on when it takes connections; its log says how far it is",
);
const NO_HOT_STANDBY: Meaning = passing(
    "the server is a standby that takes no connections",
    "write the primary's host into the source's url, or set hot_standby = on on the standby",
);
const STOPPED: Meaning = passing(
    "the server is going down, or somebody ended the session",
    "nothing is to be done if it comes back: walhook goes on when it takes connections",
);
const SHUT: Meaning = passing(
    "the database takes no connections",
    "somebody has shut it (ALLOW_CONNECTIONS false), as for a restore or a rename: ask whoever did; walhook goes on when it is open",
);
const NO_MEANS: Meaning = passing(
    "the server has no memory or no disk left for a session",
    "look at the server's log and its disk: walhook goes on when it has",
);
const SLOTS: Meaning = lasting(
    "all of max_replication_slots are in use",
    "raise max_replication_slots (needs a restart of the server); SELECT slot_name, database, active FROM pg_replication_slots \
     shows whose they are, and only their owners know whether one may go",
);
const READ_ONLY: Meaning = lasting(
    "the server takes only reads in this session",
    "write the primary's host into the source's url; a default of the database or the role is set aside by walhook itself",
);
const UNKNOWN: Meaning = passing("the server refused the connection", "the server's log says more");

/// What `error` means, which came before the session began.
pub(super) fn meaning(error: &ServerError) -> Meaning {
    if let Some(meaning) = of_pooler(error) {
        return meaning;
    }
    match &*error.code {
        "28P01" => PASSWORD,
        "28000" => of_authorization(error),
        "3D000" => NO_DATABASE,
        "42501" => of_privilege(error),
        "53300" => of_limit(error),
        "57P03" if error.says("Hot standby mode is disabled") => NO_HOT_STANDBY,
        "57P03" => NOT_YET,
        "57P01" | "57P02" | "57P05" => STOPPED,
        "55000" if error.is_raised_by("CheckMyDatabase") => SHUT,
        "53000" | "53100" | "53200" => NO_MEANS,
        "25006" => READ_ONLY,
        "42704" if super::settings::ours().any(|name| error.says(name)) => TOO_OLD,
        "58P01" => PRELOAD,
        "P0001" => LOGIN_TRIGGER,
        "22023" | "42704" | "42601" | "55P02" => OPTION,
        // A pooler that keeps the passwords itself.
        "08P01" if error.message.to_ascii_lowercase().contains("auth") => PASSWORD,
        // Postgres has neither of them for a well-formed startup.
        "08P01" | "0A000" => POOLER,
        _ => UNKNOWN,
    }
}

/// What `error` means where it ended a statement of a session that had begun.
pub(super) fn of_statement(error: &ServerError) -> Option<Meaning> {
    match &*error.code {
        "25006" => Some(READ_ONLY),
        "53300" => Some(of_limit(error)),
        "53400" => Some(SLOTS),
        "53000" | "53100" | "53200" => Some(NO_MEANS),
        "57P01" | "57P02" | "57P03" => Some(STOPPED),
        _ => None,
    }
}

/// PgBouncer, Supavisor, RDS Proxy, Odyssey, pgcat and their like, by words that no Postgres says. Postgres names the function
/// that raised an error, and poolers do not; and between quotes stand names, which may be anything.
fn of_pooler(error: &ServerError) -> Option<Meaning> {
    if error.routine.is_some() {
        return None;
    }
    let lower = error.message.split(['"', '\'']).step_by(2).collect::<String>().to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if says(&["tenant or user not found", "tenant/user"]) {
        Some(TENANT)
    } else if says(&[
        "unsupported startup parameter",
        "rds proxy",
        "replication connections are not",
        "replication is not supported",
    ]) {
        Some(POOLER)
    } else if says(&["max_client_conn", "max clients reached", "maxclients"]) {
        Some(POOLER_IS_FULL)
    } else if says(&[
        "server login has been failing",
        "query_wait_timeout",
        "client_login_timeout",
        "pgbouncer cannot connect",
    ]) {
        Some(BEHIND_POOLER)
    } else if says(&["no such database:", "no such user"]) {
        Some(POOLER_KNOWS_NOT)
    } else {
        says(&["pgbouncer", "odyssey:", "pgcat", "supavisor", "pgdog"]).then_some(POOLER)
    }
}

/// How somebody came whom pg_hba.conf does not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encrypted {
    No,
    Yes,
}

/// Whether this is about the rules of pg_hba.conf, and how we came.
pub(super) fn is_of_rules(error: &ServerError) -> Option<Encrypted> {
    let is_plain = error.says("no encryption") || error.says("SSL off");
    (error.code == "28000" && error.says("pg_hba.conf")).then_some(if is_plain {
        Encrypted::No
    } else {
        Encrypted::Yes
    })
}

fn of_authorization(error: &ServerError) -> Meaning {
    if let Some(came) = is_of_rules(error) {
        return match (came, error.says("rejects connection")) {
            (Encrypted::No, true) => REJECTED_PLAIN,
            (Encrypted::No, false) => HBA_PLAIN,
            (Encrypted::Yes, _) => HBA,
        };
    }
    if error.is_raised_by("InitializeSessionUserId") {
        return match (error.says("does not exist"), error.says("not permitted to log in")) {
            (true, _) => NO_ROLE,
            (false, true) => NO_LOGIN,
            (false, false) => ROLE,
        };
    }
    if error.says("client certificate") || error.says("ertificate authentication failed") {
        CERTIFICATE
    } else if error.says("Peer authentication failed") || error.says("Ident authentication failed") {
        PEER
    } else {
        NOT_LET_IN
    }
}

fn of_privilege(error: &ServerError) -> Meaning {
    let is_walsender = || error.says("start walsender") || error.says("start WAL sender");
    if error.is_raised_by("CheckMyDatabase") || error.says("permission denied for database") {
        NO_CONNECT
    } else if error.says("parameter \"") {
        OPTION
    } else if is_walsender() || error.is_raised_by("InitPostgres") {
        NO_REPLICATION
    } else {
        PRIVILEGE
    }
}

fn of_limit(error: &ServerError) -> Meaning {
    if error.says("max_wal_senders") {
        WALSENDERS
    } else if error.is_raised_by("InitializeSessionUserId") || error.says("connections for role") {
        ROLE_LIMIT
    } else if error.is_raised_by("CheckMyDatabase") || error.says("connections for database") {
        DATABASE_LIMIT
    } else if error.is_raised_by("InitPostgres") || error.says("connection slots are reserved") {
        RESERVED
    } else if error.is_raised_by("InitProcess")
        || error.is_raised_by("ProcessStartupPacket")
        || error.says("too many clients")
    {
        FULL
    } else {
        NO_ROOM
    }
}

#[cfg(test)]
mod tests;

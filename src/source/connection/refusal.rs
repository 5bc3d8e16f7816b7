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
    "check user and password in the source's url; there the characters @ : / ? # [ ] % of a password are percent-encoded",
);
const HBA_PLAIN: Meaning = lasting(
    "pg_hba.conf has no entry that lets this role into this database from here without TLS",
    "write sslmode=require into the source's url (better verify-full with sslrootcert)",
);
const HBA: Meaning = lasting(
    "pg_hba.conf has no entry that lets this role into this database from here, or one that rejects it",
    "add a line above those that reject, with the database's own name (`replication` and physical replication are another thing): \
     hostssl DATABASE ROLE ADDRESS scram-sha-256, then SELECT pg_reload_conf()",
);
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
const WALSENDERS: Meaning = passing(
    "all of max_wal_senders are in use",
    "raise max_wal_senders (needs a restart of the server), or end a replication that nobody needs: \
     SELECT pid, application_name, state FROM pg_stat_replication",
);
const ROLE_LIMIT: Meaning = passing(
    "the role's CONNECTION LIMIT is used up",
    "raise it, ALTER ROLE … CONNECTION LIMIT 10: walhook has several sessions for each source; another walhook of the same role counts too",
);
const DATABASE_LIMIT: Meaning = passing(
    "the database's CONNECTION LIMIT is used up",
    "raise it, ALTER DATABASE … CONNECTION LIMIT, or let applications hold fewer connections",
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
    if let Some(meaning) = of_pooler(&error.message) {
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
        "22023" | "42704" | "42601" | "55P02" => OPTION,
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

/// PgBouncer, Supavisor, RDS Proxy, Odyssey, pgcat and their like, by words that no Postgres says.
fn of_pooler(message: &str) -> Option<Meaning> {
    let lower = message.to_ascii_lowercase();
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

fn of_authorization(error: &ServerError) -> Meaning {
    if error.says("pg_hba.conf") {
        let is_plain = error.says("no encryption") || error.says("SSL off");
        return match (is_plain, error.says("rejects connection")) {
            (true, true) => REJECTED_PLAIN,
            (true, false) => HBA_PLAIN,
            (false, _) => HBA,
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
mod tests {
    use super::*;

    fn error(code: &str, routine: &str, message: &str) -> ServerError {
        let routine = (!routine.is_empty()).then(|| routine.to_owned());
        ServerError { code: code.to_owned(), message: message.to_owned(), routine, ..ServerError::default() }
    }

    /// SQLSTATE, routine, message in English, what it means. From the sources of Postgres 14 to 18 and of the poolers.
    const CASES: &[(&str, &str, &str, Meaning)] = &[
        ("28P01", "auth_failed", "password authentication failed for user \"w\"", PASSWORD),
        (
            "28000",
            "ClientAuthentication",
            "no pg_hba.conf entry for host \"10.0.0.1\", user \"w\", database \"app\", no encryption",
            HBA_PLAIN,
        ),
        (
            "28000",
            "ClientAuthentication",
            "no pg_hba.conf entry for host \"10.0.0.1\", user \"w\", database \"app\", SSL encryption",
            HBA,
        ),
        ("28000", "ClientAuthentication", "pg_hba.conf rejects connection for host \"::1\", user \"w\", SSL on", HBA),
        (
            "28000",
            "ClientAuthentication",
            "pg_hba.conf rejects connection for host \"::1\", user \"w\", database \"app\", no encryption",
            REJECTED_PLAIN,
        ),
        ("28000", "InitializeSessionUserId", "role \"w\" does not exist", NO_ROLE),
        ("28000", "InitializeSessionUserId", "role \"w\" is not permitted to log in", NO_LOGIN),
        ("28000", "ClientAuthentication", "connection requires a valid client certificate", CERTIFICATE),
        ("28000", "auth_failed", "certificate authentication failed for user \"w\"", CERTIFICATE),
        ("28000", "auth_failed", "Peer authentication failed for user \"w\"", PEER),
        ("28000", "auth_failed", "GSSAPI authentication failed for user \"w\"", NOT_LET_IN),
        ("3D000", "InitPostgres", "database \"ap\" does not exist", NO_DATABASE),
        ("42501", "CheckMyDatabase", "permission denied for database \"app\"", NO_CONNECT),
        ("42501", "InitPostgres", "must be superuser or replication role to start walsender", NO_REPLICATION),
        ("42501", "InitPostgres", "permission denied to start WAL sender", NO_REPLICATION),
        ("42501", "set_config_with_handle", "permission denied to set parameter \"log_statement\"", OPTION),
        ("42501", "", "whatever", PRIVILEGE),
        (
            "53300",
            "InitProcess",
            "number of requested standby connections exceeds max_wal_senders (currently 10)",
            WALSENDERS,
        ),
        ("53300", "InitializeSessionUserId", "too many connections for role \"w\"", ROLE_LIMIT),
        ("53300", "CheckMyDatabase", "too many connections for database \"app\"", DATABASE_LIMIT),
        (
            "53300",
            "InitPostgres",
            "remaining connection slots are reserved for roles with the SUPERUSER attribute",
            RESERVED,
        ),
        ("53300", "InitProcess", "sorry, too many clients already", FULL),
        ("53300", "", "whatever", NO_ROOM),
        ("57P03", "ProcessStartupPacket", "the database system is starting up", NOT_YET),
        ("57P03", "ProcessStartupPacket", "the database system is in recovery mode", NOT_YET),
        ("57P01", "ProcessInterrupts", "terminating connection due to administrator command", STOPPED),
        ("55000", "CheckMyDatabase", "database \"app\" is not currently accepting connections", SHUT),
        ("53200", "", "out of memory", NO_MEANS),
        ("25006", "", "cannot execute INSERT in a read-only transaction", READ_ONLY),
        ("42704", "", "unrecognized configuration parameter \"x.y z\"", OPTION),
        ("22023", "", "invalid value for parameter \"work_mem\": \"much\"", OPTION),
        ("08P01", "", "unsupported startup parameter: replication", POOLER),
        ("08P01", "", "unsupported startup parameter in options: extra_float_digits", POOLER),
        ("08P01", "", "unsupported startup parameter: options", POOLER),
        ("0A000", "", "Feature not supported: RDS Proxy currently doesn't support command-line options.", POOLER),
        ("08P01", "", "replication connections are not allowed", POOLER),
        ("XX000", "", "Tenant or user not found", TENANT),
        (
            "XX000",
            "",
            "MaxClientsInSessionMode: max clients reached - in Session mode max clients are limited to pool_size",
            POOLER_IS_FULL,
        ),
        ("08P01", "", "no more connections allowed (max_client_conn)", POOLER_IS_FULL),
        (
            "08P01",
            "",
            "server login has been failing, cached error: connect failed (server_login_retry)",
            BEHIND_POOLER,
        ),
        ("08P01", "", "query_wait_timeout", BEHIND_POOLER),
        ("3D000", "", "no such database: app", POOLER_KNOWS_NOT),
        ("08P01", "", "no such user: w", POOLER_KNOWS_NOT),
        ("58000", "", "odyssey: c1a: failed to connect", POOLER),
        ("XX000", "", "whatever", UNKNOWN),
    ];

    #[test]
    fn each_refusal_has_the_meaning_that_is_its_own() {
        for (code, routine, message, expected) in CASES {
            assert_eq!(meaning(&error(code, routine, message)).what, expected.what, "{code}: {message}");
        }
    }

    #[test]
    fn a_server_that_speaks_another_language_is_not_misunderstood() {
        // By the code and the routine alone: what is said must hold for the case, if less exactly.
        for (code, routine, expected) in [
            ("28P01", "auth_failed", PASSWORD),
            ("28000", "InitializeSessionUserId", ROLE),
            ("28000", "auth_failed", NOT_LET_IN),
            ("42501", "CheckMyDatabase", NO_CONNECT),
            ("42501", "InitPostgres", NO_REPLICATION),
            ("53300", "InitializeSessionUserId", ROLE_LIMIT),
            ("53300", "CheckMyDatabase", DATABASE_LIMIT),
            ("53300", "InitPostgres", RESERVED),
            ("53300", "InitProcess", FULL),
            ("57P03", "ProcessStartupPacket", NOT_YET),
            ("55000", "CheckMyDatabase", SHUT),
        ] {
            assert_eq!(meaning(&error(code, routine, "das geht nicht")).what, expected.what, "{code} {routine}");
        }
        let hba = "kein pg_hba.conf-Eintrag für Host »::1«, Benutzer »w«";
        assert_eq!(meaning(&error("28000", "ClientAuthentication", hba)), HBA);
        let senders = "Anzahl angeforderter Standby-Verbindungen überschreitet max_wal_senders (aktuell 10)";
        assert_eq!(meaning(&error("53300", "InitProcess", senders)), WALSENDERS);
    }

    #[test]
    fn advice_speaks_of_password_and_address_only_where_one_of_these_is_wrong() {
        for (code, _, message, meaning) in CASES {
            let is_of_password = [PASSWORD, PEER, NO_ROLE].contains(meaning);
            assert_eq!(meaning.advice.to_lowercase().contains("password"), is_of_password, "{code}: {message}");
            // What a tired person pastes must not hurt others.
            for harm in ["DROP", "SUPERUSER", "OWNER", "trust", "pg_terminate", "sslmode=disable"] {
                assert!(!meaning.advice.contains(harm), "{message}: {}", meaning.advice);
            }
            assert!(!meaning.what.is_empty() && !meaning.advice.ends_with('.'), "{message}");
        }
    }

    #[test]
    fn what_passes_by_itself_is_waited_for() {
        for (code, _, message, meaning) in CASES {
            let passes = matches!(*code, "53300" | "57P03" | "57P01" | "55000" | "53200")
                || [POOLER_IS_FULL, BEHIND_POOLER, UNKNOWN].contains(meaning);
            assert_eq!(meaning.lasts, !passes, "{code}: {message}");
        }
    }
}

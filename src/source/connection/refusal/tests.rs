//! What each refusal means.

use super::*;

fn error(code: &str, routine: &str, message: &str) -> ServerError {
    let routine = (!routine.is_empty()).then(|| routine.to_owned());
    ServerError { code: code.to_owned(), message: message.to_owned(), routine, ..ServerError::default() }
}

/// SQLSTATE, routine, message in English, what it means. From the sources of Postgres 14 to 18 and of the poolers.
const CASES: &[(&str, &str, &str, Meaning)] = &[
    // What a role or a database is called says nothing of who answers.
    ("28P01", "auth_failed", "password authentication failed for user \"pgbouncer\"", PASSWORD),
    ("3D000", "InitPostgres", "database \"pgbouncer_stats\" does not exist", NO_DATABASE),
    (
        "28000",
        "ClientAuthentication",
        "no pg_hba.conf entry for host \"10.0.0.1\", user \"w\", database \"pgcat\", SSL encryption",
        HBA,
    ),
    ("28P01", "", "password authentication failed for user \"pgdog\"", PASSWORD),
    ("08P01", "", "password authentication failed", PASSWORD),
    ("08P01", "", "SASL authentication failed", PASSWORD),
    ("08P01", "", "auth failed", PASSWORD),
    ("08P01", "", "server login failed: pgbouncer cannot connect to server", BEHIND_POOLER),
    ("42704", "set_config_option", "unrecognized configuration parameter \"idle_session_timeout\"", TOO_OLD),
    ("42704", "set_config_option", "unrecognized configuration parameter \"my.thing\"", OPTION),
    ("58P01", "load_file", "could not access file \"auto_explain2\": No such file or directory", PRELOAD),
    ("P0001", "exec_stmt_raise", "not today", LOGIN_TRIGGER),
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
    ("08P01", "", "server login has been failing, cached error: connect failed (server_login_retry)", BEHIND_POOLER),
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

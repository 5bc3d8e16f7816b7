//! Addresses as other tools write them: what of it is theirs, and what to write here. Pure.
//!
//! People copy the address that their application uses. What other tools add to it means nothing to Postgres, and would be
//! refused one by one without a word of why.

/// What to do with settings that only say how a pool of connections behaves.
const NO_POOL: &str = "walhook keeps no pool of connections, leave it out";
const LEFT_OUT: &str = "it means nothing to walhook, leave it out";
const TABLES: &str = "which schemas are read is said by a sink's tables, such as [\"SCHEMA.*\"], leave it out";
const DIRECT: &str =
    "replication needs the database's own address and not a pooler's, leave it out and look at host and port";
const OURS: &str = "walhook sets it itself for its sessions, leave it out";
const IN_OPTIONS: &str = "it is a setting of sessions, write it as options=-c%20NAME%3DVALUE";
const TLS: &str = "write sslmode=require, sslmode=verify-full with sslrootcert, or sslmode=disable";
const FILES: &str = "give PEM files as sslrootcert, sslcert and sslkey";

/// Whose, which settings, what to do.
type Theirs = (&'static str, &'static [&'static str], &'static str);

const PARAMETERS: &[Theirs] = &[
    ("Prisma", &["schema"], TABLES),
    ("Prisma", &["pgbouncer"], DIRECT),
    ("Prisma", &["connection_limit", "pool_timeout"], NO_POOL),
    ("Prisma", &["socket_timeout"], "silence is bounded by keepalives_idle and tcp_user_timeout, leave it out"),
    ("Prisma", &["statement_cache_size", "directUrl", "api_key"], LEFT_OUT),
    (
        "Prisma",
        &["sslaccept"],
        "strict is sslmode=verify-full with sslrootcert, accept_invalid_certs is sslmode=require",
    ),
    ("Prisma", &["sslidentity"], FILES),
    ("JDBC", &["currentSchema"], TABLES),
    ("JDBC", &["loginTimeout", "connectTimeout"], "write connect_timeout, in seconds"),
    ("JDBC", &["ApplicationName"], "write application_name"),
    ("JDBC", &["targetServerType"], "write target_session_attrs"),
    ("JDBC", &["tcpKeepAlive"], "write keepalives"),
    ("JDBC", &["sslfactory", "sslhostnameverifier", "sslpasswordcallback"], TLS),
    ("JDBC", &["socketFactory", "socketFactoryArg"], DIRECT),
    (
        "JDBC",
        &[
            "socketTimeout",
            "prepareThreshold",
            "preparedStatementCacheQueries",
            "binaryTransfer",
            "reWriteBatchedInserts",
            "loggerLevel",
            "loggerFile",
            "autosave",
            "stringtype",
            "assumeMinServerVersion",
            "defaultRowFetchSize",
            "cancelSignalTimeout",
            "readOnly",
            "allowEncodingChanges",
            "logUnclosedConnections",
            "preferQueryMode",
            "hostRecheckSeconds",
            "loadBalanceHosts",
        ],
        LEFT_OUT,
    ),
    ("pgx", &["pool_max_conns", "pool_min_conns", "pool_min_idle_conns", "pool_max_conn_lifetime"], NO_POOL),
    ("pgx", &["pool_max_conn_lifetime_jitter", "pool_max_conn_idle_time", "pool_health_check_period"], NO_POOL),
    (
        "pgx",
        &[
            "default_query_exec_mode",
            "statement_cache_capacity",
            "description_cache_capacity",
            "statement_cache_mode",
            "prefer_simple_protocol",
        ],
        LEFT_OUT,
    ),
    ("lib/pq", &["binary_parameters", "disable_prepared_binary_result", "sslinline"], LEFT_OUT),
    ("Rails", &["pool", "reaping_frequency", "checkout_timeout", "max_connections", "min_connections"], NO_POOL),
    ("Rails", &["prepared_statements", "advisory_locks", "adapter", "min_messages", "insert_returning"], LEFT_OUT),
    ("Rails", &["encoding"], "walhook always speaks UTF8, leave it out"),
    ("Rails", &["schema_search_path"], TABLES),
    ("SQLAlchemy", &["pool_size", "max_overflow", "pool_recycle", "pool_pre_ping", "poolclass"], NO_POOL),
    ("SQLAlchemy", &["prepared_statement_cache_size", "async_fallback", "echo"], LEFT_OUT),
    ("asyncpg", &["command_timeout", "server_settings", "max_cached_statement_lifetime", "direct_tls"], LEFT_OUT),
    ("asyncpg", &["min_size", "max_size"], NO_POOL),
    ("Django", &["conn_max_age", "conn_health_checks", "disable_server_side_cursors"], NO_POOL),
    ("Django", &["ssl_require"], TLS),
    ("node-postgres", &["ssl"], TLS),
    ("node-postgres", &["uselibpqcompat"], LEFT_OUT),
    (
        "node-postgres",
        &["max", "idleTimeoutMillis", "connectionTimeoutMillis", "idle_timeout", "max_lifetime"],
        NO_POOL,
    ),
    ("node-postgres", &["query_timeout", "prepare", "fetch_types", "keepAlive"], LEFT_OUT),
    ("sqlx", &["statement-cache-capacity"], LEFT_OUT),
    ("sqlx", &["ssl-mode"], "write sslmode"),
    ("sqlx", &["ssl-root-cert", "ssl-ca"], "write sslrootcert"),
    ("sqlx", &["ssl-cert", "ssl-key"], "write sslcert and sslkey"),
    ("Vercel", &["supa", "workaround"], LEFT_OUT),
    (".NET", &["Pooling", "MaxPoolSize", "MinPoolSize", "Timeout", "CommandTimeout", "Username", "Host"], DOT_NET),
    ("a session", &["search_path"], OURS),
    ("a session", &["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"], OURS),
    ("a session", &["TimeZone", "DateStyle", "default_transaction_read_only"], OURS),
    ("a session", &["work_mem", "role", "synchronous_commit", "wal_sender_timeout"], IN_OPTIONS),
];

const DOT_NET: &str =
    "an address of .NET (Host=…;Username=…) is written postgres://USER:PASSWORD@HOST:PORT/DATABASE here";

/// Whose setting `key` is and what to do, if it is one of another tool.
pub(super) fn parameter(key: &str) -> Option<(&'static str, &'static str)> {
    let is_it = |keys: &[&str]| keys.iter().any(|theirs| theirs.eq_ignore_ascii_case(key));
    PARAMETERS.iter().find(|(_, keys, _)| is_it(keys)).map(|(whose, _, what)| (*whose, *what))
}

/// What is wrong with the beginning of an address that is not `postgres://` or `postgresql://`, if that can be told.
pub(super) fn beginning(text: &str) -> Option<&'static str> {
    let lower = text.to_ascii_lowercase();
    if lower.starts_with("jdbc:") {
        return Some(
            "the address begins with jdbc:, which is Java's: write postgres://USER:PASSWORD@HOST:PORT/DATABASE, user and \
             password before the host",
        );
    }
    if lower.starts_with("psql ") {
        return Some("the address begins with the command psql: leave that out, and the quotes");
    }
    if lower.starts_with(['"', '\'', '`']) {
        return Some("the address stands in quotes, which are part of it then: leave them out");
    }
    if let Some((scheme, _)) = lower.split_once("://") {
        return Some(of_scheme(text, scheme));
    }
    if lower.starts_with("postgres:") || lower.starts_with("postgresql:") {
        return Some("after postgres: the address has two slashes: postgres://USER:PASSWORD@HOST:PORT/DATABASE");
    }
    // With a semicolon between them pairs would be one value, the password in it.
    let first_value = text.split_once('=').map_or("", |(_, rest)| rest.split_ascii_whitespace().next().unwrap_or(""));
    // Before the first = stands a key.
    let is_password = lower.split('=').next().is_some_and(|key| key.trim() == "password");
    let is_dot_net =
        !is_password && first_value.split_once(';').is_some_and(|(_, more)| more.contains('=') || more.is_empty());
    is_dot_net.then_some(
        "the address has ; between its settings, which is .NET's (Host=…;Username=…): write \
         postgres://USER:PASSWORD@HOST:PORT/DATABASE, or key=value pairs with spaces between them",
    )
}

fn of_scheme(text: &str, scheme: &str) -> &'static str {
    if scheme.contains(['=', ' ']) {
        return "the address begins with the name of a variable: leave out what stands before postgres://";
    }
    match scheme {
        "postgres" | "postgresql" if !text.starts_with(scheme) => {
            "the address must begin with postgres:// in lower case"
        }
        "prisma" | "prisma+postgres" => {
            "the address is one of Prisma's own service and not of a Postgres server: use that of the database (directUrl)"
        }
        "http" | "https" => "the address is a website's: the database's begins with postgres://",
        _ if scheme.starts_with("postgres+") || scheme.starts_with("postgresql+") => {
            "the + and what follows it in postgresql+…:// is SQLAlchemy's choice of a driver: write postgresql://"
        }
        "postgis" | "pgsql" | "psql" | "pg" | "ecto" | "psycopg" | "psycopg2" | "asyncpg" | "pdo-pgsql"
        | "timescale" | "timescaledb" | "timescalegis" | "postgresqls" | "postgres2" => {
            "the address begins with another tool's name for Postgres: write postgres:// for it"
        }
        "cockroachdb" | "cockroach" | "crdb" | "redshift" | "yugabyte" | "yugabytedb" => {
            "the address is not one of Postgres, the only database whose changes walhook reads"
        }
        _ => "an address starts with postgres:// or is a string of key=value pairs",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_setting_of_another_tool_stands_twice_or_is_one_of_ours() {
        let mut seen = std::collections::HashSet::new();
        for (whose, keys, _) in PARAMETERS {
            for key in *keys {
                assert!(seen.insert(key.to_ascii_lowercase()), "{whose}: {key}");
                assert!(!super::super::settings::is_known(key), "{whose}: {key}");
            }
        }
    }

    #[test]
    fn the_beginnings_of_other_tools_are_told_apart() {
        for (text, expected) in [
            ("postgresql+asyncpg://u:s3@h/db", "SQLAlchemy"),
            ("postgresql+psycopg2://u:s3@h/db", "SQLAlchemy"),
            ("postgres+pg8000://u:s3@h/db", "SQLAlchemy"),
            ("jdbc:postgresql://h/db?user=u&password=s3", "jdbc:"),
            ("postgis://u:s3@h/db", "postgres://"),
            ("pgsql://u:s3@h/db", "postgres://"),
            ("ecto://u:s3@h/db", "postgres://"),
            ("Postgres://u:s3@h/db", "lower case"),
            ("POSTGRESQL://u:s3@h/db", "lower case"),
            ("prisma+postgres://accelerate.prisma-data.net/?api_key=s3", "directUrl"),
            ("https://u:s3@h/db", "website"),
            ("mysql://u:s3@h/db", "key=value"),
            ("DATABASE_URL=postgres://u:s3@h/db", "variable"),
            ("export DATABASE_URL=postgres://u:s3@h/db", "variable"),
            ("psql 'postgres://u:s3@h/db'", "command psql"),
            ("\"postgres://u:s3@h/db\"", "quotes"),
            ("postgres:u:s3@h/db", "two slashes"),
            ("postgresql:/u:s3@h/db", "two slashes"),
            ("Host=h;Username=u;Password=s3;Database=db", ".NET"),
            ("host=h;user=u;password=s3", ".NET"),
        ] {
            let said = beginning(text).unwrap_or_else(|| panic!("{text}"));
            assert!(said.contains(expected) && !said.contains("s3"), "{text}: {said}");
        }
        for text in ["host=h user=u password=s3", "host=h user=u password='a;b=c'", "u:s3@h/db", "h:5432/db"] {
            assert_eq!(beginning(text), None, "{text}");
        }
    }
}

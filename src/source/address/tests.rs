//! Addresses as libpq takes them.
use secrecy::ExposeSecret as _;

use super::*;

fn parse(text: &str) -> PgAddress {
    PgAddress::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn error(text: &str) -> String {
    PgAddress::parse(text).map(|address| address.to_string()).expect_err(text).to_string()
}

fn tcp(name: &str, port: u16) -> Host {
    Host::Tcp { name: name.to_owned(), address: None, port }
}

#[test]
fn a_uri_is_read_whole() {
    let address = parse(
        "postgresql://wal%40hook:p%3A%2F%40ss@db1.example:5433,[::1]:6000/my%20db?sslmode=require&application_name=a%26b",
    );
    assert_eq!(address.hosts, [tcp("db1.example", 5433), tcp("::1", 6000)]);
    assert_eq!((&*address.user, &*address.dbname, &*address.application_name), ("wal@hook", "my db", "a&b"));
    assert_eq!(address.password.as_ref().unwrap().expose_secret(), "p:/@ss");
    assert_eq!(address.sslmode, SslMode::Require);
}

#[test]
fn defaults_are_those_promised() {
    let address = parse("postgres://me@h");
    assert_eq!((&*address.dbname, &*address.application_name, address.sslmode), ("me", "walhook", SslMode::Prefer));
    assert_eq!((address.connect_timeout, address.channel_binding), (Duration::from_secs(10), ChannelBinding::Prefer));
    let secs = Duration::from_secs;
    let keepalive = Keepalive { on: true, idle: secs(30), interval: secs(10), count: 3, user_timeout: Some(secs(30)) };
    assert_eq!(address.keepalive, keepalive);
    assert_eq!(parse("user=me").hosts, [tcp("localhost", 5432)]);
}

#[test]
fn pairs_are_read_with_their_quotes() {
    let address = parse(r"host = db user='o\'neill' password='a b\\c' dbname=app options='-c work_mem=64MB' port=5");
    assert_eq!((&*address.user, &*address.dbname), ("o'neill", "app"));
    assert_eq!(address.password.as_ref().unwrap().expose_secret(), r"a b\c");
    assert_eq!((address.hosts, address.options.as_deref()), (vec![tcp("db", 5)], Some("-c work_mem=64MB")));
}

#[test]
fn a_directory_is_a_unix_socket() {
    let socket = |port| Host::Unix { directory: "/run/pg".into(), port };
    assert_eq!(parse("postgres://me@%2Frun%2Fpg:77/db").hosts, [socket(77)]);
    assert_eq!(parse("postgres:///db?host=/run/pg&user=me").hosts, [socket(5432)]);
    assert_eq!(parse("host=/run/pg user=me").hosts[0].to_string(), "/run/pg/.s.PGSQL.5432");
}

#[test]
fn one_port_serves_all_hosts_and_an_address_keeps_its_name() {
    let address = parse("host=a,b hostaddr=127.0.0.1,::1 port=7 user=me");
    let host = |name: &str, ip: &str| Host::Tcp { name: name.into(), address: Some(ip.parse().unwrap()), port: 7 };
    assert_eq!(address.hosts, [host("a", "127.0.0.1"), host("b", "::1")]);
    assert_eq!(error("host=a,b,c port=1,2 user=me"), "port must have one entry, or as many as host");
}

#[test]
fn what_is_wrong_is_named() {
    assert_eq!(
        error("postgres://me@h/db?ssl_mode=require"),
        "ssl_mode is not a connection setting; did you mean sslmode?"
    );
    assert_eq!(error("user=me zzz=1"), "zzz is not a connection setting");
    assert!(error("user=me sslmode=on").starts_with("sslmode must be disable, allow, prefer"));
    assert!(error("user=me target_session_attrs=standby").contains("any, read-write or primary"));
    assert!(error("user=me passfile=/x").contains("password=${NAME}"));
    assert!(error("postgres://h/db").contains("names no user"));
    assert!(error("user=me sslmode=verify-full").contains("sslrootcert=system"));
    assert!(error("user=me sslmode=require sslrootcert=system").contains("verify-full"));
    assert!(error("user=me sslcert=/x").contains("sslkey"));
    assert!(error("mysql://me@h/db").contains("postgres://"));
    assert!(error("").contains("names no user"));
    assert!(error("user='me").contains("not closed"));
}

#[test]
fn the_systems_authorities_imply_full_verification() {
    let address = parse("postgres://me@h/db?sslrootcert=system");
    assert_eq!((address.sslmode, address.sslrootcert), (SslMode::VerifyFull, Some(RootCert::System)));
}

#[test]
fn a_password_is_hidden_and_all_else_stays() {
    for (text, hidden) in [
        ("postgres://u:s3%40c@h:5,[::1]:6/db?sslmode=require", "postgres://u:{}@h:5,[::1]:6/db?sslmode=require"),
        ("postgresql://u@h?password=s3c&sslrootcert=/x%20y", "postgresql://u@h?password={}&sslrootcert=/x%20y"),
        ("postgres://:s3c@/db?user=u&host=/tmp", "postgres://:{}@/db?user=u&host=/tmp"),
        ("postgres://u@h/db?pass%77ord=s3c", "postgres://u@h/db?password={}"),
        ("password='a s3 b' sslrootcert='/x y/ca.pem' host=h", "password='{}' sslrootcert='/x y/ca.pem' host=h"),
        ("host=h password  =  s3 user=u", "host=h password='{}' user=u"),
        (r"password='s3\'c\\' host=h", "password='{}' host=h"),
        (r"password=s3\ c options='-c password=x'", "password='{}' options='-c password=x'"),
    ] {
        let found = match PgAddress::hide_password(text, "{}").unwrap() {
            Hidden::Nothing => panic!("{text}"),
            Hidden::InUri(found) | Hidden::InKeywords(found) => found,
        };
        assert_eq!(found, hidden);
    }
    for text in ["postgres://u@h/db", "postgres://u:@h/db", "host=h user=u options='-c password=x'"] {
        assert_eq!(PgAddress::hide_password(text, "{}").unwrap(), Hidden::Nothing, "{text}");
    }
}

#[test]
fn no_output_shows_a_password() {
    let address = parse("postgres://me:hunter2@h/db?connect_timeout=1");
    for shown in [format!("{address:?}"), format!("{address:#?}"), address.to_string(), address.redacted()] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    assert_eq!(address.redacted(), "postgres://me@h:5432/db?sslmode=prefer");
    // Passwords whose special characters were not encoded break the URI, and must not show in the error either.
    for text in [
        "postgres://me:hun/ter2@h/db",
        "postgres://me:hun?ter2@h/db",
        "postgres://me:hun?ter2=x@h/db",
        "postgres://me:hun?hun=x@h/db",
        "postgres://me:hun%ter2@h/db",
    ] {
        let error = error(text);
        assert!(!error.contains("hun") && !error.contains("ter2"), "{error}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "(postgres://)?[a-z:/@?&=%' \\\\,\\[\\]0-9é]{0,60}") {
        drop(PgAddress::parse(&text));
    }

    #[test]
    fn any_password_survives_percent_encoding(password in "[^\0]{1,20}") {
        let encoded = percent_encoding::utf8_percent_encode(&password, percent_encoding::NON_ALPHANUMERIC);
        let address = parse(&format!("postgres://me:{encoded}@h/db"));
        assert_eq!(address.password.unwrap().expose_secret(), &*password);
    }
}

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
    assert!(error("user=me conect_timeot=1").ends_with("did you mean connect_timeout?"));
    assert_eq!(error("user=me zzz=1"), "zzz is not a connection setting");
    assert!(error("user=me sslmode=on").starts_with("sslmode must be disable, allow, prefer"));
    assert!(error("user=me target_session_attrs=standby").contains("any, read-write or primary"));
    assert!(error("user=me passfile=/x").contains("password=${NAME}"));
    assert!(error("postgres://h/db").contains("names no user"));
    assert!(error("user=me sslmode=verify-full").contains("sslrootcert=system"));
    assert!(error("user=me sslmode=require sslrootcert=system").contains("verify-full"));
    assert!(error("user=me sslcert=/x").contains("sslkey"));
    assert!(error("mysql://me@h/db").contains("postgres://"));
    assert!(error("").contains("is empty, as a variable leaves it"));
    assert!(error(" ").contains("is empty, as a variable leaves it"));
    for text in ["postgres://u:s3cr@::1/db", "postgres://u@fe80::1:5432/db", "postgres://me:s3cr:ret7/db"] {
        assert!(assert_refused_in_silence(text).contains("brackets"), "{text}");
    }
    for text in ["host=h port= user=u", "host= user=u", "host=h user=u password= dbname=d"] {
        assert!(error(text).contains("nothing after its ="), "{text}: {}", error(text));
    }
    assert!(PgAddress::parse("host=h port='' user=u password='' dbname = d").is_ok());
    assert!(error("postgres://u@h/db?Trust%20Server%20Certificate=true").contains(".NET"));
    assert!(error("postgres://u@h/db?Trust+Server+Certificate=true").contains(".NET"));
    assert!(error("postgres://u@h/db?socketFactory=a").contains("JDBC"));
    assert!(error("cockroach://u:s3cr@h/db").contains("not one of Postgres"));
    assert!(error("user='me").contains("not closed"));
}

#[test]
fn the_systems_authorities_imply_full_verification() {
    let address = parse("postgres://me@h/db?sslrootcert=system");
    assert_eq!((address.sslmode, address.sslrootcert), (SslMode::VerifyFull, Some(RootCert::System)));
}

#[test]
fn an_authority_that_is_named_is_asked_unless_the_mode_says_otherwise() {
    let file = Some(RootCert::File("/x/ca.pem".into()));
    let address = parse("postgres://me@h/db?sslrootcert=/x/ca.pem");
    assert_eq!((address.sslmode, &address.sslrootcert), (SslMode::VerifyFull, &file));
    let address = parse("postgres://me@h/db?sslrootcert=/x/ca.pem&sslmode=verify-ca");
    assert_eq!((address.sslmode, &address.sslrootcert), (SslMode::VerifyCa, &file));
}

#[test]
fn what_stands_in_a_file_is_no_path_and_is_not_repeated() {
    for value in [
        "-----BEGIN%20EC%20PRIVATE%20KEY-----%0As3cr%0A-----END%20EC%20PRIVATE%20KEY-----".to_owned(),
        "LS0tLS1CRUdJTiBFQyBQUklWQVRFIEtFWS0tLS0ts3cr".to_owned(),
        "s3cr".repeat(500),
    ] {
        for text in [
            format!("postgres://u@h/db?sslmode=require&sslcert=/c&sslkey={value}"),
            format!("postgres://u@h/db?sslmode=require&sslcert={value}&sslkey=/k"),
            format!("postgres://u@h/db?sslrootcert={value}"),
        ] {
            assert!(assert_refused_in_silence(&text).contains("paths of PEM files"), "{text}");
        }
    }
}

#[test]
fn what_follows_a_password_among_the_settings_is_not_repeated() {
    for text in [
        "postgres://u@h/db?password=a&s3cr=1",
        "postgres://u@h/db?password=a&sslmode=require&s3cr=1",
        "host=h user=u password=a sslmode=require s3cr=1",
        "user=u password=a sslmode=require s3cr=1",
        "postgres://u@h/db?sslpassword=a&connect_timeout=3&s3cr=1",
    ] {
        assert_refused_in_silence(text);
    }
}

#[test]
fn the_methods_of_require_auth_are_a_list_or_all_but_that() {
    let methods = |text: &str| parse(&format!("postgres://me@h/db?require_auth={text}")).require_auth.unwrap();
    assert!(methods("scram-sha-256").has(AuthMethod::ScramSha256) && !methods("scram-sha-256").has(AuthMethod::Md5));
    assert!(methods("!password,!none").has(AuthMethod::Md5) && !methods("!password,!none").has(AuthMethod::None));
    assert_eq!(parse("postgres://me@h/db").require_auth, None);
    assert_eq!(parse("postgres://me@h/db?require_auth=").require_auth, None);
    for text in ["scram", "md5,!none", "md5,md5"] {
        assert!(error(&format!("postgres://me@h/db?require_auth={text}")).starts_with("require_auth must be a list"));
    }
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

/// Nothing of the password `s3cr…et` or of its pieces may be in what is said, and no host may be taken from it.
fn assert_refused_in_silence(text: &str) -> String {
    let said = error(text);
    for piece in ["s3cr", "ret7", "9x9"] {
        assert!(!said.contains(piece), "{text}: {said}");
    }
    said
}

#[test]
fn a_password_that_is_not_encoded_is_refused_and_no_piece_of_it_becomes_a_host() {
    for password in [
        "s3cr@ret7",
        "s3cr@ret7/9x9",
        "s3cr/ret7",
        "s3cr?ret7",
        "s3cr?ret7=9x9",
        "s3cr@ret7?9x9=1",
        "@s3cr",
        "s3cr@",
        "s3cr@@ret7",
        "s3cr%ret7",
        "s3cr%zz",
        "s3cr%",
        "s3cr%ff",
        "s3cr%00",
        "s3cr ret7",
        "s3cr\nret7",
        "s3cr\n",
        "s3cr\r\n",
        "s3cr\u{200b}",
        "1234/s3cr",
        "1234?s3cr=1",
        "s3cr@12:34/ret7",
    ] {
        for text in [
            format!("postgres://me:{password}@db.example/app"),
            format!("postgresql://me:{password}@db.example:5432,db2.example/app?sslmode=require"),
            format!("postgres://{password}:pw@db.example/app"),
        ] {
            assert_refused_in_silence(&text);
        }
    }
    // Where a URI takes them as they are, so do we, as libpq does.
    for (written, password) in [("s3cr#ret7", "s3cr#ret7"), ("s3cr:ret7", "s3cr:ret7"), ("s3cr[ret7]", "s3cr[ret7]")] {
        let address = parse(&format!("postgres://me:{written}@db/app"));
        assert_eq!((address.password.unwrap().expose_secret(), &address.hosts), (password, &vec![tcp("db", 5432)]));
    }
}

#[test]
fn a_password_among_parameters_and_pairs_is_not_taken_for_something_else() {
    for text in [
        "postgres://me@db/app?password=s3cr@ret7",
        "postgres://me@db/app?password=s3cr&ret7=9x9",
        "postgres://me@db/app?password=s3cr%zz",
        "postgres://me@db/app?sslmode=require;password=s3cr",
        "host=db user=me password=s3cr ret7=9x9",
        "host=db user=me password=s3cr ret7",
        "host=db user=me password='s3cr",
        "host=db user=me password='s3cr\n'",
        "host=db;user=me;password=s3cr",
        "user=me host=db;password=s3cr",
        "user=me host=s3cr@db",
        "user=me sslmode=require;password=s3cr",
        "user=me port=s3cr",
        "me:s3cr@db/app",
    ] {
        assert_refused_in_silence(text);
    }
}

#[test]
fn what_a_variable_leaves_that_is_set_to_nothing_is_refused() {
    for (text, expected) in [
        ("postgres://me:pw@/app", "no host"),
        ("postgres://me:pw@:5432/app", "no host"),
        ("postgres://me:pw@a,,b/app", "no host"),
        ("postgres://me:pw@a,/app", "no host"),
        ("postgres://me:pw@db:/app", "no port"),
        ("postgres://:pw@db/app", "names no user"),
        ("postgres://me@.example.com/app", "empty part"),
        ("postgres://me@db./app", "ends with a dot"),
        ("postgres://me@db-.example/app", "empty part"),
        ("postgres://me@$PGHOST/app", "${NAME}"),
        ("postgres://me@5432/app", "not a whole IPv4 address"),
        ("postgres:///app?user=me", "no host"),
        ("host='' user=me", "host that is empty"),
        ("host= user=me", "nothing after its ="),
        ("host=a,,b user=me", "host that is empty"),
        ("host=a user=", "names no user"),
        ("", "the address is empty"),
        ("  ", "the address is empty"),
    ] {
        assert!(error(text).contains(expected), "{text:?}: {}", error(text));
    }
    // An empty password is none, and without a database it is the user's.
    assert!(parse("postgres://me:@db/app").password.is_none());
    assert_eq!(parse("postgres://me@db/").dbname, "me");
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let text = "postgres://me:s3cr@db/app?schema=public&pgbouncer=true&sslaccept=strict&ssl_mode=x&sslmode=on&zzz=1&connect_timeout=soon";
    let error = PgAddress::parse(text).unwrap_err();
    let said: Vec<String> = error.each().iter().map(ToString::to_string).collect();
    let named = ["schema", "pgbouncer", "sslaccept", "ssl_mode", "zzz", "sslmode", "connect_timeout"];
    assert_eq!(said.iter().map(|one| one.split(' ').next().unwrap()).collect::<Vec<_>>(), named, "{said:#?}");
    assert_eq!(error.to_string().lines().count(), named.len());
    assert!(!error.to_string().contains("s3cr"));
}

#[test]
fn settings_of_other_tools_come_with_what_to_do() {
    for (parameter, expected) in [
        ("schema=public", "tables"),
        ("currentSchema=public", "tables"),
        ("pgbouncer=true", "own address"),
        ("connection_limit=5", "no pool"),
        ("sslaccept=accept_invalid_certs", "sslmode=require"),
        ("sslidentity=client.p12", "sslcert"),
        ("pool=5", "no pool"),
        ("prepared_statements=false", "leave it out"),
        ("encoding=utf8", "UTF8"),
        ("pool_max_conns=10", "no pool"),
        ("default_query_exec_mode=exec", "leave it out"),
        ("ssl=false", "sslmode=disable"),
        ("sslmode=no-verify", "sslmode=require"),
        ("statement_timeout=5000", "sets it itself"),
        ("work_mem=64MB", "options="),
        ("supa=base-pooler.x", "leave it out"),
        ("ssl-mode=require", "sslmode"),
        ("sslMode=require", "did you mean sslmode?"),
        ("applicationName=x", "application_name"),
        ("connectTimeout=5", "connect_timeout"),
    ] {
        let said = error(&format!("postgres://me:s3cr@db/app?{parameter}"));
        assert!(said.contains(expected) && !said.contains("s3cr"), "{parameter}: {said}");
    }
    assert_eq!(parse("postgres://me@db/app?ssl=true").sslmode, SslMode::Require);
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

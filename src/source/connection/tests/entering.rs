//! Passwords, sockets, several servers, session settings.

use super::*;
use crate::address::Host;

const ROLES: &str = "SET password_encryption = 'md5'; CREATE ROLE m LOGIN REPLICATION PASSWORD 'm-word';
    SET password_encryption = 'scram-sha-256'; CREATE ROLE s LOGIN REPLICATION PASSWORD 's-wörd/:@';
    CREATE ROLE c LOGIN REPLICATION PASSWORD 'c-word'; CREATE ROLE plain LOGIN";

fn url(cluster: &Cluster, who: &str, database: &str) -> String {
    format!("postgres://{who}@127.0.0.1:{}/{database}", cluster.port())
}

#[tokio::test]
async fn passwords_open_the_door_and_wrong_ones_do_not() {
    let hba = "host all m all md5\nhost all s all scram-sha-256\nhost all c all password\nhost all no all reject";
    let cluster = cluster(hba, &[]);
    admin(&cluster).await.batch_execute(ROLES).await.unwrap();
    for who in ["walhook", "m:m-word", "c:c-word", "s:s-w%C3%B6rd%2F%3A%40"] {
        enter(&url(&cluster, who, "postgres")).await.unwrap_or_else(|error| panic!("{who}: {error:?}"));
    }
    for who in ["m:x", "c:x", "s:x"] {
        let error = enter(&url(&cluster, who, "postgres")).await.unwrap_err();
        assert_eq!(error.sqlstate(), Some("28P01"), "{who}: {error:?}");
        assert!(error.needs_a_person() && error.to_string().contains("password"), "{error}");
    }
    for who in ["m", "c", "s"] {
        let error = replication(&url(&cluster, who, "postgres")).await.unwrap_err();
        assert!(matches!(error, ConnectError::PasswordMissing), "{who}: {error:?}");
        let error = sql(&address(&url(&cluster, who, "postgres"))).await.err().unwrap();
        assert!(matches!(error, ConnectError::PasswordMissing), "{who}: {error:?}");
    }
    let error = enter(&url(&cluster, "no", "postgres")).await.unwrap_err();
    assert!(error.needs_a_person() && error.to_string().contains("pg_hba.conf"), "{error}");
    let error = enter(&url(&cluster, "walhook", "nowhere")).await.unwrap_err();
    assert_eq!((error.sqlstate(), error.needs_a_person()), (Some("3D000"), true), "{error:?}");
    let error = replication(&url(&cluster, "plain", "postgres")).await.unwrap_err();
    assert!(error.needs_a_person() && error.advice().contains("REPLICATION"), "{error:?}");
    let bound = format!("{}?channel_binding=require", url(&cluster, "s:s-w%C3%B6rd%2F%3A%40", "postgres"));
    let error = replication(&bound).await.unwrap_err();
    assert!(matches!(error, ConnectError::ChannelBinding(_)), "{error:?}");
}

/// Both kinds of session alike, and the server is not told the password by another way.
#[tokio::test]
async fn require_auth_is_kept_by_both_kinds_of_session() {
    let hba = "host all m all md5\nhost all s all scram-sha-256\nhost all c all password";
    let cluster = cluster(hba, &[]);
    admin(&cluster).await.batch_execute(ROLES).await.unwrap();
    let s = "s:s-w%C3%B6rd%2F%3A%40";
    for (who, allowed, refused) in [
        (s, &["scram-sha-256", "md5,scram-sha-256", "!password,!none"][..], &["md5", "!scram-sha-256", "none"][..]),
        ("m:m-word", &["md5", "!password"], &["scram-sha-256", "!md5", "password,none"]),
        ("c:c-word", &["password", "!none"], &["scram-sha-256", "!password", "md5,none"]),
        // With trust the server asks for nothing.
        ("walhook:x", &["none", "md5,none", "!password"], &["scram-sha-256", "!none", "gss,sspi,oauth"]),
    ] {
        let with = |methods: &str| format!("{}?require_auth={methods}", url(&cluster, who, "postgres"));
        for methods in allowed {
            enter(&with(methods)).await.unwrap_or_else(|error| panic!("{who} {methods}: {error:?}"));
        }
        for methods in refused {
            for error in [replication(&with(methods)).await.err(), sql(&address(&with(methods))).await.err()] {
                let error = error.unwrap_or_else(|| panic!("{who} is let in with {methods}"));
                assert!(
                    matches!(error, ConnectError::RequireAuth { .. }) && error.needs_a_person(),
                    "{methods}: {error:?}"
                );
                assert!(error.to_string().contains("require_auth"), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn a_unix_socket_leads_in() {
    let cluster = cluster("", &[]);
    let socket = format!("host={} port={} user=walhook dbname=postgres", cluster.dir().display(), cluster.port());
    enter(&socket).await.unwrap();
    let mut session = replication(&socket).await.unwrap();
    let identity = session.identify_system().await.unwrap();
    assert_eq!((identity.timeline, &*identity.dbname), (1, "postgres"));
    assert!(identity.system_id > 0 && identity.xlogpos > Lsn::ZERO);
    assert!((100_000..300_000).contains(&session.server_version()), "{}", session.server_version());
}

#[tokio::test]
async fn the_next_server_is_tried_when_one_is_down_or_does_not_suit() {
    let cluster = cluster("", &[]);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let port = cluster.port();
    enter(&format!("postgres://walhook@127.0.0.1:{closed},127.0.0.1:{port}/postgres")).await.unwrap();
    let both = address(&format!("postgres://walhook@127.0.0.1:{closed},localhost:{port}/postgres"));
    let (_, _, one) = sql_somewhere(&both).await.unwrap();
    let [Host::Tcp { name, address: Some(_), port: found }] = &*one.hosts else { panic!("{one:?}") };
    assert_eq!((&**name, *found), ("localhost", port), "later sessions are with the server that let us in");
    let here = format!("postgres://walhook@127.0.0.1:{port}/postgres");
    enter(&format!("{here}?target_session_attrs=read-write")).await.unwrap();
    client(&here).await.batch_execute("ALTER ROLE walhook SET default_transaction_read_only = on").await.unwrap();
    enter(&format!("{here}?target_session_attrs=primary")).await.unwrap();
    let error = enter(&format!("{here}?target_session_attrs=read-write")).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unsuitable(_)), "{error:?}");
    let error = enter(&format!("postgres://walhook@127.0.0.1:{closed}/x")).await.unwrap_err();
    assert!(matches!(error, ConnectError::Reach { .. }) && !error.needs_a_person(), "{error:?}");
}

#[tokio::test]
async fn pitfall_61_a_standby_that_is_read_takes_no_serializable_default() {
    let primary = cluster("", &[]);
    let admin = admin(&primary).await;
    let setup = [
        "SELECT pg_create_physical_replication_slot('standby', true)",
        "ALTER DATABASE postgres SET \
                 default_transaction_isolation = serializable",
    ];
    for statement in setup {
        admin.batch_execute(statement).await.unwrap();
    }
    let standby = primary.standby(&[]).unwrap();
    let session = client(&standby.url("postgres")).await;
    session.query("SELECT relname::text FROM pg_class LIMIT 1", &[]).await.unwrap();
    enter(&standby.url("postgres")).await.unwrap();
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_on() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let error = enter(&format!("postgres://me@127.0.0.1:{port}/x?connect_timeout=2")).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { .. }), "{error:?}");
}

#[tokio::test]
async fn pitfall_10_the_session_settings_win_over_those_of_the_database() {
    let cluster = cluster("", &[]);
    let url = cluster.url("postgres");
    let hostile =
        "ALTER DATABASE postgres SET DateStyle = 'German'; ALTER DATABASE postgres SET IntervalStyle = 'sql_standard';
        ALTER DATABASE postgres SET TimeZone = 'Asia/Tokyo'; ALTER DATABASE postgres SET extra_float_digits = -5;
        ALTER DATABASE postgres SET bytea_output = 'escape'; ALTER DATABASE postgres SET statement_timeout = '1ms';
        ALTER DATABASE postgres SET lc_monetary = 'POSIX'";
    client(&url).await.batch_execute(hostile).await.unwrap();
    let values = "SELECT timestamptz '2024-03-15 01:02:03+00', interval '1 mon -2 days 03:04:05', 0.1::float8 + 0.2::float8, \
                  0.1::float4, '\\x00ff'::bytea, current_setting('statement_timeout'), current_setting('lc_monetary')";
    let expected =
        ["2024-03-15 01:02:03+00", "1 mon -2 days +03:04:05", "0.30000000000000004", "0.1", "\\x00ff", "0", "C"];
    let rows = replication(&url).await.unwrap().session.query(values).await.unwrap();
    assert_eq!(rows, [expected.map(|text| Some(text.to_owned()))]);
    let rows = client(&url).await.simple_query(values).await.unwrap();
    let row = rows.iter().find_map(|m| if let SimpleQueryMessage::Row(row) = m { Some(row) } else { None }).unwrap();
    assert_eq!((0..7).map(|index| row.get(index).unwrap()).collect::<Vec<_>>(), expected);
    let overridden = format!("{url}?options=-c%20TimeZone%3DAsia/Tokyo");
    let error = enter(&overridden).await.unwrap_err();
    assert!(matches!(error, ConnectError::SessionOption { name: "TimeZone", .. }), "{error:?}");
    enter(&format!("{url}?options=-c%20work_mem%3D8MB")).await.unwrap();
}

/// The source gives a silent server up after 45 s; one that never asks for a status would be silent that long.
#[tokio::test]
async fn the_walsender_gives_a_sign_of_life_in_time_unless_the_address_says_otherwise() {
    let cluster = cluster("", &[("wal_sender_timeout", "0")]);
    let url = cluster.url("postgres");
    let question = "SELECT current_setting('wal_sender_timeout')";
    for (url, expected) in [(url.clone(), "1min"), (format!("{url}?options=-c%20wal_sender_timeout%3D5min"), "5min")] {
        let rows = replication(&url).await.unwrap().session.query(question).await.unwrap();
        assert_eq!(rows, [[Some(expected.to_owned())]]);
    }
}

#[tokio::test]
async fn an_error_in_a_query_leaves_the_session_usable() {
    let cluster = cluster("", &[]);
    let mut session = replication(&cluster.url("postgres")).await.unwrap();
    let error = session.start("missing", "p", Lsn::ZERO).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("42704"), "{error:?}");
    let error = session.session.query("SELECT 1/0").await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("22012"), "{error:?}");
    session.identify_system().await.unwrap();
}

#[tokio::test]
async fn a_promotion_says_where_the_timeline_before_was_left() {
    let cluster = cluster("", &[]);
    let url = cluster.url("postgres");
    let before = {
        let mut session = replication(&url).await.unwrap();
        let identity = session.identify_system().await.unwrap();
        assert_eq!(session.switch_point(identity.timeline, identity.timeline).await.unwrap(), None);
        identity
    };
    cluster.stop("fast").unwrap();
    let (signal, data) = (cluster.data().join("standby.signal"), cluster.data().metadata().unwrap());
    std::fs::write(&signal, "").unwrap();
    chown(&signal, Some(data.uid()), Some(data.gid())).unwrap();
    cluster.resume().unwrap();
    admin(&cluster).await.query_one("SELECT pg_promote()", &[]).await.unwrap();

    let mut session = replication(&url).await.unwrap();
    let after = session.identify_system().await.unwrap();
    assert_eq!((after.system_id, after.timeline), (before.system_id, before.timeline + 1));
    let left = session.switch_point(after.timeline, before.timeline).await.unwrap().unwrap();
    assert!((before.xlogpos..=after.xlogpos).contains(&left), "{left} is not between {before:?} and {after:?}");
    assert_eq!(session.switch_point(after.timeline, 7).await.unwrap(), None);
    let error = session.switch_point(7, 1).await.unwrap_err();
    assert!(matches!(error, StreamError::Server(_)), "{error:?}");
    session.identify_system().await.unwrap();
}

#[test]
fn a_history_is_lines_of_timeline_lsn_and_reason() {
    let history = "# made by hand\n\n1\t0/16D68E8\tno recovery target specified\n\n3\t16/B374D848\tbefore 2000-01-01\n";
    assert_eq!(
        [1, 2, 3].map(|of| left_at(history, of).unwrap()),
        [Some(Lsn(0x16D_68E8)), None, Some(Lsn(0x16_B374_D848))]
    );
    assert_eq!(left_at("", 1), Some(None));
    assert_eq!(left_at("1\tnowhere\treason", 1), None);
}

/// The source runs in a task that may move between threads.
#[test]
fn every_future_can_be_sent() {
    fn sendable<T: Send>(_: impl FnOnce(PgAddress, Replication) -> T) {}
    sendable(|address, _| async move { open(&address).await.map(drop) });
    sendable(|address, _| async move { sql(&address).await.map(drop) });
    sendable(|address, _| async move { Replication::connect(&address, &Memory::new(1)).await.map(drop) });
    sendable(|_, mut replication| async move { replication.start("s", "p", Lsn::ZERO).await });
    sendable(|_, mut replication| async move { replication.switch_point(2, 1).await });
    sendable(|_, mut replication| async move { replication.read().await.map(drop) });
    sendable(|_, mut replication| async move { replication.status(Lsn::ZERO, Lsn::ZERO, false).await });
    sendable(|_, replication| async move { replication.finish(Lsn::ZERO, Lsn::ZERO).await });
}

#[test]
fn versions_become_numbers() {
    let numbers = ["15.18 (Debian 15.18-1)", "14.2", "19beta1", "10.0", "17", "x"].map(version_number);
    assert_eq!(numbers, [150_018, 140_002, 190_000, 100_000, 170_000, 0]);
}

#[test]
fn names_in_the_command_are_quoted() {
    let command = start_command("s\"x", "p'q\"r", Lsn(0x16_0000_0001), 130_000);
    let expected =
        "START_REPLICATION SLOT \"s\"\"x\" LOGICAL 16/1 (proto_version '1', publication_names '\"p''q\"\"r\"')";
    assert_eq!(command, expected);
    assert!(start_command("s", "p", Lsn::ZERO, 140_000).contains(", messages 'true')"));
}

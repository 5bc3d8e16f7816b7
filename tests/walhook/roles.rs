//! Whoever follows docs/OPERATING.md can start, on every server: what is read beyond need may be refused, and then is not
//! known; what is needed names its grant.

use tokio_postgres::SimpleQueryMessage;

use crate::daemon::{Config, Daemon, text_of, troubles, walhook};
use crate::order::counters;
use crate::postgres::{Postgres, until};
use crate::receiver::Receiver;

/// What may be taken from everybody, and walhook does without.
const BEYOND_NEED: &[&str] = &[
    "EXECUTE ON FUNCTION pg_control_system()",
    "EXECUTE ON FUNCTION pg_has_role(oid, text)",
    "EXECUTE ON FUNCTION has_database_privilege(text, text)",
    "EXECUTE ON FUNCTION obj_description(oid, name)",
    "EXECUTE ON FUNCTION to_jsonb(anyelement)",
    "EXECUTE ON FUNCTION pg_current_wal_lsn()",
    "EXECUTE ON FUNCTION pg_last_wal_replay_lsn()",
    "EXECUTE ON FUNCTION pg_wal_lsn_diff(pg_lsn, pg_lsn)",
    "EXECUTE ON FUNCTION age(xid)",
    "EXECUTE ON FUNCTION pg_backend_pid()",
    "EXECUTE ON FUNCTION pg_blocking_pids(int)",
    "EXECUTE ON FUNCTION pg_show_all_settings()",
    "EXECUTE ON FUNCTION format_type(oid, int)",
    "EXECUTE ON FUNCTION current_setting(text, bool)",
    "EXECUTE ON FUNCTION pg_relation_size(regclass, text)",
    "SELECT ON pg_locks",
    "SELECT ON pg_roles",
    "SELECT ON pg_settings",
    "SELECT ON pg_stat_activity",
    "SELECT ON pg_stat_replication",
    "SELECT ON pg_prepared_xacts",
    "SELECT ON pg_description",
    "SELECT ON pg_cast",
];

/// What nothing can be read without.
const NEEDED: &[&str] = &[
    "EXECUTE ON FUNCTION convert_to(text, name)",
    "EXECUTE ON FUNCTION pg_partition_root(regclass)",
    "SELECT ON pg_replication_slots",
    "SELECT ON pg_publication",
    "SELECT ON pg_index",
    "SELECT ON pg_class",
];

fn check(config: &Config) -> (Option<i32>, String) {
    let output = walhook(&["check", "--config", &config.path().to_string_lossy()]);
    (output.status.code(), text_of(&output))
}

/// What the role gets for a setting that it may not see: `raises 42501` or `nothing`.
async fn of_hidden_setting(postgres: &Postgres) -> String {
    let (client, connection) = tokio_postgres::connect(&postgres.url(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    match client.simple_query("SELECT current_setting('output_plugin_libraries', true)").await {
        Ok(_) => "nothing".to_owned(),
        Err(error) => format!("raises {}", error.code().unwrap().code()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_the_tests_connect_as() {
    let postgres = Postgres::start();
    let version = postgres.value("SHOW server_version").await;
    let version = version.split(' ').next().unwrap();
    let attributes =
        "SELECT rolname || ', ' || rolsuper FROM pg_roles WHERE rolname IN ('app', 'walhook', 'walhook_reader')";
    let roles = postgres.rows(&format!("{attributes} ORDER BY 1")).await;
    let roles: Vec<_> = roles.into_iter().flatten().flatten().collect();
    assert_eq!(roles, ["app, false", "walhook, false", "walhook_reader, false"]);
    println!("server: Postgres {version}, as walhook: {}", of_hidden_setting(&postgres).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_54_a_role_as_documented_can_start_and_check_says_what_it_could_not_see() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::start().await;
    let url = postgres.url();
    let written = walhook(&["init", "--url", &url, "--output", "-"]);
    assert_eq!(written.status.code(), Some(0), "{}", text_of(&written));

    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let (code, said) = check(&config);
    assert_eq!(code, Some(0), "{said}");
    let raises = of_hidden_setting(&postgres).await.starts_with("raises");
    assert_eq!(said.contains("not seen: output_plugin_libraries"), raises, "{said}");
    assert_eq!(said.contains("GRANT pg_read_all_settings TO \"walhook\";"), raises, "{said}");
    let daemon = Daemon::start(&config).await;
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait_acknowledged(1).await;
    assert!(daemon.sigterm().await.success());

    // The other role needs nothing but the stream.
    let managed = Config::reader_source(&postgres).replace("[source.app]", "[source.app]\nslot = \"managed\"");
    let managed = managed.replace("[source.app]", "[source.app]\npublication = \"managed\"");
    let managed = Config::new(&(managed + &Config::sink("orders", &receiver.url(), "")));
    postgres.sql("CREATE PUBLICATION managed FOR TABLE counters").await;
    postgres.make_slot("managed").await;
    let (code, said) = check(&managed);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.contains("GRANT pg_read_all_settings TO \"walhook_reader\";"), raises, "{said}");
    let daemon = Daemon::start(&managed).await;
    postgres.sql("INSERT INTO counters VALUES (2, 0)").await;
    receiver.wait_acknowledged(2).await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_54_what_is_read_beyond_need_may_be_refused_one_by_one_and_all_at_once() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let daemon = Daemon::start(&config).await;
    assert!(daemon.sigterm().await.success());
    for what in BEYOND_NEED {
        postgres.admin_sql(&format!("REVOKE {what} FROM PUBLIC")).await;
        let (code, said) = check(&config);
        assert_eq!(code, Some(0), "without {what}:\n{said}");
        postgres.admin_sql(&format!("GRANT {what} TO PUBLIC")).await;
    }
    for what in BEYOND_NEED {
        postgres.admin_sql(&format!("REVOKE {what} FROM PUBLIC")).await;
    }
    let (code, said) = check(&config);
    assert_eq!(code, Some(0), "{said}");
    for (seen, grant) in [
        ("not seen: the cluster's identity", "proname = 'pg_control_system'"),
        ("not seen: pg_roles", "GRANT SELECT ON pg_catalog.\"pg_roles\" TO \"walhook\";"),
        ("not seen: pg_stat_replication", "GRANT SELECT ON pg_catalog.\"pg_stat_replication\" TO \"walhook\";"),
        ("not seen: the publication's comment", "proname = 'obj_description'"),
    ] {
        assert!(said.contains(seen) && said.contains(grant), "{seen}, {grant}:\n{said}");
    }
    let written = walhook(&["init", "--url", &postgres.url(), "--output", "-"]);
    assert_eq!(written.status.code(), Some(0), "{}", text_of(&written));
    let daemon = Daemon::start(&config).await;
    postgres.sql("CREATE TABLE later (id int PRIMARY KEY); INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait_acknowledged(1).await;
    // Tables are looked after all the same; whose the publication is only its comment says.
    postgres.sql("ALTER TABLE counters DROP CONSTRAINT counters_pkey").await;
    until("a table whose writes fail to be named", || async {
        let said = troubles(&daemon.ready().await.unwrap().1);
        crate::postgres::state(said.contains("counters") && said.contains("its own UPDATE and DELETE fail"), said)
    })
    .await;
    postgres.sql("ALTER TABLE counters ADD PRIMARY KEY (id)").await;
    daemon.wait_ready().await;
    assert!(daemon.sigterm().await.success());
    // A slot is made without them too.
    postgres.admin_sql("SELECT pg_drop_replication_slot('walhook_app'); DROP PUBLICATION walhook_app").await;
    config.remove_state();
    let daemon = Daemon::start(&config).await;
    postgres.sql("INSERT INTO counters VALUES (2, 0)").await;
    receiver.wait_acknowledged(2).await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_54_what_is_needed_names_the_grant_which_then_suffices() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let admin = postgres.admin_client().await;
    for what in NEEDED {
        postgres.admin_sql(&format!("REVOKE {what} FROM PUBLIC")).await;
        let (code, said) = check(&config);
        assert_eq!(code, Some(69), "without {what}:\n{said}");
        let mut daemon = Daemon::launch(&config).allow_error("");
        assert_eq!(daemon.wait_exit().await.code(), Some(69), "without {what}: {}", daemon.printed());
        // As a superuser pastes it: a statement, or one that prints it.
        let mends = said.lines().filter_map(|line| line.split_once("-> "));
        let mend = mends.map(|(_, mend)| mend).find(|mend| mend.contains("GRANT")).unwrap_or_else(|| panic!("{said}"));
        let statement = mend.split_inclusive(';').collect::<Vec<_>>();
        let statement = match mend.starts_with("SELECT format(") {
            true => mend.rsplit_once(';').unwrap().0.to_owned(),
            false => statement[0].to_owned(),
        };
        for message in admin.simple_query(&statement).await.unwrap_or_else(|error| panic!("{mend}: {error:?}")) {
            if let SimpleQueryMessage::Row(row) = message {
                admin.simple_query(row.get(0).unwrap()).await.unwrap();
            }
        }
        assert_eq!(check(&config).0, Some(0), "{mend} does not suffice:\n{}", check(&config).1);
        postgres.admin_sql(&format!("GRANT {what} TO PUBLIC")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_54_heartbeats_that_are_refused_are_said_and_the_stream_goes_on() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::start().await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;
    // Its arguments differ from version to version.
    let forms =
        "SELECT string_agg(oid::regprocedure::text, ', ') FROM pg_proc WHERE proname = 'pg_logical_emit_message'";
    let emit = format!("EXECUTE ON FUNCTION {}", postgres.value(forms).await);
    postgres.admin_sql(&format!("REVOKE {emit} FROM PUBLIC")).await;
    until("readyz to say so", || async {
        let (code, body) = daemon.ready().await.unwrap();
        let said = troubles(&body);
        crate::postgres::state(code == 200 && said.contains("heartbeat") && said.contains("pg_logical_emit"), said)
    })
    .await;
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait_acknowledged(1).await;
    postgres.admin_sql(&format!("GRANT {emit} TO PUBLIC")).await;
    until("the trouble to be gone", || async {
        let said = troubles(&daemon.ready().await.unwrap().1);
        crate::postgres::state(!said.contains("heartbeat"), said)
    })
    .await;
    assert!(daemon.sigterm().await.success());
}

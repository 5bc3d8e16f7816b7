//! Defaults of server, database and role that walhook's own statements could not live with.

use tokio_postgres::Client;

use super::SLOT;
use crate::daemon::{Config, Daemon, text_of, troubles, walhook};
use crate::encodings::{Pooler, STRIP};
use crate::order::counters;
use crate::postgres::{Postgres, state, until};
use crate::receiver::Receiver;

/// Each would make a statement of walhook's fail, wait, be given up or mean something else.
const DEFAULTS: &[(&str, &str, u32)] = &[
    ("default_transaction_read_only", "on", 14),
    ("default_transaction_isolation", "serializable", 14),
    ("default_transaction_deferrable", "on", 14),
    ("synchronous_commit", "remote_apply", 14),
    ("row_security", "off", 14),
    ("lc_monetary", "'POSIX'", 14),
    ("exit_on_error", "on", 14),
    ("array_nulls", "off", 14),
    ("transform_null_equals", "on", 14),
    ("search_path", "nowhere", 14),
    ("quote_all_identifiers", "on", 14),
    ("standard_conforming_strings", "off", 14),
    ("client_min_messages", "error", 14),
    ("DateStyle", "'German, DMY'", 14),
    ("client_encoding", "LATIN1", 14),
    ("statement_timeout", "1", 14),
    ("lock_timeout", "1", 14),
    ("idle_in_transaction_session_timeout", "1", 14),
    ("idle_session_timeout", "100", 14),
    ("transaction_timeout", "20", 17),
    ("role", "app", 14),
];

/// What a pooler that drops startup options may leave to the server's defaults.
const SET_BY_STATEMENTS: &[&str] = &[
    "default_transaction_read_only",
    "default_transaction_isolation",
    "default_transaction_deferrable",
    "synchronous_commit",
    "row_security",
    "lc_monetary",
    "exit_on_error",
    "transaction_timeout",
    "role",
];

fn check(config: &Config) -> (Option<i32>, String) {
    let output = walhook(&["check", "--config", &config.path().to_string_lossy()]);
    (output.status.code(), text_of(&output))
}

/// `admin` is a session from before the defaults, which it does not take on.
async fn assert_all_works(admin: &Client, config: &Config, receiver: &Receiver, what: &str) {
    let (code, said) = check(config);
    assert_eq!(code, Some(0), "{what}: {said}");
    let daemon = Daemon::start(config).await;
    let before = receiver.message_count();
    admin.batch_execute("INSERT INTO counters SELECT max(id) + 1, 0 FROM counters").await.unwrap();
    receiver.wait(&format!("the row under {what}"), |receiver| receiver.message_count() > before).await;
    for complaint in ["heartbeat failed", "could not"] {
        assert!(!daemon.logged(complaint), "{what}: {}", daemon.printed());
    }
    assert!(daemon.sigterm().await.success());
    // The next one makes both anew.
    let anew = format!("SELECT pg_drop_replication_slot('{SLOT}'); DROP PUBLICATION {SLOT}");
    admin.batch_execute(&anew).await.unwrap();
    config.remove_state();
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_61_defaults_of_role_and_database_change_nothing_for_our_own_statements() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    let (major, admin) = (postgres.major().await, postgres.admin_client().await);
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    for whose in ["ROLE walhook IN DATABASE postgres", "DATABASE postgres"] {
        let defaults = || DEFAULTS.iter().filter(|(.., since)| major >= *since);
        for (name, value, _) in defaults() {
            admin.batch_execute(&format!("ALTER {whose} SET {name} = {value}")).await.unwrap();
        }
        let output = walhook(&["init", "--url", &postgres.url(), "--output", "-"]);
        assert_eq!(output.status.code(), Some(0), "{whose}: {}", text_of(&output));
        assert_all_works(&admin, &config, &receiver, whose).await;
        for (name, ..) in defaults() {
            admin.batch_execute(&format!("ALTER {whose} RESET {name}")).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_61_behind_a_pooler_that_drops_options_our_own_statements_work_too() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    let (major, admin) = (postgres.major().await, postgres.admin_client().await);
    let receiver = Receiver::start().await;
    for (name, value, since) in DEFAULTS.iter().filter(|(name, ..)| SET_BY_STATEMENTS.contains(name)) {
        if major >= *since {
            postgres.admin_sql(&format!("ALTER ROLE walhook SET {name} = {value}")).await;
        }
    }
    // Those that are checked after login, a pooler's users set on the role.
    let shaping = "ALTER ROLE walhook SET TimeZone = 'UTC'; ALTER ROLE walhook SET extra_float_digits = 3;
        ALTER ROLE walhook SET IntervalStyle = 'postgres'; ALTER ROLE walhook SET client_min_messages = 'warning'";
    postgres.admin_sql(shaping).await;
    let pooler = Pooler::start(postgres.cluster.port(), STRIP).await;
    let source = Config::source(&postgres).replace(&postgres.cluster.port().to_string(), &pooler.port.to_string());
    let config = Config::new(&(source + &Config::sink("orders", &receiver.url(), "")));
    assert_all_works(&admin, &config, &receiver, "the role's defaults behind a pooler").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_60_our_own_statements_do_not_wait_for_a_standby_that_is_us_and_it_is_said_that_commits_do() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let set = |names: &str| format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'");
    postgres.admin_sql(&set("*")).await;
    postgres.admin_sql("SELECT pg_reload_conf()").await;
    until("the setting to take effect", || async {
        let shown = postgres.value("SHOW synchronous_standby_names").await;
        state(shown == "*", shown)
    })
    .await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let (code, said) = check(&config);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("commits wait for walhook") && said.contains("SELECT application_name"), "{said}");

    // Publication and slot are made while nobody is there who would let a commit pass.
    let daemon = Daemon::start(&config).await;
    until("readyz to say so", || async {
        let (code, body) = daemon.ready().await.unwrap();
        state(code == 200 && troubles(&body).contains("commits wait for walhook"), body)
    })
    .await;
    assert_eq!(postgres.admin_value("SELECT sync_state FROM pg_stat_replication").await, "sync", "so it is");
    // The application's commit waits for the delivery, and no longer.
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait_acknowledged(1).await;
    // A list that does not name us is nobody's trouble.
    postgres.admin_sql(&set("somebody")).await;
    postgres.admin_sql("SELECT pg_reload_conf()").await;
    until("the trouble to be gone", || async {
        let said = troubles(&daemon.ready().await.unwrap().1);
        state(!said.contains("commits wait"), said)
    })
    .await;
    assert!(daemon.sigterm().await.success());
}

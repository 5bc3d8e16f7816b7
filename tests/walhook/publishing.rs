//! P5 for tables: one that is missing, locked, not ours or without an identity holds only itself.

use std::time::Duration;

use serde_json::Value;

use crate::daemon::{Config, Daemon, text_of, troubles, walhook};
use crate::postgres::{Postgres, state, until, until_within};
use crate::receiver::Receiver;

const SLOT: &str = "walhook_app";

/// What `/readyz` says of single tables, with its severity, while the daemon is ready.
async fn told(daemon: &Daemon) -> Vec<(String, String, String)> {
    let Some((200, body)) = daemon.ready().await else { return Vec::new() };
    let text = |trouble: &Value, key: &str| trouble[key].as_str().unwrap_or_default().to_owned();
    let all = body["troubles"].as_array().unwrap().iter();
    all.map(|trouble| (text(trouble, "severity"), text(trouble, "what"), text(trouble, "advice"))).collect()
}

/// Waits until one of these holds `part`; gives its advice.
async fn wait_told(daemon: &Daemon, severity: &str, part: &str) -> String {
    until(&format!("/readyz to say: {part}"), || async {
        let all = told(daemon).await;
        let found = all.iter().find(|(level, what, _)| level == severity && what.contains(part));
        found.map(|(_, _, advice)| advice.clone()).ok_or(all.clone())
    })
    .await
}

/// Waits until none of them holds `part`.
async fn wait_untold(daemon: &Daemon, part: &str) {
    until(&format!("/readyz to say no more: {part}"), || async {
        let body = daemon.ready().await;
        let is_gone = body.as_ref().is_some_and(|(status, body)| *status == 200 && !troubles(body).contains(part));
        state(is_gone, body)
    })
    .await;
}

/// The statements of an advice, without whom they are for.
fn sql_of(advice: &str) -> String {
    let statements = advice.lines().filter_map(|line| line.find("ALTER ").and_then(|at| line.get(at..)));
    statements.collect::<Vec<_>>().join("\n")
}

fn checked(config: &Config) -> (Option<i32>, String) {
    let output = walhook(&["check", "--config", &config.path().to_string_lossy()]);
    (output.status.code(), text_of(&output))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_table_that_is_missing_holds_only_itself_and_is_read_once_it_is_there() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE orders (id int PRIMARY KEY)").await;
    let receiver = Receiver::start().await;
    let tables = "tables = [\"public.orders\", \"public.later\"]";
    let config = Config::one_sink(&postgres, &receiver.url(), tables);
    let missing = "the database has no table public.later";
    let (code, text) = checked(&config);
    assert_eq!((code, text.matches(missing).count()), (Some(69), 1), "said once: {text}");
    let twice = Config::sink("orders", &receiver.url(), tables) + &Config::sink("more", &receiver.url(), tables);
    let (_, text) = checked(&Config::new(&(Config::source(&postgres) + &twice)));
    assert_eq!(text.matches(missing).count(), 1, "said once, whoever names it: {text}");
    assert!(text.contains("; also sink.more.tables"), "{text}");

    let daemon = Daemon::start(&config).await;
    wait_told(&daemon, "error", missing).await;
    postgres.sql("INSERT INTO orders VALUES (1)").await;
    receiver.wait_acknowledged(1).await;
    postgres.sql("CREATE TABLE later (id int PRIMARY KEY)").await;
    // It is looked for every 10 s; the rest is for a machine that does other things too.
    until_within(Duration::from_secs(20), "the new table to be published", || async {
        let tables = postgres.rows("SELECT tablename FROM pg_publication_tables").await;
        state(tables.iter().flatten().flatten().any(|table| table == "later"), tables)
    })
    .await;
    wait_untold(&daemon, missing).await;
    postgres.sql("INSERT INTO later VALUES (2)").await;
    let messages = receiver.wait_messages(2).await;
    assert_eq!(messages[1]["metadata"]["table_name"], "later");
    assert_eq!(checked(&config).0, Some(0));
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_of_its_tables_it_runs_and_waits_for_them() {
    let postgres = Postgres::start();
    let receiver = Receiver::start().await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "tables = [\"public.orders\"]")).await;
    wait_told(&daemon, "error", "the database has no table public.orders").await;
    postgres.sql("CREATE TABLE orders (id int PRIMARY KEY)").await;
    wait_untold(&daemon, "no table public.orders").await;
    postgres.sql("INSERT INTO orders VALUES (1)").await;
    receiver.wait_acknowledged(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_table_without_identity_holds_only_itself_and_what_is_advised_mends_it() {
    let postgres = Postgres::start();
    let tables = "CREATE TABLE orders (id int PRIMARY KEY); CREATE TABLE bare (v int); INSERT INTO bare VALUES (1)";
    postgres.sql(tables).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "tables = [\"public.orders\", \"public.bare\"]");
    let (code, text) = checked(&config);
    assert_eq!(code, Some(69), "{text}");
    let daemon = Daemon::start(&config).await;
    let sql = wait_told(&daemon, "error", "public.bare has no primary key and no replica identity").await;
    postgres.sql("INSERT INTO orders VALUES (1); UPDATE bare SET v = 2").await;
    receiver.wait_acknowledged(1).await;
    postgres.sql(&sql_of(&sql)).await;
    wait_untold(&daemon, "no replica identity").await;
    postgres.sql("UPDATE bare SET v = 3").await;
    let messages = receiver.wait_messages(2).await;
    assert_eq!((&messages[1]["record"]["v"], &messages[1]["changes"]["v"]), (&3.into(), &2.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_column_that_deletes_would_not_carry_or_that_is_missing_holds_only_its_table() {
    let postgres = Postgres::start();
    postgres
        .sql("CREATE TABLE orders (id int PRIMARY KEY, customer_id int); CREATE TABLE other (id int PRIMARY KEY)")
        .await;
    let receiver = Receiver::start().await;
    let text = Config::source(&postgres)
        + &Config::sink("orders", &receiver.url(), "tables = [\"public.orders\"]\ngroup_by = [\"customer_id\"]")
        + &Config::sink("other", &receiver.url(), "tables = [\"public.other\"]\ngroup_by = [\"shop\"]")
        + &Config::sink("all", &receiver.url(), "tables = [\"public.third\"]");
    postgres.sql("CREATE TABLE third (id int PRIMARY KEY)").await;
    let config = Config::new(&text);
    let (code, said) = checked(&config);
    assert_eq!(code, Some(69), "an ALTER TABLE mends both: {said}");
    let daemon = Daemon::start(&config).await;
    let sql = wait_told(&daemon, "error", "do not carry group_by customer_id").await;
    wait_told(&daemon, "error", "public.other has no column shop to group by").await;
    postgres.sql("INSERT INTO third VALUES (1)").await;
    receiver.wait_acknowledged(1).await;
    postgres
        .sql(&format!(
            "{} ALTER TABLE other ADD COLUMN shop int; ALTER TABLE other REPLICA IDENTITY FULL",
            sql_of(&sql)
        ))
        .await;
    wait_untold(&daemon, "group by").await;
    wait_untold(&daemon, "group_by").await;
    postgres.sql("INSERT INTO orders VALUES (1, 7); INSERT INTO other VALUES (1, 8)").await;
    receiver.wait_acknowledged(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_59_a_table_that_a_migration_has_locked_waits_alone_while_starting_and_while_running() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE early (id int PRIMARY KEY); CREATE TABLE locked (id int PRIMARY KEY)").await;
    let receiver = Receiver::start().await;
    let migration = postgres.client().await;
    let lock = "BEGIN; SET LOCAL application_name = 'migrate'; LOCK TABLE";
    migration.batch_execute(&format!("{lock} locked IN SHARE UPDATE EXCLUSIVE MODE")).await.unwrap();
    let pid: i32 = migration.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;
    wait_told(&daemon, "warning", &format!("public.locked is not published yet: backend {pid}")).await;
    postgres.sql("INSERT INTO early VALUES (1)").await;
    receiver.wait_acknowledged(1).await;
    migration.batch_execute("COMMIT").await.unwrap();
    wait_untold(&daemon, "is not published yet").await;
    postgres.sql("INSERT INTO locked VALUES (2)").await;
    receiver.wait_acknowledged(2).await;

    // While it runs: of two new tables one is locked, and heartbeats and the slot go on.
    migration.batch_execute("CREATE TABLE fresh (id int PRIMARY KEY)").await.unwrap();
    migration.batch_execute(&format!("{lock} fresh IN SHARE MODE")).await.unwrap();
    postgres.sql("CREATE TABLE free (id int PRIMARY KEY)").await;
    until_within(Duration::from_secs(90), "the free table to be published", || async {
        let tables = postgres.rows("SELECT tablename FROM pg_publication_tables").await;
        state(tables.iter().flatten().flatten().any(|table| table == "free"), tables)
    })
    .await;
    wait_told(&daemon, "warning", &format!("public.fresh is not published yet: backend {pid}")).await;
    let now = postgres.value("SELECT pg_current_wal_lsn()").await;
    until("the slot to move", || async {
        let moved =
            format!("SELECT confirmed_flush_lsn > '{now}' FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
        state(postgres.value(&moved).await == "t", ())
    })
    .await;
    migration.batch_execute("COMMIT").await.unwrap();
    wait_untold(&daemon, "is not published yet").await;
    postgres.sql("INSERT INTO fresh VALUES (3)").await;
    receiver.wait_acknowledged(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_59_thousands_of_tables_are_published_where_the_lock_table_is_small() {
    let tables = 6000;
    let postgres = Postgres::with(&[
        ("max_connections", "25"),
        ("max_locks_per_transaction", "64"),
        ("max_wal_senders", "5"),
        ("max_worker_processes", "2"),
    ]);
    let client = postgres.client().await;
    for from in (1..=tables).step_by(50) {
        let made = format!(
            "DO $$ BEGIN FOR i IN {from}..{from} + 49 LOOP \
             EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY)', i); END LOOP; END $$"
        );
        client.batch_execute(&made).await.unwrap();
    }
    // In one statement they are too many, or this would show nothing.
    let all = "SELECT 'CREATE PUBLICATION p FOR TABLE ' || string_agg(tablename, ', ') FROM pg_tables WHERE schemaname = 'public'";
    let all = postgres.value(all).await;
    let admin = postgres.admin_client().await;
    let refused = admin.batch_execute(&all).await.unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("out of shared memory"), "{refused:?}");
    // The error comes before its locks are given back, the next answer after that.
    admin.batch_execute("SELECT 1").await.unwrap();

    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let (code, text) = checked(&config);
    assert_eq!(code, Some(0), "{text}");
    let daemon = Daemon::start(&config).await;
    assert_eq!(postgres.value("SELECT count(*) FROM pg_publication_rel").await, tables.to_string());
    postgres.sql(&format!("INSERT INTO t1 VALUES (1); INSERT INTO t{tables} VALUES (1)")).await;
    receiver.wait_acknowledged(2).await;
    assert!(daemon.sigterm().await.success());
    // They are taken out likewise.
    let config = Config::one_sink(&postgres, &receiver.url(), "tables = [\"public.t7\"]");
    let daemon = Daemon::start(&config).await;
    assert_eq!(postgres.value("SELECT count(*) FROM pg_publication_rel").await, "1");
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_another_role_holds_only_itself() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE orders (id int PRIMARY KEY)").await;
    postgres.admin_sql("CREATE TABLE theirs (id int PRIMARY KEY)").await;
    let receiver = Receiver::start().await;
    let tables = "tables = [\"public.orders\", \"public.theirs\"]";
    let config = Config::one_sink(&postgres, &receiver.url(), tables);
    assert_eq!(checked(&config).0, Some(69));
    let daemon = Daemon::start(&config).await;
    wait_told(&daemon, "error", "public.theirs belongs to another role").await;
    postgres.sql("INSERT INTO orders VALUES (1)").await;
    receiver.wait_acknowledged(1).await;
    // Nothing at all that may be read ends the start.
    drop(daemon);
    let config = Config::one_sink(&postgres, &receiver.url(), "tables = [\"public.theirs\"]");
    let mut ended = Daemon::launch(&config).allow_error("");
    assert_eq!(ended.wait_exit().await.code(), Some(69), "{}", ended.printed());
}

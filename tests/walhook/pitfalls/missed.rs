//! What is not captured of a table is said, by name, until its cause is gone or a person accepts it.

use std::time::Duration;

use serde_json::Value;

use super::{SLOT, make_slot, managed_config};
use crate::daemon::{Config, Daemon, text_of, troubles, walhook};
use crate::postgres::{Postgres, state, until_within};
use crate::receiver::Receiver;

/// New tables are looked for every 30 s.
const LOOKED: Duration = Duration::from_secs(70);

/// `/readyz`, once what it says is as `holds` wants.
async fn wait_said(daemon: &Daemon, what: &str, holds: impl Fn(&str) -> bool) -> String {
    until_within(LOOKED, what, || async {
        let (code, body) = daemon.ready().await.ok_or_else(|| "nothing listens".to_owned())?;
        let said = troubles(&body);
        if code == 200 && holds(&said) { Ok(said) } else { Err(format!("{code} {said}")) }
    })
    .await
}

/// The warning that names all of these.
async fn wait_warned(daemon: &Daemon, parts: &[&str]) {
    let warns = |said: &str| {
        let troubles: Vec<Value> = serde_json::from_str(said).unwrap_or_default();
        troubles.iter().any(|trouble| {
            trouble["severity"] == "warning" && parts.iter().all(|part| trouble.to_string().contains(part))
        })
    };
    wait_said(daemon, &format!("a warning of {parts:?}"), warns).await;
}

fn has(receiver: &Receiver, table: &str, id: i64) -> bool {
    receiver
        .messages()
        .iter()
        .any(|message| message["metadata"]["table_name"] == *table && message["record"]["id"] == id)
}

async fn wait_published(postgres: &Postgres, table: &str) {
    until_within(LOOKED, &format!("{table} to be published"), || async {
        let rows = postgres.rows("SELECT prrelid::regclass::text FROM pg_publication_rel").await;
        let members: Vec<String> = rows.into_iter().flatten().flatten().collect();
        state(members.iter().any(|member| member == table), members)
    })
    .await;
}

fn checked(config: &Config) -> String {
    let output = walhook(&["check", "--config", &config.path().to_string_lossy()]);
    assert_eq!(output.status.code(), Some(0), "{}", text_of(&output));
    text_of(&output)
}

fn noted(config: &Config) -> Vec<(String, String, bool)> {
    let shown: Value = serde_json::from_slice(&config.state_command(&["show", "--json"]).stdout).unwrap();
    let notes = shown["sources"][0]["tables"].as_array().cloned().unwrap_or_default();
    let text = |note: &Value, key: &str| note[key].as_str().unwrap_or_default().to_owned();
    notes.iter().map(|note| (text(note, "kind"), text(note, "table"), note["accepted"] == true)).collect()
}

fn accept(config: &Config, table: &str) {
    let accepted = config.state_command(&["accept-missed", table]);
    assert!(accepted.status.success(), "{}", text_of(&accepted));
}

const ROOT: &str = "CREATE TABLE root (id int, part int, n int) PARTITION BY LIST (part);
    ALTER TABLE root REPLICA IDENTITY FULL;
    CREATE TABLE kept PARTITION OF root FOR VALUES IN (1); ALTER TABLE kept REPLICA IDENTITY FULL;
    CREATE UNLOGGED TABLE light PARTITION OF root FOR VALUES IN (2);";

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_57_partitions_that_are_not_in_the_wal_are_said_until_they_are_or_a_person_accepts_it() {
    let postgres = Postgres::start();
    let abroad = "CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere;
        GRANT USAGE ON FOREIGN SERVER nowhere TO app";
    postgres.admin_sql(abroad).await;
    postgres.sql(ROOT).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "tables = [\"public.root\"]");
    let daemon = Daemon::start(&config).await;
    postgres.sql("INSERT INTO root VALUES (1, 1, 0)").await;
    let light = ["public.light is an unlogged partition of public.root", "arrives as a delete", "SET LOGGED"];
    wait_warned(&daemon, &light).await;
    // This is what is said.
    postgres.sql("UPDATE root SET part = 2").await;
    let messages = receiver.wait_messages(2).await;
    assert_eq!((&messages[1]["action"], &messages[1]["record"]["id"]), (&"delete".into(), &1.into()));
    assert_eq!(postgres.value("SELECT count(*) FROM root").await, "1");
    postgres.sql("CREATE FOREIGN TABLE abroad PARTITION OF root FOR VALUES IN (3) SERVER nowhere").await;
    wait_warned(&daemon, &["public.abroad is a foreign partition of public.root", "read the server that has it"]).await;
    let metrics = daemon.metrics().await;
    assert_eq!(metrics.sum("walhook_source_table_notes", &[("kind", "unlogged_partition")]), Some(1.0));
    let said = checked(&config);
    assert!(said.contains("public.light is an unlogged") && said.contains("public.abroad is a foreign"), "{said}");
    assert!(daemon.sigterm().await.success());

    accept(&config, "public.light");
    let daemon = Daemon::start(&config).await;
    wait_warned(&daemon, &["public.abroad is a foreign partition"]).await;
    let said = troubles(&daemon.ready().await.unwrap().1);
    assert!(!said.contains("public.light") && !checked(&config).contains("public.light"), "{said}");
    postgres
        .sql("ALTER TABLE light SET LOGGED; ALTER TABLE light REPLICA IDENTITY FULL; DROP FOREIGN TABLE abroad")
        .await;
    wait_said(&daemon, "nothing of partitions", |said| !said.contains("n partition of")).await;
    assert_eq!(noted(&config), [], "what was accepted goes with its cause too");
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_57_children_by_inheritance_are_said_until_a_sink_names_them() {
    let postgres = Postgres::start();
    let tables =
        "CREATE TABLE parent (id int PRIMARY KEY, n int); CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
        CREATE TABLE grandchild (PRIMARY KEY (id)) INHERITS (child); CREATE TABLE lonely (id int PRIMARY KEY)";
    postgres.sql(tables).await;
    let receiver = Receiver::start().await;
    let sink = |tables: &str| Config::source(&postgres) + &Config::sink("orders", &receiver.url(), tables);
    let config = Config::new(&sink("tables = [\"public.parent\"]"));
    let said = checked(&config);
    assert!(said.contains("public.child inherits from public.parent"), "{said}");
    let daemon = Daemon::start(&config).await;
    wait_warned(&daemon, &["public.child inherits from public.parent", "name public.child"]).await;
    wait_warned(&daemon, &["public.grandchild inherits from public.parent"]).await;
    postgres.sql("INSERT INTO child VALUES (1, 1); INSERT INTO parent VALUES (2, 2)").await;
    receiver.wait("the parent's row", |receiver| has(receiver, "parent", 2)).await;
    assert_eq!(receiver.message_count(), 1, "then the child was captured");
    postgres.sql("DROP TABLE grandchild").await;
    wait_said(&daemon, "nothing of the grandchild", |said| !said.contains("grandchild")).await;
    assert!(daemon.sigterm().await.success());
    config.rewrite(&sink("tables = [\"public.parent\", \"public.child\"]"));
    let daemon = Daemon::start(&config).await;
    wait_said(&daemon, "nothing of the child", |said| !said.contains("inherits")).await;
    assert_eq!(noted(&config), []);
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_58_rows_of_before_the_publication_are_said_and_an_empty_new_table_is_not() {
    let postgres = Postgres::start();
    let tables = "CREATE TABLE early (id int PRIMARY KEY); CREATE SCHEMA staging;
        CREATE TABLE staging.filled (id int PRIMARY KEY); INSERT INTO staging.filled VALUES (1);
        CREATE TABLE staging.late (id int PRIMARY KEY); INSERT INTO staging.late VALUES (21);
        CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id)";
    postgres.sql(tables).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let daemon = Daemon::start(&config).await;
    postgres.sql("CREATE TABLE made AS SELECT 1 AS id; ALTER TABLE made ADD PRIMARY KEY (id)").await;
    postgres.sql("ALTER TABLE staging.filled SET SCHEMA public; CREATE TABLE empty (id int PRIMARY KEY)").await;
    // Its name is one that no sink takes: a look before this would else publish it as a table of its own, and say so.
    postgres.sql("ALTER TABLE parts ATTACH PARTITION staging.late FOR VALUES FROM (20) TO (30)").await;
    postgres
        .sql(
            "BEGIN; CREATE TABLE new PARTITION OF parts FOR VALUES FROM (10) TO (20); INSERT INTO parts VALUES (11); COMMIT;
             BEGIN; CREATE TABLE staging.quick (LIKE parts INCLUDING ALL); INSERT INTO staging.quick VALUES (31);
             ALTER TABLE parts ATTACH PARTITION staging.quick FOR VALUES FROM (30) TO (40); COMMIT;
             CREATE TABLE rich (id int PRIMARY KEY, at timestamptz DEFAULT now(), CHECK (id > 0)) PARTITION BY RANGE (id);
             BEGIN; CREATE TABLE rich_1 PARTITION OF rich (at DEFAULT NULL) FOR VALUES FROM (1) TO (9); INSERT INTO rich VALUES (5);
             COMMIT; CREATE TABLE bare (id int PRIMARY KEY) PARTITION BY RANGE (id);
             BEGIN; CREATE TABLE staging.plain (id int NOT NULL); INSERT INTO staging.plain VALUES (1);
             ALTER TABLE bare ATTACH PARTITION staging.plain FOR VALUES FROM (0) TO (9); COMMIT",
        )
        .await;
    for table in ["filled", "made"] {
        let name = format!("public.{table} had been written to before it was published");
        wait_warned(&daemon, &[&name, &format!("accept-missed public.{table} --source app")]).await;
    }
    for (table, root) in [("late", "parts"), ("quick", "parts"), ("plain", "bare")] {
        wait_warned(&daemon, &[&format!("staging.{table} had rows when it became a partition of public.{root}")]).await;
    }
    wait_published(&postgres, "empty").await;
    postgres.sql("INSERT INTO empty VALUES (1); INSERT INTO filled VALUES (2)").await;
    receiver.wait("rows of after", |receiver| has(receiver, "empty", 1) && has(receiver, "filled", 2)).await;
    receiver.wait("the row of the new partition", |receiver| has(receiver, "parts", 11)).await;
    assert!(!has(&receiver, "filled", 1) && !has(&receiver, "made", 1), "then nothing was missed");
    let said = checked(&config);
    assert!(said.contains("public.made had been written to"), "{said}");
    assert!(daemon.sigterm().await.success());

    accept(&config, "public.made");
    accept(&config, "staging.late");
    accept(&config, "staging.quick");
    accept(&config, "staging.plain");
    let daemon = Daemon::start(&config).await;
    wait_warned(&daemon, &["public.filled had been written to"]).await;
    let said = troubles(&daemon.ready().await.unwrap().1);
    for other in [
        "public.made",
        "staging.late",
        "staging.quick",
        "staging.plain",
        "public.rich_1",
        "public.empty",
        "public.new",
        "public.early",
    ] {
        assert!(!said.contains(other), "{other}: {said}");
    }
    postgres.sql("DROP TABLE filled").await;
    wait_said(&daemon, "nothing of a table that is gone", |said| !said.contains("public.filled")).await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_58_a_table_made_with_rows_while_walhook_was_down_is_said_and_one_that_the_config_names_anew_is_not() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE early (id int PRIMARY KEY); INSERT INTO early VALUES (1); CREATE SCHEMA other").await;
    postgres.sql("CREATE TABLE other.old (id int PRIMARY KEY); INSERT INTO other.old VALUES (1)").await;
    let receiver = Receiver::start().await;
    let sink = |tables: &str| Config::source(&postgres) + &Config::sink("orders", &receiver.url(), tables);
    let config = Config::new(&sink("tables = [\"public.*\"]"));
    let daemon = Daemon::start(&config).await;
    assert_eq!(noted(&config), [], "at the first start all tables are as old");
    assert!(daemon.sigterm().await.success());
    postgres.sql("CREATE TABLE down (id int PRIMARY KEY); INSERT INTO down VALUES (1)").await;
    postgres.sql("CREATE TABLE quiet (id int PRIMARY KEY)").await;
    config.rewrite(&sink("tables = [\"public.*\", \"other.*\"]"));
    for _ in 0..2 {
        let daemon = Daemon::start(&config).await;
        wait_warned(&daemon, &["public.down had been written to before it was published"]).await;
        let expected = [("early_rows".to_owned(), "public.down".to_owned(), false)];
        assert_eq!(noted(&config), expected);
        postgres.sql("INSERT INTO other.old VALUES (2) ON CONFLICT DO NOTHING").await;
        receiver.wait("a row of the table that is named anew", |receiver| has(receiver, "old", 2)).await;
        assert!(daemon.sigterm().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_58_a_table_under_a_name_that_no_sink_takes_and_one_that_takes_over_its_name_are_said_over_restarts() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE orders (id int PRIMARY KEY); CREATE TABLE mails (id int PRIMARY KEY)").await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "tables = [\"public.orders\", \"public.mail*\"]");
    let daemon = Daemon::start(&config).await;
    postgres.sql("INSERT INTO orders VALUES (1)").await;
    receiver.wait("a row", |receiver| has(receiver, "orders", 1)).await;
    // A look that is under way meanwhile may take the one table for the other: this table shows that one has ended.
    postgres.sql("CREATE TABLE mailed (id int PRIMARY KEY)").await;
    until_within(LOOKED, "a look for tables to have ended", || async {
        let members = postgres.rows("SELECT prrelid::regclass::text FROM pg_publication_rel").await;
        state(members.len() == 3, members)
    })
    .await;
    let swap = "CREATE TABLE fresh (id int PRIMARY KEY); ALTER TABLE orders RENAME TO orders_old;
        ALTER TABLE fresh RENAME TO orders; CREATE SCHEMA attic; ALTER TABLE mails SET SCHEMA attic";
    postgres.sql(swap).await;
    wait_warned(&daemon, &["public.orders was made or renamed while the source ran"]).await;
    wait_warned(&daemon, &["public.orders is now public.orders_old", "no sink takes"]).await;
    wait_warned(&daemon, &["public.mails is now attic.mails"]).await;
    assert!(daemon.sigterm().await.success());
    let daemon = Daemon::start(&config).await;
    wait_warned(&daemon, &["public.orders was made or renamed while the source ran"]).await;
    wait_warned(&daemon, &["public.mails is now attic.mails"]).await;
    assert!(daemon.sigterm().await.success());
    for table in ["public.orders", "attic.mails"] {
        accept(&config, table);
    }
    assert_eq!(noted(&config), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_58_rows_of_before_its_owner_published_a_table_are_said_too() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE early (id int PRIMARY KEY)").await;
    let publication = format!("CREATE PUBLICATION {SLOT} FOR TABLE early WITH (publish_via_partition_root = true)");
    postgres.sql(&publication).await;
    make_slot(&postgres).await;
    let receiver = Receiver::start().await;
    let config = managed_config(&postgres, &receiver, "");
    let daemon = Daemon::start(&config).await;
    let tables = "CREATE TABLE filled (id int PRIMARY KEY); INSERT INTO filled VALUES (1);
        CREATE TABLE empty (id int PRIMARY KEY)";
    postgres.sql(tables).await;
    wait_said(&daemon, "both to be left out", |said| {
        ["filled", "empty"].iter().all(|table| said.contains(&format!("public.{table} is not in the publication")))
    })
    .await;
    postgres.sql(&format!("ALTER PUBLICATION {SLOT} ADD TABLE filled, empty; INSERT INTO empty VALUES (2)")).await;
    wait_warned(&daemon, &["public.filled had been written to before it was published"]).await;
    let said = troubles(&daemon.ready().await.unwrap().1);
    assert!(!said.contains("public.empty had"), "{said}");
    assert!(daemon.sigterm().await.success());
}

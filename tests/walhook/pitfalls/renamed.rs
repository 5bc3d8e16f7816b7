//! Notes of what was missed go with the table that they speak of: to another name, away with it, and over a crash.

use std::time::Duration;

use serde_json::Value;

use crate::daemon::{Config, Daemon, text_of, troubles};
use crate::postgres::{Postgres, state, until_within};
use crate::receiver::Receiver;

/// New tables are looked for every 30 s.
const LOOKED: Duration = Duration::from_secs(70);

/// `/readyz`, once what it says is as `holds` wants.
async fn wait_said(daemon: &Daemon, what: &str, holds: impl Fn(&str) -> bool) {
    until_within(LOOKED, what, || async {
        let (code, body) = daemon.ready().await.ok_or_else(|| "nothing listens".to_owned())?;
        let said = troubles(&body);
        state(code == 200 && holds(&said), format!("{code} {said}"))
    })
    .await;
}

/// Kinds and tables of the notes.
fn noted(config: &Config) -> Vec<(String, String)> {
    let shown: Value = serde_json::from_slice(&config.state_command(&["show", "--json"]).stdout).unwrap();
    let notes = shown["sources"][0]["tables"].as_array().cloned().unwrap_or_default();
    let text = |note: &Value, key: &str| note[key].as_str().unwrap_or_default().to_owned();
    notes.iter().map(|note| (text(note, "kind"), text(note, "table"))).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(kind, table)| ((*kind).to_owned(), (*table).to_owned())).collect()
}

fn has(receiver: &Receiver, table: &str, id: i64) -> bool {
    let is = |message: &Value| message["metadata"]["table_name"] == *table && message["record"]["id"] == id;
    receiver.messages().iter().any(is)
}

fn early(table: &str) -> String {
    format!("public.{table} had been written to before it was published")
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_58_a_note_follows_its_table_to_another_name_also_while_walhook_is_down_and_goes_when_it_is_dropped() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE orders (id int PRIMARY KEY); CREATE SCHEMA other").await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "tables = [\"public.*\", \"other.*\"]");
    let daemon = Daemon::start(&config).await;
    postgres.sql("CREATE TABLE orders_new AS SELECT 1 AS id; ALTER TABLE orders_new ADD PRIMARY KEY (id)").await;
    wait_said(&daemon, "early rows", |said| said.contains(&early("orders_new"))).await;
    postgres.sql("ALTER TABLE orders RENAME TO orders_old; ALTER TABLE orders_new RENAME TO orders").await;
    wait_said(&daemon, "early rows under the new name", |said| {
        said.contains(&early("orders")) && !said.contains("orders_new") && said.contains("accept-missed public.orders ")
    })
    .await;
    assert!(daemon.sigterm().await.success());
    postgres.sql("ALTER TABLE orders SET SCHEMA other; ALTER TABLE orders_old RENAME TO orders").await;
    let daemon = Daemon::start(&config).await;
    wait_said(&daemon, "early rows in the new schema", |said| {
        said.contains("other.orders had been written to") && !said.contains("public.orders had")
    })
    .await;
    assert_eq!(noted(&config), pairs(&[("early_rows", "other.orders")]));
    postgres.sql("DROP TABLE other.orders; CREATE TABLE other.orders (id int PRIMARY KEY)").await;
    wait_said(&daemon, "nothing of a table that is gone", |said| !said.contains("orders had")).await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_58_a_table_that_is_renamed_back_is_not_away_any_more_and_what_was_missed_meanwhile_is_said() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE orders (id int PRIMARY KEY)").await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "tables = [\"public.orders\"]");
    let daemon = Daemon::start(&config).await;
    postgres.sql("INSERT INTO orders VALUES (1)").await;
    receiver.wait("a row", |receiver| has(receiver, "orders", 1)).await;
    // The first look may be under way.
    wait_said(&daemon, "a look", |_| true).await;
    postgres.sql("ALTER TABLE orders RENAME TO orders_old").await;
    wait_said(&daemon, "it to be away", |said| said.contains("public.orders is now public.orders_old")).await;
    postgres.sql("INSERT INTO orders_old VALUES (2); ALTER TABLE orders_old RENAME TO orders").await;
    wait_said(&daemon, "it to be back", |said| {
        !said.contains("orders_old") && said.contains("public.orders was captured, then not, and is again since")
    })
    .await;
    assert_eq!(noted(&config), pairs(&[("interrupted", "public.orders")]));
    postgres.sql("INSERT INTO orders VALUES (3)").await;
    receiver.wait("a row of after", |receiver| has(receiver, "orders", 3)).await;
    assert!(!has(&receiver, "orders", 2), "then nothing was missed");
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_58_a_partition_that_is_detached_and_attached_again_is_not_said_to_lack_rows_that_were_delivered() {
    let postgres = Postgres::start();
    let tables = "CREATE TABLE root (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF root FOR VALUES FROM (0) TO (100);
        CREATE TABLE p2 PARTITION OF root FOR VALUES FROM (100) TO (200)";
    postgres.sql(tables).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "tables = [\"public.root\", \"public.p1\"]");
    let daemon = Daemon::start(&config).await;
    postgres.sql("INSERT INTO root VALUES (1), (101)").await;
    receiver.wait("rows as the root's", |receiver| has(receiver, "root", 1) && has(receiver, "root", 101)).await;
    postgres.sql("ALTER TABLE root DETACH PARTITION p1; ALTER TABLE root DETACH PARTITION p2").await;
    let again = |table: &str| format!("public.{table} was captured, then not");
    wait_said(&daemon, "p1 to be captured again", |said| said.contains(&again("p1"))).await;
    postgres.sql("INSERT INTO p1 VALUES (2)").await;
    receiver.wait("a row under its own name", |receiver| has(receiver, "p1", 2)).await;
    let attach = "ALTER TABLE root ATTACH PARTITION p1 FOR VALUES FROM (0) TO (100);
        ALTER TABLE root ATTACH PARTITION p2 FOR VALUES FROM (100) TO (200)";
    postgres.sql(attach).await;
    wait_said(&daemon, "p2 to be captured again", |said| said.contains(&again("p2"))).await;
    postgres.sql("INSERT INTO root VALUES (3), (103)").await;
    // Up to 14 a walsender that has sent rows of a table does not learn that it was attached to another.
    let number: u32 = postgres.value("SHOW server_version_num").await.parse().unwrap();
    let name = if number < 150_000 { "p1" } else { "root" };
    receiver.wait("rows as the root's", |receiver| has(receiver, name, 3) && has(receiver, "root", 103)).await;
    assert_eq!(noted(&config), pairs(&[("interrupted", "public.p1"), ("interrupted", "public.p2")]));
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_58_a_crash_right_before_or_after_a_table_is_published_loses_no_note_of_its_early_rows() {
    for place in ["publication.noted", "publication.filled"] {
        let postgres = Postgres::start();
        postgres.sql("CREATE TABLE orders (id int PRIMARY KEY)").await;
        let receiver = Receiver::start().await;
        let config = Config::one_sink(&postgres, &receiver.url(), "");
        assert!(Daemon::start(&config).await.sigterm().await.success());
        postgres.sql("CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (1)").await;
        let mut daemon = Daemon::launch_with(&config, &[("WALHOOK_FAILPOINT", place)]);
        assert!(!daemon.wait_exit().await.success(), "{place}");
        let members = postgres.rows("SELECT prrelid::regclass::text FROM pg_publication_rel").await.len();
        assert_eq!(members, if place == "publication.noted" { 1 } else { 2 }, "{place}");
        assert_eq!(noted(&config), pairs(&[("early_rows", "public.late")]), "{place}");
        let daemon = Daemon::start(&config).await;
        wait_said(&daemon, "early rows", |said| said.contains(&early("late"))).await;
        assert!(daemon.sigterm().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_58_a_session_that_fails_after_a_table_was_published_loses_no_note_of_its_early_rows() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE orders (id int PRIMARY KEY)").await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    assert!(Daemon::start(&config).await.sigterm().await.success());
    postgres.sql("CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (1)").await;
    // A session has two connections for SQL, the second of them once the publication is as it should be.
    postgres.admin_sql("ALTER ROLE walhook CONNECTION LIMIT 1").await;
    let daemon = Daemon::launch(&config);
    until_within(LOOKED, "late to be published", || async {
        let members = postgres.rows("SELECT prrelid::regclass::text FROM pg_publication_rel").await;
        state(members.len() == 2, members)
    })
    .await;
    postgres.admin_sql("ALTER ROLE walhook CONNECTION LIMIT -1").await;
    wait_said(&daemon, "early rows", |said| said.contains(&early("late"))).await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_58_of_a_table_that_could_not_be_published_nothing_is_noted_before_it_is() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE orders (id int PRIMARY KEY)").await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    assert!(Daemon::start(&config).await.sigterm().await.success());
    postgres.sql("CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (1)").await;
    let holder = postgres.client().await;
    holder.batch_execute("BEGIN; LOCK TABLE late IN SHARE UPDATE EXCLUSIVE MODE").await.unwrap();
    let daemon = Daemon::start(&config).await;
    wait_said(&daemon, "a lock", |said| said.contains("has locked it") && !said.contains(&early("late"))).await;
    // Each try notes it and takes that back.
    until_within(LOOKED, "nothing to be noted", || async {
        let noted = noted(&config);
        state(noted.is_empty(), noted)
    })
    .await;
    assert!(!daemon.logged(&early("late")), "{}", text_of(&config.state_command(&["show"])));
    holder.batch_execute("COMMIT").await.unwrap();
    wait_said(&daemon, "early rows", |said| said.contains(&early("late"))).await;
    assert!(daemon.sigterm().await.success());
}

//! Identifiers that must be quoted, everywhere one can stand.

use std::time::Duration;

use serde_json::json;

use super::copy::wait_same;
use crate::daemon::{Config, Daemon, field, message_of, quick_retry, text_of, walhook};
use crate::postgres::{Postgres, until_within};
use crate::receiver::{Receiver, Reply};

const SCHEMA: &str = "Sché ma.1";
const TABLE: &str = "Wee\"ird 'Täble.漢";

const QUALIFIED: &str = "\"Sché ma.1\".\"Wee\"\"ird 'Täble.漢\"";

const SETUP: &str = r#"
    CREATE SCHEMA "Sché ma.1";
    CREATE TYPE "Sché ma.1"."Mood ""Ünd""" AS ENUM ('glad', 'so "la, la"', 'traurig\', '漢');
    CREATE TYPE "Sché ma.1"."Pa ir" AS ("Käy" int, "sel""ect" text);
    CREATE TABLE "Sché ma.1"."Wee""ird 'Täble.漢" (
        "Id" int, "größe ""x""" int, "select" text, "a.b\c" "Sché ma.1"."Mood ""Ünd""",
        "Moods" "Sché ma.1"."Mood ""Ünd"""[], "päir" "Sché ma.1"."Pa ir", "😀" jsonb,
        PRIMARY KEY ("Id", "größe ""x"""));
    CREATE TABLE "Sché ma.1"."wee" ("Id" int PRIMARY KEY)"#;

const CHANGES: [&str; 3] = [
    r#"INSERT INTO "Sché ma.1"."Wee""ird 'Täble.漢" VALUES
        (1, 2, 'x', 'so "la, la"', '{"traurig\\","漢",NULL,"so \"la, la\""}', '(7,"a ""b""")', '{"ä": "\""}'),
        (3, 4, NULL, 'traurig\', '{}', NULL, 'null')"#,
    r#"UPDATE "Sché ma.1"."Wee""ird 'Täble.漢" SET "größe ""x""" = 5, "select" = 'y' WHERE "Id" = 1"#,
    r#"DELETE FROM "Sché ma.1"."Wee""ird 'Täble.漢" WHERE "Id" = 3"#,
];

#[tokio::test(flavor = "multi_thread")]
async fn identifiers_of_any_kind_are_published_read_grouped_and_written() {
    let postgres = Postgres::start();
    postgres.sql(SETUP).await;
    // The first answer is a failure, so that the log names a group.
    let receiver = Receiver::scripted(|request| Reply::status(if request.number == 1 { 500 } else { 200 })).await;
    let publication = "Pub'li, \"cation\" ü";
    let text = Config::source(&postgres)
        + &format!("slot = \"s_1\"\npublication = {}\n", toml_string(publication))
        + &Config::sink("orders", &receiver.url(), &format!("tables = [{}]", toml_string(QUALIFIED)));
    let config = Config::new(&text);
    let daemon = Daemon::start(&config).await;
    let checked = walhook(&["check", "--config", &config.path().to_string_lossy()]);
    assert!(checked.status.success(), "{}", text_of(&checked));
    let published = postgres.rows("SELECT pubname, schemaname, tablename FROM pg_publication_tables").await;
    assert_eq!(published, [[publication, SCHEMA, TABLE].map(|name| Some(name.to_owned()))]);

    for change in CHANGES {
        postgres.sql(change).await;
    }
    receiver.wait_acknowledged(4).await;
    wait_same(&postgres, &receiver, (SCHEMA, TABLE), &["Id", "größe \"x\""]).await;
    let update = receiver.messages().into_iter().find(|message| message["action"] == "update").unwrap();
    let record = json!({"Id": 1, "größe \"x\"": 5, "select": "y", "a.b\\c": "so \"la, la\"",
        "Moods": ["traurig\\", "漢", null, "so \"la, la\""], "päir": {"Käy": 7, "sel\"ect": "a \"b\""}, "😀": {"ä": "\""}});
    assert_eq!(update["record"], record);
    assert_eq!(update["changes"], json!({"größe \"x\"": 2}));
    let failed = daemon.logs().into_iter().find(|line| message_of(line) == "delivery failed").unwrap();
    let group = field(&failed, "group_hash").unwrap().as_str().unwrap().to_owned();
    assert!(group.len() == 16 && group.bytes().all(|byte| byte.is_ascii_hexdigit()), "{group}");
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pattern_takes_tables_of_any_name_and_a_group_column_may_have_any() {
    let postgres = Postgres::start();
    let setup = SETUP.to_owned() + r#"; ALTER TABLE "Sché ma.1"."Wee""ird 'Täble.漢" REPLICA IDENTITY FULL"#;
    postgres.sql(&setup).await;
    let receiver = Receiver::start().await;
    let lines = format!(
        "tables = ['\"Sché ma.1\".*']\n[sink.orders.table.{}]\ngroup_by = ['größe \"x\"', 'a.b\\c']\n{}",
        toml_string(QUALIFIED),
        quick_retry("orders")
    );
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), &lines)).await;
    for change in CHANGES {
        postgres.sql(change).await;
    }
    postgres.sql(r#"INSERT INTO "Sché ma.1".wee VALUES (1)"#).await;
    wait_same(&postgres, &receiver, (SCHEMA, TABLE), &["Id"]).await;
    wait_same(&postgres, &receiver, (SCHEMA, "wee"), &["Id"]).await;

    postgres.sql(r#"CREATE TABLE "Sché ma.1"."NEU ""é""" ("ß" text PRIMARY KEY)"#).await;
    until_within(Duration::from_secs(90), "the new table to be published", || async {
        let names = postgres.rows("SELECT tablename FROM pg_publication_tables").await;
        if names.iter().flatten().flatten().any(|name| name == "NEU \"é\"") { Ok(()) } else { Err(names) }
    })
    .await;
    postgres.sql(r#"INSERT INTO "Sché ma.1"."NEU ""é""" VALUES ('SS'), ('ß')"#).await;
    wait_same(&postgres, &receiver, (SCHEMA, "NEU \"é\""), &["ß"]).await;
    assert!(daemon.sigterm().await.success());
}

/// A TOML basic string.
fn toml_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

//! `walhook check` on a database before the first start: what docs/OPERATING.md shows is what it prints.

use std::process::{Command, Stdio};

use crate::daemon::{Config, root, text_of};
use crate::postgres::Postgres;
use crate::receiver::Receiver;

const TABLES: &str = "CREATE TABLE orders (id int PRIMARY KEY, customer_id int NOT NULL, note text);
    CREATE TABLE events (at timestamptz, body jsonb);
    CREATE SCHEMA billing; CREATE TABLE billing.invoices (id int PRIMARY KEY, lines jsonb);
    ALTER TABLE billing.invoices REPLICA IDENTITY FULL;";

/// The block of the page that follows `walhook check`.
fn documented() -> String {
    let page = std::fs::read_to_string(root().join("docs/OPERATING.md")).unwrap();
    let (_, rest) = page.split_once("```text\n$ walhook check\n").expect("the page shows what check prints");
    rest.split_once("```").unwrap().0.to_owned()
}

/// What the page shows, for a server of this kind: before August 2026 there is nothing that the role may not see.
fn expected(hides: bool) -> String {
    let page = documented();
    if hides {
        return page;
    }
    let is_of_hidden =
        |line: &&str| line.contains("not seen: output_plugin") || line.contains("GRANT pg_read_all_settings");
    let lines: Vec<&str> = page.lines().filter(|line| !is_of_hidden(line)).collect();
    lines.join("\n").replace("17 ok", "16 ok")
}

/// Without what differs from machine to machine; everything keeps its width, so that the columns stay.
fn evened(printed: &str, receiver: &str, version: &str) -> String {
    let place = format!("{:width$}", "https://example.com", width = receiver.len());
    printed
        .replace(receiver, &place)
        .replace(
            &format!("Postgres {version}, database postgres, role walhook"),
            "Postgres 17.6, database app, role walhook",
        )
        .replace(", idle_replication_slot_timeout 0", "")
        // The endpoint of the page has TLS, which shows more of it.
        .replace(
            "takes connections (sink orders, audit); whether HTTP is spoken there only a request shows, and none is sent",
            "reachable (sink orders, audit)",
        )
        .replace(
            "sink.audit, sink.orders: http on this machine; admin: http on this machine, for everybody on it",
            "admin: http on this machine, for everybody on it; sink.audit, sink.orders: https, verified by the machine's authorities",
        )
        // As 15 says it.
        .replace(
            "must be superuser or have privileges of pg_read_all_settings to examine",
            "permission denied to examine",
        )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_check_prints_is_what_the_page_shows() {
    let postgres = Postgres::start();
    postgres.sql(TABLES).await;
    let receiver = Receiver::start().await;
    // Whatever the disk of this machine has free.
    let text = format!("[state]\nmax_bytes = \"8MiB\"\n[source.app]\nurl = \"{}\"\n", postgres.url())
        + &format!("[sink.orders]\nurl = \"{}\"\ntables = [\"public.orders\", \"billing.*\"]\n", receiver.url())
        + &format!("[sink.audit]\nurl = \"{}\"\ntables = [\"public.*\"]\nmessage = \"row\"\n", receiver.url());
    let config = Config::new(&text);
    let directory = config.path().parent().unwrap().to_owned();
    let mut command = Command::new(env!("CARGO_BIN_EXE_walhook"));
    let checked = command.arg("check").current_dir(directory).stdin(Stdio::null()).output().unwrap();
    assert_eq!(checked.status.code(), Some(0), "{}", text_of(&checked));
    let number: u32 = postgres.value("SHOW server_version_num").await.parse().unwrap();
    let version = format!("{}.{}", number / 10_000, number % 10_000);
    let printed = evened(&String::from_utf8_lossy(&checked.stdout), &receiver.url(), &version);
    let expected = expected(printed.contains("not seen"));
    let printed: Vec<&str> = printed.lines().map(str::trim_end).collect();
    assert_eq!(printed, expected.lines().collect::<Vec<_>>(), "the page should show:\n{}", printed.join("\n"));
}

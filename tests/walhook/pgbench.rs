//! pgbench against the daemon: the tables that a receiver rebuilds from webhooks alone are the source's.

use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use walhook::demo::cluster::Cluster;

use crate::daemon::{Config, Daemon};
use crate::pitfalls::copy::Copy;
use crate::postgres::{Postgres, state, until_within};
use crate::pressure::full;
use crate::receiver::{Keep, Receiver, Reply, unreliable};

/// The tables with their keys; the history has none, so each of its rows is known by its message.
const TABLES: [(&str, &[&str]); 4] = [
    ("pgbench_accounts", &["aid"]),
    ("pgbench_branches", &["bid"]),
    ("pgbench_tellers", &["tid"]),
    ("pgbench_history", &[]),
];
/// Rows that `pgbench -i -s 1` makes.
const INITIAL: u64 = 100_000 + 1 + 10;
/// Rows put into the rebuilt tables by one statement.
const CHUNK: usize = 5000;

type Copies = Arc<Mutex<Vec<Copy>>>;

/// Does what the messages of an acknowledged request say.
fn apply(copies: &Copies, messages: &[Value]) {
    let mut copies = copies.lock().unwrap();
    for message in messages {
        let table = &message["metadata"]["table_name"];
        let index = TABLES.iter().position(|(name, _)| table == name).unwrap_or_else(|| panic!("{table}"));
        copies[index].apply(message, TABLES[index].1);
    }
}

/// Runs pgbench to its end; what it printed.
async fn pgbench(cluster: &Cluster, arguments: &[&str]) -> String {
    let mut command = Command::new(cluster.bin().join("pgbench"));
    command.args(arguments).args(["-h", "127.0.0.1", "-U", "app", "-p", &cluster.port().to_string(), "postgres"]);
    let ended = tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output().unwrap()).await.unwrap();
    let text = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
    assert!(ended.status.success(), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tables_of_pgbench_rebuilt_from_webhooks_are_the_source() {
    let postgres = Postgres::start();
    if !postgres.cluster.bin().join("pgbench").exists() {
        println!("skipped: there is no pgbench beside the server's programs");
        return;
    }
    pgbench(&postgres.cluster, &["-i", "-s", "1", "-I", "dtp"]).await;
    postgres.sql("ALTER TABLE pgbench_history REPLICA IDENTITY FULL").await;
    let copies: Copies = Arc::new(Mutex::new(TABLES.iter().map(|_| Copy::default()).collect()));
    let (into, fails) = (Arc::clone(&copies), unreliable(17, 5, &[500, 503], 0..1));
    let script = move |request: &crate::receiver::Request| {
        let reply = fails(request);
        if let Reply::After(_, answer) = &reply
            && matches!(**answer, Reply::Answer { status: 200, .. })
        {
            apply(&into, &request.messages);
        }
        reply
    };
    let receiver = Receiver::with(Keep::Counts, script, |_| String::new()).await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "batch_size = 100")).await;
    let began = Instant::now();
    // Truncates all four and fills three of them.
    pgbench(&postgres.cluster, &["-i", "-s", "1", "-I", "g"]).await;
    let seconds = if full() { "30" } else { "3" };
    let printed = pgbench(&postgres.cluster, &["-c", "4", "-j", "2", "-T", seconds]).await;
    let ended = Instant::now();
    let processed = printed.lines().find_map(|line| line.strip_prefix("number of transactions actually processed: "));
    let transactions: u64 = processed.and_then(|count| count.split('/').next()?.parse().ok()).expect(&printed);

    // Three updates and an insert each.
    let expected = INITIAL + 4 * transactions;
    let applied = || copies.lock().unwrap().iter().map(|copy| copy.applied).sum::<u64>();
    until_within(Duration::from_secs(300), "all messages", || async { state(applied() >= expected, applied()) }).await;
    println!(
        "{transactions} transactions, {expected} messages in {:.1} s, {:.1} s after pgbench; {} requests",
        began.elapsed().as_secs_f64(),
        ended.elapsed().as_secs_f64(),
        receiver.request_count()
    );
    assert!(daemon.sigterm().await.success());
    assert_eq!(applied(), expected, "no message is acknowledged twice");
    for (copy, (table, _)) in copies.lock().unwrap().iter().zip(TABLES) {
        println!("{table}: {} rows", copy.rows.len());
    }
    rebuild(&postgres, &copies).await;
    for (table, _) in TABLES {
        for (one, other) in [("public", "rebuilt"), ("rebuilt", "public")] {
            let differing = format!("SELECT count(*) FROM (TABLE {one}.{table} EXCEPT ALL TABLE {other}.{table}) d");
            assert_eq!(postgres.value(&differing).await, "0", "rows of {one}.{table} that {other}.{table} has not");
        }
    }
}

/// Puts the copies into tables of the schema `rebuilt`.
async fn rebuild(postgres: &Postgres, copies: &Copies) {
    let client = postgres.client().await;
    client.batch_execute("CREATE SCHEMA rebuilt").await.unwrap();
    for (index, (table, _)) in TABLES.iter().enumerate() {
        client.batch_execute(&format!("CREATE TABLE rebuilt.{table} (LIKE public.{table})")).await.unwrap();
        let rows: Vec<Value> = copies.lock().unwrap()[index].rows.values().cloned().map(Value::Object).collect();
        for chunk in rows.chunks(CHUNK) {
            let fill = format!(
                "INSERT INTO rebuilt.{table} SELECT * FROM jsonb_populate_recordset(NULL::rebuilt.{table}, $1::text::jsonb)"
            );
            client.execute(&fill, &[&Value::Array(chunk.to_vec()).to_string()]).await.unwrap();
        }
    }
}

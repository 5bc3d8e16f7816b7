//! P8 and P9: what happens to the database happens to us, and we say so; the slot follows whatever is resolved.

use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::crash::{Load, wait_rounds};
use crate::daemon::{Config, Daemon, text_of, troubles, walhook};
use crate::order::{assert_complete, count_up, counters};
use crate::postgres::{Postgres, state, until};
use crate::pressure::full;
use crate::receiver::{Keep, Receiver, Reply, row_of, unreliable};

const SLOT: &str = "walhook_app";

async fn wait_lag_below(postgres: &Postgres, bytes: i64) {
    until(&format!("the slot's lag to fall below {bytes}"), || async {
        let lag = postgres.lag_bytes(SLOT).await;
        state(lag.is_some_and(|lag| lag < bytes), lag)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_17_it_goes_on_by_itself_after_the_server_crashed() {
    let postgres = Arc::new(Postgres::start());
    counters(&postgres).await;
    let receiver = Receiver::with(Keep::Ledger, unreliable(3, 5, &[500], 0..10), row_of).await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "batch_size = 5")).await;
    postgres.sql("INSERT INTO counters SELECT i, 0 FROM generate_series(1, 10) i").await;
    let load = Load::updates(&postgres, 10);

    for _ in 0..2 {
        let until = receiver.request_count() + 50;
        receiver.wait("load", |receiver| receiver.request_count() >= until).await;
        postgres.cluster.stop("immediate").unwrap();
        let body = daemon.wait_not_ready().await;
        assert!(troubles(&body).contains("source:app"), "the trouble names the source: {body}");
        postgres.cluster.resume().unwrap();
        daemon.wait_ready().await;
        assert!(postgres.reader(SLOT).await.is_some(), "ready, but nobody reads the slot");
    }

    let rounds = load.finish().await;
    wait_rounds(&receiver, 10, rounds).await;
    assert_complete(&receiver, 10, rounds);
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert_eq!(ledger.repeats, 0, "the daemon lives on and knows what it was sent");
    });
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_by_itself_after_its_session_was_terminated() {
    let postgres = Arc::new(Postgres::start());
    counters(&postgres).await;
    let receiver = Receiver::with(Keep::Ledger, unreliable(4, 5, &[500], 0..10), row_of).await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "batch_size = 5")).await;
    postgres.sql("INSERT INTO counters SELECT i, 0 FROM generate_series(1, 10) i").await;
    let load = Load::updates(&postgres, 10);

    for _ in 0..3 {
        let until_requests = receiver.request_count() + 30;
        receiver.wait("load", |receiver| receiver.request_count() >= until_requests).await;
        let before = postgres.reader(SLOT).await;
        postgres
            .admin_sql(&format!(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{SLOT}'"
            ))
            .await;
        until("another session to read the slot", || async {
            let reader = postgres.reader(SLOT).await;
            state(reader.is_some() && reader != before, reader)
        })
        .await;
        daemon.wait_ready().await;
    }

    let rounds = load.finish().await;
    wait_rounds(&receiver, 10, rounds).await;
    assert_complete(&receiver, 10, rounds);
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert_eq!(ledger.repeats, 0, "the daemon lives on and knows what it was sent");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_23_the_publication_is_there_before_the_slot_is_begun() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE other (id int)").await;
    let client = counters(&postgres).await;
    let receiver = Receiver::start().await;
    // A slot waits for the transactions that run, so the moment of its making can be held.
    let old = postgres.client().await;
    old.batch_execute("BEGIN; INSERT INTO other VALUES (1)").await.unwrap();
    let config = Config::one_sink(&postgres, &receiver.url(), "tables = [\"public.counters\"]");
    let daemon = Daemon::launch(&config);
    until("the making of the slot to wait", || async {
        let waiting =
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%pg_create_logical%'";
        let rows = postgres.admin_rows(waiting).await;
        state(!rows.is_empty(), rows)
    })
    .await;
    let tables = postgres.rows("SELECT tablename FROM pg_publication_tables").await;
    assert_eq!(tables, [[Some("counters".to_owned())]], "changes after the slot's begin could not be read");

    old.batch_execute("COMMIT").await.unwrap();
    daemon.wait_ready().await;
    client.batch_execute("INSERT INTO counters VALUES (1, 0)").await.unwrap();
    receiver.wait_acknowledged(1).await;
}

/// Another client that reads the slot, until dropped.
async fn hold_slot(postgres: &Postgres) -> TcpStream {
    let mut socket = TcpStream::connect(("127.0.0.1", postgres.cluster.port())).await.unwrap();
    let mut startup = 196_608_u32.to_be_bytes().to_vec();
    startup.extend_from_slice(b"user\0walhook_reader\0database\0postgres\0replication\0database\0\0");
    let length = u32::try_from(startup.len() + 4).unwrap().to_be_bytes();
    socket.write_all(&[&length[..], &startup].concat()).await.unwrap();
    read_until(&mut socket, b'Z').await;
    let query = format!("START_REPLICATION SLOT {SLOT} LOGICAL 0/0 (proto_version '1', publication_names '{SLOT}')\0");
    let length = u32::try_from(query.len() + 4).unwrap().to_be_bytes();
    socket.write_all(&[b"Q", &length[..], query.as_bytes()].concat()).await.unwrap();
    read_until(&mut socket, b'W').await;
    socket
}

/// Reads messages of the Postgres protocol up to one of this kind; an ErrorResponse fails the test.
async fn read_until(socket: &mut TcpStream, kind: u8) {
    loop {
        let found = socket.read_u8().await.unwrap();
        let length = socket.read_u32().await.unwrap();
        let mut body = vec![0; length as usize - 4];
        socket.read_exact(&mut body).await.unwrap();
        assert_ne!(found, b'E', "{}", String::from_utf8_lossy(&body));
        if found == kind {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_32_a_slot_that_another_client_reads_is_waited_for_and_its_holder_named() {
    let postgres = Postgres::start();
    let client = counters(&postgres).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let daemon = Daemon::start(&config).await;
    assert!(daemon.sigterm().await.success());

    let holder = hold_slot(&postgres).await;
    let pid = postgres.reader(SLOT).await.unwrap();
    let daemon = Daemon::launch(&config);
    until("readyz to name the holder", || async {
        let said = troubles(&daemon.wait_not_ready().await);
        if said.contains(&format!("pid {pid}")) { Ok(()) } else { Err(said) }
    })
    .await;
    client.batch_execute("INSERT INTO counters VALUES (1, 0)").await.unwrap();
    drop(holder);
    daemon.wait_ready().await;
    receiver.wait_acknowledged(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_down_is_waited_for_and_check_exits_69() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    postgres.cluster.stop("fast").unwrap();

    let output = walhook(&["check", "--config", &config.path().to_string_lossy()]);
    assert_eq!(output.status.code(), Some(69), "{}", text_of(&output));

    let daemon = Daemon::launch(&config);
    until("readyz to say that the database is not there", || async {
        let said = troubles(&daemon.wait_not_ready().await);
        if said.contains("source:app") { Ok(()) } else { Err(said) }
    })
    .await;
    until("the log to say that it waits", || async {
        let said = daemon.logs().iter().any(|line| line["level"] == "WARN" && line.to_string().contains("app"));
        state(said, daemon.logs())
    })
    .await;
    postgres.cluster.resume().unwrap();
    daemon.wait_ready().await;
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait_acknowledged(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_vanished_is_said_and_not_made_anew_in_silence() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::start().await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await.allow_error("slot");
    postgres.cluster.stop("fast").unwrap();
    std::fs::remove_dir_all(postgres.cluster.data().join("pg_replslot").join(SLOT)).unwrap();
    postgres.cluster.resume().unwrap();
    // Changes from here to a new slot would be lost.
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    until("readyz to say that the slot is gone", || async {
        let said = troubles(&daemon.wait_not_ready().await);
        if said.contains(SLOT) && said.contains("walhook state accept-gap") { Ok(()) } else { Err(said) }
    })
    .await;
    assert_eq!(postgres.value("SELECT count(*) FROM pg_replication_slots").await, "0");
}

/// Writes about this many megabytes of WAL that no publication holds.
async fn unpublished_wal(postgres: &Postgres, megabytes: u32) {
    postgres.sql("CREATE TABLE IF NOT EXISTS other (body text)").await;
    for _ in 0..megabytes.div_ceil(20) {
        postgres.sql("INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 19000)").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_30_an_idle_slot_follows_wal_of_unpublished_tables() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::start().await;
    let text = Config::source(&postgres).replace("heartbeat = \"1s\"", "heartbeat = \"0s\"")
        + &Config::sink("orders", &receiver.url(), "tables = [\"public.counters\"]");
    let daemon = Daemon::start(&Config::new(&text)).await;
    unpublished_wal(&postgres, if full() { 1024 } else { 200 }).await;
    wait_lag_below(&postgres, 1_000_000).await;
    assert_eq!(receiver.request_count(), 0);
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait_acknowledged(1).await;
    wait_lag_below(&postgres, 10_000).await;
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_hold_wal_what_is_not_delivered_is_not_confirmed_however_much_wal_follows() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::scripted(|_| Reply::status(500)).await;
    let text = Config::source(&postgres)
        + "[state]\nhold = \"wal\"\n"
        + &Config::sink("orders", &receiver.url(), "tables = [\"public.counters\"]");
    let config = Config::new(&text);
    let daemon = Daemon::start(&config).await;
    let before = postgres.value("SELECT pg_current_wal_lsn()").await;
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    let after = postgres.value("SELECT pg_current_wal_lsn()").await;
    receiver.wait("failures", |receiver| receiver.request_count() >= 2).await;
    unpublished_wal(&postgres, 40).await;
    let tried = receiver.request_count();
    receiver.wait("more failures", |receiver| receiver.request_count() >= tried + 5).await;
    let confirmed =
        format!("SELECT confirmed_flush_lsn < '{after}' FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
    assert_eq!(postgres.value(&confirmed).await, "t", "the change lies between {before} and {after}");

    daemon.kill9();
    receiver.script(|_| Reply::status(200));
    let _daemon = Daemon::start(&config).await;
    receiver.wait_acknowledged(1).await;
    wait_lag_below(&postgres, 1_000_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_heartbeat_writes_to_an_idle_database_and_the_slot_follows() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::start().await;
    let _daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;
    for _ in 0..2 {
        let now = postgres.value("SELECT pg_current_wal_lsn()").await;
        until("the confirmed position to pass where the WAL ended", || async {
            let confirmed =
                format!("SELECT confirmed_flush_lsn > '{now}', confirmed_flush_lsn FROM pg_replication_slots");
            let rows = postgres.rows(&confirmed).await;
            state(rows[0][0].as_deref() == Some("t"), rows)
        })
        .await;
    }
    assert_eq!(receiver.request_count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_04_a_pattern_picks_up_new_tables_but_none_whose_updates_would_break() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE early (id int PRIMARY KEY, n bigint)").await;
    let receiver = Receiver::start().await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;
    postgres.sql("CREATE TABLE keyless (id int); INSERT INTO keyless VALUES (1)").await;
    postgres.sql("CREATE TABLE late (id int PRIMARY KEY, n bigint)").await;

    crate::postgres::until_within(std::time::Duration::from_secs(90), "the new table to be published", || async {
        let tables = postgres.rows("SELECT tablename FROM pg_publication_tables ORDER BY 1").await;
        state(tables.iter().flatten().flatten().any(|table| table == "late"), tables)
    })
    .await;
    postgres.sql("INSERT INTO late VALUES (1, 1)").await;
    let messages = receiver.wait_messages(1).await;
    assert_eq!(messages[0]["metadata"]["table_name"], "late");

    // Published without a replica identity, this would fail.
    postgres.sql("UPDATE keyless SET id = 2").await;
    let body = daemon.ready().await.unwrap().1.to_string();
    let said = daemon.logged("REPLICA IDENTITY") || body.contains("REPLICA IDENTITY");
    assert!(said, "the table that is left out should be named with what mends it: {body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trickle_asks_for_the_servers_end_now_and_then_and_not_behind_each_transaction() {
    let postgres = Postgres::with(&[("log_statement", "all")]);
    let client = counters(&postgres).await;
    let receiver = Receiver::start().await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;
    let log = postgres.cluster.data().with_file_name("log");
    let asked = || std::fs::read_to_string(&log).unwrap().matches("else pg_current_wal_insert_lsn() end").count();
    let (before, began) = (asked(), Instant::now());
    count_up(&client, 1, 400).await;
    receiver.wait_acknowledged(401).await;
    daemon.wait_shown(&postgres).await;
    // It asks every 100 ms at most; a walsender that has caught up sends a keepalive behind each transaction.
    let questions = u128::try_from(asked() - before).unwrap();
    let most = began.elapsed().as_millis() / 100 + 10;
    assert!(questions > 0 && questions <= most, "{questions} questions, not {most}");
    assert!(daemon.sigterm().await.success());
}

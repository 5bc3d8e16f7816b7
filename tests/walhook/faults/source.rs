//! Faults of the database, the slot and the publication.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::Fault;
use crate::daemon::{Config, Daemon, quick_retry, troubles};
use crate::order::counters;
use crate::pitfalls::relay::Relay;

use crate::postgres::{Postgres, state, until};
use crate::receiver::Receiver;

const SLOT: &str = "walhook_app";

/// A daemon that has delivered a row, and what it stands on.
struct Stand {
    postgres: Postgres,
    receiver: Receiver,
    config: Config,
    daemon: Daemon,
}

impl Stand {
    async fn new() -> Self {
        Self::on(Postgres::start()).await
    }

    async fn on(postgres: Postgres) -> Self {
        counters(&postgres).await;
        let receiver = Receiver::start().await;
        let config = Config::one_sink(&postgres, &receiver.url(), &quick_retry("orders"));
        let daemon = Daemon::start(&config).await;
        let stand = Self { postgres, receiver, config, daemon };
        stand.deliver(1).await;
        stand
    }

    /// The row is inserted and arrives.
    async fn deliver(&self, id: i64) {
        self.postgres.sql(&format!("INSERT INTO counters VALUES ({id}, 0)")).await;
        self.receiver.wait("the row", |receiver| has(receiver, id)).await;
    }
}

fn has(receiver: &Receiver, id: i64) -> bool {
    receiver.messages().iter().any(|message| message["record"]["id"] == id)
}

/// Sends a signal to a process of somebody else's.
fn kill(signal: &str, pids: &[i32]) {
    let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
    assert!(Command::new("kill").arg(signal).args(&pids).status().unwrap().success());
}

/// The postmaster and all its children.
fn processes(postgres: &Postgres) -> Vec<i32> {
    let file = std::fs::read_to_string(postgres.cluster.data().join("postmaster.pid")).unwrap();
    let postmaster: i32 = file.lines().next().unwrap().trim().parse().unwrap();
    let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap();
    [postmaster].into_iter().chain(children.split_whitespace().map(|pid| pid.parse().unwrap())).collect()
}

/// A copy with owners and modes, as a snapshot of the disk is.
fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

const SILENT: Fault<'_> = Fault {
    name: "server frozen (SIGSTOP)",
    says: &["the database has not answered for", "neither on the stream nor over SQL"],
    logs: "neither on the stream nor over SQL",
    metric: ("walhook_source_silent", &[("source", "app")], 1.0),
};

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_65_a_server_that_is_frozen_is_told_and_clears() {
    let stand = Stand::new().await;
    let all = processes(&stand.postgres);
    kill("-STOP", &all);
    let since = Instant::now();
    SILENT.told(&stand.daemon, since).await;
    until("lag_seconds to grow", || async {
        let lag = stand.daemon.metrics().await.sum("walhook_source_lag_seconds", &[]);
        state(lag > Some(8.0), lag)
    })
    .await;
    kill("-CONT", &all);
    let since = Instant::now();
    SILENT.cleared(&stand.daemon, since).await;
    stand.deliver(2).await;
    assert!(stand.daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_65_a_walsender_that_is_stopped_is_told_and_is_not_cut() {
    let stand = Stand::new().await;
    let walsender = stand.postgres.reader(SLOT).await.unwrap();
    kill("-STOP", &[walsender]);
    let since = Instant::now();
    let fault = Fault {
        name: "walsender stopped (SIGSTOP)",
        says: &["the walsender has sent nothing for", "while SQL answers", "pg_terminate_backend"],
        logs: "the walsender has sent nothing for",
        ..SILENT
    };
    fault.told(&stand.daemon, since).await;
    kill("-CONT", &[walsender]);
    let since = Instant::now();
    fault.cleared(&stand.daemon, since).await;
    assert_eq!(stand.postgres.reader(SLOT).await, Some(walsender), "it was cut");
    stand.deliver(2).await;
    assert!(stand.daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_is_dropped_while_nothing_is_written_is_told_and_clears_when_it_is_put_back() {
    let stand = Stand::new().await;
    let (name, owner) = (SLOT, "made and maintained by walhook for the slot walhook_app");
    let make = format!(
        "CREATE PUBLICATION {name} FOR TABLE counters WITH (publish = 'insert, update, delete', publish_via_partition_root = true);
         COMMENT ON PUBLICATION {name} IS '{owner}'; ALTER PUBLICATION {name} OWNER TO walhook"
    );
    stand.postgres.admin_sql(&format!("DROP PUBLICATION {name}")).await;
    let fault = Fault {
        name: "publication dropped while idle",
        says: &["but the publication walhook_app does not", "accept-gap app"],
        logs: "but the publication walhook_app does not",
        metric: ("walhook_source_lacks", &[("what", "publication")], 1.0),
    };
    let since = Instant::now();
    fault.told(&stand.daemon, since).await;
    stand.postgres.admin_sql(&make).await;
    let since = Instant::now();
    fault.cleared(&stand.daemon, since).await;
    stand.deliver(2).await;
    assert!(stand.daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_loses_replication_is_told_while_its_session_goes_on() {
    let stand = Stand::new().await;
    stand.postgres.admin_sql("ALTER ROLE walhook NOREPLICATION").await;
    let since = Instant::now();
    let fault = Fault {
        name: "role loses REPLICATION",
        says: &["the role walhook has lost REPLICATION", "ALTER ROLE \\\"walhook\\\" REPLICATION;"],
        logs: "has lost REPLICATION",
        metric: ("walhook_source_lacks", &[("what", "role")], 1.0),
    };
    fault.told(&stand.daemon, since).await;
    stand.deliver(2).await;
    stand.postgres.admin_sql("ALTER ROLE walhook REPLICATION").await;
    let since = Instant::now();
    fault.cleared(&stand.daemon, since).await;
    assert!(stand.daemon.sigterm().await.success());
}

const WENT_BACK: Fault<'_> = Fault {
    name: "snapshot put back",
    says: &["the server's log ends at", "up to", "never happened there", "point state.path to another directory"],
    logs: "the server's log ends at",
    metric: ("walhook_source_streaming", &[("source", "app")], 0.0),
};

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_the_database_that_is_put_back_stops_the_source_before_a_row_is_skipped() {
    let stand = Stand::new().await;
    let data = stand.postgres.cluster.data();
    let kept = data.with_file_name("kept");
    stand.postgres.cluster.stop("fast").unwrap();
    copy(&data, &kept);
    stand.postgres.cluster.resume().unwrap();
    stand.daemon.wait_ready().await;
    for id in 2..=12 {
        stand.deliver(id).await;
    }
    let delivered = stand.receiver.message_count();
    let daemon = stand.daemon.allow_error("the server's log ends at");
    stand.postgres.cluster.stop("immediate").unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    copy(&kept, &data);
    stand.postgres.cluster.resume().unwrap();
    stand.postgres.sql("INSERT INTO counters VALUES (100, 0)").await;
    let since = Instant::now();
    WENT_BACK.told(&daemon, since).await;
    assert_eq!(stand.receiver.message_count(), delivered, "something of another history was delivered");
    let behind = "SELECT confirmed_flush_lsn <= pg_current_wal_lsn() FROM pg_replication_slots";
    assert_eq!(stand.postgres.value(behind).await, "t", "the slot is confirmed beyond the server's end");
    // Nor when the server has written past what was read.
    stand.postgres.sql("INSERT INTO counters SELECT i, 0, repeat('x', 1000) FROM generate_series(1000, 2000) i").await;
    for _ in 0..2 {
        let looks = daemon.logs().len();
        until("another look", || async { state(daemon.logs().len() > looks, ()) }).await;
    }
    WENT_BACK.told(&daemon, Instant::now()).await;
    assert_eq!(stand.receiver.message_count(), delivered, "something of another history was delivered");
    assert!(daemon.sigterm().await.success());

    // A start says the same, and ends.
    let since = Instant::now();
    let mut daemon = Daemon::launch(&stand.config).allow_error("the server's log ends at");
    assert_eq!(daemon.wait_exit().await.code(), Some(69));
    Fault::ended("snapshot put back, at a start", since);
    assert!(daemon.printed().contains("the server's log ends at"), "{}", daemon.printed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_was_rotated_is_told_at_the_next_session_and_clears_when_it_is_put_back() {
    let stand = Stand::new().await;
    // From the next session on a password is asked for, which the address does not have.
    let file = stand.postgres.cluster.data().join("pg_hba.conf");
    let before = std::fs::read_to_string(&file).unwrap();
    std::fs::write(
        &file,
        format!("host all walhook all scram-sha-256\nhost replication walhook all scram-sha-256\n{before}"),
    )
    .unwrap();
    stand.postgres.admin_sql("ALTER ROLE walhook PASSWORD 'another'").await;
    stand.postgres.cluster.reload().unwrap();
    let walsender = stand.postgres.reader(SLOT).await.unwrap();
    stand.postgres.admin_sql(&format!("SELECT pg_terminate_backend({walsender})")).await;
    let since = Instant::now();
    let fault = Fault {
        name: "password rotated",
        says: &["password"],
        logs: "session with the database ended or could not begin",
        metric: ("walhook_source_streaming", &[("source", "app")], 0.0),
    };
    let daemon = stand.daemon.allow_error("password");
    fault.told(&daemon, since).await;
    std::fs::write(&file, before).unwrap();
    stand.postgres.cluster.reload().unwrap();
    let since = Instant::now();
    fault.cleared(&daemon, since).await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_or_crashes_again_and_again_is_told_and_clears() {
    let stand = Stand::new().await;
    for name in ["server crashed", "server crashed again"] {
        stand.postgres.cluster.stop("immediate").unwrap();
        let since = Instant::now();
        let fault = Fault {
            name,
            says: &["the database cannot be read for"],
            logs: "session with the database ended or could not begin",
            metric: ("walhook_source_streaming", &[("source", "app")], 0.0),
        };
        fault.told(&stand.daemon, since).await;
        stand.postgres.cluster.resume().unwrap();
        let since = Instant::now();
        fault.cleared(&stand.daemon, since).await;
    }
    stand.deliver(2).await;
    assert!(stand.daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_loses_its_key_is_told_and_clears() {
    let stand = Stand::new().await;
    // What keeps it published makes its own writes fail: the publication is a person's.
    stand.postgres.sql("CREATE TABLE named (id int PRIMARY KEY)").await;
    stand.postgres.sql("ALTER TABLE counters DROP CONSTRAINT counters_pkey").await;
    let since = Instant::now();
    let fault = Fault {
        name: "primary key dropped",
        says: &["public.counters", "replica identity"],
        logs: "public.counters",
        metric: ("walhook_source_table_notes", &[("kind", "identity")], 1.0),
    };
    fault.told(&stand.daemon, since).await;
    stand.postgres.sql("ALTER TABLE counters ADD PRIMARY KEY (id)").await;
    let says = |body: &serde_json::Value| troubles(body);
    until("it to be put back", || async {
        let members =
            stand.postgres.value("SELECT count(*) FROM pg_publication_rel WHERE prrelid = 'counters'::regclass").await;
        let body = stand.daemon.ready().await.map(|(_, body)| says(&body));
        state(members == "1", body)
    })
    .await;
    assert!(stand.daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn housekeeping_that_dies_is_told_and_begins_anew() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let environment = [("WALHOOK_FAILPOINT", "housekeeping.look:3:panic")];
    let daemon = Daemon::launch_with(&config, &environment).allow_error("the failpoint");
    daemon.wait_ready().await;
    daemon.wait_logged("ended unexpectedly").await;
    let since = Instant::now();
    until("it to begin anew", || async {
        let again = daemon.metrics().await.sum("walhook_source_reconnects_total", &[("reason", "internal")]);
        state(again == Some(1.0), again)
    })
    .await;
    daemon.wait_ready().await;
    println!("fault: housekeeping dead: cleared after {:.1} s", since.elapsed().as_secs_f64());
    // What only housekeeping does: a new table is published.
    postgres.sql("CREATE TABLE late (id int PRIMARY KEY)").await;
    until("a new table to be published", || async {
        let members = postgres.value("SELECT count(*) FROM pg_publication_rel").await;
        state(members == "2", members)
    })
    .await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wal_level_that_was_lowered_and_senders_that_are_used_up_are_told_and_clear() {
    let stand = Stand::new().await;
    let daemon = stand.daemon.allow_error("wal_level").allow_error("max_wal_senders").allow_error("is gone");
    let restart = |settings: &str| {
        stand.postgres.cluster.stop("fast").unwrap();
        let auto = stand.postgres.cluster.data().join("postgresql.auto.conf");
        std::fs::write(&auto, settings).unwrap();
        stand.postgres.cluster.resume().unwrap();
    };
    let before = std::fs::read_to_string(stand.postgres.cluster.data().join("postgresql.auto.conf")).unwrap();
    let fault = |name, says| Fault {
        name,
        says,
        logs: "source",
        metric: ("walhook_source_streaming", &[("source", "app")], 0.0),
    };
    // A server starts with fewer senders whatever slots there are.
    restart(&format!("{before}max_wal_senders = 0\n"));
    let since = Instant::now();
    fault("max_wal_senders", &["max_wal_senders"]).told(&daemon, since).await;
    restart(&before);
    let since = Instant::now();
    fault("max_wal_senders", &["max_wal_senders"]).cleared(&daemon, since).await;

    // It does not with a slot and a lower level: somebody dropped the slot first.
    stand.postgres.cluster.stop("fast").unwrap();
    let slots = stand.postgres.cluster.data().join("pg_replslot");
    for slot in std::fs::read_dir(&slots).unwrap().flatten() {
        std::fs::remove_dir_all(slot.path()).unwrap();
    }
    stand.postgres.cluster.resume().unwrap();
    restart(&format!("{before}wal_level = replica\n"));
    let since = Instant::now();
    fault("wal_level lowered, slot dropped first", &["wal_level"]).told(&daemon, since).await;
    restart(&before);
    let lost = fault("slot dropped", &["the slot walhook_app is gone", "accept-gap app"]);
    lost.told(&daemon, Instant::now()).await;
    assert!(daemon.sigterm().await.success());
    assert!(stand.config.state_command(&["accept-gap"]).status.success());
    let daemon = Daemon::start(&stand.config).await;
    lost.cleared(&daemon, Instant::now()).await;
    assert!(daemon.sigterm().await.success());
}

/// Forges frames of the stream, and sees that the source stops with both positions, that neither slot nor store has gone
/// beyond the server's end, and that nothing is skipped afterwards.
async fn forge(name: &'static str, forge: impl Fn(&Relay)) {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let relay = Relay::to(&postgres).await;
    let receiver = Receiver::start().await;
    let text = relay.source(&postgres, "") + &Config::sink("orders", &receiver.url(), "");
    let config = Config::new(&text);
    let daemon = Daemon::start(&config).await.allow_error("the server's log ends at");
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait("the row", |receiver| has(receiver, 1)).await;
    forge(&relay);
    let since = Instant::now();
    postgres.sql("INSERT INTO counters VALUES (2, 0)").await;
    let fault = Fault { name, says: &["the server's log ends at", "up to FFFFFFFF/FFFFFF00"], ..WENT_BACK };
    fault.told(&daemon, since).await;
    let confirmed = "SELECT confirmed_flush_lsn <= pg_current_wal_lsn() FROM pg_replication_slots";
    assert_eq!(postgres.value(confirmed).await, "t", "the slot was poisoned");
    assert!(daemon.sigterm().await.success());
    let shown = crate::daemon::text_of(&config.state_command(&["show"]));
    assert!(!shown.contains("FFFFFF"), "the store was poisoned: {shown}");
    // Only a person knows that the server is the right one.
    let mut refused = Daemon::launch(&config).allow_error("the server's log ends at");
    assert_eq!(refused.wait_exit().await.code(), Some(69));
    assert!(config.state_command(&["accept-gap"]).status.success());
    let daemon = Daemon::start(&config).await;
    postgres.sql("INSERT INTO counters VALUES (3, 0)").await;
    receiver.wait("all rows", |receiver| has(receiver, 2) && has(receiver, 3)).await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_keepalive_poisons_neither_slot_nor_store() {
    forge("forged keepalive", |relay| relay.add_keepalive(0xFFFF_FFFF_FFFF_FF00)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_transaction_far_ahead_poisons_neither_slot_nor_store() {
    forge("forged transaction", |relay| relay.add_transaction(0xFFFF_FFFF_FFFF_FF00)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn switches_of_wal_files_are_no_going_back() {
    let stand = Stand::new().await;
    let reader = stand.postgres.reader(SLOT).await;
    let admin = stand.postgres.admin_client().await;
    for id in 2..=20 {
        admin.batch_execute("SELECT pg_switch_wal()").await.unwrap();
        stand.deliver(id).await;
        admin.batch_execute("SELECT pg_switch_wal()").await.unwrap();
        let confirmed = "SELECT confirmed_flush_lsn >= pg_current_wal_lsn() - 8192 FROM pg_replication_slots";
        until("the slot to follow", || async {
            let follows = stand.postgres.value(confirmed).await;
            state(follows == "t", stand.daemon.ready().await)
        })
        .await;
    }
    assert_eq!(stand.postgres.reader(SLOT).await, reader, "the session should go on");
    assert!(stand.daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sql_session_that_is_stopped_under_load_is_told_and_clears() {
    let stand = Stand::new().await;
    let others = "SELECT pid FROM pg_stat_activity WHERE usename = 'walhook' AND backend_type = 'client backend'";
    let sessions = stand.postgres.admin_rows(others).await;
    let pids: Vec<i32> = sessions.into_iter().flatten().flatten().map(|pid| pid.parse().unwrap()).collect();
    assert!(!pids.is_empty());
    kill("-STOP", &pids);
    let since = Instant::now();
    // More than what the stream may be ahead of the server's last word.
    for from in [10_000, 20_000, 30_000] {
        let body = "(SELECT string_agg(md5(i::text || j), '') FROM generate_series(1, 94) j)";
        let rows = format!("SELECT i, 0, {body} FROM generate_series({from}, {from} + 2999) i");
        stand.postgres.sql(&format!("INSERT INTO counters {rows}")).await;
    }
    let fault = Fault {
        name: "SQL sessions stopped (SIGSTOP) under load",
        says: &["the database has not answered over SQL for"],
        logs: "the database has not answered over SQL for",
        ..SILENT
    };
    fault.told(&stand.daemon, since).await;
    // Nor is it told as what it is not, though nothing is read for longer than a source that is held waits before it says so.
    until("lag_seconds to grow", || async {
        let lag = stand.daemon.metrics().await.sum("walhook_source_lag_seconds", &[]);
        state(lag > Some(8.0), lag)
    })
    .await;
    assert!(!stand.daemon.logged("reading is held"), "the sinks were blamed");
    kill("-CONT", &pids);
    let since = Instant::now();
    fault.cleared(&stand.daemon, since).await;
    stand.receiver.wait("all rows", |receiver| receiver.message_count() >= 9_001).await;
    assert!(stand.daemon.sigterm().await.success());
}

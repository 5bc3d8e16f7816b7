//! What keeps a table from being read holds that table only, at a start too, and nothing that is told of it lasts for ever.

use std::time::Duration;

use serde_json::Value;

use super::{SLOT, make_slot};
use crate::daemon::{Config, Daemon, message_of, text_of, troubles, walhook};
use crate::postgres::{Postgres, state, until_within};
use crate::receiver::Receiver;

/// New tables are looked for every 30 s.
const LOOKED: Duration = Duration::from_secs(70);

/// `/readyz`, once what it says is as `holds` wants.
async fn wait_said(daemon: &Daemon, what: &str, holds: impl Fn(u16, &str) -> bool) {
    until_within(LOOKED, what, || async {
        let (code, body) = daemon.ready().await.ok_or_else(|| "nothing listens".to_owned())?;
        let said = troubles(&body);
        state(holds(code, &said), format!("{code} {said}"))
    })
    .await;
}

fn checked(config: &Config) -> (Option<i32>, String) {
    let output = walhook(&["check", "--config", &config.path().to_string_lossy()]);
    (output.status.code(), text_of(&output))
}

fn has(receiver: &Receiver, table: &str, id: i64) -> bool {
    let is = |message: &Value| message["metadata"]["table_name"] == *table && message["record"]["id"] == id;
    receiver.messages().iter().any(is)
}

const TWO: &str = "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (0, 0);
    CREATE TABLE other (id int PRIMARY KEY, n int)";

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_59_a_view_in_the_place_of_a_named_table_holds_only_itself_over_a_restart_until_the_table_is_back() {
    let postgres = Postgres::start();
    postgres.sql(TWO).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "tables = [\"public.t\", \"public.other\"]");
    let daemon = Daemon::start(&config).await;
    postgres.sql("ALTER TABLE t RENAME TO base; CREATE VIEW t AS SELECT * FROM base").await;
    wait_said(&daemon, "the view to be told", |code, said| code == 200 && said.contains("public.t is a view")).await;
    assert!(daemon.sigterm().await.success());
    let (code, said) = checked(&config);
    assert!(code == Some(69) && said.contains("public.t is a view"), "{code:?} {said}");
    let daemon = Daemon::start(&config).await;
    wait_said(&daemon, "the view to be told", |code, said| code == 200 && said.contains("public.t is a view")).await;
    postgres.sql("INSERT INTO other VALUES (1, 1)").await;
    receiver.wait("a row of the other table", |receiver| has(receiver, "other", 1)).await;
    postgres.sql("DROP VIEW t; ALTER TABLE base RENAME TO t").await;
    wait_said(&daemon, "nothing of a view", |_, said| !said.contains("is a view")).await;
    postgres.sql("INSERT INTO t VALUES (2, 2)").await;
    receiver.wait("a row of the table", |receiver| has(receiver, "t", 2)).await;
    assert!(daemon.sigterm().await.success());
}

/// What becomes of a table that has lost its identity, and what is told of it then.
const NEVER_BACK: [(&str, &str); 3] = [
    ("ALTER TABLE t RENAME TO base; CREATE VIEW t AS SELECT * FROM base", "public.t is a view"),
    (
        "ALTER TABLE t REPLICA IDENTITY FULL; CREATE TABLE root (id int, n int) PARTITION BY RANGE (id);
         ALTER TABLE root REPLICA IDENTITY FULL; ALTER TABLE root ATTACH PARTITION t FOR VALUES FROM (0) TO (10)",
        "public.t is a partition",
    ),
    ("ALTER TABLE t ADD PRIMARY KEY (id); ALTER TABLE t SET UNLOGGED", "public.t is unlogged"),
];

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_a_gap_of_a_table_that_never_comes_back_says_why_and_a_person_can_accept_it() {
    for (sql, why) in NEVER_BACK {
        let postgres = Postgres::start();
        postgres.sql(TWO).await;
        let receiver = Receiver::start().await;
        let config = Config::one_sink(&postgres, &receiver.url(), "");
        let daemon = Daemon::start(&config).await;
        postgres.sql("ALTER TABLE t DROP CONSTRAINT t_pkey").await;
        wait_said(&daemon, "t to be out", |_, said| said.contains("public.t lost its replica identity")).await;
        postgres.sql(sql).await;
        let kept = format!("and is not put back: {why}");
        wait_said(&daemon, &kept, |code, said| code == 200 && said.contains(&kept)).await;
        let said = troubles(&daemon.ready().await.unwrap().1);
        assert!(
            !said.contains("lost its replica identity") && said.contains("accept-gap app --table public.t"),
            "{said}"
        );
        let (code, said) = checked(&config);
        assert!(code == Some(69) && said.contains(&kept), "{code:?} {said}");
        assert!(daemon.sigterm().await.success());
        let accepted = config.state_command(&["accept-gap", "app", "--table", "public.t"]);
        assert!(accepted.status.success(), "{}", text_of(&accepted));
        let daemon = Daemon::start(&config).await;
        let said = troubles(&daemon.ready().await.unwrap().1);
        assert!(!said.contains("not put back") && !said.contains("are not captured"), "{said}");
        assert!(daemon.sigterm().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_a_table_whose_writes_fail_is_in_the_log_of_every_start_and_when_it_fails_again() {
    let postgres = Postgres::start();
    postgres
        .sql(&format!("{TWO}; CREATE PUBLICATION {SLOT} FOR TABLE t, other WITH (publish_via_partition_root = true)"))
        .await;
    make_slot(&postgres).await;
    let receiver = Receiver::start().await;
    let config = Config::new(&(Config::reader_source(&postgres) + &Config::sink("orders", &receiver.url(), "")));
    postgres.sql("ALTER TABLE t DROP CONSTRAINT t_pkey").await;
    let fails = "public.t is published and its own UPDATE and DELETE fail since";
    let logged = |daemon: &Daemon| daemon.logs().iter().filter(|line| message_of(line).starts_with(fails)).count();
    for _ in 0..2 {
        let daemon = Daemon::launch(&config);
        wait_said(&daemon, "503", |code, said| code == 503 && said.contains(fails)).await;
        assert_eq!(logged(&daemon), 1);
        postgres.sql("ALTER TABLE t REPLICA IDENTITY FULL").await;
        wait_said(&daemon, "200", |code, said| code == 200 && !said.contains(fails)).await;
        postgres.sql("ALTER TABLE t REPLICA IDENTITY DEFAULT").await;
        wait_said(&daemon, "503", |code, said| code == 503 && said.contains(fails)).await;
        assert_eq!(logged(&daemon), 2, "once for each time");
        assert!(daemon.sigterm().await.success());
    }
}

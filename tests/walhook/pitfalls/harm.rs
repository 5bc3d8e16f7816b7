//! A published table loses its replica identity: its own UPDATE and DELETE fail from that moment, until it is out of the
//! publication.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::{SLOT, make_slot};
use crate::daemon::{Config, Daemon, message_of, text_of, troubles, walhook};
use crate::postgres::{Postgres, state, until, until_within};
use crate::receiver::Receiver;

/// Within 10 s a harm is seen, and within 10 s its end; the rest is for a machine that does other things too.
pub(super) const SOON: Duration = Duration::from_secs(20);

const DEFERRABLE: &str = "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id) DEFERRABLE";
const KEYED: &str = "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id)";
pub(super) const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (0, 0)";

/// Whether the application's own statement works.
pub(super) async fn works(postgres: &Postgres, sql: &str) -> Result<(), String> {
    let done = postgres.client().await.batch_execute(sql).await;
    done.map_err(|error| error.as_db_error().map_or_else(|| error.to_string(), |server| server.message().to_owned()))
}

pub(super) async fn wait_writes(postgres: &Postgres, table: &str) {
    let sql = format!("UPDATE {table} SET n = n + 1");
    until_within(SOON, &format!("UPDATE of {table} to work"), || works(postgres, &sql)).await;
}

pub(super) async fn members(postgres: &Postgres) -> Vec<String> {
    let rows = postgres.rows("SELECT prrelid::regclass::text FROM pg_publication_rel ORDER BY 1").await;
    rows.into_iter().flatten().flatten().collect()
}

pub(super) async fn wait_member(postgres: &Postgres, table: &str, is_in: bool) {
    until_within(SOON, &format!("{table} in the publication: {is_in}"), || async {
        let members = members(postgres).await;
        state(members.iter().any(|member| member == table) == is_in, members)
    })
    .await;
}

/// `/readyz`, once it says all of these.
pub(super) async fn wait_said(daemon: &Daemon, parts: &[&str]) -> (u16, Value) {
    until_within(SOON, &format!("readyz to say {parts:?}"), || async {
        let Some((code, body)) = daemon.ready().await else { return Err((0, String::new())) };
        let said = troubles(&body);
        if parts.iter().all(|part| said.contains(part)) { Ok((code, body)) } else { Err((code, said)) }
    })
    .await
}

pub(super) fn has(receiver: &Receiver, id: i64) -> bool {
    receiver.messages().iter().any(|message| message["action"] == "insert" && message["record"]["id"] == id)
}

fn checked(config: &Config) -> (Option<i32>, String) {
    let output = walhook(&["check", "--config", &config.path().to_string_lossy()]);
    (output.status.code(), text_of(&output))
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_a_table_that_loses_its_identity_is_taken_out_and_put_back_behind_a_gap_that_a_person_accepts() {
    let postgres = Postgres::start();
    postgres.sql(&format!("{TABLE}; CREATE TABLE other (id int PRIMARY KEY, n int)")).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let daemon = Daemon::start(&config).await;
    postgres.sql("INSERT INTO t VALUES (1, 1)").await;
    receiver.wait("the row of before", |receiver| has(receiver, 1)).await;

    postgres.sql(DEFERRABLE).await;
    wait_writes(&postgres, "t").await;
    let (code, body) = wait_said(&daemon, &["public.t lost its replica identity", "\"error\""]).await;
    assert_eq!(code, 200, "{body}");
    assert_eq!(members(&postgres).await, ["other"]);
    postgres.sql("INSERT INTO t VALUES (2, 2); INSERT INTO other VALUES (3, 3)").await;
    receiver.wait("a row of another table", |receiver| has(receiver, 3)).await;
    let (code, said) = checked(&config);
    assert!(code == Some(69) && said.contains("are not captured"), "{code:?} {said}");

    // Nobody forgets that it is out.
    daemon.kill9();
    let daemon = Daemon::start(&config).await;
    wait_said(&daemon, &["public.t lost its replica identity"]).await;
    postgres.sql(KEYED).await;
    wait_member(&postgres, "t", true).await;
    postgres.sql("INSERT INTO t VALUES (4, 4)").await;
    receiver.wait("a row of after", |receiver| has(receiver, 4)).await;
    assert!(!has(&receiver, 2), "then there was no gap");
    let gap =
        ["public.t was out of the publication", "were not captured", "accept-gap app --table public.t", "\"error\""];
    let (code, body) = wait_said(&daemon, &gap).await;
    assert_eq!(code, 200, "{body}");
    let metrics = daemon.metrics().await;
    assert_eq!(metrics.sum("walhook_source_table_notes", &[("kind", "identity")]), Some(1.0));
    assert_eq!(metrics.sum("walhook_source_table_notes", &[]), Some(1.0), "the gap says it all: {body}");
    assert!(daemon.sigterm().await.success());

    let shown = text_of(&config.state_command(&["show", "--json"]));
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let note = &shown["sources"][0]["tables"][0];
    assert!(note["from_lsn"].is_string() && note["to_lsn"].is_string(), "{shown}");
    let accepted = config.state_command(&["accept-gap", "app", "--table", "public.t"]);
    assert!(accepted.status.success(), "{}", text_of(&accepted));
    let daemon = Daemon::start(&config).await;
    postgres.sql("INSERT INTO t VALUES (5, 5)").await;
    receiver.wait("a row of the next life", |receiver| has(receiver, 5)).await;
    let (code, body) = daemon.ready().await.unwrap();
    assert!(code == 200 && !troubles(&body).contains("public.t"), "{body}");
}

/// What a table is, what takes its identity, and what gives it another.
const WAYS: [(&str, &str, &str, &str); 8] = [
    (
        "dropped",
        "CREATE TABLE dropped (id int PRIMARY KEY, n int)",
        "ALTER TABLE dropped DROP CONSTRAINT dropped_pkey",
        "ALTER TABLE dropped ADD PRIMARY KEY (id)",
    ),
    (
        "deferred",
        "CREATE TABLE deferred (id int PRIMARY KEY, n int)",
        "ALTER TABLE deferred DROP CONSTRAINT deferred_pkey, ADD PRIMARY KEY (id) DEFERRABLE INITIALLY DEFERRED",
        "ALTER TABLE deferred REPLICA IDENTITY FULL",
    ),
    (
        "nothing",
        "CREATE TABLE nothing (id int PRIMARY KEY, n int)",
        "ALTER TABLE nothing REPLICA IDENTITY NOTHING",
        "ALTER TABLE nothing REPLICA IDENTITY DEFAULT",
    ),
    (
        "indexed",
        "CREATE TABLE indexed (id int NOT NULL, n int); CREATE UNIQUE INDEX indexed_id ON indexed (id);
        ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_id",
        "DROP INDEX indexed_id",
        "CREATE UNIQUE INDEX again ON indexed (id); ALTER TABLE indexed REPLICA IDENTITY USING INDEX again",
    ),
    (
        "whole",
        "CREATE TABLE whole (id int, n int); ALTER TABLE whole REPLICA IDENTITY FULL",
        "ALTER TABLE whole REPLICA IDENTITY DEFAULT",
        "ALTER TABLE whole REPLICA IDENTITY FULL",
    ),
    (
        "first",
        "CREATE TABLE first (id int, n int) PARTITION BY RANGE (id); ALTER TABLE first REPLICA IDENTITY FULL",
        "CREATE TABLE first_1 PARTITION OF first FOR VALUES FROM (0) TO (9)",
        "ALTER TABLE first_1 REPLICA IDENTITY FULL",
    ),
    (
        "attached",
        "CREATE TABLE attached (id int, n int) PARTITION BY RANGE (id)",
        "CREATE TABLE bare (id int, n int); ALTER TABLE attached ATTACH PARTITION bare FOR VALUES FROM (0) TO (9)",
        "ALTER TABLE bare REPLICA IDENTITY FULL",
    ),
    (
        "leafless",
        "CREATE TABLE leafless (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
        CREATE TABLE leafless_1 PARTITION OF leafless FOR VALUES FROM (0) TO (9)",
        "ALTER TABLE leafless_1 REPLICA IDENTITY NOTHING",
        "ALTER TABLE leafless_1 REPLICA IDENTITY DEFAULT",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_in_whatever_way_an_identity_goes_the_tables_own_writes_work_soon() {
    let postgres = Postgres::start();
    for (_, made, _, _) in WAYS {
        postgres.sql(made).await;
    }
    let made = "CREATE TABLE invalid (id int PRIMARY KEY, n int); CREATE TABLE computed (id int PRIMARY KEY, n int)";
    postgres.sql(&format!("{made}; ALTER TABLE computed REPLICA IDENTITY FULL")).await;
    // A root without partitions has no writes that could fail, and can be published.
    let receiver = Receiver::start().await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;
    postgres.admin_sql("ALTER PUBLICATION walhook_app ADD TABLE attached").await;
    let mut tables: Vec<&str> = WAYS.iter().map(|(table, ..)| *table).collect();
    for (table, _, taken, _) in WAYS {
        postgres.sql(taken).await;
        postgres.sql(&format!("INSERT INTO {table} VALUES (1, 1)")).await;
    }
    postgres.sql("INSERT INTO invalid VALUES (1, 1); INSERT INTO computed VALUES (1, 1)").await;
    postgres.admin_sql("UPDATE pg_index SET indisvalid = false WHERE indrelid = 'invalid'::regclass").await;
    postgres.admin_sql("ALTER TABLE invalid ADD COLUMN m int").await;
    tables.push("invalid");
    if postgres.major().await >= 18 {
        postgres.sql("ALTER TABLE computed ADD COLUMN twice int GENERATED ALWAYS AS (n * 2) VIRTUAL").await;
        tables.push("computed");
    }
    for table in &tables {
        wait_writes(&postgres, table).await;
        wait_said(&daemon, &[&format!("public.{table} lost its replica identity")]).await;
    }
    // They come back, and none goes out again.
    for (_, _, _, given) in WAYS {
        postgres.sql(given).await;
    }
    for (table, ..) in WAYS {
        wait_member(&postgres, table, true).await;
        postgres.sql(&format!("UPDATE {table} SET n = 100")).await;
        let name = format!("public.{table} was out of the publication");
        wait_said(&daemon, &[&name]).await;
        receiver
            .wait("its change", |receiver| {
                receiver
                    .messages()
                    .iter()
                    .any(|message| message["metadata"]["table_name"] == *table && message["record"]["n"] == 100)
            })
            .await;
    }
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_a_key_swapped_in_two_transactions_comes_through() {
    let postgres = Postgres::start();
    postgres.sql(TABLE).await;
    let receiver = Receiver::start().await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;
    // Before anybody has looked at it, and after it was taken out.
    for (id, is_seen) in [(7, false), (8, true)] {
        postgres.sql("ALTER TABLE t DROP CONSTRAINT t_pkey").await;
        if is_seen {
            wait_member(&postgres, "t", false).await;
        }
        postgres.sql("ALTER TABLE t ADD PRIMARY KEY (id)").await;
        wait_member(&postgres, "t", true).await;
        until_within(SOON, "nothing to be open", || async {
            let said = troubles(&daemon.ready().await.unwrap().1);
            state(!said.contains("are not captured") && !said.contains("fail since"), said)
        })
        .await;
        wait_writes(&postgres, "t").await;
        // A look that fell between the two transactions takes the table out only now; it comes back by itself.
        let next = AtomicI64::new(id * 100_000);
        until("a row to come through", || async {
            let row = next.fetch_add(1, Ordering::Relaxed);
            postgres.sql(&format!("INSERT INTO t VALUES ({row}, {id})")).await;
            state((id * 100_000..=row).any(|row| has(&receiver, row)), row)
        })
        .await;
        until("it to be ready", || async {
            let (code, body) = daemon.ready().await.unwrap();
            state(code == 200, body)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_where_walhook_may_not_take_it_out_readyz_is_503_with_two_ways_out_until_one_is_taken() {
    let postgres = Postgres::start();
    postgres
        .sql(&format!("{TABLE}; CREATE PUBLICATION {SLOT} FOR TABLE t WITH (publish_via_partition_root = true)"))
        .await;
    make_slot(&postgres).await;
    let receiver = Receiver::start().await;
    let config = Config::new(&(Config::reader_source(&postgres) + &Config::sink("orders", &receiver.url(), "")));
    let daemon = Daemon::start(&config).await;
    for mends in ["ALTER TABLE t REPLICA IDENTITY FULL", &format!("ALTER PUBLICATION {SLOT} DROP TABLE ONLY t")] {
        postgres.sql("ALTER TABLE t DROP CONSTRAINT IF EXISTS t_pkey; ALTER TABLE t REPLICA IDENTITY DEFAULT").await;
        let parts = [
            "public.t is published and its own UPDATE and DELETE fail since",
            "REPLICA IDENTITY FULL;",
            "DROP TABLE ONLY",
            "create = false",
            "\"error\"",
        ];
        let (code, body) = wait_said(&daemon, &parts).await;
        assert_eq!(code, 503, "{body}");
        assert!(works(&postgres, "UPDATE t SET n = 1").await.is_err());
        let (code, said) = checked(&config);
        assert!(code == Some(69) && said.contains("its own UPDATE and DELETE fail"), "{code:?} {said}");
        assert_eq!(daemon.metrics().await.sum("walhook_source_harmed_tables", &[]), Some(1.0));
        postgres.sql(mends).await;
        until_within(SOON, "it to be ready again", || async {
            let ready = daemon.ready().await;
            state(
                ready.as_ref().is_some_and(|(code, body)| *code == 200 && !body.to_string().contains("fail since")),
                ready,
            )
        })
        .await;
        works(&postgres, "UPDATE t SET n = 1").await.unwrap();
    }
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_a_publication_of_all_tables_harms_those_without_identity_and_says_so() {
    let postgres = Postgres::start();
    postgres.sql(&format!("{TABLE}; CREATE TABLE u (n int)")).await;
    postgres.admin_sql(&format!("CREATE PUBLICATION {SLOT} FOR ALL TABLES")).await;
    make_slot(&postgres).await;
    let receiver = Receiver::start().await;
    let text = Config::reader_source(&postgres) + &Config::sink("orders", &receiver.url(), "tables = [\"public.t\"]");
    let config = Config::new(&text);
    let daemon = Daemon::launch(&config);
    wait_said(&daemon, &["public.u is published", "FOR ALL TABLES", "leave out a table"]).await;
    // What is not harmed streams; the harm alone makes it unready.
    postgres.sql("INSERT INTO t VALUES (5, 5)").await;
    receiver.wait("a row of another table", |receiver| has(receiver, 5)).await;
    let (code, body) = daemon.ready().await.unwrap();
    assert_eq!((code, &body["sources"]["app"]["state"]), (503, &"streaming".into()), "{body}");
    assert!(works(&postgres, "INSERT INTO u VALUES (1); UPDATE u SET n = 1").await.is_err());
    postgres.sql("ALTER TABLE u REPLICA IDENTITY FULL").await;
    daemon.wait_ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_a_filter_or_a_list_that_the_identity_does_not_cover_harms_too() {
    let postgres = Postgres::start();
    if postgres.major().await < 15 {
        println!("skipped: row filters and column lists need Postgres 15; WALHOOK_PG_BIN chooses another server");
        return;
    }
    postgres.sql("CREATE TABLE f (id int PRIMARY KEY, n int); CREATE TABLE l (id int PRIMARY KEY, n int)").await;
    postgres.sql(&format!("CREATE PUBLICATION {SLOT} FOR TABLE f WHERE (id > 0 AND n > 0), TABLE l (id)")).await;
    postgres.sql("ALTER TABLE f REPLICA IDENTITY FULL").await;
    make_slot(&postgres).await;
    let receiver = Receiver::start().await;
    let config = Config::new(&(Config::reader_source(&postgres) + &Config::sink("orders", &receiver.url(), "")));
    let daemon = Daemon::start(&config).await;
    postgres.sql("ALTER TABLE f REPLICA IDENTITY DEFAULT; ALTER TABLE l REPLICA IDENTITY FULL").await;
    for (table, why) in [("f", "is filtered in the publication"), ("l", "column list does not cover")] {
        assert!(works(&postgres, &format!("UPDATE {table} SET n = 1")).await.is_err(), "{table}");
        assert_eq!(wait_said(&daemon, &[&format!("public.{table} is published"), why]).await.0, 503);
    }
    postgres.sql("ALTER TABLE f REPLICA IDENTITY FULL; ALTER TABLE l REPLICA IDENTITY DEFAULT").await;
    until_within(SOON, "it to be ready again", || async {
        let ready = daemon.ready().await;
        state(ready.as_ref().is_some_and(|(code, _)| *code == 200), ready)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_a_publication_whose_actions_are_widened_lets_go_of_a_table_without_identity() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await;
    let receiver = Receiver::start().await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "actions = [\"insert\"]")).await;
    assert_eq!(members(&postgres).await, ["t"]);
    postgres.admin_sql(&format!("ALTER PUBLICATION {SLOT} SET (publish = 'insert, update')")).await;
    wait_writes(&postgres, "t").await;
    // And does not take it back while they are.
    postgres.sql("CREATE TABLE u (id int PRIMARY KEY, n int)").await;
    until_within(Duration::from_secs(60), "a look for new tables", || async {
        let members = members(&postgres).await;
        state(members == ["u"], members)
    })
    .await;
    works(&postgres, "UPDATE t SET n = 2").await.unwrap();
    let out = |line: &Value| message_of(line).starts_with("taken out of the publication");
    assert_eq!(daemon.logs().iter().filter(|line| out(line)).count(), 1, "it came back in between");
    postgres.admin_sql(&format!("ALTER PUBLICATION {SLOT} SET (publish = 'insert')")).await;
    wait_member(&postgres, "t", true).await;
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_an_identity_that_went_while_walhook_was_down_is_seen_at_the_start() {
    let postgres = Postgres::start();
    postgres.sql(TABLE).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let daemon = Daemon::start(&config).await;
    assert!(daemon.sigterm().await.success());
    postgres.sql(DEFERRABLE).await;
    assert!(works(&postgres, "UPDATE t SET n = 1").await.is_err());
    // What the next start ends does not keep `check && run` from it.
    let (code, said) = checked(&config);
    assert!(code == Some(0) && said.contains("public.t is published and its own UPDATE and DELETE fail"), "{said}");
    let daemon = Daemon::launch(&config);
    wait_writes(&postgres, "t").await;
    wait_said(&daemon, &["public.t lost its replica identity"]).await;
    assert!(daemon.sigterm().await.success());
    let (code, said) = checked(&config);
    assert!(code == Some(69) && said.contains("REPLICA IDENTITY FULL"), "{said}");
    // It comes back while walhook is down.
    postgres.sql(KEYED).await;
    let (code, said) = checked(&config);
    assert!(code == Some(0) && said.contains("it has one again: walhook puts it back by itself"), "{said}");
    let daemon = Daemon::start(&config).await;
    wait_said(&daemon, &["public.t was out of the publication"]).await;
    postgres.sql("INSERT INTO t VALUES (9, 9)").await;
    receiver.wait("a row", |receiver| has(receiver, 9)).await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_a_crash_between_two_steps_leaves_the_gap_noted() {
    for place in ["identity.noted", "identity.taken_out"] {
        let postgres = Postgres::start();
        postgres.sql(TABLE).await;
        let receiver = Receiver::start().await;
        let config = Config::one_sink(&postgres, &receiver.url(), "");
        let mut daemon = Daemon::launch_with(&config, &[("WALHOOK_FAILPOINT", place)]);
        daemon.wait_ready().await;
        postgres.sql(DEFERRABLE).await;
        assert!(!daemon.wait_exit().await.success(), "{place}");
        postgres.sql("INSERT INTO t VALUES (2, 2)").await;
        let shown = text_of(&config.state_command(&["show"]));
        assert!(shown.contains("on are not captured"), "{place}: {shown}");
        postgres.sql(KEYED).await;
        let daemon = Daemon::start(&config).await;
        wait_member(&postgres, "t", true).await;
        wait_said(&daemon, &["public.t was out of the publication", "accept-gap app --table public.t"]).await;
        postgres.sql("INSERT INTO t VALUES (3, 3)").await;
        receiver.wait("a row", |receiver| has(receiver, 3)).await;
        drop(daemon);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_a_table_that_a_migration_locks_is_taken_out_when_it_is_free_and_stalls_nothing_meanwhile() {
    let postgres = Postgres::start();
    postgres.sql(&format!("{TABLE}; CREATE TABLE other (id int PRIMARY KEY, n int)")).await;
    let receiver = Receiver::start().await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;
    let holder = postgres.client().await;
    // In one go, so that no look finds it bare and free.
    let migration = format!("BEGIN; {DEFERRABLE}; COMMIT; BEGIN; LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE");
    holder.batch_execute(&migration).await.unwrap();
    let (code, body) = wait_said(&daemon, &["public.t is published", "has locked it"]).await;
    assert_eq!(code, 503, "{body}");
    assert!(works(&postgres, "UPDATE t SET n = 1").await.is_err());
    postgres.sql("INSERT INTO other VALUES (5, 5)").await;
    receiver.wait("a row of another table", |receiver| has(receiver, 5)).await;
    holder.batch_execute("COMMIT").await.unwrap();
    wait_writes(&postgres, "t").await;
    until("it to be ready again", || async {
        let ready = daemon.ready().await;
        state(ready.as_ref().is_some_and(|(code, _)| *code == 200), ready)
    })
    .await;
}

//! A table that has lost its replica identity and is out of the publication: what holds it there, what takes it out beside walhook,
//! and where the gap ends.

use std::time::Duration;

use serde_json::Value;

use super::harm::{SOON, TABLE, has, members, wait_member, wait_said, wait_writes, works};
use super::{SLOT, make_slot, skipped};
use crate::daemon::{Config, Daemon, text_of, troubles};
use crate::postgres::{Postgres, state, until_within};
use crate::receiver::Receiver;

const UNKEYED: &str = "ALTER TABLE t DROP CONSTRAINT t_pkey";
const KEYED: &str = "ALTER TABLE t ADD PRIMARY KEY (id)";

async fn wait_ready(daemon: &Daemon) {
    until_within(SOON, "it to be ready", || async {
        let ready = daemon.ready().await;
        state(ready.as_ref().is_some_and(|(code, _)| *code == 200), ready)
    })
    .await;
}

/// The gaps of a table that `walhook state` shows, each with its ends.
fn gaps(config: &Config, table: &str) -> Vec<(Option<String>, Option<String>)> {
    let shown = text_of(&config.state_command(&["show", "--json"]));
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let sources = shown["sources"].as_array().unwrap();
    let notes = sources.iter().flat_map(|source| source["tables"].as_array().unwrap());
    let end = |note: &Value, name: &str| note[name].as_str().map(str::to_owned);
    let of_table = notes.filter(|note| note["table"] == table);
    of_table.map(|note| (end(note, "from_lsn"), end(note, "to_lsn"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_a_list_or_filter_that_a_person_gave_a_table_is_kept_and_the_ways_out_are_said() {
    let postgres = Postgres::start();
    if postgres.major().await < 15 {
        skipped("row filters and column lists need Postgres 15; WALHOOK_PG_BIN chooses another server");
        return;
    }
    postgres
        .sql("CREATE TABLE t (id int PRIMARY KEY, n int, secret text); CREATE TABLE f (id int PRIMARY KEY, n int)")
        .await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let daemon = Daemon::start(&config).await;
    let narrow = format!(
        "ALTER PUBLICATION {SLOT} DROP TABLE t, f; ALTER PUBLICATION {SLOT} ADD TABLE t (id, n), f WHERE (n > 100)"
    );
    postgres.admin_sql(&narrow).await;
    postgres.sql(&format!("INSERT INTO t VALUES (1, 1, 'x'); {UNKEYED}")).await;
    let lost = "the column list or row filter that a person gave it there would be lost";
    let parts =
        ["public.t is published", "public.f is published", "is filtered in the publication", lost, "every sink"];
    let (code, body) = wait_said(&daemon, &parts).await;
    assert_eq!(code, 503, "{body}");
    assert!(works(&postgres, "UPDATE t SET n = 1").await.is_err());

    postgres.sql(&format!("{KEYED}; ALTER TABLE f REPLICA IDENTITY FULL")).await;
    wait_ready(&daemon).await;
    postgres.sql("INSERT INTO t VALUES (2, 2, 'x'); INSERT INTO f VALUES (3, 3), (300, 300)").await;
    receiver.wait("rows of after", |receiver| has(receiver, 2) && has(receiver, 300)).await;
    let secrets = receiver.messages().iter().filter(|message| message["record"].get("secret").is_some()).count();
    assert!(secrets == 0 && !has(&receiver, 3), "{:?}", receiver.messages());
    assert!(daemon.sigterm().await.success());

    // Nor does a sink that leaves and returns lose it.
    let text = std::fs::read_to_string(config.path()).unwrap();
    config.rewrite(&text.replace("public.*", "public.f"));
    let daemon = Daemon::start(&config).await;
    assert!(daemon.sigterm().await.success());
    config.rewrite(&text);
    let daemon = Daemon::start(&config).await;
    postgres.sql("INSERT INTO t VALUES (4, 4, 'x')").await;
    receiver.wait("a row of the next life", |receiver| has(receiver, 4)).await;
    assert!(receiver.messages().iter().all(|message| message["record"].get("secret").is_none()));
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_the_gap_ends_only_behind_the_transactions_that_ran_when_the_table_was_put_back() {
    let postgres = Postgres::start();
    postgres.sql(TABLE).await;
    postgres.sql("CREATE TABLE other (id int PRIMARY KEY)").await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let daemon = Daemon::start(&config).await;
    postgres.sql(UNKEYED).await;
    wait_member(&postgres, "t", false).await;
    // Its key comes back, and a lock at once, so that it is not put back before another transaction has written.
    let holder = postgres.client().await;
    let keyed = format!("BEGIN; {KEYED}; COMMIT; BEGIN; LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE");
    holder.batch_execute(&keyed).await.unwrap();
    let writer = postgres.client().await;
    writer.batch_execute("SET application_name = 'a batch'; BEGIN; INSERT INTO t VALUES (77, 7)").await.unwrap();
    holder.batch_execute("COMMIT").await.unwrap();
    wait_member(&postgres, "t", true).await;
    let said = wait_said(&daemon, &["public.t was out of the publication and is back", "a batch"]).await.1;
    assert!(!troubles(&said).contains("were not captured"), "{said}");
    writer.batch_execute("COMMIT").await.unwrap();
    let end = postgres.value("SELECT pg_current_wal_insert_lsn()").await;
    wait_said(&daemon, &["public.t was out of the publication", "were not captured"]).await;
    postgres.sql("INSERT INTO t VALUES (78, 8)").await;
    receiver.wait("a row of after", |receiver| has(receiver, 78)).await;
    assert!(daemon.sigterm().await.success());
    let gaps = gaps(&config, "public.t");
    let [(Some(_), Some(to))] = gaps.as_slice() else { panic!("no gap: {gaps:?}") };
    assert_eq!(postgres.value(&format!("SELECT '{to}'::pg_lsn >= '{end}'::pg_lsn")).await, "t", "{to} {end}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_59_an_autovacuum_makes_way_for_a_table_that_is_taken_out() {
    let postgres = Postgres::with(&[("autovacuum_naptime", "1s"), ("deadlock_timeout", "3s")]);
    let slow = "autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1, autovacuum_vacuum_scale_factor = 0, \
                autovacuum_vacuum_threshold = 1, autovacuum_analyze_threshold = 1000000000";
    postgres.sql(&format!("CREATE TABLE t (id int PRIMARY KEY, n int) WITH ({slow})")).await;
    postgres.sql("INSERT INTO t SELECT n, n FROM generate_series(1, 100000) n").await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let daemon = Daemon::start(&config).await;
    assert!(daemon.sigterm().await.success());
    postgres.sql("UPDATE t SET n = n + 1").await;
    postgres.sql(UNKEYED).await;
    until_within(Duration::from_secs(40), "an autovacuum of the table", || async {
        let running = "SELECT count(*) FROM pg_stat_progress_vacuum WHERE relid = 't'::regclass";
        let running = postgres.admin_value(running).await;
        state(running == "1", running)
    })
    .await;
    let daemon = Daemon::launch(&config);
    until_within(SOON, "the table's own writes to work", || works(&postgres, "UPDATE t SET n = 0 WHERE id = 1")).await;
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_59_tables_that_somebody_has_locked_are_named_with_whom_and_hold_up_no_other() {
    let postgres = Postgres::start();
    let names = ["a", "b", "c", "d", "e", "f"];
    let each = |sql: &str| names.map(|name| sql.replace('@', name)).join("; ");
    postgres.sql(&each("CREATE TABLE @ (id int PRIMARY KEY, n int); INSERT INTO @ VALUES (1, 1)")).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let daemon = Daemon::start(&config).await;
    assert!(daemon.sigterm().await.success());
    postgres.sql(&each("ALTER TABLE @ DROP CONSTRAINT @_pkey")).await;
    let holder = postgres.client().await;
    let lock = "SET application_name = 'migrate'; BEGIN; LOCK TABLE a, b, c, d, e IN SHARE UPDATE EXCLUSIVE MODE";
    holder.batch_execute(lock).await.unwrap();
    let daemon = Daemon::launch(&config);
    wait_writes(&postgres, "f").await;
    let parts = ["public.a is published", "public.e is published", "migrate", "has locked it"];
    assert_eq!(wait_said(&daemon, &parts).await.0, 503);
    holder.batch_execute("COMMIT").await.unwrap();
    for name in names {
        wait_writes(&postgres, name).await;
    }
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_a_schema_that_the_role_may_not_use_hides_no_other_tables_harm() {
    let postgres = Postgres::start();
    postgres.sql(TABLE).await;
    postgres.admin_sql("CREATE SCHEMA b AUTHORIZATION app").await;
    postgres.sql("CREATE TABLE b.x (id int PRIMARY KEY, n int)").await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "tables = [\"public.*\", \"b.*\"]");
    let daemon = Daemon::start(&config).await;
    postgres.sql("ALTER TABLE b.x DROP CONSTRAINT x_pkey").await;
    wait_member(&postgres, "b.x", false).await;
    postgres.admin_sql("DROP SCHEMA b CASCADE; CREATE SCHEMA b").await;
    postgres.sql(UNKEYED).await;
    wait_writes(&postgres, "t").await;
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_54_a_table_is_taken_out_or_named_also_where_the_end_of_the_wal_may_not_be_asked_for() {
    let postgres = Postgres::start();
    postgres.sql(TABLE).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let daemon = Daemon::start(&config).await;
    for function in ["pg_current_wal_lsn()", "pg_current_wal_insert_lsn()"] {
        postgres.admin_sql(&format!("REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")).await;
    }
    postgres.sql(UNKEYED).await;
    wait_writes(&postgres, "t").await;
    postgres.sql(KEYED).await;
    wait_member(&postgres, "t", true).await;
    wait_said(&daemon, &["public.t was out of the publication", "were not captured"]).await;
    // Where no position can be had at all it stays in, and is named.
    let forms =
        "SELECT string_agg(oid::regprocedure::text, ', ') FROM pg_proc WHERE proname = 'pg_logical_emit_message'";
    let emit = postgres.value(forms).await;
    postgres.admin_sql(&format!("REVOKE EXECUTE ON FUNCTION {emit} FROM PUBLIC")).await;
    postgres.sql(UNKEYED).await;
    let (code, body) = wait_said(&daemon, &["its own UPDATE and DELETE fail", "permission denied for function"]).await;
    assert_eq!(code, 503, "{body}");
    assert!(daemon.sigterm().await.success());
    let gaps = gaps(&config, "public.t");
    assert!(matches!(gaps.as_slice(), [(Some(_), Some(_))]), "{gaps:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_it_is_not_ready_while_nobody_knows_whether_writes_fail() {
    let postgres = Postgres::start();
    postgres.sql(TABLE).await;
    let receiver = Receiver::start().await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;
    let admin = postgres.admin_client().await;
    admin.batch_execute("BEGIN; LOCK TABLE pg_publication_rel IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let (code, body) =
        wait_said(&daemon, &["it is not known whether", "own UPDATE and DELETE work", "\"error\""]).await;
    assert_eq!(code, 503, "{body}");
    admin.batch_execute("ROLLBACK").await.unwrap();
    wait_ready(&daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_sources_that_share_a_publication_all_have_the_gap() {
    let postgres = Postgres::start();
    postgres.sql(TABLE).await;
    let receiver = Receiver::start().await;
    let two = format!("[source.two]\nurl = \"{}\"\nslot = \"two\"\npublication = \"{SLOT}\"\n", postgres.url());
    let sinks = ["app", "two"]
        .map(|source| Config::sink(&format!("of_{source}"), &receiver.url(), &format!("source = \"{source}\"\n")));
    let config = Config::new(&(Config::source(&postgres) + &two + &sinks.concat()));
    let daemon = Daemon::start(&config).await;
    postgres.sql(UNKEYED).await;
    wait_writes(&postgres, "t").await;
    postgres.sql("INSERT INTO t VALUES (1, 1)").await;
    until_within(SOON, "both sources to say so", || async {
        let said = troubles(&daemon.ready().await.unwrap().1);
        state(said.matches("public.t lost its replica identity").count() == 2, said)
    })
    .await;
    postgres.sql(KEYED).await;
    wait_member(&postgres, "t", true).await;
    until_within(SOON, "both gaps to have ended", || async {
        let said = troubles(&daemon.ready().await.unwrap().1);
        state(said.matches("were not captured").count() == 2, said)
    })
    .await;
    assert!(daemon.sigterm().await.success());
    assert!(!has(&receiver, 1), "then nothing was missed");
    let gaps = gaps(&config, "public.t");
    assert!(gaps.len() == 2 && gaps.iter().all(|(from, to)| from.is_some() && to.is_some()), "{gaps:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_a_table_that_a_person_takes_out_as_we_say_has_a_gap_all_the_same() {
    // How it goes: seen in between, in one go between two looks, and while walhook is down.
    for how in ["slowly", "at once", "unseen"] {
        let postgres = Postgres::start();
        postgres
            .sql(&format!("{TABLE}; CREATE PUBLICATION {SLOT} FOR TABLE t WITH (publish_via_partition_root = true)"))
            .await;
        make_slot(&postgres).await;
        let receiver = Receiver::start().await;
        let text = Config::source(&postgres) + "create = false\n" + &Config::sink("orders", &receiver.url(), "");
        let config = Config::new(&text);
        let mut daemon = Daemon::start(&config).await;
        postgres.sql(UNKEYED).await;
        let before = postgres.value("SELECT pg_current_wal_insert_lsn()").await;
        assert_eq!(wait_said(&daemon, &["public.t is published", "DROP TABLE ONLY"]).await.0, 503);
        if how == "unseen" {
            assert!(daemon.sigterm().await.success());
            postgres.sql(&format!("ALTER PUBLICATION {SLOT} DROP TABLE ONLY t")).await;
            daemon = Daemon::start(&config).await;
        } else {
            postgres.sql(&format!("ALTER PUBLICATION {SLOT} DROP TABLE ONLY t")).await;
        }
        if how != "at once" {
            let (code, body) = wait_said(&daemon, &["public.t lost its replica identity", "on are not captured"]).await;
            assert_eq!(code, 200, "{how}: {body}");
        }
        postgres.sql("INSERT INTO t VALUES (1, 1)").await;
        postgres.sql(&format!("{KEYED}; ALTER PUBLICATION {SLOT} ADD TABLE t")).await;
        let (code, body) = wait_said(&daemon, &["public.t was out of the publication", "were not captured"]).await;
        assert_eq!(code, 200, "{how}: {body}");
        postgres.sql("INSERT INTO t VALUES (2, 2)").await;
        receiver.wait("a row of after", |receiver| has(receiver, 2)).await;
        assert!(!has(&receiver, 1), "{how}: then nothing was missed");
        assert!(daemon.sigterm().await.success());
        let gaps = gaps(&config, "public.t");
        let [(Some(from), Some(_))] = gaps.as_slice() else { panic!("{how}: no gap: {gaps:?}") };
        let covers = format!("SELECT '{from}'::pg_lsn >= '{before}'::pg_lsn - 100000::numeric");
        assert_eq!(postgres.value(&covers).await, "t", "{how}: a gap that begins long before: {from} {before}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_a_source_whose_slot_is_busy_looks_after_the_tables_too() {
    let postgres = Postgres::start();
    postgres.sql(TABLE).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let daemon = Daemon::start(&config).await;
    assert!(daemon.sigterm().await.success());
    // Another one reads the slot, which changes no publication.
    let other = Config::new(&(Config::reader_source(&postgres) + &Config::sink("orders", &receiver.url(), "")));
    let reader = Daemon::start(&other).await;
    let daemon = Daemon::launch(&config);
    wait_said(&daemon, &["slot"]).await;
    assert_eq!(daemon.ready().await.unwrap().1["sources"]["app"]["state"], "slot_busy");
    postgres.sql(UNKEYED).await;
    wait_writes(&postgres, "t").await;
    for daemon in [&daemon, &reader] {
        wait_said(daemon, &["public.t lost its replica identity", "on are not captured"]).await;
    }
    postgres.sql(KEYED).await;
    drop((reader, daemon));
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_a_store_that_does_not_know_the_database_names_the_harm_and_does_nothing() {
    let postgres = Postgres::start();
    postgres.sql(TABLE).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let daemon = Daemon::start(&config).await;
    assert!(daemon.sigterm().await.success());
    let managed = || Config::new(&(Config::reader_source(&postgres) + &Config::sink("orders", &receiver.url(), "")));
    let (reader, second) =
        (Daemon::start(&managed()).await, Daemon::launch(&Config::one_sink(&postgres, &receiver.url(), "")));
    wait_said(&second, &["slot"]).await;
    postgres.sql(UNKEYED).await;
    let why = "it is not known yet whether this is the database that the store is of";
    assert_eq!(wait_said(&second, &["public.t is published", why]).await.0, 503);
    assert_eq!(members(&postgres).await, ["t"]);
    drop((reader, second));
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_56_a_partitions_own_filter_harms_only_where_the_publication_goes_by_it() {
    let postgres = Postgres::start();
    if postgres.major().await < 15 {
        skipped("row filters need Postgres 15; WALHOOK_PG_BIN chooses another server");
        return;
    }
    let made = "CREATE TABLE root (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
                CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (9); INSERT INTO root VALUES (1, 1)";
    postgres.sql(&format!("{made}; CREATE PUBLICATION {SLOT} FOR TABLE root, leaf WHERE (n > 0) WITH (publish_via_partition_root = true)")).await;
    make_slot(&postgres).await;
    let receiver = Receiver::start().await;
    let lines = "tables = [\"public.root\"]";
    let config = Config::new(&(Config::reader_source(&postgres) + &Config::sink("orders", &receiver.url(), lines)));
    let daemon = Daemon::start(&config).await;
    works(&postgres, "UPDATE root SET n = 2").await.unwrap();
    let (code, body) = daemon.ready().await.unwrap();
    assert!(code == 200 && !troubles(&body).contains("public.leaf"), "{body}");
    postgres.sql(&format!("ALTER PUBLICATION {SLOT} SET (publish_via_partition_root = false)")).await;
    assert!(works(&postgres, "UPDATE root SET n = 3").await.is_err());
    assert_eq!(wait_said(&daemon, &["public.leaf is published", "is filtered in the publication"]).await.0, 503);
}

//! What a tired person would break by pasting it is not printed.

use crate::daemon::{Daemon, text_of, walhook};

use super::rig::{Line, Rig, beginning, gone, line, printed_in};

/// Nothing that takes from others, in whatever is advised.
#[track_caller]
fn harmless(lines: &[Line]) {
    for harm in ["OWNER TO", "pg_drop_replication_slot", "DROP ", "pg_terminate_backend", "SUPERUSER", "BYPASSRLS;"] {
        let found = lines.iter().find(|line| line.mend.contains(harm));
        assert!(found.is_none(), "{harm}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_becomes_a_member_of_a_role_that_is_more_than_an_owner_of_tables() {
    let rig = Rig::start(&[], "").await;
    let roles = "CREATE ROLE guest LOGIN REPLICATION; GRANT CREATE ON DATABASE postgres TO guest;
        CREATE ROLE plain; CREATE ROLE replicator REPLICATION; CREATE ROLE auditor BYPASSRLS; CREATE ROLE manager CREATEROLE;
        CREATE ROLE rds_superuser; CREATE ROLE far IN ROLE plain; GRANT postgres TO plain; CREATE ROLE ours IN ROLE guest";
    rig.postgres.admin_sql(roles).await;
    let owners = ["postgres", "replicator", "auditor", "manager", "rds_superuser", "far", "ours", "pg_monitor"];
    for owner in owners {
        rig.postgres.admin_sql("DROP TABLE IF EXISTS theirs; CREATE TABLE theirs (id int PRIMARY KEY)").await;
        // Reserved roles own nothing by ALTER; a catalogue entry is what a managed service would have made.
        let give = match owner.starts_with("pg_") {
            true => "SET allow_system_table_mods = on; UPDATE pg_class SET relowner = 'pg_monitor'::regrole WHERE relname = 'theirs'".to_owned(),
            false => format!("ALTER TABLE theirs OWNER TO {owner}"),
        };
        rig.postgres.admin_sql(&give).await;
        for tables in ["\"public.theirs\"", "\"public.*\""] {
            let lines = rig.check(&rig.url_of("guest"), "", &Rig::sink(tables, ""));
            harmless(&lines);
            let printed: Vec<_> = lines.iter().flat_map(|line| printed_in(&line.mend)).collect();
            let grants = beginning(&printed, &format!("GRANT \"{owner}\""));
            assert!(grants.is_empty(), "{owner}: {grants:?}");
        }
        let lines = rig.check(&rig.url_of("guest"), "", &Rig::sink("\"public.theirs\"", ""));
        let mend = &line(&lines, "may not make the publication").mend;
        assert!(mend.contains("create = false") && mend.contains("CREATE PUBLICATION"), "{owner}: {mend}");
        assert!(mend.contains(&format!("do not make guest a member of {owner}")), "{mend}");
    }
    // What is printed in their place suffices.
    rig.postgres.admin_sql("ALTER TABLE theirs OWNER TO postgres").await;
    let lines = rig.check(&rig.url_of("guest"), "", &Rig::sink("\"public.theirs\"", ""));
    let printed = printed_in(&line(&lines, "may not make the publication").mend);
    rig.run("postgres", &printed[..1]).await;
    rig.run("guest", &printed[1..]).await;
    let lines = rig.check(&rig.url_of("guest"), "create = false", &Rig::sink("\"public.theirs\"", ""));
    assert!(lines.iter().all(|line| line.level != "fail"), "{lines:#?}");
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_not_the_sources_own_is_left_alone() {
    let rig = Rig::start(&[], "").await;
    rig.postgres.database("other", "").await;
    let sink = Rig::sink("\"public.mine\"", "");
    let elsewhere = format!("{}/other", rig.postgres.admin_url().rsplit_once('/').unwrap().0);
    let make = |plugin: &str| format!("SELECT pg_create_logical_replication_slot('walhook_app', '{plugin}')");
    let slots = [
        (elsewhere.clone(), make("pgoutput"), "belongs to the database other"),
        (rig.postgres.admin_url(), make("test_decoding"), "output plugin test_decoding"),
        (
            rig.postgres.admin_url(),
            "SELECT pg_create_physical_replication_slot('walhook_app')".to_owned(),
            "a physical one",
        ),
    ];
    for (url, make, what) in slots {
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(&make).await.unwrap();
        for source in ["", "create = false"] {
            let lines = rig.check(&rig.postgres.url(), source, &sink);
            harmless(&lines);
            assert!(line(&lines, what).mend.contains("give the source another `slot`"), "{lines:#?}");
        }
        client.batch_execute("SELECT pg_drop_replication_slot('walhook_app')").await.unwrap();
    }
}

/// What `run` prints, which ends at once.
fn told_by_run(rig: &Rig) -> String {
    let run = walhook(&["run", "--config", &rig.config.path().to_string_lossy()]);
    assert_eq!(run.status.code(), Some(69), "{}", text_of(&run));
    text_of(&run)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_may_be_another_readers_is_not_dropped() {
    let rig = Rig::start(&[], "").await;
    let sink = Rig::sink("\"public.mine\"", "[admin]\nlisten = \"127.0.0.1:0\"");
    let make = "SELECT pg_create_logical_replication_slot('debezium', 'pgoutput')";
    rig.client("walhook").await.batch_execute(make).await.unwrap();
    for source in ["slot = \"debezium\"", "slot = \"debezium\"\ncreate = false"] {
        let lines = rig.check(&rig.postgres.url(), source, &sink);
        harmless(&lines);
        let mend = &line(&lines, "the slot debezium exists, but the publication").mend;
        assert!(mend.contains("leave the slot as it is") && mend.contains("Give the source another `slot`"), "{mend}");
        let told = told_by_run(&rig);
        assert!(!told.contains("pg_drop_replication_slot") && told.contains("another reader's"), "{told}");
    }
    // Nor one with a publication that is younger, or may be.
    rig.postgres.admin_sql("CREATE PUBLICATION walhook_app FOR TABLE mine").await;
    let lines = rig.check(&rig.postgres.url(), "slot = \"debezium\"\ncreate = false", &sink);
    harmless(&lines);
    line(&lines, "younger than the slot");
    // Nor one that the server has given up: whose loss that is nobody knows, and `recreate` is for the source's own.
    rig.postgres.admin_sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'").await;
    rig.postgres.admin_sql("SELECT pg_reload_conf()").await;
    let lost = "SELECT wal_status FROM pg_replication_slots";
    while rig.postgres.admin_value(lost).await != "lost" {
        for sql in
            ["SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000))", "SELECT pg_switch_wal()", "CHECKPOINT"]
        {
            rig.postgres.admin_sql(sql).await;
        }
    }
    for source in ["slot = \"debezium\"", "slot = \"debezium\"\non_slot_lost = \"recreate\""] {
        let lines = rig.check(&rig.postgres.url(), source, &sink);
        harmless(&lines);
        assert!(line(&lines, "has given up the slot debezium").mend.contains("leave the slot as it is"), "{lines:#?}");
        let told = told_by_run(&rig);
        assert!(told.contains("leave the slot as it is") && !told.contains("pg_drop"), "{told}");
        assert_eq!(rig.postgres.admin_value("SELECT count(*) FROM pg_replication_slots").await, "1");
    }
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_being_read_is_not_dropped_though_it_is_ours() {
    let rig = Rig::start(&[], "").await;
    rig.postgres.admin_sql("CREATE PUBLICATION walhook_app FOR ALL TABLES").await;
    let make = "SELECT pg_create_logical_replication_slot('walhook_app', 'pgoutput')";
    rig.client("walhook").await.batch_execute(make).await.unwrap();
    let admin = "[admin]\nlisten = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n";
    let sink = Rig::sink("\"public.mine\"", admin);
    rig.check(&rig.postgres.url(), "create = false", &sink);
    let daemon = Daemon::start(&rig.config).await.allow_error("publication");
    daemon.wait_ready().await;
    // Its one row is written anew: from outside that looks like a younger publication.
    rig.postgres.admin_sql("ALTER PUBLICATION walhook_app SET (publish = 'insert, update, delete')").await;
    let lines = rig.check(&rig.postgres.url(), "create = false", &sink);
    harmless(&lines);
    let said = line(&lines, "may be younger than the slot");
    assert!(said.level == "warn" && said.mend.contains("gets on with it"), "{said:?}");
    rig.postgres.admin_sql("DROP PUBLICATION walhook_app").await;
    let lines = rig.check(&rig.postgres.url(), "create = false", &sink);
    harmless(&lines);
    let mend = &line(&lines, "the slot walhook_app exists, but the publication").mend;
    assert!(mend.contains("leave the slot as it is while pid"), "{mend}");
    daemon.kill9();
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_of_somebody_else_is_not_taken_from_them() {
    let rig = Rig::start(&[], "CREATE TABLE later (id int PRIMARY KEY)").await;
    rig.postgres.admin_sql("CREATE PUBLICATION walhook_app FOR TABLE mine").await;
    let lines = rig.check(&rig.postgres.url(), "", &Rig::sink("\"public.mine\", \"public.later\"", ""));
    harmless(&lines);
    let mend = &line(&lines, "may not make the publication").mend;
    rig.run("postgres", &beginning(&printed_in(mend), "ALTER PUBLICATION")).await;
    assert_eq!(rig.postgres.value("SELECT pubowner::regrole FROM pg_publication").await, "postgres");
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_slots_are_no_reason_to_drop_one() {
    let rig = Rig::start(&[("max_replication_slots", "1")], "").await;
    rig.postgres.admin_sql("SELECT pg_create_physical_replication_slot('of_somebody')").await;
    let lines = rig.check(&rig.postgres.url(), "", &Rig::sink("\"public.mine\"", ""));
    harmless(&lines);
    assert!(line(&lines, "all 1 replication slots are in use").mend.contains("drop none before its owner agrees"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_identity_is_advised_that_breaks_the_tables_own_writes() {
    let rig = Rig::start(&[], "CREATE TABLE t (id int PRIMARY KEY, note text, extra text)").await;
    let major = rig.postgres.major().await;
    if major < 15 {
        return;
    }
    let sink = Rig::sink("\"public.t\"", "group_by = [\"note\"]");
    let full = "REPLICA IDENTITY FULL;";
    let lines = rig.check(&rig.postgres.url(), "", &sink);
    assert!(line(&lines, "do not carry group_by note").mend.contains(full));

    // Another reader's publication passes on some columns only: whole old rows would make UPDATE and DELETE fail.
    rig.postgres.sql("CREATE PUBLICATION others FOR TABLE t (id, note)").await;
    let lines = rig.check(&rig.postgres.url(), "", &sink);
    let mend = &line(&lines, "do not carry group_by note").mend;
    assert!(
        printed_in(mend).is_empty() && mend.contains("the publication others passes on only some of its columns"),
        "{mend}"
    );
    rig.postgres.sql("INSERT INTO t VALUES (1, 'a', 'b'); UPDATE t SET note = 'c'").await;
    // So it would have been.
    rig.postgres.sql("ALTER TABLE t REPLICA IDENTITY FULL").await;
    rig.client("app").await.batch_execute("UPDATE t SET note = 'd'").await.expect_err("the server refuses it");
    rig.postgres.sql("ALTER TABLE t REPLICA IDENTITY DEFAULT; DROP PUBLICATION others").await;

    if major >= 18 {
        rig.postgres.sql("ALTER TABLE t ADD COLUMN twice int GENERATED ALWAYS AS (id * 2) VIRTUAL").await;
        let lines = rig.check(&rig.postgres.url(), "", &Rig::sink("\"public.*\"", ""));
        let hints: Vec<_> =
            lines.iter().filter(|line| line.subject == "public.t" && line.mend.contains(full)).collect();
        assert!(hints.is_empty(), "{hints:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_old_rows_are_not_advised_for_a_published_table_whose_writes_they_would_leave_failing() {
    let sql = "CREATE TABLE n (id int NOT NULL, v text, PRIMARY KEY (id) DEFERRABLE); INSERT INTO n VALUES (1, 'a')";
    let rig = Rig::start(&[], sql).await;
    let major = rig.postgres.major().await;
    if major < 15 {
        return;
    }
    rig.postgres
        .sql("CREATE PUBLICATION walhook_app FOR TABLE mine, n; CREATE PUBLICATION other FOR TABLE n (id)")
        .await;
    let sink = Rig::sink("\"public.*\"", "");
    let told = || {
        let lines = rig.check(&rig.postgres.reader_url(), "create = false", &sink);
        line(&lines, "public.n is published and its own").mend.clone()
    };
    let mend = told();
    assert!(!mend.contains("IDENTITY FULL;") && mend.contains("passes on only some of its columns"), "{mend}");
    // So it would have been.
    rig.postgres.sql("ALTER TABLE n REPLICA IDENTITY FULL").await;
    rig.client("app").await.batch_execute("UPDATE n SET v = 'b'").await.expect_err("the server refuses it");
    rig.postgres.sql("ALTER TABLE n REPLICA IDENTITY DEFAULT; DROP PUBLICATION other").await;
    assert!(told().contains("IDENTITY FULL;"), "where nothing is against it, it is advised");
    if major < 18 {
        return;
    }
    rig.postgres.sql("ALTER TABLE n ADD COLUMN w int GENERATED ALWAYS AS (id * 2) VIRTUAL").await;
    assert!(!told().contains("IDENTITY FULL;"), "{}", told());
    rig.postgres.sql("ALTER TABLE n DROP COLUMN w, ADD COLUMN w int GENERATED ALWAYS AS (id * 2) STORED").await;
    assert!(!told().contains("IDENTITY FULL;"), "{}", told());
    // Nor for the publication of a whole schema.
    let schema = "DROP PUBLICATION walhook_app; CREATE PUBLICATION walhook_app FOR TABLE n WITH (publish_generated_columns = stored);
                  CREATE PUBLICATION whole FOR TABLES IN SCHEMA public";
    rig.postgres.admin_sql(schema).await;
    assert!(!told().contains("IDENTITY FULL;"), "{}", told());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_is_not_for_an_owner_who_may_not_make_it() {
    let rig = Rig::start(&[], "").await;
    let sink = Rig::sink("\"public.mine\"", "");
    let mend = || {
        let lines = rig.check(&rig.postgres.reader_url(), "create = false", &sink);
        line(&lines, "does not hold what the sinks need").mend.clone()
    };
    assert!(mend().starts_with("as app, or a superuser:"), "{}", mend());
    // As in most databases: tables are the application's, the database is not.
    rig.postgres.admin_sql("ALTER DATABASE postgres OWNER TO postgres").await;
    let printed = printed_in(&mend());
    let owner = rig.client("app").await;
    owner.batch_execute(&printed[0].sql).await.expect_err("the server refuses it");
    let whom = &printed[0].whom;
    assert!(
        whom.starts_with("as a superuser, or app after GRANT CREATE ON DATABASE \"postgres\" TO \"app\""),
        "{whom}"
    );
    rig.postgres.admin_sql("GRANT CREATE ON DATABASE \"postgres\" TO \"app\"").await;
    owner.batch_execute(&printed[0].sql).await.unwrap();
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_with_a_line_break_is_no_line_of_its_own_and_what_is_printed_names_it() {
    let rig = Rig::start(&[], "CREATE TABLE u (id int PRIMARY KEY)").await;
    rig.postgres.sql("CREATE TABLE \"evil\nDROP TABLE u; --\u{1b}[31m\" (v int)").await;
    let lines = rig.check(&rig.postgres.url(), "", &Rig::sink("\"public.*\"", ""));
    let mend = &line(&lines, "no replica identity").mend;
    assert!(!mend.contains("\nDROP") && !mend.contains('\u{1b}'), "{mend}");
    rig.run("app", &printed_in(mend)).await;
    gone(&rig.check(&rig.postgres.url(), "", &Rig::sink("\"public.*\"", "")), "no replica identity");
    let shown = walhook(&["check", "--config", &rig.config.path().to_string_lossy()]);
    assert!(!text_of(&shown).contains('\u{1b}'), "{}", text_of(&shown));
    let draft = walhook(&["init", "--url", &rig.postgres.url(), "--output", "-"]);
    assert!(
        !text_of(&draft).lines().any(|line| line.trim_start_matches([' ', '#']).starts_with("DROP")),
        "{}",
        text_of(&draft)
    );
    rig.postgres.sql("SELECT * FROM u").await;
}

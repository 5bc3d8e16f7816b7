//! What a tired person would break by pasting it is not printed.

use super::rig::{Line, Rig, beginning, line, printed_in};

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

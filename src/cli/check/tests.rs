//! `check` against a real server.

use std::collections::HashMap;

use crate::demo::cluster::roles::{Role, grants};
use crate::source::advice::tests::sql_of;
use crate::source::slot::tests::Stage;

use super::*;

async fn looked(stage: &Stage, toml: &str) -> Vec<Finding> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = format!("[source.app]\nurl = \"{}\"\n{toml}", stage.cluster.url("postgres"));
    std::fs::write(file.path(), text).unwrap();
    look(file.path(), false).await
}

fn of<'a>(findings: &'a [Finding], level: Level, subject: &str) -> Vec<&'a str> {
    let found = findings.iter().filter(|it| it.level == level && it.subject == subject);
    found.map(|it| it.what.as_str()).collect()
}

const TABLES: &str = "create table orders (id int primary key, note text); create table bare (v int);
                      create table whole (v int); alter table whole replica identity full;";

#[tokio::test]
async fn a_healthy_database_has_no_failures_and_nothing_is_changed() {
    let stage = Stage::new(&[], TABLES).await;
    let receiver = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let toml = format!(
        "[sink.a]\nurl = \"http://{}/\"\ntables = [\"public.*\"]\n[sink.b]\nurl = \"http://127.0.0.1:1/\"\n\
         tables = [\"none.*\", \"public.orders\"]\n",
        receiver.local_addr().unwrap()
    );
    let findings = looked(&stage, &toml).await;
    assert_eq!(exit_code(&findings), 0, "{}", as_text(&findings));
    assert_eq!(of(&findings, Level::Ok, "public.orders")[0], "primary key id; old rows: the primary key only");
    assert!(of(&findings, Level::Warn, "public.whole")[0].contains("one group"));
    assert_eq!(of(&findings, Level::Warn, "sink.b.tables"), ["no table matches none.*"]);
    assert_eq!(of(&findings, Level::Ok, "sink.a"), ["gets insert, update, delete of public.orders, public.whole"]);
    let source = of(&findings, Level::Warn, "source.app").join("\n");
    assert!(source.contains("public.bare") && source.contains("max_slot_wal_keep_size"), "{source}");
    assert_eq!(of(&findings, Level::Warn, "http://127.0.0.1:1").len(), 1);
    let changed = "select (select count(*) from pg_publication) + (select count(*) from pg_replication_slots)";
    assert_eq!(stage.client.query_one(changed, &[]).await.unwrap().get::<_, i64>(0), 0);
    let json: serde_json::Value = serde_json::from_str(&as_json(&findings)).unwrap();
    assert_eq!(json[0]["level"], "ok");
}

#[tokio::test]
async fn it_says_what_sinks_of_truncates_and_messages_get() {
    let stage = Stage::new(&[], TABLES).await;
    let sink = |name: &str, lines: &str| format!("[sink.{name}]\nurl = \"http://127.0.0.1:1/\"\n{lines}\n");
    let toml = sink("outbox", "messages = [\"outbox.*\", \"audit\"]")
        + &sink("both", "messages = [\"*\"]\ntables = [\"public.orders\"]\nactions = [\"insert\", \"truncate\"]")
        + &sink("none", "messages = [\"*\"]\ntables = [\"none.*\"]");
    let findings = looked(&stage, &toml).await;
    assert_eq!(exit_code(&findings), 0, "{}", as_text(&findings));
    assert_eq!(of(&findings, Level::Ok, "sink.outbox"), ["gets logical messages of outbox.*, audit"]);
    let both = "gets insert, truncate of public.orders, and logical messages of *";
    assert_eq!(of(&findings, Level::Ok, "sink.both"), [both]);
    assert!(of(&findings, Level::Warn, "sink.none")[0].starts_with("gets logical messages of * only"));
}

#[tokio::test]
async fn faults_of_the_file_end_with_78_and_of_the_database_with_69() {
    let stage = Stage::new(&[("wal_level", "replica"), ("max_replication_slots", "0")], TABLES).await;
    let sink = "[sink.a]\nurl = \"http://127.0.0.1:1/\"\n";
    let findings = looked(&stage, &format!("{sink}tables = [\"public.orders\"]\n")).await;
    assert_eq!(exit_code(&findings), 69);
    let fails = of(&findings, Level::Fail, "source.app").join("\n");
    assert!(fails.contains("wal_level is replica") && fails.contains("all 0 replication slots"), "{fails}");
    let findings = looked(&stage, &format!("{sink}tables = [\"public.bare\"]\n")).await;
    assert_eq!(exit_code(&findings), 69, "an ALTER TABLE mends it");
    assert!(of(&findings, Level::Fail, "sink.a.tables")[0].contains("public.bare has no primary key"));
    stage.client.batch_execute("create view seen as select 1 as id").await.unwrap();
    let findings = looked(&stage, &format!("{sink}tables = [\"public.seen\"]\n")).await;
    assert_eq!(exit_code(&findings), 69, "a table may take its name back");
    let findings = looked(&stage, &format!("{sink}tables = [\"public.orders\"]\nnonsense = 1\n")).await;
    assert_eq!(exit_code(&findings), 78, "{}", as_text(&findings));

    stage.cluster.stop("fast").unwrap();
    let findings = looked(&stage, &format!("{sink}tables = [\"public.orders\"]\n")).await;
    assert_eq!(exit_code(&findings), 69, "{}", as_text(&findings));
}

/// An enum with a cast to json, which `to_jsonb` uses, and a type of the user's own that is nothing but text.
const TYPES: &str = "create type mood as enum ('ok');
    create function mood_json(mood) returns json language sql immutable as 'select ''{}''::json';
    create cast (mood as json) with function mood_json(mood);
    create type plain as enum ('a');
    create type point3;
    create function point3_in(cstring) returns point3 language internal strict immutable as 'textin';
    create function point3_out(point3) returns cstring language internal strict immutable as 'textout';
    create type point3 (input = point3_in, output = point3_out, like = text);
    create domain moods as mood[]; create type pair as (a int, b point3);
    create table orders (id int primary key, customer int, note text, feeling moods, kind plain, places pair[],
        twice int generated always as (customer * 2) stored);
    alter table orders owner to app";

/// Sinks that see the same table in different ways.
const SINKS: &str = "[sink.a]\nurl = \"http://127.0.0.1:1/\"\ntables = [\"public.orders\"]\n\
    actions = [\"insert\", \"update\", \"delete\", \"truncate\"]\n\
    [sink.b]\nurl = \"http://127.0.0.1:1/\"\ntables = [\"public.orders\"]\nmessage = \"row\"\ngroup_by = \"table\"\n\
    [sink.c]\nurl = \"http://127.0.0.1:1/\"\ntables = [\"public.orders\"]\nactions = [\"insert\"]\ngroup_by = [\"customer\"]\n";

#[tokio::test]
async fn a_table_says_its_key_its_columns_and_what_each_sink_sees_in_lines_that_stand_together() {
    let stage = Stage::new(&[], "").await;
    // Only a superuser may make a base type.
    stage.admin.batch_execute(TYPES).await.unwrap();
    let findings = looked(&stage, SINKS).await;
    assert_eq!(exit_code(&findings), 0, "{}", as_text(&findings));
    let version: String = stage.client.query_one("show server_version_num", &[]).await.unwrap().get(0);
    let mut expected = vec![
        "primary key id; old rows: the primary key only",
        "changes of an update is null unless its key changed; a delete has the old row's columns named above; long values \
         that an update leaves as they are are not sent: note, feeling, places",
        "as Postgres's text, where to_jsonb would use a cast to json: feeling (public.moods)",
        "types that JSON has no form for, as Postgres's text: places (public.pair[])",
        "generated columns are not sent by this server (18 and later do): twice",
        "sink a: insert, update, delete, truncate; in order for each id",
        "sink b: insert, update; in order as a whole; not delete: message = \"row\" has nothing to say of one",
        "sink c: insert; in order for each customer",
    ];
    if version.parse::<u32>().unwrap() >= 180_000 {
        expected.remove(4);
    }
    let of_table: Vec<&Finding> = findings.iter().filter(|it| it.subject == "public.orders").collect();
    assert_eq!(of_table.iter().map(|it| it.what.as_str()).collect::<Vec<_>>(), expected);
    assert_eq!(sql_of(of_table[1].mend.as_deref().unwrap()), {
        "ALTER TABLE \"public\".\"orders\" REPLICA IDENTITY FULL;"
    });
    assert_eq!(of_table[2].level, Level::Warn);

    let text = as_text(&findings);
    assert_eq!(text.matches("public.orders  ").count(), 1, "the subject stands once:\n{text}");
    let json: serde_json::Value = serde_json::from_str(&as_json(&findings)).unwrap();
    let rows = json.as_array().unwrap().iter().filter(|row| row["subject"] == "public.orders").count();
    assert_eq!(rows, expected.len(), "in JSON every line has its subject");

    // With the whole old row there is nothing to miss.
    stage.client.batch_execute("alter table orders replica identity full").await.unwrap();
    let findings = looked(&stage, SINKS).await;
    let lines = of(&findings, Level::Ok, "public.orders").join("\n");
    assert!(lines.contains("whole (REPLICA IDENTITY FULL)") && !lines.contains("long values"), "{lines}");
}

#[tokio::test]
async fn virtual_columns_and_tables_that_cannot_be_fetched_from_are_named() {
    let stage = Stage::new(&[], "create table orders (id int primary key, note text)").await;
    let version: String = stage.client.query_one("show server_version_num", &[]).await.unwrap().get(0);
    let has_virtual = version.parse::<u32>().unwrap() >= 180_000;
    if has_virtual {
        let add = "alter table orders add twice int generated always as (id * 2) virtual";
        stage.client.batch_execute(add).await.unwrap();
    }
    let role =
        "create role guest login replication; grant create on database postgres to guest; alter table orders owner to guest;
                revoke select on orders from guest";
    stage.admin.batch_execute(role).await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let url = stage.cluster.url("postgres").replace("walhook@", "guest@");
    let sink = "[sink.a]\nurl = \"http://127.0.0.1:1/\"\ntables = [\"public.orders\"]\nunchanged_toast = \"fetch\"\n";
    std::fs::write(file.path(), format!("[source.app]\nurl = \"{url}\"\n{sink}")).unwrap();
    let findings = look(file.path(), false).await;
    let warned = of(&findings, Level::Warn, "public.orders");
    let cannot = ["sink a cannot fetch unchanged long values: the role may not read them and the key"];
    assert_eq!(warned, cannot);
    for (sql, expected) in [
        ("grant select (note) on orders to guest", &cannot[..]),
        ("grant select (id) on orders to guest", &[]),
        ("revoke usage on schema public from public", &cannot),
    ] {
        stage.admin.batch_execute(sql).await.unwrap();
        assert_eq!(of(&look(file.path(), false).await, Level::Warn, "public.orders"), expected, "{sql}");
    }
    let lines = of(&findings, Level::Ok, "public.orders").join("\n");
    assert_eq!(lines.contains("virtual generated columns are never sent: twice"), has_virtual, "{lines}");
}

#[tokio::test]
async fn a_column_whose_name_is_no_utf8_leaves_the_others_known() {
    let mut stage = Stage::new(&[], "").await;
    let make = "create database raw template template0 encoding 'SQL_ASCII' locale 'C'";
    stage.admin.batch_execute(make).await.unwrap();
    stage.admin.batch_execute(&grants("raw")).await.unwrap();
    let url = stage.cluster.url("raw");
    let table = "do $$ begin execute format(
        'create table orders (id int primary key, %I int generated always as (id * 2) stored)',
        convert_from('\\x636166e9', 'SQL_ASCII')); end $$";
    let owner = stage.cluster.url_as(Role::Owner, "raw");
    stage.session(&owner).await.batch_execute(table).await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let sink = "[sink.a]\nurl = \"http://127.0.0.1:1/\"\ntables = [\"public.orders\"]\n";
    std::fs::write(file.path(), format!("[source.app]\nurl = \"{url}\"\n{sink}")).unwrap();
    let findings = look(file.path(), false).await;
    assert!(!as_text(&findings).contains("could not be looked at"), "{}", as_text(&findings));
    let version: String = stage.client.query_one("show server_version_num", &[]).await.unwrap().get(0);
    let said =
        as_text(&findings).contains("generated columns are not sent by this server (18 and later do): caf\u{fffd}");
    assert_eq!(said, version.parse::<u32>().unwrap() < 180_000, "{}", as_text(&findings));
}

#[tokio::test]
async fn the_server_says_its_limits_and_what_is_free_of_them() {
    let settings = [("max_slot_wal_keep_size", "1GB"), ("max_replication_slots", "7"), ("max_wal_senders", "6")];
    let stage = Stage::new(&settings, TABLES).await;
    let taken = "select pg_create_physical_replication_slot('other')";
    stage.own.batch_execute(taken).await.unwrap();
    let findings = looked(&stage, "[sink.a]\nurl = \"http://127.0.0.1:1/\"\ntables = [\"public.orders\"]\n").await;
    let lines = of(&findings, Level::Ok, "source.app").join("\n");
    let limits = "slots: 6 of 7 free; WAL senders: 6 of 6 free; max_slot_wal_keep_size 1GB";
    assert!(lines.contains(limits), "{lines}");
    assert!(lines.contains("wal_level logical") && !lines.contains("effective_wal_level"), "{lines}");
    let version: String = stage.client.query_one("show server_version_num", &[]).await.unwrap().get(0);
    let has_timeout = version.parse::<u32>().unwrap() >= 180_000;
    assert_eq!(lines.contains("idle_replication_slot_timeout 0"), has_timeout, "{lines}");
}

#[tokio::test]
async fn pitfall_46_a_managed_service_is_known_by_its_role_and_named_with_its_own_grant() {
    let stage = Stage::new(&[], TABLES).await;
    stage.admin.batch_execute("create role rds_replication").await.unwrap();
    let url = stage.guest("").await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let sink = "[sink.a]\nurl = \"http://127.0.0.1:1/\"\ntables = [\"public.orders\"]\n";
    std::fs::write(file.path(), format!("[source.app]\nurl = \"{url}\"\n{sink}")).unwrap();
    let findings = look(file.path(), false).await;
    let mends: Vec<&str> = findings.iter().filter_map(|it| it.mend.as_deref()).collect();
    assert!(mends.contains(&"as a member of rds_superuser: GRANT rds_replication TO \"guest\";"), "{mends:?}");
    let of_publication = findings.iter().find(|it| it.level == Level::Fail && it.subject == "source.app.publication");
    let grants = of_publication.and_then(|it| it.mend.as_deref()).unwrap();
    for grant in ["GRANT CREATE ON DATABASE \"postgres\" TO \"guest\";", "GRANT \"app\" TO \"guest\""] {
        assert!(grants.contains(grant), "{grant} is not in\n{grants}");
    }
    stage.admin.batch_execute("grant rds_replication to guest").await.unwrap();
    let findings = look(file.path(), false).await;
    let lines = of(&findings, Level::Ok, "source.app").join("\n");
    assert!(lines.contains("the role may use replication slots"), "{lines}");
}

#[tokio::test]
async fn pitfall_55_it_says_which_tables_are_one_group_because_equal_values_have_different_texts() {
    let stage = Stage::new(&[], "").await;
    stage.admin.batch_execute("create extension citext with schema public").await.unwrap();
    let tables = "create collation nd (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        create table people (email citext primary key, name text);
        create table places (tenant int, name text collate nd, primary key (tenant, name));
        create table prices (amount numeric primary key, doc jsonb);
        create table docs (id int primary key, doc jsonb); alter table docs replica identity full;";
    stage.client.batch_execute(tables).await.unwrap();
    let toml = "[sink.a]\nurl = \"http://127.0.0.1:1/\"\ntables = [\"public.*\"]\n\
                [sink.a.table.\"public.docs\"]\ngroup_by = [\"doc\"]\n\
                [sink.b]\nurl = \"http://127.0.0.1:1/\"\ntables = [\"public.people\"]\ngroup_by = \"table\"\n";
    let findings = looked(&stage, toml).await;
    assert_eq!(exit_code(&findings), 0, "{}", as_text(&findings));
    let one_group = |subject: &str| {
        let of_subject = findings.iter().filter(|it| it.level == Level::Warn && it.subject == subject);
        of_subject.map(|it| (it.what.clone(), it.mend.clone().unwrap())).collect::<Vec<_>>()
    };
    let of_people = one_group("public.people");
    assert_eq!(of_people.len(), 1, "nothing is lost for the sink that wants it so");
    assert!(
        of_people[0].0.starts_with("sink a: equal values of email (public.citext) may have different texts"),
        "{of_people:?}"
    );
    assert!(of_people[0].1.contains("REPLICA IDENTITY FULL"), "{of_people:?}");
    let of_places = one_group("public.places");
    assert!(of_places[0].0.contains("name (text, its collation is not deterministic)"), "{of_places:?}");
    assert!(of_places[0].1.ends_with("[sink.a.table.\"public.places\"] group_by = [\"tenant\"]"), "{of_places:?}");
    let of_docs = one_group("public.docs");
    assert!(of_docs[0].0.contains("equal values of doc (jsonb)"), "{of_docs:?}");
    assert!(of_docs[0].1.ends_with("group_by = [\"id\"]"), "{of_docs:?}");
    assert_eq!(one_group("public.prices"), []);
    assert!(
        of(&findings, Level::Ok, "public.people")
            .join("\n")
            .contains("sink a: insert, update, delete; in order as a whole")
    );
    assert!(of(&findings, Level::Ok, "public.prices").join("\n").contains("in order for each amount"));
}

/// Which tables are one group, each with the way out.
fn ways_out(findings: &[Finding]) -> HashMap<&str, &str> {
    let warned = findings.iter().filter(|it| it.level == Level::Warn && it.what.contains("are one group"));
    warned.map(|it| (it.subject.as_str(), it.mend.as_deref().unwrap())).collect()
}

#[tokio::test]
async fn pitfall_55_the_way_out_is_a_part_of_the_key_or_says_what_it_costs_and_can_be_pasted() {
    let stage = Stage::new(&[], "").await;
    stage.admin.batch_execute("create extension citext with schema public").await.unwrap();
    let tables = r#"create table "we""ird" ("c""o" int, k citext, primary key ("c""o", k));
        create table flags (active bool, k citext primary key); alter table flags replica identity full;
        create table notes (note text, k citext primary key); alter table notes replica identity full;
        create table lowered (k citext primary key, g text generated always as (lower(k::text)) stored);
        alter table lowered replica identity full;
        create table several (a int, k citext, b numeric, note text, primary key (k, a, b));"#;
    stage.client.batch_execute(tables).await.unwrap();
    let sink = "[sink.a]\nurl = \"http://127.0.0.1:1/\"\ntables = [\"public.*\"]\n";
    let findings = looked(&stage, sink).await;
    assert_eq!(exit_code(&findings), 0, "{}", as_text(&findings));
    let ways = ways_out(&findings);
    for (table, end) in [
        ("public.we\"ird", r#": [sink.a.table."public.\"we\"\"ird\""] group_by = ["c\"o"]"#),
        ("public.several", r#": [sink.a.table."public.several"] group_by = ["a", "b"]"#),
    ] {
        assert!(ways[table].ends_with(end) && ways[table].contains("when nothing waits"), "{}", ways[table]);
    }
    for table in ["public.flags", "public.notes", "public.lowered"] {
        let way = ways[table];
        assert!(way.starts_with("if it is right so: ") && way.ends_with("such changes overtake each other"), "{way}");
        for column in ["active", "\"note\"", "\"g\""] {
            assert!(!way.contains(column), "{way}");
        }
    }
}

#[tokio::test]
async fn pitfall_55_a_column_that_is_not_sent_is_no_group() {
    let stage = Stage::new(&[], "").await;
    let table = "create table t (id int primary key, g int generated always as (id % 2) stored);
        alter table t replica identity full";
    stage.client.batch_execute(table).await.unwrap();
    let sink = "[sink.a]\nurl = \"http://127.0.0.1:1/\"\ntables = [\"public.t\"]\ngroup_by = [\"g\"]\n";
    let findings = looked(&stage, sink).await;
    let version: String = stage.client.query_one("show server_version_num", &[]).await.unwrap().get(0);
    if version.parse::<u32>().unwrap() < 180_000 {
        let why = "public.t cannot be grouped by g: generated columns are not sent by this server (18 and later do)";
        assert_eq!((exit_code(&findings), of(&findings, Level::Fail, "sink.a.group_by")), (69, vec![why]));
        return;
    }
    assert_eq!(exit_code(&findings), 0, "{}", as_text(&findings));
    let computed = "alter table t replica identity default; alter table t drop g;
        alter table t add g int generated always as (id % 2) virtual";
    stage.client.batch_execute(computed).await.unwrap();
    let findings = looked(&stage, &sink.replace("\ngroup_by", "\nactions = [\"insert\"]\ngroup_by")).await;
    let why = "public.t cannot be grouped by g: virtual generated columns are never sent";
    assert_eq!(of(&findings, Level::Fail, "sink.a.group_by"), [why]);
}

#[tokio::test]
async fn pitfall_54_what_is_not_seen_of_the_columns_does_not_hide_that_a_table_is_one_group() {
    let stage = Stage::new(&[], "").await;
    stage.admin.batch_execute("create extension citext with schema public").await.unwrap();
    stage.client.batch_execute("create table people (email citext primary key)").await.unwrap();
    let revoke = "revoke execute on function format_type(oid, int) from public";
    stage.admin.batch_execute(revoke).await.unwrap();
    let sink = "[sink.a]\nurl = \"http://127.0.0.1:1/\"\ntables = [\"public.people\"]\n";
    let findings = looked(&stage, sink).await;
    assert_eq!(exit_code(&findings), 0, "{}", as_text(&findings));
    assert!(ways_out(&findings).contains_key("public.people"), "{}", as_text(&findings));
    let lines = of(&findings, Level::Ok, "public.people").join("\n");
    assert!(lines.contains("in order as a whole"), "{lines}");
    stage.admin.batch_execute("revoke select on pg_type from public").await.unwrap();
    let findings = looked(&stage, sink).await;
    assert_eq!(exit_code(&findings), 69, "{}", as_text(&findings));
    let lines = of(&findings, Level::Ok, "public.people").join("\n");
    assert!(lines.contains("in order for each email, if") && lines.contains("not seen"), "{lines}");
}

#[tokio::test]
async fn limits_of_connections_that_leave_no_room_are_failures() {
    let stage = Stage::new(&[], TABLES).await;
    let toml = "[sink.a]\nurl = \"http://127.0.0.1:1/\"\ntables = [\"public.orders\"]\n";
    let fails = async || of(&looked(&stage, toml).await, Level::Fail, "source.app").join("\n");
    for (set, what, reset) in [
        (
            "alter role walhook connection limit 3",
            "the role's CONNECTION LIMIT",
            "alter role walhook connection limit -1",
        ),
        (
            "alter database postgres connection limit 5",
            "the database's CONNECTION LIMIT",
            "alter database postgres connection limit -1",
        ),
    ] {
        assert_eq!(fails().await, "");
        stage.admin.batch_execute(set).await.unwrap();
        let said = fails().await;
        assert!(said.contains(what) && said.contains("leaves room for"), "{said}");
        stage.admin.batch_execute(reset).await.unwrap();
    }
    stage.admin.batch_execute("alter role walhook connection limit 50").await.unwrap();
    assert_eq!(fails().await, "");
}

#[tokio::test]
async fn of_a_port_without_tls_only_what_was_seen_is_said() {
    use tokio::io::AsyncWriteExt as _;
    let open = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (speaks, closes) = (
        tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap(),
        tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap(),
    );
    let address = |listener: &tokio::net::TcpListener| format!("http://{}", listener.local_addr().unwrap());
    let (at_open, at_speaks, at_closes) = (address(&open), address(&speaks), address(&closes));
    let mut served = JoinSet::new();
    served.spawn(async move {
        let (mut stream, _) = speaks.accept().await.unwrap();
        stream.write_all(b"220 mail.example ESMTP").await.unwrap();
        std::future::pending::<()>().await;
    });
    served.spawn(async move {
        drop(closes.accept().await.unwrap());
        std::future::pending::<()>().await;
    });
    let sinks: String = [("a", &at_open), ("b", &at_speaks), ("c", &at_closes)]
        .map(|(name, url)| format!("[sink.{name}]\nurl = \"{url}/\"\ntables = [\"public.orders\"]\n"))
        .concat();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("[source.app]\nurl = \"postgres://u@127.0.0.1:1/x\"\n{sinks}")).unwrap();
    let findings = look(file.path(), false).await;
    assert!(
        of(&findings, Level::Ok, &at_open)[0].contains("whether HTTP is spoken there only a request shows"),
        "{findings:?}"
    );
    assert!(of(&findings, Level::Warn, &at_speaks)[0].contains("speaks first"), "{findings:?}");
    assert!(of(&findings, Level::Warn, &at_closes)[0].contains("closes them"), "{findings:?}");
}

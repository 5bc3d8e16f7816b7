//! `check` against a real server.

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
    assert!(
        of(&findings, Level::Ok, "public.orders")[0].contains("primary key id; old rows: the primary key only; long")
    );
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
async fn faults_of_the_configuration_end_with_78_and_of_the_database_with_69() {
    let stage = Stage::new(&[("wal_level", "replica"), ("max_replication_slots", "0")], TABLES).await;
    let sink = "[sink.a]\nurl = \"http://127.0.0.1:1/\"\n";
    let findings = looked(&stage, &format!("{sink}tables = [\"public.orders\"]\n")).await;
    assert_eq!(exit_code(&findings), 69);
    let fails = of(&findings, Level::Fail, "source.app").join("\n");
    assert!(fails.contains("wal_level is replica") && fails.contains("all 0 replication slots"), "{fails}");
    let findings = looked(&stage, &format!("{sink}tables = [\"public.bare\"]\n")).await;
    assert_eq!(exit_code(&findings), 78);
    assert!(of(&findings, Level::Fail, "sink.a.tables")[0].contains("public.bare has no primary key"));
    let findings = looked(&stage, &format!("{sink}tables = [\"public.orders\"]\nnonsense = 1\n")).await;
    assert_eq!(exit_code(&findings), 78, "{}", as_text(&findings));

    stage.cluster.stop("fast").unwrap();
    let findings = looked(&stage, &format!("{sink}tables = [\"public.orders\"]\n")).await;
    assert_eq!(exit_code(&findings), 69, "{}", as_text(&findings));
}

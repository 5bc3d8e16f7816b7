//! Advice about tables, roles, publications and slots of one database.

use crate::daemon::{text_of, walhook};

use super::rig::{Rig, beginning, gets, gone, line, printed_in};

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_an_identity_gets_one() {
    let rig = Rig::start(&[], "CREATE TABLE \"Bare \"\"one\"\"\" (v int); CREATE TABLE keyless (v int)").await;
    let sink = Rig::sink("\"public.*\"", "");
    let lines = rig.check(&rig.postgres.url(), "", &sink);
    for name in ["keyless", "Bare"] {
        let said =
            lines.iter().find(|line| line.what.contains("no replica identity") && line.what.contains(name)).unwrap();
        rig.run("app", &printed_in(&said.mend)).await;
    }
    let lines = rig.check(&rig.postgres.url(), "", &sink);
    gone(&lines, "no replica identity");
    gets(&lines, &["public.Bare", "public.keyless", "public.mine"]);
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_old_rows_lack_comes_back() {
    let sql = "CREATE TABLE swapped (id int PRIMARY KEY, other int NOT NULL UNIQUE);
               ALTER TABLE swapped REPLICA IDENTITY USING INDEX swapped_other_key";
    let rig = Rig::start(&[], sql).await;
    let sink = Rig::sink("\"public.swapped\", \"public.mine\"", "");
    let lines = rig.check(&rig.postgres.url(), "", &sink);
    rig.run("app", &printed_in(&line(&lines, "do not carry its primary key's id").mend)).await;
    let lines = rig.check(&rig.postgres.url(), "", &sink);
    gone(&lines, "do not carry");
    gets(&lines, &["public.swapped", "public.mine"]);
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlogged_table_is_logged() {
    let rig = Rig::start(&[], "CREATE UNLOGGED TABLE fast (id int PRIMARY KEY)").await;
    let sink = Rig::sink("\"public.*\"", "");
    let lines = rig.check(&rig.postgres.url(), "", &sink);
    rig.run("app", &printed_in(&line(&lines, "public.fast is unlogged").mend)).await;
    let lines = rig.check(&rig.postgres.url(), "", &sink);
    gone(&lines, "is unlogged");
    gets(&lines, &["public.fast", "public.mine"]);
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_owner_knows_is_refused_when_it_is_pasted_as_it_is() {
    let sql = "CREATE TABLE parts (id int) PARTITION BY RANGE (id);
               CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (9);
               ALTER TABLE parts_1 REPLICA IDENTITY FULL; ALTER TABLE parts REPLICA IDENTITY FULL";
    let rig = Rig::start(&[], sql).await;
    let source = if rig.postgres.major().await >= 17 { "failover = true" } else { "" };
    let lines = rig.check(&rig.postgres.url(), source, &Rig::sink("\"public.*\"", ""));
    let mut pasted = vec![("app", line(&lines, "partitions made from now on").mend.clone())];
    pasted.push(("postgres", line(&lines, "max_slot_wal_keep_size is -1").mend.clone()));
    if !source.is_empty() {
        pasted.push(("postgres", line(&lines, "synchronized_standby_slots is empty").mend.clone()));
    }
    for (role, mend) in pasted {
        let printed = printed_in(&mend);
        let first = printed.first().unwrap_or_else(|| panic!("{mend}"));
        assert!(first.sql.contains('…'), "{first:?}");
        rig.client(role).await.batch_execute(&first.sql).await.expect_err(&first.sql);
    }
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_lacks_everything_gets_it() {
    let rig =
        Rig::start(&[], "CREATE SCHEMA \"My Shop\"; CREATE TABLE \"My Shop\".\"a\"\"b\" (id int PRIMARY KEY)").await;
    rig.postgres
        .admin_sql("CREATE ROLE \"Ha \"\"l\"\" o\" LOGIN; CREATE ROLE shop; CREATE TABLE theirs (id int PRIMARY KEY)")
        .await;
    rig.postgres.admin_sql("ALTER TABLE theirs OWNER TO shop").await;
    let url = rig.url_of("Ha%20%22l%22%20o");
    let sink = Rig::sink("\"public.mine\", \"public.theirs\", '\"My Shop\".*'", "");
    let lines = rig.check(&url, "", &sink);
    rig.run("postgres", &printed_in(&line(&lines, "may not use replication slots").mend)).await;
    let lines = rig.check(&url, "", &sink);
    let publication = &line(&lines, "may not make the publication").mend;
    assert!(!publication.contains("OWNER TO"), "{publication}");
    let printed = printed_in(publication);
    rig.run("postgres", &beginning(&printed, "GRANT CREATE ON DATABASE")).await;
    let joined = beginning(&printed, "GRANT");
    assert_eq!(joined.len(), 3, "the database, app and shop: {joined:?}");
    rig.run("postgres", &joined).await;
    let lines = rig.check(&url, "", &sink);
    assert!(lines.iter().all(|line| line.level != "fail"), "{lines:#?}");
    // On its own feet: what it was granted suffices to make the publication.
    let make = &line(&lines, "walhook_app does not exist").what;
    assert!(make.contains("walhook makes it"), "{make}");
    rig.app_still_works().await;
    let owners = "SELECT string_agg(DISTINCT tableowner, ', ') FROM pg_tables WHERE tablename IN ('mine', 'theirs')";
    assert_eq!(rig.postgres.value(owners).await, "app, shop", "no table changed hands");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_inherits_nothing_does_after_it() {
    let rig = Rig::start(&[], "").await;
    rig.postgres.admin_sql("CREATE ROLE guest LOGIN REPLICATION NOINHERIT; GRANT app TO guest").await;
    rig.postgres.admin_sql("GRANT CREATE ON DATABASE postgres TO guest").await;
    let sink = Rig::sink("\"public.mine\"", "");
    let lines = rig.check(&rig.url_of("guest"), "", &sink);
    let printed = printed_in(&line(&lines, "may not make the publication").mend);
    let old = rig.postgres.major().await < 16;
    assert_eq!(beginning(&printed, "ALTER ROLE").len(), usize::from(old), "{printed:?}");
    let grants: Vec<_> =
        printed.iter().filter(|it| !it.sql.starts_with("CREATE") && !it.sql.starts_with("SELECT")).cloned().collect();
    rig.run("postgres", &grants).await;
    let lines = rig.check(&rig.url_of("guest"), "", &sink);
    assert!(lines.iter().all(|line| line.level != "fail"), "{lines:#?}");
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_hand_the_publication_comes_first_and_then_the_slot() {
    let rig = Rig::start(&[], "CREATE TABLE later (id int PRIMARY KEY)").await;
    let url = rig.postgres.reader_url();
    let lines = rig.check(&url, "create = false", &Rig::sink("\"public.mine\"", ""));
    assert!(line(&lines, "the slot walhook_app does not exist").mend.starts_with("once the publication is there"));
    let printed = printed_in(&line(&lines, "does not hold what the sinks need").mend);
    let order: Vec<&str> = printed.iter().map(|it| it.sql.split(' ').next().unwrap()).collect();
    assert_eq!(order, ["CREATE", "SELECT"], "{printed:?}");
    rig.run("app", &printed[..1]).await;
    rig.run("walhook_reader", &printed[1..]).await;
    let lines = rig.check(&url, "create = false", &Rig::sink("\"public.mine\"", ""));
    assert!(lines.iter().all(|line| line.level != "fail"), "{lines:#?}");

    let wider = Rig::sink("\"public.mine\", \"public.later\"", "");
    let lines = rig.check(&url, "create = false", &wider);
    rig.run("app", &printed_in(&line(&lines, "does not hold what the sinks need").mend)).await;
    let lines = rig.check(&url, "create = false", &wider);
    gone(&lines, "does not hold");
    gets(&lines, &["public.mine", "public.later"]);
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_without_its_publication_is_dropped_last() {
    let rig = Rig::start(&[], "").await;
    let sink = Rig::sink("\"public.mine\"", "");
    let reader = rig.client("walhook").await;
    super::age::run_once(&rig, &sink).await;
    let sink = sink + "[admin]\nlisten = \"127.0.0.1:0\"\n";
    rig.postgres.admin_sql("DROP PUBLICATION walhook_app").await;
    let lines = rig.check(&rig.postgres.url(), "", &sink);
    let mend = &line(&lines, "the slot walhook_app exists, but the publication").mend;
    let (before, _) = mend.split_once("SELECT pg_drop_replication_slot").unwrap();
    for first in ["misspelt", "nothing is lost", "stop walhook", "walhook state accept-gap app"] {
        assert!(before.contains(first), "{first} should be said before the drop: {mend}");
    }
    let printed = printed_in(mend);
    // `run` says the same, for the store knows the slot.
    let run = walhook(&["run", "--config", &rig.config.path().to_string_lossy()]);
    assert!(text_of(&run).contains(&printed[0].sql), "{}", text_of(&run));
    let accept = walhook(&["state", "accept-gap", "app", "--config", &rig.config.path().to_string_lossy()]);
    assert!(accept.status.success(), "{}", text_of(&accept));
    reader.batch_execute(&printed[0].sql).await.unwrap();
    let lines = rig.check(&rig.postgres.url(), "", &sink);
    assert!(lines.iter().all(|line| line.level != "fail"), "{lines:#?}");
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_read_is_granted_it() {
    let rig = Rig::start(&[], "CREATE SCHEMA closed; CREATE TABLE closed.t (id int PRIMARY KEY, v text)").await;
    let sink = Rig::sink("\"closed.t\"", "unchanged_toast = \"fetch\"");
    let lines = rig.check(&rig.postgres.reader_url(), "create = false", &sink);
    let printed = printed_in(&line(&lines, "cannot fetch unchanged long values").mend);
    assert_eq!(printed.len(), 2, "{printed:?}");
    let owner = rig.client("app").await;
    for printed in &printed {
        assert!(printed.sql.ends_with("TO \"walhook_reader\";"), "{printed:?}");
        owner.batch_execute(&printed.sql).await.unwrap();
    }
    gone(&rig.check(&rig.postgres.reader_url(), "create = false", &sink), "cannot fetch");

    // Row level security hides rows from the reader, whatever it may select.
    owner.batch_execute("ALTER TABLE closed.t ENABLE ROW LEVEL SECURITY").await.unwrap();
    let lines = rig.check(&rig.postgres.reader_url(), "create = false", &sink);
    let mend = &line(&lines, "row level security").mend;
    assert!(!mend.contains("BYPASSRLS") && !mend.contains("OWNER TO"), "{mend}");
    rig.client("postgres").await.batch_execute(&printed_in(mend)[0].sql).await.unwrap();
    gone(&rig.check(&rig.postgres.reader_url(), "create = false", &sink), "cannot fetch");
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_table_without_an_identity_leaves_the_publication() {
    let sql =
        "CREATE TABLE log (v int); INSERT INTO log VALUES (1); CREATE PUBLICATION walhook_app FOR TABLE mine, log";
    let rig = Rig::start(&[], sql).await;
    let sink = Rig::sink("\"public.mine\"", "");
    let lines = rig.check(&rig.postgres.reader_url(), "create = false", &sink);
    let mend = &line(&lines, "public.log is published and its own UPDATE and DELETE fail").mend;
    let printed = beginning(&printed_in(mend), "ALTER PUBLICATION");
    assert!(printed[0].whom.contains("the owner of the publication"), "{printed:?}");
    let owner = rig.client("app").await;
    owner.batch_execute("UPDATE log SET v = 2").await.expect_err("it fails while the table is published");
    owner.batch_execute(&printed[0].sql).await.unwrap();
    owner.batch_execute("UPDATE log SET v = 2").await.unwrap();
    gone(&rig.check(&rig.postgres.reader_url(), "create = false", &sink), "public.log is published");
    rig.app_still_works().await;
}

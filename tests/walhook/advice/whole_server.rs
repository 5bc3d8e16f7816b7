//! Advice about settings, which change the whole server, and about other sessions.

use super::rig::{Rig, gone, line, printed_in};
use crate::daemon::{Daemon, troubles};
use crate::postgres::{state, until};

#[tokio::test(flavor = "multi_thread")]
async fn the_level_of_the_wal_is_raised() {
    let rig = Rig::start(&[("wal_level", "replica")], "").await;
    let sink = Rig::sink("\"public.mine\"", "");
    if rig.postgres.major().await >= 19 {
        return;
    }
    let mend = line(&rig.check(&rig.postgres.url(), "", &sink), "wal_level is replica").mend.clone();
    assert!(mend.contains("restart"), "{mend}");
    rig.run("postgres", &printed_in(&mend)).await;
    tokio::task::block_in_place(|| {
        rig.postgres.cluster.stop("fast").unwrap();
        rig.postgres.cluster.resume().unwrap();
    });
    gone(&rig.check(&rig.postgres.url(), "", &sink), "wal_level is replica");
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_is_set_for_walhook_alone() {
    let rig = Rig::start(&[("wal_sender_timeout", "0")], "").await;
    let sink = Rig::sink("\"public.mine\"", "");
    let mend = line(&rig.check(&rig.postgres.url(), "", &sink), "wal_sender_timeout is 0").mend.clone();
    rig.run("walhook", &printed_in(&mend)).await;
    gone(&rig.check(&rig.postgres.url(), "", &sink), "wal_sender_timeout is 0");
    assert_eq!(rig.postgres.admin_value("SHOW wal_sender_timeout").await, "0", "standbys keep theirs");
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_rds_the_role_is_granted() {
    let rig = Rig::start(&[], "").await;
    // As there: the master user may grant it.
    let roles = "CREATE ROLE rds_superuser; CREATE ROLE rds_replication; CREATE ROLE master LOGIN CREATEROLE IN ROLE rds_superuser;
                 GRANT rds_replication TO rds_superuser WITH ADMIN OPTION; CREATE ROLE guest LOGIN IN ROLE app";
    rig.postgres.admin_sql(roles).await;
    let sink = Rig::sink("\"public.mine\"", "");
    let mend = line(&rig.check(&rig.url_of("guest"), "", &sink), "may not use replication slots").mend.clone();
    let printed = printed_in(&mend);
    assert!(printed[0].whom.contains("rds_superuser"), "{printed:?}");
    rig.client("master").await.batch_execute(&printed[0].sql).await.unwrap();
    gone(&rig.check(&rig.url_of("guest"), "", &sink), "may not use replication slots");
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_output_plugins_gets_ours() {
    let rig = Rig::start(&[], "").await;
    let has = "SELECT count(*) FROM pg_settings WHERE name = 'output_plugin_libraries'";
    if rig.postgres.admin_value(has).await == "0" {
        return;
    }
    rig.postgres.admin_sql("ALTER SYSTEM SET output_plugin_libraries = 'test_decoding', 'my plugin'").await;
    rig.postgres.admin_sql("GRANT pg_read_all_settings TO walhook").await;
    rig.postgres.admin_sql("SELECT pg_reload_conf()").await;
    let sink = Rig::sink("\"public.mine\"", "");
    let told = || async {
        let lines = rig.check(&rig.postgres.url(), "", &sink);
        let said =
            lines.iter().find(|line| line.what.contains("does not allow pgoutput")).map(|line| line.mend.clone());
        said.ok_or(lines)
    };
    let mend = until("the list to be in effect", told).await;
    rig.run("postgres", &printed_in(&mend)).await;
    until("the new list to be in effect", || async {
        let lines = rig.check(&rig.postgres.url(), "", &sink);
        state(lines.iter().all(|line| line.level != "fail"), lines)
    })
    .await;
    let list = rig.postgres.admin_value("SHOW output_plugin_libraries").await;
    assert!(list.contains("test_decoding") && list.contains("my plugin"), "what others need stays: {list}");
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn standbys_keep_copies_where_walhook_may_not_say_so() {
    let rig = Rig::start(&[], "CREATE PUBLICATION walhook_app FOR TABLE mine").await;
    let (sink, url) = (Rig::sink("\"public.mine\"", ""), rig.postgres.reader_url());
    if rig.postgres.major().await < 17 {
        let lines = rig.check(&url, "create = false\nfailover = true", &sink);
        assert!(line(&lines, "needs Postgres 17").mend.contains("failover = false"));
        return;
    }
    let make = "SELECT pg_create_logical_replication_slot('walhook_app', 'pgoutput')";
    rig.client("walhook_reader").await.batch_execute(make).await.unwrap();
    let lines = rig.check(&url, "create = false\nfailover = true", &sink);
    let printed = printed_in(&line(&lines, "standbys keep no copy").mend);
    // Some servers come without it; any version of it will do.
    let own = walhook::demo::cluster::find_binaries().unwrap().join("psql");
    let psql = if own.exists() { own } else { "psql".into() };
    let command = std::process::Command::new(psql)
        .args(["-X", "-d", &format!("{url}?replication=database"), "-c", &printed[0].sql])
        .output();
    let Ok(command) = command else {
        println!("skipped: there is no psql, so the statement was not run");
        return;
    };
    assert!(command.status.success(), "{}", String::from_utf8_lossy(&command.stderr));
    gone(&rig.check(&url, "create = false\nfailover = true", &sink), "standbys keep no copy");
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_and_logging_change_nothing() {
    let rig = Rig::start(&[("max_prepared_transactions", "5")], "").await;
    let old = rig.client("app").await;
    old.batch_execute("BEGIN; INSERT INTO mine VALUES (7, 'seven'); PREPARE TRANSACTION 'it''s'").await.unwrap();
    old.batch_execute("BEGIN; INSERT INTO mine VALUES (8, 'eight')").await.unwrap();
    let url = rig.postgres.url();
    rig.check(
        &url,
        "",
        &(Rig::sink("\"public.mine\"", "") + "[admin]\nlisten = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n"),
    );
    let daemon = Daemon::launch(&rig.config);
    let mut seen = std::collections::BTreeMap::new();
    // It waits for one after the other, in an order of the server's.
    for _ in 0..2 {
        let advice = until("what to look at", || async {
            let ready = daemon.ready().await;
            let all = ready.as_ref().map(|(_, body)| body["troubles"].clone()).unwrap_or_default();
            let advice = all.as_array().into_iter().flatten().filter_map(|it| it["advice"].as_str());
            let new =
                |it: &String| printed_in(it).iter().any(|one| it.contains("FROM pg_") && !seen.contains_key(&one.sql));
            advice.map(str::to_owned).find(new).ok_or(ready)
        })
        .await;
        for harm in ["pg_terminate_backend", "pg_cancel_backend", "ROLLBACK"] {
            assert!(!advice.contains(harm), "{advice}");
        }
        for printed in printed_in(&advice) {
            let rows = rig.postgres.admin_rows(&printed.sql).await;
            assert!(!rows.is_empty(), "{printed:?}");
            seen.insert(printed.sql, rows.len());
        }
        if advice.contains("pg_prepared_xacts") {
            rig.client("app").await.batch_execute("COMMIT PREPARED 'it''s'").await.unwrap();
        }
        if advice.contains("pg_stat_activity") {
            old.batch_execute("COMMIT").await.unwrap();
        }
        if seen.len() == 2 {
            break;
        }
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    daemon.wait_ready().await;
    assert_eq!(
        rig.postgres.value("SELECT count(*) FROM mine WHERE id IN (7, 8)").await,
        "2",
        "both were left to commit"
    );
    if rig.postgres.major().await >= 16 {
        rig.postgres.admin_sql("SELECT pg_log_standby_snapshot()").await;
    }
    let ready = daemon.ready().await;
    assert!(ready.is_some(), "{:?}", ready.map(|(_, body)| troubles(&body)));
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_are_passed_on() {
    let rig = Rig::start(&[], "").await;
    if rig.postgres.major().await < 18 {
        return;
    }
    let sql = "CREATE TABLE twice (id int, v int GENERATED ALWAYS AS (id * 2) STORED); INSERT INTO twice VALUES (1);
               ALTER TABLE twice REPLICA IDENTITY FULL; CREATE PUBLICATION walhook_app FOR TABLE mine, twice";
    rig.postgres.sql(sql).await;
    let (sink, url) = (Rig::sink("\"public.mine\"", ""), rig.postgres.reader_url());
    let lines = rig.check(&url, "create = false", &sink);
    let printed = printed_in(&line(&lines, "public.twice is published and its own").mend);
    let owner = rig.client("app").await;
    owner.batch_execute("UPDATE twice SET id = 2").await.expect_err("it fails while the column is not passed on");
    owner.batch_execute(&printed[0].sql).await.unwrap();
    owner.batch_execute("UPDATE twice SET id = 2").await.unwrap();
    gone(&rig.check(&url, "create = false", &sink), "public.twice is published");
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_wait_for_the_other_standbys_only() {
    let rig = Rig::start(&[], "").await;
    let sink = Rig::sink("\"public.mine\"", "");
    let said = |names: &'static str| {
        let (rig, sink) = (&rig, &sink);
        async move {
            let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'");
            rig.postgres.admin_sql(&set).await;
            rig.postgres.admin_sql("SELECT pg_reload_conf()").await;
            until("the list to be in effect", || async {
                let shown = rig.postgres.admin_value("SHOW synchronous_standby_names").await;
                state(shown == names, shown)
            })
            .await;
            line(&rig.check(&rig.postgres.url(), "", sink), "commits wait for walhook").mend.clone()
        }
    };
    // Its `*` may mean standbys that are away: nothing that a paste would change.
    let printed = printed_in(&said("ANY 2 (*)").await);
    assert_eq!(printed.len(), 1, "{printed:?}");
    rig.run("postgres", &printed).await;
    // Statement by statement, as psql runs them.
    let printed = printed_in(&said("ANY 1 (walhook, s1)").await);
    rig.run("postgres", &printed).await;
    until("the new list to be in effect", || async {
        let shown = rig.postgres.admin_value("SHOW synchronous_standby_names").await;
        state(shown == "ANY 1 (\"s1\")", shown)
    })
    .await;
    gone(&rig.check(&rig.postgres.url(), "", &sink), "commits wait for walhook");
    rig.postgres.admin_sql("ALTER SYSTEM RESET synchronous_standby_names").await;
    rig.postgres.admin_sql("SELECT pg_reload_conf()").await;
    until("no commit to wait", || async {
        let shown = rig.postgres.admin_value("SHOW synchronous_standby_names").await;
        state(shown.is_empty(), shown)
    })
    .await;
    rig.app_still_works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superuser_makes_a_role_for_walhook() {
    let rig = Rig::start(&[], "").await;
    rig.postgres.admin_sql("ALTER ROLE walhook RENAME TO another").await;
    let sink = Rig::sink("\"public.mine\"", "");
    let mend = line(&rig.check(&rig.postgres.admin_url(), "", &sink), "is a superuser").mend.clone();
    rig.run("postgres", &printed_in(&mend)).await;
    let lines = rig.check(&rig.url_of("walhook"), "", &sink);
    gone(&lines, "is a superuser");
    line(&lines, "the role may use replication slots");
    rig.app_still_works().await;
}

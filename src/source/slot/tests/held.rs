//! What keeps one table from being published keeps no other.

use std::collections::HashSet;

use super::*;
use crate::source::advice::tests::sql_of;
use crate::source::slot::portions::Budget;
use crate::source::slot::publishing::Publishing;

/// So many tables, `t1` and on.
fn many(count: usize) -> String {
    (1..=count).map(|number| format!("create table t{number} (id int primary key);")).collect()
}

async fn pid_of(client: &Client) -> i32 {
    client.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0)
}

fn names(tables: &[TableFacts]) -> Vec<String> {
    tables.iter().map(|table| table.name.to_string()).collect()
}

#[tokio::test]
async fn pitfall_59_a_table_that_is_locked_at_the_first_start_holds_only_itself_and_names_its_holder() {
    let mut stage = Stage::new(&[], &format!("{ORDERS} create table other (id int primary key);")).await;
    let url = stage.cluster.url_as(Role::Owner, "postgres");
    let holder = stage.session(&format!("{url}?application_name=migrate")).await;
    let pid = pid_of(&holder).await;
    holder.batch_execute("begin; lock table orders in share update exclusive mode").await.unwrap();
    let sinks = [sink("s", &["public.orders", "public.other"])];
    let mut prepared = stage.prepare(&sinks).await.unwrap();
    assert!(prepared.created, "{prepared:?}");
    assert_eq!(names(&prepared.tables), ["public.other"]);
    let Trouble { what, advice } = &prepared.errors[0];
    let whom = format!(
        "public.orders is not published yet: backend {pid} (application \"migrate\", idle in transaction, since "
    );
    assert!(what.starts_with(&whom) && what.ends_with(" UTC) has locked it"), "{what}");
    assert!(advice.starts_with("it is published by itself"), "{advice}");

    holder.batch_execute("insert into orders values (1); commit").await.unwrap();
    let maintained = maintain(site(&stage.own, &stage.source(), &sinks), &mut prepared.learnt, None).await.unwrap();
    assert_eq!((maintained.added.len(), maintained.errors.len(), maintained.is_incomplete), (1, 0, false));
    assert_eq!(maintained.missed.late.made_anew, []);
    assert_eq!(maintained.missed.late.early.iter().map(ToString::to_string).collect::<Vec<_>>(), ["public.orders"]);
}

#[tokio::test]
async fn pitfall_59_of_a_holder_that_the_role_may_not_see_the_backend_and_its_application_are_named() {
    let mut stage = Stage::new(&[], ORDERS).await;
    let url = stage.cluster.url_as(Role::Superuser, "postgres");
    let holder = stage.session(&format!("{url}?application_name=vacuumer")).await;
    let pid = pid_of(&holder).await;
    holder.batch_execute("begin; lock table orders in share row exclusive mode").await.unwrap();
    let prepared = stage.prepare(&[sink("s", &["public.*"])]).await.unwrap();
    let what = &prepared.troubles[0].what;
    assert_eq!(
        what,
        &format!("public.orders is not published yet: backend {pid} (application \"vacuumer\") has locked it")
    );
    assert!(prepared.errors.is_empty(), "only a pattern names it: {:?}", prepared.errors);
}

#[tokio::test]
async fn pitfall_59_many_locked_tables_among_others_hold_only_themselves_and_are_folded() {
    let mut stage = Stage::new(&[], &many(120)).await;
    let holder = stage.session(&stage.cluster.url_as(Role::Owner, "postgres")).await;
    let locks: Vec<String> = (1..=60).map(|number| format!("t{}", number * 2)).collect();
    holder.batch_execute(&format!("begin; lock table {} in share mode", locks.join(", "))).await.unwrap();
    let sinks = [sink("s", &["public.*"])];
    let mut prepared = stage.prepare(&sinks).await.unwrap();
    assert_eq!(prepared.tables.len(), 60);
    assert_eq!(prepared.troubles.len(), 9, "eight and how many more: {:?}", prepared.troubles);
    assert!(prepared.troubles[8].what.starts_with("52 more tables"), "{:?}", prepared.troubles);
    holder.batch_execute("commit").await.unwrap();
    let maintained = maintain(site(&stage.own, &stage.source(), &sinks), &mut prepared.learnt, None).await.unwrap();
    assert_eq!((maintained.added.len(), maintained.troubles.len()), (60, 0));
}

#[tokio::test]
async fn pitfall_59_a_lock_table_that_is_nearly_full_gets_smaller_portions() {
    let settings = [
        ("max_locks_per_transaction", "10"),
        ("max_connections", "12"),
        ("max_wal_senders", "4"),
        ("max_worker_processes", "1"),
    ];
    let mut stage = Stage::new(&settings, "").await;
    for _ in 0..24 {
        let next = "do $$ declare n int := (select count(*) from pg_tables where schemaname = 'public'); begin
                      for i in n + 1 .. n + 50 loop execute format('create table t%s (id int primary key)', i); end loop;
                    end $$";
        stage.client.batch_execute(next).await.unwrap();
    }
    let holder = stage.session(&stage.cluster.url_as(Role::Owner, "postgres")).await;
    holder.batch_execute("begin").await.unwrap();
    // Until there is no room for a hundred more; then a hundred of them are given back.
    let mut held = 0;
    for at in (0..1200).step_by(100) {
        let tables: Vec<String> = (at + 1..=at + 100).map(|number| format!("t{number}")).collect();
        let lock = format!("savepoint s{at}; lock table {} in access share mode", tables.join(", "));
        if let Err(error) = holder.batch_execute(&lock).await {
            assert!(error.as_db_error().unwrap().message().contains("out of shared memory"), "{error:?}");
            holder.batch_execute(&format!("rollback to s{}", held - 100)).await.unwrap();
            break;
        }
        held = at + 100;
    }
    assert!((100..1200).contains(&held), "the lock table took {held} locks");
    let sinks = [sink("s", &["public.*"])];
    let prepared = stage.prepare(&sinks).await.unwrap();
    assert_eq!((prepared.tables.len(), prepared.troubles), (1200, Vec::new()));
    let together = "select max(count) from (select count(*) from pg_publication_rel group by xmin) portions (count)";
    assert!(stage.count(together).await < 200, "no portion was larger than what there was room for");
}

/// Refuses to let the table `minded` into any publication.
const MINDER: &str = "
    create function minder() returns event_trigger language plpgsql as $$ begin
      if exists (select from pg_event_trigger_ddl_commands() where object_identity like 'public.minded %') then
        raise exception 'this table is minded' using errcode = 'unique_violation';
      end if; end $$;
    create event trigger minder on ddl_command_end execute function minder()";

#[tokio::test]
async fn an_event_trigger_that_minds_one_table_keeps_no_other() {
    let stage = Stage::new(&[], &format!("{} create table minded (id int primary key)", many(40))).await;
    stage.admin.batch_execute(MINDER).await.unwrap();
    let sinks = [sink("s", &["public.*"])];
    let mut prepared = stage.prepare(&sinks).await.unwrap();
    assert_eq!(prepared.tables.len(), 40);
    assert_eq!(prepared.troubles[0].what, "public.minded is not published yet: this table is minded");
    stage.admin.batch_execute("drop event trigger minder").await.unwrap();
    let maintained = maintain(site(&stage.own, &stage.source(), &sinks), &mut prepared.learnt, None).await.unwrap();
    assert_eq!((maintained.added.len(), maintained.troubles.len()), (1, 0));
}

#[tokio::test]
async fn tables_that_are_dropped_renamed_or_made_since_the_survey_keep_no_other() {
    let stage = Stage::new(&[], &many(6)).await;
    let (source, sinks) = (stage.source(), [sink("s", &["public.*"])]);
    stage.prepare(&[sink("s", &["public.t1"])]).await.unwrap();
    let survey = survey(&stage.own, &source, &sinks).await.unwrap();
    // One that an open transaction makes is not seen, nor one that is temporary.
    stage
        .admin
        .batch_execute("begin; create table open (id int primary key); create temp table t (id int)")
        .await
        .unwrap();
    stage.client.batch_execute("drop table t2; alter table t3 rename to t30").await.unwrap();
    let publishing = Publishing {
        client: &stage.own,
        source: &source,
        survey: &survey,
        turn: Turn::Again,
        budget: Budget::BESIDE_STREAM,
    };
    let published = publishing.fill(&mut Learnt::default()).await.unwrap();
    let added: HashSet<String> = published.added.iter().map(ToString::to_string).collect();
    assert_eq!(added, HashSet::from(["public.t4", "public.t5", "public.t6"].map(str::to_owned)));
    assert!(published.held.is_empty() && published.faults.is_empty(), "{published:?}");
}

#[tokio::test]
async fn a_table_of_another_role_or_in_a_closed_schema_holds_only_itself_and_the_advice_mends_it() {
    let stage = Stage::new(&[], ORDERS).await;
    let sql =
        "create schema closed; create table closed.room (id int primary key); alter table closed.room owner to app;
               create table theirs (id int primary key)";
    stage.admin.batch_execute(sql).await.unwrap();
    let sinks = [sink("s", &["public.orders", "public.theirs", "closed.room"])];
    let mut prepared = stage.prepare(&sinks).await.unwrap();
    assert_eq!(names(&prepared.tables), ["public.orders"]);
    let told: Vec<&str> = prepared.errors.iter().map(|trouble| trouble.what.as_str()).collect();
    let expected = [
        "left out: closed.room is in the schema closed, which the role walhook may not use",
        "left out: public.theirs belongs to another role, so walhook cannot publish it",
    ];
    assert_eq!(told, expected);
    let grant = sql_of(&prepared.errors[0].advice);
    assert_eq!(grant, "GRANT USAGE ON SCHEMA \"closed\" TO \"walhook\";");
    stage.admin.batch_execute(&grant).await.unwrap();
    let maintained = maintain(site(&stage.own, &stage.source(), &sinks), &mut prepared.learnt, None).await.unwrap();
    assert_eq!((maintained.added.len(), maintained.errors.len()), (1, 1));
}

#[tokio::test]
async fn a_publication_that_another_session_changes_is_named_with_its_holder_and_what_is_published_streams() {
    let mut stage = Stage::new(&[], &many(3)).await;
    if stage.count("select current_setting('server_version_num')::int8").await < 150_000 {
        // Only from 15 on a change of a publication locks it.
        return;
    }
    let one = [sink("s", &["public.t1"])];
    stage.prepare(&one).await.unwrap();
    let holder = stage.session(&stage.cluster.url_as(Role::Superuser, "postgres")).await;
    let pid = pid_of(&holder).await;
    holder.batch_execute("begin; alter publication walhook_app add table t3").await.unwrap();
    let mut more = [sink("s", &["public.t1", "public.t2"])];
    more[0].actions.truncate = true;
    let mut prepared = stage.prepare(&more).await.unwrap();
    assert_eq!(names(&prepared.tables), ["public.t1"]);
    let told = format!("the publication walhook_app cannot be changed: backend {pid}");
    assert!(prepared.errors.iter().all(|trouble| trouble.what.starts_with(&told)), "{:?}", prepared.errors);
    holder.batch_execute("commit").await.unwrap();
    let maintained = maintain(site(&stage.own, &stage.source(), &more), &mut prepared.learnt, None).await.unwrap();
    assert_eq!((maintained.added.len(), maintained.errors.len()), (1, 0), "{maintained:?}");
    assert_eq!(stage.count("select count(*) from pg_publication where pubtruncate").await, 1);
}

#[tokio::test]
async fn a_managed_publication_that_lacks_one_table_streams_the_others() {
    let parts = "create table parts (id int primary key) partition by range (id);
                 create table parts_1 partition of parts for values from (0) to (10);";
    let stage =
        Stage::new(&[], &format!("{} {parts} create publication walhook_app for table t1, parts", many(2))).await;
    stage.own.batch_execute("select pg_create_logical_replication_slot('walhook_app', 'pgoutput')").await.unwrap();
    let source = SourceConfig { create: false, ..stage.source() };
    let sinks = [sink("s", &["public.t1", "public.t2", "public.parts"])];
    let mut prepared = prepare(site(&stage.own, &source, &sinks), &|_| {}, None).await.unwrap();
    assert_eq!(names(&prepared.tables), ["public.t1"]);
    let advice: Vec<String> = prepared.errors.iter().map(|trouble| sql_of(&trouble.advice)).collect();
    let expected = [
        "ALTER PUBLICATION \"walhook_app\" SET (publish_via_partition_root = true);",
        "ALTER PUBLICATION \"walhook_app\" ADD TABLE ONLY \"public\".\"t2\";",
    ];
    assert_eq!(advice, expected);
    stage.client.batch_execute(&advice.join(" ")).await.unwrap();
    let maintained = maintain(site(&stage.own, &source, &sinks), &mut prepared.learnt, None).await.unwrap();
    assert!(maintained.errors.is_empty() && !maintained.is_incomplete, "{maintained:?}");
    // Where it has none of them, nothing can be read.
    let (what, sql) = lasting(
        prepare(site(&stage.own, &source, &[sink("s", &["public.parts_none", "public.other"])]), &|_| {}, None)
            .await
            .and_then(|prepared| {
                assert_eq!((prepared.tables.len(), prepared.errors.len()), (0, 2));
                Err(PrepareError::lasting("both are missing", ""))
            }),
    );
    assert_eq!((what.as_str(), sql.as_str()), ("both are missing", ""));
}

#[tokio::test]
async fn updates_are_not_published_of_what_has_no_identity_when_a_publication_is_widened() {
    let stage = Stage::new(&[], &format!("{ORDERS} create table bare (v int); insert into bare values (1)")).await;
    let mut inserts = sink("i", &["public.bare"]);
    inserts.actions = Actions { insert: true, update: false, delete: false, truncate: false };
    stage.prepare(std::slice::from_ref(&inserts)).await.unwrap();
    assert_eq!(stage.published().await, ["public.bare"]);
    // Ours: it is taken out first, and said to be missing.
    let sinks = [inserts.clone(), sink("s", &["public.orders"])];
    let prepared = stage.prepare(&sinks).await.unwrap();
    assert_eq!(stage.published().await, ["public.orders"]);
    assert!(prepared.errors[0].what.contains("public.bare has no primary key"), "{prepared:?}");
    stage.client.batch_execute("update bare set v = 2").await.unwrap();

    // A person's: it stays as it is.
    let made = "drop publication walhook_app; create publication walhook_app for table bare with (publish = 'insert');
                alter publication walhook_app owner to walhook";
    stage.admin.batch_execute(made).await.unwrap();
    let prepared = stage.prepare(&sinks).await.unwrap();
    stage.client.batch_execute("update bare set v = 3").await.unwrap();
    assert!(
        prepared.troubles.iter().any(|trouble| trouble.what.contains("does not pass on updates and deletes")),
        "{prepared:?}"
    );
}

#[tokio::test]
async fn a_table_without_identity_is_not_added_where_another_slot_has_updates_published() {
    let stage = Stage::new(&[], &format!("{ORDERS} create table bare (v int); insert into bare values (1)")).await;
    stage.prepare(&[sink("s", &["public.orders"])]).await.unwrap();
    let other = SourceConfig { slot: "another".to_owned(), ..stage.source() };
    let mut inserts = sink("i", &["public.bare", "public.orders"]);
    inserts.actions = Actions { insert: true, update: false, delete: false, truncate: false };
    let prepared = prepare(site(&stage.own, &other, &[inserts]), &|_| {}, None).await.unwrap();
    stage.client.batch_execute("update bare set v = 2").await.unwrap();
    assert_eq!(names(&prepared.tables), ["public.orders"]);
    assert!(prepared.errors[0].what.starts_with("left out: public.bare has no primary key"), "{prepared:?}");
    let sql = sql_of(&prepared.errors[0].advice);
    assert_eq!(sql, "ALTER TABLE \"public\".\"bare\" REPLICA IDENTITY FULL;");
}

#[tokio::test]
async fn pitfall_59_a_table_that_cannot_be_taken_out_stays_until_it_can() {
    let mut stage = Stage::new(&[], &many(5)).await;
    stage.prepare(&[sink("s", &["public.*"])]).await.unwrap();
    let holder = stage.session(&stage.cluster.url_as(Role::Owner, "postgres")).await;
    holder.batch_execute("begin; lock table t3 in access exclusive mode").await.unwrap();
    let sinks = [sink("s", &["public.t1"])];
    let mut prepared = stage.prepare(&sinks).await.unwrap();
    assert_eq!(stage.count("select count(*) from pg_publication_rel").await, 2);
    assert!(prepared.troubles[0].what.starts_with("public.t3 is still published: backend"), "{prepared:?}");
    holder.batch_execute("commit").await.unwrap();
    let maintained = maintain(site(&stage.own, &stage.source(), &sinks), &mut prepared.learnt, None).await.unwrap();
    assert_eq!((stage.published().await, maintained.troubles.len()), (vec!["public.t1".to_owned()], 0));
}

//! A source that has streamed: nothing but the slot and the publication themselves keeps it from going on.

use super::*;
use crate::source::advice::tests::sql_of;

#[tokio::test]
async fn a_locked_table_keeps_neither_the_stream_nor_the_connection() {
    let mut stage = Stage::new(&[], ORDERS).await;
    stage.prepare(&[sink("s", &["public.*"])]).await.unwrap();
    let holder = stage.session(&stage.cluster.url_as(Role::Owner, "postgres")).await;
    holder.batch_execute("create table later (id int primary key)").await.unwrap();
    holder.batch_execute("begin; lock table later, orders in access exclusive mode").await.unwrap();
    let (source, sinks) = (stage.source(), [sink("s", &["public.*"])]);
    let prepared = prepare_again(site(&stage.own, &source, &sinks), None).await.unwrap();
    let pid: i32 = holder.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    let whom = format!("public.later is not published yet: backend {pid} (");
    assert!(prepared.troubles[0].what.starts_with(&whom), "{:?}", prepared.troubles);
    assert_eq!(prepared.tables.len(), 1, "{:?}", prepared.tables);
    let maintained = maintain(site(&stage.own, &source, &sinks), &mut Learnt::default(), None).await.unwrap();
    assert!(maintained.added.is_empty());
    assert!(maintained.troubles[0].what.starts_with(&whom), "{:?}", maintained.troubles);
    assert!(maintained.is_incomplete, "it is looked at again soon");
    holder.batch_execute("commit").await.unwrap();
    let maintained = maintain(site(&stage.own, &source, &sinks), &mut Learnt::default(), None).await.unwrap();
    assert_eq!((maintained.added.len(), maintained.troubles.len()), (1, 0));
    let limits = "select current_setting('statement_timeout') || ' ' || current_setting('lock_timeout')";
    assert_eq!(stage.own.query_one(limits, &[]).await.unwrap().get::<_, String>(0), "25s 5s");
}

#[tokio::test]
async fn a_missing_privilege_is_a_trouble_with_the_grants() {
    let mut stage = Stage::new(&[], ORDERS).await;
    let url = stage.guest("replication").await;
    let guest = stage.session(&url).await;
    stage.prepare(&[sink("s", &["public.orders"])]).await.unwrap();
    stage.client.batch_execute("create table theirs (id int primary key)").await.unwrap();
    let sinks = [sink("s", &["public.orders", "public.theirs"])];
    let prepared = prepare_again(site(&guest, &stage.source(), &sinks), None).await.unwrap();
    assert_eq!(prepared.tables.len(), 1, "{:?}", prepared.tables);
    let trouble = &prepared.errors[0];
    assert!(
        trouble.what.contains("public.theirs is not in the publication, which belongs to another role"),
        "{trouble:?}"
    );
    let sql = sql_of(&trouble.advice);
    // The same at a start: what is published can be read.
    assert_eq!(prepare(site(&guest, &stage.source(), &sinks), &|_| {}, None).await.unwrap().errors, prepared.errors);
    stage.admin.batch_execute(&sql).await.unwrap();
    let mended = prepare(site(&guest, &stage.source(), &sinks), &|_| {}, None).await.unwrap();
    assert_eq!((mended.tables.len(), mended.errors.len()), (2, 0));

    // What cannot be streamed from stays an error.
    stage.admin.batch_execute("drop publication walhook_app").await.unwrap();
    assert!(matches!(
        prepare_again(site(&guest, &stage.source(), &sinks), None).await,
        Err(PrepareError::Unpublished { .. })
    ));
}

#[tokio::test]
async fn a_table_swapped_by_its_name_was_not_captured_before() {
    let stage = Stage::new(&[], ORDERS).await;
    let (source, sinks) = (stage.source(), [sink("s", &["public.orders", "public.*"])]);
    let first = stage.prepare(&sinks).await.unwrap();
    assert!(first.missed.late.made_anew.is_empty(), "{first:?}");
    let swap =
        "create table fresh (id int primary key); alter table orders rename to old; alter table fresh rename to orders";
    stage.client.batch_execute(swap).await.unwrap();
    let again = prepare_again(site(&stage.own, &source, &sinks), None).await.unwrap();
    assert_eq!(again.missed.late.made_anew[0].to_string(), "public.orders");
    let maintained = maintain(site(&stage.own, &source, &sinks), &mut Learnt::default(), None).await.unwrap();
    assert!(maintained.missed.late.made_anew.is_empty() && !maintained.is_incomplete, "{maintained:?}");

    // One that only a pattern names is new, not late.
    stage.client.batch_execute("drop table old, orders; create table another (id int primary key)").await.unwrap();
    let maintained = maintain(site(&stage.own, &source, &sinks), &mut Learnt::default(), None).await.unwrap();
    assert_eq!(maintained.added.len(), 1);
    assert!(maintained.missed.late.made_anew.is_empty() && maintained.is_incomplete, "{maintained:?}");
}

#[tokio::test]
async fn functions_of_others_that_fit_better_than_those_of_postgres_are_not_called() {
    let stage = Stage::new(&[], ORDERS).await;
    let hostile = "
        create function public.convert_to(text, text) returns bytea language plpgsql as $$ begin raise 'caught'; end $$;
        create function public.to_jsonb(pg_replication_slots) returns jsonb language plpgsql as $$ begin raise 'caught'; end $$;
        create function public.to_jsonb(pg_publication_rel) returns jsonb language plpgsql as $$ begin raise 'caught'; end $$;
        create function public.unnest(int2vector) returns setof int2 language plpgsql as $$ begin raise 'caught'; end $$";
    stage.admin.batch_execute(hostile).await.unwrap();
    let (source, sinks) = (stage.source(), [sink("s", &["public.orders"])]);
    // Those of a row type are called where the path has them, so this test can fail.
    let row = stage.client.query("select to_jsonb(r) from pg_publication_rel r", &[]);
    assert!(row.await.is_ok(), "nothing is published yet");
    stage.prepare(&sinks).await.unwrap();
    let caught = stage.client.query("select to_jsonb(r) from pg_publication_rel r", &[]).await.unwrap_err();
    assert!(caught.as_db_error().unwrap().message().contains("caught"), "{caught:?}");
    prepare_again(site(&stage.own, &source, &sinks), None).await.unwrap();
    maintain(site(&stage.own, &source, &sinks), &mut Learnt::default(), None).await.unwrap();
    assert!(inspect(&stage.own, &source.slot).await.unwrap().is_some());
}

#[tokio::test]
async fn in_the_place_of_a_lost_slot_none_is_made_without_a_publication() {
    let stage = Stage::new(&[], ORDERS).await;
    let sinks = [sink("s", &["public.orders"])];
    stage.prepare(&sinks).await.unwrap();
    let gone = "drop publication walhook_app; select pg_drop_replication_slot('walhook_app')";
    stage.admin.batch_execute(gone).await.unwrap();
    let source = SourceConfig { create: false, ..stage.source() };
    let anew = prepare_anew(site(&stage.own, &source, &sinks), true, &|_| {}, None).await;
    assert!(lasting(anew).0.contains("does not hold what the sinks need"));
    let url = stage.guest("replication").await;
    let mut stage = stage;
    let guest = stage.session(&url).await;
    let source = SourceConfig { url: PgAddress::parse(&url).unwrap(), ..stage.source() };
    let anew = prepare_anew(site(&guest, &source, &sinks), true, &|_| {}, None).await;
    assert!(matches!(anew, Err(PrepareError::Lasting { .. })), "{anew:?}");
    assert_eq!(stage.count("select count(*) from pg_replication_slots").await, 0, "older than its publication");
}

#[tokio::test]
async fn a_slot_that_somebody_made_since_the_survey_is_not_dropped() {
    let stage = Stage::new(&[], ORDERS).await;
    let (source, sinks) = (stage.source(), [sink("s", &["public.orders"])]);
    stage.prepare(&sinks).await.unwrap();
    limit_statements(&stage.own).await.unwrap();
    let mut survey = survey(&stage.own, &source, &sinks).await.unwrap();
    survey.slot.as_mut().unwrap().wal_status = Some("lost".to_owned());
    let made = creation::make_slot(&stage.own, &source, &survey, &|_| {}).await;
    assert!(matches!(made, Err(PrepareError::Passing(Passing::Changed(_)))), "{made:?}");
    assert_eq!(stage.count("select count(*) from pg_replication_slots").await, 1);
}

#[tokio::test]
async fn pitfall_58_a_table_that_a_running_transaction_may_have_written_to_when_it_was_published_is_said() {
    let mut stage = Stage::new(&[], ORDERS).await;
    let sinks = [sink("s", &["public.*"])];
    stage.prepare(&sinks).await.unwrap();
    let writer = stage.session(&stage.cluster.url_as(Role::Owner, "postgres")).await;
    writer
        .batch_execute("create table later (id int primary key); create table calm (id int primary key)")
        .await
        .unwrap();
    // As an INSERT that has not come as far as the table's file.
    writer.batch_execute("begin; lock table later in row exclusive mode").await.unwrap();
    let source = stage.source();
    let maintained = maintain(site(&stage.own, &source, &sinks), &mut Learnt::default(), None).await.unwrap();
    assert_eq!(maintained.added.len(), 2, "{maintained:?}");
    let early: Vec<String> = maintained.missed.late.early.iter().map(ToString::to_string).collect();
    assert_eq!(early, ["public.later"]);
}

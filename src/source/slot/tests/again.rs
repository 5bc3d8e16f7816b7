//! A source that has streamed: nothing but the slot and the publication themselves keeps it from going on.

use super::*;

#[tokio::test]
async fn a_locked_table_keeps_neither_the_stream_nor_the_connection() {
    let mut stage = Stage::new(&[], ORDERS).await;
    stage.prepare(&[sink("s", &["public.*"])]).await.unwrap();
    let holder = stage.session(&stage.cluster.url("postgres")).await;
    holder.batch_execute("create table later (id int primary key)").await.unwrap();
    holder.batch_execute("begin; lock table later, orders in access exclusive mode").await.unwrap();
    let (source, sinks) = (stage.source(), [sink("s", &["public.*"])]);
    let prepared = prepare_again(&stage.client, &source, &sinks).await.unwrap();
    assert!(prepared.troubles[0].what.contains("lock timeout"), "{:?}", prepared.troubles);
    assert_eq!(prepared.tables.len(), 1, "{:?}", prepared.tables);
    let maintained = maintain(&stage.client, &source, &sinks).await.unwrap();
    assert!(maintained.added.is_empty());
    assert!(maintained.troubles[0].what.contains("lock timeout"), "{:?}", maintained.troubles);
    holder.batch_execute("commit").await.unwrap();
    let maintained = maintain(&stage.client, &source, &sinks).await.unwrap();
    assert_eq!((maintained.added.len(), maintained.troubles.len()), (1, 0));
    let limits = "select current_setting('statement_timeout') || ' ' || current_setting('lock_timeout')";
    assert_eq!(stage.client.query_one(limits, &[]).await.unwrap().get::<_, String>(0), "25s 5s");
}

#[tokio::test]
async fn a_missing_privilege_is_a_trouble_with_the_grants() {
    let mut stage = Stage::new(&[], &format!("create role app login replication; {ORDERS}")).await;
    let url = stage.cluster.url("postgres").replace("postgres@", "app@");
    let app = stage.session(&url).await;
    stage.prepare(&[sink("s", &["public.orders"])]).await.unwrap();
    stage.client.batch_execute("create table theirs (id int primary key)").await.unwrap();
    let sinks = [sink("s", &["public.orders", "public.theirs"])];
    let prepared = prepare_again(&app, &stage.source(), &sinks).await.unwrap();
    assert_eq!(prepared.tables.len(), 1, "{:?}", prepared.tables);
    let trouble = &prepared.troubles[0];
    assert!(trouble.what.contains("must be owner"), "{trouble:?}");
    assert!(trouble.advice.contains("ALTER PUBLICATION \"walhook_app\" OWNER TO \"app\";"), "{trouble:?}");
    assert!(matches!(prepare(&app, &stage.source(), &sinks, &|_| {}).await, Err(PrepareError::Lasting { .. })));

    // What cannot be streamed from stays an error.
    stage.client.batch_execute("drop publication walhook_app").await.unwrap();
    assert!(matches!(prepare_again(&app, &stage.source(), &sinks).await, Err(PrepareError::Lasting { .. })));
}

#[tokio::test]
async fn a_table_swapped_by_its_name_was_not_captured_before() {
    let stage = Stage::new(&[], ORDERS).await;
    let (source, sinks) = (stage.source(), [sink("s", &["public.orders", "public.*"])]);
    let first = stage.prepare(&sinks).await.unwrap();
    assert!(first.uncaptured.is_empty(), "{first:?}");
    let swap =
        "create table fresh (id int primary key); alter table orders rename to old; alter table fresh rename to orders";
    stage.client.batch_execute(swap).await.unwrap();
    let again = prepare_again(&stage.client, &source, &sinks).await.unwrap();
    assert!(again.uncaptured[0].what.starts_with("public.orders was made or renamed"), "{again:?}");
    let maintained = maintain(&stage.client, &source, &sinks).await.unwrap();
    assert!(maintained.uncaptured.is_empty() && !maintained.is_incomplete, "{maintained:?}");

    // One that only a pattern names is new, not late.
    stage.client.batch_execute("drop table old, orders; create table another (id int primary key)").await.unwrap();
    let maintained = maintain(&stage.client, &source, &sinks).await.unwrap();
    assert_eq!(maintained.added.len(), 1);
    assert!(maintained.uncaptured.is_empty() && maintained.is_incomplete, "{maintained:?}");
}

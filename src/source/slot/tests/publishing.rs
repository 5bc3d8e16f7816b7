//! What becomes of a publication that exists, and who may change it.

use super::*;
use crate::source::advice::tests::sql_of;

#[tokio::test]
async fn a_pattern_picks_up_new_tables_and_lets_go_of_none_that_a_sink_names() {
    let sql = "create table orders (id int primary key); create schema \"My Shop\";
               create table \"My Shop\".\"Odd \"\"name\"\"\" (id int primary key);";
    let stage = Stage::new(&[], sql).await;
    let sinks = [sink("s", &["public.*", "My Shop.*"])];
    stage.prepare(&sinks).await.unwrap();
    assert_eq!(stage.published().await, ["My Shop.Odd \"name\"", "public.orders"]);
    let made = "create table later (id int primary key); create table bare (v int); insert into bare values (1)";
    stage.client.batch_execute(made).await.unwrap();
    let maintained = maintain(site(&stage.own, &stage.source(), &sinks), &mut Learnt::default(), None).await.unwrap();
    assert_eq!(maintained.added.iter().map(TableName::to_string).collect::<Vec<_>>(), ["public.later"]);
    assert_eq!(maintained.troubles.len(), 1);
    stage.client.batch_execute("update bare set v = 2").await.unwrap();
    let again = maintain(site(&stage.own, &stage.source(), &sinks), &mut Learnt::default(), None).await.unwrap();
    assert!(again.added.is_empty() && again.troubles == maintained.troubles);

    // A table that lost its key stays published, one that no sink names any more leaves.
    stage.client.batch_execute("alter table later drop constraint later_pkey").await.unwrap();
    stage.prepare(&[sink("s", &["public.*"])]).await.unwrap();
    assert_eq!(stage.published().await, ["public.later", "public.orders"]);
}

#[tokio::test]
async fn a_publication_made_by_a_person_is_taken_if_it_covers() {
    let stage = Stage::new(&[], ORDERS).await;
    let other = "create table other (id int primary key); create publication walhook_app for table other";
    stage.client.batch_execute(other).await.unwrap();
    stage.prepare(&[sink("s", &["public.orders"])]).await.unwrap();
    // Its own table stays: walhook takes away only from what it made.
    assert_eq!(stage.published().await, ["public.orders", "public.other"]);

    let all = "drop publication walhook_app; create publication walhook_app for all tables";
    stage.admin.batch_execute(all).await.unwrap();
    assert!(!stage.prepare(&[sink("s", &["public.orders"])]).await.unwrap().created);
    let parts = "create table parts (id int primary key) partition by range (id);
                 create table parts_1 partition of parts for values from (0) to (10)";
    stage.client.batch_execute(parts).await.unwrap();
    let (what, advice) = lasting(stage.prepare(&[sink("s", &["public.parts"])]).await);
    assert!(what.contains("does not hold what the sinks need"), "{what}");
    let sql = sql_of(&advice);
    assert_eq!(sql, "ALTER PUBLICATION \"walhook_app\" SET (publish_via_partition_root = true);");
    stage.admin.batch_execute(&sql).await.unwrap();
    stage.prepare(&[sink("s", &["public.parts"])]).await.unwrap();
}

#[tokio::test]
async fn a_table_that_is_renamed_away_and_back_while_the_stream_runs_stays_published() {
    let stage = Stage::new(&[], &format!("{ORDERS} create table other (id int primary key);")).await;
    let mut sinks = [sink("s", &["public.orders"]), sink("o", &["public.other"])];
    stage.prepare(&sinks).await.unwrap();
    stage.client.batch_execute("alter table orders rename to orders_old").await.unwrap();
    // Nor does it pass on less than before, whatever of that the sinks take.
    let inserts = Actions { insert: true, update: false, delete: false, truncate: false };
    sinks.iter_mut().for_each(|sink| sink.actions = inserts);
    maintain(site(&stage.own, &stage.source(), &sinks), &mut Learnt::default(), None).await.unwrap();
    prepare_again(site(&stage.own, &stage.source(), &sinks), None).await.unwrap();
    assert_eq!(stage.published().await, ["public.orders_old", "public.other"]);
    assert_eq!(stage.count("select count(*) from pg_publication where pubupdate and pubdelete").await, 1);
    stage.client.batch_execute("alter table orders_old rename to orders").await.unwrap();

    // At a start what no sink takes goes.
    stage.prepare(&sinks[1..]).await.unwrap();
    assert_eq!(stage.published().await, ["public.other"]);
    assert_eq!(stage.count("select count(*) from pg_publication where pubinsert and not pubupdate").await, 1);
}

#[tokio::test]
async fn slots_that_share_a_publication_take_nothing_from_each_other() {
    let stage = Stage::new(&[], &format!("{ORDERS} create table other (id int primary key);")).await;
    let (ours, theirs) = (stage.source(), SourceConfig { slot: "another".to_owned(), ..stage.source() });
    let orders = [sink("s", &["public.orders"])];
    let mut other = [sink("o", &["public.other"])];
    other[0].actions = Actions { insert: true, update: false, delete: false, truncate: false };
    prepare(site(&stage.own, &ours, &orders), &|_| {}, None).await.unwrap();
    prepare(site(&stage.own, &theirs, &other), &|_| {}, None).await.unwrap();
    maintain(site(&stage.own, &ours, &orders), &mut Learnt::default(), None).await.unwrap();
    maintain(site(&stage.own, &theirs, &other), &mut Learnt::default(), None).await.unwrap();
    assert_eq!(stage.published().await, ["public.orders", "public.other"]);
    assert_eq!(stage.count("select count(*) from pg_publication where pubupdate and pubdelete").await, 1);

    // Nor is anything taken from one whose comment names no slot.
    let older = "comment on publication walhook_app is 'made and maintained by walhook'";
    stage.admin.batch_execute(older).await.unwrap();
    prepare(site(&stage.own, &ours, &orders), &|_| {}, None).await.unwrap();
    assert_eq!(stage.published().await, ["public.orders", "public.other"]);
}

#[tokio::test]
async fn create_false_changes_nothing_and_gives_the_sql() {
    let stage = Stage::new(&[], ORDERS).await;
    let source = SourceConfig { create: false, ..stage.source() };
    let sinks = [sink("s", &["public.orders"])];
    let (_, by_pattern) = lasting(prepare(site(&stage.own, &source, &[sink("s", &["public.*"])]), &|_| {}, None).await);
    let (_, publication) = lasting(prepare(site(&stage.own, &source, &sinks), &|_| {}, None).await);
    assert_eq!(by_pattern, publication);
    assert_eq!(stage.count("select count(*) from pg_publication").await, 0);
    // Both are there, each for its own role; whoever makes the publication need not be able to make the slot.
    let (make, _) = publication.split_once("\nas ").unwrap();
    stage.client.batch_execute(&sql_of(make)).await.unwrap();
    let (what, slot) = lasting(prepare(site(&stage.own, &source, &sinks), &|_| {}, None).await);
    assert!(what.contains("the slot walhook_app does not exist"), "{what}");
    stage.own.batch_execute(&sql_of(&slot)).await.unwrap();
    let prepared = prepare(site(&stage.own, &source, &sinks), &|_| {}, None).await.unwrap();
    assert!(!prepared.created && prepared.tables.len() == 1);

    stage.client.batch_execute("create table later (id int primary key)").await.unwrap();
    let wide = [sink("s", &["public.*"])];
    let maintained = maintain(site(&stage.own, &source, &wide), &mut Learnt::default(), None).await.unwrap();
    assert!(maintained.added.is_empty());
    assert!(maintained.troubles[0].what.contains("public.later is not in the publication"));
    assert_eq!(prepare(site(&stage.own, &source, &wide), &|_| {}, None).await.unwrap().tables.len(), 1);
}

#[tokio::test]
async fn missing_privileges_name_the_grants_which_then_suffice() {
    let mut stage = Stage::new(&[], ORDERS).await;
    let url = stage.guest("").await;
    let source = SourceConfig { url: PgAddress::parse(&url).unwrap(), ..stage.source() };
    let sinks = [sink("s", &["public.orders"])];
    let guest = stage.session(&url).await;
    let (what, grant) = lasting(prepare(site(&guest, &source, &sinks), &|_| {}, None).await);
    assert_eq!(
        (what.as_str(), grant.as_str()),
        ("the role guest may not use replication slots", "as a superuser: ALTER ROLE \"guest\" REPLICATION;")
    );
    stage.admin.batch_execute(&sql_of(&grant)).await.unwrap();
    let (what, advice) = lasting(prepare(site(&guest, &source, &sinks), &|_| {}, None).await);
    assert_eq!(
        what,
        "no table can be read: left out: public.orders belongs to another role, so walhook cannot publish it"
    );
    let (grants, by_hand) = advice.split_once("or set create = false").unwrap();
    assert!(grants.contains("GRANT CREATE ON DATABASE \"postgres\" TO \"guest\";"), "{grants}");
    assert!(by_hand.contains("CREATE PUBLICATION \"walhook_app\""), "{by_hand}");
    assert!(grants.contains("GRANT \"app\" TO \"guest\"") && !advice.contains("OWNER TO"), "{grants}");
    stage.admin.batch_execute(&sql_of(grants)).await.unwrap();
    assert!(prepare(site(&guest, &source, &sinks), &|_| {}, None).await.unwrap().created);

    // A table of another role that a pattern matches is left out, and does not keep the rest.
    stage.admin.batch_execute("create table theirs (id int primary key)").await.unwrap();
    let maintained =
        maintain(site(&guest, &source, &[sink("s", &["public.*"])]), &mut Learnt::default(), None).await.unwrap();
    let Trouble { what, advice } = &maintained.troubles[0];
    assert!(what.contains("public.theirs belongs to another role"), "{what}");
    assert!(advice.contains("do not make guest a member of postgres: it is a superuser"), "{advice}");
    stage.admin.batch_execute(&sql_of(advice)).await.unwrap();
    assert_eq!(stage.published().await, ["public.orders", "public.theirs"]);
}

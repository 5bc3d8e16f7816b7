//! What is published, and what is refused before anything is changed.

use super::*;
use crate::change::ReplicaIdentity;
use crate::source::advice::tests::sql_of;

#[tokio::test]
async fn an_exactly_named_table_without_identity_holds_only_itself_and_its_updates_still_work() {
    let sql = &format!("{ORDERS} create table bare (v int); insert into bare values (1)");
    let stage = Stage::new(&[], sql).await;
    let both = [sink("s", &["public.bare", "public.orders"])];
    let prepared = stage.prepare(&both).await.unwrap();
    let Trouble { what, advice } = &prepared.errors[0];
    assert!(what.starts_with("sink.s.tables: public.bare has no primary key and no replica identity"), "{what}");
    assert_eq!(sql_of(advice), "ALTER TABLE \"public\".\"bare\" REPLICA IDENTITY FULL;");
    assert_eq!((prepared.tables.len(), prepared.created, stage.published().await.len()), (1, true, 1));
    stage.client.batch_execute("update bare set v = 2").await.unwrap();

    // By a pattern it is left out with a warning.
    let prepared = stage.prepare(&[sink("s", &["public.*"])]).await.unwrap();
    assert_eq!((stage.published().await, prepared.errors.len()), (vec!["public.orders".to_owned()], 0));
    assert!(prepared.troubles[0].what.contains("public.bare has no primary key"), "{:?}", prepared.troubles);

    // What is advised mends it, while the stream runs too.
    stage.client.batch_execute(&sql_of(advice)).await.unwrap();
    let maintained = maintain(site(&stage.own, &stage.source(), &both), &mut Learnt::default(), None).await.unwrap();
    assert_eq!((maintained.added.len(), maintained.errors.len(), maintained.is_incomplete), (1, 0, false));
    stage.client.batch_execute("update bare set v = 3").await.unwrap();
}

#[tokio::test]
async fn without_any_table_to_read_it_still_begins_and_takes_them_as_they_come() {
    let stage = Stage::new(&[], "").await;
    let sinks = [sink("s", &["public.orders"])];
    let prepared = stage.prepare(&sinks).await.unwrap();
    assert!(prepared.created && prepared.tables.is_empty(), "{prepared:?}");
    assert!(prepared.errors[0].what.contains("the database has no table public.orders"), "{prepared:?}");
    stage.client.batch_execute(ORDERS).await.unwrap();
    let maintained = maintain(site(&stage.own, &stage.source(), &sinks), &mut Learnt::default(), None).await.unwrap();
    assert_eq!((maintained.added.len(), maintained.errors.len()), (1, 0));
}

#[tokio::test]
async fn sinks_of_inserts_only_publish_inserts_only_and_need_no_identity() {
    let stage = Stage::new(&[], "create table bare (v int); insert into bare values (1)").await;
    let mut inserts = sink("s", &["public.bare"]);
    inserts.actions = Actions { insert: true, update: false, delete: false, truncate: false };
    stage.prepare(&[inserts.clone()]).await.unwrap();
    stage.client.batch_execute("update bare set v = 2; delete from bare").await.unwrap();

    // Another sink that takes updates widens the publication, once the table is safe.
    stage.client.batch_execute("alter table bare replica identity full").await.unwrap();
    stage.prepare(&[inserts, sink("all", &["public.bare"])]).await.unwrap();
    let widened = "select count(*) from pg_publication where pubinsert and pubupdate and pubdelete and not pubtruncate";
    assert_eq!(stage.count(widened).await, 1);
}

#[tokio::test]
async fn truncate_is_published_when_a_sink_takes_it_and_needs_no_identity() {
    let stage = Stage::new(&[], "create table bare (v int); insert into bare values (1)").await;
    let mut truncates = sink("s", &["public.bare"]);
    truncates.actions = Actions { insert: false, update: false, delete: false, truncate: true };
    stage.prepare(&[truncates.clone()]).await.unwrap();
    let only = "select count(*) from pg_publication where pubtruncate and not (pubinsert or pubupdate or pubdelete)";
    assert_eq!(stage.count(only).await, 1);
    stage.client.batch_execute("update bare set v = 2; truncate bare").await.unwrap();

    // A publication that is there is widened, and narrowed at a start when nobody takes truncates any more.
    let mut inserts = sink("t", &["public.bare"]);
    inserts.actions = Actions { insert: true, update: false, delete: false, truncate: false };
    stage.prepare(&[inserts.clone(), truncates.clone()]).await.unwrap();
    assert_eq!(stage.count("select count(*) from pg_publication where pubinsert and pubtruncate").await, 1);
    // A sink of bare rows gets none, so none are published for it.
    let rows =
        SinkConfig { actions: Actions { truncate: true, ..inserts.actions }, message: MessageForm::Row, ..inserts };
    stage.prepare(&[rows]).await.unwrap();
    assert_eq!(stage.count("select count(*) from pg_publication where pubinsert and not pubtruncate").await, 1);
    stage.prepare(&[truncates]).await.unwrap();
    assert_eq!(stage.count(only).await, 1);
}

#[tokio::test]
async fn sinks_without_tables_have_an_empty_publication_and_a_slot() {
    let stage = Stage::new(&[], ORDERS).await;
    let outbox = SinkConfig { messages: vec![PrefixPattern("outbox.*".to_owned())], ..sink("s", &[]) };
    let prepared = stage.prepare(std::slice::from_ref(&outbox)).await.unwrap();
    assert!(prepared.created && prepared.tables.is_empty() && prepared.troubles.is_empty(), "{prepared:?}");
    assert_eq!(stage.published().await, [""; 0]);
    let nothing = "select count(*) from pg_publication where not (pubinsert or pubupdate or pubdelete or pubtruncate)";
    assert_eq!(stage.count(nothing).await, 1);
    assert_eq!(stage.count("select count(*) from pg_replication_slots").await, 1);
    assert!(!stage.prepare(std::slice::from_ref(&outbox)).await.unwrap().created);

    // Its actions are of tables that it does not have.
    let mut inserts = sink("t", &["public.orders"]);
    inserts.actions = Actions { insert: true, update: false, delete: false, truncate: false };
    stage.prepare(&[outbox, inserts]).await.unwrap();
    assert_eq!(stage.count("select count(*) from pg_publication where pubinsert and not pubupdate").await, 1);
}

#[tokio::test]
async fn identities_that_publishing_would_break_are_known() {
    let sql = "create table nothing (id int primary key); alter table nothing replica identity nothing;
               create table late (id int, constraint late_pk primary key (id) deferrable);
               create table lost (id int not null, v int); create unique index lost_i on lost (id);
               alter table lost replica identity using index lost_i; drop index lost_i;
               create unlogged table quick (id int primary key);
               create view seen as select 1 as id;";
    let stage = Stage::new(&[], sql).await;
    let names = ["nothing", "late", "lost", "quick", "seen"].map(|name| format!("public.{name}"));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let prepared = stage.prepare(&[sink("s", &names)]).await.unwrap();
    let reasons: Vec<String> = prepared.errors.into_iter().map(|error| error.what).collect();
    let text = reasons.join("\n");
    for expected in ["IDENTITY NOTHING", "deferrable", "lost the index", "is unlogged", "is a view"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert_eq!(reasons.len(), 5, "{text}");
    // The server agrees about each table.
    stage.client.batch_execute("create publication p for table nothing, late, lost").await.unwrap();
    for table in ["nothing", "late", "lost"] {
        let error = stage.client.batch_execute(&format!("delete from {table}")).await.unwrap_err();
        assert!(error.as_db_error().unwrap().message().contains("replica identity"), "{table}");
    }
}

#[tokio::test]
async fn every_table_that_a_sink_names_and_does_not_get_is_told_in_one_go() {
    let sql = "create table orders (id int primary key, customer_id int);
               create table swapped (id int primary key, code int not null);
               create unique index swapped_i on swapped (code);
               alter table swapped replica identity using index swapped_i;";
    let stage = Stage::new(&[], sql).await;
    let mut grouped = sink("grouped", &["public.orders"]);
    grouped.group_by = GroupBy::Columns(vec!["customer_id".to_owned()]);
    let mut unknown = sink("unknown", &["public.*"]);
    let orders = TableName { schema: "public".to_owned(), table: "orders".to_owned() };
    unknown.group_by_table = vec![(orders, GroupBy::Columns(vec!["shop".to_owned()]))];
    let sinks = [sink("typo", &["public.oders"]), grouped, unknown, sink("swap", &["public.swapped"])];
    let prepared = stage.prepare(&sinks).await.unwrap();
    let advised = |advice: &str| if advice.contains("ALTER TABLE") { sql_of(advice) } else { advice.to_owned() };
    let suffix = "; until that is mended nothing of it is captured";
    let told = |trouble: &Trouble| (trouble.what.strip_suffix(suffix).unwrap().to_owned(), advised(&trouble.advice));
    let found: Vec<(String, String)> = prepared.errors.iter().map(told).collect();
    let swapped = "the old rows of public.swapped's updates and deletes do not carry its primary key's id, so their group \
                   would be unknown";
    let (to_default, to_mend) =
        ("ALTER TABLE \"public\".\"swapped\" REPLICA IDENTITY DEFAULT;", "mend the database or the configuration");
    let expected = [
        ("sink.typo.tables: the database has no table public.oders (did you mean public.orders?)".to_owned(), to_mend),
        (
            "sink.grouped.group_by: the old rows of public.orders's updates and deletes do not carry group_by customer_id, \
             so their group would be unknown"
                .to_owned(),
            "ALTER TABLE \"public\".\"orders\" REPLICA IDENTITY FULL;",
        ),
        ("sink.unknown.group_by: public.orders has no column shop to group by".to_owned(), to_mend),
        (format!("sink.unknown.group_by: {swapped}"), to_default),
        (format!("sink.swap.group_by: {swapped}"), to_default),
    ];
    assert_eq!(found, expected.map(|(what, advice)| (what, advice.to_owned())));
    // Inserts carry every column.
    let mut inserts = sinks[1].clone();
    inserts.actions = Actions { insert: true, update: false, delete: false, truncate: false };
    stage.prepare(&[inserts]).await.unwrap();
}

#[tokio::test]
async fn partitions_come_as_their_root() {
    let sql = "create table parts (id int, v int, primary key (id)) partition by range (id);
               create table parts_1 partition of parts for values from (0) to (10);
               create table loose (id int, v int) partition by range (id);
               create table loose_1 partition of loose for values from (0) to (10);
               insert into loose values (1, 1);";
    let stage = Stage::new(&[], sql).await;
    let prepared = stage.prepare(&[sink("s", &["public.parts_1"])]).await.unwrap();
    let said = &prepared.errors[0].what;
    assert!(said.contains("its changes come as public.parts, so name that"), "{said}");

    let prepared = stage.prepare(&[sink("s", &["public.*"])]).await.unwrap();
    assert_eq!(stage.published().await, ["public.parts"]);
    assert_eq!(prepared.tables[0].leaves.len(), 1);
    // A root is as safe as its partitions: the ALTER TABLE names the partition, and with it the root is taken.
    let trouble = &prepared.troubles[0];
    assert_eq!(sql_of(&trouble.advice), "ALTER TABLE \"public\".\"loose_1\" REPLICA IDENTITY FULL;");
    stage.client.batch_execute(&sql_of(&trouble.advice)).await.unwrap();
    let maintained =
        maintain(site(&stage.own, &stage.source(), &[sink("s", &["public.*"])]), &mut Learnt::default(), None)
            .await
            .unwrap();
    assert_eq!(maintained.added[0].table, "loose");
    assert!(maintained.troubles[0].what.contains("partitions made from now on"), "{:?}", maintained.troubles);
    stage.client.batch_execute("update loose set v = 2; update parts set v = 2").await.unwrap();
}

#[tokio::test]
async fn a_root_with_a_virtual_column_is_as_safe_as_its_partitions() {
    let sql = "create table parts (id int primary key, v int) partition by range (id);
               alter table parts replica identity full;
               create table parts_1 partition of parts for values from (0) to (10);";
    let stage = Stage::new(&[], sql).await;
    let mut tables = survey(&stage.own, &stage.source(), &[sink("s", &["public.parts"])]).await.unwrap().tables;
    let parts = tables.iter_mut().find(|table| !table.leaves.is_empty()).unwrap();
    // As 18 has it; the server looks at the partition that has the row, and at nothing of the root.
    parts.columns[1].is_virtual = true;
    assert_eq!(parts.identity_refusal(), None);
    parts.leaves[0].1.setting = ReplicaIdentity::Full;
    assert!(parts.identity_refusal().unwrap().reason.contains("virtual generated column v"));
    parts.leaves.clear();
    assert!(parts.identity_refusal().is_some(), "a table of its own");
}

//! Against a real server: each state a database may be in.

use std::time::Duration;

use tokio::task::JoinSet;

use super::*;
use crate::config::{Actions, BodyForm, GroupBy, MessageForm, Numbers, RetryConfig, SuccessRule, TablePattern};
use crate::demo::cluster::{Cluster, ClusterOptions};
use crate::source::address::PgAddress;
use crate::source::connection;

/// A server, a superuser's session and the tasks that drive sessions.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) client: Client,
    drivers: JoinSet<()>,
}

impl Stage {
    pub(crate) async fn new(settings: &[(&str, &str)], sql: &str) -> Self {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let cluster = Cluster::start(&ClusterOptions { settings, ..ClusterOptions::default() }).unwrap();
        let mut drivers = JoinSet::new();
        let client = session(&mut drivers, &cluster.url("postgres")).await;
        client.batch_execute(sql).await.unwrap();
        Self { cluster, client, drivers }
    }

    pub(crate) async fn session(&mut self, url: &str) -> Client {
        session(&mut self.drivers, url).await
    }

    pub(crate) fn source(&self) -> SourceConfig {
        SourceConfig {
            name: "app".to_owned(),
            url: PgAddress::parse(&self.cluster.url("postgres")).unwrap(),
            slot: "walhook_app".to_owned(),
            publication: "walhook_app".to_owned(),
            create: true,
            heartbeat: None,
        }
    }

    async fn prepare(&self, sinks: &[SinkConfig]) -> Result<Prepared, PrepareError> {
        prepare(&self.client, &self.source(), sinks).await
    }

    async fn published(&self) -> Vec<String> {
        let rows =
            self.client.query("select schemaname || '.' || tablename from pg_publication_tables order by 1", &[]);
        rows.await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    async fn count(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }
}

async fn session(drivers: &mut JoinSet<()>, url: &str) -> Client {
    let (client, driver) = connection::sql(&PgAddress::parse(url).unwrap()).await.unwrap();
    drivers.spawn(async move {
        let _ended = driver.await;
    });
    client
}

pub(crate) fn sink(name: &str, tables: &[&str]) -> SinkConfig {
    let pattern = |text: &&str| {
        let (schema, table) = text.split_once('.').unwrap();
        TablePattern { schema: schema.to_owned(), table: table.to_owned() }
    };
    SinkConfig {
        name: name.to_owned(),
        source: "app".to_owned(),
        endpoint: url::Url::parse("http://127.0.0.1:9/").unwrap(),
        tables: tables.iter().map(pattern).collect(),
        actions: Actions { insert: true, update: true, delete: true },
        message: MessageForm::Change,
        body: BodyForm::Batch,
        batch_size: 1,
        batch_bytes: 1 << 20,
        batch_timeout: Duration::from_millis(10),
        request_timeout: Duration::from_secs(30),
        max_ack_pending: 10_000,
        max_in_flight: 32,
        success: SuccessRule::Any2xx,
        group_by: GroupBy::PrimaryKey,
        group_by_table: Vec::new(),
        headers: http::HeaderMap::new(),
        signing_secrets: Vec::new(),
        numbers: Numbers::Json,
        paused: false,
        retry: RetryConfig { initial: Duration::from_secs(1), max: Duration::from_secs(180) },
    }
}

fn faults(result: Result<Prepared, PrepareError>) -> Vec<PlanFault> {
    match result {
        Err(PrepareError::Config(faults)) => faults,
        other => panic!("not a fault of the configuration: {other:?}"),
    }
}

fn lasting(result: Result<Prepared, PrepareError>) -> (String, String) {
    match result {
        Err(PrepareError::Lasting { what, advice }) => (what, advice),
        other => panic!("not a lasting error: {other:?}"),
    }
}

const ORDERS: &str = "create table orders (id int primary key, customer_id int, note text);";

#[tokio::test]
async fn preparing_twice_makes_publication_and_slot_once() {
    let stage = Stage::new(&[], ORDERS).await;
    let first = stage.prepare(&[sink("orders", &["public.orders"])]).await.unwrap();
    assert!(first.created && first.troubles.is_empty() && first.confirmed >= first.restart, "{first:?}");
    assert_eq!(first.tables[0].primary_key, ["id"]);
    let second = stage.prepare(&[sink("orders", &["public.orders"])]).await.unwrap();
    assert!(!second.created);
    assert_eq!(second.confirmed, first.confirmed);
    assert_eq!(stage.published().await, ["public.orders"]);

    let before = inspect(&stage.client, "walhook_app").await.unwrap().unwrap();
    // What was inserted is written within a moment, by the WAL writer.
    let after = loop {
        heartbeat(&stage.client).await.unwrap();
        let after = inspect(&stage.client, "walhook_app").await.unwrap().unwrap();
        if after.server_lsn > before.server_lsn && after.retained_bytes > before.retained_bytes {
            break after;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(after.wal_status.as_deref(), Some("reserved"));
    assert_eq!(inspect(&stage.client, "nothing").await.unwrap(), None);
}

#[tokio::test]
async fn an_exactly_named_table_without_identity_is_refused_and_its_updates_still_work() {
    let stage = Stage::new(&[], "create table bare (v int); insert into bare values (1)").await;
    let fault = faults(stage.prepare(&[sink("s", &["public.bare"])]).await).remove(0);
    assert_eq!(fault.place, "sink.s.tables");
    assert_eq!(fault.sql.as_deref(), Some("ALTER TABLE \"public\".\"bare\" REPLICA IDENTITY FULL;"));
    assert_eq!(stage.count("select count(*) from pg_publication").await, 0);
    assert_eq!(stage.count("select count(*) from pg_replication_slots").await, 0);

    // By a pattern it is left out, so that its own UPDATE goes on working.
    stage.client.batch_execute(ORDERS).await.unwrap();
    let prepared = stage.prepare(&[sink("s", &["public.*"])]).await.unwrap();
    assert_eq!(stage.published().await, ["public.orders"]);
    assert!(prepared.troubles[0].what.contains("public.bare has no primary key"), "{:?}", prepared.troubles);
    stage.client.batch_execute("update bare set v = 2").await.unwrap();

    // What the fault advises mends it.
    stage.client.batch_execute(&fault.sql.unwrap()).await.unwrap();
    let prepared = stage.prepare(&[sink("s", &["public.bare", "public.orders"])]).await.unwrap();
    assert_eq!((prepared.tables.len(), prepared.troubles.len()), (2, 0));
    stage.client.batch_execute("update bare set v = 3").await.unwrap();
}

#[tokio::test]
async fn sinks_of_inserts_only_publish_inserts_only_and_need_no_identity() {
    let stage = Stage::new(&[], "create table bare (v int); insert into bare values (1)").await;
    let mut inserts = sink("s", &["public.bare"]);
    inserts.actions = Actions { insert: true, update: false, delete: false };
    stage.prepare(&[inserts.clone()]).await.unwrap();
    stage.client.batch_execute("update bare set v = 2; delete from bare").await.unwrap();

    // Another sink that takes updates widens the publication, once the table is safe.
    stage.client.batch_execute("alter table bare replica identity full").await.unwrap();
    stage.prepare(&[inserts, sink("all", &["public.bare"])]).await.unwrap();
    let widened = "select count(*) from pg_publication where pubinsert and pubupdate and pubdelete and not pubtruncate";
    assert_eq!(stage.count(widened).await, 1);
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
    let reasons: Vec<String> =
        faults(stage.prepare(&[sink("s", &names)]).await).into_iter().map(|fault| fault.reason).collect();
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
async fn every_fault_of_the_configuration_comes_in_one_go() {
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
    let found: Vec<String> = faults(stage.prepare(&sinks).await).iter().map(PlanFault::to_string).collect();
    let expected = [
        "sink.typo.tables: the database has no table public.oders (did you mean public.orders?)",
        "sink.grouped.group_by: the old rows of public.orders's updates and deletes do not carry group_by customer_id, so \
         their group would be unknown: ALTER TABLE \"public\".\"orders\" REPLICA IDENTITY FULL;",
        "sink.unknown.group_by: public.orders has no column shop to group by",
        "sink.unknown.group_by: the old rows of public.swapped's updates and deletes do not carry its primary key's id, so \
         their group would be unknown: ALTER TABLE \"public\".\"swapped\" REPLICA IDENTITY DEFAULT;",
        "sink.swap.group_by: the old rows of public.swapped's updates and deletes do not carry its primary key's id, so \
         their group would be unknown: ALTER TABLE \"public\".\"swapped\" REPLICA IDENTITY DEFAULT;",
    ];
    assert_eq!(found, expected);
    // Inserts carry every column.
    let mut inserts = sinks[1].clone();
    inserts.actions = Actions { insert: true, update: false, delete: false };
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
    let fault = faults(stage.prepare(&[sink("s", &["public.parts_1"])]).await).remove(0);
    assert!(fault.reason.contains("its changes come as public.parts, so name that"), "{fault}");

    let prepared = stage.prepare(&[sink("s", &["public.*"])]).await.unwrap();
    assert_eq!(stage.published().await, ["public.parts"]);
    assert_eq!(prepared.tables[0].leaves.len(), 1);
    // A root is as safe as its partitions: the ALTER TABLE names the partition, and with it the root is taken.
    let trouble = &prepared.troubles[0];
    assert_eq!(trouble.advice, "ALTER TABLE \"public\".\"loose_1\" REPLICA IDENTITY FULL;");
    stage.client.batch_execute(&trouble.advice).await.unwrap();
    let maintained = maintain(&stage.client, &stage.source(), &[sink("s", &["public.*"])]).await.unwrap();
    assert_eq!(maintained.added[0].table, "loose");
    assert!(maintained.troubles[0].what.contains("partitions made from now on"), "{:?}", maintained.troubles);
    stage.client.batch_execute("update loose set v = 2; update parts set v = 2").await.unwrap();
}

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
    let maintained = maintain(&stage.client, &stage.source(), &sinks).await.unwrap();
    assert_eq!(maintained.added.iter().map(TableName::to_string).collect::<Vec<_>>(), ["public.later"]);
    assert_eq!(maintained.troubles.len(), 1);
    stage.client.batch_execute("update bare set v = 2").await.unwrap();
    let again = maintain(&stage.client, &stage.source(), &sinks).await.unwrap();
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
    stage.client.batch_execute(all).await.unwrap();
    assert!(!stage.prepare(&[sink("s", &["public.orders"])]).await.unwrap().created);
    let parts = "create table parts (id int primary key) partition by range (id);
                 create table parts_1 partition of parts for values from (0) to (10)";
    stage.client.batch_execute(parts).await.unwrap();
    let (what, advice) = lasting(stage.prepare(&[sink("s", &["public.parts"])]).await);
    assert!(what.contains("does not hold what the sinks need"), "{what}");
    assert_eq!(advice, "ALTER PUBLICATION \"walhook_app\" SET (publish_via_partition_root = true);");
    stage.client.batch_execute(&advice).await.unwrap();
    stage.prepare(&[sink("s", &["public.parts"])]).await.unwrap();
}

#[tokio::test]
async fn create_false_changes_nothing_and_gives_the_sql() {
    let stage = Stage::new(&[], ORDERS).await;
    let source = SourceConfig { create: false, ..stage.source() };
    let sinks = [sink("s", &["public.orders"])];
    let (_, publication) = lasting(prepare(&stage.client, &source, &sinks).await);
    assert_eq!(stage.count("select count(*) from pg_publication").await, 0);
    stage.client.batch_execute(&publication).await.unwrap();
    let (what, slot) = lasting(prepare(&stage.client, &source, &sinks).await);
    assert!(what.contains("the slot walhook_app does not exist"), "{what}");
    stage.client.batch_execute(&slot).await.unwrap();
    let prepared = prepare(&stage.client, &source, &sinks).await.unwrap();
    assert!(!prepared.created && prepared.tables.len() == 1);

    stage.client.batch_execute("create table later (id int primary key)").await.unwrap();
    let wide = [sink("s", &["public.*"])];
    let maintained = maintain(&stage.client, &source, &wide).await.unwrap();
    assert!(maintained.added.is_empty());
    assert!(maintained.troubles[0].what.contains("public.later is not in the publication"));
    assert_eq!(prepare(&stage.client, &source, &wide).await.unwrap().tables.len(), 1);
}

#[tokio::test]
async fn slots_that_cannot_be_ours_are_refused() {
    let mut stage = Stage::new(&[], ORDERS).await;
    let sinks = [sink("s", &["public.orders"])];
    stage
        .client
        .batch_execute("select pg_create_logical_replication_slot('walhook_app', 'test_decoding')")
        .await
        .unwrap();
    assert!(lasting(stage.prepare(&sinks).await).0.contains("output plugin test_decoding, not pgoutput"));
    stage.client.batch_execute("select pg_drop_replication_slot('walhook_app')").await.unwrap();

    stage.client.batch_execute("select pg_create_physical_replication_slot('walhook_app')").await.unwrap();
    assert!(lasting(stage.prepare(&sinks).await).0.contains("physical"));
    stage.client.batch_execute("select pg_drop_replication_slot('walhook_app')").await.unwrap();

    stage.client.batch_execute("create database other").await.unwrap();
    let other = stage.session(&stage.cluster.url("other")).await;
    other.batch_execute("select pg_create_logical_replication_slot('walhook_app', 'pgoutput')").await.unwrap();
    assert!(lasting(stage.prepare(&sinks).await).0.contains("belongs to the database other, not postgres"));
    other.batch_execute("select pg_drop_replication_slot('walhook_app')").await.unwrap();
    assert_eq!(stage.count("select count(*) from pg_publication").await, 0, "nothing is changed before a refusal");

    stage.prepare(&sinks).await.unwrap();
    stage.client.batch_execute("drop publication walhook_app").await.unwrap();
    let (what, advice) = lasting(stage.prepare(&sinks).await);
    assert!(what.contains("the publication walhook_app does not"), "{what}");
    assert!(advice.starts_with("SELECT pg_drop_replication_slot('walhook_app');"), "{advice}");
    assert!(matches!(maintain(&stage.client, &stage.source(), &sinks).await, Err(PrepareError::Lasting { .. })));
}

#[tokio::test]
async fn a_slot_that_another_session_reads_is_busy() {
    let stage = Stage::new(&[], ORDERS).await;
    let sinks = [sink("s", &["public.orders"])];
    stage.prepare(&sinks).await.unwrap();
    let mut reader = std::process::Command::new(stage.cluster.bin().join("pg_recvlogical"))
        .args(["-d", &format!("{}?application_name=reader", stage.cluster.url("postgres")), "-S", "walhook_app"])
        .args(["--start", "-f", "/dev/null", "-o", "proto_version=1", "-o", "publication_names=walhook_app"])
        .spawn()
        .unwrap();
    let busy = loop {
        match stage.prepare(&sinks).await {
            Err(PrepareError::Busy { pid: Some(_), application_name }) => break application_name,
            Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(busy.as_deref(), Some("reader"));
    reader.kill().unwrap();
    reader.wait().unwrap();
}

#[tokio::test]
async fn a_slot_that_the_server_gave_up_is_lost() {
    let settings = [("max_slot_wal_keep_size", "1MB"), ("min_wal_size", "2MB"), ("max_wal_size", "4MB")];
    let mut options = ClusterOptions { initdb_args: vec!["--wal-segsize=1".to_owned()], ..ClusterOptions::default() };
    options.settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let cluster = Cluster::start(&options).unwrap();
    let mut drivers = JoinSet::new();
    let client = session(&mut drivers, &cluster.url("postgres")).await;
    client.batch_execute(ORDERS).await.unwrap();
    let stage = Stage { cluster, client, drivers };
    let sinks = [sink("s", &["public.orders"])];
    stage.prepare(&sinks).await.unwrap();
    for _ in 0..8 {
        stage.client.batch_execute("create table junk (); drop table junk; select pg_switch_wal()").await.unwrap();
    }
    stage.client.batch_execute("checkpoint").await.unwrap();
    let facts = inspect(&stage.client, "walhook_app").await.unwrap().unwrap();
    assert!(facts.is_lost(), "{facts:?}");
    let (what, advice) = lasting(stage.prepare(&sinks).await);
    assert!(what.contains("has given up the slot walhook_app"), "{what}");
    assert!(advice.contains("pg_drop_replication_slot('walhook_app')") && advice.contains("backfill"), "{advice}");
}

#[tokio::test]
async fn missing_privileges_name_the_grants_which_then_suffice() {
    let mut stage = Stage::new(&[], &format!("create role app login; {ORDERS}")).await;
    let url = stage.cluster.url("postgres").replace("postgres@", "app@");
    let source = SourceConfig { url: PgAddress::parse(&url).unwrap(), ..stage.source() };
    let sinks = [sink("s", &["public.orders"])];
    let app = stage.session(&url).await;
    let (what, grant) = lasting(prepare(&app, &source, &sinks).await);
    assert_eq!(
        (what.as_str(), grant.as_str()),
        ("the role app may not use replication slots", "ALTER ROLE \"app\" REPLICATION;")
    );
    stage.client.batch_execute(&grant).await.unwrap();
    let (what, advice) = lasting(prepare(&app, &source, &sinks).await);
    assert!(what.contains("permission denied"), "{what}");
    let (grants, by_hand) = advice.split_once("or, as their owner").unwrap();
    assert!(grants.contains("GRANT CREATE ON DATABASE \"postgres\" TO \"app\";"), "{grants}");
    assert!(by_hand.contains("CREATE PUBLICATION \"walhook_app\""), "{by_hand}");
    stage.client.batch_execute(grants).await.unwrap();
    assert!(prepare(&app, &source, &sinks).await.unwrap().created);

    // A table of another role that a pattern matches is left out, and does not keep the rest.
    stage.client.batch_execute("create table theirs (id int primary key)").await.unwrap();
    let maintained = maintain(&app, &source, &[sink("s", &["public.*"])]).await.unwrap();
    assert!(maintained.troubles[0].what.contains("public.theirs belongs to another role"), "{maintained:?}");
}

#[tokio::test]
async fn a_server_without_logical_wal_is_refused_with_the_setting() {
    let stage = Stage::new(&[("wal_level", "replica")], ORDERS).await;
    let (what, advice) = lasting(stage.prepare(&[sink("s", &["public.orders"])]).await);
    assert_eq!(what, "wal_level is replica; logical replication needs logical");
    assert!(advice.starts_with("ALTER SYSTEM SET wal_level = 'logical';"), "{advice}");
}

#[tokio::test]
async fn no_free_slot_says_which_setting() {
    let stage = Stage::new(&[("max_replication_slots", "0")], ORDERS).await;
    let (what, advice) = lasting(stage.prepare(&[sink("s", &["public.orders"])]).await);
    assert!(what.contains("max_replication_slots") && advice.contains("max_replication_slots"), "{what}: {advice}");
}

#[tokio::test]
async fn making_a_slot_waits_for_old_transactions_and_leaves_nothing_when_given_up() {
    let mut stage = Stage::new(&[], ORDERS).await;
    let url = stage.cluster.url("postgres");
    let old = stage.session(&url).await;
    let eye = stage.session(&url).await;
    old.batch_execute("begin; insert into orders values (1)").await.unwrap();
    let waiting =
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%pg_create_logical%'";
    {
        let sinks = [sink("s", &["public.orders"])];
        let source = stage.source();
        let mut preparing = std::pin::pin!(prepare(&stage.client, &source, &sinks));
        let watcher = async {
            while eye.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            done = &mut preparing => panic!("it did not wait: {done:?}"),
            () = watcher => {}
        }
    }
    // The backend that waited notices that its client is gone, and its slot goes with it, though `old` still runs.
    while stage.count("select count(*) from pg_replication_slots").await > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    old.batch_execute("commit").await.unwrap();
    assert!(stage.prepare(&[sink("s", &["public.orders"])]).await.unwrap().created);
}

#[tokio::test]
async fn two_at_once_agree() {
    let mut stage = Stage::new(&[], ORDERS).await;
    let other = stage.session(&stage.cluster.url("postgres")).await;
    let source = stage.source();
    let sinks = [sink("s", &["public.orders"])];
    let (first, second) = tokio::join!(prepare(&stage.client, &source, &sinks), prepare(&other, &source, &sinks));
    let fine = |result: &Result<Prepared, PrepareError>| matches!(result, Ok(_) | Err(PrepareError::Busy { .. }));
    assert!(fine(&first) && fine(&second), "{first:?} {second:?}");
    assert_eq!(stage.count("select count(*) from pg_replication_slots").await, 1);
}

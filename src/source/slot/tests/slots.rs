//! The states a slot may be in, and how one is made.

use super::*;
use crate::source::advice::tests::sql_of;

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
    let mut after = before.clone();
    until("the server to be farther, and to keep more", async || {
        heartbeat(&stage.client).await.unwrap();
        after = inspect(&stage.client, "walhook_app").await.unwrap().unwrap();
        after.server_lsn > before.server_lsn && after.retained_bytes > before.retained_bytes
    })
    .await;
    assert_eq!(after.wal_status.as_deref(), Some("reserved"));
    assert_eq!(inspect(&stage.client, "nothing").await.unwrap(), None);
}

#[tokio::test]
async fn slots_that_cannot_be_ours_are_refused() {
    let mut stage = Stage::new(&[], ORDERS).await;
    let sinks = [sink("s", &["public.orders"])];
    stage.own.batch_execute("select pg_create_logical_replication_slot('walhook_app', 'test_decoding')").await.unwrap();
    assert!(lasting(stage.prepare(&sinks).await).0.contains("output plugin test_decoding, not pgoutput"));
    stage.own.batch_execute("select pg_drop_replication_slot('walhook_app')").await.unwrap();

    stage.own.batch_execute("select pg_create_physical_replication_slot('walhook_app')").await.unwrap();
    assert!(lasting(stage.prepare(&sinks).await).0.contains("physical"));
    stage.own.batch_execute("select pg_drop_replication_slot('walhook_app')").await.unwrap();

    stage.admin.batch_execute("create database other").await.unwrap();
    let other = stage.session(&stage.cluster.url("other")).await;
    other.batch_execute("select pg_create_logical_replication_slot('walhook_app', 'pgoutput')").await.unwrap();
    assert!(lasting(stage.prepare(&sinks).await).0.contains("belongs to the database other, not postgres"));
    other.batch_execute("select pg_drop_replication_slot('walhook_app')").await.unwrap();
    assert_eq!(stage.count("select count(*) from pg_publication").await, 0, "nothing is changed before a refusal");

    stage.prepare(&sinks).await.unwrap();
    stage.admin.batch_execute("drop publication walhook_app").await.unwrap();
    // Whose it is only the store knows.
    let Err(PrepareError::Unpublished { what, advice }) = stage.prepare(&sinks).await else { panic!("it is gone") };
    assert!(what.contains("the publication walhook_app does not"), "{what}");
    assert!(!advice.contains("pg_drop_replication_slot") && advice.contains("another `slot`"), "{advice}");
    assert!(advice.starts_with("if `publication` is misspelt"), "what loses nothing comes first: {advice}");
    assert!(matches!(
        maintain(site(&stage.own, &stage.source(), &sinks), &mut Learnt::default(), None).await,
        Err(PrepareError::Lasting { .. })
    ));
}

/// Ends with the test, however that ends.
struct Reader(std::process::Child);

impl Drop for Reader {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test]
async fn a_slot_that_another_session_reads_is_busy() {
    let stage = Stage::new(&[], ORDERS).await;
    let sinks = [sink("s", &["public.orders"])];
    stage.prepare(&sinks).await.unwrap();
    let mut reader = std::process::Command::new(stage.cluster.bin().join("pg_recvlogical"));
    let reader = reader
        .args(["-d", &format!("{}?application_name=reader", stage.cluster.url("postgres")), "-S", "walhook_app"])
        .args(["--start", "-f", "/dev/null", "-o", "proto_version=1", "-o", "publication_names=walhook_app"])
        .spawn();
    let _reader = Reader(reader.unwrap());
    let mut busy = None;
    until("the reader to be in the way", async || match stage.prepare(&sinks).await {
        Err(PrepareError::Busy { pid: Some(_), application_name }) => {
            busy = application_name;
            true
        }
        Ok(_) => false,
        Err(error) => panic!("{error}"),
    })
    .await;
    assert_eq!(busy.as_deref(), Some("reader"));
}

#[tokio::test]
async fn a_slot_that_the_server_gave_up_is_lost() {
    let settings = [("max_slot_wal_keep_size", "1MB"), ("min_wal_size", "2MB"), ("max_wal_size", "4MB")];
    let mut options = ClusterOptions { initdb_args: vec!["--wal-segsize=1".to_owned()], ..ClusterOptions::default() };
    options.settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let cluster = Cluster::start(&options).unwrap();
    let mut drivers = JoinSet::new();
    let client = session(&mut drivers, &cluster.url_as(Role::Owner, "postgres")).await;
    client.batch_execute(ORDERS).await.unwrap();
    let admin = session(&mut drivers, &cluster.url_as(Role::Superuser, "postgres")).await;
    let own = session(&mut drivers, &cluster.url("postgres")).await;
    let stage = Stage { cluster, client, admin, own, drivers };
    let sinks = [sink("s", &["public.orders"])];
    stage.prepare(&sinks).await.unwrap();
    for _ in 0..8 {
        stage.admin.batch_execute("create table junk (); drop table junk; select pg_switch_wal()").await.unwrap();
    }
    stage.admin.batch_execute("checkpoint").await.unwrap();
    let facts = inspect(&stage.client, "walhook_app").await.unwrap().unwrap();
    assert!(facts.is_lost(), "{facts:?}");
    let Err(PrepareError::Lost(lost)) = stage.prepare(&sinks).await else { panic!("it is lost") };
    let Trouble { what, advice } = &lost.trouble;
    assert_eq!((lost.why.as_str(), lost.confirmed), ("wal_removed", facts.confirmed));
    assert!(what.contains("has given up the slot walhook_app"), "{what}");
    assert!(advice.contains("accept-gap") && advice.contains("backfill") && !advice.contains("DROP"), "{advice}");

    // In its place another is made; one that can be read is left alone.
    let source = stage.source();
    let anew = prepare_anew(site(&stage.own, &source, &sinks), true, &|_| {}, None).await.unwrap();
    assert!(anew.created && Some(anew.confirmed) > facts.confirmed, "{anew:?}");
    assert!(!prepare_anew(site(&stage.own, &source, &sinks), false, &|_| {}, None).await.unwrap().created);
}

#[tokio::test]
async fn pitfall_36_the_age_of_the_catalogue_rows_that_a_slot_holds_is_known_and_warned_of() {
    let stage = Stage::new(&[], ORDERS).await;
    stage.prepare(&[sink("s", &["public.orders"])]).await.unwrap();
    for _ in 0..20 {
        stage.client.batch_execute("select txid_current()").await.unwrap();
    }
    let facts = inspect(&stage.client, "walhook_app").await.unwrap().unwrap();
    assert!(facts.catalog_age >= 20, "{facts:?}");
    assert_eq!(facts.view().catalog_age, facts.catalog_age);
    assert_eq!(facts.warning("walhook_app"), None);
    let old = SlotFacts { catalog_age: 200_000_000, ..facts };
    let trouble = old.warning("walhook_app").unwrap();
    assert!(trouble.what.contains("vacuuming its catalogues for 200000000 transactions"), "{trouble:?}");
}

#[tokio::test]
async fn a_server_without_logical_wal_is_refused_with_the_setting() {
    let stage = Stage::new(&[("wal_level", "replica")], ORDERS).await;
    let (what, advice) = lasting(stage.prepare(&[sink("s", &["public.orders"])]).await);
    assert_eq!(what, "wal_level is replica; logical replication needs logical");
    assert!(advice.contains("ALTER SYSTEM SET wal_level = 'logical';"), "{advice}");
}

#[tokio::test]
async fn pitfall_38_no_free_slot_says_which_setting() {
    let stage = Stage::new(&[("max_replication_slots", "0")], ORDERS).await;
    let (what, advice) = lasting(stage.prepare(&[sink("s", &["public.orders"])]).await);
    assert!(what.contains("max_replication_slots") && advice.contains("max_replication_slots"), "{what}: {advice}");
}

#[tokio::test]
async fn pitfall_37_making_a_slot_waits_for_old_transactions_and_leaves_nothing_when_given_up() {
    let mut stage = Stage::new(&[], ORDERS).await;
    let old = stage.session(&stage.cluster.url_as(Role::Owner, "postgres")).await;
    old.batch_execute("begin; insert into orders values (1)").await.unwrap();
    let waiting =
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%pg_create_logical%'";
    {
        let sinks = [sink("s", &["public.orders"])];
        let source = stage.source();
        let mut preparing = std::pin::pin!(prepare(site(&stage.own, &source, &sinks), &|_| {}, None));
        let watcher = until("the making to wait", async || stage.count(waiting).await > 0);
        tokio::select! {
            done = &mut preparing => panic!("it did not wait: {done:?}"),
            () = watcher => {}
        }
    }
    // The backend that waited notices that its client is gone, and its slot goes with it, though `old` still runs.
    let slots = "select count(*) from pg_replication_slots";
    until("the slot to be gone", async || stage.count(slots).await == 0).await;
    old.batch_execute("commit").await.unwrap();
    assert!(stage.prepare(&[sink("s", &["public.orders"])]).await.unwrap().created);
}

#[tokio::test]
async fn two_at_once_agree() {
    let mut stage = Stage::new(&[], ORDERS).await;
    let other = stage.session(&stage.cluster.url("postgres")).await;
    let source = stage.source();
    let sinks = [sink("s", &["public.orders"])];
    // Until both have found that there is none, nobody makes one.
    stage.admin.batch_execute("begin; lock table pg_publication in share mode").await.unwrap();
    let waiting = "select count(*) from pg_locks where relation = 'pg_publication'::regclass and not granted";
    let freeing = async {
        until("both to make the publication", async || stage.count(waiting).await == 2).await;
        stage.admin.batch_execute("commit").await.unwrap();
    };
    let (first, second, ()) = tokio::join!(
        prepare(site(&stage.own, &source, &sinks), &|_| {}, None),
        prepare(site(&other, &source, &sinks), &|_| {}, None),
        freeing
    );
    let fine = |result: &Result<Prepared, PrepareError>| matches!(result, Ok(_) | Err(PrepareError::Busy { .. }));
    assert!(fine(&first) && fine(&second), "{first:?} {second:?}");
    assert_eq!(stage.count("select count(*) from pg_replication_slots").await, 1);
}

#[tokio::test]
async fn pitfall_37_whom_the_making_of_a_slot_waits_for_is_reported_until_it_is_over() {
    let mut stage = Stage::new(&[], ORDERS).await;
    let url = format!("{}?application_name=nightly", stage.cluster.url_as(Role::Owner, "postgres"));
    let old = stage.session(&url).await;
    old.batch_execute("begin; insert into orders values (1)").await.unwrap();
    let pid: i32 = old.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    let told = std::sync::Mutex::new(Vec::new());
    let report = |trouble| told.lock().unwrap().push(trouble);
    let (source, sinks) = (stage.source(), [sink("s", &["public.orders"])]);
    let freeing = async {
        until("the wait to be reported", async || !told.lock().unwrap().is_empty()).await;
        old.batch_execute("commit").await.unwrap();
    };
    let (prepared, ()) = tokio::join!(prepare(site(&stage.own, &source, &sinks), &report, None), freeing);
    assert!(prepared.unwrap().created);
    let told = told.into_inner().unwrap();
    let Some(Some(trouble)) = told.first() else { panic!("{told:?}") };
    let holder = format!("of backend {pid} (application \"nightly\", idle in transaction, ");
    assert!(trouble.what.contains(&holder), "{trouble:?}");
    let sql = sql_of(&trouble.advice);
    assert!(sql.contains("FROM pg_stat_activity") && sql.contains(&pid.to_string()), "it only looks: {trouble:?}");
    assert_eq!(told.last(), Some(&None));
}

#[tokio::test]
async fn a_wait_that_cannot_be_explained_goes_on() {
    let mut stage = Stage::new(&[], ORDERS).await;
    let hidden = "revoke execute on function pg_blocking_pids(int) from public";
    stage.admin.batch_execute(hidden).await.unwrap();
    let old = stage.session(&stage.cluster.url_as(Role::Owner, "postgres")).await;
    old.batch_execute("begin; insert into orders values (1)").await.unwrap();
    let sinks = [sink("s", &["public.orders"])];
    let asked = "select count(*) from pg_stat_activity where query like '%from unnest(pg_blocking_pids%' and \
                 state = 'idle' and usename = 'walhook'";
    let freeing = async {
        until("the question to be refused", async || stage.count(asked).await > 0).await;
        old.batch_execute("commit").await.unwrap();
    };
    let preparing = async {
        let prepared = stage.prepare(&sinks).await;
        assert!(prepared.unwrap().created);
    };
    tokio::join!(preparing, freeing);
}

#[tokio::test]
async fn pitfall_54_whom_the_slot_waits_for_is_named_though_a_role_may_not_see_more() {
    let mut stage = Stage::new(&[], ORDERS).await;
    let url = format!("{}?application_name=nightly", stage.cluster.url_as(Role::Superuser, "postgres"));
    let old = stage.session(&url).await;
    old.batch_execute("begin; insert into orders values (1)").await.unwrap();
    let pid: i32 = old.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    let told = std::sync::Mutex::new(Vec::new());
    let report = |trouble| told.lock().unwrap().push(trouble);
    let (source, sinks) = (stage.source(), [sink("s", &["public.orders"])]);
    let freeing = async {
        until("the wait to be reported", async || !told.lock().unwrap().is_empty()).await;
        old.batch_execute("commit").await.unwrap();
    };
    let (prepared, ()) = tokio::join!(prepare(site(&stage.own, &source, &sinks), &report, None), freeing);
    assert!(prepared.unwrap().created);
    let told = told.into_inner().unwrap();
    let Some(Some(trouble)) = told.first() else { panic!("{told:?}") };
    let holder = format!("of backend {pid} (application \"nightly\"; pg_read_all_stats shows more)");
    assert!(trouble.what.contains(&holder), "what is hidden is not empty: {trouble:?}");
}

//! Schemas in motion: tables change while their rows do, and while a receiver fails now and then. After each change the daemon
//! streams on, nothing is lost or reordered, and the receiver's copy of a table is the table.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::copy::{acknowledged, wait_same};
use crate::crash::Load;
use crate::daemon::{Config, Daemon, troubles};
use crate::postgres::{Postgres, state, until, until_within};
use crate::receiver::{Keep, Receiver, row_of, unreliable};

const ROWS: i64 = 8;

/// Every change of the tables with the trigger is noted in a table that no sink takes.
const AUDIT: &str = "CREATE SCHEMA hidden; CREATE TABLE hidden.audit (action text, id int, n bigint);
    CREATE FUNCTION hidden.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_OP = 'DELETE' THEN
            INSERT INTO hidden.audit VALUES ('delete', OLD.id, NULL); RETURN OLD;
        END IF;
        INSERT INTO hidden.audit VALUES (lower(TG_OP), NEW.id, NEW.n); RETURN NEW;
    END $$";

fn audited(table: &str) -> String {
    format!(
        "CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION hidden.note();"
    )
}

/// A table of counters with rows.
fn counted(table: &str) -> String {
    format!(
        "CREATE TABLE {table} (id int PRIMARY KEY, n bigint NOT NULL, note text); {}
        INSERT INTO {table} SELECT i, 0, 'first' FROM generate_series(1, {ROWS}) i;",
        audited(table)
    )
}

fn raised(table: &str, round: i64) -> impl Iterator<Item = String> {
    (1..=ROWS).map(move |row| format!("UPDATE {table} SET n = {round} WHERE id = {row} AND n < {round}"))
}

/// A database under load, a daemon and a receiver that fails one request in ten.
struct Motion {
    postgres: Arc<Postgres>,
    receiver: Receiver,
    config: Config,
    daemon: Daemon,
}

impl Motion {
    async fn begin(setup: &str, sink: &str, group_of: impl Fn(&Value) -> String + Send + Sync + 'static) -> Self {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let postgres = Arc::new(Postgres::start());
        postgres.sql(&format!("{AUDIT};{setup}")).await;
        // The rows of the setup are older than the slot.
        postgres.sql("TRUNCATE hidden.audit").await;
        let receiver = Receiver::with(Keep::All, unreliable(seed, 10, &[500, 503, 404], 0..4), group_of).await;
        let config = Config::one_sink(&postgres, &receiver.url(), sink);
        let daemon = Daemon::start(&config).await;
        Self { postgres, receiver, config, daemon }
    }

    /// Runs the statements of each round until the end.
    fn load(&self, statements: impl Fn(i64) -> Vec<String> + Send + 'static) -> Load {
        Load::run(&self.postgres, Duration::ZERO, statements)
    }

    /// Makes the changes one after another, with load between them.
    async fn change(&self, changes: &[&str]) {
        for change in changes {
            self.postgres.sql(change).await;
            let count = self.receiver.message_count() + 60;
            self.receiver.wait("more changes", |receiver| receiver.message_count() >= count).await;
        }
    }

    /// All that was noted has come, and no more, in order.
    async fn wait_complete(&self, takes: impl Fn(&Value) -> bool) {
        let noted = self.postgres.rows("SELECT action, id, n FROM hidden.audit").await;
        let text = |value: Option<String>| value.unwrap_or_default();
        let mut noted: Vec<String> =
            noted.into_iter().map(|row| row.into_iter().map(text).collect::<Vec<_>>().join(" ")).collect();
        noted.sort_unstable();
        until_within(Duration::from_secs(120), "all that was noted", || async {
            let came = acknowledged(&self.receiver).into_iter().filter(&takes);
            let mut came: Vec<String> = came
                .map(|message| {
                    let (action, record) = (message["action"].as_str().unwrap(), &message["record"]);
                    // Only a full identity tells a delete's.
                    let n = if action == "delete" { String::new() } else { record["n"].to_string() };
                    format!("{action} {} {n}", record["id"])
                })
                .collect();
            came.sort_unstable();
            state(came == noted, (came.len(), noted.len()))
        })
        .await;
        self.receiver.ledger(|ledger| {
            ledger.assert_clean();
            assert_eq!(ledger.repeats, 0, "acknowledged messages came again");
        });
    }

    async fn wait_same(&self, table: &str, key: &[&str]) {
        wait_same(&self.postgres, &self.receiver, ("public", table), key).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_25_columns_come_go_and_change_under_load() {
    // Under a full identity a delete has the counter of the insert before it.
    let group_of = |message: &Value| {
        let row = row_of(message);
        if message["action"] == "delete" { row + " deleted" } else { row }
    };
    let motion = Motion::begin(&counted("t"), "", group_of).await;
    let load = motion.load(|round| {
        let (new, old) = (1000 + round, 997 + round);
        let insert = format!("INSERT INTO t (id, n) VALUES ({new}, 0) ON CONFLICT DO NOTHING");
        raised("t", round).chain([insert, format!("DELETE FROM t WHERE id = {old}")]).collect()
    });
    motion
        .change(&[
            "ALTER TABLE t ADD COLUMN extra int",
            "ALTER TABLE t ADD COLUMN given text NOT NULL DEFAULT 'given'",
            "ALTER TABLE t RENAME COLUMN note TO \"No te\"",
            "ALTER TABLE t ALTER COLUMN extra TYPE text",
            "ALTER TABLE t REPLICA IDENTITY FULL",
            "ALTER TABLE t DROP COLUMN \"No te\", ADD COLUMN late jsonb",
            "ALTER TABLE t ALTER COLUMN id TYPE bigint",
            "ALTER TABLE t REPLICA IDENTITY DEFAULT",
            "ALTER TABLE t RENAME COLUMN given TO extra2",
        ])
        .await;
    load.finish().await;
    motion.postgres.sql("UPDATE t SET n = n + 1000000, extra = id::text").await;
    motion.wait_same("t", &["id"]).await;
    motion.wait_complete(|_| true).await;
    assert!(motion.daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_renamed_and_swapped_under_load_come_under_their_names() {
    let motion = Motion::begin(&(counted("a") + &counted("b")), "", row_of).await;
    let load = motion.load(|round| raised("a", round).chain(raised("b", round)).collect());
    let swap =
        "BEGIN; ALTER TABLE a RENAME TO passing; ALTER TABLE b RENAME TO a; ALTER TABLE passing RENAME TO b; COMMIT";
    let away = "ALTER TABLE a RENAME TO c; UPDATE c SET note = 'as c', n = n + 1; ALTER TABLE c RENAME TO a";
    motion.change(&[swap, away, swap]).await;
    load.finish().await;
    motion.postgres.sql("UPDATE a SET n = n + 1000000; UPDATE b SET n = n + 1000000").await;
    motion.wait_same("a", &["id"]).await;
    motion.wait_same("b", &["id"]).await;
    motion.wait_complete(|_| true).await;
    let as_c = |message: &Value| message["metadata"]["table_name"] == "c" && message["record"]["note"] == "as c";
    assert_eq!(
        acknowledged(&motion.receiver).iter().filter(|message| as_c(message)).count(),
        usize::try_from(ROWS).unwrap()
    );
    assert!(motion.daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_anew_within_the_publication_loses_nothing() {
    let motion = Motion::begin(&counted("t"), "tables = [\"public.t\"]", row_of).await;
    // So that whoever migrates may change it too.
    motion.postgres.admin_sql("ALTER PUBLICATION walhook_app OWNER TO app").await;
    let load = motion.load(|round| raised("t", round).collect());
    let anew = format!(
        "BEGIN; LOCK TABLE t; CREATE TEMP TABLE before ON COMMIT DROP AS SELECT id, n FROM t; DROP TABLE t;
        CREATE TABLE t (n bigint NOT NULL, id int PRIMARY KEY, other text DEFAULT 'new'); {}
        ALTER PUBLICATION walhook_app ADD TABLE t; INSERT INTO t (id, n) SELECT id, n + 1 FROM before; COMMIT",
        audited("t")
    );
    motion.change(&[&anew, &anew.replace("'new'", "'newer'")]).await;
    load.finish().await;
    motion.postgres.sql("UPDATE t SET n = n + 1000000").await;
    motion.wait_same("t", &["id"]).await;
    motion.wait_complete(|_| true).await;
    let (_, body) = motion.daemon.ready().await.unwrap();
    assert!(!troubles(&body).contains("not captured"), "nothing was missed: {body}");
    assert!(motion.daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_anew_beside_the_publication_is_published_again_and_its_gap_is_said() {
    let motion = Motion::begin(&counted("t"), "tables = [\"public.t\"]", row_of).await;
    let load = motion.load(|round| raised("t", round).collect());
    motion.change(&["UPDATE t SET note = 'old', n = n + 1"]).await;
    let anew = "BEGIN; LOCK TABLE t; CREATE TEMP TABLE before ON COMMIT DROP AS SELECT id, n FROM t; DROP TABLE t;
        CREATE TABLE t (id int PRIMARY KEY, n bigint NOT NULL);
        INSERT INTO t (id, n) SELECT id, n + 1 FROM before; COMMIT";
    motion.postgres.sql(anew).await;
    until_within(Duration::from_secs(90), "the new table to be published", || async {
        let tables = motion.postgres.rows("SELECT tablename FROM pg_publication_tables").await;
        state(tables.iter().flatten().flatten().any(|table| table == "t"), tables)
    })
    .await;
    until("the gap to be said", || async {
        let (_, body) = motion.daemon.ready().await.unwrap();
        state(troubles(&body).contains("public.t") && troubles(&body).contains("were not captured"), body)
    })
    .await;
    load.finish().await;
    motion.postgres.sql("UPDATE t SET n = n + 1000000").await;
    motion.wait_same("t", &["id"]).await;
    motion.receiver.ledger(|ledger| ledger.assert_clean());
    assert!(motion.daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_08_partitions_move_and_rows_move_between_them_under_load() {
    let setup = format!(
        "CREATE TABLE t (id int, bucket int, n bigint, PRIMARY KEY (id, bucket)) PARTITION BY LIST (bucket);
        CREATE TABLE t_0 PARTITION OF t FOR VALUES IN (0); CREATE TABLE t_1 PARTITION OF t FOR VALUES IN (1);
        CREATE TABLE t_2 (LIKE t INCLUDING ALL); {}
        INSERT INTO t SELECT i, 0, 0 FROM generate_series(1, {ROWS}) i",
        audited("t")
    );
    // A row in another bucket has another key.
    let group_of = |message: &Value| format!("{}/{}", message["record"]["id"], message["record"]["bucket"]);
    let motion = Motion::begin(&setup, "tables = [\"public.t\"]", group_of).await;
    let load = motion.load(|round| {
        let (even, odd) = (round * 2, round * 2 + 1);
        let moved = format!("UPDATE t SET bucket = 1 - bucket, n = {odd} WHERE id % 3 = {} AND n < {odd}", round % 3);
        raised("t", even).chain([moved + " AND bucket < 2"]).collect()
    });
    motion
        .change(&[
            "ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES IN (2)",
            "INSERT INTO t VALUES (99, 2, 0); UPDATE t SET n = n + 1 WHERE bucket = 2",
            "ALTER TABLE t DETACH PARTITION t_1; ALTER TABLE t ATTACH PARTITION t_1 FOR VALUES IN (1)",
            "ALTER TABLE t ADD COLUMN extra text DEFAULT 'x'",
            "CREATE TABLE t_3 PARTITION OF t FOR VALUES IN (3); INSERT INTO t VALUES (98, 3, 0)",
            "UPDATE t SET bucket = 2, n = n + 1 WHERE id = 98",
        ])
        .await;
    load.finish().await;
    motion.postgres.sql("UPDATE t SET n = n + 1000000").await;
    motion.wait_same("t", &["id", "bucket"]).await;
    motion.wait_complete(|_| true).await;
    assert!(motion.daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_added_to_and_taken_from_the_config_while_changes_flow() {
    let setup = counted("a") + &counted("b").replace(&audited("b"), "");
    let mut motion = Motion::begin(&setup, "tables = [\"public.a\"]", row_of).await;
    let load = motion.load(|round| raised("a", round).chain(raised("b", round)).collect());
    let text = std::fs::read_to_string(motion.config.path()).unwrap();
    let both = text.replace("\"public.a\"", "\"public.a\", \"public.b\"");
    for (config, table) in [(&both, "b"), (&text, "a"), (&both, "b")] {
        motion.change(&["SELECT 1"]).await;
        motion.config.rewrite(config);
        assert!(motion.daemon.sigterm().await.success());
        motion.receiver.ledger(|ledger| ledger.new_run());
        motion.daemon = Daemon::start(&motion.config).await;
        let before = motion.receiver.messages().len();
        let of_table = |message: &Value| message["metadata"]["table_name"] == table;
        motion.receiver.wait("the table", |receiver| receiver.messages()[before..].iter().any(of_table)).await;
    }
    load.finish().await;
    motion.postgres.sql("UPDATE a SET n = n + 1000000; UPDATE b SET n = n + 1000000").await;
    motion.wait_same("a", &["id"]).await;
    motion.wait_same("b", &["id"]).await;
    // The one that was there all the time has all of its changes.
    motion.wait_complete(|message| message["metadata"]["table_name"] == "a").await;
    assert!(motion.daemon.sigterm().await.success());
}

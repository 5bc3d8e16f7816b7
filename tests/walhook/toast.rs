//! `unchanged_toast = "fetch"`: what Postgres left out is read from the table, and whoever cannot be helped goes without.

use serde_json::{Value, json};

use crate::daemon::{Config, Daemon};
use crate::postgres::{Postgres, state, until};
use crate::receiver::{Receiver, Reply, Request};

const DOCS: &str = "CREATE TABLE docs (id int PRIMARY KEY, title text, body text);
    ALTER TABLE docs ALTER body SET STORAGE EXTERNAL;
    INSERT INTO docs SELECT i, 'a', repeat(i::text || 'x', 5000) FROM generate_series(1, 20) i";
const FETCH: &str = "unchanged_toast = \"fetch\"";

struct Case {
    postgres: Postgres,
    receiver: Receiver,
    config: Config,
    daemon: Daemon,
}

async fn begin(setup: &str, sink: &str) -> Case {
    let postgres = Postgres::start();
    postgres.sql(setup).await;
    let receiver = Receiver::start().await;
    let text = Config::source(&postgres)
        + "[limits]\nmax_message = \"1MiB\"\n"
        + &Config::sink("orders", &receiver.url(), &format!("{FETCH}\n{sink}"));
    let config = Config::new(&text);
    let daemon = Daemon::start(&config).await;
    Case { postgres, receiver, config, daemon }
}

impl Case {
    /// So many messages had this result.
    async fn wait_result(&self, result: &str, count: f64) {
        until(&format!("{count} messages with the result {result}"), || async {
            let metrics = self.daemon.metrics().await;
            let of = |result| metrics.sum("walhook_sink_toast_fetches_total", &[("result", result)]);
            let all = [
                "filled",
                "row_gone",
                "table_gone",
                "no_key",
                "denied",
                "too_large",
                "timeout",
                "unavailable",
                "failed",
            ];
            state(of(result) == Some(count), all.map(|result| (result, of(result))))
        })
        .await;
    }

    /// The one message whose title is this.
    async fn titled(&self, title: &str) -> Value {
        let has = |message: &Value| message["record"]["title"] == title;
        self.receiver.wait(title, |receiver| receiver.messages().iter().any(has)).await;
        self.receiver.messages().into_iter().find(has).unwrap()
    }

    async fn restart(self) -> Self {
        let Self { postgres, receiver, config, daemon } = self;
        daemon.kill9();
        receiver.abandoned().await;
        receiver.ledger(|ledger| ledger.new_run());
        receiver.script(|_| Reply::status(200));
        let daemon = Daemon::start(&config).await;
        Self { postgres, receiver, config, daemon }
    }
}

#[track_caller]
fn assert_left_out(message: &Value) {
    assert_eq!(message["record"].get("body"), None, "{message}");
    assert_eq!(message["metadata"]["unchanged"], json!(["body"]));
    assert_eq!(message["metadata"].get("fetched"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_01_fetch_fills_single_messages_and_batches() {
    for sink in
        ["body = \"single\"", "batch_size = 7\nbatch_timeout = \"200ms\"", "message = \"row\"\nbody = \"array\""]
    {
        let case = begin(DOCS, sink).await;
        case.postgres.sql("UPDATE docs SET title = 'b'").await;
        let messages = case.receiver.wait_messages(20).await;
        for message in messages {
            let id = message["record"]["id"].as_i64().unwrap();
            assert_eq!(
                message["record"],
                json!({"id": id, "title": "b", "body": format!("{id}x").repeat(5000)}),
                "{sink}"
            );
            assert_eq!(message["metadata"]["fetched"], json!(["body"]));
            assert_eq!(message["metadata"].get("unchanged"), None);
            if let Some(changes) = message.get("changes") {
                assert_eq!(changes, &Value::Null, "what it was before is not known by that");
            }
        }
        case.wait_result("filled", 20.0).await;
        case.receiver.ledger(|ledger| ledger.assert_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_01_fetch_gives_the_values_that_the_stream_gives() {
    let setup = r#"CREATE SCHEMA "We ird"; CREATE TYPE pair AS (a int8, b text);
        CREATE TABLE "We ird"."Ta""ble'" ("Key ""1" int8, k2 timestamptz, "k'3" text, k4 bytea, k5 numeric, note text,
            j jsonb, raw json, ns numeric[], ps pair[], by bytea, c char(9000), n text, PRIMARY KEY ("k'3", "Key ""1", k2, k4, k5))"#;
    let columns = ["j", "raw", "ns", "ps", "by", "c", "n"];
    let external: Vec<String> = columns
        .iter()
        .map(|column| format!(r#"ALTER TABLE "We ird"."Ta""ble'" ALTER {column} SET STORAGE EXTERNAL"#))
        .collect();
    for numbers in ["json", "string"] {
        let sink = format!("tables = ['\"We ird\".*']\nnumbers = \"{numbers}\"\ngroup_by = \"table\"");
        let case = begin(&format!("{setup}; {}", external.join(";")), &sink).await;
        let insert = r#"INSERT INTO "We ird"."Ta""ble'" SELECT 9007199254740993, '2024-02-29 12:00:00.5+09', E'it''s \\ "k"\n', '\x00ff', 1.50,
                'a', jsonb_build_object('big', 12345678901234567890.10, 'text', repeat('é"\', 2000)),
                ('{"b": 1,  "a": "' || repeat('x', 5000) || '", "a": 1.50}')::json,
                array_fill(12345678901234567890.10::numeric, ARRAY[500]), array_fill(ROW(9007199254740993, 'x, "y"')::pair, ARRAY[200]),
                decode(repeat('00ff', 3000), 'hex'), 'padded', repeat('z', 5000)"#;
        case.postgres.sql(insert).await;
        case.postgres.sql(r#"UPDATE "We ird"."Ta""ble'" SET note = 'b'"#).await;
        case.receiver.wait_messages(2).await;
        let messages = case.receiver.messages();
        let mut expected = messages[0]["record"].clone();
        expected["note"] = json!("b");
        let fetched: Vec<&str> =
            messages[1]["metadata"]["fetched"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        assert!(fetched.len() >= 6, "{fetched:?} are not all that were left out");
        assert_eq!(messages[1]["record"], expected, "{numbers}");
        assert_eq!(messages[1]["metadata"].get("unchanged"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_01_fetch_goes_without_where_the_row_is_not_to_be_found() {
    let case = begin(DOCS, "").await;
    case.postgres
        .sql("BEGIN; UPDATE docs SET title = 'deleted' WHERE id = 1; DELETE FROM docs WHERE id = 1; COMMIT")
        .await;
    assert_left_out(&case.titled("deleted").await);
    case.wait_result("row_gone", 1.0).await;
    case.postgres.sql("BEGIN; UPDATE docs SET title = 'moved' WHERE id = 2; UPDATE docs SET id = 200, title = 'there' WHERE id = 2; COMMIT").await;
    assert_left_out(&case.titled("moved").await);
    assert_eq!(case.titled("there").await["metadata"]["fetched"], json!(["body"]), "under its new key it is found");
    case.wait_result("row_gone", 2.0).await;
    case.postgres.sql("BEGIN; UPDATE docs SET title = 'retyped' WHERE id = 3; ALTER TABLE docs ALTER id TYPE uuid USING gen_random_uuid(); COMMIT").await;
    assert_left_out(&case.titled("retyped").await);
    case.wait_result("failed", 1.0).await;
    case.postgres
        .sql("BEGIN; UPDATE docs SET title = 'column' WHERE title = 'there'; ALTER TABLE docs DROP body; COMMIT")
        .await;
    assert_left_out(&case.titled("column").await);
    case.wait_result("table_gone", 1.0).await;
    case.receiver.ledger(|ledger| ledger.assert_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_01_fetch_goes_without_where_the_table_is_gone_or_has_no_key() {
    let setup = format!(
        "{DOCS}; CREATE TABLE keyless (id int NOT NULL, title text, body text);
         CREATE UNIQUE INDEX one ON keyless (id); ALTER TABLE keyless REPLICA IDENTITY USING INDEX one;
         ALTER TABLE keyless ALTER body SET STORAGE EXTERNAL; INSERT INTO keyless VALUES (1, 'a', repeat('x', 5000));
         CREATE TABLE listed (id int[] PRIMARY KEY, title text, body text); ALTER TABLE listed ALTER body SET STORAGE EXTERNAL;
         INSERT INTO listed VALUES ('{{1,2}}', 'a', repeat('x', 5000))"
    );
    let case = begin(&setup, "").await;
    case.postgres.sql("UPDATE keyless SET title = 'keyless'; UPDATE listed SET title = 'listed'").await;
    assert_left_out(&case.titled("keyless").await);
    assert_left_out(&case.titled("listed").await);
    case.wait_result("no_key", 2.0).await;
    case.daemon.wait_logged("REPLICA IDENTITY FULL").await;
    case.postgres.sql("BEGIN; UPDATE docs SET title = 'dropped' WHERE id = 1; DROP TABLE docs; COMMIT").await;
    assert_left_out(&case.titled("dropped").await);
    case.wait_result("table_gone", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_01_fetch_leaves_out_what_is_larger_than_a_message_may_be() {
    let case = begin(DOCS, "batch_size = 10\nbatch_timeout = \"300ms\"").await;
    case.postgres.sql("UPDATE docs SET body = repeat('y', 1048577) WHERE id = 1").await;
    case.postgres
        .sql(
            "BEGIN; UPDATE docs SET title = 'large' WHERE id = 1; UPDATE docs SET title = 'small' WHERE id = 2; COMMIT",
        )
        .await;
    assert_left_out(&case.titled("large").await);
    case.wait_result("too_large", 1.0).await;
    case.wait_result("filled", 1.0).await;
    assert_eq!(case.titled("small").await["metadata"]["fetched"], json!(["body"]));
}

/// A role that may read the stream and not the table, on a publication and slot that are there.
async fn begin_as_reader() -> Case {
    let postgres = Postgres::start();
    postgres.sql(DOCS).await;
    postgres.sql("CREATE PUBLICATION walhook_app FOR TABLE docs").await;
    postgres.make_slot("walhook_app").await;
    let receiver = Receiver::start().await;
    let text = Config::reader_source(&postgres) + &Config::sink("orders", &receiver.url(), FETCH);
    let config = Config::new(&text);
    let daemon = Daemon::start(&config).await;
    Case { postgres, receiver, config, daemon }
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_01_fetch_goes_without_the_privilege_until_it_is_granted() {
    let case = begin_as_reader().await;
    case.postgres.sql("UPDATE docs SET title = 'denied' WHERE id = 1").await;
    assert_left_out(&case.titled("denied").await);
    case.wait_result("denied", 1.0).await;
    case.daemon.wait_logged("let the role of the source's url read the table").await;
    case.postgres.sql("GRANT SELECT ON docs TO walhook_reader").await;
    until("a value to be fetched", || async {
        case.postgres.sql("UPDATE docs SET title = 'granted' WHERE id = 2").await;
        let metrics = case.daemon.metrics().await;
        let filled = metrics.sum("walhook_sink_toast_fetches_total", &[("result", "filled")]);
        state(filled > Some(0.0), filled)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_01_fetch_goes_without_while_there_is_no_connection() {
    let case = begin_as_reader().await;
    case.postgres.sql("GRANT SELECT ON docs TO walhook_reader").await;
    case.postgres.admin_sql("ALTER ROLE walhook_reader CONNECTION LIMIT 0").await;
    case.postgres.sql("UPDATE docs SET title = 'alone' WHERE id = 1").await;
    assert_left_out(&case.titled("alone").await);
    case.wait_result("unavailable", 1.0).await;
    case.postgres.admin_sql("ALTER ROLE walhook_reader CONNECTION LIMIT -1").await;
    until("a value to be fetched", || async {
        case.postgres.sql("UPDATE docs SET title = 'again' WHERE id = 2").await;
        let metrics = case.daemon.metrics().await;
        let filled = metrics.sum("walhook_sink_toast_fetches_total", &[("result", "filled")]);
        state(filled > Some(0.0), filled)
    })
    .await;
    // A connection that was lost is made anew, and nobody goes without for that.
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%AS found'";
    case.postgres.admin_sql(kill).await;
    case.postgres.sql("UPDATE docs SET title = 'anew' WHERE id = 3").await;
    assert_eq!(case.titled("anew").await["metadata"]["fetched"], json!(["body"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_01_fetch_that_hangs_on_a_lock_holds_nobody_else() {
    let setup = format!("{DOCS}; CREATE TABLE other (id int PRIMARY KEY, title text)");
    let case = begin(&setup, "request_timeout = \"500ms\"").await;
    // The second change of the row waits for the first, so that the lock is there before it is asked for.
    case.receiver.script(|_| Reply::Never);
    case.postgres
        .sql("UPDATE docs SET body = 'b' WHERE id = 1; UPDATE docs SET body = repeat('z', 9000) WHERE id = 1")
        .await;
    case.postgres.sql("UPDATE docs SET title = 'hung' WHERE id = 1").await;
    case.receiver.wait("the first change", |receiver| receiver.request_count() >= 1).await;
    let locker = case.postgres.client().await;
    locker.batch_execute("BEGIN; LOCK TABLE docs IN ACCESS EXCLUSIVE MODE").await.unwrap();
    case.receiver.script(|_| Reply::status(200));
    until("the fetch to wait for the lock", || async {
        let waits = case.postgres.value("SELECT count(*) FROM pg_locks WHERE NOT granted").await;
        state(waits != "0", waits)
    })
    .await;
    case.postgres.sql("INSERT INTO other VALUES (1, 'passes')").await;
    let hung = case.titled("hung").await;
    assert_left_out(&hung);
    case.wait_result("timeout", 1.0).await;
    let titles: Vec<Value> =
        case.receiver.messages().iter().map(|message| message["record"]["title"].clone()).collect();
    let place = |title: &str| titles.iter().position(|have| have == title);
    assert!(place("passes").is_some() && place("passes") < place("hung"), "{titles:?}");
    drop(locker);
    case.receiver.ledger(|ledger| ledger.assert_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_01_fetch_fills_what_comes_back_from_the_store_after_a_crash() {
    let case = begin(DOCS, "batch_size = 5").await;
    case.receiver.script(|_| Reply::status(500));
    case.postgres.sql("UPDATE docs SET title = 'first' WHERE id = 1").await;
    case.receiver.wait("a failure", |receiver| receiver.request_count() >= 1).await;
    case.postgres.sql("UPDATE docs SET title = 'second' WHERE id = 1").await;
    until("what waits to be in the store", || async {
        let metrics = case.daemon.metrics().await;
        let lanes = metrics.sum("walhook_sink_lane_messages", &[]).unwrap_or_default();
        let overflow = metrics.sum("walhook_sink_overflow_messages", &[]).unwrap_or_default();
        state(lanes + overflow >= 1.0, (lanes, overflow))
    })
    .await;
    let case = case.restart().await;
    for title in ["first", "second"] {
        let message = case.titled(title).await;
        assert_eq!(message["metadata"]["fetched"], json!(["body"]), "{title}");
        assert_eq!(message["record"]["body"], "1x".repeat(5000));
    }
    case.receiver.wait_acknowledged(2).await;
    case.receiver.ledger(|ledger| ledger.assert_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_01_fetch_happens_once_and_every_attempt_sends_the_same() {
    let case = begin(DOCS, "").await;
    let is_first = |request: &Request| request.messages.iter().any(|message| message["record"]["title"] == "first");
    case.receiver.script(move |request| Reply::status(if is_first(request) { 500 } else { 200 }));
    case.postgres.sql("UPDATE docs SET title = 'first' WHERE id = 1").await;
    case.receiver.wait("a failure", |receiver| receiver.request_count() >= 1).await;
    case.postgres.sql("UPDATE docs SET body = 'changed since' WHERE id = 1").await;
    let seen = case.receiver.request_count();
    case.receiver.wait("more attempts", |receiver| receiver.request_count() >= seen + 2).await;
    let bodies: Vec<Vec<u8>> = case.receiver.requests().iter().map(|request| request.body.clone()).collect();
    assert!(bodies.iter().all(|body| *body == bodies[0]), "a delivery's body is frozen");
    assert_eq!(case.receiver.messages()[0]["record"]["body"], "1x".repeat(5000));
    case.receiver.script(|_| Reply::status(200));
    case.receiver.wait_acknowledged(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_01_fetch_reads_a_column_by_the_type_that_it_has_then() {
    let case = begin(DOCS, "").await;
    case.postgres.sql("UPDATE docs SET title = 'before' WHERE id = 1").await;
    assert_eq!(case.titled("before").await["record"]["body"], "1x".repeat(5000));
    case.postgres
        .sql("BEGIN; UPDATE docs SET title = 'after' WHERE id = 2; ALTER TABLE docs ALTER body TYPE json USING pg_catalog.to_json(ARRAY[body]); COMMIT")
        .await;
    assert_eq!(case.titled("after").await["record"]["body"], json!(["2x".repeat(5000)]));
    case.wait_result("filled", 2.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_01_fetch_goes_without_one_row_that_makes_its_query_fail() {
    let setup = "CREATE TABLE docs (id text PRIMARY KEY, title text, body text); ALTER TABLE docs ALTER body SET STORAGE EXTERNAL;
        INSERT INTO docs SELECT i, 'a', repeat(i::text || 'x', 5000) FROM generate_series(1, 5) i;
        UPDATE docs SET id = 'three' WHERE id = '3'";
    let case = begin(setup, "batch_size = 10\nbatch_timeout = \"300ms\"").await;
    // By the time they are asked for the keys are numbers, and one of these is none.
    case.postgres
        .sql(
            "BEGIN; UPDATE docs SET title = 'b' || id; DELETE FROM docs WHERE id = 'three';
             ALTER TABLE docs ALTER id TYPE int USING id::int; COMMIT",
        )
        .await;
    case.receiver.wait_messages(5).await;
    assert_left_out(&case.titled("bthree").await);
    for id in [1, 2, 4, 5] {
        let message = case.titled(&format!("b{id}")).await;
        assert_eq!(message["record"]["body"], json!(format!("{id}x").repeat(5000)));
    }
    case.wait_result("filled", 4.0).await;
    case.wait_result("failed", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_01_fetch_calls_no_operator_that_stands_in_another_schema() {
    let setup = "CREATE TABLE docs (id varchar PRIMARY KEY, title text, body text); ALTER TABLE docs ALTER body SET STORAGE EXTERNAL;
        INSERT INTO docs VALUES ('k', 'a', repeat('kx', 5000));
        CREATE FUNCTION public.hostile(varchar, varchar) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'called'; END $$;
        CREATE OPERATOR public.= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = public.hostile)";
    let case = begin(setup, "").await;
    case.postgres.sql("UPDATE docs SET title = 'called'").await;
    assert_eq!(case.titled("called").await["metadata"]["fetched"], json!(["body"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_01_fetch_takes_a_hidden_row_for_one_it_may_not_read() {
    let case = begin_as_reader().await;
    case.postgres
        .sql("GRANT SELECT ON docs TO walhook_reader; ALTER TABLE docs ENABLE ROW LEVEL SECURITY; CREATE POLICY none ON docs USING (false)")
        .await;
    case.postgres.sql("UPDATE docs SET title = 'hidden' WHERE id = 1").await;
    assert_left_out(&case.titled("hidden").await);
    case.wait_result("denied", 1.0).await;
    case.daemon.wait_logged("a member of its owner's role").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_01_fetch_that_hangs_on_several_tables_holds_no_other_table() {
    let locked: Vec<String> = (1..=8).map(|number| format!("locked{number}")).collect();
    let each = |sql: &str| locked.iter().map(|table| sql.replace("TABLE_", table)).collect::<Vec<_>>().join(";");
    let tables = each(
        "CREATE TABLE TABLE_ (id int PRIMARY KEY, title text, body text); ALTER TABLE TABLE_ ALTER body SET STORAGE EXTERNAL;
         INSERT INTO TABLE_ VALUES (1, 'a', repeat('z', 9000))",
    );
    let case = begin(&format!("{DOCS}; {tables}"), "request_timeout = \"500ms\"").await;
    // A table that is known to answer goes before those that have never been asked.
    case.postgres.sql("UPDATE docs SET title = 'known' WHERE id = 2").await;
    assert_eq!(case.titled("known").await["metadata"]["fetched"], json!(["body"]));
    // The second change of a row waits for the first, so that the locks are there before it is asked for.
    case.receiver.script(|_| Reply::Never);
    case.postgres.sql(&each("UPDATE TABLE_ SET body = repeat('y', 9000)")).await;
    case.postgres.sql(&each("UPDATE TABLE_ SET title = 'hung'")).await;
    let are_begun = |receiver: &crate::receiver::Receiver| receiver.request_count() >= 9;
    case.receiver.wait("the first changes", are_begun).await;
    let locker = case.postgres.client().await;
    locker.batch_execute(&format!("BEGIN; LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", locked.join(", "))).await.unwrap();
    case.receiver.script(|_| Reply::status(200));
    // Then all the others are asked for.
    case.receiver.wait_acknowledged(9).await;
    case.postgres.sql("UPDATE docs SET title = 'passes' WHERE id = 1").await;
    assert_eq!(case.titled("passes").await["metadata"]["fetched"], json!(["body"]));
    case.wait_result("timeout", 8.0).await;
    drop(locker);
    case.receiver.ledger(|ledger| ledger.assert_clean());
}

//! Values at the edges of their types, and types that are not what they were when the row was written.

use serde_json::{Value, json};

use crate::daemon::{Config, Daemon};
use crate::postgres::Postgres;
use crate::receiver::Receiver;

/// A database with `setup` and a daemon on it; messages come one after another.
async fn started(setup: &str, lines: &str) -> (Postgres, Receiver, Config, Daemon) {
    let postgres = Postgres::start();
    match setup == IMPOSTOR {
        true => postgres.admin_sql(setup).await,
        false => postgres.sql(setup).await,
    }
    let receiver = Receiver::start().await;
    let lines = format!("group_by = \"table\"\nmax_in_flight = 1\n{lines}");
    let config = Config::one_sink(&postgres, &receiver.url(), &lines);
    let daemon = Daemon::start(&config).await;
    (postgres, receiver, config, daemon)
}

/// Values passed on as text, counted up to everything that was written so far.
async fn fallbacks(postgres: &Postgres, daemon: &Daemon) -> f64 {
    daemon.wait_shown(postgres).await.sum("walhook_source_text_fallback_values_total", &[]).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_11_infinities_bc_and_the_end_of_the_day_are_strings() {
    let setup =
        "CREATE TABLE t (id int PRIMARY KEY, n numeric, f float8, d date, ts timestamp, tz timestamptz, tm time)";
    let (postgres, receiver, _, daemon) = started(setup, "").await;
    postgres
        .sql(
            "INSERT INTO t VALUES (1, 'NaN', '-Infinity', 'infinity', '-infinity', 'infinity', '24:00'),
             (2, 'Infinity', 'NaN', '0044-03-15 BC', '0044-03-15 1:2:3 BC', '0044-03-15 1:2:3+00 BC', '23:59:59.999999'),
             (3, '-Infinity', 1e300, '5874897-12-31', '294276-12-31 23:59:59.5', '20240-01-01 0:0+00', '0:0')",
        )
        .await;
    let messages = receiver.wait_messages(3).await;
    for (message, record) in messages.iter().zip([
        json!({"id": 1, "n": "NaN", "f": "-Infinity", "d": "infinity", "ts": "-infinity", "tz": "infinity", "tm": "24:00:00"}),
        json!({"id": 2, "n": "Infinity", "f": "NaN", "d": "0044-03-15 BC", "ts": "0044-03-15T01:02:03 BC",
            "tz": "0044-03-15T01:02:03+00:00 BC", "tm": "23:59:59.999999"}),
        json!({"id": 3, "n": "-Infinity", "f": 1e300, "d": "5874897-12-31", "ts": "294276-12-31T23:59:59.5",
            "tz": "20240-01-01T00:00:00+00:00", "tm": "00:00:00"}),
    ]) {
        assert_eq!(message["record"], record);
    }
    assert!(daemon.sigterm().await.success());
}

const NUMBERS: &str = "CREATE DOMAIN big AS int8; CREATE TYPE amount AS (cents numeric, units big, small int, share float8);
    CREATE TABLE t (id int8 PRIMARY KEY, n numeric, ns numeric[], bs big[][], a amount, rest amount[], small int2, f float8, j jsonb);
    ALTER TABLE t REPLICA IDENTITY FULL";

const NUMBERS_ROW: &str =
    "INSERT INTO t VALUES (9007199254740993, 12345678901234567890.10, '{1.50,NULL,NaN}', '{{1},{2}}',
    '(0.10,9223372036854775807,3,0.5)', '{\"(1,2,3,4)\",NULL}', 7, 0.1, '{\"n\": 12345678901234567890.10}')";

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_12_big_numbers_keep_their_digits_or_are_strings_wherever_they_are() {
    let (postgres, receiver, _, daemon) = started(NUMBERS, "").await;
    postgres.sql(NUMBERS_ROW).await;
    receiver.wait_messages(1).await;
    let body = String::from_utf8(receiver.requests()[0].body.clone()).unwrap();
    let digits = r#""id":9007199254740993,"n":12345678901234567890.10,"ns":[1.50,null,"NaN"],"bs":[[1],[2]],"a":{"cents":0.10,"units":9223372036854775807,"small":3,"share":0.5},"rest":[{"cents":1,"units":2,"small":3,"share":4},null],"small":7,"f":0.1,"j":{"n": 12345678901234567890.10}"#;
    assert!(body.contains(digits), "{body}");
    assert!(daemon.sigterm().await.success());

    let (postgres, receiver, _, daemon) = started(NUMBERS, "numbers = \"string\"").await;
    postgres.sql(NUMBERS_ROW).await;
    postgres.sql("UPDATE t SET id = 2, a = NULL").await;
    receiver.wait_messages(2).await;
    let bodies: Vec<_> =
        receiver.requests().into_iter().map(|request| String::from_utf8(request.body).unwrap()).collect();
    let strings = r#""id":"9007199254740993","n":"12345678901234567890.10","ns":["1.50",null,"NaN"],"bs":[["1"],["2"]],"a":{"cents":"0.10","units":"9223372036854775807","small":3,"share":0.5},"rest":[{"cents":"1","units":"2","small":3,"share":4},null],"small":7,"f":0.1,"j":{"n": 12345678901234567890.10}"#;
    assert!(bodies[0].contains(strings), "{}", bodies[0]);
    let changes = r#""changes":{"id":"9007199254740993","a":{"cents":"0.10","units":"9223372036854775807","small":3,"share":0.5}}"#;
    assert!(bodies[1].contains(changes), "{}", bodies[1]);
    assert!(daemon.sigterm().await.success());
}

/// What jsonb, and so `to_jsonb`, could not hold: the column's own text is what the table has.
#[tokio::test(flavor = "multi_thread")]
async fn pitfall_15_json_is_passed_byte_for_byte() {
    let documents = [
        r#"{"b": 1,  "a": [1.50, null], "b": 2}"#,
        r#"[1e400000, -0, 123456789012345678901234567890.10, 1E5]"#,
        r#""\u0000 \ud800 \u00e9 \/""#,
        " [ ] ",
        "\"\u{2028}\u{7f}\"",
    ];
    let (postgres, receiver, _, daemon) = started("CREATE TABLE t (id int PRIMARY KEY, j json)", "").await;
    for (id, document) in documents.iter().enumerate() {
        postgres.sql(&format!("INSERT INTO t VALUES ({id}, '{document}')")).await;
    }
    let is_there = |receiver: &Receiver| receiver.answers().len() == documents.len();
    receiver.wait("every document", is_there).await;
    for (request, document) in receiver.requests().iter().zip(documents) {
        let body = String::from_utf8(request.body.clone()).unwrap();
        assert!(body.contains(&format!("\"j\":{document}}}")), "{document}: {body}");
    }
    assert_eq!(fallbacks(&postgres, &daemon).await, 0.0);
    assert!(daemon.sigterm().await.success());
}

/// A type called hstore that is none: its text cannot be read as one.
/// Only a superuser may make one.
const IMPOSTOR: &str = "CREATE TYPE hstore;
    CREATE FUNCTION hstore_in(cstring) RETURNS hstore LANGUAGE internal IMMUTABLE STRICT AS 'textin';
    CREATE FUNCTION hstore_out(hstore) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
    CREATE TYPE hstore (INPUT = hstore_in, OUTPUT = hstore_out, LIKE = text);
    CREATE TYPE box_of AS (h hstore, n int);
    CREATE TABLE t (id int PRIMARY KEY, h hstore, hs hstore[], b box_of); ALTER TABLE t OWNER TO app";

#[tokio::test(flavor = "multi_thread")]
async fn text_that_its_type_does_not_explain_is_passed_on_and_counted() {
    let (postgres, receiver, _, daemon) = started(IMPOSTOR, "").await;
    postgres.sql(r#"INSERT INTO t VALUES (1, 'no "hstore', '{a,"\"k\"=>\"v\""}', '(b,1)')"#).await;
    postgres.sql("INSERT INTO t VALUES (2, '', NULL, NULL)").await;
    let messages = receiver.wait_messages(2).await;
    let record = json!({"id": 1, "h": "no \"hstore", "hs": ["a", {"k": "v"}], "b": {"h": "b", "n": 1}});
    assert_eq!(messages[0]["record"], record, "only what is odd is text");
    assert_eq!(messages[1]["record"], json!({"id": 2, "h": {}, "hs": null, "b": null}));
    assert_eq!(fallbacks(&postgres, &daemon).await, 3.0);
    let lookups = daemon.metrics().await.sum("walhook_source_catalogue_lookups_total", &[]);
    assert!(lookups <= Some(3.0), "{lookups:?}: what stays odd is not asked about at every row");
    assert!(daemon.sigterm().await.success());
}

const PAIRS: &str = "CREATE TYPE pair AS (a int, b text); CREATE DOMAIN pairs AS pair[];
    CREATE TABLE t (id int PRIMARY KEY, p pair, ps pairs); ALTER TABLE t REPLICA IDENTITY FULL";

fn record(messages: &[Value], index: usize) -> &Value {
    &messages[index]["record"]
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_26_a_row_type_that_changes_is_looked_up_anew() {
    let (postgres, receiver, _, daemon) = started(PAIRS, "").await;
    postgres.sql("INSERT INTO t VALUES (1, '(1,x)', '{\"(2,y)\"}')").await;
    receiver.wait_acknowledged(1).await;
    postgres.sql("ALTER TYPE pair ADD ATTRIBUTE c numeric CASCADE").await;
    postgres.sql("INSERT INTO t VALUES (2, '(1,x,1.50)', NULL)").await;
    postgres.sql("UPDATE t SET id = 3 WHERE id = 1").await;
    let messages = receiver.wait_messages(3).await;
    assert_eq!(record(&messages, 0), &json!({"id": 1, "p": {"a": 1, "b": "x"}, "ps": [{"a": 2, "b": "y"}]}));
    assert_eq!(record(&messages, 1), &json!({"id": 2, "p": {"a": 1, "b": "x", "c": 1.5}, "ps": null}));
    let old = json!({"id": 3, "p": {"a": 1, "b": "x", "c": null}, "ps": [{"a": 2, "b": "y", "c": null}]});
    assert_eq!(record(&messages, 2), &old, "a row written before has the attribute too");
    assert_eq!(fallbacks(&postgres, &daemon).await, 0.0);
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_26_a_row_older_than_its_type_is_text_and_goes_on() {
    let (postgres, receiver, config, daemon) = started(PAIRS, "").await;
    assert!(daemon.sigterm().await.success());
    postgres.sql("INSERT INTO t VALUES (1, '(1,x)', NULL)").await;
    postgres.sql("ALTER TYPE pair DROP ATTRIBUTE b").await;
    postgres.sql("INSERT INTO t VALUES (2, '(2)', NULL)").await;
    let daemon = Daemon::start(&config).await;
    let messages = receiver.wait_messages(2).await;
    assert_eq!(record(&messages, 0), &json!({"id": 1, "p": "(1,x)", "ps": null}));
    assert_eq!(record(&messages, 1), &json!({"id": 2, "p": {"a": 2}, "ps": null}));
    assert_eq!(fallbacks(&postgres, &daemon).await, 1.0);
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_13_a_type_that_is_gone_is_text_and_made_anew_is_itself() {
    let setup = format!("CREATE TABLE other (id int PRIMARY KEY); {PAIRS}");
    let (postgres, receiver, config, daemon) = started(&setup, "").await;
    assert!(daemon.sigterm().await.success());
    postgres.sql("INSERT INTO t VALUES (1, '(1,x)', '{\"(2,y)\"}')").await;
    postgres.sql("DROP TABLE t; DROP DOMAIN pairs; DROP TYPE pair").await;
    let daemon = Daemon::start(&config).await;
    let messages = receiver.wait_messages(1).await;
    assert_eq!(record(&messages, 0), &json!({"id": 1, "p": "(1,x)", "ps": "{\"(2,y)\"}"}));

    // The same names under other OIDs, and other members.
    postgres.sql("CREATE TYPE pair AS (z bool); CREATE TABLE t (id int PRIMARY KEY, p pair)").await;
    daemon.wait_logged("published: public.t").await;
    postgres.sql("INSERT INTO t VALUES (2, '(t)')").await;
    let messages = receiver.wait_messages(2).await;
    assert_eq!(record(&messages, 1), &json!({"id": 2, "p": {"z": true}}));
    assert!(daemon.sigterm().await.success());
}

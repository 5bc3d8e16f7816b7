//! Whatever a database is set to and whatever bytes it holds, its messages are the same and go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

use crate::daemon::{Config, Daemon, text_of, troubles, walhook};
use crate::postgres::Postgres;
use crate::receiver::Receiver;

/// A daemon on a database of its own, and where its messages go.
struct Watched {
    daemon: Daemon,
    receiver: Receiver,
    config: Config,
}

/// A config for the database at `url`, whose slot has the database's name.
fn config(postgres: &Postgres, url: &str, endpoint: &str, lines: &str) -> Config {
    let slot = url.rsplit('/').next().unwrap();
    let source = Config::source(postgres).replace(&postgres.url(), url);
    Config::new(&format!("{source}slot = \"walhook_{slot}\"\n{}", Config::sink("orders", endpoint, lines)))
}

async fn watch(postgres: &Postgres, url: &str, lines: &str) -> Watched {
    let receiver = Receiver::start().await;
    let config = config(postgres, url, &receiver.url(), lines);
    let daemon = Daemon::start(&config).await;
    Watched { daemon, receiver, config }
}

/// Runs statements in the database at `url` as the owner of its tables.
async fn run(url: &str, sql: &str) {
    let url = &url.replace("walhook@", "app@");
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

fn contents(messages: &[Value]) -> Vec<(Value, Value, Value)> {
    let content = |message: &Value| (message["action"].clone(), message["record"].clone(), message["changes"].clone());
    messages.iter().map(content).collect()
}

/// All that shapes the text of values, set to something else than the default.
const HOSTILE: &[(&str, &str)] = &[
    ("DateStyle", "'German, DMY'"),
    ("IntervalStyle", "sql_standard"),
    ("TimeZone", "'Asia/Tokyo'"),
    ("extra_float_digits", "-5"),
    ("bytea_output", "escape"),
    ("client_encoding", "LATIN1"),
    ("search_path", "pg_catalog"),
    ("quote_all_identifiers", "on"),
    ("xmlbinary", "hex"),
    ("array_nulls", "off"),
    ("client_min_messages", "error"),
    ("default_transaction_isolation", "serializable"),
    ("statement_timeout", "'30s'"),
];

const ODD_VALUES: &str =
    "CREATE TABLE public.odd (id int PRIMARY KEY, d date, ts timestamp, tz timestamptz, i interval, f float8,
        r float4, b bytea, t text, rel regclass, typ regtype, ds date[], tr tstzrange);
    ALTER TABLE public.odd REPLICA IDENTITY FULL";

const ODD_CHANGES: &str = r"INSERT INTO public.odd VALUES (1, '0044-03-15 BC', '2024-03-15 14:30:00.5', '2024-03-15 14:30:00+00',
        '1 year 2 mons -3 days +04:05:06.7', 0.1::float8 + 0.2, 0.1, '\x00ff5c', 'é日本', 'public.odd', 'timestamptz',
        ARRAY[date '2024-12-31', NULL], '[2024-01-01 00:00+00,2024-06-01 00:00+00)');
    UPDATE public.odd SET f = 1e-7, tz = '2024-07-01 00:00+00', i = '-1 day', b = NULL;
    DELETE FROM public.odd";

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_10_settings_of_database_and_role_change_no_message() {
    let postgres = Postgres::start();
    for database in ["plain", "hostile", "roled"] {
        postgres.database(database, "").await;
    }
    for (name, value) in HOSTILE {
        postgres.admin_sql(&format!("ALTER DATABASE hostile SET {name} = {value}")).await;
        postgres.admin_sql(&format!("ALTER ROLE walhook IN DATABASE roled SET {name} = {value}")).await;
    }
    let mut all = Vec::new();
    for database in ["plain", "hostile", "roled"] {
        let url = postgres.cluster.url(database);
        run(&url, ODD_VALUES).await;
        let watched = watch(&postgres, &url, "").await;
        // With array_nulls off NULL is a word; the row is written with the default.
        run(&url, &format!("SET array_nulls = on; {ODD_CHANGES}")).await;
        all.push(contents(&watched.receiver.wait_messages(3).await));
        assert!(watched.daemon.sigterm().await.success());
    }
    let record = &all[0][0].1;
    for (name, value) in [
        ("d", json!("0044-03-15 BC")),
        ("tz", json!("2024-03-15T14:30:00+00:00")),
        ("i", json!("1 year 2 mons -3 days +04:05:06.7")),
        ("f", json!(0.1 + 0.2)),
        ("b", json!("\\x00ff5c")),
        ("rel", json!("odd")),
        ("typ", json!("timestamp with time zone")),
    ] {
        assert_eq!(record[name], value, "{name}");
    }
    assert_eq!(all[0], all[1], "settings of the database shape messages");
    assert_eq!(all[0], all[2], "settings of the role shape messages");
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_14_a_latin1_database_speaks_utf8() {
    let postgres = Postgres::start();
    postgres.database("latin", "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0").await;
    let url = postgres.cluster.url("latin");
    let table = "CREATE TYPE laune AS ENUM ('früh', 'spät');
        CREATE TABLE \"Straßen\" (\"größe\" text PRIMARY KEY, l laune, ls text[], j json, b bytea);
        ALTER TABLE \"Straßen\" REPLICA IDENTITY FULL";
    run(&url, table).await;
    let watched = watch(&postgres, &url, "tables = [\"public.Straßen\"]").await;
    run(&url, "INSERT INTO \"Straßen\" VALUES ('é', 'spät', '{ß,\"ä ö\"}', '{\"ü\": \"ÿ\"}', '\\xe9')").await;
    run(&url, "UPDATE \"Straßen\" SET \"größe\" = 'ñ'").await;
    let messages = watched.receiver.wait_messages(2).await;
    let record = json!({"größe": "é", "l": "spät", "ls": ["ß", "ä ö"], "j": {"ü": "ÿ"}, "b": "\\xe9"});
    assert_eq!(messages[0]["record"], record);
    assert_eq!(messages[0]["metadata"]["table_name"], "Straßen");
    assert_eq!(messages[1]["changes"], json!({"größe": "é"}));
    assert!(watched.daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_14_bytes_that_are_no_utf8_wedge_nothing() {
    let postgres = Postgres::start();
    postgres.database("ascii", "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0").await;
    let url = postgres.cluster.url("ascii");
    run(&url, "CREATE TABLE notes (id text PRIMARY KEY, body text, tags text[], doc json, pad text)").await;
    run(&url, "ALTER TABLE notes REPLICA IDENTITY FULL").await;
    let watched = watch(&postgres, &url, "group_by = \"table\"").await;
    run(&url, r#"INSERT INTO notes VALUES ('1', 'caf\u00c3\u00a9', '{}', '{}')"#).await;
    run(&url, r#"INSERT INTO notes VALUES (E'k\xff', E'caf\xe9 "\x80"', ARRAY[E'\xe9,', 'b'], E'{"a": "\xe9"}')"#)
        .await;
    run(&url, r#"UPDATE notes SET body = E'\xc3\xa9' WHERE id = E'k\xff'"#).await;
    run(&url, r#"DELETE FROM notes WHERE id = E'k\xff'"#).await;
    run(&url, "INSERT INTO notes VALUES ('2', 'after', NULL, NULL)").await;
    let messages = watched.receiver.wait_messages(5).await;
    let bad = json!({"id": "k\u{fffd}", "body": "caf\u{fffd} \"\u{fffd}\"", "tags": ["\u{fffd},", "b"], "doc": {"a": "\u{fffd}"}, "pad": null});
    assert_eq!(messages[1]["record"], bad);
    assert_eq!(messages[2]["record"]["body"], "é", "what is UTF-8 stays so");
    assert_eq!(messages[2]["changes"], json!({"body": bad["body"]}));
    assert_eq!((&messages[3]["action"], &messages[3]["record"]["id"]), (&json!("delete"), &bad["id"]));
    assert_eq!(messages[4]["record"]["body"], "after");
    watched.receiver.wait_acknowledged(5).await;
    assert!(watched.daemon.sigterm().await.success());

    run(&url, r"INSERT INTO notes VALUES (E'\xfe', 'while away', NULL, NULL)").await;
    let daemon = Daemon::start(&watched.config).await;
    let messages = watched.receiver.wait_messages(6).await;
    assert_eq!(
        (&messages[5]["record"]["id"], &messages[5]["record"]["body"]),
        (&json!("\u{fffd}"), &json!("while away"))
    );
    assert!(daemon.sigterm().await.success());
    watched.receiver.ledger(|ledger| assert_eq!(ledger.repeats, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_14_names_that_are_no_utf8_wedge_nothing() {
    let postgres = Postgres::start();
    postgres.database("ascii", "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0").await;
    let url = postgres.cluster.url("ascii");
    // A column, the members of a row type, and a table beside it that cannot even be named.
    run(
        &url,
        r#"DO $$ BEGIN EXECUTE E'CREATE TYPE pair AS (a int, "b\xe9" text)';
        EXECUTE E'CREATE TABLE notes ("caf\xe9" int PRIMARY KEY, p pair)';
        EXECUTE E'CREATE TABLE "oth\xe9r" (id int PRIMARY KEY)'; END $$"#,
    )
    .await;
    let watched = watch(&postgres, &url, "").await;
    run(&url, "INSERT INTO notes VALUES (1, '(7,x)')").await;
    run(&url, "INSERT INTO notes VALUES (2, NULL)").await;
    let messages = watched.receiver.wait_messages(2).await;
    let mut records: Vec<_> = messages.iter().map(|message| &message["record"]).collect();
    records.sort_by_key(|record| record["caf\u{fffd}"].as_i64());
    assert_eq!(records[0], &json!({"caf\u{fffd}": 1, "p": {"a": 7, "b\u{fffd}": "x"}}));
    assert_eq!(records[1], &json!({"caf\u{fffd}": 2, "p": null}));
    assert!(watched.daemon.sigterm().await.success());
}

const PASS: u8 = 0;
/// Leaves `options` out of what a client asks for, as `ignore_startup_parameters = options` of a pooler does.
pub(crate) const STRIP: u8 = 1;
/// Answers as a pooler that knows no replication.
const REFUSE: u8 = 2;

/// Something between the daemon and its database.
pub(crate) struct Pooler {
    pub(crate) port: u16,
    manner: Arc<AtomicU8>,
    _tasks: JoinSet<()>,
}

impl Pooler {
    pub(crate) async fn start(server: u16, manner: u8) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, manner) = (listener.local_addr().unwrap().port(), Arc::new(AtomicU8::new(manner)));
        let shared = Arc::clone(&manner);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                clients.spawn(pass_on(client, server, shared.load(Ordering::Relaxed)));
            }
        });
        Self { port, manner, _tasks: tasks }
    }
}

async fn pass_on(mut client: TcpStream, server: u16, manner: u8) {
    let Ok(startup) = startup(&mut client).await else { return };
    let parameters: Vec<&[u8]> = startup.split(|byte| *byte == 0).collect();
    let pairs: Vec<&[&[u8]]> = parameters.chunks(2).filter(|pair| pair.len() == 2 && !pair[0].is_empty()).collect();
    if manner == REFUSE && pairs.iter().any(|pair| pair[0] == b"replication") {
        let said = b"SFATAL\0C08P01\0Munsupported startup parameter: replication\0\0";
        let length = u32::try_from(said.len() + 4).unwrap().to_be_bytes();
        drop(client.write_all(&[b"E", &length[..], said].concat()).await);
        return;
    }
    let kept = pairs.into_iter().filter(|pair| manner != STRIP || pair[0] != b"options");
    let mut packet = 196_608_u32.to_be_bytes().to_vec();
    for pair in kept {
        packet.extend_from_slice(&[pair[0], b"\0", pair[1], b"\0"].concat());
    }
    packet.push(0);
    let length = u32::try_from(packet.len() + 4).unwrap().to_be_bytes();
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    if server.write_all(&[&length[..], &packet].concat()).await.is_ok() {
        drop(copy_bidirectional(&mut client, &mut server).await);
    }
}

/// The parameters of a client's startup message; to encryption the answer is no.
async fn startup(client: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    loop {
        let length = client.read_u32().await? as usize;
        let code = client.read_u32().await?;
        let mut rest = vec![0; length - 8];
        client.read_exact(&mut rest).await?;
        if code == 196_608 {
            return Ok(rest);
        }
        client.write_all(b"N").await?;
    }
}

/// Runs the daemon to its end; what it printed, and its exit status.
async fn run_to_its_end(config: &Config) -> (Option<i32>, String) {
    let path = config.path().to_string_lossy().into_owned();
    let output = tokio::task::spawn_blocking(move || walhook(&["run", "--config", &path])).await.unwrap();
    (output.status.code(), text_of(&output))
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_47_a_pooler_that_drops_options_is_named_at_the_start() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE t (id int PRIMARY KEY); ALTER DATABASE postgres SET DateStyle = 'German'").await;
    let pooler = Pooler::start(postgres.cluster.port(), STRIP).await;
    let url = format!("postgres://walhook@127.0.0.1:{}/postgres", pooler.port);
    let (code, said) = run_to_its_end(&config(&postgres, &url, "http://127.0.0.1:9", "")).await;
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("DateStyle") && said.contains("pooler") && said.contains("direct address"), "{said}");
    assert_eq!(postgres.value("SELECT count(*) FROM pg_replication_slots").await, "0", "nothing was begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_47_a_pooler_without_replication_is_named_at_the_start() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE t (id int PRIMARY KEY)").await;
    let pooler = Pooler::start(postgres.cluster.port(), REFUSE).await;
    let url = format!("postgres://walhook@127.0.0.1:{}/postgres", pooler.port);
    let (code, said) = run_to_its_end(&config(&postgres, &url, "http://127.0.0.1:9", "")).await;
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("replication") && said.contains("pooler") && said.contains("direct address"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_47_a_pooler_that_begins_to_drop_options_is_named_while_running() {
    let postgres = Postgres::start();
    let setup = "CREATE TABLE t (id int PRIMARY KEY, d date); ALTER DATABASE postgres SET DateStyle = 'German'";
    postgres.sql(setup).await;
    let pooler = Pooler::start(postgres.cluster.port(), PASS).await;
    let url = format!("postgres://walhook@127.0.0.1:{}/postgres", pooler.port);
    let Watched { daemon, receiver, .. } = watch(&postgres, &url, "").await;
    let daemon = daemon.allow_error("DateStyle");
    postgres.sql("INSERT INTO t VALUES (1, '2024-02-03')").await;
    assert_eq!(receiver.wait_messages(1).await[0]["record"]["d"], "2024-02-03");

    pooler.manner.store(STRIP, Ordering::Relaxed);
    let others =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type IN
        ('client backend', 'walsender')";
    postgres.admin_sql(others).await;
    postgres.sql("INSERT INTO t VALUES (2, '2024-02-03')").await;
    let troubles = troubles(&daemon.wait_not_ready().await);
    daemon.wait_logged("DateStyle").await;
    assert!(troubles.contains("source:app"), "{troubles}");
    assert_eq!(receiver.message_count(), 1, "no message in German");
}

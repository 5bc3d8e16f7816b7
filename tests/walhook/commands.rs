//! The commands and their exit codes: 0 ok, 1 failed while running, 69 database or prerequisite missing, 78 bad config.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::daemon::{Config, Daemon, text_of, troubles, walhook};
use crate::order::counters;
use crate::postgres::{Postgres, state, until, until_within};
use crate::receiver::{Receiver, Reply};

pub(crate) fn with_config(command: &str, config: &Config) -> (Option<i32>, String) {
    let output = walhook(&[command, "--config", &config.path().to_string_lossy()]);
    (output.status.code(), text_of(&output))
}

#[test]
fn a_bad_config_exits_78_with_every_fault_and_a_suggestion() {
    let config = Config::new(
        r#"
        [source.app]
        url = "postgres://walhook@localhost:5432/app"
        heartbeat = "ten seconds"
        [sink.orders]
        source = "ap"
        url = "https://example.com"
        tables = ["public.orders"]
        batch_sise = 10
        request_timeout = "1ms"
        headers = { "bad name" = "x" }
        "#,
    );
    for command in ["run", "check"] {
        let (code, text) = with_config(command, &config);
        assert_eq!(code, Some(78), "{command}: {text}");
        for part in [
            "heartbeat",
            "ten seconds",
            "batch_sise",
            "batch_size",
            "request_timeout",
            "1ms",
            "bad name",
            "\"ap\"",
            "app",
        ] {
            assert!(text.contains(part), "{command} does not mention {part}: {text}");
        }
    }
}

#[test]
fn a_config_that_is_no_toml_exits_78_and_one_that_is_not_there_69() {
    for command in ["run", "check"] {
        // As one that is not mounted yet: a restart finds it.
        let missing = walhook(&[command, "--config", "/nowhere/walhook.toml"]);
        assert_eq!(missing.status.code(), Some(69), "{}", text_of(&missing));
    }
    let (code, text) = with_config("run", &Config::new("[source.app\nurl = 1"));
    assert_eq!(code, Some(78), "{text}");
}

/// What a configuration is like, what the database has, and the codes with which `check` and `run` end; `None`: `run` does not.
type Case = (&'static str, &'static str, &'static str, i32, Option<i32>);

/// See DESIGN.md 6 and the table of docs/OPERATING.md.
const CASES: [Case; 12] = [
    ("all is well", "", "tables = [\"public.orders\"]", 0, None),
    ("a key that does not exist", "", "tables = [\"public.orders\"]\nbatch_sise = 1", 78, Some(78)),
    ("a view", "CREATE VIEW seen AS SELECT 1", "tables = [\"public.orders\", \"public.seen\"]", 69, None),
    (
        "a partition",
        "CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (9)",
        "tables = [\"public.orders\", \"public.part\"]",
        69,
        None,
    ),
    ("nothing but a view", "CREATE VIEW seen AS SELECT 1", "tables = [\"public.seen\"]", 69, None),
    ("a missing table", "", "tables = [\"public.orders\", \"public.none\"]", 69, None),
    ("nothing but a missing table", "", "tables = [\"public.none\"]", 69, None),
    ("an unlogged table", "CREATE UNLOGGED TABLE fast (id int PRIMARY KEY)", "tables = [\"public.fast\"]", 69, None),
    ("no identity", "CREATE TABLE bare (v int)", "tables = [\"public.orders\", \"public.bare\"]", 69, None),
    ("a missing column", "", "tables = [\"public.orders\"]\ngroup_by = [\"shop\"]", 69, None),
    ("a column that deletes do not carry", "", "tables = [\"public.orders\"]\ngroup_by = [\"customer_id\"]", 69, None),
    ("no table for a pattern", "", "tables = [\"none.*\"]", 0, None),
];

#[tokio::test(flavor = "multi_thread")]
async fn exit_78_is_only_for_what_an_edit_of_the_file_mends() {
    let receiver = Receiver::start().await;
    for (case, sql, sink, of_check, of_run) in CASES {
        let postgres = Postgres::start();
        postgres.sql("CREATE TABLE orders (id int PRIMARY KEY, customer_id int)").await;
        postgres.sql(sql).await;
        let config = Config::one_sink(&postgres, &receiver.url(), sink);
        let (code, text) = with_config("check", &config);
        assert_eq!(code, Some(of_check), "check, {case}: {text}");
        match of_run {
            Some(code) => {
                let (ended, text) = with_config("run", &config);
                assert_eq!(ended, Some(code), "run, {case}: {text}");
            }
            None => assert!(Daemon::start(&config).await.sigterm().await.success(), "run, {case}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_69_is_for_what_a_restart_may_mend() {
    let postgres = Postgres::with(&[("wal_level", "replica")]);
    postgres.sql("CREATE TABLE orders (id int PRIMARY KEY)").await;
    let both = |config: &Config, case: &str, expected: i32| {
        for command in ["check", "run"] {
            let (code, text) = with_config(command, config);
            assert_eq!(code, Some(expected), "{command}, {case}: {text}");
        }
    };
    let sink = "tables = [\"public.orders\"]";
    both(&Config::one_sink(&postgres, "http://127.0.0.1:9", sink), "wal_level", 69);
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE orders (id int PRIMARY KEY)").await;
    let managed = Config::source(&postgres) + "create = false\n" + &Config::sink("s", "http://127.0.0.1:9", sink);
    both(&Config::new(&managed), "create = false and nothing there", 69);
    let no_role = managed.replace("walhook@", "nobody@");
    both(&Config::new(&no_role), "a role that does not exist", 69);
    let unset = Config::source(&postgres) + &Config::sink("s", "http://${WALHOOK_TEST_UNSET}:9", sink);
    both(&Config::new(&unset), "a variable that is not set", 69);
    let also_wrong = unset + "batch_sise = 1\n";
    both(
        &Config::new(&also_wrong.replace("[sink.s.retry]", "")),
        "one that is not set, and a key that does not exist",
        78,
    );
    // Too small for so many sinks: nothing but an edit helps.
    let sinks: String = (0..40).map(|n| Config::sink(&format!("s{n}"), "http://127.0.0.1:9", sink)).collect();
    let small = Config::source(&postgres) + "[state]\nmax_bytes = \"8MiB\"\n" + &sinks;
    both(&Config::new(&small), "state.max_bytes", 78);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_is_content_with_a_good_database_and_changes_nothing() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::start().await;
    let config = Config::one_sink(&postgres, &receiver.url(), "");
    let (code, text) = with_config("check", &config);
    assert_eq!(code, Some(0), "{text}");
    let output = walhook(&["check", "--json", "--config", &config.path().to_string_lossy()]);
    let json: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text_of(&output)));
    let levels: Vec<&str> = json.as_array().unwrap().iter().map(|finding| finding["level"].as_str().unwrap()).collect();
    assert!(!levels.is_empty() && levels.iter().all(|level| ["ok", "warn"].contains(level)), "{json}");
    assert_eq!(postgres.value("SELECT count(*) FROM pg_replication_slots").await, "0");
    assert_eq!(postgres.value("SELECT count(*) FROM pg_publication").await, "0");
    assert_eq!(receiver.message_count(), 0, "check delivers nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_exits_69_when_wal_level_is_too_low_and_says_what_mends_it() {
    let postgres = Postgres::with(&[("wal_level", "replica")]);
    counters(&postgres).await;
    let (code, text) = with_config("check", &Config::one_sink(&postgres, "http://127.0.0.1:9", ""));
    assert_eq!(code, Some(69), "{text}");
    assert!(text.contains("wal_level") && text.contains("logical"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_of_the_config_and_row_values_are_never_printed() {
    let secrets = ["hunter2", "swordfish", "c3dvcmRmaXNo", "opensesame", "rosebud", "xyzzy"];
    let postgres = Postgres::start();
    let client = counters(&postgres).await;
    let receiver = Receiver::scripted(|request| match request.number {
        1 => Reply::status(500),
        2 => Reply::Reset,
        _ => Reply::status(200),
    })
    .await;
    let endpoint = receiver.url() + "/rosebud";
    let source = Config::source(&postgres).replace("walhook@", "walhook:hunter2@");
    let sink = "headers = { authorization = \"Bearer swordfish\" }\nsigning_secrets = [\"whsec_c3dvcmRmaXNoc3dvcmRmaXNoc3dvcmRmaXNo\"]\nbatch_sise = 1";
    let bad = source.replace("[log]", "[log]\nlevel = \"debug\"") + &Config::sink("orders", &endpoint, sink);
    let good = bad.replace("batch_sise", "batch_size");
    // An address with a password in it is a fault of its own.
    let bad = bad.replace("http://", "http://hook:opensesame@");
    let assert_hidden = |printed: &str| {
        let shown: Vec<_> = secrets.iter().filter(|secret| printed.contains(**secret)).collect();
        assert!(shown.is_empty(), "{shown:?} in {printed}");
    };
    for (text, expected) in [(&bad, 78), (&good, 0)] {
        let (code, printed) = with_config("check", &Config::new(text));
        assert_eq!(code, Some(expected), "{printed}");
        assert_hidden(&printed);
    }

    let daemon = Daemon::start(&Config::new(&good)).await;
    client.batch_execute("INSERT INTO counters VALUES (1, 0, 'xyzzy')").await.unwrap();
    receiver.wait_acknowledged(1).await;
    let arrived = receiver.requests();
    assert!(arrived[0].messages[0].to_string().contains("xyzzy") && arrived[0].path.contains("rosebud"));
    daemon.wait_logged("connection_reset").await;
    assert!(daemon.logs().iter().any(|line| line["level"] == "DEBUG"), "the log should be at level debug");
    let metrics = daemon.get("/metrics").await.unwrap().1;
    let readiness = daemon.ready().await.unwrap().1.to_string();
    assert_hidden(&(daemon.printed() + &metrics + &readiness));
}

#[test]
fn config_schema_is_json_that_knows_the_keys() {
    let output = walhook(&["config", "schema"]);
    assert!(output.status.success(), "{}", text_of(&output));
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    let properties = schema["properties"].as_object().unwrap();
    for key in ["source", "sink", "state", "admin", "limits", "log"] {
        assert!(properties.contains_key(key), "{key}");
    }
    let text = schema.to_string();
    for key in ["max_ack_pending", "batch_timeout", "signing_secrets", "group_by", "heartbeat"] {
        assert!(text.contains(key), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn init_writes_a_config_that_check_accepts() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("walhook.toml");
    let output = walhook(&["init", "--url", &postgres.url(), "--output", &file.to_string_lossy()]);
    assert!(output.status.success(), "{}", text_of(&output));
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(written.contains("counters"), "{written}");
    let check = walhook(&["check", "--config", &file.to_string_lossy()]);
    assert_eq!(check.status.code(), Some(0), "{}\n{written}", text_of(&check));
    let again = walhook(&["init", "--url", &postgres.url(), "--output", &file.to_string_lossy()]);
    assert!(!again.status.success(), "an existing file is not overwritten");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), written);
}

#[tokio::test(flavor = "multi_thread")]
async fn init_takes_the_address_from_where_no_list_of_processes_shows_it() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let init = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_walhook"));
        command.arg("init").args(arguments).args(["--output", "-"]).env_remove("DATABASE_URL");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let mut piped = init(&["--url", "-"]).spawn().unwrap();
    piped.stdin.take().unwrap().write_all(format!("{}\n", postgres.url()).as_bytes()).unwrap();
    let from_environment = init(&[]).env("DATABASE_URL", postgres.url()).output().unwrap();
    for output in [piped.wait_with_output().unwrap(), from_environment] {
        assert!(output.status.success(), "{}", text_of(&output));
        assert!(String::from_utf8_lossy(&output.stdout).contains("public.counters"), "{}", text_of(&output));
    }
    let neither = init(&[]).output().unwrap();
    assert_eq!(neither.status.code(), Some(2), "{}", text_of(&neither));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_ends_nothing_and_says_that_nothing_is_read_again() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::start().await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;
    for _ in 0..2 {
        daemon.signal(Signal::SIGHUP);
        daemon.wait_logged("the configuration is read at the start only").await;
    }
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait_messages(1).await;
    assert_eq!(daemon.sigterm().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_start_readyz_and_check_say_how_each_link_is_protected() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::start().await;
    let text = Config::source(&postgres)
        + &Config::sink("orders", &receiver.url(), "")
        + &Config::sink("cloud", "http://169.254.169.254/latest", "headers = { authorization = \"Bearer tok-1\" }");
    let config = Config::new(&text);
    let daemon = Daemon::start(&config).await;
    daemon.wait_logged("how each link is protected").await;
    daemon.wait_logged("the url says http://").await;
    let (_, body) = daemon.ready().await.unwrap();
    assert_eq!(body["links"]["source.app"], "on this machine");
    assert_eq!(body["links"]["sink.orders"], "http on this machine");
    assert_eq!(body["links"]["sink.cloud"], "http, not encrypted");
    let check = text_of(&walhook(&["check", "--config", &config.path().to_string_lossy()]));
    assert!(check.contains("sink.cloud: http, not encrypted") && check.contains("the url says http://"), "{check}");
    assert!(check.contains("egress.deny has 169.254.0.0/16"), "{check}");
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait_messages(1).await;
    until("the denied address to be told", || async {
        let metrics = daemon.metrics().await;
        let blocked = metrics.sum("walhook_sink_failures_total", &[("sink", "cloud"), ("category", "blocked_address")]);
        let said = daemon.ready().await.map(|(_, body)| troubles(&body)).unwrap_or_default();
        state(blocked > Some(0.0) && said.contains("must not reach"), (blocked, said))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_shows_changes_and_retries_and_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    // The demo's server may run as another user, who must be able to pass and write.
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
    let mut demo = Demo::start(directory.path());
    // 503 and then the same delivery again: the endpoint that refuses three in ten.
    let parts = ["/metrics", "insert", "update", "delete", "message  shop.paid", " 503 ", "200 retry "];
    until_within(Duration::from_secs(120), "the demo to show changes and a retry", || async {
        let printed = demo.printed();
        state(parts.iter().all(|part| printed.contains(part)), printed)
    })
    .await;
    let postmaster = postmaster_under(directory.path());
    assert!(is_running(postmaster), "the server of the demo is process {postmaster}");

    kill(Pid::from_raw(i32::try_from(demo.child.id()).unwrap()), Signal::SIGINT).unwrap();
    let status = until("the demo to end", || std::future::ready(demo.child.try_wait().unwrap().ok_or(()))).await;
    assert_eq!(status.code(), Some(0), "{}", demo.printed());
    assert!(!is_running(postmaster), "the server, process {postmaster}, still runs");
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

/// A running `walhook demo`. Asked to end, so that its server ends too, when a test fails.
struct Demo {
    child: Child,
    printed: Arc<Mutex<String>>,
}

impl Demo {
    fn start(directory: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_walhook"));
        command.args(["demo", "--admin", "127.0.0.1:0"]).env("TMPDIR", directory).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let printed = Arc::new(Mutex::new(String::new()));
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let printed = Arc::clone(&printed);
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    *printed.lock().unwrap() += &(line + "\n");
                }
            });
        }
        Self { child, printed }
    }

    fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM).unwrap_or_default();
            drop(self.child.wait());
        }
    }
}

/// Process id of the only cluster under `directory`.
fn postmaster_under(directory: &Path) -> u32 {
    let clusters: Vec<_> = std::fs::read_dir(directory).unwrap().flatten().map(|entry| entry.path()).collect();
    assert_eq!(clusters.len(), 1, "{clusters:?}");
    let file = std::fs::read_to_string(clusters[0].join("data/postmaster.pid")).unwrap();
    file.lines().next().unwrap().parse().unwrap()
}

/// Whether the process runs; one that ended and was not waited for has no command line any more.
fn is_running(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

#[test]
fn a_log_level_that_is_none_is_refused_on_the_command_line_too() {
    let text = "[source.app]\nurl = \"postgres://u@127.0.0.1:1/app\"\n[sink.s]\nurl = \"http://127.0.0.1:9/\"\ntables = [\"public.t\"]\n";
    let config = Config::new(text);
    let output = walhook(&["run", "--config", &config.path().to_string_lossy(), "--log", "verbose"]);
    assert_eq!(output.status.code(), Some(69), "no edit of the file mends it: {}", text_of(&output));
    assert!(text_of(&output).contains("must be error, warn, info"), "{}", text_of(&output));
}

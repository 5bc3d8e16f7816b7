//! What keeps walhook out of its database: each is said as what it is, with its own advice, and what passes is waited for.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use crate::daemon::{Config, Daemon, text_of, troubles, walhook};
use crate::order::counters;
use crate::postgres::{Postgres, state, until};

/// Takes every connection, reads once, answers so and hangs up; the port.
fn service(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut asked = [0; 4096];
            if stream.read(&mut asked).is_ok() {
                stream.write_all(answer).ok();
            }
        }
    });
    port
}

fn at(address: &str) -> Config {
    Config::new(&format!(
        "[source.app]\nurl = {address:?}\n[sink.orders]\nurl = \"http://127.0.0.1:9\"\ntables = [\"public.orders\"]\n"
    ))
}

fn run(command: &str, config: &Config) -> (Option<i32>, String) {
    let output = walhook(&[command, "--config", &config.path().to_string_lossy()]);
    (output.status.code(), text_of(&output))
}

#[test]
fn check_and_init_tell_what_answers_instead_of_postgres() {
    for (answer, said, advice) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "it speaks HTTP", "port 5432"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "TLS from the first byte", "port 5432"),
        (b"", "closed", "load balancer"),
    ] {
        let address = format!("postgres://walhook:hunter2@127.0.0.1:{}/app", service(answer));
        let init = walhook(&["init", "--url", &address, "--output", "-"]);
        for (code, text) in [run("check", &at(&address)), (init.status.code(), text_of(&init))] {
            assert_eq!(code, Some(69), "{text}");
            assert!(text.contains(said) && text.contains(advice), "{said}: {text}");
            assert!(!text.contains("password") && !text.contains("pg_hba") && !text.contains("hunter2"), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connection_limit_of_the_role_is_named_and_waited_for() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    postgres.admin_sql("ALTER ROLE walhook CONNECTION LIMIT 0").await;
    let config = Config::one_sink(&postgres, "http://127.0.0.1:9", "");
    let (code, text) = run("check", &config);
    assert_eq!(code, Some(69), "{text}");
    assert!(text.contains("the role's CONNECTION LIMIT is used up"), "{text}");
    let daemon = Daemon::launch(&config);
    daemon.wait_logged("CONNECTION LIMIT").await;
    until("readyz to tell of the limit", || async {
        let told = troubles(&daemon.wait_not_ready().await);
        let mends = told.contains("ALTER ROLE … CONNECTION LIMIT …, or -1 for none");
        state(mends && !told.contains("password"), told)
    })
    .await;
    // What the advice says is enough.
    postgres.admin_sql("ALTER ROLE walhook CONNECTION LIMIT 10").await;
    daemon.wait_ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_log_in_ends_a_start_with_69_and_is_waited_for_by_one_that_streams() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    let config = Config::one_sink(&postgres, "http://127.0.0.1:9", "");
    let daemon = Daemon::start(&config).await;
    postgres.admin_sql("ALTER ROLE walhook NOLOGIN").await;
    postgres.admin_sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'walhook'").await;
    daemon.wait_logged("may not log in").await;
    until("readyz to tell of the role", || async {
        let told = troubles(&daemon.wait_not_ready().await);
        state(told.contains("ALTER ROLE … LOGIN") && !told.contains("password"), told)
    })
    .await;
    // The application writes on meanwhile.
    postgres.sql("INSERT INTO counters VALUES (1, 0, 'x')").await;

    let (code, text) = run("run", &at(&postgres.url()));
    assert_eq!(code, Some(69), "{text}");
    assert!(text.contains("may not log in") && text.contains("ALTER ROLE … LOGIN"), "{text}");

    postgres.admin_sql("ALTER ROLE walhook LOGIN").await;
    daemon.wait_ready().await;
}

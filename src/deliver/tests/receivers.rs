//! The receivers printed in docs/DELIVERY.md work: they verify, acknowledge, and pass over repeats.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::rig::{failure, sink};
use crate::config::BodyForm;
use crate::deliver::endpoint::Endpoint;
use crate::deliver::frozen::Frozen;
use crate::deliver::sign::SigningSecret;
use crate::memory::Memory;
use crate::record::message::MessageId;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn code(language: &str) -> String {
    let page = include_str!("../../../docs/DELIVERY.md");
    let (_, rest) = page.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("\n```").unwrap().0.to_owned()
}

fn delivery(id: u128) -> Frozen {
    Frozen::build(&Memory::new(1 << 20), "orders", BodyForm::Batch, 16, [MessageId(id)], |_, _, body| {
        let message = format!(
            r#"{{"record":{{"id":{id},"name":"Zoë"}},"action":"insert","metadata":{{"idempotency_key":"{id:x}"}}}}"#
        );
        body.extend_from_slice(message.as_bytes());
    })
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Runs a receiver of the page; where the language is not installed it is skipped, with a line that says so.
async fn holds(language: &str, file: &str, command: &[&str]) {
    if Command::new(command[0]).arg(if language == "go" { "version" } else { "--version" }).output().is_err() {
        println!(
            "skipped: {} is not installed, so the {language} receiver of docs/DELIVERY.md was not run",
            command[0]
        );
        return;
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(file);
    std::fs::write(&path, code(language).replace("8080", &port.to_string())).unwrap();
    let mut child = Command::new(command[0]);
    child.args(&command[1..]).arg(&path).env("WHSEC", SECRET).stdout(Stdio::piped());
    let mut running = Running(child.spawn().unwrap());
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        assert!(running.0.try_wait().unwrap().is_none(), "the receiver ended");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let unsigned = sink(&format!("http://127.0.0.1:{port}/"));
    let mut signed = unsigned.clone();
    signed.signing_secrets = vec![
        SigningSecret::parse("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD").unwrap(),
        SigningSecret::parse(SECRET).unwrap(),
    ];
    let refused = Endpoint::new(&unsigned).unwrap().attempt(&delivery(1), 1).await;
    assert_eq!(failure(&refused).0, "status_unauthorized");
    let endpoint = Endpoint::new(&signed).unwrap();
    for (id, number) in [(2, 1), (2, 2), (3, 1)] {
        let attempt = endpoint.attempt(&delivery(id), number).await;
        assert!(attempt.verdict.is_acknowledged(), "{attempt:?}");
    }
    let printed = BufReader::new(running.0.stdout.take().unwrap());
    let lines: Vec<_> = printed.lines().map(Result::unwrap).take(2).collect();
    assert!(lines[0].contains("Zoë") && lines[0].contains('2') && lines[1].contains('3'), "{lines:?}");
}

#[tokio::test]
async fn python_receiver_holds() {
    holds("python", "hook.py", &["python3"]).await;
}

#[tokio::test]
async fn node_receiver_holds() {
    holds("js", "hook.js", &["node"]).await;
}

#[tokio::test]
async fn go_receiver_holds() {
    holds("go", "hook.go", &["go", "run"]).await;
}

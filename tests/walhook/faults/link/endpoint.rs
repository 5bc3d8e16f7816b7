//! A hostile endpoint against the binary: early answers, interim ones, heads and bodies without an end. Only a whole
//! answer to a whole request acknowledges, memory stays flat, and once the endpoint behaves the row arrives.
//!
//! What needs HTTP/2 is held beside the code, frame by frame: GOAWAY and refused streams (`deliver::tests::goaway`), connections that answer
//! pings and nothing else (`bursts`), frames without an answer (`floods`), connections that close at the wrong moment (`closing`).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::daemon::{Config, Daemon};
use crate::postgres::{Postgres, state, until};

/// What it does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Reads it and says 200.
    Good,
    /// Says 200 to the head, reads nothing more, and leaves.
    Early,
    /// Says 102 for ever.
    Interim,
    /// Says 500 with a body of 10 GB.
    Bomb,
    /// Says 500 with a body that its decoder would make a gigabyte of, in chunks without an end.
    Chunks,
    /// Begins a head that has no end.
    Head,
    /// Says 200, announces more than it sends, and leaves.
    Short,
}

#[derive(Default)]
struct Seen {
    mode: Option<Mode>,
    requests: usize,
    /// Rows that it has taken.
    rows: Vec<i64>,
}

struct Endpoint {
    port: u16,
    seen: Arc<Mutex<Seen>>,
    _tasks: JoinSet<()>,
}

impl Endpoint {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, seen) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::new(Seen::default())));
        let mut tasks = JoinSet::new();
        let for_all = Arc::clone(&seen);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, Arc::clone(&for_all)));
            }
        });
        Self { port, seen, _tasks: tasks }
    }

    fn requests(&self) -> usize {
        self.seen.lock().unwrap().requests
    }

    fn be(&self, mode: Mode) {
        self.seen.lock().unwrap().mode = Some(mode);
    }
}

/// One request a connection, so that the mode is that of now.
async fn serve(mut stream: TcpStream, seen: Arc<Mutex<Seen>>) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let mode = {
        let mut seen = seen.lock().unwrap();
        seen.requests += 1;
        seen.mode.unwrap_or(Mode::Good)
    };
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse().ok()?;
    if mode == Mode::Early {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.ok()?;
        // The answer arrives before the connection is reset for what nobody has read.
        tokio::time::sleep(Duration::from_millis(200)).await;
        return None;
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let (begin, again): (&str, &[u8]) = match mode {
        Mode::Good => {
            let message: Value = serde_json::from_slice(&body).unwrap();
            let rows = message["data"].as_array().unwrap().iter().map(|it| it["record"]["id"].as_i64().unwrap());
            seen.lock().unwrap().rows.extend(rows);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            return stream.write_all(answer).await.ok();
        }
        Mode::Short => {
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf";
            return stream.write_all(answer).await.ok();
        }
        Mode::Early => return None,
        Mode::Interim => ("", b"HTTP/1.1 102 Processing\r\n\r\n"),
        Mode::Bomb => ("HTTP/1.1 500 No\r\ncontent-length: 10000000000\r\n\r\n", &[b'x'; 1 << 14]),
        Mode::Chunks => (
            "HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\ncontent-encoding: gzip\r\n\r\n",
            b"10\r\n\x1f\x8b\x08\0\0\0\0\0\0\x03\xed\xc1\x01\x01\0\0\r\n",
        ),
        Mode::Head => ("HTTP/1.1 200 OK\r\n", b"x-more: and more and more\r\n"),
    };
    stream.write_all(begin.as_bytes()).await.ok()?;
    let again = again.repeat(64);
    loop {
        stream.write_all(&again).await.ok()?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_endpoint_acknowledges_nothing_by_what_is_no_answer_and_memory_stays_flat() {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE rows (id int PRIMARY KEY, body text)").await;
    let endpoint = Endpoint::start().await;
    let url = format!("http://127.0.0.1:{}/", endpoint.port);
    let config = Config::one_sink(&postgres, &url, "request_timeout = \"5s\"");
    let daemon = Daemon::start(&config).await;
    let modes = [Mode::Early, Mode::Interim, Mode::Bomb, Mode::Chunks, Mode::Head, Mode::Short];
    for (id, mode) in modes.into_iter().enumerate() {
        endpoint.be(mode);
        let before = endpoint.requests();
        // More than sockets hold, so that an answer to the head is one to half a request.
        postgres.sql(&format!("INSERT INTO rows VALUES ({id}, repeat('x', 12 << 20))")).await;
        until(&format!("two attempts while it is {mode:?}"), || async {
            state(endpoint.requests() >= before + 2, endpoint.requests() - before)
        })
        .await;
        let acknowledged = |metrics: &crate::daemon::Metrics| {
            metrics.sum("walhook_sink_attempts_total", &[("outcome", "acknowledged")]).unwrap_or_default()
        };
        assert_eq!(acknowledged(&daemon.metrics().await), id as f64, "{mode:?} has acknowledged something");
        endpoint.be(Mode::Good);
        until(&format!("the row after {mode:?}"), || async {
            let rows = endpoint.seen.lock().unwrap().rows.clone();
            state(rows.len() == id + 1, rows)
        })
        .await;
        until("it to be acknowledged", || async {
            let count = acknowledged(&daemon.metrics().await);
            state(count == (id + 1) as f64, count)
        })
        .await;
        println!("{mode:?}: {} KiB at most so far", daemon.peak_kib());
    }
    let rows = endpoint.seen.lock().unwrap().rows.clone();
    assert_eq!(rows, (0..modes.len() as i64).collect::<Vec<_>>());
    assert!(daemon.peak_kib() < 320 << 10, "{} KiB were resident", daemon.peak_kib());
    assert!(!daemon.logged("panicked"), "{}", daemon.printed());
}

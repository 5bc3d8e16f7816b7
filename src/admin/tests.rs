//! The admin side over a socket.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::config::AdminToken;
use crate::view::{SinkView, SourceState, SourceView, Views};

struct Side {
    addr: SocketAddr,
    views: SharedViews,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Side {
    fn new(tokens: Vec<AdminToken>) -> Self {
        let views: SharedViews = Arc::new(Views::default());
        views.sources.insert("app".into(), SourceView::new(SourceState::Streaming, SystemTime::now()));
        views.sinks.insert("orders".into(), SinkView { source: "app".into(), ..SinkView::default() });
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let prometheus = recorder.handle();
        metrics::with_local_recorder(&recorder, || metrics::counter!("a_counter_total").increment(3));
        let config = AdminConfig { listen: "127.0.0.1:0".parse().unwrap(), tokens };
        let stop = CancellationToken::new();
        let state = AdminState::new(&config, Arc::clone(&views), prometheus, SystemTime::now());
        let thread = spawn(&config, state, stop.clone()).unwrap();
        Self { addr: thread.addr, views, stop, thread: Some(thread.join) }
    }

    /// Sends a request head with its own lines and gives status, head and body.
    fn ask(&self, request_line: &str, lines: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(stream, "{request_line} HTTP/1.1\r\nconnection: close\r\n{lines}\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_ascii_lowercase(), body.to_owned())
    }

    fn get(&self, path: &str) -> (u16, String, String) {
        self.ask(&format!("GET {path}"), "host: localhost\r\n")
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn json(body: &str) -> Value {
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}"))
}

/// The body of API.md 2.5, and an id that header and body share.
#[track_caller]
fn assert_refusal(answer: (u16, String, String), status: u16, code: &str) {
    let (found, head, body) = answer;
    let body = json(&body);
    assert_eq!((found, body["error"]["code"].as_str()), (status, Some(code)), "{body}");
    assert!(body["error"]["message"].as_str().is_some_and(|message| !message.is_empty()));
    assert_eq!(body["error"]["doc_url"], format!("/docs/errors#{code}"));
    let id = body["meta"]["request_id"].as_str().unwrap();
    assert!(id.starts_with("req_") && head.contains(&format!("x-request-id: {id}")), "{head}");
    assert!(head.contains("content-type: application/json"), "{head}");
}

#[test]
fn the_three_routes_answer() {
    let side = Side::new(vec![]);
    let (status, head, body) = side.get("/metrics");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(head.contains("x-request-id: req_"), "{head}");
    assert!(body.contains("a_counter_total 3\n"), "{body}");
    let (status, _, body) = side.get("/healthz");
    assert_eq!((status, json(&body)["status"].as_str()), (200, Some("ok")));
    let (status, _, body) = side.get("/readyz");
    assert_eq!(
        (status, &json(&body)["ready"], &json(&body)["sinks"]["orders"]["state"]),
        (200, &true.into(), &"idle".into())
    );
}

#[test]
fn readyz_turns_to_503_with_its_reason_and_healthz_does_not() {
    let side = Side::new(vec![]);
    side.views.stopping.store(true, Ordering::Relaxed);
    let (status, _, body) = side.get("/readyz");
    let body = json(&body);
    assert_eq!((status, &body["ready"]), (503, &false.into()));
    assert_eq!((&body["troubles"][0]["scope"], &body["troubles"][0]["severity"]), (&"process".into(), &"error".into()));
    assert_eq!(side.get("/healthz").0, 200);
}

#[test]
fn head_is_get_without_a_body() {
    let side = Side::new(vec![]);
    for path in ["/metrics", "/healthz", "/readyz"] {
        let (status, head, body) = side.ask(&format!("HEAD {path}"), "host: localhost\r\n");
        assert_eq!((status, body.as_str()), (200, ""), "{path}");
        assert!(head.contains("content-type"), "{head}");
    }
}

#[test]
fn what_is_not_there_or_not_allowed_is_refused_in_the_api_form() {
    let side = Side::new(vec![]);
    assert_refusal(side.get("/nothing"), 404, "route_not_found");
    let post = side.ask("POST /readyz", "host: localhost\r\ncontent-length: 0\r\n");
    assert!(post.1.contains("allow: get,head"), "{}", post.1);
    assert_refusal(post, 405, "method_not_allowed");
    let large = side.ask("POST /readyz", "host: localhost\r\ncontent-length: 65537\r\n");
    assert_refusal(large, 413, "body_too_large");
}

#[test]
fn a_sane_request_id_is_echoed_and_another_replaced() {
    let side = Side::new(vec![]);
    let ask = |id: &str| side.ask("GET /nothing", &format!("host: localhost\r\nx-request-id: {id}\r\n"));
    let longest = "a".repeat(128);
    for id in ["trace-7/x", &longest] {
        let (_, head, body) = ask(id);
        assert!(head.contains(&format!("x-request-id: {id}\r\n")), "{head}");
        assert_eq!(json(&body)["meta"]["request_id"], id);
    }
    for id in ["", "two words", "caf\u{e9}", &"a".repeat(129)] {
        assert_refusal(ask(id), 404, "route_not_found");
    }
}

#[test]
fn a_panic_is_a_500_without_its_cause() {
    let side = Side::new(vec![]);
    let answer = side.get("/panics");
    assert!(!answer.2.contains("on purpose"), "{}", answer.2);
    assert_refusal(answer, 500, "internal");
    assert_eq!(side.get("/healthz").0, 200);
}

/// Connections that say nothing, or half a head, and those that asked once, keep nobody from an answer.
#[test]
fn idle_connections_never_keep_health_from_being_told() {
    let side = Side::new(vec![]);
    let open = |said: &str| {
        let mut stream = TcpStream::connect(side.addr).unwrap();
        stream.write_all(said.as_bytes()).unwrap();
        stream
    };
    for said in ["", "GET /healthz HTTP/1.1\r\nhost: loc", "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"] {
        let _open: Vec<_> = (0..300).map(|_| open(said)).collect();
        // Were one of them waited for, it would be for five seconds.
        let asked = std::time::Instant::now();
        assert_eq!(side.get("/healthz").0, 200, "{said}");
        assert!(asked.elapsed() < Duration::from_secs(4), "{said}");
    }
}

#[test]
fn a_head_that_does_not_come_ends_the_connection() {
    let side = Side::new(vec![]);
    let mut stream = TcpStream::connect(side.addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(25))).unwrap();
    write!(stream, "GET /healthz HTTP/1.1\r\n").unwrap();
    // Long before the thirty seconds that somebody who asks for health would wait at most.
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
}

#[test]
fn a_foreign_host_is_refused_and_told_the_rule() {
    let side = Side::new(vec![]);
    for path in ["/metrics", "/healthz", "/readyz", "/nothing"] {
        let answer = side.ask(&format!("GET {path}"), "host: evil.example\r\n");
        assert!(answer.2.contains("loopback"), "{}", answer.2);
        assert_refusal(answer, 403, "bad_host");
    }
}

#[test]
fn with_tokens_only_healthz_is_open() {
    let token = |token: &str, sinks| AdminToken { token: token.into(), operate: false, sinks };
    let side = Side::new(vec![token("all", None), token("mails", Some(vec!["mails".into()]))]);
    let with = |path: &str, token: &str| {
        side.ask(&format!("GET {path}"), &format!("host: localhost\r\nauthorization: Bearer {token}\r\n"))
    };
    assert_eq!(side.get("/healthz").0, 200);
    for path in ["/metrics", "/readyz"] {
        assert!(side.get(path).1.contains("www-authenticate: bearer"));
        assert_refusal(side.get(path), 401, "unauthorized");
        assert_refusal(with(path, "wrong"), 401, "unauthorized");
        assert_eq!(with(path, "all").0, 200);
    }
    assert_refusal(with("/metrics", "mails"), 403, "forbidden");
    let (status, _, body) = with("/readyz", "mails");
    assert_eq!((status, &json(&body)["sinks"]), (200, &serde_json::json!({})));
}

#[test]
fn a_taken_address_is_named_with_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = AdminConfig { listen: taken.local_addr().unwrap(), tokens: vec![] };
    let prometheus = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle();
    let state = AdminState::new(&config, SharedViews::default(), prometheus, SystemTime::now());
    let text = spawn(&config, state, CancellationToken::new()).unwrap_err().to_string();
    assert!(text.contains(&config.listen.to_string()) && text.contains("admin.listen"), "{text}");
}

#[test]
fn a_stop_ends_idle_connections_and_the_thread() {
    let mut side = Side::new(vec![]);
    let mut idle = TcpStream::connect(side.addr).unwrap();
    idle.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(idle, "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    side.stop.cancel();
    side.thread.take().unwrap().join().unwrap();
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).unwrap();
    assert!(TcpStream::connect(side.addr).is_err());
}

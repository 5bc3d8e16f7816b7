//! What answers mean, and what a request carries.

use std::time::Duration;

use http::HeaderValue;

use super::rig::{Rig, attempt, delivery, failure, sink};
use crate::config::{SinkConfig, SuccessRule};
use crate::deliver::attempt::Verdict;
use crate::deliver::egress::Egress;
use crate::deliver::endpoint::{Endpoint, EndpointError};
use crate::deliver::sign::{Signed, SigningSecret, verify};

async fn answered(head: &str) -> crate::deliver::attempt::Attempt {
    let rig = Rig::answering(format!("HTTP/1.1 {head}\r\ncontent-length: 2\r\n\r\nhi")).await;
    let attempt = attempt(&rig.sink()).await;
    assert_eq!(rig.arrived().len(), 1, "one attempt is one request");
    attempt
}

#[tokio::test]
async fn every_2xx_acknowledges_by_default() {
    for head in ["200 OK", "201 Created", "202 Accepted", "299 Odd"] {
        let attempt = answered(head).await;
        assert_eq!(attempt.verdict, Verdict::Acknowledged, "{head}");
        assert_eq!((&*attempt.response.body, attempt.response.truncated), (&b"hi"[..], false));
    }
    let rig = Rig::answering("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(attempt(&rig.sink()).await.verdict, Verdict::Acknowledged);
}

#[tokio::test]
async fn the_strict_form_takes_200_only_and_names_the_setting() {
    let rig = Rig::answering("HTTP/1.1 204 No Content\r\n\r\n").await;
    let mut sink = rig.sink();
    sink.success = SuccessRule::Only(vec![200]);
    let attempt = attempt(&sink).await;
    let (category, message) = failure(&attempt);
    assert_eq!(category, "unexpected_success_status");
    assert!(message.contains("success = \"2xx\" would accept it"), "{message}");
}

#[tokio::test]
async fn redirects_are_not_followed() {
    for status in [301, 302, 303, 307, 308] {
        let target = Rig::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let attempt = answered(&format!("{status} Moved\r\nlocation: http://127.0.0.1:{}/", target.port)).await;
        assert_eq!(failure(&attempt).0, "status_redirect");
        assert_eq!(attempt.status, Some(status));
        assert!(target.arrived().is_empty());
    }
}

#[tokio::test]
async fn refusals_have_their_categories_and_keep_their_body() {
    for (head, category) in [
        ("400 Bad Request", "status_client_error"),
        ("401 Unauthorized", "status_unauthorized"),
        ("404 Not Found", "status_client_error"),
        ("410 Gone", "status_gone"),
        ("413 Content Too Large", "status_payload_too_large"),
        ("429 Too Many Requests", "status_rate_limited"),
        ("500 Internal Server Error", "status_server_error"),
    ] {
        let attempt = answered(head).await;
        assert_eq!(failure(&attempt).0, category);
        assert_eq!(attempt.response.body, "hi");
        assert_eq!(attempt.retry_after, None);
    }
    assert_eq!(failure(&answered("503 Whatever").await).1, "503 Service Unavailable");
}

#[tokio::test]
async fn retry_after_is_told_in_both_forms() {
    let attempt = answered("429 Slow Down\r\nretry-after: 7").await;
    assert_eq!(attempt.retry_after, Some(Duration::from_secs(7)));
    let attempt = answered("503 Later\r\nretry-after: Fri, 31 Dec 1999 23:59:59 GMT").await;
    assert_eq!(attempt.retry_after, Some(Duration::ZERO));
}

#[tokio::test]
async fn a_request_carries_the_headers_of_the_contract_and_a_valid_signature() {
    let rig = Rig::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let mut sink = rig.sink();
    let secrets = vec![
        SigningSecret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap(),
        SigningSecret::parse("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD").unwrap(),
    ];
    sink.signing_secrets.clone_from(&secrets);
    sink.headers.append("x-shop", HeaderValue::from_static("one"));
    sink.headers.append("x-shop", HeaderValue::from_static("two"));
    // Large enough to be signed on a blocking thread.
    let large = delivery(3 << 20);
    let endpoint = Endpoint::new(&sink).unwrap();
    for (number, frozen) in [(1, delivery(100)), (12, large)] {
        assert!(endpoint.attempt(&frozen, number).await.verdict.is_acknowledged());
        let arrived = rig.arrived().pop().unwrap();
        assert_eq!(arrived.body, frozen.body);
        assert!(arrived.head.starts_with("POST /hooks HTTP/1.1\r\n"), "{}", arrived.head);
        let header = |name| arrived.header(name).unwrap();
        assert_eq!(header("content-type"), "application/json");
        assert_eq!(header("user-agent"), concat!("walhook/", env!("CARGO_PKG_VERSION")));
        assert_eq!(header("webhook-id"), frozen.id.to_string());
        assert_eq!(header("walhook-sink"), "orders");
        assert_eq!(header("walhook-attempt"), number.to_string());
        assert_eq!(arrived.head.matches("x-shop: ").count(), 2);
        assert_eq!(arrived.header("accept-encoding"), None);
        assert_eq!(arrived.header("referer"), None);
        let (timestamp, signatures) = (header("webhook-timestamp"), header("webhook-signature"));
        assert_eq!(signatures.split(' ').count(), 2);
        let signed = Signed { id: header("webhook-id"), timestamp, signatures };
        for secret in &secrets {
            verify(std::slice::from_ref(secret), &signed, &arrived.body, timestamp.parse().unwrap()).unwrap();
        }
    }
}

#[tokio::test]
async fn a_sink_cannot_set_what_walhook_says() {
    let rig = Rig::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let mut sink = rig.sink();
    for name in ["webhook-id", "webhook-timestamp", "walhook-sink", "walhook-attempt", "content-type", "user-agent"] {
        sink.headers.insert(name, HeaderValue::from_static("mine"));
    }
    assert!(attempt(&sink).await.verdict.is_acknowledged());
    assert!(!rig.arrived().pop().unwrap().head.contains("mine"));
    let ftp = super::rig::sink("ftp://127.0.0.1/");
    assert!(matches!(Endpoint::new(&ftp), Err(EndpointError::Address { .. })));
}

#[tokio::test]
async fn a_gigabyte_of_answer_is_cut_at_64_kib_and_acknowledged() {
    const LENGTH: usize = 1 << 30;
    let (told, written) = tokio::sync::oneshot::channel();
    let told = std::sync::Mutex::new(Some(told));
    let rig = Rig::start(move |mut peer| {
        let told = told.lock().unwrap().take();
        async move {
            peer.request().await.unwrap();
            peer.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\n\r\n")).await;
            let mut written = 0;
            while written < LENGTH && peer.write(vec![b'x'; 1 << 16]).await {
                written += 1 << 16;
            }
            told.unwrap().send(written).unwrap();
        }
    })
    .await;
    let attempt = attempt(&rig.sink()).await;
    assert_eq!(attempt.verdict, Verdict::Acknowledged);
    assert_eq!((attempt.response.body.len(), attempt.response.truncated), (16 * 1024, true));
    let written = written.await.unwrap();
    assert!(written < LENGTH / 16, "socket buffers only, not {written} bytes");
}

#[tokio::test]
async fn a_compressed_answer_is_not_unpacked() {
    let packed = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xcb\xc8\x04\0\xac*\x93\xd8\x02\0\0\0";
    let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n", packed.len());
    answer.push_str("");
    let rig = Rig::answering([answer.as_bytes(), packed].concat()).await;
    let attempt = attempt(&rig.sink()).await;
    assert_eq!(attempt.verdict, Verdict::Acknowledged);
    assert_eq!(&*attempt.response.body, packed);
}

#[tokio::test]
async fn a_413_sent_before_the_body_was_read_is_seen() {
    let rig = Rig::start(|mut peer| async move {
        peer.head().await.unwrap();
        peer.write("HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
        peer.until_closed().await;
    })
    .await;
    let attempt = Endpoint::new(&rig.sink()).unwrap().attempt(&delivery(32 << 20), 1).await;
    assert_eq!(failure(&attempt).0, "status_payload_too_large");
}

#[tokio::test]
async fn own_header_values_and_signatures_are_struck_out_of_what_is_kept_of_an_answer() {
    let rig = Rig::start(|mut peer| async move {
        while let Some(request) = peer.request().await {
            let body = format!("you sent {}", request.head);
            let head = format!("HTTP/1.1 401 Unauthorized\r\ncontent-length: {}\r\n\r\n", body.len());
            if !peer.write(format!("{head}{body}")).await {
                return;
            }
        }
    })
    .await;
    let mut sink = rig.sink();
    sink.headers.insert("authorization", "Bearer a-token-of-ours".parse().unwrap());
    sink.signing_secrets = vec![SigningSecret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap()];
    let attempt = attempt(&sink).await;
    let kept = String::from_utf8(attempt.response.body.to_vec()).unwrap();
    let sent = rig.arrived().remove(0);
    let signature = sent.header("webhook-signature").unwrap().strip_prefix("v1,").unwrap().to_owned();
    assert!(kept.starts_with("you sent ") && kept.contains("authorization: ***"), "{kept}");
    assert!(!kept.contains("a-token-of-ours") && !kept.contains(&signature), "{kept}");
}

#[tokio::test]
async fn no_connection_is_made_to_an_address_that_is_denied_whatever_the_name_is() {
    let rig = Rig::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let denying = |text: &str| Egress::denying([text.parse().unwrap()]);
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        let url = format!("http://{host}:{}/hooks", rig.port);
        let sink = SinkConfig {
            egress: Egress::denying(["127.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()]),
            ..sink(&url)
        };
        let attempt = attempt(&sink).await;
        let (category, message) = failure(&attempt);
        assert_eq!(category, "blocked_address", "{host}: {message}");
        assert!(message.contains("egress.deny"), "{message}");
    }
    assert!(rig.arrived().is_empty());
    let sink = SinkConfig { egress: denying("10.0.0.0/8"), ..rig.sink() };
    assert!(attempt(&sink).await.verdict.is_acknowledged());
}

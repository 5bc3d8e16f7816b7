//! TLS that fails is said as what it is, with what to reissue or to write.

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa};
use rustls::RootCertStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use super::certified::certified;
use super::rig::{Rig, attempt, delivery, failure, sink};
use crate::deliver::endpoint::Endpoint;

fn server(change: impl FnOnce(&mut CertificateParams)) -> (TlsAcceptor, RootCertStore) {
    let server = certified(&[], change);
    let mut roots = RootCertStore::empty();
    roots.add(server.ca.der().clone()).unwrap();
    (server.acceptor, roots)
}

#[tokio::test]
async fn what_is_wrong_with_an_endpoints_certificate_is_said_with_what_to_reissue() {
    type Change = fn(&mut CertificateParams);
    let cases: [(Change, &str, &str); 5] = [
        (|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1), "has expired", "renew"),
        (|params| params.not_before = rcgen::date_time_ymd(4000, 1, 1), "not valid yet", "clock"),
        (|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), "authority's own", "CA:FALSE"),
        (|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth], "for servers", "serverAuth"),
        (
            |params| params.subject_alt_names = vec![rcgen::SanType::DnsName("other.example".try_into().unwrap())],
            "another name",
            "subject alternative names",
        ),
    ];
    for (change, what, mend) in cases {
        let (acceptor, roots) = server(change);
        let rig = Rig::start(move |peer| {
            let acceptor = acceptor.clone();
            async move { drop(acceptor.accept(peer.socket).await) }
        })
        .await;
        let endpoint = Endpoint::with_roots(&sink(&format!("https://localhost:{}/", rig.port)), roots).unwrap();
        let attempt = endpoint.attempt(&delivery(9), 1).await;
        let (category, message) = failure(&attempt);
        assert_eq!(category, "tls_error", "{message}");
        assert!(message.contains(what) && message.contains(mend), "{message}");
    }
    let (acceptor, _) = server(|_| ());
    let rig = Rig::start(move |peer| {
        let acceptor = acceptor.clone();
        async move { drop(acceptor.accept(peer.socket).await) }
    })
    .await;
    let stranger = sink(&format!("https://localhost:{}/", rig.port));
    let attempt = Endpoint::with_roots(&stranger, RootCertStore::empty()).unwrap().attempt(&delivery(9), 1).await;
    let (category, message) = failure(&attempt);
    assert!(category == "tls_error" && message.contains("whole chain"), "{message}");
}

/// An endpoint that answers whatever it is sent with `answer`, and hangs up.
async fn blunt(answer: &'static [u8]) -> Rig {
    Rig::start(move |mut peer| async move {
        let mut asked = [0; 4096];
        if peer.socket.read(&mut asked).await.is_ok() && !answer.is_empty() {
            drop(peer.socket.write_all(answer).await);
            // A reset would overtake the answer if more came in.
            peer.socket.shutdown().await.unwrap();
            peer.until_closed().await;
        }
    })
    .await
}

#[tokio::test]
async fn https_to_a_plain_port_is_told_apart_from_certificates() {
    let plain = blunt(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    let told = attempt(&sink(&format!("https://localhost:{}/", plain.port))).await;
    let (category, message) = failure(&told);
    assert_eq!(category, "tls_error", "{message}");
    assert!(message.contains("does not speak TLS") && message.contains("http://"), "{message}");

    let hangs_up = blunt(b"").await;
    let told = attempt(&sink(&format!("https://localhost:{}/", hangs_up.port))).await;
    let (category, message) = failure(&told);
    assert_eq!(category, "connection_reset", "{message}");
    assert!(message.contains("in the middle of the TLS handshake") && message.contains("load balancer"), "{message}");
}

#[tokio::test]
async fn http_to_a_port_with_tls_is_named_as_that_whether_it_alerts_or_says_so_and_guessed_if_it_hangs_up() {
    for (answer, word, said) in [
        (&[0x15, 3, 1, 0, 2, 2, 0x46][..], "protocol_error", "the port speaks TLS"),
        (
            b"HTTP/1.1 400 Bad Request\r\nserver: nginx\r\nconnection: close\r\n\r\n<html>\r\n<head><title>400 The plain HTTP \
              request was sent to HTTPS port</title></head>",
            "protocol_error",
            "the port speaks TLS",
        ),
        (
            b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
            "protocol_error",
            "the port speaks TLS",
        ),
        (b"", "connection_reset", "a port that speaks TLS does this"),
    ] {
        let rig = blunt(answer).await;
        let told = attempt(&sink(&format!("http://localhost:{}/", rig.port))).await;
        let (category, message) = failure(&told);
        assert_eq!(category, word, "{message}");
        assert!(message.contains(said) && message.contains("write https://"), "{message}");
    }
    // One with TLS of its own.
    let (acceptor, _) = server(|_| ());
    let rig = Rig::start(move |peer| {
        let acceptor = acceptor.clone();
        async move { drop(acceptor.accept(peer.socket).await) }
    })
    .await;
    let told = attempt(&sink(&format!("http://localhost:{}/", rig.port))).await;
    let (category, message) = failure(&told);
    assert!(category == "protocol_error" && message.contains("the port speaks TLS"), "{category}: {message}");
}

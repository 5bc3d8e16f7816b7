//! TLS that fails is said as what it is, with what to reissue or to write.

use std::time::Duration;

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

#[tokio::test]
async fn https_to_a_plain_port_and_http_to_one_with_tls_are_told_apart_from_certificates() {
    let answering = |answer: &'static [u8]| {
        Rig::start(move |mut peer| async move {
            let mut asked = [0; 4096];
            if peer.socket.read(&mut asked).await.is_ok() && !answer.is_empty() {
                drop(peer.socket.write_all(answer).await);
                // The other side reads it before it notices that nobody is there any more.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    };
    let plain = answering(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    let told = attempt(&sink(&format!("https://localhost:{}/", plain.port))).await;
    let (category, message) = failure(&told);
    assert_eq!(category, "tls_error", "{message}");
    assert!(message.contains("does not speak TLS") && message.contains("http://"), "{message}");

    let hangs_up = answering(b"").await;
    let told = attempt(&sink(&format!("https://localhost:{}/", hangs_up.port))).await;
    let (category, message) = failure(&told);
    assert_eq!(category, "connection_reset", "{message}");
    assert!(message.contains("in the middle of the TLS handshake") && message.contains("load balancer"), "{message}");

    let tls = answering(&[0x15, 3, 1, 0, 2, 2, 0x46]).await;
    let told = attempt(&sink(&format!("http://localhost:{}/", tls.port))).await;
    assert_eq!(failure(&told).0, "protocol_error", "{:?}", failure(&told));
}

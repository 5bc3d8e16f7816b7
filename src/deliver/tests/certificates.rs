//! Which endpoints are trusted, and what is said of those that are not.

use std::path::PathBuf;

use rcgen::{CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;

use super::certified::acceptor;
use super::rig::{Rig, attempt, failure, sink};
use crate::deliver::attempt::Attempt;
use crate::deliver::endpoint::{Endpoint, EndpointError};
use crate::trust::tests::{authority, params};

/// An https endpoint on localhost with this certificate, which answers what it has read.
async fn serving(certificate: CertificateDer<'static>, key: &KeyPair) -> Rig {
    let acceptor = acceptor(certificate, key, &[]);
    Rig::start(move |peer| {
        let acceptor = acceptor.clone();
        async move {
            let Some(mut peer) = peer.under_tls(&acceptor).await else { return };
            while peer.request().await.is_some() && peer.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await {}
        }
    })
    .await
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

async fn told(rig: &Rig, host: &str, ca: Option<PathBuf>) -> Attempt {
    let mut sink = sink(&format!("https://{host}:{}/", rig.port));
    sink.tls_ca = ca;
    attempt(&sink).await
}

fn issued(
    names: &[&str],
    issuer: &Issuer<'_, KeyPair>,
    change: fn(&mut CertificateParams),
) -> (CertificateDer<'static>, KeyPair) {
    let mut params = params(names);
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, issuer).unwrap().der().clone(), key)
}

#[tokio::test]
async fn the_file_of_a_sink_takes_the_place_of_the_machines_list() {
    let (files, (ours, issuer), (others, _)) = (Files::new(), authority(|_| {}), authority(|_| {}));
    let (ours, others) = (files.put("ours.pem", ours), files.put("others.pem", others));
    let (certificate, key) = issued(&["localhost", "127.0.0.1"], &issuer, |_| {});
    let rig = serving(certificate, &key).await;
    for host in ["localhost", "localhost.", "127.0.0.1"] {
        let attempt = told(&rig, host, Some(ours.clone())).await;
        assert!(attempt.verdict.is_acknowledged(), "{host}: {attempt:?}");
    }
    assert_eq!(failure(&told(&rig, "localhost", None).await).0, "tls_error");
    assert_eq!(failure(&told(&rig, "localhost", Some(others)).await).0, "tls_error");
}

#[tokio::test]
async fn a_self_signed_endpoint_is_trusted_by_its_own_certificate() {
    for is_ca in [IsCa::NoCa, IsCa::Ca(rcgen::BasicConstraints::Unconstrained)] {
        let files = Files::new();
        let mut params = params(&["localhost"]);
        params.is_ca = is_ca;
        let key = KeyPair::generate().unwrap();
        let own = params.self_signed(&key).unwrap();
        let rig = serving(own.der().clone(), &key).await;
        let attempt = told(&rig, "localhost", Some(files.put("own.pem", own.pem()))).await;
        assert!(attempt.verdict.is_acknowledged(), "{attempt:?}");
    }
}

#[tokio::test]
async fn a_refused_certificate_says_what_to_reissue() {
    let (files, (ca, issuer)) = (Files::new(), authority(|_| {}));
    let ca = files.put("ca.pem", ca);
    type Case = (&'static [&'static str], fn(&mut CertificateParams), &'static [&'static str]);
    let cases: [Case; 5] = [
        (&[], |_| {}, &["another name", "reissue", "subject alternative name", "common name"]),
        (&["other.example"], |_| {}, &["another name", "reissue"]),
        (&["localhost"], |params| params.not_after = rcgen::date_time_ymd(2001, 1, 1), &["expired", "renew"]),
        (
            &["localhost"],
            |params| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained),
            &["authority", "CA:FALSE", "reissue"],
        ),
        (
            &["localhost"],
            |params| params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth],
            &["not one for servers", "serverAuth"],
        ),
    ];
    for (names, change, said) in cases {
        let (certificate, key) = issued(names, &issuer, change);
        let rig = serving(certificate, &key).await;
        let attempt = told(&rig, "localhost", Some(ca.clone())).await;
        let (category, message) = failure(&attempt);
        assert_eq!(category, "tls_error");
        for said in said {
            assert!(message.contains(said), "{said}: {message}");
        }
    }
}

#[test]
fn a_file_that_is_of_no_use_is_found_at_the_start() {
    let files = Files::new();
    let key = files.put("key.pem", KeyPair::generate().unwrap().serialize_pem());
    for (path, said) in [(key, "private key"), (PathBuf::from("/nowhere.pem"), "cannot be read")] {
        let mut sink = sink("https://localhost/");
        sink.tls_ca = Some(path);
        let error = Endpoint::new(&sink).unwrap_err();
        assert!(matches!(error, EndpointError::CaFile { .. }), "{error:?}");
        let text = crate::fault::chain(&error);
        assert!(text.contains("tls.ca of sink orders") && text.contains(said), "{text}");
    }
}

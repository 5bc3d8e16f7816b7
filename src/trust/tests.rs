//! Which certificates are accepted, and which files are of use.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, Error};

use super::file::{CertificateFileError, Fault};
use super::{Trusted, Verifier};

/// Parameters of a certificate for these names, DNS or IP.
pub(crate) fn params(names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "localhost");
    params
}

/// An authority: its certificate as PEM, and what signs with it.
pub(crate) fn authority(change: impl FnOnce(&mut CertificateParams)) -> (String, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "a private authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), Issuer::new(params, key))
}

/// How `file` in a directory of its own is taken.
fn file(bytes: impl AsRef<[u8]>) -> Result<Trusted, CertificateFileError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    std::fs::write(&path, bytes).unwrap();
    Trusted::of_file(&path)
}

fn verify(trusted: Trusted, certificate: &CertificateDer<'_>, name: &str, check_name: bool) -> Result<(), Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier { provider, trusted: Some(trusted), check_name };
    let name = ServerName::try_from(name.to_owned()).unwrap();
    verifier.verify_server_cert(certificate, &[], &name, &[], UnixTime::now()).map(|_| ())
}

#[test]
fn a_certificate_is_judged_by_its_names_dates_and_uses() {
    let (ca, issuer) = authority(|_| {});
    type Change = fn(&mut CertificateParams);
    let past = |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let future = |params: &mut CertificateParams| params.not_before = rcgen::date_time_ymd(4000, 1, 1);
    let client = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    };
    let cases: [(&[&str], &str, Change, bool); 9] = [
        (&["localhost"], "localhost", |_| {}, true),
        (&["127.0.0.1"], "127.0.0.1", |_| {}, true),
        (&["*.example.com"], "a.example.com", |_| {}, true),
        (&["localhost"], "127.0.0.1", |_| {}, false),
        (&["other.example"], "localhost", |_| {}, false),
        // The common name is localhost, and does not count.
        (&[], "localhost", |_| {}, false),
        (&["localhost"], "localhost", past, false),
        (&["localhost"], "localhost", future, false),
        (&["localhost"], "localhost", client, false),
    ];
    for (names, name, change, good) in cases {
        let mut params = params(names);
        change(&mut params);
        let certificate = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        let verified = verify(file(&ca).unwrap(), certificate.der(), name, true);
        assert_eq!(verified.is_ok(), good, "{names:?} {name}: {verified:?}");
    }
    let nameless = params(&[]).signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
    verify(file(&ca).unwrap(), nameless.der(), "localhost", false).expect("only the authority is asked for");
}

#[test]
fn a_certificate_that_is_trusted_itself_needs_no_authority_but_its_dates_and_its_name() {
    for is_ca in [IsCa::NoCa, IsCa::ExplicitNoCa, IsCa::Ca(BasicConstraints::Unconstrained)] {
        let mut params = params(&["localhost"]);
        params.is_ca = is_ca;
        let own = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        verify(file(own.pem()).unwrap(), own.der(), "localhost", true).unwrap();
        let other = verify(file(own.pem()).unwrap(), own.der(), "other.example", true);
        assert!(matches!(other, Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. }))));
        let twin = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        verify(file(own.pem()).unwrap(), twin.der(), "localhost", true).expect_err("the same names, another key");
    }
    // It stands among the machine's, and is over.
    let mut old = params(&["localhost"]);
    old.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let old = old.self_signed(&KeyPair::generate().unwrap()).unwrap();
    let expired = verify(Trusted::of(vec![old.der().clone()]), old.der(), "localhost", true);
    assert!(matches!(expired, Err(Error::InvalidCertificate(CertificateError::ExpiredContext { .. }))), "{expired:?}");
}

#[test]
fn a_file_may_have_several_certificates_and_texts_between_them() {
    let (first, _) = authority(|_| {});
    let (second, issuer) = authority(|_| {});
    let (over, _) = authority(|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1));
    let key = KeyPair::generate().unwrap();
    let certificate = params(&["localhost"]).signed_by(&key, &issuer).unwrap();
    for text in [
        format!("{first}{second}"),
        format!("# subject: x\r\n{first}\nwords\n\n{over}\n{}", second.replace('\n', "\r\n")),
        format!("{}{second}", key.serialize_pem()),
    ] {
        verify(file(text).unwrap(), certificate.der(), "localhost", true).unwrap();
    }
    verify(file(first).unwrap(), certificate.der(), "localhost", true).expect_err("the other authority's");
}

#[test]
fn a_file_that_is_of_no_use_says_what_to_put_there() {
    let (pem, _) = authority(|_| {});
    let (over, _) = authority(|params| params.not_after = rcgen::date_time_ymd(2001, 1, 1));
    let (early, _) = authority(|params| params.not_before = rcgen::date_time_ymd(4000, 1, 1));
    let der = params(&["localhost"]).self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
    let cut: String = pem.chars().take(pem.len() / 2).collect();
    let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let request = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n";
    let cases: [(&[u8], &str); 11] = [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (&der, "is a certificate as DER, not as PEM: convert it (openssl x509 -inform der"),
        (KeyPair::generate().unwrap().serialize_pem().leak().as_bytes(), "has a private key and no certificate"),
        (request.as_bytes(), "has no certificate but a CERTIFICATE REQUEST"),
        (b"-----BEGIN s3cret words-----\n", "is not whole"),
        (b"s3cret", "has no certificate: it must be PEM"),
        (cut.as_bytes(), "is not whole"),
        (format!("{pem}{nonsense}").leak().as_bytes(), "has a certificate that cannot be read (number 2)"),
        (over.as_bytes(), "the last one expired at 2001-01-01T00:00:00Z; put in the one that replaces it"),
        (early.as_bytes(), "the last one begins at 4000-01-01T00:00:00Z"),
    ];
    for (bytes, said) in cases {
        let error = file(bytes).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("ca.pem ") && !error.contains("s3cret"), "{said}: {error}");
    }
    let missing = Trusted::of_file(Path::new("/nowhere/ca.pem")).unwrap_err();
    assert!(matches!(missing.fault, Fault::Read(_)) && missing.to_string() == "/nowhere/ca.pem cannot be read");
    assert!(matches!(Trusted::of_file(Path::new("/")).unwrap_err().fault, Fault::Read(_)));
}

/// DER of `tag` with `content`, whose length is written as short as it can be.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    let head = match (high, low) {
        (0, 0..=0x7f) => vec![tag, low],
        (0, _) => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    [head, content.to_vec()].concat()
}

/// The lengths of head and content of the DER value at the start of `bytes`.
fn lengths(bytes: &[u8]) -> (usize, usize) {
    match bytes[1] {
        0x81 => (3, usize::from(bytes[2])),
        0x82 => (4, usize::from(bytes[2]) << 8 | usize::from(bytes[3])),
        short => (2, usize::from(short)),
    }
}

/// The values in a DER value, each with its head.
fn parts(value: &[u8]) -> Vec<&[u8]> {
    let mut content = &value[lengths(value).0..];
    let mut parts = Vec::new();
    while !content.is_empty() {
        let (head, length) = lengths(content);
        let (part, rest) = content.split_at(head + length);
        parts.push(part);
        content = rest;
    }
    parts
}

#[test]
fn a_certificate_of_version_1_is_refused_as_such_even_if_it_is_trusted_itself() {
    let whole = params(&["localhost"]).self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
    let [body, algorithm, signature] = parts(&whole)[..] else { panic!("no certificate") };
    // Without the version in front and the extensions behind.
    let fields = parts(body);
    assert_eq!((fields[0][0], fields[fields.len() - 1][0]), (0xa0, 0xa3));
    let body = der(0x30, &fields[1..fields.len() - 1].concat());
    let old = CertificateDer::from(der(0x30, &[&body[..], algorithm, signature].concat()));
    let refused = verify(Trusted::of(vec![old.clone()]), &old, "localhost", true).unwrap_err();
    assert!(format!("{refused:?}").contains("UnsupportedCertVersion"), "{refused:?}");
}

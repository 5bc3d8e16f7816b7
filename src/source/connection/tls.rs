//! TLS with libpq's meaning of `sslmode` and `sslrootcert`, by rustls.
//!
//! Two differences to libpq: names are looked for in the certificate's subject alternative names only, and X.509
//! version 1 certificates are refused. A server certificate that itself stands in the `sslrootcert` file is trusted as
//! it is, its dates unchecked, so that self-signed ones work.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::Digest as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::ConnectError;
use super::unreached::is_closed;
use crate::source::address::{ClientCert, PgAddress, RootCert, SslMode};
use crate::source::wire::{Cursor, WireError};
use crate::tls_fault::{CertificateFault, TlsFault};

/// What `address` asks of TLS; `None` if it never uses it.
pub(super) fn config(address: &PgAddress) -> Result<Option<ClientConfig>, ConnectError> {
    let (trust, check_name) = match address.sslmode {
        SslMode::Disable => return Ok(None),
        SslMode::Allow | SslMode::Prefer => (None, false),
        // With sslrootcert, `require` means `verify-ca`.
        SslMode::Require | SslMode::VerifyCa => (address.sslrootcert.as_ref(), false),
        SslMode::VerifyFull => (address.sslrootcert.as_ref(), true),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let trusted = trust.map(trusted).transpose()?;
    let verifier = Verifier { provider: Arc::clone(&provider), trusted, check_name };
    let settings = |source: rustls::Error| ConnectError::TlsSettings { source: source.into() };
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(settings)?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let config = match &address.client_cert {
        None => builder.with_no_client_auth(),
        Some(ClientCert { cert, key }) => {
            let chain = certificates(cert)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|source| unusable(key, source))?;
            builder.with_client_auth_cert(chain, key).map_err(settings)?
        }
    };
    Ok(Some(config))
}

/// Makes a plain stream a TLS one.
pub(super) async fn handshake(
    config: &Arc<ClientConfig>,
    host: &str,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let name = ServerName::try_from(host.to_owned()).map_err(|source| ConnectError::TlsName {
        host: host.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidInput, source),
    })?;
    let connector = TlsConnector::from(Arc::clone(config));
    connector.connect(name, stream).await.map_err(|source| {
        let host = host.to_owned();
        match TlsFault::of(&source) {
            None if is_closed(source.kind()) => {
                ConnectError::Closed { host, when: "in the middle of the TLS handshake" }
            }
            Some(TlsFault::Certificate(CertificateFault::Name)) => ConnectError::TlsName { host, source },
            Some(TlsFault::Certificate(CertificateFault::Issuer)) => ConnectError::TlsIssuer { host, source },
            fault => ConnectError::Tls { host, fault: fault.unwrap_or(TlsFault::Other), source },
        }
    })
}

fn unusable(path: &Path, source: rustls::pki_types::pem::Error) -> ConnectError {
    ConnectError::TlsFile { path: path.to_owned(), source: Box::new(source) }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(unusable(path, rustls::pki_types::pem::Error::NoItemsFound)),
        Err(source) => Err(unusable(path, source)),
    }
}

/// Whom we trust.
#[derive(Debug)]
struct Trusted {
    authorities: RootCertStore,
    /// Certificates of the file, each of which may be the server's own.
    pinned: Vec<CertificateDer<'static>>,
}

fn trusted(cert: &RootCert) -> Result<Trusted, ConnectError> {
    let mut authorities = RootCertStore::empty();
    match cert {
        RootCert::System => {
            let found = rustls_native_certs::load_native_certs();
            authorities.add_parsable_certificates(found.certs);
            if authorities.is_empty() {
                let source = found.errors.into_iter().next().map_or_else(|| "the machine has none".into(), Into::into);
                return Err(ConnectError::TlsFile { path: "the machine's certificate authorities".into(), source });
            }
            Ok(Trusted { authorities, pinned: Vec::new() })
        }
        RootCert::File(path) => {
            let pinned = certificates(path)?;
            authorities.add_parsable_certificates(pinned.iter().cloned());
            Ok(Trusted { authorities, pinned })
        }
    }
}

#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// `None` trusts whoever answers.
    trusted: Option<Trusted>,
    check_name: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trusted) = &self.trusted else { return Ok(ServerCertVerified::assertion()) };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        if !trusted.pinned.contains(end_entity) {
            let algorithms = self.provider.signature_verification_algorithms.all;
            let authorities = &trusted.authorities;
            rustls::client::verify_server_cert_signed_by_trust_anchor(
                &parsed,
                authorities,
                intermediates,
                now,
                algorithms,
            )?;
        }
        if self.check_name {
            rustls::client::verify_server_name(&parsed, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The `tls-server-end-point` channel binding (RFC 5929): the certificate's hash, by the hash function of its signature.
/// `None` for signatures without one of the usual hash functions.
pub(super) fn end_point(stream: &TlsStream<TcpStream>) -> Option<Vec<u8>> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    let hash = match signature_algorithm(certificate).ok()? {
        // PKCS #1 with MD5, SHA-1 (both of which the RFC replaces by SHA-256), SHA-256; ECDSA with SHA-1, SHA-256.
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04" | b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05" => {
            sha2::Sha256::digest(certificate).to_vec()
        }
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b" => sha2::Sha256::digest(certificate).to_vec(),
        b"\x2a\x86\x48\xce\x3d\x04\x01" | b"\x2a\x86\x48\xce\x3d\x04\x03\x02" => {
            sha2::Sha256::digest(certificate).to_vec()
        }
        // The same with SHA-384, then SHA-512.
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c" | b"\x2a\x86\x48\xce\x3d\x04\x03\x03" => {
            sha2::Sha384::digest(certificate).to_vec()
        }
        b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d" | b"\x2a\x86\x48\xce\x3d\x04\x03\x04" => {
            sha2::Sha512::digest(certificate).to_vec()
        }
        _ => return None,
    };
    Some(hash)
}

/// The object identifier in `Certificate ::= SEQUENCE { tbsCertificate, SEQUENCE { OID, … }, signature }` (RFC 5280).
fn signature_algorithm(certificate: &[u8]) -> Result<&[u8], WireError> {
    let mut certificate = Cursor::new(der(&mut Cursor::new(certificate))?);
    der(&mut certificate)?;
    let algorithm = der(&mut certificate)?;
    der(&mut Cursor::new(algorithm))
}

/// The content of the next DER value.
fn der<'a>(cursor: &mut Cursor<'a>) -> Result<&'a [u8], WireError> {
    cursor.u8()?;
    let length = match cursor.u8()? {
        short @ 0..=0x7f => usize::from(short),
        long => {
            let bytes = cursor.take(usize::from(long & 0x7f))?;
            bytes.iter().fold(0usize, |length, byte| length.saturating_mul(256).saturating_add(usize::from(*byte)))
        }
    };
    cursor.take(length)
}

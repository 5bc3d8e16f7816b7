//! TLS with libpq's meaning of `sslmode` and `sslrootcert`, by rustls.
//!
//! Which certificates are accepted [`trust`](crate::trust) says, for endpoints too. Two differences to libpq: names are
//! looked for in the certificate's subject alternative names only, and X.509 version 1 certificates are refused.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use sha2::Digest as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::ConnectError;
use super::unreached::is_closed;
use crate::address::{ClientCert, PgAddress, RootCert, SslMode};
use crate::source::wire::{Cursor, WireError};
use crate::tls_fault::{CertificateFault, TlsFault};
use crate::trust::file::certificates;
use crate::trust::{Trusted, Verifier};

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
            let chain = certificates(cert).map_err(|error| unusable(cert, error.fault))?;
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
    // A zone says by which interface an address is reached, and no certificate has it.
    let plain = host.split_once('%').map_or(host, |(address, _)| address);
    let name = ServerName::try_from(plain.to_owned()).map_err(|source| ConnectError::TlsName {
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

fn unusable(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ConnectError {
    ConnectError::TlsFile { path: path.to_owned(), source: source.into() }
}

fn trusted(cert: &RootCert) -> Result<Trusted, ConnectError> {
    match cert {
        RootCert::System => {
            let path = Path::new("the machine's certificate authorities");
            Trusted::of_machine().map_err(|source| unusable(path, source))
        }
        RootCert::File(path) => Trusted::of_file(path).map_err(|error| unusable(path, error.fault)),
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

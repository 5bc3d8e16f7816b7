//! Which certificates are accepted, of databases and of endpoints alike.
//!
//! A certificate is accepted if an authority that is trusted vouches for it, or if it stands itself among the trusted
//! ones, as a self-signed one does that is its own authority: `CA:TRUE` or not, a person has put it there. Either way its
//! dates must hold and, unless only the authority is asked for (`sslmode=verify-ca`), the name must be one of its subject
//! alternative names; the common name does not count. X.509 version 1 has none and is refused. The dates of an authority
//! count when its file is read (see [`mod@file`]): an authority that is over vouches for nobody.

mod facts;
pub(crate) mod file;

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};

use facts::Facts;
use file::CertificateFileError;

/// Whom we trust.
#[derive(Debug)]
pub(crate) struct Trusted {
    authorities: RootCertStore,
    /// Hashes of certificates, each of which may be the other side's own.
    pinned: Vec<[u8; 32]>,
}

/// The machine has no authorities that can be used.
#[derive(Debug, thiserror::Error)]
#[error("this machine trusts no certificate authority: install ca-certificates or set SSL_CERT_FILE")]
pub struct NoAuthorities;

impl Trusted {
    /// The authorities of this machine.
    pub(crate) fn of_machine() -> Result<Self, NoAuthorities> {
        let found = rustls_native_certs::load_native_certs();
        let trusted = Self::of(found.certs);
        if trusted.authorities.is_empty() { Err(NoAuthorities) } else { Ok(trusted) }
    }

    /// Those in a file, and nobody else.
    pub(crate) fn of_file(path: &Path) -> Result<Self, CertificateFileError> {
        file::authorities(path, UnixTime::now()).map(Self::of)
    }

    fn of(certificates: Vec<CertificateDer<'static>>) -> Self {
        let pinned = certificates.iter().map(|certificate| Sha256::digest(certificate).into()).collect();
        let mut authorities = RootCertStore::empty();
        authorities.add_parsable_certificates(certificates);
        Self { authorities, pinned }
    }
}

impl From<RootCertStore> for Trusted {
    fn from(authorities: RootCertStore) -> Self {
        Self { authorities, pinned: Vec::new() }
    }
}

/// Accepts certificates as the module says.
#[derive(Debug)]
pub(crate) struct Verifier {
    pub(crate) provider: Arc<CryptoProvider>,
    /// `None` trusts whoever answers.
    pub(crate) trusted: Option<Trusted>,
    pub(crate) check_name: bool,
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
        if trusted.pinned.contains(&Sha256::digest(end_entity).into()) {
            in_its_time(end_entity, now)?;
        } else {
            rustls::client::verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &trusted.authorities,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
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

/// Whether `now` is between the dates of a certificate that nobody else vouches for.
fn in_its_time(certificate: &[u8], now: UnixTime) -> Result<(), CertificateError> {
    let facts = Facts::of(certificate).ok_or(CertificateError::BadEncoding)?;
    if now < facts.not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before: facts.not_before });
    }
    if now > facts.not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after: facts.not_after });
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;

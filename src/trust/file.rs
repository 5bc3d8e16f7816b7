//! Certificates of a file: PEM, one or several; and what a person may have put there instead.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;

use super::facts::Facts;

/// More is no file of certificates; a machine's whole list has half a megabyte.
const BYTES_MAX: u64 = 16 << 20;

/// A file that is of no use.
#[derive(Debug, thiserror::Error)]
#[error("{path} {fault}")]
pub struct CertificateFileError {
    /// Which.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub fault: Fault,
}

/// Why a file is of no use; what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Missing, or not for us.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// Too large for what it should be.
    #[error("has more than 16 MiB, so it is no file of certificates")]
    Large,
    /// Nothing in it.
    #[error("is empty: put the certificate of the authority into it, as PEM (-----BEGIN CERTIFICATE-----)")]
    Empty,
    /// The binary form.
    #[error("is a certificate as DER, not as PEM: convert it (openssl x509 -inform der -in FILE -out FILE.pem)")]
    Der,
    /// A key.
    #[error(
        "has a private key and no certificate: name the file of the authority's certificate, and keep this one to whom it \
         belongs"
    )]
    PrivateKey,
    /// Something else with a PEM label.
    #[error("has no certificate but a {0}: it must have -----BEGIN CERTIFICATE-----")]
    Label(String),
    /// Something else.
    #[error("has no certificate: it must be PEM (-----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    /// PEM that is cut off or overwritten.
    #[error("is not whole: a certificate in it breaks off or has a wrong letter, so export it again")]
    Broken(#[source] rustls::pki_types::pem::Error),
    /// PEM of what is no certificate.
    #[error("has a certificate that cannot be read (number {number}): export it again")]
    Unreadable {
        /// From 1.
        number: usize,
    },
    /// Nobody left in it who could vouch.
    #[error("has no certificate that is valid: the last one {what} {when}; put in the one that replaces it")]
    OutOfTime {
        /// `expired at`, `begins at`.
        what: &'static str,
        /// The date, UTC.
        when: Timestamp,
    },
}

/// The certificates of `path` that may vouch for others at `now`. Those that are over or have not begun are left out, so that an
/// old and a new one can stand in a file together.
pub(crate) fn authorities(path: &Path, now: UnixTime) -> Result<Vec<CertificateDer<'static>>, CertificateFileError> {
    let refuse = |fault| CertificateFileError { path: path.to_owned(), fault };
    of_time(certificates(path)?, now).map_err(refuse)
}

/// All certificates of `path`, in their order; there is at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateFileError> {
    let refuse = |fault| CertificateFileError { path: path.to_owned(), fault };
    let bytes = read(path).map_err(refuse)?;
    parse(&bytes).map_err(refuse)
}

fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Fault::Read)?;
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(Fault::Read)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > BYTES_MAX) { Err(Fault::Large) } else { Ok(bytes) }
}

fn parse(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(bytes).collect::<Result<_, _>>().map_err(Fault::Broken)?;
    if certificates.is_empty() {
        return Err(instead(bytes));
    }
    let bad = certificates.iter().position(|one| Facts::of(one).is_none());
    match bad {
        Some(index) => Err(Fault::Unreadable { number: index + 1 }),
        None => Ok(certificates),
    }
}

/// What stands there where a certificate should.
fn instead(bytes: &[u8]) -> Fault {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Fault::Empty;
    }
    if ParsedCertificate::try_from(&CertificateDer::from(bytes)).is_ok() || Facts::of(bytes).is_some() {
        return Fault::Der;
    }
    let text = String::from_utf8_lossy(bytes);
    let label = text.lines().find_map(|line| line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----"));
    match label {
        Some("CERTIFICATE") => Fault::NoCertificate,
        Some(label) if label.ends_with("PRIVATE KEY") => Fault::PrivateKey,
        // A label is some words; a secret in its place is not repeated.
        Some(label)
            if label.len() <= 40
                && label.bytes().all(|byte| byte.is_ascii_uppercase() || b" 0123456789#".contains(&byte)) =>
        {
            Fault::Label(label.to_owned())
        }
        Some(_) | None => Fault::NoCertificate,
    }
}

fn of_time(certificates: Vec<CertificateDer<'static>>, now: UnixTime) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let mut latest: Option<(&'static str, UnixTime)> = None;
    let mut valid = Vec::with_capacity(certificates.len());
    for certificate in certificates {
        let Some(Facts { not_before, not_after }) = Facts::of(&certificate) else { continue };
        if now < not_before {
            latest = Some(("begins at", not_before));
        } else if now > not_after {
            latest = Some(("expired at", not_after));
        } else {
            valid.push(certificate);
        }
    }
    match latest {
        Some((what, when)) if valid.is_empty() => {
            let when = i64::try_from(when.as_secs()).ok().and_then(|secs| Timestamp::from_second(secs).ok());
            Err(Fault::OutOfTime { what, when: when.unwrap_or(Timestamp::MAX) })
        }
        Some(_) | None => Ok(valid),
    }
}

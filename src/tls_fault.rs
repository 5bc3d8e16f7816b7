//! Why TLS failed, towards a database or an endpoint: what is wrong, and what has to be issued, sent or set instead. Pure.
//!
//! Errors are told apart by their types, never by their words.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError, InvalidMessage};

/// Why there is no TLS session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFault {
    /// The certificate of the other side is not accepted.
    Certificate(CertificateFault),
    /// What answers does not speak TLS.
    NotTls,
    /// The other side wants a certificate of ours and got none.
    WantsCertificate,
    /// The other side does not accept our certificate.
    RefusesCertificate,
    /// The other side serves no such name.
    UnknownName,
    /// No version of TLS, or no cipher, that both sides have.
    NothingInCommon,
    /// Something else.
    Other,
}

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateFault {
    /// It is for another name.
    Name,
    /// Nobody we trust vouches for it.
    Issuer,
    /// It is over.
    Expired,
    /// It has not begun.
    NotYetValid,
    /// It was taken back.
    Revoked,
    /// It is not one of a server.
    Purpose,
    /// It is one of an authority.
    Authority,
    /// It is of X.509 before version 3.
    Version,
    /// It is signed in a way that nobody trusts any more.
    Algorithm,
    /// It cannot be read.
    Unreadable,
}

/// Whose TLS it is, on which depends what a person can set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A source's database.
    Database,
    /// A sink's endpoint.
    Endpoint,
}

impl TlsFault {
    /// The fault behind `error`, if TLS is what failed.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(tls) = error.downcast_ref::<rustls::Error>() {
                return Some(of_rustls(tls));
            }
            // An io::Error hides what it wraps from `source`.
            let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            next = wrapped.map(|wrapped| wrapped as &(dyn Error + 'static)).or_else(|| error.source());
        }
        None
    }

    /// What is wrong, as the end of a sentence that begins with the TLS handshake.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Certificate(fault) => fault.what(),
            Self::NotTls => "what answers there does not speak TLS",
            Self::WantsCertificate => "the other side wants a certificate of walhook's and got none",
            Self::RefusesCertificate => "the other side does not accept walhook's certificate",
            Self::UnknownName => "the other side serves no host of that name",
            Self::NothingInCommon => "the two sides have no version of TLS or no cipher in common",
            Self::Other => "TLS failed",
        }
    }

    /// What to do.
    pub(crate) fn advice(self, peer: Peer) -> &'static str {
        match (self, peer) {
            (Self::Certificate(fault), peer) => fault.advice(peer),
            (Self::NotTls, Peer::Database) => {
                "correct host and port in the source's url: what listens there is not Postgres"
            }
            (Self::NotTls, Peer::Endpoint) => {
                "the port speaks plain HTTP: write http:// in the sink's url, or the port on which the endpoint has TLS"
            }
            (Self::WantsCertificate, Peer::Database) => {
                "give a certificate that the server knows: sslcert and sslkey in the source's url"
            }
            (Self::WantsCertificate, Peer::Endpoint) => {
                "the endpoint asks clients for certificates, which this version cannot show: let it take walhook by a header or \
                 a signature"
            }
            (Self::RefusesCertificate, Peer::Database) => {
                "reissue the certificate in sslcert: its authority must stand in the server's ssl_ca_file, and its dates must hold"
            }
            (Self::RefusesCertificate, Peer::Endpoint) => "look into the endpoint's log for what it has against it",
            (Self::UnknownName, Peer::Database) => "write the name that the server goes by as host in the source's url",
            (Self::UnknownName, Peer::Endpoint) => "write the name that the endpoint goes by into the sink's url",
            (Self::NothingInCommon, _) => {
                "the other side must have TLS 1.2 or 1.3: raise what it allows, or renew its software"
            }
            (Self::Other, _) => "look into the log of the other side, and of any proxy before it",
        }
    }

    /// Whether it stays until a person has changed something.
    pub(crate) fn is_lasting(self) -> bool {
        match self {
            Self::Certificate(_) | Self::WantsCertificate | Self::RefusesCertificate | Self::NothingInCommon => true,
            Self::NotTls | Self::UnknownName | Self::Other => false,
        }
    }
}

impl CertificateFault {
    fn what(self) -> &'static str {
        match self {
            Self::Name => "the certificate is for another name",
            Self::Issuer => "no authority that walhook trusts vouches for the certificate",
            Self::Expired => "the certificate has expired",
            Self::NotYetValid => "the certificate is not valid yet",
            Self::Revoked => "the certificate was revoked",
            Self::Purpose => "the certificate is not one for servers",
            Self::Authority => "the certificate is an authority's own and not a server's",
            Self::Version => "the certificate is of X.509 before version 3",
            Self::Algorithm => "the certificate is signed by an algorithm that is not trusted any more",
            Self::Unreadable => "the certificate cannot be read",
        }
    }

    fn advice(self, peer: Peer) -> &'static str {
        match (self, peer) {
            (Self::Name, Peer::Database) => {
                "put the name that is in the certificate into host (and the IP address into hostaddr if that name leads \
                 elsewhere), or reissue it with this host among its subject alternative names (its common name does not count)"
            }
            (Self::Name, Peer::Endpoint) => {
                "reissue the certificate with the url's host among its subject alternative names (its common name does not \
                 count), or write the name that it has into the url"
            }
            (Self::Issuer, Peer::Database) => {
                "put the certificate of the authority that signed it into the file that sslrootcert names, or the server's own \
                 if it signed itself; the server must send the authorities in between too"
            }
            (Self::Issuer, Peer::Endpoint) => {
                "let the endpoint send its whole chain, the authorities in between too; a private authority's certificate \
                 belongs into the sink's tls.ca"
            }
            (Self::Expired, _) => "renew it on the other side, or set this machine's clock right",
            (Self::NotYetValid, _) => "set the clock of this machine right, or reissue it with a date that has begun",
            (Self::Revoked, _) => "reissue it",
            (Self::Purpose, _) => "reissue it with the extended key usage serverAuth",
            (Self::Authority, _) => "reissue it as a server's: CA:FALSE, signed by that authority",
            (Self::Version, _) => "reissue it as X.509 version 3, with subject alternative names",
            (Self::Algorithm, _) => {
                "reissue it, signed with SHA-256 or better and RSA of 2048 bits or more, ECDSA or Ed25519"
            }
            (Self::Unreadable, _) => "reissue it",
        }
    }
}

fn of_rustls(error: &rustls::Error) -> TlsFault {
    if let rustls::Error::InvalidCertificate(error) = error {
        return of_certificate(error);
    }
    if let rustls::Error::AlertReceived(alert) = error {
        return of_alert(*alert);
    }
    if matches!(
        error,
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion)
    ) {
        TlsFault::NotTls
    } else if matches!(error, rustls::Error::PeerIncompatible(_)) {
        TlsFault::NothingInCommon
    } else {
        TlsFault::Other
    }
}

fn of_alert(alert: AlertDescription) -> TlsFault {
    if alert == AlertDescription::CertificateRequired {
        TlsFault::WantsCertificate
    } else if [
        AlertDescription::BadCertificate,
        AlertDescription::UnsupportedCertificate,
        AlertDescription::CertificateRevoked,
        AlertDescription::CertificateExpired,
        AlertDescription::CertificateUnknown,
        AlertDescription::UnknownCA,
        AlertDescription::AccessDenied,
    ]
    .contains(&alert)
    {
        TlsFault::RefusesCertificate
    } else if alert == AlertDescription::UnrecognisedName {
        TlsFault::UnknownName
    } else if [
        AlertDescription::HandshakeFailure,
        AlertDescription::ProtocolVersion,
        AlertDescription::InsufficientSecurity,
    ]
    .contains(&alert)
    {
        TlsFault::NothingInCommon
    } else {
        TlsFault::Other
    }
}

fn of_certificate(error: &CertificateError) -> TlsFault {
    let is = |ones: &[CertificateError]| ones.contains(error);
    let fault = if is(&[CertificateError::NotValidForName])
        || matches!(error, CertificateError::NotValidForNameContext { .. })
    {
        CertificateFault::Name
    } else if is(&[CertificateError::UnknownIssuer, CertificateError::BadSignature]) {
        CertificateFault::Issuer
    } else if is(&[CertificateError::Expired]) || matches!(error, CertificateError::ExpiredContext { .. }) {
        CertificateFault::Expired
    } else if is(&[CertificateError::NotValidYet]) || matches!(error, CertificateError::NotValidYetContext { .. }) {
        CertificateFault::NotYetValid
    } else if is(&[CertificateError::Revoked]) {
        CertificateFault::Revoked
    } else if is(&[CertificateError::InvalidPurpose]) || matches!(error, CertificateError::InvalidPurposeContext { .. })
    {
        CertificateFault::Purpose
    } else if matches!(
        error,
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. }
    ) {
        CertificateFault::Algorithm
    } else if let CertificateError::Other(other) = error {
        return of_webpki(other);
    } else {
        CertificateFault::Unreadable
    };
    TlsFault::Certificate(fault)
}

/// What rustls has no name of its own for.
fn of_webpki(error: &rustls::OtherError) -> TlsFault {
    let webpki = error.source().and_then(|error| error.downcast_ref::<webpki::Error>());
    TlsFault::Certificate(match webpki {
        Some(webpki::Error::CaUsedAsEndEntity) => CertificateFault::Authority,
        Some(webpki::Error::UnsupportedCertVersion) => CertificateFault::Version,
        Some(
            webpki::Error::EndEntityUsedAsCa
            | webpki::Error::NameConstraintViolation
            | webpki::Error::PathLenConstraintViolated,
        ) => CertificateFault::Issuer,
        _ => CertificateFault::Unreadable,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_found_however_deep_it_is_wrapped() {
        let certificate = CertificateFault::Expired;
        let rustls = || rustls::Error::InvalidCertificate(CertificateError::Expired);
        let io = || io::Error::new(io::ErrorKind::InvalidData, rustls());
        let wrapped = io::Error::other(io());
        for error in [&rustls() as &(dyn Error + 'static), &io(), &wrapped] {
            assert_eq!(TlsFault::of(error), Some(TlsFault::Certificate(certificate)));
        }
        assert_eq!(TlsFault::of(&io::Error::from(io::ErrorKind::UnexpectedEof)), None);
    }

    #[test]
    fn every_kind_has_its_own_words_and_its_own_advice() {
        use CertificateFault as C;
        let alert = rustls::Error::AlertReceived;
        let certificate = rustls::Error::InvalidCertificate;
        let webpki =
            |error: webpki::Error| certificate(CertificateError::Other(rustls::OtherError(std::sync::Arc::new(error))));
        let cases = [
            (
                certificate(CertificateError::NotValidForName),
                TlsFault::Certificate(C::Name),
                "subject alternative names",
            ),
            (certificate(CertificateError::UnknownIssuer), TlsFault::Certificate(C::Issuer), "authorit"),
            (certificate(CertificateError::Expired), TlsFault::Certificate(C::Expired), "renew"),
            (certificate(CertificateError::NotValidYet), TlsFault::Certificate(C::NotYetValid), "clock"),
            (certificate(CertificateError::Revoked), TlsFault::Certificate(C::Revoked), "reissue"),
            (certificate(CertificateError::InvalidPurpose), TlsFault::Certificate(C::Purpose), "serverAuth"),
            (certificate(CertificateError::BadEncoding), TlsFault::Certificate(C::Unreadable), "reissue"),
            (webpki(webpki::Error::CaUsedAsEndEntity), TlsFault::Certificate(C::Authority), "CA:FALSE"),
            (webpki(webpki::Error::UnsupportedCertVersion), TlsFault::Certificate(C::Version), "version 3"),
            (rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType), TlsFault::NotTls, "url"),
            (alert(AlertDescription::CertificateRequired), TlsFault::WantsCertificate, "certificate"),
            (alert(AlertDescription::UnknownCA), TlsFault::RefusesCertificate, "certificate|log"),
            (alert(AlertDescription::UnrecognisedName), TlsFault::UnknownName, "name"),
            (alert(AlertDescription::ProtocolVersion), TlsFault::NothingInCommon, "TLS 1.2"),
            (alert(AlertDescription::InternalError), TlsFault::Other, "log"),
        ];
        let mut said = std::collections::HashSet::new();
        for (error, expected, advice) in cases {
            let fault = TlsFault::of(&error).unwrap();
            assert_eq!(fault, expected, "{error:?}");
            assert!(said.insert(fault.what()), "{fault:?}");
            let told = [Peer::Database, Peer::Endpoint].map(|peer| fault.advice(peer));
            assert!(advice.split('|').any(|word| told.iter().any(|told| told.contains(word))), "{fault:?}: {told:?}");
            // Of the database nobody is told to change a sink, and the other way round.
            assert!(!told[0].contains("sink") && !told[0].contains("tls.ca"), "{fault:?}");
            assert!(!told[1].contains("source") && !told[1].contains("sslrootcert"), "{fault:?}");
        }
    }
}

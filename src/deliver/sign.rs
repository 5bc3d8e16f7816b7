//! Standard Webhooks signatures (<https://github.com/standard-webhooks/standard-webhooks>, version 1, symmetric):
//! `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`.
//!
//! Sending signs with every secret of the sink, so that a receiver may rotate; the receiver of `walhook listen`
//! verifies. A secret is kept only as the keyed state of the MAC and never printed.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::HeaderValue;
use sha2::Sha256;

use crate::pasted::blemish;

/// How far a timestamp may be from the receiver's clock, either way (the specification's advice).
pub const TOLERANCE: Duration = Duration::from_secs(5 * 60);

const PREFIX: &str = "whsec_";
const VERSION: &str = "v1,";

/// Secrets are pasted by people; padding is often lost on the way.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The alphabet of addresses, which other signatures use and this one does not.
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A signing secret.
#[derive(Clone)]
pub struct SigningSecret {
    keyed: Hmac<Sha256>,
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret(…)")
    }
}

/// The text is not a signing secret. The text itself is not part of the error.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Something clings to it that is not part of it.
    #[error("{0}")]
    Blemish(String),
    /// The version of the signature stands before it.
    #[error(
        "begins with the signature's version, as some dashboards show a secret: the secret is what follows v1, and begins with whsec_"
    )]
    Version,
    /// One of a pair of keys.
    #[error(
        "is half of a pair of keys (whsk_, whpk_), which walhook does not sign with: it takes a shared secret, whsec_…"
    )]
    Asymmetric,
    /// A variable that was not filled in.
    #[error("begins with $: a variable is written ${{NAME}}, and what it holds is not filled in again")]
    Variable,
    /// More than one.
    #[error("holds several secrets: each is an item of the list signing_secrets")]
    Several,
    /// Its letters have been made capitals.
    #[error(
        "begins with whsec_ in other letters: something has changed the case of all of it, and base64 tells capitals from small letters: copy it anew"
    )]
    Case,
    /// Base64 in the alphabet of addresses.
    #[error("is base64 in the alphabet of addresses: Standard Webhooks has + for - and / for _, at the receiver too")]
    UrlSafe,
    /// Not base64.
    #[error("a signing secret is whsec_ followed by base64, and this is not base64")]
    NotBase64,
    /// Too short to be safe, or longer than the specification allows.
    #[error("a signing secret has 24 to 64 bytes before base64, and this has {0}")]
    Length(usize),
}

/// A request does not carry a valid signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// `webhook-timestamp` is not a number of seconds.
    #[error("webhook-timestamp is not a number of seconds")]
    Timestamp,
    /// The timestamp is more than [`TOLERANCE`] in the past.
    #[error("webhook-timestamp is more than five minutes old")]
    TooOld,
    /// The timestamp is more than [`TOLERANCE`] in the future.
    #[error("webhook-timestamp is more than five minutes ahead")]
    TooNew,
    /// No `v1` signature was made with one of the secrets.
    #[error("no signature in webhook-signature matches")]
    NoMatch,
}

impl SigningSecret {
    /// Reads base64 of 24 to 64 bytes, with the prefix `whsec_` or without it.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        if text.is_empty() {
            return Err(not_base64(text));
        }
        let key = LENIENT.decode(text.strip_prefix(PREFIX).unwrap_or(text)).map_err(|_| not_base64(text))?;
        if !(24..=64).contains(&key.len()) {
            return Err(SecretError::Length(key.len()));
        }
        let keyed = Hmac::new_from_slice(&key).expect("HMAC takes keys of every length");
        Ok(Self { keyed })
    }

    fn mac(&self, id: &str, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.keyed.clone();
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        mac
    }
}

/// What else a text is that is not base64.
fn not_base64(text: &str) -> SecretError {
    let bare = text.strip_prefix(PREFIX).unwrap_or(text);
    if let Some(blemish) = blemish(text) {
        SecretError::Blemish(blemish.to_string())
    } else if text.get(..PREFIX.len()).is_some_and(|start| start != PREFIX && start.eq_ignore_ascii_case(PREFIX)) {
        SecretError::Case
    } else if text.starts_with(VERSION) || text.starts_with("v1a,") {
        SecretError::Version
    } else if text.starts_with("whsk_") || text.starts_with("whpk_") {
        SecretError::Asymmetric
    } else if text.starts_with('$') {
        SecretError::Variable
    } else if text.matches(PREFIX).count() > 1 {
        SecretError::Several
    } else if URL_SAFE.decode(bare).is_ok() {
        SecretError::UrlSafe
    } else {
        SecretError::NotBase64
    }
}

/// The value of `webhook-signature`: one signature a secret, in their order, parted by spaces; `None` without secrets.
pub fn sign(secrets: &[SigningSecret], id: &str, timestamp: u64, body: &[u8]) -> Option<HeaderValue> {
    let timestamp = timestamp.to_string();
    let mut value = String::with_capacity(secrets.len() * 48);
    for secret in secrets {
        if !value.is_empty() {
            value.push(' ');
        }
        value.push_str(VERSION);
        STANDARD.encode_string(secret.mac(id, &timestamp, body).finalize().into_bytes(), &mut value);
    }
    if value.is_empty() {
        return None;
    }
    Some(HeaderValue::try_from(value).expect("base64, commas and spaces are allowed in a header value"))
}

/// Checks the three `webhook-` headers against the body at the time `now` (unix seconds). Signatures are compared in
/// constant time; those of other versions than `v1` are passed over.
pub fn verify(secrets: &[SigningSecret], signed: &Signed<'_>, body: &[u8], now: u64) -> Result<(), VerifyError> {
    let at: u64 = signed.timestamp.parse().map_err(|_| VerifyError::Timestamp)?;
    if now.saturating_sub(at) > TOLERANCE.as_secs() {
        return Err(VerifyError::TooOld);
    }
    if at.saturating_sub(now) > TOLERANCE.as_secs() {
        return Err(VerifyError::TooNew);
    }
    let given = signed.signatures.split(' ').filter_map(|one| STANDARD.decode(one.strip_prefix(VERSION)?).ok());
    for signature in given {
        if secrets.iter().any(|secret| secret.mac(signed.id, signed.timestamp, body).verify_slice(&signature).is_ok()) {
            return Ok(());
        }
    }
    Err(VerifyError::NoMatch)
}

/// The headers that a signature is about, as received.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// `webhook-id`.
    pub id: &'a str,
    /// `webhook-timestamp`.
    pub timestamp: &'a str,
    /// `webhook-signature`.
    pub signatures: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;
    use standardwebhooks::Webhook;

    const OLD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const NEW: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const BODY: &[u8] = br#"{"data":[]}"#;

    fn now() -> u64 {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
    }

    fn headers(id: &str, timestamp: u64, signature: &HeaderValue) -> http::HeaderMap {
        let mut headers = http::HeaderMap::new();
        headers.insert("webhook-id", HeaderValue::from_str(id).unwrap());
        headers.insert("webhook-timestamp", HeaderValue::from(timestamp));
        headers.insert("webhook-signature", signature.clone());
        headers
    }

    #[test]
    fn standardwebhooks_accepts_each_of_several_signatures() {
        let secrets = [SigningSecret::parse(OLD).unwrap(), SigningSecret::parse(NEW).unwrap()];
        let at = now();
        let signature = sign(&secrets, "dlv_1", at, BODY).unwrap();
        for secret in [OLD, NEW] {
            Webhook::new(secret).unwrap().verify(BODY, &headers("dlv_1", at, &signature)).unwrap();
        }
        let stranger = Webhook::from_bytes(vec![7; 32]).unwrap();
        assert!(stranger.verify(BODY, &headers("dlv_1", at, &signature)).is_err());
        assert!(sign(&[], "dlv_1", at, BODY).is_none());
    }

    #[test]
    fn what_standardwebhooks_signs_verifies_here_within_five_minutes() {
        let secrets = [SigningSecret::parse(NEW).unwrap()];
        let at = 1_700_000_000;
        let made = Webhook::new(NEW).unwrap().sign("dlv_1", i64::try_from(at).unwrap(), BODY).unwrap();
        let signatures = format!("v1a,c2lnbmF0dXJl v1,AAAA {made}");
        let timestamp = at.to_string();
        let signed = Signed { id: "dlv_1", timestamp: &timestamp, signatures: &signatures };
        for now in [at - 300, at, at + 300] {
            assert_eq!(verify(&secrets, &signed, BODY, now), Ok(()));
        }
        assert_eq!(verify(&secrets, &signed, BODY, at + 301), Err(VerifyError::TooOld));
        assert_eq!(verify(&secrets, &signed, BODY, at - 301), Err(VerifyError::TooNew));
        assert_eq!(verify(&secrets, &signed, b"{}", at), Err(VerifyError::NoMatch));
        let bare = Signed { timestamp: "soon", ..signed };
        assert_eq!(verify(&secrets, &bare, BODY, at), Err(VerifyError::Timestamp));
    }

    #[test]
    fn what_is_pasted_for_a_secret_is_named() {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        for (text, expected) in [
            (format!("v1,{secret}"), "v1,"),
            (format!("v1a,{secret}"), "version"),
            (format!("{secret}\n"), "line break"),
            (format!("{secret}\r\n"), "line break"),
            (format!("{secret} "), "space"),
            (format!(" {secret}"), "space"),
            (format!("\"{secret}\""), "quotes"),
            (format!("\u{feff}{secret}"), "U+FEFF"),
            (format!("{secret},{secret}"), "several"),
            (format!("{secret} {secret}"), "several"),
            (String::new(), "is empty"),
            ("whsec_".to_owned(), "this has 0"),
            ("WHSEC_MFKQ9R8GKYQRTWJUPD8ILPZIO2LALASW".to_owned(), "case"),
            ("$ORDERS_WHSEC".to_owned(), "${NAME}"),
            ("whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(), "pair of keys"),
            ("whsec_MfKQ9r8GKYqrTwjUPD8-LPZIo2La_aSw".to_owned(), "alphabet of addresses"),
            ("whsec_MfKQ9r8GKYqrTwjUPD8!LPZIo2LaLaSw".to_owned(), "not base64"),
        ] {
            let said = SigningSecret::parse(&text).unwrap_err().to_string();
            assert!(said.contains(expected), "{text:?}: {said}");
            assert!(!said.to_ascii_lowercase().contains("mfkq9"), "{said}");
        }
    }

    #[test]
    fn secrets_are_24_to_64_bytes_and_never_print() {
        assert!(SigningSecret::parse(OLD.strip_prefix(PREFIX).unwrap()).is_ok());
        for (bytes, good) in [(23, false), (24, true), (25, true), (64, true), (65, false), (0, false)] {
            let padded = format!("whsec_{}", STANDARD.encode(vec![1; bytes]));
            for text in [padded.trim_end_matches('='), &padded] {
                assert_eq!(SigningSecret::parse(text).is_ok(), good, "{bytes}");
            }
        }
        assert_eq!(SigningSecret::parse("whsec_not base64!").unwrap_err(), SecretError::NotBase64);
        assert_eq!(format!("{:?}", SigningSecret::parse(OLD).unwrap()), "SigningSecret(…)");
    }
}

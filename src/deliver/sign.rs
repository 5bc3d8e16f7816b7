//! Standard Webhooks signatures.

/// A signing secret.
#[derive(Clone, Debug)]
pub struct SigningSecret;

/// The text is no signing secret.
#[derive(Debug, thiserror::Error)]
#[error("must be whsec_ and the base64 of 24 to 64 bytes")]
pub struct SecretError;

impl SigningSecret {
    /// Reads `whsec_…`.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        use base64::Engine as _;
        let encoded = text.strip_prefix("whsec_").ok_or(SecretError)?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).map_err(|_| SecretError)?;
        (24..=64).contains(&bytes.len()).then_some(Self).ok_or(SecretError)
    }
}

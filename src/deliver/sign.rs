//! Standard Webhooks signatures.

/// A signing secret.
#[derive(Clone, Debug)]
pub struct SigningSecret;

//! Stand-in until the message is merged.

/// `msg_` + idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageId(pub u128);

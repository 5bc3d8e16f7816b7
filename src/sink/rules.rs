//! The sink's rules, as its scheduler needs them.

use super::READY_MESSAGES_ENOUGH;
use crate::config::{OnExhausted, SinkConfig};
use crate::schedule::{self, Limits, RetryRule, Rules};

/// The most that stands around the messages of a body: `{"data":[]}`.
const BODY_FRAME_BYTES: usize = 11;

/// `write_bytes` is what the store takes at once, `ready_bytes` what is enough of it to have been read back.
pub(super) fn rules(config: &SinkConfig, keeps: bool, (write_bytes, ready_bytes): (usize, usize)) -> Rules {
    let retry = config.retry;
    let slots_twice = config.max_in_flight.saturating_mul(config.batch_size).saturating_mul(2);
    Rules {
        batch_size: config.batch_size,
        batch_bytes: config.batch_bytes.saturating_sub(BODY_FRAME_BYTES),
        batch_timeout: config.batch_timeout,
        max_ack_pending: config.max_ack_pending,
        max_in_flight: config.max_in_flight,
        retry: RetryRule { initial: retry.initial, max: retry.max },
        limits: Limits { max_attempts: retry.max_attempts, max_age: retry.max_age },
        on_exhausted: match retry.on_exhausted {
            OnExhausted::Continue => schedule::OnExhausted::Continue,
            OnExhausted::BlockGroup => schedule::OnExhausted::BlockGroup,
            OnExhausted::PauseSink => schedule::OnExhausted::PauseSink,
        },
        split_after: retry.split_after,
        keeps,
        enough: (READY_MESSAGES_ENOUGH.max(slots_twice), ready_bytes),
        write_bytes,
    }
}

//! What deliveries consist of: changes until the first attempt, the frozen body from then on.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::change::{Change, OldRow, Row, Tuple};
use crate::config::SinkConfig;
use crate::deliver::frozen::Frozen;
use crate::memory::Memory;
use crate::record::Rendering;

/// What a message commonly has beside its row's values; only the first guess of a body's size.
const MESSAGE_FRAME_BYTES: usize = 512;

/// A delivery that is not acknowledged.
pub(super) struct Delivery {
    pub(super) content: Content,
    pub(super) facts: Facts,
}

/// What it consists of.
#[derive(Clone)]
pub(super) enum Content {
    /// Changes, until the first attempt has rendered them.
    Changes(Arc<Vec<Change>>),
    /// The body, the same over all attempts.
    Frozen(Frozen),
}

/// What is told of a delivery in logs and metrics.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) messages: usize,
    /// The first message's group, once something has to be said of it.
    pub(super) group: Option<String>,
    pub(super) oldest_commit: SystemTime,
    pub(super) oldest_received: Instant,
}

impl Facts {
    /// Of a delivery of these changes.
    pub(super) fn of(changes: &[Change]) -> Self {
        let micros = changes.iter().map(|change| change.transaction.commit_micros).min().unwrap_or_default();
        let since_epoch = Duration::from_micros(u64::try_from(micros).unwrap_or_default());
        Self {
            messages: changes.len(),
            group: None,
            oldest_commit: SystemTime::UNIX_EPOCH + since_epoch,
            oldest_received: changes.iter().map(|change| change.received_at).min().unwrap_or_else(Instant::now),
        }
    }
}

/// Renders the body of a delivery.
pub(super) fn freeze(config: &SinkConfig, rendering: &Rendering, memory: &Memory, changes: &[Change]) -> Frozen {
    let ids = changes.iter().map(|change| rendering.message_id(change.position()));
    let capacity = changes.iter().map(|change| change.len_bytes() + MESSAGE_FRAME_BYTES).sum();
    Frozen::build(memory, &config.name, config.body, capacity, ids, |index, id, body| {
        if let Some(change) = changes.get(index) {
            rendering.append_as(id, change, body);
        }
    })
}

/// The change with row values of its own instead of slices of a read buffer.
pub(super) fn detached(change: Change, memory: &Memory) -> Change {
    let own = |tuple: Tuple| Tuple(memory.hold(tuple.0.to_vec()));
    let own_old = |old: OldRow| match old {
        OldRow::Key(tuple) => OldRow::Key(own(tuple)),
        OldRow::Full(tuple) => OldRow::Full(own(tuple)),
    };
    let row = match change.row {
        Row::Insert { new } => Row::Insert { new: own(new) },
        Row::Update { old, new } => Row::Update { old: old.map(own_old), new: own(new) },
        Row::Delete { old } => Row::Delete { old: own_old(old) },
        Row::Read { new } => Row::Read { new: own(new) },
    };
    Change { row, ..change }
}

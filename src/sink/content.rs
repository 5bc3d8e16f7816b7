//! What messages and deliveries consist of: changes until they are rendered, JSON and frozen bodies from then on.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use crate::change::{Change, OldRow, Position, Row, Tuple};
use crate::config::SinkConfig;
use crate::deliver::frozen::{DeliveryId, Frozen};
use crate::memory::Memory;
use crate::record::Rendering;
use crate::source::route::group_text;
use crate::store::{Home, KeptDelivery, KeptMessage, Member, MessageFacts, Tries};
use crate::ties::{GroupId, Ties};

/// What a message commonly has beside its row's values; only the first guess of a body's size.
const MESSAGE_FRAME_BYTES: usize = 512;

/// What a waiting message consists of.
#[derive(Clone, Debug)]
pub(super) enum Payload {
    /// A change, as it was read.
    Change(Change),
    /// What came back from the store.
    Kept(Arc<ReadBack>),
}

/// A message that came back from the store.
#[derive(Debug)]
pub(super) struct ReadBack {
    pub(super) message: KeptMessage,
    pub(super) home: Home,
    pub(super) read_at: Instant,
}

impl Payload {
    /// Where the store has it.
    pub(super) fn home(&self) -> Option<Home> {
        match self {
            Self::Change(_) => None,
            Self::Kept(kept) => Some(kept.home),
        }
    }

    /// What is known of it beside its JSON; `ties` are those that the scheduler has it under.
    pub(super) fn facts(&self, ties: Ties, config: &SinkConfig, rendering: &Rendering) -> MessageFacts {
        match self {
            Self::Change(change) => MessageFacts {
                id: rendering.message_id(change.position()),
                position: change.position(),
                groups: ties.groups,
                scope: ties.scope,
                barrier: ties.barrier,
                commit_micros: change.transaction.commit_micros,
                event: Arc::clone(change.table.event(change.action())),
                group: group_text(change, config).map(Into::into),
            },
            Self::Kept(kept) => MessageFacts { groups: ties.groups, ..kept.message.facts.clone() },
        }
    }

    /// Its event type.
    pub(super) fn event(&self) -> Arc<str> {
        match self {
            Self::Change(change) => Arc::clone(change.table.event(change.action())),
            Self::Kept(kept) => Arc::clone(&kept.message.facts.event),
        }
    }

    /// Where it stands in the order of commits.
    pub(super) fn position(&self) -> Position {
        match self {
            Self::Change(change) => change.position(),
            Self::Kept(kept) => kept.message.facts.position,
        }
    }

    pub(super) fn commit_micros(&self) -> i64 {
        match self {
            Self::Change(change) => change.transaction.commit_micros,
            Self::Kept(kept) => kept.message.facts.commit_micros,
        }
    }

    fn received_at(&self) -> Instant {
        match self {
            Self::Change(change) => change.received_at,
            Self::Kept(kept) => kept.read_at,
        }
    }

    /// About what it takes in a body.
    pub(super) fn len_bytes(&self) -> usize {
        match self {
            Self::Change(change) => change.len_bytes() + MESSAGE_FRAME_BYTES,
            Self::Kept(kept) => kept.message.json.len() + 1,
        }
    }
}

/// A delivery that is not acknowledged.
pub(super) struct Delivery {
    pub(super) content: Content,
    pub(super) facts: Facts,
    /// What is known of its messages, once it has failed or the store has it.
    pub(super) members: Arc<Vec<Member>>,
    /// Where the store has its messages, in their order, until it has the delivery; empty if it has none.
    pub(super) homes: Vec<Option<Home>>,
    /// Its id in the store, once it is there or on its way.
    pub(super) stored: Option<DeliveryId>,
    pub(super) parent: Option<DeliveryId>,
    pub(super) created_at: SystemTime,
    pub(super) tries: Tries,
    pub(super) blocked: bool,
    /// When the attempt under way began.
    pub(super) under_way: Option<Instant>,
}

impl Delivery {
    /// As the store keeps it.
    pub(super) fn kept(&self, id: DeliveryId) -> KeptDelivery {
        KeptDelivery {
            id,
            parent: self.parent,
            created_micros: micros_of(self.created_at),
            members: self.members.to_vec(),
            tries: self.tries.clone(),
            blocked: self.blocked,
        }
    }

    /// The places that its messages leave.
    pub(super) fn leaves(&mut self) -> Vec<Home> {
        std::mem::take(&mut self.homes).into_iter().flatten().collect()
    }
}

/// Where the store has these messages; empty if it has none.
pub(super) fn homes(messages: &[Payload]) -> Vec<Option<Home>> {
    let any = messages.iter().any(|message| message.home().is_some());
    if any { messages.iter().map(Payload::home).collect() } else { Vec::new() }
}

/// What it consists of.
#[derive(Clone)]
pub(super) enum Content {
    /// Messages, until the first attempt has ended; the body as soon as it is rendered.
    Messages(Arc<Vec<Payload>>, Arc<OnceLock<Frozen>>),
    /// The body, the same over all attempts.
    Frozen(Frozen),
    /// The body is in the store.
    Stored(DeliveryId),
}

impl Content {
    /// About what its body takes once it is made or fetched; nothing if it is there.
    pub(super) fn bytes_to_come(&self, members: &[Member]) -> usize {
        match self {
            Self::Messages(messages, rendered) if rendered.get().is_none() => {
                messages.iter().map(Payload::len_bytes).sum()
            }
            Self::Messages(..) | Self::Frozen(_) => 0,
            Self::Stored(_) => members.last().map_or(0, |member| member.bytes.end),
        }
    }

    /// The body, if it is in memory.
    pub(super) fn frozen(&self) -> Option<&Frozen> {
        match self {
            Self::Messages(_, rendered) => rendered.get(),
            Self::Frozen(frozen) => Some(frozen),
            Self::Stored(_) => None,
        }
    }
}

/// What is told of a delivery in logs and metrics.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) messages: usize,
    /// The first message's group, once something has to be said of it; of two the one that the row is in now.
    pub(super) group: Option<GroupId>,
    pub(super) oldest_commit: SystemTime,
    pub(super) oldest_received: Instant,
}

impl Facts {
    /// Of a delivery of these messages.
    pub(super) fn of(messages: &[Payload]) -> Self {
        let micros = messages.iter().map(Payload::commit_micros).min().unwrap_or_default();
        let oldest_received = messages.iter().map(Payload::received_at).min().unwrap_or_else(Instant::now);
        Self { messages: messages.len(), group: None, oldest_commit: time_of(micros), oldest_received }
    }

    /// Of a delivery of these members, at least one.
    pub(super) fn of_members(members: &[Member], oldest_received: Instant) -> Self {
        let micros = members.iter().map(|member| member.facts.commit_micros).min().unwrap_or_default();
        let group = group_of(members);
        Self { messages: members.len(), group, oldest_commit: time_of(micros), oldest_received }
    }
}

/// The group that a delivery of these members is named by.
pub(super) fn group_of(members: &[Member]) -> Option<GroupId> {
    members.first()?.facts.groups.iter().last()
}

/// Renders the body of a delivery.
pub(super) fn freeze(config: &SinkConfig, rendering: &Rendering, memory: &Memory, messages: &[Payload]) -> Frozen {
    let id = |payload: &Payload| match payload {
        Payload::Kept(kept) => kept.message.facts.id,
        Payload::Change(change) => rendering.message_id(change.position()),
    };
    let capacity = messages.iter().map(Payload::len_bytes).sum();
    Frozen::build(
        memory,
        &config.name,
        config.body,
        capacity,
        messages.iter().map(id),
        |index, id, body| match messages.get(index) {
            Some(Payload::Kept(kept)) => body.extend_from_slice(&kept.message.json),
            Some(Payload::Change(change)) => rendering.append_as(id, change, body),
            None => {}
        },
    )
}

/// Messages as the store keeps them: those that are changes are rendered, into one buffer, which is charged until it is
/// written.
pub(super) fn keep(
    (config, memory): (&SinkConfig, &Memory),
    rendering: &Rendering,
    messages: &[(Ties, Payload)],
) -> Vec<KeptMessage> {
    let mut buffer = Vec::with_capacity(messages.iter().map(|(_, payload)| payload.len_bytes()).sum());
    let mut ends = Vec::with_capacity(messages.len());
    for (_, payload) in messages {
        if let Payload::Change(change) = payload {
            rendering.append(change, &mut buffer);
        }
        ends.push(buffer.len());
    }
    buffer.shrink_to_fit();
    let rendered = memory.hold(buffer);
    let mut start = 0;
    let kept = messages.iter().zip(ends).map(|((ties, payload), end)| {
        let json = match payload {
            Payload::Change(_) => rendered.slice(start..end),
            Payload::Kept(kept) => kept.message.json.clone(),
        };
        start = end;
        KeptMessage { facts: payload.facts(*ties, config, rendering), json }
    });
    kept.collect()
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
        Row::Truncate => Row::Truncate,
        Row::Message { content } => Row::Message { content: memory.hold(content.to_vec()) },
    };
    Change { row, ..change }
}

/// A time as microseconds since 1970-01-01 UTC.
pub(super) fn micros_of(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// The time of such microseconds; those before 1970 count as 1970.
pub(super) fn time_of(micros: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or_default())
}

/// When a time was, or will be, on the clock that timers use.
pub(super) fn instant_of(micros: i64, now: Instant) -> Instant {
    let (time, wall) = (time_of(micros), SystemTime::now());
    match time.duration_since(wall) {
        Ok(ahead) => now + ahead,
        Err(past) => now.checked_sub(past.duration()).unwrap_or(now),
    }
}

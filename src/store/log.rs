//! The log of deliveries and attempts: what people look at afterwards. Losing a row of it loses no change.

use std::sync::Arc;

use bytes::Bytes;

use crate::change::Position;
use crate::deliver::frozen::DeliveryId;

/// A row of the log.
#[derive(Clone, Debug)]
pub enum LogRow {
    /// A delivery that has come to its end.
    Delivery(Box<DeliveryRow>),
    /// An attempt that has ended.
    Attempt(Box<AttemptRow>),
}

/// A delivery that was acknowledged or given up.
#[derive(Clone, Debug)]
pub struct DeliveryRow {
    /// Its id.
    pub id: DeliveryId,
    /// Its sink's name.
    pub sink: Arc<str>,
    /// The delivery it was split from.
    pub parent: Option<DeliveryId>,
    /// `delivered`, `dead`, `split`.
    pub state: &'static str,
    /// Messages in it.
    pub messages: u32,
    /// Its messages' `schema.table.action`, without repeats, at most 8.
    pub events: Vec<Arc<str>>,
    /// Its messages' groups for people, without repeats, at most 8.
    pub groups: Vec<Arc<str>>,
    /// Its first and last message's position.
    pub positions: (Position, Position),
    /// Bytes of its body.
    pub body_bytes: u64,
    /// Attempts, the last one included.
    pub attempts: u32,
    /// When it was formed, microseconds since 1970-01-01 UTC.
    pub created_micros: i64,
    /// When it ended, microseconds since 1970-01-01 UTC.
    pub finished_micros: i64,
    /// The last answer's status.
    pub last_status: Option<u16>,
}

/// One HTTP request.
#[derive(Clone, Debug)]
pub struct AttemptRow {
    /// Its delivery.
    pub delivery: DeliveryId,
    /// Its sink's name.
    pub sink: Arc<str>,
    /// 1, 2, ….
    pub number: u32,
    /// When it began, microseconds since 1970-01-01 UTC.
    pub started_micros: i64,
    /// How long it took, microseconds.
    pub duration_micros: u64,
    /// The answer's status, if one began.
    pub status: Option<u16>,
    /// `Category::as_str` of a failure; `None`: acknowledged.
    pub category: Option<&'static str>,
    /// For a person, of a failure.
    pub error: Option<String>,
    /// The start of a failure's answer, at most 16 KiB.
    pub response: Bytes,
    /// There was more of it.
    pub response_truncated: bool,
}

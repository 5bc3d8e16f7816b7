//! How much the store holds for each sink.

use std::collections::HashMap;
use std::fmt;

use rusqlite::Connection;

use super::apply::{BLOCKED, RETRYING};
use super::batch::SinkKey;
use super::error::StoreError;
use super::reading::oldest_in_lanes;

/// What the store holds for a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Holdings {
    /// Deliveries that wait for their next attempt.
    pub retrying: u64,
    /// Deliveries that wait for a person.
    pub blocked: u64,
    /// Dead letters.
    pub dead: u64,
    /// Messages in lanes.
    pub lane_messages: u64,
    /// Messages in the overflow.
    pub overflow_messages: u64,
    /// When the oldest of it that is undelivered was committed or formed, microseconds since 1970-01-01 UTC.
    pub oldest_micros: Option<i64>,
}

impl Holdings {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        let Self { retrying, blocked, dead, lane_messages, overflow_messages, oldest_micros: _ } = self;
        [retrying, blocked, dead, lane_messages, overflow_messages].iter().all(|count| **count == 0)
    }
}

/// `3 failed deliveries, 1 dead letter`; `nothing`.
impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.retrying, "failed delivery", "failed deliveries"),
            (self.blocked, "blocked delivery", "blocked deliveries"),
            (self.lane_messages + self.overflow_messages, "waiting message", "waiting messages"),
            (self.dead, "dead letter", "dead letters"),
        ];
        if self.is_empty() {
            return f.write_str("nothing");
        }
        for (index, (count, one, more)) in counts.into_iter().filter(|(count, ..)| *count > 0).enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{count} {}", if count == 1 { one } else { more })?;
        }
        Ok(())
    }
}

/// What the store holds for each of its sinks that holds something.
pub(super) fn holdings(db: &Connection) -> Result<HashMap<SinkKey, Holdings>, StoreError> {
    let mut all = HashMap::new();
    count_deliveries(db, &mut all).map_err(StoreError::read("deliveries"))?;
    count_pages(db, &mut all).map_err(StoreError::read("the overflow"))?;
    count_lanes(db, &mut all)?;
    Ok(all)
}

fn count_deliveries(db: &Connection, all: &mut HashMap<SinkKey, Holdings>) -> rusqlite::Result<()> {
    let mut select = db.prepare("SELECT sink, state, count(*), min(created) FROM delivery GROUP BY sink, state")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let holdings = all.entry(SinkKey(row.get(0)?)).or_default();
        let count = row.get::<_, i64>(2)?.cast_unsigned();
        match row.get::<_, i64>(1)? {
            RETRYING => holdings.retrying = count,
            BLOCKED => holdings.blocked = count,
            _ => {
                holdings.dead += count;
                continue;
            }
        }
        older(holdings, row.get(3)?);
    }
    Ok(())
}

fn count_pages(db: &Connection, all: &mut HashMap<SinkKey, Holdings>) -> rusqlite::Result<()> {
    let mut select = db.prepare("SELECT sink, sum(messages - gone), min(oldest) FROM page GROUP BY sink")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let holdings = all.entry(SinkKey(row.get(0)?)).or_default();
        holdings.overflow_messages = row.get::<_, i64>(1)?.cast_unsigned();
        older(holdings, row.get(2)?);
    }
    Ok(())
}

fn count_lanes(db: &Connection, all: &mut HashMap<SinkKey, Holdings>) -> Result<(), StoreError> {
    let failed = StoreError::read("lanes");
    let mut select = db.prepare("SELECT sink, count(*) FROM lane GROUP BY sink").map_err(&failed)?;
    let mut rows = select.query([]).map_err(&failed)?;
    while let Some(row) = rows.next().map_err(&failed)? {
        let sink = SinkKey(row.get(0).map_err(&failed)?);
        let holdings = all.entry(sink).or_default();
        holdings.lane_messages = row.get::<_, i64>(1).map_err(&failed)?.cast_unsigned();
        if let Some(committed) = oldest_in_lanes(db, sink)? {
            older(holdings, committed);
        }
    }
    Ok(())
}

fn older(holdings: &mut Holdings, micros: i64) {
    holdings.oldest_micros = Some(holdings.oldest_micros.map_or(micros, |oldest| oldest.min(micros)));
}

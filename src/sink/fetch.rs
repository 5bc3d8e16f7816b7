//! `unchanged_toast = "fetch"`: what Postgres left out of a delivery's messages is asked for before its body is frozen.
//!
//! This happens in the attempt's own task, once in a delivery's life, and takes 2 s at most. It works on the rendered body,
//! so that messages from the stream and those that come back from the store take the same way.

use std::sync::Arc;

use crate::config::{Numbers, SinkConfig};
use crate::deliver::frozen::Frozen;
use crate::deliver::omitted::{self, Unchanged};
use crate::memory::Memory;
use crate::metrics::FetchMetrics;
use crate::source::fetch::{Fetcher, Found, Missing, Wanted};

/// What a sink needs to fetch. Clones share it.
#[derive(Clone)]
pub struct Fetching {
    inner: Arc<Inner>,
}

struct Inner {
    fetcher: Fetcher,
    numbers: Numbers,
    metrics: FetchMetrics,
}

impl Fetching {
    /// For a sink that asks this fetcher.
    pub fn new(config: &SinkConfig, fetcher: Fetcher) -> Self {
        let metrics = FetchMetrics::new(&config.source, &config.name);
        Self { inner: Arc::new(Inner { fetcher, numbers: config.numbers, metrics }) }
    }

    /// The delivery with what could be read of what it lacks.
    pub(super) async fn fill(&self, config: &SinkConfig, memory: &Memory, frozen: Frozen) -> Frozen {
        let lacks: Vec<Option<Unchanged>> =
            frozen.members.iter().map(|member| omitted::unchanged(frozen.message(member))).collect();
        let wanted: Vec<Wanted> = wanted(&frozen, &lacks).collect();
        if wanted.is_empty() {
            return frozen;
        }
        let mut found = self.inner.fetcher.fetch(wanted, self.inner.numbers).await;
        if frozen.members.len() > 1 {
            let room = config.batch_bytes.saturating_sub(frozen.body.len());
            keep_within(room, lacks.iter().flatten().zip(&mut found));
        }
        found.iter().for_each(|found| self.count(found));
        if !found.iter().any(|found| found.as_ref().is_ok_and(|values| values.iter().any(Option::is_some))) {
            return frozen;
        }
        // As many answers as members that lack something, in their order.
        let mut found = found.into_iter();
        let found = lacks.iter().map(|lacks| lacks.as_ref().and_then(|_| found.next()?.ok())).collect();
        filled(config, memory, &frozen, &lacks, found)
    }

    fn count(&self, found: &Result<Found, Missing>) {
        match found {
            Ok(values) if values.iter().all(Option::is_some) => self.inner.metrics.filled.increment(1),
            Ok(_) => self.inner.metrics.too_large.increment(1),
            Err(missing) => self.inner.metrics.missing(*missing),
        }
    }
}

fn wanted(frozen: &Frozen, lacks: &[Option<Unchanged>]) -> impl Iterator<Item = Wanted> {
    frozen.members.iter().zip(lacks).filter_map(|(member, lacks)| {
        let Unchanged { table, record, columns, .. } = lacks.as_ref()?;
        let message = frozen.body.slice(member.bytes.clone());
        Some(Wanted { table: table.clone(), record: message.slice(record.clone()), columns: columns.clone() })
    })
}

/// Leaves out the values with which the body would have more bytes than it may: of each message those that find no room
/// beside the ones before it.
fn keep_within<'a>(mut room: usize, found: impl Iterator<Item = (&'a Unchanged, &'a mut Result<Found, Missing>)>) {
    for (lacks, found) in found {
        for (column, value) in lacks.columns.iter().zip(found.iter_mut().flatten()) {
            let bytes = value.as_ref().map_or(0, |json| lacks.bytes_more(column, json));
            match room.checked_sub(bytes) {
                Some(left) => room = left,
                None => *value = None,
            }
        }
    }
}

fn filled(
    config: &SinkConfig,
    memory: &Memory,
    frozen: &Frozen,
    lacks: &[Option<Unchanged>],
    found: Vec<Option<Found>>,
) -> Frozen {
    let more: usize = found.iter().flatten().flatten().flatten().map(bytes::Bytes::len).sum();
    let capacity = frozen.body.len() + more + 64;
    let ids = frozen.members.iter().map(|member| member.id);
    Frozen::build(memory, &config.name, config.body, capacity, ids, |index, _, body| {
        let message = frozen.members.get(index).map_or(&[][..], |member| frozen.message(member));
        match (lacks.get(index).and_then(Option::as_ref), found.get(index).and_then(Option::as_ref)) {
            (Some(lacks), Some(values)) => lacks.append_filled(message, values, body),
            (Some(_) | None, Some(_) | None) => body.extend_from_slice(message),
        }
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_body_of_several_messages_stays_as_small_as_it_is_to_be() {
        let message = br#"{"record":{"id":1},"metadata":{"table_schema":"p","table_name":"d","unchanged":["a","b"]}}"#;
        let lacks = omitted::unchanged(message).unwrap();
        let values = || Ok(vec![Some(Bytes::from_static(b"\"12345678\"")), Some(Bytes::from_static(b"7"))]);
        let mut sizes = Vec::new();
        for room in 0..150 {
            let mut found = [values(), Err(Missing::Row), values()];
            keep_within(room, std::iter::repeat(&lacks).zip(&mut found));
            let mut more = 0;
            for values in found.iter().flatten() {
                let mut filled = Vec::new();
                lacks.append_filled(message, values, &mut filled);
                more += filled.len() - message.len();
            }
            assert!(more <= room, "{more} bytes more in a room of {room}");
            sizes.push(found.iter().flatten().flatten().flatten().count());
        }
        assert_eq!((sizes.first(), sizes.last()), (Some(&0), Some(&4)));
        assert!(sizes.contains(&1), "a small value passes where a large one does not: {sizes:?}");
    }
}

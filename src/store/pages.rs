//! Which messages of the overflow's pages have left: bits, remembered between batches.
//!
//! A page goes when all its messages have gone. What is remembered is what the transaction has seen; after one that
//! failed, everything is forgotten and read anew.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};

use rusqlite::{Connection, OptionalExtension as _, named_params, params};
use tracing::{debug, warn};

use super::batch::SinkKey;
use crate::failpoint;

/// Pages remembered at most; beyond, all are forgotten.
const REMEMBERED_MAX: usize = 4096;

type PageName = (SinkKey, u64);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pages {
    known: HashMap<PageName, Gone>,
    /// Those that the batch under way has changed.
    touched: BTreeSet<PageName>,
}

/// A page and who has gone from it.
#[derive(Debug)]
struct Gone {
    key: i64,
    messages: u32,
    gone: u32,
    bits: Vec<u8>,
}

impl Gone {
    /// False: no such message, or it had gone before.
    fn leave(&mut self, index: u32) -> bool {
        let Some((byte, mask)) = self.bit(index) else { return false };
        let newly = *byte & mask == 0;
        *byte |= mask;
        self.gone += u32::from(newly);
        newly
    }

    fn bit(&mut self, index: u32) -> Option<(&mut u8, u8)> {
        let byte = usize::try_from(index / 8).ok()?;
        (index < self.messages).then_some(())?;
        Some((self.bits.get_mut(byte)?, 1 << (index % 8)))
    }
}

/// Bytes of bits for so many messages.
pub(super) fn bits_bytes(messages: u32) -> usize {
    usize::try_from(messages.div_ceil(8)).unwrap_or(usize::MAX)
}

/// Whether the message has gone.
pub(super) fn is_gone(bits: &[u8], index: u32) -> bool {
    usize::try_from(index / 8).ok().and_then(|byte| bits.get(byte)).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
}

/// The bits of a page. If they do not agree with the number of those that have gone, nobody knows who has: then nobody counts as
/// gone, and what had gone comes once more.
pub(super) fn true_bits(messages: u32, gone: u32, bits: Vec<u8>) -> Vec<u8> {
    let counted: u32 = bits.iter().map(|byte| byte.count_ones()).sum();
    if counted == gone && bits.len() == bits_bytes(messages) {
        return bits;
    }
    warn!(messages, gone, counted, "a page of the overflow does not say who has left it: all of it comes again");
    vec![0; bits_bytes(messages)]
}

impl Pages {
    /// The transaction failed.
    pub(super) fn forget(&mut self) {
        self.known.clear();
        self.touched.clear();
    }

    /// A message leaves. One that is not there is none of our business any more.
    pub(super) fn leave(&mut self, db: &Connection, sink: SinkKey, page: u64, index: u32) -> rusqlite::Result<()> {
        let name = (sink, page);
        let gone = match self.known.entry(name) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let Some(gone) = read(db, name)? else {
                    debug!(sink = sink.0, page, index, "a message left a page that is not there");
                    return Ok(());
                };
                unknown.insert(gone)
            }
        };
        if gone.leave(index) {
            self.touched.insert(name);
        } else {
            debug!(sink = sink.0, page, index, "a message left its page that was not in it");
        }
        Ok(())
    }

    /// Writes what the batch has changed.
    pub(super) fn write(&mut self, db: &Connection) -> rusqlite::Result<()> {
        for name in std::mem::take(&mut self.touched) {
            let Some(page) = self.known.get(&name) else { continue };
            if page.gone < page.messages {
                db.prepare_cached("UPDATE page SET gone = ?2, gone_bits = ?3 WHERE key = ?1")?
                    .execute(params![page.key, page.gone, page.bits])?;
            } else {
                db.prepare_cached("DELETE FROM page_content WHERE page = ?1")?.execute([page.key])?;
                db.prepare_cached("DELETE FROM page WHERE key = ?1")?.execute([page.key])?;
                self.known.remove(&name);
            }
            failpoint::hit("store.in_leave");
        }
        if self.known.len() > REMEMBERED_MAX {
            self.known.clear();
        }
        Ok(())
    }
}

fn read(db: &Connection, (sink, page): PageName) -> rusqlite::Result<Option<Gone>> {
    let mut select =
        db.prepare_cached("SELECT key, messages, gone, gone_bits FROM page WHERE sink = :sink AND no = :no")?;
    let row = |row: &rusqlite::Row<'_>| {
        let messages = row.get(1)?;
        let bits = true_bits(messages, row.get(2)?, row.get(3)?);
        let gone = bits.iter().map(|byte| byte.count_ones()).sum();
        Ok(Gone { key: row.get(0)?, messages, gone, bits })
    };
    select.query_row(named_params! { ":sink": sink.0, ":no": page.cast_signed() }, row).optional()
}

//! The slot as the server has it, and whether it can be read.

use tokio_postgres::Client;

use super::error::{Passing, PrepareError, bounded};
use super::names::literal;
use crate::change::Lsn;
use crate::view::Trouble;

/// A slot, and where the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotFacts {
    /// Everything before is confirmed; `None` while the slot is being made.
    pub confirmed: Option<Lsn>,
    /// WAL is kept from here; `None` for a lost slot.
    pub restart: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    /// Why the server gave the slot up (17 and later; from 16 on `conflict` on a standby).
    pub invalidation: Option<String>,
    /// Who reads it.
    pub active_pid: Option<i32>,
    /// The reader's `application_name`, if it has one we may see.
    pub active_application: Option<String>,
    /// WAL the server keeps for it, bytes.
    pub retained_bytes: u64,
    /// WAL that may still be written before the slot is in danger; `None` = no limit.
    pub safe_wal_bytes: Option<u64>,
    /// End of the server's WAL: written, or replayed on a standby.
    pub server_lsn: Lsn,
    pub(crate) plugin: String,
    pub(crate) database: String,
    pub(crate) is_temporary: bool,
}

const SLOT: &str = "
with here as (
  select case when pg_is_in_recovery() then coalesce(pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn(), '0/0')
              else pg_current_wal_lsn() end as lsn)
select s.confirmed_flush_lsn::text, s.restart_lsn::text, s.wal_status::text,
       coalesce(to_jsonb(s) ->> 'invalidation_reason',
                case when (to_jsonb(s) ->> 'conflicting')::bool then 'conflict' end),
       s.active_pid, nullif(a.application_name, ''),
       greatest(pg_wal_lsn_diff(here.lsn, s.restart_lsn), 0)::int8, s.safe_wal_size::int8, here.lsn::text,
       coalesce(s.plugin::text, ''), coalesce(s.database::text, ''), s.temporary
  from here, pg_replication_slots s left join pg_stat_activity a on a.pid = s.active_pid
 where s.slot_name = $1";

/// Reads a slot; `None` if there is none of this name.
///
/// # Errors
/// When the server cannot be asked.
pub async fn inspect(client: &Client, slot: &str) -> Result<Option<SlotFacts>, PrepareError> {
    let doing = "read the replication slot";
    let Some(row) = bounded(doing, client.query_opt(SLOT, &[&slot])).await? else { return Ok(None) };
    let lsn = |at: usize| -> Result<Option<Lsn>, Passing> {
        let text: Option<&str> = row.get(at);
        text.map(|text| text.parse().map_err(|_| Passing::Answer { doing })).transpose()
    };
    let bytes = |at: usize| row.get::<_, Option<i64>>(at).map(|bytes| u64::try_from(bytes).unwrap_or(0));
    Ok(Some(SlotFacts {
        confirmed: lsn(0)?,
        restart: lsn(1)?,
        wal_status: row.get(2),
        invalidation: row.get(3),
        active_pid: row.get(4),
        active_application: row.get(5),
        retained_bytes: bytes(6).unwrap_or(0),
        safe_wal_bytes: bytes(7),
        server_lsn: lsn(8)?.unwrap_or_default(),
        plugin: row.get(9),
        database: row.get(10),
        is_temporary: row.get(11),
    }))
}

impl SlotFacts {
    /// Why the slot can never be read by walhook, if so: a lost or foreign slot.
    pub fn obstacle(&self, slot: &str, database: &str) -> Option<Trouble> {
        let other_name = |what: String| {
            Some(Trouble {
                what,
                advice: "give the source another `slot`; walhook makes it at its next start".to_owned(),
            })
        };
        if self.plugin.is_empty() {
            return other_name(format!("the slot {slot} is a physical one"));
        }
        if self.plugin != "pgoutput" {
            return other_name(format!("the slot {slot} is of the output plugin {}, not pgoutput", self.plugin));
        }
        if self.database != database {
            return other_name(format!("the slot {slot} belongs to the database {}, not {database}", self.database));
        }
        if self.is_temporary {
            return other_name(format!("the slot {slot} is a temporary one of another session"));
        }
        self.is_lost().then(|| self.lost(slot))
    }

    /// The server has given the slot up: changes since `confirmed` can no longer be read from it.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost") || self.invalidation.is_some()
    }

    fn lost(&self, slot: &str) -> Trouble {
        let why = self.invalidation.as_deref().unwrap_or("wal_removed");
        let since = self.confirmed.map_or_else(|| "its start".to_owned(), |lsn| lsn.to_string());
        Trouble {
            what: format!(
                "the server has given up the slot {slot} ({why}): changes after {since} can no longer be read from it"
            ),
            advice: format!(
                "{} then, with walhook stopped, run `walhook state accept-gap` for the source and start walhook again, which \
                 makes a new slot; changes between {since} and that moment are not delivered, so compare the receivers' data \
                 with the tables, or backfill them. To keep it from happening again raise max_slot_wal_keep_size and \
                 idle_replication_slot_timeout above the longest outage you plan for",
                drop_sql(slot)
            ),
        }
    }

    /// What does not stop the stream yet.
    pub fn warning(&self, slot: &str) -> Option<Trouble> {
        (self.wal_status.as_deref() == Some("unreserved")).then(|| Trouble {
            what: format!("the slot {slot} is about to be lost: its WAL is beyond max_slot_wal_keep_size"),
            advice: "raise max_slot_wal_keep_size, then SELECT pg_reload_conf();".to_owned(),
        })
    }

    /// A slot whose making was given up.
    pub(crate) fn is_half_made(&self) -> bool {
        self.confirmed.is_none() && self.active_pid.is_none() && !self.is_lost()
    }
}

/// SQL that drops a slot.
pub(crate) fn drop_sql(slot: &str) -> String {
    format!("SELECT pg_drop_replication_slot({});", literal(slot))
}

/// SQL that makes a slot.
pub(crate) fn create_sql(slot: &str) -> String {
    format!("SELECT pg_create_logical_replication_slot({}, 'pgoutput');", literal(slot))
}

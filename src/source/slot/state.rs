//! The slot as the server has it, and whether it can be read.

use tokio_postgres::{Client, SimpleQueryMessage};

use super::error::{LostSlot, Passing, PrepareError, bounded};
use super::names::literal;
use super::unseen::{Question, Unseen, ask};
use crate::change::Lsn;
use crate::source::advice::Statement;
use crate::view::{SlotView, Trouble};

/// A slot, and where the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotFacts {
    /// Everything before is confirmed; `None` while the slot is being made.
    pub confirmed: Option<Lsn>,
    /// WAL is kept from here; `None` for a lost slot.
    pub restart: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    /// Why the server gave the slot up (17 and later; 16 says only `conflict`, on a standby).
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
    /// Standbys keep a copy of it (17 and later).
    pub is_failover: bool,
    /// On a standby: it is such a copy.
    pub is_synced: bool,
    /// Transactions since the oldest one whose deleted catalogue rows it makes the server keep.
    pub catalog_age: u32,
    /// What of these could not be seen.
    pub(crate) unseen: Vec<Unseen>,
}

/// Transactions from which on that is worth a word: `autovacuum_freeze_max_age` by default, where the server begins to work
/// against a wraparound, which it cannot do for the catalogues while a slot holds them.
const CATALOG_AGE: u32 = 200_000_000;

/// What the server says of a slot. The columns differ from version to version, so they are found by name.
fn slot_sql(slot: &str) -> String {
    format!("select *, pg_is_in_recovery() as on_standby from pg_replication_slots where slot_name = {}", literal(slot))
}

/// What is only worth a word, or a figure in the metrics.
fn questions(slot: &str, reader: Option<i32>) -> Vec<Question> {
    let end = "case when pg_is_in_recovery() then coalesce(pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn(), '0/0') \
               else pg_current_wal_lsn() end";
    let of_slot = |what: &str| format!("select {what} from pg_replication_slots where slot_name = {}", literal(slot));
    let application = reader.map_or_else(
        || "null".to_owned(),
        |pid| format!("select nullif(application_name, '') from pg_stat_activity where pid = {pid}"),
    );
    vec![
        Question::new("the end of the WAL", end, "how far the server is"),
        Question::new(
            "the WAL kept for the slot",
            of_slot(&format!("greatest(pg_wal_lsn_diff({end}, restart_lsn), 0)::int8")),
            "how much WAL the slot keeps",
        ),
        Question::new(
            "the age of the slot's catalogue rows",
            of_slot("age(catalog_xmin)"),
            "whether the slot holds up vacuum",
        ),
        Question::new("pg_stat_activity", application, "who reads the slot"),
    ]
}

/// Reads a slot; `None` if there is none of this name.
///
/// # Errors
/// When the server cannot be asked.
pub async fn inspect(client: &Client, slot: &str) -> Result<Option<SlotFacts>, PrepareError> {
    let doing = "read the replication slot";
    let rows = bounded(doing, client.simple_query(&slot_sql(slot))).await?;
    let found = rows.iter().find_map(|it| if let SimpleQueryMessage::Row(row) = it { Some(row) } else { None });
    let Some(row) = found else { return Ok(None) };
    // A column that this version does not have is NULL.
    let text = |name: &str| row.try_get(name).ok().flatten().map(str::to_owned);
    let is = |name: &str| text(name).as_deref() == Some("t");
    let lsn = |text: Option<String>| -> Result<Option<Lsn>, Passing> {
        text.map(|text| text.parse().map_err(|_| Passing::Answer { doing })).transpose()
    };
    let active_pid = text("active_pid").and_then(|pid| pid.parse().ok());
    let mut answers = ask(client, doing, &questions(slot, active_pid)).await?;
    let server_lsn = lsn(answers.text())?.unwrap_or_default();
    let bytes = |number: Option<i64>| number.map(|bytes| u64::try_from(bytes).unwrap_or(0));
    let retained_bytes = bytes(answers.number()).unwrap_or(0);
    let catalog_age = answers.number().and_then(|age| u32::try_from(age).ok()).unwrap_or(0);
    let is_standby = is("on_standby");
    Ok(Some(SlotFacts {
        confirmed: lsn(text("confirmed_flush_lsn"))?,
        restart: lsn(text("restart_lsn"))?,
        wal_status: text("wal_status"),
        invalidation: text("invalidation_reason")
            .or_else(|| (is("conflicting") && is_standby).then(|| "conflict".to_owned())),
        active_pid,
        active_application: answers.text(),
        retained_bytes,
        safe_wal_bytes: bytes(text("safe_wal_size").and_then(|bytes| bytes.parse().ok())),
        server_lsn,
        plugin: text("plugin").unwrap_or_default(),
        database: text("database").unwrap_or_default(),
        is_temporary: is("temporary"),
        is_failover: is("failover"),
        is_synced: is("synced") && is_standby,
        catalog_age,
        unseen: answers.unseen,
    }))
}

impl SlotFacts {
    /// Why the slot can never be read by walhook, if so: a lost or foreign slot.
    pub fn obstacle(&self, slot: &str, database: &str) -> Option<Trouble> {
        self.foreign(slot, database).or_else(|| self.lost(slot).map(|lost| lost.trouble))
    }

    /// Why the slot is not one of ours, if so.
    pub(crate) fn foreign(&self, slot: &str, database: &str) -> Option<Trouble> {
        let other_name = |what: String| {
            Some(Trouble {
                what,
                advice: "it is not this source's: leave it as it is, and give the source another `slot`, which walhook makes at \
                         its next start, or with create = false a person"
                    .to_owned(),
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
        // A copy is temporary until it has caught up with the primary's.
        if self.is_temporary && !self.is_synced {
            return other_name(format!("the slot {slot} is a temporary one of another session"));
        }
        None
    }

    /// The server has given the slot up: changes since `confirmed` can no longer be read from it.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost") || self.invalidation.is_some()
    }

    /// Of a slot that the server has given up.
    pub(super) fn lost(&self, slot: &str) -> Option<LostSlot> {
        let why = self.invalidation.as_deref().or_else(|| self.is_lost().then_some("wal_removed"))?;
        let since = self.confirmed.map_or_else(|| "its start".to_owned(), |lsn| lsn.to_string());
        let meaning = match why {
            "wal_removed" => ": it held more WAL than max_slot_wal_keep_size",
            "idle_timeout" => ": nobody read it for idle_replication_slot_timeout",
            "conflict" => {
                ": the primary removed catalogue rows or WAL that it needs, or its wal_level is below logical"
            }
            "rows_removed" => ": the primary removed catalogue rows that it needs",
            "wal_level_insufficient" => ": the primary's wal_level is below logical",
            _ => "",
        };
        let what = format!(
            "the server has given up the slot {slot} ({why}{meaning}): changes after {since} can no longer be read from it"
        );
        let again = match why {
            "rows_removed" | "conflict" => {
                "set hot_standby_feedback = on and primary_slot_name on the standby, which make the primary keep these rows"
            }
            "wal_level_insufficient" => "keep wal_level = logical on the primary",
            _ => "raise max_slot_wal_keep_size and idle_replication_slot_timeout above the longest outage you plan for",
        };
        let advice = format!(
            "with walhook stopped, run `walhook state accept-gap` for the source and start walhook again, which puts a new slot \
             in the place of this one; changes between {since} and that moment are not delivered, so compare the receivers' data \
             with the tables, or backfill them. on_slot_lost = \"recreate\" does that by itself. To keep it from happening \
             again {again}"
        );
        Some(LostSlot { confirmed: self.confirmed, why: why.to_owned(), trouble: Trouble { what, advice } })
    }

    /// What is shown of it.
    pub(crate) fn view(&self) -> SlotView {
        let Self { retained_bytes, safe_wal_bytes, catalog_age, .. } = *self;
        SlotView { retained_bytes, safe_bytes: safe_wal_bytes, catalog_age }
    }

    /// What does not stop the stream yet.
    pub fn warning(&self, slot: &str) -> Option<Trouble> {
        if self.wal_status.as_deref() == Some("unreserved") {
            return Some(Trouble {
                what: format!("the slot {slot} is about to be lost: its WAL is beyond max_slot_wal_keep_size"),
                advice: Statement::keep_size().to_string(),
            });
        }
        (self.catalog_age >= CATALOG_AGE).then(|| Trouble {
            what: format!(
                "the slot {slot} keeps the server from vacuuming its catalogues for {} transactions",
                self.catalog_age
            ),
            advice: "find out why the slot does not move: a transaction that has been open for so long \
                     (pg_stat_activity.xact_start, pg_prepared_xacts), or changes that nobody takes"
                .to_owned(),
        })
    }

    /// A slot whose making was given up.
    pub(crate) fn is_half_made(&self) -> bool {
        self.confirmed.is_none() && self.active_pid.is_none() && !self.is_lost()
    }
}

//! Whether the publication is younger than the slot, as after `pg_restore --clean`: then the slot cannot be read past the
//! changes from before it.
//!
//! The catalogue has no time of making, but it has transactions. Rows of the publication's making carry its transaction, a
//! later ALTER rewrites some of them, so the oldest of them is at or after the making. The slot needs all catalogue rows from
//! its `catalog_xmin` on: a publication from before that is seen by every change that is still to be read. One from after it
//! may yet be old enough, as long as a transaction from before both keeps `catalog_xmin` back; so that is said as likely only.
//! So it is beside other slots: a new one starts with the horizon of the oldest that there is, whatever was made since.

use tokio::time::timeout;
use tokio_postgres::{Client, Row};

use super::LIMIT;
use super::findings::{Finding, Level};
use crate::config::SourceConfig;
use crate::source::slot::Survey;
use crate::source::slot::by_hand::{self, Whose};

/// Ages in transactions, of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ages {
    /// Of the publication's own row.
    row: i32,
    /// Of the oldest row that was made with it or for it later: its tables, its owner, its comment.
    with_it: Option<i32>,
    /// Of the oldest transaction whose catalogue rows the slot still needs.
    slot: i32,
    /// Of the oldest transaction that runs.
    running: i32,
    /// There are other slots that hold catalogue rows.
    has_others: bool,
}

const AGES: &str = "
select age(p.xmin),
       (select max(age) from (
          select age(r.xmin) from pg_publication_rel r where r.prpubid = p.oid
          union all
          select age(d.xmin) from pg_description d where d.classoid = 'pg_publication'::regclass and d.objoid = p.oid
          union all
          select age(o.xmin) from pg_shdepend o
           where o.dbid = (select oid from pg_database where datname = current_database())
             and o.classid = 'pg_publication'::regclass and o.objid = p.oid) rows (age)),
       age(s.catalog_xmin), age(pg_snapshot_xmin(pg_current_snapshot())::xid),
       exists (select from pg_replication_slots o
                where o.slot_name <> s.slot_name and (o.catalog_xmin is not null or o.xmin is not null))
  from pg_publication p, pg_replication_slots s
 where p.pubname = $1 and s.slot_name = $2 and s.catalog_xmin is not null";

/// What there is to say of it; nothing where slot or publication have other faults, or where the server does not say.
pub(super) async fn look(client: &Client, source: &SourceConfig, survey: &Survey, whose: &Whose) -> Option<Finding> {
    let slot = survey.slot.as_ref().filter(|slot| !slot.is_half_made())?;
    if survey.publication.is_none() || slot.obstacle(&source.slot, &survey.server.database).is_some() {
        return None;
    }
    let row = timeout(LIMIT, client.query_opt(AGES, &[&source.publication, &source.slot])).await.ok()?.ok()??;
    let ages = Ages::of_row(&row).ok()?;
    Some(finding(source, survey.server.version, verdict(ages)?, whose))
}

impl Ages {
    fn of_row(row: &Row) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            row: row.try_get(0)?,
            with_it: row.try_get(1)?,
            slot: row.try_get(2)?,
            running: row.try_get(3)?,
            has_others: row.try_get(4)?,
        })
    }
}

/// How sure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sureness {
    /// Nothing speaks against it.
    Sure,
    /// It may also have been altered, or an old transaction or another slot may have kept the slot's horizon back.
    Likely,
}

fn verdict(Ages { row, with_it, slot, running, has_others }: Ages) -> Option<Sureness> {
    let made = row.max(with_it.unwrap_or(row));
    // A negative age is one of a row older than half of all transactions there are.
    if row < 0 || with_it.is_some_and(|age| age < 0) || made > slot {
        return None;
    }
    let is_held_back = running >= made || has_others;
    Some(if with_it.is_some() && !is_held_back { Sureness::Sure } else { Sureness::Likely })
}

fn finding(source: &SourceConfig, version: u32, sureness: Sureness, whose: &Whose) -> Finding {
    let subject = format!("source.{}.publication", source.name);
    let (name, slot) = (&source.publication, &source.slot);
    let then = match version {
        180_000.. => "the server leaves out every change from before it, at which `walhook run` stops",
        _ => "`walhook run` stops at the first change from before it",
    };
    let what = match sureness {
        Sureness::Sure => format!("{name} is younger than the slot {slot}, as after pg_restore --clean: {then}"),
        Sureness::Likely => {
            format!("{name} may be younger than the slot {slot}, or was changed a moment ago: if it is younger, {then}")
        }
    };
    // A drop is for what is sure.
    let left = match sureness {
        Sureness::Sure => by_hand::anew(source, whose),
        Sureness::Likely => "If it stops there, it says what is left to do".to_owned(),
    };
    let mend = match whose {
        Whose::Read(reader) if sureness == Sureness::Likely => {
            format!("nothing, as long as {reader} gets on with it: its log and /readyz say so")
        }
        Whose::Ours | Whose::Unknown | Whose::Read(_) => {
            format!("if nothing changed in the database between the two, start walhook: nothing is lost. {left}")
        }
    };
    let is_read = matches!(whose, Whose::Read(_));
    let level = if sureness == Sureness::Sure && !is_read { Level::Fail } else { Level::Warn };
    Finding { level, ..Finding::warn(subject, what, mend) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_is_younger_when_every_row_of_its_making_is() {
        let beside =
            |has_others| move |row, with_it, slot, running| verdict(Ages { row, with_it, slot, running, has_others });
        let verdict = beside(false);
        assert_eq!(verdict(50, Some(50), 49, 0), None, "made before the slot");
        assert_eq!(verdict(3, Some(50), 49, 0), None, "made before it, and altered since");
        assert_eq!(verdict(50, Some(3), 49, 0), None, "made before it, with another table since");
        assert_eq!(verdict(3, Some(3), 49, 0), Some(Sureness::Sure));
        assert_eq!(verdict(49, Some(49), 49, 0), Some(Sureness::Sure), "it ran when the slot was made");
        assert_eq!(verdict(3, None, 49, 0), Some(Sureness::Likely), "of all tables: an ALTER looks the same");
        assert_eq!(verdict(3, Some(3), 49, 60), Some(Sureness::Likely), "a transaction from before both still runs");
        assert_eq!(beside(true)(3, Some(3), 49, 0), Some(Sureness::Likely), "another slot's horizon was taken over");
        assert_eq!(verdict(-7, Some(3), 49, 0), None, "older than can be told");
    }
}

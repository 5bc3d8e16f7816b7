//! What publications, whoever made them, ask of the replica identity of their tables.
//!
//! Postgres refuses a table's own UPDATE and DELETE where an old row would have columns that a publication does not pass on,
//! or lack some that its row filter reads. So a change of the identity that helps one reader may break the application
//! through the publication of another. Advice has to know.

use std::collections::HashMap;

use tokio_postgres::{Client, Row};

use super::error::{PrepareError, bounded, misread};
use super::names::{ENCODING, Name};

/// Of one table, over all publications that pass on its updates or deletes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ties {
    /// Publications that pass on only some columns: old rows may have no others.
    pub lists: Vec<String>,
    /// Publications with a row filter: old rows must have the columns that it reads.
    pub filters: Vec<String>,
    /// Publications without generated columns (18): whole old rows may not have any.
    pub plain: Vec<String>,
}

/// The ties of all tables.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    by_table: HashMap<u32, Ties>,
    /// Publications of all tables that leave out generated columns.
    all_plain: Vec<String>,
}

/// A publication without generated columns is one whose `pubgencols` (18) is not `s`; before 18 nobody minds.
fn members() -> String {
    format!(
        "
select r.prrelid, convert_to(p.pubname::text, {ENCODING}),
       (to_jsonb(r) ->> 'prattrs') is not null, (to_jsonb(r) ->> 'prqual') is not null,
       coalesce(to_jsonb(p) ->> 'pubgencols', 's') <> 's', p.puballtables
  from pg_publication p left join pg_publication_rel r on r.prpubid = p.oid
 where p.pubupdate or p.pubdelete
 order by p.pubname"
    )
}

/// Publications of whole schemas (15), each with the tables in it.
fn schemas() -> String {
    format!(
        "
select c.oid, convert_to(p.pubname::text, {ENCODING}), false, false, coalesce(to_jsonb(p) ->> 'pubgencols', 's') <> 's', false
  from pg_publication p join pg_publication_namespace s on s.pnpubid = p.oid
  join pg_class c on c.relnamespace = s.pnnspid and c.relkind in ('r', 'p')
 where p.pubupdate or p.pubdelete
 order by p.pubname"
    )
}

/// Reads them. What the server refuses to show is done without.
pub(crate) async fn read(client: &Client) -> Result<Neighbours, PrepareError> {
    let doing = "read the publications";
    let mut rows = Vec::new();
    let has_schemas =
        bounded(doing, client.query_one("select to_regclass('pg_publication_namespace') is not null", &[]));
    let has_schemas = has_schemas.await.is_ok_and(|row| row.try_get(0).unwrap_or(false));
    for question in [Some(members()), has_schemas.then(schemas)].into_iter().flatten() {
        match bounded(doing, client.query(&question, &[])).await {
            Err(error) if error.refusal().is_some() => {}
            found => rows.extend(found?),
        }
    }
    Neighbours::of_rows(&rows).map_err(misread(doing))
}

impl Neighbours {
    fn of_rows(rows: &[Row]) -> Result<Self, tokio_postgres::Error> {
        let mut all = Self::default();
        for row in rows {
            let (table, Name(publication)): (Option<u32>, Name) = (row.try_get(0)?, row.try_get(1)?);
            let (has_list, has_filter, is_plain, of_all): (bool, bool, bool, bool) =
                (row.try_get(2)?, row.try_get(3)?, row.try_get(4)?, row.try_get(5)?);
            if of_all && is_plain && !all.all_plain.contains(&publication) {
                all.all_plain.push(publication.clone());
            }
            let Some(table) = table else { continue };
            let ties = all.by_table.entry(table).or_default();
            for (holds, list) in
                [(has_list, &mut ties.lists), (has_filter, &mut ties.filters), (is_plain, &mut ties.plain)]
            {
                if holds {
                    list.push(publication.clone());
                }
            }
        }
        Ok(all)
    }

    /// Those of one table.
    pub(crate) fn of(&self, table: u32) -> Ties {
        let mut ties = self.by_table.get(&table).cloned().unwrap_or_default();
        ties.plain.extend(self.all_plain.iter().cloned());
        ties
    }
}

impl Ties {
    /// Why UPDATE and DELETE of a table that has these would fail with REPLICA IDENTITY FULL.
    pub(super) fn break_full(&self, virtual_column: Option<&str>, has_stored: bool) -> Option<String> {
        let fails = "its own UPDATE and DELETE would fail";
        if let Some(column) = virtual_column {
            return Some(format!("{fails}, for whole old rows cannot have the virtual generated column {column}"));
        }
        if let Some(list) = self.lists.first() {
            return Some(format!("{fails}, for the publication {list} passes on only some of its columns"));
        }
        let plain = self.plain.first().filter(|_| has_stored);
        plain.map(|plain| format!("{fails}, for the publication {plain} leaves out its generated columns"))
    }

    /// Both together.
    pub(super) fn join(&mut self, other: &Self) {
        for (own, others) in
            [(&mut self.lists, &other.lists), (&mut self.filters, &other.filters), (&mut self.plain, &other.plain)]
        {
            for name in others {
                if !own.contains(name) {
                    own.push(name.clone());
                }
            }
        }
    }
}

//! Takes tables out, those that nobody has locked first.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tracing::warn;

use super::deciding::{begun, in_turn};
use super::{Watch, key};
use crate::change::{Lsn, TableName};
use crate::source::notes::Notes;
use crate::source::slot::PrepareError;
use crate::source::slot::identity::{self, Bare, Look, TakenOut, Taking};

/// How long one look takes tables out; the rest waits for the next.
const TAKE_OUT_LIMIT: Duration = Duration::from_secs(4);

impl Watch {
    /// Takes tables out; why not, by table, of those that it could not.
    pub(super) async fn take_out(
        &mut self,
        client: &Client,
        look: &Look,
        tables: &[Bare],
        notes: &mut Notes,
    ) -> Result<HashMap<TableName, String>, PrepareError> {
        let mut hindered = HashMap::new();
        if tables.is_empty() {
            return Ok(hindered);
        }
        let end = match look.end {
            Some(end) => end,
            None => identity::end_of_wal(client).await?,
        };
        let (source, began) = (self.source.clone(), Instant::now());
        let mut taking = Taking::begin(client, &source, look).await?;
        for bare in in_turn(tables, |bare| taking.locked(bare.oid).is_some(), self.turn) {
            let refused = match began.elapsed() >= TAKE_OUT_LIMIT {
                true => Some(taking.locked(bare.oid).unwrap_or_else(|| MORE.to_owned())),
                false => self.take_one(&mut taking, bare, end, notes).await?,
            };
            let told = refused.map(|why| (bare.table.clone(), format!("{why}; it is tried again by itself")));
            hindered.extend(told);
        }
        Ok(hindered)
    }

    /// Notes where the gap begins and takes the table out; or why not.
    async fn take_one(
        &mut self,
        taking: &mut Taking<'_>,
        bare: &Bare,
        end: Lsn,
        notes: &mut Notes,
    ) -> Result<Option<String>, PrepareError> {
        let table = &bare.table;
        let Some(before) = notes.get(&key(table)).cloned() else { return Ok(Some(UNNOTED.to_owned())) };
        if let Err(error) = notes.put(begun(&before, end)).await {
            notes.say_unwritten(&error);
            return Ok(Some(UNNOTED.to_owned()));
        }
        crate::failpoint::hit("identity.noted");
        match taking.take_out(table, bare.oid).await? {
            TakenOut::Done => {
                crate::failpoint::hit("identity.taken_out");
                self.ending.remove(table);
                let (source, publication) = (&self.source.name, &self.source.publication);
                warn!(source, publication, %table, from = %end, "taken out of the publication, so that its own writes work");
                Ok(None)
            }
            TakenOut::Refused(why) => {
                if let Err(error) = notes.put(before).await {
                    notes.say_unwritten(&error);
                }
                Ok(Some(why))
            }
        }
    }
}

const MORE: &str = "there are more than one look has time for";
const UNNOTED: &str = "the store could not note it";

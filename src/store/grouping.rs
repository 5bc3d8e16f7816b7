//! The rule by which a sink's messages are grouped does not change while messages wait that were grouped by another.
//!
//! What waits is kept under the groups of its time. A message under a new rule would not know that an older one of the same
//! row waits under the old, and would overtake it.

use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use super::error::StoreError;

/// Notes the rule, or refuses it.
pub(super) fn agree(db: &mut Connection, source: &str, sink: &str, rule: &str) -> Result<(), StoreError> {
    let what = "the grouping of a sink";
    let write = || StoreError::write(what);
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(write())?;
    let Some((key, before)) = known(&transaction, source, sink)? else { return Ok(()) };
    if let Some(before) = before.filter(|before| before != rule)
        && waits(&transaction, key)?
    {
        return Err(StoreError::Regrouped { sink: sink.to_owned(), before, given: rule.to_owned() });
    }
    transaction.execute("UPDATE sink SET grouping = ?2 WHERE key = ?1", params![key, rule]).map_err(write())?;
    transaction.commit().map_err(write())
}

/// Why [`agree`] would refuse the rule, without noting anything.
pub(super) fn refusal(db: &Connection, source: &str, sink: &str, rule: &str) -> Result<Option<StoreError>, StoreError> {
    match known(db, source, sink)? {
        Some((key, Some(before))) if before != rule && waits(db, key)? => {
            Ok(Some(StoreError::Regrouped { sink: sink.to_owned(), before, given: rule.to_owned() }))
        }
        Some(_) | None => Ok(None),
    }
}

/// The sink, and the rule that is noted of it.
fn known(db: &Connection, source: &str, sink: &str) -> Result<Option<(i64, Option<String>)>, StoreError> {
    db.query_row("SELECT key, grouping FROM sink WHERE source = ?1 AND name = ?2", params![source, sink], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })
    .optional()
    .map_err(StoreError::read("the grouping of a sink"))
}

fn waits(db: &Connection, key: i64) -> Result<bool, StoreError> {
    let waits = "SELECT EXISTS (SELECT 1 FROM delivery WHERE sink = ?1 AND state < 2)
        OR EXISTS (SELECT 1 FROM lane WHERE sink = ?1) OR EXISTS (SELECT 1 FROM page WHERE sink = ?1)";
    db.query_row(waits, [key], |row| row.get(0)).map_err(StoreError::read("the grouping of a sink"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::store::schema::{STATE, migrate};

    #[test]
    fn a_rule_changes_only_while_nothing_waits() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, Path::new("state.db"), &STATE).unwrap();
        db.execute("INSERT INTO sink (key, source, name, active, next_page) VALUES (7, 'app', 'orders', 1, 0)", [])
            .unwrap();
        agree(&mut db, "app", "orders", "primary_key").unwrap();
        agree(&mut db, "app", "orders", "table").unwrap();
        db.execute("INSERT INTO lane (sink, lsn, idx, grp, message) VALUES (7, 1, 1, 1, x'00')", []).unwrap();
        agree(&mut db, "app", "orders", "table").unwrap();
        assert!(refusal(&db, "app", "orders", "table").unwrap().is_none());
        let foreseen = refusal(&db, "app", "orders", "primary_key").unwrap().unwrap();
        let refused = agree(&mut db, "app", "orders", "primary_key").unwrap_err();
        assert_eq!(foreseen.to_string(), refused.to_string());
        assert!(refused.is_lasting() && refused.to_string().contains("state forget orders"), "{refused}");
        db.execute("DELETE FROM lane", []).unwrap();
        agree(&mut db, "app", "orders", "primary_key").unwrap();
    }
}

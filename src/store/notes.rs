//! Notes about single tables of a source: what of them is not captured, since when, and between which positions.
//!
//! A note outlives the process. It goes when its cause goes or when a person accepts it. There is one for a kind and a table,
//! so a gap that opens again joins the one before.

use rusqlite::{Connection, OptionalExtension as _, Row, TransactionBehavior, named_params};

use super::apply::lsn_of;
use super::error::StoreError;
use crate::change::{Lsn, TableName};
use crate::config::TablePattern;

/// Notes of a source that are kept at most. When that many are there a further one is refused ([`StoreError::NotesFull`]);
/// one that is there can still be changed.
const KEPT_MAX: i64 = 10_000;

/// What is not captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NoteKind {
    /// The table is or was published without a replica identity. With `from`: it was taken out of the publication there, and
    /// with `to`: put back there. What was committed in between was not captured.
    Identity,
    /// The table got its name while the source ran, or was made anew: what happened to it before is not captured.
    MadeAnew,
    /// The table had been written to before it was published.
    EarlyRows,
    /// The other table was written to before it became a partition of the table.
    AttachedRows,
    /// The table was renamed to the other name, which no sink takes.
    RenamedAway,
    /// The other table is an unlogged partition of the table.
    UnloggedPartition,
    /// The other table is a foreign partition of the table.
    ForeignPartition,
    /// The other table inherits from the table, and no sink takes it.
    Child,
    /// The table was captured, then not, and is again: as a partition that is detached and attached.
    Interrupted,
}

impl NoteKind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::Identity,
        Self::MadeAnew,
        Self::EarlyRows,
        Self::AttachedRows,
        Self::RenamedAway,
        Self::UnloggedPartition,
        Self::ForeignPartition,
        Self::Child,
        Self::Interrupted,
    ];

    /// As it is kept, and the label of the metric.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::MadeAnew => "made_anew",
            Self::EarlyRows => "early_rows",
            Self::AttachedRows => "attached_rows",
            Self::RenamedAway => "renamed_away",
            Self::UnloggedPartition => "unlogged_partition",
            Self::ForeignPartition => "foreign_partition",
            Self::Child => "child",
            Self::Interrupted => "interrupted",
        }
    }

    /// Its cause is looked for again and again: an accepted one is kept, so that it is not told anew, until the cause is gone.
    pub const fn is_standing(self) -> bool {
        match self {
            Self::UnloggedPartition | Self::ForeignPartition | Self::Child => true,
            Self::Identity
            | Self::MadeAnew
            | Self::EarlyRows
            | Self::AttachedRows
            | Self::RenamedAway
            | Self::Interrupted => false,
        }
    }

    fn of_str(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// Which note.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NoteKey {
    /// What is not captured.
    pub kind: NoteKind,
    /// Of which table.
    pub table: TableName,
    /// The second table that the kind speaks of.
    pub other: Option<TableName>,
}

impl NoteKey {
    /// Of one table.
    pub fn new(kind: NoteKind, table: TableName) -> Self {
        Self { kind, table, other: None }
    }

    /// Whether it speaks of a table of this name, as `schema.table`.
    pub fn names(&self, table: &str) -> bool {
        self.table.to_string() == table || self.other.as_ref().is_some_and(|other| other.to_string() == table)
    }
}

/// A note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Which.
    pub key: NoteKey,
    /// When it was first noticed, microseconds since 1970.
    pub at_micros: i64,
    /// From here on changes are not captured.
    pub from: Option<Lsn>,
    /// From here on they are captured again. Without `from`: up to here the table was certainly published.
    pub to: Option<Lsn>,
    /// A person knows of it.
    pub is_accepted: bool,
    /// `pg_class.oid` of the relation whose rows it speaks of, which it follows to another name.
    pub oid: Option<u32>,
}

impl Note {
    /// One that is noticed now.
    pub fn new(key: NoteKey, at_micros: i64) -> Self {
        Self { key, at_micros, from: None, to: None, is_accepted: false, oid: None }
    }

    /// A gap that has not ended: nothing of the table is captured.
    pub fn is_open(&self) -> bool {
        self.from.is_some() && self.to.is_none()
    }
}

/// The notes of a source, by kind and table.
pub(super) fn read(db: &Connection, source: &str) -> Result<Vec<Note>, StoreError> {
    let select = || -> rusqlite::Result<Vec<Option<Note>>> {
        let order =
            "SELECT kind, table_schema, table_name, other_schema, other_name, at, from_lsn, to_lsn, accepted, oid
                     FROM source_note WHERE source = ?1";
        db.prepare_cached(order)?.query_map([source], note)?.collect()
    };
    let found = select().map_err(StoreError::read("the notes of a source"))?;
    let mut notes: Vec<Note> = found.into_iter().flatten().collect();
    notes.sort_by(|one, other| one.key.cmp(&other.key));
    Ok(notes)
}

/// `None`: of a kind that this version does not know.
fn note(row: &Row<'_>) -> rusqlite::Result<Option<Note>> {
    let Some(kind) = NoteKind::of_str(&row.get::<_, String>(0)?) else { return Ok(None) };
    let other = TableName { schema: row.get(3)?, table: row.get(4)? };
    let key = NoteKey {
        kind,
        table: TableName { schema: row.get(1)?, table: row.get(2)? },
        other: (!other.table.is_empty()).then_some(other),
    };
    let [from, to] = [6, 7].map(|at| row.get::<_, Option<i64>>(at));
    Ok(Some(Note {
        key,
        at_micros: row.get(5)?,
        from: from?.map(lsn_of),
        to: to?.map(lsn_of),
        is_accepted: row.get(8)?,
        oid: row.get(9)?,
    }))
}

/// Writes a note in the place of the one of the same key.
pub(super) fn put(db: &Connection, source: &str, note: &Note) -> Result<(), StoreError> {
    let failed = StoreError::write("a note of a source");
    let key = Columns::of(&note.key);
    let place = "SELECT count(*), max(kind = ?2 AND table_schema = ?3 AND table_name = ?4 AND other_schema = ?5 AND other_name = ?6)
                 FROM source_note WHERE source = ?1";
    let named = (source, key.kind, key.schema, key.table, key.other_schema, key.other_table);
    let (count, is_there): (i64, Option<bool>) =
        db.query_row(place, named, |row| Ok((row.get(0)?, row.get(1)?))).map_err(&failed)?;
    if count >= KEPT_MAX && is_there != Some(true) {
        return Err(StoreError::NotesFull { source_name: source.to_owned(), kept: KEPT_MAX });
    }
    db.execute(
        "INSERT OR REPLACE INTO source_note
             (source, kind, table_schema, table_name, other_schema, other_name, at, from_lsn, to_lsn, accepted, oid)
         VALUES (:source, :kind, :schema, :table, :other_schema, :other_table, :at, :from, :to, :accepted, :oid)",
        named_params! {
            ":source": source, ":kind": key.kind, ":schema": key.schema, ":table": key.table,
            ":other_schema": key.other_schema, ":other_table": key.other_table,
            ":at": note.at_micros,
            ":from": note.from.map(|lsn| lsn.0.cast_signed()),
            ":to": note.to.map(|lsn| lsn.0.cast_signed()),
            ":accepted": note.is_accepted,
            ":oid": note.oid,
        },
    )
    .map(drop)
    .map_err(failed)
}

/// Removes some and writes others, all or none of it.
pub(super) fn replace(db: &mut Connection, source: &str, gone: &[NoteKey], new: &[Note]) -> Result<(), StoreError> {
    let failed = StoreError::write("the notes of a source");
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
    gone.iter().try_for_each(|key| remove(&transaction, source, key))?;
    new.iter().try_for_each(|note| put(&transaction, source, note))?;
    transaction.commit().map_err(failed)
}

/// Removes a note, if it is there.
pub(super) fn remove(db: &Connection, source: &str, key: &NoteKey) -> Result<(), StoreError> {
    let key = Columns::of(key);
    let gone = db.execute(
        "DELETE FROM source_note WHERE source = ?1 AND kind = ?2 AND table_schema = ?3 AND table_name = ?4
             AND other_schema = ?5 AND other_name = ?6",
        (source, key.kind, key.schema, key.table, key.other_schema, key.other_table),
    );
    gone.map(drop).map_err(StoreError::write("that a note of a source is gone"))
}

/// The key as the table has it.
struct Columns<'a> {
    kind: &'static str,
    schema: &'a str,
    table: &'a str,
    other_schema: &'a str,
    other_table: &'a str,
}

impl<'a> Columns<'a> {
    fn of(key: &'a NoteKey) -> Self {
        let (other_schema, other_table) =
            key.other.as_ref().map_or(("", ""), |other| (other.schema.as_str(), other.table.as_str()));
        let NoteKey { kind, table, .. } = key;
        Self { kind: kind.as_str(), schema: &table.schema, table: &table.table, other_schema, other_table }
    }
}

/// What the sinks of a source asked for when it was last prepared; empty if it never was.
pub(super) fn watched(db: &Connection, source: &str) -> Result<Vec<TablePattern>, StoreError> {
    let select = "SELECT patterns FROM source_watch WHERE source = ?1";
    let found = db.query_row(select, [source], |row| row.get::<_, String>(0)).optional();
    let found = found.map_err(StoreError::read("what the sinks of a source asked for"))?;
    // What cannot be read is as if it were not known: then nothing is said of tables that are new.
    let patterns: Vec<(String, String)> = found.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    Ok(patterns.into_iter().map(|(schema, table)| TablePattern { schema, table }).collect())
}

/// Notes what the sinks of a source ask for.
pub(super) fn watch(db: &Connection, source: &str, patterns: &[TablePattern]) -> Result<(), StoreError> {
    let pairs = patterns.iter().map(|pattern| serde_json::json!([pattern.schema, pattern.table]));
    let text = serde_json::Value::from_iter(pairs).to_string();
    let written = db.execute("INSERT OR REPLACE INTO source_watch (source, patterns) VALUES (?1, ?2)", (source, text));
    written.map(drop).map_err(StoreError::write("what the sinks of a source ask for"))
}

#[cfg(test)]
mod tests {
    use super::super::schema::{STATE, migrate};
    use super::*;

    fn store() -> Connection {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, std::path::Path::new("state.db"), &STATE).unwrap();
        db
    }

    fn named(table: &str) -> TableName {
        TableName { schema: "public".to_owned(), table: table.to_owned() }
    }

    #[test]
    fn a_note_is_kept_by_kind_and_tables_and_replaced_by_a_later_one_of_the_same() {
        let db = store();
        for kind in NoteKind::ALL {
            let key = NoteKey { other: kind.is_standing().then(|| named("leaf")), ..NoteKey::new(kind, named("t")) };
            put(&db, "app", &Note { from: Some(Lsn(u64::MAX)), ..Note::new(key, 7) }).unwrap();
        }
        let gap = NoteKey::new(NoteKind::Identity, named("t"));
        let closed = Note { from: Some(Lsn(5)), to: Some(Lsn(9)), is_accepted: true, ..Note::new(gap.clone(), 8) };
        put(&db, "app", &closed).unwrap();
        put(&db, "other", &Note::new(gap.clone(), 1)).unwrap();
        let notes = read(&db, "app").unwrap();
        assert_eq!(notes.len(), NoteKind::ALL.len());
        assert_eq!(notes[0], closed);
        assert!(notes[7].key.names("public.leaf") && notes[7].key.names("public.t") && !notes[7].key.names("t"));
        assert_eq!(notes[7].from, Some(Lsn(u64::MAX)));
        remove(&db, "app", &gap).unwrap();
        assert_eq!(read(&db, "app").unwrap().len(), NoteKind::ALL.len() - 1);
        assert_eq!(read(&db, "other").unwrap().len(), 1);
    }

    #[test]
    fn notes_change_places_together() {
        let mut db = store();
        let note =
            |table: &str, oid| Note { oid: Some(oid), ..Note::new(NoteKey::new(NoteKind::EarlyRows, named(table)), 0) };
        let (one, two) = (note("one", 1), note("two", 2));
        put(&db, "app", &one).unwrap();
        put(&db, "app", &two).unwrap();
        let swapped = [note("one", 2), note("two", 1)];
        replace(&mut db, "app", &[one.key, two.key], &swapped).unwrap();
        assert_eq!(read(&db, "app").unwrap(), swapped);
    }

    #[test]
    fn when_the_bound_is_reached_a_new_note_is_refused_and_one_that_is_there_can_be_changed() {
        let db = store();
        db.execute_batch("BEGIN").unwrap();
        let key = |n: i64| NoteKey::new(NoteKind::EarlyRows, named(&format!("t{n}")));
        for n in 0..KEPT_MAX {
            put(&db, "app", &Note::new(key(n), n)).unwrap();
        }
        let refused = put(&db, "app", &Note::new(key(KEPT_MAX), 0)).unwrap_err();
        assert!(matches!(refused, StoreError::NotesFull { .. }), "{refused}");
        put(&db, "app", &Note::new(key(3), 77)).unwrap();
        put(&db, "other", &Note::new(key(3), 77)).unwrap();
        remove(&db, "app", &key(4)).unwrap();
        put(&db, "app", &Note::new(key(KEPT_MAX), 0)).unwrap();
        assert_eq!(read(&db, "app").unwrap().len(), usize::try_from(KEPT_MAX).unwrap());
    }

    #[test]
    fn what_was_asked_for_is_kept_by_source() {
        let db = store();
        assert!(watched(&db, "app").unwrap().is_empty());
        let pattern = |schema: &str, table: &str| TablePattern { schema: schema.to_owned(), table: table.to_owned() };
        watch(&db, "app", &[pattern("public", "*")]).unwrap();
        let two = [pattern("public", "a.\"b"), pattern("x", "*")];
        watch(&db, "app", &two).unwrap();
        assert_eq!(watched(&db, "app").unwrap(), two);
        assert!(watched(&db, "other").unwrap().is_empty());
    }
}

//! What decides which changes are passed over is believed only as it was written, and a store that was there is missed.

use std::path::Path;

use rusqlite::Connection;

use super::*;
use crate::store::mend::{Accepted, accept_loss};

/// A closed store of a source that is bound and a sink that is some way.
fn filled() -> Rig {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    store.bind(&binding(Some(0x100))).unwrap();
    let grouped =
        Grouped { oid: 7, scope: ScopeId(9), rule: "primary_key".into(), since: at(0x150, 1), barrier: Barrier::None };
    let ops = vec![park(1), Op::Grouped { grouped, forgotten: Vec::new() }];
    write_with(&store, sink, ops, Some(progress(0x200, Some(at(0x300, 3)), &[at(0x250, 1), at(0x250, 2)])));
    store.close();
    rig
}

fn binding(from: Option<u64>) -> NewBinding {
    let (name, database, slot) = ("app".to_owned(), "shop".to_owned(), "walhook_app".to_owned());
    NewBinding { name, system_id: 743_900_001, timeline: 2, database, slot, from: from.map(Lsn) }
}

fn db(rig: &Rig) -> Connection {
    Connection::open(rig.config.path.join("state.db")).unwrap()
}

fn opening(rig: &Rig) -> StoreError {
    Store::open(&rig.config, 1).expect_err("the store is not opened")
}

#[test]
fn a_changed_column_of_a_binding_or_of_progress_is_damage_that_a_person_accepts() {
    for (change, what) in [
        ("UPDATE source SET confirmed = confirmed - 1", "the binding of source app"),
        ("UPDATE source SET confirmed = confirmed + 1", "the binding of source app"),
        ("UPDATE source SET confirmed = NULL", "the binding of source app"),
        ("UPDATE source SET system_id = '743900011'", "the binding of source app"),
        ("UPDATE source SET timeline = 3", "the binding of source app"),
        ("UPDATE source SET database = 'shot'", "the binding of source app"),
        ("UPDATE source SET slot = 'walhook_apq'", "the binding of source app"),
        ("UPDATE source SET gap_accepted = 1", "the binding of source app"),
        ("UPDATE source SET name = 'apq'", "the binding of source apq"),
        ("UPDATE source SET seal = seal + 1", "the binding of source app"),
        ("UPDATE source SET seal = NULL", "the binding of source app"),
        ("UPDATE sink SET resolved = resolved + 16", "how far sink orders of source app is"),
        ("UPDATE sink SET high_lsn = high_lsn + 4096", "how far sink orders of source app is"),
        ("UPDATE sink SET high_idx = 9", "how far sink orders of source app is"),
        ("UPDATE sink SET unresolved = x'00'", "how far sink orders of source app is"),
        ("UPDATE sink SET unresolved = NULL", "how far sink orders of source app is"),
        ("UPDATE sink SET seal = NULL", "how far sink orders of source app is"),
        ("UPDATE grouped SET rule = 'table'", "what a table of sink orders of source app is grouped by"),
        ("UPDATE grouped SET since_idx = 2", "what a table of sink orders of source app is grouped by"),
    ] {
        let rig = filled();
        assert_eq!(db(&rig).execute(change, []).unwrap(), 1, "{change}");
        let error = opening(&rig);
        let said = error.to_string();
        assert!(
            error.is_lasting() && said.contains(what) && said.contains("`walhook state accept-loss`"),
            "{change}: {said}"
        );
        assert!(matches!(error, StoreError::Tampered { .. }), "{change}");
        let damage = mend::open_to_show(&rig.config).unwrap().damage;
        assert!(damage.len() == 1 && damage[0].starts_with(what), "{change}: {damage:?}");
        // Nothing that seals anew may do so before it is accepted.
        assert!(matches!(mend::accept_gap(&rig.config, "app"), Err(StoreError::Tampered { .. })), "{change}");
        let Ok(Accepted::Forgotten { rows, moves }) = accept_loss(&rig.config) else { panic!("{change}") };
        assert_eq!((rows, moves), (damage, !change.contains("grouped")));
        assert_eq!(accept_loss(&rig.config).unwrap(), Accepted::Nothing);
        let (store, _) = rig.one();
        let after = loaded(&store);
        match change {
            _ if change.contains("source") => assert_eq!(store.source("app").unwrap(), None, "{change}"),
            _ if change.contains("sink") => assert_eq!(after.progress, None, "it begins where the slot is: {change}"),
            _ => assert!(after.tables.is_empty() && after.progress.is_some(), "{change}"),
        }
        assert_eq!(after.deliveries.len(), 1, "what it holds stays: {change}");
    }
}

#[test]
fn whatever_writes_a_row_keeps_its_seal() {
    let rig = filled();
    let whole = |rig: &Rig| assert_eq!(mend::open_to_show(&rig.config).unwrap().damage, Vec::<String>::new());
    whole(&rig);
    let (store, keys) = rig.open(&["orders", "mails"]);
    store.accept_gap("app", Some(AcceptedBy::Setting)).unwrap();
    whole(&rig);
    store.bind(&binding(Some(0x400))).unwrap();
    write_with(&store, keys[0], Vec::new(), Some(progress(0x500, Some(at(0x500, 1)), &[])));
    write_with(&store, keys[1], Vec::new(), Some(progress(0x450, None, &[])));
    assert_eq!(store.source("app").unwrap().unwrap().confirmed, Some(Lsn(0x450)), "it was raised");
    whole(&rig);
    // One that is absent is brought forward when it returns.
    store.register("app", &["orders"]).unwrap();
    write_with(&store, keys[0], Vec::new(), Some(progress(0x600, Some(at(0x600, 1)), &[])));
    store.register("app", &["orders", "mails"]).unwrap();
    assert_eq!(store.load("app", "mails").unwrap().1.progress.unwrap().resolved, Lsn(0x600));
    store.close();
    whole(&rig);
    mend::accept_gap(&rig.config, "app").unwrap();
    mend::resume(&rig.config, None, "orders").unwrap();
    mend::forget(&rig.config, None, "mails").unwrap();
    whole(&rig);
    drop(rig.one());
}

#[test]
fn a_store_of_an_earlier_version_is_sealed_as_it_is() {
    let rig = filled();
    let before =
        "ALTER TABLE source DROP COLUMN seal; ALTER TABLE sink DROP COLUMN seal; ALTER TABLE grouped DROP COLUMN seal;
                  DROP TABLE store_id; DROP TABLE running; DROP TABLE source_went_back; PRAGMA user_version = 8";
    db(&rig).execute_batch(before).unwrap();
    std::fs::remove_file(rig.config.path.join("state.id")).unwrap();
    let (store, _) = rig.one();
    assert_eq!(store.source("app").unwrap().unwrap().confirmed, Some(Lsn(0x200)));
    store.close();
    assert_eq!(mend::open_to_show(&rig.config).unwrap().damage, Vec::<String>::new());
    let sealed: i64 = db(&rig).query_row("SELECT count(seal) FROM source", [], |row| row.get(0)).unwrap();
    assert_eq!((sealed, rig.config.path.join("state.id").exists()), (1, true));
    assert_eq!(db(&rig).execute("UPDATE sink SET resolved = resolved + 1", []).unwrap(), 1);
    assert!(matches!(opening(&rig), StoreError::Tampered { .. }));
}

#[test]
fn a_store_that_is_gone_emptied_cut_off_or_another_is_damage_that_a_person_accepts() {
    let other = filled();
    type Damage<'a> = (&'a str, &'a dyn Fn(&Path));
    let cases: [Damage<'_>; 6] = [
        ("is gone", &|path| std::fs::remove_file(path).unwrap()),
        ("is empty", &|path| std::fs::write(path, "").unwrap()),
        ("is cut off", &|path| cut(path, 50)),
        ("is damaged", &|path| cut(path, 4096 * 5)),
        ("is damaged", &|path| std::fs::write(path, [7; 9000]).unwrap()),
        ("without tables", &|path| {
            std::fs::remove_file(path).unwrap();
            Connection::open(path).unwrap().execute_batch("PRAGMA auto_vacuum = INCREMENTAL; VACUUM").unwrap();
        }),
    ];
    for (what, damage) in cases {
        let rig = filled();
        let path = rig.config.path.join("state.db");
        damage(&path);
        let error = opening(&rig);
        let said = error.to_string();
        assert!(
            error.is_lasting() && said.contains(what) && said.contains("`walhook state accept-loss`"),
            "{what}: {said}"
        );
        assert!(!path.exists() || std::fs::metadata(&path).unwrap().len() < 30_000, "nothing was made in its place");
        let shown = mend::open_to_show(&rig.config).unwrap_err().to_string();
        assert!(shown.contains("accept-loss"), "{what}: {shown}");
        assert_eq!(opening(&rig).to_string(), said, "it is so at every start");
        let had_file = path.exists();
        let Ok(Accepted::SetAside(aside)) = accept_loss(&rig.config) else { panic!("{what}") };
        assert_eq!(aside.is_some_and(|aside| aside.exists()), had_file, "{what}");
        let (store, _) = rig.one();
        assert_eq!(store.source("app").unwrap(), None, "{what}: it begins anew");
        store.close();
    }
    let rig = filled();
    std::fs::copy(other.config.path.join("state.db"), rig.config.path.join("state.db")).unwrap();
    assert!(matches!(opening(&rig), StoreError::Another { .. }));
    assert_eq!(accept_loss(&rig.config).unwrap(), Accepted::Adopted);
    assert_eq!(accept_loss(&rig.config).unwrap(), Accepted::Nothing);
    drop(rig.one());
}

fn cut(path: &Path, bytes: u64) {
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

#[test]
fn a_store_that_was_cut_off_after_a_crash_is_damage_too() {
    let rig = filled();
    let (store, sink) = rig.one();
    // Its WAL is not empty while it is open.
    write(&store, sink, vec![park(2)]);
    let copy = Rig::new();
    std::fs::create_dir_all(&copy.config.path).unwrap();
    for name in ["state.db", "state.db-wal", "state.id"] {
        std::fs::copy(rig.config.path.join(name), copy.config.path.join(name)).unwrap();
    }
    store.close();
    cut(&copy.config.path.join("state.db"), 4096 * 6);
    let error = opening(&copy);
    assert!(matches!(error, StoreError::Ruined { .. }), "{error:?}");
}

#[test]
fn an_empty_directory_is_a_new_store_and_a_marker_that_is_damaged_or_gone_is_written_anew() {
    let rig = Rig::new();
    std::fs::create_dir_all(&rig.config.path).unwrap();
    drop(rig.one());
    let marker = rig.config.path.join("state.id");
    for change in [|path: &Path| std::fs::write(path, "x").unwrap(), |path: &Path| std::fs::remove_file(path).unwrap()]
    {
        let before = std::fs::read(&marker).unwrap();
        change(&marker);
        rig.one().0.close();
        assert_eq!(std::fs::read(&marker).unwrap(), before);
    }
    std::fs::write(&marker, "x").unwrap();
    std::fs::remove_file(rig.config.path.join("state.db")).unwrap();
    assert!(matches!(opening(&rig), StoreError::Lost { .. }), "it still says that there was one");
    std::fs::remove_dir_all(&rig.config.path).unwrap();
    drop(rig.one());
}

#[test]
fn a_log_that_is_damaged_is_set_aside() {
    let rig = filled();
    std::fs::write(rig.config.path.join("log.db"), [7; 9000]).unwrap();
    let (store, _) = rig.one();
    assert_eq!(loaded(&store).deliveries.len(), 1);
    store.close();
    let names: Vec<String> = std::fs::read_dir(&rig.config.path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert!(names.iter().any(|name| name == "log.db.damaged"), "{names:?}");
}

#[test]
fn damage_that_shows_only_when_it_is_read_is_named_and_accepted_too() {
    let rig = filled();
    let (store, sink) = rig.one();
    write(&store, sink, (2..200).map(park).collect());
    store.close();
    let path = rig.config.path.join("state.db");
    // Tables that are read at a start, and later.
    let pages: i64 = db(&rig).pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
    assert!(pages > 30);
    let mut bytes = std::fs::read(&path).unwrap();
    for table in ["delivery", "lane_group"] {
        let root = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
        let root: i64 = db(&rig).query_row(root, [table], |row| row.get(0)).unwrap();
        let at = usize::try_from((root - 1) * 4096).unwrap();
        bytes[at..at + 4096].fill(0xA5);
    }
    std::fs::write(&path, bytes).unwrap();
    let store = Store::open(&rig.config, 1).unwrap();
    let error = store.load("app", "orders").unwrap_err();
    assert!(matches!(error, StoreError::Ruined { .. }) && error.is_lasting(), "{error:?}");
    assert!(now(store.lanes(sink, vec![LaneWant { group: GroupId(1), after: None }], 9, 1 << 20)).is_err());
    let trouble = store.health().trouble.unwrap();
    assert!(store.health().is_failing && trouble.what.contains("cannot be read"), "{trouble:?}");
    store.close();
    assert!(matches!(accept_loss(&rig.config), Ok(Accepted::SetAside(Some(_)))));
    drop(rig.one());
}

//! Opening, binding, refusing, closing.

use std::os::unix::fs::PermissionsExt as _;

use rusqlite::Connection;

use super::super::mend;
use super::*;
use crate::schedule::StoredScope;
use crate::ties::ScopeId;

#[test]
fn the_directory_is_ours_alone_and_locked() {
    let rig = Rig::new();
    let (store, _) = rig.one();
    assert_eq!(rig.config.path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    let second = Store::open(&rig.config, 1).unwrap_err();
    assert!(second.is_lasting());
    assert_eq!(
        second.to_string(),
        format!(
            "another walhook uses {}: stop that one, or give this one a state.path of its own",
            rig.config.path.join("lock").display()
        )
    );
    let other = store.clone();
    store.close();
    let (_again, _) = rig.one();
    assert!(matches!(other.bind(&binding(None)), Err(StoreError::Closed)));
    assert!(other.submit(Batch { sink: SinkKey(1), ops: Vec::new(), progress: None }).blocking_recv().is_err());
}

#[test]
fn a_dropped_store_writes_what_was_handed_over_and_gives_the_directory_free() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    drop(store.submit(Batch { sink, ops: vec![park(1)], progress: None }));
    drop(store);
    let (store, _) = rig.one();
    assert_eq!(loaded(&store).deliveries.len(), 1);
}

#[test]
fn a_path_that_cannot_be_one_is_refused_for_good() {
    let mut rig = Rig::new();
    let file = rig.directory.path().join("file");
    std::fs::write(&file, "x").unwrap();
    for path in [file.clone(), file.join("below")] {
        rig.config.path = path;
        let error = Store::open(&rig.config, 1).unwrap_err();
        assert!(matches!(error, StoreError::Directory { .. }) && error.is_lasting(), "{error:?}");
    }
}

#[test]
fn a_file_of_somebody_else_is_refused_and_left_as_it_is() {
    let rig = Rig::new();
    std::fs::create_dir_all(&rig.config.path).unwrap();
    let path = rig.config.path.join("state.db");
    std::fs::write(&path, "not a database, but long enough to be looked at as one".repeat(100)).unwrap();
    let error = Store::open(&rig.config, 1).unwrap_err();
    assert!(matches!(error, StoreError::Open { .. }) && error.is_lasting(), "{error:?}");

    std::fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE mine (a); PRAGMA user_version = 1").unwrap();
    let before = std::fs::read(&path).unwrap();
    let error = Store::open(&rig.config, 1).unwrap_err();
    assert!(matches!(error, StoreError::Foreign { .. }) && error.is_lasting(), "{error:?}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_file_of_a_later_version_is_refused() {
    let rig = Rig::new();
    rig.one().0.close();
    let path = rig.config.path.join("state.db");
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 11).unwrap();
    let error = Store::open(&rig.config, 1).unwrap_err();
    assert!(error.is_lasting());
    assert_eq!(
        error.to_string(),
        format!("{} has version 11, and this walhook knows versions up to 10: use a newer one", path.display())
    );
}

#[test]
fn a_file_of_an_earlier_version_is_brought_to_this_one_with_what_it_holds() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    store.bind(&binding(None)).unwrap();
    let moved = message_of(at(7, 1), Groups::Two(GroupId(1), GroupId(2)));
    let lanes = Op::Lanes(vec![message(6, 1), moved.clone()]);
    let page = Op::Page { page: 0, messages: vec![message(8, 1)] };
    write_with(&store, sink, vec![park(1), lanes, page], Some(progress(5, None, &[])));
    store.close();
    let db = Connection::open(rig.config.path.join("state.db")).unwrap();
    db.execute_batch(
        "ALTER TABLE source DROP COLUMN timeline; ALTER TABLE source DROP COLUMN confirmed; ALTER TABLE sink DROP COLUMN grouping;
         DROP INDEX lane_unknown; DROP INDEX lane_barrier; DROP TABLE grouped; DROP TABLE store_id; DROP TABLE running; DROP TABLE source_went_back;
         ALTER TABLE source DROP COLUMN seal; ALTER TABLE sink DROP COLUMN seal; DROP TABLE source_gap; DROP TABLE source_note;
         DROP TABLE source_watch; ALTER TABLE lane DROP COLUMN scope;
         ALTER TABLE lane DROP COLUMN barrier; ALTER TABLE lane_group DROP COLUMN scope; PRAGMA user_version = 1",
    )
    .unwrap();
    drop(db);
    let only_read = super::mend::open_to_show(&rig.config).unwrap_err().to_string();
    assert!(only_read.contains("version 1") && only_read.contains("walhook run"), "{only_read}");
    let (store, sink) = rig.one();
    let bound = store.source("app").unwrap().unwrap();
    assert_eq!((bound.timeline, bound.confirmed, bound.seen), (None, Some(Lsn(5)), Some(Lsn(5))));
    let loaded = loaded(&store);
    assert_eq!((loaded.deliveries.len(), loaded.overflow.messages, loaded.barriers.len()), (1, 1, 0));
    let lanes = loaded.lanes.iter().map(|lane| (lane.group.0, lane.messages, lane.scope));
    assert_eq!(lanes.collect::<Vec<_>>(), [(1, 2, None), (2, 1, None)]);
    let unknown = StoredScope { scope: ScopeId::UNKNOWN, after: None, messages: 2 };
    assert_eq!(loaded.scopes, [unknown], "one of two groups counts once");
    let read = |group| -> Vec<(Position, Bytes)> {
        let messages = lane(&store, sink, group).into_iter();
        messages.map(|message| (message.facts.position, message.json)).collect()
    };
    let (first, moved) = ((at(6, 1), message(6, 1).json), (at(7, 1), moved.json));
    assert_eq!((read(1), read(2)), (vec![first, moved.clone()], vec![moved]));
    store.bind(&binding(None)).unwrap();
    assert_eq!(store.source("app").unwrap().unwrap().timeline, Some(3));
}

#[test]
fn files_that_were_made_and_not_filled_are_filled() {
    let rig = Rig::new();
    std::fs::create_dir_all(&rig.config.path).unwrap();
    // As a crash between making a file and its first migration leaves them.
    std::fs::write(rig.config.path.join("log.db"), "").unwrap();
    let db = Connection::open(rig.config.path.join("state.db")).unwrap();
    db.execute_batch("PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL").unwrap();
    drop(db);
    assert!(matches!(mend::open_to_show(&rig.config), Err(StoreError::Missing { .. })));
    let (store, sink) = rig.one();
    write(&store, sink, vec![park(1)]);
}

#[test]
fn both_files_shrink_and_sync_as_the_design_says() {
    let rig = Rig::new();
    rig.one().0.close();
    for (name, application, version) in [("state.db", 0x7761_6C68, 10), ("log.db", 0x7761_6C6C, 1)] {
        let db = Connection::open(rig.config.path.join(name)).unwrap();
        let pragma = |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
        let is = ["application_id", "user_version", "auto_vacuum", "page_size"].map(pragma);
        assert_eq!(is, [application, version, 2, 4096], "{name}");
        let mode: String = db.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
        assert_eq!(mode, "wal", "{name}");
    }
}

fn binding(from: Option<u64>) -> NewBinding {
    let (name, database, slot) = ("app".to_owned(), "shop".to_owned(), "walhook_app".to_owned());
    NewBinding { name, system_id: u64::MAX, timeline: 3, database, slot, from: from.map(Lsn) }
}

#[test]
fn a_binding_is_kept_and_knows_how_far_its_active_sinks_are() {
    let rig = Rig::new();
    let (store, keys) = rig.open(&["orders", "other", "new"]);
    assert_eq!(store.source("app").unwrap(), None);
    store.bind(&binding(None)).unwrap();
    let bound = SourceBinding {
        system_id: u64::MAX,
        timeline: Some(3),
        database: "shop".to_owned(),
        slot: "walhook_app".to_owned(),
        confirmed: None,
        seen: None,
        gap_accepted: None,
        went_back: None,
    };
    assert_eq!(store.source("app").unwrap(), Some(bound.clone()));
    let confirmed = |store: &Store| store.source("app").unwrap().unwrap().confirmed;
    write_with(&store, keys[0], vec![], Some(progress(7, None, &[])));
    write_with(&store, keys[1], vec![], Some(progress(5, Some(at(8, 1)), &[at(6, 1)])));
    assert_eq!(confirmed(&store), None, "one has no progress, so that the slot stays where that one begins");
    write_with(&store, keys[2], vec![], Some(progress(6, None, &[])));
    store.close();
    let (store, _) = rig.open(&["orders", "other", "new"]);
    assert_eq!(
        store.source("app").unwrap(),
        Some(SourceBinding { confirmed: Some(Lsn(5)), seen: Some(Lsn(9)), ..bound })
    );
    store.register("app", &["orders"]).unwrap();
    write_with(&store, keys[0], vec![], Some(progress(7, None, &[])));
    assert_eq!(confirmed(&store), Some(Lsn(7)), "the others do not count any more");
}

#[test]
fn what_is_confirmed_of_a_source_outlives_its_sinks() {
    let rig = Rig::new();
    let (store, keys) = rig.open(&["orders", "other"]);
    store.bind(&binding(Some(3))).unwrap();
    let confirmed = |store: &Store| store.source("app").unwrap().unwrap().confirmed;
    assert_eq!(confirmed(&store), Some(Lsn(3)), "where the slot was when it began");
    for key in &keys {
        write_with(&store, *key, vec![], Some(progress(5, None, &[])));
    }
    store.register("app", &["other"]).unwrap();
    write_with(&store, keys[1], vec![], Some(progress(9, None, &[])));
    // A start without any sink, and then only the one that was away when the slot went on.
    store.register("app", &[]).unwrap();
    assert_eq!(confirmed(&store), Some(Lsn(9)));
    store.register("app", &["orders"]).unwrap();
    assert_eq!((loaded(&store).progress, confirmed(&store)), (Some(progress(9, None, &[])), Some(Lsn(9))));
    // Only a new one: it has seen nothing, and the source still knows where it is.
    store.register("app", &["new"]).unwrap();
    assert_eq!(confirmed(&store), Some(Lsn(9)));
    let new = store.load("app", "new").unwrap().0;
    write_with(&store, new, vec![], Some(progress(4, None, &[])));
    assert_eq!(confirmed(&store), Some(Lsn(9)), "it is never lowered");
    store.close();
    mend::forget(&rig.config, None, "new").unwrap();
    assert_eq!(mend::open_to_show(&rig.config).unwrap().sources[0].1.confirmed, Some(Lsn(9)));
}

#[test]
fn absent_sinks_that_hold_something_are_told_and_take_up_where_the_others_are() {
    let rig = Rig::new();
    let (store, keys) = rig.open(&["orders", "empty", "other"]);
    store.bind(&binding(None)).unwrap();
    let page = Op::Page { page: 0, messages: vec![message(3, 1), message(4, 1)] };
    let ops = vec![park(1), Op::Lanes(vec![message(2, 1)]), page];
    write_with(&store, keys[0], ops, Some(progress(5, Some(at(6, 1)), &[at(5, 1)])));
    write_with(&store, keys[2], vec![], Some(progress(9, None, &[])));
    let absent = store.register("app", &["other"]).unwrap();
    assert_eq!(absent.len(), 1);
    assert_eq!(absent[0].name, "orders");
    assert_eq!(absent[0].holds.to_string(), "1 failed delivery, 3 waiting messages");
    assert_eq!(absent[0].holds.oldest_micros, Some(4));
    write_with(&store, keys[2], vec![], Some(progress(9, None, &[])));
    store.close();
    let (store, _) = rig.open(&["orders", "other"]);
    assert_eq!(loaded(&store).progress, Some(progress(9, Some(at(6, 1)), &[at(5, 1)])));
    assert_eq!(loaded(&store).deliveries.len(), 1);
}

#[test]
fn what_is_held_for_a_source_that_left_the_config_is_told() {
    let rig = Rig::new();
    let (store, keys) = rig.open(&["orders", "empty"]);
    write(&store, keys[0], vec![park(1)]);
    store.register("renamed", &["orders"]).unwrap();
    let new = store.load("renamed", "orders").unwrap().0;
    write(&store, new, vec![park(1)]);
    assert_eq!(store.leave_out(&["app", "renamed"]).unwrap(), []);
    let left = store.leave_out(&["renamed"]).unwrap();
    let names: Vec<_> = left.iter().map(|sink| (&*sink.source, &*sink.name, sink.holds.retrying)).collect();
    assert_eq!(names, [("app", "orders", 1)]);
    let active = mend::open_to_show(&rig.config).unwrap().sinks.into_iter().filter(|sink| sink.active);
    assert_eq!(active.map(|sink| sink.source).collect::<Vec<_>>(), ["renamed"]);
}

#[test]
fn an_accepted_gap_moves_its_sinks_forward_and_takes_nothing_back() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    store.bind(&binding(None)).unwrap();
    write_with(&store, sink, vec![park(1)], Some(progress(5, Some(at(6, 1)), &[at(5, 1)])));
    store.close();
    mend::accept_gap(&rig.config, "app").unwrap();
    assert!(matches!(mend::accept_gap(&rig.config, "none"), Err(StoreError::UnknownSource { .. })));
    let (store, sink) = rig.one();
    let accepted = || store.source("app").unwrap().unwrap().gap_accepted;
    assert_eq!(accepted(), Some(AcceptedBy::Person));
    for by in [None, Some(AcceptedBy::Setting)] {
        store.accept_gap("app", by).unwrap();
        assert_eq!(accepted(), by);
    }
    store.bind(&binding(Some(8))).unwrap();
    assert_eq!(accepted(), None);
    assert_eq!(loaded(&store).progress, Some(progress(8, Some(at(6, 1)), &[at(5, 1)])));
    assert_eq!(loaded(&store).deliveries.len(), 1, "what is held stays");
    write_with(&store, sink, vec![], Some(progress(8, Some(at(9, 1)), &[])));
    store.bind(&binding(Some(3))).unwrap();
    assert_eq!(loaded(&store).progress, Some(progress(8, Some(at(9, 1)), &[])));
}

#[test]
fn a_batch_that_takes_something_back_is_refused_and_nothing_of_it_is_written() {
    let rig = Rig::new();
    let (store, keys) = rig.open(&["orders", "other"]);
    let sink = keys[0];
    let page = |page| Op::Page { page, messages: vec![message(1, 1)] };
    write_with(&store, sink, vec![page(4)], Some(progress(5, Some(at(6, 1)), &[])));
    for (ops, progress) in [
        (vec![park(1)], Some(progress(4, Some(at(6, 1)), &[]))),
        (vec![park(1)], Some(progress(5, Some(at(5, 9)), &[]))),
        (vec![park(1), page(4)], None),
    ] {
        // With another in the same transaction, which is written.
        let refused = store.submit(Batch { sink, ops, progress });
        let written = store.submit(Batch { sink: keys[1], ops: vec![park(2)], progress: None });
        assert!(refused.blocking_recv().is_err());
        written.blocking_recv().unwrap();
    }
    assert!(store.submit(Batch { sink: SinkKey(99), ops: vec![park(1)], progress: None }).blocking_recv().is_err());
    assert_eq!(loaded(&store).deliveries.len(), 0);
    assert_eq!(store.load("app", "other").unwrap().1.deliveries.len(), 1);
    assert_eq!(store.health().trouble, None);
}

#[test]
fn what_is_blocked_is_tried_once_more_when_a_person_says_so() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    let (delivery, body) = delivery(1);
    let tries = Tries { attempts: 5, next_attempt_micros: None, ..delivery.tries.clone() };
    let (id, blocked) = (delivery.id, Op::Tried { id: delivery.id, tries, blocked: true });
    write(&store, sink, vec![Op::Park { delivery, body }, park(2), blocked]);
    store.close();
    assert_eq!(mend::resume(&rig.config, None, "orders").unwrap(), mend::Resumed { paused: None, unblocked: 1 });
    let (store, _) = rig.one();
    let first = loaded(&store).deliveries.into_iter().find(|delivery| delivery.id == id).unwrap();
    assert_eq!((first.blocked, first.tries.attempts, first.tries.next_attempt_micros), (false, 5, None));
}

#[test]
fn the_commands_show_forget_and_resume() {
    let rig = Rig::new();
    assert!(matches!(mend::open_to_show(&rig.config), Err(StoreError::Missing { .. })));
    assert!(matches!(mend::forget(&rig.config, None, "orders"), Err(StoreError::Missing { .. })));
    let (store, keys) = rig.open(&["orders", "other"]);
    store.bind(&binding(None)).unwrap();
    let messages = |range: std::ops::Range<u64>| range.map(|lsn| message(lsn, lsn % 7)).collect();
    let mut ops: Vec<Op> = (1..=200).map(park).collect();
    ops.push(Op::Lanes(messages(1..2000)));
    ops.extend((0..100).map(|page| Op::Page { page, messages: messages(1..20) }));
    ops.push(Op::Paused { why: "gave up".to_owned() });
    write_with(&store, keys[0], ops, Some(progress(5, None, &[])));
    write(&store, keys[1], vec![park(1)]);
    // Beside a running daemon only looking is allowed.
    let summary = mend::open_to_show(&rig.config).unwrap();
    assert!(matches!(mend::forget(&rig.config, None, "orders"), Err(StoreError::Locked { .. })));
    store.close();
    assert_eq!(mend::open_to_show(&rig.config).unwrap().sinks, summary.sinks);
    let shown = &summary.sinks[0];
    assert_eq!((&*shown.name, shown.active, shown.resolved), ("orders", true, Some(Lsn(5))));
    assert_eq!(shown.holds.to_string(), "200 failed deliveries, 3899 waiting messages");
    assert_eq!(shown.paused.as_deref(), Some("gave up"));
    assert_eq!(summary.sources[0].1.slot, "walhook_app");
    assert!(summary.used_bytes > 0);

    let resumed = mend::resume(&rig.config, None, "orders").unwrap();
    assert_eq!(resumed.paused.as_deref(), Some("gave up"));
    assert_eq!(mend::resume(&rig.config, None, "orders").unwrap(), mend::Resumed::default());
    assert_eq!(mend::forget(&rig.config, None, "orders").unwrap().holds, shown.holds);
    assert!(matches!(mend::forget(&rig.config, None, "orders"), Err(StoreError::UnknownSink { .. })));
    let left = mend::open_to_show(&rig.config).unwrap();
    assert_eq!(left.sinks, [summary.sinks[1].clone()]);
    for table in ["delivery", "delivery_content", "page", "page_content", "lane", "lane_group"] {
        let db = Connection::open(rig.config.path.join("state.db")).unwrap();
        let rows: i64 = db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
        assert_eq!(rows, i64::from(table.starts_with("delivery")), "{table}");
    }
    let (store, _) = rig.one();
    assert_eq!(loaded(&store).progress, None, "it begins anew");
}

#[test]
fn a_forgetting_that_was_broken_off_is_finished_by_the_daemon() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    write(&store, sink, (1..=300).map(park).collect());
    store.close();
    let path = rig.config.path.join("state.db");
    super::super::sweep::forget(&Connection::open(&path).unwrap(), sink.0).unwrap();
    let (store, again) = rig.one();
    assert_ne!(again, sink);
    assert_eq!(loaded(&store).deliveries.len(), 0);
    let db = Connection::open(&path).unwrap();
    wait_until("its rows are gone", || {
        db.query_row("SELECT (SELECT count(*) FROM delivery) + (SELECT count(*) FROM sink)", [], |row| {
            row.get::<_, i64>(0)
        }) == Ok(1)
    });
}

#[test]
fn a_writer_that_panics_leaves_nobody_waiting() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let called = store.call(|_| -> Result<(), StoreError> { panic!("a fault of ours") });
    std::panic::set_hook(hook);
    assert!(matches!(called, Err(StoreError::Closed)));
    wait_until("it is shown", || store.health().trouble.is_some_and(|trouble| trouble.what.contains("panicked")));
    assert!(store.submit(Batch { sink, ops: vec![park(1)], progress: None }).blocking_recv().is_err());
    store.close();
    drop(rig.one());
}

//! Files that are not as they were written.

use std::io::{Seek as _, SeekFrom, Write as _};

use rusqlite::Connection;

use super::*;

/// A closed store with something of everything.
fn filled() -> Rig {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    let page = Op::Page { page: 0, messages: (1..100).map(|lsn| message(lsn, lsn)).collect() };
    let kept = progress(5, Some(at(9, 3)), &[at(6, 1), at(6, 2), at(9, 1)]);
    write_with(&store, sink, vec![park(1), Op::Lanes(vec![message(1, 1)]), page], Some(kept));
    store.close();
    rig
}

/// Changes the last byte of a blob.
fn damage(rig: &Rig, table: &str, column: &str) {
    let db = Connection::open(rig.config.path.join("state.db")).unwrap();
    let mut blob: Vec<u8> = db
        .query_row(&format!("SELECT {column} FROM {table} WHERE {column} IS NOT NULL"), [], |row| row.get(0))
        .unwrap();
    *blob.last_mut().unwrap() ^= 0x81;
    db.execute(&format!("UPDATE {table} SET {column} = ?1 WHERE {column} IS NOT NULL"), [blob]).unwrap();
}

fn is_damage<T: std::fmt::Debug>(result: Result<T, StoreError>, of: &str) {
    let error = result.unwrap_err();
    assert!(matches!(error, StoreError::DamagedSink { .. }) && error.is_lasting(), "{error:?}");
    let said = error.to_string();
    assert!(said.starts_with(&format!("{of} of sink orders of source app in the store is damaged")), "{said}");
    assert!(said.contains("`walhook state forget orders`"), "{said}");
}

#[test]
fn a_damaged_page_body_or_message_is_an_error_and_the_rest_goes_on() {
    let rig = filled();
    damage(&rig, "page_content", "messages");
    damage(&rig, "delivery_content", "body");
    damage(&rig, "lane", "message");
    let (store, sink) = rig.one();
    is_damage(now(store.pages(sink, 0, 1 << 20)), "page 0 of the overflow");
    is_damage(now(store.body(sink, DeliveryId(1))), &format!("the body of delivery {}", DeliveryId(1)));
    let want = LaneWant { group: GroupId(1), after: None };
    is_damage(now(store.lanes(sink, vec![want], 9, 1 << 20)), "a waiting message");
    assert_eq!(loaded(&store).deliveries.len(), 1, "what is not read does not matter");
    write(&store, sink, vec![park(2)]);
    assert_eq!(body(&store, sink, 2), Some(delivery(2).1));
}

#[test]
fn damaged_members_and_progress_are_errors() {
    let members = format!("the list of messages of delivery {}", DeliveryId(1));
    for (table, column, of) in
        [("delivery_content", "members", members.as_str()), ("sink", "unresolved", "the progress")]
    {
        let rig = filled();
        damage(&rig, table, column);
        let store = Store::open(&rig.config, 1).unwrap();
        is_damage(store.load("app", "orders"), of);
    }
}

#[test]
fn what_is_damaged_is_counted_and_can_be_forgotten() {
    for forgotten in ["orders", "other"] {
        let rig = filled();
        let (store, keys) = rig.open(&["orders", "other"]);
        write(&store, keys[1], vec![park(9)]);
        store.close();
        for (table, column) in [("delivery_content", "members"), ("delivery_content", "body"), ("lane", "message")] {
            damage(&rig, table, column);
        }
        damage(&rig, "page_content", "messages");
        damage(&rig, "sink", "unresolved");
        let store = Store::open(&rig.config, 1).unwrap();
        let absent = store.register("app", &["new"]).unwrap();
        let orders = absent.iter().find(|sink| sink.name == "orders").unwrap().holds;
        assert_eq!((orders.retrying, orders.lane_messages, orders.overflow_messages), (1, 1, 99));
        assert!(orders.oldest_micros.is_some(), "what can be read counts");
        store.close();
        assert_eq!(mend::open_to_show(&rig.config).unwrap().sinks.len(), 3);
        assert_eq!(mend::forget(&rig.config, None, forgotten).unwrap().name, forgotten);
        assert!(mend::open_to_show(&rig.config).unwrap().sinks.iter().all(|sink| sink.name != forgotten));
        let store = Store::open(&rig.config, 1).unwrap();
        store.register("app", &[forgotten]).unwrap();
        assert!(store.load("app", forgotten).unwrap().1.deliveries.is_empty(), "it begins anew");
    }
}

#[test]
fn a_file_with_garbage_in_it_is_an_error_and_no_panic() {
    for page in 0..40 {
        let rig = filled();
        let mut file = std::fs::OpenOptions::new().write(true).open(rig.config.path.join("state.db")).unwrap();
        file.seek(SeekFrom::Start(page * 4096 + if page == 0 { 100 } else { 0 })).unwrap();
        file.write_all(&[0xA5; 2000]).unwrap();
        drop(file);
        let Ok(store) = Store::open(&rig.config, 1) else { continue };
        let Ok((sink, _)) = store.load("app", "orders") else { continue };
        drop(now(store.pages(sink, 0, 1 << 20)));
        drop(now(store.body(sink, DeliveryId(1))));
        drop(now(store.lanes(sink, vec![LaneWant { group: GroupId(1), after: None }], 9, 1 << 20)));
    }
}

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

/// Changes the last byte of a blob, in the only row of a table or in `TABLE WHERE … AND`.
fn damage(rig: &Rig, table: &str, column: &str) {
    let db = Connection::open(rig.config.path.join("state.db")).unwrap();
    let mut blob: Vec<u8> = db
        .query_row(&format!("SELECT {column} FROM {} {column} IS NOT NULL", of(table)), [], |row| row.get(0))
        .unwrap();
    *blob.last_mut().unwrap() ^= 0x81;
    let (table, which) = of(table).split_once(' ').map(|(table, which)| (table.to_owned(), which.to_owned())).unwrap();
    db.execute(&format!("UPDATE {table} SET {column} = ?1 {which} {column} IS NOT NULL"), [blob]).unwrap();
}

fn of(table: &str) -> String {
    if table.contains(' ') { table.to_owned() } else { format!("{table} WHERE") }
}

fn ids(messages: &[KeptMessage]) -> Vec<bool> {
    messages.iter().map(|message| damaged::is_damaged(&message.json)).collect()
}

#[test]
fn the_number_of_the_next_page_is_never_that_of_one_that_is_there() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    let page = |page| Op::Page { page, messages: vec![message(page + 1, 1)] };
    write(&store, sink, vec![page(0), page(1), page(2)]);
    store.close();
    let db = Connection::open(rig.config.path.join("state.db")).unwrap();
    assert_eq!(db.execute("UPDATE sink SET next_page = 1", []).unwrap(), 1);
    drop(db);
    let (store, _) = rig.one();
    assert_eq!(loaded(&store).overflow.next_page, 3);
}

#[test]
fn a_damaged_message_is_named_where_it_stands_and_the_others_are_read_with_it() {
    let rig = filled();
    let (store, sink) = rig.one();
    write(&store, sink, vec![Op::Lanes(vec![message(2, 1)])]);
    store.close();
    damage(&rig, "page_content", "messages");
    damage(&rig, "lane WHERE lsn = 1 AND", "message");
    let (store, sink) = rig.one();
    let page = now(store.pages(sink, 0, 1 << 20)).unwrap().remove(0);
    assert_eq!(page.messages.len(), 99);
    let (whole, last) = (&page.messages[..98], &page.messages[98].1);
    assert!(whole.iter().all(|(index, read)| *read == message(u64::from(*index) + 1, u64::from(*index) + 1)));
    assert!(damaged::is_damaged(&last.json));
    assert_eq!(last.facts.tied(), message(99, 99).facts.tied());
    let read = lane(&store, sink, 1);
    assert_eq!(ids(&read), [true, false]);
    assert_eq!((read[0].facts.tied(), &read[1]), (message(1, 1).facts.tied(), &message(2, 1)));
    assert_ne!(read[0].facts.id, last.facts.id);
    store.close();
    let (store, sink) = rig.one();
    assert_eq!(lane(&store, sink, 1)[0].facts.id, read[0].facts.id, "its id is the same at every reading");
}

#[test]
fn a_message_that_stands_in_the_lane_of_another_group_or_at_another_place_is_damaged() {
    for change in ["UPDATE lane SET idx = 7; UPDATE lane_group SET idx = 7", "UPDATE lane_group SET grp = 2"] {
        let rig = filled();
        let db = Connection::open(rig.config.path.join("state.db")).unwrap();
        db.execute_batch(change).unwrap();
        drop(db);
        let (store, sink) = rig.one();
        let group = loaded(&store).lanes[0].group;
        assert_eq!(ids(&lane(&store, sink, group.0)), [true], "{change}");
    }
}

#[test]
fn of_a_body_that_is_damaged_the_whole_messages_are_read() {
    let rig = filled();
    let (store, sink) = rig.one();
    let (mut two, _) = delivery(2);
    let body = Bytes::from_static(b"[{\"n\":1},{\"n\":2}]");
    two.members =
        [(1, 1..8), (2, 9..16)].map(|(lsn, bytes)| Member { facts: facts(at(lsn, 1), Groups::None), bytes }).to_vec();
    write(&store, sink, vec![Op::Park { delivery: two, body: body.clone() }]);
    store.close();
    damage(&rig, "delivery_content WHERE delivery = 2 AND", "body");
    let (store, sink) = rig.one();
    let kept = now(store.body(sink, DeliveryId(2))).unwrap().unwrap();
    assert_eq!((&kept.bytes[..9], kept.damaged), (&body[..9], vec![1]));
    store.close();
    let db = Connection::open(rig.config.path.join("state.db")).unwrap();
    db.execute("UPDATE delivery_content SET body = x'0102' WHERE delivery = 2", []).unwrap();
    drop(db);
    let (store, sink) = rig.one();
    let kept = now(store.body(sink, DeliveryId(2))).unwrap().unwrap();
    assert!(kept.bytes.is_empty(), "nothing of it can be read: {kept:?}");
    assert_eq!(body_of(&store, sink, 1), delivery(1).1, "nor of it alone");
}

fn body_of(store: &Store, sink: SinkKey, id: u128) -> Bytes {
    body(store, sink, id).unwrap()
}

#[test]
fn a_delivery_without_readable_messages_is_named_and_the_others_are_loaded() {
    for change in ["UPDATE delivery_content SET members = x'03'", "DELETE FROM delivery_content"] {
        let rig = filled();
        let (store, sink) = rig.one();
        let db = Connection::open(rig.config.path.join("state.db")).unwrap();
        db.execute_batch(change).unwrap();
        write(&store, sink, vec![park(2)]);
        let loaded = loaded(&store);
        let unreadable: Vec<DeliveryId> = loaded.unreadable.iter().map(|(id, _)| *id).collect();
        assert_eq!((loaded.deliveries.len(), unreadable), (1, vec![DeliveryId(1)]), "{change}");
    }
}

#[test]
fn a_page_that_is_gone_or_does_not_say_who_has_left_loses_nothing_in_silence() {
    let rig = filled();
    let (store, sink) = rig.one();
    write(&store, sink, vec![Op::Leave(vec![Home::Page { page: 0, index: 3 }])]);
    store.close();
    let db = || Connection::open(rig.config.path.join("state.db")).unwrap();
    db().execute_batch("UPDATE page SET gone_bits = CAST(x'ff' || substr(gone_bits, 2) AS BLOB)").unwrap();
    let (store, sink) = rig.one();
    assert_eq!(loaded(&store).overflow.messages, 99, "all of it comes again");
    assert_eq!(now(store.pages(sink, 0, 1 << 20)).unwrap()[0].messages.len(), 99);
    let all: Vec<Home> = (0..98).map(|index| Home::Page { page: 0, index }).collect();
    write(&store, sink, vec![Op::Leave(all)]);
    assert_eq!(loaded(&store).overflow.messages, 1);
    store.close();
    db().execute_batch("DELETE FROM page_content").unwrap();
    let (store, sink) = rig.one();
    let page = now(store.pages(sink, 0, 1 << 20)).unwrap().remove(0);
    let [(98, lost)] = page.messages.as_slice() else { panic!("{page:?}") };
    assert!(damaged::is_damaged(&lost.json) && !damaged::is_somewhere(lost.facts.position));
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

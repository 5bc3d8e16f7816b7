//! What each operation does, and that it is there after a restart.

use super::*;

#[test]
fn a_parked_delivery_comes_back_as_it_was_with_its_body() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    let (mut delivery, body_bytes) = delivery(1);
    delivery.parent = Some(DeliveryId(9));
    delivery.blocked = true;
    let op = Op::Park { delivery: delivery.clone(), body: body_bytes.clone() };
    write(&store, sink, vec![op]);
    store.close();
    let (store, sink) = rig.one();
    assert_eq!(loaded(&store).deliveries, [delivery]);
    assert_eq!(body(&store, sink, 1), Some(body_bytes));
    assert_eq!(body(&store, sink, 2), None);
}

#[test]
fn a_delivery_parked_again_replaces_what_was() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    write(&store, sink, vec![park(1)]);
    let (mut delivery, _) = delivery(1);
    delivery.tries.failures = 7;
    let longer = Bytes::from(vec![b'x'; 100_000]);
    write(&store, sink, vec![Op::Park { delivery: delivery.clone(), body: longer.clone() }]);
    assert_eq!(loaded(&store).deliveries, [delivery]);
    assert_eq!(body(&store, sink, 1), Some(longer));
}

#[test]
fn an_attempt_changes_how_far_it_has_come_and_nothing_else() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    let tries = Tries { attempts: 4, failures: 5, first_attempt_micros: None, next_attempt_micros: None, last: None };
    let id = DeliveryId(1);
    write(&store, sink, vec![park(1), Op::Tried { id, tries: tries.clone(), blocked: true }]);
    let (delivery, body_bytes) = delivery(1);
    assert_eq!(loaded(&store).deliveries, [KeptDelivery { tries, blocked: true, ..delivery }]);
    assert_eq!(body(&store, sink, 1), Some(body_bytes));
}

#[test]
fn what_was_delivered_is_gone() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    write(&store, sink, vec![park(1), park(2)]);
    write(&store, sink, vec![Op::Delivered(DeliveryId(1))]);
    let ids: Vec<_> = loaded(&store).deliveries.iter().map(|delivery| delivery.id.0).collect();
    assert_eq!(ids, [2]);
    assert_eq!(body(&store, sink, 1), None);
}

#[test]
fn a_dead_delivery_is_no_longer_loaded_but_its_body_is_kept() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    write(&store, sink, vec![park(1), dead(1, now_micros())]);
    let loaded = loaded(&store);
    assert_eq!((loaded.deliveries.len(), loaded.dead_letters), (0, 1));
    assert_eq!(body(&store, sink, 1), Some(delivery(1).1));
}

#[test]
fn dead_letters_go_when_they_have_expired() {
    let mut rig = Rig::new();
    rig.config.dead_letter_retention = Duration::from_secs(60);
    let (store, sink) = rig.one();
    write(&store, sink, (1..=200).flat_map(|id| [park(id), dead(id, now_micros())]).collect());
    store.close();
    let db = rusqlite::Connection::open(rig.config.path.join("state.db")).unwrap();
    // As if it had run for so long.
    db.execute("UPDATE running SET micros = micros + 61000000", []).unwrap();
    drop(db);
    let (store, sink) = rig.one();
    // What was there when it was counted, and what has gone since: together they are what is there, whenever the sweep ran.
    let counted = loaded(&store).dead_letters;
    write(&store, sink, vec![park(201), dead(201, now_micros() - 61_000_000)]);
    let mut gone = 0;
    wait_until("all that was counted has gone", || {
        gone += store.take_expired(sink).letters;
        gone == counted
    });
    assert_eq!((body(&store, sink, 200), body(&store, sink, 201)), (None, Some(delivery(201).1)));
    assert_eq!(loaded(&store).dead_letters, 1);
    assert_eq!(store.take_expired(sink), Expired::default(), "it is counted anew");
}

#[test]
fn a_split_delivery_becomes_its_parts() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    let part = |id| {
        let (part, body) = delivery(id);
        (KeptDelivery { parent: Some(DeliveryId(1)), ..part }, body)
    };
    write(&store, sink, vec![park(1), Op::Split { parent: DeliveryId(1), parts: vec![part(2), part(3)] }]);
    assert_eq!(loaded(&store).deliveries, [part(2).0, part(3).0]);
    assert_eq!((body(&store, sink, 1), body(&store, sink, 3)), (None, Some(part(3).1)));
    write(&store, sink, vec![Op::Split { parent: DeliveryId(77), parts: vec![part(4)] }]);
    assert_eq!(loaded(&store).deliveries.len(), 3, "parts are kept whatever became of their parent");
}

#[test]
fn what_is_not_known_is_passed_over() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    let tried = Op::Tried { id: DeliveryId(1), tries: Tries::default(), blocked: false };
    let homes = vec![Home::Lane(at(1, 1)), Home::Page { page: 0, index: 0 }];
    write(&store, sink, vec![tried, Op::Delivered(DeliveryId(1)), dead(1, 0), Op::Leave(homes), park(2)]);
    assert_eq!(loaded(&store).deliveries.len(), 1);
}

#[test]
fn lanes_are_read_by_group_in_order_and_from_a_position() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    let moved = message_of(at(3, 1), Groups::Two(GroupId(1), GroupId(2)));
    let lone = message_of(at(3, 2), Groups::None);
    let (first, second) = (message(1, 1), message(2, 2));
    write(&store, sink, vec![Op::Lanes(vec![second.clone(), first.clone(), moved.clone(), lone.clone()])]);
    store.close();
    let (store, sink) = rig.one();
    assert_eq!(lane(&store, sink, 1), [first, moved.clone()]);
    assert_eq!(lane(&store, sink, 2), [second.clone(), moved.clone()]);
    assert_eq!(lane(&store, sink, UNGROUPED.0), [lone]);
    assert_eq!(lane(&store, sink, 9), []);
    let want = |group, after| LaneWant { group: GroupId(group), after };
    let reads = now(store.lanes(sink, vec![want(1, Some(at(1, 1))), want(2, Some(at(3, 1)))], 10, 1 << 20)).unwrap();
    assert_eq!(reads[0].messages, std::slice::from_ref(&moved));
    assert_eq!(reads[1].messages, []);
    let lanes = loaded(&store).lanes.into_iter().map(|lane| (lane.group.0, lane.messages, lane.first, lane.last));
    let lanes: Vec<_> = lanes.collect();
    assert_eq!(lanes, [(0, 1, at(3, 2), at(3, 2)), (1, 2, at(1, 1), at(3, 1)), (2, 2, at(2, 1), at(3, 1))]);
    write(&store, sink, vec![Op::Leave(vec![Home::Lane(at(3, 1))])]);
    assert_eq!(lane(&store, sink, 2), [second], "a message of two groups leaves both lanes");
    assert_eq!(lane(&store, sink, 1).len(), 1);
}

#[test]
fn a_message_laned_again_is_there_once() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    write(&store, sink, vec![Op::Lanes(vec![message(1, 1), message(1, 2)])]);
    assert_eq!(lane(&store, sink, 1), []);
    assert_eq!(lane(&store, sink, 2), [message(1, 2)]);
}

#[test]
fn lanes_keep_to_their_bounds_but_one_message_always_comes() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    write(&store, sink, vec![Op::Lanes((1..=9).map(|lsn| message(lsn, lsn % 3)).collect())]);
    let wants = || vec![3, 0, 1, 2].into_iter().map(|group| LaneWant { group: GroupId(group), after: None }).collect();
    let sizes = |messages_max, bytes_max| -> Vec<(u64, usize)> {
        let reads = now(store.lanes(sink, wants(), messages_max, bytes_max)).unwrap();
        reads.iter().map(|read| (read.group.0, read.messages.len())).collect()
    };
    let one = message(1, 1).json.len();
    assert_eq!(sizes(2, usize::MAX), [(3, 0), (0, 2), (1, 2), (2, 2)]);
    assert_eq!(sizes(9, one * 4), [(3, 0), (0, 3), (1, 1)]);
    assert_eq!(sizes(9, one * 3), [(3, 0), (0, 3)]);
    assert_eq!(sizes(9, 0), [(3, 0), (0, 1)]);
}

#[test]
fn pages_are_read_in_order_without_what_has_left_and_go_when_all_have() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    let messages = |page: u64| -> Vec<KeptMessage> { (1..=10).map(|n| message(page * 100 + n, n)).collect() };
    let page = |page| Op::Page { page, messages: messages(page) };
    let gone = |page, index| Home::Page { page, index };
    write(&store, sink, vec![page(0), page(1), page(2), Op::Leave(vec![gone(1, 0), gone(1, 9), gone(1, 9)])]);
    write(&store, sink, vec![Op::Leave((0..10).map(|index| gone(0, index)).collect())]);
    store.close();
    let (store, sink) = rig.one();
    let committed = |page| messages(page)[0].facts.commit_micros;
    let pages = vec![(committed(1), 8), (committed(2), 10)];
    let overflow = OverflowSummary { messages: 18, first_page: Some(1), next_page: 3, pages };
    assert_eq!(loaded(&store).overflow, overflow);
    let pages = now(store.pages(sink, 0, 0)).unwrap();
    assert_eq!(pages.len(), 1, "at least one");
    let expected: Vec<_> = (0..10).zip(messages(1)).filter(|(index, _)| ![0, 9].contains(index)).collect();
    assert_eq!((pages[0].page, &pages[0].messages), (1, &expected));
    assert_eq!(now(store.pages(sink, 0, 1 << 20)).unwrap().len(), 2);
    assert_eq!(now(store.pages(sink, 3, 1 << 20)).unwrap().len(), 0);
    let rest = (1..=2).flat_map(|page| (0..10).map(move |index| gone(page, index)));
    write(&store, sink, vec![Op::Leave(rest.collect())]);
    let empty = OverflowSummary { next_page: 3, ..OverflowSummary::default() };
    assert_eq!(loaded(&store).overflow, empty, "the next number stays");
}

#[test]
fn progress_and_a_pause_are_kept() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    assert_eq!((loaded(&store).progress, loaded(&store).paused), (None, None));
    let kept = progress(5, Some(at(9, 3)), &[at(6, 1), at(6, 2), at(9, 1)]);
    write_with(&store, sink, vec![Op::Paused { why: "gave up".to_owned() }], Some(kept.clone()));
    store.close();
    let (store, _) = rig.one();
    assert_eq!(loaded(&store).progress, Some(kept));
    assert_eq!(loaded(&store).paused.as_deref(), Some("gave up"));
}

#[test]
fn sinks_do_not_see_each_other() {
    let rig = Rig::new();
    let (store, keys) = rig.open(&["orders", "other"]);
    let ops = || vec![park(1), Op::Lanes(vec![message(1, 1)]), Op::Page { page: 0, messages: vec![message(2, 1)] }];
    let answers: Vec<_> = keys.iter().map(|&sink| store.submit(Batch { sink, ops: ops(), progress: None })).collect();
    answers.into_iter().for_each(|answer| answer.blocking_recv().unwrap());
    let leave = Op::Leave(vec![Home::Lane(at(1, 1)), Home::Page { page: 0, index: 0 }]);
    write(&store, keys[1], vec![Op::Delivered(DeliveryId(1)), leave]);
    let loaded = loaded(&store);
    assert_eq!((loaded.deliveries.len(), loaded.lanes.len(), loaded.overflow.messages), (1, 1, 1));
    assert_eq!(body(&store, keys[0], 1), Some(delivery(1).1));
    assert_eq!(body(&store, keys[1], 1), None);
    assert_eq!(lane(&store, keys[0], 1), [message(1, 1)]);
}

fn dead(id: u128, at_micros: i64) -> Op {
    let tries = Tries { failures: 5, ..Tries::default() };
    Op::Dead { id: DeliveryId(id), at_micros, reason: DeadReason::MaxAttempts, tries }
}

fn now_micros() -> i64 {
    super::super::ledger::micros(std::time::SystemTime::now())
}

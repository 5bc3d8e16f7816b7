//! What the store knows of tables: what stands between their barriers, and what they were grouped by.

use rusqlite::Connection;

use super::*;
use crate::schedule::{StoredScope, own_lane};

const ORDERS: &str = "public.orders.insert";
const OTHER: &str = "public.other.insert";

fn row(lsn: u64, group: u64, event: &str) -> KeptMessage {
    let message = message(lsn, group);
    KeptMessage {
        facts: MessageFacts { event: event.into(), scope: ScopeId::of_event(event), ..message.facts },
        ..message
    }
}

fn barrier(lsn: u64, barrier: Barrier) -> KeptMessage {
    let message = row(lsn, 99, ORDERS);
    KeptMessage { facts: MessageFacts { barrier, ..message.facts }, ..message }
}

fn counts(scope: ScopeId, after: Option<Position>, messages: usize) -> StoredScope {
    StoredScope { scope, after, messages }
}

#[test]
fn of_each_table_it_is_told_what_stands_between_its_barriers_and_what_is_unresolved() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    let two = message_of(at(4, 1), Groups::Two(GroupId(1), GroupId(2)));
    let single = message_of(at(5, 1), Groups::One(own_lane(at(5, 1))));
    let renamed = barrier(6, Barrier::Scopes(ScopeId(7)));
    let messages = vec![row(1, 1, ORDERS), barrier(3, Barrier::Scope), two, single, renamed.clone(), row(9, 1, ORDERS)];
    let others = vec![row(2, 5, OTHER), row(8, 5, OTHER)];
    let progress = progress(1, Some(at(9, 1)), &[at(7, 1)]);
    write_with(&store, sink, vec![Op::Lanes(messages), Op::Lanes(others)], Some(progress));
    store.close();
    let (store, sink) = rig.one();
    let loaded = loaded(&store);
    assert_eq!(loaded.barriers, [barrier(3, Barrier::Scope).facts.tied(), renamed.facts.tied()]);
    let (orders, other) = (ScopeId::of_event(ORDERS), ScopeId::of_event(OTHER));
    let mut expected = vec![
        counts(orders, None, 1),
        counts(orders, Some(at(3, 1)), 1),
        counts(orders, Some(at(7, 1)), 1),
        counts(other, None, 1),
        counts(other, Some(at(7, 1)), 1),
    ];
    expected.sort_by_key(|one| (one.scope, one.after));
    assert_eq!(loaded.scopes, expected);
    assert_eq!(lane(&store, sink, 99), [barrier(3, Barrier::Scope), renamed]);
    write(&store, sink, vec![Op::Leave([1, 3, 4, 5, 6, 9, 2, 8].map(|lsn| Home::Lane(at(lsn, 1))).to_vec())]);
    assert_eq!(super::loaded(&store).scopes, []);
    assert_eq!(super::loaded(&store).barriers, []);
}

#[test]
fn what_an_earlier_version_put_into_the_lanes_is_of_no_known_table() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    write(&store, sink, vec![Op::Lanes(vec![row(1, 1, ORDERS), row(2, 1, ORDERS)])]);
    store.close();
    let db = Connection::open(rig.config.path.join("state.db")).unwrap();
    db.execute_batch("UPDATE lane SET scope = 0 WHERE lsn = 1; UPDATE lane_group SET scope = NULL WHERE lsn = 1")
        .unwrap();
    drop(db);
    let (store, sink) = rig.one();
    let orders = ScopeId::of_event(ORDERS);
    assert_eq!(loaded(&store).scopes, [counts(ScopeId::UNKNOWN, None, 1), counts(orders, None, 1)]);
    let scopes: Vec<ScopeId> = lane(&store, sink, 1).iter().map(|message| message.facts.scope).collect();
    assert_eq!(scopes, [ScopeId::UNKNOWN, orders], "as they are counted");
}

#[test]
fn what_a_table_was_grouped_by_is_kept_until_it_is_forgotten() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    let grouped = |since, rule: &str, barrier| Grouped {
        oid: 4_000_000_000,
        scope: ScopeId(u64::MAX),
        rule: rule.into(),
        since: at(since, 2),
        barrier,
    };
    let (first, second) = (grouped(1, "id", Barrier::None), grouped(5, "key", Barrier::Scopes(ScopeId(u64::MAX - 1))));
    let note = |grouped: &Grouped, forgotten| Op::Grouped { grouped: grouped.clone(), forgotten };
    write(&store, sink, vec![note(&first, vec![]), note(&second, vec![])]);
    store.close();
    let (store, sink) = rig.one();
    assert_eq!(loaded(&store).tables, [first.clone(), second]);
    let again = grouped(5, "other", Barrier::Scope);
    write(&store, sink, vec![note(&again, vec![(first.oid, first.since)])]);
    assert_eq!(loaded(&store).tables, [again]);
}

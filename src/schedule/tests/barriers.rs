//! Plays of messages that stand between all earlier and all later ones of their table.

use super::store::{SEC, keeping};
use super::*;

const OTHER: ScopeId = ScopeId(2);

fn row(group: u64, payload: u64) -> Message<u64> {
    message(Groups::One(GroupId(group)), payload)
}

fn truncate(payload: u64) -> Message<u64> {
    Message { barrier: Barrier::Scope, ..row(99, payload) }
}

impl Play {
    fn arrives(&mut self, message: Message<u64>) {
        let position = message.position;
        self.scheduler.push(self.now, message);
        self.scheduler.mark(position.commit_lsn);
    }

    fn reads(&mut self, lanes: &[(u64, Message<u64>)]) {
        let lanes = lanes.iter().map(|(group, message)| (GroupId(*group), vec![*message]));
        self.scheduler.lanes_read(self.now, lanes.collect());
    }

    fn held(&self) -> usize {
        self.scheduler.counts().barriers_pending
    }
}

#[test]
fn a_barrier_waits_for_all_of_its_table_and_all_of_its_table_for_it() {
    let mut play = Play::new(rules());
    play.one(1, 1);
    play.one(2, 2);
    play.arrives(truncate(3));
    play.one(1, 4);
    play.one(3, 5);
    play.arrives(Message { scope: OTHER, ..row(7, 6) });
    play.push(Groups::None, 7);
    assert_eq!(play.commands(), [(0, vec![1]), (1, vec![2]), (2, vec![6]), (3, vec![7])], "another table goes on");
    assert_eq!(play.held(), 1);
    play.ack(0);
    assert_eq!(play.commands(), [], "2 is before it yet");
    play.ack(1);
    assert_eq!(play.commands(), [(4, vec![3])]);
    play.one(4, 8);
    assert_eq!(play.commands(), []);
    play.fail(4);
    assert_eq!(play.commands(), [], "a barrier that fails holds its table up");
    play.now += 180 * SEC;
    assert_eq!(play.commands(), [(4, vec![])]);
    play.ack(4);
    assert_eq!(play.held(), 0);
    let mut freed: Vec<u64> = play.commands().into_iter().flat_map(|(_, payloads)| payloads).collect();
    freed.sort_unstable();
    assert_eq!(freed, [4, 5, 8]);
}

#[test]
fn a_delivery_of_many_ends_before_a_barrier_and_the_next_begins_after_it() {
    let mut play = Play::new(Rules { batch_size: 10, batch_timeout: Duration::ZERO, ..rules() });
    play.one(1, 1);
    play.arrives(Message { barrier: Barrier::Scope, ..row(1, 2) });
    play.one(1, 3);
    play.arrives(Message { scope: OTHER, ..row(7, 4) });
    assert_eq!(play.commands(), [(0, vec![1, 4])]);
    play.ack(0);
    assert_eq!(play.commands(), [(1, vec![2])]);
    play.ack(1);
    assert_eq!(play.commands(), [(2, vec![3])]);
}

#[test]
fn barriers_of_a_table_follow_each_other_with_what_is_between_them() {
    let mut play = Play::new(rules());
    play.arrives(truncate(1));
    play.one(1, 2);
    play.arrives(Message { barrier: Barrier::Scope, ..row(5, 3) });
    play.arrives(Message { barrier: Barrier::Scope, ..row(6, 4) });
    play.one(2, 5);
    for next in 1..=5 {
        assert_eq!(play.commands(), [(next - 1, vec![next])]);
        play.ack(next - 1);
    }
    assert_eq!((play.commands(), play.held()), (vec![], 0));
}

#[test]
fn a_table_of_another_name_waits_for_both_and_holds_both_up() {
    let mut play = Play::new(rules());
    play.arrives(Message { scope: OTHER, ..row(1, 1) });
    play.one(2, 2);
    play.arrives(Message { barrier: Barrier::Scopes(OTHER), ..row(3, 3) });
    play.arrives(Message { scope: OTHER, ..row(4, 4) });
    play.one(5, 5);
    assert_eq!((play.commands(), play.held()), (vec![(0, vec![1]), (1, vec![2])], 2));
    play.ack(1);
    assert_eq!(play.commands(), []);
    play.ack(0);
    assert_eq!(play.commands(), [(2, vec![3])]);
    play.ack(2);
    let mut freed: Vec<u64> = play.commands().into_iter().flat_map(|(_, payloads)| payloads).collect();
    freed.sort_unstable();
    assert_eq!((freed, play.held()), (vec![4, 5], 0));
}

#[test]
fn a_dead_letter_is_no_longer_waited_for_and_a_blocked_delivery_is() {
    let limits = Limits { max_attempts: Some(1), max_age: None };
    for (on_exhausted, follows) in [(OnExhausted::Continue, vec![(1, vec![2])]), (OnExhausted::BlockGroup, vec![])] {
        let mut play = Play::new(Rules { limits, on_exhausted, ..rules() });
        play.one(1, 1);
        play.arrives(truncate(2));
        play.commands();
        play.fail_with(0, Failure::default());
        assert_eq!(play.commands(), follows);
    }
}

#[test]
fn what_waits_behind_a_barrier_goes_to_the_store_behind_it_and_is_not_read_before_it_may_go() {
    let mut play = Play::new(keeping());
    play.one(1, 1);
    play.told();
    play.fail(0);
    assert_eq!(play.told(), ["park 0"]);
    play.written();
    play.arrives(truncate(2));
    play.one(3, 3);
    play.one(4, 4);
    play.now += KEEP_AFTER;
    assert_eq!(play.told(), ["spill [2, 3, 4]", "attempt 0 for the 2. time"]);
    play.written();
    assert_eq!(play.told(), ["read lanes [99]"], "3 and 4 come after it");
    play.reads(&[(99, truncate(2))]);
    assert_eq!(play.told(), [""; 0], "it may not go, and is not read again");
    assert_eq!((play.scheduler.counts().lane_messages, play.scheduler.counts().waiting), (3, 0));
    play.ack(0);
    assert_eq!(play.told(), ["read lanes [99]"]);
    play.reads(&[(99, truncate(2))]);
    assert_eq!(play.told(), ["form 1 [2]"]);
    play.ack(1);
    assert_eq!(play.told(), ["read lanes [3, 4]"]);
    play.reads(&[(3, row(3, 3)), (4, row(4, 4))]);
    assert_eq!(play.told(), ["form 2 [3]", "form 3 [4]"]);
}

#[test]
fn a_barrier_goes_into_the_store_before_what_waits_behind_it() {
    let mut play = Play::new(keeping());
    play.arrives(truncate(1));
    assert_eq!(play.told(), ["form 0 [1]"]);
    play.now += SEC;
    play.arrives(row(1, 2));
    play.now += KEEP_AFTER - SEC;
    assert_eq!(play.told(), ["park 0"]);
    play.now += SEC;
    assert_eq!(play.told(), ["spill [2]"], "once the barrier is on its way");
}

#[test]
fn after_a_restart_a_barrier_waits_for_the_store_s_deliveries_and_lanes_and_for_what_is_not_known() {
    let mut play = Play::new(keeping());
    let delivery = Restored {
        members: vec![tied(1, Groups::One(GroupId(1)))],
        position: at(1),
        attempts: 1,
        failures: 1,
        refusals: 0,
        first_attempt: Some(play.now),
        due: Some(play.now),
        is_part: false,
    };
    play.scheduler.restore(play.now, vec![delivery]);
    let barrier = truncate_tied(3);
    let between = |scope, after: Option<u64>| StoredScope { scope, after: after.map(at), messages: 1 };
    let scopes = [between(SCOPE, None), between(SCOPE, Some(3)), between(ScopeId::UNKNOWN, None)];
    play.scheduler.restore_scopes(play.now, [barrier], scopes);
    let lanes = [(2, 2), (99, 3), (4, 4), (5, 5)].map(|(group, last)| (GroupId(group), 1, at(last)));
    play.scheduler.restore_waiting(lanes, 0);
    let unknown = Message { scope: ScopeId::UNKNOWN, ..row(5, 5) };
    assert_eq!(play.told(), ["attempt 0 for the 2. time", "read lanes [2, 4, 5, 99]"]);
    play.reads(&[(2, row(2, 2)), (99, truncate(3)), (4, row(4, 4)), (5, unknown)]);
    assert_eq!(play.told(), ["form 1 [2]", "form 2 [5]"]);
    play.ack(1);
    play.ack(2);
    assert_eq!(play.told(), [""; 0]);
    play.ack(0);
    assert_eq!(play.told(), ["read lanes [99]"]);
    play.reads(&[(99, truncate(3))]);
    assert_eq!(play.told(), ["form 3 [3]"]);
    play.ack(3);
    assert_eq!(play.told(), ["read lanes [4]"]);
}

fn truncate_tied(payload: u64) -> Tied {
    Tied { position: at(payload), ties: truncate(payload).ties() }
}

#[test]
fn a_barrier_in_a_lane_waits_until_the_pages_of_a_life_before_have_come_to_it() {
    let mut play = Play::new(keeping());
    play.scheduler.restore_scopes(play.now, [truncate_tied(5)], []);
    play.scheduler.restore_waiting([(GroupId(99), 1, at(5))], 3);
    assert_eq!(play.told(), ["read lanes [99]", "read page"]);
    play.reads(&[(99, truncate(5))]);
    assert_eq!(play.told(), [""; 0], "3 may be before it");
    play.scheduler.overflow_read(play.now, vec![row(1, 3), row(2, 7)]);
    assert_eq!(play.told(), ["form 0 [3]", "read page"]);
    play.scheduler.overflow_read(play.now, vec![row(3, 8)]);
    play.ack(0);
    assert_eq!(play.told(), ["read lanes [99]"]);
    play.reads(&[(99, truncate(5))]);
    assert_eq!(play.told(), ["form 1 [5]"]);
    play.ack(1);
    assert_eq!(play.told(), ["form 2 [7]", "form 3 [8]"]);
}

#[test]
fn what_comes_again_as_a_barrier_holds_up_what_the_lanes_have_after_it() {
    let mut play = Play::new(keeping());
    let left =
        [(None, 1), (Some(3), 1)].map(|(after, messages)| StoredScope { scope: SCOPE, after: after.map(at), messages });
    play.scheduler.restore_scopes(play.now, [], left);
    play.scheduler.restore_waiting([(GroupId(2), 1, at(2)), (GroupId(4), 1, at(4))], 0);
    play.world.is_replaying = true;
    play.scheduler.push_again(play.now, Message { barrier: Barrier::Scope, ..row(7, 3) }, play.now);
    assert_eq!(play.told(), [""; 0]);
    play.world.is_replaying = false;
    assert_eq!(play.told(), ["read lanes [2, 4]"]);
    play.reads(&[(2, row(2, 2)), (4, row(4, 4))]);
    assert_eq!(play.told(), ["form 0 [2]"]);
    play.ack(0);
    assert_eq!(play.told(), ["form 1 [3]"]);
    play.ack(1);
    assert_eq!(play.told(), ["read lanes [4]"]);
}

/// A delivery of a life before, of these messages of groups of the same numbers, which is due or waits for a person.
fn parked(members: &[u64], due: Option<Instant>) -> Restored {
    Restored {
        members: members.iter().map(|position| tied(*position, Groups::One(GroupId(*position)))).collect(),
        position: at(members[0]),
        attempts: 1,
        failures: 1,
        refusals: 0,
        first_attempt: due,
        due,
        is_part: false,
    }
}

#[test]
fn what_comes_again_as_a_barrier_waits_for_no_younger_message_of_a_delivery() {
    let mut play = Play::new(keeping());
    play.scheduler.restore(play.now, vec![parked(&[2, 6], Some(play.now)), parked(&[5], None)]);
    play.world.is_replaying = true;
    play.scheduler.push_again(play.now, Message { barrier: Barrier::Scope, ..row(9, 3) }, play.now);
    play.scheduler.push_again(play.now, row(8, 4), play.now);
    play.world.is_replaying = false;
    assert_eq!(play.told(), ["attempt 0 for the 2. time"], "2 is older");
    play.ack(0);
    assert_eq!(play.told(), ["form 2 [3]"], "5 waits for a person");
    play.ack(2);
    assert_eq!(play.told(), ["form 3 [4]"]);
    play.arrives(truncate(7));
    play.ack(3);
    assert_eq!((play.told(), play.held()), (vec![], 1), "5 is older than this one");
}

#[test]
fn a_barrier_of_a_delivery_ends_and_not_an_older_one_that_came_again() {
    let mut play = Play::new(keeping());
    let mut delivery = parked(&[5], Some(play.now));
    delivery.members[0].ties.barrier = Barrier::Scope;
    play.scheduler.restore(play.now, vec![parked(&[2], None), delivery]);
    play.scheduler.push_again(play.now, Message { barrier: Barrier::Scope, ..row(9, 3) }, play.now);
    play.arrives(row(8, 6));
    assert_eq!(play.told(), ["attempt 1 for the 2. time"]);
    play.ack(1);
    assert_eq!((play.told(), play.held()), (vec![], 1), "6 waits for 3, and 3 for 2");
}

#[test]
fn nothing_waits_for_what_the_store_has_lost() {
    let mut play = Play::new(keeping());
    let between = |after: Option<u64>| StoredScope { scope: SCOPE, after: after.map(at), messages: 1 };
    play.scheduler.restore_scopes(play.now, [truncate_tied(3)], [between(None)]);
    play.scheduler.restore_waiting([(2, 2), (99, 3)].map(|(group, last)| (GroupId(group), 1, at(last))), 0);
    play.scheduler.restore_beginnings([(GroupId(2), SCOPE, at(2)), (GroupId(99), SCOPE, at(3))]);
    assert_eq!(play.told(), ["read lanes [2, 99]"]);
    let missing = play.scheduler.lanes_read(play.now, vec![(GroupId(99), vec![truncate(3)]), (GroupId(2), vec![])]);
    assert_eq!((missing, play.told()), (1, vec!["read lanes [99]".to_owned()]));
    play.reads(&[(99, truncate(3))]);
    assert_eq!(play.told(), ["form 0 [3]"]);
}

#[test]
fn a_lane_of_a_life_before_that_a_barrier_holds_up_is_not_read() {
    let mut play = Play::new(keeping());
    let between = |after: Option<u64>| StoredScope { scope: SCOPE, after: after.map(at), messages: 1 };
    play.scheduler.restore(play.now, vec![parked(&[1], None)]);
    play.scheduler.restore_scopes(play.now, [truncate_tied(3)], [between(None), between(Some(3))]);
    let lanes = [(2, 2), (4, 4), (99, 3)].map(|(group, first)| (GroupId(group), at(first)));
    play.scheduler.restore_waiting(lanes.map(|(group, first)| (group, 1, first)), 0);
    play.scheduler.restore_beginnings(lanes.map(|(group, first)| (group, SCOPE, first)));
    assert_eq!(play.told(), ["read lanes [2, 99]"]);
}

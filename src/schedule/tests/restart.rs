//! Plays of what a process that died left in the store, and of answers of the store that overtake each other.

use super::store::{BOTH, ONE, SEC, TWO, keeping};
use super::*;

impl Play {
    fn again(&mut self, group: u64, payload: u64) {
        self.scheduler.push_again(self.now, message(Groups::One(GroupId(group)), payload), self.now);
    }

    fn wants(&mut self) -> Vec<Want> {
        let command = self.scheduler.poll(self.now, &self.world);
        let Some(Command::ReadLanes(wants)) = command else { panic!("{command:?}") };
        wants
    }
}

#[test]
fn what_comes_again_goes_where_it_stood_among_what_comes_back() {
    let mut play = Play::new(keeping());
    play.scheduler.restore_waiting([], 3);
    play.world.is_replaying = true;
    play.again(1, 1);
    play.again(1, 4);
    play.again(2, 6);
    assert_eq!(play.told(), [""; 0], "3 and 5 may be before them");
    assert_eq!(play.scheduler.counts().waiting, 3);
    play.world.is_replaying = false;
    play.scheduler.pause();
    play.one(1, 7);
    assert_eq!(play.told(), ["read page"], "what came again does not wait in the WAL for the pause to end");
    play.page(&[(1, 3), (1, 5)]);
    play.scheduler.resume();
    assert_eq!(play.told(), ["form 0 [1]", "read page"]);
    play.page(&[(2, 8)]);
    assert_eq!(play.told(), ["form 1 [6]"]);
    for (delivery, next) in [(0, "form 2 [3]"), (2, "form 3 [4]"), (3, "form 4 [5]"), (4, "form 5 [7]")] {
        play.ack(delivery);
        assert_eq!(play.told(), [next]);
    }
}

#[test]
fn a_page_that_is_lost_does_not_hold_what_came_again() {
    let mut play = Play::new(keeping());
    play.scheduler.restore_waiting([], 3);
    play.again(1, 1);
    assert_eq!(play.told(), ["read page"]);
    assert_eq!(play.page(&[]), 3);
    assert_eq!(play.told(), ["form 0 [1]"]);
}

#[test]
fn what_waits_behind_a_delivery_is_not_spilled_before_that_is_parked() {
    let mut play = Play::new(keeping());
    play.scheduler.restore_waiting([(GroupId(1), 1, at(1))], 0);
    assert_eq!(play.told(), ["read lanes [1]"]);
    play.lanes(&[(1, &[(ONE, 1)])]);
    assert_eq!(play.told(), ["form 0 [1]"]);
    play.one(1, 2);
    play.now += KEEP_AFTER;
    assert_eq!(play.told(), ["park 0"], "2 in the lane and 1 nowhere would change places in a crash");
    play.scheduler.not_written(play.writes.pop_front().unwrap());
    play.now = play.scheduler.poll_timeout(&play.world).unwrap();
    assert_eq!(play.told(), ["park 0"]);
    play.now = play.scheduler.poll_timeout(&play.world).unwrap();
    assert_eq!(play.told(), ["spill [2]"]);
}

#[test]
fn what_is_spilled_behind_a_lane_of_a_life_before_does_not_hide_it() {
    let mut play = Play::new(keeping());
    play.scheduler.restore_waiting([(GroupId(1), 1, at(1))], 0);
    play.world.is_replaying = true;
    play.one(1, 2);
    play.now += KEEP_AFTER;
    assert_eq!(play.told(), ["spill [2]"]);
    play.written();
    play.world.is_replaying = false;
    assert_eq!(play.wants(), [Want { group: GroupId(1), after: None }]);
}

#[test]
fn nothing_is_read_from_a_lane_while_an_older_message_is_on_its_way_into_it() {
    let mut play = Play::new(keeping());
    play.scheduler.restore_waiting([(GroupId(1), 1, at(5))], 0);
    play.world.is_replaying = true;
    play.again(1, 2);
    play.scheduler.pause();
    play.now += KEEP_AFTER;
    assert_eq!(play.told(), ["spill [2]"]);
    play.world.is_replaying = false;
    play.scheduler.resume();
    assert_eq!(play.told(), [""; 0]);
    play.written();
    assert_eq!(play.wants(), [Want { group: GroupId(1), after: None }]);
}

#[test]
fn a_lane_is_read_though_younger_messages_are_on_their_way_into_it() {
    let mut play = Play::new(keeping());
    play.scheduler.restore_waiting([(GroupId(1), 1, at(1))], 0);
    play.world.is_replaying = true;
    play.one(1, 2);
    play.now += KEEP_AFTER;
    assert_eq!(play.told(), ["spill [2]"]);
    play.world.is_replaying = false;
    assert_eq!(play.told(), ["read lanes [1]"], "a slow store would hold a busy group for ever");
    play.lanes(&[(1, &[(ONE, 1)])]);
    assert_eq!(play.told(), ["form 0 [1]"]);
    play.ack(0);
    assert_eq!(play.told(), [""; 0]);
    play.written();
    assert_eq!(play.told(), ["read lanes [1]"]);
}

#[test]
fn what_is_read_from_a_lane_before_it_is_said_to_be_durable_is_not_missed_later() {
    let mut play = Play::new(keeping());
    play.scheduler.restore_waiting([(GroupId(1), 1, at(1))], 0);
    assert_eq!(play.told(), ["read lanes [1]"]);
    play.one(1, 2);
    play.one(1, 3);
    play.now += KEEP_AFTER;
    assert_eq!(play.told(), ["spill [2, 3]"]);
    play.one(1, 4);
    play.lanes(&[(1, &[(ONE, 1), (ONE, 2), (ONE, 3)])]);
    assert_eq!(play.told(), ["form 0 [1]"]);
    for (delivery, next) in [(0, "form 1 [2]"), (1, "form 2 [3]")] {
        play.ack(delivery);
        assert_eq!(play.told(), [next]);
    }
    play.ack(2);
    assert_eq!(play.told(), [""; 0]);
    play.written();
    assert_eq!(play.told(), ["form 3 [4]"]);
}

#[test]
fn what_is_read_from_a_page_before_it_is_said_to_be_durable_is_not_missed_later() {
    let mut play = Play::new(keeping());
    play.scheduler.restore_waiting([], 1);
    assert_eq!(play.told(), ["read page"]);
    play.one(1, 2);
    play.now += 50 * MS;
    assert_eq!(play.told(), ["page [2]"]);
    play.page(&[(1, 1), (1, 2)]);
    play.written();
    assert_eq!(play.scheduler.counts().overflow_messages, 0);
    assert_eq!(play.told(), ["form 0 [1]"]);
    assert!(!play.scheduler.is_overflowing());
}

#[test]
fn a_probe_may_come_out_of_the_store() {
    let limits = Limits { max_attempts: Some(1), max_age: None };
    let mut play = Play::new(Rules { limits, ..keeping() });
    (1..=5).for_each(|payload| play.one(payload, payload));
    assert_eq!(play.told().len(), 5);
    (0..5).for_each(|delivery| {
        play.fail_with(delivery, Failure { trouble: true, ..Failure::default() });
    });
    play.told();
    play.one(1, 6);
    play.now += 50 * MS;
    assert_eq!(play.told(), ["page [6]"]);
    play.written();
    assert_eq!(play.told(), [""; 0]);
    let BreakerState::Open { until, .. } = play.scheduler.breaker() else { panic!("closed") };
    assert_eq!(play.scheduler.poll_timeout(&play.world), Some(until));
    play.now = until;
    assert_eq!(play.told(), ["read page"]);
    play.page(&[(1, 6)]);
    assert_eq!(play.told(), ["form 5 [6]"]);
}

#[test]
fn what_is_in_the_store_comes_back_when_retry_after_is_over() {
    let limits = Limits { max_attempts: Some(1), max_age: None };
    let mut play = Play::new(Rules { limits, ..keeping() });
    play.scheduler.restore_waiting([], 1);
    assert_eq!(play.told(), ["read page"]);
    play.page(&[(1, 0)]);
    assert_eq!(play.told(), ["form 0 [0]"]);
    play.scheduler.pause();
    play.told();
    play.one(2, 2);
    play.now += 50 * MS;
    assert_eq!(play.told(), ["page [2]"]);
    play.written();
    play.scheduler.resume();
    play.fail_with(0, Failure { retry_after: Some(SEC), ..Failure::default() });
    assert_eq!(play.told(), [""; 0]);
    play.now += SEC;
    assert_eq!(play.told(), ["read page"]);
}

#[test]
fn a_message_that_stands_behind_a_lane_and_in_a_queue_goes_with_those_before_it_in_both() {
    let mut play = Play::new(Rules { max_in_flight: 1, ..keeping() });
    play.one(3, 1);
    assert_eq!(play.told(), ["form 0 [1]"]);
    play.scheduler.restore_waiting([(GroupId(1), 1, at(0))], 0);
    play.world.is_replaying = true;
    play.push(TWO, 2);
    play.push(BOTH, 3);
    play.push(TWO, 4);
    play.now += KEEP_AFTER;
    assert_eq!(play.told(), ["spill [2, 3, 4]", "park 0"]);
    play.written();
    play.push(TWO, 5);
    play.push(ONE, 6);
    play.world.is_replaying = false;
    play.ack(0);
    assert_eq!(play.told(), ["read lanes [1, 2]"]);
    play.lanes(&[(1, &[(ONE, 0), (BOTH, 3)]), (2, &[(TWO, 2), (BOTH, 3), (TWO, 4)])]);
    for (delivery, next) in (1..).zip([0, 2, 3, 6, 4, 5]) {
        assert_eq!(play.told(), [format!("form {delivery} [{next}]")]);
        play.ack(delivery);
    }
}

//! Plays of what goes into the store and comes back.

use super::*;

pub(super) const SEC: Duration = Duration::from_secs(1);

pub(super) fn keeping() -> Rules {
    Rules { keeps: true, ..rules() }
}

/// Group 1 is held by delivery 0, which has failed and is in the store.
pub(super) fn behind_a_failure(rules: Rules) -> (Play, Instant) {
    let mut play = Play::new(rules);
    play.one(1, 1);
    assert_eq!(play.told(), ["form 0 [1]"]);
    let at = play.fail(0);
    assert_eq!(play.told(), ["park 0"]);
    play.written();
    (play, at)
}

impl Play {
    /// What was wanted of the store came: messages by group.
    pub(super) fn lanes(&mut self, lanes: &[(u64, &[(Groups, u64)])]) -> usize {
        let read = lanes.iter().map(|(group, messages)| {
            (GroupId(*group), messages.iter().map(|(groups, payload)| message(*groups, *payload)).collect())
        });
        self.scheduler.lanes_read(self.now, read.collect())
    }

    pub(super) fn page(&mut self, messages: &[(u64, u64)]) -> usize {
        let one = |(group, payload): &(u64, u64)| message(Groups::One(GroupId(*group)), *payload);
        self.scheduler.overflow_read(self.now, messages.iter().map(one).collect())
    }
}

pub(super) const ONE: Groups = Groups::One(GroupId(1));
pub(super) const TWO: Groups = Groups::One(GroupId(2));
pub(super) const BOTH: Groups = Groups::Two(GroupId(1), GroupId(2));

#[test]
fn a_delivery_is_parked_at_its_first_failure_and_resolved_once_that_is_durable() {
    let mut play = Play::new(keeping());
    play.one(1, 1);
    assert_eq!(play.told(), ["form 0 [1]"]);
    let at = play.fail(0);
    assert_eq!(play.told(), ["park 0"]);
    assert_eq!((play.scheduler.resolved(), play.scheduler.counts().parked), (Lsn(0), 0));
    play.written();
    assert_eq!((play.scheduler.resolved(), play.scheduler.counts().parked), (Lsn(1), 1));
    play.now = at;
    assert_eq!(play.told(), ["attempt 0 for the 2. time"]);
    play.fail(0);
    assert_eq!(play.told(), [""; 0], "it is there already");
}

#[test]
fn a_delivery_that_ends_while_it_is_being_written_is_not_counted_afterwards() {
    let mut play = Play::new(keeping());
    play.one(1, 1);
    play.told();
    let at = play.fail(0);
    assert_eq!(play.told(), ["park 0"]);
    play.now = at;
    assert_eq!(play.told(), ["attempt 0 for the 2. time"]);
    play.ack(0);
    play.one(1, 2);
    play.written();
    let counts = play.scheduler.counts();
    assert_eq!((counts.parked, counts.unresolved), (0, 1));
    assert_eq!(play.scheduler.resolved(), Lsn(1));
}

#[test]
fn a_delivery_that_hangs_is_parked_and_what_it_cannot_be_yet_is_asked_again() {
    let mut play = Play::new(keeping());
    play.one(1, 1);
    assert_eq!(play.told(), ["form 0 [1]"]);
    assert_eq!(play.scheduler.poll_timeout(&play.world), Some(play.now + KEEP_AFTER));
    play.now += KEEP_AFTER;
    assert_eq!(play.told(), ["park 0"]);
    play.scheduler.not_written(play.writes.pop_front().unwrap());
    assert_eq!(play.told(), [""; 0]);
    play.now = play.scheduler.poll_timeout(&play.world).unwrap();
    assert_eq!(play.told(), ["park 0"]);
    play.written();
    assert_eq!(play.scheduler.resolved(), Lsn(1));
    assert_eq!(play.scheduler.counts().in_flight, 1);
    play.ack(0);
    assert_eq!(play.scheduler.counts().parked, 0);
}

#[test]
fn what_waited_long_behind_a_failure_is_spilled_in_order_and_read_back_in_order() {
    let (mut play, at) = behind_a_failure(Rules { retry: RetryRule { initial: 60 * SEC, max: 60 * SEC }, ..keeping() });
    play.one(1, 2);
    play.one(1, 3);
    play.now += SEC;
    play.one(1, 4);
    play.now += KEEP_AFTER - SEC;
    assert_eq!(play.told(), ["spill [2, 3]"]);
    assert_eq!(play.scheduler.resolved(), Lsn(1));
    play.written();
    assert_eq!(play.scheduler.resolved(), Lsn(3));
    assert_eq!((play.scheduler.counts().lane_messages, play.scheduler.counts().waiting), (2, 1));
    play.now = at;
    assert_eq!(play.told(), ["spill [4]", "attempt 0 for the 2. time"]);
    play.written();
    play.one(1, 5);
    play.ack(0);
    assert_eq!(play.told(), ["read lanes [1]"]);
    play.lanes(&[(1, &[(ONE, 2), (ONE, 3)])]);
    assert_eq!(play.told(), ["form 1 [2]"]);
    play.ack(1);
    assert_eq!(play.told(), ["form 2 [3]"]);
    play.ack(2);
    assert_eq!(play.told(), ["read lanes [1]"]);
    play.lanes(&[(1, &[(ONE, 4)])]);
    assert_eq!(play.told(), ["form 3 [4]"]);
    play.ack(3);
    assert_eq!(play.told(), ["form 4 [5]"], "what stood behind the lane follows it");
    play.ack(4);
    assert_eq!(play.scheduler.resolved(), Lsn(5));
    assert_eq!((play.scheduler.counts().lane_messages, play.scheduler.lanes()), (0, 0));
}

#[test]
fn a_key_change_comes_back_when_both_its_lanes_have_come_to_it() {
    let mut play = Play::new(Rules { retry: RetryRule { initial: 60 * SEC, max: 60 * SEC }, ..keeping() });
    play.one(1, 1);
    play.one(2, 2);
    assert_eq!(play.told(), ["form 0 [1]", "form 1 [2]"]);
    let at = play.fail(0).max(play.fail(1));
    assert_eq!(play.told(), ["park 0", "park 1"]);
    play.one(1, 3);
    play.push(BOTH, 4);
    play.one(2, 5);
    play.now += KEEP_AFTER;
    assert_eq!(play.told(), ["spill [3, 4, 5]"]);
    play.written();
    play.now = at;
    assert_eq!(play.told().len(), 2);
    play.ack(1);
    assert_eq!(play.told(), ["read lanes [2]"]);
    play.lanes(&[(2, &[(BOTH, 4), (TWO, 5)])]);
    assert_eq!(play.told(), [""; 0], "the first group has not come to it");
    play.ack(0);
    assert_eq!(play.told(), ["read lanes [1]"]);
    play.lanes(&[(1, &[(ONE, 3), (BOTH, 4)])]);
    assert_eq!(play.told(), ["form 2 [3]"]);
    play.ack(2);
    assert_eq!(play.told(), ["form 3 [4]"]);
    play.ack(3);
    assert_eq!(play.told(), ["read lanes [2]"]);
    play.lanes(&[(2, &[(TWO, 5)])]);
    assert_eq!(play.told(), ["form 4 [5]"]);
    assert_eq!(play.scheduler.counts().lane_messages, 0);
}

#[test]
fn a_message_without_a_group_is_spilled_alone_and_comes_back_alone() {
    let mut play = Play::new(Rules { max_in_flight: 1, ..keeping() });
    play.one(1, 1);
    assert_eq!(play.told(), ["form 0 [1]"]);
    play.push(Groups::None, 2);
    play.push(Groups::None, 3);
    play.now += KEEP_AFTER;
    assert_eq!(play.told(), ["spill [2, 3]", "park 0"]);
    play.written();
    assert_eq!(play.scheduler.resolved(), Lsn(3));
    assert_eq!((play.scheduler.counts().waiting, play.scheduler.counts().ready), (0, 0));
    let Some(Command::ReadLanes(wants)) = play.scheduler.poll(play.now, &play.world) else { panic!("not read back") };
    assert_eq!(wants.len(), 2);
    let lanes = wants.iter().zip([2, 3]).map(|(want, n)| (want.group, vec![message(Groups::One(want.group), n)]));
    play.scheduler.lanes_read(play.now, lanes.collect());
    play.ack(0);
    assert_eq!(play.told(), ["form 1 [2]"]);
    play.ack(1);
    assert_eq!(play.told(), ["form 2 [3]"]);
}

#[test]
fn what_came_back_behind_a_delivery_that_fails_does_not_stay_in_memory() {
    let mut play = Play::new(keeping());
    play.scheduler.restore_waiting([(GroupId(1), 3, at(4)), (GroupId(2), 2, at(5))], 0);
    assert_eq!(play.told(), ["read lanes [1, 2]"]);
    play.lanes(&[(1, &[(ONE, 1), (ONE, 2), (BOTH, 4)]), (2, &[(BOTH, 4), (TWO, 5)])]);
    play.one(1, 6);
    play.one(2, 7);
    assert_eq!(play.told(), ["form 0 [1]"]);
    let counts = play.scheduler.counts();
    assert_eq!((counts.waiting, counts.lane_messages), (5, 0));
    let at = play.fail(0);
    assert_eq!(play.told(), ["park 0", "read lanes [2]"]);
    let counts = play.scheduler.counts();
    assert_eq!((counts.waiting, counts.lane_messages, counts.ready), (2, 4, 0));
    play.lanes(&[(2, &[(BOTH, 4), (TWO, 5)])]);
    play.now = at;
    assert_eq!(play.told(), ["attempt 0 for the 2. time"]);
    play.ack(0);
    assert_eq!(play.told(), ["read lanes [1]"]);
    play.lanes(&[(1, &[(ONE, 2), (BOTH, 4)])]);
    for (delivery, next) in (1..).zip([2, 4]) {
        assert_eq!(play.told(), [format!("form {delivery} [{next}]")]);
        play.ack(delivery);
    }
    assert_eq!(play.told(), ["form 3 [6]", "read lanes [2]"]);
    play.ack(3);
    play.lanes(&[(2, &[(TWO, 5)])]);
    for (delivery, next) in (4..).zip([5, 7]) {
        assert_eq!(play.told(), [format!("form {delivery} [{next}]")]);
        play.ack(delivery);
    }
    assert_eq!((play.scheduler.counts().lane_messages, play.scheduler.counts().unresolved), (0, 0));
}

#[test]
fn a_lane_that_had_come_to_a_key_change_and_goes_back_does_not_let_it_pass() {
    let mut play = Play::new(keeping());
    play.scheduler.restore_waiting([(GroupId(1), 3, at(4)), (GroupId(2), 2, at(4))], 0);
    assert_eq!(play.told(), ["read lanes [1, 2]"]);
    play.lanes(&[(1, &[(ONE, 1), (ONE, 2), (BOTH, 4)]), (2, &[(TWO, 3)])]);
    assert_eq!(play.told(), ["form 0 [1]", "form 1 [3]"]);
    let at = play.fail(0);
    assert_eq!(play.told(), ["park 0"]);
    play.ack(1);
    assert_eq!(play.told(), ["read lanes [2]"]);
    play.lanes(&[(2, &[(BOTH, 4)])]);
    assert_eq!(play.told(), [""; 0], "2 is before it");
    play.now = at;
    assert_eq!(play.told(), ["attempt 0 for the 2. time"]);
    play.ack(0);
    assert_eq!(play.told(), ["read lanes [1]"]);
    play.lanes(&[(1, &[(ONE, 2), (BOTH, 4)])]);
    assert_eq!(play.told(), ["form 2 [2]"]);
    play.ack(2);
    assert_eq!(play.told(), ["form 3 [4]"]);
}

#[test]
fn a_lane_that_cannot_be_read_is_wanted_again_a_second_later_and_one_that_is_empty_says_what_is_missing() {
    let mut play = Play::new(keeping());
    play.scheduler.restore_waiting([(GroupId(1), 2, at(3))], 0);
    assert_eq!(play.told(), ["read lanes [1]"]);
    play.scheduler.lanes_unread([GroupId(1)]);
    play.scheduler.unreadable(play.now);
    assert_eq!(play.told(), [""; 0]);
    assert_eq!(play.scheduler.poll_timeout(&play.world), Some(play.now + SEC));
    play.now += SEC;
    assert_eq!(play.told(), ["read lanes [1]"]);
    assert_eq!(play.lanes(&[(1, &[(ONE, 2)])]), 0);
    play.one(1, 4);
    assert_eq!(play.told(), ["form 0 [2]"]);
    play.ack(0);
    assert_eq!(play.told(), ["read lanes [1]"]);
    assert_eq!(play.lanes(&[(1, &[])]), 1);
    assert_eq!(play.told(), ["form 1 [4]"], "what stood behind is not held for ever");
}

#[test]
fn a_store_that_is_shut_gets_nothing_and_nothing_is_lost() {
    let mut play = Play::new(keeping());
    play.one(1, 1);
    play.one(1, 2);
    assert_eq!(play.told(), ["form 0 [1]"]);
    play.scheduler.pause();
    play.told();
    play.one(2, 3);
    play.world.store = StoreRoom::Shut;
    play.scheduler.resume();
    let at = play.fail(0);
    assert_eq!(play.told(), ["form 1 [3]"]);
    play.now += 2 * KEEP_AFTER;
    assert_eq!(play.told(), ["attempt 0 for the 2. time"]);
    assert!(at <= play.now);
    play.ack(0);
    assert_eq!(play.told(), ["form 2 [2]"]);
    play.ack(1);
    play.ack(2);
    assert_eq!(play.scheduler.resolved(), Lsn(3));
}

#[test]
fn in_the_hold_of_the_wal_nothing_is_kept() {
    let mut play = Play::new(rules());
    play.one(1, 1);
    play.one(1, 2);
    play.told();
    play.fail(0);
    play.scheduler.pause();
    play.one(2, 3);
    play.now += 10 * KEEP_AFTER;
    assert_eq!(play.told(), [""; 0]);
    play.scheduler.resume();
    assert_eq!(play.told(), ["attempt 0 for the 2. time", "form 1 [3]"]);
}

#[test]
fn a_split_delivery_goes_into_the_store_as_its_parts() {
    let mut play = Play::new(Rules { batch_size: 2, ..keeping() });
    play.one(1, 1);
    play.one(2, 2);
    assert_eq!(play.told(), ["form 0 [1, 2]"]);
    let refused = Failure { refused: true, ..Failure::default() };
    let Verdict::Split { write: Some(write), .. } = play.fail_with(0, refused) else { panic!("not split") };
    assert_eq!(play.told(), ["attempt 1 for the 1. time", "attempt 2 for the 1. time"]);
    play.ack(1);
    assert_eq!(play.scheduler.resolved(), Lsn(1));
    play.scheduler.written(write);
    assert_eq!((play.scheduler.counts().parked, play.scheduler.resolved()), (1, Lsn(2)));
    play.ack(2);
    assert_eq!(play.scheduler.counts().parked, 0);
}

#[test]
fn the_progress_of_a_batch_counts_what_is_written_with_it() {
    let mut play = Play::new(keeping());
    (1..=3).for_each(|payload| play.one(payload, payload));
    assert_eq!(play.told().len(), 3);
    play.ack(1);
    play.fail(0);
    let progress = |resolved, high, unresolved: &[u64]| Progress {
        resolved: Lsn(resolved),
        high: Some(at(high)),
        unresolved: unresolved.iter().map(|position| at(*position)).collect(),
    };
    assert_eq!(play.scheduler.progress(None), progress(0, 2, &[1]));
    assert_eq!(play.told(), ["park 0"]);
    assert_eq!(play.scheduler.progress(None), progress(2, 2, &[]), "else 1 would come twice after a crash");
    assert_eq!(play.scheduler.resolved(), Lsn(0));
    play.scheduler.not_written(play.writes.pop_front().unwrap());
    assert_eq!(play.scheduler.progress(None), progress(0, 2, &[1]));
    play.scheduler.pause();
    play.told();
    play.one(1, 4);
    play.now += 50 * MS;
    assert_eq!(play.told(), ["page [4]"]);
    assert_eq!(play.scheduler.progress(None), progress(0, 4, &[1, 3]));
}

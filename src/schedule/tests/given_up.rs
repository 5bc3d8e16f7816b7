//! Plays of deliveries that are split, given up, or stand before an endpoint in trouble.

use super::*;

const REFUSED: Failure = Failure {
    ours: false,
    own: false,
    trouble: false,
    refused: true,
    too_large: false,
    damaged: false,
    retry_after: None,
};
const TROUBLE: Failure = Failure {
    ours: false,
    own: false,
    trouble: true,
    refused: false,
    too_large: false,
    damaged: false,
    retry_after: None,
};

fn parts(verdict: Verdict) -> [(u64, Vec<usize>); 2] {
    let Verdict::Split { parts: [(one, first), (other, second)], .. } = verdict else { panic!("{verdict:?}") };
    [(one.0, first), (other.0, second)]
}

#[test]
fn a_refused_delivery_of_several_groups_is_split_and_its_parts_go_beside_each_other() {
    let mut play = Play::new(Rules { batch_size: 4, split_after: 2, ..rules() });
    (1..=4).for_each(|payload| play.one(payload, payload));
    play.one(4, 5);
    assert_eq!(play.commands(), [(0, vec![1, 2, 3, 4])]);
    let Verdict::Retry(at) = play.fail_with(0, REFUSED) else { panic!("split at the first refusal") };
    let verdict = play.fail_again(at, 0, REFUSED);
    assert_eq!(parts(verdict), [(1, vec![0, 1]), (2, vec![2, 3])]);
    let counts = play.scheduler.counts();
    assert_eq!((counts.ack_pending, counts.failed, counts.groups_held), (4, 2, 4));
    assert_eq!(play.commands(), [(1, vec![]), (2, vec![])]);
    play.ack(2);
    play.now += 10 * MS;
    assert_eq!(play.commands(), [(3, vec![5])], "the groups of a part that is done go on");
    play.ack(3);
    play.ack(1);
    assert_eq!(play.scheduler.resolved(), Lsn(5));
    let counts = play.scheduler.counts();
    assert_eq!((counts.ack_pending, counts.failed, counts.groups_held), (0, 0, 0));
}

#[test]
fn of_a_refused_delivery_of_one_group_the_second_half_waits_for_the_first() {
    let mut play = Play::new(Rules { batch_size: 4, ..rules() });
    (1..=5).for_each(|payload| play.one(1, payload));
    assert_eq!(play.commands(), [(0, vec![1, 2, 3, 4])]);
    assert_eq!(parts(play.fail_with(0, REFUSED)), [(1, vec![0, 1]), (2, vec![2, 3])]);
    assert_eq!(play.commands(), [(1, vec![])]);
    assert_eq!(parts(play.fail_with(1, REFUSED)), [(3, vec![0]), (4, vec![1])]);
    assert_eq!(play.commands(), [(3, vec![])]);
    play.ack(3);
    assert_eq!(play.commands(), [(4, vec![])]);
    play.ack(4);
    assert_eq!(play.commands(), [(2, vec![])]);
    play.ack(2);
    play.now += 10 * MS;
    assert_eq!(play.commands(), [(5, vec![5])]);
}

/// A part of a delivery that was split in a life before: one message of each group.
fn restored_part(now: Instant, position: u64, groups: &[u64]) -> Restored {
    Restored {
        members: groups.iter().map(|group| tied(position, Groups::One(GroupId(*group)))).collect(),
        position: at(position),
        attempts: 1,
        failures: 1,
        refusals: 1,
        first_attempt: Some(now),
        due: Some(now),
        is_part: true,
    }
}

#[test]
fn a_family_of_a_life_before_goes_in_its_order() {
    let mut play = Play::new(rules());
    let now = play.now;
    let part = |position, groups| restored_part(now, position, groups);
    let restored = vec![part(5, &[1, 1]), part(1, &[1]), part(2, &[3])];
    assert_eq!(play.scheduler.restore(play.now, restored), [DeliveryKey(2), DeliveryKey(0), DeliveryKey(1)]);
    let counts = play.scheduler.counts();
    assert_eq!((counts.parked, counts.failed, counts.ack_pending, counts.groups_held), (3, 3, 4, 3));
    play.one(1, 9);
    assert_eq!(play.commands(), [(0, vec![]), (1, vec![])]);
    play.ack(0);
    assert_eq!(play.commands(), [(2, vec![])]);
    assert_eq!(parts(play.fail_with(2, REFUSED)), [(3, vec![0]), (4, vec![1])], "a part's first refusal splits it");
    assert_eq!(play.commands(), [(3, vec![])]);
    play.ack(3);
    play.ack(1);
    assert_eq!(play.commands(), [(4, vec![])]);
    play.ack(4);
    assert_eq!(play.commands(), [(5, vec![9])]);
    assert_eq!(play.scheduler.counts().parked, 0);
}

#[test]
fn parts_that_share_a_group_go_by_their_first_messages_before_and_after_a_restart() {
    let mut play = Play::new(Rules { batch_size: 4, ..rules() });
    let groups = [2, 3].map(|group| Groups::One(GroupId(group)));
    play.push(groups[0], 1);
    play.push(groups[1], 2);
    play.push(groups[0], 3);
    play.push(Groups::Two(GroupId(2), GroupId(3)), 4);
    assert_eq!(play.commands(), [(0, vec![1, 2, 3, 4])], "taken group by group, 3 would stand before 2");
    assert_eq!(parts(play.fail_with(0, REFUSED)), [(1, vec![0, 1]), (2, vec![2, 3])]);
    assert_eq!(play.commands(), [(1, vec![])]);
    assert_eq!(parts(play.fail_with(1, REFUSED)), [(3, vec![0]), (4, vec![1])]);
    assert_eq!(play.commands(), [(3, vec![]), (4, vec![])]);
}

#[test]
fn a_family_of_a_life_before_is_found_through_all_its_members() {
    let mut play = Play::new(rules());
    let now = play.now;
    let part = |position, groups| restored_part(now, position, groups);
    let restored = vec![part(1, &[1]), part(2, &[2, 3]), part(3, &[1, 2]), part(4, &[3])];
    play.scheduler.restore(play.now, restored);
    assert_eq!(play.commands(), [(0, vec![]), (1, vec![])]);
    play.ack(1);
    assert_eq!(play.commands(), [(3, vec![])]);
    play.ack(0);
    assert_eq!(play.commands(), [(2, vec![])]);
}

#[test]
fn the_last_attempt_makes_a_dead_letter_and_the_group_goes_on() {
    let limits = Limits { max_attempts: Some(2), max_age: None };
    let mut play = Play::new(Rules { limits, ..rules() });
    play.one(1, 1);
    play.one(1, 2);
    play.commands();
    let at = play.fail(0);
    let verdict = play.fail_again(at, 0, TROUBLE);
    assert_eq!(verdict, Verdict::Dead { why: Exhausted::Attempts, paused: false });
    assert_eq!(play.scheduler.resolved(), Lsn(1));
    assert_eq!(play.commands(), [(1, vec![2])]);
    let counts = play.scheduler.counts();
    assert_eq!((counts.failed, counts.groups_held, counts.ack_pending), (0, 0, 1));
}

#[test]
fn what_is_too_large_is_given_up_at_once_and_says_nothing_of_the_endpoint() {
    let too_large = Failure { ours: true, too_large: true, ..Failure::default() };
    let mut play = Play::new(rules());
    play.one(1, 1);
    play.one(1, 2);
    play.commands();
    play.world.store = StoreRoom::Shut;
    let Verdict::Retry(at) = play.fail_with(0, too_large) else { panic!("without room for a dead letter it waits") };
    play.world.store = StoreRoom::Open;
    assert_eq!(play.fail_again(at, 0, too_large), Verdict::Dead { why: Exhausted::TooLarge, paused: false });
    assert_eq!(play.scheduler.breaker(), BreakerState::Closed);
    assert_eq!(play.commands(), [(1, vec![2])], "the group goes on");
    let mut play = Play::new(Rules { on_exhausted: OnExhausted::BlockGroup, ..rules() });
    play.one(1, 1);
    play.commands();
    assert_eq!(play.fail_with(0, too_large), Verdict::Blocked(Exhausted::TooLarge));
}

#[test]
fn what_is_damaged_parts_from_the_others_at_once_and_is_given_up_alone() {
    let damaged = Failure { ours: true, damaged: true, ..Failure::default() };
    let mut play = Play::new(Rules { batch_size: 3, split_after: 9, ..rules() });
    (1..=3).for_each(|group| play.one(group, group));
    assert_eq!(play.commands(), [(0, vec![1, 2, 3])]);
    let Verdict::Split { parts, .. } = play.fail_with(0, damaged) else { panic!("it parts at the first attempt") };
    assert_eq!(parts.map(|(_, indexes)| indexes.len()), [2, 1]);
    let mut play = Play::new(rules());
    play.one(1, 1);
    play.one(1, 2);
    play.commands();
    play.world.store = StoreRoom::Shut;
    let Verdict::Retry(at) = play.fail_with(0, damaged) else { panic!("without room for a dead letter it waits") };
    play.world.store = StoreRoom::Open;
    assert_eq!(play.fail_again(at, 0, damaged), Verdict::Dead { why: Exhausted::Damaged, paused: false });
    assert_eq!(play.scheduler.breaker(), BreakerState::Closed);
    assert_eq!(play.commands(), [(1, vec![2])], "the group goes on");
    let mut play = Play::new(Rules { on_exhausted: OnExhausted::BlockGroup, ..rules() });
    play.one(1, 1);
    play.commands();
    assert_eq!(play.fail_with(0, damaged), Verdict::Blocked(Exhausted::Damaged));
}

#[test]
fn an_aged_delivery_makes_a_dead_letter_at_its_age() {
    let limits = Limits { max_attempts: None, max_age: Some(700 * MS) };
    let mut play = Play::new(Rules { limits, ..rules() });
    play.one(1, 1);
    play.commands();
    let (first, at) = (play.now, play.fail(0));
    assert!(at <= first + 700 * MS);
    let mut verdict = play.fail_again(at, 0, TROUBLE);
    if let Verdict::Retry(at) = verdict {
        assert_eq!(at, first + 700 * MS);
        verdict = play.fail_again(at, 0, TROUBLE);
    }
    assert_eq!(verdict, Verdict::Dead { why: Exhausted::Age, paused: false });
}

#[test]
fn a_blocked_group_waits_for_a_person_and_others_go_on() {
    let limits = Limits { max_attempts: Some(1), max_age: None };
    let mut play = Play::new(Rules { limits, on_exhausted: OnExhausted::BlockGroup, ..rules() });
    play.one(1, 1);
    play.one(1, 2);
    play.one(2, 3);
    play.commands();
    assert_eq!(play.fail_with(0, TROUBLE), Verdict::Blocked(Exhausted::Attempts));
    play.ack(1);
    play.now += Duration::from_secs(3600);
    assert_eq!(play.commands(), []);
    assert_eq!(play.scheduler.poll_timeout(&play.world), None);
    let counts = play.scheduler.counts();
    assert_eq!((counts.blocked, counts.waiting, counts.groups_held), (1, 1, 1));
    assert_eq!(play.scheduler.resolved(), Lsn(0));
}

#[test]
fn a_dead_letter_may_pause_the_sink() {
    let limits = Limits { max_attempts: Some(1), max_age: None };
    let mut play = Play::new(Rules { limits, on_exhausted: OnExhausted::PauseSink, ..rules() });
    play.one(1, 1);
    play.one(1, 2);
    play.commands();
    assert_eq!(play.fail_with(0, TROUBLE), Verdict::Dead { why: Exhausted::Attempts, paused: true });
    assert!(play.scheduler.is_paused());
    assert_eq!(play.commands(), []);
    play.scheduler.resume();
    assert_eq!(play.commands(), [(1, vec![2])]);
}

/// Five deliveries have failed for the endpoint's sake; 95 messages wait.
fn broken() -> (Play, Instant) {
    let mut play = Play::new(Rules { max_in_flight: 5, ..rules() });
    (1..=100).for_each(|payload| play.one(payload, payload));
    assert_eq!(play.commands().len(), 5);
    (0..5).for_each(|delivery| {
        play.fail_with(delivery, TROUBLE);
    });
    let BreakerState::Open { until, failures: 1 } = play.scheduler.breaker() else { panic!("closed") };
    (play, until)
}

#[test]
fn an_open_breaker_starts_nothing_until_its_probe_and_a_failed_probe_opens_it_for_longer() {
    let (mut play, until) = broken();
    assert_eq!(play.commands(), []);
    assert_eq!(play.scheduler.poll_timeout(&play.world), Some(until));
    play.now = until;
    let [(probe, _)] = play.commands()[..] else { panic!("one probe") };
    assert!(probe < 5, "what has failed is at stake first");
    play.now += 5000 * MS;
    assert_eq!(play.commands(), []);
    assert_eq!(play.scheduler.poll_timeout(&play.world), None);
    play.fail_with(probe, TROUBLE);
    let BreakerState::Open { until, failures: 2 } = play.scheduler.breaker() else { panic!("not open") };
    assert!(until >= play.now + 1000 * MS && until <= play.now + 2000 * MS);
}

#[test]
fn an_endpoint_that_lives_again_is_given_more_and_more() {
    let (mut play, until) = broken();
    play.now = until + 5000 * MS;
    for under_way in [1, 1, 2, 4] {
        let started: Vec<u64> = play.commands().into_iter().map(|(delivery, _)| delivery).collect();
        assert_eq!(started.len(), under_way);
        started.into_iter().for_each(|delivery| play.ack(delivery));
    }
    assert_eq!(play.scheduler.breaker(), BreakerState::Closed);
    assert_eq!(play.commands().len(), 5);
}

#[test]
fn a_probe_that_is_refused_is_a_sign_of_life() {
    let (mut play, until) = broken();
    play.now = until;
    let [(probe, _)] = play.commands()[..] else { panic!("one probe") };
    play.fail_with(probe, REFUSED);
    assert_eq!(play.scheduler.breaker(), BreakerState::RampUp { limit: 1 });
}

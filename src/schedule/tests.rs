//! Plays: at this time this happens, exactly these commands follow.

mod barriers;
mod given_up;
mod overflow;
mod restart;
mod store;

use std::time::Duration;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn rules() -> Rules {
    Rules {
        batch_size: 1,
        batch_bytes: 1000,
        batch_timeout: 10 * MS,
        max_ack_pending: 100,
        max_in_flight: 10,
        retry: RetryRule { initial: 1000 * MS, max: 180_000 * MS },
        limits: Limits::default(),
        on_exhausted: OnExhausted::Continue,
        split_after: 1,
        keeps: false,
        enough: (100, 100_000),
        write_bytes: 1 << 20,
    }
}

fn at(position: u64) -> Position {
    Position { commit_lsn: Lsn(position), index: 1 }
}

struct Play {
    scheduler: Scheduler<u64>,
    world: World,
    now: Instant,
    /// What was asked to be written and is not durable, oldest first.
    writes: VecDeque<WriteId>,
}

const SCOPE: ScopeId = ScopeId(1);

/// A message whose payload is its position.
fn message(groups: Groups, payload: u64) -> Message<u64> {
    Message { groups, scope: SCOPE, barrier: Barrier::None, bytes: 10, position: at(payload), payload }
}

fn tied(position: u64, groups: Groups) -> Tied {
    Tied { position: at(position), ties: Ties { groups, scope: SCOPE, barrier: Barrier::None } }
}

fn payloads(messages: Vec<Message<u64>>) -> Vec<u64> {
    messages.into_iter().map(|message| message.payload).collect()
}

impl Play {
    fn new(rules: Rules) -> Self {
        Self { scheduler: Scheduler::new(rules, 1), world: World::EASY, now: Instant::now(), writes: VecDeque::new() }
    }

    fn push(&mut self, groups: Groups, payload: u64) {
        self.scheduler.push(self.now, message(groups, payload));
        self.scheduler.mark(Lsn(payload));
    }

    fn one(&mut self, group: u64, payload: u64) {
        self.push(Groups::One(GroupId(group)), payload);
    }

    /// The commands that follow, all of them attempts: (delivery, payloads) of new ones, (delivery, []) of retries.
    fn commands(&mut self) -> Vec<(u64, Vec<u64>)> {
        let mut commands = Vec::new();
        while let Some(command) = self.scheduler.poll(self.now, &self.world) {
            commands.push(match command {
                Command::Form { delivery, messages } => (delivery.0, messages),
                Command::Attempt { delivery, .. } => (delivery.0, Vec::new()),
                Command::Park { .. }
                | Command::Spill { .. }
                | Command::Overflow { .. }
                | Command::ReadLanes(_)
                | Command::ReadOverflow => panic!("{command:?}"),
            });
        }
        commands
    }

    /// The commands that follow, told in words.
    fn told(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(command) = self.scheduler.poll(self.now, &self.world) {
            told.push(match command {
                Command::Form { delivery, messages } => format!("form {} {messages:?}", delivery.0),
                Command::Attempt { delivery, number } => format!("attempt {} for the {number}. time", delivery.0),
                Command::Park { delivery, write } => {
                    self.writes.push_back(write);
                    format!("park {}", delivery.0)
                }
                Command::Spill { write, messages } => {
                    self.writes.push_back(write);
                    format!("spill {:?}", payloads(messages))
                }
                Command::Overflow { write, messages } => {
                    self.writes.push_back(write);
                    format!("page {:?}", payloads(messages))
                }
                Command::ReadLanes(wants) => {
                    let mut groups: Vec<u64> = wants.iter().map(|want| want.group.0).collect();
                    groups.sort_unstable();
                    format!("read lanes {groups:?}")
                }
                Command::ReadOverflow => "read page".to_owned(),
            });
        }
        let timeout = self.scheduler.poll_timeout(&self.world);
        assert!(timeout.is_none_or(|at| at > self.now), "what is due now is not left lying");
        told
    }

    /// All that was asked to be written is durable.
    fn written(&mut self) {
        while let Some(write) = self.writes.pop_front() {
            self.scheduler.written(write);
        }
    }

    fn ack(&mut self, delivery: u64) {
        self.scheduler.outcome(self.now, &self.world, DeliveryKey(delivery), Outcome::Acknowledged);
    }

    fn fail_with(&mut self, delivery: u64, failure: Failure) -> Verdict {
        self.scheduler.outcome(self.now, &self.world, DeliveryKey(delivery), Outcome::Failed(failure)).unwrap()
    }

    fn fail(&mut self, delivery: u64) -> Instant {
        let verdict = self.fail_with(delivery, Failure::default());
        let Verdict::Retry(at) = verdict else { panic!("{verdict:?}") };
        at
    }

    /// A retry of the delivery fails.
    fn fail_again(&mut self, at: Instant, delivery: u64, failure: Failure) -> Verdict {
        self.now = self.now.max(at);
        self.told();
        self.fail_with(delivery, failure)
    }
}

#[test]
fn a_group_goes_one_at_a_time_and_others_go_beside_it() {
    let mut play = Play::new(rules());
    play.one(1, 1);
    play.one(1, 2);
    play.one(2, 3);
    assert_eq!(play.commands(), [(0, vec![1]), (1, vec![3])]);
    play.ack(1);
    assert_eq!(play.commands(), []);
    assert_eq!(play.scheduler.resolved(), Lsn(0));
    play.ack(0);
    assert_eq!(play.scheduler.resolved(), Lsn(1));
    assert_eq!(play.commands(), [(2, vec![2])]);
    play.ack(2);
    assert_eq!(play.scheduler.resolved(), Lsn(3));
}

#[test]
fn a_batch_waits_for_more_until_its_timeout_or_until_it_is_full() {
    let mut play = Play::new(Rules { batch_size: 3, ..rules() });
    play.one(1, 1);
    assert_eq!(play.commands(), []);
    assert_eq!(play.scheduler.poll_timeout(&play.world), Some(play.now + 10 * MS));
    play.now += 10 * MS;
    assert_eq!(play.commands(), [(0, vec![1])]);
    for payload in 2..6 {
        play.one(payload, payload);
    }
    assert_eq!(play.commands(), [(1, vec![2, 3, 4])]);
}

#[test]
fn several_messages_of_a_group_share_a_batch_in_the_order_of_commits() {
    let mut play = Play::new(Rules { batch_size: 4, ..rules() });
    play.one(1, 1);
    play.one(2, 2);
    play.one(1, 3);
    play.one(2, 4);
    assert_eq!(play.commands(), [(0, vec![1, 2, 3, 4])]);
}

#[test]
fn what_waits_behind_several_messages_of_a_group_is_ready_once_when_they_are_acknowledged() {
    let mut play = Play::new(Rules { batch_size: 2, ..rules() });
    play.one(1, 1);
    play.one(1, 2);
    assert_eq!(play.commands(), [(0, vec![1, 2])]);
    play.one(1, 3);
    assert_eq!(play.scheduler.counts().ready, 0);
    play.ack(0);
    let counts = play.scheduler.counts();
    assert_eq!((counts.ready, counts.ready_bytes), (1, 10));
    assert_eq!(play.commands(), [], "one message does not fill a batch");
    play.now += 10 * MS;
    assert_eq!(play.commands(), [(1, vec![3])]);
    assert_eq!(play.scheduler.counts().ready, 0);
}

#[test]
fn batch_bytes_bound_a_batch_and_a_larger_message_goes_alone() {
    let mut play = Play::new(Rules { batch_size: 10, batch_bytes: 25, batch_timeout: Duration::ZERO, ..rules() });
    for payload in 1..4 {
        play.one(payload, payload);
    }
    play.scheduler.push(play.now, Message { bytes: 1000, ..message(Groups::None, 4) });
    assert_eq!(play.commands(), [(0, vec![1, 2]), (1, vec![3]), (2, vec![4])]);
}

#[test]
fn a_key_change_waits_for_both_groups_and_blocks_both() {
    let mut play = Play::new(rules());
    play.one(1, 1);
    play.one(2, 2);
    assert_eq!(play.commands(), [(0, vec![1]), (1, vec![2])]);
    play.push(Groups::moved(GroupId(1), GroupId(2)), 3);
    play.one(1, 4);
    play.one(2, 5);
    play.ack(0);
    assert_eq!(play.commands(), []);
    play.ack(1);
    assert_eq!(play.commands(), [(2, vec![3])]);
    play.ack(2);
    assert_eq!(play.commands(), [(3, vec![4]), (4, vec![5])]);
}

#[test]
fn a_failed_delivery_keeps_its_group_and_comes_again_at_its_time() {
    let mut play = Play::new(rules());
    play.one(1, 1);
    play.one(1, 2);
    play.one(2, 3);
    assert_eq!(play.commands().len(), 2);
    let at = play.fail(0);
    assert!(at >= play.now + 500 * MS && at <= play.now + 1000 * MS);
    assert_eq!((play.scheduler.counts().groups_held, play.scheduler.counts().failed), (1, 1));
    assert_eq!(play.commands(), []);
    assert_eq!(play.scheduler.poll_timeout(&play.world), Some(at));
    play.now = at;
    assert_eq!(play.commands(), [(0, vec![])]);
    assert_eq!(play.scheduler.counts().failed, 1, "a retry under way has not mended anything");
    play.ack(0);
    assert_eq!((play.scheduler.counts().groups_held, play.scheduler.counts().failed), (0, 0));
    assert_eq!(play.commands(), [(2, vec![2])]);
}

#[test]
fn failed_messages_count_against_max_ack_pending() {
    let mut play = Play::new(Rules { max_ack_pending: 2, ..rules() });
    for payload in 1..5 {
        play.one(payload, payload);
    }
    assert_eq!(play.commands().len(), 2);
    let at = play.fail(0).max(play.fail(1));
    assert_eq!(play.commands(), []);
    assert_eq!(play.scheduler.counts().ack_pending, 2);
    play.now = at;
    let mut retried = play.commands();
    retried.sort();
    assert_eq!(retried, [(0, vec![]), (1, vec![])]);
    play.ack(0);
    assert_eq!(play.commands(), [(2, vec![3])]);
}

#[test]
fn retry_after_holds_the_whole_sink_but_not_longer_than_the_longest_wait() {
    let mut play = Play::new(Rules { retry: RetryRule { initial: 10 * MS, max: 5000 * MS }, ..rules() });
    play.one(1, 1);
    assert_eq!(play.commands().len(), 1);
    let failure = Failure { retry_after: Some(Duration::from_secs(3600)), ..Failure::default() };
    play.scheduler.outcome(play.now, &play.world, DeliveryKey(0), Outcome::Failed(failure));
    play.one(2, 2);
    play.now += 4999 * MS;
    assert_eq!(play.commands(), []);
    assert_eq!(play.scheduler.poll_timeout(&play.world), Some(play.now + MS));
    play.now += MS;
    assert_eq!(play.commands().len(), 2);
}

#[test]
fn retries_and_new_messages_take_turns() {
    let mut play = Play::new(Rules { max_in_flight: 1, ..rules() });
    play.one(1, 1);
    assert_eq!(play.commands().len(), 1);
    let mut at = play.fail(0);
    let mut served = Vec::new();
    for payload in 2..6 {
        play.one(payload, payload);
    }
    for _ in 0..6 {
        play.now = play.now.max(at);
        let [(delivery, _)] = play.commands()[..] else { panic!("one at a time") };
        served.push(delivery);
        if delivery == 0 {
            at = play.fail(0);
            play.now = at;
        } else {
            play.ack(delivery);
        }
    }
    assert_eq!(served, [0, 1, 0, 2, 0, 3]);
}

#[test]
fn a_failure_of_ours_uses_up_no_attempt() {
    let mut play = Play::new(rules());
    play.one(1, 1);
    play.commands();
    let ours = Outcome::Failed(Failure { ours: true, ..Failure::default() });
    play.scheduler.outcome(play.now, &play.world, DeliveryKey(0), ours);
    play.now += 1000 * MS;
    assert!(matches!(play.scheduler.poll(play.now, &play.world), Some(Command::Attempt { number: 1, .. })));
}

#[test]
fn a_pause_starts_nothing_and_ends_where_it_began() {
    let mut play = Play::new(rules());
    play.scheduler.pause();
    play.one(1, 1);
    assert_eq!(play.commands(), []);
    assert_eq!(play.scheduler.poll_timeout(&play.world), None);
    play.scheduler.resume();
    assert_eq!(play.commands(), [(0, vec![1])]);
}

#[test]
fn while_memory_is_short_new_deliveries_go_one_at_a_time_and_retries_as_ever() {
    let mut play = Play::new(rules());
    play.one(1, 1);
    assert_eq!(play.commands().len(), 1);
    play.now = play.fail(0);
    play.world.memory.is_short = true;
    play.one(2, 2);
    play.one(3, 3);
    assert_eq!(play.commands(), [(0, vec![])]);
    assert_eq!(play.scheduler.poll_timeout(&play.world), None);
    play.ack(0);
    assert_eq!(play.commands(), [(1, vec![2])]);
    play.world.memory.is_short = false;
    assert_eq!(play.commands(), [(2, vec![3])]);
}

#[test]
fn messages_without_a_group_go_all_at_once() {
    let mut play = Play::new(rules());
    for payload in 1..4 {
        play.push(Groups::None, payload);
    }
    assert_eq!(play.commands(), [(0, vec![1]), (1, vec![2]), (2, vec![3])]);
}

#[test]
fn a_life_of_a_million_messages_takes_seconds() {
    let mut play = Play::new(Rules { batch_size: 100, max_ack_pending: 10_000, ..rules() });
    let mut rng = fastrand::Rng::with_seed(3);
    let mut under_way = VecDeque::new();
    for payload in 1..=1_000_000 {
        play.one(rng.u64(0..1_000_000), payload);
        if payload % 1000 == 0 {
            under_way.extend(play.commands());
            while let Some((delivery, _)) = under_way.pop_front() {
                play.ack(delivery);
                under_way.extend(play.commands());
            }
        }
    }
    play.now += Duration::from_secs(1);
    while let Some((delivery, _)) = play.commands().pop() {
        play.ack(delivery);
    }
    assert_eq!(play.scheduler.resolved(), Lsn(1_000_000));
}

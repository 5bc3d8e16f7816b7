//! Plays of a sink that cannot keep up: what is new goes to the store in pages, and comes back.

use super::store::{SEC, behind_a_failure, keeping};
use super::*;

#[test]
fn a_paused_sink_pages_what_arrives_after_a_moment_and_reads_it_back_in_order() {
    let mut play = Play::new(keeping());
    play.scheduler.pause();
    assert_eq!(play.told(), [""; 0]);
    play.one(1, 1);
    play.now += 49 * MS;
    play.one(2, 2);
    assert_eq!(play.told(), [""; 0]);
    assert_eq!(play.scheduler.poll_timeout(&play.world), Some(play.now + MS));
    play.now += MS;
    assert_eq!(play.told(), ["page [1, 2]"]);
    assert_eq!(play.scheduler.resolved(), Lsn(0));
    play.written();
    assert_eq!(play.scheduler.resolved(), Lsn(2));
    assert_eq!((play.scheduler.counts().overflow_messages, play.scheduler.counts().waiting), (2, 0));
    play.scheduler.resume();
    play.one(1, 3);
    assert_eq!(play.told(), ["read page"]);
    play.page(&[(1, 1), (2, 2)]);
    assert_eq!(play.told(), ["form 0 [1]", "form 1 [2]"], "3 need not be written: it is next");
    play.ack(0);
    assert_eq!(play.told(), ["form 2 [3]"]);
    play.ack(1);
    play.ack(2);
    assert_eq!(play.scheduler.resolved(), Lsn(3));
}

#[test]
fn what_was_to_be_paged_is_taken_back_when_nothing_is_in_the_way_any_more() {
    let mut play = Play::new(keeping());
    play.world.memory.is_share_full = true;
    assert_eq!(play.told(), [""; 0]);
    play.one(1, 1);
    play.one(1, 2);
    assert!(play.scheduler.is_overflowing());
    play.world.memory.is_share_full = false;
    assert_eq!(play.told(), ["form 0 [1]"]);
    assert!(!play.scheduler.is_overflowing());
    play.ack(0);
    assert_eq!(play.told(), ["form 1 [2]"]);
}

#[test]
fn a_sink_that_is_behind_pages_what_arrives() {
    let mut play = Play::new(Rules { max_in_flight: 1, ..keeping() });
    play.one(1, 1);
    play.one(2, 2);
    assert_eq!(play.told(), ["form 0 [1]"]);
    play.now += BEHIND_AFTER + 9 * MS;
    assert_eq!(play.told(), [""; 0]);
    assert!(!play.scheduler.is_overflowing());
    play.now += MS;
    assert_eq!(play.told(), [""; 0]);
    play.one(3, 3);
    assert!(play.scheduler.is_overflowing());
    play.now += 50 * MS;
    assert_eq!(play.told(), ["page [3]"]);
}

#[test]
fn while_the_breaker_is_open_new_messages_are_paged_and_nothing_is_read_back() {
    let mut play = Play::new(keeping());
    (1..=5).for_each(|payload| play.one(payload, payload));
    assert_eq!(play.told().len(), 5);
    let trouble = Failure { trouble: true, ..Failure::default() };
    (0..5).for_each(|delivery| {
        play.fail_with(delivery, trouble);
    });
    assert_eq!(play.told().len(), 5, "parked");
    play.one(6, 6);
    play.now += 50 * MS;
    assert_eq!(play.told(), ["page [6]"]);
    play.written();
    assert_eq!(play.scheduler.resolved(), Lsn(6));
    assert_eq!(play.told(), [""; 0]);
}

#[test]
fn what_comes_back_behind_a_failure_makes_room_for_the_next_page() {
    let (mut play, _) = behind_a_failure(Rules { enough: (2, 1000), ..keeping() });
    play.scheduler.restore_waiting([], 4);
    assert_eq!(play.told(), ["read page"]);
    play.page(&[(1, 2), (1, 3)]);
    assert_eq!(play.told(), [""; 0]);
    play.now += 250 * MS;
    assert_eq!(play.told(), ["spill [2, 3]", "read page"]);
}

#[test]
fn a_long_outage_leaves_little_in_memory_and_all_comes_back_in_order() {
    const MESSAGES: u64 = 30_000;
    let retry = RetryRule { initial: 60 * SEC, max: 60 * SEC };
    let (mut play, _) = behind_a_failure(Rules {
        enough: (500, 50_000),
        batch_size: 100,
        batch_timeout: Duration::ZERO,
        retry,
        ..keeping()
    });
    play.scheduler.pause();
    play.told();
    let mut pages: VecDeque<(u64, u64)> = VecDeque::new();
    let with_group = |payload| (payload % 1000, payload);
    for payload in 2..MESSAGES {
        play.one(payload % 1000, payload);
        if payload % 100 == 0 {
            play.now += 100 * MS;
            while let Some(Command::Overflow { write, messages }) = play.scheduler.poll(play.now, &play.world) {
                pages.extend(payloads(messages).into_iter().map(with_group));
                play.scheduler.written(write);
            }
            assert_eq!(play.scheduler.counts().waiting, 0);
        }
    }
    play.scheduler.resume();
    let mut lane = VecDeque::new();
    let mut last = vec![0; 1000];
    while play.scheduler.counts().unresolved > 0 || !pages.is_empty() || play.scheduler.counts().waiting > 0 {
        let Some(command) = play.scheduler.poll(play.now, &play.world) else {
            play.now = play.scheduler.poll_timeout(&play.world).expect("it stands still");
            continue;
        };
        match command {
            Command::ReadOverflow => {
                let page: Vec<_> = pages.drain(..pages.len().min(300)).collect();
                play.page(&page);
            }
            Command::Form { delivery, messages } => {
                for payload in messages {
                    let group = usize::try_from(payload % 1000).unwrap();
                    assert!(last[group] < payload, "{payload} after {}", last[group]);
                    last[group] = payload;
                }
                play.ack(delivery.0);
            }
            Command::Spill { write, messages } => {
                lane.extend(payloads(messages));
                play.scheduler.written(write);
            }
            Command::Overflow { write, messages } => {
                pages.extend(payloads(messages).into_iter().map(with_group));
                play.scheduler.written(write);
            }
            other @ (Command::Attempt { .. } | Command::Park { .. } | Command::ReadLanes(_)) => panic!("{other:?}"),
        }
        assert!(play.scheduler.counts().waiting <= 1000, "{}", play.scheduler.counts().waiting);
    }
    assert!(lane.iter().all(|payload| payload % 1000 == 1) && lane.iter().is_sorted());
    assert_eq!((lane.len(), play.scheduler.counts().lane_messages), (29, 29));
}

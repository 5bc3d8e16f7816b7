//! What a message costs the scheduler from its arrival to its acknowledgement, beside few and many waiting groups.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use walhook::change::{Lsn, Position};
use walhook::schedule::{Command, Limits, Message, OnExhausted, Outcome, RetryRule, Rules, Scheduler, World};
use walhook::ties::{Barrier, GroupId, Groups, ScopeId};

fn rules(batch_size: usize) -> Rules {
    Rules {
        batch_size,
        batch_bytes: 1 << 20,
        batch_timeout: Duration::from_millis(10),
        max_ack_pending: 10_000,
        max_in_flight: 32,
        retry: RetryRule { initial: Duration::from_secs(1), max: Duration::from_secs(180) },
        limits: Limits::default(),
        on_exhausted: OnExhausted::Continue,
        split_after: 3,
        keeps: true,
        enough: (8192, 4 << 20),
        write_bytes: 1 << 20,
    }
}

/// A scheduler with one message in each of `waiting` groups.
struct Life {
    scheduler: Scheduler<u64>,
    now: Instant,
    next: u64,
    waiting: u64,
}

impl Life {
    fn new(waiting: u64, batch_size: usize) -> Self {
        let mut life = Self { scheduler: Scheduler::new(rules(batch_size), 1), now: Instant::now(), next: 0, waiting };
        for _ in 0..waiting {
            life.arrive();
        }
        life
    }

    /// The groups come round and round, so that there are always as many.
    fn arrive(&mut self) {
        let number = self.next % self.waiting;
        // Groups are hashes: spread over all 64 bits.
        let group = Groups::One(GroupId((number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let position = Position { commit_lsn: Lsn(self.next + 1), index: 1 };
        let (scope, barrier) = (ScopeId(1), Barrier::None);
        let message = Message { groups: group, scope, barrier, bytes: 500, position, payload: self.next };
        self.scheduler.push(self.now, message);
        self.scheduler.mark(Lsn(self.next));
        self.next += 1;
    }

    /// The next delivery is formed, acknowledged, and followed by as many messages. Gives how many.
    fn turn(&mut self) -> usize {
        let Some(Command::Form { delivery, messages }) = self.scheduler.poll(self.now, &World::EASY) else { return 0 };
        self.scheduler.outcome(self.now, &World::EASY, delivery, Outcome::Acknowledged);
        for _ in 0..messages.len() {
            self.arrive();
        }
        messages.len()
    }
}

fn scheduler(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler, a message");
    for batch_size in [1, 100] {
        for waiting in [1_000, 1_000_000] {
            let mut life = Life::new(waiting, batch_size);
            let id = BenchmarkId::new(format!("batch {batch_size}"), format!("{waiting} groups wait"));
            group.throughput(Throughput::Elements(1));
            group.bench_function(id, |bencher| {
                bencher.iter_custom(|messages| {
                    let started = Instant::now();
                    let mut done = 0;
                    while done < messages {
                        done += life.turn() as u64;
                    }
                    // A turn is several messages: the time of as many as were asked for.
                    started.elapsed().mul_f64(messages as f64 / done as f64)
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, scheduler);
criterion_main!(benches);

//! Rates, for people: `cargo nextest run --lib --run-ignored only -E 'test(store::tests::speed)' --no-capture`.

use std::time::Instant;

use super::*;

const MESSAGES: u32 = 200_000;

fn real_message(lsn: u64) -> KeptMessage {
    let position = at(1_000_000 + lsn * 200, 1);
    let mut facts = facts(position, Groups::One(GroupId(xxhash_rust::xxh3::xxh3_64(&(lsn % 20_000).to_le_bytes()))));
    facts.id = MessageId(xxhash_rust::xxh3::xxh3_128(&lsn.to_le_bytes()));
    facts.group = Some((lsn % 20_000).to_string().into());
    let json = format!(
        r#"{{"record":{{"id":{lsn},"customer_id":{},"status":"shipped","note":"left at the door of number {}"}},"changes":{{"status":"pending"}},"action":"update","metadata":{{"table_schema":"public","table_name":"orders","commit_timestamp":"2024-03-20T15:30:{:02}.{:06}Z","commit_lsn":{},"commit_idx":1,"idempotency_key":"{}","consumer":{{"id":"f47ac10b-58cc-4372-a567-0e02b2c3d479","name":"orders"}},"database":{{"name":"app"}},"transaction_annotations":null}}}}"#,
        lsn % 977,
        lsn % 131,
        lsn % 60,
        lsn % 1_000_000,
        position.commit_lsn.0,
        facts.id
    );
    KeptMessage { facts, json: Bytes::from(json) }
}

/// The clock, and the time that all threads have spent on a core.
struct Stopwatch(Instant, f64);

impl Stopwatch {
    fn start() -> Self {
        Self(Instant::now(), core_seconds())
    }

    fn rate(&self, what: &str) {
        let (wall, core) = (self.0.elapsed().as_secs_f64(), core_seconds() - self.1);
        let messages = f64::from(MESSAGES);
        println!("{what}: {:.0} messages/s, {:.0} a core's second", messages / wall, messages / core);
    }
}

fn core_seconds() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let nanoseconds = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.unwrap().path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() / 1e9
}

#[test]
#[ignore = "prints rates: cargo test --release --lib -- --ignored --nocapture store::tests::speed"]
fn rates() {
    let rig = Rig::of_bytes(10 << 30);
    let (store, sink) = rig.one();
    let messages: Vec<KeptMessage> = (0..u64::from(MESSAGES)).map(real_message).collect();
    println!("{} bytes of JSON a message", messages[1000].json.len());
    let pages: Vec<Vec<KeptMessage>> = messages.chunks(500).map(<[_]>::to_vec).collect();
    for per_batch in [1usize, 4] {
        let (store, sink) = Rig::one(&Rig::of_bytes(10 << 30));
        let began = Stopwatch::start();
        for (n, some) in pages.chunks(per_batch).enumerate() {
            let ops =
                (n * per_batch..).zip(some).map(|(page, some)| Op::Page { page: page as u64, messages: some.clone() });
            write(&store, sink, ops.collect());
        }
        began.rate(&format!("pages of 500 in, {per_batch} a batch"));
        println!("{} bytes on disk", store.health().used_bytes);
        let began = Stopwatch::start();
        let mut from = 0;
        loop {
            let read = now(store.pages(sink, from, 1 << 20)).unwrap();
            let Some(last) = read.last() else { break };
            from = last.page + 1;
        }
        began.rate("pages out");
        let began = Stopwatch::start();
        for page in 0..pages.len() as u64 {
            write(&store, sink, vec![Op::Leave((0..500).map(|index| Home::Page { page, index }).collect())]);
        }
        began.rate("pages left, 500 a batch");
    }
    let began = Stopwatch::start();
    messages.chunks(2000).for_each(|some| write(&store, sink, vec![Op::Lanes(some.to_vec())]));
    began.rate("lanes in, 2000 a batch");
    println!("{} bytes on disk", store.health().used_bytes);
    let began = Stopwatch::start();
    println!("{} lanes", loaded(&store).lanes.len());
    began.rate("lanes loaded");
    let began = Stopwatch::start();
    let groups: Vec<LaneWant> =
        loaded(&store).lanes.iter().map(|lane| LaneWant { group: lane.group, after: None }).collect();
    for wants in groups.chunks(100) {
        now(store.lanes(sink, wants.to_vec(), 100, usize::MAX)).unwrap();
    }
    began.rate("lanes out");
    let began = Stopwatch::start();
    for some in messages.chunks(2000) {
        let homes = some.iter().map(|message| Home::Lane(message.facts.position));
        write(&store, sink, vec![Op::Leave(homes.collect())]);
    }
    began.rate("lanes left, 2000 a batch");
}

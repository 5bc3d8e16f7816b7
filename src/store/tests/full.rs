//! A store without room, or whose writes fail.

use rusqlite::{Connection, ErrorCode};

use super::super::files::{Paths, open_state};
use super::super::ledger::Ledger;
use super::super::quota::Budget;
use super::*;

/// A page of `count` messages of a kilobyte that does not pack.
fn noise_page(page: u64, count: u64) -> Op {
    let mut rng = fastrand::Rng::with_seed(page);
    let messages = (0..count).map(|n| {
        let json: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(1024).collect();
        KeptMessage { json: Bytes::from(json), ..message(page * 1000 + n, n) }
    });
    Op::Page { page, messages: messages.collect() }
}

fn leave_page(page: u64, count: u32) -> Op {
    Op::Leave((0..count).map(|index| Home::Page { page, index }).collect())
}

fn files_bytes(rig: &Rig) -> u64 {
    let files = std::fs::read_dir(&rig.config.path).unwrap();
    files.map(|file| file.unwrap().metadata().map_or(0, |metadata| metadata.len())).sum()
}

const QUOTA: u64 = 8 << 20;

/// Pages of 64 KiB until the store says that it is full; how many.
fn fill(rig: &Rig, store: &Store, sink: SinkKey) -> u64 {
    for page in 0.. {
        write(store, sink, vec![noise_page(page, 64)]);
        assert!(files_bytes(rig) <= QUOTA, "{} bytes after page {page}", files_bytes(rig));
        if store.health().is_full {
            return page + 1;
        }
    }
    unreachable!("it is never full");
}

#[test]
fn a_full_store_says_so_and_has_room_for_what_leaves() {
    let rig = Rig::of_bytes(QUOTA);
    let (store, keys) = rig.open(&["orders", "other"]);
    let sink = keys[0];
    let pages = fill(&rig, &store, sink);
    let health = store.health();
    assert_eq!((health.max_bytes, health.log_rows_lost), (QUOTA, 0));
    assert!(health.used_bytes > QUOTA / 4, "{health:?}");
    let trouble = health.trouble.unwrap();
    assert!(trouble.what.contains("of state.max_bytes = 8.0 MiB"), "{trouble:?}");
    // The reserve takes progress and acknowledgements.
    for page in 0..pages - 1 {
        let kept = progress(page + 1, Some(at(page + 1, 1)), &[]);
        write_with(
            &store,
            sink,
            vec![leave_page(page, 64), Op::Tried { id: DeliveryId(1), tries: Tries::default(), blocked: false }],
            Some(kept),
        );
    }
    let health = store.health();
    assert_eq!((health.is_full, health.trouble), (false, None));
    assert!(health.used_bytes < QUOTA / 4);
    store.close();
    assert!(files_bytes(&rig) > QUOTA / 4);
    let (store, _) = rig.open(&["orders", "other"]);
    wait_until("the files are small again", || files_bytes(&rig) < QUOTA / 4);
    assert_eq!(loaded(&store).overflow.messages, 64);
}

#[test]
fn a_batch_without_room_waits_alone_and_is_written_once_when_there_is() {
    let rig = Rig::of_bytes(QUOTA);
    let (store, keys) = rig.open(&["orders", "other"]);
    let full = fill(&rig, &store, keys[0]);
    // Into the reserve, until less is left than the next batch wants.
    let pages = full + 10;
    (full..pages).for_each(|page| write(&store, keys[0], vec![noise_page(page, 64)]));
    let ops = vec![park(1), noise_page(0, 700)];
    let mut stuck = store.submit(Batch { sink: keys[1], ops, progress: Some(progress(3, None, &[])) });
    let shows_trouble = || store.health().trouble.is_some_and(|trouble| trouble.what.contains("is full"));
    wait_until("trouble is shown", shows_trouble);
    assert!(stuck.try_recv().is_err());
    write_with(&store, keys[0], vec![leave_page(0, 64)], Some(progress(1, None, &[])));
    assert!(stuck.try_recv().is_err());
    assert_eq!(store.load("app", "other").unwrap().1.progress, None, "nothing of it is written");
    assert!(files_bytes(&rig) <= QUOTA);

    write(&store, keys[0], (1..pages).map(|page| leave_page(page, 64)).collect());
    stuck.blocking_recv().unwrap();
    let other = store.load("app", "other").unwrap().1;
    assert_eq!((other.deliveries.len(), other.overflow.messages), (1, 700));
    assert_eq!(other.progress, Some(progress(3, None, &[])));
}

/// Deliveries whose bodies do not pack, of so many bytes together.
fn noise_parks(sink: usize, bytes: usize) -> Vec<Op> {
    let mut rng = fastrand::Rng::with_seed(sink as u64);
    let park = |n| {
        let (delivery, _) = delivery(sink as u128 * 1000 + n + 1);
        Op::Park { delivery, body: std::iter::repeat_with(|| rng.u8(..)).take(2048).collect() }
    };
    (0..bytes as u128 / 2048).map(park).collect()
}

#[test]
fn as_many_sinks_as_a_quota_takes_find_room_together_when_it_has_just_become_full() {
    let rig = Rig::of_bytes(QUOTA);
    let names: Vec<String> = (0..17).map(|n| format!("sink{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (store, keys) = rig.open(&names);
    fill(&rig, &store, keys[0]);
    let batch = |(n, sink): (usize, &SinkKey)| {
        let ops = noise_parks(n, store.batch_bytes_max());
        store.submit(Batch { sink: *sink, ops, progress: Some(progress(1, None, &[])) })
    };
    let mut answers: Vec<_> = keys.iter().enumerate().map(batch).collect();
    for answer in &mut answers {
        wait_until("it is durable", || answer.try_recv().is_ok());
    }
    assert!(!store.health().is_failing);
    for (n, &sink) in keys.iter().enumerate() {
        let left = (1..=8).map(|id| Op::Delivered(DeliveryId(n as u128 * 1000 + id)));
        write_with(&store, sink, left.collect(), Some(progress(2, None, &[])));
    }
    assert!(!store.health().is_failing && files_bytes(&rig) <= QUOTA);
}

#[test]
fn a_quota_that_is_too_small_for_the_sinks_is_refused_with_the_one_that_is_not() {
    let mut rig = Rig::of_bytes(QUOTA);
    let error = Store::open(&rig.config, 40).unwrap_err();
    assert!(error.is_lasting());
    assert_eq!(error.to_string(), "state.max_bytes = 8.0 MiB is too small for 40 sinks: it must be at least 19MiB");
    rig.config.max_bytes = 19 << 20;
    drop(Store::open(&rig.config, 40).unwrap());
    rig.config = StateConfig { max_bytes: QUOTA, hold: Hold::Wal, ..rig.config };
    drop(Store::open(&rig.config, 40).unwrap());
}

#[test]
fn writes_that_fail_are_tried_again_and_happen_once() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    let other = Connection::open(rig.config.path.join("state.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let page = Op::Page { page: 0, messages: vec![message(1, 1), message(2, 1)] };
    let kept = progress(1, Some(at(2, 1)), &[]);
    let mut answer = store.submit(Batch { sink, ops: vec![park(1), page], progress: Some(kept.clone()) });
    wait_until("trouble is shown", || store.health().trouble.is_some());
    let trouble = store.health().trouble.unwrap();
    assert!(trouble.what.starts_with("the store cannot write: "), "{trouble:?}");
    assert!(answer.try_recv().is_err());
    other.execute_batch("ROLLBACK").unwrap();
    answer.blocking_recv().unwrap();
    wait_until("the trouble is over", || store.health().trouble.is_none());
    let loaded = loaded(&store);
    assert_eq!((loaded.deliveries.len(), loaded.overflow.messages, loaded.progress), (1, 2, Some(kept)));
}

#[test]
fn closing_does_not_wait_for_ever_for_writes_that_fail() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    let other = Connection::open(rig.config.path.join("state.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let answer = store.submit(Batch { sink, ops: vec![park(1)], progress: None });
    store.close();
    assert!(answer.blocking_recv().is_err(), "nobody is told that it is durable");
    drop(other);
    assert_eq!(loaded(&rig.one().0).deliveries.len(), 0);
}

/// A ledger without a thread, of `max_bytes`, with one sink.
fn ledger(rig: &Rig, max_bytes: u64) -> (Ledger, SinkKey) {
    let sink = rig.one().1;
    let paths = Paths::of(&rig.config.path);
    let budget = Budget::new(max_bytes, u64::MAX);
    (Ledger::new(open_state(&paths, &budget).unwrap(), rig.config.dead_letter_retention, paths, budget).unwrap(), sink)
}

#[test]
fn a_transaction_that_fails_leaves_nothing_in_the_file_and_nothing_in_memory() {
    let rig = Rig::new();
    let (mut ledger, sink) = ledger(&rig, 2 << 20);
    let batch = |ops| Batch { sink, ops, progress: Some(progress(1, None, &[])) };
    let page = Op::Page { page: 0, messages: vec![message(1, 1), message(2, 1)] };
    assert!(ledger.commit([&batch(vec![page])].into_iter()).unwrap()[0].is_ok());
    let synchronous = ledger.db().pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0));
    assert_eq!(synchronous, Ok(2), "FULL: a commit is on the disk");
    let before = dump(&mut ledger);
    let small = batch(vec![park(1), Op::Lanes(vec![message(3, 3)]), leave_page(0, 1)]);
    let large = batch(vec![park(2), noise_page(1, 3000)]);
    let error = ledger.commit([&small, &large].into_iter()).unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DiskFull));
    assert!(ledger.trouble(&error).what.contains("state.max_bytes = 2.0 MiB"));
    assert_eq!(dump(&mut ledger), before);
    // The message had not left, whatever the failed transaction remembered.
    ledger.commit([&small].into_iter()).unwrap();
    let gone: (i64, Vec<u8>) =
        ledger.db().query_row("SELECT gone, gone_bits FROM page", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!(gone, (1, vec![1]));
}

#[test]
fn a_write_that_waiting_does_not_mend_says_so() {
    let rig = Rig::new();
    let (mut ledger, sink) = ledger(&rig, 8 << 20);
    let error = ledger.db().query_row("SELECT zeroblob(1000000001)", [], |_| Ok(())).unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::TooBig));
    assert!(ledger.trouble(&error).what.contains("waiting does not mend it"));
    ledger.db().execute_batch("DROP TABLE page").unwrap();
    let error = ledger.commit([&Batch { sink, ops: vec![noise_page(0, 1)], progress: None }].into_iter()).unwrap_err();
    assert!(ledger.trouble(&error).what.contains("waiting does not mend it"), "{error}");
}

/// All rows of the tables that ops write, as text.
fn dump(ledger: &mut Ledger) -> Vec<String> {
    let db = ledger.db();
    let mut rows = Vec::new();
    for table in ["sink", "delivery", "delivery_content", "lane", "lane_group", "page", "page_content"] {
        let mut select = db.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = select.column_count();
        let mut found = select.query([]).unwrap();
        while let Some(row) = found.next().unwrap() {
            let values: Vec<_> = (0..columns).map(|column| row.get_ref(column).unwrap()).collect();
            rows.push(format!("{table}: {values:?}"));
        }
    }
    rows
}

#[test]
fn many_sinks_share_one_commit() {
    let rig = Rig::new();
    let names: Vec<String> = (0..50).map(|n| format!("sink{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (store, keys) = rig.open(&names);
    let other = Connection::open(rig.config.path.join("state.db")).unwrap();
    // While the writer waits for the file, all of them come.
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let answers: Vec<_> = keys
        .iter()
        .map(|&sink| store.submit(Batch { sink, ops: vec![park(1)], progress: Some(progress(1, None, &[])) }))
        .collect();
    let version = || other.pragma_query_value(None, "data_version", |row| row.get::<_, i64>(0)).unwrap();
    other.execute_batch("COMMIT").unwrap();
    let before = version();
    answers.into_iter().for_each(|answer| answer.blocking_recv().unwrap());
    assert!(version() > before);
    for name in names {
        assert_eq!(store.load("app", name).unwrap().1.deliveries.len(), 1, "{name}");
    }
}

/// Takes all that the disk has left but `left` bytes.
fn ballast(rig: &Rig, left: usize) -> std::path::PathBuf {
    let path = rig.directory.path().join("ballast");
    let free = usize::try_from(super::super::quota::disk(rig.directory.path()).unwrap().1).unwrap();
    std::fs::write(&path, vec![1; free - left]).unwrap();
    path
}

#[test]
#[ignore = "wants a tmpfs of 16 MiB: mount -t tmpfs -o size=16m tmpfs DIR; TMPDIR=DIR cargo test --lib -- --ignored a_full_disk"]
fn a_full_disk_is_waited_out_without_loss_or_repetition() {
    let rig = Rig::of_bytes(1 << 40);
    let (store, sink) = rig.one();
    let mut pages = 0;
    while !store.health().is_full {
        write(&store, sink, vec![noise_page(pages, 64)]);
        pages += 1;
    }
    let trouble = store.health().trouble.unwrap();
    assert!(trouble.what.contains("that the disk of state.path has"), "{trouble:?}");
    for left in [0, 4096, 40_000, 150_000] {
        println!("with {left} bytes left");
        let ballast = ballast(&rig, left);
        let mut failures = 0;
        while failures < 2 {
            let ops = vec![noise_page(pages, 64), park(u128::from(pages) + 1), leave_page(pages - 1, 1)];
            let kept = progress(pages, Some(at(pages, 1)), &[]);
            let mut answer = store.submit(Batch { sink, ops, progress: Some(kept.clone()) });
            pages += 1;
            wait_until("written or in trouble", || {
                let trouble = store.health().trouble.is_some_and(|trouble| trouble.what.contains("is full: nothing"));
                trouble || answer.try_recv().is_ok()
            });
            if store.health().trouble.is_none_or(|trouble| !trouble.what.contains("is full: nothing")) {
                continue;
            }
            failures += 1;
            std::fs::write(&ballast, "").unwrap();
            wait_until("it is durable", || loaded(&store).progress == Some(kept.clone()));
            let kept = loaded(&store);
            assert_eq!(kept.deliveries.last().unwrap().id.0, u128::from(pages));
            assert_eq!(kept.overflow.next_page, pages);
            wait_until("trouble is over", || {
                store.health().trouble.is_none_or(|trouble| !trouble.what.contains("is full: nothing"))
            });
            if failures < 2 {
                super::full::ballast(&rig, left);
            }
        }
        write(&store, sink, (0..pages).map(|page| leave_page(page, 64)).collect());
        write(&store, sink, vec![noise_page(pages, 64)]);
        pages += 1;
    }
    wait_until("there is room", || !store.health().is_full);
    store.close();
    opened_on_a_full_disk(&rig, pages);
}

fn opened_on_a_full_disk(rig: &Rig, pages: u64) {
    for left in [0, 4096, 20_000, 40_000, 80_000] {
        let ballast = ballast(rig, left);
        match Store::open(&rig.config, 1) {
            Ok(store) => assert_eq!(loaded(&store).overflow.next_page, pages),
            Err(error) => {
                println!("{left} bytes left: {error:?}");
                assert!(!error.is_lasting());
            }
        }
        std::fs::write(&ballast, "").unwrap();
    }
    for left in [0, 4096, 20_000, 60_000, 100_000] {
        let new = Rig::of_bytes(1 << 30);
        let ballast = ballast(rig, left);
        if let Err(error) = Store::open(&new.config, 1) {
            println!("{left} bytes left: {error:?}");
            assert!(!error.is_lasting());
        }
        std::fs::write(&ballast, "").unwrap();
        drop(new.one());
    }
}

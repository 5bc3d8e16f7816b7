//! Somebody else reads the store's files while the daemon writes them.

use std::time::Instant;

use rusqlite::Connection;

use super::*;

/// A message of 512 KiB that does not pack.
fn large_page(page: u64) -> Op {
    let mut rng = fastrand::Rng::with_seed(page);
    let json: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(512 << 10).collect();
    Op::Page { page, messages: vec![KeptMessage { json: Bytes::from(json), ..message(page, 1) }] }
}

#[test]
fn a_reader_beside_the_daemon_makes_no_commit_wait() {
    let rig = Rig::of_bytes(64 << 20);
    let (store, sink) = rig.one();
    let reader = Connection::open(rig.config.path.join("state.db")).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM sink").unwrap();
    let began = Instant::now();
    (0..40)
        .for_each(|page| write(&store, sink, vec![large_page(page), Op::Leave(vec![Home::Page { page, index: 0 }])]));
    assert!(began.elapsed() < Duration::from_secs(20), "forty commits took {:?}", began.elapsed());
    let wal = store.health().wal_bytes;
    assert!(wal > 4 << 20, "it cannot be emptied, and shows: {wal} bytes");
    drop(reader);
    wait_until("the WAL is short again, without a write", || store.health().wal_bytes <= 4 << 20);
}

#[test]
fn a_reader_of_the_log_does_not_make_it_grow_beyond_its_part() {
    let rig = Rig::of_bytes(8 << 20);
    let (store, _) = rig.one();
    let reader = Connection::open(rig.config.path.join("log.db")).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM attempt").unwrap();
    let wal = rig.config.path.join("log.db-wal");
    let wal_bytes = || wal.metadata().unwrap().len();
    wait_until("rows are lost", || {
        (0..20).for_each(|id| store.log(logging::attempt_row(id, 1, 0, Some("timeout"))));
        store.health().log_rows_lost > 0 || wal_bytes() > 1 << 20
    });
    assert!(wal_bytes() < 1 << 19, "{} bytes", wal_bytes());
}

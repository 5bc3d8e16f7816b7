//! The log: what is written, what goes, what is lost.

use std::sync::Arc;
use std::time::SystemTime;

use rusqlite::Connection;

use super::super::ledger::micros;
use super::super::log::{AttemptRow, DeliveryRow};
use super::*;

fn delivery_row(id: u128, finished_micros: i64) -> LogRow {
    LogRow::Delivery(Box::new(DeliveryRow {
        id: DeliveryId(id),
        sink: "orders".into(),
        parent: Some(DeliveryId(7)),
        state: "delivered",
        messages: 2,
        events: vec!["public.orders.insert".into(), "public.\"o\".update".into()],
        groups: vec!["1".into()],
        positions: (at(1, 2), at(3, 4)),
        body_bytes: 99,
        attempts: 1,
        created_micros: 5,
        finished_micros,
        last_status: Some(200),
    }))
}

pub(super) fn attempt_row(id: u128, number: u32, started_micros: i64, category: Option<&'static str>) -> LogRow {
    LogRow::Attempt(Box::new(AttemptRow {
        delivery: DeliveryId(id),
        sink: Arc::from("orders"),
        number,
        started_micros,
        duration_micros: 11,
        status: Some(503),
        category,
        error: category.map(str::to_owned),
        response: Bytes::from_static(b"oh no"),
        response_truncated: true,
    }))
}

fn now_micros() -> i64 {
    micros(SystemTime::now())
}

fn log_db(rig: &Rig) -> Connection {
    Connection::open(rig.config.path.join("log.db")).unwrap()
}

fn count(db: &Connection, what: &str) -> i64 {
    db.query_row(&format!("SELECT count(*) FROM {what}"), [], |row| row.get(0)).unwrap()
}

#[test]
fn rows_are_written_soon_and_as_they_are() {
    let rig = Rig::new();
    let (store, _) = rig.one();
    let now = now_micros();
    store.log(attempt_row(1, 1, now, Some("timeout")));
    store.log(delivery_row(1, now));
    let db = log_db(&rig);
    wait_until("both are there", || count(&db, "delivery") + count(&db, "attempt") == 2);
    let row = |sql| -> Vec<String> {
        let mut select = db.prepare(sql).unwrap();
        let columns = select.column_count();
        select.query_row([], |row| (1..columns).map(|n| Ok(format!("{:?}", row.get_ref(n)?))).collect()).unwrap()
    };
    let delivery =
        row("SELECT seq, hex(id), state, events, groups, first_lsn, first_idx, last_lsn, last_idx, messages,
        body_bytes, attempts, last_status FROM delivery");
    let texts = ["00000000000000000000000000000001", "delivered", r#"["public.orders.insert","public.\"o\".update"]"#];
    let mut expected: Vec<_> =
        texts.iter().chain(&[r#"["1"]"#]).map(|text| format!("Text({:?})", text.as_bytes())).collect();
    expected.extend([1, 2, 3, 4, 2, 99, 1, 200].map(|number| format!("Integer({number})")));
    assert_eq!(delivery, expected);
    let attempt = row("SELECT seq, number, duration, status, response_truncated, length(response) FROM attempt");
    assert_eq!(attempt, [1, 11, 503, 1, 5].map(|number| format!("Integer({number})")));
    assert_eq!(store.health().log_rows_lost, 0);
}

#[test]
fn what_was_logged_before_closing_is_there_after() {
    let rig = Rig::new();
    let (store, _) = rig.one();
    (0..3000).for_each(|n| store.log(delivery_row(n, now_micros())));
    store.close();
    assert_eq!(count(&log_db(&rig), "delivery"), 3000);
}

#[test]
fn deliveries_beyond_the_limit_go_with_their_attempts() {
    let mut rig = Rig::new();
    rig.config.log_max_rows = 10;
    let (store, sink) = rig.one();
    write(&store, sink, vec![park(1), park(2)]);
    let now = now_micros();
    for id in 1..=3000 {
        store.log(attempt_row(id, 1, now, Some("timeout")));
        store.log(attempt_row(id, 2, now, None));
        store.log(delivery_row(id, now));
    }
    let db = log_db(&rig);
    wait_until("ten are left", || count(&db, "delivery") == 10);
    // The failures of two deliveries that the store keeps stay.
    wait_until("their attempts are gone", || count(&db, "attempt") == 10 * 2 + 2);
    assert_eq!(
        count(
            &db,
            "attempt WHERE category IS NOT NULL AND number = 1 AND delivery < x'00000000000000000000000000000003'"
        ),
        2
    );
}

#[test]
fn rows_past_their_retention_go_and_failures_of_what_is_kept_stay() {
    let mut rig = Rig::new();
    rig.config.log_retention = Duration::from_secs(3600);
    let (store, sink) = rig.one();
    write(&store, sink, vec![park(1)]);
    let (now, old) = (now_micros(), now_micros() - 3_601_000_000);
    // Attempts whose delivery has not ended.
    store.log(attempt_row(4, 1, old, Some("timeout")));
    for id in 1..=3 {
        let at = if id == 3 { now } else { old };
        store.log(attempt_row(id, 1, at, Some("timeout")));
        store.log(attempt_row(id, 2, at, None));
        store.log(delivery_row(id, at));
    }
    store.log(attempt_row(5, 1, now, Some("timeout")));
    let db = log_db(&rig);
    wait_until("the new ones are there", || {
        count(&db, "attempt WHERE delivery = x'00000000000000000000000000000005'") == 1
    });
    wait_until("one delivery is left", || count(&db, "delivery") == 1);
    wait_until("the old attempts are gone", || count(&db, "attempt") == 1 + 2 + 1);
    store.close();
    let (store, sink) = rig.one();
    write(&store, sink, vec![Op::Delivered(DeliveryId(1))]);
    store.close();
    let (_store, _) = rig.one();
    wait_until("and the failure of what was delivered", || count(&db, "attempt") == 2 + 1);
}

#[test]
fn of_a_delivery_the_last_hundred_attempts_are_kept() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    write(&store, sink, vec![park(1)]);
    (1..=250).for_each(|number| store.log(attempt_row(1, number, now_micros(), Some("timeout"))));
    store.close();
    let db = log_db(&rig);
    assert_eq!((count(&db, "attempt"), count(&db, "attempt WHERE number > 150")), (100, 100));
}

#[test]
fn rows_for_which_there_is_no_time_are_lost_and_counted_and_delay_nothing() {
    let rig = Rig::new();
    let (store, sink) = rig.one();
    let db = log_db(&rig);
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    (0..20_000).for_each(|n| store.log(delivery_row(n, now_micros())));
    assert!(store.health().log_rows_lost >= 20_000 - 2 * 8192, "{:?}", store.health());
    write(&store, sink, vec![park(1)]);
    let lost = store.health().log_rows_lost;
    wait_until("rows that cannot be written are lost too", || store.health().log_rows_lost > lost);
    assert_eq!(store.health().trouble, None, "the log is no trouble");
    db.execute_batch("ROLLBACK").unwrap();
    store.close();
}

#[test]
fn the_log_keeps_to_its_share_of_the_disk() {
    let rig = Rig::of_bytes(8 << 20);
    let (store, _) = rig.one();
    let files = || -> u64 {
        ["log.db", "log.db-wal"]
            .iter()
            .map(|name| rig.config.path.join(name).metadata().map_or(0, |file| file.len()))
            .sum()
    };
    for number in 0..400 {
        let LogRow::Attempt(mut row) = attempt_row(number, 1, now_micros(), Some("timeout")) else { unreachable!() };
        row.response = Bytes::from(vec![b'r'; 16 << 10]);
        store.log(LogRow::Attempt(row));
        store.log(delivery_row(number, now_micros()));
        assert!(files() <= 1 << 20, "{} bytes", files());
        std::thread::sleep(Duration::from_millis(2));
    }
    let db = log_db(&rig);
    // A slow disk may have cost rows of the flood above, which is what a log is allowed to lose.
    wait_until("the last is there", || {
        store.log(delivery_row(399, now_micros()));
        count(&db, "delivery WHERE hex(id) LIKE '%18F'") > 0
    });
    assert!(count(&db, "attempt") > 10);
    assert!(files() <= 1 << 20, "{} bytes", files());
}

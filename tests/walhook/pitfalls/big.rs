//! Large transactions, many of them, and what is never asked of the server.

use std::time::Duration;

use super::SLOT;
use crate::daemon::{Config, Daemon, root};
use crate::order::counters;
use crate::outage::wait_confirmed;
use crate::postgres::{Postgres, state, until_within};
use crate::pressure::PEAK_KIB;
use crate::receiver::{Keep, Receiver, Reply, row_of};

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_52_of_100000_subtransactions_only_what_was_kept_arrives_in_flat_memory() {
    const SUBTRANSACTIONS: i64 = 100_000;
    let postgres = Postgres::start();
    counters(&postgres).await;
    let receiver = Receiver::with(Keep::Ledger, |_| Reply::status(200), row_of).await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "batch_size = 100")).await;
    // A block with EXCEPTION is a subtransaction. Every third is rolled back, every ninth within another.
    let transaction = format!(
        "BEGIN;
        DO $$ BEGIN
            FOR i IN 1..{SUBTRANSACTIONS} LOOP
                BEGIN
                    INSERT INTO counters VALUES (i, 0);
                    IF i % 9 = 0 THEN
                        BEGIN UPDATE counters SET n = 1 WHERE id = i; RAISE EXCEPTION 'inner'; EXCEPTION WHEN OTHERS THEN NULL; END;
                    ELSIF i % 3 = 0 THEN
                        RAISE EXCEPTION 'back';
                    END IF;
                EXCEPTION WHEN OTHERS THEN NULL;
                END;
            END LOOP;
        END $$;
        SAVEPOINT a; DELETE FROM counters; SAVEPOINT b; INSERT INTO counters VALUES (0, 0); ROLLBACK TO a;
        SAVEPOINT c; INSERT INTO counters VALUES (-1, 0); RELEASE c;
        COMMIT"
    );
    postgres.sql(&transaction).await;
    let kept = |i: i64| i % 9 == 0 || i % 3 != 0;
    let expected = (1..=SUBTRANSACTIONS).filter(|i| kept(*i)).count() + 1;
    until_within(Duration::from_secs(200), "what was kept", || async {
        let acknowledged = receiver.ledger(|ledger| ledger.acknowledged());
        state(acknowledged >= expected, acknowledged)
    })
    .await;
    let end = postgres.value("SELECT pg_current_wal_lsn()").await;
    wait_confirmed(&postgres, &end, Duration::from_secs(60)).await;
    receiver.ledger(|ledger| {
        ledger.assert_clean();
        assert_eq!((ledger.acknowledged(), ledger.repeats), (expected, 0));
        assert!((1..=SUBTRANSACTIONS).all(|i| ledger.came(&format!("counters/{i}"), 0) == kept(i)));
        assert!(ledger.came("counters/-1", 0));
    });
    let peak = daemon.peak_kib();
    println!("peak {peak} KiB");
    assert!(peak <= PEAK_KIB, "{peak} KiB resident at the peak");
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_21_empty_transactions_by_the_thousand_send_nothing_and_move_the_slot() {
    let postgres = Postgres::start();
    counters(&postgres).await;
    postgres.sql("CREATE SCHEMA hidden; CREATE TABLE hidden.other (i int)").await;
    let receiver = Receiver::start().await;
    let daemon = Daemon::start(&Config::one_sink(&postgres, &receiver.url(), "")).await;
    // Postgres 14 sends Begin and Commit for each of them, later versions nothing.
    for _ in 0..2 {
        postgres
            .sql("DO $$ BEGIN FOR i IN 1..5000 LOOP INSERT INTO hidden.other VALUES (i); COMMIT; END LOOP; END $$")
            .await;
        let end = postgres.value("SELECT pg_current_wal_lsn()").await;
        wait_confirmed(&postgres, &end, Duration::from_secs(60)).await;
    }
    assert_eq!(receiver.request_count(), 0);
    postgres.sql("INSERT INTO counters VALUES (1, 0)").await;
    receiver.wait_acknowledged(1).await;
    assert!(postgres.reader(SLOT).await.is_some());
    assert!(daemon.sigterm().await.success());
}

#[test]
fn pitfall_53_no_code_reads_a_slot_by_sql() {
    let mut folders = vec![root().join("src")];
    let mut read = 0;
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let asks = ["pg_logical_slot_peek", "pg_logical_slot_get"].iter().any(|name| text.contains(name));
            let is_test = path.to_string_lossy().contains("tests");
            assert!(!asks || is_test, "{} decodes the WAL once more", path.display());
            read += 1;
        }
    }
    assert!(read > 50, "only {read} files");
}

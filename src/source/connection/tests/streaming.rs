//! The stream itself.

use super::*;
use crate::demo::cluster::roles::grants;

#[tokio::test]
async fn inserts_updates_and_deletes_come_decoded_and_a_clean_end_confirms() {
    let cluster = cluster("", &[]);
    let (client, mut replication) = stream(&cluster).await;
    let changes = "BEGIN; INSERT INTO t VALUES (1, 'one'); UPDATE t SET note = 'eins'; UPDATE t SET id = 2; DELETE FROM t; \
                   SELECT pg_logical_emit_message(true, 'mine', 'hello'); COMMIT";
    client.batch_execute(changes).await.unwrap();
    let messages = messages(&mut replication, is_commit).await;
    let [
        Message::Begin(begin),
        Message::Relation(relation),
        Message::Insert { new, .. },
        update,
        moved,
        delete,
        logical,
        commit,
    ] = &messages[..]
    else {
        panic!("{messages:?}")
    };
    assert_eq!((&*relation.namespace, &*relation.name, relation.columns.len()), ("public", "t", 2));
    assert_eq!((text(new, 0), text(new, 1)), (Some("1".into()), Some("one".into())));
    let Message::Update { old: None, new, .. } = update else { panic!("{update:?}") };
    assert_eq!(text(new, 1).as_deref(), Some("eins"));
    let Message::Update { old: Some(OldRow::Key(old)), new, .. } = moved else { panic!("{moved:?}") };
    assert_eq!((text(old, 0).as_deref(), text(old, 1), text(new, 0).as_deref()), (Some("1"), None, Some("2")));
    let Message::Delete { old: OldRow::Key(old), .. } = delete else { panic!("{delete:?}") };
    assert_eq!(text(old, 0).as_deref(), Some("2"));
    let Message::Logical { transactional: true, prefix, content, .. } = logical else { panic!("{logical:?}") };
    assert_eq!((&prefix[..], &content[..]), (&b"mine"[..], &b"hello"[..]));
    let Message::Commit { commit_lsn, end_lsn, commit_micros } = commit else { panic!("{commit:?}") };
    assert_eq!((*commit_lsn, *commit_micros), (begin.commit_lsn, begin.commit_micros));
    let age =
        SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_micros(u64::try_from(*commit_micros).unwrap()));
    assert!(age.unwrap() < Duration::from_secs(600));

    replication.finish(*end_lsn, *end_lsn).await.unwrap();
    let row = client.query_one("SELECT confirmed_flush_lsn::text FROM pg_replication_slots", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), end_lsn.to_string());
}

#[tokio::test]
async fn a_clean_end_is_found_in_the_midst_of_a_flood() {
    let cluster = cluster("", &[]);
    let (client, mut replication) = stream(&cluster).await;
    for start in 0..20 {
        let from = start * 10_000;
        let sql =
            format!("INSERT INTO t SELECT g, repeat('x', 100) FROM generate_series({from} + 1, {from} + 10000) g");
        client.batch_execute(&sql).await.unwrap();
    }
    let first = messages(&mut replication, is_commit).await;
    let Some(Message::Commit { end_lsn, .. }) = first.iter().find(|message| is_commit(message)) else { panic!() };
    replication.finish(*end_lsn, *end_lsn).await.unwrap();
    let row = client.query_one("SELECT confirmed_flush_lsn::text FROM pg_replication_slots", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), end_lsn.to_string());
}

#[tokio::test]
async fn reads_that_are_cancelled_lose_nothing() {
    let cluster = cluster("", &[]);
    let (client, mut replication) = stream(&cluster).await;
    let rows = 20_000;
    let sql = format!("INSERT INTO t SELECT g, repeat('x', g % 700) FROM generate_series(1, {rows}) g");
    let writer = tokio::spawn(async move { client.batch_execute(&sql).await.map(|()| client) });
    let mut random = fastrand::Rng::with_seed(7);
    let (mut seen, mut cancelled) = (0, 0);
    while seen < rows {
        // Polls the read a random number of times, then drops it.
        let mut polls = random.u32(1..4);
        let read = {
            let mut read = std::pin::pin!(replication.read());
            std::future::poll_fn(|cx| {
                polls -= 1;
                match read.as_mut().poll(cx) {
                    std::task::Poll::Pending if polls == 0 => std::task::Poll::Ready(None),
                    std::task::Poll::Pending => {
                        cx.waker().wake_by_ref();
                        std::task::Poll::Pending
                    }
                    ready => ready.map(Some),
                }
            })
            .await
        };
        let Some(gulp) = read else {
            cancelled += 1;
            tokio::task::yield_now().await;
            continue;
        };
        for frame in gulp.unwrap() {
            let Frame::XLogData { payload, .. } = frame else { continue };
            if let Message::Insert { new, .. } = decode(payload).unwrap() {
                seen += 1;
                assert_eq!(text(&new, 0), Some(seen.to_string()));
                assert_eq!(text(&new, 1).unwrap().len(), seen % 700);
            }
        }
        if random.u8(0..10) == 0 {
            replication.status(Lsn::ZERO, Lsn::ZERO, true).await.unwrap();
        }
    }
    assert!(cancelled > 10, "only {cancelled} reads were cancelled");
    writer.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_large_field_passes() {
    let cluster = cluster("", &[]);
    let (client, mut replication) = stream(&cluster).await;
    client.batch_execute("INSERT INTO t VALUES (1, repeat('0123456789', 2000000)), (2, 'small')").await.unwrap();
    let messages = messages(&mut replication, is_commit).await;
    let inserts = messages
        .iter()
        .filter_map(|m| if let Message::Insert { new, .. } = m { Some(text(new, 1).unwrap()) } else { None });
    let inserts: Vec<String> = inserts.collect();
    assert!(inserts == ["0123456789".repeat(2_000_000), "small".into()], "{:?}", inserts.iter().map(String::len));
    let (held, rows) = (replication.memory.held(), 20_000_000);
    assert!((rows..rows * 3 / 2).contains(&held), "{held}");
    drop(messages);
    assert_eq!(replication.memory.held(), 0);
}

/// Postgres cannot convert from SQL_ASCII, and would never get past a row that is not UTF-8.
#[tokio::test]
async fn a_database_without_an_encoding_gives_its_bytes_as_they_are() {
    let cluster = cluster("", &[]);
    let create = "CREATE DATABASE raw ENCODING 'SQL_ASCII' TEMPLATE template0";
    admin(&cluster).await.batch_execute(create).await.unwrap();
    let url = cluster.url("raw");
    let admin = client(&cluster.url_as(Role::Superuser, "raw")).await;
    admin.batch_execute(&grants("raw")).await.unwrap();
    let client = client(&url).await;
    client.batch_execute("CREATE TABLE t (note text); CREATE PUBLICATION p FOR TABLE t").await.unwrap();
    client.batch_execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')").await.unwrap();
    client.batch_execute("INSERT INTO t VALUES (convert_from('\\xe9', 'SQL_ASCII'))").await.unwrap();
    let mut replication = replication(&url).await.unwrap();
    replication.start("s", "p", Lsn::ZERO).await.unwrap();
    let messages = messages(&mut replication, is_commit).await;
    let new = messages.iter().find_map(|m| if let Message::Insert { new, .. } = m { Some(new) } else { None }).unwrap();
    assert_eq!(new.value(0), Some(Datum::Text(b"\xe9")));
}

#[tokio::test]
async fn a_killed_walsender_ends_the_stream_with_the_reason() {
    let cluster = cluster("", &[]);
    let (client, mut replication) = stream(&cluster).await;
    client.execute("SELECT pg_terminate_backend($1)", &[&replication.pid()]).await.unwrap();
    let error = loop {
        match replication.read().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(error.sqlstate() == Some("57P01") || matches!(error, StreamError::Closed), "{error:?}");
}

#[tokio::test]
async fn pitfall_61_a_limit_of_transactions_ends_no_stream() {
    let cluster = cluster("", &[]);
    let admin = admin(&cluster).await;
    let version: String = admin.query_one("SHOW server_version_num", &[]).await.unwrap().get(0);
    if version.parse::<u32>().unwrap() < 170_000 {
        return;
    }
    admin.batch_execute("ALTER ROLE walhook SET transaction_timeout = '500ms'").await.unwrap();
    let (client, mut replication) = stream(&cluster).await;
    // More than the sockets hold: the walsender is in the midst of decoding it for as long as we do not read.
    let insert = "INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 20000) i";
    client.batch_execute(insert).await.unwrap();
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender' AND wait_event = 'WalSenderWriteData' \
                   AND now() - state_change > '1500 ms'";
    let walsenders = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'";
    while admin.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        let walsenders: i64 = admin.query_one(walsenders, &[]).await.unwrap().get(0);
        assert_eq!(walsenders, 1, "the server ended the stream");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    messages(&mut replication, is_commit).await;
}

/// Postgres 18 only warns where its predecessors end the stream; a role's settings must not silence that.
#[tokio::test]
async fn a_publication_that_is_gone_ends_the_stream() {
    let cluster = cluster("", &[]);
    let quiet = "ALTER ROLE walhook SET client_min_messages = 'error'";
    client(&cluster.url("postgres")).await.batch_execute(quiet).await.unwrap();
    let (client, mut replication) = stream(&cluster).await;
    for change in ["DROP PUBLICATION \"o'dd \"\"p\"", "INSERT INTO t VALUES (1)"] {
        client.batch_execute(change).await.unwrap();
    }
    let error = loop {
        match replication.read().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    match replication.server_version() {
        180_000.. => assert!(matches!(error, StreamError::PublicationSkipped { .. }), "{error:?}"),
        _ => assert_eq!(error.sqlstate(), Some("42704"), "{error:?}"),
    }
}

#[tokio::test]
async fn a_stopped_server_closes_the_stream() {
    let cluster = cluster("", &[]);
    let (client, mut replication) = stream(&cluster).await;
    drop(client);
    let stop = std::thread::scope(|scope| {
        let stop = scope.spawn(|| cluster.stop("immediate"));
        stop.join()
    });
    stop.unwrap().unwrap();
    let error = loop {
        if let Err(error) = replication.read().await {
            break error;
        }
    };
    let ended = matches!(error, StreamError::Closed | StreamError::Io(_) | StreamError::Server(_));
    assert!(ended, "{error:?}");
}

/// The one test in which time is the subject: the server gives up on a silent reader after `wal_sender_timeout`.
#[tokio::test]
async fn statuses_keep_the_walsender_alive_while_nobody_reads() {
    let cluster = cluster("", &[]);
    let impatient = format!("{}?options=-c%20wal_sender_timeout%3D1s", cluster.url("postgres"));
    let (client, mut replication) = stream_at(&impatient).await;
    // More than the buffers of both sockets take, so that the walsender waits for us.
    let sql = "INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(1, 30000) g";
    let writer = tokio::spawn(async move { client.batch_execute(sql).await.map(|()| client) });
    let mut quiet = 0;
    while quiet < 14 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        replication.status(Lsn::ZERO, Lsn::ZERO, false).await.unwrap();
        quiet += i32::from(writer.is_finished());
    }
    let client = writer.await.unwrap().unwrap();
    let alive = client.query("SELECT 1 FROM pg_stat_replication WHERE pid = $1", &[&replication.pid()]).await.unwrap();
    assert_eq!(alive.len(), 1);
    let mut inserts = 0;
    while inserts < 30_000 {
        for frame in replication.read().await.unwrap() {
            let Frame::XLogData { payload, .. } = frame else { continue };
            inserts += i32::from(matches!(decode(payload).unwrap(), Message::Insert { .. }));
        }
        replication.status(Lsn::ZERO, Lsn::ZERO, false).await.unwrap();
    }
    // Without statuses it gives up, and says nothing.
    let error = loop {
        if let Err(error) = replication.read().await {
            break error;
        }
    };
    assert!(matches!(error, StreamError::Closed), "{error:?}");
}

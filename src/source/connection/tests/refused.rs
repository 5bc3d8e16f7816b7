//! Every way of not being let in that can be brought about: what is said is that, and what is advised mends that.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// What a session of either kind is told.
async fn refusals(url: &str) -> Vec<ConnectError> {
    let stream = replication(url).await.err();
    let sql = sql(&address(url)).await.err();
    [stream, sql].into_iter().flatten().collect()
}

/// The sessions, of which limits of roles and databases count only those for SQL, are refused, with `what` in the error and `advice` in the advice; whether that lasts.
async fn assert_refused(url: &str, what: &str, advice: &str, lasts: bool) {
    let refusals = refusals(url).await;
    assert_eq!(refusals.len(), if what.contains("CONNECTION LIMIT") { 1 } else { 2 }, "{url}: {refusals:?}");
    for error in refusals {
        let (said, told) = (error.to_string(), error.advice());
        assert!(said.contains(what), "{url}: {said} ({error:?})");
        assert!(told.contains(advice), "{url}: {told} ({error:?})");
        assert_eq!(error.needs_a_person(), lasts, "{url}: {error:?}");
    }
}

#[tokio::test]
async fn what_the_server_has_against_a_role_or_a_database_is_told_apart() {
    let hba = "local all peered peer\nhostnossl all tls all reject\nhost all rejected all reject";
    let cluster = cluster(hba, &[("max_wal_senders", "2")]);
    let sql =
        "CREATE ROLE nologin REPLICATION; CREATE ROLE peered LOGIN REPLICATION; CREATE ROLE tls LOGIN REPLICATION;
        CREATE ROLE rejected LOGIN REPLICATION; CREATE ROLE limited LOGIN REPLICATION CONNECTION LIMIT 0;
        CREATE ROLE plain LOGIN; CREATE ROLE ordinary LOGIN REPLICATION";
    let admin = admin(&cluster).await;
    admin.batch_execute(sql).await.unwrap();
    for (name, sql) in [
        ("closed", "REVOKE CONNECT ON DATABASE closed FROM PUBLIC"),
        ("shut", "ALTER DATABASE shut ALLOW_CONNECTIONS false"),
        ("full", "ALTER DATABASE full CONNECTION LIMIT 0"),
    ] {
        let name = if name == "full" { "\"full\"" } else { name };
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        admin.batch_execute(&sql.replace("full", "\"full\"")).await.unwrap();
    }
    let at =
        |who: &str, database: &str| format!("postgres://{who}@127.0.0.1:{}/{database}?sslmode=disable", cluster.port());
    let socket =
        |who: &str| format!("host={} port={} user={who} dbname=postgres", cluster.dir().display(), cluster.port());
    for (url, what, advice, lasts) in [
        (at("nobody", "postgres"), "no such role", "CREATE ROLE", true),
        (at("nologin", "postgres"), "may not log in", "LOGIN", true),
        (at("limited", "postgres"), "CONNECTION LIMIT", "ALTER ROLE … CONNECTION LIMIT", false),
        (at("rejected", "postgres"), "pg_hba.conf", "scram-sha-256", true),
        (at("tls", "postgres"), "without TLS", "sslmode=require", true),
        (socket("peered"), "operating system", "host=localhost", true),
        (at("ordinary", "nowhere"), "no such database", "database's name", true),
        (at("ordinary", "closed"), "may not connect", "GRANT CONNECT", true),
        (at("ordinary", "shut"), "takes no connections", "ALLOW_CONNECTIONS", false),
        (at("ordinary", "full"), "database's CONNECTION LIMIT", "ALTER DATABASE", false),
        (at("ordinary", "postgres") + "&options=-c%20log_statement%3Dall", "option", "options", true),
        (at("ordinary", "postgres") + "&options=-c%20work_mem%3Dmuch", "option", "options", true),
        (at("ordinary", "postgres") + "&options=-c%20nonsense%3D1", "option", "options", true),
        (at("ordinary", "postgres") + "&options=-c%20DateStyle%3DGerman", "DateStyle", "options", true),
    ] {
        assert_refused(&url, what, advice, lasts).await;
    }
    let error = replication(&at("plain", "postgres")).await.unwrap_err();
    assert!(error.to_string().contains("may not replicate") && error.advice().contains("REPLICATION"), "{error:?}");
    let _senders = [
        replication(&at("ordinary", "postgres")).await.unwrap(),
        replication(&at("ordinary", "postgres")).await.unwrap(),
    ];
    let error = replication(&at("ordinary", "postgres")).await.unwrap_err();
    assert!(
        error.to_string().contains("max_wal_senders") && error.advice().contains("pg_stat_replication"),
        "{error:?}"
    );
    assert!(!error.needs_a_person(), "{error:?}");
}

#[tokio::test]
async fn a_server_without_connections_left_says_which_are() {
    let cluster =
        cluster("", &[("max_connections", "5"), ("superuser_reserved_connections", "2"), ("max_wal_senders", "0")]);
    let (ordinary, superuser) = (cluster.url("postgres"), cluster.url_as(Role::Superuser, "postgres"));
    let mut taken = Vec::new();
    while let Ok((client, driver)) = sql(&address(&ordinary)).await {
        tokio::spawn(driver);
        taken.push(client);
    }
    let error = sql(&address(&ordinary)).await.err().unwrap();
    assert!(error.to_string().contains("reserved") && error.advice().contains("max_connections"), "{error:?}");
    while let Ok((client, driver)) = sql(&address(&superuser)).await {
        tokio::spawn(driver);
        taken.push(client);
    }
    let error = sql(&address(&superuser)).await.err().unwrap();
    assert!(error.to_string().contains("all of max_connections") && !error.needs_a_person(), "{error:?}");
}

/// A service that is not Postgres: it takes every connection, reads what comes, and does this with it.
async fn service(answers: &[&[u8]]) -> u16 {
    let answers: Vec<Vec<u8>> = answers.iter().map(|answer| answer.to_vec()).collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answers = answers.clone();
            tokio::spawn(async move {
                for answer in &answers {
                    let mut asked = [0; 4096];
                    if stream.read(&mut asked).await.is_ok_and(|bytes| bytes == 0)
                        || stream.write_all(answer).await.is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// An ErrorResponse as poolers send it.
fn error_response(code: &str, message: &str) -> Vec<u8> {
    let fields = format!("SFATAL\0C{code}\0M{message}\0\0");
    let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
    [b"E".as_slice(), &length, fields.as_bytes()].concat()
}

#[tokio::test]
async fn what_answers_and_is_not_postgres_is_told_apart_and_never_blamed_on_the_password() {
    let http: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    let alert: &[u8] = &[0x15, 3, 1, 0, 2, 2, 0x46];
    let no_replication = &*error_response("08P01", "unsupported startup parameter: replication");
    let no_tenant = &*error_response("XX000", "Tenant or user not found");
    for (answers, sslmode, what, advice) in [
        (&[http][..], "prefer", "HTTP", "port 5432"),
        (&[http], "require", "HTTP", "port 5432"),
        (&[http], "disable", "", "port 5432"),
        (&[alert], "prefer", "TLS from the first byte", "port 5432"),
        (&[b"-ERR unknown command\r\n"], "require", "something else", "port 5432"),
        (&[], "require", "closed it when it was asked for TLS", "load balancer"),
        (&[], "prefer", "", "load balancer"),
        (&[], "disable", "", "load balancer"),
        (&[b"N"], "require", "does not offer TLS", "ssl = on"),
        (&[b"N"], "prefer", "", "load balancer"),
        (&[b"S"], "require", "in the middle of the TLS handshake", "load balancer"),
        (&[b"S", b"SH-2.0-OpenSSH_9.2\r\n"], "require", "does not speak TLS", "host and port"),
        (&[b"N", no_replication], "prefer", "pooler", "direct address"),
        (&[no_replication], "disable", "pooler", "direct address"),
        (&[no_tenant], "disable", "pooler of many databases", "direct address"),
    ] {
        let url =
            format!("postgres://me:secret@127.0.0.1:{}/x?sslmode={sslmode}&connect_timeout=5", service(answers).await);
        let refusals = refusals(&url).await;
        assert_eq!(refusals.len(), 2, "{answers:?} {sslmode}");
        for error in refusals {
            let (said, told) = (error.to_string(), error.advice());
            assert!(said.contains(what), "{answers:?} {sslmode}: {said} ({error:?})");
            assert!(told.contains(advice), "{answers:?} {sslmode}: {told} ({error:?})");
            assert!(!told.contains("password") && !told.contains("pg_hba"), "{told}");
            assert!(!format!("{said} {told} {error:?}").contains("secret"), "{error:?}");
        }
    }
}

#[tokio::test]
async fn a_server_that_does_not_know_a_setting_of_ours_is_older_and_the_address_is_not_blamed() {
    let unknown = error_response("42704", "unrecognized configuration parameter \"idle_session_timeout\"");
    let url = format!("postgres://me@127.0.0.1:{}/x?sslmode=disable", service(&[&unknown]).await);
    assert_refused(&url, "since 14", "Postgres 14 and later", true).await;
}

#[tokio::test]
async fn who_does_not_answer_is_told_apart() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let directory = tempfile::tempdir().unwrap();
    for (url, what, advice) in [
        (format!("postgres://me@127.0.0.1:{closed}/x"), "could not reach", "nobody listens"),
        ("postgres://me@nowhere.invalid/x".to_owned(), "find the address", "name resolution"),
        (format!("host={} user=me dbname=x", directory.path().display()), "could not reach", "no socket"),
        ("host=/nowhere user=me dbname=x".to_owned(), "could not reach", "no socket"),
        (format!("host=/{} user=me dbname=x", "a".repeat(200)), "could not reach", "too long"),
    ] {
        assert_refused(&url, what, advice, false).await;
    }
}

//! Against a real server.
#![expect(clippy::disallowed_methods, reason = "tasks that end with the test's runtime")]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

use super::*;
use crate::change::{Datum, OldRow, Tuple};
use crate::demo::cluster::roles::Role;
use crate::demo::cluster::{Cluster, ClusterOptions};
use crate::source::pgoutput::{Message, decode};

mod encrypted;
mod entering;
mod refused;
mod streaming;

/// A cluster with these lines of pg_hba.conf before trust for everyone else.
fn cluster(hba: &str, settings: &[(&str, &str)]) -> Cluster {
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let all = "local all all trust\nhost all all 127.0.0.1/32 trust\nlocal replication all trust\nhost replication all 127.0.0.1/32 trust\n";
    let hba = Some(format!("{hba}\n{all}"));
    Cluster::start(&ClusterOptions { settings, hba, ..ClusterOptions::default() }).unwrap()
}

fn address(url: &str) -> PgAddress {
    PgAddress::parse(url).unwrap()
}

/// A SQL session whose driver runs as long as the test.
async fn client(url: &str) -> tokio_postgres::Client {
    let (client, driver) = sql(&address(url)).await.unwrap();
    tokio::spawn(driver);
    client.batch_execute("RESET search_path").await.unwrap();
    client
}

/// The same as superuser.
async fn admin(cluster: &Cluster) -> tokio_postgres::Client {
    client(&cluster.url_as(Role::Superuser, "postgres")).await
}

async fn replication(url: &str) -> Result<Replication, ConnectError> {
    Replication::connect(&address(url), &Memory::new(1 << 30)).await
}

/// Lets both kinds of session in, or neither.
async fn enter(url: &str) -> Result<(), ConnectError> {
    let stream = replication(url).await;
    let sql = sql(&address(url)).await;
    assert_eq!(stream.is_ok(), sql.is_ok(), "{:?} {:?}", stream.as_ref().err(), sql.as_ref().err());
    if let (Err(stream), Err(sql)) = (&stream, &sql) {
        assert_eq!(stream.sqlstate(), sql.sqlstate());
    }
    stream.map(|_| ())
}

/// A table, its publication and a slot, and a stream that reads it.
async fn stream(cluster: &Cluster) -> (tokio_postgres::Client, Replication) {
    stream_at(&cluster.url("postgres")).await
}

async fn stream_at(url: &str) -> (tokio_postgres::Client, Replication) {
    let client = client(url).await;
    let setup = "CREATE TABLE t (id int PRIMARY KEY, note text); CREATE PUBLICATION \"o'dd \"\"p\" FOR TABLE t";
    client.batch_execute(setup).await.unwrap();
    client.batch_execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')").await.unwrap();
    let mut replication = replication(url).await.unwrap();
    replication.start("s", "o'dd \"p", Lsn::ZERO).await.unwrap();
    (client, replication)
}

/// Reads on until a message for which `last` is true, and returns all of them.
async fn messages(replication: &mut Replication, last: impl Fn(&Message) -> bool) -> Vec<Message> {
    let mut messages = Vec::new();
    loop {
        for frame in replication.read().await.unwrap() {
            let Frame::XLogData { payload, .. } = frame else { continue };
            messages.push(decode(payload).unwrap());
        }
        if messages.iter().any(&last) {
            return messages;
        }
    }
}

fn is_commit(message: &Message) -> bool {
    matches!(message, Message::Commit { .. })
}

fn text(tuple: &Tuple, index: usize) -> Option<String> {
    match tuple.value(index).unwrap() {
        Datum::Text(text) => Some(String::from_utf8(text.to_vec()).unwrap()),
        Datum::Null | Datum::Unchanged | Datum::TooLarge(_) => None,
    }
}

//! The replies of the receiver, and how their bytes are put on the wire.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Barrier;

use crate::request::Request;

/// What to do with a request.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// A whole answer.
    Answer { status: u16, headers: Vec<(String, String)>, body: Vec<u8> },
    /// Another reply after a while.
    After(Duration, Box<Self>),
    /// Another reply once as many requests wait for theirs as are to meet.
    Meet(Arc<Barrier>, Box<Self>),
    /// Nothing, until the client hangs up.
    Never,
    /// A TCP reset.
    Reset,
    /// A status line, then a header byte every 50 ms for ever.
    DripHeaders,
    /// 200 and a body of which a byte comes every 50 ms for ever.
    DripBody,
    /// This status and a body of a gigabyte.
    Gigabyte(u16),
    /// This status and a gzip body of some kilobytes that unpacks to about 10 MB.
    GzipBomb(u16),
    /// 200 and half of the body that content-length announces.
    PartialBody,
    /// Bytes that are not HTTP.
    Garbage,
}

impl Reply {
    /// An empty answer.
    pub(crate) fn status(status: u16) -> Self {
        Self::Answer { status, headers: Vec::new(), body: Vec::new() }
    }

    /// An empty answer with a header.
    pub(crate) fn with_header(status: u16, name: &str, value: &str) -> Self {
        Self::Answer { status, headers: vec![(name.to_owned(), value.to_owned())], body: Vec::new() }
    }

    pub(crate) fn acknowledges(&self) -> bool {
        match self {
            Self::Answer { status, .. } | Self::Gigabyte(status) | Self::GzipBomb(status) => {
                (200..300).contains(status)
            }
            Self::After(_, then) | Self::Meet(_, then) => then.acknowledges(),
            Self::Never | Self::Reset | Self::DripHeaders | Self::DripBody | Self::PartialBody | Self::Garbage => false,
        }
    }
}

/// The first requests of the first `count` groups are answered only when all of them are there, so that a sender that does
/// not send them in parallel comes to no end. A request belongs to the group of its first message, if it has one.
pub(crate) fn parallel(
    count: usize,
    group_of: impl Fn(&Value) -> Option<String> + Send + Sync,
    script: impl Fn(&Request) -> Reply + Send + Sync,
) -> impl Fn(&Request) -> Reply + Send + Sync {
    let (seen, barrier) = (Mutex::new(HashSet::new()), Arc::new(Barrier::new(count)));
    move |request| {
        let reply = script(request);
        let Some(group) = request.messages.first().and_then(&group_of) else { return reply };
        let mut seen = seen.lock().unwrap();
        if seen.len() < count && seen.insert(group) {
            Reply::Meet(Arc::clone(&barrier), Box::new(reply))
        } else {
            reply
        }
    }
}

/// Fails `percent` of the requests with one of `statuses` and waits before every answer; the same seed, the same answers.
pub(crate) fn unreliable(
    seed: u64,
    percent: u8,
    statuses: &'static [u16],
    delay_millis: Range<u64>,
) -> impl Fn(&Request) -> Reply + Send + Sync {
    let random = Mutex::new(fastrand::Rng::with_seed(seed));
    move |_| {
        let mut random = random.lock().unwrap();
        let wait = Duration::from_millis(if delay_millis.is_empty() { 0 } else { random.u64(delay_millis.clone()) });
        let failed = random.u8(0..100) < percent;
        let status = if failed { *random.choice(statuses).unwrap_or(&500) } else { 200 };
        Reply::After(wait, Box::new(Reply::status(status)))
    }
}

pub(crate) fn head(status: u16, headers: &[(String, String)], length: u64) -> String {
    let mut head = format!("HTTP/1.1 {status} Status\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    // RFC 9110: 204 has neither body nor content-length.
    let length = if status == 204 { String::new() } else { format!("content-length: {length}\r\n") };
    head + &length + "\r\n"
}

/// Whether the client closes within `wait`. Clients do not send ahead, so bytes would be a fault of the client; they are
/// taken for life.
pub(crate) async fn hung_up_within(socket: &TcpStream, wait: Duration) -> bool {
    let mut byte = [0];
    match tokio::time::timeout(wait, socket.peek(&mut byte)).await {
        Ok(Ok(0) | Err(_)) => true,
        Ok(Ok(_)) => {
            tokio::time::sleep(wait).await;
            false
        }
        Err(_) => false,
    }
}

pub(crate) async fn drip(socket: &mut TcpStream, start: &str) {
    if socket.write_all(start.as_bytes()).await.is_err() {
        return;
    }
    while !hung_up_within(socket, Duration::from_millis(50)).await && socket.write_all(b"x").await.is_ok() {}
}

pub(crate) async fn gigabyte(socket: &mut TcpStream, status: u16) {
    let chunk = vec![b'x'; 1 << 20];
    if socket.write_all(head(status, &[], 1 << 30).as_bytes()).await.is_ok() {
        for _ in 0..1 << 10 {
            if socket.write_all(&chunk).await.is_err() {
                return;
            }
        }
    }
}

/// A gzip file of 10,000 members of a kilobyte of zeros each (RFC 1952 allows members one after another).
pub(crate) fn gzip_bomb() -> Vec<u8> {
    /// `head -c 1024 /dev/zero | gzip -9n`
    const MEMBER: [u8; 29] =
        [31, 139, 8, 0, 0, 0, 0, 0, 2, 3, 99, 96, 24, 5, 163, 96, 20, 140, 84, 0, 0, 46, 175, 181, 239, 0, 4, 0, 0];
    MEMBER.repeat(10_000)
}

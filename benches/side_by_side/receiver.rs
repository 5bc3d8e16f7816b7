//! The endpoint: this binary again, in a process of its own so that its CPU time is not walhook's.
//!
//! It answers every request with an empty 200, and counts messages by the occurrences of a key that each has once. One
//! thread, connections kept alive, bodies with a content-length only. On standard output it says where it listens,
//! when it has counted as many messages as it was told to expect, and, when its standard input ends, how many there were
//! in all.
//!
//! It may be away at first, until a line comes on its standard input: its port refuses connections, or every answer is a
//! 503. What is refused is not counted.

use std::io::{BufRead as _, Write as _};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use memchr::memmem::Finder;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::figures::Latencies;
use crate::order::Order;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const UNAVAILABLE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
/// Connections that wait to be accepted.
const BACKLOG: u32 = 256;
/// More than the largest body walhook is configured to send.
const REQUEST_BYTES_MAX: usize = 4 << 20;
/// A message has this key once.
const KEY: &str = "\"idempotency_key\":";
const COMMITTED: &str = "\"commit_timestamp\":\"";

/// How to receive.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Receive {
    /// Messages to expect.
    #[arg(long)]
    pub(crate) expect: u64,
    /// Take the time from commit to here of every message.
    #[arg(long)]
    pub(crate) latency: bool,
    /// Look whether the messages of each customer come in the order of their ids, once each.
    #[arg(long)]
    pub(crate) order: bool,
    /// Be away until told otherwise.
    #[arg(long, value_enum)]
    pub(crate) away: Option<Away>,
}

/// How an endpoint is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Away {
    /// Nobody listens at its port.
    Refuses,
    /// It answers 503.
    Unavailable,
}

/// What it says when all that was expected is there.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Counted {
    /// When the first request was complete, since 1970.
    pub(crate) first: Duration,
    /// When 99 of 100 messages were there.
    pub(crate) most: Duration,
    /// When the last one was.
    pub(crate) last: Duration,
    /// Messages that came too early, too late or again, if that was asked for.
    pub(crate) out_of_order: u64,
    /// Requests that were answered with a 503.
    pub(crate) refused: u64,
    /// Requests.
    pub(crate) requests: u64,
    /// Bytes of bodies.
    pub(crate) bytes: u64,
    /// Commit to here, if it was asked for.
    pub(crate) latencies: Latencies,
}

#[derive(Debug, Default)]
struct Tally {
    messages: u64,
    requests: u64,
    bytes: u64,
    first: Option<Duration>,
    most: Option<Duration>,
    order: Order,
    refused: u64,
    latencies: Vec<Duration>,
    told: bool,
}

struct Desk {
    options: Receive,
    key: Finder<'static>,
    committed: Finder<'static>,
    tally: Mutex<Tally>,
    /// How it is away, if it is.
    away: watch::Sender<Option<Away>>,
}

/// Receives until standard input ends.
pub(crate) fn serve(options: &Receive) -> anyhow::Result<()> {
    let (key, committed) = (Finder::new(KEY), Finder::new(COMMITTED));
    let (away, tally) = (watch::Sender::new(options.away), Mutex::default());
    let desk = Arc::new(Desk { options: options.clone(), key, committed, tally, away });
    let at_end = Arc::clone(&desk);
    std::thread::spawn(move || {
        for _ in std::io::stdin().lock().lines() {
            at_end.away.send_replace(None);
        }
        let messages = at_end.tally.lock().unwrap_or_else(PoisonError::into_inner).messages;
        drop(say(&messages.to_string()));
        std::process::exit(0)
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(listen(desk))
}

async fn listen(desk: Arc<Desk>) -> anyhow::Result<()> {
    // A socket that is bound and does not listen refuses connections, and nobody else gets its port.
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
    say(&socket.local_addr()?.port().to_string())?;
    desk.away.subscribe().wait_for(|away| *away != Some(Away::Refuses)).await?;
    let listener = socket.listen(BACKLOG)?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (socket, _) = accepted?;
                socket.set_nodelay(true)?;
                connections.spawn(converse(socket, Arc::clone(&desk)));
            }
            Some(ended) = connections.join_next() => ended??,
        }
    }
}

/// Requests on one connection, until the client closes it.
async fn converse(mut socket: TcpStream, desk: Arc<Desk>) -> anyhow::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut filled = 0;
    loop {
        let (head, length) = loop {
            if let Some(request) = buffer.get(..filled).map(request).transpose()?.flatten() {
                break request;
            }
            if !more(&mut socket, &mut buffer, &mut filled).await? {
                return Ok(());
            }
        };
        while filled < head + length {
            if !more(&mut socket, &mut buffer, &mut filled).await? {
                bail!("a body broke off");
            }
        }
        socket.write_all(desk.answer(buffer.get(head..head + length).unwrap_or_default())?).await?;
        buffer.copy_within(head + length..filled, 0);
        filled -= head + length;
    }
}

/// Reads on; false at the end, or when the client is gone.
async fn more(socket: &mut TcpStream, buffer: &mut Vec<u8>, filled: &mut usize) -> anyhow::Result<bool> {
    if *filled == buffer.len() {
        if buffer.len() >= REQUEST_BYTES_MAX {
            bail!("a request is too large");
        }
        buffer.resize(buffer.len() * 2, 0);
    }
    let read = socket.read(buffer.get_mut(*filled..).unwrap_or_default()).await.unwrap_or(0);
    *filled += read;
    Ok(read > 0)
}

/// Lengths of head and body, once the head is complete.
fn request(bytes: &[u8]) -> anyhow::Result<Option<(usize, usize)>> {
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(bytes.get(..end).unwrap_or_default())?;
    let mut fields = head.split("\r\n").filter_map(|line| line.split_once(':'));
    let length = fields.find_map(|(name, value)| name.eq_ignore_ascii_case("content-length").then(|| value.trim()));
    let length = length.context("a request without content-length")?.parse()?;
    Ok(Some((end + 4, length)))
}

impl Desk {
    fn answer(&self, body: &[u8]) -> anyhow::Result<&'static [u8]> {
        if self.away.borrow().is_some() {
            self.tally.lock().unwrap_or_else(PoisonError::into_inner).refused += 1;
            return Ok(UNAVAILABLE);
        }
        self.take(body)?;
        Ok(ANSWER)
    }

    fn take(&self, body: &[u8]) -> anyhow::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let messages = u64::try_from(self.key.find_iter(body).count())?;
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.messages += messages;
        tally.requests += 1;
        tally.bytes += u64::try_from(body.len())?;
        tally.first.get_or_insert(now);
        if self.options.order {
            tally.order.see(body)?;
        }
        if tally.messages >= self.options.expect / 100 * 99 {
            tally.most.get_or_insert(now);
        }
        if self.options.latency {
            for at in self.committed.find_iter(body) {
                tally.latencies.push(now.saturating_sub(commit_time(body, at + COMMITTED.len())?));
            }
        }
        if tally.messages >= self.options.expect && !tally.told {
            tally.told = true;
            let (first, most) = (tally.first.unwrap_or(now), tally.most.unwrap_or(now));
            let (out_of_order, refused) = (tally.order.wrong(), tally.refused);
            let latencies = Latencies::of(std::mem::take(&mut tally.latencies));
            let (requests, bytes) = (tally.requests, tally.bytes);
            let counted = Counted { first, most, last: now, out_of_order, refused, requests, bytes, latencies };
            drop(tally);
            say(&serde_json::to_string(&counted)?)?;
        }
        Ok(())
    }
}

/// The RFC 3339 time at `from`, since 1970.
fn commit_time(body: &[u8], from: usize) -> anyhow::Result<Duration> {
    let rest = body.get(from..).unwrap_or_default();
    let end = memchr::memchr(b'"', rest).context("a commit timestamp without an end")?;
    let text = std::str::from_utf8(rest.get(..end).unwrap_or_default())?;
    let time: jiff::Timestamp = text.parse()?;
    Ok(Duration::from_micros(u64::try_from(time.as_microsecond())?))
}

fn say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

//! A real HTTP receiver that misbehaves on cue and keeps a [`Ledger`].
//!
//! It speaks HTTP/1.1 over bare sockets, because resets, dripped headers and answers that break off cannot be had from a
//! server library. A request counts as over before the last byte of its answer is written, or when the client hangs up,
//! so that a daemon that keeps its promises can never seem to break them.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::ledger::{Entry, Ledger};
use crate::postgres::{state, until_within};
pub(crate) use crate::reply::{Reply, parallel, unreliable};
use crate::reply::{drip, gigabyte, gzip_bomb, head, hung_up_within};
use crate::request::read_request;
pub(crate) use crate::request::{Request, Visit};

/// How much the receiver remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Requests and ledger.
    All,
    /// The ledger only.
    Ledger,
    /// Only how many messages and requests came; for floods.
    Counts,
}

type Script = Arc<dyn Fn(&Request) -> Reply + Send + Sync>;
type GroupOf = Arc<dyn Fn(&Value) -> String + Send + Sync>;

/// The receiver. Its tasks end when it is dropped.
pub(crate) struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    keep: Keep,
    script: Mutex<Script>,
    group_of: GroupOf,
    book: Mutex<Book>,
    /// Clients that are connected.
    clients: Mutex<HashSet<SocketAddr>>,
}

#[derive(Default)]
struct Book {
    ledger: Ledger,
    requests: Vec<Request>,
    request_count: u64,
    message_count: u64,
    /// Status answered, by request number; 0 for what was no answer.
    answers: Vec<(u64, u16)>,
    visits: Vec<Visit>,
}

/// Longer than any client waits.
const FOR_EVER: Duration = Duration::from_secs(3600);

impl Receiver {
    /// Answers 200 to everything and remembers everything.
    pub(crate) async fn start() -> Self {
        Self::with(Keep::All, |_| Reply::status(200), row_of).await
    }

    /// Answers by `script`.
    pub(crate) async fn scripted(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::with(Keep::All, script, row_of).await
    }

    /// Everything chosen: memory, answers, and what is a group.
    pub(crate) async fn with(
        keep: Keep,
        script: impl Fn(&Request) -> Reply + Send + Sync + 'static,
        group_of: impl Fn(&Value) -> String + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, keep, script, group_of)
    }

    /// Answers 200 to everything that comes in at `listener`, and remembers everything.
    pub(crate) fn at(listener: TcpListener) -> Self {
        Self::on(listener, Keep::All, |_| Reply::status(200), row_of)
    }

    /// Everything chosen, at a listener that is there.
    pub(crate) fn on(
        listener: TcpListener,
        keep: Keep,
        script: impl Fn(&Request) -> Reply + Send + Sync + 'static,
        group_of: impl Fn(&Value) -> String + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let script: Script = Arc::new(script);
        let (script, book, clients) = (Mutex::new(script), Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { keep, script, group_of: Arc::new(group_of), book, clients });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, tasks }
    }

    /// `http://127.0.0.1:PORT`
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers by another script from here on.
    pub(crate) fn script(&self, script: impl Fn(&Request) -> Reply + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap() = Arc::new(script);
    }

    /// Looks into the ledger.
    pub(crate) fn ledger<T>(&self, look: impl FnOnce(&mut Ledger) -> T) -> T {
        look(&mut self.shared.book().ledger)
    }

    /// The requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.book().requests.clone()
    }

    /// The messages so far, in order of arrival.
    pub(crate) fn messages(&self) -> Vec<Value> {
        let book = self.shared.book();
        book.requests.iter().flat_map(|request| request.messages.iter().cloned()).collect()
    }

    /// How many messages came, repeats counted.
    pub(crate) fn message_count(&self) -> u64 {
        self.shared.book().message_count
    }

    /// How many requests came.
    pub(crate) fn request_count(&self) -> u64 {
        self.shared.book().request_count
    }

    /// Messages of requests that were answered with 200, in the order of these answers.
    pub(crate) fn acknowledged(&self) -> Vec<Value> {
        let requests = self.requests();
        let of = |number: u64| requests.iter().filter(move |request| request.number == number);
        let answers = self.answers().into_iter().filter(|(_, status)| *status == 200);
        answers.flat_map(|(number, _)| of(number)).flat_map(|request| request.messages.clone()).collect()
    }

    /// What was answered, by request number; 0 where there was no answer.
    pub(crate) fn answers(&self) -> Vec<(u64, u16)> {
        self.shared.book().answers.clone()
    }

    /// When the requests came and went, in order of arrival.
    pub(crate) fn visits(&self) -> Vec<Visit> {
        self.shared.book().visits.clone()
    }

    /// Waits until everything that dead clients sent has been dealt with.
    pub(crate) async fn abandoned(&self) {
        // Connections are accepted in their order, so once this one is, none waits in the listener's queue.
        let last = TcpStream::connect(self.address).await.unwrap();
        let only = HashSet::from([last.local_addr().unwrap()]);
        self.wait("all clients to have gone", |receiver| *receiver.shared.clients.lock().unwrap() == only).await;
    }

    /// Waits until so many messages came; gives all.
    pub(crate) async fn wait_messages(&self, count: u64) -> Vec<Value> {
        self.wait(&format!("{count} messages"), |receiver| receiver.message_count() >= count).await;
        self.messages()
    }

    /// Waits until so many distinct messages were acknowledged.
    pub(crate) async fn wait_acknowledged(&self, count: usize) {
        self.wait(&format!("{count} messages acknowledged"), |receiver| {
            receiver.ledger(|ledger| ledger.acknowledged()) >= count
        })
        .await;
    }

    /// Waits until `holds`; long, since what it waits for may be many retries away.
    pub(crate) async fn wait(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        self.wait_within(Duration::from_secs(120), what, holds).await;
    }

    /// As [`Self::wait`], with a deadline of its own.
    pub(crate) async fn wait_within(&self, deadline: Duration, what: &str, holds: impl Fn(&Self) -> bool) {
        until_within(deadline, what, || async {
            let seen = self.ledger(|ledger| (ledger.acknowledged(), ledger.unacknowledged()));
            let text = format!(
                "{} requests, {} messages, (acknowledged, not) {seen:?}",
                self.request_count(),
                self.message_count()
            );
            state(holds(self), text)
        })
        .await;
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

/// Table and id of a message: the group under `group_by = "primary_key"` in tables keyed by `id`.
pub(crate) fn row_of(message: &Value) -> String {
    format!("{}/{}", message["metadata"]["table_name"].as_str().unwrap_or_default(), message["record"]["id"])
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((socket, client)) = accepted {
                    drop(socket.set_nodelay(true));
                    shared.clients.lock().unwrap().insert(client);
                    let shared = Arc::clone(&shared);
                    connections.spawn(async move {
                        connection(socket, &shared).await;
                        shared.clients.lock().unwrap().remove(&client);
                    });
                }
            }
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    // A panic in here is a fault of the harness and must not look like a silent endpoint.
                    eprintln!("receiver: {error}");
                    std::process::abort();
                }
            }
        }
    }
}

async fn connection(mut socket: TcpStream, shared: &Shared) {
    let mut buffer = Vec::new();
    while let Some(mut request) = read_request(&mut socket, &mut buffer).await {
        let script = Arc::clone(&shared.script.lock().unwrap());
        request.number = shared.arrived(&mut request);
        let reply = script(&request);
        if !play(&mut socket, request.number, reply, shared).await {
            return;
        }
    }
}

impl Shared {
    /// Also after a panic under the lock: the test's own assertion then is what is to be read.
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrived(&self, request: &mut Request) -> u64 {
        let entry = |message: &Value| Entry {
            key: message["metadata"]["idempotency_key"].as_str().unwrap_or_default().to_owned(),
            group: (self.group_of)(message),
            n: message["record"]["n"].as_i64(),
        };
        let entries: Vec<Entry> = match self.keep {
            Keep::Counts => Vec::new(),
            Keep::All | Keep::Ledger => request.messages.iter().map(entry).collect(),
        };
        let mut book = self.book();
        book.request_count += 1;
        book.message_count += request.messages.len() as u64;
        request.number = book.request_count;
        book.ledger.arrived(request.number, entries);
        if self.keep != Keep::Counts {
            let hash = xxhash_rust::xxh3::xxh3_64(&request.body);
            book.ledger.body(request.header("webhook-id"), hash);
            let concurrent = book.ledger.concurrent();
            book.visits.push(Visit { arrived: request.arrived, ended: None, status: 0, concurrent });
        }
        if self.keep == Keep::All {
            book.requests.push(request.clone());
        }
        request.number
    }

    fn ended(&self, request: u64, status: u16, acknowledged: bool) {
        let mut book = self.book();
        book.ledger.ended(request, acknowledged);
        let index = usize::try_from(request).unwrap() - 1;
        if let Some(visit) = book.visits.get_mut(index) {
            (visit.ended, visit.status) = (Some(Instant::now()), status);
        }
        if self.keep == Keep::All {
            book.answers.push((request, status));
        }
    }
}

/// Does what the script says; true if the connection can go on.
async fn play(socket: &mut TcpStream, number: u64, mut reply: Reply, shared: &Shared) -> bool {
    loop {
        let (gone, then) = match reply {
            Reply::After(wait, then) => (!wait.is_zero() && hung_up_within(socket, wait).await, then),
            Reply::Meet(barrier, then) => tokio::select! {
                _ = barrier.wait() => (false, then),
                gone = hung_up_within(socket, FOR_EVER) => {
                    shared.book().ledger.violation(format!("parallel: request {number} was given up before others came"));
                    (gone, then)
                }
            },
            other => {
                reply = other;
                break;
            }
        };
        if gone {
            shared.ended(number, 0, false);
            return false;
        }
        reply = *then;
    }
    let acknowledged = reply.acknowledges();
    match reply {
        Reply::Answer { status, headers, body } => {
            let head = head(status, &headers, body.len() as u64);
            shared.ended(number, status, acknowledged);
            return socket.write_all(&[head.as_bytes(), &body].concat()).await.is_ok();
        }
        Reply::GzipBomb(status) => {
            let body = gzip_bomb();
            let head = head(status, &[("content-encoding".to_owned(), "gzip".to_owned())], body.len() as u64);
            shared.ended(number, status, acknowledged);
            return socket.write_all(&[head.as_bytes(), &body].concat()).await.is_ok();
        }
        Reply::Gigabyte(status) => {
            shared.ended(number, status, acknowledged);
            gigabyte(socket, status).await;
        }
        Reply::Never => {
            while !hung_up_within(socket, Duration::from_secs(60)).await {}
            shared.ended(number, 0, false);
        }
        Reply::Reset => {
            shared.ended(number, 0, false);
            drop(socket2::SockRef::from(&*socket).set_linger(Some(Duration::ZERO)));
        }
        Reply::DripHeaders => {
            drip(socket, "HTTP/1.1 200 OK\r\nx-drip: ").await;
            shared.ended(number, 0, false);
        }
        Reply::DripBody => {
            drip(socket, &head(200, &[], 1_000_000)).await;
            shared.ended(number, 0, false);
        }
        Reply::PartialBody => {
            shared.ended(number, 0, false);
            let text = head(200, &[], 1000) + &"x".repeat(500);
            drop(socket.write_all(text.as_bytes()).await);
        }
        Reply::Garbage => {
            shared.ended(number, 0, false);
            drop(socket.write_all(b"\x16\x03\x01 this is not http\r\n\r\n").await);
        }
        Reply::After(..) | Reply::Meet(..) => unreachable!("unwrapped above"),
    }
    false
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    async fn post(receiver: &Receiver, body: &str) -> Vec<u8> {
        let mut socket = TcpStream::connect(receiver.address).await.unwrap();
        let text =
            format!("POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
        socket.write_all(text.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = tokio::time::timeout(Duration::from_secs(1), socket.read(&mut answer)).await;
        answer.truncate(read.map_or(0, |read| read.unwrap_or(0)));
        answer
    }

    const BODY: &str = r#"{"data":[{"record":{"id":1,"n":1},"metadata":{"table_name":"t","idempotency_key":"k"}}]}"#;

    #[tokio::test]
    async fn it_answers_by_script_and_keeps_the_ledger() {
        let receiver = Receiver::scripted(|request| Reply::status(if request.number == 1 { 500 } else { 200 })).await;
        assert!(post(&receiver, BODY).await.starts_with(b"HTTP/1.1 500"));
        assert!(post(&receiver, BODY).await.starts_with(b"HTTP/1.1 200"));
        assert!(receiver.ledger(|ledger| ledger.has("t/1", 1)));
        assert_eq!(receiver.answers(), [(1, 500), (2, 200)]);
        let request = &receiver.requests()[0];
        assert_eq!((request.method.as_str(), request.path.as_str(), request.header("host")), ("POST", "/x", "h"));
    }

    #[tokio::test]
    async fn a_client_that_hangs_up_lets_go_of_its_rows() {
        let receiver = Receiver::scripted(|_| Reply::Never).await;
        assert!(post(&receiver, BODY).await.is_empty());
        receiver.wait("the request to be over", |receiver| receiver.ledger(|ledger| ledger.concurrent() == 0)).await;
        assert_eq!(receiver.ledger(|ledger| ledger.unacknowledged()), 1);
    }

    #[tokio::test]
    async fn hostile_answers_look_as_they_should() {
        let receiver = Receiver::scripted(|_| Reply::Reset).await;
        assert!(post(&receiver, BODY).await.is_empty());
        receiver.script(|_| Reply::DripHeaders);
        assert!(post(&receiver, BODY).await.starts_with(b"HTTP/1.1 200 OK\r\nx-drip: "));
        receiver.script(|_| Reply::GzipBomb(200));
        assert!(post(&receiver, BODY).await.windows(22).any(|window| window == b"content-encoding: gzip"));
        receiver.script(|_| Reply::PartialBody);
        assert!(post(&receiver, BODY).await.ends_with(b"x"));
    }
}

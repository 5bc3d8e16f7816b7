//! A raw TCP receiver: a script a connection, and everything that arrived.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::{
    Actions, BodyForm, GroupBy, MessageForm, Numbers, RetryConfig, SinkConfig, SuccessRule, UnchangedToast,
};
use crate::deliver::attempt::{Attempt, Verdict};
use crate::deliver::egress::Egress;
use crate::deliver::endpoint::Endpoint;
use crate::deliver::frozen::Frozen;
use crate::memory::Memory;
use crate::record::message::MessageId;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Arrived {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Arrived {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

pub(crate) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// One connection of the receiver.
pub(crate) struct Peer<S = TcpStream> {
    pub(crate) socket: S,
    arrived: Arc<Mutex<Vec<Arrived>>>,
}

impl<S: Socket> Peer<S> {
    /// The next request, whole; `None` when the client hung up.
    pub(crate) async fn request(&mut self) -> Option<Arrived> {
        let head = self.head().await?;
        let mut arrived = Arrived { head, body: Vec::new() };
        let length = arrived.header("content-length")?.parse().ok()?;
        arrived.body.resize(length, 0);
        self.socket.read_exact(&mut arrived.body).await.ok()?;
        self.arrived.lock().unwrap().push(arrived.clone());
        Some(arrived)
    }

    /// The head of the next request, its body unread.
    pub(crate) async fn head(&mut self) -> Option<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.socket.read_u8().await.ok()?);
        }
        Some(String::from_utf8(head).unwrap())
    }

    /// Writes as far as the client lets it.
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.socket.write_all(bytes.as_ref()).await.is_ok() && self.socket.flush().await.is_ok()
    }

    /// Waits until the client closes.
    pub(crate) async fn until_closed(&mut self) {
        let mut rest = [0; 4096];
        while self.socket.read(&mut rest).await.is_ok_and(|read| read > 0) {}
    }
}

impl Peer {
    /// The connection under TLS, or `None` if the handshake failed.
    pub(crate) async fn under_tls(self, acceptor: &TlsAcceptor) -> Option<Peer<TlsStream<TcpStream>>> {
        let socket = acceptor.accept(self.socket).await.ok()?;
        Some(Peer { socket, arrived: self.arrived })
    }

    /// Closes with a reset.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// A receiver on a port of its own; it ends with the test.
pub(crate) struct Rig {
    pub(crate) port: u16,
    arrived: Arc<Mutex<Vec<Arrived>>>,
    _tasks: JoinSet<()>,
}

impl Rig {
    /// Runs `script` for each connection.
    pub(crate) async fn start<F, R>(script: F) -> Self
    where
        F: Fn(Peer) -> R + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let arrived = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        tasks.spawn({
            let arrived = Arc::clone(&arrived);
            async move {
                let mut connections = JoinSet::new();
                loop {
                    let (socket, _) = listener.accept().await.unwrap();
                    connections.spawn(script(Peer { socket, arrived: Arc::clone(&arrived) }));
                }
            }
        });
        Self { port, arrived, _tasks: tasks }
    }

    /// Answers every request with `answer`, on connections that stay open.
    pub(crate) async fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer = Arc::new(answer.into());
        Self::start(move |mut peer| {
            let answer = Arc::clone(&answer);
            async move { while peer.request().await.is_some() && peer.write(&*answer).await {} }
        })
        .await
    }

    pub(crate) fn sink(&self) -> SinkConfig {
        sink(&format!("http://127.0.0.1:{}/hooks", self.port))
    }

    pub(crate) fn arrived(&self) -> Vec<Arrived> {
        self.arrived.lock().unwrap().clone()
    }
}

pub(crate) fn sink(url: &str) -> SinkConfig {
    SinkConfig {
        name: "orders".into(),
        source: "app".into(),
        endpoint: url.parse().unwrap(),
        tls_ca: None,
        egress: Egress::default(),
        tables: Vec::new(),
        messages: Vec::new(),
        actions: Actions { insert: true, update: true, delete: true, truncate: false },
        message: MessageForm::Change,
        body: BodyForm::Batch,
        batch_size: 1,
        batch_bytes: 1 << 20,
        batch_timeout: Duration::from_millis(10),
        request_timeout: Duration::from_secs(30),
        max_ack_pending: 100,
        max_in_flight: 4,
        success: SuccessRule::Any2xx,
        group_by: GroupBy::PrimaryKey,
        group_by_table: Vec::new(),
        headers: HeaderMap::new(),
        signing_secrets: Vec::new(),
        numbers: Numbers::Json,
        unchanged_toast: UnchangedToast::Omit,
        paused: false,
        retry: RetryConfig::of_waits(Duration::from_secs(1), Duration::from_secs(180)),
    }
}

/// A delivery of one message that is `bytes` long.
pub(crate) fn delivery(bytes: usize) -> Frozen {
    let memory = Memory::new(1 << 30);
    Frozen::build(&memory, "orders", BodyForm::Batch, 16, [MessageId(7)], |_, _, body| {
        body.push(b'"');
        body.resize(body.len() + bytes - 2, b'x');
        body.push(b'"');
    })
}

/// One attempt against `sink`.
pub(crate) async fn attempt(sink: &SinkConfig) -> Attempt {
    Endpoint::new(sink).unwrap().attempt(&delivery(100), 1).await
}

/// The category's word and the message of a failed attempt.
pub(crate) fn failure(attempt: &Attempt) -> (&'static str, &str) {
    match &attempt.verdict {
        Verdict::Acknowledged => panic!("acknowledged: {attempt:?}"),
        Verdict::Failed { category, message } => (category.as_str(), message),
    }
}

//! A server that misbehaves on cue: a relay to a real one that, at some point of a connection, says what it likes in its place.

use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::daemon::Config;
use crate::postgres::Postgres;

/// Code of the startup message of protocol 3.0.
const PROTOCOL_3: u32 = 196_608;

/// When it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// In the place of the answer to the startup message of a session for SQL.
    Login,
    /// In the place of the next answer of a session for SQL, once somebody is logged in.
    Answer,
    /// In the place of the answer to the startup message of a replication session.
    StreamLogin,
    /// Before the next message of the stream.
    Stream,
}

/// What it says: for ever, or once with the server's own words after it.
#[derive(Clone)]
pub(super) struct Attack {
    pub(super) at: At,
    /// The bytes with this number, from 0; it ends with `None`.
    pub(super) says: Arc<dyn Fn(u64) -> Option<Vec<u8>> + Send + Sync>,
}

impl Attack {
    /// The beginning, and then the same again and again.
    pub(super) fn endless(at: At, begin: Vec<u8>, then: impl Fn(u64) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self { at, says: Arc::new(move |number| Some(if number == 0 { begin.clone() } else { then(number) })) }
    }

    /// Said once; then nothing more comes, and nothing is passed on.
    pub(super) fn once(at: At, bytes: Vec<u8>) -> Self {
        Self { at, says: Arc::new(move |number| (number == 0).then(|| bytes.clone())) }
    }
}

/// See the module.
pub(super) struct Hostile {
    port: u16,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

struct Shared {
    server: u16,
    attack: Mutex<Option<Attack>>,
    /// Connections made before the last change are closed.
    cut: watch::Sender<u64>,
    /// Attacks to which the client put an end, and bytes that were sent in all of them.
    hung_up: AtomicU64,
    sent: AtomicU64,
    /// What the client said while it was attacked.
    heard: Mutex<Vec<u8>>,
}

impl Hostile {
    pub(super) async fn before(postgres: &Postgres) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            server: postgres.cluster.port(),
            attack: Mutex::default(),
            cut: watch::Sender::new(0),
            hung_up: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            heard: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        let for_all = Arc::clone(&shared);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (shared, mut cut) = (Arc::clone(&for_all), for_all.cut.subscribe());
                connections.spawn(async move {
                    tokio::select! {
                        // A connection that fails is closed, as the other side sees.
                        _ = carry(client, &shared) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { port, shared, _tasks: tasks }
    }

    /// An address of the server, leading through here.
    pub(super) fn through(&self, url: &str) -> String {
        url.replace(&format!(":{}", self.shared.server), &format!(":{}", self.port))
    }

    /// `[source.app]` as [`Config::source`] has it, through here.
    pub(super) fn source(&self, postgres: &Postgres) -> String {
        self.through(&Config::source(postgres))
    }

    /// From here on it does that, on connections that are made anew.
    pub(super) fn attack(&self, attack: Option<Attack>) {
        *self.shared.attack.lock().unwrap() = attack;
        self.shared.cut.send_modify(|age| *age += 1);
    }

    /// How often the client has put an end to an attack.
    pub(super) fn hung_up(&self) -> u64 {
        self.shared.hung_up.load(Ordering::SeqCst)
    }

    /// Bytes that all attacks have sent.
    pub(super) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }

    pub(super) fn heard(&self) -> Vec<u8> {
        self.shared.heard.lock().unwrap().clone()
    }
}

async fn carry(mut client: TcpStream, shared: &Shared) -> io::Result<()> {
    let startup = startup(&mut client).await?;
    let is_replication = startup.windows(12).any(|bytes| bytes == b"replication\0");
    let attack = shared.attack.lock().unwrap().clone();
    let of_this = |at: At| matches!(at, At::StreamLogin | At::Stream) == is_replication;
    let attack = attack.filter(|attack| of_this(attack.at));
    if let Some(attack) = attack.as_ref().filter(|attack| matches!(attack.at, At::Login | At::StreamLogin)) {
        return fight(client, attack, shared).await;
    }
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.server)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    server.write_all(&startup).await?;
    let (mut is_begun, mut buffer) = (false, vec![0; 1 << 16]);
    loop {
        tokio::select! {
            tag = server.read_u8() => {
                let tag = tag?;
                if let Some(attack) = attack.as_ref().filter(|attack| is_begun && (attack.at == At::Answer || tag == b'd')) {
                    return fight(client, attack, shared).await;
                }
                is_begun |= tag == if is_replication { b'W' } else { b'Z' };
                let length = server.read_u32().await?;
                let mut body = vec![0; length as usize - 4];
                server.read_exact(&mut body).await?;
                client.write_all(&message(tag, &body)).await?;
            }
            read = client.read(&mut buffer) => match read? {
                0 => return server.shutdown().await,
                read => server.write_all(&buffer[..read]).await?,
            },
        }
    }
}

async fn fight(mut client: TcpStream, attack: &Attack, shared: &Shared) -> io::Result<()> {
    let (mut from, mut to) = client.split();
    let talk = async {
        for number in 0.. {
            let Some(bytes) = (attack.says)(number) else { return std::future::pending().await };
            to.write_all(&bytes).await?;
            shared.sent.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        }
        Ok::<(), io::Error>(())
    };
    let listen = async {
        let mut buffer = vec![0; 1 << 12];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            shared.heard.lock().unwrap().extend_from_slice(&buffer[..read]);
        }
    };
    tokio::select! {
        _ = talk => {}
        () = listen => {}
    }
    shared.hung_up.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

/// The startup message as it is to be passed on. Who asks for encryption is told that there is none.
async fn startup(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    loop {
        let (length, code) = (client.read_u32().await?, client.read_u32().await?);
        let mut body = vec![0; length as usize - 8];
        client.read_exact(&mut body).await?;
        if code == PROTOCOL_3 {
            return Ok([&length.to_be_bytes()[..], &code.to_be_bytes(), &body].concat());
        }
        client.write_all(b"N").await?;
    }
}

/// A frame with its true length.
pub(super) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    announced(tag, u32::try_from(body.len() + 4).unwrap(), body)
}

/// One that says that it is so long.
pub(super) fn announced(tag: u8, length: u32, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

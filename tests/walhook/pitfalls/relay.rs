//! A network between the daemon and the server that can lose what it carries, and add to it.
//!
//! It speaks the frontend/backend protocol as far as that needs: it answers requests for encryption itself, reads the startup
//! message, and passes the server's messages on one by one.

use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::daemon::Config;
use crate::postgres::Postgres;

/// Code of the startup message of protocol 3.0.
const PROTOCOL_3: u32 = 196_608;

/// See the module. Its tasks end with the test's runtime.
pub(crate) struct Relay {
    port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    server: u16,
    /// Connections made before the last change of this number pass nothing on.
    age: AtomicU64,
    /// What is to be put before the next message of a stream.
    adds: Mutex<Vec<u8>>,
    added: AtomicBool,
}

impl Relay {
    /// One that leads to `postgres`.
    pub(crate) async fn to(postgres: &Postgres) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (server, age) = (postgres.cluster.port(), AtomicU64::new(0));
        let (adds, added) = (Mutex::default(), AtomicBool::new(false));
        let shared = Arc::new(Shared { server, age, adds, added });
        let for_all = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                // A connection that fails is closed, as the other side sees.
                tokio::spawn(carry(client, Arc::clone(&for_all)));
            }
        });
        Self { port, shared, task }
    }

    /// `[source.app]` as [`Config::source`] has it, through here; `settings` are put behind the address.
    pub(crate) fn source(&self, postgres: &Postgres, settings: &str) -> String {
        let direct = postgres.url();
        let through = direct.replace(&postgres.cluster.port().to_string(), &self.port.to_string());
        Config::source(postgres).replace(&direct, &(through + settings))
    }

    /// From here on the connections that stand lose everything in both directions, and nobody is told.
    pub(crate) fn swallow(&self) {
        self.shared.age.fetch_add(1, Ordering::SeqCst);
    }

    /// Puts a notice and a changed parameter before the next message of a stream.
    pub(crate) fn add_frames(&self) {
        self.add(additions());
    }

    /// A keepalive that claims that the server's log ends at `end`.
    pub(crate) fn add_keepalive(&self, end: u64) {
        self.add(copy_data(&[&b"k"[..], &end.to_be_bytes(), &0_i64.to_be_bytes(), &[0]].concat()));
    }

    /// An empty transaction whose commit ends at `end`.
    pub(crate) fn add_transaction(&self, end: u64) {
        let time = 0_i64.to_be_bytes();
        let begin = [&b"B"[..], &(end - 8).to_be_bytes(), &time, &7_u32.to_be_bytes()].concat();
        let commit = [&b"C\0"[..], &(end - 8).to_be_bytes(), &end.to_be_bytes(), &time].concat();
        self.add([begin, commit].iter().flat_map(|payload| x_log_data(payload)).collect());
    }

    fn add(&self, frames: Vec<u8>) {
        self.shared.added.store(false, Ordering::SeqCst);
        *self.shared.adds.lock().unwrap() = frames;
    }

    /// Whether they have been sent.
    pub(crate) fn has_added(&self) -> bool {
        self.shared.added.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut client: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    let startup = startup(&mut client).await?;
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.server)).await?;
    server.write_all(&startup).await?;
    let age = shared.age.load(Ordering::SeqCst);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::spawn(forth(from_client, to_server, Arc::clone(&shared), age));
    back(from_server, to_client, &shared, age).await
}

/// The startup message as it is to be passed on. Who asks for encryption is told that there is none.
async fn startup(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    loop {
        let length = client.read_u32().await?;
        let code = client.read_u32().await?;
        let mut body = vec![0; length as usize - 8];
        client.read_exact(&mut body).await?;
        if code != PROTOCOL_3 {
            client.write_all(b"N").await?;
            continue;
        }
        let length = u32::try_from(body.len() + 8).unwrap();
        return Ok([&length.to_be_bytes()[..], &code.to_be_bytes(), &body].concat());
    }
}

async fn forth(mut client: OwnedReadHalf, mut server: OwnedWriteHalf, shared: Arc<Shared>, age: u64) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = client.read(&mut buffer).await?;
        let is_lost = shared.age.load(Ordering::SeqCst) != age;
        if read == 0 && is_lost {
            // The server is not told of that either.
            std::future::pending::<()>().await;
        }
        if read == 0 {
            return server.shutdown().await;
        }
        if !is_lost {
            server.write_all(&buffer[..read]).await?;
        }
    }
}

async fn back(mut server: OwnedReadHalf, mut client: OwnedWriteHalf, shared: &Shared, age: u64) -> io::Result<()> {
    let mut is_stream = false;
    loop {
        let frame = frame(&mut server).await;
        if shared.age.load(Ordering::SeqCst) != age {
            if frame.is_err() {
                // That the server hung up is lost, too.
                std::future::pending::<()>().await;
            }
            continue;
        }
        let (tag, body) = frame?;
        is_stream |= tag == b'W';
        if is_stream && tag == b'd' {
            let adds = std::mem::take(&mut *shared.adds.lock().unwrap());
            if !adds.is_empty() {
                client.write_all(&adds).await?;
                shared.added.store(true, Ordering::SeqCst);
            }
        }
        client.write_all(&message(tag, &body)).await?;
    }
}

async fn frame(server: &mut OwnedReadHalf) -> io::Result<(u8, Vec<u8>)> {
    let (tag, length) = (server.read_u8().await?, server.read_u32().await?);
    let mut body = vec![0; length as usize - 4];
    server.read_exact(&mut body).await?;
    Ok((tag, body))
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

fn copy_data(body: &[u8]) -> Vec<u8> {
    message(b'd', body)
}

fn x_log_data(payload: &[u8]) -> Vec<u8> {
    copy_data(&[&b"w"[..], &[0; 24], payload].concat())
}

/// A NoticeResponse and a ParameterStatus.
fn additions() -> Vec<u8> {
    let notice = b"SWARNING\0VWARNING\0C01000\0Mthe relay says hello\0\0";
    [message(b'N', notice), message(b'S', b"search_path\0elsewhere\0")].concat()
}

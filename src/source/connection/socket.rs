//! A connected socket: TCP, TLS over TCP, or unix, whichever the address leads to.
//!
//! [`enter`] walks through the servers of an address, each server's IP addresses, and the ways of encrypting that
//! `sslmode` allows, until a login succeeds; `connect_timeout` bounds each try with everything in it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ClientConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::bounds::{Bounds, Limits};
use super::error::{ConnectError, StreamError};
use super::guard::{Guard, Unwanted, Watched};
use super::tls;
use super::unreached::{is_closed, speaks};
use crate::address::{Host, Keepalive, PgAddress, SslMode, is_loopback};

/// A connected socket.
#[derive(Debug)]
pub struct Socket {
    kind: Kind,
    /// Takes the first byte that comes, unless TLS has shown already who answers.
    first: Option<FirstByte>,
    /// Whether the server offers TLS, if it was asked.
    offers_tls: Option<bool>,
    /// Looks at what the server asks for until it lets us in.
    guard: Option<Guard>,
    /// Counts what the server sends.
    bounds: Option<Bounds>,
}

/// The first byte of an answer, 0 before it came.
type FirstByte = Arc<AtomicU8>;

#[derive(Debug)]
enum Kind {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>, Option<Vec<u8>>),
}

/// Connects to the first server that answers, encrypted as `sslmode` wants it. Nobody is logged in yet, so what only the
/// login shows (`target_session_attrs`, a server that insists on or refuses TLS) is not known here.
///
/// # Errors
/// Of the last server tried, if none could be reached.
pub async fn open(address: &PgAddress) -> Result<Socket, ConnectError> {
    enter(address, |socket| std::future::ready(Ok(socket))).await
}

/// Connects and logs in to the first server for which `login` succeeds.
pub(super) async fn enter<T, F>(address: &PgAddress, login: impl Fn(Socket) -> F) -> Result<T, ConnectError>
where
    F: Future<Output = Result<T, ConnectError>>,
{
    enter_somewhere(address, login).await.map(|(entered, _)| entered)
}

/// The same, with the server it was.
pub(super) async fn enter_somewhere<T, F>(
    address: &PgAddress,
    login: impl Fn(Socket) -> F,
) -> Result<(T, Host), ConnectError>
where
    F: Future<Output = Result<T, ConnectError>>,
{
    let tls = tls::config(address)?.map(Arc::new);
    let mut last = None;
    for host in &address.hosts {
        let places = match within(address, host, places(host)).await {
            Ok(places) => places,
            Err(error) => {
                last = Some(note(host, error));
                continue;
            }
        };
        for place in places {
            let mut before = None;
            for encryption in encryptions(address.sslmode, &place) {
                let attempt = Attempt {
                    host,
                    place: &place,
                    keepalive: &address.keepalive,
                    tls: tls.as_ref(),
                    encryption: *encryption,
                };
                let enter = async {
                    let mut socket = attempt.connect().await?;
                    let (first, offers_tls) = (socket.first.clone(), socket.offers_tls);
                    socket.guard = address.auth_methods(place.is_here()).map(Guard::new);
                    let entered = login(socket).await;
                    let asks = address.require_auth.is_some();
                    entered.map_err(|error| judged(error, host, asks, first.as_ref()).where_tls(offers_tls))
                };
                let error = match within(address, host, enter).await {
                    Ok(entered) => return Ok((entered, place.of(host))),
                    Err(error) => error,
                };
                let may_help = error.other_encryption_may_help();
                before = Some(note(host, error).after(before));
                if !may_help {
                    break;
                }
            }
            last = before.or(last);
            if last.as_ref().is_some_and(ConnectError::ends_the_search) {
                break;
            }
        }
        if last.as_ref().is_some_and(ConnectError::ends_the_search) {
            break;
        }
    }
    // An address has a host and a host has a place, or there is an error that says why not.
    Err(last
        .unwrap_or_else(|| ConnectError::Resolve { host: address.redacted(), source: io::ErrorKind::NotFound.into() }))
}

/// The error of a login in the light of who answered: to a client of Postgres all others speak broken frames. `asks`: the address
/// has `require_auth`.
fn judged(error: ConnectError, host: &Host, asks: bool, first: Option<&FirstByte>) -> ConnectError {
    if let ConnectError::Broken(StreamError::Io(source)) = &error
        && let Some(Unwanted(asked)) = source.get_ref().and_then(|inner| inner.downcast_ref())
    {
        return match asks {
            true => ConnectError::RequireAuth { asked },
            false => ConnectError::OpenLink { host: host.to_string(), asked },
        };
    }
    let first = first.map_or(0, |first| first.load(Ordering::Relaxed));
    // Authentication, error, notice, parameter, version of the protocol.
    let is_postgres = b"RENSv\0".contains(&first);
    if matches!(error, ConnectError::Broken(_)) && !is_postgres {
        return ConnectError::NotPostgres { host: host.to_string(), speaks: speaks(first) };
    }
    error
}

fn note(host: &Host, error: ConnectError) -> ConnectError {
    tracing::debug!(%host, %error, "could not enter");
    error
}

async fn within<T>(
    address: &PgAddress,
    host: &Host,
    work: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    let limit = address.connect_timeout;
    let late = |_| ConnectError::Timeout { host: host.to_string(), limit };
    // The future of a whole login with TLS is large.
    tokio::time::timeout(limit, Box::pin(work)).await.map_err(late)?
}

/// One place to knock at.
enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Place {
    fn is_here(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp(at) => is_loopback(at.ip()),
        }
    }

    /// The host as this place alone.
    fn of(&self, host: &Host) -> Host {
        match (self, host) {
            (Self::Tcp(at), Host::Tcp { name, port, .. }) => {
                Host::Tcp { name: name.clone(), address: Some(at.ip()), port: *port }
            }
            (Self::Tcp(_) | Self::Unix(_), host) => host.clone(),
        }
    }
}

async fn places(host: &Host) -> Result<Vec<Place>, ConnectError> {
    match host {
        Host::Unix { directory, port } => Ok(vec![Place::Unix(directory.join(format!(".s.PGSQL.{port}")))]),
        Host::Tcp { address: Some(ip), port, .. } => Ok(vec![Place::Tcp(SocketAddr::new(*ip, *port))]),
        Host::Tcp { name, port, .. } => {
            let found = tokio::net::lookup_host((&**name, *port)).await;
            let found: Vec<Place> =
                found.map_err(|source| ConnectError::Resolve { host: name.clone(), source })?.map(Place::Tcp).collect();
            if found.is_empty() {
                return Err(ConnectError::Resolve { host: name.clone(), source: io::ErrorKind::NotFound.into() });
            }
            Ok(found)
        }
    }
}

/// One way of encrypting.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Encryption {
    None,
    IfOffered,
    Tls,
}

/// The ways to try, in order, as libpq does; a unix socket is never encrypted.
fn encryptions(mode: SslMode, place: &Place) -> &'static [Encryption] {
    match (place, mode) {
        (Place::Unix(_), _) | (_, SslMode::Disable) => &[Encryption::None],
        (_, SslMode::Allow) => &[Encryption::None, Encryption::Tls],
        (_, SslMode::Prefer) => &[Encryption::IfOffered, Encryption::None],
        (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[Encryption::Tls],
    }
}

struct Attempt<'a> {
    host: &'a Host,
    place: &'a Place,
    keepalive: &'a Keepalive,
    tls: Option<&'a Arc<ClientConfig>>,
    encryption: Encryption,
}

impl Attempt<'_> {
    async fn connect(&self) -> Result<Socket, ConnectError> {
        let host = || self.host.to_string();
        let unreached = |source| ConnectError::Reach { host: host(), source };
        let mut stream = match self.place {
            Place::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(unreached)?;
                return Ok(Socket::plain(Kind::Unix(stream)));
            }
            Place::Tcp(place) => TcpStream::connect(place).await.map_err(unreached)?,
        };
        prepare(&stream, self.keepalive).map_err(unreached)?;
        let Some(tls) = self.tls.filter(|_| self.encryption != Encryption::None) else {
            return Ok(Socket::plain(Kind::Tcp(stream)));
        };
        let answer = offers_tls(&mut stream).await.map_err(|source| match is_closed(source.kind()) {
            true => ConnectError::Closed { host: host(), when: "when it was asked for TLS" },
            false => unreached(source),
        })?;
        let offers = match answer {
            b'S' => true,
            b'N' => false,
            // An error before anything is agreed on: Postgres could not begin a session.
            b'E' => {
                return Err(ConnectError::Closed {
                    host: host(),
                    when: "with an error, since it could not begin a session",
                });
            }
            first => return Err(ConnectError::NotPostgres { host: host(), speaks: speaks(first) }),
        };
        if !offers {
            return match self.encryption {
                Encryption::Tls => Err(ConnectError::TlsRefused { host: host() }),
                Encryption::IfOffered | Encryption::None => {
                    Ok(Socket { offers_tls: Some(false), ..Socket::plain(Kind::Tcp(stream)) })
                }
            };
        }
        let name = match self.host {
            Host::Tcp { name, .. } => name,
            Host::Unix { .. } => "localhost",
        };
        let stream = tls::handshake(tls, name, stream).await?;
        let binding = tls::end_point(&stream);
        Ok(Socket {
            kind: Kind::Tls(Box::new(stream), binding),
            first: None,
            offers_tls: Some(true),
            guard: None,
            bounds: None,
        })
    }
}

/// Sends at once, and lets TCP find out when the other side is gone.
fn prepare(stream: &TcpStream, keepalive: &Keepalive) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    if keepalive.on {
        let (idle, interval) = (keepalive.idle, keepalive.interval);
        let probes = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(keepalive.count);
        socket.set_tcp_keepalive(&probes)?;
    }
    set_user_timeout(&socket, keepalive.user_timeout)
}

#[cfg(target_os = "linux")]
fn set_user_timeout(socket: &SockRef<'_>, timeout: Option<Duration>) -> io::Result<()> {
    timeout.map_or(Ok(()), |timeout| socket.set_tcp_user_timeout(Some(timeout)))
}

#[cfg(not(target_os = "linux"))]
fn set_user_timeout(_: &SockRef<'_>, _: Option<Duration>) -> io::Result<()> {
    Ok(())
}

/// Asks for TLS. Exactly one byte is read, so that nothing sent in the clear can be taken for encrypted.
async fn offers_tls(stream: &mut TcpStream) -> io::Result<u8> {
    let mut request = bytes::BytesMut::new();
    postgres_protocol::message::frontend::ssl_request(&mut request);
    stream.write_all(&request).await?;
    stream.read_u8().await
}

impl Socket {
    fn plain(kind: Kind) -> Self {
        Self { kind, first: Some(FirstByte::default()), offers_tls: None, guard: None, bounds: None }
    }

    /// The same socket, on which no more is read than that.
    pub(super) fn within(self, limits: Limits) -> Self {
        Self { bounds: Some(Bounds::new(limits)), ..self }
    }

    /// What SCRAM ties the password exchange to (`tls-server-end-point`, RFC 5929), on TLS.
    pub(super) fn end_point(&self) -> Option<Vec<u8>> {
        match &self.kind {
            Kind::Tls(_, end_point) => end_point.clone(),
            Kind::Tcp(_) | Kind::Unix(_) => None,
        }
    }

    /// Whether TLS protects it.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.kind, Kind::Tls(..))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (socket, before) = (self.get_mut(), buffer.filled().len());
        let polled = match &mut socket.kind {
            Kind::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Kind::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Kind::Tls(stream, _) => Pin::new(stream).poll_read(cx, buffer),
        };
        if socket.first.is_some()
            && let Some(byte) = buffer.filled().get(before)
            && let Some(first) = socket.first.take()
        {
            first.store(*byte, Ordering::Relaxed);
        }
        if let Some(guard) = &mut socket.guard {
            match guard.look(buffer.filled().get(before..).unwrap_or_default()) {
                Ok(Watched::Entering) => {}
                Ok(Watched::Entered) => socket.guard = None,
                // Nothing of it is handed on, so nothing is sent in answer.
                Err(unwanted) => {
                    buffer.set_filled(before);
                    return Poll::Ready(Err(io::Error::other(unwanted)));
                }
            }
        }
        if let Some(bounds) = &mut socket.bounds
            && let Err(excess) = bounds.look(buffer.filled().get(before..).unwrap_or_default())
        {
            buffer.set_filled(before);
            return Poll::Ready(Err(io::Error::other(excess)));
        }
        polled
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().kind {
            Kind::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Kind::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Kind::Tls(stream, _) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Kind::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Kind::Tls(stream, _) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Kind::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Kind::Tls(stream, _) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

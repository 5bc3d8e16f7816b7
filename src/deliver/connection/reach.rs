//! Makes connections: name, TCP, TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::SendError;

/// The next address is tried as well when one has not answered for so long (RFC 8305, 5).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);
/// Addresses of a name that are tried; further ones are left out.
const ADDRESSES_MAX: usize = 16;
const KEEPALIVE: Duration = Duration::from_secs(15);

/// How a name is looked up, for each connection anew.
pub(in crate::deliver) type Lookup =
    Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// By the system's resolver.
pub(in crate::deliver) fn system() -> Lookup {
    Arc::new(|host, port| {
        Box::pin(
            async move { tokio::net::lookup_host((host, port)).await.map(|found| found.take(ADDRESSES_MAX).collect()) },
        )
    })
}

/// Where an endpoint is, and what is spoken to it.
pub(in crate::deliver) struct Place {
    /// A name without a dot at its end, or an IP address without brackets.
    pub(in crate::deliver) host: String,
    pub(in crate::deliver) port: u16,
    /// `None` for http.
    pub(in crate::deliver) tls: Option<(TlsConnector, ServerName<'static>)>,
    pub(in crate::deliver) lookup: Lookup,
    /// How long what was written may wait for the peer's acknowledgement.
    pub(in crate::deliver) user_timeout: Duration,
}

/// A connected socket.
pub(super) enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What the endpoint speaks on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    Http1,
    Http2,
}

impl Place {
    /// Connects and, for https, shakes hands.
    pub(super) async fn connect(&self) -> Result<(Socket, Speaks), SendError> {
        let addresses = self.addresses().await.map_err(SendError::Lookup)?;
        let stream = first(addresses).await.map_err(SendError::Connect)?;
        self.tune(&stream).map_err(SendError::Connect)?;
        let Some((connector, name)) = &self.tls else { return Ok((Socket::Plain(stream), Speaks::Http1)) };
        let stream = connector.connect(name.clone(), stream).await.map_err(SendError::Tls)?;
        let speaks = match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Speaks::Http2,
            Some(_) | None => Speaks::Http1,
        };
        Ok((Socket::Tls(Box::new(stream)), speaks))
    }

    async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, self.port)]);
        }
        (self.lookup)(self.host.clone(), self.port).await
    }

    fn tune(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(stream);
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        socket.set_tcp_user_timeout(Some(self.user_timeout))?;
        Ok(())
    }
}

/// The first of `addresses` that takes a connection, in their order, each given a head start before the next.
async fn first(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut waiting = addresses.into_iter();
    let mut tried = FuturesUnordered::new();
    let mut refused = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        match waiting.next() {
            Some(address) => tried.push(TcpStream::connect(address)),
            None if tried.is_empty() => return Err(refused),
            None => {}
        }
        let ended = if waiting.len() == 0 {
            tried.next().await
        } else {
            tokio::time::timeout(NEXT_ADDRESS_AFTER, tried.next()).await.unwrap_or(None)
        };
        match ended {
            Some(Ok(stream)) => return Ok(stream),
            Some(Err(error)) => refused = error,
            None => {}
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

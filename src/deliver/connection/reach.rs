//! Makes connections: name, TCP, TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::SendError;
use super::lookup::Lookups;
use crate::deliver::egress::Egress;

/// The next address is tried as well when one has not answered for so long (RFC 8305, 5).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);
/// Addresses of a name that are tried; further ones are left out.
const ADDRESSES_MAX: usize = 16;
/// An idle connection is asked after so long, and so often, whether it is still there; then it counts as broken.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 3;

/// Where an endpoint is, and what is spoken to it.
pub(in crate::deliver) struct Place {
    /// A name without a dot at its end, or an IP address without brackets.
    pub(in crate::deliver) host: String,
    pub(in crate::deliver) port: u16,
    /// `None` for http.
    pub(in crate::deliver) tls: Option<(TlsConnector, ServerName<'static>)>,
    pub(in crate::deliver) lookups: Lookups,
    pub(in crate::deliver) egress: Egress,
    /// How long what was written may wait for the peer's acknowledgement.
    pub(in crate::deliver) user_timeout: Duration,
}

/// A connected socket, and the place that it takes among all connections.
pub(super) struct Socket {
    pub(super) wire: Wire,
    _place: Option<OwnedSemaphorePermit>,
}

/// What is spoken through.
pub(super) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// The place is given back after the socket is closed.
    pub(super) fn keeps(self, place: OwnedSemaphorePermit) -> Self {
        Self { _place: Some(place), ..self }
    }
}

impl From<Wire> for Socket {
    fn from(wire: Wire) -> Self {
        Self { wire, _place: None }
    }
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
        let addresses =
            self.egress.allowed(self.addresses().await.map_err(SendError::Lookup)?).map_err(SendError::Denied)?;
        let stream = first(in_turn(addresses), TcpStream::connect).await.map_err(SendError::Connect)?;
        self.tune(&stream).map_err(SendError::Connect)?;
        let Some((connector, name)) = &self.tls else { return Ok((Wire::Plain(stream).into(), Speaks::Http1)) };
        let stream = connector.connect(name.clone(), stream).await.map_err(SendError::Tls)?;
        let speaks = match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Speaks::Http2,
            Some(_) | None => Speaks::Http1,
        };
        Ok((Wire::Tls(Box::new(stream)).into(), speaks))
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, Arc<io::Error>> {
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, self.port)]);
        }
        self.lookups.addresses(&self.host, self.port).await.map(|found| found.to_vec())
    }

    fn tune(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(stream);
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
        socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_RETRIES))?;
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        socket.set_tcp_user_timeout(Some(self.user_timeout))?;
        Ok(())
    }
}

/// The addresses that are tried, the two families in turn, as the way of one of them may be dead for all its addresses
/// (RFC 8305, 4). The resolver's first stays the first.
fn in_turn(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let is_v6_first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (ones, others): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv6() == is_v6_first);
    let (mut ones, mut others) = (ones.into_iter(), others.into_iter());
    let mut turns = Vec::new();
    while turns.len() < ADDRESSES_MAX {
        let (one, other) = (ones.next(), others.next());
        if one.is_none() && other.is_none() {
            break;
        }
        turns.extend(one.into_iter().chain(other));
    }
    turns.truncate(ADDRESSES_MAX);
    turns
}

/// How much a failure to connect says: that there is no way to an address says least, if another was reached.
fn weight(error: &io::Error) -> u8 {
    let kind = error.kind();
    if kind == io::ErrorKind::NotFound {
        0
    } else if kind == io::ErrorKind::NetworkUnreachable || kind == io::ErrorKind::HostUnreachable {
        1
    } else if kind == io::ErrorKind::AddrNotAvailable {
        2
    } else {
        3
    }
}

/// The first of `addresses` to which `connect` leads, in their order, each given a head start before the next.
async fn first<T, C: Future<Output = io::Result<T>>>(
    addresses: Vec<SocketAddr>,
    connect: impl Fn(SocketAddr) -> C,
) -> io::Result<T> {
    let mut waiting = addresses.into_iter();
    let mut tried = FuturesUnordered::new();
    let mut refused = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        match waiting.next() {
            Some(address) => tried.push(connect(address)),
            None if tried.is_empty() => return Err(refused),
            None => {}
        }
        let ended = if waiting.len() == 0 {
            tried.next().await
        } else {
            tokio::time::timeout(NEXT_ADDRESS_AFTER, tried.next()).await.unwrap_or(None)
        };
        match ended {
            Some(Ok(reached)) => return Ok(reached),
            Some(Err(error)) if weight(&error) >= weight(&refused) => refused = error,
            Some(Err(_)) => {}
            None => {}
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().wire {
            Wire::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Wire::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().wire {
            Wire::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Wire::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().wire {
            Wire::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Wire::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.wire {
            Wire::Plain(stream) => stream.is_write_vectored(),
            Wire::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().wire {
            Wire::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Wire::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().wire {
            Wire::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Wire::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::lookup;
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_are_tried_in_turn_and_the_resolvers_first_stays_the_first() {
        for (found, tried) in [
            (&[][..], &[][..]),
            (&["1.0.0.1:1", "1.0.0.2:1"], &["1.0.0.1:1", "1.0.0.2:1"]),
            (&["[::1]:1", "[::2]:1", "[::3]:1", "1.0.0.1:1"], &["[::1]:1", "1.0.0.1:1", "[::2]:1", "[::3]:1"]),
            (&["1.0.0.1:1", "1.0.0.2:1", "[::1]:1"], &["1.0.0.1:1", "[::1]:1", "1.0.0.2:1"]),
        ] {
            assert_eq!(in_turn(addresses(found)), addresses(tried), "{found:?}");
        }
        let mut many: Vec<String> = (1..40).map(|number| format!("[::{number}]:1")).collect();
        many.push("1.0.0.1:1".to_owned());
        let tried = in_turn(addresses(&many.iter().map(String::as_str).collect::<Vec<_>>()));
        assert_eq!((tried.len(), tried[1].is_ipv4()), (16, true), "the only address of its family is not cut off");
    }

    #[tokio::test]
    async fn what_an_address_that_was_reached_said_is_told_before_that_there_is_no_way_to_another() {
        let told = |kinds: &'static [io::ErrorKind]| {
            let addresses = (0..kinds.len()).map(|at| SocketAddr::from(([192, 0, 2, 1], u16::try_from(at).unwrap())));
            first(
                addresses.collect(),
                move |address| async move { Err::<(), _>(kinds[usize::from(address.port())].into()) },
            )
        };
        let (refused, unreachable) = (io::ErrorKind::ConnectionRefused, io::ErrorKind::NetworkUnreachable);
        for (kinds, said) in [
            (&[io::ErrorKind::ConnectionRefused, io::ErrorKind::NetworkUnreachable][..], refused),
            (&[io::ErrorKind::NetworkUnreachable, io::ErrorKind::ConnectionRefused], refused),
            (&[io::ErrorKind::NetworkUnreachable], unreachable),
            (&[], io::ErrorKind::NotFound),
        ] {
            assert_eq!(told(kinds).await.unwrap_err().kind(), said, "{kinds:?}");
        }
        let kinds = [
            io::ErrorKind::NotFound,
            io::ErrorKind::NetworkUnreachable,
            io::ErrorKind::AddrNotAvailable,
            io::ErrorKind::ConnectionRefused,
        ];
        assert!(kinds.map(io::Error::from).windows(2).all(|pair| weight(&pair[0]) < weight(&pair[1])));
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_keeps_nobody_from_the_next_and_may_still_be_the_one() {
        let three = || addresses(&["192.0.2.1:1", "192.0.2.2:2", "192.0.2.3:3"]);
        let tried = std::sync::Mutex::new(Vec::new());
        let reached = first(three(), |address| {
            tried.lock().unwrap().push(address.port());
            async move { if address.port() == 3 { Ok(3) } else { std::future::pending().await } }
        });
        assert_eq!(reached.await.unwrap(), 3);
        assert_eq!(*tried.lock().unwrap(), [1, 2, 3], "in their order");
        // The first answers as soon as the last was asked.
        let asked = tokio::sync::Notify::new();
        let reached = first(three(), |address| {
            let asked = &asked;
            async move {
                match address.port() {
                    1 => asked.notified().await,
                    3 => {
                        asked.notify_one();
                        std::future::pending::<()>().await;
                    }
                    _ => std::future::pending().await,
                }
                Ok(address.port())
            }
        });
        assert_eq!(reached.await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_is_noticed_after_three_questions() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let place = Place {
            host: "127.0.0.1".to_owned(),
            port: listener.local_addr().unwrap().port(),
            tls: None,
            lookups: Lookups::new(lookup::system()),
            egress: Egress::default(),
            user_timeout: Duration::from_secs(30),
        };
        let (Socket { wire: Wire::Plain(stream), .. }, Speaks::Http1) = place.connect().await.unwrap() else {
            panic!()
        };
        let socket = SockRef::from(&stream);
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
    }
}

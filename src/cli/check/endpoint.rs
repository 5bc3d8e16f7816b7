//! Whether an endpoint can be reached: name, TCP, TLS. No request is sent.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use url::Url;

use super::findings::{Finding, Sort};
use crate::config::SinkConfig;
use crate::deliver::egress::{Denied, Egress};
use crate::deliver::endpoint::connector;
use crate::fault::chain;
use crate::tls_fault::{Peer, TlsFault};

/// How long an endpoint may take.
const LIMIT: Duration = Duration::from_secs(3);
/// Endpoints tried at a time; the others wait their turn.
const AT_ONCE: usize = 16;

/// One finding for each host and port, and for each file of authorities, naming the sinks behind it.
pub(crate) async fn look(sinks: &[SinkConfig]) -> Vec<Finding> {
    let mut places: BTreeMap<(String, Option<PathBuf>), (SinkConfig, Vec<String>)> = BTreeMap::new();
    for sink in sinks {
        let place = (sink.endpoint.origin().ascii_serialization(), sink.tls_ca.clone());
        let entry = places.entry(place).or_insert_with(|| (sink.clone(), Vec::new()));
        entry.1.push(sink.name.clone());
    }
    let mut findings = BTreeMap::new();
    let mut tries = JoinSet::new();
    for (place, (sink, names)) in places {
        if tries.len() >= AT_ONCE
            && let Some(Ok((place, finding))) = tries.join_next().await
        {
            findings.insert(place, finding);
        }
        tries.spawn(async move {
            let finding = look_at(&place.0, &sink, &names).await;
            (place, finding)
        });
    }
    while let Some(joined) = tries.join_next().await {
        if let Ok((place, finding)) = joined {
            findings.insert(place, finding);
        }
    }
    findings.into_values().collect()
}

async fn look_at(origin: &str, sink: &SinkConfig, sinks: &[String]) -> Finding {
    let behind = sinks.join(", ");
    let connector = match connector(sink) {
        Ok(connector) => connector,
        Err(error) => {
            let what = format!("{} (sink {behind})", chain(&error));
            let mend = "mend the file, or name another in tls.ca of the sink: walhook does not start without it";
            return Finding { sort: Sort::Endpoint, ..Finding::fail(origin, what, mend) };
        }
    };
    let reached = tokio::time::timeout(LIMIT, reach(&sink.endpoint, connector, &sink.egress)).await;
    let reached = reached.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 3 s")));
    let found = match reached {
        Ok(Reached::Tls) => Finding::ok(origin, format!("reachable (sink {behind})")),
        // A request is the sink's to send.
        Ok(Reached::Open) => Finding::ok(
            origin,
            format!(
                "takes connections (sink {behind}); whether HTTP is spoken there only a request shows, and none is sent"
            ),
        ),
        Ok(Reached::Speaks) => Finding::warn(
            origin,
            format!("takes connections and speaks first, which HTTP does not (sink {behind})"),
            "another service listens there: correct host and port in the sink's url",
        ),
        Ok(Reached::Closes) => Finding::warn(
            origin,
            format!("takes connections and closes them before a request is sent (sink {behind})"),
            "a proxy or load balancer without a server behind it closes connections so; look into its log, or correct host and port \
             in the sink's url",
        ),
        Err(error) => {
            let mend = format!("walhook runs without it and retries; {}", mend(&error));
            Finding::warn(origin, format!("not reachable (sink {behind}): {error}"), mend)
        }
    };
    Finding { sort: Sort::Endpoint, ..found }
}

/// What to do about an error of [`reach`].
fn mend(error: &io::Error) -> &'static str {
    if let Some(fault) = TlsFault::of(error) {
        return fault.advice(Peer::Endpoint);
    }
    if error.get_ref().is_some_and(|inner| inner.is::<Denied>()) {
        return "correct the sink's url, or leave the network out of egress.deny";
    }
    let kind = error.kind();
    if kind == io::ErrorKind::ConnectionRefused {
        "start the endpoint, or correct host and port in the sink's url"
    } else if kind == io::ErrorKind::TimedOut {
        "look whether the endpoint runs and whether a firewall on the way drops packets"
    } else if matches!(kind, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) {
        "a proxy or load balancer without a server behind it closes connections so, and a port without TLS"
    } else {
        "check the host in the sink's url, name resolution and the network"
    }
}

/// What became of a connection on which nothing was sent but the beginning of TLS.
#[derive(Debug, PartialEq, Eq)]
enum Reached {
    /// TLS was agreed on.
    Tls,
    /// It stays open.
    Open,
    /// Something came.
    Speaks,
    /// The other side hung up.
    Closes,
}

/// How long one that speaks first, or hangs up at once, is waited for.
const MOMENT: Duration = Duration::from_millis(300);

async fn reach(url: &Url, connector: Option<TlsConnector>, egress: &Egress) -> io::Result<Reached> {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let host = host.strip_suffix('.').unwrap_or(host).to_owned();
    let found = lookup_host((host.as_str(), url.port_or_known_default().unwrap_or(443))).await?;
    let allowed = egress.allowed(found.collect()).map_err(io::Error::other)?;
    let mut stream = TcpStream::connect(&*allowed).await?;
    let Some(connector) = connector else {
        return Ok(match tokio::time::timeout(MOMENT, stream.read(&mut [0])).await {
            Err(_) => Reached::Open,
            Ok(Ok(1..)) => Reached::Speaks,
            Ok(Ok(0) | Err(_)) => Reached::Closes,
        });
    };
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    connector.connect(name, stream).await.map(|_| Reached::Tls)
}

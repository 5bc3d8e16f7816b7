//! Whether an endpoint can be reached: name, TCP, TLS. No request is sent.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use url::Url;

use super::findings::{Finding, Sort};
use crate::config::SinkConfig;
use crate::tls_fault::{Peer, TlsFault};

/// How long an endpoint may take.
const LIMIT: Duration = Duration::from_secs(3);
/// Endpoints tried at a time; the others wait their turn.
const AT_ONCE: usize = 16;

/// One finding for each host and port, naming the sinks behind it.
pub(crate) async fn look(sinks: &[SinkConfig]) -> Vec<Finding> {
    let mut places: BTreeMap<String, (Url, Vec<String>)> = BTreeMap::new();
    for sink in sinks {
        let origin = sink.endpoint.origin().ascii_serialization();
        let entry = places.entry(origin).or_insert_with(|| (sink.endpoint.clone(), Vec::new()));
        entry.1.push(sink.name.clone());
    }
    let mut findings = BTreeMap::new();
    let mut tries = JoinSet::new();
    for (origin, (url, names)) in places {
        if tries.len() >= AT_ONCE
            && let Some(Ok((origin, finding))) = tries.join_next().await
        {
            findings.insert(origin, finding);
        }
        tries.spawn(async move { (origin.clone(), look_at(&origin, &url, &names).await) });
    }
    while let Some(joined) = tries.join_next().await {
        if let Ok((origin, finding)) = joined {
            findings.insert(origin, finding);
        }
    }
    findings.into_values().collect()
}

async fn look_at(origin: &str, url: &Url, sinks: &[String]) -> Finding {
    let reached = tokio::time::timeout(LIMIT, reach(url)).await;
    let reached = reached.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 3 s")));
    let behind = sinks.join(", ");
    let found = match reached {
        Ok(()) => Finding::ok(origin, format!("reachable (sink {behind})")),
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

async fn reach(url: &Url) -> io::Result<()> {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let stream = TcpStream::connect((host.as_str(), url.port_or_known_default().unwrap_or(443))).await?;
    if url.scheme() != "https" {
        return Ok(());
    }
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    connector()?.connect(name, stream).await.map(drop)
}

fn connector() -> io::Result<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

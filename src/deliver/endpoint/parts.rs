//! What is prepared once for a sink's endpoint: where it is, whom it trusts, what all its requests carry.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Uri, header};
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::{EndpointError, WALHOOK_SINK};
use crate::config::SinkConfig;
use crate::deliver::connection::clock::{Clock, Pace};
use crate::deliver::connection::life::AGE;
use crate::deliver::connection::lookup::{self, Lookup, Lookups};
use crate::deliver::connection::pool::Parts;
use crate::deliver::connection::reach::Place;
use crate::machine::descriptors::Descriptors;
use crate::trust::{Trusted, Verifier};

/// Connecting, TLS included, takes no longer, even if `request_timeout` is long.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(10);

/// How names are looked up, how long a connection takes requests, by which clock, how long it waits for others, and the
/// seed of what is left to chance: a test has its own.
pub(in crate::deliver) struct Ways {
    pub(in crate::deliver) lookup: Lookup,
    pub(in crate::deliver) age: RangeInclusive<Duration>,
    pub(in crate::deliver) clock: Clock,
    pub(in crate::deliver) pace: Pace,
    pub(in crate::deliver) seed: u64,
    pub(in crate::deliver) descriptors: Descriptors,
}

impl Default for Ways {
    fn default() -> Self {
        let (clock, pace) = Default::default();
        let descriptors = Descriptors::default();
        Self { lookup: lookup::system(), age: AGE, clock, pace, seed: fastrand::u64(..), descriptors }
    }
}

/// The parts of the sink's pool; `None` if its address cannot stand in a request.
pub(super) fn parts(sink: &SinkConfig, connector: Option<TlsConnector>, ways: Ways) -> Option<Parts> {
    let place = place(sink, connector, Lookups::new(ways.lookup))?;
    let url = &sink.endpoint;
    let authority = url.host_str().map(|host| match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })?;
    let path = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    Some(Parts {
        place,
        uri: Uri::builder().scheme(url.scheme()).authority(authority.as_str()).path_and_query(&*path).build().ok()?,
        path: path.parse().ok()?,
        host: HeaderValue::from_str(&authority).ok()?,
        // A tenth of the deadline is left, so that a slow connect is told from a slow answer.
        connect_timeout: (sink.request_timeout / 10 * 9).min(CONNECT_TIMEOUT_MAX),
        age: ways.age,
        idle_max: ways.descriptors.idle_max(sink.max_in_flight),
        descriptors: ways.descriptors,
        clock: ways.clock,
        pace: ways.pace,
        seed: ways.seed,
    })
}

/// A name's last dot says that it is whole; no certificate has it.
fn place(sink: &SinkConfig, connector: Option<TlsConnector>, lookups: Lookups) -> Option<Place> {
    let url = &sink.endpoint;
    let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']');
    let host = host.strip_suffix('.').unwrap_or(host).to_owned();
    let name = || ServerName::try_from(host.clone()).ok();
    let tls = match connector {
        Some(connector) => Some((connector, name()?)),
        None => None,
    };
    // A receiver that reads slowly has the whole request_timeout.
    let user_timeout = sink.request_timeout.max(Duration::from_secs(30));
    let egress = sink.egress.clone();
    Some(Place { host, port: url.port_or_known_default()?, tls, lookups, egress, user_timeout })
}

/// The sink's own, and over them ours; the configuration refuses sinks that set one of these.
pub(super) fn unchanging_headers(sink: &SinkConfig) -> Result<HeaderMap, EndpointError> {
    let refused = |source| EndpointError::HeaderValue { sink: sink.name.clone(), source };
    let mut headers = sink.headers.clone();
    headers.reserve(9);
    headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("walhook/", env!("CARGO_PKG_VERSION"))));
    headers.insert(WALHOOK_SINK, HeaderValue::from_str(&sink.name).map_err(refused)?);
    Ok(headers)
}

/// What shakes hands with the endpoint of `sink`; `None` if it is not https.
pub(crate) fn connector(sink: &SinkConfig) -> Result<Option<TlsConnector>, EndpointError> {
    if sink.endpoint.scheme() != "https" {
        return Ok(None);
    }
    let name = || sink.name.clone();
    let trusted = match &sink.tls_ca {
        Some(path) => Trusted::of_file(path).map_err(|source| EndpointError::CaFile { sink: name(), source })?,
        None => Trusted::of_machine().map_err(|source| EndpointError::NoRoots { sink: name(), source })?,
    };
    connector_to(sink, trusted).map(Some)
}

/// TLS with ring, whatever provider the process has or has not installed.
pub(super) fn connector_to(sink: &SinkConfig, trusted: Trusted) -> Result<TlsConnector, EndpointError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier { provider: Arc::clone(&provider), trusted: Some(trusted), check_name: true };
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| EndpointError::Tls { sink: sink.name.clone(), source })?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

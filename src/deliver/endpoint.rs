//! A sink's endpoint: what is kept for it, and one attempt.
//!
//! An attempt is one POST that the endpoint may have taken. A request goes out a second time of its own accord only if
//! the endpoint has certainly not taken it: its connection was closed before a byte of it was written, or HTTP/2 said so
//! (REFUSED_STREAM, or a GOAWAY that names an earlier stream as the last). These are sent again at once, a few times at
//! most, and counted. As soon as the endpoint may have it, a broken connection is a failed attempt; whether there is
//! another one is the scheduler's decision.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use url::Url;

use super::answer::Answer;
use super::attempt::{Attempt, Kept, Verdict, of_status, phrase};
use super::category::Category;
use super::connection::error::SendError;
use super::connection::life::AGE;
use super::connection::lookup::{self, Lookup, Lookups};
use super::connection::pool::{Parts, Pool, Taken, Under};
use super::connection::reach::Place;
use super::connection::{Failed, Outgoing};
use super::failure::{classify, describe};
use super::frozen::Frozen;
use super::sign::{SigningSecret, sign};
use crate::config::{SinkConfig, SuccessRule};
use crate::trust::file::CertificateFileError;
use crate::trust::{NoAuthorities, Trusted, Verifier};

/// Connecting, TLS included, takes no longer, even if `request_timeout` is long.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(10);
/// Signing more than this (about a millisecond) goes to a thread that may block.
const SIGN_INLINE_BYTES_MAX: usize = 1024 * 1024;
/// How often an attempt is sent at most until the endpoint takes its request; then it has failed.
const TRIES_MAX: u32 = 5;
/// From this one on it has the connection to itself: an endpoint that takes a few requests a connection takes the first.
const ALONE_FROM: u32 = 3;
/// And from this one on it pauses before, by chance within this: many may have been refused together.
const PAUSE_MILLIS: RangeInclusive<u64> = 20..=200;

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const WALHOOK_SINK: HeaderName = HeaderName::from_static("walhook-sink");
const WALHOOK_ATTEMPT: HeaderName = HeaderName::from_static("walhook-attempt");

/// One sink's endpoint. Clones share the connections.
#[derive(Clone)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

struct Inner {
    pool: Arc<Pool>,
    peer: String,
    headers: HeaderMap,
    secrets: Arc<[SigningSecret]>,
    success: SuccessRule,
    request_timeout: Duration,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("peer", &self.inner.peer).finish_non_exhaustive()
    }
}

/// The endpoint of a sink cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Not http or https, or without a host.
    #[error("the endpoint of sink {sink} is not an http or https address with a host")]
    Address {
        /// The sink.
        sink: String,
    },
    /// A sink's name cannot stand in a header.
    #[error("the name of sink {sink} cannot stand in a header")]
    HeaderValue {
        /// The sink.
        sink: String,
        /// Why.
        #[source]
        source: http::header::InvalidHeaderValue,
    },
    /// An https endpoint, and the machine has no root certificates.
    #[error("the endpoint of sink {sink} cannot be checked")]
    NoRoots {
        /// The sink.
        sink: String,
        /// Why.
        #[source]
        source: NoAuthorities,
    },
    /// The file of the sink's authority is of no use.
    #[error("the file that tls.ca of sink {sink} names is of no use")]
    CaFile {
        /// The sink.
        sink: String,
        /// Why.
        #[source]
        source: CertificateFileError,
    },
    /// The TLS library refuses its settings.
    #[error("cannot set up TLS for sink {sink}")]
    Tls {
        /// The sink.
        sink: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

impl Endpoint {
    /// Prepares everything that is the same for all attempts. Reads the authorities' certificates, of the file that `tls.ca`
    /// names or of the machine, if the endpoint is https; opens no connection.
    pub fn new(sink: &SinkConfig) -> Result<Self, EndpointError> {
        Self::with_tls(sink, connector(sink)?, Ways::default())
    }

    /// The same, trusting `roots` only.
    pub fn with_roots(sink: &SinkConfig, roots: RootCertStore) -> Result<Self, EndpointError> {
        Self::with_ways(sink, roots, Ways::default())
    }

    /// The same, with ways of its own.
    pub(super) fn with_ways(sink: &SinkConfig, roots: RootCertStore, ways: Ways) -> Result<Self, EndpointError> {
        let is_https = sink.endpoint.scheme() == "https";
        let connector = if is_https { Some(connector_to(sink, roots.into())?) } else { None };
        Self::with_tls(sink, connector, ways)
    }

    /// The same endpoint and connections, for requests that wait longer or shorter.
    #[cfg(test)]
    pub(super) fn with_request_timeout(&self, request_timeout: Duration) -> Self {
        let Inner { pool, peer, headers, secrets, success, .. } = &*self.inner;
        let (pool, secrets) = (Arc::clone(pool), Arc::clone(secrets));
        let (peer, headers, success) = (peer.clone(), headers.clone(), success.clone());
        Self { inner: Arc::new(Inner { pool, peer, headers, secrets, success, request_timeout }) }
    }

    fn with_tls(sink: &SinkConfig, connector: Option<TlsConnector>, ways: Ways) -> Result<Self, EndpointError> {
        let address = || EndpointError::Address { sink: sink.name.clone() };
        let url = &sink.endpoint;
        let peer = match (url.scheme(), url.host_str(), url.port_or_known_default()) {
            ("http" | "https", Some(host), Some(port)) => format!("{host}:{port}"),
            _ => return Err(address()),
        };
        let inner = Inner {
            pool: Pool::new(parts(sink, connector, ways).ok_or_else(address)?),
            peer,
            headers: unchanging_headers(sink)?,
            secrets: sink.signing_secrets.clone().into(),
            success: sink.success.clone(),
            request_timeout: sink.request_timeout,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Sends `frozen` once and says what came of it, within `request_timeout`. `number` is the attempt's, from 1. Dropped
    /// before its end, it drops the connection.
    pub async fn attempt(&self, frozen: &Frozen, number: u32) -> Attempt {
        let started_at = SystemTime::now();
        let clock = Instant::now();
        let mut seen = Seen::default();
        let exchange = self.exchange(frozen, number, started_at, &mut seen);
        let end = match tokio::time::timeout(self.inner.request_timeout, exchange).await {
            Ok(Ok(())) => End::Whole,
            Ok(Err(error)) => End::Broken(error),
            Err(_) => match seen.under {
                Under::Queue => End::Queued,
                Under::Way | Under::Http1 | Under::Http2(_) => End::Late,
            },
        };
        let Seen { answer, resent, under } = seen;
        if matches!(end, End::Late) && answer.status.is_none() {
            self.inner.pool.unanswered(under, clock);
        }
        Attempt {
            verdict: self.judge(answer.status, end),
            status: answer.status.map(|status| status.as_u16()),
            started_at,
            duration: clock.elapsed(),
            response: Kept { body: Bytes::from(answer.body), truncated: answer.truncated },
            retry_after: answer.retry_after,
            resent,
        }
    }

    async fn exchange(
        &self,
        frozen: &Frozen,
        number: u32,
        started_at: SystemTime,
        seen: &mut Seen,
    ) -> Result<(), Arc<SendError>> {
        let headers = self.headers(frozen, number, started_at).await;
        loop {
            let outgoing = Outgoing { headers: headers.clone(), body: frozen.body.clone() };
            seen.under = Under::Way;
            let alone = seen.resent + 1 >= ALONE_FROM;
            if alone {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(PAUSE_MILLIS))).await;
            }
            let taken = self.inner.pool.take(alone).await?;
            match self.send(taken, outgoing, seen).await {
                Ok(()) => return Ok(()),
                Err(Failed::Broken(error)) => return Err(Arc::new(error)),
                Err(Failed::Untaken(_)) if seen.resent + 1 < TRIES_MAX => seen.resent += 1,
                Err(Failed::Untaken(error)) => {
                    let source = Box::new(error);
                    return Err(Arc::new(SendError::NeverTaken { tries: TRIES_MAX, source }));
                }
            }
        }
    }

    async fn send(&self, taken: Taken, outgoing: Outgoing, seen: &mut Seen) -> Result<(), Failed> {
        let stream = match &taken {
            Taken::Own(_) => {
                seen.under = Under::Http1;
                None
            }
            Taken::Shared(connection) => {
                seen.under = Under::Queue;
                let stream = connection.stream().await?;
                seen.under = Under::Http2(Arc::clone(connection));
                Some(stream)
            }
        };
        let sent = self.inner.pool.exchange(taken, outgoing, &mut seen.answer).await;
        drop(stream);
        sent
    }

    async fn headers(&self, frozen: &Frozen, number: u32, started_at: SystemTime) -> HeaderMap {
        let timestamp = started_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut headers = self.inner.headers.clone();
        headers.insert(WEBHOOK_ID, frozen.id.header());
        headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(timestamp));
        headers.insert(WALHOOK_ATTEMPT, HeaderValue::from(number));
        if let Some(signature) = self.signature(frozen, timestamp).await {
            headers.insert(WEBHOOK_SIGNATURE, signature);
        }
        headers
    }

    async fn signature(&self, frozen: &Frozen, timestamp: u64) -> Option<HeaderValue> {
        let id = frozen.id.to_string();
        if self.inner.secrets.is_empty() || frozen.body.len() <= SIGN_INLINE_BYTES_MAX {
            return sign(&self.inner.secrets, &id, timestamp, &frozen.body);
        }
        let (secrets, body) = (Arc::clone(&self.inner.secrets), frozen.body.clone());
        let signing = tokio::task::spawn_blocking(move || sign(&secrets, &id, timestamp, &body));
        // A runtime that shuts down may drop the work; unsigned is no way out.
        signing.await.unwrap_or_else(|_| sign(&self.inner.secrets, &frozen.id.to_string(), timestamp, &frozen.body))
    }

    fn judge(&self, status: Option<StatusCode>, end: End) -> Verdict {
        let verdict = status.map(|status| (status, of_status(status, &self.inner.success)));
        match (verdict, end) {
            // A refusal is one, however its body ended.
            (Some((_, refused @ Verdict::Failed { .. })), _) => refused,
            (Some((_, Verdict::Acknowledged)), End::Whole) => Verdict::Acknowledged,
            (Some((status, Verdict::Acknowledged)), End::Late) => {
                let timeout = self.inner.request_timeout;
                let status = phrase(status);
                let message = format!("{status}, but its body did not end within {timeout:?} (request_timeout)");
                Verdict::failed(Category::Timeout, message)
            }
            (None, End::Late) => {
                let message = format!("no answer within {:?} (request_timeout)", self.inner.request_timeout);
                Verdict::failed(Category::Timeout, message)
            }
            (_, End::Queued) => {
                let timeout = self.inner.request_timeout;
                let message = format!(
                    "not sent within {timeout:?} (request_timeout): as many requests as the endpoint takes at a time on its HTTP/2 \
                     connection were under way; lower max_in_flight, or let the endpoint take more streams"
                );
                Verdict::failed(Category::Timeout, message)
            }
            (_, End::Broken(error)) => {
                let category = classify(&error);
                Verdict::failed(category, describe(&error, category, &self.inner.peer))
            }
            (None, End::Whole) => Verdict::failed(Category::ProtocolError, "the answer has no status"),
        }
    }
}

/// What was seen of an exchange before it ended, in whichever way.
#[derive(Default)]
struct Seen {
    answer: Answer,
    resent: u32,
    under: Under,
}

enum End {
    Whole,
    Broken(Arc<SendError>),
    Late,
    /// In time there was no stream for it.
    Queued,
}

/// How names are looked up, and how long a connection takes requests: a test has its own.
pub(super) struct Ways {
    pub(super) lookup: Lookup,
    pub(super) age: RangeInclusive<Duration>,
}

impl Default for Ways {
    fn default() -> Self {
        Self { lookup: lookup::system(), age: AGE }
    }
}

/// The parts of the sink's pool; `None` if its address cannot stand in a request.
fn parts(sink: &SinkConfig, connector: Option<TlsConnector>, ways: Ways) -> Option<Parts> {
    let place = place(&sink.endpoint, connector, Lookups::new(ways.lookup), sink.request_timeout)?;
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
        idle_max: sink.max_in_flight,
    })
}

/// A name's last dot says that it is whole; no certificate has it.
fn place(url: &Url, connector: Option<TlsConnector>, lookups: Lookups, request_timeout: Duration) -> Option<Place> {
    let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']');
    let host = host.strip_suffix('.').unwrap_or(host).to_owned();
    let name = || ServerName::try_from(host.clone()).ok();
    let tls = match connector {
        Some(connector) => Some((connector, name()?)),
        None => None,
    };
    // A receiver that reads slowly has the whole request_timeout.
    let user_timeout = request_timeout.max(Duration::from_secs(30));
    Some(Place { host, port: url.port_or_known_default()?, tls, lookups, user_timeout })
}

/// The sink's own, and over them ours; the configuration refuses sinks that set one of these.
fn unchanging_headers(sink: &SinkConfig) -> Result<HeaderMap, EndpointError> {
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
fn connector_to(sink: &SinkConfig, trusted: Trusted) -> Result<TlsConnector, EndpointError> {
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

//! A sink's endpoint: the client that is kept for it, and one attempt.
//!
//! An attempt is exactly one POST. The client never sends a request a second time of its own accord, with one exception
//! that cannot be seen from outside: when a pooled connection turns out to be closed before the first byte of the request
//! was written to it, the request goes out on another connection. As soon as a byte may have left, a broken connection
//! is a failed attempt; whether there is another one is the scheduler's decision. reqwest's own repetition after
//! HTTP/2's REFUSED_STREAM and GOAWAY is turned off, so that every request is counted and logged.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use reqwest::{Body, Client, Request, redirect, retry};
use rustls::RootCertStore;
use url::Url;

use super::attempt::{Attempt, Kept, Verdict, of_status, phrase};
use super::category::Category;
use super::failure::{classify, describe};
use super::frozen::Frozen;
use super::retry_after::retry_after;
use super::sign::{SigningSecret, sign};
use crate::config::{SinkConfig, SuccessRule};

/// Most that is read of an answer's body; then the connection is dropped and the answer counts as whole.
pub const RESPONSE_READ_BYTES_MAX: usize = 64 * 1024;
/// Most that is kept of it.
pub const RESPONSE_KEPT_BYTES_MAX: usize = 16 * 1024;

/// Connecting, TLS included, takes no longer, even if `request_timeout` is long.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(10);
/// Receivers and proxies often close idle connections after 60 s; leave before them.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(55);
/// Signing more than this (about a millisecond) goes to a thread that may block.
const SIGN_INLINE_BYTES_MAX: usize = 1024 * 1024;

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
    client: Client,
    url: Url,
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
    #[error(
        "no root certificates on this machine to check the endpoint of sink {sink}; install ca-certificates or set SSL_CERT_FILE"
    )]
    NoRoots {
        /// The sink.
        sink: String,
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
    /// The HTTP client refuses its settings.
    #[error("cannot set up the HTTP client of sink {sink}")]
    Client {
        /// The sink.
        sink: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
}

impl Endpoint {
    /// Prepares everything that is the same for all attempts. Reads the machine's root certificates if the endpoint is
    /// https; opens no connection.
    pub fn new(sink: &SinkConfig) -> Result<Self, EndpointError> {
        let mut roots = RootCertStore::empty();
        if sink.endpoint.scheme() == "https" {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(EndpointError::NoRoots { sink: sink.name.clone() });
            }
        }
        Self::with_roots(sink, roots)
    }

    /// The same, trusting `roots` only.
    pub fn with_roots(sink: &SinkConfig, roots: RootCertStore) -> Result<Self, EndpointError> {
        let url = sink.endpoint.clone();
        let peer = match (url.scheme(), url.host_str(), url.port_or_known_default()) {
            ("http" | "https", Some(host), Some(port)) => format!("{host}:{port}"),
            _ => return Err(EndpointError::Address { sink: sink.name.clone() }),
        };
        let headers = unchanging_headers(sink)?;
        let inner = Inner {
            client: client(sink, roots)?,
            url,
            peer,
            headers,
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
            Err(_) => End::Late,
        };
        Attempt {
            verdict: self.judge(seen.status, end),
            status: seen.status.map(|status| status.as_u16()),
            started_at,
            duration: clock.elapsed(),
            response: Kept { body: Bytes::from(seen.body), truncated: seen.truncated },
            retry_after: seen.retry_after,
        }
    }

    async fn exchange(
        &self,
        frozen: &Frozen,
        number: u32,
        started_at: SystemTime,
        seen: &mut Seen,
    ) -> Result<(), reqwest::Error> {
        let mut request = Request::new(Method::POST, self.inner.url.clone());
        *request.headers_mut() = self.headers(frozen, number, started_at).await;
        *request.body_mut() = Some(Body::from(frozen.body.clone()));
        let mut response = self.inner.client.execute(request).await?;
        seen.status = Some(response.status());
        seen.retry_after = retry_after(response.status(), response.headers(), SystemTime::now());
        let mut read = 0;
        while let Some(chunk) = response.chunk().await? {
            read += chunk.len();
            seen.keep(&chunk);
            if read > RESPONSE_READ_BYTES_MAX {
                break;
            }
        }
        Ok(())
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
            (_, End::Broken(error)) => {
                let category = classify(&error);
                Verdict::failed(category, describe(&error, category, &self.inner.peer))
            }
            (None, End::Whole) => Verdict::failed(Category::ProtocolError, "the answer has no status"),
        }
    }
}

/// What was seen of an answer before the exchange ended, in whichever way.
#[derive(Default)]
struct Seen {
    status: Option<StatusCode>,
    retry_after: Option<Duration>,
    body: Vec<u8>,
    truncated: bool,
}

impl Seen {
    fn keep(&mut self, chunk: &[u8]) {
        let room = RESPONSE_KEPT_BYTES_MAX.saturating_sub(self.body.len());
        let (kept, rest) = chunk.split_at_checked(room).unwrap_or((chunk, &[]));
        self.body.extend_from_slice(kept);
        self.truncated |= !rest.is_empty();
    }
}

enum End {
    Whole,
    Broken(reqwest::Error),
    Late,
}

/// The sink's own, and over them ours; the configuration refuses sinks that set one of these.
fn unchanging_headers(sink: &SinkConfig) -> Result<HeaderMap, EndpointError> {
    let refused = |source| EndpointError::HeaderValue { sink: sink.name.clone(), source };
    let mut headers = sink.headers.clone();
    headers.reserve(8);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("walhook/", env!("CARGO_PKG_VERSION"))));
    headers.insert(WALHOOK_SINK, HeaderValue::from_str(&sink.name).map_err(refused)?);
    Ok(headers)
}

fn client(sink: &SinkConfig, roots: RootCertStore) -> Result<Client, EndpointError> {
    // A tenth of the deadline is left, so that a slow connect is told from a slow answer.
    let connect_timeout = (sink.request_timeout / 10 * 9).min(CONNECT_TIMEOUT_MAX);
    Client::builder()
        .tls_backend_preconfigured(tls(sink, roots)?)
        .redirect(redirect::Policy::none())
        .retry(retry::never().max_retries_per_request(0))
        .no_proxy()
        .referer(false)
        .connect_timeout(connect_timeout)
        .pool_max_idle_per_host(sink.max_in_flight)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .tcp_nodelay(true)
        .tcp_keepalive(Duration::from_secs(15))
        // A receiver that reads slowly has the whole request_timeout.
        .tcp_user_timeout(sink.request_timeout.max(Duration::from_secs(30)))
        // One HTTP/2 connection carries all requests, so a dead one must be noticed and must not hold much.
        .http2_keep_alive_interval(Duration::from_secs(15))
        .http2_keep_alive_timeout(Duration::from_secs(15))
        .http2_initial_stream_window_size(64 * 1024)
        .http2_initial_connection_window_size(1024 * 1024)
        // Header bounds are hyper's: 100 headers and about 400 KiB on HTTP/1.1, 16 KiB on HTTP/2.
        .build()
        .map_err(|source| EndpointError::Client { sink: sink.name.clone(), source })
}

/// TLS with ring, whatever provider the process has or has not installed.
fn tls(sink: &SinkConfig, roots: RootCertStore) -> Result<rustls::ClientConfig, EndpointError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| EndpointError::Tls { sink: sink.name.clone(), source })?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

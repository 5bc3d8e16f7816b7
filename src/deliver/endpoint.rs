//! A sink's endpoint: what is kept for it, and one attempt.
//!
//! An attempt is one POST that the endpoint may have taken. A request goes out a second time of its own accord only if
//! the endpoint has certainly not taken it: its connection was closed before a byte of it was written, or HTTP/2 said so
//! (REFUSED_STREAM, or a GOAWAY that names an earlier stream as the last). These are sent again at once, a few times at
//! most, and counted; once only where a new connection ended so, or GOAWAY names an error. As soon as the endpoint may have it, a broken connection is a failed attempt; whether there is
//! another one is the scheduler's decision.

mod end;
mod parts;

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::RootCertStore;
use tokio_rustls::TlsConnector;

pub(super) use parts::Ways;
pub(crate) use parts::connector;

use super::answer::Answer;
use super::attempt::{Attempt, Kept, Verdict};
use super::connection::error::SendError;
use super::connection::pool::{Pool, Under};
use super::connection::{Failed, Outgoing};
use super::frozen::Frozen;
use super::sign::{SigningSecret, sign};
use super::strike::Strike;
use crate::config::{SinkConfig, SuccessRule};
use crate::machine::clock::{self, Moment};
use crate::machine::descriptors::Descriptors;
use crate::trust::NoAuthorities;
use crate::trust::file::CertificateFileError;
use end::{End, Own, Terms, judge};
use parts::{connector_to, parts, unchanging_headers};

/// Signing more than this (about a millisecond) goes to a thread that may block.
const SIGN_INLINE_BYTES_MAX: usize = 1024 * 1024;
/// How often an attempt is sent at most until the endpoint takes its request; then it has failed.
const TRIES_MAX: u32 = 5;
/// How often at most while something is wrong with the endpoint or with us, as its answer or its silence says.
const UNWELCOME_MAX: u32 = 2;
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
    is_plain: bool,
    headers: HeaderMap,
    secrets: Arc<[SigningSecret]>,
    strike: Strike,
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

    /// The same, its connections taking their places of `descriptors`.
    pub fn within(sink: &SinkConfig, descriptors: &Descriptors) -> Result<Self, EndpointError> {
        Self::with_tls(sink, connector(sink)?, Ways { descriptors: descriptors.clone(), ..Ways::default() })
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
        let Inner { pool, peer, is_plain, headers, secrets, strike, success, .. } = &*self.inner;
        let (pool, secrets, is_plain) = (Arc::clone(pool), Arc::clone(secrets), *is_plain);
        let (peer, headers, strike, success) = (peer.clone(), headers.clone(), strike.clone(), success.clone());
        Self { inner: Arc::new(Inner { pool, peer, is_plain, headers, secrets, strike, success, request_timeout }) }
    }

    #[cfg(test)]
    pub(super) fn pool(&self) -> &Pool {
        &self.inner.pool
    }

    fn with_tls(sink: &SinkConfig, connector: Option<TlsConnector>, ways: Ways) -> Result<Self, EndpointError> {
        let address = || EndpointError::Address { sink: sink.name.clone() };
        let url = &sink.endpoint;
        let peer = match (url.scheme(), url.host_str(), url.port_or_known_default()) {
            ("http" | "https", Some(host), Some(port)) => format!("{host}:{port}"),
            _ => return Err(address()),
        };
        let inner = Inner {
            is_plain: connector.is_none(),
            pool: Pool::new(parts(sink, connector, ways).ok_or_else(address)?),
            peer,
            headers: unchanging_headers(sink)?,
            secrets: sink.signing_secrets.clone().into(),
            strike: Strike::of(&sink.headers),
            success: sink.success.clone(),
            request_timeout: sink.request_timeout,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Sends `frozen` once and says what came of it, within `request_timeout`. `number` is the attempt's, from 1. Dropped
    /// before its end, it drops the connection.
    pub async fn attempt(&self, frozen: &Frozen, number: u32) -> Attempt {
        let Inner { pool, peer, is_plain, success, request_timeout, .. } = &*self.inner;
        let (started_at, began, moment) = (SystemTime::now(), pool.now(), Moment::now());
        let (mut seen, is_answered) = (Seen::default(), pool.is_answered());
        let exchange = self.exchange(frozen, number, started_at, &mut seen);
        let end = match tokio::time::timeout(*request_timeout, exchange).await {
            Ok(Ok(())) => End::Whole,
            Ok(Err(error)) => End::Broken(error),
            Err(_) => match seen.under {
                Under::Queue => End::Queued,
                Under::Way | Under::Http1 | Under::Http2(_) => End::Late,
            },
        };
        let Seen { mut answer, resent, under, signature } = seen;
        if matches!(end, End::Late) && answer.status.is_none() {
            pool.unanswered(under, began);
        }
        let own = Own { has_slept: moment.was_slept_through(), astray_secs: clock::astray_secs() };
        let terms = Terms { success, request_timeout: *request_timeout, peer, is_plain: *is_plain, is_answered, own };
        let mut verdict = judge(&answer, end, &terms);
        if !answer.body.is_empty() || !verdict.is_acknowledged() {
            let strike = self.inner.strike.and(signature.as_ref());
            answer.body = strike.out_of_bytes(answer.body, answer.truncated);
            if let Verdict::Failed { message, .. } = &mut verdict {
                *message = strike.out_of_text(std::mem::take(message));
            }
        }
        Attempt {
            verdict,
            status: answer.status.map(|status| status.as_u16()),
            started_at,
            duration: pool.now().saturating_duration_since(began),
            response: Kept { body: Bytes::from(answer.body), truncated: answer.truncated },
            retry_after: answer.retry_after,
            resent,
        }
    }

    /// Says goodbye on connections that lie idle. Whoever attempts no more calls it; without it they are cut.
    pub async fn close(&self) {
        self.inner.pool.close().await;
    }

    async fn exchange(
        &self,
        frozen: &Frozen,
        number: u32,
        started_at: SystemTime,
        seen: &mut Seen,
    ) -> Result<(), Arc<SendError>> {
        let pool = &self.inner.pool;
        let timestamp = started_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let signature = self.signature(frozen, timestamp).await;
        seen.signature.clone_from(&signature);
        let mut unwelcome = 0;
        loop {
            let headers = self.headers(frozen, number, (timestamp, signature.clone()));
            let outgoing = Outgoing { headers, body: frozen.body.clone() };
            seen.under = Under::Way;
            let alone = seen.resent + 1 >= ALONE_FROM;
            if alone {
                tokio::time::sleep(pool.pause(PAUSE_MILLIS)).await;
            }
            let taken = pool.take(alone).await?;
            let error = match pool.exchange(taken, outgoing, (&mut seen.under, &mut seen.answer)).await {
                Ok(()) => return Ok(()),
                Err(Failed::Broken(error)) => return Err(Arc::new(error)),
                Err(Failed::Untaken(error)) => error,
                Err(Failed::Unwelcome(error)) => {
                    unwelcome += 1;
                    error
                }
            };
            let tries = seen.resent + 1;
            if tries >= TRIES_MAX || unwelcome >= UNWELCOME_MAX {
                return Err(Arc::new(SendError::NeverTaken { tries, source: Box::new(error) }));
            }
            seen.resent = tries;
        }
    }

    fn headers(&self, frozen: &Frozen, number: u32, signed: (u64, Option<HeaderValue>)) -> HeaderMap {
        let (timestamp, signature) = signed;
        let mut headers = self.inner.headers.clone();
        headers.insert(WEBHOOK_ID, frozen.id.header());
        headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(timestamp));
        headers.insert(WALHOOK_ATTEMPT, HeaderValue::from(number));
        if let Some(signature) = signature {
            headers.insert(WEBHOOK_SIGNATURE, signature);
        }
        headers
    }

    async fn signature(&self, frozen: &Frozen, timestamp: u64) -> Option<HeaderValue> {
        if self.inner.secrets.is_empty() {
            return None;
        }
        let id = frozen.id.to_string();
        if frozen.body.len() <= SIGN_INLINE_BYTES_MAX {
            return sign(&self.inner.secrets, &id, timestamp, &frozen.body);
        }
        let (secrets, body) = (Arc::clone(&self.inner.secrets), frozen.body.clone());
        let signing = tokio::task::spawn_blocking(move || sign(&secrets, &id, timestamp, &body));
        // A runtime that shuts down may drop the work; unsigned is no way out.
        signing.await.unwrap_or_else(|_| sign(&self.inner.secrets, &frozen.id.to_string(), timestamp, &frozen.body))
    }
}

/// What was seen of an exchange before it ended, in whichever way.
#[derive(Default)]
struct Seen {
    answer: Answer,
    resent: u32,
    under: Under,
    signature: Option<HeaderValue>,
}

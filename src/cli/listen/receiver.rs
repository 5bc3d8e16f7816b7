//! The receiving half of `walhook listen`: takes deliveries, refuses as it is told, and tells an observer of each.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde_json::value::RawValue;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::message::messages;
use super::places::Bounded;
use crate::deliver::sign::{Signed, SigningSecret, verify};

/// Larger bodies get a 413.
pub const BODY_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Deliveries remembered to tell repeats; beyond, the oldest is forgotten and would count as new.
const REMEMBERED_MAX: usize = 100_000;
/// Longer ids, which are not ours, are always new.
const ID_BYTES_MAX: usize = 256;
/// How long a stop waits for requests that are being received.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// How a receiver answers.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Share of requests that are refused, 0 to 1.
    pub fail: f64,
    /// Status of those.
    pub status: StatusCode,
    /// Wait before an answer, chosen evenly.
    pub delay: RangeInclusive<Duration>,
    /// Any of these must have signed, if there are any.
    pub secrets: Vec<SigningSecret>,
    /// Decides which are refused and how long the waits are.
    pub seed: u64,
}

/// Refuses nothing, waits for nothing, verifies nothing.
impl Default for Behaviour {
    fn default() -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self { fail: 0.0, status, delay: Duration::ZERO..=Duration::ZERO, secrets: Vec::new(), seed: 0 }
    }
}

/// Whether a `webhook-id` came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Seen {
    /// No.
    New,
    /// It came, and was refused each time.
    Retry,
    /// It came, and was acknowledged: a receiver would pass over it.
    Repeat,
}

/// A request and its answer.
#[derive(Debug)]
pub struct Received<'a> {
    /// When it had arrived whole.
    pub at: SystemTime,
    /// `webhook-id`, or nothing.
    pub id: &'a str,
    /// `walhook-attempt`, or nothing.
    pub attempt: &'a str,
    /// `walhook-sink`, or nothing.
    pub sink: &'a str,
    /// Whether it came before.
    pub seen: Seen,
    /// Its messages; none if the body was not read.
    pub messages: &'a [&'a RawValue],
    /// Size of the body.
    pub body_bytes: usize,
    /// What it was answered.
    pub status: StatusCode,
    /// Why, if it was refused.
    pub why: Option<&'a str>,
}

/// What came so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Requests answered.
    pub requests: u64,
    /// Those acknowledged.
    pub acknowledged: u64,
    /// Those refused.
    pub refused: u64,
    /// Among the refused, those without a valid signature.
    pub bad_signatures: u64,
    /// Deliveries that came again after they were acknowledged.
    pub repeats: u64,
    /// Messages in deliveries acknowledged for the first time.
    pub messages: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, acknowledged, refused, bad_signatures, repeats, messages } = self;
        write!(
            f,
            "{messages} messages in {requests} requests: {acknowledged} acknowledged ({repeats} of them repeats), \
             {refused} refused ({bad_signatures} for their signature)"
        )
    }
}

/// A receiver. Clones share what it remembers.
#[derive(Clone)]
pub struct Receiver {
    inner: Arc<Inner>,
}

struct Inner {
    behaviour: Behaviour,
    observer: Box<dyn Fn(&Received<'_>) + Send + Sync>,
    memory: Mutex<Memory>,
    stop: CancellationToken,
}

struct Memory {
    chance: fastrand::Rng,
    counts: Counts,
    /// By `webhook-id`: whether it was acknowledged.
    deliveries: HashMap<String, bool>,
    oldest_first: VecDeque<String>,
}

/// Why a request is refused.
struct Refusal {
    status: StatusCode,
    why: String,
    bad_signature: bool,
}

impl Refusal {
    fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into(), bad_signature: false }
    }
}

impl Receiver {
    /// A receiver that tells `observer` of each request when its answer is decided. The observer runs in the request's task
    /// and must not wait.
    pub fn new(behaviour: Behaviour, observer: impl Fn(&Received<'_>) + Send + Sync + 'static) -> Self {
        let memory = Memory {
            chance: fastrand::Rng::with_seed(behaviour.seed),
            counts: Counts::default(),
            deliveries: HashMap::new(),
            oldest_first: VecDeque::new(),
        };
        let (observer, stop) = (Box::new(observer), CancellationToken::new());
        Self { inner: Arc::new(Inner { behaviour, observer, memory: Mutex::new(memory), stop }) }
    }

    /// Receives on `listener` until `stop`; requests under way have two seconds to end, and delays end at once.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken) -> io::Result<()> {
        let listener = Bounded::new(listener);
        let routes = Router::new().fallback(receive).with_state(self.clone());
        let server = axum::serve(listener, routes).with_graceful_shutdown(stop.clone().cancelled_owned());
        let late = async {
            stop.cancelled().await;
            self.inner.stop.cancel();
            tokio::time::sleep(STOP_GRACE).await;
        };
        tokio::select! {
            biased; // an end is an end, even if it comes late
            ended = async { server.await } => ended,
            () = late => Ok(()),
        }
    }

    /// What came so far.
    pub fn counts(&self) -> Counts {
        self.memory().counts
    }

    async fn answer(&self, headers: &HeaderMap, body: Result<Bytes, Refusal>) -> (StatusCode, String) {
        let at = SystemTime::now();
        let bytes = body.as_ref().map(Bytes::clone).unwrap_or_default();
        let body = body.map(|_| ()).and_then(|()| self.check_signature(headers, &bytes, at));
        let parsed = body.and_then(|()| {
            messages(&bytes)
                .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}")))
        });
        let (messages, refusal) = match parsed {
            Ok(messages) => (messages, self.chance_refusal().await),
            Err(refusal) => (Vec::new(), Some(refusal)),
        };
        let status = refusal.as_ref().map_or(StatusCode::OK, |refusal| refusal.status);
        let bad_signature = refusal.as_ref().is_some_and(|refusal| refusal.bad_signature);
        let id = text(headers, "webhook-id");
        let received = Received {
            at,
            id,
            attempt: text(headers, "walhook-attempt"),
            sink: text(headers, "walhook-sink"),
            seen: self.memory().remember(id, status, messages.len(), bad_signature),
            messages: &messages,
            body_bytes: bytes.len(),
            status,
            why: refusal.as_ref().map(|refusal| &*refusal.why),
        };
        (self.inner.observer)(&received);
        (status, refusal.map_or_else(String::new, |refusal| refusal.why))
    }

    fn check_signature(&self, headers: &HeaderMap, body: &[u8], at: SystemTime) -> Result<(), Refusal> {
        let secrets = &self.inner.behaviour.secrets;
        if secrets.is_empty() {
            return Ok(());
        }
        let signatures = text(headers, "webhook-signature");
        let signed =
            Signed { id: text(headers, "webhook-id"), timestamp: text(headers, "webhook-timestamp"), signatures };
        let now = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let why = match verify(secrets, &signed, body, now) {
            Ok(()) => return Ok(()),
            Err(_) if signatures.is_empty() => {
                "there is no webhook-signature; set signing_secrets on the sink".to_owned()
            }
            Err(error) => error.to_string(),
        };
        Err(Refusal { status: StatusCode::UNAUTHORIZED, why, bad_signature: true })
    }

    /// Waits as long as it is told, and refuses as often.
    async fn chance_refusal(&self) -> Option<Refusal> {
        let Behaviour { fail, status, delay, .. } = &self.inner.behaviour;
        let (wait, refuse) = {
            let chance = &mut self.memory().chance;
            let span = delay.end().saturating_sub(*delay.start());
            (*delay.start() + span.mul_f64(chance.f64()), chance.f64() < *fail)
        };
        if !wait.is_zero() {
            tokio::select! {
                () = self.inner.stop.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        refuse.then(|| Refusal::new(*status, "refused on purpose"))
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.inner.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn remember(&mut self, id: &str, status: StatusCode, messages: usize, bad_signature: bool) -> Seen {
        let acknowledged = status.is_success();
        let seen = match self.deliveries.get_mut(id) {
            Some(before) => {
                let seen = if *before { Seen::Repeat } else { Seen::Retry };
                *before |= acknowledged;
                seen
            }
            None => {
                self.add(id, acknowledged);
                Seen::New
            }
        };
        self.counts.requests += 1;
        self.counts.bad_signatures += u64::from(bad_signature);
        if acknowledged {
            self.counts.acknowledged += 1;
            self.counts.repeats += u64::from(seen == Seen::Repeat);
            self.counts.messages += if seen == Seen::Repeat { 0 } else { u64::try_from(messages).unwrap_or(u64::MAX) };
        } else {
            self.counts.refused += 1;
        }
        seen
    }

    fn add(&mut self, id: &str, acknowledged: bool) {
        if id.is_empty() || id.len() > ID_BYTES_MAX {
            return;
        }
        if self.oldest_first.len() >= REMEMBERED_MAX
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.deliveries.remove(&oldest);
        }
        self.oldest_first.push_back(id.to_owned());
        self.deliveries.insert(id.to_owned(), acknowledged);
    }
}

async fn receive(State(receiver): State<Receiver>, request: Request) -> Response {
    if request.method() != Method::POST {
        return (StatusCode::METHOD_NOT_ALLOWED, [("allow", "POST")]).into_response();
    }
    let (head, body) = request.into_parts();
    receiver.answer(&head.headers, read(&head.headers, body).await).await.into_response()
}

async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, Refusal> {
    let too_large = || Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 128 MiB");
    if text(headers, "content-length").parse().is_ok_and(|length: usize| length > BODY_BYTES_MAX) {
        return Err(too_large());
    }
    to_bytes(body, BODY_BYTES_MAX).await.map_err(|error| {
        let source = std::error::Error::source(&error);
        if source.is_some_and(|source| source.is::<http_body_util::LengthLimitError>()) {
            return too_large();
        }
        Refusal::new(StatusCode::BAD_REQUEST, "the body broke off")
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

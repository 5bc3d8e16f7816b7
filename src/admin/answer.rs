//! The form of a refusal, and the headers that every answer bears.

use std::time::SystemTime;

use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::json;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A refusal. As a response it is only a status; [`finish`] writes the body, which bears the request's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Longest `x-request-id` of a request that is taken over.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The id of a request: its own `x-request-id` if that is visible ASCII and not too long, else a new one.
pub(super) fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(X_REQUEST_ID).and_then(|id| id.to_str().ok());
    given
        .filter(|id| (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()))
        .map_or_else(|| format!("req_{}", uuid::Uuid::new_v4().simple()), str::to_owned)
}

/// Gives a response its id and, if it is a refusal, its body.
pub(super) fn finish(response: Response, id: &str, now: SystemTime) -> Response {
    let mut response = match response.extensions().get::<ApiError>().cloned() {
        Some(error) => refusal(response, &error, id, now),
        None => response,
    };
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(X_REQUEST_ID, id);
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// `now` as RFC 3339 in UTC with microseconds.
pub(crate) fn timestamp(now: SystemTime) -> String {
    jiff::Timestamp::try_from(now).map_or_else(|_| String::new(), |now| format!("{now:.6}"))
}

fn refusal(response: Response, error: &ApiError, id: &str, now: SystemTime) -> Response {
    let doc_url = format!("/docs/errors#{}", error.code);
    let body = json!({
        "error": {"code": error.code, "message": error.message, "details": [], "doc_url": doc_url},
        "meta": {"request_id": id, "timestamp": timestamp(now), "version": "v1"},
    });
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(http::header::CONTENT_LENGTH);
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if error.status == StatusCode::UNAUTHORIZED {
        parts.headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    Response::from_parts(parts, body.to_string().into())
}

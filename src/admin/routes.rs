//! The routes and what stands before them.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::FutureExt;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tracing::{debug, error};

use super::AdminState;
use super::access::Grant;
use super::answer::{ApiError, finish, request_id, timestamp};
use super::readiness::readiness;

/// Bodies that a request may announce; no route reads one.
const BODY_BYTES_MAX: u64 = 64 * 1024;

/// Content type of the text exposition format.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All routes.
pub(super) fn router(state: AdminState) -> Router {
    let router =
        Router::new().route("/metrics", get(metrics)).route("/healthz", get(healthz)).route("/readyz", get(readyz));
    #[cfg(test)]
    let router = router.route("/panics", get(async || -> StatusCode { panic!("on purpose") }));
    router
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "route_not_found", "there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            let message = "this path answers GET and HEAD only";
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
        })
        .layer(from_fn_with_state(state.clone(), guard))
        .with_state(state)
}

/// Refuses what must not reach a route, and gives every answer its id; a panic becomes a 500.
async fn guard(State(state): State<AdminState>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let response = match refuse(&state, &request) {
        Some(refusal) => refusal.into_response(),
        None => AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
            error!(request_id = %id, "answering an admin request panicked");
            let message = "something went wrong; the log has the cause under this request id";
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message).into_response()
        }),
    };
    debug!(request_id = %id, status = response.status().as_u16(), "admin request answered");
    finish(response, &id, SystemTime::now())
}

fn refuse(state: &AdminState, request: &Request) -> Option<ApiError> {
    if !state.access.knows_host(request.uri(), request.headers()) {
        let message = "there are no admin.tokens, so the request must name localhost or a loopback address as its host; \
                       to reach walhook under another name, set admin.tokens";
        return Some(ApiError::new(StatusCode::FORBIDDEN, "bad_host", message));
    }
    let announced = request.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse::<u64>().ok()?;
    (announced > BODY_BYTES_MAX).then(|| {
        let message = format!("a body may have {BODY_BYTES_MAX} bytes at most");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    })
}

async fn metrics(State(state): State<AdminState>, headers: HeaderMap) -> Result<Response, ApiError> {
    match state.access.grant(&headers) {
        Grant::All => {}
        Grant::Sinks(_) => {
            let message = "/metrics shows every sink, and this token is for some; use one without `sinks`";
            return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", message));
        }
        Grant::Refused => return Err(unauthorized()),
    }
    crate::metrics::publish(&state.views, SystemTime::now());
    Ok(([(CONTENT_TYPE, EXPOSITION)], state.prometheus.render()).into_response())
}

async fn healthz(State(state): State<AdminState>) -> Json<Value> {
    let stopping = state.views.stopping.load(Ordering::Relaxed);
    Json(json!({
        "status": "ok",
        "version": env!("CARGO_PKG_VERSION"),
        "started_at": timestamp(state.started_at),
        "stopping": stopping,
    }))
}

async fn readyz(State(state): State<AdminState>, headers: HeaderMap) -> Result<Response, ApiError> {
    let now = SystemTime::now();
    let readiness = match state.access.grant(&headers) {
        Grant::All => readiness(&state.views, now),
        Grant::Sinks(sinks) => readiness(&state.views, now).only_sinks(sinks),
        Grant::Refused => return Err(unauthorized()),
    };
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(readiness)).into_response())
}

fn unauthorized() -> ApiError {
    let message = "send one of admin.tokens as `Authorization: Bearer …`";
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
}

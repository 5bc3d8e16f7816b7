//! The accept loop: so many connections at a time, each with a bounded life.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{AdminState, routes};

/// When so many are open, the next waits in the system's backlog.
const CONNECTIONS_MAX: usize = 256;
/// For the head of a request, and for the idle time before it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a request's head; a longer one is answered 431 by hyper.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// A connection is asked to end after this; it bounds a client that does not read its answer.
const CONNECTION_LIFE: Duration = Duration::from_secs(120);
/// From being asked to end until it is cut off.
const CONNECTION_GRACE: Duration = Duration::from_secs(5);
/// Before the next accept when the system refuses one, usually for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers on `listener` until `stop`; then requests under way get some seconds to end.
pub async fn serve(listener: TcpListener, state: AdminState, stop: CancellationToken) {
    let router = routes::router(state);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            // 1. Stopping, so that a flood of connections cannot put it off.
            () = stop.cancelled() => break,
            // 2. Ended connections, so that the set stays as small as the open ones.
            Some(_) = connections.join_next() => continue,
            // 3. New connections, as long as there are places.
            accepted = accept(&listener, &places) => accepted,
        };
        if let Some((stream, place)) = accepted {
            let (router, stop) = (router.clone(), stop.clone());
            connections.spawn(async move {
                answer(stream, router, stop).await;
                drop(place);
            });
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            warn!(%error, "cannot accept an admin connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// One connection to its end, which comes at the latest `CONNECTION_GRACE` after the stop or the end of its life.
async fn answer(stream: TcpStream, router: Router, stop: CancellationToken) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = stop.cancelled() => None,
        () = tokio::time::sleep(CONNECTION_LIFE) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(CONNECTION_GRACE, connection).await {
                Ok(ended) => ended,
                Err(_) => return debug!("an admin connection was cut off"),
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "an admin connection failed");
    }
}

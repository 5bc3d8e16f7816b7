//! The accept loop: so many connections at a time, each with a bounded life.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::places::{Place, Places};
use super::{AdminState, routes};

/// For the head of a request, and for the idle time before it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The same on a place of the reserve.
const RESERVE_HEAD_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of a request's head; a longer one is answered 431 by hyper.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// A connection is asked to end after this; it bounds a client that does not read its answer.
const CONNECTION_LIFE: Duration = Duration::from_secs(120);
/// From being asked to end until it is cut off.
const CONNECTION_GRACE: Duration = Duration::from_secs(5);
/// Before the next accept when the system refuses one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often that is said.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// Descriptors that are held for connections while the process has no other left.
const SPARE: usize = 8;

/// Answers on `listener` until `stop`; then requests under way get some seconds to end.
pub async fn serve(listener: TcpListener, state: AdminState, stop: CancellationToken) {
    let router = routes::router(state);
    let mut door = Door { listener, places: Places::default(), spare: Vec::new(), said: None };
    let mut connections = JoinSet::new();
    loop {
        door.hold_spare();
        let accepted = tokio::select! {
            biased;
            // 1. Stopping, so that a flood of connections cannot put it off.
            () = stop.cancelled() => break,
            // 2. Ended connections, so that the set stays as small as the open ones.
            Some(_) = connections.join_next() => continue,
            // 3. New connections.
            accepted = door.accept() => accepted,
        };
        if let Some((stream, place)) = accepted {
            connections.spawn(answer(stream, place, router.clone(), stop.clone()));
        }
    }
    drop(door);
    while connections.join_next().await.is_some() {}
}

/// Where connections come in.
struct Door {
    listener: TcpListener,
    places: Places,
    spare: Vec<File>,
    said: Option<Instant>,
}

impl Door {
    /// Keeps descriptors back from the rest of the process.
    fn hold_spare(&mut self) {
        while self.spare.len() < SPARE
            && let Ok(file) = File::open("/dev/null")
        {
            self.spare.push(file);
        }
    }

    /// A connection with its place, or nothing: it was turned away, or the system refused it.
    async fn accept(&mut self) -> Option<(TcpStream, Place)> {
        match self.listener.accept().await {
            Ok((stream, peer)) => match self.places.take(peer.ip(), Instant::now()) {
                Some(place) => Some((stream, place)),
                None => {
                    debug!(%peer, "an admin connection was turned away: all places are being answered");
                    None
                }
            },
            Err(error) => {
                self.make_way(&error).await;
                None
            }
        }
    }

    /// Without descriptors a spare one, or that of an idle connection, is given up for the next.
    async fn make_way(&mut self, error: &io::Error) {
        if self.said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
            self.said = Some(Instant::now());
            warn!(%error, "cannot accept an admin connection; it is tried again with a descriptor that was held back");
        }
        if self.spare.pop().is_none() {
            self.places.give_way();
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

/// One connection to its end, which comes at the latest `CONNECTION_GRACE` after the stop or the end of its life.
async fn answer(stream: TcpStream, place: Place, router: Router, stop: CancellationToken) {
    let (place, router) = (Arc::new(place), TowerToHyperService::new(router));
    let service = service_fn(|request| {
        let (answering, place) = (router.call(request), Arc::clone(&place));
        place.busy();
        async move {
            let answered = answering.await;
            place.idle(Instant::now());
            answered
        }
    });
    let head_timeout = if place.is_reserve { RESERVE_HEAD_TIMEOUT } else { HEAD_TIMEOUT };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .keep_alive(!place.is_reserve)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = place.end.cancelled() => return debug!("an idle admin connection gave way to another"),
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

//! The admin side: `/metrics`, `/healthz` and `/readyz`, on a thread and a runtime of their own.
//!
//! It reads the views and the metrics and nothing else, so that it answers while the data plane is choked. What comes in
//! is bounded: connections at a time, the time for a request's head, a connection's life, the size of a body. Without
//! tokens it listens on loopback only (the config sees to that) and answers only requests that name loopback as their
//! host, so that a page in a browser cannot reach it under a name of its own.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::SystemTime;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::AdminConfig;
use crate::view::SharedViews;

mod access;
mod answer;
mod places;
mod readiness;
mod routes;
mod server;
mod sink_health;

use access::Access;
pub(crate) use answer::timestamp;
pub(crate) use readiness::bytes_in_words;
pub use readiness::{Readiness, Severity, SinkReport, SourceReport, TroubleReport, readiness};
pub use server::serve;

/// What the routes read. Cheap to clone.
#[derive(Clone)]
pub struct AdminState {
    views: SharedViews,
    prometheus: PrometheusHandle,
    access: Arc<Access>,
    started_at: SystemTime,
}

impl AdminState {
    /// The state of an admin side under `config`, started at `now`.
    pub fn new(config: &AdminConfig, views: SharedViews, prometheus: PrometheusHandle, now: SystemTime) -> Self {
        Self { views, prometheus, access: Arc::new(Access::new(config)), started_at: now }
    }
}

/// The running admin side.
#[derive(Debug)]
pub struct AdminThread {
    /// Where it listens; the port that the system chose if the config has 0.
    pub addr: SocketAddr,
    /// Ends some seconds at most after the stop.
    pub join: JoinHandle<()>,
}

/// The admin side could not start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address is taken, not ours, or forbidden.
    #[error("cannot listen on {address} for the admin side; {advice}")]
    Bind {
        /// `admin.listen`.
        address: SocketAddr,
        /// What mends it.
        advice: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No runtime or thread.
    #[error("cannot start the thread of the admin side")]
    Thread(#[source] io::Error),
}

/// Binds `config.listen` and answers there from a thread of its own until `stop`; metrics upkeep runs there too.
///
/// Cancel `stop` last: while the daemon drains, `/readyz` says that it is stopping.
pub fn spawn(config: &AdminConfig, state: AdminState, stop: CancellationToken) -> Result<AdminThread, AdminError> {
    let bind_error = |source: io::Error| AdminError::Bind { address: config.listen, advice: advice(&source), source };
    let listener = TcpListener::bind(config.listen).map_err(bind_error)?;
    let addr = listener.local_addr().map_err(bind_error)?;
    listener.set_nonblocking(true).map_err(bind_error)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AdminError::Thread)?;
    let listener = {
        let _guard = runtime.enter();
        tokio::net::TcpListener::from_std(listener).map_err(bind_error)?
    };
    let run = move || {
        let upkeep = crate::metrics::upkeep(state.prometheus.clone(), stop.clone());
        runtime.block_on(async { tokio::join!(serve(listener, state, stop), upkeep) });
    };
    let join = std::thread::Builder::new().name("walhook-admin".into()).spawn(run).map_err(AdminError::Thread)?;
    info!(%addr, "admin listening");
    Ok(AdminThread { addr, join })
}

fn advice(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::AddrInUse {
        "another process listens there, perhaps another walhook: stop it, or choose another port in admin.listen"
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        "ports below 1024 need a privilege: choose a higher port in admin.listen"
    } else if error.kind() == io::ErrorKind::AddrNotAvailable {
        "this machine has no such address: correct admin.listen"
    } else {
        "choose another address in admin.listen"
    }
}

#[cfg(test)]
mod tests;

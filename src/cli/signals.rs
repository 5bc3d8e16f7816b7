//! SIGTERM and SIGINT: the first asks for a clean stop, the second for none. SIGHUP ends nothing, as it would by default.

use std::convert::Infallible;
use std::future::Future;
use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::app::Orders;

/// Listens from now on; the future passes signals on for as long as it is polled.
///
/// # Errors
/// When the system does not let us.
pub(crate) fn listen(orders: Orders) -> io::Result<impl Future<Output = Infallible>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {
                    info!("SIGHUP: the configuration is read at the start only, so nothing changes; restart to take in another");
                    continue;
                }
            }
            if orders.stop.is_cancelled() {
                orders.abort.cancel();
            }
            orders.stop.cancel();
        }
    })
}

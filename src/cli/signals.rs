//! SIGTERM and SIGINT: the first asks for a clean stop, the second for none.

use std::convert::Infallible;
use std::future::Future;
use std::io;

use tokio::signal::unix::{SignalKind, signal};

use crate::app::Orders;

/// Listens from now on; the future passes signals on for as long as it is polled.
///
/// # Errors
/// When the system does not let us.
pub(crate) fn listen(orders: Orders) -> io::Result<impl Future<Output = Infallible>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if orders.stop.is_cancelled() {
                orders.abort.cancel();
            }
            orders.stop.cancel();
        }
    })
}

//! Makes connections for a pool.

use std::sync::{Arc, Weak};

use super::{Pool, Taken};
use crate::deliver::connection::error::SendError;
use crate::deliver::connection::http1::Http1;
use crate::deliver::connection::http2::Http2;
use crate::deliver::connection::life::Life;
use crate::deliver::connection::reach::{Socket, Speaks};

impl Pool {
    /// Makes the connection that all may share, one request for all that wait.
    pub(super) async fn make_for_all(&self) -> Result<Taken, Arc<SendError>> {
        let came = self.now();
        let permit = self.making.acquire().await;
        if let Some((at, error)) = &self.lock().failure
            && *at >= came
        {
            return Err(Arc::clone(error));
        }
        if let Some(taken) = self.at_hand(self.now(), false) {
            return Ok(taken);
        }
        if self.lock().speaks == Some(Speaks::Http1) {
            // What was learnt meanwhile: there is nothing to share, so nobody has to wait.
            drop(permit);
            return self.make(false).await.map_err(Arc::new);
        }
        self.make(false).await.map_err(|error| {
            let error = Arc::new(error);
            self.lock().failure = Some((self.now(), Arc::clone(&error)));
            error
        })
    }

    /// Makes one more connection, as all that there are have no room.
    async fn make_another(&self) {
        let Ok(_permit) = self.making.try_acquire() else { return };
        if !self.lock().shared.wants_another(self.now()) {
            return;
        }
        // Who waits goes on waiting where it does, and asks again.
        if let Ok(Ok(Taken::Own(connection))) = tokio::time::timeout(self.parts.connect_timeout, self.make(false)).await
        {
            self.put_back(connection, false);
        }
    }

    pub(super) async fn make(&self, alone: bool) -> Result<Taken, SendError> {
        let place = self.parts.descriptors.place(self.parts.connect_timeout / 2).await;
        let place = place.ok_or(SendError::NoDescriptor)?;
        let (socket, speaks) = self.parts.place.connect().await?;
        let socket = socket.keeps(place);
        let chance = self.lock().chance.f64();
        let life = Life::new(self.now(), &self.parts.age, chance);
        let made = match speaks {
            Speaks::Http1 => Taken::Own(Box::new(Http1::new(socket, life).await?)),
            Speaks::Http2 => Taken::Shared(self.share(socket, life, alone).await?),
        };
        self.lock().made(speaks, self.now());
        Ok(made)
    }

    async fn share(&self, socket: Socket, life: Life, alone: bool) -> Result<Arc<Http2>, SendError> {
        let (connection, driver) = Http2::new(socket, life).await?;
        let connection = Arc::new(connection);
        let mut state = self.lock();
        state.spawn(driver.run(self.parts.pace));
        if !alone {
            state.shared.put(Arc::clone(&connection), self.now());
            self.look_after(&mut state);
        }
        Ok(connection)
    }
}

/// The task that makes one more, as long as there is a pool that wants it.
pub(super) async fn another(pool: Weak<Pool>) {
    if let Some(pool) = pool.upgrade() {
        pool.make_another().await;
    }
}

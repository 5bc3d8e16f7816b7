//! Connections that only read, beside the writer: a few, kept open.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::error::StoreError;
use super::files::open_to_read;
use super::schema::STATE;

/// Reads at a time from within the runtime; more wait for their turn.
const READS_MAX: usize = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Semaphore,
}

impl Readers {
    /// Of the `state.db` at `path`.
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), idle: Mutex::default(), permits: Semaphore::new(READS_MAX) }
    }

    /// Reads on a thread where that may take its time.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let _permit = self.permits.acquire().await.map_err(|_| StoreError::Closed)?;
        let readers = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || readers.read_here(read));
        // The runtime is going down, or the reading panicked.
        read.await.map_err(|_| StoreError::Closed)?
    }

    /// Reads on this thread, in one view of the database. Says of a database that cannot be read for damage that it is so.
    pub(super) fn read_here<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let db = match idle {
            Some(db) => db,
            None => open_to_read(&self.path, &STATE)?,
        };
        let view = db.unchecked_transaction().map_err(StoreError::read("state.db"))?;
        let done = read(&view);
        drop(view);
        // After an error it may be the connection that is at fault.
        if done.is_ok() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(db);
        }
        self.told(done)
    }

    /// Says of a database that could not be read for damage that it is so.
    pub(super) fn told<T>(&self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        done.map_err(|error| error.of_ruin_in(&self.path))
    }

    /// Closes those that are idle.
    pub(super) fn close(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

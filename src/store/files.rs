//! The store's directory: its lock, its two databases, and how their connections are set.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use rustix::fs::{Access, access};
use tracing::debug;

use super::error::StoreError;
use super::quota::Budget;
use super::schema::{self, Schema};

/// How long a connection waits for another that looks at the files.
pub(super) const BUSY_LIMIT: Duration = Duration::from_secs(2);
/// The same for the log, for which nothing waits long.
pub(super) const LOG_BUSY_LIMIT: Duration = Duration::from_millis(100);
/// Prepared statements that a connection keeps.
const STATEMENTS_MAX: usize = 64;

/// Where everything is.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    /// `state.path`.
    pub(super) directory: PathBuf,
    /// What is durable.
    pub(super) state: PathBuf,
    /// The log of deliveries.
    pub(super) log: PathBuf,
}

impl Paths {
    pub(super) fn of(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), state: directory.join("state.db"), log: directory.join("log.db") }
    }

    /// Makes the directory, for this user only, so that it is there after a crash too.
    pub(super) fn make_directory(&self) -> Result<(), StoreError> {
        let entries_in = entries_in(&self.directory);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
        let synced = made.and_then(|()| entries_in.into_iter().try_for_each(sync_directory));
        synced.map_err(|source| StoreError::Directory { path: self.directory.clone(), source })
    }

    /// Whether `state.db` is there.
    pub(super) fn require(&self) -> Result<(), StoreError> {
        match self.state.try_exists() {
            Ok(true) => Ok(()),
            Ok(false) => Err(StoreError::Missing { path: self.directory.clone() }),
            Err(source) => Err(StoreError::File { path: self.state.clone(), source }),
        }
    }

    /// Takes the lock, which lasts until it is dropped.
    pub(super) fn lock(&self) -> Result<DirectoryLock, StoreError> {
        let path = self.directory.join("lock");
        let file = create(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(DirectoryLock { file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path }),
            Err(TryLockError::Error(source)) => Err(StoreError::File { path, source }),
        }
    }

    /// Bytes of `state.db-wal`.
    pub(super) fn wal_bytes(&self) -> u64 {
        bytes_of(&self.state.with_extension("db-wal"))
    }

    /// Bytes of `log.db-wal`.
    pub(super) fn log_wal_bytes(&self) -> u64 {
        bytes_of(&self.log.with_extension("db-wal"))
    }

    /// Bytes of the log's files.
    pub(super) fn log_bytes(&self) -> u64 {
        bytes_of(&self.log) + self.log_wal_bytes()
    }

    /// Bytes of all files.
    pub(super) fn all_bytes(&self) -> u64 {
        let shared = ["state.db-shm", "log.db-shm"].map(|name| bytes_of(&self.directory.join(name)));
        bytes_of(&self.state) + self.wal_bytes() + self.log_bytes() + shared.iter().sum::<u64>()
    }
}

/// The directory is ours alone while this lives.
///
/// The lock belongs to the open file, not to the process (flock(2)): a child that another thread forks has the file open
/// too, until it executes its program. Closing our descriptor would leave the lock with that child for a moment, so it is
/// given back by name.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    file: File,
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        if let Err(error) = self.file.unlock() {
            debug!(%error, "the lock of the store's directory ends with its file");
        }
    }
}

/// Directories with entries that lead to this one and may not be on the disk: the one above, also when it is there (who made
/// it may have crashed before it was synced), and those above what is not there.
fn entries_in(directory: &Path) -> Vec<&Path> {
    let mut parents = Vec::new();
    for path in directory.ancestors().filter(|path| !path.as_os_str().is_empty()) {
        let is_there = path.exists();
        if !is_there || path == directory {
            parents
                .extend(path.parent().map(|above| if above.as_os_str().is_empty() { Path::new(".") } else { above }));
        }
        if is_there {
            break;
        }
    }
    parents
}

/// Some directories may be written and not read, and some file systems sync no directory: then it is as safe as it gets.
fn sync_directory(path: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    match File::open(path).and_then(|directory| directory.sync_all()) {
        Err(error) if [InvalidInput, PermissionDenied, Unsupported].contains(&error.kind()) => {
            debug!(path = %path.display(), %error, "a directory could not be synced");
            Ok(())
        }
        synced => synced,
    }
}

/// A file that is not there has none.
fn bytes_of(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len())
}

/// Opens a file, which is made if it is not there, for this user only.
fn create(path: &Path) -> Result<File, StoreError> {
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    opened.map_err(|source| StoreError::File { path: path.to_owned(), source })
}

/// The connection that writes `state.db`: a commit is on the disk when it returns.
pub(super) fn open_state(paths: &Paths, budget: &Budget) -> Result<Connection, StoreError> {
    open_to_write(&paths.state, &schema::STATE, |db| {
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "cache_size", -16384)?;
        db.pragma_update(None, "journal_size_limit", budget.wal_bytes.cast_signed())?;
        set_pages_max(db, budget.state_pages_max())
    })
}

/// The connection that writes `log.db`: after a crash its last rows may be missing.
pub(super) fn open_log(paths: &Paths, budget: &Budget) -> Result<Connection, StoreError> {
    open_to_write(&paths.log, &schema::LOG, |db| {
        db.busy_timeout(LOG_BUSY_LIMIT)?;
        db.pragma_update(None, "synchronous", "NORMAL")?;
        db.pragma_update(None, "cache_size", -2048)?;
        db.pragma_update(None, "journal_size_limit", budget.log_wal_bytes.cast_signed())?;
        set_pages_max(db, budget.log_pages_max())
    })
}

fn set_pages_max(db: &Connection, pages: u64) -> rusqlite::Result<()> {
    db.pragma_update_and_check(None, "max_page_count", pages.cast_signed(), |row| row.get::<_, i64>(0)).map(drop)
}

fn open_to_write(
    path: &Path,
    schema: &Schema,
    settings: impl FnOnce(&Connection) -> rusqlite::Result<()>,
) -> Result<Connection, StoreError> {
    // SQLite does not say why it cannot open a file, the system does.
    drop(create(path)?);
    let failed = |source| StoreError::Open { path: path.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(path, flags).map_err(failed)?;
    db.busy_timeout(BUSY_LIMIT).map_err(failed)?;
    // Nothing is written to a file of another program.
    schema::checked_version(&db, path, schema)?;
    prepare(&db).and_then(|()| settings(&db)).map_err(failed)?;
    schema::migrate(&mut db, path, schema)?;
    Ok(db)
}

/// What both databases have in common. The writer checkpoints by itself, so that it sees what becomes of it.
fn prepare(db: &Connection) -> rusqlite::Result<()> {
    db.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    db.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
    db.pragma_update(None, "wal_autocheckpoint", 0)?;
    db.pragma_update(None, "temp_store", "MEMORY")
}

/// Moves the WAL into the database as far as nobody reads it, without waiting for anybody. True: it is empty. False: somebody
/// reads what is in it, and it is emptied another time. `limit` is how long the connection waits for others otherwise.
pub(super) fn empty_wal(db: &Connection, limit: Duration) -> rusqlite::Result<bool> {
    db.busy_timeout(Duration::ZERO)?;
    let busy = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
    db.busy_timeout(limit)?;
    Ok(busy? == 0)
}

/// A connection that only reads.
pub(super) fn open_to_read(path: &Path, schema: &Schema) -> Result<Connection, StoreError> {
    // SQLite does not say why it cannot open a file. The file is not opened to find out: closing it would take the locks of
    // all of this process's connections to it away (fcntl(2)).
    access(path, Access::READ_OK)
        .map_err(|source| StoreError::File { path: path.to_owned(), source: source.into() })?;
    let failed = |source| StoreError::Open { path: path.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(failed)?;
    db.busy_timeout(BUSY_LIMIT).map_err(failed)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    db.pragma_update(None, "cache_size", -1024).map_err(failed)?;
    schema::checked_version(&db, path, schema)?;
    Ok(db)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_ends_although_a_child_still_has_the_file_open() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::of(directory.path());
        let lock = paths.lock().unwrap();
        // As a child has it between fork and exec.
        let inherited = lock.file.try_clone().unwrap();
        assert!(matches!(paths.lock(), Err(StoreError::Locked { .. })));
        drop(lock);
        drop(paths.lock().unwrap());
        drop(inherited);
    }

    #[test]
    fn every_directory_that_leads_to_a_new_one_is_synced() {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        let new = at("a/b/c");
        assert_eq!(entries_in(&new), [at("a/b"), at("a"), directory.path().to_owned()]);
        Paths::of(&new).make_directory().unwrap();
        assert_eq!(entries_in(&new), [at("a/b")], "whoever made it may not have come to that");
        assert_eq!(entries_in(Path::new("not there")), [Path::new(".")]);
        assert_eq!(entries_in(Path::new("not there/state")), [Path::new("not there"), Path::new(".")]);
        assert_eq!(entries_in(Path::new("/")), Vec::<&Path>::new());
    }
}

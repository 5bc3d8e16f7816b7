//! The store's directory: its lock, its two databases, and how their connections are set.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use rustix::fs::{Access, access};
use tracing::{debug, warn};

use super::error::{StoreError, is_ruin};
use super::marker::{self, Marker, StoreId};
use super::quota::{Budget, PAGE_BYTES};
use super::schema::{self, Schema};
use super::seals::{self, BrokenRow};

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
    /// Says that there was a store.
    pub(super) marker: PathBuf,
}

impl Paths {
    pub(super) fn of(directory: &Path) -> Self {
        let at = |name: &str| directory.join(name);
        Self { directory: directory.to_owned(), state: at("state.db"), log: at("log.db"), marker: at("state.id") }
    }

    /// Makes the directory, for this user only, so that it is there after a crash too.
    pub(super) fn make_directory(&self) -> Result<(), StoreError> {
        let entries_in = entries_in(&self.directory);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
        let synced = made.and_then(|()| entries_in.into_iter().try_for_each(sync_directory));
        synced.map_err(|source| StoreError::Directory { path: self.directory.clone(), source })
    }

    /// Whether `state.db` is there. If it is not, and there was a store, that is damage.
    pub(super) fn require(&self) -> Result<(), StoreError> {
        match self.state.try_exists() {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.absent("gone")),
            Err(source) => Err(StoreError::File { path: self.state.clone(), source }),
        }
    }

    /// There is no store: there never was one, or what is found instead of it is damage.
    pub(super) fn absent(&self, found: &'static str) -> StoreError {
        match marker::read(&self.marker) {
            Ok(Marker::Absent) => StoreError::Missing { path: self.directory.clone() },
            Ok(Marker::Of(_) | Marker::Unreadable) | Err(_) => StoreError::Lost { path: self.state.clone(), found },
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
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
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

/// The connection that writes `state.db`: a commit is on the disk when it returns. Rows whose seals are broken are damage.
pub(super) fn open_state(paths: &Paths, budget: &Budget) -> Result<Connection, StoreError> {
    open_state_if(paths, budget, |db| {
        let broken = seals::broken(db).map_err(StoreError::read("the seals"))?;
        let what = broken.iter().map(BrokenRow::what).collect::<Vec<_>>().join("; ");
        if broken.is_empty() { Ok(()) } else { Err(StoreError::Tampered { path: paths.state.clone(), what }) }
    })
}

/// The same, whatever the seals say: for whoever forgets what is damaged.
pub(super) fn open_state_anyway(paths: &Paths, budget: &Budget) -> Result<Connection, StoreError> {
    open_state_if(paths, budget, |_| Ok(()))
}

fn open_state_if(
    paths: &Paths,
    budget: &Budget,
    look: impl FnOnce(&Connection) -> Result<(), StoreError>,
) -> Result<Connection, StoreError> {
    let unreadable = |source| StoreError::File { path: paths.marker.clone(), source };
    let marker = marker::read(&paths.marker).map_err(unreadable)?;
    if marker != Marker::Absent
        && let Some(found) = emptiness(&paths.state)?
    {
        return Err(StoreError::Lost { path: paths.state.clone(), found });
    }
    let is_short = is_shorter_than_it_says(&paths.state);
    let opened = open_to_write(&paths.state, &schema::STATE, |db| {
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "cache_size", -8192)?;
        db.pragma_update(None, "journal_size_limit", budget.wal_bytes.cast_signed())?;
        set_pages_max(db, budget.state_pages_max())
    });
    let db = opened.map_err(|error| error.of_ruin(marker != Marker::Absent))?;
    if is_short {
        require_whole(&db, &paths.state)?;
    }
    look(&db)?;
    settle_marker(&db, paths, marker)?;
    Ok(db)
}

/// What is wrong with a file that should hold a store and holds none. Its first page is on the disk since before the marker.
fn emptiness(path: &Path) -> Result<Option<&'static str>, StoreError> {
    let failed = |source| StoreError::File { path: path.to_owned(), source };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some("gone")),
        Err(error) => return Err(failed(error)),
    };
    let mut header = [0; HEADER_BYTES];
    match file.read_exact(&mut header) {
        Ok(()) => {
            let is_blank = field(&header, VERSION_AT) == 0 && header.starts_with(b"SQLite format 3\0");
            // Somebody who read it kept its WAL from being emptied.
            let is_blank = is_blank && bytes_of(&path.with_extension("db-wal")) == 0;
            Ok(is_blank.then_some("without tables"))
        }
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            let bytes = file.metadata().map_err(failed)?.len();
            Ok(Some(if bytes == 0 { "empty" } else { "cut off" }))
        }
        Err(error) => Err(failed(error)),
    }
}

/// The header of an SQLite file, and where its number of pages and our version stand in it (<https://sqlite.org/fileformat.html>).
const HEADER_BYTES: usize = 100;
const PAGES_AT: usize = 28;
const VERSION_AT: usize = 60;

fn field(header: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let bytes = header.get(at..).and_then(|rest| rest.first_chunk::<4>());
    bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// A file with fewer pages than it says was cut off, unless its WAL has the others, as after a crash while it was emptied.
fn is_shorter_than_it_says(path: &Path) -> bool {
    let mut header = [0; HEADER_BYTES];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    read.is_ok() && u64::from(field(&header, PAGES_AT)) * PAGE_BYTES > bytes_of(path)
}

/// Looks through all of it.
pub(super) fn require_whole(db: &Connection, path: &Path) -> Result<(), StoreError> {
    let said: Result<String, _> = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
    match said {
        Ok(said) if said == "ok" => Ok(()),
        Ok(said) => Err(StoreError::Ruined { path: path.to_owned(), what: said }),
        Err(error) => Err(StoreError::Ruined { path: path.to_owned(), what: error.to_string() }),
    }
}

/// The store has an identity, and the marker beside it says which.
fn settle_marker(db: &Connection, paths: &Paths, marker: Marker) -> Result<(), StoreError> {
    let known = identity(db).map_err(StoreError::read("the identity of the store"))?;
    let id = match (known, marker) {
        (Some(id), Marker::Of(other)) if other == id => return Ok(()),
        (Some(_), Marker::Of(_)) => return Err(StoreError::Another { path: paths.state.clone() }),
        (Some(id), Marker::Absent | Marker::Unreadable) => id,
        (None, Marker::Of(id)) => id,
        (None, Marker::Absent | Marker::Unreadable) => StoreId::new(&paths.state),
    };
    if marker == Marker::Unreadable {
        warn!(path = %paths.marker.display(), "the store's marker is damaged; it is written anew");
    }
    mark(db, paths, id)
}

/// Notes the identity, and writes the marker once it is on the disk.
pub(super) fn mark(db: &Connection, paths: &Paths, id: StoreId) -> Result<(), StoreError> {
    let noted = db.execute("DELETE FROM store_id", []).and_then(|_| {
        db.execute("INSERT INTO store_id (id) VALUES (?1)", [id.bytes()])?;
        empty_wal(db, BUSY_LIMIT)
    });
    noted.map_err(StoreError::write("the identity of the store"))?;
    let failed = |source| StoreError::File { path: paths.marker.clone(), source };
    marker::write(&paths.marker, id).map_err(failed)
}

/// What the store calls itself.
pub(super) fn identity(db: &Connection) -> rusqlite::Result<Option<StoreId>> {
    let select = db.query_row("SELECT id FROM store_id LIMIT 1", [], |row| row.get::<_, [u8; 16]>(0)).optional();
    select.map(|id| id.map(StoreId::of_bytes))
}

/// The connection that writes `log.db`: after a crash its last rows may be missing. One that is damaged is set aside: losing it
/// loses no change.
pub(super) fn open_log(paths: &Paths, budget: &Budget) -> Result<Connection, StoreError> {
    match try_to_open_log(paths, budget) {
        Err(StoreError::Open { source, .. } | StoreError::Migrate { source, .. }) if is_ruin(&source, true) => {
            // Nobody asked for it: one is kept, so that a disk that damages it again and again is not filled.
            let aside = set_aside(&paths.log, ".damaged")?;
            warn!(error = %source, aside = %aside.display(), "the log of deliveries is damaged; a new one begins");
            try_to_open_log(paths, budget)
        }
        opened => opened,
    }
}

/// Renames a database with all that belongs to it, in the place of what had that name.
pub(super) fn set_aside(path: &Path, end: &str) -> Result<PathBuf, StoreError> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let aside = path.with_file_name(name(path) + end);
    for end in ["", "-wal", "-shm"] {
        let [from, to] = [path, &aside].map(|path| path.with_file_name(name(path) + end));
        match std::fs::rename(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // What belonged to the one before does not belong to this one.
                drop(std::fs::remove_file(&to));
            }
            Err(error) => return Err(StoreError::File { path: from, source: error }),
            Ok(()) => {}
        }
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    sync_directory(directory).map_err(|source| StoreError::File { path: directory.to_owned(), source })?;
    Ok(aside)
}

fn try_to_open_log(paths: &Paths, budget: &Budget) -> Result<Connection, StoreError> {
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

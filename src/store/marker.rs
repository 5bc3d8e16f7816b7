//! `state.id`: a word outside `state.db` that there was a store, and which.
//!
//! It is written when `state.db` has been made and is on the disk, and before anything is put in. With it a file that is gone,
//! emptied, cut off or another one is damage; without it there never was anything. It has a seal too: one that cannot be
//! read still says that there was a store.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::SystemTime;

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::files::sync_directory;

/// Names a store, for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoreId(u128);

impl StoreId {
    /// Of a store that is made now, in a file of this name.
    pub(super) fn new(path: &Path) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let text = format!("{} {} {}", path.display(), since.as_nanos(), std::process::id());
        Self(xxh3_128(text.as_bytes()))
    }

    /// As it is kept.
    pub(super) fn bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// See [`Self::bytes`].
    pub(super) fn of_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What a directory's marker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    /// There is none.
    Absent,
    /// There was this store.
    Of(StoreId),
    /// There was a store; which, cannot be read.
    Unreadable,
}

/// Reads it.
pub(super) fn read(path: &Path) -> io::Result<Marker> {
    match fs::read(path) {
        Ok(bytes) => Ok(parse(&bytes).map_or(Marker::Unreadable, Marker::Of)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Marker::Absent),
        Err(error) => Err(error),
    }
}

fn text(id: StoreId) -> String {
    let line = format!("the store in state.db has been used; it is {id}\n");
    let seal = xxh3_64(line.as_bytes());
    format!("{line}{seal:016x}\n")
}

fn parse(bytes: &[u8]) -> Option<StoreId> {
    let said = std::str::from_utf8(bytes).ok()?;
    let digits = said.lines().next()?.rsplit(' ').next()?;
    let id = StoreId(u128::from_str_radix(digits, 16).ok()?);
    (said == text(id)).then_some(id)
}

/// Writes it, in one step and through to the disk, and so what is in the directory beside it.
pub(super) fn write(path: &Path, id: StoreId) -> io::Result<()> {
    let fresh = path.with_extension("id.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(text(id).as_bytes())?;
    file.sync_all()?;
    drop::<File>(file);
    let directory = path.parent().unwrap_or(Path::new("."));
    // What it speaks of is there before it is.
    sync_directory(directory)?;
    fs::rename(&fresh, path)?;
    sync_directory(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_read_as_it_was_written_and_one_that_was_changed_still_says_that_there_was_a_store() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.id");
        assert_eq!(read(&path).unwrap(), Marker::Absent);
        let id = StoreId::new(&path);
        assert_ne!(id, StoreId::new(Path::new("another")));
        assert_eq!(StoreId::of_bytes(id.bytes()), id);
        write(&path, id).unwrap();
        assert_eq!(read(&path).unwrap(), Marker::Of(id));
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert_eq!(read(&path).unwrap(), Marker::Unreadable, "byte {at}");
        }
        fs::write(&path, "").unwrap();
        assert_eq!(read(&path).unwrap(), Marker::Unreadable);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}

//! Why the store could not do what it was asked.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

use super::encoding::Corrupt;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// `state.path` cannot be a directory.
    #[error("the state directory {} cannot be used{}", path.display(), mending(source))]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has it.
    #[error("another walhook uses {}: stop that one, or give this one a state.path of its own", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// There is no store.
    #[error("there is no store in {}", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// There was a store, and its file holds nothing any more.
    #[error(
        "{} is {found}, but there was a store in it, as state.id beside it says: what it held is lost with it. Put the file back; \
         if it cannot be had, `walhook state accept-loss` lets the next start begin with an empty store, where the slots are",
        path.display()
    )]
    Lost {
        /// `state.db`.
        path: PathBuf,
        /// What is found.
        found: &'static str,
    },
    /// The file is no database any more.
    #[error(
        "{} is damaged: {what}. Put a whole copy back; if there is none, `walhook state accept-loss` sets the file aside and lets the \
         next start begin with an empty store, where the slots are",
        path.display()
    )]
    Ruined {
        /// `state.db`.
        path: PathBuf,
        /// What SQLite says.
        what: String,
    },
    /// What decides which changes are passed over is not what was written.
    #[error(
        "{} is damaged: {what}. Nothing is read, since changes could be passed over. `walhook state accept-loss` forgets what is \
         damaged: the next start goes on from the slot's position there, and changes that were delivered may come again",
        path.display()
    )]
    Tampered {
        /// `state.db`.
        path: PathBuf,
        /// Which rows.
        what: String,
    },
    /// Another store's file.
    #[error(
        "{} is not the store that was used here, as state.id beside it says: what that one held is not in it. Put the right file \
         back; to go on with this one, run `walhook state accept-loss`",
        path.display()
    )]
    Another {
        /// `state.db`.
        path: PathBuf,
    },
    /// Messages wait that were grouped by another rule than the config has.
    #[error(
        "sink {sink} is grouped by {given} in the config, and messages wait for it in the store that are grouped by {before}: \
         put group_by back until they are delivered, or drop them with `walhook state forget {sink}`"
    )]
    Regrouped {
        /// The sink's name.
        sink: String,
        /// The rule they were grouped by.
        before: String,
        /// The rule of the config.
        given: String,
    },
    /// `state.max_bytes` is too small for the number of sinks.
    #[error(
        "state.max_bytes = {} is too small for {sinks} sinks: it must be at least {}MiB",
        super::health::size(*max_bytes), least_bytes >> 20
    )]
    TooSmall {
        /// `state.max_bytes`.
        max_bytes: u64,
        /// How many sinks.
        sinks: usize,
        /// What it must be at least.
        least_bytes: u64,
    },
    /// A file of it cannot be opened.
    #[error("{} cannot be opened{}", path.display(), mending(source))]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A database of it cannot be opened.
    #[error("{} cannot be opened as a database", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// A database that is not ours.
    #[error("{} is a database of another program", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A database of a later walhook.
    #[error("{} has version {found}, and this walhook knows versions up to {known}: use a newer one", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version known.
        known: i64,
    },
    /// A database of an earlier walhook, which only reading does not bring to this version.
    #[error(
        "{} has version {found}, and this walhook knows version {known}: `walhook run` brings it there at its start",
        path.display()
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The version of this walhook.
        known: i64,
    },
    /// A database could not be brought to the version of this walhook. It is as it was.
    #[error("{} could not be brought to version {version}", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// Which version.
        version: i64,
        /// Why.
        source: rusqlite::Error,
    },
    /// The thread that writes could not be started.
    #[error("the thread that writes the store could not be started")]
    Thread(#[source] io::Error),
    /// Something could not be read.
    #[error("the store could not read {what}")]
    Read {
        /// What.
        what: &'static str,
        /// Why.
        source: rusqlite::Error,
    },
    /// Something could not be written.
    #[error("the store could not write {what}")]
    Write {
        /// What.
        what: &'static str,
        /// Why.
        source: rusqlite::Error,
    },
    /// What was read is not what was written.
    #[error("{what} in the store is damaged")]
    Damaged {
        /// What.
        what: Cow<'static, str>,
        /// How.
        source: Corrupt,
    },
    /// The same, of something that is a sink's.
    #[error(
        "{what} of sink {sink} of source {of_source} in the store is damaged; what is whole is not lost by that, but if it \
         is not mended, stop walhook, and `walhook state forget {sink}` drops everything that the store holds for the sink"
    )]
    DamagedSink {
        /// What; of a delivery with its id.
        what: Cow<'static, str>,
        /// The sink.
        sink: String,
        /// Its source.
        of_source: String,
        /// How.
        source: Corrupt,
    },
    /// A sink that the store does not know.
    #[error("the store knows no sink {name:?}")]
    UnknownSink {
        /// Its name.
        name: String,
    },
    /// A sink's name that does not say which is meant.
    #[error("the store knows sinks {name:?} of several sources: {sources}")]
    SeveralSinks {
        /// Their name.
        name: String,
        /// Their sources, with commas.
        sources: String,
    },
    /// A source that the store does not know.
    #[error("the store knows no source {name:?}")]
    UnknownSource {
        /// Its name.
        name: String,
    },
    /// A message that the store does not have.
    #[error("the store has no message {id:?}")]
    UnknownMessage {
        /// Its id.
        id: String,
    },
    /// A message that is in a delivery with others.
    #[error("message {id} is in delivery {delivery} with others: let walhook run until it stands alone, then drop it")]
    AmongOthers {
        /// Its id.
        id: String,
        /// The delivery.
        delivery: String,
    },
    /// A table of which the store notes nothing that could be accepted.
    #[error("the store notes nothing of a table {name:?} that could be accepted")]
    UnknownNote {
        /// Its name.
        name: String,
    },
    /// A table that lacks an identity and of which nothing was missed yet.
    #[error("{name} has no gap yet: it is published, and without a replica identity its own UPDATE and DELETE fail")]
    NoGap {
        /// The table.
        name: String,
    },
    /// There are too many notes.
    #[error("the store keeps {kept} notes about tables of source {source_name}, and no more")]
    NotesFull {
        /// Of which source.
        source_name: String,
        /// How many there are.
        kept: i64,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Whether waiting does not mend it: a person must. The others (a full disk, an error of the disk, a busy file) may pass.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Directory { source, .. } | Self::File { source, .. } => is_lasting_io(source),
            Self::Locked { .. }
            | Self::Missing { .. }
            | Self::Lost { .. }
            | Self::Ruined { .. }
            | Self::Tampered { .. }
            | Self::Another { .. }
            | Self::Regrouped { .. }
            | Self::TooSmall { .. }
            | Self::Foreign { .. }
            | Self::Newer { .. }
            | Self::Older { .. }
            | Self::Damaged { .. }
            | Self::DamagedSink { .. }
            | Self::UnknownSink { .. }
            | Self::SeveralSinks { .. }
            | Self::UnknownSource { .. }
            | Self::UnknownMessage { .. }
            | Self::AmongOthers { .. }
            | Self::UnknownNote { .. }
            | Self::NoGap { .. }
            | Self::NotesFull { .. }
            | Self::Closed => true,
            Self::Thread(_) => false,
            Self::Open { source, .. }
            | Self::Migrate { source, .. }
            | Self::Read { source, .. }
            | Self::Write { source, .. } => is_lasting_sqlite(source),
        }
    }

    /// Says of a database that cannot be opened that it is damaged, if it is. `was_used`: it is known to have been one of ours.
    pub(super) fn of_ruin(self, was_used: bool) -> Self {
        if let Self::Open { path, source } | Self::Migrate { path, source, .. } = &self
            && is_ruin(source, was_used)
        {
            return Self::Ruined { path: path.clone(), what: source.to_string() };
        }
        if let Self::Foreign { path } = &self
            && was_used
        {
            return Self::Ruined { path: path.clone(), what: "it is not as walhook made it".to_owned() };
        }
        self
    }

    /// The same of what was read or written in a database of ours.
    pub(super) fn of_ruin_in(self, path: &Path) -> Self {
        if let Self::Read { source, .. } | Self::Write { source, .. } = &self
            && is_ruin(source, true)
        {
            return Self::Ruined { path: path.to_owned(), what: source.to_string() };
        }
        self
    }

    /// Makes a [`StoreError::Read`] of an error of SQLite.
    pub(super) fn read(what: &'static str) -> impl Fn(rusqlite::Error) -> Self {
        move |source| Self::Read { what, source }
    }

    /// Makes a [`StoreError::Write`] of an error of SQLite.
    pub(super) fn write(what: &'static str) -> impl Fn(rusqlite::Error) -> Self {
        move |source| Self::Write { what, source }
    }

    /// Makes a [`StoreError::Damaged`].
    pub(super) fn damaged(what: impl Into<Cow<'static, str>>) -> impl Fn(Corrupt) -> Self {
        let what = what.into();
        move |source| Self::Damaged { what: what.clone(), source }
    }

    /// Says of damage whose it is, and what to do.
    pub(super) fn of_sink(self, of_source: &str, sink: &str) -> Self {
        let Self::Damaged { what, source } = self else { return self };
        Self::DamagedSink { what, sink: sink.to_owned(), of_source: of_source.to_owned(), source }
    }
}

/// Whether a database is damaged. What is none at all may be somebody else's file.
pub(super) fn is_ruin(error: &rusqlite::Error, was_used: bool) -> bool {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt) => true,
        code => was_used && code == Some(ErrorCode::NotADatabase),
    }
}

/// What a person does about it, where that is plain.
fn mending(error: &io::Error) -> &'static str {
    let is_forbidden = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem].contains(&error.kind());
    if is_forbidden { " (let walhook's user write there, or choose another state.path)" } else { "" }
}

fn is_lasting_io(error: &io::Error) -> bool {
    use io::ErrorKind::{
        AlreadyExists, InvalidInput, IsADirectory, NotADirectory, PermissionDenied, ReadOnlyFilesystem, Unsupported,
    };
    [AlreadyExists, InvalidInput, IsADirectory, NotADirectory, PermissionDenied, ReadOnlyFilesystem, Unsupported]
        .contains(&error.kind())
}

/// SQLite's own codes are an open set, so this names those that last.
pub(super) fn is_lasting_sqlite(error: &rusqlite::Error) -> bool {
    use ErrorCode::{
        ApiMisuse, AuthorizationForStatementDenied, ConstraintViolation, DatabaseCorrupt, NoLargeFileSupport,
        NotADatabase, NotFound, PermissionDenied, ReadOnly, TooBig, TypeMismatch, Unknown,
    };
    let lasting = [
        ApiMisuse,
        AuthorizationForStatementDenied,
        ConstraintViolation,
        DatabaseCorrupt,
        NoLargeFileSupport,
        NotADatabase,
        NotFound,
        PermissionDenied,
        ReadOnly,
        TooBig,
        TypeMismatch,
        Unknown,
    ];
    error.sqlite_error_code().is_none_or(|code| lasting.contains(&code))
}

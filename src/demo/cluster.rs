//! A throw-away Postgres: made in a directory of its own, listening on loopback, gone when dropped.
//!
//! `walhook demo` shows the product on one; the tests run on them. Data outlives nothing: `fsync` is off. Postgres
//! refuses to run as root, so for root the server runs as the user `postgres`, or else `nobody`.
//!
//! The roles of docs/OPERATING.md are in it from the start, with the grants that stand there: what runs on such a server
//! speaks to it as a user's walhook does.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use self::roles::Role;

pub mod roles;

/// Why a cluster could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No `initdb` anywhere.
    #[error(
        "no Postgres server binaries found: install the package postgresql (Debian, Ubuntu) or name the directory of \
         initdb and postgres in WALHOOK_PG_BIN"
    )]
    NoBinaries,
    /// We are root and there is nobody to run the server as.
    #[error("Postgres refuses to run as root, and this machine has neither a user postgres nor a user nobody")]
    NoUser,
    /// The directory could not be prepared.
    #[error("could not prepare {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program could not be started.
    #[error("could not start {program}")]
    Spawn {
        /// Which.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program ended badly.
    #[error("{program} failed: {output}")]
    Failed {
        /// Which.
        program: PathBuf,
        /// What it printed.
        output: String,
    },
}

/// How to make a [`Cluster`].
#[derive(Debug, Clone, Default)]
pub struct ClusterOptions {
    /// Directory of `initdb`, `pg_ctl`, `postgres`; `None` searches WALHOOK_PG_BIN, PATH and the usual places.
    pub bin: Option<PathBuf>,
    /// Further `name = value` lines of postgresql.conf, after `wal_level = logical` and ours.
    pub settings: Vec<(String, String)>,
    /// Lines of pg_hba.conf instead of trust for everyone.
    pub hba: Option<String>,
    /// Further arguments of initdb.
    pub initdb_args: Vec<String>,
    /// Copy the data directory from a template in the system's temporary directory instead of running initdb; the first
    /// cluster of a version makes it. Saves a second each, and leaves the template behind. Not with `initdb_args`. All
    /// such clusters have the same system identifier.
    pub template: bool,
}

/// A running (or stopped) throw-away cluster, with every [`Role`].
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    bin: PathBuf,
    port: u16,
    run_as: Option<(u32, u32)>,
}

impl Cluster {
    /// Makes a cluster in a new directory under the system's temporary directory and starts it. Blocks for about a second.
    ///
    /// # Errors
    /// When the binaries are missing or one of them fails; what they printed is in the error.
    pub fn start(options: &ClusterOptions) -> Result<Self, ClusterError> {
        let bin = options.bin.clone().or_else(find_binaries).ok_or(ClusterError::NoBinaries)?;
        let run_as = unprivileged()?;
        let dir = make_directory(run_as)?;
        let mut cluster = Self { dir, bin, port: 0, run_as };
        cluster.initdb(options)?;
        cluster.launch(options)?;
        Ok(cluster)
    }

    /// Starts it on a port that is free.
    fn launch(&mut self, options: &ClusterOptions) -> Result<(), ClusterError> {
        let mut attempts = 1..;
        loop {
            self.port = free_port().map_err(|source| self.directory_error(source))?;
            self.configure(options)?;
            match self.resume() {
                Err(ClusterError::Failed { output, .. }) if attempts.next() < Some(5) && output.contains("in use") => {}
                done => return done,
            }
        }
    }

    /// `postgres://walhook@127.0.0.1:PORT/DATABASE`: as the role that walhook is documented to have.
    pub fn url(&self, database: &str) -> String {
        self.url_as(Role::Walhook, database)
    }

    /// The same as another role.
    pub fn url_as(&self, role: Role, database: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/{database}", self.port)
    }

    /// TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Directory of the cluster: `data` is in it, and the unix socket.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Directory of the server's programs.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// Makes a physical standby of this cluster and starts it. It reads through the physical slot `standby`, which must be
    /// there; the cluster is stopped meanwhile, so that its files can be copied. `settings` come after those of any standby.
    ///
    /// # Errors
    /// When the files cannot be copied or one of the two does not start; what was printed is in the error.
    pub fn standby(&self, settings: &[(&str, &str)]) -> Result<Self, ClusterError> {
        self.stop("fast")?;
        let mut standby =
            Self { dir: make_directory(self.run_as)?, bin: self.bin.clone(), port: 0, run_as: self.run_as };
        self.copy(&self.data(), &standby.data())?;
        self.resume()?;
        // Slots are the server's own, and not part of a base backup either.
        for slot in std::fs::read_dir(standby.data().join("pg_replslot")).into_iter().flatten().flatten() {
            std::fs::remove_dir_all(slot.path()).map_err(|source| standby.directory_error(source))?;
        }
        let signal = standby.data().join("standby.signal");
        std::fs::write(&signal, "").map_err(|source| standby.directory_error(source))?;
        standby.give(&signal)?;
        let primary = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port);
        let own = [
            ("primary_conninfo", primary.as_str()),
            ("primary_slot_name", "standby"),
            ("hot_standby_feedback", "on"),
            ("wal_receiver_status_interval", "1s"),
            ("wal_retrieve_retry_interval", "100ms"),
        ];
        let settings = own.iter().chain(settings).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        standby.launch(&ClusterOptions { settings: settings.collect(), ..ClusterOptions::default() })?;
        Ok(standby)
    }

    /// Starts a stopped cluster and waits until it takes connections.
    ///
    /// # Errors
    /// When the server does not start; its log is in the error.
    pub fn resume(&self) -> Result<(), ClusterError> {
        let log = self.dir.join("log");
        let started = self.pg_ctl(&["start", "-w", "-t", "60", "-l", &log.to_string_lossy()]);
        started.map_err(|error| match error {
            ClusterError::Failed { program, output } => {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                ClusterError::Failed { program, output: output + &log }
            }
            ClusterError::NoBinaries
            | ClusterError::NoUser
            | ClusterError::Directory { .. }
            | ClusterError::Spawn { .. } => error,
        })
    }

    /// Starts a stopped cluster that will not take connections yet, as in recovery.
    ///
    /// # Errors
    /// When the server cannot be started.
    pub fn resume_without_waiting(&self) -> Result<(), ClusterError> {
        let log = self.dir.join("log");
        self.pg_ctl(&["start", "-W", "-l", &log.to_string_lossy()])
    }

    /// Ends recovery, which starts a new timeline, and waits until connections are taken.
    ///
    /// # Errors
    /// When the server is not in recovery or does not end it.
    pub fn promote(&self) -> Result<(), ClusterError> {
        // The postmaster takes the order only once its control file says recovery.
        let mut told = self.pg_ctl(&["promote", "-w", "-t", "60"]);
        for _ in 0..100 {
            if told.is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
            told = self.pg_ctl(&["promote", "-w", "-t", "60"]);
        }
        told
    }

    /// Stops the server: `smart`, `fast` or `immediate` (as a crash).
    ///
    /// # Errors
    /// When the server does not stop.
    pub fn stop(&self, mode: &str) -> Result<(), ClusterError> {
        self.pg_ctl(&["stop", "-w", "-t", "60", "-m", mode])
    }

    /// Reads postgresql.conf and pg_hba.conf anew.
    ///
    /// # Errors
    /// When the server is not running.
    pub fn reload(&self) -> Result<(), ClusterError> {
        self.pg_ctl(&["reload"])
    }

    fn initdb(&self, options: &ClusterOptions) -> Result<(), ClusterError> {
        if !options.template || !options.initdb_args.is_empty() {
            return self.initdb_anew(options);
        }
        let template = self.template_path()?;
        if !template.exists() {
            self.initdb_anew(options)?;
            return self.make_template(&template);
        }
        self.copy(&template, &self.data())
    }

    fn initdb_anew(&self, options: &ClusterOptions) -> Result<(), ClusterError> {
        let data = self.data();
        let mut arguments = vec!["-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C", "-D"];
        let data = data.to_string_lossy();
        arguments.push(&data);
        arguments.extend(options.initdb_args.iter().map(String::as_str));
        self.run(&self.bin.join("initdb"), &arguments)?;
        self.make_roles()
    }

    /// Without a server: a single backend takes the statements, one a line, and ends at the first that fails.
    fn make_roles(&self) -> Result<(), ClusterError> {
        let sql = self.dir.join("roles.sql");
        let statements = [roles::MAKE, &roles::grants("postgres")].concat();
        std::fs::write(&sql, statements).map_err(|source| self.directory_error(source))?;
        let data = self.data();
        let arguments = ["--single", "-c", "exit_on_error=on", "-D", &data.to_string_lossy(), "postgres"];
        let input = std::fs::File::open(&sql).map_err(|source| self.directory_error(source))?;
        self.run_with(&self.bin.join("postgres"), &arguments, input.into())
    }

    /// One template a server version and user, so that no version meets another's files.
    fn template_path(&self) -> Result<PathBuf, ClusterError> {
        let output = self.output(&self.bin.join("initdb"), &["--version"], Stdio::null())?;
        let version = String::from_utf8_lossy(&output.stdout);
        let version: String = version.chars().filter(|c| c.is_ascii_digit() || *c == '.').collect();
        let owner = std::fs::metadata(&self.dir).map_err(|source| self.directory_error(source))?.uid();
        Ok(std::env::temp_dir().join(format!("walhook-pg-template-roles-{version}-{owner}")))
    }

    /// Copies our fresh data directory beside the template's place and renames it, so that nobody sees half of one. When
    /// another process was quicker its template stays.
    fn make_template(&self, template: &Path) -> Result<(), ClusterError> {
        let mut half = template.as_os_str().to_owned();
        half.push(format!("-{}", uuid::Uuid::new_v4().simple()));
        let half = PathBuf::from(half);
        self.copy(&self.data(), &half)?;
        if std::fs::rename(&half, template).is_err() {
            drop(std::fs::remove_dir_all(&half));
        }
        Ok(())
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<(), ClusterError> {
        self.run(Path::new("cp"), &["-a", &from.to_string_lossy(), &to.to_string_lossy()])
    }

    fn configure(&self, options: &ClusterOptions) -> Result<(), ClusterError> {
        let mut conf = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\nwal_level = logical\n\
             fsync = off\nmax_wal_senders = 20\nmax_replication_slots = 20\nlog_min_messages = warning\n\
             max_connections = 60\nshared_buffers = 64MB\n",
            self.port,
            self.dir.display()
        );
        for (name, value) in &options.settings {
            conf += &format!("{name} = '{value}'\n");
        }
        let data = self.data();
        std::fs::write(data.join("walhook.conf"), conf).map_err(|source| self.directory_error(source))?;
        std::fs::write(data.join("postgresql.conf"), "include 'walhook.conf'\n")
            .map_err(|source| self.directory_error(source))?;
        if let Some(hba) = &options.hba {
            std::fs::write(data.join("pg_hba.conf"), hba).map_err(|source| self.directory_error(source))?;
        }
        for file in ["walhook.conf", "postgresql.conf", "pg_hba.conf"] {
            self.give(&data.join(file))?;
        }
        Ok(())
    }

    /// Hands a file to the user the server runs as.
    fn give(&self, path: &Path) -> Result<(), ClusterError> {
        let Some((uid, gid)) = self.run_as else { return Ok(()) };
        chown(path, Some(uid), Some(gid)).map_err(|source| self.directory_error(source))
    }

    fn directory_error(&self, source: io::Error) -> ClusterError {
        ClusterError::Directory { path: self.dir.clone(), source }
    }

    fn pg_ctl(&self, arguments: &[&str]) -> Result<(), ClusterError> {
        let data = self.data();
        let data = data.to_string_lossy();
        let mut all = vec!["-s", "-D", &data];
        all.extend(arguments);
        self.run(&self.bin.join("pg_ctl"), &all)
    }

    fn run(&self, program: &Path, arguments: &[&str]) -> Result<(), ClusterError> {
        self.run_with(program, arguments, Stdio::null())
    }

    fn run_with(&self, program: &Path, arguments: &[&str], input: Stdio) -> Result<(), ClusterError> {
        let output = self.output(program, arguments, input)?;
        if output.status.success() {
            return Ok(());
        }
        let text = [output.stdout, output.stderr].concat();
        let program = program.to_owned();
        Err(ClusterError::Failed { program, output: String::from_utf8_lossy(&text).trim().to_owned() })
    }

    /// Runs a program as the server's user, in a process group of its own so that Ctrl-C does not reach it, with its output
    /// in files: the server inherits them, and a pipe would stay open.
    fn output(&self, program: &Path, arguments: &[&str], input: Stdio) -> Result<Output, ClusterError> {
        let path = self.dir.join("output");
        let file = std::fs::File::create(&path).map_err(|source| self.directory_error(source))?;
        let other = file.try_clone().map_err(|source| self.directory_error(source))?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.dir).stdin(input).stdout(file).stderr(other).process_group(0);
        if let Some((uid, gid)) = self.run_as {
            command.uid(uid).gid(gid);
        }
        let spawn_error = |source| ClusterError::Spawn { program: program.to_owned(), source };
        let status = command.status().map_err(spawn_error)?;
        let stdout = std::fs::read(&path).unwrap_or_default();
        Ok(Output { status, stdout, stderr: Vec::new() })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.data().join("postmaster.pid").exists() {
            // Nothing is left to do for a server that does not stop even so.
            drop(self.stop("immediate"));
        }
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

/// The directory with `initdb`: WALHOOK_PG_BIN, then `pg_config --bindir`, then where Debian, Fedora and Homebrew put it.
pub fn find_binaries() -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "a development aid that must work without a config file")]
    let named = std::env::var_os("WALHOOK_PG_BIN").map(PathBuf::from);
    if let Some(named) = named {
        return named.join("initdb").exists().then_some(named);
    }
    let mut places = Vec::new();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        places.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim().to_owned()));
    }
    let mut versions: Vec<PathBuf> =
        std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    versions.sort_by_key(|path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()));
    places.extend(versions.into_iter().rev().map(|path| path.join("bin")));
    places.extend(
        ["/usr/pgsql/bin", "/usr/local/bin", "/usr/local/pgsql/bin", "/opt/homebrew/bin", "/usr/bin"]
            .map(PathBuf::from),
    );
    places.into_iter().find(|place| place.join("initdb").exists() && place.join("postgres").exists())
}

/// Whom to run the server as: `None` is ourselves.
fn unprivileged() -> Result<Option<(u32, u32)>, ClusterError> {
    let we_are_root = std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0);
    if !we_are_root {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let ids = |name: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    ids("postgres").or_else(|| ids("nobody")).map(Some).ok_or(ClusterError::NoUser)
}

fn make_directory(run_as: Option<(u32, u32)>) -> Result<PathBuf, ClusterError> {
    let path = std::env::temp_dir().join(format!("walhook-pg-{}", uuid::Uuid::new_v4().simple()));
    let prepared = std::fs::create_dir(&path)
        .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)))
        .and_then(|()| run_as.map_or(Ok(()), |(uid, gid)| chown(&path, Some(uid), Some(gid))));
    prepared.map_err(|source| ClusterError::Directory { path: path.clone(), source })?;
    Ok(path)
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_starts_restarts_and_leaves_nothing() {
        let cluster = Cluster::start(&ClusterOptions::default()).unwrap();
        cluster.stop("immediate").unwrap();
        cluster.resume().unwrap();
        let dir = cluster.dir().to_owned();
        assert!(dir.join("data/postmaster.pid").exists());
        drop(cluster);
        assert!(!dir.exists());
    }
}

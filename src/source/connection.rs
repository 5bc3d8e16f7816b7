//! The way to Postgres: sessions for SQL, and a CopyBoth client that reads the replication stream.
//!
//! [`sql`] gives a `tokio_postgres` client. [`Replication`] is a client of our own, because rows are to be slices of
//! what was read, many frames a read, and statuses must go out while nobody reads. Both enter the servers of a
//! [`PgAddress`] the same way, with the same session settings, and check that these took.
//!
//! Nothing here reconnects, decides what to confirm, or keeps a clock: the source does.

use std::future::{Ready, ready};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::BufMut as _;
use postgres_protocol::message::frontend;
use secrecy::ExposeSecret as _;
use tokio::io::AsyncWriteExt as _;
use tokio_postgres::config::{ChannelBinding as SqlBinding, SslMode as SqlSslMode, SslNegotiation};
use tokio_postgres::{SimpleQueryMessage, tls as sql_tls};

use super::pgoutput::POSTGRES_EPOCH_MICROS;
use crate::address::{ChannelBinding, PgAddress};
use crate::change::Lsn;
use crate::memory::Memory;

mod bounds;
mod error;
mod guard;
mod gulp;
mod login;
mod pace;
mod reduce;
mod refusal;
mod settings;
mod socket;
#[cfg(test)]
mod tests;
mod tls;
mod tries;
mod unreached;

pub use bounds::Limits;
pub(crate) use bounds::excess;
pub use error::{ConnectError, ServerError, StreamError};
pub use gulp::{Frame, Gulp, read_frames};
pub use socket::{Socket, open};

use login::Session;
use pace::Pace;

/// How long the server may take to end the stream.
const FINISH: Duration = Duration::from_secs(5);
/// Most bytes of statuses that wait to be sent; beyond that a further status waits for them and is left out, since the
/// next one says the same and more.
const STATUSES_WAITING: usize = 4096;

/// Drives a SQL session: spawn it, or poll it beside the queries; it ends with the session.
pub type SqlDriver = tokio_postgres::Connection<Socket, Socket>;

/// Opens a session for SQL, with the settings of the replication session but for the `search_path`, which is `pg_catalog`.
///
/// # Errors
/// When no server of the address lets us in.
pub async fn sql(address: &PgAddress) -> Result<(tokio_postgres::Client, SqlDriver), ConnectError> {
    sql_somewhere(address).await.map(|(client, driver, _)| (client, driver))
}

/// The same for a session that reads more at a time, or less.
///
/// # Errors
/// As [`sql`].
pub async fn sql_within(
    address: &PgAddress,
    limits: Limits,
) -> Result<(tokio_postgres::Client, SqlDriver), ConnectError> {
    enter_sql(address, limits).await.map(|(client, driver, _)| (client, driver))
}

/// The same, with the address of the one server that it leads to, for further sessions that are to be with that one.
///
/// # Errors
/// As [`sql`].
pub async fn sql_somewhere(
    address: &PgAddress,
) -> Result<(tokio_postgres::Client, SqlDriver, PgAddress), ConnectError> {
    enter_sql(address, bounds::ORDINARY).await
}

async fn enter_sql(
    address: &PgAddress,
    limits: Limits,
) -> Result<(tokio_postgres::Client, SqlDriver, PgAddress), ConnectError> {
    let mut config = tokio_postgres::Config::new();
    config.user(&address.user).dbname(&address.dbname).application_name(&address.application_name);
    config.options(settings::options(address));
    if let Some(password) = &address.password {
        config.password(password.expose_secret());
    }
    // The socket is as encrypted as it is to be; only this way the client asks it for its channel binding.
    config.ssl_mode(SqlSslMode::Require).ssl_negotiation(SslNegotiation::Direct);
    config.channel_binding(match address.channel_binding {
        ChannelBinding::Disable => SqlBinding::Disable,
        ChannelBinding::Prefer => SqlBinding::Prefer,
        ChannelBinding::Require => SqlBinding::Require,
    });
    let config = &config;
    let entered = socket::enter_somewhere(address, |socket| async move {
        let (client, mut driver) = config.connect_raw(socket.within(limits), AsItIs).await?;
        tokio::select! {
            set_up = set_up(&client, address) => set_up?,
            ended = &mut driver => {
                ended?;
                return Err(ConnectError::Broken(StreamError::Closed));
            }
        }
        Ok((client, driver))
    });
    let ((client, driver), host) = entered.await?;
    Ok((client, driver, PgAddress { hosts: vec![host], ..address.clone() }))
}

/// Sets the session up, and looks whether it took.
async fn set_up(client: &tokio_postgres::Client, address: &PgAddress) -> Result<(), ConnectError> {
    client.batch_execute(&settings::before(address).join("; ")).await?;
    let answer = client.simple_query(&settings::question()).await?;
    let row =
        answer.iter().find_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None });
    let values = row.into_iter().flat_map(|row| (0..row.len()).map(|index| row.get(index)));
    let version = settings::check(address, values)?;
    let after: Vec<&str> = settings::after(version).into_iter().chain([settings::CATALOGUE_ONLY]).collect();
    Ok(client.batch_execute(&after.join("; ")).await?)
}

/// Hands the socket on as it is.
struct AsItIs;

impl sql_tls::TlsConnect<Socket> for AsItIs {
    type Stream = Socket;
    type Error = std::io::Error;
    type Future = Ready<std::io::Result<Socket>>;

    fn connect(self, socket: Socket) -> Self::Future {
        ready(Ok(socket))
    }
}

impl sql_tls::TlsStream for Socket {
    fn channel_binding(&self) -> sql_tls::ChannelBinding {
        self.end_point().map_or_else(sql_tls::ChannelBinding::none, sql_tls::ChannelBinding::tls_server_end_point)
    }
}

/// What a server says of itself (`IDENTIFY_SYSTEM`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The cluster, unchanged by restarts, promotions and base backups.
    pub system_id: u64,
    /// Timeline; a promotion starts a new one.
    pub timeline: u32,
    /// End of the WAL that is written.
    pub xlogpos: Lsn,
    /// The session's database.
    pub dbname: String,
}

/// A replication session.
#[derive(Debug)]
pub struct Replication {
    session: Session,
    memory: Memory,
    pace: Pace,
}

impl Replication {
    /// Logs in to the first server of the address that lets us in and suits; what is read is charged to `memory`.
    ///
    /// # Errors
    /// When there is none.
    pub async fn connect(address: &PgAddress, memory: &Memory) -> Result<Self, ConnectError> {
        let options = &settings::stream_options(address);
        let session = socket::enter(address, |socket| async move {
            let mut session = Session::enter(socket, address, options).await?;
            // One by one: up to 14 a walsender takes one statement at a time.
            for statement in settings::before(address) {
                session.query(statement).await?;
            }
            let answer = session.query(&settings::question()).await?;
            let version = settings::check(address, answer.iter().flatten().map(Option::as_deref))?;
            for statement in settings::after(version) {
                session.query(statement).await?;
            }
            // Postgres cannot convert from SQL_ASCII, which may hold anything; such bytes come as they are.
            if session.parameters.get("server_encoding").is_some_and(|encoding| encoding == "SQL_ASCII") {
                session.query("SET client_encoding TO 'SQL_ASCII'").await?;
            }
            Ok(session)
        });
        Ok(Self { session: session.await?, memory: memory.clone(), pace: Pace::new(Instant::now()) })
    }

    /// Which cluster, timeline and database this is, and how far its WAL is written.
    ///
    /// # Errors
    /// When the server refuses or the connection breaks.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, StreamError> {
        let rows = self.session.query("IDENTIFY_SYSTEM").await?;
        let bad = || StreamError::Malformed { what: "an answer to IDENTIFY_SYSTEM that is none" };
        let value = |index: usize| rows.first().and_then(|row| row.get(index)?.as_deref()).ok_or_else(bad);
        Ok(SystemIdentity {
            system_id: value(0)?.parse().map_err(|_| bad())?,
            timeline: value(1)?.parse().map_err(|_| bad())?,
            xlogpos: value(2)?.parse().map_err(|_| bad())?,
            dbname: value(3)?.to_owned(),
        })
    }

    /// Where timeline `of` was left for the next one, by the history of `timeline`, which is to be the server's or one of
    /// its past; `None` if that history does not know `of`. Only before the stream starts.
    ///
    /// # Errors
    /// When the server does not have the history or the connection breaks.
    pub async fn switch_point(&mut self, timeline: u32, of: u32) -> Result<Option<Lsn>, StreamError> {
        // The first timeline has no past, and no file that says so.
        if timeline <= 1 {
            return Ok(None);
        }
        let rows = self.session.query(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let bad = || StreamError::Malformed { what: "an answer to TIMELINE_HISTORY that is none" };
        let history = rows.first().and_then(|row| row.get(1)?.as_deref()).ok_or_else(bad)?;
        left_at(history, of).ok_or_else(bad)
    }

    /// Version as the server counts it, 150018 for 15.18; 0 if it did not say.
    pub fn server_version(&self) -> u32 {
        self.parameter("server_version").map_or(0, version_number)
    }

    /// What the server reported under `name` (ParameterStatus): `server_encoding`, `in_hot_standby`, ….
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.session.parameters.get(name).map(String::as_str)
    }

    /// Process id of the walsender, as in `pg_stat_replication`.
    pub fn pid(&self) -> i32 {
        self.session.pid
    }

    /// When the last byte came from the server.
    pub fn received_at(&self) -> Instant {
        self.session.inlet.received_at()
    }

    /// Makes standbys keep a copy of the slot (17 and later), which nobody may read meanwhile.
    ///
    /// # Errors
    /// When the server refuses or the connection breaks.
    pub async fn keep_copies(&mut self, slot: &str) -> Result<(), StreamError> {
        let slot = slot.replace('"', "\"\"");
        self.session.query(&format!("ALTER_REPLICATION_SLOT \"{slot}\" (FAILOVER true)")).await.map(drop)
    }

    /// Starts the stream of `publication` from `slot`, after what is confirmed or `start`, whichever is later.
    ///
    /// # Errors
    /// When the slot is missing, in use (55006) or invalidated (55000), or the connection breaks.
    pub async fn start(&mut self, slot: &str, publication: &str, start: Lsn) -> Result<(), StreamError> {
        let command = start_command(slot, publication, start, self.server_version());
        self.session.send(|out| frontend::query(&command, out)).await?;
        match self.session.frame().await {
            Ok((b'W', _)) => Ok(()),
            Ok(_) => Err(login::unexpected()),
            Err(error) => Err(self.session.after_error(error).await),
        }
    }

    /// All complete frames that came, at least one. It may be dropped at any time, as in a select, and loses nothing.
    ///
    /// # Errors
    /// When the server ends the stream or the connection breaks, after all frames before that were returned.
    pub async fn read(&mut self) -> Result<Gulp, StreamError> {
        if self.pace.is_flood() {
            tokio::time::sleep(pace::MOMENT).await;
            self.pace.waited();
        }
        let gulp = self.session.inlet.gulp(&mut self.session.socket, &self.memory).await?;
        self.pace.took(gulp.received_at(), gulp.wire_bytes(), gulp.filled_buffer());
        Ok(gulp)
    }

    /// Tells the server what was received and what is safe for ever; the slot moves to `flushed`. With `reply` the
    /// server answers with a keepalive. A call that is dropped is completed by the next one.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn status(&mut self, received: Lsn, flushed: Lsn, reply: bool) -> Result<(), StreamError> {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let clock = i64::try_from(clock).unwrap_or(i64::MAX).saturating_sub(POSTGRES_EPOCH_MICROS);
        let send = self.session.send(|out| {
            if out.len() > STATUSES_WAITING {
                return Ok(());
            }
            out.put_u8(b'd');
            out.put_u32(38);
            out.put_u8(b'r');
            out.put_u64(received.0);
            out.put_u64(flushed.0);
            out.put_u64(flushed.0);
            out.put_i64(clock);
            out.put_u8(u8::from(reply));
            Ok(())
        });
        send.await
    }

    /// Confirms a last time and takes leave, reading on, and throwing away, until the server has ended the stream.
    ///
    /// # Errors
    /// When the connection breaks or the server takes longer than 5 s; the last status was sent then, unless that failed.
    pub async fn finish(mut self, received: Lsn, flushed: Lsn) -> Result<(), StreamError> {
        let leave = async {
            self.status(received, flushed, false).await?;
            let session = &mut self.session;
            session
                .send(|out| {
                    frontend::copy_done(out);
                    Ok(())
                })
                .await?;
            session.inlet.drain(&mut session.socket).await?;
            // Only politeness is left: a server that is gone already has all it needs.
            let goodbye = session.send(|out| {
                frontend::terminate(out);
                Ok(())
            });
            drop(goodbye.await);
            drop(session.socket.shutdown().await);
            Ok(())
        };
        tokio::time::timeout(FINISH, leave).await.map_err(|_| StreamError::NotFinished)?
    }
}

fn start_command(slot: &str, publication: &str, start: Lsn, version: u32) -> String {
    let identifier = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let publications = identifier(publication).replace('\'', "''");
    let messages = if version >= 140_000 { ", messages 'true'" } else { "" };
    let slot = identifier(slot);
    format!(
        "START_REPLICATION SLOT {slot} LOGICAL {start} (proto_version '1', publication_names '{publications}'{messages})"
    )
}

/// Reads a timeline history file, lines of timeline, LSN and reason; the outer `None` if it is none.
fn left_at(history: &str, of: u32) -> Option<Option<Lsn>> {
    let mut left = None;
    let is_said = |line: &&str| !line.is_empty() && !line.starts_with('#');
    for line in history.lines().map(str::trim).filter(is_said) {
        let mut fields = line.split_ascii_whitespace();
        let (timeline, lsn): (u32, Lsn) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        if timeline == of {
            left = Some(lsn);
        }
    }
    Some(left)
}

/// `15.18 (Debian …)` as 150018, `19beta1` as 190000.
fn version_number(text: &str) -> u32 {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    let major: u32 = parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
    let has_minor = text.get(major.to_string().len()..).is_some_and(|rest| rest.starts_with('.'));
    let minor: u32 = parts.next().filter(|_| has_minor).and_then(|part| part.parse().ok()).unwrap_or(0);
    major.saturating_mul(10_000).saturating_add(minor)
}

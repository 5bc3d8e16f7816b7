//! Entering: startup message, authentication, and simple queries on the same session.

use std::collections::HashMap;

use bytes::BytesMut;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::frontend;
use secrecy::ExposeSecret as _;
use tokio::io::AsyncWriteExt as _;

use super::error::{ConnectError, ServerError, StreamError};
use super::gulp::{self, Inlet};
use super::socket::Socket;
use crate::address::{ChannelBinding, PgAddress};
use crate::source::wire::Cursor;

/// Largest frame outside the stream, bytes.
const FRAME_MAX: usize = 1 << 20;
/// Most rows of a query, and their bytes; none of ours has more than a few. The history of a timeline is the longest.
const ROWS_MAX: usize = 1000;
const ROWS_BYTES_MAX: usize = 4 << 20;
/// What the server reports of itself: some twenty short texts.
const PARAMETERS_MAX: usize = 200;
const PARAMETER_BYTES_MAX: usize = 4096;

/// A socket with what came from it and what is yet to be sent.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) socket: Socket,
    pub(super) inlet: Inlet,
    outlet: BytesMut,
    /// What the server reported of itself: `server_version`, `client_encoding`, ….
    pub(super) parameters: HashMap<String, String>,
    /// Process id of the backend.
    pub(super) pid: i32,
}

/// Rows of a simple query, each value as text or NULL.
pub(super) type Rows = Vec<Vec<Option<String>>>;

impl Session {
    /// Sends the startup message with `options` and authenticates.
    pub(super) async fn enter(socket: Socket, address: &PgAddress, options: &str) -> Result<Self, ConnectError> {
        let (inlet, outlet) = (Inlet::new(), BytesMut::new());
        let mut session = Self { socket, inlet, outlet, parameters: HashMap::new(), pid: 0 };
        let parameters = [
            ("user", &*address.user),
            ("database", &address.dbname),
            ("replication", "database"),
            ("application_name", &address.application_name),
            ("client_encoding", "UTF8"),
            ("options", options),
        ];
        session.send(|out| frontend::startup_message(parameters, out)).await?;
        session.authenticate(address).await?;
        loop {
            match session.frame().await? {
                (b'K', body) => session.pid = Cursor::new(&body).i32().map_err(StreamError::from)?,
                (b'Z', _) => return Ok(session),
                (_, _) => return Err(unexpected().into()),
            }
        }
    }

    /// Adds a frame to what is to be sent, and sends it. What could not be sent yet goes first at the next call, so a
    /// call that is dropped leaves no half frame.
    pub(super) async fn send(
        &mut self,
        write: impl FnOnce(&mut BytesMut) -> std::io::Result<()>,
    ) -> Result<(), StreamError> {
        write(&mut self.outlet).map_err(StreamError::Io)?;
        while !self.outlet.is_empty() {
            match self.socket.write_buf(&mut self.outlet).await {
                Ok(0) => return Err(StreamError::Closed),
                Ok(_) => {}
                Err(error) => return Err(StreamError::Io(error)),
            }
        }
        self.socket.flush().await.map_err(StreamError::Io)
    }

    /// The next frame that answers something; notices are logged, parameters kept, errors returned.
    pub(super) async fn frame(&mut self) -> Result<(u8, Vec<u8>), StreamError> {
        loop {
            let (tag, body) = self.inlet.frame(&mut self.socket, FRAME_MAX).await?;
            match tag {
                b'N' => gulp::notice(&body)?,
                b'S' => {
                    let mut cursor = Cursor::new(&body);
                    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                    let (name, value) = (text(cursor.cstr()?), text(cursor.cstr()?));
                    let is_new = !self.parameters.contains_key(&name);
                    if body.len() > PARAMETER_BYTES_MAX || (is_new && self.parameters.len() >= PARAMETERS_MAX) {
                        return Err(StreamError::Malformed { what: "more parameters than a server has" });
                    }
                    self.parameters.insert(name, value);
                }
                b'E' => return Err(StreamError::Server(Box::new(ServerError::parse(&body)?))),
                // NegotiateProtocolVersion, NotificationResponse.
                b'v' | b'A' => {}
                _ => return Ok((tag, body)),
            }
        }
    }

    /// The rows of a query of one statement.
    pub(super) async fn query(&mut self, sql: &str) -> Result<Rows, StreamError> {
        self.send(|out| frontend::query(sql, out)).await?;
        let (mut rows, mut bytes) = (Rows::new(), 0);
        loop {
            match self.frame().await {
                Ok((b'D', body)) if rows.len() < ROWS_MAX && bytes <= ROWS_BYTES_MAX => {
                    bytes += body.len();
                    rows.push(row(&body)?);
                }
                Ok((b'D', _)) => return Err(StreamError::Malformed { what: "more rows than were asked for" }),
                Ok((b'T' | b'C' | b'I', _)) => {}
                Ok((b'Z', _)) => return Ok(rows),
                Ok(_) => return Err(unexpected()),
                Err(error) => return Err(self.after_error(error).await),
            }
        }
    }

    /// Reads up to ReadyForQuery if the session goes on after `error`, so that the next command finds it clean.
    pub(super) async fn after_error(&mut self, error: StreamError) -> StreamError {
        if !matches!(&error, StreamError::Server(said) if said.severity == "ERROR") {
            return error;
        }
        loop {
            match self.frame().await {
                Ok((b'Z', _)) => return error,
                Ok(_) => {}
                Err(worse) => return worse,
            }
        }
    }

    async fn authenticate(&mut self, address: &PgAddress) -> Result<(), ConnectError> {
        let mut bound = false;
        loop {
            let (kind, body) = self.authentication().await?;
            match kind {
                0 if address.channel_binding == ChannelBinding::Require && !bound => {
                    return Err(ConnectError::ChannelBinding("the server let us in without it"));
                }
                0 => return Ok(()),
                3 => {
                    let password = self.unbound_password(address)?;
                    self.send(|out| frontend::password_message(password, out)).await?;
                }
                5 => {
                    let salt = *body.first_chunk().ok_or_else(unexpected)?;
                    let hash = md5_hash(address.user.as_bytes(), self.unbound_password(address)?, salt);
                    self.send(|out| frontend::password_message(hash.as_bytes(), out)).await?;
                }
                10 => bound = self.scram(address, &body).await?,
                2 => return Err(ConnectError::Method { method: "Kerberos" }),
                7 => return Err(ConnectError::Method { method: "GSSAPI" }),
                9 => return Err(ConnectError::Method { method: "SSPI" }),
                _ => return Err(ConnectError::Method { method: "an unknown method of authentication" }),
            }
        }
    }

    /// The next Authentication message: its kind and what follows.
    async fn authentication(&mut self) -> Result<(u32, Vec<u8>), StreamError> {
        let (tag, body) = self.frame().await?;
        let mut cursor = Cursor::new(&body);
        match tag {
            b'R' => Ok((cursor.u32()?, cursor.rest().to_vec())),
            _ => Err(unexpected()),
        }
    }

    /// The password for a method that cannot be tied to the TLS session.
    fn unbound_password<'a>(&self, address: &'a PgAddress) -> Result<&'a [u8], ConnectError> {
        if address.channel_binding == ChannelBinding::Require {
            return Err(ConnectError::ChannelBinding("the server asks for a password without it"));
        }
        password(address)
    }

    /// SCRAM-SHA-256, tied to the TLS session where both sides can; whether it was.
    async fn scram(&mut self, address: &PgAddress, mechanisms: &[u8]) -> Result<bool, ConnectError> {
        let offered: Vec<&[u8]> = mechanisms.split(|byte| *byte == 0).collect();
        let plus = offered.contains(&sasl::SCRAM_SHA_256_PLUS.as_bytes());
        if !plus && !offered.contains(&sasl::SCRAM_SHA_256.as_bytes()) {
            return Err(ConnectError::Method { method: "an unknown SASL mechanism" });
        }
        let end_point = self.socket.end_point().filter(|_| address.channel_binding != ChannelBinding::Disable);
        let (binding, mechanism) = match end_point {
            Some(end_point) if plus => {
                (sasl::ChannelBinding::tls_server_end_point(end_point), sasl::SCRAM_SHA_256_PLUS)
            }
            _ if address.channel_binding == ChannelBinding::Require => {
                return Err(ConnectError::ChannelBinding(
                    "it takes TLS, a server that offers SCRAM-SHA-256-PLUS, and a certificate signed with SHA-2",
                ));
            }
            Some(_) => (sasl::ChannelBinding::unrequested(), sasl::SCRAM_SHA_256),
            None => (sasl::ChannelBinding::unsupported(), sasl::SCRAM_SHA_256),
        };
        let mut scram = sasl::ScramSha256::new(password(address)?, binding);
        let failed = |source| ConnectError::Scram { source };
        self.send(|out| frontend::sasl_initial_response(mechanism, scram.message(), out)).await?;
        match self.authentication().await? {
            (11, challenge) => scram.update(&challenge).map_err(failed)?,
            _ => return Err(unexpected().into()),
        }
        self.send(|out| frontend::sasl_response(scram.message(), out)).await?;
        match self.authentication().await? {
            (12, proof) => scram.finish(&proof).map_err(failed)?,
            _ => return Err(unexpected().into()),
        }
        Ok(mechanism == sasl::SCRAM_SHA_256_PLUS)
    }
}

fn password(address: &PgAddress) -> Result<&[u8], ConnectError> {
    address.password.as_ref().map(|password| password.expose_secret().as_bytes()).ok_or(ConnectError::PasswordMissing)
}

/// Reads a DataRow.
fn row(body: &[u8]) -> Result<Vec<Option<String>>, StreamError> {
    let mut cursor = Cursor::new(body);
    let mut values = Vec::new();
    for _ in 0..cursor.u16()? {
        values.push(match usize::try_from(cursor.i32()?) {
            Ok(length) => Some(String::from_utf8_lossy(cursor.take(length)?).into_owned()),
            Err(_) => None,
        });
    }
    cursor.end()?;
    Ok(values)
}

pub(super) fn unexpected() -> StreamError {
    StreamError::Malformed { what: "an unexpected frame" }
}

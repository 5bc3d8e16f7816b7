//! Pairs of key and value become a checked [`PgAddress`].

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::foreign;
use super::host::name_fault;
use super::text::Pairs;
use super::{
    AddressError, AuthMethods, ChannelBinding, ClientCert, Host, Keepalive, PgAddress, RootCert, SslMode, TargetSession,
};

/// Bytes of a path at most (PATH_MAX of Linux is 4096 with everything).
const FILE_BYTES_MAX: usize = 1024;

/// Settings that are read.
const KNOWN: &[&str] = &[
    "host",
    "hostaddr",
    "port",
    "user",
    "password",
    "dbname",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "channel_binding",
    "require_auth",
    "application_name",
    "connect_timeout",
    "options",
    "target_session_attrs",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "gssencmode",
    "sslnegotiation",
    "load_balance_hosts",
];

/// Settings of libpq that are refused, and what to do.
const REFUSED: &[(&str, &str)] = &[
    ("passfile", "give the password as password=${NAME}, which takes it from the environment"),
    ("service", "write the settings of the service into the address"),
    ("servicefile", "write the settings of the service into the address"),
    ("sslpassword", "give a key file that is not encrypted"),
    ("sslcrl", "revocation lists are not checked"),
    ("sslcrldir", "revocation lists are not checked"),
    ("replication", "walhook sets it itself"),
    ("client_encoding", "walhook always speaks UTF8"),
    ("fallback_application_name", "use application_name"),
    ("requirepeer", "use a password"),
    ("krbsrvname", "Kerberos is not supported, use a password or a certificate"),
    ("gsslib", "Kerberos is not supported, use a password or a certificate"),
    ("gssdelegation", "Kerberos is not supported, use a password or a certificate"),
    ("sslcompression", "TLS compression does not exist any more"),
    ("sslsni", "the host name is always sent"),
    ("sslcertmode", "give sslcert and sslkey or leave both out"),
    ("ssl_min_protocol_version", "TLS 1.2 is the minimum"),
    ("ssl_max_protocol_version", "TLS 1.2 is the minimum"),
];

/// The settings as written; the last of each key.
struct Settings<'a>(&'a Pairs<'a>);

pub(super) fn address(pairs: &Pairs<'_>) -> Result<PgAddress, AddressError> {
    let settings = Settings(pairs);
    // First and alone: a port that is no number comes from a password that was not encoded, and then the keys may be parts
    // of that password.
    let hosts = settings.hosts()?;
    let mut wrong = Wrong(settings.wrong_keys());
    let user =
        settings.text("user").ok_or(AddressError::Conflict("the address names no user (postgres://USER@…, or user=…)"));
    let user = wrong.sort(user);
    let trust = wrong.sort(settings.trust());
    let client_cert = wrong.sort(settings.client_cert());
    let channel_binding = wrong.sort(settings.channel_binding());
    let require_auth = wrong.sort(settings.require_auth());
    wrong.sort(settings.files());
    let connect_timeout = wrong.sort(settings.connect_timeout());
    let target_session = wrong.sort(settings.target_session());
    let keepalive = wrong.sort(settings.keepalive());
    wrong.sort(settings.constants());
    let read = || {
        let (user, (sslmode, sslrootcert)) = (user?, trust?);
        Some(PgAddress {
            hosts,
            user: user.to_owned(),
            password: settings.text("password").map(SecretString::from),
            dbname: settings.text("dbname").unwrap_or(user).to_owned(),
            sslmode,
            sslrootcert,
            client_cert: client_cert?,
            channel_binding: channel_binding?,
            require_auth: require_auth?,
            application_name: settings.text("application_name").unwrap_or("walhook").to_owned(),
            connect_timeout: connect_timeout?,
            options: settings.text("options").map(str::to_owned),
            target_session_attrs: target_session?,
            keepalive: keepalive?,
        })
    };
    match read() {
        Some(address) if wrong.0.is_empty() => Ok(address),
        Some(_) | None => Err(wrong.into_error()),
    }
}

/// What is wrong, so that all of it can be said at once.
struct Wrong(Vec<AddressError>);

impl Wrong {
    /// The value, or a note of why there is none.
    fn sort<T>(&mut self, read: Result<T, AddressError>) -> Option<T> {
        read.map_err(|error| self.0.push(error)).ok()
    }

    fn into_error(mut self) -> AddressError {
        match self.0.len() {
            1 => self.0.remove(0),
            _ => AddressError::Several(self.0),
        }
    }
}

/// Whether an address may have the setting `key`.
#[cfg(test)]
pub(super) fn is_known(key: &str) -> bool {
    KNOWN.contains(&key) || REFUSED.iter().any(|(refused, _)| *refused == key)
}

impl<'a> Settings<'a> {
    /// What is wrong with each pair by itself, each key once.
    fn wrong_keys(&self) -> Vec<AddressError> {
        let mut wrong: Vec<AddressError> = Vec::new();
        let mut follows = false;
        for (index, (key, value)) in self.0.iter().enumerate() {
            if let Some(error) = wrong_pair(key, value, follows)
                && !wrong.contains(&error)
            {
                wrong.push(error);
            }
            // That of a URI stands before its host, and is whole.
            let is_of_uri = index <= 1 && self.0.get(index + 1).is_some_and(|(next, _)| next == "host");
            follows |= (key == "password" || key == "sslpassword") && !is_of_uri;
        }
        wrong
    }

    /// Settings that have only one meaning here.
    fn constants(&self) -> Result<(), AddressError> {
        self.one_of("gssencmode", "disable or prefer", &[("disable", ()), ("prefer", ())])?;
        self.one_of("sslnegotiation", "postgres", &[("postgres", ())])?;
        self.one_of("load_balance_hosts", "disable", &[("disable", ())])?;
        Ok(())
    }

    /// The value of `key`; an empty one counts as left out, as in libpq.
    fn text(&self, key: &str) -> Option<&'a str> {
        let (_, value) = self.0.iter().rev().find(|(name, _)| name == key)?;
        Some(&**value).filter(|value| !value.is_empty())
    }

    fn one_of<T: Copy>(
        &self,
        key: &'static str,
        expected: &'static str,
        choices: &[(&str, T)],
    ) -> Result<Option<T>, AddressError> {
        let Some(value) = self.text(key) else { return Ok(None) };
        match choices.iter().find(|(name, _)| *name == value) {
            Some((_, choice)) => Ok(Some(*choice)),
            None => Err(AddressError::Value { key, value: value.to_owned(), expected }),
        }
    }

    fn number(&self, key: &'static str) -> Result<Option<u32>, AddressError> {
        let Some(value) = self.text(key) else { return Ok(None) };
        let number = value.parse().ok().filter(|number| i32::try_from(*number).is_ok());
        let wrong = || AddressError::Value { key, value: value.to_owned(), expected: "a whole number, not negative" };
        number.map(Some).ok_or_else(wrong)
    }

    /// Whether `key` stands there, with whatever value.
    fn is_given(&self, key: &str) -> bool {
        self.0.iter().any(|(name, _)| name == key)
    }

    fn hosts(&self) -> Result<Vec<Host>, AddressError> {
        let is_empty = |key| self.is_given(key) && self.text(key).is_none();
        if is_empty("host") && self.text("hostaddr").is_none() {
            return Err(AddressError::Syntax(NO_HOST));
        }
        let split = |key| self.text(key).map(|text| text.split(',').collect::<Vec<_>>());
        let (names, addresses) = (split("host"), split("hostaddr"));
        let count = names.as_ref().or(addresses.as_ref()).map_or(1, Vec::len);
        if addresses.as_ref().is_some_and(|addresses| addresses.len() != count) {
            return Err(AddressError::Conflict("hostaddr must have as many entries as host"));
        }
        let ports = split("port").unwrap_or_else(|| vec![""]);
        if ports.len() != 1 && ports.len() != count {
            return Err(AddressError::Conflict("port must have one entry, or as many as host"));
        }
        let entry = |list: &Option<Vec<&'a str>>, index: usize| {
            list.as_ref().and_then(|list| list.get(index)).copied().filter(|entry| !entry.is_empty())
        };
        let host = |index| {
            let port = ports.get(index).or(ports.first()).copied().unwrap_or_default();
            let (name, address) = (entry(&names, index), entry(&addresses, index));
            if names.is_some() && name.is_none() && address.is_none() {
                return Err(AddressError::Syntax(NO_HOST));
            }
            host(name, address, port)
        };
        (0..count).map(host).collect()
    }

    /// `sslmode` and `sslrootcert`, which depend on each other as in libpq.
    fn trust(&self) -> Result<(SslMode, Option<RootCert>), AddressError> {
        let modes = [
            SslMode::Disable,
            SslMode::Allow,
            SslMode::Prefer,
            SslMode::Require,
            SslMode::VerifyCa,
            SslMode::VerifyFull,
        ];
        let choices = modes.map(|mode| (mode.as_str(), mode));
        let expected = "disable, allow, prefer, require, verify-ca or verify-full";
        if let Some((key, what)) = self.text("sslmode").and_then(foreign_sslmode) {
            return Err(AddressError::Foreign { key: key.to_owned(), whose: "node-postgres", what });
        }
        let mode = self.one_of("sslmode", expected, &choices)?;
        match self.text("sslrootcert") {
            Some("system") if mode.is_none_or(|mode| mode == SslMode::VerifyFull) => {
                Ok((SslMode::VerifyFull, Some(RootCert::System)))
            }
            Some("system") => Err(AddressError::Conflict(
                "sslrootcert=system needs sslmode=verify-full: anyone can get a certificate from a public authority",
            )),
            // Who names an authority wants it asked; a mode that does not ask is to be written out.
            Some(file) => Ok((mode.unwrap_or(SslMode::VerifyFull), Some(RootCert::File(PathBuf::from(file))))),
            None if mode.is_some_and(|mode| mode >= SslMode::VerifyCa) => Err(AddressError::Conflict(
                "sslmode=verify-ca and verify-full need sslrootcert=FILE, or sslrootcert=system for the machine's \
                 authorities with verify-full",
            )),
            None => Ok((mode.unwrap_or(SslMode::Prefer), None)),
        }
    }

    fn client_cert(&self) -> Result<Option<ClientCert>, AddressError> {
        match (self.text("sslcert"), self.text("sslkey")) {
            (None, None) => Ok(None),
            (Some(cert), Some(key)) => Ok(Some(ClientCert { cert: cert.into(), key: key.into() })),
            _ => Err(AddressError::Conflict("sslcert and sslkey need each other")),
        }
    }

    fn require_auth(&self) -> Result<Option<AuthMethods>, AddressError> {
        let expected = "a list of password, md5, gss, sspi, scram-sha-256, oauth and none, each once, or with ! before each of them";
        let Some(value) = self.text("require_auth") else { return Ok(None) };
        let wrong = || AddressError::Value { key: "require_auth", value: value.to_owned(), expected };
        AuthMethods::parse(value).map(Some).ok_or_else(wrong)
    }

    /// A key that stands where its file belongs would be printed as the name of one.
    fn files(&self) -> Result<(), AddressError> {
        let is_content = |text: &str| {
            text.contains("-----BEGIN")
                || text.starts_with("LS0t")
                || text.contains(char::is_control)
                || text.len() > FILE_BYTES_MAX
        };
        match ["sslrootcert", "sslcert", "sslkey"].iter().any(|key| self.text(key).is_some_and(is_content)) {
            true => Err(AddressError::Conflict(
                "sslrootcert, sslcert and sslkey must be the paths of PEM files, not what stands in them",
            )),
            false => Ok(()),
        }
    }

    fn channel_binding(&self) -> Result<ChannelBinding, AddressError> {
        let choices = [
            ("disable", ChannelBinding::Disable),
            ("prefer", ChannelBinding::Prefer),
            ("require", ChannelBinding::Require),
        ];
        let choice = self.one_of("channel_binding", "disable, prefer or require", &choices)?;
        Ok(choice.unwrap_or(ChannelBinding::Prefer))
    }

    /// Default 10 s. As in libpq 0 means no bound, which is a day here, and 1 means 2.
    fn connect_timeout(&self) -> Result<Duration, AddressError> {
        let secs = match self.number("connect_timeout")? {
            None => 10,
            Some(0) => 86_400,
            Some(secs) => secs.clamp(2, 86_400),
        };
        Ok(Duration::from_secs(secs.into()))
    }

    fn target_session(&self) -> Result<TargetSession, AddressError> {
        let choices = [
            ("any", TargetSession::Any),
            ("read-write", TargetSession::ReadWrite),
            ("primary", TargetSession::Primary),
        ];
        let choice = self.one_of("target_session_attrs", "any, read-write or primary", &choices)?;
        Ok(choice.unwrap_or(TargetSession::Any))
    }

    /// A zero leaves a value at walhook's default; `tcp_user_timeout=0` leaves it to the system.
    fn keepalive(&self) -> Result<Keepalive, AddressError> {
        let number = |key, default| Ok(self.number(key)?.filter(|number| *number > 0).unwrap_or(default));
        let secs = |key, default| number(key, default).map(|secs| Duration::from_secs(secs.into()));
        let user_timeout = self.number("tcp_user_timeout")?.unwrap_or(30_000);
        Ok(Keepalive {
            on: self.one_of("keepalives", "0 or 1", &[("0", false), ("1", true)])?.unwrap_or(true),
            idle: secs("keepalives_idle", 30)?,
            interval: secs("keepalives_interval", 10)?,
            count: number("keepalives_count", 3)?,
            user_timeout: Some(Duration::from_millis(user_timeout.into())).filter(|timeout| !timeout.is_zero()),
        })
    }
}

/// One server; without a name it is `localhost`.
fn host(name: Option<&str>, address: Option<&str>, port: &str) -> Result<Host, AddressError> {
    // The value is not repeated: an unencoded password puts a piece of itself here.
    let port = match port {
        "" => 5432,
        port => port.parse().ok().filter(|port| *port > 0).ok_or(AddressError::Syntax(
            "a port must be a number from 1 to 65535 (in a URI, a password with : / ? # [ ] @ % must be percent-encoded)",
        ))?,
    };
    let address = address
        .map(|text| {
            let value = text.to_owned();
            text.parse().map_err(|_| AddressError::Value { key: "hostaddr", value, expected: "an IP address" })
        })
        .transpose()?;
    match name {
        Some(directory) if directory.starts_with('/') && address.is_none() => {
            Ok(Host::Unix { directory: PathBuf::from(directory), port })
        }
        Some(name) if name.starts_with('@') => Err(AddressError::Unsupported {
            key: "host".into(),
            why: "abstract unix sockets cannot be used, give the directory of the socket",
        }),
        Some(name) => match name_fault(name) {
            Some(why) => Err(AddressError::Host(why)),
            None => Ok(Host::Tcp { name: name.to_owned(), address, port }),
        },
        None => {
            let name = address.map_or_else(|| "localhost".to_owned(), |address: std::net::IpAddr| address.to_string());
            Ok(Host::Tcp { name, address, port })
        }
    }
}

const NO_HOST: &str = "the address has a host that is empty, as a variable leaves it that is set to nothing; this machine is \
                       localhost, and a unix socket host=/DIRECTORY";

/// What is wrong with a pair, whatever the others are; `follows` a password that stands among the settings.
fn wrong_pair(key: &str, value: &str, follows: bool) -> Option<AddressError> {
    if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == key) {
        return Some(AddressError::Unsupported { key: key.to_owned(), why });
    }
    if KNOWN.contains(&key) {
        return value.contains('\0').then_some(AddressError::Syntax("a value in the address contains a zero byte"));
    }
    if let Some((whose, what)) = foreign::parameter(key) {
        return Some(AddressError::Foreign { key: key.to_owned(), whose, what });
    }
    let suggestion = nearest(key);
    // It may be the rest of the password.
    if follows && suggestion.is_none() {
        return Some(AddressError::Syntax(
            "what follows password= is not a connection setting: in a URI & and = in the password must be percent-encoded \
             (%26, %3D), between key=value pairs a password with spaces needs single quotes",
        ));
    }
    Some(AddressError::UnknownKey { key: key.to_owned(), suggestion })
}

/// What another tool means by a value of `sslmode` that Postgres does not know.
fn foreign_sslmode(value: &str) -> Option<(&'static str, &'static str)> {
    (value == "no-verify").then_some(("sslmode=no-verify", "write sslmode=require"))
}

/// The setting that `key` may have been meant to be.
fn nearest(key: &str) -> Option<&'static str> {
    let plain = |key: &str| key.to_ascii_lowercase().replace(['-', '_', '.'], "");
    if let Some(same) = KNOWN.iter().find(|known| plain(known) == plain(key)) {
        return Some(same);
    }
    let score = |known: &&'static str| (strsim::jaro_winkler(key, known), *known);
    let best = KNOWN.iter().map(score).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.8).then_some(best.1)
}

//! The two written forms, as pairs of key and value in the order of the text; a later pair wins.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::AddressError;

pub(super) type Pairs<'a> = Vec<(Cow<'a, str>, Cow<'a, str>)>;

const UNENCODED: AddressError = AddressError::Syntax(
    "the address is not a valid postgres:// URI; in user and password the characters : / ? # [ ] @ % must be \
     percent-encoded (% itself as %25)",
);
const SECOND_AT: AddressError = AddressError::Syntax(
    "the address has an @ where none belongs, so that user, password and host cannot be told apart; in user, password and \
     parameters an @ must be percent-encoded as %40 (and : / ? # [ ] % as %3A %2F %3F %23 %5B %5D %25)",
);
const CONTROL: AddressError = AddressError::Syntax(
    "the address has a line break or another control character in it, as a value brings along that was made by echo or \
     read from a file: take it off, or percent-encode it if it belongs to the password",
);
const SPACE: AddressError = AddressError::Syntax(
    "the address has a space in user, password, host or database: take it off, or write %20 if it belongs there",
);
const PERCENT: AddressError = AddressError::Syntax(
    "the address has a % without two hex digits after it; in user and password % itself must be percent-encoded as %25",
);
const NOT_UTF8: AddressError =
    AddressError::Syntax("percent-encoded bytes in the address are not UTF-8: encode the text as UTF-8 before");
const NO_HOST: AddressError = AddressError::Syntax(
    "the address has no host where one belongs, as a variable leaves it that is set to nothing; this machine is localhost, \
     and a unix socket ?host=/DIRECTORY",
);
const NO_PORT: AddressError = AddressError::Syntax(
    "the address has no port after a colon, as a variable leaves it that is set to nothing; without the colon it is 5432",
);

const DOT_NET_KEYS: [&str; 7] = [
    "Trust Server Certificate",
    "SSL Mode",
    "User Id",
    "Application Name",
    "Search Path",
    "Root Certificate",
    "Maximum Pool Size",
];
const DOT_NET: AddressError = AddressError::Syntax(
    "the address has a setting of .NET, whose name has a space: write sslmode=require for Trust Server Certificate, \
     sslmode=verify-full with sslrootcert for Root Certificate, application_name for Application Name, and leave others out",
);
const COLONS: AddressError = AddressError::Syntax(
    "the address has more than one colon where host and port belong: an IPv6 address stands in brackets there, \
     postgres://USER@[::1]:5432/DATABASE, and user and password stand before an @",
);
const NO_VALUE: AddressError = AddressError::Syntax(
    "a setting of the address has nothing after its =, as a variable leaves it that is set to nothing: set it, or write '' there",
);

/// What follows `postgres://`: `user:password@host:port,host:port/dbname?key=value&key=value`.
pub(super) fn uri_pairs(rest: &str) -> Result<Pairs<'_>, AddressError> {
    let uri = Uri::split(rest)?;
    let mut pairs = Pairs::new();
    push(&mut pairs, "user", uri.user)?;
    push(&mut pairs, "password", uri.password)?;
    host_pairs(&mut pairs, uri.hosts)?;
    push(&mut pairs, "dbname", uri.path)?;
    for parameter in uri.parameters() {
        let (key, value) = key_and_value(parameter)?;
        match (&*key, value) {
            ("ssl", "true") => pairs.push(("sslmode".into(), "require".into())),
            _ => pairs.push((key, decode(value)?)),
        }
    }
    let names_host = |(key, value): &(Cow<'_, str>, Cow<'_, str>)| key.starts_with("host") && !value.is_empty();
    if pairs.iter().any(names_host) { Ok(pairs) } else { Err(NO_HOST) }
}

/// The parts of a URI, not decoded; what is missing is empty.
struct Uri<'a> {
    user: &'a str,
    password: &'a str,
    hosts: &'a str,
    path: &'a str,
    query: &'a str,
}

impl<'a> Uri<'a> {
    /// Refuses what a password that is not encoded makes of it: with an `@` of its own, or cut off by `/` or `?` before the
    /// `@` that ends it, a piece of it would stand where the host belongs.
    fn split(rest: &'a str) -> Result<Self, AddressError> {
        if rest.contains(char::is_control) {
            return Err(CONTROL);
        }
        let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = before.split_once('/').unwrap_or((before, ""));
        if authority.matches('@').count() > 1 || path.contains('@') || query.contains('@') {
            return Err(SECOND_AT);
        }
        if before.contains(char::is_whitespace) {
            return Err(SPACE);
        }
        let (credentials, hosts) = authority.split_once('@').unwrap_or(("", authority));
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        Ok(Self { user, password, hosts, path, query })
    }

    fn parameters(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.query.split('&').filter(|parameter| !parameter.is_empty())
    }
}

/// A parameter's key, decoded, and its value, not decoded.
fn key_and_value(parameter: &str) -> Result<(Cow<'_, str>, &str), AddressError> {
    let (key, value) = parameter.split_once('=').ok_or(UNENCODED)?;
    let key = decode(key)?;
    // Of a setting whose name has spaces nothing would be left to say but that it is none.
    if DOT_NET_KEYS.iter().any(|theirs| theirs.eq_ignore_ascii_case(&key.replace('+', " "))) {
        return Err(DOT_NET);
    }
    // A key of other characters is more likely the rest of a password with a question mark in it.
    if !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte)) {
        return Err(UNENCODED);
    }
    Ok((key, value))
}

/// What follows `postgres://` with `placeholder` for its passwords; `None` if it has none.
pub(super) fn uri_without_password(rest: &str, placeholder: &str) -> Result<Option<String>, AddressError> {
    let uri = Uri::split(rest)?;
    let mut found = !uri.password.is_empty();
    let mut parameters = Vec::new();
    for parameter in uri.parameters() {
        let (key, value) = key_and_value(parameter)?;
        let is_password = key == "password" && !value.is_empty();
        found |= is_password;
        parameters.push(if is_password { format!("password={placeholder}") } else { parameter.to_owned() });
    }
    if !found {
        return Ok(None);
    }
    let password = if uri.password.is_empty() { String::new() } else { format!(":{placeholder}") };
    let who = format!("{}{password}", uri.user);
    let (at, slash) = (if who.is_empty() { "" } else { "@" }, if uri.path.is_empty() { "" } else { "/" });
    let (mark, query) = (if parameters.is_empty() { "" } else { "?" }, parameters.join("&"));
    Ok(Some(format!("{who}{at}{}{slash}{}{mark}{query}", uri.hosts, uri.path)))
}

/// `host1:port1,host2:port2`, where a host may be `[an IPv6 address]`.
fn host_pairs<'a>(pairs: &mut Pairs<'a>, hosts: &'a str) -> Result<(), AddressError> {
    if hosts.is_empty() {
        return Ok(());
    }
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = match host.strip_prefix('[') {
            Some(v6) => {
                let (name, after) = v6.split_once(']').ok_or(UNENCODED)?;
                let port = after.strip_prefix(':');
                if port.is_none() && !after.is_empty() {
                    return Err(UNENCODED);
                }
                (name, port)
            }
            None if host.matches(':').count() > 1 => return Err(COLONS),
            None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
        };
        if name.is_empty() {
            return Err(NO_HOST);
        }
        if port == Some("") {
            return Err(NO_PORT);
        }
        names.push(decode(name)?);
        ports.push(port.unwrap_or_default());
    }
    pairs.push(("host".into(), names.join(",").into()));
    if ports.iter().any(|port| !port.is_empty()) {
        pairs.push(("port".into(), ports.join(",").into()));
    }
    Ok(())
}

fn push<'a>(pairs: &mut Pairs<'a>, key: &'static str, value: &'a str) -> Result<(), AddressError> {
    if !value.is_empty() {
        pairs.push((key.into(), decode(value)?));
    }
    Ok(())
}

fn decode(text: &str) -> Result<Cow<'_, str>, AddressError> {
    let hex = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_hexdigit);
    let bytes = text.as_bytes();
    let percent = |at: &usize| bytes.get(*at) == Some(&b'%');
    if (0..bytes.len()).filter(percent).any(|at| !hex(bytes.get(at + 1)) || !hex(bytes.get(at + 2))) {
        return Err(PERCENT);
    }
    percent_decode_str(text).decode_utf8().map_err(|_| NOT_UTF8)
}

/// `key=value key = 'a value with \' and \\'`.
pub(super) fn keyword_pairs(text: &str) -> Result<Pairs<'_>, AddressError> {
    let written = written_pairs(text)?;
    Ok(written.into_iter().map(|pair| (pair.key.into(), pair.value.into())).collect())
}

/// `key=value` pairs with `'placeholder'` for their passwords; `None` if there is none.
pub(super) fn keywords_without_password(text: &str, placeholder: &str) -> Result<Option<String>, AddressError> {
    let mut found = false;
    let mut words = Vec::new();
    for pair in written_pairs(text)? {
        let is_password = pair.key == "password" && !pair.value.is_empty();
        found |= is_password;
        words.push(if is_password {
            format!("password='{placeholder}'")
        } else {
            format!("{}={}", pair.key, pair.raw)
        });
    }
    Ok(found.then(|| words.join(" ")))
}

/// One of `key=value` pairs; `raw` is the value as it is written.
struct Written<'a> {
    key: &'a str,
    value: String,
    raw: &'a str,
}

fn written_pairs(text: &str) -> Result<Vec<Written<'_>>, AddressError> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or(AddressError::Syntax(
            "the address is neither a postgres:// URI nor a string of key=value pairs (a value with spaces needs quotes)",
        ))?;
        let key = key.trim_end();
        if !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') || key.is_empty() {
            return Err(AddressError::Syntax(
                "before each = stands the name of a setting; a value with spaces needs single quotes",
            ));
        }
        let (written, after_equals) = (after.trim_start(), after.len());
        let (value, after) = keyword_value(written)?;
        // To libpq the next pair would be this one's value.
        if written.len() < after_equals && !written.starts_with('\'') && is_pair(&value) {
            return Err(NO_VALUE);
        }
        if value.contains(char::is_control) {
            return Err(CONTROL);
        }
        let raw = written.strip_suffix(after).unwrap_or_default();
        pairs.push(Written { key, value, raw });
        rest = after.trim_start();
    }
    Ok(pairs)
}

/// `user=u`
fn is_pair(value: &str) -> bool {
    let key = value.split_once('=').map_or("", |(key, _)| key);
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// One value and what follows it.
fn keyword_value(text: &str) -> Result<(String, &str), AddressError> {
    let (quoted, mut rest) = text.strip_prefix('\'').map_or((false, text), |rest| (true, rest));
    let mut value = String::new();
    loop {
        let mut characters = rest.chars();
        match characters.next() {
            Some('\'') if quoted => return Ok((value, characters.as_str())),
            Some(space) if !quoted && space.is_ascii_whitespace() => return Ok((value, rest)),
            Some('\\') => value.extend(characters.next()),
            Some(other) => value.push(other),
            None if quoted => return Err(AddressError::Syntax("a single quote in the address is not closed")),
            None => return Ok((value, rest)),
        }
        rest = characters.as_str();
    }
}

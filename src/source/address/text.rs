//! The two written forms, as pairs of key and value in the order of the text; a later pair wins.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::AddressError;

pub(super) type Pairs<'a> = Vec<(Cow<'a, str>, Cow<'a, str>)>;

const UNENCODED: AddressError = AddressError::Syntax(
    "the address is not a valid postgres:// URI; in user and password the characters : / ? # [ ] @ % must be \
     percent-encoded (% itself as %25)",
);

/// What follows `postgres://`: `user:password@host:port,host:port/dbname?key=value&key=value`.
pub(super) fn uri_pairs(rest: &str) -> Result<Pairs<'_>, AddressError> {
    let uri = Uri::split(rest);
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
    Ok(pairs)
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
    fn split(rest: &'a str) -> Self {
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        Self { user, password, hosts, path, query }
    }

    fn parameters(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.query.split('&').filter(|parameter| !parameter.is_empty())
    }
}

/// A parameter's key, decoded, and its value, not decoded.
fn key_and_value(parameter: &str) -> Result<(Cow<'_, str>, &str), AddressError> {
    let (key, value) = parameter.split_once('=').ok_or(UNENCODED)?;
    let key = decode(key)?;
    // A key of other characters is more likely the rest of a password with a question mark in it.
    if !key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
        return Err(UNENCODED);
    }
    Ok((key, value))
}

/// What follows `postgres://` with `placeholder` for its passwords; `None` if it has none.
pub(super) fn uri_without_password(rest: &str, placeholder: &str) -> Result<Option<String>, AddressError> {
    let uri = Uri::split(rest);
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
            None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
        };
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
        return Err(UNENCODED);
    }
    percent_decode_str(text).decode_utf8().map_err(|_| UNENCODED)
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
        if !key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') || key.is_empty() {
            return Err(AddressError::Syntax(
                "before each = stands a lower case name; a value with spaces needs single quotes",
            ));
        }
        let written = after.trim_start();
        let (value, after) = keyword_value(written)?;
        let raw = written.strip_suffix(after).unwrap_or_default();
        pairs.push(Written { key, value, raw });
        rest = after.trim_start();
    }
    Ok(pairs)
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

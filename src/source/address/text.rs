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
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let (authority, path) = rest.split_once('/').map_or((rest, None), |(authority, path)| (authority, Some(path)));
    let (credentials, hosts) = authority.rsplit_once('@').map_or((None, authority), |(who, hosts)| (Some(who), hosts));
    let mut pairs = Pairs::new();
    if let Some(credentials) = credentials {
        let (user, password) = credentials.split_once(':').map_or((credentials, None), |(u, p)| (u, Some(p)));
        push(&mut pairs, "user", user)?;
        push(&mut pairs, "password", password.unwrap_or_default())?;
    }
    host_pairs(&mut pairs, hosts)?;
    push(&mut pairs, "dbname", path.unwrap_or_default())?;
    for parameter in query.into_iter().flat_map(|query| query.split('&')).filter(|parameter| !parameter.is_empty()) {
        let (key, value) = parameter.split_once('=').ok_or(UNENCODED)?;
        let key = decode(key)?;
        // A key of other characters is more likely the rest of a password with a question mark in it.
        if !key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
            return Err(UNENCODED);
        }
        match (&*key, value) {
            ("ssl", "true") => pairs.push(("sslmode".into(), "require".into())),
            _ => pairs.push((key, decode(value)?)),
        }
    }
    Ok(pairs)
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
    let mut pairs = Pairs::new();
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
        let (value, after) = keyword_value(after.trim_start())?;
        pairs.push((key.into(), value.into()));
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

//! The endpoint's address and the sink's own headers.

use std::path::{Path, PathBuf};

use http::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::entry::Entry;
use super::fault::nearest;
use super::redact::Show;
use crate::address::name_fault;
use crate::pasted::{Blemish, blemish};

/// Headers at most, and the bytes of one value.
const HEADERS_MAX: usize = 100;
const HEADER_VALUE_BYTES_MAX: usize = 8192;

/// Headers that belong to the connection or to the frame of the request.
const TRANSPORT_HEADERS: [&str; 12] = [
    "connection",
    "content-encoding",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "accept-encoding",
];

/// `url` and `path` joined with exactly one slash; the query of `url` is kept.
pub(super) fn endpoint(url: &Entry<'_>, path: &Entry<'_>) -> Option<Url> {
    let path_text =
        if path.is_given() { path.text().filter(|text| path_is_plain(path, text)) } else { Some(String::new()) };
    let text = url.text()?;
    let mut endpoint = address(url, &text)?;
    let path_text = path_text?;
    if !path_text.is_empty() {
        let joined = format!("{}/{}", endpoint.path().trim_end_matches('/'), path_text.trim_start_matches('/'));
        endpoint.set_path(&joined);
    }
    Some(endpoint)
}

fn address(entry: &Entry<'_>, text: &str) -> Option<Url> {
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    if blemish(text).is_none() && !matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https") {
        let near = nearest(scheme, ["https", "http"]).map(|scheme| format!("{scheme}://"));
        let near = near.filter(|_| !scheme.is_empty()).or_else(|| meant(text));
        entry.fault_with("must begin with http:// or https://", near);
        return None;
    }
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    let after = rest.get(authority.len()..).unwrap_or_default();
    let read = as_written(text, authority).and_then(|()| behind_host(entry, authority, after)).and_then(|()| {
        let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
        as_read(&url, authority).map(|()| url)
    });
    read.map_err(|reason| entry.fault(reason)).ok()
}

/// What the library's reading of a URL would hide: it skips slashes before the host, and spaces.
fn as_written(text: &str, authority: &str) -> Result<(), String> {
    if let Some(blemish) = blemish(text) {
        return Err(blemish.to_string());
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !authority.ends_with(']') => (host, Some(port)),
        Some(_) | None => (authority, None),
    };
    let reason = if authority.contains('@') {
        "has a user or password in it; put them into a header: headers = { authorization = \"Basic …\" }"
    } else if text.contains(char::is_whitespace) {
        "has spaces in it: take them off, or write %20 where one belongs"
    } else if host.is_empty() {
        "is not a URL: it has no host after ://, as a variable leaves it that is set to nothing"
    } else if port == Some("") {
        "has no port after the colon, as a variable leaves it that is set to nothing; without the colon it is that of \
         http or https"
    } else if text.contains('\\') {
        "has a \\ in it: the parts of a URL have / between them"
    } else {
        return Ok(());
    };
    Err(reason.to_owned())
}

/// What follows the host shows that the host is none, or that a part of the path is missing.
fn behind_host(entry: &Entry<'_>, authority: &str, after: &str) -> Result<(), String> {
    let is_name = !authority.contains(['.', '[']) && !authority.starts_with("localhost:");
    if authority.contains(':') && is_name && after.contains('@') {
        return Err("has an @ behind what stands where host and port belong: put a user and a password into a header, headers = \
                    { authorization = \"Basic …\" }, and write %40 for an @ that belongs there"
            .to_owned());
    }
    let path = after.split(['?', '#']).next().unwrap_or_default();
    match has_empty_part(entry, path) {
        true => Err(EMPTY_PART.to_owned()),
        false => Ok(()),
    }
}

const EMPTY_PART: &str =
    "has nothing between two / of its path, as a variable leaves it that is set to nothing: set it";

/// Without a variable somebody meant it; an address within a path has its own `://`.
fn has_empty_part(entry: &Entry<'_>, path: &str) -> bool {
    entry.has_variable() && path.replace("://", "").contains("//")
}

/// What is wrong with a URL that is one.
fn as_read(url: &Url, authority: &str) -> Result<(), String> {
    if url.fragment().is_some() {
        return Err("has a fragment (#…), which is never sent".to_owned());
    }
    if url.port() == Some(0) {
        return Err("has port 0".to_owned());
    }
    let as_it_stands = authority.split(':').next().unwrap_or_default();
    let host = match url.host() {
        // `http://8080/` is the address 0.0.31.144 to the library.
        Some(url::Host::Ipv4(_)) => name_fault(as_it_stands),
        Some(url::Host::Domain(name)) => name_fault(name),
        Some(url::Host::Ipv6(_)) => None,
        None => Some("is empty"),
    };
    host.map_or(Ok(()), |fault| Err(format!("has a host that {fault}")))
}

/// What an address without a scheme may have been meant to be, up to its path.
fn meant(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let written = ["https:", "http:", "https", "http"]
        .into_iter()
        .find(|scheme| lower.strip_prefix(scheme).is_some_and(|rest| scheme.ends_with(':') || rest.starts_with("//")));
    let rest = text.get(written.map_or(0, str::len)..)?.trim_start_matches('/');
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = (rest.get(..end)?, if end < rest.len() { "/…" } else { "" });
    let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
    let is_here = matches!(host, "localhost" | "127.0.0.1");
    let is_one = name_fault(host).is_none()
        && port.is_none_or(|port| port.parse::<u16>().is_ok())
        && (written.is_some() || is_here || host.contains('.') || port.is_some());
    let scheme = match written {
        Some(scheme) => scheme.trim_end_matches(':'),
        None if is_here || port.is_some_and(|port| port != "443") => "http",
        None => "https",
    };
    is_one.then(|| format!("{scheme}://{authority}{path}"))
}

/// `tls.ca`, joined with the directory of the config file; the outer `None` is a fault. What is in the file is seen when it is
/// read, at the start and by `check`.
pub(super) fn tls_ca(entry: &Entry<'_>, endpoint: Option<&Url>, file: &Path) -> Option<Option<PathBuf>> {
    let mut table = entry.table()?;
    let ca = table.take("ca");
    let mut good = true;
    for later in ["client_cert", "client_key"] {
        let entry = table.take_silently(later).showing(Show::Nothing);
        if entry.is_given() {
            entry.fault("is not supported by this version, which shows no certificate of its own to an endpoint");
            good = false;
        }
    }
    table.finish();
    if !ca.is_given() {
        return good.then_some(None);
    }
    let text = ca.text()?;
    if text.is_empty() || text.contains('\0') {
        ca.fault(
            "must be the path of a PEM file with the certificates of the authorities that may vouch for the endpoint",
        );
        return None;
    }
    if text.contains("-----BEGIN") {
        ca.fault("must be the path of a PEM file, not what stands in it");
        return None;
    }
    if endpoint.is_some_and(|url| url.scheme() != "https") {
        ca.fault("does nothing for an endpoint that is not https");
        return None;
    }
    good.then(|| Some(file.parent().unwrap_or(Path::new("")).join(text)))
}

fn path_is_plain(entry: &Entry<'_>, text: &str) -> bool {
    let reason = if text.contains(['?', '#']) {
        "must be a path alone; a query belongs into url"
    } else if text.split(['/', '\\']).any(|part| part == "." || part == "..") {
        "must not have . or .. as a part"
    } else if has_empty_part(entry, text) {
        EMPTY_PART
    } else if let Some(blemish) = blemish(text).filter(|_| !text.is_empty()) {
        return refused(entry, &blemish.to_string());
    } else if text.contains(char::is_whitespace) {
        "has spaces in it: take them off, or write %20 where one belongs"
    } else {
        return true;
    };
    refused(entry, reason)
}

fn refused(entry: &Entry<'_>, reason: &str) -> bool {
    entry.fault(reason);
    false
}

/// The sink's own headers, each marked as sensitive so that it is not printed.
pub(super) fn headers(entry: &Entry<'_>) -> Option<HeaderMap> {
    let entries = entry.table()?.take_all();
    if entries.len() > HEADERS_MAX {
        entry.fault(format!("has {} headers; at most {HEADERS_MAX} are possible", entries.len()));
    }
    let mut headers = HeaderMap::new();
    let mut good = true;
    for (name, entry) in entries {
        match header(&name, &entry.showing(Show::Nothing), &headers) {
            Some((name, value)) => {
                headers.insert(name, value);
            }
            None => good = false,
        }
    }
    good.then_some(headers)
}

fn header(name: &str, entry: &Entry<'_>, others: &HeaderMap) -> Option<(HeaderName, HeaderValue)> {
    let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
        entry.fault("is not a valid header name: letters, digits and !#$%&'*+-.^_`|~ only");
        return None;
    };
    if let Some(reason) = reserved(header.as_str()) {
        entry.fault(reason);
        return None;
    }
    if others.contains_key(&header) {
        entry.fault("stands twice; header names are the same in any case");
        return None;
    }
    let text = entry.text()?;
    match HeaderValue::from_str(&text) {
        Ok(mut value) if value.len() <= HEADER_VALUE_BYTES_MAX => {
            let clings = || clinging(&text, entry.has_variable() || proves(header.as_str()));
            if let Some(reason) = missing_credentials(header.as_str(), value.as_bytes()).or_else(clings) {
                entry.fault(reason);
                return None;
            }
            value.set_sensitive(true);
            Some((header, value))
        }
        Ok(_) => {
            entry.fault(format!("is longer than {HEADER_VALUE_BYTES_MAX} bytes"));
            None
        }
        Err(_) => {
            entry.fault(match blemish(&text) {
                Some(named @ (Blemish::LineBreakAtEnd | Blemish::Control | Blemish::Invisible(_))) => named.to_string(),
                Some(Blemish::Empty | Blemish::SpaceAround | Blemish::Quoted) | None => {
                    "is not a valid header value: visible ASCII characters and spaces only".to_owned()
                }
            });
            None
        }
    }
}

/// What a value brought along. Quotes belong to some headers; around a credential, or a variable's value, they do not.
fn clinging(text: &str, is_copied: bool) -> Option<String> {
    let found = blemish(text)?;
    let clings = match found {
        Blemish::Invisible(_) | Blemish::SpaceAround => true,
        Blemish::Quoted => is_copied,
        Blemish::Empty | Blemish::LineBreakAtEnd | Blemish::Control => false,
    };
    clings.then(|| found.to_string())
}

/// A header that is there to prove who sends.
fn proves(name: &str) -> bool {
    ["authorization", "token", "secret", "api-key", "apikey", "signature"].iter().any(|word| name.contains(word))
}

/// One that proves nothing since its variable is set to nothing.
fn missing_credentials(name: &str, value: &[u8]) -> Option<String> {
    let value = value.trim_ascii();
    if value.is_empty() && proves(name) {
        return Some(Blemish::Empty.to_string());
    }
    let schemes = ["Bearer", "Basic", "Token", "ApiKey", "Digest", "Splunk", "GenieKey"];
    let alone = schemes.into_iter().find(|scheme| value.eq_ignore_ascii_case(scheme.as_bytes()))?;
    (name == "authorization")
        .then(|| format!("has nothing after {alone}, as a variable leaves it that is set to nothing: set it"))
}

/// Why walhook sets a header itself.
fn reserved(name: &str) -> Option<&'static str> {
    match name {
        "content-type" => Some("is set by walhook: every body is application/json"),
        "user-agent" => Some("is set by walhook to its own name and version"),
        _ if TRANSPORT_HEADERS.contains(&name) => Some("is set by HTTP itself"),
        _ if name.starts_with("webhook-") => Some("is set by walhook: webhook- headers are those of Standard Webhooks"),
        _ if name.starts_with("walhook-") => Some("is set by walhook: walhook- headers are its own"),
        _ => None,
    }
}

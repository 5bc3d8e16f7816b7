//! The endpoint's address and the sink's own headers.

use http::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::entry::Entry;
use super::fault::nearest;
use super::redact::Show;

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
    let refuse = |reason: &str| {
        entry.fault(reason);
        None
    };
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return refuse("has spaces or control characters in it");
    }
    let (scheme, _) = text.split_once("://").unwrap_or_default();
    if !matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https") {
        let near = nearest(scheme, ["https", "http"]).map(|scheme| format!("{scheme}://"));
        let near = near.or_else(|| scheme.is_empty().then(|| "https://".to_owned()));
        entry.fault_with("must begin with http:// or https://", near);
        return None;
    }
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(error) => return refuse(&format!("is not a URL: {error}")),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return refuse(
            "has a user or password in it; put them into a header: headers = { authorization = \"Basic …\" }",
        );
    }
    if url.fragment().is_some() {
        return refuse("has a fragment (#…), which is never sent");
    }
    match (url.host_str(), url.port()) {
        (None | Some(""), _) => refuse("has no host"),
        (Some(_), Some(0)) => refuse("has port 0"),
        (Some(_), Some(_) | None) => Some(url),
    }
}

fn path_is_plain(entry: &Entry<'_>, text: &str) -> bool {
    let reason = if text.contains(['?', '#']) {
        "must be a path alone; a query belongs into url"
    } else if text.split(['/', '\\']).any(|part| part == "." || part == "..") {
        "must not have . or .. as a part"
    } else if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        "has spaces or control characters in it"
    } else {
        return true;
    };
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
    let value = entry.text()?;
    match HeaderValue::from_str(&value) {
        Ok(mut value) if value.len() <= HEADER_VALUE_BYTES_MAX => {
            value.set_sensitive(true);
            Some((header, value))
        }
        Ok(_) => {
            entry.fault(format!("is longer than {HEADER_VALUE_BYTES_MAX} bytes"));
            None
        }
        Err(_) => {
            entry.fault("is not a valid header value: visible ASCII characters and spaces only");
            None
        }
    }
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

//! How each way in and out is protected, and which choices of a person leave secrets or rows open.
//!
//! These are choices and no faults of the moment, so they are warnings of `check` and lines at the start; `/readyz` shows
//! the links among its facts. Reads two file modes and the text of the configuration; the rest is pure.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use secrecy::ExposeSecret as _;
use url::{Host, Url};

use crate::address::is_loopback;
use crate::config::{Config, SinkConfig, SourceConfig};
use crate::view::Trouble;

/// A token with fewer characters can be guessed.
const TOKEN_CHARS_MIN: usize = 16;
/// Words alike that are named one by one in the line at the start.
const NAMED_MAX: usize = 8;

/// Everything that talks to others: `source.NAME`, `sink.NAME`, `admin`, each with how its link is protected.
pub(crate) fn links(config: &Config) -> BTreeMap<String, String> {
    let sources = config.sources.iter().map(|source| (format!("source.{}", source.name), of_source(source).to_owned()));
    let sinks = config.sinks.iter().map(|sink| (format!("sink.{}", sink.name), of_sink(sink).to_owned()));
    let admin = std::iter::once(("admin".to_owned(), of_admin(config).to_owned()));
    sources.chain(sinks).chain(admin).collect()
}

/// The same as one line: `source.app: TLS, …; sink.a, sink.b and 7 more: …`.
pub(crate) fn in_one_line(links: &BTreeMap<String, String>) -> String {
    let mut alike: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, words) in links {
        alike.entry(words).or_default().push(name);
    }
    let told = alike.iter().map(|(words, names)| {
        let shown = names.iter().take(NAMED_MAX).copied().collect::<Vec<_>>().join(", ");
        match names.len().saturating_sub(NAMED_MAX) {
            0 => format!("{shown}: {words}"),
            more => format!("{shown} and {more} more: {words}"),
        }
    });
    told.collect::<Vec<_>>().join("; ")
}

/// What is open, each with the key that it is about.
pub(crate) fn warnings(config: &Config) -> Vec<(String, Trouble)> {
    let mut all: Vec<(String, Trouble)> = Vec::new();
    let mut warn = |key: String, what: String, advice: &str| {
        all.push((key, Trouble { what, advice: advice.to_owned() }));
    };
    for source in &config.sources {
        let link = source.url.weakest_link();
        if link.is_open() {
            warn(
                format!("source.{}", source.name),
                format!("the way to the database is open to whoever is on it: {}", link.words()),
                "have the server prove who it is: sslmode=verify-full with sslrootcert=FILE, or sslrootcert=system",
            );
        }
    }
    for sink in config.sinks.iter().filter(|sink| is_plain(&sink.endpoint) && carries_secrets(sink)) {
        warn(
            format!("sink.{}", sink.name),
            "the url says http://, so the sink's headers and signatures can be read, and sent again, by whoever is on the way".to_owned(),
            "use an https:// endpoint; tls.ca names a private authority",
        );
    }
    for (number, token) in config.admin.tokens.iter().enumerate() {
        let chars = token.token.expose_secret().chars().count();
        if chars < TOKEN_CHARS_MIN {
            warn(
                format!("admin.tokens[{number}]"),
                format!("the token has {chars} characters, which can be guessed"),
                "take a long random one, such as `openssl rand -hex 32` prints",
            );
        }
    }
    if let Some(mode) = mode(&config.file).filter(|mode| mode & 0o004 != 0 && holds_secrets(config)) {
        warn(
            config.file.display().to_string(),
            format!("the file holds secrets, and everybody on this machine may read it (mode {mode:04o})"),
            "chmod 640 it, with the group that walhook runs as, or keep the secrets in the environment: ${NAME}",
        );
    }
    if let Some(mode) = mode(&config.state.path).filter(|mode| mode & 0o007 != 0) {
        let may = if mode & 0o002 != 0 { "put other files in the place of the store's" } else { "look into it" };
        warn(
            "state.path".to_owned(),
            format!("everybody on this machine may {may}: {} has mode {mode:04o}", config.state.path.display()),
            "chmod 700 it: waiting messages and dead letters, with their rows, are in it",
        );
    }
    all
}

fn of_source(source: &SourceConfig) -> &'static str {
    source.url.weakest_link().words()
}

fn of_sink(sink: &SinkConfig) -> &'static str {
    match (sink.endpoint.scheme(), is_here(&sink.endpoint), &sink.tls_ca) {
        ("https", _, Some(_)) => "https, verified by the sink's own authority",
        ("https", _, None) => "https, verified by the machine's authorities",
        (_, true, _) => "http on this machine",
        (_, false, _) => "http, not encrypted",
    }
}

fn of_admin(config: &Config) -> &'static str {
    match (is_loopback(config.admin.listen.ip()), config.admin.tokens.is_empty()) {
        (true, true) => "http on this machine, for everybody on it",
        (true, false) => "http on this machine, with tokens",
        (false, _) => "http, not encrypted, with tokens",
    }
}

fn is_here(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name.trim_end_matches('.').eq_ignore_ascii_case("localhost"),
        Some(Host::Ipv4(address)) => is_loopback(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => is_loopback(IpAddr::V6(address)),
        None => false,
    }
}

fn is_plain(url: &Url) -> bool {
    url.scheme() == "http" && !is_here(url)
}

fn carries_secrets(sink: &SinkConfig) -> bool {
    !sink.headers.is_empty() || !sink.signing_secrets.is_empty()
}

/// Whether a secret stands in the file itself, and not in the environment.
fn holds_secrets(config: &Config) -> bool {
    let Ok(text) = fs::read_to_string(&config.file) else { return false };
    let passwords = config.sources.iter().filter_map(|source| source.url.password.as_ref());
    let tokens = config.admin.tokens.iter().map(|token| &token.token);
    let secrets = passwords.chain(tokens).map(|secret| secret.expose_secret());
    let headers = config.sinks.iter().flat_map(|sink| sink.headers.values()).filter_map(|value| value.to_str().ok());
    let stands = |secret: &str| !secret.is_empty() && text.contains(secret);
    // A signing secret is kept only as the state of its MAC.
    text.contains("whsec_") || secrets.chain(headers).any(stands)
}

/// What of a path's mode says who may do what; `None`: it is not there, or may not be looked at.
fn mode(path: &Path) -> Option<u32> {
    Some(fs::metadata(path).ok()?.permissions().mode() & 0o7777)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a file with this text and mode, its state directory of another mode.
    fn said(text: &str, mode: u32, state: u32) -> (Vec<String>, String) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("walhook.toml");
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let store = directory.path().join("walhook-state");
        fs::create_dir(&store).unwrap();
        fs::set_permissions(&store, fs::Permissions::from_mode(state)).unwrap();
        let config = crate::config::load(&file).unwrap();
        let warned = warnings(&config).into_iter().map(|(key, Trouble { what, .. })| format!("{key}: {what}"));
        let here = directory.path().display().to_string();
        (warned.map(|text| text.replace(&here, "")).collect(), in_one_line(&links(&config)))
    }

    fn file(url: &str, sink: &str, admin: &str) -> String {
        format!("[source.app]\nurl = \"{url}\"\n[sink.orders]\ntables = [\"public.*\"]\n{sink}\n[admin]\n{admin}\n")
    }

    #[test]
    fn what_is_safe_is_not_warned_of() {
        let safe = file(
            "postgres://walhook@db/app?sslmode=verify-full&sslrootcert=system",
            "url = \"https://example.com\"\nheaders = { authorization = \"${WALHOOK_NOT_SET:-}from the environment\" }",
            "",
        );
        let (warned, links) = said(&safe, 0o640, 0o700);
        assert_eq!(warned, Vec::<String>::new());
        let expected = "source.app: TLS, the server's certificate and name verified; admin: http on this machine, for everybody on \
                        it; sink.orders: https, verified by the machine's authorities";
        assert_eq!(links, expected);
        let local =
            file("postgres://walhook@localhost/app", "url = \"http://127.0.0.1:1\"\nheaders = { a = \"b\" }", "");
        assert_eq!(said(&local, 0o600, 0o750).0, Vec::<String>::new());
    }

    #[test]
    fn every_open_choice_is_warned_of_with_its_key() {
        let open = file(
            "postgres://walhook:pass-word@db/app",
            "url = \"http://hooks.example\"\nheaders = { authorization = \"Bearer x\" }",
            "tokens = [{ token = \"x\" }]",
        );
        let (warned, links) = said(&open, 0o644, 0o777);
        let begins = [
            "source.app: the way to the database is open to whoever is on it: TLS only if whoever answers offers it",
            "sink.orders: the url says http://",
            "admin.tokens[0]: the token has 1 characters",
            "/walhook.toml: the file holds secrets, and everybody on this machine may read it (mode 0644)",
            "state.path: everybody on this machine may put other files in the place of the store's: /walhook-state has mode 0777",
        ];
        assert_eq!(warned.len(), begins.len(), "{warned:#?}");
        for (said, begin) in warned.iter().zip(begins) {
            assert!(said.starts_with(begin), "{said}");
        }
        assert!(links.contains("sink.orders: http, not encrypted"), "{links}");
        // A file without secrets is everybody's to read.
        let bare = file("postgres://walhook@localhost/app", "url = \"http://localhost:1\"", "");
        let (warned, _) = said(&bare, 0o644, 0o755);
        assert_eq!(warned.len(), 1, "{warned:?}");
        assert!(warned[0].contains("look into it"), "{warned:?}");
    }
}

//! Addresses as people write them: what is wrong is said before anyone is asked, and nothing of a secret is printed.

use crate::daemon::{Config, text_of, walhook};

/// Marks of a secret, whole or in pieces; none of them may be printed.
const PIECES: [&str; 3] = ["s3cr", "ret7", "9x9"];

fn printed(arguments: &[&str]) -> (Option<i32>, String) {
    let output = walhook(arguments);
    let text = text_of(&output);
    for piece in PIECES {
        assert!(!text.contains(piece), "{arguments:?} prints {piece}: {text}");
    }
    (output.status.code(), text)
}

fn with_addresses(source: &str, sink: &str, more: &str) -> Config {
    Config::new(&format!(
        "[source.app]\nurl = {source:?}\n[sink.orders]\nurl = {sink:?}\ntables = [\"public.orders\"]\n{more}\n"
    ))
}

#[test]
fn a_password_that_is_not_encoded_ends_with_78_and_no_piece_of_it_is_printed_or_looked_up() {
    for address in [
        "postgres://walhook:s3cr@ret7@db.invalid/app",
        "postgres://walhook:s3cr@ret7/9x9@db.invalid/app",
        "postgres://walhook:s3cr@ret7?9x9@db.invalid/app",
        "postgres://walhook:s3cr/ret7@db.invalid/app",
        "postgres://walhook@db.invalid/app?password=s3cr@ret7",
        "postgres://walhook:s3cr%ret7@db.invalid/app",
        "postgres://walhook:s3cr\n@db.invalid/app",
        "host=db;user=walhook;password=s3cr",
        "user=walhook host=s3cr;ret7",
    ] {
        let config = with_addresses(address, "http://127.0.0.1:9", "");
        for command in ["check", "run"] {
            let (code, text) = printed(&[command, "--config", &config.path().to_string_lossy()]);
            assert_eq!(code, Some(78), "{address}: {text}");
            assert!(text.contains("source.app.url"), "{text}");
        }
        let (code, text) = printed(&["init", "--url", address, "--output", "-"]);
        assert_eq!(code, Some(78), "{address}: {text}");
    }
}

#[test]
fn all_that_other_tools_wrote_into_the_addresses_is_said_in_one_go() {
    let config = with_addresses(
        "postgresql://walhook:s3cr@db/app?schema=public&pgbouncer=true&connection_limit=1&sslaccept=strict",
        "http:///s3cr",
        "signing_secrets = [\"v1,whsec_s3crret7s3crret7s3crret7s3crret7\"]\nheaders = { authorization = \"Bearer s3cr\\n\" }",
    );
    let (code, text) = printed(&["check", "--offline", "--config", &config.path().to_string_lossy()]);
    assert_eq!(code, Some(78), "{text}");
    for said in ["schema", "pgbouncer", "connection_limit", "sslaccept", "no host", "v1,", "line break"] {
        assert!(text.contains(said), "{said} is missing: {text}");
    }
    let config = with_addresses("postgresql+asyncpg://walhook:s3cr@db/app", "localhost:8080/s3cr", "");
    let (code, text) = printed(&["check", "--offline", "--config", &config.path().to_string_lossy()]);
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("write postgresql://") && text.contains("http://localhost:8080/…"), "{text}");
}

#[test]
fn an_argument_that_is_refused_is_not_printed_if_it_may_be_a_secret() {
    for arguments in [
        &["init", "postgres://walhook:s3cr@db/app"][..],
        &["init", "--ulr", "postgres://walhook:s3cr@db/app"],
        &["init", "--url=postgres://walhook:s3cr@db/app", "--ret7"][..2],
        &["listen", "--secret", "s3cr"],
        &["listen", "--secret=s3cr"],
        &["listen", "--secret", "v1,whsec_s3cr"],
        &["run", "host=db password=s3cr"],
    ] {
        let (code, text) = printed(arguments);
        assert!(code.is_some_and(|code| code != 0), "{text}");
        assert!(text.contains("error:"), "{text}");
    }
}

//! What of a faulty configuration an edit of the file mends, and what is mended where its variables are set.

use std::path::Path;

use super::super::{Config, Faults, parse};
use super::{keys, parse_with, sink_with};

/// With `X` set to `value`.
fn with_x(text: &str, value: &str) -> Result<Config, Faults> {
    parse(text, Path::new("/etc/walhook/walhook.toml"), &|name| (name == "X").then(|| value.to_owned()), &[])
}

#[test]
fn only_what_an_edit_of_the_file_mends_needs_one() {
    let url = |url: &str| format!("[source.app]\nurl = {url:?}\n[sink.a]\nurl = \"http://h/\"\ntables = [\"a.b\"]\n");
    let plain = |more: &str| sink_with(more).replace("app:hunter2", "app");
    for (text, value, needs) in [
        (url("postgres://u:${X}@h/db"), "s3\n", false),
        (url("postgres://u:${X}@h/db"), "a@b", false),
        (url("postgres://u@${X}/db"), "", false),
        (plain("signing_secrets = [\"${X}\"]"), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n", false),
        (plain("headers = { authorization = \"Bearer ${X}\" }"), "", false),
        (plain("headers = { x-api-key = \"${X}\" }"), "", false),
        (plain("batch_size = \"${X}\""), "many", false),
        (plain("tls.ca = \"${X}\""), "", false),
        (plain("batch_sise = \"${X}\""), "5", true),
        (plain("batch_size = \"many\""), "", true),
        (plain("signing_secrets = [\"whsec_x\", \"${X}\"]"), "", true),
        (plain("numbers = \"${X\""), "json", true),
    ] {
        let faults = with_x(&text, value).unwrap_err();
        assert_eq!(faults.need_an_edit(), needs, "{text} with {value:?}: {faults}");
    }
    let overridden = parse_with(&sink_with(""), &[("WALHOOK_SINK__ORDERS__BATCH_SIZE", "x")]).unwrap_err();
    assert!(!overridden.need_an_edit());
}

#[test]
fn a_file_that_is_not_there_is_no_bad_one() {
    let faults = super::super::load(Path::new("/nowhere/walhook.toml")).unwrap_err();
    assert!(!faults.need_an_edit(), "{faults}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [0xff]).unwrap();
    assert!(super::super::load(file.path()).unwrap_err().need_an_edit());
}

#[test]
fn what_clings_to_a_headers_value_is_named_where_it_does_not_belong() {
    let header = |name: &str, value: &str| sink_with(&format!("headers = {{ {name} = {value:?} }}"));
    for (name, text, value, is_good) in [
        ("x-api-key", "${X}", "'hunter2'", false),
        ("x-api-key", "${X}", " hunter2 ", false),
        ("x-shop", "${X}", "\"hunter2\"", false),
        ("x-shop", "${X}", "\u{feff}hunter2", false),
        ("x-api-key", "\"hunter2\"", "", false),
        ("x-shop", " hunter2", "", false),
        ("if-match", "\"hunter2\"", "", true),
        ("x-shop", "${X}", "hunter2", true),
        ("x-shop", "${X}", "", true),
    ] {
        let read = with_x(&header(name, text), value);
        assert_eq!(read.is_ok(), is_good, "{name}: {text} with {value:?}");
        if let Err(faults) = read {
            assert!(!faults.to_string().contains("hunter2"), "{faults}");
            assert_eq!(keys(Err(faults)), [format!("sink.orders.headers.{name}")]);
        }
    }
}

#[test]
fn a_password_in_an_endpoints_address_and_a_missing_part_of_it_are_seen() {
    let sink = |url: &str, more: &str| {
        format!("[source.app]\nurl = \"postgres://u@h/db\"\n[sink.a]\nurl = \"{url}\"\ntables = [\"a.b\"]\n{more}\n")
    };
    for (url, more, is_good) in [
        ("https://user:12/hunter2@h/y", "", false),
        ("https://user:12?hunter2@h/y", "", false),
        ("https://h.example/${X}/hooks", "", false),
        ("https://h.example/a", "path = \"/${X}/hooks\"", false),
        ("https://h.example/@shop", "", true),
        ("https://h.example:8443/@shop", "", true),
        ("http://localhost:8080/?to=a@b", "", true),
        ("http://receiver:8080/%40shop", "", true),
        ("https://h.example/a//b", "", true),
        ("https://proxy.example/https://h/${X}", "", true),
        ("https://h.example/hooks/${X}", "", true),
    ] {
        let read = with_x(&sink(url, more), "");
        assert_eq!(read.is_ok(), is_good, "{url}: {:?}", read.err());
        if let Err(faults) = with_x(&sink(url, more), "") {
            assert!(!faults.to_string().contains("hunter2"), "{faults}");
        }
    }
}

#[test]
fn what_stands_where_a_name_or_a_file_belongs_is_not_shown_if_it_may_be_a_secret() {
    let key = "\"\"\"-----BEGIN EC PRIVATE KEY-----\\nMHcCAQEEIhunter2\\n-----END EC PRIVATE KEY-----\"\"\"";
    for lines in [
        format!("tls = {{ client_key = {key} }}"),
        format!("tls = {{ client_cert = {key} }}"),
        format!("tls = {{ ca = {key} }}"),
        "source = \"host=db user=u password=hunter2\"".to_owned(),
        "group_by = \"u:hunter2@db\"".to_owned(),
        "retry.on_exhausted = \"whsec_hunter2\"".to_owned(),
    ] {
        let text = sink_with(&lines).replace("app:hunter2", "app");
        let faults = parse_with(&text, &[]).unwrap_err();
        assert!(!format!("{faults} {faults:?}").contains("hunter2"), "{faults}");
    }
    let slot =
        sink_with("").replace("[sink", "slot = \"host=db password=hunter2\"\n[sink").replace("app:hunter2", "app");
    let faults = parse_with(&slot, &[]).unwrap_err();
    assert!(!faults.to_string().contains("hunter2"), "{faults}");
}

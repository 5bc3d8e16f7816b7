//! Bad configurations: the exact keys of their faults, and what is suggested.

use super::{MINIMAL, keys, only_fault, parse_with, sink_with};

#[test]
fn each_bad_key_of_a_sink_is_named() {
    for (lines, key) in [
        ("batchsize = 5", "batchsize"),
        ("batch_size = 0", "batch_size"),
        ("batch_size = 1001", "batch_size"),
        ("batch_size = \"5\"", "batch_size"),
        ("batch_size = 99999999999999999999", "TOML or batch_size"),
        ("batch_size = 2\nbody = \"single\"", "batch_size"),
        ("batch_bytes = \"1023B\"", "batch_bytes"),
        ("batch_bytes = \"65MiB\"", "batch_bytes"),
        ("batch_bytes = 5", "batch_bytes"),
        ("batch_timeout = \"61s\"", "batch_timeout"),
        ("batch_timeout = 2026-01-01", "batch_timeout"),
        ("request_timeout = \"99ms\"", "request_timeout"),
        ("request_timeout = \"16m\"", "request_timeout"),
        ("max_ack_pending = 0", "max_ack_pending"),
        ("max_ack_pending = 10000001", "max_ack_pending"),
        ("max_in_flight = 10001", "max_in_flight"),
        ("max_in_flight = 1.5", "max_in_flight"),
        ("success = \"404\"", "success"),
        ("success = []", "success"),
        ("success = [\"200\", \"2xx\"]", "success[1]"),
        ("group_by = \"customer_id\"", "group_by"),
        ("group_by = []", "group_by"),
        ("group_by = [\"a\", \"a\"]", "group_by[1]"),
        ("table.\"public.customers\".group_by = \"none\"", "table.\"public.customers\""),
        ("table.\"public.*\".group_by = \"none\"", "table.\"public.*\""),
        (
            "table.\"public.orders\".groupby = \"none\"",
            "table.\"public.orders\".group_by, table.\"public.orders\".groupby",
        ),
        ("headers = { \"a b\" = \"x\" }", "headers.\"a b\""),
        ("headers = { a = \"x\\ny\" }", "headers.a"),
        ("headers = { a = 5 }", "headers.a"),
        ("tls = \"ca.pem\"", "tls"),
        ("tls = { ca = \"\" }", "tls.ca"),
        ("tls = { ca = 5 }", "tls.ca"),
        ("tls = { ca = \"-----BEGIN CERTIFICATE-----\" }", "tls.ca"),
        ("tls = { CA = \"ca.pem\" }", "tls.CA"),
        ("tls = { insecure = true }", "tls.insecure"),
        ("tls = { client_cert = \"a\", client_key = \"b\" }", "tls.client_cert, tls.client_key"),
        ("headers = { A = \"x\", a = \"x\" }", "headers.a"),
        ("headers = { content-type = \"x\" }", "headers.content-type"),
        ("headers = { Host = \"x\" }", "headers.Host"),
        ("headers = { User-Agent = \"x\" }", "headers.User-Agent"),
        ("headers = { webhook-id = \"x\" }", "headers.webhook-id"),
        ("headers = { walhook-x = \"x\" }", "headers.walhook-x"),
        ("signing_secrets = [\"whsec_c2hvcnQ=\"]", "signing_secrets[0]"),
        ("actions = []", "actions"),
        ("actions = [\"insert\", \"insert\"]", "actions[1]"),
        ("actions = [\"truncat\"]", "actions[0]"),
        ("actions = [\"truncate\", \"truncate\"]", "actions[1]"),
        ("actions = [\"message\"]", "actions[0]"),
        ("actions = [\"delete\"]\nmessage = \"row\"", "actions"),
        ("actions = [\"delete\", \"truncate\"]\nmessage = \"row\"", "actions"),
        ("message = \"rows\"", "message"),
        ("numbers = \"text\"", "numbers"),
        ("paused = \"yes\"", "paused"),
        ("source = \"ap\"", "source"),
        ("path = \"a?b\"", "path"),
        ("path = \"../a\"", "path"),
        ("retry.initial = \"5ms\"", "retry.initial"),
        ("retry.initial = \"5m\"", "retry.initial"),
        ("retry.max = \"25h\"", "retry.max"),
        ("retry.max_attempts = 0", "retry.max_attempts"),
        ("retry.max_attempts = 4294967296", "retry.max_attempts"),
        ("retry.max_age = \"999ms\"", "retry.max_age"),
        ("retry.on_exhausted = \"drop\"", "retry.on_exhausted"),
        ("retry.split_after = 0", "retry.split_after"),
        ("backfill = \"initial\"", "backfill"),
        ("unchanged_toast = \"fetched\"", "unchanged_toast"),
        ("messages = true", "messages"),
        ("messages = \"outbox.*\"", "messages"),
        ("messages = [\"\"]", "messages[0]"),
        ("messages = [7]", "messages[0]"),
        ("messages = [\"a\", \"a\"]", "messages[1]"),
        ("messages = [\"a\", \"walhook:a\"]", "messages[1]"),
        ("messages = [\"walhook:*\"]", "messages[0]"),
    ] {
        let found = keys(parse_with(&sink_with(lines), &[]));
        let expected: Vec<String> = match key {
            "TOML or batch_size" => vec!["sink.orders.batch_size".to_owned()],
            _ => key.split(", ").map(|key| format!("sink.orders.{key}")).collect(),
        };
        assert_eq!(sorted(found), sorted(expected), "{lines}");
    }
}

fn sorted(mut keys: Vec<String>) -> Vec<String> {
    keys.sort();
    keys
}

#[test]
fn each_bad_table_of_a_sink_is_named() {
    for (tables, key, suggestion) in [
        ("[]", "sink.orders.tables", None),
        ("[\"orders\"]", "sink.orders.tables[0]", Some("\"public.orders\"")),
        ("[\"a.b\", \"a.b.c\"]", "sink.orders.tables[1]", None),
        ("[\"a.b\", \"a.b\"]", "sink.orders.tables[1]", None),
        ("\"a.b\"", "sink.orders.tables", None),
        ("[5]", "sink.orders.tables[0]", None),
    ] {
        let fault = only_fault(parse_with(&MINIMAL.replace("[\"public.orders\"]", tables), &[]));
        assert_eq!((fault.key.as_str(), fault.suggestion.as_deref()), (key, suggestion), "{tables}");
    }
}

#[test]
fn a_sink_without_tables_and_messages_is_told_that_it_needs_one_of_them() {
    let without = MINIMAL.replace("tables = [\"public.orders\"]\n", "");
    for lines in ["", "messages = []"] {
        let fault = only_fault(parse_with(&format!("{without}{lines}"), &[]));
        assert_eq!(fault.key, "sink.orders.tables");
        assert!(fault.reason.contains("tables, or messages, or both"), "{fault}");
    }
    for (lines, key) in [
        // What is wrong with the messages is said alone.
        ("messages = [\"\"]", "messages[0]"),
        ("messages = [\"a\"]\ntables = []", "tables"),
        ("messages = [\"a\"]\ntable.\"public.orders\".group_by = \"none\"", "table.\"public.orders\""),
    ] {
        assert_eq!(keys(parse_with(&format!("{without}{lines}"), &[])), [format!("sink.orders.{key}")], "{lines}");
    }
}

#[test]
fn a_bad_prefix_is_refused_with_its_reason() {
    let long = format!("messages = [\"{}\"]", "x".repeat(256));
    for (lines, reason, suggestion) in [
        ("messages = [\"\"]", "* alone is every prefix", Some("\"*\"")),
        ("messages = [\"walhook:transaction_annotations.set\"]", "walhook's own", None),
        (long.as_str(), "longer than 255 bytes", None),
    ] {
        let fault = only_fault(parse_with(&sink_with(lines), &[]));
        assert!(fault.reason.contains(reason), "{fault}");
        assert_eq!(fault.suggestion.as_deref(), suggestion);
    }
    let fault = only_fault(parse_with(&sink_with("actions = [\"truncat\"]"), &[]));
    assert_eq!(fault.suggestion.as_deref(), Some("\"truncate\""));
}

#[test]
fn each_bad_endpoint_is_refused_with_its_reason() {
    for (url, reason) in [
        ("ftp://h", "http:// or https://"),
        ("example.com/hooks", "http:// or https://"),
        ("http://", "not a URL"),
        ("http://u:p@h", "header"),
        ("http://h/#a", "fragment"),
        ("http://h:0/", "port 0"),
        ("http://h/a b", "spaces"),
        ("http:///hooks", "no host"),
        ("http://${EMPTY:-}/hooks", "no host"),
        ("https://${EMPTY:-}:8080/hooks", "no host"),
        ("http://?a=b", "no host"),
        ("http://h:${EMPTY:-}/hooks", "no port"),
        ("http://${EMPTY:-}.example.com/hooks", "empty part"),
        ("http://api.${EMPTY:-}/hooks", "ends with a dot"),
        ("http://api-${EMPTY:-}.example.com/", "empty part"),
        ("http://$HOST/hooks", "${NAME}"),
        ("http://{host}/hooks", "characters"),
        ("http://8080/hooks", "IPv4"),
        ("http://10.1/hooks", "IPv4"),
        ("http://h:99999/", "not a URL"),
        ("http://h\\\\hooks", "\\"),
        ("http://h/hooks\\n", "line break"),
        ("http://h/hooks\\r\\n", "line break"),
        (" http://h/hooks", "space"),
        ("http://h/hooks ", "space"),
        ("http://h/ho\\u200boks", "U+200B"),
        ("\\\"http://h/hooks\\\"", "quotes"),
        ("", "is empty"),
        ("http://@h/hooks", "header"),
        ("http://:@h/hooks", "header"),
    ] {
        let fault = only_fault(parse_with(&MINIMAL.replace("https://example.com/hooks", url), &[]));
        assert_eq!(fault.key, "sink.orders.url");
        assert!(fault.reason.contains(reason), "{url}: {fault}");
    }
}

#[test]
fn an_endpoint_without_its_scheme_is_told_what_it_may_have_been() {
    for (url, suggestion) in [
        ("localhost:8080/hooks", Some("http://localhost:8080/…")),
        ("localhost", Some("http://localhost")),
        ("127.0.0.1:9/x", Some("http://127.0.0.1:9/…")),
        ("example.com/hooks", Some("https://example.com/…")),
        ("api:8080", Some("http://api:8080")),
        ("https:/example.com/hooks", Some("https://example.com/…")),
        ("http:example.com", Some("http://example.com")),
        ("https//example.com/hooks", Some("https://example.com/…")),
        ("//example.com/hooks", Some("https://example.com/…")),
        ("htps://example.com", Some("https://")),
        ("u:hunter2@example.com", None),
        ("hunter2", None),
        ("/hooks", None),
    ] {
        let fault = only_fault(parse_with(&MINIMAL.replace("https://example.com/hooks", url), &[]));
        assert!(fault.reason.contains("http:// or https://"), "{url}: {fault}");
        assert_eq!(fault.suggestion.as_deref(), suggestion, "{url}");
        assert!(!fault.to_string().contains("hunter2"), "{fault}");
    }
}

#[test]
fn endpoints_of_every_good_form_are_taken() {
    for (url, taken) in [
        ("http://api/@scope/x", "http://api/@scope/x"),
        ("http://[::1]:8080/x?y=z", "http://[::1]:8080/x?y=z"),
        ("http://10.0.0.7/x", "http://10.0.0.7/x"),
        ("https://bücher.example/x", "https://xn--bcher-kva.example/x"),
        ("https://example.com.", "https://example.com./"),
        ("http://web_1:80/", "http://web_1/"),
        ("HTTPS://Example.COM:443/x", "https://example.com/x"),
    ] {
        let config = parse_with(&MINIMAL.replace("https://example.com/hooks", url), &[]).unwrap();
        assert_eq!(config.sinks[0].endpoint.as_str(), taken);
    }
}

#[test]
fn each_thing_wrong_with_an_address_is_a_fault_of_its_own() {
    let url = "postgresql://u:hunter2@db/app?schema=public&pgbouncer=true&zzz=1&sslmode=on";
    let faults = parse_with(&MINIMAL.replace("postgres://walhook:hunter2@db/app", url), &[]).unwrap_err();
    assert_eq!(faults.0.len(), 4, "{faults}");
    for (fault, named) in faults.0.iter().zip(["schema", "pgbouncer", "zzz", "sslmode"]) {
        assert_eq!((&*fault.key, fault.value.as_deref()), ("source.app.url", Some("\"postgresql://***@db/…\"")));
        assert!(fault.reason.starts_with(named), "{fault}");
    }
}

#[test]
fn a_secret_that_came_with_something_else_is_told_so() {
    let key = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let secret = |text: &str| format!("signing_secrets = [\"{text}\"]");
    let header = |name: &str, text: &str| format!("headers = {{ {name} = \"{text}\" }}");
    let token = |text: &str| format!("[admin]\ntokens = [{{ token = \"{text}\" }}]");
    for (lines, reason) in [
        (secret(&format!("v1,whsec_{key}")), "v1"),
        (secret(&format!("whsec_{key}\\n")), "line break"),
        (secret(&format!("whsec_{key}\\r\\n")), "line break"),
        (secret("${EMPTY:-}"), "is empty"),
        (secret("$ORDERS_WHSEC"), "${NAME}"),
        (header("authorization", &format!("Bearer {key}\\n")), "line break"),
        (header("authorization", "Bearer ${EMPTY:-}"), "nothing after Bearer"),
        (header("authorization", "basic"), "nothing after Basic"),
        (header("authorization", "${EMPTY:-}"), "is empty"),
        (header("x-api-key", "${EMPTY:-}"), "is empty"),
        (header("x-webhook-token", ""), "is empty"),
        (header("x-y", &format!("{key}\\u200b")), "U+200B"),
        (token(&format!("{key}\\n")), "line break"),
        (token(&format!(" {key}")), "space"),
        (token("${EMPTY:-}"), "is empty"),
        (token(&format!("{key} {key}")), "visible ASCII"),
    ] {
        let fault = only_fault(parse_with(&sink_with(&lines), &[]));
        assert!(fault.reason.contains(reason), "{lines}: {fault}");
        assert!(!fault.to_string().contains("MfKQ9"), "{fault}");
    }
    for lines in [header("x-env", "${EMPTY:-}"), header("authorization", "Bearer x"), header("authorization", "tokens")]
    {
        assert!(parse_with(&sink_with(&lines), &[]).is_ok(), "{lines}");
    }
}

#[test]
fn each_bad_key_of_the_rest_is_named() {
    for (lines, key) in [
        ("[source.app2]\nurl = \"postgres://u@h\"", "sink.orders.source"),
        ("[source.two]\nurl = \"postgres://u@DB:5432/b\"\nslot = \"walhook_app\"\n[sink.orders.x]", "*"),
        ("[source.\"1a\"]\nurl = \"postgres://u@h\"\nslot = \"Up-Case\"", "*"),
        ("[state]\nmax_bytes = \"7MiB\"", "state.max_bytes"),
        ("[state]\nhold = \"disk\"", "state.hold"),
        ("[state]\nlog_retention = \"1s\"", "state.log_retention"),
        ("[state]\ndead_letter_retention = \"1y\"", "state.dead_letter_retention"),
        ("[state]\nlog_max_rows = 0", "state.log_max_rows"),
        ("[state]\npath = \"\"", "state.path"),
        ("[admin]\nlisten = \"localhost:1\"", "admin.listen"),
        ("[admin]\nlisten = \"0.0.0.0:8377\"", "admin.listen"),
        ("[admin]\ntokens = [{ role = \"read\" }]", "admin.tokens[0].token"),
        ("[admin]\ntokens = [{ token = \"\" }]", "admin.tokens[0].token"),
        ("[admin]\ntokens = [{ token = \"t\", role = \"admin\" }]", "admin.tokens[0].role"),
        ("[admin]\ntokens = [{ token = \"t\", sinks = [\"order\"] }]", "admin.tokens[0].sinks[0]"),
        ("[limits]\nmemory_limit = \"31MiB\"", "limits.memory_limit"),
        ("[limits]\nmax_message = \"1023KiB\"", "limits.max_message"),
        ("[limits]\nmax_message = \"65MiB\"", "limits.max_message"),
        ("[limits]\nmemory_limit = \"32MiB\"\nmax_message = \"9MiB\"", "limits.max_message"),
        ("[limits]\nshutdown_grace = \"16m\"", "limits.shutdown_grace"),
        ("[log]\nlevel = \"inof\"", "log.level"),
        ("[log]\nlevel = \"walhook=loud\"", "log.level"),
        ("[log]\nformat = \"xml\"", "log.format"),
        ("[logs]\nformat = \"json\"", "logs"),
    ] {
        let found = keys(parse_with(&sink_with(lines), &[]));
        match key {
            "*" => assert!(found.len() > 1, "{lines}: {found:?}"),
            key => assert_eq!(found, [key], "{lines}"),
        }
    }
}

#[test]
fn each_bad_key_of_a_source_is_named() {
    for (lines, key) in [
        ("slot = \"Up-Case\"", "source.app.slot"),
        ("publication = \"\"", "source.app.publication"),
        ("heartbeat = \"999ms\"", "source.app.heartbeat"),
        ("create = 1", "source.app.create"),
        ("failover = 1", "source.app.failover"),
        ("on_slot_lost = \"resume\"", "source.app.on_slot_lost"),
        ("create = false\non_slot_lost = \"recreate\"", "source.app.on_slot_lost"),
        ("creates = true", "source.app.creates"),
    ] {
        let text = MINIMAL.replace("[sink.orders]", &format!("{lines}\n[sink.orders]"));
        assert_eq!(keys(parse_with(&text, &[])), [key], "{lines}");
    }
    let text = MINIMAL.replace("[sink.orders]", "heartbeat = \"0s\"\nfailover = true\n[sink.orders]");
    assert_eq!(parse_with(&text, &[]).unwrap().sources[0].heartbeat, None);
    let long = MINIMAL.replace("source.app", &format!("source.{}", "a".repeat(60)));
    let name = "a".repeat(60);
    assert_eq!(
        sorted(keys(parse_with(&long, &[]))),
        [format!("source.{name}.publication"), format!("source.{name}.slot")]
    );
}

#[test]
fn an_authority_is_a_file_beside_the_config_and_for_https_only() {
    let config = parse_with(&sink_with("tls = { ca = \"tls/ca.pem\" }"), &[]).unwrap();
    assert_eq!(config.sinks[0].tls_ca.as_deref(), Some(std::path::Path::new("/etc/walhook/tls/ca.pem")));
    let config = parse_with(&sink_with("[sink.orders.tls]\nca = \"/srv/ca.pem\""), &[]).unwrap();
    assert_eq!(config.sinks[0].tls_ca.as_deref(), Some(std::path::Path::new("/srv/ca.pem")));
    let plain = sink_with("tls = { ca = \"ca.pem\" }").replace("https://", "http://");
    let fault = only_fault(parse_with(&plain, &[]));
    assert!(fault.key == "sink.orders.tls.ca" && fault.to_string().contains("not https"), "{fault}");
    let later = only_fault(parse_with(&sink_with("tls = { client_key = \"k.pem\" }"), &[]));
    assert!(later.to_string().contains("this version"), "{later}");
}

#[test]
fn what_is_missing_altogether_is_named() {
    assert_eq!(sorted(keys(parse_with("", &[]))), ["sink", "source"]);
    assert_eq!(
        sorted(keys(parse_with("[source.a]\n[sink.b]\n", &[]))),
        ["sink.b.tables", "sink.b.url", "source.a.url"]
    );
    assert_eq!(sorted(keys(parse_with("source = 1\nsink = []\n", &[]))), ["sink", "source"]);
    let flat = "[source]\nurl = \"postgres://u@h\"\n[sink]\nurl = \"http://h\"\n";
    assert_eq!(sorted(keys(parse_with(flat, &[]))), ["sink.url", "source.url"]);
}

#[test]
fn two_sources_of_a_server_may_not_share_a_slot() {
    let text = sink_with("source = \"app\"\n[source.two]\nurl = \"postgres://u@DB:5432/b\"\nslot = \"walhook_app\"");
    let fault = only_fault(parse_with(&text, &[]));
    assert_eq!(fault.key, "source.two.slot");
    assert!(parse_with(&text.replace("DB:5432", "other"), &[]).is_ok());
}

#[test]
fn all_faults_come_at_once_in_the_order_of_the_file() {
    let text = sink_with("batch_siz = 5\nrequest_timeout = \"30\"\n[log]\nlevel = 3");
    let faults = parse_with(&text, &[]).unwrap_err();
    let expected = "sink.orders.batch_siz (line 7)\n  is not a known key\n  did you mean sink.orders.batch_size?\n\n\
        sink.orders.request_timeout = \"30\" (line 8)\n  must be a duration: a whole number and one of ms, s, m, h, d\n  \
        did you mean \"30s\"?\n\n\
        log.level = 3 (line 10)\n  must be a string";
    assert_eq!(faults.to_string(), expected);
}

#[test]
fn too_many_sinks_are_refused() {
    let sinks: String = (0..1000).map(|n| format!("[sink.s{n}]\nurl = \"http://h\"\ntables = [\"a.b\"]\n")).collect();
    assert_eq!(keys(parse_with(&format!("{MINIMAL}{sinks}"), &[])), ["sink"]);
}

//! Bad configurations and the exact keys of their faults, layers, and that no secret is ever printed.

mod bad;
mod docs;
mod outside;

use std::path::Path;
use std::time::Duration;

use super::*;

/// A database and an endpoint, with what may be left out left out.
const MINIMAL: &str = "
[source.app]
url = \"postgres://walhook:hunter2@db/app\"
[sink.orders]
url = \"https://example.com/hooks\"
tables = [\"public.orders\"]
";

const SECRET: &str = "whsec_aHVudGVyMmh1bnRlcjJodW50ZXIyaHVudGVyMg==";

fn environment(name: &str) -> Option<String> {
    let value = match name {
        "DATABASE_PASSWORD" | "ORDERS_TOKEN" => "hunter2",
        "ORDERS_WHSEC" => SECRET,
        "BATCH" => "7",
        _ => return None,
    };
    Some(value.to_owned())
}

fn parse_with(text: &str, overrides: &[(&str, &str)]) -> Result<Config, Faults> {
    let overrides: Vec<(String, String)> =
        overrides.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    parse(text, Path::new("/etc/walhook/walhook.toml"), &environment, &overrides)
}

/// The minimal configuration with `lines` at the end of `[sink.orders]`.
fn sink_with(lines: &str) -> String {
    format!("{MINIMAL}{lines}\n")
}

fn keys(result: Result<Config, Faults>) -> Vec<String> {
    result.err().map(|faults| faults.0.into_iter().map(|fault| fault.key).collect()).unwrap_or_default()
}

fn only_fault(result: Result<Config, Faults>) -> Fault {
    let mut faults = result.unwrap_err().0;
    assert_eq!(faults.len(), 1, "{faults:?}");
    faults.remove(0)
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = parse_with(MINIMAL, &[]).unwrap();
    let source = &config.sources[0];
    assert_eq!((source.name.as_str(), source.slot.as_str()), ("app", "walhook_app"));
    assert_eq!((source.publication.as_str(), source.create), ("walhook_app", true));
    assert_eq!(source.heartbeat, Some(Duration::from_secs(10)));
    let sink = &config.sinks[0];
    assert_eq!((sink.name.as_str(), sink.source.as_str()), ("orders", "app"));
    assert_eq!(sink.endpoint.as_str(), "https://example.com/hooks");
    assert_eq!((sink.batch_size, sink.batch_bytes), (1, 1 << 20));
    assert_eq!((sink.max_ack_pending, sink.max_in_flight), (10_000, 32));
    assert_eq!(sink.retry, RetryConfig::of_waits(Duration::from_secs(1), Duration::from_secs(180)));
    assert_eq!((&sink.group_by, &sink.success), (&GroupBy::PrimaryKey, &SuccessRule::Any2xx));
    assert_eq!(config.state.path, Path::new("/etc/walhook/walhook-state"));
    assert_eq!((config.state.hold, config.state.max_bytes), (Hold::Store, 10 << 30));
    assert_eq!((config.limits.memory_limit, config.limits.message_bytes_max), (256 << 20, 32 << 20));
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:8377");
}

#[test]
fn a_sink_may_take_messages_without_tables_and_truncates_alone() {
    let without = MINIMAL.replace("tables = [\"public.orders\"]", "messages = [\"outbox.*\", \"*\"]");
    let sink = parse_with(&without, &[]).unwrap().sinks.remove(0);
    assert!(sink.tables.is_empty());
    assert_eq!(sink.messages, ["outbox.*", "*"].map(|text| PrefixPattern(text.to_owned())));
    // Actions are those of tables.
    assert!(parse_with(&format!("{without}actions = [\"delete\"]\nmessage = \"row\"\n"), &[]).is_ok());
    let truncates = parse_with(&sink_with("actions = [\"truncate\"]"), &[]).unwrap().sinks.remove(0);
    assert_eq!(truncates.actions, Actions { insert: false, update: false, delete: false, truncate: true });
    assert!(parse_with(&sink_with("actions = [\"insert\", \"truncate\"]\nmessage = \"row\""), &[]).is_ok());
    let default = parse_with(MINIMAL, &[]).unwrap().sinks.remove(0);
    assert!(!default.actions.truncate && default.messages.is_empty());
    let overridden = parse_with(MINIMAL, &[("WALHOOK_SINK__ORDERS__MESSAGES", "a.*,b")]).unwrap().sinks.remove(0);
    assert_eq!(overridden.messages.len(), 2);
}

#[test]
fn a_prefix_fits_its_pattern_and_walhooks_own_fit_none() {
    for (pattern, prefix, fits) in [
        ("outbox", "outbox", true),
        ("outbox", "outbox.a", false),
        ("outbox.*", "outbox.a.b", true),
        ("outbox.*", "outbox", false),
        ("*", "", true),
        ("*", "walhook:transaction_annotations.set", false),
        ("wal*", "walhook", true),
        ("wal*", "walhook:x", false),
        ("*.created", "orders.created", true),
        ("a*b*c", "a-bb-c", true),
        ("a*b*c", "a-c", false),
    ] {
        assert_eq!(PrefixPattern(pattern.to_owned()).matches(prefix), fits, "{pattern} {prefix}");
    }
}

#[test]
fn sources_and_sinks_keep_the_order_of_the_file() {
    let text = "
        [sink.z]\nsource = \"b\"\nurl = \"http://h\"\ntables = [\"a.b\"]
        [source.b]\nurl = \"postgres://u@h/b\"
        [sink.A-1]\nsource = \"a\"\nurl = \"http://h\"\ntables = [\"a.b\"]
        [source.a]\nurl = \"postgres://u@h/a\"
        [sink.m]\nsource = \"a\"\nurl = \"http://h\"\ntables = [\"a.b\"]";
    let config = parse_with(text, &[]).unwrap();
    assert_eq!(config.sources.iter().map(|source| source.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(config.sinks.iter().map(|sink| sink.name.as_str()).collect::<Vec<_>>(), ["z", "A-1", "m"]);
}

#[test]
fn the_name_of_a_slot_is_made_from_the_name_of_the_source() {
    let config = parse_with(&MINIMAL.replace("source.app", "source.My-App_2"), &[]).unwrap();
    assert_eq!(config.sources[0].slot, "walhook_my_app_2");
    assert_eq!(config.sources[0].publication, "walhook_my_app_2");
}

#[test]
fn url_and_path_are_joined_with_one_slash_and_the_query_is_kept() {
    for (url, path, joined) in [
        ("http://h", "orders", "http://h/orders"),
        ("http://h/", "/orders", "http://h/orders"),
        ("http://h/a/", "//orders/", "http://h/a/orders/"),
        ("http://h/a?k=v", "b", "http://h/a/b?k=v"),
        ("http://h/a/", "", "http://h/a/"),
    ] {
        let text = MINIMAL.replace("https://example.com/hooks", url);
        let config = parse_with(&format!("{text}path = \"{path}\""), &[]).unwrap();
        assert_eq!(config.sinks[0].endpoint.as_str(), joined);
    }
}

#[test]
fn grouping_and_success_are_strings_or_lists() {
    let text = sink_with(
        "success = [\"200\", \"202\"]\ngroup_by = [\"a\", \"b\"]\n[sink.orders.table.\"public.orders\"]\ngroup_by = \"none\"",
    );
    let sink = parse_with(&text, &[]).unwrap().sinks.remove(0);
    assert_eq!(sink.success, SuccessRule::Only(vec![200, 202]));
    assert_eq!(sink.group_by, GroupBy::Columns(vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!(sink.group_by_table[0].1, GroupBy::None);
    assert_eq!(sink.group_by_table[0].0.table, "orders");
}

#[test]
fn a_delivery_is_given_up_only_where_the_file_says_so() {
    let text = sink_with(
        "[sink.orders.retry]\nmax_attempts = 5\nmax_age = \"2h\"\non_exhausted = \"block_group\"\nsplit_after = 1",
    );
    let retry = parse_with(&text, &[]).unwrap().sinks.remove(0).retry;
    assert_eq!((retry.max_attempts, retry.max_age), (Some(5), Some(Duration::from_secs(7200))));
    assert_eq!((retry.on_exhausted, retry.split_after), (OnExhausted::BlockGroup, 1));
    let paused = parse_with(&sink_with("retry.on_exhausted = \"pause_sink\""), &[]).unwrap().sinks.remove(0).retry;
    assert_eq!((paused.on_exhausted, paused.max_attempts, paused.max_age), (OnExhausted::PauseSink, None, None));
}

#[test]
fn a_variable_in_a_string_is_filled_in_even_for_a_number() {
    let text = sink_with("batch_size = \"${BATCH}\"\nheaders = { x = \"$${BATCH} ${NONE:-d}\" }");
    let sink = parse_with(&text, &[]).unwrap().sinks.remove(0);
    assert_eq!(sink.batch_size, 7);
    assert_eq!(sink.headers["x"], "${BATCH} d");
}

#[test]
fn a_missing_variable_is_named_with_its_key_and_line() {
    let fault = only_fault(parse_with(&sink_with("headers = { x = \"${NONE}\" }"), &[]));
    assert_eq!(fault.key, "sink.orders.headers.x");
    assert!(fault.reason.contains("NONE"), "{fault}");
    assert_eq!(fault.place, Some(Place::Line(7)));
}

#[test]
fn variables_override_keys_whatever_their_case() {
    let text = sink_with("headers = { x-api-key = \"a\" }").replace("sink.orders", "sink.my-Orders");
    let overrides = [
        ("WALHOOK_SINK__MY_ORDERS__BATCH_SIZE", "50"),
        ("WALHOOK_SINK__MY_ORDERS__headers__X_API_KEY", "b"),
        ("WALHOOK_SINK__MY_ORDERS__HEADERS__X_MORE", "c"),
        ("WALHOOK_SINK__MY_ORDERS__TABLES", "public.a, public.b"),
        ("WALHOOK_SINK__MY_ORDERS__GROUP_BY", "[\"c\"]"),
        ("WALHOOK_SINK__MY_ORDERS__RETRY__INITIAL", "20ms"),
        ("WALHOOK_SINK__MY_ORDERS__PAUSED", "true"),
        ("WALHOOK_SOURCE__APP__SLOT", "12"),
        ("WALHOOK_ADMIN__TOKENS", "[{ token = \"t\" }]"),
        ("WALHOOK_CONFIG", "x"),
        ("WALHOOK_PG_BIN", "x"),
        ("OTHER__THING", "x"),
    ];
    let config = parse_with(&text, &overrides).unwrap();
    let sink = &config.sinks[0];
    assert_eq!((sink.batch_size, sink.paused, sink.tables.len()), (50, true, 2));
    assert_eq!((&sink.headers["x-api-key"], &sink.headers["x-more"]), (&"b".parse().unwrap(), &"c".parse().unwrap()));
    assert_eq!(sink.group_by, GroupBy::Columns(vec!["c".to_owned()]));
    assert_eq!(sink.retry.initial, Duration::from_millis(20));
    assert_eq!((config.sources[0].slot.as_str(), config.admin.tokens.len()), ("12", 1));
}

#[test]
fn a_variable_that_names_no_key_is_a_fault_with_its_name() {
    for (variable, key, suggestion) in [
        ("WALHOOK_SINK__ORDRES__URL", "sink.ordres", Some("sink.orders")),
        ("WALHOOK_SINK__ORDERS__BATCHSIZE", "sink.orders.batchsize", Some("sink.orders.batch_size")),
        ("WALHOOK_LIMIT__MEMORY_LIMIT", "limit", Some("limits")),
        ("WALHOOK_FOO__BAR", "foo", None),
    ] {
        let fault = only_fault(parse_with(MINIMAL, &[(variable, "x")]));
        assert_eq!((fault.key.as_str(), fault.suggestion.as_deref()), (key, suggestion));
        assert_eq!(fault.place, Some(Place::Variable(variable.to_owned())));
    }
    let twice = [("WALHOOK_LOG__LEVEL", "info"), ("WALHOOK_log__level", "warn")];
    assert!(only_fault(parse_with(MINIMAL, &twice)).reason.contains("WALHOOK_LOG__LEVEL"));
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault() {
    let fault = only_fault(load(Path::new("/nowhere/walhook.toml")));
    assert_eq!(fault.key, "/nowhere/walhook.toml");
}

#[test]
fn a_forgotten_name_is_asked_for() {
    let faults = parse_with(&MINIMAL.replace("[source.app]", "[source]"), &[]).unwrap_err();
    let fault = faults.0.iter().find(|fault| fault.key == "source.url").unwrap();
    assert!(fault.reason.contains("write [source.NAME]"), "{fault}");
    assert_eq!((fault.value.as_deref(), &fault.place), (Some("\"***\""), &Some(Place::Line(3))));
}

#[test]
fn no_secret_is_printed() {
    let text = sink_with(&format!(
        "headers = {{ authorization = \"Bearer hunter2\" }}\nsigning_secrets = [\"{SECRET}\"]\n\
         [admin]\ntokens = [{{ token = \"hunter2\" }}]"
    ));
    let config = format!("{:?}", parse_with(&text, &[]).unwrap());
    assert!(!config.contains("hunter2") && !config.contains("whsec_"), "{config}");
    let text = "
        [source.app]\nurl = \"mysql://u:hunter2@db/app\"\n[source.two]\nurl = \"host=db password=hunter2\"
        password = \"hunter2\"
        [sink.orders]\nurl = \"https://u:hunter2@h/hunter2?hunter2\"\ntables = [\"a.b\"]
        headers = { x = \"hunter2\\n\", y = [\"hunter2\"], host = \"hunter2\" }
        signing_secrets = [\"hunter2\", { a = \"hunter2\" }]\nsigning_secret = \"hunter2\"
        [sink.two]\nurl = \"u:hunter2@h\"\ntables = [\"a.b\"]\nheaders = \"hunter2\"\nsigning_secrets = \"hunter2\"
        [admin]\ntokens = [\"hunter2\", { token = \"hunter2 \", rol = \"hunter2\" }]";
    for text in [
        MINIMAL.replace("[source.app]", "[source]"),
        MINIMAL.replace("[source.app]", "[source.\"postgres://u:hunter2@db\"]"),
        MINIMAL.replace("[source.app]", "[source]\nurl.password = \"hunter2\"\n[source.app]"),
        format!("source = \"postgres://u:hunter2@db\"\n{}", MINIMAL.replace("[source.app]\nurl", "other")),
        MINIMAL.replace("[sink.orders]", "[sink]\nheaders = { a = \"hunter2\" }\npath = \"hunter2\""),
        sink_with("headers = \"hunter2\""),
        sink_with("headers = \"${DATABASE_PASSWORD}\""),
        sink_with("path = \"/hook?token=hunter2\""),
        sink_with("retry = \"hunter2\""),
        sink_with("source = \"postgres://u:hunter2@db\""),
        sink_with("[admin]\ntokens = \"hunter2\""),
        sink_with("[admin]\ntokens = [\"hunter2\"]"),
    ] {
        let faults = parse_with(&text, &[]).unwrap_err();
        assert!(!faults.to_string().contains("hunter2") && !format!("{faults:?}").contains("hunter2"), "{faults}");
    }
    for url in [
        "postgres://app:hunter2",
        "postgres://a:hunter2@h:x/d",
        "postgres://u@h?password=hunter2&sslmode=x",
        "postgres://u:a@hunter2@h/db",
        "postgres://u:a@hunter2/b@h/db",
        "postgres://u:a/hunter2@h/db",
        "postgres://u@h?password=a@hunter2",
        "jdbc:postgresql://h/db?user=u&password=hunter2",
        "Host=h;Password=hunter2",
    ] {
        let faults = parse_with(&MINIMAL.replace("postgres://walhook:hunter2@db/app", url), &[]).err();
        assert!(!format!("{faults:?}").contains("hunter2"), "{faults:?}");
    }
    let overrides = [("WALHOOK_ADMIN__TOKEN", "hunter2"), ("WALHOOK_SINK__TWO__HEADERS__HOST", "hunter2")];
    let faults = parse_with(text, &overrides).unwrap_err();
    assert!(faults.0.len() >= 14, "{faults}");
    assert!(!faults.to_string().contains("hunter2"), "{faults}");
    assert!(!format!("{faults:?}").contains("hunter2"), "{faults:?}");
}

/// Text that looks like a configuration, more or less.
fn toml_ish() -> impl proptest::strategy::Strategy<Value = String> {
    use proptest::prelude::*;
    let piece = prop_oneof![
        Just(MINIMAL.to_owned()),
        "\\[(source|sink|admin|state|log)(\\.[a-z\".é-]{0,4}){0,3}\\]\n",
        "(url|tables|path|slot|group_by|success|headers|tokens|listen|batch_bytes|initial|level|actions) = ",
        "\"(postgres://|https://|\\$\\{[A-Z:-]{0,5}\\}?|[0-9]{0,20}[smhdKMiB]{0,3}|[a-z.*@:/?#é]{0,9})\"\n",
        "[\\[\\]{}=\",'\n ]{0,4}",
        "-?[0-9]{1,22}\n",
        any::<String>(),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in toml_ish(), name in "WALHOOK_(SINK|SOURCE|ADMIN)__[A-Z_é]{0,9}", value in ".{0,9}") {
        if let Err(faults) = parse_with(&text, &[(name.as_str(), value.as_str())]) {
            proptest::prop_assert!(!faults.0.is_empty());
            proptest::prop_assert!(!faults.to_string().is_empty());
        }
    }
}

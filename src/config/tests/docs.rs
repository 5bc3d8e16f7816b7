//! The example, the document and the schema tell the same story as the code.

use serde_json::Value;

use super::{MINIMAL, parse_with};
use crate::cli::config_schema::schema;

const EXAMPLE: &str = include_str!("../../../config.example.toml");
const DOCUMENT: &str = include_str!("../../../docs/CONFIGURATION.md");

/// Keys whose value in the example is not their default.
const SHOWN_OTHERWISE: [&str; 4] =
    ["sink.NAME.headers", "sink.NAME.signing_secrets", "sink.NAME.table", "sink.NAME.retry"];

/// A key of the schema.
struct Key {
    path: String,
    kind: String,
    default: Option<Value>,
    meaning: String,
}

/// Every key of the schema; NAME stands for names.
fn schema_keys() -> Vec<Key> {
    let schema = schema();
    let mut keys = Vec::new();
    walk(&schema, &schema, "", &mut keys);
    keys
}

fn walk(root: &Value, at: &Value, path: &str, keys: &mut Vec<Key>) {
    let at = resolve(root, at);
    for (name, property) in at["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let inner = resolve(root, property);
        let named = resolve(root, &inner["additionalProperties"]);
        if named["properties"].is_object() {
            let name = if name == "table" { "\"SCHEMA.TABLE\"" } else { "NAME" };
            walk(root, named, &format!("{path}.{name}"), keys);
        } else if inner["properties"].is_object() {
            walk(root, inner, &path, keys);
        } else {
            let meaning = property["description"].as_str().or(inner["description"].as_str()).unwrap_or_default();
            let default = property.get("default").cloned();
            keys.push(Key { path: path.clone(), kind: kind(inner), default, meaning: meaning.to_owned() });
            let item = resolve(root, &inner["items"]);
            walk(root, item, &format!("{path}[]"), keys);
        }
    }
}

fn resolve<'s>(root: &'s Value, at: &'s Value) -> &'s Value {
    at["$ref"].as_str().and_then(|name| root.pointer(name.trim_start_matches('#'))).unwrap_or(at)
}

fn kind(schema: &Value) -> String {
    match (schema["type"].as_str(), schema["pattern"].as_str()) {
        (Some("string"), Some(pattern)) if pattern.contains("(ms|") => "duration".to_owned(),
        (Some("string"), Some(pattern)) if pattern.contains("KMGT") => "size".to_owned(),
        (Some("array"), _) => "list".to_owned(),
        (Some("object"), _) => "table".to_owned(),
        (Some(kind), _) => kind.to_owned(),
        (None, _) => "string or list".to_owned(),
    }
}

/// The value at a path of the schema in the example.
fn in_example(path: &str) -> Option<toml::Value> {
    let mut value = toml::Value::Table(EXAMPLE.parse().unwrap());
    let mut above = String::new();
    for part in path.split('.') {
        let name = match (part, above.as_str()) {
            ("NAME", "source") => "app",
            ("NAME", "sink") => "orders",
            ("\"SCHEMA", _) => "public.orders",
            ("TABLE\"", _) => continue,
            (part, _) => part,
        };
        value = value.get(name)?.clone();
        part.clone_into(&mut above);
    }
    Some(value)
}

#[test]
fn the_example_has_every_key_with_its_default() {
    let keys = schema_keys();
    assert!(keys.len() > 40, "only {} keys", keys.len());
    for key in keys {
        if let Some(field) = key.path.strip_prefix("admin.tokens[].") {
            assert!(EXAMPLE.contains(&format!("{field} = ")), "{field}");
            continue;
        }
        let Some(written) = in_example(&key.path) else { panic!("{} is not in config.example.toml", key.path) };
        if let Some(default) = key.default.filter(|_| !SHOWN_OTHERWISE.contains(&key.path.as_str())) {
            assert_eq!(serde_json::to_value(written).unwrap(), default, "{}", key.path);
        }
    }
}

#[test]
fn the_example_loads_and_says_what_the_code_does_by_default() {
    let example = parse_with(EXAMPLE, &[]).unwrap();
    let minimal = parse_with(MINIMAL, &[]).unwrap();
    let (mut shown, plain) = (example.sinks[0].clone(), &minimal.sinks[0]);
    shown.tables.clone_from(&plain.tables);
    shown.endpoint.clone_from(&plain.endpoint);
    shown.tls_ca.clone_from(&plain.tls_ca);
    shown.headers.clone_from(&plain.headers);
    shown.signing_secrets.clone_from(&plain.signing_secrets);
    shown.group_by_table.clone_from(&plain.group_by_table);
    (shown.retry.max_attempts, shown.retry.max_age) = (plain.retry.max_attempts, plain.retry.max_age);
    assert_eq!(format!("{shown:?}"), format!("{plain:?}"));
    let (mut shown, plain) = (example.sources[0].clone(), &minimal.sources[0]);
    shown.url.clone_from(&plain.url);
    assert_eq!(format!("{shown:?}"), format!("{plain:?}"));
    assert_eq!(format!("{:?}", example.state), format!("{:?}", minimal.state));
    assert_eq!(format!("{:?}", example.admin), format!("{:?}", minimal.admin));
    assert_eq!(format!("{:?}", example.limits), format!("{:?}", minimal.limits));
    assert_eq!(format!("{:?}", example.log), format!("{:?}", minimal.log));
}

#[test]
fn every_key_of_the_example_has_a_comment_above() {
    let mut before = "";
    for line in EXAMPLE.lines() {
        let is_key = line.contains(" = ") && !line.starts_with('#');
        assert!(!is_key || before.starts_with("# "), "{line}");
        before = line;
    }
}

#[test]
fn the_document_has_a_row_for_every_key_and_no_other() {
    let row = |key: &Key| {
        let default = key.default.as_ref().map_or("–".to_owned(), |default| format!("`{default}`"));
        format!("| `{}` | {} | {default} | {} |", key.path, key.kind, key.meaning)
    };
    let rows: Vec<String> = schema_keys().iter().map(row).collect();
    let missing: Vec<&String> = rows.iter().filter(|row| !DOCUMENT.lines().any(|line| line == row.as_str())).collect();
    let shown = missing.iter().map(|row| row.as_str()).collect::<Vec<_>>().join("\n");
    assert!(missing.is_empty(), "docs/CONFIGURATION.md lacks these rows:\n{shown}");
    let keys = DOCUMENT.lines().filter(|line| line.starts_with("| `") && !line.starts_with("| `WALHOOK_")).count();
    assert_eq!(keys, rows.len(), "docs/CONFIGURATION.md has rows of keys that do not exist");
}

#[test]
fn the_schema_has_meaning_default_and_bounds() {
    for key in schema_keys() {
        assert!(!key.meaning.is_empty(), "{} has no meaning", key.path);
    }
    let schema = schema();
    let sink = &schema["$defs"]["RawSink"];
    assert_eq!(sink["required"], serde_json::json!(["url"]));
    assert_eq!(sink["anyOf"], serde_json::json!([{"required": ["tables"]}, {"required": ["messages"]}]));
    assert_eq!(sink["additionalProperties"], false);
    let batch_size = &sink["properties"]["batch_size"];
    assert_eq!((&batch_size["minimum"], &batch_size["maximum"]), (&1.into(), &1000.into()));
    assert_eq!(batch_size["default"], 1);
}

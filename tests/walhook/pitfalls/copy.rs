//! Tables as a receiver has them that does what each message says, compared with those of the database.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::postgres::{Postgres, state, until_within};
use crate::receiver::Receiver;

/// Long, since a table may be published only half a minute after it was made.
const DEADLINE: Duration = Duration::from_secs(120);

type Row = Map<String, Value>;

/// The rows of one table.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    /// By the text of their keys.
    pub(crate) rows: BTreeMap<String, Row>,
    /// How many messages it has followed.
    pub(crate) applied: u64,
}

impl Copy {
    /// What the acknowledged messages about `schema.table` add up to; `key` names the columns that tell rows apart.
    fn of(receiver: &Receiver, (schema, table): (&str, &str), key: &[&str]) -> Self {
        let mut copy = Self::default();
        for message in acknowledged(receiver) {
            let metadata = &message["metadata"];
            if metadata["table_schema"] == schema && metadata["table_name"] == table {
                copy.apply(&message, key);
            }
        }
        copy
    }

    /// Does what the message says; `key` names the columns that tell rows apart. Without any, rows are only inserted.
    pub(crate) fn apply(&mut self, message: &Value, key: &[&str]) {
        self.applied += 1;
        let record = message["record"].as_object().unwrap();
        let place = if key.is_empty() { self.applied.to_string() } else { place(record, key) };
        match message["action"].as_str().unwrap() {
            "insert" => drop(self.rows.insert(place, record.clone())),
            "delete" => drop(self.rows.remove(&place)),
            "update" => {
                let mut before = record.clone();
                before.extend(message["changes"].as_object().cloned().unwrap_or_default());
                let mut row = self.rows.remove(&self::place(&before, key)).unwrap_or_default();
                let left_out = message["metadata"]["unchanged"].as_array().cloned().unwrap_or_default();
                row.retain(|column, _| left_out.iter().any(|name| name == column));
                row.extend(record.clone());
                self.rows.insert(place, row);
            }
            other => panic!("an action that a copy does not know: {other}"),
        }
    }
}

fn place(row: &Row, key: &[&str]) -> String {
    key.iter().map(|column| row.get(*column).unwrap_or(&Value::Null).to_string()).collect::<Vec<_>>().join("/")
}

/// The messages of acknowledged requests in order of arrival, each once.
pub(crate) fn acknowledged(receiver: &Receiver) -> Vec<Value> {
    let good: HashSet<u64> = receiver
        .answers()
        .into_iter()
        .filter(|(_, status)| (200..300).contains(status))
        .map(|(number, _)| number)
        .collect();
    let mut seen = HashSet::new();
    let requests = receiver.requests().into_iter().filter(|request| good.contains(&request.number));
    let messages = requests.flat_map(|request| request.messages);
    messages.filter(|message| seen.insert(message["metadata"]["idempotency_key"].to_string())).collect()
}

/// An identifier in SQL.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Waits until the acknowledged messages about `schema.table` add up to the table as the database has it.
pub(crate) async fn wait_same(postgres: &Postgres, receiver: &Receiver, (schema, table): (&str, &str), key: &[&str]) {
    let sql = format!("SET TimeZone = 'UTC'; SELECT to_jsonb(t)::text FROM {}.{} t", quoted(schema), quoted(table));
    until_within(DEADLINE, &format!("the copy of {schema}.{table} to be the table"), || async {
        let rows = postgres.rows(&sql).await.into_iter().flatten().flatten();
        let rows = rows.map(|text| serde_json::from_str::<Row>(&text).unwrap());
        let original: BTreeMap<String, Row> = rows.map(|row| (place(&row, key), row)).collect();
        let copy = Copy::of(receiver, (schema, table), key);
        let differs = |place: &&String| original.get(*place) != copy.rows.get(*place);
        let places = original.keys().chain(copy.rows.keys()).filter(differs).take(3);
        let seen: Vec<_> = places.map(|place| (original.get(place), copy.rows.get(place))).collect();
        state(seen.is_empty(), format!("(original, copy) {seen:?}"))
    })
    .await;
}

#[test]
fn a_copy_follows_keys_and_keeps_what_was_left_out() {
    let mut copy = Copy::default();
    for message in [
        serde_json::json!({"action": "insert", "record": {"id": 1, "t": "long", "n": 1}, "changes": null}),
        serde_json::json!({"action": "update", "record": {"id": 2, "n": 2}, "changes": {"id": 1},
            "metadata": {"unchanged": ["t"]}}),
        serde_json::json!({"action": "insert", "record": {"id": 1, "t": "x", "n": 1}, "changes": null}),
        serde_json::json!({"action": "delete", "record": {"id": 1}, "changes": null}),
    ] {
        copy.apply(&message, &["id"]);
    }
    assert_eq!(serde_json::json!(copy.rows), serde_json::json!({"2": {"id": 2, "t": "long", "n": 2}}));
}

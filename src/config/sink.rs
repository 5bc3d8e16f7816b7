//! `[sink.NAME]`: values to a checked sink.

use std::path::Path;
use std::time::Duration;

use super::check::{DAY, MINUTE, Names, near_name, not_named};
use super::checked::{
    Actions, BodyForm, GroupBy, MessageForm, Numbers, OnExhausted, PrefixPattern, RetryConfig, SinkConfig, SuccessRule,
    TablePattern, UnchangedToast,
};
use super::endpoint;
use super::entry::{Entry, Table};
use super::fault::nearest;
use super::quantity::show_duration;
use super::redact::Show;
use super::tables;
use crate::change::TableName;
use crate::deliver::egress::Egress;
use crate::deliver::sign::SigningSecret;

/// Signing secrets at most; two are in use while one is replaced.
const SIGNING_SECRETS_MAX: usize = 10;

/// Checks the sink `name`.
pub(super) fn check(
    name: String,
    entry: &Entry<'_>,
    names: &Names,
    (file, egress): (&Path, &Egress),
) -> Option<SinkConfig> {
    let mut table = entry.table_or(&not_named("sink"))?;
    let source = source(&table.take("source"), names);
    let (url, path) = (table.take("url").required().showing(Show::Host), table.take("path").showing(Show::Nothing));
    let endpoint = endpoint::endpoint(&url, &path);
    let tls_ca = endpoint::tls_ca(&table.take("tls"), endpoint.as_ref(), file);
    let headers = endpoint::headers(&table.take("headers").showing(Show::Nothing));
    let messages = messages(&table.take("messages"));
    let tables = tables(&table.take("tables"), messages.as_deref());
    let shape = shape(&mut table, tables.as_deref());
    let pace = pace(&mut table);
    let success = success(&table.take("success"));
    let group_by = group_by(&table.take("group_by"));
    let group_by_table = group_by_table(&table.take("table"), tables.as_deref());
    let signing_secrets = signing_secrets(&table.take("signing_secrets").showing(Show::Nothing));
    let paused = table.take("paused").boolean();
    let retry = table.take("retry").table().and_then(retry);
    let unchanged_toast =
        table.take("unchanged_toast").choice(&[("omit", UnchangedToast::Omit), ("fetch", UnchangedToast::Fetch)]);
    not_built(&mut table);
    table.finish();
    let (shape, pace) = (shape?, pace?);
    Some(SinkConfig {
        name,
        source: source?,
        endpoint: endpoint?,
        tls_ca: tls_ca?,
        egress: egress.clone(),
        tables: tables?,
        messages: messages?,
        actions: shape.actions,
        message: shape.message,
        body: shape.body,
        batch_size: shape.batch_size,
        batch_bytes: pace.batch_bytes,
        batch_timeout: pace.batch_timeout,
        request_timeout: pace.request_timeout,
        max_ack_pending: pace.max_ack_pending,
        max_in_flight: pace.max_in_flight,
        success: success?,
        group_by: group_by?,
        group_by_table: group_by_table?,
        headers: headers?,
        signing_secrets: signing_secrets?,
        numbers: shape.numbers,
        unchanged_toast: unchanged_toast?,
        paused: paused?,
        retry: retry?,
    })
}

/// Refuses what the contract promises for later and would change what is delivered.
fn not_built(table: &mut Table<'_>) {
    let backfill = table.take("backfill");
    if backfill.choice(&[("none", false), ("initial", true)]) == Some(true) {
        backfill.fault("is not supported by this version");
    }
}

/// `tables`, which only a sink of logical messages may do without.
fn tables(entry: &Entry<'_>, messages: Option<&[PrefixPattern]>) -> Option<Vec<TablePattern>> {
    if entry.is_given() {
        return tables::patterns(entry);
    }
    if messages.is_some_and(<[_]>::is_empty) {
        entry.fault("is missing: a sink needs tables, or messages, or both");
        return None;
    }
    Some(Vec::new())
}

/// `messages`: prefixes, each once; none by default.
fn messages(entry: &Entry<'_>) -> Option<Vec<PrefixPattern>> {
    let mut patterns: Vec<PrefixPattern> = Vec::new();
    let mut good = true;
    for item in &entry.list()? {
        match item.text().and_then(|text| prefix(text, item)) {
            Some(pattern) if patterns.contains(&pattern) => item.fault("stands twice"),
            Some(pattern) => patterns.push(pattern),
            None => good = false,
        }
    }
    good.then_some(patterns)
}

fn prefix(text: String, item: &Entry<'_>) -> Option<PrefixPattern> {
    if text.is_empty() {
        item.fault_with("is empty; * alone is every prefix", Some("\"*\"".to_owned()));
    } else if text.starts_with(PrefixPattern::OWN) {
        item.fault("is one of walhook's own prefixes, by which it is told things and which it delivers to nobody");
    } else if text.len() > PrefixPattern::BYTES_MAX {
        item.fault(format!("is longer than {} bytes", PrefixPattern::BYTES_MAX));
    } else {
        return Some(PrefixPattern(text));
    }
    None
}

fn source(entry: &Entry<'_>, names: &Names) -> Option<String> {
    if !entry.is_given() {
        return match names.sources.as_slice() {
            [only] => Some(only.clone()),
            [] => None,
            [_, ..] => {
                entry.fault(format!("must name one of the sources: {}", names.sources.join(", ")));
                None
            }
        };
    }
    let name = entry.text()?;
    if !names.sources.contains(&name) {
        entry.fault_with("is not a source of this file", near_name(&name, &names.sources));
        return None;
    }
    Some(name)
}

/// What a message and a body look like.
struct Shape {
    actions: Actions,
    message: MessageForm,
    body: BodyForm,
    batch_size: usize,
    numbers: Numbers,
}

fn shape(table: &mut Table<'_>, tables: Option<&[TablePattern]>) -> Option<Shape> {
    let actions_entry = table.take("actions");
    let actions = actions(&actions_entry);
    let message = table.take("message").choice(&[("change", MessageForm::Change), ("row", MessageForm::Row)]);
    let has_tables = tables.is_none_or(|tables| !tables.is_empty());
    if let (Some(Actions { insert: false, update: false, .. }), Some(MessageForm::Row), true) =
        (actions, message, has_tables)
    {
        actions_entry.fault("leaves nothing to send: message = \"row\" has neither deletes nor truncates");
    }
    let bodies = [("batch", BodyForm::Batch), ("array", BodyForm::Array), ("single", BodyForm::Single)];
    let body = table.take("body").choice(&bodies);
    let batch_size_entry = table.take("batch_size");
    let batch_size = batch_size_entry.count(1..=1000);
    if body == Some(BodyForm::Single) && batch_size.is_some_and(|size| size > 1) {
        batch_size_entry
            .fault_with("must be 1, since body = \"single\" has room for one message", Some("1".to_owned()));
    }
    let numbers = table.take("numbers").choice(&[("json", Numbers::Json), ("string", Numbers::String)]);
    Some(Shape { actions: actions?, message: message?, body: body?, batch_size: batch_size?, numbers: numbers? })
}

fn actions(entry: &Entry<'_>) -> Option<Actions> {
    let items = entry.list()?;
    if items.is_empty() {
        entry.fault("is empty; at least one of insert, update, delete, truncate is needed");
        return None;
    }
    let mut actions = Actions { insert: false, update: false, delete: false, truncate: false };
    let mut good = true;
    for item in &items {
        let Some(text) = item.text() else {
            good = false;
            continue;
        };
        let action = match text.as_str() {
            "insert" => &mut actions.insert,
            "update" => &mut actions.update,
            "delete" => &mut actions.delete,
            "truncate" => &mut actions.truncate,
            other => {
                let near = nearest(other, ["insert", "update", "delete", "truncate"]).map(|name| format!("{name:?}"));
                item.fault_with("must be insert, update, delete or truncate", near);
                good = false;
                continue;
            }
        };
        if std::mem::replace(action, true) {
            item.fault("stands twice");
        }
    }
    good.then_some(actions)
}

/// How much at a time, and how long.
struct Pace {
    batch_bytes: usize,
    batch_timeout: Duration,
    request_timeout: Duration,
    max_ack_pending: usize,
    max_in_flight: usize,
}

fn pace(table: &mut Table<'_>) -> Option<Pace> {
    let batch_bytes = table.take("batch_bytes").size(1 << 10..=64 << 20);
    let batch_timeout = table.take("batch_timeout").duration(Duration::ZERO..=Duration::from_secs(60));
    let request_timeout = table.take("request_timeout").duration(Duration::from_millis(100)..=15 * MINUTE);
    let max_ack_pending = table.take("max_ack_pending").count(1..=10_000_000);
    let max_in_flight = table.take("max_in_flight").count(1..=10_000);
    Some(Pace {
        batch_bytes: usize::try_from(batch_bytes?).ok()?,
        batch_timeout: batch_timeout?,
        request_timeout: request_timeout?,
        max_ack_pending: max_ack_pending?,
        max_in_flight: max_in_flight?,
    })
}

fn success(entry: &Entry<'_>) -> Option<SuccessRule> {
    if !entry.is_list() {
        return match entry.text()?.as_str() {
            "2xx" => Some(SuccessRule::Any2xx),
            _ => status(entry).map(|status| SuccessRule::Only(vec![status])),
        };
    }
    let items = entry.list()?;
    if items.is_empty() {
        entry.fault("is empty; at least one status from 200 to 299 is needed");
        return None;
    }
    let statuses: Vec<Option<u16>> = items.iter().map(status).collect();
    statuses.into_iter().collect::<Option<_>>().map(SuccessRule::Only)
}

fn status(entry: &Entry<'_>) -> Option<u16> {
    let text = entry.text()?;
    let status = text.parse::<u16>().ok().filter(|status| (200..300).contains(status) && text.len() == 3);
    if status.is_none() {
        let near = (text.eq_ignore_ascii_case("2xx")).then(|| "success = \"2xx\"".to_owned());
        entry.fault_with("must be \"2xx\", a status from \"200\" to \"299\", or a list of those", near);
    }
    status
}

fn group_by(entry: &Entry<'_>) -> Option<GroupBy> {
    if entry.is_list() {
        return group_columns(entry);
    }
    let text = entry.text()?;
    match text.as_str() {
        "primary_key" => Some(GroupBy::PrimaryKey),
        "table" => Some(GroupBy::Table),
        "none" => Some(GroupBy::None),
        other => {
            let near = nearest(other, ["primary_key", "table", "none"]).map(|name| format!("{name:?}"));
            let near = near.unwrap_or_else(|| format!("[{other:?}]"));
            entry.fault_with("must be \"primary_key\", \"table\", \"none\" or a list of columns", Some(near));
            None
        }
    }
}

fn group_columns(entry: &Entry<'_>) -> Option<GroupBy> {
    let items = entry.list()?;
    if items.is_empty() {
        entry.fault("is empty; at least one column is needed, or \"table\" or \"none\"");
        return None;
    }
    let mut columns: Vec<String> = Vec::new();
    for item in &items {
        let column = item.text()?;
        if column.is_empty() || columns.contains(&column) {
            item.fault(if column.is_empty() { "must be a column" } else { "stands twice" });
            return None;
        }
        columns.push(column);
    }
    Some(GroupBy::Columns(columns))
}

fn group_by_table(entry: &Entry<'_>, patterns: Option<&[TablePattern]>) -> Option<Vec<(TableName, GroupBy)>> {
    let mut rules: Vec<Option<(TableName, GroupBy)>> = Vec::new();
    for (text, entry) in entry.table()?.take_all() {
        let name = tables::exact(&text, &entry);
        let sink_has = |name: &TableName| patterns.is_none_or(|all| all.iter().any(|pattern| pattern.matches(name)));
        if name.as_ref().is_some_and(|name| !sink_has(name)) {
            entry.fault("is not one of the sink's tables");
        }
        let rule = entry.table().and_then(|mut table| {
            let rule = group_by(&table.take("group_by").required());
            table.finish();
            rule
        });
        rules.push(name.zip(rule));
    }
    rules.into_iter().collect()
}

fn signing_secrets(entry: &Entry<'_>) -> Option<Vec<SigningSecret>> {
    let items = entry.list()?;
    if items.len() > SIGNING_SECRETS_MAX {
        entry.fault(format!("has {} secrets; at most {SIGNING_SECRETS_MAX} are possible", items.len()));
    }
    let secret = |item: &Entry<'_>| {
        let text = item.text()?;
        SigningSecret::parse(&text).map_err(|error| item.fault(error.to_string())).ok()
    };
    let secrets: Vec<Option<SigningSecret>> = items.iter().map(secret).collect();
    secrets.into_iter().collect()
}

fn retry(mut table: Table<'_>) -> Option<RetryConfig> {
    let longest = DAY;
    let initial_entry = table.take("initial");
    let initial = initial_entry.duration(Duration::from_millis(10)..=longest);
    let max = table.take("max").duration(Duration::from_millis(10)..=longest);
    if let (Some(initial), Some(max)) = (initial, max)
        && initial > max
    {
        initial_entry.fault(format!("must be at most retry.max, which is {}", show_duration(max)));
    }
    let limits = limits(&mut table);
    let exhausted = [
        ("continue", OnExhausted::Continue),
        ("block_group", OnExhausted::BlockGroup),
        ("pause_sink", OnExhausted::PauseSink),
    ];
    let on_exhausted = table.take("on_exhausted").choice(&exhausted);
    let split_after = table.take("split_after").integer(1..=u64::from(u32::MAX));
    table.finish();
    let (max_attempts, max_age) = limits?;
    Some(RetryConfig {
        initial: initial?,
        max: max?,
        max_attempts,
        max_age,
        on_exhausted: on_exhausted?,
        split_after: u32::try_from(split_after?).ok()?,
    })
}

/// `max_attempts` and `max_age`, each of which may be left out; the outer `None` is a fault.
fn limits(table: &mut Table<'_>) -> Option<(Option<u32>, Option<Duration>)> {
    let attempts = given(&table.take("max_attempts"), |entry| entry.integer(1..=u64::from(u32::MAX)));
    let age = given(&table.take("max_age"), |entry| entry.duration(Duration::from_secs(1)..=3650 * DAY));
    let attempts = attempts?.map(|number| u32::try_from(number).unwrap_or(u32::MAX));
    Some((attempts, age?))
}

/// The value of a key that may be left out; the outer `None` is a fault.
fn given<T>(entry: &Entry<'_>, read: impl Fn(&Entry<'_>) -> Option<T>) -> Option<Option<T>> {
    if entry.is_given() { read(entry).map(Some) } else { Some(None) }
}

//! A received request as lines for people or as JSON.

use jiff::Timestamp;

use serde_json::value::RawValue;

use super::message::{Columns, Metadata, read};
use super::receiver::{Received, Seen};

/// Most characters of a record on a line.
const RECORD_CHARS_MAX: usize = 80;

/// One line a message (one in all if there is none), aligned.
pub(crate) fn text_lines(received: &Received<'_>, colours: bool) -> String {
    let head = head(received, colours);
    let mut lines = String::new();
    if received.messages.is_empty() {
        push_line(&mut lines, &head, &format!("{} bytes, no messages", received.body_bytes), received.why);
    }
    for raw in received.messages {
        let line = match read(raw) {
            Some(message) => {
                let table = message.metadata.as_ref().map_or_else(String::new, Metadata::table);
                let action = message.action.as_deref().unwrap_or("row");
                let record = message.record.map_or_else(String::new, record);
                let changed = changed(action, message.changes.as_ref());
                format!("{:<8} {:<24} {}{changed}", clean(action), clean(&table), clean(&record)).trim_end().to_owned()
            }
            None => clean(&shorten(raw.get())),
        };
        push_line(&mut lines, &head, &line, received.why);
    }
    lines
}

/// One object with everything, the messages as they were sent.
pub(super) fn json_line(received: &Received<'_>) -> String {
    #[derive(serde::Serialize)]
    struct Line<'a> {
        event: &'static str,
        time: String,
        id: &'a str,
        attempt: &'a str,
        sink: &'a str,
        seen: Seen,
        status: u16,
        why: Option<&'a str>,
        body_bytes: usize,
        messages: &'a [&'a serde_json::value::RawValue],
    }
    let line = Line {
        event: "received",
        time: Timestamp::try_from(received.at).unwrap_or_default().to_string(),
        id: received.id,
        attempt: received.attempt,
        sink: received.sink,
        seen: received.seen,
        status: received.status.as_u16(),
        why: received.why,
        body_bytes: received.body_bytes,
        messages: received.messages,
    };
    // A message may span lines; JSON strings hold no bare line ends, so what is left are spaces between tokens.
    let line =
        serde_json::to_string(&line).unwrap_or_else(|error| format!("{{\"event\":\"error\",\"why\":\"{error}\"}}"));
    format!("{}\n", line.replace(['\n', '\r'], " "))
}

fn head(received: &Received<'_>, colours: bool) -> String {
    let time = Timestamp::try_from(received.at).unwrap_or_default().strftime("%H:%M:%S%.3f").to_string();
    let seen = match received.seen {
        Seen::New => painted("new   ", "", colours),
        Seen::Retry => painted("retry ", "33", colours),
        Seen::Repeat => painted("repeat", "35", colours),
    };
    let status = painted(received.status.as_str(), if received.status.is_success() { "32" } else { "31" }, colours);
    let id: String = clean(received.id).chars().take(12).collect();
    let attempt = clean(received.attempt);
    format!("{time}  {status} {seen} {id:<12} #{attempt:<3}")
}

fn push_line(lines: &mut String, head: &str, rest: &str, why: Option<&str>) {
    lines.push_str(head);
    lines.push(' ');
    lines.push_str(rest);
    if let Some(why) = why {
        lines.push_str("  -- ");
        lines.push_str(&clean(why));
    }
    lines.push('\n');
}

/// A row's columns; what is no object, as it is.
fn record(value: &RawValue) -> String {
    Columns::of(value).map_or_else(|| shorten(value.get()), |columns| compact(&columns))
}

fn compact(columns: &Columns<'_>) -> String {
    let mut text = String::new();
    for (name, value) in &columns.0 {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(name);
        text.push('=');
        text.push_str(value.get());
        if text.len() > RECORD_CHARS_MAX * 4 {
            break;
        }
    }
    shorten(&text)
}

fn changed(action: &str, changes: Option<&Columns<'_>>) -> String {
    if action != "update" {
        return String::new();
    }
    let Some(changes) = changes else { return "  (changed: unknown)".to_owned() };
    let names: Vec<_> = changes.0.iter().map(|(name, _)| &**name).collect();
    let names = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    format!("  (changed: {})", clean(&shorten(&names)))
}

fn shorten(text: &str) -> String {
    let mut chars = text.chars();
    let mut short: String = chars.by_ref().take(RECORD_CHARS_MAX).collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}

/// What came over the network must not steer the terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn painted(text: &str, colour: &str, colours: bool) -> String {
    if !colours || colour.is_empty() {
        return text.to_owned();
    }
    format!("\x1b[{colour}m{text}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::listen::message::messages;
    use http::StatusCode;
    use std::time::{Duration, UNIX_EPOCH};

    fn shown(body: &str, seen: Seen, status: u16, why: Option<&str>, colours: bool) -> (String, String) {
        let messages = messages(body.as_bytes()).unwrap();
        let received = Received {
            at: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            id: "dlv_0123456789abcdef",
            attempt: "2",
            sink: "orders",
            seen,
            messages: &messages,
            body_bytes: body.len(),
            status: StatusCode::from_u16(status).unwrap(),
            why,
        };
        (text_lines(&received, colours), json_line(&received))
    }

    #[test]
    fn a_line_tells_time_answer_delivery_table_record_and_changed_columns() {
        let body = r#"{"data":[{"record":{"id":1.10,"b":"x","a":null},"changes":{"b":"w"},"action":"update","metadata":{"table_schema":"public","table_name":"orders"}},
            {"record":{"id":2},"changes":null,"action":"insert","metadata":{"table_schema":"public","table_name":"orders"}}]}"#;
        let (text, json) = shown(body, Seen::Retry, 200, None, false);
        assert_eq!(
            text,
            "22:13:20.123  200 retry  dlv_01234567 #2   update   public.orders            id=1.10 b=\"x\" a=null  (changed: b)\n\
             22:13:20.123  200 retry  dlv_01234567 #2   insert   public.orders            id=2\n"
        );
        assert_eq!(json.lines().count(), 1);
        assert!(json.contains(r#""seen":"retry","status":200,"why":null"#) && json.contains("1.10"), "{json}");
    }

    #[test]
    fn a_truncate_has_no_record_and_a_logical_message_shows_its_prefix_and_content() {
        let body = r#"[{"record":null,"changes":null,"action":"truncate","metadata":{"table_schema":"public","table_name":"orders"}},
            {"record":{"group":7},"changes":null,"action":"message","metadata":{"table_schema":null,"table_name":null,"prefix":"outbox.x"}},
            {"record":"plain","metadata":{"table_schema":null,"table_name":null,"prefix":"outbox.x"}}]"#;
        let (text, _) = shown(body, Seen::New, 200, None, false);
        let lines: Vec<&str> = text.lines().map(|line| line.split_once("#2   ").unwrap().1).collect();
        assert_eq!(
            lines,
            [
                "truncate public.orders",
                "message  outbox.x                 group=7",
                "row      outbox.x                 \"plain\""
            ]
        );
    }

    #[test]
    fn nothing_received_steers_the_terminal() {
        let body = "[{\"record\":{\"a\":\"\u{9b}31m\"},\"action\":\"\\u001b[2J\"}]";
        let (text, _) = shown(body, Seen::New, 503, Some("refused\n"), false);
        assert!(!text.trim_end().contains(char::is_control), "{text:?}");
        assert!(text.contains("  -- refused"));
        assert!(shown(body, Seen::New, 503, None, true).0.contains("\x1b[31m503\x1b[0m"));
    }
}

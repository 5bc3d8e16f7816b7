//! The line of the file at which its syntax breaks, with a mark under the column, fit to be read and without secrets.

use std::ops::Range;

use super::fault::{Fault, Place};
use super::redact;

/// Characters of a line that are shown.
const WIDTH_MAX: usize = 100;
/// Of these, how many before the mark.
const BEFORE_MAX: usize = 70;

/// Keys whose values are no secret. All others are masked: what cannot be read may be anything.
const SHOWN_KEYS: &[&str] = &[
    "slot",
    "publication",
    "create",
    "heartbeat",
    "failover",
    "on_slot_lost",
    "source",
    "tables",
    "messages",
    "actions",
    "message",
    "body",
    "batch_size",
    "batch_bytes",
    "batch_timeout",
    "request_timeout",
    "max_ack_pending",
    "max_in_flight",
    "success",
    "group_by",
    "numbers",
    "unchanged_toast",
    "backfill",
    "paused",
    "initial",
    "max",
    "max_age",
    "max_attempts",
    "split_after",
    "on_exhausted",
    "hold",
    "max_bytes",
    "dead_letter_retention",
    "log_retention",
    "log_max_rows",
    "listen",
    "memory_limit",
    "max_message",
    "shutdown_grace",
    "format",
    "level",
];
/// Tables at the top of the file.
const SECTIONS: &[&str] = &["source", "sink", "state", "admin", "egress", "limits", "log"];
const QUOTES: [char; 2] = ['"', '\''];
/// Schemes that are shown of an address.
const SCHEMES: &[&str] = &["http://", "https://", "postgres://", "postgresql://"];

/// Line, column and excerpt of an error.
pub(super) fn syntax_fault(error: &toml::de::Error, text: &str) -> Fault {
    let at = error.span().map_or(0, |span: Range<usize>| span.start).min(text.len());
    let before = text.get(..at).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let lines: Vec<&str> = text.lines().take(line).collect();
    let (above, own) = match lines.get(line - 1) {
        Some(own) => (lines.get(..line - 1).unwrap_or_default(), *own),
        None => (lines.as_slice(), ""),
    };
    let (shown, mark) = window(&masked(own, above), column);
    let number = line.to_string();
    let margin = " ".repeat(number.len());
    let message = error.message().replace('\n', "; ");
    Fault {
        key: "TOML".to_owned(),
        value: None,
        reason: format!("column {column}: {message}\n  {number} | {shown}\n  {margin} | {}^", " ".repeat(mark)),
        suggestion: None,
        place: Some(Place::Line(line)),
        is_outside: false,
    }
}

/// The part of a line around a column, and where the mark stands under it. A tab is a space, or the mark would stand elsewhere.
fn window(line: &str, column: usize) -> (String, usize) {
    let even = |c: char| if c.is_control() { ' ' } else { c };
    let all: Vec<char> = line.chars().map(even).collect();
    let start = if all.len() > WIDTH_MAX { (column - 1).saturating_sub(BEFORE_MAX).min(all.len()) } else { 0 };
    let shown: String = all.iter().skip(start).take(WIDTH_MAX).collect();
    let end = if all.len() - start > WIDTH_MAX { "…" } else { "" };
    match start {
        0 => (format!("{shown}{end}"), column - 1),
        _ => (format!("…{shown}{end}"), column - start),
    }
}

/// The line with letters and digits as `*`, save those of a table's name, of a key, and of a value that is no secret.
fn masked(line: &str, above: &[&str]) -> String {
    if line.trim_start().starts_with('[') {
        return header(line);
    }
    let Some((key, value)) = line.split_once('=') else {
        return if is_of_shown_list(above) && !may_be_secret(line) { list(line) } else { hide(line) };
    };
    let name = key.trim().rsplit('.').next().unwrap_or_default();
    let is_path = key.chars().all(|c| c.is_ascii_alphanumeric() || " \t._-".contains(c));
    if SHOWN_KEYS.contains(&name) && is_path && !may_be_secret(line) {
        return format!("{key}={}", if value.trim_start().starts_with('[') { list(value) } else { scalar(value) });
    }
    let bare =
        is_path && !name.is_empty() && key.len() <= 40 && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    if bare { format!("{key}={}", hide_value(value)) } else { hide(line) }
}

/// `[sink.orders]` up to its bracket. What stands behind it, or what is no name of a table, may be anything.
fn header(line: &str) -> String {
    let end = line.find(']').map_or(line.len(), |at| at + 1);
    let (head, rest) = line.split_at_checked(end).unwrap_or((line, ""));
    let name = head.trim().trim_start_matches('[').trim_end_matches(']').trim();
    let is_ours = SECTIONS.contains(&name.split('.').next().unwrap_or_default().trim());
    let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if is_ours && is_plain && !may_be_secret(name) { format!("{head}{}", hide(rest)) } else { hide(line) }
}

/// One word, number or quantity, with its quotes if it has them; all that follows is hidden.
fn scalar(value: &str) -> String {
    let start = value.find(is_of_word).unwrap_or(value.len());
    let (before, rest) = value.split_at_checked(start).unwrap_or((value, ""));
    let end = rest.find(|c: char| !is_of_word(c)).unwrap_or(rest.len());
    let (word, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
    format!("{before}{word}{}", hide(after))
}

/// The items that stand in quotes, and what is between them, as far as the list goes.
fn list(text: &str) -> String {
    let (inside, after) = text.split_at_checked(text.find(']').unwrap_or(text.len())).unwrap_or((text, ""));
    let mut shown = String::new();
    let mut rest = inside;
    while let Some(at) = rest.find(QUOTES) {
        let (between, item) = rest.split_at_checked(at).unwrap_or((rest, ""));
        let mut quote = item.chars();
        shown.push_str(&hide(between));
        shown.extend(quote.next());
        let item = quote.as_str();
        let end = item.find(|c: char| !is_of_word(c)).unwrap_or(item.len());
        let (word, after) = item.split_at_checked(end).unwrap_or((item, ""));
        shown.push_str(word);
        let mut closing = after.chars();
        rest = match closing.next() {
            Some(quote) if QUOTES.contains(&quote) => {
                shown.push(quote);
                closing.as_str()
            }
            Some(_) | None => after,
        };
    }
    format!("{shown}{}{}", hide(rest), hide(after))
}

/// Of a line that cannot be read even a word is a mark.
fn may_be_secret(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    redact::may_be_secret(text) || ["token", "secret"].iter().any(|mark| lower.contains(mark))
}

/// What names of tables, numbers, quantities and addresses to listen on are made of.
fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_.:*-".contains(c)
}

/// Whether the lines above end inside a list of a key whose values are no secret.
fn is_of_shown_list(above: &[&str]) -> bool {
    let Some(at) = above.iter().rposition(|line| line.contains('=')) else { return false };
    let Some((key, value)) = above.get(at).and_then(|line| line.split_once('=')) else { return false };
    let inside = above.get(at + 1..).unwrap_or_default();
    let is_open = value.trim_start().starts_with('[') && !value.contains(']');
    SHOWN_KEYS.contains(&key.trim()) && is_open && !inside.iter().any(|line| line.contains(['[', ']']))
}

fn hide_value(value: &str) -> String {
    let start = value.find(|c: char| c != ' ' && c != '"' && c != '\'').unwrap_or(0);
    let (quote, rest) = value.split_at_checked(start).unwrap_or(("", value));
    match SCHEMES.iter().find_map(|scheme| Some((scheme, rest.strip_prefix(scheme)?))) {
        Some((scheme, rest)) => format!("{quote}{scheme}{}", hide(rest)),
        None => hide(value),
    }
}

fn hide(text: &str) -> String {
    text.chars().map(|c| if c.is_alphanumeric() { '*' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_what_is_no_secret_are_shown_on_every_line() {
        assert_eq!(masked("\t\"public.orders\" \"public.b\"", &["[sink.a]", "tables = [", "\"a.b\","]), {
            "\t\"public.orders\" \"public.b\""
        });
        for above in [&["tables = []"][..], &["tables = [", "]"], &["signing_secrets = ["], &["# tables = ["], &[]] {
            assert_eq!(masked("\"hunter2\"", above), "\"*******\"", "{above:?}");
        }
        assert_eq!(masked("retry.max_attempts = 5x", &[]), "retry.max_attempts = 5x");
        assert_eq!(masked("tables = [\"a.b\" \"c.d, \"e\"] # x", &[]), "tables = [\"a.b\" \"c.d, \"e\"] # *");
        assert_eq!(masked("[sink.orders] x", &[]), "[sink.orders] *");
        assert_eq!(masked("[[sink.orders", &[]), "[[sink.orders");
        assert_eq!(masked("success = [200, 202]", &[]), "success = [***, ***]");
        assert_eq!(masked("url = \"postgres://u:p@h/d", &[]), "url = \"postgres://*:*@*/*");
    }

    #[test]
    fn what_is_no_plain_value_is_hidden_whatever_the_key() {
        for line in [
            "source = \"postgres://u:hunter2@db/app",
            "source = \"hunter2@db/app",
            "source = hunter2@db",
            "[source.app] url = postgres://u:hunter2@db/app",
            "[source.app] password = hunter2",
            "[hunter2",
            "[\"hunter2\"]",
            "[source.app]hunter2",
            "listen = \"127.0.0.1:80\" token hunter2",
            "listen = \"127.0.0.1:80\" hunter2",
            "level = 'info' x # hunter2",
            "slot = \"host=db password=hunter2\"",
            "slot = \"x\" \"hunter2\"",
            "tables = [\"a.b\"] hunter2",
            "tables = [hunter2, \"a.b\"]",
            "tables = [\"whsec_hunter2\"]",
            "tables = [\"a\", \"u:hunter2@db\"]",
            "batch_size = 5 hunter2",
            "max = { a = \"hunter2\" }",
            "x.\"hunter2\".slot = 1",
        ] {
            let shown = masked(line, &[]);
            assert!(!shown.contains("hunter2"), "{shown}");
            assert_eq!(shown.chars().count(), line.chars().count(), "the mark stands under its column");
            let shown = masked(line, &["tables = ["]);
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn the_mark_stands_under_its_column_beside_tabs_and_in_long_lines() {
        assert_eq!(window("\ta b", 3), (" a b".to_owned(), 2));
        let long = format!("{}!{}", "x".repeat(500), "y".repeat(500));
        let (shown, mark) = window(&long, 501);
        assert_eq!(shown.chars().nth(mark), Some('!'), "{shown}");
        assert!(shown.chars().count() <= WIDTH_MAX + 2 && shown.starts_with('…') && shown.ends_with('…'), "{shown}");
        let (shown, mark) = window(&long, 1);
        assert_eq!((shown.chars().next(), mark), (Some('x'), 0));
    }
}

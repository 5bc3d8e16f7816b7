//! What a store holds, for a person and for a program. Pure.

use std::path::Path;

use serde_json::{Value, json};

use crate::admin::bytes_in_words;
use crate::change::Lsn;
use crate::source::notes::{Word, at, told};
use crate::store::mend::{SinkSummary, StateSummary};
use crate::store::{Gap, Note};

/// Gaps of a source that are shown as text, the newest.
const GAPS_MAX: usize = 10;

/// A table of the sinks below what is true of all.
pub(super) fn as_text(path: &Path, summary: &StateSummary) -> String {
    let (used, max) = (bytes_in_words(summary.used_bytes), bytes_in_words(summary.max_bytes));
    let mut text = format!("store   {}, {used} of {max}\n", path.display());
    for what in &summary.damage {
        text += &format!("damaged {what}; `walhook state accept-loss` forgets it\n");
    }
    for (name, source) in &summary.sources {
        text += &format!(
            "source  {name}: slot {} of database {} in cluster {}, resolved by all sinks up to {}\n",
            source.slot,
            source.database,
            source.system_id,
            lsn(source.confirmed)
        );
        for gap in gaps_of(name, summary).iter().take(GAPS_MAX) {
            let Gap { from, to, at_micros, why } = gap;
            let from = from.map_or_else(|| "an unknown position".to_owned(), |from| from.to_string());
            let at = at(*at_micros);
            text += &format!("        {name}: gap of {at}: changes from {from} to {to} were never read ({why})\n");
        }
        for note in notes_of(name, summary) {
            let known = if note.is_accepted { " (accepted)" } else { "" };
            text += &format!("        {name}: {}{known}\n", told(name, note).trouble.what);
        }
        if source.gap_accepted.is_some() {
            text += &format!("        {name}: a gap is accepted; the next start goes on from the slot's position\n");
        }
    }
    if summary.sinks.is_empty() {
        return text + "no sinks yet\n";
    }
    text += "\n";
    text + &table(&summary.sinks)
}

fn gaps_of<'a>(source: &str, summary: &'a StateSummary) -> &'a [Gap] {
    let of_source = summary.gaps.iter().find(|(name, _)| name == source);
    of_source.map_or(&[], |(_, gaps)| gaps)
}

fn notes_of<'a>(source: &str, summary: &'a StateSummary) -> &'a [Note] {
    let of_source = summary.notes.iter().find(|(name, _)| name == source);
    of_source.map_or(&[], |(_, notes)| notes)
}

fn table(sinks: &[SinkSummary]) -> String {
    let header = ["SINK", "SOURCE", "STATE", "RESOLVED", "OLDEST", "HOLDS"].map(str::to_owned);
    let row = |sink: &SinkSummary| {
        let oldest = sink.holds.oldest_micros.map_or_else(|| "–".to_owned(), at);
        let holds = sink.holds.to_string();
        [sink.name.clone(), sink.source.clone(), standing(sink).to_owned(), lsn(sink.resolved), oldest, holds]
    };
    let rows: Vec<[String; 6]> = std::iter::once(header).chain(sinks.iter().map(row)).collect();
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text += cells.join("  ").trim_end();
        text += "\n";
    }
    for sink in sinks {
        if let Some(why) = &sink.paused {
            let named = named(sink, sinks);
            text += &format!("\nsink {} is paused: {why}\n  `walhook state resume {named}` ends it\n", sink.name);
        }
        if !sink.active && !sink.holds.is_empty() {
            text += &format!(
                "\nsink {} is not in the configuration\n  put it back to deliver what is held, or `walhook state forget {}`\n",
                sink.name,
                named(sink, sinks)
            );
        }
    }
    text
}

/// As the commands take it.
fn named(sink: &SinkSummary, all: &[SinkSummary]) -> String {
    let SinkSummary { name, source, .. } = sink;
    match all.iter().filter(|other| other.name == *name).count() {
        1 => name.clone(),
        _ => format!("{name} --source {source}"),
    }
}

fn standing(sink: &SinkSummary) -> &'static str {
    match (sink.active, &sink.paused) {
        (false, _) => "absent",
        (true, Some(_)) => "paused",
        (true, None) => "active",
    }
}

fn lsn(lsn: Option<Lsn>) -> String {
    lsn.map_or_else(|| "–".to_owned(), |lsn| lsn.to_string())
}

/// The same for programs. Numbers of 64 bits are strings, LSNs as Postgres writes them.
pub(super) fn as_json(path: &Path, summary: &StateSummary) -> String {
    let sources = summary.sources.iter().map(|(name, source)| {
        json!({
            "name": name,
            "system_id": source.system_id.to_string(),
            "database": source.database,
            "slot": source.slot,
            "resolved_lsn": source.confirmed.map(|lsn| lsn.to_string()),
            "gap_accepted": source.gap_accepted.is_some(),
            "gaps": gaps_of(name, summary).iter().map(gap).collect::<Vec<_>>(),
            "tables": notes_of(name, summary).iter().map(|it| note(name, it)).collect::<Vec<_>>(),
        })
    });
    let all = json!({
        "path": path.display().to_string(),
        "damage": summary.damage,
        "used_bytes": summary.used_bytes,
        "max_bytes": summary.max_bytes,
        "sources": sources.collect::<Vec<_>>(),
        "sinks": summary.sinks.iter().map(sink).collect::<Vec<_>>(),
    });
    serde_json::to_string_pretty(&all).unwrap_or_default() + "\n"
}

fn gap(gap: &Gap) -> Value {
    json!({
        "from_lsn": gap.from.map(|from| from.to_string()),
        "to_lsn": gap.to.to_string(),
        "bytes": gap.bytes(),
        "at": at(gap.at_micros),
        "why": gap.why,
    })
}

fn note(source: &str, note: &Note) -> Value {
    let Word { trouble, .. } = told(source, note);
    json!({
        "kind": note.key.kind.as_str(),
        "table": note.key.table.to_string(),
        "other": note.key.other.as_ref().map(ToString::to_string),
        "at": at(note.at_micros),
        "from_lsn": note.from.map(|from| from.to_string()),
        "to_lsn": note.to.map(|to| to.to_string()),
        "accepted": note.is_accepted,
        "what": trouble.what,
        "advice": trouble.advice,
    })
}

fn sink(sink: &SinkSummary) -> Value {
    let holds = &sink.holds;
    json!({
        "name": sink.name,
        "source": sink.source,
        "state": standing(sink),
        "paused_why": sink.paused,
        "resolved_lsn": sink.resolved.map(|lsn| lsn.to_string()),
        "retrying_deliveries": holds.retrying,
        "blocked_deliveries": holds.blocked,
        "dead_letters": holds.dead,
        "lane_messages": holds.lane_messages,
        "overflow_messages": holds.overflow_messages,
        "oldest_at": holds.oldest_micros.map(at),
    })
}

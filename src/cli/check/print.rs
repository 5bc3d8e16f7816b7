//! Pure: findings as text. What is as it should be is folded where there is much of it; what is not never goes unnamed in
//! silence.

use std::collections::{HashMap, HashSet};

use super::findings::{Finding, Level, Sort};

/// Subjects of one sort that are shown one by one at most, when all is well with them.
const FINE_MAX: usize = 20;
/// Warnings or failures of the same wording that are shown at most.
const ALIKE_MAX: usize = 20;

/// With all that is fine of one sort in one line, where it is much.
pub(super) fn folded(findings: &[Finding]) -> String {
    let kept = cut_alike(fold_fine(findings));
    text_of(&kept, findings)
}

/// With everything.
pub(super) fn as_text(findings: &[Finding]) -> String {
    text_of(findings, findings)
}

/// One line in the place of the first for all subjects of a sort with which all is well.
fn fold_fine(findings: &[Finding]) -> Vec<Finding> {
    let bad: HashSet<&str> = findings.iter().filter(|it| it.level != Level::Ok).map(|it| it.subject.as_str()).collect();
    let is_fine = |it: &Finding| !bad.contains(it.subject.as_str());
    let mut fine: HashMap<Sort, HashSet<&str>> = HashMap::new();
    for finding in findings.iter().filter(|it| is_fine(it)) {
        fine.entry(finding.sort).or_default().insert(&finding.subject);
    }
    let mut told = HashSet::new();
    let mut kept = Vec::new();
    for finding in findings {
        let count = fine.get(&finding.sort).map_or(0, HashSet::len);
        match finding.sort.word() {
            Some(word) if is_fine(finding) && count > FINE_MAX => {
                if told.insert(finding.sort) {
                    let what = format!("{count} {word} are as they should be; --verbose shows them one by one");
                    kept.push(Finding::ok(word, what));
                }
            }
            Some(_) | None => kept.push(finding.clone()),
        }
    }
    kept
}

/// The first of many that say the same of different tables, and how many more there are.
fn cut_alike(findings: Vec<Finding>) -> Vec<Finding> {
    let key = |it: &Finding| (it.level.word(), shape_of(it));
    let mut counts: HashMap<(&'static str, String), usize> = HashMap::new();
    for finding in findings.iter().filter(|it| it.level != Level::Ok) {
        *counts.entry(key(finding)).or_default() += 1;
    }
    let mut seen: HashMap<(&'static str, String), usize> = HashMap::new();
    let mut kept = Vec::new();
    for finding in findings {
        if finding.level == Level::Ok {
            kept.push(finding);
            continue;
        }
        let (key, total) = (key(&finding), counts.get(&key(&finding)).copied().unwrap_or_default());
        let nth = seen.entry(key).or_default();
        *nth += 1;
        if *nth <= ALIKE_MAX {
            kept.push(finding);
        } else if *nth == ALIKE_MAX + 1 {
            let more = total - ALIKE_MAX;
            let what =
                format!("and {more} more of which the same is said: {}; --verbose shows them all", in_common(&finding));
            kept.push(Finding { what, mend: None, ..finding });
        }
    }
    kept
}

/// What is alike in them, as far as it is short.
fn in_common(finding: &Finding) -> String {
    let words = shape_of(finding);
    match words.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", words.get(..end).unwrap_or_default()),
        None => words,
    }
}

/// What is said, whatever it is of. The subject is a name as well, be it one with spaces or without a dot.
fn shape_of(finding: &Finding) -> String {
    shape(&finding.what.replace(&finding.subject, "*"))
}

/// A text without the names and numbers in it.
fn shape(what: &str) -> String {
    let is_name = |word: &str| {
        let word = word.trim_matches(|c: char| !c.is_alphanumeric());
        word.contains('.') || word.contains(|c: char| c.is_ascii_digit())
    };
    what.split(' ').map(|word| if is_name(word) { "*" } else { word }).collect::<Vec<_>>().join(" ")
}

/// `ok    source.app   …`, the subjects aligned, what mends it below; the counts are those of `all`.
fn text_of(shown: &[Finding], all: &[Finding]) -> String {
    let width = shown.iter().map(|it| it.subject.chars().count()).max().unwrap_or(0).min(40);
    let mut text = String::new();
    let mut before = None;
    for finding in shown {
        // What is said of one thing stands together.
        let subject = if before == Some(&finding.subject) { "" } else { &finding.subject };
        before = Some(&finding.subject);
        let indent = format!("\n{:6}{:width$}  ", "", "");
        let (subject, what) = (visible(subject).replace('\n', "\\n"), visible(&finding.what).replace('\n', &indent));
        text += &format!("{:6}{subject:width$}  {what}\n", finding.level.word());
        for line in finding.mend.iter().flat_map(|mend| mend.lines()) {
            text += &format!("{:6}{:width$}  -> {}\n", "", "", visible(line));
        }
    }
    let count = |level| all.iter().filter(|it| it.level == level).count();
    text + &format!("\n{} ok, {} warnings, {} failures\n", count(Level::Ok), count(Level::Warn), count(Level::Fail))
}

/// A terminal is told nothing by a name: control characters other than the line break are written out.
pub(crate) fn visible(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\n' { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, finding: fn(&str) -> Finding) -> Finding {
        Finding { sort: Sort::Table, ..finding(name) }
    }

    #[test]
    fn thousands_of_tables_that_are_fine_are_one_line_and_none_that_is_not_is_folded() {
        let fine = |name: &str| Finding::ok(name, "primary key id");
        let mut all = vec![Finding::ok("source.app", "Postgres 17.6")];
        for number in 0..5000 {
            all.push(table(&format!("public.t{number}"), fine));
            all.push(table(&format!("public.t{number}"), |name| Finding::ok(name, "sink a: insert")));
        }
        all.push(table("public.keyless", |name| Finding::warn(name, "no primary key", "add one")));
        all.push(table("public.keyless", |name| Finding::ok(name, "sink a: insert")));
        let text = folded(&all);
        assert_eq!(text.lines().count(), 7, "{text}");
        assert!(text.contains("ok    tables          5000 tables are as they should be; --verbose"), "{text}");
        assert!(text.contains("warn  public.keyless  no primary key"), "{text}");
        assert!(text.contains("sink a: insert"), "what is said of a table stands together:\n{text}");
        assert!(text.ends_with("10002 ok, 1 warnings, 0 failures\n"), "{text}");
        assert!(as_text(&all).lines().count() > 10_000);
    }

    #[test]
    fn kinds_that_alternate_and_names_of_any_form_are_told_apart_when_they_are_cut() {
        let named = |number: usize| format!("My {}", "x".repeat(number + 1));
        let mut all = Vec::new();
        for number in 0..30 {
            all.push(table(&named(number), |name| Finding::warn(name, format!("{name} is unlogged"), "log it")));
            all.push(table(&named(number), |name| Finding::warn(name, format!("{name} has no key"), "add one")));
        }
        let text = folded(&all);
        assert!(text.contains("and 10 more of which the same is said: * is unlogged;"), "{text}");
        assert!(text.contains("and 10 more of which the same is said: * has no key;"), "{text}");
        assert_eq!(text.matches("-> log it").count(), 20, "{text}");
    }

    #[test]
    fn a_name_moves_no_cursor() {
        let text = as_text(&[Finding::warn("s.e\u{1b}[31mred", "s.e\u{1b}[31mred\r is odd", "rename \u{7} it")]);
        assert!(!text.contains(['\u{1b}', '\r', '\u{7}']) && text.contains("e\\u{1b}[31mred"), "{text}");
    }

    #[test]
    fn a_few_are_shown_one_by_one() {
        let all: Vec<Finding> = (0..20)
            .map(|number| table(&format!("public.t{number}"), |name| Finding::ok(name, "primary key id")))
            .collect();
        assert_eq!(folded(&all), as_text(&all));
    }

    #[test]
    fn of_failures_that_are_alike_the_first_are_shown_and_the_others_counted() {
        let mut all: Vec<Finding> = (0..300)
            .map(|number| {
                Finding::warn("source.app", format!("left out: public.t{number} has no primary key"), "mend it")
            })
            .collect();
        all.push(Finding::fail("source.app", "left out: public.t5 is unlogged", "log it"));
        let text = folded(&all);
        assert_eq!(text.matches("t1 has no primary key").count(), 1, "{text}");
        assert_eq!(text.matches("has no primary key").count(), 21, "20, and what the others have in common: {text}");
        assert!(text.contains("  and 280 more of which the same is said: left out: * has no primary key;"), "{text}");
        assert!(text.contains("public.t5 is unlogged") && text.contains("300 warnings, 1 failures"), "{text}");
    }
}

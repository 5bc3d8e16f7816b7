//! Pure: `synchronous_standby_names`, by which Postgres takes the reader of a slot for a standby that commits wait for.

use super::names::{literal, quoted};
use crate::view::Trouble;

/// One member of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Member {
    /// `*`
    Any,
    Named(String),
}

/// The setting, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Names {
    /// `FIRST 2`, `ANY 1`; the method as written, empty where only the number stands.
    quorum: Option<(String, usize)>,
    members: Vec<Member>,
}

/// That commits wait for the session with this `application_name`, if they do.
pub(crate) fn trouble(setting: &str, application: &str) -> Option<Trouble> {
    let names = Names::parse(setting);
    let is_us = |member: &Member| match member {
        Member::Any => true,
        Member::Named(name) => name.eq_ignore_ascii_case(application),
    };
    if !names.members.iter().any(is_us) {
        return None;
    }
    let others: Vec<&Member> = names.members.iter().filter(|member| !is_us(member)).collect();
    let advice = match others.is_empty() && names.members.contains(&Member::Any) {
        true => ASK_FOR_NAMES.to_owned(),
        false => {
            let without = literal(&names.with(&others));
            format!("ALTER SYSTEM SET synchronous_standby_names = {without}; SELECT pg_reload_conf();")
        }
    };
    Some(Trouble {
        what: format!(
            "synchronous_standby_names ({setting}) takes walhook for a standby: commits wait for walhook to confirm them, \
             which takes as long as their delivery"
        ),
        advice,
    })
}

/// Which standbys are meant by `*` an ordinary role cannot see. The statement changes nothing.
const ASK_FOR_NAMES: &str = "name the standbys instead of *; this prints the statement, for a superuser to look at and to run: \
    SELECT format('ALTER SYSTEM SET synchronous_standby_names = %L; SELECT pg_reload_conf();', \
    coalesce(string_agg(DISTINCT quote_ident(application_name), ', '), '')) FROM pg_stat_replication WHERE pid NOT IN \
    (SELECT active_pid FROM pg_replication_slots WHERE slot_type = 'logical' AND active_pid IS NOT NULL);";

impl Names {
    fn parse(setting: &str) -> Self {
        let words = words(setting);
        let opening = words.iter().position(|word| *word == Word::Open);
        let Some(opening) = opening else { return Self { quorum: None, members: members(&words) } };
        let (head, tail) = words.split_at(opening);
        let number = |word: &Word| if let Word::Plain(text) = word { text.parse().ok() } else { None };
        let method = match head {
            [Word::Plain(method), _] => method.to_uppercase(),
            _ => String::new(),
        };
        Self { quorum: head.last().and_then(number).map(|number| (method, number)), members: members(tail) }
    }

    /// The setting with only these members; no more of them are waited for than there are.
    fn with(&self, members: &[&Member]) -> String {
        let list: Vec<String> = members
            .iter()
            .map(|member| match member {
                Member::Any => "*".to_owned(),
                Member::Named(name) => quoted(name),
            })
            .collect();
        let list = list.join(", ");
        match &self.quorum {
            Some((method, number)) if !members.is_empty() => {
                format!("{method} {} ({list})", (*number).min(members.len())).trim_start().to_owned()
            }
            Some(_) | None => list,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Plain(String),
    Quoted(String),
    Open,
}

fn members(words: &[Word]) -> Vec<Member> {
    let member = |word: &Word| match word {
        Word::Plain(text) if text == "*" => Some(Member::Any),
        Word::Plain(text) | Word::Quoted(text) => {
            Some(if text == "*" { Member::Any } else { Member::Named(text.clone()) })
        }
        Word::Open => None,
    };
    words.iter().filter_map(member).collect()
}

/// The words of the setting. Commas and the closing parenthesis only part them.
fn words(setting: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut rest = setting.chars().peekable();
    while let Some(first) = rest.next() {
        match first {
            '(' => words.push(Word::Open),
            '"' => {
                let mut text = String::new();
                while let Some(next) = rest.next() {
                    match next {
                        '"' if rest.next_if_eq(&'"').is_none() => break,
                        next => text.push(next),
                    }
                }
                words.push(Word::Quoted(text));
            }
            _ if first == ',' || first == ')' || first.is_whitespace() => {}
            _ => {
                let mut text = String::from(first);
                while let Some(next) = rest.next_if(|next| !next.is_whitespace() && !"(),\"".contains(*next)) {
                    text.push(next);
                }
                words.push(Word::Plain(text));
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pitfall_60_only_a_list_that_takes_us_in_makes_commits_wait_and_the_rest_of_it_stays() {
        for (setting, without) in [
            ("walhook", "''"),
            ("s1, walhook", "'\"s1\"'"),
            ("WALHOOK,s1", "'\"s1\"'"),
            ("s1, *", "'\"s1\"'"),
            ("FIRST 2 (walhook, s1)", "'FIRST 1 (\"s1\")'"),
            ("any 2 (s1, s2, walhook)", "'ANY 2 (\"s1\", \"s2\")'"),
            ("1 (\"walhook\")", "''"),
            ("2(s1,\"o\"\"dd, (x)\",walhook)", "'2 (\"s1\", \"o\"\"dd, (x)\")'"),
        ] {
            let Trouble { what, advice } = trouble(setting, "walhook").unwrap_or_else(|| panic!("{setting}"));
            assert!(what.contains("commits wait for walhook"), "{what}");
            assert_eq!(
                advice,
                format!("ALTER SYSTEM SET synchronous_standby_names = {without}; SELECT pg_reload_conf();"),
                "{setting}"
            );
        }
        for setting in ["", "s1", "FIRST 1 (s1, s2)", "\"walhook2\"", "walhook_app", "first"] {
            assert_eq!(trouble(setting, "walhook"), None, "{setting}");
        }
        for setting in ["*", "FIRST 1 (*)", "\"*\""] {
            let Trouble { advice, .. } = trouble(setting, "another").unwrap_or_else(|| panic!("{setting}"));
            assert!(advice.contains("SELECT format('ALTER SYSTEM"), "nothing that a paste would change: {advice}");
        }
    }
}

//! Pure: `synchronous_standby_names`, by which Postgres takes the reader of a slot for a standby that commits wait for.

use super::names::quoted;
use crate::source::advice::Statement;
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
    let number = names.quorum.as_ref().map_or(1, |(_, number)| *number);
    let advice = if names.members.contains(&Member::Any) {
        // Who else is meant nobody here knows, least of all while some of them are away.
        format!(
            "put the names of the standbys that commits are to wait for in the place of *, {}",
            names.by_hand(number)
        )
    } else if others.len() < number {
        format!("put the name of a standby in the place of walhook's, {}", names.by_hand(number))
    } else {
        Statement::standby_names(&names.with(&others)).to_string()
    };
    Some(Trouble {
        what: format!(
            "synchronous_standby_names ({setting}) takes walhook for a standby: commits wait for walhook to confirm them, \
             which takes as long as their delivery"
        ),
        advice,
    })
}

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

    /// What is to be minded, and what shows who is there.
    fn by_hand(&self, number: usize) -> String {
        let method = self.quorum.as_ref().map(|(method, _)| method.as_str()).filter(|method| !method.is_empty());
        format!(
            "those too that are away at the moment, and none that is no standby (pg_basebackup and pg_receivewal are none), and keep \
             {} {number}: fewer names than that, or the name of one that does not come back, and every commit waits. Who is \
             there, {}",
            method.unwrap_or("FIRST"),
            Statement::look_at_standbys()
        )
    }

    /// The setting with only these members, of whom as many as before are waited for.
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
            Some((method, number)) => format!("{method} {number} ({list})").trim_start().to_owned(),
            None => list,
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
            ("s1, walhook", "'\"s1\"'"),
            ("WALHOOK,s1", "'\"s1\"'"),
            ("FIRST 2 (walhook, s1, s2)", "'FIRST 2 (\"s1\", \"s2\")'"),
            ("any 2 (s1, s2, walhook)", "'ANY 2 (\"s1\", \"s2\")'"),
            ("2(s1,\"o\"\"dd, (x)\",walhook)", "'2 (\"s1\", \"o\"\"dd, (x)\")'"),
        ] {
            let Trouble { what, advice } = trouble(setting, "walhook").unwrap_or_else(|| panic!("{setting}"));
            assert!(what.contains("commits wait for walhook"), "{what}");
            // Two lines: ALTER SYSTEM is refused in one transaction with another statement.
            let expected = format!(
                "as a superuser:\nALTER SYSTEM SET synchronous_standby_names = {without};\nSELECT pg_reload_conf();"
            );
            assert_eq!(advice, expected, "{setting}");
        }
        for setting in ["", "s1", "FIRST 1 (s1, s2)", "\"walhook2\"", "walhook_app", "first"] {
            assert_eq!(trouble(setting, "walhook"), None, "{setting}");
        }
    }

    #[test]
    fn nothing_is_advised_that_waits_for_fewer_standbys_or_for_none_that_may_come() {
        for (setting, quorum) in [
            ("*", "keep FIRST 1:"),
            ("s1, *", "keep FIRST 1:"),
            ("walhook", "keep FIRST 1:"),
            ("1 (\"walhook\")", "keep FIRST 1:"),
            ("\"*\"", "keep FIRST 1:"),
            ("FIRST 2 (s1, *)", "keep FIRST 2:"),
            ("ANY 2 (*)", "keep ANY 2:"),
            ("FIRST 2 (walhook, s1)", "keep FIRST 2:"),
        ] {
            let Trouble { advice, .. } = trouble(setting, "walhook").unwrap_or_else(|| panic!("{setting}"));
            assert!(
                !advice.contains("ALTER SYSTEM") && advice.contains("SELECT application_name"),
                "{setting}: {advice}"
            );
            assert!(advice.contains(quorum), "{setting}: {advice}");
        }
        assert!(trouble("*", "another").is_some(), "whatever the session is called");
    }
}

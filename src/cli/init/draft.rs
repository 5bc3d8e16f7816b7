//! Pure: the text of the configuration that `walhook init` writes.

use std::fmt::Write as _;

use crate::address::{AddressError, Hidden, PgAddress};
use crate::config::written;
use crate::source::slot::server::ServerFacts;
use crate::source::slot::survey::Refusal;
use crate::source::slot::{RelationKind, TableFacts};

/// Environment variable that the file asks for in place of a password.
pub(super) const PASSWORD: &str = "DATABASE_PASSWORD";
/// Where `walhook listen` listens unless told otherwise.
const RECEIVER: &str = "http://127.0.0.1:8080/";

/// A configuration to write.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) text: String,
    pub(super) listed: usize,
    pub(super) left_out: usize,
    pub(super) password: Option<PasswordForm>,
}

/// How a password is written where the file has its placeholder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PasswordForm {
    /// Percent-encoded, in a URI.
    PercentEncoded,
    /// With a `\` before `'` and `\`, between single quotes.
    Quoted,
}

/// Writes the configuration of one database.
pub(super) fn draft(url: &str, server: &ServerFacts, tables: &[TableFacts]) -> Result<Draft, AddressError> {
    let (url, password) = without_password(url)?;
    let name = source_name(&server.database);
    let real = tables
        .iter()
        .filter(|table| table.root.is_none() && matches!(table.kind, RelationKind::Table | RelationKind::Partitioned));
    let (left_out, listed): (Vec<_>, Vec<_>) =
        real.map(|table| (table, refusal(table))).partition(|(_, no)| no.is_some());
    let mut text = head(&url, password, &name, server);
    text += &sink(&name, &listed.iter().map(|(table, _)| *table).collect::<Vec<_>>(), &left_out);
    Ok(Draft { text, listed: listed.len(), left_out: left_out.len(), password })
}

impl PasswordForm {
    /// What whoever sets the variable must know.
    pub(super) fn rule(self) -> &'static str {
        match self {
            Self::PercentEncoded => "percent-encoded, since it stands in a URI",
            Self::Quoted => "with \\ before each ' and \\, since it stands in quotes",
        }
    }
}

fn refusal(table: &TableFacts) -> Option<Refusal> {
    if table.name.schema.contains('*') || table.name.table.contains('*') {
        let reason = format!("{} has a * in its name, which the configuration cannot tell from a pattern", table.name);
        return Some(Refusal { reason, sql: None });
    }
    table.kind_refusal().or_else(|| table.identity_refusal())
}

fn head(url: &str, password: Option<PasswordForm>, name: &str, server: &ServerFacts) -> String {
    let password = password
        .map_or_else(String::new, |form| format!("# ${{{PASSWORD}}} comes from the environment, {}.\n", form.rule()));
    let mut text = format!(
        "# walhook's configuration, drafted from the database {}. config.example.toml has every key.\n\n\
         # Where the changes come from.\n{password}[source.{name}]\nurl = {}\n\
         # The replication slot and the publication; walhook makes and maintains both. With create = false it only checks them.\n\
         slot = {}\npublication = {}\n",
        comment(&server.database),
        string(url),
        string(&format!("walhook_{}", slot_name(name))),
        string(&format!("walhook_{}", slot_name(name))),
    );
    for (what, mend) in server.obstacles() {
        let _infallible = write!(text, "# To be done first: {}\n#   {}\n", comment(&what), comment(&mend));
    }
    text
}

fn sink(source: &str, listed: &[&TableFacts], left_out: &[(&TableFacts, Option<Refusal>)]) -> String {
    let mut text = format!(
        "\n# Where they go. `walhook listen` is a receiver that prints what it gets, on this address.\n\
         [sink.{source}]\nurl = {}\n\
         # Changes of one row are delivered one after another, in commit order, and different rows at the same time; that is\n\
         # group_by = \"primary_key\", the default. \"table\", \"none\" or [\"a_column\", …] are the others.\n\
         # A pattern such as \"public.*\" picks up new tables too.\ntables = [\n",
        string(RECEIVER)
    );
    for table in listed {
        let note = if table.primary_key.is_empty() { "  # no primary key: one group" } else { "" };
        let _infallible = writeln!(text, "    {},{note}", string(&written::table(&table.name)));
    }
    for (table, refusal) in left_out {
        let Some(refusal) = refusal else { continue };
        let _infallible = writeln!(text, "    # {}", comment(&refusal.reason));
        for line in refusal.sql.iter().flat_map(|sql| sql.lines()) {
            let _infallible = writeln!(text, "    #   {}", comment(line));
        }
        let _infallible = writeln!(text, "    # {},", string(&comment(&written::table(&table.name))));
    }
    text += "]\n# Logical messages are sent too where they are asked for by their prefix: messages = [\"outbox.*\"]\n";
    if listed.is_empty() {
        text += "# No table can be published yet: at least one has to be listed above before walhook starts.\n";
    }
    text
}

/// A TOML string in which `$` stands for itself; the placeholder for the password is put back.
fn string(text: &str) -> String {
    let escaped = text.replace('$', "$$").replace(&format!("$${{{PASSWORD}}}"), &format!("${{{PASSWORD}}}"));
    toml::Value::String(escaped.replace(['\n', '\r'], " ")).to_string()
}

/// Text that stays on one line of comment.
fn comment(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

/// A name for the source: letters, digits, `_`, `-`, a letter first.
fn source_name(database: &str) -> String {
    let kept: String =
        database.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')).take(40).collect();
    let starts_well = kept.starts_with(|c: char| c.is_ascii_alphabetic());
    if starts_well { kept } else { format!("app{kept}") }
}

fn slot_name(source: &str) -> String {
    source.to_lowercase().replace('-', "_")
}

/// The address as it is written to the file, and how its password is written in the environment, if it has one.
fn without_password(url: &str) -> Result<(String, Option<PasswordForm>), AddressError> {
    Ok(match PgAddress::hide_password(url, &format!("${{{PASSWORD}}}"))? {
        Hidden::Nothing => (url.to_owned(), None),
        Hidden::InUri(text) => (text, Some(PasswordForm::PercentEncoded)),
        Hidden::InKeywords(text) => (text, Some(PasswordForm::Quoted)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_written() {
        for (url, expected, form) in [
            ("postgres://u:s3@h/db", "postgres://u:${DATABASE_PASSWORD}@h/db", Some(PasswordForm::PercentEncoded)),
            ("postgres://u@h/db", "postgres://u@h/db", None),
            (
                "host=h password='s 3' user=u",
                "host=h password='${DATABASE_PASSWORD}' user=u",
                Some(PasswordForm::Quoted),
            ),
        ] {
            assert_eq!(without_password(url).unwrap(), (expected.to_owned(), form), "{url}");
        }
    }

    #[test]
    fn names_and_strings_are_safe() {
        assert_eq!(source_name("1 shop!"), "app1shop");
        assert_eq!(slot_name("My-Shop"), "my_shop");
        assert_eq!(string("a\"$b"), "'a\"$$b'");
        assert_eq!(comment("a\nb"), "a b");
    }
}

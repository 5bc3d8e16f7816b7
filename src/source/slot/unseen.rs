//! What is read beyond need: it may be refused, hidden or missing, and then is unknown, which is no error.
//!
//! What changes are read by (the slot, the publication, the tables) ends with an error that names the grant, see
//! [`PrepareError::with_grant`]. Everything else is a [`Question`]: a server's error to one takes none of the others with it.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::error::{Passing, PrepareError, STATEMENT_LIMIT};
use super::names::{literal, quoted};

/// Something worth knowing.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// What it is about, such as a setting's name.
    pub(crate) about: &'static str,
    /// An expression in SQL; its text is the answer.
    pub(crate) sql: String,
    /// What stays open without the answer.
    pub(crate) leaves_open: &'static str,
}

impl Question {
    pub(crate) fn new(about: &'static str, sql: impl Into<String>, leaves_open: &'static str) -> Self {
        Self { about, sql: sql.into(), leaves_open }
    }

    /// A setting that every server has.
    pub(crate) fn setting(name: &'static str, leaves_open: &'static str) -> Self {
        Self::new(name, format!("current_setting('{name}')"), leaves_open)
    }

    /// A setting that some servers do not have: no answer.
    pub(crate) fn newer_setting(name: &'static str, leaves_open: &'static str) -> Self {
        Self::new(name, format!("current_setting('{name}', true)"), leaves_open)
    }
}

/// What could not be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unseen {
    /// As in [`Question`].
    pub(crate) about: &'static str,
    /// As in [`Question`].
    pub(crate) leaves_open: &'static str,
    /// The server's words.
    pub(crate) why: String,
    /// The server refused it for want of a privilege.
    pub(crate) is_refused: bool,
}

impl Unseen {
    /// For `check`.
    pub(crate) fn what(&self) -> String {
        format!("not seen: {} ({}), so it is not known {}", self.about, self.why, self.leaves_open)
    }

    /// What would let the role see it. Nothing asks for it: walhook runs without.
    pub(crate) fn mend(&self, role: &str) -> Option<String> {
        self.is_refused.then(|| format!("walhook runs without; to let it see: {}", grant(&self.why, role)))
    }
}

/// The answers to questions.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    values: std::vec::IntoIter<Option<String>>,
    pub(crate) unseen: Vec<Unseen>,
}

impl Answers {
    /// The next answer, in the order of the questions.
    pub(crate) fn text(&mut self) -> Option<String> {
        self.values.next().flatten()
    }

    /// The same, of a truth value.
    pub(crate) fn truth(&mut self) -> Option<bool> {
        self.text().map(|text| text == "true")
    }

    /// The same, of a number.
    pub(crate) fn number(&mut self) -> Option<i64> {
        self.text()?.parse().ok()
    }
}

/// Asks all at once; where the server refuses, one by one.
///
/// # Errors
/// When the connection fails or the server takes too long.
pub(crate) async fn ask(client: &Client, doing: &'static str, questions: &[Question]) -> Result<Answers, PrepareError> {
    let all = questions.iter().map(|question| format!("({})::text", question.sql)).collect::<Vec<_>>().join(", ");
    if let Ok(values) = row(client, doing, &all, questions.len()).await? {
        return Ok(Answers { values: values.into_iter(), unseen: Vec::new() });
    }
    let (mut values, mut unseen) = (Vec::new(), Vec::new());
    for question in questions {
        match row(client, doing, &format!("({})::text", question.sql), 1).await? {
            Ok(one) => values.extend(one),
            Err((code, why)) => {
                values.push(None);
                let is_refused = code == SqlState::INSUFFICIENT_PRIVILEGE;
                let Question { about, leaves_open, .. } = *question;
                unseen.push(Unseen { about, leaves_open, why, is_refused });
            }
        }
    }
    Ok(Answers { values: values.into_iter(), unseen })
}

/// The answers of one row, or the server's error.
async fn row(
    client: &Client,
    doing: &'static str,
    expressions: &str,
    count: usize,
) -> Result<Result<Vec<Option<String>>, (SqlState, String)>, PrepareError> {
    let sql = format!("select {expressions}");
    let answer = match tokio::time::timeout(STATEMENT_LIMIT, client.simple_query(&sql)).await {
        Err(_) => return Err(Passing::Timeout { doing }.into()),
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            return match error.as_db_error() {
                Some(server) => Ok(Err((server.code().clone(), server.message().to_owned()))),
                None => Err(Passing::Query { doing, source: error }.into()),
            };
        }
    };
    let found = answer.iter().find_map(|it| if let SimpleQueryMessage::Row(row) = it { Some(row) } else { None });
    let row = found.ok_or(Passing::Answer { doing })?;
    Ok(Ok((0..count).map(|at| row.try_get(at).ok().flatten().map(str::to_owned)).collect()))
}

/// SQL that grants what the server refused, by its words; without the SQL where they are not understood.
pub(crate) fn grant(refusal: &str, role: &str) -> String {
    let (name, role) = (role, quoted(role));
    let of = |kind: &str| refusal.strip_prefix(&format!("permission denied for {kind} "));
    if refusal.starts_with("permission denied to examine ") || refusal.contains("pg_read_all_settings") {
        return format!("GRANT pg_read_all_settings TO {role};");
    }
    if let Some(function) = of("function") {
        return format!(
            "SELECT format('GRANT EXECUTE ON FUNCTION %s TO %I;', oid::regprocedure, {}) FROM pg_proc WHERE proname = {} \
             AND pronamespace = 'pg_catalog'::regnamespace; prints the GRANT for a superuser to run",
            literal(name),
            literal(function)
        );
    }
    for kind in ["view", "table"] {
        if let Some(name) = of(kind) {
            return format!("GRANT SELECT ON pg_catalog.{} TO {role};", quoted(name));
        }
    }
    if let Some(name) = of("schema") {
        return format!("GRANT USAGE ON SCHEMA {} TO {role};", quoted(name));
    }
    format!("a superuser has to grant {role} what the server names: {refusal}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_names_the_narrowest_grant() {
        for (refusal, sql) in [
            ("permission denied to examine \"x\"", "GRANT pg_read_all_settings TO \"walhook\";"),
            (
                "must be superuser or have privileges of pg_read_all_settings to examine \"x\"",
                "GRANT pg_read_all_settings TO \"walhook\";",
            ),
            ("permission denied for view pg_settings", "GRANT SELECT ON pg_catalog.\"pg_settings\" TO \"walhook\";"),
            ("permission denied for table pg_class", "GRANT SELECT ON pg_catalog.\"pg_class\" TO \"walhook\";"),
            ("permission denied for schema pg_catalog", "GRANT USAGE ON SCHEMA \"pg_catalog\" TO \"walhook\";"),
        ] {
            assert_eq!(grant(refusal, "walhook"), sql);
        }
        let function = grant("permission denied for function to_jsonb", "walhook");
        assert!(
            function.starts_with("SELECT format('GRANT EXECUTE ON FUNCTION %s TO %I;', oid::regprocedure, 'walhook')"),
            "{function}"
        );
        let odd = grant("permission denied for function to_jsonb", "wal'h%s\"k");
        assert!(odd.contains("TO %I;', oid::regprocedure, 'wal''h%s\"k')"), "the server quotes it: {odd}");
        let other = grant("Zugriff verweigert", "walhook");
        assert!(other.contains("Zugriff verweigert") && !other.contains("GRANT "), "{other}");
    }
}

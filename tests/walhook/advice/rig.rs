//! A database in some state, what `walhook check` says of it, and the roles that may mend it.

use serde_json::Value;
use tokio_postgres::{Client, NoTls};

use crate::daemon::{Config, text_of, walhook};
use crate::postgres::Postgres;

/// One statement as it is printed.
#[derive(Debug, Clone)]
pub(super) struct Printed {
    /// The words before it.
    pub(super) whom: String,
    pub(super) sql: String,
}

/// A server, and a configuration on it.
pub(super) struct Rig {
    pub(super) postgres: Postgres,
    pub(super) config: Config,
}

/// One line of `walhook check`.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) level: String,
    pub(super) subject: String,
    pub(super) what: String,
    pub(super) mend: String,
}

impl Rig {
    /// The application's table and what else is in the database, made by the application.
    pub(super) async fn start(settings: &[(&str, &str)], sql: &str) -> Self {
        let postgres = Postgres::with(settings);
        postgres.sql("CREATE TABLE mine (id int PRIMARY KEY, v text); INSERT INTO mine VALUES (1, 'one')").await;
        postgres.sql(sql).await;
        Self { config: Config::new(""), postgres }
    }

    pub(super) fn sink(tables: &str, lines: &str) -> String {
        format!("[sink.a]\nurl = \"http://127.0.0.1:1/\"\ntables = [{tables}]\n{lines}\n")
    }

    /// What `check` says of this source and sink.
    pub(super) fn check(&self, url: &str, source: &str, sink: &str) -> Vec<Line> {
        self.config.rewrite(&format!("[source.app]\nurl = \"{url}\"\n{source}\n{sink}"));
        let output = walhook(&["check", "--json", "--config", &self.config.path().to_string_lossy()]);
        let printed: Vec<Value> =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text_of(&output)));
        let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let line = |line: &Value| Line {
            level: text(line, "level"),
            subject: text(line, "subject"),
            what: text(line, "what"),
            mend: text(line, "mend"),
        };
        printed.iter().map(line).collect()
    }

    /// The application's role does with its table whatever it did before.
    pub(super) async fn app_still_works(&self) {
        let work = "SELECT * FROM mine; INSERT INTO mine VALUES (900, 'two'); UPDATE mine SET v = 'zwei' WHERE id = 900;
                    DELETE FROM mine WHERE id = 900; ALTER TABLE mine ADD COLUMN more int; ALTER TABLE mine DROP COLUMN more";
        self.postgres.sql(work).await;
    }

    /// Runs statements one after another as `role`, for whom they are printed.
    pub(super) async fn run(&self, role: &str, printed: &[Printed]) {
        assert!(!printed.is_empty(), "nothing is printed");
        let client = self.client(role).await;
        for Printed { whom, sql } in printed {
            let meant = if role == "postgres" { "superuser" } else { role };
            assert!(whom.contains(meant), "{sql} is for {whom}, not {role}");
            client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{role}: {sql}: {error:?}"));
        }
    }

    /// A session of a role.
    pub(super) async fn client(&self, role: &str) -> Client {
        let url = self.postgres.admin_url().replace("postgres@", &format!("{role}@"));
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// The address of a role.
    pub(super) fn url_of(&self, role: &str) -> String {
        self.postgres.admin_url().replace("postgres@", &format!("{role}@"))
    }
}

/// The line that says this.
#[track_caller]
pub(super) fn line<'a>(lines: &'a [Line], what: &str) -> &'a Line {
    lines.iter().find(|line| line.what.contains(what)).unwrap_or_else(|| panic!("nothing says {what}: {lines:#?}"))
}

/// Nothing says this.
#[track_caller]
pub(super) fn gone(lines: &[Line], what: &str) {
    assert!(!lines.iter().any(|line| line.what.contains(what)), "{what} is still said: {lines:#?}");
}

/// What was wrong is gone, and nothing else is in its place: the sink gets all changes of these tables.
#[track_caller]
pub(super) fn gets(lines: &[Line], tables: &[&str]) {
    let said = &line(lines, "gets insert, update, delete of").what;
    let missing: Vec<_> = tables.iter().filter(|table| !said.contains(**table)).collect();
    assert!(missing.is_empty(), "nothing is got of {missing:?}: {lines:#?}");
}

/// Those of the statements that begin so.
pub(super) fn beginning(printed: &[Printed], start: &str) -> Vec<Printed> {
    printed.iter().filter(|printed| printed.sql.starts_with(start)).cloned().collect()
}

/// The statements of an advice: at the start of a line, or after the words that say whom they are for.
pub(super) fn printed_in(mend: &str) -> Vec<Printed> {
    const VERBS: [&str; 4] = ["ALTER", "GRANT", "CREATE", "SELECT"];
    let mut whom = String::new();
    let mut found = Vec::new();
    for line in mend.lines() {
        let starts = VERBS.iter().flat_map(|verb| line.match_indices(verb).map(|(at, _)| at));
        let parts = starts.map(|at| line.split_at(at)).filter(|(words, _)| words.is_empty() || words.ends_with(": "));
        let first = parts.min_by_key(|(words, _)| words.len());
        match first.and_then(|(words, sql)| Some((words, sql.split_at(sql.rfind(';')? + 1).0))) {
            Some((words, sql)) => {
                if !words.is_empty() {
                    words.clone_into(&mut whom);
                }
                found.push(Printed { whom: whom.clone(), sql: sql.to_owned() });
            }
            None => line.clone_into(&mut whom),
        }
    }
    found
}

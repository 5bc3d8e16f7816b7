//! The page of all advice is what the code prints, and printed SQL is found again in a text.

use super::*;
use crate::source::slot::tests::Stage;

/// The statements in an advice, with the words before each that say for whom it is.
pub(crate) fn statements(advice: &str) -> Vec<(String, String)> {
    const VERBS: [&str; 5] = ["ALTER", "GRANT", "CREATE", "SELECT", "COMMENT"];
    let mut heading = String::new();
    let mut found = Vec::new();
    for line in advice.lines() {
        let starts = VERBS.iter().flat_map(|verb| line.match_indices(verb).map(|(at, _)| at));
        let parts = starts.map(|at| line.split_at(at)).filter(|(words, _)| words.is_empty() || words.ends_with(": "));
        match parts.min_by_key(|(words, _)| words.len()) {
            Some((words, sql)) => {
                if !words.is_empty() {
                    heading = words.to_owned();
                }
                // Several on one line belong together.
                let sql = sql.rfind(';').map_or(sql, |end| sql.split_at(end + 1).0);
                found.push((heading.clone(), sql.to_owned()));
            }
            None => heading = line.to_owned(),
        }
    }
    found
}

/// The SQL alone, to be run as one.
pub(crate) fn sql_of(advice: &str) -> String {
    statements(advice).into_iter().map(|(_, sql)| sql).collect::<Vec<_>>().join("\n")
}

/// One of each kind, with names that need their quotes.
fn sample(kind: Kind, source: &SourceConfig) -> Vec<Statement> {
    let table = TableName { schema: "My Shop".to_owned(), table: "odd \"name\"".to_owned() };
    let (owner, role) = ("app", "walhook");
    let source = SourceConfig { slot: "walhook_app".to_owned(), ..source.clone() };
    let one = |statement| vec![statement];
    match kind {
        Kind::IdentityFull => one(Statement::identity_full(&table, owner)),
        Kind::IdentityDefault => one(Statement::identity_default(&table, owner)),
        Kind::SetLogged => one(Statement::set_logged(&table, owner)),
        Kind::PrimaryKey => one(Statement::primary_key(&table, owner)),
        Kind::UseSlots => one(Statement::use_slots(role, false)),
        Kind::UseSlotsOnRds => one(Statement::use_slots(role, true)),
        Kind::CreateOnDatabase => one(Statement::create_on_database("shop", role)),
        Kind::JoinOwner => one(Statement::join_owner(owner, role, 170_000)),
        Kind::InheritPrivileges => Statement::inherit(role, 150_000).into_iter().collect(),
        Kind::MakePublication => {
            let sql = "CREATE PUBLICATION \"walhook_app\" FOR TABLE ONLY \"public\".\"orders\" WITH (publish = 'insert, \
                       update, delete', publish_via_partition_root = true);";
            one(Statement::make_publication("app, or a superuser", sql))
        }
        Kind::ChangePublication => {
            let sql = "ALTER PUBLICATION \"walhook_app\" ADD TABLE ONLY \"public\".\"orders\";";
            one(Statement::change_publication("app, or a superuser", sql))
        }
        Kind::PassGenerated => one(Statement::pass_generated("walhook_app")),
        Kind::LeavePublication => {
            let sql = "ALTER PUBLICATION \"walhook_app\" DROP TABLE ONLY \"public\".\"orders\";";
            one(Statement::leave_publication(sql))
        }
        Kind::MakeSlot => one(Statement::make_slot(&source, role)),
        Kind::DropSlot => one(Statement::drop_slot(&source.slot)),
        Kind::KeepCopies => one(Statement::keep_copies(&source.slot)),
        Kind::LogSnapshot => one(Statement::log_snapshot()),
        Kind::WalLevel => one(Statement::wal_level()),
        Kind::OutputPlugins => one(Statement::output_plugins(&["pgoutput", "test_decoding"])),
        Kind::KeepSize => one(Statement::keep_size()),
        Kind::StandbySlots => one(Statement::standby_slots()),
        Kind::SenderTimeout => one(Statement::sender_timeout(role)),
        Kind::StandbyNames => one(Statement::standby_names("ANY 2 (\"s1\", \"s2\")")),
        Kind::LookAtStandbys => one(Statement::look_at_standbys()),
        Kind::ReadTable => Statement::read_table(&table, owner, role),
        Kind::LookAtSessions => one(Statement::look_at_sessions(&[4711, 4712])),
        Kind::LookAtPrepared => one(Statement::look_at_prepared()),
        Kind::OwnRole => one(Statement::own_role("postgres")),
    }
}

/// When it is printed.
fn occasion(kind: Kind) -> &'static str {
    match kind {
        Kind::IdentityFull => "a table has no replica identity, or old rows lack what a sink needs",
        Kind::IdentityDefault => "old rows lack the primary key, or have a column that they may not have",
        Kind::SetLogged => "a table is unlogged",
        Kind::PrimaryKey => "a partitioned table has no primary key, or a table cannot have whole old rows",
        Kind::UseSlots => "the role may not use replication slots",
        Kind::UseSlotsOnRds => "the same on Amazon RDS",
        Kind::CreateOnDatabase => "the role may not make the publication",
        Kind::JoinOwner => "the role does not have the privileges of a table's owner, who is no more than that",
        Kind::InheritPrivileges => "the role is NOINHERIT (up to 15)",
        Kind::MakePublication => "`create = false`, or an owner whom walhook's role should not be a member of",
        Kind::ChangePublication => "the same, with a publication that is there",
        Kind::PassGenerated => "a published table's own `UPDATE` and `DELETE` fail for a generated column (18)",
        Kind::LeavePublication => "a published table's own `UPDATE` and `DELETE` fail, and walhook may not take it out",
        Kind::MakeSlot => "`create = false`, and there is no slot",
        Kind::DropSlot => {
            "the publication is gone, or for sure younger than the slot, which the store knows and nobody reads; with `create = false` also a lost slot"
        }
        Kind::KeepCopies => "`failover = true` with `create = false`",
        Kind::LogSnapshot => "a slot is being made on a standby",
        Kind::WalLevel => "`wal_level` is not `logical`",
        Kind::OutputPlugins => "`output_plugin_libraries` does not allow pgoutput",
        Kind::KeepSize => "`max_slot_wal_keep_size` is -1, or nearly used up",
        Kind::StandbySlots => "`failover = true` without `synchronized_standby_slots`",
        Kind::SenderTimeout => "`wal_sender_timeout` is 0",
        Kind::StandbyNames => "`synchronous_standby_names` has walhook's `application_name` among others",
        Kind::LookAtStandbys => "`synchronous_standby_names` has `*`, or too few other names",
        Kind::ReadTable => "`unchanged_toast = \"fetch\"`, and the role may not read the table",
        Kind::LookAtSessions => "a new slot waits for transactions",
        Kind::LookAtPrepared => "a new slot waits for prepared transactions",
        Kind::OwnRole => "the role of the source's url is a superuser",
    }
}

/// The table of the page.
fn table(source: &SourceConfig) -> String {
    let mut text = "| name | when | as | SQL | what it costs others |\n| --- | --- | --- | --- | --- |\n".to_owned();
    for kind in Kind::ALL {
        let samples = sample(*kind, source);
        let whom: Vec<&str> = samples.iter().map(|statement| statement.whom.as_str()).collect();
        let sql: Vec<String> = samples.iter().map(|statement| format!("`{}`", statement.sql)).collect();
        let cells = [
            format!("`{}`", kind.slug()),
            occasion(*kind).to_owned(),
            whom.join("; "),
            sql.join(" "),
            kind.cost().unwrap_or("–").to_owned(),
        ];
        text += &format!("| {} |\n", cells.join(" | ").replace('\n', " "));
    }
    text
}

#[tokio::test]
async fn the_page_has_a_row_for_every_advice_as_it_is_printed() {
    let stage = Stage::new(&[], "").await;
    let page = include_str!("../../../docs/ADVICE.md");
    let expected = table(&stage.source());
    assert!(page.contains(&expected), "docs/ADVICE.md should have\n{expected}");
    for kind in Kind::ALL {
        let samples = sample(*kind, &stage.source());
        assert!(samples.iter().all(|statement| statement.kind == *kind), "{kind:?}");
    }
}

#[test]
fn statements_alike_have_one_heading_and_others_their_own() {
    let table = |name: &str| TableName { schema: "public".to_owned(), table: name.to_owned() };
    let full = |name: &str| Statement::identity_full(&table(name), "app");
    let cost = "every UPDATE and DELETE writes the whole old row to the WAL";
    let printed = text(&[full("a"), full("b"), Statement::use_slots("walhook", false)]);
    let expected = format!(
        "as app, the owner of the table ({cost}):\nALTER TABLE \"public\".\"a\" REPLICA IDENTITY FULL;\nALTER TABLE \
         \"public\".\"b\" REPLICA IDENTITY FULL;\nas a superuser: ALTER ROLE \"walhook\" REPLICATION;"
    );
    assert_eq!(printed, expected);
    let found = statements(&printed);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(
        found[1].0.starts_with("as app")
            && found[2] == ("as a superuser: ".to_owned(), { "ALTER ROLE \"walhook\" REPLICATION;".to_owned() })
    );
}

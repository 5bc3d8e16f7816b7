//! Every advice of docs/ADVICE.md, taken from what `walhook check` prints and run as the role that it is for: what was wrong is
//! gone, and the application's role reads, writes and alters its table as before.

#[path = "advice/age.rs"]
mod age;
#[path = "advice/harm.rs"]
mod harm;
#[path = "advice/rig.rs"]
mod rig;
#[path = "advice/tables.rs"]
mod tables;
#[path = "advice/whole_server.rs"]
mod whole_server;

use self::rig::printed_in;
use crate::daemon::root;

/// Every row of the page, with the test that runs it.
const RUN: &[(&str, &str)] = &[
    ("identity-full", "tables::a_table_without_an_identity_gets_one"),
    ("identity-default", "tables::a_key_that_old_rows_lack_comes_back"),
    ("set-logged", "tables::an_unlogged_table_is_logged"),
    ("primary-key", "tables::what_only_the_owner_knows_is_refused_when_it_is_pasted_as_it_is"),
    ("use-slots", "tables::a_role_that_lacks_everything_gets_it"),
    ("use-slots-rds", "whole_server::on_rds_the_role_is_granted"),
    ("create-on-database", "tables::a_role_that_lacks_everything_gets_it"),
    ("join-owner", "tables::a_role_that_lacks_everything_gets_it"),
    ("inherit", "tables::a_role_that_inherits_nothing_does_after_it"),
    ("make-publication", "tables::by_hand_the_publication_comes_first_and_then_the_slot"),
    ("change-publication", "tables::by_hand_the_publication_comes_first_and_then_the_slot"),
    ("pass-generated", "whole_server::generated_columns_are_passed_on"),
    ("leave-publication", "tables::a_published_table_without_an_identity_leaves_the_publication"),
    ("make-slot", "tables::by_hand_the_publication_comes_first_and_then_the_slot"),
    ("drop-slot", "tables::a_slot_without_its_publication_is_dropped_last"),
    ("keep-copies", "whole_server::standbys_keep_copies_where_walhook_may_not_say_so"),
    ("log-snapshot", "whole_server::looking_and_logging_change_nothing"),
    ("wal-level", "whole_server::the_level_of_the_wal_is_raised"),
    ("output-plugins", "whole_server::a_list_of_output_plugins_gets_ours"),
    ("keep-size", "tables::what_only_the_owner_knows_is_refused_when_it_is_pasted_as_it_is"),
    ("standby-slots", "tables::what_only_the_owner_knows_is_refused_when_it_is_pasted_as_it_is"),
    ("sender-timeout", "whole_server::a_timeout_is_set_for_walhook_alone"),
    ("standby-names", "whole_server::commits_wait_for_the_other_standbys_only"),
    ("look-at-standbys", "whole_server::commits_wait_for_the_other_standbys_only"),
    ("read-table", "tables::a_role_that_may_not_read_is_granted_it"),
    ("look-at-sessions", "whole_server::looking_and_logging_change_nothing"),
    ("look-at-prepared", "whole_server::looking_and_logging_change_nothing"),
    ("own-role", "whole_server::a_superuser_makes_a_role_for_walhook"),
];

#[test]
fn every_advice_of_the_page_is_run_by_a_test() {
    let page = std::fs::read_to_string(root().join("docs/ADVICE.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let named: Vec<&str> = rows.map(|(name, _)| name).collect();
    let run: Vec<&str> = RUN.iter().map(|(name, _)| *name).collect();
    assert_eq!(named, run);
    for (name, test) in RUN {
        let (file, function) = test.split_once("::").unwrap();
        let text = std::fs::read_to_string(root().join(format!("tests/walhook/advice/{file}.rs"))).unwrap();
        assert!(text.contains(&format!("async fn {function}()")), "{name} is run by no test {test}");
    }
}

#[test]
fn statements_are_found_in_what_is_printed() {
    let mend = "do this as app, the owner (it costs): ALTER TABLE \"a\".\"b: c\" SET LOGGED;\nas a superuser:\nALTER SYSTEM SET \
                x = '1';\nSELECT pg_reload_conf(); and start walhook again";
    let found = printed_in(mend);
    let sql: Vec<&str> = found.iter().map(|printed| printed.sql.as_str()).collect();
    assert_eq!(
        sql,
        ["ALTER TABLE \"a\".\"b: c\" SET LOGGED;", "ALTER SYSTEM SET x = '1';", "SELECT pg_reload_conf();"]
    );
    assert!(found[0].whom.contains("app") && found[2].whom.contains("superuser"), "{found:?}");
}

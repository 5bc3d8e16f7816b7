//! `check` finds a publication that is younger than its slot, and takes none for it that walhook only changed.

use super::rig::{Rig, gone, line, printed_in};
use crate::daemon::Daemon;

/// The line that says it.
const YOUNGER: &str = "younger than the slot";

/// A life of walhook, to its clean end.
pub(super) async fn run_once(rig: &Rig, sink: &str) {
    let admin = "[admin]\nlisten = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n";
    rig.check(&rig.postgres.url(), "", &format!("{sink}{admin}"));
    let daemon = Daemon::start(&rig.config).await;
    assert!(daemon.sigterm().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn pitfall_23_check_finds_a_publication_that_was_made_after_the_slot() {
    let rig = Rig::start(&[], "CREATE TABLE more (id int PRIMARY KEY)").await;
    let sink = Rig::sink("\"public.mine\"", "");
    run_once(&rig, &sink).await;
    gone(&rig.check(&rig.postgres.url(), "", &sink), YOUNGER);
    rig.postgres.sql("INSERT INTO mine VALUES (2, 'two')").await;
    // As pg_restore --clean does, comment and all.
    let comment = rig.postgres.value("SELECT obj_description(oid, 'pg_publication') FROM pg_publication").await;
    let anew = format!(
        "DROP PUBLICATION walhook_app; CREATE PUBLICATION walhook_app; ALTER PUBLICATION walhook_app ADD TABLE mine;
         COMMENT ON PUBLICATION walhook_app IS '{comment}'"
    );
    rig.client("walhook").await.batch_execute(&anew).await.unwrap();
    let lines = rig.check(&rig.postgres.url(), "", &sink);
    let said = line(&lines, YOUNGER);
    assert_eq!((said.level.as_str(), said.subject.as_str()), ("fail", "source.app.publication"), "{said:?}");
    assert!(said.mend.contains("if nothing changed in the database between the two"), "{said:?}");
    rig.run("walhook", &printed_in(&said.mend).into_iter().map(as_walhook).collect::<Vec<_>>()).await;
    gone(&rig.check(&rig.postgres.url(), "", &sink), YOUNGER);
    rig.app_still_works().await;
}

/// The drop is for whatever role the url has.
fn as_walhook(printed: super::rig::Printed) -> super::rig::Printed {
    assert!(printed.whom.contains("the role of the source's url"), "{printed:?}");
    super::rig::Printed { whom: "walhook".to_owned(), ..printed }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_walhook_or_its_owner_changed_is_not_taken_for_a_younger_one() {
    let rig = Rig::start(&[], "CREATE TABLE more (id int PRIMARY KEY)").await;
    run_once(&rig, &Rig::sink("\"public.mine\"", "actions = [\"insert\"]")).await;
    // Widened, with another table, and narrowed.
    let wide = Rig::sink("\"public.mine\", \"public.more\"", "actions = [\"insert\", \"update\", \"truncate\"]");
    for sink in [wide, Rig::sink("\"public.mine\"", "actions = [\"insert\", \"update\"]")] {
        run_once(&rig, &sink).await;
        gone(&rig.check(&rig.postgres.url(), "", &sink), "younger than");
    }
    let owner = rig.client("walhook").await;
    for change in ["SET (publish = 'insert, update, delete')", "RENAME TO other", "ADD TABLE more", "OWNER TO app"] {
        let name = if change.contains("RENAME") || change.contains("SET") { "walhook_app" } else { "other" };
        owner.batch_execute(&format!("ALTER PUBLICATION {name} {change}")).await.unwrap();
    }
    let sink = Rig::sink("\"public.mine\"", "");
    gone(&rig.check(&rig.postgres.url(), "publication = \"other\"", &sink), "younger than");
}

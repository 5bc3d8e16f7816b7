//! The store's directory, its disk, and whether it goes on with the slots. Looks only.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, access, statvfs};
use tokio_postgres::Client;

use super::findings::Finding;
use crate::admin::bytes_in_words;
use crate::change::Lsn;
use crate::config::{Hold, SinkConfig, SourceConfig, StateConfig};
use crate::fault::chain;
use crate::source::slot::Survey;
use crate::source::slot::unseen::{Question, Unseen, ask};
use crate::source::standing::{Facts, Life, SlotFound, Standing, Step, beyond, decide};
use crate::store::{SourceBinding, StoreError, least_max_bytes, mend};
use crate::view::Trouble;

/// The directory, what is in it, and its disk.
pub(super) fn look(state: &StateConfig, sinks: usize) -> Vec<Finding> {
    let subject = "state.path";
    let (there, exists) = nearest(&state.path);
    let mut all = vec![directory(subject, state, &there, exists)];
    let used = match mend::open_to_show(state) {
        Ok(summary) => {
            let mend = "stop walhook and run `walhook state accept-loss`: it forgets what is damaged, and changes that were \
                        delivered may come again";
            all.extend(summary.damage.iter().map(|what| Finding::fail(subject, what.clone(), mend)));
            summary.used_bytes
        }
        Err(StoreError::Missing { .. }) => 0,
        // Said above.
        Err(StoreError::File { .. }) if !there.is_dir() => 0,
        Err(error) => {
            let mend = "restore the directory, or point state.path to another one";
            all.push(Finding::fail(subject, chain(&error), mend));
            0
        }
    };
    all.extend(share(state, sinks));
    all.extend(space(state, &there, used));
    all
}

/// Sinks that group otherwise than what waits for them was grouped, in the words of the start that refuses them. What is wrong with
/// the store itself is said by [`look`].
pub(super) fn look_at_grouping(state: &StateConfig, sinks: &[SinkConfig]) -> Vec<Finding> {
    let rules: Vec<_> = sinks.iter().map(|sink| (sink.source.as_str(), sink.name.as_str(), sink.grouping())).collect();
    let refused = mend::regrouped(state, &rules).unwrap_or_default();
    let finding = |(sink, error): (String, StoreError)| Finding {
        mend: None,
        ..Finding::fail(format!("sink.{sink}.group_by"), chain(&error), "")
    };
    refused.into_iter().map(finding).collect()
}

/// Whether the quota is large enough for so many sinks.
fn share(state: &StateConfig, sinks: usize) -> Option<Finding> {
    let least = least_max_bytes(sinks);
    (state.hold == Hold::Store && state.max_bytes < least).then(|| {
        let what = format!("{} is too small for {sinks} sinks", bytes_in_words(state.max_bytes));
        let mend = format!("set it to at least {}MiB", least >> 20);
        Finding { is_config: true, ..Finding::fail("state.max_bytes", what, mend) }
    })
}

/// The path itself, or the nearest directory above it that is there.
fn nearest(path: &Path) -> (PathBuf, bool) {
    let there = path.ancestors().find(|above| above.exists()).filter(|above| !above.as_os_str().is_empty());
    (there.unwrap_or(Path::new(".")).to_owned(), path.exists())
}

fn directory(subject: &str, state: &StateConfig, there: &Path, exists: bool) -> Finding {
    let path = state.path.display();
    if !there.is_dir() {
        return Finding::fail(subject, format!("{} is not a directory", there.display()), "choose another state.path");
    }
    if let Err(error) = access(there, Access::WRITE_OK | Access::EXEC_OK) {
        let what = format!("{} may not be written: {error}", there.display());
        return Finding::fail(subject, what, "let walhook's user write there, or choose another state.path");
    }
    let what = if exists { "is there and may be written" } else { "does not exist; walhook makes it" };
    Finding::ok(subject, format!("{path} {what}"))
}

fn space(state: &StateConfig, there: &Path, used: u64) -> Option<Finding> {
    let disk = statvfs(there).ok()?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    (free.saturating_add(used) < state.max_bytes).then(|| {
        let (free, max) = (bytes_in_words(free), bytes_in_words(state.max_bytes));
        let what =
            format!("the disk has {free} free, less than state.max_bytes ({max}): it may fill before the store does");
        Finding::warn("state.max_bytes", what, "lower state.max_bytes, or choose a larger disk")
    })
}

/// What the store knows of the source.
pub(super) fn binding(state: &StateConfig, source: &SourceConfig) -> Option<SourceBinding> {
    let summary = mend::open_to_show(state).ok()?;
    summary.sources.into_iter().find(|(name, _)| *name == source.name).map(|(_, bound)| bound)
}

/// Whether the server is the one that the store was bound to, as far as it says.
pub(super) async fn is_of(client: &Client, bound: &SourceBinding) -> bool {
    identify(client).await.ok().flatten().is_some_and(|(system_id, _)| system_id == bound.system_id)
}

/// Whether store and slot agree.
pub(super) async fn look_at_binding(
    client: &Client,
    state: &StateConfig,
    source: &SourceConfig,
    survey: &Survey,
    bound: Option<&SourceBinding>,
) -> Option<Finding> {
    let (system_id, server_end) = match identify(client).await {
        Ok(known) => known?,
        Err(unseen) => {
            let subject = format!("source.{}.slot", source.name);
            return Some(Finding { mend: unseen.mend(&survey.server.role), ..Finding::ok(subject, unseen.what()) });
        }
    };
    let slot = survey.slot.as_ref().and_then(|slot| slot.confirmed);
    let facts = Facts {
        source: &source.name,
        store: &state.path,
        system_id,
        database: &survey.server.database,
        server_end,
        in_recovery: survey.server.in_recovery,
        // That takes a replication connection; the start asks.
        promotion: None,
        slot: &source.slot,
        found: slot.map_or(SlotFound::Missing, SlotFound::At),
    };
    finding(&facts, &decide(&Standing { life: Life::First(bound), on_standby: false }, &facts))
}

fn finding(facts: &Facts<'_>, step: &Step) -> Option<Finding> {
    let subject = format!("source.{}.slot", facts.source);
    let slot = facts.slot;
    match step {
        Step::Begin { slot_existed: false } => None,
        Step::Begin { slot_existed: true } => {
            let what =
                format!("{slot} is there, but the store knows nothing of the source: it begins at the slot's position");
            let mend =
                "if there is a store of before, point state.path to it: what failed or overflowed is in that one";
            Some(Finding::warn(subject, what, mend))
        }
        Step::GoOn => Some(Finding::ok(subject, format!("the store goes on with {slot}"))),
        Step::AcceptGap => {
            let what = format!("a gap is accepted: the next start goes on from the position of {slot}");
            Some(Finding::warn(subject, what, "compare the receivers' data with the tables after it"))
        }
        Step::Wait(why) => {
            let mend = "let the source's url lead to the primary, or wait until it does";
            Some(Finding::warn(subject, format!("the server is a standby, and {why}"), mend))
        }
        Step::WentBack(went_back) => {
            let Trouble { what, advice } = beyond(facts.source, *went_back);
            Some(Finding::fail(subject, what, advice))
        }
        Step::Stop(Trouble { what, advice }) | Step::Lost(Trouble { what, advice }) => {
            Some(Finding::fail(subject, what, advice))
        }
    }
}

/// What `IDENTIFY_SYSTEM` would tell, where the role may ask for it in SQL.
async fn identify(client: &Client) -> Result<Option<(u64, Lsn)>, Unseen> {
    let leaves_open = "whether store and slot agree; the start asks on a replication connection";
    let end = "case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end";
    let questions = [
        Question::new("the cluster's identity", "select system_identifier from pg_control_system()", leaves_open),
        Question::new("the end of the WAL", end, leaves_open),
    ];
    let Ok(mut answers) = ask(client, "ask for the cluster's identity", &questions).await else { return Ok(None) };
    if !answers.unseen.is_empty() {
        return Err(answers.unseen.swap_remove(0));
    }
    let (system_id, end) = (answers.text(), answers.text());
    Ok(system_id.and_then(|id| id.parse().ok()).zip(end.and_then(|end| end.parse().ok())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::cli::check::findings::Level;

    fn state(path: &Path, max_bytes: u64) -> StateConfig {
        StateConfig {
            path: path.to_owned(),
            hold: Hold::Store,
            max_bytes,
            dead_letter_retention: Duration::from_secs(60),
            log_retention: Duration::from_secs(60),
            log_max_rows: 10,
        }
    }

    fn levels(state: &StateConfig) -> Vec<(Level, String)> {
        look(state, 1).into_iter().map(|finding| (finding.level, finding.what)).collect()
    }

    #[test]
    fn a_directory_that_is_not_there_is_fine_where_one_can_be_made_and_nothing_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        let found = levels(&state(&path, 8 << 20));
        assert!(matches!(found.as_slice(), [(Level::Ok, what)] if what.contains("walhook makes it")), "{found:?}");
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_directory_and_what_is_no_store_fails() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let found = levels(&state(&file.join("state"), 1));
        assert!(matches!(found.first(), Some((Level::Fail, what)) if what.contains("not a directory")), "{found:?}");
        std::fs::write(directory.path().join("state.db"), "somebody else's, and long enough to be looked at").unwrap();
        let found = levels(&state(directory.path(), 1));
        assert!(found.iter().any(|(level, _)| *level == Level::Fail), "{found:?}");
    }

    #[test]
    fn a_disk_that_is_smaller_than_the_quota_is_warned_of() {
        let directory = tempfile::tempdir().unwrap();
        let found = levels(&state(directory.path(), u64::MAX));
        assert!(found.iter().any(|(level, what)| *level == Level::Warn && what.contains("max_bytes")), "{found:?}");
    }

    #[test]
    fn a_quota_that_is_too_small_for_the_sinks_fails_unless_nothing_is_put_in() {
        let directory = tempfile::tempdir().unwrap();
        let small = state(directory.path(), 8 << 20);
        let fails = |state: &StateConfig, sinks| look(state, sinks).iter().any(|found| found.level == Level::Fail);
        assert!(!fails(&small, 17));
        assert!(fails(&small, 18));
        assert!(!fails(&StateConfig { hold: Hold::Wal, ..small }, 18));
    }

    #[test]
    fn a_gap_fails_with_the_command_that_mends_it() {
        let trouble = Trouble { what: "the slot is gone".into(), advice: "walhook state accept-gap app".into() };
        let facts = Facts {
            source: "app",
            store: Path::new("x"),
            system_id: 1,
            database: "app",
            server_end: Lsn(9),
            in_recovery: false,
            promotion: None,
            slot: "walhook_app",
            found: SlotFound::Missing,
        };
        let finding = finding(&facts, &Step::Stop(trouble)).unwrap();
        assert_eq!((finding.level, finding.mend.as_deref()), (Level::Fail, Some("walhook state accept-gap app")));
    }
}

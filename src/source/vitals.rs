//! What the stream needs of the database and would notice late or never while nothing is written: looked at every few seconds,
//! on the connection of the stream's own questions, so that no slow statement is ahead of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::Client;
use tracing::{info, warn};

use super::slot::names::{literal, quoted};
use super::slot::unseen::{self, Question};
use super::slot::{PrepareError, publication_trouble};
use crate::config::SourceConfig;
use crate::fault::chain;
use crate::view::{Alarm, SharedViews, Trouble, Vital};

/// How often.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Vitals {
    pub(super) client: Arc<Client>,
    pub(super) source: SourceConfig,
    pub(super) views: SharedViews,
}

/// What one look found; `None`: not seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Look {
    publication: Option<bool>,
    slot: Option<bool>,
    /// A session reads the slot.
    is_read: Option<bool>,
    replicates: Option<bool>,
    may_log_in: Option<bool>,
    is_valid: Option<bool>,
    may_connect: Option<bool>,
}

impl Vitals {
    /// Runs until dropped or until the connection is gone.
    pub(super) async fn run(self) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut first, mut told) = (None, Vec::new());
        let mut is_blind = false;
        while !self.client.is_closed() {
            ticks.tick().await;
            match self.look().await {
                Ok(look) => {
                    is_blind = false;
                    let first = first.get_or_insert_with(|| look.clone());
                    let alarms = alarms(&self.source, first, &look);
                    self.tell(&told, &alarms);
                    if let Some(mut view) = self.views.sources.get_mut(&self.source.name) {
                        view.slot_is_read = look.is_read.unwrap_or(true);
                        view.alarms.clone_from(&alarms);
                    }
                    told = alarms;
                }
                // Said once; a connection that does not answer is told as silence.
                Err(error) if !std::mem::replace(&mut is_blind, true) => {
                    warn!(source = %self.source.name, error = %chain(&error), "could not look at slot, publication and role");
                }
                Err(_) => {}
            }
        }
    }

    async fn look(&self) -> Result<Look, PrepareError> {
        let (publication, slot) = (literal(&self.source.publication), literal(&self.source.slot));
        let leaves_open = "whether the source can go on";
        let of_role = |what: &str| format!("select {what} from pg_roles where rolname = current_user");
        let questions = [
            ("pg_publication", format!("exists (select from pg_publication where pubname = {publication})")),
            ("pg_replication_slots", format!("exists (select from pg_replication_slots where slot_name = {slot})")),
            ("pg_replication_slots", format!("select active from pg_replication_slots where slot_name = {slot}")),
            ("pg_roles", of_role("rolsuper or rolreplication")),
            ("pg_roles", of_role("rolcanlogin")),
            ("pg_roles", of_role("coalesce(rolvaliduntil > now(), true)")),
            ("has_database_privilege", "has_database_privilege(current_database(), 'CONNECT')".to_owned()),
        ];
        let questions = questions.map(|(about, sql)| Question::new(about, sql, leaves_open));
        let mut answers = unseen::ask(&self.client, "look at slot, publication and role", &questions).await?;
        Ok(Look {
            publication: answers.truth(),
            slot: answers.truth(),
            is_read: answers.truth(),
            replicates: answers.truth(),
            may_log_in: answers.truth(),
            is_valid: answers.truth(),
            may_connect: answers.truth(),
        })
    }

    /// Begins and ends of alarms.
    fn tell(&self, before: &[Alarm], now: &[Alarm]) {
        let source = &self.source.name;
        for Alarm { trouble: Trouble { what, advice }, .. } in now.iter().filter(|alarm| !before.contains(alarm)) {
            warn!(source, advice, "{what}");
        }
        for Alarm { vital, trouble } in before.iter().filter(|alarm| now.iter().all(|now| now.vital != alarm.vital)) {
            info!(source, vital = vital.as_str(), "it is over: {}", trouble.what);
        }
    }
}

/// What a look means. Of the role only what it had at the first look: how it came to replicate, a membership perhaps, is not
/// our affair.
fn alarms(source: &SourceConfig, first: &Look, now: &Look) -> Vec<Alarm> {
    let mut all = Vec::new();
    let mut add = |vital, what: String, advice: String| all.push(Alarm { vital, trouble: Trouble { what, advice } });
    if now.publication == Some(false) {
        let Trouble { what, advice } = publication_trouble(source);
        add(Vital::Publication, what, advice);
    }
    if now.slot == Some(false) {
        let what = format!("the slot {} is gone while it is read", source.slot);
        add(Vital::Slot, what, super::standing::accept_gap(&source.name));
    }
    let (user, role) = (&source.url.user, quoted(&source.url.user));
    let lost = |was: Option<bool>, is: Option<bool>| was == Some(true) && is == Some(false);
    let later = "this session goes on, the next could not begin";
    if lost(first.replicates, now.replicates) {
        add(
            Vital::Role,
            format!("the role {user} has lost REPLICATION: {later}"),
            format!("ALTER ROLE {role} REPLICATION;"),
        );
    }
    if lost(first.may_log_in, now.may_log_in) {
        add(
            Vital::Role,
            format!("the role {user} may not log in any more: {later}"),
            format!("ALTER ROLE {role} LOGIN;"),
        );
    }
    if lost(first.is_valid, now.is_valid) {
        let what = format!("the password of the role {user} has expired (VALID UNTIL): {later}");
        add(Vital::Role, what, format!("ALTER ROLE {role} VALID UNTIL 'infinity';"));
    }
    if lost(first.may_connect, now.may_connect) {
        let database = quoted(&source.url.dbname);
        let what = format!("the role {user} may not connect to the database any more: {later}");
        add(Vital::Role, what, format!("GRANT CONNECT ON DATABASE {database} TO {role};"));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    fn healthy() -> Look {
        let yes = Some(true);
        Look {
            publication: yes,
            slot: yes,
            is_read: yes,
            replicates: yes,
            may_log_in: yes,
            is_valid: yes,
            may_connect: yes,
        }
    }

    #[test]
    fn each_loss_is_an_alarm_with_what_mends_it_and_what_is_not_seen_is_none() {
        let no = Some(false);
        for (look, vital, what, advice) in [
            (Look { publication: no, ..healthy() }, Vital::Publication, "publication", "accept-gap"),
            (Look { slot: no, ..healthy() }, Vital::Slot, "is gone", "accept-gap"),
            (
                Look { replicates: no, ..healthy() },
                Vital::Role,
                "lost REPLICATION",
                "ALTER ROLE \"walhook\" REPLICATION;",
            ),
            (Look { may_log_in: no, ..healthy() }, Vital::Role, "may not log in", "ALTER ROLE \"walhook\" LOGIN;"),
            (Look { is_valid: no, ..healthy() }, Vital::Role, "has expired", "VALID UNTIL 'infinity'"),
            (Look { may_connect: no, ..healthy() }, Vital::Role, "may not connect", "GRANT CONNECT ON DATABASE"),
        ] {
            let found = alarms(&SourceConfig::example(), &healthy(), &look);
            let [alarm] = found.as_slice() else { panic!("{found:?}") };
            assert_eq!(alarm.vital, vital);
            assert!(alarm.trouble.what.contains(what) && alarm.trouble.advice.contains(advice), "{alarm:?}");
        }
        assert_eq!(alarms(&SourceConfig::example(), &healthy(), &healthy()), []);
        assert_eq!(alarms(&SourceConfig::example(), &healthy(), &Look::default()), []);
    }

    #[test]
    fn a_role_that_never_had_an_attribute_has_not_lost_it() {
        let by_membership = Look { replicates: Some(false), ..healthy() };
        assert_eq!(alarms(&SourceConfig::example(), &by_membership, &by_membership), []);
    }
}

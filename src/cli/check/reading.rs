//! Pure: what `check` says of the publication and the slot through which a source is read.

use super::findings::Finding;
use crate::config::SourceConfig;
use crate::source::slot::by_hand::{self, Whose};
use crate::source::slot::creation::create_sql;
use crate::source::slot::{Hold, SlotFacts, Survey};
use crate::view::Trouble;

/// Both; `whose` is the slot, as far as the store and the server tell.
pub(super) fn of_reading(source: &SourceConfig, survey: &Survey, whose: &Whose) -> Vec<Finding> {
    let mut all = of_publication(source, survey, whose);
    let mut slot = of_slot(source, survey, whose);
    let make = create_sql(source);
    if survey.slot.is_none() && all.iter().any(|it| it.mend.as_ref().is_some_and(|mend| mend.contains(&make))) {
        slot.mend = slot.mend.map(|_| "once the publication is there, by the last of the statements for it".to_owned());
    }
    all.push(slot);
    all
}

fn of_publication(source: &SourceConfig, survey: &Survey, whose: &Whose) -> Vec<Finding> {
    let subject = format!("source.{}.publication", source.name);
    let name = &source.publication;
    let steps = &survey.steps;
    let mut all = Vec::new();
    match &survey.publication {
        // What is wrong with the slot is said of the slot, and then it says nothing of the publication.
        None if survey
            .slot
            .as_ref()
            .is_some_and(|slot| slot.obstacle(&source.slot, &survey.server.database).is_none()) =>
        {
            let what = format!("the slot {} exists, but the publication {name} does not", source.slot);
            all.push(Finding::fail(&subject, what, by_hand::anew(source, whose)));
        }
        None if source.create => all.push(Finding::ok(&subject, format!("{name} does not exist; walhook makes it"))),
        None => {}
        Some(_) if steps.is_done() => {
            all.push(Finding::ok(&subject, format!("{name} holds what the sinks need")));
        }
        Some(_) => {
            let change = steps.announced(source);
            if !change.is_empty() {
                all.push(Finding::ok(&subject, format!("{name} is changed at the next start: {change}")));
            }
        }
    }
    let holds = |hold| steps.held.iter().any(|held| held.is_named_by(hold));
    if !steps.refused.is_empty() || holds(Hold::Publication) {
        let what = format!("{name} does not hold what the sinks need, and walhook may not change it");
        all.push(Finding::fail(&subject, what, survey.by_hand(source, &steps.by_hand)));
    }
    let makes = survey.publication.is_none() && !survey.server.may_create;
    if (makes && !steps.own.is_empty()) || holds(Hold::Owner) {
        let what = format!("the role {} may not make the publication as the sinks need it", survey.server.role);
        all.push(Finding::fail(&subject, what, survey.grants(source)));
    }
    all
}

fn of_slot(source: &SourceConfig, survey: &Survey, whose: &Whose) -> Finding {
    let subject = format!("source.{}.slot", source.name);
    let name = &source.slot;
    let Some(slot) = &survey.slot else {
        if source.create {
            return Finding::ok(subject, format!("{name} does not exist; walhook makes it"));
        }
        let Trouble { what, advice } = survey.slot_by_hand(source).into_trouble();
        return Finding::fail(subject, what, advice);
    };
    if slot.is_synced {
        let what =
            format!("{name} is a copy that this standby keeps for a failover: it is read once the server is promoted");
        return Finding::warn(subject, what, "name the primary in the source's url, beside the standby");
    }
    if slot.is_lost()
        && *whose == Whose::Unknown
        && slot.foreign(name, &survey.server.database).is_none()
        && let Some(Trouble { what, .. }) = slot.obstacle(name, &survey.server.database)
    {
        let Trouble { what, advice } = by_hand::lost_to_others(&what);
        return Finding::fail(subject, what, advice);
    }
    if let Some(Trouble { what, advice }) = slot.obstacle(name, &survey.server.database) {
        return Finding::fail(subject, what, advice);
    }
    Finding::ok(subject, format!("{name} {}", standing(slot)))
}

fn standing(slot: &SlotFacts) -> String {
    let at = slot.confirmed.map_or_else(|| "is being made".to_owned(), |lsn| format!("is confirmed up to {lsn}"));
    let reader = slot.active_pid.map_or_else(
        || "nobody reads it".to_owned(),
        |pid| format!("read by pid {pid} ({})", slot.active_application.as_deref().unwrap_or("unknown application")),
    );
    format!("{at}, keeps {} MiB of WAL, {reader}", slot.retained_bytes >> 20)
}

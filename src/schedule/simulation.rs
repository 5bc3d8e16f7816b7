//! Whole lives of a sink's scheduler, from a seed, beside a naive model that checks every step.
//!
//! The model ([`model`]) keeps all messages in one list and looks through it anew for every question; it shares no code
//! with the scheduler. Around the scheduler stand a sink that carries out its commands ([`sink`]) and a store of which
//! only what is durable outlives a crash ([`store`]). Attempts end as the endpoint is ([`attempts`]). A life ([`life`]) has hot and cold groups, key changes, outages,
//! poison, `Retry-After`, pauses, a store that is slow, full, damaged or cannot be read, and crashes, after each of which a new
//! scheduler is built from what was durable and the WAL is read again. Planted faults show that the model would notice.
//!
//! What must hold, beside the figures:
//!
//! - Complete: every message is delivered, or a dead letter, in the end.
//! - Ordered: an attempt starts only when all earlier messages of its groups are done or before it in the same
//!   delivery. And as the receiver sees a group: after a message comes its successor, or an older one again; so that
//!   whenever an older one comes again, everything from it on comes again, in order.
//! - Barriers: an attempt starts only when no earlier barrier of its messages' tables is left; for a barrier, when nothing of its
//!   tables is. Tables are truncated, renamed and regrouped, also from one life of the process to the next.
//! - Damaged: a message that is damaged in the store parts from the others of its delivery, and is given up when it stands
//!   alone: its group goes on, or waits, or the sink is paused, as the rule says. Nothing else waits for it.
//! - Rare repeats: what was done when a batch was submitted that became durable never comes again; nor does in one
//!   life what is done.
//! - Watermark: it is exactly what is resolved: done, or durable in the store. A batch's progress is exactly what is
//!   resolved once it is durable.
//! - Age: as old as the oldest message is that is not done, so old it is told to be, wherever it is.
//! - Own: while walhook's own machine is in trouble one attempt at a time starts, none before its time; neither that nor its
//!   sleep counts for a delivery.
//! - Kind: while the store is open and prompt no message is unresolved for longer than [`KIND`].

mod attempts;
mod life;
mod model;
mod restoring;
mod sink;
mod steps;
mod store;

use std::time::Duration;

use self::life::Life;
use super::*;

/// [`KEEP_AFTER`], and what it takes to notice that and to write it.
const KIND: Duration = Duration::from_millis(4000);

/// What is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// A delivery's messages are reversed.
    ReverseDelivery,
    /// The scheduler is not told the groups.
    ForgetGroups,
    /// It is not told the old group of a key change.
    ForgetOldKey,
    /// It allows twice the messages.
    DoubleAckPending,
    /// It allows twice the requests.
    DoubleInFlight,
    /// A mark is set before the messages it covers arrived.
    MarkEarly,
    /// A failed delivery counts as resolved.
    FailureResolves,
    /// A message never arrives.
    LoseOne,
    /// What is submitted is said to be durable.
    TellEarly,
    /// The store takes seconds.
    SlowStore,
    /// A batch has the progress of what was durable before it.
    ProgressBefore,
    /// A batch has the progress without its exceptions.
    ProgressWhole,
    /// Nothing is skipped after a restart.
    SkipNothing,
    /// It is not told that messages of a life before are still to come.
    HideReplay,
    /// Messages claim an old position.
    OldPosition,
    /// A lane is read from its start.
    IgnoreAfter,
    /// A page is read twice.
    PageTwice,
    /// A page is gone when it has been read.
    PageGone,
    /// What leaves the store stays there.
    LeaveNothing,
    /// A parked delivery is not there after a restart.
    ParkNothing,
    /// The parts of a split delivery change places.
    SwapParts,
    /// The breaker does not hear of troubles.
    HideTrouble,
    /// The scheduler is told that the store takes more when it does not.
    HideRoom,
    /// It is not told what is a barrier.
    ForgetBarrier,
    /// It is not told that a barrier is one of a second table too.
    ForgetOldName,
    /// After a restart it is not told of the tables of messages in lanes, …
    ForgetLanes,
    /// … in deliveries of the store, …
    ForgetParkedTable,
    /// … or of the barriers in lanes.
    ForgetStoredBarrier,
    /// A page does not say what is a barrier.
    ForgetPageBarrier,
    /// After a restart more messages seem to be before a barrier than there are.
    CountTwice,
    /// A lane that a barrier holds up seems to be free.
    ForgetHeldUp,
    /// A read fails as a whole because of one message that is damaged.
    FailWhole,
    /// A trouble of walhook's own machine is taken for the endpoint's, …
    BlameEndpoint,
    /// … or for one of the delivery.
    BlameDelivery,
    /// It is not told how long it has slept.
    HideSleep,
    /// The age comes from the messages that only the WAL has.
    AgeOfOneList,
    /// After a restart it is not told how old what the store has is.
    ForgetStoredAge,
}

type Check = Result<(), String>;

fn require(holds: bool, rule: &str) -> Check {
    if holds { Ok(()) } else { Err(rule.to_owned()) }
}

fn live(mut life: Life) -> (Life, Check) {
    let mut whole = || {
        (0..150).try_for_each(|_| life.step())?;
        life.finish()
    };
    let check = whole();
    (life, check)
}

/// A broken world may also break what the scheduler relies on.
fn live_or_panic(seed: u64, fault: Fault) -> Check {
    let whole = || live(Life::new(seed, fault)).1;
    std::panic::catch_unwind(whole).unwrap_or_else(|_| Err("it panicked".to_owned()))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a life that failed is looked at alone, and a night has room for more lives"
)]
#[test]
fn thousands_of_lives_agree_with_the_naive_model() {
    let number = |name| std::env::var(name).ok().and_then(|number| number.parse().ok());
    let (first, lives) = (number("WALHOOK_FIRST_LIFE").unwrap_or(0), number("WALHOOK_LIVES").unwrap_or(1000));
    for seed in first..first + lives {
        if let (_, Err(broken)) = live(Life::new(seed, Fault::Nothing)) {
            let (life, _) = live(Life::new(seed, Fault::Nothing).told());
            panic!("{}\nseed {seed}: {broken}", life.story());
        }
    }
}

#[test]
fn planted_bugs_are_caught() {
    let faults = [
        (Fault::ReverseDelivery, "ordered"),
        (Fault::ForgetGroups, "exclusive"),
        (Fault::ForgetOldKey, "exclusive"),
        (Fault::DoubleAckPending, "max_ack_pending"),
        (Fault::DoubleInFlight, "max_in_flight"),
        (Fault::MarkEarly, "watermark"),
        (Fault::FailureResolves, "watermark"),
        (Fault::LoseOne, "figures"),
        (Fault::TellEarly, "watermark"),
        (Fault::SlowStore, "kind"),
        (Fault::ProgressBefore, "progress"),
        (Fault::ProgressWhole, "progress"),
        (Fault::SkipNothing, "repeat"),
        (Fault::HideReplay, "ordered"),
        (Fault::OldPosition, "progress"),
        (Fault::IgnoreAfter, "repeat"),
        (Fault::PageTwice, "repeat"),
        (Fault::PageGone, "complete"),
        (Fault::LeaveNothing, "repeat"),
        (Fault::ParkNothing, "complete"),
        (Fault::SwapParts, "ordered"),
        (Fault::HideTrouble, "breaker"),
        (Fault::HideRoom, "room"),
        (Fault::ForgetBarrier, "barrier"),
        (Fault::ForgetOldName, "barrier"),
        (Fault::ForgetLanes, "barrier"),
        (Fault::ForgetParkedTable, "barrier"),
        (Fault::ForgetStoredBarrier, "barrier"),
        (Fault::ForgetPageBarrier, "barrier"),
        (Fault::CountTwice, "stands still"),
        (Fault::ForgetHeldUp, "churn"),
        (Fault::FailWhole, "complete"),
        (Fault::BlameEndpoint, "own"),
        (Fault::BlameDelivery, "own"),
        (Fault::HideSleep, "own"),
        (Fault::AgeOfOneList, "age"),
        (Fault::ForgetStoredAge, "age"),
    ];
    for (fault, rule) in faults {
        let mut other = Vec::new();
        let mut lives = (0..300).filter_map(|seed| live_or_panic(seed, fault).err());
        let is_caught = lives.any(|found| found.contains(rule) || (other.push(found), false).1);
        assert!(is_caught, "{fault:?} was not caught as {rule}, but as {other:?}");
    }
}

//! The receiver's bookkeeping: what arrived, what it answered, and which promise was broken.
//!
//! A message is known by its idempotency key. Tests that check order give every row a counter column `n` that each change
//! raises; the ledger then knows from the messages alone in which order Postgres committed them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

/// A message as the ledger needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its idempotency key.
    pub(crate) key: String,
    /// What must be delivered one after another: table and id, or what the test groups by.
    pub(crate) group: String,
    /// The row's counter; absent in deletes under the default identity.
    pub(crate) n: Option<i64>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    active: BTreeMap<u64, Vec<Entry>>,
    held: HashMap<String, u64>,
    seen: HashMap<String, Known>,
    keys_of: HashMap<(String, i64), String>,
    groups: HashMap<String, Group>,
    unacknowledged: HashSet<String>,
    /// Hash of the body that came under a delivery's id.
    bodies: HashMap<String, u64>,
    acknowledged: usize,
    /// Groups and counters of what may become a dead letter.
    mortal: HashSet<(String, i64)>,
    /// The daemon's lives, the present one last.
    lives: Vec<Life>,
    violations: Vec<String>,
    /// Most requests at one time.
    pub(crate) concurrent_max: usize,
    /// Most distinct messages that had arrived and were not acknowledged.
    pub(crate) unacknowledged_max: usize,
    /// Arrivals of messages that had been acknowledged before.
    pub(crate) repeats: usize,
    /// Arrivals of messages, repeats counted.
    pub(crate) arrivals: usize,
}

/// One life of the daemon that has ended.
#[derive(Debug, Default, Clone)]
pub(crate) struct Life {
    /// When it died.
    pub(crate) died: Option<Instant>,
    /// Messages in requests that had no answer then.
    pub(crate) in_flight: usize,
    /// Messages acknowledged in it that came again in a later life.
    pub(crate) repeats: usize,
    /// How long before the death the oldest of these was acknowledged.
    pub(crate) oldest_repeat: Duration,
}

#[derive(Debug, Default)]
struct Known {
    /// When it was last acknowledged, and in which life.
    acknowledged: Option<(Instant, usize)>,
}

#[derive(Debug, Default)]
struct Group {
    /// Highest counter acknowledged since the daemon started.
    acknowledged_max: Option<i64>,
    /// Highest counter ever acknowledged.
    acknowledged_ever: Option<i64>,
    /// Messages that arrived and were not acknowledged.
    open: HashSet<String>,
}

impl Ledger {
    /// A request came in with these messages.
    pub(crate) fn arrived(&mut self, request: u64, entries: Vec<Entry>) {
        self.check_exclusive(request, &entries);
        let together: HashSet<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
        let mut last_here = HashMap::new();
        for entry in &entries {
            self.arrivals += 1;
            self.check_order(entry, &together, &mut last_here);
            let known = self.seen.entry(entry.key.clone()).or_default();
            if let Some((at, life)) = known.acknowledged {
                self.repeats += 1;
                self.repeated(at, life);
            } else {
                self.unacknowledged.insert(entry.key.clone());
                if !entry.n.is_some_and(|n| self.mortal.contains(&(entry.group.clone(), n))) {
                    self.groups.entry(entry.group.clone()).or_default().open.insert(entry.key.clone());
                }
            }
        }
        self.active.insert(request, entries);
        self.concurrent_max = self.concurrent_max.max(self.active.len());
        self.unacknowledged_max = self.unacknowledged_max.max(self.unacknowledged.len());
    }

    /// The request is over: acknowledged by a 2xx, or failed, or given up by the client.
    pub(crate) fn ended(&mut self, request: u64, acknowledged: bool) {
        for entry in self.active.remove(&request).unwrap_or_default() {
            if self.held.get(&entry.group) == Some(&request) {
                self.held.remove(&entry.group);
            }
            if acknowledged {
                let known = self.seen.entry(entry.key.clone()).or_default();
                self.acknowledged += usize::from(known.acknowledged.is_none());
                known.acknowledged = Some((Instant::now(), self.lives.len()));
                self.unacknowledged.remove(&entry.key);
                if let Some(group) = self.groups.get_mut(&entry.group) {
                    group.open.remove(&entry.key);
                    group.acknowledged_max = group.acknowledged_max.max(entry.n);
                    group.acknowledged_ever = group.acknowledged_ever.max(entry.n);
                }
            }
        }
    }

    /// A request came with this `webhook-id` and this body, which an id has only one of.
    pub(crate) fn body(&mut self, id: &str, hash: u64) {
        let first = *self.bodies.entry(id.to_owned()).or_insert(hash);
        if first != hash {
            self.violation(format!("frozen: {id} came with two bodies"));
        }
    }

    /// The message of this group and counter may become a dead letter: then the group goes on without it.
    pub(crate) fn may_die(&mut self, group: &str, n: i64) {
        self.mortal.insert((group.to_owned(), n));
    }

    /// Messages in requests that have no answer yet.
    pub(crate) fn in_flight(&self) -> usize {
        self.active.values().map(Vec::len).sum()
    }

    /// The daemon died at `at` with so many messages in flight, and starts anew.
    pub(crate) fn died(&mut self, at: Instant, in_flight: usize) {
        self.new_run();
        if let Some(life) = self.lives.last_mut() {
            (life.died, life.in_flight) = (Some(at), in_flight);
        }
    }

    /// The lives that have ended.
    pub(crate) fn lives(&self) -> &[Life] {
        &self.lives
    }

    /// The daemon starts anew: what was not confirmed comes again, in order.
    pub(crate) fn new_run(&mut self) {
        self.lives.push(Life::default());
        self.active.clear();
        self.held.clear();
        for group in self.groups.values_mut() {
            group.acknowledged_max = None;
        }
    }

    /// Whether the message of this group and counter has been acknowledged.
    pub(crate) fn has(&self, group: &str, n: i64) -> bool {
        let key = self.keys_of.get(&(group.to_owned(), n));
        key.and_then(|key| self.seen.get(key)).is_some_and(|known| known.acknowledged.is_some())
    }

    /// Whether the message of this group and counter has ever come.
    pub(crate) fn came(&self, group: &str, n: i64) -> bool {
        self.keys_of.contains_key(&(group.to_owned(), n))
    }

    /// Distinct messages acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged
    }

    /// Requests being answered.
    pub(crate) fn concurrent(&self) -> usize {
        self.active.len()
    }

    /// Distinct messages that came and are not acknowledged.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.unacknowledged.len()
    }

    /// What was broken, in the order in which it was seen; at most a hundred.
    pub(crate) fn violations(&self) -> &[String] {
        &self.violations
    }

    /// Fails the test if anything was broken.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        assert!(self.violations.is_empty(), "promises broken:\n{}", self.violations.join("\n"));
    }

    fn check_exclusive(&mut self, request: u64, entries: &[Entry]) {
        for entry in entries {
            match self.held.insert(entry.group.clone(), request) {
                Some(other) if other != request => {
                    self.violation(format!("exclusive: requests {other} and {request} both hold {}", entry.group));
                }
                _ => {}
            }
        }
    }

    fn check_order<'a>(&mut self, entry: &'a Entry, together: &HashSet<&str>, here: &mut HashMap<&'a str, i64>) {
        let Some(n) = entry.n else { return };
        let key = self.keys_of.entry((entry.group.clone(), n)).or_insert_with(|| entry.key.clone()).clone();
        if key != entry.key {
            self.violation(format!("key: {} n={n} came as {key} and as {}", entry.group, entry.key));
        }
        let known = self.seen.get(&entry.key);
        let first_time = known.is_none();
        let group = self.groups.entry(entry.group.clone()).or_default();
        let here_before = here.insert(&entry.group, n);
        let run_before = group.acknowledged_max;
        let ever_before = if first_time { group.acknowledged_ever } else { None };
        let overtaken = first_time && group.open.iter().any(|open| !together.contains(open.as_str()));
        if let Some(before) = here_before.max(run_before).max(ever_before).filter(|before| n <= *before) {
            self.violation(format!("order: {} n={n} came after n={before}", entry.group));
        }
        if overtaken {
            self.violation(format!("order: {} n={n} overtook an unacknowledged message", entry.group));
        }
    }

    fn repeated(&mut self, acknowledged: Instant, life: usize) {
        if let Some(life) = self.lives.get_mut(life) {
            life.repeats += 1;
            let age = life.died.map_or(Duration::ZERO, |died| died.saturating_duration_since(acknowledged));
            life.oldest_repeat = life.oldest_repeat.max(age);
        }
    }

    pub(crate) fn violation(&mut self, text: String) {
        if self.violations.len() < 100 {
            self.violations.push(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(group: &str, n: i64) -> Entry {
        Entry { key: format!("{group}#{n}"), group: group.to_owned(), n: Some(n) }
    }

    #[test]
    fn a_good_life_with_a_failure_a_batch_and_a_restart_is_clean() {
        let mut ledger = Ledger::default();
        ledger.arrived(1, vec![entry("a", 1), entry("a", 2), entry("b", 1)]);
        ledger.ended(1, false);
        ledger.arrived(2, vec![entry("a", 1), entry("a", 2), entry("b", 1)]);
        ledger.arrived(3, vec![entry("c", 1)]);
        ledger.ended(2, true);
        ledger.new_run();
        ledger.arrived(4, vec![entry("a", 2), entry("a", 3)]);
        ledger.ended(4, true);
        ledger.assert_clean();
        assert_eq!((ledger.acknowledged(), ledger.unacknowledged(), ledger.repeats), (4, 1, 1));
        assert_eq!((ledger.concurrent_max, ledger.unacknowledged_max), (2, 4));
        assert!(ledger.has("a", 3) && !ledger.has("c", 1));
    }

    #[test]
    fn two_requests_holding_one_group_are_caught() {
        let mut ledger = Ledger::default();
        ledger.arrived(1, vec![entry("a", 1)]);
        ledger.arrived(2, vec![entry("a", 1)]);
        assert!(ledger.violations()[0].starts_with("exclusive"), "{:?}", ledger.violations());
    }

    #[test]
    fn an_older_change_after_a_newer_one_is_caught() {
        let mut ledger = Ledger::default();
        for (request, n) in [(1, 1), (2, 3), (3, 2)] {
            ledger.arrived(request, vec![entry("a", n)]);
            ledger.ended(request, true);
        }
        assert!(ledger.violations()[0].starts_with("order"), "{:?}", ledger.violations());
    }

    #[test]
    fn a_change_that_is_new_after_a_restart_but_older_is_caught() {
        let mut ledger = Ledger::default();
        ledger.arrived(1, vec![entry("a", 2)]);
        ledger.ended(1, true);
        ledger.new_run();
        ledger.arrived(2, vec![entry("a", 1)]);
        assert!(ledger.violations()[0].starts_with("order"), "{:?}", ledger.violations());
    }

    #[test]
    fn acknowledged_changes_again_are_caught() {
        let mut ledger = Ledger::default();
        for (request, n) in [(1, 1), (2, 2), (3, 1), (4, 2), (5, 3)] {
            ledger.arrived(request, vec![entry("a", n)]);
            ledger.ended(request, true);
        }
        assert_eq!((ledger.violations().len(), ledger.repeats), (2, 2), "{:?}", ledger.violations());
    }

    #[test]
    fn overtaking_a_failed_message_is_caught() {
        let mut ledger = Ledger::default();
        ledger.arrived(1, vec![entry("a", 1)]);
        ledger.ended(1, false);
        ledger.arrived(2, vec![entry("a", 2)]);
        assert!(ledger.violations()[0].contains("overtook"), "{:?}", ledger.violations());
    }

    #[test]
    fn wrong_order_inside_one_batch_is_caught() {
        let mut ledger = Ledger::default();
        ledger.arrived(1, vec![entry("a", 2), entry("a", 1)]);
        assert!(ledger.violations()[0].starts_with("order"), "{:?}", ledger.violations());
    }

    #[test]
    fn a_repeat_is_counted_to_the_life_that_acknowledged_it() {
        let mut ledger = Ledger::default();
        ledger.arrived(1, vec![entry("a", 1)]);
        ledger.ended(1, true);
        ledger.died(Instant::now() + Duration::from_secs(5), 0);
        ledger.died(Instant::now() + Duration::from_secs(90), 0);
        ledger.arrived(2, vec![entry("a", 1)]);
        let lives = ledger.lives();
        assert_eq!((lives[0].repeats, lives[1].repeats), (1, 0));
        assert!(lives[0].oldest_repeat >= Duration::from_secs(4) && lives[0].oldest_repeat < Duration::from_secs(6));
        ledger.assert_clean();
    }

    #[test]
    fn a_dead_letter_lets_its_group_go_on() {
        let mut ledger = Ledger::default();
        ledger.may_die("a", 1);
        ledger.arrived(1, vec![entry("a", 1)]);
        ledger.ended(1, false);
        ledger.arrived(2, vec![entry("a", 2)]);
        ledger.ended(2, true);
        ledger.assert_clean();
        ledger.arrived(3, vec![entry("a", 1)]);
        assert!(ledger.violations()[0].starts_with("order"), "{:?}", ledger.violations());
    }

    #[test]
    fn another_body_under_the_same_id_is_caught() {
        let mut ledger = Ledger::default();
        ledger.body("dlv_1", 1);
        ledger.body("dlv_1", 1);
        ledger.assert_clean();
        ledger.body("dlv_1", 2);
        assert!(ledger.violations()[0].starts_with("frozen"), "{:?}", ledger.violations());
    }

    #[test]
    fn another_idempotency_key_for_the_same_change_is_caught() {
        let mut ledger = Ledger::default();
        ledger.arrived(1, vec![entry("a", 1)]);
        ledger.ended(1, true);
        ledger.new_run();
        ledger.arrived(2, vec![Entry { key: "other".into(), ..entry("a", 1) }]);
        assert!(ledger.violations()[0].starts_with("key"), "{:?}", ledger.violations());
    }
}

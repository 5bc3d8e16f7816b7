//! What a sink's tables are grouped by, and which of their changes are barriers for it.
//!
//! A change of a table that is grouped by another rule than the one before it, or has another name, is in another group than older
//! changes of its row may be, and would overtake them: it is a barrier of its table. The same goes for a change that comes again
//! after a crash, when the rule was changed meanwhile: what was kept of the table before stands under the old one. The store
//! has from which change on which rule was in force, so that this is told from what comes again as it was.
//!
//! The first change of a table that is not known is a barrier if anything of the table waits, since nobody knows by which
//! rule: a store of before these rules were kept, or a table that was forgotten.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::change::{Lsn, Position};
use crate::store::{Grouped, Op};
use crate::ties::{Barrier, ScopeId};

/// What is known at most; of more, tables that nothing waits for are forgotten, and noted again with their next change.
const KNOWN_MAX: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// By table, and from which change on.
    known: BTreeMap<(u32, Position), Grouped>,
    /// Tables that were described, until a new change of theirs is found to be grouped as is known.
    described: HashMap<u32, Described>,
}

#[derive(Clone, Debug)]
struct Described {
    scope: ScopeId,
    rule: Arc<str>,
}

/// A change of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub(super) oid: u32,
    pub(super) position: Position,
    /// It had not arrived before the restart.
    pub(super) is_new: bool,
    /// Everything up to here is resolved.
    pub(super) resolved: Lsn,
}

impl Tables {
    /// With what the store knows.
    pub(super) fn new(known: Vec<Grouped>) -> Self {
        let known = known.into_iter().map(|grouped| ((grouped.oid, grouped.since), grouped)).collect();
        Self { known, described: HashMap::new() }
    }

    /// A table is described; its changes from here on are grouped so. Logical messages, which have no table, have no rule.
    pub(super) fn describe(&mut self, oid: u32, scope: ScopeId, rule: Arc<str>) {
        if oid != 0 {
            self.described.insert(oid, Described { scope, rule });
        }
    }

    /// What a change is, as far as the rule goes, and what the store is to know of that. `waits` tells whether messages of a
    /// table are not delivered.
    pub(super) fn arrive(&mut self, change: Arrival, waits: impl Fn(ScopeId) -> bool) -> (Barrier, Option<Op>) {
        let Arrival { oid, position, is_new, resolved } = change;
        let Some(described) = self.described.get(&oid).cloned() else { return (Barrier::None, None) };
        let last = self.known.range((oid, FIRST)..=(oid, position)).next_back().map(|(_, last)| last);
        let is_known = last.is_some_and(|last| (last.scope, &last.rule) == (described.scope, &described.rule));
        let barrier = match last {
            Some(last) if last.since == position => last.barrier,
            Some(_) if is_known => Barrier::None,
            Some(last) if last.scope != described.scope => Barrier::Scopes(last.scope),
            Some(_) => Barrier::Scope,
            None if waits(described.scope) || is_new && self.is_made_anew(oid, &described) => Barrier::Scope,
            None => Barrier::None,
        };
        if is_known
            && is_new
            && self.known.range((oid, position)..=(oid, LAST)).all(|((_, since), _)| *since == position)
        {
            self.described.remove(&oid);
        }
        if is_known || !is_new {
            return (barrier, None);
        }
        let Described { scope, rule } = described;
        let grouped = Grouped { oid, scope, rule, since: position, barrier };
        self.known.insert((oid, position), grouped.clone());
        let forgotten = self.forget(oid, resolved, waits);
        (barrier, Some(Op::Grouped { grouped, forgotten }))
    }

    /// Whether another table had its name last, and was grouped by another rule.
    fn is_made_anew(&self, oid: u32, described: &Described) -> bool {
        let of_name = self.known.values().filter(|one| one.oid != oid && one.scope == described.scope);
        of_name.max_by_key(|one| one.since).is_some_and(|one| one.rule != described.rule)
    }

    /// Forgets what was in force before a rule from whose first change on all is unresolved at most: no change before that
    /// comes again. And if much is known, what nothing waits for.
    ///
    /// A mark is where a transaction ends, and the next may commit right there: what begins at it is not resolved.
    fn forget(&mut self, oid: u32, resolved: Lsn, waits: impl Fn(ScopeId) -> bool) -> Vec<(u32, Position)> {
        let of_table = self.known.range((oid, FIRST)..=(oid, LAST));
        let current = of_table.rev().map(|(key, _)| *key).find(|(_, since)| since.commit_lsn < resolved);
        let mut forgotten: Vec<(u32, Position)> = match current {
            Some(current) => self.known.range((oid, FIRST)..current).map(|(key, _)| *key).collect(),
            None => Vec::new(),
        };
        if self.known.len() > KNOWN_MAX {
            let others = self.known.values().filter(|one| one.oid != oid && !waits(one.scope));
            forgotten.extend(others.map(|one| (one.oid, one.since)));
        }
        // In order, so that of a table which is forgotten wholly the last rule stays described.
        for key in &forgotten {
            let Some(Grouped { scope, rule, .. }) = self.known.remove(key) else { continue };
            let is_known = self.known.range((key.0, FIRST)..=(key.0, LAST)).next().is_some();
            if !is_known {
                self.described.entry(key.0).or_insert(Described { scope, rule });
            }
        }
        forgotten
    }
}

const FIRST: Position = Position { commit_lsn: Lsn(0), index: 0 };
const LAST: Position = Position { commit_lsn: Lsn(u64::MAX), index: u64::MAX };

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: ScopeId = ScopeId(1);
    const NEW: ScopeId = ScopeId(2);

    fn at(lsn: u64) -> Position {
        Position { commit_lsn: Lsn(lsn), index: 1 }
    }

    struct Play {
        tables: Tables,
        /// As the store has it.
        kept: BTreeMap<(u32, Position), Grouped>,
        resolved: u64,
        waiting: Vec<ScopeId>,
    }

    impl Play {
        fn new() -> Self {
            Self { tables: Tables::default(), kept: BTreeMap::new(), resolved: 0, waiting: Vec::new() }
        }

        fn describe(&mut self, oid: u32, scope: ScopeId, rule: &str) {
            self.tables.describe(oid, scope, rule.into());
        }

        fn arrive(&mut self, oid: u32, lsn: u64, is_new: bool) -> Barrier {
            let change = Arrival { oid, position: at(lsn), is_new, resolved: Lsn(self.resolved) };
            let (barrier, op) = self.tables.arrive(change, |scope| self.waiting.contains(&scope));
            if let Some(Op::Grouped { grouped, forgotten }) = op {
                forgotten.iter().for_each(|key| drop(self.kept.remove(key)));
                self.kept.insert((grouped.oid, grouped.since), grouped);
            }
            barrier
        }

        fn new_change(&mut self, oid: u32, lsn: u64) -> Barrier {
            self.arrive(oid, lsn, true)
        }

        fn again(&mut self, oid: u32, lsn: u64) -> Barrier {
            self.arrive(oid, lsn, false)
        }

        fn restart(&mut self) {
            self.tables = Tables::new(self.kept.values().cloned().collect());
        }
    }

    #[test]
    fn the_first_change_by_another_rule_is_a_barrier_and_the_next_are_not() {
        let mut play = Play::new();
        play.describe(7, OLD, "id");
        assert_eq!([play.new_change(7, 1), play.new_change(7, 2)], [Barrier::None; 2]);
        assert!(play.tables.described.is_empty(), "nothing is looked up for a table that is settled");
        play.describe(7, OLD, "key");
        assert_eq!([play.new_change(7, 3), play.new_change(7, 4)], [Barrier::Scope, Barrier::None]);
        play.describe(8, NEW, "other");
        assert_eq!(play.new_change(8, 5), Barrier::None);
    }

    #[test]
    fn a_table_of_another_name_waits_for_both() {
        let mut play = Play::new();
        play.describe(7, OLD, "id");
        play.new_change(7, 1);
        play.describe(7, NEW, "id");
        assert_eq!([play.new_change(7, 2), play.new_change(7, 3)], [Barrier::Scopes(OLD), Barrier::None]);
    }

    #[test]
    fn a_table_made_anew_by_another_rule_waits_for_the_one_before() {
        let mut play = Play::new();
        play.describe(7, OLD, "id");
        play.new_change(7, 1);
        play.describe(8, OLD, "id");
        assert_eq!(play.new_change(8, 2), Barrier::None);
        play.describe(9, OLD, "key");
        assert_eq!(play.new_change(9, 3), Barrier::Scope);
    }

    #[test]
    fn after_a_crash_the_same_change_is_the_barrier_and_those_before_come_as_they_were() {
        let mut play = Play::new();
        play.describe(7, OLD, "id");
        play.new_change(7, 1);
        play.describe(7, NEW, "key");
        play.new_change(7, 5);
        play.restart();
        play.describe(7, OLD, "id");
        assert_eq!([play.again(7, 1), play.again(7, 3), play.new_change(7, 4)], [Barrier::None; 3]);
        play.describe(7, NEW, "key");
        assert_eq!([play.new_change(7, 5), play.new_change(7, 6)], [Barrier::Scopes(OLD), Barrier::None]);
    }

    #[test]
    fn whatever_comes_again_by_another_rule_than_it_was_kept_under_is_a_barrier() {
        let mut play = Play::new();
        play.describe(7, OLD, "id");
        play.new_change(7, 1);
        play.restart();
        play.describe(7, OLD, "key");
        assert_eq!([play.again(7, 2), play.again(7, 3)], [Barrier::Scope; 2]);
        assert_eq!([play.new_change(7, 4), play.new_change(7, 5)], [Barrier::Scope, Barrier::None]);
        // Again before anything of that is resolved.
        play.restart();
        play.describe(7, OLD, "key");
        assert_eq!(
            [play.again(7, 3), play.again(7, 4), play.again(7, 5)],
            [Barrier::Scope, Barrier::Scope, Barrier::None]
        );
    }

    #[test]
    fn a_table_that_is_not_known_waits_for_what_the_store_has_of_it() {
        let mut play = Play::new();
        play.waiting = vec![OLD];
        play.describe(7, OLD, "id");
        play.describe(8, NEW, "id");
        assert_eq!([play.again(7, 1), play.again(8, 2)], [Barrier::Scope, Barrier::None]);
        assert_eq!([play.new_change(7, 3), play.new_change(7, 4)], [Barrier::Scope, Barrier::None]);
    }

    #[test]
    fn a_table_that_was_forgotten_is_noted_again_with_its_next_change() {
        let mut play = Play::new();
        play.describe(7, OLD, "id");
        play.new_change(7, 1);
        let many = 10..10 + u32::try_from(KNOWN_MAX).unwrap();
        for oid in many {
            play.describe(oid, ScopeId(u64::from(oid)), "id");
            play.new_change(oid, u64::from(oid));
        }
        assert!(!play.kept.keys().any(|(oid, _)| *oid == 7), "it is forgotten");
        assert_eq!(play.new_change(7, 10_001), Barrier::None);
        assert!(play.kept.contains_key(&(7, at(10_001))));
        // So that a change of the rule is seen, be it at once or after a restart.
        play.restart();
        play.describe(7, OLD, "key");
        assert_eq!(play.new_change(7, 10_002), Barrier::Scope);
    }

    #[test]
    fn a_rule_from_a_change_on_that_may_come_again_leaves_the_one_before_known() {
        let mut play = Play::new();
        play.describe(7, OLD, "id");
        play.new_change(7, 1);
        // The transaction before has ended where this one commits.
        play.resolved = 5;
        play.describe(7, OLD, "key");
        assert_eq!(play.new_change(7, 5), Barrier::Scope);
        play.restart();
        play.describe(7, OLD, "key");
        assert_eq!(play.again(7, 5), Barrier::Scope);
        play.resolved = 6;
        play.describe(7, OLD, "id");
        play.new_change(7, 7);
        assert!(!play.kept.contains_key(&(7, at(1))), "it cannot come again");
    }

    #[test]
    fn only_what_may_come_again_is_remembered() {
        let mut play = Play::new();
        for lsn in 1..100 {
            play.describe(7, OLD, if lsn % 2 == 0 { "id" } else { "key" });
            play.new_change(7, lsn);
            play.resolved = lsn.saturating_sub(2);
        }
        assert!(play.kept.len() <= 5, "{}", play.kept.len());
        assert_eq!(play.kept.len(), play.tables.known.len());
        for oid in 10..10_000 {
            play.describe(oid, ScopeId(u64::from(oid)), "id");
            play.new_change(oid, 1000 + u64::from(oid));
        }
        assert!(play.kept.len() <= KNOWN_MAX + 1);
    }
}

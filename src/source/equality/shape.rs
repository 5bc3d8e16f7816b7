//! What the texts of a type's values rest on beside the type.
//!
//! The type of a column says how its values are written, except that a row type can get and lose attributes while it stays the
//! same type, and that money is written as `lc_monetary` has it. The texts of equal values are others then, so this is a part
//! of the rule that rows are grouped by.

use std::collections::{HashMap, HashSet};

use xxhash_rust::xxh3::xxh3_64;

use super::DEPTH_MAX;
use super::types::TypeFacts;
use crate::record::array_element;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    /// The same for the same attributes and locale; 0 where the texts rest on nothing but the type.
    pub(crate) hash: u64,
    /// The transaction that altered a row type last.
    pub(crate) altered: Option<u32>,
}

const MONEY: u32 = 790;

/// The shape of a type.
pub(crate) fn of_type(oid: u32, types: &HashMap<u32, TypeFacts>) -> Shape {
    let mut walk = Walk { types, seen: HashSet::new(), parts: Vec::new(), altered: None };
    walk.visit(oid, 0);
    let hash = if walk.parts.is_empty() { 0 } else { xxh3_64(&walk.parts).max(1) };
    Shape { hash, altered: walk.altered }
}

/// The later of two transactions, as their numbers go round.
pub(crate) fn later(one: Option<u32>, other: Option<u32>) -> Option<u32> {
    match (one, other) {
        (Some(one), Some(other)) if is_after(other, one) => Some(other),
        (Some(one), _) => Some(one),
        (None, other) => other,
    }
}

/// Whether the first transaction began after the second, as their numbers go round.
pub(crate) fn is_after(one: u32, other: u32) -> bool {
    one.wrapping_sub(other).cast_signed() > 0
}

struct Walk<'a> {
    types: &'a HashMap<u32, TypeFacts>,
    seen: HashSet<u32>,
    parts: Vec<u8>,
    altered: Option<u32>,
}

impl Walk<'_> {
    fn visit(&mut self, oid: u32, depth: usize) {
        if depth > DEPTH_MAX || !self.seen.insert(oid) {
            return;
        }
        if oid == MONEY {
            self.parts.extend_from_slice(b"money as in C");
        }
        if let Some(element) = array_element(oid) {
            return self.visit(element, depth + 1);
        }
        let types = self.types;
        let Some(facts) = types.get(&oid) else { return };
        self.altered = later(self.altered, facts.altered);
        for attribute in &facts.attributes {
            let typed = attribute.typed;
            self.parts.extend_from_slice(&attribute.number.to_le_bytes());
            self.parts.extend_from_slice(&typed.oid.to_le_bytes());
            self.parts.extend_from_slice(&typed.modifier.to_le_bytes());
        }
        for within in
            facts.attributes.iter().map(|attribute| attribute.typed.oid).chain([facts.element, facts.base.oid])
        {
            if within != 0 {
                self.visit(within, depth + 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::equality::Typed;
    use crate::source::equality::types::Attribute;

    fn facts(oid: u32, attributes: &[(i16, u32, i32)]) -> TypeFacts {
        let typed = |oid, modifier| Typed { oid, modifier, is_deterministic: true };
        let attributes =
            attributes.iter().map(|&(number, oid, modifier)| Attribute { number, typed: typed(oid, modifier) });
        TypeFacts {
            oid,
            typtype: b'c',
            element: 0,
            base: typed(0, -1),
            class: None,
            attributes: attributes.collect(),
            altered: None,
        }
    }

    fn hash(oid: u32, all: &[TypeFacts]) -> u64 {
        of_type(oid, &all.iter().map(|facts| (facts.oid, facts.clone())).collect()).hash
    }

    #[test]
    fn a_row_type_has_another_shape_with_other_attributes_also_within_other_types() {
        let one = [facts(1, &[(1, 23, -1), (2, 25, -1)])];
        let attributes: [&[(i16, u32, i32)]; 4] = [
            &[(1, 23, -1)],
            &[(1, 23, -1), (2, 25, -1), (3, 23, -1)],
            &[(1, 23, -1), (3, 25, -1)],
            &[(1, 23, -1), (2, 1043, 9)],
        ];
        for attributes in attributes {
            assert_ne!(hash(1, &one), hash(1, &[facts(1, attributes)]), "{attributes:?}");
            let within = |attributes: &[(i16, u32, i32)]| {
                [facts(1, attributes), TypeFacts { element: 1, ..facts(2, &[]) }, facts(3, &[(1, 2, -1)])]
            };
            let before = within(&[(1, 23, -1), (2, 25, -1)]);
            assert_ne!(hash(3, &before), hash(3, &within(attributes)), "{attributes:?} within");
        }
        assert_eq!(hash(1, &one), hash(1, &[facts(1, &[(1, 23, -1), (2, 25, -1)])]));
    }

    #[test]
    fn money_has_a_shape_and_types_that_rest_on_nothing_have_none() {
        assert_ne!(hash(790, &[]), 0);
        assert_ne!(hash(791, &[]), 0, "an array of it");
        assert_ne!(
            hash(9, &[TypeFacts { base: Typed { oid: 790, modifier: -1, is_deterministic: true }, ..facts(9, &[]) }]),
            0
        );
        for oid in [23, 25, 1700, 1009, 3906, 9999] {
            assert_eq!(hash(oid, &[]), 0, "{oid}");
        }
    }

    #[test]
    fn what_was_altered_last_counts_and_numbers_go_round() {
        let altered = |oid, altered, within| TypeFacts { altered, ..facts(oid, &[(1, within, -1)]) };
        let all = [altered(1, Some(7), 2), altered(2, Some(9), 3), altered(3, None, 23)];
        assert_eq!(of_type(1, &all.into_iter().map(|facts| (facts.oid, facts)).collect()).altered, Some(9));
        assert!(is_after(3, u32::MAX) && !is_after(u32::MAX, 3) && !is_after(5, 5) && is_after(6, 5));
        assert_eq!(later(Some(u32::MAX), Some(3)), Some(3));
    }
}

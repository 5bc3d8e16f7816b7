//! Parting a delivery that is refused as it is, so that the message at fault comes to stand alone.
//!
//! The messages are in the order of commits. Those that share a group, directly or through others, must be delivered in
//! order: they form a component. Whole components are dealt out, so that the two parts share no group and neither waits
//! for the other. Only when all messages are one component is it cut in the middle; then the second part has to wait for
//! the first.
//!
//! The larger part has at most two thirds of the messages, or is one component. A component that is larger than that is
//! parted from the others first and cut in the middle the next time, so that a delivery of n messages comes down to single
//! ones in at most `2 × ⌈log2 n⌉` splits, and in `⌈log2 n⌉` when no two messages share a group.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::ties::{GroupId, Groups};

/// The two parts of a delivery, as indexes of its messages in order, the first message in the first part. `None` for
/// fewer than two messages.
pub(super) fn halves(members: &[Groups]) -> Option<(Vec<usize>, Vec<usize>)> {
    if members.len() < 2 {
        return None;
    }
    let components = components(members);
    if components.len() == 1 {
        let middle = members.len().div_ceil(2);
        return Some(((0..middle).collect(), (middle..members.len()).collect()));
    }
    let (mut one, mut other) = deal(components, members.len());
    one.sort_unstable();
    other.sort_unstable();
    if one.first() > other.first() {
        std::mem::swap(&mut one, &mut other);
    }
    Some((one, other))
}

/// Largest first, the earlier of two as large; into the first part as long as that brings it nearer to the middle. Neither
/// part stays empty if there are two components.
fn deal(mut components: Vec<Vec<usize>>, total: usize) -> (Vec<usize>, Vec<usize>) {
    components.sort_by_key(|component| Reverse(component.len()));
    let (mut one, mut other) = (Vec::new(), Vec::new());
    for component in components {
        if 2 * one.len() + component.len() <= total {
            one.extend(component);
        } else {
            other.extend(component);
        }
    }
    (one, other)
}

/// The messages by component, each in order, in the order of their first messages.
fn components(members: &[Groups]) -> Vec<Vec<usize>> {
    let mut first: Vec<usize> = (0..members.len()).collect();
    let mut seen: HashMap<GroupId, usize> = HashMap::new();
    for (index, groups) in members.iter().enumerate() {
        for group in groups.iter() {
            let earlier = *seen.entry(group).or_insert(index);
            join(&mut first, earlier, index);
        }
    }
    let mut components: Vec<Vec<usize>> = vec![Vec::new(); members.len()];
    for index in 0..members.len() {
        let root = root(&mut first, index);
        components[root].push(index);
    }
    components.retain(|component| !component.is_empty());
    components
}

/// Joins two trees; the root is the earliest message.
fn join(first: &mut [usize], one: usize, other: usize) {
    let (one, other) = (root(first, one), root(first, other));
    first[one.max(other)] = one.min(other);
}

/// The root of a message's tree; halves the way there.
fn root(first: &mut [usize], mut index: usize) -> usize {
    while first[index] != index {
        first[index] = first[first[index]];
        index = first[index];
    }
    index
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn one(group: u64) -> Groups {
        Groups::One(GroupId(group))
    }

    fn moved(old: u64, new: u64) -> Groups {
        Groups::moved(GroupId(old), GroupId(new))
    }

    /// Splits until each stands alone; the most splits that a message went through.
    fn depth(members: &[Groups]) -> u32 {
        let part = |indexes: Vec<usize>| indexes.into_iter().map(|index| members[index]).collect::<Vec<_>>();
        halves(members).map_or(0, |(one, other)| 1 + depth(&part(one)).max(depth(&part(other))))
    }

    fn log2(number: usize) -> u32 {
        number.next_power_of_two().ilog2()
    }

    #[test]
    fn fewer_than_two_are_not_parted() {
        assert_eq!(halves(&[]), None);
        assert_eq!(halves(&[one(1)]), None);
    }

    #[test]
    fn messages_of_different_groups_or_none_are_parted_in_the_middle() {
        assert_eq!(halves(&[one(1), one(2)]), Some((vec![0], vec![1])));
        assert_eq!(halves(&[one(1), one(2), Groups::None, Groups::None, one(3)]), Some((vec![0, 1, 2], vec![3, 4])));
    }

    #[test]
    fn a_group_stays_in_one_part_in_order() {
        let members = [one(1), one(2), one(1), one(2), one(1), one(3)];
        assert_eq!(halves(&members), Some((vec![0, 2, 4], vec![1, 3, 5])));
    }

    #[test]
    fn a_key_change_ties_its_groups_together() {
        let members = [one(1), one(2), one(3), moved(1, 3), one(4)];
        assert_eq!(halves(&members), Some((vec![0, 2, 3], vec![1, 4])));
        let members = [one(1), moved(1, 2), moved(2, 3), one(3)];
        assert_eq!(halves(&members), Some((vec![0, 1], vec![2, 3])), "one component: the second waits for the first");
    }

    #[test]
    fn the_first_part_holds_the_first_message_though_another_component_is_larger() {
        assert_eq!(halves(&[one(1), one(2), one(2), one(2)]), Some((vec![0], vec![1, 2, 3])));
    }

    #[test]
    fn components_that_do_not_fit_the_middle_are_parted_as_near_as_they_can() {
        let members: Vec<Groups> =
            (0..100).map(|index| one([26, 51, 76, 100].iter().filter(|end| **end <= index).count() as u64)).collect();
        let (first, second) = halves(&members).unwrap();
        assert_eq!((first.len(), second.len()), (51, 49));
    }

    #[test]
    fn a_thousand_of_a_chain_of_key_changes_are_parted_soon() {
        let members: Vec<Groups> = (0..1000).rev().map(|index| moved(index, index + 1)).collect();
        assert_eq!(depth(&members), 10);
    }

    #[test]
    fn a_giant_with_small_ones_beside_it_is_alone_after_the_first_split() {
        let members: Vec<Groups> = (0..1000).map(|index| if index % 100 == 50 { one(index) } else { one(0) }).collect();
        let (first, second) = halves(&members).unwrap();
        assert_eq!((first.len(), second.len()), (990, 10));
        assert_eq!(depth(&members), 11);
    }

    fn groups() -> impl Strategy<Value = Vec<Groups>> {
        (1..60u64, 0..200usize).prop_flat_map(|(kinds, count)| {
            let any = prop_oneof![
                1 => Just(Groups::None),
                6 => (0..kinds).prop_map(one),
                1 => (0..kinds, 0..kinds).prop_map(|(old, new)| moved(old, new)),
            ];
            proptest::collection::vec(any, count)
        })
    }

    /// By walking: whether the messages are one component.
    fn is_connected(members: &[Groups]) -> bool {
        let touch = |a: Groups, b: Groups| a.iter().any(|group| b.iter().any(|other| other == group));
        let (mut reached, mut todo) = (HashSet::from([0]), vec![0]);
        while let Some(at) = todo.pop() {
            for next in 0..members.len() {
                if touch(members[at], members[next]) && reached.insert(next) {
                    todo.push(next);
                }
            }
        }
        reached.len() == members.len()
    }

    proptest! {
        #[test]
        fn nothing_is_lost_order_is_kept_and_groups_stay_apart(members in groups()) {
            let Some((first, second)) = halves(&members) else {
                prop_assert!(members.len() < 2);
                return Ok(());
            };
            prop_assert!(!first.is_empty() && !second.is_empty() && first[0] == 0);
            prop_assert!(first.is_sorted() && second.is_sorted());
            let mut all = [&first[..], &second[..]].concat();
            all.sort();
            prop_assert_eq!(all, (0..members.len()).collect::<Vec<_>>());
            if is_connected(&members) {
                prop_assert_eq!(first.len(), members.len().div_ceil(2));
                prop_assert!(first.last() < second.first());
            } else {
                let of = |part: &[usize]| part.iter().flat_map(|at| members[*at].iter()).collect::<HashSet<_>>();
                prop_assert!(of(&first).is_disjoint(&of(&second)));
                let (large, _) = if first.len() > second.len() { (&first, &second) } else { (&second, &first) };
                let larger: Vec<Groups> = large.iter().map(|at| members[*at]).collect();
                prop_assert!(3 * larger.len() <= 2 * members.len() || is_connected(&larger));
            }
        }

        #[test]
        fn every_message_stands_alone_after_few_splits(members in groups()) {
            prop_assert!(depth(&members) <= 2 * log2(members.len().max(1)));
        }

        #[test]
        fn messages_of_different_groups_stand_alone_after_the_logarithm_of_their_number(count in 1..1000usize) {
            let members: Vec<Groups> = (0..count).map(|index| one(index as u64)).collect();
            prop_assert_eq!(depth(&members), log2(count));
        }
    }
}

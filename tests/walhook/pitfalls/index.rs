//! docs/POSTGRES.md and the tests belong together: every number has its row, and every test that a row names exists.

use std::collections::{BTreeMap, HashSet};
use std::ops::RangeInclusive;

use crate::daemon::root;

/// The numbers that must have a row.
const NUMBERS: [RangeInclusive<u32>; 4] = [1..=31, 34..=37, 39..=47, 51..=66];

/// The rows of the page's tables: number, and what holds it.
fn rows() -> Vec<(u32, String)> {
    let page = std::fs::read_to_string(root().join("docs/POSTGRES.md")).unwrap();
    let cells = |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let lines = page.lines().filter(|line| line.starts_with("| ")).map(cells);
    lines.filter_map(|cells| Some((cells.first()?.parse().ok()?, cells.last()?.clone()))).collect()
}

/// The words in backticks that name a test.
fn tests_in(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2).filter(|word| word.matches('_').count() > 2)
}

/// The names of all functions in the sources.
fn functions() -> HashSet<String> {
    let mut names = HashSet::new();
    let mut folders = vec![root().join("src"), root().join("tests")];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let found = text.lines().filter_map(|line| line.trim_start().split_once("fn ")?.1.split_once('('));
                names.extend(found.map(|(name, _)| name.to_owned()));
            }
        }
    }
    names
}

#[test]
fn every_pitfall_has_a_row_and_every_test_that_a_row_names_exists() {
    let functions = functions();
    let mut by_number: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for (number, held) in rows() {
        for test in tests_in(&held) {
            assert!(functions.contains(test), "{number}: there is no test {test}");
        }
        by_number.entry(number).or_default().push(held);
    }
    let missing: Vec<u32> = NUMBERS.into_iter().flatten().filter(|number| !by_number.contains_key(number)).collect();
    assert!(missing.is_empty(), "docs/POSTGRES.md has no row for {missing:?}");
    for (number, held) in by_number {
        let own = format!("pitfall_{number:02}_");
        let is_held = held.iter().flat_map(|held| tests_in(held)).any(|test| test.starts_with(&own));
        let has_reason = held.iter().any(|held| held.contains("no test of its own:"));
        assert!(is_held || has_reason, "{number} has neither a test of its number nor the reason why there is none");
    }
}
